"""What is watched: from a scan's survey to mappings, and to what the catalog says of their tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum

import msgspec

from afterwrite.prove.legacy import LegacyMapping, MappedRow, Override, TableShape, infer
from afterwrite.prove.syntax import Routine
from afterwrite.record import Operation
from afterwrite.scan.catalog import Event, Inventory, Kind, Table, Timing, TriggerLevel
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.facts import Body


class Mode(StrEnum):
    """What is expected of a trigger: its legacy rows (``retire``), or only that it is seen firing (``defer``)."""

    RETIRE = "retire"
    DEFER = "defer"


class WindowRow(msgspec.Struct, frozen=True, kw_only=True):
    """The row of afterwrite.proof_window."""

    number: int
    started_lsn: str
    started_at: datetime | None
    through_lsn: str | None
    through_at: datetime | None
    observed: int
    transactions: int


class WatchedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A watched trigger's row as it was saved."""

    trigger: str
    mode: str
    operations: list[str]
    mapping: str
    overrides: str
    notes: list[str]
    present: bool
    silenced: bool
    silenced_mode: str | None
    version: str | None
    version_lsn: str | None
    since_at: datetime | None
    since_transactions: int

    @property
    def rows(self) -> tuple[MappedRow, ...]:
        """What it is expected to write."""
        return msgspec.json.decode(self.mapping, type=tuple[MappedRow, ...])

    @property
    def planned(self) -> tuple[Override, ...]:
        """What of that the plan says."""
        return msgspec.json.decode(self.overrides, type=tuple[Override, ...])


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan says of a trigger otherwise than scan and its own INSERT do; ``mode`` None: as scan says."""

    trigger: str
    mode: Mode | None = None
    overrides: tuple[Override, ...] = ()


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """The triggers that are watched: ``compared`` write to a legacy log, ``covered`` (deferred) do not.

    ``others`` write there too but will stay: their rows are theirs, and no sign of loss. ``legacy`` are the logs.
    """

    compared: tuple[LegacyMapping, ...]
    covered: tuple[LegacyMapping, ...]
    others: tuple[LegacyMapping, ...]
    legacy: frozenset[tuple[str, str]]
    tables: Mapping[tuple[str, str], TableShape]

    @property
    def watched(self) -> tuple[tuple[LegacyMapping, Mode], ...]:
        """Every trigger of which something is expected."""
        return (*((each, Mode.RETIRE) for each in self.compared), *((each, Mode.DEFER) for each in self.covered))


def watch(
    inventory: Inventory,
    judgements: Iterable[Judgement],
    bodies: Mapping[int, Body],
    planned: Iterable[Planned] = (),
) -> Watch:
    """Infer what every trigger writes to the legacy logs, which are what triggers to be retired write to.

    Only bodies that scan could read to the end are looked into. ``planned`` is what the plan says otherwise.
    """
    said = {each.trigger: each for each in planned}
    judged = [_as_planned(each, said.get(each.trigger.identity)) for each in judgements]
    logs = {name for each in judged if each.verdict is Verdict.RETIRE for name in each.log_tables}
    legacy = frozenset((table.schema, table.name) for table in inventory.tables if table.full_name in logs)
    tables = shapes(inventory, bodies)
    callable_routines = routines(inventory)
    compared: list[LegacyMapping] = []
    covered: list[LegacyMapping] = []
    others: list[LegacyMapping] = []
    for each in judged:
        body = bodies.get(each.trigger.oid)
        moving = each.verdict in (Verdict.RETIRE, Verdict.DEFER)
        if not moving and (body is None or not body.parsed):
            continue
        overrides = said[each.trigger.identity].overrides if each.trigger.identity in said else ()
        mapping = infer(each.trigger, legacy=legacy, tables=tables, routines=callable_routines, overrides=overrides)
        if each.verdict is Verdict.RETIRE and not mapping.operations:
            note = "no INSERT into a legacy log could be followed in its body"
            mapping = msgspec.structs.replace(mapping, notes=(*mapping.notes, note))
        if each.verdict is Verdict.RETIRE or (each.verdict is Verdict.DEFER and mapping.operations):
            compared.append(mapping)
        elif each.verdict is Verdict.DEFER:
            covered.append(mapping)
        elif mapping.operations:
            others.append(mapping)
    return Watch(compared=tuple(compared), covered=tuple(covered), others=tuple(others), legacy=legacy, tables=tables)


def _as_planned(judgement: Judgement, planned: Planned | None) -> Judgement:
    match planned.mode if planned is not None else None:
        case None:
            return judgement
        case Mode.RETIRE:
            return msgspec.structs.replace(judgement, verdict=Verdict.RETIRE)
        case Mode.DEFER:
            return msgspec.structs.replace(judgement, verdict=Verdict.DEFER)


def expected_operations(mapping: LegacyMapping, mode: Mode) -> tuple[Operation, ...]:
    """The operations on which a trigger must have been seen: those on which it writes, or all of a deferred one's."""
    if mode is Mode.RETIRE and mapping.operations:
        return mapping.operations
    return tuple(Operation(event.value) for event in mapping.trigger.events)


