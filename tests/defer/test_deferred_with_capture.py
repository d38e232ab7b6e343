"""Deferral on the real stream: writers never stop, triggers go and come back, and every row has its effect once."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deferring import Stage, stage_again, tell_ledger
from psycopg import sql

from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.worker import Source, Worker
from afterwrite.defer.deferral import prepare_deferral, read_active
from afterwrite.defer.letters import read_dead_letters
from afterwrite.defer.progress import read_progress, settle
from afterwrite.defer.replay import run_replayer
from afterwrite.demo.schema import create_legacy_application
from afterwrite.errors import Severity
from afterwrite.postgres import Database, connect, with_short_locks
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

DDL = """
create table public.items (id bigint primary key, name text, total numeric generated always as (1.5) stored);
create table public.notes (id bigint generated always as identity primary key, item bigint, by_whom text);
create table public.pushed (note bigint, by_whom text);
create function public.note() returns trigger language plpgsql set search_path = public as $$
begin
    insert into notes (item, by_whom) values (new.id, current_setting('app.user', true));
    return null;
end $$;
create trigger t after insert on public.items for each row execute function public.note();
create function public.push() returns trigger language plpgsql set search_path = public as $$
begin
    insert into pushed (note, by_whom) values (new.id, current_setting('app.user', true));
    return null;
