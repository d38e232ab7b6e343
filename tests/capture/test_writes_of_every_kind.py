"""Ways to write that are not plain INSERT, UPDATE and DELETE, and rows that are not where one looks."""

from __future__ import annotations

import json

import psycopg
import pytest
from capture_rig import capture, changes_of, drain, install, parsed, setup_of
from psycopg import sql

from afterwrite.capture.tell import Told
from afterwrite.capture.transaction import Change, Transaction
from afterwrite.record import Activity


def laid(dsn: str, script: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script.encode())


def written(dsn: str, before: str, *work: str, tables: tuple[str, ...] = ("t",), full: bool = False) -> list[Change]:
    """The changes that these statements make, each in a transaction of its own."""
    laid(dsn, before)

    def run(connection: psycopg.Connection) -> None:
        for statement in work:
            connection.execute(statement.encode())

    return changes_of(capture(dsn, setup_of(*tables, full=tables if full else ()), run))


def told(changes: list[Change]) -> list[tuple[str, str | None]]:
    return [(f"{change.relation.table} {change.operation}", change.key) for change in changes]


def activities_of(transactions: list[Transaction]) -> list[Activity]:
    return [
        activity
        for transaction in transactions
        for activity in Told([transaction], source="main", system_id="7", timeline=1)
    ]


def test_truncate_says_what_it_was_told(dsn: str) -> None:
    laid(dsn, "create table t (id serial primary key); create table u (id int primary key references t)")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("truncate t, u")
        connection.execute("truncate t cascade")
        with connection.transaction():
            connection.execute("""select pg_logical_emit_message(true, 'afterwrite.context', '{"reason": "spring"}')""")
            connection.execute("truncate u restart identity")

    activities = activities_of(capture(dsn, setup_of("t", "u"), work))
    assert [(each.relation, each.metadata and json.loads(bytes(each.metadata))) for each in activities] == [
        ("public.t", None),
        ("public.u", None),
        ("public.t", {"truncate": ["cascade"]}),
        ("public.u", {"truncate": ["cascade"]}),
        ("public.u", {"truncate": ["restart_identity"], "reason": "spring"}),
    ]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("storage", ["external", "extended", "main"])
def test_long_values_that_do_not_change_are_filled_or_named_wherever_they_lie(
    dsn: str, storage: str, full: bool
) -> None:
    compressible, random = (
        "repeat('x', 100000)",
        "(select string_agg(md5(g::text), '') from generate_series(1, 2000) g)",
    )
    changes = written(
        dsn,
        f"""
        create table t (id int primary key, a text, b text, c text, n int);
        alter table t alter a set storage {storage}, alter b set storage {storage}, alter c set storage {storage};
        insert into t select 1, {compressible}, {random}, 'short', 0
        """,
        "update t set n = 1",
        "update t set a = 'now short', c = a",
        "update t set a = c || 'y'",
        full=full,
    )
    with psycopg.connect(dsn) as connection:
        (random_text,) = connection.execute(f"select {random}".encode()).fetchone() or ("",)
    long = "x" * 100_000
    wanted = [
        {"id": 1, "a": long, "b": random_text, "c": "short", "n": 1},
        {"id": 1, "a": "now short", "b": random_text, "c": long, "n": 1},
        {"id": 1, "a": long + "y", "b": random_text, "c": long, "n": 1},
    ]
    for change, row in zip(changes, wanted, strict=True):
        after = parsed(change.after)
        assert after == {name: value for name, value in row.items() if name not in change.unchanged}
        if full:
            assert change.unchanged == ()
        else:
            # What was compressed within its row is in the stream; what lies outside of it is not.
            assert set(change.unchanged) <= {"a", "b", "c"}
            assert "b" in change.unchanged
            assert "n" not in change.unchanged


