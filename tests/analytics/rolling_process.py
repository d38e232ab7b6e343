"""Counts the feed in small steps, refreshes the views and counts anew: in a child that breaks at the asked-for place.

Reads names of failpoints, a line each, and answers each with the status of the child that was to break there.
"""

from __future__ import annotations

import asyncio
import os
import sys

from afterwrite import failpoints
from afterwrite.postgres import connect
from afterwrite.store.rollup import SESSION, rebuild, refresh_analytics, roll_up

MOST_ROWS = 40


async def count_all(dsn: str) -> None:
    async with connect(dsn, options=SESSION) as db:
        await roll_up(db, most_rows=MOST_ROWS)
        await refresh_analytics(db)
        await rebuild(db)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            failpoints.arm(f"{line.strip()}=kill")
            asyncio.run(count_all(sys.argv[1]))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
