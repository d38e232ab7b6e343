"""From a Query to the SQL of DuckDB and of Spark: conditions with parameters only, with PostgreSQL's meaning.

What query.py says in Python and search/compile.py in PostgreSQL's words is said here once more, and a test asks all
four of random activities. Words are made as ``search/words.py`` makes them. Two things neither engine can say: what a
JSON value is to ``jsonb`` (an exponent written out, a key that stands twice), and whether an IPv6 address lies in a
network. There the condition lets through more, ``exact`` is False, and ``Query.matches`` has the last word.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString, assert_never

import msgspec

from afterwrite.lake.rows import microseconds
from afterwrite.search import words
from afterwrite.search.query import (
    COLUMNS,
    JSON_COLUMNS,
    Exact,
    Key,
    Network,
    Prefix,
    Query,
    Span,
    Term,
    Thing,
    Value,
    Words,
    entity_type_of,
)


class Dialect(msgspec.Struct, frozen=True):
    """What the engines spell differently. Only names of columns, of parameters and SQL of ours stand in the braces."""

    moment: LiteralString
    begins: LiteralString
    holds: LiteralString
    some_begin: LiteralString
    like: LiteralString
    squeezed: LiteralString


DUCKDB = Dialect(
    moment="make_timestamptz(cast({} as bigint))",
    begins="starts_with({}, {})",
    holds="list_contains({}, {})",
    some_begin="len(list_filter({}, lambda name: starts_with(name, {}))) > 0",
    like="regexp_matches({}, {})",
    squeezed="regexp_replace({}, ' +', ' ', 'g')",
)
SPARK = Dialect(
    moment="timestamp_micros(cast({} as bigint))",
    begins="startswith({}, {})",
    holds="array_contains({}, {})",
    some_begin="exists({}, name -> startswith(name, {}))",
    like="regexp_like({}, {})",
    squeezed="regexp_replace({}, ' +', ' ')",
)


class Asked(msgspec.Struct, frozen=True):
    """A condition on a row ``a``, its parameters, and whether it lets through nothing that does not fit.

    A parameter is written ``$name`` for either engine.
    ``equal`` are columns that must have one of these values: files without them need not be opened.
    """

    where: str
    params: dict[str, object]
    exact: bool
    equal: dict[str, tuple[str, ...]]


def compile_query(query: Query, dialect: Dialect = DUCKDB) -> Asked:
    """What an engine is asked for this query."""
    made = _Made(dialect)
    where = [made.term(term) for term in query.terms]
    return Asked(
        where=" and ".join(where) if where else "true", params=made.params, exact=made.exact, equal=_equal(query)
    )


def _equal(query: Query) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for term in query.terms:
        if term.negated:
            continue
        if term.key is Key.ENTITY:
            if all(isinstance(value, Thing) for value in term.values):
                things = [value for value in term.values if isinstance(value, Thing)]
                found["entity_type"] = tuple(thing.type for thing in things)
                if all(thing.id is not None and not thing.prefix for thing in things):
                    found["entity_id"] = tuple(thing.id for thing in things if thing.id is not None)
        elif (column := COLUMNS.get(term.key)) and all(isinstance(value, Exact) for value in term.values):
            found[column] = tuple(value.text for value in term.values if isinstance(value, Exact))
    return found


_SIGNS = words.SIGNS + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLANKS = " " * len(words.SIGNS) + "abcdefghijklmnopqrstuvwxyz"
_NAMES: LiteralString = (
    "a.action || ' ' || coalesce(a.entity_type, '') || ' ' || coalesce(split_part(a.entity_id, '-', 1), '') || ' '"
    " || coalesce(a.actor_id, '') || ' '"
)
_LOOKED_AT = ("action", "entity_type", "entity_id", "actor_id", "summary")
_BACKSLASH = "\\"
_DOTTED = re.compile(r"[0-9.]+")


class _Made:
    """Conditions as they are made, each value a parameter."""

    def __init__(self, dialect: Dialect) -> None:
        self.params: dict[str, object] = {}
        self.exact = True
        self._dialect = dialect

    def _param(self, value: object) -> str:
        name = f"q{len(self.params)}"
        self.params[name] = value
        return f"${name}"

    def _begins(self, text: str, beginning: str) -> str:
        return self._dialect.begins.format(text, self._param(beginning))

    def term(self, term: Term) -> str:
        """Whether a row fits the term; what is not known does not fit, and fits its negation."""
        before, self.exact = self.exact, True
        params = dict(self.params)
        holds = [self._value(term, value) for value in term.values]
        inexact, self.exact = not self.exact, self.exact and before
        either = " or ".join(f"({each})" for each in holds) or "false"
        if not term.negated:
            # As a bare condition: within a function an engine would look at every part of it for every row.
            return f"({either})"
        if inexact:
            # More than fits is let through, so of its contrary everything has to be.
            self.params = params
            return "true"
        return f"not coalesce({either}, false)"

    def _value(self, term: Term, value: Value) -> str:
        key = term.key
        match value:
            case Span(since=since, until=until):
                return self._span(key, since, until)
            case Words():
                return self._words(value)
            case Network(text=text):
                return self._network(text)
            case Thing(type=kind, id=None):
                return f"a.entity_type = {self._param(kind)}"
            case Thing(type=kind, id=str(number), prefix=False):
                return f"a.entity_type = {self._param(kind)} and a.entity_id = {self._param(number)}"
            case Thing(type=kind, id=number):
                return f"a.entity_type = {self._param(kind)} and {self._begins('a.entity_id', number or '')}"
            case Exact(text=text):
                return self._exact(term, text)
            case Prefix(text=text):
                return self._prefix(term, text)
            case _:
                assert_never(value)

    def _span(self, key: Key, since: datetime, until: datetime) -> str:
        low = f"a.occurred_at >= {self._moment(since)}" if key is not Key.BEFORE else ""
        high = f"a.occurred_at < {self._moment(until)}" if key is not Key.AFTER else ""
        return " and ".join(filter(None, (low, high)))

    def _moment(self, moment: datetime) -> str:
        return self._dialect.moment.format(self._param(microseconds(moment)))

    def _exact(self, term: Term, text: str) -> str:
        match term.key:
            case Key.CHANGED:
                return self._dialect.holds.format("a.changed", self._param(text))
            case Key.METADATA | Key.WAS | Key.BECAME:
                return self._json(JSON_COLUMNS[term.key], term.path, text)
            case Key.TABLE:
                return f"a.relation = {self._param(text)} and a.entity_type = {self._param(entity_type_of(text))}"
            case Key.ENTITY:
                return "false"
            case _:
                return f"a.{COLUMNS[term.key]} = {self._param(text)}"

    def _prefix(self, term: Term, text: str) -> str:
        match term.key:
            case Key.CHANGED:
                return self._dialect.some_begin.format("a.changed", self._param(text))
            case Key.METADATA | Key.WAS | Key.BECAME:
                return self._json(JSON_COLUMNS[term.key], term.path, text)
            case Key.ENTITY:
                column = "entity_type"
            case Key.IP:
                column = "ip"
            case _:
                column = COLUMNS[term.key]
        return self._begins(f"a.{column}", text) if text else f"a.{column} is not null"

    def _json(self, column: str, path: Sequence[str], text: str) -> str:
        """What the text of the JSON must hold: its names and the value, where no backslash hides them."""
        self.exact = False
        name = f"a.{column}"
        held = [f"contains({name}, {self._param(part)})" for part in path if not _may_count(part)]
        if text:
            written = f"contains({name}, {self._param(text)})"
            if _DOTTED.search(text):
                # 1e2 is 100.
                written = f"({written} or {self._dialect.like.format(name, self._param('[0-9][eE]'))})"
            held.append(written)
        if not held:
            return f"{name} is not null"
        return f"({' and '.join(held)}) or contains({name}, {self._param(_BACKSLASH)})"

    def _network(self, text: str) -> str:
        network = ipaddress.ip_network(text)
        if isinstance(network, ipaddress.IPv6Network):
            self.exact = False
            return "contains(a.ip, ':')"
        address = "split_part(a.ip, '/', 1)"
        number = " + ".join(
            f"try_cast(split_part({address}, '.', {place}) as bigint) * {factor}"
            for place, factor in ((1, 1 << 24), (2, 1 << 16), (3, 1 << 8), (4, 1))
        )
        bits = "coalesce(try_cast(nullif(split_part(a.ip, '/', 2), '') as integer), 32)"
        first, last = int(network.network_address), int(network.broadcast_address)
        return (
            f"not contains(a.ip, ':') and {bits} >= {network.prefixlen}"
            f" and {number} between cast({self._param(first)} as bigint) and cast({self._param(last)} as bigint)"
        )

    def _words(self, value: Words) -> str:
        ways = [words.variants(word) for word in value.words]
        if any(not each for each in ways):
            return "false"
        end = "" if value.prefix else " "
        held = self._prefilter(value)
        # Blanks stand around each word and never two together; no word has a sign that means something in a pattern.
        spelled = self._spelled()
        if len(ways) == 1:
            said = " or ".join(f"contains({spelled}, {self._param(f' {way}{end}')})" for way in ways[0])
            names = " or ".join(self._named(way, prefix=value.prefix) for way in ways[0])
            return f"({held}({said})) or {names}"
        pattern = " " + " ".join("(?:" + "|".join(map(re.escape, each)) + ")" for each in ways) + end
        return held + self._dialect.like.format(spelled, self._param(pattern))

    def _prefilter(self, value: Words) -> str:
        """What is cheap to see: that an ASCII word stands somewhere in it, whatever is around."""
        plain = [word for word in value.words if word.isascii()]
        if not plain:
            return ""
        longest = max(plain, key=len)
        param = self._param(longest)
        # Column by column: what a file holds once for many rows is looked at once.
        return "(" + " or ".join(f"contains(lower(a.{name}), {param})" for name in _LOOKED_AT) + ") and "

    def _named(self, way: str, *, prefix: bool) -> str:
        """What stands in the index as it is: requests, sessions, traces, changed columns, and what is rare."""
        param = self._param(way)
        fits = self._dialect.begins if prefix else "{} = {}"
        columns = [fits.format(f"a.{name}", param) for name in _AS_THEY_ARE]
        # A name that is nothing is no word.
        changed = (self._dialect.some_begin if prefix else self._dialect.holds).format("a.changed", param)
        return " or ".join((*columns, changed))

    def _spelled(self) -> str:
        """The words of a row with a blank between them, and around."""
        told = f"left(coalesce(a.summary, ''), {words.LONGEST_SUMMARY})"
        summary = f"translate({told}, {self._param(words.TYPOGRAPHY)}, {_TYPOGRAPHY_BLANKS})"
        text = f"translate({_NAMES} || {summary}, {self._param(_SIGNS)}, {self._param(_BLANKS)})"
        return f"(' ' || {self._dialect.squeezed.format(text)} || ' ')"


_AS_THEY_ARE = ("request_id", "session_id", "trace_id")
_TYPOGRAPHY_BLANKS = "'" + " " * len(words.TYPOGRAPHY) + "'"


def _may_count(name: str) -> bool:
    """Whether a name may be the number of an element, which stands nowhere in the JSON."""
    return re.fullmatch(r"[ \t\n\v\f\r]*[+-]?[0-9]+", name) is not None or not name
