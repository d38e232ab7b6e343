"""Whoever counts is killed at every step of the way: the next one comes to the same end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from rolling_process import count_all
from test_rollup import Story, counted, grouped, names

from afterwrite.failpoints import FAILPOINTS, VARIABLE
from afterwrite.postgres import Database, connect
from afterwrite.store.rollup import SESSION
from afterwrite.store.writer import open_sink

_PROCESS = Path(__file__).with_name("rolling_process.py")
POINTS = [name for name in FAILPOINTS if name.startswith("rollup.")]


async def _lay(dsn: str) -> None:
    async with connect(dsn, options=SESSION) as db, open_sink(dsn) as sink:
        story = Story(dsn, db, sink)
        await story.take("write", [0.0, 5.0] * 3 + [30.0])
        await story.take("write", [3.0] * 100)  # longer than a stretch
        await story.take("write", [2.0, 1.0, 80.0])


async def _reset(dsn: str) -> None:
    async with connect(dsn, options=SESSION) as db:
        await db.script(
            """truncate afterwrite.rollup_hour, afterwrite.rollup_top, afterwrite.rollup_rest;
               update afterwrite.rollup set position = 0, part_at = null, part_id = null,
                  named_until = '-infinity', folded_until = '-infinity', exact_until = '-infinity'"""
        )


async def _state(db: Database) -> tuple[object, ...]:
    assert await counted(db) == await grouped(db)
    views = await db.values(b"select sum(activities)::bigint from afterwrite.analytics_day")
    return await counted(db), await names(db), views, await db.value(b"select position from afterwrite.rollup")


async def _look(dsn: str) -> tuple[object, ...]:
    async with connect(dsn) as db:
        return await _state(db)


def test_killed_anywhere_the_next_one_comes_to_the_same_end(installed_dsn: str) -> None:
    asyncio.run(_lay(installed_dsn))
    asyncio.run(count_all(installed_dsn))
    end = asyncio.run(_look(installed_dsn))
    running = {}
    process = subprocess.Popen(
        [sys.executable, _PROCESS, installed_dsn],
        env={**os.environ, VARIABLE: ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process as counting:
        assert counting.stdin
        assert counting.stdout
        for point in POINTS:
            # One after the other on the same store: what one leaves behind is the next one's beginning.
            asyncio.run(_reset(installed_dsn))
            counting.stdin.write(f"{point}\n")
            counting.stdin.flush()
            running[point] = int(counting.stdout.readline())
            asyncio.run(count_all(installed_dsn))
            assert asyncio.run(_look(installed_dsn)) == end, point
    assert running == dict.fromkeys(POINTS, -signal.SIGKILL)
