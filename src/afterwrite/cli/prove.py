"""``afterwrite prove``: what the triggers logged against what was captured, and what is still lacking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from afterwrite.cli.face import FLAG, Dsn, Json, counted, emit, fill, out, plain, run, say, settings, table
from afterwrite.cli.plan import load
from afterwrite.errors import ExitCode, UsageError
from afterwrite.migrate.plan import proof_plan
from afterwrite.postgres import Database, connect
from afterwrite.prove.legacy import LegacyMapping, MappedColumn, MappedRow
from afterwrite.prove.plan import adopt, check, read_planned
from afterwrite.prove.prover import begin_window
from afterwrite.prove.report import MEANING, Proof, Reason, Residual, TriggerProof, read_proof, to_json
from afterwrite.prove.watch import Mode, Planned, Watch, watch
from afterwrite.record import Operation
from afterwrite.scan.survey import survey
from afterwrite.settings import Settings
from afterwrite.store.schema import read_version


def prove(
    trigger: Annotated[
        str | None,
        typer.Argument(help="Only this trigger (or all of a table): its name, with table and schema where needed."),
    ] = None,
    dsn: Dsn = None,
    examples: Annotated[
        bool, typer.Option("--examples", metavar=FLAG, help="Show the newest residuals with both rows.")
    ] = False,
    mapping: Annotated[
        bool,
        typer.Option("--mapping", metavar=FLAG, help="Show what each trigger is expected to write, column by column."),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="Take over what this plan says of legacy columns (its `mapping`).", dir_okay=False),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", metavar=FLAG, help="Begin the shadow window anew: counts start from now.")
    ] = False,
    json: Json = False,
) -> int:
    """Show the proof: firings compared, residuals by reason, and what was not seen firing yet.

    With --mapping: where the value of each legacy column comes from, and how it is compared; works before anything is
    installed. With --plan the running proof goes on by the plan's mapping.

    Exit 3 while a residual is unexplained, or a silenced trigger still writes.
    """
    given = settings(dsn)
    if mapping and plan is None and not reset:
        return run(_show_mapping(given, trigger, json=json))
    return run(_prove(given, trigger, examples=examples, mapping=mapping, plan=plan, reset=reset, json=json))


async def _prove(
    given: Settings, wanted: str | None, *, examples: bool, mapping: bool, plan: Path | None, reset: bool, json: bool
) -> int:
    async with connect(given.dsn, guarded=True) as database:
        if plan is not None:
            await _adopt(database, plan)
        if reset:
            await begin_window(database)
            say("The shadow window begins anew.")
        proof = _only(await read_proof(database), wanted)
    if mapping:
        return await _show_mapping(given, wanted, json=json)
    if json:
        emit({"schema_version": 2, **to_json(proof)})
    else:
        _show(proof)
        if examples:
            _show_rehearsed_examples(proof.triggers)
            _show_examples(proof.examples)
    return ExitCode.GATE if proof.unexplained or any(each.alarms for each in proof.triggers) else ExitCode.OK


async def _adopt(database: Database, plan: Path) -> None:
    planned = proof_plan(load(plan))
    found = await survey(database)
    await check(database, planned, watch(found.inventory, found.judgements, found.bodies, planned))
    changed = await adopt(database, planned)
    if changed:
        say(f"Taken over from {plan}; compared anew from here on: {', '.join(changed)}")
    else:
        say(f"{plan} says what the proof goes by already.")


def _only(proof: Proof, wanted: str | None) -> Proof:
    """The part of the proof that somebody asked for."""
    if wanted is None:
        return proof
    names = _chosen([each.trigger for each in proof.triggers], wanted)
    return msgspec.structs.replace(
        proof,
        triggers=proof.of(names),
        strangers=(),
        examples=tuple(each for each in proof.examples if each.trigger in names),
    )


def _chosen(identities: Sequence[str], wanted: str) -> set[str]:
    """The triggers that a name means: an identity, its end, or a table's name."""
    found = {
        each
        for each in identities
        if each == wanted
        or each.endswith(f".{wanted}")
        or wanted in (each.rpartition(".")[0], each.rpartition(".")[0].partition(".")[2])
    }
    if not found:
        near = ", ".join(identities[:5]) + (" …" if len(identities) > 5 else "")
        raise UsageError(
            f"no trigger that is compared is called {wanted}", remedy=f"name one of them: {near}" if near else None
        )
    return found


