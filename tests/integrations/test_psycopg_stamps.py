"""psycopg: whoever is bound in the application is on the row change in the store, whatever way the row was written."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from stamping_scene import Scene, one_transaction

from afterwrite import context
from afterwrite.integrations.psycopg import AsyncConnection, Connection
from afterwrite.record import Emitted
from afterwrite.recorder.connections import emit, stamp

INSERT = "insert into things (name) values (%s)"


def xid(conn: Any) -> object:
    return psycopg.Cursor(conn).execute("select pg_current_xact_id_if_assigned()::text").fetchone()


def test_every_way_of_writing_carries_the_actor(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    with Connection.connect(installed_dsn) as conn:
        for number, write in enumerate(
            [
                lambda: conn.execute(INSERT, ["0"]),
                lambda: conn.execute("insert into things (name) values ('1')"),
                lambda: conn.execute(sql.SQL("insert into {} values (default, '2')").format(sql.Identifier("things"))),
                lambda: conn.execute(
                    b"with new as (insert into things (name) values ('3') returning 1) select * from new"
                ),
                lambda: conn.cursor().executemany(INSERT, [["4"], ["4"]]),
                lambda: conn.execute(INSERT, ("5",)),
                lambda: conn.cursor(binary=True).execute(INSERT, ["6"], prepare=True),
                lambda: list(conn.cursor().stream("insert into things (name) values ('7') returning id")),
                lambda: conn.execute("select 1; insert into things (name) values ('8'); select 2"),
                lambda: conn.execute("do $$ begin insert into things (name) values ('9'); end $$"),
                lambda: copy(conn, "10"),
                lambda: piped(conn, "11"),
            ]
        ):
            with context.bind(actor=f"user:{number}"):
                write()
            conn.commit()
        conn.cursor_factory = psycopg.ClientCursor
        with context.bind(actor="user:12"):
            assert conn.execute("insert into things (name) values (%s) returning name", ["12"]).fetchone() == ("12",)
            conn.cursor().executemany("insert into things (name) values (%s)", [["12"], ["12"]])
        conn.commit()
        conn.autocommit = True
        with context.bind(actor="user:13"):
            conn.cursor().executemany("insert into things (name) values (%s)", [["13"], ["13"]])
    assert scene.actors() == [
        (name, f"user:{name}")
        for name in ["0", "1", "2", "3", "4", "4", "5", "6", "7", "8", "9", "10", "11", "12", "12", "12", "13", "13"]
    ]


def copy(conn: Any, name: str) -> None:
    with conn.cursor().copy("copy things (name) from stdin") as rows:
        rows.write_row([name])


def piped(conn: Any, name: str) -> None:
    with conn.pipeline(), conn.transaction():
        conn.execute(INSERT, [name])


def test_outside_of_a_transaction_block_the_stamp_is_in_the_statements_own(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    with Connection.connect(installed_dsn, autocommit=True) as conn:
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with context.bind(actor="a"):
            assert conn.execute(f"{INSERT} returning name", ["1"]).fetchone() == ("1",)
            script = conn.execute("insert into things (name) values ('2'); select 'second'")
            assert script.statusmessage == "INSERT 0 1"
            assert script.nextset()
            assert script.fetchone() == ("second",)
            conn.cursor().executemany(INSERT, [["3"], ["3"]])
            copy(conn, "4")
            conn.execute("begin; insert into things (name) values ('5'); commit")
            conn.execute("call make_and_commit('6')")  # not stamped: it ends its transaction itself
            conn.cursor_factory = psycopg.ClientCursor
            assert conn.execute("insert into things (name) values (%s) returning name", ["7%s"]).fetchone() == ("7%s",)
            assert list(conn.cursor().stream("insert into things (name) values ('8') returning name")) == [("8",)]
            with conn.pipeline():
                conn.cursor_factory = psycopg.Cursor
                conn.execute(INSERT, ["9"])
                conn.execute(INSERT, ["9"])
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert one_transaction(conn, ["3"])
    names = ["1", "2", "3", "3", "4", "5", "6", "7%s", "8", "9", "9"]
    assert scene.actors() == [(name, None if name == "6" else "a") for name in names]


def test_a_stamp_that_a_savepoint_took_away_is_set_again(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    with Connection.connect(installed_dsn) as conn, context.bind(actor="a"):
        with conn.transaction(), conn.transaction():
            with conn.transaction(force_rollback=True):
                conn.execute(INSERT, ["gone"])
            conn.execute(INSERT, ["1"])
        with conn.transaction():
            conn.execute("savepoint s")
            conn.execute(INSERT, ["gone"])
            conn.execute("rollback to s")
            conn.execute(INSERT, ["2"])
            with pytest.raises(psycopg.errors.UniqueViolation), conn.transaction():
                conn.cursor().executemany("insert into things (id, name) values (%s, 'gone')", [[1000], [1000]])
            conn.execute(INSERT, ["3"])
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("insert into things (name) values (1 / 0)")
        conn.rollback()
        conn.execute(INSERT, ["4"])
    assert scene.actors() == [("1", "a"), ("2", "a"), ("3", "a"), ("4", "a")]


def test_a_context_that_changes_is_stamped_anew(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    with Connection.connect(installed_dsn) as conn:
        conn.execute(INSERT, ["nobody"])
        with context.bind(actor="a"):
            conn.execute(INSERT, ["1"])
            with context.bind(actor="b"):
                conn.execute(INSERT, ["2"])
            conn.execute(INSERT, ["3"])
        conn.execute(INSERT, ["nobody again"])
        conn.commit()
        # The next transaction of the same connection is somebody else's, or nobody's.
        conn.execute(INSERT, ["after"])
        conn.commit()
        with context.bind(actor="c"), conn.transaction():
            conn.execute(INSERT, ["4"])
        with context.bind(actor="d"), conn.transaction():
            conn.execute(INSERT, ["5"])
    assert scene.actors() == [
        ("nobody", None),
        ("1", "a"),
        ("2", "b"),
        ("3", "a"),
        ("nobody again", None),
        ("after", None),
        ("4", "c"),
        ("5", "d"),
    ]


def test_reading_is_not_stamped_and_read_only_transactions_get_no_transaction_id(installed_dsn: str) -> None:
    Scene(installed_dsn)
    with Connection.connect(installed_dsn) as conn, context.bind(actor="a"):
        conn.execute("select * from things for update")
        conn.execute("select 'insert into things'")
        conn.rollback()
        for query in (
            "select count(*) from things",
            "/* delete */ values (1)",
            "explain insert into things values (9)",
        ):
            conn.execute(query)
        assert xid(conn) == (None,)
        conn.rollback()
        conn.read_only = True
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            conn.execute(INSERT, ["1"])
        conn.rollback()
        stamp(conn)
        assert emit(conn, Emitted(category="a", action="b.c")) is False
        assert xid(conn) == (None,)


def test_a_function_that_writes_is_known_by_its_name(installed_dsn: str) -> None:
    class Ours(Connection):
        writing_functions = frozenset({"make"})

    scene = Scene(installed_dsn)
    with Connection.connect(installed_dsn) as plain, Ours.connect(installed_dsn) as ours, context.bind(actor="a"):
        plain.execute("select make('1')")
        plain.commit()
        ours.execute("select public.make('2')")
        ours.commit()
        with ours.cursor("by_server") as cursor:
            assert len(cursor.execute("select make('3')").fetchall()) == 1
        ours.commit()
    assert scene.actors() == [("1", None), ("2", "a"), ("3", "a")]


def test_one_stamp_a_transaction_goes_with_its_first_write(installed_dsn: str) -> None:
    Scene(installed_dsn)
    with psycopg.connect(installed_dsn, autocommit=True) as admin:
        admin.execute("select pg_create_logical_replication_slot('peek', 'test_decoding')")
        with Connection.connect(installed_dsn) as conn, context.bind(actor="Zoë 🦊 'quoted' \\ %s :x ?"):
            for number in range(5):
                conn.execute(INSERT, [str(number)])
            conn.commit()
        seen = admin.execute(
            "select data from pg_logical_slot_get_changes('peek', null, null) where data like 'message:%'"
        ).fetchall()
        admin.execute("select pg_drop_replication_slot('peek')")
    assert len(seen) == 1
    assert seen[0][0].isascii()


@pytest.mark.parametrize("kind", [psycopg.Connection, Connection])
def test_a_stamp_costs_no_round_trip(installed_dsn: str, tmp_path: Path, kind: type[Any]) -> None:
    """With or without it the server is asked three times: for BEGIN, for the first write, and for COMMIT."""
    Scene(installed_dsn)
    with Connection.connect(installed_dsn) as conn, context.bind(actor="a"):
        conn.execute(INSERT, ["0"])  # the first of a process asks whether its role may stamp
    with kind.connect(installed_dsn) as conn, context.bind(actor="a"), (tmp_path / "trace").open("w") as trace:
        conn.pgconn.trace(trace.fileno())
        conn.execute(INSERT, ["1"])
        conn.commit()
        conn.pgconn.untrace()
    assert (tmp_path / "trace").read_text().count("ReadyForQuery") == 3


def test_asynchronous_connections_do_the_same(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)

    async def run() -> None:
        async with await AsyncConnection.connect(installed_dsn, row_factory=dict_row) as conn:
            with context.bind(actor="a"):
                row = await (await conn.execute(f"{INSERT} returning name", ["1"])).fetchone()
                assert row == {"name": "1"}
                await conn.commit()
                async with conn.transaction():
                    async with conn.transaction(force_rollback=True):
                        await conn.execute(INSERT, ["gone"])
                    async with conn.cursor() as cursor:
                        await cursor.executemany(INSERT, [["2"], ["2"]])
                        async with cursor.copy("copy things (name) from stdin") as rows:
                            await rows.write_row(["3"])
            await conn.set_autocommit(True)
            with context.bind(actor="b"):
                await conn.execute(INSERT, ["4"])
                await conn.execute("insert into things (name) values ('5'); select 1")
                async with conn.cursor().copy("copy things (name) from stdin") as rows:
                    await rows.write_row(["6"])
                async with conn.pipeline():
                    await conn.execute(INSERT, ["7"])
                stream = conn.cursor().stream("insert into things (name) values ('8') returning name")
                assert [row async for row in stream] == [{"name": "8"}]
                await conn.cursor().executemany(INSERT, [["9"]])
                async with conn.transaction():
                    assert await emit(conn, Emitted(category="a", action="b.c")) is True  # type: ignore[misc]
            await conn.execute(INSERT, ["nobody"])

        # Each task has a context of its own, whatever connection it is given.
        async def work(number: int) -> None:
            with context.bind(actor=f"task:{number}"):
                async with await AsyncConnection.connect(installed_dsn) as own:
                    await own.execute(INSERT, [f"task {number}"])

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(work(number))

    asyncio.run(run())
    found = scene.actors()
    assert found[:11] == [
        ("1", "a"), ("2", "a"), ("2", "a"), ("3", "a"), ("4", "b"), ("5", "b"), ("6", "b"), ("7", "b"), ("8", "b"),
        ("9", "b"), (None, "b"),
    ]  # fmt: skip
    assert found[11] == ("nobody", None)
    assert sorted(found[12:]) == [(f"task {number}", f"task:{number}") for number in range(3)]


def test_an_event_on_a_connection_is_there_with_its_transaction_and_explains_it(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    id = "01890a5d-ac96-774b-bcce-b302099a8057"
    plain, ours = psycopg.connect(installed_dsn), Connection.connect(installed_dsn)
    with plain, ours, context.bind(actor="a"):
        assert emit(plain, Emitted(category="a", action="plain.event", id=id, duration_ms=1.5)) is True
        plain.execute(INSERT, ["1"])
        plain.commit()
        emit(plain, Emitted(category="a", action="never"))
        plain.rollback()
        ours.execute(INSERT, ["2"])
        with context.bind(actor="b"):
            emit(ours, Emitted(category="a", action="our.event"))
        ours.execute(INSERT, ["3"])
    rows = scene.read()
    assert [(row["action"], row["name"], row["actor_id"]) for row in rows] == [
        ("plain.event", None, "a"),
        ("things.insert", "1", "a"),
        ("things.insert", "2", "a"),
        ("our.event", None, "b"),
        ("things.insert", "3", "a"),
    ]
    assert (str(rows[0]["id"]), rows[0]["duration_ms"], str(rows[1]["caused_by"])) == (id, 1.5, id)


def test_a_key_signs_what_the_worker_then_takes_for_the_applications(installed_dsn: str) -> None:
    class Signing(Connection):
        stamp_key = "the-key-of-ours"

    scene = Scene(installed_dsn)
    with Signing.connect(installed_dsn) as signing, Connection.connect(installed_dsn) as other:
        with context.bind(actor="a"):
            signing.execute(INSERT, ["1"])
            emit(signing, Emitted(category="a", action="b.c"))
            signing.commit()
        with context.bind(actor="forged"):
            other.execute(INSERT, ["2"])
            other.commit()
    rows = scene.read(stamp_keys=("the-key-of-ours",))
    assert [(row["actor_id"], row["metadata"]) for row in rows] == [
        ("a", None), ("a", None), ("forged", {"unsigned": True}),
    ]  # fmt: skip
