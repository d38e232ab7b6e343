"""``afterwrite export``: data on stdout or in a file, talk on stderr, and back again."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

from test_bad_input import afterwrite

from afterwrite.errors import ExitCode
from afterwrite.record import Activity, Batch, Kind
from afterwrite.store.writer import open_sink


def store(dsn: str) -> None:
    made = [
        Activity(
            id=f"01900000-0000-7000-8000-{number:012x}",
            occurred_at=datetime(2026, 11, number, tzinfo=UTC),
            source="app",
            kind=Kind.EVENT,
            category="financial" if number < 3 else "data",
            action="token.grant",
            summary="=1+1",
        )
        for number in range(1, 6)
    ]

    async def write() -> None:
        async with open_sink(dsn) as sink:
            await sink.write(Batch(source="app", activities=made, transactions=0))

    asyncio.run(write())


def test_what_a_query_finds_goes_to_stdout_or_a_file_and_comes_back(installed_dsn: str, tmp_path: Path) -> None:
    store(installed_dsn)
    lines = afterwrite("export", "category:financial", AFTERWRITE_DSN=installed_dsn)
    assert lines.returncode == 0, lines.stderr
    assert [json.loads(line)["occurred_at"][:10] for line in lines.stdout.splitlines()] == ["2026-11-01", "2026-11-02"]
    words = ("--format", "csv", "--after", "2026-11-02", "--before", "2026-11-04 12:00")
    cells = afterwrite("export", *words, AFTERWRITE_DSN=installed_dsn)
    assert cells.returncode == 0, cells.stderr
    rows = list(csv.DictReader(io.StringIO(cells.stdout)))
    assert [row["occurred_at"][:10] for row in rows] == ["2026-11-02", "2026-11-03", "2026-11-04"]
    assert {row["summary"] for row in rows} == {"'=1+1"}
    file = tmp_path / "all.jsonl"
    told = afterwrite("export", "-o", str(file), "--json", AFTERWRITE_DSN=installed_dsn)
    assert told.returncode == 0, told.stderr
    said = json.loads(told.stdout)
    assert (said["rows"], said["as_of"], said["file"]) == (5, 1, str(file))
    manifest = json.loads((tmp_path / "all.jsonl.manifest.json").read_text())
    assert manifest["sha256"] == said["sha256"]
    back = afterwrite("import", "jsonl", str(file), AFTERWRITE_DSN=installed_dsn)
    assert back.returncode == 0, back.stderr
    assert "5 activities read" in back.stdout
    assert "0 stored, 5 were there already" in back.stdout


def test_what_cannot_be_exported_is_said(installed_dsn: str, tmp_path: Path) -> None:
    wrong = afterwrite("export", "colour:red", AFTERWRITE_DSN=installed_dsn)
    assert wrong.returncode == ExitCode.USAGE
    nowhere = afterwrite("export", "-o", str(tmp_path / "no" / "folder"), AFTERWRITE_DSN=installed_dsn)
    assert nowhere.returncode == ExitCode.ERROR
    assert "cannot be written" in nowhere.stderr
    quiet = afterwrite("export", "--json", AFTERWRITE_DSN=installed_dsn)
    assert quiet.returncode == ExitCode.USAGE
    assert "name a file with --output" in quiet.stderr
