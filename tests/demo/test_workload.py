"""The workload's ledger is true: it agrees with what the legacy triggers did, to the row, and nothing escapes it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from working import Work, lay_application

from afterwrite.context import decode_context
from afterwrite.demo.account import Book, Faults, check_effects, open_book
from afterwrite.demo.clients import Workload
from afterwrite.demo.ledger import Copy, Ledger, Mark, Notice, Opening, Progress, RolledBack, read_ledger
from afterwrite.demo.schema import TABLES
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import embedded_server

AUDITED = {"INSERT", "UPDATE", "DELETE"}


def effects_wrong(dsn: str, book: Book) -> dict[str, list[str]]:
    async def check() -> dict[str, list[str]]:
        faults = Faults()
        async with connect(dsn) as source:
            assert await check_effects(book, source, faults) > 100
        return dict(faults.examples)

    return asyncio.run(check())


def audited(dsn: str) -> Counter[tuple[str, str, str, str | None]]:
    """What the legacy triggers say: table, operation, record, user."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "select table_name, lower(operation), record_id, user_id::text from public.audit_logs"
            " where operation in ('INSERT', 'UPDATE', 'DELETE')"
        ).fetchall()
    return Counter(rows)  # type: ignore[arg-type]


def expected_audits(book: Book) -> tuple[Counter[tuple[str, str, str, str | None]], Counter[str]]:
    """What the ledger says they must say; and by actor, how many notifications whose ids it cannot know."""
    rows: Counter[tuple[str, str, str, str | None]] = Counter()
    notices: Counter[str] = Counter()
    for entry in book.everything:
        for change in entry.changes:
            record = change.key.split(",")[0]
            rows[change.table, change.operation.value, record, entry.actor] += 1
        for effect in entry.effects:
            match effect:
                case Notice(own=False):
                    notices[entry.actor] += 1
                case Progress(operation, _, statements):
                    rows["bulk_operations", "update", operation, entry.actor] += statements
                case Copy(project):
                    rows["project_settings", "update", project, entry.actor] += 1
                case _:
                    pass
    return rows, notices


def assert_audit_agrees(dsn: str, book: Book) -> None:
    found, (expected, notices) = audited(dsn), expected_audits(book)
    surplus, lacking = found - expected, expected - found
    assert lacking == Counter()
    assert {change[:2] for change in surplus} <= {("notifications", "insert")}, surplus
    by_actor: Counter[str | None] = Counter()
    for change, times in surplus.items():
        by_actor[change[3]] += times
    assert by_actor == notices


@pytest.fixture(scope="module")
def as_it_was(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Book, list[dict[str, Any]]]]:
    """The legacy system as it was: every trigger on, nothing of ours anywhere."""
    ledger = tmp_path_factory.mktemp("work") / "ledger"
    with embedded_server(settings={"fsync": "off"}) as server:
        dsn = server.dsn()
        lay_application(dsn)
        with Work(dsn, ledger, "--rate", "280", "--clients", "4", "--seed", "1") as work:
            for following in ("second", "third"):
                while work.hear("tick")["committed"] < 900:
                    pass
                work.ask(f"mark {following}")
            windows = work.finish()
        yield dsn, open_book(ledger), windows


def test_notifications_statistics_and_progress_are_what_the_ledger_says(
    as_it_was: tuple[str, Book, list[dict[str, Any]]],
) -> None:
    dsn, book, _ = as_it_was
    assert len(book.everything) > 800
    assert effects_wrong(dsn, book) == {}


def test_the_legacy_log_has_every_change_of_the_ledger_with_its_actor_and_no_other(
    as_it_was: tuple[str, Book, list[dict[str, Any]]],
) -> None:
    dsn, book, _ = as_it_was
    assert_audit_agrees(dsn, book)


