"""Expressions become closures, compiled once for a table's shape and called once a change.

``Moment`` is what a body could see when it ran: the rows, and who was writing. Unknown parts stay unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, TypeAlias, assert_never

import msgspec

from afterwrite.context import Context
from afterwrite.prove.compare import freeze
from afterwrite.prove.document import json_text
from afterwrite.prove.expression import (
    Aggregate,
    Ambient,
    Around,
    Call,
    Carried,
    Case,
    Cast,
    Const,
    Current,
    Expression,
    Field,
    Fold,
    From,
    Opaque,
    Part,
    Relname,
    Rows,
    Side,
    Whole,
    Why,
    parts_of,
)
from afterwrite.prove.functions import FUNCTIONS
from afterwrite.prove.text import join_text
from afterwrite.prove.value import (
    OPAQUE,
    Bag,
    Holes,
    Json,
    OneOf,
    Options,
    RowValue,
    Unknown,
    Value,
    Xid,
    cast_to,
    decode_json,
    is_list,
    is_object,
    jsonb_order,
    read_column,
    to_json,
    unknown,
)


class Writer:
    """Who wrote a transaction, as far as its stamp tells; what bodies ask of it is worked out once."""

    __slots__ = ("context", "memo", "xid")

    def __init__(self, context: Context | None = None, xid: int = 0) -> None:
        self.context, self.xid = context, xid
        self.memo: dict[int, Value] = {}


class Moment:
    """What a body could see when it ran: the rows (decoded JSON, unknown columns marked), and the writer."""

    __slots__ = ("carried", "current", "memo", "new", "old", "writer")

    def __init__(self, new: dict[str, Any] | None, old: dict[str, Any] | None, writer: Writer | None = None) -> None:
        self.new, self.old = new, old
        self.writer = writer or Writer()
        self.memo: dict[int, Value] = {}
        self.current: dict[int, dict[str, Value]] = {}
        self.carried: dict[int, dict[str, Value]] = {}


Compiled: TypeAlias = Callable[[Moment], Value]


class Slots:
    """Numbers for parts that several expressions share, so that each is worked out once a row or once a writer.

    No two Slots ever give the same number.
    """

    _next = count()

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str | None, Expression], int] = {}

    def number(self, shape: int, owner: str | None, part: Expression) -> int:
        """The number of a part; ``shape`` tells apart tables whose columns have the same names."""
        key = shape, owner, part
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = next(self._next)
        return number

    def forget(self, shape: int) -> None:
        """Nothing of this shape is asked for any more."""
        self._numbers = {key: number for key, number in self._numbers.items() if key[0] != shape}


class Compiler:
    """Compiles expressions over rows whose columns have these type OIDs.

    ``owner`` is whom a SECURITY DEFINER body runs as. Compilers that share ``slots`` share what they work out, as long
    as those of one ``shape`` see the same types.
    """

    def __init__(
        self, types: Mapping[str, int], *, owner: str | None = None, slots: Slots | None = None, shape: int = 0
    ) -> None:
        self._types = types
        self._owner = owner
        self._slots = slots or Slots()
        self._shape = shape

    def build(self, part: Expression) -> Compiled:
        """The closure that gives the expression's value at a moment."""
        compiled = self._build(part)
        needs = _needs(part)
        if not needs:
            value = compiled(Moment(None, None))
            return lambda moment: value
        if needs == _WRITER:
            return _once_a_writer(compiled, self._slots.number(-1, self._owner, part))
        if "loop" not in needs and isinstance(part, Call | Aggregate | Fold):
            return _once_a_row(compiled, self._slots.number(self._shape, self._owner, part))
        return compiled

    def _build(self, part: Expression) -> Compiled:
        build = self.build
        match part:
            case Const(value):
                return lambda moment: value
            case Opaque(why):
                found = unknown(why)
                return lambda moment: found
            case Field(side, column):
                return _field(side, column, self._types.get(column, 0))
            case Whole(side):
                return _whole(side, self._types)
            case Relname(root, leaves):
                names = OneOf((root, *leaves))
                return lambda moment: names
            case Around(what):
                return _around(what, self._owner)
            case Cast(value, kind, modifiers):
                inner = build(value)
                return lambda moment: cast_to(inner(moment), kind, modifiers)
            case Case(branches, otherwise):
                return _case([(build(when), build(then)) for when, then in branches], build(otherwise))
            case Call("current_setting", arguments):
                return _setting([build(argument) for argument in arguments])
            case Call(name, arguments):
                return _call(name, [build(argument) for argument in arguments])
            case Part(value, name):
                inner = build(value)
                return lambda moment: _part(inner(moment), name)
            case Current(source, column):
                return lambda moment: moment.current[source].get(column, OPAQUE)
            case Carried(loop, name):
                return lambda moment: moment.carried[loop][name]
            case Aggregate(function, arguments, rows):
                return _aggregate(function, [build(argument) for argument in arguments], compile_rows(rows, build))
            case Fold(loop, name, rows, start, steps):
                starts = {key: build(value) for key, value in start}
                return _fold(loop, name, compile_rows(rows, build), starts, {key: build(value) for key, value in steps})
            case _ as never:
                assert_never(never)


