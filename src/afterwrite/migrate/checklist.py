"""The execution checklist of a migration: what was done, when and by whom, and what is still to do, in its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum

import msgspec

from afterwrite.migrate.backfill import read_holes
from afterwrite.migrate.gates import Place, read_slot
from afterwrite.migrate.ledger import Action, Migration, PhaseRow, who
from afterwrite.migrate.phase import State
from afterwrite.migrate.plan import Plan
from afterwrite.postgres import Database, statement


class Section(Enum):
    """The three parts of it."""

    BEFORE = "pre-migration"
    EXECUTION = "execution"
    AFTER = "post-migration"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do. ``done`` None is what does not have to be done (yet); ``how`` is the command that does it."""

    section: Section
    what: str
    done: bool | None
    at: datetime | None = None
    by: str | None = None
    detail: str = ""
    how: str = ""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """How a phase stands, for the checklist."""

    number: int
    title: str
    state: State
    off: int
    soaked_at: datetime | None
    halted: str | None


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    installed_at: datetime | None
    proof_since: datetime | None
    proof_transactions: int
    noted_since: datetime | None


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    actor: str
    operator: str | None
    same: bool | None
    count: int


async def read_checklist(
    db: Database,
    place: Place,
    plan: Plan | None,
    migration: Migration | None,
    phases: Sequence[Stage],
    rows: Mapping[tuple[int, Action], PhaseRow],
) -> list[Item]:
    """The whole list for what was observed. Reads only."""
    facts = await db.one(_Facts, statement("migrate.read_facts"))
    slot = await read_slot(db, place)
    rehearsed = await db.maybe(_Told, statement("migrate.read_rehearsed"))
    moving = sum(len(phase.triggers) for phase in plan.phases) if plan else 0
    running = migration is not None and migration.finished_at is None
    items = [
        _before("afterwrite installed", facts.installed_at is not None, at=facts.installed_at, how="install --apply"),
        _before(
            "plan written and reviewed",
            plan is not None,
            at=migration.started_at if running and migration else None,
            by=migration.by if running and migration else None,
            detail=f"{moving} triggers in {len(phases)} phases" if plan else "",
            how="plan",
        ),
        _before(
            "capture running",
            slot is not None and slot.active and slot.keeps_all,
            detail="" if slot is None else f"slot {place.slot}, {slot.wal_status or 'unreserved'}",
            how="capture",
        ),
        _before(
            "shadow comparing",
            facts.proof_transactions > 0,
            at=facts.proof_since,
            detail=f"{facts.proof_transactions:,} transactions" if facts.proof_transactions else "",
            how="prove",
        ),
        _before("load noted, to compare with", facts.noted_since is not None, at=facts.noted_since, how="capture"),
        _before(
            "backup rehearsed",
            rehearsed is not None and bool(rehearsed.same),
            at=rehearsed.at if rehearsed else None,
            by=who(rehearsed.actor, rehearsed.operator) if rehearsed else None,
            detail=""
            if rehearsed is None
            else f"{rehearsed.count} restored{'' if rehearsed.same else ', not the same'}",
            how="migrate rehearse",
        ),
    ]
    for phase in phases:
        items += _phase(phase, rows)
    if phases:
        items += await _after(db, phases, rows, running=running)
    return items


def _before(
    what: str, done: bool, *, at: datetime | None = None, by: str | None = None, detail: str = "", how: str = ""
) -> Item:
    return Item(
        section=Section.BEFORE,
        what=what,
        done=done,
        at=at,
        by=by,
        detail=detail,
        how=f"afterwrite {how}" if how else "",
    )


def _phase(phase: Stage, rows: Mapping[tuple[int, Action], PhaseRow]) -> list[Item]:
    silenced = rows.get((phase.number, Action.TRIGGER_SILENCE))
    removed = rows.get((phase.number, Action.TRIGGER_REMOVE))
    off = phase.state in (State.SILENCED, State.REMOVED)
    gone = phase.state is State.REMOVED
    at, by = (silenced.at, silenced.by) if silenced and off else (None, None)
    state = "" if off else "turned on again" if phase.halted else phase.state.value
    run = f"afterwrite migrate run --phase {phase.number} --apply"
    return [
        Item(
            section=Section.EXECUTION,
            what=f"phase {phase.number} silenced: {phase.title}",
            done=off,
            at=at,
            by=by,
            detail=state if not off else f"{phase.off} off" if phase.off else "",
            how=run,
        ),
        Item(
            section=Section.EXECUTION,
            what=f"phase {phase.number} soaked",
            done=phase.soaked_at is not None or gone,
            at=phase.soaked_at,
            how=f"{run} --watch",
        ),
        Item(
            section=Section.EXECUTION,
            what=f"phase {phase.number} removed",
            done=gone,
            at=removed.at if removed and gone else None,
            by=removed.by if removed and gone else None,
            how=f"afterwrite migrate remove --phase {phase.number} --apply",
        ),
    ]


async def _after(
    db: Database, phases: Sequence[Stage], rows: Mapping[tuple[int, Action], PhaseRow], *, running: bool
) -> list[Item]:
    functions = await db.maybe(_Told, statement("migrate.read_functions_removed"))
    holes = await read_holes(db, None)
    filled = max((row.at for (_, action), row in rows.items() if action is Action.LEGACY_BACKFILL), default=None)
    drift = await db.value(statement("migrate.count_open_drift"))
    all_gone = running and all(phase.state is State.REMOVED for phase in phases)

    def item(what: str, done: bool | None, how: str, **more: object) -> Item:
        return msgspec.structs.replace(Item(section=Section.AFTER, what=what, done=done, how=how), **more)

    return [
        item(
            "functions that nothing uses dropped",
            functions is not None if all_gone else None,
            "afterwrite migrate remove --all --functions --apply",
            at=functions.at if functions else None,
            by=who(functions.actor, functions.operator) if functions else None,
            detail=f"{functions.count} so far" if functions else "",
        ),
        item(
            "legacy logs without a hole after rollbacks",
            not holes if holes or filled else None,
            f"afterwrite migrate rollback --phase {holes[0].phase if holes else 'N'} --apply",
            at=filled if not holes else None,
            detail=f"{len(holes)} to be filled" if holes else "",
        ),
        item(
            "nothing changed behind our back",
            not drift if running else None,
            "each is named below, with what mends it",
            detail=f"{drift} findings" if drift else "",
        ),
    ]
