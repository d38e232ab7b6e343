"""Whether a session is ours alone: a pooler in transaction mode gives every transaction another one.

Session settings, advisory locks and temporary tables are then somebody else's a moment later.
"""

from __future__ import annotations

import psycopg
from psycopg.conninfo import make_conninfo

_TRIES = 3


async def shares_sessions(connection: psycopg.AsyncConnection) -> bool:
    """Whether a pooler in transaction mode stands between. Call it outside a transaction; it leaves nothing behind.

    A pooler makes up the process id that it tells at the login, so that nothing more is asked where that is the
    server's own. Behind one in session mode a second connection never gets the server process that the first one had.
    """
    if await _pid(connection) == connection.info.backend_pid:
        return False
    words = connection.info.get_parameters()
    dsn = make_conninfo("", **words, password=connection.info.password or None)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        for _ in range(_TRIES):
            mine = await _pid(connection)
            async with other.transaction():
                theirs = await _pid(other)
                # While the other one holds a process, ours is put on another, if it was put on that one at all.
                if theirs == mine or await _pid(connection) != mine:
                    return True
    return False


async def _pid(connection: psycopg.AsyncConnection) -> int:
    cursor = await connection.execute("select pg_catalog.pg_backend_pid()", prepare=False)
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
