"""``GET /v1/feed``: the live feed as server-sent events, straight from the feed's buffers to the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Annotated, Any, cast

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import ServiceUnavailableException
from litestar.params import HeaderParameter
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from afterwrite.postgres import Database
from afterwrite.search.query import parse
from afterwrite.serve import feed
from afterwrite.serve.auth import Caller
from afterwrite.serve.tenancy import reading
from afterwrite.serve.visits import visit_of
from afterwrite.serve.wire import cut_of
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity, as_json

_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store, no-transform"),
    # nginx and those that learned from it would collect what we send.
    (b"x-accel-buffering", b"no"),
]


class Feed(feed.Feed):
    """The feed of the store that the settings name; open for as long as the server runs, as ``app.state.feed``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.store, encode=_encode)


def _encode(activity: StoredActivity) -> bytes:
    return msgspec.json.encode(as_json(activity))


@get("/v1/feed", media_type="text/event-stream")
async def follow_feed(
    request: Request[Caller, None, State],
    caller: NamedDependency[Caller],
    q: str = "",
    last_event_id: str | None = None,
    last_event_id_header: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
) -> ASGIApp:
    """New activity as it is stored, as server-sent events; with the last `id:` that was seen, all that came since.

    `event: activity` holds an activity, `event: resync` says that some cannot be had through this stream, and what to
    do. Each `id:` is a place in the feed from which the stream goes on exactly.
    """
    told = last_event_id_header or last_event_id
    wish = feed.Wish(parse(q), caller.tenant)
    after = feed.Place.parse(told) if told else None
    live: Feed = request.app.state.feed
    try:
        live.require_room(wish)
    except feed.TooMany as error:
        raise ServiceUnavailableException(detail=f"{error}; {error.remedy}", headers={"Retry-After": "5"}) from error
    return _stream(live, wish, after, request.app.state)


def _stream(live: Feed, wish: feed.Wish, after: feed.Place | None, state: State) -> ASGIApp:
    def open_store(tenant: str | None) -> AbstractAsyncContextManager[Database]:
        return reading(state, Caller("feed", frozenset(), tenant))

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_bytes(data: bytes) -> None:
            body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": data, "more_body": True}
            await send(body)

        start: HTTPResponseStartEvent = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
        await send(start)
        if visit_of(cast("Mapping[str, Any]", scope)).wants_head_alone:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        following = asyncio.create_task(live.follow(wish, after, send_bytes, open_store))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            cut = cut_of(cast("Mapping[str, Any]", scope))
            if following.result() is feed.Ended.SLOW and cut is not None:
                cut()
                await leaving
            else:
                end: HTTPResponseBodyEvent = {"type": "http.response.body", "body": b"", "more_body": False}
                await send(end)
        finally:
            for task in (following, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    return stream


async def _left(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


routes = [follow_feed]
