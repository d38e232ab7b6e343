"""One very big transaction, its context last, through a worker in a process of its own that is held to its memory.

``./run python -m tests.big_transaction --rows 2000000`` lays a server, and prints what it cost, and whether the store
then holds exactly what the table holds: counted, summed, and in one batch. ``--kind update`` takes wide rows with their
old images, ``--kind event`` emitted events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from afterwrite.capture.backlog import Pace
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.worker import Source, Worker
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

CONTEXT = """select pg_logical_emit_message(true, 'afterwrite.context', '{"actor_id": "last"}')"""
LAID = {
    "insert": "create table public.big (id int primary key, a int, b text)",
    "update": "create table public.big (id int primary key, a int, b text, c jsonb, d timestamptz, e uuid);"
    " alter table public.big replica identity full;"
    " insert into public.big"
    """ select g, g, repeat('äöü ', 20) || g, '{"x": [1, 2, 3], "y": "z"}', now(), gen_random_uuid()"""
    " from generate_series(1, {rows}) g",
    "event": "create table public.big (id int primary key)",
}
WRITTEN = {
    "insert": "insert into public.big select g, g % 7, 'row ' || g from generate_series(1, {rows}) g",
    "update": "update public.big set a = a + 1, d = clock_timestamp()",
    "event": "select count(pg_logical_emit_message(true, 'afterwrite.event',"
    """ '{{"category":"test","action":"test.done","entity_id":"' || g || '"}}')) from generate_series(1, {rows}) g""",
}
# Order does not count in a sum, and the order of the store's rows is looked at by itself.
SUM = {
    "insert": "select count(*), sum(hashtextextended(to_jsonb(t)::text, 0)::numeric) from public.big t",
    "update": "select count(*), sum(hashtextextended(to_jsonb(t)::text, 0)::numeric) from public.big t",
    "event": "select {rows}::bigint, sum(hashtextextended(g::text, 0)::numeric) from generate_series(1, {rows}) g",
}
STORED_SUM = {
    "insert": "select count(*), sum(hashtextextended(after::jsonb::text, 0)::numeric) from afterwrite.activity",
    "update": "select count(*), sum(hashtextextended(after::jsonb::text, 0)::numeric) from afterwrite.activity",
    "event": "select count(*), sum(hashtextextended(entity_id, 0)::numeric) from afterwrite.activity",
}
STORED = """
select count(distinct batch_id), count(*) filter (where actor_id = 'last'), count(distinct id), count(distinct ordinal),
       min(ordinal), max(ordinal),
       (select count(*) from (select ordinal, lag(ordinal) over (order by occurred_at, id) as before
                                from afterwrite.activity) o where before >= ordinal)
  from afterwrite.activity
"""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to.

    ``longest_busy_ms`` is how long the worker's event loop computed at most before others had their turn, and
    ``longest_pause_ms`` how long they waited by the clock, which on a busy machine waits for other processes too.
    """

    rows: int
    kind: str
    seconds_to_write: float
    seconds_to_store: float
    rows_per_second: float
    base_mib: float
    peak_mib: float
    end_mib: float
    put_aside_mib: float
    longest_busy_ms: float
    longest_pause_ms: float
    exact: bool


def run(dsn: str, rows: int, kind: str = "insert", pace: Pace | None = None) -> Figures:
    """Write, capture and compare, in an empty database; the worker stores in the same one."""
    setup = CaptureSetup(source="main", tables=(("public", "big"),), slot=f"big_{secrets.token_hex(4)}")
    pace = pace or Pace()
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(LAID[kind].replace("{rows}", str(rows)))
        asyncio.run(_prepare(dsn, setup))
        with _worker(dsn, setup.slot, pace) as worker:
            # What a worker takes that has nothing to do.
            db.execute("insert into public.big values (0)")
            _wait(db, 1, worker)
            db.execute("delete from public.big where id = 0")
            _wait(db, 2, worker)
            db.execute("truncate afterwrite.activity")
            base = _memory(worker.pid, "VmRSS")
            began = time.monotonic()
            with db.transaction():
                db.execute(WRITTEN[kind].format(rows=rows))
                db.execute(CONTEXT)
            wrote = time.monotonic()
            _wait(db, 3, worker)
            stored = time.monotonic()
            peak, end = _memory(worker.pid, "VmHWM"), _memory(worker.pid, "VmRSS")
            worker.send_signal(signal.SIGTERM)
            assert worker.stdout is not None
            told = json.loads(worker.stdout.readline())
        exact = _compare(db, rows, kind)
    return Figures(
        rows=rows,
        kind=kind,
        seconds_to_write=round(wrote - began, 2),
        seconds_to_store=round(stored - wrote, 2),
        rows_per_second=round(rows / (stored - began)),
        base_mib=base,
        peak_mib=peak,
        end_mib=end,
        put_aside_mib=told["put_aside_mib"],
        longest_busy_ms=told["longest_busy_ms"],
        longest_pause_ms=told["longest_pause_ms"],
        exact=exact,
    )


