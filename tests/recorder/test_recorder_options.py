"""The recorder's options: what is given over the environment, the environment over the file, and slips named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from afterwrite.activity import without_password
from afterwrite.errors import UsageError
from afterwrite.recorder import Durability, Options, Overflow, options, read_options
from afterwrite.recorder.options import find_folder, service_name, signing_key
from afterwrite.settings import load_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AFTERWRITE_") or name == "XDG_STATE_HOME":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_each_source_stands_over_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_options() == Options()
    (tmp_path / "afterwrite.toml").write_text(
        'dsn = "host=x"\n[recorder]\nservice = "file"\nspool_bytes = "2GB"\nredact = ["plate"]\nstrict = true\n'
    )
    monkeypatch.setenv("AFTERWRITE_SERVICE", "environment")
    monkeypatch.setenv("AFTERWRITE_OVERFLOW", "block")
    monkeypatch.setenv("AFTERWRITE_KEEP", "token, pin")
    monkeypatch.setenv("AFTERWRITE_REDACT_PATTERNS", r"EMP-\d{1,5}")
    monkeypatch.setenv("AFTERWRITE_BLOCK_SECONDS", "1.5")
    monkeypatch.setenv("AFTERWRITE_KEEP_IP", "false")
    (tmp_path / "key").write_text("s3cret\n")
    monkeypatch.setenv("AFTERWRITE_STAMP_KEY_FILE", str(tmp_path / "key"))
    found = read_options(durability="memory", service=None)
    assert (found.service, found.spool_bytes, found.redact, found.strict) == ("environment", 2 << 30, ("plate",), True)
    assert (found.durability, found.overflow, found.keep) == (Durability.MEMORY, Overflow.BLOCK, ("token", "pin"))
    assert (found.redact_patterns, found.block_seconds, found.keep_ip) == ((r"EMP-\d{1,5}",), 1.5, False)
    assert found.stamp_key == "s3cret"


def test_a_key_in_a_mounted_file_is_taken_up_when_it_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(options, "KEY_SECONDS", 0.0)
    path = tmp_path / "key"
    path.write_text("old")
    monkeypatch.setenv("AFTERWRITE_STAMP_KEY_FILE", str(path))
    told = read_options()
    assert signing_key(told) == "old"
    path.write_text("new,old\n")
    assert signing_key(told) == "new,old"
    for said in ("", " , "):  # a file that is being written
        path.write_text(said)
        assert signing_key(told) == "new,old"
    path.unlink()
    assert signing_key(told) == "new,old"
    assert "what it said before is signed with" in caplog.text
    with pytest.raises(UsageError, match="AFTERWRITE_STAMP_KEY_FILE names a file that cannot be read"):
        read_options()


def test_a_key_beside_its_file_stands_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("mounted")
    (tmp_path / "afterwrite.toml").write_text('[recorder]\nstamp_key_file = "key"\n')
    assert signing_key(read_options()) == "mounted"
    monkeypatch.setenv("AFTERWRITE_STAMP_KEY", "said")
    assert signing_key(read_options()) == "said"
    monkeypatch.setenv("AFTERWRITE_STAMP_KEY_FILE", str(tmp_path / "key"))
    assert signing_key(read_options()) == "said"
    assert signing_key(read_options(stamp_key="given")) == "given"


def test_a_keys_file_stands_over_a_key_of_a_lesser_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("of the file")
    (tmp_path / "afterwrite.toml").write_text('[recorder]\nstamp_key = "settings"\n')
    assert signing_key(read_options(stamp_key_file=str(tmp_path / "key"))) == "of the file"
    monkeypatch.setenv("AFTERWRITE_STAMP_KEY", "environment")
    assert signing_key(read_options(stamp_key_file=str(tmp_path / "key"))) == "of the file"
    (tmp_path / "afterwrite.toml").write_text(f'[recorder]\nstamp_key_file = "{tmp_path}/key"\n')
    assert signing_key(read_options()) == "environment"


def test_the_commands_leave_the_recorders_table_alone_and_the_recorder_theirs(tmp_path: Path) -> None:
    (tmp_path / "afterwrite.toml").write_text('slot = "mine"\n[recorder]\nservice = "shop"\n')
    assert load_settings().slot == "mine"
    assert read_options().service == "shop"
    (tmp_path / "afterwrite.toml").write_text("")
    (tmp_path / "pyproject.toml").write_text('[tool.afterwrite.recorder]\nservice = "shop"\n')
    (tmp_path / "afterwrite.toml").unlink()
    assert read_options().service == "shop"


@pytest.mark.parametrize(
    ("file", "variables", "words"),
    [
        ("[recorder]\nservise = 'x'\n", {}, "afterwrite.toml has a key that does not exist: servise"),
        ("recorder = 5\n", {}, "recorder in afterwrite.toml is no table"),
        ("[recorder]\nspool_bytes = 'much'\n", {}, "spool_bytes in afterwrite.toml cannot be"),
        ("", {"AFTERWRITE_OVERFLOW": "explode"}, "overflow in AFTERWRITE_OVERFLOW cannot be"),
        ("", {"AFTERWRITE_QUEUE_EVENTS": "0"}, "queue_events in AFTERWRITE_QUEUE_EVENTS cannot be"),
        ("", {"AFTERWRITE_REDACT_PATTERNS": "("}, "redact_patterns in AFTERWRITE_REDACT_PATTERNS cannot be"),
        ("", {"AFTERWRITE_RECORD_KEY_FILE": "/nowhere"}, "AFTERWRITE_RECORD_KEY_FILE names a file"),
        ("", {"AFTERWRITE_STAMP_KEY": " , "}, "stamp_key in AFTERWRITE_STAMP_KEY cannot be"),
        ("[recorder\n", {}, "afterwrite.toml cannot be read"),
    ],
)
def test_a_slip_is_named_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, variables: dict[str, str], words: str
) -> None:
    (tmp_path / "afterwrite.toml").write_text(file)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        read_options()


def test_the_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder(Options()) == tmp_path / ".local/state/afterwrite/spool"
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = tmp_path / f"afterwrite-spool-{os.getuid()}"
    assert [find_folder(Options()), find_folder(Options())] == [shared, shared]
    assert shared.stat().st_mode & 0o777 == 0o700
    shared.chmod(0o777)  # as somebody would leave it who made it before us
    assert find_folder(Options()) != shared
    assert find_folder(Options()).parent == tmp_path
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/state")
    assert find_folder(Options()) == Path("/var/lib/state/afterwrite/spool")
    assert find_folder(Options(spool_dir="/x")) == Path("/x")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:{}@db:5432/shop?sslmode=require",
        "postgresql://me@db/shop?password={}&sslmode=require",
        "host=db password={} dbname=shop",
        "host=db password = '{}' dbname=shop",
    ],
)
def test_a_new_password_leaves_the_spools_destination_what_it_was(dsn: str) -> None:
    place = without_password(dsn.format("hunter2"))
    assert "hunter2" not in place
    assert place == without_password(dsn.format("another"))
    assert "db" in place
    assert place.count("shop") == 1


def test_the_programs_name_is_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/srv/shop/worker.py"])
    assert service_name(Options()) == "worker"
    assert service_name(Options(service="shop")) == "shop"
