"""A worker in a process of its own, so that it can be killed: ``worker_process.py <dsn> <slot> [<store's dsn>]``.

Stores in the same database unless told otherwise, stands by for another one, ends at SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from afterwrite.capture.backlog import Pace
from afterwrite.capture.worker import Source, Worker
from afterwrite.store.writer import open_sink

PACE = Pace(linger_ms=5, pulse_seconds=0.3, heartbeat_seconds=0.5, silent_seconds=1.5, longest_pause_ms=1_000)


async def main(dsn: str, slot: str, store: str) -> None:
    source = Source(dsn=dsn, name="main", slot=slot)
    worker = Worker(source, lambda: open_sink(store, sole=True), pace=PACE, stand_by=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[-1] if len(sys.argv) > 3 else sys.argv[1]))
