"""A run of recorders under fire: processes and threads record while the store is stopped and some are SIGKILLed.

Each thread of a writer numbers its events, and now and then waits for one to be spooled and notes its number in a file
with one write, which SIGKILL cannot take back: that one and all before it must be in the store. What stands there for
a thread must be an unbroken beginning of its numbers, each once. The writers that live on take over the files of the
others, and their accounts must close.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.recorder import Stats
from afterwrite.store.reader import FeedReport, verify_feed
from afterwrite.store.schema import install_store

_WRITER = Path(__file__).with_name("recorder_writer.py")
_LONGEST_SECONDS = 1_800.0


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """How much, and how badly."""

    events: int
    processes: int = 4
    threads: int = 4
    kills: int = 2
    outage_seconds: float
    # A second, of each thread; None: as fast as it goes.
    rate: float | None = None
    seed: int = 1


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; ``differences`` is empty where every promise was kept."""

    recorded_by_survivors: int
    adopted: int
    stored_by_survivors: int
    dropped: dict[str, int]
    rows: int
    noted: int
    lost_unspooled: int
    seconds: float
    end_to_end: float
    differences: list[str]


def run_recorders(folder: Path, orders: Orders, say: Callable[[str], None]) -> Outcome:
    """The whole run on a server of its own."""
    each = orders.events // (orders.processes * orders.threads)
    dice = random.Random(orders.seed)
    with embedded_server() as server:
        asyncio.run(_install(server.dsn()))
        began = time.monotonic()
        writers = [_start(folder, server.dsn(), number, each, orders) for number in range(orders.processes)]
        doomed = dice.sample(range(orders.processes), orders.kills)
        try:
            # The outage begins when the store has some, and the kills fall into it.
            _until(lambda: _count(server.dsn()) > orders.events // 20, writers)
            say(f"{_count(server.dsn()):,} stored; PostgreSQL stops for {orders.outage_seconds:g} s")
            server.stop("immediate")
            stopped = time.monotonic()
            for number in doomed:
                time.sleep(orders.outage_seconds * dice.uniform(0.2, 0.8) / max(1, orders.kills))
                writers[number].kill()
                say(f"writer {number} is killed")
            time.sleep(max(0.0, stopped + orders.outage_seconds - time.monotonic()))
            server.start()
            say("PostgreSQL is back")
            accounts = [_finish(writer) for number, writer in enumerate(writers) if number not in doomed]
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()
        seconds = time.monotonic() - began
        return _judge(folder, server.dsn(), orders, each, set(doomed), accounts, seconds)


async def _install(dsn: str) -> None:
    async with connect(dsn) as db:
        await install_store(db)


def _start(folder: Path, dsn: str, number: int, each: int, orders: Orders) -> subprocess.Popen[bytes]:
    words = [str(folder), dsn, str(number), str(orders.threads), str(each), str(orders.rate or 0)]
    survivors = orders.processes - orders.kills
    return subprocess.Popen(
        [sys.executable, str(_WRITER), *words, str(survivors)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _finish(writer: subprocess.Popen[bytes]) -> Stats:
    """Once all is recorded and delivered, and nothing of anybody's is left in the folder."""
    said, _ = writer.communicate(timeout=_LONGEST_SECONDS)
    if writer.returncode:
        raise AssertionError(f"a writer ended with {writer.returncode}")
    return msgspec.json.decode(said, type=Stats)


def _until(condition: Callable[[], bool], writers: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if any(writer.poll() is not None for writer in writers) or time.monotonic() > deadline:
            raise AssertionError("a writer has ended, or stores nothing")
        time.sleep(0.02)


def _count(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        return connection.execute("select coalesce(sum(rows), 0)::bigint from afterwrite.batch").fetchone()[0]  # type: ignore[index]


def _judge(
    folder: Path, dsn: str, orders: Orders, each: int, doomed: set[int], accounts: list[Stats], seconds: float
) -> Outcome:
    differences: list[str] = []
    noted = lost = 0
    with psycopg.connect(dsn) as connection:
        found = {
            (process, thread): (rows, distinct, last)
            for process, thread, rows, distinct, last in connection.execute("""
                select entity_type::int, actor_id::int, count(*), count(distinct entity_id), max(entity_id::int)
                  from afterwrite.activity
                 group by 1, 2
            """)
        }
        rows = sum(counts[0] for counts in found.values())
    for process in range(orders.processes):
        for thread in range(orders.threads):
            stored, distinct, last = found.get((process, thread), (0, 0, -1))
            marks = folder / f"noted-{process}-{thread}"
            mark = int(marks.read_text().split()[-1]) if marks.exists() else -1
            noted += mark + 1
            where = f"thread {thread} of process {process}"
            if stored != distinct:
                differences.append(f"{where}: {stored - distinct} stored twice")
            if last + 1 != distinct:
                differences.append(f"{where}: {last + 1 - distinct} are missing before number {last}")
            if last < mark:
                differences.append(f"{where}: {mark} was spooled, and the last that is stored is {last}")
            if process not in doomed and last + 1 != each:
                differences.append(f"{where}: {each} were recorded, {last + 1} are stored")
            lost += each - 1 - last
    for account in accounts:
        held = account.queued + account.spooled + account.stored + sum(account.dropped.values())
        if account.recorded + account.adopted != held or account.queued or account.spooled:
            differences.append(f"an account does not close: {account}")
    left = [path.name for path in (folder / "spool").iterdir()]
    if left:
        differences.append(f"the folder still holds {left}")
    report = asyncio.run(_verify(dsn))
    if report.first_break is not None or report.rows != rows:
        differences.append(f"the seal of the feed is broken: {report}")
    return Outcome(
        recorded_by_survivors=sum(account.recorded for account in accounts),
        adopted=sum(account.adopted for account in accounts),
        stored_by_survivors=sum(account.stored for account in accounts),
        dropped=_sum([account.dropped for account in accounts]),
        rows=rows,
        noted=noted,
        lost_unspooled=lost,
        seconds=seconds,
        end_to_end=rows / seconds,
        differences=differences,
    )


async def _verify(dsn: str) -> FeedReport:
    async with connect(dsn) as db:
        return await verify_feed(db)


def _sum(counts: list[object]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in dict(each).items():  # type: ignore[call-overload]
            total[reason] = total.get(reason, 0) + count
    return total
