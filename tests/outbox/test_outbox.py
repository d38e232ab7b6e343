"""The outbox: what is posted in a transaction is stored if and only if that commits, and once, whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from outbox_scene import PACE, come, count, drain_all, draining, lay_outbox, post, stored
from psycopg import errors

from afterwrite import context
from afterwrite.capture.outbox import examine, measure, plan_remove, put_back, read_refused, remove
from afterwrite.errors import ConnectionLost, DatabaseError, Refused
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.record import Batch, Receipt
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.options import hold
from afterwrite.recorder.outbox import known
from afterwrite.scan.survey import survey
from afterwrite.store.writer import open_sink


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    known.forget()
    hold(None)
    yield
    known.forget()


@pytest.fixture
def outbox_dsn(installed_dsn: str) -> str:
    lay_outbox(installed_dsn)
    return installed_dsn


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Nothing of it is delivered: what it spools is seen to have been spooled."""
    recorder = Recorder(source="shop", open_sink=None, options=Options(spool_dir=str(tmp_path)))
    yield recorder
    recorder.close(0.5)


def test_what_is_recorded_in_a_transaction_is_stored_with_its_context_if_it_commits(
    outbox_dsn: str, recorder: Recorder
) -> None:
    with psycopg.connect(outbox_dsn) as conn:
        with context.bind(actor="user:42", tenant="acme", ip="192.0.2.1", reason="refund"):
            kept = recorder.record("order.paid", entity=("order", 7), metadata={"cents": 120}, conn=conn)
        conn.commit()
        recorder.record("order.lost", conn=conn)
        conn.rollback()
        xid = conn.execute("select pg_current_xact_id()::text::bigint - 2").fetchone()
    assert recorder.stats().emitted == 2
    drain_all(outbox_dsn)
    (row,) = stored(outbox_dsn)
    assert (str(row["id"]), row["action"], row["entity_type"], row["entity_id"]) == (
        kept.id,
        "order.paid",
        "order",
        "7",
    )
    assert (row["actor_id"], row["actor_type"], row["tenant_id"], str(row["ip"])) == (
        "user:42", "user", "acme", "192.0.2.1",
    )  # fmt: skip
    assert row["metadata"] == {"cents": 120, "reason": "refund", "xid": xid[0] if xid else None}
    assert (row["source"], row["kind"]) == ("shop", "event")


def test_a_savepoint_takes_its_events_with_it(outbox_dsn: str) -> None:
    with psycopg.connect(outbox_dsn) as conn:
        post(conn, "first")
        with conn.transaction(force_rollback=True):
            post(conn, "undone")
        post(conn, "second")
    drain_all(outbox_dsn)
    assert [row["action"] for row in stored(outbox_dsn)] == ["first", "second"]


def test_a_transaction_that_commits_late_is_not_passed_over(outbox_dsn: str) -> None:
    """Its number is lower than those that were delivered long ago."""

    async def run() -> None:
        with psycopg.connect(outbox_dsn) as slow, psycopg.connect(outbox_dsn, autocommit=True) as quick:
            post(slow, "slow")
            async with draining(outbox_dsn) as drain:
                for number in range(5):
                    post(quick, f"quick.{number}")
                await come(lambda: drain.status.stored == 5)
                slow.commit()
                await come(lambda: drain.status.stored == 6)

    asyncio.run(run())
    assert {row["action"] for row in stored(outbox_dsn)} == {"slow", *(f"quick.{number}" for number in range(5))}


def test_a_long_backlog_is_drained_in_batches_of_bounded_size(outbox_dsn: str) -> None:
    with psycopg.connect(outbox_dsn) as conn:
        conn.execute(
            """select afterwrite_outbox.post(json_build_object('event', json_build_object(
                 'category', 'data', 'action', 'n' || n, 'summary', repeat('x', 100)))::text)
                 from generate_series(1, 500) n"""
        )
    drain = drain_all(outbox_dsn, pace=msgspec.structs.replace(PACE, batch_rows=100, batch_bytes=4_000))
    assert (drain.status.stored, drain.status.refused) == (500, 0)
    assert len({row["action"] for row in stored(outbox_dsn)}) == 500
    with psycopg.connect(outbox_dsn) as conn:
        sizes = conn.execute("select max(rows), min(rows) from afterwrite.batch").fetchone()
    assert sizes is not None
    assert 1 <= sizes[0] <= 40


