"""What every command shares: options, the split of data (stdout) from talk (stderr), tables, and how errors look."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from afterwrite.errors import AfterwriteError, Finding, Severity
from afterwrite.postgres import Blocker
from afterwrite.scan.report import words
from afterwrite.scan.report.visible import visible
from afterwrite.settings import Settings, load_settings

T = TypeVar("T")

counted = words.counted

# An option that takes no value: help shows no type for it.
FLAG = ""

Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        metavar="DSN",
        help="The source database: a URL, key=value words or service=NAME. Else AFTERWRITE_DSN, DATABASE_URL, "
        "afterwrite.toml, PG* variables.",
        show_default=False,
    ),
]
StoreDsn = Annotated[
    str | None,
    typer.Option(
        "--store-dsn", metavar="DSN", help="Where the store is, when it is another database.", show_default=False
    ),
]
# Of commands that only look: it is the store that they look at.
StoreOnly = Annotated[
    str | None, typer.Option("--dsn", metavar="DSN", help="The database that holds the store.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", metavar=FLAG, help="One JSON document on stdout, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", metavar=FLAG, help="Answer every question with yes.")]
Apply = Annotated[
    bool, typer.Option("--apply", metavar=FLAG, help="Act. Without it the command only says what it would do.")
]

# Piped tables keep their natural width: nobody greps for a name that is folded at 80 columns.
_PIPED_COLUMNS = 200


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _PIPED_COLUMNS
    return console


out = _console(stderr=False)
talk = _console(stderr=True)


def settings(dsn: str | None, store_dsn: str | None = None) -> Settings:
    """The settings with this command's flags on top."""
    return load_settings(dsn=dsn, store_dsn=store_dsn)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. Ctrl-C and SIGTERM cancel it, so that whatever is open closes in order."""

    answers: list[T] = []

    async def guarded() -> None:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        # Not as this task's own result: asyncio.run prints that one, in full, when it asks who handles Ctrl-C.
        answers.append(await task)

    try:
        asyncio.run(guarded())
        return answers[0]
    except asyncio.CancelledError as error:
        raise SystemExit(128 + signal.SIGTERM) from error


def emit(value: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(msgspec.json.encode(value, order="sorted" if isinstance(value, dict) else None).decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line of talk, on stderr; wrapped between words on a terminal, left whole in a log."""
    talk.print(text, soft_wrap=not talk.is_terminal)


def prose(text: str) -> str:
    """A docstring's paragraphs, each on one line: the terminal's width folds them, not the source's."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def table(*columns: str, title: str | None = None) -> Table:
    """A table in the house style; a column name that starts with ``>`` is right-aligned."""
    made = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0), title_style="bold"
    )
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def plain(text: str) -> str:
    """Text that is not ours, for printing: no markup of rich's, and nothing that steers a terminal."""
    return escape(visible(text))


def fill(made: Table, rows: Iterable[Sequence[object]]) -> Table:
    """Add rows, each cell as plain text."""
    for row in rows:
        made.add_row(*(plain("" if cell is None else str(cell)) for cell in row))
    return made


_NOTES_OF_A_KIND = 2


def show_findings(
    findings: Sequence[Finding], console: Console | None = None, *, most: int | None = None, grave: str = "refused"
) -> None:
    """Findings as people read them: gravest first, each with its remedy; of many notes of one kind the first few.

    ``most`` shortens other kinds than notes, too. ``grave`` is the word for errors.
    """
    marks = {Severity.INFO: "[dim]note[/]", Severity.WARNING: "[yellow]warning[/]", Severity.ERROR: f"[red]{grave}[/]"}
    console = console or out
    kinds = Counter((finding.severity, finding.rule) for finding in findings)
    shown: Counter[tuple[Severity, str]] = Counter()
    for finding in words.gravest_first(findings):
        kind = (finding.severity, finding.rule)
        few = _NOTES_OF_A_KIND if finding.severity is Severity.INFO else most
        if few is not None and kinds[kind] > few + 1:
            shown[kind] += 1
            if shown[kind] == few + 1:
                more = kinds[kind] - few
                mark = marks[finding.severity]
                console.print(f"{mark}  and {more:,} more like it [dim]({finding.rule}; --json has all)[/]")
            if shown[kind] > few:
                continue
        hang(f"{marks[finding.severity]} ", f"{plain(sentence(finding))} [dim]({finding.rule})[/]", console)
        if finding.remedy:
            console.print(f"         [green]→[/] {plain(finding.remedy)}", soft_wrap=True)


def hang(mark: str, text: str, console: Console | None = None) -> None:
    """A sentence behind a mark: folded between words beside it on a terminal, one line in a pipe."""
    console = console or out
    if not console.is_terminal:
        console.print(f"{mark} {text}", soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(mark, text)
    console.print(grid)


def sentence(finding: Finding) -> str:
    """What and where in one sentence, also where the text leaves the place to ``where``."""
    if finding.where in finding.text:
        return finding.text
    joint = " " if finding.text.startswith(("is ", "was ", "or ")) else ": "
    return f"{finding.where}{joint}{finding.text}"


def show_error(error: AfterwriteError) -> None:
    """One sentence with what and where, and the mending command."""
    talk.print(f"[red]afterwrite:[/] {plain(str(error))}", soft_wrap=True)
    if error.remedy:
        talk.print(f"[green]  → [/]{plain(error.remedy)}", soft_wrap=True)


class Told(Protocol):
    """One thing to do, in words and as SQL."""

    @property
    def text(self) -> str: ...

    @property
    def sql(self) -> str: ...


def tell_steps(steps: Iterable[Told], *, applied: bool) -> None:
    """What was done; or, of a dry run, the SQL that would be."""
    steps = list(steps)
    if not steps:
        out.print("There is nothing to do.")
    for step in steps:
        if applied:
            say(f"[green]✓[/] {plain(step.text)}")
        else:
            out.print(f"[bold]-- {plain(step.text)}[/]", soft_wrap=True)
            out.print(f"{escape(step.sql)};\n", soft_wrap=True)
    if steps and not applied:
        out.print("-- Nothing was done. Run it with [bold]--apply[/].")


def tell_blocked(attempt: int, blockers: Sequence[Blocker]) -> None:
    """Who holds the table that is waited for."""
    names = "; ".join(str(blocker) for blocker in blockers)
    say(f"[yellow]…[/] attempt {attempt}: the table is locked by {plain(names) or 'somebody'}; trying again")
