"""The benchmark of writes, as small as it goes: every claim is there, and what it measures is what it says."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from afterwrite.bench.writes import Options, bench_writes


@pytest.mark.acceptance
def test_a_write_is_measured_with_triggers_and_without_and_beside_its_peers() -> None:
    options = Options(rounds=1, transactions=40, peer_transactions=60, bulk=False, keep=False)
    report = msgspec.to_builtins(asyncio.run(bench_writes(options, lambda words: None)))

    claims = {claim["claim"]: claim for claim in report["claims"]}
    moved = claims["server time of a transaction, triggers to afterwrite"]
    assert moved["target"] == 0.2
    assert moved["ratio"] < 0.7
    assert claims["what logging adds to it, triggers to afterwrite"]["baseline"] > 100
    assert claims["an UPDATE of one row, beside a to_jsonb audit trigger"]["ratio"] < 0.9
    assert claims["transactions flat out, triggers to afterwrite"]["measured"] > 0
