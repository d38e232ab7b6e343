"""The pages' charts, drawn on the server as SVG: bars over time, lines of days, ranks, hours of a week, meters.

Each says its figures in words for those who cannot see it, and takes its colours from the sheet, in light and dark.
No attribute carries style: the pages' policy would not have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from markupsafe import Markup

from afterwrite.scan.report.elements import Markup as Element
from afterwrite.scan.report.elements import element

_WIDTH = 960.0
_LEFT = 44.0
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class Bucket(msgspec.Struct, frozen=True):
    """So many in a stretch of time from ``at`` on, ``failures`` of them failed; ``past`` is the same a week before."""

    at: datetime
    count: int
    failures: int = 0
    past: int | None = None


def bars(name: str, title: str, buckets: Sequence[Bucket], step: timedelta, *, height: float = 180.0) -> Markup:
    """A bar a bucket, its failures in another colour at its foot, and the week before as a dashed line."""
    if not buckets:
        return Markup()
    most = _ceiling(max(max(each.count, each.past or 0) for each in buckets))
    floor, top = height - 22.0, 8.0
    scale = (floor - top) / most
    wide = (_WIDTH - _LEFT) / len(buckets)
    parts: list[Element] = []
    for share in (0.0, 0.5, 1.0):
        y = floor - share * (floor - top)
        parts.append(element("line", x1=_LEFT, y1=y, x2=_WIDTH, y2=y, class_="rule"))
        if share * most == int(share * most):
            parts.append(_text(_LEFT - 8.0, y + 4.0, short(share * most), text_anchor="end"))
    for place, each in enumerate(buckets):
        x = _LEFT + place * wide
        tall, failed = each.count * scale, each.failures * scale
        bar = [
            element("title", _said(each, step)),
            element("rect", x=x, y=top, width=wide, height=floor - top, fill="transparent"),
        ]
        gap = min(2.0, wide * 0.2)
        if each.count:
            bar.append(
                element("rect", x=x + gap / 2, y=floor - tall, width=wide - gap, height=tall, rx=1.5, class_="bar")
            )
        if each.failures:
            drawn = min(max(2.0, failed), max(0.7, tall))
            bar.append(
                element("rect", x=x + gap / 2, y=floor - drawn, width=wide - gap, height=drawn, class_="bar failure")
            )
        parts.append(element("g", *bar))
    past = [
        f"{_LEFT + (place + 0.5) * wide:.1f},{floor - each.past * scale:.1f}"
        for place, each in enumerate(buckets)
        if each.past is not None
    ]
    if len(past) > 1:
        parts.append(element("polyline", points=" ".join(past), class_="line past"))
    parts += _time_axis(buckets, step, wide, height)
    total, failures = sum(each.count for each in buckets), sum(each.failures for each in buckets)
    said = f"{total:,} from {buckets[0].at:%Y-%m-%d %H:%M} UTC on, {failures:,} of them failures; at most {most:,.0f}"
    return _chart(name, title, said, parts, _WIDTH, height)


def spark(name: str, title: str, values: Sequence[float]) -> Markup:
    """A small line without axes, stretched to where it stands."""
    if len(values) < 2:
        return Markup()
    most = max(values) or 1.0
    step = 200.0 / (len(values) - 1)
    points = [f"{place * step:.1f},{30.0 - 27.0 * value / most:.1f}" for place, value in enumerate(values)]
    parts = [
        element("polygon", points=f"0,32 {' '.join(points)} 200,32", class_="area"),
        element("polyline", points=" ".join(points), class_="line"),
    ]
    said = f"from {values[0]:,.0f} to {values[-1]:,.0f}, at most {max(values):,.0f}"
    return _chart(name, title, said, parts, 200.0, 32.0, classes="chart spark", stretched=True)


def rank(share: float, failures: float = 0.0) -> Markup:
    """A thin bar for a list of ranks: ``share`` of the longest, of which ``failures`` failed. It has no words."""
    parts = [
        element("rect", width=100.0, height=6.0, class_="track"),
        element("rect", width=max(0.8, 100.0 * share), height=6.0, class_="fill"),
    ]
    if failures:
        parts.append(element("rect", width=max(0.8, 100.0 * failures), height=6.0, class_="fill failure"))
    return Markup(  # noqa: S704 - element() has escaped what is text
        element("svg", *parts, viewBox="0 0 100 6", preserveAspectRatio="none", aria_hidden="true", focusable="false")
    )


def meter(share: float, kind: str = "") -> Markup:
    """How full something is, as a bar; the words beside it say it too."""
    full = min(1.0, max(0.0, share))
    parts = [
        element("rect", width=100.0, height=8.0, rx=1.0, class_="track"),
        element("rect", width=max(0.6, 100.0 * full), height=8.0, rx=1.0, class_=f"fill {kind}".rstrip()),
    ]
    return Markup(  # noqa: S704 - element() has escaped what is text
        element("svg", *parts, viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true", class_="meter")
    )


class Hour(msgspec.Struct, frozen=True):
    """An hour of the week (Monday is 0) with its count; ``odd`` where it is unlike the same hour of other weeks."""

    weekday: int
    hour: int
    count: int
    odd: bool = False


def week(name: str, title: str, hours: Sequence[Hour]) -> Markup:
    """A week as seven rows of 24 hours, darker where there was more; a ring marks what is unusual."""
    if not hours:
        return Markup()
    most = max(each.count for each in hours) or 1
    wide, tall, left, top = 37.0, 20.0, 44.0, 16.0
    by_place = {(each.weekday, each.hour): each for each in hours}
    parts: list[Element] = [_text(left + hour * wide + 3.0, 10.0, f"{hour:02d}") for hour in range(0, 24, 3)]
    for day, word in enumerate(_DAYS):
        y = top + day * tall
        parts.append(_text(left - 8.0, y + 13.5, word, text_anchor="end"))
        for hour in range(24):
            each = by_place.get((day, hour))
            count = each.count if each else 0
            level = 0 if not count else min(4, 1 + int(4 * count / (most + 1)))
            x = left + hour * wide
            said = element("title", f"{word} {hour:02d}:00 UTC: {count:,}{', unusual' if each and each.odd else ''}")
            cell = element("rect", said, x=x, y=y, width=wide - 3.0, height=tall - 3.0, rx=3.0, class_=f"cell-{level}")
            parts.append(cell)
            if each and each.odd:
                parts.append(element("rect", x=x, y=y, width=wide - 3.0, height=tall - 3.0, rx=3.0, class_="odd"))
    odd = [f"{_DAYS[each.weekday]} {each.hour:02d}:00 ({each.count:,})" for each in hours if each.odd]
    said = f"at most {most:,} in an hour" + (f"; unusual: {', '.join(odd)}" if odd else "; none is unusual")
    return _chart(name, title, said, parts, left + 24 * wide, top + 7 * tall)


def course(
    name: str,
    title: str,
    points: Sequence[tuple[datetime, float]],
    marks: Sequence[tuple[datetime, str]],
    unit: str,
    *,
    height: float = 150.0,
) -> Markup:
    """A figure over time as a line, with upright marks for what was done when."""
    if len(points) < 2:
        return Markup()
    first, last = points[0][0], points[-1][0]
    span = (last - first).total_seconds() or 1.0
    most = _ceiling(max(value for _, value in points))
    floor, top = height - 20.0, 16.0

    def across(at: datetime) -> float:
        return _LEFT + (_WIDTH - _LEFT) * (at - first).total_seconds() / span

    parts: list[Element] = []
    for share in (0.0, 0.5, 1.0):
        y = floor - share * (floor - top)
        parts.append(element("line", x1=_LEFT, y1=y, x2=_WIDTH, y2=y, class_="rule"))
        parts.append(_text(_LEFT - 8.0, y + 4.0, short(share * most), text_anchor="end"))
    drawn = [f"{across(at):.1f},{floor - (floor - top) * value / most:.1f}" for at, value in points]
    parts.append(element("polygon", points=f"{_LEFT},{floor} {' '.join(drawn)} {_WIDTH},{floor}", class_="area"))
    parts.append(element("polyline", points=" ".join(drawn), class_="line"))
    shown = [(at, label) for at, label in marks if first <= at <= last]
    for place, (at, label) in enumerate(shown):
        x = across(at)
        parts.append(element("line", x1=x, y1=top - 4.0, x2=x, y2=floor, class_="mark"))
        anchor = "end" if x > _WIDTH - 60.0 else "start"
        parts.append(
            _text(x + (4.0 if anchor == "start" else -4.0), top - 6.0 + 11.0 * (place % 2), label, text_anchor=anchor)
        )
    form = "%H:%M:%S" if span < 600 else "%H:%M" if span < 100_000 else "%b %d"
    parts.append(_text(_LEFT, height - 4.0, first.strftime(form)))
    parts.append(_text(_WIDTH, height - 4.0, f"{last.strftime(form)} UTC", text_anchor="end"))
    said = f"from {points[0][1]:,.0f} to {points[-1][1]:,.0f} {unit}, at most {max(v for _, v in points):,.0f}"
    if shown:
        said += "; " + ", ".join(f"{label} at {at:%H:%M:%S} UTC" for at, label in shown)
    return _chart(name, title, said, parts, _WIDTH, height)


class Compared(msgspec.Struct, frozen=True):
    """A figure before and after; ``text`` says each with its unit."""

    label: str
    before: float
    after: float
    before_text: str
    after_text: str


def before_after(name: str, title: str, figures: Sequence[Compared]) -> Markup:
    """Two bars for each figure, as long as they compare, with the change in words."""
    parts: list[Element] = []
    said: list[str] = []
    left, right = 150.0, 150.0
    for place, each in enumerate(figures):
        y = place * 62.0
        scale = (_WIDTH - left - right) / (max(each.before, each.after) or 1.0)
        parts.append(_text(0.0, y + 26.0, each.label, class_="name"))
        for row, (value, text, kind) in enumerate(
            ((each.before, each.before_text, "bar past"), (each.after, each.after_text, "bar now"))
        ):
            top, wide = y + 4.0 + row * 22.0, max(2.0, value * scale)
            parts.append(element("rect", x=left, y=top, width=wide, height=18.0, rx=2.0, class_=kind))
            parts.append(_text(left + wide + 8.0, top + 13.0, text))
        change = f" ({(each.after - each.before) / each.before:+.0%})" if each.before else ""
        said.append(f"{each.label}: {each.before_text} before, {each.after_text} after{change}")
    return _chart(name, title, "; ".join(said), parts, _WIDTH, 62.0 * len(figures) - 10.0)


class Stacked(msgspec.Struct, frozen=True):
    """A row of counts by kind (a class of the sheet), named, and what is said behind it."""

    label: str
    counts: dict[str, int]
    note: str = ""


def stacks(name: str, title: str, rows: Sequence[Stacked]) -> Markup:
    """A bar a row, as long as it has counts, with its kinds as parts."""
    if not rows:
        return Markup()
    left, right = 220.0, 150.0
    scale = (_WIDTH - left - right) / max(1, *(sum(row.counts.values()) for row in rows))
    parts: list[Element] = []
    for place, row in enumerate(rows):
        x, y = left, place * 26.0
        parts.append(_text(left - 10.0, y + 14.5, _cut(row.label, 30), class_="code", text_anchor="end"))
        for kind, count in row.counts.items():
            if count:
                label = element("title", f"{row.label}: {count} {kind}")
                parts.append(
                    element("rect", label, x=x, y=y, width=scale * count - 1.5, height=20.0, rx=2.0, class_=kind)
                )
                x += scale * count
        parts.append(_text(x + 8.0, y + 14.5, row.note))
    said = "; ".join(
        f"{row.label}: {', '.join(f'{count} {kind}' for kind, count in row.counts.items() if count)}" for row in rows
    )
    return _chart(name, title, said, parts, _WIDTH, 26.0 * len(rows))


def short(count: float) -> str:
    """A count in few letters, for an axis: 1.2k, 3M."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return f"{count:,.0f}"


