"""A store of many days, laid by the server itself: for questions about tiers and plans, where millions are wanted fast.

Changes and events as they come: some of everything frequent, some of everything rare. The same rows each day.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import msgspec

from afterwrite.postgres import Database, script, statement
from afterwrite.store.lines import Sealing
from afterwrite.store.maintain import CLOSED_AFTER
from afterwrite.store.partitions import Temperature, create_index, make_partition, partition_name, wanted_indexes
from afterwrite.store.reader import read_day_lines
from afterwrite.store.schema import install_store


async def lay_days(db: Database, rows: int, *, days: int, hot_days: int) -> None:
    """Lay a store of so many rows over the last days (UTC) that may leave, those before ``hot_days`` cold.

    In the first hour of a day the one before is none of them.
    """
    await install_store(db)
    per_day = rows // days
    insert_day = script("bench/activity_day")
    newest = (datetime.now(UTC) - CLOSED_AFTER).date() - timedelta(days=1)
    await db.run(b"select setseed(0.5)")
    for number in range(days):
        day: date = newest - timedelta(days=number)
        await make_partition(db, day)
        name = partition_name(day)
        temperature = Temperature.HOT if number < hot_days else Temperature.COLD
        for index in wanted_indexes(Temperature.HOT):
            await db.run(f"drop index afterwrite.{name}_{index}".encode())
        insert = insert_day.replace("{partition}", name)
        first, batch = (days - number) * per_day, number + 1
        await db.run(insert.encode(), day=f"{day} 00:00+00", first=first, rows=per_day, batch=batch)
        await _seal(db, name, day, batch)
        for index in sorted(wanted_indexes(temperature)):
            await db.run(create_index(name, index))
        await db.run(f"vacuum (analyze) afterwrite.{name}".encode())
    await db.run(b"analyze afterwrite.activity_default")


class _Covered(msgspec.Struct, frozen=True):
    first_at: datetime
    last_at: datetime
    first_lsn: str
    last_lsn: str
    transactions: int


async def _seal(db: Database, name: str, day: date, batch: int) -> None:
    """Give the rows of a day their batch, sealed as a sink's is: without one they would not leave the store."""
    sealing = Sealing()
    async with db.transaction():
        async for line in read_day_lines(db, name):
            sealing.add(line)
        seal = sealing.seal()
        covered = await db.one(_Covered, statement("bench.read_covered"), day=day)
        await db.value(
            statement("store.close_batch"),
            id=batch,
            source="main",
            partition=f"afterwrite.{name}",
            **msgspec.structs.asdict(covered),
            rows=seal.rows,
            rows_per_table=msgspec.json.encode(seal.rows_per_table).decode(),
            rows_digest=seal.digest,
            **dict.fromkeys(("slot", "system_id", "timeline", "lsn")),
            **dict.fromkeys(("context_lsns", "context_xids", "context_settings")),
        )
