"""Everything that doctor and install refuse or warn of: each has its rule, says what was found, and what mends it."""

from __future__ import annotations

import asyncio

import msgspec
import psycopg
import pytest
from capture_rig import MemorySink, install, setup_of

from afterwrite.capture.backlog import Pace
from afterwrite.capture.preflight import CaptureSetup, Survey, judge, judge_limit, survey
from afterwrite.capture.slot import examine
from afterwrite.capture.worker import Source, Worker
from afterwrite.errors import Finding, Refused, Severity
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.record import Checkpoint


def run_sql(dsn: str, script: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(script.encode())
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def seen(dsn: str, setup: CaptureSetup) -> Survey:
    async def look() -> Survey:
        async with connect(dsn) as database:
            return await survey(database, setup)

    return asyncio.run(look())


def examined(dsn: str, setup: CaptureSetup, checkpoint: Checkpoint | None, store: str = "memory") -> list[Finding]:
    async def look() -> list[Finding]:
        async with connect(dsn) as database:
            return await examine(database, setup, checkpoint, store)

    return asyncio.run(look())


TABLES = [
    # what is wrong with table t before anything is published · rule · what is said · what mends it
    ("create table t (a int)", "table.identity", "no replica identity: its UPDATEs and", "REPLICA IDENTITY FULL"),
    (
        "create table t (id int primary key); alter table t replica identity nothing",
        "table.identity",
        "no replica identity",
        "ALTER TABLE public.t REPLICA IDENTITY FULL, or add a primary key",
    ),
    ("create unlogged table t (id int primary key)", "table.unlogged", "is unlogged", "SET LOGGED, or leave it out"),
    ("create view t as select 1 as id", "table.kind", "is a view", "leave it out"),
    (
        "create foreign data wrapper w; create server s foreign data wrapper w;"
        " create foreign table t (id int) server s",
        "table.kind",
        "is a foreign table",
        "leave it out",
    ),
    ("select 1", "table.missing", "there is no table public.t", "check its name and schema"),
    (
        "create table t (id int primary key); create publication afterwrite for all tables",
        "publication.all_tables",
        "would capture our own store",
        "DROP PUBLICATION afterwrite",
    ),
    (
        "create table t (id int primary key); create schema afterwrite; create table afterwrite.batch (id int);"
        " create publication afterwrite for table t, afterwrite.batch",
        "publication.ours",
        "lists tables of the store: batch",
        "ALTER PUBLICATION afterwrite DROP TABLE afterwrite.batch",
    ),
]


@pytest.mark.parametrize(("script", "rule", "text", "remedy"), TABLES, ids=[f"{each[1]} {each[2]}" for each in TABLES])
def test_what_must_not_be_published_is_found_before_it_is(
    dsn: str, script: str, rule: str, text: str, remedy: str
) -> None:
    run_sql(dsn, script)
    found = [each for each in judge(seen(dsn, setup_of("t")), setup_of("t")) if each.severity is Severity.ERROR]
    assert [each.rule for each in found] == [rule]
    assert text in found[0].text
    assert remedy in (found[0].remedy or "")


def test_a_column_list_of_somebody_elses_with_full_identity_is_found(dsn: str, server: Server) -> None:
    if server.version < 15:
        pytest.skip("column lists came with PostgreSQL 15")
    run_sql(dsn, "create table t (id int primary key, a int); create publication theirs for table t (id)")
    setup = setup_of("t", full=["t"])
    (found,) = judge(seen(dsn, setup), setup)
    assert (found.rule, found.severity) == ("table.column_list", Severity.ERROR)
    assert "publish all its columns there" in (found.remedy or "")


DEEDS = [
    # what is done under an installation · the rule that doctor names · what the worker refuses with (None: it goes on)
    ("select pg_drop_replication_slot('{slot}')", "slot.continuity", "slot {slot} is gone"),
    (
        "insert into t values (9); select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())",
        "slot.continuity",
        "is ahead of the store",
    ),
    ("alter publication afterwrite drop table t", "publication.departed", "was taken out of publication"),
    ("alter publication afterwrite add table afterwrite.store", "publication.ours", "without end"),
    ("alter table t replica identity nothing", "table.identity", None),
    ("drop table t; create table t (id int primary key)", "table.replaced", None),
    ("update afterwrite.capture set store = 'other'", "slot.owner", "belongs to another store"),
    ("delete from afterwrite.capture", None, "was not set up here to its end"),
]


@pytest.mark.parametrize(("script", "rule", "refusal"), DEEDS, ids=[f"{each[1]} {each[0][:40]}" for each in DEEDS])
def test_what_is_done_under_an_installation_is_found_and_refused_at_the_start(
    dsn: str, script: str, rule: str | None, refusal: str | None
) -> None:
    run_sql(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    run_sql(dsn, script.format(slot=setup.slot))
    found = {each.rule: each for each in examined(dsn, setup, sink.checkpoint)}
    assert (rule in found) is (rule is not None)
    assert all(each.remedy for each in found.values())
    worker, error = started(dsn, setup, sink)
    if refusal is None:
        assert error is None
        assert rule in {each.rule for each in worker.status().findings}
    else:
        assert error is not None
        assert refusal.format(slot=setup.slot) in str(error)
        assert error.remedy


def started(dsn: str, setup: CaptureSetup, sink: MemorySink) -> tuple[Worker, Refused | None]:
    async def run() -> tuple[Worker, Refused | None]:
        source = Source(dsn=dsn, name="main", slot=setup.slot)
        worker = Worker(source, sink.opened, pace=Pace(pulse_seconds=0.05))
        task = asyncio.create_task(worker.run())
        done, _ = await asyncio.wait({task}, timeout=1)
        if not done:
            worker.stop()
        try:
            await task
        except Refused as error:
            return worker, error
        return worker, None

    return asyncio.run(run())


CHECKPOINTS = [
    ({"system_id": "7"}, "the store follows cluster 7"),
    ({"timeline": 7}, "the store follows timeline 7"),
]


@pytest.mark.parametrize(("other", "said"), CHECKPOINTS)
def test_another_cluster_or_timeline_is_found_and_refused(dsn: str, other: dict[str, object], said: str) -> None:
    run_sql(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    assert sink.checkpoint is not None
    sink.checkpoint = msgspec.structs.replace(sink.checkpoint, **other)
    (found,) = examined(dsn, setup, sink.checkpoint)
    assert found.rule == "slot.continuity"
    assert said in found.text
    _, error = started(dsn, setup, sink)
    assert said in str(error)


PROVIDERS = {
    "self": ("ALTER SYSTEM SET wal_level = logical", "ALTER ROLE {} REPLICATION", "ALTER SYSTEM SET max_slot_wal"),
    "rds": ("rds.logical_replication = 1", "GRANT rds_replication TO {}", "parameter group"),
    "cloudsql": ("cloudsql.logical_decoding = on", "ALTER USER {} WITH REPLICATION", "flag max_slot_wal_keep_size"),
    "azure": ("wal_level to LOGICAL in the portal", "ALTER ROLE {} WITH REPLICATION", "in the portal"),
    "supabase": ("wal_level = logical", "not through the pooler", "supabase postgres-config"),
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_providers_rights_and_settings_are_said_in_its_own_words(dsn: str, provider: str) -> None:
    run_sql(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    found = seen(dsn, setup)
    server = msgspec.structs.replace(
        found.server,
        provider=provider,
        role="shop app",
        wal_level="replica",
        may_replicate=False,
        may_publish=False,
        may_identify=False,
        may_monitor=False,
    )
    told = {each.rule: each for each in judge(msgspec.structs.replace(found, server=server), setup)}
    level, replication, limit = PROVIDERS[provider]
    assert level in (told["server.wal_level"].remedy or "")
    words = replication.format('"shop app"')
    assert words in (told["role.replication"].remedy or "") or "pooler" in (told["role.replication"].remedy or "")
    assert told["role.create"].remedy is not None
    assert "GRANT CREATE ON DATABASE" in told["role.create"].remedy
    assert 'pg_control_system() TO "shop app"' in (told["role.identify"].remedy or "")
    assert told["role.monitor"].severity is Severity.INFO
    (unlimited,) = judge_limit(msgspec.structs.replace(server, slot_keeps_bytes=None), "s", 8 << 30)
    assert limit in (unlimited.remedy or "")
    assert judge_limit(msgspec.structs.replace(server, slot_keeps_bytes=1 << 30), "s", 8 << 30) == []
