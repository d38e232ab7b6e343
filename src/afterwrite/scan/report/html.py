"""The answer as one HTML file with pictures: no script, nothing from elsewhere, for screen (light, dark) and paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import resources

from afterwrite.errors import Finding, Severity
from afterwrite.scan.report.document import ReasonShown, ScanDocument, TriggerShown
from afterwrite.scan.report.elements import Markup, element, join, page
from afterwrite.scan.report.pictures import ORDER, cost_by_table, phase_plan, verdict_bar, verdicts_by_table
from afterwrite.scan.report.words import MEANING, counted, gravest_first, noticed, percent, saved, server
from afterwrite.scan.verdicts import Verdict

_GRAVEST_FIRST = (Verdict.REVIEW, Verdict.DEFER, Verdict.KEEP, Verdict.RETIRE)
_TITLES = {
    Verdict.REVIEW: "For a person to look at",
    Verdict.DEFER: "May run a moment after the commit",
    Verdict.KEEP: "Stay on the write path",
    Verdict.RETIRE: "May go",
}
_SHARE = "write time"
_REASONS = 5
_SEVERITY = {Severity.ERROR: "in the way", Severity.WARNING: "to mend", Severity.INFO: "to know"}


def html_report(shown: ScanDocument, at: datetime) -> str:
    """The whole report as one file, made ``at``."""
    title = f"Triggers of {shown.subject.name}"
    tables = len({trigger.relation for trigger in shown.triggers})
    header = element(
        "header",
        element("p", "afterwrite scan", class_="eyebrow"),
        element("h1", title),
        element(
            "p",
            f"{counted(len(shown.triggers), 'trigger')} on {counted(tables, 'table')} · "
            f"{'a schema dump, read by' if shown.subject.dump is not None else ''} PostgreSQL "
            f"{server(shown.subject.server_version)} · {at:%Y-%m-%d %H:%M %Z}",
            class_="quiet",
        ),
    )
    footer = element(
        "footer",
        element("p", f"Made by afterwrite {shown.afterwrite} scan, which reads the catalog and changes nothing."),
    )
    return page(title, _style(), header, element("main", *_sections(shown)), footer)


def _style() -> Markup:
    return Markup(resources.files("afterwrite.scan.report").joinpath("report.css").read_text(encoding="utf-8"))


def _sections(shown: ScanDocument) -> Iterator[Markup]:
    if not shown.triggers:
        yield element("p", "There is no user trigger in this database.")
        return
    cards = (
        element(
            "li",
            element("strong", f"{shown.counts[verdict.value]:,}"),
            element("span", verdict.value, class_=f"badge {verdict.value}"),
            element("span", MEANING[verdict], class_="quiet"),
        )
        for verdict in ORDER
    )
    yield element("section", element("ul", *cards, class_="cards"), verdict_bar(shown.counts), class_="summary")
    yield from _costs(shown)
    phases = [phase for phase in shown.phases or () if phase.retire or phase.defer]
    if phases:
        yield _section(
            "The plan",
            "All triggers of a table move together, from the least to the highest risk, and each phase waits for its "
            "gates. A dot is a trigger.",
            _legend(Verdict.RETIRE, Verdict.DEFER),
            phase_plan(phases, shown.counts["keep"], shown.counts["review"]),
        )
    there = [verdict for verdict in ORDER if shown.counts[verdict.value]]
    yield _section("Verdicts by table", "", _legend(*there), verdicts_by_table(shown))
    for verdict in _GRAVEST_FIRST:
        triggers = shown.of(verdict)
        if triggers:
            yield _triggers(verdict, triggers, shown)
    yield from _findings("What was noticed", shown.findings)
    decided = Counter(trigger.reasons[0].rule for trigger in shown.triggers if trigger.reasons)
    spoke = [
        join((element("dt", element("code", rule)), element("dd", sentence, *_deciding(decided[rule]))))
        for rule, sentence in shown.rules.items()
    ]
    if spoke:
        yield _section("The rules that spoke", "", element("dl", *spoke))
    yield from _findings("Figures that are missing", shown.missing, note="No verdict depends on them.")


def _deciding(count: int) -> Iterator[Markup]:
    if count:
        yield element("span", f" It decided on {counted(count, 'trigger')}.", class_="quiet")


def _section(title: str, note: str, *content: Markup | None) -> Markup:
    return element("section", element("h2", title), element("p", note, class_="quiet") if note else None, *content)


def _legend(*verdicts: Verdict) -> Markup:
    return element(
        "p",
        *(element("span", verdict.value, class_=f"key {verdict.value}") for verdict in verdicts),
        class_="legend",
    )


def _costs(shown: ScanDocument) -> Iterator[Markup]:
    costs = shown.costs
    if costs is None:
        return
    said = [element("li", sentence) for sentence in saved(costs)]
    picture = cost_by_table(costs)
    legend = element(
        "p",
        element("span", "triggers", class_="key cost"),
        element("span", "the write itself", class_="key rest"),
        class_="legend",
    )
    if said or picture is not None:
        yield _section(
            "What writing costs",
            f"Write time here: {costs.write_time}." if costs.write_time else "",
            element("ul", *said, class_="said") if said else None,
            legend if picture is not None else None,
            picture,
        )


def _findings(title: str, findings: Sequence[Finding], note: str = "") -> Iterator[Markup]:
    if not findings:
        return
    listed = [
        element(
            "li",
            element("span", _SEVERITY[finding.severity], class_=f"severity {finding.severity.value}"),
            " ",
            finding.text if finding.where in finding.text else f"{finding.where}: {finding.text}",
            element("code", finding.remedy, class_="remedy") if finding.remedy else None,
        )
        for finding in gravest_first(findings)
    ]
    yield _section(f"{title} ({len(findings):,})", note, element("ul", *listed, class_="findings"))


def _triggers(verdict: Verdict, triggers: Sequence[TriggerShown], shown: ScanDocument) -> Markup:
    shares = {each.trigger: each.time_share for each in shown.costs.triggers} if shown.costs is not None else {}
    heads = ["table and trigger", "fires", "why"]
    if shares:
        heads.append(_SHARE)
    rows = [_row(trigger, shares) for trigger in _ordered(triggers, shares)]
    return element(
        "section",
        element(
            "h2",
            f"{_TITLES[verdict]} ",
            element("span", f"{len(triggers):,} {verdict.value}", class_=f"badge {verdict.value}"),
        ),
        element(
            "div",
            element(
                "table",
                element("thead", element("tr", *(_head(head) for head in heads))),
                element("tbody", *rows),
            ),
            class_="wide",
        ),
    )


def _head(head: str) -> Markup:
    return element("th", head, scope="col", class_="number" if head == _SHARE else None)


def _ordered(triggers: Sequence[TriggerShown], shares: dict[str, float | None]) -> list[TriggerShown]:
    return sorted(triggers, key=lambda each: (-(shares.get(each.identity) or 0.0), each.schema, each.table, each.name))


def _row(trigger: TriggerShown, shares: dict[str, float | None]) -> Markup:
    events = " or ".join(event.value for event in trigger.events)
    fires = f"{trigger.timing.value} {events}, {trigger.level.value}"
    more = [f"of {', '.join(trigger.columns)}"] if trigger.columns else []
    more += [f"when {trigger.when}"] if trigger.when else []
    more += ["disabled"] if trigger.enabled.value == "D" else []
    more += [f"also on {counted(trigger.partitions, 'partition')}"] if trigger.partitions else []
    cells = [
        element(
            "td",
            element("span", trigger.table if trigger.schema == "public" else trigger.relation, class_="table"),
            element("br"),
            element("span", trigger.name, class_="name"),
            element("span", f"{trigger.function.removeprefix('public.')}()", class_="quiet function"),
        ),
        element("td", fires, *(element("span", each, class_="quiet function") for each in more)),
        element("td", *_reasons(trigger.reasons), *_moving(trigger)),
    ]
    if shares:
        cells.append(element("td", percent(shares.get(trigger.identity)), class_="number"))
    return element("tr", *cells)


def _reasons(reasons: Sequence[ReasonShown]) -> Iterator[Markup]:
    """The first few reasons; a line of code that several share stands below the first of them."""
    seen: set[str | None] = set()
    for reason in reasons[:_REASONS]:
        yield _reason(reason, code=reason.code if reason.code not in seen else None)
        seen.add(reason.code)
    if len(reasons) > _REASONS:
        yield element("div", f"and {len(reasons) - _REASONS} reasons more", class_="reason quiet")


def _reason(reason: ReasonShown, code: str | None) -> Markup:
    where = f"line {reason.line}" if reason.line is not None else None
    return element(
        "div",
        reason.text,
        " ",
        element("span", " · ".join(filter(None, (reason.rule, where))), class_="quiet rule"),
        element("code", code, class_="line") if code else None,
        class_="reason",
    )


def _moving(trigger: TriggerShown) -> Iterator[Markup]:
    """What comes with moving it: what it needs, and who might notice that an effect comes later."""
    if trigger.verdict in (Verdict.KEEP, Verdict.REVIEW):
        return
    needs = trigger.needs
    parts: list[str] = []
    if needs.replica_identity_full:
        columns = "" if "*" in needs.old_columns else f" ({', '.join(needs.old_columns)})"
        parts.append(f"replica identity full{columns}")
    if needs.context:
        parts.append(f"context ({', '.join((*needs.settings, *needs.session))})")
    if needs.lookups:
        parts.append(f"lookups in {', '.join(needs.lookups)}")
    if parts:
        yield element("div", element("b", "to move it needs "), "; ".join(parts), class_="needs")
    for sentence in noticed(trigger.eventual):
        yield element("div", element("b", "eventually consistent: "), sentence, class_="needs")
