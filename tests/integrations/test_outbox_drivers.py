"""Events go into the outbox on every kind of connection, in the application's own transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import psycopg
import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django_site import connect_django
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from test_asyncpg_stamps import words
from test_sqlalchemy_stamps import url

from afterwrite import context
from afterwrite.capture.outbox import lay, plan_install
from afterwrite.integrations.sqlalchemy import instrument
from afterwrite.postgres import connect
from afterwrite.record import Emitted
from afterwrite.recorder.connections import emit
from afterwrite.recorder.options import EventsBy
from afterwrite.recorder.outbox import Way, known

BY = EventsBy.OUTBOX


@pytest.fixture
def outbox_dsn(installed_dsn: str) -> Iterator[str]:
    async def run() -> None:
        async with connect(installed_dsn) as db:
            await lay(db, await plan_install(db))

    asyncio.run(run())
    known.forget()
    yield installed_dsn
    known.forget()


def event(action: str) -> Emitted:
    return Emitted(category="data", action=action, summary="100 % of 'it': ä\\?")


def posted(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as conn:
        found = conn.execute(
            """select payload::jsonb -> 'event' ->> 'action', payload::jsonb -> 'event' ->> 'summary',
                      payload::jsonb -> 'context' ->> 'actor_id'
                 from afterwrite_outbox.event order by number"""
        ).fetchall()
    assert {row[1:] for row in found} == {("100 % of 'it': ä\\?", "user:ö")}
    return [row[0] for row in found]


def test_psycopg_and_asyncpg(outbox_dsn: str) -> None:
    async def run() -> None:
        with psycopg.connect(outbox_dsn) as conn:
            assert emit(conn, event("lost"), events=BY) is True
            conn.rollback()
            assert emit(conn, event("sync"), events=BY) is True
            with conn.pipeline():
                assert emit(conn, event("in a pipeline"), events=BY) is True
        async with await psycopg.AsyncConnection.connect(outbox_dsn) as conn:
            assert await emit(conn, event("async"), events=BY)  # type: ignore[misc]
        async with asyncpg.create_pool(**words(outbox_dsn), min_size=1, max_size=1) as pool, pool.acquire() as conn:
            known.forget()
            async with conn.transaction():
                assert await emit(conn, event("asyncpg"), events=BY)  # type: ignore[misc]
            async with conn.transaction(readonly=True):
                assert not await emit(conn, event("read-only"), events=BY)  # type: ignore[misc]

    with context.bind(actor="user:ö"):
        asyncio.run(run())
    assert posted(outbox_dsn) == ["sync", "in a pipeline", "async", "asyncpg"]


def test_sqlalchemy(outbox_dsn: str) -> None:
    async def run() -> None:
        engine = create_async_engine(url(outbox_dsn, "asyncpg"))
        async with AsyncSession(engine) as session:
            assert await emit(session, event("async session"), events=BY)  # type: ignore[misc]
            await session.commit()
        async with engine.begin() as conn:
            assert await emit(conn, event("async connection"), events=BY)  # type: ignore[misc]
        await engine.dispose()

    with context.bind(actor="user:ö"):
        engine = create_engine(url(outbox_dsn, "psycopg"))
        instrument(engine)
        with Session(engine) as session:
            assert emit(session, event("lost"), events=BY) is True
            session.rollback()
            assert emit(session, event("session"), events=BY) is True
            session.execute(text("select 1"))
            session.commit()
        with engine.begin() as conn:
            assert emit(conn, event("connection"), events=BY) is True
        engine.dispose()
        asyncio.run(run())
    assert posted(outbox_dsn) == ["session", "connection", "async session", "async connection"]


def test_django_where_a_count_of_queries_sees_the_post_alone(outbox_dsn: str) -> None:
    connect_django(outbox_dsn)
    try:
        with context.bind(actor="user:ö"):
            with CaptureQueriesContext(connection) as seen, transaction.atomic():
                assert emit(connection, event("first"), events=BY) is True
            assert len([query for query in seen if "afterwrite_outbox" in query["sql"]]) == 1
            with transaction.atomic():
                assert emit(connection, event("lost"), events=BY) is True
                transaction.set_rollback(True)
    finally:
        connections.close_all()
    assert posted(outbox_dsn) == ["first"]


def test_a_server_is_asked_once_in_a_while(outbox_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    note = known.note

    def noting(place: object, answer: str) -> Way:
        asked.append(answer)
        return note(place, answer)

    monkeypatch.setattr(known, "note", noting)
    with context.bind(actor="user:ö"):
        for action in ("a", "b", "c"):
            with psycopg.connect(outbox_dsn) as conn:
                assert emit(conn, event(action), events=BY) is True
        assert asked == ["outbox"]
        monkeypatch.setattr("afterwrite.recorder.outbox.time.monotonic", lambda: 1e12)
        with psycopg.connect(outbox_dsn) as conn:
            assert emit(conn, event("later"), events=BY) is True
    assert asked == ["outbox", "outbox"]
    assert posted(outbox_dsn) == ["a", "b", "c", "later"]
