"""Killed anywhere, the same command run again ends in the same state."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from migrating import PLACE, QUICK, application, end_deferrals, holding, plan_of

from afterwrite.failpoints import VARIABLE
from afterwrite.migrate.backup import catalog_state
from afterwrite.migrate.deeds import MigrationEvent
from afterwrite.migrate.engine import remove_phases, run_phase
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.ledger import Action, read_ledger, read_silenced
from afterwrite.migrate.observe import read_user_triggers
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import Plan, read_plan, write_plan
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.postgres import Database, connect

PHASES = (1, 3)


@pytest.fixture(autouse=True)
def _gates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    monkeypatch.setattr("afterwrite.migrate.engine.measure", measure)


class _Crash(BaseException):
    pass


class _At:
    """Raises (or kills this process) when it has heard of so many events."""

    def __init__(self, count: int, *, kill: bool = False) -> None:
        self.left = count
        self.kill = kill

    def __call__(self, event: MigrationEvent) -> None:
        self.left -= 1
        if self.left == 0:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise _Crash(event.kind)


async def forward(db: Database, plan: Plan, at: _At | None = None) -> None:
    for number in PHASES:
        await run_phase(db, plan, number, place=PLACE, apply=True, policy=QUICK, on_event=at)


async def remove(db: Database, plan: Plan, at: _At | None = None) -> None:
    for number in PHASES:
        await remove_phases(db, plan, number, place=PLACE, apply=True, policy=QUICK, on_event=at)


async def back(db: Database, at: _At | None = None) -> None:
    await rollback_phase(db, None, place=PLACE, apply=True, policy=QUICK, on_event=at)


async def check_invariants(db: Database) -> None:
    """What must hold at every moment, crash or not."""
    silenced = await read_silenced(db)
    off = set(
        await db.values(
            "select n.nspname || '.' || c.relname || '.' || t.tgname from pg_trigger t "
            "join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace "
            "where t.tgenabled = 'D' and t.tgparentid = 0 and n.nspname = 'app'"
        )
    )
    gone = {identity for identity, each in silenced.items() if each.removed_at is not None}
    assert off == set(silenced) - gone | {"app.tokens.dead"}
    assert not gone & {each.identity for each in await read_user_triggers(db)}
    prepared = set(await db.values("select identity from afterwrite.deferral where state in ('prepared', 'live')"))
    assert {identity for identity, each in silenced.items() if each.mode is Mode.DEFER} <= prepared
    entries = await read_ledger(db)
    assert len({entry.migration for entry in entries if entry.action is Action.MIGRATION_START}) == len(
        [entry for entry in entries if entry.action is Action.MIGRATION_START]
    )


def test_an_error_at_any_point_forward_or_back_leads_to_the_same_state(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            start = await catalog_state(db)
            await forward(db, plan)
            end = await catalog_state(db)
            await back(db)
            await end_deferrals(db)
            points = 0
            while True:
                points += 1
                at = _At(points)
                try:
                    await forward(db, plan, at)
                except _Crash:
                    await check_invariants(db)
                    await forward(db, plan)
                await check_invariants(db)
                assert await catalog_state(db) == end
                backwards = _At(points)
                try:
                    await back(db, backwards)
                except _Crash:
                    await check_invariants(db)
                    await back(db)
                assert await catalog_state(db) == start
                await end_deferrals(db)
                if at.left > 0 and backwards.left > 0:
                    break
            assert points > 15

    asyncio.run(main())


def test_a_killed_process_leaves_a_normal_start(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            start = await catalog_state(db)
            await forward(db, plan)
            end = await catalog_state(db)
            await back(db)
            await end_deferrals(db)
            for points in (3, 11, 14):
                _kill("forward", installed_dsn, plan, points)
                await check_invariants(db)
                await forward(db, plan)
                await check_invariants(db)
                assert await catalog_state(db) == end
                _kill("back", installed_dsn, plan, points)
                await back(db)
                assert await catalog_state(db) == start
                await end_deferrals(db)

    asyncio.run(main())


@pytest.mark.parametrize("point", ["before_deed", "before_deed_commit", "after_deed"])
def test_killed_at_a_failpoint_the_same_command_again_ends_in_the_same_state(installed_dsn: str, point: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            start = await catalog_state(db)
            await forward(db, plan)
            silenced = await catalog_state(db)
            await remove(db, plan)
            removed = await catalog_state(db)
            await back(db)
            assert await catalog_state(db) == start
            await end_deferrals(db)
            for what, again, end in (
                ("forward", forward, silenced),
                ("remove", remove, removed),
                ("back", back, start),
            ):
                _kill(what, installed_dsn, plan, 10**6, failpoints=f"migrate.{point}=kill@2")
                await check_invariants(db)
                if what == "back":
                    await back(db)
                else:
                    await again(db, plan)  # type: ignore[arg-type]
                await check_invariants(db)
                assert await catalog_state(db) == end

    asyncio.run(main())


def _kill(what: str, dsn: str, plan: Plan, points: int, *, failpoints: str = "") -> None:
    done = subprocess.run(
        [sys.executable, __file__, what, dsn, str(points)],
        input=write_plan(plan),
        text=True,
        check=False,
        capture_output=True,
        env={
            **os.environ,
            VARIABLE: failpoints,
            "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
        },
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def _victim() -> Iterator[None]:
    what, dsn, points = sys.argv[1:]
    plan = read_plan(sys.stdin.read())

    async def main() -> None:
        async with connect(dsn) as db:
            at = _At(int(points), kill=True)
            match what:
                case "forward":
                    await forward(db, plan, at)
                case "remove":
                    await remove(db, plan, at)
                case _:
                    await back(db, at)

    with pytest.MonkeyPatch.context() as patch:

        async def measure(*_: object, **__: object) -> Readings:
            return holding()

        patch.setattr("afterwrite.migrate.engine.measure", measure)
        asyncio.run(main())
    yield


if __name__ == "__main__":
    list(_victim())
