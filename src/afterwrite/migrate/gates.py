"""The gates: read what can be measured, then decide. What cannot be measured is not met.

::

    slot, heartbeat, publication (source) ─┐
    proof (prove)                          ├──▶ Readings ──evaluate──▶ Gate …  (value, threshold, window, source)
    deferral (source and store)           ─┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from afterwrite.migrate.phase import Gate
from afterwrite.migrate.plan import TableFigures, Thresholds
from afterwrite.postgres import Database, statement

_POLL_SECONDS = 0.05


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The names of what watches the source: its own name in the store, its slot and its publication."""

    source: str
    slot: str = "afterwrite"
    publication: str = "afterwrite"


class SlotReading(msgspec.Struct, frozen=True, kw_only=True):
    """The slot now. ``safe_wal_size`` is None where the server sets no limit; ``lag_bytes`` None on a standby."""

    active: bool
    wal_status: str | None
    safe_wal_size: int | None
    lag_bytes: int | None

    @property
    def keeps_all(self) -> bool:
        """Whether no WAL that the slot needs has been given up."""
        return self.wal_status in {"reserved", "extended"}


class LagReading(msgspec.Struct, frozen=True, kw_only=True):
    """How long a heartbeat took from the WAL to the acknowledgement; ``arrived`` is False when we stopped waiting."""

    seconds: float
    arrived: bool


class ProofReading(msgspec.Struct, frozen=True, kw_only=True):
    """What shadow has shown for the triggers of a phase.

    ``unseen`` are ``trigger on operation`` that were never compared and are not rare; ``residuals`` says how many
    differences of which reason are not explained.
    """

    transactions: int
    seconds: float
    unexplained: int
    unseen: tuple[str, ...]
    residuals: str = ""