def test_sampled_values_are_those_that_were_written(as_it_was: tuple[str, Book, list[dict[str, Any]]]) -> None:
    dsn, book, _ = as_it_was
    last: dict[str, dict[str, Any]] = {}
    touched: Counter[str] = Counter()
    for entry in book.everything:
        for change in entry.changes:
            touched[change.key] += change.table == "investors"
            if change.table == "investors" and change.values is not None:
                last[change.key] = change.values
    checked = 0
    with psycopg.connect(dsn) as connection:
        for key, values in last.items():
            found = connection.execute("select email, country from public.investors where id = %s", [key]).fetchone()
            if found and touched[key] == 1 and "email" in values:
                assert found == (values["email"], values.get("country"))
                checked += 1
    assert checked > 2


def test_transactions_roll_back_in_many_ways_and_leave_their_ids(
    as_it_was: tuple[str, Book, list[dict[str, Any]]],
) -> None:
    _, book, windows = as_it_was
    failures = Counter[str]()
    for window in windows:
        failures.update(window["failures"])
    assert {"CheckViolation", "RestrictViolation", "ForeignKeyViolation", "ChangedMind"} <= failures.keys()
    assert "DeadlockDetected" not in failures
    assert 0.02 < len(book.rolled_back) / len(book.everything) < 0.2
    assert not book.rolled_back & {entry.xid for entry in book.everything}


def test_windows_add_up(as_it_was: tuple[str, Book, list[dict[str, Any]]]) -> None:
    _, book, windows = as_it_was
    assert [window["window"] for window in windows] == ["start", "second", "third"]
    assert sum(window["committed"] for window in windows) == len(book.everything)
    assert sum(window["changes"] for window in windows) == sum(len(entry.changes) for entry in book.everything)
    assert all(0 < window["p50_ms"] <= window["p95_ms"] for window in windows[:2])
    in_second = [entry for entry in book.everything if entry.window == "second"]
    assert len(in_second) == windows[1]["committed"]


def test_every_trigger_fires_for_every_operation_it_covers(
    as_it_was: tuple[str, Book, list[dict[str, Any]]],
) -> None:
    """Counted in the audit rows, which hold old and new: UPDATE OF by what changed, WHEN by its condition."""
    dsn, _, _ = as_it_was
    silent: list[str] = []
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            """
            select c.relname, t.tgname, pg_get_triggerdef(t.oid),
                   array(select a.attname::text from pg_attribute a
                          where a.attrelid = c.oid and a.attnum = any (t.tgattr))
              from pg_trigger t join pg_class c on c.oid = t.tgrelid
             where not t.tgisinternal and t.tgparentid = 0
            """
        ).fetchall()
        assert len(found) == 86
        for table, name, definition, columns in found:
            events = definition.partition(" ON ")[0]
            when = re.search(r" WHEN \((.*)\) EXECUTE", definition)
            for event in AUDITED:
                if event not in events:
                    continue
                conditions = [when[1]] if when else []
                if event == "UPDATE" and columns:
                    differs = [f"a.old_data -> '{c}' is distinct from a.new_data -> '{c}'" for c in columns]
                    conditions.append(f"({' or '.join(differs)})")
                query = f"""
                    select count(*)
                      from public.audit_logs a,
                           lateral jsonb_populate_record(null::public.{table}, a.old_data) as old,
                           lateral jsonb_populate_record(null::public.{table}, a.new_data) as new
                     where a.table_name = '{table}' and a.operation = '{event}'
                           {"".join(f" and {condition}" for condition in conditions)}
                    """
                row = connection.execute(query).fetchone()  # type: ignore[arg-type]
                if row is None or row[0] < 1:
                    silent.append(f"{table}.{name} {event}")
    # This one refuses every DELETE it sees, so that nothing of it can be left.
    assert silent == ["distributions.distributions_paid_guard DELETE"]


def test_every_table_sees_every_operation(as_it_was: tuple[str, Book, list[dict[str, Any]]]) -> None:
    _, book, _ = as_it_was
    seen = Counter((change.table, change.operation.value) for entry in book.everything for change in entry.changes)
    assert {
        table: sum(seen[table, operation] > 0 for operation in ("insert", "update", "delete")) for table in TABLES
    } == dict.fromkeys(TABLES, 3)


