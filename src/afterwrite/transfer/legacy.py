"""Importing legacy logs: what would be done, looked at first; then chunk by chunk, rows and progress in one commit.

::

    survey, mapping ──plan──▶ LogPlan (reads only) ──import_log──▶ chunk: read ▶ convert ▶ leave out ▶ store, note, move

The legacy side is only read, in statements that are made short. A chunk is one batch of the store: its rows, its seal,
how far the log is imported, and the chunk's own count and digest commit together. Whoever is killed goes on from there;
whoever reads a row again makes the same id of it, and it is stored once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta

import msgspec
from psycopg import sql

from afterwrite.errors import AfterwriteError, DatabaseError, Finding, Refused, Severity, UsageError
from afterwrite.failpoints import failpoint
from afterwrite.jsonb import read_members
from afterwrite.postgres import Database, LockTimeout, connect, identifier, quoted, statement
from afterwrite.prove.legacy import infer
from afterwrite.prove.watch import routines, shapes
from afterwrite.record import Activity, Batch
from afterwrite.scan.catalog import Kind as TableKind
from afterwrite.scan.catalog import Table
from afterwrite.scan.survey import Survey
from afterwrite.store.lines import CopyLines
from afterwrite.store.partitions import Temperature, make_partitions_of
from afterwrite.store.writer import PostgresSink
from afterwrite.transfer.infer import Evidence, Inferred, Trace, infer_log
from afterwrite.transfer.mapping import (
    STOP_AT_CAPTURE,
    STOP_NEVER,
    LogMapping,
    check_words,
    differences,
    read_mappings,
    write_mappings,
)
from afterwrite.transfer.rows import Converter, LegacyRow, LogShape, Origin, Reading, read_time_type

# A session that reads a log: nothing of it can write, values print the same everywhere, and row security hides nothing
# in silence (a role that it would hide rows from is refused).
READING = {
    "default_transaction_read_only": "on",
    "row_security": "off",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    # Chunks are read along the index of the log's order, also where statistics are old.
    "enable_seqscan": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
}
_SAMPLE_ROWS = 200
_FIRST_ROWS, _MOST_ROWS = 500, 5_000
_CHUNK_BYTES = 16 * 1024 * 1024
# Longer than this no statement on the log's side should take; what is stored meanwhile counts in.
_STATEMENT_SECONDS = 1.0
# A day within a year has a partition of its own, an older one when so many of its rows come in a chunk (maintenance has
# a rule of this kind too): thousands of partitions with a handful of rows each would slow every search down.
_NEAR_DAYS = 366
_ROWS_FOR_A_DAY = 1_000
# Transactions that began before capture did, and committed after it, are looked for so long before its first change.
_BORDER = timedelta(days=1)

UNTIMED, EXPIRED, COVERED, STOPPED = "no time", "retention", "captured", "stop"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wants. ``rate`` bounds rows a second; days older than ``retention_days`` are not imported."""

    rate: float | None = None
    hot_days: int = 30
    retention_days: int | None = None
    chunk_rows: int = _MOST_ROWS
    moved: bool = False


class LogRow(msgspec.Struct, frozen=True, kw_only=True):
    """How far a log is imported: a row of afterwrite.legacy_log."""

    id: int
    system_id: str | None
    mapping: str
    through: list[str] | None
    chunks: int


class Totals(msgspec.Struct, frozen=True):
    """What was imported of a log so far."""

    chunks: int = 0
    rows: int = 0
    stored: int = 0


class Sample(msgspec.Struct, frozen=True):
    """A row before and after: as JSON of the log's row, and the activity (None where it has no time)."""

    before: str
    after: Activity | None


class LogPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an import of one log would do. ``stops`` are the moments when capture began, by quoted table.

    ``oldest`` is the first day that retention keeps. ``first_at`` and ``last_at`` are the times of the first and the
    last row in the log's order.
    """

    origin: Origin
    shape: LogShape
    mapping: LogMapping
    time_type: str
    traces: tuple[Trace, ...]
    estimate: int
    samples: tuple[Sample, ...]
    first_at: datetime | None
    last_at: datetime | None
    stops: Mapping[str, datetime]
    log_stop: datetime | None
    oldest: date | None
    system_id: str | None
    known: LogRow | None = None
    totals: Totals = Totals()
    findings: tuple[Finding, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """After a chunk: rows read and stored in this run, and the last one's time."""

    relation: str
    rows: int
    stored: int
    left_out: Mapping[str, int]
    at: datetime | None


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What one run did. ``already`` counts rows whose activities the store had; ``seconds`` is how long it took."""

    relation: str
    rows: int
    stored: int
    already: int
    left_out: Mapping[str, int]
    chunks: int
    seconds: float
    totals: Totals


OnProgress = Callable[[Progress], None]


def _no_progress(progress: Progress) -> None:
    """Nobody asked how it goes."""


class _Place(msgspec.Struct, frozen=True):
    database: str
    time_zone: str
    may_identify: bool


class _Named(msgspec.Struct, frozen=True):
    schema: str
    name: str


@asynccontextmanager
async def open_log(dsn: str | None) -> AsyncGenerator[Database]:
    """A connection on which logs are read, and nothing can be written."""
    async with connect(dsn, application_name="afterwrite import", options=READING, guarded=True) as db:
        yield db


# --- looking ----------------------------------------------------------------------------------------------------------


async def find_logs(source: Database, found: Survey, names: Sequence[str], *, begun: Sequence[str] = ()) -> list[Table]:
    """The tables that are meant: those named, else every log that triggers write, and those whose import has ``begun``.

    Raises UsageError for a name that is none, or where nothing was found.
    """
    by_name = {(table.schema, table.name): table for table in found.inventory.tables}
    if names:
        return [await _find(source, by_name, name) for name in names]
    logs = {name for judgement in found.judgements for name in judgement.log_tables}
    tables = [
        table
        for table in found.inventory.tables
        if table.full_name in logs or quoted(table.schema, table.name) in begun
    ]
    if not tables:
        raise UsageError(
            f"no trigger of {source.where} writes a log that could be found",
            remedy="name the tables: afterwrite import legacy public.audit_logs",
        )
    return sorted(tables, key=lambda table: (table.schema, table.name))


async def _find(source: Database, by_name: Mapping[tuple[str, str], Table], name: str) -> Table:
    places: list[_Named] = []
    with contextlib.suppress(DatabaseError):  # before PostgreSQL 16, of what is no name at all
        places = await source.rows(_Named, statement("transfer.find_log"), name=name)
    if not places:
        places = await source.rows(_Named, statement("transfer.find_log_by_name"), name=name)
    tables = [table for place in places if (table := by_name.get((place.schema, place.name))) is not None]
    if not tables:
        raise UsageError(
            f"there is no table {name} in {source.where}", remedy="write it as schema.table, quoted where need be"
        )
    if len(tables) > 1 and tables[0].schema != "public":
        told = ", ".join(quoted(table.schema, table.name) for table in tables)
        raise UsageError(f"{name} may be any of {told}", remedy="say which: schema.table")
    table = tables[0]
    if table.kind not in (TableKind.TABLE, TableKind.PARTITIONED):
        raise UsageError(
            f"{quoted(table.schema, table.name)} is no table: without a key of its own it cannot be read in chunks",
            remedy="name the table that it shows",
        )
    return table


async def infer_mapping(source: Database, found: Survey, table: Table, *, time_zone: str | None = None) -> Inferred:
    """The mapping of a log as its triggers, names and first rows tell; raises Refused for one that cannot be read."""
    place = await source.one(_Place, statement("transfer.read_place"))
    name = quoted(table.schema, table.name)
    logs = frozenset({(table.schema, table.name)})
    known, callable_routines = shapes(found.inventory, found.bodies), routines(found.inventory)
    writers = [
        mapping
        for judgement in found.judgements
        if (body := found.bodies.get(judgement.trigger.oid)) is not None and body.parsed
        if (mapping := infer(judgement.trigger, legacy=logs, tables=known, routines=callable_routines)).operations
    ]
    evidence = Evidence(
        inventory=found.inventory,
        writers=tuple(writers),
        samples=await _read_samples(source, table),
        leading=frozenset(await source.values(statement("transfer.read_leading"), table=name)),
        hstore=await source.value(statement("transfer.read_hstore")),
        time_zone=time_zone or place.time_zone,
    )
    return infer_log(table, evidence)


async def _read_samples(source: Database, table: Table) -> dict[str, tuple[str | None, ...]]:
    query = sql.SQL("select pg_catalog.to_jsonb(legacy.*)::text from {} as legacy limit {}").format(
        identifier(table.schema, table.name), sql.Literal(_SAMPLE_ROWS)
    )
    rows = [read_members(text.encode()) for text in await source.values(query)]
    return {
        column.name: tuple(
            msgspec.json.decode(raw) if bytes(raw)[:1] == b'"' else None
            for row in rows
            if (raw := row.get(column.name)) is not None
        )
        for column in table.columns
    }


async def plan_log(
    log: Database,
    store: Database,
    table: Table,
    inferred: Inferred | None,
    mapping: LogMapping | None,
    *,
    source: str,
    policy: Policy,
    captured: frozenset[str] = frozenset(),
    stop: str | None = None,
    time_zone: str | None = None,
) -> LogPlan:
    """Look at one log with the mapping that is given, else the one that its import began with, else the inferred one.

    ``captured`` are the quoted tables that capture publishes; ``stop`` and ``time_zone`` go before the mapping's.
    Raises Refused when the log is imported by another mapping already, or from another database; UsageError when the
    server does not take the mapping.
    """
    place = await log.one(_Place, statement("transfer.read_place"))
    origin = Origin(source=source, database=place.database, relation=quoted(table.schema, table.name))
    system_id: str | None = await log.value(statement("transfer.read_system")) if place.may_identify else None
    known = await read_log_row(store, origin)
    kept = read_mappings(known.mapping)[0] if known else None
    chosen = mapping or kept or (inferred.mapping if inferred else None)
    if chosen is None:
        raise AfterwriteError(f"nobody said how {origin.relation} is read")
    if stop is not None:
        chosen = msgspec.structs.replace(chosen, stop=stop)
        check_words(chosen)
    if time_zone is not None and chosen.time_zone is not None:
        chosen = msgspec.structs.replace(chosen, time_zone=time_zone)
    _refuse_other(origin, known, kept, chosen, system_id, policy)
    if chosen.time_zone and not await log.value(statement("transfer.check_zone"), zone=chosen.time_zone):
        raise UsageError(
            f"{log.where} knows no time zone {chosen.time_zone}", remedy="name one as in Europe/Berlin, or UTC"
        )
    shape = LogShape(schema=table.schema, name=table.name, types={column.name: column.type for column in table.columns})
    time_type = await read_time_type(log, shape, chosen)
    reading = Reading(shape, chosen, time_type)
    converter = Converter(origin, chosen)
    firsts = await reading.read(log, limit=2)
    lasts = await reading.read(log, limit=1, backwards=True)
    relations = sorted({*chosen.tables, *chosen.keys})
    stops = await read_stops(store, source, relations) if chosen.stop == STOP_AT_CAPTURE else {}
    oldest = await _oldest_day(store, policy)
    plan = LogPlan(
        origin=origin,
        shape=shape,
        mapping=chosen,
        time_type=time_type,
        traces=inferred.traces if inferred and chosen == inferred.mapping else (),
        estimate=max(0, table.row_estimate, table.inserted - table.deleted),
        samples=tuple(
            [
                Sample(await _whole(log, shape, chosen, row), converter.to_activity(row))
                for row in _unique(firsts, lasts)
            ]
        ),
        first_at=firsts[0].occurred_at if firsts else None,
        last_at=lasts[0].occurred_at if lasts else None,
        stops=stops,
        log_stop=_log_stop(chosen, stops, captured),
        oldest=oldest,
        system_id=system_id,
        known=known,
        totals=await store.one(Totals, statement("transfer.read_totals"), log=known.id) if known else Totals(),
    )
    return msgspec.structs.replace(plan, findings=tuple(await _judge(plan, store, inferred, policy)))


def _unique(firsts: Sequence[LegacyRow], lasts: Sequence[LegacyRow]) -> list[LegacyRow]:
    seen = {row.place for row in firsts[:1]}
    return [*firsts[:1], *(row for row in lasts if row.place not in seen)]


async def _whole(log: Database, shape: LogShape, mapping: LogMapping, row: LegacyRow) -> str:
    """The log's row as it stands."""
    conditions = [
        sql.SQL("legacy.{} = {}::{}").format(sql.Identifier(name), sql.Literal(value), sql.SQL(shape.types[name]))  # pyright: ignore[reportArgumentType] - as the catalog names the type
        for name, value in zip(mapping.reading_order, row.place, strict=True)
    ]
    query = sql.SQL("select pg_catalog.to_jsonb(legacy.*)::text from {} as legacy where {} limit 1").format(
        identifier(shape.schema, shape.name), sql.SQL(" and ").join(conditions)
    )
    return str(await log.value(query))