def test_what_cannot_be_read_is_set_aside_and_holds_nothing_back(outbox_dsn: str) -> None:
    bad = [
        "no json",
        "{}",
        '{"event": {"category": "data"}}',
        '{"event": {"category": "data", "action": "a", "outcome": "perhaps"}}',
        '{"event": {"category": "data", "action": "a"}, "context": [1]}',
        "[" * 20_000,
    ]
    with psycopg.connect(outbox_dsn) as conn:
        post(conn, "before")
        for payload in bad:
            conn.execute("select afterwrite_outbox.post(%s)", [payload])
        post(conn, "after")
    drain = drain_all(outbox_dsn)
    assert (drain.status.stored, drain.status.refused) == (2, len(bad))
    assert [row["action"] for row in stored(outbox_dsn)] == ["before", "after"]

    async def look() -> None:
        async with connect(outbox_dsn) as db:
            rows = await read_refused(db)
            assert [row.beginning for row in reversed(rows)] == [payload[:200] for payload in bad]
            assert all("no event that this version knows" in row.reason for row in rows)
            (finding,) = await examine(db)
            assert (finding.rule, finding.text[:9]) == ("outbox.refused", "6 events ")
            assert await put_back(db) == len(bad)

    asyncio.run(look())
    assert drain_all(outbox_dsn).status.refused == len(bad)


def test_odd_values_are_stored_in_a_defined_way(outbox_dsn: str) -> None:
    with psycopg.connect(outbox_dsn) as conn:
        post(conn, "nul", metadata={"a": "\0"}, caused_by="no uuid", summary="x" * 100_000)
        post(conn, "listed", metadata=[1, 2], id="01980000-0000-8000-8000-000000000000")
        post(conn, "told", metadata={"xid": "mine"}, occurred_at="2020-01-01T00:00:00Z")
    drain = drain_all(outbox_dsn)
    assert (drain.status.stored, drain.status.refused) == (3, 0)
    nul, listed, told = stored(outbox_dsn)
    assert nul["caused_by"] is None
    assert listed["metadata"]["metadata"] == [1, 2]
    assert listed["metadata"]["told_id"] == "01980000-0000-8000-8000-000000000000" != str(listed["id"])
    assert isinstance(told["metadata"]["xid"], int)
    assert told["metadata"]["occurred_at"] == "2020-01-01T00:00:00Z"
    assert told["occurred_at"].year > 2020


class PickySink:
    """Takes what is not called ``bad``, when it is there; it remembers what it took."""

    def __init__(self) -> None:
        self.down = False
        self.refuse_all = 0
        self.ids: list[str] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        yield self

    async def write(self, batch: Batch) -> Receipt:
        if self.down:
            raise ConnectionLost("the store is down")
        actions = [activity.action for activity in batch.activities]
        if "bad" in actions or self.refuse_all > 0:
            self.refuse_all -= 1
            raise DatabaseError("no such value", sqlstate="23514")
        self.ids += [activity.id for activity in batch.activities]
        return Receipt(batch_id=1, position=1, stored=len(actions))


def test_one_that_the_store_refuses_is_found_and_set_aside(outbox_dsn: str) -> None:
    sink = PickySink()
    with psycopg.connect(outbox_dsn) as conn:
        for number in range(20):
            post(conn, "bad" if number in (3, 11) else f"good.{number}")
    drain = drain_all(outbox_dsn, open_=sink.open)
    assert (drain.status.stored, drain.status.refused) == (18, 2)
    assert len(sink.ids) == len(set(sink.ids)) == 18
    assert count(outbox_dsn, "afterwrite_outbox.refused") == 2


def test_a_store_that_is_down_or_refuses_everything_for_a_while_loses_nothing(outbox_dsn: str) -> None:
    sink = PickySink()
    sink.down = True
    with psycopg.connect(outbox_dsn) as conn:
        for number in range(3):
            post(conn, f"n{number}")

    async def run() -> None:
        async with draining(outbox_dsn, sink.open) as drain:
            await come(lambda: drain.status.trouble == "the store is down")
            assert count(outbox_dsn, "afterwrite_outbox.event") == 3
            sink.refuse_all = 3 + 2  # once the whole batch, down to each
            sink.down = False
            await come(lambda: drain.status.stored == 3)
            assert (drain.status.refused, drain.status.trouble) == (0, None)

    asyncio.run(run())


def test_writers_post_and_can_do_nothing_else(server: Server, outbox_dsn: str) -> None:
    with psycopg.connect(outbox_dsn, autocommit=True) as conn:
        conn.execute("set role pg_monitor")  # any role without rights of its own
        post(conn, "posted")
        for forbidden in (
            "select * from afterwrite_outbox.event",
            "insert into afterwrite_outbox.event (payload, written_at) values ('', '2000-01-01')",
            "update afterwrite_outbox.event set payload = ''",
            "delete from afterwrite_outbox.event",
            "truncate afterwrite_outbox.event",
            "lock table afterwrite_outbox.event in row exclusive mode",
            "select * from afterwrite_outbox.refused",
        ):
            with pytest.raises(errors.InsufficientPrivilege), conn.transaction():
                conn.execute(forbidden.encode())
    drain_all(outbox_dsn)
    assert [row["action"] for row in stored(outbox_dsn)] == ["posted"]


