"""A process of the recorder's run: ``recorder_writer.py FOLDER DSN NUMBER THREADS EVENTS RATE SURVIVORS``."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from afterwrite.context import Context
from afterwrite.recorder import Options, Recorder
from afterwrite.store.writer import open_sink

_NOTED_EVERY = 250


def main() -> int:
    folder, dsn, number, threads, events, rate, survivors = sys.argv[1:]
    logging.getLogger("afterwrite").setLevel(logging.ERROR)
    recorder = Recorder(
        source="soak",
        open_sink=lambda: open_sink(dsn),
        # Nothing may be shed: a call waits for room for as long as the outage may take.
        options=Options(spool_dir=f"{folder}/spool", overflow="block", block_seconds=300.0, batch_events=2_000),  # type: ignore[arg-type]
        destination=dsn,
    )

    def work(thread: int) -> None:
        who = Context(actor_id=str(thread), tenant_id="soak")
        noted = os.open(f"{folder}/noted-{number}-{thread}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        began = time.monotonic()
        for event in range(int(events)):
            recorded = recorder.record(
                "soak.event", entity=(number, event), metadata={"n": event, "path": "/soak"}, context=who
            )
            if event % _NOTED_EVERY == 0 and recorded.wait(60):
                os.write(noted, f"{event}\n".encode())
            if float(rate) and event % 20 == 0:
                time.sleep(max(0.0, began + event / float(rate) - time.monotonic()))

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    Path(folder, f"recorded-{number}").touch()
    # The others' files are taken over by whoever is there: nobody leaves before all of them are delivered.
    while True:
        recorder.flush(1.0)
        held = [path for path in Path(folder, "spool").glob("*.spool") if path.stem.split("-")[1] != str(os.getpid())]
        everybody = len(list(Path(folder).glob("recorded-*"))) >= int(survivors)
        foreign = [path for path in held if not _is_survivors(path)]
        if everybody and not foreign and recorder.stats().spooled == 0:
            break
        time.sleep(0.1)
    stats = recorder.stats()
    recorder.close()
    sys.stdout.buffer.write(msgspec.json.encode(stats))
    return 0


def _is_survivors(path: Path) -> bool:
    """Whether the process of this file is alive."""
    try:
        os.kill(int(path.stem.split("-")[1]), 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{path.stem.split('-')[1]}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    sys.exit(main())
