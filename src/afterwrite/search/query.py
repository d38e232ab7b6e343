"""The one-line language in which people say what activity they want. Pure: a line in, a value out.

::

    actor:user:42 action:user.* entity:project/7 after:2026-11-01 -actor:system "gold token" changed:status

    line     = term…            all of them have to hold
    term     = [-]key:value[,value…]        one of the values; - turns it round
             | [-]word  [-]word*  [-]"several words"
    value    = text | text* | "text" | "text"*       text* is whatever begins so, * alone whatever is there

A ``Query`` is a value: two lines that ask for the same are equal, and ``str(query)`` is a line that parses to it.
"""

from __future__ import annotations

import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from typing import assert_never, cast

import msgspec

from afterwrite.errors import UsageError
from afterwrite.postgres import quoted
from afterwrite.record import Kind, Level, Operation, Outcome
from afterwrite.search import words
from afterwrite.store.reader import StoredActivity

LONGEST_LINE = 2_000
MOST_TERMS = 50


class Key(StrEnum):
    """What a term is about. Those that end in a dot are followed by a path: ``metadata.plan``, ``after.status``."""

    ACTOR = "actor"
    ACTOR_TYPE = "actor_type"
    ACTION = "action"
    ENTITY = "entity"
    CATEGORY = "category"
    OUTCOME = "outcome"
    SEVERITY = "severity"
    KIND = "kind"
    SOURCE = "source"
    TENANT = "tenant"
    SESSION = "session"
    REQUEST = "request"
    TRACE = "trace"
    IP = "ip"
    TABLE = "table"
    OPERATION = "operation"
    CHANGED = "changed"
    CAUSED_BY = "caused_by"
    ID = "id"
    AFTER = "after"
    BEFORE = "before"
    AT = "at"
    METADATA = "metadata."
    WAS = "before."
    BECAME = "after."
    TEXT = ""


class Exact(msgspec.Struct, frozen=True):
    """The value is this text."""

    text: str


class Prefix(msgspec.Struct, frozen=True):
    """The value begins so; with an empty text it is any that is there."""

    text: str


class Thing(msgspec.Struct, frozen=True):
    """An entity of this type, and of this id where one is named; ``prefix``: of an id that begins so."""

    type: str
    id: str | None = None
    prefix: bool = False


class Network(msgspec.Struct, frozen=True):
    """An address in here, as CIDR."""

    text: str


class Span(msgspec.Struct, frozen=True):
    """From a moment on, and before another."""

    since: datetime
    until: datetime


class Words(msgspec.Struct, frozen=True):
    """These words next to each other, in lower case; ``prefix``: the last one is only the beginning of a word."""

    words: tuple[str, ...]
    prefix: bool = False


Value = Exact | Prefix | Thing | Network | Span | Words


class Term(msgspec.Struct, frozen=True, cache_hash=True):
    """One of these values, or with ``negated`` none of them. ``path`` belongs to the keys that take one."""

    key: Key
    values: tuple[Value, ...]
    path: tuple[str, ...] = ()
    negated: bool = False

    def __str__(self) -> str:
        """The term as it is typed."""
        sign = "-" if self.negated else ""
        if self.key is Key.TEXT:
            return sign + ",".join(_write(value) for value in self.values)
        path = ".".join(_write_name(name) for name in self.path)
        written = ",".join(_write_moment(self.key, value) for value in self.values)
        return f"{sign}{self.key}{path}:{written}"


