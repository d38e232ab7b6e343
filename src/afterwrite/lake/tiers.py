"""One question to both tiers: the store's days, and those that the lake alone has, in one order and with one cursor.

::

    hot page ─────────────┬──▶ how far it looked ──▶ the lake between the place and there ──▶ merged, cut to a page
    then the ledger ──────┘

The store is asked first and the ledger after it: a day that leaves in between is seen twice and told once.
Reports need no lake: what leaves the store was counted before (``store/rollup.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from uuid import UUID

import msgspec

from afterwrite.errors import AfterwriteError, Refused
from afterwrite.lake.compile import Asked
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.read import Between, Engine, Open
from afterwrite.lake.table import Lake
from afterwrite.postgres import Database, statement
from afterwrite.search import timeline
from afterwrite.search.diff import read_told
from afterwrite.search.find import find
from afterwrite.search.query import Exact, Key, Query, Term
from afterwrite.search.windows import Page, Place
from afterwrite.store.reader import StoredActivity


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A page of both tiers. ``lake`` are the ids of what came from there, of which ``days`` were asked.

    ``walled``: the reader sees one tenant alone in the store, so the lake, which knows no such walls, was not asked.
    """

    page: Page
    lake: frozenset[str] = frozenset()
    days: tuple[date, ...] = ()
    walled: bool = False


class _LeftDay(msgspec.Struct, frozen=True):
    day: date
    lake: str
    rows: int


Cold = Callable[[Engine, Sequence[date], Between, int, bool], list[StoredActivity]]


async def search(
    db: Database,
    lake: Lake,
    query: Query,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
    seconds: float = 1.0,
    engine: Open = DuckEngine,
) -> Told:
    """A page of what fits, as ``search.find`` gives it, and on into the lake where the store has no more."""
    hot = await find(db, query, limit=limit, older_than=older_than, newer_than=newer_than, seconds=seconds)

    def cold(opened: Engine, days: Sequence[date], between: Between, count: int, newer: bool) -> list[StoredActivity]:
        return opened.find(query, days, between, count, newer=newer)

    return await _both(db, lake, engine, hot, cold, limit=limit, older_than=older_than, newer_than=newer_than)


async def entity_timeline(
    db: Database,
    lake: Lake,
    entity_type: str,
    entity_id: str,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
    engine: Open = DuckEngine,
) -> Told:
    """What happened to one thing, as ``search.timeline`` gives it, in both tiers."""
    hot = await timeline.entity_timeline(
        db, entity_type, entity_id, limit=limit, older_than=older_than, newer_than=newer_than
    )
    asked = Asked(
        where="a.entity_type = $type and (a.entity_id = $id"
        " or (a.operation = 'update' and contains(a.metadata, 'entity_was')))",
        params={"type": entity_type, "id": entity_id},
        exact=False,
        equal={"entity_type": (entity_type,)},
    )

    def fits(activity: StoredActivity) -> bool:
        return activity.entity_id == entity_id or read_told(activity).entity_was == entity_id

    def cold(opened: Engine, days: Sequence[date], between: Between, count: int, newer: bool) -> list[StoredActivity]:
        return opened.ask(asked, fits, days, between, count, newer=newer)

    return await _both(db, lake, engine, hot, cold, limit=limit, older_than=older_than, newer_than=newer_than)


async def actor_timeline(
    db: Database,
    lake: Lake,
    actor_id: str,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
    engine: Open = DuckEngine,
) -> Told:
    """What somebody did, as ``search.timeline`` gives it, in both tiers."""
    hot = await timeline.actor_timeline(db, actor_id, limit=limit, older_than=older_than, newer_than=newer_than)
    query = Query((Term(Key.ACTOR, (Exact(actor_id),)),))

    def cold(opened: Engine, days: Sequence[date], between: Between, count: int, newer: bool) -> list[StoredActivity]:
        return opened.find(query, days, between, count, newer=newer)

    return await _both(db, lake, engine, hot, cold, limit=limit, older_than=older_than, newer_than=newer_than)


