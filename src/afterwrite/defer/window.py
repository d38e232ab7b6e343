"""Filling a silent time: what a trigger would have written while it was off, written afterwards by its own body.

::

    marks: silenced at ``after`` ─────────── changes in the store ─────────── restored at ``until``
                                   │ in commit order, one source transaction in one of its own
                                   ▼
                     the legacy rows + afterwrite.backfilled (the mark) + afterwrite.backfill (how far): one commit
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing

import msgspec

from afterwrite.defer.calls import Coverage, Job, ReplayPolicy, encode_jobs, plan_job, plan_long_job
from afterwrite.defer.deferral import (
    DeferralRow,
    Preparation,
    parse_lsn,
    plan_deferral,
    read_deferrals_of,
    read_names,
    refresh_deferral,
)
from afterwrite.defer.feed import Step, read_next_batches, read_steps
from afterwrite.defer.run import LongWork, MovedError, Runner, Work
from afterwrite.defer.transplant import drop_statements
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.postgres import Database, quoted, statement
from afterwrite.record import Lsn
from afterwrite.scan.catalog import Trigger
from afterwrite.store.writer import read_checkpoint


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """What filling a window came to: ``transactions`` of the source whose bodies ran, in this call; ``rows`` they
    inserted; ``parked`` calls that failed and wait as dead letters; ``already`` were filled by a call before."""

    transactions: int = 0
    calls: int = 0
    rows: int = 0
    parked: int = 0
    already: int = 0


OnFilled = Callable[[Filled], None]


async def replay_window(
    db: Database,
    store: Database,
    *,
    source: str,
    triggers: Sequence[Trigger],
    after: Lsn,
    until: Lsn,
    on_progress: OnFilled | None = None,
    policy: ReplayPolicy | None = None,
) -> Filled:
    """Run the bodies of these triggers for every change that committed strictly between ``after`` and ``until``.

    Call it again after any interruption: nothing is filled twice. A trigger whose body ran after commit all that time
    is passed over. What fails is parked. Raises Refused, with every reason and before anything is done, when a body
    cannot be run, or when the store does not reach as far as ``until``.
    """
    stored = await read_checkpoint(store, source)
    if stored is None or stored.lsn < until:
        raise Refused(
            f"the store has source {source!r} up to {stored.lsn if stored else 'nowhere'}, not up to {until}",
            remedy="let `afterwrite capture` catch up, then run the same command again",
        )
    names = [trigger.identity for trigger in triggers]
    kept = set(await db.values(statement("defer.read_kept"), source=source, identities=names, after=str(after)))
    wanted = [trigger for trigger in triggers if trigger.identity not in kept]
    begun = {row.identity: row for row in await _read_fillings(db, source, names, after)}
    prepared = {
        trigger.identity: await plan_deferral(db, trigger, source=source, salt=f"filled after {after}", afterwards=True)
        for trigger in wanted
        if trigger.identity not in begun
    }
    for trigger in wanted:
        if trigger.identity in prepared:
            await _begin(db, trigger, prepared[trigger.identity], source=source, after=after, until=until)
    fillings = [row for row in await _read_fillings(db, source, names, after) if row.identity not in kept]
    account = _Account(db, source, [row.identity for row in fillings], after, until, on_progress)
    await account.read()
    # Those that an interrupted call with other triggers left further behind catch up by themselves first.
    for reached in sorted({parse_lsn(row.reached) for row in fillings if row.ended_at is None}):
        together = [row for row in fillings if parse_lsn(row.reached) == reached and row.ended_at is None]
        filler = _Filler(db, store, source, together, until, policy or ReplayPolicy(), account)
        await filler.fill()
        await _end(db, together, until)
    return account.now()


class _FillingRow(msgspec.Struct, frozen=True):
    id: int
    identity: str
    reached: str
    deferral_id: int
    ended_at: str | None


async def _read_fillings(db: Database, source: str, identities: Sequence[str], after: Lsn) -> list[_FillingRow]:
    return await db.rows(
        _FillingRow,
        statement("defer.read_fillings"),
        source=source,
        identities=list(identities),
        after=str(after),
    )


async def _begin(db: Database, trigger: Trigger, prepared: Preparation, *, source: str, after: Lsn, until: Lsn) -> None:
    async with db.transaction():
        for text in prepared.transplant.create:
            await db.run(text.encode())
        await db.run(
            statement("defer.begin_filling"),
            source=source,
            identity=trigger.identity,
            trigger_oid=trigger.oid,
            table_oid=trigger.table_oid,
            # The name that it had when it was silenced, and the one that it has: the feed may know either.
            relations=list(dict.fromkeys([quoted(trigger.schema, trigger.table), prepared.relation])),
            body=prepared.transplant.body,
            run=prepared.transplant.run,
            definition=msgspec.json.encode(trigger).decode(),
            path=prepared.path,
            after=str(after),
            until=str(until),
        )


async def _end(db: Database, fillings: Sequence[_FillingRow], until: Lsn) -> None:
    """All of it is filled; functions that no dead letter needs any more are dropped."""
    async with db.transaction():
        await db.run(statement("defer.end_fillings"), ids=[row.id for row in fillings], until=str(until))
        of_fillings = [row.deferral_id for row in fillings]
        waiting = set(await db.values(statement("defer.read_waiting_deferrals"), ids=of_fillings))
        for row in await read_deferrals_of(db, of_fillings):
            if row.id not in waiting:
                for text in drop_statements(row.body):
                    await db.run(text.encode())
                await db.run(statement("defer.mark_dropped"), ids=[row.id])


class _Account:
    """What was filled, as its marks say; told as it grows."""

    def __init__(
        self,
        db: Database,
        source: str,
        identities: Sequence[str],
        after: Lsn,
        until: Lsn,
        on_progress: OnFilled | None,
    ) -> None:
        self._db = db
        self._asked = {"source": source, "identities": list(identities), "after": str(after), "until": str(until)}
        self._tell = on_progress
        self._before: Filled | None = None
        self._now = Filled()

    async def read(self) -> None:
        self._now = await self._db.one(Filled, statement("defer.count_filled"), **self._asked)
        if self._before is None:
            self._before = self._now
        elif self._tell:
            self._tell(self.now())

    def now(self) -> Filled:
        before = self._before or self._now
        return Filled(
            transactions=self._now.transactions - before.transactions,
            calls=self._now.calls - before.calls,
            rows=self._now.rows - before.rows,
            parked=self._now.parked,
            already=before.transactions,
        )


class _Filler:
    """Fills for triggers that stand at the same place: a track whose progress is theirs."""

    def __init__(
        self,
        db: Database,
        store: Database,
        source: str,
        fillings: Sequence[_FillingRow],
        until: Lsn,
        policy: ReplayPolicy,
        account: _Account,
    ) -> None:
        self._db = db
        self._store = store
        self._source = source
        self._fillings = [row.id for row in fillings]
        self._deferrals = [row.deferral_id for row in fillings]
        self._until = until
        self._policy = policy
        self._account = account
        self._reached = parse_lsn(fillings[0].reached)
        self._coverage = Coverage([])
        self._runner = Runner(db, store, self, policy)

    @property
    def reached(self) -> Lsn:
        """How far it is filled, as last read."""
        return self._reached

    async def send(self, jobs: Sequence[Job]) -> None:
        """Fill for these source transactions, each in a transaction of its own."""
        await self._db.run(statement("defer.fill_jobs"), jobs=encode_jobs(jobs), fillings=self._fillings)

    async def send_one(self, job: Job, *, guarded: bool) -> None:
        """Fill for this one, or a piece of it, in the transaction that is open."""
        if job.opens:
            await self._db.run(statement("defer.forget_session"))
        await self._db.run(statement("defer.fill_job"), job=encode_jobs(job), guarded=guarded, fillings=self._fillings)

    async def note(self, job: Job | None) -> None:
        """Read how far it is filled now, and tell."""
        del job
        self._reached = Lsn.parse(await self._db.value(statement("defer.read_filled"), ids=self._fillings))
        await self._account.read()

    async def halt(self, job: Job, trouble: AfterwriteError) -> None:
        """Never asked for: what cannot be filled is parked."""
        raise trouble

    async def rows_of(self, deferrals: Collection[int]) -> list[DeferralRow]:
        """Those of these deferrals that are filled for."""
        return [row for row in await read_deferrals_of(self._db, self._deferrals) if row.id in deferrals]

    async def fill(self) -> None:
        """Run what the window calls for, from where it stands."""
        rows = await read_deferrals_of(self._db, self._deferrals)
        for row in rows:
            if row.renamed:
                await refresh_deferral(self._db, row)
        names = await read_names(self._db, rows)
        deferrals = [row.value(names) for row in await read_deferrals_of(self._db, self._deferrals)]
        self._coverage = Coverage(deferrals)
        self._runner.relations = frozenset(name for deferral in deferrals for name in deferral.relations)
        try:
            async for steps in self._steps():
                jobs: list[Work] = []
                after = self._reached
                for step in steps:
                    if job := self._plan(step, after):
                        jobs.append(job)
                        after = step.lsn
                for at in range(0, len(jobs), self._policy.round_transactions):
                    await self._runner.run(jobs[at : at + self._policy.round_transactions])
        except MovedError as error:
            raise Refused(
                f"somebody else is filling what source {self._source!r} lacks up to {self._until}",
                remedy="let that end, then run the same command again: nothing is filled twice",
            ) from error

    async def _steps(self) -> AsyncGenerator[list[Step]]:
        position = await self._store.value(
            statement("defer.read_position_at"), source=self._source, lsn=str(self._reached)
        )
        passed = self._reached
        while passed < self._until and (batches := await read_next_batches(self._store, self._source, after=position)):
            reading = read_steps(self._store, batches, self._runner.relations, after=self._reached)
            async with aclosing(reading) as pages:
                async for steps in pages:
                    yield [step for step in steps if step.lsn < self._until]
                    position = max(position, steps[-1].place.position)
                    passed = steps[-1].place.lsn

    def _plan(self, step: Step, after: Lsn) -> Work | None:
        if step.transaction:
            return plan_job(
                step.transaction,
                self._coverage,
                source=self._source,
                after=after,
                position=0,
                reached=step.lsn,
                policy=self._policy,
            )
        if step.long is None:
            return None
        job = plan_long_job(
            self._coverage,
            source=self._source,
            after=after,
            position=0,
            reached=step.lsn,
            commit_lsn=step.long.transaction.commit_lsn,
            committed_at=step.long.transaction.first_at,
            settings=step.long.settings,
            policy=self._policy,
        )
        return LongWork(job, step.long)
