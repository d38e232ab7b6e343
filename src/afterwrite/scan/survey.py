"""Scan, whole: read the catalog, read every body that matters, judge, and say what else was noticed.

catalog ─▶ inventory ─▶ parser ⇄ follow (until nothing is missing) ─▶ judge ─▶ Survey
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from afterwrite.errors import Finding, Severity
from afterwrite.postgres import Database, quoted
from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Enabled, Function, Inventory, Kind, Table, Trigger, read_inventory
from afterwrite.scan.classify import Judgement, Verdict, judge
from afterwrite.scan.facts import Body, Source, Unknown
from afterwrite.scan.follow import Reach, follow, follow_function, source_of
from afterwrite.scan.parser import Parser, open_parser

_ROUNDS = 30
Followed = TypeVar("Followed", Trigger, Function)


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """A scan's answer. ``bodies`` holds, by trigger oid, what each trigger does in all."""

    inventory: Inventory
    bodies: Mapping[int, Body]
    judgements: tuple[Judgement, ...]
    findings: tuple[Finding, ...]

    def of(self, verdict: Verdict) -> tuple[Judgement, ...]:
        """The judgements with this verdict."""
        return tuple(judgement for judgement in self.judgements if judgement.verdict is verdict)


Tell = Callable[[str], None]


def _say_nothing(said: str) -> None:
    """Nobody asked what goes on."""


async def survey(db: Database, schemas: Sequence[str] | None = None, *, tell: Tell = _say_nothing) -> Survey:
    """Scan a database: a verdict for every trigger of these schemas (all by default). Reads only.

    All triggers are read and judged, since a verdict hangs on the others; ``schemas`` says which are told. ``tell``
    hears what is being done, for people who wait.
    """
    tell(f"reading the catalog of {db.where}")
    inventory = await read_inventory(db)
    async with open_parser() as parser:
        return await judge_inventory(inventory, parser, schemas=schemas, tell=tell)


async def judge_inventory(
    inventory: Inventory, parser: Parser, *, schemas: Sequence[str] | None = None, tell: Tell = _say_nothing
) -> Survey:
    """The same for an inventory that is at hand."""
    atlas = Atlas(inventory)
    tell(f"reading what {len(inventory.triggers):,} triggers do")
    read: dict[Source, Body] = {}
    bodies = await _follow_all(inventory.triggers, lambda trigger: follow(trigger, atlas, read), parser, read)
    others = _functions_that_matter(atlas, bodies)
    functions = await _follow_all(others, lambda function: follow_function(function, atlas, read), parser, read)
    tell(f"judging {len(inventory.triggers):,} triggers")
    judgements = judge(inventory, bodies, functions)
    if schemas is not None:
        judgements = tuple(each for each in judgements if each.trigger.schema in schemas)
        inventory = msgspec.structs.replace(
            inventory,
            triggers=tuple(each for each in inventory.triggers if each.schema in schemas),
            clones=tuple(each for each in inventory.clones if each.schema in schemas),
        )
        atlas = Atlas(inventory)
    return Survey(
        inventory=inventory,
        bodies=bodies,
        judgements=judgements,
        findings=tuple(_findings(atlas, judgements, functions)),
    )


async def _follow_all(
    items: Iterable[Followed], follow_one: Callable[[Followed], Reach], parser: Parser, read: dict[Source, Body]
) -> dict[int, Body]:
    """Follow each (by oid), reading what is missing, until nothing is: a callee may execute what calls another."""
    listed = list(items)
    reaches: dict[int, Reach] = {}
    # Triggers that share a function run much the same texts: one of each finds most of what there is to read.
    first = {item.function_oid if isinstance(item, Trigger) else item.oid: item for item in reversed(listed)}
    for waiting in (list(first.values()), listed):
        left = [item for item in waiting if item.oid not in reaches]
        for _ in range(_ROUNDS):
            for item in left:
                reaches[item.oid] = follow_one(item)
            left = [item for item in left if reaches[item.oid].missing]
            missing = {source for item in left for source in reaches[item.oid].missing}
            if not missing:
                break
            read |= await parser.read(sorted(missing, key=lambda source: source.text))
    return {item.oid: _closed(reaches[item.oid]) for item in listed}


