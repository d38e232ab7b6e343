"""What one trigger does through everything that it calls: its function's facts, resolved and seen from the trigger.

    Body of the function ─┐
    Bodies of the callees ─┼─▶ follow ─▶ one Body: names resolved, dynamic SQL resolved, dead branches left out
    TG_ARGV and the rest ──┘

Pure. Texts that are needed and not yet read are handed back as ``missing``: the caller reads them and follows again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from afterwrite.scan.atlas import SYSTEM_SCHEMAS, Atlas
from afterwrite.scan.catalog import Event, Function, Table, Trigger
from afterwrite.scan.evaluate import (
    PLACEHOLDER,
    Surroundings,
    Value,
    feasible,
    in_callers_words,
    surroundings,
    values,
)
from afterwrite.scan.facts import (
    FACT_FIELDS,
    Body,
    Call,
    Delete,
    Dynamic,
    Fact,
    Guard,
    Insert,
    Language,
    OnTable,
    Read,
    RowRead,
    Source,
    Unknown,
    Update,
    assemble,
)
from afterwrite.scan.known import (
    HARMLESS_BUILTINS,
    HARMLESS_EXTENSION_FUNCTIONS,
    OUTSIDE,
    OUTSIDE_SCHEMAS,
)
from afterwrite.scan.tokens import split_names, substitute

F = TypeVar("F", bound=Fact)
Bodies = Mapping[Source, Body]

_DEEPEST = 12
_MOST_VISITS = 400
_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision", "boolean")
_WRITES = (Insert, Update, Delete)


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """What a trigger (or a function) does in all; provisional while ``missing`` names texts to be read first."""

    body: Body
    missing: frozenset[Source] = frozenset()
    functions: frozenset[int] = frozenset()


def source_of(function: Function) -> Source | None:
    """The text of a function that can be followed; None for other languages."""
    match function.language:
        case "plpgsql" if function.definition is not None:
            text = function.definition
            return Source(
                language=Language.PLPGSQL,
                text=text,
                trigger=function.returns_trigger,
                parameters=_parameters(function),
            )
        case "sql":
            text = function.source if function.sql_body is None else _standard_body(function.sql_body)
            return Source(language=Language.SQL, text=text, parameters=_parameters(function))
        case _:
            return None


def trigger_source(trigger: Trigger) -> Source | None:
    """The text of a trigger's function; None when it is not PL/pgSQL."""
    if trigger.language != "plpgsql":
        return None
    return Source(language=Language.PLPGSQL, text=trigger.definition, trigger=True)


def _standard_body(body: str) -> str:
    """A SQL-standard body as plain statements. (Given whole, as part of CREATE FUNCTION, it makes the parser abort.)"""
    text = body.strip()
    if text.upper().startswith("RETURN"):
        return f"select {text[6:]}"
    return text.removeprefix("BEGIN ATOMIC").removesuffix("END")


def _parameters(function: Function) -> tuple[str, ...]:
    return tuple(name for name in function.arguments if name)


def follow(trigger: Trigger, atlas: Atlas, bodies: Bodies) -> Reach:
    """Everything that a trigger does, as far as the bodies read so far tell."""
    table = atlas.table_of(trigger)
    fired_for: list[tuple[str, str]] = []
    if table is not None and trigger.level.value == "row":
        fired_for = [(leaf.schema, leaf.name) for leaf in atlas.leaves(table)]
    numbers = [column.name for column in table.columns if column.type.startswith(_NUMBERS)] if table else []
    arounds = {event: surroundings(trigger, event, tables=fired_for, numbers=numbers) for event in trigger.events}
    follower = _Follower(atlas, bodies, trigger, table)
    if trigger.when:
        condition = Source(language=Language.CONDITION, text=trigger.when, trigger=True)
        body = follower.body_of(condition)
        if body is not None:
            frame = _Frame(arounds=tuple(arounds.values()), path=(), line=0, via=("WHEN",))
            follower.visit(body, frame)
    source = trigger_source(trigger)
    if source is None:
        text = f"the function {trigger.function_schema}.{trigger.function}() is written in {trigger.language}"
        follower.add(Unknown(rule="other-language", text=text))
    else:
        body = follower.body_of(source)
        if body is not None:
            path = atlas.search_path(trigger.config)
            follower.visit(body, _Frame(arounds=tuple(arounds.values()), path=path, stack=(trigger.function_oid,)))
    return follower.reach()


