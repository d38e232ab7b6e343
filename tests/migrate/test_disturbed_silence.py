"""What people do to a table while its triggers are off: nothing is doubled, forgotten, or said to be proven."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from migrating import QUICK, holding, until

from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import Gap, prepare
from afterwrite.capture.worker import Source, Worker
from afterwrite.defer.progress import settle
from afterwrite.defer.replay import run_replayer
from afterwrite.errors import Drift
from afterwrite.migrate import backfill
from afterwrite.migrate.engine import remove_phases, run_phase
from afterwrite.migrate.gates import Place, Readings, read_slot
from afterwrite.migrate.plan import Plan, Thresholds, make_plan
from afterwrite.migrate.rollback import Rollback, rollback_phase
from afterwrite.postgres import Database, LockPolicy, connect
from afterwrite.prove.prover import Prover
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.survey import survey
from afterwrite.scan.verdicts import Judgement, Reason, Verdict
from afterwrite.seal import split_keys
from afterwrite.store.writer import open_sink, record_gap

SCHEMA = """
create schema app;
create table app.log (id bigint generated always as identity, what text, row jsonb);
create table app.copy (id bigint primary key, v text);
create table app.t (id bigint primary key, v text);
alter table app.t replica identity full;
create function app.log() returns trigger language plpgsql as $$
begin
    insert into app.log (what, row) values (tg_table_name, to_jsonb(coalesce(new, old)));
    return null;
end
$$;
create function app.copy() returns trigger language plpgsql as $$
begin
    insert into app.copy values (new.id, new.v) on conflict (id) do update set v = excluded.v;
    return null;
