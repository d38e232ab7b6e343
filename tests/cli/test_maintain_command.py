"""``afterwrite maintain``: it looks first, acts when told, and its exit code says how it went."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import psycopg
from test_bad_input import afterwrite

from afterwrite.postgres import connect
from afterwrite.store.partitions import (
    Temperature,
    make_partitions,
    partition_name,
    read_partition_days,
    wanted_indexes,
)

TODAY = datetime.now(UTC).date()


def a_store_with_old_days(dsn: str) -> None:
    async def make() -> None:
        async with connect(dsn) as db:
            await make_partitions(db, days=[TODAY - timedelta(days=days) for days in (50, 40, 2)])

    asyncio.run(make())


def days_of(dsn: str) -> set[int]:
    async def read() -> set[int]:
        async with connect(dsn) as db:
            return {(TODAY - day).days for day in await read_partition_days(db)}

    return asyncio.run(read())


def test_it_says_what_is_due_and_does_it_when_told(installed_dsn: str) -> None:
    a_store_with_old_days(installed_dsn)
    words = ("maintain", "--dsn", installed_dsn, "--retention-days", "45")
    looked = afterwrite(*words, COLUMNS="80")
    assert looked.returncode == 0, looked.stderr
    assert "detach and drop" in looked.stdout
    assert "--apply" in looked.stdout
    assert max(map(len, looked.stdout.splitlines())) <= 80
    assert 50 in days_of(installed_dsn)
    done = afterwrite(*words, "--apply", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "Nothing is due." in done.stdout
    assert "1 day with 0 rows expired by retention" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert days_of(installed_dsn) & {50, 40, 2} == {40, 2}


def test_machines_get_all_of_it(installed_dsn: str) -> None:
    a_store_with_old_days(installed_dsn)
    looked = afterwrite("maintain", "--json", "--hot-days", "45", AFTERWRITE_DSN=installed_dsn)
    said = json.loads(looked.stdout)
    assert said["applied"] is False
    assert said["done"] == []
    assert {step["kind"] for step in said["due"]} == {"build index", "drop index", "freeze"}
    assert said["oldest_day"] == (TODAY - timedelta(days=50)).isoformat()
    by_name = {each["name"]: each for each in said["partitions"]}
    assert by_name[partition_name(TODAY)]["temperature"] == "hot"
    assert set(by_name["activity_default"]["indexes"]) == wanted_indexes(Temperature.HOT)


def test_what_could_not_be_done_now_is_an_error_and_retention_that_waits_a_gate(installed_dsn: str) -> None:
    a_store_with_old_days(installed_dsn)
    words = ("maintain", "--apply", "--dsn", installed_dsn, "--retention-days", "45", "--hot-days", "60")
    with psycopg.connect(installed_dsn, application_name="report") as reader:
        reader.execute("select count(*) from afterwrite.activity")
        reader.execute("set local idle_in_transaction_session_timeout = 0")
        hindered = afterwrite(*words, AFTERWRITE_LOCK_ATTEMPTS="1", AFTERWRITE_LOCK_TIMEOUT_MS="50")
        assert hindered.returncode == 1
        assert "report" in hindered.stdout
    with psycopg.connect(installed_dsn) as db:
        db.execute(
            """insert into afterwrite.checkpoint (source, slot, system_id, timeline, lsn)
               values ('other', 's', '1', 1, '0/9');
               insert into afterwrite.batch (
                   position, source, first_lsn, last_lsn, first_at, last_at, transactions, rows, rows_per_table,
                   rows_digest, digest
               )
               values (1, 'other', '0/1', '0/1', now() - interval '60 days', now(), 1, 1, '{}', sha256(''), sha256(''))
            """
        )
    waits = afterwrite(*words)
    assert waits.returncode == 3
    assert "source 'other'" in waits.stdout
    assert 50 in days_of(installed_dsn)


def test_without_a_store_it_says_how_to_get_one(dsn: str) -> None:
    refused = afterwrite("maintain", "--dsn", dsn)
    assert refused.returncode == 1
    assert "afterwrite install --apply" in refused.stderr
