"""What goes wrong at the command line: one sentence, the mending command, and the right exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from afterwrite.postgres.embedded import Server, embedded_server


def afterwrite(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "AFTERWRITE_", "DATABASE_URL"))
    }
    return subprocess.run(
        [sys.executable, "-m", "afterwrite", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
        env={**kept, "COLUMNS": "200", **environment},
    )


def refused(result: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """It ended with this code, said all of these words, and showed no traceback."""
    said = " ".join(result.stderr.split())
    assert result.returncode == code, result
    for part in parts:
        assert part in said, said
    assert "Traceback" not in said
    assert "→" in said or code == 2


def test_a_server_that_is_not_there_is_named_with_a_remedy() -> None:
    refused(afterwrite("scan", "--dsn", "host=127.0.0.1 port=1 dbname=x"), 1, "127.0.0.1:1", "cannot be reached")


def test_words_that_are_no_dsn_are_refused_without_echoing_them() -> None:
    result = afterwrite("scan", "--dsn", "postgresql://user:sec ret@[/x")
    refused(result, 1, "DSN")
    assert "sec ret" not in result.stderr


def test_a_database_that_is_not_there_is_named(server: Server) -> None:
    refused(afterwrite("scan", "--dsn", server.dsn("nowhere")), 1, "nowhere")


def test_usage_errors_exit_with_2() -> None:
    refused(afterwrite("scan", "--no-such-option"), 2, "--no-such-option")
    refused(afterwrite("migrate", "run"), 2, "--phase N or --all")
    refused(afterwrite("frobnicate"), 2, "frobnicate")


def test_a_plan_that_is_not_there_is_a_usage_error(dsn: str, tmp_path: Path) -> None:
    refused(afterwrite("migrate", "run", "--phase", "1", "--dsn", dsn, cwd=tmp_path), 2, "plan.toml", "afterwrite plan")


def test_an_unknown_key_in_the_settings_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "afterwrite.toml").write_text("dns = 'x'\n")
    refused(afterwrite("scan", cwd=tmp_path), 2, "dns", "afterwrite.toml")


def test_capture_without_an_installation_says_how_to_install(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED)
    result = afterwrite("capture", "--dsn", dsn)
    refused(result, result.returncode, "afterwrite install --apply")
    assert result.returncode in (1, 5)


def test_tail_without_an_installation_says_how_to_install(dsn: str) -> None:
    refused(afterwrite("tail", "--dsn", dsn), 1, "afterwrite install --apply")


AUDITED = """
create table public.orders (id bigint primary key, total numeric);
create table public.audit_logs (id bigserial primary key, table_name text, op text, old_data jsonb, new_data jsonb);
create function public.audit() returns trigger language plpgsql as $$
begin
  insert into public.audit_logs (table_name, op, old_data, new_data)
  values (tg_table_name, tg_op, to_jsonb(old), to_jsonb(new));
  return null;
end $$;
create trigger audit_orders after insert or update or delete on public.orders
  for each row execute function public.audit();
"""


def test_install_says_what_it_would_do_and_does_nothing(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED)
        result = afterwrite("install", "--dsn", dsn)
        assert result.returncode == 0, result
        assert "Nothing was done" in result.stdout
        assert connection.execute("select to_regclass('afterwrite.activity')").fetchone() == (None,)
        assert connection.execute("select count(*) from pg_publication").fetchone() == (0,)


def test_install_apply_then_again_has_nothing_left_to_do(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED)
    slot = "t_" + dsn.rpartition("test_")[2].split()[0]
    first = afterwrite("install", "--dsn", dsn, "--apply", AFTERWRITE_SLOT=slot)
    assert first.returncode == 0, first
    again = afterwrite("install", "--dsn", dsn, AFTERWRITE_SLOT=slot)
    assert again.returncode == 0, again
    assert "All is in place" in again.stdout


def test_a_role_without_rights_is_told_which_it_needs(dsn: str, server: Server) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED)
        connection.execute("do $$ begin create role nobody_special login; exception when duplicate_object then end $$")
    result = afterwrite("install", "--dsn", dsn.replace("user=postgres", "user=nobody_special"), "--apply")
    refused(result, 5, "nobody_special")


def test_a_table_without_identity_is_refused_before_its_updates_would_fail(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED.replace("id bigint primary key", "id bigint"))
        connection.execute("alter table public.orders replica identity nothing")
        result = afterwrite("install", "--dsn", dsn)
        assert connection.execute("select count(*) from pg_publication").fetchone() == (0,)
    assert "public.orders" in result.stdout + result.stderr


def test_a_wal_level_that_is_too_low_is_refused_with_the_setting_to_change() -> None:
    with embedded_server(settings={"wal_level": "replica", "fsync": "off"}) as low:
        with psycopg.connect(low.dsn(), autocommit=True) as connection:
            connection.execute(AUDITED)
        refused(afterwrite("install", "--dsn", low.dsn(), "--apply"), 5, "wal_level")


def test_no_free_slot_is_refused() -> None:
    with embedded_server(settings={"max_replication_slots": "1", "fsync": "off"}) as full:
        with psycopg.connect(full.dsn(), autocommit=True) as connection:
            connection.execute(AUDITED)
            connection.execute("select pg_create_physical_replication_slot('other')")
        refused(afterwrite("install", "--dsn", full.dsn(), "--apply"), 5, "slot")


@pytest.mark.parametrize("words", [["--help"], ["scan", "--help"], ["migrate", "--help"], ["migrate", "run", "--help"]])
def test_help_fits_eighty_columns(words: list[str]) -> None:
    result = afterwrite(*words, COLUMNS="80")
    assert result.returncode == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
