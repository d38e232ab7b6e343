"""Captured changes under fire for as long as you like: ``./run python -m tests.broker.changes_soak [--faults 5]``.

Three brokers that flush, two source databases, a capture of each, two writers and one store. Each kind of fault comes
``--faults`` times while the sources write. Progress goes to stderr, the closing table to stdout. Ends with 1 where a
promise was not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psycopg
from changes_run import FAULTS, Fleet, Origin

from afterwrite.bench.brokers import broker_cluster
from afterwrite.broker import check
from afterwrite.broker.link import read_access
from afterwrite.broker.topology import Layout
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.store.schema import install_store

WIDTH = 80
_NAMES = {
    "capture": "SIGKILL of a capture, at any moment or step",
    "writer": "SIGKILL of a writer, at any moment or step",
    "leader": "SIGKILL of the broker that leads the stream",
    "all": "SIGKILL of all brokers together",
    "purge": "brokers lose all that they acknowledged",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.broker.changes_soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=5, help="of each kind (5)")
    parser.add_argument("--rate", type=float, default=50.0, help="transactions a second, of each source (50)")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between faults (2)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    dice = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="soak") as name, embedded_server() as server:
        store = _make_database(server, "store")
        origins = [Origin(_make_database(server, each), store) for each in ("shop", "billing")]
        for origin in origins:
            asyncio.run(origin.install())
        with broker_cluster(Path(name)) as cluster:
            access = read_access(cluster.url)
            asyncio.run(_install(access))
            over = threading.Event()
            began = time.monotonic()
            with Fleet(access, cluster, store, origins, writers=2) as fleet:
                work = [threading.Thread(target=_work, args=(origin, given.rate, over)) for origin in origins]
                for thread in work:
                    thread.start()
                try:
                    faults = [fault for fault in FAULTS for _ in range(given.faults)]
                    dice.shuffle(faults)
                    for fault in faults:
                        time.sleep(given.pause * dice.uniform(0.5, 1.5))
                        _say(f"{time.monotonic() - began:5.1f} s: {fault}")
                        # The sources write all the while.
                        fleet.strike(fault, dice, work=lambda: None)
                finally:
                    over.set()
                    for thread in work:
                        thread.join()
                fleet.settle()
                differences = fleet.differences()
                print(_table(fleet, origins, time.monotonic() - began, differences))
    for difference in differences[:20]:
        _say(f"DIFFERENCE: {difference}")
    return 1 if differences else 0


def _work(origin: Origin, rate: float, over: threading.Event) -> None:
    """Write, mostly little, now and then a transaction of many parts."""
    dice = random.Random(origin.name)
    while not over.wait(10 / rate):
        if dice.random() < 0.02:
            origin.write(1, 12_000, "x" * 1_000)
        else:
            origin.write(10, dice.randint(1, 5))


def _table(fleet: Fleet, origins: list[Origin], seconds: float, differences: list[str]) -> str:
    return "\n".join(
        [
            "=" * WIDTH,
            _row("brokers, sources, writers", f"3, {len(origins)}, {len(fleet.writers)}"),
            _row("duration", f"{seconds:,.0f} s"),
            *(_row(_NAMES[fault], fleet.struck[fault]) for fault in FAULTS),
            _row("messages that the brokers lost", fleet.lost),
            _row("rows that the sources have committed", sum(origin.written for origin in origins)),
            _row("in the store", sum(len(origin.stored()) for origin in origins)),
            _row("looks at a slot and its checkpoint", fleet.looks),
            _row("of these, a slot beyond the store's commit", len(fleet.early)),
            _row("differences", len(differences)),
            "=" * WIDTH,
        ]
    )


def _row(name: str, value: object) -> str:
    words = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{name} {words.rjust(WIDTH - len(name) - 1)}"


def _make_database(server: Server, name: str) -> str:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")

    async def lay() -> None:
        async with connect(server.dsn(name)) as db:
            await install_store(db)

    asyncio.run(lay())
    return server.dsn(name)


async def _install(access: object) -> None:
    layout = Layout(stream="AFTERWRITE", partitions=1, max_bytes=64 << 20, changes_bytes=256 << 20)
    await check.carry_out(access, check.plan(await check.look(access), layout))  # type: ignore[arg-type]


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
