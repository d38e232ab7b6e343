"""What a page shows of an activity: a sentence, a sign, links, who it was. Pure; static/row.js says the same in the
browser for what arrives by the feed, and a test holds the two together."""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

import msgspec

from afterwrite.record import Kind, Operation, Outcome
from afterwrite.store.reader import StoredActivity

_DONE = {
    Operation.INSERT: "Created",
    Operation.UPDATE: "Changed",
    Operation.DELETE: "Deleted",
    Operation.TRUNCATE: "Emptied",
}
_SHOWN_FIELDS = 4
_HUES = 8
# What a path can carry without a proxy or a browser making another path of it.
_PLAIN = re.compile(r"[A-Za-z0-9_~:@$,;=+!*'()-][A-Za-z0-9._~:@$,;=+!*'() -]*")
_BARE = re.compile(r'[^\s",*\\]+')


class ShownActivity(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a list, in words. ``sign`` is a class of the sheet and an icon's name; None is left out.

    ``from_lake``: its day has left the store.
    """

    activity: StoredActivity
    title: str
    href: str
    sign: str
    sign_says: str
    failed: bool
    action: str | None
    entity: str | None
    entity_href: str | None
    detail: str | None
    actor: str | None
    actor_href: str | None
    initials: str
    hue: int
    from_lake: bool = False


def show(activity: StoredActivity, *, from_lake: bool = False) -> ShownActivity:
    """An activity as a row of a list."""
    entity = entity_name(activity.entity_type, activity.entity_id)
    failed = activity.outcome is Outcome.FAILURE
    if activity.operation is not None:
        title = f"{_DONE[activity.operation]} {entity or activity.relation}"
    elif activity.summary:
        title = activity.summary
    else:
        title = activity.action
    sign = activity.operation.value if activity.operation is not None else activity.kind.value
    return ShownActivity(
        activity=activity,
        title=title,
        href=f"/activity/{activity.id}",
        sign="failure" if failed else sign,
        sign_says=f"{sign}, failed" if failed else sign,
        failed=failed,
        action=None if activity.action in (title, f"{activity.entity_type}.{sign}") else activity.action,
        entity=entity if entity and entity not in title else None,
        entity_href=entity_href(activity.entity_type, activity.entity_id),
        detail=_detail(activity),
        actor=activity.actor_id,
        actor_href=None if activity.actor_id is None else search_href(f"actor:{word(activity.actor_id)}"),
        initials=initials(activity.actor_id or ""),
        hue=hue(activity.actor_id or ""),
        from_lake=from_lake,
    )


def _detail(activity: StoredActivity) -> str | None:
    """What a change did, in brief: capture's own words behind the name of the row, which leave out what is secret."""
    if activity.kind is not Kind.CHANGE:
        return None
    _, _, told = (activity.summary or "").partition(": ")
    if told or not activity.changed:
        return told.replace(" -> ", " → ") or None
    shown = ", ".join(activity.changed[:_SHOWN_FIELDS])
    more = len(activity.changed) - _SHOWN_FIELDS
    return f"{shown} and {more} more" if more > 0 else shown


def entity_name(type: str | None, id: str | None) -> str | None:
    """``orders/17``, as the query language writes it."""
    if type is None:
        return None
    return type if id is None else f"{type}/{id}"


def entity_href(type: str | None, id: str | None) -> str | None:
    """The page of an entity; names that a path cannot carry go as parameters."""
    if not type or not id:
        return None
    if _PLAIN.fullmatch(type) and _PLAIN.fullmatch(id):
        return f"/entity/{quote(type, safe=':@')}/{quote(id, safe=':@')}"
    return f"/entity?{urlencode({'type': type, 'id': id})}"


def search_href(query: str, page: str = "/search") -> str:
    """The search for a line."""
    return f"{page}?{urlencode({'q': query})}" if query else page


def word(value: str) -> str:
    """A value as a line of the query language may hold it: quoted where it has to be."""
    if _BARE.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def initials(name: str) -> str:
    """Two letters for an actor's mark."""
    words = re.findall(r"[^\W_]+", name.partition("@")[0])
    if not words:
        return "·"
    if len(words) == 1:
        return words[0][:2]
    return words[0][0] + words[1][0]


def hue(name: str) -> int:
    """One of eight colours, always the same for a name."""
    value = 7
    for letter in name:
        value = (value * 31 + ord(letter)) & 0xFFFFFFFF
    return value % _HUES
