"""Text from somebody's catalog, made safe to look at: names and bodies may hold whatever the database let in."""

from __future__ import annotations

import unicodedata

_KEPT = frozenset("\n\t")
# Marks that change the order or the look of what stands around them, so that a name reads as another.
_MISLEADING = frozenset({"Cf", "Cc", "Co", "Cs", "Cn", "Zl", "Zp"})


def visible(text: str) -> str:
    """The text with what would steer a terminal or mislead the eye shown as its code: ``\\x1b``, ``\\u202e``.

    New lines and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if _is_plain(letter) else _code(letter) for letter in text)


def _is_plain(letter: str) -> bool:
    return letter in _KEPT or unicodedata.category(letter) not in _MISLEADING


def _code(letter: str) -> str:
    number = ord(letter)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
