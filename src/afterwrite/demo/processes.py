"""Other processes of the demo and the bench: the legacy application, the capture worker, a broker's writer, as in life.

They are started in sessions of their own, so that a Ctrl-C at the terminal reaches only us and we end them in order.
They watch their stdin: when we die without a word, they end by themselves.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from afterwrite.errors import AfterwriteError

_STOP_SECONDS = 30.0
_LINE_LIMIT = 1 << 20


class Process:
    """A child that speaks JSON lines. ``latest`` is the last thing that it said of its own accord."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, log: Path, spontaneous: str | None) -> None:
        self.name = name
        self.latest: dict[str, Any] = {}
        self._child = child
        self._log = log
        self._spontaneous = spontaneous
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._child.pid

    async def ask(self, words: str, event: str) -> dict[str, Any]:
        """Say a line and wait for the answer of this kind. Raises AfterwriteError when the child has ended."""
        if self._child.stdin is None:
            raise AfterwriteError(f"the {self.name} takes no orders")
        self._child.stdin.write(words.encode() + b"\n")
        await self._child.stdin.drain()
        return await self.hear(event)

    async def hear(self, event: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until it says this; answers of other kinds are errors."""
        self.check()
        asked = asyncio.ensure_future(self._answers.get())
        try:
            await asyncio.wait({asked, self._reading}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                self.check()
                raise AfterwriteError(f"the {self.name} did not say {event!r} within {seconds:.0f} s; {self._tail()}")
            answer = asked.result()
        finally:
            asked.cancel()
        if answer.get("event") != event:
            raise AfterwriteError(f"the {self.name} said {answer} when asked for {event!r}")
        return answer

    def check(self) -> None:
        """Raise AfterwriteError, with the end of its log, when it has ended of its own accord."""
        if self._reading.done():
            raise AfterwriteError(f"the {self.name} has ended (exit {self._child.returncode}); {self._tail()}")

    async def end(self) -> int:
        """Ask it to stop, and wait; it is killed when it does not."""
        if self._child.returncode is None:
            self._child.terminate()
            try:
                await asyncio.wait_for(self._child.wait(), _STOP_SECONDS)
            except TimeoutError:
                self._child.kill()
        await self._reading
        return await self._child.wait()

    async def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._child.kill()
        await self._child.wait()
        await self._reading

    async def _read(self) -> None:
        if self._child.stdout is None:
            return
        while line := await self._child.stdout.readline():
            said = msgspec.json.decode(line)
            if self._spontaneous is None or said.get("event") == self._spontaneous:
                self.latest = said
            else:
                self._answers.put_nowait(said)

    def _tail(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return "its log ends:\n" + "\n".join(text.splitlines()[-12:]) if text else "its log is empty"


@asynccontextmanager
async def application(
    dsn: str, ledger: Path, *, clients: int, seed: int, rate: float, log: Path, transcript: Path | None = None
) -> AsyncGenerator[Process]:
    """The legacy application at work; ``ask("mark NAME", "mark")`` and so on steer it (see workload.py)."""
    words = ["--dsn", dsn, "--ledger", str(ledger), "--clients", str(clients), "--seed", str(seed), "--rate", str(rate)]
    if transcript is not None:
        words += ["--transcript", str(transcript)]
    async with python_process(
        "workload", ["-m", "afterwrite.demo.workload", *words], log, spontaneous="tick"
    ) as process:
        await process.hear("ready")
        yield process


@asynccontextmanager
async def capture_worker(
    dsn: str, log: Path, *, store_dsn: str | None = None, rehearse: bool = True
) -> AsyncGenerator[Process]:
    """``afterwrite capture`` in a process of its own; ``latest`` is its status line.

    It reads neither the variables nor the afterwrite.toml of whoever runs us: those are for databases of his own.
    """
    words = ["-m", "afterwrite", "capture", "--dsn", dsn, "--json", "--end-with-stdin"]
    if store_dsn is not None:
        words += ["--store-dsn", store_dsn]
    environment = _plain_environment(AFTERWRITE_REHEARSE=str(rehearse).lower())
    async with python_process(
        "capture worker", words, log, spontaneous=None, environment=environment, cwd=log.parent
    ) as process:
        yield process


@asynccontextmanager
async def broker_writer(url: str, dsn: str, partitions: Sequence[int], log: Path) -> AsyncGenerator[Process]:
    """``afterwrite broker write`` for these partitions, in a process of its own; ``latest`` is what it last said."""
    words = ["-m", "afterwrite", "broker", "write", "--url", url, "--dsn", dsn, "--json", "--end-with-stdin"]
    for partition in partitions:
        words += ["--partition", str(partition)]
    async with python_process(
        "writer", words, log, spontaneous=None, environment=_plain_environment(), cwd=log.parent
    ) as process:
        yield process


def _plain_environment(**ours: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AFTERWRITE_")} | ours


async def until(done: Callable[[], bool], process: Process, seconds: float, what: str) -> None:
    """Wait for something that a child reports about itself."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not done():
        process.check()
        if asyncio.get_running_loop().time() > deadline:
            raise AfterwriteError(f"{what} did not come to be within {seconds:.0f} s; last heard: {process.latest}")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def python_process(
    name: str,
    words: list[str],
    log: Path,
    *,
    spontaneous: str | None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> AsyncGenerator[Process]:
    """Our own Python with these words, its errors in ``log``.

    ``latest`` is what it said last with the event ``spontaneous``, with None of all that it says.
    """
    with log.open("ab") as errors:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            limit=_LINE_LIMIT,
            env=dict(environment) if environment is not None else None,
            cwd=cwd,
        )
    process = Process(name, child, log, spontaneous)
    try:
        yield process
    finally:
        await process.end()
