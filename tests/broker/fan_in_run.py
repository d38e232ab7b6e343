"""Fan-in under fire: recorders keep a ledger of what they were told is kept, and brokers, writers and recorders die.

Faults are drawn from a seed: SIGKILL of the broker that leads the stream, of a writer (at any moment, or between the
store's commit and its acknowledgement), of a recorder, a broker that stands still, one that is cut off from the others
with recorders and writers connected to it, and all brokers together. In the end the store must hold all of the ledger,
each id once, and of each entity everything in order.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
from cut_lines import CutLines

from afterwrite.bench.brokers import Cluster, Node
from afterwrite.broker import check
from afterwrite.broker.link import read_access
from afterwrite.broker.topology import Layout
from afterwrite.broker.write import WriterStatus
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect
from afterwrite.store.reader import FeedReport, verify_feed

_HERE = Path(__file__).parent
_LONGEST_SECONDS = 180.0
_KILLED_AT = ("broker.before_store", "broker.after_store", "broker.after_acknowledge")
FAULTS = ("leader", "writer", "writer at", "recorder", "still", "cut off", "island", "all")


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """How much, and how badly. ``rate`` is a second and recorder; each fault comes ``faults`` times.

    ``cut_seconds``: the least and the most that a broker is cut off. It takes the others some four to elect a leader.
    """

    recorders: int
    writers: int = 2
    partitions: int = 4
    rate: float
    faults: dict[str, int]
    pause_seconds: float = 0.5
    cut_seconds: tuple[float, float] = (1.0, 12.0)
    receipts: bool = False
    seed: int = 1


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; ``differences`` is empty where every promise was kept."""

    seconds: float
    struck: dict[str, int]
    cut_connections: int
    ledger: int
    stored: int
    unledgered: int
    duplicates_dropped: int
    batches: int
    entities: int
    slowest_p99_us: float
    dropped: int
    differences: list[str]


class Told(msgspec.Struct, frozen=True):
    """What a recorder says at its end."""

    stats: dict[str, object]
    calls: int
    p99_us: float


