"""A capture worker beside a test: what an application writes arrives in the store of the same database."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from afterwrite.capture.backlog import Pace
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.worker import Source, Worker
from afterwrite.postgres import connect
from afterwrite.store.writer import open_sink

_PACE = Pace(linger_ms=5, pulse_seconds=0.2, heartbeat_seconds=0.5)


class Stored(NamedTuple):
    """Rows of the store, in the order of the feed."""

    rows: list[Any]

    def of(self, action: str) -> Any:
        (found,) = [row for row in self.rows if row.action == action]
        return found

    def changes(self, entity: str) -> list[Any]:
        return [row for row in self.rows if row.kind == "change" and row.entity_type == entity]


@asynccontextmanager
async def capturing(dsn: str, *tables: str, keys: tuple[str, ...] = ()) -> AsyncIterator[None]:
    """Capture these tables of schema public while in here; the database has our schema already (``installed_dsn``)."""
    setup = CaptureSetup(
        source="main", tables=tuple(("public", table) for table in tables), slot=f"application_{id(dsn)}"
    )
    async with connect(dsn) as db, open_sink(dsn) as sink:
        await prepare(db, sink, setup)
    source = Source(dsn=dsn, name="main", slot=setup.slot, publications=setup.publications, stamp_keys=keys)
    worker = Worker(source, lambda: open_sink(dsn), pace=_PACE)
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await task


async def stored(dsn: str, *, count: int, seconds: float = 20) -> Stored:
    """What is in the store, once so many activities are."""
    until = time.monotonic() + seconds
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, row_factory=namedtuple_row) as db:
        while True:
            found = await (await db.execute("select * from afterwrite.activity order by batch_id, ordinal")).fetchall()
            if len(found) >= count:
                return Stored(found)
            told = json.dumps([(row.kind, row.action) for row in found])
            assert time.monotonic() < until, f"{len(found)} of {count} are stored: {told}"
            await asyncio.sleep(0.02)
