"""Cutting SQL text without understanding it: where a list's items end, and which words are names.

The parser gives the place where a node begins, never where it ends, and there is no way back from its trees to text.
So expressions are cut out of the source itself: what people read, and what proof compares, is what the author wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
      (?P<space>   \s+ | --[^\n]* )
    | (?P<comment> /\* )
    | (?P<string>  [eE]'(?:[^'\\]|\\.|'')*' | (?:[bBxXnN]|[uU]&)?'(?:[^']|'')*' )
    | (?P<dollar>  \$(?P<tag>(?:[^\W\d]\w*)?)\$ )
    | (?P<quoted>  "(?:[^"]|"")*" )
    | (?P<param>   \$\d+ )
    | (?P<word>    [^\W\d][\w$]* )
    | (?P<number>  \d[\w.]* )
    | (?P<other>   :: | := | => | . )
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """``kind`` is string, quoted, param, word, number or other; comments and blanks are left out."""

    kind: str
    text: str
    start: int
    end: int


def tokens(sql: str, start: int = 0) -> Iterator[Token]:
    """The tokens of a piece of SQL from a character offset on."""
    place = start
    while place < len(sql):
        match = _TOKEN.match(sql, place)
        if match is None:  # an unfinished string: the rest of the text is inside it
            yield Token("string", sql[place:], place, len(sql))
            return
        kind = match.lastgroup or "other"
        place = match.end()
        match kind:
            case "space":
                continue
            case "comment":
                place = _end_of_comment(sql, match.start())
                continue
            case "tag" | "dollar":
                close = sql.find(match["dollar"], place)
                place = len(sql) if close < 0 else close + len(match["dollar"])
                yield Token("string", sql[match.start() : place], match.start(), place)
            case _:
                yield Token(kind, match[0], match.start(), place)


def uncommented(sql: str) -> str:
    """The text with a blank in the place of every comment, for whoever looks at it with a pattern."""
    if "--" not in sql and "/*" not in sql:
        return sql
    parts: list[str] = []
    place = 0
    for token in tokens(sql):
        between = sql[place : token.start]
        parts += (between if between.isspace() or not between else " ", token.text)
        place = token.end
    return "".join(parts)


def _end_of_comment(sql: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(sql, start):
        depth += 1 if match[0] == "/*" else -1
        if depth == 0:
            return match.end()
    return len(sql)


def character_offset(sql: str, byte_offset: int) -> int:
    """The parser counts bytes of UTF-8; Python counts characters."""
    if sql.isascii():
        return byte_offset
    return len(sql.encode()[:byte_offset].decode(errors="ignore"))


def items(sql: str, start: int, *, until: frozenset[str] = frozenset()) -> tuple[list[str], int]:
    """Cut a comma-separated list that begins at ``start``; gives the items and where the list ends.

    It ends at the closing bracket of its level, at a semicolon, or before a word of ``until`` on its own level.
    """
    found: list[str] = []
    depth = 0
    first: int | None = None
    last = start
    before = ""
    for token in tokens(sql, start):
        text = token.text
        before, previous = text.lower(), before
        if depth == 0 and token.kind == "other" and text in ",);]":
            if first is not None:
                found.append(sql[first:last])
            if text != ",":
                return found, token.start
            first = None
            continue
        ends = token.kind == "word" and text.lower() in until and (previous, before) != ("distinct", "from")
        if depth == 0 and ends and first is not None:
            found.append(sql[first:last])
            return found, token.start
        if token.kind == "other" and text in "([":
            depth += 1
        elif token.kind == "other" and text in ")]":
            depth -= 1
        first = token.start if first is None else first
        last = token.end
    if first is not None:
        found.append(sql[first:last])
    return found, len(sql)


def arguments(sql: str, call: int) -> list[str]:
    """The argument texts of a function call whose name stands at ``call``."""
    for token in tokens(sql, call):
        if token.text == "(":
            return items(sql, token.end)[0]
        if token.kind not in ("word", "quoted") and token.text != ".":
            break
    return []


def after_keyword(sql: str, start: int, words: frozenset[str]) -> tuple[str, int] | None:
    """The first of these words on the level of ``start``, and where it ends."""
    depth = 0
    for token in tokens(sql, start):
        if token.kind == "other" and token.text in "([":
            depth += 1
        elif token.kind == "other" and token.text in ")]":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0 and token.kind == "word" and token.text.lower() in words:
            return token.text.lower(), token.end
    return None


def unquote(name: str) -> str:
    """An identifier as the catalog has it: folded to lower case, or freed from its quotes."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


def split_names(text: str) -> tuple[str, ...]:
    """The parts of a dotted or comma-separated list of identifiers, as the catalog has them."""
    return tuple(unquote(token.text) for token in tokens(text) if token.kind in ("word", "quoted"))


def substitute(sql: str, values: Mapping[str, str]) -> str:
    """Put other SQL in the place of names and of ``$1``: how a callee's text is said in its caller's words.

    A name is replaced where it stands alone or before a dot, never after one nor before a bracket.
    """
    if not values:
        return sql

    def replacement(before: Token | None, token: Token, after: str) -> str | None:
        if token.kind == "param":
            value = values.get(token.text)
        elif token.kind in ("word", "quoted") and (before is None or before.text != ".") and after != "(":
            value = values.get(unquote(token.text))
        else:
            return None
        if value is None:
            return None
        # A row's star cannot stand inside brackets as one value: ($1).* of NEW.* is NEW.*
        value = value[:-2] if value.lower() in ("new.*", "old.*") else value
        return value if _is_simple(value) else f"({value})"

    return _rewrite(sql, replacement)


def _is_simple(value: str) -> bool:
    parts = list(tokens(value))
    if len(parts) == 1:
        return True
    if parts and parts[0].kind in ("word", "quoted") and len(parts) > 1 and parts[1].text == "(":
        depth = 0
        for index, token in enumerate(parts[1:], 1):
            depth += {"(": 1, ")": -1}.get(token.text, 0) if token.kind == "other" else 0
            if depth == 0:
                return index == len(parts) - 1
    return all(token.kind in ("word", "quoted") or token.text == "." for token in parts)


def _rewrite(sql: str, replacement: Callable[[Token | None, Token, str], str | None]) -> str:
    listed = list(tokens(sql))
    pieces: list[str] = []
    place = 0
    for index, token in enumerate(listed):
        after = listed[index + 1].text if index + 1 < len(listed) else ""
        new = replacement(listed[index - 1] if index else None, token, after)
        if new is not None:
            pieces += (sql[place : token.start], new)
            place = token.end
    return "".join((*pieces, sql[place:]))
