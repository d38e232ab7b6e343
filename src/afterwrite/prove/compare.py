"""When two values are the same: as SQL says it (three-valued, and what is unknown beside), and as proof does.

``equal``, ``distinct`` and ``before`` are SQL's operators. ``freeze`` and ``agrees`` compare decoded JSON: what a
legacy column holds with what it must hold.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, cast

from afterwrite.prove.expression import Why
from afterwrite.prove.value import (
    OPAQUE,
    Bag,
    Day,
    Holes,
    Inet,
    Json,
    Padded,
    RowValue,
    Stamp,
    Unknown,
    Value,
    Zoned,
    cast_to,
    instant,
    is_list,
    is_object,
    parse_array,
    unknown,
)


def freeze(value: Any) -> Any:
    """A decoded JSON value as something to hash and compare by: numbers by value, instants by moment.

    Raises LookupError when an unknown stands inside.
    """
    kind = value.__class__
    if kind is str:
        # Longer than a date and dashed like one: perhaps an instant, which has many spellings.
        return instant(value) or value if len(value) > 19 and value[4] == "-" else value
    if kind is int or value is None or kind is Decimal:
        return value
    if kind is dict:
        pairs: dict[str, Any] = value
        return frozenset([(key, freeze(item)) for key, item in pairs.items()])
    if kind is list:
        items: list[Any] = value
        return ("list", *[freeze(item) for item in items])
    return _freeze_rare(value)


def _freeze_rare(value: Any) -> Any:
    match value:
        case bool():
            return ("truth", value)
        case str():
            return instant(value) or str(value)
        case float():
            return Decimal(repr(value))
        case Bag():
            return ("bag", tuple(sorted((freeze(item) for item in value), key=repr)))
        case _:  # an unknown, or nothing that JSON has
            raise LookupError


def identical(one: Any, other: Any) -> bool:
    """Whether two decoded JSON values are the same, at the speed of ``==`` where they are.

    Python holds 1 and true for equal: where it says so, the truths are looked at once more.
    """
    if one == other:
        return _same_truths(one, other)
    kind = one.__class__
    if (kind is not dict and kind is not list) or type(other) is not kind:
        return False
    return freeze(one) == freeze(other)


def _same_truths(one: Any, other: Any) -> bool:
    if is_object(one):
        for key, item in one.items():
            kind = item.__class__
            if kind is bool:
                if type(other[key]) is not bool:
                    return False
            elif (kind is dict or kind is list or kind is int) and not _same_truths(item, other[key]):
                return False
        return True
    if is_list(one):
        return all(_same_truths(item, other[position]) for position, item in enumerate(one))
    return (type(one) is bool) == (type(other) is bool)


def agrees(expected: Any, actual: Any) -> bool | None:
    """Whether a decoded JSON value can be the expected one; unknown parts agree with anything, and with absence.

    None when nothing at all could be compared.
    """
    match expected:
        case Unknown():
            return None
        case Holes():
            return expected.matches(actual)
        case dict():
            wanted = cast("dict[str, Any]", expected)
            if not isinstance(actual, dict):
                return False
            found = cast("dict[str, Any]", actual)
            for key, item in wanted.items():
                if key not in found:
                    if not isinstance(item, Unknown):
                        return False
                elif agrees(item, found[key]) is False:
                    return False
            return all(key in wanted for key in found)
        case Bag():
            try:
                return isinstance(actual, list) and freeze(expected) == freeze(Bag(cast("list[Any]", actual)))
            except LookupError:
                return None
        case list():
            items = cast("list[Any]", expected)
            if not isinstance(actual, list) or len(items) != len(cast("list[Any]", actual)):
                return False
            return all(agrees(a, b) is not False for a, b in zip(items, cast("list[Any]", actual), strict=True))
        case _:
            return freeze(expected) == freeze(actual)


_PLAIN = frozenset((str, int, Decimal, bool, float, type(None)))


def has_unknown(value: Any) -> Why | None:
    """Why a decoded value is not fully known, or None when it is."""
    kind = value.__class__
    if kind in _PLAIN:
        return None
    if kind is dict:
        pairs: dict[str, Any] = value
        inside = pairs.values()
    elif kind is list:
        inside = value
    else:
        return value.why if isinstance(value, Unknown | Holes) else None
    for item in inside:
        if type(item) not in _PLAIN:
            why = has_unknown(item)
            if why is not None:
                return why
    return None


def equal(left: Value, right: Value) -> bool | Unknown | None:
    """``left = right``: true, false, NULL, or not known."""
    if left is None or right is None:
        return None
    if isinstance(left, Unknown):
        return left
    if isinstance(right, Unknown):
        return right
    if isinstance(left, Holes | Bag) or isinstance(right, Holes | Bag):
        return OPAQUE
    if isinstance(left, RowValue) and isinstance(right, RowValue):
        return _rows_equal(left.columns, right.columns)
    if is_object(left) and is_object(right):  # hstore
        return _pairs_equal(left, right)
    left, right = _meet(left, right)
    if isinstance(left, Json) and isinstance(right, Json):
        return _json_equal(left.value, right.value)
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return OPAQUE
    try:
        return freeze(left) == freeze(right)
    except LookupError:
        return OPAQUE


def _meet(left: Value, right: Value) -> tuple[Value, Value]:
    """Bring a literal to the other side's type, as the parser would have done."""
    if type(left) is str and type(right) is not str:
        right, left = _meet(right, left)
        return left, right
    if type(right) is str:
        match left:
            case bool():
                return left, cast_to(right, "boolean")
            case int() | Decimal() | float():
                return left, cast_to(right, "numeric")
            case Json():
                return left, cast_to(right, "jsonb")
            case list():
                return cast("list[Any]", left), parse_array(right) or OPAQUE if right != "{}" else []
            case Day():
                return left, cast_to(right, "date")
            case Stamp():
                return left, cast_to(right, "timestamp")
            case Zoned():
                return left, cast_to(right, "timestamptz")
            case Inet():
                return str(left).removesuffix("/32"), right.removesuffix("/32")
            case _:
                pass
    if isinstance(left, Padded) or isinstance(right, Padded):
        return str(left).rstrip(" "), str(right).rstrip(" ")
    return left, right


