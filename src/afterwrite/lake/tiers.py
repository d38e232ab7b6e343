"""One question to both tiers: the store's days, and those that the lake alone has, in one order and with one cursor.

::

    hot page ─────────────┬──▶ how far it looked ──▶ the lake between the place and there ──▶ merged, cut to a page
    then the ledger ──────┘

The store is asked first and the ledger after it: a day that leaves in between is seen twice and told once. The store's
connection is given back before the lake is asked, which may take a hundred times as long. Reports need no lake: what
leaves the store was counted before (``store/rollup.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Protocol, TypeVar
from uuid import UUID

import msgspec
from psycopg.pq import TransactionStatus

from afterwrite.errors import AfterwriteError, Refused
from afterwrite.lake.compile import Asked
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.read import Between, Engine, Fits, Open, TimeUpError
from afterwrite.lake.rows import microseconds
from afterwrite.lake.table import Lake, need_version
from afterwrite.postgres import Database, statement
from afterwrite.record import Kind, Lsn, Operation
from afterwrite.search import timeline
from afterwrite.search.diff import read_told
from afterwrite.search.find import find
from afterwrite.search.query import Exact, Key, Query, Term
from afterwrite.search.row import Bracket, Changes, Gap, Reach, RowAt, Whose, row_at
from afterwrite.search.timeline import Cause
from afterwrite.search.windows import BEGINNING, END, FIRST_ID, LAST_ID, TICK, Page, Place, Window, later
from afterwrite.store.reader import StoredActivity

T = TypeVar("T")

_MOST_NAMESAKES = 50
_WALL = "older days may be in a lake, of which who sees one tenant alone is shown nothing"
_SLOW = "the lake was not looked through before the time was up: ask for a shorter time, or for one actor or entity"


class LakeAwayError(AfterwriteError):
    """The lake was not asked. The text says why, in words that may leave the house."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A page of both tiers. ``lake`` are the ids of what came from there, of which ``days`` were asked.

    ``why``: why the lake was not asked although something of it may belong here. ``walled``: because the reader sees
    one tenant alone in the store, and the lake knows no such walls. ``lake_looked``: ``page.looked`` is how far the
    lake was looked through before the time was up.
    """

    page: Page
    lake: frozenset[str] = frozenset()
    days: tuple[date, ...] = ()
    walled: bool = False
    why: str | None = None
    lake_looked: bool = False


class ToldActivity(msgspec.Struct, frozen=True, kw_only=True):
    """One activity, or none, and whether it came from the lake; ``why`` as in ``Told``."""

    activity: StoredActivity | None
    lake: bool = False
    why: str | None = None


class ToldRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row as it was, by what both tiers have recorded of it; ``lake``, ``days`` and ``why`` as in ``Told``."""

    row: RowAt
    lake: frozenset[str] = frozenset()
    days: tuple[date, ...] = ()
    why: str | None = None


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """Days of a stretch of time that the lake alone has."""

    first: date
    last: date
    days: int


class _LeftDay(msgspec.Struct, frozen=True):
    day: date
    lake: str
    version: int


class Border(msgspec.Struct, frozen=True, kw_only=True):
    """The days of a stretch of time for which the lake has to be asked, and which lake has them, from which version
    on; or why it is not."""

    days: tuple[date, ...] = ()
    lakes: frozenset[str] = frozenset()
    version: int = 0
    why: str | None = None
    walled: bool = False


Cold = Callable[[Engine, Sequence[date], Between, int, bool], list[StoredActivity]]
Hot = Callable[[Database], Awaitable[Page]]


class Asker(Protocol):
    """Who asks the lake: lends out an engine, apart from the loop."""

    async def ask(self, work: Callable[[Engine], T]) -> T:
        """What ``work`` makes of an engine, in a thread. Raises LakeAwayError where that shall be told, not raised."""
        ...


