"""Text functions. What is unknown leaves a hole in the text around it; the rest is still compared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from afterwrite.prove.calling import Function, strict, strict_over_text
from afterwrite.prove.expression import Why
from afterwrite.prove.value import (
    OPAQUE,
    Bag,
    Holes,
    OneOf,
    Options,
    Unknown,
    Value,
    Xid,
    Zoned,
    is_list,
    output,
    unknown,
)


def join_text(parts: list[Value], *, nullable: bool) -> Value:
    """Text side by side, NULLs left out; an unknown part leaves a hole, which ``nullable`` says makes all NULL."""
    pieces: list[str | None] = []
    why: Why | None = None
    for part in parts:
        if part is None:
            continue
        if isinstance(part, OneOf | Options | Unknown | Xid):
            pieces.append(None)
            why = why or part.why
        elif isinstance(part, Holes):
            pieces.extend(part.parts)
            why, nullable = why or part.why, nullable or part.nullable
        elif type(part) is str:
            pieces.append(part)
        else:  # a moment: its text is the session's
            pieces.append(None)
            why = why or Why.SESSION
    if why is None:
        return "".join(piece for piece in pieces if piece is not None)
    return Holes(_joined(pieces), why, nullable) if any(pieces) else unknown(why)


def _joined(pieces: list[str | None]) -> tuple[str | None, ...]:
    """Neighbours put together: known text beside known text is one, holes beside holes are one."""
    out: list[str | None] = []
    for piece in pieces:
        if piece is None:
            if not out or out[-1] is not None:
                out.append(None)
        elif piece:
            last = out[-1] if out else None
            if last is None:
                out.append(piece)
            else:
                out[-1] = last + piece
    return tuple(out)


def _format(template: Value, *arguments: Value) -> Value:
    if not isinstance(template, str):
        return template if template is None or isinstance(template, Unknown) else OPAQUE
    parts: list[Value] = []
    position = 0
    following = iter(arguments)
    while (found := template.find("%", position)) >= 0:
        parts.append(template[position:found])
        kind = template[found + 1 : found + 2]
        position = found + 2
        if kind == "%":
            parts.append("%")
            continue
        value = next(following, OPAQUE)
        if kind == "s":
            parts.append(output(value))
        elif kind == "I" and type(value) is str and value.isidentifier() and value.isascii() and value.islower():
            parts.append(value)
        elif kind == "L" and type(value) is str and value.isalnum():
            parts.append(f"'{value}'")
        else:  # positions, widths, and quoting that needs the server's keyword list
            return OPAQUE
    parts.append(template[position:])
    return join_text(parts, nullable=False)


def _concat(*values: Value) -> Value:
    return join_text([output(value) for value in values], nullable=False)


def _concat_ws(separator: Value, *values: Value) -> Value:
    if not isinstance(separator, str):
        return separator if separator is None or isinstance(separator, Unknown) else OPAQUE
    parts: list[Value] = []
    for value in values:
        if value is None:
            continue
        if isinstance(value, Unknown) or (isinstance(value, Holes) and value.nullable):
            # It may be NULL, and then its separator is not there either: the hole takes both.
            if parts and parts[-1] is separator:
                parts.pop()
            parts.append(unknown(value.why))
            continue
        if parts and not isinstance(parts[-1], Unknown):
            parts.append(separator)
        parts.append(output(value))
    return join_text(parts, nullable=False)


def _ascii(change: Callable[[str], str]) -> Function:
    """Case rules beyond ASCII are the collation's."""

    def call(text: str) -> Value:
        return change(text) if text.isascii() else OPAQUE

    return call


def _initcap(text: str) -> str:
    out: list[str] = []
    inside = False
    for letter in text:
        out.append(letter.lower() if inside else letter.upper())
        inside = letter.isalnum()
    return "".join(out)


def _substring(text: str, start: Value, length: Value = None) -> Value:
    if not isinstance(start, int) or not isinstance(length, int | None):
        return OPAQUE
    end = len(text) + 1 if length is None else start + length
    return text[max(start, 1) - 1 : max(end - 1, 0)]


def _left(text: str, count: int) -> str:
    return text[:count]


def _right(text: str, count: int) -> str:
    return text[-count:] if count else ""


def _trim(text: str, letters: str = " ") -> str:
    return text.strip(letters)


def _trim_left(text: str, letters: str = " ") -> str:
    return text.lstrip(letters)


def _trim_right(text: str, letters: str = " ") -> str:
    return text.rstrip(letters)


def _replace(text: str, old: str, new: str) -> str:
    return text.replace(old, new) if old else text


def _split_part(text: str, by: str, number: int) -> Value:
    if not by or number < 1:
        return OPAQUE
    parts = text.split(by)
    return parts[number - 1] if number <= len(parts) else ""


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _like(text: str, pattern: Value) -> Value:
    if not isinstance(pattern, str) or "\\" in pattern:
        return OPAQUE
    expression = "".join(".*" if part == "%" else "." if part == "_" else re.escape(part) for part in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _ilike(text: str, pattern: Value) -> Value:
    if not isinstance(pattern, str) or not (text.isascii() and pattern.isascii()):
        return OPAQUE
    return _like(text.lower(), pattern.lower())


def _array_to_string(items: Value, separator: str, null: Value = None) -> Value:
    if not is_list(items) or isinstance(items, Bag):
        return OPAQUE
    texts = [null if item is None else output(item) for item in items]
    if any(isinstance(text, Unknown | Zoned) for text in texts):
        return OPAQUE
    return separator.join(text for text in texts if text is not None)


def _host(address: Value) -> Value:
    return str(address).partition("/")[0] if isinstance(address, str) else OPAQUE


TEXT: dict[str, Function] = {
    "format": _format,
    "concat": _concat,
    "concat_ws": _concat_ws,
    "lower": strict_over_text(_ascii(str.lower)),
    "upper": strict_over_text(_ascii(str.upper)),
    "initcap": strict_over_text(_ascii(_initcap)),
    "length": strict_over_text(len),
    "char_length": strict_over_text(len),
    "left": strict_over_text(_left),
    "right": strict_over_text(_right),
    "substr": strict_over_text(_substring),
    "substring": strict_over_text(_substring),
    "btrim": strict_over_text(_trim),
    "ltrim": strict_over_text(_trim_left),
    "rtrim": strict_over_text(_trim_right),
    "replace": strict_over_text(_replace),
    "split_part": strict_over_text(_split_part),
    "md5": strict_over_text(_md5),
    "like": strict_over_text(_like),
    "ilike": strict_over_text(_ilike),
    "array_to_string": strict(_array_to_string),
    "host": strict(_host),
}
