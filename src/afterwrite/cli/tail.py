"""``afterwrite tail``: the newest activity, and what comes after it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from afterwrite.cli.face import StoreDsn, StoreOnly, emit, out, plain, run, settings
from afterwrite.errors import ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.record import Level, Outcome
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity, Wanted, as_json, read_after, read_position, read_tail

_POLL_SECONDS = 0.2


def tail(
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="How many of the newest.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    actor: Annotated[str | None, typer.Option("--actor", help="Only this actor's.")] = None,
    entity: Annotated[str | None, typer.Option("--entity", help="Only this entity: TYPE or TYPE/ID.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only this action, such as users.update.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document a line on stdout, for machines.")] = False,
) -> int:
    """Show the newest activity, oldest first; with --follow, go on until Ctrl-C."""
    kind, _, number = (entity or "").partition("/")
    if entity is not None and not kind:
        raise UsageError(f"--entity {entity!r} names no type", remedy="give it as TYPE or TYPE/ID, such as users/42")
    wanted = Wanted(actor_id=actor, entity_type=kind or None, entity_id=number or None, action=action)
    try:
        run(_tail(settings(dsn, store_dsn), wanted, count=count, follow=follow, json=json))
    except KeyboardInterrupt:
        if not follow:  # following ends so
            raise
    return ExitCode.OK


async def _tail(given: Settings, wanted: Wanted, *, count: int, follow: bool, json: bool) -> None:
    async with connect(given.store, application_name="afterwrite tail", guarded=True) as store:
        # Read before the newest are: what comes in between is then among them, and what they skip lies behind us.
        position = await read_position(store)
        found = await read_tail(store, limit=count, wanted=wanted)
        _show(sorted(found, key=_moment), json=json)
        if not found and not follow and not json:
            out.print("[dim]Nothing is recorded yet that fits.[/]")
        position = max((each.position for each in found), default=position)
        while follow:
            end = await read_position(store)
            async for page in read_after(store, position, end, wanted=wanted):
                _show(page, json=json)
            position = max(position, end)
            await asyncio.sleep(_POLL_SECONDS)


def _moment(activity: StoredActivity) -> tuple[object, ...]:
    """Its place in time: within one transaction the order of its changes."""
    return activity.occurred_at, activity.commit_lsn or 0, activity.ordinal or 0


def _show(found: Sequence[StoredActivity], *, json: bool) -> None:
    for activity in found:
        if json:
            emit(as_json(activity))
        else:
            out.print(tell(activity), soft_wrap=True)


# In words as well as in colours: those of a terminal may be off, or all alike to who looks.
_MARKS = {
    Level.DEBUG: "",
    Level.INFO: "",
    Level.WARNING: "[yellow]warning[/] ",
    Level.ERROR: "[red]error[/] ",
    Level.CRITICAL: "[bold red]critical[/] ",
}


def tell(activity: StoredActivity) -> str:
    """The activity on one line, as markup: when, who, whether it failed or should be looked at, what, and why."""
    who = f"[cyan]{plain(activity.actor_id)}[/] " if activity.actor_id else ""
    about = "/".join(filter(None, (activity.entity_type, activity.entity_id)))
    what = plain(activity.summary or f"{activity.action} {about}".rstrip())
    mark, why = _MARKS[activity.severity], ""
    if activity.outcome is Outcome.FAILURE:
        # That it failed says as much as a warning or an error.
        mark = f"[red]failed[/] {mark if activity.severity is Level.CRITICAL else ''}"
        why = _reason(activity.metadata)
    return f"[dim]{activity.occurred_at:%H:%M:%S.%f}[/] {who}{mark}{what}{f' [dim]({plain(why)})[/]' if why else ''}"


def _reason(metadata: str | None) -> str:
    """What the metadata says of an error: its type and what it said."""
    try:
        said = _said.decode(metadata or "{}")
    except msgspec.DecodeError:
        return ""
    words = ": ".join(filter(None, (said.error.type, said.error.message))) or said.reason or ""
    return f"{words[:_LONGEST_REASON]}…" if len(words) > _LONGEST_REASON else words


class _Error(msgspec.Struct, frozen=True):
    type: str | None = None
    message: str | None = None


class _Said(msgspec.Struct, frozen=True):
    error: _Error = _Error()
    reason: str | None = None


_said = msgspec.json.Decoder(_Said)
_LONGEST_REASON = 120
