"""The long fault run: ``./run python -m tests.soak --kills 1000 [--seed N] [--minutes M]``.

As many cuts as kills, and a crash of the server now and then; see tests/faults/fault_run.py. Progress goes to stderr,
the closing table to stdout. Ends with 1 on any difference between the store and what was committed. The run is divided
into rounds of at most 250 kills, each on a cluster of its own with a seed that follows from the first, so that a
difference can be had again in minutes: ``--seed`` of that round with the same ``--round-kills``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("faults")))

from fault_run import Outcome, Way, places, run_faults

SEED = 20261122
WIDTH = 80


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs in all; as many cuts are added (1000)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the first round; the next adds one ({SEED})")
    parser.add_argument("--minutes", type=float, help="begin no round after so many minutes")
    parser.add_argument("--round-kills", type=int, default=250, help="kills a round, each on a fresh cluster (250)")
    given = parser.parse_args()
    began = time.monotonic()
    rounds: list[Outcome] = []
    left = given.kills
    while left > 0 and (given.minutes is None or time.monotonic() - began < given.minutes * 60):
        kills, seed = min(left, given.round_kills), given.seed + len(rounds)
        left -= kills
        _say(f"round {len(rounds) + 1}: seed {seed}, {kills} kills")
        # A Unix socket's path may not be long, so the folder is not below the caller's.
        with tempfile.TemporaryDirectory(prefix="soak") as folder:
            try:
                outcome = asyncio.run(
                    run_faults(Path(folder), seed=seed, kills=kills, cuts=kills, crashes=max(1, kills // 50), say=_say)
                )
            except (TimeoutError, AssertionError) as error:
                _say("\n".join([f"round {len(rounds) + 1} broke off: {error}", *getattr(error, "__notes__", [])]))
                _say(_again(seed, kills))
                return 1
        rounds.append(outcome)
        for difference in outcome.differences:
            _say(f"DIFFERENCE: {difference}")
        if outcome.differences:
            _say(_again(seed, kills))
    print(table(rounds))
    return 1 if any(outcome.differences for outcome in rounds) else 0


def table(rounds: list[Outcome]) -> str:
    """What all rounds came to, in 80 columns."""
    ways, struck, counted = Counter[str](), Counter[str](), Counter[str]()
    takeovers: list[float] = []
    for outcome in rounds:
        ways += outcome.ways
        struck += outcome.struck
        counted += outcome.counted
        takeovers += outcome.takeovers
    seeds = sorted(outcome.seed for outcome in rounds)
    missed = [name for name in places() if not struck[name]]
    lines = [
        "=" * WIDTH,
        _row("seeds", f"{seeds[0]} to {seeds[-1]}"),
        _row("PostgreSQL", ", ".join(sorted({str(outcome.postgres) for outcome in rounds}))),
        _row("duration", f"{sum(outcome.seconds for outcome in rounds):,.0f} s"),
        _row("processes killed (SIGKILL)", sum(outcome.kills for outcome in rounds)),
        _row("cuts, stalls, lost replies, full disks", sum(outcome.cuts for outcome in rounds)),
        _row("crashes of the server", sum(outcome.crashes for outcome in rounds)),
        _row("failpoints struck", f"{len(places()) - len(missed)} of {len(places())}"),
        "-" * WIDTH,
        *(_row(f"  {way}", count) for way, count in sorted(ways.items()) if way != Way.CRASH),
        "-" * WIDTH,
        _row("transactions stored", counted["transactions"]),
        _row("changes committed, and stored exactly once", counted["changes"]),
        _row("changes proven exactly once", counted["proven"]),
        _row("deferred bodies run exactly once", counted["deferred"]),
        _row("events", counted["events"]),
        _row("batches, gapless and sealed", counted["batches"]),
    ]
    if takeovers:
        middle, longest = statistics.median(takeovers), max(takeovers)
        lines.append(_row("takeover by the stand-by, median and longest", f"{middle:.2f} s, {longest:.2f} s"))
    lines += [
        "-" * WIDTH,
        _row("differences", sum(len(outcome.differences) for outcome in rounds)),
        "=" * WIDTH,
    ]
    if missed:
        lines.append(f"never struck: {', '.join(missed)}")
    return "\n".join(lines)


def _row(what: str, value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{what}{text:>{WIDTH - len(what)}}"


def _again(seed: int, kills: int) -> str:
    return f"again: ./run python -m tests.soak --seed {seed} --kills {kills} --round-kills {kills}"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
