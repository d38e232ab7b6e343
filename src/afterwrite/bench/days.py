"""A store of many days, laid by the server itself: for questions about tiers and plans, where millions are wanted fast.

Changes and events as they come: some of everything frequent, some of everything rare. The same rows each day.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from afterwrite.postgres import Database, script
from afterwrite.store.partitions import Temperature, create_index, make_partition, partition_name, wanted_indexes
from afterwrite.store.schema import install_store


async def lay_days(db: Database, rows: int, *, days: int, hot_days: int) -> None:
    """Lay a store of so many rows over the last full days (UTC), those before ``hot_days`` cold."""
    await install_store(db)
    per_day = rows // days
    insert_day = script("bench/activity_day")
    today = datetime.now(UTC).date()
    await db.run(b"select setseed(0.5)")
    for number in range(days):
        day: date = today - timedelta(days=number + 1)
        await make_partition(db, day)
        name = partition_name(day)
        temperature = Temperature.HOT if number < hot_days else Temperature.COLD
        for index in wanted_indexes(Temperature.HOT):
            await db.run(f"drop index afterwrite.{name}_{index}".encode())
        insert = insert_day.replace("{partition}", name)
        await db.run(insert.encode(), day=f"{day} 00:00+00", first=(days - number) * per_day, rows=per_day)
        for index in sorted(wanted_indexes(temperature)):
            await db.run(create_index(name, index))
        await db.run(f"vacuum (analyze) afterwrite.{name}".encode())
    await db.run(b"analyze afterwrite.activity_default")
