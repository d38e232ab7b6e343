"""The one place where rooms are wired together: what is installed, and what runs when capture runs.

::

    survey (scan) ──▶ CaptureSetup ──▶ prepare (capture) ──▶ Worker ──▶ Prover (prove), PostgresSink (store)
                      store's schema ─┘                      Replayer (defer) reads the store's feed beside it
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import cast

import msgspec

from afterwrite.broker.changes import open_changes
from afterwrite.broker.link import Access, read_access
from afterwrite.capture import outbox
from afterwrite.capture.backlog import Pace
from afterwrite.capture.drain import Drain, DrainStatus
from afterwrite.capture.governor import OverBudget, Policy, human_bytes
from afterwrite.capture.governor import judge as judge_slot
from afterwrite.capture.preflight import CaptureSetup, find_table, judge_limit, read_server
from afterwrite.capture.slot import Gap, Prepared, Step, StepKind, examine, foresee, prepare
from afterwrite.capture.watch import observe, read_pulse
from afterwrite.capture.worker import Duty, Source, Worker, WorkerState, WorkerStatus, end_task
from afterwrite.defer.calls import ReplayPolicy
from afterwrite.defer.progress import Deferred, read_progress
from afterwrite.defer.rehearse import run_rehearser
from afterwrite.defer.replay import ReplayState, ReplayStatus, run_replayer
from afterwrite.defer.tryout import Rehearsable
from afterwrite.errors import AfterwriteError, ConnectionLost, Finding, Refused, Severity, UsageError
from afterwrite.migrate.drift import note_drift
from afterwrite.migrate.gates import Place
from afterwrite.migrate.identity import parse_replica_identity, record_replica_identity, replica_identity_row
from afterwrite.migrate.pulse import note_pulse
from afterwrite.postgres import Database, LockPolicy, OnBlocked, connect, quoted, script, statement
from afterwrite.prove.prover import Prover
from afterwrite.record import Checkpoint, Sink
from afterwrite.scan.catalog import Event
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.survey import Survey, survey
from afterwrite.seal import split_keys
from afterwrite.settings import Settings
from afterwrite.store import maintain as maintenance
from afterwrite.store import rollup
from afterwrite.store.schema import install_store, known_upgrades, read_version, require_store
from afterwrite.store.writer import is_flushing, open_sink, read_checkpoint, read_identity, record_gap

log = logging.getLogger(__name__)

# What `--accept-gap` steps over, and records.
_GAPS = frozenset({"slot.lost", "slot.continuity", "slot.owner", "publication.departed"})
# What `install` mends without another word: the operator's policy, or the word given before, was that word.
_MENDED = frozenset({"slot.given_up"})
_DEFERRAL_ENDS_SECONDS = 0.4
_HALTED_SECONDS = 5.0
# Where capture itself cannot begin, the outbox does not wait for it.
_BEGINS_SECONDS = 5.0
# How often the source's counters are noted, and its triggers compared with the plan.
_PULSE_SECONDS = 10.0
_DRIFT_SECONDS = 25.0
# How old a report may be.
_ROLL_SECONDS = 5.0
# While capture is so far behind, reports wait, and so long at most.
_ROLL_BEHIND_SECONDS, _ROLL_WAITS_SECONDS = 3.0, 60
# From here on whoever counts the feed is taken to be missing, or stuck.
_ROLL_LATE_SECONDS = 120.0


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation finds and would do, looked at and not touched.

    ``schema`` names the upgrades that are missing, by database; ``steps`` is what capture still needs;
    ``checkpoint`` is how far the source is stored, None when it never was.
    """

    survey: Survey
    setup: CaptureSetup
    checkpoint: Checkpoint | None
    findings: tuple[Finding, ...]
    schema: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.schema and not self.steps


class MaintainStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's last look after the store: when, how many steps it took, and what stood in the way."""

    at: datetime
    done: int = 0
    trouble: str | None = None


class RollupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The last look of whoever counts: the feed is counted up to ``position``; so much waits, for so long."""

    at: datetime
    position: int | None = None
    behind_batches: int = 0
    behind_rows: int = 0
    lag_seconds: float = 0.0
    trouble: str | None = None


class RuntimeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a running capture stands, with the deferral, the store's maintenance and counting, and the outbox's drain."""

    capture: WorkerStatus
    deferral: ReplayStatus | None = None
    maintenance: MaintainStatus | None = None
    rollup: RollupStatus | None = None
    outbox: DrainStatus | None = None


