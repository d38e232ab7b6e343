"""Many clients on the live feed: ``./run python -m tests.feed_load --clients 2000 --rate 1000 --seconds 30``.

A PostgreSQL, ``afterwrite serve`` as it is, a writer of batches as capture writes them (forty milliseconds apart), and
the clients, raw asyncio without an HTTP library: four processes. Each client notes when it was given what; how late
that was is reckoned afterwards from when the batch was written (``batch.written_at``, taken just before its commit).

``--watch`` says what they watch. ``mixed``: one in twenty everything, half of them an entity of their own, a quarter an
actor, the rest an action. ``everything``: all of them everything; ``entities``: each an entity of its own.
``--drops N`` ends the connection of so many clients in all, here and there; they come back with their last id, and
whether they then heard everything once and in order is counted too. ``--big N`` writes one transaction of N rows in
the midst of it. ``--captured`` has a table written, one change a transaction, with ``afterwrite capture`` in between.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import resource
import sys
import time
from array import array
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import msgspec
import psycopg

from afterwrite.bench.claims import percentile
from afterwrite.bench.ports import claim_port
from afterwrite.postgres import connect
from afterwrite.postgres.cpu import cluster_cpu_seconds, cpu_seconds
from afterwrite.postgres.embedded import embedded_server
from afterwrite.record import Activity, Batch, Kind, Lsn, Operation
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

WIDTH = 80
GAP_SECONDS = 0.04
LISTEN_ON_SECONDS = 2.0
ENTITIES = 1_000
ACTORS = 200
ACTIONS = ("users.update", "orders.insert", "orders.update", "projects.update", "invoices.insert")
ROW = msgspec.Raw(
    b'{"id": 4711, "name": "Ada", "email": "ada@example.org", "status": "active", "plan": "pro", "n": 17}'
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.feed_load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--rate", type=int, default=1_000, help="activities written a second (1000)")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--watch", choices=("mixed", "everything", "entities"), default="mixed")
    parser.add_argument("--big", type=int, default=0, help="rows of a transaction in the midst of it (0)")
    parser.add_argument("--captured", action="store_true", help="write a table that `afterwrite capture` captures")
    parser.add_argument("--drops", type=int, default=0, help="connections that are ended, in all (0)")
    parser.add_argument("--listen", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.captured and given.watch != "everything":
        parser.error("--captured goes with --watch everything")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if given.listen is not None:
        asyncio.run(listen(given.listen, given))
        return 0
    # A folder for the store that a crash of ours would sweep; the server flushes, as a store does.
    with embedded_server() as postgres:
        return asyncio.run(run(postgres.dsn(), postgres.pid, given))


def watched(number: int, watch: str) -> str:
    """The query of a client, by its number."""
    if watch == "everything" or (watch == "mixed" and number % 20 == 0):
        return ""
    if watch == "entities" or number % 4 < 2:
        return f"entity:users/{number % ENTITIES}"
    if number % 4 == 2:
        return f"actor:user:{number % ACTORS}"
    return f"action:{ACTIONS[number % len(ACTIONS)]} entity:users/{number % 10}*"


def an_activity(number: int, at: datetime) -> Activity:
    return Activity(
        id=str(UUID(int=(8 << 76) | (2 << 62) | number)),
        occurred_at=at,
        source="main",
        kind=Kind.CHANGE,
        category="data",
        action=ACTIONS[number % len(ACTIONS)],
        entity_type="users",
        entity_id=str(number * 7 % ENTITIES),
        actor_id=f"user:{number * 3 % ACTORS}",
        actor_type="user",
        summary=f"updated users {number}: name",
        relation="public.users",
        operation=Operation.UPDATE,
        changed=("name", "status"),
        before=ROW,
        after=ROW,
        xid=number,
        commit_lsn=Lsn(8 * number),
        ordinal=0,
    )


async def run(dsn: str, postmaster: int | None, given: argparse.Namespace) -> int:
    async with connect(dsn) as db:
        await install_store(db)
    if given.captured:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table public.item (id int primary key, n int not null, name text)")
            connection.execute("insert into public.item select g, 0, repeat('x', 40) from generate_series(1, 1000) g")
        await done("install", "--dsn", dsn, "--apply", "--table", "public.item")
    async with AsyncExitStack() as stack:
        port = stack.enter_context(claim_port()).getsockname()[1]
        server = await stack.enter_async_context(running("serve", "--dsn", dsn, "--port", str(port)))
        worker = await stack.enter_async_context(running("capture", "--dsn", dsn)) if given.captured else None
        await answering(port)
        idle = megabytes(server.pid, "VmRSS")
        words = ["--clients", str(given.clients), "--watch", given.watch, "--drops", str(given.drops)]
        words += ["--captured"] if given.captured else []
        listeners = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "tests.feed_load", "--listen", str(port), "--seconds", str(given.seconds), *words],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 30,
        )
        assert listeners.stdin is not None
        assert listeners.stdout is not None
        say(f"connecting {given.clients} clients")
        began = time.monotonic()
        await listeners.stdout.readline()
        connected = time.monotonic() - began

        def spent() -> dict[str, float]:
            pids = {"the server": server.pid, "the clients": listeners.pid, "the writer": os.getpid()}
            if worker is not None:
                pids["capture"] = worker.pid
            return {name: cpu_seconds(pid) or 0 for name, pid in pids.items()} | {
                "PostgreSQL": cluster_cpu_seconds(postmaster) or 0
            }

        say(f"writing {given.rate} a second for {given.seconds:g} s")
        before = spent()
        began = time.monotonic()
        written = await (update if given.captured else write)(dsn, given)
        took = time.monotonic() - began
        cpu = {name: (after - before[name]) / took for name, after in spent().items()}
        listeners.stdin.close()
        heard = json.loads(await listeners.stdout.readline())
        await listeners.wait()
        ended = time.monotonic() - began - took
        full = megabytes(server.pid, "VmHWM")
    with psycopg.connect(dsn) as connection:
        stored_at = dict(
            connection.execute(
                "select position, extract(epoch from written_at)::float8 from afterwrite.batch"
            ).fetchall()
        )
        occurred: dict[int, list[float]] = {}
        if given.captured:
            query = """select b.position, extract(epoch from a.occurred_at)::float8
                         from afterwrite.batch b join afterwrite.activity a on a.batch_id = b.id"""
            for position, moment in connection.execute(query):
                occurred.setdefault(position, []).append(moment)
        version = str((connection.execute("show server_version").fetchone() or ("?",))[0]).split()[0]
    heard_at = list(zip(heard["positions"], heard["moments"], strict=True))
    rows = [
        ("machine", f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, PG {version}"),
        ("date", f"{datetime.now(UTC):%Y-%m-%d}"),
        ("clients, what they watch", f"{given.clients}, {given.watch} ({heard['queries']} queries)"),
        ("connected within", f"{connected:.1f} s"),
        ("activities written", f"{written:,} at {written / took:,.0f}/s"),
        ("delivered to all clients", f"{heard['delivered']:,}, {heard['delivered'] / took:,.0f}/s"),
        ("sent to all clients", f"{heard['bytes'] / took / 1e6:.0f} MB/s"),
    ]
    late = [received - stored_at[position] for position, received in heard_at]
    if given.captured:
        whole = [received - moment for position, received in heard_at for moment in occurred[position]]
        capturing = [stored_at[position] - moment for position, moments in occurred.items() for moment in moments]
        rows += [
            ("commit to client", told(whole)),
            ("of it, commit to stored", told(capturing)),
            ("of it, stored to client", told(late)),
        ]
        late = whole
    else:
        rows.append(("stored to client", told(late)))
    rows += [(f"CPU of {name}", f"{share:.0%} of a core") for name, share in cpu.items()]
    wanted = expected(given, written)
    lost = wanted - heard["delivered"]
    rows += [
        ("memory of the server, before and at most", f"{idle:.0f} and {full:.0f} MiB"),
        ("the last was heard after the last was written by", f"{max(0.0, ended - LISTEN_ON_SECONDS):.0f} s"),
        ("connections ended by the server (slow)", f"{heard['cut']}"),
        ("connections ended by the client", f"{heard['left']}"),
        ("told to resync", f"{heard['resyncs']}"),
        ("lost, twice, out of order", f"{lost}, {heard['twice']}, {heard['disorder']}"),
    ]
    print("=" * WIDTH)
    for name, value in rows:
        print(f"{name}{value:>{WIDTH - len(name)}}")
    print("=" * WIDTH)
    return 1 if lost or heard["twice"] or heard["disorder"] or heard["resyncs"] or percentile(late, 0.99) > 1 else 0


def told(seconds: list[float]) -> str:
    """The percentiles, in milliseconds."""
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}
    return ", ".join(f"{name} {percentile(ordered, share) * 1e3:.0f}" for name, share in shares.items()) + " ms"


async def done(*words: str) -> None:
    child = await asyncio.create_subprocess_exec(*[sys.executable, "-m", "afterwrite", *words], stdout=DEVNULL)
    if await child.wait():
        raise SystemExit(f"afterwrite {words[0]} failed")


@asynccontextmanager
async def running(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command of afterwrite, for as long as it is needed."""
    child = await asyncio.create_subprocess_exec(*[sys.executable, "-m", "afterwrite", *words], stdout=DEVNULL)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 10)
        except TimeoutError:
            child.kill()


