"""How much of the source's disk capture may cost, and what is done when it costs more.

::

    pulse ─▶ Observed ─▶ judge(observed, policy) ─▶ Judgement: well ▸ warn ▸ alarm ▸ over, findings, give_up

A slot keeps WAL on the source's disk until what is in it is stored. This is the one way in which capture can harm the
database that it reads, so it has a budget. Pure: the worker's pulse observes, and does what is decided here.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

import msgspec

from afterwrite.errors import Finding, Severity
from afterwrite.record import Lsn

MEBIBYTE = 1 << 20
_SAMPLES = 512
_GRACE_SECONDS = 10.0
_GRACE_SHARE = 1.25
_OLD_CATALOG = 100_000_000
_LITTLE_LAG = 64 * MEBIBYTE


class OverBudget(StrEnum):
    """What is done once the budget is used up: tell it and keep everything, or give the slot up and write the gap."""

    ALARM = "alarm"
    GIVE_UP = "give-up"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows. Shares are of ``wal_budget`` (bytes of WAL kept for us)."""

    wal_budget: int = 8 << 30
    over_budget: OverBudget = OverBudget.ALARM
    warn_share: float = 0.5
    alarm_share: float = 0.8
    lag_warn_seconds: float = 60.0
    heartbeat_warn_seconds: float = 30.0


class Health(StrEnum):
    """How much of the budget is used: under half, more than half, more than four fifths (as a rule), all of it."""

    WELL = "well"
    WARN = "warn"
    ALARM = "alarm"
    OVER = "over"


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """A slot as one pulse sees it. ``retained_bytes`` is the WAL between the slot's restart position and now.

    ``lag_bytes`` and ``lag_seconds`` say how far the store is behind, ``heartbeat_seconds`` for how long a heartbeat
    has not come back, ``stored_seconds`` how long ago something was stored or the worker began; None is not known.
    ``safe_wal_size`` is what the server itself still allows, None where it sets no limit.
    """

    slot: str
    retained_bytes: int
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    heartbeat_seconds: float | None = None
    stored_seconds: float | None = None
    wal_status: str | None = None
    safe_wal_size: int | None = None
    catalog_age: int | None = None
    spilled_bytes: int | None = None


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """``budget_bytes`` is the operator's budget, or the server's own limit where that is less."""

    health: Health
    budget_bytes: int
    findings: tuple[Finding, ...] = ()
    give_up: bool = False


def judge(observed: Observed, policy: Policy) -> Judgement:
    """What to say of a slot, and whether to give it up. Pure.

    Over the budget, a worker that is storing what waits has a quarter more to get through it: a slot is not given up
    in the seconds in which it was about to recover.
    """
    budget = policy.wal_budget
    if observed.safe_wal_size is not None:
        budget = min(budget, observed.retained_bytes + max(0, observed.safe_wal_size))
    used = observed.retained_bytes
    health = _health(used / max(1, budget), policy)
    if observed.wal_status == "unreserved" and health in (Health.WELL, Health.WARN):
        health = Health.ALARM
    recovering = (
        observed.stored_seconds is not None
        and observed.stored_seconds <= _GRACE_SECONDS
        and used < policy.wal_budget * _GRACE_SHARE
    )
    give_up = used >= policy.wal_budget and policy.over_budget is OverBudget.GIVE_UP and not recovering
    findings: list[Finding] = []
    if health is not Health.WELL:
        findings.append(_retained(observed, policy, budget, health))
    if observed.heartbeat_seconds is not None and observed.heartbeat_seconds > policy.heartbeat_warn_seconds:
        findings.append(
            _warning(
                "capture.heartbeat",
                observed.slot,
                f"a heartbeat that was written {_seconds(observed.heartbeat_seconds)} ago has not come back through"
                f" slot {observed.slot}",
                "see what the worker waits for: the store, or a transaction of the source that goes on for long",
            )
        )
    if observed.lag_seconds is not None and observed.lag_seconds > policy.lag_warn_seconds:
        behind = f", {human_bytes(observed.lag_bytes)}," if observed.lag_bytes else ""
        findings.append(
            _warning(
                "capture.lag",
                observed.slot,
                f"the store is {_seconds(observed.lag_seconds)}{behind} behind the database of slot {observed.slot}",
                "see whether the store is slow or down; a burst of writes is caught up by itself",
            )
        )
    if observed.catalog_age is not None and observed.catalog_age > _OLD_CATALOG:
        findings.append(
            _warning(
                "slot.catalog_xmin",
                observed.slot,
                f"slot {observed.slot} keeps the catalog as it was {observed.catalog_age:,} transactions ago:"
                " it grows, and the server comes nearer to its transaction limit",
                "let the worker catch up, or end the transaction that holds it back (see pg_stat_activity)",
            )
        )
    return Judgement(health=health, budget_bytes=budget, findings=tuple(findings), give_up=give_up)


