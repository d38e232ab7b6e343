"""Capture, proof and deferral under hundreds of faults drawn from a seed, and what came of it beside the truth.

::

    writers ──▶ source ◀── proxy ◀── two nodes (one active, one that stands by) ──▶ proxy ──▶ store
                              ▲            ▲                                           ▲
                              └────────────┴── one fault after the other ──────────────┘

A kill is a SIGKILL at a failpoint or at any moment; a cut is everything else: a failpoint that loses the line or fills
the disk, a proxy that breaks it, a process that stands still. At the end all faults are lifted, the rest is captured,
and every committed change must be in the store exactly once, proven exactly once, and its deferred body run exactly
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

import msgspec
from fault_load import APPLICATION, DDL, Load, Mode, compare
from fault_node import NodeScene
from psycopg import sql
from sink_proxy import Cut, CutAfter, CutBeforeCommit, CutInCopy, Fault, LoseReply, Proxy, Reject, Slow, Stall

from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.defer.deferral import prepare_deferral, read_active
from afterwrite.defer.progress import settle
from afterwrite.failpoints import FAILPOINTS
from afterwrite.postgres import Database, connect, with_short_locks
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.prove.report import read_proof
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.survey import survey
from afterwrite.store.reader import verify_feed
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

SLOT = "faults"
# The rooms of the capture path; maintenance, slot and governor are tried where they are tested.
ROOMS = ("worker", "stream", "sink", "prove", "defer", "spill")
REACHED_SECONDS = 60.0
_SETTLE_SECONDS = 60.0
_TAKEOVER_SECONDS = 5.0
_FULL = ("sink.before_copy", "sink.before_copy_end", "sink.before_commit", "prove.before_commit", "defer.before_run")
_FREEZES = ("sink.before_commit", "worker.before_acknowledge")
# Where the load alone does not lead: a session must begin or end, writers pause, a trigger be silenced or restored.
_SESSION = (
    "worker.before_claim",
    "worker.after_claim",
    "worker.before_stream",
    "worker.after_stream",
    "sink.before_read",
    "sink.after_read",
)
_QUIET = ("worker.before_heartbeat", "worker.after_heartbeat", "sink.before_move", "sink.after_move")
_FINISH = ("stream.before_finish", "stream.after_finish")
_MARKS = ("defer.before_marks_commit", "defer.after_marks_commit")
_PASSED = ("defer.before_progress", "defer.after_progress")
_ASIDE = ("spill.before_write", "spill.after_write")
_RARE = (*_MARKS, *_ASIDE)  # these cost a second or more, so it stays at each of them once a way
_PROVOKED = {*_SESSION, *_QUIET, *_FINISH, *_MARKS, *_PASSED}
# Which connections there are, by the name that each gives itself.
STREAM, CLAIM, SINK, PROVER, DEFER = (
    "afterwrite stream",
    "afterwrite worker",
    "afterwrite sink",
    "afterwrite prover",
    "afterwrite defer",
)


class Way(StrEnum):
    """How a step breaks something."""

    KILL = "kill"
    LOSE = "lose"
    FULL = "full"
    FREEZE = "freeze"
    ANY_MOMENT = "kill at any moment"
    PROXY = "proxy"
    OVERTAKE = "overtake"
    CRASH = "crash"

    @property
    def kills(self) -> bool:
        return self in (Way.KILL, Way.ANY_MOMENT)


class Step(msgspec.Struct, frozen=True):
    """One fault. ``place`` is a failpoint, or for the proxies the database whose line breaks."""

    way: Way
    place: str = ""
    at: int = 1
    fault: Fault | None = None
    wait: float = 0.0


class Outcome(msgspec.Struct, kw_only=True):
    """What a run came to. ``differences`` is empty when everything holds."""

    seed: int
    kills: int = 0
    cuts: int = 0
    crashes: int = 0
    ways: Counter[str] = msgspec.field(default_factory=Counter)
    struck: Counter[str] = msgspec.field(default_factory=Counter)
    takeovers: list[float] = msgspec.field(default_factory=list)
    slowest: list[tuple[float, str]] = msgspec.field(default_factory=list)
    committed: Counter[str] = msgspec.field(default_factory=Counter)
    counted: Counter[str] = msgspec.field(default_factory=Counter)
    seconds: float = 0.0
    postgres: int = 0
    differences: list[str] = msgspec.field(default_factory=list)

    @property
    def takeover(self) -> tuple[float, float]:
        """Median and longest time from the death of the active worker to when its stand-by streams."""
        return (statistics.median(self.takeovers), max(self.takeovers)) if self.takeovers else (0.0, 0.0)


def places() -> list[str]:
    """Every failpoint of the capture path."""
    return [name for name in FAILPOINTS if name.partition(".")[0] in ROOMS]


def draw(seed: int, kills: int, cuts: int, crashes: int) -> list[Step]:
    """The faults of this seed: every failpoint killed at and cut at once, the rest as the dice fall; shuffled."""
    chance = random.Random(seed)
    names = places()

    def anywhere(way: Way) -> Step:
        name = chance.choice([name for name in names if name not in _RARE])
        return Step(way, name, 1 if name in _PROVOKED else chance.choice((1, 1, 1, 2, 3)))

    killing = [Step(Way.KILL, name) for name in names]
    while len(killing) < kills:
        if chance.random() < 0.2:
            killing.append(Step(Way.ANY_MOMENT, wait=chance.uniform(0, 0.4)))
        else:
            killing.append(anywhere(Way.KILL))
    cutting = [Step(Way.LOSE, name) for name in names]
    cutting += [Step(Way.FULL, name) for name in _FULL]
    cutting += [Step(Way.FREEZE, name) for name in _FREEZES] + [Step(Way.OVERTAKE, "sink.before_commit")]
    cutting += [_proxied(chance, kind) for kind in range(len(_PROXIED))]
    while len(cutting) < cuts:
        dice = chance.random()
        if dice < 0.55:
            cutting.append(_proxied(chance, chance.randrange(len(_PROXIED))))
        elif dice < 0.95:
            cutting.append(anywhere(Way.LOSE))
        else:
            cutting.append(Step(Way.FULL, chance.choice(_FULL)))
    steps = killing[:kills] + cutting[:cuts] + [Step(Way.CRASH)] * crashes
    chance.shuffle(steps)
    return steps


_PROXIED: tuple[Callable[[random.Random], tuple[str, Fault]], ...] = (
    lambda c: ("store", LoseReply(role=SINK)),
    lambda c: ("store", CutBeforeCommit(role=SINK)),
    lambda c: ("store", CutInCopy(role=SINK, size=c.choice((10, 500, 5_000)))),
    lambda c: ("store", CutAfter(role=SINK, side="client", size=c.randint(1, 20_000))),
    lambda c: ("store", CutAfter(role=SINK, side="server", size=c.randint(1, 2_000))),
    lambda c: ("store", Cut(role=SINK)),
    lambda c: ("store", Stall(role=SINK, seconds=c.uniform(0.1, 0.6))),
    lambda c: ("store", Reject(seconds=c.uniform(0.05, 0.4))),
    lambda c: ("store", Slow(role=SINK, rate=200_000, seconds=0.5)),
    lambda c: ("source", Cut(role=STREAM)),
    lambda c: ("source", Cut(role=CLAIM)),
    lambda c: ("source", Cut(role=PROVER)),
    lambda c: ("source", Cut(role=DEFER)),
    lambda c: ("source", LoseReply(role=PROVER)),
    lambda c: ("source", LoseReply(role=DEFER, statement=r"afterwrite\.run_deferred")),
    lambda c: ("source", CutAfter(role=STREAM, side="server", size=c.randint(1, 50_000))),
    lambda c: ("source", CutAfter(role=STREAM, side="client", size=c.randint(1, 100))),
    lambda c: ("source", Stall(role=STREAM, seconds=c.uniform(0.1, 0.6))),
    lambda c: ("source", Stall(seconds=c.uniform(0.1, 0.4))),
    lambda c: ("source", Reject(seconds=c.uniform(0.05, 0.4))),
)


def _proxied(chance: random.Random, kind: int) -> Step:
    place, fault = _PROXIED[kind](chance)
    return Step(Way.PROXY, place, fault=fault)


async def run_faults(
    folder: Path,
    *,
    seed: int,
    kills: int,
    cuts: int,
    crashes: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Break what can be broken, then compare. Raises TimeoutError when something stands still that should go on."""
    began = time.monotonic()
    outcome = Outcome(seed=seed)
    steps = draw(seed, kills, cuts, crashes)
    with embedded_server(settings={"fsync": "off", "wal_sender_timeout": "2s"}) as server:
        outcome.postgres = server.version
        scene = await _lay(server, folder)
        async with (
            Proxy(server.socket_dir, folder / "source").running() as source,
            Proxy(server.socket_dir, folder / "store").running() as store,
            _nodes(scene, folder, seed) as nodes,
        ):
            load = Load(server.dsn("app"), seed)
            driver = _Driver(server, nodes, {"source": source, "store": store}, load, outcome)
            try:
                with load.running():
                    async with connect(server.dsn("app")) as app:
                        await switch(app, silence=True)
                    for number, step in enumerate(steps, 1):
                        await driver.take(step)
                        if number % 25 == 0:
                            say(f"{number:,} of {len(steps):,} faults, {time.monotonic() - began:,.0f} s")
                            await driver.look()
                await driver.settle()
            except TimeoutError as error:
                error.add_note(await _explain(server, nodes))
                raise
            outcome.takeovers = nodes.takeovers
            outcome.committed = load.committed
            outcome.differences += [f"a node ended: {said}" for said in nodes.failures]
        await _compare(server, outcome)
    outcome.struck = Counter(line.split()[1] for line in nodes.strikes())
    outcome.seconds = time.monotonic() - began
    return outcome


