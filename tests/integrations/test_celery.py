"""Celery: whoever asked for a task is on the row changes that it makes, through a real worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import Ignore
from celery.signals import before_task_publish, worker_process_shutdown
from celery_worker import worker_of
from stamping_scene import Scene

from afterwrite import activity, context
from afterwrite.integrations import celery as integration
from afterwrite.integrations.celery import instrument
from afterwrite.integrations.psycopg import Connection
from afterwrite.record import Level, Outcome
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.options import hold
from afterwrite.testing import Memory

DSN = [""]


def insert_one(name: str) -> None:
    with Connection.connect(DSN[0], autocommit=True) as conn:
        conn.execute("insert into things (name) values (%s)", [name])


app = Celery("tests", broker="memory://", backend="cache+memory://")
app.conf.update(
    broker_connection_retry_on_startup=False, worker_hijack_root_logger=False, task_default_queue="work",
    polling_interval=0.01, broker_transport_options={"polling_interval": 0.01}, result_chord_join_timeout=10,
)  # fmt: skip


@app.task(name="things.make")
def make(name: str, *_: object) -> str:
    insert_one(name)
    return context.current().actor_id or "nobody"


@app.task(name="things.sum")
def sum_up(found: list[str], name: str) -> list[str]:
    insert_one(name)
    return found


@app.task(name="things.retried", bind=True, max_retries=3)
def retried(self: Any, name: str) -> None:
    insert_one(f"{name} {self.request.retries}")
    if self.request.retries < 2:
        raise self.retry(exc=ValueError("not yet"), countdown=0)


@app.task(name="things.asks")
def asks(name: str) -> None:
    insert_one(name)
    make.delay("asked")
    with context.bind(actor="admin:9"):
        make.delay("on behalf")


@app.task(name="things.fails")
def fails() -> None:
    raise ZeroDivisionError("by task")


@app.task(name="things.ignored")
def ignored() -> None:
    raise Ignore


@app.task(name="things.leaves")
def leaves() -> None:
    context.amend(reason="learnt")
    context.bind(actor="left").__enter__()


@app.task(name="things.looks")
def looks() -> dict[str, Any]:
    found = context.current()
    return {name: getattr(found, name) for name in found.__struct_fields__}


@pytest.fixture
def instrumented() -> Iterator[None]:
    instrument()
    yield
    assert integration._integration is not None
    integration._integration.disconnect()
    integration._integration = None


@pytest.fixture(scope="module")
def _running_worker() -> Iterator[None]:
    with worker_of(app):
        yield


@pytest.fixture
def worker(instrumented: None, _running_worker: None) -> None:
    """A worker runs, in a thread of this process."""


def wait(asked: Any) -> Any:
    return asked.get(timeout=20, interval=0.01)


def things(rows: list[dict[str, Any]]) -> set[tuple[str | None, str | None]]:
    return {(row["name"], row["actor_id"]) for row in rows}


def test_the_initiator_is_the_actor_through_retries_chains_chords_and_what_a_task_asks_for(
    installed_dsn: str, worker: None
) -> None:
    scene = Scene(installed_dsn)
    DSN[0] = installed_dsn
    with context.bind(actor="user:1", tenant="acme", request="request-1", ip="198.51.100.7", settings={"a": "1"}):
        asked = [make.delay("plain"), retried.delay("again"), asks.delay("asks")]
        asked.append(chain(make.si("first"), make.si("second"), make.si("third")).apply_async())
        asked.append(chord(group(make.si("left"), make.si("right")), sum_up.s("sum")).apply_async())
    with context.bind(actor="user:2", reason="cleaning"):
        asked.append(make.apply_async(["other"], headers={"afterwrite": "{}", "mine": "kept"}))
    asked.append(make.delay("nobody"))
    assert [wait(each) for each in asked] == [
        "user:1", None, None, "user:1", ["user:1", "user:1"], "user:2", "task:things.make",
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    for _ in range(50):  # what a task asked for may still be running
        if len(things(rows := scene.read())) == 15:
            break
    assert things(rows) == {
        *((name, "user:1") for name in (
            "plain", "again 0", "again 1", "again 2", "asks", "asked", "first", "second", "third", "left", "right",
            "sum",
        )),
        ("on behalf", "admin:9"), ("other", "user:2"), ("nobody", "task:things.make"),
    }  # fmt: skip
    told = {(row["tenant_id"], row["request_id"], str(row["ip"])) for row in rows if row["actor_id"] == "user:1"}
    assert told == {("acme", "request-1", "198.51.100.7")}
    by_nobody = next(row for row in rows if row["name"] == "nobody")
    assert (by_nobody["actor_type"], by_nobody["tenant_id"]) == ("task", None)


def test_nothing_of_a_task_is_left_for_the_next_one(worker: None) -> None:
    for _ in range(3):
        with context.bind(actor="user:1", session="s", settings={"a": "1"}):
            wait(leaves.delay())
        found = wait(looks.delay())
        assert found.pop("settings") == {}
        assert found.pop("actor_id") == "task:things.looks"
        assert found.pop("actor_type") == "task"
        assert set(found.values()) == {None}


def test_each_run_of_a_task_is_an_activity_where_that_is_wanted(worker: None, recorded: Memory) -> None:
    wait(looks.delay())
    recorded.assert_not_recorded()
    instrument(record=True)
    with context.bind(actor="user:1"), activity.track("order.place") as placing:
        id = looks.delay().id
        found = wait(app.AsyncResult(id))
        failed = fails.delay()
        with pytest.raises(ZeroDivisionError):
            wait(failed)
        app.send_task("things.ignored")
        with pytest.raises(ValueError, match="not yet"):
            wait(retry_once.delay())
    wait(looks.delay())  # what came before has ended by then
    made = recorded.assert_recorded(
        "task.run", entity=("task", id), times=1, actor="user:1", outcome=Outcome.SUCCESS, caused_by=placing.id,
        metadata={"task": "things.looks", "queue": "work", "attempt": 1, "state": "SUCCESS"}, summary="things.looks",
        duration_ms=lambda value: value is not None,
    )  # fmt: skip
    assert made.metadata["worker"]
    assert found["caused_by"] == made.id
    recorded.assert_recorded(
        "task.run", entity=("task", failed.id), outcome=Outcome.FAILURE, severity=Level.ERROR,
        metadata={"state": "FAILURE", "error": {"type": "ZeroDivisionError", "message": "by task"}},
    )  # fmt: skip
    recorded.assert_recorded("task.run", outcome=Outcome.SUCCESS, metadata={"state": "IGNORED"})
    first = recorded.assert_recorded(
        "task.run", outcome=Outcome.FAILURE, severity=Level.WARNING, metadata={"state": "RETRY", "attempt": 1}
    )
    assert "not yet" in first.metadata["error"]["message"]
    recorded.assert_recorded("task.run", metadata={"state": "FAILURE", "attempt": 2}, caused_by=first.id)


@app.task(name="things.retry_once", bind=True, max_retries=1)
def retry_once(self: Any) -> None:
    raise self.retry(exc=ValueError("not yet"), countdown=0)


def test_a_task_that_runs_at_once_is_a_part_of_what_called_it(instrumented: None, recorded: Memory) -> None:
    with context.bind(actor="user:1", request="r"):
        found = looks.apply().get()
        assert (found["actor_id"], found["request_id"]) == ("user:1", "r")
        assert looks()["actor_id"] == "user:1", "called as a function"
    assert looks.apply().get()["actor_id"] == "task:things.looks"
    instrument(record=True, nobody=lambda task: None)
    assert looks.apply().get()["actor_id"] is None
    recorded.assert_recorded("task.run", times=1, actor=None)
    assert context.current() == context.Context()


def test_a_header_that_the_key_did_not_sign_is_not_believed(worker: None, caplog: pytest.LogCaptureFixture) -> None:
    def ask(**headers: object) -> str | None:
        def forge(headers: dict[str, Any], **_: Any) -> None:
            headers.update(forged)

        forged = headers
        before_task_publish.connect(forge, weak=False)
        try:
            return wait(looks.delay())["actor_id"]
        finally:
            before_task_publish.disconnect(forge)

    sent: dict[str, Any] = {}

    def keep(headers: dict[str, Any], **_: Any) -> None:
        sent.update(headers)

    forged = json.dumps({"actor_id": "user:root"})
    assert ask(afterwrite=forged) == "user:root", "without a key whoever may write to the broker is believed"
    for odd in (
        "",
        "{",
        "[]",
        '{"actor_id": 7}',
        7,
        {"actor_id": "user:root"},
        "[" * 100_000,
        '{"settings": {"a": 1}}',
    ):
        assert ask(afterwrite=odd) == "task:things.looks"
    instrument(key="secret")
    before_task_publish.connect(keep, weak=False)
    with context.bind(actor="user:1"):
        assert wait(looks.delay())["actor_id"] == "user:1"
    before_task_publish.disconnect(keep)
    assert ask(afterwrite=sent["afterwrite"]) == "user:1"
    assert ask(afterwrite=forged) == "task:things.looks"
    assert ask(afterwrite=sent["afterwrite"].replace("user:1", "user:0")) == "task:things.looks"
    assert "cannot be told" in caplog.text


def test_a_key_that_is_configured_or_rotated_later_signs_and_is_asked_for(worker: None) -> None:
    instrument()  # where the application is made, which is before it is configured
    sent: dict[str, dict[str, Any]] = {}

    def send_again(headers: dict[str, Any], **_: Any) -> None:
        headers.update(sent[again])

    try:
        for key in ("old", "new,old", "new"):
            hold(Options(stamp_key=key))
            with context.bind(actor=f"user:{key}"):
                before_task_publish.send("looks", headers=sent.setdefault(key, {}))
            before_task_publish.connect(send_again, weak=False)
            for again in sent:
                by = wait(looks.delay())["actor_id"]
                assert by == ("task:things.looks" if (again, key) == ("old", "new") else f"user:{again}")
            before_task_publish.disconnect(send_again)
    finally:
        before_task_publish.disconnect(send_again)
        hold(None)


def test_two_hundred_initiators_are_never_mixed(worker: None) -> None:
    asked: dict[int, Any] = {}

    def ask(first: int) -> None:
        for number in range(first, first + 50):
            with context.bind(actor=f"user:{number}"):
                asked[number] = looks.delay()

    threads = [threading.Thread(target=ask, args=[first]) for first in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: wait(each)["actor_id"] for number, each in asked.items()} == {
        number: f"user:{number}" for number in range(200)
    }


_PROGRAM = """
import os
from celery import Celery
from afterwrite.integrations.celery import instrument
from afterwrite.integrations.psycopg import Connection

