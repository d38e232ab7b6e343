"""What runs beside what: a defect in one must not take the other along."""

from __future__ import annotations

import asyncio

import pytest

from afterwrite import runtime
from afterwrite.defer.replay import ReplayState, ReplayStatus
from afterwrite.settings import Settings


def test_a_defect_of_the_deferral_is_told_and_does_not_stop_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        told: list[ReplayStatus] = []

        async def broken(*_: object, **__: object) -> None:
            raise ValueError("no such thing was thought of")

        def tell(status: ReplayStatus) -> None:
            told.append(status)
            stop.set()

        monkeypatch.setattr(runtime, "run_replayer", broken)
        # It shares a task group with capture, which ends when one of its tasks raises.
        await asyncio.wait_for(runtime._defer(Settings(), stop, tell), 5)
        assert [(status.state, status.trouble) for status in told] == [
            (ReplayState.HALTED, "no such thing was thought of")
        ]

    asyncio.run(run())
