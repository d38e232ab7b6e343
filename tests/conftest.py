"""One cluster a session, one database a test, both real. AFTERWRITE_PG_BIN names other binaries than the wheel's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server, find_installation
from afterwrite.store.schema import install_store

_TEMPLATE = "installed"


def pytest_report_header() -> str:
    installation = find_installation()
    return f"PostgreSQL {installation.version} from {installation.bin_dir}"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL of the session's own."""
    with embedded_server(settings={"fsync": "off"}) as running:
        yield running


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    """A fresh empty database, dropped afterwards together with its slots."""
    with _database(server, "template1") as words:
        yield words


@pytest.fixture
def installed_dsn(server: Server, _installed_template: str) -> Iterator[str]:
    """A fresh database with our schema in it, dropped afterwards together with its slots."""
    with _database(server, _installed_template) as words:
        yield words


@pytest.fixture(scope="session")
def _installed_template(server: Server) -> str:
    async def install() -> None:
        async with connect(server.dsn(_TEMPLATE)) as db:
            await install_store(db)

    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {_TEMPLATE}")
    asyncio.run(install())
    return _TEMPLATE


@contextmanager
def _database(server: Server, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(4)}"
    strategy = "strategy file_copy" if server.version >= 15 else ""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name} template {template} {strategy}")
    try:
        yield server.dsn(name)
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
            admin.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where database = %s and active",
                [name],
            )
            slots = admin.execute("select slot_name from pg_replication_slots where database = %s", [name]).fetchall()
            for (slot,) in slots:
                admin.execute("select pg_drop_replication_slot(%s)", [slot])
            admin.execute(f"drop database {name} with (force)")
