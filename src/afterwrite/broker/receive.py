"""Writers of captured changes: each source's batches, as its capture would store them itself, and its questions.

::

    stream ═▶ consumer of a source, pinned ─▶ parts ─▶ batch ─▶ store, with its checkpoint ─▶ receipt ─▶ acknowledge
    capture ─▶ how far is it stored? ─▶ whoever listens reads the checkpoint in the store

Nothing rests on the broker's order, nor on its keeping what it acknowledged. A batch says which store it is for and
which checkpoint it follows, and is stored where both are so, by a look in the transaction that stores it. What does not
fit is refused and dropped: the WAL has it until the store has it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from afterwrite.broker.bundle import inbox_of
from afterwrite.broker.link import Access, ApiError, Link, connect, is_inbox
from afterwrite.broker.parcel import (
    PART,
    Opening,
    Parcel,
    Part,
    Standing,
    Word,
    encode_word,
    is_final,
    read_part,
    trouble_of,
)
from afterwrite.broker.pull import Delivery, OpenStore, Progress, Pull, State, Steady
from afterwrite.broker.topology import (
    WRITERS_INBOX,
    changes_stream,
    changes_subjects,
    lane_of_consumer,
    lane_of_source,
    lane_of_subject,
    outbox_of_source,
    question_subject,
    source_consumer_config,
)
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database
from afterwrite.record import Batch, Receipt
from afterwrite.store.writer import PostgresSink, read_checkpoint, read_identity

log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
# Where nothing is published, that is looked for seldom.
_ABSENT_SECONDS = 10.0
_ANSWER_SECONDS = 4.0
_REASSURE_SECONDS = 2.0
_END_SECONDS = 4.0
_MOST_BYTES = 16 << 20
# Of a batch with more parts those that came are acknowledged before the commit, and make room for others.
_MOST_HELD = 16
# After so many parts the capture hears of them: a quarter of what it publishes ahead.
_TELL_PARTS = 8


class SourceStatus(Progress, frozen=True, kw_only=True):
    """What the writer of a source has done since it began, and what is in its way.

    ``stored`` are activities, ``refused`` batches that were not for this store, or not now.
    """

    source: str
    stored: int = 0
    refused: int = 0


class SourceWriter(Steady[SourceStatus]):
    """Writes what one source has published, or stands by for whoever does, for as long as it runs."""

    def __init__(
        self,
        access: Access,
        open_store: OpenStore,
        lane: str,
        *,
        folder: Path | None = None,
        on_status: Callable[[SourceStatus], None] | None = None,
    ) -> None:
        super().__init__(f"source {lane}", SourceStatus(source=lane), on_status)
        self.access = access
        self.open_store = open_store
        self.lane = lane
        self.folder = folder

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[_Session]:
        name = f"afterwrite writer {self.lane}"
        async with connect(self.access, name=name, inbox=WRITERS_INBOX) as link, AsyncExitStack() as stack:
            yield _Session(self, link, stack)


_Delivery = Delivery[Part | None]


class _Session:
    """One connection to the broker, for as long as all that comes over it is in order."""

    def __init__(self, writer: SourceWriter, link: Link, stack: AsyncExitStack) -> None:
        self._writer = writer
        self._link = link
        self._stack = stack
        self._sink: PostgresSink | None = None
        self._parcel: Parcel | None = None
        self._held: list[_Delivery] = []
        self._inbox: str | None = None
        self._reassured = 0.0
        stream = writer.access.stream
        self._pull = Pull(
            link,
            changes_stream(stream),
            source_consumer_config(stream, writer.lane),
            read=_read,
            most=_MOST_BYTES,
            stopping=writer.stopping,
            on_takeover=writer.note_takeover,
        )

    @property
    def pinned(self) -> bool:
        """Whether the source is ours, as far as we have heard."""
        return self._pull.pinned

    async def run(self, *, anew: bool) -> None:
        """Pull, put together, store, acknowledge, until stopped. Raises OverError for another session."""
        try:
            async with self._pull.open(anew=anew):
                while await self._pull.come():
                    for delivery in self._pull.take(1):
                        await self._receive(delivery)
        finally:
            self._discard()

    async def _receive(self, delivery: _Delivery) -> None:
        part = delivery.content
        self._writer.tell(state=State.ACTIVE, waiting=delivery.waiting)
        if part is not None and part.number == 1:
            # Of one before it nothing more comes: this one was published in its place.
            await self._acknowledge()
            self._parcel = Parcel(part.parcel, self._writer.folder)
        if part is None or self._parcel is None or not self._parcel.is_next(part):
            await self._drop(delivery, part)
            return
        self._parcel.add(bytes(delivery.message.data))
        self._held.append(delivery)
        self._inbox = inbox_of(delivery.headers)
        if part.last:
            await self._store(self._parcel)
            return
        if part.number % _TELL_PARTS == 0 or time.monotonic() - self._reassured > _REASSURE_SECONDS:
            await self._say(Word(parcel=part.parcel, parts=part.number))
        if len(self._held) == _MOST_HELD:
            await self._release()

    async def _drop(self, delivery: _Delivery, part: Part | None) -> None:
        """What lacks the parts before it, which another writer had: the capture is told at once."""
        log.warning("source %s: a message was dropped that is no part of a batch, or lacks others", self._writer.lane)
        if part is not None:
            self._inbox = inbox_of(delivery.headers)
            missing = AfterwriteError(
                "parts of the batch went to a writer that is gone", remedy="it is published again"
            )
            await self._say(Word(parcel=part.parcel, refused=trouble_of(missing)))
        await self._pull.acknowledge(delivery)

    async def _store(self, parcel: Parcel) -> None:
        """Store what is put together, tell the capture, then the broker."""
        writer = self._writer
        failpoint("changes.before_store")
        reassuring = asyncio.create_task(self._reassure(parcel))
        try:
            word, receipt = await self._outcome(parcel)
        finally:
            reassuring.cancel()
            with suppress(asyncio.CancelledError, AfterwriteError):
                await reassuring
        failpoint("changes.after_store")
        await self._say(word)
        await self._acknowledge()
        await self._link.flush()
        failpoint("changes.after_acknowledge")
        status = writer.status
        writer.tell(
            batches=status.batches + 1,
            stored=status.stored + (receipt.stored if receipt else 0),
            refused=status.refused + (receipt is None),
            trouble=word.refused.text if word.refused else None,
        )

    async def _outcome(self, parcel: Parcel) -> tuple[Word, Receipt | None]:
        """What became of it. Raises what may be over at another time."""
        try:
            opening, batch = parcel.open()
            self._check_lane(opening)
            receipt = await self._write(opening, batch)
        except Exception as error:
            if is_final(error):
                log.warning("a batch of source %s is not stored: %s", self._writer.lane, error)
                return Word(parcel=parcel.name, refused=trouble_of(error)), None
            with suppress(AfterwriteError):
                await self._say(Word(parcel=parcel.name, hindered=str(error)))
            raise
        return Word(parcel=parcel.name, receipt=receipt), receipt

    def _check_lane(self, opening: Opening) -> None:
        """Who may publish for one source says nothing of another."""
        way = lane_of_source if opening.checkpoint else outbox_of_source
        if way(opening.source) != self._writer.lane:
            raise ValueError(f"what came for {self._writer.lane} says that it is of source {opening.source}")

    async def _write(self, opening: Opening, batch: Batch) -> Receipt:
        async def check(store: Database, _: int | None) -> None:
            await _check(store, opening)

        if self._sink is None:
            name = f"afterwrite changes {self._writer.lane}"
            self._sink = await self._stack.enter_async_context(
                self._writer.open_store(application_name=name, sole=True)
            )
        return await self._sink.write(batch, beside=check)

    async def _reassure(self, parcel: Parcel) -> None:
        """Tell the capture now and then that it is being stored: a long batch takes its time."""
        while True:
            await asyncio.sleep(_REASSURE_SECONDS)
            await self._say(Word(parcel=parcel.name, parts=parcel.parts))

    async def _say(self, word: Word) -> None:
        self._reassured = time.monotonic()
        if self._inbox is not None:
            await self._link.tell(self._inbox, encode_word(word))

    async def _acknowledge(self) -> None:
        await self._release()
        self._discard()

    async def _release(self) -> None:
        for delivery in self._held:
            await self._pull.acknowledge(delivery)
        self._held = []

    def _discard(self) -> None:
        self._held = []
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None


def _read(message: Any) -> tuple[Part | None, int]:
    headers: dict[str, str] = message.headers or {}
    return read_part(headers.get(PART, "")), max(1, len(message.data))


async def _check(store: Database, opening: Opening) -> None:
    """Refuse what another store is meant by, or what this one lacks something before; the checkpoint is locked."""
    identity = await read_identity(store)
    if identity != opening.store:
        raise Refused(
            f"source {opening.source} is captured for the store {opening.store}; this writer writes {identity}",
            remedy="end the writers of the other store, or give them a stream of their own (nats_stream)",
        )
    if opening.checkpoint is None:
        return
    found = await read_checkpoint(store, opening.source)
    stored = found.lsn if found else None
    if opening.follows is None and stored is None:
        return
    if opening.follows is None or stored is None or stored < opening.follows:
        raise Refused(
            f"source {opening.source} is stored to {stored}, and what follows {opening.follows} is to be stored: what"
            " is between is missing",
            remedy="was the store set back? run `afterwrite doctor`, which says what is lost",
        )


async def run_sources(
    access: Access,
    open_store: OpenStore,
    *,
    stop: asyncio.Event,
    folder: Path | None = None,
    on_status: Callable[[SourceStatus], None] | None = None,
) -> None:
    """Write what captures have published, of every source, until told to stop; where nothing is, look now and then."""
    async with asyncio.TaskGroup() as group:
        desk = _Desk(access, open_store, stop, group, folder, on_status)
        tasks = [group.create_task(desk.run())]
        await stop.wait()
        tasks += desk.stop()
        await asyncio.wait(tasks, timeout=_END_SECONDS)
        for task in tasks:
            # What hangs in the store, or in the broker, is not acknowledged, and comes again.
            task.cancel()


class _Question(msgspec.Struct, frozen=True):
    source: str


class _Desk:
    """Answers captures, finds the sources that publish, and has a writer for each."""

    def __init__(
        self,
        access: Access,
        open_store: OpenStore,
        stop: asyncio.Event,
        group: asyncio.TaskGroup,
        folder: Path | None,
        on_status: Callable[[SourceStatus], None] | None,
    ) -> None:
        self._access = access
        self._open_store = open_store
        self._stop = stop
        self._group = group
        self._folder = folder
        self._on_status = on_status
        self._writers: dict[str, tuple[SourceWriter, asyncio.Task[None]]] = {}

    def stop(self) -> list[asyncio.Task[None]]:
        """Have all writers end; their tasks."""
        for writer, _ in self._writers.values():
            writer.stop()
        return [task for _, task in self._writers.values()]

    async def run(self) -> None:
        """Until told to stop; what is in the way is told once, and tried again."""
        told = ""
        while not self._stop.is_set():
            try:
                link = connect(self._access, name="afterwrite writer", inbox=WRITERS_INBOX)
                async with link as link, AsyncExitStack() as stack:
                    await self._serve(link, stack)
                told = ""
            except Exception as error:
                if not isinstance(error, AfterwriteError):
                    log.exception("a defect of the writers of captured changes; it is tried again")
                elif str(error) != told:
                    log.warning("captures are not answered now: %s", error)
                told = str(error)
            await self._rest(_LOOK_SECONDS)

    async def _serve(self, link: Link, stack: AsyncExitStack) -> None:
        turn = asyncio.Lock()
        sinks: list[PostgresSink] = []

        async def read(source: str) -> Standing:
            async with turn:
                if not sinks:
                    opened = self._open_store(application_name="afterwrite changes", sole=False)
                    sinks.append(await stack.enter_async_context(opened))
                return Standing(
                    identity=await sinks[0].read_identity(), checkpoint=await sinks[0].read_checkpoint(source)
                )

        async def answer(message: Any) -> None:
            if not is_inbox(str(message.reply)):
                return
            try:
                source = msgspec.json.decode(bytes(message.data), type=_Question).source
                async with asyncio.timeout(_ANSWER_SECONDS):
                    standing = await read(source)
            except TimeoutError:
                standing = Standing(
                    trouble=trouble_of(AfterwriteError(f"the store says nothing for {_ANSWER_SECONDS:g} s"))
                )
            except Exception as error:
                standing = Standing(trouble=trouble_of(error))
            else:
                if standing.checkpoint is not None:
                    self._begin(lane_of_source(source))
            with suppress(AfterwriteError):
                await link.tell(str(message.reply), encode_word(standing))

        listens = False
        while not self._stop.is_set() and not link.lost.is_set():
            lanes = await self._find(link)
            if lanes is None:
                await self._rest(_ABSENT_SECONDS)
                continue
            if not listens:
                await link.hear(question_subject(self._access.stream), answer, queue="writers")
                listens = True
            for lane in sorted(lanes):
                self._begin(lane)
            await self._rest(_LOOK_SECONDS)

    async def _find(self, link: Link) -> set[str] | None:
        """The sources that have published something, or whose changes somebody has written; None without a stream."""
        stream = changes_stream(self._access.stream)
        question = {"subjects_filter": changes_subjects(self._access.stream)}
        try:
            told = await link.ask(f"STREAM.INFO.{stream}", question)
            found = await link.ask(f"CONSUMER.NAMES.{stream}")
        except ApiError:
            return None
        lanes = {lane_of_subject(self._access.stream, subject) for subject in told["state"].get("subjects") or ()}
        return lanes | {lane for name in found.get("consumers") or () if (lane := lane_of_consumer(str(name)))}

    def _begin(self, lane: str) -> None:
        """Write this source, too."""
        if lane in self._writers or self._stop.is_set():
            return
        writer = SourceWriter(self._access, self._open_store, lane, folder=self._folder, on_status=self._on_status)
        self._writers[lane] = writer, self._group.create_task(writer.run())

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
