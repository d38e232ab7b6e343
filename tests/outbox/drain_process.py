"""A drain in a process of its own, so that it can be killed: ``drain_process.py <dsn>``. It ends when nothing waits."""

from __future__ import annotations

import asyncio
import logging
import sys

import msgspec
from outbox_scene import PACE, come, count, draining

logging.getLogger("afterwrite").setLevel(logging.ERROR)


async def main(dsn: str) -> None:
    async with draining(dsn, pace=msgspec.structs.replace(PACE, batch_rows=4)):
        await come(lambda: count(dsn, "afterwrite_outbox.event") == 0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
