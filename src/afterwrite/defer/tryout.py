"""One rehearsal: a body tried on what a transaction did, in a transaction of ours that never commits.

::

    rows as they were before  ──put back──▶ body ──▶ rows now      compared with what the trigger left
              │                                                                │ not to be told
              └────────────────────────────▶ the trigger's own function, fired by the server for the same change
                                             on a scratch table: compared with that

No row of the user's is changed for anybody else. The rows that are put back are locked for these few milliseconds;
where somebody else holds one, the rehearsal gives up at once. Sequences move on, as in any transaction that is undone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec
from psycopg import sql

from afterwrite.context import Context
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
    compare_runs,
    decode_row,
    encode_rows,
    judge,
    trace,
)
from afterwrite.defer.calls import (
    Coverage,
    Deferral,
    FeedChange,
    Job,
    ReplayPolicy,
    SourceTransaction,
    encode_jobs,
    plan_job,
)
from afterwrite.defer.deferral import plan_deferral
from afterwrite.defer.run import is_outage, is_transient, sqlstate
from afterwrite.defer.transplant import names_its_table
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.postgres import Database, quoted, statement
from afterwrite.record import Lsn, Operation
from afterwrite.scan.catalog import Trigger, TriggerLevel

_SMALL_PAGES = 1_000
_SCRATCH = "afterwrite_scratch"
_COMPARED = 3


class Rehearsable(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger that is to be deferred; ``effects`` are the tables (quoted) that scan says its body writes.

    ``lookups``: it reads other tables, too, as they are at the moment.
    """

    trigger: Trigger
    effects: tuple[str, ...]
    lookups: bool = False

    def deferral(self, run: str = "") -> Deferral:
        """As if it were deferred, its body run by this function."""
        return Deferral(
            id=0,
            identity=self.trigger.identity,
            run=run,
            relations=(quoted(self.trigger.schema, self.trigger.table),),
            trigger=self.trigger,
        )


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of a body left: by table what it wrote and (None: cannot be found) the rows that it wrote."""

    wrote: Mapping[str, Counts]
    standing: Mapping[Key, Row]
    own: Mapping[str, Sequence[Row] | None]
    failed: Verdict | None = None


class _UndoneError(Exception):
    """The end of every rehearsal."""


class Tryout:
    """Tries bodies on a connection of its own. ``publication`` says what is captured (None: everything)."""

    def __init__(self, db: Database, source: str, policy: ReplayPolicy, publication: str | None) -> None:
        self._db = db
        self._source = source
        self._policy = policy
        self._publication = publication
        self._tables: dict[str, EffectTable | None] = {}

    def forget(self) -> None:
        """Read tables anew from now on."""
        self._tables.clear()

    async def rehearse(self, candidate: Rehearsable, transaction: SourceTransaction) -> Verdict | None:
        """What came of it; None where somebody stood in the way, and another transaction will do."""
        verdict: list[Verdict] = []
        try:
            async with self._db.transaction():
                verdict.append(await self._run(candidate, transaction))
                raise _UndoneError
        except _UndoneError:
            return verdict[0]
        except Refused as error:
            return Verdict(outcome=Outcome.UNABLE, why=str(error))
        except AfterwriteError as error:
            return _unable(error)

    async def _run(self, candidate: Rehearsable, transaction: SourceTransaction) -> Verdict:
        tables: dict[str, EffectTable] = {}
        for relation in candidate.effects:
            table = await self._table(relation)
            if table is None:
                return Verdict(outcome=Outcome.UNSEEN, why=f"{relation} is no table")
            tables[relation] = table
        captured = {relation: table for relation, table in tables.items() if table.captured}
        traced = trace(transaction.changes, captured)
        unseen = traced if isinstance(traced, Verdict) else None
        if unseen is None and (missing := sorted(tables.keys() - captured.keys())):
            unseen = Verdict(outcome=Outcome.UNSEEN, why=f"{missing[0]} is not captured")
        known = {} if isinstance(traced, Verdict) else traced

        prepared = await plan_deferral(self._db, candidate.trigger, source=self._source, salt="rehearsal")
        for text in prepared.transplant.create:
            await self._db.run(text.encode())
        coverage = Coverage([candidate.deferral(prepared.transplant.run)])
        job = plan_job(
            transaction,
            coverage,
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
        window = Window(committed_at=transaction.committed_at, began=began)
        await self._put_back(tables, known)

        async def body() -> None:
            await self._db.run(statement("defer.rehearse"), job=encode_jobs(job))

        seen = await self._observe(tables, known, body)
        verdict = seen.failed or unseen or self._judge(candidate, transaction, tables, known, seen, window)
        if not verdict.outcome.judged and seen.failed is None and not names_its_table(candidate.trigger):
            fired = [change for change in transaction.changes if coverage.of(change, transaction.settings)]

            async def original() -> None:
                await self._fire(candidate.trigger, fired, job, prepared.path)

            verdict = await self._compare(tables, seen, body, original, window) or verdict
        if verdict.outcome.differs and not _is_stamped(transaction):
            why = f"the transaction stamped no context, without which {verdict.why}"
            return msgspec.structs.replace(verdict, outcome=Outcome.UNABLE, why=why)
        return verdict

    async def _compare(
        self,
        tables: Mapping[str, EffectTable],
        seen: _Seen,
        body: Callable[[], Awaitable[None]],
        original: Callable[[], Awaitable[None]],
        window: Window,
    ) -> Verdict | None:
        """Run both from the same state, the rows that the body wrote held meanwhile; None when it cannot be told."""
        verdict: Verdict | None = None
        for _ in range(_COMPARED):
            for relation, table in tables.items():
                await self._hold(table, seen.own.get(relation) or ())
            seen = await self._observe(tables, {}, body)
            other = await self._observe(tables, {}, original)
            if seen.failed or other.failed:
                return None
            verdict = compare_runs(tables, (seen.wrote, seen.own), (other.wrote, other.own), window)
            # A difference may be of what others changed between the two: it has to show again.
            if verdict is None or not verdict.outcome.differs:
                break
        return verdict

    async def _hold(self, table: EffectTable, rows: Sequence[Row]) -> None:
        if not rows or not table.key:
            return
        keys = sql.SQL(", ").join(map(sql.Identifier, table.key))
        await self._db.values(
            sql.SQL(
                "select 1 from {name} t where ({keys}) in"
                " (select {keys} from jsonb_populate_recordset(null::{name}, %(rows)s::jsonb)) for update"
            ).format(name=sql.Identifier(table.schema, table.name), keys=keys),
            rows=encode_rows([{name: row.get(name) for name in table.key} for row in rows]),
        )

    def _judge(
        self,
        candidate: Rehearsable,
        transaction: SourceTransaction,
        tables: Mapping[str, EffectTable],
        traced: Mapping[Key, Trace],
        seen: _Seen,
        window: Window,
    ) -> Verdict:
        made: list[tuple[EffectTable, Row]] = []
        for relation, table in tables.items():
            if seen.wrote[relation].inserted and table.key_fills_itself:
                own = seen.own[relation]
                if own is None:
                    return Verdict(outcome=Outcome.UNKEYED, why=f"new rows of {relation} cannot be found again")
                made += [(table, row) for row in own if table.key_of(row) not in traced]
        counted = Counter(change.relation for change in transaction.changes)
        return judge(traced, counted, seen.wrote, seen.standing, made, window, reads_others=candidate.lookups)

    async def _observe(
        self, tables: Mapping[str, EffectTable], traced: Mapping[Key, Trace], work: Callable[[], Awaitable[None]]
    ) -> _Seen:
        """What this work leaves behind, and then nothing of it."""
        marks = {relation: await self._mark(table) for relation, table in tables.items()}
        seen: list[_Seen] = []
        try:
            async with self._db.transaction():
                before = {relation: await self._count(table) for relation, table in tables.items()}
                await work()
                wrote = {
                    relation: (await self._count(table)).since(before[relation]) for relation, table in tables.items()
                }
                standing: dict[Key, Row] = {}
                own: dict[str, Sequence[Row] | None] = {}
                for relation, table in tables.items():
                    rows = await self._read_rows(table, [each for each in traced.values() if each.table is table])
                    standing |= {table.key_of(row): row for row in rows}
                    own[relation] = await self._read_own(table, marks[relation], wrote[relation])
                seen.append(_Seen(wrote=wrote, standing=standing, own=own))
                raise _UndoneError
        except _UndoneError:
            return seen[0]
        except AfterwriteError as error:
            if (failed := _failed(error)) is None:
                raise
            return _Seen(wrote={}, standing={}, own={}, failed=failed)

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
                columns = _columns(table.columns)
                await self._db.run(
                    sql.SQL(
                        "insert into {name} ({columns}) overriding system value"
                        " select {columns} from jsonb_populate_recordset(null::{name}, %(rows)s::jsonb)"
                    ).format(name=name, columns=columns),
                    rows=_array(each.was for each in own),
                )
        await self._db.value(statement("defer.set_replication_role"), role="origin")

    async def _fire(self, trigger: Trigger, changes: Sequence[FeedChange], job: Job, path: str) -> None:
        """Have the server fire the trigger's own function for these changes, on a scratch table of the same columns."""
        table = await self._table(quoted(trigger.schema, trigger.table))
        if table is None:
            raise Refused(f"the table of trigger {trigger.identity} is gone")
        scratch = sql.Identifier("pg_temp", _SCRATCH)
        await self._db.run(
            sql.SQL("create temporary table {scratch} (like {table} including generated) on commit drop").format(
                scratch=sql.Identifier(_SCRATCH), table=sql.Identifier(table.schema, table.name)
            )
        )
        await self._db.run(_create_trigger(trigger, scratch))
        await self._db.value(
            statement("defer.enter_original"),
            settings=msgspec.json.encode(job.settings).decode(),
            committed_at=job.committed_at,
        )
        await self._db.value(statement("defer.set_path"), path=path)
        columns = _columns(table.columns)
        put = sql.SQL(
            "insert into {scratch} ({columns}) select {columns}"
            " from pg_catalog.jsonb_populate_recordset(null::{table}, %(rows)s::jsonb)"
        ).format(scratch=scratch, columns=columns, table=sql.Identifier(table.schema, table.name))
        turn = sql.SQL(
            "update {scratch} set ({columns}) = (select {columns}"
            " from pg_catalog.jsonb_populate_record(null::{table}, %(row)s::jsonb))"
        ).format(scratch=scratch, columns=columns, table=sql.Identifier(table.schema, table.name))
        clear = sql.SQL("delete from {scratch}").format(scratch=scratch)
        if trigger.level is TriggerLevel.STATEMENT and len(changes) > 1:
            operations = {change.operation for change in changes}
            if operations == {Operation.INSERT}:
                await self._db.run(put, rows=_array(_bytes(change.after) for change in changes))
                return
            raise Refused(f"the statement of trigger {trigger.identity} cannot be made again")
        for change in changes:
            if change.before is not None:
                await self._quietly(put, rows=_array([_bytes(change.before)]))
            if change.operation is Operation.INSERT:
                await self._db.run(put, rows=_array([_bytes(change.after)]))
            elif change.operation is Operation.UPDATE:
                await self._db.run(turn, row=(_bytes(change.after) or b"{}").decode())
            else:
                await self._db.run(clear)
            await self._quietly(clear)

    async def _quietly(self, query: sql.Composed, **given: object) -> None:
        await self._db.value(statement("defer.set_replication_role"), role="replica")
        await self._db.run(query, **given)
        await self._db.value(statement("defer.set_replication_role"), role="origin")

    async def _read_rows(self, table: EffectTable, own: Iterable[Trace]) -> list[Row]:
        rows = [each.left or each.was for each in own]
        if not rows:
            return []
        found = await self._db.values(
            sql.SQL(
                "select to_jsonb(t)::text from {name} t"
                " where ({key}) in (select {key} from jsonb_populate_recordset(null::{name}, %(rows)s::jsonb))"
            ).format(
                name=sql.Identifier(table.schema, table.name), key=sql.SQL(", ").join(map(sql.Identifier, table.key))
            ),
            rows=_array(rows),
        )
        return [decode_row(text) for text in found]

    async def _mark(self, table: EffectTable) -> int:
        """Where the sequence of its key stands."""
        if table.sequence is None:
            return 0
        return int(await self._db.value(statement("defer.read_sequence"), sequence=table.sequence) or 0)

    async def _read_own(self, table: EffectTable, mark: int, wrote: Counts) -> list[Row] | None:
        """The rows that this transaction wrote: in a small table by looking, new ones by their sequence; else None."""
        if not wrote.any:
            return []
        if table.pages <= _SMALL_PAGES:
            where = sql.SQL("%(mark)s >= 0")
        elif table.sequence is not None and not wrote.updated:
            where = sql.SQL("t.{key} > %(mark)s").format(key=sql.Identifier(table.key[0]))
        else:
            return None
        found = await self._db.values(
            sql.SQL("select to_jsonb(t)::text from {name} t where {where} and afterwrite.is_own_row(t.xmin)").format(
                name=sql.Identifier(table.schema, table.name), where=where
            ),
            mark=mark,
        )
        return [decode_row(text) for text in found]

    async def _count(self, table: EffectTable) -> Counts:
        return await self._db.one(Counts, statement("defer.count_writes"), oid=table.oid)

    async def _table(self, relation: str) -> EffectTable | None:
        if relation not in self._tables:
            row = await self._db.maybe(
                _TableRow, statement("defer.read_effect_table"), relation=relation, publication=self._publication
            )
            self._tables[relation] = None
            if row is not None:
                columns = await self._db.rows(EffectColumn, statement("defer.read_effect_columns"), oid=row.oid)
                self._tables[relation] = EffectTable(
                    relation=relation,
                    schema=row.schema,
                    name=row.name,
                    oid=row.oid,
                    pages=row.pages,
                    key=tuple(row.key),
                    sequence=row.sequence,
                    captured=row.captured,
                    columns=tuple(columns),
                )
        return self._tables[relation]


