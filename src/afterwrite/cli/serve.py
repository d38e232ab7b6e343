"""``afterwrite serve``: the API, the live feed, the pages and the metrics, until Ctrl-C."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer

from afterwrite.cli.face import StoreDsn, say
from afterwrite.errors import ExitCode, Refused
from afterwrite.serve.app import create_app
from afterwrite.serve.wire import Server
from afterwrite.settings import load_settings


def serve(
    dsn: Annotated[
        str | None, typer.Option("--dsn", help="The database that holds the store.", show_default=False)
    ] = None,
    store_dsn: StoreDsn = None,
    host: Annotated[
        str | None, typer.Option("--host", help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="The port.", show_default="8787")] = None,
) -> int:
    """Serve the API, the live feed, the pages and the metrics, until Ctrl-C or SIGTERM."""
    given = load_settings(dsn=dsn, store_dsn=store_dsn, serve_host=host, serve_port=port)
    if not ipaddress.ip_address(given.serve_host).is_loopback:
        raise Refused(f"{given.serve_host} is no loopback address", remedy="serve on 127.0.0.1")
    say(f"http://{given.serve_host}:{given.serve_port}")
    Server(create_app(given), host=given.serve_host, port=given.serve_port).run()
    return ExitCode.OK
