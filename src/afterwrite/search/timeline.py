"""What happened to one thing, by one person, in one transaction, because of one activity, around one moment.

Every page is newest first and goes on in both directions from a place (``find.Place``). The day of an activity is told
by its id, and everything here names the stretch of time that it looks at: only those partitions are opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from afterwrite.errors import UsageError
from afterwrite.postgres import Database, statement
from afterwrite.record import Kind
from afterwrite.search.find import read_thing
from afterwrite.search.row import RowAt, row_at
from afterwrite.search.windows import (
    BEGINNING,
    END,
    FIRST_ID,
    LAST_ID,
    TICK,
    Page,
    Place,
    Window,
    aware,
    later,
    place_of,
    read_page,
)
from afterwrite.store.reader import ACTIVITY, StoredActivity, stored_activity

__all__ = [
    "RowAt", "actor_timeline", "around", "effects", "entity_timeline", "read_activity", "read_cause", "row_at",
    "same_transaction",
]  # fmt: skip

# How far from the time in its id an event may be stored: an event of a transaction is of the time of its commit.
_NEAR = (
    (timedelta(seconds=2), timedelta(seconds=10)),
    (timedelta(minutes=10), timedelta(hours=1)),
    (timedelta(hours=1), timedelta(days=1)),
)
# Ids that begin with the same ten digits were made in the same 256 ms; the index of causes leaves such changes out.
_DIGITS, _AT_ONCE = 10, timedelta(milliseconds=256)
# Clocks differ, and a block is recorded when it ends: what it led to may be before it.
_BEFORE = timedelta(hours=1)
MOST_TRANSACTIONS, MOST_CAUSED, _MOST_MOVES = 200, 10_000, 1_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def read_activity(db: Database, id: str, *, occurred_at: datetime | None = None) -> StoredActivity | None:
    """The activity of this id, or None. Raises UsageError for what is no id.

    The id tells when it was: of a change to the millisecond, of an event within a day. One whose id says nothing of
    that kind, or whose ``occurred_at`` the application gave, is found where ``occurred_at`` is told here as well.
    """
    number = _uuid(id)
    moment = _moment_of(number)
    if occurred_at is not None:
        windows = [(occurred_at, occurred_at + TICK)]
    elif moment is None:
        return None
    elif number.version == 8:
        windows = [(moment, moment + timedelta(milliseconds=1))]
    else:
        windows = [(later(moment, -before), later(moment, after)) for before, after in _NEAR]
    for since, until in windows:
        found = await db.maybe(
            stored_activity,
            statement("timeline.read_by_id", activity=ACTIVITY),
            id=str(number),
            since=since,
            until=until,
        )
        if found is not None:
            return found
    return None


async def read_cause(db: Database, activity: StoredActivity) -> StoredActivity | None:
    """The activity that led to this one, where one is known and stored."""
    if activity.caused_by is None:
        return None
    # Most are events of the same transaction, which are stored at its time.
    found = await read_activity(db, activity.caused_by, occurred_at=activity.occurred_at)
    return found or await read_activity(db, activity.caused_by)


async def entity_timeline(
    db: Database,
    entity_type: str,
    entity_id: str,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
) -> Page:
    """What happened to one thing: its row's changes, also of its id into another, and the events about it.

    A TRUNCATE is about a table and on no row's timeline; ``row_at`` knows of it.
    """

    # Of these there is hardly ever any: they are read once, and each page takes its own.
    left = await db.rows(
        stored_activity,
        statement("timeline.read_gone", activity=ACTIVITY),
        entity_type=entity_type,
        entity_id=entity_id,
        source=None,
        relation=None,
        at=BEGINNING,
        id=FIRST_ID,
        until=END,
        truncates=False,
        limit=_MOST_MOVES,
    )

    async def fetch(window: Window) -> list[StoredActivity]:
        found = await read_thing(db, entity_type, entity_id, window)
        return window.nearest(sorted((*found, *filter(window.holds, left)), key=_order, reverse=True))

    return await read_page(fetch, limit=limit, older_than=older_than, newer_than=newer_than)


def _order(activity: StoredActivity) -> tuple[datetime, str]:
    return activity.occurred_at, activity.id


async def actor_timeline(
    db: Database,
    actor_id: str,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
) -> Page:
    """What somebody did. Days that are cold have no index for it and are read as they lie, the newest first."""

    async def fetch(window: Window) -> list[StoredActivity]:
        query = statement("timeline.read_actor", **window.words)
        return await db.rows(stored_activity, query, actor_id=actor_id, **window.bounds)

    return await read_page(fetch, limit=limit, older_than=older_than, newer_than=newer_than)


async def same_transaction(
    db: Database,
    activity: StoredActivity,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
) -> Page:
    """What else the transaction of this activity did; an empty page where it was in none.

    A transaction is one moment, that of its commit: all of it has the same ``occurred_at``, and its changes follow each
    other as they were written, the last one first.
    """
    if activity.commit_lsn is None:
        return Page((), None, None)

    async def fetch(window: Window) -> list[StoredActivity]:
        # One more than is asked for, since the activity itself is left out.
        found = await db.rows(
            stored_activity,
            statement("timeline.read_stretch", **window.words),
            source=activity.source,
            commit_lsn=str(activity.commit_lsn),
            **(window.bounds | {"count": window.count + 1}),
        )
        return window.nearest([each for each in found if each.id != activity.id])

    return await read_page(
        fetch,
        limit=limit,
        older_than=older_than,
        newer_than=newer_than,
        since=activity.occurred_at,
        until=activity.occurred_at + TICK,
    )


async def around(db: Database, moment: datetime, *, seconds: float = 30.0, limit: int = 50) -> Page:
    """What happened within so many seconds of a moment, the nearest on both sides.

    ``older`` and ``newer`` say that there is more within these seconds. Raises UsageError for a moment without a zone.
    """
    since, until = around_bounds(moment, seconds, limit)
    older, newer = await read_sides(db, moment, since, until, limit + 1)
    return balance(older, newer, limit)


def around_bounds(moment: datetime, seconds: float, limit: int) -> tuple[datetime, datetime]:
    """From when until when is within so many seconds of a moment; raises UsageError where nothing can be."""
    moment = aware(moment)
    if seconds < 0 or limit < 1:
        raise UsageError("around a moment there is nothing within less than no time", remedy="give 0 seconds or more")
    return later(moment, timedelta(seconds=-seconds)), later(moment, timedelta(seconds=seconds) + TICK)


async def read_sides(
    db: Database, moment: datetime, since: datetime, until: datetime, count: int
) -> tuple[list[StoredActivity], list[StoredActivity]]:
    """The nearest so many up to a moment and after it, within [since, until), both newest first."""

    async def fetch(*, newer: bool) -> list[StoredActivity]:
        window = Window(since, until, moment, LAST_ID, count, newer=newer)
        query = statement("timeline.read_stretch", **window.words)
        return await db.rows(stored_activity, query, source=None, commit_lsn=None, **window.bounds)

    return await fetch(newer=False), await fetch(newer=True)


def balance(older: Sequence[StoredActivity], newer: Sequence[StoredActivity], limit: int) -> Page:
    """A page of both sides of a moment: half of each, and of the one what the other has not."""
    down = min(len(older), max((limit + 1) // 2, limit - len(newer)))
    up = min(len(newer), limit - down)
    items = (*newer[len(newer) - up :], *older[:down])
    return Page(
        items,
        older=place_of(items[-1]) if items and down < len(older) else None,
        newer=place_of(items[0]) if items and up < len(newer) else None,
    )


async def effects(
    db: Database,
    activity: StoredActivity,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
    causes: Sequence[Cause] | None = None,
    besides: Iterable[str] = (),
) -> Page:
    """What this activity led to: what names it as its cause, at once or any time later.

    What deferred triggers wrote afterwards counts, too. They name the first change of the transaction that fired them,
    so it is found from each change of that transaction and from each event that explains it; of an event that explains
    many transactions, from the first 200. ``causes`` are its own, where ``find_causes`` was asked already; ``besides``
    are events that the store has no more, which explain what a transaction's changes do not.
    """
    since = led_since(activity)
    if causes is None:
        causes = await find_causes(db, activity)

    # Each cause names its own times; these are for the planner, which opens no other partitions then.
    first_time = min(min(each.since, each.commit_time or each.since) for each in causes)
    last_time = max(max(each.until, later(each.commit_time or each.until, TICK)) for each in causes)

    async def fetch(window: Window) -> list[StoredActivity]:
        return await db.rows(
            stored_activity,
            statement("timeline.read_effects", **window.words),
            first_time=first_time,
            last_time=last_time,
            first_ids=[each.first_id for each in causes],
            last_ids=[each.last_id for each in causes],
            from_times=[each.since for each in causes],
            to_times=[each.until for each in causes],
            commit_times=[each.commit_time for each in causes],
            besides=list(besides),
            **window.bounds,
        )

    return await read_page(fetch, limit=limit, older_than=older_than, newer_than=newer_than, since=since)


def led_since(activity: StoredActivity) -> datetime:
    """From when on something can be that this activity led to."""
    return later(min(activity.occurred_at, _moment_of(_uuid(activity.id)) or activity.occurred_at), -_BEFORE)


async def find_causes(db: Database, activity: StoredActivity) -> tuple[Cause, ...]:
    """What stands as their cause in what this activity led to: its own id, and those of the changes it explains."""
    if activity.kind is Kind.CHANGE:
        # Its own id is among those of its transaction's changes.
        return (transaction_cause(activity),)
    return (_cause(activity.id, activity.id), *await _read_transactions(db, activity, led_since(activity)))


async def find_events(db: Database, causes: Sequence[Cause]) -> frozenset[str]:
    """The events that the transactions of these causes wrote: what names one of them is not the transaction's."""
    times = [each for each in causes if each.commit_time is not None]
    found = await db.values(
        statement("timeline.read_effect_events"),
        first_ids=[each.first_id for each in times],
        last_ids=[each.last_id for each in times],
        commit_times=[each.commit_time for each in times],
    )
    return frozenset(found)


