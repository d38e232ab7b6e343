"""A dump that wants everything gets nothing: every wall by itself, and all of them together."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from afterwrite.postgres import connect
from afterwrite.scan.dump import LoadedDump, loaded_dump
from afterwrite.scan.dump.sorting import Deed, first_word, sort_statement
from afterwrite.scan.survey import Survey, survey

HOSTILE = Path(__file__).parent / "dumps" / "hostile.sql"


class After:
    """What is to be seen once the hostile dump is loaded."""

    def __init__(self) -> None:
        self.loaded: LoadedDump
        self.before: dict[str, list[Any]]
        self.after: dict[str, list[Any]]
        self.rows: dict[str, int] = {}
        self.tried: dict[str, str] = {}
        self.survey: Survey
        self.files: list[Path]
        self.connections = 0
        self.configuration = ""


_STATE = {
    "settings": "select name || '=' || setting from pg_settings where source not in ('client', 'session')"
    " and name !~ 'pid|data_directory|config_file|hba_file|ident_file|unix_socket' order by 1",
    "superusers": "select rolname from pg_roles where rolsuper order by 1",
    "databases": "select datname from pg_database order by 1",
    "role settings": "select setconfig::text from pg_db_role_setting",
    "members": "select member::regrole::text from pg_auth_members where member::regrole::text = 'dump_owner'",
    "large objects": "select oid::text from pg_largeobject_metadata",
    "event triggers": "select evtname from pg_event_trigger",
    "subscriptions": "select subname from pg_subscription",
    "user mappings": "select umid::text from pg_user_mappings",
    "tablespaces": "select spcname from pg_tablespace order by 1",
    "prepared": "select gid from pg_prepared_xacts",
    "catalog functions": "select proname from pg_proc where pronamespace = 'pg_catalog'::regnamespace"
    " and proowner <> 'postgres'::regrole",
    "libraries": "select proname from pg_proc where probin is not null and probin !~ '^.libdir/(plpgsql|dict_snowball)'"
    " and pronamespace <> 'pg_catalog'::regnamespace",
    "wrappers with a handler": "select fdwname from pg_foreign_data_wrapper where fdwhandler <> 0",
    "extensions": "select extname from pg_extension",
}


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> After:
    folder = tmp_path_factory.mktemp("hostile")
    folder.chmod(0o777)
    found = After()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        text = HOSTILE.read_text().replace("MARKER", f"{folder}/MARKER")
        text = text.replace("port=9", f"port={listening.getsockname()[1]}").replace("port '9'", "port '1'")
        dump = folder / "hostile.sql"
        dump.write_text(text)

        async def load() -> None:
            async with loaded_dump(str(dump)) as loaded:
                found.loaded = loaded
                async with connect(loaded.dsn, guarded=True, options={"statement_timeout": "5s"}) as db:
                    found.survey = await survey(db)
                    for attempt in _ATTEMPTS:
                        complaint = await db.attempt(attempt.replace("MARKER", f"{folder}/MARKER"))
                        found.tried[attempt] = complaint.message if complaint else "done"
                async with connect(loaded.admin, guarded=True) as db:
                    found.after = {name: await db.values(query.encode()) for name, query in _STATE.items()}
                    tables = await db.values(
                        b"select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'm')"
                        b" and c.relispopulated and c.relowner = 'dump_owner'::regrole"
                    )
                    found.rows = {name: await db.value(f"select count(*) from {name}".encode()) for name in tables}
                found.configuration = (loaded.server.data_dir / "postgresql.auto.conf").read_text()

        async def load_nothing() -> None:
            empty = folder / "hostile.sql.empty"
            empty.write_text("create schema trap;")
            async with loaded_dump(str(empty)) as loaded, connect(loaded.admin, guarded=True) as db:
                found.before = {name: await db.values(query.encode()) for name, query in _STATE.items()}

        asyncio.run(load())
        asyncio.run(load_nothing())
        with contextlib.suppress(BlockingIOError):
            listening.accept()
            found.connections += 1
    found.files = [path for path in folder.iterdir() if "MARKER" in path.name]
    return found


# As the dump's role, past the sorter: what only the server's own walls hold back.
_ATTEMPTS = {
    "select trap.number(1)": "permission denied for function",
    "select trap.mark('x')": "permission denied for function",
    "select trap.definer()": "permission denied for function",
    "select trap.inlined(1)": "permission denied for function",
    "select trap.standard()": "permission denied for function",
    "select '{called}'::trap.checked[]": "permission denied for function",
    "select '{1}'::trap.operated[]": "permission denied for function",
    "select OPERATOR(trap.===) 1": "permission denied for function",
    "select trap.system('touch MARKER-system')": "permission denied for function",
    "insert into public.accounts (id, slept) values (1, '')": "null value in cached tuple|null probin",
    "copy (select 1) to program 'touch MARKER-direct'": "permission denied|must be superuser",
    "copy (select 1) to 'MARKER-direct'": "permission denied|must be superuser",
    "select pg_read_file('/etc/passwd')": "permission denied",
    "select lo_import('/etc/passwd')": "permission denied",
    "set role postgres": "permission denied",
    "set session authorization postgres": "permission denied",
    "create role another": "permission denied",
    "create database another": "permission denied",
    "alter system set archive_command = 'x'": "permission denied",
    "load '/tmp/evil.so'": "permission denied|access to library",
    "create function c() returns int language c as 'x', 'y'": "permission denied",
    "create language evil handler plpgsql_call_handler": "permission denied|must be superuser",
    "create event trigger e on ddl_command_start execute function trap.definer()": "permission denied",
    "create extension dblink": "permission denied",
    "set session_preload_libraries = 'x'": "permission denied",
    "select 1; select 2": "multiple commands",
    "select pg_terminate_backend(1)": "",
}


def test_no_file_is_written_and_no_program_started(after: After) -> None:
    assert after.files == []


def test_nobody_is_connected_to(after: After) -> None:
    assert after.connections == 0


def test_the_server_is_as_it_was(after: After) -> None:
    # The name of the file is that of the database.
    names = {name: [value for value in values if "hostile" not in str(value)] for name, values in after.after.items()}
    before = {name: [value for value in values if "hostile" not in str(value)] for name, values in after.before.items()}
    assert names == before
    assert names["superusers"] == ["postgres"]
    assert names["extensions"] == ["plpgsql"]
    assert "archive" not in after.configuration


def test_no_function_of_the_dump_was_called(after: After) -> None:
    assert "CALLED" not in msgspec.json.encode(after.loaded.report).decode()
    assert after.rows
    assert set(after.rows.values()) == {0}


@pytest.mark.parametrize("attempt", _ATTEMPTS)
def test_the_role_may_do_nothing_even_if_a_statement_came_through(after: After, attempt: str) -> None:
    words = _ATTEMPTS[attempt]
    said = after.tried[attempt]
    assert said != "done" or not words, said
    assert any(word in said for word in words.split("|")), said


def test_every_statement_is_accounted_for(after: After) -> None:
    report = after.loaded.report
    refused = {each.kind for each in report.of(Deed.REFUSED)}
    assert refused >= {
        *("psql \\!", "psql \\copy", "psql \\i", "psql \\ir", "psql \\o", "psql \\w", "psql \\gexec", "psql \\g"),
        *("psql \\gset", "psql \\setenv", "COPY", "DO", "CALL", "EXPLAIN", "PREPARE", "EXECUTE", "LOAD", "WITH"),
        *("SELECT", "VALUES", "TABLE", "CREATE TABLE AS", "CREATE TABLE … PARTITION OF", "CREATE EVENT TRIGGER"),
        *("ALTER TABLE … ATTACH PARTITION", "CREATE AGGREGATE", "SET ROLE", "SET SESSION AUTHORIZATION"),
        *("ALTER SYSTEM SET", "CREATE TABLESPACE", "ALTER EXTENSION", "CREATE USER MAPPING", "IMPORT", "LISTEN"),
        *("CREATE SUBSCRIPTION", "CREATE TYPE (base)", "CREATE OPERATOR CLASS", "CREATE CONVERSION", "NOTIFY"),
        *("CREATE TRANSFORM", "CREATE ACCESS METHOD", "CREATE TEXT SEARCH TEMPLATE", "DROP SCHEMA", "DROP DATABASE"),
        *("CREATE SCHEMA", "LOCK", "SET session_preload_libraries", "SET dynamic_library_path"),
    }
    assert {name.split(".")[-1] for name in report.missing_extensions} >= {"dblink", "file_fdw", "adminpack"}
    why = {each.line: each.why for each in report.not_loaded}
    line = {text.split("(")[0].strip(): number for number, text in enumerate(HOSTILE.read_text().split("\n"), 1)}
    assert "set_config()" in why[line["CREATE DOMAIN trap.setting AS text CHECK"]]
    for index in ("folded ON public.accounts", "inlined ON public.accounts"):
        assert "permission denied for function" in why[line[f"CREATE INDEX {index}"]]


def test_nothing_that_is_told_steers_a_terminal(after: After) -> None:
    told = [finding.text for finding in after.loaded.report.findings()]
    told += [each.why for each in after.loaded.report.not_loaded] + [each.kind for each in after.loaded.report.left_out]
    assert all(text.isprintable() for text in told)


def test_the_one_honest_trigger_among_them_is_judged(after: After) -> None:
    verdicts = {each.trigger.name: each.verdict.value for each in after.survey.judgements}
    assert verdicts == {"audited": "retire", "library": "review"}


def test_words_in_quotes_stay_words(after: After) -> None:
    comments = {each.trigger.name: each.trigger.comment for each in after.survey.judgements}
    assert comments["library"] == "a'; DO $x$ begin perform pg_sleep(600); end $x$; -- "


@pytest.mark.parametrize(
    "text",
    [
        "create table t (a int) as select 1",
        "select 1 union select set_config('search_path', '', false)",
        "select set_config('search_path', '', false) from pg_sleep(9)",
        "select set_config('search_path', '', false) where pg_sleep(9) is null",
        "select set_config('search_path', (select 'x'), false)",
        "select public.set_config('role', 'postgres', false)",
        "copy t (a) from program 'touch x'",
        "copy (select 1) to stdout",
        "(select 1)",
        "create table t partition of p for values in ((select 1))",
        "create table t partition of p for values with (modulus 4, remainder 0) partition by range (f(1))"
        + "; select 1",
        "alter table p attach partition t for values from (now()) to (maxvalue)",
        "create schema s create table t (a int)",
        "create function f() returns int support s language sql as 'select 1'",
        "create procedural language evil handler f; drop table t",
        "alter table all in tablespace a set tablespace b",
        "create user mapping for public server s",
        "set session authorization default",
        "reset session authorization",
        "alter event trigger e enable",
        "alter subscription s refresh publication",
        "drop owned by postgres cascade",
        "security definer",
        "",
        "\\",
    ],
)
def test_only_what_is_on_the_list_is_run(text: str) -> None:
    answer = first_word(text) or sort_statement(text)
    assert answer.deed in (Deed.REFUSED, Deed.UNREADABLE, Deed.NEEDLESS), answer
    assert not answer.text
