"""What every command shares: options, the split of data (stdout) from talk (stderr), tables, and how errors look."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from afterwrite.errors import AfterwriteError, Finding, Severity
from afterwrite.settings import Settings, load_settings

T = TypeVar("T")

Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        help="The source database: a URL, key=value words or service=NAME. Else AFTERWRITE_DSN, DATABASE_URL, "
        "afterwrite.toml, PG* variables.",
        show_default=False,
    ),
]
StoreDsn = Annotated[
    str | None,
    typer.Option("--store-dsn", help="Where the store is, when it is another database.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")]
Apply = Annotated[bool, typer.Option("--apply", help="Act. Without it the command only says what it would do.")]

out = Console(highlight=False, soft_wrap=False)
talk = Console(stderr=True, highlight=False)


def settings(dsn: str | None, store_dsn: str | None = None) -> Settings:
    """The settings with this command's flags on top."""
    return load_settings(dsn=dsn, store_dsn=store_dsn)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. Ctrl-C and SIGTERM cancel it, so that whatever is open closes in order."""

    async def guarded() -> T:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError as error:
        raise SystemExit(128 + signal.SIGTERM) from error


def emit(value: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(msgspec.json.encode(value, order="sorted" if isinstance(value, dict) else None).decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line of talk, on stderr."""
    talk.print(text)


def table(*columns: str, title: str | None = None) -> Table:
    """A table in the house style; a column name that starts with ``>`` is right-aligned."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, title_style="bold")
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def fill(made: Table, rows: Iterable[Sequence[object]]) -> Table:
    """Add rows, each cell as plain text."""
    for row in rows:
        made.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
    return made


_MARK = {Severity.INFO: "[dim]note[/]", Severity.WARNING: "[yellow]warning[/]", Severity.ERROR: "[red]refused[/]"}


def show_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Findings as people read them: gravest first, each with its remedy."""
    order = [Severity.ERROR, Severity.WARNING, Severity.INFO]
    console = console or out
    for finding in sorted(findings, key=lambda finding: order.index(finding.severity)):
        console.print(f"{_MARK[finding.severity]}  {escape(finding.text)} [dim]({finding.rule})[/]", soft_wrap=True)
        if finding.remedy:
            console.print(f"         [green]→[/] {escape(finding.remedy)}", soft_wrap=True)


def show_error(error: AfterwriteError) -> None:
    """One sentence with what and where, and the mending command."""
    talk.print(f"[red]afterwrite:[/] {escape(str(error))}", soft_wrap=True)
    if error.remedy:
        talk.print(f"[green]  → [/]{escape(error.remedy)}", soft_wrap=True)
