"""``afterwrite history``: what happened to one thing, and how its row was at a moment."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.padding import Padding
from rich.table import Table

from afterwrite.cli.face import Json, StoreDsn, StoreOnly, counted, emit, hang, out, plain, run, say, settings
from afterwrite.cli.search import days_as_json, lake_as_json, tell_days, tell_lake
from afterwrite.cli.show import about, draw_diff, headline, read_moment, tell_value
from afterwrite.cli.tiers import engine_of, lake_of
from afterwrite.errors import ExitCode, UsageError
from afterwrite.lake import tiers
from afterwrite.lake.tiers import Tiers, ToldRow
from afterwrite.postgres import connect
from afterwrite.record import Kind, Operation
from afterwrite.search.diff import diff
from afterwrite.search.timeline import RowAt
from afterwrite.search.windows import Page, Place
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity, as_json

EXAMPLES = "afterwrite history users/42  ·  afterwrite history users/42 --at 2026-11-23T10:15:00+01:00"


def history(
    entity: Annotated[str, typer.Argument(metavar="TYPE/ID", help="Such as users/42, or billing.invoices/7.")],
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="How its row was then: ISO 8601 with the zone, or now."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="With --at: of which database, where several have such a row.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="How many, the newest.")] = 20,
    before: Annotated[
        str | None, typer.Option("--before", metavar="ID", help="Go on behind this activity.", show_default=False)
    ] = None,
    json: Json = False,
) -> int:
    """Show what happened to one thing, newest first, field by field; with --at, how its row was at that moment.

    What cannot be known of a row is said, and why. Times are UTC.
    """
    kind, _, number = entity.partition("/")
    if not kind or not number:
        raise UsageError(f"{entity!r} names no thing", remedy="give it as TYPE/ID, such as users/42")
    given = settings(dsn, store_dsn)
    if at is not None:
        moment = datetime.now(UTC) if at == "now" else read_moment(at)
        run(_row(given, kind, number, moment, source, json=json))
    else:
        run(_timeline(given, kind, number, count, before, json=json))
    return ExitCode.OK


async def _timeline(given: Settings, kind: str, number: str, count: int, before: str | None, *, json: bool) -> None:
    async with _opened(given) as both:
        place: Place | None = None
        if before is not None:
            last = (await both.read_activity(before)).activity
            if last is None:
                raise UsageError(f"no activity {before} is stored", remedy="give an id that history showed")
            place = Place(last.occurred_at, last.id)
        told = await both.entity_timeline(kind, number, limit=count, older_than=place)
        page = told.page
        now = (await both.row_at(kind, number, datetime.now(UTC))).row if place is None and page.items else None
    if json:
        answer = {"items": [as_json(each) | {"diff": diff(each)} for each in page.items], "older": page.older}
        emit(answer | ({} if given.lake_url is None and told.why is None else {"lake": lake_as_json(told)}))
        return
    _draw(page, f"{kind}/{number}", now)
    tell_lake(told)


@asynccontextmanager
async def _opened(given: Settings) -> AsyncGenerator[Tiers]:
    lake = None if given.lake_url is None else lake_of(given)
    async with (
        connect(given.store, application_name="afterwrite history", guarded=True) as store,
        tiers.both(store, lake, engine_of(given)) as both,
    ):
        yield both


def _draw(page: Page, name: str, now: RowAt | None) -> None:
    if not page.items:
        out.print(f"[dim]Nothing is recorded of[/] {plain(name)}[dim].[/]")
        return
    out.print(f"[bold]{plain(name)}[/] [dim]newest first, UTC[/]")
    if now is not None and now.exists is False and now.since is not None:
        what = now.since.operation.value if now.since.operation else now.since.action
        after = (
            f"it is {plain(about(now.since))} now" if now.since.operation is Operation.UPDATE else f"it went by {what}"
        )
        out.print(f"\n[red]There is no such row any more[/][dim]: {after}.[/]")
        if now.since.operation is Operation.TRUNCATE:
            out.print(f"  {headline(now.since)}\n  [dim]{now.since.id}[/]")
    for each in page.items:
        out.print()
        out.print(headline(each))
        if each.kind is Kind.EVENT and each.summary:
            out.print(Padding(plain(each.summary), (0, 0, 0, 2)))
        out.print(f"  [dim]{each.id}[/]")
        draw_diff(each)
    if page.older:
        out.print(f"\n[dim]There is more: --before {page.older.id}[/]")


async def _row(given: Settings, kind: str, number: str, moment: datetime, source: str | None, *, json: bool) -> None:
    async with _opened(given) as both:
        told = await both.row_at(kind, number, moment, source=source)
    row = told.row
    if json:
        emit(row_as_json(row) | ({} if given.lake_url is None else {"lake": _lake_of_row(told)}))
        return
    _draw_row(row, f"{kind}/{number}")
    if told.lake:
        named = counted(len(told.lake), "change")
        say(f"[dim]{named} of these from the lake, where {tell_days(told.days)} was asked.[/]")


def _lake_of_row(told: ToldRow) -> dict[str, object]:
    return {"items": sorted(told.lake), "asked": days_as_json(told.days), "why": told.why}


def row_as_json(row: RowAt) -> dict[str, object]:
    """The row at a moment as one JSON object."""

    def told(activity: StoredActivity | None) -> dict[str, object] | None:
        return None if activity is None else as_json(activity)

    values: dict[str, object] = msgspec.structs.asdict(row)
    values["since"], values["until"] = told(row.since), told(row.until)
    values["moves"] = [told(each) for each in row.moves]
    return values


def _draw_row(row: RowAt, name: str) -> None:
    at = f"{row.moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    match row.exists:
        case True:
            state = "[green]exists[/]"
        case False:
            state = "[red]does not exist[/]"
        case None:
            state = "[yellow]unknown[/]"
    other = f", as {plain(row.entity_type)}/{plain(row.entity_id)}" if row.moves else ""
    out.print(f"[bold]{plain(name)}[/] at {at}: {state}{other}")
    if row.values or row.unsure:
        out.print()
        if row.exists is None:
            out.print("  [dim]the nearest that is known:[/]")
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(2):
            grid.add_column(overflow="fold")
        for column in dict.fromkeys((*row.values, *row.unsure)):
            value = row.values.get(column)
            text = "" if value is None else tell_value(value, whole=True)
            if column in row.unsure:
                text = f"{text} [yellow]? {plain(row.unsure[column])}[/]".lstrip()
            elif value is not None and bytes(value) == b"null":
                text = "[dim]null[/]"
            grid.add_row(f"[bold]{plain(column)}[/]", text)
        out.print(Padding(grid, (0, 0, 0, 2)))
    out.print()
    for word, change in (("since", row.since), ("until", row.until)):
        if change is not None:
            out.print(f"  [dim]{word}[/]  {headline(change)}\n         [dim]{change.id}[/]")
    for move in reversed(row.moves):
        out.print(f"  [dim]then[/]   {headline(move)}\n         [dim]made it[/] {plain(about(move))} [dim]{move.id}[/]")
    for doubt in row.doubts:
        hang("  [yellow]![/]", plain(doubt))