class DeferralReading(msgspec.Struct, frozen=True, kw_only=True):
    """The deferred bodies. ``waiting_seconds`` is the age of the oldest stored batch that awaits them, 0 when none
    does, None when there is no progress to compare with."""

    waiting_seconds: float | None
    dead_letters: int


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured for a phase; None is what could not be. ``deferral`` matters once a body is deferred.

    ``unfinished`` are triggers to be deferred whose last deferral, though rolled back, has not run to its end yet.
    """

    slot: SlotReading | None = None
    lag: LagReading | None = None
    unpublished: tuple[str, ...] | None = None
    proof: ProofReading | None = None
    deferring: bool = False
    deferral: DeferralReading | None = None
    unfinished: tuple[str, ...] = ()

    @property
    def captured(self) -> bool:
        """Whether everything since the slot was made is stored or can still be."""
        return self.slot is not None and self.slot.keeps_all and self.unpublished == ()


def evaluate(readings: Readings, thresholds: Thresholds, *, soaking: bool = False) -> tuple[Gate, ...]:
    """The gates of a phase, each with what was found against what is asked for.

    While a phase soaks its triggers are off, and shadow compares nothing more for it: of the proof only that no
    difference came up is asked for.
    """
    gates = [
        _worker(readings.slot),
        _published(readings.unpublished),
        _lag_bytes(readings.slot, thresholds),
        _lag_seconds(readings.lag, thresholds),
        _headroom(readings.slot, thresholds),
        *_proof(readings.proof, thresholds, soaking=soaking),
    ]
    if readings.deferring:
        gates += _deferral(readings.deferral, thresholds)
    if readings.unfinished:
        gates.append(_unfinished(readings.unfinished))
    return tuple(gates)


def _worker(slot: SlotReading | None) -> Gate:
    value = None if slot is None else f"{'active' if slot.active else 'not active'}, {slot.wal_status or 'unreserved'}"
    return Gate(
        name="capture worker",
        met=slot is not None and slot.active and slot.keeps_all,
        value=value,
        threshold="an active slot that keeps its WAL",
        window="now",
        source="pg_replication_slots",
        remedy="start `afterwrite capture`",
    )


def _published(unpublished: Sequence[str] | None) -> Gate:
    return Gate(
        name="published tables",
        met=unpublished == (),
        value=None if unpublished is None else f"missing {', '.join(unpublished)}" if unpublished else "complete",
        threshold="every table of the phase",
        window="now",
        source="pg_publication_tables",
        remedy="run `afterwrite install --apply`, which adds them, and shadow anew",
    )


def _lag_bytes(slot: SlotReading | None, thresholds: Thresholds) -> Gate:
    lag = None if slot is None else slot.lag_bytes
    return Gate(
        name="capture lag in bytes",
        met=lag is not None and lag <= thresholds.capture_lag_bytes,
        value=None if lag is None else f"{lag:,} B",
        threshold=f"at most {thresholds.capture_lag_bytes:,} B",
        window="now",
        source="pg_current_wal_flush_lsn() less confirmed_flush_lsn of the slot",
        remedy="wait until capture has caught up, or raise capture_lag_bytes in the plan",
    )


def _lag_seconds(lag: LagReading | None, thresholds: Thresholds) -> Gate:
    return Gate(
        name="capture lag in seconds",
        met=lag is not None and lag.arrived and lag.seconds <= thresholds.capture_lag_seconds,
        value=None if lag is None else f"{'' if lag.arrived else 'more than '}{lag.seconds:.2f} s",
        threshold=f"at most {thresholds.capture_lag_seconds:g} s",
        window="one heartbeat",
        source="a heartbeat in the WAL, until the slot acknowledged it",
        remedy="look at what `afterwrite capture` says, or raise capture_lag_seconds in the plan",
    )


def _headroom(slot: SlotReading | None, thresholds: Thresholds) -> Gate:
    if slot is None:
        value = None
    elif slot.safe_wal_size is None:
        value = "without limit" if slot.keeps_all else slot.wal_status or "unreserved"
    else:
        value = f"{slot.safe_wal_size:,} B"
    met = slot is not None and slot.keeps_all
    if slot is not None and slot.safe_wal_size is not None:
        met = met and slot.safe_wal_size >= thresholds.slot_headroom_bytes
    return Gate(
        name="slot headroom",
        met=met,
        value=value,
        threshold=f"at least {thresholds.slot_headroom_bytes:,} B of WAL before the slot is given up",
        window="now",
        source="safe_wal_size of pg_replication_slots (max_slot_wal_keep_size)",
        remedy="raise max_slot_wal_keep_size, or wait until capture has caught up",
    )


def _proof(proof: ProofReading | None, thresholds: Thresholds, *, soaking: bool) -> list[Gate]:
    window = "since nothing is known" if proof is None else f"{proof.seconds:,.0f} s of shadow"
    unexplained = Gate(
        name="proof: unexplained residuals",
        met=proof is not None and proof.unexplained == 0,
        value=None if proof is None else f"{proof.unexplained}{f' ({proof.residuals})' if proof.residuals else ''}",
        threshold="0",
        window=window,
        source="afterwrite prove",
        remedy="run `afterwrite prove`, which shows the newest examples of each reason",
    )
    if soaking:
        return [unexplained]
    return [
        unexplained,
        Gate(
            name="proof: transactions",
            met=proof is not None and proof.transactions >= thresholds.proof_transactions,
            value=None if proof is None else f"{proof.transactions:,}",
            threshold=f"at least {thresholds.proof_transactions:,}",
            window=window,
            source="afterwrite prove",
            remedy="let shadow run on, or lower proof_transactions in the plan",
        ),
        Gate(
            name="proof: time",
            met=proof is not None and proof.seconds >= thresholds.proof_seconds,
            value=None if proof is None else f"{proof.seconds:,.0f} s",
            threshold=f"at least {thresholds.proof_seconds:,.0f} s",
            window=window,
            source="afterwrite prove",
            remedy="let shadow run on, or lower proof_seconds in the plan",
        ),
        Gate(
            name="proof: every trigger seen on every operation",
            met=proof is not None and not proof.unseen,
            value=None if proof is None else f"not seen: {', '.join(proof.unseen)}" if proof.unseen else "all seen",
            threshold="all but those that the plan calls rare",
            window=window,
            source="afterwrite prove",
            remedy='let shadow run on, or give your word in the plan: rare = ["..."]',
        ),
    ]


def _deferral(deferral: DeferralReading | None, thresholds: Thresholds) -> list[Gate]:
    waiting = None if deferral is None else deferral.waiting_seconds
    return [
        Gate(
            name="deferral lag",
            met=waiting is not None and waiting <= thresholds.deferral_lag_seconds,
            value=None if waiting is None else f"{waiting:.2f} s",
            threshold=f"at most {thresholds.deferral_lag_seconds:g} s",
            window="now",
            source="the oldest row of afterwrite.batch beyond afterwrite.deferral_progress",
            remedy="see that `afterwrite capture` runs the deferred bodies, or raise deferral_lag_seconds in the plan",
        ),
        Gate(
            name="dead letters",
            met=deferral is not None and deferral.dead_letters == 0,
            value=None if deferral is None else str(deferral.dead_letters),
            threshold="0",
            window="unresolved now",
            source="afterwrite.dead_letter",
            remedy="read select identity, error from afterwrite.dead_letter where resolved_at is null, mend the cause, "
            "retry them",
        ),
    ]


def _unfinished(identities: Sequence[str]) -> Gate:
    return Gate(
        name="earlier deferral",
        met=False,
        value=f"still running for {', '.join(identities)}",
        threshold="run to the place where the trigger was restored",
        window="now",
        source="afterwrite.deferral",
        remedy="let the deferred bodies catch up, then try again",
    )


async def read_slot(db: Database, place: Place) -> SlotReading | None:
    """The slot as it is now, or None when this database has none of that name."""
    return await db.maybe(SlotReading, statement("migrate.read_slot"), slot=place.slot)


async def measure_lag(db: Database, place: Place, *, limit_seconds: float) -> LagReading:
    """Send a heartbeat through the WAL and wait until the slot has acknowledged it, at most ``limit_seconds``."""
    lsn = await db.value(statement("migrate.send_heartbeat"))
    started = time.monotonic()
    while True:
        passed = await db.value(statement("migrate.read_slot_passed"), slot=place.slot, lsn=lsn)
        seconds = time.monotonic() - started
        if passed or seconds > limit_seconds:
            return LagReading(seconds=seconds, arrived=bool(passed))
        await asyncio.sleep(_POLL_SECONDS)


async def read_deferral(db: Database, store: Database, place: Place) -> DeferralReading:
    """How far the deferred bodies (in ``db``) are behind the store's feed, and what failed and is unresolved."""
    reached = await db.value(statement("migrate.read_deferral_reached"), source=place.source)
    waiting = None
    if reached is not None:
        waiting = await store.value(statement("migrate.read_oldest_waiting_batch"), source=place.source, lsn=reached)
    letters = await db.value(statement("migrate.count_dead_letters"), source=place.source)
    return DeferralReading(waiting_seconds=None if waiting is None else float(waiting), dead_letters=letters)


async def read_unpublished(db: Database, relations: Sequence[str], place: Place) -> tuple[str, ...]:
    """Those of the tables (quoted names) whose changes the publication does not send."""
    return tuple(
        await db.values(statement("migrate.read_unpublished"), relations=list(relations), publication=place.publication)
    )


async def read_table_figures(db: Database) -> list[TableFigures]:
    """How much weight each table with triggers carries, as the server's statistics have it; for ``make_plan``."""
    return await db.rows(TableFigures, statement("migrate.read_table_figures"))
