"""The account finds each kind of fault, counts it once, and finds nothing where nothing is wrong."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from working import Work, lay_application

from afterwrite.demo.account import Account, open_book, take_account
from afterwrite.demo.ledger import Committed, Mark, read_ledger
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect, script
from afterwrite.postgres.embedded import Server

STORE = """
    insert into afterwrite.activity
      (id, occurred_at, batch_id, xid, commit_lsn, ordinal, source, kind, category, action, outcome, severity,
       entity_id, actor_id, relation, operation, after, caused_by)
    values (%(id)s, now(), 1, %(xid)s, '0/1', %(ordinal)s, 'demo', 'change', 'data', 'x', 'success', 'info',
       %(key)s, %(actor)s, %(relation)s, %(operation)s, %(after)s, %(caused_by)s)
"""


def store(connection: psycopg.Connection[Any], xid: int, relation: str, operation: str, key: str, **more: Any) -> str:
    row = {"id": str(uuid.uuid4()), "ordinal": 0, "actor": None, "after": None, "caused_by": None, **more}
    connection.execute(STORE, {**row, "xid": xid, "relation": relation, "operation": operation, "key": key})
    return row["id"]


def account(ledger: Path, dsn: str, since: str | None = None) -> Account:
    async def take() -> Account:
        async with connect(dsn) as db:
            return await take_account(ledger, db, db, since=since)

    return asyncio.run(take())


@pytest.fixture(scope="module")
def worked(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A template: the application after some work, and beside it a store that has exactly what it should have."""
    ledger = tmp_path_factory.mktemp("account") / "ledger"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("create database account_template")
        dsn = server.dsn("account_template")
        lay_application(dsn)
        with Work(dsn, ledger, "--rate", "0", "--clients", "3") as work:
            work.hear("tick")
            work.ask("stamp on")
            work.ask("mark stamped")
            while work.hear("tick")["committed"] < 200:
                pass
            work.finish()
        with psycopg.connect(dsn) as connection:
            connection.execute(script("schema/0001_store"))  # type: ignore[arg-type]
            own = set[str]()
            book = open_book(ledger)
            for entry in book.everything:
                actor = entry.actor if entry.stamped else None
                for ordinal, change in enumerate(entry.changes):
                    if (change.table, change.operation.value) == ("notifications", "insert"):
                        own.add(change.key)
                    store(
                        connection,
                        entry.xid,
                        f"public.{change.table}",
                        change.operation.value,
                        change.key,
                        ordinal=ordinal,
                        actor=actor,
                        after=encode(change.values),
                    )
            cause = connection.execute("select id from afterwrite.activity where actor_id is null limit 1").fetchone()
            assert cause is not None
            for (key,) in connection.execute("select id::text from public.notifications").fetchall():
                if key not in own and int(key) > book.opening.last_notification:
                    store(connection, 1, "public.notifications", "insert", key, caused_by=cause[0])
        yield "account_template", ledger
        admin.execute("drop database account_template with (force)")


def encode(values: dict[str, Any] | None) -> str | None:
    return msgspec.json.Encoder(decimal_format="number").encode(values).decode() if values is not None else None


