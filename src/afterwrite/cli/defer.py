"""``afterwrite defer``: how deferred bodies stand, which of their calls failed, and what is to become of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape

from afterwrite import runtime
from afterwrite.cli.face import (
    FLAG,
    Dsn,
    Json,
    StoreDsn,
    Yes,
    counted,
    emit,
    fill,
    out,
    plain,
    run,
    say,
    settings,
    table,
)
from afterwrite.defer.letters import (
    DeadLetter,
    LetterDetail,
    read_dead_letter,
    read_dead_letters,
    renew_bodies,
    retry_dead_letters,
    skip_dead_letters,
    skip_halt,
)
from afterwrite.defer.progress import Deferred, Lag, Standing, read_deferred, read_lag, read_standing
from afterwrite.defer.run import words
from afterwrite.errors import AfterwriteError, ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.settings import Settings

app = typer.Typer(help="Deferred trigger bodies: how they stand, and what failed.", no_args_is_help=True)

Numbers = Annotated[list[int] | None, typer.Argument(help="Numbers of dead letters.", show_default=False)]
OfTrigger = Annotated[
    str | None, typer.Option("--trigger", help="Those of this trigger (schema.table.trigger).", show_default=False)
]
_LISTED = 50


@app.command("status")
def status_command(dsn: Dsn = None, store_dsn: StoreDsn = None, json: Json = False) -> int:
    """Show which triggers' bodies run after commit, how far behind they are, and how many calls failed.

    Exit 3 while the stream stands still at a failing body, or failed calls wait.
    """
    return run(_status(settings(dsn, store_dsn), json=json))


@app.command("list")
def list_command(
    dsn: Dsn = None,
    trigger: OfTrigger = None,
    everything: Annotated[
        bool, typer.Option("--all", metavar=FLAG, help="Those that were run again or skipped, too.")
    ] = False,
    json: Json = False,
) -> int:
    """List the calls that failed and wait, in the order in which they were to run."""
    return run(_list(settings(dsn), trigger, everything=everything, json=json))


@app.command("show")
def show_command(
    number: Annotated[int, typer.Argument(help="The dead letter's number.")], dsn: Dsn = None, json: Json = False
) -> int:
    """Show all of a failed call: its rows, who wrote them, what went wrong where, and how to run it again."""
    return run(_show(settings(dsn), number, json=json))


@app.command("retry")
def retry_command(
    numbers: Numbers = None,
    dsn: Dsn = None,
    trigger: OfTrigger = None,
    renew: Annotated[
        bool,
        typer.Option("--renew", metavar=FLAG, help="First take over the triggers' functions as they are now, mended."),
    ] = False,
    json: Json = False,
) -> int:
    """Run failed calls again: those named, those of a trigger, or all, each in a transaction of its own.

    They run with the time, settings and role of their own transaction, in the order in which they were to run, after
    whatever has run since. With --renew a stream that stands still goes on with the mended body, too. Exit 1 when one
    fails again.
    """
    return run(_retry(settings(dsn), numbers or [], trigger, renew=renew, json=json))


@app.command("skip")
def skip_command(
    numbers: Numbers = None,
    dsn: Dsn = None,
    trigger: OfTrigger = None,
    halted: Annotated[
        bool,
        typer.Option(
            "--halted", metavar=FLAG, help="Let the transaction at which the stream stands go by; what fails is parked."
        ),
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Give failed calls up: their effects will not happen. They stay in afterwrite.dead_letter as history."""
    if not (numbers or trigger or halted):
        raise UsageError("nothing was named to be skipped", remedy="give numbers, --trigger or --halted")
    return run(_skip(settings(dsn), numbers or [], trigger, halted=halted, yes=yes, json=json))


async def _status(given: Settings, *, json: bool) -> int:
    async with runtime.source_and_store(given) as (source, store):
        standing = await read_standing(source, given.source)
        deferred = await read_deferred(source, given.source)
        lag = await read_lag(source, store, source=given.source)
    if json:
        emit({"schema_version": 1, "standing": standing, "lag": lag, "triggers": deferred})
    else:
        _show_status(given, standing, deferred, lag)
    waiting = sum(each.parked for each in deferred)
    return ExitCode.GATE if waiting or (standing and standing.halted_lsn) else ExitCode.OK