async def _explain(server: Server, nodes: _Nodes) -> str:
    """Who waits for what, when a run stands still."""
    for node in nodes.alive.values():
        with contextlib.suppress(ProcessLookupError):
            signal_node(node.pid, signal.SIGUSR1)
    await asyncio.sleep(0.5)
    async with connect(server.dsn()) as admin:
        sessions = await admin.values(
            b"select format('%s: %s %s/%s, blocked by %s, %s s: %s', application_name, state, wait_event_type,"
            b" wait_event, pg_blocking_pids(pid), extract(second from clock_timestamp() - state_change), query)"
            b" from pg_stat_activity where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()"
        )
    lines = ["the nodes: " + nodes.describe(), "the sessions:", *sessions, "the log of the nodes ends:", nodes.tail()]
    return "\n".join(lines)


async def _lay(server: Server, folder: Path) -> NodeScene:
    async with connect(server.dsn()) as admin:
        for name in ("app", "store"):
            await admin.run(sql.SQL("create database {}").format(sql.Identifier(name)))
    async with connect(server.dsn("app")) as app, connect(server.dsn("store")) as store:
        await install_store(app)
        await install_store(store)
        await app.script(DDL)
        found = await survey(app)
        tables = (("public", "items"), ("public", "notes"))
        setup = CaptureSetup(
            source="main", tables=tables, legacy_tables=(("public", "audit_log"),), full_identity=tables, slot=SLOT
        )
        async with open_sink(server.dsn("store")) as sink:
            await prepare(app, sink, setup)
    words = "port=5432 user=postgres dbname="
    return NodeScene(
        source=f"host={folder / 'source'} {words}app",
        store=f"host={folder / 'store'} {words}store",
        slot=SLOT,
        socket=folder / "orders",
        log=folder / "strikes",
        judgements=found.judgements,
        bodies=found.bodies,
    )


