"""Activities as a part of the application's own transaction, from its calls to the store, past a capture worker."""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from capturing import capturing, stored
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from afterwrite import activity, context
from afterwrite.integrations.sqlalchemy import instrument
from afterwrite.record import Outcome

TABLE = "create table users (id int generated always as identity primary key, email text unique)"

# As it stands in the issue, which every application developer reads first.
FIRST_BLOCK = """
from afterwrite import activity, context, Category

with context.bind(actor="user:42", tenant="acme"):
    async with activity.track("user.create", entity=("user", email), category=Category.USER_MANAGEMENT, conn=conn):
        await conn.execute(...)                       # its row changes carry this actor and point to this activity

async with activity.batch("user.import", total=len(users)) as batch: ...    # one summary, counted successes and failures, progress
activity.auth("login", user_id, success=True, ip=ip, user_agent=agent)
activity.record("report.exported", entity=("report", 7), metadata={...})
"""  # noqa: E501


@pytest.fixture
def application(installed_dsn: str, tmp_path: Path) -> Iterator[str]:
    """A database with a table, and the process's recorder delivering into the same database."""
    with psycopg.connect(installed_dsn) as db:
        db.execute(TABLE)
    activity.configure(dsn=installed_dsn, spool_dir=str(tmp_path), service="billing", linger_seconds=0)
    yield installed_dsn
    activity.close(0)


