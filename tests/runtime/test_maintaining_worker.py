"""The worker looks after the store it writes; what goes wrong with that does not stop it."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from afterwrite import runtime
from afterwrite.errors import DatabaseError
from afterwrite.runtime import MaintainStatus, RuntimeStatus
from afterwrite.settings import Settings
from afterwrite.store.partitions import partition_name

OLD = datetime.now(UTC).date() - timedelta(days=31)
AHEAD = datetime.now(UTC).date() + timedelta(days=7)

_APPLICATION = """
    create table account (id int primary key, name text);
    create table account_log (id bigint generated always as identity, old jsonb, new jsonb);
    create function log_account() returns trigger language plpgsql as $$
    begin
        insert into account_log (old, new) values (to_jsonb(old), to_jsonb(new));
        return null;
    end $$;
    create trigger log_account after insert or update or delete on account for each row execute function log_account();
"""


def test_capture_maintains_the_store_beside_its_work(dsn: str) -> None:
    settings = Settings(dsn=dsn, slot=f"maintaining_{abs(hash(dsn)) % 10**9}", maintain_seconds=1)

    async def scenario() -> RuntimeStatus:
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute(_APPLICATION)
            async with runtime.source_and_store(settings) as (source, store):
                seen = await runtime.look_at_installation(settings, source, store)
                await runtime.install(settings, seen, source, store)
            db.execute(f"drop table afterwrite.{partition_name(AHEAD)}")
            db.execute(
                f"""create table afterwrite.{partition_name(OLD)} partition of afterwrite.activity
                    for values from ('{OLD} 00:00+00') to ('{OLD + timedelta(days=1)} 00:00+00')"""
            )
        stop = asyncio.Event()
        last: list[RuntimeStatus] = []

        def tell(status: RuntimeStatus) -> None:
            last[:] = [status]
            if status.maintenance and status.capture.rows >= 100:
                stop.set()

        async def write() -> None:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as db:
                for number in range(100):
                    await db.execute("insert into account values (%s, 'a')", [number])

        async with asyncio.timeout(30):
            await asyncio.gather(runtime.run_capture(settings, stop=stop, on_status=tell), write())
        return last[0]

    status = asyncio.run(scenario())
    assert status.maintenance is not None
    assert status.maintenance.trouble is None
    with psycopg.connect(dsn) as db:
        assert db.execute("select to_regclass(%s)", [f"afterwrite.{partition_name(AHEAD)}"]).fetchone() != (None,)
        (indexes,) = db.execute(
            "select array_agg(indexrelid::regclass::text) from pg_index where indrelid = %s::regclass",
            [f"afterwrite.{partition_name(OLD)}"],
        ).fetchone() or ([],)
        assert sorted(name.removeprefix(f"afterwrite.{partition_name(OLD)}_") for name in indexes) == [
            "cause",
            "entity",
            "gone",
            "pkey",
            "time",
        ]
        assert db.execute("select source from afterwrite.feed_reader").fetchall() == [("main",)]


def test_trouble_with_maintenance_is_told_once_and_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    troubles = iter([DatabaseError("no room left"), DatabaseError("no room left"), ValueError("a defect")])

    async def broken(settings: Settings) -> None:
        raise next(troubles, asyncio.CancelledError())

    async def at_once(seconds: float) -> None:
        assert 9 <= seconds <= 11

    monkeypatch.setattr(runtime, "maintain_store", broken)
    monkeypatch.setattr(runtime.asyncio, "sleep", at_once)
    told: list[MaintainStatus] = []
    begun = asyncio.Event()
    begun.set()
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        asyncio.run(runtime._maintain(Settings(maintain_seconds=10), begun, told.append))
    assert [status.trouble for status in told] == ["no room left", "no room left", "a defect"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "WARNING"]
