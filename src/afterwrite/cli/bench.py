"""``afterwrite bench``: the claims, measured on servers of its own, in one run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, assert_never

import typer
from msgspec.structs import replace
from rich.live import Live
from rich.spinner import Spinner

from afterwrite.bench.capture import Options, Tell, bench_capture
from afterwrite.bench.claims import Claim, Report
from afterwrite.bench.queries import Options as QueryOptions
from afterwrite.bench.queries import bench_queries
from afterwrite.bench.recorder import Options as RecorderOptions
from afterwrite.bench.recorder import bench_recorder
from afterwrite.bench.serve import Options as ServeOptions
from afterwrite.bench.serve import bench_serve
from afterwrite.bench.users import Options as UserOptions
from afterwrite.bench.users import bench_users
from afterwrite.bench.writes import Options as WriteOptions
from afterwrite.bench.writes import bench_writes
from afterwrite.cli.face import Json, emit, fill, out, run, say, table, talk
from afterwrite.errors import ExitCode


class What(StrEnum):
    """The benchmarks there are."""

    CAPTURE = "capture"
    RECORDER = "recorder"
    WRITES = "writes"
    USERS = "users"
    QUERIES = "queries"
    SERVE = "serve"


_QUICK_RECORDER = RecorderOptions(rounds=2, events=20_000, stored=8_000, inserts=1_000)
_QUICK_WRITES = WriteOptions(rounds=2, transactions=300, peer_transactions=300)
_QUICK_SERVE = ServeOptions(rows=30_000, days=7, rounds=2, requests=10, feed_seconds=4.0)
_QUICK = Options(rounds=2, changes=40_000, lag_seconds=3.0, bill_seconds=3.0)


def bench(
    what: Annotated[What, typer.Argument(help="What to measure.")] = What.CAPTURE,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, max=50, help="Turns of each variant.")] = None,
    changes: Annotated[
        int | None, typer.Option("--changes", min=20_000, help="Changes in the stretch that is drained.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=2_000, help="Activities that are searched.")] = None,
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
    match what:
        case What.CAPTURE:
            base = _QUICK if quick else Options()
            options = Options(
                rounds=rounds or base.rounds,
                changes=changes or base.changes,
                lag_seconds=base.lag_seconds,
                bill_seconds=base.bill_seconds,
                seed=seed,
                pg_bin=pg_bin,
            )
            report = run(_watched(lambda tell: bench_capture(options, tell)))
        case What.RECORDER:
            small = _QUICK_RECORDER if quick else RecorderOptions()
            sized = replace(small, rounds=rounds or small.rounds, pg_bin=pg_bin)
            report = run(_watched(lambda tell: bench_recorder(sized, tell)))
        case What.WRITES:
            scaled = _QUICK_WRITES if quick else WriteOptions()
            scaled = replace(scaled, rounds=rounds or scaled.rounds, seed=seed, pg_bin=pg_bin)
            report = run(_watched(lambda tell: bench_writes(scaled, tell)))
        case What.USERS:
            served = UserOptions(rounds=2, seconds=2) if quick else UserOptions()
            served = replace(served, rounds=rounds or served.rounds, seed=seed, pg_bin=pg_bin)
            report = run(_watched(lambda tell: bench_users(served, tell)))
        case What.QUERIES:
            asked = QueryOptions(rows=60_000, rounds=2, questions=4) if quick else QueryOptions()
            asked = replace(asked, rounds=rounds or asked.rounds, rows=rows or asked.rows, seed=seed, pg_bin=pg_bin)
            report = run(_watched(lambda tell: bench_queries(asked, tell)))
        case What.SERVE:
            looked = _QUICK_SERVE if quick else ServeOptions()
            looked = replace(looked, rounds=rounds or looked.rounds, rows=rows or looked.rows, seed=seed, pg_bin=pg_bin)
            report = run(_watched(lambda tell: bench_serve(looked, tell)))
        case _:
            assert_never(what)
    if json:
        emit(report)
    else:
        _show(report)
    return ExitCode.GATE if any(claim.met is False for claim in report.claims) else ExitCode.OK


async def _watched(bench: Callable[[Tell], Awaitable[Report]]) -> Report:
    if not talk.is_terminal:
        return await bench(say)
    spinner = Spinner("dots", text="starting")
    with Live(spinner, console=talk, transient=True, refresh_per_second=8):
        return await asyncio.ensure_future(bench(lambda words: spinner.update(text=words)))


def _show(report: Report) -> None:
    made = table("claim", ">against", ">measured", "unit", ">ratio", ">target", "")
    fill(made, (_row(claim) for claim in report.claims))
    out.print(made)
    out.print("against: what stands beside it in the same run, or what was promised; ± half of the 95 % interval")
    machine = report.machine
    out.print(
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, PostgreSQL"
        f" {machine['postgresql']}, Python {machine['python']}; {report.settings['rounds']} rounds"
        + (f", seed {report.settings['seed']}" if "seed" in report.settings else "")
    )
    if "left_out" in report.settings:
        out.print(report.settings["left_out"])


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
