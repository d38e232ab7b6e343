"""A server with the legacy application on it, in one of three states: with its triggers, without, with capture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import assert_never

import msgspec
from psycopg import sql

from afterwrite import runtime
from afterwrite.bench.load import Load, Ran, Sizes, read_sizes, run_load
from afterwrite.capture.slot import read_wal_position
from afterwrite.defer.deferral import prepare_deferral
from afterwrite.demo.processes import Process, capture_worker
from afterwrite.demo.schema import create_legacy_application
from afterwrite.demo.story import keep_filled
from afterwrite.errors import AfterwriteError
from afterwrite.migrate.backup import read_backup
from afterwrite.migrate.gates import read_table_figures
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import Thresholds, make_plan, write_plan
from afterwrite.migrate.steps import backup_statement, silence_statements, start_statements
from afterwrite.postgres import Database, connect, identifier, quoted, script, statement
from afterwrite.postgres.cpu import cluster_cpu_seconds, cpu_seconds
from afterwrite.postgres.embedded import Server
from afterwrite.record import Lsn
from afterwrite.scan.classify import Verdict
from afterwrite.scan.survey import Survey, survey
from afterwrite.settings import Settings

DATABASE = "legacy"
_MIGRATION = 1
_CATCH_UP_SECONDS = 300.0
_STATISTICS_SECONDS = 0.1


class Variant(StrEnum):
    """Who keeps the activity: triggers, nobody, or we, with the store in the application's database or apart."""

    TRIGGERS = "triggers"
    NOBODY = "nobody"
    AFTERWRITE = "afterwrite"
    APART = "afterwrite, store apart"


