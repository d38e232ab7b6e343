"""The backup's script brings everything back by hand, also where nothing of ours is left; it is tried out before."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from migrating import PLACE, QUICK, application, holding, plan_of

from afterwrite.errors import Drift, Severity
from afterwrite.migrate import rehearse as rehearsing
from afterwrite.migrate.backup import TriggerBackup, catalog_state, render_sql
from afterwrite.migrate.engine import remove_phases, run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.rehearse import read_backups, rehearse


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)


def test_the_script_brings_back_what_was_dropped_without_anything_of_ours(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            for number in (1, 3):
                await run_phase(db, plan, number, place=PLACE, apply=True, policy=QUICK)
            script = render_sql(*await read_backups(db, plan))
            await remove_phases(db, plan, 1, place=PLACE, apply=True, policy=QUICK)
            assert render_sql(*await read_backups(db, plan)) == script
            for relation, name in await db.values(
                "select array[tgrelid::regclass::text, quote_ident(tgname)] from pg_trigger where not tgisinternal "
                "and tgparentid = 0 and tgname not in ('touch', 'checked') and tgrelid::regclass::text like 'app.%%'"
            ):
                await db.run(f"drop trigger {name} on {relation}".encode())
            await db.run(b"drop function app.log(); drop function app.count()")
            await db.run("alter default privileges in schema app grant execute on functions to migrate_clerk")
            await db.run("drop schema afterwrite, afterwrite_deferred, afterwrite_clock cascade")
            with psycopg.connect(installed_dsn, autocommit=True) as editor:
                editor.execute(script.encode())
            assert await catalog_state(db) == before

    asyncio.run(main())


def test_a_rehearsal_restores_everything_into_a_server_of_our_own(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            await run_phase(db, plan, 3, place=PLACE, apply=True, policy=QUICK)
            silenced = await catalog_state(db)
            found = await rehearse(db, plan, installed_dsn)
            assert found.findings == ()
            assert found.same
            assert set(found.triggers) == {trigger.trigger for phase in plan.phases for trigger in phase.triggers}
            assert found.functions == ("app.count()", "app.log()")
            assert found.catalog_lines == len(before.splitlines())
            assert await catalog_state(db) == silenced

    asyncio.run(main())


def test_a_backup_that_does_not_bring_everything_back_is_found_out(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(*backups: TriggerBackup) -> str:
        return render_sql(*backups).replace("alter table app.project_settings enable always trigger log;", "")

    async def main() -> None:
        async with application(installed_dsn) as db:
            monkeypatch.setattr(rehearsing, "render_sql", careless)
            found = await rehearse(db, await plan_of(db), installed_dsn)
            assert not found.same
            [finding] = [each for each in found.findings if each.severity is Severity.ERROR]
            assert finding.where == "app.project_settings.log"
            assert "enabled is" in finding.text

    asyncio.run(main())


def test_a_trigger_that_is_nowhere_is_drift(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            await db.run("drop trigger log on app.notifications")
            with pytest.raises(Drift, match="no longer in the database"):
                await read_backups(db, plan)

    asyncio.run(main())
