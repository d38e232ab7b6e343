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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from afterwrite.defer.calls import Coverage, Job, ReplayPolicy, count_rows, encode_jobs, plan_job, plan_long_job
from afterwrite.defer.deferral import (
    ActiveDeferral,
    DeferralRow,
    TableName,
    parse_lsn,
    read_active,
    read_deferrals,
    read_names,
    refresh_deferral,
)
from afterwrite.defer.feed import Mark, Place, Step, read_next_batches, read_steps
from afterwrite.defer.progress import Progress, ProgressRow, read_progress
from afterwrite.defer.run import (
    LongWork,
    MovedError,
    Runner,
    Work,
    backoff,
    is_outage,
    is_transient,
    pause,
    raise_unless_of_a_body,
    sqlstate,
)
from afterwrite.defer.transplant import STALE
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, connect, statement, translated
from afterwrite.record import Lsn

log = logging.getLogger(__name__)

_LAZY_SECONDS = 0.25
_STANDBY_SECONDS = 1.0
_NOTHING_DEFERRED_SECONDS = 1.0


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
                    await pause(stop, _STANDBY_SECONDS)
                    continue
                replayer = Replayer(db, store, source, policy=policy, on_status=say)
                await replayer.load()
                failures = 0
                await replayer.run(stop)
        except AfterwriteError as error:
            if not is_outage(error):
                raise
            failures += 1
            say(ReplayStatus(state=ReplayState.CONNECTING, trouble=str(error)))
            await pause(stop, backoff(failures))
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