def _closed(reach: Reach) -> Body:
    """The body of a reach; what is still missing after all rounds is unknown."""
    if not reach.missing:
        return reach.body
    count = len(reach.missing)
    said = "1 text that it runs was" if count == 1 else f"{count} texts that it runs were"
    left = Unknown(rule="unknown-function", text=f"{said} not reached")
    return msgspec.structs.replace(reach.body, unknowns=(*reach.body.unknowns, left))


def _functions_that_matter(atlas: Atlas, bodies: Mapping[int, Body]) -> list[Function]:
    """Functions that name a table which a trigger writes, and those of policies: evidence about that table's use.

    A view on the table, and a function that is wanted itself, stand for it: who names these reaches the table, too.
    """
    tables = {fact.table for body in bodies.values() for fact in (*body.inserts, *body.updates, *body.deletes)}
    seen = {table.oid for table in atlas.tables.values() if table.name in tables}
    while below := {view for view, table in atlas.inventory.views if table in seen and view not in seen}:
        seen |= below
    policed = {oid for policy in atlas.inventory.policies for oid in policy.functions}
    waiting: dict[int, tuple[Function, str, set[str]]] = {}
    wanted: dict[int, Function] = {}
    for function in atlas.functions.values():
        text = (function.source or function.sql_body or "").lower()
        if function.returns_trigger or function.extension is not None or source_of(function) is None:
            continue
        waiting[function.oid] = (function, text, set(re.findall(r"[\w$]+", text)))
        if function.oid in policed:
            wanted[function.oid] = function
    names = {table.name.lower() for table in atlas.tables.values() if table.oid in seen or table.name in tables}
    names |= {function.name.lower() for function in wanted.values()} | {"currval", "lastval"}
    while names:
        odd = [name for name in names if not re.fullmatch(r"[\w$]+", name)]
        found = [
            function
            for oid, (function, text, words) in waiting.items()
            if oid not in wanted and (not words.isdisjoint(names) or any(name in text for name in odd))
        ]
        wanted |= {function.oid: function for function in found}
        names = {function.name.lower() for function in found}
    return list(wanted.values())


# Findings ------------------------------------------------------------------------------------------------------------


def _findings(atlas: Atlas, judgements: Sequence[Judgement], functions: Mapping[int, Body]) -> Iterator[Finding]:
    moving = [each for each in judgements if each.verdict in (Verdict.RETIRE, Verdict.DEFER)]
    on_table: defaultdict[int, list[Judgement]] = defaultdict(list)
    for each in moving:
        on_table[each.trigger.table_oid].append(each)
    for oid, listed in on_table.items():
        if oid in atlas.tables:
            yield from _table_findings(atlas, atlas.tables[oid], listed)
    for each in judgements:
        yield from _trigger_findings(each)
    for judged in {each.trigger.table_oid: each for each in judgements}.values():
        yield from _wal_findings(atlas, judged)
    yield from _clone_findings(atlas, judgements)
    for oid, body in functions.items():
        if body.unknowns:
            function = atlas.functions[oid]
            yield Finding(
                rule="function-unread",
                severity=Severity.INFO,
                where=f"{function.full_name}()",
                text=f"a part of {function.full_name}() cannot be read ({body.unknowns[0].text}), "
                "so that what it does to the tables that triggers write is not known in full",
            )
    for trigger in atlas.inventory.event_triggers:
        yield Finding(
            rule="event-trigger",
            severity=Severity.INFO,
            where=trigger.name,
            text=f"the event trigger {trigger.name} runs {trigger.function} on {trigger.event}: also when a migration "
            "turns triggers off and on, or a replica identity is set",
        )
    for name in atlas.inventory.vanished:
        yield Finding(
            rule="vanished",
            severity=Severity.WARNING,
            where=name,
            text=f"{name} was dropped while it was read, and is left out",
            remedy="scan again when nobody alters the schema",
        )
    logs = {name for each in judgements for name in each.log_tables}
    if logs and not any(table.collected for table in atlas.tables.values() if table.full_name in logs):
        yield Finding(
            rule="no-statistics",
            severity=Severity.INFO,
            where=atlas.inventory.database,
            text="no write was ever counted on the log tables, so that nothing but the code says that they are "
            "only appended to",
            remedy="scan the primary: a standby does not know what was written there"
            if atlas.inventory.sight is not None and atlas.inventory.sight.standby
            else "scan the database that the application works on, or set track_counts = on",
        )


