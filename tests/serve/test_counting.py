"""Reports of a store without a worker: the server counts what nobody else does."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from serving import Client, an_event, serving, store, write

from afterwrite.serve import counting
from afterwrite.settings import Settings


def waiting(client: Client) -> int:
    """How many batches wait to be counted, as a report says."""
    return client.get("/v1/analytics/activity").json["as_of"]["behind_batches"]


def until_counted(client: Client) -> None:
    end = time.monotonic() + 10
    while waiting(client):
        assert time.monotonic() < end, "nobody counted"
        time.sleep(0.05)


def test_the_server_counts_what_waits_and_leaves_it_to_who_counts_already(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(counting, "LEFT_SECONDS", 0.0)
    with store(server) as dsn, serving(Settings(dsn=dsn)) as client:
        write(dsn, an_event(1, datetime.now(UTC)))
        until_counted(client)
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("select pg_advisory_lock(hashtextextended('afterwrite.rollup', 0))")
            before = waiting(client)
            write(dsn, an_event(2, datetime.now(UTC)))
            time.sleep(0.4)
            assert waiting(client) > before
        until_counted(client)
