"""``afterwrite show``: one activity, all of it: who, what, when, why, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.padding import Padding
from rich.table import Table

from afterwrite.cli.face import Json, StoreDsn, StoreOnly, emit, out, plain, run, say, settings
from afterwrite.cli.tiers import engine_of, lake_of
from afterwrite.errors import AfterwriteError, ExitCode, UsageError
from afterwrite.lake import tiers
from afterwrite.lake.tiers import Told
from afterwrite.postgres import connect
from afterwrite.record import Level, Operation, Outcome
from afterwrite.search.diff import FieldChange, FieldKind, diff, read_told
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity, as_json

EXAMPLES = "afterwrite show 01a207e2-6c2d-8f3a-ae88-ebab00000000"
_SOME = 10


def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The activity's id, as tail --json and history show it.")],
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="When it occurred, where its id does not tell: 2026-11-23T10:15:00.123456Z."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Show one activity: who did what and why, field by field, what led to it, and what it led to.

    An id tells by itself when its activity was, unless the application gave the time: then say it with --at.
    """
    run(_show(settings(dsn, store_dsn), id, None if at is None else read_moment(at), json=json))
    return ExitCode.OK


def read_moment(text: str) -> datetime:
    """A moment in ISO 8601 with its zone. Raises UsageError for anything else: a time without a zone is several."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is no time", remedy="give it in ISO 8601 with its zone: 2026-11-23T10:15:00Z"
        ) from None
    if moment.tzinfo is None:
        given = moment.isoformat()
        raise UsageError(
            f"{text!r} does not say in which time zone it is", remedy=f"add the offset: {given}Z, or {given}+01:00"
        )
    return moment


async def _show(given: Settings, id: str, at: datetime | None, *, json: bool) -> None:
    lake = None if given.lake_url is None else lake_of(given)
    async with (
        connect(given.store, application_name="afterwrite show", guarded=True) as store,
        tiers.both(store, lake, engine_of(given)) as both,
    ):
        found = await both.read_activity(id, occurred_at=at)
        activity = found.activity
        if activity is None:
            raise AfterwriteError(
                f"no activity {id} is stored in {store.where} at the time that its id tells"
                + (f"; {found.why}" if found.why else ", nor in the lake" if lake is not None else ""),
                remedy="if the application gave its time, say it with --at; a day that has expired is gone",
            )
        cause = await both.read_cause(activity)
        caused = await both.effects(activity, limit=_SOME)
        others = await both.same_transaction(activity, limit=_SOME)
    whys = list(dict.fromkeys(told.why for told in (cause, caused, others) if told.why))
    if json:
        document: dict[str, object] = {
            "activity": as_json(activity),
            "diff": diff(activity),
            "cause": None if cause.activity is None else as_json(cause.activity),
            "effects": [as_json(each) for each in caused.page.items],
            "transaction": [as_json(each) for each in others.page.items],
        }
        from_lake = [told.activity.id for told in (found, cause) if told.lake and told.activity is not None]
        from_lake += [each.id for told in (caused, others) for each in told.page.items if each.id in told.lake]
        emit(document | {"lake": {"items": list(dict.fromkeys(from_lake)), "why": whys}})
        return
    out.print(headline(activity))
    out.print(Padding(_facts(activity, cause.activity), (1, 0, 0, 2)))
    draw_diff(activity, whole=True)
    if activity.metadata is not None:
        out.print("\n[bold]metadata[/]")
        out.print(Padding(plain(_pretty(activity.metadata)), (0, 0, 0, 2)))
    _list("led to", caused, activity.occurred_at)
    _list("in the same transaction", others, activity.occurred_at)
    if found.lake:
        say("[dim]It is from the lake: its day has left the store.[/]")
    for why in whys:
        say(f"[yellow]Not all was looked at:[/] {plain(why)}")


def headline(activity: StoredActivity) -> str:
    """The activity on one line, as markup: when (UTC), what was done, and by whom."""
    moment = activity.occurred_at.astimezone(UTC)
    at = f"{moment:%Y-%m-%d %H:%M:%S}[dim].{moment.microsecond // 1000:03}[/]"
    colour = "magenta" if activity.operation is None else _COLOURS[activity.operation]
    what = activity.action if activity.operation is None else activity.operation.value
    who = f" by [cyan]{plain(activity.actor_id)}[/]" if activity.actor_id else ""
    bad = ""
    if activity.outcome is Outcome.FAILURE:
        bad = " [red]failed[/]"
    elif activity.severity in (Level.WARNING, Level.ERROR, Level.CRITICAL):
        bad = f" [yellow]{activity.severity.value}[/]"
    return f"{at}  [bold {colour}]{plain(what)}[/]{bad}{who}"


_COLOURS = {
    Operation.INSERT: "green",
    Operation.UPDATE: "yellow",
    Operation.DELETE: "red",
    Operation.TRUNCATE: "red",
}


def about(activity: StoredActivity) -> str:
    """What it is about: ``users/42``."""
    return "/".join(filter(None, (activity.entity_type, activity.entity_id)))


def _facts(activity: StoredActivity, cause: StoredActivity | None) -> Table:
    told = read_told(activity)
    place = (
        f"{activity.source} {activity.commit_lsn}, transaction {activity.xid}, no. {(activity.ordinal or 0) + 1} in it"
    )
    client = ", ".join(filter(None, (activity.ip, activity.user_agent)))
    facts: list[tuple[str, str | None]] = [
        ("id", activity.id),
        ("about", about(activity)),
        ("was", f"{activity.entity_type}/{told.entity_was}" if told.entity_was is not None else None),
        ("summary", activity.summary),
        ("tenant", activity.tenant_id),
        ("session", activity.session_id),
        ("request", activity.request_id),
        ("trace", activity.trace_id),
        ("client", client),
        ("took", None if activity.duration_ms is None else f"{activity.duration_ms:,.1f} ms"),
        ("category", f"{activity.category}, {activity.severity.value}"),
        ("source", activity.source if activity.commit_lsn is None else place),
    ]
    grid = _grid(2)
    for name, value in facts:
        if value:
            grid.add_row(f"[dim]{name}[/]", plain(value))
    if cause is not None:
        grid.add_row("[dim]because of[/]", f"{plain(cause.summary or cause.action)} [dim]{cause.id}[/]")
    elif activity.caused_by is not None:
        grid.add_row("[dim]because of[/]", f"{activity.caused_by} [dim](not stored)[/]")
    return grid


def _grid(columns: int) -> Table:
    made = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(columns):
        made.add_column(overflow="fold")
    return made


_SIGNS = {
    FieldKind.SET: "[green]+[/]",
    FieldKind.CHANGED: "[yellow]~[/]",
    FieldKind.REMOVED: "[red]-[/]",
    FieldKind.UNKNOWN: "[dim]?[/]",
}
_BRIEFLY, _IN_FULL, _SIDE_BY_SIDE = 40, 1_000, 28


def draw_diff(activity: StoredActivity, *, whole: bool = False) -> None:
    """The fields that it set, changed and removed; values at length only with ``whole``."""
    fields = diff(activity)
    if not fields:
        return
    if whole:
        out.print("\n[bold]fields[/]")
    if any(each.kind is FieldKind.UNKNOWN and each.after is not None for each in fields):
        unknown = "[dim]The table keeps no old rows in the WAL: what changed is not known. The row since:[/]"
        out.print(Padding(unknown, (0, 0, 0, 2)))
    grid = _grid(3)
    for field in fields:
        for number, value in enumerate(_values(field, whole=whole)):
            grid.add_row(
                _SIGNS[field.kind] if not number else "", f"[bold]{plain(field.name)}[/]" if not number else "", value
            )
    out.print(Padding(grid, (0, 0, 0, 2)))


def _values(field: FieldChange, *, whole: bool) -> Iterable[str]:
    before, after = (None if side is None else tell_value(side, whole=whole) for side in (field.before, field.after))
    match field.kind:
        case FieldKind.SET:
            yield f"[green]{after}[/]"
        case FieldKind.REMOVED:
            yield f"[red]{before}[/]"
        case FieldKind.CHANGED:
            if max(len(before or ""), len(after or "")) <= _SIDE_BY_SIDE:
                yield f"[red]{before}[/] [dim]→[/] [green]{after}[/]"
            else:
                yield f"[red]{before}[/]"
                yield f"[dim]→[/] [green]{after}[/]"
        case FieldKind.UNKNOWN:
            yield after if after is not None else "[dim]did not change; its value is not in what was recorded[/]"


def tell_value(value: msgspec.Raw, *, whole: bool = False) -> str:
    """A JSON value for people, as markup: text without its quotes, where it cannot be taken for something else."""
    text = bytes(value).decode()
    if text.startswith('"'):
        try:
            said = msgspec.json.decode(text, type=str)
        except msgspec.DecodeError:  # a lone surrogate: it stays as it is written
            said = ""
        if said and said == said.strip() and not _TAKEN_FOR_JSON.intersection((said[0], said)):
            text = said
    if not whole:
        text = text.replace("\n", "⏎")
    longest = _IN_FULL if whole else _BRIEFLY
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text):,} characters)"
    return plain(text)


# A text that begins or reads so keeps its quotes.
_TAKEN_FOR_JSON = frozenset({'"', "{", "[", "null", "true", "false"})


def _pretty(text: str) -> str:
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:
        return text


def _list(title: str, told: Told, beside: datetime) -> None:
    page = told.page
    if not page.items:
        return
    number = "the newest" if page.older else f"{len(page.items)}"
    out.print(f"\n[bold]{title}[/] [dim]({number})[/]")
    for each in page.items:
        at = each.occurred_at.astimezone(UTC)
        day = "" if at.date() == beside.astimezone(UTC).date() else f"{at:%Y-%m-%d} "
        who = f" [cyan]{plain(each.actor_id)}[/]" if each.actor_id else ""
        what = plain(each.summary or f"{each.action} {about(each)}")
        where = ", from the lake" if each.id in told.lake else ""
        out.print(f"  [dim]{day}{at:%H:%M:%S}.{at.microsecond // 1000:03}[/]{who} {what}\n    [dim]{each.id}{where}[/]")
