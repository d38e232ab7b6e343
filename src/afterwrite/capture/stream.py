"""The replication protocol: the one place that speaks it.

::

    open_stream ─ START_REPLICATION ─▶ read() ─▶ chunks of pgoutput messages
                                       acknowledge(lsn) ─┐
                                       keep_informed() ──┴▶ standby status updates

The socket is watched on the event loop and libpq is only asked for what it already has. psycopg's own wait is never
used while streaming: cancelling it would cancel the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from struct import Struct

import msgspec
import psycopg
from psycopg import conninfo, pq, sql
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGconn, PGresult

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, connect, describe_dsn, parse_dsn, statement, translate
from afterwrite.record import Lsn

# What the values' texts depend on. The defaults of the role or the database must not reach the decoder.
_SESSION = {
    "search_path": "pg_catalog",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "statement_timeout": "0",
}

_CHUNK_BYTES = 1 << 19
_CHUNK_MESSAGES = 2_000
_STATUS_SECONDS = 10.0
_STATUS_SHARE = 0.6
_ACKNOWLEDGE_SECONDS = 0.2
_STOP_SECONDS = 2.0
_HEADER = 25  # 'w', start of the WAL data, end of the WAL on the server, the server's clock

_XLOG_DATA = ord("w")
_KEEPALIVE = ord("k")
_keepalive = Struct("!BQqB").unpack_from
_status = Struct("!cQQQqB").pack
_PG_EPOCH_SECONDS = 946_684_800


class SlotHeld(Refused):
    """Another session reads this slot; ``pid`` is its walsender, where the server says so."""

    def __init__(self, message: str, *, remedy: str | None = None, pid: int | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.pid = pid


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Messages in stream order. ``caught_up`` when the server, at the end of them, asked to confirm this position.

    It asks so when it shuts down and waits until everything is confirmed, so the answer should be quick. Outside a
    transaction it also says that nothing which commits before that position is still to come.
    """

    messages: list[bytes]
    caught_up: Lsn | None = None


