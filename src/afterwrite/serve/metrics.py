"""What Prometheus is told: the server's own work, counted as it happens, and how store and source stand when it asks.

docs/grafana/afterwrite.json draws them.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from afterwrite import __version__
from afterwrite.errors import Severity
from afterwrite.postgres import Database, statement
from afterwrite.serve.feed import FeedStatus
from afterwrite.serve.health import Health
from afterwrite.serve.progress import Progress

MEDIA_TYPE = "text/plain; version=0.0.4"
_MOST_SOURCES, _OTHERS = 200, "others"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What a source has brought in these batches; ``events`` of the ``rows`` were recorded, the others captured."""

    source: str
    batches: int
    rows: int
    events: int
    position: int


class Totals:
    """What is stored in all, by source: counted from the batches, of which each is read once."""

    def __init__(self) -> None:
        self.batches: Counts[str] = Counts()
        self.recorded: Counts[str] = Counts()
        self.captured: Counts[str] = Counts()
        self._position = 0

    async def read_on(self, db: Database) -> None:
        """Add what came since."""
        found = await db.rows(Stored, statement("serve.read_stored"), after_position=self._position)
        for each in found:
            # Whoever hands in names sources as he likes; a series for each would be kept for ever.
            is_told = each.source in self.batches or len(self.batches) < _MOST_SOURCES
            source = each.source if is_told else _OTHERS
            self.batches[source] += each.batches
            self.recorded[source] += each.events
            self.captured[source] += each.rows - each.events
            self._position = max(self._position, each.position)


class Snapshot(msgspec.Struct, kw_only=True):
    """What a scrape is told beside the counters; None is not known now, and left out."""

    health: Health | None = None
    progress: Progress | None = None
    feed: FeedStatus | None = None
    totals: Totals | None = None


class Metrics:
    """The server's own registry."""

    def __init__(self) -> None:
        self.registry = made = CollectorRegistry()
        self.snapshot = Snapshot()
        self.requests = Counter(
            "afterwrite_http_requests", "Requests answered.", ["route", "method", "status"], registry=made
        )
        self.seconds = Histogram(
            "afterwrite_http_request_seconds",
            "From a request's head to its answer's.",
            ["route"],
            buckets=_SECONDS,
            registry=made,
        )
        self.ingested = Counter(
            "afterwrite_ingested_activities", "Activities handed in, by what became of them.", ["result"], registry=made
        )
        self.ingest_waiting = Gauge("afterwrite_ingest_waiting", "Activities that wait to be stored.", registry=made)
        self.looked = Counter("afterwrite_looks", "Requests that looked at activity.", registry=made)
        self.turned_away = Counter(
            "afterwrite_turned_away", "Requests that were not let in, by why.", ["reason"], registry=made
        )
        self.dropped = Counter(
            "afterwrite_dropped", "What was not kept, by why: activities refused, looks.", ["reason"], registry=made
        )
        for reason in ("refused", "looks"):
            self.dropped.labels(reason)
        for reason in ("credentials", "rate"):
            self.turned_away.labels(reason)
        for result in ("stored", "duplicate", "refused"):
            self.ingested.labels(result)
        build = Gauge("afterwrite_build_info", "1, with the version.", ["version"], registry=made)
        build.labels(__version__).set(1)
        made.register(_Standing(self))

    def render(self, snapshot: Snapshot) -> bytes:
        """All of it, as Prometheus reads it."""
        self.snapshot = snapshot
        return generate_latest(self.registry)


