"""Triggers are dropped after their soak, and come back exactly as they were, whatever somebody did meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from migrating import PLACE, QUICK, application, end_deferrals, holding, plan_of

from afterwrite.errors import Drift, GateNotMet
from afterwrite.migrate.backup import catalog_state
from afterwrite.migrate.engine import remove_phases, run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.ledger import Action, read_ledger, read_silenced
from afterwrite.migrate.phase import State
from afterwrite.migrate.plan import Plan
from afterwrite.migrate.rollback import Rollback, rollback_phase
from afterwrite.migrate.status import status
from afterwrite.postgres import Database


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)
    monkeypatch.setattr("afterwrite.migrate.status.measure", measure)


async def silence(db: Database, plan: Plan, *numbers: int) -> None:
    for number in numbers:
        await run_phase(db, plan, number, place=PLACE, apply=True, policy=QUICK)


async def remove(db: Database, plan: Plan, number: int | None = None, **more: Any) -> Any:
    return await remove_phases(db, plan, number, place=PLACE, apply=True, policy=QUICK, **more)


async def roll_back(db: Database, number: int | None = None, **more: Any) -> Rollback:
    return await rollback_phase(db, number, place=PLACE, apply=True, policy=QUICK, **more)


async def names(db: Database) -> set[str]:
    return set(
        await db.values(
            "select tgrelid::regclass || '.' || tgname from pg_trigger "
            "where not tgisinternal and tgparentid = 0 and tgrelid::regclass::text like 'app.%%'"
        )
    )


def test_every_phase_is_removed_and_comes_back_to_the_same_bytes(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            for phase in plan.phases:
                start = await catalog_state(db)
                await silence(db, plan, phase.number)
                [run], _ = await remove(db, plan, phase.number)
                assert run.state is State.REMOVED
                assert not {t.trigger for t in phase.triggers} & await names(db) - {"app.tokens.dead"}
                assert [p.state for p in (await status(db, place=PLACE)).phases][phase.number - 1] is State.REMOVED
                assert (await remove(db, plan, phase.number))[0][0].deeds == ()
                back = await roll_back(db, phase.number)
                assert set(back.restored) == set(run.silenced)
                assert await catalog_state(db) == start
                await end_deferrals(db)
            await silence(db, plan, *(phase.number for phase in plan.phases))
            await remove(db, plan, functions=True)
            assert await names(db) == {"app.users.touch", "app.users.checked", "app.tokens.dead"}
            assert await read_silenced(db)
            await roll_back(db)
            assert await catalog_state(db) == before
            assert await read_silenced(db) == {}

    asyncio.run(main())


def test_nothing_is_removed_before_it_is_silenced_and_has_soaked(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db, soak_seconds=3_600.0)
            with pytest.raises(GateNotMet, match="still on"):
                await remove(db, plan, 1)
            await silence(db, plan, 1)
            with pytest.raises(GateNotMet, match="soak is 0 s, needs at least 3,600 s"):
                await remove(db, plan, 1)
            [shown], _ = await remove_phases(db, plan, 1, place=PLACE, apply=False)
            assert [gate.name for gate in shown.gates if not gate.met] == ["soak"]
            assert len(await read_silenced(db)) == 2

    asyncio.run(main())


def test_the_shown_removal_and_its_rollback_work_by_hand(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            await silence(db, plan, 3, 4)
            shown = [(await remove_phases(db, plan, number, place=PLACE, apply=False))[0][0] for number in (3, 4)]
            with psycopg.connect(installed_dsn, autocommit=True) as editor:
                for run in shown:
                    editor.execute(run.sql.encode())
                assert not {"app.payments.log", 'app.tokens."Log it"'} & await names(db)
                editor.execute((await rollback_phase(db, None, place=PLACE, apply=False)).sql.encode())
            assert await catalog_state(db) == before

    asyncio.run(main())


def test_functions_stay_until_asked_for_and_while_something_uses_them(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 1, 3)
            _, none = await remove(db, plan, 1)
            assert none is None
            _, dropped = await remove(db, plan, 1, functions=True)
            assert dropped.dropped == ()
            assert {f.where for f in dropped.findings} == {"app.count()", "app.log()"}
            assert "trigger log_statements on table app.payments" in dropped.findings[0].text + dropped.findings[1].text
            _, shown = await remove_phases(db, plan, 3, place=PLACE, apply=False, functions=True)
            assert shown is not None
            assert shown.dropped == ("app.count()",)
            _, dropped = await remove(db, plan, 3, functions=True)
            assert dropped.dropped == ("app.count()",)
            assert await db.value("select to_regprocedure('app.count()') is null")
            back = await roll_back(db, 1)
            assert set(back.restored) == {"app.notifications.log", "app.notifications.count"}
            actions = [entry.action for entry in await read_ledger(db)]
            assert actions.count(Action.FUNCTION_REMOVE) == actions.count(Action.FUNCTION_RESTORE) == 1

    asyncio.run(main())


def test_a_function_that_somebody_changed_is_not_dropped(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 1, 3)
            await db.run("alter function app.count() set work_mem = '8MB'")
            _, dropped = await remove(db, plan, 1, functions=True)
            _, dropped = await remove(db, plan, 3, functions=True)
            assert dropped.dropped == ()
            assert "somebody changed it" in next(f.text for f in dropped.findings if f.where == "app.count()")

    asyncio.run(main())


@pytest.mark.parametrize("removed", [False, True])
def test_a_changed_function_is_said_and_ours_comes_back_only_by_force(installed_dsn: str, removed: bool) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 2)
            if removed:
                await remove(db, plan, 2)
            await db.run("grant execute on function app.log() to public")
            await db.run("alter function app.log() security invoker")
            shown = await rollback_phase(db, 2, place=PLACE, apply=False)
            assert [f.where for f in shown.findings if f.rule == "rollback.changed"] == ["app.project_settings.log"]
            assert "create or replace" not in shown.sql.lower()
            done = await roll_back(db, 2)
            assert done.restored == ("app.project_settings.log",)
            assert await db.value(
                "select not prosecdef from pg_proc where proname = 'log' and pronamespace = 'app'::regnamespace"
            )
            await silence_again(db, plan)
            await db.run("alter function app.log() cost 77")
            await roll_back(db, 2, force=True)
            assert await db.value("select procost from pg_proc where oid = 'app.log()'::regprocedure") == 100

    async def silence_again(db: Database, plan: Plan) -> None:
        # The plan is of before the change: with it made again, the phase may be silenced once more.
        await db.run("alter function app.log() security definer")
        await db.run("revoke execute on function app.log() from public")
        assert await read_silenced(db) == {}
        await silence(db, plan, 2)
        if removed:
            await remove(db, plan, 2)

    asyncio.run(main())


def test_what_somebody_dropped_comes_back_by_force(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            await silence(db, plan, 3)
            await db.run("drop trigger log on app.payments")
            with pytest.raises(Drift, match="dropped by somebody else"):
                await roll_back(db, 3)
            await roll_back(db, 3, force=True)
            assert await catalog_state(db) == before

    asyncio.run(main())


def test_a_table_renamed_after_the_removal_gets_its_triggers_back(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 3)
            await remove(db, plan, 3)
            await db.run('alter table app.payments rename to "Payments"')
            await db.run("alter table app.payments_2024 rename to old_payments")
            back = await roll_back(db, 3)
            assert set(back.restored) == {"app.payments.log", "app.payments.log_statements"}
            found = dict(
                await db.values(
                    "select array[tgrelid::regclass::text, tgenabled::text] from pg_trigger where tgname = 'log' "
                    "and tgrelid::regclass::text ~* 'payments'"
                )
            )
            assert found == {
                'app."Payments"': "O",
                "app.old_payments": "A",
                "app.payments_2025": "O",
                'app."payments 2025 H1"': "D",
            }

    asyncio.run(main())


def test_a_removed_trigger_that_somebody_made_again_halts_the_removal(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await silence(db, plan, 5)
            await remove(db, plan, 5)
            await db.run("create trigger log after insert on app.users for each row execute function app.log()")
            with pytest.raises(Drift, match="made again behind our back"):
                await remove(db, plan, 5)
            found = await status(db, place=PLACE)
            assert "migrate.drift.reenabled" in {finding.rule for finding in found.findings}

    asyncio.run(main())
