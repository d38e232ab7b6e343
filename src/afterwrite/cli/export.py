"""``afterwrite export``: what a query finds, as a file or on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import Progress, TextColumn

from afterwrite.cli.face import FLAG, Json, StoreDsn, StoreOnly, counted, emit, plain, run, say, settings, talk
from afterwrite.errors import AfterwriteError, ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.search.query import parse
from afterwrite.settings import Settings
from afterwrite.transfer import export as exporting
from afterwrite.transfer.export import MANIFEST, Exported, Format


def export(
    query: Annotated[
        str, typer.Argument(help="What is exported, as `afterwrite search` takes it; '' is everything.")
    ] = "",
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    form: Annotated[Format, typer.Option("--format", "-f", help="As what.")] = Format.JSONL,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Into this file; else to stdout.", dir_okay=False, show_default=False),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="TIME", help="From then on; as after: in a query.", show_default=False),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option("--before", metavar="TIME", help="Up to then; as before: in a query.", show_default=False),
    ] = None,
    manifest: Annotated[
        bool,
        typer.Option(
            "--manifest/--no-manifest",
            help=f"Write count, sha256, query and position beside the file (FILE{MANIFEST}).",
        ),
    ] = True,
    raw_cells: Annotated[
        bool,
        typer.Option(
            "--raw-cells",
            metavar=FLAG,
            help="CSV: leave cells as they are that a spreadsheet would compute (=, +, -, @); else ' stands before"
            " them.",
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Export what a query finds, oldest first: JSON lines, CSV or Parquet.

    It shows the store as of one position of its feed; what comes meanwhile is left out. Memory is bounded, and a file
    is whole under its name or not there. `afterwrite import jsonl FILE` brings JSON lines back.
    """
    line = " ".join(
        word for word in (query, after and f"after:{_quoted(after)}", before and f"before:{_quoted(before)}") if word
    )
    if output is None and (json or (form is Format.PARQUET and sys.stdout.isatty())):
        raise UsageError(
            "--json tells of a file, and none is named" if json else "Parquet is not for a terminal",
            remedy="name a file with --output",
        )
    exported = run(_export(settings(dsn, store_dsn), line, form, output, manifest=manifest, raw_cells=raw_cells))
    if json:
        emit({"file": str(output), **msgspec.to_builtins(exported)})
    elif output is not None:
        say(
            f"{_told(exported)} in {plain(str(output))}"
            + (f", told of in {plain(output.name + MANIFEST)}" if manifest else "")
        )
    else:
        say(_told(exported))
    return ExitCode.OK


async def _export(
    given: Settings, line: str, form: Format, output: Path | None, *, manifest: bool, raw_cells: bool
) -> Exported:
    query = parse(line)
    async with connect(given.store, application_name="afterwrite export", guarded=True) as db:
        if output is None:
            return await exporting.export(db, query, form, _to_stdout, raw_cells=raw_cells)
        with Progress(
            TextColumn("{task.description}"), console=talk, transient=True, disable=not sys.stderr.isatty()
        ) as bar:
            task = bar.add_task("")
            return await exporting.export_file(
                db,
                query,
                form,
                output,
                manifest=manifest,
                raw_cells=raw_cells,
                on_page=lambda rows: bar.update(task, description=f"{rows:,} activities"),
            )


async def _to_stdout(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AfterwriteError(
            f"stdout cannot be written: {error.strerror or error}", remedy="make room where it leads to, and begin anew"
        ) from error


def _quoted(moment: str) -> str:
    return f'"{moment}"' if " " in moment else moment


def _told(exported: Exported) -> str:
    rows = counted(exported.rows, "activity").replace("activitys", "activities")
    return f"{rows} as of position {exported.as_of:,}"
