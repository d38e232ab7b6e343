"""The recorder under fire, as small as it goes; ``./run python -m tests.recorder_soak`` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorder_run import Orders, run_recorders


@pytest.mark.acceptance
def test_what_was_spooled_is_stored_once_through_an_outage_and_sigkill(tmp_path: Path) -> None:
    orders = Orders(events=24_000, outage_seconds=2.5, rate=500.0)
    outcome = run_recorders(tmp_path, orders, lambda words: None)
    assert outcome.differences == []
    assert outcome.adopted > 0
    assert outcome.dropped == {}
    assert outcome.noted <= outcome.rows <= orders.events
