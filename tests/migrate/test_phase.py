"""The phase machine: which step follows from what is seen, and the rule that no step may break."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from afterwrite.errors import Refused
from afterwrite.migrate.phase import (
    Done,
    Gate,
    Goal,
    Halt,
    Mode,
    Observation,
    Restore,
    Silence,
    Soak,
    State,
    TriggerSeen,
    Wait,
    broken_rules,
    check_transition,
    next_step,
    state_of,
)


def gate(name: str = "proof", *, met: bool = True) -> Gate:
    return Gate(name=name, met=met, value="1", threshold="1", window="now", source="a test", remedy="none")


def seen(*triggers: TriggerSeen, goal: Goal = Goal.SILENCED, **changes: object) -> Observation:
    found = Observation(number=2, goal=goal, triggers=triggers, captured=True, gates=(gate(),))
    return msgspec.structs.replace(found, **changes)


def trigger(identity: str = "public.t.a", **changes: object) -> TriggerSeen:
    found = TriggerSeen(identity=identity, mode=Mode.RETIRE, on=True, silenced=False)
    return msgspec.structs.replace(found, **changes)


OFF = trigger(on=False, silenced=True)


def test_a_phase_is_silenced_when_its_gates_hold() -> None:
    assert next_step(seen(trigger(), trigger("public.t.b"))) == Silence(("public.t.a", "public.t.b"))


def test_only_what_is_still_on_is_silenced_after_a_crash_in_between() -> None:
    assert next_step(seen(OFF, trigger("public.t.b"))) == Silence(("public.t.b",))


def test_a_gate_that_does_not_hold_is_waited_for_and_named() -> None:
    assert next_step(seen(trigger(), gates=(gate(), gate("capture lag", met=False)))) == Wait(
        (gate("capture lag", met=False),)
    )


def test_without_any_measured_gate_nothing_is_turned_off() -> None:
    step = next_step(seen(trigger(), gates=()))
    assert isinstance(step, Wait)
    assert step.gates[0].value is None


def test_a_gate_that_breaks_during_the_soak_turns_the_phase_back_on() -> None:
    step = next_step(seen(OFF, gates=(gate(met=False),), soak_left=10.0))
    assert isinstance(step, Restore)
    assert step.triggers == ("public.t.a",)
    assert "proof is 1, needs 1" in step.because


def test_a_soak_ends_when_its_time_has_passed() -> None:
    assert next_step(seen(OFF, soak_left=10.0)) == Soak(10.0)
    assert next_step(seen(OFF, soak_left=0.0)) == Done(State.SILENCED)


def test_a_trigger_that_was_off_before_is_left_alone() -> None:
    before = trigger("public.t.b", on=False)
    assert next_step(seen(trigger(), before)) == Silence(("public.t.a",))
    assert state_of(seen(OFF, before)) is State.SILENCED
    assert next_step(seen(before, goal=Goal.SHADOWING)) == Done(State.PROVEN)


def test_a_changed_or_missing_trigger_halts_the_phase() -> None:
    assert isinstance(next_step(seen(trigger(as_planned=False))), Halt)
    assert isinstance(next_step(seen(trigger(on=None), trigger("public.t.b"))), Halt)


def test_a_trigger_that_somebody_turned_on_halts_the_soak_and_is_silenced_when_asked() -> None:
    reenabled = trigger(on=True, silenced=True)
    assert isinstance(next_step(seen(reenabled, soak_left=5.0)), Halt)
    assert next_step(seen(reenabled)) == Silence(("public.t.a",))


def test_going_back_waits_for_nothing() -> None:
    deferred = trigger("public.t.b", mode=Mode.DEFER, on=False, silenced=True)
    step = next_step(seen(OFF, deferred, goal=Goal.SHADOWING, captured=False, gates=()))
    assert step == Restore(("public.t.a", "public.t.b"), "asked for")


def test_an_unprepared_deferral_that_is_off_goes_back_on() -> None:
    step = next_step(seen(trigger(mode=Mode.DEFER, on=False, silenced=True)))
    assert isinstance(step, Restore)
    assert "not prepared" in step.because


def test_states_follow_from_what_is_seen() -> None:
    assert state_of(seen(trigger(), captured=False, gates=())) is State.SURVEYED
    assert state_of(seen(trigger(), gates=(gate(met=False),))) is State.SHADOWING
    assert state_of(seen(trigger())) is State.PROVEN
    assert state_of(seen(OFF, trigger("public.t.b"))) is State.PROVEN
    assert state_of(seen(OFF)) is State.SILENCED
    assert state_of(seen(trigger(on=None))) is State.REMOVED


def test_only_the_drawn_transitions_are_allowed() -> None:
    forward = list(State)
    for before, after in pairwise(forward):
        check_transition(before, after)
    check_transition(State.SILENCED, State.SHADOWING)
    check_transition(State.REMOVED, State.SHADOWING)
    for before, after in (
        (State.SURVEYED, State.SILENCED),
        (State.SHADOWING, State.SILENCED),
        (State.PROVEN, State.REMOVED),
        (State.SILENCED, State.PROVEN),
        (State.REMOVED, State.SILENCED),
    ):
        with pytest.raises(Refused, match=before.value):
            check_transition(before, after)


class PhaseMachine(RuleBasedStateMachine):
    """A world that obeys ``next_step``, with crashes in the middle of steps, strangers, and a capture that fails."""

    @initialize(modes=st.lists(st.sampled_from(Mode), min_size=1, max_size=5))
    def begin(self, modes: list[Mode]) -> None:
        self.triggers = {
            f"public.t.{index}": trigger(f"public.t.{index}", mode=mode) for index, mode in enumerate(modes)
        }
        self.captured = False
        self.gates_hold = False
        self.goal = Goal.SHADOWING
        self.soak_left: float | None = None
        self.off_by_us: dict[str, bool] = {}
        self.settled = True

    def look(self) -> Observation:
        soaking = self.soak_left if all(not each.on for each in self.triggers.values()) else None
        return Observation(
            number=1,
            goal=self.goal,
            triggers=tuple(self.triggers.values()),
            captured=self.captured,
            gates=(gate(met=self.gates_hold),),
            soak_left=soaking,
        )

    def change(self, identity: str, **changes: object) -> None:
        self.triggers[identity] = msgspec.structs.replace(self.triggers[identity], **changes)

    @rule(captured=st.booleans())
    def capture_comes_or_goes(self, captured: bool) -> None:
        self.captured = captured
        self.settled = False

    @rule(hold=st.booleans())
    def gates_change(self, hold: bool) -> None:
        self.gates_hold = hold
        self.settled = False

    @rule(goal=st.sampled_from(Goal))
    def operator_asks(self, goal: Goal) -> None:
        self.goal = goal
        self.settled = False

    @precondition(lambda self: any(each.silenced for each in self.triggers.values()))
    @rule(data=st.data())
    def stranger_turns_one_on(self, data: st.DataObject) -> None:
        silenced = sorted(identity for identity, each in self.triggers.items() if each.silenced)
        self.change(data.draw(st.sampled_from(silenced)), on=True)
        self.settled = False

    @rule(crash_after=st.integers(0, 6))
    def take_a_step(self, crash_after: int) -> None:
        found = self.look()
        step = next_step(found)
        match step:
            case Silence(identities):
                assert found.proven, "turned off without a proof"
                check_transition(state_of(found), State.SILENCED)
                for identity in identities[:crash_after]:
                    # What the engine's one transaction does: prepare, turn off, tell.
                    self.change(identity, on=False, silenced=True, prepared=True)
                if crash_after >= len(identities):
                    self.soak_left = 3.0
            case Restore(identities):
                for identity in identities[:crash_after]:
                    self.change(identity, on=True, silenced=False)
                self.soak_left = None
            case Soak(seconds):
                self.soak_left = max(0.0, seconds - 1.0)
            case Wait(gates):
                assert gates
            case Halt(reason, remedy):
                assert reason
                assert remedy
            case Done():
                pass
        self.settled = isinstance(step, Done | Wait | Halt | Soak)

    @invariant()
    def the_rule_holds_or_the_next_step_mends_it(self) -> None:
        found = self.look()
        if broken_rules(found):
            assert isinstance(next_step(found), Restore)

    @invariant()
    def nothing_is_off_without_our_word_in_the_ledger(self) -> None:
        for each in self.triggers.values():
            assert each.on or each.silenced

    @invariant()
    def going_back_always_ends_with_everything_on(self) -> None:
        back = msgspec.structs.replace(self.look(), goal=Goal.SHADOWING)
        step = next_step(back)
        off = {each.identity for each in self.triggers.values() if each.silenced}
        assert (set(step.triggers) if isinstance(step, Restore) else set()) == off


TestPhaseMachine = PhaseMachine.TestCase
TestPhaseMachine.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
