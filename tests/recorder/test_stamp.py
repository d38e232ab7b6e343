"""What counts as a write, what a stamp looks like, and when one is due."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import psycopg
import pytest

from afterwrite.context import Context, decode_context
from afterwrite.errors import UsageError
from afterwrite.record import CONTEXT_PREFIX, Emitted
from afterwrite.recorder.connections import driver_of
from afterwrite.recorder.options import Options, hold
from afterwrite.recorder.outbox import outbox_payload
from afterwrite.recorder.stamp import (
    Control,
    Stamps,
    calling,
    event_sql,
    is_write,
    make_stamp,
    read_sql,
    stamp_sql,
)
from afterwrite.seal import unseal

A, B, NOBODY = Context(actor_id="a"), Context(actor_id="b"), Context()


@pytest.mark.parametrize(
    "sql",
    [
        "insert into t values (1)",
        "  -- first\n /* then; */ INSERT INTO t VALUES (1)",
        "(delete from t)",
        "update only t set a = 1",
        "merge into t using s on true when matched then delete",
        "truncate t",
        "copy t (a, b) from stdin",
        "COPY t FROM '/tmp/from'",
        "call p()",
        "do $x$ begin null; end $x$",
        "execute prepared(1)",
        "with a as (select 1) insert into t select * from a",
        "with gone as (delete from t returning *) select * from gone",
        "with new as materialized (\n  update t set a = 1 returning *) select 1",
        "explain (analyze, buffers) delete from t",
        "select 1; update t set a = 1",
        "begin; insert into t values (';')",
        "select approve(1)",
        "select * from public.approve (1)",
    ],
)
def test_what_writes_is_seen(sql: str) -> None:
    assert is_write(sql, calling(["Approve"]))


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "select 1",
        "select * from t for update",
        "select * from t for no key update of t",
        "with a as (select * from t for update) select 'insert into t' from a",
        "select 'a; delete from t'",
        "select 1; -- delete from t",
        "select $a$; delete from t$a$; select $$; update t set a = 1$$",
        "select e'\\'; delete from t'",
        'select "; delete from t" from t; select 1',
        "/* ; insert into t */ select 1; select 2",
        "copy t to stdout",
        "copy (select a from t) to stdout",
        "explain delete from t",
        "prepare p as insert into t values (1)",
        "select disapprove(1)",
        "set search_path = a; show search_path",
        "values (1)",
        "savepoint s",
    ],
)
def test_what_only_reads_is_not(sql: str) -> None:
    assert not is_write(sql, calling(["approve"]))


def test_words_about_the_transaction_are_taken_in() -> None:
    told = {
        "begin": Control.END,
        "START TRANSACTION": Control.END,
        "commit and chain": Control.END,
        "end": Control.END,
        "rollback": Control.END,
        "abort": Control.END,
        "prepare transaction 'x'": Control.END,
        "rollback to savepoint s": Control.UNDO,
        "ROLLBACK TO s": Control.UNDO,
        "savepoint s": Control.NONE,
        "release s": Control.NONE,
        "prepare p as select 1": Control.NONE,
        "select 'commit'": Control.NONE,
        "insert into t values (1); commit": Control.END,
        "commit; begin; rollback to s": Control.UNDO,
    }
    assert {sql: read_sql(sql).control for sql in told} == told
    assert read_sql("call p()").may_end
    assert read_sql("do $$ begin commit; end $$").may_end
    assert not read_sql("do $$ begin null; end $$").may_end


def test_a_long_text_is_read_without_being_kept() -> None:
    assert is_write("insert into t values " + ", ".join(["('; select 1')"] * 5_000))


def due(stamps: Stamps) -> str:
    found = stamps.due(A)
    assert found is not None
    return found.sql


def test_a_stamp_is_due_once_and_again_when_it_may_be_gone_or_the_context_is_another() -> None:
    stamps = Stamps()
    assert stamps.due(NOBODY) is None
    assert '"here"' in due(stamps)  # it does not speak for what nobody wrote
    assert stamps.due(A) is None
    assert stamps.due(Context(actor_id="a")) is None
    assert stamps.due(B) is not None
    assert stamps.due(NOBODY) is not None  # B does not hold any more
    assert stamps.due(NOBODY) is None
    stamps.forget()
    assert stamps.due(NOBODY) is None
    stamps.forget()
    assert '"here"' not in due(stamps)
    stamps.doubt()
    assert stamps.due(A) is not None
    stamps.note(Control.UNDO)
    assert stamps.due(A) is not None
    stamps.event_sql(Emitted(category="a", action="b"), B)
    assert stamps.due(A) is not None
    stamps.note(Control.END)
    assert stamps.due(NOBODY) is None


def test_any_words_reach_the_server_in_any_encoding(dsn: str) -> None:
    context = Context(
        actor_id="Zoë 🦊 'quoted' \\ \" %s %(x)s :name ? $1 {x}", reason="line\nbreak", settings={"a": "ß"}
    )
    with psycopg.connect(dsn) as conn:
        conn.execute("create table messages as select null::text as data limit 0")
        for setting in ("on", "off"):
            conn.execute(f"set standard_conforming_strings = {setting}".encode())
            conn.execute("set client_encoding = latin1")
            sql = stamp_sql(context, None)
            assert sql.isascii()
            payload = sql[sql.index("E'{") : sql.index("::text")]
            assert decode_context(conn.execute(f"select {payload}".encode()).fetchone()[0].encode()) == context  # type: ignore[index]


def test_the_server_writes_one_message_a_transaction_and_context(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:

        def rows(sql: str) -> int:
            return conn.execute(sql.encode()).rowcount

        with conn.transaction():
            assert [rows(stamp_sql(A)) for _ in range(2)] == [1, 0]
            conn.execute("savepoint s")
            assert rows(stamp_sql(B, "some-secret")) == 1
            conn.execute("rollback to s")
            assert [rows(stamp_sql(each)) for each in (A, NOBODY, NOBODY, A)] == [0, 1, 0, 1]
        with conn.transaction():
            assert rows(stamp_sql(NOBODY)) == 0
            assert rows(event_sql(Emitted(category="a", action="b"), A)) == 1
            assert rows(stamp_sql(A)) == 0
        with conn.transaction():
            conn.execute("set transaction read only")
            assert rows(stamp_sql(A)) == rows(event_sql(Emitted(category="a", action="b"), A)) == 0
            assert conn.execute("select pg_current_xact_id_if_assigned() is null").fetchone() == (True,)
        assert conn.execute("select current_setting('afterwrite.stamped', true)").fetchone() == ("",)


def test_what_is_set_for_the_session_does_not_keep_a_stamp_away(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:

        def rows(sql: str) -> int:
            return conn.execute(sql.encode()).rowcount

        with conn.transaction():
            rows(stamp_sql(A))
            of_this = conn.execute("select current_setting('afterwrite.stamped')").fetchone()
        assert of_this is not None
        # An old mark, what a mark was once, words: whoever was on this session before may have left them there.
        for left in (*of_this, make_stamp(A).mark, f"0 {make_stamp(A).mark}", f" {make_stamp(A).mark}", "db:x y"):
            conn.execute("select set_config('afterwrite.stamped', %s, false)", [left])
            assert conn.execute("select pg_current_xact_id_if_assigned() is null").fetchone() == (True,)
            with conn.transaction():
                assert [rows(stamp_sql(each)) for each in (A, A)] == [1, 0]
                conn.execute("savepoint s")
                assert [rows(stamp_sql(each)) for each in (B, B)] == [1, 0]
                conn.execute("rollback to s")
                assert [rows(stamp_sql(each)) for each in (A, B)] == [0, 1]
            with conn.transaction():
                conn.execute("savepoint s")
                assert rows(stamp_sql(A)) == 1
                conn.execute("rollback to s")
                assert [rows(stamp_sql(each)) for each in (A, A)] == [1, 0]  # the session's own is back, and is none
            assert rows(stamp_sql(A)) == 1
            with conn.transaction():
                conn.execute("set transaction read only")
                assert rows(stamp_sql(A)) == 0
                assert conn.execute("select pg_current_xact_id_if_assigned() is null").fetchone() == (True,)


def test_what_is_no_connection_is_refused_with_its_name() -> None:
    with pytest.raises(UsageError, match=r"builtins\.dict, which is no connection"):
        driver_of({})


@pytest.fixture
def held() -> Iterator[Callable[..., None]]:
    yield lambda **given: hold(Options(**given))
    hold(None)


def test_what_the_settings_keep_back_is_not_in_a_stamp_either(held: Callable[..., None]) -> None:
    held(keep_ip=False, keep_user_agent=False, redact_patterns=(r"EMP-\d+",))
    said = Context(actor_id="user:1", ip="192.0.2.9", user_agent="Mozilla", reason="EMP-7 paid by 4111 1111 1111 1111")
    kept = Context(actor_id="user:1", reason="[redacted] paid by [redacted]")
    assert decode_context(make_stamp(said).payload.encode()) == kept
    assert decode_context(make_stamp(said, here=True).payload.encode()) == kept
    posted = outbox_payload(Emitted(id="1", category="system", action="a"), said)
    assert not any(word in posted for word in ("192.0.2.9", "4111", "Mozilla"))
    held()
    assert decode_context(make_stamp(msgspec.structs.replace(said, reason=None)).payload.encode()).ip == "192.0.2.9"


def test_a_connection_that_was_there_before_signs_with_the_key_that_is_configured(held: Callable[..., None]) -> None:
    stamps = Stamps()
    assert stamps.due(Context(actor_id="user:1")) == make_stamp(Context(actor_id="user:1"))
    held(stamp_key="not a secret")
    stamps.forget()
    due = stamps.due(Context(actor_id="user:1"))
    assert due is not None
    assert unseal(CONTEXT_PREFIX, due.payload.encode(), ("not a secret",)).signed
    assert Stamps("its own").due(Context(actor_id="user:1")) == make_stamp(Context(actor_id="user:1"), "its own")


def test_settings_that_cannot_be_read_do_not_fail_a_write(
    held: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AFTERWRITE_SPOOL_BYTES", "much")
    hold(None)
    assert Stamps().due(Context(actor_id="user:1")) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
