"""Laying the schema: numbered upgrade files, applied in order, each in its own transaction, and a partition a day.

A fresh install is the sum of its upgrades. Every room adds its own ``sql/schema/NNNN_<room>.sql``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib import resources

import msgspec
from psycopg import sql

from afterwrite.errors import DatabaseError, Refused
from afterwrite.postgres import Database, LockPolicy, script, statement, with_short_locks

AHEAD_DAYS = 7
_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_PARTITION = re.compile(r"activity_(\d{4})_(\d{2})_(\d{2})")
_FEW_TRIES = LockPolicy(lock_timeout_ms=200, attempts=3, first_pause_ms=20, longest_pause_ms=100)


class Upgrade(msgspec.Struct, frozen=True):
    """One step of the schema's history: its number, and the name of the room that wrote it."""

    number: int
    name: str


@cache
def known_upgrades() -> tuple[Upgrade, ...]:
    """The upgrades that this version of afterwrite brings, oldest first."""
    files = (_FILE.fullmatch(file.name) for file in resources.files("afterwrite").joinpath("sql", "schema").iterdir())
    found = sorted((Upgrade(int(match[1]), match[2]) for match in files if match), key=lambda upgrade: upgrade.number)
    numbers = [upgrade.number for upgrade in found]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"two schema upgrades share a number: {found}")
    return tuple(found)


async def read_version(db: Database) -> int | None:
    """The number of the newest upgrade that this database has had, or None where afterwrite is not installed."""
    applied = await read_upgrades(db)
    return applied[-1].number if applied else None


async def read_upgrades(db: Database) -> list[Upgrade]:
    """The upgrades that this database has had, oldest first."""
    if not await db.value(statement("store.read_installed")):
        return []
    return await db.rows(Upgrade, statement("store.read_upgrades"))


async def install_store(db: Database) -> list[str]:
    """Apply the upgrades that are missing, make the partitions of the coming days, and name what was applied.

    Safe to run again, and by two at once (the second waits and finds nothing to do). Raises Refused when the database
    has upgrades that this version does not know, or is not encoded in UTF-8.
    """
    encoding: str = await db.value(statement("store.read_encoding"))
    if encoding != "UTF8":
        raise Refused(
            f"{db.where} is encoded in {encoding}, which cannot hold every character an activity may have",
            remedy="create database … encoding 'UTF8' template template0, and name it with --store-dsn",
        )
    applied: list[str] = []
    for upgrade in known_upgrades():
        async with db.transaction():
            await db.run(statement("store.lock_upgrades"))
            had = await read_upgrades(db)
            _refuse_unknown(had, db.where)
            if upgrade in had:
                continue
            await db.script(script(f"schema/{upgrade.number:04}_{upgrade.name}"))
            await db.run(statement("store.record_upgrade"), number=upgrade.number, name=upgrade.name)
            applied.append(f"{upgrade.number:04}_{upgrade.name}")
    await make_partitions(db)
    return applied


async def require_store(db: Database) -> None:
    """Raise, with the mending command, unless the schema here is exactly the one this version works with."""
    had = await read_upgrades(db)
    if not had:
        raise DatabaseError(f"afterwrite is not installed in {db.where}", remedy="run `afterwrite install --apply`")
    _refuse_unknown(had, db.where)
    missing = [upgrade for upgrade in known_upgrades() if upgrade not in had]
    if missing:
        names = ", ".join(f"{upgrade.number:04}_{upgrade.name}" for upgrade in missing)
        raise Refused(f"the schema in {db.where} lacks {names}", remedy="run `afterwrite install --apply`")


def _refuse_unknown(had: Sequence[Upgrade], where: str) -> None:
    unknown = [upgrade for upgrade in had if upgrade not in known_upgrades()]
    if unknown:
        names = ", ".join(f"{upgrade.number:04}_{upgrade.name}" for upgrade in unknown)
        raise Refused(
            f"the schema in {where} was laid by another version of afterwrite: {names} is unknown to this one",
            remedy="use the version that laid it, or a newer one: pip install --upgrade afterwrite",
        )


async def make_partitions(
    db: Database, *, ahead_days: int = AHEAD_DAYS, days: Iterable[date] = (), policy: LockPolicy | None = None
) -> list[date]:
    """Make the partitions of today, of the days ahead, of ``days``, and of what waits in the default partition.

    Returns the days that got one. Each is attached under a short lock_timeout, and its rows are moved over from the
    default partition in the same transaction. Raises LockTimeout when readers of the default partition do not let go;
    nothing is lost by that, since rows without a partition of their own are kept in the default one.
    """
    today = datetime.now(UTC).date()
    wanted = {today + timedelta(days=offset) for offset in range(ahead_days + 1)} | set(days)
    wanted |= set(
        await db.values(
            statement("store.read_default_days"),
            first_day=today - timedelta(days=366),
            last_day=today + timedelta(days=ahead_days),
        )
    )
    present = await read_partition_days(db)
    made = sorted(wanted - present)
    for day in made:
        await with_short_locks(
            db,
            ["afterwrite.activity_default"],
            lambda db, day=day: _make_partition(db, day),
            policy=policy or _FEW_TRIES,
        )
    return made


async def read_partition_days(db: Database) -> set[date]:
    """The days that have a partition."""
    names: list[str] = await db.values(statement("store.read_partitions"))
    found = (_PARTITION.fullmatch(name) for name in names)
    return {date(int(match[1]), int(match[2]), int(match[3])) for match in found if match}


# CREATE TABLE … PARTITION OF would lock the whole of activity; ATTACH lets readers and writers go on, and locks only
# the default partition, whose rows of that day come along.
_MAKE_PARTITION = (
    "create table {name} (like afterwrite.activity including all excluding comments)",
    "lock table afterwrite.activity_default in access exclusive mode",
    """
    with moved as (
        delete from afterwrite.activity_default where occurred_at >= {from_time} and occurred_at < {to_time} returning *
    )
    insert into {name} select * from moved
    """,
    "alter table afterwrite.activity attach partition {name} for values from ({from_time}) to ({to_time})",
)


async def _make_partition(db: Database, day: date) -> None:
    await db.run(statement("store.lock_partitions"))
    if day in await read_partition_days(db):
        return
    words = {
        "name": sql.Identifier("afterwrite", f"activity_{day:%Y_%m_%d}"),
        "from_time": sql.Literal(f"{day.isoformat()} 00:00:00+00"),
        "to_time": sql.Literal(f"{(day + timedelta(days=1)).isoformat()} 00:00:00+00"),
    }
    for text in _MAKE_PARTITION:
        await db.run(sql.SQL(text).format(**words))
