"""From a change to the rows that a trigger should have written for it.

``Rule`` is a mapping made ready for one shape of its table; it says whether the trigger fired for a change, as far as
the WAL tells, and what the body then wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import msgspec

from afterwrite.capture.transaction import Change, Relation
from afterwrite.postgres import quoted
from afterwrite.prove.body import Written
from afterwrite.prove.evaluate import (
    Compiled,
    Compiler,
    Moment,
    NotKnown,
    RowSource,
    Slots,
    Writer,
    compile_expression,
    compile_rows,
)
from afterwrite.prove.expression import (
    TRUE,
    Ambient,
    Around,
    Call,
    Case,
    Cast,
    Const,
    Expression,
    Relname,
    Whole,
    Why,
    parts_of,
)
from afterwrite.prove.landing import Landed, Lander, lander
from afterwrite.prove.legacy import LegacyMapping, TableShape
from afterwrite.prove.value import Unknown, Value, decode_json, unknown
from afterwrite.record import Operation
from afterwrite.scan.catalog import TriggerLevel


class Verdict(Enum):
    """Whether a trigger fired, or a body wrote: surely, surely not, or the WAL does not tell."""

    YES = "yes"
    NO = "no"
    PERHAPS = "perhaps"


class Row:
    """A change as a body saw it: both rows decoded, with what the stream does not carry marked unknown."""

    __slots__ = ("change", "moment")

    def __init__(self, change: Change | None, moment: Moment) -> None:
        self.change, self.moment = change, moment


def read_row(change: Change, shape: TableShape | None, writer: Writer) -> Row:
    """Decode a change's rows; old columns that the replica identity leaves out, and generated ones, become unknown."""
    generated = {name: unknown(Why.GENERATED_COLUMN) for name in shape.generated} if shape else {}
    columns = change.relation.columns
    new: dict[str, Any] | None = None
    old: dict[str, Any] | None = None
    if change.after is not None:
        absent = {name: unknown(Why.NOT_IN_WAL) for name in change.unchanged}
        new = {**generated, **absent, **decode_json(change.after)}
    if change.operation is Operation.DELETE or change.operation is Operation.UPDATE:
        absent = {column.name: unknown(Why.NOT_IN_WAL) for column in columns}
        # Without the old row in the stream its key did not change.
        key = {column.name: new[column.name] for column in columns if column.key and column.name in new} if new else {}
        known = decode_json(change.before) if change.before is not None else key
        old = {**generated, **absent, **known}
    return Row(change, Moment(new, old, writer))


class Writes:
    """One INSERT of a body, compiled: its condition, its loop, its columns."""

    __slots__ = (
        "_landers",
        "columns",
        "condition",
        "names",
        "needs_context",
        "partition",
        "rows",
        "target",
        "whole",
        "written",
    )

    def __init__(self, written: Written, compiler: Compiler) -> None:
        self.written = written
        self.target = written.schema or "", written.table
        self.names = tuple(name for name, _ in written.values)
        self.columns = tuple(compiler.build(value) for _, value in written.values)
        self.condition = None if written.condition == TRUE else compiler.build(written.condition)
        self.rows: RowSource | None = None
        if written.rows is not None:
            self.rows = compile_rows(written.rows, compiler.build)
        self._landers: tuple[Relation, list[tuple[str, int, Lander]], dict[str, Landed]] | None = None
        values = tuple(value for _, value in written.values)
        self.needs_context = _mentions(values, _asks_context)
        self.whole = _mentions(values, _is_whole_row)
        self.partition = _mentions(values, _is_relname)

    def evaluate(self, moment: Moment) -> list[Value]:
        """The columns' values for one row."""
        return [column(moment) for column in self.columns]

    def land(self, moment: Moment, values: list[Value] | None, legacy: Relation) -> dict[str, Landed]:
        """One row as the legacy table stores it, by column; columns that the table has not are left out."""
        if self._landers is None or self._landers[0] is not legacy:
            self._landers = legacy, *self._prepare(legacy)
        _, variable, constant = self._landers
        landed = constant.copy()
        if values is None:
            for name, index, land in variable:
                landed[name] = land(self.columns[index](moment))
        else:
            for name, index, land in variable:
                landed[name] = land(values[index])
        return landed

    def _prepare(self, legacy: Relation) -> tuple[list[tuple[str, int, Lander]], dict[str, Landed]]:
        """What is the same for every row landed once and for all, and how to land the rest."""
        types = {column.name: (column.type_oid, column.type_modifier) for column in legacy.columns}
        variable: list[tuple[str, int, Lander]] = []
        constant: dict[str, Landed] = {}
        for index, (name, value) in enumerate(self.written.values):
            if name not in types:
                continue
            land = lander(*types[name])
            if isinstance(value, Const):
                constant[name] = land(value.value)
            else:
                variable.append((name, index, land))
        return variable, constant

    def expect(self, moment: Moment) -> Iterator[tuple[bool, list[Value] | None]]:
        """The rows it writes, each as (sure, values); values are None where they may be computed later."""
        if self.rows is None:
            met = True if self.condition is None else self.condition(moment)
            if met is True or isinstance(met, Unknown):
                yield met is True, None
            return
        try:
            for certain in self.rows(moment):
                met = True if self.condition is None else self.condition(moment)
                if met is True or isinstance(met, Unknown):
                    yield met is True and certain is True, self.evaluate(moment)
        except NotKnown as doubt:
            yield False, [unknown(doubt.why)] * len(self.names)


