"""Fan-in under fire for as long as you like: ``./run python -m tests.broker.soak [--recorders 8] [--faults 5]``.

A cluster of three brokers, recorders that keep a ledger, writers with stand-bys. Each kind of fault comes ``--faults``
times. Progress goes to stderr, the closing table to stdout. Ends with 1 where a promise was not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


from cut_lines import cut_lines
from fan_in_run import FAULTS, FanIn, Orders, Outcome

from afterwrite.bench.brokers import broker_cluster
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.store.schema import install_store

WIDTH = 80


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.broker.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recorders", type=int, default=8)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rate", type=float, default=200.0, help="activities a second, of each recorder (200)")
    parser.add_argument("--faults", type=int, default=5, help="of each kind (5)")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between faults (2)")
    parser.add_argument("--cut", type=float, default=12.0, help="seconds that a broker is cut off, at most (12)")
    parser.add_argument("--receipts", action="store_true", help="spools wait for the store's receipt")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    orders = Orders(
        recorders=given.recorders,
        writers=given.writers,
        partitions=given.partitions,
        rate=given.rate,
        faults=dict.fromkeys(FAULTS, given.faults),
        pause_seconds=given.pause,
        cut_seconds=(1.0, given.cut),
        receipts=given.receipts,
        seed=given.seed,
    )
    with tempfile.TemporaryDirectory(prefix="soak") as name, embedded_server() as server:
        folder = Path(name)
        asyncio.run(_install(server.dsn()))
        with cut_lines() as lines, broker_cluster(folder, lines=lines) as cluster:
            outcome = FanIn(folder, cluster, lines, server.dsn(), orders, _say).run()
    print(table(orders, outcome))
    for difference in outcome.differences:
        _say(f"DIFFERENCE: {difference}")
    return 1 if outcome.differences else 0


def table(orders: Orders, outcome: Outcome) -> str:
    """What it came to, in 80 columns."""
    return "\n".join(
        [
            "=" * WIDTH,
            _row("brokers, recorders, writers", f"3, {orders.recorders}, {orders.writers}"),
            _row("partitions", orders.partitions),
            _row("duration", f"{outcome.seconds:,.0f} s"),
            *(_row(_NAMES[fault], outcome.struck.get(fault, 0)) for fault in FAULTS),
            _row("connections of recorders and writers to a broker that was cut off", outcome.cut_connections),
            _row("in the recorders' ledgers", outcome.ledger),
            _row("in the store, each once", outcome.stored),
            _row("of killed recorders, spooled and not in a ledger", outcome.unledgered),
            _row("came again, and were dropped by the store", outcome.duplicates_dropped),
            _row("entities, each in order", outcome.entities),
            _row("batches", outcome.batches),
            _row("record(), 99th percentile of the slowest recorder", f"{outcome.slowest_p99_us:,.0f} µs"),
            _row("differences", len(outcome.differences)),
            "=" * WIDTH,
        ]
    )


_NAMES = {
    "leader": "SIGKILL of the broker that leads the stream",
    "writer": "SIGKILL of a writer, at any moment",
    "writer at": "SIGKILL of the writer around its store's commit",
    "recorder": "SIGKILL of a recorder",
    "still": "a broker that stands still",
    "cut off": "a broker cut off from the others and from its clients",
    "island": "a broker cut off from the others, and not from its clients",
    "all": "SIGKILL of all brokers together",
}


def _row(name: str, value: object) -> str:
    words = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{name} {words.rjust(WIDTH - len(name) - 1)}"


async def _install(dsn: str) -> None:
    async with connect(dsn) as db:
        await install_store(db)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
