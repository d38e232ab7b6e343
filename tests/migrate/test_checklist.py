"""The execution checklist: what was done, when, by whom, and what is still to do."""

from __future__ import annotations

import asyncio

import pytest
from migrating import PLACE, QUICK, application, holding, plan_of

from afterwrite.migrate.checklist import Item, Section
from afterwrite.migrate.engine import remove_phases, run_all, run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.pulse import note_pulse
from afterwrite.migrate.rehearse import Rehearsal, note_rehearsal
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.migrate.status import status
from afterwrite.postgres import Database


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)
    monkeypatch.setattr("afterwrite.migrate.status.measure", measure)


async def checklist(db: Database, **more: object) -> dict[str, Item]:
    return {item.what: item for item in (await status(db, place=PLACE, **more)).checklist}  # type: ignore[arg-type]


def test_the_checklist_goes_with_the_migration(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            found = await checklist(db)
            assert found["afterwrite installed"].at is not None
            assert not found["plan written and reviewed"].done
            assert found["capture running"].how == "afterwrite capture"
            assert {item.section for item in found.values()} == {Section.BEFORE}

            plan = await plan_of(db)
            rehearsal = Rehearsal(
                triggers=("a", "b"), functions=(), server_version=18, catalog_lines=1, findings=(), seconds=0.1
            )
            await note_rehearsal(db, rehearsal, "anna")
            await note_pulse(db)
            found = await checklist(db, plan=plan)
            assert found["plan written and reviewed"].done
            assert found["load noted, to compare with"].done
            assert found["backup rehearsed"].done
            assert (found["backup rehearsed"].by or "").startswith("anna (as ")
            assert found["phase 1 silenced: notifications and bulk operations"].done is False

            await run_phase(db, plan, 1, place=PLACE, apply=True, policy=QUICK, operator="bert")
            found = await checklist(db)
            silenced = found["phase 1 silenced: notifications and bulk operations"]
            assert (silenced.done, silenced.detail) == (True, "2 off")
            assert (silenced.by or "").startswith("bert")
            assert found["phase 1 soaked"].done is False
            assert found["phase 1 soaked"].how == "afterwrite migrate run --phase 1 --apply --watch"
            assert found["nothing changed behind our back"].done

            await run_all(db, plan, place=PLACE, apply=True, check_seconds=0.05, policy=QUICK)
            await remove_phases(db, plan, None, place=PLACE, apply=True, functions=True, policy=QUICK, operator="carl")
            found = await checklist(db)
            assert all(item.done for item in found.values() if item.section is Section.EXECUTION)
            assert (found["phase 3 removed"].by or "").startswith("carl")
            assert found["functions that nothing uses dropped"].detail == "1 so far"
            assert (await status(db, place=PLACE)).next.startswith("nothing: every phase is removed")

            await rollback_phase(db, 2, place=PLACE, apply=True, policy=QUICK)
            found = await checklist(db)
            assert found["phase 2 silenced: templates and configuration"].done is False
            assert found["legacy logs without a hole after rollbacks"].done is False
            assert found["legacy logs without a hole after rollbacks"].detail == "1 to be filled"

    asyncio.run(main())