class Query(msgspec.Struct, frozen=True, cache_hash=True):
    """What is looked for: all terms have to hold; without one, everything."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        """A line that parses to an equal Query; moments are written out, in UTC."""
        return " ".join(map(str, self.terms))

    @property
    def since(self) -> datetime | None:
        """Nothing that happened before this moment can fit."""
        return max((span.since for span in self._spans(Key.AFTER, Key.AT)), default=None)

    @property
    def until(self) -> datetime | None:
        """Nothing that happened at this moment or later can fit."""
        return min((span.until for span in self._spans(Key.BEFORE, Key.AT)), default=None)

    def _spans(self, *keys: Key) -> Iterable[Span]:
        for term in self.terms:
            if term.key in keys and not term.negated:
                spans = [value for value in term.values if isinstance(value, Span)]
                yield Span(min(span.since for span in spans), max(span.until for span in spans))

    def matches(self, activity: StoredActivity) -> bool:
        """Whether this activity fits: the answer that PostgreSQL gives."""
        return all(holds(activity) for holds in _compiled(self))


class QueryError(UsageError):
    """A line that says nothing we know: ``column`` (from 0) and ``length`` tell where."""

    def __init__(self, message: str, *, column: int, length: int, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.column = column
        self.length = length


# Moments that datetime can hold, and time zones cannot push over the edge.
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)

_ALIASES = {"relation": "table", "text": ""}
_ENUMS: dict[Key, type[StrEnum]] = {
    Key.OUTCOME: Outcome,
    Key.SEVERITY: Level,
    Key.KIND: Kind,
    Key.OPERATION: Operation,
}
PATHS = (Key.METADATA, Key.WAS, Key.BECAME)
KEYS = tuple(str(key) for key in Key if key is not Key.TEXT and key not in PATHS)
"""The keys that stand alone, for suggestions and help."""

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(\*?)')
_BARE = re.compile(r"[^\s,]+")
_BARE_TABLE = re.compile(r'(?:"(?:[^"]|"")*"|[^\s,"])+')
_KEY = re.compile(r'([A-Za-z_]+)((?:\.(?:"(?:[^"\\]|\\.)*"|[^\s:",.\\]+))*):')
_NAME = re.compile(r'\.(?:"((?:[^"\\]|\\.)*)"|([^\s:",.\\]+))')
_ESCAPE = re.compile(r"\\(.)")
_WORD = re.compile(r'[^\s"]+')


def parse(line: str, *, now: datetime | None = None) -> Query:
    """Read a line; ``now`` is what relative moments (2h, yesterday) are reckoned from. Raises QueryError.

    A NUL or a lone surrogate, which no text of the store has, is read as what the store keeps in its place.
    """
    if len(line) > LONGEST_LINE:
        raise QueryError(
            f"the line is {len(line):,} characters long, and {LONGEST_LINE:,} are read",
            column=LONGEST_LINE,
            length=len(line) - LONGEST_LINE,
            remedy="ask for less at once",
        )
    reader = _Reader(_storable(line), now or datetime.now(UTC))
    return Query(tuple(dict.fromkeys(reader.terms())))


def _storable(line: str) -> str:
    return _SURROGATE.sub("�", line.replace("\0", "␀"))


_SURROGATE = re.compile("[\ud800-\udfff]")


class _Reader:
    """Reads a line from its beginning to its end."""

    def __init__(self, line: str, now: datetime) -> None:
        self._line = line
        self._now = now
        self._at: int = 0

    def terms(self) -> Iterable[Term]:
        count = 0
        while True:
            while self._at < len(self._line) and self._line[self._at].isspace():
                self._at += 1
            if self._at == len(self._line):
                return
            count += 1
            if count > MOST_TERMS:
                raise self._error(
                    f"more than {MOST_TERMS} terms", len(self._line) - self._at, "several values of a key take one term"
                )
            yield self._term()

    def _term(self) -> Term:
        start = self._at
        negated = self._line.startswith("-", start) and not self._ends(start + 1)
        if negated:
            self._at += 1
        if self._line.startswith('"', self._at):
            return Term(Key.TEXT, (self._phrase(),), negated=negated)
        named = _KEY.match(self._line, self._at)
        if named is None:
            return Term(Key.TEXT, (self._word(),), negated=negated)
        key, path = self._key(named)
        self._at = named.end()
        if key is Key.TEXT:
            raise self._error("text needs no key", named.end() - start, 'write the word itself, or "several words"')
        term = Term(key, tuple(dict.fromkeys(self._values(key, named))), path, negated)
        return _settled(term)

    def _key(self, named: re.Match[str]) -> tuple[Key, tuple[str, ...]]:
        head, tail = named[1].lower(), named[2]
        path = tuple(bare or _ESCAPE.sub(r"\1", in_quotes) for in_quotes, bare in _NAME.findall(tail))
        if head == "reason" and not path:
            return Key.METADATA, ("reason",)
        key = _known(_ALIASES.get(head, head) + ("." if path else ""))
        if key is not None:
            return key, path
        length = named.end() - named.start()
        if not path and _known(head + ".") is not None:
            raise self._error(f"{head}: does not say which value", length, f"name it: {head}.plan:pro")
        if path and _known(_ALIASES.get(head, head)) is not None:
            raise self._error(f"{head} has no parts", length, f"write {head}:value")
        near = get_close_matches(head, [*KEYS, "metadata"], 1)
        hint = f"did you mean {near[0]}:?" if near else f"the keys are {', '.join(KEYS)} and metadata.NAME"
        raise self._error(f"there is no key {head}", length, f'{hint} To look for the text, put it into "quotes"')

    def _values(self, key: Key, named: re.Match[str]) -> Iterable[Value]:
        while True:
            start = self._at
            if (found := _QUOTED.match(self._line, start)) and self._ends(found.end(), ","):
                self._at = found.end()
                text = _ESCAPE.sub(r"\1", found[1])
                yield self._value(key, text, start, prefix=bool(found[2]), literal=True)
            elif self._line.startswith('"', start) and key is not Key.TABLE:
                raise self._unclosed(start)
            elif found := (_BARE_TABLE if key is Key.TABLE else _BARE).match(self._line, start):
                self._at = found.end()
                text = found[0]
                prefix = text.endswith("*")
                yield self._value(key, text.removesuffix("*"), start, prefix=prefix, literal=False)
            else:
                self._at = named.start()
                raise self._error(
                    f"nothing stands behind {named[0]}",
                    max(start, named.end()) - named.start(),
                    f"write {named[0]}value",
                )
            if not self._line.startswith(",", self._at):
                return
            self._at += 1

    def _value(self, key: Key, text: str, start: int, *, prefix: bool, literal: bool) -> Value:
        def wrong(what: str, remedy: str) -> QueryError:
            return QueryError(
                f"{what} (column {start + 1})", column=start, length=max(1, self._at - start), remedy=remedy
            )

        if not text and not prefix:
            raise wrong(f"nothing stands behind {key}:", f"{key}:* is any that is there, -{key}:* none")
        if "*" in text and not literal:
            raise wrong(
                f"{text} has a * before its end",
                'only the end can be left open (user.*); put it into "quotes" to mean the character itself',
            )
        whole = not prefix or not text
        if key in (Key.AFTER, Key.BEFORE, Key.AT):
            try:
                if prefix:
                    raise ValueError
                return _moment(key, text, self._now)
            except (ValueError, OverflowError):
                raise wrong(
                    f"{text}{'*' * prefix} is no moment that {key}: could mean",
                    "write a date (2026-11-01), a time (2026-11-01T14:05, with +02:00 where it is not UTC), or 2h, 7d"
                    if key is not Key.AT
                    else "write a year, a month, a day (2026-11-01), an hour or a minute (2026-11-01T14:05), yesterday",
                ) from None
        if key in _ENUMS and text:
            known = [str(each) for each in _ENUMS[key]]
            if not whole or text.lower() not in known:
                raise wrong(f"{key} has no value {text}{'*' * prefix}", f"it is one of {', '.join(known)}")
            return Exact(text.lower())
        if key in (Key.ID, Key.CAUSED_BY) and text:
            try:
                if not whole:
                    raise ValueError
                return Exact(str(uuid.UUID(text)))
            except ValueError:
                raise wrong(f"{text}{'*' * prefix} is no id", "an id is a UUID, whole") from None
        if key is Key.IP and text:
            try:
                if not whole or "%" in text:
                    raise ValueError
                return Network(str(ipaddress.ip_network(text, strict=False)))
            except ValueError:
                raise wrong(
                    f"{text}{'*' * prefix} is no address", "write an address, or a network as 10.0.0.0/8"
                ) from None
        if key is Key.TABLE and whole and text:
            named = _TABLE.fullmatch(text)
            if named is None:
                raise wrong(f"{text} names no table", 'write it as orders, sales.orders or sales."Odd Name"')
            return Exact(quoted(*(_identifier(each) for each in named.groups(default="public"))))
        if key is Key.TABLE and text and "." not in text:
            return Prefix(f"public.{text}")
        if key is Key.ENTITY and text:
            kind, slash, number = text.partition("/")
            if slash and not kind:
                raise wrong(f"{text} names no type", "write entity:TYPE or entity:TYPE/ID")
            if slash and (number or prefix):
                return Thing(kind, number, prefix)
            return Thing(kind) if slash or not prefix else Prefix(kind)
        return Prefix(text) if prefix else Exact(text)

    def _phrase(self) -> Words:
        found = _QUOTED.match(self._line, self._at)
        if found is None or not self._ends(found.end()):
            raise self._unclosed(self._at)
        start = self._at
        self._at = found.end()
        return self._words(_ESCAPE.sub(r"\1", found[1]), start, prefix=bool(found[2]))

    def _word(self) -> Words:
        found = _WORD.match(self._line, self._at)
        assert found is not None
        start = self._at
        self._at = found.end()
        text = found[0]
        return self._words(text.removesuffix("*"), start, prefix=text.endswith("*"))

    def _words(self, text: str, start: int, *, prefix: bool) -> Words:
        found = tuple(words.split_query(text))
        if not found:
            raise QueryError(
                f"there is no word in {self._line[start : self._at]} (column {start + 1})",
                column=start,
                length=self._at - start,
                remedy="a word has letters or digits; signs stand between words and are not looked for",
            )
        return Words(found, prefix)

    def _ends(self, at: int, also: str = "") -> bool:
        """Whether a term, or a value, may end here."""
        return at >= len(self._line) or self._line[at].isspace() or self._line[at] in also

    def _unclosed(self, start: int) -> QueryError:
        found = _QUOTED.match(self._line, start)
        if found is None:
            return QueryError(
                f"a quote is opened and never closed (column {start + 1})",
                column=start,
                length=len(self._line) - start,
                remedy='close it with ", and write \\" for a quote inside',
            )
        return QueryError(
            f"something stands right behind a closed quote (column {found.end() + 1})",
            column=found.end(),
            length=1,
            remedy="put a blank between",
        )

    def _error(self, what: str, length: int, remedy: str) -> QueryError:
        return QueryError(f"{what} (column {self._at + 1})", column=self._at, length=length, remedy=remedy)


def _known(name: str) -> Key | None:
    try:
        return Key(name)
    except ValueError:
        return None


def _settled(term: Term) -> Term:
    """The term, with one side of a moment told without a sign and by one value, so that it says where to look."""
    if term.key not in (Key.AFTER, Key.BEFORE):
        return term
    spans = [value for value in term.values if isinstance(value, Span)]
    moment = min(span.since for span in spans) if term.key is Key.AFTER else max(span.until for span in spans)
    if (term.key is Key.AFTER) is term.negated:
        return Term(Key.BEFORE, (Span(EARLIEST, moment),))
    return Term(Key.AFTER, (Span(moment, LATEST),))


_TABLE = re.compile(r'(?:("(?:[^"]|"")+"|[^".]+)\.)?("(?:[^"]|"")+"|[^".]+)')


def _identifier(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def entity_type_of(relation: str) -> str:
    """What changes of this table have as their entity_type: its name, with the schema where that is not public."""
    named = _TABLE.fullmatch(relation)
    if named is None:
        return relation
    schema, table = (_identifier(each) for each in named.groups(default="public"))
    return table if schema == "public" else f"{schema}.{table}"


_RELATIVE = re.compile(r"(\d{1,9})(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _moment(key: Key, text: str, now: datetime) -> Span:
    """The span that a moment's words mean, cut to the key's side of it."""
    span = _span(text.strip(), now, key)
    match key:
        case Key.AFTER:
            return Span(span.since, LATEST)
        case Key.BEFORE:
            return Span(EARLIEST, span.since)
        case _:
            return span


def _span(text: str, now: datetime, key: Key) -> Span:
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match text.lower():
        case "now" if key is not Key.AT:
            return Span(now, now)
        case "today":
            return Span(day, day + timedelta(days=1))
        case "yesterday":
            return Span(day - timedelta(days=1), day)
        case _:
            pass
    if key is Key.AT and "/" in text:
        first, _, last = text.partition("/")
        span = Span(_span(first, now, Key.AFTER).since, _span(last, now, Key.BEFORE).since)
        if span.since >= span.until:
            raise ValueError
        return span
    if relative := _RELATIVE.fullmatch(text.lower()):
        if key is Key.AT:
            raise ValueError
        moment = _within(now.astimezone(UTC) - timedelta(**{_UNITS[relative[2]]: int(relative[1])}))
        return Span(moment, moment)
    return _read_span(text, day)


_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")
_TIME = re.compile(r"(\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?)?")
_ZONE = re.compile(r"[Zz]|([+-])(\d\d)(?::?(\d\d))?")


def _read_span(text: str, today: datetime) -> Span:
    date = _DATE.match(text)
    rest = text[date.end() :] if date else text
    year, month, day = date.groups() if date else (f"{today:%Y}", f"{today:%m}", f"{today:%d}")
    if date and rest[:1] in ("T", "t", " ") and len(rest) > 1:
        if day is None:
            raise ValueError
        rest = rest[1:]
        clock = _TIME.match(rest)
        if clock is None:
            raise ValueError
    else:
        clock = None if date else _TIME.match(rest)
        if date is None and (clock is None or clock[2] is None):
            raise ValueError
    hour, minute, second, fraction = clock.groups() if clock else (None,) * 4
    rest = rest[clock.end() :] if clock else rest
    zone = timedelta()
    if rest:
        found = _ZONE.fullmatch(rest)
        if found is None or day is None:
            raise ValueError
        if found[1]:
            if int(found[3] or 0) >= 60:
                raise ValueError
            zone = timedelta(hours=int(found[2]), minutes=int(found[3] or 0)) * (-1 if found[1] == "-" else 1)
    since = datetime(
        int(year),
        int(month or 1),
        int(day or 1),
        int(hour or 0),
        int(minute or 0),
        int(second or 0),
        int((fraction or "").ljust(6, "0")),
        tzinfo=UTC,
    )
    if month is None:
        until = since.replace(year=since.year + 1)
    elif day is None:
        until = (since + timedelta(days=31)).replace(day=1)
    elif hour is None:
        until = since + timedelta(days=1)
    elif minute is None:
        until = since + timedelta(hours=1)
    elif second is None:
        until = since + timedelta(minutes=1)
    elif fraction is None:
        until = since + timedelta(seconds=1)
    else:
        until = since + timedelta(microseconds=10 ** (6 - len(fraction)))
    return Span(_within(since - zone), _within(until - zone))


def _within(moment: datetime) -> datetime:
    if not EARLIEST <= moment <= LATEST:
        raise OverflowError
    return moment


def _write(value: Value) -> str:
    match value:
        case Exact(text=text):
            return _write_text(text)
        case Prefix(text=text):
            return f"{_write_text(text) if text else ''}*"
        case Thing(type=kind, id=None):
            return _write_text(kind)
        case Thing(type=kind, id=number, prefix=prefix):
            return _write_text(f"{kind}/{number}") + "*" * prefix
        case Network(text=text):
            return text.removesuffix("/128" if ":" in text else "/32")
        case Span(since=since, until=until):
            return f"{since.isoformat()} {until.isoformat()}"
        case Words(words=found, prefix=prefix):
            text = found[0] if len(found) == 1 and _PLAIN.fullmatch(found[0]) else '"' + " ".join(found) + '"'
            return text + "*" * prefix
        case _:
            assert_never(value)


def _write_text(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_PLAIN = re.compile(r'[^\s",*\\]+')


def _write_name(name: str) -> str:
    if re.fullmatch(r'[^\s:",.\\]+', name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write_moment(key: Key, value: Value) -> str:
    if not isinstance(value, Span):
        return _write(value)
    match key:
        case Key.AFTER:
            return _utc(value.since)
        case Key.BEFORE:
            return _utc(value.until)
        case _:
            since = _utc(value.since)
            shorter = (since[:4], since[:7], since[:10], f"{value.since:%Y-%m-%dT%H}", since.removesuffix("Z"))
            brief = (each for each in shorter if _is_span(each, value))
            return next(brief, f"{since}/{_utc(value.until)}")


def _is_span(text: str, span: Span) -> bool:
    try:
        return _read_span(text, span.since) == span
    except (ValueError, OverflowError):
        return False


def _utc(moment: datetime) -> str:
    """A date at midnight, a minute where there are no seconds: as short as it can be."""
    if moment.time() == _MIDNIGHT:
        return moment.date().isoformat()
    seconds = "seconds" if moment.second else "minutes"
    return moment.isoformat(timespec="microseconds" if moment.microsecond else seconds).replace("+00:00", "Z")


_MIDNIGHT = time()


# Whether an activity fits, term by term. What is said here in Python compile.py says in SQL, and a test asks both.

Holds = Callable[[StoredActivity], bool]

COLUMNS: dict[Key, str] = {
    Key.ACTOR: "actor_id",
    Key.ACTOR_TYPE: "actor_type",
    Key.ACTION: "action",
    Key.CATEGORY: "category",
    Key.OUTCOME: "outcome",
    Key.SEVERITY: "severity",
    Key.KIND: "kind",
    Key.SOURCE: "source",
    Key.TENANT: "tenant_id",
    Key.SESSION: "session_id",
    Key.REQUEST: "request_id",
    Key.TRACE: "trace_id",
    Key.TABLE: "relation",
    Key.OPERATION: "operation",
    Key.CAUSED_BY: "caused_by",
    Key.ID: "id",
}
"""The column of each key whose values are texts of their own."""
JSON_COLUMNS: dict[Key, str] = {Key.METADATA: "metadata", Key.WAS: "before", Key.BECAME: "after"}


@lru_cache(maxsize=4_096)
def _compiled(query: Query) -> tuple[Holds, ...]:
    return tuple(_holds(term) for term in query.terms)


def _holds(term: Term) -> Holds:
    holds = _any_holds(term)
    return (lambda activity: not holds(activity)) if term.negated else holds


def _any_holds(term: Term) -> Holds:
    key, values = term.key, term.values
    match key:
        case Key.AFTER | Key.BEFORE | Key.AT:
            return _in_spans(key, values)
        case Key.ENTITY:
            return lambda activity: any(_is_thing(activity, value) for value in values)
        case Key.IP:
            return _in_networks(values)
        case Key.CHANGED:
            fits = _fits(values)
            return lambda activity: any(fits(name) for name in activity.changed or ())
        case Key.METADATA | Key.WAS | Key.BECAME:
            return _in_json(JSON_COLUMNS[key], term.path, values)
        case Key.TEXT:
            return _in_text(values)
        case Key.TABLE:
            return _in_tables(values)
        case _:
            column, fits = COLUMNS[key], _fits(values)

            def holds(activity: StoredActivity) -> bool:
                text = getattr(activity, column)
                return text is not None and fits(text)

            return holds


def _fits(values: Sequence[Value]) -> Callable[[str], bool]:
    """Whether a text is one of the values, or begins as they do."""
    texts = frozenset(value.text for value in values if isinstance(value, Exact))
    beginnings = tuple(value.text for value in values if isinstance(value, Prefix))
    return lambda text: text in texts or text.startswith(beginnings)


def _in_spans(key: Key, values: Sequence[Value]) -> Holds:
    spans = [value for value in values if isinstance(value, Span)]
    match key:
        case Key.AFTER:
            return lambda activity: any(span.since <= activity.occurred_at for span in spans)
        case Key.BEFORE:
            return lambda activity: any(activity.occurred_at < span.until for span in spans)
        case _:
            return lambda activity: any(span.since <= activity.occurred_at < span.until for span in spans)


def _is_thing(activity: StoredActivity, value: Value) -> bool:
    match value:
        case Thing(type=kind, id=None):
            return activity.entity_type == kind
        case Thing(type=kind, id=str(number), prefix=prefix):
            found = activity.entity_id
            if activity.entity_type != kind or found is None:
                return False
            return found.startswith(number) if prefix else found == number
        case Prefix(text=text):
            return activity.entity_type is not None and activity.entity_type.startswith(text)
        case _:
            return False


def _in_networks(values: Sequence[Value]) -> Holds:
    anywhere = any(isinstance(value, Prefix) for value in values)
    networks = [ipaddress.ip_network(value.text) for value in values if isinstance(value, Network)]

    def holds(activity: StoredActivity) -> bool:
        if activity.ip is None:
            return False
        if anywhere:
            return True
        found = ipaddress.ip_interface(activity.ip)
        return any(
            found.version == network.version and found.network.prefixlen >= network.prefixlen and found.ip in network
            for network in networks
        )

    return holds


def _in_json(column: str, path: Sequence[str], values: Sequence[Value]) -> Holds:
    fits = _fits(values)
    anything = any(value == _ANYTHING for value in values)

    def holds(activity: StoredActivity) -> bool:
        text = getattr(activity, column)
        try:
            found = None if text is None else _follow(_decode(text), path)
        except RecursionError:  # PostgreSQL looks deeper; here nothing is found, and the others' answers still are
            found = None
        if found is None:
            return False
        if anything:
            return True
        texts = map(_scalar, cast("list[object]", found) if isinstance(found, list) else [found])
        return any(text is not None and fits(text) for text in texts)

    return holds


_ANYTHING = Prefix("")


def _number(text: str) -> str:
    """As jsonb writes it: without an exponent, and no negative zero."""
    written = f"{Decimal(text):f}"
    return written.lstrip("-") if not Decimal(text) else written


_decoder = json.JSONDecoder(parse_int=_number, parse_float=_number, strict=False)


@lru_cache(maxsize=16)  # the terms of a query look into the same text
def _decode(text: str) -> object:
    return _decoder.decode(text)


def _follow(found: object, path: Sequence[str]) -> object:
    """What stands at the end of a path, as ``#>`` of jsonb follows it; None for nothing, and for null."""
    for name in path:
        if isinstance(found, dict):
            found = cast("dict[str, object]", found).get(name)
        elif isinstance(found, list) and _INDEX.fullmatch(name):
            listed, index = cast("list[object]", found), int(name)
            found = listed[index] if -len(listed) <= index < len(listed) else None
        else:
            return None
    return found


