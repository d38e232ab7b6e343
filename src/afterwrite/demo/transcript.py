"""What the application did, transaction by transaction, so that another database can be told the same.

One JSON line a committed transaction. ``number`` orders them: it is drawn after the last statement and before COMMIT,
while every row lock is held, so that of two transactions that touched one row the first has the smaller number. Values
that the database gave a new row (ids, the time of its making) are written down as the application saw them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec


class Made(msgspec.Struct, frozen=True, array_like=True, tag="insert"):
    """One INSERT statement, of one row or of many; ``columns`` are those that are given."""

    table: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]


class Changed(msgspec.Struct, frozen=True, array_like=True, tag="update"):
    """One UPDATE of one row; ``row`` tells it by its key."""

    table: str
    row: dict[str, Any]
    values: dict[str, Any]


class Removed(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """One DELETE of one row."""

    table: str
    row: dict[str, Any]


class Missed(msgspec.Struct, frozen=True, array_like=True, tag="missed"):
    """A statement that found no row: statement triggers fire all the same."""

    name: str
    params: dict[str, Any]


Deed = Made | Changed | Removed | Missed


class Played(msgspec.Struct, frozen=True):
    """A committed transaction: who acted, by which claims, and what was done."""

    number: int
    claims: str
    deeds: list[Deed]


_encoder = msgspec.json.Encoder(enc_hook=str, decimal_format="string")
_decoder = msgspec.json.Decoder(Played)


class Transcript:
    """Takes down what is committed; safe between threads. ``given`` are, by table, columns that the database fills."""

    def __init__(self, path: Path, given: Mapping[str, Sequence[str]]) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.given = given

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def draw(self) -> int:
        """The number of a transaction that is about to commit."""
        return next(self._numbers)

    def take_down(self, played: Played) -> None:
        line = _encoder.encode(played) + b"\n"
        with self._lock:
            self._file.write(line)


def read_transcript(path: Path) -> Iterator[Played]:
    """The transactions in an order in which they can be done again one after the other."""
    with path.open("rb") as file:
        yield from sorted(map(_decoder.decode, file), key=lambda played: played.number)
