"""From one SQL statement to facts: what it writes, what it looks at, what it calls. Runs in the parser's child only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import pgparse

from afterwrite.scan.facts import (
    Call,
    Cast,
    Command,
    Delete,
    Division,
    Fact,
    Insert,
    Lock,
    Notify,
    OnConflict,
    Operator,
    Outside,
    Read,
    Refresh,
    RowRead,
    Session,
    Setting,
    TermKind,
    Update,
)
from afterwrite.scan.known import CUTS_TEXT, KEEPS_TEXT, OUTSIDE, OUTSIDE_SCHEMAS, SESSION_FUNCTIONS
from afterwrite.scan.notebook import Notebook
from afterwrite.scan.terms import Node, Terms, constant, field_name, function_name, operator_name
from afterwrite.scan.tokens import after_keyword, arguments, character_offset, items, tokens

F = TypeVar("F", bound=Fact)
_parse = cast("Callable[[str], list[Node]]", pgparse.parse)  # type: ignore[reportUnknownMemberType]

_ROW_AS_JSON = frozenset({"to_jsonb", "to_json", "row_to_json", "hstore"})
_END_OF_LIST = frozenset(
    {
        *("from", "where", "group", "having", "window", "union", "intersect", "except", "order", "limit", "offset"),
        *("fetch", "for", "on", "returning"),
    }
)
_NEVER: frozenset[str] = frozenset()
_BETWEEN = (">=", "<=")
_JSON_STEPS = ("->", "->>", "#>", "#>>")


class Scope:
    """The tables and columns of one SELECT while it is walked."""

    def __init__(self) -> None:
        self.tables: list[tuple[str | None, str, str, int]] = []
        self.columns: list[tuple[str | None, str]] = []


class Query:
    """One statement or expression being read. ``names`` collects every variable and column that it looks at."""

    def __init__(
        self, notebook: Notebook, sql: str, line: int, *, prefix: str = "", into: tuple[str, ...] = ()
    ) -> None:
        self.notebook = notebook
        self.sql = prefix + sql
        self.line = line
        self.into = into
        self.names: dict[str, None] = {}
        self.scopes: list[Scope] = []
        self.terms = Terms(notebook, self.sql)
        self.statements: list[Node] = [each["stmt"] for each in _parse(self.sql) if each.get("stmt")]
        self.ctes: list[set[str]] = []
        self.used: set[str] = set()

    def read(self) -> Query:
        """Record the facts of every statement in the text."""
        for statement in self.statements:
            for kind, node in statement.items():
                self._statement(kind, node)
        return self

    @property
    def expression(self) -> Node | None:
        """The tree of the one expression, for text that was read as ``select …``."""
        for statement in self.statements:
            targets = statement.get("SelectStmt", {}).get("targetList", ())
            if len(targets) == 1:
                return targets[0]["ResTarget"].get("val")
        return None

    # Statements ------------------------------------------------------------------------------------------------------

    def _statement(self, kind: str, node: Node) -> None:
        match kind:
            case "SelectStmt" if "intoClause" in node:
                self._add(Command, node, what="select into")
            case "SelectStmt" | "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt":
                self.walk({kind: node})
            case "CallStmt":
                self._function_call(node["funccall"], procedure=True)
            case "NotifyStmt":
                payload = f"'{node['payload']}'" if "payload" in node else ""
                self._add(Notify, node, channel=f"'{node['conditionname']}'", payload=payload)
            case "VariableSetStmt":
                self._add(Setting, node, name=node.get("name"), written=True)
            case "TruncateStmt":
                for each in node.get("relations", ()):
                    self._add_on(Delete, each["RangeVar"], truncate=True, text=self.sql)
            case "LockStmt":
                self._add(Lock, node, what="lock table")
            case "RefreshMatViewStmt":
                self._add_on(Refresh, node["relation"])
            case "CopyStmt" if node.get("is_program"):
                self._add(Command, node, what="copy program")
            case _:
                self._add(Command, node, what=_words(kind))

    def walk(self, node: Any) -> None:
        """Everything below a node."""
        if isinstance(node, list):
            for each in node:  # type: ignore[reportUnknownVariableType]
                self.walk(each)
        elif isinstance(node, dict):
            for kind, below in node.items():  # type: ignore[reportUnknownVariableType]
                self._node(str(kind), below)  # type: ignore[reportUnknownArgumentType]

    def _node(self, kind: str, node: Any) -> None:
        match kind:
            case "ColumnRef":
                self._column(node)
            case "ParamRef":
                self.names[f"${node.get('number', 0)}"] = None
            case "A_Indirection":
                self._indirection(node)
            case "A_Expr":
                self._operator(node)
            case "FuncCall":
                self._function_call(node)
            case "TypeCast":
                self._cast(node)
            case "CaseExpr":
                if "arg" in node:
                    self._uses("=")
                self.walk(node)
            case "SQLValueFunction":
                what = node["op"].removeprefix("SVFOP_").lower()
                if what in ("current_user", "session_user", "user", "current_role", "current_catalog"):
                    self._add(Session, node, name=what)
            case "SelectStmt":
                self._select(node)
            case "InsertStmt":
                self._insert(node)
            case "UpdateStmt":
                self._update(node)
            case "DeleteStmt":
                self._delete(node)
            case "MergeStmt":
                self._merge(node)
            case "RangeVar":
                self._table(node)
            case _:
                self.walk(node)

    def _select(self, node: Node) -> None:
        with self._with(node), self._scope(locks="lockingClause" in node):
            self.walk(node.get("fromClause"))
            self.walk(_without(node, "withClause", "fromClause"))

    @contextmanager
    def _with(self, node: Node) -> Generator[None]:
        """Its WITH is read first; the names are then those of its queries, and of no table, while the rest is read."""
        clause = node.get("withClause", {})
        listed: list[Node] = [each["CommonTableExpr"] for each in clause.get("ctes", ())]
        names = {each["ctename"] for each in listed} if clause.get("recursive") else set[str]()
        self.ctes.append(names)
        for each in listed:
            self.walk(each.get("ctequery"))
            names.add(each["ctename"])
        yield
        self.ctes.pop()

    def _insert(self, node: Node) -> None:
        before, self.names = self.names, {}
        with self._with(node):
            self._insert_rows(node)
        self.names |= before

    def _insert_rows(self, node: Node) -> None:
        relation = node["relation"]
        select: Node = node.get("selectStmt", {}).get("SelectStmt", {})
        conflict: Node = node.get("onConflictClause", {})
        rows = select.get("valuesLists", ())
        values, source = self._inserted(relation, select)
        with self._scope():
            self.walk(_without(node, "relation", "withClause"))
        match conflict.get("action"):
            case "ONCONFLICT_UPDATE":
                on_conflict = OnConflict.UPDATE
            case "ONCONFLICT_NOTHING":
                on_conflict = OnConflict.NOTHING
            case _:
                on_conflict = OnConflict.NONE
        self._add_on(
            Insert,
            relation,
            columns=tuple(each["ResTarget"]["name"] for each in node.get("cols", ())),
            values=values,
            source=source,
            from_select=bool(select) and not rows,
            rows=max(1, len(rows)),
            on_conflict=on_conflict,
            drops_duplicates=self.notebook.caught_duplicates > 0,
            updates=_targets(conflict.get("targetList", ())),
            returning_into=self.into if "returningList" in node else (),
            names=tuple(self.names),
            text=self.sql,
        )

    def _inserted(self, relation: Node, select: Node) -> tuple[tuple[str, ...], str]:
        found = after_keyword(self.sql, self._place(relation), frozenset({"values", "select", "with", "default"}))
        if found is None or not select:
            return (), ""
        word, end = found
        start = end - len(word)
        if word == "with":
            found = after_keyword(self.sql, end, frozenset({"select"}))
            if found is None:
                return (), ""
            word, end = found
        if word == "values":
            rows = select.get("valuesLists", ())
            bracket = self.sql.find("(", end)
            return (tuple(items(self.sql, bracket + 1)[0]), "") if len(rows) == 1 and bracket > 0 else ((), "")
        _, finish = items(
            self.sql, start, until=frozenset({"on", "returning"}) if "fromClause" not in select else _NEVER
        )
        source = self._without_tail(start) if "fromClause" in select else self.sql[start:finish].strip()
        if select.get("op") != "SETOP_NONE" or "distinctClause" in select:
            return (), source
        listed, _ = items(self.sql, end, until=_END_OF_LIST)
        targets = [each["ResTarget"] for each in select.get("targetList", ())]
        if len(listed) != len(targets):
            return (), source
        return tuple(_without_alias(text, target) for text, target in zip(listed, targets, strict=True)), source

    def _without_tail(self, start: int) -> str:
        """A SELECT up to the ON CONFLICT or RETURNING of the INSERT around it."""
        end = len(self.sql)
        for word in ("conflict", "returning"):
            found = after_keyword(self.sql, start, frozenset({word}))
            if found is not None:
                end = min(end, found[1] - len(word))
        text = self.sql[start:end].rstrip().rstrip(";").rstrip()
        return text[:-2].rstrip() if end < len(self.sql) and text.lower().endswith(" on") else text

    def _update(self, node: Node) -> None:
        relation = node["relation"]
        self.names, before = {}, self.names
        with self._with(node), self._scope():
            self.walk(_without(node, "relation", "withClause"))
        columns = _targets(node.get("targetList", ()))
        found = after_keyword(self.sql, self._place(relation), frozenset({"set"}))
        listed = items(self.sql, found[1], until=_END_OF_LIST)[0] if found else []
        values = [each.partition("=")[2].strip() for each in listed if not each.startswith("(")]
        self._add_on(
            Update,
            relation,
            columns=columns,
            values=tuple(values) if len(values) == len(columns) else (),
            where=self._where(relation),
            names=tuple(self.names),
            text=self.sql,
        )
        self.names |= before

    def _delete(self, node: Node) -> None:
        with self._with(node), self._scope():
            self.walk(_without(node, "relation", "withClause"))
        self._add_on(Delete, node["relation"], where=self._where(node["relation"]), text=self.sql)

    def _where(self, relation: Node) -> str:
        found = after_keyword(self.sql, self._place(relation), frozenset({"where"}))
        if found is None:
            return ""
        end = after_keyword(self.sql, found[1], frozenset({"returning"}))
        text = self.sql[found[1] : end[1] - len(end[0]) if end else len(self.sql)]
        return text.strip().rstrip(";").rstrip()

    def _merge(self, node: Node) -> None:
        relation = node["relation"]
        with self._with(node), self._scope():
            self.walk(_without(node, "relation", "withClause"))
        for each in node.get("mergeWhenClauses", ()):
            clause = each["MergeWhenClause"]
            columns = _targets(clause.get("targetList", ()))
            match clause.get("commandType"):
                case "CMD_INSERT":
                    self._add_on(Insert, relation, columns=columns, from_select=True, text=self.sql)
                case "CMD_UPDATE":
                    self._add_on(Update, relation, columns=columns, names=tuple(self.names), text=self.sql)
                case "CMD_DELETE":
                    self._add_on(Delete, relation, text=self.sql)
                case _:
                    pass

    # Tables and columns ----------------------------------------------------------------------------------------------

    def _scope(self, *, locks: bool = False) -> _Scoped:
        return _Scoped(self, locks=locks)

    def close_scope(self, scope: Scope, *, locks: bool) -> None:
        """Say of each table of a finished SELECT which columns were looked at."""
        for schema, table, alias, line in scope.tables:
            columns = {column: None for qualifier, column in scope.columns if qualifier in (None, alias)}
            if "*" in columns:
                columns = {"*": None}
            names = {"schema": schema, "table": table, "columns": tuple(columns)}
            self.notebook.add(Read, line, **names, into=self.into, locks=locks)

    def _table(self, node: Node) -> None:
        schema, name = node.get("schemaname"), node["relname"]
        if schema is None and any(name in names for names in self.ctes):
            return
        alias = node.get("alias", {}).get("aliasname", name)
        if self.scopes:
            self.scopes[-1].tables.append((schema, name, alias, self._line(node)))

    def _column(self, node: Node) -> None:
        fields = [field_name(each) for each in node.get("fields", ())]
        if not fields:
            return
        first = fields[0]
        if first in self.notebook.rows and not self._shadowed(first):
            self._row(node, first, fields[1] if len(fields) > 1 else "*")
            return
        self.names[first] = None
        if len(fields) > 1 and first in self.notebook.parameters:
            self._add(Call, node, name=fields[1], into=self.into, field=True)
        if len(fields) > 1:
            self.names[".".join(fields[:2])] = None
        if first.startswith("tg_"):
            if first == "tg_argv":
                self._add(Session, node, name=first)
            return
        for scope in self.scopes:
            scope.columns.append((fields[-2] if len(fields) > 1 else None, fields[-1]))

    def _row(self, node: Node, alias: str, column: str) -> None:
        """A look at NEW or OLD, under whatever name it goes here."""
        row = self.notebook.rows[alias]
        self.names |= {row: None, f"{row}.{column}": None}
        self._add(RowRead, node, row=row, column=column)

    def _shadowed(self, name: str) -> bool:
        return any(alias == name for scope in self.scopes for _, _, alias, _ in scope.tables)

    def _indirection(self, node: Node) -> None:
        row = self._row_named(node.get("arg"))
        steps = node.get("indirection", ())
        if row and steps and ("String" in steps[0] or "A_Star" in steps[0]):
            column = field_name(steps[0])
            self._row(node["arg"]["ColumnRef"], row, column)
            self._add(Call, node["arg"]["ColumnRef"], name=column, into=self.into, field=True)
            self.walk(steps[1:])
            return
        self.walk(node.get("arg"))
        for each in steps:
            if "String" in each:
                self.notebook.add(Call, self.line, name=field_name(each), into=self.into, field=True)
        self.walk([each for each in steps if "A_Indices" in each])

    def _cast(self, node: Node) -> None:
        names = [field_name(each) for each in node.get("typeName", {}).get("names", ())]
        before, self.names = self.names, {}
        self.walk(node.get("arg"))
        schema = names[-2] if len(names) > 1 else None
        constant = "A_Const" in node.get("arg", {})
        if names and not constant:
            origins = tuple(dict.fromkeys(self.origins(node.get("arg"))))
            self._add(Cast, node, schema=schema, type=names[-1], names=tuple(self.names), origins=origins)
        self.names |= before

    def origins(self, node: Node | None) -> Iterator[str]:
        """The columns, parameters and variables whose text an expression is, or a piece of it."""
        for kind, below in (node or {}).items():
            match kind:
                case "ColumnRef":
                    first, *rest = [field_name(each) for each in below.get("fields", ())] or [""]
                    yield ".".join((self.notebook.rows.get(first, first) if rest else first, *rest))
                case "ParamRef":
                    yield f"${below.get('number', 0)}"
                case "A_Indirection":
                    row, steps = self._row_named(below.get("arg")), below.get("indirection", ())
                    if row and steps and "String" in steps[0]:
                        yield f"{self.notebook.rows[row]}.{field_name(steps[0])}"
                    else:
                        yield from self.origins(below.get("arg"))
                case "A_Expr" if operator_name(below) in _JSON_STEPS:
                    yield from self._step(below)
                case "A_Expr" if operator_name(below) == "||" or below.get("kind") == "AEXPR_NULLIF":
                    yield from self.origins(below.get("lexpr"))
                    yield from self.origins(below.get("rexpr") if below.get("kind") == "AEXPR_OP" else None)
                case "FuncCall" if function_name(below)[1] in CUTS_TEXT:
                    for each in below.get("args", ()):
                        yield from self.origins(each)
                case "CoalesceExpr":
                    for each in below.get("args", ()):
                        yield from self.origins(each)
                case "CaseExpr":
                    for each in below.get("args", ()):
                        yield from self.origins(each["CaseWhen"].get("result"))
                    yield from self.origins(below.get("defresult"))
                case "TypeCast":
                    names = below.get("typeName", {}).get("names", ())
                    if names and field_name(names[-1]) in KEEPS_TEXT:
                        yield from self.origins(below.get("arg"))
                case "CollateClause":
                    yield from self.origins(below.get("arg"))
                case _:
                    pass

    def _step(self, node: Node) -> Iterator[str]:
        """``document ->> key``; of the trigger's row as JSON, the column."""
        left: Node = node.get("lexpr", {})
        given = left.get("FuncCall", {}).get("args", ())
        row = (
            self._row_named(given[0]) if function_name(left.get("FuncCall", {}))[1] in _ROW_AS_JSON and given else None
        )
        key = constant(node.get("rexpr", {}).get("A_Const"))
        if row is None:
            yield from self.origins(left)
        elif key.kind is TermKind.LITERAL:
            yield f"{self.notebook.rows[row]}.{key.text}"

    def _uses(self, operator: str) -> None:
        """An operator, once for a piece of SQL."""
        if operator not in self.used:
            self.used.add(operator)
            self.notebook.add(Operator, self.line, name=operator)

    def _operator(self, node: Node) -> None:
        name = operator_name(node)
        for each in _BETWEEN if "BETWEEN" in name else (name,):
            self._uses(each)
        if name in ("/", "%") and not _is_number(node.get("rexpr", {})):
            self._add(Division, node, text=name)
        key = node.get("rexpr", {}).get("A_Const", {}).get("sval", {}).get("sval")
        call = node.get("lexpr", {}).get("FuncCall", {})
        if operator_name(node) in ("->", "->>") and key and function_name(call)[1] in _ROW_AS_JSON:
            given = call.get("args", ())
            row = self._row_named(given[0]) if len(given) == 1 else None
            if row:
                self._row(call, row, key)
                return
        self.walk(node.get("lexpr"))
        self.walk(node.get("rexpr"))

    def _row_named(self, node: Node | None) -> str | None:
        fields = (node or {}).get("ColumnRef", {}).get("fields", ())
        name = field_name(fields[0]) if len(fields) == 1 else None
        return name if name in self.notebook.rows and not self._shadowed(name) else None

    # Calls -----------------------------------------------------------------------------------------------------------

    def _function_call(self, node: Node, *, procedure: bool = False) -> None:
        schema, name = function_name(node)
        given: list[Node] = node.get("args", [])
        self.names, before = {}, self.names
        self.walk({key: below for key, below in node.items() if key not in ("funcname",)})
        texts = tuple(arguments(self.sql, self._place(node)))
        labels = tuple(each.get("NamedArgExpr", {}).get("name") for each in given)
        self._add(
            Call,
            node,
            schema=schema,
            name=name,
            arguments=tuple(self.terms.term(each.get("NamedArgExpr", {}).get("arg", each)) for each in given),
            texts=texts if len(texts) == len(given) else (),
            argument_names=labels if any(labels) else (),
            names=tuple(self.names),
            into=self.into,
            procedure=procedure,
        )
        if schema in (None, "pg_catalog"):
            self._known_call(node, name, given, texts)
        if name in OUTSIDE or schema in OUTSIDE_SCHEMAS:
            self._add(Outside, node, function=f"{schema}.{name}" if schema else name)
        self.names |= before

    def _known_call(self, node: Node, name: str, given: list[Node], texts: tuple[str, ...]) -> None:
        def literal(place: int) -> str | None:
            if len(given) <= place:
                return None
            term = self.terms.term(given[place])
            return term.text if term.kind is TermKind.LITERAL else None

        match name:
            case "pg_notify":
                self._add(Notify, node, channel=texts[0] if texts else "", payload=texts[1] if len(texts) > 1 else "")
            case "current_setting":
                self._add(Setting, node, name=literal(0), strict=len(given) < 2 or literal(1) in ("false", "f"))
            case "set_config":
                self._add(Setting, node, name=literal(0), written=True)
            case _ if name.startswith(("pg_advisory", "pg_try_advisory")):
                self._add(Lock, node, what=name)
            case _ if name in SESSION_FUNCTIONS:
                self._add(Session, node, name=name)
            case _:
                pass

    # Places ----------------------------------------------------------------------------------------------------------

    def _add(self, kind: type[F], node: Node, **fields: Any) -> None:
        self.notebook.add(kind, self._line(node), **fields)

    def _add_on(self, kind: type[F], relation: Node, **fields: Any) -> None:
        self._add(kind, relation, schema=relation.get("schemaname"), table=relation["relname"], **fields)

    def _place(self, node: Node) -> int:
        return character_offset(self.sql, max(0, node.get("location", 0)))

    def _line(self, node: Node) -> int:
        return self.line + self.sql.count("\n", 0, self._place(node))


class _Scoped:
    def __init__(self, query: Query, *, locks: bool) -> None:
        self.query = query
        self.locks = locks
        self.scope = Scope()

    def __enter__(self) -> None:
        self.query.scopes.append(self.scope)

    def __exit__(self, *_: object) -> None:
        self.query.scopes.pop()
        self.query.close_scope(self.scope, locks=self.locks)


def _is_number(node: Node) -> bool:
    """Whether a divisor is a literal other than zero."""
    term = constant(node.get("A_Const"))
    return term.kind is TermKind.LITERAL and bool(term.text.strip("0."))


def _without(node: Node, *keys: str) -> Node:
    return {key: below for key, below in node.items() if key not in keys}


def _targets(nodes: Any) -> tuple[str, ...]:
    return tuple(each["ResTarget"].get("name", "") for each in nodes)


def _without_alias(text: str, target: Node) -> str:
    """A select list's item without the name that it is given."""
    if "name" not in target:
        return text
    cut = list(tokens(text))[:-1]
    if cut and cut[-1].text.lower() == "as":
        cut.pop()
    return text[: cut[-1].end] if cut else text


def _words(kind: str) -> str:
    """``CreateTableAsStmt`` as people say it."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind.removesuffix("Stmt")).strip()
