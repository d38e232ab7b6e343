"""What triggers cost at work: the server's own counters before and after a while, and a look at lock waits each second.

Reads statistics views only. Nothing is written, no setting is changed; what the server does not count is said.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from afterwrite.errors import Finding, Refused, Severity, UsageError
from afterwrite.postgres import Database, quoted, statement
from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Enabled, Kind, Trigger, reading
from afterwrite.scan.cost.figures import FunctionTime, HotRow, Statements, Totals, Window, Writes
from afterwrite.scan.facts import Body, Insert, OnConflict
from afterwrite.scan.survey import Survey

_PAUSE = 1.0
# A look at the locks takes the lock manager's partitions for a moment: it may take this part of our time.
_SHARE_OF_LOOKING = 0.02
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Seconds of ``60s``, ``5m``, ``1h`` or a bare number of seconds; raises UsageError for anything else."""
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UsageError(f"{text!r} is no duration", remedy="say 60s, 5m or 1h")
    return seconds


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """When a reading was made, and what the server counts as a whole."""

    at: float
    standby: bool
    wal_position: int | None
    wal_records: int
    wal_images: int
    active_ms: float
    commits: int
    track_functions: str
    track_counts: bool


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """pg_stat_statements, as it is installed here."""

    schema: str
    tells_nested: bool
    track: str | None
    reads_all: bool


