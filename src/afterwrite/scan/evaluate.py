"""What terms and conditions come to for one trigger: its TG_ variables are known, its rows are not.

Pure. A value is a text, None for NULL, or a Hole where only a run could tell. Where a value may be one of several, all
are followed; beyond a few it is a Hole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import prod
from typing import TypeAlias, assert_never

import msgspec

from afterwrite.scan.catalog import Event, Trigger
from afterwrite.scan.facts import Guard, Premise, PremiseKind, Term, TermKind
from afterwrite.scan.tokens import substitute

PLACEHOLDER = "afterwrite?"
"""Stands for an identifier that is quoted but not known: harmless as a column, never as a table or a function."""

_MOST = 16
# Fourteen CASEs of four values each are 268 million ways to be called, however few their results.
_MOST_COMBINATIONS = 4_096
_WRITTEN_TRUTHS = ("true", "false", "t", "f")
_FORMAT = re.compile(r"%(?:(?P<position>\d+)\$)?(?P<kind>[sIL%])")
_SAME = frozenset({"text", "varchar", "name", "unknown"})
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_TRUTHS = {
    **dict.fromkeys(("t", "true", "y", "yes", "on", "1"), "true"),
    **dict.fromkeys(("f", "false", "n", "no", "off", "0"), "false"),
}


class Hole(msgspec.Struct, frozen=True):
    """A value that only a run could tell; ``sql`` is its expression, ``bare`` that it is safe to cite unquoted."""

    sql: str = ""
    bare: bool = False


class Spelling(str):
    """A text that names something and may be written otherwise (``t`` or ``public.t``): equal to no text for sure."""

    __slots__ = ()


Value: TypeAlias = str | Hole | None
Surroundings: TypeAlias = Mapping[str, tuple[Value, ...]]


def surroundings(
    trigger: Trigger,
    event: Event,
    *,
    tables: Sequence[tuple[str, str]] = (),
    numbers: Iterable[str] = (),
    may_be_empty: bool = False,
) -> dict[str, tuple[Value, ...]]:
    """The TG_ variables as the body sees them for an event.

    ``tables`` are the (schema, name) it may be fired for: a row trigger of a partitioned table sees the partition's.
    ``numbers`` are the table's columns of numeric types; ``may_be_empty`` that all columns of a row may be NULL, and so
    ``new IS NULL`` of a row that is there.
    """
    fired_for = tables or ((trigger.schema, trigger.table),)
    names = _few(name for _, name in fired_for)
    relations = (f"{quote_identifier(schema)}.{quote_identifier(name)}" for schema, name in fired_for)
    known: dict[str, tuple[Value, ...]] = {
        "tg_op": (event.value.upper(),),
        "tg_name": (trigger.name,),
        "tg_when": (trigger.timing.value.upper(),),
        "tg_level": (trigger.level.value.upper(),),
        "tg_table_name": names,
        "tg_relname": names,
        "tg_table_schema": _few(schema for schema, _ in fired_for),
        "tg_relid": _few(Spelling(relation) for relation in relations),
        "tg_nargs": (str(len(trigger.arguments)),),
    }
    known |= {f"tg_argv[{place}]": (argument,) for place, argument in enumerate(trigger.arguments)}
    absent = {Event.INSERT: ("old",), Event.DELETE: ("new",), Event.TRUNCATE: ("old", "new")}.get(event, ())
    for row in ("new", "old"):
        known[row] = (None,) if row in absent else (Hole(row) if may_be_empty else "a row",)
        for column in numbers:
            known[f"{row}.{column}"] = (None,) if row in absent else (Hole(f"{row}.{column}", bare=True),)
    return known


def values(term: Term, around: Surroundings) -> tuple[Value, ...]:
    """Everything that a term may come to."""
    match term.kind:
        case TermKind.LITERAL:
            return (term.text,)
        case TermKind.NULL:
            return (None,)
        case TermKind.NAME:
            return _named(term.text, around)
        case TermKind.CHOICE:
            return _few(value for part in term.parts for value in values(part, around))
        case TermKind.UNKNOWN:
            return (Hole(term.text),)
        case TermKind.CALL:
            choices = [values(part, around) for part in term.parts]
            if prod(map(len, choices)) > _MOST_COMBINATIONS:
                return (Hole(term.sql),)
            combinations = product(*choices)
            return _few(_spelled(_called(term, combination), combination) for combination in combinations)
        case _:
            assert_never(term.kind)


def _named(name: str, around: Surroundings) -> tuple[Value, ...]:
    found = around.get(name)
    if found is not None:
        return found
    if name.startswith("tg_argv[") and "tg_nargs" in around:
        return (None,)  # beyond the last argument
    row = name.partition(".")[0]
    return (None,) if row in ("new", "old") and around.get(row) == (None,) else (Hole(name),)


def _few(found: Iterable[Value]) -> tuple[Value, ...]:
    distinct: dict[Value, None] = {}
    for value in found:
        distinct[value] = None
        if len(distinct) > _MOST:
            return (Hole(),)
    return tuple(distinct)


def _spelled(value: Value, given: Sequence[Value]) -> Value:
    """What is made of a spelling is one."""
    made = isinstance(value, str) and any(isinstance(part, Spelling) for part in given)
    return Spelling(value) if made and isinstance(value, str) else value


def _called(term: Term, given: Sequence[Value]) -> Value:
    hole = Hole(term.sql)
    first = given[0] if given else None
    match term.text:
        case "||":
            return _joined(given, null=None)
        case "concat":
            # A boolean is written `t` here, and `true` elsewhere: which it was, its text does not say.
            return hole if any(value in _WRITTEN_TRUTHS for value in given) else _joined(given, null="")
        case "format":
            return _formatted(given)
        case "quote_ident":
            if isinstance(first, Hole):
                return quote_identifier(PLACEHOLDER)
            return None if first is None else quote_identifier(first)
        case "quote_literal" | "quote_nullable":
            return _literal(first)
        case "coalesce":
            return next((value for value in given if value is not None), None)
        case "lower" | "upper" | "btrim":
            if isinstance(first, Hole) or first is None or len(given) > 1:
                return hole
            if term.text == "btrim":
                return first.strip(" ")
            # Beyond ASCII it is the locale that decides.
            return (first.lower() if term.text == "lower" else first.upper()) if first.isascii() else hole
        case "replace" if len(given) == 3 and all(isinstance(value, str) for value in given):
            text, old, new = (str(value) for value in given)
            return text.replace(old, new)
        case _ if term.text.startswith("cast:"):
            return _cast(term.text[5:], first, hole)
        case _:
            return hole


def _cast(kind: str, value: Value, hole: Hole) -> Value:
    if value is None or kind in _SAME:
        return value
    if isinstance(value, Hole):
        if kind in ("int4", "int8") and value.sql:
            return Hole(value.sql, bare=True)  # a number can be cited as it is
        return value if kind in ("regclass", "bool") else hole
    match kind:
        case "regclass" | "regtype" | "regproc" | "oid":
            return Spelling(value)
        case "bool":
            return _TRUTHS.get(value.strip().lower(), hole)
        case "int4" | "int8":
            return str(int(value)) if re.fullmatch(r"\s*[-+]?\d+\s*", value) else hole
        case _:
            return hole


def as_argument(value: Value, kind: str) -> Value:
    """A value as a parameter of this type (as format_type() prints it) holds it."""
    match kind:
        case "" | "text" | "character varying" | "name" | "anyelement" | "anycompatible":
            return value
        case "integer" | "bigint":
            return _cast("int8", value, Hole())
        case "boolean":
            return _cast("bool", value, Hole())
        case "regclass" | "oid":
            return _cast("regclass", value, Hole())
        case _:
            return None if value is None else Hole(value.sql, value.bare) if isinstance(value, Hole) else Hole()


def _joined(given: Sequence[Value], *, null: str | None) -> Value:
    pieces: list[str] = []
    for value in given:
        if value is None:
            if null is None:
                return None
            pieces.append(null)
        elif isinstance(value, Hole):
            if not value.bare:
                return value
            pieces.append(f"({value.sql})")
        else:
            pieces.append(value)
    return "".join(pieces)


def _formatted(given: Sequence[Value]) -> Value:
    """PostgreSQL's format(): %s, %I, %L and %%, with positions; a width makes it a Hole."""
    template = given[0] if given else None
    if not isinstance(template, str):
        return template
    following = 1
    pieces: list[str] = []
    place = 0
    for match in _FORMAT.finditer(template):
        pieces.append(template[place : match.start()])
        place = match.end()
        if match["kind"] == "%":
            pieces.append("%")
            continue
        index = int(match["position"]) if match["position"] else following
        following = index + 1
        if index >= len(given):
            return Hole()
        piece = _format_piece(match["kind"], given[index])
        if piece is None:
            return given[index] if isinstance(given[index], Hole) else Hole()
        pieces.append(piece)
    pieces.append(template[place:])
    return Hole() if "%" in "".join(_FORMAT.sub("", template)) else "".join(pieces)


