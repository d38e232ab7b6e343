"""How everything stands, read in one look: the source's slot, the store's batches and days, what waits, what is lost.

::

    source ── slot, outbox, deferred bodies, losses that the store does not know yet ─┐
    store  ── checkpoints, batches, days, gaps ───────────────────────────────────────┴▶ Health ─▶ API, page, metrics

A part that cannot be read is left out, and ``findings`` says why: health is asked for when something is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import TypeVar

import msgspec

from afterwrite import runtime
from afterwrite.capture import outbox
from afterwrite.capture.continuity import read_memory
from afterwrite.capture.governor import judge
from afterwrite.capture.watch import observe, read_pulse
from afterwrite.defer.progress import Deferred, Lag, read_deferred, read_lag
from afterwrite.defer.progress import Standing as DeferralStanding
from afterwrite.defer.progress import read_standing as read_deferral
from afterwrite.errors import AfterwriteError, ConnectionLost, Finding, Severity
from afterwrite.postgres import Database, connect, statement
from afterwrite.settings import Settings
from afterwrite.store.maintain import Table
from afterwrite.store.reader import read_position
from afterwrite.store.schema import read_version, require_store
from afterwrite.store.writer import read_checkpoint

T = TypeVar("T")

_RECENT = 20
_MOST_GAPS = 50


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """The source's replication slot against its budget. ``health``: well, warn, alarm or over; "gone" without one.

    ``lag_bytes`` is the WAL that was written since what the store has.
    """

    name: str
    health: str
    active: bool = False
    retained_bytes: int = 0
    budget_bytes: int = 0
    lag_bytes: int | None = None
    wal_status: str | None = None
    safe_wal_size: int | None = None
    spilled_bytes: int | None = None
    catalog_age: int | None = None


class SourceStanding(msgspec.Struct, frozen=True, kw_only=True):
    """How far a source is stored, and when that was last said: with a worker at work it is said every few seconds."""

    source: str
    slot: str
    lsn: str
    updated_at: datetime
    age_seconds: float


class RecentBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of the feed; ``delay_seconds`` is from its newest activity to its storing."""

    position: int
    source: str
    rows: int
    transactions: int
    first_at: datetime
    last_at: datetime
    written_at: datetime
    delay_seconds: float


class Batches(msgspec.Struct, frozen=True, kw_only=True):
    """The feed: its newest ``position``, where it starts since retention took what was before, its newest batches."""

    position: int = 0
    start: int = 0
    recent: tuple[RecentBatch, ...] = ()


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of the store; ``day`` is None for the one that takes what has no other. ``rows`` is an estimate."""

    name: str
    day: date | None
    rows: int
    bytes: int
    temperature: str | None


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch that is known to be lost. ``open``: it goes on, or the store has not been told of it yet."""

    source: str
    reason: str
    noticed_at: datetime
    from_lsn: str | None = None
    to_lsn: str | None = None
    from_time: datetime | None = None
    to_time: datetime | None = None
    open: bool = False


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """The outbox of events in the source: what waits, and what could not be stored and is set aside."""

    waiting: int
    oldest_seconds: float | None
    refused: int
    bytes: int


