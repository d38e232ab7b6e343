"""The application: what is opened with it, and whose routes it serves.

Every room of the server exports ``routes``, a list of Litestar route handlers, and is plugged in here: api.py, live.py
(the feed) and pages.py. A handler has two ways to the rest of us, and needs no other::

    @get("/v1/things")
    async def list_things(request: Request, caller: Caller) -> …:        # the dependency ``caller``: who asks
        async with reading(request.app.state, caller) as db:            # what he may see (tenancy.py)
            …

``app.state`` holds ``settings``, ``readers`` (the pool behind ``reading``) and ``feed`` (live.py's Feed, open for as
long as the server runs).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from afterwrite.serve import api
from afterwrite.serve.auth import provide_caller
from afterwrite.serve.tenancy import Readers
from afterwrite.settings import Settings


def create_app(settings: Settings) -> Litestar:
    """The ASGI application over the store that the settings name. Nothing is connected before it is started."""
    handlers: list[ControllerRouterHandler] = [*api.routes]
    # The feed and the pages are being built: plugged in as they come.
    rooms = [import_module(name) for name in ("afterwrite.serve.live", "afterwrite.serve.pages") if find_spec(name)]
    for room in rooms:
        handlers += room.routes

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        readers = app.state.readers = Readers(settings)
        try:
            feed = next((room.Feed for room in rooms if hasattr(room, "Feed")), None)
            if feed is None:
                yield
            else:
                async with feed(settings) as app.state.feed:
                    yield
        finally:
            await readers.close()

    return Litestar(
        route_handlers=handlers,
        dependencies={"caller": Provide(provide_caller)},
        lifespan=[lifespan],
        state=State({"settings": settings}),
        openapi_config=None,
        logging_config=None,
    )
