"""The recorder that is made at the first call: where it delivers to, and what it costs until then."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from afterwrite import activity
from afterwrite.errors import UsageError
from afterwrite.recorder import Options, Recorder

THREE_LINES = """
from afterwrite import activity

activity.record("report.exported", entity=("report", 7))
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A process that has recorded nothing yet, without settings."""
    activity.close(0)
    for name in list(os.environ):
        if name.startswith("AFTERWRITE_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AFTERWRITE_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.chdir(tmp_path)
    yield monkeypatch
    activity.close(0)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    known = {name: word for name, word in os.environ.items() if not name.startswith("AFTERWRITE_")}
    return {**known, "AFTERWRITE_SPOOL_DIR": str(tmp_path / "spool"), **more}


def actions(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as db:
        return [row[0] for row in db.execute("select action from afterwrite.activity order by occurred_at").fetchall()]


def test_three_lines_are_enough(installed_dsn: str, tmp_path: Path) -> None:
    """A whole process: it makes its recorder, ends, and has delivered."""
    given = environment(tmp_path, AFTERWRITE_STORE_DSN=installed_dsn)
    done = subprocess.run(
        [sys.executable, "-c", THREE_LINES],
        env=given,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert actions(installed_dsn) == ["report.exported"]
    assert list((tmp_path / "spool").glob("*.spool")) == []


def test_without_a_store_it_is_spooled_and_said_once(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert activity.record("a.b").wait(5)
        assert activity.record("a.c").wait(5)
    (said,) = caplog.records
    assert "AFTERWRITE_STORE_DSN" in said.getMessage()
    assert activity.stats().spooled == 2
    assert activity.close(0) is False


def test_what_one_process_left_the_next_one_delivers(installed_dsn: str, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("AFTERWRITE_STORE_DSN", installed_dsn)
    left = Recorder(
        source="old",
        open_sink=None,
        options=Options(spool_dir=os.environ["AFTERWRITE_SPOOL_DIR"]),
        destination=installed_dsn,
    )
    left.record("left.behind").wait(5)
    assert left.close(0) is False
    activity.record("new.one")
    for _ in range(100):
        activity.flush(1)
        if activity.stats().adopted:
            break
    assert activity.flush(10)
    assert sorted(actions(installed_dsn)) == ["left.behind", "new.one"]


def test_what_was_recorded_before_a_store_was_named_is_delivered_once_one_is(
    installed_dsn: str, fresh: pytest.MonkeyPatch
) -> None:
    assert activity.record("too.early").wait(5)
    assert activity.close(0) is False
    fresh.setenv("AFTERWRITE_STORE_DSN", installed_dsn)
    activity.record("now")
    for _ in range(100):
        activity.flush(1)
        if activity.stats().adopted:
            break
    assert activity.flush(10)
    assert sorted(actions(installed_dsn)) == ["now", "too.early"]


@pytest.mark.parametrize(
    ("variables", "file", "found"),
    [
        ({"AFTERWRITE_STORE_DSN": "a", "AFTERWRITE_DSN": "b", "DATABASE_URL": "c"}, "", "a"),
        ({"AFTERWRITE_DSN": "b", "DATABASE_URL": "c"}, 'store_dsn = "d"', "b"),
        ({"DATABASE_URL": "postgresql+psycopg://h/x"}, "", "postgresql://h/x"),
        ({"AFTERWRITE_STORE_DSN_FILE": "secret"}, "", "from a file"),
        ({}, 'store_dsn = "d"\ndsn = "e"', "d"),
        ({}, 'dsn = "e"', "e"),
        ({}, "", None),
    ],
)
def test_the_store_is_found_where_the_commands_find_it(
    fresh: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], file: str, found: str | None
) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    (tmp_path / "afterwrite.toml").write_text(file)
    for name, value in variables.items():
        fresh.setenv(name, value)
    assert activity.read_store_dsn() == found


def test_settings_that_cannot_be_are_logged_and_recording_goes_on(
    fresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.setenv("AFTERWRITE_OVERFLOW", "explode")
    with caplog.at_level(logging.ERROR):
        assert activity.record("a.b").id
    assert "overflow in AFTERWRITE_OVERFLOW cannot be" in caplog.text
    with pytest.raises(UsageError, match="overflow in AFTERWRITE_OVERFLOW"):
        activity.configure()
    with pytest.raises(UsageError, match="has a key that does not exist: spooldir"):
        activity.configure(spooldir="x")


def test_a_record_url_delivers_by_http(fresh: pytest.MonkeyPatch) -> None:
    async def run() -> list[str]:
        taken: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            body: Any = json.loads(await reader.readexactly(length))
            taken.extend(each["action"] for each in body["activities"])
            assert "authorization: bearer k1" in head
            answer = json.dumps({"stored": len(body["activities"])}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
                + answer
            )
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            fresh.setenv("AFTERWRITE_RECORD_URL", f"http://127.0.0.1:{port}")
            fresh.setenv("AFTERWRITE_RECORD_KEY", "k1")
            activity.record("a.b")
            assert await activity.aflush(10)
            await asyncio.to_thread(activity.close)
        return taken

    assert asyncio.run(run()) == ["a.b"]


def test_a_forked_worker_records_for_itself(installed_dsn: str, tmp_path: Path) -> None:
    """As gunicorn's workers do after the application was loaded, and has recorded, before the fork."""
    code = f"""
import os
from afterwrite import activity
{THREE_LINES}
activity.flush(10)
children = []
for number in range(2):
    child = os.fork()
    if child == 0:
        with activity.track("in.child"):
            activity.record("inside")
        os._exit(0 if activity.close(10) else 1)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
activity.record("in.parent")
"""
    given = environment(tmp_path, AFTERWRITE_STORE_DSN=installed_dsn)
    done = subprocess.run(
        [sys.executable, "-c", code], env=given, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(actions(installed_dsn)) == sorted(
        ["report.exported", "inside", "in.child", "inside", "in.child", "in.parent"]
    )


def test_importing_afterwrite_loads_next_to_nothing() -> None:
    code = """
import sys
before = set(sys.modules)
import afterwrite
assert not {"msgspec", "psycopg", "asyncio", "sqlite3"} & (set(sys.modules) - before)
assert afterwrite.Category.DATA == "data"
from afterwrite import activity, context
loaded = set(sys.modules)
assert not {name for name in loaded if name.startswith(("afterwrite.store", "afterwrite.capture", "afterwrite.scan"))}
assert not {"psycopg", "pydantic", "typer"} & loaded, {"psycopg", "pydantic", "typer"} & loaded
try:
    afterwrite.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
