"""A partition's writer: pulls what its lanes hold, in the broker's order, stores it, and acknowledges after the commit.

::

    stand by ──pinned──▶ first delivery of this consumer? ── no ──▶ make the consumer anew ─┐
       ▲                       │ yes                                                        │
       │                       ▼                    ┌───────────────────────────────────────┘
       └──── line lost, ◀── pull ▶ store ▶ acknowledge
             other pinned

The broker pins one writer to a consumer and lets the others wait. What a writer before us was given and did not
acknowledge would come again later, behind newer ones: so whoever takes over makes the consumer anew, and begins with
the oldest that is not acknowledged. A number that is not the next one means the same. Nothing rests on two writers
never being at it together: both go in the same order, and the store keeps each id once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from enum import StrEnum
from typing import Any, cast

import msgspec

from afterwrite.broker.bundle import MESSAGE_ID, RECEIPT, unbundle
from afterwrite.broker.link import Access, ApiError, Link, connect
from afterwrite.broker.topology import (
    GROUP,
    TAKEOVER_SECONDS,
    consumer_config,
    consumer_name,
    partitions_of,
    refused_subject,
)
from afterwrite.errors import AfterwriteError, GateNotMet, UsageError
from afterwrite.failpoints import failpoint
from afterwrite.record import Batch, Sink
from afterwrite.recorder.deliver import is_refusal
from afterwrite.recorder.spool import Event, without_absent

log = logging.getLogger(__name__)

OpenStore = Callable[[], AbstractAsyncContextManager[Sink]]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
# A pull lives shorter than the pin, which the next one renews.
_PULL_SECONDS = TAKEOVER_SECONDS / 2
_PULL_MESSAGES = 512
_PULL_BYTES = 8 << 20
_LATE_SECONDS = 1.5
_END_SECONDS = 4.0
# A store that takes nothing of a whole batch may be at fault itself.
_TRIED_BATCHES = 3
_PIN = "Nats-Pin-Id"
_ACK = b"+ACK"


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How many activities a batch has, and how long a smaller one waits for more."""

    batch_rows: int = 5_000
    linger_seconds: float = 0.05


class State(StrEnum):
    """Whether a writer has its partition."""

    STANDING_BY = "standing by"
    ACTIVE = "active"
    HINDERED = "hindered"


class WriterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the writer of a partition has done since it began, and what is in its way.

    ``stored`` are activities, ``duplicates`` those that the store had already, ``refused`` those set aside.
    """

    partition: int
    state: State = State.STANDING_BY
    stored: int = 0
    duplicates: int = 0
    refused: int = 0
    batches: int = 0
    waiting: int = 0
    takeovers: int = 0
    trouble: str | None = None


class _OverError(Exception):
    """This session has come to its end; ``anew`` when the next one is to make the consumer anew."""

    def __init__(self, why: str, *, anew: bool = False) -> None:
        super().__init__(why)
        self.anew = anew


class _Delivery(msgspec.Struct, frozen=True):
    """A message with what it holds (None where that cannot be read), and its number among all deliveries."""

    message: Any
    events: list[Event] | None
    number: int
    times: int
    waiting: int


async def read_partitions(access: Access) -> int:
    """How many partitions the stream has."""
    async with connect(access, name="afterwrite writer") as link:
        return await _partitions(link, access)


async def _partitions(link: Link, access: Access) -> int:
    if link.version < (2, 11):
        raise UsageError(
            f"the broker is nats-server {link.version[0]}.{link.version[1]}, which cannot pin a consumer to one writer",
            remedy="use nats-server 2.11 or later",
        )
    try:
        found = await link.ask(f"STREAM.INFO.{access.stream}")
    except ApiError as error:
        raise GateNotMet(
            f"there is no stream {access.stream} at {access.where}: {error}",
            remedy="afterwrite broker install --apply",
        ) from error
    partitions = partitions_of(found["config"])
    if partitions is None:
        raise UsageError(
            f"the stream {access.stream} does not say how many partitions it has, so it is none of afterwrite's",
            remedy="afterwrite broker install --apply, or name another one: nats_stream",
        )
    return partitions


class Writer:
    """Writes one partition, or stands by for whoever does, for as long as it runs."""

    def __init__(
        self,
        access: Access,
        open_store: OpenStore,
        partition: int,
        *,
        pace: Pace | None = None,
        on_status: Callable[[WriterStatus], None] | None = None,
    ) -> None:
        self.status = WriterStatus(partition=partition)
        self._access = access
        self._open_store = open_store
        self._partition = partition
        self._pace = pace or Pace()
        self._on_status = on_status
        self._stop = asyncio.Event()
        self._suspected = 0

    def stop(self) -> None:
        """End when the batch in hand is stored."""
        self._stop.set()

    async def run(self) -> None:
        """Write until stopped; whatever goes wrong is told, and tried again later each time."""
        pause, anew = _FIRST_PAUSE, False
        while not self._stop.is_set():
            done = self.status.batches
            session: _Session | None = None
            try:
                async with self._session() as session:
                    await session.run(anew=anew)
                anew = False
            except _OverError as over:
                log.debug("partition %d: %s", self._partition, over)
                # What we had in hand would come again after a minute.
                anew, pause = over.anew or (session is not None and session.pinned), _FIRST_PAUSE
                self.tell(state=State.STANDING_BY)
                # Another one may be at it: the one that makes the consumer anew goes first.
                await self.rest(0.0 if anew else random.uniform(0.1, 0.3))
            except Exception as error:
                trouble = str(error) or repr(error)
                if not isinstance(error, AfterwriteError):
                    log.exception("a defect of the writer of partition %d; it is tried again", self._partition)
                elif trouble != self.status.trouble:
                    log.warning("partition %d cannot be written now: %s", self._partition, error)
                anew = session is not None and session.pinned
                self.tell(state=State.HINDERED, trouble=trouble)
                if self.status.batches > done:
                    pause = _FIRST_PAUSE
                await self.rest(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[_Session]:
        name = f"afterwrite writer {self._partition}"
        async with connect(self._access, name=name) as link, AsyncExitStack() as stack:
            partitions = await _partitions(link, self._access)
            if self._partition >= partitions:
                raise UsageError(
                    f"there is no partition {self._partition}: the stream {self._access.stream} has {partitions}",
                    remedy="leave --partition out, or name one from 0 on",
                )
            yield _Session(self, link, stack, partitions)

    @property
    def access(self) -> Access:
        return self._access

    @property
    def open_store(self) -> OpenStore:
        return self._open_store

    @property
    def pace(self) -> Pace:
        return self._pace

    @property
    def stopping(self) -> asyncio.Event:
        return self._stop

    def suspect(self, count: int, refused: Sequence[tuple[Event, str]]) -> None:
        """A store that takes nothing of a whole batch may be at fault itself: it is asked some times more."""
        if not 1 < count <= len(refused):
            self._suspected = 0
        elif (tried := self._suspected + 1) < _TRIED_BATCHES:
            self._suspected = tried
            raise AfterwriteError(
                f"the store takes nothing of a batch of {count:,} activities: {refused[-1][1]}",
                remedy="look at the store; what it does not take at last is set aside",
            )

    async def rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def tell(self, **changes: object) -> None:
        status = msgspec.structs.replace(self.status, **changes)
        if status != self.status:
            self.status = status
            if self._on_status:
                self._on_status(status)


class _Session:
    """One connection to the broker, for as long as all that comes over it is in order."""

    def __init__(self, writer: Writer, link: Link, stack: AsyncExitStack, partitions: int) -> None:
        self._writer = writer
        self._link = link
        self._stack = stack
        self._partition = writer.status.partition
        self._partitions = partitions
        self._stream = writer.access.stream
        self._consumer = consumer_name(self._partition)
        self._inbox = link.new_inbox()
        self._sink: Sink | None = None
        self._news = asyncio.Event()
        self._arrived: deque[_Delivery] = deque()
        self._rows = 0
        self._since = 0.0
        self._next: int | None = None
        self._pin: str | None = None
        # The pull that is out: how many messages it may bring still, and until when it is answered.
        self._pull = 0
        self._left = 0
        self._until = 0.0
        self._over: _OverError | None = None

    @property
    def pinned(self) -> bool:
        """Whether the partition is ours, as far as we have heard."""
        return self._pin is not None

    async def run(self, *, anew: bool) -> None:
        """Pull, store, acknowledge, until stopped. Raises _OverError for another session."""
        await self._link.hear(f"{self._inbox}.*", self._hear)
        if anew:
            # Where it is gone already, another one has taken it away.
            with suppress(ApiError):
                await self._link.ask(f"CONSUMER.DELETE.{self._stream}.{self._consumer}")
        await self._make()
        puller = asyncio.create_task(self._keep_pulling())
        try:
            await self._write()
        finally:
            puller.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await puller
            await self._leave()

    async def _make(self) -> None:
        """Make the consumer where it is not there."""
        config = consumer_config(self._stream, self._partition, self._partitions)
        question = {"stream_name": self._stream, "config": config, "action": "create"}
        await self._link.ask(f"CONSUMER.CREATE.{self._stream}.{self._consumer}", question)

    async def _leave(self) -> None:
        """Let a stand-by have the pin at once."""
        if self._pin is not None and not self._link.lost.is_set():
            with suppress(AfterwriteError):
                await self._link.flush()
                await self._link.ask(f"CONSUMER.UNPIN.{self._stream}.{self._consumer}", {"group": GROUP})

    async def _keep_pulling(self) -> None:
        """Have a pull out whenever there is room: it brings messages, and keeps the pin."""
        while True:
            now = time.monotonic()
            if (self._left <= 0 or now > self._until) and self._rows < 2 * self._writer.pace.batch_rows:
                try:
                    if self._pull and self._pin is None:
                        await self._look()
                    await self._ask()
                except Exception as error:
                    self._end(_OverError(str(error)))
                    return
            await asyncio.sleep(0.02 if self._left <= 0 else min(0.2, max(0.02, self._until - now)))

    async def _look(self) -> None:
        """Standing by: whether somebody was given messages and is gone, where no newer one would tell us."""
        told = await self._link.ask(f"CONSUMER.INFO.{self._stream}.{self._consumer}")
        groups = cast("list[dict[str, Any]]", told.get("priority_groups") or [])
        if told.get("num_ack_pending") and not any(group.get("pinned_client_id") for group in groups):
            self._writer.tell(takeovers=self._writer.status.takeovers + 1)
            self._end(_OverError("nobody has what was delivered", anew=True))

    async def _ask(self) -> None:
        self._pull += 1
        self._left, self._until = _PULL_MESSAGES, time.monotonic() + _PULL_SECONDS + _LATE_SECONDS
        question: dict[str, Any] = {
            "batch": _PULL_MESSAGES,
            "max_bytes": _PULL_BYTES,
            "expires": int(_PULL_SECONDS * 1e9),
            "group": GROUP,
        }
        if self._pin is not None:
            question["id"] = self._pin
        await self._link.tell(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
            msgspec.json.encode(question),
            reply=f"{self._inbox}.{self._pull}",
        )

    async def _hear(self, message: Any) -> None:
        headers: dict[str, str] = message.headers or {}
        status = headers.get("Status")
        if status is not None and not message.reply:
            self._hear_status(str(message.subject), str(status), str(headers.get("Description", "")))
            return
        self._pin = headers.get(_PIN, self._pin)
        try:
            events = unbundle(bytes(message.data))
        except (msgspec.DecodeError, UnicodeDecodeError):
            events = None
        told = message.metadata
        if not self._arrived:
            self._since = time.monotonic()
        self._arrived.append(
            _Delivery(message, events, told.sequence.consumer, told.num_delivered or 1, told.num_pending)
        )
        self._rows += 1 if events is None else len(events)
        self._left -= 1
        self._news.set()

    def _hear_status(self, subject: str, status: str, words: str) -> None:
        if status == "100":
            return
        if status == "423" or (status == "409" and "deleted" in words.lower()):
            self._pin = None  # it is somebody else's
            self._end(_OverError(f"{status} {words}"))
        elif subject.endswith(f".{self._pull}"):
            self._left = 0

    def _end(self, over: _OverError) -> None:
        if self._over is None:
            self._over = over
        self._news.set()

    async def _write(self) -> None:
        stop = asyncio.create_task(self._writer.stopping.wait())
        lost = asyncio.create_task(self._link.lost.wait())
        try:
            while not stop.done():
                if not self._arrived:
                    if self._over is not None:
                        raise self._over
                    if lost.done():
                        raise _OverError("the line was lost")
                    self._news.clear()
                    await self._wait(stop, lost, None)
                    continue
                await self._linger(stop, lost)
                await self._store(self._take())
        finally:
            stop.cancel()
            lost.cancel()

    async def _linger(self, stop: asyncio.Task[bool], lost: asyncio.Task[bool]) -> None:
        """Let a small batch grow a little."""
        pace = self._writer.pace
        while self._rows < pace.batch_rows and self._over is None and not stop.done() and not lost.done():
            left = self._since + pace.linger_seconds - time.monotonic()
            if left <= 0:
                return
            self._news.clear()
            await self._wait(stop, lost, left)

    async def _wait(self, stop: asyncio.Task[bool], lost: asyncio.Task[bool], seconds: float | None) -> None:
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait((news, stop, lost), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    def _take(self) -> list[_Delivery]:
        """The next deliveries for one batch, each the one after the last."""
        taken: list[_Delivery] = []
        rows = 0
        while self._arrived and (not taken or rows < self._writer.pace.batch_rows):
            delivery = self._arrived[0]
            if delivery.number != (self._next or 1) or delivery.times > 1:
                if taken:
                    break  # these are in order still
                takeovers = self._writer.status.takeovers + 1
                self._writer.tell(takeovers=takeovers)
                raise _OverError(f"delivery {delivery.number} where {self._next or 1} was due", anew=True)
            self._arrived.popleft()
            self._next = delivery.number + 1
            taken.append(delivery)
            size = 1 if delivery.events is None else len(delivery.events)
            rows += size
            self._rows -= size
        self._since = time.monotonic()
        return taken

    async def _store(self, deliveries: Sequence[_Delivery]) -> None:
        """Store these, then acknowledge them."""
        writer = self._writer
        writer.tell(state=State.ACTIVE)
        events = [event for delivery in deliveries for event in delivery.events or ()]
        refused: list[tuple[Event, str]] = []
        stored = 0
        failpoint("broker.before_store")
        if events:
            if self._sink is None:
                self._sink = await self._stack.enter_async_context(writer.open_store())
            stored, refused = await self._send(self._sink, _once(events))
            writer.suspect(len(events), refused)
        failpoint("broker.after_store")
        status = writer.status
        writer.tell(
            stored=status.stored + stored,
            duplicates=status.duplicates + len(events) - len(refused) - stored,
            batches=status.batches + 1,
            waiting=deliveries[-1].waiting,
            trouble=None,
        )
        # What is stored makes room first: a full stream takes nothing that is to be set aside.
        odd = {event.id for event, _ in refused}
        await self._acknowledge([delivery for delivery in deliveries if not _is_odd(delivery, odd)])
        others = [delivery for delivery in deliveries if _is_odd(delivery, odd)]
        if others:
            await self._link.flush()
            unread = [delivery for delivery in others if delivery.events is None]
            await self._set_aside(unread, refused)
            await self._acknowledge(others)
            writer.tell(refused=writer.status.refused + len(refused) + len(unread))
        failpoint("broker.after_acknowledge")

    async def _acknowledge(self, deliveries: Sequence[_Delivery]) -> None:
        """Tell the broker, and the recorders that wait for it, that these are done."""
        receipts: dict[str, list[str]] = {}
        for delivery in deliveries:
            headers: dict[str, str] = delivery.message.headers or {}
            if RECEIPT in headers:
                receipts.setdefault(headers[RECEIPT], []).append(headers.get(MESSAGE_ID, ""))
            await self._link.tell(str(delivery.message.reply), _ACK)
        for inbox, ids in receipts.items():
            await self._link.tell(inbox, "\n".join(ids).encode())

    async def _send(self, sink: Sink, events: Sequence[Event]) -> tuple[int, list[tuple[Event, str]]]:
        """How many were stored, and what the store does not take. Raises what may be over at another time."""
        source = f"{self._stream}/{self._partition}"
        try:
            receipt = await sink.write(Batch(source=source, activities=events, transactions=0))
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(events) == 1:
                return 0, [(events[0], str(error))]
        else:
            return receipt.stored, []
        half = len(events) // 2
        first, others = await self._send(sink, events[:half]), await self._send(sink, events[half:])
        return first[0] + others[0], [*first[1], *others[1]]

    async def _set_aside(self, unread: Sequence[_Delivery], refused: Sequence[tuple[Event, str]]) -> None:
        """Put what cannot be stored where people find it, before it is acknowledged."""
        parts = [(bytes(delivery.message.data), "it is no message of this version's recorders") for delivery in unread]
        parts += [(b"[" + msgspec.json.encode(without_absent(event)) + b"]", why) for event, why in refused]
        for body, why in parts:
            words = " ".join(why.split())[:500].encode("ascii", "replace").decode()
            kept = await self._link.publish(refused_subject(self._stream), body, {"Afterwrite-Reason": words})
            async with asyncio.timeout(_PULL_SECONDS * 2):
                await kept
        if parts:
            log.warning("of partition %d %d messages are set aside: %s", self._partition, len(parts), parts[0][1])


def _is_odd(delivery: _Delivery, refused: set[str]) -> bool:
    """Whether something of this message is not stored."""
    return delivery.events is None or any(event.id in refused for event in delivery.events)


def _once(events: Sequence[Event]) -> list[Event]:
    """Each id once: a recorder that was not told of the broker's acknowledgement has sent it again."""
    kept: dict[tuple[str, object], Event] = {}
    for event in events:
        kept.setdefault((event.id, event.occurred_at), event)
    return list(kept.values()) if len(kept) < len(events) else list(events)


