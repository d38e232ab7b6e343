"""What the catalog says of a database and its triggers: read only, as it is, nothing judged yet.

Needs no privilege beyond CONNECT: the system catalogs tell every role how tables, functions and triggers are made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar, cast

import msgspec

from afterwrite.errors import DatabaseError
from afterwrite.postgres import Database, Query, statement
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
    """A column; ``type`` as format_type() prints it, ``default`` as SQL (None for generated columns)."""

    name: str
    type: str
    not_null: bool = False
    default: str | None = None
    identity: bool = False
    generated: bool = False


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A CHECK constraint and the columns it looks at."""

    name: str
    columns: tuple[str, ...]
    definition: str


class Unique(msgspec.Struct, frozen=True, kw_only=True):
    """A unique index or an exclusion constraint; ``columns`` are the plain ones where it also holds expressions."""

    name: str
    columns: tuple[str, ...]
    primary: bool = False
    partial: bool = False
    exclusion: bool = False


class ForeignKey(msgspec.Struct, frozen=True, kw_only=True):
    """A reference from ``table_oid``.columns to ``referenced_oid``.referenced_columns; ``on_delete``: a, r, c, n, d."""

    name: str
    table_oid: int
    columns: tuple[str, ...]
    referenced_oid: int
    referenced_columns: tuple[str, ...]
    on_delete: str


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table or view. Statistics count rows since the server's last reset; of a partitioned table, its leaves' sum.

    ``foreign_keys`` go out from it, ``referenced_by`` point at it. ``collected`` is false when nothing was counted yet.
    """

    oid: int
    schema: str
    name: str
    kind: Kind
    partition_of: int | None = None
    persistence: str = "p"
    replica_identity: str = "d"
    row_security: bool = False
    has_rules: bool = False
    row_estimate: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    collected: bool = False
    extension: str | None = None
    columns: tuple[Column, ...] = ()
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
    """A function or procedure. ``sql_body`` is the printed body of a SQL-standard one, whose ``source`` is empty."""

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

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A row security policy and the oids of the tables and functions that it looks at."""

    table_oid: int
    name: str
    reads: tuple[int, ...]
    functions: tuple[int, ...]


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
    other subscribers than us, ``builtins`` whether pg_catalog's function of a name is volatile. ``vanished`` are
    triggers and functions that were dropped while they were read, ``sight`` is what the role could see.
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
    aggregates: tuple[str, ...] = ()
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
            async with db.transaction():
                await db.run(statement("scan.begin_reading"))
                await db.run(statement("scan.qualify_everything"))
                await db.run(statement("scan.bound_waiting"))
                return await _read_inventory(db, wanted)
        except DatabaseError as error:
            if error.sqlstate not in _VANISHED or attempt == _ATTEMPTS:
                raise
            attempt += 1


async def _read_inventory(db: Database, wanted: list[str] | None) -> Inventory:
    (server,) = await _read(db, statement("scan.read_server"))
    triggers = await _read(db, statement("scan.read_triggers"), schemas=wanted)
    clones = await _read(db, statement("scan.read_clones"), schemas=wanted)
    tables = await _read_tables(db)
    functions = await _read(db, statement("scan.read_functions"))
    builtins = await _read(db, statement("scan.read_builtins"))
    aggregates = await _read(db, statement("scan.read_aggregates"))
    views = await _read(db, statement("scan.read_views"))
    policies = await _read(db, statement("scan.read_policies"))
    publications = await _read(db, statement("scan.read_publications"))
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
        aggregates=tuple(f"{row['schema']}.{row['name']}" for row in aggregates),
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


async def _read_tables(db: Database) -> tuple[Table, ...]:
    rows = await _read(db, statement("scan.read_tables"))
    columns = _by_table(await _read(db, statement("scan.read_columns")))
    uniques = _by_table(await _read(db, statement("scan.read_unique_indexes")))
    constraints = await _read(db, statement("scan.read_constraints"))
    checks = _by_table(row for row in constraints if row["kind"] == "c" and row["definition"] is not None)
    exclusions = _by_table({**row, "exclusion": True} for row in constraints if row["kind"] == "x")
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
    added = ("row_estimate", "inserted", "updated", "deleted")
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