def expected(given: argparse.Namespace, written: int) -> int:
    """How many deliveries there should have been, reckoned anew from what was written and what is watched."""
    watchers = Counter(watched(number, given.watch) for number in range(given.clients))
    total = watchers[""] * written
    if watchers.keys() == {""}:
        return total
    for number in range(1, written + 1):
        entity, actor = str(number * 7 % ENTITIES), number * 3 % ACTORS
        action = ACTIONS[number % len(ACTIONS)]
        total += watchers[f"entity:users/{entity}"] + watchers[f"actor:user:{actor}"]
        total += watchers[f"action:{action} entity:users/{entity[0]}*"]
    return total


async def update(dsn: str, given: argparse.Namespace) -> int:
    """Transactions of one change each, over a few connections; gives how many."""
    connections = 4
    began = time.monotonic()

    async def work(turn: int) -> int:
        number = 0
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            while (passed := time.monotonic() - began) < given.seconds:
                if number >= passed * given.rate / connections:
                    await asyncio.sleep(0.001)
                    continue
                number += 1
                await connection.execute(
                    "update public.item set n = n + 1 where id = %s", [connections * number % 996 + 1 + turn]
                )
        return number

    return sum(await asyncio.gather(*map(work, range(connections))))


async def write(dsn: str, given: argparse.Namespace) -> int:
    """Batches forty milliseconds apart, and the big one in the midst of them; gives how many activities."""
    number, big = 0, given.big
    async with open_sink(dsn) as sink:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < given.seconds:
            due = int(passed * given.rate) + 1
            if big and passed > given.seconds / 3:
                due, big = number + big, 0
            if due > number:
                now = datetime.now(UTC)
                await sink.write(
                    Batch(
                        source="main",
                        activities=[an_activity(n, now) for n in range(number + 1, due + 1)],
                        transactions=1,
                    )
                )
                number = due
            await asyncio.sleep(GAP_SECONDS - (time.monotonic() - began) % GAP_SECONDS)
    return number