async def read_begun(log: Database, store: Database, source: str) -> list[str]:
    """The quoted logs of a database whose import has begun."""
    place = await log.one(_Place, statement("transfer.read_place"))
    return await store.values(statement("transfer.read_begun"), source=source, database=place.database)


async def read_log_row(store: Database, origin: Origin) -> LogRow | None:
    """How far a log is imported; None where its import never began."""
    return await store.maybe(
        LogRow,
        statement("transfer.read_log"),
        source=origin.source,
        database=origin.database,
        relation=origin.relation,
    )


def _refuse_other(
    origin: Origin,
    known: LogRow | None,
    kept: LogMapping | None,
    chosen: LogMapping,
    system_id: str | None,
    policy: Policy,
) -> None:
    if known is None or kept is None:
        return
    if differing := differences(kept, chosen):
        raise Refused(
            f"{origin.relation} is imported up to {', '.join(known.through or ['its beginning'])} by another mapping:"
            f" {', '.join(differing)} differ, and the rows that are stored would not be known again",
            remedy="leave --mapping out: the mapping that the import began with is kept in the store"
            " (`afterwrite import legacy --save FILE` writes it down)",
        )
    if known.system_id and system_id and known.system_id != system_id and not policy.moved:
        raise Refused(
            f"{origin.relation} of {origin.database} was imported from cluster {known.system_id}; this is {system_id}",
            remedy="give this database a source name of its own (AFTERWRITE_SOURCE); or, where it is the same one that"
            " was restored or upgraded, say --moved",
        )


