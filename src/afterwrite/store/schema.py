"""Laying the schema: numbered upgrade files, applied in order, each in its own transaction.

A fresh install is the sum of its upgrades. Every room adds its own ``sql/schema/NNNN_<room>.sql``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec

from afterwrite.errors import DatabaseError, Refused
from afterwrite.postgres import Database, script, statement
from afterwrite.store.partitions import make_partitions

log = logging.getLogger(__name__)

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


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
    try:
        await make_partitions(db)
    except Refused as error:
        log.warning("%s; %s", error, error.remedy)
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
