"""A process of our own for what may bring a process down: a line goes in, a line comes out.

Whoever asks decides what a death means; the next question gets another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

from afterwrite.errors import AfterwriteError

_LINE_BYTES = 256 * 1024 * 1024


class Child:
    """``python -m module``, started when it is asked first; it says ``ready`` in a line before anything else."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process that was started last, until ``close``."""
        return None if self._process is None else self._process.pid

    async def pipes(self) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
        """Where a living child reads, and where it answers. Raises AfterwriteError when it does not start."""
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_LINE_BYTES,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            hello = await self._process.stdout.readline() if self._process.stdout else b""
            if hello != b"ready\n":
                await self.close()
                raise AfterwriteError(
                    "the parser's process does not start",
                    remedy=f"look at what `{sys.executable} -m {self._module}` says",
                )
        if self._process.stdin is None or self._process.stdout is None:
            raise AfterwriteError("the parser's process has no pipes")
        return self._process.stdin, self._process.stdout

    async def close(self) -> None:
        """End it, if it was started."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
