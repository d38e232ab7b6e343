"""What every request goes through, whatever it asks for, and what every answer leaves with.

::

    in:  who it is ─▶ how often ─▶ what cannot be right ─▶ HEAD as GET ─▶ the application
    out: headers that browsers heed ─▶ br or gzip ─▶ counted and, where it looked at activity, noted

It stands around the application and not in its routes, so that it holds for answers that no route gives, too.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import unquote

import brotli
import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from afterwrite.serve import problems
from afterwrite.serve.auth import Auth
from afterwrite.serve.callers import CallerKind
from afterwrite.serve.limits import Allowance, Limits
from afterwrite.serve.limits import headers as limit_headers
from afterwrite.serve.metrics import Metrics
from afterwrite.serve.problems import ProblemError
from afterwrite.serve.visits import Visit, keep, meet
from afterwrite.settings import Settings

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = frozenset({*_SAFE, "POST", "PUT", "PATCH", "DELETE"})
# A minute's worth of keys and tokens that are not good, from one address.
_BAD_KEYS_A_MINUTE = 30
_LEAST_PACKED = 600
_PACKED = re.compile(rb"(application/[\w.+-]*json|text/(html|css|plain|javascript)|application/javascript|image/svg)")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
# Ids may have slashes in them. Written %2F, they reach the route as this, which no URL can otherwise hold.
SLASH = "\0"

Noted = Callable[[Visit, Mapping[str, Any]], None]


class Door:
    """Stands before the application. ``noted`` hears of every request that was let in and answered."""

    def __init__(self, app: ASGIApp, settings: Settings, auth: Auth, metrics: Metrics, noted: Noted) -> None:
        self._app = app
        self._auth = auth
        self._metrics = metrics
        self._noted = noted
        self._limits = Limits(settings.serve_rate)
        self._failures = Limits(_BAD_KEYS_A_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = meet(scope, self._auth.proxies)
        about = cast("dict[str, Any]", scope)
        keep(about, visit)
        answer = _Answer(about, visit, send, self._done)
        try:
            answer.allowance = await self._let_in(about, visit)
        except Exception as error:
            found = problems.explain(error)
            await answer.give(found)
            return
        if about["method"] == "HEAD":
            about["method"] = "GET"
            visit.wants_head_alone = True
        await self._app(scope, receive, answer.send)

    async def _let_in(self, scope: dict[str, Any], visit: Visit) -> Allowance | None:
        raw: bytes = scope.get("raw_path") or b""
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise ProblemError(400, "value", "there is a NUL in the address")
        if b"%2f" in raw.lower() and raw.startswith((b"/v1/entities/", b"/v1/actors/")):
            scope["path"] = unquote(re.sub("%2f", "\0", raw.partition(b"?")[0].decode("latin-1"), flags=re.IGNORECASE))
        if scope["method"] not in _METHODS:
            raise ProblemError(405, "", "this cannot be done here", headers={"Allow": ", ".join(sorted(_METHODS))})
        if scope["method"] == "OPTIONS":
            return None
        await self._identify(visit)
        who = (visit.caller.kind, visit.caller.tenant, visit.caller.name) if visit.caller else visit.house
        allowance = self._limits.take(who)
        if allowance is not None and not allowance.granted:
            self._metrics.turned_away.labels("rate").inc()
            raise ProblemError(
                429,
                "rate",
                f"more than {allowance.limit} requests a minute",
                remedy="wait as long as Retry-After says; serve_rate is the limit",
                headers=limit_headers(allowance),
            )
        # Browsers send cookies along, and reach this machine, whoever's page tells them to.
        by_browser = (
            visit.caller is None or visit.caller.kind is CallerKind.LOCAL or "authorization" not in visit.headers
        )
        if scope["method"] not in _SAFE and by_browser and visit.comes_from_elsewhere:
            raise ProblemError(403, "origin", "this was sent by another site's page")
        return allowance

    async def _identify(self, visit: Visit) -> None:
        if self._failures.is_spent(visit.house):
            self._metrics.turned_away.labels("rate").inc()
            raise ProblemError(
                429, "rate", "too many keys that are not good, from this address", headers={"Retry-After": "60"}
            )
        try:
            visit.caller = await self._auth.identify(visit)
        except Exception as error:
            # A route that is open to everybody does not mind, also while the store cannot be asked.
            visit.refusal = problems.explain(error)

    def _done(self, scope: dict[str, Any], visit: Visit, status: int, seconds: float) -> None:
        # One name for all that is nowhere: labels are not to be made up by whoever asks.
        route: str = scope.get("path_template") or "none" if scope.get("route_handler") else "none"
        self._metrics.requests.labels(route, scope["method"], str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if visit.refusal is not None and visit.refusal.problem.status < 500:
            self._failures.take(visit.house)
            self._metrics.turned_away.labels("credentials").inc()
        if visit.caller is not None and status < 400:
            self._noted(visit, scope)


class _Answer:
    """An answer on its way out. It is held until its body is there, but for one that is a stream."""

    def __init__(
        self, scope: dict[str, Any], visit: Visit, send: Send, done: Callable[[dict[str, Any], Visit, int, float], None]
    ) -> None:
        self.allowance: Allowance | None = None
        self._scope = scope
        self._visit = visit
        self._send = send
        self._done = done
        self._began = time.perf_counter()
        self._start: dict[str, Any] | None = None

    async def give(self, error: ProblemError) -> None:
        """Answer with a problem."""
        headers = {**error.headers, "content-type": problems.MEDIA_TYPE}
        raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self.send(
            cast("Message", {"type": "http.response.start", "status": error.problem.status, "headers": raw})
        )
        body = msgspec.json.encode(error.problem)
        await self.send(cast("Message", {"type": "http.response.body", "body": body, "more_body": False}))

    async def send(self, message: Message) -> None:
        """What the application says."""
        said = cast("dict[str, Any]", message)
        if said["type"] == "http.response.start":
            self._done(self._scope, self._visit, said["status"], time.perf_counter() - self._began)
            said["headers"] = self._complete(said.get("headers", []))
            self._start = said
            if _find(said["headers"], b"content-type").startswith(b"text/event-stream"):
                await self._let_go()
            return
        if said["type"] == "http.response.body" and self._start is not None:
            if not said.get("more_body"):
                said["body"] = await self._pack(self._start, said.get("body", b""))
            await self._let_go()
        if self._visit.wants_head_alone:
            said["body"] = b""
        await self._send(message)

    async def _let_go(self) -> None:
        start, self._start = self._start, None
        if start is not None:
            await self._send(cast("Message", start))

    def _complete(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        had = {name.lower() for name, _ in headers}
        if b"allow" in had:
            headers = [(name, self._methods() if name.lower() == b"allow" else value) for name, value in headers]
        added = [header for header in _HEADERS if header[0] not in had]
        if self._visit.secure:
            added.append(_STRICT_TRANSPORT)
        added.append((b"x-request-id", self._visit.request_id.encode()))
        if self.allowance is not None and b"ratelimit" not in had:
            added += [(name.lower().encode(), said.encode()) for name, said in limit_headers(self.allowance).items()]
        return [*headers, *added]

    def _methods(self) -> bytes:
        """What can be done there: Litestar tells of a path's first handler alone."""
        app, path = self._scope.get("litestar_app"), self._scope.get("path_template")
        methods = (
            {method for route in app.routes if route.path_format == path for method in route.methods} if app else ()
        )
        return ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods)).encode()

    async def _pack(self, start: dict[str, Any], body: bytes) -> bytes:
        """The body as the client takes it, smaller where that is worth it."""
        headers: list[tuple[bytes, bytes]] = start["headers"]
        kind = _find(headers, b"content-type")
        if not _PACKED.match(kind) or _find(headers, b"content-encoding"):
            return body
        packed = body
        way = choose_encoding(self._visit.headers.get("accept-encoding", "")) if len(body) >= _LEAST_PACKED else None
        match way:
            case "br":
                packed = await asyncio.to_thread(_brotli, body)
            case "gzip":
                packed = await asyncio.to_thread(gzip.compress, body, 5, mtime=0)
            case _:
                pass
        kept = [header for header in headers if header[0].lower() not in {b"content-length", b"vary"}]
        vary = ", ".join(filter(None, (_find(headers, b"vary").decode(), "Accept-Encoding")))
        kept += [(b"vary", vary.encode()), (b"content-length", b"%d" % len(packed))]
        start["headers"] = [*kept, (b"content-encoding", way.encode())] if way else kept
        return packed


def _brotli(body: bytes) -> bytes:
    return brotli.compress(body, quality=4)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _find(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    return next((value for name, value in headers if name.lower() == wanted), b"")


def choose_encoding(accepted: str) -> str | None:
    """br or gzip, what the client prefers, or None; ``q=0`` is a no.

    >>> choose_encoding("gzip, deflate, br"), choose_encoding("br;q=0, gzip;q=0.5"), choose_encoding("identity")
    ('br', 'gzip', None)
    """
    found: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, rest = part.strip().partition(";")
        weight = rest.strip().removeprefix("q=") if rest.strip().startswith("q=") else "1"
        try:
            found[name.strip()] = float(weight)
        except ValueError:
            continue
    best = max(("br", "gzip"), key=lambda name: found.get(name, found.get("*", 0.0)))
    return best if found.get(best, found.get("*", 0.0)) > 0 else None
