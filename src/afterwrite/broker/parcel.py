"""A batch of captured changes as messages, and back: what a store is given is the same as without a broker between.

::

    Batch ─▶ Opening, chunks of activities in parts that they share ─▶ one string of bytes ─▶ cut into messages
                                                                                                    │
    Batch ◀── Parcel, in memory or a temporary file ◀── message after message, each with its number ◀┘

A batch may be one transaction of any length, and an activity longer than a message: so it is bytes that are cut, and
not activities that are shared out. Nothing here talks to anybody.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused
from afterwrite.record import (
    Activities,
    Activity,
    Batch,
    Checkpoint,
    Entries,
    Entry,
    Lsn,
    Origin,
    Receipt,
    Sort,
    TransactionContext,
    origin_values,
    sort_values,
    to_activity,
    to_entries,
)
from afterwrite.recorder.deliver import Unstorable
from afterwrite.store.lines import storable

PART = "Afterwrite-Part"
ROLLUP = "Nats-Rollup"
_VERSION = 1
_CHUNK_ROWS, _CHUNK_BYTES = 500, 256 << 10
_LENGTH = 8
_IN_MEMORY = 16 << 20
# Of these errors the same batch may be stored later: rolled back, no room, a lock, an operator's doing.
_PASSING = ("40", "53", "55P03", "57")


class Opening(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a batch is beside its activities.

    ``store`` is the one that it is for, and ``follows`` the checkpoint that must be reached before it: a batch that
    another store, or one that was set back, takes would leave a gap that nobody knows.
    """

    version: int
    source: str
    store: str
    follows: Lsn | None
    rows: int
    transactions: int
    first_lsn: Lsn | None
    last_lsn: Lsn | None
    checkpoint: Checkpoint | None
    contexts: tuple[TransactionContext, ...]
    moments: tuple[datetime, ...] | None


class _Origin(Origin, frozen=True, kw_only=True, gc=False, array_like=True):
    """The same without its words."""


class _Sort(Sort, frozen=True, kw_only=True, gc=False, array_like=True):
    """The same without its words."""


_Line = tuple[
    int, int, str, int | None, str | None, str | None, float | None, tuple[str, ...] | None, bytes | None,
    bytes | None, bytes | None,
]  # fmt: skip


class _Chunk(msgspec.Struct, frozen=True, array_like=True):
    origins: list[_Origin]
    sorts: list[_Sort]
    lines: list[_Line]


def _to_wire(value: Any) -> Any:
    if isinstance(value, Lsn):
        return int(value)
    raise NotImplementedError(f"a {type(value).__name__} does not go by the broker")


def _from_wire(kind: type, value: Any) -> Any:
    if kind is Lsn:
        return Lsn(value)
    raise NotImplementedError(f"a {kind.__name__} does not come by the broker")


_encode = msgspec.msgpack.Encoder(enc_hook=_to_wire).encode
_decode_opening = msgspec.msgpack.Decoder(Opening, dec_hook=_from_wire).decode
_decode_chunk = msgspec.msgpack.Decoder(_Chunk, dec_hook=_from_wire).decode


class Part(msgspec.Struct, frozen=True):
    """Which part of which publication of a batch a message is."""

    parcel: str
    number: int
    last: bool

    def header(self) -> str:
        return f"{self.parcel} {self.number}{' last' if self.last else ''}"


def read_part(header: str) -> Part | None:
    """What the header says; None for what is none of ours."""
    parcel, _, rest = header.partition(" ")
    number, _, last = rest.partition(" ")
    return Part(parcel, int(number), bool(last)) if parcel and number.isdecimal() else None


def wrap(batch: Batch, *, store: str, follows: Lsn | None, length: int) -> Iterator[tuple[bytes, bool]]:
    """The batch cut into pieces of this length at most, each with whether it is the last."""
    rest = bytearray()
    for frame in _frames(batch, store=store, follows=follows):
        rest += len(frame).to_bytes(_LENGTH, "big")
        rest += frame
        # One piece is held back: the last one is to say so.
        start = 0
        while len(rest) - start > length:
            yield bytes(rest[start : start + length]), False
            start += length
        del rest[:start]
    yield bytes(rest), True


