"""Going back: every trigger that we turned off gets exactly the state that it had, newest phase first.

Goes by the ledger alone, so it needs neither the plan nor capture nor a gate, and works after a crash anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from afterwrite.defer.calls import ReplayPolicy
from afterwrite.defer.deferral import drop_deferral
from afterwrite.defer.progress import caught_up, read_standing
from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Drift, Finding, Refused, Severity
from afterwrite.migrate.backfill import Backfill, fill_windows
from afterwrite.migrate.backup import (
    FunctionBackup,
    TriggerBackup,
    decode_backup,
    read_backup,
    read_function,
    read_relations,
    render_sql,
    wanted_states,
)
from afterwrite.migrate.deeds import Deed, EventKind, MigrationEvent, OnEvent, perform, render
from afterwrite.migrate.gates import Place
from afterwrite.migrate.identity import restore_replica_identities
from afterwrite.migrate.ledger import (
    Silenced,
    migration_lock,
    moment,
    read_active,
    read_deferral_ends,
    read_silenced,
)
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.steps import (
    finish_statements,
    forget_statements,
    remake_statements,
    restore_function_statements,
    restore_statements,
)
from afterwrite.postgres import Database, LockPolicy, LockTimeout, statement
from afterwrite.record import Lsn
from afterwrite.scan.catalog import Enabled

_CATCH_UP_SECONDS = 5.0
_POLL_SECONDS = 0.05


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback did, or (``applied`` False) would do: ``deeds`` in their order, each a transaction.

    ``identities`` are the tables whose replica identity is set back, ``filled`` the legacy logs whose silent time was
    filled. ``finished``: the whole migration is rolled back.
    """

    applied: bool
    phases: tuple[int, ...]
    restored: tuple[str, ...]
    deeds: tuple[Deed, ...]
    identities: tuple[str, ...]
    findings: tuple[Finding, ...]
    filled: tuple[Backfill, ...] = ()
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
    store: Database | None = None,
    force: bool = False,
    backfill: bool = False,
    replay: ReplayPolicy | None = None,
    operator: str | None = None,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
) -> Rollback:
    """Turn the triggers of one phase, or of all (``number`` None), on again exactly as they were; make them again where
    they were removed.

    With ``force`` what somebody changed or dropped meanwhile is made as it was, too. With ``backfill`` the legacy log
    is filled for the time when its triggers were off, from the store (as ``replay`` says), and compared. Rolling back
    all also sets the replica identities back that were changed for capture, and ends the migration. Raises, after
    everything that could be restored is, when a table stayed locked or a trigger is gone.
    """
    work = _Work(
        db=db,
        store=store or db,
        place=place,
        force=force,
        backfill=backfill,
        replay=replay,
        policy=policy,
        on_event=on_event,
    )
    if not apply:
        return await _restore(work, number, apply=False)
    async with migration_lock(db, operator):
        return await _restore(work, number, apply=True)


async def restore_phase(
    db: Database,
    number: int,
    *,
    place: Place,
    store: Database | None = None,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
) -> Rollback:
    """The same for one phase, without filling anything, for a caller who holds the migration lock."""
    work = _Work(db=db, store=store or db, place=place, policy=policy, on_event=on_event)
    return await _restore(work, number, apply=True)


class _Work(msgspec.Struct, frozen=True, kw_only=True):
    db: Database
    store: Database
    place: Place
    force: bool = False
    backfill: bool = False
    replay: ReplayPolicy | None = None
    policy: LockPolicy | None = None
    on_event: OnEvent | None = None

    def say(self, kind: EventKind, phase: int, subject: str, text: str) -> None:
        if self.on_event:
            self.on_event(MigrationEvent(kind=kind, phase=phase, subject=subject, text=text))


