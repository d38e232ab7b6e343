"""An archiver that is killed at every step of its way: readers miss nothing, and the next run comes to the same end."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from archiving_process import archive_once
from lake_scene import OLD, lay

from afterwrite.failpoints import FAILPOINTS, VARIABLE
from afterwrite.lake import tiers
from afterwrite.lake.table import Lake
from afterwrite.lake.verify import verify
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.store.reader import StoredActivity, verify_feed

_PROCESS = Path(__file__).with_name("archiving_process.py")
POINTS = [
    *(name for name in FAILPOINTS if name.startswith("lake.")),
    *(f"maintain.{name}" for name in ("before_detach", "before_detach_commit", "after_detach")),
    *(f"maintain.{name}" for name in ("before_drop", "before_drop_commit", "after_drop")),
]


@pytest.fixture(scope="module")
def laid(server: Server) -> Iterator[str]:
    """The name of a database with days that are due."""
    name = f"lake_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")
    asyncio.run(lay(server.dsn(name), rows=12))
    yield name
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def every(server: Server, laid: str) -> tuple[StoredActivity, ...]:
    """All that is in it."""
    return asyncio.run(_read(server.dsn(laid)))


async def _read(dsn: str) -> tuple[StoredActivity, ...]:
    async with connect(dsn) as db:
        return (await find(db, parse(""), limit=1000, seconds=60)).items


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    armed = {**os.environ, VARIABLE: ""}
    with subprocess.Popen(
        [sys.executable, _PROCESS], env=armed, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_nothing_is_lost_and_nothing_twice(
    server: Server,
    laid: str,
    every: tuple[StoredActivity, ...],
    killer: subprocess.Popen[str],
    tmp_path: Path,
    point: str,
) -> None:
    name = f"lake_copy_{secrets.token_hex(4)}"
    dsn, folder = server.dsn(name), str(tmp_path / "lake")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        strategy = "strategy file_copy" if server.version >= 15 else ""
        admin.execute(f"create database {name} template {laid} {strategy}")
    try:
        assert killer.stdin
        assert killer.stdout
        killer.stdin.write(f"{point}\t{dsn}\t{folder}\n")
        killer.stdin.flush()
        assert int(killer.stdout.readline()) == -signal.SIGKILL
        asyncio.run(_go_on(dsn, folder, every))
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)")


async def _go_on(dsn: str, folder: str, every: tuple[StoredActivity, ...]) -> None:
    lake = Lake(folder)
    async with connect(dsn) as db, tiers.both(db, lake) as both:
        assert (await both.search(parse(""), limit=1000)).page.items == every
    done = await archive_once(dsn, folder)
    assert (done.survey.due, done.survey.findings) == ((), ())
    async with connect(dsn) as db, tiers.both(db, lake) as both:
        told = await both.search(parse(""), limit=1000)
        assert told.page.items == every
        assert len(told.lake) == 12 * len(OLD)
        days = await verify(db, lake)
        assert [(each.rows, each.same) for each in days] == [(12, True)] * len(OLD)
        assert await db.value(b"select count(*) from afterwrite.expired_day where dropped_at is not null") == len(OLD)
        assert await db.value(b"select count(*) from afterwrite.lake_part where left_at is not null") == len(OLD)
        assert (await verify_feed(db)).first_break is None
