"""Where a migration stands: what was done, when and by whom, what is next, and what somebody else changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from afterwrite.errors import Finding, Severity
from afterwrite.migrate.checklist import Item, Stage, read_checklist
from afterwrite.migrate.drift import find_drift
from afterwrite.migrate.gates import CAPTURE_GAPS, Place
from afterwrite.migrate.ledger import Action, Migration, Pause, PhaseRow, moment, read_last, read_pause, read_phase_rows
from afterwrite.migrate.observe import conclude, findings_of, look, measure
from afterwrite.migrate.overrides import overrides
from afterwrite.migrate.phase import Gate, Goal, State, broken_rules, state_of
from afterwrite.migrate.plan import Phase, Plan, read_plan
from afterwrite.postgres import Database


class PhaseStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A phase now. ``left`` triggers were off before us. ``halted`` is told only while it is the newest word."""

    number: int
    title: str
    state: State
    on: tuple[str, ...]
    off: tuple[str, ...]
    left: tuple[str, ...]
    gates: tuple[Gate, ...]
    silenced_at: datetime | None = None
    silenced_by: str | None = None
    soaked_at: datetime | None = None
    restored_at: datetime | None = None
    restored_by: str | None = None
    removed_at: datetime | None = None
    removed_by: str | None = None
    halted: str | None = None


class MigrationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole. ``migration`` is None before the first phase was applied; ``next`` is what to do now, in words.

    ``pause`` is told while somebody has paused it.

    ``checklist`` is everything that there is to do, with what was done, when and by whom.
    """

    migration: Migration | None
    phases: tuple[PhaseStatus, ...]
    findings: tuple[Finding, ...]
    checklist: tuple[Item, ...]
    next: str
    pause: Pause | None = None


async def status(
    db: Database, *, place: Place, plan: Plan | None = None, store: Database | None = None
) -> MigrationStatus:
    """Observe every phase of the running migration's plan (or of ``plan``, before there is one). Changes nothing.

    The lag in seconds is left out of the gates: measuring it would write a heartbeat.
    """
    last = await read_last(db)
    active = last if last is not None and last.finished_at is None else None
    if active is not None:
        plan = read_plan(active.plan)
    rows = await read_phase_rows(db, active.id) if active else {}
    pause = await read_pause(db) if active else None
    phases: list[PhaseStatus] = []
    findings: list[Finding] = overrides(plan) if plan else []
    for phase in plan.phases if plan else ():
        seen = await look(db, phase, place)
        readings = await measure(db, store or db, seen, place, heartbeat=False)
        observation = conclude(seen, readings, Goal.SILENCED)
        findings += [_uncaptured(phase.number, text) for text in broken_rules(observation)]
        findings += [
            _lost(phase.number, gate) for gate in observation.gates if gate.name == CAPTURE_GAPS and not gate.met
        ]
        gates = tuple(gate for gate in observation.gates if gate.name != "capture lag in seconds")
        observation = msgspec.structs.replace(observation, gates=gates)
        found = findings_of(seen)
        findings += [finding for finding in found if not finding.rule.startswith("migrate.drift")]
        drifted = [finding for finding in found if finding.rule.startswith("migrate.drift")]
        # With a migration running, the whole of it is looked at once, below.
        findings += [] if active else drifted
        phases.append(
            _phase_status(
                phase,
                state_of(observation),
                gates,
                on=tuple(trigger.identity for trigger in observation.triggers if trigger.on),
                off=tuple(t.identity for t in observation.triggers if t.silenced and t.on is False),
                left=tuple(finding.where for finding in found if finding.rule == "migrate.left"),
                rows=rows,
            )
        )
    findings += await find_drift(db)
    stages = [
        Stage(
            number=each.number,
            title=each.title,
            state=each.state,
            off=len(each.off),
            soaked_at=each.soaked_at,
            halted=each.halted,
        )
        for each in phases
        if each.on or each.off or each.state is State.REMOVED
    ]
    checklist = await read_checklist(db, place, plan, last, stages, rows)
    return MigrationStatus(
        checklist=tuple(checklist),
        migration=last,
        phases=tuple(phases),
        findings=tuple(findings),
        next=_next(plan, last, phases, findings, pause),
        pause=pause,
    )


def _uncaptured(number: int, text: str) -> Finding:
    return Finding(
        rule="migrate.uncaptured",
        severity=Severity.ERROR,
        where=f"phase {number}",
        text=text,
        remedy=f"`afterwrite migrate run --phase {number} --apply` turns what is off on again; "
        "`afterwrite doctor` says what became of capture",
    )


def _lost(number: int, gate: Gate) -> Finding:
    return Finding(
        rule="migrate.lost",
        severity=Severity.ERROR,
        where=f"phase {number}",
        text=f"is silenced, and {gate}",
        remedy=gate.remedy,
    )


def _phase_status(
    phase: Phase,
    state: State,
    gates: tuple[Gate, ...],
    *,
    on: tuple[str, ...],
    off: tuple[str, ...],
    left: tuple[str, ...],
    rows: dict[tuple[int, Action], PhaseRow],
) -> PhaseStatus:
    silenced = rows.get((phase.number, Action.TRIGGER_SILENCE))
    soaked = rows.get((phase.number, Action.PHASE_SOAKED))
    restored = rows.get((phase.number, Action.TRIGGER_RESTORE))
    removed = rows.get((phase.number, Action.TRIGGER_REMOVE))
    halted = rows.get((phase.number, Action.PHASE_HALTED))
    idle = bool(off) or state is State.REMOVED
    newest = max((row.at for row in (silenced, soaked) if row), default=None)
    return PhaseStatus(
        number=phase.number,
        title=phase.title,
        state=state,
        on=on,
        off=off,
        left=left,
        gates=gates,
        silenced_at=silenced.at if silenced and idle else None,
        silenced_by=silenced.by if silenced and idle else None,
        soaked_at=soaked.at if soaked and silenced and soaked.at > silenced.at and idle else None,
        removed_at=removed.at if removed and state is State.REMOVED else None,
        removed_by=removed.by if removed and state is State.REMOVED else None,
        restored_at=restored.at if restored and on else None,
        restored_by=restored.by if restored and on else None,
        halted=halted.because if halted and (newest is None or halted.at > newest) else None,
    )


def _soaks_until(plan: Plan, phase: PhaseStatus) -> datetime | None:
    """When the soak of a silenced phase is over; None when it is."""
    if phase.soaked_at is not None or phase.silenced_at is None:
        return None
    until = phase.silenced_at + timedelta(seconds=plan.phase(phase.number).soak_seconds)
    return until if until > datetime.now(UTC) else None


def _next(
    plan: Plan | None,
    last: Migration | None,
    phases: list[PhaseStatus],
    findings: list[Finding],
    pause: Pause | None,
) -> str:
    if plan is None:
        if last is not None and last.finished_at is not None:
            return f"nothing: migration {last.id} was rolled back; write a new plan with `afterwrite plan`"
        return "write a plan: `afterwrite plan`"
    for finding in findings:
        if finding.rule == "migrate.drift.reenabled":
            return f"look at {finding.where}, which {finding.text}: {finding.remedy}"
    for finding in findings:
        if finding.rule in ("migrate.uncaptured", "migrate.lost"):
            return f"{finding.where}: {finding.text}; {finding.remedy}"
    if pause is not None:
        return f"{pause}; `afterwrite migrate resume` lets it go on"
    for phase in phases:
        if not phase.on and not phase.off:
            continue
        match phase.state:
            case State.SURVEYED:
                return "start capture: `afterwrite install --apply`, then `afterwrite capture`"
            case State.SHADOWING:
                unmet = "; ".join(str(gate) for gate in phase.gates if not gate.met)
                return f"let phase {phase.number} be proven: {unmet}"
            case State.PROVEN:
                return f"silence phase {phase.number}: `afterwrite migrate run --phase {phase.number} --apply`"
            case State.REMOVED:
                return f"the triggers of phase {phase.number} are gone: look who dropped them"
            case State.SILENCED:
                if until := _soaks_until(plan, phase):
                    watch = f"`afterwrite migrate run --phase {phase.number} --apply --watch`"
                    return f"let phase {phase.number} soak until {moment(until)}: {watch} watches it"
    back = "`afterwrite migrate rollback` takes any of them back"
    if any(phase.off for phase in phases):
        drop = "`afterwrite migrate remove --all --apply` drops what is off"
        return f"every phase is silenced: after its soak {drop}; {back}"
    return f"nothing: every phase is removed; {back}"
