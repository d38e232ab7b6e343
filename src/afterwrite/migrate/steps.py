"""What a migration does, as SQL that also works by hand.

Every statement that changes a trigger comes with its ledger row and its mark, so that what is done by hand in an SQL
editor is accounted for, captured and rolled back like anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from afterwrite.activity import EVENT_PREFIX, Emitted
from afterwrite.migrate.backup import TriggerBackup, literal, restore_states, set_state
from afterwrite.migrate.phase import Mode
from afterwrite.scan.catalog import Enabled


def start_statements(migration: int, plan: str) -> list[str]:
    """Begin a migration: its row, and the first line of its ledger."""
    return [
        f"insert into afterwrite.migration (id, plan)\nvalues ({migration}, {literal(plan)})",
        ledger_row(migration, None, "plan", "migration.start", after=f"pg_catalog.to_jsonb({literal(plan)}::text)"),
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


def backup_statement(migration: int, phase: int, found: TriggerBackup) -> str:
    """Keep everything that makes the trigger what it is, as it is at that moment."""
    before = f"afterwrite.trigger_backup({_known_by(found)})"
    return ledger_row(migration, phase, found.identity, "trigger.backup", before=before)


def silence_statements(migration: int, phase: int, mode: Mode, found: TriggerBackup) -> list[str]:
    """Turn the trigger and its clones off by name, tell it in the ledger, and mark the place in the WAL.

    The lock that DISABLE TRIGGER takes keeps every other writer of the table before or after this transaction in commit
    order, so the mark is the exact border between the trigger's work and what takes it over.
    """
    deed = set_state(found.relation, found.trigger, Enabled.DISABLED, only=False)
    return [
        deed,
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


def restore_statements(migration: int, phase: int, mode: Mode, backup: TriggerBackup, now: TriggerBackup) -> list[str]:
    """Give the trigger and its clones the exact states that they had, tell it, and mark the place in the WAL."""
    deeds = restore_states(backup, now)
    return [
        *deeds,
        ledger_row(
            migration,
            phase,
            backup.identity,
            "trigger.restore",
            sql=";\n".join(deeds),
            before=_states(now),
            after=f"afterwrite.trigger_states({_known_by(now)})",
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
    content = literal(msgspec.json.encode(event).decode())
    return f"select pg_catalog.pg_logical_emit_message(true, {literal(EVENT_PREFIX)}, {content})"


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
