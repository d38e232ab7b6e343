"""A process that counts the feed in small steps, refreshes the views and counts anew: something to kill."""

from __future__ import annotations

import asyncio
import sys

from afterwrite.postgres import connect
from afterwrite.store.rollup import SESSION, rebuild, refresh_analytics, roll_up

MOST_ROWS = 40


async def count_all(dsn: str) -> None:
    async with connect(dsn, options=SESSION) as db:
        await roll_up(db, most_rows=MOST_ROWS)
        await refresh_analytics(db)
        await rebuild(db)


if __name__ == "__main__":
    asyncio.run(count_all(sys.argv[1]))
