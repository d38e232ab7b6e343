"""The workload's own book: what it committed, and what must follow from that. The tests believe it, not us.

One JSON line an entry, in the order in which the workload learnt of it::

    opening   statistics, notifications and progress as the workload found them
    mark      a new window begins; no transaction was open at this moment
    committed xid, actor, the row changes to expect, and the effects of the activity triggers, as facts
    rolled    xid of a transaction that left nothing
    unknown   xid of a COMMIT whose outcome could not be learnt before the workload had to stop
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.record import Operation


class RowChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row change that commits with the transaction; ``values`` are after-values the application wrote (a sample)."""

    table: str
    operation: Operation
    key: str
    values: dict[str, Any] | None = None


class Notice(msgspec.Struct, frozen=True, array_like=True, tag="notice", gc=False):
    """A notification that must come to be (``times`` 1) or go (-1). ``own``: the application wrote that row itself."""

    user: str
    kind: str
    reference: str
    times: int = 1
    own: bool = False


class Count(msgspec.Struct, frozen=True, array_like=True, tag="count", gc=False):
    """A counter of platform_statistics moves by ``delta``."""

    counter: str
    delta: Decimal


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress", gc=False):
    """A bulk operation advances by ``rows``, in so many statements."""

    operation: str
    rows: int
    statements: int = 1


class Copy(msgspec.Struct, frozen=True, array_like=True, tag="copy", gc=False):
    """A project's name is copied into its settings row."""

    project: str


Effect = Notice | Count | Progress | Copy


class Opening(msgspec.Struct, frozen=True, tag="opening", tag_field="entry"):
    """The balance brought forward."""

    counters: dict[str, Decimal]
    notices: list[Notice]
    progress: dict[str, int]
    last_notification: int


class Mark(msgspec.Struct, frozen=True, tag="mark", tag_field="entry"):
    """A window begins. Every transaction in the lines above had ended before ``lsn``; those below began after it."""

    window: str
    lsn: str
    xid: int
    last_notification: int


class Committed(msgspec.Struct, frozen=True, tag="committed", tag_field="entry"):
    xid: int
    window: str
    kind: str
    actor: str
    stamped: bool
    changes: list[RowChange]
    effects: list[Effect]


class RolledBack(msgspec.Struct, frozen=True, tag="rolled", tag_field="entry"):
    xid: int
    window: str
    kind: str
    why: str


class Unknown(msgspec.Struct, frozen=True, tag="unknown", tag_field="entry"):
    xid: int
    window: str
    kind: str


Entry = Opening | Mark | Committed | RolledBack | Unknown

_encoder = msgspec.json.Encoder(decimal_format="number")
_entries: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry, float_hook=Decimal)
_rows: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


def decode_row(text: str) -> dict[str, Any]:
    """A row as PostgreSQL's JSON gives it, every fraction a Decimal, so that it compares with a change's values."""
    return _rows.decode(text)


class Ledger:
    """The book, open for appending by any thread. An entry is handed to the system before ``append`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        self._lock = threading.Lock()

    @property
    def empty(self) -> bool:
        return self.path.stat().st_size == 0

    def append(self, entry: Entry) -> None:
        line = _encoder.encode(entry) + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_ledger(path: Path) -> Iterator[Entry]:
    """Every entry, in order. A last line without its end was never promised, and is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _entries.decode(line)
            except msgspec.DecodeError as error:
                raise AfterwriteError(f"line {number} of the ledger {path} cannot be read: {error}") from error
