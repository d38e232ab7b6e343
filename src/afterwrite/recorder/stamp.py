"""Stamps and events as SQL, and when a stamp is due. Pure: integrations ask, and send what they are told.

::

    write ──▶ Stamps.due(context) ──▶ None: it stands     ──▶ the write alone
                                  └─▶ SQL, just before it ──▶ the server looks again, and writes one message or none

What the client knows saves the round trip; what the server knows decides. A stamp leaves its mark in a setting of the
transaction (``set_config(…, true)``), which the end of the transaction and a rolled back savepoint take away exactly as
they take the message: nothing outlives the transaction, so that a pooler may give each one another session. The mark
names its transaction: what somebody sets for a session, a role or a database is no mark.
Where the transaction is read-only, or the server a standby, nothing is written: a message would need a transaction id.

A role that may not write messages would have its transactions fail by a stamp. So the server is asked once, by
``permits``, and such a role writes without.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import msgspec

from afterwrite.context import Context, encode_context
from afterwrite.record import CONTEXT_PREFIX, EVENT_PREFIX, OUTBOX_KNOWN_SECONDS, Emitted
from afterwrite.recorder.options import configured, signing_key
from afterwrite.recorder.redact import Redactor
from afterwrite.seal import seal

log = logging.getLogger(__name__)

# The transaction's own setting that says which stamp stands.
MARK = "afterwrite.stamped"
NOBODY = Context()

_encode = msgspec.json.Encoder().encode


def configured_key() -> str | None:
    """The key of this process's settings (``stamp_key``, AFTERWRITE_STAMP_KEY, AFTERWRITE_STAMP_KEY_FILE) as of now."""
    return signing_key(configured())


def private(context: Context) -> Context:
    """The context without what the settings keep from the WAL: address and browser, and what in a reason is a secret.

    The reason is what people type; the other words are what is searched for, and settings are what bodies read.
    """
    options = configured()
    if context.ip is not None and not options.keep_ip:
        context = msgspec.structs.replace(context, ip=None)
    if context.user_agent is not None and not options.keep_user_agent:
        context = msgspec.structs.replace(context, user_agent=None)
    if context.reason is not None:
        reason, found = _redactor(options.redact, options.redact_patterns, options.keep).redact_text(context.reason)
        context = msgspec.structs.replace(context, reason=reason) if found else context
    return context


_redactor = lru_cache(maxsize=4)(Redactor)


class Stamp(NamedTuple):
    """A context as it goes to the server: the mark that says which one stands, and the message."""

    mark: str
    payload: str

    @property
    def sql(self) -> str:
        """The statement that stamps where no equal stamp stands; it gives a row where it wrote one.

        One SELECT without parameters and in ASCII, so that every driver, protocol and encoding takes it.
        """
        return f"select {self._message} where {WRITABLE} and {_STANDS} <> '{self.mark}'"

    def event_sql(self, event: str) -> str:
        """The same with an event after it, which is emitted whether the stamp stood or not."""
        emitting = f"pg_catalog.pg_logical_emit_message(true, '{EVENT_PREFIX}', {literal(event)}::text)"
        return f"select case when {_STANDS} <> '{self.mark}' then {self._message} end, {emitting} where {WRITABLE}"

    @property
    def _message(self) -> str:
        return _MESSAGE.format(mark=f"'{self.mark}'", payload=literal(self.payload))


WRITABLE = "pg_catalog.current_setting('transaction_read_only') = 'off'"
# "<transaction> <mark>". Asked only for the id that a transaction has: whoever only reads gets none by it. One that is
# stamped has one, by the message.
_SET = f"pg_catalog.current_setting('{MARK}', true)"
_STANDS = (
    f"case when pg_catalog.split_part({_SET}, ' ', 1) = cast(pg_catalog.pg_current_xact_id_if_assigned() as text)"
    f" then pg_catalog.split_part({_SET}, ' ', 2) else '' end"
)
_MESSAGE = (
    f"(pg_catalog.set_config('{MARK}',"
    f" cast(pg_catalog.pg_current_xact_id() as text) || ' ' || {{mark}}, true) is not null"
    f" and pg_catalog.pg_logical_emit_message(true, '{CONTEXT_PREFIX}', {{payload}}::text) is not null)"
)
# The same for drivers that keep statements by their text and bind values: ``:mark``, ``:payload`` and ``:event``.
_BOUND = _MESSAGE.format(mark="cast(:mark as text)", payload="cast(:payload as text)").replace("::text", "")
BOUND_STAMP_SQL = f"select {_BOUND} where {WRITABLE} and {_STANDS} <> cast(:mark as text)"
BOUND_EVENT_SQL = (
    f"select case when {_STANDS} <> cast(:mark as text) then {_BOUND} end,"
    f" pg_catalog.pg_logical_emit_message(true, '{EVENT_PREFIX}', cast(:event as text)) where {WRITABLE}"
)


