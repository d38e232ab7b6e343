"""The report's pictures, as SVG: what writing costs by table, verdicts by table, which triggers move in which phase.

Each has a title and a description for those who cannot see it, says its numbers in words, and takes its colours from
the page's style, so that it is readable in the light, in the dark and on paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from afterwrite.scan.cost.figures import Costs, TableCost
from afterwrite.scan.report.document import PhaseShown, ScanDocument, TriggerShown
from afterwrite.scan.report.elements import Markup, element, join
from afterwrite.scan.report.words import percent
from afterwrite.scan.verdicts import Verdict

ORDER = (Verdict.RETIRE, Verdict.DEFER, Verdict.KEEP, Verdict.REVIEW)
_WIDTH = 900.0
_LABEL = 250.0
_LETTER = 7.3  # the width of a monospace letter at 12 px
_ROWS = 24
_CHIPS = 30


def verdict_bar(counts: Mapping[str, int]) -> Markup:
    """All triggers as one bar."""
    total = sum(counts.values())
    parts: list[Markup] = []
    x = 0.0
    for verdict in ORDER:
        count = counts[verdict.value]
        if not count:
            continue
        width = _WIDTH * count / total
        parts.append(_block(x, 0.0, width, 34.0, verdict, f"{count:,}"))
        x += width
    said = ", ".join(f"{counts[verdict.value]:,} {verdict.value}" for verdict in ORDER)
    return _picture("verdict-bar", 34.0, "All triggers by verdict", said, parts)


def verdicts_by_table(shown: ScanDocument) -> Markup:
    """A bar a table, as long as it has triggers, with its verdicts as parts."""
    counts: dict[str, Counter[Verdict]] = {}
    for trigger in shown.triggers:
        counts.setdefault(_relation(trigger), Counter())[trigger.verdict] += 1
    # Of tables with equally many, those that ask most of a person first.
    ranked = sorted(counts, key=lambda name: (-counts[name].total(), -counts[name][Verdict.REVIEW], name))
    most = max(counts[name].total() for name in ranked)
    scale = (_WIDTH - _LABEL - 50.0) / most
    parts: list[Markup] = []
    for row, name in enumerate(ranked[:_ROWS]):
        y, x = row * 26.0, _LABEL
        parts.append(_label(name, y))
        for verdict in ORDER:
            if count := counts[name][verdict]:
                parts.append(_block(x, y, scale * count, 20.0, verdict, f"{count}"))
                x += scale * count
        parts.append(_text(x + 8.0, y + 14.5, f"{counts[name].total()}", class_="figure"))
    height = 26.0 * min(len(ranked), _ROWS)
    if len(ranked) > _ROWS:
        parts.append(_text(_LABEL, height + 14.0, f"and {len(ranked) - _ROWS:,} tables more", class_="quiet"))
        height += 22.0
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{counts[name][verdict]} {verdict.value}" for verdict in ORDER if counts[name][verdict])
        for name in ranked[:_ROWS]
    )
    return _picture("verdicts-by-table", height, "Triggers by table and verdict", said, parts)


def cost_by_table(costs: Costs) -> Markup | None:
    """A bar a table, as long as its share of all write time, the triggers' part filled; None without such figures."""
    known = sorted((each for each in costs.tables if each.time_share), key=lambda each: -(each.time_share or 0.0))
    if not known:
        return None
    scale = (_WIDTH - _LABEL - 190.0) / (known[0].time_share or 1.0)
    parts: list[Markup] = []
    for row, each in enumerate(known[:_ROWS]):
        share, part = each.time_share or 0.0, each.triggers_of_time or 0.0
        y, width = row * 26.0, max(1.0, scale * share)
        parts.append(_label(each.table.removeprefix("public."), y))
        parts.append(element("rect", x=_LABEL, y=y, width=width, height=20.0, rx=2.0, class_="rest"))
        if part > 0:
            parts.append(
                element("rect", x=_LABEL, y=y, width=width * min(1.0, part), height=20.0, rx=2.0, class_="cost")
            )
        parts.append(_text(_LABEL + width + 8.0, y + 14.5, _cost_in_words(each), class_="figure"))
    height = 26.0 * min(len(known), _ROWS)
    said = "; ".join(f"{each.table}: {_cost_in_words(each)}" for each in known[:_ROWS])
    return _picture(
        "cost-by-table", height, "Share of all write time by table, and the triggers' part of it", said, parts
    )


def _cost_in_words(each: TableCost) -> str:
    triggers = f", triggers {percent(each.triggers_of_time)} of it" if each.triggers_of_time is not None else ""
    return f"{percent(each.time_share)}{triggers}"