_INDEX = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]{1,9}")


def _scalar(found: object) -> str | None:
    match found:
        case str():
            return found
        case True:
            return "true"
        case False:
            return "false"
        case _:
            return None


def _in_tables(values: Sequence[Value]) -> Holds:
    tables = frozenset((value.text, entity_type_of(value.text)) for value in values if isinstance(value, Exact))
    beginnings = tuple(value.text for value in values if isinstance(value, Prefix))

    def holds(activity: StoredActivity) -> bool:
        name = activity.relation
        return name is not None and ((name, activity.entity_type) in tables or name.startswith(beginnings))

    return holds


def _in_text(values: Sequence[Value]) -> Holds:
    sought = [
        ([frozenset(words.variants(word)) for word in value.words], value.prefix)
        for value in values
        if isinstance(value, Words)
    ]

    def holds(activity: StoredActivity) -> bool:
        found = words.words_of(activity)
        names = words.names_of(activity)
        return any(
            _stands_in(found, each, prefix=prefix)
            # What is kept as it stands is one word, and next to no other.
            or (len(each) == 1 and _stands_in(tuple(names), each, prefix=prefix))
            for each, prefix in sought
        )

    return holds


def _stands_in(found: Sequence[str], sought: Sequence[frozenset[str]], *, prefix: bool) -> bool:
    """Whether words follow each other in a text, each written in one of its ways."""
    *whole, last = sought
    if not whole and not prefix:
        return not last.isdisjoint(found)
    for start in range(len(found) - len(whole)):
        if whole and found[start] not in whole[0]:
            continue
        if any(found[start + place] not in ways for place, ways in enumerate(whole)):
            continue
        end = found[start + len(whole)]
        if end in last or (prefix and end.startswith(tuple(last))):
            return True
    return False
