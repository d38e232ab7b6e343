"""Looking: what the catalog, the ledger, the slot, the proof and the deferrals say of a phase at this moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from afterwrite.defer.deferral import read_deferrals
from afterwrite.errors import Drift, Finding, Severity
from afterwrite.migrate.backup import TriggerBackup, read_backup, read_relations
from afterwrite.migrate.checks import read_checks
from afterwrite.migrate.gates import (
    Place,
    Readings,
    evaluate,
    measure_lag,
    read_deferral,
    read_lost,
    read_partial,
    read_phase_proof,
    read_slot,
    read_unpublished,
)
from afterwrite.migrate.ledger import Silenced, moment, read_deferral_ends, read_silenced
from afterwrite.migrate.phase import Gate, Goal, Mode, Observation, TriggerSeen
from afterwrite.migrate.plan import Phase, PlannedTrigger, backup_fingerprint
from afterwrite.migrate.pulse import read_load
from afterwrite.postgres import Database, statement
from afterwrite.scan.catalog import Enabled


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The triggers of a phase as they are: by identity, in the plan's order.

    ``backups`` lacks those that are gone; ``deferred`` are identities whose bodies are prepared or live; ``strangers``
    are other triggers on the phase's tables. ``emptied`` are the tables, as they are called now, whose triggers we
    dropped.
    """

    phase: Phase
    backups: Mapping[str, TriggerBackup]
    silenced: Mapping[str, Silenced]
    deferred: frozenset[str]
    strangers: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()

    @property
    def captured_relations(self) -> list[str]:
        """The tables whose changes must be captured."""
        return list(dict.fromkeys([*self.relations, *self.emptied]))

    def is_removed(self, identity: str) -> bool:
        """Whether it is not there any more because we dropped it."""
        ours = self.silenced.get(identity)
        return ours is not None and ours.removed_at is not None and identity not in self.backups

    @property
    def relations(self) -> list[str]:
        """The tables of the phase, quoted, in the plan's order."""
        return list(dict.fromkeys(backup.relation for backup in self.backups.values()))

    def of_table(self, relation: str) -> list[PlannedTrigger]:
        """The phase's triggers on this table."""
        return [
            trigger
            for trigger in self.phase.triggers
            if trigger.trigger in self.backups and self.backups[trigger.trigger].relation == relation
        ]

    def with_partitions(self, relation: str) -> tuple[str, ...]:
        """The table and those of its partitions that have clones of the phase's triggers: what a deed locks."""
        of_table = [self.backups[planned.trigger].states for planned in self.of_table(relation)]
        return tuple(dict.fromkeys([relation, *(table for states in of_table for table in states)]))

    def is_on(self, identity: str) -> bool | None:
        """Whether the trigger or one of its clones can fire; None when it is gone."""
        backup = self.backups.get(identity)
        return None if backup is None else any(state is not Enabled.DISABLED for state in backup.states.values())

    @property
    def moving(self) -> list[PlannedTrigger]:
        """The phase's triggers that are there and on, or off because of us."""
        return [
            planned
            for planned in self.phase.triggers
            if not self.is_removed(planned.trigger)
            and (planned.trigger in self.silenced or self.is_on(planned.trigger))
        ]

    @property
    def silent_since(self) -> dict[str, datetime]:
        """When those triggers of the phase were silenced that are off because of us."""
        return {
            planned.trigger: self.silenced[planned.trigger].at
            for planned in self.phase.triggers
            if planned.trigger in self.silenced and not self.is_on(planned.trigger)
        }

    def as_planned(self, planned: PlannedTrigger) -> bool:
        """Whether the trigger's definition is the one that the plan was written for."""
        backup = self.backups.get(planned.trigger)
        return backup is not None and backup_fingerprint(backup) == planned.fingerprint


class UserTrigger(msgspec.Struct, frozen=True):
    """A trigger that a person made, by its parts and its table's quoted name."""

    schema: str
    table: str
    trigger: str
    relation: str

    @property
    def identity(self) -> str:
        """``schema.table.trigger``, as in the plan and the ledger."""
        return f"{self.schema}.{self.table}.{self.trigger}"


async def read_user_triggers(db: Database) -> list[UserTrigger]:
    """Every trigger that a person made, clones on partitions aside."""
    return await db.rows(UserTrigger, statement("migrate.read_user_triggers"))


async def look(db: Database, phase: Phase, place: Place) -> Look:
    """Read what there is of the phase's triggers; raises Drift when a name of the plan means two triggers."""
    planned = {trigger.trigger for trigger in phase.triggers}
    there: dict[str, UserTrigger] = {}
    for each in await read_user_triggers(db):
        if each.identity in there and each.identity in planned:
            raise Drift(
                f"{each.identity} names two triggers of {db.where}: their tables' names contain dots",
                remedy="rename one of the tables",
            )
        there[each.identity] = each
    backups: dict[str, TriggerBackup] = {}
    for trigger in phase.triggers:
        if found := there.get(trigger.trigger):
            backup = await read_backup(db, found.relation, found.trigger)
            if backup is not None:
                backups[trigger.trigger] = backup
    tables = {there[identity].relation for identity in backups}
    silenced = await read_silenced(db)
    emptied = [
        each.backup.table_oid
        for identity, each in silenced.items()
        if identity in planned and each.removed_at is not None and identity not in backups
    ]
    names = await read_relations(db, emptied) if emptied else {}
    return Look(
        phase=phase,
        backups=backups,
        silenced=silenced,
        emptied=tuple(names[oid] for oid in emptied if oid in names),
        deferred=frozenset(row.identity for row in await read_deferrals(db, place.source)),
        strangers=tuple(
            identity for identity, each in there.items() if each.relation in tables and identity not in planned
        ),
    )


