"""``afterwrite plan``: five phases in a file that people edit and review; ``--check`` finds drift."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from afterwrite.cli.costs import Wanted, costs_of
from afterwrite.cli.face import (
    FLAG,
    Dsn,
    Json,
    counted,
    emit,
    fill,
    out,
    plain,
    run,
    say,
    settings,
    show_findings,
    table,
)
from afterwrite.errors import ExitCode, Finding, Refused, Severity, UsageError
from afterwrite.migrate.estimate import Estimate, estimate, lasting
from afterwrite.migrate.gates import read_table_figures
from afterwrite.migrate.ledger import read_silenced_names
from afterwrite.migrate.overrides import forbidden, overrides
from afterwrite.migrate.plan import (
    Plan,
    TableFigures,
    Thresholds,
    check_plan,
    keep_decisions,
    make_plan,
    read_plan,
    write_plan,
)
from afterwrite.postgres import Database, connect
from afterwrite.scan.catalog import reading
from afterwrite.scan.cost.figures import Costs
from afterwrite.scan.cost.observe import parse_duration
from afterwrite.scan.report.words import percent
from afterwrite.scan.survey import Survey, survey
from afterwrite.scan.verdicts import Judgement
from afterwrite.settings import Settings
from afterwrite.store.schema import read_version

PlanFile = Annotated[Path, typer.Option("--file", "-f", help="The plan file.")]


def plan(
    dsn: Dsn = None,
    file: PlanFile = Path("plan.toml"),
    compare: Annotated[
        bool, typer.Option("--check", metavar=FLAG, help="Compare the file with the database: exit 4 on drift.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", metavar=FLAG, help="Write an existing file anew, and keep what was decided in it."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", metavar=FLAG, help="Write over an existing file; what was decided in it is gone.")
    ] = False,
    observing: Annotated[
        str | None,
        typer.Option("--observe", metavar="DURATION", help="Watch the database for so long (60s, 5m), to estimate."),
    ] = None,
    json: Json = False,
) -> int:
    """Write the plan of the migration: which trigger moves in which phase, behind which gates.

    Each phase comes with an estimate of how long it takes and what it saves, better with --observe.
    """
    given = settings(dsn)
    if compare:
        return check(file, *run(_survey(given)), json=json)
    if file.exists() and not (force or again) and str(file) != "-":
        raise UsageError(
            f"{file} exists, and may hold decisions",
            remedy="compare with --check, write it anew with --again (which keeps them), or over it with --force",
        )
    before = load(file) if again else None
    made, costs, figures = run(_make(given, parse_duration(observing) if observing else None))
    if before is not None:
        made, lost = keep_decisions(before, made)
        for what in lost:
            say(f"[yellow]not kept:[/] {plain(what)}")
    estimates = estimate(made, costs, figures)
    if json:
        emit({**msgspec.to_builtins(made), "estimates": estimates})
        return ExitCode.OK
    if str(file) == "-":
        typer.echo(write_plan(made), nl=False)
        return ExitCode.OK
    try:
        file.write_text(write_plan(made), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", remedy="name another with --file") from error
    known = {each.number: each for each in estimates}
    rows = [
        (
            phase.number,
            phase.title,
            sum(t.mode == "retire" for t in phase.triggers),
            sum(t.mode == "defer" for t in phase.triggers),
            lasting(known[phase.number].seconds) if phase.number in known else "",
            _share(known.get(phase.number)),
        )
        for phase in made.phases
    ]
    out.print(fill(table(">phase", "what", ">retire", ">defer", ">takes", ">saves"), rows))
    _explain_estimates(estimates)
    if not any(phase.triggers for phase in made.phases):
        out.print("No trigger can be retired or deferred: there is nothing to migrate.")
    out.print(f"{counted(len(made.kept), 'trigger')} to keep, {len(made.review)} for a person to look at.")
    show_findings(overrides(made))
    first = next((phase.number for phase in made.phases if phase.triggers), None)
    then = f", then: afterwrite migrate run --phase {first}" if first is not None else ""
    say(f"written to {file}; edit it, review it{then}")
    return ExitCode.OK


async def make(found: Survey, given: Settings, dsn: str | None) -> Plan:
    """The plan for what a survey found, with the thresholds of the settings."""
    async with connect(dsn) as database, reading(database):
        figures = await read_table_figures(database)
    thresholds = Thresholds(
        proof_transactions=given.proof_transactions,
        proof_seconds=given.proof_seconds,
        baseline_seconds=given.baseline_seconds,
        write_latency_ratio=given.write_latency_ratio,
        cpu_ratio=given.cpu_ratio,
    )
    return make_plan(found.judgements, figures, thresholds=thresholds, soak_seconds=given.soak_seconds)


def load(file: Path) -> Plan:
    """Read a plan file; raises UsageError when it is not there or not a plan."""
    if not file.is_file():
        raise UsageError(f"there is no plan {file}", remedy="write one with `afterwrite plan`, or name it with --file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", remedy="mend it, or name another with --file") from error
    return read_plan(text)


async def _make(given: Settings, observing: float | None) -> tuple[Plan, Costs | None, Sequence[TableFigures]]:
    async with connect(given.dsn) as database:
        found = await survey(database)
        async with reading(database):
            figures = await read_table_figures(database)
    made = await make(found, given, given.dsn)
    costs = await costs_of(given.dsn, found, Wanted(observe=observing))
    return made, costs, figures


def _share(known: Estimate | None) -> str:
    return "" if known is None or known.time_share is None else percent(known.time_share)


def _explain_estimates(estimates: Sequence[Estimate]) -> None:
    if not estimates:
        return
    prove = [each.prove_seconds for each in estimates if each.prove_seconds is not None]
    total = sum(each.seconds for each in estimates)
    proof = (
        f"shadow first takes {lasting(max(prove))} until the proof may hold"
        if prove
        else ("how long shadow takes until the proof holds cannot be told without --observe")
    )
    out.print(f"[dim]takes: silencing and soak, {lasting(total)} in all; {proof}.[/]")
    if source := next((each.source for each in estimates if each.source), ""):
        out.print(f"[dim]saves: {plain(source)}.[/]")
    if quiet := [name for each in estimates for name in each.quiet]:
        named = f"{', '.join(quiet[:_NAMES])}{' and more' if len(quiet) > _NAMES else ''}"
        out.print(f"[dim]not called meanwhile, so the proof may wait for: {plain(named)}.[/]")


async def _survey(given: Settings) -> tuple[tuple[Judgement, ...], frozenset[str] | None]:
    async with connect(given.dsn) as database:
        found = await survey(database)
        return found.judgements, await read_silenced_by_us(database)


async def read_silenced_by_us(database: Database) -> frozenset[str] | None:
    """The triggers that are off because of a migration; None when this role may not read the ledger."""
    try:
        async with reading(database):
            return await read_silenced_names(database) if await read_version(database) is not None else frozenset()
    except Refused:
        return None


def check(file: Path, judgements: Sequence[Judgement], silenced: Collection[str] | None, *, json: bool) -> ExitCode:
    """Print where the database has moved away from the plan, and say so by the exit code."""
    planned = load(file)
    found = [*check_plan(planned, judgements, silenced=silenced), *forbidden(planned, judgements)]
    decided = overrides(planned)
    drifted = any(finding.severity is Severity.ERROR for finding in found)
    if json:
        emit({"schema_version": 1, "drift": found, "overrides": decided})
    else:
        _show_drift(found)
        show_findings(decided)
        if not drifted:
            out.print(f"{plain(str(file))} says what the database says.")
    return ExitCode.DRIFT if drifted else ExitCode.OK


_DRIFT = {
    "plan.gone": "gone",
    "plan.new": "new",
    "plan.changed": "changed",
    "plan.verdict": "verdict",
    "plan.enabled": "on or off",
}


def _show_drift(found: Sequence[Finding]) -> None:
    """Each difference once, with the triggers that it is about: a function that many share was changed once."""
    drift = [finding for finding in found if finding.rule in _DRIFT]
    alike: dict[tuple[str, str], list[str]] = {}
    for finding in drift:
        alike.setdefault((finding.rule, finding.text), []).append(finding.where)
    made = table("drift", "trigger", "what")
    for (rule, text), names in alike.items():
        listed = "\n".join(names[:_NAMES]) + (f"\nand {len(names) - _NAMES} more" if len(names) > _NAMES else "")
        fill(made, [(_DRIFT[rule], listed, text)])
    if drift:
        out.print(made)
        for remedy in dict.fromkeys(finding.remedy for finding in drift if finding.remedy):
            out.print(f"[green]→[/] {plain(remedy)}", soft_wrap=True)
    show_findings([finding for finding in found if finding.rule not in _DRIFT])


_NAMES = 6