@pytest.fixture
def kept(server: Server, worked: tuple[str, Path], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A copy to break."""
    template, ledger = worked
    shutil.copy(ledger, tmp_path / "ledger")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database account_copy template {template}")  # type: ignore[arg-type]
        yield server.dsn("account_copy"), tmp_path / "ledger"
        admin.execute("drop database account_copy with (force)")


def some_change(ledger: Path, table: str, operation: str = "insert") -> tuple[Committed, str]:
    for entry in open_book(ledger).everything:
        for change in entry.changes:
            if (change.table, change.operation.value) == (table, operation) and entry.stamped:
                return entry, change.key
    raise AssertionError(table)


def test_nothing_is_wrong_where_nothing_is_wrong(kept: tuple[str, Path]) -> None:
    dsn, ledger = kept
    found = account(ledger, dsn)
    assert found.clean, found.examples
    assert found.transactions > 200
    assert found.rolled_back > 0
    assert found.changes_expected == found.changes_stored > 500
    assert found.values_checked > 30
    assert found.deferred_effects_expected > 100
    assert found.examples == {}


BROKEN = {
    "missing": "delete from afterwrite.activity where id = (select id from afterwrite.activity where xid > 1 limit 1)",
    "duplicated": """
        insert into afterwrite.activity
        select d.*
          from (select * from afterwrite.activity where xid > 1 and operation = 'insert' limit 1) a,
               jsonb_populate_record(
                 null::afterwrite.activity, to_jsonb(a) || jsonb_build_object('id', gen_random_uuid())
               ) d
        """,
    "wrong_actor": """
        update afterwrite.activity set actor_id = 'mallory'
         where id = (select id from afterwrite.activity where actor_id is not null and xid > 1 limit 1)
        """,
    "wrong_values": """
        update afterwrite.activity set after = (after::jsonb || '{"amount": 0.01}')::json
         where id = (select id from afterwrite.activity
                      where relation = 'public.subscriptions' and operation = 'insert'
                        and after::jsonb ? 'amount' limit 1)
        """,
    "unexpected": """
        insert into afterwrite.activity
        select d.*
          from (select * from afterwrite.activity where xid > 1 and operation = 'update' limit 1) a,
               jsonb_populate_record(
                 null::afterwrite.activity, to_jsonb(a) || jsonb_build_object('id', gen_random_uuid(), 'xid', 4000000)
               ) d
        """,
    "deferred_effects_wrong": """
        update public.platform_statistics set users_total = users_total + 1 where scope = 'platform'
        """,
    "lost notification": "delete from public.notifications where id = (select max(id) from public.notifications)",
    "doubled notification": """
        insert into public.notifications (id, user_id, kind, reference_id, title)
        select 0, user_id, kind, reference_id, title from public.notifications order by id desc limit 1
        """,
    "wrong progress": """
        update public.bulk_operations set processed_rows = processed_rows + 1
         where id = (select id from public.bulk_operations limit 1)
        """,
    "lost import": """
        alter table public.investors drop constraint investors_bulk_operation_id_fkey;
        delete from public.bulk_operations
         where id = (select id from public.bulk_operations where processed_rows > 0 limit 1)
        """,
    "stale copy": """
        update public.project_settings set project_name = 'x'
         where project_id = (select project_id from public.project_settings limit 1)
        """,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_kind_of_fault_is_counted_once_under_its_name(kept: tuple[str, Path], fault: str) -> None:
    dsn, ledger = kept
    with psycopg.connect(dsn) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(BROKEN[fault])  # type: ignore[arg-type]
    found = account(ledger, dsn)
    kinds = ("missing", "duplicated", "unexpected", "wrong_actor", "wrong_values", "deferred_effects_wrong")
    named = fault if fault in kinds else "deferred_effects_wrong"
    assert {kind: getattr(found, kind) for kind in kinds} == {kind: int(kind == named) for kind in kinds} | {named: 1}
    assert len(found.examples[named]) == 1
    assert not found.clean


def test_a_row_of_a_transaction_that_rolled_back_is_unexpected(kept: tuple[str, Path]) -> None:
    dsn, ledger = kept
    (xid, *_) = open_book(ledger).rolled_back
    with psycopg.connect(dsn) as connection:
        store(connection, xid, "public.users", "update", "1")
    assert account(ledger, dsn).unexpected == 1


def test_a_row_that_a_deferred_body_wrote_under_an_xid_handed_out_again_is_not(kept: tuple[str, Path]) -> None:
    dsn, ledger = kept
    (xid, *_) = open_book(ledger).rolled_back
    with psycopg.connect(dsn) as connection:
        cause = connection.execute("select id from afterwrite.activity where actor_id is null limit 1").fetchone()
        assert cause is not None
        store(connection, xid, "public.users", "update", "1", caused_by=cause[0])
    assert account(ledger, dsn).clean


def test_an_effect_must_have_the_actor_of_what_caused_it(kept: tuple[str, Path]) -> None:
    dsn, ledger = kept
    with psycopg.connect(dsn) as connection:
        connection.execute("update afterwrite.activity set actor_id = 'mallory' where xid = 1")
        effects = connection.execute("select count(*) from afterwrite.activity where xid = 1").fetchone()
    assert effects is not None
    assert account(ledger, dsn).wrong_actor == effects[0] > 5


def test_a_notification_written_by_an_effect_must_be_stored_too(kept: tuple[str, Path]) -> None:
    dsn, ledger = kept
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "delete from afterwrite.activity where id = (select id from afterwrite.activity where xid = 1 limit 1)"
        )
    found = account(ledger, dsn)
    assert (found.missing, found.deferred_effects_wrong) == (1, 0)
    assert found.changes_expected - found.changes_stored == 1


def test_rows_of_triggers_that_still_ran_in_the_transaction_belong_to_it(kept: tuple[str, Path]) -> None:
    """In sync mode a notification has the xid of its cause: once is its due, twice is one too many."""
    dsn, ledger = kept
    entry, _ = some_change(ledger, "subscriptions")
    with psycopg.connect(dsn) as connection:
        store(connection, entry.xid, "public.notifications", "insert", "1000001", actor=entry.actor)
    assert account(ledger, dsn).clean
    with psycopg.connect(dsn) as connection:
        store(connection, entry.xid, "public.notifications", "insert", "1000002", actor=entry.actor)
    assert account(ledger, dsn).unexpected == 1


def test_a_transaction_is_not_asked_for_before_the_mark(kept: tuple[str, Path]) -> None:
    dsn, ledger = kept
    mark = next(entry for entry in read_ledger(ledger) if isinstance(entry, Mark))
    with psycopg.connect(dsn) as connection:
        gone = connection.execute(
            "delete from afterwrite.activity where xid between 2 and %s returning id", [mark.xid - 1]
        ).fetchall()
    assert len(gone) > 100
    assert account(ledger, dsn, since="stamped").clean
    assert account(ledger, dsn).missing == len(gone)


def test_a_window_that_is_not_in_the_ledger_is_named(kept: tuple[str, Path]) -> None:
    _, ledger = kept
    with pytest.raises(AfterwriteError, match="no window 'nowhere'") as refused:
        open_book(ledger, since="nowhere")
    assert "stamped" in (refused.value.remedy or "")


def test_a_torn_last_line_is_passed_over_and_a_broken_one_is_not(kept: tuple[str, Path]) -> None:
    _, ledger = kept
    whole = len(open_book(ledger).everything)
    with ledger.open("ab") as file:
        file.write(b'{"entry":"committed","xid":1')
    assert len(open_book(ledger).everything) == whole
    with ledger.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(AfterwriteError, match="cannot be read"):
        open_book(ledger)
