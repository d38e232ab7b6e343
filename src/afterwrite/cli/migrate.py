"""``afterwrite migrate``: run a phase, see where it stands, take it back."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from afterwrite import runtime
from afterwrite.cli.face import (
    Apply,
    Dsn,
    Json,
    StoreDsn,
    counted,
    emit,
    fill,
    out,
    run,
    say,
    settings,
    show_findings,
    table,
)
from afterwrite.cli.plan import PlanFile, load
from afterwrite.errors import ExitCode, UsageError
from afterwrite.migrate.deeds import EventKind, MigrationEvent
from afterwrite.migrate.engine import PhaseRun, run_all, run_phase
from afterwrite.migrate.phase import Gate
from afterwrite.migrate.plan import Plan
from afterwrite.migrate.rollback import Rollback, rollback_phase
from afterwrite.migrate.status import MigrationStatus
from afterwrite.migrate.status import status as read_status
from afterwrite.settings import Settings

app = typer.Typer(help="Silence the triggers phase by phase, behind gates, and take it back.", no_args_is_help=True)

PhaseNumber = Annotated[int | None, typer.Option("--phase", help="The phase's number.", min=1, max=5)]
Everything = Annotated[bool, typer.Option("--all", help="Every phase, in order.")]


@app.command("run")
def run_command(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    file: PlanFile = Path("plan.toml"),
    phase: PhaseNumber = None,
    everything: Everything = False,
    apply: Apply = False,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for gates that do not hold yet.", min=0)] = 0,
    json: Json = False,
) -> int:
    """Silence a phase (or, with --all, each in turn, with its soak). Without --apply: the exact SQL, and the gates.

    Exit 3 when a gate does not hold, 4 when the database is not what the plan says. Running it again goes on from
    what is there.
    """
    _one_of(phase, everything)
    return run(_run(settings(dsn, store_dsn), load(file), phase, apply=apply, wait=wait, json=json))


@app.command("rollback")
def rollback_command(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    phase: PhaseNumber = None,
    everything: Everything = False,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Turn a phase's triggers on again, exactly as they were; with --all also the replica identities, and end it.

    Without --apply it only shows the SQL.
    """
    _one_of(phase, everything)
    return run(_rollback(settings(dsn, store_dsn), phase, apply=apply, json=json))


@app.command("status")
def status_command(
    dsn: Dsn = None, store_dsn: StoreDsn = None, file: PlanFile = Path("plan.toml"), json: Json = False
) -> int:
    """Where each phase stands, what was done when and by whom, and what is next.

    Exit 4 when somebody changed something.
    """
    plan = load(file) if file.is_file() else None
    return run(_status(settings(dsn, store_dsn), plan, json=json))


def _one_of(phase: int | None, everything: bool) -> None:
    if (phase is None) is not everything:
        raise UsageError("which phase is not said", remedy="give either --phase N or --all")


def operator_of(given: Settings) -> str:
    """Who acts, for the ledger."""
    if given.operator:
        return given.operator
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


async def _run(given: Settings, plan: Plan, number: int | None, *, apply: bool, wait: float, json: bool) -> int:
    async with runtime.source_and_store(given) as (source, store):
        if number is None:
            runs = await run_all(
                source,
                plan,
                place=runtime.place_of(given),
                apply=apply,
                store=store,
                operator=operator_of(given),
                wait_seconds=wait,
                policy=runtime.lock_policy(given),
                on_event=_tell,
            )
        else:
            one = await run_phase(
                source,
                plan,
                number,
                place=runtime.place_of(given),
                apply=apply,
                store=store,
                operator=operator_of(given),
                wait_seconds=wait,
                policy=runtime.lock_policy(given),
                on_event=_tell,
            )
            runs = [one]
    unmet = [gate for done in runs if not done.applied for gate in done.gates if not gate.met]
    if json:
        emit({"schema_version": 1, "phases": [_run_as_json(done) for done in runs]})
    else:
        for done in runs:
            _show_run(done)
        if not runs:
            out.print("The plan moves no trigger: there is nothing to do.")
        elif not apply:
            say("Nothing was done. Run it with [bold]--apply[/].")
    return ExitCode.GATE if unmet else ExitCode.OK


async def _rollback(given: Settings, number: int | None, *, apply: bool, json: bool) -> int:
    async with runtime.source_and_store(given) as (source, _):
        done = await rollback_phase(
            source,
            number,
            place=runtime.place_of(given),
            apply=apply,
            operator=operator_of(given),
            policy=runtime.lock_policy(given),
            on_event=_tell,
        )
    if json:
        emit(
            {
                "schema_version": 1,
                "applied": done.applied,
                "restored": done.restored,
                "sql": done.sql,
                "findings": done.findings,
            }
        )
    else:
        _show_rollback(done)
    return ExitCode.OK


