"""``afterwrite plan``: five phases in a file that people edit and review; ``--check`` finds drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afterwrite.cli.face import Dsn, Json, counted, emit, fill, out, run, say, settings, show_findings, table
from afterwrite.errors import ExitCode, UsageError
from afterwrite.migrate.gates import read_table_figures
from afterwrite.migrate.plan import Plan, Thresholds, check_plan, make_plan, read_plan, write_plan
from afterwrite.postgres import connect
from afterwrite.scan.survey import Survey, survey
from afterwrite.settings import Settings

PlanFile = Annotated[Path, typer.Option("--file", "-f", help="The plan file.")]


def plan(
    dsn: Dsn = None,
    file: PlanFile = Path("plan.toml"),
    check: Annotated[
        bool, typer.Option("--check", help="Compare the file with the database: exit 4 on drift.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    json: Json = False,
) -> int:
    """Write the plan of the migration: which trigger moves in which phase, behind which gates."""
    given = settings(dsn)
    if check:
        return run(_check(given, file, json=json))
    if file.exists() and not force and str(file) != "-":
        raise UsageError(
            f"{file} exists, and may hold decisions", remedy="compare with --check, or write over it with --force"
        )
    made = run(_make(given))
    if json:
        emit(made)
        return ExitCode.OK
    if str(file) == "-":
        typer.echo(write_plan(made), nl=False)
        return ExitCode.OK
    try:
        file.write_text(write_plan(made), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", remedy="name another with --file") from error
    rows = [
        (
            phase.number,
            phase.title,
            sum(t.mode == "retire" for t in phase.triggers),
            sum(t.mode == "defer" for t in phase.triggers),
        )
        for phase in made.phases
    ]
    out.print(fill(table(">phase", "what", ">retire", ">defer"), rows))
    if not any(phase.triggers for phase in made.phases):
        out.print("No trigger can be retired or deferred: there is nothing to migrate.")
    out.print(f"{counted(len(made.kept), 'trigger')} to keep, {len(made.review)} for a person to look at.")
    say(f"written to {file}; edit it, review it, then: afterwrite migrate run --phase 1")
    return ExitCode.OK


async def make(found: Survey, given: Settings, dsn: str | None) -> Plan:
    """The plan for what a survey found, with the thresholds of the settings."""
    async with connect(dsn, guarded=True) as database:
        figures = await read_table_figures(database)
    thresholds = Thresholds(proof_transactions=given.proof_transactions, proof_seconds=given.proof_seconds)
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


async def _make(given: Settings) -> Plan:
    async with connect(given.dsn, guarded=True) as database:
        found = await survey(database)
    return await make(found, given, given.dsn)


async def _check(given: Settings, file: Path, *, json: bool) -> int:
    made = load(file)
    async with connect(given.dsn, guarded=True) as database:
        found = await survey(database)
    drift = check_plan(made, found.judgements)
    if json:
        emit({"schema_version": 1, "drift": drift})
    elif drift:
        show_findings(drift)
    else:
        out.print(f"{file} says what the database says.")
    return ExitCode.DRIFT if drift else ExitCode.OK
