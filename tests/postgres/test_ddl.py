"""DDL on tables in use: it waits briefly, tries again, names who is in the way, and leaves nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager

import psycopg
import pytest

from afterwrite.errors import AfterwriteError, DatabaseError
from afterwrite.postgres import Blocker, Database, LockPolicy, LockTimeout, connect, read_blockers, with_short_locks

QUICK = LockPolicy(lock_timeout_ms=30, attempts=3, first_pause_ms=5, longest_pause_ms=10)


@asynccontextmanager
async def a_table_in_use(dsn: str, mode: str = "row exclusive"):
    """A table, and another session that holds a lock on it until it is told to let go."""
    async with connect(dsn) as db, connect(dsn, application_name="report") as holder:
        await db.script("create table t (); create table other ()")
        async with holder.transaction():
            await holder.run(f"lock table t in {mode} mode".encode())
            yield db, holder
            # the block's end commits, and lets go


async def alter(db: Database) -> None:
    await db.run(b"alter table other add column done int")
    await db.run(b"alter table t add column done int")


async def columns(db: Database) -> list[str]:
    return await db.values(
        b"select attrelid::regclass || '.' || attname from pg_attribute"
        b" where attrelid in ('t'::regclass, 'other'::regclass) and attnum > 0 order by 1"
    )


def test_an_unused_table_is_altered_at_once(dsn: str) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db:
            await db.script("create table t (); create table other ()")
            await with_short_locks(db, ["t"], alter, policy=LockPolicy(attempts=1))
            assert await columns(db) == ["other.done", "t.done"]
            assert await db.value(b"show lock_timeout") == "0"

    asyncio.run(scenario())


def test_a_blocked_change_is_tried_again_and_done_once_the_blocker_lets_go(dsn: str) -> None:
    seen: list[tuple[int, list[Blocker]]] = []
    let_go = asyncio.Event()

    def on_blocked(attempt: int, blockers: Sequence[Blocker]) -> None:
        seen.append((attempt, list(blockers)))
        if attempt == 2:
            let_go.set()

    async def scenario() -> None:
        async with connect(dsn) as db:
            async with a_table_in_use(dsn):
                policy = LockPolicy(lock_timeout_ms=30, attempts=50, first_pause_ms=5, longest_pause_ms=10)
                task = asyncio.create_task(with_short_locks(db, ["t"], alter, policy=policy, on_blocked=on_blocked))
                await let_go.wait()
            await task
            assert await columns(db) == ["other.done", "t.done"]

    asyncio.run(scenario())
    assert [attempt for attempt, _ in seen][:2] == [1, 2]
    (blocker,) = seen[0][1]
    assert (blocker.application_name, blocker.state, blocker.modes) == (
        "report",
        "idle in transaction",
        "RowExclusiveLock",
    )


def test_it_gives_up_with_nothing_changed_and_names_the_blocker(dsn: str) -> None:
    async def scenario() -> None:
        async with a_table_in_use(dsn) as (db, holder):
            pid = await holder.value(b"select pg_backend_pid()")
            with pytest.raises(LockTimeout) as caught:
                await with_short_locks(db, ["public.t"], alter, policy=QUICK)
            said, remedy = str(caught.value), caught.value.remedy or ""
            assert "public.t stayed locked through 3 attempts of 30 ms" in said
            assert f"pid {pid} (" in said
            assert ", report, idle in transaction" in said
            assert f"select pg_terminate_backend({pid})" in remedy
            assert await columns(db) == []

    asyncio.run(scenario())


def test_writers_that_queue_behind_us_wait_no_longer_than_one_attempt(dsn: str) -> None:
    async def scenario() -> None:
        async with a_table_in_use(dsn, "access share") as (db, _), connect(dsn) as writer:
            task = asyncio.create_task(
                with_short_locks(
                    db, ["t"], alter, policy=LockPolicy(lock_timeout_ms=100, attempts=2, first_pause_ms=300)
                )
            )
            await asyncio.sleep(0.03)
            began = asyncio.get_running_loop().time()
            await writer.run(b"insert into t default values")
            assert asyncio.get_running_loop().time() - began < 0.3
            with pytest.raises(LockTimeout):
                await task

    asyncio.run(scenario())


def test_another_failure_is_not_tried_again(dsn: str) -> None:
    attempts = 0

    async def fail(db: Database) -> None:
        nonlocal attempts
        attempts += 1
        await db.run(b"alter table other add column done int")
        await db.run(b"select 1 / 0")

    async def scenario() -> None:
        async with a_table_in_use(dsn) as (db, _):
            with pytest.raises(DatabaseError, match="division by zero"):
                await with_short_locks(db, ["t"], fail, policy=QUICK)
            assert await columns(db) == []

    asyncio.run(scenario())
    assert attempts == 1


def test_inside_a_transaction_it_refuses_since_locks_would_outlive_the_pauses(dsn: str) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db, db.transaction():
            await db.value(b"select 1")
            with pytest.raises(AfterwriteError, match="inside a transaction"):
                await with_short_locks(db, ["t"], alter)

    asyncio.run(scenario())


def test_a_forgotten_prepared_transaction_is_named_with_the_statement_that_ends_it(dsn: str) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db:
            await db.script("create table t (); create table other ()")
            async with connect(dsn) as other:
                await other.run(b"begin")
                await other.run(b"lock table t in row exclusive mode")
                await other.run(b"prepare transaction 'forgotten'")
            try:
                with pytest.raises(LockTimeout, match="prepared transaction forgotten") as caught:
                    await with_short_locks(db, ["t"], alter, policy=QUICK)
                assert "rollback prepared 'forgotten'" in (caught.value.remedy or "")
            finally:
                await db.run(b"rollback prepared 'forgotten'")

    asyncio.run(scenario())


def test_who_holds_a_partition_is_named_when_the_parent_is_asked_for(dsn: str) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db, connect(dsn, application_name="report") as holder:
            await db.script(
                "create table p (n int) partition by range (n);"
                "create table p1 partition of p for values from (1) to (2)"
            )
            async with holder.transaction():
                await holder.run(b"lock table p1 in row exclusive mode")
                assert [blocker.application_name for blocker in await read_blockers(db, ["p"])] == ["report"]
                assert await read_blockers(db, ["no_such_table"]) == []
            assert await read_blockers(db, ["p"]) == []

    asyncio.run(scenario())


def test_a_lock_on_another_databases_table_of_the_same_number_is_nobodys_fault(server, dsn: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as elsewhere, psycopg.connect(dsn, autocommit=True) as here:
        (shared_number,) = elsewhere.execute("select 'pg_class'::regclass::oid").fetchone() or (0,)
        assert (shared_number,) == here.execute("select 'pg_class'::regclass::oid").fetchone()
        with elsewhere.transaction():
            elsewhere.execute("lock table pg_class in share mode")

            async def scenario() -> None:
                async with connect(dsn) as db:
                    assert await read_blockers(db, ["pg_catalog.pg_class"]) == []

            asyncio.run(scenario())
