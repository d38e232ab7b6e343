"""Functions and operators of json, jsonb and hstore."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from afterwrite.prove.calling import Function, strict
from afterwrite.prove.compare import freeze, has_unknown
from afterwrite.prove.value import (
    OPAQUE,
    Holes,
    Json,
    RowValue,
    Unknown,
    Value,
    cast_to,
    is_list,
    is_object,
    output,
    read_column,
    to_json,
    unknown,
)


def join_documents(left: Any, right: Any) -> Value:
    """``||`` of two decoded jsonb values."""
    if is_object(left) and is_object(right):
        return Json({**left, **right})
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return OPAQUE
    return Json([*(left if is_list(left) else [left]), *(right if is_list(right) else [right])])


def without(left: Value, right: Value) -> Value:
    """``jsonb - key(s)`` and ``hstore - key(s)`` or ``- hstore``."""
    names: list[Any] = right if is_list(right) else [right]
    if isinstance(left, Json):
        inside = left.value
        if is_object(inside) and all(isinstance(name, str) for name in names):
            return Json({key: item for key, item in inside.items() if key not in names})
        return OPAQUE
    if not is_object(left):
        return OPAQUE
    if is_object(right):
        # What is not known may be the same or not: its key stays, with a value that agrees with its absence, too.
        doubtful = [
            key for key, item in left.items() if isinstance(item, Unknown) or isinstance(right.get(key), Unknown)
        ]
        known = {key: item for key, item in left.items() if not (key in right and right[key] == item)}
        return {**known, **{key: OPAQUE for key in doubtful if key in right}}
    return {key: item for key, item in left.items() if key not in names}


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


def _build_array(*values: Value) -> Value:
    return Json([to_json(value) for value in values])


def _to_jsonb(value: Value) -> Value:
    return value if value is None or isinstance(value, Unknown) else Json(to_json(value))


def _to_json(value: Value) -> Value:
    return value if value is None or isinstance(value, Unknown) else Json(to_json(value), binary=False)


def get(value: Value, key: Value) -> Value:
    """``->``: a member, or NULL."""
    if not isinstance(value, Json):
        return value.get(key) if is_object(value) and isinstance(key, str) else OPAQUE
    inside = value.value
    if is_object(inside) and isinstance(key, str):
        if key not in inside:
            return None
        found = inside[key]
    elif is_list(inside) and isinstance(key, int):
        if not -len(inside) <= key < len(inside):
            return None
        found = inside[key]
    else:
        return None
    return found if isinstance(found, Unknown) else Json(found, value.binary)


def _get_text(value: Value, key: Value) -> Value:
    """``->>``: a member as text; a JSON null is NULL."""
    found = get(value, key)
    return json_text(found) if isinstance(found, Json) else found


def json_text(value: Json) -> Value:
    """A member as ``->>`` gives it."""
    inside = value.value
    if inside is None or isinstance(inside, Unknown):
        return inside
    if isinstance(inside, str):
        return str(inside)
    return output(Json(inside)) if value.binary or not isinstance(inside, dict | list) else OPAQUE


def _path(value: Value, path: Value) -> Value:
    names = cast_to(path, "text[]")
    if not is_list(names):
        return OPAQUE
    for name in names:
        if not isinstance(value, Json):
            return value
        index = int(name) if is_list(value.value) and str(name).lstrip("-").isdigit() else name
        value = get(value, index)
    return value


def _path_text(value: Value, path: Value) -> Value:
    found = _path(value, path)
    return json_text(found) if isinstance(found, Json) else found


def _extract(value: Value, *path: Value) -> Value:
    return _path(value, list(path))


def _extract_text(value: Value, *path: Value) -> Value:
    return _path_text(value, list(path))


def _strip_nulls(value: Value) -> Value:
    def strip(inside: Any) -> Any:
        if is_object(inside):
            return {key: strip(item) for key, item in inside.items() if item is not None}
        return [strip(item) for item in inside] if is_list(inside) else inside

    return Json(strip(value.value), value.binary) if isinstance(value, Json) else OPAQUE


def _set(value: Value, path: Value, item: Value, create: Value = True) -> Value:
    names = cast_to(path, "text[]")
    item = cast_to(item, "jsonb") if type(item) is str else item
    if not isinstance(value, Json) or not isinstance(item, Json) or not is_list(names) or not names:
        return OPAQUE
    put_in = item.value

    def put(inside: Any, rest: list[Any]) -> Any:
        if not is_object(inside):
            raise LookupError
        name = rest[0]
        if len(rest) > 1:
            return {**inside, name: put(inside[name], rest[1:])} if name in inside else inside
        return {**inside, name: put_in} if create is True or name in inside else inside

    try:
        return Json(put(value.value, names))
    except LookupError:
        return OPAQUE


def _contains(left: Value, right: Value) -> Value:
    right = cast_to(right, "jsonb") if isinstance(right, str) else right
    if not isinstance(left, Json) or not isinstance(right, Json):
        return OPAQUE
    if has_unknown(left.value) or has_unknown(right.value):
        return OPAQUE
    big, small = left.value, right.value
    if is_list(big) and not is_object(small) and not is_list(small):
        return any(freeze(item) == freeze(small) for item in big)
    return _inside(big, small)


def _inside(big: Any, small: Any) -> bool:
    if is_object(big) and is_object(small):
        return all(key in big and _inside(big[key], item) for key, item in small.items())
    if is_list(big) and is_list(small):
        return all(any(_inside(one, item) for one in big) for item in small)
    return freeze(big) == freeze(small)


def _contained(left: Value, right: Value) -> Value:
    return _contains(right, left)


def _has_key(value: Value, key: Value) -> Value:
    inside = value.value if isinstance(value, Json) else value
    if is_object(inside):
        return key in inside
    return key in inside if is_list(inside) else OPAQUE


def _typeof(value: Value) -> Value:
    inside: Any = value.value if isinstance(value, Json) else OPAQUE
    if isinstance(inside, Unknown):
        return OPAQUE
    if inside is None:
        return "null"
    if isinstance(inside, bool):
        return "boolean"
    if isinstance(inside, int | Decimal | float):
        return "number"
    return "string" if isinstance(inside, str) else "array" if is_list(inside) else "object"


def _hstore(value: Value) -> Value:
    if not isinstance(value, RowValue):
        return OPAQUE
    pairs: dict[str, Any] = {}
    for name, raw in value.columns.items():
        text = output(read_column(raw, value.types.get(name, 0)))
        pairs[name] = text if text is None or type(text) is str or isinstance(text, Unknown) else OPAQUE
    return pairs


DOCUMENTS: dict[str, Function] = {
    "->": strict(get),
    "->>": strict(_get_text),
    "#>": strict(_path),
    "#>>": strict(_path_text),
    "jsonb_extract_path": strict(_extract),
    "jsonb_extract_path_text": strict(_extract_text),
    "@>": strict(_contains),
    "<@": strict(_contained),
    "?": strict(_has_key),
    "to_jsonb": _to_jsonb,
    "to_json": _to_json,
    "row_to_json": _to_json,
    "jsonb_build_object": _build_object,
    "json_build_object": _build_json_object,
    "jsonb_build_array": _build_array,
    "jsonb_strip_nulls": strict(_strip_nulls),
    "json_strip_nulls": strict(_strip_nulls),
    "jsonb_set": strict(_set),
    "jsonb_typeof": strict(_typeof),
    "hstore": strict(_hstore),
}
