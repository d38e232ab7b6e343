"""From the spool to the sink: a thread with an event loop of its own.

::

    own file ─┐                     write ──▶ receipt ──▶ settle: deleted from the spool
    memory   ─┼─▶ a batch a source ─┤
    orphans  ─┘                     └ refused ──▶ halves ──▶ the one that is: aside, counted

A sink that cannot be reached is tried again, each time later, and with chance in it, so that a fleet does not come back
all at once. What it does not take for what it says is found by halving, so that it does not hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol, TypeVar

import msgspec

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError
from afterwrite.record import Batch, Receipt
from afterwrite.recorder.commit import Committer, DropReason
from afterwrite.recorder.options import Options
from afterwrite.recorder.spool import (
    NOWHERE,
    Chunk,
    CorruptError,
    Event,
    Refusal,
    Spool,
    SpoolError,
    SpoolFile,
    decode_chunk,
    find_orphans,
    salvage,
    without_absent,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_BATCH_BYTES = 8 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
_LONGEST_ASKED = 300.0
_IDLE_SECONDS = 1.0
_ORPHAN_SECONDS = 2.0
_MOST_ORPHANS = 4
_TOLD_SECONDS = 60.0
_TRIED_BATCHES = 3
_LEAST_CLOSE_SECONDS = 0.2
_LOOP_PAUSE = 0.5
# Data exceptions, violated constraints, limits of the server: what the same event will meet again.
_REFUSING = frozenset({"22", "23", "54"})


class NotTaken(AfterwriteError):  # noqa: N818 - the sentence that it says
    """The sink stored all of a batch but these: its reasons, by id."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(f"{len(reasons):,} activities were not taken")
        self.reasons = reasons


class Unstorable(AfterwriteError):  # noqa: N818 - the sentence that it says
    """The sink stored nothing of a batch, for what stands in it; without it, or in parts, it may go."""


class LaterError(AfterwriteError):
    """The sink asks to be left alone for so long."""

    def __init__(self, message: str, *, seconds: float | None = None) -> None:
        super().__init__(message, remedy="nothing needs to be done: what waits is sent later")
        self.seconds = seconds


class EventSink(Protocol):
    """Where events go: a ``record.Sink`` is one."""

    async def write(self, batch: Batch) -> Receipt:
        """Store the batch; what is stored already, by its id, is not stored again."""
        ...


OpenSink = Callable[[], AbstractAsyncContextManager[EventSink]]


