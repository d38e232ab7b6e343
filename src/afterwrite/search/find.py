"""Pages of what fits a query, newest first: the days are walked one after the other, and never more than is needed.

::

    a stretch of days ─┬─ along an index that has the order       an entity; an actor or a tenant of hot days
                       ├─ gathered by the indexes over words      rare words, actions, facts of hot days
                       └─ walked along the primary key            frequent things, cold days: so many rows at a time

What is frequent is found in the first rows that are walked. What is not is gathered by an index, where a hot day has
one that answers. What is left is walked until the time is up: then the page says how far it looked.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import sql
from psycopg.pq import TransactionStatus

from afterwrite.errors import ConnectionLost, UsageError
from afterwrite.postgres import Database, statement
from afterwrite.search.compile import Compiled, compile_query
from afterwrite.search.query import Exact, Key, Query, Term, Thing
from afterwrite.search.windows import BEGINNING, END, FIRST_ID, LAST_ID, TICK, Page, Place, Window, read_page
from afterwrite.store.partitions import partition_day
from afterwrite.store.reader import ACTIVITY, StoredActivity, stored_activity

MOST = 1_000
"""So many activities are on a page at most."""

# How many rows are walked in one statement: at first, and at most once it turned out to be quick.
_FIRST_ROWS, _MOST_ROWS = 200, 100_000
_QUICK_SECONDS, _SLOW_SECONDS = 0.01, 0.04
# More rows than this are not gathered to find the newest of them: among so many the next ones are near.
_MOST_GATHERED = 20_000
_MOST_DAYS = 32
# So many rows of a day are looked through sooner than the index over words is asked to shorten them.
_FEW = 300
# What days there are is asked this seldom. What is not known yet is looked at all the same: days are only a guess at
# how much there is to look at.
_KNOWN_SECONDS = 10.0


async def find(
    db: Database,
    query: Query,
    *,
    limit: int = 50,
    older_than: Place | None = None,
    newer_than: Place | None = None,
    seconds: float = 1.0,
) -> Page:
    """A page of what fits: from the newest on, or next to a place. Raises UsageError for two places, or a page of none.

    Where no index answers, rows are walked for so many ``seconds``; ``Page.looked`` then says how far. The page is
    consistent: one snapshot, where the transaction that ``db`` is in has one, and else each stretch as it is.
    """
    if older_than is not None and newer_than is not None:
        raise UsageError("a page cannot be older than one place and newer than another", remedy="give one of the two")
    if not 1 <= limit <= MOST:
        raise UsageError(f"a page of {limit} activities cannot be had", remedy=f"ask for 1 to {MOST:,}")
    if (thing := _only_thing(query)) is not None:
        since, until = query.since or BEGINNING, query.until or END
        fetch = partial(read_thing, db, *thing)
        return await read_page(
            fetch, limit=limit, older_than=older_than, newer_than=newer_than, since=since, until=until
        )
    deadline = time.monotonic() + seconds
    async with _planned(db) as plans:
        days = await _read_days(db)
        search = _Search(db, query, days, newer=newer_than is not None, wanted=limit + 1, walled=plans.walled)
        looked = await search.run(older_than or newer_than, deadline)
        await search.leave()
    found = search.found[:limit]
    more = len(search.found) > limit
    at = Place(found[-1].occurred_at, found[-1].id) if found else older_than or newer_than
    further = at if more else looked
    back = Place(found[0].occurred_at, found[0].id) if found else older_than or newer_than
    told = None if looked is None or more else looked.occurred_at
    if newer_than is not None:
        return Page(tuple(reversed(found)), older=back, newer=further, looked=told)
    return Page(tuple(found), older=further, newer=back if older_than else None, looked=told)


async def read_thing(db: Database, entity_type: str, entity_id: str, window: Window) -> list[StoredActivity]:
    """The next activities of one thing, newest first, by a function of the store: a session plans it once."""
    return await db.rows(
        stored_activity,
        statement("search.read_thing", activity=ACTIVITY),
        entity_type=entity_type,
        entity_id=entity_id,
        newer=window.newer,
        **window.one_sided,
    )


def _only_thing(query: Query) -> tuple[str, str] | None:
    """The type and the id, where a query asks for one thing and, but for its time, nothing else."""
    match _but_time(query):
        case [Term(key=Key.ENTITY, negated=False, values=(Thing(type=kind, id=str(number), prefix=False),))]:
            return kind, number
        case _:
            return None


def _but_time(query: Query) -> list[Term]:
    return [term for term in query.terms if term.key not in (Key.AFTER, Key.BEFORE)]


class Day(msgspec.Struct, frozen=True):
    """A partition: about so many rows; ``hot`` where it carries the indexes for searching. None: the default one."""

    since: datetime | None
    rows: int
    hot: bool


class _Plans(msgspec.Struct, frozen=True):
    walled: bool
    set: bool


class _Stretch(msgspec.Struct, frozen=True):
    """The days that one statement is about: [since, until), about so many rows, all of them hot."""

    since: datetime
    until: datetime
    rows: int
    hot: bool


@asynccontextmanager
async def _planned(db: Database) -> AsyncGenerator[_Plans]:
    """A transaction whose plans are those that we mean; a caller's own keeps them until it ends."""
    if db.connection.info.transaction_status is not TransactionStatus.IDLE:
        yield await db.one(_Plans, statement("search.plan_simply"))
        return
    plans = await db.at_once(_Plans, b"begin", statement("search.plan_simply"))
    assert plans is not None
    try:
        yield plans
    except BaseException:
        if db.connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            with suppress(ConnectionLost):
                await db.run(b"rollback")
        raise
    await db.run(b"commit")