class Stream:
    """A running stream. Read it in one task and keep the server informed in another."""

    def __init__(self, database: Database, slot: str, start: Lsn, where: str, interval: float) -> None:
        self.received = start
        self._pgconn: PGconn = database.connection.pgconn
        self._slot = slot
        self._where = where
        self._flushed = start
        self._interval = interval
        self._news = asyncio.Event()

    async def read(self) -> Chunk:
        """The next messages, at least one or a position to confirm; waits for them as long as it takes.

        Raises ConnectionLost when the server goes away, and Refused when the slot or its publication does.
        """
        with self._translated("stream"):
            await asyncio.sleep(0)  # a stream that never runs dry must not starve the other tasks
            while True:
                chunk = self._drain()
                if chunk.messages or chunk.caught_up is not None:
                    return chunk
                await self._readable()
                self._pgconn.consume_input()

    def acknowledge(self, lsn: Lsn) -> None:
        """Promise that everything up to here is stored for good: the server may forget it, and soon will."""
        if lsn > self._flushed:
            self._flushed = lsn
            self._news.set()

    @property
    def acknowledged(self) -> Lsn:
        return self._flushed

    async def keep_informed(self) -> None:
        """Send status updates until cancelled: on schedule, when asked, and soon after an acknowledgement.

        It does not depend on anybody reading, so a sink that is down for minutes does not cost the connection.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._news.wait()
            self._news.clear()
            failpoint("stream.before_status")
            with self._translated("stream"):
                await self._send_status()
            failpoint("stream.after_status")
            await asyncio.sleep(_ACKNOWLEDGE_SECONDS)

    async def finish(self) -> None:
        """End the stream in good order: the last acknowledgement, then CopyDone. Gives up after two seconds."""
        with contextlib.suppress(AfterwriteError, TimeoutError), self._translated("stream"):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._send_status()
                self._pgconn.put_copy_end()
                await self._flush()
                while True:
                    length, _ = self._pgconn.get_copy_data(1)
                    if length < 0:
                        return
                    if length == 0:
                        await self._readable()
                        self._pgconn.consume_input()

    def _drain(self) -> Chunk:
        """Take what libpq has, and what the socket has, without waiting; bounded so that others get their turn."""
        get, messages, size, fresh = self._pgconn.get_copy_data, list[bytes](), 0, False
        caught_up: Lsn | None = None
        while size < _CHUNK_BYTES and len(messages) < _CHUNK_MESSAGES:
            length, data = get(1)
            if length > 0:
                fresh = False
                if data[0] == _XLOG_DATA:
                    messages.append(bytes(data[_HEADER:]))
                    caught_up = None
                    size += length
                elif data[0] == _KEEPALIVE:
                    _, end, _, reply = _keepalive(data)
                    self.received = max(self.received, Lsn(end))
                    if reply:
                        caught_up = Lsn(end)
                        self._news.set()
            elif length == 0:
                if fresh:
                    break
                self._pgconn.consume_input()
                fresh = True
            else:
                if messages:
                    break  # libpq keeps saying so; these come first
                self._ended()
        return Chunk(messages, caught_up)

    def _ended(self) -> None:
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
        raise ConnectionLost(f"{self._where} ended the stream of slot {self._slot}", remedy="try again when it is back")

    async def _send_status(self) -> None:
        now = int((time.time() - _PG_EPOCH_SECONDS) * 1_000_000)
        # Written is what we have seen; flushed and applied are what is stored, and only these move the slot.
        written = max(self.received, self._flushed)
        message = _status(b"r", written, self._flushed, self._flushed, now, 0)
        self._pgconn.put_copy_data(message)
        await self._flush()

    async def _flush(self) -> None:
        while self._pgconn.flush():
            await self._writable()

    async def _readable(self) -> None:
        loop, socket = asyncio.get_running_loop(), self._pgconn.socket
        ready = loop.create_future()
        loop.add_reader(socket, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(socket)

    async def _writable(self) -> None:
        loop, socket = asyncio.get_running_loop(), self._pgconn.socket
        ready = loop.create_future()
        loop.add_writer(socket, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_writer(socket)

    async def start(self, command: bytes) -> None:
        """Send START_REPLICATION and wait until the server streams."""
        with self._translated("start"):
            self._pgconn.send_query(command)
            await self._flush()
            while self._pgconn.is_busy():
                await self._readable()
                self._pgconn.consume_input()
            result: PGresult | None = self._pgconn.get_result()
            if result is None or result.status != pq.ExecStatus.COPY_BOTH:
                if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
                    raise error_from_result(result)
                raise DatabaseError(f"{self._where} did not start the stream of slot {self._slot}")

    def _translated(self, stage: str) -> _Translated:
        return _Translated(self._where, self._slot, stage)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class _Server(msgspec.Struct, frozen=True):
    """What IDENTIFY_SYSTEM answers."""

    systemid: str
    timeline: int
    xlogpos: str
    dbname: str | None


@asynccontextmanager
async def open_stream(
    dsn: str | None,
    *,
    slot: str,
    publications: Sequence[str],
    start: Lsn,
    system: tuple[str, int] | None = None,
    application_name: str = "afterwrite capture",
) -> AsyncGenerator[Stream]:
    """Stream a slot's changes from ``start`` (exclusive: transactions that commit after it), and end it properly.

    Starting before the slot's confirmed position does not bring the past back: compare them first
    (``slot.check_continuity``). Raises SlotHeld when another session streams, Refused when slot, WAL or right is
    missing, ConnectionLost when the server cannot be reached, or is not that of ``system`` (identifier and timeline).
    """
    where = describe_dsn(dsn)
    words = parse_dsn(dsn) | {"replication": "database", "client_encoding": "UTF8"}
    async with _connect_walsender(conninfo.make_conninfo("", **words), application_name, where) as database:
        # SQL before the stream begins: a walsender of a database answers the simple protocol.
        server = await database.one(_Server, b"IDENTIFY_SYSTEM")
        if system is not None and (server.systemid, server.timeline) != system:
            # In the middle of a failover one name can lead to two servers, from one connection to the next.
            raise ConnectionLost(
                f"the stream's connection to {where} came to another server than the one before it: system"
                f" {server.systemid} on timeline {server.timeline}, and not {system[0]} on timeline {system[1]}",
                remedy="nothing during a failover: it is tried again; else name one host in the DSN",
            )
        timeout = int(await database.value(statement("capture.read_wal_sender_timeout")) or 0) / 1000
        interval = min(_STATUS_SECONDS, timeout * _STATUS_SHARE) if timeout else _STATUS_SECONDS
        stream = Stream(database, slot, start, where, interval)
        names = ",".join('"' + name.replace('"', '""') + '"' for name in publications)
        # The one grammar that knows its words in capitals only.
        command = b"START_REPLICATION SLOT %b LOGICAL %b (%b)" % (
            sql.Identifier(slot).as_bytes(database.connection),
            str(start).encode(),
            b"proto_version '1', messages 'true', publication_names "
            + sql.Literal(names).as_bytes(database.connection),
        )
        await stream.start(command)
        yield stream
        failpoint("stream.before_finish")
        await stream.finish()
        failpoint("stream.after_finish")


@asynccontextmanager
async def _connect_walsender(dsn: str, application_name: str, where: str) -> AsyncGenerator[Database]:
    entered = False
    try:
        async with connect(dsn, application_name=application_name, options=_SESSION) as database:
            entered = True
            yield database
    except DatabaseError as error:
        said = str(error)
        if entered or not re.search("wal ?sender|replication", said, re.IGNORECASE):
            raise
        raise Refused(
            f"{where} lets us not read its WAL: {said}",
            remedy="`afterwrite doctor` says which right or setting is missing",
        ) from error


class _Translated:
    """Driver errors in the words of replication: which slot, what is lost, what mends it."""

    def __init__(self, where: str, slot: str, stage: str) -> None:
        self.where = where
        self.slot = slot
        self.starting = stage == "start"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg.Error):
            raise self._explain(error) from error

    def _explain(self, error: psycopg.Error) -> AfterwriteError:
        said = (error.diag.message_primary or str(error)).strip()
        slot, where = self.slot, self.where
        # By SQLSTATE and not by words: the server may speak any language.
        match error.sqlstate:
            case "55006":
                found = re.search(r"(\d+)\D*$", said)
                pid = int(found[1]) if found else None
                return SlotHeld(
                    f"slot {slot} on {where} is held by pid {pid or 'unknown'}",
                    remedy="another worker reads it: stop that one first, or end its session with"
                    f" select pg_terminate_backend({pid or 'pid'})",
                    pid=pid,
                )
            case "42704" if self.starting:
                return Refused(
                    f"there is no slot {slot} on {where}",
                    remedy="what was written since the last checkpoint is lost to capture; run `afterwrite doctor`",
                )
            case "42704":
                return Refused(
                    f"the stream of slot {slot} on {where} cannot go on: {said}",
                    remedy="a publication was dropped under its slot; run `afterwrite doctor`",
                )
            case "58P01":
                return Refused(
                    f"the WAL that slot {slot} on {where} still needs is gone: {said}",
                    remedy="what was written since the last checkpoint is lost to capture; run `afterwrite doctor`",
                )
            case "55000":
                return Refused(
                    f"slot {slot} on {where} cannot be read: {said}",
                    remedy="the slot was invalidated, or wal_level is not logical; run `afterwrite doctor`",
                )
            case _:
                return translate(error, where)
