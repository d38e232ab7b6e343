"""Going back: every trigger that we turned off gets exactly the state that it had, newest phase first.

Goes by the ledger alone, so it needs neither the plan nor capture nor a gate, and works after a crash anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from afterwrite.defer.deferral import drop_deferral
from afterwrite.errors import AfterwriteError, Drift, Finding, Refused, Severity
from afterwrite.migrate.backup import TriggerBackup, decode_backup, read_backup, render_sql, wanted_states
from afterwrite.migrate.deeds import Deed, EventKind, MigrationEvent, OnEvent, perform, render
from afterwrite.migrate.gates import Place
from afterwrite.migrate.identity import restore_replica_identities
from afterwrite.migrate.ledger import Silenced, migration_lock, read_active, read_deferral_ends, read_silenced
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.steps import finish_statements, forget_statements, restore_statements
from afterwrite.postgres import Database, LockPolicy, LockTimeout, statement


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback did, or (``applied`` False) would do: ``deeds`` in their order, each a transaction.

    ``identities`` are the tables whose replica identity is set back. ``finished``: the whole migration is rolled back.
    """

    applied: bool
    phases: tuple[int, ...]
    restored: tuple[str, ...]
    deeds: tuple[Deed, ...]
    identities: tuple[str, ...]
    findings: tuple[Finding, ...]
    finished: bool
    lock_timeout_ms: int

    @property
    def sql(self) -> str:
        """The deeds as a script that also works by hand in an SQL editor."""
        return render(self.deeds, LockPolicy(lock_timeout_ms=self.lock_timeout_ms))


async def rollback_phase(
    db: Database,
    number: int | None,
    *,
    place: Place,
    apply: bool,
    operator: str | None = None,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
) -> Rollback:
    """Turn the triggers of one phase, or of all (``number`` None), on again exactly as they were.

    Rolling back all also sets the replica identities back that were changed for capture, and ends the migration. Legacy
    rows for the time when a trigger was off are in the store and not in the legacy log: a finding says which time.
    Raises, after everything that could be restored is, when a table stayed locked or a trigger is gone.
    """
    if not apply:
        return await _restore(db, number, place=place, apply=False, policy=policy, on_event=on_event)
    async with migration_lock(db, operator):
        return await _restore(db, number, place=place, apply=True, policy=policy, on_event=on_event)


async def restore_phase(
    db: Database, number: int, *, place: Place, policy: LockPolicy | None = None, on_event: OnEvent | None = None
) -> Rollback:
    """The same for one phase, for a caller who holds the migration lock."""
    return await _restore(db, number, place=place, apply=True, policy=policy, on_event=on_event)


async def _restore(
    db: Database,
    number: int | None,
    *,
    place: Place,
    apply: bool,
    policy: LockPolicy | None,
    on_event: OnEvent | None,
) -> Rollback:
    silenced = [each for each in (await read_silenced(db)).values() if number is None or each.phase == number]
    deeds: list[Deed] = []
    restored: list[str] = []
    findings: list[Finding] = []
    trouble: list[AfterwriteError] = []
    for relation, of_table in _newest_first(silenced):
        try:
            deed, ours, said = await _restore_table(
                db, relation, of_table, apply=apply, policy=policy, on_event=on_event
            )
        except LockTimeout as error:
            trouble.append(error)  # the other tables do not have to wait for this one's blocker
            continue
        findings += said
        restored += ours
        if deed is not None:
            deeds.append(deed)
            if apply and on_event:
                on_event(
                    MigrationEvent(
                        kind=EventKind.RESTORED, phase=of_table[0].phase, subject=relation, text=", ".join(ours)
                    )
                )
    missing = [finding for finding in findings if finding.rule == "rollback.gone"]
    if not trouble and missing:
        trouble.append(Drift(f"{missing[0].where} {missing[0].text}", remedy=missing[0].remedy))
    if apply and trouble:
        raise trouble[0]
    identities: list[Deed] = []
    finished = False
    if number is None:
        identities, said = await restore_replica_identities(db, apply=apply, policy=policy, on_event=on_event)
        findings += said
        deeds += identities
        active = await read_active(db)
        if active is not None:
            deeds.append(Deed(title=f"end migration {active.id}", statements=tuple(finish_statements(active.id))))
            if apply:
                await _do(db, deeds[-1], on_event)
            finished = True
        if apply:
            findings += await _drop_deferrals(db, place)
    return Rollback(
        applied=apply,
        phases=tuple(dict.fromkeys(each.phase for _, of_table in _newest_first(silenced) for each in of_table)),
        restored=tuple(restored),
        deeds=tuple(deeds),
        identities=tuple(relation for deed in identities for relation in deed.relations),
        findings=tuple(findings),
        finished=finished,
        lock_timeout_ms=(policy or LockPolicy()).lock_timeout_ms,
    )


