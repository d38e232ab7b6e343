"""Between decoding and storing: transactions that wait, bounded, and batches that grow with the load."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from pathlib import Path

import msgspec

from afterwrite.capture.transaction import Transaction
from afterwrite.record import Lsn


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How much at once, and how long to wait.

    The backlog is bounded in rows and in bytes of the stream. An open transaction is held back until its commit,
    because its context may come last: in memory up to about ``transaction_bytes``, beyond that in a temporary file in
    ``spill_dir`` (None: the system's folder for such).
    """

    linger_ms: int = 40
    enough_rows: int = 2_000
    batch_rows: int = 5_000
    backlog_rows: int = 15_000
    backlog_bytes: int = 32 << 20
    pulse_seconds: float = 1.0
    settle_seconds: float = 1.0
    transaction_bytes: int = 16 << 20
    spill_dir: Path | None = None
    heartbeat_seconds: float = 10.0
    first_pause_ms: int = 100
    longest_pause_ms: int = 10_000
    takeover_seconds: float = 5.0
    silent_seconds: float = 15.0
    stop_seconds: float = 4.0


class Take(msgspec.Struct, frozen=True, gc=False):
    """Transactions in commit order, and the position that is reached once they are stored."""

    transactions: list[Transaction]
    through: Lsn


class Backlog:
    """One task puts, one takes. When it is full, ``put`` waits: then nothing is read from the socket any more, the
    server's sender waits in its turn, and what is not read stays in the WAL."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._items: deque[tuple[Transaction, int]] = deque()
        self._rows = 0
        self._bytes = 0
        self._through = Lsn(0)
        self._asked = False
        self._closed = False
        self._room = asyncio.Event()
        self._room.set()
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._taken_at = 0.0

    async def put(self, transaction: Transaction) -> None:
        """Add it, waiting while the backlog is full."""
        if not self._room.is_set():
            await self._room.wait()
        self._through = transaction.end_lsn
        rows = transaction.rows
        # PostgreSQL 14 also sends transactions without anything of ours, those of our own store among them. They move
        # the position along with the next one that has something; storing each would make another, for ever.
        if rows == 0:
            return
        self._items.append((transaction, rows))
        self._rows += rows
        self._bytes += transaction.held
        self._some.set()
        if self._rows >= self._pace.enough_rows:
            self._enough.set()
        if self._full():
            self._room.clear()

    def reach(self, lsn: Lsn) -> None:
        """Everything that commits before ``lsn`` has been put, and the server waits to hear that it is stored."""
        self._through = max(self._through, lsn)
        self._asked = True
        self._some.set()
        self._enough.set()

    def close(self) -> None:
        """Nothing more is taken; what was not taken is read again by the next worker."""
        self._closed = True
        self._some.set()
        self._enough.set()

    @property
    def gathers(self) -> bool:
        """Whether there is something, and it waits for more of the same or for the batch before."""
        return self._some.is_set() and not self._enough.is_set()

    def discard(self) -> None:
        """Let go what was not taken."""
        self.close()
        for transaction, _ in self._items:
            transaction.close()
        self._items.clear()

    async def take(self) -> Take | None:
        """The next batch; None when closed.

        Comes at once after a quiet time, and lingers for a moment under load so that batches grow with the load.
        """
        await self._some.wait()
        linger = self._taken_at + self._pace.linger_ms / 1000 - time.monotonic()
        if linger > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(linger):
                    await self._enough.wait()
        if self._closed:
            return None
        self._taken_at = time.monotonic()
        return self._pop()

    def _pop(self) -> Take:
        taken: list[Transaction] = []
        count = 0
        while self._items and (not taken or count + self._items[0][1] <= self._pace.batch_rows):
            transaction, rows = self._items.popleft()
            taken.append(transaction)
            count += rows
            self._bytes -= transaction.held
        self._rows -= count
        if not self._full():
            self._room.set()
        if self._rows < self._pace.enough_rows and not (self._asked and self._items):
            self._enough.clear()
        if self._items:
            return Take(taken, taken[-1].end_lsn)
        self._asked = False
        self._some.clear()
        return Take(taken, self._through)

    def _full(self) -> bool:
        return self._rows >= self._pace.backlog_rows or self._bytes >= self._pace.backlog_bytes
