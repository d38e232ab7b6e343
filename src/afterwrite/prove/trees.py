"""The parser's door: texts in, trees out, and the few steps by which trees are walked.

Trees are libpg_query's: nested dicts with one key, the node's kind. Only texts that scan has already parsed in its
child process come here, so that nothing can take this process down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import pgparse

Node: TypeAlias = dict[str, Any]

_parse_sql = cast("Callable[[str], list[Node]]", pgparse.parse)  # type: ignore[reportUnknownMemberType]
_parse_plpgsql = cast("Callable[[str], list[Node]]", pgparse.parse_pgsql)  # type: ignore[reportUnknownMemberType]
_ParseError = cast("type[Exception]", pgparse.PGQueryError)  # type: ignore[reportUnknownMemberType]


class NotUnderstood(Exception):  # noqa: N818 - an answer of this room: the place stays opaque
    """A text or a statement that cannot be followed; ``str()`` says what it is."""


def parse_sql(text: str) -> list[Node]:
    """The statements of a text; raises NotUnderstood where it is no SQL."""
    try:
        return [each["stmt"] for each in _parse_sql(text) if "stmt" in each]
    except _ParseError as error:
        raise NotUnderstood(str(error)) from error


def is_one_expression(text: str) -> bool:
    """Whether a text is one SQL expression, and nothing besides."""
    try:
        statements = parse_sql(f"select {text}")
    except NotUnderstood:
        return False
    if len(statements) != 1 or "SelectStmt" not in statements[0]:
        return False
    select = statements[0]["SelectStmt"]
    return not set(select) - {"targetList", "limitOption", "op"} and len(select["targetList"]) == 1


_UNKNOWN_FIELD = re.compile(r'"(?P<variable>[^".]+)\.[^"]*" is not a known variable')


def parse_body(source: str, header: str = "function f() returns trigger") -> Node:
    """The tree of a PL/pgSQL body; raises NotUnderstood where it cannot be parsed.

    The parser knows no catalog: a variable of a row type counts as a scalar, and assigning to its field as an error.
    Such a variable is then read as a record, which is what it is.
    """
    for _ in range(20):
        try:
            return _parse_plpgsql(f"create {header} language plpgsql as $afterwrite${source}$afterwrite$")[0][
                "PLpgSQL_function"
            ]
        except _ParseError as error:
            denied = _UNKNOWN_FIELD.search(str(error))
            better = _as_record(source, denied["variable"]) if denied else source
            if better == source:
                raise NotUnderstood(str(error)) from error
            source = better
    raise NotUnderstood("too many variables of row types")


def _as_record(source: str, variable: str) -> str:
    declared = rf'(?<![\w$.])("?{re.escape(variable)}"?\s+)(?!record\b)[\w$."]+(?:\s*%\s*rowtype)?'
    return re.sub(declared, r"\1record", source, count=1, flags=re.IGNORECASE)


def nodes_below(tree: Any) -> Iterator[Node]:
    """Every dict of a tree, itself included, outer ones first."""
    if isinstance(tree, list):
        for each in cast("list[Any]", tree):
            yield from nodes_below(each)
    elif isinstance(tree, dict):
        node = cast("Node", tree)
        yield node
        for each in node.values():
            yield from nodes_below(each)


def name_of(words: list[Node]) -> list[str]:
    """A qualified name's parts."""
    return [word["String"]["sval"] for word in words if "String" in word]
