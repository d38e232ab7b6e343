"""Observing reads what the server counted meanwhile, divides what triggers share, and names rows that many wait for."""

from __future__ import annotations

import asyncio

import pytest
from psycopg.conninfo import make_conninfo

from afterwrite.errors import UsageError
from afterwrite.postgres import Database, connect
from afterwrite.scan.cost.figures import Costs, Origin, Window
from afterwrite.scan.cost.observe import observe, parse_duration
from afterwrite.scan.cost.reckon import reckon
from afterwrite.scan.cost.rehearse import rehearse
from afterwrite.scan.survey import Survey, survey

SCHEMA = """
create table audit_log (id bigserial primary key, tab text not null, op text not null, row jsonb);
create table total (id int primary key, number bigint not null);
insert into total values (1, 0);
create table orders (id bigserial primary key, amount int not null);
create table parcels (id bigserial primary key, amount int not null);
create function log_change() returns trigger language plpgsql as $$ begin
  insert into audit_log (tab, op, row) values (tg_table_name, tg_op, to_jsonb(new));
  return null;
end $$;
create function dawdle() returns trigger language plpgsql as $$ begin perform pg_sleep(0.002); return new; end $$;
create function count_it() returns trigger language plpgsql as $$ begin
  update total set number = number + 1 where id = 1;
  return null;
end $$;
create trigger orders_log after insert or update on orders for each row execute function log_change();
create trigger orders_dawdle before insert on orders for each row execute function dawdle();
create trigger parcels_log after insert on parcels for each row execute function log_change();
create trigger parcels_total after insert on parcels for each row execute function count_it();
"""


async def prepare(dsn: str, track: str = "pl") -> Survey:
    async with connect(dsn) as db:
        await db.script(SCHEMA)
        await db.run(f"alter database {db.connection.info.dbname} set track_functions = '{track}'".encode())
        return await survey(db)


async def write(db: Database) -> None:
    """Sixty orders, twenty of them changed, and twenty parcels."""
    for _ in range(20):
        await db.run(b"insert into orders (amount) select 1 from generate_series(1, 3)")
        await db.run(b"update orders set amount = 2 where id = (select max(id) from orders)")
        await db.run(b"insert into parcels (amount) values (1)")
    await db.run(b"select pg_stat_force_next_flush()")


async def watched(dsn: str, found: Survey, seconds: float = 1.5) -> Window:
    async with connect(dsn) as watching, connect(dsn) as working:
        task = asyncio.create_task(observe(watching, found, seconds))
        await asyncio.sleep(0.3)
        await write(working)
        return await task


def test_time_is_counted_and_a_shared_functions_is_divided_by_the_rows_of_its_tables(dsn: str) -> None:
    async def run() -> tuple[Survey, Window]:
        found = await prepare(dsn)
        return found, await watched(dsn, found)

    found, window = asyncio.run(run())
    costs = reckon(found, window=window)
    assert costs.origins == (Origin.OBSERVE,)
    assert costs.weights is Origin.OBSERVE
    assert window.totals.samples >= 2
    assert window.totals.wal
    by_name = {each.name: each for each in costs.triggers}
    slow = costs.triggers[0]
    assert (slow.name, slow.calls) == ("orders_dawdle", 60)
    assert slow.us is not None
    assert 2_000 < slow.us < 6_000
    assert slow.us_from is Origin.OBSERVE
    assert not slow.split
    assert slow.time_share is not None
    assert slow.time_share > 0.3
    # 100 calls of log_change(): 60 orders inserted and 20 updated, 20 parcels.
    assert by_name["orders_log"].calls == pytest.approx(80)
    assert by_name["parcels_log"].calls == pytest.approx(20)
    assert "log_change() are shared by 2 triggers" in by_name["orders_log"].split
    assert by_name["orders_log"].rows == pytest.approx(1)
    assert by_name["parcels_log"].rows == pytest.approx(1)
    orders = next(each for each in costs.tables if each.table == "public.orders")
    assert (orders.inserted, orders.updated, orders.deleted) == (60, 20, 0)
    retire = costs.savings[0]
    assert retire.time_low is not None
    assert retire.time_high is not None
    assert retire.time_low <= retire.time_high