def place_of(settings: Settings) -> Place:
    """The names under which migrate's gates find capture."""
    return Place(
        source=settings.source, slot=settings.slot, publication=settings.publication, stamp_key=settings.stamp_key
    )


def governor_policy(settings: Settings) -> Policy:
    """How much WAL capture may cost the source, and what is done at the end of it."""
    return Policy(
        wal_budget=settings.wal_budget,
        over_budget=OverBudget(settings.over_budget),
        warn_share=settings.wal_warn_share,
        alarm_share=settings.wal_alarm_share,
        lag_warn_seconds=settings.lag_warn_seconds,
    )


def broker_access(settings: Settings, url: str | None) -> Access:
    """Where the brokers are, and who we are there. Raises UsageError where none is named, or not as it could be."""
    if url is None:
        raise UsageError("no broker is named", remedy="set AFTERWRITE_NATS_URL, or --url nats://host:4222")
    names = ("stream", "user", "password", "token", "credentials", "nkey", "ca", "cert", "key")
    return read_access(url, **{name: getattr(settings, f"nats_{name}") for name in names})


def lock_policy(settings: Settings) -> LockPolicy:
    """How patient our DDL is."""
    return LockPolicy(lock_timeout_ms=settings.lock_timeout_ms, attempts=settings.lock_attempts)


def replay_policy(settings: Settings) -> ReplayPolicy:
    """How deferred bodies run."""
    return ReplayPolicy(settings=settings.deferred_settings)


def pace(settings: Settings) -> Pace:
    """How much capture takes at once, and how long it waits."""
    return Pace(
        linger_ms=settings.linger_ms,
        batch_rows=settings.batch_rows,
        # One batch is being stored, one waits, one is on its way.
        backlog_rows=3 * settings.batch_rows,
        transaction_bytes=settings.transaction_bytes,
        spill_dir=settings.spill_dir,
    )


@asynccontextmanager
async def source_and_store(settings: Settings) -> AsyncGenerator[tuple[Database, Database]]:
    """Connections to both databases; the same one twice where they are one."""
    async with connect(settings.dsn, guarded=True) as source:
        if settings.one_database:
            yield source, source
        else:
            async with connect(settings.store, application_name="afterwrite store", guarded=True) as store:
                yield source, store


def capture_setup(found: Survey, settings: Settings) -> CaptureSetup:
    """What is to be captured: the tables whose triggers may move, and the logs that those triggers write.

    A trigger on a partition is seen through its root, so the root is what is published.
    """
    by_oid = {table.oid: table for table in found.inventory.tables}

    def root(judgement: Judgement) -> tuple[str, str]:
        table = by_oid[judgement.trigger.table_oid]
        while table.partition_of is not None:
            table = by_oid[table.partition_of]
        return table.schema, table.name

    moving = [judgement for judgement in found.judgements if judgement.verdict is not Verdict.KEEP]
    logs = {table for judgement in moving if judgement.verdict is Verdict.RETIRE for table in judgement.log_tables}
    legacy = {(table.schema, table.name) for table in found.inventory.tables if table.full_name in logs}
    tables = {root(judgement) for judgement in moving} - legacy
    # An UPDATE leaves out unchanged TOASTed columns; only the whole old row can fill them in again.
    whole = {
        root(judgement)
        for judgement in moving
        if judgement.needs.replica_identity_full or Event.UPDATE in judgement.trigger.events
    }
    return CaptureSetup(
        source=settings.source,
        tables=tuple(sorted(tables)),
        legacy_tables=tuple(sorted(legacy)),
        full_identity=tuple(sorted(tables & whole)),
        slot=settings.slot,
        publication=settings.publication,
        legacy_publication=settings.legacy_publication,
    )


async def keep_published(source: Database, setup: CaptureSetup) -> CaptureSetup:
    """The same, with what is published already: a table whose triggers were removed goes on being captured."""
    legacy = frozenset(await _published(source, setup.legacy_publication)) | set(setup.legacy_tables)
    tables = frozenset(await _published(source, setup.publication)) | set(setup.tables)
    return msgspec.structs.replace(
        setup, tables=tuple(sorted(tables - legacy)), legacy_tables=tuple(sorted(legacy - set(setup.tables)))
    )


async def _published(source: Database, publication: str) -> list[tuple[str, str]]:
    rows = await source.rows(_Published, statement("migrate.read_published"), publication=publication)
    return [(row.schema, row.table) for row in rows]


