"""Rehearsing: while a trigger is still on, its transplanted body runs for the same changes, and is undone.

::

    a stored transaction ─▶ the rows that the trigger's effects touched, as they were before it
                                    │ put back, in a transaction of ours that never commits
                                    ▼
                            the transplanted body runs ─▶ the same rows now ─▶ compared with what the trigger left

No row of the user's is changed for anybody else. The rows that are put back are locked for these few milliseconds;
where somebody else holds one, the rehearsal gives up at once. Sequences move on, as in any transaction that is undone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

import msgspec
from psycopg import sql

from afterwrite.activity import Lsn, Operation
from afterwrite.defer.agree import (
    Counts,
    EffectColumn,
    EffectTable,
    Key,
    Outcome,
    Row,
    Trace,
    Verdict,
    Window,
    decode_row,
    judge,
    trace,
)
from afterwrite.defer.calls import Coverage, Deferral, Job, ReplayPolicy, SourceTransaction, encode_jobs, plan_job
from afterwrite.defer.deferral import plan_deferral
from afterwrite.defer.feed import transactions_of
from afterwrite.defer.run import is_outage, is_transient, sqlstate
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.postgres import Database, connect, quoted, statement
from afterwrite.scan.catalog import Trigger
from afterwrite.store.reader import StoredBatch, read_batch_activities, read_batches, read_position, read_settings

log = logging.getLogger(__name__)

_WANTED = 20
_AFTERWARDS_SECONDS = 60.0
_BATCH_ROWS = 5_000
_TRANSACTION_ROWS = 200
_BATCHES_A_ROUND = 4
_SAMPLES_A_ROUND = 24
_OF_ONE = 2
_BACK = 16
_SMALL_PAGES = 1_000
_ROUND_SECONDS = 2.0

SESSION: Mapping[str, str] = {
    "search_path": "pg_catalog",
    "lock_timeout": "50ms",
    "statement_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
    "datestyle": "ISO",
    "default_transaction_read_only": "off",
}


class Rehearsable(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger that is to be deferred; ``effects`` are the tables (quoted) that scan says its body writes.

    ``lookups``: it reads other tables, too, as they are at the moment.
    """

    trigger: Trigger
    effects: tuple[str, ...]
    lookups: bool = False


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


Load = Callable[[], Awaitable[Sequence[Rehearsable]]]


async def run_rehearser(
    source_dsn: str | None,
    store_dsn: str | None,
    source: str,
    load: Load,
    *,
    publication: str,
    stop: asyncio.Event,
) -> None:
    """Rehearse what ``load`` says is to be deferred, as it happens, until ``stop``; outages are waited out.

    ``publication`` says which tables are captured. Raises AfterwriteError for what time does not mend.
    """
    while not stop.is_set():
        try:
            async with (
                connect(source_dsn, application_name="afterwrite rehearsal", options=SESSION) as db,
                connect(store_dsn, application_name="afterwrite rehearsal: feed") as store,
            ):
                rehearser = Rehearser(db, store, source, load, publication=publication)
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
    last_tried: float = float("-inf")


class _Sample(msgspec.Struct, frozen=True):
    candidate: Rehearsable
    transaction: SourceTransaction
    operations: tuple[Operation, ...]


class _OnRow(msgspec.Struct, frozen=True):
    oid: int
    source: str
    on: bool


