"""``afterwrite migrate``: run a phase, see where it stands, take it back."""

from __future__ import annotations

import asyncio
import getpass
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from afterwrite import runtime
from afterwrite.cli.face import (
    FLAG,
    Apply,
    Dsn,
    Json,
    StoreDsn,
    Yes,
    counted,
    emit,
    fill,
    hang,
    out,
    plain,
    run,
    say,
    settings,
    show_findings,
    table,
    talk,
)
from afterwrite.cli.plan import PlanFile, load
from afterwrite.cli.watching import View, watched
from afterwrite.errors import ExitCode, GateNotMet, UsageError
from afterwrite.migrate.backup import render_sql
from afterwrite.migrate.deeds import EventKind, MigrationEvent, OnEvent, render
from afterwrite.migrate.engine import Control, Migrator, PhaseRun, remove_phases, run_all, run_phase
from afterwrite.migrate.functions import FunctionsRun
from afterwrite.migrate.ledger import read_pause, set_pause
from afterwrite.migrate.overrides import overrides
from afterwrite.migrate.phase import Gate, State
from afterwrite.migrate.plan import Plan
from afterwrite.migrate.rehearse import note_rehearsal, read_backups, rehearse
from afterwrite.migrate.rollback import Rollback, rollback_phase
from afterwrite.migrate.scripts import phase_script, write_scripts
from afterwrite.migrate.status import MigrationStatus, PhaseStatus
from afterwrite.migrate.status import status as read_status
from afterwrite.postgres import connect, describe_dsn
from afterwrite.settings import Settings
from afterwrite.store.schema import require_store

app = typer.Typer(help="Silence the triggers phase by phase, behind gates, and take it back.", no_args_is_help=True)

PhaseNumber = Annotated[int | None, typer.Option("--phase", help="The phase's number.", min=1)]
Everything = Annotated[bool, typer.Option("--all", metavar=FLAG, help="Every phase, in order.")]


