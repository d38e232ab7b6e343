"""Expressions built and simplified: constants are worked out, branches that cannot be taken fall away."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from afterwrite.prove.evaluate import Moment, compile_expression
from afterwrite.prove.expression import (
    FALSE,
    NULL,
    TRUE,
    Aggregate,
    Call,
    Case,
    Cast,
    Const,
    Expression,
    Field,
    Fold,
    Opaque,
    Part,
    Relname,
    Whole,
    Why,
)
from afterwrite.prove.functions import FUNCTIONS, STRICT
from afterwrite.prove.value import cast_to


def call(name: str, *arguments: Expression) -> Expression:
    """A call, folded where its arguments are constants; opaque where the function is not evaluated here."""
    match name, arguments:
        case "and", (left, right):
            return _and(left, right)
        case "or", (left, right):
            return _or(left, right)
        case "coalesce", _:
            return _coalesce(arguments)
        case "to_jsonb", (value,) if _kind(value) == "jsonb":
            return value
        case _ if name not in FUNCTIONS:
            return opaque(f"{name}(…)")
        case _:
            pass
    if name in STRICT and NULL in arguments:
        return NULL
    if name == "is null" and isinstance(arguments[0], Whole):
        return FALSE  # a row with a key has a column that is not null
    return _folded(Call(name, arguments))


def _folded(expression: Call) -> Expression:
    """The constant that an expression without a row in it comes to, where that is a plain one."""
    if expression.arguments and all(_closed(argument) for argument in expression.arguments):
        found = compile_expression(expression, {})(Moment(None, None))
        if found is None or type(found) in (str, int, bool, Decimal):
            return Const(found)
    return expression


def _closed(expression: Expression) -> bool:
    match expression:
        case Const():
            return True
        case Cast(value, _, _):
            return _closed(value)
        case Call(name, arguments):
            return name != "current_setting" and all(_closed(argument) for argument in arguments)
        case _:
            return False


def _and(left: Expression, right: Expression) -> Expression:
    if FALSE in (left, right):
        return FALSE
    if TRUE in (left, right):
        return right if left == TRUE else left
    return NULL if left == right == NULL else Call("and", (left, right))


def _or(left: Expression, right: Expression) -> Expression:
    if TRUE in (left, right):
        return TRUE
    if FALSE in (left, right):
        return right if left == FALSE else left
    return NULL if left == right == NULL else Call("or", (left, right))


def any_of(members: Sequence[Expression]) -> Expression:
    found: Expression = FALSE
    for member in members:
        found = call("or", found, member)
    return found


def _alike(values: Sequence[Expression]) -> list[Expression]:
    """Literals among documents are documents, as the parser would resolve them."""
    kind = next((kind for value in values if (kind := _kind(value)) in ("jsonb", "json")), None)
    if kind is None:
        return list(values)
    return [cast(value, kind) if isinstance(value, Const) else value for value in values]


def _coalesce(arguments: Sequence[Expression]) -> Expression:
    kept: list[Expression] = []
    for argument in _alike(arguments):
        if argument == NULL:
            continue
        kept.append(argument)
        if isinstance(argument, Const | Whole) or (isinstance(argument, Call) and argument.name == "tg_argv"):
            break
    if not kept:
        return NULL
    return kept[0] if len(kept) == 1 else Call("coalesce", tuple(kept))


def case(branches: Sequence[tuple[Expression, Expression]], otherwise: Expression) -> Expression:
    """A CASE without the branches that can never be taken."""
    *results, otherwise = _alike([*(then for _, then in branches), otherwise])
    kept: list[tuple[Expression, Expression]] = []
    for (when, _), then in zip(branches, results, strict=True):
        if when in (FALSE, NULL):
            continue
        if when == TRUE:
            otherwise = then
            break
        kept.append((when, then))
    while kept and kept[-1][1] == otherwise:
        kept.pop()
    return Case(tuple(kept), otherwise) if kept else otherwise


def cast(value: Expression, kind: str, modifiers: tuple[int, ...] = ()) -> Expression:
    """A cast, folded where the value is a constant and the answer has no more to it than the value."""
    if value == NULL:
        return NULL
    if isinstance(value, Opaque):
        return value
    if isinstance(value, Const):
        found = cast_to(value.value, kind, modifiers)
        if type(found) in (str, int, bool, Decimal):
            return Const(found)
    if isinstance(value, Relname) and kind in ("text", "name", "varchar"):
        return value
    if not modifiers and _kind(value) == kind:
        return value
    return Cast(value, kind, modifiers)


_KINDS = {
    "to_jsonb": "jsonb",
    "jsonb_build_object": "jsonb",
    "jsonb_build_array": "jsonb",
    "jsonb_set": "jsonb",
    "jsonb_object_agg": "jsonb",
    "jsonb_agg": "jsonb",
    "to_json": "json",
    "row_to_json": "json",
    "json_build_object": "json",
    "format": "text",
    "concat": "text",
    "concat_ws": "text",
    "->>": "text",
    "#>>": "text",
    "lower": "text",
    "upper": "text",
    "left": "text",
    "md5": "text",
    "hstore": "hstore",
}


def _kind(value: Expression) -> str | None:
    """The type of an expression, where its form alone tells it."""
    match value:
        case Cast(_, kind, ()):
            return kind
        case Call("-" | "||" | "->" | "#>" | "jsonb_strip_nulls" | "nullif" | "coalesce", (first, *_)):
            return kind if (kind := _kind(first)) in ("jsonb", "json", "hstore") else None
        case Call(name, _):
            return _KINDS.get(name)
        case Aggregate(name, _, _):
            return _KINDS.get(name)
        case Fold(name=name, start=start):
            return _kind(dict(start)[name])
        case _:
            return None


def part(value: Expression, name: str) -> Expression:
    """A field of a row value."""
    match value:
        case Whole(side):
            return Field(side, name)
        case Const(value=None) | Opaque():
            return value
        case Case(branches, otherwise):
            return case([(when, part(then, name)) for when, then in branches], part(otherwise, name))
        case _:
            return Part(value, name)


def trigger_arguments(arguments: Sequence[str]) -> Expression:
    """TG_ARGV: an array that counts from 0, and NULL where there are no arguments."""
    if not arguments:
        return NULL
    return Call("tg_argv", tuple(Const(argument) for argument in arguments))


def read_arguments(value: Expression) -> tuple[Expression, ...] | None:
    return value.arguments if isinstance(value, Call) and value.name == "tg_argv" else None


def opaque(text: str) -> Opaque:
    return Opaque(Why.OPAQUE, shorten(text))


def shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else f"{flat[:77]}…"
