"""From a Query to SQL: conditions with parameters only, and which index can answer them.

Nothing that somebody typed ever becomes part of a statement. What is said here query.py says in Python
(``Query.matches``), and a test asks both of random activities.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import LiteralString

import msgspec
from psycopg import sql

from afterwrite.record import Level, Outcome
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

WORDS: LiteralString = "afterwrite.words(a.action, a.entity_type, a.entity_id, a.actor_id, a.summary)"
LEXEMES: LiteralString = (
    "afterwrite.lexemes(a.action, a.entity_type, a.entity_id, a.actor_id, a.summary, a.changed, a.category, a.outcome,"
    " a.severity, a.request_id, a.session_id, a.trace_id)"
)
_SAYS: LiteralString = LEXEMES + " @@ {}::tsquery"
_FOLLOWS: LiteralString = "(' ' || pg_catalog.array_to_string(" + WORDS + ", ' ') || ' ') ~ {}"
# No longer word is kept by a tsvector, nor taken in a tsquery.
_LONGEST_LEXEME = 2_046


class Compiled(msgspec.Struct, frozen=True):
    """Conditions on a row ``a`` of afterwrite.activity, and their parameters.

    ``where`` is the whole query. ``narrow`` follows from it and is what the indexes of a hot partition answer without
    an order of their own, None where they cannot; with ``rest`` it is the whole query again, and shorter to plan.
    ``column`` is the part of ``narrow`` that plain columns answer. ``in_order``: an index gives what may fit newest
    first: that of entities, which every partition has, or another, which only hot ones have.
    """

    where: sql.Composable
    params: dict[str, object]
    narrow: sql.Composable | None
    rest: sql.Composable
    column: sql.Composable | None
    in_order: bool
    in_order_anywhere: bool


def compile_query(query: Query) -> Compiled:
    """What PostgreSQL is asked for this query; moments are in it, too."""
    asked = _Asked()
    where = [asked.term(term) for term in query.terms]
    narrow = asked.narrow(query.terms)
    column = [asked.term(term) for term in query.terms if not term.negated and _is_indexed(term)]
    rest = [left for term, held in zip(query.terms, where, strict=True) if (left := asked.rest(term, held)) is not None]
    exact = {term.key: term.values[0] for term in query.terms if not term.negated and len(term.values) == 1}
    entity = exact.get(Key.ENTITY)
    anywhere = isinstance(entity, Thing) and entity.id is not None and not entity.prefix
    hot = any(isinstance(exact.get(key), Exact) for key in (Key.ACTOR, Key.TENANT))
    return Compiled(
        where=_all(where),
        params=asked.params,
        narrow=narrow,
        rest=_all(rest),
        column=_all(column) if column else None,
        in_order=anywhere or hot,
        in_order_anywhere=anywhere,
    )


class _Asked:
    """Conditions as they are made, each value a parameter."""

    def __init__(self) -> None:
        self.params: dict[str, object] = {}

    def _param(self, value: object) -> sql.Placeholder:
        name = f"q{len(self.params)}"
        self.params[name] = value
        return sql.Placeholder(name)

    def _said(self, text: LiteralString, *values: object) -> sql.Composed:
        return sql.SQL(text).format(*(self._param(value) for value in values))

    def term(self, term: Term) -> sql.Composable:
        """Whether a row fits the term; what is not known does not fit, and fits its negation."""
        holds = _either(list(self._any(term)))
        return sql.SQL("({}) is not true").format(holds) if term.negated else sql.SQL("({})").format(holds)

    def _any(self, term: Term) -> Iterable[sql.Composable]:
        key, values = term.key, term.values
        match key:
            case Key.AFTER:
                yield from (self._said("a.occurred_at >= {}", span.since) for span in _spans(values))
            case Key.BEFORE:
                yield from (self._said("a.occurred_at < {}", span.until) for span in _spans(values))
            case Key.AT:
                for span in _spans(values):
                    yield self._said("a.occurred_at >= {} and a.occurred_at < {}", span.since, span.until)
            case Key.ENTITY:
                for value in values:
                    yield self._entity(value)
            case Key.IP:
                if networks := [value.text for value in values if isinstance(value, Network)]:
                    yield self._said("a.ip <<= any ({}::inet[])", networks)
                if len(networks) < len(values):
                    yield sql.SQL("a.ip is not null")
            case Key.CHANGED:
                if names := _exact(values):
                    yield self._said("a.changed && {}::text[]", names)
                for value in values:
                    if isinstance(value, Prefix):
                        yield self._said(
                            "exists (select from pg_catalog.unnest(a.changed) as c (name)"
                            " where pg_catalog.starts_with(c.name, {}))",
                            value.text,
                        )
            case Key.METADATA | Key.WAS | Key.BECAME:
                yield self._json(sql.Identifier("a", JSON_COLUMNS[key]), term.path, values)
            case Key.TEXT:
                for value in values:
                    if isinstance(value, Words):
                        yield self._words(value)
            case Key.TABLE:
                for name in _exact(values):
                    yield self._said("a.relation = {} and a.entity_type = {}", name, entity_type_of(name))
                yield from self._prefixes(sql.Identifier("a", "relation"), values)
            case _:
                column = sql.Identifier("a", COLUMNS[key])
                kind = sql.SQL("uuid[]" if key in (Key.ID, Key.CAUSED_BY) else "text[]")
                if texts := _exact(values):
                    yield (
                        sql.SQL("{} = {}").format(column, self._param(texts[0]))
                        if len(texts) == 1
                        else sql.SQL("{} = any ({}::{})").format(column, self._param(texts), kind)
                    )
                yield from self._prefixes(column, values)

    def _prefixes(self, column: sql.Identifier, values: Sequence[Value]) -> Iterable[sql.Composable]:
        for value in values:
            if isinstance(value, Prefix) and value.text:
                yield sql.SQL("pg_catalog.starts_with({}, {})").format(column, self._param(value.text))
            elif isinstance(value, Prefix):
                yield sql.SQL("{} is not null").format(column)

    def _entity(self, value: Value) -> sql.Composable:
        match value:
            case Thing(type=kind, id=None):
                return self._said("a.entity_type = {}", kind)
            case Thing(type=kind, id=number, prefix=False):
                return self._said("a.entity_type = {} and a.entity_id = {}", kind, number)
            case Thing(type=kind, id=number):
                return self._said("a.entity_type = {} and pg_catalog.starts_with(a.entity_id, {})", kind, number)
            case Prefix(text=""):
                return sql.SQL("a.entity_type is not null")
            case Prefix(text=text):
                return self._said("pg_catalog.starts_with(a.entity_type, {})", text)
            case _:
                return sql.SQL("false")

    def _json(self, column: sql.Identifier, path: Sequence[str], values: Sequence[Value]) -> sql.Composable:
        found = sql.SQL("{}::jsonb #> {}::text[]").format(column, self._param(list(path)))
        if Prefix("") in values:
            return sql.SQL("coalesce(pg_catalog.jsonb_typeof({}), 'null') <> 'null'").format(found)
        fits: list[sql.Composable] = (
            [self._said("t.text = any ({}::text[])", texts)] if (texts := _exact(values)) else []
        )
        fits += [
            self._said("pg_catalog.starts_with(t.text, {})", value.text)
            for value in values
            if isinstance(value, Prefix)
        ]
        return sql.SQL(
            "{column} is not null and exists ("
            "select from (select {found} offset 0) as f (found)"
            " cross join lateral pg_catalog.jsonb_array_elements("
            "case pg_catalog.jsonb_typeof(f.found) when 'array' then f.found"
            " else pg_catalog.jsonb_build_array(f.found) end) as e (one)"
            " cross join lateral (select e.one #>> '{{}}') as t (text)"
            " where pg_catalog.jsonb_typeof(e.one) in ('string', 'number', 'boolean') and ({fits}))"
        ).format(column=column, found=found, fits=_either(fits))

    def _words(self, value: Words) -> sql.Composable:
        lexemes = _of_words(value)
        if lexemes is None:
            return sql.SQL("false")
        holds = self._said(_SAYS, lexemes)
        return holds if len(value.words) == 1 else sql.SQL("{} and {}").format(holds, self._follow(value))

    def _follow(self, value: Words) -> sql.Composable:
        """That words follow each other. None has a sign in it that means something in a regular expression."""
        ways = ["(?:" + "|".join(words.variants(word)) + ")" for word in value.words]
        return self._said(_FOLLOWS, " " + " ".join(ways) + ("" if value.prefix else " "))

    def rest(self, term: Term, holds: sql.Composable) -> sql.Composable | None:
        """What is left to be asked of the term where the index over words has been asked; None: nothing."""
        value = term.values[0]
        if term.negated or len(term.values) > 1 or not isinstance(value, Words) or _of_words(value) is None:
            return holds
        return self._follow(value) if len(value.words) > 1 else None

    def narrow(self, terms: Sequence[Term]) -> sql.Composable | None:
        """What the indexes over words and metadata say of the terms, where they say something."""
        asked = [term for term in terms if not term.negated]
        narrow: list[sql.Composable] = []
        if lexemes := [found for term in asked if not _is_indexed(term) and (found := _lexemes(term)) is not None]:
            narrow.append(self._said(_SAYS, " & ".join(f"({each})" for each in lexemes)))
        # These have indexes of their own, and their words may be everywhere (user:42 is user, and 42).
        narrow += [self.term(term) for term in asked if _is_indexed(term)]
        for term in asked:
            if term.key is Key.METADATA and (facts := _facts(term)):
                held = [self._said("a.metadata::jsonb @> {}::jsonb", fact) for fact in facts]
                narrow.append(sql.SQL("a.metadata is not null and ({})").format(_either(held)))
        return sql.SQL(" and ").join(narrow) if narrow else None


def _all(conditions: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL(" and ").join(conditions) if conditions else sql.SQL("true")


def _either(conditions: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL(" or ").join(sql.SQL("({})").format(each) for each in conditions) if conditions else sql.SQL("false")


def _spans(values: Sequence[Value]) -> list[Span]:
    return [value for value in values if isinstance(value, Span)]


def _exact(values: Sequence[Value]) -> list[str]:
    return [value.text for value in values if isinstance(value, Exact)]


def _is_indexed(term: Term) -> bool:
    """Whether an index over its column gathers what fits the term."""
    match term.key:
        case Key.ACTOR | Key.TENANT:
            return all(isinstance(value, Exact) for value in term.values)
        case Key.ENTITY:
            return all(isinstance(value, Thing) and value.id is not None and not value.prefix for value in term.values)
        case _:
            return False


def _lexemes(term: Term) -> str | None:
    """As a tsquery: what must be in the text index of whatever fits this term. None where nothing must."""
    found: list[str] = []
    for value in term.values:
        lexemes = _of_value(term.key, value)
        if lexemes is None:
            return None
        found.append(lexemes)
    return " | ".join(f"({each})" for each in found)


def _of_value(key: Key, value: Value) -> str | None:
    match key, value:
        case Key.TEXT, Words():
            return _of_words(value)
        case ((Key.ACTION | Key.ACTOR), (Exact() | Prefix())):
            return _of_name(value.text, prefix=isinstance(value, Prefix))
        case Key.ENTITY, Prefix(text=text):
            return _of_name(text, prefix=True)
        case Key.ENTITY, Thing(type=kind, id=number, prefix=prefix):
            # Of an id the index has what stands before its first hyphen.
            first, hyphen, _ = (number or "").partition("-")
            parts = [_of_name(kind, prefix=False), _of_name(first, prefix=prefix and not hyphen)]
            return " & ".join(part for part in parts if part) or None
        case Key.TABLE, Exact(text=text):
            return _of_name(entity_type_of(text), prefix=False)
        case Key.CATEGORY, Exact(text=text) if text and text != "data":
            return _quoted(f":{text}")
        case Key.OUTCOME, Exact(text=text) if text != Outcome.SUCCESS:
            return _quoted(f":{text}")
        case Key.SEVERITY, Exact(text=text) if text != Level.INFO:
            return _quoted(f":{text}")
        case ((Key.CHANGED | Key.REQUEST | Key.SESSION | Key.TRACE), (Exact() | Prefix())) if value.text:
            return _quoted(value.text, prefix=isinstance(value, Prefix))
        case _:
            return None


def _of_words(value: Words) -> str | None:
    """None: no text has such a word."""
    found: list[str] = []
    for place, word in enumerate(value.words):
        prefix = value.prefix and place == len(value.words) - 1
        ways = [quoted for way in words.variants(word) if (quoted := _quoted(way, prefix=prefix)) is not None]
        if not ways:
            return None
        found.append("(" + " | ".join(ways) + ")")
    return " & ".join(found)


def _of_name(text: str, *, prefix: bool) -> str | None:
    """The words of a name, or of its beginning."""
    found = words.split(text)
    open_end = prefix and bool(found) and words.split(text[-1]) != []
    quoted = [_quoted(word, prefix=open_end and place == len(found) - 1) for place, word in enumerate(found)]
    return " & ".join(each for each in quoted if each is not None) or None


def _quoted(lexeme: str, *, prefix: bool = False) -> str | None:
    if len(lexeme.encode()) > _LONGEST_LEXEME:
        return None
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'" + (":*" if prefix else "")


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_INTEGER = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")


def _facts(term: Term) -> list[str]:
    """JSON that metadata contains one of, where the term holds; nothing where that cannot be said."""
    if not all(isinstance(value, Exact) for value in term.values) or any(map(_INTEGER.fullmatch, term.path)):
        return []
    facts: list[str] = []
    for text in _exact(term.values):
        ways = [msgspec.json.encode(text).decode()]
        if text in ("true", "false") or _NUMBER.fullmatch(text):
            ways.append(text)
        for way in ways:
            for written in (way, f"[{way}]"):
                fact = written
                for name in reversed(term.path):
                    fact = f"{{{msgspec.json.encode(name).decode()}:{fact}}}"
                facts.append(fact)
    return facts