class _Published(msgspec.Struct, frozen=True):
    schema: str
    table: str


def _with_tables(setup: CaptureSetup, named: Sequence[tuple[str, str]]) -> CaptureSetup:
    """The same, with tables that are wanted although no trigger of theirs may move."""
    for table in named:
        if table in setup.legacy_tables:
            raise UsageError(
                f"{quoted(*table)} is a log that triggers write: it is compared with what is captured of their tables",
                remedy="name the tables that the application writes",
            )
    return msgspec.structs.replace(
        setup,
        tables=tuple(sorted({*setup.tables, *named})),
        full_identity=tuple(sorted({*setup.full_identity, *named})),
    )


async def look_at_installation(
    settings: Settings, source: Database, store: Database, *, tables: Sequence[str] = ()
) -> Installation:
    """What ``install`` would do. Reads only.

    ``tables`` are captured beside those whose triggers may move; raises UsageError for a name that is none.
    """
    found = await survey(source)
    setup = await keep_published(source, capture_setup(found, settings))
    setup = _with_tables(setup, [await find_table(source, name) for name in tables])
    missing = [
        f"{upgrade} in {database.where}"
        for database in dict.fromkeys([source, store])
        for upgrade in await missing_upgrades(database)
    ]
    checkpoint = None if await read_version(store) is None else await read_checkpoint(store, settings.source)
    # A store that lacks the upgrade does not know yet which one it is, and owns nothing.
    identity = None if missing else await read_identity(store)
    findings = await examine(source, setup, checkpoint, identity)
    if not setup.tables:
        findings.append(
            Finding(
                rule="nothing-to-capture",
                severity=Severity.ERROR,
                where=source.where,
                text=f"{source.where} has no trigger that could be retired or deferred, so there is nothing to capture",
                remedy="`afterwrite install --table TABLE` captures a table that has none, and `afterwrite install"
                " --store-only` lays the store for an application's events; `afterwrite scan` shows each verdict",
            )
        )
    return Installation(
        survey=found,
        setup=setup,
        checkpoint=checkpoint,
        findings=tuple(findings),
        schema=tuple(missing),
        steps=tuple(await foresee(source, setup, checkpoint, identity)),
    )


def installation_script(installation: Installation, settings: Settings) -> str:
    """What ``install`` would do to the source, as SQL for an editor; ``install`` then only has to remember it.

    Each publication, replica identity and slot is a transaction of its own, as the server wants it.
    """
    timeout = f"set lock_timeout = '{settings.lock_timeout_ms}ms';"
    parts = [
        "-- What has to be there before anything is silenced: the schema, replica identities, publications, the slot.\n"
        "-- Afterwards run `afterwrite install --apply`, which finds it done and remembers it, then capture.\n"
        "-- The server needs wal_level = logical, and is better off with a max_slot_wal_keep_size.",
    ]
    missing = {step.partition(" in ")[0] for step in installation.schema}
    for upgrade in known_upgrades():
        if f"{upgrade.number:04d} {upgrade.name}" in missing:
            text = script(f"schema/{upgrade.number:04}_{upgrade.name}").rstrip()
            row = f"insert into afterwrite.version values ({upgrade.number}, '{upgrade.name}');"  # noqa: S608 - ours
            parts.append(f"-- schema {upgrade.number:04}_{upgrade.name}\nbegin;\n{text}\n{row}\ncommit;")
    parts.append(timeout)
    for step in installation.steps:
        if step.sql is None:
            continue
        lines = [step.sql.rstrip().removesuffix(";")]
        if step.kind is StepKind.IDENTITY and step.undo:
            before, after = parse_replica_identity(step.undo), parse_replica_identity(step.sql)
            lines = ["begin", *lines, replica_identity_row(step.where, before, after), "commit"]
        parts.append(f"-- {step.text}\n" + "\n".join(f"{line};" for line in lines))
    return "\n\n".join([*parts, "reset lock_timeout;"]) + "\n"


