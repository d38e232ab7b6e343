"""A run as one HTML file with its charts: no script, nothing from elsewhere, light and dark. Pure.

A promise is drawn as the ratio with its interval on an axis of equal factors, beside the promised one; a claim as the
rounds that it is made of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources

from afterwrite.bench import words
from afterwrite.bench.claims import Claim, Report, Standing, Took, standing
from afterwrite.scan.report.elements import Markup, element, join, page

_WIDTH, _LEFT, _ROW = 960.0, 400.0, 34.0
# What lies beyond is drawn at the edge: an interval that is this wide says nothing.
_LEAST, _MOST = 0.001, 1_000.0


def to_html(report: Report) -> str:
    """The whole run."""
    title = "What was measured"
    style = Markup(resources.files("afterwrite.bench").joinpath("page.css").read_text(encoding="utf-8"))
    header = element(
        "header",
        element("p", "afterwrite bench", class_="eyebrow"),
        element("h1", title),
        element("p", words.machine(report), class_="quiet"),
    )
    footer = element(
        "footer",
        element(
            "p",
            "Variants take turns in one run. Figures are geometric means over the rounds (where it says so, means);"
            " intervals are Student's at 95 %, over the logarithms of the rounds' ratios. A ratio whose interval has 1"
            " in it is not told.",
        ),
    )
    return page(title, style, header, element("main", *_sections(report)), footer)


def _sections(report: Report) -> Iterator[Markup]:
    claims = [claim for claim in report.claims if claim.promise]
    if claims:
        yield element("section", _cards(report), class_="summary")
        yield _section(
            "Promises",
            "Measured against what it is held to: a dot with its 95 % interval. The upright stroke is what was"
            " promised, and the dashed line no difference. Each step of the axis is ten times the one before.",
            element("div", _ratios(claims), class_="wide"),
            _promises(report),
        )
    for took in report.parts:
        yield _part(took, [claim for claim in report.claims if claim.part == took.part])


def _section(title: str, note: str, *content: Markup | None) -> Markup:
    return element("section", element("h2", title), element("p", note, class_="quiet") if note else None, *content)


def _cards(report: Report) -> Markup:
    counts = Counter(_worst(claims) for _, claims in words.promised(report))
    missing = counts.pop(None, 0)
    cards = [(str(counts[kind]), kind.value, _class(kind)) for kind in Standing if counts[kind]]
    cards += [(str(missing), "not measured", "quiet")] if missing else []
    return element(
        "ul",
        *(
            element("li", element("strong", count, class_=kind), element("span", said, class_="quiet"))
            for count, said, kind in cards
        ),
        class_="cards",
    )


def _worst(claims: Sequence[Claim]) -> Standing | None:
    found = {standing(claim) for claim in claims}
    return next((kind for kind in (Standing.MISSED, Standing.DOUBT, Standing.MET) if kind in found), None)


def _class(kind: Standing | None) -> str:
    return "doubt" if kind is None or kind is Standing.DOUBT else kind.value


def _ratios(claims: Sequence[Claim]) -> Markup:
    """Every promised claim's ratio on one axis."""
    reach = [value for claim in claims for value in (claim.low, claim.high, claim.target, 1.0) if value]
    first = math.floor(math.log10(max(_LEAST, min(reach))))
    last = math.ceil(math.log10(min(_MOST, max(reach))))
    last = max(last, first + 1)
    bottom = len(claims) * _ROW

    def across(value: float) -> float:
        place = (math.log10(max(value, 10.0**first)) - first) / (last - first)
        return _LEFT + (_WIDTH - _LEFT - 10.0) * min(1.0, place)

    parts: list[Markup] = []
    for power in range(first, last + 1):
        x = across(10.0**power)
        kind = "even" if power == 0 else "rule"
        parts.append(element("line", x1=x, y1=0.0, x2=x, y2=bottom, class_=kind))
        parts.append(element("text", f"{10.0**power:g}", x=x, y=bottom + 16.0, text_anchor="middle", class_="quiet"))
    for place, claim in enumerate(claims):
        y, kind = place * _ROW + _ROW / 2, _class(standing(claim))
        row = [element("title", f"{claim.claim}: {words.ratio(claim)}, {claim.verdict}")]
        row.append(element("text", _cut(claim.claim), x=0.0, y=y + 4.5))
        if claim.low is not None and claim.high is not None:
            row.append(
                element("line", x1=across(claim.low), y1=y, x2=across(claim.high), y2=y, class_=f"whisker {kind}")
            )
        if claim.target:
            x = across(claim.target)
            row.append(element("line", x1=x, y1=y - 9.0, x2=x, y2=y + 9.0, class_="target"))
        middle = claim.ratio if claim.ratio is not None else _middle(claim)
        if middle:
            row.append(element("circle", cx=across(middle), cy=y, r=5.0, class_=f"dot {kind}"))
        parts.append(element("g", *row))
    said = "; ".join(f"{claim.claim}: {words.ratio(claim) or 'no ratio'}, {claim.verdict}" for claim in claims)
    return element(
        "svg",
        element("title", "Ratios of the promises"),
        element("desc", said),
        *parts,
        viewBox=f"0 0 {_WIDTH:.0f} {bottom + 22.0:.0f}",
        role="img",
    )


