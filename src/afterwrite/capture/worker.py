"""The worker: it reads, decodes, shows the observers, stores, and only then acknowledges.

::

    claim (watch.py): one is active, others stand by; its pulse goes on between sessions, and governs the slot
      session: stream ─▶ assemble ─▶ backlog (bounded) ─┬▶ sink.write ─┬▶ settle (once a second) ─▶ acknowledge
                 one task ───────────┘                  └▶ observers  ─┘
                 keep_informed: status updates

Decoding goes on while a batch is on its way to the store, so the two overlap. Whatever goes wrong, the next session
begins where store and observers all have what was before: nothing is kept in mind between sessions but counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from enum import StrEnum
from typing import Protocol, cast

import msgspec

from afterwrite.capture.assemble import Assembler
from afterwrite.capture.backlog import Backlog, Pace, Take
from afterwrite.capture.governor import Policy
from afterwrite.capture.lookup import Publications, refresh_types, teach
from afterwrite.capture.pgoutput import RELATION_TAG, decode
from afterwrite.capture.preflight import Table, read_slot
from afterwrite.capture.spill import NoRoom
from afterwrite.capture.stream import SlotHeld, Stream, open_stream
from afterwrite.capture.tell import Told
from afterwrite.capture.transaction import Relation, Transaction
from afterwrite.capture.watch import (
    BudgetSpent,
    Reading,
    Watch,
    Watched,
    end_stream,
    give_up,
    stream_name,
    take_claim,
)
from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Finding, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import ReadOnly, connect, statement
from afterwrite.record import Batch, Checkpoint, Lsn, Sink, TransactionContext

OpenSink = Callable[[], AbstractAsyncContextManager[Sink]]

_FEW_MESSAGES, _GATHER_SECONDS = 200, 0.004
_HELD_PAUSE_SECONDS = 0.25
_INSIST_SECONDS = 0.15
# How old may be what is known of composites; tables without any do not ask.
_LOOK_SECONDS = 0.1


class Observer(Protocol):
    """Somebody who sees every transaction beside the store, such as the prover. It keeps a watermark of its own."""

    async def begin(self, at: Lsn) -> Lsn:
        """Forget what is not settled, and say from where to show transactions; ``at`` when it has seen none yet."""
        ...

    async def observe(self, transactions: Sequence[Transaction]) -> None:
        """Take note of them, in commit order, skipping those it knows; they may not be kept when it has returned."""
        ...

    async def settle(self) -> None:
        """Make durable what was observed: only then is it acknowledged."""
        ...


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The database to read and what to read there.

    A table is a legacy log when only ``legacy_publication`` lists it, or when ``legacy_tables`` names it. With
    ``stamp_keys``, stamps and events that none of them signed are marked.
    """

    dsn: str | None
    name: str
    slot: str = "afterwrite"
    publications: tuple[str, ...] = ("afterwrite", "afterwrite_legacy")
    legacy_publication: str = "afterwrite_legacy"
    legacy_tables: frozenset[Table] = frozenset()
    stamp_keys: tuple[str, ...] = ()


class Duty(msgspec.Struct, frozen=True):
    """What an active worker takes along, made when it becomes active: a stand-by's would be out of date by then."""

    observers: tuple[Observer, ...] = ()
    legacy_tables: frozenset[Table] = frozenset()


OpenDuty = Callable[[], AbstractAsyncContextManager[Duty]]


