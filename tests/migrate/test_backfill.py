"""Silence, write for a while, roll back: the legacy log has no hole, against a twin whose triggers stayed on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from migrating import QUICK, application, captured, holding

from afterwrite.migrate import backfill
from afterwrite.migrate.engine import remove_phases, run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.ledger import Action, read_ledger
from afterwrite.migrate.plan import Plan, Thresholds, make_plan
from afterwrite.migrate.rollback import Rollback, rollback_phase
from afterwrite.postgres import Database
from afterwrite.scan.survey import survey

BEFORE = ["insert into app.users values (1, 'one')"]
# Several rows a statement, several statements a transaction, a savepoint that is rolled back, a column of no interest.
DURING = [
    "insert into app.users select n, 'u' || n from generate_series(2, 30) n",
    "update app.users set name = upper(name) where id between 3 and 9",
    "begin; insert into app.users values (100, 'kept'); savepoint s; delete from app.users; rollback to s; "
    "insert into app.payments values (1, '2024-03-01', 10.50), (2, '2025-08-01', 3); "
    "update app.payments set amount = 11 where id = 1; commit",
    "update app.users set updated_at = '2020-01-01' where id = 2",
    "delete from app.users where id between 5 and 7",
    "update app.payments set paid_on = '2025-09-01' where id = 1",
    "delete from app.payments",
]
AFTER = ["insert into app.users values (200, 'two hundred')", "update app.users set name = 'end' where id = 200"]


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)


async def write(db: Database, statements: list[str]) -> None:
    for each in statements:
        await db.script(each)


async def log_of(db: Database) -> list[str]:
    """The legacy log without what the clock says: updated_at is set by a BEFORE trigger that stays."""
    return await db.values("select what || ' ' || (row - 'updated_at')::text from app.audit_log order by 1")


async def expected(dsn: str) -> list[str]:
    async with application(dsn) as twin:
        await prepare(twin)
        await write(twin, [*BEFORE, *DURING, *AFTER])
        return await log_of(twin)


async def prepare(db: Database) -> None:
    # Its clone in H1 is off from the start, which is its own business.
    await db.run('alter table app."payments 2025 H1" enable trigger log')
    await db.run("alter table app.payments_2024 enable trigger log")
    for table in ("users", "payments", "payments_2024", "payments_2025", '"payments 2025 H1"', "payments_2025_h2"):
        if table == "payments_2025_h2":
            await db.run(
                "create table app.payments_2025_h2 partition of app.payments_2025 "
                "for values from ('2025-07-01') to ('2026-01-01')"
            )
        await db.run(f"alter table app.{table} replica identity full".encode())


async def plan_by_scan(db: Database) -> Plan:
    """As scan judges: what counts payments is deferred."""
    return make_plan((await survey(db)).judgements, soak_seconds=0.0, thresholds=Thresholds(baseline_seconds=0.0))


async def silence(db: Database, plan: Plan, place: Any) -> None:
    for number in (3, 5):
        await run_phase(db, plan, number, place=place, apply=True, policy=QUICK)


async def roll_back(db: Database, place: Any, **more: Any) -> Rollback:
    return await rollback_phase(db, None, place=place, apply=True, backfill=True, policy=QUICK, **more)


@pytest.mark.parametrize("removed", [False, True])
def test_the_log_has_no_hole_after_a_rollback(installed_dsn: str, dsn: str, removed: bool) -> None:
    async def main() -> None:
        wanted = await expected(dsn)
        async with application(installed_dsn) as db:
            await prepare(db)
            plan = await plan_by_scan(db)
            async with captured(installed_dsn, db, await survey(db)) as place:
                await write(db, BEFORE)
                await silence(db, plan, place)
                if removed:
                    await remove_phases(db, plan, 3, place=place, apply=True, policy=QUICK)
                    await remove_phases(db, plan, 5, place=place, apply=True, policy=QUICK)
                await write(db, DURING)
                assert len(await log_of(db)) == 2
                done = await roll_back(db, place)
                await write(db, AFTER)
            assert [finding.text for finding in done.findings if "hole" in finding.rule] == []
            assert await log_of(db) == wanted
            assert sum(each.rows for each in done.filled) == len(wanted) - 5
            assert all(each.whole for each in done.filled), done.filled
            assert done.finished
            told = [entry for entry in await read_ledger(db) if entry.action is Action.LEGACY_BACKFILL]
            assert {entry.subject for entry in told} == {name for each in done.filled for name in each.triggers}
            assert await backfill.read_holes(db, None) == []

    asyncio.run(main())


def test_without_capture_the_hole_is_said_and_filled_by_the_next_rollback(
    installed_dsn: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        wanted = await expected(dsn)
        async with application(installed_dsn) as db:
            await prepare(db)
            plan = await plan_by_scan(db)
            async with captured(installed_dsn, db) as place:
                await write(db, BEFORE)
                await silence(db, plan, place)
            await write(db, DURING)
            monkeypatch.setattr(backfill, "_PATIENCE_SECONDS", 0.1)
            done = await rollback_phase(db, 5, place=place, apply=True, backfill=True, policy=QUICK)
            holes = [finding for finding in done.findings if finding.rule == "rollback.hole"]
            assert [finding.where for finding in holes] == ["app.users.log", "app.users.log_late"]
            assert "afterwrite migrate rollback --phase 5 --apply" in (holes[0].remedy or "")
            await write(db, AFTER)
            monkeypatch.setattr(backfill, "_PATIENCE_SECONDS", 30.0)
            async with captured(installed_dsn, db) as place:
                done = await roll_back(db, place)
            assert await log_of(db) == wanted
            assert all(each.whole for each in done.filled)

    asyncio.run(main())


def test_a_fill_that_broke_off_is_finished_by_the_next_and_nothing_is_there_twice(
    installed_dsn: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        wanted = await expected(dsn)
        async with application(installed_dsn) as db:
            await prepare(db)
            plan = await plan_by_scan(db)
            async with captured(installed_dsn, db) as place:
                await write(db, BEFORE)
                await silence(db, plan, place)
                await write(db, DURING)
                real = backfill.prove_window

                async def crash(*_: object, **__: object) -> Any:
                    raise KeyboardInterrupt

                monkeypatch.setattr(backfill, "prove_window", crash)
                for _ in range(2):
                    with pytest.raises(KeyboardInterrupt):
                        await roll_back(db, place)
                monkeypatch.setattr(backfill, "prove_window", real)
                done = await roll_back(db, place)
                assert done.restored == ()
                await write(db, AFTER)
                assert await log_of(db) == wanted
                again = await rollback_phase(db, None, place=place, apply=True, backfill=True, policy=QUICK)
                assert again.filled == ()
            assert await log_of(db) == wanted

    asyncio.run(main())


def test_a_trigger_that_somebody_turned_on_meanwhile_is_not_filled_twice(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            await prepare(db)
            plan = await plan_by_scan(db)
            async with captured(installed_dsn, db) as place:
                await silence(db, plan, place)
                await write(db, DURING[:1])
                await db.run("alter table app.users enable trigger log")
                await write(db, DURING[1:])
                before = await log_of(db)
                done = await rollback_phase(db, 5, place=place, apply=True, backfill=True, policy=QUICK)
                said = [finding for finding in done.findings if finding.rule == "rollback.disturbed"]
                assert [finding.where for finding in said] == ["app.users.log"]
                filled = [name for each in done.filled if each.transactions for name in each.triggers]
                assert filled == ["app.users.log_late"]
                assert len(await log_of(db)) == len(before) + 30

    asyncio.run(main())
