"""The live view: keys on a terminal, plain lines without one."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from migrating import application, holding, plan_of

from afterwrite.cli.watching import View
from afterwrite.failpoints import VARIABLE
from afterwrite.migrate.deeds import EventKind, MigrationEvent
from afterwrite.migrate.engine import Control
from afterwrite.migrate.gates import Readings
from afterwrite.migrate.ledger import Action, read_ledger, read_silenced
from afterwrite.migrate.plan import Phase, Plan, Thresholds, write_plan
from afterwrite.postgres import connect


class Terminal:
    """A command on a terminal of its own, 100 columns wide."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        ours, theirs = pty.openpty()
        self.seen = ""
        self.fd = ours
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            start_new_session=True,
            env={
                **{name: value for name, value in os.environ.items() if name != VARIABLE},
                "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
                "TERM": "xterm",
                "COLUMNS": "100",
            },
        )
        os.close(theirs)

    def press(self, key: str) -> None:
        os.write(self.fd, key.encode())

    def read_until(self, holds: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.seen[-2_000:]
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += re.sub(
                        r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(self.fd, 65_536).decode(errors="replace")
                    )
                except OSError:  # the other side has closed it
                    self.process.wait(10)

    def wait_for(self, text: str) -> None:
        """Until the text is shown from now on."""
        self.seen = ""
        self.read_until(lambda: text in self.seen)

    def end(self) -> int:
        self.read_until(lambda: self.process.poll() is not None)
        os.close(self.fd)
        return self.process.returncode


def test_keys_pause_resume_and_roll_back(installed_dsn: str, tmp_path: Path) -> None:
    async def lay() -> None:
        async with application(installed_dsn) as db:
            (tmp_path / "plan.toml").write_text(write_plan(await plan_of(db, soak_seconds=600.0)))

    async def ledger() -> tuple[list[Action], set[str]]:
        async with connect(installed_dsn) as db:
            return [entry.action for entry in await read_ledger(db)], set(await read_silenced(db))

    asyncio.run(lay())
    terminal = Terminal(["migrate", "run", "--phase", "2", "--apply", "--watch", "--dsn", installed_dsn], tmp_path)
    terminal.wait_for("s of the soak are left")
    assert asyncio.run(ledger())[1] == {"app.project_settings.log"}
    terminal.press("p")
    terminal.wait_for("paused")
    terminal.press("r")
    terminal.wait_for("running")
    terminal.press("b")
    terminal.wait_for("turn phase 2 on again? y/n")
    terminal.press("n")
    terminal.wait_for("leave (nothing is undone)")
    terminal.press("b")
    terminal.wait_for("y/n")
    terminal.press("y")
    assert terminal.end() == 3
    assert "phase 2 was turned on again: asked for by" in " ".join(terminal.seen.split())
    actions, silenced = asyncio.run(ledger())
    assert silenced == set()
    assert actions[-1] is Action.PHASE_HALTED


def test_leaving_undoes_nothing(installed_dsn: str, tmp_path: Path) -> None:
    async def lay() -> None:
        async with application(installed_dsn) as db:
            (tmp_path / "plan.toml").write_text(write_plan(await plan_of(db, soak_seconds=600.0)))

    async def silenced() -> int:
        async with connect(installed_dsn) as db:
            return len(await read_silenced(db))

    asyncio.run(lay())
    terminal = Terminal(["migrate", "run", "--all", "--apply", "--watch", "--dsn", installed_dsn], tmp_path)
    terminal.wait_for("s of the soak are left")
    terminal.press("q")
    assert terminal.end() == 3
    assert asyncio.run(silenced()) == 2


def test_without_a_terminal_there_are_plain_lines(installed_dsn: str, tmp_path: Path) -> None:
    async def lay() -> None:
        async with application(installed_dsn) as db:
            (tmp_path / "plan.toml").write_text(write_plan(await plan_of(db, soak_seconds=0.3)))

    asyncio.run(lay())
    done = subprocess.run(
        [sys.executable, __file__, "migrate", "run", "--phase", "2", "--apply", "--watch", "--dsn", installed_dsn],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
    )
    assert done.returncode == 0, done.stderr
    assert "phase 2, app.project_settings: silence log" in done.stderr
    assert "phase 2 has soaked" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


@pytest.fixture
def view() -> View:
    phase = Phase(number=1, title="first", soak_seconds=10.0, thresholds=Thresholds(), triggers=(object(),))  # type: ignore[arg-type]
    return View(Plan(thresholds=Thresholds(), phases=(phase,)), Control())


def test_a_line_holds_what_matters(view: View) -> None:
    from afterwrite.migrate.gates import evaluate

    gates = evaluate(holding(), Thresholds(), soaking=True)
    view.hear(MigrationEvent(kind=EventKind.GATES, phase=1, gates=gates, seconds=9.0))
    assert view.line() == (
        "phase 1, 9 s of the soak left; all gates hold; capture lag in seconds 0.01 s; unexplained residuals 0; "
        "write latency 400 µs a writing statement, 400 µs before; database CPU 700 µs a transaction, 700 µs before"
    )


def _main() -> None:
    from afterwrite.cli.app import main
    from afterwrite.migrate import engine

    async def measure(*_: object, **__: object) -> Readings:
        return holding()

    engine.measure = measure  # type: ignore[assignment]
    main()


if __name__ == "__main__":
    _main()
