"""From the text of a function to its facts: a walk over PL/pgSQL, keeping the conditions on the way.

    Source ─▶ parse ─▶ statements ─▶ Notebook ─▶ Body

Runs in the parser's child process only: the parser underneath is C, and some input makes it abort. Lines count from 1
within pg_proc.prosrc. What cannot be read becomes an Unknown fact: never silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, assert_never, cast

import pgparse

from afterwrite.scan.facts import (
    ACTS,
    Assignment,
    Body,
    Call,
    Cast,
    Command,
    Discard,
    Division,
    Dynamic,
    Guard,
    Language,
    NewAssignment,
    Premise,
    PremiseKind,
    Raise,
    Read,
    Return,
    Source,
    Term,
    TermKind,
    Unknown,
)
from afterwrite.scan.notebook import Notebook
from afterwrite.scan.query import Query
from afterwrite.scan.terms import Node, as_type, choice, unknown
from afterwrite.scan.tokens import split_names, tokens, unquote

_parse_plpgsql = cast("Callable[[str], list[Node]]", pgparse.parse_pgsql)  # type: ignore[reportUnknownMemberType]
_ParseError = cast("type[Exception]", pgparse.PGQueryError)  # type: ignore[reportUnknownMemberType]

_LEVELS = {14: "debug", 15: "log", 17: "info", 18: "notice", 19: "warning", 21: "exception"}  # elog.h
_ASSIGNMENT_MODES = (3, 4, 5)  # RawParseMode: RAW_PARSE_PLPGSQL_ASSIGN1..3
_EXPRESSION_MODE = 2
_UNCATCHABLE = frozenset({"assert_failure", "query_canceled", "p0004", "57014"})
_DUPLICATES = ("unique_violation", "integrity_constraint_violation", "23505", "23000", "others")
# Each begins where a word begins and never gives a letter back: a literal of a megabyte is passed over once.
_ALIAS = re.compile(r"(?<![\w$])([\w$]++)\s++alias\s+for\s+(\$\d+|[\w$]+)\s*;", re.IGNORECASE)
_ROWTYPE = re.compile(r"(?<![\w$.\"])[\w$.\"]++\s*+%\s*rowtype\b", re.IGNORECASE)
_SUM = re.compile(r"(?<![-+*/<>=~!@#%^&|])[+*](?![-+*/<>=~!@#%^&|])")
_TYPE = r'(?:"[^"]+"|[\w$]+)(?:\s*\.\s*(?:"[^"]+"|[\w$]+))*'
_UNKNOWN_FIELD = re.compile(r'"(?P<variable>[^".]+)\.[^"]*" is not a known variable')

_SET_BY_BODY = re.compile(
    r'"(?P<variable>tg_(?:op|when|level|name|relname|table_name|table_schema))" is not a known variable', re.IGNORECASE
)


def read_body(source: Source) -> Body:
    """The facts of a text."""
    if "\0" in source.text:  # the parser would take it for the end
        return Body(unknowns=(Unknown(rule="unparsable", text="a zero byte"),))
    notebook = Notebook(trigger=source.trigger)
    notebook.parameters = frozenset(source.parameters)
    notebook.values.update({name: Term(kind=TermKind.NAME, text=name) for name in source.parameters if name})
    try:
        match source.language:
            case Language.PLPGSQL:
                tree, text = _parse_tolerantly(source.text), _without_comments(source.text)
                if text != source.text:  # what is cut out of it later is looked at with patterns
                    tree = _parse_tolerantly(text)
                return _Walker(notebook, tree, text).read()
            case Language.SQL | Language.STATEMENT:
                bare = _bare(source.text)
                if bare != source.text:
                    Query(Notebook(trigger=source.trigger), source.text, 1)
                Query(notebook, bare, 1, into=("result",)).read()
            case Language.CONDITION:
                _condition(notebook, source.text, 1)
            case _:
                assert_never(source.language)
    except _ParseError as error:
        said = _said(error)
        return Body(unknowns=(Unknown(line=_line_of_error(source, said), rule="unparsable", text=said),))
    return notebook.body()


def _line_of_error(source: Source, said: str) -> int:
    """The line that the parser stumbled over, 0 where that cannot be told: it names a word, and no place."""
    found = re.search(r'at or near "(.+)"$|^"([^"]+)" is not a known variable', said, re.DOTALL)
    text = source.text
    if source.language is Language.PLPGSQL:
        mark = re.search(r"\$\w*\$", text)
        text = text[mark.end() : text.rfind(mark[0])] if mark else text
    if found is None:
        return text.count("\n") + 1 if "at end of input" in said else 0
    word = found[1] or found[2]
    lines = {text.count("\n", 0, token.start) + 1 for token in tokens(text) if token.text == word}
    return lines.pop() if len(lines) == 1 else 0


def _parse_tolerantly(definition: str) -> Node:
    """The tree of a PL/pgSQL function.

    The parser knows no catalog: it takes a variable of a composite type for a scalar and then denies its fields. Such a
    variable is declared as ``record`` and the text tried again; lines stay as they are. Nor does it know that a body
    may set its TG_ variables: such a one is declared, too.
    """
    text = definition
    for _ in range(40):
        try:
            return _parse_plpgsql(text)[0]["PLpgSQL_function"]
        except _ParseError as error:
            denied = _UNKNOWN_FIELD.search(str(error))
            assigned = _SET_BY_BODY.search(str(error))
            if assigned is not None and (better := _declared(text, assigned["variable"])) != text:
                text = better
                continue
            if denied is None:
                raise
            name = re.escape(denied["variable"])
            declared = re.compile(
                rf'(?<![\w$."])(\"?{name}\"?\s+(?:constant\s+)?)(?!record\b|alias\b){_TYPE}(\s*%\s*rowtype\b)?(\s*\[\s*\])*',
                re.IGNORECASE,
            )
            better = _without_comments(text)  # one may stand inside a declaration
            better = declared.sub(r"\1record", text, count=1) if better == text else better
            better = _ROWTYPE.sub("record", text) if better == text else better
            if better == text:
                raise
            text = better
    raise _ParseError("too many variables of unknown composite types")


def _declared(text: str, variable: str) -> str:
    """The function with one more variable in its outermost block, on the line where that begins."""
    mark = re.search(r"\bAS (\$\w*\$)", text)
    listed = (token for token in tokens(text, mark.end()) if token.kind == "word") if mark else iter(())
    for token in listed:
        if token.text.lower() == "declare":
            return f"{text[: token.end]} {variable} text;{text[token.end :]}"
        if token.text.lower() == "begin":
            return f"{text[: token.start]}declare {variable} text; {text[token.start :]}"
    return text


def _is_number_type(name: str) -> bool:
    return name in (
        "int",
        "integer",
        "int4",
        "bigint",
        "int8",
        "numeric",
        "decimal",
        "double precision",
        "float8",
        "real",
    )


def _without_comments(text: str) -> str:
    """The function with the comments of its body blanked out, line for line."""
    head = text.find("$")  # the body begins with a dollar quote, which is one string to the tokens of the whole
    tag = text[head : text.find("$", head + 1) + 1] if head >= 0 else ""
    end = text.rfind(tag) if tag else len(text)
    start = head + len(tag) if tag else 0
    return text[:start] + _bare(text[start:end]) + text[end:]


def _bare(text: str) -> str:
    """The text with its comments blanked out, line for line."""
    if "--" not in text and "/*" not in text:
        return text
    blanked = list(text)
    place = 0
    for token in tokens(text):
        blanked[place : token.start] = [letter if letter in "\r\n" else " " for letter in text[place : token.start]]
        place = token.end
    blanked[place:] = [letter if letter in "\r\n" else " " for letter in text[place:]]
    return "".join(blanked)


class _Walker:
    """Goes through a function's statements in order. Methods that walk say whether control surely ends there."""

    def __init__(self, notebook: Notebook, tree: Node, text: str) -> None:
        self.notebook = notebook
        self.tree = tree
        self.datums: list[Node] = tree.get("datums", [])
        self.new = tree.get("new_varno", -1) if notebook.rows else -1
        self.old = tree.get("old_varno", -1) if notebook.rows else -1
        self.pending = [
            datum for datum in self._variables() if "default_val" in datum or "cursor_explicit_expr" in datum
        ]
        self.loops: list[int] = []
        self.exception_blocks: list[int] = []
        self.types: dict[str, str] = {}
        self.hidden: set[str] = set()
        self.never_null: set[str] = set()
        for datum in self._variables():
            name = str(datum.get("refname", "")).lower()
            if name in self.types:  # an inner block declares it again: what either holds cannot be told by the name
                self.hidden.add(name)
            if datum.get("notnull"):
                self.never_null.add(name)
            self.types[name] = str(datum.get("datatype", {}).get("PLpgSQL_type", {}).get("typname", "")).strip()
        for alias, name in _ALIAS.findall(text):
            rows, values = notebook.rows, notebook.values
            if name.lower() in rows:
                rows[alias.lower()] = rows[name.lower()]
            else:
                values[alias.lower()] = values.get(name.lower(), Term(kind=TermKind.NAME, text=name.lower()))

    def read(self) -> Body:
        action = self.tree.get("action")
        if action:
            self.statements([action])
        return self.notebook.body(loops=tuple(self.loops), exception_blocks=tuple(self.exception_blocks))

    # Control ---------------------------------------------------------------------------------------------------------

    def statements(self, nodes: Iterable[Node], *, goes_on: bool = False) -> bool:
        """``goes_on``: what is known at the end holds for what follows."""
        depth = len(self.notebook.guards)
        ended = False
        for each in nodes:
            for kind, node in each.items():
                # The compiler puts a RETURN without a line at the end of every function: a trigger's may not get there.
                if kind == "PLpgSQL_stmt_return" and "lineno" not in node and not ended and self.notebook.rows:
                    self._fails(0, "no return")
                ended = self._statement(kind, node) or ended
        if not goes_on:
            del self.notebook.guards[depth:]
        return ended

    def _statement(self, kind: str, node: Node) -> bool:
        line = node.get("lineno", 0)
        match kind.removeprefix("PLpgSQL_stmt_"):
            case "block":
                return self._block(node, line)
            case "assign":
                self._assign(node, line)
            case "if":
                return self._if(node, line)
            case "case":
                return self._case(node, line)
            case "loop" | "while" | "fori" | "fors" | "forc" | "foreach_a" | "dynfors":
                self._loop(node, line)
                return kind == "PLpgSQL_stmt_loop" and not _leaves(node)
            case "exit":
                return self._exit(node, line)
            case "return":
                return self._return(node, line)
            case "return_query" if "dynquery" in node:
                self._dynamic(node, node["dynquery"], line, ("result",))
            case "return_next" | "return_query":
                self._expressions(node, line, into=("result",))
            case "raise":
                return self._raise(node, line)
            case "assert":
                self._assert(node, line)
            case "execsql":
                self._sql(node, line)
            case "perform":
                self._perform(node, line)
            case "call":
                self._call(node, line)
            case "dynexecute":
                self._dynamic(node, node.get("query"), line, self._into(node.get("target")))
            case "getdiag":
                items = [item["PLpgSQL_diag_item"] for item in node.get("diag_items", ())]
                self._store([self._variable(item.get("target", -1)) for item in items], line, "get diagnostics", ())
            case "open":
                self._open(node, line)
            case "fetch":
                cursor = self._variable(node.get("curvar", -1))
                self._store(self._into(node.get("target")), line, f"fetch from {cursor}", (cursor,))
            case "close":
                pass
            case "commit" | "rollback":
                self.notebook.add(Command, line, what=kind.removeprefix("PLpgSQL_stmt_"))
            case _:
                self.notebook.add(Unknown, line, rule="unparsable", text=f"a statement of an unknown kind ({kind})")
        return False

    def _block(self, node: Node, line: int) -> bool:
        self._declare(line)
        handlers = node.get("exceptions", {}).get("PLpgSQL_exception_block", {}).get("exc_list", ())
        before = dict(self.notebook.values)
        if handlers:
            self.exception_blocks.append(line)
        caught = _catches(handlers, "others")
        raises = caught or _catches(handlers, "raise_exception")
        duplicates = any(_catches(handlers, name) for name in _DUPLICATES)
        self.notebook.caught += caught
        self.notebook.caught_raises += raises
        self.notebook.caught_duplicates += duplicates
        ended = self.statements(node.get("body", ()), goes_on=not handlers and "label" not in node)
        self.notebook.caught -= caught
        self.notebook.caught_raises -= raises
        self.notebook.caught_duplicates -= duplicates
        outcomes = [] if ended else [self.notebook.values]
        for each in handlers:
            self.notebook.values = dict(before)
            self._forget(*self._assigned(node.get("body", ())))
            was, self.notebook.handler = self.notebook.handler, True
            handler_ended = self.statements(each["PLpgSQL_exception"].get("action", ()))
            self.notebook.handler = was
            outcomes += [] if handler_ended else [self.notebook.values]
            ended = ended and handler_ended
        self.notebook.values = _merged(outcomes) if outcomes else before
        return ended and "label" not in node

    def _declare(self, line: int) -> None:
        now = [datum for datum in self.pending if datum.get("lineno", 0) <= line]
        self.pending = [datum for datum in self.pending if datum.get("lineno", 0) > line]
        for datum in now:
            name, at = datum["refname"].lower(), datum.get("lineno", line)
            if "default_val" in datum:
                query = self._query(datum["default_val"], at, into=(name,))
                if query is not None:
                    self._hold(name, query.terms.term(query.expression))
                    origins = tuple(query.origins(query.expression))
                    self._note(name, at, _text(datum["default_val"]), tuple(query.names), origins=origins)
            else:
                self._query(datum["cursor_explicit_expr"], at, into=(name,))

    def _if(self, node: Node, line: int) -> bool:
        branches: list[tuple[Node, int, Sequence[Node]]] = [(node.get("cond", {}), line, node.get("then_body", ()))]
        for each in node.get("elsif_list", ()):
            branch = each["PLpgSQL_if_elsif"]
            branches.append((branch.get("cond", {}), branch.get("lineno", line), branch.get("stmts", ())))
        return self._branches([(_text(cond), at, body) for cond, at, body in branches], node.get("else_body", ()))

    def _case(self, node: Node, line: int) -> bool:
        subject = _text(node.get("t_expr"))
        variable = f'"__Case__Variable_{node.get("t_varno", 0)}__"'
        branches: list[tuple[str, int, Sequence[Node]]] = []
        for each in node.get("case_when_list", ()):
            when = each["PLpgSQL_case_when"]
            text = _text(when.get("expr")).replace(variable, subject if _is_name(subject) else f"({subject})")
            branches.append((text, when.get("lineno", line), when.get("stmts", ())))
        otherwise = node.get("else_stmts", ())
        if not node.get("have_else"):
            otherwise = [{"afterwrite_case_not_found": {"lineno": line}}]
        return self._branches(branches, otherwise)

    def _branches(self, branches: Sequence[tuple[str, int, Sequence[Node]]], otherwise: Sequence[Node]) -> bool:
        """IF and CASE: each body under its own condition and the others' negation; then what is known afterwards."""
        notebook = self.notebook
        depth = len(notebook.guards)
        before = dict(notebook.values)
        outcomes: list[dict[str, Term]] = []
        after: list[Guard] = []
        conditions: list[Guard] = []
        all_ended = True
        for text, line, body in branches:
            guard = _condition(notebook, text, line)
            conditions.append(guard)
            notebook.guards.append(guard)
            notebook.values = dict(before)
            ended = self.statements(body)
            notebook.guards.pop()
            refusal = Guard(text=guard.text, line=line, negated=True, test=guard.test, names=guard.names)
            notebook.guards.append(refusal)
            if ended and all_ended:
                after.append(refusal)
            elif not ended:
                outcomes.append(notebook.values)
            all_ended = all_ended and ended
        notebook.values = dict(before)
        if [each for each in otherwise if "afterwrite_case_not_found" in each]:
            self._fails(branches[0][1] if branches else 0, "case")
            else_ended = True
        else:
            else_ended = self.statements(otherwise) if otherwise else False
        if not else_ended:
            outcomes.append(notebook.values)
        only_way = else_ended and len(branches) == 1 and not all_ended
        del notebook.guards[depth:]
        if only_way:
            after += conditions
        notebook.guards += after
        notebook.values = _merged(outcomes) if outcomes else before
        return all_ended and else_ended

    def _loop(self, node: Node, line: int) -> None:
        notebook = self.notebook
        self.loops.append(line)
        depth = len(notebook.guards)
        target = self._loop_target(node)
        if "cond" in node:
            notebook.guards.append(_condition(notebook, _text(node["cond"]), line))
        elif "params" in node or ("query" in node and _mode(node["query"]) == _EXPRESSION_MODE):
            self._dynamic(node, node["query"], line, target)
        elif "query" in node:
            self._query(node["query"], line, into=(*_variables_of(target), "found"))
        elif "argquery" in node:
            self._query(node["argquery"], line, into=_variables_of(target))
        else:
            for key in ("expr", "lower", "upper", "step"):
                if key in node:
                    self._query(node[key], line, into=_variables_of(target))
        source = _text(node.get("query") or node.get("expr"))
        names = (self._variable(node["curvar"]),) if "curvar" in node else ()
        self._store(target, line, source, names)
        self._forget(*self._assigned(node.get("body", ())))
        notebook.loop += 1
        self.statements(node.get("body", ()))
        notebook.loop -= 1
        self._forget(*self._assigned(node.get("body", ())))
        del notebook.guards[depth:]

    def _exit(self, node: Node, line: int) -> bool:
        if "cond" not in node:
            return True
        guard = _condition(self.notebook, _text(node["cond"]), line)
        self.notebook.guards.append(Guard(text=guard.text, line=line, negated=True, test=guard.test, names=guard.names))
        return False

    def _return(self, node: Node, line: int) -> bool:
        if "lineno" not in node:  # the one that the compiler adds at the end of every function
            return True
        if "expr" not in node:
            if self.notebook.rows:
                # The server reads the whole function before it runs any of it: no condition stands before this.
                guards, self.notebook.guards = self.notebook.guards, []
                self.notebook.add(Unknown, line, rule="unparsable", text="a trigger's RETURN must name a row")
                self.notebook.guards = guards
            self.notebook.add(Return, line, what="none")
            return True
        query = self._query(node["expr"], line, into=("result",))
        what = _text(node["expr"]).strip()
        while what.startswith("(") and what.endswith(")"):
            what = what[1:-1].strip()
        lowered = what.lower().removesuffix(".*")
        plain = self.notebook.rows.get(lowered, "null" if lowered == "null" else what)
        if lowered in self.hidden:
            plain = f"{what} (one of several of that name)"
        self.notebook.add(Return, line, what=plain, names=tuple(query.names) if query else ())
        return True

    def _raise(self, node: Node, line: int) -> bool:
        level = _LEVELS.get(node.get("elog_level", 21), "exception")
        self._expressions({"params": node.get("params", ()), "options": node.get("options", ())}, line)
        bare = not any(key in node for key in ("message", "condname", "options"))
        form = "reraise" if bare and self.notebook.handler else "raise"
        plain = not any(key in node for key in ("condname", "options"))
        caught = self.notebook.caught_raises if plain else self.notebook.caught
        if not plain and not _is_caught_by_others(node):
            caught, form = 0, "uncatchable"
        level = "caught" if level == "exception" and caught else level
        self.notebook.add(Raise, line, level=level, form=form, message=node.get("message", node.get("condname", "")))
        return level in ("exception", "caught")

    def _fails(self, line: int, form: str, message: str = "") -> None:
        level = "caught" if self.notebook.caught else "exception"
        self.notebook.add(Raise, line, level=level, form=form, message=message)

    def _assert(self, node: Node, line: int) -> None:
        guard = _condition(self.notebook, _text(node.get("cond")), line)
        refusal = Guard(text=guard.text, line=line, negated=True, test=guard.test, names=guard.names)
        self.notebook.guards.append(refusal)
        self.notebook.add(Raise, line, level="exception", form="assert", message=guard.text)
        self.notebook.guards.pop()

    # Statements that do ----------------------------------------------------------------------------------------------

    def _assign(self, node: Node, line: int) -> None:
        expression = node.get("expr", {}).get("PLpgSQL_expr", {})
        text: str = expression.get("query", "")
        operator = next((token for token in _top_level(text) if token.text in (":=", "=")), None)
        if operator is None:
            self.notebook.add(Unknown, line, rule="unparsable", text=f"an assignment that cannot be read: {text}")
            return
        at = line + text.count("\n", 0, operator.end)
        value = text[operator.end :].strip()
        target = self._target(node.get("varno", -1), text[: operator.start])
        query = self._read(value, at, prefix="select ", into=(target,))
        names = tuple(query.names) if query else ()
        if target.startswith("new."):
            self.notebook.add(NewAssignment, line, field=target[4:], text=value, names=names)
            return
        plain = query is not None and target == text[: operator.start].strip().lower()
        known = query.terms.term(query.expression) if query is not None and plain else unknown()
        origins = tuple(query.origins(query.expression)) if query is not None else ()
        self._note(target, line, value, names, origins=origins)
        self._hold(target, known)

    def _perform(self, node: Node, line: int) -> None:
        facts = self.notebook.facts
        before = {kind: len(found) for kind, found in facts.items()}
        self._query(node.get("expr"), line, into=("found",))
        new = [fact for kind, found in facts.items() for fact in found[before.get(kind, 0) :]]
        text = _text(node.get("expr")).rstrip()
        self.notebook.add(
            Discard,
            line,
            text=text.strip()[6:].strip(),
            further=text.count("\n"),
            calls=tuple(fact.name for fact in new if isinstance(fact, Call)),
            acts=any(isinstance(fact, ACTS) or getattr(fact, "written", getattr(fact, "locks", False)) for fact in new),
            reads=any(isinstance(fact, Read) for fact in new),
            risky=any(isinstance(fact, Cast | Division) for fact in new),
        )

    def _sql(self, node: Node, line: int) -> None:
        targets = self._into(node.get("target"))
        text = _text(node.get("sqlstmt"))
        question = self.notebook.question() if node.get("strict") else None
        into = (*_variables_of(targets), "found", *((question,) if question else ()))
        query = self._query(node.get("sqlstmt"), line, into=into)
        names = tuple(query.names) if query else ()
        if question and query and any("SelectStmt" in statement for statement in query.statements):
            guard = Guard(
                text=f"not (exactly one row of: {text.strip()})",
                line=line,
                test=Premise(kind=PremiseKind.UNKNOWN),
                names=(*names, question),
            )
            self.notebook.guards.append(guard)
            self._fails(line, "strict")
            self.notebook.guards.pop()
        self._store(targets, line, text, names)

    def _dynamic(self, node: Node, expression: Node | None, line: int, targets: Sequence[str]) -> None:
        query = self._query(expression, line)
        using: list[str] = []
        terms: list[Term] = []
        names: list[str] = list(query.names) if query else []
        for each in node.get("params", ()):
            parameter = self._query(each, line)
            using.append(_text(each).strip())
            terms.append(parameter.terms.term(parameter.expression) if parameter else unknown())
            names += parameter.names if parameter else ()
        self.notebook.add(
            Dynamic,
            line,
            text=_text(expression).strip(),
            term=query.terms.term(query.expression) if query else unknown(),
            using=tuple(using),
            using_terms=tuple(terms),
            into=(*_variables_of(targets), "found") if targets else (),
        )
        self._store(targets, line, _text(expression), tuple(names))

    def _call(self, node: Node, line: int) -> None:
        query = self._query(node.get("expr"), line)
        self._forget(*(query.names if query else ()))  # an INOUT parameter may set it: the tree does not say which are

    def _open(self, node: Node, line: int) -> None:
        cursor = self._variable(node.get("curvar", -1))
        if "dynquery" in node:
            self._dynamic(node, node["dynquery"], line, (cursor,))
        for key in ("query", "argquery"):
            if key in node:
                self._query(node[key], line, into=(cursor,))

    # Expressions -----------------------------------------------------------------------------------------------------

    def _query(self, expression: Node | None, line: int, *, into: tuple[str, ...] = ()) -> Query | None:
        inner = (expression or {}).get("PLpgSQL_expr")
        if inner is None:
            return None
        prefix = "select " if inner.get("parseMode") == _EXPRESSION_MODE else ""
        return self._read(inner.get("query", ""), line, prefix=prefix, into=into)

    def _read(self, sql: str, line: int, *, prefix: str = "", into: tuple[str, ...] = ()) -> Query | None:
        try:
            return Query(self.notebook, sql, line, prefix=prefix, into=into).read()
        except _ParseError as error:
            self.notebook.add(Unknown, line, rule="unparsable", text=f"{_said(error)}: {sql.strip()[:80]}")
            return None

    def _expressions(self, node: Any, line: int, *, into: tuple[str, ...] = ()) -> None:
        """Every expression below a node."""
        if isinstance(node, dict):
            if "PLpgSQL_expr" in node:
                self._query(cast("Node", node), line, into=into)
                return
            node = list(cast("Node", node).values())
        if isinstance(node, list):
            for each in cast("list[Any]", node):
                self._expressions(each, line, into=into)

    # Variables -------------------------------------------------------------------------------------------------------

    def _variables(self) -> list[Node]:
        return [datum["PLpgSQL_var"] for datum in self.datums if "PLpgSQL_var" in datum]

    def _variable(self, number: int) -> str:
        """A variable's name; ``new.field`` and ``record.field`` for fields, ``new.*`` for the whole row."""
        if not 0 <= number < len(self.datums):
            return "?"
        ((kind, datum),) = self.datums[number].items()
        if number == self.new:
            return "new.*"
        if number == self.old:
            return "old.*"
        if kind == "PLpgSQL_recfield":
            parent = datum.get("recparentno", 0)  # absent when it is 0
            return f"{self._variable(parent).removesuffix('.*')}.{datum.get('fieldname', '?').lower()}"
        return str(datum.get("refname", "?")).lower()

    def _target(self, number: int, written: str) -> str:
        """What an assignment sets; by its number, since the name may be an alias."""
        name = self._variable(number)
        first = unquote(written.strip().split(".")[0].split("[")[0].strip())
        row = self.notebook.rows.get(first)
        if row and not name.startswith(f"{row}."):  # numbers did not help: the words do
            rest = written.strip().partition(".")[2].split("[")[0].split(".")[0].strip()
            return f"{row}.{unquote(rest) if rest else '*'}"
        return name if name != "?" else first

    def _into(self, target: Node | None) -> list[str]:
        found: list[str] = []
        for kind, node in (target or {}).items():
            if kind == "PLpgSQL_row":
                found += [self._variable(field.get("varno", -1)) for field in node.get("fields", ())]
            elif kind == "PLpgSQL_rec":
                found.append(self._variable(node["dno"]) if "dno" in node else str(node.get("refname", "?")).lower())
            else:
                found.append(str(node.get("refname", "?")).lower())
        return found

    def _loop_target(self, node: Node) -> list[str]:
        if "varno" in node:
            return [self._variable(node["varno"])]
        return self._into(node.get("var"))

    def _store(self, targets: Sequence[str], line: int, text: str, names: tuple[str, ...]) -> None:
        """What a query gives goes into variables, or into NEW."""
        for target in targets:
            if target.startswith("new."):
                self.notebook.add(NewAssignment, line, field=target[4:], text=text.strip(), names=names)
            elif not target.startswith("old."):
                self._note(target, line, text, names, selected=True)
                self.notebook.values[target] = unknown()

    def _note(
        self,
        variable: str,
        line: int,
        text: str,
        names: tuple[str, ...],
        *,
        selected: bool = False,
        origins: tuple[str, ...] = (),
    ) -> None:
        fields = {"variable": variable, "text": text.strip(), "names": names, "selected": selected}
        self.notebook.add(Assignment, line, **fields)
        schema, kind = split_type(self.types.get(variable, ""))
        if kind and schema != "pg_catalog":  # the counter of a loop has that, and fits it
            # What is added up is a number already.
            summed = _SUM.search(text) is not None and not selected
            constant = (not names and not selected) or (summed and _is_number_type(kind))
            fields = {"type": kind, "names": names, "origins": origins, "constant": constant}
            self.notebook.add(Cast, line, schema=schema, **fields)
        if variable in self.never_null and any(name.startswith(("new.", "old.")) for name in names):
            guard = Guard(text=f"({text.strip()}) is null", line=line, names=names)
            self.notebook.guards.append(guard)
            self._fails(line, "not null", variable)
            self.notebook.guards.pop()

    def _hold(self, variable: str, term: Term) -> None:
        """What a variable holds from here on, as far as its type lets it through unchanged."""
        declared = self.types.get(variable)
        if variable in self.hidden:
            term = unknown()
        self.notebook.values[variable] = as_type(term, declared) if declared else term

    def _forget(self, *variables: str) -> None:
        self.notebook.values.update({variable: unknown() for variable in variables})

    def _assigned(self, node: Any) -> set[str]:
        """Variables that are set anywhere below a node."""
        found: set[str] = set()
        stack = [node]
        while stack:
            each = stack.pop()
            if isinstance(each, list):
                stack += cast("list[Any]", each)
            elif isinstance(each, dict):
                below = cast("Node", each)
                if "PLpgSQL_stmt_assign" in below:
                    found.add(self._variable(below["PLpgSQL_stmt_assign"].get("varno", -1)))
                for key in ("target", "var"):
                    if isinstance(below.get(key), dict):
                        found.update(self._into(below[key]))
                stack += below.values()
        return found


