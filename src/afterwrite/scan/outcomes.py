"""What an expression may come to: its possible values, whether it may be NULL, and whether a condition may be false.

Pure. An outcome is a set: texts that are known, None for NULL, and SOME for a value that is there but not known. Every
expression that cannot be read may be anything. Types matter little: what is compared stands in one type on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from itertools import product
from typing import NamedTuple, Protocol, TypeAlias

from afterwrite.scan.known import CUTS_TEXT, KEEPS_TEXT
from afterwrite.scan.tokens import Token, items, tokens, unquote


class Some(Enum):
    VALUE = "a value"


SOME = Some.VALUE
Piece: TypeAlias = str | Some | None
Outcome: TypeAlias = frozenset[Piece]
ANYTHING: Outcome = frozenset({SOME, None})
THERE: Outcome = frozenset({SOME})
NOTHING: Outcome = frozenset({None})
_TRUTHS: Outcome = frozenset({"true", "false"})

_OPERATOR = frozenset("+-*/<>=~!@#%^&|?`")
_COMPARES = frozenset({"=", "<>", "!=", "<", ">", "<=", ">="})
# Operators whose answer is there when both sides are.
_TOTAL = _COMPARES | {
    "+",
    "-",
    "*",
    "/",
    "%",
    "||",
    "~",
    "~*",
    "!~",
    "!~*",
    "~~",
    "!~~",
    "~~*",
    "!~~*",
    "&&",
    "@>",
    "<@",
}
# Functions whose answer is there when all that they are given is.
_TOTAL_CALLS = frozenset(
    {
        *("lower", "upper", "initcap", "btrim", "ltrim", "rtrim", "trim", "replace", "left", "right", "substr", "md5"),
        *("length", "char_length", "octet_length", "abs", "round", "floor", "ceil", "ceiling", "trunc", "date_trunc"),
        *("extract", "date_part", "to_char", "split_part", "repeat", "reverse", "lpad", "rpad", "translate", "sha256"),
        *("to_json", "to_jsonb", "row_to_json", "hstore", "encode", "convert_to", "quote_literal", "quote_ident"),
        *("mod", "sign", "power", "age", "make_interval", "to_timestamp", "string_to_array"),
        *("jsonb_set", "array_append", "array_cat", "position", "strpos", "hashtext", "digest"),
    }
)
# Functions whose answer is always there.
_ALWAYS = frozenset(
    {
        *("now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday", "random", "nextval"),
        *("gen_random_uuid", "uuidv4", "uuidv7", "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4"),
        *("txid_current", "pg_current_xact_id", "pg_backend_pid", "pg_current_wal_lsn", "pg_current_wal_insert_lsn"),
        *("jsonb_build_object", "json_build_object", "jsonb_build_array", "json_build_array", "concat", "count"),
        *(
            "current_database",
            "current_schema",
            "version",
            "current_query",
            "quote_nullable",
            "exists",
            "num_nonnulls",
            "num_nulls",
            "row",
        ),
        *("tstzrange", "tsrange", "daterange", "int4range", "int8range", "numrange", "pg_trigger_depth", "currval"),
        *("lastval", "txid_current_snapshot", "pg_postmaster_start_time", "setval", "row_number", "rank"),
    }
)
_SESSION = frozenset(
    {
        *("current_user", "session_user", "user", "current_role", "current_catalog", "current_date", "current_time"),
        *("current_timestamp", "localtime", "localtimestamp", "system_user"),
    }
)
_TYPE_TAILS = frozenset({"with", "without", "time", "zone", "precision", "varying"})
_TEXTS = frozenset({"text", "varchar", "character varying", "name", "bpchar", "char", "character", "citext"})
_ROW_AS_JSON = frozenset({"to_jsonb", "to_json", "row_to_json", "hstore"})
_NUMERIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


class Node(NamedTuple):
    """A piece of an expression: what it is, its name or text, and its parts."""

    kind: str
    text: str = ""
    parts: tuple[Node, ...] = ()


class Scope(Protocol):
    """What names come to at some place."""

    def name(self, parts: tuple[str, ...]) -> Outcome: ...

    def argument(self, index: str) -> Outcome: ...

    def query(self, text: str) -> Outcome: ...

    def call(self, name: str, given: Sequence[Outcome]) -> Outcome: ...

    def within_text(self) -> Scope: ...


class _UnreadError(Exception):
    pass


@lru_cache(maxsize=4096)
def parsed(text: str) -> Node:
    """An expression's tree; of kind ``unread`` where it is not one that is understood here."""
    reader = _Reader(text)
    try:
        node = reader.either()
    except (_UnreadError, RecursionError):
        return Node("unread", text)
    return node if reader.at_end() else Node("unread", text)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_merged(tokens(text)))
        self.place = 0

    def at_end(self) -> bool:
        return self.place >= len(self.tokens)

    def peek(self, ahead: int = 0) -> str:
        place = self.place + ahead
        if place >= len(self.tokens):
            return ""
        token = self.tokens[place]
        return token.text.lower() if token.kind == "word" else token.text if token.kind == "other" else token.kind

    def take(self, *wanted: str) -> bool:
        if self.peek() in wanted:
            self.place += 1
            return True
        return False

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise _UnreadError

    def next(self) -> Token:
        if self.at_end():
            raise _UnreadError
        self.place += 1
        return self.tokens[self.place - 1]

    def either(self) -> Node:
        parts = [self.both()]
        while self.take("or"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Node("or", parts=tuple(parts))

    def both(self) -> Node:
        parts = [self.negation()]
        while self.take("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else Node("and", parts=tuple(parts))

    def negation(self) -> Node:
        if self.take("not"):
            return Node("not", parts=(self.negation(),))
        return self.comparison()

    def comparison(self) -> Node:
        left = self.operation()
        while True:
            if self.peek() in _COMPARES:
                operator = self.next().text
                if self.peek() in ("any", "some", "all"):
                    if self.next().text.lower() == "all" or operator != "=":
                        raise _UnreadError
                    self.need("(")
                    listed = self.either()
                    self.need(")")
                    left = Node("in", parts=(left, listed))
                else:
                    left = Node("compare", operator, (left, self.operation()))
            elif self.peek() == "is":
                left = self.nature(left)
            elif self.peek() in ("in", "between", "like", "ilike", "similar") or (
                self.peek() == "not" and self.peek(1) in ("in", "between", "like", "ilike", "similar")
            ):
                left = self.membership(left)
            else:
                return left

    def nature(self, left: Node) -> Node:
        self.need("is")
        negated = self.take("not")
        if self.take("distinct"):
            self.need("from")
            node = Node("distinct", parts=(left, self.operation()))
        elif self.take("null"):
            node = Node("is null", parts=(left,))
        elif self.peek() in ("true", "false", "unknown"):
            node = Node("is", self.next().text.lower(), (left,))
        else:
            raise _UnreadError
        return Node("not", parts=(node,)) if negated else node

    def membership(self, left: Node) -> Node:
        negated = self.take("not")
        word = self.next().text.lower()
        if word == "in":
            self.need("(")
            if self.peek() in ("select", "with"):
                raise _UnreadError
            node = Node("in", parts=(left, Node("array", parts=self.listed(")"))))
        elif word == "between":
            low = self.operation()
            self.need("and")
            high = self.operation()
            node = Node("and", parts=(Node("compare", ">=", (left, low)), Node("compare", "<=", (left, high))))
        else:
            node = Node("operator", "~~", (left, self.operation()))
        return Node("not", parts=(node,)) if negated else node

    def operation(self) -> Node:
        left = self.cast()
        while True:
            kind = self.peek()
            if kind and kind not in _COMPARES and set(kind) <= _OPERATOR:
                left = Node("operator", self.next().text, (left, self.cast()))
            elif kind == "at" and self.peek(1) == "time":
                self.place += 3
                left = Node("operator", "+", (left, self.cast()))
            elif kind == "collate":
                self.place += 2
            else:
                return left

    def cast(self) -> Node:
        node = self.primary()
        while True:
            if self.take("::"):
                node = Node("cast", self.type(), (node,))
            elif self.peek() == "[":
                start = self.next().end
                inside, end = items(self.text, start)
                while not self.at_end() and self.tokens[self.place].start <= end:
                    self.place += 1
                node = Node("index", inside[0] if inside else "", (node,))
            elif self.take("."):
                node = Node("field", unquote(self.next().text), (node,))
            else:
                return node

    def type(self) -> str:
        words = [unquote(self.next().text)]
        while self.take("."):
            words = [unquote(self.next().text)]
        while self.peek() in _TYPE_TAILS:
            words.append(self.next().text.lower())
        width = ""
        if self.take("("):
            width = f"({','.join(each.text for each in self.listed(')'))})"
        while self.peek() in _TYPE_TAILS:
            words.append(self.next().text.lower())
        while self.take("["):
            self.need("]")
            width = "[]"
        return " ".join(words) + width

    def listed(self, close: str) -> tuple[Node, ...]:
        found: list[Node] = []
        if self.take(close):
            return ()
        while True:
            if self.peek() == "variadic" or self.peek() == "distinct":
                self.place += 1
            if self.peek() == "*" and self.peek(1) == close:
                self.place += 1
                found.append(Node("literal", "*"))
            else:
                if self.peek(1) in ("=>", ":="):
                    self.place += 2
                found.append(self.either())
            if self.take(close):
                return tuple(found)
            if not self.take(",", "from", "for"):
                raise _UnreadError

    def primary(self) -> Node:
        token = self.next()
        if token.kind == "string":
            if token.text[0] not in "'$" or "\\" in token.text:
                return Node("some")
            if token.text[0] == "$":
                tag = token.text.index("$", 1) + 1
                return Node("literal", token.text[tag:-tag])
            return Node("literal", token.text[1:-1].replace("''", "'"))
        if token.kind == "number":
            return Node("literal", token.text)
        if token.kind == "param":
            return Node("name", token.text)
        if token.text in ("-", "+"):
            inner = self.cast()
            return Node("literal", f"-{inner.text}") if inner.kind == "literal" else Node("operator", "-", (inner,))
        if token.text == "(":
            if self.peek() in ("select", "with"):
                return self.subquery(token.end)
            parts = self.listed(")")
            return parts[0] if len(parts) == 1 else Node("row", parts=parts)
        if token.kind in ("word", "quoted"):
            return self.word(token)
        raise _UnreadError

    def subquery(self, start: int) -> Node:
        depth = 1
        while depth:
            token = self.next()
            depth += {"(": 1, ")": -1}.get(token.text, 0) if token.kind == "other" else 0
        return Node("query", self.text[start : self.tokens[self.place - 1].start])

    def word(self, token: Token) -> Node:
        word = token.text.lower() if token.kind == "word" else ""
        if word == "null":
            return Node("null")
        if word in ("true", "false"):
            return Node("literal", word)
        if word == "case":
            return self.case()
        if word == "array" and self.take("["):
            return Node("array", parts=self.listed("]"))
        if word in ("exists", "array") and self.peek() == "(" and self.peek(1) in ("select", "with"):
            self.subquery(self.next().end)
            return Node("some")
        if word == "cast" and self.take("("):
            inner = self.either()
            self.need("as")
            kind = self.type()
            self.need(")")
            return Node("cast", kind, (inner,))
        if word == "extract" and self.take("("):
            self.place += 1
            self.need("from")
            inner = self.either()
            self.need(")")
            return Node("call", "extract", (inner,))
        if word in ("select", "with", "when", "then", "else", "end", "from", "where", "interval") and not (
            word == "interval" and self.peek() == "string"
        ):
            raise _UnreadError
        if word and self.peek() == "string":  # date '2001-01-01'
            self.place += 1
            return Node("some")
        parts = [unquote(token.text)]
        while self.peek() == "." and self.place + 1 < len(self.tokens):
            following = self.tokens[self.place + 1]
            if following.kind not in ("word", "quoted") and following.text != "*":
                break
            self.place += 2
            parts.append(unquote(following.text))
        if self.take("("):
            if word == "trim":
                self.take("both", "leading", "trailing")
            given = self.listed(")")
            if self.peek() in ("filter", "over", "within"):
                raise _UnreadError
            known = len(parts) == 1 or parts[0] == "pg_catalog" or parts[-1] in _ALWAYS - {"count", "concat", "row"}
            return Node("call", parts[-1] if known else ".".join(parts), given)
        return Node("name", ".".join(parts), tuple(Node("literal", part) for part in parts))

    def case(self) -> Node:
        test = None if self.peek() == "when" else self.either()
        parts: list[Node] = []
        while self.take("when"):
            condition = self.either()
            self.need("then")
            parts += (condition if test is None else Node("compare", "=", (test, condition)), self.either())
        parts.append(self.either() if self.take("else") else Node("null"))
        self.need("end")
        return Node("case", parts=tuple(parts))


def _merged(listed: Iterable[Token]) -> Iterable[Token]:
    """Characters of one operator as one token."""
    held: Token | None = None
    for token in listed:
        piece = token.kind == "other" and (token.text in _OPERATOR or token.text == "=>")
        if (
            held is not None
            and piece
            and held.end == token.start
            and not (token.text in "+-" and held.text[-1] in "=|")
        ):
            held = Token("other", held.text + token.text, held.start, token.end)
            continue
        if held is not None:
            yield held
        held = token if piece else None
        if not piece:
            yield token
    if held is not None:
        yield held


def outcome(text: str, scope: Scope) -> Outcome:
    """Everything that an expression may come to, as far as that is known."""
    return _of(parsed(text), scope)


def _of(node: Node, scope: Scope) -> Outcome:
    match node.kind:
        case "literal":
            return frozenset({node.text})
        case "null":
            return NOTHING
        case "some" | "row":
            return THERE
        case "array":
            return THERE
        case "name":
            if node.text in _SESSION:
                return THERE
            parts = tuple(each.text for each in node.parts) or (node.text,)
            return scope.name(parts)
        case "index":
            return scope.argument(node.text) if node.parts[0].text == "tg_argv" else ANYTHING
        case "field":
            inner = node.parts[0]
            return scope.name((inner.text, node.text)) if inner.kind == "name" else ANYTHING
        case "query":
            return scope.query(node.text)
        case "cast":
            return _cast(node.text, _of(node.parts[0], scope))
        case "call":
            return _called(node, scope)
        case "operator":
            inner = scope.within_text() if node.text == "||" else scope
            given = [_of(part, inner) for part in node.parts]
            if node.text == "||" and all(len(each) <= 4 for each in given):
                return frozenset(_joined(each) for each in product(*given))
            return _total(given) if node.text in _TOTAL else ANYTHING
        case "case":
            return _chosen(node, scope)
        case "and" | "or" | "not" | "compare" | "in" | "is null" | "is" | "distinct":
            return _truth(node, scope)
        case _:
            return ANYTHING


def _total(given: Sequence[Outcome]) -> Outcome:
    if NOTHING in given:
        return NOTHING
    return ANYTHING if any(None in each for each in given) else THERE


def _joined(parts: Sequence[Piece]) -> Piece:
    if None in parts:
        return None
    return SOME if SOME in parts else "".join(str(part) for part in parts)


def _cast(kind: str, value: Outcome) -> Outcome:
    plain, _, width = kind.partition("(")
    if plain in _TEXTS:
        if plain in ("char", "character") and not width:
            width = "1)"
        if not width:
            return value
        length = int(width[:-1]) if width[:-1].isdigit() else 0
        return frozenset(each[:length] if isinstance(each, str) else each for each in value)
    keeps = plain not in ("json", "jsonb", "timestamp", "date", "bytea", "boolean", "bool", "timestamptz", "interval")
    return frozenset(
        each if not isinstance(each, str) or each in ("true", "false") or keeps else SOME for each in value
    )


def _called(node: Node, scope: Scope) -> Outcome:
    given = [_of(part, scope) for part in node.parts]
    first = given[0] if given else ANYTHING
    if node.text == "coalesce":
        found: set[Piece] = set()
        for each in given:
            found |= each - NOTHING
            if None not in each:
                return frozenset(found)
        return frozenset(found | {None})
    if node.text in ("greatest", "least"):
        return THERE if any(None not in each for each in given) else ANYTHING
    if node.text in ("concat_ws", "format"):
        return THERE if None not in first else ANYTHING
    if node.text == "current_setting":
        return THERE if len(given) < 2 or given[1] == frozenset({"false"}) else ANYTHING
    short: dict[str, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper}
    if node.text in ("left", "substr", "substring") and _shortens(node):
        length = int(node.parts[-1].text)
        short[node.text] = lambda text: text[:length]
    if node.text in short:
        change = short[node.text]
        return frozenset(change(each) if isinstance(each, str) and each.isascii() else each for each in first)
    if node.text in _ALWAYS:
        return THERE
    return _total(given) if node.text in _TOTAL_CALLS else scope.call(node.text, given)


def _shortens(node: Node) -> bool:
    counts = [part.text for part in node.parts[1:]]
    return all(part.kind == "literal" and part.text.isdigit() for part in node.parts[1:]) and (
        len(counts) == 1 if node.text == "left" else len(counts) == 2 and counts[0] == "1"
    )


def _chosen(node: Node, scope: Scope) -> Outcome:
    found: set[Piece] = set()
    for condition, result in zip(node.parts[:-1:2], node.parts[1:-1:2], strict=True):
        truth = _of(condition, scope)
        if SOME in truth or "true" in truth:
            found |= _of(result, scope)
        if truth == frozenset({"true"}):
            return frozenset(found)
    return frozenset(found | _of(node.parts[-1], scope))


def _truth(node: Node, scope: Scope) -> Outcome:
    if node.kind in ("and", "or", "not"):
        given = [_as_truth(_of(part, scope)) for part in node.parts]
        return frozenset(_logic(node.kind, each) for each in product(*given)) if len(given) <= 8 else _TRUTHS | NOTHING
    if node.kind == "is null":
        value = _of(node.parts[0], scope)
        return frozenset({*(("true",) if None in value else ()), *(("false",) if value - NOTHING else ())})
    if node.kind == "is":
        value = _as_truth(_of(node.parts[0], scope))
        return frozenset(
            "true" if each == (None if node.text == "unknown" else node.text) else "false" for each in value
        )
    left, right = node.parts
    lefts = _of(left, scope)
    if node.kind == "distinct":
        pairs = product(lefts, _of(right, scope))
        return frozenset[Piece]().union(*(_distinct(one, other) for one, other in pairs))
    if node.kind == "compare":
        return frozenset[Piece]().union(
            *(_compared(node.text, one, other) for one, other in product(lefts, _of(right, scope)))
        )
    while right.kind == "cast":
        right = right.parts[0]
    if right.kind != "array":
        return _TRUTHS | NOTHING
    listed = [_of(each, scope) for each in right.parts]
    found: set[Piece] = set()
    for one in lefts:
        each = [frozenset[Piece]().union(*(_compared("=", one, other) for other in others)) for others in listed]
        if frozenset({"true"}) in each:
            found.add("true")
        else:
            found |= frozenset[Piece]().union(*each)
    return frozenset(found) or frozenset({"false"})


def _as_truth(value: Outcome) -> Outcome:
    known = {each if each in ("true", "false") else None if each is None else SOME for each in value}
    return frozenset(known - {SOME} | _TRUTHS) if SOME in known else frozenset(known)


def _logic(kind: str, given: Sequence[Piece]) -> str | None:
    if kind == "not":
        return {"true": "false", "false": "true"}.get(str(given[0]))
    decides, otherwise = ("false", "true") if kind == "and" else ("true", "false")
    return decides if decides in given else None if None in given else otherwise


def _distinct(one: Piece, other: Piece) -> Outcome:
    if one is None or other is None:
        return frozenset({"false" if one is other else "true"})
    return frozenset({"true", "false"}) if SOME in (one, other) else _compared("<>", one, other)


def _compared(operator: str, one: Piece, other: Piece) -> Outcome:
    if one is None or other is None:
        return NOTHING
    if isinstance(one, Some) or isinstance(other, Some):
        return _TRUTHS
    numbers = [float(each) for each in (one, other) if _NUMERIC.fullmatch(each)]
    if len(numbers) == 2:
        a, b = numbers
        truth = {"=": a == b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}.get(operator, a != b)
    elif operator in ("=", "<>", "!="):
        truth = (one.rstrip() == other.rstrip()) is (operator == "=")
    else:
        return _TRUTHS
    return frozenset({"true" if truth else "false"})


def never_null(text: str) -> set[str]:
    """The names that a condition (when it is true) finds not to be NULL."""
    return _there(parsed(text), holds=True)


def null_unless(text: str) -> set[str]:
    """The names that are not NULL where a condition is not true."""
    return _there(parsed(text), holds=False)


def _there(node: Node, *, holds: bool) -> set[str]:
    if node.kind == "not":
        return _there(node.parts[0], holds=not holds) if node.parts[0].kind == "is null" else set()
    if node.kind == ("and" if holds else "or"):
        return set[str]().union(*(_there(part, holds=holds) for part in node.parts))
    if node.kind == "is null" and not holds:
        return {node.parts[0].text} if node.parts[0].kind == "name" else set()
    if node.kind in ("compare", "in") and holds:
        return {part.text for part in node.parts if part.kind == "name"}
    return set()


def origins(text: str) -> set[str]:
    """The columns, parameters and variables whose text an expression is, or a piece of it (as Query.origins says)."""
    return set(_origins(parsed(text)))


def _origins(node: Node) -> Iterator[str]:
    match node.kind:
        case "name":
            yield node.text
        case "operator" if node.text in ("->>", "->", "#>", "#>>"):
            inner, key = node.parts
            as_json = inner.kind == "call" and inner.text in _ROW_AS_JSON and inner.parts[0].kind == "name"
            if as_json and inner.parts[0].text in ("new", "old"):
                yield f"{inner.parts[0].text}.{key.text}"
            else:
                yield from _origins(inner)
        case "operator" if node.text == "||":
            for part in node.parts:
                yield from _origins(part)
        case "call" if node.text in CUTS_TEXT:
            for part in node.parts:
                yield from _origins(part)
        case "case":
            for part in (*node.parts[1:-1:2], node.parts[-1]):
                yield from _origins(part)
        case "cast" if node.text.partition("(")[0] in (*KEEPS_TEXT, "character varying", "character"):
            yield from _origins(node.parts[0])
        case "index" | "field":
            yield from _origins(node.parts[0])
        case _:
            pass
