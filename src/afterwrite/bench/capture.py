"""What capture can do and what it costs: speed against a bare COPY, lag under steady load, the bill against triggers.

::

    bill    four servers do the same work by turns: with triggers, with nobody keeping activity, with afterwrite and
            its store in the same database, and with its store on a server of its own
    drain   one stretch of WAL is captured again and again, by turns with a bare COPY of the rows that it became
    lag     steady writes; from the commit's own time until a reader of the feed can see the change
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import msgspec
from psycopg import sql

from afterwrite.bench.claims import Claim, Report, compare, held_to, in_turn, note, percentile
from afterwrite.bench.load import MIX, SINGLE, SINGLE_ROWS, Load
from afterwrite.bench.stage import DATABASE, Bill, Parts, Stage, Variant, staged
from afterwrite.capture.slot import read_wal_position
from afterwrite.demo.processes import Process
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, connect, statement, translated
from afterwrite.postgres.cpu import cpu_seconds
from afterwrite.postgres.embedded import embedded_server
from afterwrite.record import Checkpoint, Lsn
from afterwrite.store.lines import COLUMNS
from afterwrite.store.writer import read_checkpoint

Tell = Callable[[str], None]

_PLACE = "afterwrite_bench"
_CHUNK = 1 << 20
_WARM_TRANSACTIONS = 400
_POLL_SECONDS = 0.02


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much, how often. ``changes`` is the stretch that is drained, ``rates`` are changes a second."""

    rounds: int = 3
    changes: int = 200_000
    rates: tuple[int, ...] = (500, 2_000, 5_000)
    lag_seconds: float = 10.0
    bill_rates: tuple[int, ...] = (300, 900)
    bill_seconds: float = 8.0
    seed: int = 1
    pg_bin: Path | None = None


async def bench_capture(options: Options, tell: Tell) -> Report:
    """Measure on servers of its own, and say what came out. Raises AfterwriteError when something cannot be run."""
    with ExitStack() as servers:
        async with AsyncExitStack() as stack:
            stages: dict[Variant, Stage] = {}
            for variant in Variant:
                tell(f"laying the legacy application: {variant.value}")
                server = servers.enter_context(embedded_server(bin_dir=options.pg_bin))
                apart = variant is Variant.APART
                store = servers.enter_context(embedded_server(bin_dir=options.pg_bin)) if apart else None
                stages[variant] = await stack.enter_async_context(
                    staged(server, variant, seed=options.seed, store_server=store)
                )
            ours = stages[Variant.AFTERWRITE]
            claims: list[Claim] = []
            for rate in options.bill_rates:
                claims += await _measure_bill(stages, rate, options, tell)
            claims += [
                *await _measure_lag(ours, options, tell),
                *await _measure_drain(ours, options, tell),
            ]
            version = str(await ours.db.value(statement("bench.read_version")))
    return Report(machine=read_machine(version), settings=_settings(options), claims=claims)


async def _measure_bill(stages: dict[Variant, Stage], rate: float, options: Options, tell: Tell) -> list[Claim]:
    """The same transactions, each round with another seed, on each server in turn; the order turns too."""
    bills: dict[Variant, list[Bill]] = {variant: [] for variant in Variant}
    load = Load(scripts=MIX, transactions=int(rate * options.bill_seconds), rate=rate)
    async with AsyncExitStack() as stack:
        workers: dict[Variant, Process] = {}
        for variant, stage in stages.items():
            tell(f"warming up: {variant.value}")
            if stage.captured:
                workers[variant] = await stack.enter_async_context(stage.capturing())
            await stage.work(msgspec.structs.replace(load, transactions=_WARM_TRANSACTIONS, rate=None, seed=7))
        for number in range(options.rounds):
            for variant in in_turn(list(Variant), number):
                tell(f"bill at {rate:g}/s, round {number + 1} of {options.rounds}: {variant.value}")
                seeded = msgspec.structs.replace(load, seed=options.seed + number)
                bills[variant].append(await stages[variant].bill(seeded, workers.get(variant)))
    return _bill_claims(bills, rate)


