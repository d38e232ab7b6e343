"""Every way in which a row can change, as the stream tells it and as we keep it."""

from __future__ import annotations

import json

import psycopg
import pytest
from capture_rig import capture, changes_of, drain, install, parsed, setup_of

from afterwrite.capture.tell import Told
from afterwrite.capture.transaction import Transaction
from afterwrite.record import Kind, Level, Operation

LONG = "md5(random()::text) || (select string_agg(md5(g::text), '') from generate_series(1, 400) g)"


def laid(dsn: str, script: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script)


def activities_of(transactions: list[Transaction]) -> list:
    return [
        activity
        for transaction in transactions
        for activity in Told([transaction], source="main", system_id="7", timeline=1)
    ]


def test_insert_update_and_delete_under_the_default_identity(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key, a text, b int)")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1, 'x', 2)")
        connection.execute("update t set b = 3")
        connection.execute("update t set id = 9, b = 4")
        connection.execute("delete from t")

    inserted, updated, moved, deleted = changes_of(capture(dsn, setup_of("t"), work))
    assert (inserted.operation, inserted.key, inserted.before) == (Operation.INSERT, "1", None)
    assert parsed(inserted.after) == {"id": 1, "a": "x", "b": 2}
    assert (updated.operation, updated.key, updated.before, updated.changed) == (Operation.UPDATE, "1", None, None)
    assert parsed(updated.after) == {"id": 1, "a": "x", "b": 3}
    assert (moved.key, parsed(moved.before)) == ("9", {"id": 1})
    assert parsed(moved.after) == {"id": 9, "a": "x", "b": 4}
    assert (deleted.operation, deleted.key, parsed(deleted.before)) == (Operation.DELETE, "9", {"id": 9})
    assert deleted.after is None


def test_full_identity_brings_the_whole_old_row_and_what_changed(dsn: str) -> None:
    laid(dsn, 'create table t (id int primary key, "a b" text, c numeric, d jsonb)')

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1, 'x', 1.50, '{}')")
        connection.execute("""update t set "a b" = null, c = 1.5""")
        connection.execute("update t set c = c")
        connection.execute("delete from t")

    _, updated, same, deleted = changes_of(capture(dsn, setup_of("t", full=["t"]), work))
    assert parsed(updated.before) == {"id": 1, "a b": "x", "c": 1.5, "d": {}}
    assert parsed(updated.after) == {"id": 1, "a b": None, "c": 1.5, "d": {}}
    # As text, 1.50 and 1.5 differ; so they do for whoever reads the column.
    assert updated.changed == ("a b", "c")
    assert same.changed == ()
    assert parsed(deleted.before) == {"id": 1, "a b": None, "c": 1.5, "d": {}}
    assert deleted.key == "1"


def test_an_index_as_identity_brings_its_columns(dsn: str) -> None:
    laid(
        dsn,
        "create table t (id int primary key, mail text not null, a int);"
        "create unique index t_mail on t (mail); alter table t replica identity using index t_mail",
    )

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1, 'a@b', 1)")
        connection.execute("update t set mail = 'c@d'")
        connection.execute("delete from t")

    _, updated, deleted = changes_of(capture(dsn, setup_of("t"), work))
    assert (updated.key, parsed(updated.before)) == ("1", {"mail": "a@b"})
    assert (deleted.key, parsed(deleted.before)) == (None, {"mail": "c@d"})


def test_a_composite_key_is_joined_in_the_order_of_its_index(dsn: str) -> None:
    laid(dsn, "create table t (a int, b text, c int, primary key (c, b)); create table u (a int)")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1, 'x', 3)")
        connection.execute("delete from t")
        connection.execute("insert into u values (1)")
        connection.execute("delete from u")

    changes = changes_of(capture(dsn, setup_of("t", "u", full=["u"]), work))
    assert [change.key for change in changes] == ["3,x", "3,x", None, None]


