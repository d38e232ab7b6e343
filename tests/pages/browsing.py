"""The pages as a browser sees them: the system's Chromium, and a server over a filled store."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from afterwrite.serve.app import create_app
from afterwrite.settings import Settings

HOW = "there is no Chromium here: `apt-get install chromium`, or its like, lets the pages be tested in a browser"


def find_chromium() -> str | None:
    """The system's Chromium, or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The server in a thread of its own, on a free port of loopback; gives its address."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    )
    ended: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(server.serve(sockets=[held]))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, name="pages")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start") from (ended[0] if ended else None)
            thread.join(0.02)
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
