"""The application: what is opened with it, and whose routes it serves.

Every room of the server exports ``routes``, a list of Litestar route handlers, and is plugged in here: api.py, live.py
(the feed) and pages.py. A handler has two ways to the rest of us, and needs no other::

    @get("/v1/things")
    async def list_things(request: Request, caller: Caller) -> …:        # the dependency ``caller``: who asks
        async with reading(request.app.state, caller) as db:            # what he may see (tenancy.py)
            …

A route is closed to who may not read, unless its ``opt`` says otherwise (auth.py), and who was let in to look is noted
(access.py). What goes wrong is raised, as one of our errors or as a ProblemError, and answered as a problem
(problems.py).

``app.state`` holds ``settings``, ``readers`` (the pool behind ``reading``), ``lakeside`` (who asks the lake, behind
``both``: lakeside.py), ``auth`` (for logging in: ``log_in``), ``metrics``, ``ingest``, ``feed`` (live.py's Feed, open
for as long as the server runs), and what is kept for a few seconds: ``await app.state.health.get()`` (health.py's
Health), ``.progress.get()`` (progress.py's Progress: phases, gates, proof, checklist, load) and ``.triggers.get()``
(its Triggers). These three are for callers without a tenant: the dependency ``operator`` is one, or the answer 403.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any, cast

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect, statement
from afterwrite.serve import api, pages, problems
from afterwrite.serve.access import Looks
from afterwrite.serve.auth import Auth, guard, provide_caller, provide_operator
from afterwrite.serve.counting import keep_counting
from afterwrite.serve.door import Door
from afterwrite.serve.health import read_health
from afterwrite.serve.ingest import Ingest
from afterwrite.serve.kept import Kept
from afterwrite.serve.lakeside import Lakeside
from afterwrite.serve.live import Feed
from afterwrite.serve.live import routes as feed_routes
from afterwrite.serve.metrics import Metrics, Totals
from afterwrite.serve.openapi import describe, make_app
from afterwrite.serve.openapi import routes as openapi_routes
from afterwrite.serve.progress import read_progress, read_triggers
from afterwrite.serve.tenancy import Readers
from afterwrite.settings import Settings
from afterwrite.store.schema import require_store

log = logging.getLogger(__name__)

_HEALTH_SECONDS, _PROGRESS_SECONDS, _TRIGGERS_SECONDS = 2.0, 3.0, 60.0
_TOTALS_SECONDS, _READY_SECONDS = 2.0, 1.0
_USED_SECONDS = 60.0


def create_app(settings: Settings) -> Litestar:
    """The ASGI application over the store that the settings name. Nothing is connected before it is started."""
    handlers: list[ControllerRouterHandler] = [*api.routes, *feed_routes, *openapi_routes, *pages.routes]
    readers = Readers(settings)
    metrics = Metrics()
    auth = Auth(settings, readers)
    ingest = Ingest(settings, readers, metrics)
    looks = Looks(ingest, metrics, settings.serve_access_seconds)
    totals = Totals()

    async def read_totals() -> Totals:
        async with readers.read(None) as db:
            await totals.read_on(db)
        return totals

    async def is_ready() -> bool:
        async with readers.read(None) as db:
            await require_store(db)
        return True

    dependencies = {"caller": Provide(provide_caller), "operator": Provide(provide_operator)}
    state: dict[str, Any] = {
        "settings": settings,
        "description": partial(describe, handlers, dependencies),
        "readers": readers,
        "lakeside": None,
        "auth": auth,
        "metrics": metrics,
        "ingest": ingest,
        "health": Kept(partial(read_health, settings), _HEALTH_SECONDS),
        "progress": Kept(partial(read_progress, settings), _PROGRESS_SECONDS),
        "triggers": Kept(partial(read_triggers, settings), _TRIGGERS_SECONDS),
        "totals": Kept(read_totals, _TOTALS_SECONDS),
        "ready": Kept(is_ready, _READY_SECONDS),
    }

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        storing = asyncio.create_task(ingest.run())
        looking = asyncio.create_task(looks.run())
        noting = asyncio.create_task(_keep_noting(settings, auth))
        counting = asyncio.create_task(keep_counting(settings, readers))
        if settings.lake_url is not None:
            app.state.lakeside = Lakeside(settings)
        try:
            async with Feed(settings) as app.state.feed:
                yield
        finally:
            for task in (looking, noting, counting):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await looks.flush(ending=True)
            await _note_used(settings, auth)
            ingest.stop()
            await storing
            await readers.close()
            if app.state.lakeside is not None:
                app.state.lakeside.close()

    app = make_app(
        handlers,
        dependencies=dependencies,
        guards=[guard],
        exception_handlers=problems.HANDLERS,
        lifespan=[lifespan],
        state=State(state),
        cors_config=_cors(settings),
        openapi_config=None,  # openapi.py says more
        logging_config=None,
        request_max_body_size=1 << 20,
    )
    app.asgi_handler = Door(app.asgi_handler, settings, auth, metrics, looks.note)
    return app


def _cors(settings: Settings) -> CORSConfig | None:
    """Whose pages may call the API; nobody's, unless they are named. Cookies are never for them."""
    if not settings.serve_cors_origins:
        return None
    return CORSConfig(
        allow_origins=list(settings.serve_cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "Content-Encoding", "If-None-Match", "Last-Event-ID"],
        expose_headers=["ETag", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"],
        allow_credentials=False,
    )


async def _keep_noting(settings: Settings, auth: Auth) -> None:
    while True:
        await asyncio.sleep(_USED_SECONDS)
        await _note_used(settings, auth)


async def _note_used(settings: Settings, auth: Auth) -> None:
    """Say in the store which keys are in use; where that cannot be, they will be used again."""
    used, auth.used = auth.used, cast("dict[str, datetime]", {})
    if not used:
        return
    try:
        async with connect(settings.store, application_name="afterwrite serve", guarded=True) as db:
            await db.run(statement("serve.note_used"), ids=list(used), times=list(used.values()))
    except AfterwriteError as error:
        log.warning("which keys are in use could not be noted: %s", error)