def test_truncate_of_several_tables(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key); create table u (id int primary key references t)")
    transactions = capture(
        dsn, setup_of("t", "u"), lambda connection: connection.execute("truncate t restart identity cascade")
    )
    changes = changes_of(transactions)
    assert {
        (change.relation.table, change.operation, change.key, change.before, change.after) for change in changes
    } == {
        ("t", Operation.TRUNCATE, None, None, None),
        ("u", Operation.TRUNCATE, None, None, None),
    }
    assert sorted(change.ordinal for change in changes) == [0, 1]
    assert {activity.action for activity in activities_of(transactions)} == {"t.truncate", "u.truncate"}


def test_copy_is_one_transaction_of_numbered_rows(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key, a text)")

    def work(connection: psycopg.Connection) -> None:
        with connection.transaction(), connection.cursor().copy("copy t from stdin") as copy:
            for number in range(500):
                copy.write_row((number, f"line\t{number}"))

    (transaction,) = capture(dsn, setup_of("t"), work)
    assert [change.ordinal for change in transaction.changes] == list(range(500))
    activities = activities_of([transaction])
    assert len({activity.id for activity in activities}) == 500
    assert [activity.entity_id for activity in activities] == [str(number) for number in range(500)]
    assert activities == activities_of([transaction])


def test_on_conflict_and_merge_are_told_as_what_they_did(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key, a int); insert into t values (1, 1)")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1, 5), (2, 5) on conflict (id) do update set a = excluded.a")
        if connection.info.server_version >= 150000:
            connection.execute(
                "merge into t using (values (1), (3)) s (id) on t.id = s.id"
                " when matched then delete when not matched then insert values (s.id, 0)"
            )

    changes = changes_of(capture(dsn, setup_of("t"), work))
    told = [(change.operation.value, change.key) for change in changes]
    assert told[:2] == [("update", "1"), ("insert", "2")]
    assert sorted(told[2:]) in ([], [("delete", "1"), ("insert", "3")])


def test_a_partitioned_table_speaks_through_its_root(dsn: str) -> None:
    laid(
        dsn,
        """
        create table m (id int, at date, note text, primary key (id, at)) partition by range (at);
        create table m_1 partition of m for values from ('2026-01-01') to ('2026-02-01');
        -- Other column order, a dropped column: the root's is told.
        create table m_2 (gone int, note text, at date not null, id int not null);
        alter table m_2 drop column gone;
        alter table m attach partition m_2 for values from ('2026-02-01') to ('2026-03-01');
        """,
    )

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into m values (1, '2026-01-05', 'a'), (2, '2026-02-05', 'b')")
        connection.execute("update m set note = 'c' where id = 2")
        connection.execute("update m set at = '2026-02-06' where id = 1")
        connection.execute("delete from m where id = 2")

    changes = changes_of(capture(dsn, setup_of("m", full=["m"]), work))
    assert {change.relation.table for change in changes} == {"m"}
    assert [(change.operation.value, change.key) for change in changes] == [
        ("insert", "1,2026-01-05"),
        ("insert", "2,2026-02-05"),
        ("update", "2,2026-02-05"),
        ("delete", "1,2026-01-05"),
        ("insert", "1,2026-02-06"),
        ("delete", "2,2026-02-05"),
    ]
    assert parsed(changes[2].before) == {"id": 2, "at": "2026-02-05", "note": "b"}
    assert changes[2].changed == ("note",)
    assert parsed(changes[5].before) == {"id": 2, "at": "2026-02-05", "note": "c"}


def test_a_new_partition_without_full_identity_is_not_read_as_a_row_of_nulls(dsn: str) -> None:
    laid(
        dsn,
        """
        create table m (id int, at date, note text, primary key (id, at)) partition by range (at);
        create table m_1 partition of m for values from ('2026-01-01') to ('2026-02-01');
        """,
    )

    def work(connection: psycopg.Connection) -> None:
        connection.execute("create table m_2 partition of m for values from ('2026-02-01') to ('2026-03-01')")
        connection.execute("insert into m values (2, '2026-02-05', 'b')")
        connection.execute("update m set id = 3")
        connection.execute("delete from m")

    _, updated, deleted = changes_of(capture(dsn, setup_of("m", full=["m"]), work))
    assert parsed(updated.before) == {"id": 2, "at": "2026-02-05"}
    assert updated.changed is None
    assert parsed(deleted.before) == {"id": 3, "at": "2026-02-05"}


