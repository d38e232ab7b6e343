"""What must not leave the process: secrets by the names that they go under, and by what they look like.

Rules run over encoded metadata before it is spooled or emitted, so that neither the disk nor the store ever sees what
they take out. A quick look over many events at once tells whether anything of it is worth a closer one.

A member whose name is a secret's (``password``, ``api_key``, ``userPassword``, ``X-Auth-Token``, …) is taken out whole,
whatever it holds; so is one of JSON, or of a dict's ``repr``, that stands in a text. In texts, what looks like a secret
is: card numbers (13 to 19 digits of a known issuer whose check digit is right), bearer and basic credentials, cookies
and keys of headers, JSON web tokens, private keys, keys of well-known services, passwords in URLs, what stands behind
``password=`` and the like, and the patterns of the application's own. Ids, hashes and words that only look a little
like one stay: a text that was mended for nothing is a loss too.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import cast

import msgspec

from afterwrite.errors import UsageError

REDACTED = "[redacted]"

# Names of secrets, as words without case and separators. One that stands for itself alone is in _EXACT.
_PARTS = (
    "password", "passwd", "passphrase", "passcode", "pwhash", "secret", "apikey", "accesskey", "privatekey",
    "signingkey", "encryptionkey", "authtoken", "accesstoken", "refreshtoken", "idtoken", "bearertoken", "sessiontoken",
    "csrftoken", "xsrftoken", "resettoken", "apitoken", "credential", "cardnumber", "creditcard", "securitycode",
    "socialsecurity", "mnemonic", "seedphrase", "accountkey",
)  # fmt: skip
_EXACT = frozenset({
    "pwd", "pass", "pin", "otp", "totp", "cvv", "cvc", "cvv2", "ssn", "token", "jwt", "bearer", "sessionid",
    "authorization", "proxyauthorization", "cookie", "cookies", "setcookie",
})  # fmt: skip
# Headers of vendors, as they come (X-Vault-Token) and as WSGI has them.
_TOKEN_HEADER = re.compile(r"(?:http_)?x[-_](?:[a-z0-9]{1,20}[-_]){0,3}token", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\W_]+")

# What a text looks like, and what is kept of it.
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_CREDENTIALS = re.compile(r"\b(authorization\W{1,4})?(bearer|basic)(\s+)([A-Za-z0-9._~+/=-]{8,})", re.IGNORECASE)
_HEADER = re.compile(
    r"\b(cookie:[ \t]*|x-(?:api-?key|(?:[a-z]{1,20}-){0,3}(?:token|secret)):[ \t]*)[^\s\"'][^\r\n\"']*", re.IGNORECASE
)
# Whoever calls the application writes some of these texts, so that each pattern takes a time that grows with the text
# and not with its square: a run of letters is gone through once, wherever in it something might begin.
_DOTTED = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+)++")
_SHORTEST_PAYLOAD = 5
_LONGEST_WORD = 20
_WEB_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{5}")
_SERVICE_KEY = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}\b|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{18,}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{20,}"
    r"|sk-(?:proj|ant|svcacct|or)-[A-Za-z0-9_-]{20,}|sk-[A-Za-z0-9]{40,}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}"
    r"|GOCSPX-[A-Za-z0-9_-]{20,}|sbp_(?:v\d_)?[a-f0-9]{30,}|sb_secret_[A-Za-z0-9_-]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{50,}"
    r"|hf_[A-Za-z0-9]{30,}|do[opr]_v1_[a-f0-9]{40,}|dckr_pat_[A-Za-z0-9_-]{20,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{30,}|hvs\.[A-Za-z0-9_-]{20,}|lin_api_[A-Za-z0-9]{30,}|AGE-SECRET-KEY-1[A-Z0-9]{50,})"
)
_HOOK = re.compile(r"(hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/\d{1,30}/)[\w/-]+")
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*+:)[^/\s]+(?=@)")
_URL_SECRET = re.compile(
    r"([?&](?:[a-z_]*(?:token|secret|password|signature|api_?key)|code|sig)=)[^&#\s]+", re.IGNORECASE
)
_SAID_SECRET = re.compile(
    r"((?:password|passwd|pwd|secret|token|api_?key|access_?key|account_?key)=)(?!\[redacted\])(?:'[^']*'|\"[^\"]*\"|[^&#\s]+)",
    re.IGNORECASE,
)
# In a hash or a UUID the digits have letters or further groups beside them.
_CARD = re.compile(r"(?<![A-Za-z\d.,-])\d(?:[ -]?\d){12,18}(?![A-Za-z\d-])")
# A member in a text: JSON that was put into a string, how often ever (\", \\\"), or what Python writes of a dict.
_NAMED = re.compile(r"""(?<!\\)(\\*+["'])([A-Za-z_][\w .-]{1,63})\1\s*:\s*""")
_STRING_ENDS = {quote: re.compile(rf"(?:[^{quote}\\]|\\.)*+{quote}", re.DOTALL) for quote in "\"'"}
_BRACKET = re.compile(r"[\[{]|([\]}])")
_SCALAR = re.compile(r"""[^\s,\]}"'\\]*""")
_NOTHING_SAID = frozenset({"", "true", "false", "null", "True", "False", "None"})
# Issuers: Visa, Mastercard, American Express, Discover, JCB, Diners, Maestro, UnionPay.
_ISSUER = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|64[4-9]|65|35[2-8]|3(?:0[0-5]|[689])|50|5[6-8]|62"
)