class WorkerState(StrEnum):
    """``starting`` at the begin of each session, ``streaming`` once it reads, ``waiting`` while it backs off,
    ``standing by`` while another worker is active."""

    STARTING = "starting"
    STANDING_BY = "standing by"
    STREAMING = "streaming"
    WAITING = "waiting"
    STOPPED = "stopped"


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where the worker is. Counters count since it was made; ``position`` is the store's checkpoint.

    ``heartbeat_at`` and ``heartbeat_ms`` tell when the last heartbeat went through WAL, stream and store, and how long
    that took. ``trouble`` is what it waits out, and ``findings`` what the watch over the slot has to tell.
    ``retained_bytes`` of WAL are kept for us, of ``budget_bytes`` that the operator allows (or the server, where that
    is less); ``health`` is well, warn, alarm or over. ``active_pid`` is the session of the worker we stand by for.
    """

    state: WorkerState
    source: str
    position: Lsn | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    retained_bytes: int | None = None
    budget_bytes: int | None = None
    spilled_bytes: int | None = None
    health: str | None = None
    active_pid: int | None = None
    last_commit_at: datetime | None = None
    transactions: int = 0
    rows: int = 0
    rows_per_second: float = 0.0
    undecodable_contexts: int = 0
    heartbeat_at: datetime | None = None
    heartbeat_ms: float | None = None
    sessions: int = 0
    trouble: str | None = None
    findings: tuple[Finding, ...] = ()


class Worker:
    """A worker of one source: the active one, or one that stands by for it.

    ``run()`` ends when ``stop()`` was called, or with what cannot be waited out. ``open_duty`` is entered each time it
    becomes active; its observers come after ``observers``.
    """

    def __init__(
        self,
        source: Source,
        open_sink: OpenSink,
        *,
        observers: Sequence[Observer] = (),
        open_duty: OpenDuty | None = None,
        policy: Policy | None = None,
        stand_by: bool = False,
        pace: Pace | None = None,
        on_status: Callable[[WorkerStatus], None] | None = None,
    ) -> None:
        self._source = source
        self._open_sink = open_sink
        self._observers = tuple(observers)
        self._open_duty = open_duty or _no_duty
        self._policy = policy or Policy()
        self._stand_by = stand_by
        self._pace = pace or Pace()
        self._account = _Account(WorkerStatus(state=WorkerState.STARTING, source=source.name), on_status)
        self._stopping = asyncio.Event()
        self._held_since: float | None = None
        self._has_streamed = False

    def status(self) -> WorkerStatus:
        """How it stands now."""
        return self._account.status

    def stop(self) -> None:
        """Ask it to finish the batch in flight and return; may be called from a signal handler of the event loop."""
        self._stopping.set()

    async def run(self) -> None:
        """Capture until stopped or cancelled; either way the batch in flight is finished, within five seconds.

        Raises Refused when going on would lose changes or another worker is active. A lost connection, to the source
        or to the sink, is waited out.
        """
        inner = asyncio.create_task(self._run())
        asked = asyncio.create_task(self._stopping.wait())
        cancelled: asyncio.CancelledError | None = None
        try:
            await asyncio.wait({inner, asked}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            cancelled = error
        self.stop()
        asked.cancel()
        # A batch that takes longer is broken off: its transaction rolls back, or the next start finds it stored.
        await end_task(inner, patience=self._pace.stop_seconds)
        try:
            await inner
        except asyncio.CancelledError:
            pass
        except AfterwriteError as error:
            # What would be waited out only comes to here where we were broken off while it happened.
            if cancelled is None and not self._may_pass(error):
                raise
        finally:
            self._account.note(state=WorkerState.STOPPED)
        if cancelled is not None:
            raise cancelled

    async def _run(self) -> None:
        """One life after another: each begins with the claim, and ends with the connection that holds it."""
        await self._persist(self._life)

    async def _persist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Try until it returns, or we are to stop, with pauses that grow while nothing is stored."""
        first = self._pace.first_pause_ms / 1000
        pause = first
        while not self._stopping.is_set():
            rows = self._account.status.rows
            try:
                await attempt()
                return
            except AfterwriteError as error:
                doing = asyncio.current_task()
                # A task group that ends on an error of its own forgets that we were cancelled (before Python 3.13).
                if not self._may_pass(error) or (doing and doing.cancelling()):
                    raise
                if isinstance(error, SlotHeld):
                    pause = _HELD_PAUSE_SECONDS
                elif self._account.status.rows > rows:
                    pause = first
                self._account.note(state=WorkerState.WAITING, trouble=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.5)):
                    await self._stopping.wait()
            pause = min(pause * 2, self._pace.longest_pause_ms / 1000)

    def _may_pass(self, error: AfterwriteError) -> bool:
        """Whether the same try may succeed later."""
        if isinstance(error, SlotHeld):
            # A worker that was killed leaves its sessions behind for a moment; a living one does not go away.
            now = time.monotonic()
            self._held_since = self._held_since or now
            return now - self._held_since < self._pace.takeover_seconds
        self._held_since = None
        match error:
            case ConnectionLost() | NoRoom() | ReadOnly():
                return True
            case DatabaseError():
                # 40 rolled back, 53 out of resources (disk, connections), 55P03 lock timeout, 57 an operator's doing.
                return (error.sqlstate or "").startswith(("40", "53", "55P03", "57"))
            case _:
                return False

    async def _life(self) -> None:
        """Become active, and watch over the slot for as long as sessions come and go."""
        source, pace = self._source, self._pace
        name = f"afterwrite worker {source.slot}"
        async with connect(source.dsn, application_name=name, guarded=True) as control:
            if await control.value(statement("capture.read_in_recovery")):
                raise Refused(
                    f"{control.where} is a standby: nothing can be captured from it", remedy="connect to the primary"
                )
            failpoint("worker.before_claim")
            claimed = await take_claim(
                control,
                source.slot,
                stand_by=self._stand_by,
                silent_seconds=pace.silent_seconds,
                stopping=self._stopping,
                tell=self._account.stand_by,
            )
            if not claimed:
                return
            failpoint("worker.after_claim")
            self._account.note(state=WorkerState.STARTING, active_pid=None, trouble=None)
            watched = Watched(
                slot=source.slot,
                source=source.name,
                publications=source.publications,
                pulse_seconds=pace.pulse_seconds,
                heartbeat_seconds=pace.heartbeat_seconds,
            )
            watch = Watch(control, watched, self._policy, self._account.pulse)
            try:
                async with asyncio.TaskGroup() as group:
                    # The pulse first: to scan a large database takes longer than a silence that others wait out.
                    pulse = group.create_task(watch.run())
                    try:
                        async with self._open_duty() as duty:
                            await self._persist(lambda: self._session(watch, duty))
                    finally:
                        await end_task(pulse)  # a group tells its tasks once
            except BaseExceptionGroup as group:
                error = _worst(group)
                if isinstance(error, BudgetSpent):
                    raise await give_up(control, watched, after=watch.stored_through, reason=str(error)) from error
                raise error from group

    async def _session(self, watch: Watch, duty: Duty) -> None:
        """One stretch of streaming: compare with the store, stream until stopped or broken."""
        source = self._source
        self._account.note(state=WorkerState.STARTING, sessions=self._account.status.sessions + 1)
        async with self._sink() as sink:
            checkpoint = await watch.begin(await sink.read_checkpoint(source.name), await sink.read_identity())
            # Whoever streams this slot under our name has lost the claim, and only does not know it yet.
            await end_stream(watch.control, source.slot)
            observers = (*self._observers, *duty.observers)
            start = min([checkpoint.lsn, *[await each.begin(checkpoint.lsn) for each in observers]])
            slot = await read_slot(watch.control, source.slot)
            failpoint("worker.before_stream")
            async with open_stream(
                source.dsn,
                slot=source.slot,
                publications=source.publications,
                # What is confirmed does not come again, and to confirm less would be a step back.
                start=max(start, slot.confirmed if slot else start),
                system=(checkpoint.system_id, checkpoint.timeline),
                application_name=stream_name(source.slot),
            ) as stream:
                failpoint("worker.after_stream")
                self._held_since = None
                self._has_streamed = True
                self._account.note(state=WorkerState.STREAMING, position=checkpoint.lsn, trouble=None)
                told = msgspec.structs.replace(source, legacy_tables=source.legacy_tables | duty.legacy_tables)
                job = _Job(told, self._pace, observers, self._account)
                session = _Session(job, watch=watch, stream=stream, sink=sink, checkpoint=checkpoint)
                with watch.streaming():
                    try:
                        await session.run(self._stopping)
                    except Refused:
                        # Before PostgreSQL 18 a stream breaks where a publication is gone; the watch knows since when.
                        await watch.look()
                        raise

    @asynccontextmanager
    async def _sink(self) -> AsyncGenerator[Sink]:
        """The sink; once it was there, whatever keeps us from it now may pass."""
        opened = False
        try:
            async with self._open_sink() as sink:
                opened = True
                yield sink
        except DatabaseError as error:
            if opened or not self._has_streamed or isinstance(error, ConnectionLost):
                raise
            raise ConnectionLost(str(error), remedy=error.remedy, sqlstate=error.sqlstate) from error


