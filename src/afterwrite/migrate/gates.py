"""The gates: read what can be measured, then decide. What cannot be measured is not met.

::

    slot, heartbeat, publication (source) ─┐
    proof (prove)                          ├──▶ Readings ──evaluate──▶ Gate …  (value, threshold, window, source)
    deferral (source and store)           ─┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import msgspec

from afterwrite.migrate.phase import Gate
from afterwrite.migrate.plan import Check, PlannedTrigger, TableFigures, Thresholds, proof_plan_of
from afterwrite.migrate.pulse import Load, LoadReading
from afterwrite.postgres import Database, statement
from afterwrite.prove.report import Standing, read_proof, standing
from afterwrite.record import Operation

_POLL_SECONDS = 0.05


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The names of what watches the source: its own name in the store, its slot and its publication.

    With the ``stamp_key`` of that worker what a migration tells it is signed.
    """

    source: str
    slot: str = "afterwrite"
    publication: str = "afterwrite"
    stamp_key: str | None = None


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


class DeferralReading(msgspec.Struct, frozen=True, kw_only=True):
    """The deferred bodies. ``waiting_seconds`` is the age of the oldest stored batch that awaits them, 0 when none
    does, None when there is no progress to compare with."""

    waiting_seconds: float | None
    dead_letters: int