def _bill_claims(bills: dict[Variant, list[Bill]], rate: float) -> list[Claim]:
    def each(variant: Variant, figure: Callable[[Bill], float]) -> list[float]:
        return [figure(bill) / bill.writes for bill in bills[variant]]

    def beyond(variant: Variant, figure: Callable[[Bill], float]) -> list[float]:
        nobody = each(Variant.NOBODY, figure)
        least = 1e-3  # a difference of two measurements may come out below nothing
        return [max(least, mine - base) for mine, base in zip(each(variant, figure), nobody, strict=True)]

    def cpu(bill: Bill) -> float:
        return bill.cluster_cpu * 1e6

    def wal(bill: Bill) -> float:
        return float(bill.wal)

    at = f"{rate:g} tx/s"
    triggers, ours, apart = Variant.TRIGGERS, Variant.AFTERWRITE, Variant.APART

    def bill(claim: str, unit: str, baseline: list[float], measured: list[float]) -> Claim:
        return compare(f"{claim}, {at}", unit, baseline, measured, target=0.4, at_most=True)

    return [
        bill("database CPU for keeping activity", "µs/write", beyond(triggers, cpu), beyond(ours, cpu)),
        bill("WAL for keeping activity", "B/write", beyond(triggers, wal), beyond(ours, wal)),
        bill("database CPU of the whole work", "µs/write", each(triggers, cpu), each(ours, cpu)),
        bill("WAL of the whole work", "B/write", each(triggers, wal), each(ours, wal)),
        bill("store apart: source CPU for activity", "µs/write", beyond(triggers, cpu), beyond(apart, cpu)),
        bill("store apart: source WAL for activity", "B/write", beyond(triggers, wal), beyond(apart, wal)),
        note(f"database CPU, nobody keeps activity, {at}", "µs/write", each(Variant.NOBODY, cpu)),
        note(f"WAL, nobody keeps activity, {at}", "B/write", each(Variant.NOBODY, wal)),
        note(f"the worker's own CPU, {at}", "µs/write", each(ours, lambda bill: bill.worker_cpu * 1e6)),
    ]


