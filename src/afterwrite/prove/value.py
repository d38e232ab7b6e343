"""SQL values as proof sees them: how they print, cast and compare, exactly as PostgreSQL does or not at all.

SQL NULL is None, numbers are int, Decimal and (for float4/float8) float, text and everything that prints as it is
stored is str, an array is a list, hstore is a dict. What needs more has a class here. ``Unknown`` is a value that
nobody can know from the stream; it spreads like NULL, and unlike NULL it is never taken for an answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias, TypeGuard, cast

import msgspec

from afterwrite.prove.expression import Why
from afterwrite.prove.number import number_text, round_half_up

Value: TypeAlias = Any


class Unknown:
    """Not known, and why. One object a reason; compare with ``isinstance``."""

    __slots__ = ("why",)

    def __init__(self, why: Why) -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"<{self.why}>"


_UNKNOWN = {why: Unknown(why) for why in Why}
OPAQUE = _UNKNOWN[Why.OPAQUE]


def unknown(why: Why) -> Unknown:
    """The one unknown of this reason."""
    return _UNKNOWN[why]


class Holes:
    """Text of which parts are unknown (None among ``parts``): the rest is still compared.

    At least one part is unknown; ``nullable`` when an unknown part makes it NULL.
    """

    __slots__ = ("nullable", "parts", "why")

    def __init__(self, parts: tuple[str | None, ...], why: Why, nullable: bool) -> None:
        self.parts, self.why, self.nullable = parts, why, nullable

    def matches(self, text: object) -> bool:
        """Whether the known parts stand in this text in their order, the first and the last at its ends."""
        if text is None:
            return self.nullable
        if not isinstance(text, str):
            return False
        first, last = self.parts[0], self.parts[-1]
        start, end = 0, len(text)
        if first is not None:
            if not text.startswith(first):
                return False
            start = len(first)
        if last is not None:
            end -= len(last)
            if end < start or not text.endswith(last):
                return False
        for part in self.parts[1:-1]:
            if part is None:
                continue
            at = text.find(part, start, end)
            if at < 0:
                return False
            start = at + len(part)
        return True


class OneOf(Holes):
    """Text that is one of a few: the leaf of a partitioned table that a row went to."""

    __slots__ = ("names",)

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__((None,), Why.OPAQUE, False)
        self.names = names

    def matches(self, text: object) -> bool:
        return text in self.names


class Options(Holes):
    """One of several known values, where a condition that cannot be decided chooses."""

    __slots__ = ("options",)

    def __init__(self, options: tuple[Any, ...], why: Why) -> None:
        super().__init__((None,), why, nullable=None in options)
        self.options = options


class Xid(Holes):
    """A transaction id: the stream has its 32 bits, txid_current() counts the wraparounds too."""

    __slots__ = ("xid",)

    def __init__(self, xid: int) -> None:
        super().__init__((None,), Why.OPAQUE, False)
        self.xid = xid

    def matches(self, text: object) -> bool:
        return isinstance(text, int | str) and str(text).isdigit() and int(text) % 2**32 == self.xid


class Json:
    """A json or jsonb value, decoded; unknown leaves stand inside as ``Unknown``."""

    __slots__ = ("binary", "value")

    def __init__(self, value: Any, binary: bool = True) -> None:
        self.value, self.binary = value, binary


class RowValue:
    """A whole row: its columns as to_jsonb gives them, unknown ones as ``Unknown``, and their type OIDs."""

    __slots__ = ("columns", "types")

    def __init__(self, columns: dict[str, Any], types: Mapping[str, int]) -> None:
        self.columns, self.types = columns, types


class Bag(list[Any]):
    """An array whose order the query left open."""


class Zoned(str):
    """A timestamptz: its text depends on the session's TimeZone, its instant does not."""

    __slots__ = ()


class Stamp(str):
    """A timestamp without time zone, as JSON writes it (with a T)."""

    __slots__ = ()


class Day(str):
    """A date."""

    __slots__ = ()


class Padded(str):
    """char(n): padded on output, trimmed when cast to text."""

    __slots__ = ()