# --- the proof --------------------------------------------------------------------------------------------------------


def _show(proof: Proof) -> None:
    if proof.through_at is None:
        out.print("Nothing was compared yet; `afterwrite capture` compares while it runs.")
        return
    made = table("table, trigger", "on", ">seen", ">matched", ">ex-\nplained", ">unex-\nplained")
    last = ""
    for each in proof.triggers:
        name = _table_of(each.trigger)
        if name != last:
            made.add_row(f"[bold]{plain(name)}[/]")
        fill(made, _rows(each))
        last = name
    out.print(made)
    if any(each.mode is Mode.DEFER for each in proof.triggers):
        out.print("[dim]deferred: writes no log; that it fires is counted, and its body is rehearsed.[/]")
    _show_reasons(proof)
    _show_rehearsals(proof.triggers)
    _show_unseen(proof.triggers)
    for each in proof.triggers:
        for note in each.notes:
            out.print(f"[yellow]note[/]  {plain(each.trigger)}: {plain(note)}", soft_wrap=True)
    colour = "red" if proof.unexplained else "green"
    since = f", since {_moment(proof.started_at)}" if proof.started_at else ""
    out.print(
        f"{counted(proof.transactions, 'transaction')} compared in {_lasting(proof.seconds)}{since}: "
        f"[{colour}]{counted(proof.unexplained, 'unexplained residual')}[/]"
    )
    if any(each.unexplained for each in proof.triggers) or any(each.alarms for each in proof.triggers):
        out.print("[dim]`afterwrite prove --examples` shows the newest of each reason with both rows.[/]")


def _table_of(identity: str) -> str:
    return identity.removeprefix("public.").rpartition(".")[0]


def _rows(each: TriggerProof) -> Iterable[tuple[object, ...]]:
    """A line an operation; the trigger's name (and how it stands) beside the first."""
    name = f"  {each.trigger.rpartition('.')[2]}"
    state = [word for word, holds in (("off", each.silenced), ("gone", not each.present)) if holds]
    if state:
        name += f" ({', '.join(state)})"
    for operation in each.operations:
        yield (
            name,
            operation.operation.value,
            f"{operation.seen:,}",
            "deferred" if each.mode is Mode.DEFER else f"{operation.matched:,}",
            f"{sum(operation.explained.values()):,}",
            f"{sum(operation.unexplained.values()):,}",
        )
        name = ""


def _show_reasons(proof: Proof) -> None:
    """How often each reason was counted, what it means, and whose it was."""
    unexplained: dict[Reason, dict[str, int]] = {}
    explained: dict[Reason, dict[str, int]] = {}
    for each in (*proof.triggers, *proof.strangers):
        for operation in each.operations:
            for kind, counts in ((unexplained, operation.unexplained), (explained, operation.explained)):
                for reason, count in counts.items():
                    whose = kind.setdefault(reason, {})
                    whose[each.trigger] = whose.get(each.trigger, 0) + count
    for title, kind, style in (("unexplained", unexplained, "red"), ("explained", explained, "dim")):
        if not kind:
            continue
        made = table(">count", title, "what it means, and whose")
        for reason, whose in kind.items():
            names = [name.removeprefix("public.") for name, _ in sorted(whose.items(), key=lambda each: -each[1])]
            of = ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
            mark = "bold yellow" if reason.alarming else style
            made.add_row(
                f"{sum(whose.values()):,}", f"[{mark}]{reason.value}[/]", f"{MEANING[reason]} [dim]({plain(of)})[/]"
            )
        out.print(made)


_NAMES = 3


