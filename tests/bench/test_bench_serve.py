"""The benchmark of the server, as small as it goes: both applications answer every question, and a client is heard."""

from __future__ import annotations

import asyncio

import msgspec

from afterwrite.bench.serve import Listener, Options, bench_serve


def test_the_server_is_asked_what_the_legacy_application_is_asked() -> None:
    options = Options(rows=2_000, days=1, rounds=1, requests=2, browser=False, clients=())
    report = msgspec.to_builtins(asyncio.run(bench_serve(options, lambda words: None)))

    claims = {claim["claim"]: claim for claim in report["claims"]}
    asked = [claim for name, claim in claims.items() if name.startswith("API p95")]
    assert len(asked) == 7
    assert all(claim["baseline"] > 0 and claim["measured"] > 0 and claim["target"] == 0.2 for claim in asked)
    assert "API p95, page 40" in claims
    assert claims["activities in both"]["measured"] == 2_000
    assert report["settings"]["behind"] == 39


def test_a_client_of_the_feed_has_a_batch_when_the_last_of_it_has_come_whole() -> None:
    async def hear(*pieces: bytes) -> list[set[int]]:
        listener = Listener(0)
        heard: list[set[int]] = []
        for piece in pieces:
            listener.data_received(piece)
            heard.append(set(listener.moments))
        assert listener.live.done()
        return heard

    live = b"HTTP/1.1 200 OK\r\n\r\n19\r\nretry: 2000\n\n: live\nid: 6\n\n\r\n"
    event = b"60\r\nid: %d-0192c3a0-0000-7000-8000-000000000000\nevent: activity\ndata: {}\n\n\r\n"
    assert asyncio.run(hear(live, event % 7, (event % 8)[:70], (event % 8)[70:] + event % 9)) == [
        set(),
        {7},
        {7},
        {7, 8, 9},
    ]
