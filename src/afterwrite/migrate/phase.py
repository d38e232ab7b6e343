"""What a phase may do next: an observation in, one step out, and the rules that no step may break.

::

    surveyed ──▶ shadowing ──▶ proven ──▶ silenced ──▶ removed
                     ▲            (gates)     │   (soak)   │
                     └────────────────────────┴────────────┘       halted(reason, remedy) beside any

Nothing here remembers: a phase's state is what the catalog (is the trigger on?) and the ledger (was it we who turned it
off?) say now, so that a crash is nothing but the next observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, StrEnum
from itertools import pairwise
from typing import assert_never

import msgspec

from afterwrite.errors import Refused


class State(Enum):
    """How far a phase is. ``REMOVED`` means dropped, with the backup kept."""

    SURVEYED = "surveyed"
    SHADOWING = "shadowing"
    PROVEN = "proven"
    SILENCED = "silenced"
    REMOVED = "removed"


_FORWARD: set[tuple[State, State]] = set(pairwise(State))
_BACK = {(State.SILENCED, State.SHADOWING), (State.REMOVED, State.SHADOWING)}
# Nothing is done to the database by these: a proof can be lost again, and capture can be given up.
_LAPSES = {(State.PROVEN, State.SHADOWING), (State.PROVEN, State.SURVEYED), (State.SHADOWING, State.SURVEYED)}


class Mode(StrEnum):
    """What becomes of a trigger's work: ``retire`` leaves it to the store, ``defer`` runs its body after commit."""

    RETIRE = "retire"
    DEFER = "defer"


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A condition, as measured: the value against the threshold, over which window, and where the number came from.

    ``value`` is None when it could not be measured, and then it is not ``met`` unless the plan says why it need not be
    (``waived``, the plan's words).
    """

    name: str
    met: bool
    value: str | None
    threshold: str
    window: str
    source: str
    remedy: str
    waived: str | None = None

    def __str__(self) -> str:
        found = "could not be measured" if self.value is None else f"is {self.value}"
        return f"{self.name} {found}, needs {self.threshold} ({self.window}; from {self.source})"


class TriggerSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger of the phase, as the catalog and the ledger show it now.

    ``on`` is None when there is no such trigger any more. ``silenced``: the ledger's last word is that we turned it
    off. ``removed``: that we dropped it, too. ``as_planned``: its definition is the one in the plan. ``prepared``: its
    body can run after commit.
    """

    identity: str
    mode: Mode
    on: bool | None
    silenced: bool
    removed: bool = False
    as_planned: bool = True
    prepared: bool = False

    @property
    def gone(self) -> bool:
        """Whether it is not there any more because we dropped it."""
        return self.removed and self.on is None

    @property
    def idle(self) -> bool:
        """Whether it does nothing because of us: off, or dropped."""
        return self.silenced and (self.on is False or self.gone)


class Goal(Enum):
    """Where the operator wants the phase."""

    SILENCED = "silenced"
    SHADOWING = "shadowing"
    REMOVED = "removed"


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """A phase as it is now. ``captured``: the slot exists and still has all WAL since it was made.

    ``soak_left`` is None before the last trigger is off, then the seconds until the soak has passed, 0 when it has.
    """

    number: int
    goal: Goal
    triggers: Sequence[TriggerSeen]
    captured: bool
    gates: Sequence[Gate]
    soak_left: float | None = None

    @property
    def unmet(self) -> tuple[Gate, ...]:
        """The gates that do not hold."""
        return tuple(gate for gate in self.gates if not gate.met)

    @property
    def proven(self) -> bool:
        """Whether every gate was measured and holds."""
        return self.captured and bool(self.gates) and not self.unmet


class Silence(msgspec.Struct, frozen=True):
    """Turn these off."""

    triggers: tuple[str, ...]


class Restore(msgspec.Struct, frozen=True):
    """Turn these on again, as they were."""

    triggers: tuple[str, ...]
    because: str


class Remove(msgspec.Struct, frozen=True):
    """Drop these, which are off and have soaked."""

    triggers: tuple[str, ...]


class Wait(msgspec.Struct, frozen=True):
    """These gates do not hold yet; nothing may be turned off or dropped."""

    gates: tuple[Gate, ...]


class Soak(msgspec.Struct, frozen=True):
    """All are off; keep watching for so many seconds more."""

    seconds: float


class Done(msgspec.Struct, frozen=True):
    """The phase is where it was wanted."""

    state: State


class Halt(msgspec.Struct, frozen=True):
    """A person has to look: what was found, and what mends it."""

    reason: str
    remedy: str


Step = Silence | Restore | Remove | Wait | Soak | Done | Halt


def state_of(seen: Observation) -> State:
    """The state a phase is in: the least advanced of its triggers decides, those that were off before us aside."""
    ours = [trigger for trigger in seen.triggers if trigger.silenced]
    if seen.triggers and all(trigger.on is None for trigger in seen.triggers):
        return State.REMOVED
    if ours and all(trigger.gone for trigger in ours) and not any(trigger.on for trigger in seen.triggers):
        return State.REMOVED
    if ours and not any(trigger.on for trigger in seen.triggers):
        return State.SILENCED
    if seen.proven:
        return State.PROVEN
    return State.SHADOWING if seen.captured else State.SURVEYED


def broken_rules(seen: Observation) -> list[str]:
    """The rule that must hold at every moment, and where it does not: none is off or gone unless its work goes on.

    That is: what we turned off is captured, and what is deferred has its body prepared.
    """
    broken: list[str] = []
    for trigger in seen.triggers:
        if not trigger.idle:
            continue
        how = "removed" if trigger.gone else "off"
        if not seen.captured:
            broken.append(f"{trigger.identity} is {how} and its changes are not captured")
        if trigger.mode is Mode.DEFER and not trigger.prepared:
            broken.append(f"{trigger.identity} is {how} and its body is not prepared to run after commit")
    return broken


def next_step(seen: Observation) -> Step:
    """The one thing to do now, towards the goal. Going back never waits for a gate."""
    off = tuple(
        trigger.identity for trigger in seen.triggers if trigger.silenced and (trigger.on is not None or trigger.gone)
    )
    match seen.goal:
        case Goal.SHADOWING:
            return Restore(off, "asked for") if off else Done(state_of(seen))
        case Goal.SILENCED:
            return _towards_silence(seen, off)
        case Goal.REMOVED:
            return _towards_removal(seen, off)
        case _:
            assert_never(seen.goal)


def _towards_silence(seen: Observation, off: tuple[str, ...]) -> Step:
    back = f"afterwrite migrate rollback --phase {seen.number} --apply"
    soaking = seen.soak_left is not None
    if broken := broken_rules(seen):
        return Restore(off, "; ".join(broken))
    for trigger in seen.triggers:
        if trigger.on is None and not trigger.gone:
            return _lost(trigger, seen.number)
        if trigger.on and not trigger.as_planned:
            return Halt(
                f"{trigger.identity} or its function was changed after the plan was written",
                "run `afterwrite plan --again`, which keeps what was decided, and review the difference",
            )
        if trigger.on and soaking:
            how = "turned on again behind our back" if trigger.silenced else "rolled back"
            return Halt(
                f"{trigger.identity} was {how} while phase {seen.number} soaks",
                f"find out who, then `afterwrite migrate run --phase {seen.number} --apply`, or `{back}`",
            )
    on = tuple(trigger.identity for trigger in seen.triggers if trigger.on)
    if soaking and seen.unmet:
        return Restore(off, "; ".join(str(gate) for gate in seen.unmet))
    if on:
        if not seen.proven:
            return Wait(seen.unmet or (_NO_GATE,))
        check_transition(state_of(seen), State.SILENCED)
        return Silence(on)
    return Soak(seen.soak_left) if seen.soak_left else Done(state_of(seen))


def _towards_removal(seen: Observation, off: tuple[str, ...]) -> Step:
    if broken := broken_rules(seen):
        return Restore(off, "; ".join(broken))
    for trigger in seen.triggers:
        if trigger.on is None and not trigger.gone:
            return _lost(trigger, seen.number)
        if trigger.on and trigger.silenced:
            return Halt(
                f"{trigger.identity} was {'made' if trigger.removed else 'turned on'} again behind our back",
                f"find out who, then `afterwrite migrate run --phase {seen.number} --apply`, or "
                f"`afterwrite migrate rollback --phase {seen.number} --apply`",
            )
    there = tuple(trigger.identity for trigger in seen.triggers if trigger.silenced and not trigger.gone)
    if any(trigger.on for trigger in seen.triggers):
        return Wait((_not_silenced(seen),))
    if not there:
        return Done(state_of(seen))
    if not seen.proven:
        return Wait(seen.unmet or (_NO_GATE,))
    check_transition(state_of(seen), State.REMOVED)
    return Remove(there)


def _lost(trigger: TriggerSeen, number: int) -> Halt:
    if trigger.silenced:
        return Halt(
            f"{trigger.identity} was silenced by us and dropped by somebody else",
            f"`afterwrite migrate rollback --phase {number} --force --apply` makes it again as it was",
        )
    return Halt(
        f"{trigger.identity} is in the plan and no longer in the database",
        "run `afterwrite plan --again` and look what became of it",
    )


def _not_silenced(seen: Observation) -> Gate:
    on = [trigger.identity for trigger in seen.triggers if trigger.on]
    return Gate(
        name="silenced",
        met=False,
        value=f"{len(on)} still on: {', '.join(on[:3])}{', ...' if len(on) > 3 else ''}",
        threshold="every trigger of the phase off",
        window="now",
        source="pg_trigger and afterwrite.ledger",
        remedy=f"run `afterwrite migrate run --phase {seen.number} --apply` first, and let it soak",
    )


def check_transition(before: State, after: State) -> None:
    """Raise Refused unless a phase in state ``before`` may come to be in ``after``."""
    if before is after or (before, after) in _FORWARD | _BACK | _LAPSES:
        return
    raise Refused(
        f"a phase that is {before.value} cannot become {after.value}",
        remedy="run `afterwrite migrate status`, which says what is missing",
    )


_NO_GATE = Gate(
    name="capture",
    met=False,
    value=None,
    threshold="a slot that keeps all WAL since it was made",
    window="now",
    source="pg_replication_slots",
    remedy="run `afterwrite install --apply` and `afterwrite capture`",
)