async def _restore(work: _Work, number: int | None, *, apply: bool) -> Rollback:
    db = work.db
    silenced = [each for each in (await read_silenced(db)).values() if number is None or each.phase == number]
    deeds: list[Deed] = []
    restored: list[Silenced] = []
    findings: list[Finding] = await _await_bodies(work, silenced) if apply else []
    trouble: list[AfterwriteError] = []
    for oid, of_table in _newest_first(silenced):
        job = _Restoring(db, of_table, force=work.force)
        try:
            if apply:
                locked = list((await read_relations(db, [oid])).values())
                phase = of_table[0].phase
                deed = await perform(
                    db,
                    locked,
                    job.build,
                    job.check,
                    phase=phase,
                    policy=work.policy,
                    on_event=work.on_event,
                    stamp_key=work.place.stamp_key,
                )
            else:
                deed = await job.build()
        except (LockTimeout, DatabaseError, Drift) as error:
            if isinstance(error, ConnectionLost):
                raise
            # The other tables do not have to wait for this one's blocker, nor for what stands in its way.
            trouble.append(error if isinstance(error, LockTimeout | Drift) else _stuck(of_table, error))
            continue
        findings += job.findings
        findings += [_silent_window(each, filling=work.backfill) for each in job.restored]
        restored += job.restored
        if deed is not None:
            deeds.append(deed)
            if apply:
                names = ", ".join(each.identity for each in job.restored)
                work.say(EventKind.RESTORED, of_table[0].phase, of_table[0].backup.relation, names)
    missing = [finding for finding in findings if finding.rule == "rollback.gone"]
    if not trouble and missing:
        trouble.append(Drift(f"{missing[0].where} {missing[0].text}", remedy=missing[0].remedy))
    filled: tuple[Backfill, ...] = ()
    if apply and work.backfill:
        filled = await fill_windows(
            db, work.store, work.place, phase=number, on_event=work.on_event, replay=work.replay
        )
        findings += [finding for each in filled for finding in each.findings]
    if apply and trouble:
        raise trouble[0]
    identities: list[Deed] = []
    finished = False
    if number is None:
        identities, said = await restore_replica_identities(db, apply=apply, policy=work.policy, on_event=work.on_event)
        findings += said
        deeds += identities
        active = await read_active(db)
        if active is not None:
            deeds.append(Deed(title=f"end migration {active.id}", statements=tuple(finish_statements(active.id))))
            if apply:
                await _do(db, deeds[-1], work.on_event)
            finished = True
        if apply:
            findings += await _drop_deferrals(db, work.place)
    return Rollback(
        applied=apply,
        phases=tuple(dict.fromkeys(each.phase for _, of_table in _newest_first(silenced) for each in of_table)),
        restored=tuple(each.identity for each in restored),
        deeds=tuple(deeds),
        identities=tuple(relation for deed in identities for relation in deed.relations),
        findings=tuple(findings),
        filled=filled,
        finished=finished,
        lock_timeout_ms=(work.policy or LockPolicy()).lock_timeout_ms,
    )


async def _await_bodies(work: _Work, silenced: Sequence[Silenced]) -> list[Finding]:
    """Let deferred bodies run what is theirs before their triggers run again, and say so where they are behind.

    For a few seconds, and only while somebody runs them: going back waits for nothing that may never come.
    """
    deferred = [each for each in silenced if each.mode is Mode.DEFER]
    if not deferred:
        return []
    standing = await read_standing(work.db, work.place.source)
    if standing is None:
        return []
    now = Lsn.parse(await work.db.value(statement("migrate.send_heartbeat")))
    deadline = asyncio.get_running_loop().time() + _CATCH_UP_SECONDS
    while not await caught_up(work.db, work.store, now, source=work.place.source):
        is_hopeless = not standing.running or standing.halted_lsn is not None
        if is_hopeless or asyncio.get_running_loop().time() >= deadline:
            return [_behind(each) for each in deferred]
        await asyncio.sleep(_POLL_SECONDS)
    return []


