"""What a legacy column must hold, said as a small value: the vocabulary between inference, evaluation and display.

A trigger's INSERT is turned into these by ``legacy``; ``evaluate`` says what they are for one change; ``show`` writes
them as SQL, for the plan and for people.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeAlias, assert_never, cast

import msgspec


class Side(StrEnum):
    """Which row of a change: as it became, or as it was."""

    NEW = "new"
    OLD = "old"


class Why(StrEnum):
    """Why a column (or a part of one) is not compared; reports say which and how many."""

    TIME = "time"  # the clock at the writer: the store keeps the commit time instead
    GENERATED = "generated"  # a sequence, a random id, a column default
    LOOKUP = "lookup"  # read from other tables, as they were at that moment
    SESSION = "session"  # the writer's session, where no context tells it
    STATEMENT = "statement"  # what one statement did as a whole: the WAL does not show where it ended
    NOT_IN_WAL = "not-in-wal"  # old values without REPLICA IDENTITY FULL, unchanged TOAST
    GENERATED_COLUMN = "generated-column"  # STORED generated columns of the table itself
    OPAQUE = "opaque"  # an expression that is not understood exactly
    IGNORED = "ignored"  # the plan says that it is not compared, and why
    DEFAULT = "default"  # the INSERT leaves it out: what the table puts there


class Ambient(StrEnum):
    """What a body reads from its surroundings and the stream can tell."""

    TRANSACTION_ID = "txid_current()"
    CURRENT_USER = "current_user"
    SESSION_USER = "session_user"
    CLIENT_ADDRESS = "inet_client_addr()"
    APPLICATION_NAME = "application_name"
    ACTOR = "auth.uid()"
    ACTOR_ROLE = "auth.role()"
    CLAIMS = "auth.jwt()"


class Const(msgspec.Struct, frozen=True, tag="const"):
    """A literal: text, number, truth or NULL."""

    value: str | int | bool | Decimal | None


class Field(msgspec.Struct, frozen=True, tag="field"):
    """One column of the change's row."""

    side: Side
    column: str


class Whole(msgspec.Struct, frozen=True, tag="row"):
    """The change's row as one value."""

    side: Side


class Relname(msgspec.Struct, frozen=True, tag="relname"):
    """The table a row trigger on a partitioned table was fired for: the leaf, which the stream shows as its root."""

    root: str
    leaves: tuple[str, ...]


class Around(msgspec.Struct, frozen=True, tag="ambient"):
    what: Ambient


class Opaque(msgspec.Struct, frozen=True, tag="opaque"):
    """Not comparable, and why; ``text`` is what the body says."""

    why: Why
    text: str


class Cast(msgspec.Struct, frozen=True, tag="cast"):
    """``modifiers`` are those of the type: precision and scale, or a length."""

    value: Expression
    kind: str
    modifiers: tuple[int, ...] = ()


class Call(msgspec.Struct, frozen=True, tag="call"):
    """A function or an operator (its symbol, ``and``, ``or``, ``not``, ``is null``, ``is distinct from``…)."""

    name: str
    arguments: tuple[Expression, ...]


class Case(msgspec.Struct, frozen=True, tag="case"):
    """The first branch whose condition is true; NULL and false alike pass on."""

    branches: tuple[tuple[Expression, Expression], ...]
    otherwise: Expression


class Part(msgspec.Struct, frozen=True, tag="part"):
    """A field of a value that is a row only at run time (a record that is ``new`` here and ``old`` there)."""

    value: Expression
    name: str


class Current(msgspec.Struct, frozen=True, tag="current"):
    """A column of the row that a loop or a query stands on; ``source`` numbers the FROM item."""

    source: int
    column: str


class Carried(msgspec.Struct, frozen=True, tag="carried"):
    """A variable as the loop found it: what earlier rounds made of it."""

    loop: int
    name: str


class From(msgspec.Struct, frozen=True):
    """A set-returning function in FROM, and what joins it to those before it."""

    source: int
    function: str
    arguments: tuple[Expression, ...]
    columns: tuple[str, ...]
    join: str = "inner"
    on: Expression | None = None


class Rows(msgspec.Struct, frozen=True):
    """The rows of a query over values alone, no tables."""

    items: tuple[From, ...]
    where: Expression | None = None
    ordered: bool = False


class Aggregate(msgspec.Struct, frozen=True, tag="aggregate"):
    """``jsonb_object_agg`` and its kind over such rows; ``exists`` and ``first`` (a scalar subquery) too."""

    function: str
    arguments: tuple[Expression, ...]
    rows: Rows


class Fold(msgspec.Struct, frozen=True, tag="fold"):
    """What a variable is after a loop over such rows: ``start`` before, ``steps`` what a round makes of each."""

    loop: int
    name: str
    rows: Rows
    start: tuple[tuple[str, Expression], ...]
    steps: tuple[tuple[str, Expression], ...]


