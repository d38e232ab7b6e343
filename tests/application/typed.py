"""The afterwrite command as somebody typed it, without Python's start: a process that has imported the libraries forks.

Each run is a process of its own with its own words, environment, folder, input and exit, and imports the command itself
(rich reads COLUMNS and NO_COLOR when a console is made). What is measured, steered by signals or by a terminal starts a
real interpreter instead.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_LIBRARIES = (
    "typer", "rich.console", "rich.table", "rich.live", "rich.progress", "pydantic_settings", "psycopg", "pgparse",
    "asyncio", "afterwrite.runtime", "afterwrite.scan.survey", "afterwrite.scan.report.document",
    "afterwrite.migrate.plan",
)  # fmt: skip
_LONGEST_REQUEST = 1 << 20


def typed(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: bytes | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """``afterwrite WORDS``, to its end. Raises TimeoutError when it takes longer, after ending it."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained, tempfile.TemporaryFile() as given:
        given.write(input or b"")
        given.seek(0)
        code = _Forker.running().run([str(word) for word in words], env, cwd, (given, said, complained), timeout)
        said.seek(0)
        complained.seek(0)
        return subprocess.CompletedProcess(words, code, said.read().decode(), complained.read().decode())


class _Forker:
    """The process that forks, one for each process that asks; it ends when its socket does."""

    _here: tuple[int, _Forker] | None = None

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        atexit.register(self.end)

    @classmethod
    def running(cls) -> _Forker:
        if cls._here is None or cls._here[0] != os.getpid():
            cls._here = os.getpid(), cls()
        return cls._here[1]

    def run(
        self,
        words: list[str],
        env: Mapping[str, str] | None,
        cwd: Path | None,
        files: tuple[IO[bytes], IO[bytes], IO[bytes]],
        timeout: float,
    ) -> int:
        request = {"words": words, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        self._socket.settimeout(10)
        socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], [file.fileno() for file in files])
        child = int(self._line())
        self._socket.settimeout(timeout)
        try:
            return int(self._line())
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            self._socket.settimeout(10)
            self._line()
            raise

    def end(self) -> None:
        self._socket.close()
        self._process.wait(timeout=10)

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            got = self._socket.recv(1)
            if not got:
                raise RuntimeError("the process that forks commands has ended")
            line += got
        return line


def _serve(server: socket.socket) -> None:
    for name in _LIBRARIES:
        __import__(name)
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, _LONGEST_REQUEST, 3)
        if not message:
            return
        while not message.endswith(b"\n"):
            message += server.recv(_LONGEST_REQUEST)
        request: dict[str, Any] = json.loads(message)
        child = os.fork()
        if child == 0:
            server.close()
            _become(request, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        server.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        server.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["afterwrite", *request["words"]]

    from afterwrite.cli import main

    main()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
