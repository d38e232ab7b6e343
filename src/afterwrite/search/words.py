"""What a word is: the same here, in the index of each partition, and in every query.

A word is what stands between separators, ASCII letters lowered: nothing that depends on the locale of a database or on
a dictionary. So this module and PostgreSQL (``afterwrite.words()``) give the same answer, whatever the server is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

LONGEST_TEXT = 500
"""How many characters of what an activity says are looked at for words."""

SEPARATORS = "\t\n\v\f\r\u00a0\u2009\u202f\u3000 !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~·–—‘’“”„«»…→"
"""What stands between words. ``afterwrite.words()`` in sql/schema has the same, and a test compares them."""

_TO_SPACES = str.maketrans(dict.fromkeys(SEPARATORS, " "))
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def split(text: str) -> list[str]:
    """The words of a text, in their order.

    >>> split("Update users 42: plan free → pro")
    ['update', 'users', '42', 'plan', 'free', 'pro']
    """
    return [word for word in text.translate(_TO_SPACES).translate(_LOWER).split(" ") if word]


def split_query(text: str) -> list[str]:
    """The words that somebody looks for. Of a UUID it is the first group, which is what summaries show of it."""
    return split(_UUID.sub(lambda found: found[0][:8], text).lower())


def text_of(
    action: str, entity_type: str | None, entity_id: str | None, actor_id: str | None, summary: str | None
) -> str:
    """The text of an activity that full text looks at: its names, then its summary."""
    thing = "" if entity_id is None else entity_id.partition("-")[0]
    return f"{action} {entity_type or ''} {thing} {actor_id or ''} {summary or ''}"[:LONGEST_TEXT]


def variants(word: str) -> tuple[str, ...]:
    """How a word may be written in the store: as it is, capitalized, in capitals, each composed and decomposed.

    An ASCII word has one way, since those letters are lowered on both sides.
    """
    if word.isascii():
        return (word,)
    written = (unicodedata.normalize(form, each) for each in _cases(word) for form in ("NFC", "NFD"))
    return tuple(dict.fromkeys(each.translate(_LOWER) for each in written if not _separates(each)))


def _cases(word: str) -> Iterable[str]:
    return word, word.lower(), word.capitalize(), word.upper()


def _separates(word: str) -> bool:
    return not word or word.translate(_TO_SPACES) != word