class _FirstBatch(msgspec.Struct, frozen=True):
    relation: str
    batch_id: int
    first_at: datetime
    last_at: datetime


async def read_stops(store: Database, source: str, relations: Sequence[str]) -> dict[str, datetime]:
    """When the first change of each table that the store has was committed: what came after, it has as well."""
    found: dict[str, datetime] = {}
    for first in await store.rows(
        _FirstBatch, statement("transfer.read_first_batches"), source=source, relations=list(relations)
    ):
        at: datetime | None = await store.value(
            statement("transfer.read_first_change"), **msgspec.structs.asdict(first)
        )
        if at is not None:
            found[first.relation] = at
    return found


async def read_captured(source: Database, legacy_publication: str) -> frozenset[str]:
    """The quoted tables that capture publishes in a database; none where it never did."""
    if not await source.value(statement("transfer.is_capturing")):
        return frozenset()
    rows = await source.rows(_Named, statement("transfer.read_listed"), legacy_publication=legacy_publication)
    return frozenset(quoted(row.schema, row.name) for row in rows)


def _log_stop(mapping: LogMapping, stops: Mapping[str, datetime], captured: frozenset[str]) -> datetime | None:
    """From when on everything that is in a log is in the store too, where its rows do not say of which table they are.

    None unless all tables whose triggers write it are captured: rows of another one would be left out, and lost.
    """
    if mapping.stop != STOP_AT_CAPTURE or "relation" in mapping.activity or not mapping.tables:
        return None
    if not set(mapping.tables) <= captured:
        return None
    return max((stops[table] for table in mapping.tables if table in stops), default=None)


async def _oldest_day(store: Database, policy: Policy) -> date | None:
    """The first day that retention would not drop at once."""
    days: list[date] = []
    if policy.retention_days is not None:
        days.append(datetime.now(UTC).date() - timedelta(days=policy.retention_days))
    expired: date | None = await store.value(statement("maintain.read_dropped_until"))
    if expired is not None:
        days.append(expired + timedelta(days=1))
    return max(days, default=None)


