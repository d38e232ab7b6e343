"""``afterwrite scan --observe | --probe | --rehearse`` as it is typed: on a terminal, for machines, and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo
from typed import typed

AUDITED = """
create table audit_log (id bigserial primary key, tab text not null, op text not null, old_row jsonb, new_row jsonb);
create table parcel (id int primary key, name text not null, weight numeric(8, 2) not null check (weight > 0));
create function log_change() returns trigger language plpgsql as $$ begin
  insert into audit_log (tab, op, old_row, new_row) values (tg_table_name, tg_op, to_jsonb(old), to_jsonb(new));
  return null;
end $$;
create trigger parcel_log after insert or update or delete on parcel for each row execute function log_change();
insert into parcel values (1, 'one', 1), (2, 'two', 2);
"""


def lay(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED.encode())


def scan(*words: str) -> subprocess.CompletedProcess[str]:
    return typed("scan", *words, env={**os.environ, "COLUMNS": "80"})


def fits(text: str) -> bool:
    """Whether what is drawn in columns fits 80 of them; sentences are left whole in a pipe."""
    return all(len(line.rstrip()) <= 80 for line in text.splitlines() if re.match(r" .*(\d %|─)", line))


def test_a_live_database_is_rehearsed_on_a_copy_and_left_alone(dsn: str) -> None:
    lay(dsn)
    done = scan("--dsn", dsn, "--rehearse", "--json")
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)["costs"]
    assert costs["origins"] == ["rehearse"]
    [trigger] = costs["triggers"]
    assert trigger["us"] > 0
    assert trigger["wal"] > 100
    assert trigger["rows"] == 1
    assert {each["event"] for each in costs["measured"][0]["units"]} == {"insert", "update", "delete"}
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select count(*) from parcel").fetchone() == (2,)


def test_who_may_only_connect_gets_verdicts_and_hears_why_nothing_could_be_rehearsed(dsn: str) -> None:
    lay(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create role scan_visitor login")
    try:
        done = scan("--dsn", conninfo.make_conninfo(dsn, user="scan_visitor"), "--rehearse", "--json")
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("drop role scan_visitor")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [each["verdict"] for each in shown["triggers"]] == ["retire"]
    [missing] = [each for each in shown["missing"] if each["rule"] == "no-rehearsal"]
    assert "permission denied" in missing["text"]
    assert "pg_read_all_data" in missing["remedy"]


def test_a_dump_gets_figures_too(tmp_path: Path) -> None:
    file = tmp_path / "structure.sql"
    file.write_text(AUDITED)
    done = scan(str(file), "--rehearse")
    assert done.returncode == 0, done.stderr
    assert re.search(r"parcel_log +– +[\d.]+ +\d+ % +\d+", done.stdout)
    assert "No write was ever counted here" in done.stdout
    assert fits(done.stdout)


def test_a_dump_cannot_be_observed(tmp_path: Path) -> None:
    file = tmp_path / "structure.sql"
    file.write_text(AUDITED)
    done = scan(str(file), "--observe", "5s")
    assert done.returncode == 2
    assert "a dump cannot be observed or probed" in done.stderr


def test_a_probe_that_nobody_confirms_is_not_run(dsn: str) -> None:
    lay(dsn)
    done = scan("--dsn", dsn, "--probe", "parcel")
    assert done.returncode == 2
    assert "will be run on" in done.stderr
    assert "add --yes" in done.stderr
    sure = scan("--dsn", dsn, "--probe", "parcel", "--yes")
    assert sure.returncode == 0, sure.stderr
    assert "probed on one row of each table" in sure.stdout
    assert fits(sure.stdout)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select count(*) from audit_log").fetchone() == (2,)


@pytest.mark.parametrize("words", [("--observe", "soon"), ("--probe", "no_such_table", "--yes")])
def test_words_that_make_no_sense_are_refused(dsn: str, words: tuple[str, ...]) -> None:
    lay(dsn)
    assert scan("--dsn", dsn, *words).returncode == 2


def test_ctrl_c_shows_what_was_seen_till_then(dsn: str) -> None:
    lay(dsn)
    command = [sys.executable, "-m", "afterwrite", "scan", "--dsn", dsn, "--observe", "10m", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        while "observing" not in (line := running.stderr.readline()):
            assert line, "it ended before it observed"
        time.sleep(1)  # it says so before its first reading
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("insert into parcel select n, 'more', 1 from generate_series(10, 40) n")
            connection.execute("select pg_stat_force_next_flush()")
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        printed, complained = running.communicate(timeout=30)
    assert running.returncode == 0, complained
    costs = json.loads(printed)["costs"]
    assert costs["interrupted"] is True
    assert costs["tables"][0]["inserted"] == 31
