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
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from litestar.datastructures import State
from psycopg.pq import TransactionStatus

from afterwrite.errors import ConnectionLost
from afterwrite.postgres import Database, connect, statement
from afterwrite.serve.auth import Caller
from afterwrite.settings import Settings


class Readers:
    """A few connections to the store that are lent out, the one used last first; ``app.state.readers``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(settings.serve_readers)
        self._idle: list[tuple[Database, AsyncExitStack]] = []

    async def close(self) -> None:
        """Close those that nobody uses; the others close when they come back."""
        while self._idle:
            _, opened = self._idle.pop()
            await opened.aclose()

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[Database]:
        """A connection that is nobody else's meanwhile. One that is broken or left in a transaction is not kept."""
        async with self._turns:
            db, opened = self._idle.pop() if self._idle else await self._open()
            try:
                yield db
            finally:
                if db.connection.info.transaction_status is TransactionStatus.IDLE:
                    self._idle.append((db, opened))
                else:
                    await opened.aclose()

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
                },
            )
        )
        return db, opened


@asynccontextmanager
async def reading(state: State, caller: Caller) -> AsyncGenerator[Database]:
    """A read-only transaction in which this caller's own activity, and no other, can be seen.

    ``async with reading(request.app.state, caller) as db``. Keep it short: do not wait for the client inside.
    """
    readers: Readers = state.readers
    async with readers.lend() as db:
        await db.at_once(dict, b"begin read only", statement("serve.set_reader"), tenant=caller.tenant)
        try:
            yield db
        except BaseException:
            if db.connection.info.transaction_status is not TransactionStatus.UNKNOWN:
                with suppress(ConnectionLost):
                    await db.run(b"rollback")
            raise
        await db.run(b"commit")
