"""Where a plan decides otherwise than scan: who may, and how loudly it is told.

An override is an entry of the plan that stands elsewhere than scan's verdict would put it, with a reason. It lives in
the plan alone, goes with it into the ledger, and is kept when the plan is written anew. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from afterwrite.errors import Finding, Refused, Severity
from afterwrite.migrate.plan import LeftTrigger, Plan, PlannedTrigger, entries
from afterwrite.scan.catalog import Timing, Trigger
from afterwrite.scan.rules import RULES
from afterwrite.scan.verdicts import Judgement, Verdict

# What each allows to be done to a trigger, least first.
_LOOSENESS = (Verdict.KEEP, Verdict.REVIEW, Verdict.DEFER, Verdict.RETIRE)


def overrides(plan: Plan, phase: int | None = None) -> list[Finding]:
    """Every override of a plan, or those of one phase.

    One that lets a trigger go which scan would not is a warning; the others are only told.
    """
    of_phase = {trigger.trigger for trigger in plan.phase(phase).triggers} if phase is not None else None
    return [found for found in _overrides(plan) if of_phase is None or found.where in of_phase]


def forbidden(plan: Plan, judgements: Sequence[Judgement]) -> list[Finding]:
    """Triggers that a plan moves and that cannot go, whatever its reason says: errors."""
    now = {judgement.trigger.identity: judgement for judgement in judgements}
    found: list[Finding] = []
    for _, entry in entries(plan):
        judgement = now.get(entry.trigger)
        if judgement is None or not isinstance(entry, PlannedTrigger):
            continue
        decided = Verdict(entry.mode.value)
        for reason in judgement.reasons:
            rule = RULES.get(reason.rule)
            if rule is not None and decided in rule.never:
                found.append(
                    Finding(
                        rule="plan.forbidden",
                        severity=Severity.ERROR,
                        where=entry.trigger,
                        text=f"the plan says {decided.value}, and that cannot be: it {reason.text} ({reason.rule})",
                        remedy="move it to [[keep]]",
                    )
                )
                break
    return found


def refuse_certain(planned: PlannedTrigger, trigger: Trigger) -> None:
    """Raise Refused for an override that turns off what is certain to stay: a constraint's, an extension's, a view's.

    The plan's reader refuses it by the rule that the plan notes; this one looks at the trigger itself.
    """
    if planned.verdict in (Verdict.RETIRE, Verdict.DEFER):
        return
    what = (
        f"belongs to the extension {trigger.extension}"
        if trigger.extension is not None
        else "is a constraint trigger"
        if trigger.constraint
        else "does the writing of a view"
        if trigger.timing is Timing.INSTEAD
        else None
    )
    if what is not None:
        raise Refused(f"{trigger.identity} {what}, and the plan turns it off", remedy="move it to [[keep]] in the plan")


def _overrides(plan: Plan) -> Iterator[Finding]:
    for where, entry in entries(plan):
        decided = _decided(where, entry)
        if decided is entry.verdict:
            continue
        looser = _LOOSENESS.index(decided) > _LOOSENESS.index(entry.verdict)
        said = f" ({entry.rule}: {entry.because})" if entry.rule else f" ({entry.because})"
        yield Finding(
            rule="plan.overridden",
            severity=Severity.WARNING if looser else Severity.INFO,
            where=entry.trigger,
            text=f"scan says {entry.verdict.value}{said}; the plan says {decided.value}, because: {entry.reason}",
            remedy=f"move it back to [[{entry.verdict.value}]] unless that is so"
            if looser and entry.verdict in (Verdict.KEEP, Verdict.REVIEW)
            else None,
        )


def _decided(where: str, entry: PlannedTrigger | LeftTrigger) -> Verdict:
    return Verdict(entry.mode.value) if isinstance(entry, PlannedTrigger) else Verdict(where)
