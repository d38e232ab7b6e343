"""What the database stamps for writers that cannot be changed: PostgREST's pre-request function, and the trigger."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from stamping_scene import Scene

from afterwrite import context
from afterwrite.capture.stamping import StampStep, apply_steps, plan_install, plan_remove
from afterwrite.errors import AfterwriteError
from afterwrite.integrations.psycopg import Connection
from afterwrite.postgres import LockPolicy, connect
from afterwrite.scan.survey import survey

CLAIMS = '{"sub": "7", "role": "authenticated", "session_id": "s1", "app_metadata": {"tenant_id": "acme"}}'
HEADERS = (
    '{"user-agent": "browser", "x-request-id": "r1", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b71-01"}'
)


def request(conn: psycopg.Connection, sql: str, *, claims: str = CLAIMS, reads: bool = False) -> object:
    """A request as PostgREST runs it: settings, the pre-request function, the statement, in one transaction."""
    with conn.transaction():
        conn.execute(f"set transaction read {'only' if reads else 'write'}".encode())
        conn.execute(
            "select set_config('request.jwt.claims', %s, true), set_config('request.headers', %s, true)",
            [claims, HEADERS],
        )
        conn.execute("set local role reader")
        conn.execute("select afterwrite_stamp.pre_request()")
        conn.execute(sql.encode())
        row = conn.execute("select pg_current_xact_id_if_assigned()::text").fetchone()
        assert row is not None
        return row[0]


def install(dsn: str, *tables: str, postgrest: bool = False) -> list[StampStep]:
    async def run() -> list[StampStep]:
        async with connect(dsn) as db:
            steps = await plan_install(db, postgrest=postgrest, tables=tables)
            await apply_steps(db, steps, policy=LockPolicy())
            return steps

    return asyncio.run(run())


def test_the_pre_request_function_stamps_requests_that_write(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    for _ in range(2):  # again lays it anew
        install(installed_dsn, postgrest=True)
    with psycopg.connect(installed_dsn, autocommit=True) as conn:
        conn.execute("create role reader; grant all on things to reader")
        try:
            request(conn, "insert into things (name) values ('1')")
            assert request(conn, "select * from things", reads=True) is None
            assert request(conn, "select 1", claims="") is None
            request(conn, "insert into things (name) values ('nobody')", claims="")
            request(conn, "insert into things (name) values ('2')", claims='{"role": "anon"}')
            request(conn, "insert into things (name) values ('broken')", claims="{broken")
        finally:
            conn.execute("drop owned by reader; drop role reader")
    rows = scene.read()
    assert [(row["name"], row["actor_id"], row["actor_type"]) for row in rows] == [
        ("1", "7", "authenticated"), ("nobody", None, None), ("2", "anon", "anon"), ("broken", None, None),
    ]  # fmt: skip
    first = rows[0]
    assert (first["tenant_id"], first["session_id"], first["request_id"]) == ("acme", "s1", "r1")
    assert (first["user_agent"], first["trace_id"]) == ("browser", "0af7651916cd43dd8448eb211c80319c")
    with psycopg.connect(installed_dsn) as conn:
        kept = conn.execute("select settings ->> 'request.jwt.claims' from afterwrite.transaction_context order by xid")
        assert kept.fetchone() == (CLAIMS,)


def test_the_trigger_stamps_once_a_transaction_what_nobody_else_stamped(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    steps = install(installed_dsn, "things", "public.parts")
    assert [step.table for step in steps][-2:] == ["public.things", "public.parts"]
    assert install(installed_dsn, "things")[-1].table is None
    with psycopg.connect(installed_dsn, application_name="old program") as conn:
        conn.execute("insert into things (name) values ('1')")
        conn.execute("insert into parts (name) values ('2')")
        conn.commit()
        conn.execute(f"set local request.jwt.claims = '{CLAIMS}'".encode())
        conn.execute("insert into things (name) values ('3')")
        conn.execute('set local request.jwt.claims = \'{"sub": "8"}\'')
        conn.execute("update things set note = 'seen' where name = '3'")
        conn.commit()
        user = conn.info.user
    with Connection.connect(installed_dsn) as ours, context.bind(actor="application"):
        ours.execute("insert into things (name) values ('4')")
    with psycopg.connect(installed_dsn, autocommit=True) as conn:
        conn.execute("set afterwrite.stamped = '700 left by somebody'")  # of another transaction
        conn.execute("insert into things (name) values ('5')")
    rows = scene.read()
    assert [(row["name"], row["actor_id"], row["actor_type"]) for row in rows] == [
        ("1", user, "database_role"), ("2", user, "database_role"), ("3", "7", "authenticated"), ("3", "8", None),
        ("4", "application", None), ("5", user, "database_role"),
    ]  # fmt: skip
    with psycopg.connect(installed_dsn, autocommit=True) as conn:
        kept = conn.execute("select settings ->> 'application_name' from afterwrite.transaction_context order by xid")
        assert kept.fetchone() == ("old program",)


def test_scan_does_not_judge_our_own_trigger(installed_dsn: str) -> None:
    Scene(installed_dsn)
    install(installed_dsn, "things")

    async def run() -> int:
        async with connect(installed_dsn) as db:
            return len((await survey(db)).judgements)

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("no_such_table", "there is no table no_such_table"),
        ("pg_catalog.pg_class", "is no table that people write to"),
        ("afterwrite.activity", "is no table that people write to"),
        ("a.b.c; drop", "there is no table a.b.c; drop"),
    ],
)
def test_what_cannot_be_stamped_is_refused_in_a_sentence(installed_dsn: str, table: str, said: str) -> None:
    with pytest.raises(AfterwriteError, match=said):
        install(installed_dsn, table)


def test_what_is_not_named_is_not_installed(dsn: str) -> None:
    with pytest.raises(AfterwriteError, match="nothing to install was named"):
        install(dsn)


def test_removing_is_refused_where_requests_would_fail(installed_dsn: str) -> None:
    async def plan() -> list[str]:
        async with connect(installed_dsn) as db:
            return [step.sql for step in await plan_remove(db, tables=[])]

    install(installed_dsn, postgrest=True)
    with psycopg.connect(installed_dsn, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f"alter database {name} set pgrst.db_pre_request = 'afterwrite_stamp.pre_request'".encode())
        with pytest.raises(AfterwriteError, match="before each request") as refused:
            asyncio.run(plan())
        assert refused.value.remedy == (
            f"run ALTER DATABASE {name} RESET pgrst.db_pre_request; NOTIFY pgrst, 'reload config'"
        )
        conn.execute(f"alter database {name} reset pgrst.db_pre_request".encode())
    assert asyncio.run(plan())[-1] == "drop schema if exists afterwrite_stamp"
