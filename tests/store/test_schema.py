"""Laying the schema."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from afterwrite.errors import DatabaseError, Refused
from afterwrite.postgres import connect
from afterwrite.store.schema import (
    install_store,
    known_upgrades,
    read_version,
    require_store,
)


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
