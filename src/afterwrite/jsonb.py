r"""What jsonb can hold, told without asking the server.

The store keeps JSON as the text it came as, in columns of type json, and promises that every one of them casts to
jsonb. The json type itself takes more: \u0000, lone surrogates, and numbers that no numeric can be.
"""

from __future__ import annotations

import re

import msgspec

_SUSPICIOUS = re.compile(rb"\\u|[eE][+-]?\d{4}|\d{10000}")
_STRING_OR_NUMBER = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"|-?[0-9][0-9.eE+-]*', re.DOTALL)
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_NUMBERS = (b"e0000", b"e+0000", b"e-0000", b"0" * 10_000)
# numeric's own limits (src/backend/utils/adt/numeric.c): digits before and after the point, and of the exponent.
_DIGITS_BEFORE, _DIGITS_AFTER, _EXPONENT = 131_072, 16_383, 2**30


def fits_jsonb(raw: bytes) -> bool:
    r"""Whether jsonb can hold this (valid) JSON text, however deep it is nested.

    It has no \u0000, no lone surrogate, and no number beyond numeric's range (131,072 digits before the point and
    16,383 after it). jsonb looks at the earlier one of two equal keys too.
    """
    if _SUSPICIOUS.search(raw) is None:
        return True
    return all(
        _is_number(token[0].decode()) if token.lastindex is None else _has_characters(token[1])
        for token in _STRING_OR_NUMBER.finditer(raw)
    )


def may_hold_large_numbers(raw: bytes) -> bool:
    """Whether a number beyond numeric's range is possible here: a quick look, over many texts at once if need be."""
    bare = raw.translate(_DIGITS)
    return any(number in bare for number in _LARGE_NUMBERS)


def _is_number(text: str) -> bool:
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    far = exponent.lstrip("+-0")
    if len(far) > 10:
        return False
    shift = int(far or 0) * (-1 if exponent.startswith("-") else 1)
    digits = whole + fraction
    leading = len(digits) - len(digits.lstrip("0"))
    too_large = leading < len(digits) and len(whole) + shift - leading > _DIGITS_BEFORE
    return not (too_large or len(fraction) - shift > _DIGITS_AFTER or abs(shift) >= _EXPONENT)


def _has_characters(string: bytes) -> bool:
    units = (match["unit"] for match in _ESCAPE.finditer(string))
    return all(unit is None or not (int(unit, 16) == 0 or 0xD800 <= int(unit, 16) <= 0xDFFF) for unit in units)


# A backslash in valid JSON stands only in strings: a pair of surrogates, one code unit, or a short escape.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u(?P<unit>[0-9a-fA-F]{4})|\\.", re.DOTALL
)


def with_jsonb_characters(raw: bytes) -> bytes | None:
    r"""The same JSON where its characters are such that jsonb takes them, else with ␀ and � in place of the others.

    None when it is not even UTF-8.
    """
    try:
        raw.decode()
    except UnicodeDecodeError:
        return None

    def swap(match: re.Match[bytes]) -> bytes:
        unit = match["unit"]
        if unit is None:
            return match[0]
        code = int(unit, 16)
        return b"\\u2400" if code == 0 else b"\\ufffd" if 0xD800 <= code <= 0xDFFF else match[0]

    kept = _ESCAPE.sub(swap, raw) if b"\\u" in raw else raw
    return None if b"\0" in kept else kept


def read_members(text: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, each as its JSON, however deep it is nested; none of what is no object.

    Of two of a name the later one, as jsonb has it.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    except RecursionError:
        return _read_deep(text) if text.lstrip().startswith(b"{") else {}


def read_elements(text: bytes) -> list[msgspec.Raw] | None:
    """The elements of a JSON array, each as its JSON, however deep it is nested; None of what is no array."""
    if not text.lstrip().startswith(b"["):
        return None
    try:
        return msgspec.json.decode(text, type=list[msgspec.Raw])
    except RecursionError:
        return _split_deep(text)


def _split_deep(text: bytes) -> list[msgspec.Raw]:
    found: list[msgspec.Raw] = []
    depth = begins = 0
    for token in _MARK.finditer(text):
        mark = token[0]
        if (depth, mark) == (1, b",") or (depth == 1 and mark in b"]}"):
            found.append(msgspec.Raw(text[begins : token.start()].strip()))
        if mark in b"[{":
            depth += 1
        elif mark in b"]}":
            depth -= 1
        if depth == 1 and (mark == b"," or not begins):
            begins = token.end()
    return found


def _read_deep(text: bytes) -> dict[str, msgspec.Raw]:
    found: dict[str, msgspec.Raw] = {}
    depth = begins = 0
    name: str | None = None
    for token in _MARK.finditer(text):
        mark = token[0]
        if mark in b"[{":
            depth += 1
        elif mark in b"]}":
            depth -= 1
        elif depth > 1:
            continue
        elif mark == b":":
            begins = token.end()
        elif mark != b"," and name is None:
            name = msgspec.json.decode(mark, type=str)
        if name is not None and (depth == 0 or (depth == 1 and mark == b",")):
            found[name] = msgspec.Raw(text[begins : token.start()].strip())
            name = None
    return found


_MARK = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]', re.DOTALL)


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def measure_depth(raw: bytes) -> int:
    """How many arrays and objects stand inside each other at the deepest place of this JSON text."""
    deepest = depth = 0
    for bracket in _STRING.sub(b"", raw).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
