"""Reports: the same numbers as counting by hand gives, for all tenants or one, from views, tables and the open hour."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest
from test_rollup import a_batch, an_event, counted

from afterwrite import runtime
from afterwrite.capture.worker import WorkerState, WorkerStatus
from afterwrite.errors import UsageError
from afterwrite.postgres import Database, connect
from afterwrite.record import Activity, Outcome
from afterwrite.runtime import examine_rollup
from afterwrite.search.analytics import Bucket, Report, ReportName, report, stretch_of
from afterwrite.settings import Settings
from afterwrite.store.maintain import SESSION as MAINTAIN_SESSION
from afterwrite.store.maintain import MaintainPolicy, maintain
from afterwrite.store.rollup import SESSION, rebuild, refresh_analytics, roll_up
from afterwrite.store.writer import open_sink

# A Monday at eight minutes past noon; what is tested lies before.
NOW = datetime(2026, 6, 15, 12, 8, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TENANTS = (None, "acme", "globex")


def some(count: int, days: float, seed: int = 7) -> list[Activity]:
    """Events at random within so many days before now, each its actor's."""
    dice = random.Random(seed)
    return [
        an_event(
            seed * 1_000_000 + number,
            NOW - days * DAY * dice.random(),
            actor_id=f"user:{dice.randint(1, 9)}",
            entity_type="order",
            entity_id=str(int(dice.expovariate(0.2))),
            tenant_id=TENANTS[number % 3],
        )
        for number in range(count)
    ]


def asked(
    dsn: str, activities: Iterable[Activity], ask: Callable[[Database], Awaitable[None]], *, most_names: int = 1_000
) -> None:
    """Store these, count most of them, and ask."""

    async def scenario() -> None:
        listed = sorted(activities, key=lambda each: each.occurred_at)
        async with connect(dsn, options=SESSION) as db, open_sink(dsn) as sink:
            await sink.write(a_batch(*listed[::2]))
            await roll_up(db, over_by=NOW, most_names=most_names)
            await refresh_analytics(db)
            await sink.write(a_batch(*listed[1::2]))
            await roll_up(db, over_by=NOW, most_names=most_names)
            await ask(db)

    asyncio.run(scenario())


def within(activities: Iterable[Activity], found: Report) -> list[Activity]:
    return [
        each
        for each in activities
        if found.after <= each.occurred_at < found.before and found.tenant in (None, each.tenant_id)
    ]


def failures(activities: Iterable[Activity]) -> int:
    return sum(each.outcome is Outcome.FAILURE for each in activities)


@pytest.mark.parametrize("tenant", [None, "acme"])
def test_every_report_says_what_counting_by_hand_says(installed_dsn: str, tenant: str | None) -> None:
    activities = some(600, 12)

    async def ask(db: Database) -> None:
        async def told(name: ReportName, days: float, **words: object) -> Report:
            after = NOW - days * DAY
            return await report(db, name, after=after, limit=1_000, tenant=tenant, now=NOW, **words)  # type: ignore[arg-type]

        for days in (0.3, 2.6, 11):
            for bucket in Bucket:
                found = await told(ReportName.ACTIVITY, days, bucket=bucket)
                step = HOUR if bucket is Bucket.HOUR else DAY
                assert [row[0] for row in found.rows] == [
                    found.rows[0][0] + n * step  # type: ignore[operator]
                    for n in range(len(found.rows))
                ]
                by_hand = within(activities, found)
                assert sum(row[1] for row in found.rows) == len(by_hand)  # type: ignore[misc]
                for at, count, failed in found.rows:
                    then = [each for each in by_hand if at <= each.occurred_at < at + step]  # type: ignore[operator]
                    assert (count, failed) == (len(then), failures(then))
            outcomes = await told(ReportName.OUTCOMES, days, bucket=Bucket.DAY)
            assert sum(row[2] for row in outcomes.rows) == failures(by_hand)  # type: ignore[misc]
            found = await told(ReportName.CATEGORIES, days)
            assert {row[0]: row[1] for row in found.rows} == Counter(each.category for each in by_hand)
            assert sum(row[3] for row in found.rows) == pytest.approx(1)  # type: ignore[misc]
            found = await told(ReportName.ACTIONS, days)
            cut = Counter((each.category, each.action[:160]) for each in by_hand)
            shown: Counter[tuple[object, ...]] = Counter()
            for category, action, count, _ in found.rows:
                shown[category, str(action)[:160]] += count  # type: ignore[assignment,operator]
            assert shown == cut
            found = await told(ReportName.ENTITY_TYPES, days)
            assert found.rows == (("order", len(by_hand), failures(by_hand)),)
            found = await told(ReportName.ACTORS, days)
            assert dict(found.rows) == Counter(each.actor_id for each in within(activities, found))  # type: ignore[arg-type]
            found = await told(ReportName.ENTITIES, days)
            assert {row[1]: row[2] for row in found.rows} == Counter(
                each.entity_id for each in within(activities, found)
            )
            assert found.at_most_more == 0
            assert [row[-1] for row in found.rows] == sorted((row[-1] for row in found.rows), reverse=True)
            found = await told(ReportName.FAILED_LOGINS, days)
            failed_logins = [
                each
                for each in within(activities, found)
                if each.category == "authentication" and each.outcome is Outcome.FAILURE
            ]
            assert {row[1]: row[2] for row in found.rows if row[0] == "account"} == Counter(
                f"order:{each.entity_id}" for each in failed_logins
            )
            assert {row[1]: row[2] for row in found.rows if row[0] == "ip"} == Counter(
                each.ip for each in failed_logins if each.ip
            )

    asked(installed_dsn, activities, ask)


