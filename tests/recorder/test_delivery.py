"""From the spool to a sink: outages, what is refused, and into the real store."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import psycopg
import pytest
from recorder_rig import KeptSink, assert_closed_account, recording, until

from afterwrite.errors import AfterwriteError, DatabaseError, UsageError
from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch
from afterwrite.recorder import Options, Recorder, commit, deliver, spool
from afterwrite.recorder.deliver import NotTaken, Unstorable, is_refusal
from afterwrite.recorder.ids import Ids
from afterwrite.recorder.spool import SpoolError, SpoolFile
from afterwrite.store.reader import verify_feed
from afterwrite.store.writer import open_sink


def stored_rows(dsn: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "select id::text, action, source, kind, metadata from afterwrite.activity order by id"
        ).fetchall()


def into_store(dsn: str, folder: Path, **options: object) -> Recorder:
    return Recorder(
        source="shop",
        open_sink=lambda: open_sink(dsn),
        options=Options(spool_dir=str(folder / "spool"), **{"linger_seconds": 0.0, "close_seconds": 5.0, **options}),
        destination=dsn,
    )


def test_events_reach_the_store_once_with_their_seal(installed_dsn: str, tmp_path: Path) -> None:
    recorder = into_store(installed_dsn, tmp_path)
    ids = [recorder.record("user.create", metadata={"n": number, "odd": "a\0\\u0000"}).id for number in range(3_000)]
    assert recorder.flush(20)
    assert recorder.close()
    assert [row[0] for row in stored_rows(installed_dsn)] == sorted(ids)

    async def verify() -> None:
        async with connect(installed_dsn) as db:
            report = await verify_feed(db)
            assert (report.first_break, report.rows) == (None, 3_000)

    asyncio.run(verify())
    assert recorder.stats().stored == 3_000
    assert_closed_account(recorder)


def test_an_id_that_is_sent_again_is_stored_once(installed_dsn: str) -> None:
    now = datetime.now(UTC)
    batch = Batch(
        source="shop",
        activities=[
            Activity(
                id=f"01a20000-0000-7000-8000-{number:012}",
                occurred_at=now,
                source="shop",
                kind="event",  # type: ignore[arg-type]
                category="c",
                action="a",
            )
            for number in range(10)
        ],
        transactions=0,
    )

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            assert (await sink.write(batch)).stored == 10
            assert (await sink.write(batch)).stored == 0
            more = [
                *batch.activities,
                msgspec.structs.replace(next(iter(batch.activities)), id="01a20000-0000-7000-8000-0000000000ff"),
            ]
            assert (await sink.write(Batch(source="shop", activities=more, transactions=0))).stored == 1

    asyncio.run(scenario())
    assert len(stored_rows(installed_dsn)) == 11


def test_an_event_that_is_recorded_again_under_its_id_is_stored_once(installed_dsn: str, tmp_path: Path) -> None:
    recorder = into_store(installed_dsn, tmp_path)
    own, theirs = recorder.record("a.b").id, str(uuid.uuid5(uuid.NAMESPACE_URL, "https://pay.example.com/events/7"))
    paid_at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    told = Ids().make()
    recorder.record("order.paid", id=theirs, occurred_at=paid_at)
    recorder.record("order.sent", id=told)
    assert recorder.flush(30)
    for _ in range(2):  # again, by whoever was not sure that it was
        recorder.record("order.paid", id=uuid.UUID(theirs), occurred_at=paid_at)
        recorder.record("order.sent", id=told.upper())
        assert recorder.flush(30)
    assert {row[0] for row in stored_rows(installed_dsn)} == {own, theirs, told}
    assert len(stored_rows(installed_dsn)) == 3
    assert_closed_account(recorder)
    recorder.close()
    strict = into_store(installed_dsn, tmp_path, strict=True)
    with pytest.raises(UsageError, match="does not say when it was"):
        strict.record("order.paid", id=theirs)


def test_what_the_store_refuses_is_found_and_holds_nobody_up(installed_dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(installed_dsn, autocommit=True) as connection:
        connection.execute("""
            create function refuse() returns trigger language plpgsql as $$
            begin
                if new.action like 'poison%' then raise exception 'not this one' using errcode = '22023'; end if;
                return new;
            end $$
        """)
        for (table,) in connection.execute(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'afterwrite.activity'::regclass"
        ).fetchall():
            connection.execute(f"create trigger refuse before insert on {table} for each row execute function refuse()")
    recorder = into_store(installed_dsn, tmp_path)
    ids = {recorder.record("poison.one" if number in {3, 77} else "fine.one").id for number in range(100)}
    assert recorder.flush(30)
    stored = {row[0] for row in stored_rows(installed_dsn)}
    assert len(stored) == 98
    assert stored < ids
    stats = recorder.stats()
    assert (stats.stored, stats.dropped) == (98, {"refused": 2})
    refused = recorder.read_refused()
    assert {id for id, _, _ in refused} == ids - stored
    assert all("not this one" in reason and b"poison.one" in body for _, reason, body in refused)
    assert_closed_account(recorder)
    recorder.close()


def leave_behind(folder: Path, *actions: str) -> None:
    """What a process leaves that could not deliver."""
    with recording(folder, close_seconds=0.1) as (gone, down):
        down.down = True
        for action in actions:
            gone.record(action)


def test_what_is_refused_of_another_processs_spool_is_kept_aside_too(tmp_path: Path) -> None:
    leave_behind(tmp_path, "fine.one", "odd.one")
    with recording(tmp_path) as (recorder, sink):
        sink.refuse = lambda activity: Unstorable("too odd") if activity.action == "odd.one" else None
        recorder.record("own.one")
        until(lambda: len(sink.activities) == 2)
        until(lambda: recorder.stats().dropped == {"refused": 1})
        until(lambda: len(list((tmp_path / "spool").glob("*.spool"))) == 1)
        ((_, reason, body),) = recorder.read_refused()
        assert reason == "too odd"
        assert b"odd.one" in body
        assert_closed_account(recorder)


def test_what_another_user_put_into_the_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(tmp_path, "forged.one")
    (found,) = (tmp_path / "spool").glob("*.spool")
    assert [each.path for each in find_ours(found)] == [found]
    monkeypatch.setattr(spool, "_is_ours", lambda path: path != found)
    assert find_ours(found) == []
    assert found.exists()


def find_ours(path: Path) -> list[SpoolFile]:
    taken = spool.find_orphans(path.parent, path.name.partition("-")[0], most=9)
    for each in taken:
        each.close()
    return taken


def test_a_disk_that_is_full_of_others_spools_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(tmp_path, "left.one", "odd.one")
    monkeypatch.setattr(commit, "_REOPEN_SECONDS", 0.2)
    monkeypatch.setattr(commit, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(deliver, "_ORPHAN_SECONDS", 0.2)

    def full(*_: object) -> SpoolFile:
        raise SpoolError("database or disk is full")

    with recording(tmp_path) as (recorder, sink):
        sink.refuse = lambda activity: Unstorable("too odd") if activity.action == "odd.one" else None
        with monkeypatch.context() as patched:
            patched.setattr(SpoolFile, "create", full)
            recorder.record("own.one")
            until(lambda: {each.action for each in sink.activities.values()} == {"left.one", "own.one"})
            until(lambda: recorder.stats().spooled == 0)
            assert recorder.stats().spool_trouble
            assert recorder.read_refused() == []
        # It stays in that file, until there is one of our own that takes it.
        until(lambda: recorder.record("own.two") and recorder.read_refused(), 15)
        assert recorder.stats().dropped == {"refused": 1}
        assert_closed_account(recorder)


def test_a_moment_that_utc_has_no_year_for_holds_nobody_up(installed_dsn: str, tmp_path: Path) -> None:
    recorder = into_store(installed_dsn, tmp_path)
    east, west = timezone(timedelta(hours=14)), timezone(-timedelta(hours=14))
    recorder.record("first.one", occurred_at=datetime.min.replace(tzinfo=east))
    recorder.record("last.one", occurred_at=datetime.max.replace(tzinfo=west))
    recorder.record("a.b", entity=("number", 10**5000))
    assert recorder.flush(20)
    assert [row[1] for row in stored_rows(installed_dsn)] == ["first.one", "last.one", "a.b"]
    assert recorder.stats().dropped == {}
    recorder.close()
    # What an older version left in a spool has such moments as they were.
    assert is_refusal(OverflowError("date value out of range"))


def test_a_store_without_a_schema_is_an_outage_with_its_remedy(dsn: str, tmp_path: Path) -> None:
    recorder = into_store(dsn, tmp_path, close_seconds=0.5)
    assert recorder.record("a.b").wait(5)
    until(lambda: recorder.stats().delivery_trouble)
    assert recorder.stats().spooled == 1
    recorder.close()


def test_an_outage_keeps_events_in_order_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with recording(tmp_path) as (recorder, sink), caplog.at_level(logging.WARNING, "afterwrite"):
        sink.down = True
        ids = [recorder.record("a.b").id for _ in range(50)]
        until(lambda: sink.opened > 1)
        assert not recorder.flush(0.3)
        assert recorder.stats().delivery_trouble == "the store is down"
        sink.down = False
        assert recorder.flush()
        assert list(sink.activities) == ids
        assert recorder.stats().delivery_trouble is None
        assert sum("cannot be delivered" in record.getMessage() for record in caplog.records) == 1
        assert_closed_account(recorder)


def test_refusals_of_every_kind_are_told_from_outages(tmp_path: Path) -> None:
    kinds: list[Exception] = [
        ValueError("no JSON"),
        Unstorable("no"),
        DatabaseError("too long", sqlstate="22001"),
        DatabaseError("check", sqlstate="23514"),
    ]
    assert all(is_refusal(error) for error in kinds)
    assert not any(
        is_refusal(error)
        for error in (
            DatabaseError("full", sqlstate="53100"),
            DatabaseError("gone"),
            AfterwriteError("no"),
            OSError("no"),
        )
    )
    with recording(tmp_path) as (recorder, sink):
        sink.refuse = lambda activity: (
            NotTaken({activity.id: "unknown action"}) if activity.action == "odd.one" else None
        )
        odd, fine = recorder.record("odd.one"), None
        assert recorder.flush()
        sink.refuse = lambda activity: kinds[len(sink.batches) % 4] if activity.action == "odd.two" else None
        for number in range(40):
            fine = recorder.record("odd.two" if number % 10 == 0 else "fine.one")
        assert recorder.flush()
        assert fine is not None
        assert fine.id in sink.activities
        assert len(sink.activities) == 36
        assert recorder.stats().dropped == {"refused": 5}
        assert recorder.read_refused()[0][:2] == (odd.id, "unknown action")
        assert_closed_account(recorder)


def test_batches_are_bounded_and_a_lone_event_waits_a_little_for_others(tmp_path: Path) -> None:
    with recording(tmp_path, batch_events=700, linger_seconds=0.4) as (recorder, sink):
        first = recorder.record("a.b")
        assert first.wait(5)
        recorder.record("a.c")
        until(lambda: len(sink.activities) == 2)
        assert len(sink.batches) == 1
        sink.down = True
        for _ in range(5_000):
            recorder.record("a.d")
        until(lambda: recorder.stats().queued == 0)
        sink.down = False
        assert recorder.flush()
        assert max(len(batch.activities) for batch in sink.batches) <= 1_000
        assert len(sink.activities) == 5_002


def test_many_threads_record_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    with recording(tmp_path) as (recorder, sink):
        ids: list[str] = []

        def work() -> None:
            ids.extend([recorder.record("a.b", metadata={"n": number}).id for number in range(2_000)])

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert recorder.flush(20)
        assert len(ids) == 12_000
        assert set(ids) == set(sink.activities)
        assert_closed_account(recorder)


def test_the_account_closes_at_every_moment(tmp_path: Path) -> None:
    with recording(tmp_path, queue_events=300) as (recorder, sink):
        stop = threading.Event()

        def work() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                recorder.record("a.b", durability="memory" if number % 5 == 0 else None)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for number in range(150):
                sink.down = number % 50 > 35
                assert_closed_account(recorder)
        finally:
            stop.set()
            thread.join()
        sink.down = False
        assert recorder.flush(20)
        assert_closed_account(recorder)


def test_a_sink_of_another_loop_is_never_touched_by_the_applications(tmp_path: Path) -> None:
    """record(), awaiting and aflush() in an application's loop, while delivery runs in its own."""

    async def scenario() -> None:
        with recording(tmp_path) as (recorder, sink):
            await asyncio.gather(*(recorder.record("a.b") for _ in range(500)))
            assert await recorder.aflush()
            assert len(sink.activities) == 500

    asyncio.run(scenario())


def test_a_sink_that_is_unusable_never_reaches_the_application(tmp_path: Path) -> None:
    kept = KeptSink()

    def broken() -> None:
        raise RuntimeError("no sink at all")

    recorder = Recorder(
        source="shop",
        open_sink=broken,  # type: ignore[arg-type]
        options=Options(spool_dir=str(tmp_path / "spool"), close_seconds=0.2),
    )
    assert recorder.record("a.b").wait(5)
    until(lambda: recorder.stats().delivery_trouble == "RuntimeError: no sink at all")
    recorder.close()
    with recording(tmp_path, kept) as (next_one, _):
        next_one.record("a.c")
        until(lambda: len(kept.activities) == 2)
