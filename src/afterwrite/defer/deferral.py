"""Preparing and ending the deferral of a trigger, in the database where its body runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

import msgspec
from psycopg import sql

from afterwrite.defer.calls import Deferral, OnError, Span
from afterwrite.defer.refusals import clock_default, fires_apart, refusals, written_tables
from afterwrite.defer.transplant import ShapeColumn, TableShape, Transplant, body_path, drop_statements, transplant
from afterwrite.errors import AfterwriteError, Finding, Refused, Severity
from afterwrite.postgres import Database, quoted, statement
from afterwrite.record import Lsn
from afterwrite.scan.catalog import Trigger


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """What preparing a deferral takes: statements to run in one transaction, and what will differ after commit.

    ``relation`` is the table's quoted name now, ``path`` the search path that the body will have.
    """

    transplant: Transplant
    relation: str
    path: str
    statements: tuple[str, ...]
    findings: tuple[Finding, ...]


class DeferralRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of afterwrite.deferral that has functions, with the name that its table has now."""

    id: int
    source: str
    identity: str
    body: str
    run: str
    relations: list[str]
    path: str
    on_error: OnError
    state: str
    definition: str
    table_oid: int
    schema_now: str | None
    table_now: str | None

    @property
    def trigger(self) -> Trigger:
        return msgspec.json.decode(self.definition, type=Trigger)

    def value(self, names: Sequence[TableName] = ()) -> Deferral:
        """What a replayer needs of it; ``names`` say when its table was called what."""
        spans = spans_of(self.table_oid, names, self.relations)
        return Deferral(
            id=self.id,
            identity=self.identity,
            run=self.run,
            relations=tuple(dict.fromkeys([*self.relations, *spans])),
            spans=spans,
            trigger=self.trigger,
            on_error=OnError(self.on_error),
        )

    @property
    def renamed(self) -> bool:
        """Whether the table has another name now than its functions know."""
        return self.schema_now is not None and quoted(self.schema_now, self.table_now or "") != self.relations[-1]


async def plan_deferral(
    db: Database,
    trigger: Trigger,
    *,
    source: str,
    mode: str = "defer",
    on_error: OnError = OnError.PARK,
    search_path: str | None = None,
    salt: str = "",
    afterwards: bool = False,
) -> Preparation:
    """What it takes to defer this trigger, as statements for a dry run or an editor; changes nothing.

    ``afterwards``: it is to run for what is captured already, so that what the WAL gets from now on does not matter.
    ``search_path`` is the path of those who write to the table (None: the database's default). ``salt`` gives the
    functions names of their own. Raises Refused, with every reason, when the trigger cannot be deferred.
    """
    async with db.transaction():
        before = await db.value(statement("defer.set_path"), path="pg_catalog")
        table = await _read_table(db, trigger.table_oid)
        await db.value(statement("defer.set_path"), path=before)
    if table is None:
        raise Refused(f"the table of trigger {trigger.identity} is gone", remedy="run `afterwrite scan` again")
    findings = [
        found for found in refusals(trigger, table) if not (afterwards and found.rule == "defer.replica-identity")
    ]
    if apart := await db.values(statement("defer.read_apart"), oid=trigger.oid):
        findings.append(fires_apart(trigger, apart))
    if forbidden := [finding for finding in findings if finding.severity is Severity.ERROR]:
        raise Refused(
            "; ".join(finding.text for finding in forbidden),
            remedy="; ".join(dict.fromkeys(finding.remedy for finding in forbidden if finding.remedy)),
        )
    path = search_path or str(await db.value(statement("defer.read_default_path")))
    async with db.transaction():
        before = await db.value(statement("defer.set_path"), path=body_path(trigger, path))
        filled = await db.rows(
            _ClockDefault, statement("defer.read_clock_defaults"), names=written_tables(trigger.source)
        )
        await db.value(statement("defer.set_path"), path=before)
    findings += [clock_default(trigger, default.relation, default.name) for default in filled]
    made = transplant(trigger, table, search_path=path, salt=salt)
    values = {
        "source": sql.Literal(source),
        "identity": sql.Literal(trigger.identity),
        "trigger_oid": sql.Literal(trigger.oid),
        "table_oid": sql.Literal(table.oid),
        "relations": sql.Literal([quoted(table.schema, table.name)]),
        "body": sql.Literal(made.body),
        "run": sql.Literal(made.run),
        "definition": sql.Literal(msgspec.json.encode(trigger).decode()),
        "path": sql.Literal(path),
        "mode": sql.Literal(mode),
        "on_error": sql.Literal(on_error.value),
    }
    return Preparation(
        transplant=made,
        relation=quoted(table.schema, table.name),
        path=path,
        statements=(*(text.format(**values).as_string() for text in _PREPARE), *made.create),
        findings=tuple(findings),
    )


