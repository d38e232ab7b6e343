"""psycopg 3: connection classes whose transactions carry the context of whoever writes on them.

::

    conn = Connection.connect(dsn)                             # or AsyncConnection
    pool = ConnectionPool(dsn, connection_class=Connection)

The stamp goes in one round trip with the first write of a transaction (a pipeline; libpq 14). Every way to write is
seen: execute, executemany, stream, copy, and cursors of every class that the connection is told to make.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Generator, Hashable
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any, ClassVar, cast

import psycopg
from psycopg import sql
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from afterwrite.context import Context, current
from afterwrite.record import Emitted
from afterwrite.recorder.connections import may_stamp, may_stamp_async
from afterwrite.recorder.outbox import post_sql
from afterwrite.recorder.stamp import Control, Reading, Stamp, Stamps, event_sql, read_sql, stamp_sql

__all__ = ["AsyncConnection", "Connection"]

# Subclasses are made while the program runs, of whatever cursor class is wanted: more than a type checker can follow.
_Any = Any


class _Stamped:
    """What both connection classes have: what is known of their transaction, and the cursors that ask it."""

    stamp_key: ClassVar[str | None] = None
    writing_functions: ClassVar[frozenset[str]] = frozenset()

    _stamps: Stamps | None = None
    _cursor_factory: _Any = None
    _server_cursor_factory: _Any = None

    @property
    def stamps(self) -> Stamps:
        """What is known of the transaction that is open."""
        if self._stamps is None:
            self._stamps = Stamps(self.stamp_key)
        return self._stamps

    @property
    def cursor_factory(self) -> _Any:
        """The class of cursors; whatever is set, what it makes stamps."""
        return self._cursor_factory

    @cursor_factory.setter
    def cursor_factory(self, factory: _Any) -> None:
        self._cursor_factory = _stamping(factory)

    @property
    def server_cursor_factory(self) -> _Any:
        """The class of server-side cursors."""
        return self._server_cursor_factory

    @server_cursor_factory.setter
    def server_cursor_factory(self, factory: _Any) -> None:
        self._server_cursor_factory = _stamping(factory)

    def settle(self, *, undone: bool) -> None:
        """A transaction block has ended: forget what it was, or doubt it."""
        if cast("_Any", self).pgconn.transaction_status == TransactionStatus.IDLE:
            self.stamps.forget()
        elif undone:
            self.stamps.doubt()


class Connection(_Stamped, psycopg.Connection[_Any]):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A psycopg connection that stamps ``afterwrite.context`` onto each transaction that writes.

    Subclass it to name the functions that write when a SELECT calls them (``writing_functions``, lower-case names), or
    a key other than the settings' (``stamp_key``).
    """

    def commit(self) -> None:
        try:
            super().commit()
        finally:
            self.stamps.forget()

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self.stamps.forget()

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Generator[psycopg.Transaction]:
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            self.stamps.forget()
        undone = True
        try:
            with super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
                undone = force_rollback
        finally:
            self.settle(undone=undone)


