"""Giving a large default partition's rows to days of their own, beside readers and writers.

ATTACH wants the default partition free of the day's rows, which would have to be moved under a lock that shuts readers
out: 3 s for 100,000 rows. So they are copied first, and then the default partition itself is exchanged:

::

    activity_default ──copy, in chunks──▶ activity_making_2026_07_01 …, activity_making_default    nobody is stopped
    activity         ──one short lock: what came since, detach, rename, attach──▶                  milliseconds
    activity_replaced_default ──whatever activity lacks of it (nothing)──▶ dropped                 nobody is stopped

What came since is found by the feed: whatever was visible at a position is copied, so only batches beyond it count.
Rows that no batch brought come with the last step, which makes sure of every row before the old table goes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date

import msgspec
from psycopg import sql

from afterwrite.errors import Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, LockPolicy, identifier, quoted, statement, with_short_locks
from afterwrite.store.partitions import (
    DEFAULT,
    PARENT,
    SCHEMA,
    Temperature,
    bounds,
    create_index,
    create_like_activity,
    partition_name,
    read_partition_days,
    wanted_indexes,
)

log = logging.getLogger(__name__)

MAKING = f"{PARENT}_making_"
REPLACED = f"{PARENT}_replaced_default"
_CHUNK_ROWS = 10_000
_FEW_ROWS = 1_000
_ROUNDS = 10


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A table in the making: what it will be called, and which rows it gets (``where``: SQL over ``occurred_at``)."""

    final: str
    day: date | None
    where: sql.Composable

    @property
    def making(self) -> str:
        return f"{MAKING}{self.final.removeprefix(f'{PARENT}_')}"


class _Key(msgspec.Struct, frozen=True):
    """The last row of a chunk. Texts, since PostgreSQL's time goes further than Python's."""

    rows: int
    occurred_at: str | None
    id: str | None


async def recast_default(
    db: Database, days: Sequence[date], temperature: Temperature = Temperature.HOT, *, policy: LockPolicy | None = None
) -> None:
    """Give these days partitions of their own, with what waits of them in the default partition.

    Takes twice the default partition's room on disk for the time being. Interrupted, it leaves tables that
    ``discard_making`` and ``finish_replaced`` clear away; the rows are in exactly one attached partition at all times.
    """
    parts = _parts(days)
    failpoint("maintain.before_copy")
    for part in parts:
        await _create(db, part)
    copied: int = await db.value(statement("maintain.read_feed_position"))
    for part in parts:
        await _copy(db, part)
        for index in sorted(wanted_indexes(temperature if part.day else Temperature.HOT)):
            await db.run(create_index(part.making, index))
        await db.run(sql.SQL("analyze {}").format(identifier(SCHEMA, part.making)))
    failpoint("maintain.after_copy")
    for _ in range(_ROUNDS):
        position: int = await db.value(statement("maintain.read_feed_position"))
        came = 0
        async with db.transaction():
            for part in parts:
                came += await _copy_since(db, part, copied)
        copied = position
        if came <= _FEW_ROWS:
            break
    failpoint("maintain.before_exchange")
    await with_short_locks(
        db, [quoted(SCHEMA, PARENT), quoted(SCHEMA, DEFAULT)], lambda db: _exchange(db, parts, copied), policy=policy
    )
    failpoint("maintain.after_exchange")
    await finish_replaced(db)


async def discard_making(db: Database, name: str) -> None:
    """Drop a table that was in the making: its rows are where they were."""
    failpoint("maintain.before_discard")
    await db.run(sql.SQL("drop table if exists {}").format(identifier(SCHEMA, name)))
    failpoint("maintain.after_discard")


async def finish_replaced(db: Database) -> None:
    """Make sure that activity has every row of the exchanged default partition, then drop that."""
    table = identifier(SCHEMA, REPLACED)
    query = sql.SQL(
        """
        with chunk as (
            select * from {table} where {after} order by occurred_at, id limit {limit}
        ), missing as (
            insert into afterwrite.activity select * from chunk
                on conflict (occurred_at, id) do nothing returning id
        )
        select (select count(*) from missing) as rows, last.occurred_at::text as occurred_at, last.id::text as id
          from (select occurred_at, id from chunk order by occurred_at desc, id desc limit 1) last
        """
    )
    after: sql.Composable = sql.SQL("true")
    while True:
        failpoint("maintain.before_check")
        last = await db.maybe(_Key, query.format(table=table, after=after, limit=sql.Literal(_CHUNK_ROWS)))
        if last is None:
            break
        if last.rows:
            log.warning("%s rows that no batch brought were moved out of the default partition late", last.rows)
        after = _beyond(last)
    failpoint("maintain.before_drop_replaced")
    await db.run(sql.SQL("drop table {}").format(table))
    failpoint("maintain.after_drop_replaced")


