"""From a place in time on, into the past or the future, in stretches that grow: what is near is in few partitions.

::

    older ◀── all else ── 80 days ── 14 days ── 2 days ──┤ place ├── 2 days ── 14 days ── 80 days ── all else ──▶ newer

To plan a query over a year's partitions takes longer than to run it over the last two, and most that people look for
is near.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import msgspec

from afterwrite.errors import UsageError
from afterwrite.store.reader import ACTIVITY, StoredActivity

BEGINNING = datetime.min.replace(tzinfo=UTC)
END = datetime.max.replace(tzinfo=UTC)
FIRST_ID = "00000000-0000-0000-0000-000000000000"
LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"
TICK = timedelta(microseconds=1)
_GROWING = (timedelta(days=2), timedelta(days=14), timedelta(days=80))


class Place(msgspec.Struct, frozen=True):
    """Where an activity stands in the order of the store: by time, then by id."""

    occurred_at: datetime
    id: str


class Page(msgspec.Struct, frozen=True):
    """Some activities, newest first. ``older`` and ``newer`` are the places to go on from; None: nothing is there.

    ``looked`` is how far was looked, where the time was up before everything was: ``older`` (or ``newer``, where that
    was asked for) goes on from there.
    """

    items: tuple[StoredActivity, ...]
    older: Place | None
    newer: Place | None
    looked: datetime | None = None


class Window(msgspec.Struct, frozen=True):
    """The next so many behind a place, within [since, until): the older, or the newer."""

    since: datetime
    until: datetime
    at: datetime
    id: str
    count: int
    newer: bool

    def holds(self, activity: StoredActivity) -> bool:
        """Whether an activity is among those that it asks for."""
        place = (activity.occurred_at, activity.id)
        there = place > (self.at, self.id) if self.newer else place < (self.at, self.id)
        return there and self.since <= activity.occurred_at < self.until

    def nearest(self, found: list[StoredActivity]) -> list[StoredActivity]:
        """Of these, which are the newest first, no more than it asks for."""
        return found[-self.count :] if self.newer else found[: self.count]

    @property
    def words(self) -> dict[str, LiteralString]:
        """For a statement of sql/timeline.sql: on which side of the place, and in which order."""
        side: dict[str, LiteralString] = (
            {"beyond": ">", "order": "asc"} if self.newer else {"beyond": "<", "order": "desc"}
        )
        return {"activity": ACTIVITY, **side}

    @property
    def bounds(self) -> dict[str, object]:
        """For the same statement: its parameters."""
        return {"since": self.since, "until": self.until, "at": self.at, "id": self.id, "count": self.count}

    @property
    def one_sided(self) -> dict[str, object]:
        """The same where the place alone is the bound on its side: it is moved to the edge that lies nearer."""
        place = (self.at, self.id)
        edge = (later(self.since, -TICK), LAST_ID) if self.newer else (self.until, FIRST_ID)
        at, id = max(place, edge) if self.newer else min(place, edge)
        return self.bounds | {"at": at, "id": id}


Fetch = Callable[[Window], Awaitable[Sequence[StoredActivity]]]


def later(moment: datetime, by: timedelta) -> datetime:
    """The moment moved, as far as time goes."""
    try:
        return moment + by
    except OverflowError:
        return END if by > timedelta() else BEGINNING


def aware(moment: datetime) -> datetime:
    """The moment; raises UsageError for one that does not say in which zone it is."""
    if moment.tzinfo is None:
        raise UsageError(
            f"{moment.isoformat()} does not say in which time zone it is",
            remedy=f"give it with its offset from UTC, such as {moment.isoformat()}Z",
        )
    return moment


async def read_older(fetch: Fetch, place: Place, count: int, *, since: datetime = BEGINNING) -> list[StoredActivity]:
    """The next so many that are older than a place, newest first."""
    found: list[StoredActivity] = []
    for low, high in _back(place.occurred_at, since):
        window = Window(low, high, place.occurred_at, place.id, count - len(found), newer=False)
        found += await fetch(window)
        if len(found) >= count:
            break
    return found


async def read_newer(fetch: Fetch, place: Place, count: int, *, until: datetime = END) -> list[StoredActivity]:
    """The next so many that are newer than a place, oldest first."""
    found: list[StoredActivity] = []
    for low, high in _forth(place.occurred_at, until):
        window = Window(low, high, place.occurred_at, place.id, count - len(found), newer=True)
        found += reversed(await fetch(window))
        if len(found) >= count:
            break
    return found


async def read_page(
    fetch: Fetch,
    *,
    limit: int,
    older_than: Place | None,
    newer_than: Place | None,
    since: datetime = BEGINNING,
    until: datetime = END,
) -> Page:
    """A page of what lies in [since, until), from its newest on or behind a place. Raises UsageError for two places."""
    if older_than is not None and newer_than is not None:
        raise UsageError("a page cannot be older than one place and newer than another", remedy="give one of the two")
    if limit < 1:
        raise UsageError(f"a page of {limit} activities is none", remedy="ask for 1 or more")
    if newer_than is not None:
        found = await read_newer(fetch, newer_than, limit + 1, until=until)
        items = tuple(reversed(found[:limit]))
        return Page(items, older=place_of(items[-1]) if items else None, newer=_more(found, limit))
    found = await read_older(fetch, older_than or Place(later(until, -TICK), LAST_ID), limit + 1, since=since)
    items = tuple(found[:limit])
    return Page(items, older=_more(found, limit), newer=place_of(items[0]) if items and older_than else None)


def place_of(activity: StoredActivity) -> Place:
    """Where an activity stands."""
    return Place(activity.occurred_at, activity.id)


def _more(found: Sequence[StoredActivity], limit: int) -> Place | None:
    return place_of(found[limit - 1]) if len(found) > limit else None


def _back(at: datetime, since: datetime) -> Iterator[tuple[datetime, datetime]]:
    high = later(at, TICK)
    # What is stored ahead of today is little: it goes with the first stretch.
    low = min(high, datetime.now(UTC))
    for span in _GROWING:
        low = later(low, -span)
        yield max(low, since), high
        if low <= since:
            return
        high = low
    yield since, high


def _forth(at: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    low, high = at, at
    for span in _GROWING:
        high = later(high, span)
        # Ahead of now there is next to nothing.
        if high >= min(until, datetime.now(UTC)):
            break
        yield low, high
        low = high
    yield low, until
