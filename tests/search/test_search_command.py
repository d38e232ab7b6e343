"""``afterwrite search`` as a person and a script meet it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from afterwrite.record import Activity, Batch, Kind
from afterwrite.store.writer import open_sink

NOW = datetime.now(UTC).replace(microsecond=0)


def search(dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AFTERWRITE_DSN": dsn, "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "afterwrite", "search", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_pages_of_a_search_for_people_and_for_machines(installed_dsn: str) -> None:
    async def store() -> None:
        activities = [
            Activity(
                id=f"0195a000-0000-7000-8000-{number:012}",
                occurred_at=NOW - timedelta(seconds=10 - number),
                source="main",
                kind=Kind.EVENT,
                category="financial",
                action="redemption.approve",
                actor_id="user:42" if number % 2 else "user:7",
                summary=f"approved redemption {number}\x1b[31m of gold token",
            )
            for number in range(6)
        ]
        async with open_sink(installed_dsn) as sink:
            await sink.write(Batch(source="main", activities=activities, transactions=0))

    asyncio.run(store())
    shown = search(installed_dsn, 'actor:user:42 "gold token"', "-n", "2")
    assert shown.returncode == 0, shown.stderr
    assert "redemption 5" in shown.stdout
    assert "redemption 1 " not in shown.stdout
    assert "\x1b" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    place = shown.stderr.split("--older-than ")[1].strip()
    assert "redemption 1" in search(installed_dsn, "actor:user:42", "--older-than", place).stdout
    document = json.loads(search(installed_dsn, "actor:user:42", "-n", "1", "--json").stdout)
    assert (document["items"][0]["actor_id"], document["older"] is None, document["looked"]) == ("user:42", False, None)
    assert "Nothing that is stored fits" in search(installed_dsn, "actor:nobody").stdout
    wrong = search(installed_dsn, "gold actr:42")
    assert wrong.returncode == 2
    assert "       ^^^^^\n" in wrong.stderr
    assert "did you mean actor:?" in wrong.stderr
    assert search(installed_dsn, "--older-than", "x").returncode == 2