# Whether a text may be of these kinds, told from the lower-cased bytes: first by words, which is quick, and where those
# are of any text, by a pattern. Keys of services are runs of at least so many characters: where there is no such run,
# nobody looks for them one by one. 13 digits are looked for apart.
_SIGNS = (b"-----b", b"whsec_", b"hooks", b"cookie:")
_HINTS = (b"bearer", b"basic", b"://", b"?", b"&")
# Blanks may be escaped in JSON, or none of ASCII's, and quotes may stand in a text.
_HINT = re.compile(
    rb"(?:bearer|basic)[\s\\\x80-\xff]|://(?:[^/\s\"@:\\]|\\.)*+:|[?&](?:[a-z_]*(?:token|secret|password|signature|api_?key)|code|sig)="
)
_KEY_SIGNS = (
    b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"_pat_", b"xox", b"xapp-", b"k_live_", b"k_test_", b"aiza", b"ya29.",
    b"gocspx-", b"glpat-", b"sbp_", b"sb_secret_", b"npm_", b"pypi-", b"hf_", b"_v1_", b"shp", b"hvs.", b"lin_api_",
    b"age-secret-key",
)  # fmt: skip
_KEY_HINTS = (b"eyj", b"akia", b"asia", b"sk-", b"sg.")
_KEY_HINT = re.compile(rb"eyj[\w-]{5}|a[ks]ia[a-z0-9]{16}|s(?:k-|g\.)[\w-]{16}")
_RUNS = bytes(97 if chr(code).isalnum() or chr(code) in "_-.+=" else 32 for code in range(128)) + b" " * 128
_SHORTEST_KEY = b"a" * 14
# Names of members as they stand in JSON. Where one of the others occurs, a name may also stand in a text: in JSON that
# was put into it, in what Python writes of a dict, before "=", in a header.
_NAME = re.compile(rb'"([^"\\]*)(?="\s*:)')
_IN_TEXTS = (b"\\", b"'", b"=", b"x-")
_SAID = (b"\\u", b"pwd=", b"token=", b"token:")
_MANY_NAMES = 200
_FLAT = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789'", b'abcdefghijklmnopqrstuvwxyz000000000"')
# All that is no letter or digit of ASCII but the quotes. Backslashes before a quote say that the member is in a text.
_BETWEEN = bytes(code for code in range(256) if not (code < 128 and chr(code).isalnum()) and code not in b"\"'")
_SHORTEST_CARD = b"0" * 13
# Every string, so that no quote is taken for the beginning of another; names are those with a colon behind.
_STRING = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?', re.DOTALL)


class SecretError(UsageError):
    """Metadata has a member whose name is a secret's, in strict mode."""


