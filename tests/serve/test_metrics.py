"""What Prometheus is told, and the dashboard that draws it: every metric that it names exists."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from serving import an_event, key, serving, store, write

from afterwrite.defer.progress import Deferred, Lag
from afterwrite.defer.progress import Standing as DeferralStanding
from afterwrite.errors import Finding, Severity
from afterwrite.migrate.phase import Gate, State
from afterwrite.migrate.status import MigrationStatus, PhaseStatus
from afterwrite.postgres import connect
from afterwrite.prove.match import Reason
from afterwrite.prove.report import OperationProof, Proof, TriggerProof
from afterwrite.prove.watch import Mode
from afterwrite.record import Operation
from afterwrite.serve.feed import FeedStatus
from afterwrite.serve.health import Batches, Deferral, Health, Outbox, RecentBatch, Slot, SourceStanding
from afterwrite.serve.metrics import Metrics, Snapshot, Totals
from afterwrite.serve.progress import Progress
from afterwrite.settings import Settings

BOARD = Path(__file__).parents[2] / "docs" / "grafana" / "afterwrite.json"
NOW = datetime.now(UTC)


def everything() -> Snapshot:
    """A snapshot in which nothing is left out."""
    totals = Totals()
    totals.recorded["shop"], totals.captured["main"], totals.batches["main"] = 5, 7, 2
    gate = Gate(name="g", met=False, value=None, threshold="t", window="w", source="s", remedy="r")
    phase = PhaseStatus(number=1, title="one", state=State.PROVEN, on=(), off=(), left=(), gates=(gate,))
    proof = OperationProof(
        operation=Operation.UPDATE, expected=True, explained={Reason.NO_OP_UPDATE: 3}, unexplained={Reason.MISSING: 2}
    )
    trigger = TriggerProof(
        trigger="public.t.x", mode=Mode.RETIRE, silenced=False, present=True, operations=(proof,)
    )  # fmt: skip
    standing = DeferralStanding(
        position=1, commit_lsn="0/1", transactions=1, calls=1, parked=1, updated_at=NOW, halted_lsn=None, trouble=None,
        running=True,
    )  # fmt: skip
    parked = Deferred(
        identity="public.t.x", mode="defer", on_error="park", state="live", since_lsn=None, until_lsn=None,
        relation="t", parked=4,
    )  # fmt: skip
    return Snapshot(
        totals=totals,
        feed=FeedStatus(
            position=3, lag_seconds=0.1, clients=2, live=1, groups=1, resumed=0, resynced=1, dropped=1, refused=0,
            sent=9, reconnects=0, trouble=None,
        ),
        health=Health(
            at=NOW, ok=False, findings=(Finding(rule="r", severity=Severity.WARNING, where="w", text="t"),),
            slot=Slot(name="s", health="well", active=True, retained_bytes=5, budget_bytes=9, lag_bytes=1),
            sources=(SourceStanding(source="main", slot="s", lsn="0/1", updated_at=NOW, age_seconds=1.0),),
            batches=Batches(position=3, recent=(
                RecentBatch(position=3, source="main", rows=1, transactions=1, first_at=NOW, last_at=NOW,
                            written_at=NOW, delay_seconds=0.5),)),
            store_bytes=10, outbox=Outbox(waiting=1, oldest_seconds=None, refused=2, bytes=3),
            deferral=Deferral(standing=standing, lag=Lag(batches=1, seconds=2.0), triggers=(parked,)),
        ),
        progress=Progress(
            at=NOW, status=MigrationStatus(migration=None, phases=(phase,), findings=(), checklist=(), next=""),
            proof=Proof(started_at=None, through_at=None, through_lsn=None, observed=0, transactions=6,
                        triggers=(trigger,)),
        ),
    )  # fmt: skip


def names(text: bytes) -> dict[str, str]:
    """Every sample's name, and its family's help."""
    found: dict[str, str] = {}
    for family in text_string_to_metric_families(text.decode()):
        found |= {sample.name: family.documentation for sample in family.samples}
    return found


def used(panel: Any) -> Iterator[str]:
    if isinstance(panel, dict):
        for word, value in panel.items():
            if word in ("expr", "query") and isinstance(value, str):
                yield from re.findall(r"\bafterwrite_\w+", value)
            else:
                yield from used(value)
    elif isinstance(panel, list):
        for each in panel:
            yield from used(each)


def test_every_metric_that_the_dashboard_names_exists_and_the_other_way_round() -> None:
    metrics = Metrics()
    metrics.requests.labels("/v1/me", "GET", "200").inc()
    metrics.seconds.labels("/v1/me").observe(0.01)
    told = names(metrics.render(everything()))
    board = msgspec.json.decode(BOARD.read_bytes())
    named = set(used(board))
    assert named - set(told) == set()
    # What stands behind what is drawn, or is for alerts.
    undrawn = {name for name in set(told) - named if not name.endswith("_created")}
    assert undrawn == {
        "afterwrite_http_request_seconds_count", "afterwrite_http_request_seconds_sum", "afterwrite_looks_total",
        "afterwrite_findings", "afterwrite_feed_position", "afterwrite_slot_present", "afterwrite_feed_resynced_total",
    }  # fmt: skip
    assert all(told.values())


def test_the_dashboard_is_whole() -> None:
    board = msgspec.json.decode(BOARD.read_bytes())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(places) == len(set(places))
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_sources_that_somebody_makes_up_make_no_series_without_end(installed_dsn: str) -> None:
    with psycopg.connect(installed_dsn) as connection:
        connection.execute(
            """insert into afterwrite.batch (
                   id, position, source, first_at, last_at, transactions, rows, rows_per_table, rows_digest, digest)
               select n, n, 'made up ' || n, now(), now(), 0, 1, '{"": 1}', sha256(''), sha256('')
                 from generate_series(1, 300) n"""
        )

    async def read() -> Totals:
        totals = Totals()
        async with connect(installed_dsn) as db:
            for _ in range(2):
                await totals.read_on(db)
        return totals

    totals = asyncio.run(read())
    assert (len(totals.recorded), totals.recorded.total(), totals.recorded["others"]) == (201, 300, 100)


def test_the_server_counts_what_it_does_and_what_is_stored(server: Any) -> None:
    with store(server) as dsn:
        write(dsn, an_event(1), an_event(2))
        with serving(Settings(dsn=dsn, serve_auth="required")) as client:
            asking = client.with_key(key(dsn, "prometheus", "admin"))
            asking.post("/v1/activities", {"activities": [{"action": "a.b"}, {"action": ""}]})
            asking.get("/nowhere")
            client.with_key("aw_x_y").get("/v1/me")
            text = asking.get("/metrics")
            assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
            found = {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text.body.decode())
                for sample in family.samples
            }
            assert client.get("/metrics").status == 401

    def value(name: str, **labels: str) -> float:
        return found[f"afterwrite_{name}", tuple(sorted(labels.items()))]

    assert value("recorded_total", source="shop") == 2
    assert value("ingested_activities_total", result="stored") == 1
    assert value("dropped_total", reason="refused") == 1
    assert value("http_requests_total", method="GET", route="none", status="404") == 1
    assert value("turned_away_total", reason="credentials") == 1
    assert value("healthy") == 1
    assert not [labels for name, labels in found if "nowhere" in str(labels)]
