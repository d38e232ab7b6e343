"""An outbox in a database of a test's own, somebody who posts, and what arrives in the store."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from afterwrite.capture.drain import Drain, DrainPace
from afterwrite.capture.outbox import lay, plan_install
from afterwrite.postgres import connect
from afterwrite.store.writer import open_sink

PACE = DrainPace(first_rest=0.01, longest_rest=0.02, look_seconds=0.3, claim_seconds=0.05)


def lay_outbox(dsn: str, *roles: str) -> None:
    async def run() -> None:
        async with connect(dsn) as db:
            await lay(db, await plan_install(db, roles=roles))

    asyncio.run(run())


def post(conn: psycopg.Connection[Any], action: str, **event: Any) -> None:
    """As a program posts that has nothing of ours."""
    said = {"event": {"category": "data", "action": action, **event}, "context": {"actor_id": "user:42"}}
    conn.execute("select afterwrite_outbox.post(%s)", [json.dumps(said)])


@asynccontextmanager
async def draining(dsn: str, open_: Callable[[], Any] | None = None, **given: Any) -> AsyncIterator[Drain]:
    """A drain beside a test."""
    drain = Drain(dsn, open_ or (lambda: open_sink(dsn)), **{"source": "shop", "pace": PACE, **given})
    running = asyncio.create_task(drain.run())
    try:
        yield drain
    finally:
        drain.stop()
        await running


async def come(condition: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        await asyncio.sleep(0.01)


def drain_all(dsn: str, **given: Any) -> Drain:
    """Drain until nothing waits."""

    async def run() -> Drain:
        async with draining(dsn, **given) as drain:
            await come(lambda: count(dsn, "afterwrite_outbox.event") == 0)
        return drain

    return asyncio.run(run())


def count(dsn: str, table: str) -> int:
    with psycopg.connect(dsn) as conn:
        ((found,),) = conn.execute(f"select count(*) from {table}").fetchall()
        return int(found)


def stored(dsn: str) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as conn:
        return conn.execute("select * from afterwrite.activity order by occurred_at, id").fetchall()