async def switch(app: Database, *, silence: bool) -> None:
    """What a migration does with the trigger whose body is deferred: silence it, or give it back."""
    if silence:
        # The next deferral of a trigger begins when the one before has ended.
        while await read_active(app, "main"):  # noqa: ASYNC110 - the event is in the database
            await asyncio.sleep(0.02)
    inventory = await read_inventory(app)
    trigger = next(each for each in inventory.triggers if each.name == "effect")
    action = "trigger.silence" if silence else "trigger.restore"

    async def deed(db: Database) -> None:
        if silence:
            await prepare_deferral(db, trigger, source="main")
        word = sql.SQL("disable" if silence else "enable")
        await db.run(sql.SQL("alter table public.items {} trigger effect").format(word))
        await db.run(b"insert into afterwrite.migration (id, plan) values (1, '') on conflict do nothing")
        await db.run(
            b"insert into afterwrite.ledger (migration, phase, subject, action, sql, xid)"
            b" values (1, 1, %(subject)s, %(action)s, '', pg_current_xact_id())",
            subject=trigger.identity,
            action=action,
        )
        mark = {
            "category": "migration",
            "action": action,
            "entity_type": "trigger",
            "entity_id": trigger.identity,
            "metadata": {"trigger_oid": trigger.oid, "mode": "defer"},
        }
        await db.value(
            b"select pg_logical_emit_message(true, 'afterwrite.event', %(mark)s)::text", mark=json.dumps(mark)
        )

    await with_short_locks(app, ["public.items"], deed)


