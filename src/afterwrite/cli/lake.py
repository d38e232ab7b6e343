"""``afterwrite lake``: days that are over, in an open Delta table."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from afterwrite.cli.face import (
    Apply,
    Json,
    StoreDsn,
    StoreOnly,
    counted,
    emit,
    fill,
    out,
    plain,
    run,
    say,
    show_findings,
    table,
)
from afterwrite.cli.tiers import lake_of
from afterwrite.errors import ExitCode, UsageError
from afterwrite.lake.archive import SESSION, Archived, ArchivePolicy, Deed, DeedKind, Survey, archive, need_lake, survey
from afterwrite.lake.export import Handed, hand_over
from afterwrite.lake.verify import DayRead, verify
from afterwrite.postgres import connect
from afterwrite.search.query import parse
from afterwrite.settings import Settings, load_settings
from afterwrite.store.schema import require_store

app = typer.Typer(help="Move days that are over into an open Delta table, and look after them.", no_args_is_help=True)

Url = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="A folder, s3://, az:// or gs://. Else the setting lake_url.", show_default=False
    ),
]
_SHOWN_DAYS = 12


@app.command("archive")
def archive_command(
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    url: Url = None,
    after_days: Annotated[
        int | None,
        typer.Option("--after-days", min=1, help="Days older than this. Else lake_after_days.", show_default=False),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", metavar="", help="Copy them only: the store keeps them as well.")
    ] = False,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Copy days that are over into the lake, compare both sides, and drop them from the store.

    A day is dropped only when count and digest of what was read back from the lake are those of the store. It may be
    interrupted anywhere and run again. Exit 1 if something could not be done now, 3 if days have to wait.
    """
    given = load_settings(dsn=dsn, store_dsn=store_dsn, lake_url=url, lake_after_days=after_days)
    policy = ArchivePolicy(after_days=given.lake_after_days, keep=keep, vacuum_hours=given.lake_vacuum_hours)
    if not apply:
        seen = run(_survey(given, policy))
        if json:
            emit({"schema_version": 1, "applied": False, **_survey_json(seen)})
        else:
            _show_survey(seen, given)
        return ExitCode.GATE if seen.findings else ExitCode.OK
    archived = run(_archive(given, policy, quiet=json))
    if json:
        emit(
            {
                "schema_version": 1,
                "applied": True,
                "deeds": archived.deeds,
                "vacuumed": archived.vacuumed,
                **_survey_json(archived.survey),
            }
        )
    else:
        _show_archived(archived)
    rules = {finding.rule for finding in archived.survey.findings}
    return ExitCode.ERROR if "lake-hindered" in rules else ExitCode.GATE if rules else ExitCode.OK


async def _survey(given: Settings, policy: ArchivePolicy) -> Survey:
    lake = lake_of(given)
    async with connect(given.store, application_name="afterwrite lake", guarded=True) as store:
        await require_store(store)
        seen = await survey(store, policy)
        await need_lake(store, lake, seen.parts)
        return seen


async def _archive(given: Settings, policy: ArchivePolicy, *, quiet: bool) -> Archived:
    lake = lake_of(given)

    def told(deed: Deed) -> None:
        if not quiet:
            say(f"[green]✓[/] {_words(deed)}")

    async with connect(given.store, application_name="afterwrite lake", options=SESSION) as store:
        await require_store(store)
        return await archive(store, lake, policy, on_deed=told)


def _words(deed: Deed) -> str:
    match deed.kind:
        case DeedKind.COPIED:
            return f"{deed.day}: {_rows(deed.rows)} copied and read back the same"
        case DeedKind.FOUND:
            return f"{deed.day}: {_rows(deed.rows)} were in the lake already, the same"
        case DeedKind.DROPPED:
            return f"{deed.day}: dropped from the store, {_rows(deed.rows)}, {_size(deed.hot_bytes)}"
        case DeedKind.COMPACTED:
            return f"{deed.day}: {counted(deed.files, 'file')} made few"


def _rows(rows: int) -> str:
    return counted(rows, "row")


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1024:,.1f} KiB"


def _show_survey(seen: Survey, given: Settings) -> None:
    _show_lake(seen)
    show_findings(seen.findings)
    if not seen.due:
        out.print(f"Nothing is due: no day of the store is older than {counted(given.lake_after_days, 'day')}.")
        return
    out.print("Due:")
    for due in seen.due[:_SHOWN_DAYS]:
        # Days in the default partition have no size of their own.
        size = f", {_size(due.bytes)}" if due.bytes else ""
        rest = ", taken out already" if due.detached else f", about {_rows(due.rows)}{size}"
        out.print(f"  {due.day}{rest}")
    if (more := len(seen.due) - _SHOWN_DAYS) > 0:
        out.print(f"  and {counted(more, 'day')} more [dim](--json has all)[/]")
    out.print("Nothing was done. Run it with [bold]--apply[/].")


