"""The ladder of clients: where the limit lies, and that a slow server is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from afterwrite.bench.load import Load, Ran
from afterwrite.bench.users import Options, most_clients


class _Queue:
    """A stage on which one transaction takes this long, and clients wait for one another."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds
        self.asked: list[int] = []

    async def work(self, load: Load) -> Ran:
        self.asked.append(load.clients)
        return Ran(tps=1.0, latencies=[self.milliseconds * load.clients] * 100)


def _served(stage: Any, near: float | None = None) -> float:
    scripts: Mapping[str, int] = {"read": 1}
    return asyncio.run(most_clients(stage, None, scripts, Options(limit_ms=50.0), 0, near))


def test_the_limit_is_found_between_two_steps_of_the_ladder() -> None:
    assert _served(_Queue(1.0)) == pytest.approx(50, rel=0.05)
    assert _served(_Queue(5.0)) == pytest.approx(10, rel=0.15)


def test_a_server_that_is_ten_times_as_slow_serves_a_tenth() -> None:
    assert _served(_Queue(0.2)) / _served(_Queue(2.0)) == pytest.approx(10, rel=0.15)


def test_a_later_round_begins_near_what_the_first_one_found() -> None:
    stage = _Queue(0.2)
    assert _served(stage, near=250.0) == pytest.approx(250, rel=0.05)
    assert stage.asked[0] == 250


def test_one_that_never_breaks_is_said_to_serve_what_was_tried() -> None:
    assert 400 < _served(_Queue(0.001)) <= 600


def test_clients_of_whom_none_is_served_in_time_are_too_many() -> None:
    class Stuck(_Queue):
        async def work(self, load: Load) -> Ran:
            ran = await super().work(load)
            return ran if load.clients < 20 else Ran(tps=0.0, latencies=[])

    assert _served(Stuck(1.0)) < 20
