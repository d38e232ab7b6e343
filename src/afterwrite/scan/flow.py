"""What a body's decisions hang on: which columns and tables flow into its RAISE, its RETURN NULL, its changes to NEW.

Pure. Errs on the side of more: a variable that is ever set from a table carries that table wherever it goes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from afterwrite.scan.catalog import Timing, Trigger, TriggerLevel
from afterwrite.scan.facts import Body, Guard, Read


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """``reads`` are tables whose content decides; ``columns`` those of the trigger's own row, ``*`` for all of it."""

    reads: tuple[Read, ...] = ()
    columns: frozenset[str] = frozenset()


def refusal(body: Body, *, by_values: bool = False) -> Decision | None:
    """What decides whether a body raises; None when it never does.

    ``by_values`` leaves out what only hangs on whether a row was found.
    """
    raising = [fact for fact in body.raises if fact.level == "exception" and fact.form != "reraise"]
    if by_values:
        raising = [fact for fact in raising if fact.form != "strict"]
    if not raising:
        return None
    names = {name for fact in raising for name in _guard_names(fact.guards)}
    if any(fact.loop for fact in raising):  # for each row that is found
        names |= {each.variable for each in body.assignments if each.selected and each.line in body.loops}
    return _decision(body, {name for name in names if not by_values or name.rpartition(".")[2] != "found"})


def influence(trigger: Trigger, body: Body) -> Decision | None:
    """What decides how a trigger shapes its writer's row, or forbids it; None when it does neither."""
    wanted: set[str] = set()
    found = False
    for fact in body.raises:
        if fact.level == "exception" and fact.form != "reraise":
            found = True
            wanted.update(_guard_names(fact.guards))
    if trigger.timing is not Timing.AFTER and trigger.level is TriggerLevel.ROW:
        for change in body.new_assignments:
            found = True
            wanted.update((f"new.{change.field}", *change.names, *_guard_names(change.guards)))
        for returned in body.returns:
            if returned.what == "null":
                found = True
                wanted.update(_guard_names(returned.guards))
    return _decision(body, wanted) if found else None


def everything(body: Body) -> Decision:
    """All that a body reads, for one whose whole effect must be there at once."""
    return Decision(reads=body.reads, columns=body.new_columns | body.old_columns)


def _decision(body: Body, wanted: set[str]) -> Decision:
    needed = _closure(body, wanted)
    columns = {name.partition(".")[2] for name in needed if name.startswith(("new.", "old."))}
    return Decision(
        reads=tuple(read for read in body.reads if needed.intersection(read.into)),
        columns=frozenset(columns),
    )


def _closure(body: Body, wanted: set[str]) -> set[str]:
    """The names, and those that flow into them through assignments and the arguments of calls."""
    needed = set(wanted)
    while True:
        before = len(needed)
        for assignment in body.assignments:
            base = assignment.variable.partition(".")[0]
            if assignment.variable in needed or base in needed:
                needed.update(assignment.names, _guard_names(assignment.guards))
        for call in body.calls:
            if needed.intersection(call.into):
                needed.update(call.names)
        for read in body.reads:
            if needed.intersection(read.into):
                needed.update(_guard_names(read.guards))
        if len(needed) == before:
            return needed


def _guard_names(guards: Iterable[Guard]) -> Iterable[str]:
    return (name for guard in guards for name in guard.names)
