"""The worker: it reads, decodes, shows the observers, stores, and only then acknowledges.

::

    stream ─▶ assemble ─▶ backlog (bounded) ─▶ observers ─▶ sink.write ─▶ acknowledge
      one task ───────────┘                    another ─────────────────────────┘
      keep_informed: status updates            pulse: claim, lag, heartbeat

Decoding goes on while a batch is on its way to the store, so the two overlap. Whatever goes wrong, the next session
begins at the store's checkpoint: nothing is kept in mind between sessions but counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import StrEnum
from typing import Protocol, cast

import msgspec

from afterwrite.activity import HEARTBEAT_PREFIX, Batch, Checkpoint, Lsn, Sink, TransactionContext
from afterwrite.capture.assemble import Assembler, Told
from afterwrite.capture.backlog import Backlog, Pace, Take
from afterwrite.capture.lookup import Publications, refresh_types, teach
from afterwrite.capture.pgoutput import RELATION_TAG, decode
from afterwrite.capture.preflight import Table, read_slot
from afterwrite.capture.slot import check_continuity, read_system, read_wal_position
from afterwrite.capture.spill import NoRoom
from afterwrite.capture.stream import SlotHeld, Stream, open_stream
from afterwrite.capture.transaction import Relation, Transaction
from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, connect, statement

OpenSink = Callable[[], AbstractAsyncContextManager[Sink]]

_HELD_PAUSE_SECONDS = 0.25
# A function in a schema that anybody may create in can be a better match than pg_catalog's own, and would run as us.
_SESSION = {"search_path": "pg_catalog"}
# How old may be what is known of composites; tables without any do not ask.
_LOOK_SECONDS = 0.1


class Observer(Protocol):
    """Somebody who sees every transaction before it is stored, such as the prover."""

    async def observe(self, transactions: Sequence[Transaction]) -> None:
        """Take note of them, in commit order; durable when it returns.

        It may be shown a transaction again after a crash: it keeps its own watermark and skips what it has seen.
        """
        ...


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The database to read and what to read there.

    A table is a legacy log when only ``legacy_publication`` lists it, or when ``legacy_tables`` names it.
    """

    dsn: str | None
    name: str
    slot: str = "afterwrite"
    publications: tuple[str, ...] = ("afterwrite", "afterwrite_legacy")
    legacy_publication: str = "afterwrite_legacy"
    legacy_tables: frozenset[Table] = frozenset()