class _Node(msgspec.Struct):
    """What a node last said of itself."""

    name: str
    pid: int
    orders: asyncio.StreamWriter
    state: str = ""
    ended: bool = False

    def arm(self, orders: str) -> None:
        self.orders.write(json.dumps({"arm": orders}).encode() + b"\n")


class _Nodes:
    """The processes: always two that live, and who of them streams."""

    def __init__(self, forker: asyncio.subprocess.Process, folder: Path, seed: int) -> None:
        self.alive: dict[str, _Node] = {}
        self.failures: list[str] = []
        self.takeovers: list[float] = []
        self.keep = 2
        self._forker = forker
        self._folder = folder
        self._made = 0
        self._coming = 0
        self._orders = ""
        self._bereft: float | None = None
        self._chance = random.Random(seed)
        self._changed = asyncio.Event()

    def fill(self) -> None:
        """Fork as many as are missing."""
        # One that ended by itself is a defect: the run stops there, it does not paper over it.
        while not self.failures and self._forker.stdin and len(self.alive) + self._coming < self.keep:
            self._made += 1
            self._coming += 1
            self._forker.stdin.write(f"node{self._made}\n".encode())

    async def accept(self, reader: asyncio.StreamReader, orders: asyncio.StreamWriter) -> None:
        hello = json.loads(await reader.readline() or b"{}")
        self._coming -= 1
        if hello:
            node = self.alive[hello["node"]] = _Node(hello["node"], hello["pid"], orders)
            node.arm(self._orders)
            while line := await _line(reader):
                self._hear(node, json.loads(line))
            del self.alive[node.name]
            bereft = node.state == "streaming" and not node.ended and self._bereft is None and bool(self.alive)
            # A new one would be quicker than the stand-by, which looks twice a second: only half of the time.
            if bereft and self._chance.random() < 0.5:
                self._bereft = time.monotonic()
        orders.close()
        self._changed.set()
        if self._bereft is None:
            self.fill()
        else:
            asyncio.get_running_loop().call_later(_TAKEOVER_SECONDS, self.fill)

    def _hear(self, node: _Node, said: dict[str, object]) -> None:
        if said.get("failed"):
            self.failures.append(f"{node.name}: {said['failed']}")
        if "ended" in said:
            node.ended = True
        if state := said.get("state"):
            if state == "streaming" and self._bereft is not None:
                self.takeovers.append(time.monotonic() - self._bereft)
                self._bereft = None
                self.fill()
            node.state = str(state)
        self._changed.set()

    @property
    def active(self) -> _Node | None:
        """The one that streams, as far as it has said."""
        return next((node for node in self.alive.values() if node.state == "streaming"), None)

    async def streaming(self) -> _Node:
        """Wait until one does."""
        while (node := self.active) is None:
            self._changed.clear()
            await self._changed.wait()
        return node

    async def burial(self, pids: Sequence[int]) -> None:
        """Wait until we know that these are dead."""
        while any(node.pid in pids for node in self.alive.values()):
            self._changed.clear()
            await self._changed.wait()

    def arm(self, orders: str) -> None:
        """Arm every node, those to come included."""
        self._orders = orders
        for node in self.alive.values():
            node.arm(orders)

    @asynccontextmanager
    async def unfailing(self) -> AsyncIterator[None]:
        """Break off what is done inside when a node ends by itself."""
        doing = asyncio.current_task()
        assert doing is not None

        async def watch() -> None:
            while not self.failures:
                self._changed.clear()
                await self._changed.wait()
            doing.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if self.failures:
                doing.uncancel()
                raise AssertionError(f"a node ended by itself: {self.failures[0]}") from None
            raise
        finally:
            watching.cancel()

    def strikes(self) -> list[str]:
        path = self._folder / "strikes"
        return path.read_text().splitlines() if path.exists() else []

    def describe(self) -> str:
        return ", ".join(f"{node.name} {node.state}" for node in self.alive.values()) or "none"

    def tail(self) -> str:
        return "\n".join((self._folder / "nodes.log").read_text(errors="replace").splitlines()[-120:])


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ConnectionError:
        return b""