def test_only_named_roles_may_post_where_some_are_named(outbox_dsn: str, recorder: Recorder) -> None:
    lay_outbox(outbox_dsn, "pg_monitor")
    with psycopg.connect(outbox_dsn) as conn:
        conn.execute("set role pg_signal_backend")
        # Asked beforehand, so that the application's transaction goes on.
        assert recorder.record("elsewhere", conn=conn).wait(5)
        assert (recorder.stats().emitted, recorder.stats().recorded) == (0, 1)
        with pytest.raises(errors.InsufficientPrivilege):
            post(conn, "directly")
        conn.rollback()
        known.forget()
        conn.execute("set role pg_monitor")
        recorder.record("posted", conn=conn)
        conn.commit()
    assert recorder.stats().emitted == 1
    drain_all(outbox_dsn)
    assert [row["action"] for row in stored(outbox_dsn)] == ["posted"]
    lay_outbox(outbox_dsn, "pg_signal_backend")
    with psycopg.connect(outbox_dsn) as conn:
        conn.execute("set role pg_monitor")
        with pytest.raises(errors.InsufficientPrivilege):
            post(conn, "no longer")


def test_a_read_only_transaction_posts_nothing_and_goes_on(outbox_dsn: str, recorder: Recorder) -> None:
    with psycopg.connect(outbox_dsn) as conn:
        conn.read_only = True
        recorder.record("looked", conn=conn)
        assert conn.execute("select 1").fetchone() == (1,)
    assert (recorder.stats().emitted, recorder.stats().recorded) == (0, 1)


