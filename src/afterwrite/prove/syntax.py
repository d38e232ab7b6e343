"""From PostgreSQL's parse trees to expressions: names resolved, queries over values followed, constants folded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from afterwrite.prove.evaluate import AGGREGATES, SOURCE_COLUMNS, SOURCES
from afterwrite.prove.expression import (
    NULL,
    TRUE,
    Aggregate,
    Ambient,
    Around,
    Call,
    Const,
    Current,
    Expression,
    Field,
    From,
    Opaque,
    Rows,
    Side,
    Whole,
    Why,
    both,
)
from afterwrite.prove.fold import any_of, call, case, cast, opaque, part, read_arguments, shorten
from afterwrite.prove.functions import FUNCTIONS
from afterwrite.prove.trees import Node, NotUnderstood, name_of, nodes_below, parse_sql


class Record(msgspec.Struct, frozen=True):
    """A record variable whose fields are known one by one."""

    fields: Mapping[str, Expression]


Binding: TypeAlias = Expression | Record


class Routine(msgspec.Struct, frozen=True, kw_only=True):
    """A function that a body calls, whose own body can stand in its place. ``parameters`` are names, '' without one."""

    schema: str
    name: str
    language: str
    source: str
    parameters: tuple[str, ...] = ()


class Item(msgspec.Struct, frozen=True):
    """A FROM item: rows of a function over values, a transition table, or a table of the database."""

    alias: str
    source: int | None = None
    columns: tuple[str, ...] = ()
    side: Side | None = None


class Selected(msgspec.Struct, frozen=True):
    """What a SELECT gives: its targets by name, and how often.

    ``rows`` when it reads functions over values, ``transition`` when it reads transition tables, ``lookup`` when it
    reads other tables; none of them when it is one row. ``condition`` is what stands between it and its rows.
    """

    targets: tuple[tuple[str, Expression], ...]
    condition: Expression = TRUE
    rows: Rows | None = None
    transition: bool = False
    lookup: bool = False
    aggregated: bool = False


_TIME = frozenset(
    ("now", "transaction_timestamp", "statement_timestamp", "clock_timestamp", "timeofday", "localtimestamp")
)
_GENERATED = frozenset(
    [
        "gen_random_uuid",
        "uuid_generate_v1",
        "uuid_generate_v1mc",
        "uuid_generate_v4",
        "uuidv4",
        "uuidv7",
        "nextval",
        "currval",
        "lastval",
        "random",
        "gen_random_bytes",
    ]
)
_SESSION = frozenset(
    ["pg_backend_pid", "current_query", "pg_trigger_depth", "inet_client_port", "current_schema", "version"]
)
_AMBIENT = {
    "txid_current": Ambient.TRANSACTION_ID,
    "pg_current_xact_id": Ambient.TRANSACTION_ID,
    "inet_client_addr": Ambient.CLIENT_ADDRESS,
    "uid": Ambient.ACTOR,
    "role": Ambient.ACTOR_ROLE,
    "jwt": Ambient.CLAIMS,
}
_ROW_FUNCTIONS = frozenset(("to_jsonb", "to_json", "row_to_json"))
_OPERATORS = {"!=": "<>", "~~": "like", "~~*": "ilike"}


class Reader:
    """Reads expressions and queries in the names of one place of one body.

    ``names`` binds variables; ``parameters`` are ``$1…``; ``transition`` maps the trigger's transition tables to their
    side. ``routines`` may be inlined where they are one SQL expression.
    """

    def __init__(
        self,
        names: Mapping[str, Binding],
        *,
        parameters: Sequence[Expression] = (),
        transition: Mapping[str, Side] | None = None,
        routines: Mapping[tuple[str, str], Routine] | None = None,
        path: Sequence[str] = ("public",),
        counter: list[int] | None = None,
    ) -> None:
        self.names = names
        self.parameters = parameters
        self.transition = transition or {}
        self.routines = routines or {}
        self.path = path
        self.counter = counter if counter is not None else [0]
        self._items: list[Item] = []
        self._rows: Rows | None = None
        self._unordered = False
        self._aggregated = False

    def sql(self, text: str) -> Expression:
        """The expression that a text is."""
        try:
            statement = parse_sql(f"select {text}")[0]["SelectStmt"]
            if set(statement) - {"targetList", "limitOption", "op"} or len(statement["targetList"]) != 1:
                return self.select_value({"SelectStmt": statement})
            return self.expression(statement["targetList"][0]["ResTarget"]["val"])
        except (NotUnderstood, KeyError):
            return Opaque(Why.OPAQUE, shorten(text))

    def expression(self, node: Node | None) -> Expression:
        """One expression tree."""
        if not node:
            return NULL
        (kind, inner), *_ = node.items()
        match kind:
            case "A_Const":
                return _constant(inner)
            case "ColumnRef":
                return self._column(inner["fields"])
            case "ParamRef":
                number: int = inner.get("number", 0)
                return self.parameters[number - 1] if 0 < number <= len(self.parameters) else opaque("$")
            case "TypeCast":
                return self._cast(inner)
            case "A_Expr":
                return self._operator(inner)
            case "BoolExpr":
                return self._boolean(inner)
            case "NullTest":
                name = "is null" if inner["nulltesttype"] == "IS_NULL" else "is not null"
                return call(name, self.expression(inner["arg"]))
            case "BooleanTest":
                name = inner["booltesttype"].lower().replace("_", " ")
                return call(name, self.expression(inner["arg"])) if name in FUNCTIONS else opaque(name)
            case "CoalesceExpr":
                values = self._list(inner["args"])
                if any(_is_trigger_arguments(argument) for argument in inner["args"]):  # the others are text[] then
                    values = [value if read_arguments(value) else cast(value, "text[]") for value in values]
                return call("coalesce", *values)
            case "MinMaxExpr":
                name = "greatest" if inner["op"] == "IS_GREATEST" else "least"
                return call(name, *self._list(inner["args"]))
            case "CaseExpr":
                return self._case(inner)
            case "FuncCall":
                return self._function(inner)
            case "SQLValueFunction":
                return _value_function(inner["op"])
            case "A_ArrayExpr":
                return call("array", *self._list(inner.get("elements", ())))
            case "RowExpr":
                return Call("row", tuple(self._list(inner.get("args", ()))))
            case "A_Indirection":
                return self._indirection(inner)
            case "SubLink":
                return self._sublink(inner)
            case "SetToDefault":
                return Opaque(Why.GENERATED, "default")
            case "CollateClause":
                return self.expression(inner["arg"])
            case _:
                return opaque(kind)

    def _list(self, nodes: Sequence[Node]) -> list[Expression]:
        return [self.expression(node) for node in nodes]

    # --- names --------------------------------------------------------------------------------------------------------

    def _column(self, fields: Sequence[Node]) -> Expression:
        words = [field["String"]["sval"] if "String" in field else "*" for field in fields]
        for item in reversed(self._items):
            if item.alias == words[0]:
                if len(words) == 1 and item.source is not None and len(item.columns) == 1:
                    return Current(item.source, item.columns[0])
                return _of_item(item, words[1] if len(words) > 1 else "*")
        if len(words) == 1:
            for item in reversed(self._items):
                if words[0] in item.columns and item.source is not None:
                    return Current(item.source, words[0])
        bound = self.names.get(words[0])
        if bound is None and len(words) > 2:
            bound, words = self.names.get(words[1]), words[1:]  # block.variable.field
        elif bound is None and len(words) == 2 and words[1] in self.names and not self._reads_tables():
            bound, words = self.names[words[1]], words[1:]  # block.variable
        if bound is None:
            return Opaque(Why.LOOKUP, ".".join(words)) if self._reads_tables() else opaque(".".join(words))
        if len(words) == 1 or words[1] == "*":
            return bound if not isinstance(bound, Record) else opaque(words[0])
        if isinstance(bound, Record):
            return bound.fields.get(words[1], opaque(".".join(words)))
        return part(bound, words[1])

    def _reads_tables(self) -> bool:
        return any(item.source is None and item.side is None for item in self._items)

    def _indirection(self, node: Node) -> Expression:
        value: Expression = self.expression(node["arg"])
        for step in node["indirection"]:
            if "String" in step:
                value = part(value, step["String"]["sval"])
            elif "A_Indices" in step:
                value = self._element(value, step["A_Indices"])
            else:
                return value
        return value

    def _element(self, value: Expression, indices: Node) -> Expression:
        low = self.expression(indices.get("lidx")) if "lidx" in indices else Const(0)
        high = self.expression(indices.get("uidx")) if "uidx" in indices else NULL
        arguments = read_arguments(value)
        if not indices.get("is_slice"):
            if arguments is None:
                return call("[]", value, high)
            if not (isinstance(high, Const) and isinstance(high.value, int)):
                return opaque("tg_argv[…]")
            return arguments[high.value] if 0 <= high.value < len(arguments) else NULL
        if arguments is None or not (isinstance(low, Const) and isinstance(low.value, int)):
            return opaque("[:]")
        if not isinstance(high, Const) or not isinstance(high.value, int | None):
            return opaque("[:]")
        last = len(arguments) - 1 if high.value is None else high.value
        return Call("array", arguments[max(low.value, 0) : last + 1])

    # --- operators ----------------------------------------------------------------------------------------------------

    def _operator(self, node: Node) -> Expression:
        symbol: str = node["name"][-1]["String"]["sval"]
        kind = node["kind"]
        left = self.expression(node.get("lexpr")) if "lexpr" in node else None
        right_node = node.get("rexpr")
        match kind:
            case "AEXPR_IN":
                members = [call("=", left or NULL, item) for item in self._list(_list_items(right_node))]
                found = any_of(members)
                return call("not", found) if symbol == "<>" else found
            case "AEXPR_BETWEEN" | "AEXPR_NOT_BETWEEN":
                low, high = self._list(_list_items(right_node))
                inside = call("and", call(">=", left or NULL, low), call("<=", left or NULL, high))
                return call("not", inside) if kind == "AEXPR_NOT_BETWEEN" else inside
            case "AEXPR_DISTINCT":
                return call("is distinct from", left or NULL, self.expression(right_node))
            case "AEXPR_NOT_DISTINCT":
                return call("is not distinct from", left or NULL, self.expression(right_node))
            case "AEXPR_NULLIF":
                return call("nullif", left or NULL, self.expression(right_node))
            case "AEXPR_OP_ANY" if symbol == "=":
                return call("any", left or NULL, self.expression(right_node))
            case "AEXPR_OP_ALL" if symbol == "<>":
                return call("not", call("any", left or NULL, self.expression(right_node)))
            case "AEXPR_OP" | "AEXPR_LIKE" | "AEXPR_ILIKE":
                right = self.expression(right_node)
                if left is None:
                    return call("negate", right) if symbol == "-" else right if symbol == "+" else opaque(symbol)
                negated = symbol in ("!~~", "!~~*")
                name = _OPERATORS.get(symbol.removeprefix("!") if negated else symbol, symbol)
                found = call(name, left, right)
                return call("not", found) if negated else found
            case _:
                return opaque(symbol)

    def _boolean(self, node: Node) -> Expression:
        arguments = self._list(node["args"])
        match node["boolop"]:
            case "NOT_EXPR":
                return call("not", arguments[0])
            case "AND_EXPR":
                found = arguments[0]
                for argument in arguments[1:]:
                    found = call("and", found, argument)
                return found
            case _:
                return any_of(arguments)

    def _case(self, node: Node) -> Expression:
        tested = self.expression(node["arg"]) if "arg" in node else None
        branches: list[tuple[Expression, Expression]] = []
        for each in node["args"]:
            when = self.expression(each["CaseWhen"]["expr"])
            branches.append(
                (when if tested is None else call("=", tested, when), self.expression(each["CaseWhen"]["result"]))
            )
        return case(branches, self.expression(node.get("defresult")))

    def _cast(self, node: Node) -> Expression:
        value = self.expression(node["arg"])
        kind, modifiers = type_name(node["typeName"])
        return cast(value, kind, modifiers)

    # --- calls --------------------------------------------------------------------------------------------------------

    def _function(self, node: Node) -> Expression:
        words = name_of(node["funcname"])
        name, schema = words[-1], words[0] if len(words) > 1 else None
        arguments = node.get("args", ())
        if {"agg_distinct", "agg_filter", "over", "agg_within_group", "func_variadic"} & set(node):
            return opaque(name)
        if name in _TIME and schema in (None, "pg_catalog"):
            return Opaque(Why.TIME, f"{name}()")
        if name in _GENERATED:
            return Opaque(Why.GENERATED, f"{name}()")
        if name in _SESSION and schema in (None, "pg_catalog"):
            return Opaque(Why.SESSION, f"{name}()")
        if name in _AMBIENT and not arguments and (schema == "auth") == (name in ("uid", "role", "jwt")):
            return Around(_AMBIENT[name])
        if name in AGGREGATES and (self._items or name not in FUNCTIONS):
            return self._aggregate(name, node)
        values = [
            self._row_argument(argument) if name in _ROW_FUNCTIONS else self.expression(argument)
            for argument in arguments
        ]
        if name in ("array_upper", "array_length", "cardinality") and values:
            constants = read_arguments(values[0])
            if constants is not None:
                empty = Const(0) if name == "cardinality" else NULL
                return Const(len(constants) - (name == "array_upper")) if constants else empty
        if (routine := self._routine(schema, name, len(values))) is not None:
            return self._inline(routine, values)
        if name == "current_setting" and schema in (None, "pg_catalog"):
            return Call(name, tuple(values))
        if (name in FUNCTIONS and schema in (None, "pg_catalog", *self.path)) or name == "hstore":
            return call(name, *values)
        return opaque(f"{'.'.join(words)}(…)")

    def _row_argument(self, node: Node) -> Expression:
        """A record given to to_jsonb(): the object of its fields."""
        fields = node.get("ColumnRef", {}).get("fields", ())
        bound = self.names.get(fields[0]["String"]["sval"]) if fields and "String" in fields[0] else None
        if not isinstance(bound, Record) or not (len(fields) == 1 or "A_Star" in fields[1]):
            return self.expression(node)
        return Call(
            "jsonb_build_object", tuple(each for name, value in bound.fields.items() for each in (Const(name), value))
        )

    def _routine(self, schema: str | None, name: str, count: int) -> Routine | None:
        schemas = (schema,) if schema else self.path
        found = next((self.routines[each, name] for each in schemas if (each, name) in self.routines), None)
        return found if found and found.language == "sql" and len(found.parameters) == count else None

    def _inline(self, routine: Routine, values: list[Expression]) -> Expression:
        inner = Reader(
            {name: value for name, value in zip(routine.parameters, values, strict=True) if name},
            parameters=values,
            routines={key: each for key, each in self.routines.items() if each is not routine},
            path=self.path,
            counter=self.counter,
        )
        try:
            statements = parse_sql(routine.source)
            if len(statements) != 1:
                return opaque(f"{routine.name}(…)")
            return inner.select_value(statements[0])
        except (NotUnderstood, KeyError):
            return opaque(f"{routine.name}(…)")

    def _aggregate(self, name: str, node: Node) -> Expression:
        if self._rows is None:
            why = Why.STATEMENT if any(item.side for item in self._items) else Why.LOOKUP
            return Opaque(why, f"{name}(…)")
        self._aggregated = True
        unordered = "agg_order" in node or self._unordered
        if unordered and name in ("jsonb_agg", "json_agg", "string_agg"):
            return opaque(f"{name}(…)")
        wanted = f"{name} unordered" if unordered and name == "array_agg" else name
        return Aggregate(wanted, tuple(self._list(node.get("args", ()))), self._rows)

    # --- queries ------------------------------------------------------------------------------------------------------

    def _sublink(self, node: Node) -> Expression:
        select = node["subselect"]
        try:
            match node["subLinkType"]:
                case "EXPR_SUBLINK":
                    return self.select_value(select)
                case "EXISTS_SUBLINK":
                    found = self.select(select)
                    if found.rows is None or found.aggregated:
                        return Opaque(Why.LOOKUP, "exists (…)")
                    return Aggregate("exists", (), found.rows)
                case "ARRAY_SUBLINK":
                    found = self.select(select)
                    if found.rows is None or found.aggregated:
                        return Opaque(Why.LOOKUP, "array(…)")
                    ordered = len(found.rows.items) == 1 and not found.rows.ordered
                    name = "array_agg" if ordered else "array_agg unordered"
                    gathered = Aggregate(name, (found.targets[0][1],), found.rows)
                    return call("coalesce", gathered, Call("array", ()))
                case _:
                    return Opaque(Why.LOOKUP, "(select …)")
        except NotUnderstood as reason:
            return Opaque(Why.LOOKUP, str(reason))

    def select_value(self, node: Node) -> Expression:
        """The value of a SELECT that stands where one value is wanted."""
        found = self.select(node)
        value = found.targets[0][1]
        if found.lookup or found.transition:
            return Opaque(Why.LOOKUP if found.lookup else Why.STATEMENT, "(select …)")
        if found.rows is not None and not found.aggregated:
            return Aggregate("first", (value,), found.rows)
        return case([(found.condition, value)], NULL)

    def select(self, node: Node) -> Selected:
        """A SELECT; raises NotUnderstood for forms that are not followed."""
        select = node.get("SelectStmt")
        if not select or select.get("op") != "SETOP_NONE":
            raise NotUnderstood("a set operation")
        if "valuesLists" in select or "withClause" in select:
            raise NotUnderstood("with or values")
        outer, self._items = self._items, list(self._items)
        kept = self._rows, self._unordered, self._aggregated
        self._aggregated = False
        try:
            return self._select(select, len(outer))
        finally:
            self._items = outer
            self._rows, self._unordered, self._aggregated = kept

    def _select(self, select: Node, outer: int) -> Selected:
        froms: list[From] = []
        conditions: list[Expression] = []
        clause: Sequence[Node] = select.get("fromClause", ())
        wanted: Sequence[Node] = select.get("targetList", ())
        if not clause and len(wanted) == 1 and _gives_rows(wanted[0]["ResTarget"]["val"]):
            # select unnest(…): as if it stood in FROM
            function = {"List": {"items": [wanted[0]["ResTarget"]["val"]]}}
            clause = [{"RangeFunction": {"functions": [function]}}]
            wanted = _EVERYTHING
        for item in clause:
            self._from(item, froms, conditions)
        mine = self._items[outer:]
        tables = any(item.source is None and item.side is None for item in mine)
        transition = any(item.side for item in mine)
        shaped = {"groupClause", "havingClause", "limitCount", "limitOffset", "distinctClause"} & set(select)
        where = self.expression(select["whereClause"]) if "whereClause" in select else TRUE
        for condition in conditions:
            where = both(where, condition)
        self._unordered = len(froms) > 1 or "sortClause" in select
        if froms and not tables and not transition:
            if shaped:
                raise NotUnderstood("group by, limit or distinct")
            ordered = "sortClause" in select
            self._rows = Rows(tuple(froms), None if where == TRUE else where, ordered)
        else:
            self._rows = None
        targets = self._targets(wanted, mine)
        if not mine:
            return Selected(targets, condition=where, aggregated=self._aggregated)
        if tables or (transition and (froms or shaped)):
            doubt = Opaque(Why.LOOKUP, "from …")
            return Selected(targets, doubt, lookup=True, transition=transition, aggregated=self._aggregated)
        if transition:
            if _any_aggregate(select.get("targetList", ())):
                # An aggregate over no rows is a row all the same.
                return Selected(targets, transition=True, aggregated=True)
            return Selected(targets, condition=where, transition=True)
        return Selected(targets, rows=self._rows, aggregated=self._aggregated)

    def _targets(self, nodes: Sequence[Node], mine: Sequence[Item]) -> tuple[tuple[str, Expression], ...]:
        targets: list[tuple[str, Expression]] = []
        for node in nodes:
            value = node["ResTarget"]["val"]
            fields = value.get("ColumnRef", {}).get("fields", ())
            if fields and "A_Star" in fields[-1]:
                of = fields[0]["String"]["sval"] if len(fields) > 1 else None
                for item in mine:
                    if of in (None, item.alias) and item.source is not None:
                        targets.extend((name, Current(item.source, name)) for name in item.columns)
                    elif of in (None, item.alias):
                        targets.append(("*", Opaque(Why.LOOKUP, "*")))
                if not mine:
                    targets.append(("*", self.expression(value)))
                continue
            name = node["ResTarget"].get("name") or _target_name(value)
            targets.append((name, self.expression(value)))
        return tuple(targets) or (("", NULL),)

    def _from(self, node: Node, froms: list[From], conditions: list[Expression]) -> None:
        (kind, inner), *_ = node.items()
        match kind:
            case "RangeVar":
                alias = inner.get("alias", {}).get("aliasname", inner["relname"])
                side = self.transition.get(inner["relname"]) if "schemaname" not in inner else None
                self._items.append(Item(alias, side=side))
            case "RangeFunction":
                froms.append(self._range_function(inner))
            case "JoinExpr":
                self._join(inner, froms, conditions)
            case "RangeSubselect":
                self._items.append(Item(inner.get("alias", {}).get("aliasname", "")))
            case _:
                raise NotUnderstood(kind)

    def _range_function(self, node: Node) -> From:
        functions = node.get("functions", ())
        inner: Node = functions[0]["List"]["items"][0] if len(functions) == 1 else {}
        if "FuncCall" not in inner or node.get("ordinality"):
            raise NotUnderstood("a function in FROM")
        name = name_of(inner["FuncCall"]["funcname"])[-1]
        if name not in SOURCES:
            raise NotUnderstood(f"{name}() in FROM")
        alias = node.get("alias", {}).get("aliasname", name)
        named = tuple(each["String"]["sval"] for each in node.get("alias", {}).get("colnames", ()))
        own = SOURCE_COLUMNS.get(name, (alias,))
        columns = (*named, *own[len(named) :])
        arguments = tuple(self._list(inner["FuncCall"].get("args", ())))
        self.counter[0] += 1
        source = self.counter[0]
        self._items.append(Item(alias, source=source, columns=columns))
        return From(source, name, arguments, columns)

    def _join(self, node: Node, froms: list[From], conditions: list[Expression]) -> None:
        self._from(node["larg"], froms, conditions)
        before, left_items = len(froms), list(self._items)
        self._from(node["rarg"], froms, conditions)
        on = self.expression(node["quals"]) if "quals" in node else TRUE
        right_items = [item for item in self._items if item not in left_items]
        for word in node.get("usingClause", ()):
            name = word["String"]["sval"]
            left = next((_of_item(item, name) for item in left_items if _has(item, name)), None)
            right = next((_of_item(item, name) for item in right_items if _has(item, name)), None)
            if left is None or right is None:
                raise NotUnderstood("using")
            on = both(on, call("=", left, right))
        kind = {"JOIN_INNER": "inner", "JOIN_LEFT": "left", "JOIN_FULL": "full"}.get(node["jointype"])
        if kind is None:
            raise NotUnderstood(node["jointype"])
        if len(froms) == before + 1:
            froms[-1] = msgspec.structs.replace(froms[-1], join=kind, on=None if on == TRUE else on)
        elif kind == "inner":
            conditions.append(on)
        else:
            raise NotUnderstood(f"{kind} join")


def _has(item: Item, name: str) -> bool:
    return name in item.columns or item.side is not None


def _of_item(item: Item, column: str) -> Expression:
    if item.side is not None:
        return Whole(item.side) if column == "*" else Field(item.side, column)
    if item.source is None:
        return Opaque(Why.LOOKUP, f"{item.alias}.{column}")
    return Current(item.source, column) if column in item.columns else opaque(f"{item.alias}.{column}")


_EVERYTHING: Sequence[Node] = [{"ResTarget": {"val": {"ColumnRef": {"fields": [{"A_Star": {}}]}}}}]


def _gives_rows(node: Node) -> bool:
    return "FuncCall" in node and name_of(node["FuncCall"]["funcname"])[-1] in SOURCES


_SUMS = frozenset(("sum", "min", "max", "avg", "bool_or", "bool_and", "every"))


def _any_aggregate(tree: Any) -> bool:
    """Whether a tree calls an aggregate, also one that is not evaluated here."""
    calls = [node["FuncCall"] for node in nodes_below(tree) if "FuncCall" in node]
    return any(name_of(call["funcname"])[-1] in AGGREGATES | _SUMS for call in calls)


def _target_name(node: Node) -> str:
    """The name that PostgreSQL gives a target without AS."""
    (kind, inner), *_ = node.items()
    match kind:
        case "ColumnRef":
            return inner["fields"][-1].get("String", {}).get("sval", "?column?")
        case "FuncCall":
            return inner["funcname"][-1]["String"]["sval"]
        case "TypeCast":
            return _target_name(inner["arg"])
        case "CoalesceExpr":
            return "coalesce"
        case "CaseExpr":
            return "case"
        case _:
            return "?column?"


_TYPES = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "bool": "boolean",
    "float4": "real",
    "float8": "float8",
}


def type_name(node: Node) -> tuple[str, tuple[int, ...]]:
    """A type as it is cast to: its last name, ``[]`` for arrays, and its modifiers."""
    name: str = node["names"][-1]["String"]["sval"]
    modifiers = tuple(
        constant.value
        for each in node.get("typmods", ())
        if isinstance(constant := _constant(each.get("A_Const", {})), Const) and isinstance(constant.value, int)
    )
    return _TYPES.get(name, name) + ("[]" if "arrayBounds" in node else ""), modifiers


def declared_type(text: str) -> tuple[str, tuple[int, ...]] | None:
    """The type of a declared variable, where it is one that a value is cast to; None for rows, records and %type."""
    text = text.strip()
    if "%" in text or not text:
        return None
    try:
        target = parse_sql(f"select null::{text}")[0]["SelectStmt"]["targetList"][0]["ResTarget"]
        return type_name(target["val"]["TypeCast"]["typeName"])
    except (NotUnderstood, KeyError):
        return None


def _constant(inner: Node) -> Expression:
    if inner.get("isnull"):
        return NULL
    if "ival" in inner:
        return Const(int(inner["ival"].get("ival", 0)))
    if "fval" in inner:
        text = inner["fval"].get("fval", "0")
        return Const(int(text) if re.fullmatch(r"\d+", text) else Decimal(text))
    if "boolval" in inner:
        return Const(bool(inner["boolval"].get("boolval", False)))
    if "sval" in inner:
        return Const(inner["sval"].get("sval", ""))
    return opaque("constant")


def _value_function(op: str) -> Expression:
    match op:
        case "SVFOP_CURRENT_USER" | "SVFOP_CURRENT_ROLE" | "SVFOP_USER":
            return Around(Ambient.CURRENT_USER)
        case "SVFOP_SESSION_USER":
            return Around(Ambient.SESSION_USER)
        case _ if "TIME" in op or "DATE" in op:
            return Opaque(Why.TIME, op.removeprefix("SVFOP_").lower())
        case _:
            return Opaque(Why.SESSION, op.removeprefix("SVFOP_").lower())


def _list_items(node: Node | None) -> Sequence[Node]:
    return (node or {}).get("List", {}).get("items", ())


def _is_trigger_arguments(node: Node) -> bool:
    fields = node.get("ColumnRef", {}).get("fields", ())
    return len(fields) == 1 and fields[0].get("String", {}).get("sval") == "tg_argv"