async def _judge(plan: LogPlan, store: Database, inferred: Inferred | None, policy: Policy) -> list[Finding]:
    found: list[Finding] = []
    relation = plan.origin.relation

    def note(rule: str, severity: Severity, text: str, remedy: str | None = None) -> None:
        found.append(Finding(rule=rule, severity=severity, where=relation, text=text, remedy=remedy))

    for text in inferred.notes if inferred else ():
        note("import.noted", Severity.INFO, f"{relation}: {text}")
    if plan.time_type != "timestamp with time zone":
        note(
            "import.time-zone",
            Severity.INFO,
            f"{relation}: {plan.mapping.time} has no time zone; it is taken for {plan.mapping.time_zone or 'UTC'}",
            "--time-zone ZONE takes it for another (before the import begins: then it is fixed)",
        )
    if plan.oldest is not None and plan.first_at is not None and plan.first_at.date() < plan.oldest:
        kept = (
            f"retention_days = {policy.retention_days}" if policy.retention_days else "retention, which took days here,"
        )
        note(
            "import.retention",
            Severity.WARNING,
            f"{relation} has rows since {plan.first_at:%Y-%m-%d}; {kept} would drop what is older than {plan.oldest} at"
            " once, so that it is left out",
            "raise retention_days for this import and for `afterwrite capture`, and import before they are needed",
        )
    if (plan.stops or plan.log_stop) and await store.value(statement("transfer.read_gaps"), source=plan.origin.source):
        note(
            "import.gaps",
            Severity.WARNING,
            f"the store is known to lack changes of source {plan.origin.source} since capture began, and rows of"
            f" {relation} from that time are left out",
            "--stop never imports them as well (what was captured is then there twice, once as an imported row)",
        )
    return found


# --- doing ------------------------------------------------------------------------------------------------------------


async def import_log(
    log: Database,
    store: Database,
    sink: PostgresSink,
    plan: LogPlan,
    *,
    policy: Policy,
    on_progress: OnProgress = _no_progress,
) -> Imported:
    """Import a log from where its import was left to its end; returns when there is nothing more to read.

    ``store`` is a session of its own: the lock that keeps a second importer out is held by it. Raises Refused when
    another one is at work; interrupted anywhere, the next call goes on.
    """
    origin = plan.origin
    lock = f"{origin.source}/{origin.database}/{origin.relation}"
    if not await store.value(statement("transfer.lock_log"), name=lock):
        raise Refused(
            f"{origin.relation} of {origin.database} is being imported by another process",
            remedy="wait until it is done; the same command then imports what is left",
        )
    known = await _begin(store, plan)
    reading = Reading(plan.shape, plan.mapping, plan.time_type)
    run = _Run(log, store, sink, plan, policy, known)
    began = time.monotonic()
    limit = min(_FIRST_ROWS, policy.chunk_rows)
    rows, took = await _read(reading, log, run.after, limit)
    while rows:
        failpoint("import.before_chunk")
        limit = _next_limit(rows, limit, took, policy.chunk_rows)
        # The next chunk is read while this one is stored.
        upcoming = asyncio.create_task(_read(reading, log, rows[-1].place, limit))
        try:
            await run.store(rows)
            failpoint("import.after_chunk")
            on_progress(run.progress(rows[-1].occurred_at))
            if policy.rate:
                await asyncio.sleep(max(0.0, run.rows / policy.rate - (time.monotonic() - began)))
        except BaseException:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
            raise
        rows, took = await upcoming
    totals = await store.one(Totals, statement("transfer.read_totals"), log=known.id)
    return Imported(
        relation=origin.relation,
        rows=run.rows,
        stored=run.stored,
        already=run.already,
        left_out=dict(run.left_out),
        chunks=run.number - known.chunks,
        seconds=time.monotonic() - began,
        totals=totals,
    )


async def _read(
    reading: Reading, log: Database, after: Sequence[str] | None, limit: int
) -> tuple[list[LegacyRow], float]:
    """The next chunk, and how long the statement took."""
    began = time.monotonic()
    rows = await reading.read(log, after=after, limit=limit)
    return rows, time.monotonic() - began


