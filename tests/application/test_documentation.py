"""What the documentation for application developers says, run as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from docrunner import DOCS, ROOT, Block, read_blocks, run_page, typed_module

from afterwrite import activity
from afterwrite.recorder.registry import Registry

PAGE = DOCS / "quickstart-application.md"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers and configures is its own."""
    monkeypatch.setattr(activity.record.__self__, "_registry", Registry())
    yield
    activity.close(0)


@pytest.mark.usefixtures("closed")
def test_the_application_page_runs_as_it_stands(installed_dsn: str, tmp_path: Path) -> None:
    names = run_page(PAGE, {"dsn": installed_dsn, "spool_dir": str(tmp_path)}, others={"sh": _export})
    assert activity.flush(20)
    stats = activity.stats()
    assert (stats.dropped, stats.delivery_trouble) == ({}, None)
    with psycopg.connect(installed_dsn) as db:
        stored = dict(db.execute("select action, count(*) from afterwrite.activity group by 1").fetchall())
    assert {
        "report.exported": 2,
        "report.shared": 1,
        "user.import": 1,
        "login": 2,
        "user_updated": 1,
    }.items() <= stored.items()
    # What was recorded in the transaction is in the WAL, for capture to find, and not on this way.
    assert "user.create" in stored
    assert names["health"].emitted == 0


@pytest.mark.usefixtures("closed")
def test_the_readme_runs_as_it_stands(installed_dsn: str, tmp_path: Path) -> None:
    run_page(ROOT / "README.md", {"dsn": installed_dsn, "spool_dir": str(tmp_path)}, others={"sql": lambda _: None})
    assert activity.flush(20)
    assert activity.stats().dropped == {}
    with psycopg.connect(installed_dsn) as db:
        stored = {row[0] for row in db.execute("select action from afterwrite.activity").fetchall()}
    # What is a part of the transaction is for capture to find, which does not run here.
    assert stored | {"user.create"} == {"report.exported", "user.create", "user.import", "login", "report.build"}


def _export(code: str) -> None:
    """What a reader types: into the environment, and commands that exist, with extras that do."""
    for line in filter(None, code.splitlines()):
        words = shlex.split(line, comments=True)
        match words:
            case ["export", setting]:
                assert setting.startswith("AFTERWRITE_STORE_DSN=")
            case ["pip", "install", package]:
                assert package.removeprefix("afterwrite[").removesuffix("]") in _extras()
            case ["afterwrite", "install", *options]:
                assert set(options) <= {"--store-only", "--apply"}
            case _:
                raise AssertionError(f"nobody knows {line}")


def _extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"none": project["dependencies"], **project["optional-dependencies"]}


def test_the_page_names_every_extra_with_what_it_brings_and_the_tested_versions() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Getting it")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `?(\w+)`? \| ([^|]*) \|", text.partition("|---|")[2], re.MULTILINE))
    assert told.keys() == _extras().keys()
    for extra, packages in _extras().items():
        if extra in {"demo", "dev"}:
            continue
        names = {re.match(r"[\w-]+(\[\w+\])?", package)[0] for package in packages}  # type: ignore[index]
        for name in names:
            # Of an extra that brings another one it is said which; of a package with an extra, which package.
            base, _, of = name.removesuffix("]").partition("[")
            word = of if base == "afterwrite" or (of == "binary" and extra != "binary") else base
            assert word in told[extra], (extra, name)
    versions = dict(re.match(r"([\w-]+)[^>=]*>=([\d.]+)", each).groups() for each in _extras()["dev"] if ">=" in each)  # type: ignore[union-attr, misc]
    tested = re.findall(r"([A-Za-z]+) (\d+(?:\.\d+)+)[,.]", text.partition("and later ones: ")[2].partition("\n\n")[0])
    assert len(tested) == 8
    assert {name.lower(): version for name, version in tested}.items() <= versions.items()


@pytest.mark.parametrize("checker", ["pyright", "mypy"])
def test_type_checkers_accept_the_examples(checker: str, tmp_path: Path) -> None:
    for page in (ROOT / "README.md", PAGE, DOCS / "integrations" / "structlog.md"):
        (tmp_path / f"page_{page.stem.replace('-', '_')}.py").write_text(f"dsn = spool_dir = ''\n{typed_module(page)}")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard", "pythonVersion": "3.11"}')
    words = {
        "pyright": ["-m", "pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)],
        "mypy": [
            "-m",
            "mypy",
            "--strict",
            "--follow-imports",
            "silent",
            "--cache-dir",
            str(tmp_path / "cache"),
            str(tmp_path),
        ],
    }[checker]
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_is_read_as_it_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- test: before\nx = 1\n-->\n```python\ny = x + 1\n```\n<!-- test: not run, why -->\n```python\n1 / 0\n```\n"
        "```text\noutput\n```\n- in a list:\n\n  ```python\n  import asyncio\n  z = await asyncio.sleep(0, y)\n  ```\n"
    )
    assert read_blocks(page) == [
        Block("python", "\nx = 1\n", 1, shown=False),
        Block("python", "y = x + 1\n", 5),
        Block("python", "import asyncio\nz = await asyncio.sleep(0, y)\n", 17),
    ]
    assert run_page(page)["z"] == 2
    page.write_text("one\n\n```python\n\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as raised:
        run_page(page)
    assert raised.traceback[-1].lineno == 4  # pytest counts from 0
    page.write_text("```ruby\nputs 1\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:2: nobody runs ruby"):
        run_page(page)


def test_the_commands_without_their_packages_say_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; import afterwrite.cli; afterwrite.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "need typer" in done.stderr
    assert "pip install 'afterwrite[tools]'" in done.stderr
    assert "Traceback" not in done.stderr
