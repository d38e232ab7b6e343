"""What must not leave the process: secrets by the names that they go under, and by what they look like.

Rules run over encoded metadata before it is spooled or emitted, so that neither the disk nor the store ever sees what
they take out. A quick look over many events at once tells whether anything of it is worth a closer one.

A member whose name is a secret's (``password``, ``api_key``, ``userPassword``, ``X-Auth-Token``, …) is taken out whole,
whatever it holds. In texts, what looks like a secret is: card numbers (13 to 19 digits of a known issuer whose check
digit is right), bearer and basic credentials, JSON web tokens, private keys, keys of well-known services, passwords in
URLs, what stands behind ``password=`` and the like, and the patterns of the application's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import cast

import msgspec

from afterwrite.errors import UsageError

REDACTED = "[redacted]"

# Names of secrets, as words without case and separators. One that stands for itself alone is in _EXACT.
_PARTS = (
    "password", "passwd", "passphrase", "passcode", "pwhash", "secret", "apikey", "accesskey", "privatekey",
    "signingkey", "encryptionkey", "authtoken", "accesstoken", "refreshtoken", "idtoken", "bearertoken", "sessiontoken",
    "csrftoken", "xsrftoken", "resettoken", "apitoken", "credential", "cardnumber", "creditcard", "securitycode",
    "socialsecurity", "mnemonic", "seedphrase",
)  # fmt: skip
_EXACT = frozenset({
    "pwd", "pass", "pin", "otp", "totp", "cvv", "cvc", "cvv2", "ssn", "token", "jwt", "bearer", "sessionid",
    "authorization", "proxyauthorization", "cookie", "cookies", "setcookie",
})  # fmt: skip
_SEPARATORS = re.compile(r"[\W_]+")

# What a text looks like, and what is kept of it.
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_CREDENTIALS = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
# Whoever calls the application writes some of these texts, so that each pattern takes a time that grows with the text
# and not with its square: a run of letters is gone through once, wherever in it something might begin.
_DOTTED = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+)++")
_SHORTEST_PAYLOAD = 5
_WEB_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{5}")
_SERVICE_KEY = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|\b[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|\bAIza[A-Za-z0-9_-]{35}|\bglpat-[A-Za-z0-9_-]{18,}"
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*+:)[^/\s]+(?=@)")
_URL_SECRET = re.compile(
    r"([?&](?:[a-z_]*(?:token|secret|password|signature|api_?key)|code|sig)=)[^&#\s]+", re.IGNORECASE
)
_SAID_SECRET = re.compile(
    r"((?:password|passwd|pwd|secret|token|api_?key|access_?key)=)(?!\[redacted\])(?:'[^']*'|\"[^\"]*\"|[^&#\s]+)",
    re.IGNORECASE,
)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])")
# Issuers: Visa, Mastercard, American Express, Discover, JCB, Diners, Maestro, UnionPay.
_ISSUER = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|64[4-9]|65|35[2-8]|3(?:0[0-5]|[689])|50|5[6-8]|62"
)

# Whether a text may be of these kinds, told from the lower-cased bytes: first by words, which is quick. 13 digits are
# looked for apart.
_HINTS = (
    b"bearer", b"basic", b"eyj", b"-----b", b"akia", b"asia", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_",
    b"github_pat_", b"xox", b"k_live_", b"k_test_", b"aiza", b"glpat-", b"://", b"?", b"&",
    b"password=", b"passwd=", b"pwd=", b"secret=", b"token=", b"key=",
)  # fmt: skip
_HINT = re.compile(
    rb"(?:bearer|basic)\s|eyj[\w-]{5}|-----begin|a[ks]ia[a-z0-9]{16}|gh[pousr]_|github_pat_|xox[abeoprs]-|[sr]k_(?:live|test)_"
    rb"|aiza|glpat-|://[^/\s\"@]*:|[?&](?:[a-z_]*(?:token|secret|password|signature|api_?key)|code|sig)="
    rb"|(?:password|passwd|pwd|secret|token|api_?key|access_?key)="
)
_FLAT = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", b"abcdefghijklmnopqrstuvwxyz000000000")
_BETWEEN = b" \t\r\n_-./$@#!*()[]{}<>|+~"
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
            [part.encode().translate(_FLAT) for part in self._parts]
            + [b'"' + name.encode().translate(_FLAT) + b'":' for name in _EXACT - self._keep]
        )
        self._patterns = tuple(re.compile(pattern) for pattern in patterns)
        self._secrets: dict[bytes | str, bool] = {}

    def is_secret(self, name: str) -> bool:
        """Whether a member of this name is taken out."""
        known = self._secrets.get(name)
        if known is None:
            bare = _bare(name)
            known = bare not in self._keep and (bare in _EXACT or any(part in bare for part in self._parts))
            if len(self._secrets) < 10_000:  # names are few; where they are data, they are not remembered
                self._secrets[name] = known
        return known

    def may_hold_secrets(self, raw: bytes) -> bool:
        """A quick look at JSON: whether ``redact`` could find something."""
        if self._patterns:
            return True
        lower = raw.lower()
        if any(map(lower.__contains__, _HINTS)) and _HINT.search(lower) is not None:
            return True
        flat = raw.translate(_FLAT, _BETWEEN)
        return _SHORTEST_CARD in flat or b"\\u" in raw or any(map(flat.__contains__, self._needles))

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

        for pattern in (_KEY_BLOCK, _CREDENTIALS, _SERVICE_KEY, _URL_PASSWORD, _URL_SECRET, _SAID_SECRET):
            text = pattern.sub(taken, text)
        if "eyJ" in text:
            text = _DOTTED.sub(dotted, text)
        for pattern in self._patterns:
            text = pattern.sub(_whole(taken), text)
        return _CARD.sub(card, text), found

    def find_secret_name(self, raw: bytes) -> str | None:
        """The first name of a member of this JSON that is a secret's."""
        for name, colon in _STRING.findall(raw):
            if colon and self._is_secret_raw(name):
                return name.decode(errors="replace")
        return None

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
        if member is not None and not isinstance(member, bool) and self._rules.is_secret(name):
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
