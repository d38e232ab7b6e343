"""SQLAlchemy: whoever is bound is on the row change in the store, by Core, ORM, bulk and raw SQL, sync and async."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, create_engine, delete, exc, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from stamping_scene import Scene

from afterwrite import context
from afterwrite.integrations.sqlalchemy import instrument
from afterwrite.record import Emitted
from afterwrite.recorder.connections import emit, stamp


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    note: Mapped[str | None]


XID = text("select pg_current_xact_id_if_assigned()::text")


def url(dsn: str, driver: str) -> URL:
    told = conninfo_to_dict(dsn)
    query = {key: str(told[key]) for key in ("host", "port") if told.get(key)}
    return URL.create(
        f"postgresql+{driver}",
        username=str(told["user"]) if told.get("user") else None,
        database=str(told["dbname"]),
        query=query,
    )


def write_in_every_way(session: Session) -> None:
    """Changes of things named 1 to 8, each by an actor of its own, in one transaction."""
    with context.bind(actor="1"):
        session.add(Thing(name="1"))
        session.flush()
    with context.bind(actor="2"):
        session.add_all([Thing(name="2"), Thing(name="2")])
        session.flush()
    with context.bind(actor="3"):
        session.execute(insert(Thing), [{"name": "3"}, {"name": "3"}])
    with context.bind(actor="4"):
        session.bulk_save_objects([Thing(name="4")])
    with context.bind(actor="5"):
        session.execute(text("insert into things (name) values (:name)"), {"name": "5"})
    with context.bind(actor="6"):
        session.connection().exec_driver_sql("insert into things (name) values ('6')")
    with context.bind(actor="7"):
        session.execute(insert(Thing).values(name="7").returning(Thing.id)).scalar_one()
    with context.bind(actor="8"), session.begin_nested():
        session.add(Thing(name="8"))


WRITTEN = [(name, name) for name in ["1", "2", "2", "3", "3", "4", "5", "6", "7", "8"]]


def test_every_way_of_writing_carries_the_actor(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    engine = create_engine(url(installed_dsn, "psycopg"))
    instrument(engine)
    instrument(engine)  # once is enough, and twice does no harm
    with Session(engine) as session:
        write_in_every_way(session)
        session.commit()
        with context.bind(actor="9"):
            session.execute(update(Thing).where(Thing.name == "1").values(note="seen"))
            session.execute(delete(Thing).where(Thing.name == "2"))
        session.commit()
    engine.dispose()
    rows = scene.read()
    assert [(row["name"], row["actor_id"]) for row in rows[:10]] == WRITTEN
    assert [(row["action"], row["actor_id"]) for row in rows[10:]] == [
        ("things.update", "9"), ("things.delete", "9"), ("things.delete", "9"),
    ]  # fmt: skip


def test_savepoints_pooled_connections_and_read_only_transactions(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    engine = create_engine(url(installed_dsn, "psycopg"), pool_size=1, max_overflow=0)
    instrument(engine, writing_functions=["make"])
    with Session(engine) as session, context.bind(actor="a"):
        with session.begin_nested() as gone:
            session.add(Thing(name="gone"))
            session.flush()
            gone.rollback()
        session.add(Thing(name="1"))
        session.commit()
        session.add(Thing(name="gone"))
        session.flush()
        session.rollback()
        session.add(Thing(name="2"))
        session.flush()
        assert emit(session, Emitted(category="a", action="b.c")) is True
        session.commit()
    with engine.connect() as conn, context.bind(actor="b"):
        conn.execute(text("insert into things (name) values ('gone')"))  # the pool rolls it back
    with engine.begin() as conn:
        conn.execute(text("insert into things (name) values ('nobody')"))
    with engine.begin() as conn, context.bind(actor="c"):
        conn.execute(text("select make('3')"))
    with engine.connect() as conn, context.bind(actor="d"):
        assert conn.execute(select(Thing.name).with_for_update(read=False).limit(0)).all() == []
        conn.rollback()
        conn.execute(select(Thing.name)).all()
        assert conn.execute(XID).scalar() is None
        conn.rollback()
        reading = conn.execution_options(postgresql_readonly=True)
        stamp(reading)
        assert emit(reading, Emitted(category="a", action="b.c")) is False
        assert reading.execute(XID).scalar() is None
    engine.dispose()
    assert scene.actors() == [("1", "a"), ("2", "a"), (None, "a"), ("nobody", None), ("3", "c")]


def test_under_autocommit_a_statement_and_its_stamp_are_one_transaction(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    engine = create_engine(url(installed_dsn, "psycopg"), isolation_level="AUTOCOMMIT")
    instrument(engine)
    with engine.connect() as conn, context.bind(actor="a"):
        assert conn.execute(insert(Thing).values(name="1").returning(Thing.name)).scalar_one() == "1"
        with pytest.raises(exc.IntegrityError):
            conn.execute(text("insert into things (id, name) values (1, 'gone')"))
        conn.execute(insert(Thing), [{"name": "2"}, {"name": "2"}])
        conn.execute(text("call make_and_commit('not stamped')"))
        assert conn.execute(XID).scalar() is None
    engine.dispose()
    assert scene.actors() == [("1", "a"), ("2", "a"), ("2", "a"), ("not stamped", None)]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_asynchronous_engines_do_the_same(installed_dsn: str, driver: str) -> None:
    scene = Scene(installed_dsn)

    async def run() -> None:
        engine = create_async_engine(url(installed_dsn, driver))
        instrument(engine)
        async with AsyncSession(engine) as session:
            await session.run_sync(write_in_every_way)
            await session.commit()
            with context.bind(actor="a"):
                async with session.begin_nested() as gone:
                    session.add(Thing(name="gone"))
                    await session.flush()
                    await gone.rollback()
                session.add(Thing(name="9"))
                await session.flush()
                emitted: Any = emit(session, Emitted(category="a", action="b.c"))
                assert await emitted is True
                await session.commit()
        async with engine.connect() as conn, conn.begin():
            with context.bind(actor="b"):
                await conn.execute(text("insert into things (name) values ('10')"))
        async with engine.connect() as conn:
            with context.bind(actor="c"):
                await conn.execute(select(Thing.name))
                assert (await conn.execute(XID)).scalar() is None
            await conn.rollback()
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            with context.bind(actor="d"):
                await conn.execute(insert(Thing).values(name="11"))
                with pytest.raises(exc.IntegrityError):
                    await conn.execute(text("insert into things (id, name) values (1, 'gone')"))
                await conn.execute(insert(Thing).values(name="12"))
        await engine.dispose()

    asyncio.run(run())
    assert scene.actors() == [*WRITTEN, ("9", "a"), (None, "a"), ("10", "b"), ("11", "d"), ("12", "d")]


def test_a_key_signs_and_other_engines_are_left_alone(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    signing = create_engine(url(installed_dsn, "psycopg"), poolclass=StaticPool)
    plain = create_engine(url(installed_dsn, "psycopg"))
    instrument(signing, key="the-key-of-ours")
    with context.bind(actor="a"):
        for engine in (signing, plain):
            with engine.begin() as conn:
                conn.execute(text("insert into things (name) values ('1')"))
                if engine is plain:
                    stamp(conn)
                    conn.execute(text("insert into things (name) values ('2')"))
            engine.dispose()
    rows = scene.read(stamp_keys=("the-key-of-ours",))
    assert [(row["actor_id"], row["metadata"]) for row in rows] == [
        ("a", None), ("a", {"unsigned": True}), ("a", {"unsigned": True}),
    ]  # fmt: skip