async def examine_governance(settings: Settings, source: Database, checkpoint: Checkpoint) -> list[Finding]:
    """How the slot stands against its budget, and whether the server protects itself where nobody governs."""
    server = await read_server(source)
    if server.in_recovery:
        return []
    policy = governor_policy(settings)
    found = judge_limit(server, settings.slot, policy.wal_budget)
    pulse = await read_pulse(source, settings.slot)
    if not pulse.present:
        return found
    observed = observe(pulse, settings.slot, checkpoint.lsn)
    judgement = judge_slot(observed, policy)
    end = "it is given up then" if policy.over_budget is OverBudget.GIVE_UP else "alarm only"
    found.append(
        Finding(
            rule="slot.numbers",
            severity=Severity.INFO,
            where=settings.slot,
            text=f"slot {settings.slot} keeps {human_bytes(observed.retained_bytes)} of WAL, of"
            f" {human_bytes(judgement.budget_bytes)} ({end}); the store is {human_bytes(observed.lag_bytes)} behind;"
            f" wal_status {pulse.wal_status}, spilled {human_bytes(observed.spilled_bytes or 0)},"
            f" catalog_xmin {observed.catalog_age or 0:,} transactions old",
        )
    )
    return [*found, *judgement.findings]


async def examine_store_server(store: Database) -> list[Finding]:
    """Whether what the store says is committed would outlast a crash of its machine."""
    if await is_flushing(store):
        return []
    return [
        Finding(
            rule="store.fsync",
            severity=Severity.WARNING,
            where=store.where,
            text=f"{store.where} runs with fsync = off: a crash of its machine may take what was acknowledged with it,"
            " and the slot no longer has it",
            remedy="run ALTER SYSTEM SET fsync = on, then SELECT pg_reload_conf()",
        )
    ]


async def examine_rollup(store: Database) -> list[Finding]:
    """Whether reports are about now: how far what is counted is behind what is stored."""
    standing = await rollup.read_standing(store)
    lag = standing.lag_seconds(datetime.now(UTC))
    if lag < _ROLL_LATE_SECONDS:
        return []
    return [
        Finding(
            rule="rollup.behind",
            severity=Severity.WARNING,
            where=store.where,
            text=f"reports are {lag / 60:,.0f} minutes behind: {standing.batches:,} batches with {standing.rows:,}"
            " activities are stored and not counted yet",
            remedy="a running `afterwrite capture` or `afterwrite serve` counts them; without either run"
            " `afterwrite analytics --refresh`",
        )
    ]


def find_obstacle(installation: Installation, *, accept_gap: bool) -> Finding | None:
    """The first finding that ``install`` does not mend, and for which it refuses."""
    for finding in installation.findings:
        mended = finding.rule in _MENDED or (accept_gap and finding.rule in _GAPS)
        if finding.severity is Severity.ERROR and not mended:
            return finding
    return None


async def install(
    settings: Settings,
    installation: Installation,
    source: Database,
    store: Database,
    *,
    accept_gap: bool = False,
    on_step: Callable[[str], None] | None = None,
    on_blocked: OnBlocked | None = None,
) -> Prepared:
    """Lay the schema, remember the replica identities in the ledger, and prepare capture. Running it again is harmless.

    Raises Refused for the first finding that forbids it, before anything is changed.
    """
    if finding := find_obstacle(installation, accept_gap=accept_gap):
        raise Refused(finding.text, remedy=finding.remedy)
    for database in dict.fromkeys([store, source]):
        for done in await install_store(database):
            if on_step:
                on_step(f"schema {done} in {database.where}")
    for step in installation.steps:
        if step.kind is StepKind.IDENTITY and step.sql and step.undo:
            before, after = parse_replica_identity(step.undo), parse_replica_identity(step.sql)
            await record_replica_identity(source, step.where, before, after)

    async def remember_gap(gap: Gap) -> None:
        await record_gap(store, settings.source, after=gap.after, until=gap.until, reason=gap.reason)

    async with open_sink(settings.store) as sink:
        return await prepare(
            source,
            sink,
            installation.setup,
            accept_gap=accept_gap,
            on_gap=remember_gap,
            on_step=lambda step: on_step(step.text) if on_step else None,
            on_blocked=on_blocked,
            policy=lock_policy(settings),
        )


async def missing_upgrades(database: Database) -> list[str]:
    """The upgrades of our schema that a database lacks."""
    version = await read_version(database) or 0
    return [f"{each.number:04d} {each.name}" for each in known_upgrades() if each.number > version]


def maintain_policy(settings: Settings) -> maintenance.MaintainPolicy:
    """What the operator wants of the store's days."""
    return maintenance.MaintainPolicy(
        hot_days=settings.hot_days, retention_days=settings.retention_days, ahead_days=settings.ahead_days
    )