def _table_findings(atlas: Atlas, table: Table, moving: Sequence[Judgement]) -> Iterator[Finding]:
    count = f"{len(moving)} trigger{'s' if len(moving) > 1 else ''} to move"
    name = quoted(table.schema, table.name)
    leaves = atlas.leaves(table)
    without_key = any(
        leaf.replica_identity == "n" or (leaf.replica_identity == "d" and not leaf.primary_key) for leaf in leaves
    )
    needing = [each for each in moving if each.needs.replica_identity_full]
    if without_key:
        yield Finding(
            rule="no-replica-identity",
            severity=Severity.WARNING,
            where=table.full_name,
            text=f"{table.full_name} has {count} and no replica identity: its UPDATEs and DELETEs would fail once "
            "published",
            remedy=f"ALTER TABLE {name} REPLICA IDENTITY FULL (afterwrite install does it), or add a primary key",
        )
    elif needing and any(leaf.replica_identity != "f" for leaf in leaves):
        columns = sorted({column for each in needing for column in each.needs.old_columns})
        shown = "the whole old row" if "*" in columns else f"the old values of {', '.join(columns)}"
        yield Finding(
            rule="old-values-needed",
            severity=Severity.WARNING,
            where=table.full_name,
            text=f"triggers of {table.full_name} look at {shown}, which the WAL does not carry",
            remedy=f"ALTER TABLE {name} REPLICA IDENTITY FULL (afterwrite install does it)",
        )


def _wal_findings(atlas: Atlas, each: Judgement) -> Iterator[Finding]:
    table = atlas.table_of(each.trigger)
    if table is not None and table.kind is Kind.FOREIGN:
        yield Finding(
            rule="foreign-table",
            severity=Severity.WARNING,
            where=table.full_name,
            text=f"{table.full_name} is a foreign table: its changes are not in this WAL, so its triggers stay",
        )
    elif table is not None and any(leaf.persistence == "u" for leaf in atlas.leaves(table)):
        yield Finding(
            rule="unlogged-table",
            severity=Severity.WARNING,
            where=table.full_name,
            text=f"{table.full_name} is unlogged: its changes are not in the WAL, so its triggers stay",
            remedy=f"ALTER TABLE {quoted(table.schema, table.name)} SET LOGGED",
        )


def _trigger_findings(each: Judgement) -> Iterator[Finding]:
    trigger = each.trigger
    match trigger.enabled:
        case Enabled.ORIGIN:
            pass
        case Enabled.DISABLED:
            yield Finding(
                rule="disabled-trigger",
                severity=Severity.INFO,
                where=trigger.identity,
                text=f"{trigger.identity} is disabled: its verdict says what it would do",
            )
        case Enabled.REPLICA | Enabled.ALWAYS:
            how = "only" if trigger.enabled is Enabled.REPLICA else "also"
            yield Finding(
                rule="fires-in-replica-role",
                severity=Severity.INFO,
                where=trigger.identity,
                text=f"{trigger.identity} fires {how} for sessions with session_replication_role = replica",
            )


def _clone_findings(atlas: Atlas, judgements: Sequence[Judgement]) -> Iterator[Finding]:
    parents = {each.trigger.oid: each.trigger for each in judgements}
    for clone in atlas.inventory.clones:
        parent = parents.get(clone.parent_oid)
        if parent is not None and parent.enabled is not clone.enabled:
            yield Finding(
                rule="partition-differs",
                severity=Severity.WARNING,
                where=f"{clone.schema}.{clone.table}.{clone.name}",
                text=f"on the partition {clone.schema}.{clone.table} the trigger {clone.name} is enabled differently "
                f"({clone.enabled.value}) than on {parent.schema}.{parent.table} ({parent.enabled.value})",
            )
