"""What a benchmark says, and how sure it is of it. Pure.

A claim is a ratio of two figures that were measured by turns, round by round: a machine that is slow for a while is
slow for both. The interval is Student's, over the logarithms of the rounds' ratios, at 95 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

import msgspec

T = TypeVar("T")

SCHEMA_VERSION = 1
_FEWEST_ROUNDS = 2
# Student's t, two-sided 95 %, by degrees of freedom from 1; beyond, the normal distribution's 1.96 is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_NORMAL = 1.96


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A figure beside what it is held against.

    ``ratio`` is measured / baseline with its interval ``low`` to ``high``; where there is nothing to hold it against,
    baseline and ratio are None. ``target`` is the ratio that was promised, None where none was; ``at_most`` says on
    which side of it the promise lies. ``met`` is None without a target.
    """

    claim: str
    unit: str
    baseline: float | None
    measured: float
    ratio: float | None
    low: float | None
    high: float | None
    target: float | None
    at_most: bool
    met: bool | None
    rounds: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All claims of a run, and where it ran."""

    schema_version: int = SCHEMA_VERSION
    machine: dict[str, str | int | float]
    settings: dict[str, str | int | float]
    claims: list[Claim]


def compare(
    claim: str,
    unit: str,
    baseline: Sequence[float],
    measured: Sequence[float],
    *,
    target: float | None = None,
    at_most: bool = False,
) -> Claim:
    """A claim over rounds: the n-th of ``measured`` was taken beside the n-th of ``baseline``; all are above zero."""
    ratios = [ours / theirs for theirs, ours in zip(baseline, measured, strict=True)]
    ratio, low, high = interval(ratios)
    return Claim(
        claim=claim,
        unit=unit,
        baseline=statistics.geometric_mean(baseline),
        measured=statistics.geometric_mean(measured),
        ratio=ratio,
        low=low,
        high=high,
        target=target,
        at_most=at_most,
        met=None if target is None else (ratio <= target if at_most else ratio >= target),
        rounds=len(ratios),
    )


def share_left(
    claim: str,
    unit: str,
    nothing: Sequence[float],
    baseline: Sequence[float],
    measured: Sequence[float],
    *,
    target: float | None = None,
) -> Claim:
    """What is left of a surplus: both above ``nothing``, which was taken in the same rounds; at most the target.

    A difference may come out below zero, so that the interval is Student's over the shares themselves.
    """
    surplus = [theirs - none for none, theirs in zip(nothing, baseline, strict=True)]
    left = [ours - none for none, ours in zip(nothing, measured, strict=True)]
    shares = [ours / theirs for theirs, ours in zip(surplus, left, strict=True)]
    ratio, half = _mean_and_half(shares)
    return Claim(
        claim=claim,
        unit=unit,
        baseline=statistics.fmean(surplus),
        measured=statistics.fmean(left),
        ratio=ratio,
        low=None if half is None else ratio - half,
        high=None if half is None else ratio + half,
        target=target,
        at_most=True,
        met=None if target is None else ratio <= target,
        rounds=len(shares),
    )


def held_to(claim: str, unit: str, promised: float, measured: Sequence[float], *, at_most: bool) -> Claim:
    """A claim about a figure that was promised outright, such as a latency: its ratio to the promise must be 1."""
    return compare(claim, unit, [promised] * len(measured), measured, target=1.0, at_most=at_most)


def note(claim: str, unit: str, measured: Sequence[float]) -> Claim:
    """A figure that nothing was promised about."""
    return Claim(
        claim=claim,
        unit=unit,
        baseline=None,
        measured=statistics.fmean(measured),
        ratio=None,
        low=None,
        high=None,
        target=None,
        at_most=False,
        met=None,
        rounds=len(measured),
    )


def interval(ratios: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The geometric mean of ratios and its 95 % confidence interval; none from a single round."""
    mean, half = _mean_and_half([math.log(ratio) for ratio in ratios])
    return (
        (math.exp(mean), None, None) if half is None else (math.exp(mean), math.exp(mean - half), math.exp(mean + half))
    )


def _mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and half of its 95 % interval; none from a single value."""
    mean = statistics.fmean(values)
    if len(values) < _FEWEST_ROUNDS:
        return mean, None
    freedom = len(values) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def in_turn(ways: Sequence[T], number: int) -> list[T]:
    """The order of a round: each begins with another one, so that none has the better place."""
    turn = number % len(ways)
    return [*ways[turn:], *ways[:turn]]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them (at least one) do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