def _format_piece(kind: str, value: Value) -> str | None:
    match kind:
        case "L":
            return _literal(value)
        case "I":
            if value is None:
                return None
            return quote_identifier(PLACEHOLDER if isinstance(value, Hole) else value)
        case _:
            if isinstance(value, Hole):
                return f"({value.sql})" if value.bare else None
            return None if value in _WRITTEN_TRUTHS else value or ""


def _literal(value: Value) -> str:
    """A quoted literal; data that is not known yet stands as its own expression, which quoting makes harmless."""
    if value is None:
        return "NULL"
    if isinstance(value, Hole):
        return f"({value.sql or 'null'})"
    return "'" + value.replace("'", "''") + "'"


def quote_identifier(name: str) -> str:
    """An identifier as quote_ident() would give it, except that keywords are not looked up: it is only parsed again."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_$]*", name) else '"' + name.replace('"', '""') + '"'


def holds(premise: Premise | None, around: Surroundings) -> bool | None:
    """Whether a condition is surely true, surely not true, or (None) cannot be told."""
    if premise is None:
        return None
    match premise.kind:
        case PremiseKind.ALL:
            return _until(False, premise, around)
        case PremiseKind.ANY:
            return _until(True, premise, around)
        case PremiseKind.NOT:
            part = holds(premise.tests[0], around) if premise.tests else None
            return None if part is None else not part
        case PremiseKind.EQUAL:
            return _equal(premise, around)
        case PremiseKind.IS_NULL:
            return _all_same(value is None if not isinstance(value, Hole) else None for value in _left(premise, around))
        case PremiseKind.TRUTH:
            truths = {"true": True, "t": True, "false": False, "f": False}
            return _all_same(truths.get(value) if isinstance(value, str) else None for value in _left(premise, around))
        case PremiseKind.UNKNOWN:
            return None
        case _:
            assert_never(premise.kind)


def _until(decides: bool, premise: Premise, around: Surroundings) -> bool | None:
    """What several conditions come to when one that is ``decides`` settles it."""
    unsure = False
    for test in premise.tests:
        truth = holds(test, around)
        if truth is decides:
            return decides
        unsure = unsure or truth is None
    return None if unsure else not decides


def _left(premise: Premise, around: Surroundings) -> tuple[Value, ...]:
    return values(premise.left, around) if premise.left is not None else (Hole(),)


def _equal(premise: Premise, around: Surroundings) -> bool | None:
    rights = [values(term, around) for term in premise.right]
    lefts = _left(premise, around)
    if len(lefts) == len(rights) == len(rights[0]) == 1:  # as tg_op = 'INSERT'
        left, right = lefts[0], rights[0][0]
        return _same(left, right) if isinstance(left, str) and isinstance(right, str) else None

    def compare(left: Value) -> bool | None:
        if not isinstance(left, str):
            return None
        verdicts: list[bool | None] = [
            _all_same(_same(left, right) if isinstance(right, str) else None for right in several) for several in rights
        ]
        return True if True in verdicts else None if None in verdicts else False

    return _all_same(compare(left) for left in lefts)


def _same(left: str, right: str) -> bool | None:
    """Whether two texts are equal; None where they are not but may stand for one thing (``1`` and ``01``)."""
    if left == right:
        return True
    if isinstance(left, Spelling) or isinstance(right, Spelling) or left.rstrip() == right.rstrip():
        return None
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return None
    truths = (_TRUTHS.get(left.lower()), _TRUTHS.get(right.lower()))
    return None if None not in truths and truths[0] == truths[1] else False


def _all_same(verdicts: Iterable[bool | None]) -> bool | None:
    distinct = set(verdicts)
    return distinct.pop() if len(distinct) == 1 else None


def feasible(guards: Iterable[Guard], around: Surroundings) -> bool:
    """Whether a place under these conditions can be reached at all."""
    for guard in guards:
        truth = holds(guard.test, around)
        if truth is not None and truth is guard.negated:
            return False
    return True


def in_callers_words(value: Value, substitution: Mapping[str, str]) -> Value:
    """A Hole's expression said in the words of the caller."""
    return Hole(substitute(value.sql, substitution), value.bare) if isinstance(value, Hole) else value