@app.command("run")
def run_command(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    file: PlanFile = Path("plan.toml"),
    phase: PhaseNumber = None,
    everything: Everything = False,
    apply: Apply = False,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for gates that do not hold yet.", min=0)] = 0,
    target: Annotated[
        Path | None,
        typer.Option(
            "--sql", metavar="PATH", help="Write the SQL to this file; with --all all scripts into this folder."
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", metavar=FLAG, help="Show gates and soak live, with keys to pause, resume and roll back."
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Silence a phase (or, with --all, each in turn, with its soak). Without --apply: the exact SQL, and the gates.

    With --all --sql DIR the whole migration is written as scripts that work by hand, forward and back. Exit 3 when a
    gate does not hold, 4 when the database is not what the plan says. Running it again goes on from what is there.
    """
    _one_of(phase, everything)
    given, plan = settings(dsn, store_dsn), load(file)
    if phase is not None and not plan.phase(phase).triggers:
        return _nothing_to_do(plan, phase, json=json)
    if target is not None:
        if apply:
            raise UsageError("--sql writes what --apply would do", remedy="leave one of them out")
        return run(_write_sql(given, plan, phase, target))
    if watch and not apply:
        raise UsageError("there is nothing to watch in a dry run", remedy="give --apply, too")
    return run(_run(given, plan, phase, apply=apply, wait=wait, watch=watch, json=json))


@app.command("rollback")
def rollback_command(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    phase: PhaseNumber = None,
    everything: Everything = False,
    apply: Apply = False,
    target: Annotated[
        Path | None, typer.Option("--sql", metavar="FILE", help="Write the SQL to this file instead.")
    ] = None,
    backfill: Annotated[
        bool,
        typer.Option(
            "--backfill/--no-backfill",
            metavar=FLAG,
            help="Fill the legacy log for the time when its triggers were off.",
        ),
    ] = True,
    force: Annotated[
        bool,
        typer.Option("--force", metavar=FLAG, help="Make what somebody changed or dropped meanwhile as it was, too."),
    ] = False,
    json: Json = False,
) -> int:
    """Turn a phase's triggers on again, exactly as they were; with --all also the replica identities, and end it.

    What was removed is made again. The legacy log is filled for the time when the triggers were off, from what was
    captured, and compared. Without --apply it only shows the SQL. Exit 3 when the log could not be filled.
    """
    _one_of(phase, everything)
    if target is not None and apply:
        raise UsageError("--sql writes what --apply would do", remedy="leave one of them out")
    return run(
        _rollback(
            settings(dsn, store_dsn), phase, apply=apply, backfill=backfill, force=force, target=target, json=json
        )
    )


@app.command("remove")
def remove_command(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    file: PlanFile = Path("plan.toml"),
    phase: PhaseNumber = None,
    everything: Everything = False,
    functions: Annotated[
        bool, typer.Option("--functions", metavar=FLAG, help="Drop their functions, too, where nothing else uses them.")
    ] = False,
    apply: Apply = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Drop the triggers of a phase that is silenced and has soaked. Their backups stay: a rollback makes them again.

    Without --apply: the exact SQL, and the gates. With it you are asked once more (--yes answers). Exit 3 while the
    phase has not soaked.
    """
    _one_of(phase, everything)
    given, plan = settings(dsn, store_dsn), load(file)
    if apply and not yes:
        _confirm(given, phase)
    return run(_remove(given, plan, phase, functions=functions, apply=apply, json=json))


def _confirm(given: Settings, phase: int | None) -> None:
    what = f"the triggers of {'every silenced phase' if phase is None else f'phase {phase}'}"
    where = describe_dsn(given.dsn)
    if not sys.stdin.isatty():
        raise UsageError(
            f"{what} would be dropped from {where}, and there is nobody to ask", remedy="say it with --yes"
        )
    talk.print(f"{what} will be dropped from {plain(where)}; `afterwrite migrate rollback` makes them again")
    if typer.prompt("type remove to go on", default="", show_default=False, err=True).strip() != "remove":
        raise UsageError("nothing was dropped", remedy="type the word remove to go on")


@app.command("pause")
def pause_command(
    dsn: Dsn = None,
    because: Annotated[
        str, typer.Option("--because", metavar="TEXT", help="Why, for whoever finds it paused.", show_default=False)
    ] = "",
) -> int:
    """Let nothing more be silenced or removed, until resume. A run that is at work waits before its next phase.

    What is off stays off, and can be taken back; a phase that breaks its gates still turns itself on again.
    """
    return run(_set_pause(settings(dsn), paused=True, because=because))


@app.command("resume")
def resume_command(dsn: Dsn = None) -> int:
    """Let a migration that was paused go on, from the command line or from the pages. It runs nothing by itself."""
    return run(_set_pause(settings(dsn), paused=False))


async def _set_pause(given: Settings, *, paused: bool, because: str = "") -> int:
    async with connect(given.dsn, guarded=True) as source:
        await require_store(source)
        done = await set_pause(source, paused=paused, operator=operator_of(given), because=because)
        now = await read_pause(source)
    if now is not None:
        out.print(f"The migration is {plain(str(now))}.")
        say("`afterwrite migrate resume` lets it go on; `afterwrite migrate rollback` works meanwhile.")
    else:
        out.print("The migration may go on." if done else "The migration is not paused: it may go on.")
    return ExitCode.OK


@app.command("status")
def status_command(
    dsn: Dsn = None, store_dsn: StoreDsn = None, file: PlanFile = Path("plan.toml"), json: Json = False
) -> int:
    """Where each phase stands, what was done when and by whom, and what is next.

    Exit 4 when somebody changed something.
    """
    plan = load(file) if file.is_file() else None
    return run(_status(settings(dsn, store_dsn), plan, json=json))


@app.command("backup")
def backup_command(
    dsn: Dsn = None,
    file: PlanFile = Path("plan.toml"),
    target: Annotated[str, typer.Option("--sql", metavar="FILE", help="Where the script goes; - for stdout.")] = "-",
) -> int:
    """Write a script that makes every trigger of the plan, with its function, again as it was. Reads only.

    What is silenced or removed already is written as the ledger has it. The script needs nothing of afterwrite's.
    """
    script = run(_backup(settings(dsn), load(file)))
    if target == "-":
        typer.echo(script, nl=False)
    else:
        write_script(Path(target), script)
    return ExitCode.OK


@app.command("rehearse")
def rehearse_command(dsn: Dsn = None, file: PlanFile = Path("plan.toml"), json: Json = False) -> int:
    """Try the backup out: restore it into a server of our own, and compare the catalogs.

    Nothing is done to the database but a line in the ledger. Exit 4 when something would not come back as it was.
    """
    given = settings(dsn)
    return run(_rehearse(given, load(file), json=json))


async def _backup(given: Settings, plan: Plan) -> str:
    async with connect(given.dsn, guarded=True) as source:
        backups = await read_backups(source, plan)
        where = source.where
    head = f"-- {counted(len(backups), 'trigger')} of {where} and their functions, as they were.\n\n"
    return head + render_sql(*backups)


def write_script(path: Path, script: str) -> None:
    """Write a file for people to run, and say so."""
    try:
        path.write_text(script, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", remedy="name another") from error
    say(f"written to {path}")


async def _rehearse(given: Settings, plan: Plan, *, json: bool) -> int:
    async with connect(given.dsn, guarded=True) as source:
        found = await rehearse(source, plan, given.dsn)
        await note_rehearsal(source, found, operator_of(given))
    if json:
        emit({"schema_version": 1, "same": found.same, **msgspec.structs.asdict(found)})
    else:
        show_findings(found.findings)
        came = "came back as they were" if found.same else "were restored, and not all of it is as it was"
        out.print(
            f"{counted(len(found.triggers), 'trigger')} and {counted(len(found.functions), 'function')} {came}: "
            f"{found.catalog_lines:,} lines of the catalog compared in a PostgreSQL {found.server_version} "
            f"({found.seconds:.1f} s)"
        )
    return ExitCode.OK if found.same else ExitCode.DRIFT


def _one_of(phase: int | None, everything: bool) -> None:
    if (phase is None) is not everything:
        said = "--phase and --all contradict each other" if everything else "which phase is not said"
        raise UsageError(said, remedy="give either --phase N or --all")


def operator_of(given: Settings) -> str:
    """Who acts, for the ledger."""
    if given.operator:
        return given.operator
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _nothing_to_do(plan: Plan, number: int, *, json: bool) -> int:
    """Say that a phase moves no trigger, and which does."""
    if json:
        emit({"schema_version": 1, "phases": [], "overrides": []})
        return ExitCode.OK
    others = [each for each in plan.phases if each.triggers]
    named = f"; those with something to do: {', '.join(str(each.number) for each in others)}" if others else ""
    out.print(f"Phase {number} ({plain(plan.phase(number).title)}) moves no trigger: there is nothing to do{named}.")
    return ExitCode.OK


async def _run(
    given: Settings, plan: Plan, number: int | None, *, apply: bool, wait: float, watch: bool, json: bool
) -> int:
    control = Control()
    view = View(plan, control, number)

    def listen(event: MigrationEvent) -> None:
        view.hear(event)
        if not (watch and talk.is_terminal):
            _tell(event)

    with _listed(view, json=json):
        runs = await _go(given, plan, number, apply=apply, wait=wait, watch=watch, view=view, listen=listen)
    unmet = [gate for done in runs if not done.applied for gate in done.gates if not gate.met]
    if json:
        phases = [_run_as_json(done) for done in runs]
        emit({"schema_version": 1, "phases": phases, "overrides": overrides(plan, number)})
    else:
        for done in runs:
            _show_run(done)
        show_findings(overrides(plan, number))
        if not runs:
            out.print("The plan moves no trigger: there is nothing to do.")
        elif not apply and unmet:
            which = "1 gate does not hold" if len(unmet) == 1 else f"{len(unmet)} gates do not hold"
            say(f"Nothing was done. {which}: [bold]--apply[/] is refused, or waits with --wait SECONDS.")
        elif not apply:
            say("Nothing was done. Run it with [bold]--apply[/].")
    return ExitCode.GATE if unmet else ExitCode.OK


@contextmanager
def _listed(view: View, *, json: bool) -> Generator[None]:
    """Gates that keep a phase from moving as a list, each with its remedy, instead of in one long sentence."""
    try:
        yield
    except GateNotMet as error:
        unmet = [gate for gate in view.gates if not gate.met]
        if json or not unmet or not all(str(gate) in str(error) for gate in unmet):
            raise
        _show_gates(unmet)
        which = "a gate does not hold" if len(unmet) == 1 else f"{len(unmet)} gates do not hold"
        raise GateNotMet(
            f"{str(error).partition(':')[0]}: {which}",
            remedy="the same command when they do, or with --wait SECONDS, which waits for them",
        ) from error


async def _go(
    given: Settings,
    plan: Plan,
    number: int | None,
    *,
    apply: bool,
    wait: float,
    watch: bool,
    view: View,
    listen: OnEvent,
) -> list[PhaseRun]:
    async with runtime.source_and_store(given) as (source, store):
        if number is None or watch:
            with watched(view) if watch else nullcontext():
                runs = await run_all(
                    source,
                    plan,
                    place=runtime.place_of(given),
                    apply=apply,
                    store=store,
                    operator=operator_of(given),
                    wait_seconds=wait,
                    policy=runtime.lock_policy(given),
                    on_event=listen,
                    control=view.control,
                    number=number,
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
                on_event=listen,
            )
            runs = [one]
    return list(runs)


async def _write_sql(given: Settings, plan: Plan, number: int | None, target: Path) -> int:
    """Write the script of one phase, or of everything; exit 3 when a gate did not hold at that moment."""
    async with runtime.source_and_store(given) as (source, store):
        migrator = Migrator(
            source,
            plan,
            runtime.place_of(given),
            store=store,
            operator=operator_of(given),
            policy=runtime.lock_policy(given),
        )
        if number is not None:
            one = await migrator.show(plan.phase(number))
            files, unmet = {target: phase_script(one)}, any(not gate.met for gate in one.gates)
        else:
            installation = await runtime.look_at_installation(given, source, store)
            optimise = runtime.installation_script(installation, given)
            if installation.schema:
                say("afterwrite is not installed: the scripts of the phases come when 0-optimise.sql was run")
                files, unmet = {target / "0-optimise.sql": optimise}, None
            else:
                found = await write_scripts(migrator, optimise)
                files = {target / name: text for name, text in found.files.items()}
                unmet = any(not gate.met for gates in found.gates.values() for gate in gates)
            try:
                await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{target} cannot be made: {error.strerror}", remedy="name another folder") from error
    for path, text in files.items():
        write_script(path, text)
    if unmet:
        say("[yellow]some gates do not hold now[/]: each script says which, and asks none when it is run")
    return ExitCode.OK if unmet is False else ExitCode.GATE


async def _remove(given: Settings, plan: Plan, number: int | None, *, functions: bool, apply: bool, json: bool) -> int:
    async with runtime.source_and_store(given) as (source, store):
        runs, dropped = await remove_phases(
            source,
            plan,
            number,
            place=runtime.place_of(given),
            apply=apply,
            functions=functions,
            store=store,
            operator=operator_of(given),
            policy=runtime.lock_policy(given),
            on_event=_tell,
        )
    policy = runtime.lock_policy(given)
    script = render([deed for done in (*runs, *([dropped] if dropped else [])) for deed in done.deeds], policy)
    if json:
        emit(
            {
                "schema_version": 1,
                "applied": apply,
                "removed": [identity for done in runs for identity in done.silenced],
                "functions": dropped.dropped if dropped else (),
                "sql": script,
                "gates": {str(done.number): done.gates for done in runs},
                "findings": [*(f for done in runs for f in done.findings), *(dropped.findings if dropped else ())],
            }
        )
    else:
        _show_removal(runs, dropped, script, apply=apply)
    unmet = not apply and any(not gate.met for done in runs if done.deeds for gate in done.gates)
    return ExitCode.GATE if unmet else ExitCode.OK


def _show_removal(runs: Sequence[PhaseRun], dropped: FunctionsRun | None, script: str, *, apply: bool) -> None:
    gone = sum(len(done.silenced) for done in runs)
    if not script.strip():
        out.print("Nothing is off that could be dropped.")
    elif not apply:
        typer.echo(script)
    for done in runs:
        if not done.applied and done.deeds:
            say(f"phase {done.number}, {counted(len(done.silenced), 'trigger')} to drop")
            _show_gates(done.gates)
        show_findings(done.findings)
    if dropped:
        show_findings(dropped.findings)
    if apply:
        more = f", and {counted(len(dropped.dropped), 'function')}" if dropped else ""
        out.print(f"{counted(gone, 'trigger')} dropped{more}; the backups are in afterwrite.ledger")
    elif script.strip():
        say("Nothing was done. Run it with [bold]--apply[/].")


async def _rollback(
    given: Settings,
    number: int | None,
    *,
    apply: bool,
    backfill: bool,
    force: bool,
    target: Path | None,
    json: bool,
) -> int:
    async with runtime.source_and_store(given) as (source, store):
        done = await rollback_phase(
            source,
            number,
            place=runtime.place_of(given),
            apply=apply,
            store=store,
            force=force,
            backfill=backfill,
            replay=runtime.replay_policy(given),
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
                "filled": done.filled,
                "sql": done.sql,
                "findings": done.findings,
            }
        )
    elif target is not None:
        write_script(target, done.sql)
        show_findings(done.findings)
    else:
        _show_rollback(done)
    hole = any(finding.rule in ("rollback.hole", "rollback.unproven") for finding in done.findings)
    return ExitCode.GATE if hole else ExitCode.OK


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
        case EventKind.SILENCED | EventKind.RESTORED | EventKind.REMOVED | EventKind.FILLED:
            say(f"[green]✓[/] {escape(event.text)}")
        case EventKind.WAITING if event.gates:
            _tell_waiting(event)
        case EventKind.PAUSED | EventKind.BLOCKED | EventKind.WAITING | EventKind.FILLING | EventKind.DRIFT:
            say(f"[yellow]…[/] {escape(event.text)}")
        case EventKind.HALTED:
            say(f"[red]✗[/] {escape(event.text)}")
        case EventKind.SOAKED | EventKind.DONE:
            say(f"[green]●[/] {escape(event.text)}")
        case EventKind.GATES | EventKind.STATEMENT | EventKind.SOAKING:
            pass


_waited: set[tuple[int | None, str]] = set()


def _tell_waiting(event: MigrationEvent) -> None:
    """What is waited for, once each; the gates are measured again and again."""
    fresh = [gate for gate in event.gates if (event.phase, gate.name) not in _waited]
    _waited.update((event.phase, gate.name) for gate in fresh)
    for gate in fresh:
        found = "not measured yet" if gate.value is None else gate.value
        say(f"[yellow]…[/] phase {event.phase} waits: {escape(f'{gate.name} {found}, needs {gate.threshold}')}")


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
        for each in done.filled:
            if each.whole:
                rest = "all" if each.matched >= each.rows else f"none differs, and {each.matched:,} are"
                out.print(
                    f"{counted(len(each.triggers), 'trigger')} of phase {each.phase}: {each.rows:,} legacy rows filled "
                    f"for {counted(each.transactions, 'transaction')}, {rest} proven"
                )
    show_findings(done.findings)


def _show_status(found: MigrationStatus) -> None:
    rows = [
        (
            phase.number,
            phase.title,
            phase.state.value if _moves(phase) else "nothing to do",
            len(phase.off),
            len(phase.on),
            f"{_minute(phase.silenced_at)} {phase.silenced_by or ''}" if phase.silenced_at else "",
        )
        for phase in found.phases
    ]
    if rows:
        out.print(fill(table(">phase", "what", "state", ">off", ">on", "silenced (UTC)"), rows))
    _show_checklist(found)
    for phase in found.phases:
        if phase.halted:
            out.print(f"[red]phase {phase.number} was turned on again[/]: {escape(phase.halted)}")
    show_findings(found.findings, grave="drift")
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


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _moves(phase: PhaseStatus) -> bool:
    return bool(phase.on or phase.off or phase.left) or phase.state is State.REMOVED


def _show_checklist(found: MigrationStatus) -> None:
    section = None
    for item in found.checklist:
        if item.section is not section:
            section = item.section
            out.print(f"[bold]{section.value}[/]")
        mark = {True: "[green]✓[/]", False: "[yellow]·[/]", None: "[dim]-[/]"}[item.done]
        when = f", {_minute(item.at)} UTC" if item.at else ""
        by = f" by {item.by}" if item.by else ""
        detail = f" ({item.detail})" if item.detail else ""
        hang(f"  {mark}", f"{plain(item.what)}{when}{plain(by)}[dim]{plain(detail)}[/]")
        if item.done is False and item.how:
            out.print(f"      [green]→[/] {plain(item.how)}", soft_wrap=True)


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
        "paused": found.pause,
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
                "soaked_at": phase.soaked_at,
                "removed_at": phase.removed_at,
                "restored_at": phase.restored_at,
                "halted": phase.halted,
            }
            for phase in found.phases
        ],
        "findings": found.findings,
        "checklist": found.checklist,
        "next": found.next,
    }
