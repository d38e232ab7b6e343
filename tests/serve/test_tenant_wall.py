"""The wall between tenants, as PostgreSQL keeps it: row-level security on activity, and grants on the rest."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch, Kind
from afterwrite.serve.tenancy import Readers
from afterwrite.settings import Settings
from afterwrite.store.reader import verify_feed
from afterwrite.store.writer import open_sink


def event(number: int, tenant: str | None, at: datetime | None = None) -> Activity:
    return Activity(
        id=f"01900000-0000-7000-8000-{number:012d}",
        occurred_at=at or datetime.now(UTC),
        source="shop",
        kind=Kind.EVENT,
        category="data",
        action="order.placed",
        entity_type="order",
        entity_id=str(number),
        actor_id=f"user:{number % 3}",
        tenant_id=tenant,
        summary=f"order {number} of {tenant}",
    )


def store(dsn: str, *activities: Activity) -> int:
    async def write() -> int:
        async with open_sink(dsn) as sink:
            return (await sink.write(Batch(source="shop", activities=activities, transactions=0))).stored

    return asyncio.run(write())


@pytest.fixture
def worker_dsn(server, installed_dsn: str) -> Iterator[str]:
    """A role that may read and write the store, and owns nothing of it."""
    role = f"worker_{secrets.token_hex(3)}"
    with psycopg.connect(installed_dsn, autocommit=True) as owner:
        for line in (
            "create role {} login",
            "grant usage on schema afterwrite to {}",
            "grant select, insert, update on all tables in schema afterwrite to {}",
            "grant usage on all sequences in schema afterwrite to {}",
        ):
            owner.execute(sql.SQL(line).format(sql.Identifier(role)))  # type: ignore[arg-type]
        yield psycopg.conninfo.make_conninfo(installed_dsn, user=role)
        owner.execute(sql.SQL("drop owned by {}").format(sql.Identifier(role)))
        owner.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_who_does_not_own_the_store_writes_and_reads_all_of_it(worker_dsn: str, installed_dsn: str) -> None:
    now = datetime.now(UTC)
    long_ago = now - timedelta(days=4000)
    # One day's partition, several days at once, and what is there already: the three ways in.
    assert store(worker_dsn, event(1, "a", now), event(2, "b", now)) == 2
    assert store(worker_dsn, event(3, "a", now), event(4, None, long_ago)) == 2
    assert store(worker_dsn, event(1, "a", now), event(5, "b", now)) == 1

    async def look() -> tuple[int, bool]:
        async with connect(worker_dsn) as db:
            report = await verify_feed(db)
            return report.rows, report.first_break is None

    assert asyncio.run(look()) == (5, True)


def test_a_tenants_reader_sees_its_own_rows_and_nothing_else(installed_dsn: str) -> None:
    store(installed_dsn, event(1, "a"), event(2, "b"), event(3, None), event(4, "a"))
    with psycopg.connect(installed_dsn, autocommit=True) as connection:
        connection.execute("set role afterwrite_tenant")
        count = "select count(*) from afterwrite.activity"
        assert connection.execute(count).fetchone() == (0,)  # no tenant, no rows
        connection.execute("set afterwrite.tenant = ''")
        assert connection.execute(count).fetchone() == (0,)
        connection.execute("set afterwrite.tenant = 'a'")
        assert connection.execute(count).fetchone() == (2,)
        assert connection.execute("select distinct tenant_id from afterwrite.activity").fetchall() == [("a",)]
        assert connection.execute("select count(position) from afterwrite.batch").fetchone() == (1,)

        def is_refused(query: str) -> None:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(query)  # type: ignore[arg-type]

        with psycopg.connect(installed_dsn) as owner:
            relations = [
                name
                for (name,) in owner.execute(
                    """select c.oid::regclass::text from pg_class c
                        where c.relnamespace = 'afterwrite'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
                          and not has_table_privilege('afterwrite_tenant', c.oid, 'select')"""
                )
            ]
            readable = owner.execute(
                """select c.relname::text, c.relrowsecurity from pg_class c
                    where c.relnamespace = 'afterwrite'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
                      and has_table_privilege('afterwrite_tenant', c.oid, 'select')"""
            ).fetchall()
        assert "afterwrite.api_key" in relations
        assert "afterwrite.activity_default" in relations
        for name in relations:
            is_refused(f"select * from {name}")
        # Whatever it may read is walled, but for how far the feed is counted; a new table comes without a grant.
        assert ("activity", True) in readable
        assert [name for name, walled in readable if not walled] == ["rollup"]
        is_refused("select rows from afterwrite.batch")
        is_refused("delete from afterwrite.activity")
        is_refused("update afterwrite.activity set tenant_id = 'a'")
        is_refused("insert into afterwrite.batch default values")
        is_refused("select afterwrite.lay_tenancy()")


def test_one_tenants_slow_questions_leave_connections_to_the_others(installed_dsn: str) -> None:
    async def scenario() -> None:
        readers = Readers(Settings(dsn=installed_dsn, serve_readers=4))
        reading = 0

        async def ask(tenant: str, done: asyncio.Event) -> None:
            nonlocal reading
            async with readers.read(tenant):
                reading += 1
                await done.wait()
            reading -= 1

        done = asyncio.Event()
        asking = [asyncio.create_task(ask("greedy", done)) for _ in range(8)]
        await asyncio.sleep(0.3)
        async with asyncio.timeout(5), readers.read("modest") as db, readers.read(None):
            assert await db.value(b"select current_setting('afterwrite.tenant')") == "modest"
            assert reading == 2
        for task in asking[:5]:
            task.cancel()  # whether they read or wait
        done.set()
        await asyncio.gather(*asking, return_exceptions=True)
        async with readers.read("greedy"), readers.read("greedy"), readers.read(None), readers.read(None):
            pass
        await readers.close()

    asyncio.run(scenario())


def test_the_owner_and_others_find_their_plans_as_before(worker_dsn: str, installed_dsn: str) -> None:
    """A policy that is always true leaves no filter, and does not keep text search from its index."""
    store(installed_dsn, *(event(number, f"t{number % 20}") for number in range(2_000)))
    text = (
        "select id from afterwrite.activity where to_tsvector('pg_catalog.simple'::regconfig, coalesce(summary, ''))"
        " @@ plainto_tsquery('simple', '77')"
    )

    def plan(connection: psycopg.Connection, query: str) -> str:
        return "\n".join(row[0] for row in connection.execute("explain " + query))  # type: ignore[operator]

    with psycopg.connect(installed_dsn, autocommit=True) as owner, psycopg.connect(worker_dsn) as worker:
        owner.execute("analyze afterwrite.activity")
        own = plan(owner, text)
        assert plan(worker, text) == own
        owner.execute("set role afterwrite_tenant")
        owner.execute("set enable_seqscan = off")
        owner.execute("set enable_bitmapscan = off")
        owner.execute("set afterwrite.tenant = 't7'")
        newest = plan(owner, "select id from afterwrite.activity order by occurred_at desc limit 20")
        assert "_tenant on" in newest, newest