def _needs(part: Any) -> frozenset[str]:
    """What an expression looks at: ``row``, ``writer``, and ``loop`` for the rounds of a loop around it."""
    match part:
        case Field() | Whole():
            return _ROW
        case Around() | Call("current_setting", _):
            return _WRITER
        case Current() | Carried():
            return _LOOP
        case Aggregate() | Fold():
            # Its own loop is inside it; a loop in a loop is never followed.
            return _needs_below(part) - _LOOP
        case _:
            return _needs_below(part)


_ROW, _WRITER, _LOOP = frozenset(("row",)), frozenset(("writer",)), frozenset(("loop",))


def _needs_below(part: Any) -> frozenset[str]:
    return frozenset(need for below in parts_of(part) for need in _needs(below))


_ABSENT = object()


def _once_a_writer(compiled: Compiled, number: int) -> Compiled:
    def read(moment: Moment) -> Value:
        memo = moment.writer.memo
        value = memo.get(number, _ABSENT)
        if value is _ABSENT:
            value = memo[number] = compiled(moment)
        return value

    return read


def _once_a_row(compiled: Compiled, number: int) -> Compiled:
    def read(moment: Moment) -> Value:
        memo = moment.memo
        value = memo.get(number, _ABSENT)
        if value is _ABSENT:
            value = memo[number] = compiled(moment)
        return value

    return read


def compile_expression(expression: Expression, types: Mapping[str, int]) -> Compiled:
    """One expression by itself."""
    return Compiler(types).build(expression)


def _field(side: Side, column: str, oid: int) -> Compiled:
    absent = unknown(Why.NOT_IN_WAL)
    if side is Side.NEW:

        def read_new(moment: Moment) -> Value:
            return None if moment.new is None else read_column(moment.new.get(column, absent), oid)

        return read_new

    def read_old(moment: Moment) -> Value:
        return None if moment.old is None else read_column(moment.old.get(column, absent), oid)

    return read_old


def _whole(side: Side, types: Mapping[str, int]) -> Compiled:
    if side is Side.NEW:
        return lambda moment: None if moment.new is None else RowValue(moment.new, types)
    return lambda moment: None if moment.old is None else RowValue(moment.old, types)


def _part(value: Value, name: str) -> Value:
    if isinstance(value, RowValue):
        return read_column(value.columns.get(name, OPAQUE), value.types.get(name, 0))
    return value if value is None or isinstance(value, Unknown) else OPAQUE


# --- who was writing --------------------------------------------------------------------------------------------------

_CLAIMS = "request.jwt.claims"
_SESSION = unknown(Why.SESSION)


def _around(what: Ambient, owner: str | None) -> Compiled:
    match what:
        case Ambient.TRANSACTION_ID:
            return lambda moment: Xid(moment.writer.xid)
        case Ambient.CURRENT_USER if owner is not None:
            return lambda moment: owner
        case Ambient.ACTOR:
            return lambda moment: _claim(moment, "sub", lambda context: context.actor_id)
        case Ambient.ACTOR_ROLE:
            return lambda moment: _claim(moment, "role", lambda context: context.actor_type)
        case Ambient.CLAIMS:
            return _claims
        case Ambient.CURRENT_USER | Ambient.SESSION_USER | Ambient.CLIENT_ADDRESS | Ambient.APPLICATION_NAME:
            return lambda moment: _SESSION
        case _:
            assert_never(what)