async def _status(given: Settings, plan: Plan | None, *, json: bool) -> int:
    async with runtime.source_and_store(given) as (source, store):
        found = await read_status(source, place=runtime.place_of(given), plan=plan, store=store)
    if json:
        emit({"schema_version": 1, **_status_as_json(found)})
    else:
        _show_status(found)
    return (
        ExitCode.DRIFT if any(finding.rule.startswith("migrate.drift") for finding in found.findings) else ExitCode.OK
    )


def _tell(event: MigrationEvent) -> None:
    match event.kind:
        case EventKind.SILENCED | EventKind.RESTORED:
            say(f"[green]✓[/] {escape(event.text)}")
        case EventKind.BLOCKED | EventKind.WAITING:
            say(f"[yellow]…[/] {escape(event.text)}")
        case EventKind.HALTED:
            say(f"[red]✗[/] {escape(event.text)}")
        case EventKind.SOAKED | EventKind.DONE:
            say(f"[green]●[/] {escape(event.text)}")
        case EventKind.GATES | EventKind.STATEMENT | EventKind.SOAKING:
            pass


# The plan's text goes into the ledger, and would bury what is done to the triggers.
_PLAN_TEXT = re.compile(r"E?'# The plan of a migration(?:[^']|'')*'")


def _readable(sql: str) -> str:
    return _PLAN_TEXT.sub("'(the whole text of the plan; --json shows it)'", sql)


def _show_run(done: PhaseRun) -> None:
    if done.applied:
        out.print(f"Phase {done.number} ({escape(done.title)}): {done.state.value}, {len(done.silenced)} silenced now")
    else:
        typer.echo(f"-- Phase {done.number}, {done.title}: what --apply would run")
        typer.echo(_readable(done.sql))
        _show_gates(done.gates)
    show_findings(done.findings)


def _show_gates(gates: Sequence[Gate]) -> None:
    for gate in gates:
        found = "could not be measured" if gate.value is None else gate.value
        needs = "" if gate.met else f", needs {gate.threshold}"
        say(
            f"{'[green]✓[/]' if gate.met else '[red]✗[/]'} {escape(gate.name)}: {escape(found)}{escape(needs)} "
            f"[dim]({escape(gate.window)})[/]"
        )
        if not gate.met:
            say(f"    [green]→[/] {escape(gate.remedy)}")


def _show_rollback(done: Rollback) -> None:
    if not (done.restored or done.finished or done.sql.strip()):
        out.print("Nothing is off that could be taken back.")
    elif not done.applied:
        typer.echo(done.sql)
        say("Nothing was done. Run it with [bold]--apply[/].")
    else:
        over = ", and the migration is over" if done.finished else ""
        out.print(f"{counted(len(done.restored), 'trigger')} on again{over}")
    show_findings(done.findings)


def _show_status(found: MigrationStatus) -> None:
    rows = [
        (
            phase.number,
            phase.title,
            phase.state.value,
            len(phase.off),
            len(phase.on),
            f"{phase.silenced_at:%Y-%m-%d %H:%M} {phase.silenced_by or ''}" if phase.silenced_at else "",
        )
        for phase in found.phases
    ]
    if rows:
        out.print(fill(table(">phase", "what", "state", ">off", ">on", "silenced"), rows))
    for phase in found.phases:
        if phase.halted:
            out.print(f"[red]phase {phase.number}[/]: {escape(phase.halted)}")
    show_findings(found.findings)
    head = found.next.partition(":")[0]
    unmet = [
        gate
        for phase in found.phases
        if f"phase {phase.number} " in head
        for gate in phase.gates
        if not gate.met and str(gate) in found.next
    ]
    if unmet:
        out.print(f"[bold]next:[/] {escape(head)}, which needs:")
        _show_gates(unmet)
    else:
        out.print(f"[bold]next:[/] {escape(found.next)}")


def _run_as_json(done: PhaseRun) -> dict[str, object]:
    return {
        "phase": done.number,
        "title": done.title,
        "applied": done.applied,
        "state": done.state.value,
        "silenced": done.silenced,
        "gates": done.gates,
        "sql": done.sql,
        "findings": done.findings,
    }


def _status_as_json(found: MigrationStatus) -> dict[str, object]:
    return {
        "migration": found.migration.id if found.migration else None,
        "phases": [
            {
                "phase": phase.number,
                "title": phase.title,
                "state": phase.state.value,
                "off": phase.off,
                "on": phase.on,
                "left": phase.left,
                "gates": phase.gates,
                "silenced_at": phase.silenced_at,
                "silenced_by": phase.silenced_by,
                "restored_at": phase.restored_at,
                "halted": phase.halted,
            }
            for phase in found.phases
        ],
        "findings": found.findings,
        "next": found.next,
    }