class ClientWrites(msgspec.Struct, frozen=True, kw_only=True):
    """Operations that clients' sessions did themselves, since nobody had done them before: of pages, and of room."""

    writes: int | None = None
    extends: int | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All counters at one moment. ``statements`` by (nested, target), None where they cannot be read."""

    clock: Clock
    functions: Mapping[int, FunctionTime]
    tables: Mapping[int, Writes]
    statements: Mapping[tuple[bool, str], Statements] | None
    io: ClientWrites


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """A session that waits for a row. ``writing`` are the tables that its transaction has written."""

    pid: int
    table_oid: int | None
    page: int | None
    tuple: int | None
    writing: Sequence[int]
    query: str | None


async def observe(db: Database, survey: Survey, seconds: float, *, stop: asyncio.Event | None = None) -> Window:
    """Watch the database for so long, or until ``stop`` is set. Raises Refused on a standby."""
    atlas = Atlas(survey.inventory)
    functions = sorted({trigger.function_oid for trigger in survey.inventory.triggers})
    tables = sorted(table.oid for table in survey.inventory.tables if table.kind in (Kind.TABLE, Kind.FOREIGN))
    async with reading(db):
        extension = await db.maybe(Extension, statement("cost.find_statement_statistics"))
    first = await _read(db, functions, tables, extension)
    if first.clock.standby:
        raise Refused(
            f"{db.where} is a standby, and what its triggers cost is counted on the primary",
            remedy="observe the primary",
        )
    looks = await _sample(db, seconds, stop or asyncio.Event())
    last = await _read(db, functions, tables, extension)
    passed = last.clock.at - first.clock.at
    statements, nested = _statements_between(first, last)
    if nested is not None and (extension is None or extension.track != "all"):
        nested = None
    totals = Totals(
        seconds=passed,
        interrupted=stop is not None and stop.is_set(),
        statements=statements,
        active_ms=max(0.0, last.clock.active_ms - first.clock.active_ms),
        commits=max(0, last.clock.commits - first.clock.commits),
        wal=_grown(first.clock.wal_position, last.clock.wal_position),
        wal_records=_grown(first.clock.wal_records, last.clock.wal_records),
        wal_images=_grown(first.clock.wal_images, last.clock.wal_images),
        client_writes=_grown(first.io.writes, last.io.writes),
        client_extends=_grown(first.io.extends, last.io.extends),
        samples=len(looks),
    )
    window = Window(
        totals=totals,
        functions={oid: _spent(first.functions.get(oid), time) for oid, time in last.functions.items()},
        tables={oid: _written(first.tables.get(oid), writes) for oid, writes in last.tables.items()},
        nested=nested,
        hot=tuple(_hot(atlas, survey, looks, passed)),
    )
    findings = tuple(_findings(db.where, survey, atlas, window, last, extension))
    return msgspec.structs.replace(window, findings=findings)


async def _read(db: Database, functions: Sequence[int], tables: Sequence[int], extension: Extension | None) -> Reading:
    """Read all counters in one transaction, in which they stand still."""
    async with reading(db):
        counted: dict[tuple[bool, str], Statements] | None = None
        if extension is not None and extension.tells_nested and extension.reads_all:
            # The extension may be in any schema; a named statement cannot carry an identifier as a parameter.
            query = statement("cost.read_statements").replace(b'"{schema}"', quoted(extension.schema).encode())
            counted = dict(await db.rows(_statements_row, query))
        modern = db.connection.info.server_version >= 160_000
        return Reading(
            clock=await db.one(Clock, statement("cost.read_clock")),
            functions=dict(await db.rows(_function_row, statement("cost.read_function_times"), oids=list(functions))),
            tables=dict(await db.rows(_writes_row, statement("cost.read_writes"), oids=list(tables))),
            statements=counted,
            io=await db.one(ClientWrites, statement("cost.read_io")) if modern else ClientWrites(),
        )


def _function_row(*, oid: int, **figures: Any) -> tuple[int, FunctionTime]:
    return oid, FunctionTime(**figures)


def _writes_row(*, oid: int, **figures: Any) -> tuple[int, Writes]:
    return oid, Writes(**figures)


def _statements_row(*, toplevel: bool, target: str | None, **figures: Any) -> tuple[tuple[bool, str], Statements]:
    return (not toplevel, target or ""), Statements(**figures)


async def _sample(db: Database, seconds: float, stop: asyncio.Event) -> list[list[Wait]]:
    """Look for waits once a second, until the time is up; seldomer where a look takes long."""
    looks: list[list[Wait]] = []
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        begun = time.monotonic()
        async with reading(db):
            looks.append(await db.rows(Wait, statement("cost.read_waits")))
        pause = max(_PAUSE, (time.monotonic() - begun) / _SHARE_OF_LOOKING)
        try:
            await asyncio.wait_for(stop.wait(), min(pause, left))
        except TimeoutError:
            continue
    return looks


# Differences ---------------------------------------------------------------------------------------------------------


def _grown(before: int | None, after: int | None) -> int | None:
    """How much a counter grew; None where it is not there, or was set back meanwhile."""
    return None if before is None or after is None or after < before else after - before


def _spent(before: FunctionTime | None, after: FunctionTime) -> FunctionTime:
    if before is None or after.calls < before.calls:  # the statistics were reset: what is there came after it
        return after
    return FunctionTime(
        calls=after.calls - before.calls,
        total_ms=max(0.0, after.total_ms - before.total_ms),
        self_ms=max(0.0, after.self_ms - before.self_ms),
    )


def _written(before: Writes | None, after: Writes) -> Writes:
    if before is None or after.total < before.total:
        return after
    return Writes(
        inserted=after.inserted - before.inserted,
        updated=after.updated - before.updated,
        deleted=after.deleted - before.deleted,
        hot=max(0, after.hot - before.hot),
    )


def _statements_between(first: Reading, last: Reading) -> tuple[Statements | None, dict[str, Statements] | None]:
    """Statements of the application, and nested ones by target. One that was evicted meanwhile counts for nothing."""
    if first.statements is None or last.statements is None:
        return None, None
    sent = Statements()
    nested: dict[str, Statements] = {}
    for (inside, target), after in last.statements.items():
        before = first.statements.get((inside, target), Statements())
        if after.calls < before.calls or after.ms < before.ms:
            continue
        grown = Statements(
            calls=after.calls - before.calls,
            ms=after.ms - before.ms,
            rows=max(0, after.rows - before.rows),
            wal=max(0, after.wal - before.wal),
        )
        if not inside:
            sent = grown
        elif grown.calls:
            nested[target.replace('"', "")] = grown
    return sent, nested


# Waits ---------------------------------------------------------------------------------------------------------------


def _hot(atlas: Atlas, survey: Survey, looks: Sequence[Sequence[Wait]], seconds: float) -> Iterator[HotRow]:
    """Tables whose rows were waited for, with the triggers that write them."""
    writers = _writers(atlas, survey)
    seen: Counter[int] = Counter()
    queue: Counter[int] = Counter()
    blamed: defaultdict[int, set[str]] = defaultdict(set)
    indirect: Counter[int] = Counter()
    for look in looks:
        at_once: Counter[int] = Counter()
        for wait in look:
            table = atlas.tables.get(wait.table_oid or 0)
            if table is None:
                continue
            root = atlas.root(table)
            at_once[root.oid] += 1
            if wait.query is None or _names(wait.query, root.name):
                direct = wait.query is not None
            else:
                direct = False
                indirect[root.oid] += 1
            if not direct:
                blamed[root.oid] |= _suspects(atlas, writers.get(root.oid, ()), wait)
        seen.update(at_once)
        for oid, number in at_once.items():
            queue[oid] = max(queue[oid], number)
    each = seconds / len(looks) if looks else 0.0
    for oid, number in seen.most_common():
        yield HotRow(
            table=atlas.tables[oid].full_name,
            seen=number,
            queue=queue[oid],
            waited_seconds=number * each,
            triggers=tuple(sorted(blamed[oid])),
            certain=indirect[oid] == number and bool(blamed[oid]),
        )


def _writers(atlas: Atlas, survey: Survey) -> dict[int, list[Trigger]]:
    """By table: the triggers that may wait for one of its rows, because they change or lock them."""
    found: defaultdict[int, list[Trigger]] = defaultdict(list)
    for trigger in survey.inventory.triggers:
        if trigger.enabled is Enabled.DISABLED:
            continue
        for schema, name in _rows_locked(survey.bodies[trigger.oid]):
            table = atlas.find_table(schema, name, ())
            if table is not None and trigger not in found[atlas.root(table).oid]:
                found[atlas.root(table).oid].append(trigger)
    return found


def _rows_locked(body: Body) -> Iterator[tuple[str | None, str]]:
    for fact in (*body.inserts, *body.updates, *body.deletes, *body.reads):
        if isinstance(fact, Insert) and fact.on_conflict is OnConflict.NONE:
            continue
        if fact in body.reads and not getattr(fact, "locks", False):
            continue
        yield fact.schema, fact.table


def _suspects(atlas: Atlas, writers: Iterable[Trigger], wait: Wait) -> set[str]:
    """Of the triggers that write the table, those on a table that the waiting transaction has written."""
    written = {atlas.root(atlas.tables[oid]).oid for oid in wait.writing if oid in atlas.tables}
    listed = list(writers)
    on_written = [
        trigger
        for trigger in listed
        if (home := atlas.table_of(trigger)) is not None and atlas.root(home).oid in written
    ]
    named = [trigger for trigger in on_written if wait.query is not None and _names(wait.query, trigger.table)]
    return {trigger.identity for trigger in (named or on_written)}


def _names(query: str, table: str) -> bool:
    return re.search(rf"(?<![\w$]){re.escape(table)}(?![\w$])", query, re.IGNORECASE) is not None


# Findings ------------------------------------------------------------------------------------------------------------


def _findings(
    where: str, survey: Survey, atlas: Atlas, window: Window, last: Reading, extension: Extension | None
) -> Iterator[Finding]:
    def note(rule: str, text: str, remedy: str | None, severity: Severity = Severity.WARNING) -> Finding:
        return Finding(rule=rule, severity=severity, where=where, text=text, remedy=remedy)

    written = sum(writes.total for writes in window.tables.values())
    if not last.clock.track_counts:
        yield note("no-row-counts", "rows are not counted (track_counts is off)", "set track_counts = on")
    elif not written:
        yield note(
            "nothing-written",
            f"no row was written in {window.totals.seconds:.0f} s, as far as the server counted",
            "observe while the application works, and longer than its transactions last",
        )
    if not any(time.calls for time in window.functions.values()) and _fired(survey, atlas, window):
        database = quoted(survey.inventory.database)
        yield note(
            "functions-not-counted",
            "triggers fired, and no call of their functions was counted "
            f"(track_functions is {last.clock.track_functions} for this session): their times are not known",
            f"ALTER DATABASE {database} SET track_functions = 'pl' counts them in new sessions (needs a superuser, or "
            "GRANT SET ON PARAMETER track_functions); or add --rehearse",
        )
    if extension is None:
        yield note(
            "no-statement-statistics",
            "there is no pg_stat_statements to read here: shares are of all statements' time, reads included",
            "add it to shared_preload_libraries, restart, then CREATE EXTENSION pg_stat_statements;",
            Severity.INFO,
        )
    elif not extension.reads_all:
        yield note(
            "statements-hidden",
            "this role may not see what others run: shares are of all statements' time, reads included, and of waiting "
            "sessions the statement is not known",
            "GRANT pg_read_all_stats TO the role of the DSN",
            Severity.INFO,
        )
    elif not extension.tells_nested:
        yield note(
            "old-statement-statistics",
            "this version of pg_stat_statements does not tell nested statements from the application's",
            "ALTER EXTENSION pg_stat_statements UPDATE",
            Severity.INFO,
        )
    elif window.nested is None:
        yield note(
            "nested-statements-not-counted",
            f"what runs inside triggers is not counted apart (pg_stat_statements.track is {extension.track or 'top'}): "
            "the WAL of each trigger is not known from observing",
            "add --rehearse or --probe, or set pg_stat_statements.track = 'all'",
            Severity.INFO,
        )


def _fired(survey: Survey, atlas: Atlas, window: Window) -> bool:
    """Whether rows were written on which a trigger fires."""
    for trigger in survey.inventory.triggers:
        table = atlas.table_of(trigger)
        if table is None or trigger.enabled in (Enabled.DISABLED, Enabled.REPLICA):
            continue
        plain = trigger.when is None and not trigger.columns
        leaves = [window.tables.get(leaf.oid, Writes()) for leaf in atlas.leaves(table)]
        if plain and any(writes.of(event) for writes in leaves for event in trigger.events):
            return True
    return False
