"""The partitions of the activity table: one a UTC day, a default one for the rest, and what indexes each carries.

::

    temperature   indexes besides the primary key
    hot           entity, actor, tenant           born so; the default partition always
                  text, facts                     words, and what stands in metadata
    cold          entity, time (BRIN)             made of a hot one by maintenance; born so for imported old rows
    either        gone, cause                     what the others cannot find, and next to nothing of it

Every index belongs to its partition alone: one of the parent's could not be dropped from a single old partition.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import LiteralString, assert_never

from psycopg import sql

from afterwrite.errors import Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, LockPolicy, identifier, quoted, statement, with_short_locks

log = logging.getLogger(__name__)

SCHEMA = "afterwrite"
PARENT = "activity"
DEFAULT = "activity_default"
AHEAD_DAYS = 7
# A day whose rows wait in the default partition is moved in one transaction up to here (30 µs a row under a lock that
# shuts readers out); beyond it recast.py does it at leisure. ATTACH reads the whole default partition under that lock.
MOVED_AT_ONCE = 10_000
SCANNED_AT_ONCE = 128 * 1024 * 1024
_OLDEST_DAYS = 366
_NAME = re.compile(r"activity_(\d{4})_(\d{2})_(\d{2})")
_FEW_TRIES = LockPolicy(lock_timeout_ms=200, attempts=3, first_pause_ms=20, longest_pause_ms=100)


class Temperature(StrEnum):
    """How a partition is read: ``hot`` by everything people search for, ``cold`` by entity, by time, or whole."""

    HOT = "hot"
    COLD = "cold"


# A full index page is merged into GIN when 1 MiB is pending: a row costs the same as with the usual 4 MiB, the writer
# that has to do it is held up a quarter as long, and fastupdate off would cost more than twice as much.
INDEXES: Mapping[str, LiteralString] = {
    "entity": "btree (entity_type, entity_id, occurred_at desc) where entity_id is not null",
    "actor": "btree (actor_id, occurred_at desc) where actor_id is not null",
    "tenant": "btree (tenant_id, occurred_at desc) where tenant_id is not null",
    "text": "gin (afterwrite.lexemes(action, entity_type, entity_id, actor_id, summary, changed, category, outcome,"
    " severity, request_id, session_id, trace_id)) with (fastupdate = on, gin_pending_list_limit = 1024)",
    "facts": "gin ((metadata::jsonb) jsonb_path_ops) with (fastupdate = on, gin_pending_list_limit = 1024)"
    " where metadata is not null",
    "gone": "btree (entity_type, left(metadata ->> 'entity_was', 400), occurred_at desc)"
    " where operation = 'truncate' or (operation = 'update' and (metadata ->> 'entity_was') is not null)",
    # A quarter of a microsecond a row that has a cause; all of them would cost 0.8, a twentieth of the whole row.
    "cause": "btree (caused_by)"
    " where caused_by is not null and (kind = 'event' or left(caused_by::text, 11) <> left(id::text, 11))",
    "time": "brin (occurred_at)",
}


def wanted_indexes(temperature: Temperature) -> frozenset[str]:
    """Which of ``INDEXES`` a partition of this temperature carries, and no other of them."""
    match temperature:
        case Temperature.HOT:
            return frozenset({"entity", "actor", "tenant", "text", "facts", "gone", "cause"})
        case Temperature.COLD:
            return frozenset({"entity", "time", "gone", "cause"})
        case _:
            assert_never(temperature)


def partition_name(day: date) -> str:
    """``activity_2026_07_01``."""
    return name_of(f"{PARENT}_", day)


def name_of(beginning: str, day: date) -> str:
    """What a table of a day is called: its beginning and the day, the year in four digits, which ``%Y`` need not be."""
    return beginning + day.isoformat().replace("-", "_")


def partition_day(name: str) -> date | None:
    """The day of a partition, or None when the name is not that of a day's."""
    match = _NAME.fullmatch(name)
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def bounds(day: date) -> dict[str, sql.Composable]:
    """The day's first moment and the next day's, as SQL words ``from_time`` and ``to_time``."""
    return {
        "from_time": sql.Literal(f"{day.isoformat()} 00:00:00+00"),
        "to_time": sql.Literal(f"{(day + timedelta(days=1)).isoformat()} 00:00:00+00"),
    }


def create_index(table: str, index: str, *, concurrently: bool = False) -> sql.Composed:
    """The statement that builds one of ``INDEXES`` on a table of ours."""
    return sql.SQL("create index {how} {name} on {table} using {definition}").format(
        how=sql.SQL("concurrently" if concurrently else ""),
        name=sql.Identifier(f"{table}_{index}"),
        table=identifier(SCHEMA, table),
        definition=sql.SQL(INDEXES[index]),
    )


