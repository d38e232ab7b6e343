"""The line by which Java reaches a server of ours, and whom it lets in."""

from __future__ import annotations

import asyncio
import os
import socket

import psycopg
import pytest

from afterwrite.bench.debezium import line_to
from afterwrite.postgres.embedded import Server

_SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])  # a server answers with one byte


def _dial(port: int, user: int) -> bytes:
    """A socket belongs to whoever made it."""
    ours = os.geteuid()
    os.seteuid(user)
    try:
        line = socket.socket()
    finally:
        os.seteuid(ours)
    with line:
        line.settimeout(10)
        line.connect(("127.0.0.1", port))
        line.sendall(_SSL_REQUEST)
        try:
            return line.recv(1)
        except ConnectionResetError:
            return b""


def test_our_own_processes_reach_the_server_and_nobody_else(server: Server) -> None:
    async def run() -> None:
        async with line_to(server) as port:

            def ask() -> int:
                words = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
                with psycopg.connect(words) as db:
                    row = db.execute("select length(repeat('x', 1000000) || pg_sleep(0)::text)").fetchone()
                return int(row[0]) if row else 0

            assert await asyncio.to_thread(ask) == 1_000_000
            assert await asyncio.to_thread(_dial, port, os.geteuid()) == b"N"
            if os.geteuid() == 0:
                assert await asyncio.to_thread(_dial, port, 65_534) == b""
        with pytest.raises(psycopg.OperationalError):
            await asyncio.to_thread(ask)

    asyncio.run(run())
