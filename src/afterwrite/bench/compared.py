"""Two runs beside each other: what got faster or slower, beyond what either run's rounds differ. Pure.

A claim that has a baseline is compared by its ratio to it, which two machines can share; one without by its figure. The
interval is Welch's, over logarithms, at 95 %: the rounds of two runs are no pairs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from afterwrite.bench.claims import NO_DIFFERENCE, Claim, Report, less_is_better, students_t


class Trend(StrEnum):
    """What became of a claim."""

    BETTER = "better"
    WORSE = "worse"
    CHANGED = "changed"
    SAME = NO_DIFFERENCE


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A claim in both runs: ``ratio`` is the second run's figure over the first one's, None where none was seen."""

    claim: str
    unit: str
    of_ratios: bool
    before: float
    after: float
    ratio: float | None
    low: float | None
    high: float | None
    trend: Trend


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs. ``warnings`` say what keeps them from being comparable; claims of one run only are named."""

    schema_version: int = 1
    warnings: list[str]
    changes: list[Change]
    only_before: list[str]
    only_after: list[str]

    @property
    def worse(self) -> bool:
        """Whether anything got worse beyond doubt."""
        return any(change.trend is Trend.WORSE for change in self.changes)


# Counts of what was worked on, which are neither good nor bad.
_NEUTRAL = frozenset({"rows", "changes"})


def compare_runs(before: Report, after: Report) -> Comparison:
    """What became of every claim that both runs have."""
    theirs, ours = ({claim.claim: claim for claim in report.claims} for report in (before, after))
    return Comparison(
        warnings=_warnings(before, after),
        changes=[change for name in ours if name in theirs and (change := _change(theirs[name], ours[name]))],
        only_before=[name for name in theirs if name not in ours],
        only_after=[name for name in ours if name not in theirs],
    )


def _warnings(before: Report, after: Report) -> list[str]:
    found = [
        f"{name} was {value}, and is {after.machine.get(name)}: what has no baseline cannot be compared"
        for name, value in before.machine.items()
        if value != after.machine.get(name)
    ]
    if before.quick or after.quick:
        found.append("a quick run is for seeing that everything runs: its doubts are wide")
    settings = {took.part: took.settings for took in before.parts}
    return found + [
        f"{took.part} was set otherwise: {name} was {settings[took.part].get(name)}, and is {value}"
        for took in after.parts
        if took.part in settings
        for name, value in took.settings.items()
        if name != "rounds" and settings[took.part].get(name) != value
    ]


def _change(before: Claim, after: Claim) -> Change | None:
    """None where one of them is not above zero, which has no logarithm."""
    # A promise in absolute figures is the same in every run: its ratio is the figure itself.
    of_ratios = before.baseline is not None and not before.samples.nothing
    then, now = _figures(before, of_ratios), _figures(after, of_ratios)
    if min(*then, *now) <= 0:
        return None
    ratio, low, high = _welch(then, now)
    return Change(
        claim=after.claim,
        unit=after.unit,
        of_ratios=of_ratios,
        before=statistics.geometric_mean(then),
        after=statistics.geometric_mean(now),
        ratio=None if low is not None and high is not None and low <= 1.0 <= high else ratio,
        low=low,
        high=high,
        trend=_trend(after.unit, ratio, low, high),
    )


def _figures(claim: Claim, of_ratios: bool) -> list[float]:
    samples = claim.samples
    if not of_ratios:
        return list(samples.measured)
    return [ours / theirs for theirs, ours in zip(samples.baseline, samples.measured, strict=True)]


def _welch(then: Sequence[float], now: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The ratio of two geometric means and its interval; none where a run has a single round."""
    before, after = [math.log(value) for value in then], [math.log(value) for value in now]
    difference = statistics.fmean(after) - statistics.fmean(before)
    if len(before) < 2 or len(after) < 2:
        return math.exp(difference), None, None
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (before, after)]
    doubt = sum(variance for variance, _ in parts)
    if doubt == 0.0:
        return math.exp(difference), math.exp(difference), math.exp(difference)
    freedom = doubt**2 / sum(variance**2 / count for variance, count in parts)
    half = students_t(freedom) * math.sqrt(doubt)
    return math.exp(difference), math.exp(difference - half), math.exp(difference + half)


def _trend(unit: str, ratio: float, low: float | None, high: float | None) -> Trend:
    if low is None or high is None or low <= 1.0 <= high:
        return Trend.SAME
    if unit in _NEUTRAL:
        return Trend.CHANGED
    return Trend.BETTER if (ratio < 1.0) is less_is_better(unit) else Trend.WORSE