async def answering(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)


class Heard:
    """What all clients heard."""

    def __init__(self) -> None:
        self.positions = array("q")
        self.moments = array("d")
        self.delivered = self.bytes = self.cut = self.left = self.resyncs = self.twice = self.disorder = 0
        self.live = 0


# Changes alone: that somebody looks at the feed is recorded, too, and comes to those who watch everything.
_PLACE = re.compile(rb"^id: (\d+)-([0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f-]{21})\nevent: activity", re.MULTILINE)


class Client(asyncio.Protocol):
    """One connection after the other: reads, notes, and comes back with the last id."""

    def __init__(self, number: int, port: int, given: argparse.Namespace, heard: Heard) -> None:
        self.port = port
        self.captured = given.captured
        self.heard = heard
        self.path = f"/v1/feed?q={quote(watched(number, given.watch))}"
        self.last_id: str | None = None
        self.last: tuple[int, bytes] = (0, b"")
        self.rest = b""
        self.transport: asyncio.Transport | None = None
        self.leaving = self.done = False
        self.was_live = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.rest = b""
        last = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id else ""
        transport.write(f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.time()
        heard = self.heard
        heard.bytes += len(data)
        # Only whole events count, as for EventSource. The marks of chunks lie between events or inside their data.
        text = self.rest + data
        end = text.rfind(b"\n\n")
        if end < 0:
            self.rest = text
            return
        self.rest = text[end:]
        text = text[: end + 2]
        if not self.was_live and b": live\n" in text:
            self.was_live = True
            heard.live += 1
        if b"event: resync" in text:
            heard.resyncs += 1
        for found in _PLACE.finditer(text):
            here = int(found[1]), found[2]
            # The writer's ids are in the feed's order. Commits are so by their LSN, and their ids by their time.
            if here[: 1 if self.captured else 2] < self.last[: 1 if self.captured else 2] or here == self.last:
                heard.twice += here == self.last
                heard.disorder += here != self.last
            elif here[0] != self.last[0]:
                heard.positions.append(here[0])
                heard.moments.append(now)
            self.last = here
            heard.delivered += 1
        at = text.rfind(b"\nid: ")
        if at >= 0:
            self.last_id = text[at + 5 : text.index(b"\n", at + 5)].strip().decode()

    def connection_lost(self, _: Exception | None) -> None:
        if self.done:
            return
        self.heard.left += self.leaving
        self.heard.cut += not self.leaving
        self.leaving = False
        asyncio.get_running_loop().call_later(random.uniform(0.2, 1), lambda: asyncio.ensure_future(self.connect()))

    async def connect(self) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.port)

    def leave(self) -> None:
        self.leaving = True
        if self.transport is not None:
            self.transport.abort()


