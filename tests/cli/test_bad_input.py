"""What goes wrong at the command line: one sentence, the mending command, and the right exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from typed import typed

from afterwrite.postgres.embedded import Server, embedded_server


def afterwrite(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "AFTERWRITE_SLOT" or not name.startswith(("PG", "AFTERWRITE_", "DATABASE_URL"))
    }
    return typed(*words, cwd=cwd, env={**kept, "COLUMNS": "200", **environment})


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-c", "from afterwrite.cli import main; main()", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def processes_of(folder: Path) -> list[str]:
    """What still runs with this folder in its words; what was told to end is given a moment."""
    found: list[str] = []
    for _ in range(50):
        said = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        found = [line for line in said.splitlines() if str(folder) in line]
        if not found:
            break
        time.sleep(0.1)
    return found


@pytest.fixture
def own_tmp() -> Generator[Path]:
    """A temporary folder with a path short enough for sockets, which the server's user may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="aw", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def installed(dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with one audited table, where afterwrite is installed."""
    slot = "t_" + dsn.rpartition("test_")[2].split()[0]
    monkeypatch.setenv("AFTERWRITE_SLOT", slot)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED)
    assert afterwrite("install", "--apply", "--dsn", dsn).returncode == 0
    return dsn


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
    assert len(result.stderr.splitlines()) == 2, result.stderr


