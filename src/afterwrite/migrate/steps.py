"""What a migration does, as SQL that also works by hand.

Every statement that changes a trigger comes with its ledger row and its mark, so that what is done by hand in an SQL
editor is accounted for, captured and rolled back like anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from afterwrite.migrate.backup import (
    FunctionBackup,
    TriggerBackup,
    literal,
    make_function,
    make_trigger,
    restore_states,
    set_state,
)
from afterwrite.migrate.phase import Mode
from afterwrite.postgres import quoted
from afterwrite.record import EVENT_PREFIX, Emitted
from afterwrite.scan.catalog import Enabled, Trigger
from afterwrite.seal import seal


def start_statements(migration: int, plan: str) -> list[str]:
    """Begin a migration unless one goes on: its row, and the ledger's first line with the tables that there are."""
    return [
        "with begun as (\n"  # noqa: S608 - a script for people; the plan is a literal, as every value in it
        "    insert into afterwrite.migration (id, plan)\n"
        f"    select {migration}, {literal(plan)}\n"
        "     where not exists (select from afterwrite.migration where finished_at is null)\n"
        "    returning id, plan\n"
        ")\n"
        "insert into afterwrite.ledger (migration, subject, action, before, after)\n"
        "select id, 'plan', 'migration.start', afterwrite.user_tables(), pg_catalog.to_jsonb(plan) from begun"
    ]


def change_plan_statements(migration: int, plan: str) -> list[str]:
    """Go on with an edited plan; the ledger keeps the one before."""
    before = f"(select pg_catalog.to_jsonb(plan) from afterwrite.migration where id = {migration})"  # noqa: S608
    after = f"pg_catalog.to_jsonb({literal(plan)}::text)"
    return [
        ledger_row(migration, None, "plan", "migration.plan", before=before, after=after),
        f"update afterwrite.migration\n   set plan = {literal(plan)}\n where id = {migration}",  # noqa: S608
    ]


def finish_statements(migration: int) -> list[str]:
    """End a migration of which nothing is silenced any more."""
    return [
        "update afterwrite.migration set finished_at = pg_catalog.clock_timestamp(), outcome = 'rolled back'\n"  # noqa: S608
        f" where id = {migration} and finished_at is null",
        ledger_row(migration, None, "plan", "migration.finish"),
    ]


def backup_statement(migration: int, phase: int, found: TriggerBackup, definition: Trigger) -> str:
    """Keep everything that makes the trigger what it is, as it is at that moment, and as scan described it."""
    before = f"afterwrite.trigger_backup({_known_by(found)})"
    after = literal(msgspec.json.encode(definition).decode())
    return ledger_row(migration, phase, found.identity, "trigger.backup", before=before, after=after)


def silence_statements(migration: int, phase: int, mode: Mode, found: TriggerBackup, fingerprint: str) -> list[str]:
    """Turn the trigger and its clones off by name, tell it in the ledger, and mark the place in the WAL.

    Under the lock it is made sure that the trigger is what was planned: a script may be run days after it was written.

    The lock that DISABLE TRIGGER takes keeps every other writer of the table before or after this transaction in commit
    order, so the mark is the exact border between the trigger's work and what takes it over.
    """
    deed = set_state(found.relation, found.trigger, Enabled.DISABLED, only=False)
    known_as = f"{literal(found.relation)}, {literal(found.trigger)}, {literal(fingerprint)}"
    return [
        deed,
        f"select afterwrite.require_trigger({known_as})",
        ledger_row(
            migration,
            phase,
            found.identity,
            "trigger.silence",
            sql=deed,
            before=_states(found),
            after=f"pg_catalog.jsonb_build_object('mode', {literal(mode.value)}, "
            f"'states', afterwrite.trigger_states({_known_by(found)}))",
        ),
        _mark("trigger.silence", found, mode, migration, phase),
    ]


def left_statement(migration: int, phase: int, found: TriggerBackup) -> str:
    """Tell that a trigger was off before we came, and was left alone."""
    return ledger_row(migration, phase, found.identity, "trigger.left", before=_states(found))


def remove_statements(migration: int, phase: int, mode: Mode, found: TriggerBackup) -> list[str]:
    """Drop the trigger and its clones; the ledger keeps what it was like at that moment, too."""
    deed = f"drop trigger {quoted(found.trigger)} on {found.relation}"
    return [
        ledger_row(
            migration,
            phase,
            found.identity,
            "trigger.remove",
            sql=deed,
            before=f"afterwrite.trigger_backup({_known_by(found)})",
            after=f"pg_catalog.jsonb_build_object('mode', {literal(mode.value)})",
        ),
        deed,
        _mark("trigger.remove", found, mode, migration, phase),
    ]


def remove_function_statements(migration: int, function: FunctionBackup) -> list[str]:
    """Drop a function that nothing uses any more; the ledger keeps it."""
    deed = f"drop function {function.signature}"
    signature = literal(function.signature)
    return [
        ledger_row(
            migration,
            None,
            function.signature,
            "function.remove",
            sql=deed,
            before=f"afterwrite.function_backup({signature}::regprocedure)",
        ),
        deed,
    ]


