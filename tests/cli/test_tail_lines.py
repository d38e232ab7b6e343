"""A line of tail says whether what happened succeeded, with and without colours."""

from __future__ import annotations

import asyncio
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from afterwrite.cli.tail import tell
from afterwrite.postgres import connect
from afterwrite.recorder import Options, Recorder
from afterwrite.store.reader import read_tail
from afterwrite.store.writer import open_sink


@pytest.mark.parametrize("colour", [True, False])
def test_a_failure_and_what_should_be_looked_at_do_not_look_like_success(
    installed_dsn: str, tmp_path: Path, colour: bool
) -> None:
    recorder = Recorder(
        source="shop",
        open_sink=lambda: open_sink(installed_dsn),
        options=Options(spool_dir=str(tmp_path)),
        destination="x",
    )
    error = {"error": {"type": "Declined", "message": "no [bold]funds\x1b[2J"}}
    recorder.record("invoice.send", entity=("invoice", 12), outcome="failure", severity="error", metadata=error)
    recorder.record("login", outcome="failure", severity="warning", metadata={"reason": "wrong password"})
    recorder.record("disk.fill", outcome="failure", severity="critical", metadata={"error": 7})
    recorder.record("user.import", severity="warning", summary="3 of 5 users")
    recorder.record("disk.check", severity="critical")
    recorder.record("report.exported", entity=("report", 7))
    assert recorder.flush()
    recorder.close()

    async def read() -> list[str]:
        async with connect(installed_dsn) as db:
            found = await read_tail(db, limit=10)
        return [tell(each) for each in sorted(found, key=lambda each: each.id)]

    console = Console(file=StringIO(), force_terminal=colour, no_color=not colour, width=200, highlight=False)
    for line in asyncio.run(read()):
        console.print(line, soft_wrap=True)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("\x1b[31mfailed" in said) is colour
    assert "\x1b[2J" not in said
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert [line.partition(" ")[2] for line in plain.splitlines()] == [
        "failed invoice.send invoice/12 (Declined: no [bold]funds\\x1b[2J)",
        "failed login (wrong password)",
        "failed critical disk.fill",
        "warning 3 of 5 users",
        "critical disk.check",
        "report.exported report/7",
    ]
