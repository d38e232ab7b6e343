"""A recorder of the fan-in run: ``fan_in_recorder.py FOLDER URL NAME RATE RECEIPTS``.

It records until the folder has a file ``stop``, then until all spools of the folder are empty. What it was told is in
the spool goes into its ledger: the id, the entity and the number that the event has for that entity.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import msgspec

from afterwrite import activity
from afterwrite.context import Context

_NOTED_EVERY = 25
_ENTITIES = 7


def main() -> int:
    folder, url, name, rate, receipts = sys.argv[1:]
    logging.getLogger("afterwrite").setLevel(logging.ERROR)
    recorder = activity.configure(
        record_url=url,
        service=f"service-{int(name.partition('.')[0]) % 3}",
        spool_dir=f"{folder}/spool",
        durability="stored" if int(receipts) else "spool",
        batch_events=500,
        overflow="block",
        block_seconds=120.0,
    )
    ledger = os.open(f"{folder}/ledger-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    times: list[int] = []
    lines: list[str] = []
    began = time.monotonic()
    number = 0
    while not Path(folder, "stop").exists():
        entity = number % _ENTITIES
        # A third of them have a tenant that others have, too; what has none goes by its entity.
        who = Context(actor_id=name, tenant_id=f"tenant-{entity}" if entity % 3 == 0 else None)
        before = time.perf_counter_ns()
        recorded = recorder.record(
            "soak.event", entity=(name, entity), metadata={"n": number // _ENTITIES, "path": "/soak"}, context=who
        )
        times.append(time.perf_counter_ns() - before)
        lines.append(f"{recorded.id} {entity} {number // _ENTITIES}\n")
        number += 1
        if number % _NOTED_EVERY == 0 and recorded.wait(60):
            os.write(ledger, "".join(lines).encode())
            lines.clear()
            time.sleep(max(0.0, began + number / float(rate) - time.monotonic()))
    if lines and recorded.wait(60):
        os.write(ledger, "".join(lines).encode())
    while True:
        recorder.flush(1.0)
        if Path(folder, "leave").exists():
            break
        if recorder.stats().spooled == 0 and not [path for path in Path(folder, "spool").glob("*.spool") if _has(path)]:
            Path(folder, f"empty-{name}").touch()
    times.sort()
    stats = recorder.stats()
    recorder.close()
    p99 = times[len(times) * 99 // 100] / 1e3 if times else 0.0
    sys.stdout.buffer.write(msgspec.json.encode({"stats": stats, "calls": len(times), "p99_us": p99}))
    return 0


def _has(path: Path) -> bool:
    """Whether this is the file of a process that is gone."""
    try:
        os.kill(int(path.stem.split("-")[1]), 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{path.stem.split('-')[1]}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"


if __name__ == "__main__":
    sys.exit(main())
