"""The legacy application's whole workload, proven: its 46 log triggers on compared values, nothing unexplained."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from proof_scene import Scene  # type: ignore[import-not-found]

from afterwrite.demo.clients import Workload
from afterwrite.demo.ledger import Ledger
from afterwrite.demo.schema import LEGACY_LOGS, TABLES, create_legacy_application
from afterwrite.postgres import connect
from afterwrite.prove.report import TriggerProof
from afterwrite.prove.watch import Mode


def test_the_workload_of_the_demo_leaves_nothing_unexplained(scene: Scene, tmp_path: Path) -> None:
    async def lay() -> None:
        async with connect(scene.dsn) as db:
            await create_legacy_application(db, seed=1)

    asyncio.run(lay())
    scene.lay(
        "select 1",
        tables=[f"public.{table}" for table in TABLES],
        legacy=[f"public.{table}" for table in LEGACY_LOGS],
    )
    found = scene.survey()
    with Ledger(tmp_path / "ledger") as ledger:
        workload = Workload(scene.dsn, ledger, clients=3, seed=5, rate=0)
        workload.stamped = True
        workload.start()
        _let_it_work(workload, transactions=1_500)
        workload.stop()
    assert workload.fatal is None
    proof = scene.prove(scene.read(), found)

    compared = [each for each in proof.triggers if each.mode is Mode.RETIRE]
    covered = [each for each in proof.triggers if each.mode is Mode.DEFER]
    assert (len(compared), len(covered)) == (46, 18)
    assert proof.unexplained == 0, proof.examples
    assert [each.trigger for each in proof.triggers if not any(operation.fired for operation in each.operations)] == []
    # At least a third of each trigger's columns are compared to the last digit, and hardly any not at all.
    assert [each.trigger for each in compared if _exact_share(each) < 1 / 3] == []
    assert sum(operation.exact for each in compared for operation in each.operations) > 0.7 * sum(
        operation.exact + operation.partly + operation.uncompared for each in compared for operation in each.operations
    )


def _let_it_work(workload: Workload, *, transactions: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and workload.fatal is None:
        if sum(window["committed"] for window in workload.report()) >= transactions:
            return
        time.sleep(0.1)


def _exact_share(found: TriggerProof) -> float:
    columns = sum(each.exact + each.partly + each.uncompared for each in found.operations)
    return sum(each.exact for each in found.operations) / columns if columns else 0.0
