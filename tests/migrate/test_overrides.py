"""A plan that decides otherwise than scan: with a reason, loudly, and never against what is certain."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from migrating import PLACE, application, plan_of
from test_plan import judgement

from afterwrite.errors import Refused, Severity, UsageError
from afterwrite.migrate.overrides import forbidden, overrides, refuse_certain
from afterwrite.migrate.plan import Plan, keep_decisions, make_plan, read_plan, write_plan
from afterwrite.migrate.status import status
from afterwrite.scan.rules import RULES
from afterwrite.scan.verdicts import Judgement, Reason, Verdict

LOOSE, STRICT = 'reason = "the guard is dead code since 2023"', 'reason = "the auditors read the table"'


def judged(name: str, verdict: Verdict, rule: str, **changes: object) -> Judgement:
    made = judgement("users", name, verdict, **changes)
    return msgspec.structs.replace(made, reasons=(Reason(rule=rule, line=3, text=f"does what {rule} finds"),))


def moved(text: str, section: str, mode: str) -> str:
    """A plan's text with the entry of [[section]] moved into the last phase."""
    head, _, tail = text.partition(f"[[{section}]]\n")
    entry, _, rest = tail.partition("\n\n")
    lines = entry.strip().replace("\nrule = ", f'\nmode = "{mode}"\nrule = ', 1)
    first, _, after = head.partition("\n\n\n# What stays")
    return f"{first}\n\n[[phase.trigger]]\n{lines}\n{LOOSE}\n\n\n# What stays{after}{rest}"


def test_what_scan_keeps_is_let_go_only_with_a_reason_and_is_warned_of() -> None:
    text = write_plan(
        make_plan([judged("guard", Verdict.KEEP, "raises"), judged("log", Verdict.RETIRE, "appends-to-log")])
    )
    with pytest.raises(UsageError, match="where scan's verdict is keep"):
        read_plan(moved(text, "keep", "retire").replace(f"\n{LOOSE}", "", 1))
    plan = read_plan(moved(text, "keep", "retire"))
    [found] = overrides(plan)
    assert (found.severity, found.where) == (Severity.WARNING, "public.users.guard")
    assert "scan says keep (raises: does what raises finds)" in found.text
    assert "the plan says retire, because: the guard is dead code since 2023" in found.text
    assert overrides(plan, 5) == [found]
    assert overrides(plan, 1) == []


def test_what_scan_lets_go_may_be_kept_and_is_told_quietly() -> None:
    text = write_plan(make_plan([judged("log", Verdict.RETIRE, "appends-to-log")]))
    head, _, entry = text.partition("[[phase.trigger]]\n")
    left = entry.partition("\n\n\n")[0].replace('mode = "retire"\n', "")
    plan = read_plan(f"{head}\n[[keep]]\n{left}\n{STRICT}\n")
    [found] = overrides(plan)
    assert found.severity is Severity.INFO
    assert "scan says retire" in found.text
    assert "the auditors read the table" in found.text


@pytest.mark.parametrize("rule", [name for name, entry in RULES.items() if Verdict.RETIRE in entry.never])
def test_what_is_certain_is_kept_whatever_the_reason(rule: str) -> None:
    judgement = judged("guard", Verdict.KEEP, rule)
    text = write_plan(make_plan([judgement]))
    for mode in ("retire", "defer"):
        with pytest.raises(UsageError, match=f"as {mode}, and scan says") as refused:
            read_plan(moved(text, "keep", mode))
        assert rule in str(refused.value)
    # Nor does it help to take the rule out of the file.
    without = read_plan(moved(text, "keep", "retire").replace(f'rule = "{rule}"\n', ""))
    assert [finding.rule for finding in forbidden(without, [judgement])] == ["plan.forbidden"]


def test_what_shapes_its_row_may_go_but_not_wait() -> None:
    text = write_plan(make_plan([judged("stamp", Verdict.KEEP, "changes-new")]))
    assert read_plan(moved(text, "keep", "retire")).phase(5).triggers[0].reason is not None
    with pytest.raises(UsageError, match="as defer, and scan says changes-new"):
        read_plan(moved(text, "keep", "defer"))


def test_a_decision_outlives_a_new_plan_but_not_the_body_that_it_was_made_for() -> None:
    guard = judged("guard", Verdict.KEEP, "raises")
    old = read_plan(moved(write_plan(make_plan([guard])), "keep", "retire"))
    again, lost = keep_decisions(old, make_plan([guard]))
    assert lost == []
    assert overrides(again) == overrides(old)
    assert read_plan(write_plan(again)) == again

    changed = judged("guard", Verdict.KEEP, "raises", definition="CREATE FUNCTION public.log() -- another")
    again, [lost_one] = keep_decisions(old, make_plan([changed]))
    assert "the guard is dead code since 2023" in lost_one
    assert overrides(again) == []

    certain = judged("guard", Verdict.KEEP, "constraint-trigger")
    again, [lost_one] = keep_decisions(old, make_plan([certain]))
    assert "no reason helps against that" in lost_one
    assert read_plan(write_plan(again)) == again


def test_how_the_server_keeps_a_foreign_key_is_no_trigger_of_a_plan() -> None:
    text = write_plan(make_plan([judged("RI_ConstraintTrigger_a_16400", Verdict.KEEP, "raises")]))
    with pytest.raises(UsageError, match="foreign key"):
        read_plan(moved(text, "keep", "retire"))


def test_the_engine_refuses_what_no_plan_may_turn_off() -> None:
    text = write_plan(make_plan([judged("guard", Verdict.KEEP, "raises")]))
    planned = read_plan(moved(text, "keep", "retire")).phase(5).triggers[0]
    for changes in ({"constraint": True}, {"extension": "hypopg"}):
        with pytest.raises(Refused, match="the plan turns it off"):
            refuse_certain(planned, judged("guard", Verdict.KEEP, "raises", **changes).trigger)
    refuse_certain(planned, judged("guard", Verdict.KEEP, "raises").trigger)


def test_where_a_migration_stands_tells_what_was_decided_otherwise(installed_dsn: str) -> None:
    async def look() -> list[str]:
        async with application(installed_dsn) as db:
            text = write_plan(await plan_of(db))
            plan = read_plan(moved(text, "keep", "retire"))
            return [found.text for found in (await status(db, place=PLACE, plan=plan)).findings]

    assert any("because: the guard is dead code since 2023" in text for text in asyncio.run(look()))


def test_a_plan_from_before_rules_were_noted_is_read() -> None:
    plan = make_plan([judged("guard", Verdict.KEEP, "raises")])
    old = read_plan(write_plan(plan).replace('rule = "raises"\n', ""))
    assert isinstance(old, Plan)
    assert [entry.rule for entry in old.kept] == [""]