def _behind(each: Silenced) -> Finding:
    return Finding(
        rule="rollback.behind",
        severity=Severity.WARNING,
        where=each.identity,
        text="changes of the time when it was off still wait for its body, which will run after what the trigger does "
        "from now on: a body that copies the newest value may put an older one back",
        remedy="let `afterwrite capture` catch up (`afterwrite defer status`), then look at what it wrote",
    )


async def _do(db: Database, deed: Deed, on_event: OnEvent | None) -> None:
    async def build() -> Deed:
        return deed

    async def check() -> None:
        return None

    await perform(db, (), build, check, on_event=on_event)


def _newest_first(silenced: Iterable[Silenced]) -> list[tuple[int, list[Silenced]]]:
    tables: dict[tuple[int, str, int], list[Silenced]] = {}
    for each in silenced:
        tables.setdefault((-each.phase, each.backup.relation, each.backup.table_oid), []).append(each)
    return [(oid, of_table) for (_, _, oid), of_table in sorted(tables.items(), key=lambda item: item[0])]


class _Restoring:
    """One table's triggers on their way back; built again at each attempt, from what is there then."""

    def __init__(self, db: Database, of_table: Sequence[Silenced], *, force: bool) -> None:
        self.db = db
        self.of_table = of_table
        self.force = force
        self.restored: list[Silenced] = []
        self.findings: list[Finding] = []
        self._wanted: list[tuple[Silenced, TriggerBackup | None]] = []
        self._tables: Mapping[int, str] = {}

    async def build(self) -> Deed | None:
        """What brings them back; None when none of them can be."""
        self.restored, self.findings, self._wanted = [], [], []
        self._tables = await read_relations(self.db, [self.of_table[0].backup.table_oid])
        statements: list[str] = []
        functions: set[str] = set()
        locked: dict[str, None] = {}
        for each in self.of_table:
            found = await _find(self.db, each.backup)
            if found is None and each.backup.table_oid not in self._tables:
                statements += forget_statements(each.migration, each.phase, each.mode, each.backup)
                self.findings.append(_forgotten(each))
            elif found is None and each.removed_at is None and not self.force:
                self.findings.append(_gone(each))
                continue
            else:
                statements += await self._function(each, found, functions)
                statements += self._trigger(each, found)
                self._wanted.append((each, found))
                locked |= dict.fromkeys(found.states if found else self._tables.values())
            self.restored.append(each)
        if not self.restored:
            return None
        first = self.of_table[0]
        names = ", ".join(each.backup.trigger for each in self.restored)
        return Deed(
            title=f"phase {first.phase}, {self._tables.get(first.backup.table_oid, first.backup.relation)}: "
            f"restore {names}",
            relations=tuple(locked),
            statements=tuple(statements),
        )

    async def _function(self, each: Silenced, found: TriggerBackup | None, done: set[str]) -> list[str]:
        """What brings its function back, where it is gone, or was changed and ours is asked for."""
        backup = each.backup.function
        now = found.function if found is not None else await read_function(self.db, backup.signature)
        changed = now is not None and _essence(now) != _essence(backup)
        if changed and not self.force:
            self.findings.append(_changed(each, "or its function "))
        if backup.signature in done or not (now is None or (changed and self.force)):
            return []
        done.add(backup.signature)
        in_place = await read_function(self.db, backup.signature)
        return restore_function_statements(each.migration, each.phase, backup, in_place)

    def _trigger(self, each: Silenced, found: TriggerBackup | None) -> list[str]:
        if found is None:
            return remake_statements(each.migration, each.phase, each.mode, each.backup, self._tables)
        changed = _definition(found) != _definition(each.backup)
        moved = found.trigger != each.backup.trigger or found.relation != each.backup.relation
        if changed and self.force:
            return remake_statements(each.migration, each.phase, each.mode, each.backup, self._tables, found)
        if changed and not moved:
            self.findings.append(_changed(each, ""))
        return restore_statements(each.migration, each.phase, each.mode, each.backup, found)

    async def check(self) -> None:
        """Under the locks that the deed holds: every state, and what was made again, is as the backup says."""
        for each, before in self._wanted:
            after = await _find(self.db, each.backup)
            as_it_was = after is not None and after.states == wanted_states(each.backup, after)
            if after is None or not as_it_was or (before is None and after.comment != each.backup.comment):
                raise Drift(
                    f"{each.identity} was changed while it was being restored; nothing was done to its table",
                    remedy="run the same command again",
                )


