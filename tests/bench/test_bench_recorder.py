"""The benchmark of the recorder, as small as it goes: every claim is there, in the form that machines read."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from afterwrite.bench.recorder import Options, bench_recorder


def test_recording_is_measured_beside_what_people_use_otherwise() -> None:
    options = Options(rounds=1, events=3_000, stored=1_000, inserts=50)
    report = msgspec.to_builtins(asyncio.run(bench_recorder(options, lambda words: None)))

    claims = {claim["claim"]: claim for claim in report["claims"]}
    assert claims["a call of record()"]["baseline"] == pytest.approx(5_000)
    assert claims["events into the spool, by one thread"]["baseline"] == pytest.approx(150_000)
    assert claims["a call of record(), beside logging to a file"]["measured"] > 0
    assert claims["events into the store, beside one INSERT each"]["ratio"] > 1
    if report["settings"]["structlog"] == "installed":
        assert "events into the spool, beside structlog to a file" in claims