async def listen(port: int, given: argparse.Namespace) -> None:
    """The clients' process: says when all are live, and what they heard when stdin is closed."""
    heard = Heard()
    clients = [Client(number, port, given, heard) for number in range(given.clients)]
    for start in range(0, len(clients), 100):
        await asyncio.gather(*(client.connect() for client in clients[start : start + 100]))
    async with asyncio.timeout(60):
        while heard.live < len(clients):  # noqa: ASYNC110 - a thousand of them
            await asyncio.sleep(0.05)
    print("live", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    closing = asyncio.create_task(reader.read())
    drops, before = given.drops, -1
    # What is late is no loss: on for as long as anything comes.
    while not closing.done() or heard.delivered > before:
        if closing.done():
            before = heard.delivered
            await asyncio.sleep(LISTEN_ON_SECONDS)
        await asyncio.wait({closing}, timeout=0.25)
        for client in random.sample(clients, min(drops, 1 + int(given.drops / given.seconds / 3))):
            client.leave()
            drops -= 1
    for client in clients:
        client.done = True
    words = {
        "positions": heard.positions.tolist(),
        "moments": heard.moments.tolist(),
        "queries": len({client.path for client in clients}),
    }
    words |= {
        name: getattr(heard, name) for name in ("delivered", "bytes", "cut", "left", "resyncs", "twice", "disorder")
    }
    print(json.dumps(words), flush=True)


def megabytes(pid: int, what: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(rf"{what}:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