async def _find(db: Database, backup: TriggerBackup) -> TriggerBackup | None:
    """The trigger as it is now: the same one, whatever it is called today, else one of its name on its table.

    Where that table is gone, too (in a database that was restored from a dump all oids are others), one of its name on
    a table of that name, if it is off: nobody else would turn it on again.
    """
    text = await db.value(statement("migrate.read_backup_by_oid"), oid=backup.oid)
    if text is not None:
        found = decode_backup(text)
        if found.table_oid == backup.table_oid or found.trigger == backup.trigger:
            return found
    relation = (await read_relations(db, [backup.table_oid])).get(backup.table_oid)
    if relation is not None and (found := await read_backup(db, relation, backup.trigger)) is not None:
        return found
    found = await read_backup(db, backup.relation, backup.trigger)
    if found is None or any(state is not Enabled.DISABLED for state in found.states.values()):
        return None
    return found


def _essence(function: FunctionBackup) -> tuple[object, ...]:
    """What makes a function what it is, whichever oid it has today."""
    return function.signature, function.definition, function.owner, function.comment, function.granted


def _definition(backup: TriggerBackup) -> tuple[object, ...]:
    return backup.create, backup.function.signature, backup.deferrable, backup.initially_deferred


def _changed(each: Silenced, what: str) -> Finding:
    how = "removed" if each.removed_at is not None else "off"
    back = f"afterwrite migrate rollback --phase {each.phase} --force --apply"
    return Finding(
        rule="rollback.changed",
        severity=Severity.WARNING,
        where=each.identity,
        text=f"{what}was changed by somebody while it was {how}; it is turned on as it is now",
        remedy=f"to have it as it was: `{back}` in place of this, or afterwards by hand, from the row trigger.backup "
        "of afterwrite.ledger",
    )


def _silent_window(each: Silenced, *, filling: bool) -> Finding:
    if each.mode is Mode.DEFER:
        what = "its effects of that time are deferred; those that still wait run while `afterwrite capture` runs"
    elif filling:
        what = "its legacy rows for that time are filled in from what was captured"
    else:
        what = "its legacy rows for that time are in the store and not in the legacy log"
    return Finding(
        rule="rollback.silent_window",
        severity=Severity.INFO,
        where=each.identity,
        text=f"was off since {moment(each.at)}: {what}",
    )


def _stuck(of_table: Sequence[Silenced], error: DatabaseError) -> Drift:
    names = ", ".join(each.identity for each in of_table)
    return Drift(
        f"{names} could not be made as it was: {error}",
        remedy="mend what the server names, then run the same command again; or by hand, then roll back once more:\n"
        + "\n".join(render_sql(each.backup) for each in of_table),
    )


def _forgotten(each: Silenced) -> Finding:
    return Finding(
        rule="rollback.forgotten",
        severity=Severity.WARNING,
        where=each.identity,
        text="its table was dropped since: there is nothing to turn on, and a table of that name is another one",
        remedy="see that the table of that name has the triggers that it should: `afterwrite scan`",
    )


def _gone(each: Silenced) -> Finding:
    return Finding(
        rule="rollback.gone",
        severity=Severity.ERROR,
        where=each.identity,
        text="was silenced by us and dropped by somebody else since: it cannot be turned on",
        remedy="run the same command with --force, which makes it again as it was, or by hand, then roll back once "
        f"more:\n{render_sql(each.backup)}",
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
