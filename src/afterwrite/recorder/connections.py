"""Stamps and events on whatever connection an application has: which framework's it is, and how that one sends.

::

    emit(conn, event) ──▶ driver_of(conn): psycopg, asyncpg, sqlalchemy, django ─┬▶ logical message ┐ in its
                          known way of its server (outbox.py), or ask it         └▶ outbox ─────────┘ transaction
"""

from __future__ import annotations

from collections.abc import Awaitable, Hashable
from functools import lru_cache
from importlib import import_module
from typing import Protocol, assert_never, cast

from afterwrite.context import Context, current
from afterwrite.errors import UsageError
from afterwrite.record import Emitted
from afterwrite.recorder.options import EventsBy, configured
from afterwrite.recorder.outbox import Way, ask_sql, known, outbox_payload
from afterwrite.recorder.stamp import MAY_SQL, configured_key, permits

# Top-level packages whose connections we know; the integration of the same name has the driver.
_FRAMEWORKS = ("psycopg", "asyncpg", "sqlalchemy", "django")


class Driver(Protocol):
    """How one framework's connections send; each gives an awaitable where the connection is asynchronous."""

    def emit(self, conn: object, emitted: Emitted, context: Context, key: str | None) -> Awaitable[bool] | bool:
        """Write the event into the WAL of the connection's transaction; False where that is read-only."""
        ...

    def place(self, conn: object) -> Hashable:
        """What tells the server, database and role of this connection from others; nothing is asked for it."""
        ...

    def ask(self, conn: object, sql: str) -> Awaitable[str] | str:
        """The one value of the one row that this gives, a text."""
        ...

    def post(self, conn: object, payload: str) -> Awaitable[bool] | bool:
        """Write this into the outbox, in the connection's transaction; False where that is read-only."""
        ...

    def stamp(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        """Stamp the context onto the connection's transaction, where no equal one stands."""
        ...

    def enter(self, conn: object, context: Context, key: str | None) -> Awaitable[None] | None:
        """The same, where the connection does not stamp by itself and is in a transaction that goes on."""
        ...


def emit(
    conn: object,
    emitted: Emitted,
    *,
    context: Context | None = None,
    key: str | None = None,
    events: EventsBy | None = None,
    slot: str | None = None,
) -> Awaitable[bool] | bool:
    """Write the event into the transaction that is open on ``conn``: it exists if and only if that commits.

    It goes as a logical message, with the context (by default this task's) stamped before it, or by the outbox, with
    the context in it; which one, ``events`` says, or the server is asked (once in a while, not each time). True when it
    was written. False when the transaction is read-only, the server a standby, or nobody would ever read it: then
    nothing was. To be awaited where the connection is asynchronous. Key, events and slot are by default those of the
    settings. Raises UsageError for an object that is no connection that we know, and what its driver raises.
    """
    driver = driver_of(conn)
    context, key = context or current(), key or configured_key()
    by = EventsBy(events or configured().events)
    slot = slot or configured().slot
    place = driver.place(conn), by, slot
    way = known.find(place)
    if way is None:
        answer = driver.ask(conn, ask_sql(by, slot))
        if not isinstance(answer, str):
            return _ask_and_send(driver, conn, emitted, context, key, place, answer)
        way = known.note(place, answer)
    return _send(driver, conn, emitted, context, key, way)


async def _ask_and_send(
    driver: Driver,
    conn: object,
    emitted: Emitted,
    context: Context,
    key: str | None,
    place: Hashable,
    answer: Awaitable[str],
) -> bool:
    sent = _send(driver, conn, emitted, context, key, known.note(place, await answer))
    return sent if isinstance(sent, bool) else await sent


def _send(
    driver: Driver, conn: object, emitted: Emitted, context: Context, key: str | None, way: Way
) -> Awaitable[bool] | bool:
    match way:
        case Way.MESSAGE:
            return driver.emit(conn, emitted, context, key)
        case Way.OUTBOX:
            return driver.post(conn, outbox_payload(emitted, context, key))
        case Way.NOWHERE | Way.DENIED:
            return False
        case _:
            assert_never(way)


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


def may_stamp(driver: Driver, conn: object) -> bool:
    """Whether the role of this connection may write a stamp; the server is asked where that is not known."""
    place = driver.place(conn)
    may = permits.find(place)
    return permits.note(place, cast("str", driver.ask(conn, MAY_SQL))) if may is None else may


async def may_stamp_async(driver: Driver, conn: object) -> bool:
    """The same on an asynchronous connection."""
    place = driver.place(conn)
    may = permits.find(place)
    return permits.note(place, await cast("Awaitable[str]", driver.ask(conn, MAY_SQL))) if may is None else may


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
