"""How long each phase will take, and what it will save, from what scan measured. Pure; what is not known is None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from afterwrite.migrate.plan import Phase, Plan, TableFigures
from afterwrite.scan.cost.figures import Costs, TriggerCost

# What a table costs beside its lock: its backup, the preparation of a body, the ledger. Seen at a tenth of that.
_TABLE_SECONDS = 1.0


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A phase: ``prove_seconds`` until its proof may hold (it runs for all phases at once, from the start of shadow;
    None where no rate is known), ``silence_seconds`` for its tables when nobody stands in the way, then the soak.

    ``time_share`` and ``wal_share`` are of all write time and WAL (0 to 1) that its triggers take. ``quiet`` are
    triggers that were not called while scan looked: they may keep the proof waiting.
    """

    number: int
    tables: int
    prove_seconds: float | None
    silence_seconds: float
    soak_seconds: float
    time_share: float | None = None
    wal_share: float | None = None
    quiet: tuple[str, ...] = ()
    source: str = ""

    @property
    def seconds(self) -> float:
        """From the first deed of the phase until the next may begin."""
        return self.silence_seconds + self.soak_seconds


def estimate(plan: Plan, costs: Costs | None, figures: Sequence[TableFigures] = ()) -> tuple[Estimate, ...]:
    """Of every phase that moves a trigger. ``figures`` stand in where scan measured nothing."""
    known = {each.trigger: each for each in costs.triggers} if costs else {}
    rate = _transactions_per_second(costs)
    whole = sum(figure.trigger_ms for figure in figures)
    return tuple(
        _phase(phase, rate, {name: known[name] for name in _names(phase) if name in known}, figures, whole)
        for phase in plan.phases
        if phase.triggers
    )


def _names(phase: Phase) -> list[str]:
    return [trigger.trigger for trigger in phase.triggers]


def _transactions_per_second(costs: Costs | None) -> float | None:
    if costs is None or costs.observed is None or not costs.observed.seconds:
        return None
    return costs.observed.commits / costs.observed.seconds


def _phase(
    phase: Phase,
    rate: float | None,
    known: Mapping[str, TriggerCost],
    figures: Iterable[TableFigures],
    whole: float,
) -> Estimate:
    tables = {name.rpartition(".")[0] for name in _names(phase)}
    wanted = phase.thresholds
    prove = None
    if rate:
        prove = max(wanted.proof_seconds, wanted.proof_transactions / rate, wanted.baseline_seconds)
    elif not wanted.proof_transactions:
        prove = max(wanted.proof_seconds, wanted.baseline_seconds)
    time_share, source = _sum(cost.time_share for cost in known.values()), "scan's measurement, of all write time"
    if time_share is None and whole:
        of_tables = sum(each.trigger_ms for each in figures if f"{each.schema}.{each.table}" in tables)
        time_share, source = of_tables / whole, "pg_stat_user_functions: its part of all triggers' time"
    return Estimate(
        number=phase.number,
        tables=len(tables),
        prove_seconds=prove,
        silence_seconds=_TABLE_SECONDS * len(tables),
        soak_seconds=phase.soak_seconds,
        time_share=time_share,
        wal_share=_sum(cost.wal_share for cost in known.values()),
        quiet=tuple(name for name, cost in known.items() if cost.calls == 0),
        source=source if time_share is not None else "",
    )


def _sum(shares: Iterable[float | None]) -> float | None:
    found = [share for share in shares if share is not None]
    return sum(found) if found else None


def lasting(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 5 min``, ``2 d 4 h``."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