def test_partitions_come_go_and_have_partitions_of_their_own(dsn: str) -> None:
    laid(
        dsn,
        """
        create table m (id int, at date, note text, primary key (id, at)) partition by range (at);
        create table m_1 partition of m for values from ('2026-01-01') to ('2026-02-01');
        create table later (note text, gone int, at date not null, id int not null);
        alter table later drop column gone; insert into later values ('before', '2026-02-01', 9);
        """,
    )
    setup = setup_of("m", full=["m"])
    sink, _ = install(dsn, setup)
    laid(
        dsn,
        """
        insert into m values (1, '2026-01-05', 'a');
        insert into later values ('not yet', '2026-02-02', 8);
        alter table m attach partition later for values from ('2026-02-01') to ('2026-03-01');
        insert into m values (2, '2026-02-05', 'b');
        insert into later values ('straight', '2026-02-06', 3);
        create table m_3 partition of m for values from ('2026-03-01') to ('2026-04-01') partition by range (id);
        create table m_3_x partition of m_3 for values from (0) to (5);
        create table m_3_rest partition of m_3 default;
        insert into m values (4, '2026-03-01', 'x');
        update m set id = 6, note = 'y' where id = 4;
        update m set at = '2026-02-07' where id = 6;
        """,
    )
    laid(dsn, "alter table m detach partition m_1; insert into m_1 values (5, '2026-01-06', 'gone'); delete from later")
    changes = changes_of(drain(dsn, setup, sink))
    assert {change.relation.table for change in changes} == {"m"}
    assert [(change.operation.value, change.key) for change in changes] == [
        ("insert", "1,2026-01-05"),
        ("insert", "2,2026-02-05"),
        ("insert", "3,2026-02-06"),
        ("insert", "4,2026-03-01"),
        # From one partition into another is a DELETE and an INSERT.
        ("delete", "4,2026-03-01"),
        ("insert", "6,2026-03-01"),
        ("delete", "6,2026-03-01"),
        ("insert", "6,2026-02-07"),
        *[("delete", key) for key in ("9,2026-02-01", "8,2026-02-02", "2,2026-02-05", "3,2026-02-06", "6,2026-02-07")],
    ]
    assert parsed(changes[2].after) == {"id": 3, "at": "2026-02-06", "note": "straight"}
    assert [parsed(change.after) for change in (changes[5], changes[7])] == [
        {"id": 6, "at": "2026-03-01", "note": "y"},
        {"id": 6, "at": "2026-02-07", "note": "y"},
    ]


def test_a_partition_with_an_index_as_its_identity_tells_that_indexs_columns(dsn: str) -> None:
    changes = written(
        dsn,
        """
        create table m (id int primary key, mail text not null, note text) partition by range (id);
        create table m_1 partition of m for values from (0) to (10);
        create table m_2 partition of m for values from (10) to (20);
        create table m_3 partition of m for values from (20) to (30);
        insert into m values (1, 'a', 'x'), (11, 'b', 'y'), (21, 'c', 'z');
        """,
        # `install` would refuse them, but anybody may set them later.
        "create unique index by_mail on m_2 (mail); alter table m_2 replica identity using index by_mail",
        "create unique index by_both on m_3 (id, mail); alter table m_3 replica identity using index by_both",
        "update m set id = id + 1, mail = mail || '!'",
        "update m set note = 'n'",
        "delete from m",
        tables=("m",),
    )
    assert [(parsed(change.before), change.changed) for change in changes] == [
        ({"id": 1}, None),
        ({"mail": "b"}, None),
        ({"id": 21, "mail": "c"}, None),
        *[(None, None)] * 3,
        ({"id": 2}, None),
        ({"mail": "b!"}, None),
        ({"id": 22, "mail": "c!"}, None),
    ]
    assert [change.key for change in changes] == ["2", "12", "22", "2", "12", "22", "2", None, "22"]


