"""The operator's side: budget, stand-by, gap and the one command after it, as the command line shows them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from test_bad_input import AUDITED, afterwrite, refused, start

from afterwrite.postgres.embedded import Server, embedded_server


@pytest.fixture(scope="module")
def store() -> Iterator[Server]:
    with embedded_server(settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
def apart(dsn: str, store: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A source whose store is on another server, installed; the settings are in the environment."""
    name = dsn.rpartition("dbname=")[2]
    with psycopg.connect(store.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")
    monkeypatch.setenv("AFTERWRITE_SLOT", "t_" + name.rpartition("test_")[2])
    monkeypatch.setenv("AFTERWRITE_DSN", dsn)
    monkeypatch.setenv("AFTERWRITE_STORE_DSN", store.dsn(name))
    run_sql(dsn, AUDITED)
    assert run("install", "--apply").returncode == 0
    yield store.dsn(name)
    if store.pid is None:
        store.start()


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("AFTERWRITE_DSN", "AFTERWRITE_STORE_DSN")}
    return afterwrite(*words, **{**kept, **environment})


@contextlib.contextmanager
def running(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command beside the test, gone when the test is."""
    with start(*words, **environment) as process:
        try:
            yield process
        finally:
            process.kill()


def run_sql(dsn: str, script: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(script.encode())
        return cursor.fetchall() if cursor.description else []


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.05)


def lines_until(worker: subprocess.Popen[str], state: str) -> None:
    assert worker.stdout is not None
    while f'"state":"{state}"' not in worker.stdout.readline():
        assert worker.poll() is None


def test_over_the_budget_the_slot_is_given_up_and_one_command_begins_anew(dsn: str, apart: str, store: Server) -> None:
    budget = {"AFTERWRITE_WAL_BUDGET": "1MB", "AFTERWRITE_OVER_BUDGET": "give-up"}
    with running("capture", "--json", **budget) as worker:
        lines_until(worker, "streaming")
        run_sql(dsn, "insert into public.orders values (1, 1)")
        wait_for(lambda: run_sql(apart, "select count(*) from afterwrite.activity") == [(1,)])
        store.stop("immediate")
        run_sql(dsn, "insert into public.orders select g, 1 from generate_series(100, 6000) g")
        said = worker.communicate(timeout=30)
    assert worker.returncode == 5, said
    assert "was given up: it kept" in said[1]
    assert '"health":"over"' in said[0]
    assert run_sql(dsn, "select count(*) from pg_replication_slots where slot_name ~ '^t_'") == [(0,)]
    store.start()
    refused(run("capture"), 5, "was given up at 20", "afterwrite install --apply")
    refused_by_doctor = json.loads(run("doctor", "--json").stdout)
    assert [each["rule"] for each in refused_by_doctor["findings"] if each["severity"] == "error"] == ["slot.given_up"]
    looked = run("install")
    assert "create slot" in looked.stdout
    mended = run("install", "--apply")
    assert mended.returncode == 0, mended
    assert "gap:" in mended.stderr
    gap = "select source, from_lsn < to_lsn, to_lsn = (select lsn from afterwrite.checkpoint), reason ~ 'wal_budget'"
    assert run_sql(apart, f"{gap} from afterwrite.gap") == [("main", True, True, True)]
    with running("capture", "--json", **budget) as worker:
        lines_until(worker, "streaming")
        run_sql(dsn, "insert into public.orders values (2, 1)")
        wait_for(lambda: run_sql(apart, "select count(*) from afterwrite.activity") == [(2,)])
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
        worker.communicate()
    numbers = {each["rule"]: each for each in json.loads(run("doctor", "--json").stdout)["findings"]}
    assert "of WAL, of 8.0 GiB (alarm only)" in numbers["slot.numbers"]["text"]
    assert "max_slot_wal_keep_size" in numbers["server.slot_keep"]["remedy"]
    assert "fsync = off" in numbers["store.fsync"]["text"]


@contextlib.contextmanager
def standing_still(store: Server) -> Iterator[None]:
    """Every process of the store's server stopped where it is: what is sent to it is accepted and not answered."""
    assert store.pid is not None
    children = Path(f"/proc/{store.pid}/task/{store.pid}/children").read_text().split()
    pids = [store.pid, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a server's processes in /proc")
def test_the_whole_command_stops_in_time_while_the_store_is_gone_or_hangs(dsn: str, apart: str, store: Server) -> None:
    def stops_in_time(worker: subprocess.Popen[str]) -> None:
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        said = worker.communicate(timeout=20)
        took = time.monotonic() - began
        assert worker.returncode == 0, said
        assert took < 5, (took, said)

    with running("capture", "--json") as worker:
        lines_until(worker, "streaming")
        with standing_still(store):
            run_sql(dsn, "insert into public.orders values (1, 1)")
            time.sleep(1)
            stops_in_time(worker)
    with running("capture", "--json") as worker:
        lines_until(worker, "streaming")
        store.stop("immediate")
        run_sql(dsn, "insert into public.orders values (2, 1)")
        lines_until(worker, "waiting")
        stops_in_time(worker)
        store.start()


def test_another_store_is_refused_and_may_take_over_with_a_word(dsn: str, apart: str, store: Server) -> None:
    with psycopg.connect(store.dsn(), autocommit=True) as admin:
        admin.execute("create database second")
    second = {"AFTERWRITE_STORE_DSN": store.dsn("second")}
    refused(run("install", "--apply", **second), 5, "belongs to another store", "--accept-gap")
    assert run("install", "--apply", "--accept-gap", **second).returncode == 0
    assert run_sql(store.dsn("second"), "select reason ~ 'taken over' from afterwrite.gap") == [(True,)]
    refused(run("capture"), 5, "belongs to another store")


def test_a_second_worker_stands_by_and_takes_over(dsn: str, apart: str) -> None:
    with running("capture", "--json") as first:
        lines_until(first, "streaming")
        with running("capture") as second:
            assert second.stderr is not None
            assert "standing by: pid" in second.stderr.readline()
            first.kill()
            killed = time.monotonic()
            assert "taking over" in second.stderr.readline()
            run_sql(dsn, "insert into public.orders values (1, 1)")
            wait_for(lambda: run_sql(apart, "select count(*) from afterwrite.activity") == [(1,)])
            assert time.monotonic() - killed < 5
            second.send_signal(signal.SIGTERM)
            second.communicate(timeout=10)
        first.communicate()
    assert second.returncode == 0
