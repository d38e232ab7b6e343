"""A PL/pgSQL body followed symbolically for one operation: which rows it writes to the legacy log, and what they hold.

::

    source ─▶ parse ─▶ Walk(new, old, tg_op, …) ─▶ [Written]      each under the condition on the way to it

Variables hold expressions. Branches that the operation decides are taken or left; the others are followed both, and
meet again as CASE. A loop over values becomes a fold (for variables) and a source of rows (for INSERTs); a loop over
anything else leaves its variables opaque. Nothing here guesses: what is not followed becomes opaque and says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from afterwrite.prove.expression import (
    FALSE,
    NULL,
    TRUE,
    Call,
    Carried,
    Const,
    Current,
    Expression,
    Field,
    Fold,
    From,
    Opaque,
    Rows,
    Side,
    Whole,
    Why,
    both,
    either,
    fails,
    holds,
    parts_of,
)
from afterwrite.prove.fold import case, cast
from afterwrite.prove.syntax import (
    Binding,
    Reader,
    Record,
    Routine,
    Selected,
    declared_type,
)
from afterwrite.prove.trees import Node, NotUnderstood, name_of, nodes_below, parse_body, parse_sql


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A row that an INSERT of the body writes, once for each change and row of ``rows`` while ``condition`` is true.

    ``values`` are by column; columns that the INSERT leaves out are not in it. ``many`` when the number of rows cannot
    be known, ``statement`` when it is written once for a whole statement, ``swallowed`` when an exception handler of
    the body may undo it in silence.
    """

    schema: str | None
    table: str
    values: tuple[tuple[str, Expression], ...]
    condition: Expression = TRUE
    rows: Rows | None = None
    many: bool = False
    statement: bool = False
    swallowed: bool = False
    line: int = 0


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a body is followed in: its names to begin with, transition tables, search path, and what it may call.

    ``columns`` gives a table's columns in order, for INSERTs that name none. ``row`` are the columns of NEW and OLD,
    where assigning to them changes only what this body sees: in AFTER triggers (what a BEFORE trigger assigns, the WAL
    has).
    """

    names: Mapping[str, Binding]
    transition: Mapping[str, Side] = {}
    path: tuple[str, ...] = ("public",)
    routines: Mapping[tuple[str, str], Routine] = {}
    columns: Mapping[tuple[str, str], tuple[str, ...]] = {}
    per_statement: bool = False
    row: tuple[str, ...] = ()


class _State(msgspec.Struct):
    """Where the walk stands: what the variables hold, and the condition under which it came here."""

    names: dict[str, Binding]
    condition: Expression = TRUE

    def copy(self, condition: Expression) -> _State:
        return _State(dict(self.names), condition)


class _Over(msgspec.Struct, frozen=True):
    """What a loop goes over: rows of values, or (``rows`` None) those of a transition table where a condition holds."""

    rows: Rows | None
    targets: Mapping[str, Binding]
    condition: Expression = TRUE


class _Place(msgspec.Struct, frozen=True):
    """What stands around a statement: loops over values (their rows), loops over anything else, handlers."""

    rows: Rows | None = None
    per_row: bool = False
    many: bool = False
    swallowed: bool = False


def follow(source: str, surroundings: Surroundings) -> tuple[Written, ...]:
    """What the body writes. Raises NotUnderstood when it cannot be parsed."""
    walk = _Walk(source, surroundings)
    walk.run()
    return tuple(walk.written)


_TARGET = re.compile(r'\s*(?:"[^"]*"|[\w$])+(?:\s*\.\s*(?:"[^"]*"|[\w$])+)*\s*(?P<element>\[.*?\])?\s*:?=', re.DOTALL)
_MAX_DEPTH = 6


class _Walk:
    def __init__(self, source: str, surroundings: Surroundings, depth: int = 0, header: str | None = None) -> None:
        self.tree = parse_body(source, header) if header else parse_body(source)
        self.around = surroundings
        self.datums: list[Node] = self.tree.get("datums", [])
        self.pending = list(range(len(self.datums)))
        self.written: list[Written] = []
        self.continued: list[_State] = []
        self.counter = [depth * 1000]
        self.depth = depth

    def run(self, place: _Place | None = None, condition: Expression = TRUE) -> None:
        state = _State(dict(self.around.names), condition)
        state.names.setdefault("found", Opaque(Why.LOOKUP, "found"))
        if "action" in self.tree:
            self.block(self.tree["action"]["PLpgSQL_stmt_block"], state, place or _Place())

    def reader(self, state: _State, parameters: Sequence[Expression] = ()) -> Reader:
        around = self.around
        return Reader(
            state.names,
            parameters=parameters,
            transition=around.transition,
            routines=around.routines,
            path=around.path,
            counter=self.counter,
        )

    def expression(self, node: Node | None, state: _State) -> Expression:
        return self.reader(state).sql(_text(node))

    def condition(self, node: Node | None, state: _State) -> Expression:
        return holds(self.expression(node, state))

    # --- control ------------------------------------------------------------------------------------------------------

    def statements(self, nodes: Iterable[Node], state: _State | None, place: _Place) -> _State | None:
        """Go through statements; None when control never comes out at the end."""
        for each in nodes:
            for kind, node in each.items():
                if state is None:
                    return None
                state = self.statement(kind.removeprefix("PLpgSQL_stmt_"), node, state, place)
        return state

    def statement(self, kind: str, node: Node, state: _State, place: _Place) -> _State | None:
        match kind:
            case "block":
                return self.block(node, state, place)
            case "assign":
                self.assign(node, state)
            case "if":
                return self.branches(*_if_branches(node), state, place)
            case "case":
                return self.switch(node, state, place)
            case "fors" | "foreach_a" | "fori":
                return self.loop(kind, node, state, place)
            case "loop" | "while" | "forc" | "dynfors":
                return self.blind_loop(node, state, place)
            case "return":
                return None
            case "raise":
                # The transaction committed, so an error was not raised here; a handler may have caught it.
                return None if node.get("elog_level", 21) >= 21 else state
            case "exit":
                return self.leave(node, state)
            case "execsql":
                self.execute(_text(node.get("sqlstmt")), node, state, place)
            case "dynexecute":
                self.dynamic(node, state, place)
            case "perform":
                self.perform(_text(node.get("expr")), node.get("lineno", 0), state, place)
            case "call":
                self.perform(
                    re.sub(r"^\s*call\b", "select", _text(node.get("expr")), flags=re.IGNORECASE), 0, state, place
                )
            case "getdiag":
                for item in node.get("diag_items", ()):
                    self.bind(item["PLpgSQL_diag_item"].get("target", -1), Opaque(Why.OPAQUE, "diagnostics"), state)
            case _:
                self.forget(self.assigned(node), state)
        return state

    def block(self, node: Node, state: _State, place: _Place) -> _State | None:
        self.declare(node.get("lineno", 0), state)
        handlers = node.get("exceptions", {}).get("PLpgSQL_exception_block", {}).get("exc_list", ())
        if not handlers:
            return self.statements(node.get("body", ()), state, place)
        before = state.copy(state.condition)
        after = self.statements(node.get("body", ()), state, msgspec.structs.replace(place, swallowed=True))
        caught = Opaque(Why.OPAQUE, "an exception was caught")
        # How far the body came is not known: what it assigns is as it was before, or as it is after.
        broken = before.copy(both(before.condition, caught))
        if after is not None:
            broken.names = _merge_names(caught, before.names, after.names)
        else:
            self.forget(self.assigned(node.get("body", ())), broken)
        for each in handlers:
            handled = self.statements(
                each["PLpgSQL_exception"].get("action", ()),
                broken.copy(broken.condition),
                msgspec.structs.replace(place, many=True, swallowed=True),
            )
            if after is None:
                after = handled
            elif handled is not None:
                after = _State(_merge_names(caught, handled.names, after.names), after.condition)
        return after

    def declare(self, line: int, state: _State) -> None:
        """Variables get their defaults where their block begins."""
        now = [number for number in self.pending if _line(self.datums[number]) <= line]
        self.pending = [number for number in self.pending if _line(self.datums[number]) > line]
        for number in now:
            ((kind, datum),) = self.datums[number].items()
            name = str(datum.get("refname", ""))
            if kind not in ("PLpgSQL_var", "PLpgSQL_rec") or name in self.around.names or "lineno" not in datum:
                continue
            if "default_val" in datum:
                self.bind(number, self.expression(datum["default_val"], state), state)
            else:
                state.names[name] = NULL

    def branches(
        self,
        branches: Sequence[tuple[Expression | Node, Sequence[Node]]],
        otherwise: Sequence[Node] | None,
        state: _State,
        place: _Place,
    ) -> _State | None:
        """IF: the first branch whose condition holds. ``otherwise`` None: falling through raises."""
        if not branches:
            return None if otherwise is None else self.statements(otherwise, state, place)
        (test, body), rest = branches[0], branches[1:]
        condition = self.condition(test, state) if isinstance(test, dict) else holds(test)
        if condition == TRUE:
            return self.statements(body, state, place)
        if condition == FALSE:
            return self.branches(rest, otherwise, state, place)
        base = state.condition
        then_state, else_state = state.copy(both(base, condition)), state.copy(both(base, fails(condition)))
        then_after = self.statements(body, then_state, place)
        else_after = self.branches(rest, otherwise, else_state, place)
        return _merge(condition, base, then_after, else_after)

    def switch(self, node: Node, state: _State, place: _Place) -> _State | None:
        if "t_varno" in node:
            state.names[self.name(node["t_varno"])] = self.expression(node.get("t_expr"), state)
        whens = [each["PLpgSQL_case_when"] for each in node.get("case_when_list", ())]
        branches = [(when.get("expr", {}), when.get("stmts", ())) for when in whens]
        otherwise = node.get("else_stmts", ()) if node.get("have_else") else None
        return self.branches(branches, otherwise, state, place)

    def leave(self, node: Node, state: _State) -> _State | None:
        """CONTINUE ends the round here; EXIT makes a loop blind before it comes to this."""
        condition = self.condition(node["cond"], state) if "cond" in node else TRUE
        self.continued.append(state.copy(both(state.condition, condition)))
        if condition == TRUE:
            return None
        state.condition = both(state.condition, fails(condition))
        return state

    # --- loops --------------------------------------------------------------------------------------------------------

    def loop(self, kind: str, node: Node, state: _State, place: _Place) -> _State | None:
        """FOR over values: INSERTs inside get the rows, variables become folds. Any other loop is blind."""
        body = node.get("body", ())
        try:
            over = self.loop_rows(kind, node, state)
        except (NotUnderstood, KeyError):
            return self.blind_loop(node, state, place)
        if place.rows is not None or place.per_row or _leaves(body):
            return self.blind_loop(node, state, place)
        changed = self.assigned(body) - set(over.targets)
        if over.rows is None:
            inner = state.copy(both(state.condition, over.condition))
            inner.names.update(over.targets)
            self.forget(changed, inner)
            self.round(node, inner, msgspec.structs.replace(place, per_row=True))
            self.forget(changed | set(over.targets), state)
            return state
        self.counter[0] += 1
        number = self.counter[0]
        inner = state.copy(state.condition)
        inner.names.update(over.targets)
        inner.names.update({name: Carried(number, name) for name in changed})
        before = len(self.written)
        after = self.round(node, inner, msgspec.structs.replace(place, rows=over.rows))
        if after is None or any(_carries(each, number) for each in self.written[before:]):
            del self.written[before:]
            return self.blind_loop(node, state, place)
        start: dict[str, Expression] = {}
        steps: dict[str, Expression] = {}
        for name in sorted(changed):
            first, step = state.names.get(name, NULL), after.names.get(name, NULL)
            if not isinstance(first, Record) and not isinstance(step, Record):
                start[name], steps[name] = first, step
        self.forget(changed | set(over.targets), state)
        for name in start:
            state.names[name] = Fold(number, name, over.rows, tuple(start.items()), tuple(steps.items()))
        return state

    def round(self, node: Node, state: _State, place: _Place) -> _State | None:
        """One round of a loop, CONTINUE included: where all its ways meet again."""
        outer, self.continued = self.continued, []
        try:
            after = self.statements(node.get("body", ()), state, place)
            for left in reversed(self.continued):
                after = left if after is None else _State(_merge_names(left.condition, left.names, after.names))
            return after
        finally:
            self.continued = outer

    def loop_rows(self, kind: str, node: Node, state: _State) -> _Over:
        """What a FOR loop goes over; raises NotUnderstood where that is neither values nor a transition table."""
        if kind == "fori":
            if "reverse" in node:
                raise NotUnderstood("reverse")
            bounds = (self.expression(node.get("lower"), state), self.expression(node.get("upper"), state))
            step = (self.expression(node["step"], state),) if "step" in node else ()
            return self.one_source("generate_series", (*bounds, *step), node["var"]["PLpgSQL_var"]["refname"])
        if kind == "foreach_a":
            return self.one_source("unnest", (self.expression(node.get("expr"), state),), self.name(node["varno"]))
        selected = self.reader(state).select(parse_sql(_text(node.get("query")))[0])
        if selected.aggregated or selected.lookup:
            raise NotUnderstood("a loop over tables")
        if selected.transition:
            return _Over(None, self.loop_targets(node, selected), selected.condition)
        if selected.rows is None:
            raise NotUnderstood("a loop over one row")
        return _Over(selected.rows, self.loop_targets(node, selected))

    def one_source(self, function: str, arguments: tuple[Expression, ...], name: str) -> _Over:
        self.counter[0] += 1
        number = self.counter[0]
        return _Over(Rows((From(number, function, arguments, (name,)),)), {name: Current(number, name)})

    def loop_targets(self, node: Node, selected: Selected) -> dict[str, Binding]:
        ((kind, target),) = node["var"].items()
        if kind == "PLpgSQL_rec":
            if len(selected.targets) == 1 and isinstance(selected.targets[0][1], Whole):
                return {target["refname"]: selected.targets[0][1]}
            return {target["refname"]: Record(dict(selected.targets))}
        names = [field["name"] for field in target.get("fields", ())] or [target["refname"]]
        return dict(zip(names, (value for _, value in selected.targets), strict=False))

    def blind_loop(self, node: Node, state: _State, place: _Place) -> _State | None:
        """A loop whose rounds cannot be counted: what it writes may be there any number of times."""
        changed = self.assigned(node)
        why = Why.LOOKUP if "query" in node else Why.OPAQUE
        self.forget(changed, state, why)
        inner = state.copy(both(state.condition, Opaque(why, "a loop's rounds")))
        self.round(node, inner, msgspec.structs.replace(place, many=True))
        self.forget(changed, state, why)
        if _returns(node.get("body", ())):
            state.condition = both(state.condition, Opaque(why, "no RETURN inside the loop"))
        return state

    # --- variables ----------------------------------------------------------------------------------------------------

    def name(self, number: int) -> str:
        if not 0 <= number < len(self.datums):
            return "?"
        ((kind, datum),) = self.datums[number].items()
        if kind == "PLpgSQL_recfield":
            return f"{self.name(datum.get('recparentno', 0))}.{datum['fieldname']}"
        return str(datum.get("refname", "?"))

    def bind(self, number: int, value: Binding, state: _State) -> None:
        """Assign, with the cast to the variable's declared type."""
        name = self.name(number)
        record, _, field = name.partition(".")
        if record in ("new", "old"):
            if self.around.row and field and not isinstance(value, Record):
                self.alter_row(record, field, value, state)
            return
        if field:
            known = state.names.get(record)
            fields = dict(known.fields) if isinstance(known, Record) else {}
            if not isinstance(value, Record):
                state.names[record] = Record({**fields, field: value})
            return
        declared = self.declared(number)
        if declared and not isinstance(value, Record | Whole):
            value = cast(value, *declared)
        state.names[name] = value

    def alter_row(self, record: str, field: str, value: Expression, state: _State) -> None:
        """An AFTER trigger that changes its own copy of the row, to leave something out of the log."""
        known = state.names.get(record)
        if isinstance(known, Whole):
            known = Record({column: Field(known.side, column) for column in self.around.row})
        if isinstance(known, Record):
            state.names[record] = Record({**known.fields, field: value})

    def declared(self, number: int) -> tuple[str, tuple[int, ...]] | None:
        """The type that a value assigned to this variable is cast to."""
        datum: Node = self.datums[number].get("PLpgSQL_var", {}) if 0 <= number < len(self.datums) else {}
        return declared_type(datum.get("datatype", {}).get("PLpgSQL_type", {}).get("typname", ""))

    def assign(self, node: Node, state: _State) -> None:
        text = _text(node.get("expr"))
        found = _TARGET.match(text)
        if found is None or found["element"]:
            self.bind(node.get("varno", -1), Opaque(Why.OPAQUE, "an element assigned"), state)
            return
        self.bind(node.get("varno", -1), self.reader(state).sql(text[found.end() :]), state)

    def forget(self, names: Iterable[str], state: _State, why: Why = Why.OPAQUE) -> None:
        for name in names:
            state.names[name] = Opaque(why, name)

    def assigned(self, node: Any) -> set[str]:
        """Variables that are set anywhere below a node."""
        found: set[str] = set()
        for below in nodes_below(node):
            if "varno" in below and ("expr" in below or "body" in below):
                found.add(self.name(below["varno"]).partition(".")[0])
            for key in ("target", "var"):
                if isinstance(below.get(key), dict):
                    found.update(self.target_names(below[key]))
        return found - {"new", "old", "?"}

    def target_names(self, target: Node) -> list[str]:
        ((kind, node),) = target.items()
        if kind == "PLpgSQL_row":
            return [self.name(field["varno"]).partition(".")[0] for field in node.get("fields", ())]
        return [str(node.get("refname", "?"))]

    def store(self, target: Node | None, selected: Selected | None, state: _State, why: Why) -> None:
        """SELECT … INTO: the targets take the query's values, or become opaque."""
        if not target:
            return
        ((kind, node),) = target.items()
        single = selected is not None and not selected.lookup and not selected.transition
        if kind == "PLpgSQL_row":
            numbers = [field["varno"] for field in node.get("fields", ())]
        else:
            numbers = [
                next(
                    (
                        n
                        for n, datum in enumerate(self.datums)
                        if datum.get(kind, {}).get("refname") == node.get("refname")
                    ),
                    -1,
                )
            ]
        if kind == "PLpgSQL_rec" and selected is not None and single:
            if len(selected.targets) == 1 and isinstance(selected.targets[0][1], Whole):
                state.names[node["refname"]] = selected.targets[0][1]
            else:
                state.names[node["refname"]] = Record(
                    {name: self.given(value, selected) for name, value in selected.targets}
                )
            return
        for position, number in enumerate(numbers):
            value: Expression = Opaque(why, self.name(number))
            if selected is not None and position < len(selected.targets):
                own = selected.targets[position][1]
                # A target of a lookup that looks nothing up is known where there was a row, and NULL where not.
                value = self.given(own, selected) if single else value
            self.bind(number, value, state)

    def given(self, value: Expression, selected: Selected) -> Expression:
        if selected.rows is not None and not selected.aggregated:
            return Opaque(Why.OPAQUE, "the first of several rows")
        return case([(selected.condition, value)], NULL)

    # --- statements that write ----------------------------------------------------------------------------------------

    def execute(
        self, text: str, node: Node, state: _State, place: _Place, parameters: Sequence[Expression] = ()
    ) -> None:
        """One SQL statement: an INSERT is what we look for, a SELECT INTO fills variables, others do not matter."""
        line = node.get("lineno", 0)
        try:
            statements = parse_sql(text)
        except NotUnderstood:
            statements = []
        for tree in statements:
            if "InsertStmt" in tree:
                self.insert(tree["InsertStmt"], line, state, place, parameters)
                self.store(node.get("target"), None, state, Why.GENERATED)
            elif "SelectStmt" in tree:
                try:
                    selected = self.reader(state, parameters).select(tree)
                except (NotUnderstood, KeyError):
                    selected = None
                why = Why.STATEMENT if selected is not None and selected.transition else Why.LOOKUP
                self.store(node.get("target"), selected, state, why)
                self.calls(tree, line, state, place)
            else:
                self.store(node.get("target"), None, state, Why.LOOKUP)
        state.names["found"] = Opaque(Why.LOOKUP, "found")

    def dynamic(self, node: Node, state: _State, place: _Place) -> None:
        """EXECUTE: followed where its text comes out constant for this trigger."""
        text = self.expression(node.get("query"), state)
        parameters = [self.expression(each, state) for each in node.get("params", ())]
        if isinstance(text, Const) and isinstance(text.value, str):
            self.execute(text.value, node, state, place, parameters)
        else:
            self.store(node.get("target"), None, state, Why.OPAQUE)

    def insert(
        self, node: Node, line: int, state: _State, place: _Place, parameters: Sequence[Expression] = ()
    ) -> None:
        relation = node["relation"]
        schema, table = relation.get("schemaname"), relation["relname"]
        columns = [each["ResTarget"]["name"] for each in node.get("cols", ())] or self.table_columns(schema, table)
        select = node.get("selectStmt", {}).get("SelectStmt", {})
        condition = state.condition
        if "onConflictClause" in node:
            condition = both(condition, Opaque(Why.LOOKUP, "on conflict"))
        shape = Written(
            schema=schema,
            table=table,
            values=(),
            condition=condition,
            rows=place.rows,
            many=place.many,
            statement=self.around.per_statement and not place.per_row,
            swallowed=place.swallowed,
            line=line,
        )
        reader = self.reader(state, parameters)
        if "valuesLists" in select:
            for row in select["valuesLists"]:
                values = [reader.expression(item) for item in row["List"]["items"]]
                self.add(shape, columns, [("", value) for value in values])
            return
        self.insert_select(shape, columns, node, reader)

    def insert_select(self, shape: Written, columns: Sequence[str], node: Node, reader: Reader) -> None:
        for select in _union_parts(node.get("selectStmt", {})):
            try:
                if "withClause" in node:
                    raise NotUnderstood("with")
                selected = reader.select(select)
            except (NotUnderstood, KeyError) as reason:
                opaque = Opaque(Why.LOOKUP, str(reason))
                values = [("", opaque) for _ in columns]
                self.add(
                    msgspec.structs.replace(shape, condition=both(shape.condition, opaque), many=True), columns, values
                )
                continue
            if selected.lookup:
                doubt = both(shape.condition, selected.condition)
                statement = shape.statement and not selected.transition
                changed = msgspec.structs.replace(shape, condition=doubt, many=True, statement=statement)
                self.add(changed, columns, selected.targets)
            elif selected.transition:
                condition = both(shape.condition, holds(selected.condition))
                if len(_sides(selected.targets)) > 1 and not _same_row(selected.condition):
                    condition = both(condition, Opaque(Why.STATEMENT, "which old row goes with which new one"))
                changed = msgspec.structs.replace(shape, condition=condition, statement=selected.aggregated)
                self.add(changed, columns, selected.targets)
            elif selected.rows is not None and not selected.aggregated:
                if shape.rows is not None:
                    doubt = both(shape.condition, Opaque(Why.OPAQUE, "a loop in a loop"))
                    self.add(
                        msgspec.structs.replace(shape, condition=doubt, rows=None, many=True),
                        columns,
                        [("", Opaque(Why.OPAQUE, "")) for _ in columns],
                    )
                else:
                    self.add(msgspec.structs.replace(shape, rows=selected.rows), columns, selected.targets)
            else:
                condition = both(shape.condition, holds(selected.condition))
                self.add(msgspec.structs.replace(shape, condition=condition), columns, selected.targets)

    def add(self, shape: Written, columns: Sequence[str], values: Sequence[tuple[str, Expression]]) -> None:
        if shape.condition == FALSE:
            return
        named = tuple((column, value) for column, (_, value) in zip(columns, values, strict=False))
        self.written.append(msgspec.structs.replace(shape, values=named))

    def table_columns(self, schema: str | None, table: str) -> Sequence[str]:
        schemas = (schema,) if schema else self.around.path
        return next((self.around.columns[each, table] for each in schemas if (each, table) in self.around.columns), ())

    # --- functions that write -----------------------------------------------------------------------------------------

    def perform(self, text: str, line: int, state: _State, place: _Place) -> None:
        try:
            for tree in parse_sql(text):
                self.calls(tree, line, state, place)
        except NotUnderstood:
            pass
        state.names["found"] = Opaque(Why.LOOKUP, "found")

    def calls(self, tree: Any, line: int, state: _State, place: _Place) -> None:
        """Functions called below a node that write in their turn are followed with their arguments."""
        for node in nodes_below(tree):
            if "FuncCall" in node:
                self.follow_call(node["FuncCall"], state, place)

    def follow_call(self, node: Node, state: _State, place: _Place) -> None:
        words = name_of(node["funcname"])
        schemas = (words[0],) if len(words) > 1 else self.around.path
        routine = next(
            (self.around.routines[s, words[-1]] for s in schemas if (s, words[-1]) in self.around.routines), None
        )
        if routine is None or self.depth >= _MAX_DEPTH or routine.language not in ("plpgsql", "sql"):
            return
        names = self.arguments(routine, node.get("args", ()), state)
        inner = msgspec.structs.replace(self.around, names=names)
        if routine.language == "plpgsql":
            parameters = ", ".join(f'"{name}" text' if name else "text" for name in routine.parameters)
            walk = _Walk(routine.source, inner, self.depth + 1, f"function f({parameters}) returns void")
            walk.run(place, state.condition)
            self.written += walk.written
            return
        try:
            for statement in parse_sql(routine.source):
                if "InsertStmt" in statement:
                    values = [names.get(name, NULL) for name in routine.parameters]
                    parameters = [value for value in values if not isinstance(value, Record)]
                    self.insert(statement["InsertStmt"], 0, _State(dict(names), state.condition), place, parameters)
        except NotUnderstood:
            return

    def arguments(self, routine: Routine, nodes: Sequence[Node], state: _State) -> dict[str, Binding]:
        reader = self.reader(state)
        names: dict[str, Binding] = {name: Opaque(Why.OPAQUE, f"default of {name}") for name in routine.parameters}
        for position, node in enumerate(nodes):
            if "NamedArgExpr" in node:
                names[node["NamedArgExpr"]["name"]] = reader.expression(node["NamedArgExpr"]["arg"])
            elif position < len(routine.parameters):
                names[routine.parameters[position]] = reader.expression(node)
        return names