class CheckReading(msgspec.Struct, frozen=True, kw_only=True):
    """One of the user's own checks: what it gave, as text (None where it could not be asked, for ``trouble``)."""

    check: Check
    value: str | None
    met: bool
    trouble: str = ""


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured for a phase; None is what could not be. ``deferral`` matters once a body is deferred.

    ``lost`` are the gaps of capture since the phase was silenced (None before that).
    ``partial`` are tables and partitions whose UPDATEs do not put the whole old row into the WAL, and should;
    ``unfinished`` are triggers to be deferred whose last deferral, though rolled back, has not run to its end yet.
    """

    slot: SlotReading | None = None
    lag: LagReading | None = None
    unpublished: tuple[str, ...] | None = None
    partial: tuple[str, ...] | None = None
    proof: Standing | None = None
    deferring: bool = False
    deferral: DeferralReading | None = None
    unfinished: tuple[str, ...] = ()
    load: LoadReading | None = None
    checks: tuple[CheckReading, ...] = ()
    lost: tuple[str, ...] | None = None

    @property
    def captured(self) -> bool:
        """Whether everything since the slot was made is stored or can still be."""
        return self.slot is not None and self.slot.keeps_all and self.unpublished == ()


CAPTURE_GAPS = "capture gaps"
# Where a person's word stands in for what was measured: what only writers who stamp their context show, and old rows
# that nobody needs.
_BY_WORD = frozenset({"proof: every deferred body rehearsed", "whole old rows", CAPTURE_GAPS})


def evaluate(
    readings: Readings, thresholds: Thresholds, *, soaking: bool = False, waive: Mapping[str, str] | None = None
) -> tuple[Gate, ...]:
    """The gates of a phase, each with what was found against what is asked for.

    ``waive`` says why a gate need not be measured; what was measured and does not hold stays so.

    While a phase soaks its triggers are off, and shadow compares nothing more for it: of the proof only that no
    difference came up is asked for.
    """
    gates = [
        _worker(readings.slot),
        _published(readings.unpublished),
        _whole(readings.partial),
        *([] if readings.lost is None else [_gaps(readings.lost)]),
        _lag_bytes(readings.slot, thresholds),
        _lag_seconds(readings.lag, thresholds),
        _headroom(readings.slot, thresholds),
        *_proof(readings.proof, thresholds, soaking=soaking),
    ]
    if readings.deferring:
        gates += _deferral(readings.deferral, thresholds)
    if readings.unfinished:
        gates.append(_unfinished(readings.unfinished))
    gates += _load(readings.load, thresholds)
    gates += [_check(each) for each in readings.checks]
    waived = waive or {}
    return tuple(
        msgspec.structs.replace(gate, met=True, waived=waived[gate.name])
        if gate.name in waived and (gate.value is None or gate.name in _BY_WORD)
        else gate
        for gate in gates
    )


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


def _whole(partial: Sequence[str] | None) -> Gate:
    return Gate(
        name="whole old rows",
        met=partial == (),
        value=None if partial is None else f"missing from {', '.join(partial)}" if partial else "complete",
        threshold="every table and partition of the phase that is updated",
        window="now",
        source="relreplident of pg_class",
        remedy="run `afterwrite install --apply`, or (each partition by itself): alter table ... replica identity full",
    )


def _gaps(lost: Sequence[str]) -> Gate:
    return Gate(
        name=CAPTURE_GAPS,
        met=not lost,
        value="; ".join(lost) or "none",
        threshold="none",
        window="since the phase was silenced",
        source="afterwrite.gap in the store",
        remedy="neither log has what was written then: say in the plan that it may be, or take the phase back",
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


def _proof(proof: Standing | None, thresholds: Thresholds, *, soaking: bool) -> list[Gate]:
    window = "no window yet" if proof is None else f"{proof.seconds:,.0f} s of shadow"

    def gate(name: str, met: bool, value: str, threshold: str, remedy: str) -> Gate:
        return Gate(
            name=f"proof: {name}",
            met=proof is not None and met,
            value=None if proof is None else value,
            threshold=threshold,
            window=window,
            source="afterwrite.proof",
            remedy=remedy,
        )

    found = proof or Standing()
    examples = "; ".join(f"{each.trigger} on {each.operation}: {each.count:,} {each.why}" for each in found.residuals)
    loud = ", ".join(sorted({each.trigger for each in found.not_silent}))
    gates = [
        gate(
            "unexplained residuals",
            found.unexplained == 0,
            f"{found.unexplained}{f' ({examples})' if examples else ''}",
            "0",
            "run `afterwrite prove`, which shows the newest examples of each reason",
        ),
        gate(
            "silenced triggers are silent",
            not found.not_silent,
            f"written by {loud}" if loud else "nothing written",
            "no legacy row of theirs",
            "look who turned it on: `afterwrite migrate status`",
        ),
    ]
    if soaking:
        return gates
    return [
        *gates,
        gate(
            "transactions",
            found.transactions >= thresholds.proof_transactions,
            f"{found.transactions:,}",
            f"at least {thresholds.proof_transactions:,}",
            "let shadow run on, or lower proof_transactions in the plan",
        ),
        gate(
            "time",
            found.seconds >= thresholds.proof_seconds,
            f"{found.seconds:,.0f} s",
            f"at least {thresholds.proof_seconds:,.0f} s",
            "let shadow run on, or lower proof_seconds in the plan",
        ),
        gate(
            "every trigger compared",
            not found.unwatched,
            "; ".join(found.unwatched) or "all",
            "all of the phase",
            "restart `afterwrite capture`, which scans again; what stays cannot be proven: move it to [[keep]]",
        ),
        gate(
            "every trigger seen on every operation",
            not found.unseen,
            f"not seen: {', '.join(map(str, found.unseen))}" if found.unseen else "all",
            "all but those that the plan calls rare",
            'let shadow run on, or give your word in the plan: rare = ["..."]',
        ),
        gate(
            "every deferred body rehearsed",
            not found.unrehearsed,
            f"not yet: {', '.join(map(str, found.unrehearsed))}" if found.unrehearsed else "all",
            "all that were seen firing, but those that the plan calls rare",
            "let `afterwrite capture` run on, which rehearses them; `afterwrite prove` says what could not be judged",
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
            remedy="see `afterwrite defer list`, mend the cause, then `afterwrite defer retry`",
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


def soak_gate(silent: float | None, needed: float, number: int) -> Gate:
    """Whether a phase has been silent for long enough to be removed; ``silent`` is None before it is silenced."""
    return Gate(
        name="soak",
        met=silent is not None and silent >= needed,
        value=None if silent is None else f"{silent:,.0f} s",
        threshold=f"at least {needed:,.0f} s",
        window="since the last trigger of the phase was silenced",
        source="afterwrite.ledger",
        remedy=f"wait, and watch it meanwhile: `afterwrite migrate run --phase {number} --apply --watch`",
    )


# With fewer than these a mean says nothing.
_ENOUGH = 20
_LOAD_REMEDY = (
    "see what else happened at that time; a rollback of the phase takes it back, a higher {name} lets it pass"
)


def _load(load: LoadReading | None, thresholds: Thresholds) -> list[Gate]:
    """What the database's own counters say of the time since the silencing, against the time before."""
    before, since = (None, None) if load is None else (load.before, load.since)
    statements = before is not None and before.writes is not None
    written = "a writing statement" if statements else "a transaction"
    return [
        _mean_gate(
            "write latency",
            load,
            thresholds,
            of=lambda one: one.write_us if statements else one.active_us,
            count=lambda one: (one.writes or 0) if statements else one.transactions,
            unit=written,
            ratio=("write_latency_ratio", thresholds.write_latency_ratio),
            source="pg_stat_statements" if statements else "active_time of pg_stat_database",
        ),
        _mean_gate(
            "database CPU",
            load,
            thresholds,
            of=lambda one: one.cpu_us if _has_cpu(before, since) else one.active_us,
            count=lambda one: one.transactions,
            unit="a transaction",
            ratio=("cpu_ratio", thresholds.cpu_ratio),
            source="/proc of the server's processes" if _has_cpu(before, since) else "active_time of pg_stat_database",
        ),
        *(
            _rate_gate(name, load, thresholds, field, most)
            for name, field, most in (
                ("rollbacks", "rollbacks", thresholds.rollbacks_per_thousand),
                ("deadlocks", "deadlocks", thresholds.deadlocks_per_thousand),
                ("failed sessions", "failed_sessions", thresholds.failed_sessions_per_thousand),
            )
        ),
    ]


