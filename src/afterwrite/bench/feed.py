"""How live the feed is: the legacy application, captured, under steady writes, and who listens over HTTP.

A change is late by the time from its own commit until a client of the feed (server-sent events) has the last activity
of its batch. Clients, load, capture, PostgreSQL and the server share the machine; the database flushes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from afterwrite.bench.claims import Claim, Promise, held_to, in_turn, note, percentile
from afterwrite.bench.grounds import Grounds, told_round
from afterwrite.bench.load import SINGLE, SINGLE_ROWS, Load
from afterwrite.bench.serve import bench_folder, serving
from afterwrite.bench.stage import Moved, Stage, Variant
from afterwrite.capture.slot import read_wal_position
from afterwrite.demo.processes import Process
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import statement

_ARRIVE_SECONDS = 30.0
_P50_MS, _P99_MS = 50.0, 250.0
_PROMISED_RATE = 1_000


class Steady(msgspec.Struct, frozen=True):
    """So many changes a second, and so many clients that listen."""

    rate: int
    clients: int

    def __str__(self) -> str:
        return f"{self.rate:,} changes/s, {self.clients} client{'' if self.clients == 1 else 's'}"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """For how long, and under what."""

    rounds: int = 5
    seconds: float = 1.5
    loads: tuple[Steady, ...] = (Steady(1_000, 1), Steady(1_000, 50))


async def measure_feed(grounds: Grounds, options: Options) -> list[Claim]:
    """How late changes are, by turns."""
    stage = await grounds.stage(Variant.AFTERWRITE, Moved.LOGS)
    late: dict[Steady, list[_Late]] = {load: [] for load in options.loads}
    folder = bench_folder(stage.server.home)
    words = ["afterwrite", "serve", "--port", "0", "--dsn", str(stage.settings.dsn)]
    async with stage.capturing() as worker, serving("server", words, folder) as port:
        await stage.caught_up(await read_wal_position(stage.db), worker)
        for number in range(-1, options.rounds):
            for load in in_turn(options.loads, number):
                grounds.tell(f"feed, {told_round(number, options.rounds)}: {load}")
                # pgbench takes no seed below zero.
                found = await _listen(stage, worker, port, load, options.seconds, grounds.seed + 1 + number)
                if number >= 0:
                    late[load].append(found)
    return [claim for load, found in late.items() for claim in _claims(load, found)]


class _Late(msgspec.Struct, frozen=True):
    """How late changes were, in ms, and how many a second the load really made."""

    p50: float
    p99: float
    rate: float


def _claims(load: Steady, late: list[_Late]) -> list[Claim]:
    p50, p99 = [found.p50 for found in late], [found.p99 for found in late]
    at = f"feed at {load}"
    came = note(f"{at}: what came about", "changes/s", [found.rate for found in late])
    if load.rate != _PROMISED_RATE:
        return [note(f"{at}, p50", "ms", p50), note(f"{at}, p99", "ms", p99), came]
    return [
        held_to(f"{at}, p50", "ms", _P50_MS, p50, at_most=True, promise=Promise.FEED_P50),
        held_to(f"{at}, p99", "ms", _P99_MS, p99, at_most=True, promise=Promise.FEED_P99),
        came,
    ]


class _Commits(msgspec.Struct, frozen=True):
    position: int
    moments: list[float]


async def _listen(stage: Stage, worker: Process, port: int, steady: Steady, seconds: float, seed: int) -> _Late:
    """One stretch of load, over all changes and all clients."""
    before: int = await stage.db.value(statement("bench.read_feed_position"))
    load = Load(
        scripts=SINGLE,
        transactions=int(steady.rate * seconds / SINGLE_ROWS),
        clients=8,
        rate=steady.rate / SINGLE_ROWS,
        seed=seed,
    )
    async with _listening(port, steady.clients) as listeners:
        tps = (await stage.work(load)).tps
        await stage.caught_up(await read_wal_position(stage.db), worker)
        batches = await stage.db.rows(_Commits, statement("bench.read_commits"), after_position=before)
        deadline = time.monotonic() + _ARRIVE_SECONDS
        while not all(batch.position in each.moments for each in listeners for batch in batches):
            if time.monotonic() > deadline:
                raise AfterwriteError("a client of the feed did not get all", remedy="this is a defect: report it")
            await asyncio.sleep(0.05)
    late = [
        (each.moments[batch.position] - moment) * 1000
        for each in listeners
        for batch in batches
        for moment in batch.moments
    ]
    return _Late(percentile(late, 0.5), percentile(late, 0.99), tps * SINGLE_ROWS)


_PLACE = re.compile(rb"\nid: (\d+)-")


class Listener(asyncio.Protocol):
    """A client of the feed: when it had the last of each batch's activities, by the batch's position."""

    def __init__(self, port: int) -> None:
        self.moments: dict[int, float] = {}
        self.live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self._port = port
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for everything, from now on."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(f"GET /v1/feed HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Only whole events count, as they do for an EventSource."""
        now = time.time()
        text = self._rest + data
        end = text.rfind(b"\n\n") + 1
        if not end:
            self._rest = text
            return
        if not self.live.done() and text.find(b": live\n", 0, end) >= 0:
            self.live.set_result(None)
        for place in set(_PLACE.findall(text, 0, end)):
            self.moments[int(place)] = now
        self._rest = text[end:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has ended it, or we have."""
        if not self.live.done():
            self.live.set_exception(AfterwriteError("the feed's stream ended before it began"))


@asynccontextmanager
async def _listening(port: int, clients: int) -> AsyncGenerator[list[Listener]]:
    """So many clients that hear what is stored from now on."""
    loop = asyncio.get_running_loop()
    listeners: list[Listener] = []
    try:
        for _ in range(clients):
            _, listener = await loop.create_connection(lambda: Listener(port), "127.0.0.1", port)
            listeners.append(listener)
        await asyncio.wait_for(asyncio.gather(*(each.live for each in listeners)), _ARRIVE_SECONDS)
        yield listeners
    finally:
        for each in listeners:
            if each.transport is not None:
                each.transport.abort()
