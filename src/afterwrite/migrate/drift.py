"""What somebody else does to the triggers while a migration goes on: seen within a minute, named, and put on record.

The worker looks every half minute, a run that soaks does, and so does every `migrate status`.
"""

from __future__ import annotations

import msgspec

from afterwrite.errors import Finding, Severity
from afterwrite.migrate.ledger import Action, Silenced, moment, read_active, read_silenced, write_entry
from afterwrite.migrate.plan import Fires, LeftTrigger, PlannedTrigger, entries, read_plan
from afterwrite.postgres import Database, statement


class TriggerNow(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger as it is: ``states`` are those of itself and its clones (pg_trigger.tgenabled)."""

    schema: str
    table: str
    trigger: str
    relation: str
    function: str
    fingerprint: str
    states: list[str]

    @property
    def identity(self) -> str:
        """``schema.table.trigger``, as in the plan and the ledger."""
        return f"{self.schema}.{self.table}.{self.trigger}"

    @property
    def on(self) -> bool:
        """Whether it, or one of its clones, can fire."""
        return any(state != "D" for state in self.states)


class NewTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that was not there when the migration began, and whether capture reads it."""

    relation: str
    captured: bool


class _Open(msgspec.Struct, frozen=True, kw_only=True):
    subject: str
    rule: str


async def find_drift(db: Database) -> list[Finding]:
    """What is not as the running migration's plan and ledger have it, and advice for tables that are new.

    Nothing where no migration runs. Reads only.
    """
    active = await read_active(db)
    if active is None:
        return []
    plan = read_plan(active.plan)
    now = {each.identity: each for each in await db.rows(TriggerNow, statement("migrate.read_triggers_now"))}
    silenced = await read_silenced(db)
    phases = {trigger.trigger: phase.number for phase in plan.phases for trigger in phase.triggers}
    planned = {entry.trigger: entry for _, entry in entries(plan)}
    found: list[Finding] = []
    for identity, entry in planned.items():
        found += _judge(entry, phases.get(identity), now.get(identity), silenced.get(identity))
    functions = {now[identity].function for identity in phases if identity in now}
    functions |= {each.backup.function.signature for each in silenced.values()}
    found += [_added(each, functions) for identity, each in now.items() if identity not in planned]
    tables = await db.rows(NewTable, statement("migrate.read_new_tables"), migration=active.id)
    triggers = {each.relation for each in now.values() if each.function in functions}
    return [*found, *(_new_table(table) for table in tables if table.relation not in triggers)]


async def note_drift(db: Database) -> list[Finding]:
    """Look, and tell the ledger what is new and what is over; gives what is new. Call it outside a transaction."""
    active = await read_active(db)
    if active is None:
        return []
    found = {(each.where, each.rule): each for each in await find_drift(db)}
    known = {(row.subject, row.rule) for row in await db.rows(_Open, statement("migrate.read_open_drift"))}
    fresh = [each for key, each in found.items() if key not in known]
    for each in fresh:
        after = {"rule": each.rule, "text": each.text, "remedy": each.remedy}
        await write_entry(db, Action.DRIFT_SEEN, each.where, migration=active.id, after=after)
    for subject, rule in known - set(found):
        await write_entry(db, Action.DRIFT_OVER, subject, migration=active.id, after={"rule": rule})
    return fresh


def _judge(
    entry: PlannedTrigger | LeftTrigger, phase: int | None, now: TriggerNow | None, ours: Silenced | None
) -> list[Finding]:
    back = f"`afterwrite migrate rollback --phase {phase} --apply`"
    again = f"`afterwrite migrate run --phase {phase} --apply`"
    review = "run `afterwrite plan --again` and review the difference"
    if now is None:
        if ours is not None and ours.removed_at is not None:
            return []
        if ours is not None:
            text = "was silenced by us and dropped by somebody else"
            return [_drift("gone", entry.trigger, text, f"{back} with --force makes it again as it was")]
        return [_drift("gone", entry.trigger, "is in the plan and not in the database", review)]
    found: list[Finding] = []
    if ours is not None and now.on:
        how = "removed" if ours.removed_at is not None else "silenced"
        since = ours.removed_at or ours.at
        text = f"was {how} on {moment(since)} by {ours.by} and is on again: its work happens twice"
        found.append(_drift("reenabled", entry.trigger, text, f"{again}, or {back}"))
    if ours is None and not now.on and entry.enabled is not Fires.NEVER:
        text = "was turned off by somebody else: what it did is not done any more, unless something else does it"
        remedy = f"turn it on again: alter table {now.relation} enable trigger {now.trigger}"
        found.append(_drift("disabled", entry.trigger, text, remedy))
    if now.fingerprint != entry.fingerprint:
        found.append(_drift("changed", entry.trigger, _what_changed(now, entry.fingerprint), review))
    return found


def _what_changed(now: TriggerNow, planned: str) -> str:
    half = (len(planned) + len("sha256:")) // 2
    own, function = now.fingerprint[:half] != planned[:half], now.fingerprint[half:] != planned[half:]
    if own and function:
        return f"and its function {now.function} were changed after the plan was written"
    return (
        f"calls {now.function}, which was changed after the plan was written"
        if function
        else ("was changed after the plan was written")
    )


def _added(each: TriggerNow, functions: set[str]) -> Finding:
    advice = (
        f"it calls {each.function}, as triggers of the plan do: `afterwrite plan --again` gives it a place, "
        "`afterwrite install --apply` captures its table"
        if each.function in functions
        else "`afterwrite scan` says what it is, `afterwrite plan --again` gives it a place"
    )
    return _drift(
        "added", each.identity, "was added after the plan was written, and is in none of its sections", advice
    )


def _new_table(table: NewTable) -> Finding:
    text = "is a new table, which no trigger logs" + (
        " and which is captured" if table.captured else " nor capture reads"
    )
    remedy = (
        None
        if table.captured
        else (
            f"if its changes are to be kept: alter publication afterwrite add table only {table.relation}, then "
            "`afterwrite install --apply`"
        )
    )
    return Finding(rule="migrate.new_table", severity=Severity.INFO, where=table.relation, text=text, remedy=remedy)


def _drift(rule: str, where: str, text: str, remedy: str) -> Finding:
    return Finding(rule=f"migrate.drift.{rule}", severity=Severity.ERROR, where=where, text=text, remedy=remedy)