end $$;
create trigger t after insert on public.notes for each row execute function public.push();
"""


@asynccontextmanager
async def at_work(dsn: str, *tables: str, replaying: bool = True) -> AsyncIterator[Stage]:
    """Capture and replayer (or capture alone) of these tables run inside the block."""
    async with connect(dsn) as db:
        await install_store(db)
        await db.script(DDL)
        names = tuple(("public", table) for table in tables)
        setup = CaptureSetup(source="app", tables=names, full_identity=names)
        async with open_sink(dsn) as sink:
            await prepare(db, sink, setup)
    worker = Worker(Source(dsn=dsn, name="app"), lambda: open_sink(dsn))
    stop = asyncio.Event()
    async with stage_again(dsn) as on, asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        if replaying:
            tasks.create_task(run_replayer(dsn, dsn, "app", stop=stop))
        try:
            yield on
        finally:
            stop.set()
            worker.stop()


async def switch(on: Stage, table: str, *, off: bool) -> None:
    """What migrate does: prepare, disable (or enable) and mark, in one short transaction."""
    trigger = next(t for t in await on.triggers() if (t.table, t.name) == (table, "t"))

    async def deed(db: Database) -> None:
        if off:
            await prepare_deferral(db, trigger, source="app")
        word = sql.SQL("disable" if off else "enable")
        await db.run(sql.SQL("alter table {} {} trigger t").format(sql.Identifier("public", table), word))
        action = "trigger.silence" if off else "trigger.restore"
        await tell_ledger(db, action, trigger.identity)
        event = {
            "category": "migration",
            "action": action,
            "entity_type": "trigger",
            "entity_id": trigger.identity,
            "metadata": {"trigger_oid": trigger.oid, "mode": "defer"},
        }
        await db.value(
            b"select pg_logical_emit_message(true, 'afterwrite.event', %(event)s)::text", event=json.dumps(event)
        )

    await with_short_locks(on.db, [f"public.{table}"], deed)


async def write(dsn: str, ids: itertools.count[int], stop: asyncio.Event, committed: dict[int, str]) -> None:
    """One client: small transactions, some rolled back, each with its user in a setting and in the stamp."""
    async with connect(dsn) as db:
        while not stop.is_set():
            user = f"user {next(ids)}"
            mine = [next(ids) for _ in range(3)]
            stamp = json.dumps({"actor_id": user, "settings": {"app.user": user}})
            async with db.connection.transaction(force_rollback=mine[0] % 10 == 0):
                await db.value(b"select set_config('app.user', %(user)s, true)", user=user)
                for number in mine:
                    await db.run(b"insert into public.items values (%(id)s, 'x')", id=number)
                await db.value(
                    b"select pg_logical_emit_message(true, 'afterwrite.context', %(stamp)s)::text", stamp=stamp
                )
            if mine[0] % 10:
                committed.update(dict.fromkeys(mine, user))
            await asyncio.sleep(0.002)


def test_every_row_has_its_effect_once_while_the_trigger_goes_and_comes_under_load(dsn: str) -> None:
    async def run() -> None:
        async with at_work(dsn, "items", "notes") as on:
            ids, stop = itertools.count(1), asyncio.Event()
            committed: dict[int, str] = {}
            async with asyncio.TaskGroup() as clients:
                for _ in range(3):
                    clients.create_task(write(dsn, ids, stop, committed))
                for _ in range(2):
                    await asyncio.sleep(0.4)
                    await switch(on, "items", off=True)
                    await asyncio.sleep(0.6)
                    await switch(on, "items", off=False)
                    # Silencing again must find the last deferral ended.
                    async with asyncio.timeout(20):
                        while await read_active(on.db, "app"):  # noqa: ASYNC110 - the event is in the database
                            await asyncio.sleep(0.02)
                # Now both, so that the effects of one set off the other.
                await switch(on, "notes", off=True)
                await switch(on, "items", off=True)
                await asyncio.sleep(0.6)
                stop.set()
            await settle(on.db, on.store, source="app")
            progress = await read_progress(on.db, "app")
            assert progress is not None
            assert progress.calls > 100
            assert not await read_dead_letters(on.db, "app")
            noted = await on.db.values(b"select item || ' by ' || by_whom from public.notes")
            assert Counter(noted) == Counter(f"{number} by {user}" for number, user in committed.items())
            assert await on.db.value(
                b"select count(*) from public.pushed p join public.notes n on n.id = p.note"
            ) == len(committed)
            assert await on.db.value(b"select count(distinct note) from public.pushed") == len(committed)
            assert not await on.db.values(
                b"select 1 from public.pushed p join public.notes n on n.id = p.note where n.by_whom <> p.by_whom"
            )

            # Whoever wrote the row is the actor of its effects, and the row is what caused them.
            wrong = await on.store.values(
                b"select e.summary from afterwrite.activity e left join afterwrite.activity c on c.id = e.caused_by "
                b"where e.relation = 'public.notes' and (e.after ->> 'by_whom' is distinct from e.actor_id "
                b"or (c.id is not null and c.actor_id is distinct from e.actor_id))"
            )
            assert not wrong
            assert await on.store.value(
                b"select count(*) from afterwrite.activity e join afterwrite.activity c on c.id = e.caused_by "
                b"where e.relation = 'public.notes' and c.relation = 'public.items'"
            )

    asyncio.run(run())


def test_a_table_that_changes_its_name_while_the_replayer_is_away_keeps_its_bodies_and_no_other_gets_them(
    dsn: str,
) -> None:
    async def run() -> None:
        async with at_work(dsn, "items", replaying=False) as on:
            await switch(on, "items", off=True)

            async def write(table: str, *numbers: int) -> None:
                for number in numbers:
                    await on.db.run(f"insert into public.{table} values ({number}, 'x')".encode())

            await write("items", 1)
            await on.db.run(b"alter table public.items rename to things")
            await write("things", 2)
            await on.db.run(b"alter table public.things rename to old_items")
            # Another table takes the name, and is captured as well.
            await on.db.script(
                "create table public.items (id bigint primary key, name text);"
                "alter table public.items replica identity full; alter publication afterwrite add table public.items"
            )
            await write("items", 100)
            await write("old_items", 3)
            # They change places, as a rebuilt table does.
            await on.db.script(
                "begin; alter table public.items rename to scratch;alter table public.old_items rename to items; commit"
            )
            await write("items", 4)
            await write("scratch", 101)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(run_replayer(dsn, dsn, "app", stop=stop))
                await settle(on.db, on.store, source="app")
                await write("items", 5)
                await on.db.run(b"alter table public.items rename to again")
                await write("again", 6)
                await settle(on.db, on.store, source="app")
                stop.set()
            assert not await read_dead_letters(on.db, "app")
            assert await on.db.values(b"select item from public.notes order by id") == [1, 2, 3, 4, 5, 6]

    asyncio.run(run())


def test_every_trigger_of_the_demo_that_is_to_be_deferred_can_be(dsn: str) -> None:
    async def run() -> None:
        listed = Path(__file__).parents[1] / "demo" / "verdicts.csv"
        wanted = {
            (table, name)
            for table, name, verdict, _ in csv.reader(listed.read_text().splitlines())
            if verdict == "defer"
        }
        async with connect(dsn) as db:
            await install_store(db)
            await create_legacy_application(db, seed=1)
        async with stage_again(dsn) as on:
            triggers = [trigger for trigger in await on.triggers() if (trigger.table, trigger.name) in wanted]
            assert len(triggers) == len(wanted) == 18
            for trigger in triggers:
                await on.db.script(f"alter table {trigger.schema}.{trigger.table} replica identity full")
                findings = await prepare_deferral(on.db, trigger, source="app")
                assert all(finding.severity is not Severity.ERROR for finding in findings)

    asyncio.run(run())
