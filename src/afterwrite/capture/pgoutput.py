"""The pgoutput protocol, version 1: bytes in, message values out, and no I/O.

The layouts are those of the PostgreSQL documentation, "Logical Replication Message Formats". A two-phase transaction
arrives whole at its COMMIT PREPARED, because ``two_phase`` is not asked for; streaming of unfinished ones needs
version 2 and is not asked for either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from struct import Struct, error
from typing import Final

import msgspec

from afterwrite.capture.transaction import Column, Relation
from afterwrite.capture.values import Encoder
from afterwrite.errors import AfterwriteError
from afterwrite.record import Lsn, from_pg_microseconds

Value = bytes | None
"""A column's text, or None for SQL NULL."""

Image = tuple[list[bytes], list[Value]]
"""A row, column by column: what the encoders made of its texts (``null`` where there is none), and the texts."""

UNCHANGED: Final = b"\0unchanged"
"""Stands for a TOASTed value that the stream leaves out; compare with ``is``. No text holds a zero byte."""

RELATION_TAG: Final = ord("R")
ROW_TAGS: Final = frozenset(b"IUD")


class Begin(msgspec.Struct, frozen=True, gc=False):
    """``committed_at`` is in microseconds since 2000-01-01 UTC; ``commit_lsn`` is where the commit record starts."""

    commit_lsn: Lsn
    committed_at: int
    xid: int


class Commit(msgspec.Struct, frozen=True, gc=False):
    commit_lsn: Lsn
    end_lsn: Lsn
    committed_at: datetime


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The transaction was itself replicated from there."""

    lsn: Lsn
    name: str


class TypeName(msgspec.Struct, frozen=True, gc=False):
    oid: int
    schema: str
    name: str


class Truncate(msgspec.Struct, frozen=True, gc=False):
    relation_oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(msgspec.Struct, frozen=True, gc=False):
    """What pg_logical_emit_message wrote. One that is not transactional comes between transactions."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


AnyMessage = (
    Begin | Commit | Origin | Relation | TypeName | Truncate | LogicalMessage
)  # fmt: skip


def decode(data: bytes) -> AnyMessage:
    """Read any message but a row's; raises AfterwriteError that says which message and where it breaks off."""
    reader = _READERS.get(data[0]) if data else None
    if reader is None:
        raise AfterwriteError(
            f"the stream holds a message of an unknown kind: {data[:16]!r}, {len(data)} bytes long",
            remedy="the slot's plugin must be pgoutput (`afterwrite doctor` checks); if it is, the defect is ours",
        )
    try:
        message, end = reader(data)
        _end(data, end)
    except (error, IndexError, ValueError) as cause:
        raise broken(data, cause) from cause
    return message


def broken(data: bytes, cause: Exception, where: str = "the stream") -> AfterwriteError:
    """The error for a message that breaks off or is malformed."""
    return AfterwriteError(
        f"a pgoutput message {chr(data[0])!r} of {len(data)} bytes for {where} cannot be read: {cause}; it starts"
        f" {data[:24]!r}",
        remedy="this is a defect of afterwrite: report it with the server's version",
    )


def relation_key(data: bytes) -> bytes:
    """Which relation a row's message, or the relation's own, is about: its OID's bytes, to look it up by."""
    return data[1:5]


def read_insert(data: bytes, encoders: Sequence[Encoder]) -> Image:
    """The new row. Like its sisters raises struct.error, IndexError or ValueError, for ``broken`` to explain."""
    _expect(data, 5, _NEW)
    new, end = _read_tuple(data, 6, encoders)
    _end(data, end)
    return new


def read_update(data: bytes, encoders: Sequence[Encoder]) -> tuple[Image | None, bool, Image]:
    """The old row or key, None when no column of the replica identity changed; whether it is a row (O) and not a key
    (K); and the new row."""
    kind = data[5]
    if kind == _NEW:
        new, end = _read_tuple(data, 6, encoders)
        _end(data, end)
        return None, False, new
    if kind not in (_OLD, _KEY):
        raise ValueError(f"a tuple of kind {chr(kind)!r} at byte 5")
    old, position = _read_tuple(data, 6, encoders)
    _expect(data, position, _NEW)
    new, end = _read_tuple(data, position + 1, encoders, old)
    _end(data, end)
    return old, kind == _OLD, new


def read_delete(data: bytes, encoders: Sequence[Encoder]) -> tuple[Image, bool]:
    """The old row or key, and whether it is a row (O)."""
    kind = data[5]
    if kind not in (_OLD, _KEY):
        raise ValueError(f"a tuple of kind {chr(kind)!r} at byte 5")
    old, end = _read_tuple(data, 6, encoders)
    _end(data, end)
    return old, kind == _OLD


_int16 = Struct("!h").unpack_from
_int32 = Struct("!i").unpack_from
_uint32 = Struct("!I").unpack_from
_begin = Struct("!QqI").unpack_from
_commit = Struct("!BQQq").unpack_from
_origin = Struct("!Q").unpack_from
_column = Struct("!Ii").unpack_from
_message = Struct("!BQ").unpack_from