class _TableRow(msgspec.Struct, frozen=True):
    oid: int
    schema: str
    name: str
    pages: int
    key: list[str]
    sequence: str | None
    captured: bool


def _is_stamped(transaction: SourceTransaction) -> bool:
    """Whether the transaction said who wrote: what its session alone knew is not known to us otherwise."""
    return bool(transaction.settings) or any(change.context != Context() for change in transaction.changes)


def _unable(error: AfterwriteError) -> Verdict | None:
    state = sqlstate(error)
    if is_outage(error) or state is None:
        raise error
    if is_transient(state):
        return None
    return Verdict(outcome=Outcome.UNABLE, why=f"{state} {error.__cause__ or error}")


def _failed(error: AfterwriteError) -> Verdict | None:
    """What a body's failure shows; None where it is no fault of the body's."""
    state = sqlstate(error)
    if isinstance(error, Refused):
        return Verdict(outcome=Outcome.UNABLE, why=str(error))
    if is_outage(error) or state is None or is_transient(state):
        return None
    return Verdict(outcome=Outcome.ERROR, why=f"{state} {error.__cause__ or error}")


def _create_trigger(trigger: Trigger, scratch: sql.Identifier) -> sql.Composed:
    events = [event.value for event in trigger.events if event.value != "truncate"]
    if trigger.columns and "update" in events:
        events[events.index("update")] = "update of"
    words = [
        sql.SQL("update of {}").format(sql.SQL(", ").join(map(sql.Identifier, trigger.columns)))
        if event == "update of"
        else sql.Composed([{"insert": sql.SQL("insert"), "update": sql.SQL("update")}.get(event, sql.SQL("delete"))])
        for event in events
    ]
    named = [
        sql.SQL("{} table as {}").format(sql.SQL("old") if old else sql.SQL("new"), sql.Identifier(name))
        for old, name in ((True, trigger.old_table), (False, trigger.new_table))
        if name
    ]
    return sql.SQL(
        "create trigger {name} after {events} on {table} {tables} for each {level} {when} execute {function}"
    ).format(
        name=sql.Identifier(trigger.name),
        events=sql.SQL(" or ").join(words),
        table=scratch,
        tables=sql.SQL("referencing {}").format(sql.SQL(" ").join(named)) if named else sql.SQL(""),
        level=sql.SQL("row") if trigger.level is TriggerLevel.ROW else sql.SQL("statement"),
        when=sql.Composed([sql.SQL("when ("), _verbatim(trigger.when), sql.SQL(")")]) if trigger.when else sql.SQL(""),
        function=sql.SQL("function {}({})").format(
            sql.Identifier(trigger.function_schema, trigger.function),
            sql.SQL(", ").join(map(sql.Literal, trigger.arguments)),
        ),
    )


class _Verbatim(sql.Composable):
    """An expression that the catalog printed, as it stands."""

    def as_bytes(self, context: object = None) -> bytes:
        del context
        return str(self._obj).encode()


def _verbatim(text: str) -> sql.Composable:
    return _Verbatim(text.replace("%", "%%"))


def _columns(columns: Sequence[EffectColumn]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in columns if not column.generated)


def _match(key: Sequence[str]) -> sql.Composed:
    return sql.SQL(" and ").join(sql.SQL("t.{c} = k.{c}").format(c=sql.Identifier(name)) for name in key)


def _bytes(row: msgspec.Raw | None) -> bytes | None:
    return None if row is None else bytes(row)


def _array(rows: Iterable[bytes | None]) -> str:
    return (b"[" + b",".join(filter(None, rows)) + b"]").decode()