_known_days: dict[str, tuple[float, list[Day]]] = {}


async def _read_days(db: Database) -> list[Day]:
    """The partitions, as they are or were a few seconds ago."""
    read_at, days = _known_days.get(db.where, (-_KNOWN_SECONDS, []))
    if time.monotonic() - read_at > _KNOWN_SECONDS:
        days = await db.rows(_day, statement("search.read_days"))
        _known_days[db.where] = time.monotonic(), days
    return days


def _day(*, name: str, rows: int, hot: bool) -> Day:
    return Day(_since(name), rows, hot)


_COLUMNS: LiteralString = (
    "select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, {activity}"
)
_STRETCH: LiteralString = (
    "a.occurred_at >= %(since)s and a.occurred_at < %(until)s and (a.occurred_at, a.id) {beyond} (%(at)s, %(id)s::uuid)"
)
# The order and the limit on the inside: the plan goes along an index that has the order, and stops.
_IN_ORDER: LiteralString = (
    "{columns} from (select a.* from afterwrite.activity a where {stretch} and ({where})"
    " order by a.occurred_at {order}, a.id {order} limit %(wanted)s) a order by a.occurred_at {order}, a.id {order}"
)
# The other way round: whatever an index gathers, in order, and of that the first that fits. What is left to be asked
# stands outside: it is asked of no more rows than it takes, and no index is looked for that answers it as well.
_GATHERED: LiteralString = (
    "{columns} from (select a.* from (select a.* from afterwrite.activity a where {stretch} and ({narrow})"
    " order by a.occurred_at {order}, a.id {order} offset 0) a"
    " where {rest} order by a.occurred_at {order}, a.id {order} limit %(wanted)s) a"
    " order by a.occurred_at {order}, a.id {order}"
)
_CUT: LiteralString = (
    "select a.occurred_at, a.id::text as id from afterwrite.activity a where {stretch}"
    " order by a.occurred_at {order}, a.id {order} offset %(rows)s limit 1"
)
_COUNT: LiteralString = (
    "select count(*) from (select from afterwrite.activity a where {stretch} and {column} limit %(most)s) few"
)
_NOT_BEYOND: LiteralString = "(a.occurred_at, a.id) {within} (%(cut_at)s, %(cut_id)s::uuid) and ({where})"


