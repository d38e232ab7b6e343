"""What an expected value looks like once it has landed in a legacy column: rounded, cast, in that column's JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from afterwrite.prove.compare import agrees, freeze, has_unknown
from afterwrite.prove.expression import Why
from afterwrite.prove.number import round_half_up
from afterwrite.prove.value import Holes, Inet, Json, Options, RowValue, Unknown, Value, Xid, cast_to, to_json, to_text


class Exact(msgspec.Struct, frozen=True, gc=False):
    """Known to the last digit: a scalar, ``value`` as it is hashed and compared."""

    value: Any


class Whole(msgspec.Struct, frozen=True, gc=False):
    """A document (or an array) known to the last digit, decoded."""

    value: Any


class Partly(msgspec.Struct, frozen=True, gc=False):
    """Known in parts: text with holes, an object with unknown members."""

    value: Any
    why: Why


class NotCompared(msgspec.Struct, frozen=True, gc=False):
    why: Why


Landed: TypeAlias = Exact | Whole | Partly | NotCompared
Lander: TypeAlias = Callable[[Value], Landed]

NULL = Exact(None)
_KINDS = {
    16: "boolean",
    20: "bigint",
    21: "smallint",
    23: "integer",
    700: "float8",
    701: "float8",
    869: "inet",
    1007: "integer[]",
    1009: "text[]",
    1015: "text[]",
    1016: "bigint[]",
    1082: "date",
    1114: "timestamp",
    1184: "timestamptz",
    1700: "numeric",
    2950: "uuid",
    2951: "uuid[]",
}
_JSON = {114: "json", 3802: "jsonb"}
_CHARACTER = 1042
_NUMERIC = 1700


class AnyOf(Holes):
    """What landed is one of several: ``options`` as they are compared."""

    __slots__ = ("options",)

    def __init__(self, options: tuple[Any, ...], why: Why) -> None:
        super().__init__((None,), why, nullable=None in options)
        self.options = options

    def matches(self, text: object) -> bool:
        return any(agrees(option, text) for option in self.options)


def lander(oid: int, modifier: int) -> Lander:
    """How a value lands in a column of this type."""
    land = _json_lander(_JSON[oid]) if oid in _JSON else _scalar_lander(oid, modifier)

    def land_any(value: Value) -> Landed:
        if not isinstance(value, Options):
            return land(value)
        landed = [land(option) for option in value.options]
        known = tuple(each.value for each in landed if isinstance(each, Exact | Whole))
        return Partly(AnyOf(known, value.why), value.why) if len(known) == len(landed) else NotCompared(value.why)

    return land_any


def _scalar_lander(oid: int, modifier: int) -> Lander:
    kind = _KINDS.get(oid)

    def land(value: Value) -> Landed:
        if value is None:
            return NULL
        if type(value) is str and kind is None and oid != _CHARACTER:
            return Exact(freeze(value))
        if isinstance(value, Unknown):
            return NotCompared(value.why)
        if isinstance(value, Xid):
            return Partly(value, value.why)
        if isinstance(value, dict):  # hstore
            return _document(value)
        if isinstance(value, RowValue):
            return NotCompared(Why.OPAQUE)
        stored = to_text(value) if kind is None else cast_to(value, kind)
        if isinstance(stored, Unknown):
            return NotCompared(stored.why)
        if isinstance(stored, Holes):
            return Partly(stored, stored.why)
        if oid == _NUMERIC and modifier >= 4:
            stored = round_half_up(stored, (modifier - 4) & 0x7FF)
        elif oid == _CHARACTER:
            stored = stored.rstrip(" ")
        elif isinstance(stored, Inet):
            stored = stored.removesuffix("/32").removesuffix("/128")
        plain = to_json(stored)
        return _document(plain) if isinstance(plain, list) else Exact(freeze(plain))

    return land


def _json_lander(kind: str) -> Lander:
    def land(value: Value) -> Landed:
        if value is None:
            return NULL
        document = value if isinstance(value, Json) else cast_to(value, kind)
        if isinstance(document, Json):
            return _document(document.value)
        return NotCompared(document.why)

    return land


def _document(value: Any) -> Landed:
    why = has_unknown(value)
    if why is not None:
        return NotCompared(why) if isinstance(value, Unknown) else Partly(value, why)
    return Whole(value)


def found(value: Any, oid: int) -> Any:
    """A scalar of a legacy row's decoded JSON, ready to be compared with what landed."""
    return freeze(value.rstrip(" ") if oid == _CHARACTER and isinstance(value, str) else value)
