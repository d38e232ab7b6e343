"""What an application gets wrong: stored in a defined way in production, refused at the call in strict mode."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from afterwrite import activity, context
from afterwrite.errors import UsageError
from afterwrite.testing import recording


class Opaque:
    """What JSON has no word for, and that has none for itself."""


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class HostileMapping(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("changed meanwhile")

    __iter__ = keys = __len__ = items  # type: ignore[assignment]


def cyclic() -> dict[str, Any]:
    found: dict[str, Any] = {"name": "ring"}
    found["self"] = found
    return found


def deep() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(100_000):
        found = {"in": found}
    return found


# What is given, what the store then has of it (a function of the row), and whether strict mode refuses it.
CASES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[Any], bool], bool]] = {
    "opaque": (
        lambda: {"metadata": {"x": Opaque(), "kept": 1}},
        lambda row: row.metadata["kept"] == 1 and "Opaque" in row.metadata["x"],
        True,
    ),
    "hostile": (lambda: {"metadata": {"x": Hostile(), "kept": 1}}, lambda row: row.metadata["kept"] == 1, False),
    "hostile_mapping": (lambda: {"metadata": HostileMapping()}, lambda row: isinstance(row.metadata, dict), False),
    "no_mapping": (lambda: {"metadata": [1, 2]}, lambda row: row.metadata == {"value": [1, 2]}, True),
    "cyclic": (
        lambda: {"metadata": cyclic()},
        lambda row: row.metadata == {"name": "ring", "self": "<cycle>"},
        True,
    ),
    "deep": (lambda: {"metadata": deep()}, lambda row: "in" in row.metadata, True),
    "ten_megabytes": (
        lambda: {"metadata": {"small": 1, "big": "x" * 10_000_000}},
        lambda row: row.metadata["small"] == 1 and row.metadata["cut"]["bytes"] > 10_000_000,
        True,
    ),
    "nul": (lambda: {"metadata": {"x": "a\0b"}, "summary": "a\0b", "entity": ("a\0", "b\0")}, lambda row: True, False),
    "surrogate": (lambda: {"metadata": {"x": "a\ud800"}}, lambda row: row.metadata == {"x": "a\ufffd"}, True),
    "surrogate_elsewhere": (
        lambda: {"summary": "a\udfff", "entity": ("user", "b\ud800")},
        lambda row: (row.summary, row.entity_id) == ("a\ufffd", "b\ufffd"),
        False,
    ),
    "naive_datetime": (
        lambda: {"metadata": {"at": datetime(2026, 1, 2)}, "occurred_at": datetime(2026, 1, 2)},  # noqa: DTZ001
        lambda row: (row.occurred_at, row.metadata["at"]) == (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00"),
        False,
    ),
    "no_datetime": (lambda: {"occurred_at": "yesterday"}, lambda row: "yesterday" in row.metadata["misfit"], True),
    "not_finite": (
        lambda: {"duration_ms": float("inf"), "metadata": {"x": float("nan")}},
        lambda row: row.metadata == {"x": None} and row.duration_ms is None,
        False,
    ),
    "no_duration": (lambda: {"duration_ms": "long"}, lambda row: row.duration_ms is None, False),
    "entity_of_one": (lambda: {"entity": ("user",)}, lambda row: "user" in row.metadata["misfit"], True),
    "entity_of_three": (lambda: {"entity": ("user", 1, 2)}, lambda row: "misfit" in row.metadata, True),
    "entity_of_no_text": (lambda: {"entity": (5, 1)}, lambda row: "misfit" in row.metadata, True),
    "entity_as_list": (lambda: {"entity": ["user", 1]}, lambda row: row.entity_id == "1", False),
    "entity_hostile": (lambda: {"entity": ("user", Hostile())}, lambda row: row.entity_type == "user", False),
    "outcome": (lambda: {"outcome": "sucess"}, lambda row: "sucess" in row.metadata["misfit"], True),
    "severity": (
        lambda: {"severity": 40, "metadata": {"x": 1}},
        lambda row: row.metadata["x"] == 1 and row.severity == "info",
        True,
    ),
    "category": (lambda: {"category": 7}, lambda row: row.category == "7", True),
    "caused_by": (lambda: {"caused_by": "the other one"}, lambda row: row.caused_by is None, True),
    "durability": (lambda: {"durability": "forever"}, lambda row: "forever" in row.metadata["misfit"], True),
    "id": (lambda: {"id": "mine"}, lambda row: row.id.version == 7, True),
    "secrets": (
        lambda: {"metadata": {"password": "hunter2", "deep": {"api_key": "k"}, "text": "Bearer abcdefgh1jkl"}},
        lambda row: (
            row.metadata
            == {"password": "[redacted]", "deep": {"api_key": "[redacted]"}, "text": "Bearer [redacted]"}
        ),
        True,
    ),
    "conn": (lambda: {"conn": Opaque()}, lambda row: True, False),
    "keys": (lambda: {"metadata": {1: "a", ("b", 2): "c", None: "d"}}, lambda row: row.metadata["1"] == "a", True),
    "long_words": (
        lambda: {"summary": "s" * 1_000_000, "entity": ("t" * 100_000, "i" * 100_000)},
        lambda row: len(row.summary) == 10_000,
        False,
    ),
}  # fmt: skip


@pytest.fixture
def store(installed_dsn: str, tmp_path: Path) -> Iterator[str]:
    activity.configure(dsn=installed_dsn, spool_dir=str(tmp_path), service="bad", linger_seconds=0)
    yield installed_dsn
    activity.close(0)


def read(dsn: str) -> dict[str, Any]:
    with psycopg.connect(dsn, row_factory=namedtuple_row) as db:
        return {row.action: row for row in db.execute("select * from afterwrite.activity").fetchall()}


def test_in_production_all_of_it_is_stored_and_none_holds_back_the_others(store: str) -> None:
    for name, (make, _, _) in CASES.items():
        activity.record(name, **make())
        activity.record(f"{name}.after")
    assert activity.flush(30)
    stats = activity.stats()
    assert (stats.dropped, stats.recorded, stats.stored) == ({}, 2 * len(CASES), 2 * len(CASES))
    assert stats.misfits > 0
    assert stats.mended > 0
    assert stats.ok
    rows = read(store)
    assert rows.keys() == {*CASES, *(f"{name}.after" for name in CASES)}
    wrong = {name: rows[name] for name, (_, is_right, _) in CASES.items() if not is_right(rows[name])}
    assert not wrong


@pytest.mark.parametrize("name", CASES)
def test_in_strict_mode_the_call_refuses_it(name: str) -> None:
    make, _, refused = CASES[name]
    with recording() as recorded:
        if refused:
            with pytest.raises(UsageError) as error:
                activity.record("a.b", **make())
            assert error.value.remedy or str(error.value)
            recorded.assert_not_recorded()
        else:
            activity.record("a.b", **make())
            recorded.assert_recorded("a.b")


def test_a_context_of_anything_does_not_hurt(store: str) -> None:
    odd: Any = Hostile()
    with context.bind(
        actor="a\0b\ud800" * 1000, ip="testclient", caused_by="no id", tenant=5, user_agent=b"\xff", trace=odd
    ):  # type: ignore[arg-type]
        activity.record("a.b")
        with activity.track("a.c"):
            pass
    activity.auth("login", odd, ip="unknown")
    assert activity.flush(30)
    assert activity.stats().dropped == {}
    assert read(store).keys() == {"a.b", "a.c", "login"}


def test_a_clock_that_jumps_back_spoils_neither_durations_nor_the_order_of_ids() -> None:
    with recording() as recorded:
        with activity.track("a.first"):
            made = [activity.record("a.b").id for _ in range(3)]
            with mock.patch("time.time_ns", return_value=10**18), mock.patch("time.time", return_value=10**9):
                made += [activity.record("a.b").id for _ in range(3)]
        assert made == sorted(made)
        assert 0 <= (recorded[-1].duration_ms or 0) < 60_000


def test_what_is_changed_after_the_call_is_recorded_as_it_was() -> None:
    with recording() as recorded:
        metadata = {"rows": [1]}
        activity.record("a.b", metadata=metadata)
        metadata["rows"].append(2)
    assert recorded[0].metadata == {"rows": [1]}


def test_trouble_of_the_recorder_is_no_trouble_of_the_application(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A spool that cannot be, a store that is not there: counted, told once, and never raised."""
    (tmp_path / "file").write_text("")
    activity.configure(
        dsn="host=/nowhere dbname=none", spool_dir=str(tmp_path / "file" / "spool"), service="bad", close_seconds=0
    )
    try:
        with caplog.at_level(logging.WARNING):

            async def run() -> None:
                async with activity.track("a.b"):
                    await activity.record("a.c")

            asyncio.run(run())
            assert not activity.flush(0.2)
        stats = activity.stats()
        assert stats.spool_trouble
        assert "kept in memory" in caplog.text
        assert not stats.ok
    finally:
        activity.close(0)
