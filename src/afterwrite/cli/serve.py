"""``afterwrite serve``: the API, the live feed, the pages and the metrics, until Ctrl-C."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated

import typer

from afterwrite.cli.face import StoreDsn, run, say
from afterwrite.errors import ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.settings import Settings, load_settings
from afterwrite.store.schema import require_store

_LIBRARIES = ("litestar", "uvicorn", "jinja2", "brotli", "prometheus_client", "jwt")
_LAKE_LIBRARIES = ("deltalake", "duckdb", "pyarrow")

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
    for name in _LIBRARIES:  # not by importing them: `afterwrite --help` shall not need them
        if find_spec(name) is None:
            raise UsageError(f"serving needs {name}, which is not installed", remedy="pip install 'afterwrite[serve]'")
    if given.lake_url is not None and (lacking := [name for name in _LAKE_LIBRARIES if find_spec(name) is None]):
        said = f"{lacking[0]} is not installed: older days will not be shown, and every answer says so"
        say(f"[yellow]warning[/] lake_url is set, and {said}; run: pip install 'afterwrite\\[lake]'")
    for warning in run(_check(given)):
        say(f"[yellow]warning[/] {warning}")
    listen(given)
    return ExitCode.OK


async def _check(given: Settings) -> list[str]:
    from afterwrite.serve.auth import check_start

    async with connect(given.store, application_name="afterwrite serve", guarded=True) as store:
        await require_store(store)
    return await check_start(given)


def listen(given: Settings) -> None:
    """Serve these settings until Ctrl-C or SIGTERM, and say where."""
    from afterwrite.serve.run import address_of, make_server, open_socket

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with open_socket(given.serve_host, given.serve_port) as opened:
        say(f"afterwrite serves [bold]{address_of(opened)}[/], until Ctrl-C")
        with suppress(KeyboardInterrupt):  # that is how it ends
            make_server(given).run(sockets=[opened])
