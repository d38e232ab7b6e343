"""``activity.batch``: one summary of many things."""

from __future__ import annotations

import asyncio
import threading

import pytest

from afterwrite import activity
from afterwrite.record import Level, Outcome
from afterwrite.testing import Memory, recording


def test_a_batch_is_one_summary_of_its_items(recorded: Memory) -> None:
    with activity.batch("user.import", total=5, entity="user", metadata={"file": "users.csv"}) as batch:
        batch.succeeded(2)
        batch.failed("ada@example.com", ValueError("no name"))
        batch.failed(7, "seen before")
        batch.skipped()
        assert (batch.progress.done, batch.progress.share) == (5, 1.0)
        assert batch.progress.remaining_seconds == 0
    found = recorded.assert_recorded("user.import", category="bulk", entity="user", times=1)
    assert (found.outcome, found.severity) == (Outcome.SUCCESS, Level.WARNING)
    assert found.metadata.pop("items_per_second") > 0
    assert found.metadata == {
        "file": "users.csv",
        "total": 5,
        "succeeded": 2,
        "failed": 2,
        "skipped": 1,
        "failures": [
            {"key": "ada@example.com", "error": {"type": "ValueError", "message": "no name"}},
            {"key": 7, "error": {"message": "seen before"}},
        ],
        "failures_by_type": {"ValueError": 1, "error": 1},
    }


def test_items_count_themselves_and_raise_on_unless_told_to_go_on(recorded: Memory) -> None:
    async def run() -> None:
        async with activity.batch("user.import") as batch:
            for number in range(4):
                async with batch.item(number, go_on=True):
                    if number % 2:
                        raise ValueError(number)
            with batch.item("last"):
                raise LookupError("gone")

    with pytest.raises(LookupError):
        asyncio.run(run())
    counts = {"succeeded": 2, "failed": 3, "error": {"type": "LookupError"}}
    recorded.assert_recorded("user.import", outcome="failure", severity="error", metadata=counts)


def test_a_batch_of_which_nothing_succeeded_failed(recorded: Memory) -> None:
    with activity.batch("mail.send", total=1) as batch:
        batch.failed("a", TimeoutError())
    recorded.assert_recorded("mail.send", outcome="failure", severity="error")
    with activity.batch("mail.send", total=0):
        pass
    recorded.assert_recorded("mail.send", outcome="success", severity="info", metadata={"succeeded": 0})


def test_a_batch_keeps_a_sample_of_what_failed_however_much_that_is(recorded: Memory) -> None:
    with activity.batch("row.load") as batch:
        for number in range(10_000):
            batch.failed(f"{number}" * 1000, type(f"E{number}", (Exception,), {})("x" * 5000))
    found = recorded.assert_recorded("row.load", metadata={"failed": 10_000})
    assert (len(found.metadata["failures"]), len(found.metadata["failures_by_type"])) == (20, 20)
    assert "misfit" not in found.metadata


def test_what_a_batch_does_points_to_it_and_threads_count_together(recorded: Memory) -> None:
    with activity.batch("row.load") as batch:
        inside = activity.record("row.loaded")
        threads = [threading.Thread(target=lambda: [batch.succeeded() for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = recorded.assert_recorded("row.load", metadata={"succeeded": 2000})
    assert recorded.assert_recorded("row.loaded").caused_by == found.id
    assert inside.id != found.id


def test_progress_is_told_and_recorded_as_often_as_wanted(recorded: Memory) -> None:
    told: list[int] = []
    with activity.batch(
        "row.load", total=100, on_progress=lambda progress: told.append(progress.done), progress_seconds=1e-9
    ) as batch:
        for _ in range(3):
            batch.succeeded()
    assert told == [1, 2, 3]
    summary = recorded.assert_recorded("row.load", times=1)
    progress = recorded.find("row.load.progress")
    assert [each.metadata["succeeded"] for each in progress] == [1, 2, 3]
    assert {(each.severity, each.caused_by) for each in progress} == {(Level.DEBUG, summary.id)}


def test_progress_that_cannot_be_told_does_not_hurt_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    with (
        recording(strict=False) as recorded,
        activity.batch("row.load", on_progress=lambda _: 1 / 0, progress_seconds=1e-9) as batch,
    ):
        batch.succeeded()
    recorded.assert_recorded("row.load", outcome="success", metadata={"succeeded": 1})
    assert "on_progress of a batch raised" in caplog.text


def test_a_decorated_function_counts_on_the_run_around_it(recorded: Memory) -> None:
    @activity.with_batch_logging("USER_IMPORT", entity_type="user")
    def load(rows: list[int]) -> int:
        batch = activity.tracked()
        assert isinstance(batch, activity.Batch)
        batch.total = len(rows)
        batch.succeeded(len(rows))
        return len(rows)

    assert load([1, 2]) == 2
    recorded.assert_recorded("user_import", entity="user", metadata={"total": 2, "succeeded": 2})