async def look_at_store(settings: Settings) -> maintenance.Report:
    """The store's partitions, and what maintenance would do to them. Reads only."""
    async with source_and_store(settings) as (source, store):
        await require_store(store)
        return await maintenance.look(store, maintain_policy(settings), reader=await _read_reader(settings, source))


async def maintain_store(
    settings: Settings,
    *,
    on_step: Callable[[maintenance.Step], None] | None = None,
    wait_seconds: float = 0.0,
) -> maintenance.Report:
    """Do what the store needs. Raises AnotherMaintainer while one is at work for longer than ``wait_seconds``."""
    async with connect(settings.dsn, guarded=True) as source:
        # Where only the outbox is drained, the source has nothing of ours that could be deferred.
        known = await read_version(source) is not None
        reader = await _read_reader(settings, source) if known else maintenance.Reader(source=settings.source)
    async with connect(settings.store, application_name="afterwrite maintain", options=maintenance.SESSION) as store:
        await require_store(store)
        return await maintenance.maintain(
            store,
            maintain_policy(settings),
            reader=reader,
            on_step=on_step,
            wait_seconds=wait_seconds,
            locks=lock_policy(settings),
        )


async def _read_reader(settings: Settings, source: Database) -> maintenance.Reader:
    """How far the source's deferred bodies have read the feed: retention takes nothing that they still need."""
    progress = await read_progress(source, settings.source)
    if progress is None:
        return maintenance.Reader(source=settings.source)
    return maintenance.Reader(source=settings.source, position=progress.position, commit_lsn=progress.commit_lsn)


async def run_capture(
    settings: Settings,
    *,
    stop: asyncio.Event,
    stand_by: bool = True,
    on_status: Callable[[RuntimeStatus], None] | None = None,
) -> None:
    """Capture, prove, defer and maintain until ``stop`` is set; the batch in flight is finished first.

    With ``capture_url`` batches go by the broker, and what needs the store is left to others: nothing is maintained,
    counted, rehearsed or deferred here. Where another worker is active, this one stands by and takes over when that one
    is gone; without ``stand_by`` it raises Refused. A source or a store that cannot be reached is waited for, also at
    the start. Raises Refused when going on would lose changes, and when the slot was given up by policy.
    """
    source = Source(
        dsn=settings.dsn,
        name=settings.source,
        slot=settings.slot,
        publications=(settings.publication, settings.legacy_publication),
        legacy_publication=settings.legacy_publication,
        stamp_keys=split_keys(settings.stamp_key),
    )

    surveyed: asyncio.Future[Survey] = asyncio.get_running_loop().create_future()
    publishes = settings.capture_url is not None

    @asynccontextmanager
    async def open_duty() -> AsyncGenerator[Duty]:
        # Scanned when it becomes active, not when it began to stand by.
        async with connect(settings.dsn, guarded=True) as database:
            await require_store(database)
            if publishes and (trouble := await _find_deferred(database, settings.source)):
                raise trouble
            found = await survey(database)
            setup = await keep_published(database, capture_setup(found, settings))
        if not surveyed.done():
            surveyed.set_result(found)
        legacy = frozenset(setup.legacy_tables)
        async with Prover(settings.dsn, found.judgements, found.bodies, folder=settings.spill_dir) as prover:
            yield Duty(observers=(prover,), legacy_tables=legacy)

    deferral: list[ReplayStatus] = []
    maintained: list[MaintainStatus] = []
    rolled: list[RollupStatus] = []

    # What looks after the store and the migration begins with the worker: where that cannot, one of them says why.
    begun = asyncio.Event()

    def tell(status: WorkerStatus) -> None:
        if status.state in (WorkerState.STREAMING, WorkerState.STANDING_BY):
            begun.set()
        if on_status:
            on_status(
                RuntimeStatus(
                    capture=status,
                    deferral=deferral[-1] if deferral else None,
                    maintenance=maintained[-1] if maintained else None,
                    rollup=rolled[-1] if rolled else None,
                    outbox=drain.status if drain.status.laid else None,
                )
            )

    def remember(status: ReplayStatus) -> None:
        deferral[:] = [status]

    def remember_maintenance(status: MaintainStatus) -> None:
        maintained[:] = [status]

    def remember_rollup(status: RollupStatus) -> None:
        rolled[:] = [status]

    replay_stop = asyncio.Event()
    told_at: list[float] = []

    drain = make_drain(settings)
    worker = Worker(
        source,
        _open_sink_of(settings),
        open_duty=open_duty,
        policy=governor_policy(settings),
        stand_by=stand_by,
        pace=pace(settings),
        on_status=tell,
    )

    async def end_when_told() -> None:
        await stop.wait()
        worker.stop()
        drain.stop()
        replay_stop.set()
        told_at.append(time.monotonic())

    try:
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(end_when_told())
            # Any step of these may be broken off: the next look goes on from there.
            beside = [
                group.create_task(_watch_migration(settings, begun)),
                group.create_task(_drain_beside(drain, begun)),
            ]
            if not publishes:
                beside.append(group.create_task(_maintain(settings, begun, remember_maintenance)))
                beside.append(group.create_task(_roll(settings, begun, remember_rollup, worker.status)))
            if settings.rehearse and not publishes:
                beside.append(group.create_task(_rehearse(settings, surveyed, replay_stop)))
            defers = _watch_deferred if publishes else _defer
            deferring = group.create_task(defers(settings, replay_stop, remember))
            try:
                await worker.run()
            finally:
                replay_stop.set()
                ending.cancel()
                # Where the worker took its time to stop, the deferral had it too.
                since = time.monotonic() - told_at[0] if told_at else 0.0
                patience = max(0.0, _DEFERRAL_ENDS_SECONDS - since)
                await asyncio.gather(
                    *map(end_task, beside),
                    end_task(deferring, patience=patience),
                )
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _open_sink_of(settings: Settings) -> Callable[[], AbstractAsyncContextManager[Sink]]:
    """What opens capture's sink: the store itself, or brokers before it."""
    if settings.capture_url is not None:
        access = broker_access(settings, settings.capture_url)
        return lambda: open_changes(access, settings.source)
    name = f"afterwrite sink {settings.source}"
    return lambda: open_sink(settings.store, application_name=name, sole=True)


