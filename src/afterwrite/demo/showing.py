"""What the demo ends with: the pages over what it has made, while the application goes on at a walking pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from afterwrite.demo.processes import application, capture_worker
from afterwrite.demo.schema import ROLE
from afterwrite.demo.story import DATABASE
from afterwrite.errors import AfterwriteError, UsageError
from afterwrite.postgres.embedded import Server
from afterwrite.serve.run import address_of, make_server, open_socket
from afterwrite.settings import Settings

_CLIENTS, _RATE = 2, 3.0


async def show(server: Server, folder: Path, seed: int, announce: Callable[[str], None]) -> None:
    """Serve the store on loopback until cancelled, or told to stop by a signal; ``announce`` hears the address.

    The application and a worker go on beside it, so that there is something to watch. Where they cannot, what was made
    is there to be looked at all the same.
    """
    settings = Settings(dsn=server.dsn(DATABASE), operator="demo")
    try:
        opened = open_socket(settings.serve_host, settings.serve_port)
    except UsageError:
        opened = open_socket(settings.serve_host, 0)
    with opened:
        serving = make_server(settings)
        going_on = asyncio.create_task(_go_on(server, folder, seed))
        served = asyncio.create_task(serving.serve(sockets=[opened]))
        try:
            announce(address_of(opened))
            await asyncio.shield(served)
        finally:
            serving.should_exit = True  # it closes in order, where a cancellation would tear it
            going_on.cancel()
            await asyncio.gather(going_on, served, return_exceptions=True)


async def _go_on(server: Server, folder: Path, seed: int) -> None:
    """The application and the worker, until cancelled or one of them ends."""
    async with AsyncExitStack() as opened:
        worker = await opened.enter_async_context(capture_worker(server.dsn(DATABASE), folder / "capture.log"))
        app = await opened.enter_async_context(
            application(
                server.dsn(DATABASE, ROLE),
                folder / "afterwards.jsonl",
                clients=_CLIENTS,
                seed=seed + 1,
                rate=_RATE,
                log=folder / "workload.log",
            )
        )
        try:
            await app.ask("stamp on", "stamp")
            while True:
                await asyncio.sleep(1.0)
                app.check()
                worker.check()
        except AfterwriteError:
            return