def test_where_nobody_would_ever_read_it_an_event_goes_to_the_spool(
    installed_dsn: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that writes a logical WAL which no slot reads would take it, and nobody would see it."""
    with psycopg.connect(installed_dsn) as conn:
        recorder.record("a", conn=conn)
        recorder.record("b", conn=conn)
    assert (recorder.stats().emitted, recorder.stats().recorded) == (0, 2)
    assert [record.message.count("afterwrite outbox install") for record in caplog.records] == [1]


def test_with_a_slot_of_ours_events_go_as_messages_and_with_another_program_s_to_the_outbox(
    server: Server, outbox_dsn: str, tmp_path: Path
) -> None:
    slot = f"own_{tmp_path.name[-20:].replace('-', '_').lower()}"
    with psycopg.connect(outbox_dsn, autocommit=True) as conn:
        conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        for name, waiting in ((slot, 0), ("afterwrite", 1)):
            known.forget()
            options = Options(spool_dir=str(tmp_path), slot=name)
            recorder = Recorder(source="shop", open_sink=None, options=options)
            recorder.record("a", conn=conn)
            assert recorder.stats().emitted == 1
            assert count(outbox_dsn, "afterwrite_outbox.event") == waiting
            recorder.close(0.2)
        conn.execute("select pg_drop_replication_slot(%s)", [slot])


def test_signatures_are_asked_for_where_there_is_a_key(outbox_dsn: str, tmp_path: Path) -> None:
    options = Options(spool_dir=str(tmp_path), stamp_key="first-key", events="outbox")  # type: ignore[arg-type]
    recorder = Recorder(source="shop", open_sink=None, options=options)
    with psycopg.connect(outbox_dsn) as conn:
        recorder.record("signed", conn=conn)
        post(conn, "forged")
    recorder.close(0.2)
    drain_all(outbox_dsn, keys=("second-key", "first-key"))
    assert {row["action"]: "unsigned" in row["metadata"] for row in stored(outbox_dsn)} == {
        "signed": False,
        "forged": True,
    }


def test_two_drains_take_turns_and_one_that_stands_still_is_not_waited_for(outbox_dsn: str) -> None:
    async def run() -> None:
        with psycopg.connect(outbox_dsn, autocommit=True) as conn:
            async with draining(outbox_dsn) as first:
                await come(lambda: first.status.active)
                async with draining(outbox_dsn) as second:
                    post(conn, "a")
                    await come(lambda: first.status.stored == 1)
                    assert not second.status.active
                    first.stop()
                    await come(lambda: second.status.active)
                    post(conn, "b")
                    await come(lambda: second.status.stored == 1)
            # Somebody has the claim, and does nothing.
            conn.execute("select pg_advisory_lock(hashtextextended('afterwrite.outbox', 0))")
            post(conn, "c")
            async with draining(outbox_dsn) as third:
                await come(lambda: third.status.stored == 1)

    asyncio.run(run())
    assert sorted(row["action"] for row in stored(outbox_dsn)) == ["a", "b", "c"]


def test_an_outbox_that_is_installed_later_is_found_and_one_that_is_gone_is_no_trouble(installed_dsn: str) -> None:
    async def run() -> None:
        async with draining(installed_dsn) as drain:
            await asyncio.sleep(0.1)
            assert not drain.status.laid
            await asyncio.to_thread(lay_outbox, installed_dsn)
            with psycopg.connect(installed_dsn) as conn:
                post(conn, "a")
            await come(lambda: drain.status.stored == 1)
            async with connect(installed_dsn) as db:
                await remove(db, await plan_remove(db), grace_seconds=0)
                assert await measure(db) is None
            await come(lambda: not drain.status.laid)
            assert drain.status.trouble is None

    asyncio.run(run())


def test_it_is_not_removed_with_events_in_it(outbox_dsn: str) -> None:
    async def run() -> None:
        async with connect(outbox_dsn) as db:
            with psycopg.connect(outbox_dsn) as conn:
                post(conn, "a")
            steps = await plan_remove(db)
            with pytest.raises(Refused, match="holds 1 events that are not delivered"):
                await remove(db, steps, grace_seconds=0)
            assert await measure(db) is not None
            await remove(db, steps, grace_seconds=0, discard=True)
            assert await measure(db) is None
            await remove(db, await plan_remove(db), grace_seconds=0)

    asyncio.run(run())


def test_while_it_goes_no_transaction_fails(outbox_dsn: str, recorder: Recorder) -> None:
    """Who knew of it goes on posting, who asks looks elsewhere; then nobody does, and it is gone."""

    async def run() -> None:
        async with connect(outbox_dsn) as db:
            steps = await plan_remove(db)
            with psycopg.connect(outbox_dsn, autocommit=True) as conn:
                recorder.record("before", conn=conn)
                removing = asyncio.create_task(remove(db, steps, grace_seconds=0.3, discard=True))
                await asyncio.sleep(0.1)
                recorder.record("known", conn=conn)
                assert recorder.stats().emitted == 2
                known.forget()  # as half a minute does
                recorder.record("asked", conn=conn)
                await removing
                recorder.record("gone", conn=conn)
            assert (recorder.stats().emitted, recorder.stats().recorded) == (2, 2)
            assert await measure(db) is None

    asyncio.run(run())


def test_scan_says_nothing_of_it(outbox_dsn: str) -> None:
    async def run() -> None:
        async with connect(outbox_dsn) as db:
            await db.run(
                b"create function public.mine() returns trigger language plpgsql as 'begin return null; end';"
                b"create trigger mine after insert on afterwrite_outbox.event execute function public.mine()"
            )
            found = await survey(db)
            assert "outbox" not in repr((found.judgements, found.findings, found.inventory.tables))

    asyncio.run(run())


def test_the_examiner_says_when_nobody_drains(outbox_dsn: str) -> None:
    with psycopg.connect(outbox_dsn) as conn:
        post(conn, "a")
        conn.execute("update afterwrite_outbox.event set written_at = now() - interval '1 hour'")

    async def run() -> list[str]:
        async with connect(outbox_dsn) as db:
            return [f"{finding.rule} {finding.text}" for finding in await examine(db)]

    (told,) = asyncio.run(run())
    with psycopg.connect(outbox_dsn, autocommit=True) as conn:
        conn.execute("alter database " + conn.info.dbname + " set role pg_monitor")  # type: ignore[call-overload]
    assert [finding[:13] for finding in asyncio.run(run())] == ["outbox.unseen"]
    assert told.startswith("outbox.old 1 events wait in afterwrite_outbox, the first of them for 3,600 s")


def test_a_row_that_the_server_cannot_give_is_set_aside(server: Server, installed_dsn: str) -> None:
    """In a database of encoding SQL_ASCII any bytes are text, and no UTF-8."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("create database ascii_outbox encoding 'SQL_ASCII' locale 'C' template template0")
    dsn = server.dsn("ascii_outbox")
    try:
        lay_outbox(dsn)
        with psycopg.connect(dsn, client_encoding="SQL_ASCII") as conn:
            for payload in (json.dumps({"event": {"category": "data", "action": "good"}}).encode(), b"\xff\xfe"):
                conn.execute(b"select afterwrite_outbox.post('" + payload + b"')")

        async def run() -> None:
            async with draining(dsn, lambda: open_sink(installed_dsn)) as drain:
                await come(lambda: drain.status.stored == 1 and drain.status.refused == 1)

        asyncio.run(run())
        assert [row["action"] for row in stored(installed_dsn)] == ["good"]
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("drop database ascii_outbox with (force)")
