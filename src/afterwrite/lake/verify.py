"""Whether the lake still has what the ledger says: every file of a day read again, and its digest made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.lake.archive import Part, need_ours, read_parts
from afterwrite.lake.rows import DIGESTED, Sum, add_up
from afterwrite.lake.table import Lake
from afterwrite.postgres import Database
from afterwrite.store.writer import read_identity

_MODULUS = 1 << 256


class DayRead(msgspec.Struct, frozen=True, kw_only=True):
    """A day as the ledger has it and as it was read: ``same`` where count and digest agree.

    ``trouble``: why it cannot be read to its end.
    """

    day: date
    rows: int
    read: int
    same: bool
    trouble: str | None = None


async def verify(db: Database, lake: Lake, *, on_day: Callable[[DayRead], None] | None = None) -> list[DayRead]:
    """Read every day of the lake that the ledger tells of, and name those that it does not tell of; memory does not
    grow with it."""
    parts: dict[date, list[Part]] = {}
    for part in await read_parts(db):
        parts.setdefault(part.day, []).append(part)
    there = await asyncio.to_thread(lake.open)
    if parts:
        told = tuple(part for each in parts.values() for part in each)
        need_ours(lake, await read_identity(db), told, there=there)
    read: list[DayRead] = []
    for day, told in parts.items():
        found, trouble = Sum(), None
        try:
            found = await asyncio.to_thread(_read, lake, day)
        except AfterwriteError as error:
            # Where the log cannot be read either, it is the storage that is away, and not a file that is gone.
            await asyncio.to_thread(lake.open)
            trouble = str(error)
        rows = sum(part.rows for part in told)
        total = sum(int.from_bytes(part.digest, "big") for part in told) % _MODULUS
        same = trouble is None and (rows, total) == (found.rows, found.total)
        read.append(DayRead(day=day, rows=rows, read=found.rows, same=same, trouble=trouble))
        if on_day:
            on_day(read[-1])
    rows_of: dict[date, int] = {}
    for file in lake.files() if there else ():
        rows_of[file.day] = rows_of.get(file.day, 0) + file.rows
    read += [
        DayRead(day=day, rows=0, read=rows_of[day], same=False, trouble=_UNTOLD)
        for day in sorted(rows_of.keys() - parts.keys())
    ]
    return read


_UNTOLD = (
    "no question is asked of it, since the ledger does not tell of it: a run of `afterwrite lake archive` was"
    " interrupted, and the next one looks after that; or the store was set back and lacks what came for that day later"
)


def _read(lake: Lake, day: date) -> Sum:
    return add_up(lake.batches(day, None, DIGESTED))