def _middle(claim: Claim) -> float | None:
    if claim.low is None or claim.high is None or claim.low <= 0:
        return None
    return math.sqrt(claim.low * claim.high)


def _promises(report: Report) -> Markup:
    rows: list[Markup] = []
    for promise, claims in words.promised(report):
        if not claims:
            rows.append(_tr(promise.value, "", "", "", "", element("span", "not measured", class_="quiet")))
        for claim in claims:
            verdict = element("span", claim.verdict, class_=_class(standing(claim)))
            measured = f"{words.figure(claim.measured)} {claim.unit}"
            rows.append(_tr(promise.value, claim.claim, measured, _ratio(claim), words.target(claim), verdict))
    return _table(("promise", "measured as", ">measured", ">ratio (95 %)", ">target", "verdict"), rows)


def _part(took: Took, claims: Sequence[Claim]) -> Markup:
    if took.left_out:
        return _section(took.part, took.left_out)
    rows = [
        _tr(
            claim.claim,
            "" if claim.baseline is None else words.figure(claim.baseline),
            words.figure(claim.measured),
            claim.unit,
            _ratio(claim),
            element("span", claim.verdict, class_=_class(standing(claim)) if claim.target is not None else "quiet"),
            _rounds(claim),
        )
        for claim in claims
    ]
    raw = [
        _tr(
            claim.claim,
            claim.statistic,
            *(_listed(each) for each in (claim.samples.baseline, claim.samples.measured, claim.samples.nothing)),
        )
        for claim in claims
    ]
    legend = element(
        "p",
        "Each dot is a round, from zero on:",
        element("span", class_="key before"),
        "against,",
        element("span", class_="key after"),
        "measured.",
        class_="quiet",
    )
    return _section(
        took.part,
        words.settings(took),
        legend,
        _table(("", ">against", ">measured", "unit", ">ratio (95 %)", "verdict", "rounds"), rows),
        element(
            "details",
            element("summary", "What each round gave"),
            _table(("", "figure", "against", "measured", "above"), raw, numbers=False),
        ),
    )


def _ratio(claim: Claim) -> Markup:
    return element("span", words.ratio(claim), class_="number")


def _listed(values: Sequence[float]) -> Markup:
    return element("span", " · ".join(words.figure(value) for value in values))


def _rounds(claim: Claim) -> Markup:
    """The rounds of both sides as dots."""
    sides = ((claim.samples.baseline, "before"), (claim.samples.measured, "after"))
    most = max((abs(value) for values, _ in sides for value in values), default=0.0) or 1.0
    parts = [element("line", x1=4.0, y1=y, x2=196.0, y2=y, class_="rule") for y in (9.0, 23.0)]
    for row, (values, kind) in enumerate(sides):
        parts += [
            element("circle", cx=4.0 + 192.0 * max(0.0, value) / most, cy=9.0 + 14.0 * row, r=3.5, class_=kind)
            for value in values
        ]
    return element("svg", *parts, viewBox="0 0 200 32", class_="rounds", aria_hidden="true")


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _tr(*cells: str | Markup) -> Markup:
    return join((element("tr", *(element("td", cell) for cell in cells)),))


def _table(columns: Sequence[str], rows: Sequence[Markup], *, numbers: bool = True) -> Markup:
    head = element(
        "tr",
        *(
            element("th", column.lstrip(">"), scope="col", class_="number" if column.startswith(">") else None)
            for column in columns
        ),
    )
    made = element("table", element("thead", head), element("tbody", *rows), class_=None if numbers else "samples")
    return element("div", made, class_="wide")