def phase_plan(phases: Sequence[PhaseShown], kept: int, review: int) -> Markup:
    """The phases from top to bottom: each table that moves as a chip, with a dot for each of its triggers."""
    parts: list[Markup] = []
    said: list[str] = []
    y = 0.0
    moving = [phase for phase in phases if phase.retire or phase.defer]
    for place, phase in enumerate(moving):
        chips = list(_chips(phase))
        top = y
        parts.append(_text(52.0, y + 15.0, phase.title, class_="strong"))
        counted = " · ".join(
            f"{len(names):,} {word}" for names, word in ((phase.retire, "retire"), (phase.defer, "defer")) if names
        )
        parts.append(_text(_WIDTH, y + 15.0, counted, class_="quiet", text_anchor="end"))
        x, y = 52.0, y + 28.0
        for name, marks in chips:
            width = 20.0 + _LETTER * len(name) + 9.0 * len(marks) + (6.0 if marks else 0.0)
            if x > 52.0 and x + width > _WIDTH:
                x, y = 52.0, y + 30.0
            parts.append(_chip(x, y, width, name, marks))
            x += width + 8.0
        y += 44.0
        if place < len(moving) - 1 or kept or review:
            parts.append(element("line", x1=20.0, y1=top + 22.0, x2=20.0, y2=y, class_="thread"))
        parts.append(element("circle", cx=20.0, cy=top + 10.0, r=14.0, class_="number"))
        parts.append(_text(20.0, top + 14.5, f"{phase.number}", class_="on-number", text_anchor="middle"))
        said.append(f"phase {phase.number}, {phase.title}: {counted}")
    left = [(kept, Verdict.KEEP, "stay"), (review, Verdict.REVIEW, "wait for a person")]
    for count, verdict, what in left:
        if count:
            parts.append(element("circle", cx=20.0, cy=y + 10.0, r=7.0, class_=f"dot {verdict.value}"))
            parts.append(_text(52.0, y + 14.5, f"{count:,} {what}", class_="strong"))
            said.append(f"{count} {what}")
            y += 30.0
    return _picture("phase-plan", y, "Which triggers move in which phase", "; ".join(said), parts)


def _chips(phase: PhaseShown) -> Iterator[tuple[str, tuple[Verdict, ...]]]:
    """A table's name and a mark for each of its triggers; of very many tables the first, and how many more."""
    tables: dict[str, list[Verdict]] = {}
    for names, verdict in ((phase.retire, Verdict.RETIRE), (phase.defer, Verdict.DEFER)):
        for identity in names:
            tables.setdefault(identity.rpartition(".")[0].removeprefix("public."), []).append(verdict)
    for name in list(tables)[:_CHIPS]:
        yield _cut(name, 40), tuple(tables[name][:12])
    if len(tables) > _CHIPS:
        yield f"and {len(tables) - _CHIPS:,} tables more", ()


def _chip(x: float, y: float, width: float, name: str, marks: Sequence[Verdict]) -> Markup:
    dots = [
        element("circle", cx=x + width - 10.0 - 9.0 * place, cy=y + 11.0, r=3.5, class_=f"dot {verdict.value}")
        for place, verdict in enumerate(reversed(marks))
    ]
    words = ", ".join(f"{count} {verdict.value}" for verdict, count in Counter(marks).items())
    return element(
        "g",
        element("title", f"{name}: {words}") if words else None,
        element("rect", x=x, y=y, width=width, height=22.0, rx=11.0, class_="chip"),
        _text(x + 10.0, y + 15.0, name, class_="code"),
        *dots,
    )


def _block(x: float, y: float, width: float, height: float, verdict: Verdict, label: str) -> Markup:
    fits = width > 8.0 * len(label) + 6.0
    return element(
        "g",
        element("title", f"{label} {verdict.value}"),
        element("rect", x=x, y=y, width=max(1.0, width - 1.5), height=height, rx=2.0, class_=verdict.value),
        _text(x + (width - 1.5) / 2, y + height / 2 + 4.5, label, class_="on", text_anchor="middle") if fits else None,
    )


def _label(name: str, y: float) -> Markup:
    text = _cut(name, 32)
    full = element("title", name) if text != name else None
    return element("g", full, _text(_LABEL - 10.0, y + 14.5, text, class_="code", text_anchor="end"))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(x: float, y: float, text: str, **attributes: str) -> Markup:
    return element("text", text, x=x, y=y, **attributes)


def _picture(name: str, height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        join(parts),
        viewBox=f"0 0 {_WIDTH:.0f} {height:.0f}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_=name,
    )


def _relation(trigger: TriggerShown) -> str:
    return trigger.table if trigger.schema == "public" else trigger.relation
