"""``afterwrite prove``: what the triggers logged against what was captured, and what is still lacking."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from afterwrite.cli.face import Dsn, Json, counted, emit, fill, out, run, say, settings, table
from afterwrite.errors import ExitCode
from afterwrite.postgres import connect
from afterwrite.prove.prover import begin_window
from afterwrite.prove.report import Proof, TriggerProof, read_proof, to_json
from afterwrite.settings import Settings


def prove(
    dsn: Dsn = None,
    examples: Annotated[bool, typer.Option("--examples", help="Show the newest residuals with both rows.")] = False,
    mapping: Annotated[bool, typer.Option("--mapping", help="Show what each trigger is expected to write.")] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Begin the shadow window anew: counts start from now.")
    ] = False,
    json: Json = False,
) -> int:
    """Show the proof: firings compared, residuals by reason, and what was not seen firing yet.

    Exit 3 while a residual is unexplained, or a silenced trigger still writes.
    """
    return run(_prove(settings(dsn), examples=examples, mapping=mapping, reset=reset, json=json))


async def _prove(given: Settings, *, examples: bool, mapping: bool, reset: bool, json: bool) -> int:
    async with connect(given.dsn, guarded=True) as database:
        if reset:
            await begin_window(database)
            say("The shadow window begins anew.")
        proof = await read_proof(database)
    if json:
        emit({"schema_version": 1, **to_json(proof)})
    else:
        _show(proof)
        if mapping:
            for each in proof.triggers:
                out.print(f"[bold]{escape(each.trigger)}[/]\n{escape(each.mapping)}", soft_wrap=True)
        if examples:
            _show_examples(proof)
    return ExitCode.GATE if proof.unexplained or any(each.alarms for each in proof.triggers) else ExitCode.OK


def _show(proof: Proof) -> None:
    if proof.through_at is None:
        out.print("Nothing was compared yet; `afterwrite capture` compares while it runs.")
        return
    made = table("table and trigger", "mode", ">seen", ">matched", ">ex-\nplained", ">unex-\nplained")
    last = ""
    for each in proof.triggers:
        name = each.trigger.removeprefix("public.").rpartition(".")[0]
        if name != last:
            made.add_row(f"[bold]{escape(name)}[/]")
        fill(made, [_row(each)])
        last = name
    out.print(made)
    for each in proof.triggers:
        if each.unseen and not each.silenced:
            out.print(f"[yellow]not seen yet:[/] {escape(each.trigger)} on {', '.join(each.unseen)}", soft_wrap=True)
    for stranger in proof.strangers:
        for operation in stranger.operations:
            for reason, count in operation.explained.items():
                out.print(f"{count:,} rows of {escape(stranger.trigger)} were written by no watched trigger ({reason})")
    colour = "red" if proof.unexplained else "green"
    out.print(
        f"{counted(proof.transactions, 'transaction')} compared over {proof.seconds:,.0f} s: "
        f"[{colour}]{counted(proof.unexplained, 'unexplained residual')}[/]"
    )


def _row(each: TriggerProof) -> tuple[object, ...]:
    seen = sum(operation.seen for operation in each.operations)
    matched = sum(operation.matched for operation in each.operations)
    explained = sum(sum(operation.explained.values()) for operation in each.operations)
    state = f"{each.mode.value}, off" if each.silenced else each.mode.value
    return (
        f"  {each.trigger.rpartition('.')[2]}",
        state,
        f"{seen:,}",
        f"{matched:,}",
        f"{explained:,}",
        f"{each.unexplained:,}",
    )


def _show_examples(proof: Proof) -> None:
    for each in proof.examples:
        out.print(
            f"[bold]{escape(each.trigger)}[/] {each.operation} [yellow]{each.reason}[/] "
            f"xid {each.xid} at {each.commit_lsn}, key {escape(each.key or '?')}",
            soft_wrap=True,
        )
        for name, row in (("before", each.before), ("after", each.after), ("legacy", each.legacy)):
            if row is not None:
                out.print(f"    {name:<7} [dim]{escape(row)}[/]", soft_wrap=True)
        for difference in each.differences:
            out.print(
                f"    {escape(difference.column)}: expected {escape(difference.expected)}, "
                f"found {escape(difference.found)}",
                soft_wrap=True,
            )
