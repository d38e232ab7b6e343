"""``afterwrite outbox``: events of transactions where nobody can read the WAL, by a table that the worker drains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

from afterwrite import runtime
from afterwrite.capture import outbox
from afterwrite.capture.governor import human_bytes
from afterwrite.cli.face import (
    FLAG,
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
    table,
    tell_blocked,
    tell_steps,
)
from afterwrite.errors import ExitCode
from afterwrite.postgres import connect
from afterwrite.settings import Settings

app = typer.Typer(
    help="Events in transactions where nobody can read the WAL.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.command("install")
def install(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="NAME", help="Only this role may post; may be repeated. Else every role may."),
    ] = None,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Lay the outbox into the application's database, and the store where it is not there yet.

    Applications post events by one function and can do nothing else with it. Their recorders find it within half a
    minute; `afterwrite capture` drains it. Without --apply the SQL is printed.
    """
    return run(_install(settings(dsn, store_dsn), role or [], apply=apply, json=json))


@app.command("remove")
def remove(
    dsn: Dsn = None,
    discard: Annotated[
        bool, typer.Option("--discard", metavar=FLAG, help="Also where there are events in it, which are lost then.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", metavar=FLAG, help="Do not wait for recorders: where no application runs.")
    ] = False,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Take the outbox away, half a minute after it was closed to recorders. It refuses while there are events in it.

    Then it stays closed, until it was drained and you run this again, or `afterwrite outbox install` opens it.
    """
    return run(_remove(settings(dsn), discard=discard, now=now, apply=apply, json=json))


@app.command("status")
def status(dsn: Dsn = None, json: Json = False) -> int:
    """How much waits, since when, and what could not be stored."""
    return run(_status(settings(dsn), json=json))


@app.command("retry")
def retry(dsn: Dsn = None, apply: Apply = False) -> int:
    """Put back what was set aside, so that it is tried again: after an upgrade, or when the store was mended."""
    return run(_retry(settings(dsn), apply=apply))


async def _install(given: Settings, roles: Sequence[str], *, apply: bool, json: bool) -> int:
    async with runtime.source_and_store(given) as (source, store):
        schema, steps = await runtime.foresee_outbox(source, store, roles=roles)
        if apply:
            await runtime.install_outbox(source, store, steps)
        where = store.where
    if not json:
        for upgrade in schema:
            text = f"lay schema {upgrade} in {where}"
            say(f"[green]✓[/] {escape(text)}") if apply else out.print(f"[bold]-- {escape(text)}[/]", soft_wrap=True)
    _tell(steps, schema=schema, apply=apply, json=json)
    if apply and not json:
        out.print("Next: [bold]afterwrite capture[/], or [bold]afterwrite capture --outbox-only[/] without a slot.")
    return ExitCode.OK


async def _remove(given: Settings, *, discard: bool, now: bool, apply: bool, json: bool) -> int:
    async with connect(given.dsn, guarded=True) as db:
        steps = await outbox.plan_remove(db)
        if apply:
            grace = 0.0 if now or not steps else outbox.GRACE_SECONDS
            if grace:
                say(f"… closing; recorders that know of it post for another {grace:.0f} s")
            policy = runtime.lock_policy(given)
            await outbox.remove(db, steps, grace_seconds=grace, discard=discard, policy=policy, on_blocked=tell_blocked)
    _tell(steps, apply=apply, json=json)
    return ExitCode.OK


async def _status(given: Settings, *, json: bool) -> int:
    async with connect(given.dsn, guarded=True) as db:
        standing = await outbox.measure(db)
        refused = await outbox.read_refused(db) if standing is not None else []
    if json:
        emit({"schema_version": 1, "outbox": standing, "refused": refused})
        return ExitCode.OK
    if standing is None:
        out.print("There is no outbox; [bold]afterwrite outbox install[/] lays one.")
        return ExitCode.OK
    since = f", the first for {standing.oldest_seconds:,.0f} s" if standing.oldest_seconds is not None else ""
    more = "more than " if standing.waiting >= outbox.MOST_COUNTED else ""
    events = "event waits" if standing.waiting == 1 else "events wait"
    out.print(f"{more}{standing.waiting:,} {events}{since}; the table takes {human_bytes(standing.bytes)}.")
    if refused:
        out.print(f"{counted(standing.refused, 'event')} could not be stored. The newest:")
        rows = [(f"{row.written_at:%Y-%m-%d %H:%M:%S}", row.reason, row.beginning) for row in refused]
        out.print(fill(table("written", "reason", "begins"), rows))
    return ExitCode.OK


async def _retry(given: Settings, *, apply: bool) -> int:
    async with connect(given.dsn, guarded=True) as db:
        standing = await outbox.measure(db)
        if standing is None or not standing.refused:
            out.print("Nothing was set aside.")
        elif apply:
            out.print(f"{counted(await outbox.put_back(db), 'event')} put back.")
        else:
            out.print(f"Would put back {counted(standing.refused, 'event')}. Run it with [bold]--apply[/].")
    return ExitCode.OK


def _tell(steps: Sequence[outbox.OutboxStep], *, schema: Sequence[str] = (), apply: bool, json: bool) -> None:
    if json:
        emit(
            {
                "schema_version": 1,
                "applied": apply,
                "schema": list(schema),
                "steps": [{"text": step.text, "sql": step.sql} for step in steps],
            }
        )
        return
    tell_steps(steps, applied=apply)
