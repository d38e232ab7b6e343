"""Templates, static files, and the headers under which they go out.

Everything that a template is given is text and is escaped; nothing from the database is ever markup. The policy allows
our own files alone, no inline script or style, and no string that would become markup in the browser (trusted types).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Request, Response
from litestar.datastructures import FormMultiDict, State
from markupsafe import Markup, escape

from afterwrite.scan.report.visible import visible
from afterwrite.serve import draw, shown
from afterwrite.serve.auth import SESSION_COOKIE
from afterwrite.serve.callers import Caller
from afterwrite.serve.problems import ProblemError
from afterwrite.serve.visits import visit_of

POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    # Kept by nobody but the browser that asked, and asked for anew; Back may still bring it as it was.
    "cache-control": "private, no-cache",
}
_FORM_SECONDS = 15.0
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def draw_page(template: str, *, status: int = 200, **values: Any) -> Response[str]:
    """A page, drawn from a template of templates/."""
    body = _environment().get_template(f"{template}.html").render(**values)
    return Response(body, status_code=status, media_type=MediaType.HTML, headers=_HEADERS)


def read_static(name: str) -> Response[bytes] | None:
    """A file of static/ for good: its address changes when it does. None where there is none."""
    kind = _TYPES.get(PurePosixPath(name).suffix)
    found = _statics().get(name)
    if kind is None or found is None:
        return None
    headers = {
        "cache-control": "public, max-age=31536000, immutable",
        "content-security-policy": "default-src 'none'",
        "x-content-type-options": "nosniff",
    }
    return Response(found, media_type=kind, headers=headers)


@lru_cache
def _statics() -> Mapping[str, bytes]:
    folder = resources.files("afterwrite.serve").joinpath("static")
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


@lru_cache
def version() -> str:
    """What the static files' addresses carry: a digest of them all, since modules name each other."""
    digest = hashlib.sha256()
    for name, content in sorted(_statics().items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


def static_address(name: str) -> str:
    """Where the browser finds a file of static/."""
    return f"/static/{version()}/{name}"


@lru_cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("afterwrite.serve"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    names: dict[str, Any] = {
        "static": static_address,
        "entity_href": shown.entity_href,
        "entity_name": shown.entity_name,
        "search_href": shown.search_href,
        "word": shown.word,
        "initials": shown.initials,
        "hue": shown.hue,
        "rank": draw.rank,
        "meter": draw.meter,
    }
    made.globals.update(names)
    made.filters |= {
        "moment": moment,
        "exact": exact,
        "clock": clock,
        "iso": iso,
        "count": lambda value: f"{value:,}",
        "short": draw.short,
        "lasting": lasting,
        "percent": percent,
        "ticked": ticked,
        "change": change,
    }
    return made


def _finalize(value: object) -> object:
    """None is nothing; control characters are shown as what they are, and steer nothing."""
    if value is None:
        return ""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def moment(at: datetime) -> str:
    """A time in words, in UTC; the browser makes the viewer's own of it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def exact(at: datetime) -> str:
    """The same to the millisecond: what is shown when the pointer rests on a time."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03} UTC"


def clock(at: datetime) -> str:
    """The time of the day, in UTC."""
    return f"{at.astimezone(UTC):%H:%M:%S}"


def iso(at: datetime) -> str:
    """A time for machines."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def lasting(seconds: float) -> str:
    """A stretch of time in words."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}".replace(".0 ", " ")
    if seconds < 1:
        return f"{1_000 * seconds:,.0f} ms"
    return f"{seconds:,.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def change(share: float) -> str:
    """How much more or less, in words: ``+12 %``."""
    rounded = round(100 * share)
    return f"{rounded:+,} %" if rounded else "±0 %"


def ticked(text: str) -> Markup:
    """A sentence whose `commands` are set as code."""
    parts = visible(text).split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 and place < len(parts) - 1 else escape(part)
        for place, part in enumerate(parts)
    )


def percent(share: float | None) -> str:
    """A share in words."""
    return "not known" if share is None else f"{share:.0%}"


def refuse_foreign(request: Request[Caller, None, State]) -> None:
    """Refuse a form that another site's page sent: a browser names the page's origin with every such request."""
    if visit_of(request.scope).comes_from_elsewhere:
        raise ProblemError(403, "", "this form was sent by a page of another site")


async def read_form(request: Request[Any, None, State]) -> FormMultiDict:
    """What was written into a form of ours: refused from elsewhere, and nothing of what is no form."""
    refuse_foreign(request)
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return FormMultiDict([])
    try:
        async with asyncio.timeout(_FORM_SECONDS):
            return await request.form()
    except TimeoutError:
        raise ProblemError(408, "", "the form took too long to come") from None


def frame(
    request: Request[Caller, None, State], caller: Caller, page: str, *, here: str = "", views: Sequence[object] = ()
) -> dict[str, Any]:
    """What is drawn around a page: where it is, who looks, in light or dark, which views are saved."""
    visit = visit_of(request.scope)
    theme = visit.cookie("afterwrite_theme")
    return {
        "page": page,
        "here": here,
        "who": caller,
        "views": views,
        # These are about the whole of the store and its source, not about one tenant's activity.
        "hidden": ("migration", "health") if caller.tenant is not None else (),
        "theme": theme if theme in ("light", "dark") else None,
        "may_leave": visit.cookie(SESSION_COOKIE) is not None,
    }