class Courier:
    """Delivers what the committer spooled, and what processes that are gone have left."""

    def __init__(self, committer: Committer, open_sink: OpenSink | None, options: Options) -> None:
        self.stored = self.adopted = self.corrupt_files = 0
        self.trouble: str | None = None
        self._committer = committer
        self._open_sink = open_sink
        self._options = options
        self._orphans: list[SpoolFile] = []
        self._keeping: set[SpoolFile] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._idle = False
        self._hurried_until = 0.0
        self._stop_by: float | None = None
        self._progress = threading.Condition(threading.Lock())
        self._suspected = 0
        self._told_at = 0.0
        self._orphans_at = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is not None and self._thread.ident is not None:
            return
        self._thread = threading.Thread(target=self._run, name="afterwrite delivery", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        if self._idle:
            self._call(self._tell_news)

    def flush(self, deadline: float | None) -> bool:
        """Wait until all that is spooled now is delivered; without a sink, it is where it is to be."""
        if self._open_sink is None:
            return True
        committer = self._committer
        targets = [(spool, spool.last) for spool in (committer.own, committer.memory) if spool is not None]
        while True:
            waiting = [spool for spool, last in targets if spool.settled < last and not self._is_lost(spool)]
            if not waiting:
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not (self._thread and self._thread.is_alive()):
                return False
            self._hurried_until = time.monotonic() + 1.0
            self._call(self._tell_news)
            with self._progress:
                self._progress.wait(0.1 if left is None else min(left, 0.1))

    def close(self, deadline: float) -> None:
        """Deliver what can be until then, and end the thread."""
        self._stop_by = deadline
        self._call(self._tell_news)
        if self._thread and self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join(max(_LEAST_CLOSE_SECONDS, deadline - time.monotonic()))
        for orphan in self._orphans:
            orphan.close()

    def measure(self) -> tuple[int, float | None]:
        """How many events of processes that are gone wait, and since when the oldest."""
        orphans = tuple(self._orphans)
        return sum(each.events for each in orphans), min(filter(None, (each.oldest for each in orphans)), default=None)

    def _is_lost(self, spool: Spool) -> bool:
        return spool is not self._committer.memory and spool is not self._committer.own

    def _call(self, function: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(function)

    def _tell_news(self) -> None:
        if self._news is not None:
            self._news.set()

    def _run(self) -> None:
        while True:
            main = self._main()
            try:
                asyncio.run(main)
                return
            except Exception as error:
                # No loop can be had where the system has too many open files, for now.
                self._tell(error)
            finally:
                main.close()
            if self._stop_by is not None:
                return
            time.sleep(_LOOP_PAUSE)

    async def _main(self) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(_Here())
        pause = _FIRST_PAUSE
        while True:
            began = self.stored
            try:
                if self._open_sink is None:
                    await self._keep_house()
                elif await self._has_work():
                    async with self._open_sink() as sink:
                        await self._deliver(sink)
                if self._is_over():
                    return
            except Exception as error:
                self._tell(error)
                if self._stop_by is not None:
                    return  # what could not be delivered is in the spool
                if self.stored > began:
                    pause = _FIRST_PAUSE
                asked = (error.seconds or 0.0) if isinstance(error, LaterError) else 0.0
                seconds = max(pause * random.uniform(0.5, 1.0), min(asked, _LONGEST_ASKED))
                await self._rest(seconds, for_news=False, patient=asked > 0)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _is_over(self) -> bool:
        """Asked to stop, and nothing left to do or no time to do it."""
        if self._stop_by is None:
            return False
        return time.monotonic() >= self._stop_by or self._next() is None or self._open_sink is None

    async def _has_work(self) -> bool:
        """Wait for something to deliver; False when asked to stop first."""
        while self._next() is None:
            if self._stop_by is not None:
                return False
            await self._rest(_IDLE_SECONDS)
            self._find_orphans()
        return True

    async def _keep_house(self) -> None:
        """Without a sink: what is too old goes."""
        while self._stop_by is None:
            for spool in (self._committer.own, self._committer.memory):
                if spool is not None:
                    self._expire(spool)
            await self._rest(_IDLE_SECONDS, for_news=False)

    async def _rest(self, seconds: float, *, for_news: bool = True, patient: bool = False) -> None:
        """Wait for that long, or for what is new or urgent; if ``patient``, for nothing but the end."""
        news = self._news
        if news is None:
            return
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._stop_by is None:
            self._idle = for_news
            if for_news and self._next() is not None:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await news.wait()
            news.clear()
            if for_news or (self._is_hurried() and not patient):
                break
        self._idle = False

    def _is_hurried(self) -> bool:
        return time.monotonic() < self._hurried_until or self._stop_by is not None

    async def _deliver(self, sink: EventSink) -> None:
        """Deliver for as long as it goes."""
        while not self._is_over():
            self._find_orphans()
            spool = self._next()
            if spool is None:
                if not await self._has_work():
                    return
                continue
            if self._expire(spool):
                continue
            await self._linger(spool)
            await self._deliver_some(sink, spool)

    def _next(self) -> Spool | None:
        """The spool whose oldest event has waited longest."""
        committer = self._committer
        spools: list[Spool] = [*self._orphans, committer.memory]
        if committer.own is not None:
            spools.append(committer.own)
        waiting = [spool for spool in spools if spool.events]
        return min(waiting, key=lambda spool: spool.oldest or 0.0) if waiting else None

    async def _linger(self, spool: Spool) -> None:
        """Let a small batch grow, unless somebody waits for it."""
        oldest = spool.oldest
        if oldest is None or spool.events >= self._options.batch_events:
            return
        # Its age is by a clock that may have been set back since.
        waited = max(0.0, time.time() - oldest)
        until = time.monotonic() + self._options.linger_seconds - waited
        while not self._is_hurried() and spool.events < self._options.batch_events:
            left = until - time.monotonic()
            if left <= 0:
                return
            await self._rest(left, for_news=False)

    async def _deliver_some(self, sink: EventSink, spool: Spool) -> None:
        try:
            chunks = spool.read(self._options.batch_events, _BATCH_BYTES)
        except SpoolError as error:
            self._lose(spool, error)
            return
        if not chunks:
            # Somebody else emptied it: nothing of ours does, so it is not what it was.
            self._lose(spool, CorruptError(f"{spool.name} has not what it should"))
            return
        events, refusals = _decode(chunks)
        for source, some in groupby(sorted(events, key=attrgetter("source")), key=attrgetter("source")):
            refusals += await self._send(sink, source, list(some))
        self._suspect(events, refusals)
        with self._committer.settling():
            # Whatever the disk says to it: it is delivered, and is not again by this process.
            refused = sum(refusal.events for refusal in refusals)
            self.stored += sum(chunk.events for chunk in chunks) - refused
            self._committer.count_dropped(DropReason.REFUSED, refused)
            if refusals:
                log.warning("%d events are not taken by the store, and set aside: %s", refused, refusals[0].reason)
            try:
                self._settle(spool, chunks, refusals)
            except SpoolError as error:
                if error.lost or isinstance(error, CorruptError):
                    self._lose(spool, error)
                else:  # it is deleted with the next ones; until then the disk holds what is delivered
                    self._committer.tell(str(error))
        self.trouble = None
        with self._progress:
            self._progress.notify_all()
        if isinstance(spool, SpoolFile) and spool is not self._committer.own and not spool.events:
            self._finish(spool)

    def _suspect(self, events: Sequence[Event], refusals: Sequence[Refusal]) -> None:
        """A sink that takes nothing of a whole batch may be at fault itself: it is asked some times more."""
        if not 1 < len(events) <= len(refusals):
            self._suspected = 0
        elif (tried := self._suspected + 1) < _TRIED_BATCHES:
            self._suspected = tried
            raise AfterwriteError(
                f"nothing of a batch of {len(events):,} is taken: {refusals[-1].reason}",
                remedy="look at the store; what it does not take at last is set aside",
            )

    def _settle(self, spool: Spool, chunks: Sequence[Chunk], refusals: Sequence[Refusal]) -> None:
        """Done with these. What is refused goes into our own file: others' are deleted, and memory keeps nothing."""
        own, left = self._committer.own, refusals
        if refusals and own is not None and spool is not own:
            with suppress(SpoolError):
                own.settle((), refusals)
                left = ()
        if left and isinstance(spool, SpoolFile) and spool is not own:
            self._keeping.add(spool)
        spool.settle(chunks, left)

    async def _send(self, sink: EventSink, source: str, events: list[Event]) -> list[Refusal]:
        """Store these; gives those that the sink does not take. Raises what may be over at another time."""
        try:
            await sink.write(Batch(source=source, activities=events, transactions=0))
        except NotTaken as error:
            return [_refusal(event, error.reasons[event.id]) for event in events if event.id in error.reasons]
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(events) == 1:
                return [_refusal(events[0], str(error))]
        else:
            return []
        half = len(events) // 2
        return [*await self._send(sink, source, events[:half]), *await self._send(sink, source, events[half:])]

    def _expire(self, spool: Spool) -> bool:
        """Drop what has waited for too long; whether there was any."""
        oldest = spool.oldest
        before = time.time() - self._options.spool_seconds
        if oldest is None or oldest >= before:
            return False
        chunks: list[Chunk] = []
        try:
            chunks = [chunk for chunk in spool.read(10_000, _BATCH_BYTES) if chunk.at < before]
            with self._committer.settling():
                self._committer.count_dropped(DropReason.EXPIRED, sum(chunk.events for chunk in chunks))
                spool.settle(chunks)
        except SpoolError as error:
            self._lose(spool, error)
        if isinstance(spool, SpoolFile) and spool is not self._committer.own and not spool.events:
            self._finish(spool)
        return bool(chunks)

    def _find_orphans(self) -> None:
        now = time.monotonic()
        own = self._committer.own
        if now < self._orphans_at or self._stop_by is not None or len(self._orphans) >= _MOST_ORPHANS:
            return
        # A disk that is too full for a file of our own may be full of theirs.
        if own is None and self._committer.trouble is None:
            return
        self._orphans_at = now + _ORPHAN_SECONDS * random.uniform(0.5, 1.5)
        committer = self._committer
        theirs = dict.fromkeys((committer.destination, NOWHERE))
        for orphan in find_orphans(committer.folder, *theirs, most=_MOST_ORPHANS - len(self._orphans)):
            try:
                orphan.open()
                if own is None and orphan.refused:
                    orphan.close()
                    continue
                dropped = orphan.read_dropped() if own is None else own.adopt(orphan)
            except SpoolError as error:
                self._lose(orphan, error)
                continue
            log.info("the spool of a process that is gone is taken over: %s, %d events", orphan.name, orphan.events)
            with committer.account():
                self._orphans.append(orphan)
                self.adopted += orphan.events + sum(dropped.values())
                for reason, events in dropped.items():
                    committer.count_dropped(_reason(reason), events)
            if not orphan.events:
                self._finish(orphan)

    def _finish(self, orphan: SpoolFile) -> None:
        """It holds nothing any more: what it had set aside is in our own."""
        if orphan in self._orphans:  # our own is none, which somebody deleted while it was delivered
            self._orphans.remove(orphan)
            if orphan in self._keeping:  # what is refused in it is for another process
                self._keeping.remove(orphan)
                orphan.close()
            else:
                orphan.delete()

    def _lose(self, spool: Spool, error: SpoolError) -> None:
        """Set a file aside that is broken; leave one that cannot be used now."""
        if spool is self._committer.own and isinstance(spool, SpoolFile):
            if error.lost or isinstance(error, CorruptError):
                self._committer.lose(spool, error)
                return
        elif isinstance(spool, SpoolFile):
            if spool in self._orphans:
                with self._committer.account():
                    self._orphans.remove(spool)
                    if isinstance(error, CorruptError) or error.lost:
                        self._committer.count_dropped(DropReason.LOST, spool.events)
                    else:  # it is as it was before it was taken over
                        self.adopted -= spool.events
            if isinstance(error, CorruptError):
                self.corrupt_files += 1
                log.warning("%s; it is set aside", error)
                spool.set_aside()
            else:
                spool.close()
            return
        raise error

    def _tell(self, error: Exception) -> None:
        """Say what is wrong, once a minute."""
        self.trouble = f"{type(error).__name__}: {error}" if not isinstance(error, AfterwriteError) else str(error)
        now = time.monotonic()
        if now >= self._told_at:
            self._told_at = now + _TOLD_SECONDS
            remedy = f"; {error.remedy}" if isinstance(error, AfterwriteError) and error.remedy else ""
            log.warning("activities cannot be delivered, and wait in the spool: %s%s", self.trouble, remedy)


class _Here(ThreadPoolExecutor):
    """What a loop gives to other threads (names to be looked up, for one), done in its own.

    This loop is alone with its one task; and Python's pools take nothing any more when the process ends, which is when
    a short program's events are to be delivered.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def is_refusal(error: Exception) -> bool:
    """Whether it is for what stands in the batch that the sink did not take it, so that trying again is no use."""
    if isinstance(error, DatabaseError):
        return not isinstance(error, ConnectionLost) and (error.sqlstate or "")[:2] in _REFUSING
    # Of Python's own errors those that a value makes: a moment that is in no year, a number that is none.
    return isinstance(error, (Unstorable, ValueError, ArithmeticError))


def _decode(chunks: Sequence[Chunk]) -> tuple[list[Event], list[Refusal]]:
    """The events, and those among them that are none: of another version of us, or by an error of ours."""
    events: list[Event] = []
    refusals: list[Refusal] = []
    for chunk in chunks:
        try:
            events += decode_chunk(chunk)
        except CorruptError:
            some, others = salvage(chunk)
            events += some
            refusals += others
    for event in events:
        if not bytes(event.metadata):  # sinks know that as None
            msgspec.structs.force_setattr(event, "metadata", None)
    return events, refusals


def _refusal(event: Event, reason: str) -> Refusal:
    return Refusal(event.id, reason, msgspec.json.encode(without_absent(event)))


def _reason(word: str) -> DropReason:
    """A reason as a file has it; that of a later version is none of ours."""
    try:
        return DropReason(word)
    except ValueError:
        return DropReason.UNUSABLE
