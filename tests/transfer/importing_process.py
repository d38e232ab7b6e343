"""A process that imports a log once, in small chunks: something to kill."""

from __future__ import annotations

import asyncio
import sys

from legacy_scene import scene

from afterwrite.transfer.legacy import Policy


async def import_once(dsn: str) -> None:
    async with scene(dsn) as found:
        await found.bring("log", policy=Policy(chunk_rows=30))


if __name__ == "__main__":
    asyncio.run(import_once(sys.argv[1]))
