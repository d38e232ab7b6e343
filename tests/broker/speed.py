"""How fast a broker takes and writers store: ``./run python -m tests.broker.speed [--activities 200000]``.

Three brokers, a store and everything else on this machine. First the recorder's sink alone publishes; then one, two and
four writers, each a process with its share of eight partitions, store what was published. CPU is that of the processes
of each kind, read from the system, so that the machine's other work is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import psycopg
from broker_cluster import Cluster, broker_cluster

from afterwrite.broker import check
from afterwrite.broker.link import Access, read_access
from afterwrite.broker.publish import broker_sink
from afterwrite.broker.topology import Layout
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.record import Activity, Batch, Kind
from afterwrite.recorder.ids import Ids, moment_of
from afterwrite.store.schema import install_store

_PARTITIONS = 8
_TICK = os.sysconf("SC_CLK_TCK")
_BATCH = 4_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.broker.speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--activities", type=int, default=200_000)
    parser.add_argument("--tenants", type=int, default=500)
    given = parser.parse_args()
    print("CPU in µs an activity     activities/s   brokers   recorder, writers   store")
    with tempfile.TemporaryDirectory(prefix="speed") as name, embedded_server() as server:
        asyncio.run(_install(server.dsn()))
        with broker_cluster(Path(name)) as cluster:
            access = read_access(cluster.url)
            asyncio.run(_make(access))
            for writers in (1, 2, 4):
                _publish(cluster, access, given.activities, given.tenants)
                _write(cluster, server, given.activities, writers)
    return 0


def _publish(cluster: Cluster, access: Access, count: int, tenants: int) -> None:
    ids = Ids()
    activities: list[Activity] = []
    for number in range(count):
        id = ids.make()
        moment = moment_of(id)
        assert moment is not None
        activities.append(
            Activity(
                id=id,
                occurred_at=moment,
                source="shop",
                kind=Kind.EVENT,
                category="data",
                action="order.paid",
                entity_type="order",
                entity_id=str(number),
                actor_id=f"user:{number % 97}",
                tenant_id=f"tenant-{number % tenants}",
                request_id=id,
                summary=f"order {number} was paid",
                metadata=msgspec.Raw(b'{"method":"card","amount":1299,"currency":"EUR"}'),
            )
        )

    async def publish() -> None:
        async with broker_sink(access)() as sink:
            for first in range(0, count, _BATCH):
                await sink.write(Batch(source="shop", activities=activities[first : first + _BATCH], transactions=0))

    before, own, began = _cpu(_pids(cluster)), time.process_time(), time.monotonic()
    asyncio.run(publish())
    seconds = time.monotonic() - began
    _tell("published", count, seconds, _cpu(_pids(cluster)) - before, time.process_time() - own)
    seen = asyncio.run(check.look(access))
    per = seen.state["bytes"] / count
    print(f"  {seen.state['messages']:,} messages, {per:,.0f} bytes an activity on each broker")


def _write(cluster: Cluster, server: Server, count: int, writers: int) -> None:
    dsn = server.dsn()
    already = _count(dsn)
    began = time.monotonic()
    words = [sys.executable, "-m", "afterwrite", "broker", "write"]
    processes = [
        subprocess.Popen(
            [*words, *(word for p in range(each, _PARTITIONS, writers) for word in ("--partition", str(p)))],
            env={**os.environ, "AFTERWRITE_NATS_URL": cluster.url, "AFTERWRITE_STORE_DSN": dsn},
            stderr=subprocess.DEVNULL,
        )
        for each in range(writers)
    ]
    try:
        first: float | None = None
        started = before = of_store = 0.0
        at = 0
        while (stored := _count(dsn) - already) < count:
            if stored and first is None:
                # From here on: what it costs to start a process is none of what an activity costs.
                first, at = time.monotonic(), stored
                started, before = _cpu(process.pid for process in processes), _cpu(_pids(cluster))
                of_store = _cpu_of_store(server)
            if time.monotonic() - began > 300:
                raise AssertionError(f"{stored} of {count} in five minutes")
            time.sleep(0.05)
        assert first is not None
        seconds = time.monotonic() - first
        own = _cpu(process.pid for process in processes) - started
        of_store = _cpu_of_store(server) - of_store
        _tell(f"stored, {writers} writers", count - at, seconds, _cpu(_pids(cluster)) - before, own, of_store)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def _tell(stage: str, count: int, seconds: float, brokers: float, own: float, store: float = 0.0) -> None:
    costs = [f"{1e6 * cost / count:.1f}" for cost in (brokers, own, store)]
    print(f"{stage:<24} {count / seconds:>13,.0f} {costs[0]:>9} {costs[1]:>19} {costs[2]:>7}", flush=True)


def _cpu_of_store(server: Server) -> float:
    """Seconds of CPU that the server has used, also by those of its processes that have ended."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if path.parent.name == str(server.pid):
                total += sum(int(field) for field in fields[11:15])
            elif fields[1] == str(server.pid):
                total += int(fields[11]) + int(fields[12])
    return total / _TICK


def _pids(cluster: Cluster) -> list[int]:
    return [node.process.pid for node in cluster.nodes if node.process is not None]


def _cpu(pids: Iterable[int]) -> float:
    """Seconds of CPU that these processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICK


def _count(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        return connection.execute("select coalesce(sum(rows), 0)::bigint from afterwrite.batch").fetchone()[0]  # type: ignore[index]


async def _install(dsn: str) -> None:
    async with connect(dsn) as db:
        await install_store(db)


async def _make(access: Access) -> None:
    layout = Layout(stream=access.stream, partitions=_PARTITIONS, max_bytes=768 << 20)
    await check.carry_out(access, check.plan(await check.look(access), layout))


if __name__ == "__main__":
    sys.exit(main())
