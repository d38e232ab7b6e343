"""Counting along the feed: whatever comes, in whatever order, the rollups say what ``group by`` says."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from afterwrite.postgres import Database, connect
from afterwrite.record import Activity, Batch, Kind, Outcome
from afterwrite.store.maintain import SESSION as MAINTAIN_SESSION
from afterwrite.store.maintain import MaintainPolicy, maintain
from afterwrite.store.rollup import SESSION, Standing, read_standing, rebuild, refresh_analytics, roll_up
from afterwrite.store.writer import PostgresSink, open_sink

NOW = datetime.now(UTC)
THIS_HOUR = NOW.replace(minute=0, second=0, microsecond=0)
OVER = THIS_HOUR
QUARTER = OVER - timedelta(hours=OVER.hour % 6)
HOUR = timedelta(hours=1)
LONG = "é" * 290


def an_event(number: int, at: datetime, **fields: object) -> Activity:
    dice = random.Random(number)
    failed = dice.random() < 0.3
    usual: dict[str, object] = {
        "category": dice.choice(["data", "authentication", "financial"]),
        "action": dice.choice(["users.update", "login", "pay", LONG]),
        "outcome": Outcome.FAILURE if failed else Outcome.SUCCESS,
        "entity_type": dice.choice([None, "", "user"]),
        "entity_id": dice.choice([None, "1", "2", "3"]),
        "actor_id": dice.choice([None, "user:1", "user:2"]),
        "tenant_id": dice.choice([None, "", "acme", "globex"]),
        "ip": dice.choice([None, "10.0.0.1", "2001:db8::1"]),
    }
    return Activity(
        id=str(UUID(int=(7 << 76) | (2 << 62) | number)),
        occurred_at=at,
        source="app",
        kind=Kind.EVENT,
        **{**usual, **fields},  # type: ignore[arg-type]
    )


def a_batch(*activities: Activity) -> Batch:
    return Batch(source="app", activities=list(activities), transactions=0)


def events(first: int, *hours_ago: float) -> list[Activity]:
    return [an_event(first + n, THIS_HOUR - HOUR * ago) for n, ago in enumerate(hours_ago)]


SORTS = ("tenant_id", "category", "action", "entity_type", "outcome")


async def counted(db: Database) -> dict[tuple[object, ...], int]:
    rows = await db.rows(
        lambda **row: tuple(row.values()),
        b"""select hour, tenant_id, category, action, entity_type, outcome, activities
              from afterwrite.rollup_hour""",
    )
    assert len({row[:-1] for row in rows}) == len(rows)
    return {row[:-1]: row[-1] for row in rows}


async def grouped(db: Database) -> dict[tuple[object, ...], int]:
    """What counting by hand gives, of the batches that are counted."""
    rows = await db.rows(
        lambda **row: tuple(row.values()),
        b"""select date_trunc('hour', a.occurred_at, 'UTC') as hour, a.tenant_id, a.category, a.action, a.entity_type,
                   a.outcome, count(*) as activities
              from afterwrite.activity a
              join afterwrite.batch b on b.id = a.batch_id
             where b.position <= (select position from afterwrite.rollup)
             group by 1, 2, 3, 4, 5, 6""",
    )
    return {row[:-1]: row[-1] for row in rows}


async def counted_by_view(db: Database) -> int:
    """In how many hours the view, as far as it is said to be exact, says something else than the table."""
    found: int = await db.value(
        b"""select count(*) from (
                select hour, category, outcome, sum(activities) from afterwrite.rollup_hour group by 1, 2, 3
                except all select hour, category, outcome, activities from afterwrite.analytics_hour) d
             where hour < (select exact_until from afterwrite.rollup)"""
    )
    return found


async def names(db: Database) -> dict[tuple[object, ...], list[int]]:
    rows = await db.rows(
        lambda **row: tuple(row.values()),
        b"select what, day, tenant_id, type, name, hours, activities from afterwrite.rollup_top",
    )
    assert all(sum(row[5]) == row[6] for row in rows)
    assert len({row[:5] for row in rows}) == len(rows)
    return {row[:5]: row[5] for row in rows}


def names_of(activities: list[Activity]) -> dict[tuple[object, ...], list[int]]:
    """What the names should be of these, were none left out."""
    found: dict[tuple[object, ...], list[int]] = {}
    for each in activities:
        told: list[tuple[str, str | None, str | None]] = [
            ("actor", None, each.actor_id),
            ("entity", each.entity_type, each.entity_id),
        ]
        if each.category == "authentication" and each.outcome is Outcome.FAILURE:
            account = each.entity_id if each.entity_id is not None else each.actor_id
            told.append(("failed login", each.entity_type if each.entity_id is not None else None, account))
            told.append(("failed login ip", None, each.ip))
        for what, kind, name in told:
            if name is not None:
                key = (what, each.occurred_at.date(), each.tenant_id, kind, name)
                found.setdefault(key, [0] * 24)[each.occurred_at.hour] += 1
    return found


def only(found: dict[tuple[object, ...], list[int]], *whats: str) -> dict[tuple[object, ...], list[int]]:
    return {name: hours for name, hours in found.items() if name[0] in whats}


async def empty(db: Database) -> None:
    await db.script(
        """truncate afterwrite.activity, afterwrite.batch, afterwrite.rollup_hour, afterwrite.rollup_top,
                    afterwrite.rollup_rest, afterwrite.expired_day;
           refresh materialized view afterwrite.analytics_hour;
           refresh materialized view afterwrite.analytics_day;
           update afterwrite.feed set position = 0;
           update afterwrite.feed_start set position = 0;
           update afterwrite.rollup set position = 0, part_at = null, part_id = null,
                  named_until = '-infinity', folded_until = '-infinity', exact_until = '-infinity'"""
    )


KINDS = (
    "write",
    "write",
    "write",
    "roll",
    "roll",
    "one stretch",
    "again",
    "crash",
    "two at once",
    "rebuild",
    "refresh",
)


def a_story(dice: random.Random) -> list[tuple[str, object]]:
    """A dozen steps; retention, which takes for good what counting by hand would need, in some."""
    found: list[tuple[str, object]] = []
    kinds = (*KINDS, "expire") if dice.random() < 0.4 else KINDS
    for kind in dice.choices(kinds, k=14):
        match kind:
            case "write":
                near = [float(dice.randint(0, 4)) for _ in range(dice.randint(1, 15))]
                far = [float(dice.randint(0, 80)) for _ in range(dice.choice([0, 0, 3]))]
                found.append((kind, near + far))
            case "expire":
                found.append((kind, dice.randint(1, 3)))
            case _:
                found.append((kind, dice.choice([1, 4, 15, 100])))
    return found


class _PowerCut(Exception):
    pass


class Story:
    """A store to which things happen, and what it should remember."""

    def __init__(self, dsn: str, db: Database, sink: PostgresSink) -> None:
        self.dsn, self.db, self.sink = dsn, db, sink
        self.number = 0
        self.written: list[Activity] = []
        self.last: Batch | None = None
        self.counted: dict[tuple[object, ...], int] = {}
        self.names: dict[tuple[object, ...], list[int]] = {}
        self.standing: Standing | None = None

    async def take(self, step: str, word: object) -> None:
        match step, word:
            case "write", list(ago):
                made = events(self.number, *ago)
                self.number += len(made)
                self.last = a_batch(*made)
                await self.sink.write(self.last)
                self.written += made
            case "again", _ if self.last:
                assert (await self.sink.write(self.last)).stored in (0, len(self.last.activities))
            case "roll", int(most):
                await roll_up(self.db, most_rows=most, over_by=OVER)
            case "one stretch", int(most):
                await roll_up(self.db, most_rows=most, most_batches=1, over_by=OVER)
            case "crash", int(most):
                with contextlib.suppress(_PowerCut):
                    async with self.db.transaction():
                        await roll_up(self.db, most_rows=most, over_by=OVER)
                        raise _PowerCut
            case "two at once", int(most):
                async with connect(self.dsn, options=SESSION) as other:
                    await asyncio.gather(
                        *(roll_up(db, most_rows=most, over_by=OVER) for db in (self.db, other)),
                    )
            case "rebuild", _:
                await rebuild(self.db)
            case "refresh", _:
                await refresh_analytics(self.db)
            case "expire", int(days):
                await self.db.script("update afterwrite.batch set written_at = last_at")
                async with connect(self.dsn, options=MAINTAIN_SESSION) as db:
                    await maintain(db, MaintainPolicy(retention_days=days))
            case _:
                pass


@given(seed=st.integers(0, 1 << 32))
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller seed is no smaller story
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_rollups_say_what_counting_by_hand_says(installed_dsn: str, seed: int) -> None:
    story = a_story(random.Random(seed))

    async def scenario() -> None:
        async with connect(installed_dsn, options=SESSION) as db, open_sink(installed_dsn) as sink:
            await empty(db)
            told = Story(installed_dsn, db, sink)
            lost = False
            for step, word in story:
                lost = lost or step == "expire"
                # Rows that come again after retention took the first are new ones.
                if not (lost and step == "again"):
                    await told.take(step, word)
                if not lost and not (await read_standing(db)).in_part:
                    assert await counted(db) == await grouped(db)
                assert await counted_by_view(db) == 0
            await roll_up(db, over_by=OVER)
            expected = Counter(
                (each.occurred_at.replace(minute=0), *(getattr(each, name) for name in SORTS)) for each in told.written
            )
            assert await counted(db) == expected
            assert await names(db) == {
                **only(names_of(told.written), "failed login", "failed login ip"),
                **only(names_of([each for each in told.written if each.occurred_at < QUARTER]), "actor", "entity"),
            }
            await refresh_analytics(db)
            assert await db.value(b"select coalesce(sum(activities), 0)::bigint from afterwrite.analytics_day") == len(
                told.written
            )

    asyncio.run(scenario())


def told(dsn: str, *steps: tuple[str, object]) -> Story:
    """The story of these steps, from an empty store."""

    async def scenario() -> Story:
        async with connect(dsn, options=SESSION) as db, open_sink(dsn) as sink:
            story = Story(dsn, db, sink)
            for step, word in steps:
                await story.take(step, word)
            story.counted, story.names = await counted(db), await names(db)
            story.standing = await read_standing(db)
            return story

    return asyncio.run(scenario())


def test_hours_that_are_under_way_get_their_names_once_when_they_are_over(installed_dsn: str) -> None:
    # The hours of a quarter of a day that is under way wait for its end; what is late for others does not.
    ago = float(OVER.hour % 6)
    story = told(
        installed_dsn, ("write", [ago + 1, ago, 0.0]), ("roll", 100), ("write", [ago, ago + 1, ago + 2]), ("roll", 3)
    )
    assert story.standing
    assert story.standing.batches == 0
    over = [each for each in story.written if each.occurred_at < QUARTER]
    assert only(story.names, "actor", "entity") == only(names_of(over), "actor", "entity")