class Rule:
    """A mapping over one shape of its table (one Relation message): everything compiled, nothing decided.

    Rules of one ``number`` are about the same shape, and share what they work out for a row.
    """

    def __init__(
        self, mapping: LegacyMapping, relation: Relation, shape: TableShape | None, slots: Slots, number: int
    ) -> None:
        self.mapping = mapping
        self.number = number
        self.identity = mapping.identity
        self.operations = frozenset(Operation(event.value) for event in mapping.trigger.events)
        self.identifies = {
            each: mapping.identifies.get(quoted(*each), ())
            for each in {(row.schema or "", row.table) for rows in mapping.written.values() for row in rows}
        }
        self.shape = shape
        self.types = {column.name: column.type_oid for column in relation.columns}
        # PostgreSQL 18 can publish them; then they are like any other column.
        self.generated = tuple(name for name in (shape.generated if shape else ()) if name not in self.types)
        self.columns = frozenset(mapping.trigger.columns)
        self.statement_level = mapping.trigger.level is TriggerLevel.STATEMENT
        owner = mapping.trigger.function_owner if mapping.trigger.security_definer else None
        compiler = Compiler(self.types, owner=owner, slots=slots, shape=number)
        self.when: dict[Operation, Compiled] = {
            operation: compiler.build(when) for operation, when in mapping.when.items() if when != TRUE
        }
        self.writes: dict[Operation, tuple[Writes, ...]] = {
            operation: tuple(Writes(row, compiler) for row in written) for operation, written in mapping.written.items()
        }

    def update_of(self, change: Change) -> Verdict:
        """UPDATE OF asks for the statement's SET list, which is not in the WAL: columns that changed were set.

        Unless a BEFORE trigger set them; and a column may be set to what it was.
        """
        if not self.columns or change.operation is not Operation.UPDATE:
            return Verdict.YES
        changed = self.columns.intersection(change.changed or ())
        derived = self.shape.derived if self.shape else frozenset[str]()
        if changed and "*" not in derived and not changed <= derived:
            return Verdict.YES
        return Verdict.PERHAPS

    def conditional(self, operation: Operation) -> bool:
        """Whether a WHEN condition looks at the row."""
        return self.when.get(operation) is not None

    def when_met(self, row: Row, operation: Operation) -> Verdict:
        """The WHEN condition on this change."""
        condition = self.when.get(operation)
        if condition is None:
            return Verdict.YES
        met = condition(row.moment)
        if isinstance(met, Unknown):
            return Verdict.PERHAPS
        return Verdict.YES if met is True else Verdict.NO

    def template(self, operation: Operation, writes: Writes) -> list[Value] | None:
        """What a row of this INSERT looks like whatever the change was; None when it can never be written."""
        absent = {name: unknown(Why.NOT_IN_WAL) for name in self.types}
        absent |= {name: unknown(Why.GENERATED_COLUMN) for name in self.generated}
        moment = Moment(
            absent if operation in (Operation.INSERT, Operation.UPDATE) and not writes.written.statement else None,
            absent if operation in (Operation.UPDATE, Operation.DELETE) and not writes.written.statement else None,
        )
        if writes.rows is not None:
            return [_without_rows(value, self.types) for _, value in writes.written.values]
        met = True if writes.condition is None else writes.condition(moment)
        return writes.evaluate(moment) if met is True or isinstance(met, Unknown) else None


def _without_rows(value: Expression, types: Mapping[str, int]) -> Value:
    """A column of a looped INSERT as far as it does not look at the loop or the row."""
    if _mentions(value, _looks_at_something):
        return unknown(Why.OPAQUE)
    return compile_expression(value, types)(Moment(None, None))


def _looks_at_something(node: object) -> bool:
    return not isinstance(node, Call | Const | Cast | Case)


def _is_whole_row(node: object) -> bool:
    return isinstance(node, Whole)


def _is_relname(node: object) -> bool:
    return isinstance(node, Relname)


def _asks_context(node: object) -> bool:
    """Whether it asks who is writing, which only a stamp tells."""
    if isinstance(node, Around):
        return node.what in (Ambient.ACTOR, Ambient.ACTOR_ROLE, Ambient.CLAIMS)
    return isinstance(node, Call) and node.name == "current_setting"


def _mentions(value: object, test: Callable[[object], bool]) -> bool:
    """Whether anything in an expression passes the test."""
    own = isinstance(value, msgspec.Struct) and test(value)
    return own or any(_mentions(part, test) for part in parts_of(value))