def _merge(condition: Expression, base: Expression, one: _State | None, other: _State | None) -> _State | None:
    """Where two branches meet: variables that differ become CASE, the condition what is left of both."""
    if one is None or other is None:
        return one or other
    names = _merge_names(condition, one.names, other.names)
    whole = one.condition == both(base, condition) and other.condition == both(base, fails(condition))
    return _State(names, base if whole else either(one.condition, other.condition))


def _merge_names(condition: Expression, one: Mapping[str, Binding], other: Mapping[str, Binding]) -> dict[str, Binding]:
    return {name: _merge_binding(condition, one.get(name, NULL), other.get(name, NULL)) for name in {**one, **other}}


def _merge_binding(condition: Expression, one: Binding, other: Binding) -> Binding:
    if one == other:
        return one
    if isinstance(one, Record) and isinstance(other, Whole):
        other = Record({name: Field(other.side, name) for name in one.fields})
    elif isinstance(one, Whole) and isinstance(other, Record):
        one = Record({name: Field(one.side, name) for name in other.fields})
    if isinstance(one, Record) and isinstance(other, Record):
        fields = {
            name: case([(condition, one.fields.get(name, NULL))], other.fields.get(name, NULL))
            for name in {**one.fields, **other.fields}
        }
        return Record(fields)
    if isinstance(one, Record) or isinstance(other, Record):
        return Opaque(Why.OPAQUE, "a record or not")
    return case([(condition, one)], other)


