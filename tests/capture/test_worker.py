"""The worker: stored first, acknowledged after; exactly once through kills, cuts and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import psycopg
import pytest
from capture_rig import MemorySink, install, setup_of

from afterwrite.capture.backlog import Pace
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.stream import SlotHeld, open_stream
from afterwrite.capture.transaction import Transaction
from afterwrite.capture.worker import Source, Worker, WorkerState, WorkerStatus
from afterwrite.errors import ConnectionLost, Refused
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.record import Batch, Lsn, Receipt, Sink
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

QUICK = Pace(
    linger_ms=5, pulse_seconds=0.1, settle_seconds=0.1, heartbeat_seconds=0.3, first_pause_ms=20, takeover_seconds=1.5
)
Body = Callable[[Worker], Awaitable[None]]


def run_worker(
    dsn: str,
    setup: CaptureSetup,
    open_sink: Callable[[], object],
    body: Body,
    *,
    pace: Pace = QUICK,
    observers: tuple = (),
    on_status: Callable[[WorkerStatus], None] | None = None,
) -> Worker:
    """Run a worker while ``body`` runs, then stop it and wait for it."""

    async def run() -> Worker:
        source = Source(dsn=dsn, name=setup.source, slot=setup.slot, legacy_tables=frozenset(setup.legacy_tables))
        worker = Worker(source, open_sink, pace=pace, observers=observers, on_status=on_status)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            task = asyncio.create_task(worker.run())
            other = asyncio.create_task(_body(body, worker))
            await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                other.cancel()
                await task
            await other
            worker.stop()
            await task
        return worker

    return asyncio.run(run())


async def _body(body: Body, worker: Worker) -> None:
    await body(worker)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a test looks from outside
            await asyncio.sleep(0.01)


async def write(dsn: str, *scripts: str) -> None:
    async with connect(dsn) as database:
        for script in scripts:
            await database.script(script)


def run_sql(dsn: str, script: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(script.encode())
        return cursor.fetchall() if cursor.description else []


def confirmed(dsn: str, slot: str) -> Lsn:
    ((lsn,),) = run_sql(dsn, f"select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{slot}'")
    return Lsn.parse(lsn)


def laid(dsn: str, script: str = "create table t (id int primary key, a int)") -> tuple[CaptureSetup, MemorySink]:
    run_sql(dsn, script)
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    return setup, sink


def test_what_is_written_is_stored_and_then_acknowledged(dsn: str) -> None:
    setup, sink = laid(dsn)

    async def body(worker: Worker) -> None:
        await write(dsn, "insert into t values (1, 1)", "update t set a = 2", "delete from t")
        await until(lambda: len(sink.activities) == 3)
        assert sink.checkpoint is not None
        stored = sink.checkpoint.lsn
        await until(lambda: confirmed(dsn, setup.slot) >= stored)
        status = worker.status()
        assert (status.state, status.rows, status.transactions) == (WorkerState.STREAMING, 3, 3)
        assert status.last_commit_at == sink.activities[-1].occurred_at
        await until(lambda: worker.status().lag_bytes is not None)

    worker = run_worker(dsn, setup, sink.opened, body)
    assert worker.status().state is WorkerState.STOPPED
    assert [activity.action for activity in sink.activities] == ["t.insert", "t.update", "t.delete"]
    assert all(batch.checkpoint is not None for batch in sink.batches)


class SlowSink(MemorySink):
    """Takes its time, and notes what was known to the slot while it did."""

    def __init__(self, dsn: str, slot: str, seconds: float) -> None:
        super().__init__()
        self.dsn, self.slot, self.seconds = dsn, slot, seconds
        self.began = asyncio.Event()
        self.early: list[bool] = []

    async def write(self, batch: Batch) -> Receipt:
        self.began.set()
        await asyncio.sleep(self.seconds)
        assert self.checkpoint is not None
        self.early.append(confirmed(self.dsn, self.slot) > self.checkpoint.lsn)
        return await super().write(batch)


def test_nothing_is_acknowledged_before_it_is_stored(dsn: str) -> None:
    setup, first = laid(dsn)
    sink = SlowSink(dsn, setup.slot, 0.3)
    sink.checkpoint = first.checkpoint

    async def body(worker: Worker) -> None:
        for number in range(4):
            await write(dsn, f"insert into t values ({number}, 0)")
            await asyncio.sleep(0.2)
        await until(lambda: len(sink.activities) == 4)

    run_worker(dsn, setup, sink.opened, body)
    assert sink.early
    assert not any(sink.early)


@pytest.mark.parametrize("way", ["stop", "cancel"])
def test_stopping_finishes_the_batch_in_flight(dsn: str, way: str) -> None:
    setup, first = laid(dsn)
    sink = SlowSink(dsn, setup.slot, 0.5)
    sink.checkpoint = first.checkpoint

    async def run() -> float:
        worker = Worker(Source(dsn=dsn, name="main", slot=setup.slot), sink.opened, pace=QUICK)
        task = asyncio.create_task(worker.run())
        await write(dsn, "insert into t values (1, 1)")
        await sink.began.wait()
        began = time.monotonic()
        if way == "stop":
            worker.stop()
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return time.monotonic() - began

    assert asyncio.run(run()) < 5
    assert len(sink.activities) == 1
    assert sink.checkpoint is not None
    assert confirmed(dsn, setup.slot) == sink.checkpoint.lsn


def test_a_batch_that_does_not_end_is_broken_off(dsn: str) -> None:
    setup, first = laid(dsn)
    sink = SlowSink(dsn, setup.slot, 60)
    sink.checkpoint = first.checkpoint

    async def run() -> float:
        pace = msgspec.structs.replace(QUICK, stop_seconds=0.5)
        worker = Worker(Source(dsn=dsn, name="main", slot=setup.slot), sink.opened, pace=pace)
        task = asyncio.create_task(worker.run())
        await write(dsn, "insert into t values (1, 1)")
        await sink.began.wait()
        began = time.monotonic()
        worker.stop()
        await task
        return time.monotonic() - began

    assert asyncio.run(run()) < 3
    assert sink.activities == []


class Watcher:
    """An observer that keeps its watermark and loses its connection now and then, when it settles."""

    def __init__(self, loses: int = 0) -> None:
        self.through: Lsn | None = None
        self.kept: list[str | None] = []
        self.loses = loses
        self._mind: list[tuple[Lsn, list[str | None]]] = []

    @property
    def unsettled(self) -> list[Lsn]:
        return [lsn for lsn, _ in self._mind]

    async def begin(self, at: Lsn) -> Lsn:
        self._mind.clear()
        if self.through is None:
            self.through = Lsn(at - 1)
        return self.through

    async def observe(self, transactions: Sequence[Transaction]) -> None:
        seen = self._mind[-1][0] if self._mind else self.through
        for each in transactions:
            if seen is None or each.commit_lsn > seen:
                self._mind.append((each.commit_lsn, [change.key for change in each.changes]))

    async def settle(self) -> None:
        if self._mind and self.loses:
            self.loses -= 1
            raise ConnectionLost("the observer's line was cut")
        for lsn, keys in self._mind:
            self.kept += keys
            self.through = lsn
        self._mind.clear()


def test_an_observer_counts_everything_once_though_it_keeps_it_later_than_the_store(dsn: str) -> None:
    setup, sink = laid(dsn)
    watcher = Watcher(loses=2)

    async def body(worker: Worker) -> None:
        for number in range(8):
            await write(dsn, f"insert into t values ({number}, 1)")
            await until(lambda number=number: len(sink.activities) == number + 1)
            # Nothing is acknowledged that it has not settled. This order: it may settle between the two looks.
            acknowledged = confirmed(dsn, setup.slot)
            assert all(lsn >= acknowledged for lsn in watcher.unsettled)
        await until(lambda: len(watcher.kept) == 8)

    run_worker(dsn, setup, sink.opened, body, observers=(watcher,))
    assert watcher.kept == [str(number) for number in range(8)]
    assert [activity.entity_id for activity in sink.activities] == watcher.kept
    assert watcher.loses == 0


class FlakySink(MemorySink):
    """Fails before the commit, or loses the reply after it; every other write."""

    def __init__(self, after_commit: bool) -> None:
        super().__init__()
        self.after_commit = after_commit
        self.calls = 0

    async def write(self, batch: Batch) -> Receipt:
        self.calls += 1
        if self.calls % 2 == 0:
            return await super().write(batch)
        if self.after_commit:
            await super().write(batch)
        raise ConnectionLost("the sink went away")


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_sink_that_goes_away_is_waited_out(dsn: str, after_commit: bool) -> None:
    setup, first = laid(dsn)
    sink = FlakySink(after_commit)
    sink.checkpoint = first.checkpoint
    troubles: list[str | None] = []

    async def body(worker: Worker) -> None:
        for number in range(6):
            await write(dsn, f"insert into t values ({number}, 0)")
            await until(lambda number=number: len(sink.activities) == number + 1)

    worker = run_worker(dsn, setup, sink.opened, body, on_status=lambda status: troubles.append(status.trouble))
    assert [activity.entity_id for activity in sink.activities] == ["0", "1", "2", "3", "4", "5"]
    assert "the sink went away" in troubles
    assert worker.status().sessions > 1


def test_a_sink_that_is_down_for_long_does_not_cost_the_stream(dsn: str) -> None:
    setup, first = laid(dsn)
    sink = SlowSink(dsn, setup.slot, 3)
    sink.checkpoint = first.checkpoint
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    run_sql(dsn, f"alter database {database} set wal_sender_timeout = '1s'")

    async def body(worker: Worker) -> None:
        # More than the backlog holds, so that nobody reads the socket for a while.
        await write(dsn, "insert into t select g, 0 from generate_series(1, 2000) g")
        await write(dsn, *(f"insert into t values ({-number}, 0)" for number in range(1, 60)))
        await until(lambda: len(sink.batches) == 1)
        sink.seconds = 0
        await until(lambda: len(sink.activities) == 2059)

    pace = msgspec.structs.replace(QUICK, backlog_rows=10)
    worker = run_worker(dsn, setup, sink.opened, body, pace=pace)
    assert worker.status().sessions == 1


def test_an_idle_database_moves_the_slot_and_the_heartbeat_comes_back(dsn: str) -> None:
    run_sql(dsn, "create table elsewhere (id int)")
    setup, sink = laid(dsn)
    before = confirmed(dsn, setup.slot)

    async def body(worker: Worker) -> None:
        for _ in range(2):
            await write(dsn, "insert into elsewhere select generate_series(1, 2000)")
            ((wal,),) = run_sql(dsn, "select pg_current_wal_lsn()::text")
            await until(lambda wal=wal: confirmed(dsn, setup.slot) > Lsn.parse(wal) > before)
        status = worker.status()
        assert status.heartbeat_at is not None
        assert status.heartbeat_ms is not None

    run_worker(dsn, setup, sink.opened, body)
    assert sink.activities == []


def test_a_second_worker_is_refused_and_told_who_is_first(dsn: str) -> None:
    setup, sink = laid(dsn)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        second = Worker(Source(dsn=dsn, name="main", slot=setup.slot), sink.opened, pace=QUICK)
        with pytest.raises(Refused, match=f"another worker is active on slot {setup.slot}: its session .* pid [0-9]+"):
            await second.run()

    run_worker(dsn, setup, sink.opened, body)


def test_a_stream_that_came_to_another_server_than_the_control_connection_is_not_read(dsn: str) -> None:
    setup, sink = laid(dsn)
    checkpoint = sink.checkpoint
    assert checkpoint is not None
    here = checkpoint.system_id, checkpoint.timeline

    async def opened(system: tuple[str, int]) -> None:
        async with open_stream(
            dsn, slot=setup.slot, publications=setup.publications, start=checkpoint.lsn, system=system
        ):
            pass

    asyncio.run(opened(here))
    # A failed-over cluster has the same identifier and the next timeline; another cluster has neither.
    for other in ((here[0], here[1] + 1), ("7", here[1])):
        with pytest.raises(ConnectionLost, match="another server than the one before it"):
            asyncio.run(opened(other))


def test_a_slot_that_something_else_reads_is_refused_with_its_pid(dsn: str) -> None:
    setup, sink = laid(dsn)
    assert sink.checkpoint is not None
    start = sink.checkpoint.lsn

    async def run() -> None:
        async with open_stream(dsn, slot=setup.slot, publications=setup.publications, start=start):
            worker = Worker(Source(dsn=dsn, name="main", slot=setup.slot), sink.opened, pace=QUICK)
            with pytest.raises(SlotHeld) as held:
                await worker.run()
        pids = "select active_pid from pg_replication_slots"
        assert held.value.pid
        assert f"slot {setup.slot} on" in str(held.value)
        assert f"is held by pid {held.value.pid}" in str(held.value)
        assert "pg_terminate_backend" in (held.value.remedy or "")
        assert (held.value.pid,) not in run_sql(dsn, pids)

    asyncio.run(run())


def test_a_slot_ahead_of_the_checkpoint_is_refused(dsn: str) -> None:
    setup, sink = laid(dsn)
    run_sql(dsn, "insert into t values (1, 1)")
    run_sql(dsn, f"select pg_replication_slot_advance('{setup.slot}', pg_current_wal_lsn())")

    async def body(worker: Worker) -> None:
        await asyncio.sleep(30)

    with pytest.raises(Refused, match="ahead of the store") as refused:
        run_worker(dsn, setup, sink.opened, body)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("select pg_drop_replication_slot('{slot}')", "slot {slot} is gone"),
        ("drop publication afterwrite", "publication"),
    ],
)
def test_what_was_dropped_is_named(dsn: str, script: str, said: str) -> None:
    setup, sink = laid(dsn)
    run_sql(dsn, script.format(slot=setup.slot))
    if "publication" in script:
        run_sql(dsn, "insert into t values (1, 1)")

    async def body(worker: Worker) -> None:
        await asyncio.sleep(30)

    with pytest.raises(Refused, match=said.format(slot=setup.slot)):
        run_worker(dsn, setup, sink.opened, body)


def test_a_store_without_checkpoint_is_refused(dsn: str) -> None:
    setup, _ = laid(dsn)

    async def body(worker: Worker) -> None:
        await asyncio.sleep(30)

    with pytest.raises(Refused, match="no checkpoint was ever written") as refused:
        run_worker(dsn, setup, MemorySink().opened, body)
    assert "afterwrite install" in (refused.value.remedy or "")


def test_unreadable_contexts_are_counted(dsn: str) -> None:
    setup, sink = laid(dsn)

    async def body(worker: Worker) -> None:
        async with connect(dsn) as database, database.transaction():
            await database.run("select pg_logical_emit_message(true, 'afterwrite.context', '{nonsense')")
            await database.run("insert into t values (1, 1)")
        await until(lambda: len(sink.activities) == 1)
        await until(lambda: worker.status().undecodable_contexts == 1)  # told a moment after it is stored

    run_worker(dsn, setup, sink.opened, body)
    assert sink.activities[0].actor_id is None


def test_what_no_parser_would_descend_into_does_not_stop_capture(dsn: str) -> None:
    # Every role may emit a message: one that is nested without end must not end the worker, again at each start.
    setup, sink = laid(dsn)
    nested = "[" * 50_000 + "]" * 50_000

    async def body(worker: Worker) -> None:
        async with connect(dsn) as database, database.transaction():
            for prefix, content in (
                ("context", f'{{"unknown": {nested}}}'),
                ("event", f'{{"category": "a", "action": "b", "metadata": {nested}}}'),
                ("event", f'{{"category": "a", "action": "b", "unknown": {nested}}}'),
            ):
                await database.run(
                    "select pg_logical_emit_message(true, %(prefix)s, %(content)s)",
                    prefix=f"afterwrite.{prefix}",
                    content=content,
                )
            await database.run("insert into t values (1, 1)")
        await until(lambda: len(sink.activities) == 3)
        assert [activity.action for activity in sink.activities] == ["event.unreadable"] * 2 + ["t.insert"]
        assert worker.status().undecodable_contexts == 1

    run_worker(dsn, setup, sink.opened, body)


def test_settings_of_a_context_travel_once_a_transaction(dsn: str) -> None:
    setup, sink = laid(dsn)

    async def body(worker: Worker) -> None:
        async with connect(dsn) as database, database.transaction():
            await database.run(
                "select pg_logical_emit_message(true, 'afterwrite.context', %(stamp)s::text)",
                stamp='{"actor_id": "a", "settings": {"request.jwt.claims": "{}"}}',
            )
            await database.run("insert into t values (1, 1), (2, 2)")
        await until(lambda: len(sink.activities) == 2)

    run_worker(dsn, setup, sink.opened, body)
    (context,) = [context for batch in sink.batches for context in batch.contexts]
    assert context.settings == {"request.jwt.claims": "{}"}
    assert context.commit_lsn == sink.activities[0].commit_lsn


class Load:
    """A writer of small transactions that keeps its own ledger of what it committed."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.committed: list[tuple[str, str]] = []
        self.transactions = 0
        self.unknown = 0
        self._random = random.Random(7)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def running(self) -> Iterator[Load]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True) as connection:
                    while not self._stop.is_set():
                        number += 10
                        self._transaction(connection, number)
                        time.sleep(0.002)
            except psycopg.OperationalError:
                self.unknown += 1
                time.sleep(0.05)

    def _transaction(self, connection: psycopg.Connection, number: int) -> None:
        rows = self._random.randint(1, 4)
        rolled_back = self._random.random() < 0.1
        told: list[tuple[str, str]] = []
        with connection.transaction(force_rollback=rolled_back):
            for row in range(rows):
                connection.execute("insert into t values (%s, 0)", [number + row])
                told.append(("insert", str(number + row)))
            connection.execute("update t set a = a + 1 where id = %s", [number])
            told.append(("update", str(number)))
            if self._random.random() < 0.3:
                connection.execute("delete from t where id = %s", [number])
                told.append(("delete", str(number)))
        if not rolled_back:
            self.committed += told
            self.transactions += 1