def shapes(inventory: Inventory, bodies: Mapping[int, Body]) -> dict[tuple[str, str], TableShape]:
    """What matters here of every table, by (schema, table)."""
    by_oid = {table.oid: table for table in inventory.tables}
    derived = _derived(inventory, bodies)
    below: dict[int, list[Table]] = {}
    for table in inventory.tables:
        if table.partition_of is not None:
            below.setdefault(table.partition_of, []).append(table)
    found: dict[tuple[str, str], TableShape] = {}
    for table in inventory.tables:
        root = table
        while root.partition_of is not None and root.partition_of in by_oid:
            root = by_oid[root.partition_of]
        found[table.schema, table.name] = TableShape(
            schema=table.schema,
            table=table.name,
            columns=tuple(column.name for column in table.columns),
            key=table.primary_key,
            generated=tuple(column.name for column in table.columns if column.generated),
            derived=derived.get(table.oid, frozenset()),
            leaves=tuple(_leaves(table, below)),
            unlogged=table.persistence != "p",
            root=(root.schema, root.name) if root is not table else None,
        )
    return found


def _leaves(table: Table, below: Mapping[int, list[Table]]) -> list[str]:
    names: list[str] = []
    for partition in below.get(table.oid, ()):
        names += _leaves(partition, below) if partition.kind is Kind.PARTITIONED else [partition.name]
    return names


def _derived(inventory: Inventory, bodies: Mapping[int, Body]) -> dict[int, frozenset[str]]:
    """By table: columns that a BEFORE UPDATE trigger may set beside the statement's; ``*`` where that is unknown."""
    found: dict[int, frozenset[str]] = {}
    for trigger in inventory.triggers:
        if trigger.timing is not Timing.BEFORE or trigger.level is not TriggerLevel.ROW:
            continue
        if Event.UPDATE not in trigger.events:
            continue
        body = bodies.get(trigger.oid)
        columns = {assignment.field for assignment in body.new_assignments} if body and body.parsed else {"*"}
        found[trigger.table_oid] = found.get(trigger.table_oid, frozenset()) | columns
    return found


def routines(inventory: Inventory) -> dict[tuple[str, str], Routine]:
    """Functions whose text can stand in the place of a call: not overloaded, not of an extension."""
    found: dict[tuple[str, str], Routine | None] = {}
    for function in inventory.functions:
        key = function.schema, function.name
        usable = not (
            key in found
            or function.returns_trigger
            or function.extension is not None
            or function.language not in ("sql", "plpgsql")
            or not function.source
            or function.variadic
            or len(function.arguments) not in (0, function.argument_count)
        )
        names = function.arguments or ("",) * function.argument_count
        found[key] = (
            Routine(
                schema=function.schema,
                name=function.name,
                language=function.language,
                source=function.source,
                parameters=names,
            )
            if usable
            else None
        )
    return {key: routine for key, routine in found.items() if routine is not None}
