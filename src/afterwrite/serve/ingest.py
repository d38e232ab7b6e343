"""Handing in: what comes from many at once is stored in few transactions, each activity once.

::

    POST ─┐
    POST ─┼─▶ waiting (bounded: beyond it, 503 and come later) ─▶ a source's hour, up to 5,000 ─▶ the store's writer
    looks ┘                                                                                      │ receipt
    each learns which of his were stored, and which were there already  ◀────────────────────────┘

Who reads a batch reads all that lies between its first and its last moment: so one holds an hour at most, whatever was
handed in together. Nobody takes more than half of the room, and who hands in much waits for others in between.

An answer is given when the transaction is flushed. Without one nothing is known, and sending again is safe.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec

from afterwrite.errors import ConnectionLost, DatabaseError
from afterwrite.postgres import statement
from afterwrite.record import Activity, Batch
from afterwrite.serve.metrics import Metrics
from afterwrite.serve.posted import count_bytes
from afterwrite.serve.problems import ProblemError
from afterwrite.serve.tenancy import Readers
from afterwrite.settings import Settings
from afterwrite.store.writer import PostgresSink

log = logging.getLogger(__name__)

_BATCH_ROWS = 5_000
_MOST_WAITING, _MOST_BYTES = 20_000, 128 << 20
_WAIT_SECONDS = 20.0

Key = tuple[datetime, str]


class _Put(msgspec.Struct):
    who: Hashable
    source: str
    activities: Sequence[Activity]
    bytes: int
    stored: asyncio.Future[frozenset[Key]]


class Ingest:
    """Stores what is put into it, for as long as ``run`` runs."""

    def __init__(self, settings: Settings, readers: Readers, metrics: Metrics) -> None:
        self._sink = PostgresSink(settings.store, application_name="afterwrite ingest")
        self._readers = readers
        self._metrics = metrics
        self._waiting: dict[tuple[str, datetime], deque[_Put]] = {}
        self._rows = self._bytes = self._held = 0
        self._rows_of: Counter[Hashable] = Counter()
        self._served: Hashable = None
        self._news = asyncio.Event()
        self._stopping = False

    @contextmanager
    def holding(self) -> Generator[Callable[[int], None]]:
        """Bodies take room, too, while they come: what this gives is told of each part how long it is.

        It raises ProblemError (503) when bodies and what waits are more together than may be held.
        """
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            if self._held + self._bytes + size > _MOST_BYTES:
                raise _later("more is handed in than can be stored")
            mine += size
            self._held += size

        try:
            yield hold
        finally:
            self._held -= mine

    async def put(self, source: str, activities: Sequence[Activity], *, who: Hashable = None) -> frozenset[Key]:
        """Store these of somebody's; says which were new, by ``(occurred_at, id)``. When it returns they are flushed.

        Raises ProblemError (503) when too much waits, or nothing was heard of the store in time.
        """
        of_hours: dict[datetime, list[Activity]] = {}
        for each in activities:
            of_hours.setdefault(each.occurred_at.replace(minute=0, second=0, microsecond=0), []).append(each)
        loop = asyncio.get_running_loop()
        puts = {
            hour: _Put(who, source, of_hour, count_bytes(of_hour), loop.create_future())
            for hour, of_hour in of_hours.items()
        }
        rows, size = len(activities), sum(put.bytes for put in puts.values())
        is_full = self._rows + rows > _MOST_WAITING or self._bytes + size > _MOST_BYTES
        if is_full or self._rows_of[who] + rows > _MOST_WAITING // 2:
            raise _later("more is handed in than can be stored")
        for hour, put in puts.items():
            self._count(put, 1)
            self._waiting.setdefault((source, hour), deque()).append(put)
        self._news.set()
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                found = await asyncio.gather(*(put.stored for put in puts.values()), return_exceptions=True)
        except TimeoutError:
            raise _later("the store has not said yet whether it has these; send them again") from None
        stored: set[Key] = set()
        for each in found:
            if isinstance(each, BaseException):
                raise each
            stored |= each
        return frozenset(stored)

    async def run(self) -> None:
        """Store what waits, until stopped and nothing waits any more."""
        try:
            while self._waiting or not self._stopping:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._store(self._take())
        finally:
            await self._sink.close()

    def stop(self) -> None:
        """End when what waits is stored."""
        self._stopping = True
        self._news.set()

    def _count(self, put: _Put, sign: int) -> None:
        self._rows += sign * len(put.activities)
        self._rows_of[put.who] += sign * len(put.activities)
        if not self._rows_of[put.who]:
            del self._rows_of[put.who]
        self._bytes += sign * put.bytes
        self._metrics.ingest_waiting.set(self._rows)

    def _take(self) -> list[_Put]:
        """The next of one source and hour, as many as fit a batch; at least one, and where there is, another's turn."""
        others = (key for key, puts in self._waiting.items() if puts[0].who != self._served)
        key = next(others, None) or next(iter(self._waiting))
        waiting = self._waiting[key]
        taken = [waiting.popleft()]
        rows = len(taken[0].activities)
        while waiting and rows + len(waiting[0].activities) <= _BATCH_ROWS:
            taken.append(waiting.popleft())
            rows += len(taken[-1].activities)
        if not waiting:
            del self._waiting[key]
        self._served = taken[0].who
        return taken

    async def _store(self, puts: Sequence[_Put]) -> None:
        try:
            await self._try(puts)
        finally:
            for put in puts:
                self._count(put, -1)

    async def _try(self, puts: Sequence[_Put]) -> None:
        try:
            await self._write(puts)
            return
        except ConnectionLost as error:
            log.warning("what is handed in cannot be stored now: %s", error)
            failure: Exception = _later("the store cannot be reached now")
        except DatabaseError as error:
            if len(puts) > 1:
                # One of them is at fault, and the others shall not be.
                for put in puts:
                    await self._try([put])
                return
            log.error("what was handed in could not be stored: %s", error)
            failure = error
        except Exception as error:
            log.exception("what was handed in could not be stored")
            failure = error
        for put in puts:
            if not put.stored.done():
                put.stored.set_exception(failure)

    async def _write(self, puts: Sequence[_Put]) -> None:
        activities = {(each.occurred_at, each.id): each for put in puts for each in put.activities}
        batch = Batch(source=puts[0].source, activities=tuple(activities.values()), transactions=0)
        receipt = await self._sink.write(batch)
        new = set(activities)
        if receipt.stored < len(activities):
            new = set[Key]() if receipt.batch_id is None else await self._read_stored(receipt.batch_id, batch)
        for put in puts:
            stored = frozenset({(each.occurred_at, each.id) for each in put.activities} & new)
            # Two who hand in the same: the first has stored it.
            new -= stored
            if not put.stored.done():
                put.stored.set_result(stored)

    async def _read_stored(self, batch_id: int, batch: Batch) -> set[Key]:
        moments = [each.occurred_at for each in batch.activities]
        async with self._readers.read(None) as db:
            found = await db.rows(
                _Stored,
                statement("serve.read_stored_ids"),
                batch_id=batch_id,
                first_at=min(moments),
                last_at=max(moments),
            )
        return {(each.occurred_at, each.id) for each in found}


class _Stored(msgspec.Struct, frozen=True):
    occurred_at: datetime
    id: str


def _later(detail: str) -> ProblemError:
    return ProblemError(503, "unavailable", detail, headers={"Retry-After": "2"})
