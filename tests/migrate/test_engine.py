"""Phases are silenced and rolled back exactly, table by table, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest
from migrating import PLACE, QUICK, application, end_deferrals, holding, judge, plan_of, until

from afterwrite.demo.story import Chapter, Narrator, Script, silence_phases
from afterwrite.errors import Drift, GateNotMet, Refused, UsageError
from afterwrite.migrate import engine
from afterwrite.migrate.backup import catalog_state
from afterwrite.migrate.deeds import EventKind, MigrationEvent
from afterwrite.migrate.engine import remove_phases, run_all, run_phase
from afterwrite.migrate.gates import LagReading, Readings
from afterwrite.migrate.ledger import Action, read_ledger, read_pause, read_silenced, set_pause
from afterwrite.migrate.phase import State
from afterwrite.migrate.plan import Plan, check_plan
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.migrate.status import status
from afterwrite.postgres import Database, LockTimeout, connect
from afterwrite.settings import Settings

Measured = Callable[[Readings], None]


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Every gate holds, unless the test says otherwise; how gates are measured is tested in test_gates.py."""
    found = holding()

    async def measure(*_: object, **__: object) -> Readings:
        return found

    def say(readings: Readings) -> None:
        nonlocal found
        found = readings

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)
    monkeypatch.setattr("afterwrite.migrate.status.measure", measure)
    return say


async def silence(db: Database, plan: Plan, number: int, **more: Any) -> engine.PhaseRun:
    return await run_phase(db, plan, number, place=PLACE, apply=True, policy=QUICK, **more)


async def roll_back(db: Database, number: int | None = None, **more: Any) -> Any:
    return await rollback_phase(db, number, place=PLACE, apply=True, policy=QUICK, **more)


async def states(db: Database, trigger: str) -> dict[str, str]:
    rows = await db.values(
        "select tgrelid::regclass::text || '=' || tgenabled::text from pg_trigger where tgname = %(name)s order by 1",
        name=trigger,
    )
    return dict(row.rsplit("=", 1) for row in rows)