def restore_function_statements(
    migration: int, phase: int, function: FunctionBackup, now: FunctionBackup | None
) -> list[str]:
    """Make a function again as it was, and tell it; ``now`` is what stands under its name, if anything does."""
    deeds = make_function(function)
    return [
        *deeds,
        ledger_row(
            migration,
            phase,
            function.signature,
            "function.restore",
            sql=";\n".join(deeds),
            before=None if now is None else literal(msgspec.json.encode(now).decode()),
            after=f"afterwrite.function_backup({literal(function.signature)}::regprocedure)",
        ),
    ]


def restore_statements(migration: int, phase: int, mode: Mode, backup: TriggerBackup, now: TriggerBackup) -> list[str]:
    """Give the trigger and its clones the exact states that they had, tell it, and mark the place in the WAL."""
    return _told_restore(migration, phase, mode, backup, now, restore_states(backup, now), before=_states(now))


def remake_statements(
    migration: int,
    phase: int,
    mode: Mode,
    backup: TriggerBackup,
    tables: Mapping[int, str],
    now: TriggerBackup | None = None,
) -> list[str]:
    """Make the trigger again as it was, tell it, and mark the place in the WAL.

    ``tables`` are its table's and the partitions' names by oid; ``now`` is what stands in its place and has to go.
    """
    at = msgspec.structs.replace(backup, relation=tables.get(backup.table_oid, backup.relation))
    deeds = make_trigger(backup, tables)
    if now is not None:
        deeds.insert(0, f"drop trigger {quoted(now.trigger)} on {now.relation}")
    before = "'{}'" if now is None else literal(msgspec.json.encode(now).decode())
    return _told_restore(migration, phase, mode, backup, at, deeds, before=before)


def _told_restore(
    migration: int,
    phase: int,
    mode: Mode,
    backup: TriggerBackup,
    at: TriggerBackup,
    deeds: Sequence[str],
    *,
    before: str,
) -> list[str]:
    return [
        *deeds,
        ledger_row(
            migration,
            phase,
            backup.identity,
            "trigger.restore",
            sql=";\n".join(deeds),
            before=before,
            after=f"afterwrite.trigger_states({_known_by(at)})",
        ),
        _mark("trigger.restore", backup, mode, migration, phase),
    ]


def forget_statements(migration: int, phase: int, mode: Mode, backup: TriggerBackup) -> list[str]:
    """Close the account of a trigger whose table is gone: there is nothing to restore, and nothing to defer."""
    return [
        ledger_row(
            migration,
            phase,
            backup.identity,
            "trigger.restore",
            sql=f"-- {backup.relation} is gone: nothing to restore",
            after="'{}'",
        ),
        _mark("trigger.restore", backup, mode, migration, phase),
    ]


def _known_by(found: TriggerBackup) -> str:
    return f"{literal(found.relation)}::regclass, {literal(found.trigger)}"


def _states(found: TriggerBackup) -> str:
    return literal(msgspec.json.encode(found.states).decode())


class Mark(str):
    """A statement that puts an event of the migration's own into the WAL; by hand it is run as it stands."""

    __slots__ = ("_content",)

    def __new__(cls, content: str) -> Mark:
        made = super().__new__(cls, _emitting(content))
        made._content = content
        return made

    def signed(self, keys: str | None) -> str:
        """The same by whoever has the key that the worker knows."""
        return _emitting(seal(EVENT_PREFIX, self._content, keys))


def _emitting(content: str) -> str:
    return f"select pg_catalog.pg_logical_emit_message(true, {literal(EVENT_PREFIX)}, {literal(content)})"


def _mark(action: str, marked: TriggerBackup, mode: Mode, migration: int, phase: int) -> str:
    metadata = {"trigger_oid": marked.oid, "mode": mode.value, "phase": phase, "migration": str(migration)}
    identity = marked.identity
    event = Emitted(
        category="migration",
        action=action,
        entity_type="trigger",
        entity_id=identity,
        summary=f"{action.replace('.', ' ')} {identity}",
        metadata=msgspec.Raw(msgspec.json.encode(metadata)),
    )
    return Mark(msgspec.json.encode(event).decode())


def ledger_row(
    migration: int | None,
    phase: int | None,
    subject: str,
    action: str,
    *,
    sql: str | None = None,
    before: str | None = None,
    after: str | None = None,
) -> str:
    """The statement that writes one row of the ledger; ``before`` and ``after`` are SQL expressions."""
    given: Sequence[tuple[str, str | None]] = (
        ("migration", None if migration is None else str(migration)),
        ("phase", None if phase is None else str(phase)),
        ("subject", literal(subject)),
        ("action", literal(action)),
        ("sql", None if sql is None else literal(sql)),
        ("before", before),
        ("after", after),
    )
    columns = [(name, value) for name, value in given if value is not None]
    names = ", ".join(name for name, _ in columns)
    values = ", ".join(value for _, value in columns)
    return f"insert into afterwrite.ledger ({names})\nvalues ({values})"