async def _do(db: Database, deed: Deed, on_event: OnEvent | None) -> None:
    async def build() -> Deed:
        return deed

    async def check() -> None:
        return None

    await perform(db, (), build, check, on_event=on_event)


def _newest_first(silenced: Iterable[Silenced]) -> list[tuple[str, list[Silenced]]]:
    tables: dict[tuple[int, str], list[Silenced]] = {}
    for each in silenced:
        tables.setdefault((-each.phase, each.backup.relation), []).append(each)
    return [(relation, of_table) for (_, relation), of_table in sorted(tables.items())]


async def _restore_table(
    db: Database,
    relation: str,
    of_table: Sequence[Silenced],
    *,
    apply: bool,
    policy: LockPolicy | None,
    on_event: OnEvent | None,
) -> tuple[Deed | None, list[str], list[Finding]]:
    now: dict[str, TriggerBackup] = {}
    ours: list[str] = []
    findings: list[Finding] = []

    async def build() -> Deed | None:
        now.clear()
        ours.clear()
        findings.clear()
        statements: list[str] = []
        for each in of_table:
            found = await _find(db, each.backup)
            if found is not None:
                now[each.identity] = found
                statements += restore_statements(each.migration, each.phase, each.mode, each.backup, found)
                findings.extend(_silent_window(each, found))
            elif await db.value(statement("migrate.has_table"), relation=relation):
                findings.append(_gone(each))
                continue
            else:
                statements += forget_statements(each.migration, each.phase, each.mode, each.backup)
            ours.append(each.identity)
        if not ours:
            return None
        relations = tuple(dict.fromkeys(table for found in now.values() for table in found.states))
        names = ", ".join(each.backup.trigger for each in of_table if each.identity in ours)
        return Deed(
            title=f"phase {of_table[0].phase}, {relation}: restore {names}",
            relations=relations,
            statements=tuple(statements),
        )

    async def check() -> None:
        # Under the locks that the deed holds: every state is the one that the backup says.
        for each in of_table:
            if (found := now.get(each.identity)) is None:
                continue
            after = await _find(db, each.backup)
            if after is None or after.states != wanted_states(each.backup, after):
                raise Drift(
                    f"{each.identity} was changed while it was being restored; nothing was done to {found.relation}",
                    remedy="run the same command again",
                )

    if not apply:
        return await build(), list(ours), list(findings)
    locked = list(dict.fromkeys(table for each in of_table for table in each.backup.states))
    deed = await perform(db, locked, build, check, phase=of_table[0].phase, policy=policy, on_event=on_event)
    return deed, list(ours), list(findings)


async def _find(db: Database, backup: TriggerBackup) -> TriggerBackup | None:
    """The trigger as it is now: the same one, whatever it is called today, else one of its name on its table."""
    text = await db.value(statement("migrate.read_backup_by_oid"), oid=backup.oid)
    if text is not None:
        return decode_backup(text)
    return await read_backup(db, backup.relation, backup.trigger)


def _silent_window(each: Silenced, found: TriggerBackup) -> Iterable[Finding]:
    if found.create != each.backup.create or found.function != each.backup.function:
        yield Finding(
            rule="rollback.changed",
            severity=Severity.WARNING,
            where=each.identity,
            text="or its function was changed by somebody while it was off; it is turned on as it is now",
            remedy="compare it with the row trigger.backup of afterwrite.ledger",
        )
    what = (
        "its effects of that time are deferred; those that still wait run while `afterwrite capture` runs"
        if each.mode is Mode.DEFER
        else "its legacy rows for that time are in the store and not in the legacy log"
    )
    yield Finding(
        rule="rollback.silent_window",
        severity=Severity.INFO,
        where=each.identity,
        text=f"was off since {each.at:%Y-%m-%d %H:%M:%S %Z}: {what}",
    )


def _gone(each: Silenced) -> Finding:
    return Finding(
        rule="rollback.gone",
        severity=Severity.ERROR,
        where=each.identity,
        text="was silenced by us and dropped by somebody else since: it cannot be turned on",
        remedy=f"make it again, then roll back once more:\n{render_sql(each.backup)}",
    )


async def _drop_deferrals(db: Database, place: Place) -> list[Finding]:
    """Drop the functions of deferrals that have come to their end; those that have not are said, and left."""
    findings: list[Finding] = []
    for identity, pending in (await read_deferral_ends(db, place.source)).items():
        why = "changes of the time when it was off are still to be run"
        if not pending:
            try:
                await drop_deferral(db, identity, source=place.source)
                continue
            except Refused as error:
                why = str(error)
        findings.append(
            Finding(
                rule="rollback.deferral",
                severity=Severity.INFO,
                where=identity,
                text=f"its transplanted body stays for now: {why}",
                remedy="when the deferred bodies have caught up, run `afterwrite migrate rollback --all --apply` again",
            )
        )
    return findings