def test_two_phase_transactions_bring_their_context_or_nothing(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    with psycopg.connect(dsn, autocommit=True) as connection:
        names = [f"{connection.info.dbname}_{number}" for number in range(2)]
        for number, name in enumerate(names):
            connection.execute("begin")
            connection.execute("insert into t values (%s)", [number])
            connection.execute("savepoint s")
            connection.execute("""select pg_logical_emit_message(true, 'afterwrite.context', '{"actor_id": "ann"}')""")
            connection.execute(sql.SQL("prepare transaction {}").format(name))
        connection.execute("insert into t values (5)")
        connection.execute(sql.SQL("rollback prepared {}").format(names[0]))
        connection.execute(sql.SQL("commit prepared {}").format(names[1]))
        connection.execute("insert into t values (6)")
    activities = activities_of(drain(dsn, setup, sink))
    assert [(each.entity_id, each.actor_id) for each in activities] == [("5", None), ("1", "ann"), ("6", None)]


def test_many_savepoints_some_rolled_back(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key, a int)")

    def work(connection: psycopg.Connection) -> None:
        with connection.transaction():
            for number in range(200):  # more than a backend keeps at hand (64)
                with connection.transaction(force_rollback=number % 3 == 0):
                    connection.execute("insert into t values (%s, 0)", [number])
                    with connection.transaction(force_rollback=number % 5 == 0):
                        connection.execute("update t set a = 1 where id = %s", [number])

    (transaction,) = capture(dsn, setup_of("t"), work)
    expected = []
    for number in range(200):
        if number % 3:
            expected.append(("insert", str(number)))
            if number % 5:
                expected.append(("update", str(number)))
    assert [(change.operation.value, change.key) for change in transaction.changes] == expected
    assert [change.ordinal for change in transaction.changes] == list(range(len(expected)))


def test_what_one_statement_does_to_several_tables(dsn: str) -> None:
    changes = written(
        dsn,
        """
        create table t (id int primary key, a int);
        create table u (id int primary key, t int references t on delete cascade on update cascade);
        create table v (id int primary key, u int references u on delete set null);
        insert into t values (1, 0); insert into u values (10, 1); insert into v values (100, 10);
        """,
        "with gone as (delete from t returning id), come as (insert into t select id + 1, 5 from gone returning id)"
        " insert into u select id * 10, id from come",
        "update t set id = 7",
        tables=("t", "u", "v"),
    )
    found = told(changes)
    assert sorted(found[:5]) == [
        ("t delete", "1"),
        ("t insert", "2"),
        ("u delete", "10"),
        ("u insert", "20"),
        ("v update", "100"),
    ]
    # The cascade's work comes after what it follows.
    assert found.index(("t delete", "1")) < found.index(("u delete", "10")) < found.index(("v update", "100"))
    assert found[5:] == [("t update", "7"), ("u update", "20")]


def test_triggers_of_the_user_are_seen_by_what_they_made_of_the_row(dsn: str) -> None:
    changes = written(
        dsn,
        """
        create table t (id int primary key, a text, at int default 0);
        create function change() returns trigger language plpgsql as $$
        begin
            if new.a = 'skip' then return null; end if;
            new.a = upper(new.a); new.at = new.at + 1;
            return new;
        end $$;
        create trigger change before insert or update on t for each row execute function change();
        """,
        "insert into t values (1, 'x'), (2, 'skip')",
        "update t set a = 'y'",
        "update t set a = 'skip'",
        "set session_replication_role = replica",
        "update t set a = 'z'",
        "reset session_replication_role",
        full=True,
    )
    assert [(parsed(change.before), parsed(change.after)) for change in changes] == [
        (None, {"id": 1, "a": "X", "at": 1}),
        ({"id": 1, "a": "X", "at": 1}, {"id": 1, "a": "Y", "at": 2}),
        ({"id": 1, "a": "Y", "at": 2}, {"id": 1, "a": "z", "at": 2}),
    ]


def test_generated_columns_are_told_where_the_server_publishes_them(dsn: str) -> None:
    changes = written(
        dsn,
        "create table t (id int primary key, a int, twice int generated always as (a * 2) stored, b text default 'd')",
        "insert into t values (1, 5)",
        "update t set a = 6",
    )
    with psycopg.connect(dsn) as connection:
        published = connection.info.server_version >= 180000
    rows = [parsed(change.after) for change in changes]
    assert rows == [
        {"id": 1, "a": a, **({"twice": 2 * a} if published else {}), "b": "d"} for a in (5, 6)
    ]  # fmt: skip
    assert list(rows[0] or {}) == (["id", "a", "twice", "b"] if published else ["id", "a", "b"])


def test_a_table_that_becomes_logged_is_told_from_then_on(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key); create unlogged table u (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    laid(
        dsn,
        """
        insert into u values (1);
        alter table u set logged;
        insert into u values (2);
        alter publication afterwrite add table u;
        insert into u values (3);
        """,
    )
    laid(dsn, "insert into u values (4)")
    found = told(changes_of(drain(dsn, setup, sink)))
    assert found[-1] == ("u insert", "4")
    assert ("u insert", "1") not in found


def test_a_table_that_inherits_is_told_as_itself_and_when_it_is_published(dsn: str) -> None:
    changes = written(
        dsn,
        "create table t (id int primary key, a text);"
        "create table child (more int, primary key (id)) inherits (t);"
        "create table silent (primary key (id)) inherits (t)",
        "insert into t values (1, 'x')",
        "insert into child values (2, 'y', 5)",
        "insert into silent values (3, 'z')",
        "update t set a = a || '!'",
        tables=("t", "child"),
    )
    found = [(change.relation.table, change.operation.value, parsed(change.after)) for change in changes]
    assert found == [
        ("t", "insert", {"id": 1, "a": "x"}),
        ("child", "insert", {"id": 2, "a": "y", "more": 5}),
        ("t", "update", {"id": 1, "a": "x!"}),
        ("child", "update", {"id": 2, "a": "y!", "more": 5}),
    ]


def test_merge_does_all_that_it_may_do(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key, a int); insert into t values (1, 1), (2, 2), (3, 3)")

    def work(connection: psycopg.Connection) -> None:
        if connection.info.server_version < 150000:
            pytest.skip("MERGE came with PostgreSQL 15")
        connection.execute(
            "merge into t using (values (1, 10), (2, -1), (3, 3), (4, 4)) s (id, a) on t.id = s.id"
            " when matched and s.a < 0 then delete when matched and t.a <> s.a then update set a = s.a"
            " when matched then do nothing when not matched then insert values (s.id, s.a)"
        )

    assert sorted(told(changes_of(capture(dsn, setup_of("t"), work)))) == [
        ("t delete", "2"),
        ("t insert", "4"),
        ("t update", "1"),
    ]


def test_copy_in_every_form_brings_every_value(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key, a text, b bytea, c int[])")
    rows = [(1, "tab\tline\nback\\slash", b"\x00\xff", [1, None]), (2, "", b"", []), (3, None, None, None)]

    def work(connection: psycopg.Connection) -> None:
        with connection.cursor() as cursor:
            with cursor.copy("copy t from stdin") as copy:
                for row in rows:
                    copy.write_row(row)
            with cursor.copy("copy t from stdin (format binary)") as copy:
                copy.set_types(["int4", "text", "bytea", "int4[]"])
                for id, *rest in rows:
                    copy.write_row((id + 10, *rest))
            with cursor.copy("copy t (id, a) from stdin (format csv)") as copy:
                copy.write('21,"a ""b"", c"\n22,\n23,""\n')

    changes = changes_of(capture(dsn, setup_of("t"), work))
    with psycopg.connect(dsn) as connection:
        expected = [row for (row,) in connection.execute("select to_jsonb(t) from t order by id")]
    assert [parsed(change.after) for change in changes] == expected
