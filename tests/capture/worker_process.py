"""A worker in a process of its own, so that it can be killed: ``worker_process.py <dsn> <slot>``. Stores in the same
database; ends at SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys

from afterwrite.capture.backlog import Pace
from afterwrite.capture.worker import Source, Worker
from afterwrite.store.writer import open_sink


async def main(dsn: str, slot: str) -> None:
    source = Source(dsn=dsn, name="main", slot=slot)
    worker = Worker(source, lambda: open_sink(dsn), pace=Pace(linger_ms=5, pulse_seconds=0.3, heartbeat_seconds=0.5))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
