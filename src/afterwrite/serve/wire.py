"""The HTTP server under the application: uvicorn, with three things that strangers and long streams ask for.

When it is told to stop, it ends the feed's streams, where it would wait for their clients to leave. A connection can be
cut: a client that takes nothing would otherwise keep what waits for it for as long as its machine answers. And it is
cut where a request's head does not come: else a few thousand that say a letter a minute would be all that is served.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

import h11
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol

_CUT = "afterwrite.cut"
_GRACE_SECONDS = 5
_HEAD_SECONDS = 15.0


class Protocol(H11Protocol):
    """HTTP/1.1, whose requests know how to cut their connection, and whose clients have seconds to say what for."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        # What the scope of each request on this connection carries as its state.
        self.app_state = {**self.app_state, _CUT: transport.abort}
        self._watch()

    def handle_events(self) -> None:
        """Something was received, or a request was answered."""
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Have the connection cut in a while, from when a request could begin until its head is there."""
        begun = self.conn.their_state is not h11.IDLE
        if begun and self._late is not None:
            self._late.cancel()
            self._late = None
        elif not begun and self._late is None:
            self._late = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)


def cut_of(scope: Mapping[str, Any]) -> Callable[[], None] | None:
    """How to cut this request's connection at once; None under another server."""
    state = cast("Mapping[str, Any]", scope.get("state") or {})
    return state.get(_CUT)


class Server(uvicorn.Server):
    """Uvicorn, that lets go of the feed's clients when it stops; they come back to another one, or later."""

    def __init__(self, app: Litestar, **config: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=Protocol, ws="none", log_config=None, timeout_graceful_shutdown=_GRACE_SECONDS, **config
            )
        )
        self._state = app.state

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what runs, and wait for it as long as is decent."""
        if (feed := self._state.get("feed")) is not None:
            feed.stop()
        await super().shutdown(sockets)
