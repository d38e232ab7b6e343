"""What a word is: the same here, in the index of each partition, and in every query.

Letters and digits of any language make a word; signs and blanks stand between words; ASCII letters are lowered. Nothing
of it depends on the locale of a database or on a dictionary, so that this module and PostgreSQL (``afterwrite.words()``
and ``afterwrite.lexemes()`` in the schema) give the same answer, whatever the server is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from afterwrite.store.reader import StoredActivity

LONGEST_SUMMARY = 500
"""How many characters of a summary are looked at."""

SIGNS = "\t\n\v\f\r!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
TYPOGRAPHY = "\u00a0\u2009\u202f\u3000·–—‘’“”„«»…→"
"""Stands between words in a summary, and in what people look for; in names it is part of them."""

_SIGNS = str.maketrans(dict.fromkeys(SIGNS, " "))
_TYPOGRAPHY = str.maketrans(dict.fromkeys(TYPOGRAPHY, " "))
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def split(text: str) -> list[str]:
    """The words of a text, in their order.

    >>> split("Update users 42: plan free -> pro")
    ['update', 'users', '42', 'plan', 'free', 'pro']
    """
    return [word for word in text.translate(_SIGNS).translate(_LOWER).split(" ") if word]


def split_query(text: str) -> list[str]:
    """The words that somebody looks for, in lower case. Of a UUID it is the first group, as summaries show it."""
    return split(_UUID.sub(lambda found: found[0][:8], text).translate(_TYPOGRAPHY).lower())


def words_of(activity: StoredActivity) -> tuple[str, ...]:
    """The words of an activity, in their order: of its names, then of its summary."""
    return _words_of(activity.action, activity.entity_type, activity.entity_id, activity.actor_id, activity.summary)


@lru_cache(maxsize=1_024)  # each row of the feed is asked about by all who listen, term by term
def _words_of(
    action: str, entity_type: str | None, entity_id: str | None, actor_id: str | None, summary: str | None
) -> tuple[str, ...]:
    thing = "" if entity_id is None else entity_id.partition("-")[0]
    told = (summary or "")[:LONGEST_SUMMARY].translate(_TYPOGRAPHY)
    return tuple(split(f"{action} {entity_type or ''} {thing} {actor_id or ''} {told}"))


def names_of(activity: StoredActivity) -> frozenset[str]:
    """What can be found as a word although it may hold signs: it stands in the index as it is."""
    names = (activity.request_id, activity.session_id, activity.trace_id, *(activity.changed or ()))
    flags = (
        f":{word}"
        for word, usual in ((activity.category, "data"), (activity.outcome, "success"), (activity.severity, "info"))
        if word != usual
    )
    return frozenset(name for name in (*names, *flags) if name)


def variants(word: str) -> tuple[str, ...]:
    """How a word may be written in the store: in lower case, capitalized, in capitals, each composed and decomposed.

    An ASCII word has one way, since those letters are lowered on both sides.
    """
    if word.isascii():
        return (word,)
    written = (unicodedata.normalize(form, each) for each in _cases(word) for form in ("NFC", "NFD"))
    return tuple(
        dict.fromkeys(each.translate(_LOWER) for each in (word, *written) if split(each) == [each.translate(_LOWER)])
    )


def _cases(word: str) -> Iterable[str]:
    return word, word.capitalize(), word.upper()
