"""``afterwrite scan``: every trigger's verdict, and why. Reads only."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from afterwrite.cli.face import Dsn, Json, emit, fill, out, run, settings, show_findings, table
from afterwrite.errors import ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.survey import Survey, survey, to_json

_COLOUR = {Verdict.RETIRE: "green", Verdict.DEFER: "cyan", Verdict.KEEP: "yellow", Verdict.REVIEW: "red"}
_MEANING = {
    Verdict.RETIRE: "only log: the store replaces them",
    Verdict.DEFER: "effects that may happen a moment after commit",
    Verdict.KEEP: "business logic: they stay",
    Verdict.REVIEW: "cannot be known: look at the line named",
}


def scan(
    dsn: Dsn = None,
    schema: Annotated[list[str] | None, typer.Option("--schema", help="Only this schema; may be given again.")] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", help="Show a trigger's body, deciding lines marked.")
    ] = None,
    json: Json = False,
) -> int:
    """Tell audit triggers from business logic: a verdict for every trigger, with the rule and the line that decided.

    Reads the catalog only; nothing is installed or changed.
    """
    found = run(_survey(settings(dsn).dsn, schema))
    if json:
        emit(to_json(found))
    elif explain:
        _explain(found, explain)
    else:
        _show(found)
    return ExitCode.OK


async def _survey(dsn: str | None, schemas: list[str] | None) -> Survey:
    async with connect(dsn, application_name="afterwrite scan", guarded=True) as database:
        return await survey(database, schemas)


def _show(found: Survey) -> None:
    judgements = sorted(found.judgements, key=lambda each: (each.trigger.schema, each.trigger.table, each.trigger.name))
    if not judgements:
        out.print("There is no user trigger in this database.")
    made = table("table and trigger", "verdict", "why")
    last = ""
    for judgement in judgements:
        trigger = judgement.trigger
        name = trigger.table if trigger.schema == "public" else f"{trigger.schema}.{trigger.table}"
        colour = _COLOUR[judgement.verdict]
        if name != last:
            made.add_row(f"[bold]{escape(name)}[/]")
        made.add_row(
            f"  {escape(trigger.name)}",
            f"[{colour}]{judgement.verdict.value}[/]",
            escape(_why(judgement)),
        )
        last = name
    if judgements:
        out.print(made)
    show_findings(found.findings)
    for verdict in Verdict:
        count = sum(judgement.verdict is verdict for judgement in judgements)
        if count:
            out.print(f"[{_COLOUR[verdict]}]{count:>4} {verdict.value:<7}[/] {_MEANING[verdict]}")
    if judgements:
        out.print("[dim]afterwrite scan --explain TABLE.TRIGGER shows a body with its deciding lines.[/]")


def _why(judgement: Judgement) -> str:
    if not judgement.reasons:
        return ""
    reason = judgement.reasons[0]
    return reason.rule if reason.line is None else f"{reason.rule}, line {reason.line}"


def _explain(found: Survey, name: str) -> None:
    matching = [
        each for each in found.judgements if each.trigger.identity == name or each.trigger.identity.endswith(f".{name}")
    ]
    if len(matching) != 1:
        raise UsageError(
            f"{len(matching)} triggers are called {name}",
            remedy="name it as table.trigger or schema.table.trigger"
            if matching
            else "run `afterwrite scan` for their names",
        )
    [judgement] = matching
    trigger = judgement.trigger
    out.print(f"[bold]{escape(trigger.identity)}[/]: [{_COLOUR[judgement.verdict]}]{judgement.verdict.value}[/]")
    out.print(f"[dim]{escape(trigger.create)}[/]", soft_wrap=True)
    marked = {reason.line: reason for reason in judgement.reasons if reason.line is not None}
    made = table(">line", "body of " + f"{trigger.function_schema}.{trigger.function}()")
    for number, line in enumerate(trigger.source.split("\n"), start=1):
        reason = marked.get(number)
        text = escape(line)
        made.add_row(str(number), f"[bold {_COLOUR[judgement.verdict]}]{text}[/]" if reason else text)
    out.print(made)
    out.print(fill(table("rule", ">line", "why"), ((r.rule, r.line, r.text) for r in judgement.reasons)))