async def read_activity(db: Database, lake: Lake, id: str, *, engine: Open = DuckEngine) -> StoredActivity | None:
    """The activity of this id, wherever it is; None: in neither tier."""
    found = await timeline.read_activity(db, id)
    if found is not None:
        return found
    days = await left_days(db, lake)
    if not days or not await _sees_all(db):
        return None
    query = Query((Term(Key.ID, (Exact(str(UUID(id))),)),))

    def cold() -> list[StoredActivity]:
        with engine(lake) as opened:
            return opened.find(query, days, Between(), 1)

    rows = await asyncio.to_thread(cold)
    return rows[0] if rows else None


async def left_days(db: Database, lake: Lake) -> tuple[date, ...]:
    """The days of which the lake alone has something; the lake is opened where there are any.

    Raises Refused where that is another lake, or none at all.
    """
    left = await db.rows(_LeftDay, statement("lake.read_left_days"))
    if not left:
        return ()
    there = await asyncio.to_thread(lake.open)
    if not there or {each.lake for each in left} != {lake.identity}:
        raise Refused(
            f"{len(left)} days left the store for a lake, and "
            + (f"the one at {lake.url} is another" if there else f"there is none at {lake.url}"),
            remedy="set lake_url to where those days are",
        )
    return tuple(sorted({each.day for each in left}))


async def count_left_days(db: Database) -> int:
    """Of how many days a lake alone has something; 0 also where the store knows nothing of lakes, or does not say."""
    try:
        left = await db.rows(_LeftDay, statement("lake.read_left_days"))
    except AfterwriteError:
        return 0
    return len({each.day for each in left})


async def _sees_all(db: Database) -> bool:
    answer: bool = await db.value(statement("timeline.sees_all"))
    return answer


async def _both(
    db: Database,
    lake: Lake,
    engine: Open,
    hot: Page,
    cold: Cold,
    *,
    limit: int,
    older_than: Place | None,
    newer_than: Place | None,
) -> Told:
    """The hot page with what the lake has between its place and how far it looked."""
    newer = newer_than is not None
    if not await _sees_all(db):
        return Told(page=hot, walled=True)
    days = await left_days(db, lake)
    reached = hot.newer if newer else hot.older
    between = Between(newer_than, reached) if newer else Between(reached, older_than)
    wanted = [day for day in days if _lies(day, between)]
    if not wanted:
        return Told(page=hot)

    def asked() -> list[StoredActivity]:
        with engine(lake) as opened:
            return cold(opened, wanted, between, limit + 1, newer)

    rows = await asyncio.to_thread(asked)
    known = {(each.occurred_at, each.id) for each in hot.items}
    fresh = [each for each in rows if (each.occurred_at, each.id) not in known]
    merged = sorted((*hot.items, *fresh), key=_place, reverse=not newer)
    items = merged[:limit]
    cut = len(merged) > limit
    last = Place(items[-1].occurred_at, items[-1].id) if items else older_than or newer_than
    first = Place(items[0].occurred_at, items[0].id) if items else older_than or newer_than
    further = last if cut else reached
    looked = None if cut else hot.looked
    shown = {each.id for each in items}
    page = (
        Page(tuple(reversed(items)), older=first, newer=further, looked=looked)
        if newer
        else Page(tuple(items), older=further, newer=first if older_than else None, looked=looked)
    )
    return Told(page=page, lake=frozenset(each.id for each in fresh) & shown, days=tuple(wanted))


def _place(activity: StoredActivity) -> tuple[object, str]:
    return activity.occurred_at, activity.id


def _lies(day: date, between: Between) -> bool:
    low, high = between.low, between.high
    return (low is None or day >= low.occurred_at.date() - timedelta(days=1)) and (
        high is None or day <= high.occurred_at.date()
    )
