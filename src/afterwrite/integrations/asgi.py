"""ASGI: who and why of each request, for FastAPI, Starlette, Litestar and every other application.

::

    app.add_middleware(ContextMiddleware, trusted_proxies=["10.0.0.0/8"])

The middleware stands outside, and who is asking turns out inside: the actor is read from the scope only when something
is written or recorded, or is said by whoever found out, with ``context.amend(actor=…)``. Background tasks, streams and
the threads of synchronous endpoints all see the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

from afterwrite.context import Later, bind
from afterwrite.integrations.http_request import (
    REQUEST_ID,
    TRACE_PARENT,
    USER_AGENT,
    Asking,
    Proxies,
    ProxyHeader,
    Recorded,
    conclude,
    decode,
    name_user,
    read_request,
    track_request,
)

__all__ = ["ContextMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Ask = Callable[[Scope], object]

_REQUEST_ID = REQUEST_ID.encode()
_AROUND = "afterwrite.context"


class _Around(NamedTuple):
    """What this middleware leaves in a scope for one further in: what it bound, and whether it makes an activity."""

    later: Later
    records: bool


def user_of(scope: Scope) -> str | None:
    """The actor that an authentication middleware has put into the scope: its user's id."""
    return name_user(scope.get("user"))


class ContextMiddleware:
    """Binds what a request says of itself around an ASGI application.

    ``actor``, ``tenant`` and ``session`` are asked with the scope, when somebody wants the context, each until it gives
    something; they must not wait. ``trusted_proxies`` are the networks whose ``proxy_header`` is believed. The request
    id is the caller's ``X-Request-Id`` or a new one, and stands in the response. ``record`` makes an activity
    ``http.request`` of the requests that write, or of all; what they change points to it.
    """

    def __init__(
        self,
        app: Application,
        *,
        actor: Ask | None = user_of,
        tenant: Ask | None = None,
        session: Ask | None = None,
        trusted_proxies: Iterable[str] = (),
        proxy_header: ProxyHeader = "x-forwarded-for",
        record: Recorded = None,
    ) -> None:
        self.app = app
        self._asked = {"actor": actor, "tenant": tenant, "session": session}
        self._proxies = Proxies(trusted_proxies, proxy_header)
        self._record: Recorded = record
        self._read = {name.encode(): name for name in (REQUEST_ID, TRACE_PARENT, USER_AGENT, self._proxies.header)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        found: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if known := self._read.get(name.lower()):
                found.setdefault(known, []).append(decode(value))
        client = scope.get("client")
        told = read_request(lambda name: found.get(name, []), client[0] if client else None, self._proxies)
        status: int | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] in {"http.response.start", "websocket.accept"}:
                status = message.get("status")
                headers = [*message.get("headers", ())]
                if not any(name.lower() == _REQUEST_ID for name, _ in headers):
                    message = {**message, "headers": [*headers, (_REQUEST_ID, told.request.encode())]}
            await send(message)

        # Mounted in an application that has this middleware too: it is one request, with one id.
        outer: _Around | None = scope.get(_AROUND)
        if outer is None:
            later, record = Later(told.bind(), Asking(scope, self._asked)), self._record
        else:
            later = Later(bind(), Asking(scope, self._asked), within=outer.later)
            record = None if outer.records else self._record
        scope[_AROUND] = _Around(later, record is not None or (outer is not None and outer.records))
        method = scope.get("method", "WEBSOCKET")
        with later, track_request(record, method, scope.get("path", "")) as run:
            try:
                await self.app(scope, receive, answer if outer is None else send)
            finally:
                scope[_AROUND] = outer
                conclude(run, status=status, route=_route_of(scope))


def _route_of(scope: Scope) -> str | None:
    """The pattern of the path: Starlette and FastAPI leave their route in the scope, Litestar its template."""
    found = scope.get("path_template") or getattr(scope.get("route"), "path", None)
    return found if isinstance(found, str) else None
