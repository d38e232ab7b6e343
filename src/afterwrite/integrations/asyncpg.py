"""asyncpg: a connection class whose transactions carry the context of whoever writes on it.

::

    conn = await asyncpg.connect(dsn, connection_class=Connection)
    pool = await asyncpg.create_pool(dsn, connection_class=Connection)

Every way to write is seen: execute, executemany, the fetches, copies, cursors and prepared statements. asyncpg has no
pipeline: a stamp costs a round trip in a transaction, and outside of one two (a statement with arguments becomes a
transaction of its own) or none (one without arguments goes in one message with its stamp).
"""

# asyncpg says nothing about the types of most of what it has.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Hashable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from afterwrite.context import Context, current
from afterwrite.record import Emitted
from afterwrite.recorder.connections import may_stamp_async
from afterwrite.recorder.outbox import post_sql
from afterwrite.recorder.stamp import Control, Stamps, event_sql, read_sql, stamp_sql

__all__ = ["Connection"]

_Base: Any = asyncpg.Connection
_COPY = "copy t from stdin"


class Connection(_Base):
    """An asyncpg connection that stamps ``afterwrite.context`` onto each transaction that writes.

    Subclass it to name the functions that write when a SELECT calls them (``writing_functions``, lower-case names), or
    a key other than the settings' (``stamp_key``).
    """

    stamp_key: ClassVar[str | None] = None
    writing_functions: ClassVar[frozenset[str]] = frozenset()

    _stamps: Stamps | None = None

    @property
    def stamps(self) -> Stamps:
        """What is known of the transaction that is open."""
        if self._stamps is None:
            self._stamps = Stamps(self.stamp_key)
        return self._stamps

    async def execute(self, query: str, *args: Any, **options: Any) -> Any:
        due = self._due(query)
        if due is not None and not args and not self.is_in_transaction():
            # Several statements in one message are one transaction.
            prefix = f"{due}; " if await may_stamp_async(driver, self) else ""
            return await super().execute(f"{prefix}{query}", **options)
        async with self._stamped(due):
            return await super().execute(query, *args, **options)

    async def executemany(self, command: str, args: Any, **options: Any) -> Any:
        async with self._stamped(self._due(command)):
            return await super().executemany(command, args, **options)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        async with self._stamped(self._due(query)):
            return await super().fetch(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        async with self._stamped(self._due(query)):
            return await super().fetchval(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        async with self._stamped(self._due(query)):
            return await super().fetchrow(query, *args, **options)

    async def fetchmany(self, query: str, args: Any, **options: Any) -> Any:
        async with self._stamped(self._due(query)):
            return await super().fetchmany(query, args, **options)

    async def copy_to_table(self, table_name: str, **options: Any) -> Any:
        async with self._stamped(self._due(_COPY)):
            return await super().copy_to_table(table_name, **options)

    async def copy_records_to_table(self, table_name: str, **options: Any) -> Any:
        async with self._stamped(self._due(_COPY)):
            return await super().copy_records_to_table(table_name, **options)

    def cursor(self, query: str, *args: Any, **options: Any) -> Any:
        factory = super().cursor(query, *args, **options)
        return _Cursors(self, factory, query) if self._writes(query) else factory

    async def prepare(self, query: str, **options: Any) -> Any:
        statement = await super().prepare(query, **options)
        if self._writes(query):
            statement.__class__ = _Prepared
        return statement

    def _writes(self, query: str) -> bool:
        return read_sql(query, self.writing_functions).writes

    def _due(self, query: str) -> str | None:
        """The stamp that is to be sent before this statement; None for none."""
        stamps, inside = self.stamps, self.is_in_transaction()
        if not inside:
            stamps.forget()
        reading = read_sql(query, self.writing_functions)
        # What may end its transaction cannot share it with a stamp.
        due = stamps.due(current()) if reading.writes and (inside or not reading.may_end) else None
        if reading.control is not Control.NONE:
            stamps.note(reading.control)
        return None if due is None else due.sql

    @asynccontextmanager
    async def _stamped(self, due: str | None) -> AsyncGenerator[None]:
        """Around a statement: the stamp before it, in the same transaction."""
        if due is None:
            yield
            return
        alone = not self.is_in_transaction()
        try:
            if not await may_stamp_async(driver, self):
                alone = False
            else:
                await super().execute(f"begin; {due}" if alone else due)
            yield
            if alone:
                await super().execute("commit")
        except BaseException as error:
            self.stamps.doubt(error)
            if alone and not self.is_closed() and self.is_in_transaction():
                await super().execute("rollback")
            raise


class _Cursors:
    """A cursor over what a statement that writes returns: it is stamped when it is opened."""

    def __init__(self, conn: Connection, factory: Any, query: str) -> None:
        self._conn, self._factory, self._query = conn, factory, query

    def __aiter__(self) -> AsyncGenerator[Any]:
        return self._iterate()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._open().__await__()

    async def _iterate(self) -> AsyncGenerator[Any]:
        await self._stamp()
        async for row in self._factory:
            yield row

    async def _open(self) -> Any:
        await self._stamp()
        return await self._factory

    async def _stamp(self) -> None:
        # A cursor is always inside of a transaction.
        async with self._conn._stamped(self._conn._due(self._query)):  # pyright: ignore[reportPrivateUsage]
            pass


class _Prepared(cast("Any", PreparedStatement)):
    """A prepared statement that writes."""

    __slots__ = ()

    async def fetch(self, *args: Any, **options: Any) -> Any:
        return await self._run(super().fetch, *args, **options)

    async def fetchval(self, *args: Any, **options: Any) -> Any:
        return await self._run(super().fetchval, *args, **options)

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        return await self._run(super().fetchrow, *args, **options)

    async def fetchmany(self, *args: Any, **options: Any) -> Any:
        return await self._run(super().fetchmany, *args, **options)

    async def executemany(self, *args: Any, **options: Any) -> Any:
        return await self._run(super().executemany, *args, **options)

    def cursor(self, *args: Any, **options: Any) -> Any:
        return _Cursors(self._connection, super().cursor(*args, **options), self.get_query())

    async def _run(self, run: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        conn: Any = self._connection
        async with conn._stamped(conn._due(self.get_query())):
            return await run(*args, **options)


class _Driver:
    """Stamps and events on any asyncpg connection, ours or not, and on what a pool gives."""

    async def emit(self, conn: Any, emitted: Emitted, context: Context, key: str | None) -> bool:
        stamps: Stamps | None = getattr(conn, "stamps", None)
        text = event_sql(emitted, context, key) if stamps is None else stamps.event_sql(emitted, context)
        return await conn.execute(text) == "SELECT 1"

    def place(self, conn: Any) -> Hashable:
        # What a pool gives passes on what it is asked.
        return conn._addr, conn._params.database, conn._params.user

    async def ask(self, conn: Any, sql: str) -> str:
        return str(await conn.fetchval(sql))

    async def post(self, conn: Any, payload: str) -> bool:
        return await conn.execute(post_sql(payload)) == "SELECT 1"

    async def stamp(self, conn: Any, context: Context, key: str | None) -> None:
        stamps: Stamps | None = getattr(conn, "stamps", None)
        if stamps is not None:
            stamps.doubt()
        if await may_stamp_async(self, conn):
            await conn.execute(stamp_sql(context, key))

    def enter(self, conn: Any, context: Context, key: str | None) -> Awaitable[None] | None:
        stamping = getattr(conn, "stamps", None) is not None
        return None if stamping or not conn.is_in_transaction() else self.stamp(conn, context, key)


driver = _Driver()