class Redactor:
    """The rules of one recorder."""

    def __init__(self, names: Iterable[str] = (), patterns: Iterable[str] = (), keep: Iterable[str] = ()) -> None:
        self._parts = (*_PARTS, *filter(None, map(_bare, names)))
        self._keep = frozenset(map(_bare, keep))
        # Names as they stand in JSON without separators; digits are all 0 in it.
        self._needles = tuple(
            [part.encode().translate(_FLAT) for part in self._parts if part.isascii()]
            + [b'"' + name.encode().translate(_FLAT) + b'"' for name in _EXACT - self._keep]
            + [b'token"']
        )
        self._foreign = not all(map(str.isascii, self._parts))
        self._patterns = tuple(re.compile(pattern) for pattern in patterns)
        self._secrets: dict[bytes | str, bool] = {}

    def is_secret(self, name: str) -> bool:
        """Whether a member of this name is taken out."""
        known = self._secrets.get(name)
        if known is None:
            bare = _bare(name)
            known = bare not in self._keep and (
                bare in _EXACT or any(part in bare for part in self._parts) or _TOKEN_HEADER.fullmatch(name) is not None
            )
            if len(self._secrets) < 10_000:  # names are few; where they are data, they are not remembered
                self._secrets[name] = known
        return known

    def may_hold_secrets(self, raw: bytes) -> bool:
        """A quick look at JSON: whether ``redact`` could find something."""
        if self._patterns:
            return True
        lower = raw.lower()
        if any(map(lower.__contains__, _SIGNS)):
            return True
        if any(map(lower.__contains__, _HINTS)) and _HINT.search(lower) is not None:
            return True
        if _SHORTEST_KEY in lower.translate(_RUNS):
            if any(map(lower.__contains__, _KEY_SIGNS)):
                return True
            if any(map(lower.__contains__, _KEY_HINTS)) and _KEY_HINT.search(lower) is not None:
                return True
        flat = raw.translate(_FLAT, _BETWEEN)
        if _SHORTEST_CARD in flat:
            return True
        names = set(_NAME.findall(raw) if b"\\" not in raw else _names_of(raw))
        if len(names) <= _MANY_NAMES:
            if any(map(self._is_secret_raw, names)):
                return True
            if not any(map(lower.__contains__, _IN_TEXTS)):
                return False
        if self._foreign and not raw.isascii():
            return True
        return any(map(lower.__contains__, _SAID)) or any(map(flat.__contains__, self._needles))

    def redact(self, raw: bytes) -> tuple[bytes, int]:
        """This JSON without its secrets, and how many were taken out; the very same bytes where there are none."""
        if not self.may_hold_secrets(raw):
            return raw, 0
        counted = _Counted(self)
        value: object = counted.clean(msgspec.json.decode(raw))
        return (msgspec.json.encode(value), counted.found) if counted.found else (raw, 0)

    def redact_text(self, text: str) -> tuple[str, int]:
        """This text without what looks like a secret."""
        found = 0

        def taken(match: re.Match[str]) -> str:
            nonlocal found
            found += 1
            return "".join(filter(None, match.groups())) + REDACTED

        def card(match: re.Match[str]) -> str:
            digits = re.sub(r"\D", "", match[0])
            return taken(match) if _ISSUER.match(digits) and _is_checked(digits) else match[0]

        def dotted(match: re.Match[str]) -> str:
            nonlocal found
            run, tokens = _without_web_tokens(match[0])
            found += tokens
            return run

        def credentials(match: re.Match[str]) -> str:
            nonlocal found
            header, kind, blank, said = match.groups()
            if header is None and not _is_credential(kind, said):
                return match[0]
            found += 1
            return f"{header or ''}{kind}{blank}{REDACTED}"

        if '"' in text or "'" in text:
            text, found = self._without_members(text)
        text = _CREDENTIALS.sub(credentials, _KEY_BLOCK.sub(taken, text))
        for pattern in (_SERVICE_KEY, _HOOK, _HEADER, _URL_PASSWORD, _URL_SECRET, _SAID_SECRET):
            text = pattern.sub(taken, text)
        if "eyJ" in text:
            text = _DOTTED.sub(dotted, text)
        for pattern in self._patterns:
            text = pattern.sub(_whole(taken), text)
        return _CARD.sub(card, text), found

    def _without_members(self, text: str) -> tuple[str, int]:
        """Without what stands behind a secret's name in quotes and a colon, and how many there were."""
        kept, found, at = list[str](), 0, 0
        for match in _NAMED.finditer(text):
            quote, name = match.groups()
            if match.start() < at or not self.is_secret(name):
                continue
            begins, ends = match.end(), _end_of_value(text, match.end(), quote)
            if text[begins:ends].strip("\\\"'") in {*_NOTHING_SAID, REDACTED}:
                continue
            kept += [text[at:begins], quote, REDACTED, quote]
            found, at = found + 1, ends
        return ("".join([*kept, text[at:]]), found) if found else (text, 0)

    def find_secret_name(self, raw: bytes) -> str | None:
        """The first name of a member of this JSON that is a secret's."""
        return next((name.decode(errors="replace") for name in _names_of(raw) if self._is_secret_raw(name)), None)

    def _is_secret_raw(self, name: bytes) -> bool:
        known = self._secrets.get(name)
        if known is None:
            known = self.is_secret(_unescaped(name))
            if len(self._secrets) < 10_000:
                self._secrets[name] = known
        return known


