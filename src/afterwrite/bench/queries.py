"""What looking at activity costs: a legacy application's audit table, asked as such applications do, and the store.

The application numbers its pages (OFFSET, and count(*) to know how many there are) and searches texts with ILIKE; its
table has the indexes that such tables have. We ask for the next page behind a place, and know no number of pages. Both
have the same rows. Questions are asked by turns, one after the other, each a second time with other words.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec

from afterwrite.bench.claims import Claim, Promise, compare, in_turn, note, together
from afterwrite.bench.corpus import Corpus, pick_actor, pick_entity, pick_words
from afterwrite.bench.grounds import Grounds, told_round
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, connect, statement
from afterwrite.search.analytics import ReportName, report
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.windows import Page

_PAGE = 50
_DEEP_PAGES = 100


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much is laid, and how often each question is asked in a round: ``questions`` times, or for ``seconds``."""

    rows: int = 500_000
    days: int = 30
    rounds: int = 5
    questions: int = 5
    seconds: float = 1.0


Ask = Callable[[random.Random], Awaitable[object]]
_LEGACY, _STORE = "audit table", "store"


async def measure_queries(grounds: Grounds, options: Options) -> list[Claim]:
    """What each question takes on either side, by turns."""
    library = await grounds.library(options.rows, options.days)
    async with connect(library.server.dsn()) as db:
        shapes = _shapes(db, library.corpus)
        found: dict[str, dict[str, list[float]]] = {side: {name: [] for name in shapes} for side in (_LEGACY, _STORE)}
        for number in range(-1, options.rounds):
            for name, asks in shapes.items():
                grounds.tell(f"queries, {told_round(number, options.rounds)}: {name}")
                for side, ask in in_turn(list(zip((_LEGACY, _STORE), asks, strict=True)), number):
                    taken = await _median_ms(ask, options, grounds.seed * 1_000 + number)
                    if number >= 0:
                        found[side][name].append(taken)
    theirs, ours = found[_LEGACY], found[_STORE]
    at = f"at {options.rows:,}"
    return [
        *(
            compare(f"{name}, audit table to store, {at}", "ms", theirs[name], ours[name], target=0.2)
            for name in shapes
        ),
        compare(
            f"activity queries together, audit table to store, {at}",
            "ms",
            together(theirs),
            together(ours),
            target=0.2,
            promise=Promise.QUERIES,
        ),
        note("activities in both", "rows", [float(options.rows)]),
    ]


def _shapes(db: Database, corpus: Corpus) -> dict[str, tuple[Ask, Ask]]:
    """Each question as the application asks it, and as we do."""
    week = corpus.until - timedelta(days=7)

    async def legacy_recent(_: random.Random) -> object:
        await db.value(statement("bench.count_log"))
        return await db.rows(_row, statement("bench.log_recent"), skip=0)

    async def legacy_uncounted(_: random.Random) -> object:
        return await db.rows(_row, statement("bench.log_recent"), skip=0)

    async def legacy_deep(_: random.Random) -> object:
        await db.value(statement("bench.count_log"))
        return await db.rows(_row, statement("bench.log_recent"), skip=_DEEP_PAGES * _PAGE)

    async def legacy_entity(chance: random.Random) -> object:
        kind, id = pick_entity(chance)
        await db.value(statement("bench.count_log_of_entity"), type=kind, id=id)
        return await db.rows(_row, statement("bench.log_of_entity"), type=kind, id=id, skip=0)

    async def legacy_actor(chance: random.Random) -> object:
        actor = pick_actor(chance)
        await db.value(statement("bench.count_log_of_actor"), actor=actor)
        return await db.rows(_row, statement("bench.log_of_actor"), actor=actor, skip=0)

    async def legacy_text(chance: random.Random) -> object:
        pattern = f"%{pick_words(chance)}%"
        await db.value(statement("bench.count_log_of_text"), pattern=pattern)
        return await db.rows(_row, statement("bench.log_of_text"), pattern=pattern, skip=0)

    async def legacy_hours(_: random.Random) -> object:
        return await db.rows(_row, statement("bench.log_by_hour"), since=week, until=corpus.until)

    async def recent(_: random.Random) -> object:
        return _full(await find(db, parse(""), limit=_PAGE))

    deep: list[Page] = []

    async def page_on(_: random.Random) -> object:
        """The page behind the one that the browser shows, which says where it begins."""
        if not deep:
            page = await find(db, parse(""), limit=_PAGE)
            for _number in range(_DEEP_PAGES - 1):
                page = await find(db, parse(""), limit=_PAGE, older_than=page.older)
            deep.append(page)
        return _full(await find(db, parse(""), limit=_PAGE, older_than=deep[0].older))

    async def entity(chance: random.Random) -> object:
        kind, id = pick_entity(chance)
        return await find(db, parse(f"entity:{kind}/{id}"), limit=_PAGE)

    async def actor(chance: random.Random) -> object:
        return await find(db, parse(f"actor:{pick_actor(chance)}"), limit=_PAGE)

    async def text(chance: random.Random) -> object:
        return await find(db, parse(f'"{pick_words(chance)}"'), limit=_PAGE)

    async def hours(_: random.Random) -> object:
        return await report(db, ReportName.ACTIVITY, after=week, before=corpus.until)

    return {
        "the newest": (legacy_recent, recent),
        "the newest, not counted": (legacy_uncounted, recent),
        f"page {_DEEP_PAGES + 1}": (legacy_deep, page_on),
        "of one thing": (legacy_entity, entity),
        "of one actor": (legacy_actor, actor),
        "by text": (legacy_text, text),
        "a week by the hour": (legacy_hours, hours),
    }


def _full(page: Page) -> Page:
    if len(page.items) < _PAGE:
        raise AfterwriteError(f"a question of the benchmark found {len(page.items)} rows instead of {_PAGE}")
    return page


def _row(**columns: object) -> dict[str, object]:
    return columns


async def _median_ms(ask: Ask, options: Options, seed: int) -> float:
    """The median of several questions: with other words each, and the same ones for both sides."""
    chance = random.Random(seed)
    taken: list[float] = []
    until = time.perf_counter() + options.seconds
    while not taken or (len(taken) < options.questions and time.perf_counter() < until):
        began = time.perf_counter()
        await ask(chance)
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)
