"""Deferred bodies: how long after a commit they have run, how many a second, and what one costs the database.

The legacy application with everything moved to afterwrite. Under steady writes a moment is taken again and again, and
waited for until every body of what had committed by then has run. Then the worker is stopped while the application goes
on, and what waits is run in one go.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from afterwrite.bench.claims import Claim, note, percentile
from afterwrite.bench.grounds import Grounds, told_round
from afterwrite.bench.load import MIX, Load
from afterwrite.bench.stage import Moved, Stage, Variant
from afterwrite.capture.slot import read_wal_position
from afterwrite.defer.progress import caught_up, read_progress
from afterwrite.demo.processes import Process
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import statement
from afterwrite.record import Lsn

_POLL_SECONDS = 0.002
_BETWEEN_SECONDS = 0.05
_MOST_SECONDS = 300.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """For how long at which rate (transactions a second), and how many transactions wait in a backlog."""

    rounds: int = 3
    rate: float = 200.0
    seconds: float = 2.0
    backlog: int = 1_000


class _Ran(msgspec.Struct, frozen=True):
    """A backlog's calls, the time they took, and the CPU seconds of the session that ran them."""

    calls: int
    seconds: float
    cpu: float


async def measure_defer(grounds: Grounds, options: Options) -> list[Claim]:
    """Lag, speed and cost of deferred bodies."""
    stage = await grounds.stage(Variant.AFTERWRITE, Moved.ALL)
    lags: list[list[float]] = []
    ran: list[_Ran] = []
    for number in range(options.rounds):
        told = told_round(number, options.rounds)
        grounds.tell(f"defer, {told}: {options.rate:g} transactions/s")
        async with stage.capturing() as worker:
            await _run_all(stage, worker, await read_wal_position(stage.db))
            lags.append(await _lags(stage, worker, options, grounds.seed + number))
            await _run_all(stage, worker, await read_wal_position(stage.db))
        grounds.tell(f"defer, {told}: a backlog")
        await stage.work(Load(scripts=MIX, transactions=options.backlog, seed=grounds.seed + 500 + number))
        ran.append(await _run_backlog(stage))
    return [
        note("commit to the end of its deferred bodies, p50", "ms", [percentile(each, 0.5) for each in lags]),
        note("commit to the end of its deferred bodies, p99", "ms", [percentile(each, 0.99) for each in lags]),
        note("deferred bodies of a backlog, captured and run", "bodies/s", [each.calls / each.seconds for each in ran]),
        note("database CPU of a deferred body", "µs/body", [each.cpu * 1e6 / each.calls for each in ran]),
    ]


async def _lags(stage: Stage, worker: Process, options: Options, seed: int) -> list[float]:
    """How long, in ms, until what had committed at a moment has run, of many moments under load."""
    load = Load(scripts=MIX, transactions=int(options.rate * options.seconds), rate=options.rate, seed=seed)
    found: list[float] = []
    working = asyncio.ensure_future(stage.work(load))
    try:
        while not working.done():
            began = time.perf_counter()
            await _run_all(stage, worker, await read_wal_position(stage.db))
            found.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(_BETWEEN_SECONDS)
    finally:
        await working
    return found


async def _run_backlog(stage: Stage) -> _Ran:
    """From the first body on: starting the worker is not timed."""
    before = await _calls(stage)
    end = await read_wal_position(stage.db)
    async with stage.capturing() as worker:
        while (first := await _calls(stage)) == before:
            worker.check()
            await asyncio.sleep(_POLL_SECONDS)
        began, cpu = time.perf_counter(), await stage.deferral_cpu()
        await _run_all(stage, worker, end)
        seconds = time.perf_counter() - began
        calls, last = await _calls(stage), await stage.deferral_cpu()
    if calls == first:
        raise AfterwriteError("the backlog was run at once", remedy="this is a defect: report it")
    return _Ran(calls - first, seconds, last - cpu)


async def _calls(stage: Stage) -> int:
    progress = await read_progress(stage.db, stage.settings.source)
    return progress.calls if progress else 0


async def _run_all(stage: Stage, worker: Process, lsn: Lsn) -> None:
    """Wait until all bodies of what had committed here have run."""
    # A transaction of ours behind it, so that capture passes it when nobody else writes.
    await stage.db.value(statement("bench.emit_marker"))
    deadline = time.monotonic() + _MOST_SECONDS
    while not await caught_up(stage.db, stage.db, lsn, source=stage.settings.source):
        worker.check()
        if time.monotonic() > deadline:
            raise AfterwriteError(f"deferred bodies are not at {lsn} after {_MOST_SECONDS:.0f} s; {worker.latest}")
        await asyncio.sleep(_POLL_SECONDS)