def _show_rehearsals(triggers: Sequence[TriggerProof]) -> None:
    """What running deferred bodies on real transactions, and undoing it, has shown."""
    made = table("body, rehearsed", "on", ">agreed", ">differed", "not judged")
    rows = [
        (
            each.trigger.rpartition(".")[2],
            operation.operation.value,
            f"{rehearsed.agreed:,}",
            ", ".join(f"{count:,} {kind}" for kind, count in rehearsed.unexplained.items()) or "0",
            ", ".join(f"{count:,} {kind}" for kind, count in rehearsed.unjudged.items()),
        )
        for each in triggers
        for operation in each.operations
        if (rehearsed := operation.rehearsed) is not None
    ]
    if rows:
        out.print(fill(made, rows))


def _show_unseen(triggers: Sequence[TriggerProof]) -> None:
    """What must still be seen before a phase may move."""
    lacking = [(each, each.unseen) for each in triggers if each.unseen and not each.silenced]
    if not lacking:
        return
    made = table("not seen firing yet", "on")
    fill(made, [(each.trigger.removeprefix("public."), ", ".join(unseen)) for each, unseen in lacking])
    out.print(made)


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _lasting(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def _show_rehearsed_examples(triggers: Sequence[TriggerProof]) -> None:
    """The newest rehearsal that differed, of each trigger and operation."""
    for each in triggers:
        for operation in each.operations:
            rehearsed = operation.rehearsed
            if rehearsed is None or not rehearsed.unexplained or rehearsed.example is None:
                continue
            kinds = ", ".join(rehearsed.unexplained)
            out.print(f"[bold]{plain(each.trigger)}[/] on {operation.operation} [red]{kinds} in a rehearsal[/]")
            example = msgspec.json.decode(rehearsed.example, type=_RehearsedExample)
            out.print(
                f"  {plain(example.why)}{f', {example.commit_lsn}' if example.commit_lsn else ''}", soft_wrap=True
            )
            for name, row in (("expected", example.expected), ("found", example.found)):
                if row is not None:
                    out.print(f"  {name + ':':<11} {plain(bytes(row).decode())}", soft_wrap=True)


class _RehearsedExample(msgspec.Struct, frozen=True, kw_only=True):
    why: str = ""
    commit_lsn: str | None = None
    expected: msgspec.Raw | None = None
    found: msgspec.Raw | None = None


def _show_examples(examples: Sequence[Residual]) -> None:
    """The newest of each reason: where to find it in the WAL, both rows, and what differs."""
    for each in sorted(examples, key=lambda example: (example.reason.explained, example.trigger)):
        style = "dim" if each.reason.explained else "red"
        key = f", key {plain(each.key)}" if each.key else ""
        out.print(
            f"[bold]{plain(each.trigger)}[/] on {each.operation} [{style}]{each.reason}[/]\n"
            f"  xid {each.xid}, {each.commit_lsn}, {_moment(each.committed_at)}{key}"
        )
        for name, row in (
            ("before", each.before),
            ("after", each.after),
            ("in the log", each.legacy),
            ("expected", each.expected),
        ):
            if row is not None and not (name == "expected" and each.differences):
                out.print(f"  {name + ':':<11} {plain(row)}", soft_wrap=True)
        for difference in each.differences:
            out.print(
                f"  [yellow]{plain(difference.column)}[/] must be {plain(difference.expected)},"
                f" is {plain(difference.found)}",
                soft_wrap=True,
            )


# --- the mapping ------------------------------------------------------------------------------------------------------


async def _show_mapping(given: Settings, wanted: str | None, *, json: bool) -> int:
    """What each trigger is expected to write, by its body as it is now and by the plan that was taken over."""
    async with connect(given.dsn, guarded=True) as database:
        found = await survey(database)
        planned: list[Planned] = await read_planned(database) if await read_version(database) is not None else []
    watched = watch(found.inventory, found.judgements, found.bodies, planned)
    mappings = _mapped(watched, wanted)
    if json:
        emit({"schema_version": 1, "mappings": [_mapping_json(each) for each in mappings]})
        return ExitCode.OK
    if not mappings:
        out.print("No trigger writes to a legacy log that would be compared.")
    for each in mappings:
        _show_one_mapping(each)
    return ExitCode.OK


def _mapped(watched: Watch, wanted: str | None) -> list[LegacyMapping]:
    known = sorted((mapping for mapping, _ in watched.watched), key=lambda each: each.identity)
    if wanted is not None:
        chosen = _chosen([each.identity for each in known], wanted)
        return [each for each in known if each.identity in chosen]
    return [each for each in known if each.operations]


def _mapping_json(mapping: LegacyMapping) -> dict[str, Any]:
    return {
        "trigger": mapping.identity,
        "function": mapping.trigger.function,
        "rows": msgspec.to_builtins(mapping.rows()),
        "overrides": msgspec.to_builtins(mapping.overrides),
        "notes": list(mapping.notes),
    }


_TIMES = {"change": "", "statement": "once a statement", "round": "once a round of its loop", "any": "any number"}


def _show_one_mapping(mapping: LegacyMapping) -> None:
    trigger = mapping.trigger
    out.print(f"[bold]{plain(mapping.identity)}[/] [dim]{plain(trigger.function)}(), {trigger.level} level[/]")
    if not mapping.operations:
        out.print("  writes to no legacy log: only that it fires is counted")
    for rows in _alike(mapping.rows()):
        head = rows[0]
        on = ", ".join(dict.fromkeys(each.operation.value for each in rows))
        times = f", {_TIMES[head.times]}" if _TIMES[head.times] else ""
        out.print(f"  [bold]{plain(head.table)}[/] on {on} (line {head.line}{times})")
        for word, text in (("when", head.when), ("if", head.condition)):
            if text:
                out.print(f"    {word} {plain(text)}", soft_wrap=True)
        made = table("  column", "comes from", "compared")
        for names, column in _columns(rows):
            value = column.value if column.why != "default" else ""
            made.add_row(
                f"  {plain(column.column)}{' [dim]key[/]' if column.identifies else ''}",
                (f"[dim]{names}:[/] " if names else "")
                + ("[green]plan:[/] " if column.planned and column.why != "ignored" else "")
                + plain(value),
                _compared(column),
            )
        out.print(made)
    for note in mapping.notes:
        out.print(f"  [yellow]note[/]  {plain(note)}", soft_wrap=True)


def _alike(rows: Sequence[MappedRow]) -> list[list[MappedRow]]:
    """Rows of one INSERT under the same conditions are shown together, for all the operations that reach it."""
    groups: dict[tuple[object, ...], list[MappedRow]] = {}
    for row in rows:
        names = tuple(column.column for column in row.columns)
        groups.setdefault((row.table, row.line, row.when, row.condition, row.times, names), []).append(row)
    return list(groups.values())


def _columns(rows: Sequence[MappedRow]) -> Iterable[tuple[str, MappedColumn]]:
    """Each column once where all operations agree, else once for each that says another thing."""
    for place, column in enumerate(rows[0].columns):
        said: dict[MappedColumn, list[Operation]] = {}
        for row in rows:
            said.setdefault(row.columns[place], []).append(row.operation)
        for each, operations in said.items():
            yield ("" if len(said) == 1 else ", ".join(operations)), each
        del column


_WHY = {
    "time": "the writer's clock",
    "generated": "made up at random or by a sequence",
    "lookup": "read from other tables",
    "session": "the writer's session",
    "statement": "of a whole statement",
    "not-in-wal": "not in the WAL",
    "generated-column": "a generated column: not in the WAL",
    "opaque": "not understood",
    "ignored": "left out by the plan",
    "default": "not in the INSERT: its default",
}


def _compared(column: MappedColumn) -> str:
    whys = ", ".join(_WHY.get(why, why) for why in (column.why or "").split(", ") if why)
    match column.compared:
        case "exact":
            return "[green]exactly[/]" + (f" ({whys})" if whys else "")
        case "partly":
            return f"[yellow]partly[/] ({whys})"
        case _:
            return f"[dim]no: {whys}[/]"
