"""The partitions of the activity table, and the indexes that each carries."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest

from afterwrite.postgres import LockTimeout, connect
from afterwrite.store.partitions import (
    AHEAD_DAYS,
    make_partitions,
    read_partition_days,
)

TODAY = datetime.now(UTC).date()


def test_the_days_ahead_have_partitions(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            days = await read_partition_days(db)
            assert {TODAY + timedelta(days=n) for n in range(AHEAD_DAYS + 1)} <= days
            assert await make_partitions(db) == []
            assert await make_partitions(db, ahead_days=AHEAD_DAYS + 2) == [
                TODAY + timedelta(days=AHEAD_DAYS + n) for n in (1, 2)
            ]

    asyncio.run(scenario())


async def _insert(db, day: date, ident: int = 1) -> None:
    await db.run(
        b"""insert into afterwrite.activity
                   (id, occurred_at, batch_id, source, kind, category, action, outcome, severity)
            values (%(id)s::uuid, %(at)s, 1, 's', 'event', 'c', 'a', 'success', 'info')""",
        id=f"00000000-0000-7000-8000-{ident:012}",
        at=datetime(day.year, day.month, day.day, 23, 59, 59, 999999, tzinfo=UTC),
    )


def test_rows_of_a_day_without_partition_wait_in_the_default_one_and_move_when_it_is_made(installed_dsn: str) -> None:
    late = TODAY - timedelta(days=3)

    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await _insert(db, late, 1)
            await _insert(db, late, 2)
            await _insert(db, late - timedelta(days=1), 3)
            assert await db.value(b"select count(*) from afterwrite.activity_default") == 3
            assert await make_partitions(db, ahead_days=0) == [late - timedelta(days=1), late]
            assert await db.value(b"select count(*) from afterwrite.activity_default") == 0
            assert await db.value(b"select count(*) from afterwrite.activity") == 3
            assert await db.value(f"select count(*) from afterwrite.activity_{late:%Y_%m_%d}".encode()) == 2

    asyncio.run(scenario())


def test_makers_of_the_same_partition_do_not_disturb_each_other(installed_dsn: str) -> None:
    days = [TODAY - timedelta(days=n) for n in (1, 2, 3)]

    async def make() -> list[date]:
        async with connect(installed_dsn) as db:
            return await make_partitions(db, days=days)

    async def scenario() -> None:
        await asyncio.gather(*(make() for _ in range(4)))
        async with connect(installed_dsn) as db:
            assert set(days) <= await read_partition_days(db)

    asyncio.run(scenario())


def test_a_partition_is_made_beside_open_readers_and_writers_of_other_days(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db, connect(installed_dsn) as other, other.transaction():
            await _insert(other, TODAY)
            assert await make_partitions(db, days=[TODAY - timedelta(days=1)]) == [TODAY - timedelta(days=1)]

    asyncio.run(scenario())


def test_a_reader_that_holds_the_default_partition_is_named_and_nothing_changes(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db, connect(installed_dsn, application_name="report") as reader:
            async with reader.transaction():
                await reader.value(b"select count(*) from afterwrite.activity")
                with pytest.raises(LockTimeout, match="report"):
                    await make_partitions(db, days=[TODAY - timedelta(days=1)])
            assert TODAY - timedelta(days=1) not in await read_partition_days(db)

    asyncio.run(scenario())
