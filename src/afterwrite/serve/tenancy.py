"""How a request gets at the store: read-only, and for a tenant's caller as a role that sees that tenant alone.

::

    handler ──reading(state, caller)──▶ a connection of the pool
                                          begin read only
                                          set local role afterwrite_tenant; afterwrite.tenant = …   (a tenant's caller)
                                          … queries …          row-level security decides
                                          commit
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from weakref import WeakValueDictionary

import msgspec
from litestar.datastructures import State
from psycopg.pq import TransactionStatus

from afterwrite.errors import AfterwriteError, ConnectionLost, Refused
from afterwrite.postgres import Database, connect, quoted, statement
from afterwrite.serve.callers import Caller
from afterwrite.settings import Settings

# Longer than this nobody waits for a connection: the answer is 503, come again.
_WAIT_SECONDS = 10.0


class Readers:
    """A few connections to the store that are lent out, the one used last first; ``app.state.readers``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(settings.serve_readers)
        # One tenant's slow questions leave half of the connections to the others.
        self._turns_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._idle: list[tuple[Database, AsyncExitStack]] = []
        self._closed = False
        # Once it was seen that this database keeps tenants apart.
        self._walled = False

    async def close(self) -> None:
        """Close those that nobody uses; the others close when they come back."""
        self._closed = True
        while self._idle:
            _, opened = self._idle.pop()
            await opened.aclose()

    @asynccontextmanager
    async def read(self, tenant: str | None) -> AsyncGenerator[Database]:
        """A read-only transaction on a connection that is nobody else's meanwhile; a tenant's, where one is named."""
        async with AsyncExitStack() as turns:
            async with asyncio.timeout(_WAIT_SECONDS):
                if tenant is not None:
                    await turns.enter_async_context(self._turn_of(tenant))
                await turns.enter_async_context(self._turns)
            db, opened = await self._begin(tenant)
            try:
                yield db
                await db.run(b"commit")
            finally:
                try:
                    if db.connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                        with suppress(ConnectionLost):
                            await db.run(b"rollback")
                finally:  # also when it is just now that nobody waits for it any more
                    if not self._closed and db.connection.info.transaction_status is TransactionStatus.IDLE:
                        self._idle.append((db, opened))
                    else:
                        await opened.aclose()

    def _turn_of(self, tenant: str) -> asyncio.Semaphore:
        turn = self._turns_of.get(tenant)
        if turn is None:
            turn = self._turns_of[tenant] = asyncio.Semaphore(max(1, self._settings.serve_readers // 2))
        return turn

    async def _begin(self, tenant: str | None) -> tuple[Database, AsyncExitStack]:
        while True:
            kept = bool(self._idle)
            db, opened = self._idle.pop() if kept else await self._open()
            try:
                if tenant is not None and not self._walled:
                    if trouble := await find_wall_trouble(db):
                        raise trouble
                    self._walled = True
                await db.at_once(dict, b"begin read only", statement("serve.set_reader"), tenant=tenant)
            except BaseException as error:
                await opened.aclose()
                # The server may have ended it while nobody used it.
                if not (kept and isinstance(error, ConnectionLost)):
                    raise
            else:
                return db, opened

    async def _open(self) -> tuple[Database, AsyncExitStack]:
        opened = AsyncExitStack()
        db = await opened.enter_async_context(
            connect(
                self._settings.store,
                application_name="afterwrite serve",
                guarded=True,
                options={
                    "default_transaction_read_only": "on",
                    "statement_timeout": f"{self._settings.serve_statement_ms}ms",
                    "idle_in_transaction_session_timeout": "30s",
                    "jit": "off",
                    # Who is asked for decides how: a plan for anybody reads all days for who is rare.
                    "plan_cache_mode": "force_custom_plan",
                },
            )
        )
        return db, opened


def reading(state: State, caller: Caller) -> AbstractAsyncContextManager[Database]:
    """A read-only transaction in which this caller's own activity, and no other, can be seen.

    ``async with reading(request.app.state, caller) as db``. Keep it short: do not wait for the client inside. Raises
    TimeoutError when every connection is busy for long, and Refused where tenants cannot be kept apart.
    """
    readers: Readers = state.readers
    return readers.read(caller.tenant)


class _Wall(msgspec.Struct, frozen=True):
    walled: bool
    can_become: bool
    is_one: bool
    role: str


async def find_wall_trouble(db: Database) -> AfterwriteError | None:
    """Why this database does not keep tenants apart for us, or None where it does."""
    wall = await db.one(_Wall, statement("serve.read_wall"))
    if not wall.walled:
        return Refused(
            f"row-level security is off on afterwrite.activity in {db.where}",
            remedy="have a role that may create roles run: select afterwrite.lay_tenancy()",
        )
    if not wall.can_become:
        return Refused(
            f"role {wall.role} cannot become afterwrite_tenant in {db.where}",
            remedy=f"have an administrator run: grant afterwrite_tenant to {quoted(wall.role)}",
        )
    if wall.is_one:
        return Refused(
            f"role {wall.role} is a tenant's reader itself in {db.where}: without a tenant it sees nothing",
            remedy=f"run: grant afterwrite_tenant to {quoted(wall.role)} with inherit false, or make it noinherit",
        )
    return None