def _claim(moment: Moment, name: str, otherwise: Callable[[Context], str | None]) -> Value:
    """A claim of the writer's token; where the stamp brings no token, what the context says itself."""
    context = moment.writer.context
    if context is None:
        return _SESSION
    claims = _claims(moment)
    if isinstance(claims, Json) and is_object(claims.value):
        found = claims.value.get(name)
        return found if found is None or isinstance(found, str) else OPAQUE
    direct = context.settings.get(f"request.jwt.claim.{name}")
    return direct or otherwise(context) or _SESSION


def _claims(moment: Moment) -> Value:
    context = moment.writer.context
    if context is None or _CLAIMS not in context.settings:
        return _SESSION
    text = context.settings[_CLAIMS]
    try:
        return Json(decode_json(text.encode())) if text else None
    except msgspec.DecodeError:
        return OPAQUE


def _setting(arguments: list[Compiled]) -> Compiled:
    def read(moment: Moment) -> Value:
        name = arguments[0](moment)
        if not isinstance(name, str) or moment.writer.context is None:
            return _SESSION
        return moment.writer.context.settings.get(name, _SESSION)

    return read


# --- branches and calls -----------------------------------------------------------------------------------------------


def _case(branches: list[tuple[Compiled, Compiled]], otherwise: Compiled) -> Compiled:
    def choose(moment: Moment) -> Value:
        for position, (when, then) in enumerate(branches):
            met = when(moment)
            if met is True:
                return then(moment)
            if isinstance(met, Unknown):
                rest = _case(branches[position + 1 :], otherwise)(moment)
                return blend(then(moment), rest, met.why)
        return otherwise(moment)

    return choose


def blend(one: Value, other: Value, why: Why) -> Value:
    """What is known of a value that is one of two: their common part, or that it is either."""
    if isinstance(one, Json) and isinstance(other, Json):
        left, right = one.value, other.value
        if is_object(left) and is_object(right):
            common = {key for key in left if key in right and _same(left[key], right[key])}
            return Json({key: left[key] if key in common else unknown(why) for key in {**left, **right}}, one.binary)
    if _same(one, other):
        return one
    options = [*_options(one), *_options(other)]
    if any(isinstance(option, Unknown | Holes) for option in options):
        return unknown(why)
    return Options(tuple(options), why)


def _options(value: Value) -> tuple[Value, ...]:
    return value.options if isinstance(value, Options) else (value,)


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, Json) and isinstance(other, Json):
        one, other = one.value, other.value
    try:
        return freeze(one) == freeze(other)
    except LookupError:
        return one is other


def _call(name: str, arguments: list[Compiled]) -> Compiled:
    match name:
        case "and":
            left, right = arguments
            return lambda moment: _and(left(moment), right, moment)
        case "or":
            left, right = arguments
            return lambda moment: _or(left(moment), right, moment)
        case "coalesce":
            return lambda moment: _coalesce(arguments, moment)
        case _:
            function = FUNCTIONS[name]
    if len(arguments) == 1:
        only = arguments[0]
        return lambda moment: function(only(moment))
    if len(arguments) == 2:
        first, second = arguments
        return lambda moment: function(first(moment), second(moment))
    return lambda moment: function(*[argument(moment) for argument in arguments])


def _and(left: Value, right: Compiled, moment: Moment) -> Value:
    if left is False:
        return False
    other = right(moment)
    if other is False:
        return False
    if isinstance(left, Unknown) or isinstance(other, Unknown):
        return left if isinstance(left, Unknown) else other
    return None if left is None or other is None else True


def _or(left: Value, right: Compiled, moment: Moment) -> Value:
    if left is True:
        return True
    other = right(moment)
    if other is True:
        return True
    if isinstance(left, Unknown) or isinstance(other, Unknown):
        return left if isinstance(left, Unknown) else other
    return None if left is None or other is None else False


def _coalesce(arguments: list[Compiled], moment: Moment) -> Value:
    for argument in arguments:
        value = argument(moment)
        if isinstance(value, Holes) and value.nullable:
            return unknown(value.why)
        if value is not None:
            return value
    return None