async def end_task(task: asyncio.Task[None], *, patience: float = 0.0) -> None:
    """Let a task end by itself for so long, then make it; what it raised stays with it.

    The driver, when it is cancelled, asks the server to cancel too and waits for its answer, which one that hangs does
    not give: so it is told again and again.
    """
    await asyncio.wait({task}, timeout=patience)
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_INSIST_SECONDS)


@asynccontextmanager
async def _no_duty() -> AsyncGenerator[Duty]:
    yield Duty()


class _Account:
    """Keeps the status. Small steps are noted in silence; ``note`` also tells whoever asked to be told."""

    def __init__(self, status: WorkerStatus, tell: Callable[[WorkerStatus], None] | None) -> None:
        self.status = status
        self._tell = tell
        self._rows_then = (time.monotonic(), 0)

    def note(self, **changes: object) -> None:
        self.status = msgspec.structs.replace(self.status, **changes)
        if self._tell:
            self._tell(self.status)

    def stored(self, transactions: Sequence[Transaction], rows: int, position: Lsn) -> None:
        status = self.status
        self.status = msgspec.structs.replace(
            status,
            position=position,
            rows=status.rows + rows,
            transactions=status.transactions + len(transactions),
            undecodable_contexts=status.undecodable_contexts + sum(each.misread for each in transactions),
            last_commit_at=transactions[-1].committed_at if transactions else status.last_commit_at,
        )

    def stand_by(self, pid: int | None) -> None:
        """Another worker is active: ``pid`` is its session."""
        self.note(state=WorkerState.STANDING_BY, active_pid=pid, trouble=None)

    def pulse(self, reading: Reading) -> None:
        """Once a pulse: lag, speed, and how the slot stands."""
        now, status, observed = time.monotonic(), self.status, reading.observed
        then, rows = self._rows_then
        self._rows_then = (now, status.rows)
        self.note(
            lag_bytes=None if status.position is None else max(0, reading.wal - status.position),
            lag_seconds=observed.lag_seconds,
            retained_bytes=observed.retained_bytes,
            budget_bytes=reading.budget_bytes,
            spilled_bytes=observed.spilled_bytes,
            health=reading.health,
            findings=reading.findings,
            rows_per_second=(status.rows - rows) / max(now - then, 1e-9),
        )


