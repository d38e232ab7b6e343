"""The object that an application calls: it never waits for a disk or a network, and never raises into the application.

::

    record() ──▶ queue ──▶ Committer (a thread): redact, group commit ──▶ spool ──▶ Courier (a thread): sink
      │ context, id,  bounded; what has no                 │                                  │ batches, back-off
      └ metadata      room is counted                      └ each 5 ms at most                └ what is refused: aside

Threads, queue and spool belong to one process. They begin with its first event, and a forked child has none of them
until its own first event.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import logging
import os
import re
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Awaitable, Generator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import NoneType
from typing import Any

import msgspec

from afterwrite.context import Context, current
from afterwrite.errors import UsageError
from afterwrite.record import Emitted, Kind, Level, Outcome
from afterwrite.recorder import spool as spooling
from afterwrite.recorder.commit import EVENT_BYTES, Committer, DropReason, describe_dropped, is_in_loop
from afterwrite.recorder.deliver import Courier, OpenSink
from afterwrite.recorder.encode import clean_text, encode_metadata, to_milliseconds, to_moment
from afterwrite.recorder.ids import Ids, moment_of
from afterwrite.recorder.options import Durability, Options, find_folder, signing_key
from afterwrite.recorder.redact import Redactor, SecretError
from afterwrite.recorder.spool import NO_METADATA, Made

log = logging.getLogger(__name__)

_EVENT = Kind.EVENT
_STORED = Durability.STORED
_SHORT = 200
_IN_FAILED_TRANSACTION = "25P02"
_TOLD_SECONDS = 60.0
# A disk that answers nothing must not hold the application up for ever.
_SYNC_SECONDS = 30.0
_ACTION = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)*")
_CATEGORY = re.compile(r"[a-z][a-z0-9_]*")


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How this process's recorder stands. ``recorded + adopted = queued + spooled + stored + all that was dropped``.

    ``recorded`` counts calls, ``adopted`` what was found in the files of processes that are gone, ``emitted`` what went
    into a transaction's own WAL (and is in none of the others). ``stored`` counts what the sink took, also where the
    store had it already. ``dropped`` is by reason. ``mended`` and ``redacted`` were recorded, in another form.
    """

    recorded: int = 0
    adopted: int = 0
    queued: int = 0
    spooled: int = 0
    stored: int = 0
    dropped: Mapping[str, int] = {}
    emitted: int = 0
    mended: int = 0
    redacted: int = 0
    # What waits on the disk, how long the oldest of it has waited, and what stands in the way, if anything.
    spool_bytes: int = 0
    oldest_seconds: float = 0.0
    corrupt_files: int = 0
    spool_trouble: str | None = None
    delivery_trouble: str | None = None


