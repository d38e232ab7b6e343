"""Reading: the feed in its order, a batch's activities and settings, the tail; and by which index each is found."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from afterwrite.activity import Activity, Batch, Kind, Level, Lsn, Operation, Outcome, TransactionContext
from afterwrite.postgres import connect, statement
from afterwrite.store.reader import (
    StoredActivity,
    read_batch_activities,
    read_batches,
    read_position,
    read_settings,
    read_tail,
    verify_feed,
)
from afterwrite.store.writer import open_sink

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


def an_activity(number: int, **fields: object) -> Activity:
    plain = {
        "id": f"0195a000-0000-7000-8000-{number:012}",
        "occurred_at": NOON + timedelta(milliseconds=number),
        "source": "main",
        "kind": Kind.EVENT,
        "category": "auth",
        "action": "login",
    }
    return Activity(**plain | fields)


def a_change(number: int, lsn: int, ordinal: int, table: str = "users", **fields: object) -> Activity:
    return an_activity(
        number,
        kind=Kind.CHANGE,
        category="data",
        action=f"{table}.insert",
        entity_type=table,
        entity_id=str(number),
        relation=f"public.{table}",
        operation=Operation.INSERT,
        after=msgspec.Raw(b'{"b": 1.50, "aa": "x"}'),
        xid=lsn,
        commit_lsn=Lsn(lsn),
        ordinal=ordinal,
        **fields,
    )


def a_batch(*activities: Activity, source: str = "main", contexts: tuple[TransactionContext, ...] = ()) -> Batch:
    return Batch(source=source, activities=activities, transactions=1, contexts=contexts)


def numbers(activities: list[StoredActivity]) -> list[int]:
    return [int(activity.id[-12:]) for activity in activities]


async def fill(dsn: str, *batches: Batch) -> None:
    async with open_sink(dsn) as sink:
        for batch in batches:
            await sink.write(batch)


def test_the_feed_is_read_in_order_after_a_position_and_by_source(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, *(a_batch(an_activity(n), source="ab"[n % 2]) for n in range(6)))
        async with connect(installed_dsn) as db:
            assert [batch.position for batch in await read_batches(db)] == [1, 2, 3, 4, 5, 6]
            assert [batch.position for batch in await read_batches(db, 2, 3)] == [3, 4, 5]
            assert [batch.position for batch in await read_batches(db, 1, source="b")] == [2, 4, 6]
            assert await read_batches(db, 6) == []
            assert await read_position(db) == 6
            assert await read_batch_activities(db, []) == []

    asyncio.run(scenario())


def test_activities_come_in_the_order_of_their_commits_whatever_order_they_were_stored_in(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(
            installed_dsn,
            a_batch(a_change(3, 200, 0), a_change(2, 100, 1), a_change(1, 100, 0)),
            a_batch(a_change(4, 50, 0)),
        )
        async with connect(installed_dsn) as db:
            batches = await read_batches(db)
            assert numbers(await read_batch_activities(db, batches)) == [1, 2, 3, 4]
            assert numbers(await read_batch_activities(db, batches[::-1])) == [1, 2, 3, 4]
            assert numbers(await read_batch_activities(db, batches[1:])) == [4]

    asyncio.run(scenario())


def test_relations_keep_to_their_changes_and_events_come_along_unless_told_otherwise(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(
            installed_dsn,
            a_batch(a_change(1, 100, 0), a_change(2, 100, 1, "orders"), an_activity(3), a_change(4, 200, 0)),
        )
        async with connect(installed_dsn) as db:
            batches = await read_batches(db)
            assert numbers(await read_batch_activities(db, batches, relations=["public.users"])) == [3, 1, 4]
            assert numbers(await read_batch_activities(db, batches, relations=[])) == [3]
            assert numbers(await read_batch_activities(db, batches, relations=["public.orders"], events=False)) == [2]
            assert numbers(await read_batch_activities(db, batches, events=False)) == [1, 2, 4]

    asyncio.run(scenario())


def test_an_activity_comes_back_whole_with_its_json_as_text(installed_dsn: str) -> None:
    activity = a_change(
        1,
        100,
        0,
        outcome=Outcome.FAILURE,
        severity=Level.WARNING,
        actor_id="7",
        actor_type="user",
        tenant_id="t",
        session_id="s",
        request_id="r",
        trace_id="tr",
        ip="10.0.0.1",
        user_agent="curl",
        duration_ms=1.25,
        summary="insert users 1",
        changed=("a", "b"),
        metadata=msgspec.Raw(b'{"reason":"why"}'),
        caused_by="0195a000-0000-7000-8000-00000000ffff",
    )

    async def scenario() -> None:
        await fill(installed_dsn, a_batch(activity))
        async with connect(installed_dsn) as db:
            batches = await read_batches(db)
            (found,) = await read_batch_activities(db, batches)
        assert (found.position, found.batch_id) == (1, batches[0].id)
        assert (found.after, found.before, found.metadata) == ('{"b": 1.50, "aa": "x"}', None, '{"reason":"why"}')
        for name in Activity.__struct_fields__:
            if name not in {"after", "metadata"}:
                assert getattr(found, name) == getattr(activity, name), name
        assert isinstance(found.commit_lsn, Lsn)

    asyncio.run(scenario())


def test_settings_come_by_batch_and_transaction(installed_dsn: str) -> None:
    async def scenario() -> None:
        context = TransactionContext(commit_lsn=Lsn(100), xid=100, settings={"request.jwt.claims": '{"sub":"7"}'})
        await fill(
            installed_dsn,
            a_batch(a_change(1, 100, 0), a_change(2, 200, 0), contexts=(context,)),
            a_batch(an_activity(3)),
        )
        async with connect(installed_dsn) as db:
            batches = await read_batches(db)
            assert await read_settings(db, batches) == {(batches[0].id, Lsn(100)): context.settings}
            assert await read_settings(db, batches[1:]) == {}

    asyncio.run(scenario())


def test_the_tail_shows_the_newest_oldest_first_and_filters(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(
            installed_dsn,
            a_batch(
                *(an_activity(n, actor_id=str(n % 2), entity_type="users", entity_id=str(n % 3)) for n in range(10))
            ),
            a_batch(*(an_activity(n, action="logout") for n in range(10, 13))),
        )
        async with connect(installed_dsn) as db:
            assert numbers(await read_tail(db, limit=3)) == [10, 11, 12]
            assert numbers(await read_tail(db, limit=2, actor_id="1")) == [7, 9]
            assert numbers(await read_tail(db, entity_type="users", entity_id="2")) == [2, 5, 8]
            assert numbers(await read_tail(db, entity_type="users", limit=2)) == [8, 9]
            assert numbers(await read_tail(db, action="logout", limit=2)) == [11, 12]
            assert numbers(await read_tail(db, action="nothing")) == []

    asyncio.run(scenario())


def test_following_the_tail_misses_nothing_and_shows_nothing_twice(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink, connect(installed_dsn) as db:
            seen: list[int] = []
            position = 0
            for turn in range(5):
                for part in range(turn):
                    first = turn * 100 + part * 10
                    await sink.write(a_batch(*(an_activity(first + row) for row in range(1 + part * 2))))
                while found := await read_tail(db, after_position=position, limit=3):
                    position = found[-1].position
                    seen += numbers(found)
            assert len(seen) == len(set(seen)) == await db.value(b"select count(*) from afterwrite.activity")
            assert seen == sorted(seen)
            assert numbers(await read_tail(db, after_position=0, action="login", limit=1)) == [100]

    asyncio.run(scenario())


def test_verification_may_go_on_from_where_it_ended(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, *(a_batch(an_activity(n), source="ab"[n % 2]) for n in range(120)))
        async with connect(installed_dsn) as db:
            whole = await verify_feed(db)
            assert (whole.position, whole.batches, whole.rows, whole.first_break) == (120, 120, 120, None)
            rest = await verify_feed(db, after_position=100)
            assert (rest.position, rest.batches, rest.first_break) == (120, 20, None)

    asyncio.run(scenario())


@pytest.fixture
def busy_dsn(installed_dsn: str) -> str:
    """A store with 20,000 activities over four days, 100 in a batch, its statistics fresh."""

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            for first in range(0, 20_000, 100):
                await sink.write(
                    a_batch(
                        *(
                            a_change(
                                n,
                                n,
                                0,
                                occurred_at=NOON - timedelta(hours=n / 250),
                                actor_id=str(n % 500),
                                tenant_id=str(n % 200),
                            )
                            for n in range(first, first + 100)
                        )
                    )
                )
        async with connect(installed_dsn) as db:
            await db.run(b"analyze afterwrite.activity")
            await db.run(b"analyze afterwrite.batch")

    asyncio.run(scenario())
    return installed_dsn


def test_hot_queries_find_their_rows_by_an_index(busy_dsn: str) -> None:
    nothing = {"actor_id": None, "entity_type": None, "entity_id": None, "action": None, "limit": 20}
    window = {"first_at": NOON - timedelta(hours=2), "last_at": NOON}
    of_batches = {"batch_ids": [3, 4], "relations": None, "events": True}
    filled = {(NOON - timedelta(days=n)).date() for n in range(4)}
    queries: list[tuple[bytes, dict[str, object], str]] = [
        (statement("store.read_newest"), nothing, "_pkey"),
        (statement("store.read_newest"), nothing | {"actor_id": "7"}, "_actor on"),
        (
            statement("store.read_newest"),
            nothing | {"entity_type": "users", "entity_id": "77"},
            "_entity on",
        ),
        (statement("store.read_after"), nothing | {"after_position": 198}, "_batch_id_occurred_at_idx"),
        (statement("store.read_batch_activities"), of_batches | window, "_batch_id_occurred_at_idx"),
        (statement("store.read_batches"), {"after_position": 190, "source": None, "limit": 5}, "batch_position"),
    ]

    async def scenario() -> None:
        async with connect(busy_dsn) as db:
            for query, words, index in queries:
                plan = "\n".join(await db.values(b"explain " + query, **words))
                for day in filled:
                    assert f"Seq Scan on activity_{day:%Y_%m_%d}" not in plan, plan
                assert index in plan, plan

    asyncio.run(scenario())


def test_a_batch_is_found_by_its_index_even_where_nothing_is_known_of_its_partition(busy_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(busy_dsn) as db:
            batch = (await read_batches(db))[7]
            await db.run(b"delete from pg_statistic where starelid in (select inhrelid from pg_inherits)")
            await db.run(b"update pg_class set reltuples = -1, relpages = 0 where relname like 'activity%'")
            plan = "\n".join(
                await db.values(
                    b"explain " + statement("store.read_batch_activities"),
                    batch_ids=[batch.id],
                    relations=None,
                    events=True,
                    first_at=batch.first_at,
                    last_at=batch.last_at,
                )
            )
            assert "_batch_id_occurred_at_idx" in plan, plan
            assert plan.count(" on activity_2") == len({batch.first_at.date(), batch.last_at.date()}), plan

    asyncio.run(scenario())