def _health(share: float, policy: Policy) -> Health:
    if share >= 1:
        return Health.OVER
    if share >= policy.alarm_share:
        return Health.ALARM
    return Health.WARN if share >= policy.warn_share else Health.WELL


def _retained(observed: Observed, policy: Policy, budget: int, health: Health) -> Finding:
    whose = "the server's max_slot_wal_keep_size" if budget < policy.wal_budget else "the budget"
    share = 100 * observed.retained_bytes / max(1, budget)
    text = (
        f"slot {observed.slot} keeps {human_bytes(observed.retained_bytes)} of WAL,"
        f" {share:.0f} % of {whose} of {human_bytes(budget)}"
    )
    if observed.lag_bytes is not None and observed.lag_bytes < min(_LITTLE_LAG, observed.retained_bytes // 2):
        text += (
            "; the store has all but the newest of it: the server frees the rest within a minute or so, unless an old"
            " transaction that is still open holds it"
        )
        remedy = (
            "look for that transaction, and end it: select pid, xact_start from pg_stat_activity"
            " order by xact_start limit 3"
        )
    else:
        remedy = "see why the store does not take it: the worker's status says what it waits for"
    match policy.over_budget:
        case OverBudget.GIVE_UP if whose == "the budget":
            text += ", at which the slot is given up by policy (over_budget)"
        case OverBudget.GIVE_UP:
            text += ", at which the server gives it up"
        case _ if whose == "the budget":
            remedy += "; it grows on until the disk is full, since over_budget is alarm"
        case _:
            text += ", at which the server gives it up"
    severity = Severity.ERROR if health in (Health.ALARM, Health.OVER) else Severity.WARNING
    return Finding(rule=f"slot.wal.{health.value}", severity=severity, where=observed.slot, text=text, remedy=remedy)


def _warning(rule: str, where: str, text: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity=Severity.WARNING, where=where, text=text, remedy=remedy)


class LagClock:
    """How many seconds ago the database was where the store is now: no message is needed to know it.

    Each pulse notes where the log was; what the store has reached is then as old as the first note beyond it.
    """

    def __init__(self) -> None:
        self._notes: deque[tuple[float, Lsn]] = deque()

    def note(self, now: float, wal: Lsn) -> None:
        """Where the log is written at this moment. Older notes are thinned out: hours fit into a few hundred."""
        if self._notes and self._notes[-1][1] == wal:
            return
        self._notes.append((now, wal))
        if len(self._notes) > _SAMPLES:
            oldest, *others = self._notes
            self._notes = deque([oldest, *others[1::2]])  # of an even number, so that the newest stays

    def behind(self, now: float, stored: Lsn) -> float:
        """For how many seconds there has been something beyond ``stored``; 0 when nothing is known to be."""
        while self._notes and self._notes[0][1] <= stored:
            self._notes.popleft()
        return now - self._notes[0][0] if self._notes else 0.0


def human_bytes(size: int | None) -> str:
    """``512 MiB``, in the units that people set the budget in."""
    if size is None:
        return "an unknown amount"
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:,.0f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