def test_the_ledger_stays_true_through_crashes_and_broken_connections(tmp_path: Path) -> None:
    with embedded_server(settings={"fsync": "off"}) as server:
        dsn = server.dsn()
        lay_application(dsn)
        with Work(dsn, tmp_path / "ledger", "--rate", "0", "--clients", "6") as work:
            work.hear("ready")
            for _ in range(3):
                time.sleep(0.8)
                with psycopg.connect(dsn, autocommit=True) as admin:
                    admin.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'demo_app'"
                    )
                time.sleep(0.6)
                server.restart("immediate")
            time.sleep(0.5)
            work.ask("mark after")
            windows = work.finish()
        failures = Counter[str]()
        for window in windows:
            failures.update(window["failures"])
        assert failures["ConnectionLost"] > 0
        book = open_book(tmp_path / "ledger")
        assert book.unknown == set()
        assert effects_wrong(dsn, book) == {}
        assert_audit_agrees(dsn, book)


def test_a_commit_lost_in_a_crash_is_not_mistaken_for_the_next_owner_of_its_xid(tmp_path: Path) -> None:
    with (
        embedded_server(settings={"fsync": "off", "wal_writer_delay": "10s"}) as server,
        Ledger(tmp_path / "l") as book,
    ):
        lay_application(server.dsn())
        workload = Workload(server.dsn(), book)
        with workload.connected() as lost:
            lost.connection.execute("begin")
            xid = lost.connection.execute("select pg_current_xact_id()::text as xid").fetchone()
            server.restart("immediate")
        with workload.connected() as new, new.connection.transaction():
            same = new.connection.execute("select pg_current_xact_id()::text as xid").fetchone()
            new.connection.execute("update public.users set phone = 'new owner'")
        assert xid is not None
        assert same == xid
        assert lost.era != new.era
        with workload.connected() as session:
            assert workload.outcome(session, int(xid["xid"]), begun_in=new.era) == "committed"
            assert workload.outcome(session, int(xid["xid"]), begun_in=lost.era) == "aborted"
        # Two crashes later it still is not.
        server.restart("immediate")
        with workload.connected() as session:
            assert workload.outcome(session, int(xid["xid"]), begun_in=lost.era) == "aborted"
            assert workload.outcome(session, int(xid["xid"]), begun_in=new.era) == "committed"


def test_a_server_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    with Work(f"host={tmp_path} dbname=nowhere", tmp_path / "ledger") as work:
        assert work.process.wait(20) == 1
        assert work.process.stderr is not None
        said = work.process.stderr.read()
    assert said.startswith("the workload cannot start on nowhere@")
    assert "Traceback" not in said


def test_a_stamped_transaction_says_once_who_acts_and_an_unstamped_one_nothing(dsn: str, tmp_path: Path) -> None:
    lay_application(dsn)
    with psycopg.connect(dsn, autocommit=True) as admin:
        slot = "stamps_" + dsn.rsplit("_", 1)[1]
        admin.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        admin.execute("create publication stamps for table public.users")
        with Work(dsn, tmp_path / "ledger", "--rate", "100", "--clients", "3") as work:
            work.hear("ready")
            time.sleep(0.6)
            assert work.ask("stamp on")["on"] is True
            work.ask("mark stamped")
            time.sleep(1.0)
            work.finish()
        stamps = {
            xid: [decode_context(content) for content in contents]
            for xid, contents in read_messages(admin, slot, b"afterwrite.context").items()
        }
    book = open_book(tmp_path / "ledger")
    stamped = {entry.xid: entry for entry in book.everything if entry.stamped}
    assert stamped.keys() == stamps.keys()
    # A transaction between the two words is stamped, and in the window before.
    assert stamped.keys() >= {entry.xid for entry in book.everything if entry.window == "stamped"} != set()
    for xid, entry in stamped.items():
        (context,) = stamps[xid]
        assert context.actor_id == entry.actor
        assert entry.actor in context.settings["request.jwt.claims"]


