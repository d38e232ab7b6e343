"""``afterwrite outbox`` and ``capture --outbox-only``: on a server that gives no slot, from the first to the last."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest
from outbox_scene import count, post, stored

from afterwrite.cli.app import command
from afterwrite.cli.face import show_error
from afterwrite.errors import AfterwriteError
from afterwrite.postgres.embedded import embedded_server


@pytest.fixture(scope="module")
def plain_server() -> Iterator[dict[str, str]]:
    """A server whose WAL is not logical, with a database for the application and one for the store."""
    with embedded_server(settings={"fsync": "off", "wal_level": "replica", "max_wal_senders": "0"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("create database shop")
            admin.execute("create database store")
        yield {"AFTERWRITE_DSN": server.dsn("shop"), "AFTERWRITE_STORE_DSN": server.dsn("store"), "COLUMNS": "80"}


def test_install_post_drain_retry_and_remove(
    plain_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop, store = plain_server["AFTERWRITE_DSN"], plain_server["AFTERWRITE_STORE_DSN"]
    for name, value in plain_server.items():
        monkeypatch.setenv(name, value)

    def afterwrite(*words: str, code: int = 0) -> str:
        """As the command does it, without a new interpreter each time."""
        try:
            found = command()(list(words), standalone_mode=False)
        except AfterwriteError as error:
            show_error(error)
            found = error.exit_code
        told = capsys.readouterr()
        assert found == code, told
        return told.out + told.err

    shown = afterwrite("outbox", "install")
    assert "create or replace function afterwrite_outbox.post(payload text)" in shown
    assert "lay schema 0001 store in store@" in shown
    told = json.loads(afterwrite("outbox", "install", "--apply", "--json"))
    assert (told["applied"], told["steps"][-1]["text"]) == (True, "let every role post")
    with psycopg.connect(shop, autocommit=True) as conn:
        for number in range(3):
            post(conn, f"n{number}")
        conn.execute("select afterwrite_outbox.post('unreadable')")
    assert "holds 4 events that are not delivered" in afterwrite("outbox", "remove", "--apply", "--now", code=5)
    worker = subprocess.Popen(
        [sys.executable, "-m", "afterwrite", "capture", "--outbox-only", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 20
    while count(shop, "afterwrite_outbox.event") and time.monotonic() < until:
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    lines, errors = worker.communicate(timeout=10)
    assert worker.returncode == 0, errors
    last = json.loads(lines.splitlines()[-1])["outbox"]
    assert (last["stored"], last["refused"], last["laid"]) == (3, 1, True)
    assert [row["action"] for row in stored(store)] == ["n0", "n1", "n2"]
    assert "1 event could not be stored" in afterwrite("outbox", "status")
    # What capture would need is off here, and nothing that is wrong.
    found = {each["rule"]: each for each in json.loads(afterwrite("doctor", "--json"))["findings"]}
    assert found["outbox.refused"]["severity"] == "warning"
    assert "events in transactions go by the outbox" in found["capture-off"]["text"]
    assert "row changes would need this: wal_level is replica" in found["server.wal_level"]["text"]
    assert not [each for each in found.values() if each["severity"] == "error"]
    assert "1 event put back" in afterwrite("outbox", "retry", "--apply")
    afterwrite("outbox", "remove", "--apply", "--now", "--discard")
    assert "wal_level is replica" in afterwrite("doctor", code=5)  # without an outbox it stands in the way
