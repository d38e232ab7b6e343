"""Expressions whose value may be known before they run: from the parser's nodes to Term and Premise.

Trees are those of libpg_query: nested dicts with one key, the node's kind.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from afterwrite.scan.facts import Premise, PremiseKind, Term, TermKind
from afterwrite.scan.notebook import Notebook
from afterwrite.scan.tokens import character_offset, items

Node: TypeAlias = dict[str, Any]

_CHOICES = 8
# Types by the names under which people declare variables, as far as they hold every text as it is (or a number).
_SPELLINGS = {
    **dict.fromkeys(("text", "varchar", "character varying", "name"), "text"),
    **{name: name for name in ("regclass", "oid")},
    **dict.fromkeys(("int", "integer", "int4", "bigint", "int8"), "int8"),
    **dict.fromkeys(("bool", "boolean"), "bool"),
}
NULL = Term(kind=TermKind.NULL)


class Terms:
    """Reads the nodes of one piece of SQL, with what is known of the variables at this place."""

    def __init__(self, notebook: Notebook, sql: str) -> None:
        self.notebook = notebook
        self.sql = sql

    def term(self, node: Node | None) -> Term:
        """What is known of an expression's value."""
        for kind, below in (node or {}).items():
            match kind:
                case "A_Const":
                    return constant(below)
                case "ColumnRef":
                    return self._name([field_name(each) for each in below.get("fields", ())])
                case "ParamRef":
                    return Term(kind=TermKind.NAME, text=f"${below.get('number', 0)}")
                case "A_Indirection":
                    return self._indirection(below)
                case "A_Expr" if operator_name(below) == "||" and "lexpr" in below:
                    return _call("||", self.term(below["lexpr"]), self.term(below.get("rexpr")))
                case "TypeCast":
                    return _call(f"cast:{cast_name(below.get('typeName', {}))}", self.term(below.get("arg")))
                case "CoalesceExpr":
                    return _call("coalesce", *(self.term(each) for each in below.get("args", ())))
                case "CaseExpr":
                    results = [self.term(each["CaseWhen"].get("result")) for each in below.get("args", ())]
                    return choice([*results, self.term(below["defresult"]) if "defresult" in below else NULL])
                case "FuncCall":
                    return self._function(below)
                case _:
                    break
        return unknown()

    def _function(self, node: Node) -> Term:
        schema, name = function_name(node)
        start = character_offset(self.sql, max(0, node.get("location", 0)))
        bracket = self.sql.find("(", start)
        text = self.sql[start : items(self.sql, bracket + 1)[1] + 1] if bracket > 0 else ""
        given = node.get("args", ())
        if schema not in (None, "pg_catalog") or not given or "func_variadic" in node:
            return unknown(text)
        return Term(kind=TermKind.CALL, text=name, parts=tuple(self.term(each) for each in given), sql=text)

    def _name(self, fields: list[str]) -> Term:
        rows = self.notebook.rows
        if len(fields) == 1:
            known = self.notebook.values.get(fields[0])
            if known is not None:
                return known
            if fields[0].startswith("tg_"):
                return Term(kind=TermKind.NAME, text=fields[0])
        if len(fields) == 2 and fields[0] in rows:
            return Term(kind=TermKind.NAME, text=f"{rows[fields[0]]}.{fields[1]}")
        return unknown(".".join(fields))

    def _indirection(self, node: Node) -> Term:
        fields = [field_name(each) for each in node.get("arg", {}).get("ColumnRef", {}).get("fields", ())]
        steps = node.get("indirection", ())
        if len(steps) != 1:
            return unknown()
        if fields == ["tg_argv"]:
            index = constant(steps[0].get("A_Indices", {}).get("uidx", {}).get("A_Const"))
            if index.kind is TermKind.LITERAL:
                return Term(kind=TermKind.NAME, text=f"tg_argv[{index.text}]")
        if "String" in steps[0]:
            return self._name([*fields, field_name(steps[0])])
        return unknown()

    def premise(self, node: Node | None) -> Premise:
        """A condition in the form that can be decided for a trigger."""
        for kind, below in (node or {}).items():
            match kind:
                case "BoolExpr":
                    forms = {"AND_EXPR": PremiseKind.ALL, "OR_EXPR": PremiseKind.ANY, "NOT_EXPR": PremiseKind.NOT}
                    tests = tuple(self.premise(each) for each in below.get("args", ()))
                    return Premise(kind=forms[below["boolop"]], tests=tests)
                case "NullTest":
                    test = Premise(kind=PremiseKind.IS_NULL, left=self._whole(below.get("arg")))
                    if below.get("nulltesttype") == "IS_NULL":
                        return test
                    there = Premise(kind=PremiseKind.NOT, tests=(test,))
                    if not self._is_row(below.get("arg")):
                        return there
                    # A row is NOT NULL when all of its columns are: that it is there is not enough.
                    return Premise(kind=PremiseKind.ALL, tests=(there, Premise(kind=PremiseKind.UNKNOWN)))
                case "A_Expr":
                    return self._comparison(below)
                case "A_Const" | "ColumnRef":
                    return Premise(kind=PremiseKind.TRUTH, left=self.term(node))
                case _:
                    break
        return Premise(kind=PremiseKind.UNKNOWN)

    def _is_row(self, node: Node | None) -> bool:
        fields = [field_name(each) for each in (node or {}).get("ColumnRef", {}).get("fields", ())]
        return len(fields) == 1 and fields[0] in self.notebook.rows

    def _whole(self, node: Node | None) -> Term:
        if node is not None and self._is_row(node):
            return Term(kind=TermKind.NAME, text=self.notebook.rows[field_name(node["ColumnRef"]["fields"][0])])
        return self.term(node)

    def _comparison(self, node: Node) -> Premise:
        right: Node = node.get("rexpr", {})
        rights: list[Node] = [right]
        different = operator_name(node) in ("<>", "!=")
        match node.get("kind"):
            case "AEXPR_OP" if operator_name(node) in ("=", "<>", "!="):
                pass
            case "AEXPR_IN":
                rights = right.get("List", {}).get("items", [])
            case "AEXPR_DISTINCT":
                different = True
            case "AEXPR_NOT_DISTINCT":
                different = False
            case "AEXPR_OP_ANY" if operator_name(node) == "=" and "A_ArrayExpr" in right:
                rights = right["A_ArrayExpr"].get("elements", [])
            case _:
                return Premise(kind=PremiseKind.UNKNOWN)
        equal = Premise(
            kind=PremiseKind.EQUAL,
            left=self.term(node.get("lexpr")),
            right=tuple(self.term(each) for each in rights),
        )
        return Premise(kind=PremiseKind.NOT, tests=(equal,)) if different else equal


