"""The judge: from what every trigger does to a verdict for each, with its reasons.

    keep    it shapes or refuses the write, or somebody depends on its effect at once
    review  a part of it cannot be known
    defer   it has effects that may follow a moment after the commit
    retire  it only appends to logs

Pure. Certain evidence to keep wins over everything; then what cannot be known; then the stricter of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from afterwrite.scan import rules
from afterwrite.scan.catalog import Inventory
from afterwrite.scan.facts import Body, Delete, Update
from afterwrite.scan.needs import needs
from afterwrite.scan.rules import Case, Rule
from afterwrite.scan.verdicts import Eventual, Judgement, Needs, Reason, Verdict
from afterwrite.scan.world import World

__all__ = ["Judgement", "Needs", "Reason", "Verdict", "judge"]

_KEPT_FOR_EFFECT = frozenset(
    rules.rule_name(rule)
    for rule in (
        rules.extension_owned,
        rules.instead_of,
        rules.constraint_trigger,
        rules.feeds_a_setting,
        rules.sets_sequence,
        rules.writes_own_table,
        rules.enforced_target,
        rules.feeds_a_foreign_key,
        rules.feeds_a_policy,
        rules.feeds_a_constraint,
        rules.reads_own_write,
        rules.feeds_a_check,
        rules.gives_its_key,
    )
)


def judge(
    inventory: Inventory, bodies: Mapping[int, Body], functions: Mapping[int, Body] | None = None
) -> tuple[Judgement, ...]:
    """A verdict for every trigger of the inventory, in its order.

    ``bodies`` are the triggers' (by trigger oid) as ``follow`` gives them; ``functions`` (by oid) what other functions
    do, which is evidence against a table being only a log.
    """
    world = World(inventory, bodies, functions or {})
    cases = [Case(trigger, world) for trigger in inventory.triggers]
    kept = {case.trigger.oid: _apply(rules.KEEP, case) for case in cases}
    _spread(cases, kept)
    return tuple(_judge(case, kept[case.trigger.oid]) for case in cases)


def _spread(cases: Iterable[Case], kept: dict[int, list[Reason]]) -> None:
    """What feeds a keeper is kept; and being kept for its effect, it makes keepers' food of what it reads itself."""
    own: set[int] = set()
    for case in cases:
        if why := {reason.rule for reason in kept[case.trigger.oid]} & _KEPT_FOR_EFFECT:
            if why == {"writes-own-table"}:
                own.add(case.trigger.oid)
            case.world.add_keeper(case.trigger, own=case.trigger.oid in own)
    # What is kept for its own table alone may turn out to be wanted at once by others, too.
    waiting = [case for case in cases if not kept[case.trigger.oid] or case.trigger.oid in own]
    while waiting:
        found = [(case, _apply(rules.LATE_KEEP, case)) for case in waiting]
        new = [(case, reasons) for case, reasons in found if reasons]
        if not new:
            break
        for case, reasons in new:
            if case.trigger.oid not in own:
                kept[case.trigger.oid] = reasons
            case.world.add_keeper(case.trigger)
        waiting = [case for case, reasons in found if not reasons]
    for case in cases:
        if kept[case.trigger.oid]:
            kept[case.trigger.oid] += _apply(rules.LATE_KEEP, case)


def _judge(case: Case, kept: list[Reason]) -> Judgement:
    doubts = _apply(rules.REVIEW, case)
    effects = _apply(rules.DEFER, case)
    appends = _apply(rules.RETIRE, case)
    if kept:
        verdict = Verdict.KEEP
        said = {reason.line for reason in kept}
        effects = [reason for reason in effects if reason.line not in said]
    elif doubts:
        verdict = Verdict.REVIEW
    elif effects:
        verdict = Verdict.DEFER
    elif appends:
        verdict = Verdict.RETIRE
    else:  # no rule spoke: that is a gap in the rules, and no licence
        verdict = Verdict.REVIEW
        doubts = [Reason(rule="unclear", line=None, text="no rule says what this trigger is for")]
    return Judgement(
        trigger=case.trigger,
        verdict=verdict,
        reasons=tuple(dict.fromkeys((*kept, *doubts, *effects, *appends))),
        notes=_notes(case),
        log_tables=_names(table.full_name for table, _ in case.appends),
        effects=_names(table.full_name for table, _ in case.effects),
        channels=_names(fact.channel for fact in case.body.notifies),
        eventual=_eventual(case),
        needs=needs(case),
    )


def _apply(listed: Iterable[Rule], case: Case) -> list[Reason]:
    return [reason for rule in listed for reason in rule(case)]


def _eventual(case: Case) -> tuple[Eventual, ...]:
    """The tables that would follow a moment after the commit, and who would see that."""
    columns: dict[int, set[str] | None] = {}
    for table, write in case.effects:
        written = set(write.columns) if isinstance(write, Update) else None
        before = columns.get(table.oid, set[str]())
        columns[table.oid] = None if written is None or before is None else before | written
    tables = {table.oid: table for table, _ in case.effects}
    return tuple(
        Eventual(
            table=table.full_name,
            columns=_names(columns[oid] or ()),
            noticed_by=tuple(dict.fromkeys(case.world.noticed_by(table, case.trigger))),
        )
        for oid, table in tables.items()
    )


def _notes(case: Case) -> tuple[Reason, ...]:
    found: list[Reason] = []
    for table, _ in case.appends:
        found += [
            Reason(rule="log-table", line=None, text=f"{table.full_name}: {note}")
            for note in case.world.log(table).notes
        ]
        if any(isinstance(write, Delete) and other.oid == table.oid for other, write in case.writes):
            found.append(Reason(rule="prunes-log", line=None, text=f"also deletes old rows of {table.full_name}"))
    if case.trigger.level.value == "statement" and not (case.trigger.old_table or case.trigger.new_table):
        text = "fires once a statement, also for statements that touch no row: those leave nothing in the WAL"
        found.append(Reason(rule="statement-level", line=None, text=text))
    if case.trigger.columns:
        text = (
            f"fires when a statement names {', '.join(case.trigger.columns)}; the WAL only tells which values changed"
        )
        found.append(Reason(rule="update-of", line=None, text=text))
    if case.trigger.timing.value == "before" and not case.body.new_assignments:
        text = "fires before the write: to be deferred, it must be made again as AFTER"
        found += [Reason(rule="fires-before", line=None, text=text)] if case.effects or case.body.notifies else []
    for table, _ in case.appends:
        if table.persistence == "u":
            text = f"{table.full_name} is unlogged: its rows are not in the WAL, so that proof has nothing to compare"
            found.append(Reason(rule="unlogged-log", line=None, text=text))
    for line in case.body.exception_blocks:
        found.append(Reason(rule="exception-block", line=line, text="opens a subtransaction for every row"))
    return tuple(dict.fromkeys(found))


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
