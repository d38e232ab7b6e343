"""What counting costs, and what reports take, at size: ``./run python -m tests.analytics.at_size [--rows 3000000]``.

Lays a store of its own (thirty days, twenty tenants, some two thousand actors), counts it, and asks every report. Times
are the client's, warm; CPU is that of the server's process that counts, from /proc. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from afterwrite.postgres import Database, connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.search.analytics import ReportName, report
from afterwrite.store.partitions import INDEXES, make_partitions
from afterwrite.store.rollup import SESSION, rebuild, refresh_analytics, roll_up
from afterwrite.store.schema import install_store

DAYS = 30
BATCH = 5_000
TIMES = 15

_ROWS = """
    insert into afterwrite.activity (
        id, occurred_at, batch_id, source, kind, category, action, outcome, severity, entity_type, entity_id, actor_id,
        tenant_id, ip, summary, after)
    select gen_random_uuid(), at, {first_batch} + (number / {batch})::bigint, 'main', 'event',
           case when login then 'authentication' when number % 7 = 0 then 'financial' else 'data' end,
           case when login then 'login' else thing || (array['.insert', '.update', '.delete'])[1 + number % 3] end,
           case when login and random() < 0.1 or number % 211 = 0 then 'failure' else 'success' end, 'info',
           case when login then 'user' else thing end,
           -- A few things are changed all the time, most of them now and then.
           case when login then actor
                else 20 * (case when random() < 0.3 then 10 else 10000 end * random())::integer + actor % 20 end,
           'user:' || actor, 'tenant ' || actor % 20,
           case when login then ('10.0.' || number % 7 || '.' || number % 200)::inet end,
           'updated ' || thing || ' ' || number || ': name, status', '{{"name": "somebody", "status": "active"}}'
      from (
           select number, timestamptz '{day}' + number * interval '1 day' / {rows} as at, number % 20 = 3 as login,
                  (2000 * random() * random())::integer as actor,
                  (array['users', 'projects', 'investors', 'tokens', 'documents', 'messages'])[1 + number % 6] as thing
             from generate_series(0, {rows} - 1) number
           ) n
"""
_BATCHES = """
    insert into afterwrite.batch (
        id, position, source, first_at, last_at, transactions, rows, rows_per_table, rows_digest, digest)
    select batch_id, batch_id, 'main', min(occurred_at), max(occurred_at), 0, count(*), '{{}}', sha256(''), sha256('')
      from afterwrite.activity
     where occurred_at >= timestamptz '{day}' and occurred_at < timestamptz '{day}' + interval '1 day'
     group by batch_id
"""


async def lay(db: Database, rows: int, today: datetime) -> None:
    """So many rows in thirty days up to today, written without the indexes that counting does not use."""
    days = [today - timedelta(days=back) for back in range(DAYS, 0, -1)]
    await make_partitions(db, days=[day.date() for day in days])
    for day in days:
        for index in INDEXES:
            await db.script(f"drop index if exists afterwrite.activity_{day:%Y_%m_%d}_{index}")
    a_day = rows // DAYS
    for number, day in enumerate(days):
        words = {
            "day": f"{day:%Y-%m-%d} 00:00:00+00",
            "rows": a_day,
            "batch": BATCH,
            "first_batch": 1 + number * -(-a_day // BATCH),
        }
        await db.script(_ROWS.format(**words))
        await db.script(_BATCHES.format(**words))
        print(f"\r{(number + 1) * a_day:,} rows", end="", file=sys.stderr)
    await db.run(b"update afterwrite.feed set position = (select max(position) from afterwrite.batch)")
    await db.run(b"vacuum (freeze, analyze) afterwrite.activity")
    await db.run(b"analyze afterwrite.batch")
    print(file=sys.stderr)


class Clock:
    """CPU of the session's server process, by /proc."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/stat")

    def seconds(self) -> float:
        words = self._path.read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / 100


async def measure(dsn: str, rows: int) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    async with connect(dsn, options=SESSION) as db:
        await install_store(db)
        await lay(db, rows, today)
        clock = Clock(await db.value(b"select pg_backend_pid()"))
        for title, most in (("batch by batch", BATCH), ("ten batches at once", 10 * BATCH)):
            await _forget(db)
            began, cpu = time.perf_counter(), clock.seconds()
            done = await roll_up(db, most_rows=most, over_by=datetime.min.replace(tzinfo=UTC))
            spent = clock.seconds() - cpu
            _line(f"hours, {title}", f"{spent / done.rows * 1e6:.2f} µs of CPU a row", f"{_since(began)}")
        began, cpu = time.perf_counter(), clock.seconds()
        await roll_up(db)
        _line("names", f"{(clock.seconds() - cpu) / rows * 1e6:.2f} µs of CPU a row", _since(began))
        await db.run(b"vacuum analyze afterwrite.rollup_hour, afterwrite.rollup_top")
        began = time.perf_counter()
        await refresh_analytics(db)
        _line("refresh", "", _since(began))
        for table in ("rollup_hour", "rollup_top", "rollup_rest", "analytics_hour", "analytics_day"):
            count, size = await _size(db, table)
            _line(table, f"{count:,} rows", f"{size / 1024**2:.1f} MiB")
        begin = today - timedelta(days=DAYS)
        print(f"\n{'report':<16}{'of':<14}{'last day':>12}{'a week':>12}{'30 days':>12}")
        for tenant in (None, "tenant 7"):
            for name in ReportName:
                cells = [
                    await _time(db, name, max(begin, today - timedelta(days=days)), today, tenant)
                    for days in ((1, 7) if name in (ReportName.WEEK, ReportName.UNUSUAL_HOURS) else (1, 7, DAYS))
                ]
                print(f"{name:<16}{tenant or 'all tenants':<14}" + "".join(f"{cell:>9.1f} ms" for cell in cells))
        began = time.perf_counter()
        await rebuild(db)
        _line("\nrebuild of all", "", _since(began))


async def _forget(db: Database) -> None:
    await db.script(
        """truncate afterwrite.rollup_hour, afterwrite.rollup_top, afterwrite.rollup_rest;
           update afterwrite.rollup set position = 0, named_until = '-infinity', exact_until = '-infinity'"""
    )


async def _time(db: Database, name: ReportName, after: datetime, before: datetime, tenant: str | None) -> float:
    """The median of several times, in milliseconds."""
    times: list[float] = []
    bucket = "hour" if before - after <= timedelta(days=7) else "day"
    for _ in range(TIMES):
        began = time.perf_counter()
        found = await report(db, name, after=after, before=before, bucket=bucket, tenant=tenant)
        times.append((time.perf_counter() - began) * 1000)
        assert found.rows or name is ReportName.UNUSUAL_HOURS
    return statistics.median(times)


async def _size(db: Database, table: str) -> tuple[int, int]:
    count: int = await db.value(f"select count(*) from afterwrite.{table}".encode())
    size: int = await db.value(f"select pg_total_relation_size('afterwrite.{table}')".encode())
    return count, size


def _line(what: str, first: str, second: str) -> None:
    print(f"{what:<32}{first:>28}{second:>14}", flush=True)


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.analytics.at_size", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=3_000_000, help="activities in the store (3,000,000)")
    given = parser.parse_args()
    with embedded_server(settings={"fsync": "off"}) as server:
        print(f"PostgreSQL {server.version}, {given.rows:,} activities in {DAYS} days")
        asyncio.run(measure(server.dsn(), given.rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
