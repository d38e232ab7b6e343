"""A partition's writer: pulls what its lanes hold, in the broker's order, stores it, and acknowledges after the commit.

Who of several writers has the partition, and from where it goes on, is told in pull.py. Nothing rests on two writers
never being at it together: both go in the same order, and the store keeps each id once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec

from afterwrite.broker.bundle import receipt_of, unbundle
from afterwrite.broker.link import Access, ApiError, Link, connect
from afterwrite.broker.pull import Delivery, OpenStore, Progress, Pull, State, Steady
from afterwrite.broker.topology import WRITERS_INBOX, consumer_config, partitions_of, refused_subject, store_of
from afterwrite.errors import AfterwriteError, GateNotMet, Refused, UsageError
from afterwrite.failpoints import failpoint
from afterwrite.record import Batch, Sink
from afterwrite.recorder.deliver import is_refusal
from afterwrite.recorder.spool import Event, without_absent

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
# How long the broker may take to keep what is set aside.
_KEPT_SECONDS = 4.0
_END_SECONDS = 4.0
# A store that takes nothing of a whole batch may be at fault itself.
_TRIED_BATCHES = 3


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How many activities a batch has, and how long a smaller one waits for more."""

    batch_rows: int = 5_000
    linger_seconds: float = 0.05


class WriterStatus(Progress, frozen=True, kw_only=True):
    """What the writer of a partition has done since it began, and what is in its way.

    ``stored`` are activities, ``duplicates`` those that the store had already, ``refused`` those set aside.
    """

    partition: int
    stored: int = 0
    duplicates: int = 0
    refused: int = 0


# A message with its activities; None where it cannot be read.
_Delivery = Delivery[list[Event] | None]


async def read_partitions(access: Access) -> int:
    """How many partitions the stream has."""
    async with connect(access, name="afterwrite writer", inbox=WRITERS_INBOX) as link:
        return (await _look(link, access)).partitions


class _Stream(NamedTuple):
    partitions: int
    store: str | None


async def _look(link: Link, access: Access) -> _Stream:
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
    return _Stream(partitions, store_of(found["config"]))


class Writer(Steady[WriterStatus]):
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
        super().__init__(f"partition {partition}", WriterStatus(partition=partition), on_status)
        self.access = access
        self.open_store = open_store
        self.pace = pace or Pace()
        self._partition = partition
        self._suspected = 0

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[_Session]:
        name = f"afterwrite writer {self._partition}"
        async with connect(self.access, name=name, inbox=WRITERS_INBOX) as link, AsyncExitStack() as stack:
            stream = await _look(link, self.access)
            if self._partition >= stream.partitions:
                raise UsageError(
                    f"there is no partition {self._partition}: the stream {self.access.stream} has {stream.partitions}",
                    remedy="leave --partition out, or name one from 0 on",
                )
            if stream.store is not None:
                await self._compare(stream.store)
            yield _Session(self, link, stack, stream.partitions)

    async def _compare(self, store: str) -> None:
        """Before anything is asked for: who is given it keeps it from the writers of the store that it is for."""
        async with self.open_store(application_name="afterwrite broker", sole=False) as sink:
            ours = await sink.read_identity()
        if ours != store:
            raise Refused(
                f"the stream {self.access.stream} is for the store {store}, and this writer's is {ours}",
                remedy="name that store, or a stream of this one's own (nats_stream)",
            )

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


class _Session:
    """One connection to the broker, for as long as all that comes over it is in order."""

    def __init__(self, writer: Writer, link: Link, stack: AsyncExitStack, partitions: int) -> None:
        self._writer = writer
        self._link = link
        self._stack = stack
        self._partition = writer.status.partition
        self._stream = writer.access.stream
        self._sink: Sink | None = None
        self._pull = Pull(
            link,
            self._stream,
            consumer_config(self._stream, self._partition, partitions),
            read=_read,
            most=2 * writer.pace.batch_rows,
            stopping=writer.stopping,
            on_takeover=writer.note_takeover,
        )

    @property
    def pinned(self) -> bool:
        """Whether the partition is ours, as far as we have heard."""
        return self._pull.pinned

    async def run(self, *, anew: bool) -> None:
        """Pull, store, acknowledge, until stopped. Raises OverError for another session."""
        pace = self._writer.pace
        async with self._pull.open(anew=anew):
            while await self._pull.come():
                await self._pull.linger(pace.batch_rows, pace.linger_seconds)
                await self._store(self._pull.take(pace.batch_rows))

    async def _store(self, deliveries: Sequence[_Delivery]) -> None:
        """Store these, then acknowledge them."""
        writer = self._writer
        writer.tell(state=State.ACTIVE)
        events = [event for delivery in deliveries for event in delivery.content or ()]
        refused: list[tuple[Event, str]] = []
        stored = 0
        failpoint("broker.before_store")
        if events:
            if self._sink is None:
                # Of the writer before us, who may stand still in the middle of a batch, nothing is to be waited for.
                name = f"afterwrite writer {self._stream}/{self._partition}"
                self._sink = await self._stack.enter_async_context(writer.open_store(application_name=name, sole=True))
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
            unread = [delivery for delivery in others if delivery.content is None]
            await self._set_aside(unread, refused)
            await self._acknowledge(others)
            writer.tell(refused=writer.status.refused + len(refused) + len(unread))
        failpoint("broker.after_acknowledge")

    async def _acknowledge(self, deliveries: Sequence[_Delivery]) -> None:
        """Tell the broker, and the recorders that wait for it, that these are done."""
        receipts: dict[str, list[str]] = {}
        for delivery in deliveries:
            if (receipt := receipt_of(delivery.headers)) is not None:
                receipts.setdefault(receipt[0], []).append(receipt[1])
            await self._pull.acknowledge(delivery)
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
            async with asyncio.timeout(_KEPT_SECONDS):
                await kept
        if parts:
            log.warning("of partition %d %d messages are set aside: %s", self._partition, len(parts), parts[0][1])


def _read(message: Any) -> tuple[list[Event] | None, int]:
    """The activities of a message and how many they are; None, which counts as one, where they cannot be read."""
    try:
        events = unbundle(bytes(message.data))
    except ValueError:
        return None, 1
    return events, len(events)


def _is_odd(delivery: _Delivery, refused: set[str]) -> bool:
    """Whether something of this message is not stored."""
    return delivery.content is None or any(event.id in refused for event in delivery.content)


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
