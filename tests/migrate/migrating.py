"""A small application with triggers in every state, for the tests of migrate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.worker import Source, Worker
from afterwrite.defer.replay import run_replayer
from afterwrite.migrate.gates import LagReading, Place, Readings, SlotReading, read_slot
from afterwrite.migrate.plan import Plan, Thresholds, make_plan, read_plan, write_plan
from afterwrite.migrate.pulse import Load, LoadReading
from afterwrite.postgres import Database, LockPolicy, connect
from afterwrite.prove.prover import Prover
from afterwrite.prove.report import Standing
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.survey import Survey
from afterwrite.scan.verdicts import Judgement, Reason, Verdict
from afterwrite.store.writer import open_sink

PLACE = Place(source="app")
QUICK = LockPolicy(lock_timeout_ms=100, attempts=3, first_pause_ms=10, longest_pause_ms=20)

SCHEMA = """
create schema app;
do $$
begin
    create role migrate_clerk;
exception when duplicate_object then null;
end
$$;
create table app.audit_log (id bigint generated always as identity, what text, row jsonb);
create table app.statistics (name text primary key, value bigint not null);
create table app.notifications (id bigint primary key, body text);
create table app.project_settings (id bigint primary key, value text);
create table app.payments (id bigint, paid_on date, amount numeric, primary key (id, paid_on))
    partition by range (paid_on);
create table app.payments_2024 partition of app.payments for values from ('2024-01-01') to ('2025-01-01');
create table app.payments_2025 partition of app.payments for values from ('2025-01-01') to ('2026-01-01')
    partition by range (paid_on);
create table app."payments 2025 H1" partition of app.payments_2025 for values from ('2025-01-01') to ('2025-07-01');
create table app.tokens (id bigint primary key, name text);
create table app.users (id bigint primary key, name text, updated_at timestamptz);

create function app.log() returns trigger language plpgsql security definer set search_path = app, pg_temp as $$
begin
    insert into audit_log (what, row) values (tg_table_name || ' ' || tg_op, to_jsonb(coalesce(new, old)));
    return null;
end
$$;
comment on function app.log() is 'It''s the audit: 100% of it';
revoke all on function app.log() from public;
grant execute on function app.log() to migrate_clerk with grant option;
create function app.count() returns trigger language plpgsql as $$
begin
    update app.statistics set value = value + 1 where name = tg_argv[0];
    return null;
end
$$;
create function app.check_name() returns trigger language plpgsql as $$
begin
    if new.name = '' then
        raise 'a user has a name';
    end if;
    return null;
end
$$;
create function app.touch() returns trigger language plpgsql as $$
begin
    new.updated_at := now();
    return new;
end
$$;

create trigger log after insert or update or delete on app.notifications for each row execute function app.log();
create trigger count after insert on app.notifications for each row execute function app.count('notifications');
create trigger log after insert or update or delete on app.project_settings for each row execute function app.log();
alter table app.project_settings enable always trigger log;
create trigger log after insert or update or delete on app.payments for each row execute function app.log();
create trigger log_statements after insert on app.payments for each statement execute function app.count('payments');
alter table app.payments_2024 enable always trigger log;
alter table app."payments 2025 H1" disable trigger log;
comment on trigger log on app.payments is 'Don''t \\ touch';
create trigger "Log it" after insert or update or delete on app.tokens for each row execute function app.log();
alter table app.tokens enable replica trigger "Log it";
create trigger dead after insert on app.tokens for each row execute function app.log();
alter table app.tokens disable trigger dead;
create trigger log after insert or update of name or delete on app.users for each row
    when (1 = 1) execute function app.log();
create trigger log_late after insert on app.users for each row execute function app.log();
create constraint trigger checked after insert on app.users deferrable initially deferred
    for each row execute function app.check_name();
create trigger touch before update on app.users for each row execute function app.touch();
insert into app.statistics values ('notifications', 0), ('payments', 0);
"""

# What a constraint trigger does may not be turned off: the plan refuses it.
_VERDICTS = {"touch": Verdict.KEEP, "checked": Verdict.KEEP, "count": Verdict.DEFER}


@asynccontextmanager
async def application(dsn: str) -> AsyncIterator[Database]:
    """A connection to a database in which the application was just laid."""
    async with connect(dsn, options={"search_path": "public"}) as db:
        await db.script(SCHEMA)
        yield db


async def judge(db: Database) -> list[Judgement]:
    """What a scan might say of the application's triggers: the verdict goes by the trigger's name."""
    return [
        Judgement(
            trigger=trigger,
            verdict=_VERDICTS.get(trigger.name, Verdict.RETIRE),
            reasons=(Reason(rule="test", line=1, text=f"it is called {trigger.name}"),),
        )
        for trigger in (await read_inventory(db)).triggers
    ]


async def plan_of(db: Database, *, soak_seconds: float = 0.0) -> Plan:
    """The application's plan, as it comes out of the file."""
    thresholds = Thresholds(capture_lag_seconds=2.0, deferral_lag_seconds=5.0, baseline_seconds=0.0)
    return read_plan(write_plan(make_plan(await judge(db), soak_seconds=soak_seconds, thresholds=thresholds)))


_LOAD = Load(
    seconds=3_600.0,
    transactions=100_000,
    told_apart=100_000,
    rollbacks=10,
    deadlocks=0,
    failed_sessions=0,
    active_us=900.0,
    writes=200_000,
    write_us=400.0,
    cpu_us=700.0,
)
HOLDING = Readings(
    load=LoadReading(before=_LOAD, since=_LOAD, silenced=True),
    slot=SlotReading(active=True, wal_status="reserved", safe_wal_size=None, lag_bytes=0),
    lag=LagReading(seconds=0.01, arrived=True),
    unpublished=(),
    partial=(),
    proof=Standing(transactions=1_000_000, seconds=1_000_000.0),
)


def holding(**changes: object) -> Readings:
    """Readings that meet every gate, but for these."""
    return msgspec.structs.replace(HOLDING, **changes)


async def until(condition: Callable[[], Awaitable[object]], *, seconds: float = 10.0) -> None:
    """Wait until the condition is true; fails after so many seconds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def end_deferrals(db: Database) -> None:
    """What the replayer does when the marks come by, for tests without one."""
    await db.run(
        "update afterwrite.deferral set state = 'ended', since_lsn = coalesce(since_lsn, '0/1'), until_lsn = '0/2' "
        "where state in ('prepared', 'live')"
    )


TABLES = tuple(("app", name) for name in ("notifications", "project_settings", "payments", "tokens", "users"))


@asynccontextmanager
async def captured(dsn: str, db: Database, found: Survey | None = None) -> AsyncIterator[Place]:
    """A capture worker and a replayer at work on the application, and a prover where there is a survey."""
    place = Place(source="app", slot=f"gates_{dsn[-8:]}")
    setup = CaptureSetup(source="app", tables=TABLES, legacy_tables=(("app", "audit_log"),), slot=place.slot)
    async with open_sink(dsn) as sink:
        await prepare(db, sink, setup)
    worker = Worker(
        Source(dsn=dsn, name="app", slot=place.slot, legacy_tables=frozenset(setup.legacy_tables)),
        partial(open_sink, dsn),
        observers=[Prover(dsn, found.judgements, found.bodies)] if found else [],
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        group.create_task(run_replayer(dsn, dsn, "app", stop=stop))

        async def is_active() -> bool:
            slot = await read_slot(db, place)
            return slot is not None and slot.active

        await until(is_active)
        yield place
        worker.stop()
        stop.set()
