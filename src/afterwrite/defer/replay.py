"""The replayer: runs deferred bodies in commit order, exactly once, each source transaction in one of its own.

::

    store's feed ─▶ steps ─▶ plan_job ─▶ source: run_deferred_each(jobs)
                      │ marks              lock the progress, compare it, run the bodies, move the progress: commit
                      └▶ a deferral goes live, or ends

A crash, a lost connection or a second replayer changes nothing: what the progress says is what has run, since it
commits with the effects. One stamp holds for a whole transaction, so source transactions are never run together.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec
import psycopg

from afterwrite.activity import Lsn
from afterwrite.defer.calls import (
    Coverage,
    Job,
    LongJob,
    LongPlan,
    OnError,
    ReplayPolicy,
    count_bytes,
    count_rows,
    encode_jobs,
    plan_job,
    plan_long_job,
    split_job,
)
from afterwrite.defer.deferral import ActiveDeferral, parse_lsn, read_active, read_deferrals, refresh_deferral
from afterwrite.defer.feed import LongTransaction, Mark, Place, Step, read_changes, read_next_batches, read_steps
from afterwrite.defer.progress import Progress, ProgressRow, read_progress
from afterwrite.defer.transplant import STALE
from afterwrite.errors import AfterwriteError, ConnectionLost, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, connect, statement, translated

log = logging.getLogger(__name__)

MOVED = "AW001"
_TRANSIENT = frozenset({"40001", "40P01", "55P03"})
# What is sent at once: far below the 256 MB that jsonb holds.
_PIECE_ROWS = 10_000
_PIECE_BYTES = 32 * 1024 * 1024
_LAZY_SECONDS = 0.25
_STANDBY_SECONDS = 1.0
_NOTHING_DEFERRED_SECONDS = 1.0
_LONGEST_PAUSE = 5.0


class ReplayState(StrEnum):
    """What a replayer is at. Only ``halted`` needs people: a body fails, and the policy is to stop."""

    CONNECTING = "connecting"
    STANDBY = "standby"
    RUNNING = "running"
    IDLE = "idle"
    HALTED = "halted"
    STOPPED = "stopped"


class ReplayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``lag_seconds`` is how long ago the last transaction that was run had committed, at the moment when it ran."""

    state: ReplayState
    progress: Progress | None = None
    lag_seconds: float | None = None
    trouble: str | None = None


OnStatus = Callable[[ReplayStatus], None]


def _say_nothing(status: ReplayStatus) -> None:
    del status


async def run_replayer(
    source_dsn: str | None,
    store_dsn: str | None,
    source: str,
    *,
    policy: ReplayPolicy | None = None,
    stop: asyncio.Event | None = None,
    on_status: OnStatus | None = None,
) -> None:
    """Run the deferred bodies of a source until ``stop``, through lost connections, restarts and full disks.

    A second replayer of the same source stands by until the first has gone. Raises AfterwriteError only for what time
    does not mend: no schema, no privilege, a trigger that was silenced to be deferred without a prepared body.
    """
    policy, stop = policy or ReplayPolicy(), stop or asyncio.Event()
    say = on_status or _say_nothing
    failures = 0
    while not stop.is_set():
        try:
            async with (
                connect(source_dsn, application_name="afterwrite defer", options=_session(policy)) as db,
                connect(store_dsn, application_name="afterwrite defer: feed", options=_FEED_SESSION) as store,
            ):
                if not await db.value(statement("defer.lock_replayer"), source=source):
                    say(ReplayStatus(state=ReplayState.STANDBY))
                    await _pause(stop, _STANDBY_SECONDS)
                    continue
                replayer = Replayer(db, store, source, policy=policy, on_status=say)
                await replayer.load()
                failures = 0
                await replayer.run(stop)
        except AfterwriteError as error:
            if not _is_outage(error):
                raise
            failures += 1
            say(ReplayStatus(state=ReplayState.CONNECTING, trouble=str(error)))
            await _pause(stop, _backoff(failures))
    say(ReplayStatus(state=ReplayState.STOPPED))


# The same few statements again and again: planning them over all partitions costs more than running them.
_FEED_SESSION = {"search_path": "pg_catalog", "plan_cache_mode": "force_generic_plan", "jit": "off"}


def _session(policy: ReplayPolicy) -> Mapping[str, str]:
    return {
        "search_path": "pg_catalog",
        "lock_timeout": f"{policy.lock_timeout_ms}ms",
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "synchronous_commit": "on" if policy.synchronous_commit else "off",
    }


