"""A server of ours in a thread of its own, on a free port of loopback, over a store of the module's own."""

from __future__ import annotations

import asyncio
import http.client
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg

from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch, Kind, Lsn, Operation
from afterwrite.serve.app import create_app
from afterwrite.serve.keys import make_key
from afterwrite.serve.wire import Server
from afterwrite.settings import Settings
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink


class Answer(msgspec.Struct):
    """What came back. ``json`` decodes, whatever the status was."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Client:
    """Asks one server, with a key or without."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self.key = key

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a header's name has ``_`` for ``-``. What is no bytes is sent as JSON."""
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.key is not None:
            said.setdefault("Authorization", f"Bearer {self.key}")
        if body is not None and not isinstance(body, bytes):
            body = msgspec.json.encode(body)
            said.setdefault("Content-Type", "application/json")
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            connection.request(method, path, body, said)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def with_key(self, key: str | None) -> Client:
        return Client(self.url, key)


@contextmanager
def serving(settings: Settings, host: str = "127.0.0.1") -> Iterator[Client]:
    """Serve these settings for as long as the block runs."""
    running = Server(
        create_app(settings), host=host, port=0, access_log=False, server_header=False, proxy_headers=False
    )
    thread = threading.Thread(target=running.run, name="afterwrite serve")
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not running.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield Client(f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}")
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


@contextmanager
def store(server: Any) -> Iterator[str]:
    """A database with our schema in it, for a module."""
    name = f"afterwrite_serve_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")
    try:
        dsn = server.dsn(name)

        async def prepare() -> None:
            async with connect(dsn) as db:
                await install_store(db)

        asyncio.run(prepare())
        yield dsn
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)")


def key(dsn: str, name: str, *scopes: str, tenant: str | None = None, expires_at: datetime | None = None) -> str:
    """A key of this store, as it is shown once."""

    async def make() -> str:
        async with connect(dsn) as db:
            return (await make_key(db, name, scopes or ("read",), tenant=tenant, expires_at=expires_at))[1]

    return asyncio.run(make())


def write(dsn: str, *activities: Activity, source: str = "shop") -> None:
    """Store these in one batch."""

    async def store_them() -> None:
        async with open_sink(dsn) as sink:
            await sink.write(Batch(source=source, activities=activities, transactions=0))

    asyncio.run(store_them())


def an_id(number: int, at: datetime) -> str:
    """A UUIDv7 of that time."""
    milliseconds = f"{int(at.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7{number % 4096:03x}-8000-{number:012x}"


def an_event(number: int, at: datetime | None = None, **fields: Any) -> Activity:
    """Something that an application recorded."""
    at = at or datetime.now(UTC)
    given: dict[str, Any] = {
        "category": "data",
        "action": "order.placed",
        "entity_type": "order",
        "entity_id": str(number),
        "actor_id": f"user:{number % 3}",
        "summary": f"order {number} was placed",
        "metadata": msgspec.Raw(b'{"plan": "pro", "number": %d}' % number),
    }
    return Activity(id=an_id(number, at), occurred_at=at, source="shop", kind=Kind.EVENT, **{**given, **fields})


def a_change(number: int, at: datetime, **fields: Any) -> Activity:
    """A row that was updated, in a transaction of its own."""
    given: dict[str, Any] = {
        "category": "data",
        "action": "orders.update",
        "entity_type": "orders",
        "entity_id": str(number),
        "relation": "public.orders",
        "operation": Operation.UPDATE,
        "changed": ("state",),
        "before": msgspec.Raw(b'{"id": %d, "state": "open"}' % number),
        "after": msgspec.Raw(b'{"id": %d, "state": "paid"}' % number),
        "xid": 700 + number,
        "commit_lsn": Lsn(0x1000000 + 8 * number),
        "ordinal": 0,
    }
    return Activity(
        id=an_id(number, at).replace("-7", "-8", 1), occurred_at=at, source="main", kind=Kind.CHANGE,
        **{**given, **fields},
    )  # fmt: skip
