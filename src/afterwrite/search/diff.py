"""What an activity did to its row, field by field. Pure.

::

    before {"id": 7, "plan": "free"}  ┐
    after  {"id": 7, "plan": "pro"}   ├──diff()──▶ plan: changed, "free" → "pro"
    changed {plan}                    ┘
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from afterwrite.jsonb import read_members
from afterwrite.record import Kind, Operation
from afterwrite.store.reader import StoredActivity


class FieldKind(StrEnum):
    """What became of a field. ``unknown``: nobody can say whether it changed, or its value is not recorded."""

    SET = "set"
    CHANGED = "changed"
    REMOVED = "removed"
    UNKNOWN = "unknown"


class FieldChange(msgspec.Struct, frozen=True):
    """One field, before and after, as JSON; None: null, or nothing there, or (``unknown``) not recorded.

    ``unknown`` is said of two sorts of fields: of all that a row holds where the table keeps no old rows (``after`` is
    what it is since), and of one that is stored out of line and did not change (both None).
    """

    name: str
    before: msgspec.Raw | None
    after: msgspec.Raw | None
    kind: FieldKind


class Told(msgspec.Struct, frozen=True):
    """What capture says beside a change, in its metadata.

    ``unchanged``: columns that did not change, and whose values it does not bring; ``entity_was``: the id of the row
    before its key was changed; ``as_text``: columns whose values are kept as their text; ``unsure``: what of the change
    is; ``exact``: by column of the activity, the bytes of what could not be kept as it was.
    """

    unchanged: tuple[str, ...] = ()
    entity_was: str | None = None
    as_text: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    exact: dict[str, msgspec.Raw] = {}


_NOTHING = Told()


def read_told(activity: StoredActivity) -> Told:
    """What capture says beside a change; of anything else, nothing."""
    if activity.kind is not Kind.CHANGE or activity.metadata is None:
        return _NOTHING
    try:
        return msgspec.json.decode(activity.metadata, type=Told)
    except (msgspec.DecodeError, RecursionError):
        return _NOTHING


def read_fields(text: str | None) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, each as its JSON; none of null, and of what is no object."""
    return {} if text is None else read_members(text.encode())


def is_null(value: msgspec.Raw | None) -> bool:
    """Whether there is no value: to_jsonb(row) has null for both SQL's and JSON's."""
    return value is None or bytes(value) == b"null"


def diff(activity: StoredActivity) -> tuple[FieldChange, ...]:
    """What the activity set, changed and removed, in the order of the columns; () where it is about no row.

    What was null and is null is not told, and neither is what stayed the same.
    """
    before, after = read_fields(activity.before), read_fields(activity.after)
    if activity.kind is Kind.CHANGE and activity.operation is Operation.UPDATE:
        found = _of_update(activity, before, after)
    else:
        found = [_compare(name, before.get(name), after.get(name)) for name in dict.fromkeys((*after, *before))]
    return tuple(change for change in found if change is not None)


def _of_update(
    activity: StoredActivity, before: dict[str, msgspec.Raw], after: dict[str, msgspec.Raw]
) -> list[FieldChange | None]:
    unknown = [FieldChange(name, None, None, FieldKind.UNKNOWN) for name in read_told(activity).unchanged]
    if activity.changed is not None:
        # Of the whole old row capture has compared each column as PostgreSQL wrote it.
        return [_compare(name, before.get(name), after.get(name)) for name in activity.changed] + unknown
    # The old row is not known, but for its key where that was changed.
    return [
        _compare(name, before[name], value)
        if name in before
        else FieldChange(name, None, None if is_null(value) else value, FieldKind.UNKNOWN)
        for name, value in after.items()
    ] + unknown


def _compare(name: str, before: msgspec.Raw | None, after: msgspec.Raw | None) -> FieldChange | None:
    match is_null(before), is_null(after):
        case True, True:
            return None
        case True, False:
            return FieldChange(name, None, after, FieldKind.SET)
        case False, True:
            return FieldChange(name, before, None, FieldKind.REMOVED)
        case _:
            same = bytes(before or b"") == bytes(after or b"")
            return None if same else FieldChange(name, before, after, FieldKind.CHANGED)
