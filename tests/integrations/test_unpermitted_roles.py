"""A role that may not write logical messages: its transactions go on as without us, and somebody is told once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest
from django.db import connection, connections, transaction
from django_site import Thing, connect_django
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from stamping_scene import Scene
from test_asyncpg_stamps import words
from test_sqlalchemy_stamps import url

from afterwrite import context
from afterwrite.capture.stamping import apply_steps, plan_install
from afterwrite.integrations.psycopg import AsyncConnection, Connection
from afterwrite.integrations.sqlalchemy import instrument
from afterwrite.postgres import LockPolicy, connect
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.connections import stamp
from afterwrite.recorder.outbox import known
from afterwrite.recorder.stamp import permits

INSERT = "insert into things (name) values ('{}')"


def function_of(admin: psycopg.Connection) -> str:
    return f"pg_logical_emit_message(bool, text, text{', bool' if admin.info.server_version >= 170_000 else ''})"


@pytest.fixture
def denied(installed_dsn: str) -> Iterator[tuple[Scene, str, Callable[[str], object]]]:
    """A database, how a role connects to it that a DBA has taken the right, and the DBA."""
    scene = Scene(installed_dsn)
    role = f"writer_{secrets.token_hex(3)}"
    permits.forget()
    known.forget()
    with psycopg.connect(installed_dsn, autocommit=True) as admin:
        function = function_of(admin)
        admin.execute(f"create role {role} login".encode())
        admin.execute(f"grant all on things, parts to {role}; grant create on schema public to {role}".encode())
        admin.execute(f"revoke execute on function {function} from public".encode())
        try:
            yield (
                scene,
                make_conninfo(installed_dsn, user=role),
                lambda sql: admin.execute(sql.format(function=function, role=role).encode()),
            )
        finally:
            admin.execute(f"drop owned by {role} cascade; drop role {role}".encode())
            permits.forget()
            known.forget()


def by_psycopg(dsn: str) -> None:
    with Connection.connect(dsn) as conn:
        conn.execute(INSERT.format("1"))
        conn.cursor().executemany("insert into things (name) values (%s)", [["2"], ["3"]])
        stamp(conn)
        conn.commit()
        with conn.pipeline(), conn.transaction():
            conn.execute(INSERT.format("4"))
        conn.autocommit = True
        conn.execute(INSERT.format("5"))
        with conn.cursor().copy("copy things (name) from stdin") as rows:
            rows.write_row(["6"])


async def by_psycopg_async(dsn: str) -> None:
    async with await AsyncConnection.connect(dsn) as conn:
        await conn.execute(INSERT.format("1"))
        await stamp(conn)  # type: ignore[misc]
        await conn.commit()
        await conn.set_autocommit(True)
        await conn.execute(INSERT.format("2"))
        await conn.cursor().executemany("insert into things (name) values (%s)", [["3"], ["4"]])
        async with conn.cursor().copy("copy things (name) from stdin") as rows:
            await rows.write_row(["5"])
        async for _ in conn.cursor().stream(INSERT.format("6") + " returning id"):
            pass


async def by_asyncpg(dsn: str) -> None:
    conn = await asyncpg.connect(**words(dsn))
    await conn.execute(INSERT.format("1"))
    await conn.execute("insert into things (name) values ($1)", "2")
    async with conn.transaction():
        await conn.fetch(INSERT.format("3") + " returning id")
        await stamp(conn)  # type: ignore[misc]
        await conn.copy_records_to_table("things", records=[("4",)], columns=["name"])
        await (await conn.prepare("insert into things (name) values ($1)")).fetch("5")
    await conn.executemany("insert into things (name) values ($1)", [("6",)])
    await conn.close()


def by_sqlalchemy(dsn: str) -> None:
    engine = create_engine(url(dsn, "psycopg"))
    instrument(engine)
    with engine.begin() as conn:
        conn.execute(text(INSERT.format("1")))
        stamp(conn)
        conn.execute(text(INSERT.format("2")))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        for name in "3456":
            conn.execute(text(INSERT.format(name)))
    engine.dispose()


async def by_sqlalchemy_async(dsn: str) -> None:
    engine = create_async_engine(url(dsn, "asyncpg"))
    instrument(engine)
    for name in "123456":
        async with engine.begin() as conn:
            await conn.execute(text(INSERT.format(name)))
            await stamp(conn)  # type: ignore[misc]
    await engine.dispose()


def by_django(dsn: str) -> None:
    connect_django(dsn)
    try:
        Thing.objects.create(name="1")
        with transaction.atomic():
            Thing.objects.bulk_create([Thing(name="2"), Thing(name="3")])
            stamp(connection)
        with connection.cursor() as cursor:
            cursor.execute(INSERT.format("4"))
            cursor.executemany("insert into things (name) values (%s)", [["5"], ["6"]])
    finally:
        connections.close_all()


@pytest.mark.parametrize(
    "write", [by_psycopg, by_psycopg_async, by_asyncpg, by_sqlalchemy, by_sqlalchemy_async, by_django]
)
def test_it_writes_as_without_us_and_the_log_says_once_what_to_grant(
    denied: tuple[Scene, str, Callable[[str], object]], write: Callable[[str], object], caplog: pytest.LogCaptureFixture
) -> None:
    scene, dsn, dba = denied
    before = permits.unstamped
    with context.bind(actor="user:1"):
        for _ in range(2):
            result = write(dsn)
            if asyncio.iscoroutine(result):
                asyncio.run(result)
    assert permits.unstamped - before >= 4
    told = [record.getMessage() for record in caplog.records if "may not write logical messages" in record.message]
    assert len(told) in {1, 2}  # SQLAlchemy knows a server by its engine, of which there were two
    # What it says to run is what helps: then the next question finds so.
    grant = told[0].partition("; run ")[2]
    assert grant.startswith("GRANT EXECUTE ON FUNCTION pg_logical_emit_message(")
    dba(grant)
    permits.forget()
    with context.bind(actor="user:2"), Connection.connect(dsn) as conn:
        conn.execute(INSERT.format("7"))
    assert scene.actors() == [*[(name, None) for name in "123456"] * 2, ("7", "user:2")]


def test_one_that_loses_the_right_loses_one_transaction(denied: tuple[Scene, str, Callable[[str], object]]) -> None:
    scene, dsn, dba = denied
    dba("grant execute on function {function} to {role}")
    with context.bind(actor="user:1"), Connection.connect(dsn) as conn:
        conn.execute(INSERT.format("1"))
        conn.commit()
        dba("revoke execute on function {function} from {role}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(INSERT.format("lost"))
        conn.rollback()
        conn.execute(INSERT.format("2"))
    assert scene.actors() == [("1", "user:1"), ("2", None)]


def test_its_events_in_a_transaction_go_to_the_spool(
    denied: tuple[Scene, str, Callable[[str], object]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, dsn, _ = denied
    for events in ("auto", "message"):
        recorder = Recorder(
            source="shop",
            open_sink=None,
            options=Options(spool_dir=str(tmp_path / events), events=events),  # type: ignore[arg-type]
        )
        with psycopg.connect(dsn) as conn:
            assert recorder.record("a.b", conn=conn).wait(5)
            conn.execute(INSERT.format("1"))
            conn.commit()
        stats = recorder.stats()
        assert (stats.emitted, stats.spooled) == (0, 1)
        recorder.close()
    assert caplog.text.count("grant it EXECUTE ON FUNCTION pg_logical_emit_message") == 2


def test_the_databases_own_stamps_are_left_out_too(denied: tuple[Scene, str, Callable[[str], object]]) -> None:
    scene, dsn, _ = denied

    async def install() -> None:
        async with connect(scene.dsn) as db:
            steps = await plan_install(db, postgrest=True, tables=["things"])
            await apply_steps(db, steps, policy=LockPolicy())

    asyncio.run(install())
    with psycopg.connect(dsn) as conn:
        conn.execute("select set_config('request.jwt.claims', '{\"sub\": \"7\"}', true)")
        conn.execute("select afterwrite_stamp.pre_request()")
        conn.execute(INSERT.format("1"))
    assert scene.actors() == [("1", None)]
