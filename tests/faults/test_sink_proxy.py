"""The proxy that breaks lines: each fault does what its name says, and what it does to a commit is certain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo
from sink_proxy import Cut, CutAfter, CutBeforeCommit, CutInCopy, LoseReply, Proxy, Reject, Slow, Stall

from afterwrite.errors import ConnectionLost
from afterwrite.postgres import Database, connect

DDL = """
create table t (id int);
create function put(id int) returns int language sql as $$ insert into t values (id) returning id $$;
"""


@asynccontextmanager
async def through(dsn: str, folder: Path) -> AsyncIterator[tuple[Proxy, str]]:
    words = conninfo.conninfo_to_dict(dsn)
    async with asyncio.timeout(20), Proxy(Path(words["host"]), folder / "proxy").running() as proxy:
        yield proxy, proxy.dsn(words["dbname"], words["user"])


def stored(dsn: str) -> list[int]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [id for (id,) in connection.execute("select id from t order by 1").fetchall()]


def lay(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(DDL)


async def _simple(db: Database, id: int) -> None:
    async with db.transaction():
        await db.run(b"insert into t values (%(id)s)", id=id)


async def _pipelined(db: Database, id: int) -> None:
    async with db.connection.pipeline(), db.connection.transaction():
        await db.connection.execute("insert into t values (%s)", [id])


async def _prepared(db: Database, id: int) -> None:
    await db.connection.execute("begin", prepare=True)
    await db.connection.execute("insert into t values (%s)", [id], prepare=True)
    await db.connection.execute("commit", prepare=True)


async def _together(db: Database, id: int) -> None:
    await db.connection.execute(f"begin; insert into t values ({id}); commit".encode())


async def _function(db: Database, id: int) -> None:
    await db.connection.execute("select put(%s)", [id], prepare=True)


Write = Callable[[Database, int], Awaitable[None]]


@pytest.mark.parametrize("write", [_simple, _pipelined, _prepared, _together, _function], ids=lambda way: way.__name__)
def test_a_lost_reply_is_lost_after_the_commit_and_only_once(dsn: str, tmp_path: Path, write: Write) -> None:
    lay(dsn)
    statement = r"\bput\(" if write is _function else None

    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words):
            async with connect(words, application_name="writer") as db:
                await write(db, 1)
                proxy.break_with(LoseReply(role="other", statement=statement))
                await write(db, 2)
                proxy.break_with(LoseReply(role="writer", statement=statement))
                with pytest.raises((ConnectionLost, psycopg.OperationalError)):
                    await write(db, 3)
            assert [strike.role for strike in proxy.strikes] == ["writer"]
            async with connect(words, application_name="writer") as db:
                await write(db, 4)

    asyncio.run(run())
    assert stored(dsn) == [1, 2, 3, 4]


def test_a_transaction_that_rolls_back_loses_no_reply(dsn: str, tmp_path: Path) -> None:
    lay(dsn)

    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words), connect(words) as db:
            proxy.break_with(LoseReply())
            await db.connection.execute("begin")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await db.connection.execute("select 1 / 0")
            await db.connection.execute("commit")  # which the server answers with ROLLBACK
            assert proxy.strikes == []

    asyncio.run(run())


@pytest.mark.parametrize("write", [_simple, _pipelined, _prepared, _together], ids=lambda way: way.__name__)
def test_a_commit_that_never_arrives_is_rolled_back(dsn: str, tmp_path: Path, write: Write) -> None:
    lay(dsn)

    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words), connect(words) as db:
            await write(db, 1)
            proxy.break_with(CutBeforeCommit())
            with pytest.raises((ConnectionLost, psycopg.OperationalError)):
                await write(db, 2)
            assert len(proxy.strikes) == 1

    asyncio.run(run())
    assert stored(dsn) == [1]


def test_copy_is_cut_in_the_middle_of_a_row(dsn: str, tmp_path: Path) -> None:
    lay(dsn)

    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words), connect(words) as db:
            proxy.break_with(CutInCopy(size=50_000))
            with pytest.raises(psycopg.OperationalError):  # noqa: PT012
                async with db.connection.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
                    for number in range(100_000):
                        await copy.write(f"{number}\n")
            assert len(proxy.strikes) == 1

    asyncio.run(run())
    assert stored(dsn) == []


@pytest.mark.parametrize("side", ["client", "server"])
def test_the_line_is_cut_after_so_many_bytes(dsn: str, tmp_path: Path, side: str) -> None:
    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words), connect(words) as db:
            proxy.break_with(CutAfter(side=side, size=300))  # type: ignore[arg-type]
            with pytest.raises(ConnectionLost):  # noqa: PT012
                for _ in range(100):
                    await db.value(b"select 'a long enough text'")
            assert len(proxy.strikes) == 1

    asyncio.run(run())


def test_a_cut_is_meant_for_one_role(dsn: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            through(dsn, tmp_path) as (proxy, words),
            connect(words, application_name="one") as one,
            connect(words, application_name="two") as two,
        ):
            assert sorted(proxy.roles()) == ["one", "two"]
            proxy.break_with(Cut(role="one"))
            with pytest.raises(ConnectionLost):
                await one.value(b"select 1")
            assert await two.value(b"select 1") == 1

    asyncio.run(run())


def test_connections_are_rejected_for_a_while(dsn: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words):
            proxy.break_with(Reject(seconds=0.3))
            with pytest.raises(ConnectionLost):
                async with connect(words):
                    pass
            await asyncio.sleep(0.3)
            async with connect(words) as db:
                assert await db.value(b"select 1") == 1

    asyncio.run(run())


def test_a_stalled_line_goes_on_where_it_was(dsn: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words), connect(words) as db:
            proxy.break_with(Stall(seconds=0.3))
            began = time.monotonic()
            assert await db.value(b"select 1") == 1
            assert 0.25 < time.monotonic() - began < 2

    asyncio.run(run())


def test_a_slow_link_takes_its_time_and_loses_nothing(dsn: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with through(dsn, tmp_path) as (proxy, words), connect(words) as db:
            proxy.break_with(Slow(rate=100_000, seconds=5))
            began = time.monotonic()
            assert await db.value(b"select length(%(text)s::text)", text="x" * 30_000) == 30_000
            assert time.monotonic() - began > 0.25

    asyncio.run(run())