# --- queries over values ----------------------------------------------------------------------------------------------

RowSource: TypeAlias = Callable[[Moment], Iterator["bool | Unknown"]]


def compile_rows(rows: Rows, build: Callable[[Expression], Compiled]) -> RowSource:
    """Steps through the rows by setting ``moment.current``; yields True for a row, Unknown for one that may be."""
    sources = [_source(item, build) for item in rows.items]
    joins = [(item.join, build(item.on) if item.on else None, item) for item in rows.items]
    where = build(rows.where) if rows.where else None

    def step(moment: Moment) -> Iterator[bool | Unknown]:
        found: list[tuple[dict[int, dict[str, Value]], bool | Unknown]] = [({}, True)]
        for source, (join, on, item) in zip(sources, joins, strict=True):
            found = list(_joined(moment, found, source, join, on, item))
        for current, certain in found:
            moment.current.update(current)
            kept = where(moment) if where else True
            if kept is True:
                yield certain
            elif isinstance(kept, Unknown):
                yield kept

    return step


def _joined(
    moment: Moment,
    found: list[tuple[dict[int, dict[str, Value]], bool | Unknown]],
    source: Callable[[Moment], list[dict[str, Value]]],
    join: str,
    on: Compiled | None,
    item: From,
) -> Iterator[tuple[dict[int, dict[str, Value]], bool | Unknown]]:
    taken: set[int] = set()
    rights: list[dict[str, Value]] = []
    for current, certain in found:
        moment.current.update(current)
        rights = source(moment)
        alone = True
        for position, right in enumerate(rights):
            moment.current[item.source] = right
            met = on(moment) if on else True
            if met is True or isinstance(met, Unknown):
                alone = False
                taken.add(position)
                yield {**current, item.source: right}, met if isinstance(met, Unknown) else certain
        if alone and join in ("left", "full"):
            yield {**current, item.source: dict.fromkeys(item.columns)}, certain
    if join == "full":
        empty: dict[int, dict[str, Value]] = {
            source_id: dict.fromkeys(columns) for current, _ in found[:1] for source_id, columns in current.items()
        }
        for position, right in enumerate(rights):
            if position not in taken:
                yield {**empty, item.source: right}, True


def _source(item: From, build: Callable[[Expression], Compiled]) -> Callable[[Moment], list[dict[str, Value]]]:
    arguments = [build(argument) for argument in item.arguments]
    function = SOURCES[item.function]

    def read(moment: Moment) -> list[dict[str, Value]]:
        values = [argument(moment) for argument in arguments]
        if any(value is None for value in values):
            return []
        if doubt := next((value for value in values if isinstance(value, Unknown | Holes)), None):
            raise NotKnown(doubt.why)
        return [dict(zip(item.columns, row, strict=False)) for row in function(*values)]

    return read


class NotKnown(Exception):  # noqa: N818 - carries an answer, not an error
    def __init__(self, why: Why) -> None:
        self.why = why


def _each(value: Value) -> list[tuple[Value, ...]]:
    inside = value.value if isinstance(value, Json) else value
    if not is_object(inside):
        raise NotKnown(Why.OPAQUE)
    return [(key, inside[key]) for key in sorted(inside, key=jsonb_order)]


def _each_json(value: Value) -> list[tuple[Value, ...]]:
    return [(key, item if isinstance(item, Unknown) else Json(item)) for key, item in _each(value)]


def _each_text(value: Value) -> list[tuple[Value, ...]]:
    return [(key, item if isinstance(item, Unknown) else json_text(Json(item))) for key, item in _each(value)]


def _keys(value: Value) -> list[tuple[Value, ...]]:
    return [(key,) for key, _ in _each(value)]


def _elements(value: Value) -> list[tuple[Value, ...]]:
    items = value.value if isinstance(value, Json) else None
    if not is_list(items):
        raise NotKnown(Why.OPAQUE)
    return [(item if isinstance(item, Unknown) else Json(item),) for item in items]


def _elements_text(value: Value) -> list[tuple[Value, ...]]:
    return [(item if isinstance(item, Unknown) else json_text(item),) for (item,) in _elements(value)]


