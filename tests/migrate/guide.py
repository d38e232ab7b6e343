"""docs/migration-guide.md as it runs: its SQL is laid, its commands are typed, its output is compared or written anew.

``python tests/migrate/guide.py`` writes the output of the commands into the guide.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from afterwrite.postgres.embedded import Server, embedded_server

GUIDE = Path(__file__).parents[2] / "docs" / "migration-guide.md"
_BLOCK = re.compile(r"```(sql|toml|console)\n(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"\d[\d,.:]*")
_EXIT = re.compile(r"\s+# exit (\d)$")


class Application:
    """Somebody who works on the shop all the time, a few transactions a second."""

    def __init__(self, dsn: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(dsn,))
        self._thread.start()

    def _work(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            number = 0
            while not self._stop.is_set():
                number += 1
                connection.execute("insert into projects (name) values (%s)", [f"project {number}"])
                connection.execute("update projects set name = upper(name) where id = %s", [number])
                connection.execute("insert into notifications (body) values ('hello')")
                connection.execute("update notifications set body = 'read' where id = %s", [number])
                if number % 3 == 0:
                    connection.execute("delete from notifications where id = %s", [number])
                    connection.execute("delete from projects where id = %s", [number - 1])
                time.sleep(0.1)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


# Imports the command once, and forks for each that is typed: to import it takes longer than to run most of them.
_SHELL = """
import json, os, sys
import afterwrite.cli.app
afterwrite.cli.app.command()
for line in sys.stdin:
    words = json.loads(line)
    said, write = os.pipe()
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(write, 1), os.dup2(write, 2)
        os.closerange(3, 64)
        sys.argv = words
        try:
            afterwrite.cli.app.main()
        except SystemExit as ended:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(ended.code or 0)
    os.close(write)
    output = open(said, encoding="utf-8").read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output]), flush=True)
"""


class Shell:
    """Somebody at a prompt in a folder, who types one command after the other."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SHELL],
            cwd=folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def type(self, command: str) -> tuple[int, str]:
        """Run a command to its end: its exit code, and what it said on either stream."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(shlex.split(command)) + "\n")
        self._process.stdin.flush()
        code, output = json.loads(self._process.stdout.readline())
        return code, output

    def end(self) -> None:
        self._process.communicate(timeout=20)


@contextlib.contextmanager
def walk(folder: Path) -> Iterator[Iterator[tuple[str, int, str, int, str]]]:
    """Give every command of the guide, in order: (command, expected exit, output in the guide, exit, output)."""
    with embedded_server() as server:
        dsn = _lay(server)
        running: list[subprocess.Popen[str]] = []
        helpers: list[Application | Shell] = []
        try:
            yield _commands(dsn, folder, running, helpers)
        finally:
            for helper in helpers:
                helper.end()
            for process in running:
                process.terminate()
                process.wait(20)


def _lay(server: Server) -> str:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("create database shop")
    return server.dsn("shop")


def _commands(
    dsn: str, folder: Path, running: list[subprocess.Popen[str]], helpers: list[Application | Shell]
) -> Iterator[tuple[str, int, str, int, str]]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AFTERWRITE_", "PG"))},
        "DATABASE_URL": dsn,
        "AFTERWRITE_OPERATOR": "anna",
        "COLUMNS": "80",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    shell: Shell | None = None
    for kind, text in _BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if kind == "sql":
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(text.encode())
            if not helpers:
                helpers.append(Application(dsn))
                _await_statistics(dsn)
        elif kind == "toml":
            (folder / "afterwrite.toml").write_text(text)
        else:
            if shell is None:
                helpers.append(shell := Shell(folder, environment))
            for command, output in _split(text):
                wanted = int(match[1]) if (match := _EXIT.search(command)) else 0
                typed = _EXIT.sub("", command)
                if typed.endswith(" &"):
                    running.append(
                        subprocess.Popen(
                            typed.removesuffix(" &").split(),
                            cwd=folder,
                            env=environment,
                            text=True,
                            stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                        )
                    )
                    continue
                code, said = shell.type(typed)
                yield command, wanted, output, code, _tidy(said, dsn)


def _await_statistics(dsn: str) -> None:
    """Wait until the server tells of what the application wrote: a second, and nobody scans a shop as young as that."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not connection.execute(
            "select sum(n_tup_ins) from pg_stat_user_tables where relname = 'audit_log' having sum(n_tup_ins) > 0"
        ).fetchone():
            time.sleep(0.1)


def _split(block: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output.strip("\n")


def _tidy(output: str, dsn: str) -> str:
    """Without what is of one machine: the place of its socket, blanks at the ends of lines, empty lines."""
    host = re.search(r"host=(\S+)", dsn)
    output = output.replace(host[1] if host else dsn, "db.example.org")
    return "\n".join(line.rstrip() for line in output.splitlines() if line.strip())


def shape(output: str) -> list[str]:
    """The lines of an output without numbers, and without how far apart they stand."""
    return [" ".join(_NUMBER.sub("#", line).split()) for line in output.splitlines()]


def write() -> None:
    """Run it all and put what it said into the guide."""
    import tempfile

    text = GUIDE.read_text(encoding="utf-8")
    at = 0
    with tempfile.TemporaryDirectory() as folder, walk(Path(folder)) as commands:
        for command, wanted, before, code, output in commands:
            print(f"$ {command}  [{code}]\n{output}")
            if code != wanted:
                print(f"!!! expected exit {wanted}")
            old = f"$ {command}\n{before}\n" if before else f"$ {command}\n"
            at = text.index(old, at)
            new = f"$ {command}\n{output}\n" if output else f"$ {command}\n"
            text = text[:at] + new + text[at + len(old) :]
            at += len(new)
    GUIDE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
