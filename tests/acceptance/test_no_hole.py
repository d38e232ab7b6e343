"""Silence, write for a while, roll back: the old logs hold what a twin's do, whose triggers were never off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from afterwrite import runtime
from afterwrite.defer.progress import settle
from afterwrite.demo.processes import application, capture_worker
from afterwrite.demo.schema import ROLE, create_legacy_application
from afterwrite.demo.story import leave_on
from afterwrite.demo.twin import LOGS, play
from afterwrite.migrate.engine import run_all
from afterwrite.migrate.plan import Plan, Thresholds, make_plan
from afterwrite.migrate.rollback import Rollback, rollback_phase
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.prove.twin import TwinComparison, compare_logs
from afterwrite.scan.survey import survey
from afterwrite.settings import Settings

pytestmark = pytest.mark.acceptance


def test_after_a_rollback_the_old_logs_have_no_hole_against_a_twin(tmp_path: Path) -> None:
    with embedded_server(settings={"fsync": "off"}) as server:
        rolled_back, silent, twin = asyncio.run(_story(server, tmp_path))
    assert len(rolled_back.restored) > 50
    assert silent > 500, "rows that were written while the triggers were off"
    assert not [each for each in rolled_back.filled if not each.whole]
    assert sum(each.rows for each in rolled_back.filled) > 500
    assert twin.same, [example for log in twin.logs for example in log.examples]
    assert twin.matched > 10_000


async def _story(server: Server, folder: Path) -> tuple[Rollback, int, TwinComparison]:
    settings = Settings(dsn=server.dsn("legacy"), operator="test")
    async with connect(server.dsn()) as admin:
        await admin.run(b"create database legacy")
        async with connect(settings.dsn) as database:
            await create_legacy_application(database, seed=1)
        await admin.run(b"create database twin template legacy")
    async with connect(settings.dsn, guarded=True) as database:
        seen = await runtime.look_at_installation(settings, database, database)
        await runtime.install(settings, seen, database, database)
        async with (
            application(
                server.dsn("legacy", ROLE),
                folder / "ledger",
                clients=4,
                seed=1,
                rate=80,
                log=folder / "workload.log",
                transcript=folder / "transcript",
            ) as app,
            capture_worker(server.dsn("legacy"), folder / "capture.log"),
        ):
            await app.ask("stamp on", "stamp")
            plan = _at_once(make_plan((await survey(database)).judgements))
            await asyncio.sleep(2)
            await run_all(
                database, plan, place=runtime.place_of(settings), apply=True, operator="test", wait_seconds=60
            )
            await asyncio.sleep(3)
            silent = await database.value(
                b"select count(*) from afterwrite.activity where kind = 'change'"
                b" and occurred_at > (select max(at) from afterwrite.ledger where action::text = 'trigger.silence')"
            )
            rolled_back = await rollback_phase(
                database, None, place=runtime.place_of(settings), apply=True, backfill=True, operator="test"
            )
            await asyncio.sleep(1)
            await app.ask("stop", "stopped")
            await app.end()
            await settle(database, database, source=settings.source)
        await asyncio.to_thread(play, server.dsn("twin"), folder / "transcript")
        async with connect(server.dsn("twin")) as twin:
            return rolled_back, silent, await compare_logs(database, twin, LOGS)


def _at_once(plan: Plan) -> Plan:
    """All in one phase, behind gates that ask for little: what is shown here is the way back."""
    plan = leave_on(plan)
    little = Thresholds(proof_transactions=10, proof_seconds=0.0, baseline_seconds=0.0)
    triggers = tuple(
        msgspec.structs.replace(trigger, rare=trigger.fires) for phase in plan.phases for trigger in phase.triggers
    )
    only = msgspec.structs.replace(plan.phases[0], soak_seconds=0.0, thresholds=little, triggers=triggers)
    return msgspec.structs.replace(plan, phases=(only,))
