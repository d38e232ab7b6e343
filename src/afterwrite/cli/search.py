"""``afterwrite search``: what fits a line of the query language, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated
from uuid import UUID

import typer

from afterwrite.cli.face import Json, StoreDsn, StoreOnly, emit, fill, out, plain, run, say, settings, table
from afterwrite.cli.tiers import engine_of, lake_of
from afterwrite.errors import ExitCode, UsageError
from afterwrite.lake import tiers
from afterwrite.lake.tiers import Told
from afterwrite.postgres import connect
from afterwrite.record import Level, Outcome
from afterwrite.search.find import MOST
from afterwrite.search.query import Query, QueryError, parse
from afterwrite.search.windows import Page, Place
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity, as_json

EXAMPLES = (
    "afterwrite search 'actor:user:42 after:7d'   "
    "afterwrite search 'entity:project/7 changed:status'   "
    "afterwrite search 'category:financial outcome:failure \"gold token\"'"
)


def search(
    line: Annotated[
        str,
        typer.Argument(
            metavar="LINE",
            help="What to look for, in quotes for the shell; one that begins with a minus stands behind --.",
        ),
    ] = "",
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=MOST, help="How many at most.")] = 20,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="PLACE", help="Go on from here: what the page before it said.")
    ] = None,
    newer_than: Annotated[str | None, typer.Option("--newer-than", metavar="PLACE", help="Go back from here.")] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=600.0, help="How long to look where no index answers.")
    ] = 5.0,
    json: Json = False,
) -> int:
    """Search the activity: terms that all have to hold, such as actor:user:42, entity:project/7, after:7d, -action:user.*, "gold token".

    A value may end in a star, several stand behind a comma, a minus turns a term round. docs/search.md has all keys.
    """  # noqa: E501
    try:
        query = parse(line)
    except QueryError as error:
        say(f"  {plain(line)}")
        say(f"  {' ' * error.column}[red]{'^' * error.length}[/]")
        raise
    older, newer = (None if text is None else _read_place(text) for text in (older_than, newer_than))
    given = settings(dsn, store_dsn)
    told = run(_search(given, query, limit, older, newer, seconds))
    page = told.page
    if json:
        answer = {
            "items": [as_json(each) for each in page.items],
            "older": write_place(page.older),
            "newer": write_place(page.newer),
            "looked": page.looked,
        }
        emit(answer | ({} if given.lake_url is None and told.why is None else {"lake": lake_as_json(told)}))
    else:
        _show(page, back=newer is not None)
        tell_lake(told)
    return ExitCode.OK


async def _search(
    given: Settings, query: Query, limit: int, older: Place | None, newer: Place | None, seconds: float
) -> Told:
    lake = None if given.lake_url is None else lake_of(given)
    async with (
        connect(given.store, application_name="afterwrite search", guarded=True) as store,
        tiers.both(store, lake, engine_of(given)) as both,
    ):
        return await both.search(query, limit=limit, older_than=older, newer_than=newer, seconds=seconds)


def lake_as_json(told: Told) -> dict[str, object]:
    """Which of the items came from the lake, and which of its days were asked."""
    from_lake = [each.id for each in told.page.items if each.id in told.lake]
    return {"items": from_lake, "asked": days_as_json(told.days), "walled": told.walled, "why": told.why}


def days_as_json(days: Sequence[date]) -> dict[str, object] | None:
    """Days of the lake that were asked."""
    return {"first": days[0], "last": days[-1], "days": len(days)} if days else None


def tell_days(days: Sequence[date]) -> str:
    """The same in words."""
    return f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}"


def tell_lake(told: Told) -> None:
    """Say what came from the lake."""
    if told.walled:
        if told.why is not None:
            say("[dim]The lake was not asked: who sees one tenant alone in the store sees nothing of it.[/]")
    elif told.why is not None:
        say(f"[yellow]The lake was not asked:[/] {plain(told.why)}.")
    elif told.days and not told.page.items:
        say(f"[dim]The lake was asked, too: {tell_days(told.days)}.[/]")
    elif told.days:
        asked = tell_days(told.days)
        say(f"[dim]{len(told.lake)} of these {len(told.page.items)} from the lake, where {asked} was asked.[/]")


def write_place(place: Place | None) -> str | None:
    """A place as it is given to --older-than."""
    if place is None:
        return None
    return f"{place.occurred_at.astimezone(UTC).isoformat().replace('+00:00', 'Z')}/{place.id}"


def _read_place(text: str) -> Place:
    moment, _, id = text.partition("/")
    try:
        at = datetime.fromisoformat(moment)
        if at.tzinfo is None:
            raise ValueError
        return Place(at, str(UUID(id)))
    except ValueError:
        raise UsageError(f"{text!r} is no place", remedy="give what the last page said behind --older-than") from None


def _show(page: Page, *, back: bool) -> None:
    if page.items:
        made = table("when (UTC)", "who", "what")
        made.columns[0].no_wrap = True
        if out.is_terminal:  # a UUID would take two lines; where it is piped nothing is cut off
            made.columns[1].max_width = 22
            made.columns[1].no_wrap = True
            made.columns[1].overflow = "ellipsis"
        rows = [(f"{each.occurred_at:%Y-%m-%d %H:%M:%S}", each.actor_id, _what(each)) for each in page.items]
        out.print(fill(made, rows))
    elif page.looked is None:
        out.print("[dim]Nothing that is stored fits.[/]")
    place, option = (page.newer, "--newer-than") if back else (page.older, "--older-than")
    if page.looked is not None:
        until = "up to" if back else "back to"
        say(f"No index answers this: looked {until} {page.looked:%Y-%m-%d %H:%M:%S} UTC. --seconds gives it longer.")
    if place is not None:
        say("[dim]Go on with[/]")
        say(f"{option} {write_place(place)}")


def _what(activity: StoredActivity) -> str:
    said = activity.summary or " ".join(filter(None, (activity.action, activity.entity_type, activity.entity_id)))
    failed = "failed: " if activity.outcome is Outcome.FAILURE else ""
    grave = f"{activity.severity}: " if activity.severity in (Level.ERROR, Level.CRITICAL) else ""
    return f"{grave}{failed}{said}"