class WorkerState(StrEnum):
    """``starting`` at the begin of each session, ``streaming`` once it reads, ``waiting`` while it backs off."""

    STARTING = "starting"
    STREAMING = "streaming"
    WAITING = "waiting"
    STOPPED = "stopped"


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where the worker is. Counters count since it was made; ``position`` is the store's checkpoint.

    ``heartbeat_at`` and ``heartbeat_ms`` tell when the last heartbeat went through WAL, stream and store, and how long
    that took. ``trouble`` is what it waits out.
    """

    state: WorkerState
    source: str
    position: Lsn | None = None
    lag_bytes: int | None = None
    last_commit_at: datetime | None = None
    transactions: int = 0
    rows: int = 0
    rows_per_second: float = 0.0
    undecodable_contexts: int = 0
    heartbeat_at: datetime | None = None
    heartbeat_ms: float | None = None
    sessions: int = 0
    trouble: str | None = None


class Worker:
    """The active worker of one source. ``run()`` ends when ``stop()`` was called, or with what cannot be waited out."""

    def __init__(
        self,
        source: Source,
        open_sink: OpenSink,
        *,
        observers: Sequence[Observer] = (),
        pace: Pace | None = None,
        on_status: Callable[[WorkerStatus], None] | None = None,
    ) -> None:
        self._source = source
        self._open_sink = open_sink
        self._observers = tuple(observers)
        self._pace = pace or Pace()
        self._account = _Account(WorkerStatus(state=WorkerState.STARTING, source=source.name), on_status)
        self._stopping = asyncio.Event()
        self._held_since: float | None = None

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
        await asyncio.wait({inner}, timeout=self._pace.stop_seconds)
        inner.cancel()
        try:
            await inner
        except asyncio.CancelledError:
            pass
        except AfterwriteError:
            if cancelled is None:
                raise
        finally:
            self._account.note(state=WorkerState.STOPPED)
        if cancelled is not None:
            raise cancelled

    async def _run(self) -> None:
        first = self._pace.first_pause_ms / 1000
        pause = first
        while not self._stopping.is_set():
            rows = self._account.status.rows
            try:
                await self._session()
                return
            except AfterwriteError as error:
                if not self._may_pass(error):
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
            case ConnectionLost() | NoRoom():
                return True
            case DatabaseError():
                # 40 rolled back, 53 out of resources (disk, connections), 55P03 lock timeout, 57 an operator's doing.
                return (error.sqlstate or "").startswith(("40", "53", "55P03", "57"))
            case _:
                return False

    async def _session(self) -> None:
        """One life between two connections: claim, compare, stream until stopped or broken."""
        source = self._source
        self._account.note(state=WorkerState.STARTING, sessions=self._account.status.sessions + 1)
        async with (
            connect(source.dsn, application_name=f"afterwrite worker {source.slot}", options=_SESSION) as control,
            self._open_sink() as sink,
        ):
            failpoint("worker.before_claim")
            await _claim(control, source.slot)
            failpoint("worker.after_claim")
            checkpoint = await sink.read_checkpoint(source.name)
            if checkpoint is None:
                raise Refused(
                    f"the store knows nothing of source {source.name}: no checkpoint was ever written",
                    remedy="run `afterwrite install --apply`",
                )
            check_continuity(checkpoint, await read_slot(control, source.slot), await read_system(control))
            failpoint("worker.before_stream")
            async with open_stream(
                source.dsn, slot=source.slot, publications=source.publications, start=checkpoint.lsn
            ) as stream:
                failpoint("worker.after_stream")
                self._held_since = None
                self._account.note(state=WorkerState.STREAMING, position=checkpoint.lsn, trouble=None)
                job = _Job(source, self._pace, self._observers, self._account)
                session = _Session(job, control=control, stream=stream, sink=sink, checkpoint=checkpoint)
                await session.run(self._stopping)


async def _claim(control: Database, slot: str) -> None:
    """Be the one active worker, for as long as this connection lives."""
    if await control.value(statement("capture.try_claim"), slot=slot):
        return
    pid = await control.value(statement("capture.read_claim_holder"), slot=slot)
    raise SlotHeld(
        f"another worker is active on slot {slot}: its session on {control.where} has pid {pid or 'unknown'}",
        remedy=f"stop that worker first, or end its session with select pg_terminate_backend({pid or 'pid'})",
        pid=pid,
    )


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

    def beat(self, wal: Lsn) -> None:
        """Once a pulse: lag and speed."""
        now, status = time.monotonic(), self.status
        then, rows = self._rows_then
        self._rows_then = (now, status.rows)
        self.note(
            lag_bytes=max(0, wal - (status.position or wal)),
            rows_per_second=(status.rows - rows) / max(now - then, 1e-9),
        )


class _Pulse(msgspec.Struct, frozen=True, kw_only=True):
    wal: str
    gone: list[str]


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
        control: Database,
        stream: Stream,
        sink: Sink,
        checkpoint: Checkpoint,
    ) -> None:
        self._source = job.source
        self._pace = job.pace
        self._observers = job.observers
        self._account = job.account
        self._control = control
        self._stream = stream
        self._sink = sink
        self._checkpoint = checkpoint
        self._backlog = Backlog(job.pace)
        self._assembler = Assembler(legacy=job.source.legacy_tables, folder=job.pace.spill_dir)
        self._stored_at = time.monotonic()
        self._heartbeats = 0
        self._heartbeat = b""
        self._heartbeat_sent = 0.0
        self._heartbeat_after = Lsn(0)

    async def run(self, stopping: asyncio.Event) -> None:
        """Until ``stopping`` is set (then the batch in flight is finished), or until something breaks."""
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(self._read()),
                    group.create_task(self._stream.keep_informed()),
                    group.create_task(self._pulse()),
                    group.create_task(self._close_when(stopping)),
                ]
                while (take := await self._backlog.take()) is not None:
                    try:
                        await self._store(take)
                    finally:
                        for transaction in take.transactions:
                            transaction.close()
                for helper in helpers:
                    helper.cancel()
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
        begin = self._checkpoint.lsn
        look_at = 0.0
        while True:
            chunk = await self._stream.read()
            # A composite's fields may be altered without a word in the stream, unlike a table's columns.
            if assembler.types.composites and time.monotonic() >= look_at:
                await refresh_types(assembler, self._control)
                look_at = time.monotonic() + _LOOK_SECONDS
            for payload in chunk.messages:
                if payload[0] == RELATION_TAG:
                    relation = decode(payload)
                    if isinstance(relation, Relation):
                        await teach(assembler, relation, self._control, publications)
                transaction = assembler.feed(payload)
                # The server leaves out what committed before the start; a look here costs nothing and is certain.
                if transaction is not None and transaction.end_lsn > begin:
                    await self._backlog.put(transaction)
            if assembler.is_crowded(self._pace.transaction_bytes):
                # In a thread: a disk may take its time, and the server wants to hear from us meanwhile.
                await asyncio.to_thread(assembler.put_aside)
            if chunk.caught_up is not None and not assembler.in_transaction:
                self._backlog.reach(chunk.caught_up)

    async def _store(self, take: Take) -> None:
        """One batch: shown, stored with its checkpoint, acknowledged."""
        transactions, through = take.transactions, take.through
        if not transactions and through <= self._checkpoint.lsn:
            return
        failpoint("worker.before_observe")
        for observer in self._observers if transactions else ():
            await observer.observe(transactions)
        failpoint("worker.after_observe")
        kept = [each for each in transactions if each.changes or each.events]
        told = Told(
            kept, source=self._source.name, system_id=self._checkpoint.system_id, timeline=self._checkpoint.timeline
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
        failpoint("worker.before_write")
        try:
            await self._sink.write(batch)
        except Refused as error:
            await self._overtaken(error)
        failpoint("worker.after_write")
        self._checkpoint = checkpoint
        failpoint("worker.before_acknowledge")
        self._stream.acknowledge(checkpoint.lsn)
        failpoint("worker.after_acknowledge")
        self._stored_at = time.monotonic()
        self._account.stored(kept, len(told), checkpoint.lsn)
        self._hear(transactions)

    async def _overtaken(self, error: Refused) -> None:
        """The last commit of a worker that died may land after its successor has read the checkpoint: begin there."""
        stored = await self._sink.read_checkpoint(self._source.name)
        if stored and stored.system_id == self._checkpoint.system_id and stored.lsn > self._checkpoint.lsn:
            raise ConnectionLost(
                f"source {self._source.name} was stored up to {stored.lsn} by a worker before this one",
                remedy="nothing: it goes on from there",
            ) from error
        raise error

    async def _pulse(self) -> None:
        """Hold the claim, measure the lag, and move the slot on while only others write.

        A query a second on the claiming connection also notices when that connection, and the claim with it, is gone.
        """
        while True:
            wal = await self._feel()
            self._account.beat(wal)
            idle = time.monotonic() - max(self._stored_at, self._heartbeat_sent)
            if idle >= self._pace.heartbeat_seconds and wal > max(self._heartbeat_after, self._checkpoint.lsn):
                await self._emit_heartbeat()
            await asyncio.sleep(self._pace.pulse_seconds)

    async def _feel(self) -> Lsn:
        pulse = await self._control.one(
            _Pulse, statement("capture.read_pulse"), publications=list(self._source.publications)
        )
        if pulse.gone:
            # PostgreSQL 18 streams on without a publication that is gone, and only warns in its log.
            raise Refused(
                f"publication {', '.join(pulse.gone)} was dropped under slot {self._source.slot}: changes committed"
                f" after {self._checkpoint.lsn} may be missing from the store",
                remedy="run `afterwrite install --apply --accept-gap`, which begins anew and records the gap",
            )
        return Lsn.parse(pulse.wal)

    async def _emit_heartbeat(self) -> None:
        self._heartbeats += 1
        content = f'{{"heartbeat":{self._heartbeats},"sent":{time.time_ns()}}}'
        self._heartbeat, self._heartbeat_sent = content.encode(), time.monotonic()
        failpoint("worker.before_heartbeat")
        await self._control.value(statement("capture.emit_heartbeat"), content=content)
        failpoint("worker.after_heartbeat")
        self._heartbeat_after = await read_wal_position(self._control)

    def _hear(self, transactions: Sequence[Transaction]) -> None:
        """Note the heartbeat's return: it went through WAL, stream and store."""
        if not self._heartbeat:
            return
        for transaction in transactions:
            # Its transaction says nothing else.
            for message in transaction.messages if len(transaction.messages) == 1 else ():
                if message.prefix == HEARTBEAT_PREFIX and message.content == self._heartbeat:
                    took = (time.monotonic() - self._heartbeat_sent) * 1000
                    self._heartbeat = b""
                    self._account.note(heartbeat_at=transaction.committed_at, heartbeat_ms=took)


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
        if isinstance(error, ConnectionLost):
            return 2
        return 1 if isinstance(error, AfterwriteError) else 0

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