@asynccontextmanager
async def _nodes(scene: NodeScene, folder: Path, seed: int) -> AsyncIterator[_Nodes]:
    (folder / "scene").write_bytes(pickle.dumps(scene))
    with (folder / "nodes.log").open("ab") as log:
        forker = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("fault_node.py")),
            str(folder / "scene"),
            stdin=asyncio.subprocess.PIPE,
            stderr=log,
        )
    nodes = _Nodes(forker, folder, seed)
    server = await asyncio.start_unix_server(nodes.accept, scene.socket)
    try:
        nodes.fill()
        async with asyncio.timeout(REACHED_SECONDS), nodes.unfailing():
            await nodes.streaming()
        yield nodes
    finally:
        nodes.keep = 0
        for node in list(nodes.alive.values()):
            with contextlib.suppress(ProcessLookupError):
                signal_node(node.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while nodes.alive:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        for node in nodes.alive.values():
            nodes.failures.append(f"{node.name} did not end within 10 s of SIGTERM")
            with contextlib.suppress(ProcessLookupError):
                signal_node(node.pid, signal.SIGKILL)
        server.close()
        if forker.stdin:
            forker.stdin.close()
        await forker.wait()


def signal_node(pid: int, number: signal.Signals) -> None:
    """Send a signal to one of our nodes."""
    os.kill(pid, number)


class _Driver:
    """Takes the steps of a run, each when it can strike."""

    def __init__(self, server: Server, nodes: _Nodes, proxies: dict[str, Proxy], load: Load, outcome: Outcome) -> None:
        self._server = server
        self._nodes = nodes
        self._proxies = proxies
        self._load = load
        self._outcome = outcome
        self._chance = random.Random(outcome.seed + 1)
        self._silenced = True

    async def take(self, step: Step) -> None:
        """Strike; wait until it has."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(REACHED_SECONDS), self._nodes.unfailing():
                match step.way:
                    case Way.KILL | Way.LOSE | Way.FULL | Way.FREEZE:
                        await self._at_failpoint(step)
                    case Way.OVERTAKE:
                        await self._overtake(step)
                    case Way.ANY_MOMENT:
                        node = await self._nodes.streaming()
                        await asyncio.sleep(step.wait)
                        signal_node(node.pid, signal.SIGKILL)
                        await self._nodes.burial([node.pid])
                    case Way.PROXY:
                        await self._at_proxy(step)
                    case Way.CRASH:
                        await self._nodes.streaming()
                        await asyncio.to_thread(self._server.restart, "immediate")
        except TimeoutError as error:
            error.add_note(f"{step} was not reached within {REACHED_SECONDS:.0f} s")
            raise
        outcome = self._outcome
        outcome.slowest = sorted([*outcome.slowest, (time.monotonic() - began, f"{step.way} {step.place}")])[-5:]
        if step.way is Way.CRASH:
            outcome.crashes += 1
        elif step.way.kills:
            outcome.kills += 1
        else:
            outcome.cuts += 1
        outcome.ways[step.way if step.fault is None else type(step.fault).__name__] += 1
        if self._chance.random() < 0.3:
            await asyncio.sleep(self._chance.uniform(0, 0.1))

    async def _at_failpoint(self, step: Step) -> None:
        await self._nodes.streaming()
        before = len(self._nodes.strikes())
        # Both are armed: a stand-by connects and asks for the claim, too.
        self._nodes.arm(f"{step.place}={step.way}@{step.at}")
        await self._provoke(step.place, before)
        while len(self._nodes.strikes()) == before:  # noqa: ASYNC110 - a file, written by a process that dies
            await asyncio.sleep(0.003)
        self._load.mode = Mode.ALL
        self._nodes.arm("")
        if step.way is Way.KILL:
            await self._nodes.burial([int(line.split()[0]) for line in self._nodes.strikes()[before:]])

    async def _provoke(self, place: str, before: int) -> None:
        """Make happen what leads there, where the load alone does not."""
        if place in _SESSION:
            while len(self._nodes.strikes()) == before:
                self._proxies["source"].break_with(Cut(role=CLAIM if "claim" in place else STREAM))
                await asyncio.sleep(0.4)
        elif place in _QUIET:
            self._load.mode = Mode.NOTHING
        elif place in _FINISH:
            while len(self._nodes.strikes()) == before:
                node = await self._nodes.streaming()
                with contextlib.suppress(ProcessLookupError):
                    signal_node(node.pid, signal.SIGTERM)
                await asyncio.sleep(0.3)
        elif place in _MARKS or (place.startswith("defer.") and not self._silenced):
            await self._switch()
        if place in _PASSED:
            self._load.mode = Mode.NOTES
        if place in _ASIDE:
            self._load.mode = Mode.BIG

    async def _switch(self) -> None:
        async with connect(self._server.dsn("app"), application_name=APPLICATION) as app:
            await switch(app, silence=not self._silenced)
        self._silenced = not self._silenced

    async def _overtake(self, step: Step) -> None:
        """The active one stands still with its batch uncommitted, loses claim and stream, and wakes up overtaken."""
        node = await self._nodes.streaming()
        before = len(self._nodes.strikes())
        node.arm(f"{step.place}=freeze@1")
        while len(self._nodes.strikes()) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.003)
        for role in (CLAIM, STREAM):
            self._proxies["source"].break_with(Cut(role=role))
        self._nodes.arm("")
        await asyncio.sleep(2)

    async def _at_proxy(self, step: Step) -> None:
        assert step.fault is not None
        proxy = self._proxies[step.place]
        before = len(proxy.strikes)
        await self._nodes.streaming()
        proxy.break_with(step.fault)
        if step.fault.role == DEFER and not self._silenced:
            await self._switch()
        while len(proxy.strikes) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.003)
        if isinstance(step.fault, Stall | Reject | Slow):
            await asyncio.sleep(step.fault.seconds)

    async def look(self) -> None:
        """What must hold at every moment: the slot is nowhere beyond the store."""
        async with connect(self._server.dsn("app")) as app, connect(self._server.dsn("store")) as store:
            # The slot first: what it has confirmed must be stored by then.
            confirmed = await app.value(
                b"select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots where slot_name = %(slot)s",
                slot=SLOT,
            )
            stored = await store.value(b"select lsn - '0/0'::pg_lsn from afterwrite.checkpoint")
        if confirmed > stored:
            self._outcome.differences.append(f"the slot was confirmed to {confirmed}, the store had {stored}")

    async def settle(self) -> None:
        """Lift every fault and let the rest be captured and run."""
        self._nodes.arm("")
        for proxy in self._proxies.values():
            proxy.heal()
        async with connect(self._server.dsn("app")) as app, connect(self._server.dsn("store")) as store:
            await settle(app, store, source="main", timeout=_SETTLE_SECONDS)
        await self.look()


class _Fired(msgspec.Struct, frozen=True):
    table_name: str
    operation: str
    count: int


async def _compare(server: Server, outcome: Outcome) -> None:
    differences, outcome.counted = await asyncio.to_thread(compare, server.dsn("app"), server.dsn("store"), SLOT)
    outcome.differences += differences
    async with connect(server.dsn("app")) as app, connect(server.dsn("store")) as store:
        feed = await verify_feed(store)
        proof = await read_proof(app)
        counts = await app.rows(
            _Fired, b"select table_name, lower(operation) as operation, count(*) from public.audit_log group by 1, 2"
        )
        logged = {(each.table_name, each.operation): each.count for each in counts}
    if feed.first_break:
        outcome.differences.append(f"the feed is broken: {feed.first_break}")
    if proof.unexplained:
        outcome.differences.append(f"{proof.unexplained} unexplained in the proof: {proof.examples[:3]}")
    seen = {
        (each.trigger.split(".")[1], operation.operation.value): operation.seen
        for each in proof.triggers
        if each.trigger.endswith(".audit")
        for operation in each.operations
        if operation.seen
    }
    outcome.counted["proven"] = sum(seen.values())
    if seen != logged:
        outcome.differences.append(f"the proof counted {seen} firings of the audit triggers, there were {logged}")


def unstruck(outcome: Outcome, names: Iterable[str]) -> list[str]:
    """The failpoints where nothing was broken."""
    return [name for name in names if not outcome.struck[name]]