def start_process(dsn: str, slot: str, *store: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(Path(__file__).with_name("worker_process.py")), dsn, slot, *store])


def stored(dsn: str) -> list[tuple[str, str]]:
    return run_sql(
        dsn, "select operation, entity_id from afterwrite.activity where kind = 'change' order by commit_lsn, ordinal"
    )


def prepare_store(dsn: str, setup: CaptureSetup) -> None:
    async def run() -> None:
        async with connect(dsn) as database, open_sink(dsn) as sink:
            await prepare(database, sink, setup)

    asyncio.run(run())


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.05)


def test_a_worker_killed_again_and_again_stores_everything_once(installed_dsn: str) -> None:
    dsn = installed_dsn
    run_sql(dsn, "create table public.t (id int primary key, a int)")
    setup = setup_of("t")
    prepare_store(dsn, setup)
    chance = random.Random(11)
    with Load(dsn).running() as load:
        for _ in range(8):
            process = start_process(dsn, setup.slot)
            # A worker is ready after about half a second; some are killed before, some in the middle of it.
            time.sleep(chance.uniform(0.5, 1.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
    process = start_process(dsn, setup.slot)
    wait_for(lambda: len(stored(dsn)) >= len(load.committed))
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - began < 5
    assert load.transactions > 100
    assert stored(dsn) == load.committed
    positions = [position for (position,) in run_sql(dsn, "select position from afterwrite.batch order by 1")]
    assert positions == list(range(1, len(positions) + 1))
    ((behind,),) = run_sql(
        dsn,
        "select c.lsn >= s.confirmed_flush_lsn from afterwrite.checkpoint c"
        f" join pg_replication_slots s on s.slot_name = '{setup.slot}'",
    )
    assert behind


def test_a_source_that_crashes_and_comes_back_is_followed_on(tmp_path: Path) -> None:
    # A commit whose answer is lost in a crash may or may not have happened: only the table itself knows.
    with embedded_server(settings={"fsync": "off"}) as server:
        dsn = server.dsn()

        async def lay() -> None:
            async with connect(dsn) as database:
                await install_store(database)

        asyncio.run(lay())
        run_sql(dsn, "create table public.t (id int primary key, a int)")
        setup = setup_of("t")
        prepare_store(dsn, setup)
        process = start_process(dsn, setup.slot)
        with Load(dsn).running() as load:
            for _ in range(2):
                time.sleep(1.2)
                server.restart("immediate")
            time.sleep(1)
        rows = sorted(str(id) for (id,) in run_sql(dsn, "select id from t"))

        def surviving() -> list[str]:
            told = stored(dsn)
            gone = {key for operation, key in told if operation == "delete"}
            return sorted(key for operation, key in told if operation == "insert" and key not in gone)

        wait_for(lambda: len(stored(dsn)) >= len(load.committed) and surviving() == rows)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        told = stored(dsn)
        assert len(told) == len(set(told))
        # What the crash left in doubt is at most one transaction each; all else is there, in order.
        extra = [entry for entry in told if entry not in set(load.committed)]
        assert [entry for entry in told if entry in set(load.committed)] == load.committed
        assert len(extra) <= 6 * load.unknown


def test_a_fast_shutdown_does_not_wait_for_us(tmp_path: Path) -> None:
    with embedded_server(settings={"fsync": "off"}) as server:
        dsn = server.dsn()
        setup, sink = laid(dsn)

        async def body(worker: Worker) -> None:
            await write(dsn, "insert into t values (1, 1)")
            await until(lambda: len(sink.activities) == 1)
            # WAL that is none of ours: the server waits until we confirm it too.
            await write(dsn, "create table other as select generate_series(1, 1000) as n")
            began = time.monotonic()
            await asyncio.to_thread(server.restart, "fast")
            assert time.monotonic() - began < 10
            await write(dsn, "insert into t values (2, 2)")
            await until(lambda: len(sink.activities) == 2)

        run_worker(dsn, setup, sink.opened, body)
        assert [activity.entity_id for activity in sink.activities] == ["1", "2"]
        assert sink.checkpoint is not None
        assert confirmed(dsn, setup.slot) <= sink.checkpoint.lsn


def test_a_predecessors_last_commit_is_not_stored_again(dsn: str) -> None:
    """It may land after the successor has read the checkpoint; a store refuses to go back, the worker goes forward."""
    setup, first = laid(dsn)

    class Overtaken(MemorySink):
        async def write(self, batch: Batch) -> Receipt:
            assert self.checkpoint is not None
            assert batch.checkpoint is not None
            if not self.batches:
                await super().write(batch)
                self.checkpoint = msgspec.structs.replace(batch.checkpoint, lsn=Lsn(batch.checkpoint.lsn + 8))
            if batch.checkpoint.lsn < self.checkpoint.lsn:
                raise Refused("stored already, beyond that")
            return await super().write(batch)

    sink = Overtaken()
    sink.checkpoint = first.checkpoint

    async def body(worker: Worker) -> None:
        await write(dsn, "insert into t values (1, 1)")
        await until(lambda: len(sink.activities) == 1)
        await write(dsn, "insert into t values (2, 2)")
        await until(lambda: len(sink.activities) == 2)

    run_worker(dsn, setup, sink.opened, body)
    assert [activity.entity_id for activity in sink.activities] == ["1", "2"]


@asynccontextmanager
async def _never() -> AsyncIterator[Sink]:
    raise ConnectionLost("no sink")
    yield


def test_a_worker_that_only_waits_can_be_stopped(dsn: str) -> None:
    setup, _ = laid(dsn)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.WAITING)
        assert worker.status().trouble == "no sink"

    began = time.monotonic()
    run_worker(dsn, setup, _never, body, pace=msgspec.structs.replace(QUICK, first_pause_ms=30_000))
    assert time.monotonic() - began < 5


def test_a_source_that_was_lost_is_no_failure_of_a_stop_that_is_broken_off(dsn: str) -> None:
    setup, sink = laid(dsn)
    closing = asyncio.Event()

    @asynccontextmanager
    async def closes_slowly() -> AsyncIterator[Sink]:
        async with sink.opened() as opened:
            try:
                yield opened
            finally:
                closing.set()
                over = time.monotonic() + 0.5
                while time.monotonic() < over:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.05)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        run_sql(
            dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where application_name = 'afterwrite worker {setup.slot}'",
        )
        await closing.wait()

    worker = run_worker(dsn, setup, closes_slowly, body, pace=msgspec.structs.replace(QUICK, stop_seconds=0.1))
    assert worker.status().state is WorkerState.STOPPED