def _unnest(value: Value) -> list[tuple[Value, ...]]:
    if not is_list(value):
        raise NotKnown(Why.OPAQUE)
    return [(item,) for item in value]


def _series(start: Value, stop: Value, step: Value = 1) -> list[tuple[Value, ...]]:
    if not all(isinstance(value, int) for value in (start, stop, step)) or not step or abs(stop - start) > 10_000:
        raise NotKnown(Why.OPAQUE)
    return [(number,) for number in range(start, stop + (1 if step > 0 else -1), step)]


SOURCES: dict[str, Callable[..., list[tuple[Value, ...]]]] = {
    "jsonb_each": _each_json,
    "json_each": _each_json,
    "jsonb_each_text": _each_text,
    "json_each_text": _each_text,
    "jsonb_object_keys": _keys,
    "json_object_keys": _keys,
    "jsonb_array_elements": _elements,
    "jsonb_array_elements_text": _elements_text,
    "unnest": _unnest,
    "generate_series": _series,
    "each": _each,
    "skeys": _keys,
}
SOURCE_COLUMNS: dict[str, tuple[str, ...]] = {
    "jsonb_each": ("key", "value"),
    "json_each": ("key", "value"),
    "jsonb_each_text": ("key", "value"),
    "json_each_text": ("key", "value"),
    "each": ("key", "value"),
    "jsonb_array_elements": ("value",),
    "jsonb_array_elements_text": ("value",),
}

AGGREGATES = frozenset(
    (
        "jsonb_object_agg",
        "json_object_agg",
        "array_agg",
        "jsonb_agg",
        "json_agg",
        "string_agg",
        "count",
        "exists",
        "first",
    )
)


def _aggregate(function: str, arguments: list[Compiled], rows: RowSource) -> Compiled:
    def gather(moment: Moment) -> Value:
        try:
            found = [(certain, [argument(moment) for argument in arguments]) for certain in rows(moment)]
        except NotKnown as doubt:
            return unknown(doubt.why)
        return _gathered(function, found)

    return gather


def _gathered(function: str, found: list[tuple[bool | Unknown, list[Value]]]) -> Value:
    doubt = next((certain for certain, _ in found if isinstance(certain, Unknown)), None)
    certain_rows = [values for certain, values in found if certain is True]
    match function:
        case "exists":
            return True if certain_rows else doubt or False
        case "jsonb_object_agg" | "json_object_agg":
            if not certain_rows:
                return doubt
            built: dict[str, Any] = {}
            for certain, (key, value) in found:
                if not isinstance(key, str):
                    return OPAQUE
                built[str(key)] = certain if isinstance(certain, Unknown) else to_json(value)
            return Json(built, function.startswith("jsonb"))
        case _ if doubt is not None:
            return doubt
        case "count":
            return sum(1 for values in certain_rows if not values or values[0] is not None)
        case "first":
            return certain_rows[0][0] if certain_rows else None
        case "array_agg":
            return [values[0] for values in certain_rows] or None
        case "array_agg unordered":
            return Bag(values[0] for values in certain_rows) or None
        case "jsonb_agg" | "json_agg":
            return (
                Json([to_json(values[0]) for values in certain_rows], function == "jsonb_agg") if certain_rows else None
            )
        case "string_agg":
            if not certain_rows:
                return None
            parts: list[Value] = []
            for value, separator in (values[:2] for values in certain_rows):
                parts.extend([separator, value] if parts else [value])
            return join_text(parts, nullable=False)
        case _:
            return OPAQUE


def _fold(loop: int, name: str, rows: RowSource, start: dict[str, Compiled], steps: dict[str, Compiled]) -> Compiled:
    def run(moment: Moment) -> Value:
        carried = {key: value(moment) for key, value in start.items()}
        moment.carried[loop] = carried
        try:
            for certain in rows(moment):
                after = {key: value(moment) for key, value in steps.items()}
                if isinstance(certain, Unknown):
                    after = {key: blend(value, carried[key], certain.why) for key, value in after.items()}
                carried = after
                moment.carried[loop] = carried
        except NotKnown as doubt:
            return unknown(doubt.why)
        return carried[name]

    return run
