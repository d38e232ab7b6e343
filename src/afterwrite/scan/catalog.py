"""What the catalog says of a database and its triggers: read only, as it is, nothing judged yet.

Needs no privilege beyond CONNECT: the system catalogs tell every role how tables, functions and triggers are made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar, cast

import msgspec

from afterwrite.errors import DatabaseError
from afterwrite.postgres import Database, LockTimeout, Query, statement
from afterwrite.scan.sight import Sight, read_sight
from afterwrite.scan.tokens import split_names, tokens


class Timing(StrEnum):
    BEFORE = "before"
    AFTER = "after"
    INSTEAD = "instead of"


class TriggerLevel(StrEnum):
    ROW = "row"
    STATEMENT = "statement"


class Event(StrEnum):
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


class Enabled(StrEnum):
    """pg_trigger.tgenabled in words: origin is the default, replica and always depend on session_replication_role."""

    ORIGIN = "O"
    DISABLED = "D"
    REPLICA = "R"
    ALWAYS = "A"


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """A user trigger and the function it calls.

    ``source`` is the function's body (pg_proc.prosrc), ``definition`` its whole CREATE FUNCTION, ``create`` the whole
    CREATE TRIGGER. ``config`` is the function's SET clauses (``search_path=…``). ``when`` is SQL over rows ``old`` and
    ``new``. ``columns`` is the list of UPDATE OF.
    """

    oid: int
    schema: str
    table: str
    table_oid: int
    name: str
    timing: Timing
    level: TriggerLevel
    events: tuple[Event, ...]
    columns: tuple[str, ...] = ()
    when: str | None = None
    arguments: tuple[str, ...] = ()
    enabled: Enabled = Enabled.ORIGIN
    constraint: bool = False
    deferrable: bool = False
    initially_deferred: bool = False
    old_table: str | None = None
    new_table: str | None = None
    parent_oid: int | None = None
    extension: str | None = None
    comment: str | None = None
    create: str
    function_oid: int
    function_schema: str
    function: str
    language: str
    source: str
    definition: str
    security_definer: bool = False
    config: tuple[str, ...] = ()
    function_owner: str

    @property
    def identity(self) -> str:
        """``schema.table.trigger`` for people and as a key in the plan and the ledger."""
        return f"{self.schema}.{self.table}.{self.name}"


class Kind(StrEnum):
    """pg_class.relkind in words."""

    TABLE = "r"
    PARTITIONED = "p"
    VIEW = "v"
    MATERIALIZED = "m"
    FOREIGN = "f"


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column; ``type`` as format_type() prints it, ``default`` as SQL, ``expression`` that of a generated column.

    ``sequence`` is where an identity column draws from, as SQL.
    """

    name: str
    type: str
    not_null: bool = False
    default: str | None = None
    expression: str | None = None
    identity: bool = False
    generated: bool = False
    sequence: str | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A CHECK constraint (of the table, or of a column's domain), the columns it looks at, and its condition."""

    name: str
    columns: tuple[str, ...]
    definition: str
    expression: str = ""


class Unique(msgspec.Struct, frozen=True, kw_only=True):
    """A unique index or an exclusion constraint; ``columns`` are the plain ones where it also holds ``expressions``.

    ``condition`` says which rows are in a partial index.
    """

    name: str
    columns: tuple[str, ...]
    primary: bool = False
    partial: bool = False
    exclusion: bool = False
    expressions: str | None = None
    condition: str | None = None


class ForeignKey(msgspec.Struct, frozen=True, kw_only=True):
    """A reference from ``table_oid``.columns to ``referenced_oid``.referenced_columns.

    ``on_delete`` and ``on_update`` are pg_constraint's letters: a and r refuse, c cascades, n and d set the columns.
    """

    name: str
    table_oid: int
    columns: tuple[str, ...]
    referenced_oid: int
    referenced_columns: tuple[str, ...]
    on_delete: str
    on_update: str = "a"


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table or view. Statistics count rows since the server's last reset; of a partitioned table, its leaves' sum.

    ``scans`` counts how often it was read, through an index or whole; ``collected`` is false when nothing was counted
    yet. ``foreign_keys`` go out from it, ``referenced_by`` point at it.
    ``definition`` is a view's query, ``partition_key`` as ``RANGE (at)``, ``partition_bound`` as ``DEFAULT``.
    ``computed`` is what its indexes compute whenever a row is written, ``comparers`` are the functions (by oid) with
    which they, and a partition key, compare and hash.
    """

    oid: int
    schema: str
    name: str
    kind: Kind
    partition_of: int | None = None
    partition_key: str | None = None
    partition_bound: str | None = None
    persistence: str = "p"
    replica_identity: str = "d"
    row_security: bool = False
    forced_row_security: bool = False
    owner: str = ""
    has_rules: bool = False
    row_estimate: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    scans: int = 0
    collected: bool = False
    extension: str | None = None
    definition: str | None = None
    columns: tuple[Column, ...] = ()
    computed: tuple[str, ...] = ()
    comparers: tuple[int, ...] = ()
    checks: tuple[Check, ...] = ()
    uniques: tuple[Unique, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    referenced_by: tuple[ForeignKey, ...] = ()

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The primary key's columns; empty without one."""
        return next((unique.columns for unique in self.uniques if unique.primary), ())


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function or procedure. ``sql_body`` is the printed body of a SQL-standard one, whose ``source`` is empty.

    ``defaults`` are the SQL of its last parameters' defaults, as one list. ``sets_arguments``: it has INOUT ones.
    """

    oid: int
    schema: str
    name: str
    language: str
    volatility: str
    argument_count: int
    required_arguments: int
    variadic: bool
    arguments: tuple[str, ...]
    returns_trigger: bool
    security_definer: bool
    source: str
    definition: str | None
    sql_body: str | None
    config: tuple[str, ...]
    extension: str | None
    argument_types: tuple[str, ...] = ()
    result_type: str = ""
    defaults: str | None = None
    sets_arguments: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A row security policy, its conditions, and the oids of the tables and functions that it looks at."""

    table_oid: int
    name: str
    reads: tuple[int, ...]
    functions: tuple[int, ...]
    using_expression: str | None = None
    check_expression: str | None = None


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """A domain: ``name`` and ``base`` as format_type() prints them, and what a value must satisfy (CHECK …)."""

    name: str
    schema: str
    short: str
    base: str
    not_null: bool
    default: str | None
    constraints: tuple[str, ...]
    checks: tuple[str, ...]


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's name and a function that it may run."""

    name: str
    function_oid: int


class Cast(msgspec.Struct, frozen=True, kw_only=True):
    """A cast from one type to another (as format_type() prints them) and the function that does it."""

    source: str
    target: str
    function_oid: int


class Aggregate(msgspec.Struct, frozen=True, kw_only=True):
    """An aggregate and the oids of the functions that it runs."""

    schema: str
    name: str
    functions: tuple[int, ...]


class RewriteRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rewrite rule of a table: what it does instead of, or besides, a statement of its event.

    ``reads`` are the oids of the tables that it names, written ones included.
    """

    table_oid: int
    name: str
    event: Event
    definition: str
    reads: tuple[int, ...] = ()

    @property
    def action(self) -> str:
        """Its statements, separated by semicolons; empty for NOTHING."""
        listed = list(tokens(self.definition))
        start = next((token.end for token in listed if token.kind == "word" and token.text == "DO"), 0)
        text = self.definition[start:].strip().removesuffix(";").strip()
        for word in ("ALSO", "INSTEAD"):
            text = text.removeprefix(word).strip()
        if text.startswith("(") and text.endswith(")"):
            text = text[1:-1].strip()
        return "" if text == "NOTHING" else text.removesuffix(";").strip()


class Enforcing(msgspec.Struct, frozen=True, kw_only=True):
    """A function (by oid) and what calls it whenever a row is written: a constraint, a default, an index."""

    function_oid: int
    what: str


class EventTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger on commands, such as ``ddl_command_end``, and its function."""

    name: str
    event: str
    function: str


class Clone(msgspec.Struct, frozen=True, kw_only=True):
    """The copy of a partitioned table's trigger on one partition; it goes where its parent goes."""

    oid: int
    schema: str
    table: str
    name: str
    parent_oid: int
    enabled: Enabled


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """A database as one snapshot shows it. ``triggers`` holds a partitioned table's trigger once, not its ``clones``.

    ``tables`` and ``functions`` are those of all schemas, whichever were asked for: a trigger may reach any of them.
    ``views`` says which views (by oid) look at which tables, ``publications`` which tables are published by name to
    other subscribers than us, ``builtins`` whether pg_catalog's function of a name is volatile. ``inherits`` are pairs
    of (child, parent), ``search_paths`` those that other roles have. ``vanished`` are triggers and functions that were
    dropped while they were read, ``sight`` is what the role could see.
    """

    server_version: int
    database: str
    search_path: tuple[str, ...]
    statistics_since: datetime | None
    triggers: tuple[Trigger, ...]
    clones: tuple[Clone, ...] = ()
    tables: tuple[Table, ...] = ()
    functions: tuple[Function, ...] = ()
    views: tuple[tuple[int, int], ...] = ()
    policies: tuple[Policy, ...] = ()
    publications: tuple[tuple[int, str], ...] = ()
    builtins: Mapping[str, bool] = {}
    aggregates: tuple[Aggregate, ...] = ()
    domains: tuple[Domain, ...] = ()
    operators: tuple[Operator, ...] = ()
    casts: tuple[Cast, ...] = ()
    inherits: tuple[tuple[int, int], ...] = ()
    enforcing: tuple[Enforcing, ...] = ()
    rules: tuple[RewriteRule, ...] = ()
    search_paths: tuple[tuple[str, ...], ...] = ()
    event_triggers: tuple[EventTrigger, ...] = ()
    vanished: tuple[str, ...] = ()
    sight: Sight | None = None


S = TypeVar("S", bound=msgspec.Struct)
Row = dict[str, Any]


_ATTEMPTS = 4
# What the server's printing functions say of a thing that was dropped under them: internal error, or "no such thing".
_VANISHED = ("XX000", "42P01", "42703", "42704", "42883", "3F000")


async def read_inventory(db: Database, *, schemas: Sequence[str] | None = None) -> Inventory:
    """Read the catalog in one read-only snapshot: triggers of these schemas (all by default) and what they may reach.

    Our own schema is left out. Fast for thousands of triggers: one query a kind of thing. Nothing outlives the
    transaction, so that a pooler may stand between; tables that are dropped meanwhile do no harm.
    """
    wanted = list(schemas) if schemas is not None else None
    attempt = 1
    while True:
        try:
            async with reading(db):
                return await _read_inventory(db, wanted)
        except LockTimeout as error:
            raise await _held(db, error) from error
        except DatabaseError as error:
            if error.sqlstate not in _VANISHED or attempt == _ATTEMPTS:
                raise
            attempt += 1


async def _held(db: Database, error: LockTimeout) -> LockTimeout:
    """The same, with the tables that cannot be looked at and who holds them, as far as that can still be told."""
    async with reading(db):
        holders = await _read(db, statement("scan.read_holders"))
    if not holders:
        return error
    said = "; ".join(f"{', '.join(row['tables'])} by session {row['session']}" for row in holders)
    return LockTimeout(
        f"tables of {db.where} are held so that nobody may look at them: {said}",
        remedy="scan again when that session has ended (pg_stat_activity says what it does)",
        sqlstate=error.sqlstate,
    )


@asynccontextmanager
async def reading(db: Database) -> AsyncGenerator[None]:
    """A transaction that writes nothing and shows one moment; no name is found outside pg_catalog, waits are short.

    What it sets ends with it, so that a pooler may stand between.
    """
    async with db.transaction():
        await db.run(statement("scan.begin_reading"))
        await db.run(statement("scan.qualify_everything"))
        await db.run(statement("scan.bound_waiting"))
        yield


async def _read_inventory(db: Database, wanted: list[str] | None) -> Inventory:
    (server,) = await _read(db, statement("scan.read_server"))
    triggers = await _read(db, statement("scan.read_triggers"), schemas=wanted)
    clones = await _read(db, statement("scan.read_clones"), schemas=wanted)
    comparers = await _read(db, statement("scan.read_operator_classes"))
    tables = await _read_tables(db, comparers)
    functions = await _read(db, statement("scan.read_functions"))
    builtins = await _read(db, statement("scan.read_builtins"))
    aggregates = await _read(db, statement("scan.read_aggregates"))
    views = await _read(db, statement("scan.read_views"))
    policies = await _read(db, statement("scan.read_policies"))
    publications = await _read(db, statement("scan.read_publications"))
    domains = await _read(db, statement("scan.read_domains"))
    operators = await _read(db, statement("scan.read_operators"))
    casts = await _read(db, statement("scan.read_casts"))
    inherits = await _read(db, statement("scan.read_inheritance"))
    enforcing = await _read(db, statement("scan.read_enforcing"))
    rules = await _read(db, statement("scan.read_rules"))
    paths = await _read(db, statement("scan.read_search_paths"))
    event_triggers = await _read(db, statement("scan.read_event_triggers"))
    gone = [f"{row['schema']}.{row['table']}.{row['name']}" for row in triggers if _is_gone_trigger(row)]
    gone += [f"{row['schema']}.{row['name']}()" for row in functions if _is_gone_function(row)]
    return Inventory(
        server_version=server["server_version"],
        database=server["database"],
        search_path=_search_path(server),
        statistics_since=server["statistics_since"],
        triggers=tuple(_trigger(row) for row in triggers if row["parent_oid"] is None and not _is_gone_trigger(row)),
        clones=_structs(Clone, clones),
        tables=tables,
        functions=_structs(Function, (row for row in functions if not _is_gone_function(row))),
        views=tuple((row["view_oid"], row["table_oid"]) for row in views),
        policies=_structs(Policy, policies),
        publications=tuple((row["table_oid"], row["publication"]) for row in publications),
        builtins={row["name"]: row["volatile"] for row in builtins},
        aggregates=_structs(Aggregate, aggregates),
        domains=_structs(Domain, domains),
        operators=_structs(Operator, operators),
        casts=_structs(Cast, casts),
        inherits=tuple((row["child_oid"], row["parent_oid"]) for row in inherits),
        enforcing=_structs(
            Enforcing, {(row["function_oid"], row["what"]): row for row in (*enforcing, *comparers)}.values()
        ),
        rules=_structs(RewriteRule, (row for row in rules if row["definition"] is not None)),
        search_paths=tuple(split_names(row["path"]) for row in paths),
        event_triggers=_structs(EventTrigger, event_triggers),
        vanished=tuple(gone),
        sight=await read_sight(db),
    )


def _is_gone_trigger(row: Row) -> bool:
    """Whether a trigger was dropped after the snapshot was taken: its row is there, and nothing prints its text."""
    return row["create"] is None or row["definition"] is None


def _is_gone_function(row: Row) -> bool:
    if row["standard"]:
        return row["sql_body"] is None
    return row["language"] == "plpgsql" and row["definition"] is None


def _search_path(server: Row) -> tuple[str, ...]:
    """Where a session of this role looks, also for what it may not use: the writers that fire the triggers may."""
    path = (server["role"] if name == "$user" else name for name in split_names(server["search_path"]))
    return tuple(name for name in path if name in server["schemas"])


async def _read(db: Database, query: Query, **params: object) -> list[Row]:
    return cast("list[Row]", await db.rows(dict, query, **params))


async def _read_tables(db: Database, comparers: Sequence[Row]) -> tuple[Table, ...]:
    compared = _by_table(comparers)
    rows = await _read(db, statement("scan.read_tables"))
    columns = _by_table(await _read(db, statement("scan.read_columns")))
    uniques = _by_table(await _read(db, statement("scan.read_unique_indexes")))
    constraints = await _read(db, statement("scan.read_constraints"))
    computed: defaultdict[int, list[str]] = defaultdict(list)
    conditions: dict[tuple[int, str], str | None] = {}
    for row in await _read(db, statement("scan.read_index_expressions")):
        computed[row["table_oid"]] += [text for text in (row["expressions"], row["condition"]) if text]
        conditions[row["table_oid"], row["name"]] = row["condition"]
    checks = _by_table(row for row in constraints if row["kind"] == "c" and row["definition"] is not None)
    exclusions = _by_table(
        {**row, "exclusion": True, "condition": conditions.get((row["table_oid"], row["name"]))}
        for row in constraints
        if row["kind"] == "x"
    )
    outgoing: defaultdict[int, list[ForeignKey]] = defaultdict(list)
    incoming: defaultdict[int, list[ForeignKey]] = defaultdict(list)
    for key in _structs(ForeignKey, (row for row in constraints if row["kind"] == "f")):
        outgoing[key.table_oid].append(key)
        incoming[key.referenced_oid].append(key)
    counted = _counted(rows)
    return tuple(
        msgspec.convert(
            {
                **row,
                **counted[row["oid"]],
                "columns": columns[row["oid"]],
                "computed": computed[row["oid"]],
                "comparers": list(dict.fromkeys(each["function_oid"] for each in compared[row["oid"]])),
                "checks": checks[row["oid"]],
                "uniques": uniques[row["oid"]] + exclusions[row["oid"]],
                "foreign_keys": outgoing[row["oid"]],
                "referenced_by": incoming[row["oid"]],
            },
            Table,
        )
        for row in rows
    )


def _counted(rows: Sequence[Row]) -> dict[int, Row]:
    """Row counts, with a partitioned table's leaves added up into it."""
    added = ("row_estimate", "inserted", "updated", "deleted", "scans")
    counts: dict[int, Row] = {
        row["oid"]: {"collected": row["collected"]}
        | {name: row[name] if row["kind"] != Kind.PARTITIONED.value else 0 for name in added}
        for row in rows
    }
    parents = {row["oid"]: row["partition_of"] for row in rows if row["partition_of"] is not None}
    for row in rows:
        if row["kind"] == Kind.PARTITIONED.value:
            continue
        above = parents.get(row["oid"])
        while above in counts:
            sums = counts[above]
            for name in added:
                sums[name] += row[name]
            sums["collected"] = sums["collected"] or row["collected"]
            above = parents.get(above)
    return counts


def _by_table(rows: Iterable[Row]) -> defaultdict[int, list[Row]]:
    found: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["table_oid"]].append(row)
    return found