def make_stamp(context: Context, key: str | None = None, *, here: bool = False) -> Stamp:
    """The stamp of this context; ``here`` when it is not to speak for what its transaction wrote before."""
    context = private(context)
    said = to_ascii(encode_context(context))
    digest = hashlib.blake2b(said.encode(), digest_size=9).hexdigest() if context != NOBODY else ""
    return Stamp(digest, seal(CONTEXT_PREFIX, to_ascii(encode_context(context, here=True)) if here else said, key))


def event_payload(emitted: Emitted, key: str | None = None) -> str:
    """The message that is this event."""
    return seal(EVENT_PREFIX, to_ascii(_encode(emitted).decode()), key)


def stamp_sql(context: Context, key: str | None = None, *, here: bool = False) -> str:
    """The statement that stamps this context where no equal stamp stands; see ``Stamp.sql``."""
    return make_stamp(context, key, here=here).sql


def event_sql(emitted: Emitted, context: Context, key: str | None = None) -> str:
    """The statement that emits the event, after the stamp where that does not stand.

    No row comes back, and nothing was written, where the transaction is read-only.
    """
    return make_stamp(context, key).event_sql(event_payload(emitted, key))


def to_ascii(json: str) -> str:
    """The same JSON in ASCII: a database of another encoding has no place for some characters."""
    return json if json.isascii() else _FOREIGN.sub(lambda run: "".join(map(_escapes.__getitem__, run[0])), json)


def literal(text: str) -> str:
    """A string constant that goes through drivers which look for placeholders: they find none."""
    text = text.replace("\\", "\\\\").replace("'", "''")
    text = text.replace("%", "\\x25").replace(":", "\\x3a").replace("?", "\\x3f")
    return f"E'{text}'"


_FOREIGN = re.compile("[^\x00-\x7f]+")


class _Escapes(dict[str, str]):
    """What JSON writes for a character; a language has few, and a long text has each often."""

    def __missing__(self, character: str) -> str:
        pairs = character.encode("utf-16-be", "surrogatepass").hex()
        escape = "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4))
        if len(self) < _MOST_CHARACTERS:
            self[character] = escape
        return escape


_escapes = _Escapes()
_MOST_CHARACTERS = 20_000


# It has another signature since PostgreSQL 17.
_FUNCTION = (
    "p.proname = 'pg_logical_emit_message' and p.pronamespace = cast('pg_catalog' as regnamespace)"
    " and p.proargtypes[2] = cast('text' as regtype)"
)
# Whether this role may write messages.
_EACH = f"from pg_catalog.pg_proc p where {_FUNCTION}"
MAY = f"exists (select {_EACH} and pg_catalog.has_function_privilege(p.oid, 'execute'))"
_ALLOWED = "allowed"
# The answer of a server where it may not says to whom it should be granted.
MAY_SQL = (
    f"select case when {MAY} then '{_ALLOWED}' else 'FUNCTION '"
    f" || (select cast(cast(p.oid as regprocedure) as text) {_EACH})"
    " || ' TO ' || pg_catalog.quote_ident(current_user) end"
)
_DENIED = "42501"


