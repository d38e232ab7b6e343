"""``afterwrite migrate run --watch``: a live view with keys on a terminal, plain lines everywhere else."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from afterwrite.cli.face import fill, plain, say, table, talk
from afterwrite.migrate.deeds import EventKind, MigrationEvent
from afterwrite.migrate.engine import Control
from afterwrite.migrate.phase import Gate
from afterwrite.migrate.plan import Plan

_LINES = 4
# Lines around the tables: their heads and rules, the mood, the keys, and one to spare.
_FRAME = 10
_PLAIN_SECONDS = 15.0
# What is worth a line of its own in a log: how writers fare, how far capture is, and whether anything differs.
_VITAL = ("write latency", "database CPU", "capture lag in seconds", "proof: unexplained residuals")
_KEYS = "[b]p[/] pause   [b]r[/] resume   [b]b[/] roll this phase back   [b]q[/] leave (nothing is undone)"


class View:
    """What a run tells, kept for a picture of it: phases, gates, what is left of the soak, and the newest events."""

    def __init__(self, plan: Plan, control: Control, number: int | None = None) -> None:
        self.control = control
        phases = [phase for phase in plan.phases if phase.triggers and number in (None, phase.number)]
        self.titles = {phase.number: phase.title for phase in phases}
        self.states = dict.fromkeys(self.titles, "")
        self.phase: int | None = None
        self.gates: tuple[Gate, ...] = ()
        self.left: float | None = None
        self.lines: deque[str] = deque(maxlen=_LINES)
        self.asking = False

    def hear(self, event: MigrationEvent) -> None:
        """Take an event in."""
        if event.phase is not None:
            self.phase = event.phase
        match event.kind:
            case EventKind.GATES:
                self.gates, self.left = event.gates, event.seconds
                if self.phase is not None and event.seconds is not None:
                    self.states[self.phase] = "soaking"
                return
            case EventKind.SOAKING:
                self.left = event.seconds
                return
            case EventKind.STATEMENT:
                return
            case EventKind.WAITING:
                state = "waiting for gates" if self.left is None else "a gate is broken"
            case EventKind.SILENCED | EventKind.BLOCKED:
                state = "being silenced"
            case EventKind.DONE:
                state = "silenced"
            case EventKind.SOAKED:
                state = "soaked"
            case EventKind.HALTED:
                state = "turned on again"
            case _:
                state = ""
        if state and self.phase is not None:
            self.states[self.phase] = state
        if event.text and (not self.lines or not self.lines[-1].endswith(event.text)):
            self.lines.append(f"{datetime.now().astimezone():%H:%M:%S}  {event.text}")

    def picture(self) -> RenderableType:
        """All of it, for a terminal."""
        phases = fill(
            table(">phase", "what", "state"),
            [(number, title, self.states[number]) for number, title in self.titles.items()],
        )
        left = "" if self.left is None else f"   {self.left:,.0f} s of the soak are left"
        mood = "[yellow]paused[/]" if self.control.paused else "[green]running[/]"
        if self.control.back:
            mood = "[red]being turned on again[/]"
        elif self.control.left:
            mood = "[yellow]leaving after this look[/]"
        question = f"[red]turn phase {self.phase} on again? y/n[/]"
        parts: list[RenderableType] = [
            phases,
            Text.from_markup(f"phase {self.phase or '-'}: {mood}{left}"),
            Text.from_markup(question if self.asking else _KEYS),
            *(Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in self.lines),
        ]
        # A terminal that is not high enough shows what matters most: gates that do not hold, then the vital ones.
        room = talk.size.height - len(self.titles) - len(self.lines) - _FRAME
        if self.gates and room > 0:
            parts.append(self._gates(room))
        return Group(*parts)

    def _gates(self, room: int) -> Table:
        made = table("", "gate", "now", "needs")
        urgent = sorted(self.gates, key=lambda gate: (gate.met, gate.name not in _VITAL))[:room]
        for gate in (gate for gate in self.gates if gate in urgent):
            mark = "[green]✓[/]" if gate.met else "[red]✗[/]"
            found = "not measured" if gate.value is None else gate.value
            needs = f"waived: {gate.waived}" if gate.waived else "" if gate.met else gate.threshold
            made.add_row(mark, plain(gate.name), plain(found), plain(needs))
        return made

    def line(self) -> str:
        """The same in one line, for a log."""
        vital = [f"{gate.name.removeprefix('proof: ')} {gate.value}" for gate in self.gates if gate.name in _VITAL]
        unmet = sum(not gate.met for gate in self.gates)
        left = "" if self.left is None else f", {self.left:,.0f} s of the soak left"
        return (
            f"phase {self.phase}{left}; {'all gates hold' if not unmet else f'{unmet} gates do not hold'}; "
            + "; ".join(vital)
        )

    def press(self, key: str) -> None:
        """Obey a key."""
        if self.asking:
            self.asking = False
            if key.lower() == "y":
                self.control.back = True
            return
        match key.lower():
            case "p":
                self.control.paused = True
            case "r":
                self.control.paused = False
            case "b":
                self.asking = True
            case "q":
                self.control.left = True
            case _:
                pass


@contextmanager
def watched(view: View) -> Generator[None]:
    """Show the view inside the block: live where stderr is a terminal (with keys where stdin is one), else as lines."""
    if talk.is_terminal:
        with Live(get_renderable=view.picture, console=talk, refresh_per_second=4, transient=False), _keys(view):
            yield
        return
    task = asyncio.ensure_future(_tell_now_and_again(view))
    try:
        yield
    finally:
        task.cancel()


async def _tell_now_and_again(view: View) -> None:
    while True:
        await asyncio.sleep(_PLAIN_SECONDS)
        if view.gates:
            say(plain(view.line()))


@contextmanager
def _keys(view: View) -> Generator[None]:
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    loop = asyncio.get_running_loop()

    def read() -> None:
        for key in os.read(fd, 64).decode(errors="ignore"):
            view.press(key)

    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
