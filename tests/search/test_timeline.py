"""Timelines in pages both ways, causes and effects, transactions, moments; and by which index each is found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from timeline_rig import NOON, a_change, an_event, at, event_id, place_at, store, timeline_dsn

from afterwrite.errors import UsageError
from afterwrite.postgres import Database, connect, statement
from afterwrite.record import Activity
from afterwrite.search.timeline import (
    actor_timeline,
    around,
    effects,
    entity_timeline,
    read_activity,
    read_cause,
    row_at,
    same_transaction,
)
from afterwrite.search.windows import Page, Place, Window
from afterwrite.store.reader import ACTIVITY, StoredActivity

__all__ = ["timeline_dsn"]

Read = Callable[[Database, Place | None, Place | None], Awaitable[Page]]


def asked(dsn: str, ask: Callable[[Database], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with connect(dsn) as db:
            await ask(db)

    asyncio.run(scenario())


def ids(page: Page) -> list[str]:
    return [each.id for each in page.items]


# A user's life over forty days, several at the same moment; and a transaction that is explained by an event.
LIFE = [
    a_change(-86_400.0 * day, "7", {"id": 7, "n": day}, {"id": 7, "n": -day}, ordinal=n, actor_id="user:1")
    for day in (0, 0.001, 1, 3, 15, 39)
    for n in range(2)
]
ORDER = an_event(
    600,
    id=event_id(at(599.9)),
    action="order.approve",
    source="main",
    commit_lsn=place_at(600),
    xid=int(place_at(600)),
    ordinal=0,
)
APPROVED = [
    a_change(600, str(n), None, {"id": n}, ordinal=n, table="orders", caused_by=ORDER.id, actor_id="user:2")
    for n in range(1, 6)
]
# What deferred triggers wrote names the first change; one at once, one long after.
DEFERRED = [
    a_change(600.1, "1", None, {"id": 1}, table="ledger", caused_by=APPROVED[0].id, actor_id="user:2"),
    a_change(8_000, "2", None, {"id": 2}, table="ledger", caused_by=APPROVED[0].id),
]
BLOCK = an_event(1_000, 2, action="import.run", duration_ms=90_000.0, id=event_id(at(1_000)))
IN_BLOCK = [
    a_change(1_000.05, "a", None, {"id": 1}, table="rows", caused_by=BLOCK.id),
    a_change(1_080, "b", None, {"id": 2}, table="rows", caused_by=BLOCK.id),
    an_event(1_010, 3, caused_by=BLOCK.id, action="import.progress"),
    a_change(90_000, "c", None, {"id": 3}, table="rows", caused_by=BLOCK.id),
]
AFTER_BLOCK = a_change(91_000, "d", None, {"id": 4}, table="ledger", caused_by=IN_BLOCK[3].id)
MOVED = [
    a_change(2_000, "50", None, {"id": 50}, table="moved"),
    a_change(2_001, "51", {"id": 50}, {"id": 51}, table="moved", metadata={"entity_was": "50"}),
    a_change(2_002, "50", None, {"id": 50}, table="moved"),
]
ALL = [*LIFE, ORDER, *APPROVED, *DEFERRED, BLOCK, *IN_BLOCK, AFTER_BLOCK, *MOVED]


@pytest.fixture(scope="module")
def told_dsn(timeline_dsn: str) -> str:
    asyncio.run(store(timeline_dsn, *ALL))
    return timeline_dsn


def newest_first(activities: list[Activity]) -> list[str]:
    return [each.id for each in sorted(activities, key=lambda each: (each.occurred_at, each.id), reverse=True)]


READS: dict[str, tuple[Read, list[str]]] = {
    "entity": (
        lambda db, older, newer: entity_timeline(db, "users", "7", limit=3, older_than=older, newer_than=newer),
        newest_first(LIFE),
    ),
    "moved away": (
        lambda db, older, newer: entity_timeline(db, "moved", "50", limit=1, older_than=older, newer_than=newer),
        newest_first(MOVED),
    ),
    "actor": (
        lambda db, older, newer: actor_timeline(db, "user:1", limit=5, older_than=older, newer_than=newer),
        newest_first(LIFE),
    ),
}


@pytest.mark.parametrize("name", READS)
def test_a_timeline_is_read_in_pages_down_and_up_again(told_dsn: str, name: str) -> None:
    read, expected = READS[name]

    async def ask(db: Database) -> None:
        pages = [await read(db, None, None)]
        assert pages[0].newer is None
        while pages[-1].older is not None:
            pages.append(await read(db, pages[-1].older, None))
        assert [id for page in pages for id in ids(page)] == expected
        upwards = [pages[-1]]
        while upwards[-1].newer is not None:
            upwards.append(await read(db, None, upwards[-1].newer))
        assert [id for page in reversed(upwards) for id in ids(page)] == expected
        assert all(page.older for page in upwards[1:])
        with pytest.raises(UsageError):
            await read(db, Place(NOON, ORDER.id), Place(NOON, ORDER.id))

    asked(told_dsn, ask)


def test_an_activity_is_found_by_its_id_and_so_is_its_cause(told_dsn: str) -> None:
    async def ask(db: Database) -> None:
        for activity in (LIFE[-1], ORDER, BLOCK, IN_BLOCK[2]):
            found = await read_activity(db, activity.id)
            assert found is not None
            assert (found.id, found.occurred_at) == (activity.id, activity.occurred_at)
            assert found.position > 0
        assert await read_activity(db, event_id(at(3), 9)) is None
        assert await read_activity(db, "00000000-0000-4000-8000-000000000000") is None
        assert await read_activity(db, BLOCK.id.upper(), occurred_at=BLOCK.occurred_at) is not None
        assert await read_activity(db, BLOCK.id, occurred_at=at(0)) is None
        with pytest.raises(UsageError, match="no id of an activity"):
            await read_activity(db, "17")
        causes = [await read_cause(db, await found_again(db, each)) for each in (APPROVED[2], IN_BLOCK[1], LIFE[0])]
        assert [cause and cause.id for cause in causes] == [ORDER.id, BLOCK.id, None]

    asked(told_dsn, ask)


async def found_again(db: Database, activity: Activity) -> StoredActivity:
    found = await read_activity(db, activity.id, occurred_at=activity.occurred_at)
    assert found is not None
    return found


def test_effects_are_those_at_once_and_later_ones_and_what_deferred_triggers_wrote(told_dsn: str) -> None:
    async def ask(db: Database) -> None:
        async def of(activity: Activity) -> list[str]:
            page = await effects(db, await found_again(db, activity), limit=100)
            assert page.older is None
            return ids(page)

        assert await of(ORDER) == newest_first([*APPROVED, *DEFERRED])
        assert await of(BLOCK) == newest_first([*IN_BLOCK, AFTER_BLOCK])
        # Deferred triggers run once a transaction, and name its first change for all of them.
        assert await of(APPROVED[3]) == newest_first(DEFERRED)
        assert await of(LIFE[0]) == []
        order, found, place = await found_again(db, ORDER), [], None
        while page := await effects(db, order, limit=2, older_than=place):
            found += ids(page)
            if (place := page.older) is None:
                break
        assert found == await of(ORDER)
        assert ids(await effects(db, order, limit=2, newer_than=Place(APPROVED[0].occurred_at, APPROVED[4].id))) == (
            newest_first(DEFERRED)
        )

    asked(told_dsn, ask)


def test_a_transaction_is_one_moment_and_its_others_come_in_pages(told_dsn: str) -> None:
    async def ask(db: Database) -> None:
        change = await found_again(db, APPROVED[2])
        others = newest_first([ORDER, *APPROVED[:2], *APPROVED[3:]])
        assert ids(await same_transaction(db, change)) == others
        first = await same_transaction(db, change, limit=3)
        second = await same_transaction(db, change, limit=3, older_than=first.older)
        assert ids(first) + ids(second) == others
        assert second.newer is not None
        assert ids(await same_transaction(db, change, limit=3, newer_than=second.newer)) == ids(first)
        assert ids(await same_transaction(db, await found_again(db, BLOCK))) == []

    asked(told_dsn, ask)


def test_around_a_moment_are_the_nearest_on_both_sides(told_dsn: str) -> None:
    async def ask(db: Database) -> None:
        near = await around(db, at(600.05), seconds=1)
        assert ids(near) == newest_first([ORDER, *APPROVED, DEFERRED[0]])
        assert (near.older, near.newer) == (None, None)
        few = await around(db, at(600.05), seconds=1, limit=3)
        assert ids(few) == newest_first([DEFERRED[0], *APPROVED])[:3]
        assert (few.older is None, few.newer) == (False, None)
        assert ids(await around(db, at(5_000))) == []
        with pytest.raises(UsageError, match="time zone"):
            await around(db, at(0).replace(tzinfo=None))

    asked(told_dsn, ask)


@pytest.fixture(scope="module")
def busy_dsn(told_dsn: str) -> str:
    """The same and 8,000 changes of two days, their statistics fresh."""
    some = [
        a_change(
            -n * 20.0,
            str(n % 400),
            {"id": n % 400, "n": n},
            {"id": n % 400, "n": n + 1},
            table="busy",
            source="busy",
            actor_id=f"user:{n % 90 + 10}",
            caused_by=event_id(at(-n * 20.0 - 0.003), n),
        )
        for n in range(8_000)
    ]

    async def fill(db: Database) -> None:
        await db.run(b"analyze afterwrite.activity")

    asyncio.run(store(told_dsn, *some))
    asked(told_dsn, fill)
    return told_dsn


def test_no_question_reads_a_hot_day_from_end_to_end(busy_dsn: str) -> None:
    until, since = at(86_400), at(-86_400)
    page = {"since": since, "until": until, "at": NOON, "id": LIFE[0].id, "count": 51}
    subject = {"entity_type": "busy", "entity_id": "77"}
    table = {"source": "busy", "relation": "public.busy"}
    causes = {
        "first_ids": [ORDER.id], "last_ids": [ORDER.id], "from_times": [at(600)], "to_times": [at(600.256)],
        "commit_times": [at(600)], "first_time": at(600), "last_time": at(601), "besides": [],
    }  # fmt: skip
    behind = {name: page[name] for name in ("since", "until", "at", "id")}
    questions: list[tuple[str, dict[str, object], str]] = [
        ("read_by_id", {"id": ORDER.id, "since": at(590), "until": at(610)}, "_pkey"),
        ("read_changes", subject | table | page, "_entity"),
        ("read_changes newer", subject | table | page, "_entity"),
        ("read_actor", {"actor_id": "user:77"} | page, "_actor"),
        ("read_stretch", {"source": None, "commit_lsn": None} | page, "_pkey"),
        ("read_effects", causes | page, "_cause"),
        (
            "read_effect_transactions",
            {"id": ORDER.id, "from_time": at(600), "to_time": at(601), "since": since, "limit": 9, "transactions": 9},
            "_cause",
        ),
        ("read_telling", subject | table | behind | {"column": "n"}, "_entity"),
        ("is_recorded", {"entity_type": "busy", **table, "moment": NOON}, "_entity"),
        ("read_bracket", {"source": "main", "moment": NOON}, "_pkey"),
    ]
    days = {f"activity_{(NOON - timedelta(days=n)).date():%Y_%m_%d}" for n in range(3)}

    async def ask(db: Database) -> None:
        for question, words, index in questions:
            name, _, newer = question.partition(" ")
            side = Window(since, until, NOON, LIFE[0].id, 51, newer=bool(newer)).words
            plan = "\n".join(await db.values(b"explain " + statement(f"timeline.{name}", **side), **words))
            assert not any(f"Seq Scan on {day}" in plan for day in days), f"{name}\n{plan}"
            assert index in plan, f"{name}\n{plan}"

    asked(busy_dsn, ask)


@pytest.mark.parametrize("newer", [False, True])
def test_what_functions_read_is_read_along_its_own_index(busy_dsn: str, newer: bool) -> None:
    subject = {"entity_type": "busy", "entity_id": "77"}
    place = {"at": at(-86_400 if newer else 86_400), "id": LIFE[0].id, "until": at(86_400)}
    page = place | {"since": at(-86_400), "count": 51, "newer": newer}
    gone = subject | place | {"source": "busy", "relation": None, "truncates": True, "limit": 1}
    busy_days = tuple(f"activity_{(NOON - timedelta(days=n)).date():%Y_%m_%d}" for n in range(1, 3))
    questions: list[tuple[bytes, dict[str, Any], str]] = [
        (statement("timeline.read_gone", activity=ACTIVITY), gone, "_gone"),
        (statement("search.read_thing", activity=ACTIVITY), subject | page, "_entity"),
    ]

    for query, words, index in questions:

        async def ask(db: Database, query: bytes = query, words: dict[str, Any] = words, index: str = index) -> None:
            async with db.transaction():
                found = await db.values(query, **words)
                read = await db.values(
                    b"select c.relname from pg_class c where c.relname like 'activity%' and c.relkind in ('r', 'i')"
                    b" and pg_stat_get_xact_numscans(c.oid) > 0"
                )
            assert bool(found) is (index != "_gone")
            assert read
            # Of days that are all but empty it does not matter how they are read.
            busy = [name for name in read if name.startswith(busy_days)]
            assert all(name.endswith(index) for name in busy), read

        asked(busy_dsn, ask)


def test_a_row_among_many_is_told_from_the_changes_about_it_alone(busy_dsn: str) -> None:
    async def ask(db: Database) -> None:
        row = await row_at(db, "busy", "77", at(-10_000))
        assert row.exists is True
        assert row.since is not None
        assert row.until is not None
        assert row.until.occurred_at - row.since.occurred_at == timedelta(seconds=8_000)

    asked(busy_dsn, ask)
