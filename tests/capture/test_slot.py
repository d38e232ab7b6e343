"""Laying publications, slot and checkpoint: in the right order, again and again, refused where it would harm."""

from __future__ import annotations

import asyncio
import secrets

import msgspec
import psycopg
import pytest
from capture_rig import MemorySink, changes_of, drain, install, setup_of

from afterwrite.capture.preflight import CaptureSetup, SlotState, preflight, read_slot, survey
from afterwrite.capture.slot import (
    Gap,
    StepKind,
    System,
    check_continuity,
    decide,
    examine,
    prepare,
    read_system,
    remove,
)
from afterwrite.errors import Finding, Refused, Severity
from afterwrite.postgres import LockTimeout, connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.record import Checkpoint, Lsn


def run_sql(dsn: str, script: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(script.encode())
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


async def prepared_by(dsn: str, setup: CaptureSetup) -> None:
    async with connect(dsn) as database:
        await prepare(database, MemorySink(), setup)


def findings(dsn: str, setup: CaptureSetup) -> list[Finding]:
    async def look() -> list[Finding]:
        async with connect(dsn) as database:
            return await preflight(database, setup)

    return asyncio.run(look())


def errors(dsn: str, setup: CaptureSetup) -> dict[str, Finding]:
    return {finding.rule: finding for finding in findings(dsn, setup) if finding.severity is Severity.ERROR}


def test_installing_lays_everything_once(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key); create table log (what text)")
    setup = setup_of("t", legacy=["log"], full=["t"])
    sink, first = install(dsn, setup)
    assert [step.kind for step in first.steps] == [
        StepKind.IDENTITY,
        StepKind.PUBLICATION,
        StepKind.PUBLICATION,
        StepKind.SLOT,
        StepKind.CHECKPOINT,
    ]
    assert first.steps[0].undo == "alter table public.t replica identity default"
    assert first.published == [("public", "t")]
    assert run_sql(dsn, "select pubname, pubinsert, pubupdate, pubviaroot from pg_publication order by 1") == [
        ("afterwrite", True, True, True),
        ("afterwrite_legacy", True, False, True),
    ]
    ((confirmed,),) = run_sql(
        dsn, f"select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{setup.slot}'"
    )
    assert sink.checkpoint is not None
    assert str(sink.checkpoint.lsn) == confirmed
    assert (sink.checkpoint.source, sink.checkpoint.slot, sink.checkpoint.timeline) == ("main", setup.slot, 1)
    _, second = install(dsn, setup, sink)
    assert second.steps == []
    assert second.checkpoint == sink.checkpoint
    assert findings(dsn, setup) == []


def test_looking_first_says_the_steps_and_changes_nothing(dsn: str) -> None:
    run_sql(dsn, 'create table "Odd name" (id int primary key)')
    setup = setup_of("Odd name", full=["Odd name"])

    async def look() -> list[str | None]:
        async with connect(dsn) as database:
            return [step.sql for step in decide(await survey(database, setup), setup, None)]

    assert asyncio.run(look())[0] == 'alter table public."Odd name" replica identity full'
    assert run_sql(dsn, "select count(*) from pg_publication") == [(0,)]
    install(dsn, setup)


def test_a_table_added_later_is_captured_from_then_on(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key); create table u (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    run_sql(dsn, "insert into u values (1)")
    more = msgspec.structs.replace(setup, tables=(("public", "t"), ("public", "u")))
    _, prepared = install(dsn, more, sink)
    assert [step.sql for step in prepared.steps] == [
        "lock table public.u in share mode; alter publication afterwrite add table only public.u"
    ]
    assert prepared.published == [("public", "u")]
    assert prepared.published_at is not None
    run_sql(dsn, "insert into u values (2)")
    assert [change.key for change in changes_of(drain(dsn, more, sink))] == ["2"]


def test_every_partition_gets_the_identity_and_gives_its_own_back(dsn: str) -> None:
    run_sql(
        dsn,
        """
        create table m (id int primary key) partition by range (id);
        create table m_1 partition of m for values from (0) to (10) partition by range (id);
        create table m_11 partition of m_1 for values from (0) to (5);
        create unique index m_11_by on m_11 (id); alter table m_11 replica identity using index m_11_by;
        """,
    )
    setup = setup_of("m", full=["m"])
    _, prepared = install(dsn, setup)
    identities = "select relname, relreplident from pg_class where relname ~ '^m(_1+)?$' order by 1"
    assert run_sql(dsn, identities) == [("m", "f"), ("m_1", "f"), ("m_11", "f")]

    async def take_back() -> None:
        async with connect(dsn) as database:
            await remove(database, setup, undo=prepared.steps)

    asyncio.run(take_back())
    assert run_sql(dsn, identities) == [("m", "d"), ("m_1", "d"), ("m_11", "i")]
    assert run_sql(dsn, "select count(*) from pg_publication") == [(0,)]
    assert run_sql(dsn, f"select count(*) from pg_replication_slots where slot_name = '{setup.slot}'") == [(0,)]


def test_an_interrupted_installation_is_adopted_without_loss(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key)")
    setup = setup_of("t")

    class DyingSink(MemorySink):
        async def write(self, batch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(dsn, setup, DyingSink())
    run_sql(dsn, "insert into t values (1)")
    sink, prepared = install(dsn, setup)
    assert [step.kind for step in prepared.steps] == [StepKind.CHECKPOINT]
    assert [change.key for change in changes_of(drain(dsn, setup, sink))] == ["1"]


def test_a_slot_older_than_its_publication_is_replaced(dsn: str) -> None:
    setup = setup_of("t")
    run_sql(dsn, "create table t (id int primary key)")
    run_sql(dsn, f"select pg_create_logical_replication_slot('{setup.slot}', 'pgoutput')")
    run_sql(dsn, "insert into t values (1)")
    sink, prepared = install(dsn, setup)
    assert [step.kind for step in prepared.steps][2:] == [StepKind.DROP_SLOT, StepKind.SLOT, StepKind.CHECKPOINT]
    run_sql(dsn, "insert into t values (2)")
    assert [change.key for change in changes_of(drain(dsn, setup, sink))] == ["2"]


def test_a_slot_that_waits_for_a_long_transaction_names_it(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterwrite.capture.slot._SLOT_LOCK_TIMEOUT_MS", 300)
    run_sql(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    with psycopg.connect(dsn, application_name="a long import") as writer:
        writer.execute("insert into t values (1)")
        run_sql(dsn, "begin; insert into t values (7); prepare transaction 'also';")
        # The publication waits for nobody, the slot does.
        with pytest.raises(
            LockTimeout, match=r"waits for transactions that are not over: pid .*a long import.*prepared transaction"
        ):
            install(dsn, setup)
        assert run_sql(dsn, f"select count(*) from pg_replication_slots where slot_name = '{setup.slot}'") == [(0,)]
        run_sql(dsn, "rollback prepared 'also'")
    sink, prepared = install(dsn, setup)
    assert [step.kind for step in prepared.steps] == [StepKind.SLOT, StepKind.CHECKPOINT]
    run_sql(dsn, "insert into t values (2)")
    assert [change.key for change in changes_of(drain(dsn, setup, sink))] == ["2"]


def test_a_lost_slot_is_refused_until_the_gap_is_accepted(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    assert sink.checkpoint is not None
    before = sink.checkpoint.lsn
    run_sql(dsn, f"select pg_drop_replication_slot('{setup.slot}'); insert into t values (1)")
    with pytest.raises(Refused, match=f"slot {setup.slot} is gone: every change committed after {before}") as refused:
        install(dsn, setup, sink)
    assert "--accept-gap" in (refused.value.remedy or "")

    async def accept() -> tuple[Gap, ...]:
        async with connect(dsn) as database:
            return (await prepare(database, sink, setup, accept_gap=True)).gaps

    (gap,) = asyncio.run(accept())
    assert (gap.after, gap.until) == (before, sink.checkpoint.lsn)
    assert f"slot {setup.slot} is gone" in gap.reason
    run_sql(dsn, "insert into t values (2)")
    assert [change.key for change in changes_of(drain(dsn, setup, sink))] == ["2"]


def test_a_publication_dropped_under_the_slot_is_refused(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    run_sql(dsn, "drop publication afterwrite")
    with pytest.raises(Refused, match="publication afterwrite was dropped under slot"):
        install(dsn, setup, sink)


def test_a_publication_with_other_settings_is_set_right(dsn: str) -> None:
    run_sql(dsn, "create table t (id int primary key); create publication afterwrite with (publish = 'insert')")
    _, prepared = install(dsn, setup_of("t"))
    assert (prepared.steps[0].sql or "").startswith("alter publication afterwrite set (publish = 'insert, update")
    assert run_sql(dsn, "select pubupdate, pubdelete, pubtruncate, pubviaroot from pg_publication limit 1") == [
        (True, True, True, True)
    ]


CONTINUED = Checkpoint(source="main", slot="s", system_id="7", timeline=1, lsn=Lsn(100))
SLOT = SlotState(
    name="s", plugin="pgoutput", database="d", here=True, active_pid=None, restart_lsn="0/10",
    confirmed_flush_lsn=str(Lsn(100)), wal_status="reserved", invalidation=None,
)  # fmt: skip


def test_a_slot_at_or_behind_the_checkpoint_continues() -> None:
    check_continuity(CONTINUED, SLOT, System(system_id="7", timeline=1))
    behind = msgspec.structs.replace(SLOT, confirmed_flush_lsn=str(Lsn(90)))
    check_continuity(CONTINUED, behind, System(system_id="7", timeline=1))


@pytest.mark.parametrize(
    ("slot", "system", "said"),
    [
        (None, System(system_id="7", timeline=1), "slot s is gone"),
        (SLOT, System(system_id="8", timeline=1), "cluster 7 up to 0/64, but this is cluster 8"),
        (SLOT, System(system_id="7", timeline=2), "timeline 1 up to 0/64, but the cluster now writes timeline 2"),
        (
            msgspec.structs.replace(SLOT, confirmed_flush_lsn=str(Lsn(101))),
            System(system_id="7", timeline=1),
            "ahead of the store: it was confirmed up to 0/65, the store ends at 0/64",
        ),
        (msgspec.structs.replace(SLOT, wal_status="lost"), System(system_id="7", timeline=1), "has lost its WAL"),
        (msgspec.structs.replace(SLOT, plugin="test_decoding"), System(system_id="7", timeline=1), "something else"),
        (SLOT, System(system_id="7", timeline=1, wal="0/63"), "up to 0/64, but its WAL ends at 0/63: it was set back"),
    ],
)
def test_what_cannot_be_continued_is_refused_with_what_is_lost(
    slot: SlotState | None, system: System, said: str
) -> None:
    with pytest.raises(Refused, match=said) as refused:
        check_continuity(CONTINUED, slot, system)
    assert refused.value.remedy


def test_tables_that_would_harm_or_cannot_be_captured_are_found(dsn: str) -> None:
    run_sql(
        dsn,
        """
        create table bare (a int);
        create table nothing (id int primary key); alter table nothing replica identity nothing;
        create unlogged table unlogged (id int primary key);
        create view seen as select 1 as id;
        create table listed (id int primary key, a int);
        create table fine (id int primary key);
        create schema afterwrite; create table afterwrite.activity (id int primary key);
        """,
    )
    names = ["bare", "nothing", "unlogged", "seen", "absent", "listed", "fine", "afterwrite.activity"]
    found = [
        (finding.rule, finding.where) for finding in findings(dsn, setup_of(*names)) if finding.severity == "error"
    ]
    assert found == [
        ("table.ours", "afterwrite.activity"),
        ("table.identity", "public.bare"),
        ("table.identity", "public.nothing"),
        ("table.unlogged", "public.unlogged"),
        ("table.kind", "public.seen"),
        ("table.missing", "public.absent"),
    ]
    finding = errors(dsn, setup_of("bare"))["table.identity"]
    assert "UPDATEs and DELETEs would fail once published" in finding.text
    assert "ALTER TABLE public.bare REPLICA IDENTITY FULL" in (finding.remedy or "")
    with pytest.raises(Refused, match=r"public\.bare has no replica identity"):
        install(dsn, setup_of("bare", "nothing"))
    assert run_sql(dsn, "select count(*) from pg_publication") == [(0,)]
    assert errors(dsn, setup_of("bare", "nothing", full=["bare", "nothing"])) == {}


def test_a_column_list_with_full_identity_is_found(dsn: str, server: Server) -> None:
    if server.version < 15:
        pytest.skip("column lists came with PostgreSQL 15")
    run_sql(dsn, "create table t (id int primary key, a int); create publication theirs for table t (id)")
    assert errors(dsn, setup_of("t")) == {}
    assert (
        "publication theirs lists columns of public.t"
        in errors(dsn, setup_of("t", full=["t"]))["table.column_list"].text
    )
    run_sql(dsn, "alter table t replica identity full")
    with pytest.raises(psycopg.Error, match="cannot update table"):
        run_sql(dsn, "insert into t values (1, 1); update t set a = 2")


def test_generated_columns_are_published_where_the_server_can(dsn: str, server: Server) -> None:
    run_sql(dsn, "create table t (id int primary key, a int, b int generated always as (a * 2) stored)")
    setup = setup_of("t", full=["t"])
    sink, _ = install(dsn, setup)
    run_sql(dsn, "insert into t values (1, 2); update t set a = 3; delete from t")
    changes = changes_of(drain(dsn, setup, sink))
    if server.version >= 18:
        assert changes[1].after == b'{"id":1,"a":3,"b":6}'
        assert changes[1].changed == ("a", "b")
    else:
        assert changes[1].after == b'{"id":1,"a":3}'
        assert [finding.rule for finding in findings(dsn, setup)] == ["table.generated_columns"]


def test_virtual_columns_with_full_identity_are_refused(dsn: str, server: Server) -> None:
    if server.version < 18:
        pytest.skip("virtual columns came with PostgreSQL 18")
    run_sql(dsn, "create table t (id int primary key, a int, b int generated always as (a * 2) virtual)")
    assert "table.virtual_columns" in errors(dsn, setup_of("t", full=["t"]))
    assert [finding.rule for finding in findings(dsn, setup_of("t"))] == ["table.generated_columns"]


def test_a_role_without_rights_is_told_which(dsn: str) -> None:
    role = f"writer_{secrets.token_hex(3)}"
    run_sql(dsn, f"create table t (id int primary key); create role {role} login")
    try:
        setup = setup_of("t")
        found = errors(dsn.replace("user=postgres", f"user={role}"), setup)
        assert set(found) == {"role.replication", "role.create", "table.owner"}
        assert found["role.replication"].remedy == f"as a superuser, run ALTER ROLE {role} REPLICATION"
        assert found["table.owner"].remedy == f"connect as postgres, or run GRANT postgres TO {role}"
        with pytest.raises(Refused, match=f"role {role} may not read the WAL"):
            asyncio.run(prepared_by(dsn.replace("user=postgres", f"user={role}"), setup))
    finally:
        run_sql(dsn, f"drop role {role}")


def test_a_server_that_is_not_set_up_for_it_is_told_what_to_set() -> None:
    with embedded_server(
        settings={"fsync": "off", "wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "0"}
    ) as server:
        run_sql(
            server.dsn(), "create table t (id int primary key); select pg_create_physical_replication_slot('theirs')"
        )
        found = errors(server.dsn(), setup_of("t"))
        assert set(found) == {"server.wal_level", "server.slots", "server.senders"}
        assert found["server.wal_level"].remedy == "run ALTER SYSTEM SET wal_level = logical, then restart the server"


def test_a_slot_of_something_else_is_left_alone(dsn: str) -> None:
    setup = setup_of("t")
    run_sql(
        dsn,
        f"create table t (id int primary key); select pg_create_physical_replication_slot('{setup.slot}')",
    )
    try:
        with pytest.raises(Refused, match=f"slot {setup.slot} is not ours"):
            install(dsn, setup)
    finally:
        run_sql(dsn, f"select pg_drop_replication_slot('{setup.slot}')")


def test_an_installation_is_examined_with_its_checkpoint(dsn: str) -> None:
    run_sql(
        dsn,
        "create table m (id int primary key) partition by range (id);"
        "create table m_1 partition of m for values from (0) to (10); create table u (id int primary key)",
    )
    setup = setup_of("m", full=["m"])
    sink, _ = install(dsn, setup)
    more = msgspec.structs.replace(setup, tables=(("public", "m"), ("public", "u")))

    def found() -> list[tuple[str, str]]:
        async def look() -> list[Finding]:
            async with connect(dsn) as database:
                return await examine(database, more, sink.checkpoint)

        return [(finding.rule, finding.where) for finding in asyncio.run(look())]

    run_sql(dsn, "create table m_2 partition of m for values from (10) to (20)")
    assert found() == [("publication.lacks", "public.u"), ("table.not_full", "public.m_2")]
    install(dsn, more, sink)
    assert found() == []
    run_sql(dsn, f"select pg_drop_replication_slot('{setup.slot}')")
    assert found() == [("slot.continuity", setup.slot)]


def test_an_identity_without_the_key_is_found(dsn: str) -> None:
    run_sql(
        dsn,
        "create table t (id int primary key, mail text not null);"
        "create unique index t_mail on t (mail); alter table t replica identity using index t_mail",
    )
    assert [finding.rule for finding in findings(dsn, setup_of("t"))] == ["table.identity_lacks_key"]


def test_reading_the_system_and_the_slot(dsn: str) -> None:
    async def look() -> tuple[System, SlotState | None]:
        async with connect(dsn) as database:
            return await read_system(database), await read_slot(database, "nobody")

    system, slot = asyncio.run(look())
    ((system_id,),) = run_sql(dsn, "select system_identifier::text from pg_control_system()")
    assert (system.system_id, system.timeline, slot) == (system_id, 1, None)
