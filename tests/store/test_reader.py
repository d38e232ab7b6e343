"""Reading: the feed in its order, a batch's activities and settings, the tail; and by which index each is found."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from afterwrite.postgres import connect, statement
from afterwrite.record import Activity, Batch, Kind, Level, Lsn, Operation, Outcome, TransactionContext, change_id
from afterwrite.store import reader
from afterwrite.store.reader import (
    ACTIVITY,
    StoredActivity,
    Wanted,
    read_actions,
    read_after,
    read_batch_activities,
    read_batch_pages,
    read_batches,
    read_position,
    read_settings,
    read_tail,
    read_transactions,
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


def a_transaction(lsn: int, rows: int, table: str = "users") -> list[Activity]:
    at = NOON + timedelta(milliseconds=lsn)
    return [
        a_change(0, lsn, ordinal, table, occurred_at=at, id=change_id("7", 1, Lsn(lsn), ordinal, at))
        for ordinal in range(rows)
    ]


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


def test_times_are_in_utc_in_whatever_zone_the_session_is(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(Batch(source="main", activities=[an_activity(1)], transactions=0))
        async with connect(installed_dsn, options={"timezone": "Asia/Tokyo"}) as db:
            (found,) = await read_tail(db, limit=1)
            assert found.occurred_at.isoformat() == (NOON + timedelta(milliseconds=1)).isoformat()

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
            assert numbers(await read_tail(db, limit=2, wanted=Wanted(actor_id="1"))) == [7, 9]
            assert numbers(await read_tail(db, wanted=Wanted(entity_type="users", entity_id="2"))) == [2, 5, 8]
            assert numbers(await read_tail(db, limit=2, wanted=Wanted(entity_type="users"))) == [8, 9]
            assert numbers(await read_tail(db, limit=2, wanted=Wanted(action="logout"))) == [11, 12]
            assert numbers(await read_tail(db, wanted=Wanted(action="nothing"))) == []

    asyncio.run(scenario())


def test_following_the_tail_misses_nothing_and_shows_nothing_twice(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_PAGE_ROWS", 4)

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink, connect(installed_dsn) as db:
            seen: list[int] = []
            position = 0
            for turn in range(5):
                for part in range(turn):
                    first = turn * 100 + part * 10
                    await sink.write(a_batch(*(an_activity(first + row) for row in range(1 + part * 2))))
                end = await read_position(db)
                async for page in read_after(db, position, end):
                    assert len(page) <= 4 or {activity.position for activity in page} == {page[0].position}
                    seen += numbers(page)
                position = end
            assert len(seen) == len(set(seen)) == await db.value(b"select count(*) from afterwrite.activity")
            assert seen == sorted(seen)
            found = [page async for page in read_after(db, 3, position, wanted=Wanted(action="logout"))]
            assert found == []

    asyncio.run(scenario())


def test_the_tail_of_a_long_transaction_is_its_last_writes(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, a_batch(*a_transaction(300, rows=3_000)))
        async with connect(installed_dsn) as db:
            assert [activity.ordinal for activity in await read_tail(db, limit=5)] == [2995, 2996, 2997, 2998, 2999]

    asyncio.run(scenario())


def test_a_long_batch_is_read_in_pages_and_a_transaction_of_it_in_the_order_of_its_writes(installed_dsn: str) -> None:
    async def scenario() -> None:
        changes = [*a_transaction(100, rows=30), *a_transaction(200, rows=250), *a_transaction(300, rows=20, table="t")]
        await fill(installed_dsn, a_batch(*changes, an_activity(1)))
        async with connect(installed_dsn) as db:
            (batch,) = await read_batches(db)
            pages = [page async for page in read_batch_pages(db, batch, rows=100)]
            assert [len(page) for page in pages] == [100, 100, 100, 1]
            assert len({activity.id for page in pages for activity in page}) == 301
            of_users = await read_transactions(db, batch, ["public.users"], after=Lsn(0))
            assert [(each.commit_lsn, each.rows) for each in of_users] == [(100, 30), (200, 250)]
            assert [each.rows for each in await read_transactions(db, batch, ["public.t"], after=Lsn(200))] == [20]
            pages = [page async for page in read_batch_pages(db, batch, transaction=of_users[1], rows=100)]
            assert [activity.ordinal for page in pages for activity in page] == list(range(250))
            both = await read_batch_activities(db, [batch], lsns=(Lsn(150), Lsn(300)))
            assert {activity.commit_lsn for activity in both} == {200, 300}
            logins = await read_actions(db, [batch], category="auth", actions=["login"])
            assert numbers(logins) == [1]
            assert await read_actions(db, [batch], category="auth", actions=["users.insert"]) == []

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
    anything = dict.fromkeys(("actor_id", "entity_type", "entity_id", "action"))
    of_batches = {
        "batch_ids": [3, 4], "relations": None, "events": True, "first_lsn": None, "last_lsn": None,
    } | anything  # fmt: skip
    of_actions = {"batch_ids": [3, 4], "category": "migration", "actions": ["trigger.silence"]}
    of_transactions = {"batch_id": 3, "relations": ["public.users"], "after_lsn": "0/0"}
    of_one_thing = {
        "entity_types": ["users", "user"], "entity_id": "77", "before_at": None, "before_id": None, "limit": 51,
    }  # fmt: skip
    filled = {(NOON - timedelta(days=n)).date() for n in range(4)}
    queries: list[tuple[bytes, dict[str, object], str]] = [
        (statement("store.read_newest", activity=ACTIVITY), nothing, "_pkey"),
        (statement("store.read_newest", activity=ACTIVITY), nothing | {"actor_id": "7"}, "_actor on"),
        (
            statement("store.read_newest", activity=ACTIVITY),
            nothing | {"entity_type": "users", "entity_id": "77"},
            "_entity on",
        ),
        (statement("store.read_timeline"), of_one_thing, "_entity on"),
        (
            statement("store.read_timeline"),
            of_one_thing | {"before_at": NOON, "before_id": "0195a000-0000-7000-8000-000000000001"},
            "_entity on",
        ),
        (statement("store.read_batch_activities", activity=ACTIVITY), of_batches | window, "_pkey"),
        (statement("store.read_actions", activity=ACTIVITY), of_actions | window, "_pkey"),
        (statement("store.read_transactions"), of_transactions | window, "_pkey"),
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


def test_a_page_costs_the_same_wherever_it_lies_in_a_long_batch_of_which_nothing_is_known(installed_dsn: str) -> None:
    async def scenario() -> None:
        changes = a_transaction(100, rows=6_000)
        await fill(installed_dsn, a_batch(*changes))
        async with connect(installed_dsn) as db:
            await db.run(b"delete from pg_statistic where starelid in (select inhrelid from pg_inherits)")
            (batch,) = await read_batches(db)
            costs: list[int] = []
            for number in (0, 0, 3_000, 5_800):  # the first one reads the catalog as well
                after = changes[number]
                plan = "\n".join(
                    await db.values(
                        b"explain (analyze, buffers, costs off, timing off, summary off) "
                        + statement("store.read_batch_page", activity=ACTIVITY),
                        batch_id=batch.id,
                        position=1,
                        after_at=after.occurred_at,
                        after_id=after.id,
                        last_at=batch.last_at,
                        relations=["public.users"],
                        events=False,
                        commit_lsn=None,
                        limit=100,
                        actor_id=None,
                        entity_type=None,
                        entity_id=None,
                        action=None,
                    )
                )
                pages = sum(map(int, re.findall(r"(?:hit|read)=(\d+)", plan.partition("Planning")[0].splitlines()[-1])))
                costs.append(pages)
            assert max(costs[1:]) < 100, costs

    asyncio.run(scenario())


def test_a_batch_is_found_by_its_time_even_where_nothing_is_known_of_its_partition(busy_dsn: str) -> None:
    async def scenario() -> None:
        # As the deferral's feed asks, whose plans are made once for all batches.
        async with connect(busy_dsn, options={"plan_cache_mode": "force_generic_plan"}) as db:
            batch = (await read_batches(db))[7]
            await db.run(b"delete from pg_statistic where starelid in (select inhrelid from pg_inherits)")
            await db.run(b"update pg_class set reltuples = -1, relpages = 0 where relname like 'activity%'")
            plan = "\n".join(
                await db.values(
                    b"explain (analyze, costs off, timing off, summary off) "
                    + statement("store.read_batch_activities", activity=ACTIVITY),
                    batch_ids=[batch.id],
                    relations=None,
                    events=True,
                    first_at=batch.first_at,
                    last_at=batch.last_at,
                    first_lsn=None,
                    last_lsn=None,
                    actor_id=None,
                    entity_type=None,
                    entity_id=None,
                    action=None,
                )
            )
            read = [line for line in plan.splitlines() if "Scan" in line and "never executed" not in line]
            for day in {batch.first_at.date(), batch.last_at.date()}:
                assert any(f"activity_{day:%Y_%m_%d}_pkey" in line for line in read), plan
            assert not any("Seq Scan on activity_2" in line for line in read), plan

    asyncio.run(scenario())
