"""The plan: which trigger stands where, what people may edit, and where the database has moved away from it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwrite.errors import UsageError
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import (
    TITLES,
    LeftTrigger,
    Phase,
    Plan,
    PlannedTrigger,
    TableFigures,
    Thresholds,
    check_plan,
    make_plan,
    read_plan,
    write_plan,
)
from afterwrite.scan.catalog import Enabled, Event, Timing, Trigger, TriggerLevel
from afterwrite.scan.verdicts import Judgement, Reason, Verdict


def trigger(table: str, name: str = "log", **changes: object) -> Trigger:
    found = Trigger(
        oid=1,
        schema="public",
        table=table,
        table_oid=2,
        name=name,
        timing=Timing.AFTER,
        level=TriggerLevel.ROW,
        events=(Event.INSERT, Event.UPDATE),
        create=f"CREATE TRIGGER {name} ON {table}",
        function_oid=3,
        function_schema="public",
        function="log",
        language="plpgsql",
        source="",
        definition="CREATE FUNCTION public.log()",
        function_owner="boss",
    )
    return msgspec.structs.replace(found, **changes)


def judgement(table: str, name: str = "log", verdict: Verdict = Verdict.RETIRE, **changes: object) -> Judgement:
    reason = Reason(rule="only-log", line=4, text="it only inserts\ninto audit_logs")
    return Judgement(trigger=trigger(table, name, **changes), verdict=verdict, reasons=(reason,))


def placed(plan: Plan) -> dict[str, int]:
    return {each.trigger.split(".")[1]: phase.number for phase in plan.phases for each in phase.triggers}


def test_tables_with_telling_names_have_their_place_by_name() -> None:
    names = {
        "notifications": 1,
        "bulk_operations": 1,
        "token_templates": 2,
        "project_settings": 2,
        "investments": 3,
        "subscriptions": 3,
        "distributions": 3,
        "redemptions": 3,
        "wallets": 3,
        "wallet_transactions": 3,
        "tokens": 4,
        "token_allocations": 4,
        "token_operations": 4,
        "users": 5,
        "projects": 5,
        "investors": 5,
    }
    plan = make_plan([judgement(table) for table in names])
    assert placed(plan) == names
    assert {phase.number: phase.title for phase in plan.phases} == TITLES


def test_other_tables_have_their_place_by_weight() -> None:
    figures = [
        TableFigures(schema="public", table="a", writes=1, incoming_foreign_keys=0, trigger_ms=0.0),
        TableFigures(schema="public", table="b", writes=1, incoming_foreign_keys=1, trigger_ms=0.0),
        TableFigures(schema="public", table="c", writes=500, incoming_foreign_keys=0, trigger_ms=10.0),
        TableFigures(schema="public", table="d", writes=5, incoming_foreign_keys=7, trigger_ms=1.0),
        TableFigures(schema="public", table="e", writes=500, incoming_foreign_keys=3, trigger_ms=90.0),
    ]
    plan = make_plan([judgement(table) for table in "abcde"], figures)
    assert placed(plan) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert not set(TITLES.values()) & {phase.title for phase in plan.phases}
    deferred = make_plan([judgement("a", verdict=Verdict.DEFER)], figures)
    assert placed(deferred) == {"a": 2}


def test_all_triggers_of_a_table_move_together_and_the_rest_is_listed_with_its_reason() -> None:
    plan = make_plan(
        [
            judgement("tokens", "b", Verdict.DEFER),
            judgement("tokens", "a"),
            judgement("tokens", "guard", Verdict.KEEP),
            judgement("tokens", "odd", Verdict.REVIEW, enabled=Enabled.DISABLED),
            judgement("tokens", "clone", parent_oid=9),
        ]
    )
    assert [(each.trigger, each.mode) for each in plan.phase(4).triggers] == [
        ("public.tokens.a", Mode.RETIRE),
        ("public.tokens.b", Mode.DEFER),
    ]
    assert [each.trigger for each in plan.kept] == ["public.tokens.guard"]
    assert plan.kept[0].because == "it only inserts into audit_logs"
    assert [each.because for each in plan.review] == ["already disabled; it only inserts into audit_logs"]


def test_the_same_judgements_in_any_order_give_the_same_text() -> None:
    judgements = [judgement(table, name) for table in ("users", "tokens", "x") for name in ("a", "b")]
    assert write_plan(make_plan(judgements)) == write_plan(make_plan(list(reversed(judgements))))


text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=30)
planned = st.builds(
    PlannedTrigger,
    trigger=text,
    verdict=st.sampled_from([Verdict.RETIRE, Verdict.DEFER]),
    mode=st.just(Mode.RETIRE),
    because=text,
    fires=st.just((Event.INSERT, Event.DELETE)),
    rare=st.sampled_from([(), (Event.DELETE,)]),
    fingerprint=text,
    reason=text.map(lambda value: f"x{value}"),
)
left = st.builds(
    LeftTrigger,
    trigger=text,
    verdict=st.just(Verdict.KEEP),
    because=text,
    fires=st.just(()),
    fingerprint=text,
    reason=st.none() | text,
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    triggers = draw(st.lists(planned, max_size=4, unique_by=lambda each: each.trigger))
    taken = {each.trigger for each in triggers}
    kept = [
        each
        for each in draw(st.lists(left, max_size=3, unique_by=lambda each: each.trigger))
        if each.trigger not in taken
    ]
    thresholds = Thresholds(proof_seconds=draw(st.floats(0, 1e9)), capture_lag_bytes=draw(st.integers(0, 2**60)))
    own = msgspec.structs.replace(thresholds, proof_transactions=draw(st.integers(0, 9)))
    phase = Phase(
        number=1, title=draw(text), soak_seconds=draw(st.floats(0, 1e9)), thresholds=own, triggers=tuple(triggers)
    )
    return Plan(thresholds=thresholds, phases=(phase,), kept=tuple(kept))


@given(plans())
def test_a_plan_survives_its_file(plan: Plan) -> None:
    assert read_plan(write_plan(plan)) == plan
    assert write_plan(read_plan(write_plan(plan))) == write_plan(plan)


PLAN = make_plan(
    [
        judgement("users", "log", events=(Event.INSERT, Event.DELETE)),
        judgement("users", "guard", Verdict.KEEP),
        judgement("users", "odd", Verdict.REVIEW),
    ]
)
TEXT = write_plan(PLAN)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("version = 1", "version = 2", "reads version = 1"),
        ('\nmode = "retire"', '\nmode = "retyre"', r"trigger public\.users\.log: .*retyre.*one of retire, defer"),
        ('\nmode = "retire"', '\nmode = "retire"\nmod = ""', r"trigger public\.users\.log: .*unknown field `mod`"),
        ('\nmode = "retire"', '\nmode = "defer"', "mode = defer.*where scan's verdict is retire"),
        ('fires = ["insert", "delete"]', 'fires = ["insert"]\nrare = ["delete"]', "does not fire on delete"),
        ('fires = ["insert", "delete"]', 'fires = ["inserts"]', "fires is one of insert, update, delete, truncate"),
        ("[[review]]", "[[phase.trigger]]", r"trigger public\.users\.odd: .*missing required field `mode`"),
        ("[[review]]", "[[keep]]", r"public\.users\.odd in keep, where scan's verdict is review"),
        ("number = 5", "number = 4", r"numbered \[1, 2, 3, 4, 4\]"),
        ('trigger = "public.users.odd"', 'trigger = "public.users.log"', "twice"),
        ("proof_seconds = 3600.0", "proof_seconds = -1.0", "proof_seconds cannot be negative"),
        ("proof_seconds = 3600.0", "proof_second = 1.0", "unknown field `proof_second`"),
        ("[gates]", "[gates", "not TOML"),
    ],
)
def test_a_wrong_edit_is_refused_with_place_and_reason(before: str, after: str, said: str) -> None:
    assert before in TEXT
    with pytest.raises(UsageError, match=said):
        read_plan(TEXT.replace(before, after, 1))


def test_an_override_with_a_reason_is_taken() -> None:
    text = TEXT.replace('\nmode = "retire"', '\nmode = "defer"\nreason = "readers still need the table"')
    assert read_plan(text).phase(5).triggers[0].mode is Mode.DEFER


def test_a_trigger_moved_from_review_to_a_phase_needs_the_reason_too() -> None:
    head, _, tail = TEXT.partition("[[review]]")
    entry = tail.strip().replace('verdict = "review"', 'verdict = "review"\nmode = "retire"')
    first, _, rest = head.partition("[[phase.trigger]]")
    moved = f"{first}[[phase.trigger]]\n{entry}\n\n[[phase.trigger]]{rest}"
    with pytest.raises(UsageError, match="where scan's verdict is review"):
        read_plan(moved)
    with_reason = moved.replace('mode = "retire"\n', 'mode = "retire"\nreason = "we read it"\n', 1)
    assert len(read_plan(with_reason).phase(5).triggers) == 2


def test_a_phase_may_have_figures_of_its_own() -> None:
    text = TEXT.replace('title = "the high', 'gates = { proof_transactions = 7 }\ntitle = "the high')
    plan = read_plan(text)
    assert plan.phase(5).thresholds.proof_transactions == 7
    assert plan.phase(5).thresholds.proof_seconds == plan.thresholds.proof_seconds
    assert plan.phase(1).thresholds == plan.thresholds
    with pytest.raises(UsageError, match="unknown field"):
        read_plan(text.replace("{ proof_transactions", "{ prof_transactions"))


def test_a_phase_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="has no phase 9; it has 1, 2, 3, 4, 5"):
        PLAN.phase(9)


def test_drift_is_found_trigger_by_trigger() -> None:
    now = [
        judgement(
            "users", "log", events=(Event.INSERT, Event.DELETE), definition="CREATE FUNCTION public.log() -- new"
        ),
        judgement("users", "odd", Verdict.RETIRE),
        judgement("users", "new"),
    ]
    assert [(finding.rule, finding.where) for finding in check_plan(PLAN, now)] == [
        ("plan.changed", "public.users.log"),
        ("plan.gone", "public.users.guard"),
        ("plan.verdict", "public.users.odd"),
        ("plan.new", "public.users.new"),
    ]


def test_turning_off_what_may_change_the_row_is_warned_of() -> None:
    before = judgement("users", "b", timing=Timing.BEFORE)
    plan = make_plan([before])
    assert [finding.rule for finding in check_plan(plan, [before])] == ["plan.not_after"]


def test_drift_says_whether_the_trigger_or_its_function_was_changed() -> None:
    def said(**changes: object) -> list[str]:
        now = [judgement("users", **changes)]
        return [finding.text.partition(" changed")[0] for finding in check_plan(make_plan([judgement("users")]), now)]

    assert said() == []
    assert said(create="CREATE TRIGGER log BEFORE UPDATE ON users") == ["the trigger was"]
    assert said(definition="CREATE FUNCTION public.log() -- more") == ["its function public.log() was"]
    assert said(function_owner="eve") == ["its function public.log() was"]
    assert said(create="", definition="") == ["the trigger and its function public.log() were"]


def test_a_trigger_that_is_off_is_drift_unless_the_ledger_says_that_it_was_us() -> None:
    plan = make_plan([judgement("users"), judgement("users", "guard", Verdict.KEEP)])
    off = [
        judgement("users", enabled=Enabled.DISABLED),
        judgement("users", "guard", Verdict.KEEP, enabled=Enabled.DISABLED),
    ]
    everything = {"public.users.log", "public.users.guard"}

    def said(silenced: set[str] | None) -> list[tuple[str, str]]:
        return [(finding.where, finding.text) for finding in check_plan(plan, off, silenced=silenced)]

    usual = "disabled by somebody else than afterwrite; it fired as usual when the plan was written"
    assert said(set()) == [("public.users.log", usual), ("public.users.guard", usual)]
    # What stays is never turned off by us, whatever the ledger says.
    assert said(everything) == [("public.users.guard", usual)]
    assert said(None) == [
        ("public.users.log", "disabled, and whether by afterwrite cannot be read"),
        ("public.users.guard", usual),
    ]


def test_a_trigger_that_was_off_and_fires_again_is_drift() -> None:
    plan = make_plan([judgement("users", enabled=Enabled.DISABLED)])
    assert 'enabled = "never"' in write_plan(plan)
    assert read_plan(write_plan(plan)) == plan
    assert check_plan(plan, [judgement("users", enabled=Enabled.DISABLED)]) == []
    for enabled, text in (
        (Enabled.ORIGIN, "fires as usual now; it was disabled when the plan was written"),
        (Enabled.ALWAYS, "fires always now; it was disabled when the plan was written"),
    ):
        assert [finding.text for finding in check_plan(plan, [judgement("users", enabled=enabled)])] == [text]
