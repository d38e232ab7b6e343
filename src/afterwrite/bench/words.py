"""A run in words and as Markdown: the figures as people read them, in tables, and in a document that keeps its prose.

A document has places for figures, each between two comments; whatever lies outside of them belongs to who wrote it::

    <!-- measured: writes -->
    …
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from afterwrite.bench.claims import GROWTH, Claim, Promise, Report, Took
from afterwrite.bench.planning import Asked, Plan
from afterwrite.errors import UsageError

_PLACE = re.compile(r"(<!-- measured: ([a-z0-9, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
RUN, PROMISES, PLAN = "run", "promises", "plan"


def figure(value: float) -> str:
    """A figure in as many digits as it can bear."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def ratio(claim: Claim) -> str:
    """The ratio with its interval; only the interval where there is no ratio to be told."""
    if claim.low is None or claim.high is None:
        return "" if claim.ratio is None else f"{claim.ratio:.2f}"
    doubt = f"({claim.low:.2f} to {claim.high:.2f})"
    if claim.high > _WIDE:
        doubt = "(anything)"
    return doubt if claim.ratio is None else f"{claim.ratio:.2f} {doubt}"


# Beyond this an interval says only that nothing is known.
_WIDE = 1_000.0


def target(claim: Claim) -> str:
    """The promise, as a ratio."""
    return "" if claim.target is None else f"{'≤' if claim.at_most else '≥'} {claim.target:g}"


def machine(report: Report) -> str:
    """Where and when, in one sentence."""
    where = report.machine
    return (
        f"{report.began_at[:10]}: {where['cores']} cores, {where['memory_gib']} GiB, {where['system']}, PostgreSQL"
        f" {where['postgresql']}, Python {where['python']}, afterwrite {report.version}; {report.seconds:.0f} s"
        + (", a quick run" if report.quick else "")
    )


def settings(took: Took) -> str:
    """How a part was set."""
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in took.settings.items())
    return f"{took.part} ({took.seconds:.0f} s): {said}"


def promised(report: Report) -> list[tuple[Promise, list[Claim]]]:
    """Every promise with the claims about it; none where it was not measured."""
    return [(promise, [claim for claim in report.claims if claim.promise is promise]) for promise in Promise]


def to_markdown(report: Report) -> str:
    """The whole run as a document of its own."""
    parts = [f"## {took.part}\n\n{_place(took.part, report)}" for took in report.parts]
    return "\n".join(["# What was measured\n", _place(RUN, report), _place(PROMISES, report), *parts])


def refill(document: str, report: Report) -> str:
    """The document with this run's figures in its places. Parts that were not measured keep theirs.

    Where such parts are left, what the document says of its run and of the promises stays, too, and each new part says
    of which run it is. Raises UsageError where the document has no place for any of them.
    """
    took = {part.part: part for part in report.parts}
    left = {found[2] for found in _PLACE.finditer(document)} - set(took) - {RUN, PROMISES, PLAN, GROWTH}
    fresh: dict[str, Callable[[], str]] = {name: partial(_text, name, report) for name in (RUN, PROMISES, *took)}
    if left:
        fresh = {
            name: lambda part=part: f"{_text(part.part, report)}\nFrom a run on {machine(report)}: {settings(part)}\n"
            for name, part in took.items()
        }
    return _fill(document, fresh)


def refill_plan(document: str, report: Report, made: Plan) -> str:
    """The document with this plan in its place; raises UsageError where it has none."""
    return _fill(document, {PLAN: lambda: plan_to_markdown(report, made)})


def planned(value: float) -> str:
    """A figure of a plan: what is counted has no fraction."""
    return f"{value:,.0f}" if float(value).is_integer() else figure(value)


def plan_to_markdown(report: Report, made: Plan) -> str:
    """A plan as a document has it: what was asked, its lines, and what limits a store."""
    asked = made.asked
    lines = [(line.what, planned(line.figure), line.unit, line.comes_from, line.without) for line in made.lines]
    limits = [(limit.what, figure(limit.rate), limit.comes_from) for limit in made.limits]
    return "\n".join(
        [
            f"{made.rate:,.0f} activities a second, from the run of {machine(report)}. Said, and not measured: a core"
            f" is {asked.busy:.0%} busy, a store has {asked.store_cores} cores and a broker {asked.broker_cores}, a"
            f" store keeps {asked.hot_days} days" + "".join(f", {words}" for words in _prices(asked)) + ".\n",
            _table(("what", ">", "", "comes from", "is not in it"), lines),
            "What one store takes, by each of what limits it:\n",
            _table(("limit", ">activities/s", "comes from"), limits),
            *([f"No price was given: {', '.join(made.unpriced)}.\n"] if made.unpriced else []),
        ]
    )


def _prices(asked: Asked) -> list[str]:
    said = (
        ("a core", "an hour", asked.core_hour),
        ("a GiB of disk", "a month", asked.gib_month),
        ("a cold GiB", "a month", asked.cold_gib_month),
    )
    return [f"{what} costs {price:g} {each}" for what, each, price in said if price is not None]


def _fill(document: str, fresh: Mapping[str, Callable[[], str]]) -> str:
    if not any(found[2] in fresh for found in _PLACE.finditer(document)):
        raise UsageError(
            "the document has no place for figures",
            remedy=f"write <!-- measured: {next(iter(fresh))} --> and <!-- end --> on lines of their own,"
            " or name a new file",
        )

    def fill(found: re.Match[str]) -> str:
        if found[2] not in fresh:
            return found[0]
        return f"{found[1]}\n{fresh[found[2]]()}\n{found[3]}"

    return _PLACE.sub(fill, document)


def _place(name: str, report: Report) -> str:
    return f"<!-- measured: {name} -->\n\n{_text(name, report)}\n<!-- end -->\n"


def _text(name: str, report: Report) -> str:
    if name == RUN:
        words = f"Run on {machine(report)}. Brackets are 95 % intervals.\n"
        return words + "".join(f"\n- {settings(took)}" for took in report.parts) + "\n"
    if name == PROMISES:
        rows = [
            (promise.value, claim.claim, figure(claim.measured), claim.unit, ratio(claim), target(claim), _bold(claim))
            for promise, claims in promised(report)
            for claim in claims
        ]
        return _table(("promise", "measured as", ">", "", ">ratio", "target", "verdict"), rows)
    left_out = next((took.left_out for took in report.parts if took.part == name and took.left_out), None)
    if left_out:
        return f"{left_out}.\n"
    rows = [
        (
            claim.claim,
            "" if claim.baseline is None else figure(claim.baseline),
            figure(claim.measured),
            claim.unit,
            ratio(claim),
            target(claim),
            _bold(claim),
        )
        for claim in report.claims
        if claim.part == name
    ]
    return _table(("claim", ">against", ">measured", "unit", ">ratio", "target", "verdict"), rows)


def _bold(claim: Claim) -> str:
    return claim.verdict.replace("missed", "**missed**")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"| {' | '.join(column.lstrip('>') for column in columns)} |",
        f"|{'|'.join('---:' if column.startswith('>') else '---' for column in columns)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
