"""What afterwrite gives to the tests of applications."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from uuid import UUID

import pytest
from docrunner import run_pytest

from afterwrite import activity, context
from afterwrite.errors import UsageError
from afterwrite.recorder import Options, Recorder
from afterwrite.testing import Memory, MemorySink, assert_not_recorded, assert_recorded, recording


def test_a_failed_assertion_shows_the_nearest_and_what_they_miss(recorded: Memory) -> None:
    with context.bind(actor="user:42"):
        activity.record("report.exported", entity=("report", 7), metadata={"rows": 12, "file": {"kind": "csv"}})
        activity.record("report.opened", entity=("report", 7))
        activity.record("user.renamed")
    with pytest.raises(AssertionError) as failed:
        recorded.assert_recorded(
            "report.exported", entity=("report", 8), metadata={"rows": 12, "file": {"kind": "pdf"}, "pages": 3}
        )
    assert str(failed.value).splitlines() == [
        "not recorded: action='report.exported', entity=('report', 8),"
        " metadata={'rows': 12, 'file': {'kind': 'pdf'}, 'pages': 3}",
        "the nearest of 3:",
        '  report.exported  report/7  success by user:42  {"rows":12,"file":{"kind":"csv"}}',
        "      entity: wanted ('report', 8), found ('report', '7')",
        "      metadata.file.kind: wanted 'pdf', found 'csv'",
        "      metadata.pages: wanted 3, found nothing",
        "  user.renamed  success by user:42",
        "      action: wanted 'report.exported', found 'user.renamed'",
        "      entity: wanted ('report', 8), found None",
        "      metadata.rows: wanted 12, found nothing",
        "      metadata.file: wanted {'kind': 'pdf'}, found nothing",
        "      metadata.pages: wanted 3, found nothing",
        "  report.opened  report/7  success by user:42",
        "      action: wanted 'report.exported', found 'report.opened'",
        "      entity: wanted ('report', 8), found ('report', '7')",
        "      metadata.rows: wanted 12, found nothing",
        "      metadata.file: wanted {'kind': 'pdf'}, found nothing",
        "      metadata.pages: wanted 3, found nothing",
    ]


def test_assertions_that_fail_say_how_often_and_what(recorded: Memory) -> None:
    with pytest.raises(AssertionError, match="nothing was recorded"):
        recorded.assert_recorded("a.b")
    activity.record("a.b")
    activity.record("a.b")
    with pytest.raises(AssertionError, match="not recorded 3 times, but 2: action"):
        recorded.assert_recorded("a.b", times=3)
    with pytest.raises(AssertionError, match=r"recorded 2 times: action='a.b'\n  a.b  success"):
        recorded.assert_not_recorded("a.b")
    with pytest.raises(AssertionError, match="recorded 2 times: anything"):
        recorded.assert_not_recorded()
    with pytest.raises(TypeError, match="an activity has no 'user'; it has id, action"):
        recorded.assert_recorded("a.b", user=1)


def test_values_are_compared_as_they_were_recorded(recorded: Memory) -> None:
    moment, id = datetime(2026, 1, 1, tzinfo=UTC), UUID(int=7)
    activity.record("a.b", entity=("thing", id), metadata={"at": moment, "id": id, "pair": (1, 2)}, duration_ms=5)
    recorded.assert_recorded(
        "a.b",
        entity=("thing", id),
        metadata={"at": moment, "id": id, "pair": (1, 2)},
        duration_ms=lambda took: took < 10,
        in_transaction=False,
        times=1,
    )
    recorded.assert_recorded(entity="thing")
    assert len(recorded.find("a.b", entity=("thing", 7))) == 0
    recorded.clear()
    recorded.assert_not_recorded()


def test_what_is_recorded_on_a_connection_is_kept_and_the_connection_is_not_touched(recorded: Memory) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    conn = Untouchable()
    with activity.track("a.b", conn=conn):
        activity.record("a.c", conn=conn)

    async def run() -> None:
        async with activity.track("a.d", conn=conn):
            assert await activity.record("a.e", conn=conn)

    asyncio.run(run())
    assert [(each.action, each.in_transaction) for each in recorded] == [
        ("a.c", True), ("a.b", True), ("a.e", True), ("a.d", True)
    ]  # fmt: skip


def test_tests_beside_each_other_see_their_own(recorded: Memory) -> None:
    def one(number: int) -> list[str]:
        with recording() as mine:
            for _ in range(50):
                activity.record(f"in.{number}")
            return [each.action for each in mine]

    async def task(number: int) -> list[str]:
        with recording() as mine:
            for _ in range(5):
                activity.record(f"in.{number}")
                await asyncio.sleep(0)
            return [each.action for each in mine]

    async def tasks() -> list[list[str]]:
        return await asyncio.gather(*map(task, range(4)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [[f"in.{number}"] * 50 for number in range(4)]
    assert asyncio.run(tasks()) == [[f"in.{number}"] * 5 for number in range(4)]
    recorded.assert_not_recorded()


def test_a_thread_that_knows_of_no_test_is_seen_by_the_fixture(recorded: Memory) -> None:
    thread = threading.Thread(target=lambda: activity.record("a.b"))
    thread.start()
    thread.join()
    recorded.assert_recorded("a.b")
    with recording(everywhere=False) as narrow, activity.track("a.c") as run, ThreadPoolExecutor(1) as pool:
        pool.submit(context.carry(lambda: activity.record("a.d"))).result()
    recorded.assert_recorded("a.d", caused_by=run.id)
    narrow.assert_not_recorded("a.d")


def test_the_words_without_a_fixture_ask_the_recording_around() -> None:
    with recording():
        activity.record("a.b")
        assert assert_recorded("a.b").action == "a.b"
        assert_not_recorded("a.c")
        with recording():
            assert_not_recorded()
    with activity.use(Recorder(source="test", open_sink=None)), pytest.raises(UsageError, match="nothing is kept"):
        assert_recorded("a.b")


def test_secrets_do_not_reach_a_test_either() -> None:
    with recording(strict=False, redact=("iban",)) as recorded:
        activity.record("a.b", metadata={"password": "x", "iban": "DE00", "ok": 1})
    assert recorded[0].metadata == {"password": "[redacted]", "iban": "[redacted]", "ok": 1}


def test_a_memory_sink_takes_what_a_recorder_delivers(tmp_path: Path) -> None:
    sink = MemorySink()
    recorder = Recorder(
        source="orders", open_sink=sink.opened, options=Options(spool_dir=str(tmp_path), linger_seconds=0)
    )
    with activity.use(recorder):
        activity.record("a.b")
        assert activity.flush(10)
    assert recorder.close(5)
    assert [(each.action, each.source) for each in sink.activities] == [("a.b", "orders")]


def test_the_fixture_comes_with_the_package_and_costs_nothing_until_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(
        "import sys\n"
        "def test_without():\n"
        "    assert 'afterwrite.recorder' not in sys.modules\n"
        "def test_with(recorded):\n"
        "    from afterwrite import activity\n"
        "    activity.record('a.b')\n"
        "    recorded.assert_recorded('a.b')\n"
    )
    (plugin,) = entry_points(group="pytest11", name="afterwrite")
    assert plugin.value == "afterwrite.pytest_plugin"
    done = run_pytest(tmp_path / "test_app.py")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