def test_unchanged_toast_is_filled_from_the_old_row(dsn: str) -> None:
    laid(dsn, f"create table t (id int primary key, long text, a int); insert into t select 1, {LONG}, 0")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("update t set a = 1")

    (change,) = changes_of(capture(dsn, setup_of("t", full=["t"]), work))
    before, after = parsed(change.before), parsed(change.after)
    assert before is not None
    assert after == {**before, "a": 1}
    assert len(str(after["long"])) > 10_000
    assert (change.unchanged, change.changed) == ((), ("a",))


def test_unchanged_toast_is_named_where_the_old_row_is_unknown(dsn: str) -> None:
    laid(dsn, f"create table t (id int primary key, long text, a int); insert into t select 1, {LONG}, 0")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("select pg_logical_emit_message(true, 'afterwrite.context', '{\"reason\": \"test\"}')")
        connection.execute("update t set a = 1")

    transactions = capture(dsn, setup_of("t"), work)
    (change,) = changes_of(transactions)
    assert parsed(change.after) == {"id": 1, "a": 1}
    assert change.unchanged == ("long",)
    (activity,) = activities_of(transactions)
    assert json.loads(bytes(activity.metadata)) == {"unchanged": ["long"]}


def test_a_long_key_is_found_in_the_old_key(dsn: str) -> None:
    # Compressible, so that it fits its index, and stored outside the row.
    laid(
        dsn,
        "create table t (long text primary key, a int); alter table t alter long set storage external;"
        "insert into t select repeat('x', 2600), 0",
    )
    changes = changes_of(capture(dsn, setup_of("t"), lambda connection: connection.execute("update t set a = 1")))
    assert parsed(changes[0].after) == {"long": "x" * 2600, "a": 1}
    assert changes[0].key == "x" * 2600


def test_a_context_holds_until_the_next_and_the_first_for_what_came_before_it(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key)")

    def stamp(connection: psycopg.Connection, payload: str) -> None:
        connection.execute("select pg_logical_emit_message(true, 'afterwrite.context', %s::text)", [payload])

    def work(connection: psycopg.Connection) -> None:
        with connection.transaction():
            connection.execute("insert into t values (1)")
            stamp(connection, '{"actor_id": "first"}')
            connection.execute("insert into t values (2)")
            stamp(connection, '{"actor_id": "last", "tenant_id": "t1", "reason": "why", "ip": "10.0.0.1"}')
            connection.execute("insert into t values (22)")
            stamp(connection, "{}")
            connection.execute("insert into t values (23)")
        with connection.transaction():
            stamp(connection, '{"actor_id": "kept"}')
            connection.execute("insert into t values (3)")
            with connection.transaction(force_rollback=True):
                stamp(connection, '{"actor_id": "rolled back"}')
                connection.execute("insert into t values (4)")
        connection.execute("insert into t values (5)")
        with connection.transaction():
            stamp(connection, '{"actor_id": 7}')
            connection.execute("insert into t values (6)")
        with connection.transaction():
            connection.execute("insert into t values (7)")
            stamp(connection, '{"here": true, "actor_id": "late"}')
            connection.execute("insert into t values (8)")

    transactions = capture(dsn, setup_of("t"), work)
    activities = activities_of(transactions)
    assert [(activity.entity_id, activity.actor_id) for activity in activities] == [
        ("1", "first"),
        ("2", "first"),
        ("22", "last"),
        ("23", None),
        ("3", "kept"),
        ("5", None),
        ("6", None),
        ("7", None),
        ("8", "late"),
    ]
    last = activities[2]
    assert (last.tenant_id, last.ip, json.loads(bytes(last.metadata))) == ("t1", "10.0.0.1", {"reason": "why"})
    told = [transaction.context and transaction.context.actor_id for transaction in transactions]
    assert told == ["last", "kept", None, None, "late"]


