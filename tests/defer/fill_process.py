"""A process that fills a window, for those who kill it."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from afterwrite.defer.calls import ReplayPolicy
from afterwrite.defer.window import replay_window
from afterwrite.postgres import connect
from afterwrite.record import Lsn
from afterwrite.scan.catalog import Trigger


class Given(msgspec.Struct):
    triggers: list[Trigger]
    after: int
    until: int


async def main(dsn: str, given: Given) -> None:
    async with connect(dsn) as db, connect(dsn) as store:
        await replay_window(
            db,
            store,
            source="app",
            triggers=given.triggers,
            after=Lsn(given.after),
            until=Lsn(given.until),
            policy=ReplayPolicy(round_transactions=1),
        )


asyncio.run(main(sys.argv[1], msgspec.json.decode(sys.argv[2], type=Given)))
