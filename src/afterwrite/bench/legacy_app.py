"""A legacy application's look at its own audit table, in a process of its own, until it is told to end.

``python -m afterwrite.bench.legacy_app --dsn …`` says on stdout where it listens. It does what such applications do:
pages by number, with ``count(*)`` to know how many there are and OFFSET to turn them; ILIKE over texts and row images;
one page that fetches all that it is asked for into one list, and draws it as one table.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, MediaType, Response, get
from litestar.datastructures import State

from afterwrite.postgres import Database, connect, statement

# As many as `afterwrite serve` has.
_CONNECTIONS = 8
_PAGE = 50

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Audit log</title>
<style>
body { font: 14px sans-serif; margin: 2em; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #ddd; padding: 6px; text-align: left; }
</style>
</head>
<body>
<h1>Audit log</h1>
<p><input id="filter" placeholder="Filter"> <span id="count"></span></p>
<table>
<thead><tr><th>Time</th><th>User</th><th>Operation</th><th>Table</th><th>Record</th><th>What</th><th>IP</th></tr></thead>
<tbody id="logs"></tbody>
</table>
<script type="module">
const columns = ["created_at", "user_id", "operation", "table_name", "record_id", "description", "ip_address"];
const body = document.getElementById("logs");
const filter = document.getElementById("filter");
const rows = new URLSearchParams(location.search).get("rows") ?? 50;
const { items, total } = await (await fetch(`/api/audit-logs?page=1&per_page=${rows}`)).json();

function draw(logs) {
  const drawn = document.createDocumentFragment();
  for (const log of logs) {
    const row = document.createElement("tr");
    for (const column of columns) {
      const cell = document.createElement("td");
      cell.textContent = log[column];
      row.append(cell);
    }
    drawn.append(row);
  }
  body.replaceChildren(drawn);
  document.getElementById("count").textContent = `${logs.length} of ${total}`;
}

filter.addEventListener("input", () => draw(items.filter((log) => (log.description ?? "").includes(filter.value))));
draw(items);
</script>
</body>
</html>
"""


@get("/api/audit-logs")
async def list_logs(
    state: State,
    page: int = 1,
    per_page: int = _PAGE,
    table: str | None = None,
    record: str | None = None,
    user: str | None = None,
    search: str | None = None,
) -> Response[bytes]:
    """A numbered page of the log, and how many entries there are."""
    skip, take = (page - 1) * per_page, per_page
    async with _lent(state) as db:
        if search is not None:
            pattern = f"%{search}%"
            total = await db.value(statement("bench.count_log_of_text"), pattern=pattern)
            items = await db.rows(_row, statement("bench.log_of_text"), pattern=pattern, skip=skip)
        elif table is not None:
            total = await db.value(statement("bench.count_log_of_entity"), type=table, id=record)
            items = await db.rows(_row, statement("bench.log_of_entity"), type=table, id=record, skip=skip)
        elif user is not None:
            total = await db.value(statement("bench.count_log_of_actor"), actor=user)
            items = await db.rows(_row, statement("bench.log_of_actor"), actor=user, skip=skip)
        else:
            total = await db.value(statement("bench.count_log"))
            items = await db.rows(_row, statement("bench.log_page"), skip=skip, take=take)
    return _json({"page": page, "total": total, "items": items})


@get("/api/audit-logs/by-hour")
async def count_by_hour(state: State, since: datetime, until: datetime) -> Response[bytes]:
    """How much happened, by the hour."""
    async with _lent(state) as db:
        return _json(await db.rows(_row, statement("bench.log_by_hour"), since=since, until=until))


@get("/audit-logs", media_type=MediaType.HTML)
async def show_logs() -> str:
    """The page."""
    return _HTML


def create_legacy_app(dsn: str) -> Litestar:
    """The application over the audit table of this database."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            pool: asyncio.Queue[Database] = asyncio.Queue()
            for _ in range(_CONNECTIONS):
                pool.put_nowait(await stack.enter_async_context(connect(dsn, application_name="legacy")))
            app.state.pool = pool
            yield

    return Litestar(
        [list_logs, count_by_hour, show_logs], lifespan=[lifespan], openapi_config=None, logging_config=None
    )


@asynccontextmanager
async def _lent(state: State) -> AsyncGenerator[Database]:
    pool: asyncio.Queue[Database] = state.pool
    db = await pool.get()
    try:
        yield db
    finally:
        pool.put_nowait(db)


def _row(**columns: object) -> dict[str, object]:
    return columns


def _json(value: Any) -> Response[bytes]:
    return Response(msgspec.json.encode(value, enc_hook=str), media_type=MediaType.JSON)


def main() -> None:
    """Serve on a free port of loopback until SIGTERM."""
    parser = argparse.ArgumentParser(prog="afterwrite.bench.legacy_app")
    parser.add_argument("--dsn", required=True)
    given = parser.parse_args()
    # Named TCP, as uvicorn's own sockets are: asyncio sends at once (TCP_NODELAY) only where it knows that it is.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        print(f"http://127.0.0.1:{opened.getsockname()[1]}/", flush=True)
        app = create_legacy_app(given.dsn)
        # The same HTTP implementation as the server that it is compared with.
        uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None, access_log=False)).run(sockets=[opened])


if __name__ == "__main__":
    main()
