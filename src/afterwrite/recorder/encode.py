"""Anything that an application may call metadata, as one JSON object, made at the call: arguments may change later.

What JSON has no word for gets the nearest one, in a defined way:

================================  ==========================================================================
datetime, date, UUID, Decimal     text; a datetime without a zone stays as it is written
bytes                             base64
Enum, dataclass, Struct, pydantic their value, an object of their fields
an exception                      ``{"type": "ValueError", "message": "…"}``
NaN, infinity                     null
another object                    its own ``str()``, or its class's name where it has none; never its fields
a lone surrogate                  ``�``
a key that is no text             its ``str()``
an object inside itself           ``"<cycle>"``; deeper than 64 levels where JSON cannot follow: ``"<deeper>"``
more bytes than the limit         the members that fit, long texts cut, and ``"cut": {"bytes": …, "left_out": […]}``
no mapping at all                 ``{"value": …}``
================================  ==========================================================================

In strict mode what is no data (an unknown object, a cycle, a surrogate, too much) is refused at the call instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from math import isfinite
from os import PathLike
from typing import Any, cast

import msgspec

from afterwrite.errors import UsageError

# Texts beside metadata: they go into indexed columns, or onto one line of a page.
LONGEST_TEXT = 10_000
_LONGEST_STR = 1_000
_LONGEST_KEPT = 2_000
_DEEPEST = 64
_MOST_NODES = 50_000
_MOST_NAMES = 20
_MARK_BYTES = 128
_LARGEST_INT_BITS = 8_192
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_SURROGATE = re.compile("[\ud800-\udfff]")


class NotDataError(Exception):
    """An object that JSON has no word for, in strict mode."""


def encode_metadata(value: object, limit: int, *, strict: bool = False) -> tuple[bytes, bool]:
    """The JSON object, and whether something had to be mended for it. Raises UsageError in strict mode instead."""
    try:
        raw = (_strict if strict else _lenient).encode(value)
        mended = False
    except Exception as error:
        if strict:
            raise UsageError(
                f"metadata cannot be encoded: {type(error).__name__}: {str(error)[:200]}",
                remedy="give it what JSON knows, without cycles or lone surrogates",
            ) from error
        raw, mended = _encode_slowly(value), True
    if raw[:1] != b"{":
        if strict:
            raise UsageError(f"metadata is no mapping: {type(value).__name__}", remedy="give it names")
        raw, mended = b'{"value":' + raw + b"}", True
    if len(raw) > limit:
        if strict:
            raise UsageError(f"metadata of {len(raw):,} bytes is beyond {limit:,}", remedy="metadata_bytes allows more")
        raw, mended = cut(raw, limit), True
    return raw, mended


def clean_text(value: object, longest: int = LONGEST_TEXT) -> str:
    """Text of anything, without lone surrogates and not longer than that."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:
        text = _name(value)
    if len(text) > longest:
        text = f"{text[: longest - 1]}…"
    return text if text.isascii() else _SURROGATE.sub("�", text)


def to_moment(value: datetime) -> datetime:
    """That moment with a zone; one without is taken as UTC, and one that UTC has no year for as the nearest it has."""
    if value.tzinfo is None or value.utcoffset() is None:
        return value.replace(tzinfo=UTC)
    try:
        value.astimezone(UTC)
    except OverflowError:
        return _FIRST if value.year == _FIRST.year else _LAST
    return value


def to_milliseconds(value: object) -> float | None:
    """A duration as a number, None where it is none."""
    with suppress(TypeError, ValueError, OverflowError):
        number = float(cast("float", value))
        return number if isfinite(number) else None
    return None


