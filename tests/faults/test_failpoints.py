"""Failpoints: each has one place and one sentence, and strikes as armed; without the variable they do nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from afterwrite import failpoints
from afterwrite.errors import UsageError
from afterwrite.failpoints import FAILPOINTS, failpoint

SOURCE = Path(failpoints.__file__).parent


def test_every_failpoint_has_one_place_and_one_sentence() -> None:
    found = Counter(
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r"^\s*failpoint\((.*)\)$", path.read_text(), re.MULTILINE)
        if path.name != "failpoints.py"
    )
    assert [name for name, count in found.items() if count > 1] == []
    assert sorted(found) == sorted(f'"{name}"' for name in FAILPOINTS)
    assert all(re.fullmatch(r"[a-z]+\.(before|after)_[a-z_]+", name) for name in FAILPOINTS)
    assert all(FAILPOINTS.values())


def test_without_the_variable_nothing_strikes_and_nothing_can_be_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)
    with pytest.raises(UsageError, match="AFTERWRITE_FAILPOINTS is not set"):
        failpoints.arm("sink.before_commit=lose")
    failpoint("sink.before_commit")


def run(orders: str, *, log: Path | None = None, seed: str = "1", code: str = "") -> subprocess.CompletedProcess[str]:
    """Reach a failpoint ten times in a process of its own, which says what it met."""
    script = f"""
from afterwrite import failpoints
from afterwrite.errors import ConnectionLost, DatabaseError
{code}
for number in range(10):
    try:
        failpoints.failpoint("sink.before_commit")
    except ConnectionLost:
        print("lost", number, flush=True)
    except DatabaseError as error:
        print(error.sqlstate, number, flush=True)
"""
    environment = {**os.environ, failpoints.VARIABLE: orders, failpoints.SEED: seed}
    if log:
        environment[failpoints.LOG] = str(log)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_each_action_strikes_at_its_time(tmp_path: Path) -> None:
    log = tmp_path / "strikes"
    killed = run("sink.before_commit=kill@4", log=log)
    assert killed.returncode == -signal.SIGKILL
    assert re.fullmatch(r"\d+ sink\.before_commit kill\n", log.read_text())
    assert run("sink.before_commit=lose@3").stdout == "lost 2\n"
    assert run("sink.before_commit=full@1; sink.after_commit=kill").stdout == "53100 0\n"
    assert len(run("sink.before_commit=lose").stdout.splitlines()) == 10


def test_a_probability_is_drawn_from_the_seed() -> None:
    drawn = [run("sink.before_commit=lose:0.4", seed=seed).stdout for seed in ("1", "1", "2", "3")]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert all(0 < len(each.splitlines()) < 10 for each in drawn)


def test_a_process_can_be_armed_anew() -> None:
    assert run("", code='failpoints.arm("sink.before_commit=lose@2")').stdout == "lost 1\n"


@pytest.mark.parametrize("orders", ["sink.before_commit", "sink.before_commit=stop", "nowhere=kill", "sink.x=kill@a"])
def test_orders_that_cannot_be_read_are_refused(orders: str) -> None:
    done = run(orders)
    assert done.returncode != 0
    assert "AFTERWRITE_FAILPOINTS cannot be read" in done.stderr


def test_a_failpoint_that_does_not_exist_cannot_be_armed() -> None:
    assert "there is no failpoint sink.before_lunch" in run("sink.before_lunch=kill").stderr
