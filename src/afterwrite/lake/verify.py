"""Whether the lake still has what the ledger says: every file of a day read again, and its digest made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date

import msgspec

from afterwrite.lake.archive import Part, read_parts
from afterwrite.lake.rows import DIGESTED, Sum, add_up
from afterwrite.lake.table import Lake
from afterwrite.lake.tiers import left_days
from afterwrite.postgres import Database

_MODULUS = 1 << 256


class DayRead(msgspec.Struct, frozen=True, kw_only=True):
    """A day as the ledger has it and as it was read: ``same`` where count and digest agree."""

    day: date
    rows: int
    read: int
    same: bool


async def verify(db: Database, lake: Lake, *, on_day: Callable[[DayRead], None] | None = None) -> list[DayRead]:
    """Read every day of the lake that the ledger tells of; memory does not grow with it."""
    parts: dict[date, list[Part]] = {}
    for part in await read_parts(db):
        parts.setdefault(part.day, []).append(part)
    await left_days(db, lake)
    await asyncio.to_thread(lake.open)
    read: list[DayRead] = []
    for day, told in parts.items():
        found = await asyncio.to_thread(_read, lake, day)
        rows = sum(part.rows for part in told)
        total = sum(int.from_bytes(part.digest, "big") for part in told) % _MODULUS
        read.append(DayRead(day=day, rows=rows, read=found.rows, same=(rows, total) == (found.rows, found.total)))
        if on_day:
            on_day(read[-1])
    return read


def _read(lake: Lake, day: date) -> Sum:
    return add_up(lake.batches(day, None, DIGESTED))