def _frames(batch: Batch, *, store: str, follows: Lsn | None) -> Iterator[bytes]:
    yield _encode(
        Opening(
            version=_VERSION,
            source=batch.source,
            store=store,
            follows=follows,
            rows=len(batch.activities),
            transactions=batch.transactions,
            first_lsn=batch.first_lsn,
            last_lsn=batch.last_lsn,
            checkpoint=batch.checkpoint,
            contexts=tuple(batch.contexts),
            moments=None if batch.moments is None else tuple(batch.moments),
        )
    )
    some: list[Entry] = []
    size = 0
    for entry in _entries(batch.activities):
        some.append(entry)
        size += sum(len(json) for json in map(_bytes, entry[8:11]) if json is not None)
        if len(some) == _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield _encode_chunk(some)
            some, size = [], 0
    if some:
        yield _encode_chunk(some)


def _entries(activities: Activities) -> Iterator[Entry]:
    return activities.entries() if isinstance(activities, Entries) else to_entries(activities)


def _encode_chunk(entries: Iterable[Entry]) -> bytes:
    try:
        return _encode(_share(entries))
    except UnicodeEncodeError:
        # A text that is none: what the store would make of it without us.
        return _encode(_share(to_entries(storable(to_activity(entry)) for entry in entries)))


def _share(entries: Iterable[Entry]) -> tuple[object, ...]:
    origins: list[tuple[object, ...]] = []
    sorts: list[tuple[object, ...]] = []
    numbers: dict[int, int] = {}
    # Held as long as their numbers count: another object may have the place of one that is gone.
    held: list[object] = []
    lines: list[tuple[object, ...]] = []

    def number(part: object, listed: list[tuple[object, ...]], values: Callable[[Any], tuple[object, ...]]) -> int:
        found = numbers.get(id(part))
        if found is None:
            found = numbers[id(part)] = len(listed)
            listed.append(values(part))
            held.append(part)
        return found

    for origin, sort, *own in entries:
        lines.append(
            (
                number(origin, origins, origin_values),
                number(sort, sorts, sort_values),
                *own[:6],
                *map(_bytes, own[6:]),
            )
        )
    return origins, sorts, lines


def _bytes(json: Any) -> bytes | None:
    return None if json is None else bytes(json)


