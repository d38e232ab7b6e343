"""Cursors: where a list goes on, sealed so that they fit the list they were made for, and nobody can make one up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import cast

import msgspec

from afterwrite.search.windows import Page, Place
from afterwrite.serve.problems import ProblemError
from afterwrite.serve.signing import ForgedError, Signer

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Direction(StrEnum):
    OLDER = "o"
    NEWER = "n"


class Start(msgspec.Struct, frozen=True):
    """Where a page begins: at one of these places, or (neither) at the newest."""

    older_than: Place | None = None
    newer_than: Place | None = None


def seal_place(signer: Signer, of: str, direction: Direction, place: Place | None) -> str | None:
    """The cursor of a list (``of`` says which: its path and what was asked) in a direction; None where nothing is."""
    if place is None:
        return None
    return signer.seal(f"cursor {of}", [direction.value, (place.occurred_at - _EPOCH) // _MICROSECOND, place.id])


def open_start(signer: Signer, of: str, cursor: str | None) -> Start:
    """Where this cursor goes on; raises ProblemError (400) for one that is no cursor of this list."""
    if cursor is None:
        return Start()
    try:
        direction, at, id = cast("tuple[str, int, str]", signer.open(f"cursor {of}", cursor))
    except ForgedError:
        raise ProblemError(
            400,
            "cursor",
            "this is no cursor of this list, or not with what is asked now",
            remedy="take `older` or `newer` of an answer as it is, with the same path and the same q",
        ) from None
    place = Place(_EPOCH + at * _MICROSECOND, id)
    return Start(older_than=place) if direction == Direction.OLDER.value else Start(newer_than=place)


def seal_page(signer: Signer, of: str, page: Page) -> tuple[str | None, str | None]:
    """The cursors to what is older and to what is newer than a page."""
    older = seal_place(signer, of, Direction.OLDER, page.older)
    return older, seal_place(signer, of, Direction.NEWER, page.newer)
