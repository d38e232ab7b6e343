"""Trigger functions, after their triggers are removed: dropped when asked for, and when nothing uses them any more."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import msgspec

from afterwrite.errors import Finding, Severity
from afterwrite.migrate.backup import FunctionBackup, read_function
from afterwrite.migrate.deeds import Deed, EventKind, MigrationEvent, OnEvent, perform
from afterwrite.migrate.ledger import Silenced, read_silenced
from afterwrite.migrate.steps import remove_function_statements
from afterwrite.postgres import Database, LockPolicy, statement

_SHOWN = 3


class FunctionsRun(msgspec.Struct, frozen=True, kw_only=True):
    """Functions that were, or would be, dropped, and why others stay."""

    dropped: tuple[str, ...]
    deeds: tuple[Deed, ...]
    findings: tuple[Finding, ...]


class _User(msgspec.Struct, frozen=True):
    what: str
    trigger: str | None


async def foresee_functions(db: Database, going: Collection[str]) -> FunctionsRun:
    """What ``remove_functions`` would do once the triggers in ``going`` are removed."""
    return await _each(db, going, apply=False)


async def remove_functions(
    db: Database, *, policy: LockPolicy | None = None, on_event: OnEvent | None = None
) -> FunctionsRun:
    """Drop the functions of removed triggers that nothing else uses; the caller holds the migration lock."""
    return await _each(db, (), apply=True, policy=policy, on_event=on_event)


async def _each(
    db: Database,
    going: Collection[str],
    *,
    apply: bool,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
) -> FunctionsRun:
    silenced = await read_silenced(db)
    removed = [each for each in silenced.values() if each.removed_at is not None or each.identity in going]
    deeds: list[Deed] = []
    dropped: list[str] = []
    findings: list[Finding] = []
    for each in {each.backup.function.signature: each for each in removed}.values():
        found: list[Finding] = []
        build = partial(_build, db, each, frozenset(going), found)
        deed = await perform(db, (), build, _settled, policy=policy, on_event=on_event) if apply else await build()
        findings += found
        if deed is None:
            continue
        deeds.append(deed)
        dropped.append(each.backup.function.signature)
        if apply and on_event:
            on_event(MigrationEvent(kind=EventKind.REMOVED, subject=dropped[-1], text=deed.title))
    return FunctionsRun(dropped=tuple(dropped), deeds=tuple(deeds), findings=tuple(findings))


async def _settled() -> None:
    return None


async def _build(db: Database, each: Silenced, going: frozenset[str], findings: list[Finding]) -> Deed | None:
    """The deed for one function; None, with a finding that says why, when it has to stay."""
    findings.clear()
    backup = each.backup.function
    now = await read_function(db, backup.signature)
    if now is None or not backup.definition:
        return None
    if why := await _why_it_stays(db, backup, now, going):
        findings.append(
            Finding(rule="remove.function_stays", severity=Severity.INFO, where=backup.signature, text=f"stays: {why}")
        )
        return None
    statements = remove_function_statements(each.migration, backup)
    return Deed(title=f"drop function {backup.signature}", statements=tuple(statements))


async def _why_it_stays(db: Database, backup: FunctionBackup, now: FunctionBackup, going: frozenset[str]) -> str:
    if (now.definition, now.owner) != (backup.definition, backup.owner):
        return "somebody changed it since its trigger was silenced, and the backup has the one before"
    rows = await db.rows(_User, statement("migrate.read_function_users"), signature=backup.signature)
    users = [row.what for row in rows if row.trigger not in going]
    if not users:
        return ""
    more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
    return f"it is used by {', '.join(users[:_SHOWN])}{more}"