end
$$;
"""
LOGGED = "create trigger log after insert or update or delete on app.{0} for each row execute function app.log();"
AGAIN = (
    "create table app.t (id bigint primary key, v text); alter table app.t replica identity full;"
    + LOGGED.format("t")
    + "alter publication afterwrite add table only app.t;"
)


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)


@asynccontextmanager
async def capturing(
    dsn: str,
    db: Database,
    *tables: str,
    proving: bool = False,
    replaying: bool = True,
    accept_gap: bool = False,
    stamp_key: str | None = None,
) -> AsyncIterator[Place]:
    place = Place(source="app", slot=f"disturbed_{dsn[-8:]}", stamp_key=stamp_key)
    setup = CaptureSetup(
        source="app",
        tables=tuple(("app", table) for table in tables or ("t",)),
        legacy_tables=(("app", "log"),),
        slot=place.slot,
    )

    async def note(gap: Gap) -> None:
        await record_gap(db, "app", after=gap.after, until=gap.until, reason=gap.reason)

    async with open_sink(dsn) as sink:
        await prepare(db, sink, setup, accept_gap=accept_gap, on_gap=note)
    found = await survey(db) if proving else None
    worker = Worker(
        Source(
            dsn=dsn,
            name="app",
            slot=place.slot,
            legacy_tables=frozenset(setup.legacy_tables),
            stamp_keys=split_keys(stamp_key),
        ),
        partial(open_sink, dsn),
        observers=[Prover(dsn, found.judgements, found.bodies)] if found else [],
    )
    stop = asyncio.Event()

    async def is_active() -> bool:
        slot = await read_slot(db, place)
        return slot is not None and slot.active

    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        if replaying:
            group.create_task(run_replayer(dsn, dsn, "app", stop=stop))
        try:
            await until(is_active)
            yield place
        finally:
            worker.stop()
            stop.set()


async def plan_of(db: Database) -> Plan:
    judged = [
        Judgement(
            trigger=trigger,
            verdict=Verdict.DEFER if trigger.name == "copy" else Verdict.RETIRE,
            reasons=(Reason(rule="test", line=1, text=f"it is called {trigger.name}"),),
        )
        for trigger in (await read_inventory(db)).triggers
        if trigger.schema == "app" and trigger.parent_oid is None
    ]
    return make_plan(judged, soak_seconds=0.0, thresholds=Thresholds(baseline_seconds=0.0))


async def silence(db: Database, plan: Plan, place: Place) -> None:
    for phase in plan.phases:
        if phase.triggers:
            await run_phase(db, plan, phase.number, place=place, apply=True, policy=QUICK)


async def roll_back(db: Database, place: Place, *, fill: bool = True) -> Rollback:
    return await rollback_phase(db, None, place=place, apply=True, backfill=fill, policy=QUICK)


async def logged(db: Database) -> list[Any]:
    return await db.values("select (row ->> 'id')::int from app.log order by id")


async def states(db: Database) -> dict[str, str]:
    return {
        str(line["t"]): str(line["s"])
        for line in await db.values(
            "select jsonb_build_object('t', c.relname, 's', t.tgenabled) from pg_trigger t "
            "join pg_class c on c.oid = t.tgrelid where t.tgname in ('log', 'copy')"
        )
    }


def said(done: Rollback, rule: str) -> list[str]:
    return [finding.text for finding in done.findings if finding.rule == rule]


def test_what_a_migration_tells_is_signed_where_the_worker_wants_a_key(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db, stamp_key="new key,old key") as place:
                await silence(db, plan, place)
                await roll_back(db, place, fill=False)
                await silence(db, plan, msgspec.structs.replace(place, stamp_key=None))

                async def told() -> bool:
                    return len(await db.values(marks)) == 3

                marks = (
                    "select jsonb_build_array(action, metadata -> 'unsigned') from afterwrite.activity"
                    " where category = 'migration' order by id"
                )
                await until(told)
                assert await db.values(marks) == [
                    ["trigger.silence", None], ["trigger.restore", None], ["trigger.silence", True],
                ]  # fmt: skip

    asyncio.run(main())


def test_a_trigger_turned_on_and_off_again_by_hand_is_not_filled_twice(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db, proving=True) as place:
                await silence(db, plan, place)
                await db.run("insert into app.t values (1)")
                await db.run("alter table app.t enable trigger log")
                await db.run("insert into app.t values (2)")
                await db.run("alter table app.t disable trigger log")
                done = await roll_back(db, place)
            assert len(said(done, "rollback.disturbed")) == 1
            assert await logged(db) == [2]

    asyncio.run(main())


def test_what_capture_lost_or_retention_took_is_said_and_not_proven(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await db.run("insert into app.t values (1)")
                await settle(db, db, source="app")
            await db.run("insert into app.t values (2)")

            async def is_free() -> bool:
                return not (slot := await read_slot(db, place)) or not slot.active

            await until(is_free)
            await db.run(b"select pg_drop_replication_slot(%(slot)s)", slot=place.slot)
            async with capturing(installed_dsn, db, accept_gap=True) as place:
                await db.run("insert into app.t values (3)")
                await db.run("insert into afterwrite.expired_day (day) values ((now() at time zone 'UTC')::date)")
                done = await roll_back(db, place)
            assert await logged(db) == [1, 3]
            lost = said(done, "rollback.hole")
            assert ["what committed after" in lost[0], "retention" in lost[1]] == [True, True]
            assert not any(each.whole for each in done.filled)

    asyncio.run(main())


def test_where_a_border_was_lost_nobody_waits_for_it(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await settle(db, db, source="app")
                await db.run("delete from afterwrite.activity")  # as retention does after a long silence
                began = asyncio.get_running_loop().time()
                done = await roll_back(db, place)
                assert asyncio.get_running_loop().time() - began < backfill._PATIENCE_SECONDS / 2
            assert "the store lost where it began or ended" in said(done, "rollback.hole")[0]

    asyncio.run(main())


def test_the_hole_of_an_earlier_migration_is_filled_by_the_next_rollback(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                for number, fill in ((1, False), (2, True)):
                    await silence(db, plan, place)
                    await db.run(f"insert into app.t values ({number})".encode())
                    done = await roll_back(db, place, fill=fill)
                    assert done.finished
                assert (await roll_back(db, place)).filled == ()
            assert await logged(db) == [1, 2]

    asyncio.run(main())


def test_a_table_with_another_name_in_between_is_filled_and_not_said_to_be_proven(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await db.run("insert into app.t values (1)")
                await db.run("alter table app.t rename to u")
                await db.run("insert into app.u values (2)")
                await db.run("alter table app.u rename to t")
                await db.run("insert into app.t values (3)")
                done = await roll_back(db, place)
            assert sorted(await logged(db)) == [1, 2, 3]
            assert "renamed in that time" in said(done, "rollback.unproven")[0]

    asyncio.run(main())


def test_a_hole_is_filled_also_when_old_rows_are_no_longer_logged(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await db.run("insert into app.t values (1, 'one')")
                await db.run("delete from app.t")
                await roll_back(db, place, fill=False)
                await db.run("alter table app.t replica identity default")  # as the end of a migration sets it back
                done = await roll_back(db, place)
            assert [each.whole for each in done.filled] == [True]
            assert await db.values("select row ->> 'v' from app.log order by id") == ["one", "one"]

    asyncio.run(main())


def test_what_another_body_would_write_is_not_held_against_what_was_filled(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await db.run("insert into app.t values (1)")
                await db.script(
                    "create or replace function app.log() returns trigger language plpgsql as $$ begin "
                    "insert into app.log (what) values ('new'); return null; end $$"
                )
                done = await roll_back(db, place)
                await db.run("insert into app.t values (2)")
            assert await db.values("select what from app.log order by id") == ["t", "new"]
            assert "changed since it was turned off" in said(done, "rollback.unproven")[0]

    asyncio.run(main())


@pytest.mark.parametrize("what", ["drop table app.t", "alter table app.t rename to t_old"])
def test_another_table_of_the_same_name_is_never_taken_for_the_one_whose_trigger_is_off(
    installed_dsn: str, what: str
) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await db.script(f"{what}; {AGAIN}")
                await db.run("insert into app.t values (10)")
                with pytest.raises(Drift, match="another table"):
                    await silence(db, plan, place)
                await db.run("insert into app.t values (11)")
                done = await roll_back(db, place)
                assert set((await states(db)).values()) == {"O"}
                assert bool(said(done, "rollback.forgotten")) is what.startswith("drop")
                await silence(db, await plan_of(db) if "old" in what else plan, place)
                assert (await states(db))["t"] == "D"
                await roll_back(db, place)
                assert set((await states(db)).values()) == {"O"}
            assert await logged(db) == [10, 11]

    asyncio.run(main())


def test_a_table_that_cannot_be_made_as_it_was_keeps_no_other_from_it(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            for table in ("a", "z"):
                await db.script(
                    f"create table app.{table} (id int primary key, v text); alter table app.{table} replica identity "
                    f"full; create trigger log after insert or update of v on app.{table} for each row "
                    "execute function app.log()"
                )
            plan = await plan_of(db)
            async with capturing(installed_dsn, db, "t", "a", "z") as place:
                await silence(db, plan, place)
                await remove_phases(db, plan, None, place=place, apply=True, policy=QUICK)
                await db.run("alter table app.a rename v to w")
                with pytest.raises(Drift, match=r"app\.a\.log could not be made as it was") as caught:
                    await roll_back(db, place)
                assert await states(db) == {"t": "O", "z": "O"}
                assert "on app.a" in (caught.value.remedy or "").lower()
                await db.run("alter table app.a rename w to v")
                assert (await roll_back(db, place)).restored == ("app.a.log",)

    asyncio.run(main())


def test_a_value_whose_column_is_gone_is_not_filled_in_as_nothing(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(SCHEMA + LOGGED.format("t"))
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await db.run("insert into app.t values (1, 'one')")
                await db.run("alter table app.t rename v to w")
                await db.run("insert into app.t values (2, 'two')")
                done = await roll_back(db, place)
                assert await db.values("select row ->> 'w' from app.log") == ["two"]
                assert "1 calls of the body failed" in said(done, "rollback.hole")[0]
                assert await db.values("select error from afterwrite.dead_letter") == [
                    "the change has values of v for which app.t has no column any more"
                ]

    asyncio.run(main())


def test_deferred_bodies_catch_up_before_their_triggers_run_again(installed_dsn: str) -> None:
    async def main() -> None:
        async with connect(installed_dsn) as db:
            await db.script(
                SCHEMA + "create trigger copy after insert or update on app.t for each row execute function app.copy();"
            )
            plan = await plan_of(db)
            async with capturing(installed_dsn, db) as place:
                await silence(db, plan, place)
                await db.run("insert into app.t values (1, 'older')")
                done = await roll_back(db, place)
                await db.run("update app.t set v = 'newest'")
                assert said(done, "rollback.behind") == []
                await settle(db, db, source="app")
                assert await db.values("select v from app.copy") == ["newest"]
                await silence(db, plan, place)
            await db.run("update app.t set v = 'while nobody runs it'")
            done = await roll_back(db, place)
            assert "may put an older one back" in said(done, "rollback.behind")[0]

    asyncio.run(main())


def test_partitions_that_are_held_one_after_the_other_do_not_add_up(installed_dsn: str) -> None:
    async def main() -> None:
        count, took, stop = 6, list[float](), asyncio.Event()
        begun = asyncio.Event()

        async def hold(number: int) -> None:
            async with connect(installed_dsn) as db, db.transaction():
                await db.run(f"insert into app.p{number} values ({number})".encode())
                await begun.wait()
                await asyncio.sleep(0.2 * number)

        async def write() -> None:
            async with connect(installed_dsn) as db:
                while not stop.is_set():
                    since = asyncio.get_running_loop().time()
                    await db.run("insert into app.p values (0)")
                    took.append(asyncio.get_running_loop().time() - since)
                    await asyncio.sleep(0.02)

        async with connect(installed_dsn) as db:
            await db.script(
                SCHEMA
                + "create table app.p (id int) partition by list (id);"
                + "".join(f"create table app.p{n} partition of app.p for values in ({n});" for n in range(count))
                + LOGGED.format("p")
            )
            plan = await plan_of(db)
            number = next(phase.number for phase in plan.phases if phase.triggers)
            patience = LockPolicy(lock_timeout_ms=300, attempts=30, longest_pause_ms=200)
            async with asyncio.TaskGroup() as group:
                for held in range(1, count):
                    group.create_task(hold(held))
                group.create_task(write())
                await asyncio.sleep(0.5)
                begun.set()
                await run_phase(db, plan, number, place=Place(source="app"), apply=True, policy=patience)
                stop.set()
            assert max(took) < 0.3 + 0.4

    asyncio.run(main())
