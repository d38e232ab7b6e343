"""What is physically possible with a stretch of WAL: reading it into nowhere, and PostgreSQL's own logical replication.

Native replication applies to equal tables with equal rows: a copy of the application that is made before the stretch is
written, and anew for each turn.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from psycopg import sql

from afterwrite.bench.stage import DATABASE, Stage
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect, statement
from afterwrite.record import Lsn

_BASE, _REPLICA, _SLOT = "bench_base", "bench_replica", "afterwrite_bench_limit"
_POLL_SECONDS = 0.01
_MOST_SECONDS = 300.0


async def prepare_replica(stage: Stage) -> None:
    """Copy the application as it is now, before the stretch is written."""
    dump = stage.folder / "base.sql"
    server = stage.server
    await _run(server.bin_dir / "pg_dump", "-n", "public", "-O", "-x", "-f", dump, server.dsn(DATABASE))
    async with connect(server.dsn()) as admin:
        await admin.run(sql.SQL("create database {}").format(sql.Identifier(_BASE)))
    # What the dump says of other schemas (stamps, trackers) is not there and not needed.
    await _run(server.bin_dir / "psql", "-q", "-X", "-f", dump, "-o", "/dev/null", server.dsn(_BASE))


async def read_nowhere(stage: Stage, place: str, end: Lsn) -> float:
    """The seconds in which ``pg_recvlogical`` has read from the slot ``place`` up to here, into /dev/null."""
    await stage.db.run(statement("bench.keep_place"), slot=place, copy=_SLOT)
    try:
        began = time.monotonic()
        await _run(
            stage.server.bin_dir / "pg_recvlogical",
            *("--start", "--slot", _SLOT, "--no-loop", "--endpos", str(end), "-f", "/dev/null"),
            *(
                "-o",
                "proto_version=1",
                "-o",
                f'publication_names="{stage.settings.publication}"',
                "-o",
                "messages=true",
            ),
            *("-d", stage.server.dsn(DATABASE)),
        )
        return time.monotonic() - began
    finally:
        await drop_copy(stage, _SLOT)


async def replicate_natively(stage: Stage, place: str, last: Lsn) -> float:
    """The seconds in which a subscription has applied all from the slot ``place`` up to the commit at ``last``."""
    async with connect(stage.server.dsn()) as admin:
        await admin.run(
            sql.SQL("create database {} template {}").format(sql.Identifier(_REPLICA), sql.Identifier(_BASE))
        )
    await stage.db.run(statement("bench.keep_place"), slot=place, copy=_SLOT)
    await stage.db.run(statement("bench.checkpoint"))
    try:
        async with connect(stage.server.dsn(_REPLICA)) as replica:
            await replica.run(
                sql.SQL(
                    "create subscription bench connection {} publication {}"
                    " with (create_slot = false, copy_data = false, slot_name = {})"
                ).format(
                    sql.Literal(stage.server.dsn(DATABASE)),
                    sql.Identifier(stage.settings.publication),
                    sql.Literal(_SLOT),
                )
            )
            began = time.monotonic()
            try:
                while not await replica.value(statement("bench.has_applied"), lsn=str(last)):
                    if time.monotonic() > began + _MOST_SECONDS:
                        raise AfterwriteError("native replication did not end", remedy="look at the server's log")
                    await asyncio.sleep(_POLL_SECONDS)
                return time.monotonic() - began
            finally:
                await replica.run(b"alter subscription bench disable")
                await replica.run(b"alter subscription bench set (slot_name = none)")
                await replica.run(b"drop subscription bench")
    finally:
        await drop_copy(stage, _SLOT)
        async with connect(stage.server.dsn()) as admin:
            await admin.run(sql.SQL("drop database {} with (force)").format(sql.Identifier(_REPLICA)))


async def drop_copy(stage: Stage, slot: str) -> None:
    """Drop a slot that was a copy; who read it may still be leaving."""
    deadline = time.monotonic() + _MOST_SECONDS
    while await stage.db.value(statement("bench.read_slot_reader"), slot=slot) is not None:
        if time.monotonic() > deadline:
            raise AfterwriteError(f"slot {slot} is still being read", remedy="this is a defect: report it")
        await asyncio.sleep(_POLL_SECONDS)
    await stage.db.run(statement("bench.drop_place"), slot=slot)


async def _run(program: Path, *words: str | Path) -> None:
    child = await asyncio.create_subprocess_exec(
        program, *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, complaint = await child.communicate()
    except BaseException:
        child.kill()
        await child.wait()
        raise
    if child.returncode:
        raise AfterwriteError(f"{program.name} failed: {complaint.decode(errors='replace').strip()[-800:]}")