def read_messages(admin: psycopg.Connection[Any], slot: str, prefix: bytes) -> dict[int, list[bytes]]:
    """Logical messages by the transaction that wrote them."""
    found: dict[int, list[bytes]] = {}
    xid = 0
    for (data,) in admin.execute(
        "select data from pg_logical_slot_peek_binary_changes(%s, null, null,"
        " 'proto_version', '1', 'publication_names', 'stamps', 'messages', 'true')",
        [slot],
    ):
        if data[:1] == b"B":
            xid = int.from_bytes(data[17:21], "big")
        elif data[:1] == b"M" and data[10:].startswith(prefix + b"\0"):
            found.setdefault(xid, []).append(data[10 + len(prefix) + 1 + 4 :])
    return found


def test_a_mark_stands_where_no_transaction_is_open(dsn: str, tmp_path: Path) -> None:
    lay_application(dsn)
    with Work(dsn, tmp_path / "ledger", "--rate", "0", "--clients", "4") as work:
        work.hear("ready")
        for name in "abcd":
            time.sleep(0.2)
            work.ask(f"mark {name}")
        work.finish()
    marks: list[Mark] = []
    xids: list[tuple[int, int]] = []
    for entry in read_ledger(tmp_path / "ledger"):
        match entry:
            case Mark():
                marks.append(entry)
            case Opening():
                assert not marks
            case _:
                xids.append((len(marks), entry.xid))
                assert entry.window == (marks[-1].window if marks else "start")
    assert [mark.window for mark in marks] == list("abcd")
    for index, mark in enumerate(marks):
        assert all(xid < mark.xid for window, xid in xids if window <= index)
        assert all(xid >= mark.xid for window, xid in xids if window > index)


@pytest.mark.parametrize("how", ["end of stdin", "SIGTERM", "SIGINT"])
def test_it_stops_cleanly_however_it_is_told(dsn: str, tmp_path: Path, how: str) -> None:
    lay_application(dsn)
    with Work(dsn, tmp_path / "ledger", "--clients", "2") as work:
        work.hear("tick")
        if how == "end of stdin":
            assert work.process.stdin is not None
            work.process.stdin.close()
            work.process.stdin = None
        else:
            os.kill(work.process.pid, getattr(signal, how))
        windows = work.hear("stopped")["windows"]
        assert work.process.wait(10) == 0
    book = open_book(tmp_path / "ledger")
    assert len(book.everything) == windows[0]["committed"] > 0
    assert effects_wrong(dsn, book) == {}


def test_a_word_that_is_not_understood_is_answered(dsn: str, tmp_path: Path) -> None:
    lay_application(dsn)
    with Work(dsn, tmp_path / "ledger", "--clients", "1", "--rate", "20") as work:
        work.say("dance")
        assert "dance" in work.hear("error")["text"]
        assert work.ask("rate 50")["rate"] == 50
        work.say('{"mark": "json"}')
        assert work.hear("mark")["window"] == "json"
        work.say('"report"')
        assert [window["window"] for window in work.hear("report")["windows"]] == ["start", "json"]
        work.finish()


def test_a_second_workload_continues_the_ledger(dsn: str, tmp_path: Path) -> None:
    lay_application(dsn)
    for seed in ("1", "2"):
        with Work(dsn, tmp_path / "ledger", "--clients", "2", "--rate", "0", "--seed", seed) as work:
            work.hear("tick")
            work.finish()
    assert sum(isinstance(entry, Opening) for entry in read_ledger(tmp_path / "ledger")) == 1
    assert any(isinstance(entry, RolledBack) for entry in read_ledger(tmp_path / "ledger"))
    book = open_book(tmp_path / "ledger")
    assert effects_wrong(dsn, book) == {}