def _catches(handlers: Iterable[Node], condition_name: str) -> bool:
    """Whether an error of this kind ends with its block: a handler for it, and none that raises another."""
    exceptions = [each["PLpgSQL_exception"] for each in handlers]
    names = {
        condition["PLpgSQL_condition"].get("condname", "")
        for exception in exceptions
        for condition in exception.get("conditions", ())
    }
    return condition_name in {name.lower() for name in names} and not any(
        _raises(exception.get("action", ())) for exception in exceptions
    )


def _is_caught_by_others(node: Node) -> bool:
    """Whether WHEN OTHERS takes what a RAISE throws: it leaves cancelled queries and failed assertions alone."""
    codes = [str(node.get("condname", ""))]
    for option in node.get("options", ()):
        each = option.get("PLpgSQL_raise_option", {})
        if each.get("opt_type") in (0, "PLPGSQL_RAISEOPTION_ERRCODE"):
            literal = re.fullmatch(r"\s*'([\w]+)'\s*", _text(each.get("expr")))
            if literal is None:
                return False
            codes.append(literal[1])
    return not _UNCATCHABLE.intersection(code.lower() for code in codes)


def _leaves(node: Any) -> bool:
    """Whether there is an EXIT anywhere below a node."""
    stack = [node]
    while stack:
        each = stack.pop()
        if isinstance(each, list):
            stack += cast("list[Any]", each)
        elif isinstance(each, dict):
            below = cast("Node", each)
            exits = below.get("PLpgSQL_stmt_exit")
            if exits is not None and exits.get("is_exit"):
                return True
            stack += below.values()
    return False


