"""Pages of activity, newest first, and the places between them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from afterwrite.store.reader import StoredActivity


class Place(msgspec.Struct, frozen=True):
    """Where an activity stands in the order of the store: by time, then by id."""

    occurred_at: datetime
    id: str


class Page(msgspec.Struct, frozen=True):
    """Some activities, newest first. ``older`` and ``newer`` are the places to go on from; None: nothing is there."""

    items: tuple[StoredActivity, ...]
    older: Place | None
    newer: Place | None