def test_the_week_before_is_the_same_hours_seven_days_earlier(installed_dsn: str) -> None:
    activities = some(400, 12)

    async def ask(db: Database) -> None:
        found = await report(db, ReportName.WEEK, after=NOW - 3 * DAY, now=NOW)
        assert found.before == NOW.replace(minute=0)
        now = within(activities, found)
        before = [e for e in activities if found.after <= e.occurred_at + 7 * DAY < found.before]
        assert found.rows[0][:3] == ("all", len(now), len(before))
        assert found.rows[0][3] == pytest.approx((len(now) - len(before)) / len(before))
        assert found.rows[0][4:] == (failures(now), failures(before))
        assert {row[0]: row[1] for row in found.rows[1:]} == Counter(each.category for each in now)

    asked(installed_dsn, activities, ask)


def test_of_a_crowd_the_busiest_are_kept_and_the_report_says_how_wrong_a_number_may_be(installed_dsn: str) -> None:
    activities = some(900, 3)

    async def ask(db: Database) -> None:
        found = await report(db, ReportName.ENTITIES, after=NOW - 3 * DAY, before=NOW, now=NOW, limit=50)
        by_hand = Counter(each.entity_id for each in within(activities, found))
        assert found.at_most_more > 0
        assert "more than is counted here" in found.notes[0]
        assert len(found.rows) < len(by_hand)
        for _, name, count in found.rows:
            assert count <= by_hand[name] <= count + found.at_most_more  # type: ignore[index,operator]
        left_out = set(by_hand) - {row[1] for row in found.rows}
        assert all(by_hand[name] <= found.at_most_more for name in left_out)
        # The days that are over keep no more than a day may, and what went is summed up.
        await db.run(b"update afterwrite.rollup set folded_until = '-infinity'")
        assert await db.value(b"select afterwrite.fold_rollup('2026-06-15', 3)") > 0
        most = b"""select max(n) from (select count(*) as n from afterwrite.rollup_top
                                        where day < '2026-06-15' group by day, what, tenant_id) x"""
        assert await db.value(most) == 3
        total = b"""select (select sum(activities) from afterwrite.rollup_top where what = 'actor')
                         + (select coalesce(sum(activities), 0) from afterwrite.rollup_rest where what = 'actor')"""
        assert await db.value(total) == sum(each.occurred_at < NOW.replace(minute=0) for each in activities)
        again = await report(db, ReportName.ACTORS, after=NOW - 3 * DAY, before=NOW, now=NOW)
        actors = Counter(each.actor_id for each in within(activities, again))
        for name, count in again.rows:
            assert count <= actors[name] <= count + again.at_most_more  # type: ignore[index,operator]

    asked(installed_dsn, activities, ask, most_names=40)


