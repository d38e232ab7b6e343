"""The live feed: one reader of the store for all who listen, and each who was away reads up to it by himself.

::

    store ──LISTEN, read once──▶ Feed ──▶ group (query, tenant): matched once, written once
      │                                     ├──▶ client's buffer ──▶ client        shared bytes, bounded
      │                                     └──▶ client's buffer ──▶ client
      └──a page at a time, a few at once──▶ client with a place behind the reader; joins its group when it is there
           what was read of late lies on a shelf, for the many who come back at the same moment

A place in the feed is ``position-activity``: behind that activity of the batch at that position, or ``position`` alone:
behind the whole batch. The order is the store's: by position, within a batch by commit and ordinal; a batch that is too
long to be read at once comes in the order of time. Live and resumed it is the same, and so is what matches.

No HTTP in here: a client is a coroutine that takes bytes (server-sent events, as WHATWG's HTML standard frames them).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any, TypeVar

import msgspec

from afterwrite.errors import AfterwriteError, UsageError
from afterwrite.postgres import Database, ReadOnly, connect, statement
from afterwrite.search.query import Exact, Key, Query, Thing
from afterwrite.store.reader import (
    FeedBounds,
    StoredActivity,
    StoredBatch,
    read_batch_page,
    read_batches,
    read_feed_bounds,
    read_feed_distance,
    read_feed_rows,
    read_moment_in_batch,
)

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Send = Callable[[bytes], Awaitable[None]]
# A transaction that sees what this tenant may see; of everything, where it is None.
Reading = Callable[[str | None], AbstractAsyncContextManager[Database]]
Encode = Callable[[StoredActivity], bytes]

_HEARTBEAT = b": heartbeat\n\n"
_PIECE_BYTES = 1 << 16
_BATCHES = 100
_FEW_CLIENTS = 50
# Rows are found by their time: batches that lie further apart are read by themselves.
_TOGETHER_SECONDS = 60.0
_BEATS = 16
# A round that takes no longer needs no rest.
_SHORT_SECONDS = 0.015
# For how long the store is not asked again what a batch holds: so late a deletion, or retention, comes to a resume.
_RECENT_SECONDS = 300.0
_RECENT_BATCHES = 2_000


class Wish(msgspec.Struct, frozen=True):
    """What a client wants to hear of, and whose (None: all tenants')."""

    query: Query = Query()
    tenant: str | None = None


class Place(msgspec.Struct, frozen=True):
    """A place in the feed: behind this activity of the batch at ``position``, or behind that whole batch."""

    position: int
    activity: str | None = None

    def __str__(self) -> str:
        return str(self.position) if self.activity is None else f"{self.position}-{self.activity}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read what an ``id:`` line said; raises UsageError for what none ever said."""
        number, dash, activity = text.partition("-")
        try:
            if not number.isascii() or not number.isdigit() or len(number) > 18:
                raise ValueError
            return cls(int(number), str(uuid.UUID(activity)) if dash else None)
        except ValueError:
            raise UsageError(
                f"{text[:80]!r} is no place in the feed",
                remedy="give the last `id:` of the stream (POSITION or POSITION-ACTIVITY), 0 for all that is kept, or"
                " nothing to begin now",
            ) from None


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How much at once, how long to wait, and the bounds.

    A client may have ``buffer_bytes`` waiting, and take nothing for ``stall_seconds``. Batches of up to ``whole_rows``
    are read at once; a resume over more than ``most_behind`` rows is none. ``at_once`` clients read by themselves. Of
    ``most_clients`` a tenant has half at most, and ``most_queries`` different ones of them (each row is asked about by
    all). A stream ends after ``renew_seconds``, so that nobody listens for long whose key was revoked.
    """

    page_rows: int = 1_000
    whole_rows: int = 10_000
    buffer_bytes: int = 4 << 20
    stall_seconds: float = 20.0
    heartbeat_seconds: float = 15.0
    poll_seconds: float = 1.0
    deaf_poll_seconds: float = 0.2
    most_behind: int = 2_000_000
    most_clients: int = 5_000
    most_queries: int = 500
    shelf_bytes: int = 32 << 20
    renew_seconds: float = 900.0
    at_once: int = 2
    retry_ms: int = 2_000
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 5.0
    longest_rest_seconds: float = 0.25


class Ended(StrEnum):
    """Why a stream ended: the client did not keep up, the store could not be read, the server stops, or it is time.

    Who comes back is asked anew who he is.
    """

    SLOW = "slow"
    TROUBLE = "trouble"
    STOPPED = "stopped"
    RENEWED = "renewed"


class Resync(StrEnum):
    """Why a stream goes on from elsewhere than where the client was."""

    EXPIRED = "expired"
    BEHIND = "behind"
    UNKNOWN = "unknown"


class FeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the feed stands. Counts are since the start; ``lag_seconds`` is the newest batch's, from its commit on.

    ``clients`` are ``live`` or read up by themselves (``catching_up``); ``trouble`` is why the store is not read.
    """

    position: int | None
    lag_seconds: float | None
    clients: int
    live: int
    groups: int
    resumed: int
    resynced: int
    dropped: int
    refused: int
    sent: int
    reconnects: int
    trouble: str | None

    @property
    def catching_up(self) -> int:
        """Clients that read the store by themselves, or wait for their turn."""
        return self.clients - self.live


class TooMany(AfterwriteError):  # noqa: N818 - the sentence that it says
    """As many clients listen as may."""


class _StoppedError(Exception):
    """The server stops."""


class _GoneError(Exception):
    """What the client has not read cannot be had any more."""

    def __init__(self, reason: Resync) -> None:
        super().__init__(reason)
        self.reason = reason


class Feed:
    """Reads the store's feed once, and hands it to all who listen. ``async with Feed(…) as feed`` reads."""

    def __init__(self, dsn: str | None, *, encode: Encode, pace: Pace | None = None) -> None:
        self._dsn = dsn
        self._encode = encode
        self._pace = pace or Pace()
        self._position: int | None = None
        # What is being handed out in portions, up to which position; who joins meanwhile reads it by himself.
        self._under_way: int | None = None
        self._paged: _Paged | None = None
        self._groups: dict[Wish, _Group] = {}
        self._index = _Index()
        self._clients: set[_Client] = set()
        # Those who have read what is under way and hear what comes behind it, and the places that are waited for.
        self._beyond: list[_Client] = []
        self._waited: list[tuple[int, asyncio.Future[None]]] = []
        self._turns = asyncio.Semaphore(self._pace.at_once)
        self._recent = _Recent()
        self._shelf = _Shelf(self._pace.shelf_bytes, encode)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._lag: float | None = None
        self._trouble: str | None = None
        self._resumed = self._resynced = self._dropped = self._refused = self._sent = self._reconnects = 0

    async def __aenter__(self) -> Feed:
        self._tasks = [asyncio.create_task(self._read_for_all()), asyncio.create_task(self._beat())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def stop(self) -> None:
        """End every stream as soon as what waits is sent; who comes later is turned away at once."""
        self._stopping.set()
        for client in self._clients:
            client.end(Ended.STOPPED)

    def status(self) -> FeedStatus:
        """How the feed stands."""
        return FeedStatus(
            position=self._position,
            lag_seconds=self._lag,
            clients=len(self._clients),
            live=sum(len(group.clients) for group in self._groups.values()) + len(self._beyond),
            groups=len(self._groups),
            resumed=self._resumed,
            resynced=self._resynced,
            dropped=self._dropped,
            refused=self._refused,
            sent=self._sent,
            reconnects=self._reconnects,
            trouble=self._trouble,
        )

    def require_room(self, wish: Wish) -> None:
        """Raise TooMany when another client would be one too many, in all or of its tenant."""
        said = None
        if len(self._clients) >= self._pace.most_clients:
            said = f"{len(self._clients)} clients listen, and no more may"
        elif wish.tenant is not None:
            wishes = [client.wish for client in self._clients if client.wish.tenant == wish.tenant]
            if len(wishes) >= self._pace.most_clients // 2:
                said = f"{len(wishes)} clients of this tenant listen, and no more may"
            elif wish not in wishes and len(set(wishes)) >= self._pace.most_queries:
                said = f"clients of this tenant listen for {len(set(wishes))} different queries, and no more may be"
        if said is not None:
            self._refused += 1
            raise TooMany(said, remedy="try again later, or ask another server of the same store")

    async def follow(self, wish: Wish, after: Place | None, send: Send, reading: Reading) -> Ended:
        """Send a client what it wishes, from a place on (None: from now), until it is cancelled or the stream ends.

        ``reading`` opens the store for what lies between that place and the reader's.
        """
        if self._stopping.is_set():
            return Ended.STOPPED
        task = asyncio.current_task()
        assert task is not None
        client = _Client(wish, send, self._pace, task)
        self._clients.add(client)
        try:
            await client.send(b"retry: %d\n\n" % (self._pace.retry_ms + random.randrange(self._pace.retry_ms)))
            await self._patiently(client, self._reached(0))
            if after is None:
                self._join(client, self._front, live=True)
            while True:
                if after is not None:
                    await self._catch_up(client, after, reading)
                await client.flush()
                if client.ended is not None:
                    return client.ended
                after = client.fallen_to
        except asyncio.CancelledError:
            if client.ended is not Ended.SLOW or client.task.uncancel():
                raise
            return Ended.SLOW
        except _StoppedError:
            return Ended.STOPPED
        except (AfterwriteError, TimeoutError) as error:
            log.warning("a client of the feed could not be served: %s", error)
            return Ended.TROUBLE
        finally:
            self._clients.discard(client)
            self._leave(client)

    # What a client does that was away.

    async def _catch_up(self, client: _Client, after: Place, reading: Reading) -> None:
        """Send what lies between a place and the reader's, then join; where it is not to be had, say so, and join."""
        self._resumed += 1
        walk = _Walk(client.wish, after, reading, self._pace, self._recent, self._shelf)
        try:
            await self._patiently(client, self._check(walk, reading))
            await self._patiently(client, self._reached(after.position))
            while walk.place.activity is not None or walk.place.position < self._front:
                if client.ended is not None:
                    return
                frames = await self._patiently(client, self._step(walk))
                self._sent += len(frames)
                for piece in _pieces(frames):
                    await client.send(piece)
                if not frames and time.monotonic() - client.sent_at > 1:
                    await client.send(b"id: %s\n\n" % str(walk.place).encode())
            if walk.place.position != self._front:  # the feed was begun anew meanwhile
                raise _GoneError(Resync.UNKNOWN)
            # Nothing may be waited for between that look and this.
            self._join(client, walk.place.position, live=True)
        except _GoneError as gone:
            async with self._turns, reading(None) as db:
                bounds = await read_feed_bounds(db)
            self._resynced += 1
            front = self._front
            client.put([_resync(gone.reason, after=walk.place, position=front, oldest=bounds.start)])
            self._join(client, front, live=False)

    async def _step(self, walk: _Walk) -> list[bytes]:
        async with self._turns:
            return await walk.step(self._front)

    async def _check(self, walk: _Walk, reading: Reading) -> None:
        """Raise _GoneError where it would be of no use to read on from there."""
        before, most = walk.before, self._pace.most_behind
        batches = self._recent.behind(before) if walk.place.position <= self._front else None
        if batches is not None:
            if sum(batch.rows for batch in batches) > most:
                raise _GoneError(Resync.BEHIND)
            return
        async with self._turns, reading(None) as db:
            bounds = await read_feed_bounds(db)
            if walk.place.position > bounds.position:
                raise _GoneError(Resync.UNKNOWN)
            if before < bounds.start:
                raise _GoneError(Resync.EXPIRED)
            # Counting them is itself work.
            if bounds.position - before > most or await read_feed_distance(db, before, bounds.position) > most:
                raise _GoneError(Resync.BEHIND)

    async def _patiently(self, client: _Client, work: Coroutine[None, None, Result]) -> Result:
        """Do something that may take long, and let the client hear meanwhile that we are there."""
        task = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not task.done():
                if stopping.done():
                    raise _StoppedError
                seconds = self._pace.heartbeat_seconds
                done, _ = await asyncio.wait({task, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    await client.send(_HEARTBEAT)
            return task.result()
        finally:
            task.cancel()
            stopping.cancel()
            await asyncio.wait({task, stopping})

    async def _reached(self, position: int) -> None:
        """Wait until the reader is at a batch: a server beside us may have been further when the client left it."""
        while self._front < position:
            future = asyncio.get_running_loop().create_future()
            self._waited.append((position, future))
            await future

    # Who listens.

    @property
    def _front(self) -> int:
        """Up to where the reader has handed out anything; -1 before it has begun."""
        if self._under_way is not None:
            return self._under_way
        return -1 if self._position is None else self._position

    def _join(self, client: _Client, position: int, *, live: bool) -> None:
        """From the batch behind this one on the client hears what its group hears."""
        if live:
            client.put([b": live\nid: %d\n\n" % position])
        client.fallen_to = None
        if position == self._under_way:
            self._beyond.append(client)
        else:
            self._add(client)

    def _add(self, client: _Client) -> None:
        group = self._groups.get(client.wish)
        if group is None:
            group = self._groups[client.wish] = _Group(client.wish)
            self._index.add(group)
        group.clients.add(client)

    def _leave(self, client: _Client) -> None:
        if client in self._beyond:
            self._beyond.remove(client)
        group = self._groups.get(client.wish)
        if group is not None:
            group.clients.discard(client)
            if not group.clients:
                del self._groups[client.wish]
                self._index.remove(group)

    # The reader.

    async def _read_for_all(self) -> None:
        """Read on for as long as the server runs; what goes wrong is told, and tried again after a pause."""
        pause = self._pace.first_pause_seconds
        while True:
            began = time.monotonic()
            try:
                async with connect(self._dsn, application_name="afterwrite feed", guarded=True) as db:
                    wait = await self._listen(db)
                    await self._begin(db)
                    self._trouble = None
                    while True:
                        await self._rest(self._read_on(db))
                        await db.wait_told(wait)
            except AfterwriteError as error:
                self._trouble = str(error)
                log.warning("the feed cannot be read, trying again: %s", error)
            except Exception as error:  # nobody else would begin again
                self._trouble = f"a defect: {error!r}"
                log.exception("the feed's reader broke down, trying again")
            self._reconnects += 1
            if time.monotonic() - began > self._pace.longest_pause_seconds:
                pause = self._pace.first_pause_seconds
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, self._pace.longest_pause_seconds)

    async def _rest(self, work: Coroutine[None, None, None]) -> None:
        """Read on; where that took long, leave as much time to everything else: what comes goes to all in one piece."""
        began = time.monotonic()
        await work
        for _ in range(3):  # until those who were woken have sent what they have
            await asyncio.sleep(0)
        took = time.monotonic() - began
        if took > _SHORT_SECONDS:
            await asyncio.sleep(min(took, self._pace.longest_rest_seconds))

    async def _listen(self, db: Database) -> float:
        """Ask to be told of batches; gives how long to wait for that before looking anyway."""
        try:
            await db.run(statement("feed.listen"))
        except ReadOnly:  # nobody is told anything on a standby
            return self._pace.deaf_poll_seconds
        return self._pace.poll_seconds

    async def _begin(self, db: Database) -> None:
        """Find where to go on; a store that is not what it was is told to everybody."""
        bounds = await read_feed_bounds(db)
        if self._position is None:
            # Those who come back to a server that was begun anew were here a moment ago.
            before = max(bounds.start, bounds.position - _RECENT_BATCHES)
            for batch in await read_batches(db, before, limit=_RECENT_BATCHES):
                self._recent.add(batch)
                bounds = msgspec.structs.replace(bounds, position=batch.position)
            self._advance(bounds.position)
        elif bounds.position < self._front:
            self._restart(Resync.UNKNOWN, bounds)

    async def _read_on(self, db: Database) -> None:
        """Hand out everything that is there."""
        while True:
            if self._paged is not None:
                await self._page_on(db, self._paged)
                continue
            at = self._position or 0
            batches = await read_batches(db, at, limit=_BATCHES)
            if not batches:
                return
            if not _follow_each_other(at, batches):
                bounds = await read_feed_bounds(db)
                self._restart(Resync.EXPIRED, bounds)
                return
            for run in _runs(batches, self._pace):
                last = run[-1]
                if not self._groups:  # who comes while we wait for the store hears what comes behind this
                    self._begin_on(run)
                elif last.rows > self._pace.whole_rows:
                    self._begin_on(run)
                    self._paged = _Paged(last)
                    for group in self._groups.values():
                        group.through = Place(last.position - 1)
                    await self._page_on(db, self._paged)
                else:
                    rows = await read_feed_rows(db, run)
                    self._shelf.add(None, run, rows)
                    self._begin_on(run)
                    await self._hand_out(rows)
                self._advance(last.position)
                self._lag = (datetime.now(UTC) - last.written_at).total_seconds()

    def _begin_on(self, run: Sequence[StoredBatch]) -> None:
        self._under_way = run[-1].position
        for batch in run:
            self._recent.add(batch)
        self._resolve()

    async def _page_on(self, db: Database, paged: _Paged) -> None:
        """Hand out the rest of a long batch, a page at a time; who cannot take it so fast reads it by himself."""
        while self._groups:
            rows = await read_batch_page(db, paged.batch, after=paged.after, rows=self._pace.page_rows)
            if not rows:
                break
            self._dispatch(rows)
            paged.after = rows[-1].occurred_at, rows[-1].id
            await asyncio.sleep(0)
        self._advance(paged.batch.position)

    async def _hand_out(self, rows: Sequence[StoredActivity]) -> None:
        """Hand out what whole batches hold, in portions, so that what is written can be sent between them."""
        for start in range(0, len(rows), self._pace.page_rows):
            if start:
                await asyncio.sleep(0)
            self._dispatch(rows[start : start + self._pace.page_rows])

    def _dispatch(self, rows: Sequence[StoredActivity]) -> None:
        """Give each group what it wishes of these rows. A row is written once, by the first group that wants it."""
        for group, candidates in self._index.sort(rows):
            try:
                frames: list[bytes] = []
                last = None
                for row in candidates:
                    if _is_wanted(group.wish, row):
                        frames.append(self._shelf.frame(row))
                        last = row
            except Exception:  # of one query; the others' clients have nothing to do with it
                log.exception("a query of the feed broke down: %r", group.wish)
                for client in list(group.clients):
                    client.end(Ended.TROUBLE)
                    self._leave(client)
                continue
            if last is not None:
                # What waits for many is put together once; of few, all groups' clients wait with the same bytes.
                self._give(group, list(_pieces(frames)) if len(group.clients) > _FEW_CLIENTS else frames)
                self._sent += len(frames) * len(group.clients)
                group.through = Place(last.position, last.id)

    def _give(self, group: _Group, pieces: Sequence[bytes]) -> None:
        full = [client for client in group.clients if not client.put(pieces)]
        for client in full:
            self._leave(client)
            if self._paged is not None:
                client.fall_to(group.through)
            else:
                self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._dropped += 1
        client.end(Ended.SLOW)

    def _advance(self, position: int) -> None:
        """Everything up to here is handed out."""
        self._position = position
        self._under_way = self._paged = None
        beyond, self._beyond = self._beyond, []
        for client in beyond:
            self._add(client)
        self._resolve()

    def _resolve(self) -> None:
        front = self._front
        for position, future in self._waited:
            if position <= front and not future.done():
                future.set_result(None)
        self._waited = [waited for waited in self._waited if not waited[1].done()]

    def _restart(self, reason: Resync, bounds: FeedBounds) -> None:
        """Go on from the end of the feed, and tell everybody."""
        log.warning("the feed goes on from %s instead of %s: %s", bounds.position, self._front, reason)
        after = Place(self._position or 0)
        self._recent.clear()
        self._shelf.clear()
        self._advance(bounds.position)
        for group in list(self._groups.values()):
            self._resynced += len(group.clients)
            self._give(group, [_resync(reason, after=after, position=bounds.position, oldest=bounds.start)])

    async def _beat(self) -> None:
        """Let those hear from us who heard nothing, a sixteenth of them at a time, and where they are by now."""
        turn = 0
        while True:
            await asyncio.sleep(min(self._pace.heartbeat_seconds, self._pace.stall_seconds) / _BEATS)
            now = time.monotonic()
            for client in list(self._clients):
                if client.sending_since is not None and now - client.sending_since > self._pace.stall_seconds:
                    self._leave(client)
                    self._drop(client)
                elif now > client.renewed_at:
                    client.end(Ended.RENEWED)
            turn = (turn + 1) % _BEATS
            # While something is under way there is no place that all of them know.
            beat = _HEARTBEAT if self._under_way else b": heartbeat\nid: %d\n\n" % (self._position or 0)
            for group in self._groups.values():
                for client in group.clients:
                    if client.number % _BEATS == turn and now - client.put_at > self._pace.heartbeat_seconds / 2:
                        client.put([beat])


class _Paged(msgspec.Struct):
    """A long batch that is being handed out, and behind which of its rows."""

    batch: StoredBatch
    after: tuple[datetime, str] | None = None


class _Group:
    """Those who wish the same. ``through`` is the last place in a long batch that they were given anything of."""

    __slots__ = ("clients", "clue", "through", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.clue = _clue(wish)
        self.clients: set[_Client] = set()
        self.through = Place(0)


# By which a group is found, the ones first that say the most. An entity's type alone would say little.
_TELLING = {
    "id": Key.ID,
    "request_id": Key.REQUEST,
    "trace_id": Key.TRACE,
    "caused_by": Key.CAUSED_BY,
    "entity_id": Key.ENTITY,
    "session_id": Key.SESSION,
    "actor_id": Key.ACTOR,
    "tenant_id": Key.TENANT,
}


class _Index:
    """The groups by what a row must have for them: thousands of them each want an entity or an actor of their own."""

    def __init__(self) -> None:
        self._all: set[_Group] = set()
        self._by: dict[str, dict[str, set[_Group]]] = {}

    def add(self, group: _Group) -> None:
        """Find the group from now on."""
        if group.clue is None:
            self._all.add(group)
            return
        column, values = group.clue
        of_column = self._by.setdefault(column, {})
        for value in values:
            of_column.setdefault(value, set()).add(group)

    def remove(self, group: _Group) -> None:
        """Find it no more."""
        if group.clue is None:
            self._all.discard(group)
            return
        column, values = group.clue
        of_column = self._by[column]
        for value in values:
            of_column[value].discard(group)
            if not of_column[value]:
                del of_column[value]
        if not of_column:
            del self._by[column]

    def sort(self, rows: Sequence[StoredActivity]) -> list[tuple[_Group, Sequence[StoredActivity]]]:
        """Each group with the rows that it may want, in their order; groups for which there is none are left out."""
        found: dict[_Group, list[StoredActivity]] = {}
        for column, of_column in self._by.items():
            for row in rows:
                for group in of_column.get(getattr(row, column), ()):
                    found.setdefault(group, []).append(row)
        sorted_out: list[tuple[_Group, Sequence[StoredActivity]]] = [(group, rows) for group in self._all]
        sorted_out.extend(found.items())
        return sorted_out


def _clue(wish: Wish) -> tuple[str, frozenset[str]] | None:
    """A column in which a row must have one of these values to be wished for; None where the query names none."""
    for column, key in _TELLING.items():
        if column == "tenant_id" and wish.tenant is not None:
            return column, frozenset([wish.tenant])
        for term in wish.query.terms:
            if term.key is key and not term.negated:
                values = [_value(value) for value in term.values]
                if None not in values:
                    return column, frozenset(value for value in values if value is not None)
    return None


def _value(value: object) -> str | None:
    match value:
        case Exact(text=text):
            return text
        case Thing(id=str(id), prefix=False):
            return id
        case _:
            return None


class _Client:
    """One who listens, and what waits for it."""

    __slots__ = (
        "_bound",
        "_pieces",
        "_send",
        "_size",
        "_waiting",
        "ended",
        "fallen_to",
        "number",
        "put_at",
        "renewed_at",
        "sending_since",
        "sent_at",
        "task",
        "wish",
    )

    def __init__(self, wish: Wish, send: Send, pace: Pace, task: asyncio.Task[Any]) -> None:
        self.wish = wish
        self.task = task
        self.sending_since: float | None = None
        self.number = random.randrange(_BEATS)
        self.ended: Ended | None = None
        self.fallen_to: Place | None = None
        self.put_at = self.sent_at = time.monotonic()
        # Not all at once, although all may have come at once.
        self.renewed_at = self.sent_at + pace.renew_seconds * random.uniform(0.8, 1)
        self._send = send
        self._bound = pace.buffer_bytes
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._waiting: asyncio.Future[None] | None = None

    def put(self, pieces: Sequence[bytes]) -> bool:
        """Let these wait to be sent; False, and nothing is taken, when too much waits."""
        size = sum(map(len, pieces))
        if self._size and self._size + size > self._bound:
            return False
        self._pieces.extend(pieces)
        self._size += size
        self.put_at = time.monotonic()
        self._wake()
        return True

    def end(self, reason: Ended) -> None:
        """End the stream; who is slow gets nothing of what waits."""
        if self.ended is None:
            self.ended = reason
        if reason is Ended.SLOW:
            self._pieces.clear()
            if self.sending_since is not None:
                self.task.cancel()  # follow() knows why
        self._wake()

    def fall_to(self, place: Place) -> None:
        """Let the client read on by itself from there, once it has what waits."""
        self.fallen_to = place
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def flush(self) -> None:
        """Send what waits and what comes, until the stream ends or the client has fallen behind."""
        while True:
            while self._pieces:
                await self.send(self._take())
            if self.ended is not None or self.fallen_to is not None:
                return
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting

    def _take(self) -> bytes:
        """What waits, as much as is well sent at once."""
        pieces = self._pieces
        piece = pieces.popleft()
        size = len(piece)
        if pieces and size + len(pieces[0]) <= _PIECE_BYTES:
            taken = [piece]
            while pieces and size + len(pieces[0]) <= _PIECE_BYTES:
                taken.append(pieces.popleft())
                size += len(taken[-1])
            piece = b"".join(taken)
        self._size -= size
        return piece

    async def send(self, data: bytes) -> None:
        """Send this now; who does not take it is cancelled after a while."""
        self.sending_since = time.monotonic()
        await self._send(data)
        self.sent_at = self.sending_since
        self.sending_since = None


class _Recent:
    """The newest batches that were handed out, without a gap, up to the reader's place."""

    def __init__(self) -> None:
        self._batches: deque[StoredBatch] = deque(maxlen=_RECENT_BATCHES)

    def add(self, batch: StoredBatch) -> None:
        """Take the next one; one that is known already changes nothing."""
        if self._batches and batch.position != self._batches[-1].position + 1:
            if batch.position == self._batches[-1].position:
                return
            self._batches.clear()
        self._batches.append(batch)

    def clear(self) -> None:
        """Begin anew."""
        self._batches.clear()

    def behind(self, position: int) -> list[StoredBatch] | None:
        """All that came behind a position; None where not all of that is known any more."""
        oldest = datetime.now(UTC) - timedelta(seconds=_RECENT_SECONDS)
        while self._batches and self._batches[0].written_at < oldest:
            self._batches.popleft()
        if not self._batches or not self._batches[0].position - 1 <= position <= self._batches[-1].position:
            return None
        return list(islice(self._batches, position + 1 - self._batches[0].position, None))


class _Shelved(msgspec.Struct):
    """What a tenant (or everybody) sees of a batch, how much room it takes, and since when it lies there."""

    rows: list[StoredActivity]
    size: int
    since: float


class _Shelf:
    """What was read of late, by tenant and position, and each row as it is sent: read once, written once.

    Who can see a row was decided by the store when it was read for that tenant; nobody is given another's.
    """

    def __init__(self, bound: int, encode: Encode) -> None:
        self._bound = bound
        self._encode = encode
        self._size = 0
        self._shelved: OrderedDict[tuple[str | None, int], _Shelved] = OrderedDict()
        # By all that makes a row the one it is: its id alone anybody may give to a row of his own.
        self._frames: OrderedDict[tuple[int, datetime, str], bytes] = OrderedDict()
        self._frames_size = 0

    def add(self, tenant: str | None, batches: Sequence[StoredBatch], rows: Sequence[StoredActivity]) -> None:
        """Keep what these batches hold; what was not asked for longest makes room."""
        found: dict[int, list[StoredActivity]] = {batch.position: [] for batch in batches}
        for row in rows:
            found[row.position].append(row)
        now = time.monotonic()
        for position, of_batch in found.items():
            self._remove((tenant, position))
            size = _ROW_BYTES + sum(map(_room, of_batch))
            self._shelved[tenant, position] = _Shelved(of_batch, size, now)
            self._size += size
        while self._size > self._bound:
            self._remove(next(iter(self._shelved)))

    def find(self, tenant: str | None, position: int) -> list[StoredActivity] | None:
        """What a batch holds for this tenant, where it was read of late."""
        shelved = self._shelved.get((tenant, position))
        if shelved is None:
            return None
        if time.monotonic() - shelved.since > _RECENT_SECONDS:
            self._remove((tenant, position))
            return None
        self._shelved.move_to_end((tenant, position))
        return shelved.rows

    def frame(self, row: StoredActivity) -> bytes:
        """The row as it is sent."""
        key = row.position, row.occurred_at, row.id
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = _frame(row, self._encode(row))
            self._frames_size += len(frame)
            while self._frames_size > self._bound:
                self._frames_size -= len(self._frames.popitem(last=False)[1])
        return frame

    def clear(self) -> None:
        """Forget everything."""
        self._shelved.clear()
        self._frames.clear()
        self._size = self._frames_size = 0

    def _remove(self, key: tuple[str | None, int]) -> None:
        if (shelved := self._shelved.pop(key, None)) is not None:
            self._size -= shelved.size


_ROW_BYTES = 1_000


def _room(row: StoredActivity) -> int:
    """About what a row takes of memory."""
    return _ROW_BYTES + len(row.before or "") + len(row.after or "") + len(row.metadata or "")


class _Walk:
    """A client's own way through the store, a page at a time; ``place`` is behind what it was given.

    The connection is given back after each page, so that nobody waits for a client that takes his time.
    """

    def __init__(self, wish: Wish, place: Place, reading: Reading, pace: Pace, recent: _Recent, shelf: _Shelf) -> None:
        self.place = place
        self._wish = wish
        self._clue = _clue(wish)
        self._reading = reading
        self._pace = pace
        self._recent = recent
        self._shelf = shelf
        self._ahead: deque[StoredBatch] = deque()
        self._inside: _Paged | None = None

    @property
    def before(self) -> int:
        """The position up to which nothing more is wanted."""
        return self.place.position - (self.place.activity is not None)

    async def step(self, until: int) -> list[bytes]:
        """The next of what is wished for, of batches up to this position, as it is sent.

        Raises _GoneError where it is not there any more.
        """
        rows = await self._read(until)
        if self._clue is not None:
            column, values = self._clue
            rows = [row for row in rows if getattr(row, column) in values]
        return [self._shelf.frame(row) for row in rows if _is_wanted(self._wish, row)]

    async def _read(self, until: int) -> Sequence[StoredActivity]:
        if self._inside is not None:
            return await self._page_on(self._inside)
        if not self._ahead:
            await self._look_ahead(until)
        if self.place.activity is not None:
            return await self._enter(self._ahead.popleft(), self.place.activity)
        run = next(_runs(self._ahead, self._pace))
        for _ in run:
            self._ahead.popleft()
        if run[0].rows > self._pace.whole_rows:
            self._inside = _Paged(run[0])
            return await self._page_on(self._inside)
        rows = await self._read_whole(run)
        self.place = Place(run[-1].position)
        return rows

    async def _look_ahead(self, until: int) -> None:
        before = self.before
        batches = self._recent.behind(before)
        if not batches:
            async with self._reading(None) as db:
                bounds = await read_feed_bounds(db)
                batches = await read_batches(db, before, limit=_BATCHES)
            if before < bounds.start or not batches or not _follow_each_other(before, batches):
                raise _GoneError(Resync.EXPIRED)
        self._ahead.extend(batch for batch in batches if batch.position <= until)

    async def _read_whole(self, run: Sequence[StoredBatch]) -> list[StoredActivity]:
        tenant = self._wish.tenant
        found = {batch.position: self._shelf.find(tenant, batch.position) for batch in run}
        missing = [batch for batch in run if found[batch.position] is None]
        if missing:
            async with self._reading(tenant) as db:
                read = await read_feed_rows(db, missing)
            self._shelf.add(tenant, missing, read)
            if len(missing) == len(run):
                return read
            for row in read:
                rows = found[row.position]
                if rows is None:
                    rows = found[row.position] = []
                rows.append(row)
        return [row for rows in found.values() for row in rows or ()]

    async def _enter(self, batch: StoredBatch, activity: str) -> Sequence[StoredActivity]:
        """Go on in the midst of a batch."""
        if batch.rows > self._pace.whole_rows:
            async with self._reading(self._wish.tenant) as db:
                moment = await read_moment_in_batch(db, batch, activity)
            if moment is None:
                raise _GoneError(Resync.UNKNOWN)
            self._inside = _Paged(batch, (moment, activity))
            return await self._page_on(self._inside)
        rows = await self._read_whole([batch])
        for number, row in enumerate(rows):
            if row.id == activity:
                self.place = Place(batch.position)
                return rows[number + 1 :]
        raise _GoneError(Resync.UNKNOWN)

    async def _page_on(self, inside: _Paged) -> Sequence[StoredActivity]:
        async with self._reading(self._wish.tenant) as db:
            rows = await read_batch_page(db, inside.batch, after=inside.after, rows=self._pace.page_rows)
        if len(rows) < self._pace.page_rows:
            self._inside = None
            self.place = Place(inside.batch.position)
        else:
            inside.after = rows[-1].occurred_at, rows[-1].id
            self.place = Place(inside.batch.position, rows[-1].id)
        return rows


def _is_wanted(wish: Wish, row: StoredActivity) -> bool:
    """Whether a row is wished for; the tenant is looked at whoever read it."""
    return (wish.tenant is None or row.tenant_id == wish.tenant) and (not wish.query.terms or wish.query.matches(row))


def _follow_each_other(after: int, batches: Sequence[StoredBatch]) -> bool:
    return batches[-1].position == after + len(batches)


def _runs(batches: Iterable[StoredBatch], pace: Pace) -> Iterator[list[StoredBatch]]:
    """The batches in runs that are read at once: no more rows than a page, and near each other in time."""
    run: list[StoredBatch] = []
    rows = 0
    for batch in batches:
        if run:
            first = min(run[0].first_at, batch.first_at)
            apart = (max(run[-1].last_at, batch.last_at) - first).total_seconds()
            if rows + batch.rows > pace.page_rows or apart > _TOGETHER_SECONDS:
                yield run
                run, rows = [], 0
        run.append(batch)
        rows += batch.rows
    if run:
        yield run


def _frame(activity: StoredActivity, encoded: bytes) -> bytes:
    """An activity as an event of the stream. JSON as it was stored may have line ends between its tokens."""
    if b"\n" in encoded or b"\r" in encoded:
        encoded = encoded.replace(b"\n", b" ").replace(b"\r", b" ")
    return b"id: %d-%s\nevent: activity\ndata: %s\n\n" % (activity.position, activity.id.encode(), encoded)


def _pieces(frames: Sequence[bytes]) -> Iterator[bytes]:
    """The frames together, as much as is well sent at once."""
    some: list[bytes] = []
    size = 0
    for frame in frames:
        if some and size + len(frame) > _PIECE_BYTES:
            yield b"".join(some)
            some, size = [], 0
        some.append(frame)
        size += len(frame)
    if some:
        yield b"".join(some)


_WORDS = {
    Resync.EXPIRED: "the store does not keep what followed {after} any more (retention)",
    Resync.BEHIND: "{after} is too far behind to be read through this stream",
    Resync.UNKNOWN: "the store does not know {after}: it is another one, was restored, or lost that day to retention",
}


def _resync(reason: Resync, *, after: Place, position: int, oldest: int) -> bytes:
    """Tell a client that it misses something, and what to do."""
    data = {
        "reason": reason,
        "message": _WORDS[reason].format(after=f"place {after}"),
        "remedy": f"load what you show anew from /v1/activities; this stream goes on behind position {position}",
        "after": str(after),
        "position": position,
        "oldest": oldest,
    }
    return b"id: %d\nevent: resync\ndata: %s\n\n" % (position, msgspec.json.encode(data))