class _Search:
    """One search in one direction: what was found so far, and how much was looked at for it."""

    def __init__(
        self, db: Database, query: Query, days: Sequence[Day], *, newer: bool, wanted: int, walled: bool
    ) -> None:
        self.found: list[StoredActivity] = []
        self._db = db
        self._query = query
        self._known = days
        self._walled = walled
        # Rows of the default partition can be of any day.
        self._anywhere = sum(day.rows for day in days if day.since is None)
        self._compiled: Compiled = compile_query(query)
        self._newer = newer
        self._wanted = wanted
        self._rows = _FIRST_ROWS
        self._walked = self._fitting = 0
        self._gathering = False
        self._few: bool | None = None
        # SQL words of the direction.
        self._words = {
            "columns": sql.SQL(_COLUMNS).format(activity=sql.SQL(ACTIVITY)),
            "stretch": sql.SQL(_STRETCH).format(beyond=sql.SQL(">" if newer else "<")),
            "order": sql.SQL("asc" if newer else "desc"),
            "within": sql.SQL("<=" if newer else ">="),
        }
        about = _but_time(query)
        self._everything = not about
        self._one_term = len([term for term in about if not term.negated]) == 1

    async def run(self, place: Place | None, deadline: float) -> Place | None:
        """Look until enough is found or nothing is left: None; else where the time was up."""
        at = place or (Place(BEGINNING, FIRST_ID) if self._newer else Place(END, LAST_ID))
        since, until = self._query.since or BEGINNING, self._query.until or END
        if await self._by_id(since, until, at):
            return None
        remaining = list(self._days(since, until, at))
        # With the first day of which there is something also those that seem empty.
        many = 1 + next((number for number, day in enumerate(remaining) if day.rows > 0), 0)
        if remaining and not self._everything:
            remaining = await self._peek(remaining, at)
        all_days = len(remaining)
        while remaining and len(self.found) < self._wanted:
            hot = remaining[0].hot
            cut: Place | None = None
            in_order = self._everything or self._compiled.in_order_anywhere
            if in_order or (self._compiled.in_order and hot and self._one_term):
                stretch, remaining = self._joined(remaining, many)
                await self._in_order(stretch, at)
            elif self._compiled.narrow is not None and hot and not self._walled and self._is_rare(remaining[0]):
                stretch, remaining = self._joined(remaining, many)
                await self._gather(stretch, at)
            else:
                stretch, remaining = self._joined(remaining, _MOST_DAYS, most_rows=self._rows)
                cut = await self._walk(stretch, at)
                if cut is not None:
                    at, remaining = cut, [stretch, *remaining]
                many = 0
            if remaining and len(self.found) < self._wanted and time.monotonic() > deadline:
                return cut or self._edge(stretch)
            many = min(_MOST_DAYS, max(1, many * 6))
            if self.found:
                # By what was found so far, these days hold twice what is missing.
                share = (self._wanted - len(self.found)) / len(self.found)
                many = min(many, 1 + int(2 * share * (all_days - len(remaining))))
        return None

    async def leave(self) -> None:
        """Leave a caller's transaction able to read along indexes."""
        await self._plan(gathering=False)

    async def _peek(self, stretches: list[_Stretch], at: Place) -> list[_Stretch]:
        """Look at the days that seem empty, as those made ahead; what is left to be looked at.

        To plan the whole query for each of them takes longer than to read what came in the last few seconds.
        """
        if stretches[0].rows > 0:
            return stretches
        stretch, rest = self._joined(stretches, len(stretches), most_rows=0)
        query = sql.SQL(_IN_ORDER).format(where=sql.SQL("true"), **self._words)
        rows = await self._ask(query, stretch, at)
        if len(rows) >= self._wanted:
            return stretches
        self.found += [row for row in rows if self._query.matches(row)]
        return rest

    def _edge(self, stretch: _Stretch) -> Place:
        """Where everything of a stretch has been looked at."""
        if self._newer:
            return Place(stretch.until - TICK, LAST_ID)
        return Place(stretch.since, FIRST_ID)

    def _is_rare(self, stretch: _Stretch) -> bool:
        """Whether to gather what fits of a day is less work than to walk to as many as are wanted, as far as known."""
        if not self._walked:
            return False
        share = (self._fitting + 1) / self._walked
        gathered = share * stretch.rows
        return gathered <= _MOST_GATHERED and gathered < (self._wanted - len(self.found)) / share

    def _days(self, since: datetime, until: datetime, at: Place) -> Iterator[_Stretch]:
        """The days that are to be looked at, in the direction, each as a stretch; they cover all time between them."""
        own = sorted((day for day in self._known if day.since is not None), key=lambda day: day.since or BEGINNING)
        starts = [day.since or BEGINNING for day in own]
        edges = [BEGINNING, *starts[1:], END] if own else [BEGINNING, END]
        stretches = [
            _Stretch(
                since=max(low, since),
                until=min(high, until),
                rows=own[place].rows if own else self._anywhere,
                hot=own[place].hot if own else True,
            )
            for place, (low, high) in enumerate(pairwise(edges))
        ]
        beyond = [each for each in stretches if each.since < each.until and self._is_beyond(each, at)]
        return iter(beyond) if self._newer else reversed(beyond)

    def _is_beyond(self, stretch: _Stretch, at: Place) -> bool:
        """Whether something of the stretch can lie beyond the place."""
        if self._newer:
            return (stretch.until - TICK, LAST_ID) > (at.occurred_at, at.id)
        return (stretch.since, FIRST_ID) < (at.occurred_at, at.id)

    async def _by_id(self, since: datetime, until: datetime, at: Place) -> bool:
        """Look where an id says that it was; whether that was all."""
        ids = [term.values for term in self._query.terms if term.key is Key.ID and not term.negated]
        if not ids or len(ids[0]) != 1 or not isinstance(ids[0][0], Exact):
            return False
        number = UUID(ids[0][0].text)
        if number.version not in (7, 8):
            return False
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=number.int >> 80)
        # An event of a transaction is stored with the time of the commit, which may come later.
        near = _Stretch(max(since, moment - timedelta(hours=1)), min(until, moment + timedelta(days=1)), 0, hot=False)
        await self._in_order(near, at)
        return bool(self.found)

    def _joined(
        self, stretches: Sequence[_Stretch], many: int, *, most_rows: int | None = None
    ) -> tuple[_Stretch, list[_Stretch]]:
        """The next few days that are alike as one stretch, and the rest."""
        count, rows = 1, stretches[0].rows
        while count < min(many, len(stretches)) and stretches[count].hot is stretches[0].hot:
            rows += stretches[count].rows
            if most_rows is not None and rows > most_rows:
                rows -= stretches[count].rows
                break
            count += 1
        first, last = stretches[0], stretches[count - 1]
        low, high = (first, last) if self._newer else (last, first)
        return _Stretch(low.since, high.until, rows, first.hot), list(stretches[count:])

    async def _in_order(self, stretch: _Stretch, at: Place) -> None:
        await self._plan(gathering=False)
        query = sql.SQL(_IN_ORDER).format(where=self._compiled.where, **self._words)
        self.found += await self._ask(query, stretch, at)

    async def _gather(self, stretch: _Stretch, at: Place) -> None:
        narrow, rest = self._compiled.narrow, self._compiled.rest
        assert narrow is not None
        if self._compiled.column is not None:
            if self._few is None:
                self._few = await self._are_few(stretch, at, self._compiled.column)
            if self._few:
                # The index over words has nothing to add, and would take longer to plan.
                narrow, rest = self._compiled.column, self._compiled.where
        await self._plan(gathering=True)
        query = sql.SQL(_GATHERED).format(narrow=narrow, rest=rest, **self._words)
        self.found += await self._ask(query, stretch, at)

    async def _are_few(self, stretch: _Stretch, at: Place, column: sql.Composable) -> bool:
        """Whether an actor, a tenant or a thing has little to be looked through."""
        query = sql.SQL(_COUNT).format(column=column, **self._words)
        words = {**self._compiled.params, **self._bounds(stretch, at), "most": _FEW}
        return int(await self._db.value(query, **words)) < _FEW

    async def _plan(self, *, gathering: bool) -> None:
        """Let rows be read along an index, or only gathered by one: else the order would tempt to read all of a day."""
        if gathering is not self._gathering:
            await self._db.values(statement("search.plan_by_bitmap"), indexscan="off" if gathering else "on")
            self._gathering = gathering

    async def _walk(self, stretch: _Stretch, at: Place) -> Place | None:
        """Look at the next rows of a stretch; the last of them, or None where that was all of the stretch."""
        await self._plan(gathering=False)
        began = time.monotonic()
        where, extra = self._compiled.where, {}
        cut: Place | None = None
        if stretch.rows + self._anywhere > self._rows:
            asked = sql.SQL(_CUT).format(**self._words)
            cut = await self._db.maybe(Place, asked, **self._bounds(stretch, at), rows=self._rows - 1)
        if cut is not None:
            where = sql.SQL(_NOT_BEYOND).format(where=where, **self._words)
            extra = {"cut_at": cut.occurred_at, "cut_id": cut.id}
        query = sql.SQL(_IN_ORDER).format(where=where, **self._words)
        found = await self._ask(query, stretch, at, **extra)
        self.found += found
        self._walked += self._rows if cut is not None else min(stretch.rows, self._rows) + 1
        self._fitting += len(found)
        took = time.monotonic() - began
        if took < _QUICK_SECONDS:
            self._rows = min(_MOST_ROWS, self._rows * 2)
        elif took > _SLOW_SECONDS:
            self._rows = max(_FIRST_ROWS, self._rows // 2)
        return cut

    async def _ask(self, query: sql.Composed, stretch: _Stretch, at: Place, **extra: object) -> list[StoredActivity]:
        wanted = self._wanted - len(self.found)
        return await self._db.rows(
            stored_activity, query, **self._compiled.params, **self._bounds(stretch, at), wanted=wanted, **extra
        )

    def _bounds(self, stretch: _Stretch, at: Place) -> dict[str, object]:
        return {"since": stretch.since, "until": stretch.until, "at": at.occurred_at, "id": at.id}


def _since(name: str) -> datetime | None:
    day = partition_day(name)
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)