def _show_status(given: Settings, standing: Standing | None, deferred: Sequence[Deferred], lag: Lag) -> None:
    if standing is None or not deferred:
        out.print(f"No trigger of source {plain(given.source)} is deferred.")
        return
    rows = [
        (
            each.identity.removeprefix("public."),
            "log kept" if each.mode == "retire" else "deferred",
            each.state,
            each.on_error,
            f"{each.parked:,}" if each.parked else "",
        )
        for each in deferred
    ]
    out.print(fill(table("table and trigger", "what for", "state", "on error", ">failed"), rows))
    running = "a replayer runs" if standing.running else "no replayer runs (`afterwrite capture` has one)"
    behind = f"{counted(lag.batches, 'batch').replace('batchs', 'batches')} behind, {lag.seconds:,.1f} s"
    out.print(f"{running}; at {standing.commit_lsn}, {behind if lag.batches else 'nothing is behind'}")
    out.print(
        f"{counted(standing.calls, 'body').replace('bodys', 'bodies')} run for"
        f" {counted(standing.transactions, 'transaction')}, {standing.parked:,} parked ever"
    )
    if standing.halted_lsn:
        out.print(f"[red]halted[/] at {standing.halted_lsn}: {plain(standing.trouble or '')}", soft_wrap=True)
        out.print("  [green]→[/] mend its function, then [bold]afterwrite defer retry --renew[/]; or")
        out.print("    [bold]afterwrite defer skip --halted[/] parks what fails there and goes on")
    if waiting := sum(each.parked for each in deferred):
        out.print(f"{counted(waiting, 'failed call')} waiting: [bold]afterwrite defer list[/]")


async def _list(given: Settings, trigger: str | None, *, everything: bool, json: bool) -> int:
    async with connect(given.dsn, guarded=True) as db:
        letters = await read_dead_letters(db, given.source, identity=trigger, resolved=everything)
    if json:
        emit({"schema_version": 1, "dead_letters": letters})
        return ExitCode.OK
    if not letters:
        out.print("No failed call waits." if not everything else "No call ever failed.")
        return ExitCode.OK
    made = table(">no.", "table and trigger", "operation", "committed", "error")
    fill(made, [_listed(letter) for letter in letters[:_LISTED]])
    out.print(made)
    if (more := len(letters) - _LISTED) > 0:
        out.print(f"and {counted(more, 'call')} more [dim](--json has all)[/]")
    out.print("[bold]afterwrite defer show[/] NUMBER shows all of one; retry runs them again, skip gives them up.")
    return ExitCode.OK


def _listed(letter: DeadLetter) -> tuple[object, ...]:
    error = letter.error if letter.sqlstate is None else f"{letter.sqlstate} {letter.error}"
    return (
        letter.id,
        letter.identity.removeprefix("public."),
        letter.operation.lower(),
        f"{letter.committed_at:%m-%d %H:%M:%S}",
        letter.resolution or " ".join(error.split()),
    )


async def _show(given: Settings, number: int, *, json: bool) -> int:
    async with connect(given.dsn, guarded=True) as db:
        letter = await read_dead_letter(db, given.source, number)
    if json:
        emit({"schema_version": 1, **_as_json(letter)})
        return ExitCode.OK
    tried = f"tried {letter.attempts} times" if letter.attempts else "refused without a try"
    out.print(f"[bold]{plain(letter.identity)}[/] {letter.operation}, dead letter {letter.id}", soft_wrap=True)
    facts = [
        ("state", f"{letter.resolution} at {letter.resolved_at}" if letter.resolution else f"waits, {tried}"),
        ("change", f"{letter.activity_id}, commit {letter.commit_lsn}, change {letter.ordinal}"),
        ("committed", letter.committed_at.isoformat()),
        ("error", " ".join(filter(None, [letter.sqlstate, letter.error]))),
        ("where", (letter.detail or "").partition("\n")[0] or None),
        ("old row", letter.before),
        ("new row", letter.after),
        ("settings", letter.settings),
        ("role", letter.role),
        ("context", letter.context),
        ("body", f"afterwrite_deferred.{letter.run}"),
    ]
    for name, value in facts:
        if value is not None:
            out.print(f"  {name:<9} {plain(value)}", soft_wrap=True)
    if not letter.resolution:
        out.print(f"run it again: [bold]afterwrite defer retry {letter.id}[/] (--renew when its function was mended)")
    return ExitCode.OK


