"""docs/migration-guide.md as it runs: its SQL is laid, its commands are typed, its output is compared or written anew.

``python tests/migrate/guide.py`` writes the output of the commands into the guide.
"""

from __future__ import annotations

import contextlib
import os
import re
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


@contextlib.contextmanager
def walk(folder: Path) -> Iterator[Iterator[tuple[str, int, str, int, str]]]:
    """Give every command of the guide, in order: (command, expected exit, output in the guide, exit, output)."""
    with embedded_server() as server:
        dsn = _lay(server)
        running: list[subprocess.Popen[str]] = []
        helpers: list[Application] = []
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
    dsn: str, folder: Path, running: list[subprocess.Popen[str]], helpers: list[Application]
) -> Iterator[tuple[str, int, str, int, str]]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AFTERWRITE_", "PG"))},
        "DATABASE_URL": dsn,
        "AFTERWRITE_OPERATOR": "anna",
        "COLUMNS": "80",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for kind, text in _BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if kind == "sql":
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(text.encode())
            if not helpers:
                helpers.append(Application(dsn))
        elif kind == "toml":
            (folder / "afterwrite.toml").write_text(text)
        else:
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
                done = subprocess.run(
                    typed, shell=True, cwd=folder, env=environment, text=True, check=False,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                )  # fmt: skip
                yield command, wanted, output, done.returncode, _tidy(done.stdout, dsn)


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