def _has_cpu(before: Load | None, since: Load | None) -> bool:
    return before is not None and before.cpu_us is not None and (since is None or since.cpu_us is not None)


def _mean_gate(
    name: str,
    load: LoadReading | None,
    thresholds: Thresholds,
    *,
    of: Callable[[Load], float | None],
    count: Callable[[Load], int],
    unit: str,
    ratio: tuple[str, float],
    source: str,
) -> Gate:
    """A mean since the silencing against the same before; until then only that there is one to compare with."""
    setting, most = ratio

    def gate(met: bool, value: str | None, threshold: str, window: str, remedy: str) -> Gate:
        return Gate(name=name, met=met, value=value, threshold=threshold, window=window, source=source, remedy=remedy)

    before = load.before if load else None
    mean = of(before) if before is not None and count(before) >= _ENOUGH else None
    if load is None or not load.silenced:
        return gate(*_baseline(before, mean, count, unit, thresholds, f"then at most {most:g} times that"))
    since = load.since
    window = "no window yet" if since is None else f"{_lasting(since)} since it was silenced"
    limit = f"at most {most:g} times what it was before"
    if since is None or count(since) < _ENOUGH:
        # Measured: nothing is slow where nothing happens.
        few = 0 if since is None else count(since)
        return gate(True, f"{few} {unit.partition(' ')[2]}s so far", limit, window, "")
    now = of(since)
    if mean is None or now is None:
        remedy = f'give your word in the plan: [waive] "{name}" = "..."'
        if thresholds.baseline_seconds == 0:
            value = "nothing before to compare with" if now is None else f"{now:,.0f} µs {unit}, nothing before"
            return gate(True, value, "nothing (baseline_seconds = 0)", window, remedy)
        return gate(False, None, limit, window, remedy)
    value = f"{now:,.0f} µs {unit}, {mean:,.0f} µs before"
    return gate(now <= most * mean, value, limit, window, _LOAD_REMEDY.format(name=setting))


def _baseline(
    before: Load | None,
    mean: float | None,
    count: Callable[[Load], int],
    unit: str,
    thresholds: Thresholds,
    then: str,
) -> tuple[bool, str | None, str, str, str]:
    asked = thresholds.baseline_seconds
    window = "no window yet" if before is None else f"{_lasting(before)} before"
    needs = f"at least {asked:g} s and {_ENOUGH} {unit.partition(' ')[2]}s to compare with; {then}"
    remedy = (
        "`afterwrite capture` notes the counters while it runs: let it run under the usual load, or wait for it with "
        "--wait; where nothing is written at this time, lower baseline_seconds in the plan"
    )
    if before is None:
        return asked == 0, None if asked else "nothing before to compare with", needs, window, remedy
    if mean is None:
        value = f"{count(before)} {unit.partition(' ')[2]}s"
        return asked == 0, value, needs, window, remedy
    return before.seconds >= asked, f"{mean:,.0f} µs {unit}", needs, window, remedy


