"""The store on a server of its own that stops, stands still, refuses or is full: waited out, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from capture_rig import MemorySink, install, setup_of
from test_standby import ended
from test_worker import run_sql, start_process, stored, until, wait_for

from afterwrite.capture.backlog import Pace
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.worker import Source, Worker, WorkerState
from afterwrite.errors import DatabaseError
from afterwrite.postgres import connect, translate
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.record import Batch, Receipt
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink


@pytest.fixture(scope="module")
def store() -> Iterator[Server]:
    with embedded_server(settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
def store_dsn(store: Server) -> Iterator[str]:
    with psycopg.connect(store.dsn(), autocommit=True) as admin:
        admin.execute("create database outage")
    yield store.dsn("outage")
    with psycopg.connect(store.dsn(), autocommit=True) as admin:
        admin.execute("drop database outage with (force)")


def laid(dsn: str, store_dsn: str) -> CaptureSetup:
    run_sql(dsn, "create table public.t (id int primary key, a int)")
    setup = setup_of("t")

    async def lay() -> None:
        async with connect(store_dsn) as store:
            await install_store(store)
        async with connect(dsn) as database, open_sink(store_dsn) as sink:
            await prepare(database, sink, setup)

    asyncio.run(lay())
    return setup


def write(dsn: str, number: int) -> None:
    run_sql(dsn, f"insert into t values ({number}, 0)")


def keys(dsn: str) -> list[str]:
    return [key for _, key in stored(dsn)]


def claimed(dsn: str) -> bool:
    """Whether a worker has come so far that it hears a signal."""
    ours = "application_name like 'afterwrite worker%' and datname = current_database()"
    return run_sql(dsn, f"select count(*) from pg_stat_activity where {ours}") == [(1,)]


def ends_in_time(process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert time.monotonic() - began < 5


@contextlib.contextmanager
def standing_still(store: Server) -> Iterator[None]:
    """Every process of the store's server stopped where it is: what is sent to it is accepted and not answered."""
    assert store.pid is not None
    pids = [store.pid]
    try:
        # Its parent first: no child comes or is forgotten after that, though one may just have ended.
        os.kill(store.pid, signal.SIGSTOP)
        pids += map(int, Path(f"/proc/{store.pid}/task/{store.pid}/children").read_text().split())
        for pid in pids[1:]:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_store_that_is_stopped_and_started_again_misses_nothing(
    installed_dsn: str, store: Server, store_dsn: str
) -> None:
    dsn, setup = installed_dsn, laid(installed_dsn, store_dsn)
    process = start_process(dsn, setup.slot, store_dsn)
    with ended(process):
        write(dsn, 1)
        wait_for(lambda: keys(store_dsn) == ["1"])
        for number, mode in ((2, "fast"), (3, "immediate")):
            store.stop(mode)
            write(dsn, number)
            time.sleep(1)
            assert process.poll() is None
            store.start()
            wait_for(lambda number=number: keys(store_dsn)[-1:] == [str(number)])
        ends_in_time(process)
        assert keys(store_dsn) == ["1", "2", "3"]
        process = start_process(dsn, setup.slot, store_dsn)
    with ended(process):
        store.stop("immediate")
        write(dsn, 4)
        wait_for(lambda: claimed(dsn))
        time.sleep(1)
        ends_in_time(process)
        store.start()
        process = start_process(dsn, setup.slot, store_dsn)
    with ended(process):
        wait_for(lambda: keys(store_dsn) == ["1", "2", "3", "4"])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a server's processes in /proc")
