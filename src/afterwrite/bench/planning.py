"""What so many activities a second take: machines, disks, lines and money, from what a run has measured. Pure.

::

    a run of `bench scale` ─ cost of an activity ─▶ × rate ─▶ cores, bytes ─▶ servers, by what limits one of them

Costs are taken to grow in proportion, which no run on one machine can show; each line says what is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from afterwrite.bench.claims import Claim, Report
from afterwrite.errors import UsageError

_DAY = 86_400
_YEAR_DAYS = 365.25
_GIB, _MIB = float(1 << 30), float(1 << 20)
_MONTH_DAYS = _YEAR_DAYS / 12
_MICRO = 1e6
_REPLICAS = 3
# A stream's subjects: it can have no more partitions.
_MOST_PARTITIONS = 64
_BATCH_ROWS = 5_000


class Cost(StrEnum):
    """The claims of a run from which a plan is made; their names."""

    RATE = "activities stored, by one writer, the direct sink beside"
    APPLICATION = "CPU of an application: record, spool, publish"
    BROKERS = "CPU of three brokers: taken, replicated, flushed, delivered"
    WRITER = "CPU of one writer, the direct sink beside"
    STORE = "CPU of PostgreSQL behind one writer, the direct sink beside"
    WAL = "WAL of PostgreSQL behind one writer, the direct sink beside"
    MESSAGE = "what an activity takes in the stream, on each broker"
    DISK = "what three brokers send to their disks"
    BATCH = "a batch of one activity, one after the other"
    COUNTED = "activities counted for reports"
    COUNTING = "CPU of PostgreSQL while it is counted"
    ARCHIVED = "activities archived: copied, read back, compared, dropped"
    ARCHIVER = "CPU of the archiver"
    ARCHIVING = "CPU of PostgreSQL while it is archived"
    KEPT = "what an activity takes, indexes with it, store to lake"


# What one activity costs its store in all.
_STORE = (Cost.STORE, Cost.COUNTING, Cost.ARCHIVING)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the reader says: how many a second, and on what. Prices are in his currency; none means that he said none.

    ``busy``: the share of a core that a plan may use; ``hot_days``: how long the store keeps a day; ``store_gib``: what
    the disks of one store hold.
    """

    rate: float
    busy: float = 0.5
    store_cores: int = 16
    broker_cores: int = 8
    hot_days: int = 90
    away_hours: float = 1.0
    store_gib: float | None = None
    core_hour: float | None = None
    gib_month: float | None = None
    cold_gib_month: float | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a plan, the measured cost that it came from, and what is not in it."""

    what: str
    figure: float
    unit: str
    comes_from: str
    without: str = ""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How many activities a second one store takes, as far as this goes, and what makes it so."""

    what: str
    rate: float
    comes_from: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan: its lines, and what limits one store, the least first."""

    rate: float
    asked: Asked
    lines: tuple[Line, ...]
    limits: tuple[Limit, ...]
    stores: int
    unpriced: tuple[str, ...]


class _Measured(msgspec.Struct, frozen=True):
    """The claims of a run, by name."""

    claims: dict[str, Claim]

    def __call__(self, cost: Cost) -> float:
        return self.claims[cost].measured

    def before(self, cost: Cost) -> float:
        """What stood on the other side of it."""
        claim = self.claims[cost]
        return claim.measured if claim.baseline is None else claim.baseline

    def told(self, *costs: Cost) -> str:
        return "; ".join(f"{cost.value}: {_figure(self(cost))} {self.claims[cost].unit}" for cost in costs)


def plan(report: Report, asked: Asked) -> Plan:
    """What the rate takes. Raises UsageError where the run has not measured what a plan needs."""
    measured = _read(report)
    if asked.rate <= 0 or not 0 < asked.busy <= 1:
        raise UsageError("a plan needs a rate above nothing, and a share of a core between 0 and 1")
    limits = tuple(sorted(_limits(measured, asked), key=lambda limit: limit.rate))
    stores = math.ceil(asked.rate / limits[0].rate)
    fan_in = _fan_in(measured, asked, stores)
    kept = _kept(measured, asked, stores)
    priced, unpriced = _money([*fan_in, *kept], asked)
    return Plan(
        rate=asked.rate,
        asked=asked,
        lines=(*fan_in, *kept, *priced),
        limits=limits,
        stores=stores,
        unpriced=tuple(unpriced),
    )


def _read(report: Report) -> _Measured:
    claims = {claim.claim: claim for claim in report.claims}
    if missing := [cost.value for cost in Cost if cost not in claims]:
        raise UsageError(
            f"the run has not measured {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            remedy="afterwrite bench scale --json > RUN.json, with all of its parts",
        )
    return _Measured(claims)


def _limits(measured: _Measured, asked: Asked) -> list[Limit]:
    each = sum(map(measured, _STORE))
    batches = 1e3 / measured(Cost.BATCH)
    disks: list[Limit] = []
    if asked.store_gib is not None:
        kept = measured.before(Cost.KEPT)
        disks.append(
            Limit(
                what=f"its disks: {asked.store_gib:,.0f} GiB for {asked.hot_days} days",
                rate=asked.store_gib * _GIB / kept / asked.hot_days / _DAY,
                comes_from=f"{Cost.KEPT.value}: {_figure(kept)} B",
            )
        )
    return [
        *disks,
        Limit(
            what=f"its CPU: {asked.store_cores} cores, {asked.busy:.0%} busy",
            rate=asked.store_cores * asked.busy * _MICRO / each,
            comes_from=measured.told(*_STORE),
        ),
        Limit(
            what="its one archiver, which works day and night and must not fall behind",
            rate=measured(Cost.ARCHIVED),
            comes_from=measured.told(Cost.ARCHIVED),
        ),
        Limit(
            what="its reports, which one process counts at a time, and which must not fall behind",
            rate=measured(Cost.COUNTED),
            comes_from=measured.told(Cost.COUNTED),
        ),
        Limit(
            what=f"the feed's order: {batches:,.0f} batches a second, one after the other, of {_BATCH_ROWS:,}",
            rate=batches * _BATCH_ROWS,
            comes_from=measured.told(Cost.BATCH),
        ),
    ]


def _fan_in(measured: _Measured, asked: Asked, stores: int) -> list[Line]:
    rate, busy = asked.rate, asked.busy
    message, wal = measured(Cost.MESSAGE), measured(Cost.WAL)

    def cores(what: str, cost: float, comes_from: str, without: str) -> Line:
        return Line(what=what, figure=rate * cost / _MICRO / busy, unit="cores", comes_from=comes_from, without=without)

    writers = max(stores, math.ceil(rate * measured(Cost.WRITER) / _MICRO / busy))
    each = math.ceil(writers / stores)
    brokers = cores(
        "brokers",
        measured(Cost.BROKERS),
        measured.told(Cost.BROKERS),
        "messages of fewer activities than the run's: hosts that record little send smaller ones",
    )
    machines = max(_REPLICAS, math.ceil(brokers.figure / asked.broker_cores))
    store_cost = sum(map(measured, _STORE))
    return [
        cores(
            "applications",
            measured(Cost.APPLICATION),
            measured.told(Cost.APPLICATION),
            "what the applications do besides; it is spread over all hosts",
        ),
        brokers,
        Line(
            what="broker machines",
            figure=machines,
            unit=f"of {asked.broker_cores} cores",
            comes_from=f"the line above; at least {_REPLICAS}",
            without="that a stream's leader is one machine: streams are to be spread",
        ),
        Line(
            what="streams, one for each store",
            figure=stores,
            unit="streams",
            comes_from="the stores below",
        ),
        Line(
            what="partitions of each stream",
            figure=min(_MOST_PARTITIONS, 1 << (each - 1).bit_length()),
            unit="partitions",
            comes_from="the writers below, as a power of two",
            without="that tenants are of different sizes: a partition has the tenants that it has"
            + ("; the stream has too few for its writers" if each > _MOST_PARTITIONS else ""),
        ),
        Line(
            what="writers, one active for a partition",
            figure=each * stores,
            unit="processes",
            comes_from=measured.told(Cost.WRITER),
            without="stand-bys, which take next to nothing",
        ),
        Line(
            what="stores (PostgreSQL servers), by tenant",
            figure=stores,
            unit="servers",
            comes_from="the least of what limits one store",
            without="replicas, which take as much again each; a tenant is in one store",
        ),
        cores(
            "stores, all together",
            store_cost,
            measured.told(*_STORE),
            "readers, vacuum, checkpoints that are behind",
        ),
        Line(
            what="each store",
            figure=rate * store_cost / _MICRO / busy / stores,
            unit="of its cores",
            comes_from="the two lines above",
            without="what its readers take",
        ),
        Line(
            what="written by each broker machine",
            figure=rate * measured(Cost.DISK) / machines / _MIB,
            unit="MiB/s",
            comes_from=measured.told(Cost.DISK),
            without="the file system's own log; larger messages are flushed less often, and cost less",
        ),
        Line(
            what=f"waits at the brokers after {asked.away_hours:g} h without the stores",
            figure=rate * message * _REPLICAS * asked.away_hours * 3_600 / _GIB,
            unit="GiB",
            comes_from=f"{measured.told(Cost.MESSAGE)}; on {_REPLICAS} brokers",
        ),
        Line(
            what="network to, between and from the brokers",
            figure=rate * message * (1 + (_REPLICAS - 1) + 1) / _MIB,
            unit="MiB/s",
            comes_from=f"{measured.told(Cost.MESSAGE)}; in once, to {_REPLICAS - 1} others, out once",
            without="frames, acknowledgements, a hop from a broker to the one that leads; writers to stores",
        ),
        Line(
            what="WAL of each store",
            figure=rate * wal / stores / _MIB,
            unit="MiB/s",
            comes_from=measured.told(Cost.WAL),
            without="full pages after a checkpoint beyond the run's, and what indexes of more rows add",
        ),
    ]


def _kept(measured: _Measured, asked: Asked, stores: int) -> list[Line]:
    rate, a_day = asked.rate, asked.rate * _DAY
    hot, cold = measured.before(Cost.KEPT), measured(Cost.KEPT)
    from_hot = f"{Cost.KEPT.value}: {_figure(hot)} B"
    from_cold = f"{Cost.KEPT.value}: {_figure(cold)} B"
    other = "activities of another size: those of this part of the run were not those of the brokers'"
    return [
        Line(what="activities a day", figure=a_day, unit="", comes_from="the rate, at every hour"),
        Line(what="hot, a day", figure=a_day * hot / _GIB, unit="GiB", comes_from=from_hot, without=other),
        Line(
            what=f"hot, {asked.hot_days} days",
            figure=a_day * hot * asked.hot_days / _GIB,
            unit="GiB",
            comes_from=from_hot,
            without="replicas; room to work in",
        ),
        Line(
            what=f"hot, {asked.hot_days} days, on each store",
            figure=a_day * hot * asked.hot_days / stores / _GIB,
            unit="GiB",
            comes_from=from_hot,
            without="replicas; room to work in",
        ),
        Line(what="cold, a day", figure=a_day * cold / _GIB, unit="GiB", comes_from=from_cold, without=other),
        Line(
            what="cold, a year",
            figure=a_day * cold * _YEAR_DAYS / _GIB,
            unit="GiB",
            comes_from=from_cold,
            without="copies that the object storage keeps by itself",
        ),
        Line(
            what="archivers, one a store",
            figure=rate * measured(Cost.ARCHIVER) / _MICRO / asked.busy,
            unit="cores",
            comes_from=measured.told(Cost.ARCHIVER),
            without="an object storage that is slower than the run's disk",
        ),
    ]


def _money(lines: Sequence[Line], asked: Asked) -> tuple[list[Line], list[str]]:
    """What it costs a day, of what prices were given; and which were not."""
    figures = {line.what: line for line in lines}
    cores = sum(line.figure for line in lines if line.unit == "cores" and line.what != "applications")
    hot = figures[f"hot, {asked.hot_days} days"].figure
    waits = next(line.figure for line in lines if line.what.startswith("waits at the brokers"))
    cold = figures["cold, a year"].figure
    priced: list[Line] = []
    unpriced: list[str] = []

    def price(option: str, given: float | None, what: str, amount: float, unit: str, without: str) -> None:
        if given is None:
            unpriced.append(option)
            return
        said = f"{amount:,.0f} {unit} at {given:g}"
        priced.append(Line(what=what, figure=amount * given, unit="a day", comes_from=said, without=without))

    price(
        "--core-hour",
        asked.core_hour,
        "cost of cores",
        cores * 24,
        "core hours",
        "the applications' hosts; replicas; cores of a server that the plan does not use",
    )
    price(
        "--gib-month",
        asked.gib_month,
        "cost of disks",
        (hot + waits) / _MONTH_DAYS,
        "GiB, a month by the day,",
        "replicas of the stores; IOPS and throughput that are paid apart",
    )
    price(
        "--cold-gib-month",
        asked.cold_gib_month,
        "cost of keeping a cold year",
        cold / _MONTH_DAYS,
        "GiB, a month by the day,",
        "requests; what leaves the storage's network",
    )
    return priced, unpriced


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
