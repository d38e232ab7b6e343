"""From the queue to the spool: redacted, encoded, and committed in groups, by one thread of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

import msgspec

from afterwrite.recorder.encode import clean_text
from afterwrite.recorder.options import Durability, Options, Overflow
from afterwrite.recorder.redact import Redactor
from afterwrite.recorder.spool import (
    CorruptError,
    Made,
    MemorySpool,
    SpoolError,
    SpoolFile,
    keep_for_ever,
    measure_others,
)

log = logging.getLogger(__name__)

_SPOOL = Durability.SPOOL
GROUP_SECONDS = 0.005
# A chunk is what one row of the spool holds, and the least that is delivered at once.
_CHUNK_EVENTS, _CHUNK_BYTES = 500, 1 << 20
_GROUP_EVENTS = 5_000
_IDLE_SECONDS = 1.0
_FULL_SECONDS = 0.05
_LOOK_SECONDS = 1.0
_REOPEN_SECONDS = 5.0
_MOST_STRETCHES = 1_000
_TOLD_SECONDS = 60.0
_RETRY_SECONDS = 0.5
_LEAST_CLOSE_SECONDS = 0.5
# What an event takes in memory beside its metadata.
EVENT_BYTES = 400


class DropReason(StrEnum):
    """Why an event is not kept."""

    QUEUE_FULL = "queue_full"
    SPOOL_FULL = "spool_full"
    MEMORY_FULL = "memory_full"
    DISK = "disk"
    UNUSABLE = "unusable"
    REFUSED = "refused"
    EXPIRED = "expired"
    LOST = "lost"
    CLOSED = "closed"

    # An Enum's own is a call of Python, in the middle of counting one.
    __hash__ = str.__hash__


class _Bell:
    """Wakes the one that waits. Unlike an Event's, its lock is never held: a signal's handler may ring it in a ring."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        with suppress(RuntimeError):  # it has rung already, and nobody came
            self._silence.release()

    def wait(self, seconds: float) -> None:
        """Until it rings, or has rung since the last time."""
        self._silence.acquire(timeout=seconds)


