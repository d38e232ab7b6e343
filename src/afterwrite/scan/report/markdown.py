"""The answer as Markdown, to paste into a ticket: GitHub's flavour, which most trackers read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from afterwrite.errors import Finding
from afterwrite.scan.report.document import PhaseShown, ScanDocument, TriggerShown
from afterwrite.scan.report.visible import visible
from afterwrite.scan.report.words import MEANING, counted, gravest_first, percent, saved, server
from afterwrite.scan.verdicts import Verdict

_ORDER = (Verdict.REVIEW, Verdict.DEFER, Verdict.KEEP, Verdict.RETIRE)
_TITLES = {
    Verdict.REVIEW: "For a person to look at",
    Verdict.DEFER: "May run after the commit",
    Verdict.KEEP: "Stay",
    Verdict.RETIRE: "May go",
}
_TABLES = 20


def markdown_report(shown: ScanDocument) -> str:
    """The whole report. Whatever stands in the database is text in it: no markup, no links, no mentions."""
    return "\n".join(_report(shown)) + "\n"


def _report(shown: ScanDocument) -> Iterator[str]:
    tables = len({trigger.relation for trigger in shown.triggers})
    yield f"## Triggers of {_text(shown.subject.name)}"
    yield ""
    count = f"{counted(len(shown.triggers), 'trigger')} on {counted(tables, 'table')}"
    yield f"PostgreSQL {server(shown.subject.server_version)}: {count}."
    yield ""
    if not shown.triggers:
        yield "There is no user trigger."
        return
    yield from _table(
        ("verdict", "triggers", "meaning"),
        ((f"**{verdict.value}**", f"{shown.counts[verdict.value]:,}", MEANING[verdict]) for verdict in _ORDER),
    )
    yield from _costs(shown)
    yield from _phases(shown.phases)
    for verdict in _ORDER:
        yield from _triggers(verdict, shown.of(verdict))
    yield from _findings("Findings", shown.findings)
    yield from _findings("Figures that are missing", shown.missing)
    yield f"<sub>afterwrite {shown.afterwrite} scan; it reads the catalog only.</sub>"


def _triggers(verdict: Verdict, triggers: Sequence[TriggerShown]) -> Iterator[str]:
    if not triggers:
        return
    # What a person has to do something about stands open.
    yield f"<details{' open' if verdict is Verdict.REVIEW else ''}>"
    yield f"<summary><b>{_TITLES[verdict]}</b>: {verdict.value}, {len(triggers):,}</summary>"
    yield ""
    rows: list[tuple[str, ...]] = []
    for trigger in triggers:
        reason = trigger.reasons[0] if trigger.reasons else None
        place = "" if reason is None else reason.rule if reason.line is None else f"{reason.rule}, line {reason.line}"
        why = _text(reason.text) if reason else ""
        rows.append((_code(trigger.relation), _code(trigger.name), _code(place), why))
    yield from _table(("table", "trigger", "rule", "why"), rows)
    yield "</details>"
    yield ""


def _costs(shown: ScanDocument) -> Iterator[str]:
    costs = shown.costs
    if costs is None:
        return
    known = [each for each in costs.tables if each.time_share is not None or each.wal_share is not None]
    yield "### What writing costs"
    yield ""
    for sentence in saved(costs):
        yield f"- {_text(sentence)}"
    yield ""
    yield from _table(
        ("table", "of all write time", "of it triggers", "of all WAL", "of it triggers"),
        (
            (
                _code(each.table),
                percent(each.time_share),
                percent(each.triggers_of_time),
                percent(each.wal_share),
                percent(each.triggers_of_wal),
            )
            for each in sorted(known, key=lambda each: -(each.time_share or 0.0))[:_TABLES]
        ),
    )


def _phases(phases: Sequence[PhaseShown] | None) -> Iterator[str]:
    moving = [phase for phase in phases or () if phase.retire or phase.defer]
    if not moving:
        return
    yield "### The phases of a plan"
    yield ""
    yield from _table(
        ("phase", "what", "retire", "defer"),
        ((f"{phase.number}", _text(phase.title), f"{len(phase.retire)}", f"{len(phase.defer)}") for phase in moving),
    )


def _findings(title: str, findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield f"### {title}"
    yield ""
    for finding in gravest_first(findings):
        where = "" if finding.where in finding.text else f"{_text(finding.where)}: "
        remedy = f" → {_code(finding.remedy)}" if finding.remedy else ""
        yield f"- {where}{_text(finding.text)}{remedy}"
    yield ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _text(text: str) -> str:
    """Text as it is read: markup, mentions, references and HTML are taken by the letter."""
    flat = " ".join(visible(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", flat)
    # A tracker makes people of @name, issues of #1 and links of https://…; a word joiner keeps the look.
    return re.sub(r"(@|\\#)(?=\w)|(?<=[a-z])(:)(?=//)|(?<=www)(\.)", lambda found: f"{found[0]}&#8288;", flat)


def _code(text: str) -> str:
    """Code in backticks; within a table a bar must be kept from dividing cells, also there."""
    flat = " ".join(visible(text).split())
    if not flat:
        return ""
    longest = max((len(run) for run in re.findall(r"`+", flat)), default=0)
    fence = "`" * (longest + 1)
    space = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{space}{flat.replace('|', chr(92) + '|')}{space}{fence}"
