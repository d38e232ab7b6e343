"""A capture or a writer of captured changes, to be killed. Of a capture the slot is also the source's name."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from functools import partial

from afterwrite.broker.changes import Patience, open_changes
from afterwrite.broker.link import Access, read_access
from afterwrite.broker.receive import run_sources
from afterwrite.capture.backlog import Pace
from afterwrite.capture.worker import Source, Worker
from afterwrite.failpoints import VARIABLE, arm
from afterwrite.store.writer import open_sink

PACE = Pace(
    linger_ms=5, pulse_seconds=0.2, settle_seconds=0.1, heartbeat_seconds=0.5, silent_seconds=2.0, first_pause_ms=50,
    longest_pause_ms=500,
)  # fmt: skip
PATIENCE = Patience(acknowledged_seconds=4.0, ask_seconds=0.5, silent_seconds=2.0)


def make_worker(access: Access, dsn: str, name: str) -> Worker:
    """A capture of the source of this name, whose slot has the same."""
    source = Source(dsn=dsn, name=name, slot=name)
    return Worker(source, lambda: open_changes(access, name, patience=PATIENCE), pace=PACE, stand_by=True)


def become(failpoints: str, words: tuple[str, ...]) -> None:
    """Be that process, with these failpoints, until SIGTERM."""
    os.environ[VARIABLE] = failpoints
    arm(failpoints)
    asyncio.run(_main(*words))


async def _main(what: str, url: str, stream: str, dsn: str, slot: str) -> None:
    logging.getLogger("afterwrite").setLevel(logging.CRITICAL)
    access = read_access(url, stream=stream)
    loop = asyncio.get_running_loop()
    if what == "capture":
        worker = make_worker(access, dsn, slot)
        loop.add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()
    else:
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await run_sources(access, partial(open_sink, dsn), stop=stop)