class Committer:
    """The queue of one process, and the thread that empties it into the spool.

    Where the disk takes nothing, events are kept in memory and delivered from there, up to ``queue_bytes``.
    """

    def __init__(self, options: Options, folder: Path, destination: str, redactor: Redactor) -> None:
        self.folder, self.destination = folder, destination
        self.memory = MemorySpool(options.queue_bytes)
        self.own: SpoolFile | None = None
        self.dropped: Counter[DropReason] = Counter()
        self.mended = self.redacted = self.corrupt_files = self._turned_away = 0
        # How many events were accepted into the queue, and how many of those have left it.
        self.accepted = self.committed_place = 0
        self.trouble: str | None = None
        self._options = options
        self._most_events, self._most_bytes = options.queue_events, options.queue_bytes
        self._redactor = redactor
        self._pid = os.getpid()
        # Reentrant: a signal's handler, or a finalizer that the collector runs, may record in the middle of record().
        self._lock = threading.RLock()
        # Held while events go from one account to the next, so that stats() finds each of them once.
        self._moving = threading.RLock()
        # What is to be kept in memory alone stands in it as a tuple.
        self._queue: deque[Made | tuple[Made]] = deque()
        self._bytes = 0
        self._in_flight = 0
        self._sync_place = 0
        self._no_room: DropReason | None = None
        self._shut: DropReason | None = None
        self._start_again: Callable[[], None] | None = None
        self._start_again_at = 0.0
        self._idle = False
        self._bell = _Bell()
        self._room = threading.Condition(threading.Lock())
        self._waiters: list[tuple[int, Callable[[bool], None]]] = []
        # Stretches of places whose events are in memory alone.
        self._volatile: deque[tuple[int, int]] = deque(maxlen=_MOST_STRETCHES)
        self._others = 0
        self._noted = 0
        self._look_at = self._reopen_at = self._retry_at = self._told_at = 0.0
        self._told_dropped = 0
        self._told_dropped_at = 0.0
        self._notify: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._close_by: float | None = None

    # What an application's threads call.

    def put(self, event: Made, size: int, durability: Durability) -> int:
        """Accept an event; gives its place in the queue, 0 where the spool will not have it."""
        # The usual case in one piece, without calls: every event pays for it.
        with self._lock:
            if (
                durability is _SPOOL
                and self._shut is None
                and len(self._queue) < self._most_events
                and self._bytes + size <= self._most_bytes
            ):
                # Counted first: what a signal's handler raises (a time limit, Ctrl-C) comes after a call, and the
                # account would not have what the queue has.
                self._bytes += size
                self.accepted = place = self.accepted + 1
                self._queue.append(event)
                if self._idle:
                    self._bell.ring()
                return place
        return self._put_unusually(event, size, durability)

    def _put_unusually(self, event: Made, size: int, durability: Durability) -> int:
        if self._start_again is not None and (again := self._take_turn()) is not None:
            again()
        deadline = time.monotonic() + self._options.block_seconds
        blocks = self._options.overflow is Overflow.BLOCK and not is_in_loop()
        while True:
            with self._lock:
                if self._has_room(size):
                    return self._append(event, size, durability)
                left = deadline - time.monotonic()
                if not blocks or left <= 0 or self._shut is not None:
                    self.drop(self._shut or self._no_room or DropReason.QUEUE_FULL)
                    return 0
            self._bell.ring()
            with self._room:
                self._room.wait(min(left, _FULL_SECONDS))

    def drop(self, reason: DropReason) -> None:
        """Count an event that is not accepted."""
        with self._lock:
            self.dropped.setdefault(reason, 0)
            # No call in here, for a signal's handler that records would come between.
            self._turned_away += 1
            self.dropped[reason] += 1

    @property
    def recorded(self) -> int:
        """How many were recorded, accepted or not."""
        return self.accepted + self._turned_away

    def refuse(self, reason: DropReason = DropReason.CLOSED, start_again: Callable[[], None] | None = None) -> None:
        """Take nothing from here on, or until what is called once a second, as long as events come, says ``accept``."""
        self._shut, self._start_again, self._start_again_at = reason, start_again, time.monotonic() + _LOOK_SECONDS

    def _take_turn(self) -> Callable[[], None] | None:
        with self._lock:
            if time.monotonic() < self._start_again_at:
                return None
            self._start_again_at = time.monotonic() + _LOOK_SECONDS
            return self._start_again

    def accept(self) -> None:
        """Take events again."""
        self._shut = self._start_again = None

    def wait(self, place: int, timeout: float | None) -> bool:
        """Block until what has this place left the queue; whether it is on the disk."""
        if place == 0 or self._pid != os.getpid():
            return False
        if place > self.committed_place:
            done = threading.Event()
            if self._ask(place, lambda _: done.set()) and not done.wait(timeout):
                return False
        return self._is_kept(place)

    async def committed(self, place: int) -> bool:
        """``wait`` for a task of an event loop."""
        if place == 0 or self._pid != os.getpid():
            return False
        if place > self.committed_place:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[bool] = loop.create_future()

            def tell(kept: bool) -> None:
                with suppress(RuntimeError):  # its loop may be closed by now
                    loop.call_soon_threadsafe(lambda: done.done() or done.set_result(kept))

            if self._ask(place, tell):
                return await done
        return self._is_kept(place)

    @property
    def queued(self) -> int:
        return len(self._queue) + self._in_flight

    @contextmanager
    def account(self) -> Generator[None]:
        """Nothing moves in here."""
        with self._moving, self._lock:
            yield

    def measure(self) -> tuple[int, int, float | None]:
        """How many events wait in spool and memory, how many bytes on the disk, and since when the oldest."""
        own = self.own
        events = self.memory.events + (own.events if own else 0)
        oldest = min(filter(None, (self.memory.oldest, own.oldest if own else None)), default=None)
        return events, own.bytes if own else 0, oldest

    def read_refused(self) -> list[tuple[str, str, bytes]]:
        with suppress(SpoolError):
            return self.own.read_refused() if self.own else []
        return []

    def start(self, notify: Callable[[], None]) -> None:
        """Start the thread, where there is none; ``notify`` is called when there is something new to deliver."""
        self._notify = notify
        if self._thread is not None and self._thread.ident is not None:
            return
        self._thread = threading.Thread(target=self._run, name="afterwrite spool", daemon=True)
        self._thread.start()

    def close(self, deadline: float) -> None:
        """Empty the queue into the spool and end the thread; from here on everything is dropped."""
        self.refuse(DropReason.CLOSED)
        self._close_by = deadline
        self._bell.ring()
        if self._thread and self._thread.ident and self._thread is not threading.current_thread():
            # A commit that has begun is worth waiting for, also where there was no time at all.
            self._thread.join(max(_LEAST_CLOSE_SECONDS, deadline - time.monotonic()))

    def finish(self) -> int:
        """After the courier has ended: leave the file to others; how many events it holds."""
        with self.account():
            left = len(self._queue)
            self._queue.clear()
            self.dropped[DropReason.CLOSED] += left + self.memory.clear()
            if not self.dropped[DropReason.CLOSED]:
                del self.dropped[DropReason.CLOSED]
        own = self.own
        if own is None:
            return 0
        left = own.events
        own.close()
        return left

    def abandon(self) -> None:
        """In a forked child: this is the parent's, with all that hangs on it, and closing any of it would be wrong."""
        keep_for_ever(self)

    # What the courier calls.

    @contextmanager
    def settling(self) -> Generator[None]:
        """Mades go from the spool to another account in here."""
        with self._moving:
            yield

    def lose(self, spool: SpoolFile, error: SpoolError) -> None:
        """The own file is not there any more, or is broken: set it aside, and begin another."""
        with self.account():
            if spool is not self.own:
                return
            self.own = None
            self._reopen_at = 0.0
            self.dropped[DropReason.LOST] += spool.events
            if not spool.events:
                del self.dropped[DropReason.LOST]
            if isinstance(error, CorruptError):
                self.corrupt_files += 1
        self.tell(f"{error}; it held {spool.events:,} events, and another one is begun")
        spool.set_aside()

    def count_dropped(self, reason: DropReason, events: int) -> None:
        with self._lock:
            if events:
                self.dropped[reason] += events

    def tell(self, words: str) -> None:
        """Say what is wrong, once a minute."""
        self.trouble = words
        now = time.monotonic()
        if now >= self._told_at:
            self._told_at = now + _TOLD_SECONDS
            log.warning("%s", words)

    # What its own thread does.

    def _has_room(self, size: int) -> bool:
        waiting = len(self._queue)
        return self._shut is None and (
            (waiting < self._most_events and self._bytes + size <= self._most_bytes) or waiting == 0
        )

    def _append(self, event: Made, size: int, durability: Durability) -> int:
        self._bytes += size
        self.accepted = place = self.accepted + 1
        if durability is Durability.SYNC:
            self._sync_place = place
        if durability is Durability.MEMORY:
            self._queue.append((event,))
            place = 0
        else:
            self._queue.append(event)
        if self._idle:
            self._bell.ring()
        return place

    def _ask(self, place: int, tell: Callable[[bool], None]) -> bool:
        """Have this called when the place is committed; False when it is already, or nobody will commit it."""
        with self._lock:
            ended = self._thread is not None and self._thread.ident is not None and not self._thread.is_alive()
            if place <= self.committed_place or ended:
                return False
            self._waiters.append((place, tell))
        self._bell.ring()
        return True

    def _is_kept(self, place: int) -> bool:
        with self._lock:
            return place <= self.committed_place and not any(first <= place <= last for first, last in self._volatile)

    def _run(self) -> None:
        while True:
            try:
                self._gather()
                self._look()
                moved = self._commit()
            except Exception:
                # Whatever it was: a thread that ends here would end all recording.
                log.exception("events could not be spooled")
                moved = False
            with self._room:
                self._room.notify_all()
            if self._close_by is not None and (not self._queue or time.monotonic() > self._close_by):
                break
            if not moved and self._queue:
                time.sleep(_FULL_SECONDS)
        self._tell_waiters(all_of_them=True)

    def _gather(self) -> None:
        """Wait for the first event, and for those that come within a group's time."""
        if not self._queue and self._close_by is None:
            self._idle = True
            # What was put before it was said that we wait would wake nobody.
            if not self._queue and not self._waiters:
                self._bell.wait(_IDLE_SECONDS)
            self._idle = False
        self._bell.wait(0)
        if self._queue and not self._waiters and self._close_by is None:
            self._bell.wait(GROUP_SECONDS)

    def _look(self) -> None:
        """Once a second: is the file still there, may we open one, how much do other processes keep."""
        now = time.monotonic()
        if self.own is None and now >= self._reopen_at and (self._queue or self.accepted):
            self._reopen_at = now + _REOPEN_SECONDS
            try:
                self.own = SpoolFile.create(self.folder, self.destination)
                self._noted = 0
                self.trouble = None
            except SpoolError as error:
                self.tell(f"{error}; until then events are kept in memory alone")
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        self._tell_dropped(now)
        self._others = measure_others(self.folder, self.own)
        own = self.own
        if own is not None and not own.is_there():
            self.lose(own, SpoolError(f"{own.path} is gone", lost=True))
            self._look()

    def _tell_dropped(self, now: float) -> None:
        with self._lock:
            total, dropped = self.dropped.total(), dict(self.dropped)
        if total > self._told_dropped and now >= self._told_dropped_at:
            self._told_dropped, self._told_dropped_at = total, now + _TOLD_SECONDS
            log.warning("activities are dropped, so far: %s", describe_dropped(dropped))

    def _commit(self) -> bool:
        """Bring a group into the spool, or into memory; False when neither has room."""
        reason = self._find_no_room()
        if reason is not None and self._queue:
            self._no_room = reason
            self._tell_waiters(all_of_them=True)  # who waits for the disk is not held up by it
            return False
        self._no_room = None
        with self._lock:
            count = min(len(self._queue), _GROUP_EVENTS)
            sync = self._sync_place > self.committed_place
            pop = self._queue.popleft
            items = [pop() for _ in range(count)]
            self._in_flight = count
        if items:
            try:
                self._commit_group(items, sync=sync)
            finally:
                self._end_group(count, sum(map(size_of, items)))
            if self._notify:
                self._notify()
        self._tell_waiters()
        return True

    def _find_no_room(self) -> DropReason | None:
        own = self.own
        if own is not None and own.bytes + self._others >= self._options.spool_bytes:
            return DropReason.SPOOL_FULL
        disk = own is not None and time.monotonic() >= self._retry_at
        return None if disk or not self.memory.full else DropReason.DISK

    def _commit_group(self, items: list[Made | tuple[Made]], *, sync: bool) -> None:
        events = [item for item in items if not isinstance(item, tuple)]
        passing = [item[0] for item in items if isinstance(item, tuple)]
        chunks, passing_chunks = self._encode(events), self._encode(passing)
        with self._moving:
            if passing_chunks and self.memory.full:
                self._count(DropReason.MEMORY_FULL, passing_chunks)
            else:
                self.memory.append(passing_chunks)
            if chunks and not self._keep(chunks, sync=sync):
                self.memory.append(chunks)
                self._note_volatile(len(items))
            self._in_flight -= sum(count for count, _ in (*chunks, *passing_chunks))

    def _end_group(self, count: int, size: int) -> None:
        with self.account():
            if self._in_flight:  # it could not be encoded, or something went wrong that should not
                self.dropped[DropReason.UNUSABLE] += self._in_flight
                self._note_volatile(count)
            self._in_flight = 0
            self.committed_place += count
            self._bytes -= size

    def _keep(self, chunks: list[tuple[int, bytes]], *, sync: bool) -> bool:
        own = self.own
        now = time.monotonic()
        if own is None or now < self._retry_at:
            return False
        dropped = sum(self.dropped.values())
        noted = {reason.value: count for reason, count in self.dropped.items()} if dropped != self._noted else {}
        try:
            own.append(chunks, sync=sync, dropped=noted)
        except SpoolError as error:
            if error.lost or isinstance(error, CorruptError):
                self.lose(own, error)
            else:
                self._retry_at = now + _RETRY_SECONDS
                self.tell(f"{error}; until then events are kept in memory alone")
            return False
        self._noted = dropped
        self.trouble = None
        return True

    def _encode(self, events: list[Made]) -> list[tuple[int, bytes]]:
        """Chunks of these without their secrets."""
        events = self._redact(events)
        chunks: list[tuple[int, bytes]] = []
        for first in range(0, len(events), _CHUNK_EVENTS):
            self._encode_chunk(events[first : first + _CHUNK_EVENTS], chunks)
        return chunks

    def _encode_chunk(self, events: Sequence[Made], chunks: list[tuple[int, bytes]]) -> None:
        try:
            body = _encoder.encode(events)
        except Exception as error:
            # Only what did not come through the calls' own cleaning gets here: a context of other things than texts.
            if len(events) == 1:
                body = _encode_odd(events[0])
                if body is None:
                    log.warning("an event could not be encoded: %s", error)
                    return
            else:
                body = b""
        if len(events) > 1 and not 0 < len(body) <= _CHUNK_BYTES:
            half = len(events) // 2
            self._encode_chunk(events[:half], chunks)
            self._encode_chunk(events[half:], chunks)
        else:
            chunks.append((len(events), body))

    def _redact(self, events: list[Made]) -> list[Made]:
        texts = [event.summary for event in events if event.summary is not None]
        together = b"\n".join([event.metadata for event in events])
        if texts:
            together += "\n".join(texts).encode(errors="replace")
        return list(map(self._redact_one, events)) if self._redactor.may_hold_secrets(together) else events

    def _redact_one(self, event: Made) -> Made:
        raw, found = self._redactor.redact(bytes(event.metadata)) if bytes(event.metadata) else (b"", 0)
        summary, found_there = (None, 0) if event.summary is None else self._redactor.redact_text(event.summary)
        if not found + found_there:
            return event
        self.redacted += 1
        return msgspec.structs.replace(event, summary=summary, **({"metadata": msgspec.Raw(raw)} if found else {}))

    def _count(self, reason: DropReason, chunks: list[tuple[int, bytes]]) -> None:
        self.count_dropped(reason, sum(count for count, _ in chunks))

    def _note_volatile(self, count: int) -> None:
        """The next so many places are not on the disk."""
        first, last = self.committed_place + 1, self.committed_place + count
        if self._volatile and self._volatile[-1][1] + 1 >= first:
            first = self._volatile.pop()[0]
        self._volatile.append((first, last))

    def _tell_waiters(self, *, all_of_them: bool = False) -> None:
        with self._lock:
            told = [each for each in self._waiters if all_of_them or each[0] <= self.committed_place]
            if not told:
                return
            self._waiters = [each for each in self._waiters if each not in told]
        for place, tell in told:
            tell(self._is_kept(place))


def describe_dropped(dropped: Mapping[DropReason, int]) -> str:
    """``queue_full 1,200, expired 3``"""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))


def size_of(item: Made | tuple[Made]) -> int:
    """What it takes in memory, about."""
    event = item[0] if isinstance(item, tuple) else item
    return EVENT_BYTES + len(bytes(event.metadata))


def is_in_loop() -> bool:
    """Whether this thread runs an event loop, which must not be held up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_encoder = msgspec.json.Encoder()
_TEXTS = tuple(
    name
    for name in Made.__struct_fields__
    if name not in {"occurred_at", "kind", "outcome", "severity", "duration_ms", "metadata"}
)


def _encode_odd(event: Made) -> bytes | None:
    """One event as an array, whatever somebody put into its fields; None where even that cannot be."""
    given = {name: getattr(event, name) for name in _TEXTS}
    texts = {name: None if value is None else clean_text(value) for name, value in given.items()}
    try:
        return _encoder.encode([msgspec.structs.replace(event, **texts)])
    except Exception:
        return None
