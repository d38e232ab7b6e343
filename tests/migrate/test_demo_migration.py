"""The demo's own eighty-six triggers, as scan judges them: five phases forward and back, to the same bytes."""

from __future__ import annotations

import asyncio

import pytest
from migrating import PLACE, QUICK, end_deferrals, holding

from afterwrite.demo.schema import create_legacy_application
from afterwrite.migrate.backup import catalog_state
from afterwrite.migrate.engine import run_phase
from afterwrite.migrate.gates import Readings, read_table_figures
from afterwrite.migrate.identity import (
    ReplicaIdentity,
    read_replica_identity,
    record_replica_identity,
    replica_identity_sql,
)
from afterwrite.migrate.ledger import read_silenced
from afterwrite.migrate.phase import State
from afterwrite.migrate.plan import check_plan, make_plan, read_plan, write_plan
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.postgres import Database, connect, quoted
from afterwrite.scan.survey import survey

FULL = ReplicaIdentity("f")


async def _widen(db: Database, table: str) -> None:
    """As install does."""
    leaves = "select relid::regclass::text from pg_partition_tree(%(table)s::regclass)"
    for relation in await db.values(leaves, table=table) or [table]:
        before = await read_replica_identity(db, relation)
        if before != FULL:
            await record_replica_identity(db, relation, before, FULL)
            await db.run(replica_identity_sql(relation, FULL).encode())


def test_the_demo_goes_through_all_phases_and_back(installed_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    async def main() -> None:
        async with connect(installed_dsn) as db:
            await create_legacy_application(db, seed=1)
            found = await survey(db)
            plan = read_plan(write_plan(make_plan(found.judgements, await read_table_figures(db), soak_seconds=0.0)))
            assert check_plan(plan, found.judgements) == []
            tables = {trigger.trigger.split(".")[1]: p.number for p in plan.phases for trigger in p.triggers}
            assert {
                "notifications": 1,
                "token_templates": 2,
                "investments": 3,
                "tokens": 4,
                "users": 5,
            }.items() <= tables.items()
            pristine = await catalog_state(db)
            for judgement in found.judgements:
                if judgement.needs.replica_identity_full:
                    await _widen(db, quoted(judgement.trigger.schema, judgement.trigger.table))
            start = await catalog_state(db)
            states: list[str] = []
            moved = 0
            for phase in plan.phases:
                run = await run_phase(db, plan, phase.number, place=PLACE, apply=True, policy=QUICK)
                assert run.state is State.SILENCED
                moved += len(run.silenced)
                states.append(await catalog_state(db))
            assert moved == 64
            assert len(plan.kept) == 22
            for phase in reversed(plan.phases):
                assert await catalog_state(db) == states[phase.number - 1]
                await rollback_phase(db, phase.number, place=PLACE, apply=True)
            assert await catalog_state(db) == start
            await end_deferrals(db)
            for phase in plan.phases:
                await run_phase(db, plan, phase.number, place=PLACE, apply=True)
                assert await catalog_state(db) == states[phase.number - 1]
            assert len(await read_silenced(db)) == 64
            back = await rollback_phase(db, None, place=PLACE, apply=True)
            assert back.finished
            assert await catalog_state(db) == pristine

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)
    asyncio.run(main())
