"""A durable consumer that JetStream pins to one of those who ask: its deliveries, in the broker's order, to that one.

::

    stand by ──pinned──▶ first delivery of this consumer? ── no ──▶ make the consumer anew ─┐
       ▲                       │ yes                                                        │
       │                       ▼                    ┌───────────────────────────────────────┘
       └──── line lost, ◀── pull ▶ what is done with it ▶ acknowledge
             other pinned

The broker pins one writer to a consumer and lets the others wait. What a writer before us was given and did not
acknowledge would come again later, behind newer ones: so whoever takes over makes the consumer anew, and begins with
the oldest that is not acknowledged. A number that is not the next one means the same.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

from afterwrite.broker.link import ApiError, Link
from afterwrite.broker.topology import GROUP, TAKEOVER_SECONDS, differences
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.store.writer import PostgresSink

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
# A pull lives shorter than the pin, which the next one renews.
PULL_SECONDS = TAKEOVER_SECONDS / 2
_PULL_MESSAGES = 512
_PULL_BYTES = 8 << 20
# What JetStream says where a consumer of this name is there, and is another (JSConsumerAlreadyExists).
_OTHERWISE_THERE = 10148
_LATE_SECONDS = 1.5
_PIN = "Nats-Pin-Id"
_ACK = b"+ACK"


class OpenStore(Protocol):
    """Opens the store; ``sole`` ends other sessions of this name, those of a writer before this one that is cut off,
    or stands still in the middle of a batch."""

    def __call__(self, *, application_name: str, sole: bool) -> AbstractAsyncContextManager[PostgresSink]: ...


class State(StrEnum):
    """Whether a writer has its partition, or its source."""

    STANDING_BY = "standing by"
    ACTIVE = "active"
    HINDERED = "hindered"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How a writer stands, whatever it writes."""

    state: State = State.STANDING_BY
    batches: int = 0
    waiting: int = 0
    takeovers: int = 0
    trouble: str | None = None


class OverError(Exception):
    """This session has come to its end; ``anew`` when the next one is to make the consumer anew."""

    def __init__(self, why: str, *, anew: bool = False) -> None:
        super().__init__(why)
        self.anew = anew


C = TypeVar("C")


class Delivery(msgspec.Struct, Generic[C], frozen=True):
    """A message with what it holds, how much that is, and its number among all deliveries."""

    message: Any
    content: C
    weight: int
    number: int
    times: int
    waiting: int

    @property
    def headers(self) -> Mapping[str, str]:
        return cast("Mapping[str, str]", self.message.headers or {})


