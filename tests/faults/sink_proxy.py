"""A proxy between a worker and a PostgreSQL server that breaks the line in the ways in which lines break.

::

    worker ──▶ socket of ours ──▶ messages, looked at one by one ──▶ the server's socket
           ◀──                 ◀──                               ◀──

It speaks enough of the protocol (version 3) to know a COMMIT, its reply and a COPY from the rest. Connections are told
apart by their application_name, so that a fault can be meant for one of them. Every fault strikes once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec

_CHUNK = 1 << 16
_SSL, _GSS, _CANCEL = 80877103, 80877104, 80877102
# Alone, or the last of several statements in one message.
_COMMIT = re.compile(r"(?:^|;)\s*(?:commit|end)(?:\s+(?:work|transaction))?\s*;?\s*\Z", re.IGNORECASE)

Side = Literal["client", "server"]


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What breaks, on connections whose application_name begins with ``role``."""

    role: str = ""


class Cut(Fault, frozen=True):
    """The line is cut at once; a message may be half-way."""


class CutAfter(Fault, frozen=True):
    """It is cut once the ``side`` has sent so many more bytes, in the middle of whatever that is."""

    side: Side
    size: int


class CutInCopy(Fault, frozen=True):
    """It is cut in the middle of a row, after the client has sent so many bytes of COPY data."""

    size: int


class CutBeforeCommit(Fault, frozen=True):
    """The COMMIT never reaches the server, which rolls back."""


class LoseReply(Fault, frozen=True):
    """The COMMIT is carried out and the reply never arrives.

    A commit is what the server calls so, and also a statement that matches ``statement`` and ends outside of any
    transaction block without an error: a function that writes.
    """

    statement: str | None = None


class Stall(Fault, frozen=True):
    """Nothing goes through for a while, in neither direction; new connections wait as well."""

    seconds: float


class Reject(Fault, frozen=True):
    """Connections are closed at once for a while, and the existing ones are cut."""

    seconds: float


class Slow(Fault, frozen=True):
    """The link takes this many bytes a second, for a while."""

    rate: int
    seconds: float


class Strike(msgspec.Struct, frozen=True):
    """What was done, to whom, and when (``time.monotonic``)."""

    fault: Fault
    role: str
    at: float


class Proxy:
    """Listens in ``folder`` and forwards to the server's socket. ``break_with`` arms or does; ``strikes`` tells."""

    def __init__(self, upstream: Path, folder: Path) -> None:
        self.strikes: list[Strike] = []
        self.accepted = 0
        self._upstream = upstream / ".s.PGSQL.5432"
        self._folder = folder
        self._lines: set[_Line] = set()
        self._armed: list[Fault] = []
        self._lasting: list[tuple[float, Fault]] = []

    def dsn(self, dbname: str, user: str = "postgres") -> str:
        """How to reach the database through here."""
        return f"host={self._folder} port=5432 user={user} dbname={dbname}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        server = await asyncio.start_unix_server(self._accept, self._folder / ".s.PGSQL.5432", limit=_CHUNK)
        try:
            yield self
        finally:
            server.close()
            self.heal()
            for line in list(self._lines):
                line.cut()
            while self._lines:  # noqa: ASYNC110 - a moment, once
                await asyncio.sleep(0.001)

    def break_with(self, fault: Fault) -> None:
        """Do it now, or when its moment comes."""
        match fault:
            case Cut():
                self._cut(fault)
            case Reject(seconds=seconds):
                self._lasting.append((time.monotonic() + seconds, fault))
                self._cut(fault)
            case Stall(seconds=seconds) | Slow(seconds=seconds):
                self._lasting.append((time.monotonic() + seconds, fault))
                self._struck(fault, fault.role)
            case _:
                self._armed.append(fault)

    def heal(self) -> None:
        """Forget every fault that has not struck, and end those that last."""
        self._armed.clear()
        self._lasting.clear()

    def roles(self) -> list[str]:
        """The application_name of every open connection."""
        return [line.role for line in self._lines]

    def _cut(self, fault: Fault) -> None:
        for line in list(self._lines):
            if line.role.startswith(fault.role):
                line.cut()
        self._struck(fault, fault.role)

    def _struck(self, fault: Fault, role: str) -> None:
        self.strikes.append(Strike(fault, role, time.monotonic()))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(self, reader, writer)
        self._lines.add(line)
        self.accepted += 1
        try:
            await line.run(self._upstream)
        finally:
            self._lines.discard(line)

    def taken(self, kind: type[Fault], role: str) -> Fault | None:
        """An armed fault of this kind for a connection of this role."""
        for fault in self._armed:
            if isinstance(fault, kind) and role.startswith(fault.role):
                return fault
        return None

    def use(self, fault: Fault, role: str) -> None:
        """This one has struck."""
        if fault in self._armed:
            self._armed.remove(fault)
        self._struck(fault, role)

    def lasting(self, kind: type[Fault], role: str) -> Fault | None:
        """A fault of this kind that goes on."""
        now = time.monotonic()
        self._lasting = [entry for entry in self._lasting if entry[0] > now]
        for _, fault in self._lasting:
            if isinstance(fault, kind) and role.startswith(fault.role):
                return fault
        return None


