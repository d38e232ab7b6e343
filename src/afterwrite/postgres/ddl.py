"""DDL on tables that people are writing to: short lock waits, retries with jitter, and the blockers by name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import msgspec
from psycopg import sql
from psycopg.pq import TransactionStatus

from afterwrite.errors import AfterwriteError
from afterwrite.postgres.connect import Database, LockTimeout
from afterwrite.postgres.statements import statement


class LockPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long one attempt may wait for a lock (writers queue behind it), and how often it is tried."""

    lock_timeout_ms: int = 500
    attempts: int = 20
    first_pause_ms: int = 100
    longest_pause_ms: int = 5_000


class Blocker(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock on the table: a session as pg_stat_activity shows it, or (no pid) a prepared transaction.

    ``modes`` tells the guilty from the others: a reader (AccessShareLock) stands only in the way of ACCESS EXCLUSIVE.
    """

    pid: int | None
    application_name: str
    user_name: str
    state: str | None
    modes: str
    transaction_age: timedelta | None
    query: str | None

    def __str__(self) -> str:
        age = f", in a transaction for {self.transaction_age.total_seconds():.0f} s" if self.transaction_age else ""
        who = f"{self.user_name or 'the server'}, {self.application_name or 'unnamed'}, {self.state or 'active'}{age}"
        held = f"({who}) with {self.modes}"
        return f"a prepared transaction {held}" if self.pid is None else f"pid {self.pid} {held}"

    @property
    def remedy(self) -> str:
        """The statement that makes it let go."""
        if self.pid is None:
            return f"rollback prepared '{self.application_name.removeprefix('prepared transaction ')}'"
        return f"select pg_terminate_backend({self.pid})"


OnBlocked = Callable[[int, Sequence[Blocker]], None]


async def with_short_locks(
    database: Database,
    relations: Sequence[str],
    work: Callable[[Database], Awaitable[None]],
    *,
    policy: LockPolicy | None = None,
    on_blocked: OnBlocked | None = None,
) -> None:
    """Run ``work`` in one transaction under lock_timeout; on 55P03 roll back, pause with jitter and try again.

    ``relations`` (quoted names) say whose lock holders to name. ``work`` must do nothing outside the database, since
    it may run several times. Raises LockTimeout, naming the blockers, when every attempt has failed.

    Not to be called inside a transaction: locks that it took earlier would be held through the pauses.
    """
    policy = policy or LockPolicy()
    if database.connection.info.transaction_status != TransactionStatus.IDLE:
        raise AfterwriteError(f"a lock on {', '.join(relations)} was asked for inside a transaction: a defect of ours")
    pause = policy.first_pause_ms / 1000
    for attempt in range(1, policy.attempts + 1):
        try:
            async with database.transaction():
                await database.run(statement("ddl.set_lock_timeout"), milliseconds=f"{policy.lock_timeout_ms}ms")
                await work(database)
            return
        except LockTimeout as error:
            blockers = await read_blockers(database, relations)
            if on_blocked:
                on_blocked(attempt, blockers)
            if attempt == policy.attempts:
                held = "; ".join(str(blocker) for blocker in blockers) or "nobody any more"
                end = "; ".join(blocker.remedy for blocker in blockers)
                raise LockTimeout(
                    f"{', '.join(relations)} stayed locked through {attempt} attempts"
                    f" of {policy.lock_timeout_ms} ms; held by {held}",
                    remedy=f"end what holds it ({end}), then run the same command again" if end else "run it again",
                    sqlstate=error.sqlstate,
                ) from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, policy.longest_pause_ms / 1000)


async def read_blockers(database: Database, relations: Sequence[str]) -> list[Blocker]:
    """Who holds a lock on these tables now, oldest transaction first."""
    return await database.rows(Blocker, statement("ddl.read_blockers"), relations=list(relations))


def identifier(schema: str, name: str) -> sql.Identifier:
    """A qualified identifier for psycopg.sql."""
    return sql.Identifier(schema, name)