class Forgetful:
    """An observer that loses its connection once, and with it what it counted and had not settled."""

    def __init__(self) -> None:
        self.counted: list[Transaction] = []
        self.settled: list[Transaction] = []
        self.first: Lsn | None = None
        self.fails = True

    async def begin(self, at: Lsn) -> Lsn:
        self.counted = []
        self.first = self.first or at
        return self.settled[-1].end_lsn if self.settled else self.first

    async def observe(self, transactions: Sequence[Transaction]) -> None:
        for transaction in transactions:
            if self.counted and self.fails and transaction.changes:
                self.fails, self.counted = False, []
                raise ConnectionLost("cut")
            known = {each.commit_lsn for each in self.settled}
            if transaction.changes and transaction.commit_lsn not in known:
                self.counted.append(transaction)

    async def settle(self) -> None:
        self.settled += self.counted
        self.counted = []


class LongSink(MemorySink):
    """Takes longer for a batch than it is until the next settling."""

    async def write(self, batch: Batch) -> Receipt:
        await asyncio.sleep(0.4 if len(batch.activities) else 0)
        return await super().write(batch)


def test_what_an_observer_forgot_is_not_acknowledged_while_the_batch_in_flight_is_stored(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key, a int)")
    setup, sink, observer = setup_of("t"), LongSink(), Forgetful()
    install(dsn, setup, sink)

    async def body(_: Worker) -> None:
        for number in (1, 2, 3):
            await write(dsn, f"insert into t values ({number}, 1)")
            await until(lambda number=number: len(sink.activities) == number)

    pace = msgspec.structs.replace(QUICK, settle_seconds=0.5)
    run_worker(dsn, setup, sink.opened, body, observers=(observer,), pace=pace)
    assert not observer.fails
    assert [change.key for each in observer.settled for change in each.changes] == ["1", "2", "3"]


