"""The application: what is opened with it, and whose routes it serves.

Every room of the server exports ``routes``, a list of Litestar route handlers, and is plugged in here: api.py, live.py
(the feed) and pages.py. A handler has two ways to the rest of us, and needs no other::

    @get("/v1/things")
    async def list_things(request: Request, caller: Caller) -> …:        # the dependency ``caller``: who asks
        async with reading(request.app.state, caller) as db:            # what he may see (tenancy.py)
            …

``app.state`` holds ``settings``, ``readers`` (the pool behind ``reading``), ``feed`` (live.py's Feed, open for as long
as the server runs), and what is kept for a few seconds: ``await app.state.health.get()`` (health.py's Health),
``.progress.get()`` (progress.py's Progress: phases, gates, proof, checklist, load) and ``.triggers.get()`` (its
Triggers). These three are for callers without a tenant: the dependency ``operator`` is one, or the answer 403.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from afterwrite.serve import api
from afterwrite.serve.auth import provide_caller, provide_operator
from afterwrite.serve.health import read_health
from afterwrite.serve.kept import Kept
from afterwrite.serve.progress import read_progress, read_triggers
from afterwrite.serve.tenancy import Readers
from afterwrite.settings import Settings

_HEALTH_SECONDS, _PROGRESS_SECONDS, _TRIGGERS_SECONDS = 2.0, 3.0, 60.0


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
        app.state.health = Kept(partial(read_health, settings), _HEALTH_SECONDS)
        app.state.progress = Kept(partial(read_progress, settings), _PROGRESS_SECONDS)
        app.state.triggers = Kept(partial(read_triggers, settings), _TRIGGERS_SECONDS)
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
        dependencies={"caller": Provide(provide_caller), "operator": Provide(provide_operator)},
        lifespan=[lifespan],
        state=State({"settings": settings}),
        openapi_config=None,
        logging_config=None,
    )