class _Moments(msgspec.Struct, frozen=True):
    silenced_at: datetime | None
    steady_since: datetime | None


async def measure(
    db: Database, store: Database, seen: Look, place: Place, *, soaking: bool = False, heartbeat: bool = True
) -> Readings:
    """Take every reading that the phase's gates ask for; what cannot be read stays None.

    ``heartbeat`` False leaves the lag in seconds out (it writes a heartbeat into the WAL and waits for it).
    """
    slot = await read_slot(db, place)
    lag = None
    if heartbeat and slot is not None and slot.active:
        lag = await measure_lag(db, place, limit_seconds=seen.phase.thresholds.capture_lag_seconds)
    deferring = any(silenced.mode is Mode.DEFER for silenced in seen.silenced.values())
    again = {
        trigger.trigger
        for trigger in seen.phase.triggers
        if trigger.moves_as is Mode.DEFER and trigger.trigger not in seen.silenced
    }
    ends = await read_deferral_ends(db, place.source) if again and not soaking else {}
    moments = await db.one(_Moments, statement("migrate.read_phase_moments"), phase=seen.phase.number)
    return Readings(
        slot=slot,
        lag=lag,
        unpublished=await read_unpublished(db, seen.captured_relations, place),
        partial=await read_partial(db, seen.captured_relations, seen.moving),
        proof=await read_phase_proof(db, seen.moving, seen.silent_since),
        deferring=deferring,
        deferral=await read_deferral(db, store, place) if deferring else None,
        unfinished=tuple(sorted(identity for identity in again if ends.get(identity))),
        load=await read_load(
            db,
            silenced_at=moments.silenced_at if seen.silent_since else None,
            steady_since=moments.steady_since,
        ),
        checks=await read_checks(db, seen.phase.checks),
        lost=await read_lost(store, place, seen.silent_since),
    )


def conclude(
    seen: Look, readings: Readings, goal: Goal, *, soak_left: float | None = None, more: Sequence[Gate] = ()
) -> Observation:
    """The observation that ``next_step`` decides on; ``more`` are gates beside those of the readings."""
    triggers = tuple(
        TriggerSeen(
            identity=planned.trigger,
            mode=planned.moves_as,
            on=seen.is_on(planned.trigger),
            silenced=planned.trigger in seen.silenced,
            removed=planned.trigger in seen.silenced and seen.silenced[planned.trigger].removed_at is not None,
            as_planned=seen.as_planned(planned),
            prepared=planned.trigger in seen.deferred,
        )
        for planned in seen.phase.triggers
    )
    return Observation(
        number=seen.phase.number,
        goal=goal,
        triggers=triggers,
        captured=readings.captured,
        gates=(
            *evaluate(readings, seen.phase.thresholds, soaking=soak_left is not None, waive=seen.phase.waive),
            *more,
        ),
        soak_left=soak_left,
    )


def findings_of(seen: Look) -> list[Finding]:
    """What is worth knowing of the phase's triggers: which were off before us, and which changed or went on since."""
    findings: list[Finding] = []
    number = seen.phase.number
    for planned in seen.phase.triggers:
        identity, on = planned.trigger, seen.is_on(planned.trigger)
        ours = seen.silenced.get(identity)
        if seen.is_removed(identity):
            continue
        if on is None:
            findings.append(_drift("migrate.drift.gone", identity, "is in the plan and not in the database", None))
            continue
        if ours and on:
            findings.append(
                _drift(
                    "migrate.drift.reenabled",
                    identity,
                    f"was silenced on {moment(ours.at)} by {ours.by} and is on again: its work happens twice",
                    f"`afterwrite migrate run --phase {number} --apply`, or "
                    f"`afterwrite migrate rollback --phase {number} --apply`",
                )
            )
        if not seen.as_planned(planned):
            findings.append(
                _drift(
                    "migrate.drift.changed",
                    identity,
                    "or its function was changed after the plan was written",
                    "run `afterwrite plan --again`, which keeps what was decided, and review the difference",
                )
            )
        if not on and not ours:
            findings.append(
                Finding(
                    rule="migrate.left",
                    severity=Severity.INFO,
                    where=identity,
                    text="is disabled already, and not by us: it is left as it is",
                )
            )
    return findings


def _drift(rule: str, where: str, text: str, remedy: str | None) -> Finding:
    return Finding(rule=rule, severity=Severity.ERROR, where=where, text=text, remedy=remedy)
