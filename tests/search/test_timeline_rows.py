"""The row as it was at any moment: PostgreSQL is asked the same after every transaction, and must agree."""

from __future__ import annotations

import asyncio
import json
import os
import random
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from capturing import capturing

from afterwrite.postgres import Database, connect
from afterwrite.search.row import RowAt, row_at

# `TIMELINE_SEED=… TIMELINE_MOMENTS=100 pytest tests/search/test_timeline_rows.py` looks further.
SEED = int(os.environ.get("TIMELINE_SEED", "7"))
MOMENTS = int(os.environ.get("TIMELINE_MOMENTS", "6"))
TRANSACTIONS = 10 * MOMENTS

Row = dict[str, Any]
Tables = dict[str, dict[str, Row]]

SCHEMA = """
create table plain (id int primary key, n int, body text);
create table whole (id int primary key, n int, body text);
create table pair (a int, b text, n int, body text, primary key (a, b));
create table queue (pos int primary key deferrable initially deferred, name text);
alter table plain alter body set storage external;
alter table whole alter body set storage external, replica identity full;
alter table pair alter body set storage external;
alter table queue replica identity full;
insert into plain select n, n, repeat('old', 1000) from generate_series(1, 4) n;
insert into whole select n, n, repeat('old', 1000) from generate_series(1, 4) n;
insert into queue select n, 'job ' || n from generate_series(1, 3) n;
"""
LAST = b"select exists (select from afterwrite.activity where entity_id = '99')"
KEYS = {
    "plain": [str(n) for n in range(1, 7)],
    "whole": [str(n) for n in range(1, 7)],
    "pair": [f"{a},{b}" for a in (1, 2) for b in ("x", "y\\,z")],
    "queue": [str(n) for n in range(1, 7)],
}


class Noted(NamedTuple):
    """What the tables held at a moment, by entity id."""

    moment: datetime
    tables: Tables


def values(row: RowAt) -> Row:
    return {name: json.loads(bytes(value)) for name, value in row.values.items()}


def escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace(",", "\\,")


def snapshot(writer: psycopg.Connection) -> Noted:
    """All that is there now, and when that is."""
    tables: Tables = {}
    for table in KEYS:
        rows = [row for (row,) in writer.execute(f"select to_jsonb(t) from {table} t".encode())]
        key = {"pair": lambda row: f"{row['a']},{escaped(row['b'])}", "queue": lambda row: str(row["pos"])}.get(
            table, lambda row: str(row["id"])
        )
        tables[table] = {key(row): row for row in rows}
    moment: datetime = writer.execute("select clock_timestamp()").fetchone()[0]  # type: ignore[index]
    return Noted(moment, tables)


def write_somehow(chance: random.Random, writer: psycopg.Connection) -> None:
    """A transaction of one to four writes of every kind; one that breaks a key is rolled back, which is no harm."""
    try:
        with writer.transaction():
            for _ in range(chance.choice((1, 1, 2, 4))):
                write_once(chance, writer)
    except psycopg.errors.UniqueViolation:
        pass


def write_once(chance: random.Random, writer: psycopg.Connection) -> None:
    table = chance.choice(list(KEYS))
    n, other = chance.randint(1, 6), chance.randint(1, 6)
    body = chance.choice(("short", None, chance.choice("abc") * 4000))
    if table == "queue":
        write_queue(chance, writer, n, other)
        return
    if table == "pair":
        where, words = "a = %(a)s and b = %(b)s", {"a": chance.randint(1, 2), "b": chance.choice(("x", "y,z"))}
        moved = {"to_a": chance.randint(1, 2), "to_b": chance.choice(("x", "y,z"))}
        insert, move = "(a, b, n, body) values (%(a)s, %(b)s, %(n)s, %(body)s)", "a = %(to_a)s, b = %(to_b)s"
    else:
        where, words, moved = "id = %(id)s", {"id": n}, {"to": other}
        insert, move = "(id, n, body) values (%(id)s, %(n)s, %(body)s)", "id = %(to)s"
    words |= {"n": chance.randint(0, 99), "body": body} | moved
    kinds = (
        f"insert into {table} {insert} on conflict do nothing",
        f"insert into {table} {insert} on conflict do nothing",
        f"update {table} set n = %(n)s where {where}",
        f"update {table} set n = %(n)s where {where}",
        f"update {table} set body = %(body)s where {where}",
        f"update {table} set {move}, n = %(n)s where {where}",
        f"delete from {table} where {where}",
        f"delete from {table} where {where}; insert into {table} {insert} on conflict do nothing",
    )
    if chance.random() < 0.03:
        writer.execute(f"truncate {table}".encode())
        return
    for statement in chance.choice(kinds).split(";"):
        writer.execute(statement.encode(), words)


def write_queue(chance: random.Random, writer: psycopg.Connection, n: int, other: int) -> None:
    kinds = (
        "insert into queue select %(n)s, 'job ' || %(other)s where not exists (select from queue where pos = %(n)s)",
        "update queue set pos = pos + 1 where pos < 6",
        "update queue set pos = case pos when %(n)s then %(other)s else %(n)s end where pos in (%(n)s, %(other)s)",
        "delete from queue where pos = %(n)s",
        "update queue set name = name || '.' where pos = %(n)s",
        "update queue set pos = pos - 1 where pos > 1",
    )
    writer.execute(chance.choice(kinds).encode(), {"n": n, "other": other})


def test_a_row_at_any_moment_is_the_row_that_postgresql_had(installed_dsn: str) -> None:
    chance = random.Random(SEED)

    async def scenario() -> None:
        noted: list[Noted] = []
        with psycopg.connect(installed_dsn, autocommit=True) as writer:
            writer.execute(SCHEMA.encode())
            noted.append(snapshot(writer))
            async with capturing(installed_dsn, *KEYS):
                for _ in range(TRANSACTIONS):
                    await asyncio.to_thread(write_somehow, chance, writer)
                    noted.append(snapshot(writer))
                writer.execute("insert into queue values (99, 'last')")
                async with connect(installed_dsn) as db:
                    async with asyncio.timeout(20):
                        while not await db.value(LAST):  # noqa: ASYNC110 - a test looks from outside
                            await asyncio.sleep(0.02)
                    checked = [
                        await agree(db, each, table, key)
                        for each in (noted[0], *chance.sample(noted[1:], MOMENTS))
                        for table, keys in KEYS.items()
                        for key in keys
                    ]
        # Unknown is only what was there before capture began and has no witness.
        sure = [each for each in checked if each is not None]
        assert len(sure) > 0.5 * len(checked)
        assert set(sure) == {True, False}

    asyncio.run(scenario())


async def agree(db: Database, noted: Noted, table: str, key: str) -> bool | None:
    """Compare one row at one moment; whether it existed is given back, None where that is said to be unknown."""
    row = await row_at(db, table, key, noted.moment)
    there = noted.tables[table]
    say = f"{table} {key} at {noted.moment}: {row.exists} {row.doubts} {row.unsure}"
    if row.entity_id != key:
        assert key not in there, say
    if row.exists is None:
        return None
    assert row.exists == (row.entity_id in there), say
    if row.exists:
        known = {name: value for name, value in values(row).items() if name not in row.unsure}
        expected = {name: value for name, value in there[row.entity_id].items() if name not in row.unsure}
        if not row.whole:
            assert table != "whole", say
            expected = {name: expected[name] for name in known}
        assert known == expected, say
    return row.exists
