"""What a tier costs: days that leave the store for the lake, and ten searches of each, by turns.

::

    store ─ template ─▶ the same store ─▶ archived, a share of its days each round ─▶ lake
      └──────────────── the same questions, the same answers ───────────────────────────┘
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import msgspec

from afterwrite.bench.claims import Claim, compare, in_turn, note, together
from afterwrite.bench.days import lay_days
from afterwrite.bench.grounds import Grounds, LeftOutError, told_round
from afterwrite.bench.planning import Cost
from afterwrite.errors import AfterwriteError
from afterwrite.lake import tiers
from afterwrite.lake.archive import SESSION, ArchivePolicy, DeedKind, archive
from afterwrite.lake.table import Lake
from afterwrite.postgres import Database, connect
from afterwrite.postgres.cpu import cluster_cpu_seconds
from afterwrite.postgres.embedded import Server
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.windows import Page
from afterwrite.store.rollup import roll_up

PAGE = 50
_NEEDED = ("deltalake", "duckdb", "pyarrow")
_SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
_HOT, _COLD = "tier_hot", "tier_cold"
_SECONDS = 600.0
# Before this version a copy of a database is always a copy of its files.
_STRATEGY_SINCE = 15


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much is laid, over how many days; each search is asked ``questions`` times in a round, or for ``seconds``."""

    rounds: int = 5
    rows: int = 500_000
    days: int = 20
    questions: int = 3
    seconds: float = 2.0


class Counted(msgspec.Struct, frozen=True):
    """What it took to count everything for reports: rows, seconds, seconds of PostgreSQL's CPU."""

    rows: int
    seconds: float
    store: float


class Left(msgspec.Struct, frozen=True):
    """What a round of archiving was: rows, seconds, seconds of CPU here and of PostgreSQL, bytes before and after."""

    rows: int
    seconds: float
    own: float
    store: float
    hot: int
    cold: int


def searches(today: date) -> dict[str, str]:
    """Ten questions that people ask of a history, by a name: of a store that ``lay_days`` has laid."""
    return {
        "newest": "",
        "actor": "actor:user:1500",
        "entity": "entity:orders/42*",
        "tenant, category": "tenant:tenant-7 category:financial",
        "action, rare": "action:key.revoke",
        "failures": "outcome:failure severity:error",
        "word, rare": "quixotic",
        "phrase, a day": f'"gold token" at:{today - timedelta(days=15)}',
        "metadata, rare": "metadata.plan:enterprise",
        "changed, rare": "changed:iban -actor:system",
    }