def _rows_equal(left: dict[str, Any], right: dict[str, Any]) -> bool | Unknown:
    doubt: Unknown | None = None
    for key, item in left.items():
        other = right.get(key)
        if isinstance(item, Unknown) or isinstance(other, Unknown):
            # A generated column follows from the others: it differs only where one of them does.
            found = item if isinstance(item, Unknown) else other
            if isinstance(found, Unknown) and found.why is not Why.GENERATED_COLUMN:
                doubt = found
        elif item != other and freeze(item) != freeze(other):
            return False
    return doubt or True


def _pairs_equal(left: dict[str, Any], right: dict[str, Any]) -> bool | Unknown:
    """Two hstore: a key whose value is not known may also be missing."""
    alone = [item for one, other in ((left, right), (right, left)) for key, item in one.items() if key not in other]
    if any(not isinstance(item, Unknown) for item in alone):
        return False
    found = _rows_equal(left, {**left, **right})
    return OPAQUE if found is True and alone else found


def _json_equal(left: Any, right: Any) -> bool | Unknown:
    if agrees(left, right) is False and agrees(right, left) is False:
        return False
    if why := has_unknown(left) or has_unknown(right):
        return unknown(why)
    return freeze(left) == freeze(right)


def distinct(left: Value, right: Value) -> bool | Unknown:
    """``left is distinct from right``: never NULL."""
    if left is None and right is None:
        return False
    if isinstance(left, Unknown):
        return left
    if isinstance(right, Unknown):
        return right
    if left is None or right is None:
        known = right if left is None else left
        return unknown(known.why) if isinstance(known, Holes) and known.nullable else True
    same = equal(left, right)
    return same if isinstance(same, Unknown) else not same


def before(left: Value, right: Value) -> bool | Unknown | None:
    """``left < right`` for numbers and moments; text order is the collation's secret."""
    if left is None or right is None:
        return None
    return _less(*_meet(left, right))


def _less(left: Value, right: Value) -> bool | Unknown:
    if isinstance(left, int | Decimal | float) and isinstance(right, int | Decimal | float):
        return OPAQUE if isinstance(left, bool) or isinstance(right, bool) else left < right
    if isinstance(left, Day) and isinstance(right, Day) and len(left) == len(right) == 10:
        return str(left) < str(right)
    if isinstance(left, Zoned) and isinstance(right, Zoned):
        a, b = instant(left), instant(right)
        return OPAQUE if a is None or b is None else a.rstrip("Z") < b.rstrip("Z")
    if isinstance(left, Stamp) and isinstance(right, Stamp) and len(left) >= 19 <= len(right):
        return str(left) < str(right)
    return OPAQUE