class Permits:
    """Which roles may write messages, by server, database and role; ``unstamped`` counts the stamps that were left out.

    That a role may holds until it is refused, that it may not for half a minute.
    """

    def __init__(self) -> None:
        self._until: dict[Hashable, float] = {}
        self._told: set[Hashable] = set()
        self.unstamped = 0

    def find(self, place: Hashable) -> bool | None:
        """Whether a stamp may be sent there; None where the server has to be asked (``MAY_SQL``)."""
        until = self._until.get(place)
        if until is None or 0.0 < until < time.monotonic():
            return None
        self.unstamped += until > 0.0
        return not until

    def note(self, place: Hashable, answer: str) -> bool:
        """Take the server's answer."""
        allowed = answer == _ALLOWED
        if len(self._until) >= _MOST_KNOWN:
            self.forget()
        self._until[place] = 0.0 if allowed else time.monotonic() + OUTBOX_KNOWN_SECONDS
        if allowed:
            return True
        self.unstamped += 1
        if place not in self._told:
            self._told.add(place)
            log.warning(
                "this role may not write logical messages: its transactions carry no context, and nobody will know who"
                " changed what; run GRANT EXECUTE ON %s",
                answer,
            )
        return False

    def forget(self) -> None:
        """Ask again."""
        self._until.clear()


permits = Permits()
_MOST_KNOWN = 1_000


def is_denied(error: BaseException) -> bool:
    """Whether the server refused something for want of a privilege, whoever's error it is."""
    told = (error, error.__cause__, getattr(error, "orig", None))
    return any(_DENIED in (getattr(each, "sqlstate", None), getattr(each, "pgcode", None)) for each in told)


class Control(Enum):
    """What a statement does to the transaction that it is sent in."""

    NONE = "nothing"
    UNDO = "it may undo a part of it"
    END = "it ends it, or begins another"


class Stamps:
    """What one connection knows of the transaction that is open on it. Not thread-safe, as connections are not."""

    __slots__ = ("_bare", "_certain", "_context", "_key", "_maybe")

    def __init__(self, key: str | None = None) -> None:
        self._key = key
        self._context: Context = NOBODY
        self._certain = False
        self._maybe = False
        self._bare = False

    def due(self, context: Context) -> Stamp | None:
        """What to send just before a write, None where nothing is to be said; send it, or call ``doubt``."""
        if self._certain and (context is self._context or context == self._context):
            return None
        if not self._maybe and context == NOBODY:
            self._bare = True
            return None
        self._context, self._certain, self._maybe = context, True, True
        return self._make(context)

    def before_event(self, context: Context) -> Stamp:
        """The stamp that an event brings along."""
        self._maybe = self._maybe or context != NOBODY
        self._certain = False
        return self._make(context)

    def event_sql(self, emitted: Emitted, context: Context) -> str:
        """What to send for an event now; the stamp before it comes with it."""
        return self.before_event(context).event_sql(self.event_payload(emitted))

    def event_payload(self, emitted: Emitted) -> str:
        """The message that is this event."""
        return event_payload(emitted, self._key or configured_key())

    def _make(self, context: Context) -> Stamp:
        # Asked for each time: connections may be older than what the application says in activity.configure.
        return make_stamp(context, self._key or configured_key(), here=self._bare)

    def doubt(self, error: BaseException | None = None) -> None:
        """Some of this transaction may have been undone: the server is asked at the next write."""
        self._certain = False
        if error is not None and is_denied(error):
            permits.forget()

    def forget(self) -> None:
        """The transaction is over, or another one begins."""
        self._certain = self._maybe = self._bare = False
        self._context = NOBODY

    def note(self, control: Control) -> None:
        """Take in what a statement did to the transaction."""
        if control is Control.END:
            self.forget()
        elif control is Control.UNDO:
            self.doubt()


class Reading(msgspec.Struct, frozen=True):
    """What is in a string of SQL.

    ``may_end`` for what could end its own transaction inside (CALL, and DO with COMMIT or ROLLBACK in its text): that
    cannot be sent together with a stamp outside a transaction block.
    """

    writes: bool
    control: Control = Control.NONE
    statements: int = 1
    copies: bool = False
    may_end: bool = False


_NOTHING = Reading(False)
_WRITES = frozenset({"insert", "update", "delete", "merge", "truncate", "execute"})
_ENDS = frozenset({"begin", "start", "commit", "end", "abort", "prepare"})
# What a search for words must not look into: comments, strings of all kinds, quoted names.
_OPAQUE = re.compile(
    r"""--[^\n]*|/\*(?:[^*/]|\*(?!/)|/(?!\*)|/\*(?:[^*]|\*(?!/))*\*/)*\*/"""
    r"""|[eE]'(?:[^'\\]++|''|\\.)*+'|'(?:[^']++|'')*+'|"(?:[^"]++|"")*+"|\$((?:[^\W\d]\w*)?)\$.*?\$\1\$""",
    re.DOTALL,
)
_BLANK = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*(?:[^*]|\*(?!/))*\*/|[(;])*")
_WORD = re.compile(r"[a-z_]+", re.IGNORECASE)
_CHANGING = re.compile(r"\b(?:insert\s+into|update|delete\s+from|merge\s+into)\b", re.IGNORECASE)
_LOCKING = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b", re.IGNORECASE)
_ENDING = re.compile(r"\b(?:commit|rollback)\b", re.IGNORECASE)
# A longer text is not worth keeping; its first word decides most of them anyway.
_LONGEST_KEPT = 10_000


