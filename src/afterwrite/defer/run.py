"""Running jobs: each source transaction in one of its own, tried again when that may help, parked when it does not.

::

    jobs ──▶ together, in one round trip ──▶ done
                 │ one of them fails
                 ▼
             that one alone ──▶ again (a lock, a race) ──▶ each call by itself: what fails is parked, or stops us

Where the effects' progress is kept, and in which words the server is asked, is the track's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import msgspec
import psycopg

from afterwrite.defer.calls import (
    Job,
    LongJob,
    LongPlan,
    ReplayPolicy,
    count_bytes,
    count_rows,
    split_job,
)
from afterwrite.defer.deferral import DeferralRow, parse_lsn, refresh_deferral
from afterwrite.defer.feed import LongTransaction, read_changes
from afterwrite.defer.transplant import STALE
from afterwrite.errors import AfterwriteError, ConnectionLost
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database
from afterwrite.record import Lsn

log = logging.getLogger(__name__)

MOVED = "AW001"
# What is sent at once: far below the 256 MB that jsonb holds.
_PIECE_ROWS = 10_000
_PIECE_BYTES = 32 * 1024 * 1024
_LONGEST_PAUSE = 5.0
_TRANSIENT = frozenset({"55P03", "55006", "57014", "HV00N", "XX000"})
_TRANSIENT_CLASSES = frozenset({"40", "08"})


class Track(Protocol):
    """Where effects and their progress go. ``reached`` is how far it stands, as last read."""

    @property
    def reached(self) -> Lsn: ...

    async def send(self, jobs: Sequence[Job]) -> None:
        """Run these jobs, each in a transaction of its own that moves the progress."""
        ...

    async def send_one(self, job: Job, *, guarded: bool) -> None:
        """Run this job, or a piece of one, in the transaction that is open."""
        ...

    async def note(self, job: Job | None) -> None:
        """Read how far it stands now; ``job`` was the last that ran."""
        ...

    async def halt(self, job: Job, trouble: AfterwriteError) -> None:
        """Tell that a body fails which must not be passed over."""
        ...

    async def rows_of(self, deferrals: Collection[int]) -> Sequence[DeferralRow]:
        """Those of these deferrals whose functions may be made again."""
        ...


class LongWork(NamedTuple):
    """A job whose changes are read while it runs."""

    job: LongJob
    transaction: LongTransaction


Work = Job | LongWork


class MovedError(Exception):
    """The progress is not where we left it: somebody else ran what we were about to run."""


class Runner:
    """Runs what is planned on a track. ``relations`` are the tables that long transactions are read for."""

    def __init__(self, db: Database, store: Database, track: Track, policy: ReplayPolicy) -> None:
        self.stop = asyncio.Event()
        self.relations: frozenset[str] = frozenset()
        self._db = db
        self._store = store
        self._track = track
        self._policy = policy

    async def run(self, jobs: Sequence[Work]) -> None:
        """Run these jobs in order; what goes wrong with one is settled before the next."""
        remaining = list(jobs)
        while remaining:
            together = _small_ones(remaining)
            failpoint("defer.before_run")
            try:
                if together:
                    await self._track.send(together)
                else:
                    await self.run_one(remaining[0], guarded=False)
                failpoint("defer.after_run")
            except AfterwriteError as error:
                raise_unless_of_a_body(error)
                await self._track.note(None)
                remaining = [job for job in remaining if parse_lsn(head(job).reached) > self._track.reached]
                if remaining:
                    await self._run_carefully(remaining.pop(0), error)
                continue
            remaining = remaining[len(together) or 1 :]
            await self._track.note(together[-1] if together else None)

    async def _run_carefully(self, job: Work, trouble: AfterwriteError) -> None:
        """A job failed: try again what may pass, then park the calls that fail, or wait for people."""
        attempt, guarded, refreshed = 1, False, False
        while True:
            state = sqlstate(trouble)
            if state == STALE and not refreshed:
                await self.refresh(job)
                refreshed = True
            elif is_transient(state) and attempt < self._policy.attempts:
                await pause(self.stop, backoff(attempt))
            elif not guarded:
                guarded = True
            elif head(job).stops:
                await self._track.halt(head(job), trouble)
                await pause(self.stop, backoff(attempt))
                refreshed = False
            else:
                raise trouble
            if self.stop.is_set():
                raise MovedError
            attempt += 1
            try:
                await self.run_one(job, guarded=guarded, attempts=attempt, last=attempt >= self._policy.attempts)
            except AfterwriteError as error:
                raise_unless_of_a_body(error)
                trouble = error
            else:
                await self._track.note(head(job))
                return

    async def run_one(self, job: Work, *, guarded: bool, attempts: int = 1, last: bool = False) -> None:
        """Run a job in one transaction; guarded, each call by itself, and those that fail are parked.

        What may pass is parked only at the ``last`` attempt.
        """
        async with self._db.transaction():
            async for part in self._parts(job):
                tried = msgspec.structs.replace(part, attempts=attempts, last=last)
                for piece in split_job(tried, _PIECE_ROWS, _PIECE_BYTES):
                    await self._track.send_one(piece, guarded=guarded)

    async def _parts(self, job: Work) -> AsyncGenerator[Job]:
        """A job as it is, or the parts of a long one as they are read from the store."""
        if isinstance(job, Job):
            yield job
            return
        plan = LongPlan(job.job)
        async for changes in read_changes(self._store, job.transaction, self.relations):
            if part := plan.rows(changes):
                yield part
        if part := plan.statements():
            yield part
        if plan.puts_off:
            async for changes in read_changes(self._store, job.transaction, self.relations):
                if part := plan.late_rows(changes):
                    yield part
        yield plan.end()

    async def refresh(self, job: Work) -> None:
        """Make the functions that a job calls again, for their tables as they are now."""
        for row in await self._track.rows_of(_called(job)):
            await refresh_deferral(self._db, row)


def head(job: Work) -> Job:
    """What is known of a job before its changes are read."""
    return job if isinstance(job, Job) else job.job.head


def _called(job: Work) -> set[int]:
    if isinstance(job, Job):
        return {deferral for group in job.groups for deferral in group.deferrals}
    return {deferral.id for deferral in job.job.coverage.deferrals}


def _small_ones(jobs: Sequence[Work]) -> list[Job]:
    """The jobs ahead that go in one round trip; none when the first is so big that it goes in pieces."""
    taken: list[Job] = []
    rows, size = 0, 0
    for job in jobs:
        if not isinstance(job, Job):
            break
        rows, size = rows + count_rows(job), size + count_bytes(job)
        if rows > _PIECE_ROWS or size > _PIECE_BYTES:
            break
        taken.append(job)
    return taken


def sqlstate(error: AfterwriteError) -> str | None:
    """The server's word for what went wrong, where it was the server who said so."""
    return error.__cause__.sqlstate if isinstance(error.__cause__, psycopg.Error) else None


