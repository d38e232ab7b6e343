"""Many activities into the lake, and ten searches on both sides: `./run python -m tests.lake.at_size --rows 20000000`.

A store of twenty days with all their indexes, on a server of its own; each search is asked of PostgreSQL, then all days
leave for the lake (copied, read back, compared, dropped), and each is asked of DuckDB, and with --spark of Spark: a
master and two workers on this machine. Exit code 1 when an answer differs. Needs about 1 kB of room on disk an
activity, in --folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tests.lake.spark_cluster import WORKERS, spark_cluster

from afterwrite.bench.days import lay_days
from afterwrite.bench.lake import PAGE, searches
from afterwrite.lake import tiers
from afterwrite.lake.archive import SESSION, ArchivePolicy, archive
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.read import Open
from afterwrite.lake.spark import SparkEngine
from afterwrite.lake.table import Lake
from afterwrite.postgres import Database, connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.windows import Page
from afterwrite.store.rollup import roll_up

DAYS = 20
TODAY = datetime.now(UTC).date()
SEARCHES = searches(TODAY)
_SIZES = """
    select sum(pg_total_relation_size(inhrelid))::bigint from pg_inherits
     where inhparent = 'afterwrite.activity'::regclass and inhrelid <> 'afterwrite.activity_default'::regclass
