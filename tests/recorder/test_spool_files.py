"""The spool on real files: what one process committed, another finds; what is broken is set aside."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from pathlib import Path

import msgspec
import pytest
from recorder_rig import KeptSink, assert_closed_account, recording, until

from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.spool import (
    CorruptError,
    MemorySpool,
    Refusal,
    SpoolError,
    SpoolFile,
    decode_chunk,
    find_orphans,
    salvage,
)

BODY = b'[{"id":"%d","occurred_at":"2026-01-01T00:00:00Z","source":"s","kind":"event","category":"c","action":"a"}]'


def body(number: int) -> tuple[int, bytes]:
    return 1, BODY % number


def leave(spool: SpoolFile) -> None:
    """As if its process had gone: nobody holds its lock."""
    assert spool._lock is not None
    spool._disconnect()
    os.close(spool._lock)
    spool._lock = None


def test_chunks_come_back_in_order_and_are_gone_once_settled(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path / "deep" / "er", "x")
    spool.append([body(1), body(2)], dropped={})
    spool.append([body(3)], sync=True, dropped={"queue_full": 4})
    assert (spool.events, spool.last, spool.settled) == (3, 3, 0)
    first = spool.read(2, 1 << 20)
    assert [decode_chunk(chunk)[0].id for chunk in first] == ["1", "2"]
    spool.settle(first)
    assert [chunk.number for chunk in spool.read(100, 1 << 20)] == [3]
    assert (spool.events, spool.settled) == (1, 2)
    leave(spool)

    (found,) = find_orphans(tmp_path / "deep" / "er", "x", most=5)
    found.open()
    assert (found.events, found.bytes, found.settled, found.last) == (1, len(body(3)[1]), 2, 3)
    other = SpoolFile.create(tmp_path / "deep" / "er", "x")
    assert other.adopt(found) == {"queue_full": 4}
    found.settle(found.read(1, 1))
    found.close()
    other.close()
    assert list((tmp_path / "deep" / "er").iterdir()) == []


def test_files_and_folder_are_this_users_alone(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path / "spool", "x")
    spool.append([body(1)], dropped={})
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "spool").iterdir()} == {0o600}
    spool.delete()


def test_a_file_belongs_to_one_process_at_a_time_and_to_its_destination(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path, "x")
    spool.append([body(1)], dropped={})
    assert find_orphans(tmp_path, "x", most=5) == []
    leave(spool)
    assert find_orphans(tmp_path, "y", most=5) == []
    (found,) = find_orphans(tmp_path, "x", most=5)
    assert find_orphans(tmp_path, "x", most=5) == []
    found.delete()
    assert find_orphans(tmp_path, "x", most=5) == []


@pytest.mark.parametrize("damage", ["header", "middle", "no spool at all"])
def test_a_broken_file_is_set_aside_and_counted(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "spool"
    with recording(tmp_path) as (recorder, _):
        destination = recorder._destination
    spool = SpoolFile.create(folder, destination)
    spool.append([(1, b"[" + b" " * 40_000 + b"]")] * 50, dropped={})
    leave(spool)
    with sqlite3.connect(spool.path) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    db.close()
    raw = bytearray(spool.path.read_bytes())
    if damage == "header":
        raw[:100] = b"\1" * 100
    elif damage == "middle":
        raw[len(raw) // 2 : len(raw) // 2 + 9_000] = b"\xaa" * 9_000
    else:
        raw = bytearray(b"hello")
    spool.path.write_bytes(raw)
    with recording(tmp_path) as (recorder, sink):
        good = recorder.record("a.b")
        until(lambda: recorder.stats().corrupt_files == 1)
        assert recorder.flush()
        assert good.id in sink.activities
        assert_closed_account(recorder)
    assert [path.suffix for path in folder.glob(f"{spool.path.stem}*")] == [".corrupt"]


def test_a_chunk_that_is_partly_of_another_version_gives_what_can_be_read() -> None:
    memory = MemorySpool(1_000)
    memory.append([(3, b"[" + BODY[1:-1] % 1 + b',{"id":5},' + BODY[1:-1] % 2 + b"]")])
    (chunk,) = memory.read(10, 1 << 20)
    with pytest.raises(CorruptError):
        decode_chunk(chunk)
    events, refusals = salvage(chunk)
    assert [event.id for event in events] == ["1", "2"]
    assert [refusal.body for refusal in refusals] == [b'{"id":5}']


def test_what_is_refused_is_kept_aside_and_travels_with_the_file(tmp_path: Path) -> None:
    spool = SpoolFile.create(tmp_path, "x")
    spool.append([body(1)], dropped={})
    spool.settle(spool.read(1, 1), [Refusal("1", "too odd", BODY % 1)])
    spool.close()
    (found,) = find_orphans(tmp_path, "x", most=1)
    found.open()
    other = SpoolFile.create(tmp_path, "x")
    other.adopt(found)
    found.delete()
    assert other.read_refused() == [("1", "too odd", BODY % 1)]


def test_a_folder_that_cannot_be_is_told_and_events_go_through_memory(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with recording(tmp_path) as (recorder, sink):
        recorded = recorder.record("a.b")
        assert not recorded.wait(5)
        assert recorder.flush()
        assert recorded.id in sink.activities
        trouble = recorder.stats().spool_trouble
        assert trouble is not None
        assert "kept in memory alone" in trouble
        assert_closed_account(recorder)


def test_a_disk_that_is_full_sends_events_through_memory_until_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(tmp_path, queue_bytes=50_000, queue_events=50) as (recorder, sink):
        assert recorder.record("first.one").wait(5)
        sink.down = True
        real = SpoolFile.append

        def fail(*_: object, **__: object) -> None:
            raise SpoolError("database or disk is full")

        monkeypatch.setattr(SpoolFile, "append", fail)
        assert not recorder.record("second.one").wait(5)
        for _ in range(60):
            recorder.record("many.more", metadata={"x": "y" * 2_000})
            time.sleep(0.001)
        until(lambda: recorder.stats().dropped.get("disk"))
        assert_closed_account(recorder)
        sink.down = False
        assert recorder.flush()
        monkeypatch.setattr(SpoolFile, "append", real)
        until(lambda: recorder.record("third.one").wait(1))
        assert recorder.stats().spool_trouble is None
        assert recorder.flush()
        assert {"first.one", "second.one", "third.one"} <= {event.action for event in sink.activities.values()}
        assert_closed_account(recorder)


def test_a_full_spool_sheds_new_events_and_keeps_the_old(tmp_path: Path) -> None:
    with recording(tmp_path, spool_bytes=150_000, queue_events=20) as (recorder, sink):
        sink.down = True
        first = recorder.record("first.one")
        assert first.wait(5)

        def shed() -> bool:
            recorder.record("many.more", metadata={"x": "y" * 2_000})
            time.sleep(0.001)
            return recorder.stats().dropped.get("spool_full", 0) > 10

        until(shed)
        assert recorder.stats().spool_bytes < 250_000
        assert not recorder.record("late.one").wait(1)
        assert_closed_account(recorder)
        sink.down = False
        assert recorder.flush()
        assert first.id in sink.activities
        until(lambda: recorder.record("again.one").wait(1))
        assert_closed_account(recorder)


def test_with_block_a_call_waits_for_room_up_to_its_deadline(tmp_path: Path) -> None:
    with recording(tmp_path, spool_bytes=20_000, queue_events=5, overflow="block", block_seconds=0.3) as (
        recorder,
        sink,
    ):
        sink.down = True
        until(lambda: recorder.record("a.b", metadata={"x": "y" * 5_000}).wait(0.2) is False)
        while recorder.stats().queued < 5:
            recorder.record("a.b")
        before = time.monotonic()
        recorder.record("a.b")
        assert 0.25 < time.monotonic() - before < 2
        assert recorder.stats().dropped["spool_full"] >= 1
        sink.down = False
        assert recorder.flush()
        assert_closed_account(recorder)


def test_what_waited_too_long_is_dropped_and_counted(tmp_path: Path) -> None:
    with recording(tmp_path, spool_seconds=0.3) as (recorder, sink):
        sink.down = True
        old = recorder.record("old.one")
        assert old.wait(5)
        until(lambda: recorder.stats().delivery_trouble)
        time.sleep(0.5)
        sink.down = False
        new = recorder.record("new.one")
        assert recorder.flush()
        assert set(sink.activities) == {new.id}
        assert recorder.stats().dropped == {"expired": 1}
        assert_closed_account(recorder)


def test_a_spool_that_somebody_deletes_is_begun_again(tmp_path: Path) -> None:
    with recording(tmp_path) as (recorder, sink):
        sink.down = True
        assert recorder.record("a.b").wait(5)
        for path in (tmp_path / "spool").iterdir():
            path.unlink()
        until(lambda: recorder.stats().dropped.get("lost") == 1)
        sink.down = False
        again = recorder.record("a.c")
        assert recorder.flush()
        assert set(sink.activities) == {again.id}
        assert_closed_account(recorder)


def test_what_could_not_be_delivered_waits_for_the_next_process(tmp_path: Path) -> None:
    sink = KeptSink()
    sink.down = True
    with recording(tmp_path, sink, close_seconds=0.2) as (recorder, _):
        ids = [recorder.record("a.b", metadata={"n": number}).id for number in range(2_000)]
        assert not recorder.close()
    sink.down = False
    with recording(tmp_path, sink) as (recorder, _):
        new = recorder.record("a.c").id
        until(lambda: recorder.stats().stored == 2_001)
        assert recorder.stats().adopted == 2_000
        assert set(sink.activities) == {*ids, new}
        assert_closed_account(recorder)
    assert list((tmp_path / "spool").iterdir()) == []


def test_without_a_sink_events_are_spooled_alone(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    recorder = Recorder(source="shop", open_sink=None, options=Options(spool_dir=str(folder)))
    recorder.record("a.b")
    assert recorder.flush()
    recorder.close()
    (found,) = find_orphans(folder, recorder._destination, most=5)
    found.open()
    (chunk,) = found.read(10, 1 << 20)
    assert [msgspec.json.decode(chunk.body)[0]["action"], found.events] == ["a.b", 1]
    found.delete()


def test_a_file_that_cannot_be_read_now_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = KeptSink()
    sink.down = True
    with recording(tmp_path, sink, close_seconds=0.1) as (recorder, _):
        recorder.record("a.b").wait(5)
    (left,) = (tmp_path / "spool").glob("*.spool")
    with sqlite3.connect(left) as db:
        db.execute("pragma user_version = 9")
    db.close()
    sink.down = False
    with recording(tmp_path, sink) as (recorder, _):
        recorder.record("a.c")
        assert recorder.flush()
        time.sleep(0.1)
        assert recorder.stats().adopted == 0
        assert_closed_account(recorder)
    assert left.exists()
    with sqlite3.connect(left) as db:
        db.execute("pragma user_version = 1")
    db.close()
    with recording(tmp_path, sink) as (recorder, _):
        recorder.record("a.d")
        until(lambda: len(sink.activities) == 3)
    assert not left.exists()


def test_delivery_goes_on_where_the_disk_is_too_full_to_delete_what_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = KeptSink()
    sink.down = True
    with recording(tmp_path, sink, batch_events=500) as (recorder, _):
        for _ in range(2_000):
            recorder.record("a.b")
        until(lambda: recorder.stats().queued == 0)
        real = SpoolFile._keep_refused

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(SpoolFile, "_keep_refused", fail)
        sink.down = False
        assert recorder.flush()
        assert len(sink.activities) == 2_000
        assert "disk is full" in (recorder.stats().spool_trouble or "")
        assert_closed_account(recorder)
        monkeypatch.setattr(SpoolFile, "_keep_refused", real)
    assert list((tmp_path / "spool").iterdir()) == []
    assert sum(len(batch.activities) for batch in sink.batches) == 2_000


def test_a_clock_that_is_set_back_does_not_hold_delivery_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recording(tmp_path, linger_seconds=0.05) as (recorder, sink):
        recorder.record("a.b").wait(5)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 3_600)
        recorder.record("a.c").wait(5)
        until(lambda: len(sink.activities) == 2, 3)


def test_drops_are_told_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with recording(tmp_path) as (recorder, _):
        for _ in range(50):
            recorder.record("a.b", outcome="maybe")
        until(lambda: "activities are dropped, so far: unusable 50" in caplog.text)
    assert caplog.text.count("could not be recorded") == 1