def _next_limit(rows: Sequence[LegacyRow], limit: int, took: float, most: int) -> int:
    """As many rows as neither make a long statement nor take much memory."""
    size = max(1, sum(row.bytes for row in rows) // len(rows))
    wanted = min(2 * limit, most, max(1, _CHUNK_BYTES // size))
    return max(1, wanted if took < _STATEMENT_SECONDS else min(wanted, int(limit * _STATEMENT_SECONDS / took)))


async def _begin(store: Database, plan: LogPlan) -> LogRow:
    """The row in which the progress stands; made where there is none yet."""
    known = await read_log_row(store, plan.origin)
    if known is None:
        failpoint("import.before_begin")
        known = await store.one(
            LogRow,
            statement("transfer.begin_log"),
            source=plan.origin.source,
            database=plan.origin.database,
            relation=plan.origin.relation,
            system_id=plan.system_id,
            mapping=write_mappings([plan.mapping]),
        )
        failpoint("import.after_begin")
    elif plan.system_id is not None and known.system_id != plan.system_id:
        await store.run(statement("transfer.move_system"), id=known.id, system_id=plan.system_id)
    return known


def digest(activities: Sequence[Activity]) -> bytes:
    """What these activities amount to: sha256 of their lines in a batch's seal, with 0 for the batch."""
    lines = CopyLines(activities, 0, doubting=False)
    for _ in lines:
        pass
    seal = lines.seal()
    if seal is None:
        raise AfterwriteError("a list is always in the order of the seal")
    return seal.digest


class _Run:
    """One import under way: where it stands, and what it has counted."""

    def __init__(
        self, log: Database, store: Database, sink: PostgresSink, plan: LogPlan, policy: Policy, known: LogRow
    ) -> None:
        self._log, self._store, self._sink = log, store, sink
        self._plan, self._policy, self._id = plan, policy, known.id
        self._sorting = Sorting(store, plan)
        self._days: set[date] = set()
        self.after: list[str] | None = known.through
        self.number = known.chunks
        self.rows = self.stored = self.already = 0
        self.left_out: Counter[str] = Counter()

    def progress(self, at: datetime | None) -> Progress:
        return Progress(
            relation=self._plan.origin.relation,
            rows=self.rows,
            stored=self.stored,
            left_out=dict(self.left_out),
            at=at,
        )

    async def store(self, rows: Sequence[LegacyRow]) -> None:
        """Store a chunk, with its note and the progress."""
        activities, left_out = await self._sorting.sort(rows)
        await self.make_days(activities)
        through = list(rows[-1].place)
        number = self.number + 1
        chunk = {
            "log": self._id,
            "number": number,
            "after": self.after,
            "through": through,
            "rows": len(rows),
            "stored": len(activities),
            "left_out": msgspec.json.encode(left_out).decode(),
            "digest": digest(activities),
        }

        async def beside(db: Database, batch_id: int | None) -> None:
            failpoint("import.before_move")
            moved = await db.run(
                statement("transfer.move_log"), id=self._id, number=number, after=self.after, through=through
            )
            if moved != 1:
                raise Refused(
                    f"{self._plan.origin.relation} was imported further by another process",
                    remedy="run the same command again: it goes on from there",
                )
            await db.run(statement("transfer.note_chunk"), batch_id=batch_id, **chunk)
            failpoint("import.before_commit")

        batch = Batch(source=self._plan.origin.stored_as, activities=activities, transactions=0)
        receipt = await self._sink.write(batch, beside=beside)
        self.after, self.number = through, number
        self.rows += len(rows)
        self.stored += receipt.stored
        self.already += len(activities) - receipt.stored
        self.left_out.update(left_out)

    async def make_days(self, activities: Sequence[Activity]) -> None:
        """Partitions for the days of these, as their age wants them."""
        await make_days(self._store, activities, self._days, self._policy)


async def make_days(store: Database, activities: Sequence[Activity], known: set[date], policy: Policy) -> None:
    """Make partitions for the days that rows of a chunk belong to; ``known`` remembers those that were looked at."""
    today = datetime.now(UTC).date()
    counts = Counter(activity.occurred_at.astimezone(UTC).date() for activity in activities)
    wanted = {
        day: Temperature.COLD if (today - day).days > policy.hot_days else Temperature.HOT
        for day, rows in counts.items()
        if day not in known and day <= today and ((today - day).days <= _NEAR_DAYS or rows >= _ROWS_FOR_A_DAY)
    }
    if not wanted:
        return
    # Rows without a partition of their own are kept in the default one, and moved by maintenance.
    with contextlib.suppress(LockTimeout):
        await make_partitions_of(store, wanted)
    known |= set(wanted)


class Sorting:
    """Which rows are imported, and why the others are not."""

    def __init__(self, store: Database, plan: LogPlan) -> None:
        self._store, self._plan = store, plan
        self._stops: dict[str, datetime | None] = {
            **dict.fromkeys((*plan.mapping.tables, *plan.mapping.keys), None),
            **plan.stops,
        }
        self._converter = Converter(plan.origin, plan.mapping)

    async def sort(self, rows: Sequence[LegacyRow]) -> tuple[list[Activity], dict[str, int]]:
        """The activities that are to be stored, and how many rows are left out for each reason."""
        told = [(row, self._converter.to_activity(row)) for row in rows]
        await self._learn_stops([activity for _, activity in told if activity is not None])
        kept: list[tuple[LegacyRow, Activity]] = []
        left_out: Counter[str] = Counter()
        for row, activity in told:
            if activity is None:
                left_out[UNTIMED] += 1
            elif reason := self._reason(activity):
                left_out[reason] += 1
            else:
                kept.append((row, activity))
        borderline = await self._borderline(kept)
        if borderline:
            left_out[COVERED] += len(borderline)
        return [activity for number, (_, activity) in enumerate(kept) if number not in borderline], dict(left_out)

    def _reason(self, activity: Activity) -> str | None:
        at, plan = activity.occurred_at, self._plan
        if plan.oldest is not None and at.date() < plan.oldest:
            return EXPIRED
        if plan.mapping.stop == STOP_NEVER:
            return None
        if (moment := plan.mapping.stop_moment) is not None:
            return STOPPED if at >= moment else None
        stop = self._stop(activity)
        return COVERED if stop is not None and at >= stop else None

    def _stop(self, activity: Activity) -> datetime | None:
        """From when on the store has what this row tells."""
        if "relation" not in self._plan.mapping.activity:
            return self._plan.log_stop
        # What is no change of a row (an event that somebody wrote into the log) capture does not see.
        if activity.relation is None or (activity.operation is None and "operation" in self._plan.mapping.activity):
            return None
        return self._stops.get(activity.relation)

    async def _learn_stops(self, activities: Sequence[Activity]) -> None:
        if self._plan.mapping.stop != STOP_AT_CAPTURE or "relation" not in self._plan.mapping.activity:
            return
        unknown = {activity.relation for activity in activities if activity.relation} - self._stops.keys()
        if unknown:
            self._stops |= dict.fromkeys(unknown, None)
            self._stops |= await read_stops(self._store, self._plan.origin.source, sorted(unknown))

    async def _borderline(self, kept: Sequence[tuple[LegacyRow, Activity]]) -> set[int]:
        """Rows whose transactions began before capture did and committed after it: the store has them."""
        near = [
            (number, row, activity)
            for number, (row, activity) in enumerate(kept)
            if activity.entity_id is not None
            and activity.operation is not None
            and self._plan.mapping.stop == STOP_AT_CAPTURE
            and "relation" in self._plan.mapping.activity
            and (stop := self._stop(activity)) is not None
            and activity.occurred_at >= stop - _BORDER
        ]
        if not near:
            return set()
        return set(
            await self._store.values(
                statement("transfer.read_borderline"),
                source=self._plan.origin.source,
                numbers=[number for number, _, _ in near],
                relations=[activity.relation for _, _, activity in near],
                operations=[activity.operation for _, _, activity in near],
                ids=[activity.entity_id for _, _, activity in near],
                xids=[row.xid for _, row, _ in near],
                moments=[activity.occurred_at for _, _, activity in near],
            )
        )