class _UndoneError(Exception):
    """The end of every rehearsal."""


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
        self._publication = publication
        self._policy = policy or ReplayPolicy()
        self._since = since
        self._position: int | None = None
        self._candidates: dict[int, Rehearsable] = {}
        self._loaded = False
        # A trigger's effects can be expected of what committed after it was seen to be on, and to be as it is.
        self._on_since: dict[int, Lsn] = {}
        self._tallies: dict[tuple[str, Operation], _Tally] = {}
        self._tables: dict[str, EffectTable | None] = {}

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
            self._tables.clear()
            rows = await self._db.rows(_OnRow, statement("defer.read_on"), oids=list(self._candidates))
        now = self._since
        if now is None:
            now = Lsn.parse(await self._db.value(statement("defer.read_wal_lsn")))
        on = {row.oid for row in rows if row.on}
        self._on_since = {oid: now if oid in changed else self._on_since.get(oid, now) for oid in on}

    def _is_due(self, trigger: str, operation: Operation) -> bool:
        tally = self._tally(trigger, operation)
        late = asyncio.get_running_loop().time() - tally.last_tried > _AFTERWARDS_SECONDS
        return tally.judged < _WANTED or late

    async def _choose(self, batches: Sequence[StoredBatch]) -> list[_Sample]:
        due = [
            each
            for oid, each in self._candidates.items()
            if oid in self._on_since and any(self._is_due(each.trigger.identity, _of(e)) for e in each.trigger.events)
        ]
        relations = {quoted(each.trigger.schema, each.trigger.table) for each in due}
        chosen: list[_Sample] = []
        taken: dict[tuple[str, Operation], int] = {}
        concerning = [
            batch
            for batch in reversed(batches)
            if batch.rows <= _BATCH_ROWS and not relations.isdisjoint(batch.rows_per_table)
        ]
        for batch in concerning[:_BATCHES_A_ROUND]:
            activities = await read_batch_activities(self._store, [batch], events=False)
            settings = {lsn: told for (_, lsn), told in (await read_settings(self._store, [batch])).items()}
            for transaction in reversed(list(transactions_of(activities, settings, after=Lsn(0)).values())):
                if len(transaction.changes) > _TRANSACTION_ROWS or len(chosen) >= _SAMPLES_A_ROUND:
                    continue
                for candidate in due:
                    if transaction.commit_lsn <= self._on_since[candidate.trigger.oid]:
                        continue
                    operations = _operations(candidate, transaction)
                    keys = [(candidate.trigger.identity, operation) for operation in operations]
                    if any(self._is_due(*key) and taken.get(key, 0) < _OF_ONE for key in keys):
                        chosen.append(_Sample(candidate, transaction, operations))
                        for key in keys:
                            taken[key] = taken.get(key, 0) + 1
        return chosen

    async def _rehearse(self, samples: Sequence[_Sample]) -> None:
        told: list[dict[str, object]] = []
        at = asyncio.get_running_loop().time()
        for sample in samples:
            verdict = await self._rehearse_one(sample)
            for operation in sample.operations:
                tally = self._tally(sample.candidate.trigger.identity, operation)
                tally.last_tried = at
                if verdict is None:
                    continue
                tally.judged += verdict.outcome.judged
                told.append(_told(sample, operation, verdict))
        if told:
            await self._db.run(statement("defer.note_rehearsals"), rehearsals=json.dumps(told, default=str))

    async def _rehearse_one(self, sample: _Sample) -> Verdict | None:
        """What came of it; None where somebody stood in the way, and another sample will do."""
        tables: dict[str, EffectTable] = {}
        for relation in sample.candidate.effects:
            table = await self._table(relation)
            if table is None:
                return Verdict(
                    outcome=Outcome.UNSEEN, why=f"{relation} is not captured: what the trigger wrote is unknown"
                )
            tables[relation] = table
        traced = trace(sample.transaction.changes, tables)
        if isinstance(traced, Verdict):
            return traced
        verdict: list[Verdict] = []
        try:
            async with self._db.transaction():
                verdict.append(await self._run(sample, tables, traced))
                raise _UndoneError
        except _UndoneError:
            return verdict[0]
        except Refused as error:
            return Verdict(outcome=Outcome.UNABLE, why=str(error))
        except AfterwriteError as error:
            state = sqlstate(error)
            if is_outage(error) or state is None:
                raise
            if is_transient(state):
                return None
            return Verdict(outcome=Outcome.UNABLE, why=f"{state} {error.__cause__ or error}")

    async def _run(self, sample: _Sample, tables: Mapping[str, EffectTable], traced: Mapping[Key, Trace]) -> Verdict:
        candidate, transaction = sample.candidate, sample.transaction
        prepared = await plan_deferral(self._db, candidate.trigger, source=self._source, salt="rehearsal")
        for text in prepared.transplant.create:
            await self._db.run(text.encode())
        deferral = Deferral(
            id=0,
            identity=candidate.trigger.identity,
            run=prepared.transplant.run,
            relations=(quoted(candidate.trigger.schema, candidate.trigger.table),),
            trigger=candidate.trigger,
        )
        job = plan_job(
            transaction,
            Coverage([deferral]),
            source=self._source,
            after=Lsn(0),
            position=0,
            reached=Lsn(0),
            policy=self._policy,
        )
        if job is None:
            return Verdict(outcome=Outcome.UNSEEN, why="nothing of it calls the body")
        if refused := next(filter(None, (group.refused for group in job.groups)), None):
            return Verdict(outcome=Outcome.UNSEEN, why=refused)
        began: datetime = await self._db.value(statement("defer.read_transaction_time"))
        await self._put_back(tables, traced)
        marks = {relation: await self._mark(table) for relation, table in tables.items()}
        before = await self._counts(tables)
        if failed := await self._call(job):
            return failed
        after = await self._counts(tables)
        wrote = {
            relation: Counts(
                *(
                    now - then
                    for now, then in zip(_of_counts(after[relation]), _of_counts(before[relation]), strict=True)
                )
            )
            for relation in tables
        }
        standing: dict[Key, Row] = {}
        made: list[tuple[EffectTable, Row]] = []
        for relation, table in tables.items():
            own = [each for each in traced.values() if each.table is table]
            for row in await self._read_rows(table, own):
                standing[table.key_of(row)] = row
            if wrote[relation].inserted and table.key_fills_itself:
                found = await self._read_new(table, marks[relation])
                if found is None:
                    return Verdict(outcome=Outcome.UNKEYED, why=f"new rows of {relation} cannot be found again")
                made += [(table, row) for row in found if table.key_of(row) not in traced]
        window = Window(committed_at=transaction.committed_at, began=began)
        seen = Counter(change.relation for change in transaction.changes)
        return judge(traced, seen, wrote, standing, made, window, reads_others=candidate.lookups)

    async def _call(self, job: Job) -> Verdict | None:
        """Run the bodies; what a failure shows, or None."""
        try:
            async with self._db.transaction():
                await self._db.run(statement("defer.rehearse"), job=encode_jobs(job))
        except AfterwriteError as error:
            state = sqlstate(error)
            if is_outage(error) or state is None or is_transient(state):
                raise
            return Verdict(outcome=Outcome.ERROR, why=f"{state} {error.__cause__ or error}")
        return None

    async def _put_back(self, tables: Mapping[str, EffectTable], traced: Mapping[Key, Trace]) -> None:
        """Make the rows that the transaction touched as they were before it, with no trigger looking."""
        if not traced:
            return
        await self._db.value(statement("defer.set_replication_role"), role="replica")
        for table in tables.values():
            own = [each for each in traced.values() if each.table is table]
            if not own:
                continue
            name = sql.Identifier(table.schema, table.name)
            await self._db.run(
                sql.SQL(
                    "delete from {name} t using jsonb_populate_recordset(null::{name}, %(rows)s::jsonb) k where {match}"
                ).format(name=name, match=_match(table.key)),
                rows=_array(each.left or each.was for each in own),
            )
            if any(each.was for each in own):
                columns = sql.SQL(", ").join(_column(each.name) for each in table.columns if not each.generated)
                await self._db.run(
                    sql.SQL(
                        "insert into {name} ({columns}) overriding system value"
                        " select {columns} from jsonb_populate_recordset(null::{name}, %(rows)s::jsonb)"
                    ).format(name=name, columns=columns),
                    rows=_array(each.was for each in own),
                )
        await self._db.value(statement("defer.set_replication_role"), role="origin")

    async def _read_rows(self, table: EffectTable, own: Iterable[Trace]) -> list[Row]:
        rows = [each.left or each.was for each in own]
        if not rows:
            return []
        found = await self._db.values(
            sql.SQL(
                "select to_jsonb(t)::text from {name} t"
                " where ({key}) in (select {key} from jsonb_populate_recordset(null::{name}, %(rows)s::jsonb))"
            ).format(name=sql.Identifier(table.schema, table.name), key=sql.SQL(", ").join(map(_column, table.key))),
            rows=_array(rows),
        )
        return [decode_row(text) for text in found]

    async def _mark(self, table: EffectTable) -> int:
        """Where the sequence of its key stands."""
        if table.sequence is None:
            return 0
        return int(await self._db.value(statement("defer.read_sequence"), sequence=table.sequence) or 0)

    async def _read_new(self, table: EffectTable, mark: int) -> list[Row] | None:
        """The rows that this transaction made: by its sequence, or in a small table by looking; None in a big one."""
        if table.sequence is not None:
            where = sql.SQL("t.{key} > %(mark)s").format(key=sql.Identifier(table.key[0]))
        elif table.pages <= _SMALL_PAGES:
            where = sql.SQL("%(mark)s = 0")
        else:
            return None
        found = await self._db.values(
            sql.SQL("select to_jsonb(t)::text from {name} t where {where} and afterwrite.is_own_row(t.xmin)").format(
                name=sql.Identifier(table.schema, table.name), where=where
            ),
            mark=mark,
        )
        return [decode_row(text) for text in found]

    async def _counts(self, tables: Mapping[str, EffectTable]) -> dict[str, Counts]:
        found: dict[str, Counts] = {}
        for relation, table in tables.items():
            found[relation] = await self._db.one(_counts, statement("defer.count_writes"), oid=table.oid)
        return found

    async def _table(self, relation: str) -> EffectTable | None:
        if relation not in self._tables:
            row = await self._db.maybe(
                _TableRow, statement("defer.read_effect_table"), relation=relation, publication=self._publication
            )
            self._tables[relation] = None
            if row is not None and row.captured:
                columns = await self._db.rows(EffectColumn, statement("defer.read_effect_columns"), oid=row.oid)
                self._tables[relation] = EffectTable(
                    relation=relation,
                    schema=row.schema,
                    name=row.name,
                    oid=row.oid,
                    kind=row.kind,
                    pages=row.pages,
                    key=tuple(row.key),
                    sequence=row.sequence,
                    columns=tuple(columns),
                )
        return self._tables[relation]