class Deferral(msgspec.Struct, frozen=True, kw_only=True):
    """Deferred trigger bodies: how they stand, how far they are behind the store, and each with its dead letters."""

    standing: DeferralStanding
    lag: Lag
    triggers: tuple[Deferred, ...]

    @property
    def dead_letters(self) -> int:
        """Calls that failed and wait for somebody to retry or to skip them."""
        return sum(each.parked for each in self.triggers)


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Everything as it stood. ``ok``: no finding is worse than a note. None: there is none, or a finding says why."""

    at: datetime
    ok: bool
    findings: tuple[Finding, ...]
    slot: Slot | None = None
    sources: tuple[SourceStanding, ...] = ()
    batches: Batches = Batches()
    days: tuple[Day, ...] = ()
    store_bytes: int | None = None
    due: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    outbox: Outbox | None = None
    deferral: Deferral | None = None


async def read_health(settings: Settings) -> Health:
    """One look at both databases. Raises nothing for what is wrong there: that is what it tells."""
    found: list[Finding] = []
    health = Health(at=datetime.now(UTC), ok=True, findings=())

    async def of_store() -> Health:
        async with connect(settings.store, application_name="afterwrite health", guarded=True) as store:
            return await _read_store(store, health)

    async def of_source() -> Health:
        async with runtime.source_and_store(settings) as (source, store):
            return await _read_source(settings, source, store, health, found)

    async def of_days() -> Health:
        report = await runtime.look_at_store(settings)
        found.extend(report.findings)
        return msgspec.structs.replace(
            health,
            days=tuple(map(_day, report.observed.tables)),
            store_bytes=sum(table.bytes for table in report.observed.tables),
            due=tuple(step.text for step in report.left),
        )

    health = await _try("store", of_store, found) or health
    if not found:
        health = await _try("source", of_source, found) or health
        health = await _try("store", of_days, found) or health
    wrong = any(finding.severity is not Severity.INFO for finding in found)
    return msgspec.structs.replace(health, ok=not wrong, findings=tuple(found))


async def _try(where: str, read: Callable[[], Awaitable[T]], found: list[Finding]) -> T | None:
    try:
        return await read()
    except AfterwriteError as error:
        lost = isinstance(error, ConnectionLost)
        found.append(
            Finding(
                rule=f"{where}.unreachable" if lost else f"{where}.unread",
                severity=Severity.ERROR if lost else Severity.WARNING,
                where=where,
                text=str(error),
                remedy=error.remedy,
            )
        )
        return None


async def _read_store(store: Database, health: Health) -> Health:
    await require_store(store)
    recent = await store.rows(RecentBatch, statement("serve.read_recent_batches"), limit=_RECENT)
    return msgspec.structs.replace(
        health,
        sources=tuple(await store.rows(SourceStanding, statement("serve.read_checkpoints"))),
        batches=Batches(
            position=await read_position(store),
            start=await store.value(statement("maintain.read_start")),
            recent=tuple(recent),
        ),
        gaps=tuple(await store.rows(Gap, statement("serve.read_gaps"), limit=_MOST_GAPS)),
    )


async def _read_source(
    settings: Settings, source: Database, store: Database, health: Health, found: list[Finding]
) -> Health:
    if await read_version(source) is None:
        return health  # only events are recorded: nothing of ours is in the source
    slot = await _read_slot(settings, source, store, found)
    posted = None
    found.extend(await outbox.examine(source))
    with suppress(AfterwriteError):  # examine() has told of it
        posted = await outbox.measure(source)
    memory = await read_memory(source, settings.slot)
    gaps = [
        Gap(
            source=settings.source,
            reason=each.reason,
            noticed_at=each.noticed_at,
            from_lsn=str(each.from_lsn),
            to_lsn=None if each.to_lsn is None else str(each.to_lsn),
            open=True,
        )
        for each in memory.gaps
    ]
    return msgspec.structs.replace(
        health,
        slot=slot,
        gaps=(*gaps, *health.gaps),
        outbox=None if posted is None else msgspec.convert(posted, Outbox, from_attributes=True),
        deferral=await _read_deferral(settings, source, store, found),
    )


async def _read_slot(settings: Settings, source: Database, store: Database, found: list[Finding]) -> Slot | None:
    checkpoint = await read_checkpoint(store, settings.source)
    pulse = await read_pulse(source, settings.slot)
    name = settings.slot
    if not pulse.present:
        if checkpoint is None:
            return None  # capture was never set up
        found.append(
            Finding(
                rule="slot.lost",
                severity=Severity.ERROR,
                where=name,
                text=f"there is no slot {name}, from which source {settings.source} was stored: changes are being lost",
                remedy="run `afterwrite install --apply`, which says what is missing and begins anew",
            )
        )
        return Slot(name=name, health="gone")
    observed = observe(pulse, name, checkpoint.lsn if checkpoint else None)
    judgement = judge(observed, runtime.governor_policy(settings))
    found.extend(judgement.findings)
    if pulse.active_pid is None:
        found.append(
            Finding(
                rule="no-worker",
                severity=Severity.WARNING,
                where=name,
                text=f"no worker reads slot {name}: the server keeps WAL from {pulse.restart_lsn} on for it",
                remedy="run `afterwrite capture`",
            )
        )
    return Slot(
        name=name,
        health=judgement.health.value,
        active=pulse.active_pid is not None,
        retained_bytes=observed.retained_bytes,
        budget_bytes=judgement.budget_bytes,
        lag_bytes=observed.lag_bytes,
        wal_status=observed.wal_status,
        safe_wal_size=observed.safe_wal_size,
        spilled_bytes=observed.spilled_bytes,
        catalog_age=observed.catalog_age,
    )


async def _read_deferral(
    settings: Settings, source: Database, store: Database, found: list[Finding]
) -> Deferral | None:
    standing = await read_deferral(source, settings.source)
    if standing is None:
        return None
    deferral = Deferral(
        standing=standing,
        lag=await read_lag(source, store, source=settings.source),
        triggers=tuple(await read_deferred(source, settings.source)),
    )
    if standing.trouble is not None:
        found.append(
            Finding(
                rule="defer.halted",
                severity=Severity.ERROR,
                where=settings.source,
                text=f"deferred bodies stand at {standing.halted_lsn}: {standing.trouble}",
                remedy="see `afterwrite defer status`, which says how to go on",
            )
        )
    if deferral.dead_letters:
        found.append(
            Finding(
                rule="defer.dead-letters",
                severity=Severity.WARNING,
                where=settings.source,
                text=f"{deferral.dead_letters:,} calls of deferred bodies failed and wait",
                remedy="see `afterwrite defer list`; `afterwrite defer retry` runs them again, `… skip` gives them up",
            )
        )
    return deferral


def _day(table: Table) -> Day:
    temperature = table.temperature
    return Day(
        name=table.name,
        day=table.day,
        rows=table.rows,
        bytes=table.bytes,
        temperature=None if temperature is None else temperature.value,
    )
