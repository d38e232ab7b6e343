"""Settings: a flag stands over the environment, the environment over the file, and a slip is named where it stands."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

from afterwrite.errors import ExitCode, UsageError
from afterwrite.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AFTERWRITE_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_a_word_the_defaults_hold() -> None:
    found = load_settings()
    assert found.dsn is None
    assert found.store is None
    assert found.one_database
    assert (found.slot, found.lock_timeout_ms) == ("afterwrite", 500)


def test_a_flag_stands_over_the_environment_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "afterwrite.toml").write_text('source = "file"\nslot = "file"\nlock_timeout_ms = 100\n')
    monkeypatch.setenv("AFTERWRITE_SOURCE", "environment")
    monkeypatch.setenv("AFTERWRITE_SLOT", "environment")
    found = load_settings(source="flag", slot=None)
    assert (found.source, found.slot, found.lock_timeout_ms) == ("flag", "environment", 100)


def test_the_file_may_be_named_or_be_part_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "shop"\n[tool.afterwrite]\nsource = "project"\n')
    assert load_settings().source == "project"
    (tmp_path / "afterwrite.toml").write_text('source = "own"\n')
    assert load_settings().source == "own"
    monkeypatch.setenv("AFTERWRITE_CONFIG", str(project))
    assert load_settings().source == "project"
    project.write_text('[project]\nname = "shop"\n')
    assert load_settings().source == Settings().source


def test_where_the_source_database_is_comes_from_the_nearest_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "afterwrite.toml").write_text('dsn = "host=file"\n')
    assert load_settings().dsn == "host=file"
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://me@url/shop")
    assert load_settings().dsn == "postgresql://me@url/shop"
    (tmp_path / "secret").write_text("host=secret password=hunter2\n")
    monkeypatch.setenv("AFTERWRITE_DSN_FILE", str(tmp_path / "secret"))
    assert load_settings().dsn == "host=secret password=hunter2"
    monkeypatch.setenv("AFTERWRITE_DSN", "host=variable")
    assert load_settings().dsn == "host=variable"
    assert load_settings(dsn="host=flag").dsn == "host=flag"


def test_the_store_is_the_source_unless_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(dsn="host=a").store == "host=a"
    apart = load_settings(dsn="host=a", store_dsn="host=b")
    assert (apart.store, apart.one_database) == ("host=b", False)
    monkeypatch.setenv("AFTERWRITE_STORE_DSN", "")
    assert load_settings(dsn="host=a").one_database


def test_a_key_that_does_not_exist_is_named_with_its_file_and_the_keys_there_are(tmp_path: Path) -> None:
    (tmp_path / "afterwrite.toml").write_text('sorce = "x"\n')
    with pytest.raises(UsageError, match=r"afterwrite\.toml has a key that does not exist: sorce") as caught:
        load_settings()
    assert caught.value.exit_code is ExitCode.USAGE
    assert "source" in (caught.value.remedy or "")
    (tmp_path / "afterwrite.toml").unlink()
    (tmp_path / "pyproject.toml").write_text("[tool.afterwrite]\nsorce = 1\n")
    with pytest.raises(UsageError, match=r"\[tool\.afterwrite\] in pyproject\.toml has a key .*: sorce"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slot = 'Has Capitals'", "slot in afterwrite.toml cannot be"),
        ("lock_timeout_ms = 0", "lock_timeout_ms in afterwrite.toml cannot be"),
        ("proof_seconds = -1", "proof_seconds in afterwrite.toml cannot be"),
        ("dsn = ['postgresql://me:hunter2@db/shop']", "dsn in afterwrite.toml cannot be"),
        ("slot = ", "afterwrite.toml cannot be read"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_place_and_never_shown(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "afterwrite.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert message in str(caught.value)
    assert caught.value.remedy
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_slip_in_the_environment_or_a_flag_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWRITE_LOCK_TIMEOUT_MS", "soon")
    with pytest.raises(UsageError, match="lock_timeout_ms in AFTERWRITE_LOCK_TIMEOUT_MS cannot be"):
        load_settings()
    with pytest.raises(UsageError, match="lock_timeout_ms in --lock-timeout-ms cannot be"):
        load_settings(lock_timeout_ms=-1)


def test_what_others_put_into_the_environment_is_not_ours_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWRITE_SERVICE_HOST", "10.0.0.1")
    assert load_settings() == Settings()


def test_a_file_that_is_named_and_not_there_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWRITE_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="AFTERWRITE_CONFIG names"):
        load_settings()
    monkeypatch.delenv("AFTERWRITE_CONFIG")
    monkeypatch.setenv("AFTERWRITE_DSN_FILE", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="AFTERWRITE_DSN_FILE names a file that cannot be read"):
        load_settings()
    (tmp_path / "pyproject.toml").write_text("[tool]\nafterwrite = 1\n")
    monkeypatch.delenv("AFTERWRITE_DSN_FILE")
    with pytest.raises(UsageError, match="is no table"):
        load_settings()


@pytest.mark.parametrize(
    ("words", "size"),
    [("8GB", 8 << 30), ("8 GiB", 8 << 30), ("512mb", 512 << 20), ("1.5TB", 3 << 39), ("2097152", 2 << 20)],
)
def test_the_wal_budget_is_given_as_postgresqls_own_sizes_are(
    monkeypatch: pytest.MonkeyPatch, words: str, size: int
) -> None:
    assert load_settings().wal_budget == 8 << 30
    monkeypatch.setenv("AFTERWRITE_WAL_BUDGET", words)
    assert load_settings().wal_budget == size


@pytest.mark.parametrize(
    "text", ['wal_budget = "8 sheep"', 'wal_budget = "1kB"', 'over_budget = "drop"', "wal_warn_share = 50"]
)
def test_a_budget_that_cannot_be_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "afterwrite.toml").write_text(f"{text}\n")
    with pytest.raises(UsageError, match=f"{text.partition(' ')[0]} in afterwrite.toml cannot be"):
        load_settings()


def test_what_a_budget_has_to_be_is_said_in_an_operators_words(tmp_path: Path) -> None:
    (tmp_path / "afterwrite.toml").write_text('wal_budget = "8 gigs"\n')
    with pytest.raises(UsageError, match=r"at least 1MB, written as PostgreSQL's own are \(8GB, 512MB\)"):
        load_settings()
    (tmp_path / "afterwrite.toml").write_text("wal_warn_share = 0.9\nwal_alarm_share = 0.5\n")
    with pytest.raises(UsageError, match=r"wal_alarm_share in .* should not be less than wal_warn_share"):
        load_settings()


def test_settings_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().slot = "other"