class _KnownBatch(msgspec.Struct, frozen=True):
    last_lsn: str | None


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
        self._active: tuple[list[ActiveDeferral], list[TableName]] = ([], [])
        self._coverage = Coverage([])
        self._relations: frozenset[str] = frozenset()
        self._runner = Runner(db, store, self, self._policy)

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
        if not await self._is_known(progress):
            progress = await self._find_place(progress)
        self._progress = progress
        self._passed = Place(progress.position, progress.commit_lsn)
        await self._load_deferrals()

    async def _is_known(self, progress: Progress) -> bool:
        """Whether the feed has the batch at which the progress stands, and it ends where the progress says."""
        known = await self._store.maybe(
            _KnownBatch, statement("defer.read_batch_end"), source=self._source, position=progress.position
        )
        return known is not None and parse_lsn(known.last_lsn) <= progress.commit_lsn

    async def _find_place(self, progress: Progress) -> Progress:
        """The place of the same commit in this feed. Positions are a store's own, and one that was restored from a
        backup counts anew; commits are the source's."""
        position: int = await self._store.value(
            statement("defer.read_position_at"), source=self._source, lsn=str(progress.commit_lsn)
        )
        if position == progress.position:
            return progress
        moved = await self._db.value(
            statement("defer.turn_progress"),
            source=self._source,
            position=position,
            commit_lsn=str(progress.commit_lsn),
            known_as=progress.position,
        )
        if moved is None:
            raise MovedError
        return msgspec.structs.replace(progress, position=position)

    async def _load_deferrals(self) -> None:
        """Notice what was prepared or dropped since, and tables that have another name now."""
        active = await read_active(self._db, self._source)
        names = await read_names(self._db, active)
        if (active, names) == self._active:
            return
        rows = await read_deferrals(self._db, self._source)
        for row in rows:
            if row.renamed:
                await refresh_deferral(self._db, row)
        rows = await read_deferrals(self._db, self._source)
        self._active = (active, names)
        self._coverage = Coverage([row.value(names) for row in rows if row.state == "live"])
        # A prepared one goes live at a mark further on, which is to be found.
        self._relations = frozenset(relation for row in rows for relation in row.value(names).relations)
        self._runner.relations = self._relations

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until ``stop``; what was begun is finished first."""
        self._stop = self._runner.stop = stop
        await self._store.run(statement("defer.listen_to_feed"))
        idle_at: Progress | None = None
        while not stop.is_set():
            try:
                busy = await self.round()
                await self._write_passed(lazily=True)
            except MovedError:
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
                await pause(stop, _NOTHING_DEFERRED_SECONDS)
        with suppress(MovedError):
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
        jobs: list[Work] = []
        after = self._progress.commit_lsn
        for step in steps:
            job = self._plan(step, after)
            if marks := await self._told(step.marks):
                await self._runner.run(jobs)
                await self._run_marks(msgspec.structs.replace(step, marks=marks), job)
                await self.load()
                return False
            if job:
                jobs.append(job)
                after = step.place.lsn
            if (
                isinstance(job, LongWork)
                or len(jobs) >= self._policy.round_transactions
                or sum(count_rows(job) for job in jobs if isinstance(job, Job)) >= self._policy.round_rows
            ):
                await self._runner.run(jobs)
                jobs = []
        await self._runner.run(jobs)
        self._pass(steps[-1].place)
        return True

    def _plan(self, step: Step, after: Lsn) -> Work | None:
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
        return LongWork(job, step.long)

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
                await pause(self._stop, backoff(attempt))
                if self._stop.is_set():
                    raise MovedError
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

    async def _run_marks(self, step: Step, job: Work | None) -> None:
        """Let deferrals begin and end here, together with what else its transaction calls for."""
        for attempt in range(1, self._policy.attempts + 1):
            try:
                await self._run_marks_once(step, job)
                return
            except AfterwriteError as error:
                raise_unless_of_a_body(error)
                state = sqlstate(error)
                if attempt == self._policy.attempts or not (is_transient(state) or state == STALE):
                    raise
                if job and state == STALE:
                    await self._runner.refresh(job)
                await pause(self._stop, backoff(attempt))

    async def _run_marks_once(self, step: Step, job: Work | None) -> None:
        async with self._db.transaction():
            await self._db.one(ProgressRow, statement("defer.lock_progress"), source=self._source)
            if await self._read_progress() != self._progress:
                raise MovedError
            if job:
                await self._runner.run_one(job, guarded=True)
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

    @property
    def reached(self) -> Lsn:
        """How far the progress stands, as last read."""
        return self._progress.commit_lsn

    async def send(self, jobs: Sequence[Job]) -> None:
        """Run these jobs, each in a transaction of its own that moves the progress."""
        await self._db.run(statement("defer.run_jobs"), jobs=encode_jobs(jobs))

    async def send_one(self, job: Job, *, guarded: bool) -> None:
        """Run this job, or a piece of one, in the transaction that is open."""
        if job.opens:
            await self._db.run(statement("defer.forget_session"))
        await self._db.run(statement("defer.run_job"), job=encode_jobs(job), guarded=guarded)

    async def note(self, job: Job | None) -> None:
        """Read how far we are now, and tell."""
        self._progress = await self._read_progress()
        self._passed_since = None
        self._pass(Place(self._progress.position, self._progress.commit_lsn))
        lag = (datetime.now(UTC) - job.committed_at).total_seconds() if job else None
        self._say(ReplayStatus(state=ReplayState.RUNNING, progress=self._progress, lag_seconds=lag))

    async def halt(self, job: Job, trouble: AfterwriteError) -> None:
        """Write down where the stream stands and why, and tell."""
        await self._db.run(statement("defer.write_halt"), source=self._source, lsn=job.commit_lsn, trouble=str(trouble))
        self._say(ReplayStatus(state=ReplayState.HALTED, progress=self._progress, trouble=str(trouble)))

    async def rows_of(self, deferrals: Collection[int]) -> list[DeferralRow]:
        """Those of these deferrals that run now, or may begin to."""
        return [row for row in await read_deferrals(self._db, self._source) if row.id in deferrals]

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
            raise MovedError
        self._passed_since = None
        self._progress = msgspec.structs.replace(
            self._progress, position=self._passed.position, commit_lsn=self._passed.lsn
        )

    async def _rest(self) -> None:
        """Sleep until the sink says that there is more, or for a moment."""
        with translated(self._store.where):
            async for _ in self._store.connection.notifies(timeout=self._policy.poll_seconds, stop_after=1):
                pass