class Pull(Generic[C]):
    """One session with a consumer. ``read`` says what a message holds and how much that is; ``most``, how much may
    have arrived before no more is asked for."""

    def __init__(
        self,
        link: Link,
        stream: str,
        config: Mapping[str, Any],
        *,
        read: Callable[[Any], tuple[C, int]],
        most: int,
        stopping: asyncio.Event,
        on_takeover: Callable[[], None],
    ) -> None:
        self._link = link
        self._stream = stream
        self._config = dict(config)
        self._consumer = str(config["name"])
        self._read = read
        self._most = most
        self._stopping = stopping
        self._on_takeover = on_takeover
        self._inbox = link.new_inbox()
        self._news = asyncio.Event()
        self._ends: list[asyncio.Task[bool]] = []
        self._arrived: deque[Delivery[C]] = deque()
        self._since = 0.0
        self._next: int | None = None
        self._pin: str | None = None
        # The pull that is out: how many messages it may bring still, and until when it is answered.
        self._pull = 0
        self._left = 0
        self._until = 0.0
        self._over: OverError | None = None
        self.weight = 0

    @property
    def pinned(self) -> bool:
        """Whether the consumer is ours, as far as we have heard."""
        return self._pin is not None

    @asynccontextmanager
    async def open(self, *, anew: bool) -> AsyncGenerator[None]:
        """Have the broker send, until the end of this."""
        await self._link.hear(f"{self._inbox}.*", self._hear)
        if anew:
            # Where it is gone already, another one has taken it away.
            with suppress(ApiError):
                await self._link.ask(f"CONSUMER.DELETE.{self._stream}.{self._consumer}")
        await self._make()
        puller = asyncio.create_task(self._keep_pulling())
        self._ends = [asyncio.create_task(self._stopping.wait()), asyncio.create_task(self._link.lost.wait())]
        try:
            yield
        finally:
            for task in (puller, *self._ends):
                task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await puller
            await self._leave()

    async def come(self) -> bool:
        """Wait until something has arrived; False when told to stop. Raises OverError for another session."""
        while not self._stopping.is_set():
            if self._arrived:
                return True
            if self._over is not None:
                raise self._over
            if self._link.lost.is_set():
                raise OverError("the line was lost")
            await self._wait(None)
        return False

    async def linger(self, weight: int, seconds: float) -> None:
        """Let what has arrived grow to so much, for so long since its first came."""
        while self.weight < weight and not self._over and not self._stopping.is_set() and not self._link.lost.is_set():
            left = self._since + seconds - time.monotonic()
            if left <= 0:
                return
            await self._wait(left)

    def take(self, weight: int) -> list[Delivery[C]]:
        """The next deliveries, each the one after the last: the first, and others until they are so much."""
        taken: list[Delivery[C]] = []
        size = 0
        while self._arrived and (not taken or size < weight):
            delivery = self._arrived[0]
            if delivery.number != (self._next or 1) or delivery.times > 1:
                if taken:
                    break  # these are in order still
                self._on_takeover()
                raise OverError(f"delivery {delivery.number} where {self._next or 1} was due", anew=True)
            self._arrived.popleft()
            self._next = delivery.number + 1
            taken.append(delivery)
            size += delivery.weight
            self.weight -= delivery.weight
        self._since = time.monotonic()
        return taken

    async def acknowledge(self, delivery: Delivery[C]) -> None:
        """Tell the broker that this one is done."""
        await self._link.tell(str(delivery.message.reply), _ACK)

    async def _make(self) -> None:
        """Make the consumer where it is not there."""
        question = {"stream_name": self._stream, "config": self._config, "action": "create"}
        subject = f"CONSUMER.CREATE.{self._stream}.{self._consumer}"
        try:
            await self._link.ask(subject, question)
        except ApiError as error:
            if error.code != _OTHERWISE_THERE:
                raise
            told = await self._link.ask(f"CONSUMER.INFO.{self._stream}.{self._consumer}")
            if differences(told["config"], self._config):
                raise  # it is for other lanes: install has made more partitions of them, or fewer, just now
            if told.get("paused"):
                raise Refused(
                    f"the consumer {self._consumer} of {self._stream} is paused",
                    remedy=f"nats consumer resume {self._stream} {self._consumer}",
                ) from error
            # A pause that is over still stands in it, and would keep everybody from it.
            await self._link.ask(subject, question | {"action": "update"})

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
            if (self._left <= 0 or now > self._until) and self.weight < self._most:
                try:
                    if self._pull and self._pin is None:
                        await self._look()
                    await self._ask()
                except Exception as error:
                    self._end(OverError(str(error)))
                    return
            await asyncio.sleep(0.02 if self._left <= 0 else min(0.2, max(0.02, self._until - now)))

    async def _look(self) -> None:
        """Standing by: whether somebody was given messages and is gone, where no newer one would tell us."""
        told = await self._link.ask(f"CONSUMER.INFO.{self._stream}.{self._consumer}")
        groups = cast("list[dict[str, Any]]", told.get("priority_groups") or [])
        if told.get("num_ack_pending") and not any(group.get("pinned_client_id") for group in groups):
            self._on_takeover()
            self._end(OverError("nobody has what was delivered", anew=True))

    async def _ask(self) -> None:
        self._pull += 1
        self._left, self._until = _PULL_MESSAGES, time.monotonic() + PULL_SECONDS + _LATE_SECONDS
        question: dict[str, Any] = {
            "batch": _PULL_MESSAGES,
            "max_bytes": _PULL_BYTES,
            "expires": int(PULL_SECONDS * 1e9),
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
        content, weight = self._read(message)
        told = message.metadata
        if not self._arrived:
            self._since = time.monotonic()
        self._arrived.append(
            Delivery(message, content, weight, told.sequence.consumer, told.num_delivered or 1, told.num_pending)
        )
        self.weight += weight
        self._left -= 1
        self._news.set()

    def _hear_status(self, subject: str, status: str, words: str) -> None:
        if status == "100":
            return
        if status == "423" or (status == "409" and "deleted" in words.lower()):
            self._pin = None  # it is somebody else's
            self._end(OverError(f"{status} {words}"))
        elif subject.endswith(f".{self._pull}"):
            self._left = 0

    def _end(self, over: OverError) -> None:
        if self._over is None:
            self._over = over
        self._news.set()

    async def _wait(self, seconds: float | None) -> None:
        """Wait for news, or for the end."""
        self._news.clear()
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait((news, *self._ends), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()


class Session(Protocol):
    """One connection to the broker, for as long as all that comes over it is in order."""

    @property
    def pinned(self) -> bool: ...

    async def run(self, *, anew: bool) -> None:
        """Pull, store, acknowledge, until stopped. Raises OverError for another session."""
        ...


P = TypeVar("P", bound=Progress)


class Steady(Generic[P]):
    """A writer that writes, or stands by for whoever does, one session after another, for as long as it runs."""

    def __init__(self, name: str, status: P, on_status: Callable[[P], None] | None) -> None:
        self._name = name
        self._on_status = on_status
        self.status = status
        self.stopping = asyncio.Event()

    def session(self) -> AbstractAsyncContextManager[Session]:
        """A session, to be run."""
        raise NotImplementedError

    def stop(self) -> None:
        """End when the batch in hand is stored."""
        self.stopping.set()

    async def run(self) -> None:
        """Write until stopped; whatever goes wrong is told, and tried again later each time."""
        pause, anew = _FIRST_PAUSE, False
        while not self.stopping.is_set():
            done = self.status.batches
            session: Session | None = None
            try:
                async with self.session() as session:
                    await session.run(anew=anew)
                anew = False
            except OverError as over:
                log.debug("%s: %s", self._name, over)
                # What we had in hand would come again after a minute.
                anew, pause = over.anew or (session is not None and session.pinned), _FIRST_PAUSE
                self.tell(state=State.STANDING_BY)
                # Another one may be at it: the one that makes the consumer anew goes first.
                await self.rest(0.0 if anew else random.uniform(0.1, 0.3))
            except Exception as error:
                trouble = str(error) or repr(error)
                if not isinstance(error, AfterwriteError):
                    log.exception("a defect of the writer of %s; it is tried again", self._name)
                elif trouble != self.status.trouble:
                    log.warning("%s cannot be written now: %s", self._name, error)
                anew = session is not None and session.pinned
                self.tell(state=State.HINDERED, trouble=trouble)
                if self.status.batches > done:
                    pause = _FIRST_PAUSE
                await self.rest(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    def tell(self, **changes: object) -> None:
        """Note this, and say so to whoever asked to be told."""
        status = msgspec.structs.replace(self.status, **changes)
        if status != self.status:
            self.status = status
            if self._on_status:
                self._on_status(status)

    def note_takeover(self) -> None:
        self.tell(takeovers=self.status.takeovers + 1)