class Inet(str):
    """inet: its output omits /32, its cast to text does not."""

    __slots__ = ()


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it is a decoded JSON object (or an hstore)."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether it is a SQL array or a decoded JSON array."""
    return isinstance(value, list)


decode_json = msgspec.json.Decoder(float_hook=Decimal).decode


# --- reading a column -------------------------------------------------------------------------------------------------

_ARRAY_OF = {
    199: 114,
    1000: 16,
    1005: 21,
    1007: 23,
    1009: 25,
    1014: 1042,
    1015: 1043,
    1016: 20,
    1021: 700,
    1022: 701,
    1041: 869,
    1115: 1114,
    1182: 1082,
    1185: 1184,
    1231: 1700,
    2951: 2950,
    3807: 3802,
}
_CLASS_OF: dict[int, type[str]] = {869: Inet, 1042: Padded, 1082: Day, 1114: Stamp, 1184: Zoned}


def read_column(raw: Any, oid: int) -> Value:
    """A column's decoded JSON as the SQL value it stands for."""
    if raw is None or isinstance(raw, Unknown):
        return raw
    if oid in (114, 3802):
        return Json(raw, oid == 3802)
    if oid == 1700:
        # A numeric without digits after the point is a JSON integer, and yet no integer: it divides otherwise.
        return Decimal(raw) if isinstance(raw, int) else raw
    if oid in (700, 701):
        return float(raw) if not isinstance(raw, str) else OPAQUE
    if kind := _CLASS_OF.get(oid):
        return kind(raw) if isinstance(raw, str) else OPAQUE
    if element := _ARRAY_OF.get(oid):
        return [read_column(item, element) for item in raw] if is_list(raw) else OPAQUE
    return raw


# --- printing ---------------------------------------------------------------------------------------------------------


def to_text(value: Value) -> Value:
    """``value::text``; a Zoned stays one, because its text is the session's business."""
    match value:
        case Padded():
            return value.rstrip(" ")
        case Inet():
            return str(value) if "/" in value else f"{value}/{128 if ':' in value else 32}"
        case bool():
            return "true" if value else "false"
        case _:
            return output(value)


def output(value: Value) -> Value:
    """The value as its type's output function prints it, which is what format() and concat() use."""
    match value:
        case None | Unknown() | Holes() | Zoned():
            return value
        case Stamp():
            return value.replace("T", " ", 1)
        case str():
            return str(value)
        case bool():
            return "t" if value else "f"
        case int():
            return str(value)
        case Decimal():
            return number_text(value)
        case float():
            return _float_text(value)
        case Json():
            return jsonb_text(value.value) if value.binary else OPAQUE
        case Bag():
            return OPAQUE
        case list():
            return _array_text(cast("list[Any]", value))
        case dict():
            return _hstore_text(cast("dict[str, Any]", value))
        case _:
            return OPAQUE


def _float_text(value: float) -> Value:
    if not math.isfinite(value):
        return OPAQUE
    if value == int(value) and abs(value) < 1e15:
        return f"{'-' if str(value).startswith('-') else ''}{abs(int(value))}"
    text = repr(value)
    # Python and PostgreSQL both print the shortest digits that read back; they part where the exponent starts.
    return text if 1e-4 <= abs(value) < 1e15 and "e" not in text else OPAQUE


def jsonb_text(value: Any) -> Value:
    """jsonb's own text: keys by length, then bytes; one blank after comma and colon."""
    match value:
        case Unknown():
            return value
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case Decimal():
            return number_text(value)
        case int():
            return str(value)
        case float():
            return _float_text(value)
        case str():
            return _json_string(value)
        case list():
            items = [jsonb_text(item) for item in cast("list[Any]", value)]
            return _first_unknown(items) or "[" + ", ".join(items) + "]"
        case dict():
            known = cast("dict[str, Any]", value)
            pairs = [(key, jsonb_text(known[key])) for key in sorted(known, key=jsonb_order)]
            return (
                _first_unknown([text for _, text in pairs])
                or "{" + ", ".join(f"{_json_string(key)}: {text}" for key, text in pairs) + "}"
            )
        case _:
            return OPAQUE


