"""A writer of the fan-in run: ``fan_in_writer.py URL DSN``; it appends its state to the file that $STATUS names."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

import msgspec

from afterwrite.broker.link import read_access
from afterwrite.broker.write import Pace, WriterStatus, run_writers
from afterwrite.store.writer import open_sink


async def main(url: str, dsn: str) -> None:
    logging.getLogger("afterwrite").setLevel(logging.ERROR)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    path = Path(os.environ["STATUS"])
    told: dict[int, WriterStatus] = {}

    def hear(status: WriterStatus) -> None:
        told[status.partition] = status
        path.with_suffix(".new").write_bytes(msgspec.json.encode(list(told.values())))
        path.with_suffix(".new").rename(path)

    await run_writers(
        read_access(url),
        partial(open_sink, dsn),
        stop=stop,
        pace=Pace(batch_rows=400, linger_seconds=0.02),
        on_status=hear,
    )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