class Elided(psycopg.AsyncConnection[Any]):
    """A connection that knows what the ellipsis in an example means."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        if query is ...:
            query = "insert into users (email) values ('ada@example.com')"
        return await super().execute(query, *args, **kwargs)


def test_the_first_block_of_the_issue_runs_as_it_stands(application: str) -> None:
    names = {"email": "ada@example.com", "users": [1, 2], "user_id": 42, "ip": "192.0.2.1", "agent": "curl/8"}
    code = compile(FIRST_BLOCK, "issue", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

    async def run() -> None:
        async with capturing(application, "users"):
            async with await Elided.connect(application) as conn:
                await eval(code, {**names, "conn": conn})
            found = await stored(application, count=5)
        created, (change,) = found.of("user.create"), found.changes("users")
        assert (created.actor_id, created.tenant_id, created.entity_id) == ("user:42", "acme", "ada@example.com")
        assert (created.category, created.source, created.outcome) == ("user_management", "main", "success")
        assert created.duration_ms > 0
        assert (change.actor_id, change.tenant_id, change.caused_by) == ("user:42", "acme", created.id)
        assert (created.xid, created.commit_lsn) == (change.xid, change.commit_lsn)
        login, batch, report = found.of("login"), found.of("user.import"), found.of("report.exported")
        assert (login.category, str(login.ip), login.actor_id) == ("authentication", "192.0.2.1", "user:42")
        assert (batch.metadata["total"], batch.source) == (2, "billing")
        assert (report.entity_type, report.entity_id, report.metadata) == (
            "report",
            "7",
            {"value": ["<builtins.ellipsis>"]},
        )

    asyncio.run(run())


def test_what_is_recorded_in_a_transaction_exists_if_and_only_if_it_commits(application: str) -> None:
    async def run() -> None:
        async with capturing(application, "users"):
            with psycopg.connect(application) as conn:
                with activity.track("user.create", conn=conn):
                    conn.execute("insert into users (email) values ('a')")
                activity.record("user.noted", conn=conn)
                conn.rollback()
                with activity.track("user.create", conn=conn, metadata={"kept": True}):
                    conn.execute("insert into users (email) values ('b')")
                activity.record("user.noted", conn=conn)
            found = await stored(application, count=3)
        assert found.of("user.create").metadata == {"kept": True}
        assert found.of("user.noted").kind == "event"
        assert len(found.changes("users")) == 1
        assert activity.stats().emitted == 4

    asyncio.run(run())


def test_a_failure_is_stored_although_its_transaction_is_not(application: str) -> None:
    async def run() -> None:
        async with await psycopg.AsyncConnection.connect(application) as conn:
            await conn.execute("insert into users (email) values ('a')")
            await conn.commit()
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with conn.transaction(), activity.track("user.create", conn=conn, entity=("user", "a")):
                    await conn.execute("insert into users (email) values ('a')")
        found = await stored(application, count=1)
        failed = found.of("user.create")
        assert (failed.outcome, failed.severity, failed.source) == ("failure", "error", "billing")
        assert failed.metadata["error"] == {
            "type": "psycopg.errors.UniqueViolation",
            "message": 'duplicate key value violates unique constraint "users_email_key"',
        }

    asyncio.run(run())


def test_each_block_in_a_transaction_explains_its_own_rows(application: str) -> None:
    async def run() -> None:
        async with capturing(application, "users"):
            async with await psycopg.AsyncConnection.connect(application) as conn:
                add = "insert into users (email) values (%s)"
                with context.bind(actor="user:1"):
                    async with activity.track("first", conn=conn) as first:
                        await conn.execute(add, ["in first"])
                        with context.bind(actor="user:2"):
                            async with activity.track("inner", conn=conn) as inner:
                                await conn.execute(add, ["in inner"])
                        await conn.execute(add, ["in first again"])
                with context.bind(actor="user:3"):
                    async with activity.track("second", conn=conn) as second:
                        await conn.execute(add, ["in second"])
            found = await stored(application, count=7)
        causes = {row.after["email"]: (row.actor_id, str(row.caused_by)) for row in found.changes("users")}
        assert causes == {
            "in first": ("user:1", first.id),
            "in inner": ("user:2", inner.id),
            "in first again": ("user:1", first.id),
            "in second": ("user:3", second.id),
        }
        assert [str(found.of(name).caused_by) for name in ("first", "inner", "second")] == ["None", first.id, "None"]

    asyncio.run(run())


def test_an_error_of_the_connection_at_the_end_is_raised_and_recorded(application: str) -> None:
    """Swallowing it would let the application commit what is already undone."""

    async def run() -> None:
        @activity.track("user.create", conn=activity.argument("conn"))
        def create(conn: psycopg.Connection[Any]) -> None:
            conn.execute("insert into users (email) values ('a')")
            conn.close()

        with psycopg.connect(application) as conn, pytest.raises(psycopg.OperationalError):
            create(conn)
        found = await stored(application, count=1)
        assert found.of("user.create").outcome == "failure"

    asyncio.run(run())


def test_what_a_session_holds_back_is_written_as_a_part_of_the_block(application: str) -> None:
    """An ORM writes at the flush, which is else at the commit, when the block is over."""

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str]

    def url(driver: str) -> URL:
        told = conninfo_to_dict(application)
        return URL.create(f"postgresql+{driver}", username=str(told["user"]), database=str(told["dbname"]),
                          query={"host": str(told["host"]), "port": str(told["port"])})  # fmt: skip

    async def run() -> None:
        plain, instrumented = create_engine(url("psycopg")), create_async_engine(url("asyncpg"))
        instrument(instrumented)
        async with capturing(application, "users"):
            with context.bind(actor="user:1"), Session(plain) as session:
                with activity.track("plain", conn=session) as first:
                    session.add(User(email="plain"))
                session.commit()
            with context.bind(actor="user:2"):
                async with AsyncSession(instrumented) as session:
                    async with activity.track("instrumented", conn=session) as second:
                        session.add(User(email="instrumented"))
                    await session.commit()
            with (
                pytest.raises(IntegrityError),
                Session(plain) as session,
                session.begin(),
                activity.track("twice", conn=session),
            ):
                session.add(User(email="plain"))
            found = await stored(application, count=5)
        plain.dispose()
        await instrumented.dispose()
        causes = {row.after["email"]: (row.actor_id, str(row.caused_by)) for row in found.changes("users")}
        assert causes == {"plain": ("user:1", first.id), "instrumented": ("user:2", second.id)}
        assert found.of("twice").outcome == "failure"

    asyncio.run(run())


def test_what_was_to_be_a_part_of_an_aborted_transaction_is_a_failure_and_raises_nothing_new(application: str) -> None:
    """The application knows of its error, and has dealt with it: we add none."""

    async def run() -> None:
        with psycopg.connect(application) as conn:
            with activity.track("block", conn=conn):
                conn.execute("insert into users (email) values ('a')")
                with contextlib.suppress(psycopg.errors.UniqueViolation):
                    conn.execute("insert into users (email) values ('a')")
            activity.record("call", conn=conn, metadata={"a": 1})
            activity.record("told.as_failure", conn=conn, outcome="failure")
            with activity.track("after", conn=conn):
                pass
            conn.rollback()
        async with await psycopg.AsyncConnection.connect(application) as conn:
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                await conn.execute("select * from nothing")
            async with activity.track("async.block", conn=conn):
                pass
            await activity.record("async.call", conn=conn)
        found = await stored(application, count=6)
        told = {row.action: (row.outcome, row.severity, row.metadata) for row in found.rows}
        undone = ("failure", "warning", {"undone": True})
        assert told == {
            "block": undone,
            "call": ("failure", "warning", {"undone": True, "a": 1}),
            "told.as_failure": ("failure", "info", None),
            "after": undone,
            "async.block": undone,
            "async.call": undone,
        }

    asyncio.run(run())


def test_in_a_read_only_transaction_it_goes_to_the_spool(application: str) -> None:
    async def run() -> None:
        with psycopg.connect(application) as conn:
            conn.read_only = True
            with activity.track("users.count", conn=conn) as run:
                run.metadata["users"] = conn.execute("select count(*) from users").fetchone()[0]
        found = await stored(application, count=1)
        assert (found.of("users.count").metadata, found.of("users.count").source) == ({"users": 0}, "billing")

    asyncio.run(run())


def test_a_connection_of_the_wrong_kind_does_not_hurt_in_production(application: str) -> None:
    async def run() -> None:
        async with await psycopg.AsyncConnection.connect(application) as conn:
            with activity.track("mixed.up", conn=conn):
                await conn.execute("insert into users (email) values ('a')")
        with activity.track("unknown", conn=object()):
            pass
        found = await stored(application, count=2)
        assert found.of("mixed.up").outcome == Outcome.SUCCESS
        assert "asynchronous" in found.of("mixed.up").metadata["misfit"]
        assert found.of("unknown").outcome == Outcome.SUCCESS

    asyncio.run(run())