"""
_COUNTS = "select action, outcome, count(*) as rows from {} a group by 1, 2 order by 1, 2"
Answer = TypeVar("Answer")
REMEDY = "uv pip install --python .venv/bin/python 'pyspark>=4', or .venv/bin/pip install 'pyspark>=4'"


class Search(msgspec.Struct, kw_only=True):
    """One search on both sides, in milliseconds: the best of a few."""

    name: str
    line: str
    rows: int
    hot_ms: float
    lake_ms: float = 0.0
    spark_ms: float | None = None
    same: bool = False


class Result(msgspec.Struct, kw_only=True):
    """What came of it."""

    rows: int
    days: int
    hot_bytes: int
    lake_bytes: int
    files: int
    count_seconds: float
    archive_seconds: float
    peak_bytes: int
    counts_same: bool
    counts_lake_ms: float
    counts_hot_ms: float
    counts_spark_ms: float | None
    spark: str | None
    spark_start_seconds: float | None
    searches: list[Search]
    server: str
    machine: str


async def timed(ask: Callable[[], Awaitable[Answer]], times: int) -> tuple[Answer, float]:
    best = float("inf")
    while True:
        began = time.perf_counter()
        answer = await ask()
        best = min(best, (time.perf_counter() - began) * 1000)
        times -= 1
        if times <= 0:
            return answer, best


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


async def measure(dsn: str, folder: Path, rows: int, times: int, *, spark: bool) -> Result:
    async with connect(dsn) as db:
        say(f"laying {rows:,} activities of {DAYS} days")
        await lay_days(db, rows, days=DAYS, hot_days=DAYS)
        laid = int(await db.value(b"select count(*) from afterwrite.activity"))
        hot_bytes = int(await db.value(_SIZES.encode()))
        say("asking PostgreSQL")
        pages: dict[str, Page] = {}
        searches: list[Search] = []
        for name, line in SEARCHES.items():
            page, took = await timed(lambda line=line: find(db, parse(line), limit=PAGE, seconds=600), times)
            pages[name] = page
            searches.append(Search(name=name, line=line, rows=len(page.items), hot_ms=took))
        hot_counts, counts_hot_ms = await timed(
            lambda: db.rows(dict, _COUNTS.format("afterwrite.activity").encode()), times
        )
        # Else the first day to leave would have it done: what leaves is counted before.
        say("counting for reports")
        began = time.perf_counter()
        await roll_up(db)
        count_seconds = time.perf_counter() - began
    lake = Lake(str(folder / "lake"))
    say("archiving")
    began = time.perf_counter()
    async with connect(dsn, options=SESSION) as db:
        done = await archive(
            db, lake, ArchivePolicy(after_days=0), on_deed=lambda deed: say(f"{deed.kind} {deed.day}: {deed.rows:,}")
        )
    archive_seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if done.survey.findings or done.survey.due:
        raise SystemExit(f"days are left: {done.survey}")
    say("asking DuckDB")
    async with connect(dsn) as db:
        for search in searches:
            told, took = await timed_both(db, lake, search.line, times, DuckEngine)
            search.lake_ms, search.same = took, told == pages[search.name].items
    files = lake.files()
    params: dict[str, Any] = {}
    with DuckEngine(lake) as duck, duck.source(sorted({file.day for file in files}), files, params) as source:
        ask = _COUNTS.format(source)
        counts, counts_ms = await timed(lambda: asyncio.to_thread(duck.rows, ask, params), times)
    counts_same = sorted(map(repr, counts)) == sorted(map(repr, hot_counts))
    started_in = counts_spark_ms = None
    version: str | None = None
    with spark_cluster(folder / "spark") if spark else nullcontext() as master:
        if master is not None:
            say("asking Spark")
            engine = partial(SparkEngine, master=master, told=say)
            began = time.perf_counter()
            with engine(lake) as opened:
                started_in, version = time.perf_counter() - began, opened.version
            async with connect(dsn) as db:
                for search in searches:
                    told, took = await timed_both(db, lake, search.line, times, engine)
                    search.spark_ms, search.same = took, search.same and told == pages[search.name].items
            with engine(lake) as opened, opened.source(files) as source:
                ask = _COUNTS.format(source)
                counts, counts_spark_ms = await timed(lambda: asyncio.to_thread(opened.rows, ask, {}), times)
            counts_same = counts_same and sorted(map(repr, counts)) == sorted(map(repr, hot_counts))
    return Result(
        rows=laid,
        days=DAYS,
        hot_bytes=hot_bytes,
        lake_bytes=sum(file.bytes for file in files),
        files=len(files),
        count_seconds=count_seconds,
        archive_seconds=archive_seconds,
        peak_bytes=peak,
        counts_same=counts_same,
        counts_lake_ms=counts_ms,
        counts_hot_ms=counts_hot_ms,
        counts_spark_ms=counts_spark_ms,
        spark=version,
        spark_start_seconds=started_in,
        searches=searches,
        server="",
        machine=f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {platform.machine()}",
    )


async def timed_both(db: Database, lake: Lake, line: str, times: int, engine: Open) -> tuple[tuple[object, ...], float]:
    async def ask() -> Page:
        async with tiers.both(db, lake, engine) as both:
            return (await both.search(parse(line), limit=PAGE, seconds=600)).page

    page, took = await timed(ask, times)
    return page.items, took


def show(result: Result) -> None:
    rows = result.rows
    print(f"{rows:,} activities of {result.days} days; {result.server}; {result.machine}; {TODAY}\n")
    print(f"{'':26}{'store':>14}{'lake':>14}{'ratio':>9}")
    print(
        f"{'bytes an activity':26}{result.hot_bytes / rows:14,.1f}{result.lake_bytes / rows:14,.1f}"
        f"{result.hot_bytes / result.lake_bytes:9.1f}"
    )
    print(f"{'size, MiB':26}{result.hot_bytes / 2**20:14,.0f}{result.lake_bytes / 2**20:14,.0f}")
    print(f"counted for reports in {result.count_seconds:,.0f} s, {rows / result.count_seconds:,.0f} a second")
    print(
        f"archived in {result.archive_seconds:,.0f} s, {rows / result.archive_seconds:,.0f} a second, read back and"
        f" compared included; {result.files} files;\nthe archiver's memory at its peak"
        f" {result.peak_bytes / 2**20:,.0f} MiB\n"
    )
    if result.spark:
        print(
            f"Spark {result.spark}: a master and {WORKERS} workers of a processor each; the session starts in"
            f" {result.spark_start_seconds:.0f} s\n"
        )
    spark = f"{'Spark, ms':>11}" if result.spark else ""
    print(f"{'search (best of a few)':24}{'PostgreSQL, ms':>15}{'DuckDB, ms':>12}{spark}{'rows':>7}  same")
    counts = Search(
        name="counts of all, by action",
        line="",
        rows=0,
        hot_ms=result.counts_hot_ms,
        lake_ms=result.counts_lake_ms,
        spark_ms=result.counts_spark_ms,
        same=result.counts_same,
    )
    for each in (*result.searches, counts):
        spark = "" if each.spark_ms is None else f"{each.spark_ms:11.1f}"
        rows_told = each.rows if each is not counts else ""
        same = "yes" if each.same else "NO"
        print(f"{each.name:24}{each.hot_ms:15.1f}{each.lake_ms:12.1f}{spark}{rows_told:>7}  {same}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the lake lies meanwhile; else the system's for such")
    parser.add_argument("--spark", action="store_true", help="ask Spark as well; needs pyspark and Java")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    if told.spark and find_spec("pyspark") is None:
        print(f"pyspark is not installed here; {REMEDY}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="afterwrite-lake-", dir=told.folder))
    try:
        with embedded_server(settings={"fsync": "off", "shared_buffers": "512MB", "max_wal_size": "4GB"}) as server:
            result = asyncio.run(measure(server.dsn(), folder, told.rows, told.times, spark=told.spark))
            result.server = f"PostgreSQL {server.version}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if told.json:
        print(json.dumps(msgspec.to_builtins(result)))
    else:
        show(result)
    return 0 if result.counts_same and all(each.same for each in result.searches) else 1


if __name__ == "__main__":
    sys.exit(main())