def test_a_dry_run_changes_nothing_and_shows_what_apply_runs(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            everything = "select count(*) from afterwrite.ledger, afterwrite.migration"
            for phase in plan.phases:
                assert not (await run_phase(db, plan, phase.number, place=PLACE, apply=False)).applied
                assert await catalog_state(db) == before
                assert await db.value(everything) == 0
            for phase in plan.phases:
                shown = await run_phase(db, plan, phase.number, place=PLACE, apply=False, policy=QUICK)
                ran: list[str] = []

                def listen(event: MigrationEvent, ran: list[str] = ran) -> None:
                    if event.kind is EventKind.STATEMENT:
                        ran.append(event.text)

                done = await silence(db, plan, phase.number, on_event=listen)
                assert ran == [text for deed in shown.deeds for text in deed.statements]
                assert done.deeds == shown.deeds
                assert done.sql == shown.sql
                assert done.silenced == shown.silenced

    asyncio.run(main())


def test_the_shown_script_does_the_same_by_hand(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            for phase in plan.phases:
                shown = await run_phase(db, plan, phase.number, place=PLACE, apply=False)
                with psycopg.connect(installed_dsn, autocommit=True) as editor:
                    editor.execute(shown.sql.encode())
            silenced = await read_silenced(db)
            assert set(silenced) == {t.trigger for phase in plan.phases for t in phase.triggers} - {"app.tokens.dead"}
            assert [(await silence(db, plan, phase.number)).deeds for phase in plan.phases] == [()] * 5
            shown = await rollback_phase(db, None, place=PLACE, apply=False)
            with psycopg.connect(installed_dsn, autocommit=True) as editor:
                editor.execute(shown.sql.encode())
            assert await catalog_state(db) == before
            assert await read_silenced(db) == {}
            assert (await status(db, place=PLACE)).migration.outcome == "rolled back"  # type: ignore[union-attr]

    asyncio.run(main())


def test_every_phase_goes_back_and_forward_to_the_same_bytes(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            start = await catalog_state(db)
            forward: list[str] = []
            for phase in plan.phases:
                before = await catalog_state(db)
                run = await silence(db, plan, phase.number)
                assert run.state is State.SILENCED
                forward.append(await catalog_state(db))
                assert forward[-1] != before
                back = await roll_back(db, phase.number)
                assert set(back.restored) == set(run.silenced)
                assert await catalog_state(db) == before
                await end_deferrals(db)
                assert await run_and_state(db, plan, phase.number) == forward[-1]
            back = await roll_back(db)
            assert back.phases == (5, 4, 3, 2, 1)
            assert back.finished
            assert await catalog_state(db) == start
            await end_deferrals(db)
            for phase, state in zip(plan.phases, forward, strict=True):
                assert await run_and_state(db, plan, phase.number) == state

    asyncio.run(main())


async def run_and_state(db: Database, plan: Plan, number: int) -> str:
    await silence(db, plan, number)
    return await catalog_state(db)


def test_states_of_partitions_and_of_odd_triggers_are_kept_exactly(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            log = await states(db, "log")
            assert set(log.values()) == {"O", "A", "D"}
            for phase in plan.phases:
                await silence(db, plan, phase.number)
            assert set((await states(db, "log")).values()) == {"D"}
            assert await states(db, "Log it") == {"app.tokens": "D"}
            assert await states(db, "touch") == {"app.users": "O"}
            # A partition that is made while the trigger is off has it off, and gets the root's state afterwards.
            await db.run(
                "create table app.payments_2026 partition of app.payments for values from ('2026-01-01') to (maxvalue)"
            )
            assert (await states(db, "log"))["app.payments_2026"] == "D"
            await db.run("drop table app.payments_2024")
            await roll_back(db)
            del log["app.payments_2024"]
            assert await states(db, "log") == log | {"app.payments_2026": "O"}
            assert await states(db, "Log it") == {"app.tokens": "R"}
            assert await states(db, "dead") == {"app.tokens": "D"}

    asyncio.run(main())


def test_a_trigger_that_was_off_before_is_left_alone_and_noted(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            run = await silence(db, await plan_of(db), 4)
            assert run.left == ("app.tokens.dead",)
            assert [entry.subject for entry in await read_ledger(db) if entry.action is Action.TRIGGER_LEFT] == list(
                run.left
            )
            back = await roll_back(db, 4)
            assert back.restored == ("app.tokens.Log it",)

    asyncio.run(main())


def test_writes_stop_firing_while_silenced_and_fire_again_afterwards(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            logged = "select count(*) from app.audit_log"
            await db.run("insert into app.payments values (1, '2024-03-01', 1), (2, '2025-03-01', 1)")
            assert await db.value(logged) == 1  # the clone in H1 was off from the start
            await silence(db, plan, 3)
            await db.run("insert into app.payments values (3, '2024-03-01', 1), (4, '2025-03-01', 1)")
            assert await db.value(logged) == 1
            await roll_back(db, 3)
            await db.run("insert into app.payments values (5, '2024-03-01', 1), (6, '2025-03-01', 1)")
            assert await db.value(logged) == 2

    asyncio.run(main())


def test_the_ledger_tells_each_deed_in_its_own_transaction(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 5, operator="anna")
            await roll_back(db, 5, operator="bert")
            entries = await read_ledger(db)
            silenced = [entry for entry in entries if entry.action is Action.TRIGGER_SILENCE]
            assert {entry.subject for entry in silenced} == {"app.users.log", "app.users.log_late"}
            assert len({entry.xid for entry in silenced}) == 1  # one table, one transaction
            for entry in silenced:
                backups = [e for e in entries if e.action is Action.TRIGGER_BACKUP and e.xid == entry.xid]
                assert entry.subject in {backup.subject for backup in backups}
                assert json.loads(entry.before or "") == {"app.users": "O"}
                assert json.loads(entry.after or "")["states"] == {"app.users": "D"}
                assert entry.sql == f"alter table app.users disable trigger {entry.subject.rpartition('.')[2]}"
            assert {e.operator for e in silenced} == {"anna"}
            restored = [entry for entry in entries if entry.action is Action.TRIGGER_RESTORE]
            assert {e.operator for e in restored} == {"bert"}
            assert all(json.loads(entry.after or "") == {"app.users": "O"} for entry in restored)

    asyncio.run(main())


def test_the_ledger_only_grows(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            await silence(db, await plan_of(db), 1)
            kept = await read_ledger(db)
            for forbidden in (
                "update afterwrite.ledger set actor = 'nobody'",
                "update afterwrite.ledger set actor = 'nobody' where seq = 1",
                "delete from afterwrite.ledger",
            ):
                with pytest.raises(Exception, match="append-only"):
                    await db.run(forbidden.encode())
            assert await read_ledger(db) == kept

    asyncio.run(main())


def test_marks_stand_in_the_wal_exactly_where_the_trigger_went_off_and_on(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            await db.value("select pg_create_logical_replication_slot('marks', 'test_decoding')")
            plan = await plan_of(db)
            await db.run("insert into app.users values (1, 'before')")
            await silence(db, plan, 5)
            await db.run("insert into app.users values (2, 'silent')")
            await roll_back(db, 5)
            await db.run("insert into app.users values (3, 'after')")
            lines: list[str] = await db.values("select data from pg_logical_slot_get_changes('marks', null, null)")
            told: list[str] = []
            for line in lines:
                if "afterwrite.event" in line:
                    event = json.loads(line.partition("content:")[2])
                    assert event["category"] == "migration"
                    assert event["entity_type"] == "trigger"
                    assert event["metadata"]["phase"] == 5
                    assert event["metadata"]["mode"] == "retire"
                    assert event["metadata"]["migration"] == "1"
                    oid = await db.value(
                        "select oid from pg_trigger where tgname = %(n)s and tgrelid = 'app.users'::regclass",
                        n=event["entity_id"].rpartition(".")[2],
                    )
                    assert event["metadata"]["trigger_oid"] == oid
                    told.append(f"{event['action']} {event['entity_id']}")
                elif line.startswith(("table app.users", "table app.audit_log")):
                    told.append(line.split(":")[0])
            assert told == [
                "table app.users", "table app.audit_log", "table app.audit_log",
                "trigger.silence app.users.log", "trigger.silence app.users.log_late",
                "table app.users",
                "trigger.restore app.users.log", "trigger.restore app.users.log_late",
                "table app.users", "table app.audit_log", "table app.audit_log",
            ]  # fmt: skip

    asyncio.run(main())


def test_an_unmet_gate_is_named_with_value_and_threshold_and_nothing_is_done(
    installed_dsn: str, measured: Measured
) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            measured(holding(lag=LagReading(seconds=2.5, arrived=False)))
            with pytest.raises(GateNotMet, match=r"more than 2\.50 s, needs at most 2 s") as error:
                await silence(db, plan, 1)
            assert "capture" in (error.value.remedy or "")
            measured(holding(proof=None))
            with pytest.raises(GateNotMet, match="could not be measured"):
                await silence(db, plan, 1)
            assert await catalog_state(db) == before
            assert await read_ledger(db) == []
            shown = await run_phase(db, plan, 1, place=PLACE, apply=False)
            assert [gate.met for gate in shown.gates].count(False) == 7
            assert shown.deeds

    asyncio.run(main())


def test_a_gate_may_be_waited_for(installed_dsn: str, measured: Measured) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            measured(holding(proof=None))

            def mend(event: MigrationEvent) -> None:
                if event.kind is EventKind.WAITING:
                    measured(holding())

            run = await silence(db, await plan_of(db), 1, wait_seconds=5.0, on_event=mend)
            assert run.state is State.SILENCED

    asyncio.run(main())


def test_a_changed_function_is_drift_and_nothing_is_done(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            assert check_plan(plan, await judge(db)) == []
            await db.run(
                "create or replace function app.count() returns trigger language plpgsql as 'begin return new; end'"
            )
            before = await catalog_state(db)
            for apply in (False, True):
                with pytest.raises(Drift, match=r"app\.notifications\.count or its function was changed"):
                    await run_phase(db, plan, 1, place=PLACE, apply=apply)
            assert await catalog_state(db) == before
            assert await read_ledger(db) == []
            assert {finding.where for finding in check_plan(plan, await judge(db))} == {
                "app.notifications.count",
                "app.payments.log_statements",
            }

    asyncio.run(main())


def test_a_trigger_that_is_gone_is_drift(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await db.run("drop trigger count on app.notifications")
            with pytest.raises(Drift, match="no longer in the database"):
                await silence(db, plan, 1)

    asyncio.run(main())


def test_a_change_between_the_look_and_the_lock_undoes_the_table(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)

            def meddle(event: MigrationEvent) -> None:
                # CREATE OR REPLACE FUNCTION waits for no lock on the table.
                if event.kind is EventKind.STATEMENT and event.text.startswith("alter table app.users"):
                    with psycopg.connect(installed_dsn, autocommit=True) as other:
                        other.execute("alter function app.log() owner to migrate_clerk")

            before = await states(db, "log")
            with pytest.raises(Drift, match="or its function was changed after"):
                await silence(db, plan, 5, on_event=meddle)
            assert await states(db, "log") == before
            assert await read_silenced(db) == {}

    asyncio.run(main())


def test_what_somebody_turned_on_again_is_seen_and_silenced_when_asked(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            start = await catalog_state(db)
            await silence(db, plan, 2)
            off = await catalog_state(db)
            await db.run("alter table app.project_settings enable trigger log")  # it was ALWAYS
            seen = await status(db, place=PLACE)
            assert [(f.rule, f.where) for f in seen.findings if f.rule != "migrate.left"] == [
                ("migrate.drift.reenabled", "app.project_settings.log")
            ]
            assert "app.project_settings.log" in seen.next
            await silence(db, plan, 2)
            assert await catalog_state(db) == off
            await roll_back(db)
            assert await catalog_state(db) == start  # ALWAYS again, though it was ORIGIN when it was silenced last

    asyncio.run(main())


def test_a_role_that_does_not_own_the_tables_is_refused_before_anything_is_done(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await db.script(
                "grant usage on schema app, afterwrite to migrate_clerk;"
                "grant all on all tables in schema afterwrite to migrate_clerk;"
            )
            before = await catalog_state(db)
            await db.run("set role migrate_clerk")
            with pytest.raises(Refused, match=r"app\.notifications: it does not own them"):
                await silence(db, plan, 1)
            await db.run("reset role")
            assert await catalog_state(db) == before
            assert await read_ledger(db) == []

    asyncio.run(main())


def test_two_operators_at_once_one_is_refused_and_told_by_whom(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db, connect(installed_dsn, application_name="the second") as second:
            plan = await plan_of(db)
            holds, go_on = asyncio.Event(), asyncio.Event()

            async def first() -> None:
                async with (
                    connect(installed_dsn, application_name="the first") as mine,
                    engine.migration_lock(mine, "anna"),
                ):
                    holds.set()
                    await go_on.wait()

            task = asyncio.create_task(first())
            await holds.wait()
            with pytest.raises(Refused, match="the first"):
                await silence(second, plan, 1)
            with pytest.raises(Refused, match="the first"):
                await roll_back(second)
            go_on.set()
            await task
            assert (await silence(second, plan, 1)).state is State.SILENCED

    asyncio.run(main())


def test_one_active_migration_is_a_rule_of_the_database(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            await silence(db, await plan_of(db), 1)
            with pytest.raises(Exception, match="migration_one_active"):
                await db.run("insert into afterwrite.migration (id, plan) values (2, '')")

    asyncio.run(main())


def test_a_locked_table_is_tried_again_its_blocker_named_and_nothing_half_done(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db, connect(installed_dsn, application_name="the long one") as other:
            plan = await plan_of(db)
            before = await catalog_state(db)
            tried: list[str] = []
            listen = lambda event: tried.append(event.text) if event.kind is EventKind.BLOCKED else None  # noqa: E731
            async with other.transaction():
                await other.run("insert into app.notifications values (1, '')")
                with pytest.raises(LockTimeout, match="the long one"):
                    await silence(db, plan, 1, on_event=listen)
                assert len(tried) == QUICK.attempts
                assert "the long one" in tried[0]
                assert await catalog_state(db) == before
                assert await read_silenced(db) == {}
            run = await silence(db, plan, 1)
            assert run.state is State.SILENCED
            # A rollback restores the tables that are free, and says which one is not.
            await silence(db, plan, 5)
            async with other.transaction():
                await other.run("update app.users set name = '' where false")
                with pytest.raises(LockTimeout, match=r"app\.users"):
                    await roll_back(db)
            assert {each.phase for each in (await read_silenced(db)).values()} == {5}
            await roll_back(db)
            assert await catalog_state(db) == before

    asyncio.run(main())


def test_a_trigger_dropped_while_off_is_said_with_the_script_that_makes_it_again(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            start = await catalog_state(db)
            for phase in plan.phases:
                await silence(db, plan, phase.number)
            await db.run("drop trigger log on app.payments")
            with pytest.raises(Drift, match=r"app\.payments\.log .*dropped by somebody else") as error:
                await roll_back(db)
            assert set(await read_silenced(db)) == {"app.payments.log"}
            await db.script((error.value.remedy or "").partition("\n")[2])
            assert (await roll_back(db)).finished
            assert await catalog_state(db) == start

    asyncio.run(main())


def test_a_dropped_table_is_no_hindrance_to_a_rollback(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 2)
            await db.run("drop table app.project_settings")
            back = await roll_back(db)
            assert back.finished
            assert back.restored == ("app.project_settings.log",)

    asyncio.run(main())


def test_a_renamed_table_is_rolled_back_under_its_new_name(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 2)
            await db.script(
                "alter table app.project_settings rename to settings; alter trigger log on app.settings rename to l"
            )
            assert (await roll_back(db)).finished
            assert await states(db, "l") == {"app.settings": "A"}

    asyncio.run(main())


def test_a_function_changed_while_off_is_said_and_stays_changed(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 2)
            await db.run("comment on function app.log() is 'mine now'")
            back = await roll_back(db)
            assert [f.where for f in back.findings if f.rule == "rollback.changed"] == ["app.project_settings.log"]
            windows = [f.text for f in back.findings if f.rule == "rollback.silent_window"]
            assert len(windows) == 1
            assert "in the store and not in the legacy log" in windows[0]

    asyncio.run(main())


def test_an_edited_plan_goes_on_unless_it_contradicts_what_is_off(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 2)
            slower = msgspec.structs.replace(
                plan, phases=tuple(msgspec.structs.replace(phase, soak_seconds=60.0) for phase in plan.phases)
            )
            await silence(db, slower, 5)
            changed = [entry for entry in await read_ledger(db) if entry.action is Action.MIGRATION_PLAN]
            assert len(changed) == 1
            empty = msgspec.structs.replace(plan.phases[1], triggers=())
            without = msgspec.structs.replace(plan, phases=(plan.phases[0], empty, *plan.phases[2:]))
            with pytest.raises(Refused, match=r"app\.project_settings\.log was silenced in phase 2"):
                await silence(db, without, 4)

    asyncio.run(main())


def test_status_says_what_was_done_by_whom_and_what_is_next(installed_dsn: str, measured: Measured) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            assert "write a plan" in (await status(db, place=PLACE)).next
            before = await status(db, place=PLACE, plan=plan)
            assert [phase.state for phase in before.phases] == [State.PROVEN] * 5
            assert "run --phase 1" in before.next
            await silence(db, plan, 1, operator="anna")
            now = await status(db, place=PLACE)
            assert now.phases[0].state is State.SILENCED
            role = await db.value("select session_user")
            assert now.phases[0].silenced_by == f"anna (as {role})"
            assert set(now.phases[0].off) == {"app.notifications.count", "app.notifications.log"}
            assert "run --phase 2" in now.next
            measured(holding(proof=None))
            later = await status(db, place=PLACE)
            assert later.phases[1].state is State.SHADOWING
            assert "unexplained residuals could not be measured" in later.next
            await roll_back(db)
            assert "was rolled back" in (await status(db, place=PLACE)).next

    asyncio.run(main())


def test_all_phases_run_in_order_each_after_its_soak(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db, soak_seconds=0.2)
            told: list[str] = []
            kinds = (EventKind.SILENCED, EventKind.SOAKED)

            def listen(event: MigrationEvent) -> None:
                if event.kind in kinds:
                    told.append(f"{event.kind.value} {event.phase}")

            runs = await run_all(db, plan, place=PLACE, apply=True, policy=QUICK, check_seconds=0.05, on_event=listen)
            assert [run.state for run in runs] == [State.SILENCED] * 5
            assert told == [text for n in range(1, 6) for text in (f"silenced {n}", f"soaked {n}")]
            assert all(phase.soaked_at for phase in (await status(db, place=PLACE)).phases)
            again = await run_all(db, plan, place=PLACE, apply=True, check_seconds=0.05)
            assert [run.deeds for run in again] == [()] * 5

    asyncio.run(main())


def test_a_gate_that_breaks_during_the_soak_turns_the_phase_on_again(installed_dsn: str, measured: Measured) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db, soak_seconds=60.0)
            before = await catalog_state(db)
            breaks: list[str] = []

            def listen(event: MigrationEvent) -> None:
                if event.kind is EventKind.SOAKING:
                    measured(holding(lag=LagReading(seconds=9.0, arrived=False)))
                if event.kind is EventKind.WAITING:
                    breaks.append(event.text)

            with pytest.raises(GateNotMet, match="turned on again during its soak"):
                await run_all(db, plan, place=PLACE, apply=True, policy=QUICK, check_seconds=0.02, on_event=listen)
            assert len(breaks) == 3
            assert await catalog_state(db) == before
            seen = await status(db, place=PLACE)
            assert "capture lag in seconds" in (seen.phases[0].halted or "")

    asyncio.run(main())


@pytest.mark.parametrize("busy", [1, 3])
def test_the_demo_silences_a_phase_once_more_that_its_gates_turned_on_again_but_not_for_ever(
    installed_dsn: str, measured: Measured, busy: int
) -> None:
    told: list[Chapter] = []
    settings = Settings(dsn=installed_dsn, operator="demo", lock_timeout_ms=500)

    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db, soak_seconds=0.4)
            halted = 0

            def listen(chapter: Chapter) -> None:
                nonlocal halted
                told.append(chapter)
                halted += chapter.text.startswith("turned on again")
                if chapter.text.startswith("silenced; soaking") and halted < busy:
                    measured(holding(lag=LagReading(seconds=9.0, arrived=False)))
                if chapter.text.startswith("turned on again"):
                    measured(holding())

            migrating = silence_phases(db, plan, settings, lambda: None, Narrator(listen), Script())
            if busy == 3:
                before = await catalog_state(db)
                with pytest.raises(GateNotMet, match="turned on again during its soak"):
                    await migrating
                assert await catalog_state(db) == before
            else:
                await migrating
            assert halted == busy

    asyncio.run(main())
    if busy == 1:
        assert "at another attempt" in next(chapter.text for chapter in told if chapter.done)


def test_a_rollback_by_somebody_else_ends_the_soak_and_is_not_undone(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db, connect(installed_dsn) as other:
            plan = await plan_of(db, soak_seconds=60.0)
            before = await catalog_state(db)
            soaking = asyncio.Event()

            def listen(event: MigrationEvent) -> None:
                if event.kind is EventKind.SOAKING:
                    soaking.set()

            run = asyncio.create_task(
                run_all(db, plan, place=PLACE, apply=True, policy=QUICK, check_seconds=0.02, on_event=listen)
            )
            await soaking.wait()
            await roll_back(other)
            with pytest.raises(Drift, match="rolled back"):
                await run
            assert await catalog_state(other) == before

    asyncio.run(main())


def test_while_it_is_paused_nothing_is_silenced_or_removed_and_everything_can_be_taken_back(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            with pytest.raises(UsageError, match="no migration goes on"):
                await set_pause(db, paused=True)
            await silence(db, plan, 1)
            assert await set_pause(db, paused=True, operator="anna", because="the\n night \x1b[2J run")
            assert not await set_pause(db, paused=True, operator="ben")
            pause = await read_pause(db)
            assert pause is not None
            assert (pause.by, pause.because) == ("anna (as postgres)", "the night [2J run")
            for number in (2, 1):
                with pytest.raises(GateNotMet, match="paused by anna"):
                    await silence(db, plan, number)
            with pytest.raises(GateNotMet, match="paused by anna"):
                await remove_phases(db, plan, 1, place=PLACE, apply=True)
            found = await status(db, place=PLACE)
            assert "afterwrite migrate resume" in found.next
            assert found.pause == pause
            await roll_back(db, 1)
            assert await read_silenced(db) == {}
            assert await set_pause(db, paused=False, operator="ben")
            assert not await set_pause(db, paused=False)
            await silence(db, plan, 1)
            actions = [entry.action for entry in await read_ledger(db)]
            assert actions.count(Action.MIGRATION_PAUSE) == actions.count(Action.MIGRATION_RESUME) == 1

    asyncio.run(main())


def test_a_run_that_is_at_work_waits_while_it_is_paused_without_keeping_others_from_rolling_back(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_WAIT_PAUSE", 0.02)

    async def main() -> None:
        async with application(installed_dsn) as db, connect(installed_dsn) as other:
            plan = await plan_of(db, soak_seconds=0.3)
            told: list[str] = []

            def listen(event: MigrationEvent) -> None:
                if event.kind is EventKind.PAUSED:
                    told.append(event.text)

            run = asyncio.create_task(
                run_all(
                    db, plan, place=PLACE, apply=True, policy=QUICK, check_seconds=0.05,
                    on_event=listen,
                )
            )  # fmt: skip

            async def begun() -> bool:
                return bool(await read_silenced(other))

            await until(begun)
            assert await set_pause(other, paused=True, operator="anna")
            held = set(await read_silenced(other))
            await asyncio.sleep(0.6)
            assert set(await read_silenced(other)) == held
            assert len(told) == 1
            assert "paused by anna" in told[0]
            await set_pause(other, paused=False)
            await run
            assert len(await read_silenced(other)) > len(held)

    asyncio.run(main())
