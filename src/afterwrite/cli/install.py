"""``afterwrite install``: look first, then lay the schema, the publications, the slot and the replica identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

from afterwrite import runtime
from afterwrite.capture.slot import StepKind
from afterwrite.cli.face import (
    FLAG,
    Apply,
    Dsn,
    Json,
    StoreDsn,
    counted,
    emit,
    out,
    run,
    say,
    settings,
    show_findings,
    tell_blocked,
)
from afterwrite.errors import ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.settings import Settings
from afterwrite.store.schema import install_store


def install(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    apply: Apply = False,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="TABLE",
            help="Capture this table, too, whose triggers do not ask for it; may be repeated, and stays captured.",
        ),
    ] = None,
    store_only: Annotated[
        bool,
        typer.Option("--store-only", metavar=FLAG, help="Lay the store alone, for what applications record."),
    ] = False,
    accept_gap: Annotated[
        bool,
        typer.Option(
            "--accept-gap",
            metavar=FLAG,
            help="Go on where changes are missing (slot lost or ahead, tables taken out of the publication, another "
            "store's slot): mend it, begin anew where need be, and record the gap.",
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Set up what capture needs: store, publications, slot, replica identities.

    Without --apply it only says what it would do, and what stands in the way. Running it again does what is missing.
    """
    given = settings(dsn, store_dsn)
    if store_only:
        if table or accept_gap:
            raise UsageError("--store-only captures nothing", remedy="leave out --table and --accept-gap, or it")
        return run(_install_store(given, apply=apply, json=json))
    return run(_install(given, table or [], apply=apply, accept_gap=accept_gap, json=json))


async def _install_store(given: Settings, *, apply: bool, json: bool) -> int:
    async with connect(given.store, application_name="afterwrite store", guarded=True) as store:
        missing = await (install_store if apply else runtime.missing_upgrades)(store)
        if json:
            emit({"schema_version": 1, "applied": apply, "schema": missing})
            return ExitCode.OK
        for upgrade in missing:
            done = "[green]✓[/]" if apply else "  lay"
            out.print(f"{done} schema {escape(upgrade)} in {escape(store.where)}", soft_wrap=True)
        if missing and not apply:
            out.print("Nothing was done. Run it with [bold]--apply[/].")
        else:
            place = "The store is laid" if missing else f"All is in place: there is a store in {escape(store.where)}"
            out.print(
                f"{place}; next: record activity from the application (docs/quickstart-application.md), "
                "[bold]afterwrite serve[/] shows it.",
                soft_wrap=True,
            )
    return ExitCode.OK


async def _install(given: Settings, tables: Sequence[str], *, apply: bool, accept_gap: bool, json: bool) -> int:
    async with runtime.source_and_store(given) as (source, store):
        seen = await runtime.look_at_installation(given, source, store, tables=tables)
        obstacle = runtime.find_obstacle(seen, accept_gap=accept_gap)
        if not json:
            # With --apply it is told as the error that ends the command.
            show_findings(
                [finding for finding in seen.findings if not (apply and finding is obstacle)],
                grave="refused" if obstacle else "to mend",
            )
        if not apply:
            if json:
                emit(_as_json(seen, applied=False))
            else:
                _show(seen, refused=obstacle is not None)
            return ExitCode.REFUSED if obstacle else ExitCode.OK
        prepared = await runtime.install(
            given,
            seen,
            source,
            store,
            accept_gap=accept_gap,
            on_step=lambda text: say(f"[green]✓[/] {escape(text)}"),
            on_blocked=tell_blocked,
        )
        if json:
            emit(
                {
                    **_as_json(seen, applied=True),
                    "checkpoint": str(prepared.checkpoint.lsn),
                    "gaps": [
                        {"after": str(gap.after), "until": str(gap.until), "reason": gap.reason}
                        for gap in prepared.gaps
                    ],
                }
            )
        else:
            for gap in prepared.gaps:
                say(
                    f"[yellow]gap:[/] commits after {gap.after} up to {gap.until} are not stored, or not all of them:"
                    f" {escape(gap.reason)}"
                )
            out.print(
                f"{counted(len(seen.setup.tables), 'table')} captured from {prepared.checkpoint.lsn} on; "
                "next: [bold]afterwrite capture[/]"
            )
    return ExitCode.OK


def _show(seen: runtime.Installation, *, refused: bool) -> None:
    if seen.done:
        out.print(
            f"All is in place: {counted(len(seen.setup.tables), 'table')} captured; next: [bold]afterwrite capture[/]"
        )
        return
    tables, logs = counted(len(seen.setup.tables), "table"), counted(len(seen.setup.legacy_tables), "legacy log")
    if refused:
        out.print("Nothing was done, and [bold]--apply[/] would do nothing either, until what is refused is mended.")
        return
    out.print(f"Would capture {tables} and read {logs}:")
    for upgrade in seen.schema:
        out.print(f"  lay schema {escape(upgrade)}", soft_wrap=True)
    for step in seen.steps:
        out.print(f"  {escape(step.text)}", soft_wrap=True)
        if step.sql and step.kind is not StepKind.SLOT:
            out.print(f"    [dim]{escape(step.sql)}[/]", soft_wrap=True)
    out.print("Nothing was done. Run it with [bold]--apply[/].")


def _as_json(seen: runtime.Installation, *, applied: bool) -> dict[str, object]:
    return {
        "schema_version": 1,
        "applied": applied,
        "tables": [".".join(table) for table in seen.setup.tables],
        "legacy_tables": [".".join(table) for table in seen.setup.legacy_tables],
        "schema": list(seen.schema),
        "steps": [{"kind": step.kind, "where": step.where, "text": step.text, "sql": step.sql} for step in seen.steps],
        "findings": seen.findings,
    }
