"""How a scan looks on a terminal: verdicts by trigger (or, of many, by function and table), costs, and bodies."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator

from rich.table import Table

from afterwrite.cli.costs import show_costs_by_trigger
from afterwrite.cli.face import counted, fill, hang, out, plain, show_findings, table
from afterwrite.scan.report.document import ReasonShown, ScanDocument, TriggerShown
from afterwrite.scan.report.explain import Explanation, Line, Passage
from afterwrite.scan.report.words import MEANING, noticed, percent, saved, server
from afterwrite.scan.verdicts import Verdict

COLOUR = {Verdict.RETIRE: "green", Verdict.DEFER: "cyan", Verdict.KEEP: "yellow", Verdict.REVIEW: "red"}
# The order for a person to look in: what cannot be known, what becomes eventually consistent, what stays, what goes.
_GRAVEST_FIRST = (Verdict.REVIEW, Verdict.DEFER, Verdict.KEEP, Verdict.RETIRE)
_MANY = 120
_ROWS = 16
_OF_A_KIND = 2
_WIDE = 110
_CALLEE_LINES = 40
_AROUND = 3


def show(shown: ScanDocument, *, everything: bool) -> None:
    """Print the answer: every trigger, or of very many what they have in common (``everything`` lists them all)."""
    of_dump = "the dump " if shown.subject.dump is not None else ""
    subject = f"{of_dump}{plain(shown.subject.name)} on PostgreSQL {server(shown.subject.server_version)}"
    if not shown.triggers:
        out.print(f"There is no user trigger in {subject}.")
    elif everything or len(shown.triggers) <= _MANY:
        out.print(_by_trigger(shown.triggers))
    else:
        _show_groups(shown)
    if shown.costs is not None:
        _show_costs(shown)
        show_costs_by_trigger(shown.costs, everything=everything)
    show_findings(shown.findings, most=None if everything else _OF_A_KIND)
    if shown.missing:
        out.print("[bold]Figures that are missing[/] [dim](no verdict depends on them)[/]")
        for finding in shown.missing:
            hang(" ", plain(finding.text))
            if finding.remedy:
                out.print(f"    [green]→[/] {plain(finding.remedy)}", soft_wrap=True)
    if shown.triggers:
        tables = len({trigger.relation for trigger in shown.triggers})
        title = f"{counted(len(shown.triggers), 'trigger')} on {counted(tables, 'table')} of {subject}"
        out.print(f"\n[bold]{title}[/]")
        for verdict in Verdict:
            count = shown.counts[verdict.value]
            if count:
                out.print(f"{count:>6,} [{COLOUR[verdict]}]{verdict.value:<7}[/] {MEANING[verdict]}")
        _show_next(shown)


def _by_trigger(triggers: Iterable[TriggerShown]) -> Table:
    made = table("table and trigger", "verdict", "why")
    last = ""
    for trigger in sorted(triggers, key=lambda each: (each.schema, each.table, each.name)):
        if trigger.relation != last:
            made.add_row(f"[bold]{plain(_short(trigger))}[/]")
        last = trigger.relation
        made.add_row(f"  {plain(trigger.name)}", _verdict(trigger.verdict), plain(_why(trigger)))
    return made


def _short(trigger: TriggerShown) -> str:
    return trigger.table if trigger.schema == "public" else trigger.relation


def _verdict(verdict: Verdict) -> str:
    return f"[{COLOUR[verdict]}]{verdict.value}[/]"


def _why(trigger: TriggerShown) -> str:
    reason = _first(trigger)
    if reason is None:
        return ""
    place = reason.rule if reason.line is None else f"{reason.rule}, line {reason.line}"
    return f"{place}: {reason.text}" if out.width >= _WIDE else place


def _first(trigger: TriggerShown) -> ReasonShown | None:
    return next(iter(trigger.reasons), None)


def _show_groups(shown: ScanDocument) -> None:
    groups: dict[tuple[Verdict, str], list[TriggerShown]] = {}
    for trigger in shown.triggers:
        reason = _first(trigger)
        groups.setdefault((trigger.verdict, reason.rule if reason else ""), []).append(trigger)
    made = table("verdict", "why", ">triggers", ">tables", ">functions", "most used")
    for verdict, rule in sorted(groups, key=lambda key: (_GRAVEST_FIRST.index(key[0]), -len(groups[key]), key[1])):
        alike = groups[verdict, rule]
        functions = Counter(trigger.function for trigger in alike)
        most, times = functions.most_common(1)[0]
        made.add_row(
            _verdict(verdict),
            plain(rule),
            f"{len(alike):,}",
            f"{len({trigger.relation for trigger in alike}):,}",
            f"{len(functions):,}",
            f"{plain(most)}() [dim]({times:,})[/]",
        )
    out.print(made)
    _show_tables(shown)


def _show_tables(shown: ScanDocument) -> None:
    counts: dict[str, Counter[Verdict]] = {}
    for trigger in shown.triggers:
        counts.setdefault(_short(trigger), Counter())[trigger.verdict] += 1
    ranked = sorted(counts, key=lambda name: ([-counts[name][verdict] for verdict in _GRAVEST_FIRST], name))
    made = table("table", *(f">{verdict.value}" for verdict in _GRAVEST_FIRST))
    for name in ranked[:_ROWS]:
        cells = (f"{counts[name][verdict]:,}" if counts[name][verdict] else "·" for verdict in _GRAVEST_FIRST)
        made.add_row(
            plain(name),
            *(f"[{COLOUR[verdict]}]{cell}[/]" for verdict, cell in zip(_GRAVEST_FIRST, cells, strict=True)),
        )
    out.print(made)
    if len(ranked) > _ROWS:
        out.print(f"[dim]and {counted(len(ranked) - _ROWS, 'table')} more; --all lists every trigger[/]")


def _show_next(shown: ScanDocument) -> None:
    unknown, moving = shown.of(Verdict.REVIEW), shown.counts["retire"] + shown.counts["defer"]
    if unknown:
        first = unknown[0]
        name = f"{first.table}.{first.name}" if first.schema == "public" else first.identity
        source = f"{plain(shlex.quote(shown.subject.dump.file))} " if shown.subject.dump is not None else ""
        out.print(f"\nNext: [bold]afterwrite scan {source}--explain {plain(name)}[/]", soft_wrap=True)
    elif moving and shown.subject.dump is not None:
        out.print("\nNext: [bold]afterwrite scan --dsn …[/] [dim]of the live database, which knows what is written[/]")
    elif moving:
        out.print("\nNext: [bold]afterwrite plan[/] [dim]writes the phases down, for people to review[/]")
    if shown.costs is None:
        out.print("[dim]--explain TABLE.TRIGGER shows the lines that decide; --html FILE makes a report to share.[/]")


# Costs ---------------------------------------------------------------------------------------------------------------


def _show_costs(shown: ScanDocument) -> None:
    costs = shown.costs
    if costs is None:
        return
    tables = [each for each in costs.tables if each.time_share is not None or each.wal_share is not None]
    if tables:
        rows = (
            (
                each.table,
                percent(each.time_share),
                percent(each.triggers_of_time),
                percent(each.wal_share),
                percent(each.triggers_of_wal),
            )
            for each in sorted(tables, key=lambda each: -(each.time_share or 0.0))[:_ROWS]
        )
        heads = ("table", ">write time", ">by triggers", ">WAL", ">by triggers")
        out.print(fill(table(*heads, title="What writing costs, by table"), rows))
    for said in saved(costs):
        out.print(plain(said), width=min(out.width, 80))


# One trigger ---------------------------------------------------------------------------------------------------------


def show_explanation(told: Explanation, shown: TriggerShown, rules: Iterable[tuple[str, str]]) -> None:
    """Print a trigger's bodies with the lines that decide marked, why, what it needs to move, and its rules."""
    colour = COLOUR[shown.verdict]
    out.print(f"[bold]{plain(shown.identity)}[/]: {_verdict(shown.verdict)} [dim]({MEANING[shown.verdict]})[/]")
    out.print(f"[dim]{plain(told.judgement.trigger.create)}[/]", soft_wrap=True)
    for passage in told.passages:
        out.print(f"\n[bold]{plain(passage.title)}[/]")
        for line in _shown_lines(passage):
            out.print(_line(line, colour) if line is not None else "      [dim]⋮[/]", soft_wrap=True)
    heads = table("rule", ">line", "why")
    reasons = [*shown.reasons, *shown.notes]
    out.print()
    out.print(fill(heads, ((reason.rule, reason.line, reason.text) for reason in reasons)))
    for need in told.needs:
        hang("[bold]needs[/]", plain(need))
    for sentence in noticed(shown.eventual):
        hang("[bold]becomes eventually consistent:[/]", plain(sentence))
    for name, sentence in rules:
        hang(f"[dim]{plain(name)}:[/]", f"[dim]{plain(sentence)} (docs/rules.md#{plain(name)})[/]")


def _shown_lines(passage: Passage) -> Iterator[Line | None]:
    """The whole of the trigger's own body; of a long one that it only goes through, what is around the marks."""
    if passage.own or len(passage.lines) <= _CALLEE_LINES:
        told = [place for place, line in enumerate(passage.lines) if line.text.strip()]
        yield from passage.lines[told[0] : told[-1] + 1] if told else ()
        return
    marked = [line.number for line in passage.lines if line.rules or line.notes]
    last = 0
    for line in passage.lines:
        if any(abs(line.number - number) <= _AROUND for number in marked):
            if line.number > last + 1:
                yield None
            yield line
            last = line.number
    if last < len(passage.lines):
        yield None


def _line(line: Line, colour: str) -> str:
    text = plain(line.text.expandtabs(4).rstrip())
    if line.rules:
        return f"[{colour}]{line.number:>4} ▶[/] [bold {colour}]{text}[/]  [dim]◀ {plain(', '.join(line.rules))}[/]"
    if line.notes:
        return f"[dim]{line.number:>4} ·[/] {text}  [dim]◀ {plain(', '.join(line.notes))}[/]"
    return f"[dim]{line.number:>4}  [/] {text}"