# What was prepared and never silenced is forgotten; a body that is live already meets the unique index.
_PREPARE = (
    sql.SQL(
        "update afterwrite.deferral set state = 'dropped'\n"
        " where source = {source} and identity = {identity} and state = 'prepared'"
    ),
    sql.SQL(
        "insert into afterwrite.deferral\n"
        "    (source, identity, trigger_oid, table_oid, relations, body, run, definition, path, mode, on_error)\n"
        "values (\n"
        "    {source}, {identity}, {trigger_oid}, {table_oid}, {relations},\n"
        "    {body}, {run}, {definition}, {path}, {mode}, {on_error})"
    ),
    # The silencing commits later than this place: a replayer that begins here misses nothing.
    sql.SQL(
        "insert into afterwrite.deferral_progress (source, position, commit_lsn)\n"
        "values ({source}, 0, pg_catalog.pg_current_wal_insert_lsn()) on conflict (source) do nothing"
    ),
)


async def prepare_deferral(
    db: Database,
    trigger: Trigger,
    *,
    source: str,
    mode: str = "defer",
    on_error: OnError = OnError.PARK,
    search_path: str | None = None,
) -> list[Finding]:
    """Make the trigger's functions and its deferral row; says what will differ after commit.

    Call it inside the transaction that silences the trigger, or before. Nothing runs until the mark of the silencing
    comes by in the feed. Raises Refused, with every reason, when the trigger cannot be deferred.
    """
    prepared = await plan_deferral(db, trigger, source=source, mode=mode, on_error=on_error, search_path=search_path)
    async with db.transaction():
        for text in prepared.statements:
            await db.run(text.encode())
    return list(prepared.findings)


async def refresh_deferral(db: Database, row: DeferralRow) -> None:
    """Make the functions of a deferral again, for its table as it is now."""
    async with db.transaction():
        before = await db.value(statement("defer.set_path"), path="pg_catalog")
        table = await _read_table(db, row.table_oid)
        await db.value(statement("defer.set_path"), path=before)
        if table is None:
            raise AfterwriteError(
                f"the table of trigger {row.identity} is gone, and its body is deferred",
                remedy="roll its phase back: `afterwrite migrate rollback`",
            )
        for text in transplant(row.trigger, table, search_path=row.path, stem=row.body).create:
            await db.run(text.encode())
        relation = quoted(table.schema, table.name)
        if relation != row.relations[-1]:
            await db.run(statement("defer.rename_relation"), id=row.id, relation=relation)


async def drop_deferral(db: Database, identity: str, *, source: str) -> list[str]:
    """Drop the functions of a trigger that is not deferred (any more); says which, and keeps the rows as history.

    Raises Refused while its body is live, or while failed calls of it wait to be run again.
    """
    now = await db.one(_Live, statement("defer.read_live"), source=source, identity=identity)
    if now.live:
        raise Refused(
            f"the body of trigger {identity} runs after commit, and the mark of its restoring has not come by yet",
            remedy="restore the trigger first (`afterwrite migrate rollback`), and let the replayer catch up",
        )
    if now.parked:
        raise Refused(
            f"{now.parked} failed calls of the body of trigger {identity} wait to be run again",
            remedy="run `afterwrite defer retry`, or `afterwrite defer skip`",
        )
    async with db.transaction():
        rows = await db.rows(_Droppable, statement("defer.read_droppable"), source=source, identity=identity)
        for body in {row.body for row in rows}:
            for text in drop_statements(body):
                await db.run(text.encode())
        await db.run(statement("defer.mark_dropped"), ids=[row.id for row in rows])
    return sorted({row.body for row in rows})