class _Standing(Collector):
    """How store and source stood at the last look."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Any]:
        snapshot = self._metrics.snapshot
        if snapshot.totals is not None:
            yield from _of_totals(snapshot.totals)
        if snapshot.feed is not None:
            yield from _of_feed(snapshot.feed)
        if snapshot.health is not None:
            yield from _of_health(snapshot.health)
        if snapshot.progress is not None:
            yield from _of_progress(snapshot.progress)


def _gauge(name: str, words: str, value: float | None) -> Iterator[GaugeMetricFamily]:
    if value is not None:
        yield GaugeMetricFamily(f"afterwrite_{name}", words, value=float(value))


def _by(
    name: str,
    words: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], float]],
    *,
    total: bool = False,
) -> CounterMetricFamily | GaugeMetricFamily:
    family = (CounterMetricFamily if total else GaugeMetricFamily)(f"afterwrite_{name}", words, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, float(value))  # pyright: ignore[reportUnknownMemberType]
    return family


def _of_totals(totals: Totals) -> Iterator[Any]:
    def by_source(name: str, words: str, counts: Counts[str]) -> CounterMetricFamily | GaugeMetricFamily:
        return _by(name, words, ("source",), (((source,), count) for source, count in counts.items()), total=True)

    yield by_source("recorded", "Events stored that applications recorded.", totals.recorded)
    yield by_source("captured", "Row changes stored that were captured.", totals.captured)
    yield by_source("stored", "Activities stored in all.", totals.recorded + totals.captured)
    yield by_source("batches", "Batches stored: transactions of sinks.", totals.batches)


def _of_feed(feed: FeedStatus) -> Iterator[Any]:
    yield from _gauge("feed_clients", "Clients of the live feed.", feed.clients)
    yield from _gauge("feed_clients_catching_up", "Those of them that read from the store what they missed.",
                      feed.catching_up)  # fmt: skip
    yield from _gauge("feed_lag_seconds", "From the newest batch's commit to its sending.", feed.lag_seconds)
    yield CounterMetricFamily("afterwrite_feed_sent", "Activities sent to clients of the feed.", value=feed.sent)
    yield CounterMetricFamily("afterwrite_feed_dropped", "Clients dropped since they did not keep up.",
                              value=feed.dropped)  # fmt: skip
    yield CounterMetricFamily("afterwrite_feed_resynced", "Clients told that some cannot be had.", value=feed.resynced)


def _of_health(health: Health) -> Iterator[Any]:
    yield from _gauge("healthy", "1 while nothing is worse than a note.", health.ok)
    counts = Counts(finding.severity for finding in health.findings)
    yield _by("findings", "What is to be said of store and source, by severity.", ("severity",),
              (((severity.value,), counts[severity]) for severity in Severity))  # fmt: skip
    yield from _gauge("feed_position", "The newest batch's place in the feed.", health.batches.position)
    yield _by("checkpoint_age_seconds", "How long ago it was last said how far a source is stored.", ("source",),
              (((each.source,), each.age_seconds) for each in health.sources))  # fmt: skip
    newest = {each.source: each.delay_seconds for each in reversed(health.batches.recent)}
    yield _by("store_delay_seconds", "From the newest activity of a source's newest batch to its storing.", ("source",),
              (((source,), seconds) for source, seconds in newest.items()))  # fmt: skip
    yield from _gauge("store_bytes", "What the store's days take on disk.", health.store_bytes)
    yield from _gauge("gaps", "Stretches that are known to be lost.", len(health.gaps))
    if health.slot is not None:
        slot = health.slot
        yield from _gauge("slot_present", "1 while the slot is there.", slot.health != "gone")
        yield from _gauge("slot_active", "1 while a worker reads the slot.", slot.active)
        yield from _gauge("slot_retained_bytes", "WAL that the source keeps for the slot.", slot.retained_bytes)
        yield from _gauge("slot_budget_bytes", "WAL that it may keep.", slot.budget_bytes)
        yield from _gauge("lag_bytes", "WAL written since what is stored.", slot.lag_bytes)
    if health.outbox is not None:
        yield from _gauge("outbox_waiting", "Events in the outbox.", health.outbox.waiting)
        yield from _gauge("outbox_refused", "Events of the outbox that could not be stored.", health.outbox.refused)
    if health.deferral is not None:
        yield from _gauge("deferred_lag_seconds", "How far deferred bodies are behind.", health.deferral.lag.seconds)
        yield from _gauge(
            "dead_letters", "Calls of deferred bodies that failed and wait.", health.deferral.dead_letters
        )


def _of_progress(progress: Progress) -> Iterator[Any]:
    residuals: Counts[tuple[str, str]] = Counts()
    for trigger in progress.proof.triggers:
        for operation in trigger.operations:
            for explained, reasons in (("yes", operation.explained), ("no", operation.unexplained)):
                for reason, count in reasons.items():
                    residuals[reason.value, explained] += count
    yield from _gauge("residuals_unexplained", "Differences from the triggers' log that nothing explains.",
                      progress.proof.unexplained)  # fmt: skip
    yield _by("residuals", "Differences from the triggers' log, by reason.", ("reason", "explained"), residuals.items())
    yield from _gauge(
        "proof_transactions", "Transactions compared with the triggers' log.", progress.proof.transactions
    )
    phases = progress.status.phases
    yield _by("phase", "1 for the state that a phase is in.", ("phase", "title", "state"),
              (((str(each.number), each.title, each.state.value), 1) for each in phases))  # fmt: skip
    yield _by("phase_gates_unmet", "Gates that a phase does not meet now.", ("phase",),
              (((str(each.number),), sum(not gate.met for gate in each.gates)) for each in phases))  # fmt: skip