def _open_outbox_sink_of(settings: Settings) -> Callable[[], AbstractAsyncContextManager[Sink]]:
    """The same for the events of the outbox."""
    if settings.capture_url is not None:
        access = broker_access(settings, settings.capture_url)
        return lambda: open_changes(access, settings.source, outbox=True)
    return lambda: open_sink(settings.store, application_name=f"afterwrite outbox {settings.source}")


def make_drain(settings: Settings, *, on_status: Callable[[DrainStatus], None] | None = None) -> Drain:
    """What brings the events of the source's outbox into the store."""
    return Drain(
        settings.dsn,
        _open_outbox_sink_of(settings),
        source=settings.source,
        keys=split_keys(settings.stamp_key),
        on_status=on_status,
    )


async def _drain_beside(drain: Drain, begun: asyncio.Event) -> None:
    """Drain beside capture, also while this worker stands by or waits: who drains is decided among drains."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BEGINS_SECONDS):
            await begun.wait()
    await drain.run()


async def run_outbox(
    settings: Settings, *, stop: asyncio.Event, on_status: Callable[[DrainStatus], None] | None = None
) -> None:
    """Drain the outbox and look after the store until ``stop`` is set, without a slot: where there can be none.

    Raises what makes it useless: no outbox, no store. Who cannot be reached is waited for.
    """
    publishes = settings.capture_url is not None
    try:
        async with connect(settings.dsn, guarded=True) as source:
            if not await outbox.is_laid(source):
                raise Refused(f"there is no outbox in {source.where}", remedy="run `afterwrite outbox install --apply`")
        if not publishes:
            async with connect(settings.store, application_name="afterwrite store", guarded=True) as store:
                await require_store(store)
    except ConnectionLost as error:
        log.warning("%s; it is tried again", error)
    drain = make_drain(settings, on_status=on_status)
    begun = asyncio.Event()
    begun.set()

    async def end_when_told() -> None:
        await stop.wait()
        drain.stop()

    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(end_when_told())]
        if not publishes:
            beside.append(group.create_task(_maintain(settings, begun, lambda _: None)))
            beside.append(group.create_task(_roll(settings, begun, lambda _: None)))
        try:
            await drain.run()
        finally:
            await asyncio.gather(*map(end_task, beside))


async def foresee_outbox(
    source: Database, store: Database, *, roles: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[outbox.OutboxStep]]:
    """What an outbox needs: the upgrades that the store lacks, and the steps in the source."""
    return tuple(await missing_upgrades(store)), await outbox.plan_install(source, roles=roles)


async def install_outbox(source: Database, store: Database, steps: Sequence[outbox.OutboxStep]) -> None:
    """Lay the store where it is not, and the outbox at once. Running it again is harmless."""
    await install_store(store)
    await outbox.lay(source, steps)


async def _defer(settings: Settings, stop: asyncio.Event, tell: Callable[[ReplayStatus], None]) -> None:
    """Run deferred bodies beside capture. What stops them is told, and must not stop capture: it holds the WAL back."""
    while not stop.is_set():
        try:
            await run_replayer(
                settings.dsn,
                settings.store,
                settings.source,
                policy=replay_policy(settings),
                stop=stop,
                on_status=tell,
            )
        except Exception as error:
            if not isinstance(error, AfterwriteError):
                log.exception("a defect of the deferral of source %s; capture goes on", settings.source)
            tell(ReplayStatus(state=ReplayState.HALTED, trouble=str(error) or repr(error)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _HALTED_SECONDS)


async def _find_deferred(source: Database, name: str) -> Refused | None:
    """Why capture may not publish, where bodies are deferred: they are run by whoever reads the store's feed."""
    found = await source.rows(Deferred, statement("defer.read_deferred"), source=name)
    at_work = [each.identity for each in found if each.state in ("prepared", "live")]
    if not at_work:
        return None
    return Refused(
        f"{at_work[0]} is deferred, and its body is run by a capture that reads the store; this one publishes to a"
        " broker (capture_url)",
        remedy="run `afterwrite capture` without capture_url where source and store can be reached, or roll that phase"
        " back: afterwrite migrate rollback",
    )


