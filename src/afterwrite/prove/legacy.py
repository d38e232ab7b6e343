"""What a trigger writes to the legacy log, inferred from its own INSERT: for each operation, column by column.

::

    Trigger ──infer──▶ LegacyMapping ──▶ by operation: which rows, under which condition, holding what
                 ▲                  └──▶ rows(), for people: each legacy column, its value, how compared
    the plan's Overrides
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import msgspec

from afterwrite.postgres import quoted
from afterwrite.prove.body import Surroundings, Written, follow
from afterwrite.prove.expression import (
    NULL,
    TRUE,
    Ambient,
    Around,
    Call,
    Case,
    Cast,
    Const,
    Expression,
    Field,
    Opaque,
    Relname,
    Side,
    Whole,
    Why,
    holds,
    parts_of,
    show,
)
from afterwrite.prove.fold import trigger_arguments
from afterwrite.prove.syntax import Binding, Reader, Routine
from afterwrite.prove.trees import NotUnderstood, is_one_expression
from afterwrite.record import Operation
from afterwrite.scan.catalog import Event, Timing, Trigger, TriggerLevel


class TableShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog says of a table that matters here.

    ``generated`` are its generated columns, ``derived`` those that a BEFORE trigger may set (``*`` for any), ``leaves``
    the names of its partitions at every depth, ``root`` the table that it is a partition of, ``unlogged`` that its
    rows never reach the WAL.
    """

    schema: str
    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()
    derived: frozenset[str] = frozenset()
    leaves: tuple[str, ...] = ()
    unlogged: bool = False
    root: tuple[str, str] | None = None


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """A person's word on one legacy column, from the plan: what it holds, or (``ignore``) why it is not compared.

    ``column`` is its name, with its table (and schema) before it where a trigger writes several. ``value`` is an SQL
    expression over new, old and tg_….
    """

    column: str
    value: str | None = None
    ignore: str | None = None

    def is_for(self, schema: str, table: str, column: str) -> bool:
        """Whether it speaks of this column."""
        return self.column in (column, f"{table}.{column}", f"{schema}.{table}.{column}")


class MappedColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A legacy column: the SQL that its value comes from, and how it is compared (exact, partly, no).

    ``why`` says why not, or not wholly. ``planned`` when the plan says so, and not the trigger's INSERT; ``identifies``
    when it tells to which change a row belongs.
    """

    column: str
    value: str
    compared: str
    why: str | None = None
    planned: bool = False
    identifies: bool = False


class MappedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A legacy row that is expected for an operation. ``times`` is how often: a change, a statement, a round, any."""

    operation: Operation
    table: str
    line: int
    times: str
    when: str | None = None
    condition: str | None = None
    columns: tuple[MappedColumn, ...] = ()


