"""Kill the worker, crash the server, while the application writes: the store and the effects equal the ledger."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from afterwrite import runtime
from afterwrite.defer.progress import settle
from afterwrite.demo.account import take_account
from afterwrite.demo.processes import application, capture_worker
from afterwrite.demo.schema import ROLE, create_legacy_application
from afterwrite.migrate.engine import run_all
from afterwrite.migrate.plan import Plan, Thresholds, make_plan
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.prove.report import read_proof
from afterwrite.scan.survey import survey
from afterwrite.settings import Settings
from afterwrite.store.reader import verify_feed

KILLS = 14
CRASHES = {4, 10}
MIGRATE_AT = 7
SEED = 20261122

pytestmark = pytest.mark.acceptance


def test_nothing_is_lost_or_doubled_when_the_worker_is_killed_and_the_server_crashes(tmp_path: Path) -> None:
    with embedded_server(settings={"fsync": "off"}) as server:
        asyncio.run(_chaos(server, tmp_path))


async def _chaos(server: Server, folder: Path) -> None:
    chance = random.Random(SEED)
    async with connect(server.dsn()) as admin:
        await admin.run(b"create database legacy")
    given = Settings(dsn=server.dsn("legacy"))
    async with connect(given.dsn) as database:
        await create_legacy_application(database, seed=1)
    ledger = folder / "workload.jsonl"
    async with application(
        server.dsn("legacy", ROLE), ledger, clients=6, seed=SEED, rate=40, log=folder / "workload.log"
    ) as app:
        async with connect(given.dsn) as database:
            found = await survey(database)
            seen = await runtime.look_at_installation(given, database, database)
            await runtime.install(given, seen, database, database)
        await app.ask("stamp on", "stamp")
        await app.ask("mark captured", "mark")
        for number in range(KILLS):
            async with capture_worker(given.dsn or "", folder / "capture.log") as worker:
                await asyncio.sleep(chance.uniform(0.7, 1.8))
                if number == MIGRATE_AT:
                    async with connect(given.dsn) as database:
                        await run_all(
                            database,
                            _impatient(make_plan(found.judgements)),
                            place=runtime.place_of(given),
                            apply=True,
                            wait_seconds=30,
                        )
                if number in CRASHES:
                    await asyncio.to_thread(server.restart, "immediate")
                    await asyncio.sleep(chance.uniform(0.2, 1.0))
                await worker.kill()
        await app.ask("stop", "stopped")
        await app.end()
    async with connect(given.dsn) as database, capture_worker(given.dsn or "", folder / "capture.log"):
        await settle(database, database, source=given.source)
        account = await take_account(ledger, database, database, since="captured")
        feed = await verify_feed(database)
        proof = await read_proof(database)
    assert account.clean, account
    assert account.transactions > 500
    assert account.deferred_effects_expected > 100
    assert feed.first_break is None, feed
    assert feed.position == feed.batches
    assert proof.unexplained == 0, proof


def _impatient(plan: Plan) -> Plan:
    """The same plan with gates that ask for no proof yet: here it is about crashes, not about evidence or speed."""
    thresholds = Thresholds(
        proof_transactions=0, proof_seconds=0, baseline_seconds=0, write_latency_ratio=100, cpu_ratio=100
    )
    return msgspec.structs.replace(
        plan,
        thresholds=thresholds,
        phases=tuple(
            msgspec.structs.replace(
                phase,
                thresholds=thresholds,
                soak_seconds=0.0,
                triggers=tuple(msgspec.structs.replace(t, rare=t.fires) for t in phase.triggers),
            )
            for phase in plan.phases
        ),
    )
