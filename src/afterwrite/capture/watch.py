"""The active worker's watch over its slot: the claim that only one can hold, and a pulse for as long as it holds it.

::

    take_claim: an advisory lock of the session ─▶ Watch.run: once a second, one query
      held by another ─▶ stand by                     ├─ publications as they were, the slot ours, or refuse
        silent for too long ─▶ end its sessions       ├─ judge (governor): tell, or give the slot up
                                                      └─ heartbeat, and whether the last one came back

It goes on while the store is down and nothing streams: that is when a slot grows. What it learns is told to the worker,
what forbids going on is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from datetime import datetime

import msgspec

from afterwrite.capture.continuity import (
    Departure,
    GapKind,
    check_departures,
    judge_departure,
    note_gap,
)
from afterwrite.capture.governor import LagClock, Observed, Policy, human_bytes, judge
from afterwrite.capture.preflight import read_slot
from afterwrite.capture.slot import (
    ClaimHolder,
    check_memory,
    drop_slot,
    read_wal_position,
    refuse_without_slot,
)
from afterwrite.capture.stream import SlotHeld
from afterwrite.capture.transaction import Transaction
from afterwrite.errors import AfterwriteError, Finding, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, statement
from afterwrite.record import HEARTBEAT_PREFIX, Checkpoint, Lsn

log = logging.getLogger(__name__)

_STAND_BY_SECONDS = 0.5
_NOTE_SECONDS = 60.0
# For so long a dropped table is kept in mind, so that another of its name is told of: migrations drop and create.
_FORGET_SECONDS = 3600.0
_DROP_TRIES = 40
_DROP_PAUSE_SECONDS = 0.25


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What is watched: a slot, its source's name in the store, its publications, and how often we look."""

    slot: str
    source: str
    publications: tuple[str, ...]
    pulse_seconds: float
    heartbeat_seconds: float


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one pulse found: the numbers, the budget, and what is to be told."""

    wal: Lsn
    observed: Observed
    health: str
    budget_bytes: int
    findings: tuple[Finding, ...]


class BudgetSpent(AfterwriteError):  # noqa: N818 - the sentence that it says
    """The slot is to be given up by the operator's policy."""


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a slot and at whose it is, as the server gives it; ``departures`` is JSON."""

    wal: str
    present: bool
    restart_lsn: str | None
    confirmed_flush_lsn: str | None
    wal_status: str | None
    safe_wal_size: int | None
    active_pid: int | None
    invalidation: str | None
    catalog_age: int | None
    spilled_bytes: int | None
    store: str | None
    departures: str


async def read_pulse(database: Database, slot: str) -> Pulse:
    """How the slot stands now."""
    return await database.one(Pulse, statement("capture.read_pulse"), slot=slot)


def observe(pulse: Pulse, slot: str, position: Lsn | None) -> Observed:
    """What can be said of one pulse alone; ``position`` is how far the store is. Pure."""
    wal = Lsn.parse(pulse.wal)
    return Observed(
        slot=slot,
        retained_bytes=max(0, wal - Lsn.parse(pulse.restart_lsn)) if pulse.restart_lsn else 0,
        lag_bytes=None if position is None else max(0, wal - position),
        wal_status=pulse.wal_status,
        safe_wal_size=pulse.safe_wal_size,
        catalog_age=pulse.catalog_age,
        spilled_bytes=pulse.spilled_bytes,
    )


async def take_claim(
    control: Database,
    slot: str,
    *,
    stand_by: bool,
    silent_seconds: float,
    stopping: asyncio.Event,
    tell: Callable[[int | None], None],
) -> bool:
    """Become the one active worker, for as long as this connection lives; False when stopped before.

    Where another is active, ``stand_by`` waits for it to go, telling its pid, and ends the sessions of one that has
    asked nothing for ``silent_seconds`` (it asks every second; one whose server is slow is not silent). Otherwise
    raises SlotHeld. The store's checkpoint, locked by each sink transaction, still decides what is stored, so that a
    worker that wakes up again can neither double nor lose.
    """
    while not await control.value(statement("capture.try_claim"), slot=slot):
        holder = await control.maybe(ClaimHolder, statement("capture.read_claim_holder"), slot=slot)
        pid = holder.pid if holder else None
        if not stand_by:
            raise SlotHeld(
                f"another worker is active on slot {slot}: its session on {control.where} has pid {pid or 'unknown'}",
                remedy=f"stop that worker first, or end its session with select pg_terminate_backend({pid or 'pid'})",
                pid=pid,
            )
        tell(pid)
        if holder and holder.silent_seconds is not None and holder.silent_seconds > silent_seconds:
            await _end_silent(control, slot, holder)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STAND_BY_SECONDS):
                await stopping.wait()
        if stopping.is_set():
            return False
    return True


async def _end_silent(control: Database, slot: str, holder: ClaimHolder) -> None:
    pids: list[int] = await control.values(statement("capture.end_sessions"), pids=[holder.pid])
    pids += await end_stream(control, slot)
    if pids:
        log.warning(
            "the active worker of slot %s said nothing for %.0f s: ended its sessions (pid %s) to take over",
            slot,
            holder.silent_seconds,
            ", ".join(map(str, pids)),
        )


def stream_name(slot: str) -> str:
    """The application name of a worker's stream, by which its successor knows it for one of ours."""
    return f"afterwrite stream {slot}"


