"""Rehearsing: while a trigger is still on, its transplanted body runs for the same changes, and is undone.

What was stored lately is looked through for transactions in which triggers fired that are to be deferred. Some of them
are tried out, those of triggers and operations first that were seldom tried, and what came of it counts for the proof.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime

import msgspec

from afterwrite.defer.agree import Outcome, Verdict
from afterwrite.defer.calls import Coverage, ReplayPolicy, SourceTransaction
from afterwrite.defer.feed import transactions_of
from afterwrite.defer.run import is_outage
from afterwrite.defer.tryout import Rehearsable, Tryout
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, connect, quoted, statement
from afterwrite.record import Lsn, Operation
from afterwrite.store.reader import StoredBatch, read_batch_activities, read_batches, read_position, read_settings

_WANTED = 20
_AFTERWARDS_SECONDS = 60.0
_BATCH_ROWS = 5_000
_TRANSACTION_ROWS = 200
# One that is longer is put back and undone only for a body that no shorter one has shown, and one a round.
_LONG_ROWS = 5_000
_BATCHES_A_ROUND = 4
_SAMPLES_A_ROUND = 24
_OF_ONE = 2
_BACK = 16
_ROUND_SECONDS = 2.0

_SESSION: Mapping[str, str] = {
    "lock_timeout": "50ms",
    "statement_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
    "datestyle": "ISO",
    "default_transaction_read_only": "off",
}


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of rehearsing a trigger on an operation: how often which ``outcome``, with the newest example."""

    trigger: str
    operation: Operation
    outcome: Outcome
    count: int
    last_lsn: str
    last_at: datetime
    example: str | None


async def read_rehearsals(db: Database) -> list[Rehearsed]:
    """What has come of all rehearsals of this window of the proof."""
    return await db.rows(_rehearsed, statement("defer.read_rehearsals"))


def _rehearsed(*, operation: str, outcome: str, **columns: object) -> Rehearsed:
    return msgspec.convert({"operation": operation, "outcome": outcome, **columns}, Rehearsed)


def session(dsn: str | None) -> AbstractAsyncContextManager[Database]:
    """A connection to rehearse on.

    Its search_path is none of its options: those are the session's reset values, which tell of the writers' own path.
    """
    return connect(dsn, application_name="afterwrite rehearsal", options=_SESSION, guarded=True)


Load = Callable[[], Awaitable[Sequence[Rehearsable]]]


async def run_rehearser(
    source_dsn: str | None,
    store_dsn: str | None,
    source: str,
    load: Load,
    *,
    publication: str,
    policy: ReplayPolicy,
    stop: asyncio.Event,
) -> None:
    """Rehearse what ``load`` says is to be deferred, as it happens, until ``stop``; outages are waited out.

    ``publication`` says which tables are captured. Raises AfterwriteError for what time does not mend.
    """
    while not stop.is_set():
        try:
            async with (
                session(source_dsn) as db,
                connect(store_dsn, application_name="afterwrite rehearsal: feed") as store,
            ):
                rehearser = Rehearser(db, store, source, load, publication=publication, policy=policy)
                while not stop.is_set():
                    await rehearser.round()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), _ROUND_SECONDS)
        except AfterwriteError as error:
            if not is_outage(error):
                raise
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _ROUND_SECONDS)


class _Tally(msgspec.Struct):
    judged: int = 0
    tried: int = 0
    last_tried: float = float("-inf")


class _Sample(msgspec.Struct, frozen=True):
    candidate: Rehearsable
    transaction: SourceTransaction
    operations: tuple[Operation, ...]


class _OnRow(msgspec.Struct, frozen=True):
    oid: int
    source: str
    on: bool


