"""A store with days that are over, and a lake to put them into."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch, Checkpoint, Kind, Level, Lsn, Operation, Outcome
from afterwrite.store.partitions import make_partitions
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
OLD = (100, 99, 97)
"""How many days ago those are that are due."""


def an_activity(number: int, at: datetime) -> Activity:
    """One of many, none like the other."""
    dice = random.Random(number)
    change = number % 3 == 0
    return Activity(
        id=str(UUID(int=(7 << 76) | (2 << 62) | (int(at.timestamp() * 1000) << 80) | number)),
        occurred_at=at,
        source="main",
        kind=Kind.CHANGE if change else Kind.EVENT,
        category=dice.choice(("data", "financial", "security")),
        action=dice.choice(("users.update", "user.login", "project.approve")),
        outcome=dice.choice((Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE)),
        severity=dice.choice((Level.INFO, Level.ERROR)),
        entity_type=dice.choice(("users", "projects")),
        entity_id=str(dice.randrange(5)),
        actor_id=f"user:{dice.randrange(4)}",
        tenant_id=dice.choice((None, "a", "b")),
        ip=dice.choice((None, "10.0.0.1", "10.1.0.0/16", "2001:db8::7")),
        summary=dice.choice((None, "gold token", "Équipe «gold» → free", 'says "x", y\nand more')),
        duration_ms=dice.choice((None, 0.1, 12.5)),
        changed=("status", "a b") if change else None,
        relation="public.users" if change else None,
        operation=Operation.UPDATE if change else None,
        metadata=dice.choice((None, msgspec.Raw(b'{"plan": "pro", "n": 1e2}'), msgspec.Raw(b'{"entity_was":"9"}'))),
        xid=number if change else None,
        commit_lsn=Lsn(number + 1) if change else None,
        ordinal=0 if change else None,
    )


def a_batch(days_ago: int, first: int, rows: int) -> Batch:
    """Activity of a day, some of it at the same moment."""
    start = TODAY - timedelta(days=days_ago) + timedelta(hours=3)
    activities = [an_activity(number, start + timedelta(seconds=number // 2)) for number in range(first, first + rows)]
    return Batch(
        source="main",
        activities=activities,
        transactions=1,
        first_lsn=Lsn(first + 1),
        last_lsn=Lsn(first + rows),
        checkpoint=Checkpoint(source="main", slot="s", system_id="1", timeline=1, lsn=Lsn(first + rows)),
    )


async def lay(dsn: str, *, rows: int = 30) -> None:
    """Days that are due, days that are not, and today."""
    async with connect(dsn) as db:
        await install_store(db)
        days = (*OLD, 10, 1)
        await make_partitions(db, days=[(TODAY - timedelta(days=n)).date() for n in days])
        # No deferred body waits for any of it.
        await db.run(b"insert into afterwrite.feed_reader (source, position, commit_lsn) values ('main', 1000, '1/0')")
    async with open_sink(dsn) as sink:
        for number, day in enumerate(days):
            await sink.write(a_batch(day, number * 1_000, rows))
