"""``afterwrite serve``: the API, the live feed, the pages and the metrics, until Ctrl-C."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Annotated

import typer

from afterwrite.cli.face import StoreDsn, run, say
from afterwrite.errors import ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.serve.app import create_app
from afterwrite.serve.auth import check_start
from afterwrite.serve.wire import Server
from afterwrite.settings import Settings, load_settings
from afterwrite.store.schema import require_store

_BACKLOG = 2_048

EXAMPLES = "A key for other machines' callers: afterwrite key create dashboard --scope read"


def serve(
    dsn: Annotated[
        str | None,
        typer.Option("--dsn", help="The source, and the store where it has none of its own.", show_default=False),
    ] = None,
    store_dsn: StoreDsn = None,
    host: Annotated[
        str | None, typer.Option("--host", help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="The port; 0 takes a free one.", show_default="8787")
    ] = None,
) -> int:
    """Serve the API, the live feed, the pages and the metrics, until Ctrl-C or SIGTERM.

    On 127.0.0.1, whoever is on this machine is let in. On any other address everybody has to show a key or a token, and
    it is not started before there is one. Exit 5 where it would be open to others.
    """
    given = load_settings(dsn=dsn, store_dsn=store_dsn, serve_host=host, serve_port=port)
    for warning in run(_check(given)):
        say(f"[yellow]warning[/] {warning}")
    listen(given)
    return ExitCode.OK


async def _check(given: Settings) -> list[str]:
    async with connect(given.store, application_name="afterwrite serve", guarded=True) as store:
        await require_store(store)
    return await check_start(given)


def listen(given: Settings) -> None:
    """Serve these settings until Ctrl-C or SIGTERM, and say where."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    opened = open_socket(given.serve_host, given.serve_port)
    host, port = opened.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"afterwrite serves [bold]http://{shown}:{port}/[/], until Ctrl-C")
    server = Server(create_app(given), access_log=False, server_header=False, proxy_headers=False)
    try:
        server.run(sockets=[opened])
    except KeyboardInterrupt:
        pass  # that is how it ends
    finally:
        opened.close()


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UsageError where that cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}",
            remedy="end what listens there, or give another --port (0 takes a free one)",
        ) from error
    return opened