class LegacyMapping(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger and what it writes: ``written`` by operation, in the order of the body.

    ``when`` is its WHEN condition by operation. ``identifies`` are, by legacy table, the columns that give table,
    operation and key. ``notes`` say what could not be followed. ``overrides`` are those of the plan that are in it,
    and ``problems`` says of the others why they are not.
    """

    trigger: Trigger
    written: Mapping[Operation, tuple[Written, ...]]
    when: Mapping[Operation, Expression]
    identifies: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    problems: tuple[str, ...] = ()
    left_out: Mapping[str, tuple[str, ...]] = {}

    @property
    def identity(self) -> str:
        return self.trigger.identity

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Operations on which it can write anything."""
        return tuple(operation for operation, written in self.written.items() if written)

    def compared(self) -> Mapping[Operation, Mapping[str, str]]:
        """For each operation and legacy column: ``exact``, ``partly``, or why it is not compared."""
        return {
            operation: {f"{row.table}.{column}": comparable(value) for row in written for column, value in row.values}
            for operation, written in self.written.items()
        }

    def rows(self) -> tuple[MappedRow, ...]:
        """The mapping as people read it: every legacy column of every row that is expected."""
        return tuple(self._row(operation, row) for operation, written in self.written.items() for row in written)

    def _row(self, operation: Operation, row: Written) -> MappedRow:
        table = _table_name(row)
        when = self.when.get(operation, TRUE)
        identifies = self.identifies.get(table, ())
        columns = [
            _mapped(column, value, planned=self._is_planned(row, column), identifies=column in identifies)
            for column, value in row.values
        ]
        named = {column for column, _ in row.values}
        columns += [
            MappedColumn(column=column, value="", compared="no", why=Why.DEFAULT)
            for column in self.left_out.get(table, ())
            if column not in named
        ]
        return MappedRow(
            operation=operation,
            table=table,
            line=row.line,
            times="any"
            if row.many
            else "statement"
            if row.statement
            else "round"
            if row.rows is not None
            else "change",
            when=None if when == TRUE else show(when),
            condition=None if row.condition == TRUE else show(row.condition),
            columns=tuple(columns),
        )

    def _is_planned(self, row: Written, column: str) -> bool:
        return any(each.is_for(row.schema or "", row.table, column) for each in self.overrides)


def _mapped(column: str, value: Expression, *, planned: bool, identifies: bool) -> MappedColumn:
    found = comparable(value)
    if isinstance(value, Opaque) and value.why is Why.IGNORED:
        return MappedColumn(column=column, value=value.text, compared="no", why=Why.IGNORED, planned=True)
    whys = ", ".join(dict.fromkeys(_whys(value)))
    return MappedColumn(
        column=column,
        value=show(value),
        compared=found if found in ("exact", "partly") else "no",
        why=whys or None,
        planned=planned,
        identifies=identifies,
    )


def infer(
    trigger: Trigger,
    *,
    legacy: Collection[tuple[str, str]],
    tables: Mapping[tuple[str, str], TableShape],
    routines: Mapping[tuple[str, str], Routine] | None = None,
    overrides: Collection[Override] = (),
) -> LegacyMapping:
    """The mapping of a trigger, from its body and from what the catalog says of the tables.

    ``legacy`` are the legacy log tables as (schema, table); INSERTs to other tables are left out. A body that cannot
    be followed gives a mapping without rows and a note that says why. ``overrides`` take the place of what the INSERT
    says; one that cannot be used is left out, and ``problems`` says why.
    """
    path = _search_path(trigger)
    own = tables.get((trigger.schema, trigger.table))
    written: dict[Operation, tuple[Written, ...]] = {}
    when: dict[Operation, Expression] = {}
    notes: dict[str, None] = {}
    said = _Said(tuple(overrides), path=path, routines=routines or {}, tables=tables)
    for event in trigger.events:
        operation = Operation(event.value)
        names = _names(trigger, event, own)
        surroundings = Surroundings(
            names=names,
            transition=_transition(trigger, event),
            path=path,
            routines=routines or {},
            columns={key: shape.columns for key, shape in tables.items()},
            per_statement=trigger.level is TriggerLevel.STATEMENT,
            row=own.columns if own is not None and trigger.timing is Timing.AFTER else (),
        )
        when[operation] = holds(Reader(names, path=path).sql(trigger.when)) if trigger.when else TRUE
        try:
            rows = follow(trigger.source, surroundings) if trigger.language == "plpgsql" else ()
        except NotUnderstood as reason:
            notes[f"the body cannot be followed: {reason}"] = None
            rows = ()
        if trigger.language != "plpgsql":
            notes[f"a body in {trigger.language} is not followed"] = None
        kept: list[Written] = []
        for row in rows:
            target = _resolve(row, path, legacy)
            if target is not None:
                kept.append(said.put_into(msgspec.structs.replace(row, schema=target[0]), names, event))
            if row.swallowed:
                notes["an exception handler of the body may undo its rows in silence"] = None
        written[operation] = tuple(kept)
    return LegacyMapping(
        trigger=trigger,
        written=written,
        when=when,
        identifies=_identifies(trigger, written, own),
        notes=(*notes, *said.problems),
        overrides=tuple(each for each in said.overrides if each in said.used),
        problems=said.problems,
        left_out={
            _table_name(row): shape.columns
            for rows in written.values()
            for row in rows
            if (shape := tables.get((row.schema or "", row.table))) is not None
        },
    )


class _Said:
    """What the plan says of legacy columns, put into the rows that it is about."""

    def __init__(
        self,
        overrides: tuple[Override, ...],
        *,
        path: tuple[str, ...],
        routines: Mapping[tuple[str, str], Routine],
        tables: Mapping[tuple[str, str], TableShape],
    ) -> None:
        self.overrides = overrides
        self.used: list[Override] = []
        self._path, self._routines, self._tables = path, routines, tables
        self._wrong: dict[Override, str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """Of every override that could not be used: why."""
        found = dict(self._wrong)
        for each in self.overrides:
            if each not in self.used and each not in found:
                found[each] = "the trigger writes no legacy column of that name"
        return tuple(f"the plan's mapping of {each.column} is not used: {why}" for each, why in found.items())

    def put_into(self, row: Written, names: Mapping[str, Binding], event: Event) -> Written:
        """The row with what the plan says in the place of what the INSERT says."""
        if not self.overrides:
            return row
        shape = self._tables.get((row.schema or "", row.table))
        values = dict(row.values)
        for column in dict.fromkeys((*(shape.columns if shape else ()), *values)):
            for each in self.overrides:
                if each.is_for(row.schema or "", row.table, column):
                    value = self._read(each, row, names, event)
                    if value is not None:
                        values[column] = value
                        self.used.append(each)
        return msgspec.structs.replace(row, values=tuple(values.items()))

    def _read(self, override: Override, row: Written, names: Mapping[str, Binding], event: Event) -> Expression | None:
        if override.value is None:
            return Opaque(Why.IGNORED, override.ignore or "")
        if not row.statement:  # a statement trigger that reads its transition tables writes a row for each of theirs
            new = Whole(Side.NEW) if event in (Event.INSERT, Event.UPDATE) else NULL
            old = Whole(Side.OLD) if event in (Event.UPDATE, Event.DELETE) else NULL
            names = {**names, "new": new, "old": old}
        value: Expression = Opaque(Why.OPAQUE, override.value)
        if is_one_expression(override.value):
            value = Reader(names, path=self._path, routines=self._routines).sql(override.value)
        unclear = [each.text for each in _opaques(value) if each.why is Why.OPAQUE]
        if unclear:
            self._wrong[override] = f"{unclear[0]!r} cannot be computed from a change"
            return None
        return value


def _opaques(value: Any) -> list[Opaque]:
    if isinstance(value, Opaque):
        return [value]
    return [each for below in parts_of(value) for each in _opaques(below)]


def _names(trigger: Trigger, event: Event, own: TableShape | None) -> dict[str, Binding]:
    """The variables that a trigger's body finds set, for one operation."""
    row = trigger.level is TriggerLevel.ROW
    relname: Expression = Const(trigger.table)
    if row and own is not None and own.leaves:
        relname = Relname(trigger.table, own.leaves)
    return {
        "new": Whole(Side.NEW) if row and event in (Event.INSERT, Event.UPDATE) else NULL,
        "old": Whole(Side.OLD) if row and event in (Event.UPDATE, Event.DELETE) else NULL,
        "tg_op": Const(event.value.upper()),
        "tg_name": Const(trigger.name),
        "tg_when": Const(trigger.timing.value.upper()),
        "tg_level": Const(trigger.level.value.upper()),
        "tg_relid": Opaque(Why.OPAQUE, "tg_relid"),
        "tg_relname": relname,
        "tg_table_name": relname,
        "tg_table_schema": Const(trigger.schema),
        "tg_nargs": Const(len(trigger.arguments)),
        "tg_argv": trigger_arguments(trigger.arguments),
    }


def _transition(trigger: Trigger, event: Event) -> dict[str, Side]:
    named: dict[str, Side] = {}
    if trigger.new_table and event in (Event.INSERT, Event.UPDATE):
        named[trigger.new_table] = Side.NEW
    if trigger.old_table and event in (Event.UPDATE, Event.DELETE):
        named[trigger.old_table] = Side.OLD
    return named


def _search_path(trigger: Trigger) -> tuple[str, ...]:
    """Where the body looks for names: the function's own setting, else what is usual."""
    for setting in trigger.config:
        name, _, value = setting.partition("=")
        if name == "search_path":
            words = [word.strip().strip('"') for word in value.split(",")]
            return tuple(word for word in words if word and word != "pg_temp")
    return tuple(dict.fromkeys(("public", trigger.schema, trigger.function_schema)))


def _resolve(row: Written, path: tuple[str, ...], legacy: Collection[tuple[str, str]]) -> tuple[str, str] | None:
    schemas = (row.schema,) if row.schema else path
    return next(((schema, row.table) for schema in schemas if (schema, row.table) in legacy), None)


def _table_name(row: Written) -> str:
    return quoted(row.schema, row.table) if row.schema else quoted(row.table)


# --- what of a row is compared, and what identifies it ----------------------------------------------------------------


def comparable(value: Expression) -> str:
    """``exact``, ``partly`` (something known around something unknown), or the reason why not at all."""
    whys = list(_whys(value))
    if not whys:
        return "exact"
    if isinstance(value, Opaque):
        return value.why.value
    return "partly" if _has_known(value) else whys[0].value


_NEVER_STAMPED = (Ambient.SESSION_USER, Ambient.CLIENT_ADDRESS, Ambient.APPLICATION_NAME)


def _whys(value: Any) -> list[Why]:
    if isinstance(value, Opaque):
        return [value.why]
    if isinstance(value, Around):
        return [Why.SESSION] if value.what in _NEVER_STAMPED else []
    return [why for below in parts_of(value) for why in _whys(below)]


def _has_known(value: Expression) -> bool:
    """Whether text or an object is built around the unknown part, so that something of it can be compared."""
    match value:
        case Call("||" | "format" | "concat" | "concat_ws" | "jsonb_build_object" | "json_build_object", _):
            return True
        case Case(branches, otherwise):
            return any(_has_known(then) for _, then in branches) or _has_known(otherwise)
        case Cast(inner, _, _):
            return _has_known(inner)
        case Call("coalesce", (first, *_)):
            return _has_known(first)
        case _:
            return False


def _identifies(
    trigger: Trigger, written: Mapping[Operation, tuple[Written, ...]], own: TableShape | None
) -> dict[str, tuple[str, ...]]:
    """By legacy table: the columns that are constant for an operation, or made of nothing but the key."""
    key = frozenset(own.key) if own else frozenset[str]()
    found: dict[str, dict[str, None]] = {}
    for rows in written.values():
        for row in rows:
            columns = found.setdefault(_table_name(row), {})
            for column, value in row.values:
                if (
                    (isinstance(value, Const) and value.value is not None)
                    or isinstance(value, Relname)
                    or ((fields := _fields(value)) and fields <= key)
                ):
                    columns[column] = None
    return {table: tuple(columns) for table, columns in found.items()}


def _fields(value: Any) -> frozenset[str] | None:
    """The columns of its row that an expression is made of; None when it is made of anything else too."""
    match value:
        case Field(_, column):
            return frozenset((column,))
        case Call("->>" | "->", (inner, Const(value=str(name)))) if _is_row(inner):
            return frozenset((name,))
        case Whole() | Opaque():
            return None
        case Const():
            return frozenset()
        case Call() | Cast() | Case() | tuple():
            found: set[str] = set()
            for part in parts_of(cast("Any", value)):
                if isinstance(part, str | int):
                    continue
                fields = _fields(part)
                if fields is None:
                    return None
                found |= fields
            return frozenset(found)
        case _:
            return None


def _is_row(value: Expression) -> bool:
    match value:
        case Call("to_jsonb" | "row_to_json" | "to_json" | "hstore", (Whole(),)):
            return True
        case Call("-", (inner, _)) | Cast(inner, _, _):
            return _is_row(inner)
        case _:
            return False
