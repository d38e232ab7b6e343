"""The statistics behind a claim, on samples whose answers are known."""

from __future__ import annotations

import math
import random

import pytest

from afterwrite.bench.claims import (
    Standing,
    compare,
    grown,
    held_to,
    interval,
    note,
    percentile,
    share_left,
    standing,
)


def test_the_interval_is_students_over_the_logarithms_of_the_ratios() -> None:
    ratio, low, high = interval([1.0, 2.0, 4.0])

    # ln 2 apart: standard deviation ln 2, of the mean ln 2 / sqrt 3; t for two degrees of freedom is 4.303.
    half = 4.303 * math.log(2) / math.sqrt(3)
    assert ratio == pytest.approx(2.0)
    assert low == pytest.approx(2.0 * math.exp(-half), rel=1e-6)
    assert high == pytest.approx(2.0 * math.exp(half), rel=1e-6)


def test_equal_rounds_leave_no_doubt_and_a_single_one_says_nothing_of_it() -> None:
    assert interval([0.5] * 4) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert interval([0.5]) == (pytest.approx(0.5), None, None)


def test_a_slow_round_that_is_slow_for_both_changes_nothing() -> None:
    steady = compare("a", "s", [10.0, 10.0, 10.0], [5.0, 5.0, 5.0])
    shaken = compare("a", "s", [10.0, 40.0, 10.0], [5.0, 20.0, 5.0])

    assert steady.ratio == shaken.ratio == pytest.approx(0.5)
    assert shaken.low == pytest.approx(0.5)


@pytest.mark.parametrize(("measured", "at_most", "met"), [(6.9, False, False), (7.1, False, True), (7.1, True, False)])
def test_a_target_is_met_on_its_own_side(measured: float, at_most: bool, met: bool) -> None:
    claim = compare("a", "rows/s", [10.0, 10.0], [measured, measured], target=0.7, at_most=at_most)

    assert claim.met is met


def test_a_promise_in_absolute_figures_is_its_own_baseline() -> None:
    claim = held_to("p99", "ms", 250.0, [100.0, 100.0], at_most=True)

    assert (claim.baseline, claim.ratio, claim.target, claim.met) == (
        pytest.approx(250.0),
        pytest.approx(0.4),
        1.0,
        True,
    )


def test_a_note_promises_nothing() -> None:
    claim = note("a", "ms", [1.0, 3.0])

    assert (claim.measured, claim.baseline, claim.ratio, claim.target, claim.met) == (2.0, None, None, None, None)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([5, 1, 4, 2, 3], 0.5) == 3
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([7], 0.01) == 7


def test_what_is_left_of_a_surplus_may_be_nothing_or_less() -> None:
    claim = share_left("a", "µs", [100.0, 100.0], [1_100.0, 1_100.0], [200.0, 0.0], target=0.1)

    # Shares 0.1 and -0.1: mean 0, standard deviation sqrt(0.02), t for one degree of freedom 12.706.
    half = 12.706 * math.sqrt(0.02) / math.sqrt(2)
    assert (claim.baseline, claim.measured, claim.ratio) == (1_000.0, 0.0, None)
    assert claim.low == pytest.approx(-half)
    assert claim.high == pytest.approx(half)
    assert claim.met


def test_the_interval_has_the_true_ratio_in_it_in_nineteen_of_twenty_runs() -> None:
    chance = random.Random(8)
    runs, true, within, shares = 4_000, 0.7, 0, 0
    for _ in range(runs):
        baseline = [100.0 * math.exp(chance.gauss(0, 0.2)) for _ in range(5)]
        measured = [each * true * math.exp(chance.gauss(0, 0.1)) for each in baseline]
        claim = compare("a", "s", baseline, measured)
        assert claim.low is not None
        assert claim.high is not None
        within += claim.low <= true <= claim.high
        surplus = share_left("a", "s", [10.0] * 3, [110.0] * 3, [10.0 + chance.gauss(8, 3) for _ in range(3)])
        assert surplus.low is not None
        assert surplus.high is not None
        shares += surplus.low <= 0.08 <= surplus.high

    assert within / runs == pytest.approx(0.95, abs=0.012)
    assert shares / runs == pytest.approx(0.95, abs=0.012)


def test_equal_sides_seem_different_in_one_of_twenty_runs() -> None:
    chance = random.Random(9)
    runs = 4_000
    told = sum(
        compare("a", "s", [1.0] * 5, [math.exp(chance.gauss(0, 0.3)) for _ in range(5)]).ratio is not None
        for _ in range(runs)
    )

    assert told / runs == pytest.approx(0.05, abs=0.012)


def test_a_ratio_whose_interval_has_one_in_it_is_not_told() -> None:
    claim = compare("a", "µs", [10.0, 10.0, 10.0], [9.0, 11.0, 10.1], target=0.4)

    assert claim.ratio is None
    assert claim.low is not None
    assert claim.low < 1
    assert (claim.met, claim.verdict, standing(claim)) == (False, "missed: no difference seen", Standing.MISSED)
    assert compare("a", "µs", [10.0, 10.0], [9.0, 11.0]).verdict == "no difference seen"


def test_a_promise_within_the_doubt_is_said_to_be() -> None:
    claim = compare("a", "µs", [10.0, 10.0, 10.0], [3.6, 4.1, 4.4], target=0.4)
    close = held_to("p50", "ms", 50.0, [49.0, 50.5, 49.5], at_most=True)

    assert claim.ratio == pytest.approx(0.4, rel=0.02)
    assert claim.verdict == "missed, but the target lies within the doubt"
    assert (close.ratio, close.met, standing(close)) == (None, True, Standing.DOUBT)
    assert close.verdict == "met, but the target lies within the doubt"


@pytest.mark.parametrize(("unit", "less"), [("µs", True), ("B/write", True), ("rows/s", False), ("clients", False)])
def test_what_is_better_follows_from_the_unit(unit: str, less: bool) -> None:
    assert compare("a", unit, [1.0], [2.0]).at_most is less


def test_what_grew_is_said_of_each_side_and_of_nothing_without_one() -> None:
    few = [
        compare("by text, audit table to store, at 10", "ms", [10.0, 10.0], [2.0, 2.0]),
        note("rows", "rows", [10.0]),
    ]
    many = [
        compare("by text, audit table to store, at 30", "ms", [30.0, 30.0], [2.0, 2.0]),
        note("rows", "rows", [30.0]),
    ]
    legacy, ours = grown(10, few, 30, many)
    assert (legacy.claim, legacy.unit, legacy.ratio) == ("by text, legacy, 10 to 30", "ms", pytest.approx(3.0))
    assert ours.claim == "by text, afterwrite, 10 to 30"
    assert ours.measured == 2.0
