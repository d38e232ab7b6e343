"""Doing it: one phase, or all of them with their soaks. Observe, take one step, tell the ledger; again.

::

    look ──▶ measure ──▶ next_step ──▶ Silence   a table at a time: verify, back up, prepare, switch off, mark, tell
      ▲                      │         Restore   the phase goes back on by itself
      └──────────────────────┴──────── Wait, Soak, Done, Halt

Nothing is remembered between two rounds, so a crash anywhere is followed by the same run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import assert_never

import msgspec

from afterwrite.defer.calls import OnError
from afterwrite.defer.deferral import plan_deferral
from afterwrite.errors import Drift, Finding, GateNotMet, Refused, Severity
from afterwrite.migrate.backup import TriggerBackup, read_backup
from afterwrite.migrate.deeds import Deed, EventKind, MigrationEvent, OnEvent, perform, render
from afterwrite.migrate.drift import note_drift
from afterwrite.migrate.functions import FunctionsRun, foresee_functions, remove_functions
from afterwrite.migrate.gates import Place, soak_gate
from afterwrite.migrate.ledger import (
    Action,
    Migration,
    migration_lock,
    moment,
    next_id,
    read_active,
    read_pause,
    read_phase_rows,
    read_silenced,
    refuse_paused,
    write_entry,
)
from afterwrite.migrate.observe import Look, conclude, findings_of, look, measure
from afterwrite.migrate.overrides import refuse_certain
from afterwrite.migrate.phase import (
    Done,
    Gate,
    Goal,
    Halt,
    Mode,
    Observation,
    Remove,
    Restore,
    Silence,
    Soak,
    State,
    Wait,
    next_step,
    state_of,
)
from afterwrite.migrate.plan import Phase, Plan, PlannedTrigger, entries, fingerprint, write_plan
from afterwrite.migrate.pulse import note_pulse
from afterwrite.migrate.rollback import Rollback, restore_phase
from afterwrite.migrate.steps import (
    backup_statement,
    change_plan_statements,
    left_statement,
    remove_statements,
    silence_statements,
    start_statements,
)
from afterwrite.postgres import Database, LockPolicy, statement
from afterwrite.scan.catalog import Enabled, Trigger, read_inventory

_WAIT_PAUSE = 0.5
_DRIFT_SECONDS = 15.0


class PhaseRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of a phase did, or (``applied`` False) would do: ``deeds`` in their order, each a transaction.

    ``left`` are triggers that were off before us. ``gates`` are as last measured.
    """

    number: int
    title: str
    applied: bool
    state: State
    gates: tuple[Gate, ...]
    deeds: tuple[Deed, ...]
    silenced: tuple[str, ...]
    left: tuple[str, ...]
    findings: tuple[Finding, ...]
    lock_timeout_ms: int

    @property
    def sql(self) -> str:
        """The deeds as a script that also works by hand in an SQL editor."""
        return render(self.deeds, LockPolicy(lock_timeout_ms=self.lock_timeout_ms))


class Control:
    """What somebody at the keyboard wants: a pause before the next deed, the phase taken back, or to leave."""

    def __init__(self) -> None:
        self.paused = False
        self.back = False
        self.left = False


