"""The recorder under fire: ``./run python -m tests.recorder_soak [--events 1000000] [--outage 20] [--kills 2]``.

Four processes of four threads record a million events; PostgreSQL is stopped (``immediate``) for 20 s meanwhile, and
two of the processes are killed with SIGKILL in that time. Progress goes to stderr, the closing table to stdout. Ends
with 1 where an event that was spooled is not in the store once, or an account does not close.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("recorder")))

from recorder_run import Orders, Outcome, run_recorders

WIDTH = 80


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.recorder_soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="of all threads together (1,000,000)")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=4, help="in each process")
    parser.add_argument("--outage", type=float, default=20.0, help="seconds for which PostgreSQL is stopped")
    parser.add_argument("--kills", type=int, default=2, help="processes that are SIGKILLed in that time")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    orders = Orders(
        events=given.events,
        processes=given.processes,
        threads=given.threads,
        kills=given.kills,
        outage_seconds=given.outage,
        seed=given.seed,
    )
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        outcome = run_recorders(Path(folder), orders, _say)
    print(table(orders, outcome))
    for difference in outcome.differences:
        _say(f"DIFFERENCE: {difference}")
    return 1 if outcome.differences else 0


def table(orders: Orders, outcome: Outcome) -> str:
    """What it came to, in 80 columns."""
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in outcome.dropped.items()) or "0"
    return "\n".join(
        [
            "=" * WIDTH,
            _row("processes, threads in each", f"{orders.processes}, {orders.threads}"),
            _row("processes killed (SIGKILL)", orders.kills),
            _row("PostgreSQL stopped (immediate)", f"{orders.outage_seconds:g} s"),
            _row("duration", f"{outcome.seconds:,.0f} s"),
            _row("events recorded by those that lived on", outcome.recorded_by_survivors),
            _row("taken over from those that were killed", outcome.adopted),
            _row("stored by those that lived on", outcome.stored_by_survivors),
            _row("dropped by those that lived on", dropped),
            _row("noted as spooled, by all", outcome.noted),
            _row("in the store", outcome.rows),
            _row("of the killed: not recorded, or not spooled yet", outcome.lost_unspooled),
            _row("differences", len(outcome.differences)),
            "=" * WIDTH,
        ]
    )


def _row(name: str, value: object) -> str:
    words = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{name} {words.rjust(WIDTH - len(name) - 1)}"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