def _if_branches(node: Node) -> tuple[list[tuple[Expression | Node, Sequence[Node]]], Sequence[Node]]:
    branches: list[tuple[Expression | Node, Sequence[Node]]] = [(node.get("cond", {}), node.get("then_body", ()))]
    for each in node.get("elsif_list", ()):
        inner = each["PLpgSQL_if_elsif"]
        branches.append((inner.get("cond", {}), inner.get("stmts", ())))
    return branches, node.get("else_body", ())


def _union_parts(select: Node) -> list[Node]:
    inner = select.get("SelectStmt", {})
    if inner.get("op") == "SETOP_UNION" and inner.get("all"):
        return [*_union_parts({"SelectStmt": inner["larg"]}), *_union_parts({"SelectStmt": inner["rarg"]})]
    return [select]


def _leaves(body: Any) -> bool:
    """Whether a loop's body can end the loop before its rows end (CONTINUE of the loop itself does not)."""
    for node in nodes_below(body):
        if "PLpgSQL_stmt_return" in node:
            return True
        left = node.get("PLpgSQL_stmt_exit")
        if left is not None and (left.get("is_exit", False) or "label" in left):
            return True
    return False


def _returns(body: Any) -> bool:
    return any("PLpgSQL_stmt_return" in node for node in nodes_below(body))


def _sides(value: object) -> frozenset[Side]:
    """Which rows of a change an expression looks at."""
    if isinstance(value, Whole | Field):
        return frozenset((value.side,))
    return frozenset(side for part in parts_of(value) for side in _sides(part))


def _same_row(condition: Expression) -> bool:
    """Whether a join of old and new rows pairs them by a column of the same name."""
    match condition:
        case Call("and", (left, right)):
            return _same_row(left) or _same_row(right)
        case Call("=", (Field(a, x), Field(b, y))):
            return a != b and x == y
        case _:
            return False


def _carries(written: Written, loop: int) -> bool:
    """Whether a row written inside a loop depends on what earlier rounds made of a variable."""

    def inside(value: object) -> bool:
        if isinstance(value, Carried):
            return value.loop == loop
        return any(inside(part) for part in parts_of(value))

    return inside(written.values) or inside(written.condition)


def _line(datum: Node) -> int:
    ((_, inner),) = datum.items()
    return int(inner.get("lineno", 0))


def _text(node: Node | None) -> str:
    return str((node or {}).get("PLpgSQL_expr", {}).get("query", ""))