def _as_json(letter: LetterDetail) -> dict[str, Any]:
    raw = {name: getattr(letter, name) for name in ("before", "after", "context", "settings")}
    return {
        **msgspec.structs.asdict(letter),
        **{name: None if text is None else msgspec.Raw(text.encode()) for name, text in raw.items()},
    }


async def _retry(given: Settings, numbers: Sequence[int], trigger: str | None, *, renew: bool, json: bool) -> int:
    async with connect(given.dsn, guarded=True) as db:
        renewed: list[str] = []
        if renew:
            deferred = [each.identity for each in await read_deferred(db, given.source)]
            wanted = [each for each in deferred if trigger in (None, each)]
            renewed = await renew_bodies(db, given.source, wanted)
        letters = _chosen(await read_dead_letters(db, given.source, identity=trigger), numbers)
        said = await retry_dead_letters(db, [letter.id for letter in letters])
    failed = {letter: error for letter, error in said.items() if error is not None}
    if json:
        done = [letter for letter, error in said.items() if error is None]
        emit(
            {
                "schema_version": 1,
                "renewed": renewed,
                "done": done,
                "failed": {str(letter): words(error) for letter, error in failed.items()},
            }
        )
        return ExitCode.ERROR if failed else ExitCode.OK
    for identity in renewed:
        say(f"[green]✓[/] {escape(identity)} has the body that its function has now")
    if renew and not renewed:
        say("no function was changed since its body was taken over")
    for letter in letters:
        error = failed.get(letter.id)
        word = "[green]✓[/]" if error is None else "[red]✗[/]"
        out.print(f"{word} {letter.id} {plain(letter.identity)} {_trouble(error)}".rstrip(), soft_wrap=True)
    out.print(f"{counted(len(said) - len(failed), 'call')} run, {counted(len(failed), 'call')} failed again")
    return ExitCode.ERROR if failed else ExitCode.OK


def _trouble(error: AfterwriteError | None) -> str:
    return "" if error is None else plain(" ".join(words(error).split()))


def _chosen(letters: Sequence[DeadLetter], numbers: Sequence[int]) -> list[DeadLetter]:
    """The letters of these numbers, all when none is given, in the order in which they were to run."""
    if strange := set(numbers) - {letter.id for letter in letters}:
        raise UsageError(
            f"no failed call waits under {', '.join(map(str, sorted(strange)))}", remedy="see `afterwrite defer list`"
        )
    return [letter for letter in letters if not numbers or letter.id in numbers]


async def _skip(
    given: Settings, numbers: Sequence[int], trigger: str | None, *, halted: bool, yes: bool, json: bool
) -> int:
    async with connect(given.dsn, guarded=True) as db:
        lsn = await skip_halt(db, given.source) if halted else None
        letters: list[DeadLetter] = []
        if numbers or trigger:
            letters = _chosen(await read_dead_letters(db, given.source, identity=trigger), numbers)
            if letters and not yes:
                typer.confirm(f"Give up {counted(len(letters), 'failed call')}?", abort=True, err=True)
        skipped = await skip_dead_letters(db, [letter.id for letter in letters])
    if json:
        emit({"schema_version": 1, "skipped": skipped, "halted_lsn": lsn})
        return ExitCode.OK
    if halted:
        out.print(
            f"What fails in the transaction at {lsn} will be parked, and the stream goes on."
            if lsn
            else "The stream does not stand still."
        )
    if numbers or trigger:
        out.print(f"{counted(skipped, 'failed call')} given up")
    return ExitCode.OK