async def measure_lake(grounds: Grounds, options: Options) -> list[Claim]:
    """Count, archive round by round, and then ask both, by turns. Raises AfterwriteError where an answer differs."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise LeftOutError(f"{', '.join(missing)} is not installed: pip install 'afterwrite[lake]'")
    server = grounds.server(_SETTINGS)
    today = datetime.now(UTC).date()
    grounds.tell(f"laying {options.rows:,} activities of {options.days} days")
    await _lay(server, options)
    with tempfile.TemporaryDirectory(prefix="bench") as place:
        lake = Lake(str(Path(place) / "lake"))
        counted = await _count(grounds, server)
        left = await _archive(grounds, server, lake, options)
        async with connect(server.dsn(_HOT)) as hot, connect(server.dsn(_COLD)) as cold:
            taken = await _ask(grounds, hot, cold, lake, searches(today), options)
    return _claims(counted, left, taken, options)


def _claims(
    counted: Counted, left: Sequence[Left], taken: dict[str, dict[str, list[float]]], options: Options
) -> list[Claim]:
    at = f"at {options.rows:,}"
    theirs, ours = taken[_HOT], taken[_COLD]
    return [
        note(Cost.COUNTED, "activities/s", [counted.rows / counted.seconds]),
        note(Cost.COUNTING, "µs/activity", [1e6 * counted.store / counted.rows]),
        note(Cost.ARCHIVED, "activities/s", [each.rows / each.seconds for each in left]),
        note(Cost.ARCHIVER, "µs/activity", [1e6 * each.own / each.rows for each in left]),
        note(Cost.ARCHIVING, "µs/activity", [1e6 * each.store / each.rows for each in left]),
        compare(
            Cost.KEPT, "B/activity", [each.hot / each.rows for each in left], [each.cold / each.rows for each in left]
        ),
        *(compare(f"search: {name}, store to lake, {at}", "ms", theirs[name], ours[name]) for name in theirs),
        compare(f"ten searches together, store to lake, {at}", "ms", together(theirs), together(ours)),
    ]


async def _lay(server: Server, options: Options) -> None:
    """The same store twice."""
    async with connect(server.dsn()) as admin:
        await admin.run(f"create database {_HOT}".encode())
    async with connect(server.dsn(_HOT)) as db:
        await lay_days(db, options.rows, days=options.days, hot_days=options.days)
    async with connect(server.dsn()) as admin:
        strategy = " strategy file_copy" if server.version >= _STRATEGY_SINCE else ""
        await admin.run(f"create database {_COLD} template {_HOT}{strategy}".encode())


async def _count(grounds: Grounds, server: Server) -> Counted:
    """Count for reports, as is done all the while; else the first day to leave would wait for it."""
    grounds.tell("counting for reports")
    async with connect(server.dsn(_COLD)) as db:
        store, began = cluster_cpu_seconds(server.pid) or 0.0, time.monotonic()
        done = await roll_up(db)
        seconds = time.monotonic() - began
        return Counted(done.rows, seconds, (cluster_cpu_seconds(server.pid) or 0.0) - store)


async def _archive(grounds: Grounds, server: Server, lake: Lake, options: Options) -> list[Left]:
    """Let the oldest days leave first, as many each round."""
    found: list[Left] = []
    async with connect(server.dsn(_COLD), options=SESSION) as db:
        for number in range(options.rounds):
            grounds.tell(f"archiving, {told_round(number, options.rounds)}")
            stays = options.days * (options.rounds - 1 - number) // options.rounds
            store, own, began = cluster_cpu_seconds(server.pid) or 0.0, time.process_time(), time.monotonic()
            done = await archive(db, lake, ArchivePolicy(after_days=stays))
            seconds = time.monotonic() - began
            own = time.process_time() - own
            store = (cluster_cpu_seconds(server.pid) or 0.0) - store
            if done.survey.due or done.survey.findings:
                raise AfterwriteError(
                    f"days did not leave the store: {done.survey}", remedy="this is a defect: report it"
                )
            copied = [deed for deed in done.deeds if deed.kind is DeedKind.COPIED]
            dropped = [deed for deed in done.deeds if deed.kind is DeedKind.DROPPED]
            if rows := sum(deed.rows for deed in copied):
                hot, cold = sum(deed.hot_bytes for deed in dropped), sum(deed.bytes for deed in copied)
                found.append(Left(rows, seconds, own, store, hot, cold))
    return found


async def _ask(
    grounds: Grounds, hot: Database, cold: Database, lake: Lake, lines: dict[str, str], options: Options
) -> dict[str, dict[str, list[float]]]:
    """What each search took on either side, in milliseconds."""
    taken: dict[str, dict[str, list[float]]] = {side: {name: [] for name in lines} for side in (_HOT, _COLD)}
    for number in range(-1, options.rounds):
        for name, line in lines.items():
            grounds.tell(f"searching, {told_round(number, options.rounds)}: {name}")
            query = parse(line)

            async def in_store() -> Page:
                return await find(hot, query, limit=PAGE, seconds=_SECONDS)  # noqa: B023 - asked before the next one

            async def in_lake() -> Page:
                async with tiers.both(cold, lake) as both:
                    return (await both.search(query, limit=PAGE, seconds=_SECONDS)).page  # noqa: B023

            pages: dict[str, Page] = {}
            for side, ask in in_turn([(_HOT, in_store), (_COLD, in_lake)], number):
                pages[side], took = await _median_ms(ask, options)
                if number >= 0:
                    taken[side][name].append(took)
            if pages[_HOT].items != pages[_COLD].items:
                raise AfterwriteError(
                    f"store and lake answer otherwise: {line!r}", remedy="this is a defect: report it"
                )
    return taken


async def _median_ms(ask: Callable[[], Awaitable[Page]], options: Options) -> tuple[Page, float]:
    """The median of several times, once where it takes long."""
    taken: list[float] = []
    until = time.perf_counter() + options.seconds
    while True:
        began = time.perf_counter()
        page = await ask()
        taken.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(0)
        if len(taken) >= options.questions or time.perf_counter() > until:
            return page, statistics.median(taken)