def test_a_store_that_stands_still_keeps_neither_the_stream_nor_the_stop_waiting(
    installed_dsn: str, store: Server, store_dsn: str
) -> None:
    dsn, setup = installed_dsn, laid(installed_dsn, store_dsn)
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    run_sql(dsn, f"alter database {database} set wal_sender_timeout = '1s'")
    process = start_process(dsn, setup.slot, store_dsn)
    with ended(process):
        write(dsn, 1)
        wait_for(lambda: keys(store_dsn) == ["1"])
        slot = f"select active_pid, confirmed_flush_lsn from pg_replication_slots where slot_name = '{setup.slot}'"
        with standing_still(store):
            write(dsn, 2)
            ((before, _),) = run_sql(dsn, slot)
            time.sleep(3)
            ((after, _),) = run_sql(dsn, slot)
            assert before == after
            ends_in_time(process)
        process = start_process(dsn, setup.slot, store_dsn)
    with ended(process):
        wait_for(lambda: keys(store_dsn) == ["1", "2"])
        ends_in_time(process)


def test_a_store_that_lets_nobody_in_for_a_while_is_waited_out(
    installed_dsn: str, store: Server, store_dsn: str
) -> None:
    dsn, setup = installed_dsn, laid(installed_dsn, store_dsn)
    process = start_process(dsn, setup.slot, store_dsn)
    with ended(process):
        write(dsn, 1)
        wait_for(lambda: keys(store_dsn) == ["1"])
        with psycopg.connect(store.dsn(), autocommit=True) as admin:
            admin.execute("alter database outage with allow_connections false")
            admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'outage'")
            write(dsn, 2)
            time.sleep(1)
            assert process.poll() is None
            admin.execute("alter database outage with allow_connections true")
        wait_for(lambda: keys(store_dsn) == ["1", "2"])
        ends_in_time(process)


class RefusingSink(MemorySink):
    """Says no in the server's words until it does not."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.error: Callable[[], Exception] | None = error

    async def write(self, batch: Batch) -> Receipt:
        if self.error and batch.activities:
            raise self.error()
        return await super().write(batch)


def _said(kind: type[psycopg.Error]) -> Exception:
    return translate(kind("said so"), "shop@store:5432")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (psycopg.errors.DiskFull, "has no room left"),
        (psycopg.errors.ReadOnlySqlTransaction, "is read-only"),
        (psycopg.errors.CannotConnectNow, "ended the connection"),
        (psycopg.errors.TooManyConnections, "has no connection left"),
        (psycopg.errors.OutOfMemory, "said: said so"),
        (psycopg.errors.LockNotAvailable, "lock was not to be had"),
        (psycopg.errors.DeadlockDetected, "said: said so"),
        (psycopg.errors.QueryCanceled, "stopped the statement"),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_what_a_store_says_for_a_while_is_waited_out_and_told(dsn: str, error: type[psycopg.Error], words: str) -> None:
    run_sql(dsn, "create table t (id int primary key, a int)")
    setup = setup_of("t")
    first, _ = install(dsn, setup)
    sink = RefusingSink(lambda: _said(error))
    sink.checkpoint = first.checkpoint

    async def run() -> None:
        pace = Pace(linger_ms=5, pulse_seconds=0.1, first_pause_ms=20, longest_pause_ms=100)
        worker = Worker(Source(dsn=dsn, name="main", slot=setup.slot), sink.opened, pace=pace)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            await until(lambda: worker.status().state is WorkerState.STREAMING)
            run_sql(dsn, "insert into t values (1, 1)")
            await until(lambda: words in (worker.status().trouble or ""))
            await asyncio.sleep(0.2)
            sink.error = None
            await until(lambda: len(sink.activities) == 1)
            await until(lambda: worker.status().trouble is None)
            worker.stop()

    asyncio.run(run())


def test_a_defect_is_not_waited_out(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key, a int)")
    setup = setup_of("t")
    first, _ = install(dsn, setup)
    sink = RefusingSink(lambda: _said(psycopg.errors.UndefinedColumn))
    sink.checkpoint = first.checkpoint

    async def run() -> None:
        worker = Worker(Source(dsn=dsn, name="main", slot=setup.slot), sink.opened, pace=Pace(linger_ms=5))
        run_sql(dsn, "insert into t values (1, 1)")
        async with asyncio.timeout(20):
            await worker.run()

    with pytest.raises(DatabaseError, match="said so"):
        asyncio.run(run())
