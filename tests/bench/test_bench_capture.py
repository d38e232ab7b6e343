"""The benchmark itself, as small as it goes: every claim is there, in the form that machines read."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from afterwrite.bench.capture import Options, bench_capture


@pytest.mark.acceptance
def test_every_claim_is_measured_and_said_in_the_one_form() -> None:
    options = Options(rounds=1, changes=8_000, rates=(400,), lag_seconds=1.0, bill_rates=(150,), bill_seconds=1.5)
    report = msgspec.to_builtins(asyncio.run(bench_capture(options, lambda words: None)))

    assert report["schema_version"] == 1
    claims = {claim["claim"]: claim for claim in report["claims"]}
    form = {"claim", "unit", "baseline", "measured", "ratio", "low", "high", "target", "met", "rounds"}
    for claim in claims.values():
        assert form <= set(claim)
        assert claim["measured"] > 0
        assert (claim["met"] is None) == (claim["target"] is None)
    assert claims["capture against a bare COPY"]["target"] == 0.7
    assert claims["commit to feed at 400 changes/s, p99"]["measured"] < 60_000
    assert claims["store apart: source WAL for activity, 150 tx/s"]["met"]
