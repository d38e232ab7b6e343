"""The functions and operators that proof evaluates exactly as PostgreSQL does, by name.

Each takes SQL values and gives one; what it cannot give exactly it gives as unknown. Names that are not here stay
opaque in a mapping, and are reported as such.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TypeGuard

from afterwrite.prove.calling import Function, is_strict, strict
from afterwrite.prove.compare import before, distinct, equal
from afterwrite.prove.document import DOCUMENTS, get, join_documents, without
from afterwrite.prove.expression import Why
from afterwrite.prove.number import calculate, round_half_up
from afterwrite.prove.text import TEXT, join_text
from afterwrite.prove.value import (
    OPAQUE,
    Bag,
    Day,
    Holes,
    Json,
    RowValue,
    Stamp,
    Unknown,
    Value,
    Zoned,
    cast_to,
    instant,
    is_list,
    is_object,
    to_text,
    unknown,
)

# --- operators of many types ------------------------------------------------------------------------------------------


def _concatenate(left: Value, right: Value) -> Value:
    """``||`` over text, jsonb, arrays or hstore, by what it stands between."""
    if left is None or right is None:
        other = right if left is None else left
        return other if is_list(other) else None
    if isinstance(left, Json) or isinstance(right, Json):
        return _concatenate_documents(left, right)
    if is_object(left) and is_object(right):
        return {**left, **right}
    if is_list(left) or is_list(right):
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            return OPAQUE
        return [*(left if is_list(left) else [left]), *(right if is_list(right) else [right])]
    return join_text([to_text(left), to_text(right)], nullable=True)


def _concatenate_documents(left: Value, right: Value) -> Value:
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return left if isinstance(left, Unknown) else right
    left = cast_to(left, "jsonb") if type(left) is str else left
    right = cast_to(right, "jsonb") if type(right) is str else right
    if isinstance(left, Json) and isinstance(right, Json):
        return join_documents(left.value, right.value)
    return OPAQUE


def _minus(left: Value, right: Value) -> Value:
    """``-`` over numbers, jsonb and keys, hstore, moments, dates."""
    if isinstance(left, Json) or is_object(left):
        return without(left, right)
    if isinstance(left, Zoned | Stamp) and type(left) is type(right):
        return _interval(left, right)
    if isinstance(left, Day) and isinstance(right, Day):
        try:
            return (datetime.fromisoformat(left) - datetime.fromisoformat(right)).days
        except ValueError:
            return OPAQUE
    return _calculated(calculate("-", left, right))


def _interval(left: str, right: str) -> Value:
    """The text of a positive difference, as IntervalStyle postgres writes it."""
    try:
        difference = datetime.fromisoformat(instant(left) or left) - datetime.fromisoformat(instant(right) or right)
    except ValueError:
        return OPAQUE
    if difference < timedelta(0):
        return OPAQUE
    minutes, seconds = divmod(difference.seconds, 60)
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    if difference.microseconds:
        clock += f".{difference.microseconds:06d}".rstrip("0")
    if not difference.days:
        return clock
    days = f"{difference.days} day{'s' if difference.days != 1 else ''}"
    return f"{days} {clock}" if difference.seconds or difference.microseconds else days


def _calculated(found: int | Decimal | float | None) -> Value:
    return OPAQUE if found is None else found


def _arithmetic(symbol: str) -> Function:
    def call(left: Value, right: Value) -> Value:
        return _calculated(calculate(symbol, left, right))

    return strict(call)


def _is_number(value: Value) -> TypeGuard[int | Decimal | float]:
    return isinstance(value, int | Decimal | float) and not isinstance(value, bool)


def _negate(value: Value) -> Value:
    return -value if _is_number(value) else OPAQUE


def _absolute(value: Value) -> Value:
    return abs(value) if _is_number(value) else OPAQUE


def _round(value: Value, scale: Value = 0) -> Value:
    if isinstance(value, float):
        return float(round(value)) if scale == 0 else OPAQUE
    return round_half_up(value, scale) if isinstance(value, int | Decimal) and scale >= 0 else OPAQUE


# --- comparisons and truth --------------------------------------------------------------------------------------------


def _is_row(value: Value) -> TypeGuard[tuple[Value, ...]]:
    return isinstance(value, tuple)


def _equal(left: Value, right: Value) -> Value:
    """``=``, of ``row(…)`` member by member."""
    if not _is_row(left) or not _is_row(right):
        return equal(left, right)
    answer: Value = True
    for one, other in zip(left, right, strict=False):
        found = equal(one, other)
        if found is False:
            return False
        answer = found if found is not True else answer
    return answer


def _distinct(left: Value, right: Value) -> Value:
    """``is distinct from``, of ``row(…)`` member by member."""
    if not _is_row(left) or not _is_row(right):
        return distinct(left, right)
    doubt: Unknown | None = None
    for one, other in zip(left, right, strict=False):
        found = distinct(one, other)
        if found is True:
            return True
        doubt = found if isinstance(found, Unknown) else doubt
    return doubt or False


def _opposite(function: Function) -> Function:
    def call(left: Value, right: Value) -> Value:
        found = function(left, right)
        return not found if isinstance(found, bool) else found

    return call


def _swapped(function: Function) -> Function:
    def call(left: Value, right: Value) -> Value:
        return function(right, left)

    return call


def _not(value: Value) -> Value:
    return not value if isinstance(value, bool) else OPAQUE


def _is_null(value: Value) -> Value:
    if isinstance(value, RowValue):
        members = list(value.columns.values())
        if any(member is not None and not isinstance(member, Unknown) for member in members):
            return False
        return unknown(Why.NOT_IN_WAL) if any(isinstance(member, Unknown) for member in members) else True
    if isinstance(value, Holes):
        return unknown(value.why) if value.nullable else False
    return value if isinstance(value, Unknown) else value is None


def _is_not_null(value: Value) -> Value:
    if isinstance(value, RowValue):
        members = list(value.columns.values())
        if any(member is None for member in members):
            return False
        return unknown(Why.NOT_IN_WAL) if any(isinstance(member, Unknown) for member in members) else True
    found = _is_null(value)
    return found if isinstance(found, Unknown) else not found


def _is(wanted: bool, *, positive: bool) -> Function:
    """``is true`` and its kind: NULL is never what is asked for."""

    def call(value: Value) -> Value:
        return value if isinstance(value, Unknown) else (value is wanted) is positive

    return call


def _any(value: Value, items: Value) -> Value:
    """``value = any(array)``."""
    items = cast_to(items, "text[]") if isinstance(items, str) else items
    if not is_list(items):
        return OPAQUE
    answer: Value = False
    for item in items:
        found = equal(value, item)
        if found is True:
            return True
        answer = found if found is not False else answer
    return answer


def _nullif(left: Value, right: Value) -> Value:
    same = equal(left, right)
    if isinstance(same, Unknown):
        return unknown(same.why)
    return None if same is True else left


def _extreme(*, least: bool) -> Function:
    """``greatest`` and ``least``: NULLs are passed over."""

    def call(*values: Value) -> Value:
        best: Value = None
        for value in values:
            if isinstance(value, Unknown | Holes):
                return OPAQUE
            if value is None:
                continue
            if best is None:
                best = value
                continue
            less = before(value, best)
            if not isinstance(less, bool):
                return OPAQUE
            best = value if less is least else best
        return best

    return call


# --- arrays and rows --------------------------------------------------------------------------------------------------


def _make_array(*items: Value) -> Value:
    return list(items)


def _make_row(*items: Value) -> Value:
    return items


def _element(items: Value, position: Value) -> Value:
    if isinstance(items, Json):
        return get(items, position)
    if not is_list(items) or isinstance(items, Bag) or not isinstance(position, int):
        return OPAQUE
    return items[position - 1] if 1 <= position <= len(items) else None


def _array_length(items: Value, dimension: Value = 1) -> Value:
    return (len(items) or None) if is_list(items) and dimension == 1 else OPAQUE


def _cardinality(items: Value) -> Value:
    return len(items) if is_list(items) else OPAQUE


def _array_append(items: Value, item: Value) -> Value:
    if items is None:
        return [item]
    return [*items, item] if is_list(items) and not isinstance(items, Bag) else OPAQUE


FUNCTIONS: dict[str, Callable[..., Value]] = {
    **TEXT,
    **DOCUMENTS,
    "||": _concatenate,
    "+": _arithmetic("+"),
    "-": strict(_minus),
    "*": _arithmetic("*"),
    "/": _arithmetic("/"),
    "%": _arithmetic("%"),
    "negate": strict(_negate),
    "abs": strict(_absolute),
    "round": strict(_round),
    "=": _equal,
    "<>": _opposite(_equal),
    "<": strict(before),
    ">": strict(_swapped(before)),
    "<=": strict(_swapped(_opposite(before))),
    ">=": strict(_opposite(before)),
    "is distinct from": _distinct,
    "is not distinct from": _opposite(_distinct),
    "not": strict(_not),
    "is null": _is_null,
    "is not null": _is_not_null,
    "is true": _is(True, positive=True),
    "is not true": _is(True, positive=False),
    "is false": _is(False, positive=True),
    "is not false": _is(False, positive=False),
    "any": strict(_any),
    "nullif": _nullif,
    "greatest": _extreme(least=False),
    "least": _extreme(least=True),
    "array": _make_array,
    "tg_argv": _make_array,
    "row": _make_row,
    "[]": strict(_element),
    "array_length": strict(_array_length),
    "cardinality": strict(_cardinality),
    "array_append": _array_append,
}

STRICT = frozenset(name for name, function in FUNCTIONS.items() if is_strict(function)) | {"to_jsonb", "to_json"}
"""Functions that answer NULL as soon as one argument is NULL."""