def _show_archived(archived: Archived) -> None:
    _show_lake(archived.survey)
    show_findings(archived.survey.findings)
    if not archived.deeds:
        out.print("Nothing was due.")


def _show_lake(seen: Survey) -> None:
    if not seen.parts:
        out.print("Nothing is in the lake yet.")
        return
    days = {part.day: part for part in seen.parts}
    rows, size = sum(part.rows for part in seen.parts), sum(part.bytes for part in days.values())
    made = table("in the lake", ">days", "from", "to", ">rows", ">size", ">bytes a row")
    left = sorted({part.day for part in seen.parts if part.left_at})
    both = sorted(set(days) - set(left))
    lines: list[tuple[object, ...]] = []
    for name, which in (("alone", left), ("and in the store", both)):
        if which:
            count = sum(part.rows for part in seen.parts if part.day in set(which))
            held = sum(days[day].bytes for day in which)
            lines.append(
                (name, len(which), which[0], which[-1], f"{count:,}", _size(held), f"{held / max(1, count):,.0f}")
            )
    if len(lines) > 1:
        lines.append(("all", len(days), min(days), max(days), f"{rows:,}", _size(size), f"{size / max(1, rows):,.0f}"))
    out.print(fill(made, lines))


def _survey_json(seen: Survey) -> dict[str, Any]:
    return {
        "parts": [{**msgspec.structs.asdict(part), "digest": part.digest.hex()} for part in seen.parts],
        "due": seen.due,
        "findings": seen.findings,
    }


@app.command("verify")
def verify_command(dsn: StoreOnly = None, store_dsn: StoreDsn = None, url: Url = None, json: Json = False) -> int:
    """Read all that is in the lake, and compare count and digest of each day with the ledger.

    Exit 4 where they differ.
    """
    given = load_settings(dsn=dsn, store_dsn=store_dsn, lake_url=url)
    days = run(_verify(given))
    wrong = [each for each in days if not each.same]
    if json:
        emit({"schema_version": 1, "days": days, "same": not wrong})
    else:
        for each in wrong[:_SHOWN_DAYS]:
            read = "cannot be read" if each.trouble and each.rows else f"{_rows(each.read)} read"
            out.print(f"[red]{each.day}[/]: {read}, {_rows(each.rows)} in the ledger")
            if each.trouble:
                out.print(plain(each.trouble), soft_wrap=True)
        out.print(
            f"{counted(len(days), 'day')}, {_rows(sum(each.read for each in days))}:"
            + (f" {counted(len(wrong), 'day')} not as archived." if wrong else " all as archived.")
        )
    return ExitCode.DRIFT if wrong else ExitCode.OK


async def _verify(given: Settings) -> list[DayRead]:
    async with connect(given.store, application_name="afterwrite lake", guarded=True) as store:
        await require_store(store)
        return await verify(store, lake_of(given))


@app.command("export")
def export_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Into this folder, which is empty or not there.", file_okay=False)
    ],
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of this tenant.", show_default=False)] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Of this actor.", show_default=False)] = None,
    entity: Annotated[
        str | None,
        typer.Option("--entity", metavar="TYPE[/ID]", help="About this thing, or all of a type.", show_default=False),
    ] = None,
    after: Annotated[str | None, typer.Option("--after", metavar="TIME", help="From then on.")] = None,
    before: Annotated[str | None, typer.Option("--before", metavar="TIME", help="Up to then.")] = None,
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    url: Url = None,
    json: Json = False,
) -> int:
    """Hand over the whole history of a tenant, an actor or a thing: Parquet with a manifest and checksums.

    store.parquet has what is in the store, lake.parquet what left it; no activity is in both.
    """
    asked = (("tenant", tenant), ("actor", actor), ("entity", entity), ("after", after), ("before", before))
    words = [f"{key}:{_quoted(value)}" for key, value in asked if value]
    if not (tenant or actor or entity):
        raise UsageError("nobody is named whose history it is", remedy="give --tenant, --actor or --entity")
    given = load_settings(dsn=dsn, store_dsn=store_dsn, lake_url=url)
    handed = run(_export(given, " ".join(words), output))
    if json:
        emit(msgspec.to_builtins(handed) | {"folder": str(output)})
    else:
        made = table("file", ">rows", ">size", "from", "to")
        out.print(
            fill(
                made,
                [(each.file, f"{each.rows:,}", _size(each.bytes), _day(each.first_at), _day(each.last_at))
                 for each in handed.files],
            )
        )  # fmt: skip
        say(f"{_rows(handed.rows)} in {plain(str(output))}, told of in manifest.json")
    return ExitCode.OK


async def _export(given: Settings, line: str, folder: Path) -> Handed:
    async with connect(given.store, application_name="afterwrite lake", guarded=True) as store:
        await require_store(store)
        return await hand_over(store, lake_of(given), parse(line), folder)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _day(moment: Any) -> date | str:
    return "" if moment is None else moment.date()