async def read_deferrals(db: Database, source: str) -> list[DeferralRow]:
    """Deferrals that run now (state live), or may begin to (state prepared)."""
    return await db.rows(DeferralRow, statement("defer.read_deferrals"), source=source)


async def read_deferrals_of(db: Database, ids: Sequence[int]) -> list[DeferralRow]:
    """These deferrals, whatever their state."""
    return await db.rows(DeferralRow, statement("defer.read_deferrals_of"), ids=list(ids))


class TableName(msgspec.Struct, frozen=True):
    """A table (by its oid) had this quoted name from a commit on."""

    relation: str
    since_lsn: str
    oid: int


async def read_names(db: Database, rows: Sequence[DeferralRow | ActiveDeferral]) -> list[TableName]:
    """Which tables had the names that the tables of these deferrals ever had, in order, as far as capture met them."""
    return await read_names_of(db, sorted({row.table_oid for row in rows}))


async def read_names_of(db: Database, tables: Sequence[int]) -> list[TableName]:
    """The same for tables by their oids."""
    return await db.rows(TableName, statement("defer.read_names"), oids=list(tables)) if tables else []


def spans_of(oid: int, names: Sequence[TableName], known: Collection[str] = ()) -> dict[str, tuple[Span, ...]]:
    """From which commit on and before which a table had which name.

    The first that is known to have had a name is taken to have had it from the beginning; of the names that this table
    is ``known`` to have had, itself.
    """
    spans: dict[str, list[Span]] = {}
    for relation, of_one in groupby(names, key=lambda name: name.relation):
        listed = list(of_one)
        if relation in known and listed[0].oid != oid:
            spans[relation] = [Span(Lsn(0), parse_lsn(listed[0].since_lsn))]
        for number, name in enumerate(listed):
            if name.oid == oid:
                since = parse_lsn(name.since_lsn) if number else Lsn(0)
                until = parse_lsn(listed[number + 1].since_lsn) if number + 1 < len(listed) else None
                spans.setdefault(relation, []).append(Span(since, until))
    return {relation: tuple(found) for relation, found in spans.items()}


class ActiveDeferral(msgspec.Struct, frozen=True):
    """What may change about a deferral while a replayer runs."""

    id: int
    table_oid: int
    state: str
    schema_now: str | None
    table_now: str | None


async def read_active(db: Database, source: str) -> list[ActiveDeferral]:
    """The same deferrals in short, to notice that some changed."""
    return await db.rows(ActiveDeferral, statement("defer.read_active"), source=source)


class _Live(msgspec.Struct, frozen=True):
    live: int
    parked: int


class _ClockDefault(msgspec.Struct, frozen=True):
    relation: str
    name: str


class _Droppable(msgspec.Struct, frozen=True):
    id: int
    body: str


class _TableRow(msgspec.Struct, frozen=True):
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    replica_identity: str
    is_partition: bool
    shape: str


async def _read_table(db: Database, oid: int) -> TableShape | None:
    row = await db.maybe(_TableRow, statement("defer.read_table"), oid=oid)
    if row is None:
        return None
    columns = await db.rows(ShapeColumn, statement("defer.read_columns"), oid=oid)
    return TableShape(**msgspec.structs.asdict(row), columns=tuple(columns))


def parse_lsn(text: str | None) -> Lsn:
    """An LSN as the server prints it; the beginning of the WAL for none."""
    return Lsn.parse(text) if text else Lsn(0)
