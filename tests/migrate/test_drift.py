"""What somebody else does to the triggers during a migration is seen, named, and kept in the ledger."""

from __future__ import annotations

import asyncio

import pytest
from migrating import PLACE, QUICK, application, holding, plan_of

from afterwrite.errors import Severity
from afterwrite.migrate.deeds import EventKind, MigrationEvent
from afterwrite.migrate.drift import find_drift, note_drift
from afterwrite.migrate.engine import remove_phases, run_all, run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.ledger import Action, read_ledger
from afterwrite.migrate.status import status
from afterwrite.postgres import Database, connect


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)
    monkeypatch.setattr("afterwrite.migrate.status.measure", measure)


async def seen(db: Database) -> dict[str, str]:
    return {finding.where: finding.rule.rpartition(".")[2] for finding in await find_drift(db)}


def test_everything_that_somebody_else_does_is_named(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await db.run("alter table app.users disable trigger touch")
            plan = await plan_of(db)
            assert await find_drift(db) == []
            for number in (2, 3):
                await run_phase(db, plan, number, place=PLACE, apply=True, policy=QUICK)
            await remove_phases(db, plan, 3, place=PLACE, apply=True, policy=QUICK)
            assert await find_drift(db) == []
            await db.run("alter table app.project_settings enable trigger log")
            await db.run(
                "create trigger log after insert or update or delete on app.payments "
                "for each row execute function app.log()"
            )
            await db.run("drop trigger log on app.notifications")
            await db.run("alter table app.users disable trigger log_late")
            await db.run("create trigger another after update on app.tokens for each row execute function app.log()")
            await db.run("create trigger stamp before update on app.tokens for each row execute function app.touch()")
            await db.run("alter function app.count() set work_mem = '8MB'")
            assert await seen(db) == {
                "app.project_settings.log": "reenabled",
                "app.payments.log": "reenabled",
                "app.notifications.log": "gone",
                "app.users.log_late": "disabled",
                "app.tokens.another": "added",
                "app.tokens.stamp": "added",
                "app.notifications.count": "changed",
            }
            texts = {finding.where: f"{finding.text} {finding.remedy}" for finding in await find_drift(db)}
            assert "calls app.count(), which was changed" in texts["app.notifications.count"]
            assert "it calls app.log(), as triggers of the plan do" in texts["app.tokens.another"]
            assert "afterwrite scan" in texts["app.tokens.stamp"]
            found = await status(db, place=PLACE)
            assert {each.where for each in found.findings if each.severity is Severity.ERROR} == set(texts)

    asyncio.run(main())


def test_new_tables_get_an_advice(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await run_phase(db, plan, 2, place=PLACE, apply=True, policy=QUICK)
            await db.run("create table app.invoices (id bigint primary key)")
            await db.run("create table app.refunds (id bigint primary key)")
            await db.run("create trigger log after insert on app.refunds for each row execute function app.log()")
            await db.run(
                "create table app.payments_2027 partition of app.payments for values from ('2027-01-01') to (maxvalue)"
            )
            assert await seen(db) == {"app.invoices": "new_table", "app.refunds.log": "added"}
            [advice] = [each for each in await find_drift(db) if each.where == "app.invoices"]
            assert advice.severity is Severity.INFO
            assert "alter publication afterwrite add table only app.invoices" in (advice.remedy or "")

    asyncio.run(main())


def test_the_ledger_tells_each_drift_once_and_when_it_is_over(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await run_phase(db, plan, 2, place=PLACE, apply=True, policy=QUICK)
            await db.run("alter table app.project_settings enable trigger log")
            assert len(await note_drift(db)) == 1
            assert await note_drift(db) == []
            await db.run("alter table app.project_settings disable trigger log")
            assert await note_drift(db) == []
            await db.run("alter table app.project_settings enable trigger log")
            assert len(await note_drift(db)) == 1
            told = [e.action for e in await read_ledger(db) if e.action in (Action.DRIFT_SEEN, Action.DRIFT_OVER)]
            assert told == [Action.DRIFT_SEEN, Action.DRIFT_OVER, Action.DRIFT_SEEN]

    asyncio.run(main())


def test_a_soak_tells_what_was_added_meanwhile(installed_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db, soak_seconds=0.4)
            monkeypatch.setattr("afterwrite.migrate.engine._DRIFT_SECONDS", 0.05)
            said: list[str] = []

            def listen(event: MigrationEvent) -> None:
                if event.kind is EventKind.DRIFT:
                    said.append(event.text)

            async def meddle() -> None:
                await asyncio.sleep(0.3)
                async with connect(installed_dsn) as other:
                    await other.run(
                        "create trigger more after insert on app.tokens for each row execute function app.log()"
                    )

            await asyncio.gather(
                run_all(db, plan, place=PLACE, apply=True, check_seconds=0.05, policy=QUICK, on_event=listen), meddle()
            )
            assert [text for text in said if text.startswith("app.tokens.more was added")]

    asyncio.run(main())
