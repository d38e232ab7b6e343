"""What the tests of timelines share: changes and events as capture tells them, written through the sink."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.record import Activity, Batch, Checkpoint, Kind, Lsn, Operation, change_id
from afterwrite.store.writer import open_sink

NOON = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(hours=12)


def at(seconds: float) -> datetime:
    """So many seconds after yesterday's noon."""
    return NOON + timedelta(seconds=seconds)


def place_at(seconds: float) -> Lsn:
    """Where in the WAL what commits then is."""
    return Lsn(round((seconds + 10_000_000) * 1000) * 8)


def event_id(moment: datetime, number: int = 0) -> str:
    """A UUIDv7 of that moment."""
    since = int(moment.timestamp() * 1000)
    return str(uuid.UUID(int=since << 80 | 7 << 76 | 1 << 63 | number))


def a_change(
    seconds: float,
    key: str | None,
    before: dict[str, object] | None,
    after: dict[str, object] | None,
    *,
    ordinal: int = 0,
    table: str = "users",
    whole: bool = True,
    metadata: dict[str, object] | None = None,
    lsn: int | None = None,
    **fields: object,
) -> Activity:
    """A change that committed then; its place in the WAL follows the time unless it is told."""
    moment = at(seconds)
    place = place_at(seconds) if lsn is None else Lsn(lsn)
    operation = {
        (False, True): Operation.INSERT,
        (True, True): Operation.UPDATE,
        (True, False): Operation.DELETE,
        (False, False): Operation.TRUNCATE,
    }[before is not None, after is not None]
    old = before if whole or operation is not Operation.UPDATE else None
    changed = None
    if operation is Operation.UPDATE and whole:
        changed = tuple(name for name, value in (after or {}).items() if value != (before or {}).get(name))
    plain: dict[str, object] = {
        "id": change_id("7", 1, place, ordinal, moment),
        "occurred_at": moment,
        "source": "main",
        "kind": Kind.CHANGE,
        "category": "data",
        "action": f"{table}.{operation.value}",
        "entity_type": table,
        "entity_id": key,
        "relation": f"public.{table}",
        "operation": operation,
        "changed": changed,
        "before": raw(old),
        "after": raw(after),
        "metadata": raw(metadata),
        "xid": int(place),
        "commit_lsn": place,
        "ordinal": ordinal,
    }
    return Activity(**plain | fields)  # type: ignore[arg-type]


def an_event(seconds: float, number: int = 0, **fields: object) -> Activity:
    """Something that an application recorded then."""
    plain: dict[str, object] = {
        "id": event_id(at(seconds), number),
        "occurred_at": at(seconds),
        "source": "shop",
        "kind": Kind.EVENT,
        "category": "auth",
        "action": "login",
    }
    return Activity(**plain | fields)  # type: ignore[arg-type]


def raw(value: dict[str, object] | None) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(json.dumps(value).encode())


async def store(dsn: str, *activities: Activity) -> None:
    """Write them as one batch of their source each; a source of changes gets a checkpoint behind them."""
    by_source: dict[str, list[Activity]] = {}
    for activity in activities:
        by_source.setdefault(activity.source, []).append(activity)
    async with open_sink(dsn) as sink:
        for source, those in by_source.items():
            await sink.write(a_batch(source, those))


def a_batch(source: str, activities: Sequence[Activity]) -> Batch:
    places = [each.commit_lsn for each in activities if each.commit_lsn is not None]
    if not places:
        return Batch(source=source, activities=activities, transactions=0)
    end = Lsn(max(places) + 8)
    checkpoint = Checkpoint(source=source, slot="slot", system_id="7", timeline=1, lsn=end)
    return Batch(
        source=source,
        activities=activities,
        transactions=len(set(places)),
        first_lsn=min(places),
        last_lsn=max(places),
        checkpoint=checkpoint,
    )


async def run(dsn: str, *scripts: str) -> None:
    async with connect(dsn) as db:
        for script in scripts:
            await db.script(script)


@pytest.fixture(scope="module")
def timeline_dsn(server: Server, _installed_template: str) -> Iterator[str]:
    """A store that the tests of one file share."""
    name = f"{_installed_template}_timeline_{secrets.token_hex(3)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name} template {_installed_template}".encode())
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)".encode())