def _said(each: Bucket, step: timedelta) -> str:
    words = (
        f"{each.at:%a %Y-%m-%d %H:%M} UTC: {each.count:,}"
        if step < timedelta(days=1)
        else f"{each.at:%a %Y-%m-%d}: {each.count:,}"
    )
    if each.failures:
        words += f", {each.failures:,} failures"
    return words if each.past is None else f"{words} (a week before: {each.past:,})"


def _time_axis(buckets: Sequence[Bucket], step: timedelta, wide: float, height: float) -> list[Element]:
    """Some eight labels, at round times."""
    span = step * len(buckets)
    apart = next(
        (each for each in _APART if span / each <= 9),
        _APART[-1],
    )
    parts: list[Element] = []
    for place, each in enumerate(buckets):
        since = each.at - datetime(2001, 1, 1, tzinfo=UTC)  # a Monday
        if since % apart >= step:
            continue
        x = _LEFT + place * wide
        if x > _WIDTH - 30.0:
            continue
        form = "%H:%M" if apart < timedelta(days=1) else "%b %d"
        parts.append(_text(x, height - 5.0, each.at.strftime(form)))
    return parts


_APART = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=10),
    timedelta(minutes=30),
    timedelta(hours=1),
    timedelta(hours=3),
    timedelta(hours=6),
    timedelta(days=1),
    timedelta(days=2),
    timedelta(days=7),
    timedelta(days=28),
)


def _ceiling(most: float) -> float:
    """The next round figure."""
    size = 1.0
    while True:
        for step in (1.0, 2.0, 4.0, 5.0, 6.0, 8.0):
            if most <= step * size:
                return max(2.0, step * size)
        size *= 10.0


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(x: float, y: float, text: str, **attributes: str) -> Element:
    return element("text", text, x=x, y=y, **attributes)


def _chart(
    name: str,
    title: str,
    description: str,
    parts: Sequence[Element],
    width: float,
    height: float,
    *,
    classes: str = "chart",
    stretched: bool = False,
) -> Markup:
    return Markup(  # noqa: S704 - element() has escaped what is text
        element(
            "svg",
            element("title", title, id=f"{name}-title"),
            element("desc", description, id=f"{name}-desc"),
            *parts,
            viewBox=f"0 0 {width:.0f} {height:.0f}",
            preserveAspectRatio="none" if stretched else None,
            role="img",
            aria_labelledby=f"{name}-title {name}-desc",
            class_=classes,
        )
    )
