"""``afterwrite analytics``: reports over what happened, and the counting that they rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from afterwrite.cli.face import (
    FLAG,
    Json,
    StoreDsn,
    StoreOnly,
    counted,
    emit,
    fill,
    hang,
    out,
    plain,
    run,
    say,
    settings,
    table,
)
from afterwrite.cli.show import read_moment
from afterwrite.errors import ExitCode, UsageError
from afterwrite.lake.tiers import Left, read_left
from afterwrite.postgres import connect
from afterwrite.search.analytics import Bucket, Cell, Report, ReportName, report
from afterwrite.settings import Settings
from afterwrite.store.rollup import SESSION, rebuild, refresh_analytics, roll_up
from afterwrite.store.schema import require_store

EXAMPLES = "afterwrite analytics actors --after 2026-11-16T00:00:00Z  ·  afterwrite analytics week --json"
_NAMES = ", ".join(ReportName)


def analytics(
    name: Annotated[
        ReportName | None,
        typer.Argument(metavar="REPORT", help=f"One of {_NAMES}.", show_default=False, show_choices=False),
    ] = None,
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="TIME", help="From this hour on: 2026-11-16T08:00:00Z.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="TIME", help="Up to this hour, which is not part of it.")
    ] = None,
    bucket: Annotated[Bucket, typer.Option("--bucket", help="For activity and outcomes.")] = Bucket.HOUR,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many rows of a ranking.")] = 20,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.", show_default=False)] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", metavar=FLAG, help="First count what is stored, and refresh the views.")
    ] = False,
    rebuild_all: Annotated[
        bool, typer.Option("--rebuild", metavar=FLAG, help="First count every stored day anew, and refresh.")
    ] = False,
    json: Json = False,
) -> int:
    """Reports over what happened: rates, rankings, failed logins, the week before, unusual hours.

    Times are whole hours in UTC; without them a report is about the last day or week. A running `afterwrite capture`
    counts what is stored every few seconds. --refresh and --rebuild also stand alone.
    """
    if name is None and not refresh and not rebuild_all:
        raise UsageError("which report?", remedy=f"name one: {_NAMES}")
    since, until = (None if text is None else read_moment(text) for text in (after, before))
    given = settings(dsn, store_dsn)
    counting = run(_count(given, anew=rebuild_all)) if refresh or rebuild_all else None
    if counting and not json:
        say(counting["text"])
    if name is None:
        if json:
            emit({"schema_version": 1, **{key: value for key, value in (counting or {}).items() if key != "text"}})
        return ExitCode.OK
    found, left = run(_report(given, name, since, until, bucket, limit, tenant))
    if json:
        emit(_as_json(found) | {"in_lake": left})
    else:
        _show(found)
        if left is not None:
            days = f"{left.first}" if left.days == 1 else f"{left.first} to {left.last} ({counted(left.days, 'day')})"
            hang("[dim]note[/]", f"[dim]{days} left the store for the lake; they were counted before they left[/]")
    return ExitCode.OK


async def _count(given: Settings, *, anew: bool) -> dict[str, Any]:
    """Count what is stored (anew, where that is wanted), refresh the views, and say what was done."""
    async with connect(given.store, application_name="afterwrite rollup", options=SESSION) as store:
        await require_store(store)
        if anew:
            rebuilt = await rebuild(store)
            kept = f"; {counted(len(rebuilt.kept), 'day')} that retention took left as counted" if rebuilt.kept else ""
            text = f"counted {counted(rebuilt.days, 'day')} anew: {counted(rebuilt.rows, 'row')}{kept}"
            done: dict[str, Any] = {"days": rebuilt.days, "rows": rebuilt.rows, "kept": rebuilt.kept}
        else:
            rolled = await roll_up(store)
            text = f"counted {counted(rolled.rows, 'row')}"
            done = {"rows": rolled.rows}
        refreshed = await refresh_analytics(store)
    at, position = refreshed.refreshed_at, refreshed.position
    return {
        **done,
        "position": position,
        "refreshed_at": at,
        "text": f"{text}; views refreshed at {at.astimezone(UTC):%H:%M:%S} UTC, as of batch {position:,}",
    }


async def _report(
    given: Settings,
    name: ReportName,
    after: datetime | None,
    before: datetime | None,
    bucket: Bucket,
    limit: int,
    tenant: str | None,
) -> tuple[Report, Left | None]:
    async with connect(given.store, application_name="afterwrite analytics", guarded=True) as store:
        await require_store(store)
        found = await report(store, name, after=after, before=before, bucket=bucket, limit=limit, tenant=tenant)
        return found, await read_left(store, found.after, found.before)


_BAR = 24
_TITLES = {
    "at": "hour (UTC)",
    "failure_share": ">failed",
    "share": ">share",
    "week_before": ">week before",
    "change": ">change",
    "failures_before": ">failures before",
    "entity_type": "entity type",
    "entity_id": "entity",
}
_NUMBERS = frozenset({"activities", "failures", "success", "failure"})


def _show(found: Report) -> None:
    until = f"{found.before:%Y-%m-%d %H:%M} UTC"
    whose = f", tenant {found.tenant}" if found.tenant is not None else ""
    out.print(f"[bold]{found.name}[/] {found.after:%Y-%m-%d %H:%M} to {plain(until + whose)}")
    if found.rows and found.name is ReportName.UNUSUAL_HOURS:
        rows = (
            [f"{row['at']:%Y-%m-%d %H:%M}", row["kind"], row["name"], row["activities"], _before(row)]
            for row in found.records()
        )
        out.print(fill(table("hour (UTC)", "", "name", ">activities", "four weeks before"), rows))
    elif found.rows and not _is_still(found):
        series = found.name is ReportName.ACTIVITY
        made = table(*(_title(each, found.bucket) for each in found.columns), *([""] if series else []))
        most = max((row[1] for row in found.rows if isinstance(row[1], int)), default=0) if series else 0
        write = _writers(found)
        rows = (
            [*(write[name](cell) for name, cell in zip(found.columns, row, strict=True)), *_bar(row[1], most, series)]
            for row in found.rows
        )
        out.print(fill(made, rows))
    else:
        out.print(_EMPTY.get(found.name, "Nothing happened in that time."))
    for note in found.notes:
        hang("[yellow]note[/]", plain(note))
    if behind := found.as_of.behind_batches:
        waiting = f"{behind:,} {'batch is' if behind == 1 else 'batches are'}"
        hang("[yellow]note[/]", f"{waiting} stored and not counted yet [dim](--refresh counts them)[/]")


def _is_still(found: Report) -> bool:
    """Whether the week and the one before it have nothing to compare; its first row is all of them."""
    return found.name is ReportName.WEEK and not any(
        each["activities"] or each["week_before"] for each in found.records()
    )


def _before(row: Mapping[str, Cell]) -> str:
    return f"near that hour on {row['active_days']} of {row['known_days']} days"


_EMPTY = {
    ReportName.UNUSUAL_HOURS: "Nobody was active at an hour that is unusual for them.",
    ReportName.FAILED_LOGINS: "Nobody failed to sign in.",
}


def _title(column: str, bucket: Bucket) -> str:
    if column == "at" and bucket is Bucket.DAY:
        return "day (UTC)"
    return _TITLES.get(column, f">{column}" if column in _NUMBERS else column)


def _writers(found: Report) -> Mapping[str, Callable[[Cell], str]]:
    form = "%Y-%m-%d %H:%M" if found.bucket is Bucket.HOUR else "%Y-%m-%d"

    def write_moment(cell: Cell) -> str:
        return cell.strftime(form) if isinstance(cell, datetime) else ""

    def write_share(cell: Cell) -> str:
        return f"{cell:.1%}" if isinstance(cell, float) else ""

    def write_change(cell: Cell) -> str:
        return f"{cell:+.0%}" if isinstance(cell, float) else "new"

    def write(cell: Cell) -> str:
        return f"{cell:,}" if isinstance(cell, int) else "" if cell is None else str(cell)

    special = {"at": write_moment, "share": write_share, "failure_share": write_share, "change": write_change}
    return {name: special.get(name, write) for name in found.columns}


def _bar(cell: Cell, most: int, wanted: bool) -> list[str]:
    if not wanted:
        return []
    return ["█" * round(_BAR * cell / most) if most and isinstance(cell, int) else ""]


def _as_json(found: Report) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "report": found.name,
        "after": found.after,
        "before": found.before,
        "bucket": found.bucket,
        "tenant": found.tenant,
        "rows": found.records(),
        "at_most_more": found.at_most_more,
        "as_of": found.as_of,
        "notes": found.notes,
    }
