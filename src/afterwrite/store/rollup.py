"""Counting what happened, hour by hour, along the feed of batches: never in the writer's transaction.

::

    feed ──▶ roll_up: the next batches by hour and sort; the cursor moves in the same transaction
               ▼
             count_names: actors and entities of some hours, once they are over; what is late, as it comes
               ▼
             fold: of days past the busiest names     refresh: materialized views over all hours, now and again

Each step is one short transaction that locks the one row of ``afterwrite.rollup`` first: several workers follow each
other, and one that is killed anywhere has counted a stretch wholly or not at all. ``rebuild`` counts anew, day by day.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import msgspec

from afterwrite.errors import DatabaseError
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, statement
from afterwrite.store.partitions import read_partition_days

# A connection for counting. A commit that a crash takes back takes its cursor back with it: nothing has to be flushed.
SESSION = {
    "search_path": "pg_catalog",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60000",
    "synchronous_commit": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}
# So many rows are counted in one transaction (tenths of a second). Of each tenant so many actors and a tenth as many
# entities are kept of some hours, and so many of each of a day that is past.
MOST_ROWS = 50_000
MOST_NAMES = 1_000
# The materialized views are only a shortcut: what they lack is read from the tables.
_REFRESH_SECONDS = 3_600.0
_TRIES = 5


class RolledUp(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted: ``rows`` of batches up to ``position``, names of ``stretches`` of hours; ``folded`` went."""

    position: int
    rows: int = 0
    stretches: int = 0
    folded: int = 0


class Refreshed(msgspec.Struct, frozen=True):
    """When the materialized views were refreshed, and up to which position of the feed they count."""

    refreshed_at: datetime
    position: int


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far the feed is counted, and what waits: ``batches`` with ``rows``, stored ``since`` then.

    A long batch is counted ``in_part``. The materialized views are ``exact`` where they say all that the tables say.
    """

    position: int
    in_part: bool
    rolled_at: datetime
    batches: int
    rows: int
    since: datetime | None
    exact: bool
    refreshed_at: datetime | None

    def lag_seconds(self, now: datetime) -> float:
        """For how long the oldest batch has waited to be counted; 0 where none waits."""
        return max(0.0, (now - self.since).total_seconds()) if self.since else 0.0


async def read_standing(db: Database) -> Standing:
    """How far counting is behind the feed. Reads only."""
    return await db.one(Standing, statement("rollup.read_standing"))


async def roll_up(
    db: Database,
    *,
    most_rows: int = MOST_ROWS,
    most_names: int = MOST_NAMES,
    most_batches: int | None = None,
    over_by: datetime | None = None,
) -> RolledUp:
    """Count what the feed has that is not counted, in transactions of about ``most_rows``, until nothing is left.

    ``most_batches`` ends it when about so many are counted: then names wait, too. Hours that end by ``over_by`` get
    their names (None: those that are over by the clock, and by what capture has brought). Safe to break off, to
    repeat, and to run from several places.
    """
    rows = 0
    first: int | None = None
    while True:
        done = await _roll_stretch(db, most_rows, most_names)
        rows += done.rows
        first = done.from_position if first is None else first
        # A long batch is counted in parts, and stays where it is until the last one.
        if not done.rows and done.from_position == done.to_position:
            break
        if most_batches is not None and done.to_position - first >= most_batches:
            return RolledUp(position=done.to_position, rows=rows)
    stretches = folded = 0
    moment = over_by or await db.value(statement("rollup.read_over"))
    while moment and await _count_names(db, moment, most_names):
        stretches += 1
    if stretches or rows:
        # Yesterday may still get rows from who is a little late.
        folded = await _fold(db, datetime.now(UTC).date() - timedelta(days=1), most_names)
    return RolledUp(position=done.to_position, rows=rows, stretches=stretches, folded=folded)


class _Stretch(msgspec.Struct, frozen=True):
    from_position: int
    to_position: int
    rows: int


async def _roll_stretch(db: Database, most_rows: int, most_names: int) -> _Stretch:
    failpoint("rollup.before_stretch")
    async with db.transaction():
        done = await db.one(_Stretch, statement("rollup.roll_up"), most_rows=most_rows, most_names=most_names)
        failpoint("rollup.before_stretch_commit")
    failpoint("rollup.after_stretch")
    return done


async def _count_names(db: Database, over_by: datetime, most_names: int) -> bool:
    failpoint("rollup.before_names")
    async with db.transaction():
        since: datetime | None = await db.value(statement("rollup.count_names"), over_by=over_by, most_names=most_names)
        failpoint("rollup.before_names_commit")
    failpoint("rollup.after_names")
    return since is not None


async def _fold(db: Database, until: date, most_names: int) -> int:
    failpoint("rollup.before_fold")
    async with db.transaction():
        folded: int = await db.value(statement("rollup.fold"), until=until, most_names=most_names)
        failpoint("rollup.before_fold_commit")
    failpoint("rollup.after_fold")
    return folded


async def refresh_analytics(db: Database) -> Refreshed:
    """Refresh the materialized views beside their readers, and say when that was. Counting waits meanwhile."""
    failpoint("rollup.before_refresh")
    async with db.transaction():
        refreshed = await db.one(Refreshed, statement("rollup.refresh"))
        failpoint("rollup.before_refresh_commit")
    failpoint("rollup.after_refresh")
    return refreshed


def refresh_is_due(standing: Standing, now: datetime) -> bool:
    """Whether the materialized views lack something, and had an hour's rest."""
    if standing.exact:
        return False
    return standing.refreshed_at is None or (now - standing.refreshed_at).total_seconds() >= _REFRESH_SECONDS


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What ``rebuild`` counted anew: ``days`` with ``rows``; ``kept`` are days that only the rollups remember."""

    days: int
    rows: int
    kept: tuple[date, ...] = ()


async def rebuild(
    db: Database, *, most_names: int = MOST_NAMES, on_day: Callable[[date, int], None] | None = None
) -> Rebuilt:
    """Count every day anew that the store has, each in a transaction of its own: broken off, the days done are done.

    What retention has taken stays as it was counted: a day that has lost rows (``afterwrite.expired_day``) is left
    alone, and so is one of which the store has nothing.
    """
    await roll_up(db, most_names=most_names)
    days = await read_partition_days(db) | set(await db.values(statement("rollup.read_default_days")))
    rebuilt = rows = 0
    kept: list[date] = []
    for day in sorted(days):
        found = await _rebuild_day(db, day, most_names)
        if found is None:
            kept.append(day)
            continue
        rebuilt += bool(found)
        rows += found
        if on_day and found:
            on_day(day, found)
    return Rebuilt(days=rebuilt, rows=rows, kept=tuple(kept))


async def _rebuild_day(db: Database, day: date, most_names: int) -> int | None:
    """One snapshot for all of it: retention has taken a day's rows for every look, or for none."""
    for attempt in range(_TRIES):
        failpoint("rollup.before_rebuild")
        try:
            async with db.transaction():
                await db.run(b"set transaction isolation level repeatable read")
                # Locks, unlike queries, do not fix yet what is seen.
                await db.run(statement("rollup.lock_rollup"))
                await db.run(statement("rollup.lock_days"))
                rows: int | None = await db.value(statement("rollup.rebuild_day"), day=day, most_names=most_names)
                failpoint("rollup.before_rebuild_commit")
        except DatabaseError as error:
            # P0001: a long batch is counted in part.
            if error.sqlstate != "P0001" or attempt == _TRIES - 1:
                raise
            await roll_up(db, most_names=most_names)
        else:
            failpoint("rollup.after_rebuild")
            return rows
    raise AssertionError("the last try returns or raises")