class _Line:
    """One connection, both ways."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.role = ""
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._server: asyncio.StreamWriter | None = None
        self._statements: dict[bytes, str] = {}
        self._asked: deque[list[str]] = deque([[]])  # one list a Sync or simple query, the last one open
        self._failed = False
        self._sent: dict[Side, int] = {"client": 0, "server": 0}
        self._copied = 0
        self._counted: dict[Fault, int] = {}

    async def run(self, upstream: Path) -> None:
        try:
            first = await self._read_startup()
            if first is None or self._proxy.lasting(Reject, self.role):
                return
            await self._hold()
            reader, self._server = await asyncio.open_unix_connection(upstream, limit=_CHUNK)
            for writer in (self._writer, self._server):
                writer.transport.set_write_buffer_limits(0)  # so that drain() means: with the kernel
            self._server.write(first)
            await self._server.drain()
            pumps = {
                asyncio.create_task(self._pump("client", self._reader, self._server)),
                asyncio.create_task(self._pump("server", reader, self._writer)),
            }
            _, other = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in other:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.cut()

    def cut(self) -> None:
        """End it both ways; what the kernel holds already is still read."""
        for writer in (self._writer, self._server):
            if writer is not None:
                writer.transport.abort()

    async def _read_startup(self) -> bytes | None:
        while True:
            head = await self._reader.readexactly(8)
            size, code = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
            if code not in (_SSL, _GSS):
                break
            self._writer.write(b"N")
        rest = await self._reader.readexactly(size - 8)
        if code == _CANCEL:
            return None  # nobody here cancels; and the process it names is the server's, not ours
        words = rest.split(b"\0")
        self.role = dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode()
        return head + rest

    async def _pump(self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the end of one direction. Messages are whole; a fault may stop in the middle of one."""
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                buffer += data
                through, cut = self._look(side, buffer)
                await self._hold()
                out = bytes(buffer[:through])
                del buffer[:through]
                await self._send(writer, out)
                if cut:
                    return

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        at = 0
        while at < len(data):
            slow = self._proxy.lasting(Slow, self.role)
            size = max(1, slow.rate // 50) if isinstance(slow, Slow) else len(data)
            writer.write(data[at : at + size])
            await writer.drain()
            at += size
            if slow:
                await asyncio.sleep(0.02)

    async def _hold(self) -> None:
        while self._proxy.lasting(Stall, self.role):  # noqa: ASYNC110 - its end may come before its time: heal()
            await asyncio.sleep(0.005)

    def _look(self, side: Side, buffer: bytearray) -> tuple[int, bool]:
        """How many bytes may pass, and whether the line ends there."""
        at = 0
        while len(buffer) >= at + 5:
            size = 1 + int.from_bytes(buffer[at + 1 : at + 5], "big")
            if len(buffer) < at + size:
                break
            stop = self._stop(side, buffer[at : at + 1], memoryview(buffer)[at + 5 : at + size], size)
            if stop is not None:
                return at + stop, True
            at += size
        return at, False

    def _stop(self, side: Side, kind: bytearray, body: memoryview, size: int) -> int | None:
        """After how many bytes of this message the line is cut, None for not at all."""
        fault = self._proxy.taken(CutAfter, self.role)
        if isinstance(fault, CutAfter) and fault.side == side:
            sent = self._counted.get(fault, 0)
            self._counted[fault] = sent + size
            if sent + size > fault.size:
                self._proxy.use(fault, self.role)
                return fault.size - sent
        return self._stop_client(kind, body, size) if side == "client" else self._stop_server(kind, body)

    def _stop_client(self, kind: bytearray, body: memoryview, size: int) -> int | None:
        if kind == b"d":
            if isinstance(fault := self._proxy.taken(CutInCopy, self.role), CutInCopy):
                copied = self._counted.get(fault, 0)
                self._counted[fault] = copied + size
                if copied + size > fault.size:
                    self._proxy.use(fault, self.role)
                    return max(6, fault.size - copied)
            return None
        said: str | None = None
        match bytes(kind):
            case b"Q":
                said = bytes(body[:-1]).decode()
                self._asked[-1].append(said)
                self._asked.append([])
            case b"P":
                name, text, _ = bytes(body).split(b"\0", 2)
                self._statements[name] = text.decode()
            case b"B":
                _, name, _ = bytes(body).split(b"\0", 2)
                said = self._statements.get(name, "")
                self._asked[-1].append(said)
            case b"S":
                self._asked.append([])
            case _:
                pass
        if said is not None and _COMMIT.search(said) and (fault := self._proxy.taken(CutBeforeCommit, self.role)):
            self._proxy.use(fault, self.role)
            return 0
        return None

    def _stop_server(self, kind: bytearray, body: memoryview) -> int | None:
        match bytes(kind):
            case b"E":
                self._failed = True
            case b"C" if bytes(body) == b"COMMIT\0":
                if isinstance(fault := self._proxy.taken(LoseReply, self.role), LoseReply) and not fault.statement:
                    self._proxy.use(fault, self.role)
                    return 0
            case b"Z":
                asked = self._asked.popleft() if len(self._asked) > 1 else []
                failed, self._failed = self._failed, False
                fault = self._proxy.taken(LoseReply, self.role)
                if (
                    isinstance(fault, LoseReply)
                    and fault.statement
                    and not failed
                    and bytes(body) == b"I"
                    and any(re.search(fault.statement, each, re.IGNORECASE) for each in asked)
                ):
                    self._proxy.use(fault, self.role)
                    return 0
            case _:
                pass
        return None
