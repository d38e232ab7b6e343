"""A retired trigger whose log is kept: its body goes on filling it after commit, to the row, until it is on again."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from migrating import QUICK, application, captured, holding, plan_of

from afterwrite.defer.calls import OnError
from afterwrite.defer.deferral import read_deferrals
from afterwrite.defer.progress import settle
from afterwrite.errors import UsageError
from afterwrite.migrate.engine import run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import Legacy, Plan, read_plan, write_plan
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.postgres import connect

KEPT = "app.project_settings.log"


def kept(plan: Plan, **more: object) -> Plan:
    """The plan with the log of one trigger kept."""
    phases = tuple(
        msgspec.structs.replace(
            phase,
            triggers=tuple(
                msgspec.structs.replace(each, legacy=Legacy.KEEP, **more) if each.trigger == KEPT else each
                for each in phase.triggers
            ),
        )
        for phase in plan.phases
    )
    return read_plan(write_plan(msgspec.structs.replace(plan, phases=phases)))


def test_the_log_of_a_silenced_trigger_is_filled_after_commit_and_has_no_hole(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)

    async def main() -> None:
        async with (
            application(installed_dsn) as db,
            captured(installed_dsn, db) as place,
            connect(installed_dsn) as other,
        ):
            await db.run(b"alter table app.project_settings replica identity full")
            plan = kept(await plan_of(db), on_error=OnError.STOP)
            phase = next(p for p in plan.phases for t in p.triggers if t.trigger == KEPT)
            planned = next(t for t in phase.triggers if t.trigger == KEPT)
            assert (planned.mode, planned.moves_as) == (Mode.RETIRE, Mode.DEFER)
            await db.run(b"insert into app.project_settings values (1, 'by the trigger')")
            await run_phase(db, plan, phase.number, place=place, apply=True, policy=QUICK)
            (row,) = await read_deferrals(db, "app")
            assert (row.identity, row.on_error) == (KEPT, OnError.STOP)
            assert await db.value(b"select mode from afterwrite.deferral") == "retire"
            await db.run(b"insert into app.project_settings values (2, 'after commit')")
            await db.run(b"update app.project_settings set value = value || '!'")
            await settle(db, other, source="app")
            done = await rollback_phase(db, phase.number, place=place, apply=True, policy=QUICK)
            assert done.restored == (KEPT,)
            await db.run(b"delete from app.project_settings where id = 1")
            await settle(db, other, source="app")
            assert await db.values(b"select what || ' ' || (row ->> 'id') from app.audit_log order by id") == [
                "project_settings INSERT 1",
                "project_settings INSERT 2",
                "project_settings UPDATE 1",
                "project_settings UPDATE 2",
                "project_settings DELETE 1",
            ]

    asyncio.run(main())


def test_words_that_do_not_belong_to_a_mode_are_refused(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            text = write_plan(await plan_of(db))
        with pytest.raises(UsageError, match="legacy"):
            read_plan(text.replace('mode = "defer"\n', 'mode = "defer"\nlegacy = "keep"\n', 1))
        with pytest.raises(UsageError, match="on_error"):
            read_plan(text.replace('mode = "retire"\n', 'mode = "retire"\non_error = "stop"\n', 1))
        read_plan(text.replace('mode = "retire"\n', 'mode = "retire"\nlegacy = "keep"\non_error = "stop"\n', 1))

    asyncio.run(main())