async def end_stream(control: Database, slot: str) -> list[int]:
    """End what streams this slot, if a worker of ours opened it. Only who holds the claim may do that."""
    return await control.values(statement("capture.end_stream"), slot=slot, application_name=stream_name(slot))


async def give_up(control: Database, watched: Watched, *, after: Lsn, reason: str) -> Refused:
    """Drop the slot, so that it keeps no more of the user's disk; the loss is written down first, in the source.

    A crash between the two leaves a slot that is only said to be given up: the next worker goes on with it. The answer
    is the refusal to end with.
    """
    slot = watched.slot
    failpoint("governor.before_give_up")
    await note_gap(control, slot=slot, source=watched.source, kind=GapKind.GIVEN_UP, from_lsn=after, reason=reason)
    failpoint("governor.before_drop")
    for _ in range(_DROP_TRIES):
        state = await read_slot(control, slot)
        if state is None or state.active_pid is None:
            break
        await end_stream(control, slot)
        await asyncio.sleep(_DROP_PAUSE_SECONDS)
    await drop_slot(control, slot)
    failpoint("governor.after_give_up")
    return Refused(
        f"slot {slot} was given up: {reason}; changes committed after {after} are missing from the store",
        remedy="see what kept the store from taking them, then run `afterwrite install --apply`, which begins anew and"
        " writes the gap into the store",
    )


