"""HTML and SVG built of elements: whatever is not an element is text, so that nothing can forget to escape it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from afterwrite.scan.report.visible import visible

_VOID = frozenset({"meta", "br", "rect", "line", "circle", "path"})


class Markup(str):
    """Text that is markup already; made by ``element`` and ``join`` alone."""

    __slots__ = ()


Child = str | Markup | None


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element. Children that are no Markup are escaped; attributes too, and those that are None left out.

    ``class_`` is class, and any other ``_`` in an attribute's name a hyphen.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{given}/>" if name not in ("meta", "br") else f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


# Nothing may be loaded or run, whatever names and texts try.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, style: Markup, *body: Child) -> str:
    """A whole page that needs nothing else: one file, no script, light and dark."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", style),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n"


def join(children: Iterable[Child]) -> Markup:
    """Several beside each other."""
    return Markup("".join(_child(child) for child in children if child is not None))


def _child(child: str) -> str:
    return child if isinstance(child, Markup) else escape(visible(child))


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return escape(visible(value))
    return f"{value:.1f}".removesuffix(".0")
