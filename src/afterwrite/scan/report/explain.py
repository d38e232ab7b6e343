"""A trigger's bodies with the lines that decide: its WHEN, its own function, and the functions that it goes through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Function, Trigger
from afterwrite.scan.follow import source_of
from afterwrite.scan.survey import Survey
from afterwrite.scan.verdicts import Judgement, Reason

_WHEN = "WHEN"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a body, with the rules that it decides and those that only note it."""

    number: int
    text: str
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A body, or the WHEN condition: ``title`` says which. ``own`` is the trigger's own function."""

    title: str
    own: bool
    lines: tuple[Line, ...]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a trigger got its verdict: the passages that decide, and ``needs`` in words, with lines."""

    judgement: Judgement
    passages: tuple[Passage, ...]
    needs: tuple[str, ...]


def explain(found: Survey, judgement: Judgement) -> Explanation:
    """The passages of a trigger's judgement: WHEN where it decides, the whole own body, and what it goes through."""
    atlas = Atlas(found.inventory)
    trigger = judgement.trigger
    rules = _marks(judgement.reasons)
    notes = _marks(judgement.notes)
    passages: list[Passage] = []
    if trigger.when is not None:
        told = tuple(sorted({reason.rule for reason in judgement.reasons if reason.via[:1] == (_WHEN,)}))
        lines = enumerate(trigger.when.split("\n"), start=1)
        passages.append(
            Passage(
                title="WHEN of the trigger",
                own=False,
                lines=tuple(Line(number=number, text=text, rules=told) for number, text in lines),
            )
        )
    own = f"{trigger.function_schema}.{trigger.function}()"
    passages.append(_passage(own, trigger.source, rules[""], notes[""], own=True))
    for name in dict.fromkeys((*rules, *notes)):
        if name and (text := _text_of(atlas, name)) is not None:
            passages.append(_passage(f"{name}()", text, rules[name], notes[name], own=False))
    return Explanation(judgement=judgement, passages=tuple(passages), needs=tuple(_needs(found, judgement)))


Marks = Mapping[int, tuple[str, ...]]


def _marks(reasons: Iterable[Reason]) -> defaultdict[str, Marks]:
    """By function (``""`` for the trigger's own): the rules of each line."""
    found: defaultdict[str, dict[int, tuple[str, ...]]] = defaultdict(dict)
    for reason in reasons:
        places = [("", reason.line)] if reason.line is not None else []
        places += [place for step in reason.via if (place := _place(step)) is not None]
        for name, line in places:
            listed = found[name].get(line or 0, ())
            if reason.rule not in listed:
                found[name][line or 0] = (*listed, reason.rule)
    return defaultdict(dict, found)


def _place(step: str) -> tuple[str, int] | None:
    """Function and line of a step of a reason's way; None for WHEN."""
    name, _, line = step.rpartition(":")
    return (name, int(line)) if name and line.isdigit() else None


def _passage(title: str, text: str, rules: Marks, notes: Marks, *, own: bool) -> Passage:
    return Passage(
        title=title,
        own=own,
        lines=tuple(
            Line(number=number, text=line, rules=rules.get(number, ()), notes=notes.get(number, ()))
            for number, line in enumerate(text.split("\n"), start=1)
        ),
    )


def _text_of(atlas: Atlas, full_name: str) -> str | None:
    """The text that the lines of a called function are counted in."""
    schema, _, name = full_name.partition(".")
    found = [each for each in atlas.find_functions(schema, name, -1, ()) if each.full_name == full_name]
    return _lines_of(found[0]) if found else None


def _lines_of(function: Function) -> str | None:
    if function.language == "plpgsql":
        return function.source
    source = source_of(function)
    return source.text if source is not None else None


def code_at(atlas: Atlas, trigger: Trigger, reason: Reason) -> str | None:
    """The line of code at the end of a reason's way, without its indentation; None where no line decides."""
    text, line = trigger.source, reason.line
    if reason.via:
        place = _place(reason.via[-1])
        if place is None:
            return " ".join(trigger.when.split()) if trigger.when else None
        text, line = _text_of(atlas, place[0]) or "", place[1]
    lines = text.split("\n")
    return lines[line - 1].strip() or None if line is not None and 0 < line <= len(lines) else None


def _needs(found: Survey, judgement: Judgement) -> Iterator[str]:
    needs, body = judgement.needs, found.bodies[judgement.trigger.oid]
    if needs.replica_identity_full:
        lines: defaultdict[str, set[int]] = defaultdict(set)
        for read in body.row_reads:
            if read.row == "old":
                lines[read.column].add(read.line)
        for column in needs.old_columns:
            what = "the whole old row" if column == "*" else f"OLD.{column}"
            only = "which the WAL holds under REPLICA IDENTITY FULL only"
            yield f"replica identity: it looks at {what}{_at(lines[column])}, {only}"
    for name in needs.settings:
        at = {fact.line for fact in body.settings if not fact.written and (fact.name or "?") == name}
        yield f"context: it asks for the setting {name}{_at(at)}, which the writer has to stamp"
    for name in needs.session:
        at = {fact.line for fact in body.sessions if fact.name == name}
        yield f"context: it asks {name}{_at(at)}, which only the writer's session knows"
    for table in needs.lookups:
        yield f"lookup: it reads {table}, as it is at that moment"
    for log in needs.mapping:
        ways = (
            ("from the change", log.change),
            ("from the context", log.context),
            ("looked up", log.looked_up),
            ("filled in by the log", log.itself),
            ("not known", log.unknown),
        )
        told = "; ".join(f"{', '.join(columns)} {way}" for way, columns in ways if columns)
        yield f"mapping: the columns of {log.table} are {told}"


def _at(lines: Iterable[int]) -> str:
    listed = sorted(line for line in lines if line)
    if not listed:
        return ""
    word = "line" if len(listed) == 1 else "lines"
    return f" ({word} {', '.join(map(str, listed[:5]))}{', …' if len(listed) > 5 else ''})"
