"""Runs the code blocks of a page of documentation, so that what stands there is true.

::

    run_page(DOCS / "sqlalchemy.md", {"dsn": dsn})

All python blocks of a page run in order, in one namespace and one event loop (``await`` at the top level is fine), with
tracebacks that point to the page's own lines. ``toml`` blocks are parsed, and their ``[recorder]`` table is read as
options. ``sh``, ``sql`` and other languages need someone who runs them: ``others={"sql": run_sql}``, a function that is
given the block's text. Blocks without a language, and ``text``, are output and not run. HTML comments, which a reader
does not see, say what else a test needs::

    <!-- test: before           python that runs here and is not shown
    conn = await connect(dsn)
    -->
    <!-- test: not run, it needs a browser -->         for the block that follows
    <!-- test: by pytest -->                           the block that follows has tests, which pytest runs
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent, indent
from types import ModuleType
from typing import Any, NamedTuple

from afterwrite.recorder import Options, read_options

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"^(?P<margin> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^(?P=margin)```\s*$", re.DOTALL | re.MULTILINE
)
_TOLD = re.compile(r"^ *<!-- test: (?P<word>before|not run|by pytest)(?P<rest>.*?)-->", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A piece of a page: what is to be done with it, its text, and the line of the page where it begins."""

    language: str
    code: str
    line: int
    shown: bool = True
    by_pytest: bool = False


def read_blocks(page: Path) -> list[Block]:
    """What is to be run of this page, in order; what it says is not run is left out."""
    text = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    told = ""
    for match in sorted([*_FENCE.finditer(text), *_TOLD.finditer(text)], key=re.Match.start):
        if "word" in match.re.groupindex:
            told = match["word"]
            if told == "before":
                line = text.count("\n", 0, match.start("rest")) + 1
                blocks.append(Block("python", dedent(match["rest"]), line, shown=False))
                told = ""
            continue
        line = text.count("\n", 0, match.start("code")) + 1
        language = {"py": "python", "bash": "sh", "console": "sh"}.get(match["language"], match["language"])
        if told != "not run" and language not in {"", "text"}:
            blocks.append(Block(language, dedent(match["code"]), line, by_pytest=told == "by pytest"))
        told = ""
    return blocks


def run_page(
    page: Path,
    given: Mapping[str, Any] | None = None,
    *,
    others: Mapping[str, Callable[[str], object]] | None = None,
) -> dict[str, Any]:
    """Run all of a page; gives the names that its python has at the end. Raises what a block raises."""
    # A module that can be found by its name: dataclasses and frameworks look for it.
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    names = vars(module)
    names.update(given or {})
    with asyncio.Runner() as runner, _known(module):
        for block in read_blocks(page):
            if block.by_pytest:
                _run_by_pytest(page, block)
            elif block.language == "python":
                _run_python(page, block, names, runner)
            elif block.language == "toml":
                _read_toml(block)
            elif others and block.language in others:
                others[block.language](block.code)
            else:
                raise AssertionError(f"{page.name}:{block.line}: nobody runs {block.language} blocks here")
    return dict(names)


@contextmanager
def _known(module: ModuleType) -> Iterator[None]:
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


def typed_module(page: Path) -> str:
    """The page's python as one function for type checkers: most of it may await."""
    parts = [f"# {page.name}:{each.line}\n{each.code}" for each in read_blocks(page) if each.language == "python"]
    return f"async def page() -> None:\n    pass\n{indent(chr(10).join(parts), '    ')}"


def _run_python(page: Path, block: Block, names: dict[str, Any], runner: asyncio.Runner) -> None:
    tree = ast.parse(block.code, str(page))
    ast.increment_lineno(tree, block.line - 1)
    code = compile(tree, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    found = eval(code, names)
    if inspect.iscoroutine(found):
        runner.run(found)


def _run_by_pytest(page: Path, block: Block) -> None:
    with_tests = Path(_folder()) / f"test_{page.stem.replace('-', '_')}_{block.line}.py"
    with_tests.write_text(block.code)
    done = run_pytest(with_tests)
    assert done.returncode == 0, f"{page.name}:{block.line}\n{done.stdout}{done.stderr}"


def run_pytest(file: Path) -> subprocess.CompletedProcess[str]:
    """Run a file's tests in a process of its own, with no plugin but ours: the others take a second to load."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "afterwrite.pytest_plugin", "-W", "error", str(file)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, *words],
        env=environment,
        cwd=file.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _folder() -> str:
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="afterwrite-docs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _read_toml(block: Block) -> None:
    table = tomllib.loads(block.code)
    given = table.get("recorder", {})
    assert isinstance(given, dict)
    assert isinstance(read_options(folder=Path("/nowhere"), **given), Options)
