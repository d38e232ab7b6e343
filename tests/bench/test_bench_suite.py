"""A whole run, as small as it goes: every promise is measured, and what is said of it is what came about."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from afterwrite.bench import bill, capture, defer, feed, peers, queries, recorder, serve, users, writes
from afterwrite.bench.claims import NEED_A_BROWSER, Promise, Report
from afterwrite.bench.suite import Part, Scale, run_parts

_SMALL = Scale(
    queries=queries.Options(rows=6_000, days=2, rounds=1, questions=1),
    api=serve.ApiOptions(rows=6_000, days=2, rounds=1, requests=2),
    writes=writes.Options(rounds=1, transactions=40, keep=False),
    users=users.Options(rounds=1, seconds=1, first=1, limit_ms=1e-3),
    bill=bill.Options(rounds=1, rates=(150,), seconds=1.0, apart=False),
    capture=capture.Options(rounds=1, changes=8_000),
    feed=feed.Options(rounds=1, seconds=1.0, loads=(feed.Steady(1_000, 1),)),
    defer=defer.Options(rounds=1, seconds=0.5, backlog=100),
    peers=peers.Options(rounds=1, few=True),
    recorder=recorder.Options(rounds=1, events=3_000, stored=1_000, inserts=50),
)
# A browser is looked for in the tests of the pages.
_PARTS = [part for part in Part if part is not Part.PAGES]


@pytest.mark.acceptance
def test_a_whole_run_measures_every_promise() -> None:
    told: list[str] = []
    report = asyncio.run(run_parts(_PARTS, _SMALL, quick=True, tell=told.append))

    assert [took.part for took in report.parts] == [part for part in Part if part in _PARTS]
    assert {claim.promise for claim in report.claims} - {None} == set(Promise) - NEED_A_BROWSER
    said: dict[str, Any] = msgspec.to_builtins(report)
    form = {"claim", "unit", "baseline", "measured", "ratio", "low", "high", "target", "met", "rounds", "verdict"}
    for claim in said["claims"]:
        assert form <= set(claim)
        assert (claim["met"] is None) == (claim["target"] is None)
        assert len(claim["samples"]["measured"]) == claim["rounds"] == 1
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    claims = {claim.claim: claim for claim in report.claims}
    server_time = claims["server time of a transaction, triggers to afterwrite"]
    assert server_time.ratio is not None
    assert server_time.ratio < 0.8
    assert claims["what logging adds to it, triggers to afterwrite"].target == 0.1
    assert claims["activities in both"].measured == 6_000
    assert claims["CPU of walsender, afterwrite, 150 tx/s"].measured > 0
    assert claims["events into the store, beside one INSERT each"].measured > 0
