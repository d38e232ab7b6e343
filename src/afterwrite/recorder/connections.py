"""Stamps and events on whatever connection an application has: which framework's it is, and how that one sends.

::

    emit(conn, event) ──▶ driver_of(conn): psycopg, asyncpg, sqlalchemy, django ──▶ event_sql(…) in its transaction
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import lru_cache
from importlib import import_module
from typing import Protocol, cast

from afterwrite.context import Context, current
from afterwrite.errors import UsageError
from afterwrite.record import Emitted
from afterwrite.recorder.stamp import configured_key

# Top-level packages whose connections we know; the integration of the same name has the driver.
_FRAMEWORKS = ("psycopg", "asyncpg", "sqlalchemy", "django")


class Driver(Protocol):
    """How one framework's connections send; each gives an awaitable where the connection is asynchronous."""

    def emit(self, conn: object, emitted: Emitted, context: Context, key: str | None) -> Awaitable[bool] | bool:
        """Write the event into the connection's transaction; False where that is read-only."""
        ...

    def stamp(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        """Stamp the context onto the connection's transaction, where no equal one stands."""
        ...

    def enter(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        """The same, where the connection does not stamp by itself and is in a transaction that goes on."""
        ...


def emit(
    conn: object, emitted: Emitted, *, context: Context | None = None, key: str | None = None
) -> Awaitable[bool] | bool:
    """Write the event into the transaction that is open on ``conn``: it exists if and only if that commits.

    The context (by default this task's) is stamped before it. True when it was written, False when the transaction is
    read-only or the server a standby; to be awaited where the connection is asynchronous. The key is by default the one
    of the settings. Raises UsageError for an object that is no connection that we know, and what its driver raises.
    """
    return driver_of(conn).emit(conn, emitted, context or current(), key or configured_key())


def stamp(conn: object, *, context: Context | None = None, key: str | None = None) -> Awaitable[None] | None:
    """Stamp the context (by default this task's) onto the transaction that is open on ``conn``, by hand.

    For writers without an integration: call it in a transaction, before its first write. To be awaited where the
    connection is asynchronous.
    """
    return driver_of(conn).stamp(conn, context or current(), key or configured_key())


def enter(conn: object, *, context: Context | None = None, key: str | None = None) -> Awaitable[None] | None:
    """Stamp the context where nobody else will: for whoever binds one around a block that writes on ``conn``.

    Nothing is sent where the connection stamps by itself, or where each statement is a transaction of its own: then a
    stamp sent now would be alone in one. None where nothing is to be awaited.
    """
    return driver_of(conn).enter(conn, context or current(), key or configured_key())


def driver_of(conn: object) -> Driver:
    """The driver of this connection or session; raises UsageError where nobody knows it."""
    found = _driver_of_type(type(conn))
    if found is None:
        raise UsageError(
            f"conn is {type(conn).__module__}.{type(conn).__qualname__}, which is no connection that afterwrite knows",
            remedy=f"give a connection or a session of {', '.join(_FRAMEWORKS[:-1])} or {_FRAMEWORKS[-1]}",
        )
    return found


@lru_cache(maxsize=256)
def _driver_of_type(kind: type) -> Driver | None:
    for each in kind.__mro__:
        package = each.__module__.partition(".")[0]
        if package in _FRAMEWORKS:
            # By name: the recorder knows no framework, and the application has imported this one already.
            return cast("Driver", import_module(f"afterwrite.integrations.{package}").driver)
    return None