class _TableRow(msgspec.Struct, frozen=True):
    oid: int
    schema: str
    name: str
    kind: str
    pages: int
    key: list[str]
    sequence: str | None
    captured: bool


def _counts(*, inserted: int, updated: int, deleted: int) -> Counts:
    return Counts(inserted, updated, deleted)


def _of_counts(counts: Counts) -> tuple[int, int, int]:
    return counts.inserted, counts.updated, counts.deleted


def _of(event: object) -> Operation:
    return Operation(str(event))


def _operations(candidate: Rehearsable, transaction: SourceTransaction) -> tuple[Operation, ...]:
    """On which operations the trigger fired in this transaction, as far as the WAL can tell."""
    deferral = Deferral(
        id=0,
        identity=candidate.trigger.identity,
        run="",
        relations=(quoted(candidate.trigger.schema, candidate.trigger.table),),
        trigger=candidate.trigger,
    )
    coverage = Coverage([deferral])
    return tuple(dict.fromkeys(change.operation for change in transaction.changes if coverage.of(change)))


def _column(name: str) -> sql.Identifier:
    return sql.Identifier(name)


def _match(key: Sequence[str]) -> sql.Composed:
    return sql.SQL(" and ").join(sql.SQL("t.{c} = k.{c}").format(c=sql.Identifier(name)) for name in key)


def _array(rows: Iterable[bytes | None]) -> str:
    return (b"[" + b",".join(filter(None, rows)) + b"]").decode()


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
