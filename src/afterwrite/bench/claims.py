"""What a benchmark says, and how sure it is of it. Pure.

A claim is a ratio of two figures that were measured by turns, round by round: a machine that is slow for a while is
slow for both. The interval is Student's, over the logarithms of the rounds' ratios, at 95 %. A ratio whose interval
has 1 in it is none: nobody would see it again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

T = TypeVar("T")

SCHEMA_VERSION = 1
_FEWEST_ROUNDS = 2
# Student's t, two-sided 95 %, by degrees of freedom from 1; beyond, the normal distribution's 1.96 is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_NORMAL = 1.96
# Of which more is better; of everything else (time, bytes, memory) less is.
_MORE_IS_BETTER = ("/s", "clients")


class Promise(StrEnum):
    """What was promised of the product: each is measured by at least one claim of a whole run."""

    SERVER_TIME = "server time of a write on the legacy application, triggers to afterwrite: -80 %"
    TRIGGERS_SHARE = "the triggers' own share of write latency: -90 %"
    DATABASE_CPU = "database CPU for the same work, capture and store in the same database included: -60 %"
    WAL = "WAL for the same work, capture and store in the same database included: -60 %"
    CLIENTS = "clients served at the same p95: 10 times as many"
    QUERIES = "activity queries (recent, by entity, by actor, text, analytics), legacy log to store: -80 %"
    API = "activity API, p95: -80 %"
    PAGE_LOAD = "page load to the first rows: -70 %"
    HEAP = "browser heap after browsing activities: -40 %"
    BULK = "50,000-row UPDATE, against a to_jsonb audit trigger: 25 times as fast"
    CAPTURE_SPEED = "capture, one worker, into the fully indexed store: 30,000 changes/s"
    CAPTURE_SHARE = "capture, against a bare COPY of the same rows: 70 %"
    FEED_P50 = "commit to live feed at 1,000 changes/s, p50: 50 ms"
    FEED_P99 = "commit to live feed at 1,000 changes/s, p99: 250 ms"
    CALL = "a call of record(): 5 microseconds"
    DURABLE = "recording, durable, in batches: 150,000 events/s"


NO_DIFFERENCE = "no difference seen"
# The part that a run over several sizes adds: what became of each question from one to the next.
GROWTH = "growth"

# What only shows in a browser is left out, with a line, where there is none.
NEED_A_BROWSER = frozenset({Promise.PAGE_LOAD, Promise.HEAP})


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """What each round gave. ``nothing`` is there where both are surpluses above it."""

    baseline: tuple[float, ...] = ()
    measured: tuple[float, ...] = ()
    nothing: tuple[float, ...] = ()


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A figure beside what it is held against.

    ``ratio`` is measured / baseline with its interval ``low`` to ``high``. It is None where there is nothing to hold it
    against, and where the interval has 1 in it: then no difference was seen. ``target`` is the ratio that was promised,
    None where none was; ``at_most`` says on which side of it the promise lies. ``met`` is None without a target, and
    what the figures say, with however little certainty; the ``verdict`` says in words how sure that is.
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
    verdict: str
    statistic: str
    promise: Promise | None = None
    part: str = ""
    samples: Samples = Samples()


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a run: how long it took, how it was set, and what had to be left out."""

    part: str
    seconds: float
    settings: dict[str, str | int | float]
    left_out: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All claims of a run, where and when it ran, and how."""

    schema_version: int = SCHEMA_VERSION
    version: str
    began_at: str
    seconds: float
    quick: bool
    machine: dict[str, str | int | float]
    parts: list[Took]
    claims: list[Claim]


def compare(
    claim: str,
    unit: str,
    baseline: Sequence[float],
    measured: Sequence[float],
    *,
    target: float | None = None,
    at_most: bool | None = None,
    promise: Promise | None = None,
) -> Claim:
    """A claim over rounds: the n-th of ``measured`` was taken beside the n-th of ``baseline``; all are above zero.

    ``at_most`` follows from the unit where it is not given.
    """
    at_most = less_is_better(unit) if at_most is None else at_most
    ratios = [ours / theirs for theirs, ours in zip(baseline, measured, strict=True)]
    return _claim(
        claim,
        unit,
        interval(ratios),
        baseline=statistics.geometric_mean(baseline),
        measured=statistics.geometric_mean(measured),
        samples=Samples(baseline=tuple(baseline), measured=tuple(measured)),
        statistic="geometric mean",
        target=target,
        at_most=at_most,
        promise=promise,
    )


def share_left(
    claim: str,
    unit: str,
    nothing: Sequence[float],
    baseline: Sequence[float],
    measured: Sequence[float],
    *,
    target: float | None = None,
    promise: Promise | None = None,
) -> Claim:
    """What is left of a surplus: both above ``nothing``, which was taken in the same rounds; at most the target.

    A difference may come out below zero, so that the interval is Student's over the shares themselves.
    """
    surplus = [theirs - none for none, theirs in zip(nothing, baseline, strict=True)]
    left = [ours - none for none, ours in zip(nothing, measured, strict=True)]
    mean, half = _mean_and_half([ours / theirs for theirs, ours in zip(surplus, left, strict=True)])
    return _claim(
        claim,
        unit,
        (mean, None, None) if half is None else (mean, mean - half, mean + half),
        baseline=statistics.fmean(surplus),
        measured=statistics.fmean(left),
        samples=Samples(baseline=tuple(baseline), measured=tuple(measured), nothing=tuple(nothing)),
        statistic="mean",
        target=target,
        at_most=True,
        promise=promise,
    )


def held_to(
    claim: str,
    unit: str,
    promised: float,
    measured: Sequence[float],
    *,
    at_most: bool,
    promise: Promise | None = None,
) -> Claim:
    """A claim about a figure that was promised outright, such as a latency: its ratio to the promise must be 1."""
    return compare(claim, unit, [promised] * len(measured), measured, target=1.0, at_most=at_most, promise=promise)


def grown(less: int, before: Sequence[Claim], more: int, after: Sequence[Claim]) -> list[Claim]:
    """What became of each side of these comparisons, from so many activities to more."""
    return [
        compare(f"{first.claim.split(', audit table')[0]}, {side}, {less:,} to {more:,}", first.unit, fewer, many)
        for first, then in zip(before, after, strict=True)
        if first.samples.baseline
        for side, fewer, many in (
            ("legacy", first.samples.baseline, then.samples.baseline),
            ("afterwrite", first.samples.measured, then.samples.measured),
        )
    ]


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
        at_most=less_is_better(unit),
        met=None,
        rounds=len(measured),
        verdict="",
        statistic="mean",
        samples=Samples(measured=tuple(measured)),
    )


def _claim(
    claim: str,
    unit: str,
    found: tuple[float, float | None, float | None],
    *,
    baseline: float,
    measured: float,
    samples: Samples,
    statistic: str,
    target: float | None,
    at_most: bool,
    promise: Promise | None,
) -> Claim:
    ratio, low, high = found
    met = None if target is None else (ratio <= target if at_most else ratio >= target)
    return Claim(
        claim=claim,
        unit=unit,
        baseline=baseline,
        measured=measured,
        ratio=None if _has_one(low, high) else ratio,
        low=low,
        high=high,
        target=target,
        at_most=at_most,
        met=met,
        rounds=len(samples.measured),
        verdict=_verdict(ratio, low, high, target, met, at_most),
        statistic=statistic,
        promise=promise,
        samples=samples,
    )


def _has_one(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low <= 1.0 <= high


def _verdict(
    ratio: float, low: float | None, high: float | None, target: float | None, met: bool | None, at_most: bool
) -> str:
    """What the interval allows to say."""
    word = {True: "met", False: "missed", None: ""}[met]
    if low is None or high is None:
        return f"{word}, by one round that says nothing of its doubt".removeprefix(", ")
    unsure = target is not None and low <= target <= high
    # A promise in absolute figures is its own baseline, whose target is 1.
    if _has_one(low, high) and target != 1.0:
        if target is None:
            return NO_DIFFERENCE
        return f"{NO_DIFFERENCE}, and the target lies within the doubt" if unsure else f"{word}: {NO_DIFFERENCE}"
    if target is None:
        return "less" if ratio < 1 else "more"
    return f"{word}, but the target lies within the doubt" if unsure else word


class Standing(StrEnum):
    """What is to be thought of a promise: kept, broken, or that the rounds differ too much to tell."""

    MET = "met"
    MISSED = "missed"
    DOUBT = "within the doubt"


def standing(claim: Claim) -> Standing | None:
    """Where a claim stands; None where nothing was promised."""
    if claim.target is None:
        return None
    if claim.low is None or claim.high is None or claim.low <= claim.target <= claim.high:
        return Standing.DOUBT
    return Standing.MET if claim.met else Standing.MISSED


def less_is_better(unit: str) -> bool:
    """Whether a smaller figure of this unit is the better one."""
    return not unit.endswith(_MORE_IS_BETTER)


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
    return mean, students_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def students_t(freedom: float) -> float:
    """The factor of a two-sided 95 % interval; of broken degrees of freedom the next lower whole one's."""
    whole = max(1, math.floor(freedom))
    return _T[whole - 1] if whole <= len(_T) else _NORMAL


def missing_promises(claims: Sequence[Claim]) -> list[Promise]:
    """Promises that no claim is about."""
    measured = {claim.promise for claim in claims}
    return [promise for promise in Promise if promise not in measured]


def in_turn(ways: Sequence[T], number: int) -> list[T]:
    """The order of a round: each begins with another one, so that none has the better place."""
    turn = number % len(ways)
    return [*ways[turn:], *ways[:turn]]


def together(found: Mapping[str, Sequence[float]]) -> list[float]:
    """The geometric mean of several figures in each round, so that the largest does not decide for all."""
    return [statistics.geometric_mean(each) for each in zip(*found.values(), strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them (at least one) do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
