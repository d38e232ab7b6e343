"""``afterwrite scan`` as a stranger meets it: on a terminal, for machines, for CI, and with hardly any privilege."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo
from test_bad_input import AUDITED, CHANGED, afterwrite, refused

from afterwrite.demo.schema import create_legacy_application
from afterwrite.postgres import Database, connect, statement
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.scan.report.document import ScanDocument, document
from afterwrite.scan.survey import Survey, survey


def laid(dsn: str, script: str = AUDITED) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script.encode())


def many(tables: int) -> str:
    """So many tables with an audit trigger each, and on every tenth one that nobody can read."""
    made = [
        AUDITED,
        "create function public.odd() returns trigger language plpgsql as "
        "$$ begin execute tg_argv[0] || new.id; return null; end $$;",
    ]
    for number in range(tables):
        made.append(
            f"create table public.t{number} (id int primary key);"
            f"create trigger log after insert on public.t{number} for each row execute function public.audit();"
        )
        if number % 10 == 0:
            made.append(
                f"create trigger odd after insert on public.t{number} for each row execute function public.odd();"
            )
    return "\n".join(made)


def scan(dsn: str, *words: str, **environment: str) -> str:
    done = afterwrite("scan", "--dsn", dsn, *words, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demos_triggers_fit_eighty_columns_and_end_with_the_next_step(dsn: str) -> None:
    async def lay() -> None:
        async with connect(dsn) as db:
            await create_legacy_application(db, seed=1)

    asyncio.run(lay())
    said = scan(dsn, COLUMNS="80")
    listed, _, rest = said.partition("warning")
    assert max(map(len, listed.splitlines())) <= 80
    assert len(re.findall(r"(?m)^   \w+ +(retire|defer|keep) ", listed)) == 86
    assert "86 triggers on 18 tables of " in rest
    assert re.search(r"46 retire .*\n +18 defer .*\n +22 keep ", rest)
    assert "Next: afterwrite plan" in rest


def test_very_many_triggers_are_told_by_what_they_have_in_common(dsn: str) -> None:
    laid(dsn, many(400))
    said = scan(dsn, COLUMNS="80")
    assert len(said.splitlines()) < 70
    assert max(map(len, said.partition("warning")[0].splitlines())) <= 80
    # What cannot be known stands first.
    assert re.search(r"review +dynamic-sql +40 +40 +1 +public\.odd\(\)", said)
    assert re.search(r"retire +appends-to-log +401 +401 +1 +public\.audit\(\)", said)
    assert said.index("public.odd()") < said.index("public.audit()")
    assert re.search(r"t0 +1 +· +· +1", said)
    assert "Next: afterwrite scan --explain" in said
    assert len(scan(dsn, "--all", COLUMNS="80").splitlines()) > 800


def test_machines_get_one_document_that_keeps_its_schema(dsn: str) -> None:
    laid(dsn)
    said = json.loads(scan(dsn, "--json"))
    assert said["schema_version"] == 1
    assert said["counts"] == {"retire": 1, "defer": 0, "review": 0, "keep": 0}
    [trigger] = said["triggers"]
    assert (trigger["table"], trigger["name"], trigger["verdict"]) == ("orders", "audit_orders", "retire")
    [phase] = [phase for phase in said["phases"] if phase["retire"]]
    assert phase["retire"] == ["public.orders.audit_orders"]


def test_markdown_and_html_are_written_for_tickets(dsn: str, tmp_path: Path) -> None:
    laid(dsn)
    page = scan(dsn, "--markdown")
    assert page.startswith("## Triggers of ")
    assert "`appends-to-log, line 3`" in page
    done = afterwrite("scan", "--dsn", dsn, "--html", "report.html", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "written to report.html" in done.stderr
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    refused(afterwrite("scan", "--dsn", dsn, "--html", "no/report.html", cwd=tmp_path), 2, "cannot be written")
    refused(afterwrite("scan", "--dsn", dsn, "--json", "--markdown"), 2, "ask for one of them")


def test_one_trigger_is_explained_line_by_line(dsn: str) -> None:
    laid(dsn)
    said = scan(dsn, "--explain", "orders.audit_orders")
    assert "   3 ▶   insert into public.audit_logs" in said
    assert "◀ appends-to-log" in said
    assert "   5     return null;" in said
    assert "needs replica identity: it looks at the whole old row" in said
    told = json.loads(scan(dsn, "--explain", "audit_orders", "--json"))
    assert told["trigger"]["verdict"] == "retire"
    assert [line["number"] for line in told["passages"][0]["lines"] if line["rules"]] == [3]
    refused(afterwrite("scan", "--dsn", dsn, "--explain", "nothing"), 2, "0 triggers are called nothing")


def test_a_name_steers_neither_the_terminal_nor_its_markup(dsn: str) -> None:
    laid(dsn, AUDITED + 'create trigger "\x1b[2J[bold]" after insert on orders for each row execute function audit();')
    for words in ((), ("--explain", "orders.\x1b[2J[bold]"), ("--markdown",)):
        said = scan(dsn, *words)
        assert "\x1b" not in said
        assert "\\x1b" in said
        assert "bold" in said


# Drift ---------------------------------------------------------------------------------------------------------------


def drift(dsn: str, folder: Path) -> list[tuple[str, str]]:
    done = afterwrite("scan", "--check", "plan.toml", "--json", "--dsn", dsn, cwd=folder)
    said = json.loads(done.stdout)
    assert done.returncode == (4 if said["drift"] else 0), done.stderr
    return [(each["rule"], each["where"]) for each in said["drift"]]


def test_ci_learns_what_moved_away_from_the_plan(dsn: str, tmp_path: Path) -> None:
    laid(dsn, AUDITED + "create table public.invoices (id int primary key);")
    assert afterwrite("plan", "--dsn", dsn, cwd=tmp_path).returncode == 0
    assert drift(dsn, tmp_path) == []
    unmoved = afterwrite("scan", "--check", "plan.toml", "--dsn", dsn, cwd=tmp_path)
    assert (unmoved.returncode, unmoved.stdout.strip()) == (0, "plan.toml says what the database says.")
    orders = "public.orders.audit_orders"
    laid(dsn, "create trigger log after insert on public.invoices for each row execute function public.audit();")
    assert drift(dsn, tmp_path) == [("plan.new", "public.invoices.log")]
    laid(dsn, "drop trigger log on public.invoices; alter table public.orders disable trigger audit_orders;")
    assert drift(dsn, tmp_path) == [("plan.enabled", orders)]
    laid(dsn, "alter table public.orders enable trigger audit_orders;" + CHANGED)
    assert drift(dsn, tmp_path) == [("plan.changed", orders)]
    laid(dsn, "drop trigger audit_orders on public.orders")
    assert drift(dsn, tmp_path) == [("plan.gone", orders)]
    told = afterwrite("scan", "--check", "plan.toml", "--dsn", dsn, cwd=tmp_path, COLUMNS="80")
    assert told.returncode == 4
    assert re.search(r"gone +public\.orders\.audit_orders +in the plan", told.stdout)
    drawn = [line for line in told.stdout.splitlines() if not line.startswith("→")]  # a remedy is left whole
    assert max(map(len, drawn)) <= 80


def test_a_function_that_many_share_has_changed_once(dsn: str, tmp_path: Path) -> None:
    laid(dsn, many(30))
    assert afterwrite("plan", "--dsn", dsn, cwd=tmp_path).returncode == 0
    laid(dsn, CHANGED)
    told = afterwrite("scan", "--check", "plan.toml", "--dsn", dsn, cwd=tmp_path)
    assert told.returncode == 4
    assert told.stdout.count("its function public.audit() was changed after the plan was written") == 1
    assert "and 25 more" in told.stdout


def test_what_a_migration_turned_off_is_no_drift(installed_dsn: str, tmp_path: Path) -> None:
    laid(installed_dsn, AUDITED)
    assert afterwrite("plan", "--dsn", installed_dsn, cwd=tmp_path).returncode == 0
    laid(
        installed_dsn,
        """
        alter table public.orders disable trigger audit_orders;
        with made as (insert into afterwrite.migration (id, plan) values (1, '') returning id)
        insert into afterwrite.ledger (migration, phase, action, subject, before, after, actor, sql)
        select id, 1, action, 'public.orders.audit_orders', before, after, 'us', 'alter table'
          from made, (values ('trigger.backup', '{}'::jsonb, null::jsonb),
                             ('trigger.silence', null, '{"mode": "retire"}')) as deed (action, before, after);
        """,
    )
    assert drift(installed_dsn, tmp_path) == []


def test_a_plan_that_is_not_there_is_a_usage_error(dsn: str, tmp_path: Path) -> None:
    refused(afterwrite("scan", "--check", "plan.toml", "--dsn", dsn, cwd=tmp_path), 2, "there is no plan")


# Few privileges ------------------------------------------------------------------------------------------------------

NOBODY = """
do $$ begin create role scan_nobody login; exception when duplicate_object then end $$;
create schema app;
create table app.account (id int primary key, v text, w text);
create table app.account_log (id bigserial primary key, table_name text, op text, row jsonb);
create table app.total (id int primary key, v int);
create function app.touch() returns trigger language plpgsql as $$ begin new.w := now(); return new; end $$;
create function app.log() returns trigger language plpgsql set search_path = app as $$
begin
  insert into account_log (table_name, op, row) values (tg_table_name, tg_op, to_jsonb(new));
  return null;
