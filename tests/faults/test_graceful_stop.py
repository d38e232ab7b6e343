"""SIGTERM ends ``afterwrite capture`` within five seconds, whatever it is at, and the next one goes on from there."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fault_load import DDL, Load, compare
from sink_proxy import Fault, Proxy, Reject, Stall

from afterwrite import runtime
from afterwrite.defer.progress import settle
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.settings import Settings

pytestmark = pytest.mark.acceptance

_PROMISED_SECONDS = 5.0
_LONG = 120.0


class Capture:
    """``afterwrite capture`` in a process of its own, and the state it last told."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.last: dict[str, object] = {}
        self._told = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.last = json.loads(line)
            self._told.set()

    async def until(self, state: str) -> None:
        async with asyncio.timeout(30):
            while self.last.get("state") != state:
                self._told.clear()
                await self._told.wait()

    async def stop(self) -> float:
        """How long it took to end, with 0, after SIGTERM."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            code = await self.process.wait()
            took = time.monotonic() - began
            await self._reading
        assert code == 0, f"{self.last}\n{self.log.read_text()[-3_000:]}"
        return took


@asynccontextmanager
async def capture(source: str, store: str, log: Path) -> AsyncIterator[Capture]:
    words = ["-m", "afterwrite", "capture", "--json", "--end-with-stdin", "--dsn", source, "--store-dsn", store]
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
    try:
        yield Capture(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# What breaks when it is told to stop: on which database's line, and how.
BROKEN: dict[str, list[tuple[str, Fault]]] = {
    "streaming under load": [],
    "the sink hangs": [("store", Stall(role="afterwrite sink", seconds=_LONG))],
    "the store hangs": [("store", Stall(seconds=_LONG))],
    "the store rejects": [("store", Reject(seconds=_LONG))],
    "the source rejects": [("source", Reject(seconds=_LONG))],
    "everything hangs": [("store", Stall(seconds=_LONG)), ("source", Stall(seconds=_LONG))],
}


def test_sigterm_ends_it_within_five_seconds_in_every_state_and_nothing_is_lost(tmp_path: Path) -> None:
    took = asyncio.run(_stop_in_every_state(tmp_path))
    assert {state: f"{seconds:.1f} s" for state, seconds in took.items() if seconds > _PROMISED_SECONDS} == {}


async def _stop_in_every_state(folder: Path) -> dict[str, float]:
    took: dict[str, float] = {}
    with embedded_server(settings={"fsync": "off"}) as server:
        async with connect(server.dsn()) as admin:
            await admin.run(b"create database app")
            await admin.run(b"create database store")
        given = Settings(dsn=server.dsn("app"), store_dsn=server.dsn("store"))
        async with connect(given.dsn) as app, connect(given.store) as store:
            await app.script(DDL)
            await runtime.install(given, await runtime.look_at_installation(given, app, store), app, store)
        log = folder / "capture.log"
        async with (
            Proxy(server.socket_dir, folder / "source").running() as source,
            Proxy(server.socket_dir, folder / "store").running() as sink,
        ):
            proxies = {"source": source, "store": sink}
            dsns = source.dsn("app"), sink.dsn("store")
            load = Load(server.dsn("app"), seed=1)
            with load.running():
                for state, faults in BROKEN.items():
                    async with capture(*dsns, log) as active:
                        await active.until("streaming")
                        await asyncio.sleep(0.3)
                        for place, fault in faults:
                            proxies[place].break_with(fault)
                        if faults:
                            await asyncio.sleep(0.5)
                        took[state] = await active.stop()
                    for proxy in proxies.values():
                        proxy.heal()
                async with capture(*dsns, log) as active:
                    await active.until("streaming")
                    async with capture(*dsns, log) as other:
                        await other.until("standing by")
                        took["standing by"] = await other.stop()
                    load.stop()
                    async with connect(given.dsn) as app, connect(given.store) as store:
                        await settle(app, store, source="main")
                    await active.stop()
        differences, _ = compare(server.dsn("app"), server.dsn("store"), given.slot)
        assert differences == []
    return took
