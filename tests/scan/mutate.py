"""The mutation test: bodies of the corpus are mutated and judged, and what a verdict lets go is run by the server.

    ./run python tests/scan/mutate.py --bodies 10000 --seed 1     (--only SCENE/N shows one case)

Strictness is retire < defer < review < keep. A mutated body fails the test when

- **unread**: the server refuses its syntax, and yet its trigger may go or wait;
- **seen**: the server runs it, and it is seen refusing, changing its own table or (where it may go) writing what is no
  log, and yet its verdict allows no such thing;
- **looser**: its verdict is looser than that of the body as it was, without a reason. Reasons are: a place that cannot
  be read (keep becomes review); the effect was seen before and is no longer seen when the server runs it; the statement
  that decided is no longer in the text; or the server refuses the function for a type or a name that is not there, so
  that no database has it;
- **others**: the verdict of another trigger became looser, while the mutated body cannot be read and still names a
  table that the other one writes;
- **decorated**: what changes nothing of the meaning changed the verdict (the very large and deep may become review);
- **added**: an effect was added, and the verdict is looser than that effect or the body as it was asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg
from mutations import Ground, Kind, Mutation, mutate, pieces
from scenes import CORPUS, intentions, laid
from trial import Court, Rejected, unsound

from afterwrite.postgres import connect, quoted
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.scan import rules
from afterwrite.scan.catalog import Function, Inventory, Timing, Trigger, TriggerLevel, read_inventory
from afterwrite.scan.catalog import Kind as TableKind
from afterwrite.scan.classify import Judgement, Reason, Verdict
from afterwrite.scan.parser import Parser, open_parser
from afterwrite.scan.survey import Survey, judge_inventory

STRICTNESS = (Verdict.RETIRE, Verdict.DEFER, Verdict.REVIEW, Verdict.KEEP)
_GOING = (Verdict.RETIRE, Verdict.DEFER)
_UNREAD = ("unparsable", "other-language", "dynamic-sql")
_RULES = {
    Verdict.KEEP: {rules.rule_name(rule) for rule in (*rules.KEEP, *rules.LATE_KEEP)},
    Verdict.DEFER: {rules.rule_name(rule) for rule in rules.DEFER},
    Verdict.RETIRE: {rules.rule_name(rule) for rule in rules.RETIRE},
}


def looser(verdict: Verdict, than: Verdict) -> bool:
    """Whether a verdict allows more than another."""
    return STRICTNESS.index(verdict) < STRICTNESS.index(than)


class Failure(NamedTuple):
    """A mutated body whose verdict is wrong."""

    number: str
    trigger: str
    mutation: str
    what: str

    def __str__(self) -> str:
        return f"{self.number} {self.trigger} [{self.mutation}]: {self.what}"


class Account(msgspec.Struct):
    """What came out of a run. ``outcomes``: by kind of mutation, how many triggers were judged how."""

    bodies: int = 0
    deaths: int = 0
    run: int = 0
    outcomes: dict[str, Counter[str]] = msgspec.field(default_factory=lambda: {kind.value: Counter() for kind in Kind})
    failures: list[Failure] = []


class Scene:
    """One scene in a database: its inventory, its survey, the functions to mutate, and the court."""

    def __init__(self, path: Path, inventory: Inventory, survey: Survey, connection: psycopg.Connection) -> None:
        self.path = path
        self.inventory = inventory
        self.before = {each.trigger.oid: each for each in survey.judgements}
        self.court = Court(connection, inventory)
        self.court.furnish()
        self.wrong = {each.trigger for each in intentions(path) if each.wrong}
        self.triggers = {trigger.oid: trigger for trigger in inventory.triggers}
        self.functions = {function.oid: function for function in inventory.functions}
        self.runners: dict[int, list[int]] = {}
        named = Counter(function.full_name for function in inventory.functions)
        for trigger in inventory.triggers:
            names = {name.rpartition(":")[0] for name in _vias(survey.bodies[trigger.oid])}
            for oid, function in self.functions.items():
                if oid == trigger.function_oid or function.full_name in names:
                    self.runners.setdefault(oid, []).append(trigger.oid)
        self.units = [
            oid
            for oid in sorted(self.runners, key=lambda oid: self.functions[oid].full_name)
            if self.functions[oid].extension is None
            and self.functions[oid].language in ("plpgsql", "sql")
            and self.functions[oid].sql_body is None
            and named[self.functions[oid].full_name] == 1  # of overloads it is not known here which one runs
        ]
        self._ran: dict[int, list[tuple[str, str]]] = {}
        rows = connection.execute("select oid, pg_get_functiondef(oid) from pg_proc where oid = any(%s)", [self.units])
        self.definitions: dict[int, str] = dict(rows.fetchall())

    def ground(self, function: Function) -> Ground:
        """What a mutation of this function must know of where it runs."""
        trigger = self.triggers[self.runners[function.oid][0]]
        homes = {self.triggers[oid].table_oid for oid in self.runners[function.oid]}
        others = [
            table
            for table in self.inventory.tables
            if table.kind is TableKind.TABLE and table.partition_of is None and table.oid not in homes
        ]
        other = sorted(others, key=lambda table: table.full_name)[0]
        return Ground(
            plpgsql=function.language == "plpgsql",
            trigger=function.returns_trigger,
            before_row=function.returns_trigger
            and all(
                self.triggers[oid].timing is Timing.BEFORE and self.triggers[oid].level is TriggerLevel.ROW
                for oid in self.runners[function.oid]
            ),
            home=quoted(trigger.schema, trigger.table) if len(homes) == 1 else None,
            other=quoted(other.schema, other.name),
            column=quoted(other.columns[0].name),
            donors=[self.functions[oid].source for oid in self.units],
        )

    def mutated(self, function: Function, body: str) -> tuple[Inventory, str]:
        """The inventory with this function's body changed, and the function's definition."""
        definition = redefined(self.definitions[function.oid], body)
        changed = msgspec.structs.replace(
            function, source=body, definition=definition if function.definition is not None else None
        )
        functions = tuple(changed if each.oid == function.oid else each for each in self.inventory.functions)
        triggers = tuple(
            msgspec.structs.replace(each, source=body, definition=definition)
            if each.function_oid == function.oid
            else each
            for each in self.inventory.triggers
        )
        return msgspec.structs.replace(self.inventory, functions=functions, triggers=triggers), definition

    def ran(self, trigger: Trigger) -> list[tuple[str, str]]:
        """What the trigger, as it was, was seen to do."""
        if trigger.oid not in self._ran:
            self._ran[trigger.oid] = self.court.effects(trigger, None)
        return self._ran[trigger.oid]


def redefined(definition: str, body: str) -> str:
    """CREATE FUNCTION with another body, quoted as pg_get_functiondef() quotes."""
    mark = re.search(r"^AS (\$(?:function|procedure))x*\$", definition, re.MULTILINE)
    assert mark is not None, definition
    tag = mark[1]
    while tag in body:
        tag += "x"
    return f"{definition[: mark.start()]}AS {tag}${body}{tag}$\n"


def _vias(body: Any) -> set[str]:
    found: set[str] = set()
    for field in msgspec.structs.fields(type(body)):
        for fact in getattr(body, field.name):
            found.update(getattr(fact, "via", ()))
    return found


# One body -------------------------------------------------------------------------------------------------------------


async def try_one(scene: Scene, parser: Parser, number: int, seed: int, account: Account) -> tuple[Mutation, Survey]:
    """Mutate, judge, try; what is wrong goes into the account."""
    name = f"{scene.path.stem}/{number}"
    rng = random.Random(f"{seed}:{name}")
    function = scene.functions[rng.choice(scene.units)]
    mutation = mutate(function.source, scene.ground(function), rng)
    inventory, definition = scene.mutated(function, mutation.body)
    survey = await judge_inventory(inventory, parser)
    after = {each.trigger.oid: each for each in survey.judgements}
    running = scene.runners[function.oid]
    account.bodies += 1
    going = [oid for oid in running if after[oid].verdict in _GOING]
    rejected = scene.court.accepts(definition) if going else None
    for oid in running:
        judgement, before = after[oid], scene.before[oid]
        if judgement.trigger.identity in scene.wrong:
            account.outcomes[mutation.kind]["known to be judged wrongly"] += 1
            continue
        case = Case(scene, function, mutation, judgement, before, rejected, definition)
        for what in _wrong(case, account):
            _fail(account, name, judgement, mutation, what)
        account.outcomes[mutation.kind][_outcome(case)] += 1
    read = not any(fact.rule in _UNREAD for oid in running for fact in survey.bodies[oid].unknowns)
    for oid, judgement in after.items():
        if oid not in running and looser(judgement.verdict, scene.before[oid].verdict) and not read:
            named = [name for name in _written(scene.before[oid]) if _names(mutation.body, name)]
            if named and judgement.verdict in _GOING and judgement.trigger.identity not in scene.wrong:
                what = f"others: {scene.before[oid].verdict} became {judgement.verdict}, and the body names {named[0]}"
                _fail(account, name, judgement, mutation, what)
    return mutation, survey


class Case(NamedTuple):
    """A trigger that runs a mutated function: how it is judged now, and how before."""

    scene: Scene
    function: Function
    mutation: Mutation
    judgement: Judgement
    before: Judgement
    rejected: Rejected | None
    definition: str


def _wrong(case: Case, account: Account) -> Iterator[str]:
    scene, function, mutation, judgement, before, rejected, definition = case
    went = f"{before.verdict} became {judgement.verdict}"
    is_looser = looser(judgement.verdict, before.verdict)
    if mutation.kind is Kind.ADDITION:
        asked = mutation.floor if looser(before.verdict, mutation.floor) else before.verdict
        if looser(judgement.verdict, asked):
            yield f"added: {went}, and {asked} was asked for"
        return
    if mutation.kind is Kind.DECORATION and judgement.verdict is not before.verdict:
        if not (mutation.extreme and judgement.verdict is Verdict.REVIEW):
            yield f"decorated: {went}"
        return
    if judgement.verdict not in _GOING:
        return  # review says itself which place cannot be read
    if rejected is not None:
        if rejected.unread and not _about_result(function, rejected):
            yield f"unread: {went}, but the server says: {rejected.message}"
        return  # what it refuses for a type or a name that it does not know, no database has
    if scene.court.can_try(judgement.trigger):
        account.run += 1
        seen = scene.court.effects(judgement.trigger, definition)
        yield from (f"seen: {went}, but it {what}" for what in unsound(judgement, seen)[:1])
    if is_looser and not _seen_gone(scene, judgement, before) and (left := _left(case)):
        yield f"looser: {went}, and there still stands {left}"


def _about_result(function: Function, rejected: Rejected) -> bool:
    """Whether a RETURN does not go with what the function was declared to return, which its body does not tell."""
    return not function.returns_trigger and (
        rejected.message.startswith("RETURN cannot have") or rejected.message == 'missing expression at or near ";"'
    )


def _seen_gone(scene: Scene, judgement: Judgement, before: Judgement) -> bool:
    """Whether the trigger as it was was seen doing what the new verdict leaves no room for."""
    if not scene.court.can_try(before.trigger):
        return False
    return bool(unsound(msgspec.structs.replace(before, verdict=judgement.verdict), scene.ran(before.trigger)))


def _left(case: Case) -> str:
    """A deciding statement of the function as it was that still stands in the mutated one; empty when none does."""
    lines = case.function.source.splitlines()
    text = _bare(case.mutation.body)
    is_trigger_function = case.function.oid == case.before.trigger.function_oid
    through = re.compile(rf"\b{re.escape(case.function.full_name)}:(\d+)")
    for reason in case.before.reasons:
        if _asks_for(reason) is not case.before.verdict:
            continue
        if reason.line is None and is_trigger_function and "(through " not in reason.text:
            return f"{reason.rule}, which hangs on no line"
        numbers = [reason.line] if is_trigger_function else [int(number) for number in through.findall(reason.text)]
        for number in numbers:
            wanted = _bare("\n".join(lines[(number or 1) - 1 :]).partition(";")[0])
            size = len(wanted)
            if wanted and any(text[place : place + size] == wanted for place in range(len(text) - size + 1)):
                return f"{reason.rule}: {' '.join(wanted)}"
    return ""


def _asks_for(reason: Reason) -> Verdict:
    for verdict, names in _RULES.items():
        if reason.rule in names:
            return verdict
    return Verdict.REVIEW  # what cannot be known goes by many names


def _bare(text: str) -> list[str]:
    listed = [piece for piece in pieces(text) if not piece.isspace() and not piece.startswith(("--", "/*"))]
    return [piece if piece[0] in "'\"$" else piece.lower() for piece in listed]


def _outcome(case: Case) -> str:
    verdict, was = case.judgement.verdict, case.before.verdict
    if verdict is was:
        return "same"
    if looser(was, verdict):
        return "stricter"
    if verdict is Verdict.REVIEW:
        return "looser: a place cannot be read"
    if case.rejected is not None:
        return "looser: the server knows no such type or name"
    if _seen_gone(case.scene, case.judgement, case.before):
        return "looser: the effect is no longer seen"
    return "looser: what decided is no longer in the text"


def _written(judgement: Judgement) -> list[str]:
    return [name.rpartition(".")[2] for name in (*judgement.log_tables, *judgement.effects)]


def _names(body: str, table: str) -> bool:
    return re.search(rf"\b{re.escape(table)}\b", body) is not None


def _fail(account: Account, number: str, judgement: Judgement, mutation: Mutation, what: str) -> None:
    kind = f"{mutation.kind}, {mutation.name}"
    account.failures.append(Failure(number, judgement.trigger.identity, kind, what))


# A run ----------------------------------------------------------------------------------------------------------------


async def run(
    server: Server, bodies: int, seed: int, paths: Sequence[Path] = CORPUS, only: str | None = None
) -> Account:
    """So many mutated bodies, spread over the scenes by the number of their triggers."""
    account = Account()
    weights = [sum(1 for _ in intentions(path)) for path in paths]
    async with open_parser() as parser:
        for place, path in enumerate(paths):
            share = bodies * sum(weights[: place + 1]) // sum(weights) - bodies * sum(weights[:place]) // sum(weights)
            numbers = [number for number in range(share) if only in (None, f"{path.stem}/{number}")]
            if numbers:
                await _run_scene(server, path, parser, numbers, seed, account, show=only is not None)
        account.deaths = parser.deaths
    return account


async def _run_scene(
    server: Server, path: Path, parser: Parser, numbers: Sequence[int], seed: int, account: Account, *, show: bool
) -> None:
    with laid(server, path, "mutated") as dsn:
        async with connect(dsn) as db:
            inventory = await read_inventory(db)
        survey = await judge_inventory(inventory, parser)
        with _court(dsn) as connection:
            scene = Scene(path, inventory, survey, connection)
            for number in numbers:
                mutation, _ = await try_one(scene, parser, number, seed, account)
                if show:
                    print(mutation.body)


@contextmanager
def _court(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set client_min_messages = error")
        yield connection


def shown(account: Account, seed: int, seconds: float) -> str:
    """The account in Markdown, as docs/scan-corpus.md has it."""
    names = sorted({name for counted in account.outcomes.values() for name in counted}, key=_order)
    lines = [
        f"{account.bodies:,} bodies, seed {seed}: {len(account.failures)} wrong verdicts; our process lived, the "
        f"parser's was restarted {account.deaths} times; the server ran {account.run:,} of them ({seconds:.0f} s).",
        "",
        "| triggers judged, by mutation | " + " | ".join(account.outcomes) + " |",
        "|---|" + "--:|" * len(account.outcomes),
    ]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(f"{counted[name]:,}" for counted in account.outcomes.values()) + " |")
    return "\n".join(lines)


def _order(name: str) -> tuple[int, str]:
    return (("same", "stricter").index(name) if name in ("same", "stricter") else 2 + name.startswith("known"), name)


def main(bodies: int, seed: int, only: str | None) -> int:
    """The command: gives its exit code."""
    started = time.monotonic()
    with embedded_server(settings={"fsync": "off", "autovacuum": "off"}) as server:
        account = asyncio.run(run(server, bodies, seed, only=only))
    for failure in account.failures:
        print(failure, file=sys.stderr)
    print(shown(account, seed, time.monotonic() - started))
    return 1 if account.failures else 0


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description="Mutate the bodies of the corpus and judge them.")
    asked.add_argument("--bodies", type=int, default=10_000)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--only", metavar="SCENE/N", help="one of them, shown")
    sys.exit(main(**vars(asked.parse_args())))
