"""A drain that is killed at every step: what was posted is in the store once, or set aside once, and nowhere else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from outbox_scene import count, drain_all, lay_outbox, post, stored

from afterwrite.capture import drain
from afterwrite.failpoints import FAILPOINTS, SEED, VARIABLE

POINTS = [name for name in FAILPOINTS if name.startswith("outbox.")]
_PROCESS = Path(__file__).with_name("drain_process.py")


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_every_event_is_stored_once(installed_dsn: str, point: str) -> None:
    lay_outbox(installed_dsn)
    with psycopg.connect(installed_dsn, autocommit=True) as conn:
        for number in range(10):
            post(conn, f"n{number}")
        conn.execute("select afterwrite_outbox.post('unreadable')")
    # In the second batch of three: something is done, and something is to come.
    armed = {**os.environ, VARIABLE: f"{point}=kill@2"}
    killed = subprocess.run([sys.executable, _PROCESS, installed_dsn], env=armed, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert count(installed_dsn, "afterwrite_outbox.event") > 0
    drain_all(installed_dsn)
    assert sorted(row["action"] for row in stored(installed_dsn)) == sorted(f"n{number}" for number in range(10))
    assert count(installed_dsn, "afterwrite_outbox.refused") == 1


def test_a_line_cut_at_any_step_is_tried_again(installed_dsn: str) -> None:
    lay_outbox(installed_dsn)
    with psycopg.connect(installed_dsn) as conn:
        for number in range(40):
            post(conn, f"n{number}")
    armed = {**os.environ, VARIABLE: ";".join(f"{point}=lose@{n + 1}" for n, point in enumerate(POINTS))}
    done = subprocess.run([sys.executable, _PROCESS, installed_dsn], env=armed, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert len(stored(installed_dsn)) == 40
    assert len({row["action"] for row in stored(installed_dsn)}) == 40


_DICE = (
    "outbox.before_write=kill:0.03;outbox.after_write=kill:0.06;outbox.before_commit=kill:0.06;"
    "outbox.after_commit=kill:0.03;sink.after_commit=lose:0.1;sink.before_commit=kill:0.02"
)


def test_two_drains_killed_again_and_again_store_each_event_that_committed_once(installed_dsn: str) -> None:
    """Four writers roll some of their transactions back, and let others commit late."""
    lay_outbox(installed_dsn)
    committed = dict.fromkeys(("w0", "w1", "w2", "w3"), 0)

    def write(name: str) -> None:
        dice = random.Random(name)
        with psycopg.connect(installed_dsn) as conn:
            for _ in range(60):
                events = dice.randint(1, 5)
                for _ in range(events):
                    post(conn, name)
                time.sleep(0.3 if dice.random() < 0.02 else 0.01)
                if dice.random() < 0.3:
                    conn.rollback()
                else:
                    conn.commit()
                    committed[name] += events

    writers = [threading.Thread(target=write, args=(name,)) for name in committed]
    for writer in writers:
        writer.start()
    drains: list[subprocess.Popen[bytes]] = []
    begun = killed = 0
    try:
        while any(writer.is_alive() for writer in writers) or count(installed_dsn, "afterwrite_outbox.event"):
            gone = [drain for drain in drains if drain.poll() is not None]
            killed += len([drain for drain in gone if drain.returncode == -signal.SIGKILL])
            drains = [drain for drain in drains if drain not in gone]
            while len(drains) < 2:
                begun += 1
                armed = {**os.environ, VARIABLE: _DICE, SEED: str(begun)}
                drains.append(subprocess.Popen([sys.executable, _PROCESS, installed_dsn, "go on"], env=armed))
            time.sleep(0.02)
    finally:
        for each in drains:
            each.kill()
            each.wait()
    assert killed >= 2
    drain_all(installed_dsn)
    assert Counter(row["action"] for row in stored(installed_dsn)) == committed
    assert count(installed_dsn, "afterwrite_outbox.refused") == 0


def test_every_place_in_the_source_is_tried() -> None:
    assert drain.__file__
    text = Path(drain.__file__).read_text()
    assert [point for point in POINTS if f'failpoint("{point}")' not in text] == []
