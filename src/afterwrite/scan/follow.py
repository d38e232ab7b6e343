"""What one trigger does through everything that it calls: its function's facts, resolved and seen from the trigger.

    Body of the function ─┐
    Bodies of the callees ─┼─▶ follow ─▶ one Body: names resolved, dynamic SQL resolved, dead branches left out
    TG_ARGV and the rest ──┘

Pure. Texts that are needed and not yet read are handed back as ``missing``: the caller reads them and follows again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from afterwrite.scan.atlas import SYSTEM_SCHEMAS, Atlas, fixed_path
from afterwrite.scan.catalog import Event, Function, Kind, Table, Timing, Trigger
from afterwrite.scan.evaluate import (
    PLACEHOLDER,
    Surroundings,
    Value,
    as_argument,
    feasible,
    in_callers_words,
    quote_identifier,
    surroundings,
    values,
)
from afterwrite.scan.facts import (
    FACT_FIELDS,
    Body,
    Call,
    Cast,
    Command,
    Delete,
    Dynamic,
    Fact,
    Guard,
    Insert,
    Language,
    Lock,
    NewAssignment,
    Notify,
    OnTable,
    Operator,
    Outside,
    Raise,
    Read,
    Refresh,
    Return,
    RowRead,
    Setting,
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
from afterwrite.scan.outcomes import origins
from afterwrite.scan.tokens import split_names, substitute

F = TypeVar("F", bound=Fact)
Bodies = Mapping[Source, Body]

_DEEPEST = 12
_MOST_VISITS = 400
_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision", "boolean")
_WRITES = (Insert, Update, Delete)
# What a check, a view or a cast may do that matters: what it reads is its own business.
_EFFECTS: frozenset[type[Fact]] = frozenset(
    {Insert, Update, Delete, Refresh, Raise, Notify, Setting, Lock, Outside, Command, Dynamic, Unknown}
)
# Whether an expression can run anything at all (a call, a query, an operator), or asks who is writing.
_RUNS = re.compile(r"\(|[^\w\s.,:'\"]|\b(current_user|session_user|user|current_role)\b", re.IGNORECASE)
# Errors that WHEN OTHERS of a caller does not take.
_UNCATCHABLE = ("assert", "uncatchable")
DEFAULT_OF = "the default of "
"""How ``via`` begins where something is run because a column was not given."""
_ANY = ("anyelement", "anycompatible", "record")
# Any value can be made one of these, or nearly.
_SAFE_TYPES = frozenset({"text", "varchar", "bpchar", "name", "unknown", "record", "regclass", "?"})


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
    empty = table is not None and not any(column.not_null for column in table.columns)
    arounds = {
        event: surroundings(trigger, event, tables=fired_for, numbers=numbers, may_be_empty=empty)
        for event in trigger.events
    }
    follower = _Follower(atlas, bodies, trigger, table)
    if trigger.when:
        condition = Source(language=Language.CONDITION, text=trigger.when, trigger=True)
        body = follower.body_of(condition)
        if body is not None:
            frame = _Frame(arounds=tuple(arounds.values()), path=(), fixed=True, line=0, via=("WHEN",))
            follower.visit(body, frame)
    source = trigger_source(trigger)
    if source is None:
        text = f"the function {trigger.function_schema}.{trigger.function}() is written in {trigger.language}"
        readable = trigger.language not in ("c", "internal") and trigger.source.strip()
        follower.add(Unknown(line=1 if readable else 0, rule="other-language", text=text))
    else:
        body = follower.body_of(source)
        if body is not None:
            frame = _Frame(
                arounds=tuple(arounds.values()),
                path=atlas.search_path(trigger.config),
                fixed=fixed_path(trigger.config) is not None,
                stack=(trigger.function_oid,),
            )
            follower.visit(body, frame)
    return follower.reach()


def follow_function(function: Function, atlas: Atlas, bodies: Bodies) -> Reach:
    """Everything that a function does when it is called by itself, its arguments unknown."""
    follower = _Follower(atlas, bodies, None, None)
    source = source_of(function)
    body = follower.body_of(source) if source is not None else None
    if body is not None:
        fixed = fixed_path(function.config) is not None
        frame = _Frame(arounds=({},), path=atlas.search_path(function.config), fixed=fixed, stack=(function.oid,))
        follower.visit(body, frame)
    return follower.reach()


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Where in the chain of calls a body is visited. ``line`` is the calling line of the trigger's own body.

    ``fixed``: the path is set by a function on the way, whatever the writer's is. ``takes`` are the kinds of facts that
    matter here; None for all.
    """

    arounds: tuple[Surroundings, ...]
    path: tuple[str, ...]
    fixed: bool = False
    takes: frozenset[type[Fact]] | None = None
    line: int | None = None
    via: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    handler: bool = False
    loop: bool = False
    caught: bool = False
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
        self.dressed: set[tuple[int, str]] = set()
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
        # Facts under the same conditions share one tuple of them, and tuples their guards (the parser sees to that).
        reached: dict[int, tuple[Surroundings, ...]] = {}
        opened: list[dict[int, bool]] = [{} for _ in frame.arounds]
        for field in FACT_FIELDS:
            for fact in getattr(body, field):
                arounds = reached.get(id(fact.guards))
                if arounds is None:
                    arounds = tuple(
                        around
                        for around, known in zip(frame.arounds, opened, strict=True)
                        if _all_open(fact.guards, around, known)
                    )
                    reached[id(fact.guards)] = arounds
                if arounds:
                    self._take(fact, frame, arounds)

    def _take(self, fact: Fact, frame: _Frame, arounds: tuple[Surroundings, ...]) -> None:
        seen = self._seen(fact, frame)
        taken = frame.takes is None or type(fact) in frame.takes
        if isinstance(fact, OnTable) and isinstance(seen, OnTable):
            self._on_table(seen, frame, taken=taken)
        elif isinstance(fact, Operator):
            self._operator(fact, seen, frame, arounds)
        elif isinstance(fact, Call) and isinstance(seen, Call):
            if taken and not fact.field:
                self.add(seen)
            self._call(fact, seen, frame, arounds)
        elif isinstance(fact, Cast) and isinstance(seen, Cast):
            self._cast(seen, frame, taken=taken)
        elif isinstance(fact, Outside) and self._is_own(fact, frame):
            return
        elif taken and not (frame.label and isinstance(fact, Return | NewAssignment | RowRead)):
            if isinstance(fact, Setting) and frame.takes is not None and not fact.written:
                return
            self.add(seen)
            if isinstance(fact, Dynamic) and isinstance(seen, Dynamic):
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
            "caught": fact.caught or frame.caught,
        }
        if frame.caught and isinstance(fact, Raise) and fact.level == "exception" and fact.form not in _UNCATCHABLE:
            changes["level"] = "caught"
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
        if isinstance(fact, Cast) and fact.origins:
            given = [name for each in fact.origins for name in origins(substitute(each, frame.substitution))]
            changes["origins"] = tuple(dict.fromkeys(given))
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

    def _on_table(self, fact: OnTable, frame: _Frame, *, taken: bool = True) -> None:
        if PLACEHOLDER in (fact.table, fact.schema):
            text = "the table's name is only known when it runs"
            self.add(Unknown(line=fact.line, via=fact.via, guards=fact.guards, rule="dynamic-sql", text=text))
            return
        if fact.schema is None and not frame.label and self._transition(fact):
            return
        near = self.trigger.schema if self.trigger else ""
        named = fact.schema is not None
        table = self.atlas.find_table(fact.schema, fact.table, frame.path, near)
        if table is not None:
            fact = msgspec.structs.replace(fact, schema=table.schema, table=table.name)
            plain = isinstance(fact, Insert) and not fact.columns
            if isinstance(fact, Insert):
                fact = self._laid_out(fact, table)
            if taken:
                self.add(fact)
            if isinstance(fact, _WRITES) and not named:
                self._whose(fact, table, frame)
            self._dress(fact, table, frame, plain=plain)
            return
        system = fact.schema in SYSTEM_SCHEMAS or (fact.schema is None and fact.table.startswith("pg_"))
        if isinstance(fact, (*_WRITES, Refresh)):
            text = f"it writes {fact.relation}, which is not a table that can be seen here"
            rule = "writes-system-catalog" if system else "unknown-table"
            self.add(Unknown(line=fact.line, via=fact.via, guards=fact.guards, rule=rule, text=text))
        elif taken:
            self.add(fact)

    def _whose(self, fact: OnTable, table: Table, frame: _Frame) -> None:
        """Where another role's search path (or the trigger's own schema) has another table of that name: say so."""
        if frame.fixed:
            return
        near = (self.trigger.schema,) if self.trigger is not None else ()
        for path in (*self.atlas.inventory.search_paths, near):
            other = self.atlas.find_table(None, fact.table, path)
            on_path = other is not None and other.schema in path
            if other is not None and on_path and other.oid != table.oid and not self.atlas.are_twins(table, other):
                text = f"it writes {fact.table} without a schema: {table.full_name}, or {other.full_name} for others"
                self._unknown(fact, "depends-on-search-path", text)
                return

    def _dress(self, fact: OnTable, table: Table, frame: _Frame, *, plain: bool) -> None:
        """What the server runs by itself where a table is written or a view is read."""
        events: dict[type[Fact], Event] = {Insert: Event.INSERT, Update: Event.UPDATE, Delete: Event.DELETE}
        for rule in self.atlas.rules[table.oid]:
            if events.get(type(fact)) is rule.event and rule.action and table.kind is not Kind.VIEW:
                label = f"the rule {rule.name} on {table.full_name}"
                self._run(fact, table, rule.action, label, frame, whole=True)
        match fact:
            case Insert():
                given = dict(zip(fact.columns, fact.values, strict=False))
                for column in table.columns:
                    named = column.name in fact.columns and given.get(column.name, "").strip().lower() != "default"
                    if not named or (plain and not fact.values):
                        default = column.default or next(
                            (each.default for each in self.atlas.domain_line(column.type) if each.default), None
                        )
                        if default:
                            self._run(fact, table, default, f"{DEFAULT_OF}{table.full_name}.{column.name}", frame)
                self._run_checks(fact, table, frame)
            case Update():
                self._run_checks(fact, table, frame)
            case Refresh():
                if table.definition:
                    self._run(fact, table, table.definition, table.full_name, frame, _EFFECTS, whole=True)
            case Read():
                if table.kind is Kind.VIEW and table.definition:
                    label = f"the view {table.full_name}"
                    self._run(fact, table, table.definition, label, frame, _EFFECTS, whole=True)
                self._fields(fact, table, frame)
            case _:
                pass

    def _run_checks(self, fact: OnTable, table: Table, frame: _Frame) -> None:
        for check in self.atlas.checks(table):
            if check.expression:
                self._run(fact, table, check.expression, f"{check.name} on {table.full_name}", frame, _EFFECTS)
        for column in table.columns:
            if column.expression:
                self._run(fact, table, column.expression, f"{table.full_name}.{column.name}", frame, _EFFECTS)
        computed = [text for leaf in self.atlas.leaves(table) for text in leaf.computed]
        if table.partition_key:
            computed.append(table.partition_key.partition("(")[2].removesuffix(")"))
        for text in dict.fromkeys((*table.computed, *computed)):
            self._run(fact, table, text, f"an index of {table.full_name}", frame, _EFFECTS)
        comparing = [oid for each in (table, *self.atlas.leaves(table)) for oid in each.comparers]
        inner = _Frame(arounds=({},), path=(), fixed=True, takes=_EFFECTS, stack=frame.stack)
        for oid in dict.fromkeys(comparing):
            if oid in self.atlas.functions:
                self._run_function(self.atlas.functions[oid], fact, inner)
        if table.row_security:
            for policy in self.atlas.policies[table.oid]:
                for text in (policy.using_expression, policy.check_expression):
                    if text:
                        label = f"policy {policy.name} on {table.full_name}"
                        self._run(fact, table, text, label, frame, _EFFECTS - {Raise})
        columns = (*table.columns, *(self.table.columns if self.table else ()))
        self._convert(fact, {column.type for column in columns}, frame)

    def _run(
        self,
        fact: OnTable,
        table: Table,
        text: str,
        label: str,
        frame: _Frame,
        takes: frozenset[type[Fact]] | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """An expression (or a view's query) that is run because of a fact; once, whatever the conditions."""
        if (table.oid, text) in self.dressed or not _RUNS.search(text):
            return
        query = text if whole else f"select {text}"
        source = Source(language=Language.STATEMENT, text=query)
        body = self.body_of(source)
        if body is None:
            return
        self.dressed.add((table.oid, text))
        inner = _Frame(
            arounds=({},),
            path=(),
            fixed=True,
            takes=frame.takes if takes is None else takes,
            line=fact.line,
            via=fact.via,
            handler=fact.handler,
            caught=fact.caught,
            stack=frame.stack,
            label=label,
        )
        self.visit(body, inner)

    def _fields(self, fact: Read, table: Table, frame: _Frame) -> None:
        """Functions called as if they were columns: ``t.name`` means ``name(t)`` where t has no such column."""
        known = {column.name for column in table.columns}
        row = (table.full_name, f"{quote_identifier(table.schema)}.{quote_identifier(table.name)}")
        for column in fact.columns:
            if column == "*" or column in known:
                continue
            for function in self._find_functions(None, column, 1, frame):
                if function.argument_types[:1] and function.argument_types[0] in (*row, *_ANY):
                    self._run_function(function, fact, frame)

    def _convert(self, fact: Fact, types: set[str], frame: _Frame) -> None:
        """Casts of somebody's own that may be applied to values of these types."""
        for cast in self.atlas.inventory.casts:
            function = self.atlas.functions.get(cast.function_oid)
            if function is not None and (cast.source in types or cast.target in types):
                inner = _Frame(arounds=({},), path=(), fixed=True, takes=_EFFECTS, stack=frame.stack)
                self._run_function(function, fact, inner)

    def _run_function(self, function: Function, fact: Fact, frame: _Frame) -> None:
        """A function that is run without being called by its name."""
        if function.extension is not None:
            return
        call = Call(schema=function.schema, name=function.name)
        seen = Call(
            line=fact.line,
            via=fact.via,
            guards=fact.guards,
            handler=fact.handler,
            caught=fact.caught,
            schema=function.schema,
            name=function.name,
        )
        self._into(function, call, seen, frame, ({},))

    def _operator(self, fact: Operator, seen: Fact, frame: _Frame, arounds: tuple[Surroundings, ...]) -> None:
        for function in self.atlas.operators.get(fact.name, ()):
            self._run_function(function, seen, frame)

    def _cast(self, seen: Cast, frame: _Frame, *, taken: bool) -> None:
        """A cast that may refuse its value is kept; one that runs somebody's function is followed."""
        schema, name = seen.schema, seen.type
        if name.endswith("%type"):
            schema, name = self._type_of(name.removesuffix("%type"), frame)
        domains = self.atlas.find_domains(None if schema == "pg_catalog" else schema, name)
        guarded = [d for d in domains if any(each.checks or each.not_null for each in self.atlas.domain_line(d.name))]
        if taken and guarded and not seen.constant and not self._has_type(seen.names, guarded[0].name):
            self.add(msgspec.structs.replace(seen, schema=guarded[0].schema, type=guarded[0].short))
        elif taken and name not in _SAFE_TYPES and not seen.constant and not guarded and not seen.type.endswith("type"):
            self.add(seen)
        short = name.partition("(")[0].rpartition(".")[2]
        self._convert(seen, {each.target for each in self.atlas.inventory.casts if _last(each.target) == short}, frame)

    def _type_of(self, written: str, frame: _Frame) -> tuple[str | None, str]:
        """The type behind ``table.column%type``."""
        parts = split_names(written)
        if len(parts) < 2:
            return None, written
        table = self.atlas.find_table(parts[-3] if len(parts) > 2 else None, parts[-2], frame.path)
        column = next((each for each in table.columns if each.name == parts[-1]), None) if table else None
        if column is None:
            return None, written
        line = self.atlas.domain_line(column.type)
        return (line[0].schema, line[0].short) if line else (None, column.type)

    def _has_type(self, names: Sequence[str], kind: str) -> bool:
        """Whether these are columns of the trigger's own row that are of this type already."""
        types = {column.name: column.type for column in self.table.columns} if self.table is not None else {}
        columns = [name.partition(".")[2] for name in names if name.startswith(("new.", "old."))]
        others = [name for name in names if not name.startswith(("new", "old"))]
        return bool(columns) and not others and all(types.get(column) == kind for column in columns)

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
        if PLACEHOLDER in (fact.name, fact.schema) and not fact.field:
            self._unknown(seen, "dynamic-sql", "the function's name is only known when it runs")
            return
        if fact.field:
            if self.table is None or fact.name not in {column.name for column in self.table.columns}:
                for function in self._find_functions(None, fact.name, 1, frame):
                    if function.argument_count and function.required_arguments <= 1:
                        self._run_function(function, seen, frame)
            return
        found = self._find_functions(fact.schema, fact.name, len(fact.arguments), frame)
        parts = self.atlas.aggregate_parts(fact.name)
        for part in parts or ():
            self._run_function(part, seen, frame)
        if self.atlas.is_builtin(fact.schema, fact.name):
            known = fact.name in HARMLESS_BUILTINS or self._goes_outside(fact)
            if self.atlas.is_volatile_builtin(fact.name) and not known:
                self._unknown(seen, "unknown-function", f"{fact.name}() may do anything")
            if fact.schema is not None:
                return
            found = [function for function in found if function.schema in self._path(frame)]
        elif not found:
            if parts is None and not self._goes_outside(seen):
                self._unknown(seen, "unknown-function", f"the function {fact.full_name}() is not in this database")
            return
        for function in found:
            self._into(function, fact, seen, frame, arounds)

    def _path(self, frame: _Frame) -> tuple[str, ...]:
        """Where a function may be found: along the path, and along everybody else's where none is set."""
        if frame.fixed:
            return frame.path
        others = (schema for path in self.atlas.inventory.search_paths for schema in path)
        near = (self.trigger.schema,) if self.trigger is not None else ()
        return (*frame.path, *others, *near)

    def _find_functions(self, schema: str | None, name: str, count: int, frame: _Frame) -> list[Function]:
        return self.atlas.find_functions(schema, name, count, self._path(frame))

    def _into(
        self, function: Function, fact: Call, seen: Call, frame: _Frame, arounds: tuple[Surroundings, ...]
    ) -> None:
        self.functions.add(function.oid)
        before = self.trigger is not None and self.trigger.timing is Timing.BEFORE
        if fact.procedure and function.sets_arguments and before and any(n.startswith("new.") for n in seen.names):
            self._unknown(seen, "unknown-function", f"{function.full_name}() may set NEW")
        source = source_of(function)
        if source is None:
            if frame.takes is None or function.extension is None:
                self._foreign(function, seen)
            return
        if function.oid in frame.stack or (self._goes_outside(seen) and function.extension is not None):
            return
        if self.visits > _MOST_VISITS:
            return  # that was said, and forbids what a lighter verdict needs
        if len(frame.stack) > _DEEPEST:
            self._unknown(seen, "unknown-function", f"the calls go deeper than {_DEEPEST} functions")
            return
        body = self.body_of(source)
        if body is None:
            return
        if function.defaults and len(fact.arguments) < function.argument_count:
            self._default_arguments(function, seen, frame)
        for kind in (*function.argument_types, function.result_type):
            line = self.atlas.domain_line(kind)
            if line and frame.takes is None:
                self._cast(
                    Cast(
                        line=seen.line,
                        via=seen.via,
                        guards=seen.guards,
                        schema=line[0].schema,
                        type=line[0].short,
                        names=seen.names,
                        constant=not seen.names,
                    ),
                    frame,
                    taken=True,
                )
        parameters = _bound(function, fact)
        # Locals of the callee get names of their own, so that they cannot be taken for the trigger's variables.
        local = {each.variable for each in body.assignments if "." not in each.variable}
        substitution = {name: f'"{function.full_name}.{name}"' for name in local}
        substitution |= {name: substitute(text, frame.substitution) for name, (_, text) in parameters.items() if text}
        names = dict.fromkeys(parameters, seen.names) | {"result": seen.into}
        types = dict(zip(function.arguments, function.argument_types, strict=False))
        types |= {f"${place}": kind for place, kind in enumerate(function.argument_types, 1)}
        inner = tuple(
            {
                name: tuple(
                    in_callers_words(as_argument(value, types.get(name, "")), frame.substitution)
                    for value in values(term, around)
                )
                for name, (term, _) in parameters.items()
            }
            for around in arounds
        )
        own = fixed_path(function.config)
        inner_frame = _Frame(
            arounds=inner,
            path=frame.path if own is None else own,
            fixed=frame.fixed or own is not None,
            takes=frame.takes,
            line=seen.line,
            via=seen.via,
            guards=seen.guards,
            handler=seen.handler,
            loop=seen.loop,
            caught=seen.caught,
            stack=(*frame.stack, function.oid),
            label=function.full_name,
            substitution=substitution,
            names=names,
        )
        self.visit(body, inner_frame)

    def _default_arguments(self, function: Function, seen: Call, frame: _Frame) -> None:
        source = Source(language=Language.STATEMENT, text=f"select {function.defaults}")
        body = self.body_of(source)
        if body is not None:
            inner = _Frame(
                arounds=({},),
                path=(),
                fixed=True,
                takes=frame.takes,
                line=seen.line,
                via=seen.via,
                guards=seen.guards,
                handler=seen.handler,
                caught=seen.caught,
                stack=(*frame.stack, function.oid),
                label=f"the default arguments of {function.full_name}",
            )
            self.visit(body, inner)

    def _is_own(self, fact: Outside, frame: _Frame) -> bool:
        """Whether what is named like a call to the outside is a function of their own, which is read instead."""
        schema, _, name = fact.function.rpartition(".")
        found = self._find_functions(schema or None, name, 1, frame)
        return bool(found) and all(f.extension is None and source_of(f) is not None for f in found)

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
        texts = [str(value) for value in found if isinstance(value, str)]
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
                fixed=frame.fixed,
                takes=frame.takes,
                line=seen.line,
                via=seen.via,
                guards=seen.guards,
                handler=seen.handler,
                loop=seen.loop,
                caught=seen.caught,
                stack=frame.stack,
                substitution=using,
                names={**names, "result": seen.into},
            )
            self.visit(body, inner_frame)


def _all_open(guards: Sequence[Guard], around: Surroundings, known: dict[int, bool]) -> bool:
    """Whether a place under these guards can be reached; ``known`` remembers each guard by its identity."""
    for guard in guards:
        is_open = known.get(id(guard))
        if is_open is None:
            is_open = known[id(guard)] = feasible((guard,), around)
        if not is_open:
            return False
    return True


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


def _last(name: str) -> str:
    return split_names(name)[-1] if split_names(name) else name


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else f"{flat[:77]}..."