class Recorded(msgspec.Struct, gc=False, eq=False):
    """What ``record()`` gives: the event's id, and a way to wait until it is in the spool.

    ``await`` it, or call ``wait()``: True when it outlives the process, False when it was dropped or is kept in memory
    alone. For an event on an asynchronous connection, awaiting it is what sends it.
    """

    id: str
    _committer: Committer | None = None
    _place: int = 0
    _sending: Awaitable[Recorded] | None = None
    _done: bool = False

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is in the spool; False when that took longer. Not for a thread that runs an event loop."""
        return self._committer.wait(self._place, timeout) if self._committer else self._done

    def __await__(self) -> Generator[Any, None, bool]:
        if self._sending is not None:
            sent = yield from self._sending.__await__()
            self._sending, self._committer, self._place, self._done = None, sent._committer, sent._place, sent._done
        if self._committer is None:
            return self._done
        return (yield from self._committer.committed(self._place).__await__())


class Recorder:
    """Records events under the name ``source`` and delivers them to what ``open_sink`` opens (None: spools them only).

    ``destination`` tells stores apart: processes with the same spool folder and destination deliver for each other,
    and for those that were told no store at all.
    """

    # Whether what is recorded on a connection is sent there; a recorder for tests keeps it to itself.
    reaches_connections = True

    def __init__(
        self, *, source: str, open_sink: OpenSink | None, options: Options | None = None, destination: str = ""
    ) -> None:
        self.source = clean_text(source, _SHORT) or "application"
        self.options = options or Options()
        self._open_sink = open_sink
        told = hashlib.sha256(destination.encode(errors="surrogatepass")).hexdigest()[:12]
        self._destination = spooling.NOWHERE if open_sink is None and not destination else told
        self._redactor = Redactor(self.options.redact, self.options.redact_patterns, self.options.keep)
        self._ids = Ids()
        self._make_id = self._ids.make
        self._lock = threading.RLock()
        self._closed = False
        self._emitted = 0
        self._told_at = 0.0
        self._committer: Committer | None = None
        self._courier: Courier | None = None
        _recorders.add(self)

    def record(
        self,
        action: str,
        *,
        category: str | None = None,
        outcome: Outcome | str = Outcome.SUCCESS,
        severity: Level | str = Level.INFO,
        entity: tuple[str, object] | str | None = None,
        summary: str | None = None,
        metadata: Mapping[str, Any] | object | None = None,
        duration_ms: float | None = None,
        occurred_at: datetime | None = None,
        caused_by: str | uuid.UUID | None = None,
        durability: Durability | str | None = None,
        conn: object | None = None,
        id: str | uuid.UUID | None = None,
        context: Context | None = None,
    ) -> Recorded:
        """Record that something happened, by whom the context of this task says (or the one given).

        With ``conn``, a connection or session of the application's, the event is part of its transaction and exists iff
        that commits; on an asynchronous one the result must be awaited. Otherwise it goes to the queue, and is spooled
        within milliseconds. An ``id`` of the caller's is stored once, at ``occurred_at`` or when the id, a UUIDv7, says
        that it was made. ``durability="sync"`` waits until the disk has it (in a running event loop, only awaiting
        does); ``"stored"`` keeps it in the spool until the store has it, also where a broker takes it first. Raises
        nothing but what ``conn`` raises, unless the options say ``strict``.
        """
        committer = self._committer or self._start()
        options = self.options
        try:
            who = current() if context is None else _with_texts(context)
            if metadata is None:
                raw, size = NO_METADATA, EVENT_BYTES
            else:
                encoded, mended = encode_metadata(metadata, options.metadata_bytes, strict=options.strict)
                if mended:
                    committer.mended += 1
                raw, size = msgspec.Raw(encoded), EVENT_BYTES + len(encoded)
            if who.reason is not None and conn is None:
                raw = _with_reason(raw, who.reason)
                size = EVENT_BYTES + len(bytes(raw))
            own = self._make_id() if id is None else self._own_id(id)
            cause = who.caused_by if caused_by is None else _word(caused_by)
            if entity is None:
                kind = subject = None
            elif isinstance(entity, str):
                kind, subject = _word(entity), None
            else:
                kind, subject = entity
                kind = kind if kind.__class__ is str else _word(kind)
                subject = None if subject is None else str(subject) if _is_small(subject) else _word(subject)
            if occurred_at is not None:
                moment = to_moment(occurred_at)
            elif id is None or conn is not None:
                moment = datetime.now(UTC)
            else:
                moment = self._moment_of(own)
            # By position, in the order of Made's fields.
            event = Made(
                own,
                moment,
                self.source,
                _EVENT,
                "system" if category is None else _word(category),
                action if action.__class__ is str and action.isascii() else clean_text(action),
                outcome if isinstance(outcome, Outcome) else Outcome(outcome),
                severity if isinstance(severity, Level) else Level(severity),
                kind,
                subject,
                who.actor_id,
                who.actor_type,
                who.tenant_id,
                who.session_id,
                who.request_id,
                who.trace_id,
                who.ip if options.keep_ip else None,
                who.user_agent if options.keep_user_agent else None,
                None if duration_ms is None else to_milliseconds(duration_ms),
                None if summary is None else _word(summary),
                cause if cause != own else None,  # a block's context says that it causes what is in it
                raw,
            )
            if options.strict:
                self._check(event, metadata)
            wanted = options.durability if durability is None else Durability(durability)
            if wanted is _STORED:
                event.stored, wanted = True, Durability.SPOOL
        except Exception as error:
            if options.strict:
                raise (
                    error if isinstance(error, UsageError) else UsageError(f"{action!r} cannot be recorded: {error}")
                ) from error
            committer.drop(DropReason.UNUSABLE)
            if (now := time.monotonic()) >= self._told_at:  # a log that is recorded must not go round and round
                self._told_at = now + _TOLD_SECONDS
                log.warning("an event could not be recorded: %s: %s", type(error).__name__, error)
            return Recorded(str(id or ""))
        if conn is not None:
            return self._emit(conn, event, who, occurred_at)
        recorded = Recorded(event.id, committer, committer.put(event, size, wanted))
        if wanted is Durability.SYNC and not is_in_loop():
            recorded.wait(_SYNC_SECONDS)
        return recorded

    def flush(self, timeout: float | None = 10.0) -> bool:
        """Wait until everything recorded so far is delivered, or dropped (and counted); False when that took longer."""
        committer, courier = self._committer, self._courier
        deadline = None if timeout is None else time.monotonic() + timeout
        if committer is None:
            return True
        committer.wait(committer.accepted, timeout)
        if committer.committed_place < committer.accepted and _is_past(deadline):
            return False
        return courier is None or courier.flush(deadline)

    async def aflush(self, timeout: float | None = 10.0) -> bool:
        """``flush`` that lets an event loop go on."""
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Commit what is queued, deliver what can be until then, and stop; True when nothing is left undelivered.

        What is left stays in the spool, for another process or the next one. What is recorded later is dropped.
        """
        with self._lock:
            committer, courier, self._closed = self._committer, self._courier, True
        atexit.unregister(self.close)
        if committer is None:
            return True
        deadline = time.monotonic() + (self.options.close_seconds if timeout is None else timeout)
        committer.close(deadline)
        if courier:
            courier.close(deadline)
        left = committer.finish()
        if committer.dropped:
            log.warning("activities were dropped: %s", describe_dropped(committer.dropped))
        return left == 0

    def stats(self) -> Stats:
        """How it stands: counted in this process since its first event."""
        committer, courier = self._committer, self._courier
        if committer is None:
            return Stats(emitted=self._emitted)
        with committer.account():
            spooled, spool_bytes, oldest = committer.measure()
            if courier:
                also, also_oldest = courier.measure()
                spooled += also
                oldest = min(filter(None, (oldest, also_oldest)), default=None)
            return Stats(
                recorded=committer.recorded,
                adopted=courier.adopted if courier else 0,
                queued=committer.queued,
                spooled=spooled,
                stored=courier.stored if courier else 0,
                dropped={reason.value: count for reason, count in sorted(committer.dropped.items())},
                emitted=self._emitted,
                mended=committer.mended,
                redacted=committer.redacted,
                spool_bytes=spool_bytes,
                oldest_seconds=max(0.0, time.time() - oldest) if oldest else 0.0,
                corrupt_files=committer.corrupt_files + (courier.corrupt_files if courier else 0),
                spool_trouble=committer.trouble,
                delivery_trouble=courier.trouble if courier else None,
            )

    def read_refused(self) -> list[tuple[str, str, bytes]]:
        """What the store did not take and this process keeps aside: id, reason, the event as JSON."""
        committer = self._committer
        return committer.read_refused() if committer else []

    def _start(self) -> Committer:
        """Queue and threads of this process."""
        with self._lock:
            if self._committer is not None:
                return self._committer
            committer = Committer(self.options, find_folder(self.options), self._destination, self._redactor)
            courier = Courier(committer, self._open_sink, self.options)
            # From here on: a signal's handler may record while threads are started.
            self._committer, self._courier = committer, courier
            if self._closed:
                committer.refuse(DropReason.CLOSED)
            else:
                self._start_threads(committer, courier)
            return committer

    def _start_threads(self, committer: Committer, courier: Courier) -> None:
        again = partial(self._start_threads, committer, courier)
        try:
            self._close_at_exit()
            committer.start(courier.wake)
            courier.start()
        except (RuntimeError, MemoryError) as error:
            # No thread can be had: at the end of the interpreter, or for now, where the system has too many.
            committer.refuse(DropReason.UNUSABLE, again)
            if (now := time.monotonic()) >= self._told_at:
                self._told_at = now + _TOLD_SECONDS
                log.warning("nothing can be recorded: %s", error)
        except BaseException:  # of a signal's handler: a time limit, Ctrl-C
            committer.refuse(DropReason.UNUSABLE, again)
            raise
        else:
            if not self._closed:
                committer.accept()

    def _close_at_exit(self) -> None:
        # Held by that until it is closed: what a forgotten recorder has queued is not forgotten.
        atexit.register(self.close)
        # A child of multiprocessing ends without atexit, by its own list.
        ends = sys.modules.get("multiprocessing.util")
        process = sys.modules.get("multiprocessing.process")
        if ends is not None and process is not None and process.parent_process() is not None:
            ends.Finalize(None, self.close, exitpriority=10)

    def _emit(self, conn: object, event: Made, context: Context, occurred_at: datetime | None) -> Recorded:
        """Make the event a part of the transaction on ``conn``; where that is read-only, it goes the other way."""
        from afterwrite.recorder.connections import emit

        raw = bytes(event.metadata)
        if not (self.options.keep_ip and self.options.keep_user_agent):
            context = msgspec.structs.replace(context, ip=event.ip, user_agent=event.user_agent)
        emitted = Emitted(
            id=event.id,
            category=event.category,
            action=event.action,
            outcome=event.outcome,
            severity=event.severity,
            entity_type=event.entity_type,
            entity_id=event.entity_id,
            summary=None if event.summary is None else self._redactor.redact_text(event.summary)[0],
            metadata=msgspec.Raw(self._redactor.redact(raw)[0] if raw else b"null"),
            duration_ms=event.duration_ms,
            occurred_at=None if occurred_at is None else event.occurred_at,
            caused_by=event.caused_by,
        )
        try:
            sent = emit(
                conn,
                emitted,
                context=context,
                key=signing_key(self.options),
                events=self.options.events,
                slot=self.options.slot,
            )
        except UsageError as error:
            if self.options.strict:
                raise
            log.warning("%s; the event goes to the spool, whatever becomes of its transaction", error)
            sent = False
        except Exception as error:
            if not is_undone(error):
                raise
            sent = _undo(event)
        if isinstance(sent, bool):
            return self._emitted_or_put(event, emitted=sent)

        async def send() -> Recorded:
            try:
                emitted = await sent
            except Exception as error:
                if not is_undone(error):
                    raise
                emitted = _undo(event)
            return self._emitted_or_put(event, emitted=emitted)

        return Recorded(event.id, _sending=send())

    def _emitted_or_put(self, event: Made, *, emitted: bool) -> Recorded:
        if emitted:
            with self._lock:
                self._emitted += 1
            return Recorded(event.id, _done=True)
        committer = self._committer or self._start()
        wanted = self.options.durability
        if wanted is _STORED:
            event.stored, wanted = True, Durability.SPOOL
        place = committer.put(event, EVENT_BYTES + len(bytes(event.metadata)), wanted)
        return Recorded(event.id, committer, place)

    def _own_id(self, id: str | uuid.UUID) -> str:
        """The caller's id as the store writes it; a new one where it is none."""
        try:
            return str(uuid.UUID(str(id)))
        except (ValueError, AttributeError, TypeError):
            if self.options.strict:
                raise UsageError(f"{id!r} is no UUID", remedy="leave the id out, or give a UUID") from None
            return self._ids.make()

    def _moment_of(self, id: str) -> datetime:
        """When an event occurred of which only the id was given: what a UUIDv7 says, since it may be recorded again."""
        told = moment_of(id)
        if told is None and self.options.strict:
            raise UsageError(
                f"the id {id} does not say when it was: recorded again, the event would be stored twice",
                remedy="give occurred_at too, or a UUIDv7",
            )
        return told or datetime.now(UTC)

    def _check(self, event: Made, metadata: object) -> None:
        """What strict mode refuses beyond what could not be encoded."""
        if not _ACTION.fullmatch(event.action):
            raise UsageError(
                f"{event.action!r} is no action", remedy="write it as user.create: lower-case words and dots"
            )
        if not _CATEGORY.fullmatch(event.category):
            raise UsageError(f"{event.category!r} is no category", remedy="write it as user_management")
        if metadata is not None and (name := self._redactor.find_secret_name(bytes(event.metadata))):
            raise SecretError(
                f"metadata of {event.action} has a member {name!r}, which is a secret's name",
                remedy="leave it out, or allow the name: keep",
            )

    def _forget_parent(self) -> None:
        """In a forked child: begin anew; nothing of the parent's may be closed by us."""
        committer, self._committer, self._courier = self._committer, None, None
        self._lock = threading.RLock()
        self._ids.reseed()
        self._emitted = 0
        if committer is not None:
            committer.abandon()