class Migrator:
    """A plan, the databases it is about, and who asks. Give the same to any number of runs."""

    def __init__(
        self,
        db: Database,
        plan: Plan,
        place: Place,
        *,
        store: Database | None = None,
        operator: str | None = None,
        policy: LockPolicy | None = None,
        on_event: OnEvent | None = None,
        control: Control | None = None,
    ) -> None:
        self.db = db
        self.store = store or db
        self.plan = plan
        self.text = write_plan(plan)
        self.place = place
        self.operator = operator
        self.policy = policy or LockPolicy()
        self.on_event = on_event
        self.control = control or Control()
        self._known = {entry.trigger for _, entry in entries(plan)}
        self._triggers: dict[str, Trigger] = {}
        # What was said of a pause, once.
        self._paused: str | None = None

    def say(self, kind: EventKind, phase: int, text: str = "", **more: object) -> None:
        """Tell whoever listens."""
        if self.on_event:
            event = MigrationEvent(kind=kind, phase=phase, text=text)
            self.on_event(msgspec.structs.replace(event, **more))

    async def observe(
        self, phase: Phase, *, soak_left: float | None = None, note: bool = True
    ) -> tuple[Look, Observation]:
        """The phase as it is now, with every gate measured; ``note`` what the server counts, to compare with later."""
        if note:
            await note_pulse(self.db)
        seen = await look(self.db, phase, self.place)
        readings = await measure(self.db, self.store, seen, self.place, soaking=soak_left is not None)
        observation = conclude(seen, readings, Goal.SILENCED, soak_left=soak_left)
        self.say(EventKind.GATES, phase.number, gates=tuple(observation.gates), seconds=soak_left)
        return seen, observation

    async def show(self, phase: Phase) -> PhaseRun:
        """The dry run: what ``advance`` would do now, and how the gates stand. Raises Drift as it would."""
        await self._require_consistency()
        await self._read_triggers(phase)
        seen, observation = await self.observe(phase, note=False)
        if isinstance(step := next_step(observation), Halt):
            raise Drift(step.reason, remedy=step.remedy)
        deeds = await self._plan_deeds(seen)
        on = tuple(trigger.identity for trigger in observation.triggers if trigger.on)
        return self._run(phase, observation, seen, applied=False, deeds=deeds, silenced=on)

    async def advance(self, phase: Phase, *, wait_seconds: float = 0.0) -> PhaseRun:
        """Bring the phase to ``silenced``; the caller holds the migration lock.

        Raises GateNotMet when a gate does not hold within ``wait_seconds``, and Drift when the database is not what the
        plan says; nothing is done then.
        """
        await self._require_consistency()
        await self._read_triggers(phase)
        deadline = asyncio.get_running_loop().time() + wait_seconds
        deeds: list[Deed] = []
        silenced: list[str] = []
        while True:
            await self._obey(phase, locked=True)
            seen, observation = await self.observe(phase)
            step = next_step(observation)
            match step:
                case Silence():
                    if not await self._allowed(phase):
                        continue  # what was true before the pause is looked at anew
                    deeds += await self._silence(seen)
                    silenced += step.triggers
                case Wait():
                    if asyncio.get_running_loop().time() >= deadline:
                        raise _not_met(phase, step.gates)
                    self.say(EventKind.WAITING, phase.number, "; ".join(map(str, step.gates)), gates=step.gates)
                    await asyncio.sleep(_WAIT_PAUSE)
                case Restore():
                    await self.give_back(phase, step.because)
                    raise GateNotMet(
                        f"phase {phase.number} was turned on again: {step.because}",
                        remedy="mend the cause, then `afterwrite migrate run` again",
                    )
                case Halt():
                    await self.halt(phase, step)
                case Done():
                    self.say(EventKind.DONE, phase.number, f"phase {phase.number} is {step.state.value}")
                    return self._run(phase, observation, seen, applied=True, deeds=deeds, silenced=silenced)
                case Soak() | Remove():
                    raise AssertionError(f"a run that silences was asked to {step}")
                case _:
                    assert_never(step)

    async def soak(self, phase: Phase, *, check_seconds: float, patience: int) -> None:
        """Watch a silenced phase until its soak has passed; takes the migration lock only to act.

        Turns the phase back on, and raises GateNotMet, when a gate fails ``patience`` checks in a row.
        """
        broken = 0
        looked = -_DRIFT_SECONDS
        while (left := await self._soak_left(phase)) is not None:
            await self._obey(phase, locked=False)
            if (now := asyncio.get_running_loop().time()) - looked >= _DRIFT_SECONDS:
                looked = now
                for finding in await note_drift(self.db):
                    self.say(EventKind.DRIFT, phase.number, f"{finding.where} {finding.text}", subject=finding.where)
            _, observation = await self.observe(phase, soak_left=left)
            step = next_step(observation)
            match step:
                case Soak():
                    broken = 0
                    self.say(EventKind.SOAKING, phase.number, seconds=step.seconds)
                    await asyncio.sleep(min(check_seconds, step.seconds))
                case Restore():
                    broken += 1
                    self.say(EventKind.WAITING, phase.number, step.because)
                    if broken < patience and observation.captured:
                        await asyncio.sleep(check_seconds)
                        continue
                    async with migration_lock(self.db, self.operator):
                        await self.give_back(phase, step.because)
                    raise GateNotMet(
                        f"phase {phase.number} was turned on again during its soak: {step.because}",
                        remedy="mend the cause, then `afterwrite migrate run` again",
                    )
                case Halt():
                    await self.halt(phase, step)
                case Done():
                    if not await self._allowed(phase):
                        continue
                    async with migration_lock(self.db, self.operator):
                        await self._write(Action.PHASE_SOAKED, phase, {"seconds": phase.soak_seconds})
                    self.say(EventKind.SOAKED, phase.number, f"phase {phase.number} has soaked")
                    return
                case Silence() | Wait() | Remove():
                    raise AssertionError(f"a soaking phase was asked to {step}")
                case _:
                    assert_never(step)

    async def _allowed(self, phase: Phase) -> bool:
        """Whether nobody wants a pause; waits for a moment where somebody does."""
        text = "paused: the next step waits" if self.control.paused else None
        if pause := await read_pause(self.db):
            text = f"{pause}; the next step waits for `afterwrite migrate resume`"
        if text is not None and text != self._paused:
            self.say(EventKind.PAUSED, phase.number, text)
        self._paused = text
        if text is None:
            return True
        await asyncio.sleep(_WAIT_PAUSE)
        return False

    async def wait_while_paused(self, phase: Phase) -> None:
        """Wait for as long as somebody wants a pause, without the migration lock: what is off may be taken back."""
        while not await self._allowed(phase):
            await self._obey(phase, locked=False)

    async def _obey(self, phase: Phase, *, locked: bool) -> None:
        """Take the phase back, or leave, where that was asked for."""
        if self.control.back:
            because = f"asked for by {self.operator or 'the operator'}"
            if locked:
                await self.give_back(phase, because)
            else:
                async with migration_lock(self.db, self.operator):
                    await self.give_back(phase, because)
            raise GateNotMet(
                f"phase {phase.number} was turned on again: {because}",
                remedy=f"`afterwrite migrate rollback --phase {phase.number} --apply` fills its legacy log; "
                "`afterwrite migrate run` silences it again",
            )
        if self.control.left:
            raise GateNotMet(
                f"phase {phase.number} was left while it was being watched; what is silenced stays so",
                remedy="`afterwrite migrate status` says where it stands, the same command goes on",
            )

    async def foresee_removal(self, phase: Phase) -> PhaseRun:
        """The dry run of ``remove``. Raises Drift as it would."""
        await self._require_consistency()
        seen, observation = await self._observe_removal(phase)
        step = next_step(observation)
        if isinstance(step, Halt):
            raise Drift(step.reason, remedy=step.remedy)
        ours = [each for each in observation.triggers if each.silenced and not each.gone]
        deeds = [await self._removal(seen, relation) for relation in seen.relations]
        unmet = step.gates if isinstance(step, Wait) else ()
        gates = tuple(dict.fromkeys([*unmet, *observation.gates]))
        run = self._run(
            phase,
            observation,
            seen,
            applied=False,
            deeds=[deed for deed in deeds if deed],
            silenced=[each.identity for each in ours],
        )
        return msgspec.structs.replace(run, gates=gates)

    async def remove(self, phase: Phase) -> PhaseRun:
        """Drop the triggers of a silenced phase that has soaked; the caller holds the migration lock.

        Raises GateNotMet while it has not, or a gate does not hold, and Drift when somebody changed what is to go.
        """
        await self._require_consistency()
        deeds: list[Deed] = []
        removed: list[str] = []
        while True:
            seen, observation = await self._observe_removal(phase)
            step = next_step(observation)
            match step:
                case Remove():
                    for relation in seen.relations:
                        deed = await self._remove_table(seen, relation)
                        deeds += [deed] if deed else []
                    removed += step.triggers
                case Wait():
                    raise GateNotMet(
                        f"phase {phase.number} cannot be removed: {'; '.join(str(gate) for gate in step.gates)}",
                        remedy="; ".join(dict.fromkeys(gate.remedy for gate in step.gates)),
                    )
                case Restore():
                    await self.give_back(phase, step.because)
                    raise GateNotMet(
                        f"phase {phase.number} was turned on again: {step.because}",
                        remedy="mend the cause, then `afterwrite migrate run` again",
                    )
                case Halt():
                    await self.halt(phase, step)
                case Done():
                    self.say(EventKind.DONE, phase.number, f"phase {phase.number} is {step.state.value}")
                    return self._run(phase, observation, seen, applied=True, deeds=deeds, silenced=removed)
                case Silence() | Soak():
                    raise AssertionError(f"a removal was asked to {step}")
                case _:
                    assert_never(step)

    async def _observe_removal(self, phase: Phase) -> tuple[Look, Observation]:
        seen = await look(self.db, phase, self.place)
        active = await read_active(self.db)
        silent: float | None = None
        if active is not None:
            silent = await self.db.value(
                statement("migrate.read_silent_seconds"), migration=active.id, phase=phase.number
            )
        soak = soak_gate(None if silent is None else float(silent), phase.soak_seconds, phase.number)
        readings = await measure(self.db, self.store, seen, self.place, soaking=True)
        observation = conclude(seen, readings, Goal.REMOVED, soak_left=0.0, more=(soak,))
        self.say(EventKind.GATES, phase.number, gates=tuple(observation.gates))
        return seen, observation

    async def _removal(self, seen: Look, relation: str) -> Deed | None:
        """What drops the triggers of one table; None when none of them is ours to drop."""
        statements: list[str] = []
        names: list[str] = []
        for planned in seen.of_table(relation):
            ours = seen.silenced.get(planned.trigger)
            if ours is None or seen.is_on(planned.trigger):
                continue
            backup = seen.backups[planned.trigger]
            statements += remove_statements(ours.migration, ours.phase, ours.mode, backup)
            names.append(backup.trigger)
        if not statements:
            return None
        return Deed(
            title=f"phase {seen.phase.number}, {relation}: drop {', '.join(names)}",
            relations=seen.with_partitions(relation),
            # Locked first, so that what the ledger says of them is what is dropped.
            statements=(f"lock table {relation} in access exclusive mode", *statements),
        )

    async def _remove_table(self, seen: Look, relation: str) -> Deed | None:
        fresh: Look | None = None

        async def build() -> Deed | None:
            nonlocal fresh
            fresh = await look(self.db, seen.phase, self.place)
            return await self._removal(fresh, relation)

        async def check() -> None:
            # Under the locks: nothing is dropped that somebody has turned on since we looked.
            if fresh is None:
                return
            for planned in fresh.of_table(relation):
                if planned.trigger not in fresh.silenced or fresh.is_on(planned.trigger):
                    continue
                told = await self.db.value(statement("migrate.read_removed_states"), subject=planned.trigger)
                if set(msgspec.json.decode(told or "{}", type=dict[str, str]).values()) != {"D"}:
                    raise Drift(
                        f"{planned.trigger} was turned on while it was being dropped; nothing was done to {relation}",
                        remedy="find out who, then the same command again",
                    )

        deed = await perform(
            self.db,
            seen.with_partitions(relation),
            build,
            check,
            phase=seen.phase.number,
            policy=self.policy,
            on_event=self.on_event,
            stamp_key=self.place.stamp_key,
        )
        if deed is not None:
            self.say(EventKind.REMOVED, seen.phase.number, deed.title, subject=relation)
        return deed

    async def give_back(self, phase: Phase, because: str) -> Rollback:
        """Turn the phase on again and tell why; the caller holds the migration lock."""
        done = await restore_phase(self.db, phase.number, place=self.place, policy=self.policy, on_event=self.on_event)
        await self._write(Action.PHASE_HALTED, phase, {"because": because, "restored": list(done.restored)})
        self.say(EventKind.HALTED, phase.number, because)
        return done

    async def halt(self, phase: Phase, step: Halt) -> None:
        """Tell that a person has to look, and raise Drift."""
        await self._write(Action.PHASE_HALTED, phase, {"because": step.reason, "remedy": step.remedy})
        self.say(EventKind.HALTED, phase.number, step.reason)
        raise Drift(step.reason, remedy=step.remedy)

    async def _write(self, action: Action, phase: Phase, after: object) -> None:
        active = await read_active(self.db)
        if active is not None:
            await write_entry(
                self.db, action, f"phase {phase.number}", migration=active.id, phase=phase.number, after=after
            )

    async def _soak_left(self, phase: Phase) -> float | None:
        """Seconds until the soak has passed, 0 when it has; None when it was told to have passed already."""
        active = await read_active(self.db)
        if active is None:
            return 0.0
        rows = await read_phase_rows(self.db, active.id)
        soaked = rows.get((phase.number, Action.PHASE_SOAKED))
        silenced = rows.get((phase.number, Action.TRIGGER_SILENCE))
        if silenced is None or (soaked is not None and soaked.at > silenced.at):
            return None
        silent = await self.db.value(statement("migrate.read_silent_seconds"), migration=active.id, phase=phase.number)
        return max(0.0, phase.soak_seconds - float(silent))

    async def _read_triggers(self, phase: Phase) -> None:
        """The phase's triggers as scan describes them: in a snapshot of its own, so before any deed."""
        if phase.triggers:
            self._triggers = {trigger.identity: trigger for trigger in (await read_inventory(self.db)).triggers}

    async def _require_consistency(self) -> None:
        """Refuse an edited plan that contradicts what is off already."""
        for identity, silenced in (await read_silenced(self.db)).items():
            planned = [(p.number, t.moves_as) for p in self.plan.phases for t in p.triggers if t.trigger == identity]
            if planned != [(silenced.phase, silenced.mode)]:
                raise Refused(
                    f"{identity} was silenced in phase {silenced.phase}, mode {silenced.mode.value}; the plan has "
                    + (f"it in phase {planned[0][0]}, mode {planned[0][1].value}" if planned else "it in no phase"),
                    remedy="put it back in the plan, or first run "
                    f"`afterwrite migrate rollback --phase {silenced.phase} --apply`",
                )

    async def _begin(self, active: Migration | None) -> Deed | None:
        if active is None:
            migration = await next_id(self.db)
            return Deed(title=f"begin migration {migration}", statements=tuple(start_statements(migration, self.text)))
        if active.plan != self.text:
            return Deed(
                title=f"go on with migration {active.id} and an edited plan",
                statements=tuple(change_plan_statements(active.id, self.text)),
            )
        return None

    async def _plan_deeds(self, seen: Look) -> list[Deed]:
        """Everything that is still to be done, in order; raises Drift or Refused for what cannot be."""
        not_ours = await self.db.values(statement("migrate.read_not_owned"), relations=seen.relations)
        if not_ours:
            raise Refused(
                f"the role may not change the triggers of {', '.join(not_ours)}: it does not own them",
                remedy="connect as their owner, or grant the owner's role to this one",
            )
        active = await read_active(self.db)
        migration = active.id if active else await next_id(self.db)
        begin = await self._begin(active)
        of_tables = [await self._deed(seen, relation, migration) for relation in seen.relations]
        return [deed for deed in (begin, *of_tables) if deed is not None]

    async def _silence(self, seen: Look) -> list[Deed]:
        """Silence what is still on, a table at a time, each in its own short transaction."""
        await note_pulse(self.db, anyway=True)  # what is compared with later is what was until now
        await self._plan_deeds(seen)  # what cannot be done for the last table is known before the first is touched
        done: list[Deed] = []
        active = await read_active(self.db)
        migration = active.id if active else await next_id(self.db)
        if begin := await self._begin(active):

            async def build() -> Deed:
                return begin

            await perform(self.db, (), build, _nothing, phase=seen.phase.number, on_event=self.on_event)
            done.append(begin)
        for relation in seen.relations:
            deed = await self._silence_table(seen.phase, relation, seen.with_partitions(relation), migration)
            if deed is not None:
                done.append(deed)
        return done

    async def _silence_table(self, phase: Phase, relation: str, locked: Sequence[str], migration: int) -> Deed | None:
        fresh: Look | None = None

        async def build() -> Deed | None:
            nonlocal fresh
            fresh = await look(self.db, phase, self.place)
            return await self._deed(fresh, relation, migration)

        async def check() -> None:
            # Again under the locks that the deed now holds: what is off is what was backed up, and all of it is off.
            if fresh is None:
                return
            for planned in fresh.of_table(relation):
                before = fresh.backups[planned.trigger]
                after = await read_backup(self.db, relation, before.trigger)
                if after is None or _essence(after) != _essence(before):
                    raise Drift(
                        f"{planned.trigger} was changed while it was being silenced; nothing was done to {relation}",
                        remedy="run `afterwrite plan --check`, then the same command again",
                    )
                if on := [table for table, state in after.states.items() if state is not Enabled.DISABLED]:
                    raise Drift(
                        f"{planned.trigger} stayed on in {', '.join(on)}; nothing was done to {relation}",
                        remedy="run the same command again",
                    )

        deed = await perform(
            self.db,
            locked,
            build,
            check,
            phase=phase.number,
            policy=self.policy,
            on_event=self.on_event,
            stamp_key=self.place.stamp_key,
        )
        if deed is not None:
            self.say(EventKind.SILENCED, phase.number, deed.title, subject=relation)
        return deed

    async def _deed(self, seen: Look, relation: str, migration: int) -> Deed | None:
        """Everything that happens to one table, in one transaction; None when all of it is done.

        What takes time comes first and the locks last, so that writers wait for a few milliseconds only.
        """
        first: list[str] = []
        last: list[str] = []
        number = seen.phase.number
        left = set(await self.db.values(statement("migrate.read_left"), migration=migration))
        names: list[str] = []
        for planned in seen.of_table(relation):
            backup = seen.backups[planned.trigger]
            if not seen.is_on(planned.trigger):
                if planned.trigger not in seen.silenced and planned.trigger not in left:
                    first.append(left_statement(migration, number, backup))
                continue
            _require_same_table(seen, planned.trigger, backup)
            if not seen.as_planned(planned):
                raise Drift(
                    f"{planned.trigger} or its function was changed after the plan was written",
                    remedy="run `afterwrite plan --again`, which keeps what was decided, and review the difference",
                )
            found = self._described(planned)
            first.append(backup_statement(migration, number, backup, found))
            first += await self._preparation(seen, planned, found)
            last += silence_statements(migration, number, planned.moves_as, backup, planned.fingerprint)
            names.append(planned.trigger)
        if not first and not last:
            return None
        what = f"silence {', '.join(name.rpartition('.')[2] for name in names)}" if names else "nothing to silence"
        return Deed(
            title=f"phase {number}, {relation}: {what}",
            relations=seen.with_partitions(relation) if names else (),
            statements=(*first, *last),
        )

    def _described(self, planned: PlannedTrigger) -> Trigger:
        """The trigger as scan describes it; raises Drift when that is not what was planned."""
        found = self._triggers.get(planned.trigger)
        if found is None or fingerprint(found) != planned.fingerprint:
            raise Drift(
                f"{planned.trigger} was changed while its phase was being prepared",
                remedy="run `afterwrite plan --check`, then the same command again",
            )
        refuse_certain(planned, found)
        return found

    async def _preparation(self, seen: Look, planned: PlannedTrigger, found: Trigger) -> Sequence[str]:
        if planned.moves_as is not Mode.DEFER or planned.trigger in seen.deferred:
            return ()
        prepared = await plan_deferral(
            self.db,
            found,
            source=self.place.source,
            mode=planned.mode.value,
            on_error=planned.on_error or OnError.PARK,
        )
        return prepared.statements

    def _run(
        self,
        phase: Phase,
        observation: Observation,
        seen: Look,
        *,
        applied: bool,
        deeds: Sequence[Deed],
        silenced: Sequence[str],
    ) -> PhaseRun:
        findings = findings_of(seen)
        findings += [
            Finding(
                rule="migrate.stranger",
                severity=Severity.WARNING,
                where=identity,
                text=f"is on a table of phase {phase.number} and in none of the plan's sections",
                remedy="run `afterwrite plan --check`",
            )
            for identity in seen.strangers
            if identity not in self._known
        ]
        return PhaseRun(
            number=phase.number,
            title=phase.title,
            applied=applied,
            state=state_of(observation),
            gates=tuple(observation.gates),
            deeds=tuple(deeds),
            silenced=tuple(silenced),
            left=tuple(finding.where for finding in findings if finding.rule == "migrate.left"),
            findings=tuple(findings),
            lock_timeout_ms=self.policy.lock_timeout_ms,
        )


