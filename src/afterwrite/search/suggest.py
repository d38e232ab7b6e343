"""What the word at the end of a query may become: keys, then values of the key, from what is stored.

Values come from the newest activity that fits the beginning: each found one is left out of the next question, so that
what is frequent does not hide the rest (a loose scan, made of searches). So whoever asks sees only what he may find.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime

import msgspec

from afterwrite.errors import UsageError
from afterwrite.postgres import Database
from afterwrite.record import Kind, Level, Operation, Outcome
from afterwrite.search.find import find
from afterwrite.search.query import COLUMNS, LONGEST_LINE, Exact, Key, Prefix, Query, Term, Thing, Value
from afterwrite.store.reader import StoredActivity


class Suggestion(msgspec.Struct, frozen=True):
    """Put ``text`` in the place of all from ``start`` on; ``hint`` says in a few words what it is."""

    text: str
    start: int
    hint: str | None = None


_HINTS: dict[str, str] = {
    "actor:": "who did it",
    "action:": "what was done: user.login, user.*",
    "entity:": "to what: TYPE or TYPE/ID",
    "category:": "of which kind of matter",
    "outcome:": "success or failure",
    "severity:": "how grave",
    "after:": "since: 2026-11-01, 2h, yesterday",
    "before:": "until: 2026-11-01, 2h, yesterday",
    "at:": "on that day, in that hour",
    "changed:": "which column",
    "table:": "in which table",
    "operation:": "insert, update, delete or truncate",
    "kind:": "change or event",
    "metadata.": "metadata.NAME:value",
    "before.": "what a column was: before.NAME:value",
    "after.": "what a column became: after.NAME:value",
    "tenant:": "at which tenant's",
    "actor_type:": "by what sort of actor",
    "source:": "of which database or application",
    "request:": "in which request",
    "session:": "in which session",
    "trace:": "in which trace",
    "ip:": "from which address or network: 10.0.0.0/8",
    "caused_by:": "what an activity led to",
    "id:": "the activity itself",
    "reason:": "why, as the context says",
}
_FIXED: dict[Key, tuple[str, ...]] = {
    Key.OUTCOME: tuple(Outcome),
    Key.SEVERITY: tuple(Level),
    Key.KIND: tuple(Kind),
    Key.OPERATION: tuple(Operation),
    Key.AFTER: ("1h", "24h", "7d", "30d", "today", "yesterday"),
    Key.BEFORE: ("1h", "24h", "7d", "30d", "today", "yesterday"),
    Key.AT: ("today", "yesterday"),
}
_TOLD = frozenset(COLUMNS) - {Key.ID, Key.CAUSED_BY} | {Key.ENTITY, Key.CHANGED}
_KEYED = re.compile(r"(-?)([A-Za-z_]+):(.*)$", re.DOTALL)
_PLAIN = re.compile(r'[^\s",*\\]+')
_ROUNDS, _ROWS, _SECONDS = 6, 100, 0.15


async def suggest(db: Database, prefix: str, *, limit: int = 10) -> list[Suggestion]:
    """How the line up to the cursor may go on, most likely first; nothing for a word of full text, or a long line."""
    if len(prefix) > LONGEST_LINE:
        return []
    start = _last_word(prefix)
    text = prefix[start:]
    keyed = _KEYED.match(text)
    if keyed is None:
        sign, begun = ("-", text[1:]) if text.startswith("-") else ("", text)
        names = [name for name in _HINTS if name.startswith(begun.lower())]
        return [Suggestion(f"{sign}{name}", start, _HINTS[name]) for name in names[:limit]]
    sign, name, values = keyed.groups()
    try:
        key = Key({"relation": "table"}.get(name.lower(), name.lower()))
    except ValueError:
        return []
    done, comma, begun = values.rpartition(",")
    begun = begun.removeprefix('"').removesuffix("*")
    head = f"{sign}{name}:{done}{comma}"
    if key in _FIXED:
        fixed = [value for value in _FIXED[key] if value.startswith(begun.lower())]
        return [Suggestion(head + value, start) for value in fixed[:limit]]
    if key not in _TOLD:
        return []
    found = await _values(db, key, begun.replace("\0", ""), limit)
    return [Suggestion(head + _written(value), start, f"{at:%Y-%m-%d %H:%M}") for value, at in found.items()]


def _last_word(line: str) -> int:
    """Where the word begins that the line ends in; blanks in quotes are part of it."""
    start, quoted, escaped = 0, False, False
    for at, char in enumerate(line):
        if char == '"' and not escaped:
            quoted = not quoted
        elif char.isspace() and not quoted:
            start = at + 1
        escaped = char == "\\" and quoted and not escaped
    return start


async def _values(db: Database, key: Key, begun: str, limit: int) -> dict[str, datetime]:
    """Values of the key that begin so, with when they were last seen."""
    found: dict[str, datetime] = {}
    until = time.monotonic() + _SECONDS
    wanted = _beginning(key, begun)
    for _ in range(_ROUNDS):
        known = tuple(_value(key, value) for value in found)
        terms = (wanted, Term(key, known, negated=True)) if known and key is not Key.CHANGED else (wanted,)
        try:
            page = await find(db, Query(terms), limit=_ROWS, seconds=max(0.01, until - time.monotonic()))
        except UsageError:
            break
        before = len(found)
        for activity in page.items:
            for value in _of(key, activity):
                if value.startswith(begun):
                    found.setdefault(value, activity.occurred_at)
        if len(found) >= limit or len(found) == before or time.monotonic() > until:
            break
    return dict(list(found.items())[:limit])


def _beginning(key: Key, begun: str) -> Term:
    if key is Key.ENTITY and "/" in begun:
        kind, _, number = begun.partition("/")
        return Term(key, (Thing(kind, number, prefix=True),))
    return Term(key, (Prefix(begun),))


def _value(key: Key, value: str) -> Value:
    if key is not Key.ENTITY:
        return Exact(value)
    kind, slash, number = value.partition("/")
    return Thing(kind, number) if slash else Thing(kind)


def _of(key: Key, activity: StoredActivity) -> Iterable[str]:
    if key is Key.CHANGED:
        return activity.changed or ()
    if key is not Key.ENTITY:
        value = getattr(activity, COLUMNS[key])
        return () if value is None else (str(value),)
    if activity.entity_type is None:
        return ()
    whole = () if activity.entity_id is None else (f"{activity.entity_type}/{activity.entity_id}",)
    return (activity.entity_type, *whole)


def _written(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
