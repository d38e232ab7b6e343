"""Capture's sink that is a broker: a batch counts when a writer, or the store's own checkpoint, says that it is stored.

::

    write ─▶ publish, in parts ═▶ stream ═▶ writer ─▶ store, with its checkpoint
      ▲                                       │
      └── receipt, or the checkpoint read back ┘        only then is the slot confirmed

So the broker need not be believed: what it loses after it has acknowledged it is in the WAL still. One batch of a
source is on its way at a time, and one that is published again takes the place of the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from afterwrite.broker.bundle import OVERHEAD_BYTES, RECEIPT
from afterwrite.broker.link import Access, ApiError, Link, NobodyError, connect
from afterwrite.broker.parcel import (
    PART,
    ROLLUP,
    Part,
    Standing,
    Word,
    decode_standing,
    decode_word,
    error_of,
    wrap,
)
from afterwrite.broker.topology import changes_subject, lane_of_source, outbox_of_source, question_subject
from afterwrite.errors import AfterwriteError, ConnectionLost, Refused
from afterwrite.failpoints import failpoint
from afterwrite.record import Batch, Checkpoint, Lsn, Receipt

_PART_BYTES = 256 << 10
# Parts that the broker has not acknowledged yet, and those that no writer has: so much of a source lies at the brokers.
_MOST_UNDER_WAY = 16
_MOST_AHEAD = 32
_WRITE = "run `afterwrite broker write` where the store can be reached"


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a part waits for the broker's acknowledgement; how long without a word from a writer until the
    checkpoint is read back, and until the batch is given up, to be published again."""

    acknowledged_seconds: float = 10.0
    ask_seconds: float = 5.0
    silent_seconds: float = 30.0


@asynccontextmanager
async def open_changes(
    access: Access, source: str, *, outbox: bool = False, patience: Patience | None = None
) -> AsyncGenerator[ChangesSink]:
    """A sink that publishes this source's batches, or the events of its ``outbox``, for a writer to store."""
    async with connect(access, name=f"afterwrite capture {source}") as link:
        sink = ChangesSink(link, access, source, outbox=outbox, patience=patience or Patience())
        await sink.listen()
        yield sink


