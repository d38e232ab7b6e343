"""Captured changes by the broker: stored once, in commit order, and the slot never ahead of the store's commit."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import psycopg
import pytest
from changes_process import PATIENCE, make_worker
from changes_run import Fleet, Origin
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from afterwrite.bench.brokers import Cluster
from afterwrite.broker import check
from afterwrite.broker.bundle import RECEIPT
from afterwrite.broker.changes import open_changes
from afterwrite.broker.link import Access
from afterwrite.broker.link import connect as connect_broker
from afterwrite.broker.parcel import PART, Parcel, Part, Word, decode_word, error_of, read_part, wrap
from afterwrite.broker.receive import SourceStatus, run_sources
from afterwrite.broker.topology import Layout, changes_stream, changes_subject
from afterwrite.capture.worker import Worker
from afterwrite.errors import ConnectionLost, Refused
from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch, Checkpoint, Kind, Lsn, Operation, TransactionContext
from afterwrite.store.lines import storable
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


@pytest.fixture
def databases(dsn: str, installed_dsn: str, _installed_template: str) -> Iterator[Callable[[], str]]:
    """Makes databases with our schema, and drops them."""
    made: list[str] = []

    def make() -> str:
        name = f"{conninfo_to_dict(dsn)['dbname']}_{len(made)}"
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(
                sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, _installed_template)))
            )
        made.append(name)
        return make_conninfo(dsn, dbname=name)

    yield make
    with psycopg.connect(dsn, autocommit=True) as admin:
        for name in made:
            slots = "select slot_name from pg_replication_slots where database = %s"
            admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
            time.sleep(0.1)
            for (slot,) in admin.execute(slots, [name]).fetchall():
                admin.execute("select pg_drop_replication_slot(%s)", [slot])
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def origin(databases: Callable[[], str], installed_dsn: str) -> Iterator[Origin]:
    made = Origin(databases(), installed_dsn)
    asyncio.run(made.install())
    yield made
    made.close()


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


def test_what_two_databases_write_is_stored_once_in_commit_order_and_of_any_length(
    stream_of_changes: Access, origin: Origin, databases: Callable[[], str], installed_dsn: str
) -> None:
    other = Origin(databases(), installed_dsn)

    async def run() -> None:
        await other.install()
        async with (
            writing(stream_of_changes, installed_dsn) as told,
            capturing(stream_of_changes, origin),
            capturing(stream_of_changes, other),
        ):
            origin.write(20, 3)
            other.write(1, 4, "x" * 100_000)  # a transaction that is longer than a message
            other.write(1, 1, "y" * 9_000_000)  # a row that is longer than what is published ahead, and held
            await come(lambda: origin.is_whole() and other.is_whole())
            reached = origin.checkpoint()
            await come(lambda: origin.confirmed() >= reached)
            # A writer tells what it has done after it has told the capture, and the broker.
            await come(lambda: [told[each.name].stored for each in (origin, other)] == [60, 5])
        async with connect(installed_dsn) as store:
            report = await verify_feed(store)
        assert report.first_break is None
        assert report.rows == 65
        with psycopg.connect(installed_dsn) as store:
            query = "select length(after ->> 'body') as length, count(distinct batch_id) from afterwrite.activity"
            found = dict(store.execute(f"{query} group by 1").fetchall())
        assert found.keys() == {1, 100_000, 9_000_000}
        assert found[100_000] == 1
        other.close()

    asyncio.run(run())


def test_the_slot_waits_for_the_store_and_what_the_brokers_lose_is_published_again(
    stream_of_changes: Access, origin: Origin, installed_dsn: str
) -> None:
    async def run() -> None:
        async with capturing(stream_of_changes, origin) as worker:
            async with writing(stream_of_changes, installed_dsn):
                origin.write(3)
                await come(origin.is_whole)
            origin.write(3)
            while not (await check.look(stream_of_changes)).changes_state["messages"]:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
            stored = origin.checkpoint()
            await asyncio.sleep(1.0)  # ten times what it takes to confirm what is stored
            assert origin.confirmed() <= stored == origin.checkpoint()
            assert origin.stored() == [1, 2, 3]
            async with connect_broker(stream_of_changes, name="test") as link:
                assert (await link.ask(f"STREAM.PURGE.{changes_stream(stream_of_changes.stream)}"))["purged"] == 1
            async with writing(stream_of_changes, installed_dsn):
                await come(origin.is_whole)
                await come(lambda: origin.confirmed() > stored)
                # Published again by another session; on a busy machine by one more.
                assert worker.status().sessions >= 2

    asyncio.run(run())


def test_whoever_dies_at_whatever_step_everything_is_stored_once(
    cluster: Cluster, stream_of_changes: Access, origin: Origin, installed_dsn: str
) -> None:
    def work() -> None:
        origin.write(1, 2)

    with Fleet(stream_of_changes, cluster, installed_dsn, [origin]) as fleet:
        for step in ("changes.after_publish", "worker.before_acknowledge"):
            fleet.kill_at(origin.name, step, work=work)
        fleet.kill_at("writer 0", "changes.after_store", work=work)
        for fault in ("leader", "purge"):
            fleet.strike(fault, random.Random(1), work=work)
        origin.write(1)
        fleet.settle()
        assert fleet.lost > 0
        assert fleet.differences() == []


def test_a_capture_hears_at_once_when_a_writer_lacks_the_first_parts_of_a_batch(
    stream_of_changes: Access, origin: Origin, installed_dsn: str
) -> None:
    async def run() -> None:
        words: list[Word] = []
        async with connect_broker(stream_of_changes, name="test") as link:
            inbox = link.new_inbox()

            async def hear(message: Any) -> None:
                words.append(decode_word(message.data))

            await link.hear(inbox, hear)
            headers = {PART: Part("p", 17, last=False).header(), RECEIPT: inbox}
            await (await link.publish(changes_subject(stream_of_changes.stream, origin.name), b"more", headers))
            async with writing(stream_of_changes, installed_dsn):
                await come(lambda: bool(words))
        (word,) = words
        assert word.refused is not None
        assert isinstance(error_of(word.refused), ConnectionLost)
        assert (await check.look(stream_of_changes)).changes_state["messages"] == 0

    asyncio.run(run())


def test_a_batch_comes_out_as_it_went_in_whatever_stands_in_it() -> None:
    lsn = Lsn(0x16B374D848)
    moment = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
    odd = Activity(
        id=f"{0:08x}-0000-8000-8000-{1:012x}",
        occurred_at=moment,
        source="shop",
        kind=Kind.CHANGE,
        category="data",
        action="t.update",
        operation=Operation.UPDATE,
        relation="public.t",
        entity_id="\0 7",
        changed=("a", 'b"c'),
        before=msgspec.Raw(b'{"a": 1.50, "n": 12345678901234567890}'),
        after=msgspec.Raw(b'{"a":"' + "ä".encode() * 300_000 + b'"}'),
        duration_ms=0.1,
        xid=4_294_967_295,
        commit_lsn=lsn,
        ordinal=0,
    )
    plain = msgspec.structs.replace(odd, id=odd.id[:-1] + "2", ordinal=1, before=None, after=None, changed=None)
    torn = msgspec.structs.replace(odd, id=odd.id[:-1] + "3", ordinal=2, summary="half \ud800 a pair")
    batch = Batch(
        source="shop",
        activities=[odd, plain, torn],
        transactions=1,
        first_lsn=lsn,
        last_lsn=lsn,
        checkpoint=Checkpoint(source="shop", slot="s", system_id="7", timeline=1, lsn=Lsn(lsn + 8)),
        contexts=(TransactionContext(commit_lsn=lsn, xid=3, settings={"app.user": "é"}),),
        moments=frozenset({moment}),
    )
    for length in (4_096, 1 << 20):
        parcel = Parcel("p")
        for number, (body, last) in enumerate(wrap(batch, store="here", follows=Lsn(5), length=length), 1):
            assert len(body) <= length
            part = read_part(Part("p", number, last).header())
            assert part is not None
            assert parcel.is_next(part)
            parcel.add(body)
        opening, found = parcel.open()
        assert (opening.store, opening.follows, part.last) == ("here", 5, True)
        # The third cannot be told in UTF-8: its chunk comes as the store would have kept it.
        assert list(found.activities) == [odd, storable(plain), storable(torn)] == list(found.activities)
        assert len(found.activities) == 3
        assert found.contexts == batch.contexts
        assert (found.checkpoint, found.moments, found.last_lsn) == (batch.checkpoint, batch.moments, lsn)
        parcel.close()


def test_a_batch_is_refused_by_another_store_and_by_one_that_was_set_back(
    stream_of_changes: Access, origin: Origin, databases: Callable[[], str], installed_dsn: str
) -> None:
    elsewhere = databases()
    with psycopg.connect(elsewhere) as store:  # a copy, which would say that it is the same store
        store.execute("alter table afterwrite.store disable trigger all")
        store.execute("update afterwrite.store set id = gen_random_uuid()")

    def batch_after(checkpoint: Checkpoint, by: int) -> Batch:
        moved = msgspec.structs.replace(checkpoint, lsn=Lsn(checkpoint.lsn + by))
        return Batch(source=origin.name, activities=(), transactions=0, checkpoint=moved)

    async def run() -> None:
        async with open_changes(stream_of_changes, origin.name, patience=PATIENCE) as sink:
            with pytest.raises(ConnectionLost, match="no writer"):
                await sink.read_identity()
            async with writing(stream_of_changes, installed_dsn):
                identity = await answer_of(sink.read_identity)
                first = await sink.read_checkpoint(origin.name)
                assert first is not None
                await sink.write(batch_after(first, 8))
            with psycopg.connect(installed_dsn, autocommit=True) as store:
                (row,) = store.execute("delete from afterwrite.checkpoint returning source, slot, system_id").fetchall()
                store.execute("insert into afterwrite.checkpoint values (%s, %s, %s, 1, '0/99')", row)
            async with writing(stream_of_changes, installed_dsn):
                with pytest.raises(Refused, match="what is between is missing"):
                    await sink.write(batch_after(first, 16))
        async with open_changes(stream_of_changes, origin.name) as sink:
            async with writing(stream_of_changes, installed_dsn):
                assert await answer_of(sink.read_identity) == identity
                found = await sink.read_checkpoint(origin.name)
                assert found is not None
            async with writing(stream_of_changes, elsewhere):
                with pytest.raises(Refused, match="is captured for the store"):
                    await sink.write(batch_after(found, 8))
        assert origin.checkpoint() == Lsn(0x99)

    asyncio.run(run())


async def answer_of(question: Callable[[], Awaitable[str]]) -> str:
    """The answer as soon as there is a writer."""
    while True:
        try:
            return await question()
        except ConnectionLost:
            await asyncio.sleep(0.05)