def test_a_reader_that_goes_away_is_no_failure(dsn: str) -> None:
    read, write = os.pipe()
    os.close(read)
    for words in (["--help"], ["scan", "--dsn", dsn], ["scan", "--dsn", dsn, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "afterwrite", *words], stdout=write, stderr=subprocess.PIPE, check=False
        )
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b""), words
    os.close(write)


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
CHANGED = """
create or replace function public.audit() returns trigger language plpgsql as $$
begin
  raise notice 'changed';
  return null;
end $$;
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


def test_a_role_that_may_not_look_is_sent_to_the_owner_and_not_in_circles(dsn: str, server: Server) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED)
        connection.execute("create schema afterwrite")
        connection.execute("create table afterwrite.version (number integer, name text)")
        connection.execute("do $$ begin create role nobody_special login; exception when duplicate_object then end $$")
    result = afterwrite("doctor", "--dsn", dsn.replace("user=postgres", "user=nobody_special"))
    refused(result, 5, "afterwrite install", "connect as")
    assert "afterwrite doctor" not in result.stderr


def test_a_plan_file_that_cannot_be_read_or_written_is_named(dsn: str, tmp_path: Path) -> None:
    refused(afterwrite("plan", "--dsn", dsn, "--file", str(tmp_path / "no" / "plan.toml")), 2, "cannot be written")
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe")
    refused(afterwrite("plan", "--check", "--dsn", dsn, cwd=tmp_path), 2, "plan.toml", "cannot be read")


def test_drift_names_the_trigger_that_was_changed(dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AUDITED)
        assert afterwrite("plan", "--dsn", dsn, cwd=tmp_path).returncode == 0
        connection.execute(CHANGED)
    result = afterwrite("plan", "--check", "--dsn", dsn, cwd=tmp_path)
    assert result.returncode == 4
    assert "public.orders.audit_orders" in result.stdout


def test_an_empty_database_is_told_that_there_is_nothing_to_do(dsn: str, tmp_path: Path) -> None:
    assert "nothing to migrate" in afterwrite("plan", "--dsn", dsn, cwd=tmp_path).stdout
    run = afterwrite("migrate", "run", "--all", "--dsn", dsn, cwd=tmp_path)
    assert (run.returncode, "nothing to do" in run.stdout) == (0, True)
    assert "no user trigger" in afterwrite("scan", "--dsn", dsn).stdout


def test_a_dry_run_shows_the_deeds_and_not_the_plan_it_was_given(installed: str, tmp_path: Path) -> None:
    assert afterwrite("plan", "--dsn", installed, cwd=tmp_path).returncode == 0
    dry = afterwrite("migrate", "run", "--all", "--dsn", installed, cwd=tmp_path)
    assert dry.returncode == 3
    assert "disable trigger" in dry.stdout
    assert "fingerprint" not in dry.stdout
    assert "Nothing was done" in dry.stderr
    exact = afterwrite("migrate", "run", "--all", "--json", "--dsn", installed, cwd=tmp_path)
    assert "fingerprint" in exact.stdout


def test_taking_back_what_was_never_done_says_so(installed: str) -> None:
    for words in (["--phase", "1"], ["--phase", "1", "--apply"]):
        result = afterwrite("migrate", "rollback", *words, "--dsn", installed)
        assert result.returncode == 0
        assert "Nothing is off" in result.stdout


def test_a_new_shadow_window_is_said_to_begin(installed: str) -> None:
    assert "begins anew" in afterwrite("prove", "--reset", "--dsn", installed).stderr


def test_a_second_worker_is_refused_and_says_its_trouble_once(installed: str) -> None:
    with start("capture", "--json", "--dsn", installed) as first:
        assert first.stdout is not None
        while '"streaming"' not in first.stdout.readline():
            assert first.poll() is None
        second = afterwrite("capture", "--no-standby", "--dsn", installed)
        refused(second, 5, "another worker is active", "pg_terminate_backend")
        assert len(second.stderr.splitlines()) == 3, second.stderr
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=20)
    assert first.returncode == 0


def test_following_ends_with_ctrl_c_and_is_no_failure(installed: str) -> None:
    with start("tail", "--follow", "--dsn", installed) as tail:
        with psycopg.connect(installed, autocommit=True) as watcher:
            ours = "application_name = 'afterwrite tail' and datname = current_database() and state = 'idle'"
            while watcher.execute(f"select 1 from pg_stat_activity where {ours}").fetchone() is None:
                assert tail.poll() is None
                time.sleep(0.1)
        tail.send_signal(signal.SIGINT)
        said = tail.communicate(timeout=10)
    assert (tail.returncode, said) == (0, ("", ""))


@pytest.mark.parametrize(
    ("number", "seconds", "code", "word"),
    [
        (signal.SIGINT, 0.15, 130, "interrupted"),  # at its imports
        (signal.SIGINT, 0.9, 130, "interrupted"),  # while the cluster is laid
        (signal.SIGINT, 2.0, 130, "interrupted"),  # with the application at work
        (signal.SIGTERM, 2.0, 143, "terminated"),
    ],
)
def test_a_demo_that_is_interrupted_leaves_nothing(
    own_tmp: Path, number: signal.Signals, seconds: float, code: int, word: str
) -> None:
    with start("demo", "--keep", TMPDIR=str(own_tmp)) as demo:
        time.sleep(seconds)
        while number == signal.SIGTERM and not any(own_tmp.iterdir()):  # it has begun, on a busy machine too
            time.sleep(0.1)
        os.killpg(demo.pid, number)  # as a terminal does: to all that is in the foreground
        _, said = demo.communicate(timeout=30)
    assert demo.returncode == code, said
    assert word in said
    assert "Traceback" not in said
    assert [str(path) for root in own_tmp.iterdir() for path in root.iterdir()] == []
    assert processes_of(own_tmp) == []


def test_what_a_killed_demo_left_goes_with_the_next_start(own_tmp: Path) -> None:
    with start("demo", TMPDIR=str(own_tmp)) as demo:
        time.sleep(3.0)
        os.killpg(demo.pid, signal.SIGKILL)
        demo.communicate(timeout=30)
    result = afterwrite("demo", "--clean", TMPDIR=str(own_tmp))
    assert "1 demo server removed" in result.stdout
    assert [str(path) for root in own_tmp.iterdir() for path in root.iterdir()] == []
    assert processes_of(own_tmp) == []


def test_help_is_folded_by_the_terminals_width_alone() -> None:
    for words in (["capture"], ["maintain"], ["bench"], ["migrate", "run"]):
        said = afterwrite(*words, "--help").stdout
        prose, _, _ = said.partition("╭")
        paragraphs = [line for line in prose.splitlines() if line.strip() and "Usage:" not in line]
        # Each paragraph is shorter than two lines of 200 columns, so that a third line could only be the source's.
        assert all(len(line.rstrip()) > 100 or line.rstrip().endswith((".", ":")) for line in paragraphs), said