class Tiers:
    """The store and the lake behind it, as one reader may see them.

    ``store`` opens a connection for a moment. Without ``asker`` no lake is configured: that days are in one is told.
    ``walled`` readers see one tenant alone, and nothing of the lake.
    """

    def __init__(
        self,
        store: Callable[[], AbstractAsyncContextManager[Database]],
        asker: Asker | None,
        *,
        walled: bool = False,
    ) -> None:
        self.store, self.asker, self.walled = store, asker, walled

    async def search(
        self,
        query: Query,
        *,
        limit: int = 50,
        older_than: Place | None = None,
        newer_than: Place | None = None,
        seconds: float = 1.0,
    ) -> Told:
        """A page of what fits, as ``search.find`` gives it, and on into the lake where the store has no more."""

        async def hot(db: Database) -> Page:
            return await find(db, query, limit=limit, older_than=older_than, newer_than=newer_than, seconds=seconds)

        return await self._page(
            hot,
            _finding(query),
            limit=limit,
            older_than=older_than,
            newer_than=newer_than,
            since=query.since or BEGINNING,
            until=query.until or END,
        )

    async def entity_timeline(
        self,
        entity_type: str,
        entity_id: str,
        *,
        limit: int = 50,
        older_than: Place | None = None,
        newer_than: Place | None = None,
    ) -> Told:
        """What happened to one thing, as ``search.timeline`` gives it, in both tiers."""

        async def hot(db: Database) -> Page:
            return await timeline.entity_timeline(
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

        return await self._page(hot, _asking(asked, fits), limit=limit, older_than=older_than, newer_than=newer_than)

    async def actor_timeline(
        self,
        actor_id: str,
        *,
        limit: int = 50,
        older_than: Place | None = None,
        newer_than: Place | None = None,
    ) -> Told:
        """What somebody did, as ``search.timeline`` gives it, in both tiers."""

        async def hot(db: Database) -> Page:
            return await timeline.actor_timeline(
                db, actor_id, limit=limit, older_than=older_than, newer_than=newer_than
            )

        query = Query((Term(Key.ACTOR, (Exact(actor_id),)),))

        return await self._page(hot, _finding(query), limit=limit, older_than=older_than, newer_than=newer_than)

    async def read_activity(self, id: str, *, occurred_at: datetime | None = None) -> ToldActivity:
        """The activity of this id, wherever it is. In the lake it is found also where its id does not tell its day."""
        between = Between()
        if occurred_at is not None:
            between = _within(Between(), occurred_at, later(occurred_at, TICK))
        async with self.store() as db:
            found = await timeline.read_activity(db, id, occurred_at=occurred_at)
            if found is not None:
                return ToldActivity(activity=found)
            border = await self.find_border(db, between, ended=True)
        query = Query((Term(Key.ID, (Exact(str(UUID(id))),)),))
        rows, why = await self.ask_for(border, lambda engine: engine.find(query, border.days, between, _MOST_NAMESAKES))
        # Of several the same one as in the store: a change, which nobody hands in, else what was stored first.
        one = min(rows, key=lambda row: (row.kind.value, row.batch_id, row.occurred_at), default=None)
        return ToldActivity(activity=one, lake=one is not None, why=why)

    async def read_cause(self, activity: StoredActivity) -> ToldActivity:
        """The activity that led to this one, where one is known and kept."""
        if activity.caused_by is None:
            return ToldActivity(activity=None)
        async with self.store() as db:
            found = await timeline.read_cause(db, activity)
        return ToldActivity(activity=found) if found is not None else await self.read_activity(activity.caused_by)

    async def same_transaction(
        self,
        activity: StoredActivity,
        *,
        limit: int = 50,
        older_than: Place | None = None,
        newer_than: Place | None = None,
    ) -> Told:
        """What else the transaction of this activity did, as ``search.timeline`` gives it, in both tiers."""
        if activity.commit_lsn is None:
            return Told(page=Page((), None, None))

        async def hot(db: Database) -> Page:
            return await timeline.same_transaction(
                db, activity, limit=limit, older_than=older_than, newer_than=newer_than
            )

        asked = Asked(
            where="a.source = $source and a.commit_lsn = $lsn and a.id <> $itself",
            params={"source": activity.source, "lsn": str(activity.commit_lsn), "itself": activity.id},
            exact=True,
            equal={"source": (activity.source,)},
        )
        return await self._page(
            hot,
            _asking(asked, _anything),
            limit=limit,
            older_than=older_than,
            newer_than=newer_than,
            since=activity.occurred_at,
            until=later(activity.occurred_at, TICK),
        )

    async def effects(
        self,
        activity: StoredActivity,
        *,
        limit: int = 50,
        older_than: Place | None = None,
        newer_than: Place | None = None,
    ) -> Told:
        """What this activity led to, as ``search.timeline`` gives it. Causes and effects may lie in different tiers."""
        since = timeline.led_since(activity)

        async def hot(db: Database) -> Page:
            return await timeline.effects(
                db,
                activity,
                limit=limit,
                older_than=older_than,
                newer_than=newer_than,
                causes=causes,
                besides=events,
            )

        async with self.store() as db:
            causes = await timeline.find_causes(db, activity)
            events: frozenset[str] = frozenset()
            border = await self.find_border(db, _within(Between(), since, END), ended=True)
            if not border.days:
                return Told(page=await hot(db), walled=border.walled, why=border.why)
            events = await timeline.find_events(db, causes)
        why: str | None = None
        try:
            more, also = await self._ask(border, lambda engine: _explain(engine, border.days, activity, causes))
            causes, events = (*causes, *(each for each in more if each not in causes)), events | also
        except (LakeAwayError, TimeUpError) as error:
            why = str(error) if isinstance(error, LakeAwayError) else _SLOW

        def is_led(each: StoredActivity) -> bool:
            return each.caused_by == activity.id or each.caused_by not in events

        told = await self._page(
            hot,
            _asking(_led_by(causes), is_led),
            limit=limit,
            older_than=older_than,
            newer_than=newer_than,
            since=since,
        )
        return told if why is None or told.why else msgspec.structs.replace(told, why=why)

    async def around(self, moment: datetime, *, seconds: float = 30.0, limit: int = 50) -> Told:
        """What happened within so many seconds of a moment, as ``search.timeline`` gives it, in both tiers."""
        since, until = timeline.around_bounds(moment, seconds, limit)
        whole = _within(Between(), since, until)
        async with self.store() as db:
            older, newer = await timeline.read_sides(db, moment, since, until, limit + 1)
            border = await self.find_border(db, whole, ended=True)

        def both(engine: Engine) -> list[StoredActivity]:
            here = Place(moment, LAST_ID)
            everything = Asked(where="true", params={}, exact=True, equal={})
            up = engine.ask(everything, _anything, border.days, Between(here, whole.high), limit + 1, newer=True)
            # ``here`` is behind all of its moment, and "before it" is all of that.
            return [
                *up,
                *engine.ask(everything, _anything, border.days, Between(whole.low, here), limit + 1),
            ]

        rows, why = await self.ask_for(border, both)
        known = {(each.occurred_at, each.id) for each in (*older, *newer)}
        fresh = [each for each in rows if (each.occurred_at, each.id) not in known]
        together = sorted((*older, *newer, *fresh), key=_place, reverse=True)
        page = timeline.balance(
            [each for each in together if each.occurred_at <= moment][: limit + 1],
            [each for each in together if each.occurred_at > moment][-(limit + 1) :],
            limit,
        )
        shown = {each.id for each in page.items}
        return Told(
            page=page,
            lake=frozenset(each.id for each in fresh) & shown,
            days=() if why else border.days,
            walled=border.walled,
            why=why,
        )

    async def row_at(self, entity_type: str, entity_id: str, moment: datetime, *, source: str | None = None) -> ToldRow:
        """A row as it was at a moment, as ``search.row`` tells it, from what both tiers have of it."""
        async with _Both(self) as both:
            row = await row_at(both, entity_type, entity_id, moment, source=source)
            why = both.why
            days = tuple(sorted(both.days))
        if why is not None and why not in " ".join(row.doubts):
            row = msgspec.structs.replace(row, doubts=(*row.doubts, why))
        named = {each.id for each in (row.since, row.until, *row.moves) if each is not None}
        return ToldRow(row=row, lake=frozenset(both.found & named), days=days, why=why)

    async def find_border(self, db: Database, between: Between, *, ended: bool) -> Border:
        """Which days of the lake lie there; ``ended``: nothing of the store is further on."""
        if self.walled:
            return Border(walled=True, why=_WALL if self.asker else None)
        if self.asker is None and not ended:
            return Border()
        try:
            if not await _sees_all(db):
                return Border(walled=True, why=_WALL if self.asker else None)
            left = await db.rows(_LeftDay, statement("lake.read_left_days"))
        except AfterwriteError:
            # A store that knows nothing of lakes yet, or does not say.
            if self.asker is not None or db.connection.info.transaction_status is not TransactionStatus.IDLE:
                raise
            return Border()
        left = [each for each in left if _lies(each.day, between)]
        days = tuple(sorted({each.day for each in left}))
        if days and self.asker is None:
            return Border(why=f"{_span(days)} left the store for a lake, and lake_url does not say where that is")
        return _border(left)

    async def _ask(self, border: Border, work: Callable[[Engine], T]) -> T:
        asker = self.asker
        assert asker is not None

        def checked(engine: Engine) -> T:
            _check(engine.lake, border)
            return work(engine)

        return await asker.ask(checked)

    async def ask_for(
        self, border: Border, work: Callable[[Engine], list[StoredActivity]]
    ) -> tuple[list[StoredActivity], str | None]:
        """What the lake has, or why it was not asked."""
        if not border.days:
            return [], border.why
        try:
            return await self._ask(border, work), None
        except TimeUpError:
            return [], _SLOW
        except LakeAwayError as error:
            return [], str(error)

    async def _page(
        self,
        hot: Hot,
        cold: Cold,
        *,
        limit: int,
        older_than: Place | None,
        newer_than: Place | None,
        since: datetime = BEGINNING,
        until: datetime = END,
    ) -> Told:
        """The hot page with what the lake has between its place and how far it looked, within [since, until)."""
        newer = newer_than is not None
        async with self.store() as db:
            page = await hot(db)
            reached = page.newer if newer else page.older
            stretch = Between(newer_than, reached) if newer else Between(reached, older_than)
            between = _within(stretch, since, until)
            border = await self.find_border(db, between, ended=reached is None)
        if not border.days:
            return Told(page=page, walled=border.walled, why=border.why)
        looked: Place | None = None
        try:
            rows = await self._ask(border, lambda engine: cold(engine, border.days, between, limit + 1, newer))
        except LakeAwayError as error:
            return Told(page=page, why=str(error))
        except TimeUpError as error:
            if error.looked is None or error.looked in (older_than, newer_than):
                # Who goes on from there would come no further.
                return Told(page=page, why=_SLOW)
            rows, looked = error.found, error.looked
        return _merge(page, rows, border.days, limit, older_than, newer_than, looked)


def _merge(
    page: Page,
    rows: Sequence[StoredActivity],
    days: tuple[date, ...],
    limit: int,
    older_than: Place | None,
    newer_than: Place | None,
    looked: Place | None,
) -> Told:
    """One page of what both gave. ``looked``: so far the lake was looked through, and the page goes no further."""
    newer = newer_than is not None
    known = {(each.occurred_at, each.id) for each in page.items}
    fresh = [each for each in rows if (each.occurred_at, each.id) not in known]
    merged = sorted((*page.items, *fresh), key=_place, reverse=not newer)
    if looked is not None:
        edge = (looked.occurred_at, looked.id)
        merged = [each for each in merged if (_place(each) <= edge if newer else _place(each) >= edge)]
    items = merged[:limit]
    cut = len(merged) > limit
    last = Place(items[-1].occurred_at, items[-1].id) if items else older_than or newer_than
    first = Place(items[0].occurred_at, items[0].id) if items else older_than or newer_than
    reached = page.newer if newer else page.older
    further = last if cut else looked or reached
    told = None if cut else page.looked if looked is None else looked.occurred_at
    shown = {each.id for each in items}
    both = (
        Page(tuple(reversed(items)), older=first, newer=further, looked=told)
        if newer
        else Page(tuple(items), older=further, newer=first if older_than else None, looked=told)
    )
    lake = frozenset(each.id for each in fresh) & shown
    return Told(page=both, lake=lake, days=days, lake_looked=looked is not None and not cut)


class _Both(Changes):
    """What is recorded of rows in both tiers. The store's connection is kept until the lake is asked."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._opened = AsyncExitStack()
        self._held: Database | None = None
        self.found: set[str] = set()
        self.days: set[date] = set()
        self.why: str | None = None

    async def __aenter__(self) -> _Both:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def _store(self) -> Changes:
        return Changes(await self._database())

    async def _database(self) -> Database:
        if self._held is None:
            self._held = await self._opened.enter_async_context(self._tiers.store())
        return self._held

    async def _cold(
        self, between: Between, work: Callable[[Engine, Sequence[date]], list[StoredActivity]]
    ) -> list[StoredActivity]:
        border = await self._tiers.find_border(await self._database(), between, ended=True)
        if border.days:
            self._held = None
            await self._opened.aclose()
        rows, why = await self._tiers.ask_for(border, lambda engine: work(engine, border.days))
        self.why = self.why or why
        if border.days and why is None:
            self.days |= set(border.days)
        self.found |= {each.id for each in rows}
        return rows

    async def sees_all(self) -> bool:
        return await (await self._store()).sees_all()

    async def reach(self, source: str) -> Reach:
        return await (await self._store()).reach(source)

    async def gaps(self, source: str) -> list[Gap]:
        known = await (await self._store()).gaps(source)
        if self.why is not None:
            return known
        return [gap for gap in known if not gap.elsewhere]

    async def of(self, whose: Whose, window: Window) -> list[StoredActivity]:
        hot = await (await self._store()).of(whose, window)
        asked = _of_row(whose, "a.entity_id = $id and a.kind = 'change'", entity_id=whose.entity_id)
        between = _beside(window, hot)
        cold = await self._cold(
            between,
            lambda engine, days: engine.ask(asked, _anything, days, between, window.count, newer=window.newer),
        )
        return window.nearest(_joined(hot, cold)) if cold else hot

    async def gone(self, whose: Whose, place: Place, until: datetime, count: int) -> list[StoredActivity]:
        hot = await (await self._store()).gone(whose, place, until, count)
        asked = _of_row(
            whose,
            "(a.operation = 'truncate' or (a.operation = 'update' and contains(a.metadata, 'entity_was')))",
            exact=False,
        )

        def fits(activity: StoredActivity) -> bool:
            was = read_told(activity).entity_was
            if activity.operation is Operation.TRUNCATE:
                return was is None
            return was == whose.entity_id and activity.entity_id != whose.entity_id

        end = Place(hot[-1].occurred_at, hot[-1].id) if len(hot) >= count else None
        between = _within(Between(place, end), BEGINNING, until)
        cold = await self._cold(between, lambda engine, days: engine.ask(asked, fits, days, between, count, newer=True))
        return _joined(hot, cold)[::-1][:count] if cold else hot

    async def telling(self, whose: Whose, column: str, window: Window) -> list[StoredActivity]:
        hot = await (await self._store()).telling(whose, column, window)
        asked = _of_row(whose, "a.entity_id = $id and a.kind = 'change'", entity_id=whose.entity_id, exact=False)

        def fits(activity: StoredActivity) -> bool:
            told = read_told(activity)
            return activity.operation is Operation.DELETE or told.entity_was is not None or column not in told.unchanged

        between = _beside(msgspec.structs.replace(window, count=1), hot)
        cold = await self._cold(
            between,
            lambda engine, days: engine.ask(asked, fits, days, between, 1),
        )
        return _joined(hot, cold)[:1]

    async def is_recorded(self, whose: Whose, moment: datetime) -> bool:
        if await (await self._store()).is_recorded(whose, moment):
            return True
        asked = _of_row(whose, "a.entity_id is not null and a.kind = 'change'")
        between = Between(None, Place(moment, LAST_ID))
        return bool(await self._cold(between, lambda engine, days: engine.ask(asked, _anything, days, between, 1)))

    async def bracket(self, source: str, moment: datetime) -> Bracket:
        hot = await (await self._store()).bracket(source, moment)
        asked = Asked(
            where="a.source = $source and a.commit_lsn is not null",
            params={"source": source},
            exact=True,
            equal={"source": (source,)},
        )
        here = Place(moment, LAST_ID)
        before = await self._cold(
            Between(None, here), lambda engine, days: engine.ask(asked, _anything, days, Between(None, here), 1)
        )
        after = await self._cold(
            Between(here, None),
            lambda engine, days: engine.ask(asked, _anything, days, Between(here, None), 1, newer=True),
        )
        befores = [Lsn.parse(text) for text in (hot.before,) if text] + [e.commit_lsn for e in before if e.commit_lsn]
        afters = [Lsn.parse(text) for text in (hot.after,) if text] + [e.commit_lsn for e in after if e.commit_lsn]
        return Bracket(
            str(max(befores)) if befores else None,
            str(min(afters)) if afters else None,
        )


def _finding(query: Query) -> Cold:
    def cold(engine: Engine, days: Sequence[date], between: Between, count: int, newer: bool) -> list[StoredActivity]:
        return engine.find(query, days, between, count, newer=newer)

    return cold


def _asking(asked: Asked, fits: Fits) -> Cold:
    def cold(engine: Engine, days: Sequence[date], between: Between, count: int, newer: bool) -> list[StoredActivity]:
        return engine.ask(asked, fits, days, between, count, newer=newer)

    return cold


def _joined(hot: Sequence[StoredActivity], cold: Sequence[StoredActivity]) -> list[StoredActivity]:
    """All of it, once, the newest first."""
    return sorted({_place(each): each for each in (*cold, *hot)}.values(), key=_place, reverse=True)


def _anything(activity: StoredActivity) -> bool:
    return True


def _of_row(whose: Whose, where: str, *, entity_id: str | None = None, exact: bool = True) -> Asked:
    """What is recorded of a row's table, of one source where it is known."""
    equal = {"entity_type": (whose.entity_type,)}
    params: dict[str, object] = {"type": whose.entity_type}
    words = ["a.entity_type = $type", where]
    if entity_id is not None:
        params["id"], equal["entity_id"] = entity_id, (entity_id,)
    for name, value in (("source", whose.source), ("relation", whose.relation)):
        if value is not None:
            words.append(f"a.{name} = ${name}")
            params[name], equal[name] = value, (value,)
    return Asked(where=" and ".join(words), params=params, exact=exact, equal=equal)


def _beside(window: Window, hot: Sequence[StoredActivity]) -> Between:
    """Where the lake may have something nearer than the last that the store gave for a window."""
    end: Place | None = None
    if len(hot) >= window.count:
        furthest = hot[0] if window.newer else hot[-1]
        end = Place(furthest.occurred_at, furthest.id)
    here = Place(window.at, window.id)
    return _within(Between(here, end) if window.newer else Between(end, here), window.since, window.until)


def _explain(
    engine: Engine, days: Sequence[date], activity: StoredActivity, causes: Sequence[Cause]
) -> tuple[tuple[Cause, ...], frozenset[str]]:
    """What the lake adds to the causes: the transactions that an event explains; and the events these wrote."""
    more: dict[Cause, None] = {}
    if activity.kind is not Kind.CHANGE:
        asked = Asked(
            where="a.caused_by = $cause and a.kind = 'change'", params={"cause": activity.id}, exact=True, equal={}
        )
        for change in engine.ask(asked, _anything, days, Between(), timeline.MOST_CAUSED):
            more[timeline.transaction_cause(change)] = None
            if len(more) >= timeline.MOST_TRANSACTIONS:
                break
    times = [each for each in (*causes, *more) if each.commit_time is not None]
    if not times:
        return tuple(more), frozenset()
    words: list[str] = []
    params: dict[str, object] = {}
    for number, each in enumerate(times):
        assert each.commit_time is not None
        moment = engine.dialect.moment.format(f"$t{number}")
        words.append(f"(a.occurred_at = {moment} and a.id between $f{number} and $l{number})")
        params |= {
            f"t{number}": microseconds(each.commit_time),
            f"f{number}": each.first_id,
            f"l{number}": each.last_id,
        }
    asked = Asked(
        where=f"a.kind = 'event' and ({' or '.join(words)})", params=params, exact=True, equal={"kind": ("event",)}
    )
    commits = {each.commit_time.astimezone(UTC).date() for each in times if each.commit_time is not None}
    found = engine.ask(asked, _anything, [day for day in days if day in commits], Between(), timeline.MOST_CAUSED)
    return tuple(more), frozenset(each.id for each in found)


def _led_by(causes: Sequence[Cause]) -> Asked:
    words: list[str] = []
    params: dict[str, object] = {}
    for number, each in enumerate(causes):
        words.append(f"a.caused_by between $f{number} and $l{number}")
        params |= {f"f{number}": each.first_id, f"l{number}": each.last_id}
    return Asked(where=" or ".join(f"({word})" for word in words), params=params, exact=False, equal={})


class _Own:
    """Asks a lake for one command: its engine is opened by the first question."""

    def __init__(self, lake: Lake, engine: Open) -> None:
        self._lake, self._open = lake, engine
        self._engine: Engine | None = None

    async def ask(self, work: Callable[[Engine], T]) -> T:
        """What work makes of the engine, in a thread."""
        return await asyncio.to_thread(self._work, work)

    def _work(self, work: Callable[[Engine], T]) -> T:
        if self._engine is None:
            self._engine = self._open(self._lake)
        return work(self._engine)

    def close(self) -> None:
        """Let go of the engine's memory."""
        if self._engine is not None:
            self._engine.close()


@asynccontextmanager
async def both(db: Database, lake: Lake | None, engine: Open = DuckEngine) -> AsyncGenerator[Tiers]:
    """Both tiers over a connection of one's own; None: no lake is configured, and that days are in one is told."""

    @asynccontextmanager
    async def store() -> AsyncGenerator[Database]:
        yield db

    if lake is None:
        yield Tiers(store, None)
        return
    asker = _Own(lake, engine)
    try:
        yield Tiers(store, asker)
    finally:
        asker.close()


async def left_days(db: Database, lake: Lake) -> tuple[date, ...]:
    """The days of which the lake alone has something; the lake is opened where there are any.

    Raises Refused where that is another lake, or none at all.
    """
    left = await db.rows(_LeftDay, statement("lake.read_left_days"))
    border = _border(left)
    if border.days:
        await asyncio.to_thread(_check, lake, border)
    return border.days


async def read_left(db: Database, since: datetime, until: datetime) -> Left | None:
    """Which days of a stretch of time the store has no more, by the ledger; None: none, or it is not said."""
    between = _within(Between(), since, until)
    try:
        left = await db.rows(_LeftDay, statement("lake.read_left_days"))
    except AfterwriteError:
        if db.connection.info.transaction_status is not TransactionStatus.IDLE:
            raise
        return None
    days = sorted({each.day for each in left if _lies(each.day, between)})
    return Left(first=days[0], last=days[-1], days=len(days)) if days else None


async def _sees_all(db: Database) -> bool:
    answer: bool = await db.value(statement("timeline.sees_all"))
    return answer


def _border(left: Sequence[_LeftDay]) -> Border:
    return Border(
        days=tuple(sorted({each.day for each in left})),
        lakes=frozenset(each.lake for each in left),
        version=max((each.version for each in left), default=0),
    )


def _check(lake: Lake, border: Border) -> None:
    """Open the lake as it is now; raises Refused where it is not the one that the ledger tells of, or was set back."""
    there = lake.open()
    if not there or set(border.lakes) != {lake.identity}:
        raise Refused(
            f"{len(border.days)} days left the store for a lake, and "
            + (f"the one at {lake.url} is another" if there else f"there is none at {lake.url}"),
            remedy="set lake_url to where those days are",
        )
    need_version(lake, border.version)


def _span(days: Sequence[date]) -> str:
    return f"{days[0]}" if len(days) == 1 else f"{len(days)} days ({days[0]} to {days[-1]})"


def _place(activity: StoredActivity) -> tuple[datetime, str]:
    return activity.occurred_at, activity.id


def _within(between: Between, since: datetime, until: datetime) -> Between:
    """The same, and within [since, until)."""
    low, high = between.low, between.high
    if since > BEGINNING:
        floor = Place(later(since, -TICK), LAST_ID)
        low = floor if low is None else max(low, floor, key=lambda place: (place.occurred_at, place.id))
    if until < END:
        roof = Place(until, FIRST_ID)
        high = roof if high is None else min(high, roof, key=lambda place: (place.occurred_at, place.id))
    return Between(low, high)


def _lies(day: date, between: Between) -> bool:
    """Whether something of a day can lie between two places, neither of them in it."""
    low, high = between.low, between.high
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    first, last = (start, FIRST_ID), (start + timedelta(days=1) - TICK, LAST_ID)
    return (low is None or (low.occurred_at, low.id) < last) and (high is None or (high.occurred_at, high.id) > first)