def _parts(days: Sequence[date]) -> list[_Part]:
    """One for each day, and one for all other rows."""
    within = sql.SQL("occurred_at >= {from_time} and occurred_at < {to_time}")
    wheres = [(day, within.format(**bounds(day))) for day in sorted(set(days))]
    rest = sql.SQL("not ({})").format(sql.SQL(" or ").join(where for _, where in wheres))
    made = [_Part(final=partition_name(day), day=day, where=where) for day, where in wheres]
    return [*made, _Part(final=DEFAULT, day=None, where=rest)]


async def _create(db: Database, part: _Part) -> None:
    await discard_making(db, part.making)
    async with db.transaction():
        await create_like_activity(db, part.making)
        if part.day:
            # Known to hold, so that ATTACH needs not read the rows to believe it.
            await db.run(
                sql.SQL("alter table {} add constraint making check ({})").format(
                    identifier(SCHEMA, part.making), part.where
                )
            )


async def _copy(db: Database, part: _Part) -> None:
    query = sql.SQL(
        """
        with chunk as (
            select * from afterwrite.activity_default
             where {where} and {after} order by occurred_at, id limit {limit}
        ), copied as (
            insert into {table} select * from chunk on conflict (occurred_at, id) do nothing
        )
        select {limit} as rows, occurred_at::text as occurred_at, id::text as id
          from chunk order by chunk.occurred_at desc, chunk.id desc limit 1
        """
    )
    words = {
        "table": identifier(SCHEMA, part.making),
        "where": part.where,
        "limit": sql.Literal(_CHUNK_ROWS),
    }
    after: sql.Composable = sql.SQL("true")
    while last := await db.maybe(_Key, query.format(after=after, **words)):
        failpoint("maintain.after_chunk")
        after = _beyond(last)


def _beyond(last: _Key) -> sql.Composable:
    return sql.SQL("(occurred_at, id) > ({}::timestamptz, {}::uuid)").format(
        sql.Literal(last.occurred_at), sql.Literal(last.id)
    )


async def _copy_since(db: Database, part: _Part, position: int) -> int:
    """Copy what batches after a position brought: each looked up by the primary key, since a lock is held meanwhile."""
    await db.run(statement("maintain.avoid_scans"))
    query = sql.SQL(
        """
        insert into {table}
        select a.*
          from (select * from afterwrite.batch where position > {position} offset 0) b
         cross join lateral (
               select *
                 from afterwrite.activity_default
                where batch_id = b.id and occurred_at between b.first_at and b.last_at and {where}
               offset 0
              ) a
            on conflict (occurred_at, id) do nothing
        """
    )
    table = identifier(SCHEMA, part.making)
    return await db.run(query.format(table=table, position=sql.Literal(position), where=part.where))


async def _exchange(db: Database, parts: Sequence[_Part], copied: int) -> None:
    await db.run(statement("store.lock_partitions"))
    days = {part.day for part in parts if part.day}
    if made := sorted(days & await read_partition_days(db)):
        raise Refused(
            f"{made[0]} got its partition from another hand while its rows were being copied",
            remedy="run `afterwrite maintain --apply` again",
        )
    # The parent alone, in the order in which writers lock: with it nobody can begin, without it nobody has ended.
    await db.run(b"lock table only afterwrite.activity in access exclusive mode")
    await db.run(statement("maintain.limit_exchange"))
    for part in parts:
        await _copy_since(db, part, copied)
    await db.run(b"alter table afterwrite.activity detach partition afterwrite.activity_default")
    comment: str = await db.value(b"select obj_description('afterwrite.activity_default'::regclass, 'pg_class')") or ""
    await _rename(db, DEFAULT, REPLACED)
    for part in parts:
        await _rename(db, part.making, part.final)
        table = identifier(SCHEMA, part.final)
        how = sql.SQL("for values from ({from_time}) to ({to_time})").format(**bounds(part.day)) if part.day else None
        await db.run(
            sql.SQL("alter table afterwrite.activity attach partition {} {}").format(table, how or sql.SQL("default"))
        )
        if part.day:
            await db.run(sql.SQL("alter table {} drop constraint making").format(table))
    await db.run(sql.SQL("comment on table {} is {}").format(identifier(SCHEMA, DEFAULT), sql.Literal(comment)))
    failpoint("maintain.before_exchange_commit")


async def _rename(db: Database, name: str, final: str) -> None:
    """Rename a table with its indexes, whose names begin with the table's."""
    indexes: list[str] = await db.values(statement("maintain.read_index_names"), name=quoted(SCHEMA, name))
    for index in indexes:
        if index.startswith(name):
            await db.run(
                sql.SQL("alter index {} rename to {}").format(
                    identifier(SCHEMA, index), sql.Identifier(f"{final}{index.removeprefix(name)}")
                )
            )
    await db.run(sql.SQL("alter table {} rename to {}").format(identifier(SCHEMA, name), sql.Identifier(final)))
