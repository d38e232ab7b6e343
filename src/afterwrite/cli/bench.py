"""``afterwrite bench``: the promises, measured on servers of its own, in one run; and what was measured, shown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.live import Live
from rich.spinner import Spinner

from afterwrite.bench import fan_in, lake, planning, staging, suite, words
from afterwrite.bench.claims import Claim, Report
from afterwrite.bench.compared import Comparison, Trend, compare_runs
from afterwrite.bench.grounds import Tell
from afterwrite.bench.page import to_html
from afterwrite.bench.suite import FULL, QUICK, Part, Tier, run_growth, run_parts, run_tiers, sized
from afterwrite.cli.face import FLAG, Json, emit, fill, out, plain, prose, run, say, table, talk
from afterwrite.errors import ExitCode, Refused, UsageError
from afterwrite.postgres import connect
from afterwrite.scan.catalog import read_inventory

_PARTS = ", ".join(Part)
_LOOKED_AT = (Part.API, Part.PAGES, Part.FEED)
# The deep page is a full one.
_FEWEST_ROWS = 6_000
# One an hour of each day.
_FEWEST_TIER_ROWS = 480

Name = TypeVar("Name", bound=StrEnum)

app = typer.Typer(rich_markup_mode="rich")

Rounds = Annotated[
    int | None, typer.Option("--rounds", min=1, max=50, help="Turns of each variant.", show_default=False)
]
Rows = Annotated[
    int | None, typer.Option("--rows", min=_FEWEST_ROWS, help="Activities that are looked at.", show_default=False)
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also write it as a page that needs nothing else.", show_default=False),
]
PgBin = Annotated[
    Path | None,
    typer.Option("--pg-bin", help="Folder of other PostgreSQL binaries than the bundled ones.", show_default=False),
]
Markdown = Annotated[
    Path | None,
    typer.Option(
        "--markdown", metavar="FILE", help="Also write the figures into a document's places.", show_default=False
    ),
]


def bench(
    context: typer.Context,
    only: Annotated[
        str | None, typer.Option("--only", metavar="PART,…", help=f"Only these: {_PARTS}.", show_default=False)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", metavar=FLAG, help="Two minutes: few, short rounds. Wide doubts.")
    ] = False,
    rounds: Rounds = None,
    rows: Rows = None,
    changes: Annotated[
        int | None,
        typer.Option("--changes", min=10_000, help="Changes in the stretch that is captured.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the application's data and choices.")] = 1,
    pg_bin: PgBin = None,
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn", metavar="DSN", help="Writes on copies beside this staging database instead.", show_default=False
        ),
    ] = None,
    consent: Annotated[
        bool,
        typer.Option("--staging", metavar=FLAG, help="Yes, that --dsn is a staging copy, and may be worked beside."),
    ] = False,
    html: Html = None,
    markdown: Markdown = None,
    json: Json = False,
) -> int:
    """Measure what afterwrite promises, on PostgreSQL servers of its own.

    Variants take turns in one run, so that a slow machine is slow for all of them. Figures are geometric means over the
    rounds, with 95 % intervals; a ratio is told only where its interval has no 1 in it. Ten to twelve minutes on two
    cores. Exit 3 if a target is missed; a quick run tells it and exits 0.

    With --dsn the write mix of a staging copy is read, and tried on scratch databases on its server, which are dropped
    at the end. Without --staging it only says what it would do.
    """
    if context.invoked_subcommand is not None:
        return ExitCode.OK
    if dsn is not None:
        return _bench_staging(dsn, consent, rounds, json=json, html=html, markdown=markdown)
    if consent:
        raise UsageError("--staging says that --dsn may be worked beside, and there is no --dsn")
    parts = _read_names(only, Part)
    scale = sized(QUICK if quick else FULL, rounds=rounds, rows=rows, changes=changes)
    report = run(_watched(lambda tell: run_parts(parts, scale, quick=quick, tell=tell, seed=seed, pg_bin=pg_bin)))
    _give(report, json=json, html=html, markdown=markdown)
    return _code(report, quick=quick)


def _code(report: Report, *, quick: bool) -> int:
    missed = any(claim.met is False for claim in report.claims)
    return ExitCode.GATE if missed and not quick else ExitCode.OK


app.callback(invoke_without_command=True, help=prose(bench.__doc__ or ""))(bench)


def _bench_staging(
    dsn: str, consent: bool, rounds: int | None, *, json: bool, html: Path | None, markdown: Path | None
) -> int:
    options = staging.Options(rounds=rounds or staging.Options().rounds)
    mix = run(_look_at_staging(dsn, options))
    for sentence in staging.said(dsn, mix, options):
        say(plain(sentence))
    if not mix.tables:
        raise Refused("nothing was ever written there: there is no mix to measure", remedy="let it work for a while")
    if not consent:
        raise Refused("nothing was done", remedy="if this is a staging copy, and it may: --staging")
    report = run(_watched(lambda tell: suite.run_staging(dsn, mix, options, tell=tell)))
    _give(report, json=json, html=html, markdown=markdown)
    return _code(report, quick=False)


async def _look_at_staging(dsn: str, options: staging.Options) -> staging.Mix:
    async with connect(dsn, application_name="afterwrite bench", guarded=True) as db:
        await staging.refuse_unless_quiet(db)
        return await staging.read_mix(db, await read_inventory(db), options.tables)


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="RUN.json", help="What `afterwrite bench --json` printed.")],
    html: Html = None,
    markdown: Markdown = None,
) -> int:
    """Show a run again that was kept: as tables, as a page, or in a document."""
    _give(_read_run(file), json=False, html=html, markdown=markdown)
    return ExitCode.OK


@app.command("serve")
def serve(
    quick: Annotated[bool, typer.Option("--quick", metavar=FLAG, help="Few, short rounds. Wide doubts.")] = False,
    rounds: Rounds = None,
    rows: Rows = None,
    html: Html = None,
    markdown: Markdown = None,
    json: Json = False,
) -> int:
    """What those see who look at activity: the API and the pages beside a legacy application's, and the live feed.

    The same as --only api,pages,feed: three minutes. Exit 3 if a target is missed; a quick run tells it and exits 0.
    """
    scale = sized(QUICK if quick else FULL, rounds=rounds, rows=rows)
    report = run(_watched(lambda tell: run_parts(_LOOKED_AT, scale, quick=quick, tell=tell)))
    _give(report, json=json, html=html, markdown=markdown)
    return _code(report, quick=quick)


@app.command("growth")
def growth(
    rows: Annotated[
        str, typer.Option("--rows", metavar="N,…", help="How many activities, one after the other.")
    ] = "300000,3000000,10000000",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=50, help="Turns of each side.")] = FULL.queries.rounds,
    seed: Annotated[int, typer.Option("--seed", help="Of the activity and of what is asked.")] = 1,
    pg_bin: PgBin = None,
    html: Html = None,
    markdown: Markdown = None,
    json: Json = False,
) -> int:
    """How looking at activity grows with how much there is: an audit table and its pages beside the store and ours.

    Half an hour or more.
    """
    try:
        several = [int(word) for word in rows.replace("_", "").split(",")]
    except ValueError:
        raise UsageError(f"{rows!r} are no numbers", remedy="such as --rows 300000,3000000") from None
    if min(several) < _FEWEST_ROWS:
        raise UsageError(f"{min(several)} activities are too few", remedy=f"at least {_FEWEST_ROWS:,}")
    report = run(_watched(lambda tell: run_growth(several, rounds=rounds, tell=tell, seed=seed, pg_bin=pg_bin)))
    _give(report, json=json, html=html, markdown=markdown)
    return ExitCode.OK


@app.command("scale")
def scale(
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="PART,…", help=f"Only these: {', '.join(Tier)}.", show_default=False),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=_FEWEST_TIER_ROWS, help="Activities that are archived, and searched.")
    ] = lake.Options().rows,
    activities: Annotated[
        int, typer.Option("--activities", min=1_000, max=2_000_000, help="Activities through the brokers, each turn.")
    ] = fan_in.Options().activities,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, max=20, help="Turns of each variant.", show_default=False)
    ] = None,
    pg_bin: PgBin = None,
    html: Html = None,
    markdown: Markdown = None,
    json: Json = False,
) -> int:
    """Recording through three brokers and writers, and days that leave for the lake, beside the store. Some minutes.

    broker: activities a second by one, two and four writers, the store's own sink beside; what each costs in CPU, in
    WAL and in bytes. lake: how fast days leave and what they take on either side, and ten searches of both, whose
    answers are compared. What needs a library or a server that is not here is left out, and it says so.
    """
    turns = {} if rounds is None else {"rounds": rounds}
    through = msgspec.structs.replace(fan_in.Options(), activities=activities, **turns)
    behind = msgspec.structs.replace(lake.Options(), rows=rows, **turns)
    tiers = _read_names(only, Tier)
    report = run(_watched(lambda tell: run_tiers(tiers, through, behind, tell=tell, pg_bin=pg_bin)))
    _give(report, json=json, html=html, markdown=markdown)
    return ExitCode.OK


@app.command("plan")
def plan(
    file: Annotated[Path, typer.Argument(metavar="RUN.json", help="What `afterwrite bench scale --json` printed.")],
    rate: Annotated[float, typer.Option("--rate", min=1, help="Activities a second.")] = 1_000_000,
    busy: Annotated[float, typer.Option("--busy", min=0.01, max=1, help="Share of a core that may be used.")] = 0.5,
    store_cores: Annotated[int, typer.Option("--store-cores", min=1, help="Cores of a PostgreSQL server.")] = 16,
    broker_cores: Annotated[int, typer.Option("--broker-cores", min=1, help="Cores of a broker.")] = 8,
    hot_days: Annotated[int, typer.Option("--hot-days", min=1, help="Days that the store keeps.")] = 90,
    away_hours: Annotated[
        float, typer.Option("--away-hours", min=0, help="Hours without the stores that brokers are to hold.")
    ] = 1,
    store_gib: Annotated[
        float | None,
        typer.Option("--store-gib", min=1, help="GiB that the disks of a store hold.", show_default=False),
    ] = None,
    core_hour: Annotated[
        float | None, typer.Option("--core-hour", min=0, help="Price of a core, an hour.", show_default=False)
    ] = None,
    gib_month: Annotated[
        float | None, typer.Option("--gib-month", min=0, help="Price of a GiB of disk, a month.", show_default=False)
    ] = None,
    cold_gib_month: Annotated[
        float | None,
        typer.Option("--cold-gib-month", min=0, help="Price of a GiB of object storage, a month.", show_default=False),
    ] = None,
    markdown: Markdown = None,
    json: Json = False,
) -> int:
    """What so many activities a second take, from what a run of `bench scale` has measured: arithmetic, and no more.

    Prices are yours to give; what has none is left out.
    """
    report = _read_run(file)
    made = planning.plan(
        report,
        planning.Asked(
            rate=rate,
            busy=busy,
            store_cores=store_cores,
            broker_cores=broker_cores,
            hot_days=hot_days,
            away_hours=away_hours,
            store_gib=store_gib,
            core_hour=core_hour,
            gib_month=gib_month,
            cold_gib_month=cold_gib_month,
        ),
    )
    if markdown:
        there = markdown.exists()
        text = words.refill_plan(markdown.read_text(encoding="utf-8"), report, made) if there else None
        _write(markdown, text or words.plan_to_markdown(report, made))
    if json:
        emit({"schema_version": 1, "machine": report.machine, "began_at": report.began_at, "plan": made})
    else:
        _show_plan(report, made)
    return ExitCode.OK


def _show_plan(report: Report, made: planning.Plan) -> None:
    lines = table("what", ">", "", title=f"{made.rate:,.0f} activities a second")
    out.print(fill(lines, ((line.what, words.planned(line.figure), line.unit) for line in made.lines)))
    limits = table("limit", ">activities/s", title="What one store takes, by each of what limits it")
    out.print(fill(limits, ((limit.what, words.figure(limit.rate)) for limit in made.limits)))
    if made.unpriced:
        out.print(f"No price was given: {', '.join(made.unpriced)}.")
    out.print("--json and --markdown have the measured cost that each line came from, and what is not in it.")
    out.print(words.machine(report))


@app.command("compare")
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE.json")],
    after: Annotated[Path, typer.Argument(metavar="AFTER.json")],
    json: Json = False,
) -> int:
    """What got faster or slower from one run to another, beyond what the rounds of each differ.

    A claim that has a baseline is compared by its ratio to it, one without by its figure. Exit 3 if anything got worse.
    """
    comparison = compare_runs(_read_run(before), _read_run(after))
    if json:
        emit(comparison)
    else:
        _show_comparison(comparison)
    return ExitCode.GATE if comparison.worse else ExitCode.OK


def _read_names(only: str | None, kind: type[Name]) -> list[Name]:
    every = ", ".join(each.value for each in kind)
    asked = [word.strip() for word in (only or every).split(",") if word.strip()]
    unknown = [word for word in asked if word not in {each.value for each in kind}]
    if unknown or not asked:
        raise UsageError(f"there is no part {unknown[0]!r}" if unknown else "which parts?", remedy=f"name of: {every}")
    return [kind(word) for word in asked]


def _read_run(file: Path) -> Report:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{file} is no run of `afterwrite bench --json`: {error}",
            remedy="a run that another version kept is shown by that version",
        ) from error


def _give(report: Report, *, json: bool, html: Path | None, markdown: Path | None) -> None:
    if html:
        _write(html, to_html(report))
    if markdown:
        _write(
            markdown,
            words.refill(markdown.read_text(encoding="utf-8"), report)
            if markdown.exists()
            else words.to_markdown(report),
        )
    if json:
        emit(report)
    else:
        _show(report)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
    say(f"{plain(str(file))} is written")


async def _watched(bench: Callable[[Tell], Awaitable[Report]]) -> Report:
    if not talk.is_terminal:
        return await bench(say)
    spinner = Spinner("dots", text="starting")
    with Live(spinner, console=talk, transient=True, refresh_per_second=8):
        return await asyncio.ensure_future(bench(lambda told: spinner.update(text=told)))


def _show(report: Report) -> None:
    promises = table("promise", ">ratio (95 %)", ">target", "verdict", title="What was promised")
    for promise, claims in words.promised(report):
        fill(promises, ((promise.value, words.ratio(claim), words.target(claim), claim.verdict) for claim in claims))
    if promises.row_count:
        out.print(promises)
    for took in report.parts:
        rows = [_row(claim) for claim in report.claims if claim.part == took.part]
        if rows:
            out.print(fill(table("", ">against", ">measured", "unit", ">ratio (95 %)", title=took.part), rows))
    out.print("against: what stood beside it in the same run, or what was promised")
    out.print(words.machine(report))
    for took in report.parts:
        if took.left_out:
            out.print(plain(took.left_out))


def _row(claim: Claim) -> tuple[str, ...]:
    against = "" if claim.baseline is None else words.figure(claim.baseline)
    return claim.claim, against, words.figure(claim.measured), claim.unit, words.ratio(claim)


def _show_comparison(comparison: Comparison) -> None:
    for warning in comparison.warnings:
        say(f"[yellow]warning[/] {plain(warning)}")
    seen = [change for change in comparison.changes if change.trend is not Trend.SAME]
    if seen:
        made = table("", ">before", ">after", "", ">change (95 %)", "")
        for change in seen:
            doubt = "" if change.low is None or change.high is None else f" ({change.low:.2f} to {change.high:.2f})"
            of = "ratio" if change.of_ratios else change.unit
            before, after = words.figure(change.before), words.figure(change.after)
            fill(made, [(change.claim, before, after, of, f"{change.ratio:.2f}{doubt}", change.trend.value)])
        out.print(made)
    out.print(f"{len(comparison.changes) - len(seen)} of {len(comparison.changes)} claims: no difference seen")
    for name, gone in (("before", comparison.only_before), ("after", comparison.only_after)):
        if gone:
            out.print(f"only {name}: {'; '.join(map(plain, gone))}", soft_wrap=True)
