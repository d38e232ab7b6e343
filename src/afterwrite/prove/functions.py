"""The functions and operators that proof evaluates exactly as PostgreSQL does, by name.

Each takes SQL values and gives one; what it cannot give exactly it gives as unknown. Names that are not here stay
opaque in a mapping, and are reported as such.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from afterwrite.prove.compare import before, distinct, equal, freeze, has_unknown
from afterwrite.prove.expression import Why
from afterwrite.prove.number import calculate, round_half_up
from afterwrite.prove.value import (
    OPAQUE,
    Bag,
    Day,
    Holes,
    Json,
    OneOf,
    RowValue,
    Stamp,
    Unknown,
    Value,
    Xid,
    Zoned,
    cast_to,
    instant,
    output,
    read_column,
    to_json,
    to_text,
    unknown,
)

_STRICT: set[Callable[..., Value]] = set()


def _strict(function: Callable[..., Value]) -> Callable[..., Value]:
    """NULL in, NULL out; and unknown in, unknown out."""

    def call(*values: Value) -> Value:
        doubt: Unknown | None = None
        for value in values:
            if value is None:
                return None
            if isinstance(value, Unknown):
                doubt = doubt or value
            elif isinstance(value, Holes):
                doubt = doubt or unknown(value.why)
        return doubt or function(*values)

    _STRICT.add(call)
    return call


def _text_of(function: Callable[..., Value]) -> Callable[..., Value]:
    """A strict function whose first argument is text, whatever came."""

    def call(value: Value, *rest: Value) -> Value:
        text = to_text(value)
        return function(text, *rest) if type(text) is str else OPAQUE

    return _strict(call)


def _concatenate(left: Value, right: Value) -> Value:
    """``||`` over text, jsonb, arrays or hstore, by what it stands between."""
    if left is None or right is None:
        other = right if left is None else left
        return other if isinstance(other, list) else None
    if isinstance(left, Json) or isinstance(right, Json):
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            return left if isinstance(left, Unknown) else right
        if type(left) is str or type(right) is str:
            left, right = (cast_to(side, "jsonb") if type(side) is str else side for side in (left, right))
        if isinstance(left, Json) and isinstance(right, Json):
            return _join_json(left.value, right.value)
        return OPAQUE
    if isinstance(left, dict) and isinstance(right, dict):
        return {**left, **right}
    if isinstance(left, list) or isinstance(right, list):
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            return OPAQUE
        first = cast("list[Any]", left) if isinstance(left, list) else [left]
        return [*first, *(cast("list[Any]", right) if isinstance(right, list) else [right])]
    return join_text([to_text(left), to_text(right)], nullable=True)


def _join_json(left: Any, right: Any) -> Value:
    if isinstance(left, dict) and isinstance(right, dict):
        return Json({**left, **right})
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return OPAQUE
    first = cast("list[Any]", left) if isinstance(left, list) else [left]
    return Json([*first, *(cast("list[Any]", right) if isinstance(right, list) else [right])])


def join_text(parts: list[Value], nullable: bool) -> Value:
    """Text side by side; an unknown part leaves a hole."""
    pieces: list[str | None] = []
    why: Why | None = None
    for part in parts:
        if part is None:
            continue
        if isinstance(part, OneOf | Unknown | Xid):
            pieces.append(None)
            why = why or part.why
        elif isinstance(part, Holes):
            pieces.extend(part.parts)
            why, nullable = why or part.why, nullable or part.nullable
        elif type(part) is str:
            pieces.append(part)
        else:  # a moment: its text is the session's
            pieces.append(None)
            why = why or Why.SESSION
    if why is None:
        return "".join(piece for piece in pieces if piece is not None)
    return Holes(_joined(pieces), why, nullable) if any(pieces) else unknown(why)


def _joined(pieces: list[str | None]) -> tuple[str | None, ...]:
    """Neighbours put together: known text beside known text is one, holes beside holes are one."""
    out: list[str | None] = []
    for piece in pieces:
        if piece is None:
            if not out or out[-1] is not None:
                out.append(None)
        elif piece:
            last = out[-1] if out else None
            if last is None:
                out.append(piece)
            else:
                out[-1] = last + piece
    return tuple(out)


def _format(*values: Value) -> Value:
    template, arguments = values[0], list(values[1:])
    if not isinstance(template, str):
        return template if template is None or isinstance(template, Unknown) else OPAQUE
    parts: list[Value] = []
    position = 0
    following = iter(arguments)
    while (found := template.find("%", position)) >= 0:
        parts.append(template[position:found])
        kind = template[found + 1 : found + 2]
        position = found + 2
        if kind == "%":
            parts.append("%")
            continue
        value = next(following, OPAQUE)
        if kind == "s":
            parts.append(output(value))
        elif kind in ("I", "L") and type(value) is str and value.isidentifier() and value == value.lower():
            parts.append(value if kind == "I" else f"'{value}'")
        else:  # positions, widths, quoting that would need the server's keyword list
            return OPAQUE
    parts.append(template[position:])
    return join_text(parts, nullable=False)


def _concat_ws(separator: Value, *values: Value) -> Value:
    if not isinstance(separator, str):
        return separator if separator is None or isinstance(separator, Unknown) else OPAQUE
    parts: list[Value] = []
    for value in values:
        if value is None:
            continue
        if isinstance(value, Unknown) or (isinstance(value, Holes) and value.nullable):
            # It may be NULL, and then its separator is not there either: the hole takes both.
            if parts and parts[-1] == separator:
                parts.pop()
            parts.append(unknown(value.why))
            continue
        if parts and not isinstance(parts[-1], Unknown):
            parts.append(separator)
        parts.append(output(value))
    return join_text(parts, nullable=False)


def _build_object(*values: Value) -> Value:
    if len(values) % 2:
        return OPAQUE
    built: dict[str, Any] = {}
    for key, value in zip(values[::2], values[1::2], strict=True):
        name = output(key)
        if type(name) is not str:
            return unknown(name.why) if isinstance(name, Unknown | Holes) else OPAQUE
        built[name] = to_json(value)
    return Json(built)


def _build_json_object(*values: Value) -> Value:
    built = _build_object(*values)
    return Json(built.value, binary=False) if isinstance(built, Json) else built


def _to_jsonb(value: Value) -> Value:
    return value if value is None or isinstance(value, Unknown) else Json(to_json(value))


def _to_json(value: Value) -> Value:
    return value if value is None or isinstance(value, Unknown) else Json(to_json(value, False), binary=False)


def _get(value: Value, key: Value) -> Value:
    """``->``: a member, or NULL."""
    if isinstance(value, RowValue) or not isinstance(value, Json):
        return _hstore_get(value, key)
    inside = value.value
    found: Any = None
    if isinstance(inside, dict) and isinstance(key, str):
        found = cast("dict[str, Any]", inside).get(key)
        if key not in inside:
            return None
    elif isinstance(inside, list) and isinstance(key, int):
        items = cast("list[Any]", inside)
        if not -len(items) <= key < len(items):
            return None
        found = items[key]
    else:
        return None
    return found if isinstance(found, Unknown) else Json(found, value.binary)


def _hstore_get(value: Value, key: Value) -> Value:
    return value.get(key) if isinstance(value, dict) and isinstance(key, str) else OPAQUE


def _get_text(value: Value, key: Value) -> Value:
    """``->>``: a member as text; a JSON null is NULL."""
    found = _get(value, key)
    return json_text(found) if isinstance(found, Json) else found


def json_text(value: Json) -> Value:
    inside = value.value
    if inside is None or isinstance(inside, Unknown):
        return inside
    if isinstance(inside, str):
        return str(inside)
    return output(Json(inside)) if value.binary or not isinstance(inside, dict | list) else OPAQUE


def _path(value: Value, path: Value) -> Value:
    names = cast_to(path, "text[]")
    if not isinstance(names, list):
        return OPAQUE
    for name in cast("list[Any]", names):
        if not isinstance(value, Json):
            return value
        index = int(name) if isinstance(value.value, list) and str(name).lstrip("-").isdigit() else name
        value = _get(value, index)
    return value


def _path_text(value: Value, path: Value) -> Value:
    found = _path(value, path)
    return json_text(found) if isinstance(found, Json) else found


def _minus(left: Value, right: Value) -> Value:
    """``-`` over numbers, jsonb and keys, hstore and keys, moments, dates."""
    if isinstance(left, Json):
        inside = left.value
        names = cast("list[Any]", right) if isinstance(right, list) else [right]
        if isinstance(inside, dict) and all(isinstance(name, str) for name in names):
            return Json({key: item for key, item in cast("dict[str, Any]", inside).items() if key not in names})
        return OPAQUE
    if isinstance(left, dict):
        pairs = cast("dict[str, Any]", left)
        if isinstance(right, dict):
            return {key: item for key, item in pairs.items() if not (key in right and right[key] == item)}
        names = cast("list[Any]", right) if isinstance(right, list) else [right]
        return {key: item for key, item in pairs.items() if key not in names}
    if isinstance(left, Zoned | Stamp) and type(left) is type(right):
        return _interval(left, right)
    if isinstance(left, Day) and isinstance(right, Day):
        try:
            return (datetime.fromisoformat(left) - datetime.fromisoformat(right)).days
        except ValueError:
            return OPAQUE
    return _calculate("-", left, right)


def _interval(left: str, right: str) -> Value:
    """The text of a positive difference, as IntervalStyle postgres writes it."""
    try:
        a, b = datetime.fromisoformat(instant(left) or left), datetime.fromisoformat(instant(right) or right)
    except ValueError:
        return OPAQUE
    difference = a - b
    if difference < timedelta(0):
        return OPAQUE
    hours, rest = divmod(difference.seconds, 3600)
    clock = f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
    if difference.microseconds:
        clock += f".{difference.microseconds:06d}".rstrip("0")
    if not difference.days:
        return clock
    days = f"{difference.days} day{'s' if difference.days != 1 else ''}"
    return f"{days} {clock}" if difference.seconds or difference.microseconds else days


def _calculate(symbol: str, left: Value, right: Value) -> Value:
    found = calculate(symbol, left, right)
    return OPAQUE if found is None else found


def _negate(value: Value) -> Value:
    return -value if isinstance(value, int | Decimal | float) and not isinstance(value, bool) else OPAQUE


def _not(value: Value) -> Value:
    return not value if isinstance(value, bool) else OPAQUE


def _not_equal(left: Value, right: Value) -> Value:
    same = equal(left, right)
    return not same if isinstance(same, bool) else same


def _same_rows(left: Value, right: Value) -> Value:
    """``row(…) is distinct from row(…)``: member by member."""
    if not (isinstance(left, tuple) and isinstance(right, tuple)):
        return distinct(left, right)
    doubt: Unknown | None = None
    for a, b in zip(cast("tuple[Value, ...]", left), cast("tuple[Value, ...]", right), strict=False):
        found = distinct(a, b)
        if found is True:
            return True
        doubt = found if isinstance(found, Unknown) else doubt
    return doubt or False


def _row_equal(left: Value, right: Value) -> Value:
    if not (isinstance(left, tuple) and isinstance(right, tuple)):
        return equal(left, right)
    answer: Value = True
    for a, b in zip(cast("tuple[Value, ...]", left), cast("tuple[Value, ...]", right), strict=False):
        found = equal(a, b)
        if found is False:
            return False
        answer = found if found is not True else answer
    return answer


def _not_distinct(left: Value, right: Value) -> Value:
    found = _same_rows(left, right)
    return not found if isinstance(found, bool) else found


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


def _is(wanted: bool, expected: bool) -> Callable[[Value], Value]:
    """``is true`` and its kind: NULL is never what is asked for."""
    return lambda value: value if isinstance(value, Unknown) else (value is wanted) is expected


def _any(value: Value, items: Value) -> Value:
    """``value = any(array)``."""
    if isinstance(items, str):
        items = cast_to(items, "text[]")
    if not isinstance(items, list):
        return OPAQUE
    answer: Value = False
    for item in cast("list[Any]", items):
        found = equal(value, item)
        if found is True:
            return True
        answer = found if found is not False else answer
    return answer


def _flip(function: Callable[[Value, Value], Value]) -> Callable[[Value, Value], Value]:
    return lambda left, right: function(right, left)


def _not_before(left: Value, right: Value) -> Value:
    found = before(left, right)
    return not found if isinstance(found, bool) else found


def _index(items: Value, position: Value) -> Value:
    if isinstance(items, Json):
        return _get(items, position)
    if not isinstance(items, list) or isinstance(items, Bag) or not isinstance(position, int):
        return OPAQUE
    found = cast("list[Any]", items)
    return found[position - 1] if 1 <= position <= len(found) else None


def _nullif(left: Value, right: Value) -> Value:
    same = equal(left, right)
    if isinstance(same, Unknown):
        return unknown(same.why)
    return None if same is True else left


def _ascii(change: Callable[[str], str]) -> Callable[[str], Value]:
    return lambda text: change(text) if text.isascii() else OPAQUE


def _substring(text: str, start: Value, length: Value = None) -> Value:
    if not isinstance(start, int):
        return OPAQUE
    end = len(text) + 1 if length is None else start + length
    return text[max(start, 1) - 1 : max(end - 1, 0)]


def _left(text: str, count: int) -> str:
    return text[:count]


def _right(text: str, count: int) -> str:
    return text[-count:] if count > 0 else text[-count:] if count else ""


def _initcap(text: str) -> str:
    out: list[str] = []
    inside = False
    for letter in text:
        out.append(letter.lower() if inside else letter.upper())
        inside = letter.isalnum()
    return "".join(out)


def _like(text: str, pattern: Value) -> Value:

    if not isinstance(pattern, str) or "\\" in pattern:
        return OPAQUE
    expression = "".join(".*" if part == "%" else "." if part == "_" else re.escape(part) for part in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _array_to_string(items: Value, separator: Value, null: Value = None) -> Value:
    if not isinstance(items, list) or isinstance(items, Bag):
        return OPAQUE
    texts = [null if item is None else output(item) for item in cast("list[Any]", items)]
    if any(isinstance(text, Unknown | Zoned) for text in texts):
        return OPAQUE
    return str(separator).join(text for text in texts if text is not None)


def _array_length(items: Value, dimension: Value = 1) -> Value:
    if not isinstance(items, list) or dimension != 1:
        return OPAQUE
    return len(cast("list[Any]", items)) or None


def _extreme(wanted_first: bool) -> Callable[..., Value]:
    def choose(*values: Value) -> Value:
        best: Value = None
        for value in values:
            if value is None:
                continue
            if best is None:
                best = value
                continue
            less = before(value, best)
            if not isinstance(less, bool):
                return OPAQUE
            best = value if less is wanted_first else best
        return best

    return choose


def _strip_nulls(value: Value) -> Value:
    def strip(inside: Any) -> Any:
        if isinstance(inside, dict):
            return {key: strip(item) for key, item in cast("dict[str, Any]", inside).items() if item is not None}
        return [strip(item) for item in cast("list[Any]", inside)] if isinstance(inside, list) else inside

    return Json(strip(value.value), value.binary) if isinstance(value, Json) else OPAQUE


def _json_set(value: Value, path: Value, item: Value, create: Value = True) -> Value:
    names = cast_to(path, "text[]")
    if not isinstance(value, Json) or not isinstance(item, Json) or not isinstance(names, list):
        return OPAQUE

    def put(inside: Any, rest: list[Any]) -> Any:
        if not isinstance(inside, dict):
            raise LookupError
        known = cast("dict[str, Any]", inside)
        name = rest[0]
        if len(rest) > 1:
            return {**known, name: put(known[name], rest[1:])} if name in known else known
        return {**known, name: item.value} if create is True or name in known else known

    try:
        return Json(put(value.value, cast("list[Any]", names))) if names else value
    except LookupError:
        return OPAQUE


def _contains(left: Value, right: Value) -> Value:
    def inside(big: Any, small: Any) -> bool:
        if isinstance(big, dict) and isinstance(small, dict):
            outer = cast("dict[str, Any]", big)
            return all(key in outer and inside(outer[key], item) for key, item in cast("dict[str, Any]", small).items())
        if isinstance(big, list) and isinstance(small, list):
            return all(any(inside(one, item) for one in cast("list[Any]", big)) for item in cast("list[Any]", small))
        return freeze(big) == freeze(small)

    if isinstance(left, Json) and isinstance(right, str):
        right = cast_to(right, "jsonb")
    if not (isinstance(left, Json) and isinstance(right, Json)) or has_unknown(left.value) or has_unknown(right.value):
        return OPAQUE
    return inside(left.value, right.value)


def _has_key(value: Value, key: Value) -> Value:
    inside = value.value if isinstance(value, Json) else value
    if not isinstance(inside, dict | list):
        return OPAQUE
    return key in cast("dict[str, Any]", inside)


def _typeof(value: Value) -> Value:
    match value.value if isinstance(value, Json) else OPAQUE:
        case Unknown():
            return OPAQUE
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | Decimal() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _hstore(value: Value) -> Value:
    if not isinstance(value, RowValue):
        return OPAQUE
    pairs: dict[str, Any] = {}
    for name, raw in value.columns.items():
        text = output(read_column(raw, value.types.get(name, 0)))
        pairs[name] = text if text is None or type(text) is str else OPAQUE if not isinstance(text, Unknown) else text
    return pairs


def _host(value: Value) -> Value:
    return str(value).partition("/")[0] if isinstance(value, str) else OPAQUE


def _round(value: Value, scale: Value = 0) -> Value:
    if isinstance(value, float):
        return float(round(value)) if scale == 0 else OPAQUE
    return round_half_up(value, scale) if isinstance(value, int | Decimal) and scale >= 0 else OPAQUE


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _make_array(*items: Value) -> Value:
    return list(items)


def _make_row(*items: Value) -> Value:
    return items


def _build_array(*items: Value) -> Value:
    return Json([to_json(item) for item in items])


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "tg_argv": lambda *values: list(values),
    "||": _concatenate,
    "+": _strict(lambda left, right: _calculate("+", left, right)),
    "-": _strict(_minus),
    "*": _strict(lambda left, right: _calculate("*", left, right)),
    "/": _strict(lambda left, right: _calculate("/", left, right)),
    "%": _strict(lambda left, right: _calculate("%", left, right)),
    "negate": _strict(_negate),
    "=": _row_equal,
    "<>": lambda left, right: _not(found) if isinstance(found := _row_equal(left, right), bool) else found,
    "<": _strict(before),
    ">": _strict(_flip(before)),
    "<=": _strict(_flip(_not_before)),
    ">=": _strict(_not_before),
    "is distinct from": _same_rows,
    "is not distinct from": _not_distinct,
    "not": _strict(_not),
    "is null": _is_null,
    "is not null": _is_not_null,
    "is true": _is(True, True),
    "is not true": _is(True, False),
    "is false": _is(False, True),
    "is not false": _is(False, False),
    "->": _strict(_get),
    "->>": _strict(_get_text),
    "#>": _strict(_path),
    "#>>": _strict(_path_text),
    "jsonb_extract_path": _strict(lambda value, *path: _path(value, list(path))),
    "jsonb_extract_path_text": _strict(lambda value, *path: _path_text(value, list(path))),
    "@>": _strict(_contains),
    "<@": _strict(_flip(_contains)),
    "?": _strict(_has_key),
    "like": _text_of(_like),
    "ilike": _text_of(lambda text, pattern: _like(text.lower(), pattern.lower()) if text.isascii() else OPAQUE),
    "any": _strict(_any),
    "[]": _strict(_index),
    "array": _make_array,
    "row": _make_row,
    "nullif": _nullif,
    "greatest": lambda *values: (
        OPAQUE if any(isinstance(v, Unknown | Holes) for v in values) else _extreme(False)(*values)
    ),
    "least": lambda *values: OPAQUE if any(isinstance(v, Unknown | Holes) for v in values) else _extreme(True)(*values),
    "to_jsonb": _to_jsonb,
    "to_json": _to_json,
    "row_to_json": _to_json,
    "jsonb_build_object": _build_object,
    "json_build_object": _build_json_object,
    "jsonb_build_array": _build_array,
    "jsonb_strip_nulls": _strict(_strip_nulls),
    "json_strip_nulls": _strict(_strip_nulls),
    "jsonb_set": _strict(_json_set),
    "jsonb_typeof": _strict(_typeof),
    "hstore": _strict(_hstore),
    "concat": lambda *values: join_text([output(value) for value in values], nullable=False),
    "concat_ws": _concat_ws,
    "format": _format,
    "lower": _text_of(_ascii(str.lower)),
    "upper": _text_of(_ascii(str.upper)),
    "initcap": _text_of(_ascii(_initcap)),
    "length": _text_of(len),
    "char_length": _text_of(len),
    "left": _text_of(_left),
    "right": _text_of(_right),
    "substr": _text_of(_substring),
    "substring": _text_of(_substring),
    "btrim": _text_of(lambda text, letters=" ": text.strip(letters)),
    "ltrim": _text_of(lambda text, letters=" ": text.lstrip(letters)),
    "rtrim": _text_of(lambda text, letters=" ": text.rstrip(letters)),
    "replace": _text_of(lambda text, old, new: text.replace(old, new) if old else text),
    "split_part": _text_of(lambda text, by, n: (text.split(by) + [""] * n)[n - 1] if by and n > 0 else OPAQUE),
    "md5": _text_of(_md5),
    "abs": _strict(lambda value: abs(value) if isinstance(value, int | Decimal | float) else OPAQUE),
    "round": _strict(_round),
    "array_to_string": _strict(_array_to_string),
    "array_length": _strict(_array_length),
    "cardinality": _strict(lambda items: len(items) if isinstance(items, list) else OPAQUE),
    "array_append": lambda items, item: (
        OPAQUE if isinstance(items, Unknown) else [*(cast("list[Any]", items) or []), item]
    ),
    "host": _strict(_host),
}

STRICT = frozenset(name for name, function in FUNCTIONS.items() if function in _STRICT) | {"to_jsonb", "to_json"}
"""Functions that answer NULL as soon as one argument is NULL."""