class Moved(StrEnum):
    """Which triggers capture has taken over: those that only log, all that may go or wait, or all with full logs.

    With ``KEEP``, bodies that write legacy logs run after commit, so that the logs stay filled.
    """

    LOGS = "logs"
    ALL = "all"
    KEEP = "keep"


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What the same work cost, until all of it was stored.

    CPU seconds of the whole cluster, of its kinds of processes, and of the worker; bytes of WAL, and bytes written to
    data files; rows that the application wrote; and how many bytes an activity takes that is kept in this database.
    """

    cluster_cpu: float
    backends_cpu: float
    walsender_cpu: float
    sink_cpu: float
    server_cpu: float
    worker_cpu: float
    wal: int
    written: int
    writes: int
    kept_bytes: float


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """CPU seconds so far of the three that work for capture."""

    walsender: float
    sink: float
    worker: float


class Stage:
    """One server, ready to be measured."""

    def __init__(
        self, server: Server, variant: Variant, db: Database, sizes: Sizes, folder: Path, settings: Settings
    ) -> None:
        self.server = server
        self.variant = variant
        self.db = db
        self.folder = folder
        self.settings = settings
        self._sizes = sizes

    @property
    def captured(self) -> bool:
        """Whether a worker is wanted beside it."""
        return self.variant in (Variant.AFTERWRITE, Variant.APART)

    async def work(self, load: Load) -> Ran:
        """Let the application work."""
        load = msgspec.structs.replace(load, stamped=self.captured and load.stamped)
        return await run_load(self.server, DATABASE, load, self._sizes, self.folder)

    @asynccontextmanager
    async def capturing(self) -> AsyncGenerator[Process]:
        """``afterwrite capture`` in a process of its own, inside the block.

        Without rehearsals: those end when each body was judged often enough, and are no part of a standing bill.
        """
        log = self.folder / "capture.log"
        async with capture_worker(
            self.server.dsn(DATABASE), log, store_dsn=self.settings.store_dsn, rehearse=False
        ) as worker:
            yield worker

    async def bill(self, load: Load, worker: Process | None) -> Bill:
        """What this work costs until all of it is stored, too."""
        await self.db.run(statement("bench.checkpoint"))
        if worker:
            await self.caught_up(await read_wal_position(self.db), worker)
        first = await self._read(worker)
        await self.work(load)
        if worker:
            await self.caught_up(await read_wal_position(self.db), worker)
        last = await self._read(worker)
        # What was made dirty is written now, as part of this bill and not of the next.
        await self.db.run(statement("bench.checkpoint"))
        written = await self._read_written()
        kinds = {kind: seconds - first.kinds.get(kind, 0.0) for kind, seconds in last.kinds.items()}
        cluster = last.cluster_cpu - first.cluster_cpu
        walsender, sink = kinds.pop("walsender", 0.0), kinds.pop("sink", 0.0)
        server = sum(kinds.values())
        return Bill(
            cluster_cpu=cluster,
            # The application's sessions have ended: they are what is in the whole and in none of the others.
            backends_cpu=cluster - walsender - sink - server,
            walsender_cpu=walsender,
            sink_cpu=sink,
            server_cpu=server,
            worker_cpu=last.worker_cpu - first.worker_cpu,
            wal=last.wal - first.wal,
            written=written - first.written,
            writes=last.writes - first.writes,
            kept_bytes=await self._read_kept(),
        )

    async def parts(self, worker: Process) -> Parts:
        """CPU of the walsender, the sink's session and the worker."""
        found = await self._read_kinds()
        return Parts(
            walsender=found.get("walsender", 0.0), sink=found.get("sink", 0.0), worker=cpu_seconds(worker.pid) or 0.0
        )

    async def deferral_cpu(self) -> float:
        """CPU of the session that runs deferred bodies."""
        return (await self._read_kinds()).get("deferral", 0.0)

    async def _read_kinds(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for process in await self.db.rows(_ServerProcess, statement("bench.read_processes")):
            found[process.kind] = found.get(process.kind, 0.0) + (cpu_seconds(process.pid) or 0.0)
        return found

    async def _read_kept(self) -> float:
        match self.variant:
            case Variant.TRIGGERS:
                kept = await self.db.one(_Kept, statement("bench.read_kept_by_triggers"))
            case Variant.AFTERWRITE:
                kept = await self.db.one(_Kept, statement("bench.read_kept_by_us"))
            case Variant.NOBODY | Variant.APART:
                return 0.0
            case _:
                assert_never(self.variant)
        return kept.bytes / kept.rows

    async def _read_written(self) -> int:
        """Bytes written to data files so far, by whomever."""
        await self.db.values(statement("bench.flush_statistics"))
        modern = self.server.version >= _FIRST_WITH_IO
        return int(
            await self.db.value(statement("bench.read_written") if modern else statement("bench.read_written_15"))
        )

    async def caught_up(self, lsn: Lsn, worker: Process) -> None:
        """Wait until everything that was committed up to here is stored and acknowledged."""
        await await_caught_up(self.db, self.settings, lsn, worker)

    async def _read(self, worker: Process | None) -> _Reading:
        # Statistics of a session that ended are there at once, or nearly so.
        await asyncio.sleep(_STATISTICS_SECONDS)
        cluster = cluster_cpu_seconds(self.server.pid)
        if cluster is None:
            raise AfterwriteError("CPU time cannot be read here", remedy="run the benchmark on Linux")
        return _Reading(
            cluster_cpu=cluster,
            kinds=await self._read_kinds(),
            worker_cpu=(cpu_seconds(worker.pid) or 0.0) if worker else 0.0,
            wal=await self.db.value(statement("bench.read_wal")),
            written=await self._read_written(),
            writes=await self.db.value(statement("bench.read_writes")),
        )


# pg_stat_io.
_FIRST_WITH_IO = 16


class _Reading(msgspec.Struct, frozen=True, kw_only=True):
    cluster_cpu: float
    kinds: dict[str, float]
    worker_cpu: float
    wal: int
    written: int
    writes: int


class _Kept(msgspec.Struct, frozen=True):
    rows: int
    bytes: int


async def await_caught_up(db: Database, settings: Settings, lsn: Lsn, worker: Process) -> None:
    """Wait until everything that was committed up to here is stored and acknowledged."""
    # A transaction of ours behind it: without one the slot would stand still until the next heartbeat.
    await db.value(statement("bench.emit_marker"))
    deadline = time.monotonic() + _CATCH_UP_SECONDS
    while True:
        worker.check()
        beyond = await db.value(statement("bench.read_confirmed"), slot=settings.slot, lsn=str(lsn))
        if beyond is not None and beyond >= 0:
            return
        if time.monotonic() > deadline:
            raise AfterwriteError(f"capture is not at {lsn} after {_CATCH_UP_SECONDS:.0f} s; {worker.latest}")
        await asyncio.sleep(0.05)


class _ServerProcess(msgspec.Struct, frozen=True):
    pid: int
    kind: str


@asynccontextmanager
async def staged(
    server: Server, variant: Variant, *, seed: int, store_server: Server | None = None, moved: Moved = Moved.LOGS
) -> AsyncGenerator[Stage]:
    """Lay the application; silence the triggers that capture replaces unless they are the variant; install capture.

    ``store_server`` is where the store goes when it is apart; it is not part of any bill.
    """
    folder = server.home / "bench"
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = Settings(dsn=server.dsn(DATABASE), store_dsn=store_server.dsn() if store_server else None)
    async with connect(server.dsn()) as admin:
        await admin.run(b"create database legacy")
    async with connect(server.dsn(DATABASE)) as db:
        await create_legacy_application(db, seed=seed)
        await db.script(script("bench/prepare"))
        await db.run(b"create extension if not exists pg_stat_statements with schema public")
        stage = Stage(server, variant, db, await read_sizes(db), folder, settings)
        if variant is not Variant.TRIGGERS:
            found = await survey(db)
            if stage.captured:
                async with runtime.source_and_store(settings) as (source, store):
                    seen = await runtime.look_at_installation(settings, source, store)
                    await runtime.install(settings, seen, source, store)
            if moved is Moved.LOGS or not stage.captured:
                gone = {Verdict.RETIRE} if moved is Moved.LOGS else {Verdict.RETIRE, Verdict.DEFER}
                for judgement in found.judgements:
                    if judgement.verdict in gone:
                        trigger = judgement.trigger
                        await db.run(
                            sql.SQL("alter table {} disable trigger {}").format(
                                identifier(trigger.schema, trigger.table), sql.Identifier(trigger.name)
                            )
                        )
            else:
                await _hand_over(db, found, settings, keep_logs=moved is Moved.KEEP)
        yield stage


async def _hand_over(db: Database, found: Survey, settings: Settings, *, keep_logs: bool) -> None:
    """Silence what may go or wait by the very statements that `migrate` runs; there is no load yet to prove it on."""
    plan = make_plan(found.judgements, await read_table_figures(db), thresholds=Thresholds(), soak_seconds=0.0)
    plan = keep_filled(plan) if keep_logs else plan
    triggers = {judgement.trigger.identity: judgement.trigger for judgement in found.judgements}
    for begin in start_statements(_MIGRATION, write_plan(plan)):
        await db.run(begin.encode())
    for phase in plan.phases:
        for planned in phase.triggers:
            trigger = triggers[planned.trigger]
            backup = await read_backup(db, quoted(trigger.schema, trigger.table), trigger.name)
            if backup is None:
                raise AfterwriteError(f"trigger {planned.trigger} is gone", remedy="this is a defect: report it")
            async with db.transaction():
                await db.run(backup_statement(_MIGRATION, phase.number, backup, trigger).encode())
                if planned.moves_as is Mode.DEFER:
                    await prepare_deferral(db, trigger, source=settings.source)
                for deed in silence_statements(_MIGRATION, phase.number, planned.moves_as, backup, planned.fingerprint):
                    await db.run(deed.encode())