def _lasting(load: Load) -> str:
    return f"{load.seconds:,.0f} s"


def _rate_gate(name: str, load: LoadReading | None, thresholds: Thresholds, field: str, most: float) -> Gate:
    """A count by thousand transactions since the silencing, against the same before."""
    before, since = (None, None) if load is None else (load.before, load.since)
    rate = before.per_thousand(field) if before is not None and before.among(field) else None
    source = "pg_stat_database" + (", without what decoding the WAL adds" if field == "rollbacks" else "")
    setting = f"{field}_per_thousand"
    if load is None or not load.silenced:
        window = "no window yet" if before is None else f"{_lasting(before)} before"
        asked = thresholds.baseline_seconds
        return Gate(
            name=name,
            met=asked == 0 or (before is not None and rate is not None and before.seconds >= asked),
            value=f"{rate:.2f} of 1,000" if rate is not None else "nothing before" if asked == 0 else None,
            threshold=f"at least {asked:g} s to compare with; then at most {most:g} of 1,000 more",
            window=window,
            source=source,
            remedy="`afterwrite capture` notes the counters while it runs; wait for it with --wait",
        )
    window = "no window yet" if since is None else f"{_lasting(since)} since it was silenced"
    limit = f"at most {most:g} of 1,000 more than before"
    if since is None or since.among(field) < _ENOUGH:
        few = 0 if since is None else since.among(field)
        return Gate(
            name=name,
            met=True,
            value=f"{few} transactions so far",
            threshold=limit,
            window=window,
            source=source,
            remedy="",
        )
    now = since.per_thousand(field)
    if rate is None and thresholds.baseline_seconds > 0:
        return Gate(
            name=name,
            met=False,
            value=None,
            threshold=limit,
            window=window,
            source=source,
            remedy=f'give your word in the plan: [waive] "{name}" = "..."',
        )
    return Gate(
        name=name,
        met=now <= (rate or 0.0) + most,
        value=f"{now:.2f} of 1,000, {rate or 0.0:.2f} before",
        threshold=limit,
        window=window,
        source=source,
        remedy=_LOAD_REMEDY.format(name=setting),
    )


def _check(reading: CheckReading) -> Gate:
    check = reading.check
    expected = "true" if check.expect is None and check.sql is not None else check.expect
    where = "your query in the plan" if check.sql is not None else check.url or ""
    return Gate(
        name=f"check: {check.name}",
        met=reading.met,
        value=reading.value,
        threshold=expected if expected is not None else "an answer",
        window="now",
        source=where,
        remedy=f"mend what it tells of{f' ({reading.trouble})' if reading.trouble else ''}, or take it out of the plan",
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


async def read_phase_proof(
    db: Database, triggers: Sequence[PlannedTrigger], silent_since: Mapping[str, datetime]
) -> Standing:
    """What the prover has saved for these triggers; ``silent_since`` says when those were silenced that are off."""
    rare = {(planned.trigger, Operation(operation.value)) for planned in triggers for operation in planned.rare}
    identities = [planned.trigger for planned in triggers]
    proof = await read_proof(db)
    return standing(identities, proof, rare=rare, silent_since=silent_since, planned=proof_plan_of(triggers))


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


async def read_lost(store: Database, place: Place, silent_since: Mapping[str, datetime]) -> tuple[str, ...] | None:
    """The gaps of capture since the first of these triggers was silenced; None where none is."""
    if not silent_since:
        return None
    return tuple(
        await store.values(
            statement("migrate.read_lost"),
            source=place.source,
            since=min(silent_since.values()),
            identities=sorted(silent_since),
        )
    )


async def read_partial(db: Database, relations: Sequence[str], triggers: Sequence[PlannedTrigger]) -> tuple[str, ...]:
    """Those of the tables, and of their partitions, whose old rows are needed whole and are not in the WAL so."""
    names = [planned.trigger for planned in triggers]
    return tuple(await db.values(statement("migrate.read_partial"), relations=list(relations), identities=names))


async def read_table_figures(db: Database) -> list[TableFigures]:
    """How much weight each table with triggers carries, as the server's statistics have it; for ``make_plan``."""
    return await db.rows(TableFigures, statement("migrate.read_table_figures"))