def cast_name(type_name: Node) -> str:
    """The type that something is cast to; ``?`` for arrays and for types that cut (``varchar(3)``)."""
    names = type_name.get("names", ())
    plain = names and "arrayBounds" not in type_name and "typmods" not in type_name
    return field_name(names[-1]) if plain else "?"


def as_type(term: Term, declared: str) -> Term:
    """A term as a variable of this declared type holds it."""
    name = " ".join(declared.lower().replace('"', "").split()).removeprefix("pg_catalog.")
    kind = _SPELLINGS.get(name, "?")
    return term if kind == "text" else _call(f"cast:{kind}", term)


def choice(terms: list[Term]) -> Term:
    """One of several terms; unknown when there are too many to try."""
    flat = [part for term in terms for part in (term.parts if term.kind is TermKind.CHOICE else (term,))]
    distinct = list(dict.fromkeys(flat))
    if len(distinct) == 1:
        return distinct[0]
    if not distinct or len(distinct) > _CHOICES:
        return unknown()
    return Term(kind=TermKind.CHOICE, parts=tuple(distinct))


def unknown(text: str = "") -> Term:
    """A term of which nothing is known but its SQL."""
    return Term(kind=TermKind.UNKNOWN, text=text)


def _call(name: str, *parts: Term) -> Term:
    if name == "||":  # a chain of concatenations is one list, so that long ones do not nest
        parts = tuple(
            each
            for part in parts
            for each in (part.parts if (part.kind, part.text) == (TermKind.CALL, "||") else (part,))
        )
    return Term(kind=TermKind.CALL, text=name, parts=parts)


def constant(node: Node | None) -> Term:
    """A literal node's value, as text."""
    if node is None:
        return unknown()
    if node.get("isnull"):
        return NULL
    if "boolval" in node:
        return Term(kind=TermKind.LITERAL, text="true" if node["boolval"].get("boolval") else "false")
    for kind, default in (("sval", ""), ("ival", 0), ("fval", "0")):
        if kind in node:
            return Term(kind=TermKind.LITERAL, text=str(node[kind].get(kind, default)))
    return unknown()


def field_name(node: Node) -> str:
    """A String node's text; ``*`` for a star."""
    return "*" if "A_Star" in node else str(node.get("String", {}).get("sval", ""))


def operator_name(node: Node) -> str:
    """The operator of an A_Expr, without its schema."""
    return "".join(field_name(each) for each in node.get("name", ())[-1:])


def function_name(node: Node) -> tuple[str | None, str]:
    """Schema (where given) and name of a FuncCall."""
    parts = [field_name(each) for each in node.get("funcname", ())]
    return (parts[-2] if len(parts) > 1 else None), (parts[-1] if parts else "")