class Parcel:
    """The parts of a batch as they come, in memory, or beyond some megabytes in a temporary file in ``folder``."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        # It is closed with the parcel.
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._parts = 0

    @property
    def parts(self) -> int:
        """How many there are."""
        return self._parts

    def is_next(self, part: Part) -> bool:
        """Whether this is the one after the last."""
        return part.parcel == self.name and part.number == self._parts + 1

    def add(self, body: bytes) -> None:
        """One more part; raises AfterwriteError where the disk has no room for it."""
        try:
            self._file.write(body)
        except OSError as error:
            raise AfterwriteError(
                f"a long batch cannot be put aside: {error}", remedy="make room where spill_dir is, or move it"
            ) from error
        self._parts += 1

    def open(self) -> tuple[Opening, Batch]:
        """What is in it, all parts being there; raises ValueError for what no capture of this version has sent."""
        frame = self._frame(0)
        opening = _decode_opening(frame)
        if opening.version != _VERSION:
            raise ValueError(f"it is of version {opening.version}, and this writer reads {_VERSION}")
        activities = _Received(self._frame, opening.rows, _LENGTH + len(frame))
        batch = Batch(
            source=opening.source,
            # What moves no checkpoint came as a list, which the store brings into its own order.
            activities=activities if opening.checkpoint else list(activities),
            transactions=opening.transactions,
            first_lsn=opening.first_lsn,
            last_lsn=opening.last_lsn,
            checkpoint=opening.checkpoint,
            contexts=opening.contexts,
            moments=None if opening.moments is None else frozenset(opening.moments),
        )
        return opening, batch

    def close(self) -> None:
        self._file.close()

    def _frame(self, at: int) -> bytes:
        """What begins at this place."""
        self._file.seek(at)
        head = self._file.read(_LENGTH)
        frame = self._file.read(int.from_bytes(head, "big"))
        if len(head) < _LENGTH or len(frame) < int.from_bytes(head, "big"):
            raise ValueError("it ends before it is told")
        return frame


class _Received:
    """Activities in parts, read anew each time."""

    def __init__(self, read: Callable[[int], bytes], rows: int, begin: int) -> None:
        self._read, self._rows, self._begin = read, rows, begin

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[Activity]:
        return map(to_activity, self.entries())

    def entries(self) -> Iterator[Entry]:
        at, left = self._begin, self._rows
        while left > 0:
            frame = self._read(at)
            at += _LENGTH + len(frame)
            chunk = _decode_chunk(frame)
            left -= len(chunk.lines)
            for origin, sort, id, ordinal, entity_id, summary, duration_ms, changed, *jsons in chunk.lines:
                before, after, metadata = jsons
                yield (
                    chunk.origins[origin], chunk.sorts[sort], id, ordinal, entity_id, summary, duration_ms, changed,
                    before, after, metadata,
                )  # fmt: skip


class Trouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error on its way from a writer to a capture."""

    kind: str
    text: str
    remedy: str | None = None
    sqlstate: str | None = None


class Standing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A writer's answer of how far a source is stored, and in which store; or why it cannot tell."""

    identity: str = ""
    checkpoint: Checkpoint | None = None
    trouble: Trouble | None = None


class Word(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A writer's word about a batch: stored, refused, or that it is at it: the parts it has, what is in its way."""

    parcel: str
    parts: int = 0
    receipt: Receipt | None = None
    refused: Trouble | None = None
    hindered: str | None = None


def encode_word(word: Word | Standing) -> bytes:
    return msgspec.msgpack.encode(word, enc_hook=_to_wire)


decode_word = msgspec.msgpack.Decoder(Word, dec_hook=_from_wire).decode
decode_standing = msgspec.msgpack.Decoder(Standing, dec_hook=_from_wire).decode


def is_final(error: Exception) -> bool:
    """Whether the store will not take this batch later either, as far as its error says."""
    match error:
        case ConnectionLost():
            return False
        case DatabaseError():
            return not (error.sqlstate or "").startswith(_PASSING)
        case Refused() | Unstorable() | ValueError() | ArithmeticError() | LookupError() | msgspec.MsgspecError():
            return True
        case RecursionError():
            return True
        case _:
            return False


def trouble_of(error: Exception) -> Trouble:
    """The error in words."""
    match error:
        case Refused():
            kind = "refused"
        case ConnectionLost():
            kind = "lost"
        case DatabaseError():
            kind = "database"
        case Unstorable() | ValueError() | ArithmeticError() | LookupError() | msgspec.MsgspecError():
            kind = "value"
        case RecursionError():
            kind = "value"
        case _:
            kind = "other"
    remedy = error.remedy if isinstance(error, AfterwriteError) else None
    sqlstate = error.sqlstate if isinstance(error, DatabaseError) else None
    return Trouble(kind=kind, text=str(error) or repr(error), remedy=remedy, sqlstate=sqlstate)


def error_of(trouble: Trouble) -> Exception:
    """The same error, as if the store had been asked from here."""
    text = f"the writer says: {trouble.text}"
    match trouble.kind:
        case "refused":
            return Refused(trouble.text, remedy=trouble.remedy)
        case "database":
            return DatabaseError(text, remedy=trouble.remedy, sqlstate=trouble.sqlstate)
        case "value":
            return ValueError(text)
        case _:
            # What it cannot do now: it is asked again.
            return ConnectionLost(text, remedy=trouble.remedy)