def read_sql(sql: str, functions: frozenset[str] = frozenset()) -> Reading:
    """What this SQL does; ``functions`` are the lower-case names of functions that write, which a SELECT may call.

    Written for what applications send: where it cannot be sure it takes a statement for a write, for a stamp too many
    says nothing wrong.
    """
    return _read_kept(sql, functions) if len(sql) <= _LONGEST_KEPT else _read(sql, functions)


def is_write(sql: str, functions: frozenset[str] = frozenset()) -> bool:
    """Whether a stamp is due before it."""
    return read_sql(sql, functions).writes


def calling(functions: Iterable[str]) -> frozenset[str]:
    """The names of functions as ``read_sql`` wants them."""
    return frozenset(name.lower() for name in functions)


def _read(sql: str, functions: frozenset[str]) -> Reading:
    word = _first_word(sql)
    if ";" not in sql:
        if word in _WRITES:
            return Reading(True)
        if word == "select" and not functions:
            return _NOTHING
    plain = _OPAQUE.sub(_blank, sql)
    found = [_read_one(each, functions, sql) for each in plain.split(";") if not each.isspace() and each]
    if not found:
        return _NOTHING
    if len(found) == 1:
        return found[0]
    controls = [each.control for each in found if each.control is not Control.NONE]
    return Reading(
        any(each.writes for each in found),
        # What comes after the last word about the transaction is not known: the server is asked again.
        Control.END if controls and controls[-1] is Control.END else Control.UNDO if controls else Control.NONE,
        statements=len(found),
        copies=any(each.copies for each in found),
        may_end=any(each.may_end for each in found),
    )


_read_kept: Callable[[str, frozenset[str]], Reading] = lru_cache(maxsize=2_000)(_read)


def _blank(match: re.Match[str]) -> str:
    return " " if match[0][0] in "-/" else "''"


def _first_word(sql: str) -> str:
    blank = _BLANK.match(sql)
    match = _WORD.match(sql, blank.end() if blank else 0)
    return match[0].lower() if match else ""


def _read_one(plain: str, functions: frozenset[str], whole: str) -> Reading:
    """One statement, without its strings and comments."""
    word = _first_word(plain)
    if word in _WRITES:
        return Reading(True)
    match word:
        case "call":
            return Reading(True, may_end=True)
        case "do":
            return Reading(True, may_end=_ENDING.search(whole) is not None)
        case "copy":
            direction = re.search(r"\b(from|to)\b", _without_parentheses(plain), re.IGNORECASE)
            return Reading(direction is not None and direction[0].lower() == "from", copies=True)
        case "rollback":
            return Reading(False, Control.UNDO if re.search(r"\bto\b", plain, re.IGNORECASE) else Control.END)
        case "prepare" if not re.match(r"\s*prepare\s+transaction\b", plain, re.IGNORECASE):
            return _NOTHING
        case _ if word in _ENDS:
            return Reading(False, Control.END)
        case "with" | "explain":
            analysed = word == "with" or re.search(r"\banaly[sz]e\b", plain, re.IGNORECASE)
            if analysed and _CHANGING.search(_LOCKING.sub(" ", plain)):
                return Reading(True)
        case _:
            pass
    return Reading(True) if functions and _calls(plain, functions) else _NOTHING


def _without_parentheses(text: str) -> str:
    before = None
    while before != text:
        before, text = text, re.sub(r"\([^()]*\)", " ", text)
    return text


def _calls(plain: str, functions: frozenset[str]) -> bool:
    return any(
        name.lower() in functions or name.lower().rpartition(".")[2] in functions for name in _CALLED.findall(plain)
    )


_CALLED = re.compile(r"([a-z_][\w$]*(?:\.[a-z_][\w$]*)*)\s*\(", re.IGNORECASE)