async def run_writers(
    access: Access,
    open_store: OpenStore,
    *,
    stop: asyncio.Event,
    partitions: Sequence[int] = (),
    pace: Pace | None = None,
    on_status: Callable[[WriterStatus], None] | None = None,
) -> None:
    """Write these partitions, or all, until told to stop."""
    if not partitions:
        partitions = await _find_partitions(access, stop)
    writers = [Writer(access, open_store, number, pace=pace, on_status=on_status) for number in partitions]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(writer.run()) for writer in writers]
        await stop.wait()
        for writer in writers:
            writer.stop()
        if tasks:
            await asyncio.wait(tasks, timeout=_END_SECONDS)
        for task in tasks:
            # What hangs in the store, or in the broker, is not acknowledged, and comes again.
            task.cancel()


async def _find_partitions(access: Access, stop: asyncio.Event) -> Sequence[int]:
    """All of the stream's, as soon as a broker says how many."""
    pause = _FIRST_PAUSE
    told = False
    while not stop.is_set():
        try:
            return range(await read_partitions(access))
        except (UsageError, GateNotMet):
            raise
        except AfterwriteError as error:
            if not told:
                log.warning("the broker cannot be asked now: %s", error)
            told = True
        with suppress(TimeoutError):
            async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):
                await stop.wait()
        pause = min(2 * pause, _LONGEST_PAUSE)
    return ()
