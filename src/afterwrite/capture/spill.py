"""What an open transaction has said so far: in memory, and beyond a bound in a file that nobody else can see.

::

    Assembler ─ add ─▶ Pile (changes) ┐
                       Pile (legacy)  ├─ move ─▶ Spill: one unlinked file a transaction
                       Pile (events)  ┘            └─ read back in pieces, as often as somebody asks

Entries are the stream's own bytes: they are made into changes only when they are read, so that a row costs the same
whether it waited in memory or on disk, and a file is no larger than what the server sent.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import Generic, TypeVar

from afterwrite.errors import AfterwriteError
from afterwrite.failpoints import failpoint

Kind = TypeVar("Kind", bound=Hashable)

_PIECE_BYTES = 1 << 18
_HEAD = Struct("!IIQ")  # length of the payload, number of the kind, ordinal
# What an entry costs in memory beside its payload: the tuple, the ordinal, the bytes object, its place in the list.
ENTRY_BYTES = 150


class NoRoom(AfterwriteError):  # noqa: N818 - the sentence that it says
    """A transaction that is too big for memory could not be put aside; the same may succeed later."""


class Spill:
    """A temporary file of one transaction: appended to, then read, gone with the process whatever becomes of it.

    Made on disk at its first use. Closing is final, and may come from another thread than a write that is under way.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: io.FileIO | None = None
        self._closed = False
        self._lock = threading.Lock()
        self.size = 0

    def append(self, data: bytes) -> tuple[int, int]:
        """Write this at the end; the place where it is. Raises NoRoom, with the remedy, where that cannot be done."""
        place, left = (self.size, len(data)), memoryview(data)
        failpoint("spill.before_write")
        with self._lock:
            try:
                if self._closed:
                    raise OSError("it is closed")
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0, prefix="afterwrite-", dir=self._folder)  # noqa: SIM115
                while left:
                    written = self._file.write(left)
                    self.size += written
                    left = left[written:]
            except OSError as error:
                folder = self._folder or tempfile.gettempdir()
                raise NoRoom(
                    f"a big transaction cannot be put aside in {folder}: {error.strerror or error}",
                    remedy=f"make room in {folder}, or name a folder with more of it: `spill_dir` in afterwrite.toml;"
                    " capture tries again, and loses nothing",
                ) from error
        failpoint("spill.after_write")
        return place

    def read(self, start: int, size: int) -> bytes:
        """What was written there."""
        with self._lock:
            data = os.pread(self._file.fileno(), size, start) if self._file is not None else b""
        if len(data) < size:
            raise AfterwriteError("a transaction that was put aside is not there any more", remedy="the defect is ours")
        return data

    def close(self) -> None:
        """Give the disk back."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def __del__(self) -> None:
        self.close()


class Pile(Generic[Kind]):
    """Entries ``(ordinal, kind, payload)`` in the order in which they came; sized, and read as often as wanted.

    A kind is what says how its payloads are read; there are few, and they stay in memory.
    """

    __slots__ = ("_aside", "held")

    def __init__(self) -> None:
        self.held: list[tuple[int, Kind, bytes]] = []
        self._aside: _Aside[Kind] | None = None

    def __len__(self) -> int:
        return len(self.held) if self._aside is None else self._aside.count + len(self.held)

    def __iter__(self) -> Iterator[tuple[int, Kind, bytes]]:
        return iter(self.held) if self._aside is None else chain(self._aside, self.held)

    def move(self, spill: Spill) -> None:
        """Put what is held in memory into the file. After an error some of it may be there: then all is given up."""
        if self._aside is None:
            self._aside = _Aside(spill)
        self._aside.take(self.held)
        self.held = []


class _Aside(Generic[Kind]):
    """The part of a pile that is in a file, in pieces of some hundred kilobytes."""

    def __init__(self, spill: Spill) -> None:
        self.count = 0
        self._spill = spill
        self._places: list[tuple[int, int]] = []
        self._kinds: dict[Kind, int] = {}

    def take(self, entries: Sequence[tuple[int, Kind, bytes]]) -> None:
        parts, size = list[bytes](), 0
        for ordinal, kind, payload in entries:
            number = self._kinds.setdefault(kind, len(self._kinds))
            parts += _HEAD.pack(len(payload), number, ordinal), payload
            size += _HEAD.size + len(payload)
            if size >= _PIECE_BYTES:
                self._places.append(self._spill.append(b"".join(parts)))
                parts, size = [], 0
        if parts:
            self._places.append(self._spill.append(b"".join(parts)))
        self.count += len(entries)

    def __iter__(self) -> Iterator[tuple[int, Kind, bytes]]:
        kinds, head = list(self._kinds), _HEAD.size
        for start, size in self._places:
            piece, position = self._spill.read(start, size), 0
            while position < size:
                length, number, ordinal = _HEAD.unpack_from(piece, position)
                begin = position + head
                position = begin + length
                yield ordinal, kinds[number], piece[begin:position]


def cost(payload: bytes) -> int:
    """About how much memory an entry takes."""
    return len(payload) + ENTRY_BYTES
