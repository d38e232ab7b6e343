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
from afterwrite.scan.catalog import Event, Inventory
from afterwrite.scan.facts import Body, Delete
from afterwrite.scan.rules import Case, Rule
from afterwrite.scan.verdicts import Judgement, Needs, Reason, Verdict
from afterwrite.scan.world import World

__all__ = ["Judgement", "Needs", "Reason", "Verdict", "judge"]

_CONTEXT_SESSIONS = frozenset({"current_user", "session_user", "user", "current_role"})
_SESSION_ONLY = frozenset(
    {
        *("inet_client_addr", "inet_client_port", "inet_server_addr", "pg_backend_pid", "current_query"),
        *("txid_current", "pg_current_xact_id", "txid_current_if_assigned", "pg_current_xact_id_if_assigned"),
        *("getpgusername", "statement_timestamp"),
    }
)


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
    for case in cases:
        if any(reason.rule in _KEPT_FOR_EFFECT for reason in kept[case.trigger.oid]):
            case.world.add_keeper(case.trigger)
    waiting = [case for case in cases if not kept[case.trigger.oid]]
    while waiting:
        found = [(case, _apply(rules.LATE_KEEP, case)) for case in waiting]
        new = [(case, reasons) for case, reasons in found if reasons]
        if not new:
            break
        for case, reasons in new:
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
        needs=needs(case),
    )


def _apply(listed: Iterable[Rule], case: Case) -> list[Reason]:
    return [reason for rule in listed for reason in rule(case)]


def needs(case: Case) -> Needs:
    """What must be there for the trigger to move."""
    body, home = case.body, case.home
    key = frozenset(home.primary_key) if home is not None else frozenset[str]()
    old = body.old_columns if {Event.UPDATE, Event.DELETE}.intersection(case.trigger.events) else frozenset[str]()
    settings = _names(fact.name or "?" for fact in body.settings if not fact.written)
    asked = {fact.name for fact in body.sessions}
    lookups = {table.full_name for read in body.reads if (table := case.world.table(read)) is not None}
    return Needs(
        replica_identity_full=bool(old - key),
        old_columns=_names(old - key),
        context=bool(settings) or bool(asked & (_CONTEXT_SESSIONS | _SESSION_ONLY)),
        settings=settings,
        session=_names(asked & (_SESSION_ONLY | _CONTEXT_SESSIONS)),
        lookups=_names(lookups),
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
    for line in case.body.exception_blocks:
        found.append(Reason(rule="exception-block", line=line, text="opens a subtransaction for every row"))
    return tuple(dict.fromkeys(found))


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
