"""One statement measured several ways by turns: with its triggers, without each, without all. Every run is undone.

::

    savepoint ─ switch triggers ─ EXPLAIN the statement ─ EXPLAIN it within a function ─ rows written ─ rollback

The first EXPLAIN gives the time of each trigger. The second gives the WAL: that of AFTER triggers is in no node of the
statement's own plan, and a function that runs the statement is one node (seen on 15 and 18).
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

import msgspec
from psycopg import sql

from afterwrite.errors import DatabaseError, Refused
from afterwrite.postgres import Database, identifier, statement
from afterwrite.scan.catalog import Enabled, Event, Table, Timing, Trigger, TriggerLevel
from afterwrite.scan.cost.figures import Spread, StatementCost, Unit

REFUSALS = (DatabaseError, Refused)
"""What a statement that the database does not take raises; a missing privilege is a Refused."""

ROUNDS = 3
_RUNS = 3
_WARM = 2
_WRITTEN = 2


class Switch(Enum):
    """How triggers are turned off for a run: each by name (needs the owner), all by a setting, or not at all."""

    ALTER = "alter"
    REPLICA = "replica"
    NONE = "none"


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that writes one row. ``before`` makes it possible: uncounted, without triggers where that may be."""

    table: Table
    event: Event
    query: sql.Composed
    manner: str = ""
    before: sql.Composed | None = None


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a deed: with these triggers off, or all of them; with the old row whole in the WAL, or not."""

    off: tuple[str, ...] = ()
    replica: bool = False
    whole_old_rows: bool = False


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one run took: in ms, and by trigger name its calls and ms."""

    ms: float
    triggers: Mapping[str, tuple[float, float]]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of WAL and rows of one run; ``images`` of whole pages are in the WAL once after each checkpoint."""

    wal: float
    images: int


class Taken(msgspec.Struct, kw_only=True):
    """All runs of a deed in one way."""

    samples: list[Sample] = []
    written: list[Written] = []
    rows: list[float] = []

    @property
    def wal(self) -> list[float]:
        """Of the runs with the fewest images of whole pages: what is written in the long time between checkpoints."""
        least = min((each.images for each in self.written), default=0)
        return [each.wal for each in self.written if each.images == least]


class _Undo(Exception):  # noqa: N818 - no error: it only ends the block
    pass


@asynccontextmanager
async def undone(db: Database) -> AsyncGenerator[None]:
    """A transaction (or a savepoint in one) that is rolled back at the end, whatever happens."""
    try:
        async with db.transaction():
            yield
            raise _Undo
    except _Undo:
        return


def fires(trigger: Trigger, event: Event) -> bool:
    """Whether a session of the ordinary kind may set it off so."""
    enabled = trigger.enabled in (Enabled.ORIGIN, Enabled.ALWAYS)
    return enabled and event in trigger.events and trigger.timing is not Timing.INSTEAD


async def explain(db: Database, query: sql.Composed) -> dict[str, Any]:
    """The plan of a statement that was run."""
    options = b"explain (analyze, buffers, wal, timing, format json) "
    found: list[dict[str, Any]] = await db.value(options + query.as_string().encode())
    return found[0]


def read_plan(plan: Mapping[str, Any]) -> Sample:
    """The times of a plan: of a partitioned table's triggers, the leaves' are added up."""
    found: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for each in plan.get("Triggers", ()):
        calls, ms = found[each["Trigger Name"]]
        found[each["Trigger Name"]] = (calls + each["Calls"], ms + each["Time"])
    return Sample(ms=plan["Execution Time"], triggers=dict(found))


class Bench:
    """Measures deeds on one connection, which is in a transaction that will be undone.

    ``temporary`` allows functions in pg_temp: without, the WAL is the cluster's while the statement ran, and other
    sessions' WAL is in it. ``deadline`` (time.monotonic) ends the repeating early; ``rounds`` is how often all ways are
    gone through.
    """

    def __init__(self, db: Database, *, switch: Switch, temporary: bool, deadline: float, rounds: int = ROUNDS) -> None:
        self.db = db
        self.switch = switch
        self.temporary = temporary
        self.deadline = deadline
        self.rounds = rounds

    async def try_out(self, deed: Deed) -> Sample:
        """Run it once as it is; raises DatabaseError when the database refuses, or when the time is up."""
        if time.monotonic() > self.deadline:
            raise DatabaseError("the time for measuring was up")
        async with undone(self.db):
            await self._prepare(deed)
            return read_plan(await explain(self.db, deed.query))

    async def measure(
        self,
        deed: Deed,
        triggers: Sequence[Trigger],
        *,
        staying: Sequence[Trigger] = (),
        whole_old_rows: bool = False,
        quiet: frozenset[str] = frozenset(),
    ) -> tuple[StatementCost, list[Unit]]:
        """What the deed costs, and what each of these triggers (all that may fire) does.

        ``staying`` are those that would be left when others move; ``whole_old_rows`` that moving them needs those.
        ``quiet`` are known (by identity) to write no table, so that nothing of what all write together is theirs.
        """
        every = Way()
        ways: list[Way] = [every]
        names = tuple(trigger.name for trigger in triggers)
        leaving = tuple(trigger.name for trigger in triggers if trigger not in staying)
        none = stays = None
        without: dict[str, Way] = {}
        if triggers and self.switch is Switch.ALTER:
            none = Way(off=names)
            stays = Way(off=leaving, whole_old_rows=whole_old_rows)
            without = {trigger.name: Way(off=(trigger.name,)) for trigger in triggers}
        elif triggers and self.switch is Switch.REPLICA:
            none = Way(replica=True)
        ways += [way for way in (none, stays) if way is not None and way not in ways]
        taken: defaultdict[Way, Taken] = defaultdict(Taken)
        if self.temporary:
            await self._define(deed)
        for number in range(self.rounds):
            for way in ways:
                if number and time.monotonic() > self.deadline:
                    break
                await self._run(deed, way, taken[way], runs=_RUNS)
        for number in range(max(1, self.rounds - 1)):
            for way in without.values():
                if way not in ways and not (number and time.monotonic() > self.deadline):
                    await self._run(deed, way, taken[way], runs=0)
        return _cost(deed, taken, every, none, stays), _units(deed, triggers, taken, every, none, without, quiet)

    async def _prepare(self, deed: Deed) -> None:
        """What a deed needs before it, once for several runs: a change of the role throws cached plans away."""
        if deed.before is None:
            return
        if self.switch is Switch.REPLICA:
            await self._replicate("replica")
        await self.db.run(deed.before)
        if self.switch is Switch.REPLICA:
            await self._replicate("origin")

    async def _replicate(self, role: str) -> None:
        await self.db.run(statement("cost.set_for_now"), name="session_replication_role", value=role)

    async def _run(self, deed: Deed, way: Way, taken: Taken, *, runs: int) -> None:
        """Some runs in one way; a way that the database refuses stays without figures."""
        try:
            async with undone(self.db):
                await self._prepare(deed)
                await self._turn(deed, way)
                for number in range((_WARM + runs) if runs else 0):
                    async with undone(self.db):
                        sample = read_plan(await explain(self.db, deed.query))
                    if number >= _WARM:
                        taken.samples.append(sample)
                rows = None if taken.rows else await self._rows_so_far()
                for _ in range(_WRITTEN):
                    async with undone(self.db):
                        taken.written.append(await self._written(deed))
                # What was undone is counted all the same.
                if rows is not None:
                    taken.rows.append((await self._rows_so_far() - rows) / _WRITTEN)
        except REFUSALS:
            if way == Way():
                raise

    async def _turn(self, deed: Deed, way: Way) -> None:
        table = identifier(deed.table.schema, deed.table.name)
        for name in way.off:
            await self.db.run(sql.SQL("alter table {} disable trigger {}").format(table, sql.Identifier(name)))
        if way.whole_old_rows:
            await self.db.run(sql.SQL("alter table {} replica identity full").format(table))
        if way.replica:
            await self._replicate("replica")

    async def _define(self, deed: Deed) -> None:
        body = sql.Literal(deed.query.as_string())
        query = sql.SQL("create or replace function pg_temp.afterwrite_probe() returns void language sql as {}")
        await self.db.run(query.format(body))
        # Default privileges may give a role no right to what it makes; as its owner it can give it to itself.
        await self.db.run(b"grant execute on function pg_temp.afterwrite_probe() to current_user")

    async def _written(self, deed: Deed) -> Written:
        """The WAL of one run."""
        if self.temporary:
            plan = await explain(self.db, sql.SQL("select pg_temp.afterwrite_probe()").format())
            wal, images = float(plan["Plan"]["WAL Bytes"]), int(plan["Plan"]["WAL FPI"])
        else:
            before: float = await self.db.value(statement("cost.read_wal_position"))
            await explain(self.db, deed.query)
            wal, images = float(await self.db.value(statement("cost.read_wal_position"))) - before, 0
        return Written(wal=wal, images=images)

    async def _rows_so_far(self) -> float:
        return float(await self.db.value(statement("cost.read_rows_written")))


# What the runs come to -----------------------------------------------------------------------------------------------


def _cost(deed: Deed, taken: Mapping[Way, Taken], every: Way, none: Way | None, stays: Way | None) -> StatementCost:
    spread = _spread(taken, every)
    assert spread is not None  # a deed that cannot be run with its triggers on is refused before
    return StatementCost(
        table=deed.table.full_name,
        event=deed.event,
        manner=deed.manner,
        us=spread,
        bare_us=_spread(taken, none),
        stays_us=_spread(taken, stays),
        wal=_middle(taken, every, "wal"),
        bare_wal=_middle(taken, none, "wal"),
        stays_wal=_middle(taken, stays, "wal"),
        rows=_middle(taken, every, "rows"),
    )


def _spread(taken: Mapping[Way, Taken], way: Way | None) -> Spread | None:
    found = [sample.ms * 1000 for sample in taken[way].samples] if way is not None and way in taken else []
    return Spread.of(found) if found else None


def _middle(taken: Mapping[Way, Taken], way: Way | None, what: str) -> float | None:
    found: list[float] = getattr(taken[way], what) if way is not None and way in taken else []
    return statistics.median(found) if found else None


def _units(
    deed: Deed,
    triggers: Sequence[Trigger],
    taken: Mapping[Way, Taken],
    every: Way,
    none: Way | None,
    without: Mapping[str, Way],
    quiet: frozenset[str],
) -> list[Unit]:
    samples = taken[every].samples
    times = {trigger.name: [each.triggers.get(trigger.name, (0.0, 0.0)) for each in samples] for trigger in triggers}
    fired = {name: found for name, found in times.items() if any(calls for calls, _ in found)}
    middles = {name: statistics.median(ms for _, ms in found) for name, found in fired.items()}
    # A trigger that fires also in the replica role was not turned off by it: nothing is known of its part.
    always = {trigger.name for trigger in triggers if trigger.enabled is Enabled.ALWAYS}
    writers = {trigger.name for trigger in triggers if trigger.identity not in quiet and trigger.name not in always}
    parted = sum(ms for name, ms in middles.items() if name in writers)
    alone = len(fired.keys() & writers) <= 1
    made: list[Unit] = []
    for trigger in triggers:
        if trigger.name not in fired:
            continue
        found = fired[trigger.name]
        other = without.get(trigger.name)
        part = 1.0
        shared_out = False
        if other is None and none is not None:  # only all of them together could be turned off
            other, shared_out = (None, False) if trigger.name in always else (none, not alone)
            part = middles[trigger.name] / (parted or 1.0) if trigger.name in writers else 0.0
        wal = _less(_middle(taken, every, "wal"), _middle(taken, other, "wal"))
        rows = _less(_middle(taken, every, "rows"), _middle(taken, other, "rows"))
        made.append(
            Unit(
                trigger=trigger.identity,
                event=deed.event,
                calls=statistics.fmean(calls for calls, _ in found),
                us=Spread.of(ms * 1000 / calls for calls, ms in found if calls),
                wal=None if wal is None else wal * part,
                rows=None if rows is None else rows * part,
                shared_out=shared_out,
                statement=trigger.level is TriggerLevel.STATEMENT,
            )
        )
    return made


def _less(all_on: float | None, off: float | None) -> float | None:
    return None if all_on is None or off is None else max(0.0, all_on - off)