def test_observed_times_go_with_rehearsed_wal_and_each_figure_says_where_it_is_from(dsn: str) -> None:
    async def run() -> Costs:
        found = await prepare(dsn)
        window = await watched(dsn, found)
        async with connect(dsn) as db:
            measured = await rehearse(db, found)
        return reckon(found, window=window, measured=[measured])

    costs = asyncio.run(run())
    assert costs.origins == (Origin.OBSERVE, Origin.REHEARSE)
    logged = next(each for each in costs.triggers if each.name == "orders_log")
    assert (logged.calls_from, logged.us_from, logged.wal_from) == (Origin.OBSERVE, Origin.OBSERVE, Origin.REHEARSE)
    assert logged.wal is not None
    assert 50 < logged.wal < 1_500
    assert "and what a row took when it was measured" in logged.split
    dawdled = next(each for each in costs.triggers if each.name == "orders_dawdle")
    assert dawdled.rows == 0


def test_functions_that_nobody_counts_are_said_with_the_remedy(dsn: str) -> None:
    async def run() -> tuple[Survey, Window]:
        found = await prepare(dsn, track="none")
        return found, await watched(dsn, found)

    found, window = asyncio.run(run())
    finding = next(each for each in window.findings if each.rule == "functions-not-counted")
    assert finding.remedy is not None
    assert "track_functions" in finding.remedy
    costs = reckon(found, window=window)
    slow = next(each for each in costs.triggers if each.name == "orders_dawdle")
    assert (slow.calls, slow.us, slow.us_from) == (60, None, Origin.NONE)
    assert finding in costs.missing


def test_rows_that_a_trigger_makes_sessions_queue_for_are_named_with_the_trigger(dsn: str) -> None:
    async def insert() -> None:
        async with connect(dsn) as db:
            await db.run(b"insert into parcels (amount) values (1)")

    async def run() -> Window:
        found = await prepare(dsn)
        async with connect(dsn) as watching, connect(dsn) as holding:
            async with holding.transaction():
                await holding.run(b"insert into parcels (amount) values (1)")
                waiting = [asyncio.create_task(insert()) for _ in range(3)]
                await asyncio.sleep(0.3)
                window = await observe(watching, found, 1.3)
            await asyncio.gather(*waiting)
            return window

    [hot] = asyncio.run(run()).hot
    assert (hot.table, hot.triggers, hot.certain) == ("public.total", ("public.parcels.parcels_total",), True)
    assert hot.queue == 3
    assert hot.waited_seconds > 2


def test_what_was_seen_till_it_was_stopped_is_kept(dsn: str) -> None:
    async def run() -> Window:
        found = await prepare(dsn)
        stop = asyncio.Event()
        async with connect(dsn) as watching, connect(dsn) as working:
            task = asyncio.create_task(observe(watching, found, 600, stop=stop))
            await asyncio.sleep(0.3)
            await write(working)
            stop.set()
            return await task

    window = asyncio.run(run())
    assert window.totals.interrupted
    assert window.totals.seconds < 60
    assert sum(writes.inserted for writes in window.tables.values()) > 60


def test_a_role_without_privileges_observes_calls_and_rows_and_is_told_what_is_hidden(dsn: str) -> None:
    async def run() -> Window:
        found = await prepare(dsn)
        async with connect(dsn) as db:
            await db.script(
                "create extension pg_stat_statements;"
                "do $$ begin create role afterwrite_watcher login; exception when duplicate_object then null; end $$"
            )
        async with connect(make_conninfo(dsn, user="afterwrite_watcher")) as watching, connect(dsn) as working:
            task = asyncio.create_task(observe(watching, found, 1.4))
            await asyncio.sleep(0.3)
            await write(working)
            return await task

    window = asyncio.run(run())
    assert [each.rule for each in window.findings] == ["statements-hidden"]
    assert sum(time.calls for time in window.functions.values()) == 180
    assert window.totals.active_ms


def test_nested_statements_give_the_wal_of_a_trigger_where_they_are_tracked(dsn: str) -> None:
    async def run() -> tuple[Survey, Window]:
        found = await prepare(dsn)
        async with connect(dsn) as db:
            await db.run(b"create extension pg_stat_statements")
            name = db.connection.info.dbname
            await db.run(f"alter database {name} set pg_stat_statements.track = 'all'".encode())
        return found, await watched(dsn, found)

    found, window = asyncio.run(run())
    assert not window.findings
    assert window.nested is not None
    assert window.nested["audit_log"].calls == 100
    costs = reckon(found, window=window)
    logged = next(each for each in costs.triggers if each.name == "orders_log")
    assert logged.wal_from is Origin.OBSERVE
    assert logged.wal is not None
    assert 100 < logged.wal < 1_500
    assert logged.wal_share is not None
    assert 0 < logged.wal_share < 1


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("5m", 300), ("1h", 3600), ("90", 90), (" 1.5m ", 90)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-5s", "5 parsecs"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no duration"):
        parse_duration(text)