class _Drained(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch captured: ``settled`` is its whole time, until the WAL of our own store was read past, too."""

    rows: int
    seconds: float
    settled_rows: int
    settled_seconds: float
    batches: int
    parts: Parts
    parts_rows: int


class _Copied(msgspec.Struct, frozen=True, kw_only=True):
    rows: int
    seconds: float
    cpu: float


async def _measure_drain(stage: Stage, options: Options, tell: Tell) -> list[Claim]:
    place = await _remember_place(stage)
    tell(f"drain: writing {options.changes:,} changes")
    written = 0
    before = int(await stage.db.value(statement("bench.read_writes")))
    for part in range(1_000):
        await stage.work(Load(scripts=MIX, transactions=4_000, seed=options.seed + 1_000 + part))
        await asyncio.sleep(1.0)
        written = int(await stage.db.value(statement("bench.read_writes"))) - before
        if written >= options.changes:
            break
    end = await read_wal_position(stage.db)
    rows_file = stage.folder / "rows.copy"
    drained: list[_Drained] = []
    copied: list[_Copied] = []
    # The first time is a warm-up, and gives the rows to copy.
    tell("drain: warming up")
    await _drain(stage, place, end)
    await _save_rows(stage, rows_file)
    for number in range(options.rounds):
        for turn in ("capture", "copy") if number % 2 else ("copy", "capture"):
            tell(f"drain, round {number + 1} of {options.rounds}: {turn}")
            if turn == "capture":
                drained.append(await _drain(stage, place, end))
            else:
                copied.append(await _bare_copy(stage, rows_file))
    await stage.db.run(statement("bench.drop_place"), slot=_PLACE)
    return _drain_claims(drained, copied)


def _drain_claims(drained: list[_Drained], copied: list[_Copied]) -> list[Claim]:
    speed = [run.rows / run.seconds for run in drained]
    bare = [run.rows / run.seconds for run in copied]
    copy_cpu = [run.cpu * 1e6 / run.rows for run in copied]
    return [
        compare(
            "capture against a bare COPY",
            "changes/s",
            bare,
            speed,
            target=0.7,
        ),
        held_to("capture into the fully indexed store", "changes/s", 30_000, speed, at_most=False),
        note(
            "capture, the store's own WAL read past too",
            "changes/s",
            [run.settled_rows / run.settled_seconds for run in drained],
        ),
        compare(
            "CPU of the sink's session against a bare COPY",
            "µs/change",
            copy_cpu,
            [run.parts.sink * 1e6 / run.parts_rows for run in drained],
        ),
        note(
            "CPU of the walsender",
            "µs/change",
            [run.parts.walsender * 1e6 / run.parts_rows for run in drained],
        ),
        note("CPU of the worker", "µs/change", [run.parts.worker * 1e6 / run.parts_rows for run in drained]),
        note("changes in a batch", "changes", [run.rows / run.batches for run in drained]),
    ]


async def _remember_place(stage: Stage) -> Checkpoint:
    """Where capture stands now, held by a second slot, so that the same WAL can be read many times."""
    await stage.db.run(statement("bench.keep_place"), slot=stage.settings.slot, copy=_PLACE)
    checkpoint = await read_checkpoint(stage.db, stage.settings.source)
    if checkpoint is None:
        raise AfterwriteError("the store of the benchmark has no checkpoint", remedy="this is a defect: report it")
    return checkpoint


async def _go_back(stage: Stage, place: Checkpoint) -> None:
    """An empty store, and the slot where it was remembered."""
    slot = stage.settings.slot
    for _ in range(200):
        if await stage.db.value(statement("bench.read_slot_reader"), slot=slot) is None:
            break
        await asyncio.sleep(_POLL_SECONDS)
    await stage.db.run(statement("bench.drop_place"), slot=slot)
    await stage.db.run(statement("bench.keep_place"), slot=_PLACE, copy=slot)
    await stage.db.run(statement("bench.empty_store"))
    await stage.db.run(
        statement("bench.begin_at"),
        source=place.source,
        slot=place.slot,
        system_id=place.system_id,
        timeline=place.timeline,
        lsn=str(place.lsn),
    )
    await stage.db.run(statement("bench.checkpoint"))


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    rows: int
    later_rows: int
    batches: int
    seconds: float | None


async def _drain(stage: Stage, place: Checkpoint, end: Lsn) -> _Drained:
    await _go_back(stage, place)
    async with stage.capturing() as worker:
        # Not timed: starting Python, reading the catalog, connecting.
        while not (first := await stage.db.one(_Stored, statement("bench.read_stored"))).rows:
            worker.check()
            await asyncio.sleep(_POLL_SECONDS)
        began, parts = time.monotonic(), await stage.parts(worker)
        await stage.caught_up(end, worker)
        stored, done = await stage.db.one(_Stored, statement("bench.read_stored")), await stage.parts(worker)
        await stage.caught_up(await read_wal_position(stage.db), worker)
        settled = time.monotonic() - began
    if not stored.seconds:
        raise AfterwriteError("the stretch was stored in one batch", remedy="ask for more --changes")
    return _Drained(
        rows=stored.later_rows,
        seconds=stored.seconds,
        settled_rows=stored.rows - first.rows,
        settled_seconds=settled,
        batches=stored.batches,
        parts=Parts(
            walsender=done.walsender - parts.walsender, sink=done.sink - parts.sink, worker=done.worker - parts.worker
        ),
        parts_rows=stored.rows - first.rows,
    )


_ROWS = sql.SQL("copy (select {columns} from afterwrite.activity order by batch_id, commit_lsn, ordinal) to stdout")
_BARE = sql.SQL("copy afterwrite.activity ({columns}) from stdin")
_COLUMNS = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))


async def _save_rows(stage: Stage, path: Path) -> None:
    with path.open("wb") as file, translated(stage.db.where):
        async with stage.db.connection.cursor() as cursor, cursor.copy(_ROWS.format(columns=_COLUMNS)) as copy:
            async for block in copy:
                file.write(block)


async def _bare_copy(stage: Stage, path: Path) -> _Copied:
    """The same rows into the same tables in one COPY: nothing decoded, no seal, no checkpoint."""
    await stage.db.run(statement("bench.empty_store"))
    await stage.db.run(statement("bench.checkpoint"))
    async with connect(stage.settings.dsn) as db:
        pid = db.connection.info.backend_pid
        first, began = cpu_seconds(pid) or 0.0, time.monotonic()
        with path.open("rb") as file, translated(db.where):
            async with db.connection.cursor() as cursor, cursor.copy(_BARE.format(columns=_COLUMNS)) as copy:
                while block := file.read(_CHUNK):
                    await copy.write(block)
        seconds, cpu = time.monotonic() - began, (cpu_seconds(pid) or 0.0) - first
        rows: int = await db.value(statement("bench.count_rows"))
    return _Copied(rows=rows, seconds=seconds, cpu=cpu)


async def _measure_lag(stage: Stage, options: Options, tell: Tell) -> list[Claim]:
    lags: dict[int, list[tuple[float, float]]] = {rate: [] for rate in options.rates}
    speeds: dict[int, list[float]] = {rate: [] for rate in options.rates}
    async with stage.capturing() as worker:
        await stage.caught_up(await read_wal_position(stage.db), worker)
        for number in range(options.rounds):
            for rate in options.rates:
                tell(f"lag, round {number + 1} of {options.rounds}: {rate:,} changes/s")
                found, speed = await _lag(stage, rate, options, number, worker)
                lags[rate].append(found)
                speeds[rate].append(speed)
    claims: list[Claim] = []
    for rate in options.rates:
        p50 = [found[0] for found in lags[rate]]
        p99 = [found[1] for found in lags[rate]]
        claims.append(note(f"commit to feed at {rate:,} changes/s, p50", "ms", p50))
        p99_claim = f"commit to feed at {rate:,} changes/s, p99"
        promised = 250.0 if rate <= 2_000 else None
        claims.append(held_to(p99_claim, "ms", promised, p99, at_most=True) if promised else note(p99_claim, "ms", p99))
        claims.append(note(f"load that came about, of {rate:,} changes/s", "changes/s", speeds[rate]))
    return claims


async def _lag(
    stage: Stage, rate: int, options: Options, number: int, worker: Process
) -> tuple[tuple[float, float], float]:
    """p50 and p99 in milliseconds, and the changes a second that the load really made."""
    before: int = await stage.db.value(statement("bench.read_feed_position"))
    transactions = int(rate * options.lag_seconds / SINGLE_ROWS)
    load = Load(
        scripts=SINGLE, transactions=transactions, clients=8, rate=rate / SINGLE_ROWS, seed=options.seed + number
    )
    async with _feed(stage.settings.dsn) as seen:
        tps = (await stage.work(load)).tps
        await stage.caught_up(await read_wal_position(stage.db), worker)
        await asyncio.sleep(0.2)
    lags: list[float] = []
    for batch in await stage.db.rows(_Commits, statement("bench.read_commits"), after_position=before):
        visible = next((moment for position, moment in seen if position >= batch.position), None)
        if visible is not None:
            lags += [(visible - moment) * 1000 for moment in batch.moments]
    if not lags:
        raise AfterwriteError("nothing of the load came out of the feed", remedy="this is a defect: report it")
    return (percentile(lags, 0.5), percentile(lags, 0.99)), tps * SINGLE_ROWS


class _Commits(msgspec.Struct, frozen=True):
    position: int
    moments: list[float]


@asynccontextmanager
async def _feed(dsn: str | None) -> AsyncGenerator[list[tuple[int, float]]]:
    """The positions of the feed and when each became visible to a listener, until the block ends."""
    seen: list[tuple[int, float]] = []

    async def listen(db: Database) -> None:
        async for _ in db.connection.notifies():
            position: int = await reader.value(statement("bench.read_feed_position"))
            seen.append((position, time.time()))

    async with connect(dsn) as db, connect(dsn) as reader:
        await db.run(b"listen afterwrite_feed")
        listening = asyncio.create_task(listen(db))
        try:
            yield seen
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


def read_machine(version: str) -> dict[str, str | int | float]:
    """Where a benchmark runs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": version,
    }


def _settings(options: Options) -> dict[str, str | int | float]:
    return {
        "database": DATABASE,
        "rounds": options.rounds,
        "changes": options.changes,
        "rates": ", ".join(str(rate) for rate in options.rates),
        "lag_seconds": options.lag_seconds,
        "bill_rates": ", ".join(str(rate) for rate in options.bill_rates),
        "bill_seconds": options.bill_seconds,
        "seed": options.seed,
    }
