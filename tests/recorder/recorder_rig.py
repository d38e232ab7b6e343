"""A sink that keeps what it is given, and breaks when it is told to; a recorder with a spool of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from afterwrite.errors import ConnectionLost
from afterwrite.record import Activity, Batch, Receipt
from afterwrite.recorder import Options, Recorder


class KeptSink:
    """Stores an id once, as the store does."""

    def __init__(self) -> None:
        self.activities: dict[str, Activity] = {}
        self.batches: list[Batch] = []
        self.down = False
        self.opened = 0
        self.refuse: Callable[[Activity], Exception | None] = lambda activity: None
        self.turn = threading.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[KeptSink]:
        self.opened += 1
        if self.down:
            raise ConnectionLost("the store is down")
        yield self

    async def write(self, batch: Batch) -> Receipt:
        if self.down:
            raise ConnectionLost("the store is down")
        for activity in batch.activities:
            if error := self.refuse(activity):
                raise error
        with self.turn:
            self.batches.append(batch)
            for activity in batch.activities:
                self.activities.setdefault(activity.id, activity)
        return Receipt(batch_id=len(self.batches), position=len(self.batches), stored=len(batch.activities))

    def metadata(self, id: str) -> object:
        raw = self.activities[id].metadata
        return None if raw is None else msgspec.json.decode(raw)


@contextmanager
def recording(folder: Path, sink: KeptSink | None = None, **options: object) -> Iterator[tuple[Recorder, KeptSink]]:
    """A recorder into a sink that keeps, closed at the end."""
    kept = sink or KeptSink()
    recorder = Recorder(
        source="shop",
        open_sink=kept.open,
        options=Options(spool_dir=str(folder / "spool"), **{"linger_seconds": 0.0, "close_seconds": 2.0, **options}),
    )
    try:
        yield recorder, kept
    finally:
        recorder.close()


def assert_closed_account(recorder: Recorder) -> None:
    """What was recorded is queued, spooled, stored or dropped, and nothing else."""
    stats = recorder.stats()
    found = stats.queued + stats.spooled + stats.stored + sum(stats.dropped.values())
    assert stats.recorded + stats.adopted == found, stats


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