def _structs(kind: type[S], rows: Iterable[Row]) -> tuple[S, ...]:
    return tuple(msgspec.convert(row, kind) for row in rows)


# pg_trigger.tgtype (src/include/catalog/pg_trigger.h)
_ROW, _BEFORE, _INSTEAD = 1, 2, 64
_EVENTS = ((Event.INSERT, 4), (Event.UPDATE, 16), (Event.DELETE, 8), (Event.TRUNCATE, 32))


def _trigger(row: Row) -> Trigger:
    bits: int = row.pop("type")
    count: int = row.pop("argument_count")
    arguments = bytes.fromhex(row.pop("arguments")).split(b"\0")[:count]
    before = Timing.BEFORE if bits & _BEFORE else Timing.AFTER
    values = {
        **row,
        "timing": Timing.INSTEAD if bits & _INSTEAD else before,
        "level": TriggerLevel.ROW if bits & _ROW else TriggerLevel.STATEMENT,
        "events": [event for event, bit in _EVENTS if bits & bit],
        "arguments": [argument.decode(errors="replace") for argument in arguments],
        "when": when_condition(row["create"]),
    }
    return msgspec.convert(values, Trigger)


def when_condition(create: str) -> str | None:
    """The WHEN of a CREATE TRIGGER as the server prints it, without its brackets.

    pg_get_expr(tgqual, tgrelid) refuses a condition that looks at both rows (seen on 15 and 18), so it is cut out here.
    """
    listed = list(tokens(create))
    for place, token in enumerate(listed[:-1]):
        if token.kind == "word" and token.text == "WHEN" and listed[place + 1].text == "(":
            depth = 0
            for closing in listed[place + 1 :]:
                depth += {"(": 1, ")": -1}.get(closing.text, 0) if closing.kind == "other" else 0
                if depth == 0:
                    return create[listed[place + 1].end : closing.start].strip()
    return None
