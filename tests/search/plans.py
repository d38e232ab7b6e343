"""How long each shape of query takes on many rows, by which plans: `./run python -m tests.search.plans --rows 3000000`.

A store of sixty days, thirty of them hot, on a server of its own. `work` is what the session and its caller computed,
which a busy machine does not stretch as it does the time on the clock. Exit code 1 when a partition is read by a Seq
Scan, or when the work of one in twenty of a shape that is frequent, or that an index answers, takes 20 ms or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg

from afterwrite.bench.days import lay_days
from afterwrite.postgres import Database, connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.windows import Page, Place

DAYS, HOT_DAYS = 60, 30
TODAY = datetime.now(UTC).date()
HELD_TO_MS = 20.0


class Shape(msgspec.Struct, frozen=True):
    """A kind of query: its line, ever another one. ``held`` to 20 ms; else no index answers, and time is bounded."""

    name: str
    line: Callable[[random.Random], str]
    held: bool = True
    deep: bool = False


def _any_user(chance: random.Random) -> str:
    return f"actor:user:{int(chance.random() ** 3 * 3000)}"


SHAPES = (
    Shape("everything", lambda c: ""),
    Shape("everything, further back", lambda c: "", deep=True),
    Shape("actor, frequent", lambda c: "actor:system"),
    Shape("actor, any", _any_user),
    Shape("actor, unknown", lambda c: f"actor:nobody{c.random()} after:30d"),
    Shape("actors, several", lambda c: f"actor:user:{c.randrange(3000)},user:{c.randrange(3000)} after:30d"),
    Shape("actor, beginning", lambda c: "actor:user:29*"),
    Shape("entity", lambda c: f"entity:orders/{c.randrange(100_000)}"),
    Shape("entity type", lambda c: f"entity:{c.choice(('orders', 'users', 'project'))}"),
    Shape("entity type, rare", lambda c: "entity:config after:30d"),
    Shape("tenant", lambda c: f"tenant:tenant-{c.randrange(50)}"),
    Shape("tenant and category", lambda c: f"tenant:tenant-{c.randrange(50)} category:financial"),
    Shape("action, glob", lambda c: f"action:{c.choice(('user', 'orders', 'redemption'))}.*"),
    Shape("action, rare", lambda c: "action:key.revoke"),
    Shape("action, unknown", lambda c: "action:nothing.happened after:30d"),
    Shape("category", lambda c: f"category:{c.choice(('financial', 'authentication', 'data'))}"),
    Shape("category, rare", lambda c: "category:security"),
    Shape("outcome", lambda c: "outcome:failure"),
    Shape("severity", lambda c: "severity:error,critical"),
    Shape("table", lambda c: f"table:{c.choice(('orders', 'users'))} operation:update"),
    Shape("word, frequent", lambda c: c.choice(("approved", "redemption", "status"))),
    Shape("word, any", lambda c: f"{c.randrange(100_000)} after:30d"),
    Shape("word, rare", lambda c: "quixotic after:30d"),
    Shape("word, unknown", lambda c: f"nothing{c.randrange(1000)} after:30d"),
    Shape("word, beginning", lambda c: "quix* after:30d"),
    Shape("word with accents", lambda c: "équipe"),
    Shape("phrase, frequent", lambda c: '"gold token"'),
    Shape("phrase, rare", lambda c: '"platinum token transfer" after:30d'),
    Shape("changed", lambda c: "changed:status"),
    Shape("changed, rare", lambda c: "changed:iban"),
    Shape("metadata", lambda c: f"metadata.plan:{c.choice(('pro', 'free'))}"),
    Shape("metadata, rare", lambda c: "metadata.plan:enterprise"),
    Shape("metadata, any", lambda c: f"metadata.ticket:T-{c.randrange(100_000)} after:30d"),
    Shape("request", lambda c: f"request:req-{c.randrange(10_000):x} after:30d"),
    Shape("negations", lambda c: "-actor:system -category:data -outcome:failure"),
    Shape("kinds combined", lambda c: f"{_any_user(c)} action:redemption.* outcome:success approved after:30d"),
    Shape("frequent actor, rare word", lambda c: "actor:system quixotic after:30d"),
    Shape("a day", lambda c: f"at:{TODAY - timedelta(days=c.randrange(1, 60))}"),
    Shape("a day, and a word", lambda c: f"at:{TODAY - timedelta(days=c.randrange(1, 29))} approved"),
    # Below an index has much to put aside, or none answers: then so many rows are walked as the time allows.
    Shape("words, frequent, never together", lambda c: "jane redemption after:30d", held=False),
    Shape("address", lambda c: f"ip:10.0.{c.randrange(250)}.{c.randrange(250)} after:30d", held=False),
    Shape("old value, rare", lambda c: "before.status:nothing", held=False),
    Shape("word, rare, also cold days", lambda c: "quixotic", held=False),
    Shape("metadata, unknown, also cold days", lambda c: "metadata.plan:nothing", held=False),
)


class Measured(msgspec.Struct, frozen=True):
    shape: Shape
    milliseconds: list[float]
    work: list[float]
    found: int
    nodes: tuple[str, ...]
    sequential: tuple[str, ...]
    looked: datetime | None

    def at(self, share: float) -> float:
        """The time that this share of them took at most."""
        return _at(self.milliseconds, share)

    @property
    def trouble(self) -> str | None:
        """What is not as it should be."""
        if self.sequential:
            return f"read by Seq Scan: {', '.join(self.sequential)}"
        if self.shape.held and _at(self.work, 0.95) >= HELD_TO_MS:
            return f"p95 of the work {_at(self.work, 0.95):.1f} ms"
        return None


def _at(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


async def fill(db: Database, rows: int, *, days: int = DAYS, hot_days: int = HOT_DAYS) -> None:
    """Lay a store of so many rows, the same each day, older days cold."""
    await lay_days(db, rows, days=days, hot_days=hot_days)


async def measure(db: Database, shape: Shape, *, times: int, seconds: float = 1.0) -> Measured:
    """Ask one shape so many times, warm: each question has been asked once before."""
    chance = random.Random(1)
    queries = [parse(shape.line(chance)) for _ in range(times)]
    place = Place(
        datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC) - timedelta(days=20),
        "0" * 8 + "-0000" * 3 + "-" + "0" * 12,
    )
    older = place if shape.deep else None
    page = Page((), None, None)
    plans, sequential = await read_plans(db, shape, older, seconds)
    for query in queries:
        await find(db, query, older_than=older, seconds=seconds)
    pid = int(await db.value(b"select pg_backend_pid()"))
    taken: list[float] = []
    work: list[float] = []
    for query in queries:
        began, computed = time.perf_counter(), _computed(pid)
        page = await find(db, query, older_than=older, seconds=seconds)
        taken.append((time.perf_counter() - began) * 1000)
        work.append((_computed(pid) - computed) * 1000)
    return Measured(shape, taken, work, len(page.items), plans, sequential, page.looked)


def _computed(pid: int) -> float:
    """Seconds that a session of a server on this machine, and we ourselves, have computed."""
    session = Path(f"/proc/{pid}/schedstat")
    if not session.exists():
        return time.perf_counter()
    return int(session.read_text().split()[0]) / 1e9 + time.thread_time()


async def read_plans(
    db: Database, shape: Shape, older: Place | None, seconds: float
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The nodes that read a partition, most frequent first; and the partitions that a Seq Scan read, however small."""
    told: list[str] = []

    def take(notice: psycopg.errors.Diagnostic) -> None:
        told.append(notice.message_primary or "")

    db.connection.add_notice_handler(take)
    for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_format = json", "log_level = notice"):
        await db.run(f"set auto_explain.{setting}".encode())
    await find(db, parse(shape.line(random.Random(2))), older_than=older, seconds=seconds)
    await db.run(b"set auto_explain.log_min_duration = -1")
    db.connection.remove_notice_handler(take)
    nodes: Counter[str] = Counter()
    sequential: set[str] = set()
    for text in told:
        for node in _nodes(json.loads(text[text.index("{") :])["Plan"]):
            relation = node.get("Relation Name", "")
            if not str(relation).startswith("activity") and "Index Name" not in node:
                continue
            index = str(node.get("Index Name", "")).removeprefix(f"{relation}_")
            if relation.startswith("activity_") or index.startswith("activity_"):
                nodes[f"{node['Node Type']} {index.rpartition('_')[2]}".strip()] += 1
            if node["Node Type"] == "Seq Scan" and str(relation).startswith("activity"):
                sequential.add(relation)
    return tuple(name for name, _ in nodes.most_common()), tuple(sorted(sequential))