def follow_function(function: Function, atlas: Atlas, bodies: Bodies) -> Reach:
    """Everything that a function does when it is called by itself, its arguments unknown."""
    follower = _Follower(atlas, bodies, None, None)
    source = source_of(function)
    body = follower.body_of(source) if source is not None else None
    if body is not None:
        follower.visit(body, _Frame(arounds=({},), path=atlas.search_path(function.config), stack=(function.oid,)))
    return follower.reach()


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Where in the chain of calls a body is visited. ``line`` is the calling line of the trigger's own body."""

    arounds: tuple[Surroundings, ...]
    path: tuple[str, ...]
    line: int | None = None
    via: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    handler: bool = False
    loop: bool = False
    stack: tuple[int, ...] = ()
    label: str = ""
    substitution: Mapping[str, str] = {}
    names: Mapping[str, tuple[str, ...]] = {}


class _Follower:
    def __init__(self, atlas: Atlas, bodies: Bodies, trigger: Trigger | None, table: Table | None) -> None:
        self.atlas = atlas
        self.bodies = bodies
        self.trigger = trigger
        self.table = table
        self.facts: dict[type[Fact], list[Fact]] = {}
        self.missing: set[Source] = set()
        self.functions: set[int] = set()
        self.visits = 0
        self.loops: tuple[int, ...] = ()
        self.exception_blocks: tuple[int, ...] = ()

    def reach(self) -> Reach:
        body = assemble(self.facts, loops=self.loops, exception_blocks=self.exception_blocks)
        return Reach(body=body, missing=frozenset(self.missing), functions=frozenset(self.functions))

    def add(self, fact: Fact) -> None:
        self.facts.setdefault(type(fact), []).append(fact)

    def body_of(self, source: Source) -> Body | None:
        body = self.bodies.get(source)
        if body is None:
            self.missing.add(source)
        return body

    def visit(self, body: Body, frame: _Frame) -> None:
        """Take over a body's facts, and go on into what it calls and executes."""
        self.visits += 1
        if self.visits > _MOST_VISITS:
            text = f"more than {_MOST_VISITS} bodies are run from here"
            self.add(Unknown(line=frame.line or 0, rule="unknown-function", text=text))
            return
        if frame.line is None:
            self.loops, self.exception_blocks = body.loops, body.exception_blocks
        # Facts under the same conditions share one tuple of them (the parser sees to that).
        reached: dict[int, tuple[Surroundings, ...]] = {}
        for field in FACT_FIELDS:
            for fact in getattr(body, field):
                arounds = reached.get(id(fact.guards))
                if arounds is None:
                    arounds = tuple(around for around in frame.arounds if feasible(fact.guards, around))
                    reached[id(fact.guards)] = arounds
                if arounds:
                    self._take(fact, frame, arounds)

    def _take(self, fact: Fact, frame: _Frame, arounds: tuple[Surroundings, ...]) -> None:
        seen = self._seen(fact, frame)
        if isinstance(fact, OnTable) and isinstance(seen, OnTable):
            self._on_table(seen, frame)
            return
        if frame.label and field_of(fact) in ("returns", "new_assignments", "row_reads"):
            return
        self.add(seen)
        if isinstance(fact, Call) and isinstance(seen, Call):
            self._call(fact, seen, frame, arounds)
        elif isinstance(fact, Dynamic) and isinstance(seen, Dynamic):
            self._execute(fact, seen, frame, arounds)

    # Facts in the trigger's words ------------------------------------------------------------------------------------

    def _seen(self, fact: F, frame: _Frame) -> F:
        """A fact as the trigger would say it: its own line, the guards of the whole way, names that do not collide."""
        if frame.line is None:
            return fact
        changes: dict[str, Any] = {
            "line": frame.line,
            "via": (*frame.via, *((f"{frame.label}:{fact.line}",) if frame.label else ())),
            "guards": (*frame.guards, *(self._guard(guard, frame) for guard in fact.guards)),
            "handler": fact.handler or frame.handler,
            "loop": fact.loop or frame.loop,
        }
        for name in ("names", "into"):
            given = getattr(fact, name, ())
            if given:
                changes[name] = self._names(given, frame)
        for name in ("values", "texts", "using"):
            given = getattr(fact, name, ())
            if given:
                changes[name] = tuple(substitute(text, frame.substitution) for text in given)
        for name in ("where", "source", "text", "channel", "payload"):
            given = getattr(fact, name, "")
            if given and name != "text":
                changes[name] = substitute(given, frame.substitution)
        variable = getattr(fact, "variable", None)
        if variable is not None and frame.label:
            changes["variable"] = f"{frame.label}.{variable}"
            changes["text"] = substitute(getattr(fact, "text", ""), frame.substitution)
        return msgspec.structs.replace(fact, **changes)

    def _guard(self, guard: Guard, frame: _Frame) -> Guard:
        return msgspec.structs.replace(
            guard,
            text=substitute(guard.text, frame.substitution),
            line=frame.line or guard.line,
            names=self._names(guard.names, frame),
        )

    def _names(self, names: Sequence[str], frame: _Frame) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for name in names:
            first = name.partition(".")[0]
            if name in frame.names or first in frame.names:
                found |= dict.fromkeys(frame.names.get(name, frame.names.get(first, ())))
            elif frame.label:
                found[f"{frame.label}.{name}"] = None
            else:
                found[name] = None
        return tuple(found)

    # Tables ----------------------------------------------------------------------------------------------------------

    def _on_table(self, fact: OnTable, frame: _Frame) -> None:
        if PLACEHOLDER in (fact.table, fact.schema):
            text = "the table's name is only known when it runs"
            self.add(Unknown(line=fact.line, via=fact.via, guards=fact.guards, rule="dynamic-sql", text=text))
            return
        if fact.schema is None and not frame.label and self._transition(fact):
            return
        near = self.trigger.schema if self.trigger else ""
        table = self.atlas.find_table(fact.schema, fact.table, frame.path, near)
        if table is not None:
            fact = msgspec.structs.replace(fact, schema=table.schema, table=table.name)
            if isinstance(fact, Insert):
                fact = self._laid_out(fact, table)
            self.add(fact)
            return
        system = fact.schema in SYSTEM_SCHEMAS or (fact.schema is None and fact.table.startswith("pg_"))
        if isinstance(fact, _WRITES):
            text = f"it writes {fact.relation}, which is not a table that can be seen here"
            rule = "writes-system-catalog" if system else "unknown-table"
            self.add(Unknown(line=fact.line, via=fact.via, guards=fact.guards, rule=rule, text=text))
            return
        self.add(fact)

    def _transition(self, fact: OnTable) -> bool:
        """Whether the name is a transition table, whose columns are those of the trigger's rows."""
        if self.trigger is None or not isinstance(fact, Read):
            return False
        rows = {self.trigger.old_table: "old", self.trigger.new_table: "new"}
        row = rows.get(fact.table)
        if row is None:
            return False
        known = {each.name for each in self.table.columns} if self.table else set[str]()
        for column in fact.columns:
            # Another name is the table's alias taken as a whole row (`to_jsonb(n)`), or a name from elsewhere.
            taken = column if column in known else "*"
            self.add(RowRead(line=fact.line, guards=fact.guards, row=row, column=taken))
        return True

    def _laid_out(self, fact: Insert, table: Table) -> Insert:
        """An INSERT with its columns filled in and a row's star spread, so that values can be laid against columns."""
        columns = fact.columns or tuple(column.name for column in table.columns if not column.generated)
        spread: list[str] = []
        for value in fact.values:
            row = value.replace("(", "").replace(")", "").removesuffix(".*").lower()
            if value.endswith(".*") and row in ("new", "old") and self.table is not None:
                spread += [f"{row}.{column.name}" for column in self.table.columns]
            else:
                spread.append(value)
        if any(value.endswith(".*") or value == "*" for value in spread):
            spread = []
        if not fact.columns:
            columns = columns[: len(spread)] if spread else columns
        return msgspec.structs.replace(
            fact, columns=columns, values=tuple(spread) if len(spread) == len(columns) else ()
        )

    # Calls -----------------------------------------------------------------------------------------------------------

    def _call(self, fact: Call, seen: Call, frame: _Frame, arounds: tuple[Surroundings, ...]) -> None:
        if PLACEHOLDER in (fact.name, fact.schema):
            self._unknown(seen, "dynamic-sql", "the function's name is only known when it runs")
            return
        found = self.atlas.find_functions(fact.schema, fact.name, len(fact.arguments), frame.path)
        if self.atlas.is_builtin(fact.schema, fact.name):
            known = fact.name in HARMLESS_BUILTINS or self._goes_outside(fact)
            if self.atlas.is_volatile_builtin(fact.name) and not known:
                self._unknown(seen, "unknown-function", f"{fact.name}() may do anything")
            if fact.schema is not None:
                return
            found = [function for function in found if function.schema in frame.path]
        elif not found:
            if not self.atlas.is_aggregate(fact.name) and not self._goes_outside(seen):
                self._unknown(seen, "unknown-function", f"the function {fact.full_name}() is not in this database")
            return
        for function in found:
            self._into(function, fact, seen, frame, arounds)

    def _into(
        self, function: Function, fact: Call, seen: Call, frame: _Frame, arounds: tuple[Surroundings, ...]
    ) -> None:
        self.functions.add(function.oid)
        source = source_of(function)
        if source is None:
            self._foreign(function, seen)
            return
        if self._goes_outside(seen) or function.oid in frame.stack:
            return
        if len(frame.stack) > _DEEPEST:
            self._unknown(seen, "unknown-function", f"the calls go deeper than {_DEEPEST} functions")
            return
        body = self.body_of(source)
        if body is None:
            return
        parameters = _bound(function, fact)
        # Locals of the callee get names of their own, so that they cannot be taken for the trigger's variables.
        local = {each.variable for each in body.assignments if "." not in each.variable}
        substitution = {name: f'"{function.full_name}.{name}"' for name in local}
        substitution |= {name: substitute(text, frame.substitution) for name, (_, text) in parameters.items() if text}
        names = dict.fromkeys(parameters, seen.names) | {"result": seen.into}
        inner = tuple(
            {
                name: tuple(in_callers_words(value, frame.substitution) for value in values(term, around))
                for name, (term, _) in parameters.items()
            }
            for around in arounds
        )
        inner_frame = _Frame(
            arounds=inner,
            path=self.atlas.search_path(function.config) if function.config else frame.path,
            line=seen.line,
            via=seen.via,
            guards=seen.guards,
            handler=seen.handler,
            loop=seen.loop,
            stack=(*frame.stack, function.oid),
            label=function.full_name,
            substitution=substitution,
            names=names,
        )
        self.visit(body, inner_frame)

    def _foreign(self, function: Function, seen: Call) -> None:
        """A function that cannot be followed: harmless when it only computes, unknown otherwise."""
        if function.language in ("c", "internal"):
            computes = function.volatility in ("i", "s") or function.name in HARMLESS_EXTENSION_FUNCTIONS
            if not computes and not self._goes_outside(seen):
                text = f"{function.full_name}() is written in {function.language} and may do anything"
                self._unknown(seen, "unknown-function", text)
            return
        self._unknown(seen, "other-language", f"{function.full_name}() is written in {function.language}")

    @staticmethod
    def _goes_outside(call: Call) -> bool:
        """Whether the parser has noted it as an Outside fact already."""
        return call.name in OUTSIDE or call.schema in OUTSIDE_SCHEMAS

    def _unknown(self, at: Fact, rule: str, text: str) -> None:
        self.add(Unknown(line=at.line, via=at.via, guards=at.guards, handler=at.handler, rule=rule, text=text))

    # Dynamic SQL -----------------------------------------------------------------------------------------------------

    def _execute(self, fact: Dynamic, seen: Dynamic, frame: _Frame, arounds: tuple[Surroundings, ...]) -> None:
        found = {value: None for around in arounds for value in values(fact.term, around)}
        texts = [value for value in found if isinstance(value, str)]
        facts = self.facts[Dynamic]
        facts[-1] = msgspec.structs.replace(seen, texts=tuple(texts))
        if len(texts) < len(found):
            why = f"what it executes is only known when it runs: {_short(seen.text)}"
            facts[-1] = msgspec.structs.replace(seen, texts=(), why=why)
            self._unknown(seen, "dynamic-sql", why)
        for text in texts:
            body = self.body_of(Source(language=Language.STATEMENT, text=text))
            if body is None:
                continue
            if body.unknowns:
                self._unknown(seen, "dynamic-sql", f"what it executes cannot be parsed: {_short(text)}")
                continue
            using = {f"${place}": using for place, using in enumerate(seen.using, 1)}
            inner: list[Mapping[str, tuple[Value, ...]]] = [
                {f"${place}": values(term, around) for place, term in enumerate(fact.using_terms, 1)}
                for around in arounds
            ]
            names = {name: split_names(given) for name, given in using.items()}
            inner_frame = _Frame(
                arounds=tuple(inner),
                path=frame.path,
                line=seen.line,
                via=seen.via,
                guards=seen.guards,
                handler=seen.handler,
                loop=seen.loop,
                stack=frame.stack,
                substitution=using,
                names={**names, "result": seen.into},
            )
            self.visit(body, inner_frame)


def field_of(fact: Fact) -> str:
    """The field of Body in which facts of this kind are kept."""
    return next(field for field, kind in FACT_FIELDS.items() if type(fact) is kind)


def events_of(trigger: Trigger, fact: Fact) -> tuple[Event, ...]:
    """The events of a trigger for which a fact of its own body can be reached."""
    return tuple(event for event in trigger.events if feasible(fact.guards, surroundings(trigger, event)))


def _bound(function: Function, call: Call) -> dict[str, tuple[Any, str]]:
    """Parameters of a function and what a call gives for them: a term, and its text. ``$1`` goes beside the name."""
    bound: dict[str, tuple[Any, str]] = {}
    for place, term in enumerate(call.arguments):
        text = call.texts[place] if place < len(call.texts) else ""
        label = call.argument_names[place] if place < len(call.argument_names) else None
        if label is not None:
            text = text.partition("=>")[2].strip() or text.partition(":=")[2].strip()
            bound[label] = (term, text)
            continue
        bound[f"${place + 1}"] = (term, text)
        if place < len(function.arguments) and function.arguments[place]:
            bound[function.arguments[place]] = (term, text)
    return bound


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else f"{flat[:77]}..."
