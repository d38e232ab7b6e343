"""Captured changes by the broker: stored once, in commit order, and the slot never ahead of the store's commit."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import psycopg
import pytest
from broker_cluster import Cluster
from changes_process import make_worker
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from afterwrite.broker import check
from afterwrite.broker.link import Access, ApiError, connect as connect_broker, read_access
from afterwrite.broker.receive import SourceStatus, run_sources
from afterwrite.broker.topology import Layout, changes_stream
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.worker import Worker
from afterwrite.postgres import connect
from afterwrite.record import Lsn
from afterwrite.store.reader import verify_feed
from afterwrite.store.writer import open_sink


@pytest.fixture
def stream_of_changes(access: Access) -> Iterator[Access]:
    async def install() -> None:
        layout = Layout(stream=access.stream, partitions=1, max_bytes=8 << 20, changes_bytes=32 << 20)
        await check.carry_out(access, check.plan(await check.look(access), layout))

    async def remove() -> None:
        async with connect_broker(access, name="test") as link:
            await link.ask(f"STREAM.DELETE.{changes_stream(access.stream)}")

    asyncio.run(install())
    yield access
    asyncio.run(remove())


class Origin:
    """A source database with a table, whose slot and name are the same."""

    def __init__(self, dsn: str, store: str) -> None:
        self.dsn, self.store = dsn, store
        self.name = f"s_{secrets.token_hex(4)}"
        self.written = 0

    async def install(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("create table t (id int primary key, body text)")
        setup = CaptureSetup(source=self.name, tables=(("public", "t"),), legacy_tables=(), full_identity=(), slot=self.name)
        async with connect(self.dsn) as database, open_sink(self.store) as sink:
            await prepare(database, sink, setup)

    def write(self, transactions: int, rows: int = 1, body: str = "x") -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for _ in range(transactions):
                connection.execute(
                    "insert into t select n, %s from generate_series(%s::int, %s::int) n",
                    [body, self.written + 1, self.written + rows],
                )
                self.written += rows

    def confirmed(self) -> Lsn:
        """Up to where the server may forget."""
        with psycopg.connect(self.dsn) as connection:
            (lsn,) = connection.execute(
                "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", [self.name]
            ).fetchone() or ("0/0",)
        return Lsn.parse(lsn)

    def checkpoint(self) -> Lsn:
        with psycopg.connect(self.store) as connection:
            (lsn,) = connection.execute(
                "select lsn::text from afterwrite.checkpoint where source = %s", [self.name]
            ).fetchone() or ("0/0",)
        return Lsn.parse(lsn)

    def stored(self) -> list[int]:
        """What the store has of it, in the order of the feed."""
        with psycopg.connect(self.store) as connection:
            rows = connection.execute(
                """
                select a.entity_id::int
                  from afterwrite.activity a
                  join afterwrite.batch b on b.id = a.batch_id
                 where a.source = %s and b.source = %s
                 order by b.position, a.commit_lsn, a.ordinal
                """,
                [self.name, self.name],
            ).fetchall()
        return [row[0] for row in rows]

    def is_whole(self) -> bool:
        return self.stored() == list(range(1, self.written + 1))


@pytest.fixture
def databases(dsn: str, installed_dsn: str, _installed_template: str) -> Iterator[Callable[[], str]]:
    """Makes databases with our schema, and drops them."""
    made: list[str] = []

    def make() -> str:
        name = f"{conninfo_to_dict(dsn)['dbname']}_{len(made)}"
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, _installed_template))))
        made.append(name)
        return make_conninfo(dsn, dbname=name)

    yield make
    with psycopg.connect(dsn, autocommit=True) as admin:
        for name in made:
            slots = "select slot_name from pg_replication_slots where database = %s"
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name]
            )
            time.sleep(0.1)
            for (slot,) in admin.execute(slots, [name]).fetchall():
                admin.execute("select pg_drop_replication_slot(%s)", [slot])
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def origin(databases: Callable[[], str], installed_dsn: str) -> Origin:
    made = Origin(databases(), installed_dsn)
    asyncio.run(made.install())
    return made


@asynccontextmanager
async def capturing(access: Access, origin: Origin) -> AsyncGenerator[Worker]:
    worker = make_worker(access, origin.dsn, origin.name)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await task


@asynccontextmanager
async def writing(access: Access, store: str) -> AsyncGenerator[dict[str, SourceStatus]]:
    stop = asyncio.Event()
    told: dict[str, SourceStatus] = {}
    task = asyncio.create_task(
        run_sources(access, partial(open_sink, store), stop=stop, on_status=lambda s: told.update({s.source: s}))
    )
    try:
        yield told
    finally:
        stop.set()
        await task


async def come(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        await asyncio.sleep(0.05)


def test_what_two_databases_write_is_stored_once_in_commit_order(
    stream_of_changes: Access, origin: Origin, databases: Callable[[], str], installed_dsn: str
) -> None:
    other = Origin(databases(), installed_dsn)

    async def run() -> None:
        await other.install()
        async with writing(stream_of_changes, installed_dsn) as told:
            async with capturing(stream_of_changes, origin), capturing(stream_of_changes, other):
                origin.write(20, 3)
                other.write(5)
                await come(lambda: origin.is_whole() and other.is_whole())
                reached = origin.checkpoint()
                await come(lambda: origin.confirmed() >= reached)
                assert {told[each.name].stored for each in (origin, other)} == {60, 5}
        async with connect(installed_dsn) as store:
            report = await verify_feed(store)
        assert report.first_break is None
        assert report.rows == 65

    asyncio.run(run())
