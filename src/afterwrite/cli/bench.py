"""``afterwrite bench``: the claims, measured on servers of its own, in one run."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.spinner import Spinner

from afterwrite.bench.capture import Options, bench_capture
from afterwrite.bench.claims import Claim, Report
from afterwrite.cli.face import Json, emit, fill, out, run, say, table, talk
from afterwrite.errors import ExitCode


class What(StrEnum):
    """The benchmarks there are."""

    CAPTURE = "capture"


_QUICK = Options(rounds=2, changes=40_000, lag_seconds=3.0, bill_seconds=3.0)


def bench(
    what: Annotated[What, typer.Argument(help="What to measure.")] = What.CAPTURE,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, max=50, help="Turns of each variant.")] = None,
    changes: Annotated[
        int | None, typer.Option("--changes", min=20_000, help="Changes in the stretch that is drained.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the application's data and choices.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Two short rounds: to see that it runs.")] = False,
    pg_bin: Annotated[
        Path | None, typer.Option("--pg-bin", help="Folder of other PostgreSQL binaries than the bundled ones.")
    ] = None,
    json: Json = False,
) -> int:
    """Measure what afterwrite promises, on PostgreSQL servers of its own; never on yours.

    Variants take turns in one run, so that a slow machine is slow for all of them; figures are geometric means over
    the rounds, with 95 % intervals of their ratio. Exit 3 if a target is not met.
    """
    base = _QUICK if quick else Options()
    options = Options(
        rounds=rounds or base.rounds,
        changes=changes or base.changes,
        lag_seconds=base.lag_seconds,
        bill_seconds=base.bill_seconds,
        seed=seed,
        pg_bin=pg_bin,
    )
    report = run(_watched(options))
    if json:
        emit(report)
    else:
        _show(report)
    return ExitCode.GATE if any(claim.met is False for claim in report.claims) else ExitCode.OK


async def _watched(options: Options) -> Report:
    if not talk.is_terminal:
        return await bench_capture(options, say)
    spinner = Spinner("dots", text="starting")
    with Live(spinner, console=talk, transient=True, refresh_per_second=8):
        measuring = asyncio.ensure_future(bench_capture(options, lambda words: spinner.update(text=words)))
        return await measuring


def _show(report: Report) -> None:
    made = table("claim", ">against", ">measured", "unit", ">ratio", ">target", "")
    fill(made, (_row(claim) for claim in report.claims))
    out.print(made)
    out.print("against: the triggers' own figure, a bare COPY's, or what was promised; ± half of the 95 % interval")
    machine = report.machine
    out.print(
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, PostgreSQL"
        f" {machine['postgresql']}, Python {machine['python']}; {report.settings['rounds']} rounds, seed"
        f" {report.settings['seed']}"
    )


def _row(claim: Claim) -> tuple[str, ...]:
    return (
        claim.claim,
        "" if claim.baseline is None else _figure(claim.baseline),
        _figure(claim.measured),
        claim.unit,
        "" if claim.ratio is None else f"{claim.ratio:.2f}{_doubt(claim)}",
        "" if claim.target is None else f"{'≤' if claim.at_most else '≥'} {claim.target:.2f}",
        {True: "met", False: "missed", None: ""}[claim.met],
    )


def _doubt(claim: Claim) -> str:
    """Half the width of the ratio's interval."""
    return "" if claim.low is None or claim.high is None else f" ±{(claim.high - claim.low) / 2:.2f}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