def _word(value: object) -> str:
    if value.__class__ is str and len(value) <= _SHORT and value.isascii():  # type: ignore[arg-type, attr-defined]
        return value  # type: ignore[return-value]
    return clean_text(value)


def _is_small(value: object) -> bool:
    # Python makes no text of an integer of many thousand digits.
    return value.__class__ is int and -(1 << 63) <= value < 1 << 63  # type: ignore[operator]


def _with_texts(context: Context) -> Context:
    """A context that somebody made by hand, with texts in it."""
    odd = {
        name: clean_text(value)
        for name in context.__struct_fields__
        if not isinstance(value := getattr(context, name), (str, dict, NoneType))
    }
    return msgspec.structs.replace(context, **odd) if odd else context


def _with_reason(raw: msgspec.Raw, reason: str) -> msgspec.Raw:
    """Metadata with the context's reason, where it has none of its own."""
    own = bytes(raw)
    said = b'{"reason":' + msgspec.json.encode(reason)
    if own in {b"", b"{}"}:
        return msgspec.Raw(said + b"}")
    if b'"reason":' in own and "reason" in msgspec.json.decode(own):
        return raw
    return msgspec.Raw(said + b"," + own[1:])


def is_undone(error: Exception) -> bool:
    """Whether the transaction had been aborted before: PostgreSQL takes nothing more in it, and keeps nothing of it."""
    told = (error, error.__cause__, getattr(error, "orig", None))
    return any(getattr(each, "sqlstate", None) == _IN_FAILED_TRANSACTION for each in told)


def _undo(event: Made) -> bool:
    """What was to be a part of an aborted transaction did not come to pass; False, for it was not emitted."""
    if event.outcome is Outcome.SUCCESS:
        event.outcome = Outcome.FAILURE
        event.severity = Level.WARNING
        own = bytes(event.metadata)
        event.metadata = msgspec.Raw(b'{"undone":true' + (b"}" if own in {b"", b"{}"} else b"," + own[1:]))
    return False


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
_held = False


def _before_fork() -> None:
    global _held  # noqa: PLW0603 - told from one hook to the next
    _held = spooling.hold_for_fork()


def _after_fork_in_parent() -> None:
    spooling.release_after_fork(held=_held)


def _after_fork_in_child() -> None:
    spooling.renew_after_fork()
    for recorder in tuple(_recorders):
        with suppress(Exception):
            recorder._forget_parent()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
