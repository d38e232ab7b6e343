"""Laying the schema, and its partitions."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from afterwrite.errors import DatabaseError, Refused
from afterwrite.postgres import LockTimeout, connect
from afterwrite.store.schema import (
    AHEAD_DAYS,
    install_store,
    known_upgrades,
    make_partitions,
    read_partition_days,
    read_version,
    require_store,
)

TODAY = datetime.now(UTC).date()


def names() -> list[str]:
    return [f"{upgrade.number:04}_{upgrade.name}" for upgrade in known_upgrades()]


def test_a_fresh_install_is_every_upgrade_in_order_and_a_second_one_does_nothing(dsn: str) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db:
            assert await read_version(db) is None
            assert await install_store(db) == names()
            assert await read_version(db) == known_upgrades()[-1].number
            assert await install_store(db) == []
            await require_store(db)

    asyncio.run(scenario())


def test_two_installers_at_once_lay_it_once(dsn: str) -> None:
    async def install() -> list[str]:
        async with connect(dsn) as db:
            return await install_store(db)

    async def scenario() -> None:
        applied = await asyncio.gather(*(install() for _ in range(4)))
        assert sorted(name for names in applied for name in names) == names()
        async with connect(dsn) as db:
            assert await read_version(db) == known_upgrades()[-1].number

    asyncio.run(scenario())


def test_a_newer_schema_is_refused_and_left_alone(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await db.run(b"insert into afterwrite.version (number, name) values (9999, 'tomorrow')")
            with pytest.raises(Refused, match="9999_tomorrow is unknown"):
                await install_store(db)
            with pytest.raises(Refused, match="another version of afterwrite"):
                await require_store(db)

    asyncio.run(scenario())


def test_an_older_schema_names_what_it_lacks_and_install_brings_it(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await db.run(b"delete from afterwrite.version where number = 1")
            with pytest.raises(Refused, match="lacks 0001_store") as refusal:
                await require_store(db)
            assert refusal.value.remedy
            assert "afterwrite install" in refusal.value.remedy

    asyncio.run(scenario())


def test_a_database_without_the_schema_says_how_to_install_it(dsn: str) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db:
            with pytest.raises(DatabaseError, match="afterwrite is not installed") as missing:
                await require_store(db)
            assert missing.value.remedy == "run `afterwrite install --apply`"

    asyncio.run(scenario())


def test_a_database_that_cannot_keep_every_character_is_refused(server, dsn: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("drop database if exists store_latin")
        admin.execute("create database store_latin encoding 'latin1' template template0 locale 'C'")

    async def scenario() -> None:
        async with connect(server.dsn("store_latin")) as db:
            with pytest.raises(Refused, match="LATIN1"):
                await install_store(db)
            assert await read_version(db) is None

    try:
        asyncio.run(scenario())
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("drop database store_latin with (force)")


def test_a_failing_upgrade_leaves_the_one_before_it(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "afterwrite.store.schema.script",
        lambda file: "create table afterwrite.half (); select 1 / 0" if "0001" not in file else _original(file),
    )

    async def scenario() -> None:
        async with connect(dsn) as db:
            with pytest.raises(DatabaseError, match="division by zero"):
                await install_store(db)
            assert await read_version(db) == 1
            assert not await db.value(b"select to_regclass('afterwrite.half') is not null")

    asyncio.run(scenario())


def _original(file: str) -> str:
    from afterwrite.postgres import script

    return script(file)


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


def test_every_table_says_its_rule_in_words(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            silent = await db.values(
                b"""select c.relname from pg_class c
                     where c.relnamespace = 'afterwrite'::regnamespace and c.relkind in ('r', 'p')
                       and not c.relispartition and obj_description(c.oid, 'pg_class') is null"""
            )
            assert silent == []

    asyncio.run(scenario())
