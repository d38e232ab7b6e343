"""Pages of what fits: all of it, once, in order, in both directions, by plans that read no more than is needed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from plans import SHAPES, TODAY, fill, read_plans
from psycopg.pq import TransactionStatus

from afterwrite.errors import DatabaseError, UsageError
from afterwrite.postgres import Database, connect
from afterwrite.search import find as finding
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.suggest import suggest
from afterwrite.search.windows import Page, Place

DAYS, HOT = 8, 4
ROWS = 8_000


@pytest.fixture(scope="module")
def filled(server: object) -> Iterator[str]:
    """Eight days, four of them hot, and a few rows that no partition of a day holds."""
    name = "afterwrite_find"
    admin_dsn = server.dsn()  # type: ignore[attr-defined]
    dsn = server.dsn(name)  # type: ignore[attr-defined]

    async def lay() -> None:
        async with connect(admin_dsn) as admin:
            await admin.run(f"drop database if exists {name} with (force)".encode())
            await admin.run(f"create database {name}".encode())
        async with connect(dsn) as db:
            await fill(db, ROWS, days=DAYS, hot_days=HOT)
            # Of one moment, and so many that a walk has to stop among them; and of days that are not there.
            await db.run(
                b"insert into afterwrite.activity (id, occurred_at, batch_id, source, kind, category, action, outcome,"
                b" severity, summary) select gen_random_uuid(), %(at)s::timestamptz, 1, 'main', 'event', 'bulk',"
                b" 'bulk.load', 'success', 'info', 'row ' || n from generate_series(1, 3000) n",
                at=f"{TODAY - timedelta(days=2)} 12:00+00",
            )
            await db.run(
                b"insert into afterwrite.activity (id, occurred_at, batch_id, source, kind, category, action, outcome,"
                b" severity, summary) select gen_random_uuid(), %(at)s::timestamptz + n * interval '40 days', 1,"
                b" 'import', 'event', 'financial', 'redemption.approve', 'failure', 'info', 'late approved gold token'"
                b" from generate_series(-3, 3) n",
                at=f"{TODAY} 12:00+00",
            )

    asyncio.run(lay())
    yield dsn

    async def drop() -> None:
        async with connect(admin_dsn) as admin:
            await admin.run(f"drop database {name} with (force)".encode())

    asyncio.run(drop())


def on(dsn: str, work: Callable[[Database], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db:
            await work(db)

    asyncio.run(scenario())


async def everything(db: Database) -> list:  # type: ignore[type-arg]
    found: list = []  # type: ignore[type-arg]
    place: Place | None = None
    while True:
        page = await find(db, parse(""), limit=1_000, older_than=place)
        found += page.items
        place = page.older
        if place is None:
            return found


LINES = (
    "actor:system", "entity:config", "action:key.revoke", "category:security,bulk", "outcome:failure", "quixotic",
    "approved",
    '"gold token"', "équipe", "changed:iban", "metadata.plan:enterprise", "-actor:system -category:data",
    "table:orders -approved",
    "actor:user:1*", "source:import", "before.status:nothing", f"at:{TODAY - timedelta(days=2)} category:bulk",
    "tenant:tenant-7",
    "actor:user:7,user:8,user:9", "ip:10.0.7.0/24 outcome:failure", "kind:event severity:error",
    f"after:{TODAY - timedelta(days=3)} jane",
)  # fmt: skip


def test_every_page_both_ways_gives_what_fits_once_and_in_order(filled: str) -> None:
    async def work(db: Database) -> None:
        known = await everything(db)
        assert len(known) == ROWS + 3_007
        assert known == sorted(known, key=lambda each: (each.occurred_at, each.id), reverse=True)
        for line in LINES:
            query = parse(line)
            fits = [each.id for each in known if query.matches(each)]
            limit = max(3, len(fits) // 4)
            found: list[str] = []
            pages: list[Page] = []
            place: Place | None = None
            while True:
                page = await find(db, query, limit=min(limit, 1_000), older_than=place)
                found += [each.id for each in page.items]
                pages.append(page)
                place = page.older
                if place is None:
                    break
                assert page.looked is None
            assert found == fits, line
            back: list[str] = []
            place = pages[-1].newer
            while place is not None:
                page = await find(db, query, limit=min(limit, 1_000), newer_than=place)
                back[:0] = [each.id for each in page.items]
                place = page.newer
            assert back == fits[: len(fits) - len(pages[-1].items)] or len(pages) == 1, line

    on(filled, work)


def test_where_the_time_is_up_the_page_says_how_far_it_looked_and_goes_on_from_there(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "_MOST_ROWS", 1_000)

    async def work(db: Database) -> None:
        query = parse("before.amount:7")
        found: list[str] = []
        place: Place | None = None
        looked: list[datetime] = []
        for _ in range(200):
            page = await find(db, query, older_than=place, limit=1_000, seconds=0)
            found += [each.id for each in page.items]
            if page.older is None:
                assert page.looked is None
                break
            assert page.looked == page.older.occurred_at
            looked.append(page.looked)
            place = page.older
        assert len(looked) > 10
        assert looked == sorted(looked, reverse=True)
        whole = await find(db, query, limit=1_000, seconds=60)
        assert (found, whole.looked) == ([each.id for each in whole.items], None)
        place, back = Place(datetime(2000, 1, 1, tzinfo=UTC), "0" * 8 + "-0000" * 3 + "-" + "0" * 12), []
        for _ in range(200):
            page = await find(db, query, newer_than=place, limit=1_000, seconds=0)
            back[:0] = [each.id for each in page.items]
            place = page.newer
            if place is None:
                break
        assert back == found

    on(filled, work)


def test_no_shape_reads_a_partition_by_seq_scan_and_each_finds_its_index(filled: str) -> None:
    wanted = {
        "actor, any": "actor",
        "entity": "entity",
        "tenant": "tenant",
        "word, rare": "text",
        "phrase, rare": "text",
        "action, unknown": "text",
        "changed, rare": "text",
        "metadata, any": "facts",
        "request": "text",
        "everything": "pkey",
    }

    async def work(db: Database) -> None:
        await db.run(b"load 'auto_explain'")
        for shape in SHAPES:
            nodes, sequential = await read_plans(db, shape, None, 1.0)
            assert sequential == (), shape.name
            if index := wanted.get(shape.name):
                assert any(node.endswith(f" {index}") for node in nodes), (shape.name, nodes)

    on(filled, work)


def test_plans_are_as_before_when_the_callers_transaction_has_ended(filled: str) -> None:
    async def read(db: Database) -> list[str]:
        return [await db.value(f"show {name}".encode()) for name in ("enable_seqscan", "enable_indexscan", "jit")]

    async def work(db: Database) -> None:
        before = await read(db)
        async with db.transaction():
            await find(db, parse("quixotic"))
            assert await read(db) == ["off", "on", "off"]
        assert await read(db) == before
        with pytest.raises(DatabaseError):
            await find(db, parse("quixotic"), limit=1, older_than=Place(datetime.now(UTC), "no id"))
        assert db.connection.info.transaction_status is TransactionStatus.IDLE
        assert await read(db) == before

    on(filled, work)


def test_a_page_of_none_or_between_two_places_is_refused(filled: str) -> None:
    place = Place(datetime.now(UTC), "0" * 8 + "-0000" * 3 + "-" + "0" * 12)

    async def work(db: Database) -> None:
        for words in ({"limit": 0}, {"limit": 1_001}, {"older_than": place, "newer_than": place}):
            with pytest.raises(UsageError):
                await find(db, parse(""), **words)  # type: ignore[arg-type]

    on(filled, work)


@asynccontextmanager
async def as_tenant(db: Database, tenant: str) -> AsyncGenerator[None]:
    async with db.transaction():
        await db.value(b"select set_config('afterwrite.tenant', %(tenant)s, true)", tenant=tenant)
        await db.run(b"set local role afterwrite_tenant")
        yield
        await db.run(b"reset role")


def test_a_tenant_finds_its_own_and_no_other(filled: str) -> None:
    async def work(db: Database) -> None:
        known = await everything(db)
        for line in ("", "approved", "quixotic", "metadata.plan:pro", "actor:system", "tenant:tenant-8"):
            query = parse(line)
            async with as_tenant(db, "tenant-7"):
                page = await find(db, query, limit=1_000, seconds=30)
            fits = [each.id for each in known if each.tenant_id == "tenant-7" and query.matches(each)]
            assert [each.id for each in page.items] == fits[:1_000], line
            assert (page.older is None) == (len(fits) <= 1_000)

    on(filled, work)


def test_what_is_stored_is_suggested(filled: str) -> None:
    async def words(db: Database, line: str) -> list[str]:
        return [each.text for each in await suggest(db, line)]

    async def work(db: Database) -> None:
        assert (await words(db, ""))[:2] == ["actor:", "action:"]
        assert await words(db, "gold -ac") == ["-actor:", "-action:", "-actor_type:"]
        assert await words(db, "outcome:f") == ["outcome:failure"]
        assert set(await words(db, "x category:")) >= {"category:data", "category:financial", "category:document"}
        assert await words(db, "action:key") == ["action:key.revoke"]
        assert set(await words(db, "actor:sys")) == {"actor:system"}
        assert await words(db, "entity:conf") != []
        assert all(each.startswith("entity:orders/1") for each in await words(db, "entity:orders/1"))
        assert set(await words(db, "changed:am")) == {"changed:amount"}
        assert await words(db, "nosuchkey:x") == await words(db, "actor:nobody") == await words(db, '"a b') == []
        assert [each.start for each in await suggest(db, 'gold "a b" action:us')][:1] == [11]
        chance = random.Random(3)
        for _ in range(60):
            await suggest(db, "".join(chance.choice('ab:",*-\\ ./\0é') for _ in range(chance.randrange(12))))

    on(filled, work)