def _nodes(plan: dict) -> Iterator[dict]:  # type: ignore[type-arg]
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


async def _main(rows: int, times: int, only: str, dsn: str | None) -> int:
    if dsn is not None:
        return await _measure_all(dsn, times, only)
    with embedded_server(settings={"fsync": "off", "max_wal_size": "4GB", "shared_buffers": "1GB"}) as server:
        began = time.monotonic()
        async with connect(server.dsn()) as db:
            await fill(db, rows)
        print(f"laid in {time.monotonic() - began:.0f} s", file=sys.stderr)
        return await _measure_all(server.dsn(), times, only)


async def _measure_all(dsn: str, times: int, only: str) -> int:
    troubles: list[str] = []
    async with connect(dsn) as db:
        rows = await db.value(b"select count(*) from afterwrite.activity")
        size = await db.value(
            b"select sum(pg_total_relation_size(inhrelid))::float8 from pg_inherits"
            b" where inhparent = 'afterwrite.activity'::regclass"
        )
        version = await db.value(b"show server_version")
        print(
            f"{rows:,} rows over {DAYS} days, {HOT_DAYS} of them hot, {size / 1e9:.1f} GB; PostgreSQL {version},"
            f" {_machine()}, load {os.getloadavg()[0]:.1f}, {datetime.now(UTC):%Y-%m-%d}\n"
        )
        await db.run(b"load 'auto_explain'")
        print("| shape | p50 ms | p95 ms | work p50 | work p95 | rows | read by |\n|---|---:|---:|---:|---:|---:|---|")
        for shape in SHAPES:
            if only not in shape.name:
                continue
            measured = await measure(db, shape, times=times if shape.held else 3)
            looked = f"; time was up at {measured.looked:%m-%d}" if measured.looked else ""
            figures = (measured.at(0.5), measured.at(0.95), _at(measured.work, 0.5), _at(measured.work, 0.95))
            print(
                f"| {shape.name} | {' | '.join(f'{figure:.1f}' for figure in figures)} | {measured.found} |"
                f" {', '.join(measured.nodes[:3])}{looked} |",
                flush=True,
            )
            if measured.trouble:
                troubles.append(f"{shape.name}: {measured.trouble}")
    for trouble in troubles:
        print(f"not as it should be: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=3_000_000)
    options.add_argument("--times", type=int, default=40)
    options.add_argument("--only", default="", help="Shapes whose name has this in it.")
    options.add_argument("--dsn", help="A store that was laid before, on this machine.")
    given = options.parse_args()
    sys.exit(asyncio.run(_main(given.rows, given.times, given.only, given.dsn)))