end $$;
create function app.sum() returns trigger language plpgsql as $$
begin
  update app.total set v = v + 1;
  return null;
end $$;
create trigger touch before insert or update on app.account for each row execute function app.touch();
create trigger log after insert or update on app.account for each row execute function app.log();
create trigger sum after insert on app.account for each row execute function app.sum();
revoke all on schema app, public from public;
revoke all on all tables in schema app from public;
revoke all on all functions in schema app from public;
"""


def surveyed(dsn: str) -> Survey:
    async def look() -> Survey:
        async with connect(dsn) as db:
            return await survey(db)

    return asyncio.run(look())


def verdicts(found: Survey) -> dict[str, str]:
    return {each.trigger.name: each.verdict.value for each in found.judgements}


def test_a_role_without_rights_gets_the_same_verdicts_and_hears_what_it_misses(dsn: str) -> None:
    laid(dsn, NOBODY)
    nobody = conninfo.make_conninfo(dsn, user="scan_nobody")
    with psycopg.connect(nobody) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select from app.account")
    assert verdicts(surveyed(nobody)) == verdicts(surveyed(dsn)) == {"log": "retire", "sum": "defer", "touch": "keep"}
    few, all_ = (json.loads(scan(words, "--json")) for words in (nobody, dsn))
    assert [each["reasons"] for each in few["triggers"]] == [each["reasons"] for each in all_["triggers"]]
    missing = {each["rule"]: each["remedy"] for each in few["missing"]}
    assert missing["statistics-hidden"] == "GRANT pg_read_all_stats TO scan_nobody;"
    assert "statistics-hidden" not in {each["rule"] for each in all_["missing"]}
    said = scan(nobody, COLUMNS="80")
    assert "Figures that are missing (no verdict depends on them)" in said
    assert "GRANT pg_read_all_stats TO scan_nobody;" in said


def test_statistics_of_statements_that_may_not_be_read_are_named_with_their_grant(dsn: str) -> None:
    laid(dsn, NOBODY)
    nobody = conninfo.make_conninfo(dsn, user="scan_nobody")

    def remedy() -> str:
        said = json.loads(scan(nobody, "--json"))["missing"]
        return next((each["remedy"] for each in said if each["rule"] == "no-statement-statistics"), "")

    before = remedy()
    if "shared_preload_libraries" in before:
        pytest.skip("this server has no pg_stat_statements")
    assert before == "CREATE EXTENSION pg_stat_statements;"
    laid(dsn, "create schema odd; create extension pg_stat_statements schema odd; revoke all on schema odd from public")
    grants = remedy()
    assert grants.startswith("GRANT USAGE ON SCHEMA odd TO scan_nobody; GRANT SELECT ON odd.pg_stat_statements")
    laid(dsn, grants)
    assert remedy() == ""


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_read_only = on",
        "statement_timeout = 1000",
        "lock_timeout = 1",
        "idle_in_transaction_session_timeout = 1000",
        "search_path = app",
        "default_transaction_isolation = 'serializable'",
    ],
)
def test_what_a_role_is_set_to_does_not_disturb(dsn: str, setting: str) -> None:
    laid(dsn, NOBODY)
    nobody = conninfo.make_conninfo(dsn, user="scan_nobody")
    try:
        laid(dsn, f"alter role scan_nobody set {setting}")
        assert verdicts(surveyed(nobody)) == {"log": "retire", "sum": "defer", "touch": "keep"}
    finally:
        laid(dsn, "alter role scan_nobody reset all")


def test_nothing_is_left_in_a_session_that_a_pooler_hands_on(dsn: str) -> None:
    laid(dsn, NOBODY)
    settings = (
        "select name, setting from pg_settings where source = 'session' and name !~ '^transaction_' order by name"
    )

    async def look() -> tuple[list[Any], list[Any], str]:
        async with connect(dsn) as db:
            before = await db.rows(dict, settings)
            document(await survey(db))
            return before, await db.rows(dict, settings), db.connection.info.transaction_status.name

    before, after, status = asyncio.run(look())
    assert after == before
    assert status == "IDLE"


class Disturbed(Database):
    """A connection beside which somebody alters the schema, right before a statement is sent."""

    def __init__(self, plain: Database, before: bytes, script: str, dsn: str, times: int) -> None:
        super().__init__(plain.connection)
        self.before, self.script, self.dsn, self.times = before, script, dsn, times

    async def rows(self, row: Any, query: Any, **params: object) -> list[Any]:
        if query == self.before and self.times:
            self.times -= 1
            laid(self.dsn, self.script)
        return await super().rows(row, query, **params)


def disturbed(dsn: str, before: str, script: str, times: int = 1) -> Survey:
    async def look() -> Survey:
        async with connect(dsn) as db:
            return await survey(Disturbed(db, statement(f"scan.{before}"), script, dsn, times))

    return asyncio.run(look())


def test_tables_and_functions_that_are_dropped_meanwhile_do_no_harm(dsn: str) -> None:
    laid(dsn, NOBODY)
    intended = {"log": "retire", "sum": "defer", "touch": "keep"}
    other = """
        create table app.other (id int primary key, v int, w int default length(current_user));
        create trigger other after insert on app.other for each row execute function app.log();
    """
    laid(dsn, other)
    found = disturbed(dsn, "read_triggers", "drop table app.other")
    assert verdicts(found) == intended
    assert [each.where for each in found.findings if each.rule == "vanished"] == ["app.other.other"]
    # Of a check the server cannot even say that it is gone: the whole is read again.
    laid(dsn, other + "alter table app.other add check (v > 0)")
    found = disturbed(dsn, "read_constraints", "drop table app.other")
    assert verdicts(found) == intended
    assert [each.where for each in found.findings if each.rule == "vanished"] == []
    laid(dsn, "create function app.helper() returns int language sql begin atomic select 1; end")
    found = disturbed(dsn, "read_functions", "drop function app.helper()")
    assert [each.where for each in found.findings if each.rule == "vanished"] == ["app.helper()"]
    found = disturbed(dsn, "read_constraints", "drop schema app cascade")
    assert verdicts(found) == intended


def test_a_table_that_somebody_holds_is_not_waited_for_long_and_is_named(dsn: str) -> None:
    laid(dsn, NOBODY + "alter table app.total alter v set default length(current_user)")
    with psycopg.connect(dsn) as holder:
        holder.execute("lock table app.account, app.total in access exclusive mode")
        began = time.monotonic()
        result = afterwrite("scan", "--dsn", dsn)
        taken = time.monotonic() - began
        refused(result, 1, "app.account, app.total", f"session {holder.info.backend_pid}")
    assert taken < 30, "it waits for a lock for seconds, and not for as long as somebody holds it"


@contextmanager
def standby() -> Iterator[tuple[Server, str]]:
    """A server that recovers for ever, which is what a hot standby is."""
    with embedded_server(settings={"fsync": "off"}) as server:
        laid(server.dsn(), NOBODY)
        server.stop()
        (server.data_dir / "standby.signal").touch()
        server.start()
        yield server, server.dsn(user="scan_nobody")


def test_a_standby_is_scanned_and_says_what_it_does_not_count() -> None:
    with standby() as (server, dsn):
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("select pg_is_in_recovery()").fetchone() == (True,)
        said = json.loads(scan(dsn, "--json"))
        assert {each["name"]: each["verdict"] for each in said["triggers"]} == {
            "log": "retire",
            "sum": "defer",
            "touch": "keep",
        }
        assert {"standby", "statistics-hidden"} <= {each["rule"] for each in said["missing"]}


def test_the_document_of_a_survey_holds_all_of_it(dsn: str) -> None:
    laid(dsn)
    assert isinstance(document(surveyed(dsn)), ScanDocument)
