"""Recorders, a cluster of three brokers, writers and a store: what is told to be kept is stored once, in order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import psycopg
import pytest
from cut_lines import CutLines
from fan_in_run import FanIn, Orders

from afterwrite.bench.brokers import Cluster
from afterwrite.broker import check
from afterwrite.broker.bundle import unbundle
from afterwrite.broker.link import Access, ApiError, Link, connect, read_access
from afterwrite.broker.publish import broker_sink
from afterwrite.broker.pull import State
from afterwrite.broker.topology import Layout, lane_of, partition_subjects, refused_subject, subject_of
from afterwrite.broker.write import Writer, WriterStatus, run_writers
from afterwrite.errors import AfterwriteError, ConnectionLost
from afterwrite.postgres import connect as connect_store
from afterwrite.record import Activity, Batch, Kind
from afterwrite.recorder import Durability, Options, Recorder
from afterwrite.recorder.deliver import NotTaken
from afterwrite.recorder.ids import Ids, moment_of
from afterwrite.recorder.spool import without_absent
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink


def test_what_recorders_were_told_is_kept_is_stored_once_and_in_order_whoever_dies(
    tmp_path: Path, cluster: Cluster, lines: CutLines, installed_dsn: str
) -> None:
    orders = Orders(
        recorders=2,
        partitions=2,
        rate=150,
        faults={"leader": 1, "writer at": 1, "recorder": 1, "cut off": 1, "all": 1},
        pause_seconds=0.3,
        cut_seconds=(0.8, 1.2),
        seed=20261154,
    )
    outcome = FanIn(tmp_path, cluster, lines, installed_dsn, orders, print).run()
    assert outcome.differences == []
    assert outcome.stored >= outcome.ledger > 0
    assert sum(outcome.struck.values()) == 5
    assert outcome.cut_connections > 0


@pytest.mark.parametrize("later", [5, 0], ids=["something comes later", "nothing comes later"])
def test_a_stand_by_takes_over_and_begins_with_what_was_not_acknowledged(
    stream: Access, installed_dsn: str, later: int
) -> None:
    """The first writer is given what it never stores; the second one stores that before what came later."""

    async def run() -> None:
        async with connect(stream, name="publisher") as link:
            await publish(stream, [made(n) for n in range(5)])
            taken = await pull(link, stream)
            assert [event.entity_id for event in taken] == ["0", "1", "2", "3", "4"]
            if later:
                await publish(stream, [made(n) for n in range(5, 5 + later)])
            async with writing(stream, installed_dsn) as writer:
                await come(lambda: writer.status.stored == 5 + later)
                assert writer.status.takeovers == 1

    asyncio.run(run())
    assert stored(installed_dsn) == [str(n) for n in range(5 + later)]


def test_a_writer_that_stands_still_in_the_middle_of_a_batch_keeps_nobody_waiting(
    tmp_path: Path, stream: Access, installed_dsn: str
) -> None:
    """Its session holds rows that the next one has, too, and is none that is idle: the server would wait for ever."""
    struck = tmp_path / "struck"
    struck.touch()
    still = subprocess.Popen(
        [sys.executable, "-m", "afterwrite", "broker", "write", "--url", ",".join(stream.urls), "--dsn", installed_dsn],
        env={
            **os.environ,
            "AFTERWRITE_NATS_STREAM": stream.stream,
            "AFTERWRITE_FAILPOINTS": "sink.before_copy_end=freeze@1",
            "AFTERWRITE_FAILPOINTS_LOG": str(struck),
        },
        stderr=subprocess.DEVNULL,
    )

    async def run() -> None:
        await come(lambda: struck.read_text() != "")
        still.send_signal(signal.SIGSTOP)
        async with writing(stream, installed_dsn) as writer:
            await come(lambda: writer.status.stored == 3_000)
            still.send_signal(signal.SIGCONT)
            still.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(still.wait, 20) == 0

    try:
        asyncio.run(publish(stream, [made(n) for n in range(3_000)]))
        asyncio.run(run())
    finally:
        still.kill()
        still.wait()
    assert stored(installed_dsn) == [str(n) for n in range(3_000)]


def test_a_writer_of_another_store_takes_nothing_and_keeps_nobody_from_it(
    stream: Access, installed_dsn: str, dsn: str
) -> None:
    async def run() -> None:
        async with connect_store(dsn) as db:
            await install_store(db)
        async with open_sink(installed_dsn) as sink:
            layout = Layout(stream=stream.stream, partitions=1, max_bytes=64 << 20, store=await sink.read_identity())
        await check.carry_out(stream, check.plan(await check.look(stream), layout))
        async with writing(stream, dsn) as foreign:
            await publish(stream, [made(0)])
            await come(lambda: "is for the store" in (foreign.status.trouble or ""))
            async with writing(stream, installed_dsn) as writer:
                await come(lambda: writer.status.stored == 1)
            assert foreign.status.stored == 0

    asyncio.run(run())
    assert stored(installed_dsn) == ["0"]


def test_one_of_two_writers_is_active_and_the_other_follows_when_it_ends(stream: Access, installed_dsn: str) -> None:
    async def run() -> None:
        async with writing(stream, installed_dsn) as first:
            await publish(stream, [made(0)])
            await come(lambda: first.status.state is State.ACTIVE)
            async with writing(stream, installed_dsn) as second:
                await publish(stream, [made(1)])
                await come(lambda: first.status.stored == 2)
                assert second.status == WriterStatus(partition=0)
                first.stop()
                began = time.monotonic()
                await publish(stream, [made(2)])
                await come(lambda: second.status.stored == 1)
                assert time.monotonic() - began < 3

    asyncio.run(run())
    assert stored(installed_dsn) == ["0", "1", "2"]


def test_what_is_sent_again_is_stored_once_also_when_the_broker_has_forgotten_it(
    stream: Access, installed_dsn: str
) -> None:
    async def run() -> None:
        async with writing(stream, installed_dsn) as writer:
            events = [made(n, tenant="acme") for n in range(3)]  # one message
            await publish(stream, events)
            await publish(stream, events)
            await come(lambda: writer.status.stored == 3)
            assert writer.status.duplicates == 0  # the broker knew them
            await publish(stream, [*events, made(3, tenant="acme")])
            await come(lambda: writer.status.stored == 4)
            assert writer.status.duplicates == 3  # the store knew them

    asyncio.run(run())
    assert stored(installed_dsn) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("whole", [False, True], ids=["one event", "all events"])
def test_an_event_that_is_to_be_stored_leaves_the_spool_when_the_store_has_it(
    tmp_path: Path, stream: Access, installed_dsn: str, *, whole: bool
) -> None:
    options = Options(spool_dir=str(tmp_path), **({"durability": Durability.STORED} if whole else {}))
    recorder = Recorder(source="shop", open_sink=broker_sink(stream), options=options, destination="broker")
    recorder.record("order.paid", entity=("order", 0), durability=None if whole else "stored")

    async def run() -> None:
        await arrive(stream)
        assert not await asyncio.to_thread(recorder.flush, 0.5)
        assert recorder.stats().spooled == 1
        async with writing(stream, installed_dsn):
            assert await asyncio.to_thread(recorder.flush, 10)
            assert stored(installed_dsn) == ["0"]

    asyncio.run(run())
    assert recorder.close()


def test_what_the_broker_has_lost_after_it_acknowledged_is_sent_again(
    tmp_path: Path, stream: Access, installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afterwrite.broker.publish.RECEIPT_SECONDS", 1.0)
    options = Options(spool_dir=str(tmp_path), durability=Durability.STORED)
    recorder = Recorder(source="shop", open_sink=broker_sink(stream), options=options, destination="broker")
    recorder.record("order.paid", entity=("order", 0))

    async def run() -> None:
        await arrive(stream)
        async with connect(stream, name="test") as link:
            await link.ask(f"STREAM.PURGE.{stream.stream}")
        async with writing(stream, installed_dsn):
            assert await asyncio.to_thread(recorder.flush, 20)

    asyncio.run(run())
    assert recorder.close()
    assert stored(installed_dsn) == ["0"]


def test_a_full_stream_leaves_events_in_the_spool_until_there_is_room(
    tmp_path: Path, access: Access, installed_dsn: str
) -> None:
    asyncio.run(install(access, max_bytes=200_000))
    options = Options(spool_dir=str(tmp_path), batch_events=50, linger_seconds=0.0)
    recorder = Recorder(source="shop", open_sink=broker_sink(access), options=options, destination="broker")
    for number in range(300):
        recorder.record("order.paid", entity=("order", number), metadata={"text": "x" * 2_000})
    assert not recorder.flush(1.5)
    stats = recorder.stats()
    assert stats.spooled > 0
    assert stats.dropped == {}
    assert "maximum bytes exceeded" in (stats.delivery_trouble or "")

    async def run() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(run_writers(access, partial(open_sink, installed_dsn), stop=stop))
        assert await asyncio.to_thread(recorder.flush, 20)
        await come(lambda: len(stored(installed_dsn)) == 300)
        stop.set()
        await task

    asyncio.run(run())
    assert recorder.close()


def test_what_the_store_does_not_take_is_set_aside_and_the_others_are_stored(
    stream: Access, installed_dsn: str
) -> None:
    async def run() -> None:
        async with writing(stream, installed_dsn) as writer, connect(stream, name="publisher") as link:
            bad = without_absent(msgspec.structs.replace(made(1), id="no uuid"))
            for body in (msgspec.json.encode([bad]), b"no json"):
                await (await link.publish(subject_of(stream.stream, 0), body, {}))
            await publish(stream, [made(0)])
            await come(lambda: writer.status.refused == 2 and writer.status.stored == 1)
            question = {"subjects_filter": refused_subject(stream.stream)}
            for _ in range(100):  # acknowledgements that the writer has sent take the brokers a moment
                told = await link.ask(f"STREAM.INFO.{stream.stream}", question)
                if told["state"]["messages"] == 2:
                    break
                await asyncio.sleep(0.05)
            assert told["state"]["messages"] == 2
            assert told["state"]["subjects"] == {refused_subject(stream.stream): 2}

    asyncio.run(run())
    assert stored(installed_dsn) == ["0"]


def test_what_is_set_aside_finds_room_in_a_full_stream(access: Access, installed_dsn: str) -> None:
    """What is refused comes last, when all else is stored already: what is stored makes room for it."""

    async def run() -> None:
        await install(access, max_bytes=20_000)
        async with connect(access, name="publisher") as link:
            bad = msgspec.json.encode([without_absent(msgspec.structs.replace(made(99), id="no uuid"))])
            fine = [
                msgspec.json.encode([without_absent(made(n, metadata=b'"' + b"x" * 700 + b'"'))]) for n in range(99)
            ]
            taken = 0
            for body in (bad, *fine):
                try:
                    await (await link.publish(subject_of(access.stream, 0), body, {}))
                except ApiError:
                    break
                taken += 1
        assert 1 < taken < 99
        async with writing(access, installed_dsn) as writer:
            await come(lambda: writer.status.refused == 1 and writer.status.stored == taken - 1)

    asyncio.run(run())


def test_an_activity_that_is_longer_than_any_message_is_refused_and_the_others_go(stream: Access) -> None:
    async def run() -> None:
        async with broker_sink(stream)() as sink:
            long = made(1, metadata=b'"' + b"x" * 2_000_000 + b'"')
            with pytest.raises(NotTaken) as refused:
                await sink.write(batch([made(0), long]))
            assert list(refused.value.reasons) == [long.id]
        assert (await check.look(stream)).state["messages"] == 1

    asyncio.run(run())


def test_without_a_stream_or_a_broker_a_sentence_says_so(access: Access) -> None:
    async def run() -> None:
        async with broker_sink(access)() as sink:
            with pytest.raises(AfterwriteError, match="answers for the stream") as missing:
                await sink.write(batch([made(0)]))
            assert "broker install" in str(missing.value.remedy)
        with pytest.raises(ConnectionLost, match=r"no broker of 127\.0\.0\.1:9 can be reached"):
            async with broker_sink(read_access("nats://me:hidden@127.0.0.1:9"))():
                pass

    asyncio.run(run())


def test_lanes_are_shared_among_partitions_whatever_their_number() -> None:
    for partitions in (1, 3, 4, 64):
        shared = [subject for n in range(partitions) for subject in partition_subjects("S", n, partitions)]
        assert sorted(shared) == [subject_of("S", lane) for lane in range(64)]
    same = {lane_of(made(n, tenant="acme")) for n in range(50)}
    assert len(same) == 1
    assert len({lane_of(made(n)) for n in range(500)}) == 64


# ----- what the tests above are made of -----

_ids = Ids()


def made(number: int, *, tenant: str | None = None, metadata: bytes = b"{}") -> Activity:
    id = _ids.make()
    occurred_at = moment_of(id)
    assert occurred_at is not None
    return Activity(
        id=id,
        occurred_at=occurred_at,
        source="shop",
        kind=Kind.EVENT,
        category="data",
        action="order.paid",
        entity_type="order",
        entity_id=str(number),
        tenant_id=tenant,
        metadata=msgspec.Raw(metadata),
    )


def batch(activities: list[Activity]) -> Batch:
    return Batch(source="shop", activities=activities, transactions=0)


async def publish(access: Access, activities: list[Activity]) -> None:
    async with broker_sink(access)() as sink:
        await sink.write(batch(activities))


async def pull(link: Link, access: Access) -> list[Activity]:
    """Take what is there as a writer does that dies before it stores anything."""
    inbox = link.new_inbox()
    found: list[Activity] = []

    async def hear(message: object) -> None:
        found.extend(unbundle(message.data) if message.reply else [])  # type: ignore[attr-defined]

    await link.hear(inbox, hear)
    question = b'{"batch": 10, "expires": 300000000, "group": "writers"}'
    await link.tell(f"$JS.API.CONSUMER.MSG.NEXT.{access.stream}.writer-0", question, reply=inbox)
    await asyncio.sleep(0.4)
    return sorted(found, key=lambda event: event.id)


class writing:
    """A writer of partition 0 beside a test."""

    def __init__(self, access: Access, dsn: str) -> None:
        self._writer = Writer(access, partial(open_sink, dsn), 0)

    async def __aenter__(self) -> Writer:
        self._task = asyncio.create_task(self._writer.run())
        return self._writer

    async def __aexit__(self, *_: object) -> None:
        self._writer.stop()
        await self._task


async def arrive(access: Access) -> None:
    """Wait until the broker has something."""
    for _ in range(500):
        if (await check.look(access)).state["messages"]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("nothing came")


async def come(condition: object, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not come about"
        await asyncio.sleep(0.02)


def stored(dsn: str) -> list[str]:
    """What the store has, in the order of the feed."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("""
            select a.entity_id
              from afterwrite.activity a
              join afterwrite.batch b on b.id = a.batch_id
             order by b.position, a.occurred_at, a.id
        """).fetchall()
    return [row[0] for row in rows]


async def install(access: Access, *, max_bytes: int = 64 << 20, partitions: int = 1) -> None:
    layout = Layout(stream=access.stream, partitions=partitions, max_bytes=max_bytes)
    await check.carry_out(access, check.plan(await check.look(access), layout))