class AsyncConnection(_Stamped, psycopg.AsyncConnection[_Any]):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The same for asyncio; see ``Connection``."""

    async def commit(self) -> None:
        try:
            await super().commit()
        finally:
            self.stamps.forget()

    async def rollback(self) -> None:
        try:
            await super().rollback()
        finally:
            self.stamps.forget()

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[psycopg.AsyncTransaction]:
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            self.stamps.forget()
        undone = True
        try:
            async with super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
                undone = force_rollback
        finally:
            self.settle(undone=undone)


class _Due:
    """A stamp that is to be sent before a statement, and how it can be sent."""

    __slots__ = ("alone", "in_pipeline", "prefix", "sql")

    def __init__(self, sql: str, reading: Reading, cursor: _Any, *, many: bool) -> None:
        conn = cursor.connection
        pipelined = conn.pgconn.pipeline_status != PipelineStatus.OFF
        # Outside of a transaction block each statement is one of its own, and the stamp must be in the same.
        self.alone = conn.autocommit and not pipelined and conn.pgconn.transaction_status == TransactionStatus.IDLE
        self.sql = sql
        by_client = isinstance(cursor, psycopg.ClientCursor | psycopg.AsyncClientCursor)
        plain = not isinstance(cursor, psycopg.ServerCursor | psycopg.AsyncServerCursor)
        single = reading.statements == 1 and not reading.copies
        self.in_pipeline = (
            plain and single and not pipelined and not (by_client and not many) and psycopg.Pipeline.is_supported()
        )
        # Several statements in one string are one transaction too.
        self.prefix = self.alone and plain and not many and not reading.copies and not self.in_pipeline


def _due(cursor: _Any, query: _Any, *, many: bool = False) -> _Due | None:
    """What is to be sent before this statement; None for nothing."""
    conn = cursor.connection
    stamps: Stamps = conn.stamps
    idle = conn.pgconn.transaction_status == TransactionStatus.IDLE
    if conn.pgconn.pipeline_status != PipelineStatus.OFF:
        if conn.autocommit:
            # Each synchronization of the pipeline ends a transaction, and nobody tells us.
            stamps.doubt()
    elif idle:
        stamps.forget()
    reading = read_sql(_text(query, cursor), conn.writing_functions)
    due: Stamp | None = None
    # What may end its transaction cannot share it with a stamp.
    if reading.writes and not (reading.may_end and conn.autocommit and idle):
        due = stamps.due(current())
    if reading.control is not Control.NONE:
        stamps.note(reading.control)
    return None if due is None else _Due(due.sql, reading, cursor, many=many)


def _allowed(cursor: _Any, due: _Due | None) -> _Due | None:
    """What is to be sent, where the role may send it."""
    if due is None:
        return None
    try:
        return due if may_stamp(driver, cursor.connection) else None
    except BaseException:
        cursor.connection.stamps.doubt()
        raise


async def _allowed_async(cursor: _Any, due: _Due | None) -> _Due | None:
    if due is None:
        return None
    try:
        return due if await may_stamp_async(driver, cursor.connection) else None
    except BaseException:
        cursor.connection.stamps.doubt()
        raise


def _text(query: _Any, cursor: _Any) -> str:
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, sql.Composable):
        return query.as_string(cursor)
    return "".join(query.strings)  # a template string


def _prefixed(due: _Due, query: _Any, params: _Any) -> _Any:
    # Nothing in a stamp looks like a placeholder.
    if isinstance(query, bytes):
        return due.sql.encode() + b"; " + query
    if isinstance(query, str):
        return f"{due.sql}; {query}"
    return sql.SQL("{}; {}").format(sql.SQL(cast("Any", due.sql)), query)


@lru_cache(maxsize=64)
def _stamping(factory: _Any) -> _Any:
    """The cursor class with stamps before what it writes."""
    if issubclass(factory, _Cursor | _AsyncCursor):
        return factory
    mixin: _Any = _AsyncCursor if issubclass(factory, cast("_Any", psycopg.AsyncCursor)) else _Cursor
    return type(factory.__name__, (mixin, factory), {"__module__": factory.__module__, "__slots__": ()})


class _Cursor:
    """Stamps before what a cursor writes; in front of a cursor class in the order of resolution."""

    connection: _Any

    def execute(self, query: _Any, params: _Any = None, **options: _Any) -> _Any:
        above: _Any = super()
        due = _allowed(self, _due(self, query))
        if due is None:
            return above.execute(query, params, **options)
        try:
            if due.in_pipeline:
                with self.connection.pipeline():
                    psycopg.Cursor(self.connection).execute(cast("Any", due.sql))
                    above.execute(query, params, **options)
            elif due.prefix:
                above.execute(_prefixed(due, query, params), params, **options)
                cast("_Any", self).nextset()
            elif due.alone:
                with self.connection.transaction():
                    psycopg.Cursor(self.connection).execute(cast("Any", due.sql))
                    above.execute(query, params, **options)
            else:
                psycopg.Cursor(self.connection).execute(cast("Any", due.sql))
                above.execute(query, params, **options)
        except BaseException as error:
            self.connection.stamps.doubt(error)
            raise
        return self

    def executemany(self, query: _Any, params_seq: _Any, **options: _Any) -> None:
        above: _Any = super()
        due = _allowed(self, _due(self, query, many=True))
        if due is None:
            return above.executemany(query, params_seq, **options)
        with self._stamped(due, pipeline=due.in_pipeline):
            return above.executemany(query, params_seq, **options)

    def stream(self, query: _Any, params: _Any = None, **options: _Any) -> _Any:
        above: _Any = super()
        due = _allowed(self, _due(self, query))
        if due is None:
            yield from above.stream(query, params, **options)
        else:
            with self._stamped(due):
                yield from above.stream(query, params, **options)

    @contextmanager
    def copy(self, statement: _Any, params: _Any = None, **options: _Any) -> Generator[_Any]:
        above: _Any = super()
        due = _allowed(self, _due(self, statement))
        if due is None:
            with above.copy(statement, params, **options) as copy:
                yield copy
        else:
            with self._stamped(due), above.copy(statement, params, **options) as copy:
                yield copy

    @contextmanager
    def _stamped(self, due: _Due, *, pipeline: bool = False) -> Generator[None]:
        conn = self.connection
        try:
            if pipeline:
                with conn.pipeline():
                    psycopg.Cursor(conn).execute(cast("Any", due.sql))
                    yield
            elif due.alone:
                with conn.transaction():
                    psycopg.Cursor(conn).execute(cast("Any", due.sql))
                    yield
            else:
                psycopg.Cursor(conn).execute(cast("Any", due.sql))
                yield
        except BaseException as error:
            conn.stamps.doubt(error)
            raise


class _AsyncCursor:
    """The same for asyncio."""

    connection: _Any

    async def execute(self, query: _Any, params: _Any = None, **options: _Any) -> _Any:
        above: _Any = super()
        due = await _allowed_async(self, _due(self, query))
        if due is None:
            return await above.execute(query, params, **options)
        try:
            if due.in_pipeline:
                async with self.connection.pipeline():
                    await psycopg.AsyncCursor(self.connection).execute(cast("Any", due.sql))
                    await above.execute(query, params, **options)
            elif due.prefix:
                await above.execute(_prefixed(due, query, params), params, **options)
                cast("_Any", self).nextset()
            elif due.alone:
                async with self.connection.transaction():
                    await psycopg.AsyncCursor(self.connection).execute(cast("Any", due.sql))
                    await above.execute(query, params, **options)
            else:
                await psycopg.AsyncCursor(self.connection).execute(cast("Any", due.sql))
                await above.execute(query, params, **options)
        except BaseException as error:
            self.connection.stamps.doubt(error)
            raise
        return self

    async def executemany(self, query: _Any, params_seq: _Any, **options: _Any) -> None:
        above: _Any = super()
        due = await _allowed_async(self, _due(self, query, many=True))
        if due is None:
            return await above.executemany(query, params_seq, **options)
        async with self._stamped(due, pipeline=due.in_pipeline):
            return await above.executemany(query, params_seq, **options)

    async def stream(self, query: _Any, params: _Any = None, **options: _Any) -> _Any:
        above: _Any = super()
        due = await _allowed_async(self, _due(self, query))
        if due is None:
            async for row in above.stream(query, params, **options):
                yield row
        else:
            async with self._stamped(due):
                async for row in above.stream(query, params, **options):
                    yield row

    @asynccontextmanager
    async def copy(self, statement: _Any, params: _Any = None, **options: _Any) -> AsyncGenerator[_Any]:
        above: _Any = super()
        due = await _allowed_async(self, _due(self, statement))
        if due is None:
            async with above.copy(statement, params, **options) as copy:
                yield copy
        else:
            async with self._stamped(due), above.copy(statement, params, **options) as copy:
                yield copy

    @asynccontextmanager
    async def _stamped(self, due: _Due, *, pipeline: bool = False) -> AsyncGenerator[None]:
        conn = self.connection
        try:
            if pipeline:
                async with conn.pipeline():
                    await psycopg.AsyncCursor(conn).execute(cast("Any", due.sql))
                    yield
            elif due.alone:
                async with conn.transaction():
                    await psycopg.AsyncCursor(conn).execute(cast("Any", due.sql))
                    yield
            else:
                await psycopg.AsyncCursor(conn).execute(cast("Any", due.sql))
                yield
        except BaseException as error:
            conn.stamps.doubt(error)
            raise


class _Driver:
    """Stamps and events on any psycopg connection, ours or not."""

    def emit(self, conn: object, emitted: Emitted, context: Context, key: str | None) -> Awaitable[bool] | bool:
        ours = isinstance(conn, _Stamped)
        return self._send(conn, conn.stamps.event_sql(emitted, context) if ours else event_sql(emitted, context, key))

    def post(self, conn: object, payload: str) -> Awaitable[bool] | bool:
        return self._send(conn, post_sql(payload))

    def _send(self, conn: object, text: str) -> Awaitable[bool] | bool:
        """Whether a row came back; it is fetched, since in a pipeline nothing is known before."""
        if isinstance(conn, psycopg.AsyncConnection):
            return self._send_async(cast("psycopg.AsyncConnection[_Any]", conn), text)
        cursor = psycopg.Cursor(cast("psycopg.Connection[_Any]", conn), row_factory=tuple_row)
        return cursor.execute(cast("Any", text)).fetchone() is not None

    async def _send_async(self, conn: psycopg.AsyncConnection[_Any], text: str) -> bool:
        cursor = await psycopg.AsyncCursor(conn, row_factory=tuple_row).execute(cast("Any", text))
        return await cursor.fetchone() is not None

    def place(self, conn: object) -> Hashable:
        there = cast("psycopg.Connection[_Any]", conn).pgconn
        return there.host, there.port, there.db, there.user

    def ask(self, conn: object, sql: str) -> Awaitable[str] | str:
        if isinstance(conn, psycopg.AsyncConnection):
            return self._ask(cast("psycopg.AsyncConnection[_Any]", conn), sql)
        cursor = psycopg.Cursor(cast("psycopg.Connection[_Any]", conn), row_factory=tuple_row)
        return str((cursor.execute(cast("Any", sql)).fetchone() or ("",))[0])

    async def _ask(self, conn: psycopg.AsyncConnection[_Any], sql: str) -> str:
        cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
        return str((await (await cursor.execute(cast("Any", sql))).fetchone() or ("",))[0])

    def stamp(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        text = stamp_sql(context, key)
        if isinstance(conn, _Stamped):
            conn.stamps.doubt()
        if isinstance(conn, psycopg.AsyncConnection):
            return self._stamp(cast("psycopg.AsyncConnection[_Any]", conn), text)
        if may_stamp(self, conn):
            psycopg.Cursor(cast("psycopg.Connection[_Any]", conn)).execute(cast("Any", text))
        return None

    async def _stamp(self, conn: psycopg.AsyncConnection[_Any], text: str) -> None:
        if await may_stamp_async(self, conn):
            await psycopg.AsyncCursor(conn).execute(cast("Any", text))

    def enter(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        found: _Any = conn
        status = found.pgconn.transaction_status
        # Without autocommit the next statement begins a transaction, which goes on; a failed one takes nothing more.
        goes_on = status == TransactionStatus.INTRANS or (status == TransactionStatus.IDLE and not found.autocommit)
        return self.stamp(conn, context, key) if goes_on and not isinstance(conn, _Stamped) else None


driver = _Driver()
