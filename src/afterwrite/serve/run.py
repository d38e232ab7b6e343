"""Serving: a socket that listens, the application behind it, and where that is."""

from __future__ import annotations

import socket

from afterwrite.errors import UsageError
from afterwrite.serve.app import create_app
from afterwrite.serve.wire import Server
from afterwrite.settings import Settings

_BACKLOG = 2_048


def make_server(settings: Settings) -> Server:
    """A server of these settings; ``run(sockets=[…])`` or ``await serve(sockets=[…])`` it."""
    # Whom a proxy stands for is decided by serve_trusted_proxies, and not by uvicorn.
    return Server(create_app(settings), access_log=False, server_header=False, proxy_headers=False)


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


def address_of(opened: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