Expression: TypeAlias = (
    Const | Field | Whole | Relname | Around | Opaque | Cast | Call | Case | Part | Current | Carried | Aggregate | Fold
)

TRUE = Const(True)
FALSE = Const(False)
NULL = Const(None)

_SYMBOLS = "|| + - * / % = <> < > <= >= -> ->> #> #>> @> <@ ? like ilike and or"
_INFIX = frozenset((*_SYMBOLS.split(), "is distinct from", "is not distinct from"))
_POSTFIX = frozenset(("is null", "is not null", "is true", "is not true", "is false", "is not false"))


def parts_of(value: Any) -> tuple[Any, ...]:
    """What an expression (or a tuple of them) is made of, one level down."""
    if isinstance(value, msgspec.Struct):
        return tuple(getattr(value, name) for name in value.__struct_fields__)
    return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else ()


def both(left: Expression, right: Expression) -> Expression:
    """``left and right``, folded where one is a constant."""
    if left in (TRUE, right) or right == FALSE:
        return right
    if right == TRUE or left == FALSE:
        return left
    return Call("and", (left, right))


def either(left: Expression, right: Expression) -> Expression:
    """``left or right``, folded where one is a constant."""
    if left in (FALSE, right) or right == TRUE:
        return right
    if right == FALSE or left == TRUE:
        return left
    return Call("or", (left, right))


def holds(condition: Expression) -> Expression:
    """The condition as IF and WHEN take it: NULL counts as false."""
    if condition == NULL:
        return FALSE
    return condition


def fails(condition: Expression) -> Expression:
    """``condition is not true``: what sends IF to its ELSE."""
    match condition:
        case Const(value=True):
            return FALSE
        case Const():
            return TRUE
        case Call(name="is not true", arguments=(inner,)):
            return Call("is true", (inner,))
        case Call(name="is true", arguments=(inner,)):
            return Call("is not true", (inner,))
        case _:
            return Call("is not true", (condition,))


def show(expression: Expression) -> str:
    """The expression as SQL, with what cannot be compared in angle brackets."""
    match expression:
        case Const(value):
            return _show_literal(value)
        case Field(side, column):
            return f"{side}.{column}"
        case Whole(side):
            return f"{side}"
        case Relname(root):
            return f"<partition of {root}>"
        case Around(what):
            return what.value
        case Opaque(why, text):
            return f"<{why}: {text}>" if text else f"<{why}>"
        case Cast(value, kind, modifiers):
            return f"{_show_inner(value)}::{kind}" + (f"({','.join(map(str, modifiers))})" if modifiers else "")
        case Call(name, arguments):
            return _show_call(name, arguments)
        case Case(branches, otherwise):
            whens = " ".join(f"when {show(condition)} then {show(value)}" for condition, value in branches)
            return f"case {whens} else {show(otherwise)} end"
        case Part(value, name):
            return f"({show(value)}).{name}"
        case Current(_, column):
            return column
        case Carried(_, name):
            return name
        case Aggregate(function, arguments, rows):
            called = "" if function in ("first", "exists") else function
            wanted = f"{called}({_show_list(arguments)})" if called else _show_list(arguments)
            opened = "exists (select" if function == "exists" else "(select"
            return f"{opened} {wanted} from {_show_rows(rows)})"
        case Fold(_, name, rows, start, steps):
            begin, step = dict(start)[name], dict(steps)[name]
            return f"<fold {show(begin)} over {_show_rows(rows)} by {name} := {show(step)}>"
        case _ as never:
            assert_never(never)


def _show_literal(value: str | int | bool | Decimal | None) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case _:
            return str(value)


def _show_inner(expression: Expression) -> str:
    text = show(expression)
    compound = isinstance(expression, Case) or (isinstance(expression, Call) and expression.name in _INFIX | _POSTFIX)
    return f"({text})" if compound else text


def _show_call(name: str, arguments: tuple[Expression, ...]) -> str:
    if name in _INFIX and len(arguments) == 2:
        return f"{_show_inner(arguments[0])} {name} {_show_inner(arguments[1])}"
    if name in _POSTFIX:
        return f"{_show_inner(arguments[0])} {name}"
    if name == "not":
        return f"not {_show_inner(arguments[0])}"
    if name in ("array", "tg_argv"):
        return f"array[{_show_list(arguments)}]"
    if name == "[]":
        return f"{_show_inner(arguments[0])}[{show(arguments[1])}]"
    return f"{name}({_show_list(arguments)})"


def _show_list(expressions: tuple[Expression, ...]) -> str:
    return ", ".join(map(show, expressions))


def _show_rows(rows: Rows) -> str:
    parts: list[str] = []
    for item in rows.items:
        text = f"{item.function}({_show_list(item.arguments)})"
        if parts:
            text = f"{item.join} join {text}" + (f" on {show(item.on)}" if item.on else "")
        parts.append(text)
    return " ".join(parts) + (f" where {show(rows.where)}" if rows.where else "")