def jsonb_order(key: str) -> tuple[int, bytes]:
    """How jsonb stores, prints and hands out its keys: the shorter first."""
    raw = key.encode()
    return len(raw), raw


_encode_string = msgspec.json.Encoder().encode


def _json_string(text: str) -> str:
    return _encode_string(text).decode()


def _first_unknown(values: list[Value]) -> Unknown | None:
    return next((value for value in values if isinstance(value, Unknown)), None)


_PLAIN_ELEMENT = re.compile(r'[^\s{},"\\]+')


def _array_text(items: list[Any]) -> Value:
    parts: list[str] = []
    for item in items:
        if item is None:
            parts.append("NULL")
            continue
        text = _array_text(cast("list[Any]", item)) if isinstance(item, list) else output(item)
        if not isinstance(text, str) or isinstance(text, Zoned):
            return OPAQUE
        if isinstance(item, list) or (_PLAIN_ELEMENT.fullmatch(text) and text.upper() != "NULL"):
            parts.append(text)
        else:
            parts.append('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return "{" + ",".join(parts) + "}"


def _hstore_text(pairs: dict[str, Any]) -> Value:
    if any(isinstance(value, Unknown) for value in pairs.values()):
        return OPAQUE

    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return ", ".join(
        f"{quote(key)}=>{'NULL' if pairs[key] is None else quote(pairs[key])}" for key in sorted(pairs, key=jsonb_order)
    )


def to_json(value: Value, binary: bool = True) -> Any:
    """``to_jsonb(value)``, decoded: what goes inside a Json."""
    match value:
        case Json():
            return value.value
        case RowValue():
            return value.columns
        case Holes():
            return unknown(value.why)
        case list():
            return [to_json(item, binary) for item in cast("list[Any]", value)]
        case float():
            text = _float_text(value)
            return Decimal(text) if isinstance(text, str) else OPAQUE
        case _:
            return value


# --- moments ----------------------------------------------------------------------------------------------------------

_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d{1,6})?(Z|[+-]\d\d(?::?\d\d)?)")


def instant(text: str) -> str | None:
    """The moment that a timestamp with an offset names, in one spelling; None when the text is none."""
    if len(text) < 20 or text[4] != "-" or text[10] not in "T ":
        return None
    found = _INSTANT.fullmatch(text)
    if found is None:
        return None
    offset = found[4]
    if offset in ("+00:00", "+00", "Z"):
        fraction = (found[3] or "").rstrip("0").rstrip(".")
        return f"{found[1]}T{found[2]}{fraction}Z"
    if len(offset) == 3:
        offset += ":00"
    fraction = found[3].ljust(7, "0") if found[3] else ""
    try:
        moment = datetime.fromisoformat(f"{found[1]}T{found[2]}{fraction}{offset}")
    except ValueError:
        return None
    moment = moment.astimezone(UTC)
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


# --- casting ----------------------------------------------------------------------------------------------------------

_TEXT_TYPES = frozenset(("text", "varchar", "character varying", "name", "citext"))
_INTEGERS = {"int2": 16, "smallint": 16, "int4": 32, "int": 32, "integer": 32, "int8": 64, "bigint": 64}
_TRUE_WORDS = frozenset(("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"))
_FALSE_WORDS = frozenset(("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"))