def test_two_sources_that_see_the_same_transactions_keep_none_of_each_others_out(installed_dsn: str) -> None:
    dsn = installed_dsn
    run_sql(dsn, "create table public.t (id int primary key, a int)")
    run_sql(dsn, "create table public.u (id int primary key)")
    first, second = setup_of("t"), setup_of("t", "u")
    second = msgspec.structs.replace(second, source="second", publication="two", legacy_publication="two_legacy")

    async def run() -> None:
        for setup in (first, second):
            async with connect(dsn) as database, open_sink(dsn) as sink:
                await prepare(database, sink, setup)
        # Another row comes first for each, so that their ordinals tell different rows.
        await write(dsn, "with u as (insert into public.u values (7)) insert into public.t values (1, 1)")
        for setup in (first, second):
            source = Source(
                dsn=dsn,
                name=setup.source,
                slot=setup.slot,
                publications=setup.publications,
                legacy_publication=setup.legacy_publication,
            )
            worker = Worker(source, lambda: open_sink(dsn), pace=QUICK)
            task = asyncio.create_task(worker.run())
            await until(lambda worker=worker, setup=setup: worker.status().rows == len(setup.tables))
            worker.stop()
            await task

    asyncio.run(run())
    assert run_sql(dsn, "select source, relation, entity_id from afterwrite.activity order by 1, 2, 3") == [
        ("main", "public.t", "1"),
        ("second", "public.t", "1"),
        ("second", "public.u", "7"),
    ]