def test_an_emitted_event_explains_the_changes_of_its_transaction(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key)")

    def work(connection: psycopg.Connection) -> None:
        with connection.transaction():
            connection.execute("insert into t values (1)")
            connection.execute(
                "select pg_logical_emit_message(true, 'afterwrite.event', %s::text)",
                ['{"category": "token", "action": "redemption.approve", "entity_id": "9", "metadata": {"n": 1.50}}'],
            )
            connection.execute("insert into t values (2)")
            connection.execute("select pg_logical_emit_message(true, 'another.program', 'not ours')")
            connection.execute("select pg_logical_emit_message(true, 'afterwrite.event', '{broken')")
            connection.execute("insert into t values (3)")
        connection.execute("select pg_logical_emit_message(false, 'afterwrite.event', '{}')")
        with connection.transaction(force_rollback=True):
            connection.execute("select pg_logical_emit_message(true, 'afterwrite.event', '{}')")

    transactions = capture(dsn, setup_of("t"), work)
    assert len(transactions) == 1
    one, approval, two, broken, three = activities_of(transactions)
    assert (approval.kind, approval.action, approval.ordinal) == (Kind.EVENT, "redemption.approve", 1)
    assert bytes(approval.metadata) == b'{"n": 1.50}'
    assert one.caused_by == two.caused_by == approval.id
    assert (broken.category, broken.severity, broken.ordinal) == ("unreadable", Level.WARNING, 4)
    assert json.loads(bytes(broken.metadata)) == {"content": "{broken"}
    assert three.caused_by == broken.id


def test_legacy_tables_are_told_apart_and_need_no_key(dsn: str) -> None:
    laid(
        dsn,
        """
        create table t (id int primary key, a int);
        create table log (at timestamptz default now(), what text);
        create function remember() returns trigger language plpgsql as
            $$begin insert into log (what) values (tg_op || new.id); return new; end$$;
        create trigger remember after insert or update on t for each row execute function remember();
        """,
    )

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1), (2)")
        connection.execute("delete from log")
        connection.execute("update log set what = 'x'")

    (transaction,) = capture(dsn, setup_of("t", legacy=["log"]), work)
    assert [change.key for change in transaction.changes] == ["1", "2"]
    assert [(parsed(change.after) or {})["what"] for change in transaction.legacy] == ["INSERT1", "INSERT2"]
    assert {change.relation.table for change in transaction.changes} == {"t"}
    ordinals = [change.ordinal for change in (*transaction.changes, *transaction.legacy)]
    assert sorted(ordinals) == [0, 1, 2, 3]
    assert [activity.entity_id for activity in activities_of([transaction])] == ["1", "2"]


def test_a_column_added_and_a_table_renamed_while_streaming(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key, a int)")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1, 1)")
        connection.execute("alter table t add column b text default 'b'")
        connection.execute("insert into t values (2, 2)")
        connection.execute("alter table t rename column a to c")
        connection.execute("alter table t rename to u")
        connection.execute("insert into u values (3, 3, 'x')")
        connection.execute("create schema s; alter table u set schema s")
        connection.execute("insert into s.u values (4, 4, 'x')")

    transactions = capture(dsn, setup_of("t"), work)
    activities = activities_of(transactions)
    assert [(activity.entity_type, activity.relation, activity.entity_id) for activity in activities] == [
        ("t", "public.t", "1"),
        ("t", "public.t", "2"),
        ("u", "public.u", "3"),
        ("s.u", "s.u", "4"),
    ]
    assert [parsed(bytes(activity.after)) for activity in activities] == [
        {"id": 1, "a": 1},
        {"id": 2, "a": 2, "b": "b"},
        {"id": 3, "c": 3, "b": "x"},
        {"id": 4, "c": 4, "b": "x"},
    ]


