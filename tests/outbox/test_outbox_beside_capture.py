"""One worker captures, and drains the outbox of the same database: events by both ways are in one store."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import psycopg
from outbox_scene import come, lay_outbox, stored

from afterwrite import context, runtime
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.outbox import known
from afterwrite.settings import Settings

_AUDITED = """
create table orders (id int primary key);
create table orders_log (id int generated always as identity primary key, row jsonb);
create function note_order() returns trigger language plpgsql as
    'begin insert into orders_log (row) values (to_jsonb(new)); return null; end';
create trigger note after insert on orders for each row execute function note_order();
"""


def test_events_by_message_and_by_outbox_are_in_one_store(installed_dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(installed_dsn) as conn:
        conn.execute(_AUDITED)
    lay_outbox(installed_dsn)
    settings = Settings(dsn=installed_dsn, slot=f"beside_{secrets.token_hex(4)}", linger_ms=5)
    known.forget()

    def write() -> None:
        with psycopg.connect(installed_dsn) as conn, context.bind(actor="user:42"):
            for events in ("auto", "outbox"):
                recorder = Recorder(
                    source="shop",
                    open_sink=None,
                    options=Options(spool_dir=str(tmp_path), slot=settings.slot, events=events),  # type: ignore[arg-type]
                )
                recorder.record(f"by.{events}", conn=conn)
                recorder.close(0.1)
            conn.execute("insert into orders values (1)")

    async def run() -> None:
        async with runtime.source_and_store(settings) as (source, store):
            seen = await runtime.look_at_installation(settings, source, store)
            await runtime.install(settings, seen, source, store)
        stop = asyncio.Event()
        told: list[runtime.RuntimeStatus] = []
        capturing = asyncio.create_task(runtime.run_capture(settings, stop=stop, on_status=told.append))
        await asyncio.to_thread(write)
        await come(lambda: len(stored(installed_dsn)) == 3, 20)
        await come(lambda: told[-1].outbox is not None and told[-1].outbox.stored == 1)
        stop.set()
        await capturing

    asyncio.run(run())
    rows = {row["action"]: row for row in stored(installed_dsn)}
    message, posted, change = rows["by.auto"], rows["by.outbox"], rows["orders.insert"]
    assert (message["xid"], message["commit_lsn"]) == (change["xid"], change["commit_lsn"])
    assert (posted["metadata"]["xid"] % 2**32, posted["xid"]) == (change["xid"], None)
    assert {row["actor_id"] for row in rows.values()} == {"user:42"}
    assert {row["source"] for row in rows.values()} == {"main"}
