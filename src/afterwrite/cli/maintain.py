"""``afterwrite maintain``: the store's partitions, what is due, and doing it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from afterwrite import runtime
from afterwrite.cli.face import Apply, Dsn, Json, StoreDsn, counted, emit, fill, out, run, say, show_findings, table
from afterwrite.errors import ExitCode
from afterwrite.settings import Settings, load_settings
from afterwrite.store.maintain import Observed, Report, Step, Table
from afterwrite.store.partitions import Temperature

_SHOWN_STEPS = 20
_WAIT_SECONDS = 30.0


def maintain(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    hot_days: Annotated[
        int | None,
        typer.Option("--hot-days", help="Search by actor, tenant and text for so many days.", show_default=False),
    ] = None,
    retention_days: Annotated[
        int | None,
        typer.Option("--retention-days", help="Drop days older than this; else all is kept.", show_default=False),
    ] = None,
    ahead_days: Annotated[
        int | None, typer.Option("--ahead-days", help="Make partitions so far ahead.", show_default=False)
    ] = None,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Look after the store: partitions ahead, indexes by age, freezing, retention.

    Without --apply it only says what is due. A running `afterwrite capture` does the same by itself, with the settings
    hot_days, retention_days and ahead_days. Exit 1 if something could not be done now, 3 if retention has to wait.
    """
    given = load_settings(
        dsn=dsn, store_dsn=store_dsn, hot_days=hot_days, retention_days=retention_days, ahead_days=ahead_days
    )
    report = run(_maintain(given, apply=apply, json=json))
    if json:
        emit(_as_json(report, applied=apply))
    else:
        _show(report, applied=apply)
    rules = {finding.rule for finding in report.findings}
    if "maintain-hindered" in rules:
        return ExitCode.ERROR
    return ExitCode.GATE if rules else ExitCode.OK


async def _maintain(given: Settings, *, apply: bool, json: bool) -> Report:
    if not apply:
        return await runtime.look_at_store(given)

    def told(step: Step) -> None:
        if not json:
            say(f"[green]✓[/] {escape(step.text)}")

    return await runtime.maintain_store(given, on_step=told, wait_seconds=_WAIT_SECONDS)


def _show(report: Report, *, applied: bool) -> None:
    seen = report.observed
    rows = [
        (name, len(tables), *_span(tables), f"{sum(each.rows for each in tables):,}", _size(tables), _frozen(tables))
        for name, tables in _groups(seen)
        if tables
    ]
    out.print(fill(table("partitions", ">days", "from", "to", ">rows", ">size", ">frozen"), rows))
    waiting = sum(seen.default_days.values())
    if waiting:
        out.print(f"{counted(waiting, 'row')} of {counted(len(seen.default_days), 'day')} in the default partition.")
    if seen.expired_days:
        out.print(
            f"{counted(seen.expired_days, 'day')} with {counted(seen.expired_rows, 'row')} expired by retention,"
            f" up to {seen.expired_until}."
        )
    show_findings(report.findings)
    if report.left and not applied:
        out.print("Due:")
        for step in report.left[:_SHOWN_STEPS]:
            out.print(f"  {escape(step.text)}", soft_wrap=True)
        if (more := len(report.left) - _SHOWN_STEPS) > 0:
            out.print(f"  and {counted(more, 'step')} more [dim](--json has all)[/]")
        out.print("Nothing was done. Run it with [bold]--apply[/].")
    elif not report.left:
        out.print("Nothing is due.")


def _groups(seen: Observed) -> list[tuple[str, list[Table]]]:
    """The partitions as people speak of them."""
    today = datetime.now(UTC).date()
    past = [each for each in seen.tables if each.day and each.day < today]
    return [
        ("ahead", [each for each in seen.tables if each.day and each.day > today]),
        ("today", [each for each in seen.tables if each.day == today]),
        ("hot", [each for each in past if each.temperature is Temperature.HOT]),
        ("in between", [each for each in past if each.temperature is None]),
        ("cold", [each for each in past if each.temperature is Temperature.COLD]),
        ("default", [each for each in seen.tables if each.day is None]),
    ]


def _span(tables: Sequence[Table]) -> tuple[date | str, date | str]:
    days = [each.day for each in tables if each.day]
    return (min(days), max(days)) if days else ("", "")


def _frozen(tables: Sequence[Table]) -> str:
    closed = [each for each in tables if (at := each.closed_at()) and at <= datetime.now(UTC)]
    return f"{sum(each.settled for each in closed)} of {len(closed)}" if closed else ""


def _size(tables: Sequence[Table]) -> str:
    return f"{sum(each.bytes for each in tables) / 1024**2:,.1f} MiB"


def _as_json(report: Report, *, applied: bool) -> dict[str, Any]:
    seen = report.observed
    return {
        "schema_version": 1,
        "applied": applied,
        "partitions": [
            {
                "name": each.name,
                "day": each.day,
                "rows": each.rows,
                "bytes": each.bytes,
                "temperature": each.temperature,
                "indexes": each.indexes,
                "frozen": each.settled,
            }
            for each in seen.tables
        ],
        "default_days": {day.isoformat(): rows for day, rows in seen.default_days.items()},
        "expired": {"days": seen.expired_days, "rows": seen.expired_rows, "until": seen.expired_until},
        "oldest_day": min((each.day for each in seen.tables if each.day), default=None),
        "done": [_step(step) for step in report.done],
        "due": [_step(step) for step in report.left],
        "findings": report.findings,
    }


def _step(step: Step) -> dict[str, object]:
    return {"kind": step.kind, "table": step.table, "days": step.days, "index": step.index, "text": step.text}
