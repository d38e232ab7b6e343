"""An import that is killed at every step of its way: the next one comes to the same end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from importing_process import import_once
from legacy_scene import scene

from afterwrite.failpoints import FAILPOINTS, VARIABLE
from afterwrite.postgres import connect
from afterwrite.store.reader import verify_feed
from afterwrite.transfer.legacy import Policy
from afterwrite.transfer.verify import verify_log

_PROCESS = Path(__file__).with_name("importing_process.py")
POINTS = [name for name in FAILPOINTS if name.startswith("import.") and not name.endswith("_lines")]
ROWS = 100
LOG = f"""
create table public.log (id int primary key, at timestamptz not null, op text, tbl text, pk text);
insert into public.log
select n, now() - n * interval '1 minute', 'UPDATE', 't', n::text from generate_series(1, {ROWS}) n;
"""


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_the_next_import_goes_on(installed_dsn: str, point: str) -> None:
    async def lay() -> None:
        async with connect(installed_dsn) as db:
            await db.script(LOG)

    async def check() -> None:
        await import_once(installed_dsn)
        async with scene(installed_dsn) as found:
            stored = await found.stored()
            assert sorted(int(each.entity_id or 0) for each in stored) == list(range(1, ROWS + 1))
            verified = await verify_log(found.log, found.store, await found.plan("log"), policy=Policy())
            assert (verified.agrees, verified.rows, verified.stored) == (True, ROWS, ROWS)
            assert (await verify_feed(found.store)).first_break is None

    asyncio.run(lay())
    times = 1 if point.endswith("_begin") else 2
    environment = {**os.environ, VARIABLE: f"{point}=kill@{times}", "PYTHONPATH": str(_PROCESS.parent)}
    words = [sys.executable, str(_PROCESS), installed_dsn]
    died = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    asyncio.run(check())
