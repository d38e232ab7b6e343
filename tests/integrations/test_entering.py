"""``enter``: whoever binds a context around a block stamps it himself only where the connection does not."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from stamping_scene import Scene
from test_asyncpg_stamps import words
from test_sqlalchemy_stamps import url

from afterwrite import context
from afterwrite.integrations.psycopg import Connection
from afterwrite.integrations.sqlalchemy import instrument
from afterwrite.recorder.connections import enter

INSERT = "insert into things (name) values ('{}')"


def test_connections_that_do_not_stamp_are_stamped_where_that_holds(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)

    async def sent(done: Any) -> None:
        if done is not None:
            await done

    async def run() -> None:
        plain: dict[str, Any] = {**words(installed_dsn), "connection_class": asyncpg.Connection}
        conn = await asyncpg.connect(**plain)
        await sent(enter(conn))
        await conn.execute(INSERT.format("asyncpg, outside"))
        async with conn.transaction():
            await sent(enter(conn))
            await conn.execute(INSERT.format("asyncpg"))
        await conn.close()
        engine = create_async_engine(url(installed_dsn, "asyncpg"))
        async with AsyncSession(engine) as session:
            await sent(enter(session))
            await session.execute(text(INSERT.format("sqlalchemy, async")))
            await session.commit()
        await engine.dispose()

    with context.bind(actor="a"):
        with psycopg.connect(installed_dsn) as conn:
            enter(conn)
            conn.execute(INSERT.format("psycopg").encode())
            conn.commit()
            conn.autocommit = True
            enter(conn)
            conn.execute(INSERT.format("psycopg, outside").encode())
            with conn.transaction():
                enter(conn)
                conn.execute(INSERT.format("psycopg, block").encode())
        with Connection.connect(installed_dsn) as ours:
            enter(ours)
            assert ours.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        engine = create_engine(url(installed_dsn, "psycopg"))
        with Session(engine) as session:
            enter(session)
            session.execute(text(INSERT.format("sqlalchemy")))
            session.commit()
        alone = engine.execution_options(isolation_level="AUTOCOMMIT")
        with alone.connect() as connection:
            enter(connection)
            connection.execute(text(INSERT.format("sqlalchemy, outside")))
        instrument(engine)
        with engine.begin() as connection:
            enter(connection)
            assert connection.exec_driver_sql("select pg_current_xact_id_if_assigned()").scalar() is None
        engine.dispose()
        asyncio.run(run())
    assert scene.actors() == [
        ("psycopg", "a"),
        ("psycopg, outside", None),
        ("psycopg, block", "a"),
        ("sqlalchemy", "a"),
        ("sqlalchemy, outside", None),
        ("asyncpg, outside", None),
        ("asyncpg", "a"),
        ("sqlalchemy, async", "a"),
    ]
