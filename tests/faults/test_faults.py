"""Two hundred seeded kills and cuts over every failpoint of the capture path, in a minute."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from fault_run import draw, places, run_faults, unstruck

SEED = int(os.environ.get("AFTERWRITE_FAULTS_SEED", "20261122"))
KILLS, CUTS, CRASHES = 70, 131, 1

pytestmark = pytest.mark.acceptance


def test_a_seed_draws_the_same_faults_and_every_failpoint_among_them() -> None:
    steps = draw(SEED, KILLS, CUTS, CRASHES)
    assert steps == draw(SEED, KILLS, CUTS, CRASHES)
    assert steps != draw(SEED + 1, KILLS, CUTS, CRASHES)
    assert len(steps) == KILLS + CUTS + CRASHES
    assert {step.place for step in steps if step.way.kills} >= set(places())


def test_every_committed_change_is_stored_proven_and_replayed_once_through_kills_and_cuts(tmp_path: Path) -> None:
    again = f"AFTERWRITE_FAULTS_SEED={SEED} ./run test tests/faults/test_faults.py"
    print(f"seed {SEED}: {again}")
    try:
        outcome = asyncio.run(
            run_faults(
                tmp_path,
                seed=SEED,
                kills=KILLS,
                cuts=CUTS,
                crashes=CRASHES,
                say=lambda words: print(words, file=sys.stderr),
            )
        )
    except Exception as error:
        error.add_note(f"again: {again}")
        raise
    assert outcome.differences == [], again
    assert unstruck(outcome, places()) == [], again
    assert outcome.kills >= 60
    assert outcome.kills + outcome.cuts >= 200
    assert outcome.counted["changes"] > 5_000, outcome
    assert outcome.counted["deferred"] > 2_000, outcome
    # A stand-by looks twice a second, and asks in under five whatever was left behind.
    assert outcome.takeovers
    assert max(outcome.takeovers) < 5
