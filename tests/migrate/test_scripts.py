"""The whole migration as files, run by hand with psql, and taken back by hand."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from migrating import PLACE, QUICK, application, holding, plan_of

from afterwrite import runtime
from afterwrite.migrate.backup import catalog_state
from afterwrite.migrate.engine import Migrator, run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.ledger import read_ledger, read_silenced
from afterwrite.migrate.phase import State
from afterwrite.migrate.scripts import write_scripts
from afterwrite.migrate.status import status
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import find_installation
from afterwrite.settings import Settings


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)
    monkeypatch.setattr("afterwrite.migrate.status.measure", measure)


def psql(dsn: str, path: Path) -> str:
    """What psql complains of when it runs the file as it stands, stopping at the first error."""
    binary = find_installation().bin_dir / "psql"
    done = subprocess.run(
        [binary, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={dsn}", f"--file={path}"],
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"},
    )
    return done.stderr


def test_the_scripts_take_a_database_forward_and_back_by_hand(installed_dsn: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            found = await write_scripts(Migrator(db, plan, PLACE, policy=QUICK), "")
            assert list(found.files) == [
                "0-optimise.sql",
                *(f"phase-{number}.sql" for number in range(1, 6)),
                "remove.sql",
                "rollback.sql",
                "rollback-removed.sql",
                "backup.sql",
            ]
            for name, text in found.files.items():
                (tmp_path / name).write_text(text)
            for phase in plan.phases:
                assert psql(installed_dsn, tmp_path / f"phase-{phase.number}.sql") == ""
                assert [p.state for p in (await status(db, place=PLACE)).phases][phase.number - 1] is State.SILENCED
            planned = {trigger.trigger for phase in plan.phases for trigger in phase.triggers} - {"app.tokens.dead"}
            assert set(await read_silenced(db)) == planned
            # The commands find nothing left to do, and nothing strange.
            for phase in plan.phases:
                assert (await run_phase(db, plan, phase.number, place=PLACE, apply=True, policy=QUICK)).deeds == ()
            assert psql(installed_dsn, tmp_path / "rollback.sql") == ""
            assert await catalog_state(db) == before
            assert await read_silenced(db) == {}
            for phase in (2, 3, 4, 5):
                assert psql(installed_dsn, tmp_path / f"phase-{phase}.sql") == ""
            for phase in (2, 3, 4, 5):
                assert (await status(db, place=PLACE)).phases[phase - 1].state is State.SILENCED
            assert psql(installed_dsn, tmp_path / "rollback.sql") == ""
            assert await catalog_state(db) == before
            assert len({entry.migration for entry in await read_ledger(db)}) == 1

    asyncio.run(main())


def test_what_was_removed_by_hand_is_made_again_by_hand(installed_dsn: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            before = await catalog_state(db)
            found = await write_scripts(Migrator(db, plan, PLACE, policy=QUICK), "")
            for name, text in found.files.items():
                (tmp_path / name).write_text(text)
            for phase in plan.phases:
                assert psql(installed_dsn, tmp_path / f"phase-{phase.number}.sql") == ""
            assert psql(installed_dsn, tmp_path / "remove.sql") == ""
            assert {phase.state for phase in (await status(db, place=PLACE)).phases} == {State.REMOVED}
            assert psql(installed_dsn, tmp_path / "rollback-removed.sql") == ""
            assert await catalog_state(db) == before
            assert await read_silenced(db) == {}

    asyncio.run(main())


def test_a_script_stops_where_a_trigger_was_changed_since_it_was_written(installed_dsn: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            found = await write_scripts(Migrator(db, plan, PLACE, policy=QUICK), "")
            await db.run("alter function app.log() set work_mem = '8MB'")
            before = await catalog_state(db)
            path = tmp_path / "phase-2.sql"
            path.write_text(found.files["phase-2.sql"])
            assert "or its function was changed after the plan was written" in psql(installed_dsn, path)
            assert await catalog_state(db) == before
            assert await read_silenced(db) == {}

    asyncio.run(main())


def test_the_optimisation_script_leaves_nothing_for_install_to_do(dsn: str, tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(dsn=dsn, slot=f"s_{dsn.rpartition('_')[2]}")
        async with application(dsn) as db, connect(dsn, guarded=True) as guarded:
            del db
            seen = await runtime.look_at_installation(settings, guarded, guarded)
            assert seen.schema
            path = tmp_path / "0-optimise.sql"
            path.write_text(runtime.installation_script(seen, settings))
            assert psql(dsn, path) == ""
            seen = await runtime.look_at_installation(settings, guarded, guarded)
            assert seen.schema == ()
            assert [step for step in seen.steps if step.sql] == []
            await runtime.install(settings, seen, guarded, guarded)
            seen = await runtime.look_at_installation(settings, guarded, guarded)
            assert seen.done
            changed = await guarded.values(
                "select subject from afterwrite.ledger where action = 'replica_identity.set'"
            )
            assert changed

    asyncio.run(main())
