"""Django: database connections whose transactions carry the context of whoever writes on them.

::

    INSTALLED_APPS = [..., "afterwrite.integrations.django.Afterwrite"]

The ORM, bulk operations, raw SQL and the asynchronous ORM all go through Django's own cursors, where the stamp is put
in front of the first statement of a transaction that writes: as a rule in the same message, so that it costs no round
trip, no transaction where there was none, and no query that a test counts.
"""

# Django and what it hands to a wrapper are not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.db import transaction
from django.db.backends.signals import connection_created

from afterwrite.context import Context, current
from afterwrite.record import Emitted
from afterwrite.recorder.outbox import post_sql
from afterwrite.recorder.stamp import (
    Control,
    Reading,
    Stamp,
    Stamps,
    calling,
    configured_key,
    event_sql,
    read_sql,
    stamp_sql,
)

__all__ = ["Afterwrite"]


class Afterwrite(AppConfig):
    """Stamps ``afterwrite.context`` onto each transaction that writes to PostgreSQL.

    The setting ``AFTERWRITE_WRITING_FUNCTIONS`` names functions that write when a SELECT calls them.
    """

    name = "afterwrite.integrations.django"
    label = "afterwrite"

    def ready(self) -> None:
        connection_created.connect(_instrument, dispatch_uid="afterwrite.stamps")


# --- the database's side: a wrapper around every statement ----------------------------------------------------------


def _instrument(connection: Any, **_: Any) -> None:
    """Each new connection, of any thread, gets a wrapper that knows its transaction."""
    if connection.vendor == "postgresql" and _wrapper_of(connection) is None:
        functions = calling(getattr(settings, "AFTERWRITE_WRITING_FUNCTIONS", ()))
        connection.execute_wrappers.insert(0, _Wrapper(functions, configured_key()))


def _wrapper_of(connection: Any) -> _Wrapper | None:
    return next((each for each in connection.execute_wrappers if isinstance(each, _Wrapper)), None)


class _Wrapper:
    """What ``connection.execute_wrappers`` holds: it sees all that goes through Django's cursors."""

    def __init__(self, functions: frozenset[str], key: str | None) -> None:
        self.stamps = Stamps(key)
        self._functions = functions

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        connection, stamps = context["connection"], self.stamps
        idle = int(connection.connection.info.transaction_status) == 0
        if idle:
            stamps.forget()
        reading = read_sql(sql if isinstance(sql, str) else sql.as_string(connection.connection), self._functions)
        alone = idle and connection.get_autocommit()
        # What may end its transaction cannot share it with a stamp.
        due = stamps.due(current()) if reading.writes and not (alone and reading.may_end) else None
        if reading.control is not Control.NONE:
            stamps.note(reading.control)
        if due is None:
            return execute(sql, params, many, context)
        try:
            return self._stamped(due, reading, alone, execute, sql, params, many, context)
        except BaseException:
            stamps.doubt()
            raise

    def _stamped(
        self, due: Stamp, reading: Reading, alone: bool, execute: Callable[..., Any], sql: Any, params: Any, many: bool,
        context: Any,
    ) -> Any:  # fmt: skip
        connection, cursor = context["connection"], context["cursor"].cursor
        if isinstance(sql, str) and not many and not reading.copies and _binds_by_client(cursor, params):
            # One message of several statements, which are one transaction; nothing in a stamp looks like a placeholder.
            result = execute(f"{due.sql}; {sql}", params, many, context)
            if not _gives_the_last(cursor):
                cursor.nextset()
            return result
        if alone:
            atomic: Any = transaction.atomic
            with atomic(using=connection.alias):
                _send(connection, due.sql)
                return execute(sql, params, many, context)
        _send(connection, due.sql)
        return execute(sql, params, many, context)


def _binds_by_client(cursor: Any, params: Any) -> bool:
    """Whether the text that is sent may hold several statements."""
    if _gives_the_last(cursor):
        return True
    import psycopg

    return isinstance(cursor, psycopg.ClientCursor) or (params is None and not isinstance(cursor, psycopg.ServerCursor))


def _gives_the_last(cursor: Any) -> bool:
    """Whether it is psycopg2's, which gives what the last of several statements returned, and binds by itself."""
    return type(cursor).__module__.startswith("psycopg2") or any(
        each.__module__.startswith("psycopg2") for each in type(cursor).__mro__
    )


def _send(connection: Any, sql: str) -> None:
    """By the driver itself: no query of Django's."""
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(sql)


class _Driver:
    """Stamps and events on a Django connection (``django.db.connection``, ``connections["other"]``)."""

    def emit(self, conn: Any, emitted: Emitted, context: Context, key: str | None) -> bool:
        wrapper = _wrapper_of(conn)
        with conn.cursor() as cursor:
            # Only now is a connection open, and wrapped.
            wrapper = wrapper or _wrapper_of(conn)
            cursor.execute(
                event_sql(emitted, context, key) if wrapper is None else wrapper.stamps.event_sql(emitted, context)
            )
            return cursor.fetchone() is not None

    def place(self, conn: Any) -> Hashable:
        told = conn.settings_dict
        return conn.alias, *(told.get(name) for name in ("HOST", "PORT", "NAME", "USER"))

    def ask(self, conn: Any, sql: str) -> str:
        # By the driver itself: it is asked now and then, and would upset who counts queries.
        conn.ensure_connection()
        with conn.wrap_database_errors, conn.connection.cursor() as cursor:
            cursor.execute(sql)
            return str((cursor.fetchone() or ("",))[0])

    def post(self, conn: Any, payload: str) -> bool:
        with conn.cursor() as cursor:
            cursor.execute(post_sql(payload))
            return cursor.fetchone() is not None

    def stamp(self, conn: Any, context: Context, key: str | None) -> None:
        with conn.cursor() as cursor:
            wrapper = _wrapper_of(conn)
            cursor.execute(stamp_sql(context, key) if wrapper is None else wrapper.stamps.before_event(context).sql)

    def enter(self, conn: Any, context: Context, key: str | None) -> None:
        conn.ensure_connection()  # only an open one is wrapped
        if _wrapper_of(conn) is None and (conn.in_atomic_block or not conn.get_autocommit()):
            self.stamp(conn, context, key)


driver = _Driver()