class Rehearser:
    """One connection's life of rehearsing. ``round`` looks at what was stored since the last, and rehearses some."""

    def __init__(
        self,
        db: Database,
        store: Database,
        source: str,
        load: Load,
        *,
        publication: str | None = None,
        policy: ReplayPolicy | None = None,
        since: Lsn | None = None,
    ) -> None:
        self._db = db
        self._store = store
        self._source = source
        self._load = load
        self._tryout = Tryout(db, source, policy or ReplayPolicy(), publication)
        self._since = since
        self._position: int | None = None
        self._candidates: dict[int, Rehearsable] = {}
        self._loaded = False
        # A trigger's effects can be expected of what committed after it was seen to be on, and to be as it is.
        self._on_since: dict[int, Lsn] = {}
        self._tallies: dict[tuple[str, Operation], _Tally] = {}

    async def round(self) -> int:
        """Rehearse what is due among what was stored since the last round; says how many transactions."""
        if self._position is None:
            await self._begin()
        await self._look_at_triggers()
        if not self._on_since:
            return 0
        position = self._position or 0
        batches = await read_batches(self._store, position, 10_000, source=self._source)
        if not batches:
            return 0
        self._position = batches[-1].position
        samples = await self._choose(batches)
        if samples:
            await self._rehearse(samples)
        return len(samples)

    async def _begin(self) -> None:
        self._position = max(0, await read_position(self._store) - _BACK) if self._since is None else 0
        for row in await read_rehearsals(self._db):
            if row.outcome.judged:
                self._tally(row.trigger, row.operation).judged += row.count

    def _tally(self, trigger: str, operation: Operation) -> _Tally:
        return self._tallies.setdefault((trigger, operation), _Tally())

    async def _look_at_triggers(self) -> None:
        """Notice which are on; one that was changed, or turned on just now, begins anew here."""
        rows = await self._db.rows(_OnRow, statement("defer.read_on"), oids=list(self._candidates))
        changed = {row.oid for row in rows if row.on and row.source != self._candidates[row.oid].trigger.source}
        if changed or not self._loaded:
            self._loaded = True
            self._candidates = {each.trigger.oid: each for each in await self._load()}
            self._tryout.forget()
            rows = await self._db.rows(_OnRow, statement("defer.read_on"), oids=list(self._candidates))
        now = self._since
        if now is None:
            now = Lsn.parse(await self._db.value(statement("defer.read_wal_lsn")))
        on = {row.oid for row in rows if row.on}
        self._on_since = {oid: now if oid in changed else self._on_since.get(oid, now) for oid in on}

    def _is_due(self, trigger: str, operation: Operation) -> bool:
        tally = self._tally(trigger, operation)
        late = asyncio.get_running_loop().time() - tally.last_tried > _AFTERWARDS_SECONDS
        # What cannot be judged is not tried for ever at the same pace, either.
        return (tally.judged < _WANTED and tally.tried < 3 * _WANTED) or late

    async def _choose(self, batches: Sequence[StoredBatch]) -> list[_Sample]:
        due = [
            each
            for oid, each in self._candidates.items()
            if oid in self._on_since and any(self._is_due(each.trigger.identity, _of(e)) for e in each.trigger.events)
        ]
        relations = {quoted(each.trigger.schema, each.trigger.table) for each in due}
        chosen: list[_Sample] = []
        taken: dict[tuple[str, Operation], int] = {}
        any_long = False
        concerning = [
            batch
            for batch in reversed(batches)
            if batch.rows <= _BATCH_ROWS and not relations.isdisjoint(batch.rows_per_table)
        ]
        for batch in concerning[:_BATCHES_A_ROUND]:
            activities = await read_batch_activities(self._store, [batch], events=False)
            settings = {lsn: told for (_, lsn), told in (await read_settings(self._store, [batch])).items()}
            for transaction in reversed(list(transactions_of(activities, settings, after=Lsn(0)).values())):
                rows = len(transaction.changes)
                long = rows > _TRANSACTION_ROWS
                if rows > _LONG_ROWS or (long and any_long) or len(chosen) >= _SAMPLES_A_ROUND:
                    continue
                for candidate in due:
                    if transaction.commit_lsn <= self._on_since[candidate.trigger.oid]:
                        continue
                    operations = _operations(candidate, transaction)
                    keys = [(candidate.trigger.identity, operation) for operation in operations]
                    if long and (any_long or any(key in taken or self._tally(*key).judged for key in keys)):
                        continue
                    if any(self._is_due(*key) and taken.get(key, 0) < _OF_ONE for key in keys):
                        any_long = any_long or long
                        chosen.append(_Sample(candidate, transaction, operations))
                        for key in keys:
                            taken[key] = taken.get(key, 0) + 1
        return chosen

    async def _rehearse(self, samples: Sequence[_Sample]) -> None:
        told: list[dict[str, object]] = []
        at = asyncio.get_running_loop().time()
        for sample in samples:
            verdict = await self._tryout.rehearse(sample.candidate, sample.transaction)
            for operation in sample.operations:
                tally = self._tally(sample.candidate.trigger.identity, operation)
                tally.last_tried = at
                tally.tried += 1
                if verdict is None:
                    continue
                tally.judged += verdict.outcome.judged
                told.append(_told(sample, operation, verdict))
        # Those that ended without a verdict were rolled back, too.
        await self._db.run(statement("defer.count_rehearsed"), transactions=len(samples))
        if told:
            await self._db.run(statement("defer.note_rehearsals"), rehearsals=json.dumps(told, default=str))


def _of(event: object) -> Operation:
    return Operation(str(event))


def _operations(candidate: Rehearsable, transaction: SourceTransaction) -> tuple[Operation, ...]:
    """On which operations the trigger fired in this transaction, as far as the WAL can tell."""
    coverage = Coverage([candidate.deferral()])
    return tuple(
        dict.fromkeys(change.operation for change in transaction.changes if coverage.of(change, transaction.settings))
    )


def _told(sample: _Sample, operation: Operation, verdict: Verdict) -> dict[str, object]:
    example = {
        "why": verdict.why,
        "commit_lsn": str(sample.transaction.commit_lsn),
        "relation": verdict.relation,
        "expected": verdict.expected,
        "found": verdict.found,
    }
    return {
        "trigger": sample.candidate.trigger.identity,
        "operation": operation.value,
        "outcome": verdict.outcome.value,
        "lsn": str(sample.transaction.commit_lsn),
        "at": sample.transaction.committed_at.isoformat(),
        "example": None if verdict.outcome in (Outcome.MATCHED, Outcome.IDLE) else example,
    }