class FanIn:
    """The run. Everything it starts it ends, by its process."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        lines: CutLines,
        dsn: str,
        orders: Orders,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._cluster, self._lines, self._dsn = folder, cluster, lines, dsn
        self._orders, self._say = orders, say
        self._dice = random.Random(orders.seed)
        self._recorders: dict[str, subprocess.Popen[bytes]] = {}
        self._writers: dict[str, subprocess.Popen[bytes]] = {}
        self._generation = 0
        self._struck: Counter[str] = Counter()
        self._cut_connections = 0
        self._killed: set[str] = set()

    def run(self) -> Outcome:
        access = read_access(self._cluster.url)
        asyncio.run(_install(self._cluster.url, self._orders.partitions))
        began = time.monotonic()
        try:
            for number in range(self._orders.writers):
                self._start_writer(str(number))
            for number in range(self._orders.recorders):
                self._start_recorder(str(number))
            self._until(lambda: self._count() > 0, "anything is stored")
            faults = [fault for fault, times in sorted(self._orders.faults.items()) for _ in range(times)]
            self._dice.shuffle(faults)
            for fault in faults:
                time.sleep(self._orders.pause_seconds * self._dice.uniform(0.5, 1.5))
                self._say(f"{time.monotonic() - began:5.1f} s: {fault}")
                self._strike(fault)
                self._struck[fault] += 1
            (self._folder / "stop").touch()
            alive = set(self._recorders)
            self._until(
                lambda: all((self._folder / f"empty-{name}").exists() for name in alive), "all spools are empty"
            )
            self._until(lambda: asyncio.run(_waiting(access)) == 0, "the broker is empty")
            (self._folder / "leave").touch()
            told = [self._finish(name) for name in sorted(self._recorders)]
            for writer in self._writers.values():
                writer.terminate()
            for name, writer in self._writers.items():
                if writer.wait(20):
                    raise AssertionError(f"writer {name} ended with {writer.returncode}")
        finally:
            for process in (*self._recorders.values(), *self._writers.values()):
                process.kill()
                process.communicate()
        return self._judge(told, time.monotonic() - began)

    def _strike(self, fault: str) -> None:
        match fault:
            case "leader":
                node = self._leader()
                node.kill()
                time.sleep(self._dice.uniform(0.2, 1.5))
                node.start()
                self._cluster.wait()
            case "writer":
                name = self._dice.choice(sorted(self._writers))
                self._writers[name].kill()
                self._writers[name].communicate()
                time.sleep(self._dice.uniform(0.0, 1.0))
                self._start_writer(name)
            case "writer at":
                # One that dies at that place when it is active next; the one that has the partitions makes room for it.
                point = self._dice.choice(_KILLED_AT)
                name, *others = self._dice.sample(sorted(self._writers), len(self._writers))
                for each in (name, *others):
                    self._writers[each].kill()
                    self._writers[each].communicate()
                self._start_writer(name, f"{point}=kill@{self._dice.randint(1, 3)}")
                self._wait_for(self._writers[name])
                for each in (name, *others):
                    self._start_writer(each)
            case "recorder":
                name = self._dice.choice(sorted(self._recorders))
                process = self._recorders.pop(name)
                process.kill()
                process.communicate()
                self._killed.add(name)
                self._generation += 1
                self._start_recorder(f"{name.partition('.')[0]}.{self._generation}")
            case "still":
                node = self._dice.choice(self._cluster.nodes)
                node.suspend()
                time.sleep(self._dice.uniform(1.0, 4.0))
                node.resume()
                self._cluster.wait()
            case "cut off" | "island":
                self._cut_off(clients=fault == "cut off")
            case _:
                for node in self._cluster.nodes:
                    node.kill()
                time.sleep(self._dice.uniform(0.0, 0.5))
                self._cluster.start()

    def _cut_off(self, *, clients: bool) -> None:
        """One of them; every other time the one that leads the stream. From clients one that has some is cut off."""
        nodes = self._cluster.nodes
        if clients:
            self._until(lambda: any(self._lines.clients(node.name) for node in nodes), "a broker has clients")
            nodes = [node for node in nodes if self._lines.clients(node.name)]
        leader = self._leader()
        node = leader if leader in nodes and self._dice.random() < 0.5 else self._dice.choice(nodes)
        self._cut_connections += self._lines.clients(node.name)
        self._lines.cut(node.name, clients=clients)
        try:
            time.sleep(self._dice.uniform(*self._orders.cut_seconds))
        finally:
            self._lines.mend(drop=self._dice.random() < 0.5)
        self._cluster.wait()

    def _leader(self) -> Node:
        name = self._ask(lambda: asyncio.run(_leader(self._cluster.url)))
        return self._cluster.node(name)

    def _ask(self, question: Callable[[], str]) -> str:
        until = time.monotonic() + 30
        while True:
            try:
                if answer := question():
                    return answer
            except AfterwriteError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)

    def _wait_for(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired as error:
            raise AssertionError("the writer never came to the place where it was to die") from error

    def _start_recorder(self, name: str) -> None:
        words = [str(self._folder), self._cluster.url, name, str(self._orders.rate), str(int(self._orders.receipts))]
        self._recorders[name] = subprocess.Popen(
            [sys.executable, str(_HERE / "fan_in_recorder.py"), *words], stdout=subprocess.PIPE
        )

    def _start_writer(self, name: str, failpoints: str = "") -> None:
        started = len(list(self._folder.glob(f"writer-{name}.*.json")))
        status = self._folder / f"writer-{name}.{started}.json"
        status.write_text("[]")
        self._writers[name] = subprocess.Popen(
            [sys.executable, str(_HERE / "fan_in_writer.py"), self._cluster.url, self._dsn],
            env={**os.environ, "AFTERWRITE_FAILPOINTS": failpoints, "STATUS": str(status)},
        )

    def _finish(self, name: str) -> Told:
        said, _ = self._recorders[name].communicate(timeout=30)
        if self._recorders[name].returncode:
            raise AssertionError(f"recorder {name} ended with {self._recorders[name].returncode}")
        return msgspec.json.decode(said, type=Told)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _LONGEST_SECONDS
        while True:
            try:
                if condition():
                    return
            except AfterwriteError:
                pass
            if time.monotonic() > until:
                raise AssertionError(f"it never came about that {what}")
            for name, process in (*self._recorders.items(), *self._writers.items()):
                if process.poll() is not None and process.returncode:
                    raise AssertionError(f"process {name} has ended with {process.returncode}")
            time.sleep(0.25)

    def _count(self) -> int:
        with psycopg.connect(self._dsn) as connection:
            return connection.execute("select coalesce(sum(rows), 0)::bigint from afterwrite.batch").fetchone()[0]  # type: ignore[index]

    def _judge(self, told: list[Told], seconds: float) -> Outcome:
        ledger: dict[str, tuple[str, str, int]] = {}
        for path in self._folder.glob("ledger-*"):
            name = path.name.removeprefix("ledger-")
            for line in path.read_text().splitlines():
                id, entity, number = line.split()
                ledger[id] = name, entity, int(number)
        with psycopg.connect(self._dsn) as connection:
            rows = connection.execute("""
                select a.id::text, a.entity_type, a.entity_id, (a.metadata ->> 'n')::int
                  from afterwrite.activity a
                  join afterwrite.batch b on b.id = a.batch_id
                 order by b.position, a.occurred_at, a.id
            """).fetchall()
        differences: list[str] = []
        ids = [row[0] for row in rows]
        stored = set(ids)
        if len(stored) != len(ids):
            differences.append(f"{len(ids) - len(stored)} ids are stored twice")
        if missing := ledger.keys() - stored:
            by = Counter(ledger[id][0] for id in missing)
            differences.append(f"{len(missing)} of the ledger are not stored: {dict(by)}")
        unledgered = [row for row in rows if row[0] not in ledger]
        if strange := {row[1] for row in unledgered} - self._killed:
            differences.append(f"recorders that were not killed have stored what is not in their ledger: {strange}")
        last: dict[tuple[str, str], int] = {}
        disorder = 0
        for id, kind, entity, number in rows:
            if (kind, entity) != (ledger[id][0], ledger[id][1]) if id in ledger else False:
                differences.append(f"{id} is stored as of {kind} {entity}")
            disorder += number != last.get((kind, entity), -1) + 1
            last[kind, entity] = number
        if disorder:
            differences.append(f"of {disorder} the one before, of the same entity, is not before it")
        report = asyncio.run(_verify(self._dsn))
        if report.first_break is not None or report.rows != len(rows):
            differences.append(f"the seal of the feed is broken: {report}")
        dropped = 0
        for each in told:
            dropped += sum(each.stats["dropped"].values())  # type: ignore[attr-defined]
        if dropped:
            differences.append(f"recorders have dropped {dropped}")
        statuses = [
            status
            for path in self._folder.glob("writer-*.json")
            for status in msgspec.json.decode(path.read_bytes(), type=list[WriterStatus])
        ]
        if refused := sum(status.refused for status in statuses):
            differences.append(f"writers have set {refused} aside")
        return Outcome(
            seconds=seconds,
            struck=dict(self._struck),
            cut_connections=self._cut_connections,
            ledger=len(ledger),
            stored=len(rows),
            unledgered=len(unledgered),
            duplicates_dropped=sum(status.duplicates for status in statuses),
            batches=report.batches,
            entities=len(last),
            slowest_p99_us=max(each.p99_us for each in told),
            dropped=dropped,
            differences=differences,
        )


async def _install(url: str, partitions: int) -> None:
    access = read_access(url)
    layout = Layout(stream=access.stream, partitions=partitions, max_bytes=256 << 20)
    await check.carry_out(access, check.plan(await check.look(access), layout))


async def _leader(url: str) -> str:
    return str((await check.look(read_access(url))).cluster.get("leader", ""))


async def _waiting(access: object) -> int:
    return int((await check.look(access)).state["messages"])  # type: ignore[arg-type]


async def _verify(dsn: str) -> FeedReport:
    async with connect(dsn) as db:
        return await verify_feed(db)