_TEXT = ord("t")
_NULL = ord("n")
_OMITTED = ord("u")
_NEW = ord("N")
_OLD = ord("O")
_KEY = ord("K")
_JSON_NULL = b"null"


def _read_tuple(
    data: bytes, position: int, encoders: Sequence[Encoder], known: Image | None = None
) -> tuple[Image, int]:
    """TupleData at ``position``, encoded, and where it ends; what is equal in ``known`` is taken from there.

    The hottest loops of the house: keep them flat.
    """
    (count,) = _int16(data, position)
    if count != len(encoders):
        raise ValueError(f"a row of {count} columns, where {len(encoders)} are described")
    position += 2
    parts: list[bytes] = []
    values: list[Value] = []
    if known is None:
        for encode in encoders:
            if data[position] == _TEXT:
                start = position + 5
                position = start + _int32(data, position + 1)[0]
                value = data[start:position]
                values.append(value)
                parts.append(encode(value))
            else:
                values.append(_no_text(data, position))
                parts.append(_JSON_NULL)
                position += 1
    else:
        for encode, known_part, known_value in zip(encoders, known[0], known[1], strict=True):
            if data[position] == _TEXT:
                start = position + 5
                position = start + _int32(data, position + 1)[0]
                value = data[start:position]
                values.append(value)
                # Most columns of an update stay as they were.
                parts.append(known_part if value == known_value else encode(value))
            else:
                values.append(_no_text(data, position))
                parts.append(_JSON_NULL)
                position += 1
    return (parts, values), position


def _no_text(data: bytes, position: int) -> Value:
    kind = data[position]
    if kind == _NULL:
        return None
    if kind == _OMITTED:
        return UNCHANGED
    raise ValueError(f"a column of kind {chr(kind)!r} at byte {position}")


def _read_begin(data: bytes) -> tuple[Begin, int]:
    lsn, at, xid = _begin(data, 1)
    return Begin(Lsn(lsn), at, xid), 21


def _read_commit(data: bytes) -> tuple[Commit, int]:
    _, lsn, end, at = _commit(data, 1)
    return Commit(Lsn(lsn), Lsn(end), from_pg_microseconds(at)), 26


def _read_origin(data: bytes) -> tuple[Origin, int]:
    (lsn,) = _origin(data, 1)
    name, end = _read_string(data, 9)
    return Origin(Lsn(lsn), name), end


def _read_relation(data: bytes) -> tuple[Relation, int]:
    (oid,) = _uint32(data, 1)
    schema, position = _read_string(data, 5)
    table, position = _read_string(data, position)
    identity = chr(data[position])
    (count,) = _int16(data, position + 1)
    position += 3
    columns: list[Column] = []
    for _ in range(count):
        key = bool(data[position] & 1)
        name, position = _read_string(data, position + 1)
        type_oid, modifier = _column(data, position)
        position += 8
        columns.append(Column(name, type_oid, modifier, key))
    # An empty schema means pg_catalog.
    return Relation(oid, schema or "pg_catalog", table, identity, tuple(columns)), position


def _read_type(data: bytes) -> tuple[TypeName, int]:
    (oid,) = _uint32(data, 1)
    schema, position = _read_string(data, 5)
    name, position = _read_string(data, position)
    return TypeName(oid, schema or "pg_catalog", name), position


def _read_truncate(data: bytes) -> tuple[Truncate, int]:
    (count,) = _int32(data, 1)
    options = data[5]
    oids = tuple(_uint32(data, 6 + 4 * index)[0] for index in range(count))
    return Truncate(oids, bool(options & 1), bool(options & 2)), 6 + 4 * count


def _read_message(data: bytes) -> tuple[LogicalMessage, int]:
    flags, lsn = _message(data, 1)
    prefix, position = _read_string(data, 10)
    (length,) = _int32(data, position)
    start = position + 4
    return LogicalMessage(bool(flags & 1), Lsn(lsn), prefix, data[start : start + length]), start + length


def _read_string(data: bytes, position: int) -> tuple[str, int]:
    end = data.index(b"\0", position)
    return data[position:end].decode(errors="backslashreplace"), end + 1


def _end(data: bytes, position: int) -> None:
    if position != len(data):
        raise ValueError(f"it should end at byte {position}")


def _expect(data: bytes, position: int, kind: int) -> None:
    if data[position] != kind:
        raise ValueError(f"{chr(data[position])!r} instead of {chr(kind)!r} at byte {position}")


_READERS: dict[int, Callable[[bytes], tuple[AnyMessage, int]]] = {
    ord("B"): _read_begin,
    ord("C"): _read_commit,
    ord("O"): _read_origin,
    RELATION_TAG: _read_relation,
    ord("Y"): _read_type,
    ord("T"): _read_truncate,
    ord("M"): _read_message,
}
