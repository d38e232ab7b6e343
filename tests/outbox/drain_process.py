"""A drain in a process of its own, so that it can be killed: ``drain_process.py <dsn> [go on]``.

It ends when nothing waits, unless it is to go on.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import msgspec
from outbox_scene import PACE, come, count, draining

logging.getLogger("afterwrite").setLevel(logging.ERROR)


async def main(dsn: str, *, go_on: bool) -> None:
    async with draining(dsn, pace=msgspec.structs.replace(PACE, batch_rows=40 if go_on else 4)):
        await come(lambda: not go_on and count(dsn, "afterwrite_outbox.event") == 0, 60)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], go_on=len(sys.argv) > 2))