def test_unusual_is_an_hour_at_which_somebody_known_was_almost_never_active(installed_dsn: str) -> None:
    night = NOW.replace(hour=3, minute=20)
    working = [NOW - day * DAY - hour * HOUR for day in range(1, 21) for hour in range(4)]
    plain = {"category": "data", "outcome": Outcome.SUCCESS, "tenant_id": None}
    activities = [an_event(n, at, actor_id="user:day", **plain) for n, at in enumerate(working)]
    activities += [an_event(1_000, night, actor_id="user:day", **plain)]
    # Always up at night, new here, and once before.
    activities += [an_event(2_000 + n, night - n * DAY, actor_id="user:night", **plain) for n in range(20)]
    activities += [an_event(3_000, night, actor_id="user:new", **plain)]
    once = [an_event(4_000 + n, at, actor_id="user:once", **plain) for n, at in enumerate(working)]
    activities += [*once, an_event(5_000, night - 5 * DAY, actor_id="user:once", **plain)]
    activities += [an_event(5_001, night, actor_id="user:once", **plain)]
    money = {**plain, "category": "financial", "actor_id": None}
    activities += [an_event(6_000 + n, at, **money) for n, at in enumerate(working)]
    activities += [an_event(7_000 + n, night, **money) for n in range(6)]

    async def ask(db: Database) -> None:
        found = await report(db, ReportName.UNUSUAL_HOURS, after=NOW - DAY, now=NOW)
        at = night.replace(minute=0)
        assert found.columns == (
            "at", "kind", "name", "activities", "active_days", "activities_before", "known_days",
        )  # fmt: skip
        assert set(found.rows) == {
            (at, "category", "financial", 6, 0, 0, 19),
            (at, "actor", "user:day", 1, 0, 0, 19),
            (at, "actor", "user:once", 1, 1, 1, 19),
        }

    asked(installed_dsn, activities, ask)


def test_the_hour_under_way_counts_before_it_is_over(installed_dsn: str) -> None:
    activities = [an_event(n, NOW - timedelta(minutes=1), actor_id="user:1", entity_id=str(n % 2)) for n in range(6)]

    async def ask(db: Database) -> None:
        found = await report(db, ReportName.ACTORS, now=NOW)
        assert found.rows == (("user:1", 6),)
        found = await report(db, ReportName.ENTITIES, now=NOW)
        assert sum(row[2] for row in found.rows) == 6  # type: ignore[misc]

    asked(installed_dsn, activities, ask)


def test_a_tenants_reader_sees_its_own_counts_and_nothing_of_the_views(installed_dsn: str) -> None:
    activities = some(300, 4)

    async def ask(db: Database) -> None:
        async with db.transaction():
            await db.run(b"set local role afterwrite_tenant")
            await db.run(b"set local afterwrite.tenant = 'acme'")
            for name in ReportName:
                found = await report(db, name, after=NOW - 4 * DAY, now=NOW, tenant="acme", limit=1_000)
                others = await report(db, name, after=NOW - 4 * DAY, now=NOW, tenant="globex", limit=1_000)
                numbers = [cell for row in others.rows for cell in row[1:3] if isinstance(cell, int)]
                assert sum(numbers) == 0, name
                if name is ReportName.ACTORS:
                    assert dict(found.rows) == Counter(e.actor_id for e in within(activities, found))  # type: ignore[arg-type]
            for table in (b"rollup_hour", b"rollup_top", b"activity"):
                tenants = await db.values(b"select distinct tenant_id from afterwrite." + table)
                assert tenants == ["acme"]
        for view in ("analytics_hour", "analytics_day"):
            allowed = f"select has_table_privilege('afterwrite_tenant', 'afterwrite.{view}', 'select')"
            assert not await db.value(allowed.encode())

    asked(installed_dsn, activities, ask)


def test_what_retention_took_stays_counted_and_a_rebuild_leaves_it(installed_dsn: str) -> None:
    async def scenario() -> None:
        now = datetime.now(UTC)
        days = [now - number * DAY for number in (1, 5, 6)]
        async with connect(installed_dsn, options=SESSION) as db, open_sink(installed_dsn) as sink:
            for number, at in enumerate(days):
                await sink.write(a_batch(*(an_event(number * 10 + n, at) for n in range(4))))
            await db.script("update afterwrite.batch set written_at = last_at")
            async with connect(installed_dsn, options=MAINTAIN_SESSION) as maintainer:
                await maintain(maintainer, MaintainPolicy(retention_days=3))
            assert await db.value(b"select count(*) from afterwrite.activity") == 4
            counts = await counted(db)
            assert sum(counts.values()) == 12
            # One more of a day that is gone.
            await sink.write(a_batch(an_event(99, days[1])))
            done = await rebuild(db)
            assert [days[1].date()] == [day for day in done.kept if day == days[1].date()]
            assert (done.days, done.rows) == (1, 4)
            assert sum((await counted(db)).values()) == 13

    asyncio.run(scenario())