def _require_same_table(seen: Look, identity: str, found: TriggerBackup) -> None:
    """Refuse a trigger that stands on another table than the one of its name that we turned off.

    One account has one backup and one transplanted body: of two tables, one would be forgotten.
    """
    ours = seen.silenced.get(identity)
    if ours is not None and ours.backup.table_oid != found.table_oid:
        raise Drift(
            f"{found.relation} is another table than the one whose trigger {found.trigger} was silenced on "
            f"{moment(ours.at)}: that one was dropped or renamed since",
            remedy=f"first `afterwrite migrate rollback --phase {ours.phase} --apply`, then the same command again",
        )


def _essence(backup: TriggerBackup) -> tuple[object, ...]:
    return backup.oid, backup.create, backup.function, sorted(backup.states)


async def remove_phases(
    db: Database,
    plan: Plan,
    number: int | None,
    *,
    place: Place,
    apply: bool,
    functions: bool = False,
    store: Database | None = None,
    operator: str | None = None,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
) -> tuple[list[PhaseRun], FunctionsRun | None]:
    """Drop the triggers of one silenced phase, or of all, after their soak; their backups stay in the ledger.

    ``functions`` then also drops the functions that nothing uses any more. Without ``apply`` it only shows the SQL.
    Raises GateNotMet at the first phase that has not soaked.
    """
    migrator = Migrator(db, plan, place, store=store, operator=operator, policy=policy, on_event=on_event)
    phases = [plan.phase(number)] if number is not None else [phase for phase in plan.phases if phase.triggers]
    runs: list[PhaseRun] = []
    if not apply:
        runs = [await migrator.foresee_removal(phase) for phase in phases]
        going = {identity for run in runs for identity in run.silenced}
        return runs, await foresee_functions(db, going) if functions else None
    await refuse_paused(db)
    async with migration_lock(db, operator):
        for phase in phases:
            runs.append(await migrator.remove(phase))
        return runs, await remove_functions(db, policy=policy, on_event=on_event) if functions else None


