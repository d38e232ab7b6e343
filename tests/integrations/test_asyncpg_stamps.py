"""asyncpg: whoever is bound in the application is on the row change in the store, whatever way the row was written."""

from __future__ import annotations

import asyncio
import io
import secrets
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from stamping_scene import Scene

from afterwrite import context
from afterwrite.integrations.asyncpg import Connection
from afterwrite.postgres.embedded import Server
from afterwrite.record import Emitted
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.connections import emit, stamp
from afterwrite.recorder.options import EventsBy

INSERT = "insert into things (name) values ($1)"


def words(dsn: str) -> dict[str, Any]:
    told = conninfo_to_dict(dsn)
    return {
        "host": told["host"],
        "port": told.get("port"),
        "user": told.get("user"),
        "database": told["dbname"],
        "connection_class": Connection,
    }


async def write_in_every_way(conn: Any, names: list[str]) -> None:
    """Twelve rows by twelve ways, each with an actor of its own."""
    prepared = await conn.prepare(f"{INSERT} returning name")
    many = await conn.prepare(INSERT)
    for number, write in enumerate(
        [
            lambda name: conn.execute(INSERT, name),
            lambda name: conn.execute(f"insert into things (name) values ('{name}'); select 1"),
            lambda name: conn.fetch(f"{INSERT} returning name", name),
            lambda name: conn.fetchval(f"{INSERT} returning name", name),
            lambda name: conn.fetchrow(f"with new as ({INSERT} returning name) select * from new", name),
            lambda name: conn.executemany(INSERT, [(name,)]),
            lambda name: conn.copy_records_to_table("things", records=[(name,)], columns=["name"]),
            lambda name: conn.copy_to_table("things", source=io.BytesIO(name.encode()), columns=["name"]),
            prepared.fetchval,
            prepared.fetch,
            prepared.fetchrow,
            lambda name: many.executemany([(name,)]),
        ]
    ):
        with context.bind(actor=f"{names[number]}'s"):
            await write(names[number])


def test_every_way_of_writing_carries_the_actor_in_transactions_and_outside(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    outside = [f"outside {number}" for number in range(12)]
    inside = [f"inside {number}" for number in range(12)]

    async def run() -> None:
        conn = await asyncpg.connect(**words(installed_dsn))
        await write_in_every_way(conn, outside)
        assert not conn.is_in_transaction()
        await conn.execute(INSERT, "nobody")
        async with conn.transaction():
            await write_in_every_way(conn, inside)
            with context.bind(actor="cursor's"):
                rows = conn.cursor("insert into things (name) values ('cursor') returning name")
                assert [row["name"] async for row in rows] == ["cursor"]
                opened = await conn.cursor("insert into things (name) values ('cursor') returning name")
                assert (await opened.fetchrow())["name"] == "cursor"
        await conn.close()

    asyncio.run(run())
    assert scene.actors() == [
        *((name, f"{name}'s") for name in outside),
        ("nobody", None),
        *((name, f"{name}'s") for name in inside),
        *[("cursor", "cursor's")] * 2,
    ]


def test_savepoints_errors_read_only_transactions_and_pools(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)

    async def run() -> None:
        async with asyncpg.create_pool(**words(installed_dsn), min_size=1, max_size=1) as pool:
            with context.bind(actor="a"):
                async with pool.acquire() as conn, conn.transaction():
                    inner = conn.transaction()
                    await inner.start()
                    await conn.execute(INSERT, "gone")
                    await inner.rollback()
                    await conn.execute(INSERT, "1")
                    assert await emit(conn, Emitted(category="a", action="b.c")) is True  # type: ignore[misc]
                async with pool.acquire() as conn:
                    await conn.execute("insert into things (id, name) values (1000, '2')")
                    with pytest.raises(asyncpg.UniqueViolationError):
                        await conn.execute("insert into things (id) values ($1)", 1000)
                    assert not conn.is_in_transaction()
                    await conn.execute("call make_and_commit('not stamped')")
                    async with conn.transaction(readonly=True):
                        await conn.fetch("select * from things")
                        await stamp(conn)  # type: ignore[misc]
                        assert await emit(conn, Emitted(category="a", action="b.c")) is False  # type: ignore[misc]
                        assert await conn.fetchval("select pg_current_xact_id_if_assigned()::text") is None
            with context.bind(actor="b"):
                await pool.execute(INSERT, "3")
            await pool.execute(INSERT, "nobody")

    asyncio.run(run())
    assert scene.actors() == [
        ("1", "a"),
        (None, "a"),
        ("2", "a"),
        ("not stamped", None),
        ("3", "b"),
        ("nobody", None),
    ]


def test_ten_megabytes_of_metadata_and_a_database_without_an_encoding(server: Server, tmp_path: Path) -> None:
    name = f"afterwrite_ascii_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        encoding = "encoding sql_ascii template template0 lc_collate 'C' lc_ctype 'C'"
        admin.execute(f"create database {name} {encoding}".encode())
    recorder = Recorder(
        source="shop",
        open_sink=None,
        options=Options(spool_dir=str(tmp_path), metadata_bytes=16 << 20, events=EventsBy.MESSAGE),
    )

    async def main() -> list[str]:
        conn = await asyncpg.connect(**words(server.dsn(name)))
        await conn.execute("create table things (name text)")
        with context.bind(actor="user:ö🦊", reason="größe"):
            async with conn.transaction():
                await conn.execute("insert into things values ($1)", "ü")
                assert await recorder.record("a.b", metadata={"big": "ü" * 5_000_000, "n": 1}, conn=conn)
            await conn.execute("insert into things values ('ä')")
        names = [row[0] for row in await conn.fetch("select name from things")]
        await conn.close()
        return names

    try:
        assert asyncio.run(main()) == ["ü", "ä"]
        assert (recorder.stats().emitted, recorder.stats().dropped) == (1, {})
    finally:
        recorder.close()
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"drop database {name}".encode())