class _Counted:
    """One pass over a decoded value."""

    def __init__(self, rules: Redactor) -> None:
        self._rules = rules
        self.found = 0

    def clean(self, value: object) -> object:
        if isinstance(value, str):
            text, found = self._rules.redact_text(value)
            self.found += found
            return text
        if isinstance(value, dict):
            return {name: self._member(name, member) for name, member in cast("dict[str, object]", value).items()}
        if isinstance(value, list):
            return [self.clean(member) for member in cast("list[object]", value)]
        return value

    def _member(self, name: str, member: object) -> object:
        if member is not None and not isinstance(member, bool) and member != REDACTED and self._rules.is_secret(name):
            self.found += 1
            return REDACTED
        return self.clean(member)


def _whole(taken: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
    """An application's pattern is taken out whole, whatever groups it has."""

    def replace(match: re.Match[str]) -> str:
        taken(match)
        return REDACTED

    return replace


def _without_web_tokens(run: str) -> tuple[str, int]:
    """Parts with dots between them, without JSON web tokens (header, payload, signature), and how many there were."""
    parts, kept, found, at = run.split("."), list[str](), 0, 0
    while at < len(parts):
        followed = at + 1 < len(parts) and len(parts[at + 1]) >= _SHORTEST_PAYLOAD
        begins = _WEB_TOKEN.search(parts[at]) if followed else None
        if begins is None:
            kept.append(parts[at])
            at += 1
        else:
            kept.append(parts[at][: begins.start()] + REDACTED)
            found += 1
            at += 3
    return ".".join(kept), found


def _end_of_value(text: str, at: int, quote: str) -> int:
    """Where the value ends that begins there: a string in the same quotes, an object, an array, or a word."""
    if text.startswith(quote, at):
        at += len(quote)
        if len(quote) == 1:
            match = _STRING_ENDS[quote].match(text, at)
            return len(text) if match is None else match.end()
        end = text.find(quote, at)
        return len(text) if end < 0 else end + len(quote)
    if text.startswith(("{", "["), at):
        depth = 0
        for bracket in _BRACKET.finditer(text, at):
            depth += -1 if bracket[1] else 1
            if not depth:
                return bracket.end()
        return len(text)
    match = _SCALAR.match(text, at)
    return at if match is None else match.end()


def _is_credential(kind: str, said: str) -> bool:
    """Whether it is one, and not a word: ``basic understanding``, ``bearer certificates``."""
    if kind.lower() == "basic":
        with suppress(ValueError):
            return b":" in base64.b64decode(said, validate=True)
        return False
    return (
        len(said) > _LONGEST_WORD
        or any(map(str.isdigit, said))
        or (said != said.lower() and said[1:] != said[1:].lower())
    )


def _names_of(raw: bytes) -> list[bytes]:
    """The names of members as they stand in this JSON, whatever is escaped in it."""
    return [name for name, colon in _STRING.findall(raw) if colon]


def _bare(name: str) -> str:
    return _SEPARATORS.sub("", name).lower()


def _unescaped(name: bytes) -> str:
    try:
        return msgspec.json.decode(b'"' + name + b'"', type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return name.decode(errors="replace")


def _is_checked(digits: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0