class ChangesSink:
    """Publishes batches over one connection, and waits for the store's commit of each."""

    def __init__(self, link: Link, access: Access, source: str, *, outbox: bool, patience: Patience) -> None:
        self._link = link
        self._access = access
        self._source = source
        self._patience = patience
        lane = outbox_of_source(source) if outbox else lane_of_source(source)
        self._subject = changes_subject(access.stream, lane)
        self._inbox = link.new_inbox()
        self._store: str | None = None
        self._reached: Lsn | None = None
        # Of the batch that is on its way: its name, what was said of it, and when the last sign of it came.
        self._parcel = ""
        self._word: Word | None = None
        self._hindered: str | None = None
        self._sign = 0.0
        self._parts = 0
        self._heard = asyncio.Event()
        self._moved = asyncio.Event()

    async def listen(self) -> None:
        """Have writers' words come here."""
        await self._link.hear(self._inbox, self._hear)

    async def read_identity(self) -> str:
        """Which store the writers write to. Raises ConnectionLost where no writer answers."""
        return (await self._ask()).identity

    async def read_checkpoint(self, source: str) -> Checkpoint | None:
        """How far this source is stored, read by a writer in the store."""
        if source != self._source:
            raise ValueError(f"this sink is for {self._source}, not for {source}")
        checkpoint = (await self._ask()).checkpoint
        self._reached = checkpoint.lsn if checkpoint else None
        return checkpoint

    async def write(self, batch: Batch) -> Receipt:
        """Publish the batch, and wait until the store has committed it with its checkpoint.

        Raises ConnectionLost when that is unknown or it did not come to be: read the checkpoint again before another
        try. Raises what the store said where it refuses the batch.
        """
        store = self._store or await self.read_identity()
        self._parcel, self._word, self._hindered = secrets.token_hex(8), None, None
        self._parts, self._sign = 0, time.monotonic()
        self._heard.clear()
        failpoint("changes.before_publish")
        await self._publish(batch, store)
        failpoint("changes.after_publish")
        receipt = await self._stored(batch)
        if batch.checkpoint:
            self._reached = batch.checkpoint.lsn
        return receipt

    async def _publish(self, batch: Batch, store: str) -> None:
        length = min(_PART_BYTES, self._link.max_payload - OVERHEAD_BYTES)
        under_way: deque[asyncio.Future[None]] = deque()
        try:
            pieces = wrap(batch, store=store, follows=self._reached, length=length)
            for number, (body, last) in enumerate(pieces, 1):
                await self._let_come(number - _MOST_AHEAD)
                if self._word is not None:
                    break  # it is refused before all of it is there
                headers = {PART: Part(self._parcel, number, last).header(), RECEIPT: self._inbox}
                if number == 1:
                    headers[ROLLUP] = "sub"
                under_way.append(await self._link.publish(self._subject, body, headers))
                if len(under_way) == _MOST_UNDER_WAY:
                    await self._taken(under_way.popleft())
            while under_way:
                await self._taken(under_way.popleft())
        finally:
            for future in under_way:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # the first of them was told
        self._sign = time.monotonic()

    async def _let_come(self, parts: int) -> None:
        """Wait until a writer has so many parts. A long batch is not published into a void."""
        while self._parts < parts and self._word is None:
            self._moved.clear()
            await self._wait(self._patience.ask_seconds, asyncio.ensure_future(self._moved.wait()))
            silent = time.monotonic() - self._sign
            if self._parts < parts and silent >= self._patience.silent_seconds:
                raise ConnectionLost(
                    f"no writer has taken a part of a long batch of source {self._source} for {silent:,.0f} s",
                    remedy=f"nothing is lost, the WAL has it, and it is published again; {_WRITE}",
                )

    async def _taken(self, acknowledged: asyncio.Future[None]) -> None:
        """Wait until the broker has this part."""
        try:
            await self._wait(self._patience.acknowledged_seconds, acknowledged)
            if not acknowledged.cancelled():
                acknowledged.result()
                return
        except NobodyError as error:
            raise ConnectionLost(
                f"nothing at {self._access.where} takes captured changes just now: no stream for them, or no leader",
                remedy="run `afterwrite broker check`; `afterwrite broker install --changes 4GB --apply` makes it",
            ) from error
        except ApiError as error:
            raise ConnectionLost(
                f"the broker does not take a batch of source {self._source}: {error}",
                remedy="run `afterwrite broker check`; the stream should hold 16 MB of each source:"
                " `afterwrite broker install --changes SIZE --apply`",
            ) from error
        if self._word is None:
            self._link.need_rights()
            raise ConnectionLost(
                f"{self._access.where} has not acknowledged a batch in {self._patience.acknowledged_seconds:g} s",
                remedy="run `afterwrite broker check`; it is published again",
            )

    async def _stored(self, batch: Batch) -> Receipt:
        """Wait for a writer's word, and read the checkpoint back where none comes."""
        patience = self._patience
        why = "no writer has said a word"
        while True:
            await self._wait(patience.ask_seconds)
            if self._word is not None:
                if self._word.refused is not None:
                    raise error_of(self._word.refused)
                if self._word.receipt is not None:
                    return self._word.receipt
            silent = time.monotonic() - self._sign
            if silent < patience.ask_seconds:
                continue
            if batch.checkpoint is not None:
                try:
                    found = (await self._ask()).checkpoint
                except ConnectionLost as error:
                    why = str(error)
                else:
                    if found is not None and _is_reached(found, batch.checkpoint):
                        return Receipt(batch_id=None, position=None, stored=0)
            if silent >= patience.silent_seconds:
                raise ConnectionLost(
                    f"a batch of source {self._source} was published, and is not stored after {silent:,.0f} s:"
                    f" {self._hindered or why}",
                    remedy=f"nothing is lost, the WAL has it, and it is published again; {_WRITE}",
                )

    async def _wait(self, seconds: float, other: asyncio.Future[Any] | None = None) -> None:
        """Wait for a writer's word, or for something else; raises ConnectionLost when the line is lost."""
        heard = asyncio.ensure_future(self._heard.wait())
        lost = asyncio.ensure_future(self._link.lost.wait())
        waited: list[asyncio.Future[Any]] = [heard, lost, *([other] if other is not None else [])]
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if lost.done() and not heard.done():
                raise ConnectionLost(f"the line to {self._access.where} was lost", remedy="what waits is sent again")
        finally:
            for future in waited:
                future.cancel()

    async def _ask(self) -> Standing:
        """What a writer reads in the store now."""
        question = msgspec.json.encode({"source": self._source})
        answer = await self._link.inquire(question_subject(self._access.stream), question)
        if answer is None:
            raise ConnectionLost(
                f"no writer at {self._access.where} says how far source {self._source} is stored", remedy=_WRITE
            )
        standing = decode_standing(answer)
        if standing.trouble is not None:
            raise error_of(standing.trouble)
        if self._store is not None and standing.identity != self._store:
            raise Refused(
                f"writers of two stores answer at {self._access.where}: {self._store} and {standing.identity}",
                remedy="end those of the other store, or give them a stream of their own (nats_stream)",
            )
        self._store = standing.identity
        return standing

    async def _hear(self, message: Any) -> None:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, AfterwriteError):
            word = decode_word(bytes(message.data))
            if word.parcel != self._parcel:
                return  # of one that was given up
            self._sign = time.monotonic()
            self._hindered = word.hindered
            self._parts = max(self._parts, word.parts)
            self._moved.set()
            if word.receipt is not None or word.refused is not None:
                self._word = word
                self._heard.set()


def _is_reached(found: Checkpoint, wanted: Checkpoint) -> bool:
    """Whether all of the batch that ends there is stored: up to a checkpoint everything is."""
    same = (found.slot, found.system_id) == (wanted.slot, wanted.system_id)
    return same and found.lsn >= wanted.lsn