def _raises(node: Any) -> bool:
    """Whether there is a RAISE EXCEPTION anywhere below a node."""
    stack = [node]
    while stack:
        each = stack.pop()
        if isinstance(each, list):
            stack += cast("list[Any]", each)
        elif isinstance(each, dict):
            below = cast("Node", each)
            if "PLpgSQL_stmt_raise" in below and below["PLpgSQL_stmt_raise"].get("elog_level", 21) == 21:
                return True
            stack += below.values()
    return False


def split_type(name: str) -> tuple[str | None, str]:
    """Schema (where given) and name of a declared type; a column's type stays written as ``table.column%type``."""
    text = " ".join(name.split())
    if text.lower().endswith("%type") or text.lower().endswith("%rowtype"):
        return None, text.lower()
    parts = split_names(text.partition("(")[0].partition("[")[0])
    if not parts:
        return None, ""
    return (parts[-2], parts[-1]) if len(parts) > 1 and "." in text else (None, parts[0] if len(parts) == 1 else text)


def _condition(notebook: Notebook, text: str, line: int) -> Guard:
    """A condition as a guard; what it reads and calls is recorded under a name of its own."""
    question = notebook.question()
    try:
        query = Query(notebook, text, line, prefix="select ", into=(question,)).read()
    except _ParseError as error:
        notebook.add(Unknown, line, rule="unparsable", text=f"{_said(error)}: {text.strip()[:80]}")
        return Guard(text=text.strip(), line=line, test=Premise(kind=PremiseKind.UNKNOWN))
    return Guard(
        text=text.strip(), line=line, test=query.terms.premise(query.expression), names=(*query.names, question)
    )


def _merged(outcomes: Sequence[dict[str, Term]]) -> dict[str, Term]:
    """What variables may hold where several ways meet."""
    names = {name for outcome in outcomes for name in outcome}
    return {name: choice([outcome.get(name, unknown()) for outcome in outcomes]) for name in names}


def _variables_of(targets: Sequence[str]) -> tuple[str, ...]:
    return tuple(targets)


def _top_level(text: str) -> Iterable[Any]:
    depth = 0
    for token in tokens(text):
        if token.kind == "other" and token.text in "([":
            depth += 1
        elif token.kind == "other" and token.text in ")]":
            depth -= 1
        elif depth == 0:
            yield token


def _text(expression: Node | None) -> str:
    return str((expression or {}).get("PLpgSQL_expr", {}).get("query", ""))


def _mode(expression: Node) -> int:
    return int(expression.get("PLpgSQL_expr", {}).get("parseMode", 0))


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w$.]+", text.strip()) is not None


def _said(error: Exception) -> str:
    return str(error).removesuffix(" at position 0") or type(error).__name__
