"""One worker is active and any number stand by: killed, frozen, woken again, nothing is lost and nothing doubled."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from capture_rig import setup_of
from test_worker import Load, prepare_store, run_sql, start_process, stored, until, wait_for

from afterwrite.capture.backlog import Pace
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.worker import Source, Worker, WorkerState
from afterwrite.store.writer import open_sink


def laid(dsn: str) -> CaptureSetup:
    run_sql(dsn, "create table public.t (id int primary key, a int)")
    setup = setup_of("t")
    prepare_store(dsn, setup)
    return setup


Launch = Callable[[str, str], "subprocess.Popen[bytes]"]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Worker processes that are gone when the test is, however it ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(dsn: str, slot: str) -> subprocess.Popen[bytes]:
        started.append(start_process(dsn, slot))
        return started[-1]

    yield start
    with ended(*started):
        pass


@contextlib.contextmanager
def ended(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)


def claims(dsn: str, slot: str) -> Callable[[], int]:
    """How many workers there are, the active one among them."""
    query = f"select count(*) from pg_stat_activity where application_name = 'afterwrite worker {slot}'"
    return lambda: run_sql(dsn, query)[0][0]


def streaming(dsn: str, slot: str) -> int | None:
    return run_sql(dsn, f"select active_pid from pg_replication_slots where slot_name = '{slot}'")[0][0]


def test_a_stand_by_takes_over_within_five_seconds_when_the_active_worker_is_killed(
    installed_dsn: str, launch: Launch
) -> None:
    dsn = installed_dsn
    setup = laid(dsn)
    workers = claims(dsn, setup.slot)
    first = launch(dsn, setup.slot)
    wait_for(lambda: streaming(dsn, setup.slot) is not None)
    launch(dsn, setup.slot)
    with Load(dsn).running() as load:
        wait_for(lambda: workers() == 2)
        time.sleep(0.5)
        before = streaming(dsn, setup.slot)
        first.kill()
        killed = time.monotonic()
        wait_for(lambda: streaming(dsn, setup.slot) not in (None, before))
        seen = len(stored(dsn))
        wait_for(lambda: len(stored(dsn)) > seen)
        took = time.monotonic() - killed
        assert took < 5, took
        launch(dsn, setup.slot)
        wait_for(lambda: workers() == 2)
    wait_for(lambda: len(stored(dsn)) >= len(load.committed))
    assert stored(dsn) == load.committed


def test_a_frozen_worker_is_replaced_and_neither_doubles_nor_loses_when_it_wakes(
    installed_dsn: str, launch: Launch
) -> None:
    dsn = installed_dsn
    setup = laid(dsn)
    workers = claims(dsn, setup.slot)
    first = launch(dsn, setup.slot)
    wait_for(lambda: streaming(dsn, setup.slot) is not None)
    second = launch(dsn, setup.slot)
    with Load(dsn).running() as load:
        wait_for(lambda: workers() == 2)
        for frozen in (first, second):
            before = streaming(dsn, setup.slot)
            time.sleep(0.3)
            frozen.send_signal(signal.SIGSTOP)
            wait_for(lambda before=before: streaming(dsn, setup.slot) not in (None, before))
            seen = len(stored(dsn))
            wait_for(lambda seen=seen: len(stored(dsn)) > seen)
            frozen.send_signal(signal.SIGCONT)
            wait_for(lambda: workers() == 2)
            assert frozen.poll() is None
    wait_for(lambda: len(stored(dsn)) >= len(load.committed))
    time.sleep(0.3)
    assert stored(dsn) == load.committed
    positions = [position for (position,) in run_sql(dsn, "select position from afterwrite.batch order by 1")]
    assert positions == list(range(1, len(positions) + 1))


def test_a_batch_that_a_frozen_worker_left_open_does_not_hold_its_successor_up(installed_dsn: str) -> None:
    dsn = installed_dsn
    setup = laid(dsn)
    name = "afterwrite sink of a frozen worker"
    with psycopg.connect(dsn, application_name=name) as frozen:
        frozen.execute("select * from afterwrite.checkpoint for update")

        async def run() -> None:
            worker = Worker(
                Source(dsn=dsn, name="main", slot=setup.slot),
                lambda: open_sink(dsn, application_name=name, sole=True),
                pace=Pace(linger_ms=5, pulse_seconds=0.1),
            )
            task = asyncio.create_task(worker.run())
            run_sql(dsn, "insert into t values (1, 1)")
            await asyncio.to_thread(wait_for, lambda: stored(dsn), 10)
            worker.stop()
            await task

        asyncio.run(run())
        with contextlib.suppress(psycopg.Error):
            frozen.rollback()


def test_a_stand_by_says_for_whom_and_ends_at_once_when_told(installed_dsn: str) -> None:
    dsn = installed_dsn
    setup = laid(dsn)

    async def run() -> None:
        def worker() -> Worker:
            source = Source(dsn=dsn, name="main", slot=setup.slot)
            return Worker(source, lambda: open_sink(dsn), pace=Pace(pulse_seconds=0.1), stand_by=True)

        first, second = worker(), worker()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(first.run())
            await until(lambda: first.status().state is WorkerState.STREAMING)
            standing = group.create_task(second.run())
            await until(lambda: second.status().active_pid is not None)
            assert second.status().state is WorkerState.STANDING_BY
            ((pid,),) = run_sql(
                dsn,
                f"select pid from pg_stat_activity where application_name = 'afterwrite worker {setup.slot}'"
                " order by backend_start limit 1",
            )
            assert second.status().active_pid == pid
            began = time.monotonic()
            second.stop()
            await standing
            assert time.monotonic() - began < 1
            first.stop()

    asyncio.run(run())
