"""Bodies that run when something is no longer as it was: the table's columns, the session, the store itself."""

from __future__ import annotations

import asyncio

import msgspec
from deferring import SOURCE, change, stage, stage_again

from afterwrite.defer.letters import read_dead_letters, retry_dead_letters
from afterwrite.defer.progress import caught_up, read_progress
from afterwrite.defer.transplant import sees_whole_rows
from afterwrite.record import Activity, Lsn
from afterwrite.scan.catalog import read_inventory

DDL = """
create table items (id int primary key, name text, amount int);
alter table items replica identity full;
create table effects (n bigint generated always as identity, what text);
create function note() returns trigger language plpgsql as $$ begin {} return null; end $$;
create trigger t after insert on items for each row execute function note();
"""
WHOLE = DDL.format("insert into effects (what) values (to_jsonb(new)::text);")
NAMED = DDL.format("insert into effects (what) values (new.id::text);")


def item(number: int) -> Activity:
    return change("public.items", "insert", None, {"id": number, "name": str(number), "amount": 1})


def test_a_body_that_takes_the_whole_row_does_not_run_without_a_value_of_it(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(WHOLE)
            await on.defer("t")
            await on.teller.tell([item(1)])
            await on.db.run("alter table items rename name to label")
            await on.replay()
            assert await on.db.values("select what from effects") == []
            (letter,) = await read_dead_letters(on.db, SOURCE)
            assert letter.error == "the change has values of name for which public.items has no column any more"
            # A column added is no loss, and the functions learn of it.
            await on.db.run("alter table items add more int")
            full = {"id": 2, "label": "2", "amount": 1, "more": 7}
            await on.teller.tell([change("public.items", "insert", None, full)])
            await on.replay()
            assert await on.db.values("select what::jsonb ->> 'more' from effects") == ["7"]
            # With its old name back for a moment, what failed can be run.
            await on.db.run("alter table items rename label to name")
            assert await retry_dead_letters(on.db, [letter.id]) == {letter.id: None}
            assert await on.db.values("select what::jsonb ->> 'name' from effects order by n desc limit 1") == ["1"]

    asyncio.run(run())


def test_a_body_that_names_its_columns_runs_on_without_the_others(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(NAMED)
            await on.defer("t")
            await on.teller.tell([item(1)])
            await on.db.run("alter table items drop name")
            await on.replay()
            assert await on.db.values("select what from effects") == ["1"]

    asyncio.run(run())


def test_a_statement_trigger_does_not_miss_a_column_either(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL.format("insert into effects (what) select to_jsonb(f)::text from fresh f;").replace(
                    "for each row", "referencing new table as fresh for each statement"
                )
            )
            await on.defer("t")
            await on.teller.tell([item(1)])
            await on.db.run("alter table items rename name to label")
            await on.replay()
            assert await on.db.values("select what from effects") == []
            assert "values of name" in (await read_dead_letters(on.db, SOURCE))[0].error

    asyncio.run(run())


BODIES = {
    "perform f(new.id, old.name); return new;": False,
    "perform f(to_jsonb(new)); return null;": True,
    "insert into x select new.*; return null;": True,
    "execute 'insert into x select $1.*' using new; return null;": True,
    'perform f("new"."id"); return old;': False,
    "-- new\n perform f('new'); return null;": False,
}


def test_whether_a_body_takes_whole_rows_is_read_from_it(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(NAMED)
            trigger = next(each for each in (await read_inventory(on.db)).triggers if each.name == "t")
            for body, whole in BODIES.items():
                assert sees_whole_rows(msgspec.structs.replace(trigger, source=f"begin {body} end")) is whole, body

    asyncio.run(run())


def test_what_a_body_sets_for_its_session_is_forgotten_before_the_next_transaction(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL.format(
                    "insert into effects (what) values (coalesce(nullif(current_setting('app.who', true), ''), '-'));"
                    "perform set_config('app.who', new.name, false);"
                )
            )
            await on.defer("t")
            await on.teller.tell([item(1)], [item(2)])
            await on.teller.tell([item(3)])
            await on.replay()
            assert await on.db.values("select what from effects") == ["-"] * 3

    asyncio.run(run())


def test_a_store_restored_from_a_backup_counts_anew_and_nothing_is_passed_over(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(NAMED)
            await on.defer("t")
            await on.teller.tell([item(1)])
            await on.replay()
            for number in range(2, 8):
                await on.teller.tell([item(number)])
            await on.replay()
            before = await read_progress(on.db, SOURCE)
            # The backup knew two batches; what was captured since gets their positions again.
            for table in ("activity", "batch"):
                what = "batch_id" if table == "activity" else "id"
                await on.db.run(
                    f"delete from afterwrite.{table} where {what} in "
                    "(select id from afterwrite.batch where position > 2)".encode()
                )
            await on.db.run("update afterwrite.feed set position = 2")
            await on.teller.tell([item(8)])
            assert not await caught_up(on.db, on.store, Lsn(on.teller.lsn), source=SOURCE)
            async with stage_again(dsn) as again:
                await again.replay()
            after = await read_progress(on.db, SOURCE)
            assert before
            assert after
            assert after.position < before.position
            assert await on.db.values("select what from effects order by n") == [str(number) for number in range(1, 9)]

    asyncio.run(run())


def test_an_old_row_of_which_the_wal_had_the_key_only_is_not_taken_for_the_row(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL.format("insert into effects (what) values (coalesce(old.name, 'nothing'));").replace(
                    "after insert", "after update or delete"
                )
            )
            await on.defer("t")
            whole = {"id": 1, "name": "one", "amount": 1}
            await on.teller.tell([change("public.items", "delete", whole)])
            await on.db.run("alter table items replica identity default")
            await on.teller.tell([change("public.items", "delete", {"id": 1})])
            await on.teller.tell([change("public.items", "update", {"id": 1}, {**whole, "id": 2})])
            await on.replay()
            assert await on.db.values("select what from effects") == ["one"]
            letters = await read_dead_letters(on.db, SOURCE)
            assert {each.error for each in letters} == {"the WAL does not hold the whole old row of public.items"}
            # Where old rows are whole, a value that is missing is of a column that was added since.
            await on.db.script("alter table items replica identity full; alter table items add more int default 7")
            await on.teller.tell([change("public.items", "delete", whole)])
            await on.replay()
            assert await on.db.values("select what from effects") == ["one", "one"]

    asyncio.run(run())
