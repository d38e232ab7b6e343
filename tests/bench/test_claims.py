"""The statistics behind a claim, on samples whose answers are known."""

from __future__ import annotations

import math

import pytest

from afterwrite.bench.claims import compare, held_to, interval, note, percentile, share_left


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
    assert (claim.baseline, claim.measured, claim.ratio) == (1_000.0, 0.0, 0.0)
    assert claim.low == pytest.approx(-half)
    assert claim.high == pytest.approx(half)
    assert claim.met
