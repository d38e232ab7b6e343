"""A maintainer that is killed at every step of its way: the next one comes to the same end."""

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
from maintaining_process import maintain_once, make_few_many
from test_maintain import a_batch, ago

from afterwrite.failpoints import FAILPOINTS, VARIABLE
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.store import maintain as maintenance
from afterwrite.store import partitions, recast
from afterwrite.store.partitions import make_partitions, partition_name
from afterwrite.store.reader import verify_feed
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

_PROCESS = Path(__file__).with_name("maintaining_process.py")
POINTS = [name for name in FAILPOINTS if name.startswith("maintain.")]


async def _lay(dsn: str) -> None:
    """A store in which every kind of step is due."""
    async with connect(dsn) as db:
        await install_store(db)
        await make_partitions(db, days=[ago(n) for n in (45, 44, 33, 2)])
        for day in (ago(-6), ago(-7)):
            await db.run(f"drop table afterwrite.{partition_name(day)}".encode())
        # An interrupted build, and an interrupted copy.
        await db.run(f"drop index afterwrite.{partition_name(ago(2))}_actor".encode())
        await db.run(b"create table afterwrite.activity_making_2020_01_01 (like afterwrite.activity including all)")
    days = (500, 450, 45, 44, 35, 34, 33, 2)
    async with open_sink(dsn) as sink:
        for number in range(1, 33):
            await sink.write(a_batch(ago(days[number % 8]), number, 25 if number % 8 in (4, 0) else 15))
    async with connect(dsn) as db:
        await db.run(b"update afterwrite.batch set written_at = last_at + interval '1 second'")
        # Stored in the order of its days, as it is where nobody imports: the feed can begin later.
        await db.run(b"update afterwrite.batch set written_at = now() where position > 12")
    async with open_sink(dsn) as sink:
        # So few that its day is made at once.
        await sink.write(a_batch(ago(3), 40, 5))


@pytest.fixture(scope="module")
def laid(server: Server) -> Iterator[str]:
    """The name of a database with such a store."""
    name = f"maintain_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")
    with pytest.MonkeyPatch.context() as patch:
        # The writer makes no partition for what is to wait.
        patch.setattr("afterwrite.store.writer._LATE_DAYS", 0)
        asyncio.run(_lay(server.dsn(name)))
    yield name
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)")


@pytest.fixture
def copied(server: Server, laid: str) -> Iterator[str]:
    """A copy of it to work on."""
    name = f"copy_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        strategy = "strategy file_copy" if server.version >= 15 else ""
        admin.execute(f"create database {name} template {laid} {strategy}")
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)")


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name in ((partitions, "MOVED_AT_ONCE"), (maintenance, "MOVED_AT_ONCE")):
        monkeypatch.setattr(room, name, getattr(room, name))
    monkeypatch.setattr(maintenance, "_CHUNK_BATCHES", maintenance._CHUNK_BATCHES)
    for room in (maintenance, recast):
        monkeypatch.setattr(room, "_CHUNK_ROWS", room._CHUNK_ROWS)
    make_few_many()


async def _state(dsn: str) -> dict[str, object]:
    """All that maintenance has to do with, as one looks at it from outside."""
    async with connect(dsn) as db:
        tables = await db.values(
            b"""select c.relname || coalesce(' of ' || p.inhparent::regclass, '') from pg_class c
                  left join pg_inherits p on p.inhrelid = c.oid
                 where c.relnamespace = 'afterwrite'::regnamespace and c.relkind in ('r', 'i') order by 1"""
        )
        rows = await db.values(
            b"""select tableoid::regclass || ' ' || count(*) || ' ' || sum(hashtextextended(id::text, 0))
                  from afterwrite.activity group by tableoid order by 1"""
        )
        frozen = await db.values(
            b"""select relname from pg_stat_all_tables
                 where last_vacuum is not null and schemaname = 'afterwrite' order by 1"""
        )
        expired = await db.values(
            b"select concat_ws(' ', day, rows, first_position, last_position, dropped_at is null)"
            b" from afterwrite.expired_day order by day"
        )
        feed = await db.values(b"select position from afterwrite.batch order by 1")
        contexts = await db.values(b"select xid from afterwrite.transaction_context order by 1")
        start = await db.value(b"select position from afterwrite.feed_start")
        broken = await db.value(b"select count(*) from pg_index where not indisvalid")
        seal = await verify_feed(db)
    return {
        "tables": tables,
        "rows": rows,
        "frozen": frozen,
        "expired": expired,
        "feed": feed,
        "contexts": contexts,
        "start": start,
        "broken": broken,
        "seal": seal,
    }


@pytest.fixture(scope="module")
def end(server: Server, laid: str) -> dict[str, object]:
    """What a round that nobody disturbed leaves."""
    name = f"end_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        strategy = "strategy file_copy" if server.version >= 15 else ""
        admin.execute(f"create database {name} template {laid} {strategy}")
    try:
        subprocess.run([sys.executable, _PROCESS, server.dsn(name)], check=True)
        return asyncio.run(_state(server.dsn(name)))
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)")


def test_the_undisturbed_round_does_every_kind_of_step(copied: str) -> None:
    report = asyncio.run(maintain_once(copied))
    assert (report.left, report.findings) == ((), ())
    kinds = {step.kind.value for step in report.done}
    assert kinds == {
        "discard", "recast", "make", "build index", "drop index", "freeze", "expire", "expire rows", "expire batches",
    }  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_the_next_round_comes_to_the_same_end(copied: str, end: dict[str, object], point: str) -> None:
    armed = {**os.environ, VARIABLE: f"{point}=kill@2" if point in _OFTEN else f"{point}=kill@1"}
    killed = subprocess.run([sys.executable, _PROCESS, copied], env=armed, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    report = asyncio.run(maintain_once(copied))
    assert (report.left, report.findings) == ((), ())
    assert asyncio.run(_state(copied)) == end


# In the midst of a repetition is where half is done.
_OFTEN = {
    "maintain.after_chunk",
    "maintain.before_check",
    "maintain.after_make",
    "maintain.after_build",
    "maintain.before_drop_index",
    "maintain.after_drop_index",
    "maintain.before_expire_rows",
    "maintain.after_expire_rows",
    "maintain.after_detach",
    "maintain.after_drop",
}


def test_every_place_in_the_source_is_tried() -> None:
    rooms = [Path(room.__file__).read_text() for room in (partitions, maintenance, recast) if room.__file__]
    assert {point for point in POINTS if not any(f'failpoint("{point}")' in room for room in rooms)} == set()