async def read_partition_days(db: Database) -> set[date]:
    """The days that have a partition."""
    names: list[str] = await db.values(statement("store.read_partitions"))
    return {day for day in map(partition_day, names) if day is not None}


async def make_partitions(
    db: Database, *, ahead_days: int = AHEAD_DAYS, days: Iterable[date] = (), policy: LockPolicy | None = None
) -> list[date]:
    """Make the partitions of today, of the days ahead, of ``days``, and of what waits in the default partition.

    Returns the days that got one. Each is attached under a short lock_timeout, and its rows are moved over from the
    default partition in the same transaction. Raises LockTimeout when readers of the default partition do not let go,
    and Refused when so much waits there that moving it would hold them up; nothing is lost by either, since rows
    without a partition of their own are kept in the default one.
    """
    today = datetime.now(UTC).date()
    wanted = {today + timedelta(days=offset) for offset in range(ahead_days + 1)} | set(days)
    wanted |= set(
        await db.values(
            statement("store.read_default_days"),
            first_day=today - timedelta(days=_OLDEST_DAYS),
            last_day=today + timedelta(days=ahead_days),
        )
    )
    made: list[date] = []
    large: list[date] = []
    for day in sorted(wanted - await read_partition_days(db)):
        if await _is_large(db, day):
            large.append(day)
            continue
        await make_partition(db, day, policy=policy)
        made.append(day)
    if large:
        raise Refused(
            f"too many rows wait in {quoted(SCHEMA, DEFAULT)} of {db.where} to be moved at once"
            f" ({', '.join(day.isoformat() for day in large[:3])}{' and more' if large[3:] else ''})",
            remedy="run `afterwrite maintain --apply`, which moves them beside readers and writers",
        )
    return made


async def make_partitions_of(db: Database, days: Mapping[date, Temperature]) -> list[date]:
    """Make the partitions of days that rows are about to come for, each with the indexes that its age wants.

    Returns the days that got one. A day of which too much waits in the default partition is left to maintenance, which
    moves it beside readers and writers. Raises LockTimeout when readers of the default partition do not let go.
    """
    made: list[date] = []
    for day in sorted(days.keys() - await read_partition_days(db)):
        if not await _is_large(db, day):
            await make_partition(db, day, temperature=days[day])
            made.append(day)
    return made


async def make_partition(
    db: Database, day: date, *, temperature: Temperature = Temperature.HOT, policy: LockPolicy | None = None
) -> None:
    """Make one day's partition, its waiting rows in it; nothing happens where it is there already."""
    failpoint("maintain.before_make")
    await with_short_locks(
        db, [quoted(SCHEMA, DEFAULT)], lambda db: _make_partition(db, day, temperature), policy=policy or _FEW_TRIES
    )
    failpoint("maintain.after_make")


async def _is_large(db: Database, day: date) -> bool:
    """Whether readers of the default partition would be shut out for long while this day is taken out of it."""
    if await db.value(statement("store.read_default_bytes")) > SCANNED_AT_ONCE:
        return True
    waiting: int = await db.value(statement("store.count_default_day"), day=day, limit=MOVED_AT_ONCE + 1)
    return waiting > MOVED_AT_ONCE


# CREATE TABLE … PARTITION OF would lock the whole of activity; ATTACH lets readers and writers go on, and locks only
# the default partition, whose rows of that day come along.
_CREATE = "create table {name} (like afterwrite.activity including all excluding comments)"
_ATTACH = (
    "lock table afterwrite.activity_default in access exclusive mode",
    """
    with moved as (
        delete from afterwrite.activity_default where occurred_at >= {from_time} and occurred_at < {to_time} returning *
    )
    insert into {name} select * from moved
    """,
    "alter table afterwrite.activity attach partition {name} for values from ({from_time}) to ({to_time})",
)


async def _make_partition(db: Database, day: date, temperature: Temperature) -> None:
    await db.run(statement("store.lock_partitions"))
    if day in await read_partition_days(db):
        return
    name = partition_name(day)
    await create_like_activity(db, name)
    for index in sorted(wanted_indexes(temperature)):
        await db.run(create_index(name, index))
    words = {"name": identifier(SCHEMA, name)} | bounds(day)
    for text in _ATTACH:
        await db.run(sql.SQL(text).format(**words))
    failpoint("maintain.before_make_commit")


async def create_like_activity(db: Database, name: str) -> None:
    """Make a table that can become a partition: columns, constraints and primary key, owned as the parent is."""
    table = identifier(SCHEMA, name)
    await db.run(sql.SQL(_CREATE).format(name=table))
    owner: str | None = await db.value(statement("store.read_foreign_owner"))
    if owner is not None:
        # A superuser at work: the role that laid the schema must go on being able to attach, index and drop it.
        await db.run(sql.SQL("alter table {} owner to {}").format(table, sql.Identifier(owner)))
