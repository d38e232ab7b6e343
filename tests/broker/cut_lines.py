"""Lines that can be cut: a TCP proxy before each broker's clients, and on each way from one broker to another.

::

    client ─▶ port of ours ─ gate ─▶ n2        n1 ─▶ port of ours ─ gate ─▶ n2's routes        n2 ─▶ … ─▶ n1's

Where a gate is shut nothing goes through, either way, and nobody is told: connections stand, and new ones wait. When it
is opened what was under way arrives late; or what stood is dropped, as a firewall does that has forgotten it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from afterwrite.bench.brokers import CLIENTS

_CHUNK = 1 << 16
Way = tuple[str, str]


class CutLines:
    """All lines of a cluster. Calling it lays one: it is what ``broker_cluster(lines=…)`` asks for."""

    def __init__(self) -> None:
        self._gates: dict[Way, threading.Event] = {}
        self._listeners: list[socket.socket] = []
        self._standing: dict[Way, set[socket.socket]] = {}
        self._lock = threading.Lock()

    def __call__(self, dialer: str, name: str, port: int) -> int:
        way = dialer, name
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        self._gates[way] = threading.Event()
        self._gates[way].set()
        self._standing[way] = set()
        threading.Thread(target=self._accept, args=(listener, way, port), daemon=True).start()
        return int(listener.getsockname()[1])

    def clients(self, name: str) -> int:
        """How many connections of clients this broker has."""
        with self._lock:
            return len(self._standing[CLIENTS, name]) // 2

    def cut(self, name: str, *, clients: bool) -> None:
        """Cut this broker off from the others, and from its clients, too, or not from these."""
        for way, gate in self._gates.items():
            if name in way and (clients or CLIENTS not in way):
                gate.clear()

    def mend(self, *, drop: bool) -> None:
        """Let everything through again; ``drop``: what stood while it was cut is gone."""
        for way, gate in self._gates.items():
            if not gate.is_set():
                if drop:
                    self._drop(way)
                gate.set()

    def close(self) -> None:
        for listener in self._listeners:
            _end(listener)
            listener.close()
        for way, gate in self._gates.items():
            self._drop(way)
            gate.set()

    def _drop(self, way: Way) -> None:
        with self._lock:
            for each in self._standing[way]:
                _end(each)

    def _accept(self, listener: socket.socket, way: Way, port: int) -> None:
        while True:
            try:
                ours, _ = listener.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._serve, args=(ours, way, port), daemon=True).start()

    def _serve(self, ours: socket.socket, way: Way, port: int) -> None:
        with ours:
            self._gates[way].wait()
            try:
                theirs = socket.create_connection(("127.0.0.1", port), timeout=5)
            except OSError:  # that broker is away: whoever dialled hears so
                return
            theirs.settimeout(None)
            with theirs:
                for each in (ours, theirs):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._standing[way] |= {ours, theirs}
                back = threading.Thread(target=self._pass_on, args=(theirs, ours, way), daemon=True)
                back.start()
                self._pass_on(ours, theirs, way)
                back.join()
                with self._lock:
                    self._standing[way] -= {ours, theirs}

    def _pass_on(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        gate = self._gates[way]
        try:
            while chunk := source.recv(_CHUNK):
                gate.wait()
                target.sendall(chunk)
        except OSError:  # one of the two is gone, and the other one goes as well
            pass
        _end(source)
        _end(target)


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


@contextmanager
def cut_lines() -> Iterator[CutLines]:
    lines = CutLines()
    try:
        yield lines
    finally:
        lines.close()
