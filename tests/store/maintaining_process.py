"""A process that maintains the store once, with a handful of rows counting as many: something to kill."""

from __future__ import annotations

import asyncio
import sys

from afterwrite.postgres import connect
from afterwrite.record import Lsn
from afterwrite.store import maintain as maintenance
from afterwrite.store import partitions, recast
from afterwrite.store.maintain import SESSION, MaintainPolicy, Reader, Report, maintain

POLICY = MaintainPolicy(retention_days=40)
READER = Reader(source="main", position=1_000, commit_lsn=Lsn(1_000))
FEW = 20


def make_few_many() -> None:
    """Let few rows be many, so that every way of doing things is taken."""
    for room in (partitions, maintenance):
        room.MOVED_AT_ONCE = FEW
    for room in (maintenance, recast):
        room._CHUNK_ROWS = FEW
    maintenance._CHUNK_BATCHES = 2


async def maintain_once(dsn: str) -> Report:
    """One round; waits for what is left of a round that was killed."""
    async with connect(dsn, options=SESSION) as db:
        return await maintain(db, POLICY, reader=READER, wait_seconds=20)


if __name__ == "__main__":
    make_few_many()
    asyncio.run(maintain_once(sys.argv[1]))
