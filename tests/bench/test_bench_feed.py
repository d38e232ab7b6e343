"""A client of the feed, as the benchmark counts its moments."""

from __future__ import annotations

import asyncio

from afterwrite.bench.feed import Listener


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