async def _watch_deferred(settings: Settings, stop: asyncio.Event, tell: Callable[[ReplayStatus], None]) -> None:
    """Say so where a body was deferred while this capture publishes, and cannot run it."""
    while not stop.is_set():
        try:
            async with connect(settings.dsn, application_name="afterwrite watch", guarded=True) as database:
                if trouble := await _find_deferred(database, settings.source):
                    log.warning("%s; %s", trouble, trouble.remedy)
                    tell(ReplayStatus(state=ReplayState.HALTED, trouble=str(trouble)))
        except AfterwriteError as error:
            log.debug("the deferral cannot be looked at now: %s", error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRIFT_SECONDS):
                await stop.wait()


async def _rehearse(settings: Settings, surveyed: asyncio.Future[Survey], stop: asyncio.Event) -> None:
    """Rehearse the bodies that are to be deferred, once this worker is active. Trouble is told, and capture goes on."""
    known = [await surveyed]

    async def load() -> list[Rehearsable]:
        if known:
            return rehearsable(known.pop())
        async with connect(settings.dsn, guarded=True) as database:
            return rehearsable(await survey(database))

    while not stop.is_set():
        try:
            await run_rehearser(
                settings.dsn,
                settings.store,
                settings.source,
                load,
                publication=settings.publication,
                policy=replay_policy(settings),
                stop=stop,
            )
        except Exception as error:
            if not isinstance(error, AfterwriteError):
                log.exception("a defect of the rehearsals; capture goes on")
            else:
                log.warning("bodies are not rehearsed: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _HALTED_SECONDS)


def rehearsable(found: Survey) -> list[Rehearsable]:
    """The triggers that are to be deferred, with the tables that their bodies write."""
    names = {table.full_name: quoted(table.schema, table.name) for table in found.inventory.tables}
    return [
        Rehearsable(
            trigger=judgement.trigger,
            effects=tuple(names[table] for table in judgement.effects if table in names),
            lookups=bool(set(judgement.needs.lookups) - set(judgement.effects)),
        )
        for judgement in found.judgements
        if judgement.verdict is Verdict.DEFER and judgement.trigger.parent_oid is None
    ]


async def _watch_migration(settings: Settings, begun: asyncio.Event) -> None:
    """Note how the source fares, for the gates to compare with, and what somebody else does to its triggers."""
    await begun.wait()
    told: str | None = None
    looked = 0.0
    while True:
        try:
            async with connect(settings.dsn, application_name="afterwrite watch", guarded=True) as database:
                await note_pulse(database)
                if time.monotonic() - looked >= _DRIFT_SECONDS:
                    looked = time.monotonic()
                    for finding in await note_drift(database):
                        log.warning("%s %s; %s", finding.where, finding.text, finding.remedy)
            told = None
        except Exception as error:
            if not isinstance(error, AfterwriteError):
                log.exception("a defect of the watch over the migration; capture goes on")
            elif str(error) != told:
                log.warning("the migration cannot be watched now: %s", error)
            told = str(error)
        await asyncio.sleep(_PULSE_SECONDS * random.uniform(0.9, 1.1))


async def _maintain(settings: Settings, begun: asyncio.Event, tell: Callable[[MaintainStatus], None]) -> None:
    """Look after the store now and again. What goes wrong is told once, and must not stop capture."""
    await begun.wait()
    told: str | None = None
    while True:
        status = MaintainStatus(at=datetime.now(UTC))
        try:
            report = await maintain_store(settings)
            trouble = "; ".join(finding.text for finding in report.findings) or None
            status = msgspec.structs.replace(status, done=len(report.done), trouble=trouble)
        except maintenance.AnotherMaintainer as error:
            log.info("%s: it does what there is to do", error)
        except Exception as error:
            if not isinstance(error, AfterwriteError):
                log.exception("a defect of the maintenance of the store; capture goes on")
            status = msgspec.structs.replace(status, trouble=str(error) or repr(error))
        if status.trouble and status.trouble != told:
            log.warning("maintenance of the store: %s", status.trouble)
        told = status.trouble
        tell(status)
        await asyncio.sleep(settings.maintain_seconds * random.uniform(0.9, 1.1))


async def _roll(
    settings: Settings,
    begun: asyncio.Event,
    tell: Callable[[RollupStatus], None],
    capture: Callable[[], WorkerStatus] | None = None,
) -> None:
    """Count what the feed brings, every few seconds. What goes wrong is told once, and must not stop capture."""
    await begun.wait()
    told: str | None = None
    while True:
        try:
            async with connect(settings.store, application_name="afterwrite rollup", options=rollup.SESSION) as store:
                await require_store(store)
                while True:
                    if capture:
                        await _let_catch_up(capture)
                    standing, trouble = await _count(store)
                    if trouble and trouble != told:
                        log.warning("the views for reports are not refreshed, and reports slower: %s", trouble)
                    tell(_rollup_status(standing, trouble))
                    told = trouble
                    await asyncio.sleep(_ROLL_SECONDS * random.uniform(0.9, 1.1))
        except Exception as error:
            trouble = str(error) or repr(error)
            if not isinstance(error, AfterwriteError):
                log.exception("a defect of the counting for reports; capture goes on")
            elif trouble != told:
                log.warning("nothing is counted for reports now: %s", trouble)
            told = trouble
            tell(RollupStatus(at=datetime.now(UTC), trouble=trouble))
            await asyncio.sleep(_HALTED_SECONDS * random.uniform(0.9, 1.1))


async def _let_catch_up(capture: Callable[[], WorkerStatus]) -> None:
    """Wait while capture is behind, which needs the store more than reports do; but not for ever."""
    for _ in range(_ROLL_WAITS_SECONDS):
        if (capture().lag_seconds or 0.0) <= _ROLL_BEHIND_SECONDS:
            return
        await asyncio.sleep(1.0)


async def _count(store: Database) -> tuple[rollup.Standing, str | None]:
    """Count what the feed has, and refresh the views where that is due; what is in the way of the latter."""
    await rollup.roll_up(store)
    standing = await rollup.read_standing(store)
    return standing, await _refresh(store) if rollup.refresh_is_due(standing, datetime.now(UTC)) else None


async def count_for_reports(settings: Settings) -> str | None:
    """Count what the feed has, once, where no worker does; why the views could not be refreshed, if that was due.

    At nobody's side: where another session of ours counts in this way at the moment, nothing is done.
    """
    async with connect(settings.store, application_name="afterwrite rollup", options=rollup.SESSION) as store:
        await require_store(store)
        if not await store.value(statement("rollup.be_the_one")):
            return None
        _, trouble = await _count(store)
        return trouble


async def _refresh(store: Database) -> str | None:
    """Refresh the materialized views, which only their owner may; what is in the way. Reports do without them."""
    try:
        await rollup.refresh_analytics(store)
    except ConnectionLost:
        raise
    except AfterwriteError as error:
        return str(error)
    return None


def _rollup_status(standing: rollup.Standing, trouble: str | None) -> RollupStatus:
    now = datetime.now(UTC)
    return RollupStatus(
        at=now,
        position=standing.position,
        behind_batches=standing.batches,
        behind_rows=standing.rows,
        lag_seconds=standing.lag_seconds(now),
        trouble=trouble,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside; the others followed from it."""
    first = group.exceptions[0]
    return _first(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first