def words(error: AfterwriteError) -> str:
    """What the server says of it in one line, without where."""
    cause = error.__cause__
    primary = cause.diag.message_primary if isinstance(cause, psycopg.Error) else None
    return primary or str(error)


def is_transient(state: str | None) -> bool:
    """Whether a body that failed like this may succeed when it is tried again; as afterwrite.is_transient() has it."""
    return state is not None and (state in _TRANSIENT or state[:2] in _TRANSIENT_CLASSES)


def is_outage(error: AfterwriteError) -> bool:
    """Whether the server is away, out of its means (classes 53 and 58) or a standby now: time or people mend it."""
    cause = error.__cause__
    if isinstance(cause, psycopg.Error) and (cause.sqlstate or "").startswith("08") and cause.diag.severity == "ERROR":
        return False  # our line is well: it is a body (dblink, a foreign table) that lost its own
    state = sqlstate(error) or ""
    return isinstance(error, ConnectionLost) or state[:2] in {"53", "58"} or state == "25006"


def raise_unless_of_a_body(error: AfterwriteError) -> None:
    """A lost connection, a full disk and a moved progress are no fault of the job's."""
    if is_outage(error) or sqlstate(error) is None:
        raise error
    if sqlstate(error) == MOVED:
        raise MovedError from error


def backoff(attempt: int) -> float:
    """How long to wait before the next attempt, in seconds."""
    return min(0.05 * 2 ** min(attempt, 10), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, and no longer when told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