class Cause(msgspec.Struct, frozen=True):
    """A stretch of ids, and when changes were made whose ids begin as these do; ``commit_time`` of a transaction's."""

    first_id: str
    last_id: str
    since: datetime
    until: datetime
    commit_time: datetime | None


def _cause(first_id: str, last_id: str, commit_time: datetime | None = None) -> Cause:
    made = int(first_id.replace("-", "")[:_DIGITS], 16) << 4 * (12 - _DIGITS)
    begin = later(_EPOCH, timedelta(milliseconds=made))
    return Cause(first_id, last_id, begin, later(begin, _AT_ONCE), commit_time)


async def _read_transactions(db: Database, activity: StoredActivity, since: datetime) -> list[Cause]:
    """The changes of those transactions that may have set off deferred triggers."""
    cause = _cause(activity.id, activity.id)
    return await db.rows(
        _of_transaction,
        statement("timeline.read_effect_transactions"),
        id=activity.id,
        from_time=cause.since,
        to_time=cause.until,
        since=since,
        limit=MOST_CAUSED,
        transactions=MOST_TRANSACTIONS,
    )


def transaction_cause(change: StoredActivity) -> Cause:
    """The stretch of ids of the changes that a change's transaction made."""
    return _of_transaction(change.id[:28], change.occurred_at)


def _of_transaction(prefix: str, occurred_at: datetime) -> Cause:
    return _cause(f"{prefix}00000000", f"{prefix}ffffffff", occurred_at)


def _uuid(id: str) -> UUID:
    try:
        return UUID(id)
    except ValueError:
        raise UsageError(
            f"{id!r} is no id of an activity", remedy="give it as `afterwrite tail --json` shows it, a UUID"
        ) from None


def _moment_of(id: UUID) -> datetime | None:
    """The millisecond that a time-ordered id begins with."""
    if id.version not in (7, 8):
        return None
    return later(_EPOCH, timedelta(milliseconds=id.int >> 80))
