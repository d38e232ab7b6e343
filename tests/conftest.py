"""One cluster a session, one database a test, both real.

The wheel's PostgreSQL is taken, or that of ``--pg-bin=DIR`` (AFTERWRITE_PG_BIN), or a running server that
AFTERWRITE_TEST_DSN names: there only databases of our own names are made and dropped, with the slots in them, and tests
that need a server of their own are skipped.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect, describe_dsn
from afterwrite.postgres import embedded as embedding
from afterwrite.postgres.embedded import Server, embedded_server, find_installation
from afterwrite.store.schema import install_store

_GIVEN = os.environ.get("AFTERWRITE_TEST_DSN")
_OURS = f"afterwrite_test_{secrets.token_hex(3)}"


_MEMORY = Path("/dev/shm")
_ROOM = 8 << 30
_LONG = frozenset({"test_faults.py", "test_chaos.py", "test_demo.py", "test_bench_suite.py", "test_graceful_stop.py"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pg-bin", metavar="DIR", help="run on the PostgreSQL (>= 14) whose initdb is in this folder")


def _work_in_memory() -> None:
    """Let servers and folders lie in memory where there is much of it: on a disk a database costs five times as much.

    Nothing here waits for a disk anyway (fsync is off), and a kill leaves the same files in memory. TMPDIR decides
    where somebody sets it.
    """
    if "TMPDIR" in os.environ or not _MEMORY.is_dir():
        return
    room = os.statvfs(_MEMORY)
    free = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    available = int(free[0].split()[1]) << 10 if free else 0
    if min(available, room.f_bavail * room.f_frsize) >= _ROOM and not room.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None


def pytest_configure(config: pytest.Config) -> None:
    _work_in_memory()
    # Started in the background or by nohup we ignore these, and so would every child that a test wants to interrupt.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    if folder := config.getoption("--pg-bin"):
        if _GIVEN:
            raise pytest.UsageError("--pg-bin and AFTERWRITE_TEST_DSN name two servers: leave one out")
        os.environ["AFTERWRITE_PG_BIN"] = str(Path(folder).resolve())  # for our child processes too
    if not _GIVEN:
        try:
            find_installation()
        except AfterwriteError as error:
            raise pytest.UsageError(f"{error}; {error.remedy}") from error
        return
    try:
        with psycopg.connect(_GIVEN) as connection:
            level, superuser = connection.execute(
                "select current_setting('wal_level'), current_setting('is_superuser')"
            ).fetchone() or ("", "")
    except psycopg.Error as error:
        raise pytest.UsageError(f"AFTERWRITE_TEST_DSN ({describe_dsn(_GIVEN)}) cannot be used: {error}") from error
    if (level, superuser) != ("logical", "on"):
        raise pytest.UsageError(
            f"AFTERWRITE_TEST_DSN ({describe_dsn(_GIVEN)}) needs wal_level = logical (it is {level}) and a superuser"
        )
    embedding.Server.create = _skip  # type: ignore[method-assign]


def pytest_report_header() -> str:
    if _GIVEN:
        given = GivenServer(_GIVEN)
        return f"PostgreSQL {given.version}, given by AFTERWRITE_TEST_DSN ({describe_dsn(_GIVEN)})"
    installation = find_installation()
    return f"PostgreSQL {installation.version} from {installation.bin_dir}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest first: at the end one of two workers would be busy with them alone.
    items.sort(key=lambda item: item.path.name not in _LONG)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _GIVEN and item.path.name == "test_embedded.py":  # all of it is about servers of our own
        _skip()


def _skip(*_: object) -> NoReturn:
    pytest.skip("needs a server of its own, and AFTERWRITE_TEST_DSN gives one that is not ours")


class GivenServer:
    """A server that somebody else runs: databases may be made there, and nothing else be done to it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        with psycopg.connect(dsn) as connection:
            self.version = connection.info.server_version // 10_000
            self._user = connection.info.user

    def dsn(self, dbname: str | None = None, user: str | None = None) -> str:
        """Words for any libpq client; the database of the given DSN where none is named."""
        words = conninfo_to_dict(self._dsn)
        found = words.pop("dbname", None)
        return make_conninfo("", **{**words, "user": user or self._user, "dbname": dbname or found})

    def __getattr__(self, name: str) -> NoReturn:
        _skip()


@pytest.fixture(scope="session")
def server() -> Iterator[Server | GivenServer]:
    """A PostgreSQL of the session's own, or the one that we were given."""
    if _GIVEN:
        yield GivenServer(_GIVEN)
        return
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
def _installed_template(server: Server) -> Iterator[str]:
    async def install(dsn: str) -> None:
        async with connect(dsn) as db:
            await install_store(db)

    with _database(server, "template1") as words:
        asyncio.run(install(words))
        yield conninfo_to_dict(words)["dbname"]  # type: ignore[misc]


@contextmanager
def _database(server: Server, template: str) -> Iterator[str]:
    name = f"{_OURS}_{secrets.token_hex(4)}"
    strategy = "strategy file_copy" if server.version >= 15 else ""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name} template {template} {strategy}")
    try:
        yield server.dsn(name)
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            # A transaction that stays prepared would hold its database for ever.
            orphans = admin.execute("select gid from pg_prepared_xacts where database = %s", [name]).fetchall()
            if orphans:
                with psycopg.connect(server.dsn(name), autocommit=True) as inside:
                    for (gid,) in orphans:
                        inside.execute(sql.SQL("rollback prepared {}").format(gid))
            admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
            admin.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where database = %s and active",
                [name],
            )
            slots = admin.execute("select slot_name from pg_replication_slots where database = %s", [name]).fetchall()
            for (slot,) in slots:
                admin.execute("select pg_drop_replication_slot(%s)", [slot])
            admin.execute(f"drop database {name} with (force)")
