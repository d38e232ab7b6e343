"""The workload as the demo runs it: a process of its own, steered over a pipe."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from afterwrite.demo.schema import create_legacy_application
from afterwrite.postgres import connect


def lay_application(dsn: str, *, seed: int = 5) -> None:
    async def lay() -> None:
        async with connect(dsn) as db:
            await create_legacy_application(db, seed=seed)

    asyncio.run(lay())


class Work:
    """A running workload; leaving the block ends it with the end of stdin."""

    def __init__(self, dsn: str, ledger: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "afterwrite.demo.workload", "--dsn", dsn, "--ledger", str(ledger), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, event: str) -> dict[str, Any]:
        """The next answer of this kind."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == event:
                return said
        assert self.process.stderr is not None
        raise AssertionError(f"no {event!r}, but: {self.process.stderr.read()}")

    def ask(self, line: str) -> dict[str, Any]:
        self.say(line)
        return self.hear(line.partition(" ")[0])

    def finish(self) -> list[dict[str, Any]]:
        """Stop it, and return its windows."""
        self.say("stop")
        windows: list[dict[str, Any]] = self.hear("stopped")["windows"]
        assert self.process.wait(20) == 0
        return windows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
