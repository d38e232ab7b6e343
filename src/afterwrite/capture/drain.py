"""From the outbox to the store: read, store, and only then delete.

::

    claim ─▶ read_some ─▶ read each ─┬▶ sink.write ─▶ receipt ─▶ delete ┐ one transaction
                                     └▶ cannot be read, or refused ─▶ set aside ┘

Rows become visible when their transactions commit, which is not the order of their numbers: a row of a long transaction
appears among those that were delivered long ago. So no number is ever remembered as "up to here": what is visible is
to be delivered, and what is delivered is gone. Each row has one id and one moment, whoever reads it and however often,
so that the store keeps it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

import msgspec

from afterwrite.capture.outbox import is_laid
from afterwrite.capture.tell import cause_of, name_told, origin_of, sort_of
from afterwrite.context import decode_context
from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, connect, statement
from afterwrite.record import OUTBOX_PREFIX, Activity, Batch, Emitted, Lsn, Posted, Sink, change_prefix, to_activity
from afterwrite.seal import unseal

log = logging.getLogger(__name__)

OpenSink = Callable[[], AbstractAsyncContextManager[Sink]]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
# Data exceptions, violated constraints, limits of the server: what the same event will meet again.
_REFUSING = frozenset({"22", "23", "54"})
_UNREADABLE = frozenset({"22", "54"})
# A store that takes nothing of a whole batch may be at fault itself.
_TRIED_BATCHES = 3


class DrainPace(msgspec.Struct, frozen=True, kw_only=True):
    """How much is taken at once, how long an empty outbox is left alone (longer each time, up to the longest), and how
    often one looks whether an outbox was installed, and whether who drains it still does."""

    batch_rows: int = 1_000
    batch_bytes: int = 8 << 20
    longest_payload: int = 64 << 20
    first_rest: float = 0.05
    longest_rest: float = 1.0
    look_seconds: float = 15.0
    claim_seconds: float = 2.0


class DrainStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What this process has done since it began, and what is in its way. ``laid``: there is an outbox;
    ``active``: this process drains it."""

    laid: bool = False
    active: bool = False
    stored: int = 0
    refused: int = 0
    trouble: str | None = None


class Row(msgspec.Struct, frozen=True):
    """A row of the outbox; its payload stays there where it is too long to be read."""

    number: int
    xid: int
    written_at: datetime
    payload: str | None
    bytes: int


class Refusal(msgspec.Struct, frozen=True):
    """A row that cannot be delivered, and why."""

    number: int
    xid: int
    reason: str


class UnreadableError(Exception):
    """A row says nothing that we know."""