class Watch:
    """One claim's life. ``run`` pulses until something forbids going on; sessions beside it say what they stored."""

    def __init__(
        self, control: Database, watched: Watched, policy: Policy, on_reading: Callable[[Reading], None]
    ) -> None:
        self._control = control
        self._watched = watched
        self._policy = policy
        self._on_reading = on_reading
        self._checkpoint: Checkpoint | None = None
        self._store: str | None = None
        self._streaming = False
        self._clock = LagClock()
        self._stored_at = time.monotonic()
        self._seen: Lsn | None = None
        self._intact: Lsn | None = None
        self._noted_at = time.monotonic()
        self._heartbeats = 0
        self._heartbeat = b""
        self._heartbeat_sent = 0.0
        self._waiting_since: float | None = None
        self._quiet_after = Lsn(0)
        self._confirmed = Lsn(0)
        self._dropped: frozenset[str | None] = frozenset()
        self._dropped_before = Lsn(0)
        self._dropped_at = 0.0
        # A session compares in a transaction of its own, over the connection that pulses meanwhile.
        self._turn = asyncio.Lock()

    @property
    def control(self) -> Database:
        """The connection that holds the claim; sessions may ask the catalog over it."""
        return self._control

    async def begin(self, checkpoint: Checkpoint | None, store: str) -> Checkpoint:
        """What a session asks before it streams; raises Refused where going on would lose or double."""
        watched = self._watched
        async with self._turn:
            self._checkpoint = await check_memory(
                self._control,
                checkpoint,
                store,
                slot=watched.slot,
                source=watched.source,
                publications=watched.publications,
            )
        self._store = store
        return self._checkpoint

    @contextlib.contextmanager
    def streaming(self) -> Generator[None]:
        """While a session streams: then heartbeats come back."""
        self._streaming = True
        self._stored_at = time.monotonic()
        try:
            yield
        finally:
            self._streaming = False
            self._heartbeat, self._waiting_since = b"", None

    def stored(self, checkpoint: Checkpoint, transactions: Sequence[Transaction]) -> tuple[datetime, float] | None:
        """A session stored these; when and how fast the heartbeat came back, if it was among them."""
        self._checkpoint, self._stored_at = checkpoint, time.monotonic()
        if not self._heartbeat:
            return None
        for transaction in transactions:
            # Its transaction says nothing else.
            for message in transaction.messages if len(transaction.messages) == 1 else ():
                if message.prefix == HEARTBEAT_PREFIX and message.content == self._heartbeat:
                    took = (time.monotonic() - self._heartbeat_sent) * 1000
                    self._heartbeat, self._waiting_since = b"", None
                    return transaction.committed_at, took
        return None

    async def run(self) -> None:
        """Once a second until cancelled. Raises Refused, or BudgetSpent when the slot is to be given up.

        A query a second on the claiming connection also notices when that connection, and the claim with it, is gone.
        """
        while True:
            async with self._turn:
                wal = await self._feel()
                if self._streaming:
                    await self._beat(wal)
                await self._note_intact(wal)
            await asyncio.sleep(self._watched.pulse_seconds)

    @property
    def stored_through(self) -> Lsn:
        """Up to where all is certainly stored."""
        return self._confirmed if self._checkpoint is None else max(self._confirmed, self._checkpoint.lsn)

    async def _feel(self) -> Lsn:
        slot = self._watched.slot
        pulse = await read_pulse(self._control, slot)
        wal, now = Lsn.parse(pulse.wal), time.monotonic()
        self._confirmed = Lsn.parse(pulse.confirmed_flush_lsn or "0/0")
        departures = msgspec.json.decode(pulse.departures, type=list[Departure])
        await self._check(pulse, departures)
        # This look may be a moment older than the position that came with it; the one before is certainly not.
        self._intact, self._seen = self._seen, wal
        await self._forget(frozenset(each.relation for each in departures if each.kind == "table dropped"), wal)
        self._clock.note(now, wal)
        position = self._checkpoint.lsn if self._checkpoint else None
        observed = msgspec.structs.replace(
            observe(pulse, slot, position),
            lag_seconds=None if position is None else self._clock.behind(now, position),
            heartbeat_seconds=None if self._waiting_since is None else now - self._waiting_since,
            stored_seconds=now - self._stored_at,
        )
        judgement = judge(observed, self._policy)
        told = [finding for departure in departures for finding in judge_departure(departure)]
        self._on_reading(
            Reading(
                wal=wal,
                observed=observed,
                health=judgement.health.value,
                budget_bytes=judgement.budget_bytes,
                findings=(*judgement.findings, *told),
            )
        )
        if judgement.give_up:
            raise BudgetSpent(
                f"it kept {human_bytes(observed.retained_bytes)} of WAL, and the budget is"
                f" {human_bytes(self._policy.wal_budget)} (wal_budget, over_budget)"
            )
        return wal

    async def _forget(self, dropped: frozenset[str | None], wal: Lsn) -> None:
        """Forget tables dropped a while ago, once their last rows, read with the keys remembered, are stored."""
        if not dropped <= self._dropped:
            self._dropped, self._dropped_before, self._dropped_at = dropped, wal, time.monotonic()
        late = time.monotonic() - self._dropped_at >= _FORGET_SECONDS
        if dropped and late and self.stored_through >= self._dropped_before:
            count = await self._control.run(statement("capture.forget_dropped"), slot=self._watched.slot)
            log.info("%d tables of slot %s were dropped; nothing of them is lost", count, self._watched.slot)

    async def look(self) -> None:
        """A pulse out of turn: raises what ``run`` would."""
        async with self._turn:
            await self._feel()

    async def _check(self, pulse: Pulse, departures: Sequence[Departure]) -> None:
        slot, checkpoint = self._watched.slot, self._checkpoint
        try:
            # PostgreSQL 18 streams on without a publication that is gone, and only warns in its log.
            check_departures(slot, departures, self._intact or self._seen)
        except Refused:
            if self._intact:
                await self._control.run(statement("capture.note_intact"), slot=slot, lsn=str(self._intact))
            raise
        if self._store is not None and pulse.store != self._store:
            raise Refused(
                f"slot {slot} was taken over by another store ({pulse.store}) while this worker wrote to {self._store}",
                remedy="run the worker with the store that was installed last",
            )
        if not pulse.present or pulse.wal_status == "lost" or pulse.invalidation:
            await refuse_without_slot(self._control, slot, checkpoint)

    async def _beat(self, wal: Lsn) -> None:
        """Move the slot on while only others write."""
        beyond = max(self._quiet_after, self._checkpoint.lsn if self._checkpoint else Lsn(0))
        idle = time.monotonic() - max(self._stored_at, self._heartbeat_sent)
        if idle < self._watched.heartbeat_seconds or wal <= beyond:
            return
        self._heartbeats += 1
        content = f'{{"heartbeat":{self._heartbeats},"sent":{time.time_ns()}}}'
        self._heartbeat, self._heartbeat_sent = content.encode(), time.monotonic()
        self._waiting_since = self._waiting_since or self._heartbeat_sent
        failpoint("worker.before_heartbeat")
        await self._control.value(statement("capture.emit_heartbeat"), content=content)
        failpoint("worker.after_heartbeat")
        self._quiet_after = await read_wal_position(self._control)

    async def _note_intact(self, wal: Lsn) -> None:
        """Now and then, so that the bounds of a gap are near, also when we are killed; not while nobody writes."""
        if self._intact is None or wal <= self._quiet_after or time.monotonic() - self._noted_at < _NOTE_SECONDS:
            return
        self._noted_at = time.monotonic()
        await self._control.run(statement("capture.note_intact"), slot=self._watched.slot, lsn=str(self._intact))
        self._quiet_after = await read_wal_position(self._control)
