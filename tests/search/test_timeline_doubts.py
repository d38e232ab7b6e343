"""What cannot be known of a row is said: gaps, retention, when capture began, clocks, tenants, what the WAL lacks."""

from __future__ import annotations

import asyncio
import json
import zlib
from datetime import datetime, timedelta

import msgspec
import pytest
from timeline_rig import NOON, a_change, at, place_at, run, store, timeline_dsn

from afterwrite.errors import UsageError
from afterwrite.postgres import connect
from afterwrite.record import Activity, Lsn, change_id
from afterwrite.search.timeline import RowAt, row_at

__all__ = ["timeline_dsn"]


class Scene:
    """A table, and a source, of a test's own in the database that the tests of this file share."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn, self.name = dsn, name

    def write(self, *changes: Activity) -> None:
        asyncio.run(store(self.dsn, *map(self._own, changes)))

    def _own(self, change: Activity) -> Activity:
        source = self.name if change.source == "main" else change.source
        place, ordinal = change.commit_lsn or Lsn(0), change.ordinal or 0
        return msgspec.structs.replace(
            change,
            id=change_id("7", 1, place, ordinal, change.occurred_at, source=f"{source} {self.name}"),
            entity_type=self.name,
            relation=f"public.{self.name}",
            source=source,
        )

    def lose(self, from_seconds: float, to_seconds: float | None) -> None:
        """A loss of the WAL between two times, since places follow the time here."""
        low, high = (None if s is None else f"'{place_at(s)}'" for s in (from_seconds, to_seconds))
        values = f"'{self.name}', {low}, {high or 'null'}, 'slot lost'"
        self.run(f"insert into afterwrite.gap (source, from_lsn, to_lsn, reason) values ({values})")

    def run(self, script: str) -> None:
        asyncio.run(run(self.dsn, script))

    def ask(self, seconds: float, key: str = "1", *, source: str | None = None, before: str = "") -> RowAt:
        async def scenario() -> RowAt:
            async with connect(self.dsn) as db:
                if before:
                    await db.script(before)
                return await row_at(db, self.name, key, at(seconds), source=source)

        return asyncio.run(scenario())


@pytest.fixture
def scene(timeline_dsn: str, request: pytest.FixtureRequest) -> Scene:
    return Scene(timeline_dsn, f"t{zlib.crc32(request.node.name.encode())}")


def shown(row: RowAt) -> dict[str, object]:
    return {name: json.loads(bytes(value)) for name, value in row.values.items()}


def test_a_gap_before_the_moment_leaves_the_row_unknown_unless_a_later_change_tells_it(scene: Scene) -> None:
    scene.write(
        a_change(0, "1", None, {"id": 1, "n": 1}),
        a_change(0, "2", None, {"id": 2, "n": 1}, ordinal=1),
        *(a_change(seconds, "9", None, {"id": 9}) for seconds in (15, 35)),
        a_change(100, "1", {"id": 1, "n": 7}, {"id": 1, "n": 8}),
    )
    scene.lose(20, 30)
    assert scene.ask(10).exists is True
    lost = scene.ask(25)
    assert (lost.exists, shown(lost)) == (None, {"id": 1, "n": 1})
    assert "slot lost" in lost.doubts[0]
    # Nothing is lost between this moment and the next change, which brings the row as it was.
    told = scene.ask(60)
    assert (told.exists, shown(told), told.doubts) == (True, {"id": 1, "n": 7}, ())
    assert scene.ask(60, "2").exists is None
    assert scene.ask(100).exists is True
    assert scene.ask(10, "2").exists is True


def test_a_gap_between_the_moment_and_the_first_change_leaves_open_whether_there_was_a_row(scene: Scene) -> None:
    scene.write(a_change(0, "9", None, {"id": 9}), a_change(100, "1", None, {"id": 1}))
    assert scene.ask(50).exists is False
    scene.lose(60, None)
    assert scene.ask(50).exists is None


def test_of_the_time_before_a_table_was_captured_only_the_first_old_row_tells(scene: Scene) -> None:
    scene.write(
        a_change(10, "1", {"id": 1, "n": 5}, {"id": 1, "n": 6}),
        a_change(11, "2", {"id": 2}, {"id": 2, "n": 1}, whole=False),
        a_change(12, "3", {"id": 3}, None),
        a_change(13, "4", None, {"id": 4}),
    )
    first = scene.ask(0)
    assert (first.exists, shown(first)) == (None, {"id": 1, "n": 5})
    assert "may have begun later" in first.doubts[0]
    assert scene.ask(0, "4").exists is None
    assert scene.ask(10.5, "4").exists is False
    known = scene.ask(10.5, "2")
    assert (known.exists, shown(known), set(known.unsure)) == (True, {}, {"id", "n"})
    gone = scene.ask(10.5, "3")
    assert (gone.exists, shown(gone), gone.whole) == (True, {"id": 3}, False)
    never = scene.ask(10.5, "5")
    assert (never.exists, never.since, never.until) == (None, None, None)


def test_a_truncate_takes_rows_and_of_those_that_nobody_told_of_nothing_is_known(scene: Scene) -> None:
    scene.write(
        a_change(0, "1", None, {"id": 1}),
        a_change(10, None, None, None),
        a_change(20, "1", None, {"id": 1, "n": 2}),
    )
    assert [scene.ask(seconds).exists for seconds in (5, 10, 15, 20)] == [True, False, False, True]
    assert scene.ask(15).since.operation == "truncate"  # type: ignore[union-attr]
    unknown = scene.ask(5, "2")
    assert (unknown.exists, "truncated" in unknown.doubts[0]) == (None, True)


def test_expired_days_are_said_to_be_gone(scene: Scene) -> None:
    scene.write(a_change(0, "1", {"id": 1, "n": 1}, {"id": 1, "n": 2}))
    yesterday = (NOON - timedelta(days=1)).date()
    scene.run(f"insert into afterwrite.expired_day (day) values ('{yesterday}')")
    row = scene.ask(-86_400)
    assert (row.exists, shown(row)) == (None, {"id": 1, "n": 1})
    assert "have expired" in row.doubts[0]


def test_a_key_that_was_changed_is_followed_to_what_the_row_was_called(scene: Scene) -> None:
    scene.write(
        a_change(0, "1", None, {"id": 1, "n": 1}),
        a_change(10, "2", {"id": 1, "n": 1}, {"id": 2, "n": 1}, metadata={"entity_was": "1"}),
        a_change(20, "3", {"id": 2, "n": 1}, {"id": 3, "n": 2}, metadata={"entity_was": "2"}),
    )
    row = scene.ask(5, "3")
    assert (row.exists, row.entity_id, shown(row)) == (True, "1", {"id": 1, "n": 1})
    assert [move.entity_id for move in row.moves] == ["3", "2"]
    left = scene.ask(15, "1")
    assert (left.exists, left.since.entity_id) == (False, "2")  # type: ignore[union-attr]


def test_a_value_that_no_change_brought_is_not_made_up(scene: Scene) -> None:
    unchanged = {"unchanged": ["body"]}
    scene.write(
        a_change(0, "9", None, {"id": 9}),
        a_change(1, "1", {"id": 1}, {"id": 1, "n": 2}, whole=False, metadata=unchanged),
        a_change(2, "1", {"id": 1}, {"id": 1, "n": 3, "body": "x"}, whole=False),
        a_change(3, "1", {"id": 1}, {"id": 1, "n": 4}, whole=False, metadata=unchanged),
    )
    early, late = scene.ask(1), scene.ask(3)
    assert (shown(early), list(early.unsure)) == ({"id": 1, "n": 2}, ["body"])
    assert (shown(late), late.unsure) == ({"id": 1, "n": 4, "body": "x"}, {})


def test_what_changed_a_row_without_a_word_is_noticed_by_the_next_change(scene: Scene) -> None:
    scene.write(
        a_change(0, "1", None, {"id": 1, "n": 1}),
        a_change(10, "1", {"id": 1, "n": 5, "added": None}, {"id": 1, "n": 6, "added": 1}),
        a_change(20, "1", None, {"id": 1, "n": 7, "added": 1}),
    )
    row = scene.ask(5)
    assert row.exists is True
    assert set(row.unsure) == {"n", "added"}
    again = scene.ask(15)
    assert (again.exists, "was not captured" in again.doubts[0]) == (None, True)


def test_a_clock_that_was_set_back_is_said(scene: Scene) -> None:
    scene.write(
        a_change(10, "1", None, {"id": 1, "n": 1}, lsn=800),
        a_change(9, "1", {"id": 1, "n": 1}, {"id": 1, "n": 2}, lsn=1600),
    )
    assert "was set back" in scene.ask(11).doubts[0]


def test_each_of_two_databases_has_a_row_of_its_own(scene: Scene) -> None:
    scene.write(
        a_change(0, "1", None, {"id": 1, "n": 1}),
        a_change(1, "1", None, {"id": 1, "n": 2}, source="other"),
        a_change(2, None, None, None, source="other"),
    )
    assert shown(scene.ask(5, source=scene.name)) == {"id": 1, "n": 1}
    assert scene.ask(5).exists is False
    assert scene.ask(5, source="nobody").exists is None


def test_a_tenants_reader_is_told_that_others_changes_are_not_in_the_answer(scene: Scene) -> None:
    scene.write(
        a_change(0, "1", None, {"id": 1, "n": 1}, tenant_id="acme"),
        a_change(5, "1", {"id": 1, "n": 1}, {"id": 1, "n": 2}, tenant_id="globex"),
    )
    become = "set role afterwrite_tenant; set afterwrite.tenant = 'acme'"
    row = scene.ask(10, before=become)
    assert shown(row) == {"id": 1, "n": 1}
    assert "only one tenant's activity" in row.doubts[0]


def test_what_is_not_stored_yet_is_said_and_a_moment_has_a_zone(scene: Scene) -> None:
    scene.write(a_change(0, "1", None, {"id": 1}))
    assert any("may not be stored yet" in doubt for doubt in scene.ask(200_000).doubts)
    with pytest.raises(UsageError, match="time zone"):
        asyncio.run(ask_without_a_zone(scene.dsn))


async def ask_without_a_zone(dsn: str) -> RowAt:
    async with connect(dsn) as db:
        return await row_at(db, "users", "1", datetime(2026, 1, 1, 12))  # noqa: DTZ001 - that is the point
