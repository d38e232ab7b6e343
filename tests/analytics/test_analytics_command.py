"""``afterwrite analytics``: tables on 80 columns, JSON for machines, and counting by hand."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from test_rollup import a_batch, an_event
from typer.testing import CliRunner

from afterwrite.cli.app import command
from afterwrite.record import Outcome
from afterwrite.search.analytics import ReportName
from afterwrite.store.writer import open_sink


@pytest.fixture
def told_dsn(installed_dsn: str) -> str:
    now = datetime.now(UTC)
    activities = [
        an_event(
            n,
            now - timedelta(hours=n % 40),
            action=("login" if n % 5 == 0 else "orders.update"),
            category="authentication" if n % 5 == 0 else "data",
            outcome=Outcome.FAILURE if n % 10 == 0 else Outcome.SUCCESS,
            actor_id="user:\x1b[31m7" if n % 2 else "user:8",
            ip="203.0.113.9",
        )
        for n in range(120)
    ]

    async def store() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(a_batch(*activities))

    asyncio.run(store())
    return installed_dsn


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(command(["analytics"]), [*words])
    assert done.exit_code == code, done.output
    return done.stdout


def test_reports_fit_eighty_columns_and_say_what_waits(told_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterwrite.cli.face.out.width", 80)
    monkeypatch.setattr("afterwrite.cli.analytics.out.width", 80)
    assert "1 batch is stored and not counted yet" in run("analytics", "actors", "--dsn", told_dsn)
    told = json.loads(run("analytics", "--refresh", "--json", "--dsn", told_dsn))
    assert (told["rows"], told["position"]) == (120, 1)
    for name in ReportName:
        shown = run("analytics", name, "--dsn", told_dsn)
        assert max(map(len, shown.splitlines())) <= 80, shown
        assert "\x1b[31m7" not in shown
    assert re.search(r"user:8 +\d+", run("analytics", "actors", "--dsn", told_dsn))
    assert "203.0.113.9" in run("analytics", "failed-logins", "--dsn", told_dsn)
    assert "█" in run("analytics", "activity", "--dsn", told_dsn)


def test_machines_get_one_document(told_dsn: str) -> None:
    told = json.loads(run("analytics", "categories", "--refresh", "--json", "--dsn", told_dsn))
    assert told["schema_version"] == 1
    assert {row["category"]: row["activities"] for row in told["rows"]} == {"data": 96, "authentication": 24}
    assert told["as_of"]["behind_batches"] == 0
    again = json.loads(run("analytics", "--rebuild", "--json", "--dsn", told_dsn))
    assert (again["rows"], again["kept"]) == (120, [])
