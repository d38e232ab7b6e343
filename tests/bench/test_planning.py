"""A plan is arithmetic over a run: what so many activities a second take, and what limits one store."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typed import typed

from afterwrite.bench import words
from afterwrite.bench.claims import Report, Took, compare, note
from afterwrite.bench.planning import Asked, Cost, Line, plan
from afterwrite.errors import ExitCode, UsageError

_MEASURED = {
    Cost.RATE: ("activities/s", 20_000.0, 18_000.0),
    Cost.APPLICATION: ("µs/activity", None, 15.0),
    Cost.BROKERS: ("µs/activity", None, 10.0),
    Cost.WRITER: ("µs/activity", 8.0, 14.0),
    Cost.STORE: ("µs/activity", 25.0, 30.0),
    Cost.WAL: ("B/activity", 1_000.0, 1_048.576),
    Cost.MESSAGE: ("B/activity", None, 400.0),
    Cost.DISK: ("B/activity", None, 3_000.0),
    Cost.BATCH: ("ms", None, 2.0),
    Cost.COUNTED: ("activities/s", None, 60_000.0),
    Cost.COUNTING: ("µs/activity", None, 6.0),
    Cost.ARCHIVED: ("activities/s", None, 25_000.0),
    Cost.ARCHIVER: ("µs/activity", None, 40.0),
    Cost.ARCHIVING: ("µs/activity", None, 4.0),
    Cost.KEPT: ("B/activity", 720.0, 54.0),
}


def _run(*without: Cost) -> Report:
    claims = [
        note(cost, unit, [ours]) if theirs is None else compare(cost, unit, [theirs], [ours])
        for cost, (unit, theirs, ours) in _MEASURED.items()
        if cost not in without
    ]
    return Report(
        version="1.2.3",
        began_at="2026-01-02T03:04:05+00:00",
        seconds=60.0,
        quick=False,
        machine={"cores": 2, "memory_gib": 8.0, "system": "Linux x86_64", "python": "3.13.1", "postgresql": "18.1"},
        parts=[Took(part="broker", seconds=60.0, settings={})],
        claims=claims,
    )


def _lines(asked: Asked) -> dict[str, Line]:
    return {line.what: line for line in plan(_run(), asked).lines}


def test_each_figure_is_the_rate_times_a_measured_cost() -> None:
    lines = _lines(Asked(rate=1_000_000, busy=0.5, store_cores=16, broker_cores=8))
    assert lines["applications"].figure == pytest.approx(30)  # 15 µs × a million, half busy
    assert lines["brokers"].figure == pytest.approx(20)
    assert lines["broker machines"].figure == 3
    assert lines["stores (PostgreSQL servers), by tenant"].figure == 40  # an archiver each, of 25,000 a second
    assert lines["written by each broker machine"].figure == pytest.approx(3_000e6 / 3 / 2**20)
    assert lines["stores, all together"].figure == pytest.approx(80)
    assert lines["each store"].figure == pytest.approx(2)
    assert lines["writers, one active for a partition"].figure == 40
    assert lines["partitions of each stream"].figure == 1
    assert lines["WAL of each store"].figure == pytest.approx(25_000 * 1_048.576 / 2**20)
    assert lines["activities a day"].figure == 86_400e6
    assert lines["hot, a day"].figure == pytest.approx(86_400e6 * 720 / 2**30)
    assert lines["hot, 90 days"].figure == pytest.approx(90 * 86_400e6 * 720 / 2**30)
    assert lines["cold, a day"].figure == pytest.approx(86_400e6 * 54 / 2**30)
    assert lines["archivers, one a store"].figure == pytest.approx(80)
    assert Cost.MESSAGE.value in lines["network to, between and from the brokers"].comes_from


def test_what_limits_a_store_decides_how_many_there_are() -> None:
    large, small = (plan(_run(), Asked(rate=1_000_000, store_cores=cores)) for cores in (64, 1))
    assert [limit.rate for limit in large.limits] == pytest.approx([25_000, 60_000, 800_000, 2_500_000])
    assert "archiver" in large.limits[0].what
    assert small.limits[0].rate == pytest.approx(12_500)
    assert (large.stores, small.stores) == (40, 80)
    kept = plan(_run(), Asked(rate=1_000_000, hot_days=10, store_gib=10_000))
    assert "disks" in kept.limits[0].what
    assert kept.limits[0].rate == pytest.approx(10_000 * 2**30 / 720 / 10 / 86_400)


def test_money_is_told_only_of_prices_that_were_given() -> None:
    none = plan(_run(), Asked(rate=1_000_000))
    assert none.unpriced == ("--core-hour", "--gib-month", "--cold-gib-month")
    assert not [line for line in none.lines if line.what.startswith("cost")]
    lines = _lines(Asked(rate=1_000_000, core_hour=0.05, gib_month=0.1, cold_gib_month=0.02))
    cores = sum(line.figure for line in lines.values() if line.unit == "cores" and line.what != "applications")
    assert lines["cost of cores"].figure == pytest.approx(cores * 24 * 0.05)
    month = 365.25 / 12
    assert lines["cost of keeping a cold year"].figure == pytest.approx(lines["cold, a year"].figure * 0.02 / month)


def test_a_run_that_has_not_measured_it_makes_no_plan() -> None:
    with pytest.raises(UsageError, match="has not measured 'CPU of the archiver' and 1 more") as refused:
        plan(_run(Cost.ARCHIVER, Cost.KEPT), Asked(rate=1_000))
    assert "bench scale --json" in str(refused.value.remedy)


def test_the_command_prints_a_plan_and_puts_it_into_its_place(tmp_path: Path) -> None:
    run, page = tmp_path / "run.json", tmp_path / "planning.md"
    run.write_bytes(msgspec.json.encode(_run()))
    page.write_text("# Ours\n\n<!-- measured: plan -->\nold\n<!-- end -->\n\nMore.\n")
    done = typed("bench", "plan", run, "--rate", "1000000", "--markdown", page, env={"COLUMNS": "80"})
    assert done.returncode == ExitCode.OK, done.stderr
    assert "No price was given" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = page.read_text()
    assert text.startswith(
        "# Ours\n\n<!-- measured: plan -->\n\n1,000,000 activities a second, from the run of 2026-01-02"
    )
    assert "\nold\n" not in text
    assert text.endswith("\n<!-- end -->\n\nMore.\n")
    assert words.refill_plan(text, _run(), plan(_run(), Asked(rate=1_000_000))) == text
    said = json.loads(typed("bench", "plan", run, "--json").stdout)
    assert said["plan"]["stores"] == 40
    assert said["plan"]["rate"] == 1_000_000
