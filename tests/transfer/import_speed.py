"""How fast a log is imported here: ``./run python -m tests.transfer.import_speed [ROWS]``.

A log of audited rows is made on a PostgreSQL of its own (fsync on), imported into a store in the same database, and
compared; beside it COPY of the same rows into a plain copy of the log, by the same process in the same run.
"""

from __future__ import annotations

import asyncio
import platform
import sys
import time

from afterwrite.postgres import Database, connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.survey import Survey
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink
from afterwrite.transfer import legacy
from afterwrite.transfer.legacy import Policy
from afterwrite.transfer.verify import verify_log

_LOG = """
create table public.audit_logs (
  id bigint generated always as identity primary key, table_name text not null, record_id text, operation text not null,
  old_data jsonb, new_data jsonb, user_id uuid, ip_address inet, created_at timestamptz not null
);
create table public.orders (id bigint primary key, customer text, state text, total numeric, placed_at timestamptz);
"""
_FILL = """
insert into public.audit_logs (table_name, record_id, operation, old_data, new_data, user_id, ip_address, created_at)
select 'orders', (n % 50000)::text, 'UPDATE', to_jsonb(o),
       to_jsonb(o) || jsonb_build_object('state', 'paid', 'total', n), md5((n % 300)::text)::uuid, '10.0.0.1',
       now() - interval '90 days' + n * (interval '89 days' / {rows})
  from generate_series(1, {rows}) n
 cross join lateral (
       select n % 50000 as id, 'Customer ' || n % 900 as customer, 'open' as state, n * 1.10 as total,
              now() as placed_at
       ) o
"""


async def main(dsn: str, rows: int) -> None:
    async with connect(dsn) as source:
        await install_store(source)
        await source.script(_LOG)
        await source.run(_FILL.format(rows=rows).encode())
        await source.run(b"analyze public.audit_logs")
        copied = await _copy(source)
        inventory = await read_inventory(source)
        found = Survey(inventory=inventory, bodies={}, judgements=(), findings=())
        async with legacy.open_log(dsn) as log, connect(dsn, guarded=True) as store, open_sink(dsn) as sink:
            (table,) = await legacy.find_logs(source, found, ["audit_logs"])
            inferred = await legacy.infer_mapping(source, found, table)
            policy = Policy()
            plan = await legacy.plan_log(log, store, table, inferred, None, source="main", policy=policy)
            done = await legacy.import_log(log, store, sink, plan, policy=policy)
            again = await legacy.plan_log(log, store, table, inferred, None, source="main", policy=policy)
            began = time.perf_counter()
            verified = await verify_log(log, store, again, policy=policy)
            compared = time.perf_counter() - began
    print(f"PostgreSQL {await _version(dsn)}, Python {platform.python_version()}, {platform.machine()}")
    _tell("imported", done.stored, done.seconds, "")
    _tell("compared", verified.rows, compared, f", both sides agree: {verified.agrees}")
    _tell("COPY", rows, copied, " (out and into a plain table with its key, for scale)")


def _tell(what: str, rows: int, seconds: float, more: str) -> None:
    print(f"{what:<9} {rows:>9,} rows in {seconds:6.1f} s: {rows / seconds:>9,.0f} rows/s{more}")


async def _version(dsn: str) -> str:
    async with connect(dsn) as db:
        return str(await db.value(b"show server_version"))


async def _copy(db: Database) -> float:
    """The same rows out of the log and into a table with a primary key, through this process."""
    await db.script("create table public.copied (like public.audit_logs including all)")
    began = time.perf_counter()
    lines = [line async for line in db.copy_out(b"copy public.audit_logs to stdout")]
    await db.copy_in(b"copy public.copied from stdin", lines)
    return time.perf_counter() - began


if __name__ == "__main__":
    with embedded_server() as server:
        asyncio.run(main(server.dsn(), int(sys.argv[1]) if len(sys.argv) > 1 else 200_000))