def cut(raw: bytes, limit: int) -> bytes:
    """As many members of this JSON object as fit, with a mark that says what it was."""
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    kept: dict[str, msgspec.Raw] = {}
    names: list[str] = []
    left = limit - _MARK_BYTES - len(str(len(raw)))
    for name, whole in members.items():
        member = _cut_member(bytes(whole)) if len(bytes(whole)) > max(_LONGEST_KEPT, left // 2) else whole
        size = len(bytes(member))
        room = len(msgspec.json.encode(name)) + size + 2
        if room <= left and size:
            kept[name] = member
            left -= room
        else:
            short = name[:60]
            room = len(msgspec.json.encode(short)) + 1
            if len(names) < _MOST_NAMES and room <= left:
                names.append(short)
                left -= room
    return msgspec.json.encode({**kept, "cut": {"bytes": len(raw), "left_out": names}})


def _cut_member(member: bytes) -> msgspec.Raw:
    """The beginning of a text; nothing of another value."""
    if member[:1] != b'"':
        return msgspec.Raw(b"")
    text = msgspec.json.decode(member, type=str)
    return msgspec.Raw(msgspec.json.encode(f"{text[:_LONGEST_STR]}…"))


def _describe(value: object) -> object:
    """What stands for an object that JSON has no word for; raises NotDataError where only its class's name would."""
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": clean_text(value, _LONGEST_STR)}
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    if isinstance(value, (Sequence, Set)) and not isinstance(value, range):
        return list(cast("Sequence[object]", value))
    if isinstance(value, PathLike):
        return str(cast("PathLike[str]", value))
    dump = getattr(type(value), "model_dump", None)
    if callable(dump):
        return dump(value)
    if not isinstance(value, type) and type(value).__str__ is not object.__str__:
        return clean_text(value, _LONGEST_STR)
    raise NotDataError(f"{_name(value)} is no data")


def _describe_leniently(value: object) -> object:
    try:
        return _describe(value)
    except NotDataError:
        return _name(value)


def _name(value: object) -> str:
    kind = value if isinstance(value, type) else type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"


_strict = msgspec.json.Encoder(enc_hook=_describe)
_lenient = msgspec.json.Encoder(enc_hook=_describe_leniently)


def _encode_slowly(value: object) -> bytes:
    """What the quick way refused, piece by piece."""
    try:
        return msgspec.json.encode(_Walk().plain(value, 0))
    except Exception as error:
        # A mapping that another thread changes, a property that raises: what it was is all that can be said.
        return msgspec.json.encode({"unencodable": _name(value), "because": type(error).__name__})


class _Walk:
    """One pass over a value that gives only what JSON knows."""

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._nodes = 0

    def plain(self, value: object, depth: int) -> object:
        self._nodes += 1
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, str):
            return value if value.isascii() else _SURROGATE.sub("�", value)
        if isinstance(value, int):
            if -(2**63) <= value < 2**63:
                return value
            return str(value) if value.bit_length() < _LARGEST_INT_BITS else f"<int of {value.bit_length()} bits>"
        if self._nodes > _MOST_NODES or depth > _DEEPEST:
            return "<deeper>"
        if id(value) in self._inside:
            return "<cycle>"
        self._inside.add(id(value))
        try:
            return self._inner(value, depth)
        finally:
            self._inside.discard(id(value))

    def _inner(self, value: object, depth: int) -> object:
        if isinstance(value, Mapping):
            items = islice(tuple(cast("Mapping[object, object]", value).items()), _MOST_NODES)
            return {clean_text(key, _LONGEST_STR): self.plain(member, depth + 1) for key, member in items}
        if isinstance(value, (list, tuple, set, frozenset)):
            members = islice(tuple(cast("Sequence[object]", value)), _MOST_NODES)
            return [self.plain(member, depth + 1) for member in members]
        try:
            # One level by msgspec's own rules: dates, bytes, fields of dataclasses and Structs.
            known: Any = msgspec.to_builtins(value, enc_hook=_Opaque)
        except Exception:
            known = _fields(value)
        if isinstance(known, (_Opaque, type(value))):
            known = _describe_leniently(value)
        return self.plain(known, depth + 1)


class _Opaque:
    """An object that msgspec does not know, as its hook is given it."""

    def __init__(self, value: object) -> None:
        self.value = value


def _fields(value: object) -> object:
    fields = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", None)
    if fields and not isinstance(value, type):
        return {name: getattr(value, name, None) for name in fields}
    return _describe_leniently(value)