class _Job(msgspec.Struct, frozen=True):
    """What stays the same from one session to the next."""

    source: Source
    pace: Pace
    observers: tuple[Observer, ...]
    account: _Account


class _Session:
    """The tasks of one session and what they share."""

    def __init__(
        self,
        job: _Job,
        *,
        watch: Watch,
        stream: Stream,
        sink: Sink,
        checkpoint: Checkpoint,
    ) -> None:
        self._source = job.source
        self._pace = job.pace
        self._observers = job.observers
        self._account = job.account
        self._watch = watch
        self._stream = stream
        self._sink = sink
        self._checkpoint = checkpoint
        self._settled = self._shown = stream.acknowledged
        self._forgot = False
        self._backlog = Backlog(job.pace)
        self._assembler = Assembler(
            legacy=job.source.legacy_tables, folder=job.pace.spill_dir, keys=job.source.stamp_keys
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Until ``stopping`` is set (then the batch in flight is finished), or until something breaks."""
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(self._read()),
                    group.create_task(self._stream.keep_informed()),
                    group.create_task(self._settle_regularly()),
                    group.create_task(self._close_when(stopping)),
                ]
                try:
                    while (take := await self._backlog.take()) is not None:
                        try:
                            await self._store(take)
                        finally:
                            for transaction in take.transactions:
                                transaction.close()
                        if not take.transactions:  # the server waits to hear that all is stored
                            await self._settle()
                    await asyncio.gather(*map(end_task, helpers))
                    await self._settle()
                finally:
                    # A group tells its tasks once, which beside a server that hangs is not enough.
                    if stopping.is_set():
                        await asyncio.gather(*map(end_task, helpers))
        except BaseExceptionGroup as group:
            raise _worst(group) from group
        finally:
            self._assembler.close()
            self._backlog.discard()

    async def _close_when(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._backlog.close()

    async def _read(self) -> None:
        assembler = self._assembler
        publications = Publications(self._source.publications, self._source.legacy_publication)
        begin = self._settled
        look_at = 0.0
        while True:
            chunk = await self._stream.read()
            # A composite's fields may be altered without a word in the stream, unlike a table's columns.
            if assembler.types.composites and time.monotonic() >= look_at:
                await refresh_types(assembler, self._watch.control)
                look_at = time.monotonic() + _LOOK_SECONDS
            for payload in chunk.messages:
                if payload[0] == RELATION_TAG:
                    relation = decode(payload)
                    if isinstance(relation, Relation):
                        await teach(assembler, relation, self._watch.control, publications)
                transaction = assembler.feed(payload)
                # The server leaves out what committed before the start; a look here costs nothing and is certain.
                if transaction is not None and transaction.end_lsn > begin:
                    await self._backlog.put(transaction)
            if assembler.is_crowded(self._pace.transaction_bytes):
                # In a thread: a disk may take its time, and the server wants to hear from us meanwhile.
                await asyncio.to_thread(assembler.put_aside)
            if chunk.caught_up is not None and not assembler.in_transaction:
                self._backlog.reach(chunk.caught_up)
            elif self._backlog.gathers and len(chunk.messages) < _FEW_MESSAGES:
                # A batch is not due yet: to wake up for every commit would cost more than to decode it.
                await asyncio.sleep(_GATHER_SECONDS)

    async def _store(self, take: Take) -> None:
        """One batch: shown to the observers while it is stored with its checkpoint."""
        transactions, through = take.transactions, take.through
        # Those that only an observer had not settled are stored already.
        fresh = [each for each in transactions if each.end_lsn > self._checkpoint.lsn]
        if not fresh and through <= self._checkpoint.lsn:
            await self._observe(transactions, through)
            return
        kept = [each for each in fresh if each.changes or each.events]
        told = Told(
            kept,
            source=self._source.name,
            system_id=self._checkpoint.system_id,
            timeline=self._checkpoint.timeline,
            keys=self._source.stamp_keys,
        )
        checkpoint = msgspec.structs.replace(self._checkpoint, lsn=max(through, self._checkpoint.lsn))
        batch = Batch(
            source=self._source.name,
            activities=told,
            transactions=len(kept),
            first_lsn=kept[0].commit_lsn if kept else None,
            last_lsn=kept[-1].commit_lsn if kept else None,
            checkpoint=checkpoint,
            contexts=[
                TransactionContext(
                    commit_lsn=transaction.commit_lsn, xid=transaction.xid, settings=transaction.context.settings
                )
                for transaction in kept
                if transaction.context and transaction.context.settings
            ],
            moments=frozenset(transaction.committed_at for transaction in kept),
        )
        # Neither waits for the other: what is acknowledged, and where a session begins, waits for both.
        observing = asyncio.create_task(self._observe(transactions, through))
        try:
            await self._write(batch)
            await observing
        finally:
            await end_task(observing)
        self._checkpoint = checkpoint
        self._account.stored(kept, len(told), checkpoint.lsn)
        if heard := self._watch.stored(checkpoint, transactions):
            self._account.note(heartbeat_at=heard[0], heartbeat_ms=heard[1])

    async def _observe(self, transactions: Sequence[Transaction], through: Lsn) -> None:
        failpoint("worker.before_observe")
        try:
            for observer in self._observers if transactions else ():
                await observer.observe(transactions)
        except Exception:
            self._forgot = True
            raise
        self._shown = max(self._shown, through)
        failpoint("worker.after_observe")

    async def _write(self, batch: Batch) -> None:
        failpoint("worker.before_write")
        try:
            await self._sink.write(batch)
        except Refused as error:
            await self._overtaken(error)
        failpoint("worker.after_write")

    async def _settle_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._pace.settle_seconds)
            await self._settle()

    async def _settle(self) -> None:
        """Have the observers keep what they saw; then the server may forget what is stored.

        One that failed has forgotten what it saw and not settled, and nothing to settle is no settling: from then on
        nothing is acknowledged, although the session goes on until the batch in flight is stored.
        """
        reached = min(self._checkpoint.lsn, self._shown)
        if reached <= self._settled or self._forgot:
            return
        failpoint("worker.before_settle")
        try:
            for observer in self._observers:
                await observer.settle()
        except Exception:
            self._forgot = True
            raise
        failpoint("worker.after_settle")
        if self._forgot:
            return
        self._settled = max(self._settled, reached)
        failpoint("worker.before_acknowledge")
        self._stream.acknowledge(self._settled)
        failpoint("worker.after_acknowledge")

    async def _overtaken(self, error: Refused) -> None:
        """The last commit of a worker that died may land after its successor has read the checkpoint: begin there."""
        stored = await self._sink.read_checkpoint(self._source.name)
        if stored and stored.system_id == self._checkpoint.system_id and stored.lsn > self._checkpoint.lsn:
            raise ConnectionLost(
                f"source {self._source.name} was stored up to {stored.lsn} by a worker before this one",
                remedy="nothing: it goes on from there",
            ) from error
        raise error


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a session that decides what comes next: a defect before a refusal, that before a lost line."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(cast("BaseExceptionGroup[BaseException]", error).exceptions)
        else:
            leaves.append(error)

    def rank(error: BaseException) -> int:
        match error:
            case ConnectionLost():
                return 3
            case BudgetSpent():
                return 2
            case AfterwriteError():
                return 1
            case _:
                return 0

    return min(leaves, key=rank)


async def run_worker(
    source: Source,
    open_sink: OpenSink,
    *,
    observers: Sequence[Observer] = (),
    pace: Pace | None = None,
    on_status: Callable[[WorkerStatus], None] | None = None,
) -> None:
    """Capture until cancelled; see ``Worker.run``."""
    await Worker(source, open_sink, observers=observers, pace=pace, on_status=on_status).run()