folder = os.environ["QUEUE"]
app = Celery("shop", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue", "data_folder_out": f"{folder}/queue", "control_folder": f"{folder}/control",
}
instrument(record=True)

@app.task(name="things.make")
def make(name):
    with Connection.connect(os.environ["DSN"], autocommit=True) as conn:
        conn.execute("insert into things (name) values (%s)", [name])
    return os.getpid()
"""


def test_a_worker_with_processes_of_its_own_stores_who_asked_and_who_carried_it_out(
    installed_dsn: str, tmp_path: Path, instrumented: None
) -> None:
    scene = Scene(installed_dsn)
    for folder in ("queue", "control", "results"):
        tmp_path.joinpath(folder).mkdir()
    tmp_path.joinpath("shop.py").write_text(_PROGRAM)
    environment = {
        **os.environ, "DSN": installed_dsn, "QUEUE": str(tmp_path), "AFTERWRITE_STORE_DSN": installed_dsn,
        "AFTERWRITE_SPOOL_DIR": str(tmp_path / "spool"), "AFTERWRITE_SERVICE": "shop",
    }  # fmt: skip
    client = Celery("client", broker="filesystem://", backend=f"file://{tmp_path}/results", set_as_current=False)
    client.conf.broker_transport_options = {
        "data_folder_in": f"{tmp_path}/queue", "data_folder_out": f"{tmp_path}/queue",
        "control_folder": f"{tmp_path}/control",
    }  # fmt: skip
    words = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "prefork", "-c", "1", "--without-gossip",
             "--without-mingle", "--without-heartbeat", "-n", "one@test"]  # fmt: skip
    worker = subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        with context.bind(actor="user:1", request="request-1"):
            pid = wait(client.send_task("things.make", ["by a process"]))
        rows: list[dict[str, Any]] = []
        for _ in range(100):
            if len(rows := scene.read()) == 2:
                break
    finally:
        # Celery's own way to stop takes many seconds.
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert pid not in {worker.pid, os.getpid()}
    (change,) = (row for row in rows if row["kind"] == "change")
    (run,) = (row for row in rows if row["kind"] == "event")
    assert (change["name"], change["actor_id"], change["request_id"]) == ("by a process", "user:1", "request-1")
    assert (run["action"], run["actor_id"], run["source"], run["metadata"]["worker"]) == (
        "task.run", "user:1", "shop", "one@test",
    )  # fmt: skip
    assert str(change["caused_by"]) == str(run["id"])


def test_a_worker_process_that_ends_closes_its_recorder(instrumented: None, tmp_path: Path) -> None:
    recorder = activity.install(Recorder(source="tests", open_sink=None, options=Options(spool_dir=str(tmp_path))))
    worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)
    assert recorder.record("too.late").wait(1) is False
    assert recorder.stats().dropped == {"closed": 1}