async def _nothing() -> None:
    return None


def _not_met(phase: Phase, gates: Sequence[Gate]) -> GateNotMet:
    return GateNotMet(
        f"phase {phase.number} cannot be silenced: {'; '.join(str(gate) for gate in gates)}",
        remedy="; ".join(dict.fromkeys(gate.remedy for gate in gates)),
    )


async def run_phase(
    db: Database,
    plan: Plan,
    number: int,
    *,
    place: Place,
    apply: bool,
    store: Database | None = None,
    operator: str | None = None,
    wait_seconds: float = 0.0,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
) -> PhaseRun:
    """Silence one phase; without ``apply`` only show the exact SQL, and how the gates stand.

    ``store`` is the store's database where it is another one. Gates may be waited for ``wait_seconds``. Raises
    GateNotMet, Drift, LockTimeout (naming the blockers; tables already done stay done) or Refused (another operator is
    at work). Running it again goes on from what is there.
    """
    migrator = Migrator(db, plan, place, store=store, operator=operator, policy=policy, on_event=on_event)
    phase = plan.phase(number)
    if not apply:
        return await migrator.show(phase)
    await refuse_paused(db)
    async with migration_lock(db, operator):
        return await migrator.advance(phase, wait_seconds=wait_seconds)


async def run_all(
    db: Database,
    plan: Plan,
    *,
    place: Place,
    apply: bool,
    store: Database | None = None,
    operator: str | None = None,
    wait_seconds: float = 0.0,
    check_seconds: float = 1.0,
    patience: int = 3,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
    control: Control | None = None,
    number: int | None = None,
) -> list[PhaseRun]:
    """Silence every phase in order, each after the one before has soaked; goes on where an earlier run ended.

    ``number`` leaves out all other phases; ``control`` is asked before each step.

    While a phase soaks its gates are measured every ``check_seconds``; after ``patience`` failures in a row the phase
    is turned on again and GateNotMet is raised (at once when capture itself is lost).
    """
    migrator = Migrator(
        db, plan, place, store=store, operator=operator, policy=policy, on_event=on_event, control=control
    )
    runs: list[PhaseRun] = []
    if apply:
        await refuse_paused(db)
    for phase in plan.phases if number is None else [plan.phase(number)]:
        if not phase.triggers:
            continue
        if not apply:
            runs.append(await migrator.show(phase))
            continue
        await migrator.wait_while_paused(phase)
        async with migration_lock(db, operator):
            runs.append(await migrator.advance(phase, wait_seconds=wait_seconds))
        await migrator.soak(phase, check_seconds=check_seconds, patience=patience)
    return runs