def test_a_rebuild_mends_what_other_hands_changed(installed_dsn: str) -> None:
    activities = some(200, 3)

    async def ask(db: Database) -> None:
        before = await counted(db)
        await db.run(b"update afterwrite.rollup_hour set activities = activities + 1")
        await db.run(b"delete from afterwrite.rollup_top where what = 'actor'")
        await rebuild(db)
        assert await counted(db) == before
        found = await report(db, ReportName.ACTORS, after=NOW - 3 * DAY, now=NOW)
        assert dict(found.rows) == Counter(each.actor_id for each in within(activities, found))  # type: ignore[arg-type]

    asked(installed_dsn, activities, ask)


def test_doctor_says_when_reports_are_behind(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn, options=SESSION) as db, open_sink(installed_dsn) as sink:
            await sink.write(a_batch(*some(3, 1)))
            assert await examine_rollup(db) == []
            await db.run(b"update afterwrite.batch set written_at = now() - interval '10 minutes'")
            (finding,) = await examine_rollup(db)
            assert "10 minutes behind: 1 batches with 3 activities" in finding.text
            await roll_up(db)
            assert await examine_rollup(db) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"after": NOW, "before": NOW - HOUR}, "nothing lies after"),
        ({"after": NOW.replace(tzinfo=None)}, "no time zone"),
        ({"after": datetime.min.replace(tzinfo=UTC), "before": NOW, "bucket": "hour"}, "buckets of one hour"),
        ({"limit": 0}, "1 to 1,000 rows"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(installed_dsn: str, words: dict[str, object], said: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            with pytest.raises(UsageError, match=said):
                await report(db, ReportName.ACTIVITY, now=NOW, **words)  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_a_report_is_about_whole_hours_and_what_is_usual_for_it() -> None:
    assert stretch_of(ReportName.ACTIVITY, None, None, NOW).after == datetime(2026, 6, 14, 13, tzinfo=UTC)
    assert stretch_of(ReportName.WEEK, None, None, NOW).before == NOW.replace(minute=0)
    found = stretch_of(ReportName.ENTITIES, NOW - DAY, NOW, NOW)
    assert (found.after.hour, found.before.hour) == (12, 13)
    assert found.whole_days() == (NOW.date(), NOW.date())
    with pytest.raises(UsageError, match="week at most"):
        stretch_of(ReportName.WEEK, NOW - 8 * DAY, NOW, NOW)
    with pytest.raises(UsageError, match="beyond the calendar"):
        stretch_of(ReportName.ACTIVITY, None, datetime.max.replace(tzinfo=UTC), NOW)


def test_who_has_no_right_to_the_counts_is_told_so(server, installed_dsn: str) -> None:
    with psycopg.connect(installed_dsn, autocommit=True) as owner:
        assert owner.execute("select afterwrite.lay_rollup_tenancy(), afterwrite.lay_tenancy()").fetchone() == (
            True,
            True,
        )


def test_the_worker_counts_by_itself_and_says_how_far_it_is(installed_dsn: str) -> None:
    async def scenario() -> None:
        begun = asyncio.Event()
        begun.set()
        told: asyncio.Queue[runtime.RollupStatus] = asyncio.Queue()
        async with open_sink(installed_dsn) as sink:
            await sink.write(a_batch(*some(5, 1)))
        counting = asyncio.create_task(runtime._roll(Settings(dsn=installed_dsn), begun, told.put_nowait))
        try:
            status = await asyncio.wait_for(told.get(), 30)
        finally:
            counting.cancel()
        assert (status.position, status.behind_batches, status.lag_seconds, status.trouble) == (1, 0, 0.0, None)
        async with connect(installed_dsn) as db:
            assert sum((await counted(db)).values()) == 5
            assert await db.value(b"select refreshed_at is not null from afterwrite.rollup")

    asyncio.run(scenario())


def test_counting_waits_while_capture_is_behind(installed_dsn: str) -> None:
    async def scenario() -> None:
        begun = asyncio.Event()
        begun.set()
        told: asyncio.Queue[runtime.RollupStatus] = asyncio.Queue()
        capture = WorkerStatus(state=WorkerState.STREAMING, source="main", lag_seconds=10.0)
        async with open_sink(installed_dsn) as sink:
            await sink.write(a_batch(*some(5, 1)))
        counting = asyncio.create_task(
            runtime._roll(Settings(dsn=installed_dsn), begun, told.put_nowait, lambda: capture)
        )
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(told.get(), 1.5)
            capture = msgspec.structs.replace(capture, lag_seconds=0.1)
            assert (await asyncio.wait_for(told.get(), 30)).position == 1
        finally:
            counting.cancel()

    asyncio.run(scenario())