class Replayer:
    """One connection's life of a replayer. ``load`` first; ``round`` does what there is to do, and says if it did."""

    def __init__(
        self,
        db: Database,
        store: Database,
        source: str,
        *,
        policy: ReplayPolicy | None = None,
        on_status: OnStatus | None = None,
    ) -> None:
        self._db = db
        self._store = store
        self._source = source
        self._policy = policy or ReplayPolicy()
        self._say = on_status or _say_nothing
        self._stop = asyncio.Event()
        self._progress = Progress(position=0, commit_lsn=Lsn(0))
        # What was read beyond the progress and concerns nobody is written down lazily: to read it again does no harm.
        self._passed = Place(0, Lsn(0))
        self._passed_since: float | None = None
        self._active: list[ActiveDeferral] = []
        self._coverage = Coverage([])
        self._relations: frozenset[str] = frozenset()

    async def load(self) -> None:
        """Read how far we are and what is deferred; begin at the feed's end where nothing ever was."""
        progress = await read_progress(self._db, self._source)
        if progress is None:
            # Whoever prepares a deferral writes the progress first: without it the feed holds nothing for us yet.
            end = await self._store.maybe(ProgressRow, statement("defer.read_feed_end"), source=self._source)
            await self._db.run(
                statement("defer.begin_progress"),
                source=self._source,
                position=end.position if end else 0,
                commit_lsn=end.commit_lsn if end else "0/0",
            )
            progress = await self._read_progress()
        self._progress = progress
        position = progress.position
        if position == 0:
            position = await self._store.value(
                statement("defer.read_position_at"), source=self._source, lsn=str(progress.commit_lsn)
            )
        self._passed = Place(position, progress.commit_lsn)
        await self._load_deferrals()

    async def _load_deferrals(self) -> None:
        """Notice what was prepared or dropped since, and tables that have another name now."""
        active = await read_active(self._db, self._source)
        if active == self._active:
            return
        rows = await read_deferrals(self._db, self._source)
        for row in rows:
            if row.renamed:
                await refresh_deferral(self._db, row)
        rows = await read_deferrals(self._db, self._source)
        self._active = active
        self._coverage = Coverage([row.value() for row in rows if row.state == "live"])
        # A prepared one goes live at a mark further on, which is to be found.
        self._relations = frozenset(relation for row in rows for relation in row.value().relations)

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until ``stop``; what was begun is finished first."""
        self._stop = stop
        await self._store.run(statement("defer.listen_to_feed"))
        idle_at: Progress | None = None
        while not stop.is_set():
            try:
                busy = await self.round()
                await self._write_passed(lazily=True)
            except _MovedError:
                await self.load()
                continue
            if busy and self._relations:
                continue
            if idle_at != self._progress:
                idle_at = self._progress
                self._say(ReplayStatus(state=ReplayState.IDLE, progress=self._progress, lag_seconds=0.0))
            if self._relations:
                await self._rest()
            else:
                # Nothing is deferred, nor prepared to be: who would wake up for each batch does so for nothing.
                await _pause(stop, _NOTHING_DEFERRED_SECONDS)
        with suppress(_MovedError):
            await self._write_passed(lazily=False)

    async def round(self) -> bool:
        """Run what the next batches call for; False when there were none."""
        batches = await read_next_batches(self._store, self._source, after=self._passed.position)
        if not batches:
            return False
        # Read after the batches, so that the tables' names are at least as new as the changes in them.
        await self._load_deferrals()
        async with aclosing(read_steps(self._store, batches, self._relations, after=self._passed.lsn)) as pages:
            async for steps in pages:
                if not await self._run_steps(steps):
                    break
        return True

    async def _run_steps(self, steps: Sequence[Step]) -> bool:
        """Run these; False when other deferrals are live from one of them on, and the rest is to be read anew."""
        jobs: list[_Work] = []
        after = self._progress.commit_lsn
        for step in steps:
            job = self._plan(step, after)
            if marks := await self._told(step.marks):
                await self._run(jobs)
                await self._run_marks(msgspec.structs.replace(step, marks=marks), job)
                await self.load()
                return False
            if job:
                jobs.append(job)
                after = step.place.lsn
            if (
                isinstance(job, _LongWork)
                or len(jobs) >= self._policy.round_transactions
                or sum(count_rows(job) for job in jobs if isinstance(job, Job)) >= self._policy.round_rows
            ):
                await self._run(jobs)
                jobs = []
        await self._run(jobs)
        self._pass(steps[-1].place)
        return True

    def _plan(self, step: Step, after: Lsn) -> _Work | None:
        if step.transaction:
            return plan_job(
                step.transaction,
                self._coverage,
                source=self._source,
                after=after,
                position=step.place.position,
                reached=step.place.lsn,
                policy=self._policy,
            )
        if step.long is None or not self._coverage.deferrals:
            return None
        job = plan_long_job(
            self._coverage,
            source=self._source,
            after=after,
            position=step.place.position,
            reached=step.place.lsn,
            commit_lsn=step.long.transaction.commit_lsn,
            committed_at=step.long.transaction.first_at,
            settings=step.long.settings,
            policy=self._policy,
        )
        return _LongWork(job, step.long)

    def _pass(self, place: Place) -> None:
        self._passed = Place(max(self._passed.position, place.position), max(self._passed.lsn, place.lsn))
        if self._passed_since is None and self._passed.position > self._progress.position:
            self._passed_since = asyncio.get_running_loop().time()

    async def _told(self, marks: Sequence[Mark]) -> tuple[Mark, ...]:
        """Those marks whose deed is in the ledger. Any role may emit the others, and they say nothing to us."""
        told: list[Mark] = []
        for mark in marks:
            attempt = 0
            while (
                word := await self._db.value(
                    statement("defer.judge_mark"), identity=mark.identity, action=mark.action, xid=mark.xid
                )
            ) == "open":
                # Its transaction is in the WAL and waits, for a standby perhaps, before others may see it.
                attempt += 1
                await _pause(self._stop, _backoff(attempt))
                if self._stop.is_set():
                    raise _MovedError
            if word == "told":
                told.append(mark)
            else:
                log.warning(
                    "transaction %s says %s of %s, and the ledger does not: passed over",
                    mark.xid,
                    mark.action,
                    mark.identity,
                )
        return tuple(told)

    async def _run_marks(self, step: Step, job: _Work | None) -> None:
        """Let deferrals begin and end here, together with what else its transaction calls for."""
        for attempt in range(1, self._policy.attempts + 1):
            try:
                await self._run_marks_once(step, job)
                return
            except AfterwriteError as error:
                _raise_unless_of_a_body(error)
                if attempt == self._policy.attempts or _sqlstate(error) not in {*_TRANSIENT, STALE}:
                    raise
                if job and _sqlstate(error) == STALE:
                    await self._refresh(job)
                await _pause(self._stop, _backoff(attempt))

    async def _run_marks_once(self, step: Step, job: _Work | None) -> None:
        async with self._db.transaction():
            await self._db.one(ProgressRow, statement("defer.lock_progress"), source=self._source)
            if await self._read_progress() != self._progress:
                raise _MovedError
            if job:
                await self._run_one(job, guarded=True)
            for mark in step.marks:
                query = statement("defer.begin_deferral") if mark.silences else statement("defer.end_deferral")
                done = await self._db.values(
                    query,
                    source=self._source,
                    lsn=str(step.lsn),
                    trigger_oid=mark.trigger_oid,
                    identity=mark.identity,
                )
                if mark.silences and mark.mode == "defer" and not done:
                    raise Refused(
                        f"trigger {mark.identity} was silenced at {step.lsn} to be deferred, and no body was prepared "
                        "for it: its effects would be lost",
                        remedy="restore it with `afterwrite migrate rollback`, and silence its phase again",
                    )
            await self._db.run(
                statement("defer.set_progress"),
                source=self._source,
                position=step.place.position,
                commit_lsn=str(step.place.lsn),
            )
            failpoint("defer.before_marks_commit")
        failpoint("defer.after_marks_commit")

    async def _run(self, jobs: Sequence[_Work]) -> None:
        """Run these jobs in order; what goes wrong with one is settled before the next."""
        remaining = list(jobs)
        while remaining:
            together = _small_ones(remaining)
            failpoint("defer.before_run")
            try:
                if together:
                    await self._db.run(statement("defer.run_jobs"), jobs=encode_jobs(together))
                else:
                    await self._run_one(remaining[0], guarded=False)
                failpoint("defer.after_run")
            except AfterwriteError as error:
                _raise_unless_of_a_body(error)
                await self._note(None)
                remaining = [job for job in remaining if parse_lsn(_head(job).reached) > self._progress.commit_lsn]
                await self._run_carefully(remaining.pop(0), error)
                continue
            remaining = remaining[len(together) or 1 :]
            await self._note(together[-1] if together else None)

    async def _run_carefully(self, job: _Work, trouble: AfterwriteError) -> None:
        """A job failed: try again what may pass, then park the calls that fail, or wait for people."""
        attempt, guarded, refreshed = 1, False, False
        while True:
            state = _sqlstate(trouble)
            if state == STALE and not refreshed:
                await self._refresh(job)
                refreshed = True
            elif state in _TRANSIENT and attempt < self._policy.attempts:
                await _pause(self._stop, _backoff(attempt))
            elif self._policy.on_error is OnError.STOP:
                self._say(ReplayStatus(state=ReplayState.HALTED, progress=self._progress, trouble=str(trouble)))
                await _pause(self._stop, _backoff(attempt))
            else:
                guarded = True
            if self._stop.is_set():
                raise _MovedError
            attempt += 1
            try:
                await self._run_one(job, guarded=guarded, attempts=attempt, last=attempt >= self._policy.attempts)
            except AfterwriteError as error:
                _raise_unless_of_a_body(error)
                state = _sqlstate(error)
                if guarded and state not in _TRANSIENT and (state != STALE or refreshed):
                    raise
                trouble = error
            else:
                await self._note(_head(job))
                return

    async def _run_one(self, job: _Work, *, guarded: bool, attempts: int = 1, last: bool = False) -> None:
        """Run a job in one transaction; guarded, each call by itself, and those that fail are parked.

        What may pass is parked only at the ``last`` attempt.
        """
        async with self._db.transaction():
            async for part in self._parts(job):
                tried = msgspec.structs.replace(part, attempts=attempts, last=last)
                for piece in split_job(tried, _PIECE_ROWS, _PIECE_BYTES):
                    await self._db.run(statement("defer.run_job"), job=encode_jobs(piece), guarded=guarded)

    async def _parts(self, job: _Work) -> AsyncGenerator[Job]:
        """A job as it is, or the parts of a long one as they are read from the store."""
        if isinstance(job, Job):
            yield job
            return
        plan = LongPlan(job.job)
        async for changes in read_changes(self._store, job.transaction, self._relations):
            if part := plan.rows(changes):
                yield part
        if part := plan.statements():
            yield part
        if plan.puts_off:
            async for changes in read_changes(self._store, job.transaction, self._relations):
                if part := plan.late_rows(changes):
                    yield part
        yield plan.end()

    async def _refresh(self, job: _Work) -> None:
        if isinstance(job, Job):
            called = {deferral for group in job.groups for deferral in group.deferrals}
        else:
            called = {deferral.id for deferral in job.job.coverage.deferrals}
        for row in await read_deferrals(self._db, self._source):
            if row.id in called:
                await refresh_deferral(self._db, row)

    async def _note(self, job: Job | None) -> None:
        """Read how far we are now, and tell."""
        self._progress = await self._read_progress()
        self._passed_since = None
        self._pass(Place(self._progress.position, self._progress.commit_lsn))
        lag = (datetime.now(UTC) - job.committed_at).total_seconds() if job else None
        self._say(ReplayStatus(state=ReplayState.RUNNING, progress=self._progress, lag_seconds=lag))

    async def _read_progress(self) -> Progress:
        progress = await read_progress(self._db, self._source)
        if progress is None:
            raise Refused(
                f"the progress of deferred bodies of source {self._source!r} is gone from {self._db.where}",
                remedy="put its row of afterwrite.deferral_progress back, at the last commit whose effects are there",
            )
        return progress

    async def _write_passed(self, *, lazily: bool) -> None:
        """Write down what was passed over without work, so that others see how far we are."""
        since = self._passed_since
        if since is None or (lazily and asyncio.get_running_loop().time() - since < _LAZY_SECONDS):
            return
        failpoint("defer.before_progress")
        moved = await self._db.value(
            statement("defer.move_progress"),
            source=self._source,
            position=self._passed.position,
            commit_lsn=str(self._passed.lsn),
            after=str(self._progress.commit_lsn),
        )
        failpoint("defer.after_progress")
        if moved is None:
            raise _MovedError
        self._passed_since = None
        self._progress = msgspec.structs.replace(
            self._progress, position=self._passed.position, commit_lsn=self._passed.lsn
        )

    async def _rest(self) -> None:
        """Sleep until the sink says that there is more, or for a moment."""
        with translated(self._store.where):
            async for _ in self._store.connection.notifies(timeout=self._policy.poll_seconds, stop_after=1):
                pass


class _LongWork(NamedTuple):
    """A job whose changes are read while it runs."""

    job: LongJob
    transaction: LongTransaction


_Work = Job | _LongWork


def _head(job: _Work) -> Job:
    return job if isinstance(job, Job) else job.job.head


class _MovedError(Exception):
    """The progress is not where we left it: somebody else ran what we were about to run."""


def _small_ones(jobs: Sequence[_Work]) -> list[Job]:
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


def _sqlstate(error: AfterwriteError) -> str | None:
    return error.__cause__.sqlstate if isinstance(error.__cause__, psycopg.Error) else None


def _is_outage(error: AfterwriteError) -> bool:
    """Whether the server is away or out of its means (classes 53 and 58): time, or people, will mend it."""
    return isinstance(error, ConnectionLost) or (_sqlstate(error) or "")[:2] in {"53", "58"}


def _raise_unless_of_a_body(error: AfterwriteError) -> None:
    """A lost connection, a full disk and a moved progress are no fault of the job's."""
    if _is_outage(error) or _sqlstate(error) is None:
        raise error
    if _sqlstate(error) == MOVED:
        raise _MovedError from error


def _backoff(attempt: int) -> float:
    return min(0.05 * 2 ** min(attempt, 10), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