def test_a_two_phase_transaction_comes_whole_at_its_commit(dsn: str) -> None:
    laid(dsn, "create table t (id int primary key)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in ("begin", "insert into t values (1)", "prepare transaction 'p'"):
            connection.execute(statement)
        assert drain(dsn, setup, sink) == []
        connection.execute("insert into t values (2)")
        connection.execute("commit prepared 'p'")
    assert [change.key for change in changes_of(drain(dsn, setup, sink))] == ["2", "1"]


def test_summaries_read_as_sentences(dsn: str) -> None:
    names = ", ".join(f"c{number} int" for number in range(12))
    laid(dsn, f"create schema app; create table app.t (id int primary key, {names})")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into app.t (id) values (1)")
        connection.execute("update app.t set c0 = 1, c1 = 2")
        connection.execute("update app.t set " + ", ".join(f"c{number} = 5" for number in range(12)))

    summaries = [activity.summary for activity in activities_of(capture(dsn, setup_of("app.t", full=["app.t"]), work))]
    assert summaries == [
        "insert app.t 1",
        "update app.t 1: c0 null -> 1, c1 null -> 2",
        "update app.t 1: c0 1 -> 5, c1 2 -> 5, c2 null -> 5, c3 null -> 5, c4 null -> 5, c5 null -> 5, c6 null -> 5,"
        " c7 null -> 5 and 4 more",
    ]


def test_summaries_say_what_people_read_and_no_secrets(dsn: str) -> None:
    laid(
        dsn,
        "create type mood as enum ('happy', 'sad');"
        " create table t (id uuid primary key, name text, feels mood, owner uuid, at timestamptz, facts jsonb,"
        " password_hash text, amount numeric, is_on bool)",
    )
    key = "0195a000-0000-7000-8000-000000000001"

    def work(connection: psycopg.Connection) -> None:
        connection.execute(
            "insert into t values (%s, E'Jane\nDoe', 'happy', %s, now(), '{}', 'x', 12.50, true)", [key, key]
        )
        connection.execute(
            "update t set name = repeat('long ', 20), feels = 'sad', owner = null, at = null, facts = null,"
            " password_hash = 'y', amount = 13, is_on = false"
        )
        connection.execute("delete from t")

    setup = setup_of("t", full=["t"])
    assert [activity.summary for activity in activities_of(capture(dsn, setup, work))] == [
        "insert t 0195a000..: Jane Doe, happy",
        "update t 0195a000..: name Jane Doe -> long long long long long lon.., feels happy -> sad,"
        " owner 0195a000.. -> null, at, facts, password_hash, amount 12.50 -> 13, is_on t -> f",
        "delete t 0195a000..: long long long long long lon.., sad",
    ]


def test_a_summary_says_no_value_of_what_the_recorder_would_take_out(dsn: str) -> None:
    names = ("pin", "card_pin", "cvv", "ssn", "user_ssn", "pwd", "card_number", "security_code", "access_key", "jwt",
             "refresh_token", "cookie", "seed_phrase", "social_security", "passcode")  # fmt: skip
    plain = ("spin", "shipping", "cardinality", "token_count", "assn")

    laid(dsn, "".join(f"create table {name}s (id int primary key, {name} text);" for name in (*names, *plain)))
    tables = tuple(f"{name}s" for name in (*names, *plain))

    def write(connection: psycopg.Connection) -> None:
        for name in (*names, *plain):
            connection.execute(f"insert into {name}s values (1, 'before')".encode())
            connection.execute(f"update {name}s set {name} = 'later'".encode())

    found = activities_of(capture(dsn, setup_of(*tables, full=list(tables)), write))
    told = {str(each.entity_type).removesuffix("s") for each in found if "before" in str(each.summary)}
    assert told == set(plain)


@pytest.mark.parametrize("name", ["%b%s", 'quo"te', "ünï", "a\\b"])
def test_awkward_column_names(dsn: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        quoted = '"' + name.replace('"', '""') + '"'
        connection.execute(f"create table t (id int primary key, {quoted} int)".encode())

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into t values (1, 2)")
        connection.execute(f"update t set {quoted} = 3".encode())

    changes = changes_of(capture(dsn, setup_of("t", full=["t"]), work))
    assert parsed(changes[1].before) == {"id": 1, name: 2}
    assert changes[1].changed == (name,)