async def _prepare(dsn: str, setup: CaptureSetup) -> None:
    async with connect(dsn) as database:
        await install_store(database)
        async with open_sink(dsn) as sink:
            await prepare(database, sink, setup)


def _wait(db: psycopg.Connection[Any], batches: int, worker: subprocess.Popen[str]) -> None:
    while True:
        row = db.execute("select count(*) from afterwrite.batch").fetchone()
        if row and row[0] >= batches:
            return
        if worker.poll() is not None:
            raise RuntimeError(f"the worker ended with {worker.returncode}")
        time.sleep(0.02)


def _compare(db: psycopg.Connection[Any], rows: int, kind: str) -> bool:
    """Whether the store holds what was written: each row once, in one batch, with context, in their order."""
    wanted = db.execute(SUM[kind].format(rows=rows)).fetchone()
    found = db.execute(STORED_SUM[kind]).fetchone()
    shape = db.execute(STORED).fetchone()
    expected = (1, rows, rows, rows, 0, rows - 1, 0)
    if found != wanted or shape != expected:
        print(f"stored {found}, written {wanted}; shape {shape}, expected {expected}", file=sys.stderr)
    return found == wanted and shape == expected


def _memory(pid: int, what: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith(what)]
    return round(int(line.split()[1]) / 1024, 1)


@contextmanager
def _worker(dsn: str, slot: str, pace: Pace) -> Iterator[subprocess.Popen[str]]:
    told = msgspec.json.encode(pace, enc_hook=str).decode()
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker", dsn, slot, told], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(10)
        process.kill()
        process.communicate()


async def _capture(dsn: str, slot: str, pace: Pace) -> None:
    """The worker's process: it ends at SIGTERM, and says what it saw of itself."""
    longest, busiest, aside = 0.0, 0.0, 0
    stopping = threading.Event()

    async def feel() -> None:
        nonlocal longest, busiest
        while True:
            began, worked = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began - 0.01)
            busiest = max(busiest, time.thread_time() - worked)

    def look() -> None:
        nonlocal aside
        files = Path("/proc/self/fd")
        while not stopping.wait(0.1):
            for each in files.iterdir():
                with contextlib.suppress(OSError):
                    if "afterwrite-" in str(each.readlink()) or "/#" in str(each.readlink()):
                        aside = max(aside, each.stat().st_size)

    source = Source(dsn=dsn, name="main", slot=slot)
    worker = Worker(source, lambda: open_sink(dsn), pace=pace)
    watching = threading.Thread(target=look)
    watching.start()
    feeling = asyncio.create_task(feel())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    try:
        await worker.run()
    finally:
        stopping.set()
        watching.join()
        feeling.cancel()
    told = {
        "longest_busy_ms": round(busiest * 1000, 1),
        "longest_pause_ms": round(longest * 1000, 1),
        "put_aside_mib": round(aside / (1 << 20), 1),
    }
    print(json.dumps(told), flush=True)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    words.add_argument("--rows", type=int, default=2_000_000)
    words.add_argument("--kind", choices=[*LAID], default="insert")
    words.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.worker:
        dsn, slot, pace = given.worker
        asyncio.run(_capture(dsn, slot, msgspec.json.decode(pace, type=Pace, dec_hook=lambda kind, text: kind(text))))
        return
    with embedded_server(settings={"fsync": "off", "max_wal_size": "8GB"}) as server:
        figures = run(server.dsn("postgres"), given.rows, given.kind)
    print(json.dumps(msgspec.to_builtins(figures), indent=2))
    sys.exit(0 if figures.exact and figures.peak_mib < 300 else 1)


if __name__ == "__main__":
    main()