def cast_to(value: Value, kind: str, modifiers: tuple[int, ...] = ()) -> Value:
    """``value::kind``, or Unknown where the answer depends on the session or on a type that we do not follow."""
    if value is None or isinstance(value, Unknown):
        return value
    if kind in _TEXT_TYPES:
        text = to_text(value)
        if modifiers and isinstance(text, str) and not isinstance(text, Zoned):
            return text[: modifiers[0]]
        return text if not modifiers or isinstance(text, Unknown) else unknown(Why.OPAQUE)
    if isinstance(value, Holes):
        return unknown(value.why)
    if kind.endswith("[]"):
        return _cast_array(value, kind[:-2])
    if kind in _INTEGERS:
        return _to_integer(value)
    if kind in ("numeric", "decimal"):
        number = _to_number(value)
        return round_half_up(number, modifiers[1] if len(modifiers) > 1 else 0) if modifiers else number
    if kind in ("float8", "float4", "double precision", "real"):
        number = _to_number(value)
        return float(number) if isinstance(number, int | Decimal) else number
    if kind in ("bool", "boolean"):
        return _to_boolean(value)
    if kind in ("jsonb", "json"):
        return _cast_json(value, kind == "jsonb")
    if kind == "uuid":
        return value.lower() if isinstance(value, str) else OPAQUE
    if kind in ("bpchar", "char", "character"):
        text = to_text(value)
        return Padded(text[: modifiers[0]].ljust(modifiers[0]) if modifiers else text) if type(text) is str else OPAQUE
    if kind in ("timestamptz", "timestamp with time zone"):
        return Zoned(value) if isinstance(value, str) and instant(value) is not None else OPAQUE
    if kind in ("timestamp", "timestamp without time zone"):
        if isinstance(value, Day):
            return Stamp(f"{value}T00:00:00")
        if type(value) is str and re.fullmatch(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d*[1-9])?", value):
            return Stamp(value.replace(" ", "T"))
        return value if isinstance(value, Stamp) else OPAQUE
    if kind == "date":
        if isinstance(value, Stamp):
            return Day(value[:10])
        return Day(value) if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value) else OPAQUE
    if kind in ("inet", "cidr"):
        return Inet(value) if isinstance(value, str) else OPAQUE
    if kind == "hstore":
        return value if is_object(value) else OPAQUE
    # An enum, a domain over text: its label is its text. A row keeps its type. Anything else is not followed.
    return value if type(value) is str or isinstance(value, RowValue) else OPAQUE


def _cast_array(value: Value, element: str) -> Value:
    if isinstance(value, list):
        return [cast_to(item, element) for item in cast("list[Any]", value)]
    if isinstance(value, str):
        parsed = parse_array(value)
        return OPAQUE if parsed is None else [cast_to(item, element) for item in parsed]
    return OPAQUE


def parse_array(text: str) -> list[str | None] | None:
    """A one-dimensional array literal; None for any other."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    if text == "{}":
        return []
    items: list[str | None] = []
    position = 1
    token = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^{},"\\]+?))\s*([,}])', re.DOTALL)
    while position < len(text):
        found = token.match(text, position)
        if found is None:
            return None
        if found[1] is not None:
            items.append(re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL))
        else:
            items.append(None if found[2].upper() == "NULL" else found[2])
        position = found.end()
        if found[3] == "}":
            return items if position == len(text) else None
    return None


def _cast_json(value: Value, binary: bool) -> Value:
    match value:
        case Json():
            return Json(value.value, binary)
        case dict():
            return Json(value, binary)
        case str():
            try:
                return Json(decode_json(value.encode()), binary)
            except msgspec.DecodeError:
                return OPAQUE
        case _:
            return OPAQUE


def _to_number(value: Value) -> Value:
    if isinstance(value, Json):
        value = value.value
    match value:
        case bool():
            return OPAQUE
        case int():
            return Decimal(value)
        case Decimal():
            return value
        case float():
            text = _float_text(value)
            return Decimal(text) if isinstance(text, str) else OPAQUE
        case str():
            try:
                number = Decimal(value.strip())
            except InvalidOperation:
                return OPAQUE
            return number if number.is_finite() else OPAQUE
        case Unknown():
            return value
        case _:
            return OPAQUE


def _to_integer(value: Value) -> Value:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return round(value)  # half to even, as float8 to integer is
    number = _to_number(value)
    return int(round_half_up(number, 0)) if isinstance(number, Decimal) else number


def _to_boolean(value: Value) -> Value:
    match value:
        case bool():
            return value
        case int():
            return value != 0
        case str():
            word = value.strip().lower()
            return True if word in _TRUE_WORDS else False if word in _FALSE_WORDS else OPAQUE
        case Json():
            return value.value if isinstance(value.value, bool) else OPAQUE
        case _:
            return OPAQUE
