"""A JetStream cluster of this test's own: real nats-server processes on loopback, free ports, folders of their own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STARTS_SECONDS = 60.0


def find_server() -> str | None:
    """The nats-server of the wheel, or of the system."""
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else shutil.which("nats-server")


class Node:
    """One server. It keeps its ports and its folder when it is started again."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.port, self.route, self.monitor = _free_ports(3)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.conf"

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [find_server() or "nats-server", "--config", str(self.config)], stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def suspend(self) -> None:
        """As one that is cut off: its connections stand, and nothing comes from it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/healthz", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ask(self, what: str) -> dict[str, Any]:
        """What its monitoring says: of ``varz``, ``jsz``, …"""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/{what}", timeout=2) as answer:
            return json.load(answer)

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


class Cluster:
    """Servers that know each other."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def start(self) -> None:
        for node in self.nodes:
            if node.process is None:
                node.start()
        self.wait()

    def wait(self) -> None:
        """Until each server says that it and its JetStream are well, and the leader has heard of all others."""
        until = time.monotonic() + _STARTS_SECONDS
        while not (all(node.is_healthy() for node in self.nodes) and self._is_whole()):
            if time.monotonic() > until:
                logs = "\n".join((node.folder / f"{node.name}.log").read_text()[-2_000:] for node in self.nodes)
                raise AssertionError(f"the brokers did not come up:\n{logs}")
            time.sleep(0.15)

    def _is_whole(self) -> bool:
        if len(self.nodes) == 1:
            return True
        for node in self.nodes:
            seen = node.ask("jsz").get("meta_cluster") or {}
            if seen.get("leader") == node.name:
                others = seen.get("replicas") or []
                heard = [each for each in others if each.get("current") and not each.get("offline")]
                return len(heard) == len(self.nodes) - 1
        return False

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()


@contextmanager
def broker_cluster(
    folder: Path, *, size: int = 3, sync: str = "always", more: str = "", tls: Mapping[str, Path] | None = None
) -> Iterator[Cluster]:
    """A cluster, running; ``more`` goes into each one's configuration."""
    nodes = [Node(f"n{number}", folder) for number in range(1, size + 1)]
    routes = ", ".join(f'"nats-route://127.0.0.1:{node.route}"' for node in nodes)
    for node in nodes:
        secured = "tls { " + ", ".join(f'{key}: "{path}"' for key, path in (tls or {}).items()) + " }" if tls else ""
        cluster = f'cluster {{ name: test, listen: "127.0.0.1:{node.route}", routes: [{routes}] }}' if size > 1 else ""
        node.config.write_text(
            f'server_name: {node.name}\nlisten: "127.0.0.1:{node.port}"\nhttp: "127.0.0.1:{node.monitor}"\n'
            f'jetstream {{ store_dir: "{folder / node.name}", sync_interval: {sync}, max_mem: 64MB, max_file: 1GB }}\n'
            f"{cluster}\n{secured}\n{more}\n"
        )
    cluster = Cluster(nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
