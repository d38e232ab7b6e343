"""The benchmark of the server, as small as it goes: both applications answer every question, and the feed is heard."""

from __future__ import annotations

import asyncio

import msgspec

from afterwrite.bench.serve import Options, bench_serve


def test_the_server_is_asked_what_the_legacy_application_is_asked_and_the_feed_is_timed() -> None:
    options = Options(
        rows=2_000,
        days=1,
        rounds=1,
        requests=2,
        behind=10,
        browser=False,
        rate=400,
        clients=(2,),
        feed_seconds=0.5,
    )
    report = msgspec.to_builtins(asyncio.run(bench_serve(options, lambda words: None)))

    claims = {claim["claim"]: claim for claim in report["claims"]}
    asked = [claim for name, claim in claims.items() if name.startswith("API p95")]
    assert len(asked) == 7
    assert all(claim["baseline"] > 0 and claim["measured"] > 0 and claim["target"] == 0.2 for claim in asked)
    assert claims["activities in both"]["measured"] == 2_000
    assert 0 < claims["commit to 2 clients of the feed at 400 changes/s, p50"]["measured"] < 60_000
    assert claims["commit to 2 clients of the feed at 400 changes/s, p99"]["target"] == 1.0
    assert not any("heap" in name for name in claims)
