"""SQLAlchemy 2: engines whose transactions carry the context of whoever writes in them.

::

    engine = create_engine("postgresql+psycopg://…")            # or create_async_engine("postgresql+asyncpg://…")
    instrument(engine)

Core, ORM, bulk and raw SQL are seen alike: the stamp goes before the first cursor execution that writes. It costs a
round trip in a transaction. Under AUTOCOMMIT such a statement becomes a transaction of its own, for three.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, TypeVar, cast
from weakref import WeakSet, ref

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from afterwrite.context import Context, current
from afterwrite.record import Emitted
from afterwrite.recorder.connections import may_stamp
from afterwrite.recorder.outbox import BOUND_POST_SQL
from afterwrite.recorder.stamp import (
    BOUND_EVENT_SQL,
    BOUND_STAMP_SQL,
    Control,
    Stamp,
    Stamps,
    calling,
    event_payload,
    make_stamp,
    read_sql,
)

__all__ = ["instrument"]

Value = TypeVar("Value")
_STAMPS, _ALONE = "afterwrite.stamps", "afterwrite.alone"
_instrumented: WeakSet[Engine] = WeakSet()


def instrument(engine: Engine | AsyncEngine, *, writing_functions: Iterable[str] = (), key: str | None = None) -> None:
    """Stamp ``afterwrite.context`` onto each transaction that writes through this engine.

    ``writing_functions`` names functions that write when a SELECT calls them; ``key`` signs, by default the settings'.
    What goes past SQLAlchemy (the driver's own connection: COPY and such) is not seen: call ``stamp(conn)`` before it.
    """
    sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if sync in _instrumented:
        return
    _instrumented.add(sync)
    listener = _Listener(sync, calling(writing_functions), key)
    for name in (
        "before_cursor_execute", "after_cursor_execute", "handle_error", "engine_connect", "begin", "commit",
        "rollback", "rollback_savepoint", "begin_twophase", "prepare_twophase", "commit_twophase", "rollback_twophase",
    ):  # fmt: skip
        event.listen(sync, name, getattr(listener, name))


class _Listener:
    """What is done at each event of an engine; what is known of a transaction is kept with its DBAPI connection."""

    def __init__(self, engine: Engine, functions: frozenset[str], key: str | None) -> None:
        self._functions, self._key = functions, key
        # In the words of the driver: its placeholders, in its order.
        compiled: Any = text(BOUND_STAMP_SQL).compile(dialect=engine.dialect)
        self._sql = str(compiled)
        self._order: list[str] | None = compiled.positiontup if compiled.positional else None

    def before_cursor_execute(
        self, conn: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        reading = read_sql(statement, self._functions)
        if not reading.writes and reading.control is Control.NONE:
            return
        stamps = self._stamps(conn)
        alone = _is_autocommitting(conn)
        if alone:
            stamps.forget()
        if reading.writes and not (alone and reading.may_end):
            due = stamps.due(current())
            if due is not None:
                try:
                    if may_stamp(_beneath, conn):
                        self._send(conn, due, alone=alone)
                except BaseException as error:
                    stamps.doubt(error)
                    raise
        stamps.note(reading.control)

    def after_cursor_execute(
        self, conn: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        if conn.info.pop(_ALONE, False):
            _run(conn, "commit")

    def handle_error(self, context: Any) -> None:
        conn: Connection | None = context.connection
        if conn is None or context.is_disconnect or conn.invalidated or conn.closed:
            return
        self._stamps(conn).doubt(context.original_exception)
        if conn.info.pop(_ALONE, False):
            _run(conn, "rollback")

    def engine_connect(self, conn: Connection) -> None:
        # From the pool, which has rolled back whatever was open.
        self._stamps(conn).forget()
        conn.info.pop(_ALONE, None)

    def begin(self, conn: Connection) -> None:
        self._stamps(conn).forget()

    def commit(self, conn: Connection) -> None:
        self._stamps(conn).forget()

    def rollback(self, conn: Connection) -> None:
        if not conn.invalidated:
            self._stamps(conn).forget()

    def rollback_savepoint(self, conn: Connection, name: str, context: None) -> None:
        if not conn.invalidated:
            self._stamps(conn).doubt()

    def begin_twophase(self, conn: Connection, xid: Any) -> None:
        self._stamps(conn).forget()

    def prepare_twophase(self, conn: Connection, xid: Any) -> None:
        self._stamps(conn).forget()

    def commit_twophase(self, conn: Connection, xid: Any, is_prepared: bool) -> None:
        self._stamps(conn).forget()

    def rollback_twophase(self, conn: Connection, xid: Any, is_prepared: bool) -> None:
        self._stamps(conn).forget()

    def _stamps(self, conn: Connection) -> Stamps:
        stamps = conn.info.get(_STAMPS)
        if stamps is None:
            stamps = conn.info[_STAMPS] = Stamps(self._key)
        return stamps

    def _send(self, conn: Connection, due: Stamp, *, alone: bool) -> None:
        values = due._asdict()
        if alone:
            # The statement and its stamp in one transaction; after_cursor_execute or handle_error end it.
            _run(conn, "begin")
            conn.info[_ALONE] = True
        _run(conn, self._sql, values if self._order is None else tuple(values[name] for name in self._order))


def _run(conn: Connection, statement: str, parameters: Any = None) -> None:
    """Send this by the driver itself: no event of SQLAlchemy, and nothing in what an application counts."""
    cursor = conn.connection.cursor()
    try:
        if parameters is None:
            cursor.execute(statement)
        else:
            cursor.execute(statement, parameters)
    finally:
        cursor.close()


_EVENT, _STAMP, _POST = text(BOUND_EVENT_SQL), text(BOUND_STAMP_SQL), text(BOUND_POST_SQL)


class _Driver:
    """Stamps and events on connections and sessions, synchronous or not, of instrumented engines or others."""

    def emit(self, conn: object, emitted: Emitted, context: Context, key: str | None) -> Awaitable[bool] | bool:
        if isinstance(conn, AsyncConnection | AsyncSession | async_scoped_session):
            return self._emit_async(cast("Any", conn), emitted, context, key)
        return _emit(_connection(conn), emitted, context, key)

    def place(self, conn: object) -> Hashable:
        # What an engine's pool connects to is the same for all; asyncio's have one of the other kind inside.
        bound: Any = conn
        if isinstance(conn, Session | scoped_session | AsyncSession | async_scoped_session):
            bound = cast("Any", conn).get_bind()
        engine: Engine = getattr(bound, "sync_engine", None) or bound.engine
        return ref(getattr(engine, "sync_engine", engine).pool)

    def ask(self, conn: object, sql: str) -> Awaitable[str] | str:
        if isinstance(conn, AsyncConnection | AsyncSession | async_scoped_session):
            return self._run_async(cast("Any", conn), _ask, sql)
        return _ask(_connection(conn), sql)

    def post(self, conn: object, payload: str) -> Awaitable[bool] | bool:
        if isinstance(conn, AsyncConnection | AsyncSession | async_scoped_session):
            return self._run_async(cast("Any", conn), _post, payload)
        return _post(_connection(conn), payload)

    async def _run_async(self, conn: Any, work: Callable[[Connection, str], Value], words: str) -> Value:
        found: AsyncConnection = conn if isinstance(conn, AsyncConnection) else await conn.connection()
        return await found.run_sync(work, words)

    def stamp(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        if isinstance(conn, AsyncConnection | AsyncSession | async_scoped_session):
            return self._stamp_async(cast("Any", conn), context, key)
        return _stamp(_connection(conn), context, key)

    async def _emit_async(self, conn: Any, emitted: Emitted, context: Context, key: str | None) -> bool:
        found: AsyncConnection = conn if isinstance(conn, AsyncConnection) else await conn.connection()
        return await found.run_sync(_emit, emitted, context, key)

    async def _stamp_async(self, conn: Any, context: Context, key: str | None) -> None:
        found: AsyncConnection = conn if isinstance(conn, AsyncConnection) else await conn.connection()
        await found.run_sync(_stamp, context, key)

    def enter(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        if isinstance(conn, AsyncConnection | AsyncSession | async_scoped_session):
            return self._enter_async(cast("Any", conn), context, key)
        return _enter(_connection(conn), context, key)

    async def _enter_async(self, conn: Any, context: Context, key: str | None) -> None:
        found: AsyncConnection = conn if isinstance(conn, AsyncConnection) else await conn.connection()
        await found.run_sync(_enter, context, key)


def _connection(conn: object) -> Connection:
    return cast("Any", conn).connection() if isinstance(conn, Session | scoped_session) else cast("Connection", conn)


def _emit(conn: Connection, emitted: Emitted, context: Context, key: str | None) -> bool:
    stamps: Stamps | None = conn.info.get(_STAMPS)
    if stamps is None:
        due, payload = make_stamp(context, key), event_payload(emitted, key)
    else:
        due, payload = stamps.before_event(context), stamps.event_payload(emitted)
    return conn.execute(_EVENT, {**due._asdict(), "event": payload}).first() is not None


def _ask(conn: Connection, sql: str) -> str:
    return str(conn.execute(text(sql)).scalar())


def _post(conn: Connection, payload: str) -> bool:
    return conn.execute(_POST, {"payload": payload}).first() is not None


def _stamp(conn: Connection, context: Context, key: str | None) -> None:
    stamps: Stamps | None = conn.info.get(_STAMPS)
    due = make_stamp(context, key) if stamps is None else stamps.before_event(context)
    if may_stamp(driver, conn):
        conn.execute(_STAMP, due._asdict())


def _enter(conn: Connection, context: Context, key: str | None) -> None:
    if _STAMPS not in conn.info and not _is_autocommitting(conn):
        _stamp(conn, context, key)


def _is_autocommitting(conn: Connection) -> bool:
    return bool(getattr(conn.connection.dbapi_connection, "autocommit", False))


class _Beneath(_Driver):
    """The same for the listener, which asks by the DBAPI: no event of SQLAlchemy."""

    def ask(self, conn: object, sql: str) -> str:
        cursor = cast("Connection", conn).connection.cursor()
        try:
            cursor.execute(sql)
            return str((cursor.fetchone() or ("",))[0])
        finally:
            cursor.close()


driver, _beneath = _Driver(), _Beneath()