class Drain:
    """Drains the outbox of one database into a store, for as long as it runs."""

    def __init__(
        self,
        dsn: str | None,
        open_sink: OpenSink,
        *,
        source: str,
        keys: tuple[str, ...] = (),
        pace: DrainPace | None = None,
        on_status: Callable[[DrainStatus], None] | None = None,
    ) -> None:
        self._dsn, self._open_sink, self._source, self._keys = dsn, open_sink, source, keys
        self._pace = pace or DrainPace()
        self._on_status = on_status
        self._stop = asyncio.Event()
        self._suspected = 0
        self.status = DrainStatus()

    def stop(self) -> None:
        """End when the batch in flight is done."""
        self._stop.set()

    async def run(self) -> None:
        """Drain until stopped; whatever goes wrong is told, and tried again later each time."""
        pause = _FIRST_PAUSE
        told: str | None = None
        while not self._stop.is_set():
            done = self.status.stored + self.status.refused
            try:
                await self._session()
                told = None
                pause = _FIRST_PAUSE
            except Exception as error:
                trouble = str(error) or repr(error)
                if not isinstance(error, AfterwriteError):
                    log.exception("a defect of the drain of the outbox; it is tried again")
                elif trouble != told:
                    log.warning("the outbox cannot be drained now: %s", error)
                told = trouble
                self._tell(trouble=trouble, active=False)
                if self.status.stored + self.status.refused > done:
                    pause = _FIRST_PAUSE
                await self._rest(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _session(self) -> None:
        """One connection, for as long as it is good for something."""
        async with connect(self._dsn, application_name="afterwrite outbox", guarded=True) as db:
            laid = await is_laid(db)
            self._tell(laid=laid, active=False, trouble=self.status.trouble if laid else None)
            if laid:
                claimed = await self._claim(db)
                await self._drain(db, claimed=claimed)
                return
        await self._rest(self._pace.look_seconds * random.uniform(0.8, 1.2))

    async def _claim(self, db: Database) -> bool:
        """Wait until we are the one who drains, and say whether we are.

        Who has the claim and does nothing with it, a machine that was cut off for instance, is not waited for: two at
        once store nothing twice.
        """
        front: int | None = None
        while not self._stop.is_set():
            if await db.value(statement("outbox.claim")):
                return True
            now = await db.maybe(_Front, statement("outbox.read_front"))
            if now is not None and now.number == front and now.seconds >= self._pace.look_seconds:
                log.info("who drains the outbox has left its first row there for %.0f s: taking part", now.seconds)
                return False
            front = None if now is None else now.number
            await self._rest(self._pace.claim_seconds)
        return False

    async def _drain(self, db: Database, *, claimed: bool) -> None:
        """Deliver what is there and what comes; without the claim only until nothing is left."""
        self._tell(active=True)
        rest = self._pace.first_rest
        async with _Lazy(self._open_sink) as lazy:
            # What is left among dead rows is looked for less often the longer that takes.
            after, whole_at = 0, 0.0
            while not self._stop.is_set():
                now = time.monotonic()
                whole = now >= whole_at
                rows, refusals = await self._read(db, 0 if whole else after)
                if whole:
                    whole_at = now + 20 * (time.monotonic() - now)
                if rows or refusals:
                    after = max(each.number for each in (*rows, *refusals))
                    await self._deliver(db, lazy, rows, refusals)
                    rest = self._pace.first_rest
                else:
                    self._tell(trouble=None)
                    if whole and not claimed:
                        return
                    await self._rest(rest if whole else min(rest, max(0.0, whole_at - now)))
                    rest = min(1.5 * rest, self._pace.longest_rest)

    async def _read(self, db: Database, after: int) -> tuple[list[Row], list[Refusal]]:
        """The next rows; those of them that the server cannot even give are refused."""
        pace = self._pace
        try:
            rows = await db.rows(
                Row,
                statement("outbox.read_some"),
                after=after,
                most=pace.batch_rows,
                most_bytes=pace.batch_bytes,
                longest=pace.longest_payload,
            )
        except DatabaseError as error:
            if not _is_one_of(error, _UNREADABLE):
                raise
            return await self._read_singly(db, after)
        return rows, []

    async def _read_singly(self, db: Database, after: int) -> tuple[list[Row], list[Refusal]]:
        rows: list[Row] = []
        refusals: list[Refusal] = []
        for head in await db.rows(_Head, statement("outbox.read_heads"), after=after, most=self._pace.batch_rows):
            try:
                row = await db.maybe(
                    Row, statement("outbox.read_one"), number=head.number, longest=self._pace.longest_payload
                )
            except DatabaseError as error:
                if not _is_one_of(error, _UNREADABLE):
                    raise
                refusals.append(Refusal(head.number, head.xid, str(error)))
            else:
                rows += [row] if row is not None else []
            if sum(row.bytes for row in rows) >= self._pace.batch_bytes:
                break
        return rows, refusals

    async def _deliver(self, db: Database, lazy: _Lazy, rows: Sequence[Row], refusals: list[Refusal]) -> None:
        told: list[tuple[Row, Activity]] = []
        for row in rows:
            try:
                told.append((row, read_row(row, source=self._source, keys=self._keys)))
            except UnreadableError as error:
                refusals.append(Refusal(row.number, row.xid, str(error)))
        failpoint("outbox.before_write")
        if told:
            refused = await self._store(await lazy.sink(), told)
            self._suspect(len(told), refused)
            refusals += refused
        failpoint("outbox.after_write")
        aside = {refusal.number for refusal in refusals}
        delivered = [row for row, _ in told if row.number not in aside]
        async with db.transaction():
            await db.run(
                statement("outbox.delete_delivered"),
                numbers=[row.number for row in delivered],
                xids=[row.xid for row in delivered],
            )
            if refusals:
                await db.run(
                    statement("outbox.set_aside"),
                    numbers=[refusal.number for refusal in refusals],
                    xids=[refusal.xid for refusal in refusals],
                    reasons=[refusal.reason.replace("\0", "␀")[:1_000] for refusal in refusals],
                )
            failpoint("outbox.before_commit")
        failpoint("outbox.after_commit")
        if refusals:
            log.warning("of the outbox's events %d are set aside: %s", len(refusals), refusals[0].reason)
        self._tell(
            stored=self.status.stored + len(delivered), refused=self.status.refused + len(refusals), trouble=None
        )

    async def _store(self, sink: Sink, told: Sequence[tuple[Row, Activity]]) -> list[Refusal]:
        """Store these; gives those that the store does not take. Raises what may be over at another time."""
        try:
            activities = [activity for _, activity in told]
            await sink.write(Batch(source=self._source, activities=activities, transactions=0))
        except (DatabaseError, ValueError) as error:
            if isinstance(error, DatabaseError) and not _is_one_of(error, _REFUSING):
                raise
            if len(told) == 1:
                row = told[0][0]
                return [Refusal(row.number, row.xid, str(error))]
        else:
            return []
        half = len(told) // 2
        return [*await self._store(sink, told[:half]), *await self._store(sink, told[half:])]

    def _suspect(self, count: int, refused: Sequence[Refusal]) -> None:
        """A store that takes nothing of a whole batch may be at fault itself: it is asked some times more."""
        if not 1 < count <= len(refused):
            self._suspected = 0
        elif (tried := self._suspected + 1) < _TRIED_BATCHES:
            self._suspected = tried
            raise AfterwriteError(
                f"the store takes nothing of a batch of {count:,} events: {refused[-1].reason}",
                remedy="look at the store; what it does not take at last is set aside",
            )

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def _tell(self, **changes: object) -> None:
        status = msgspec.structs.replace(self.status, **changes)
        if status != self.status:
            self.status = status
            if self._on_status:
                self._on_status(status)


class _Front(msgspec.Struct, frozen=True):
    number: int
    seconds: float


class _Head(msgspec.Struct, frozen=True):
    number: int
    xid: int


class _Lazy:
    """A sink that is opened with the first event, and closed at the end."""

    def __init__(self, open_sink: OpenSink) -> None:
        self._open_sink = open_sink
        self._stack = contextlib.AsyncExitStack()
        self._sink: Sink | None = None

    async def __aenter__(self) -> _Lazy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def sink(self) -> Sink:
        if self._sink is None:
            self._sink = await self._stack.enter_async_context(self._open_sink())
        return self._sink


_posted = msgspec.json.Decoder(Posted)
_emitted = msgspec.json.Decoder(Emitted)
_encode = msgspec.json.Encoder().encode


def read_row(row: Row, *, source: str, keys: tuple[str, ...]) -> Activity:
    """The activity that a row says, the same each time. Raises UnreadableError where it says none.

    It happened when the row was written, as the server says; what the application says is kept beside it, like the
    transaction, whose rows nobody may have captured.
    """
    if row.payload is None:
        raise UnreadableError(f"its {row.bytes:,} bytes are more than are read")
    unsealed = unseal(OUTBOX_PREFIX, row.payload.encode(), keys)
    try:
        posted = _posted.decode(unsealed.payload)
        emitted = _emitted.decode(posted.event)
        context = decode_context(bytes(posted.context))
    except (AfterwriteError, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UnreadableError(f"it is no event that this version knows: {error}") from error
    marks: dict[str, object] = {"xid": row.xid}
    if keys and not unsealed.signed:
        marks["unsigned"] = True
    prefix = change_prefix("outbox", 0, Lsn(row.number << 3), row.written_at, source=source)
    id, words = name_told(emitted, f"{prefix}{0:08x}")
    if context.reason is not None:
        words["reason"] = context.reason
    caused = cause_of(emitted, id, context.caused_by)
    origin = origin_of(context, occurred_at=row.written_at, source=source, caused_by=caused)
    metadata = _metadata(bytes(emitted.metadata), words, marks)
    return to_activity(
        (
            origin, sort_of(emitted), id, None, emitted.entity_id, emitted.summary, emitted.duration_ms, None, None,
            None, metadata,
        )
    )  # fmt: skip


def _metadata(own: bytes, words: dict[str, object], marks: dict[str, object]) -> msgspec.Raw:
    """The event's own metadata, with words where it does not bring them, and marks that stand over it."""
    brought: dict[str, msgspec.Raw] = {}
    if own != b"null":
        try:
            brought = msgspec.json.decode(own, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            brought = {"metadata": msgspec.Raw(own)}
    return msgspec.Raw(_encode({**words, **brought, **marks}))


def _is_one_of(error: DatabaseError, classes: frozenset[str]) -> bool:
    return not isinstance(error, ConnectionLost) and (error.sqlstate or "")[:2] in classes
