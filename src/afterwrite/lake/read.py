"""Asking the lake: an engine over the files of the days that matter, newest first, and no further than a page needs.

::

    days of the ledger ─▶ a few at a time ─▶ files whose statistics allow it ─▶ the first of what fits, in order: Engine
                                                                                 └─▶ where that is not exact: matches()

The engines are DuckDB in this process (``duck.py``) and Spark on many machines (``spark.py``). Which days and which
files are read, and what is decided here of what they find, is the same for both.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import ClassVar, Self

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.lake.compile import Asked, Dialect, compile_query
from afterwrite.lake.rows import microseconds
from afterwrite.lake.table import File, Lake, midnight
from afterwrite.search.query import Query
from afterwrite.search.windows import FIRST_ID, LAST_ID, TICK, Place
from afterwrite.store.reader import StoredActivity

Fits = Callable[[StoredActivity], bool]
# So many rows' days are asked at once, at first and at most.
_FIRST_ROWS, _MOST_ROWS = 2_000_000, 64_000_000
# Where an engine cannot say for certain, so many rows are read to be looked at, at first and at most.
_FEWEST, _MOST_READ = 64, 20_000


class Between(msgspec.Struct, frozen=True):
    """What lies between two places, neither of them in it; None: without an end."""

    low: Place | None = None
    high: Place | None = None


class TimeUpError(AfterwriteError):
    """Asking was interrupted. ``found`` is all that fits up to the place ``looked``; None: nothing was looked at."""

    def __init__(self, found: list[StoredActivity], looked: Place | None) -> None:
        super().__init__("the lake was not looked through before the time was up", remedy="ask for a shorter time")
        self.found, self.looked = found, looked


class Stopped(Exception):  # noqa: N818 - it ends no one's work but our own
    """Somebody said stop."""


class _Progress(msgspec.Struct):
    """What was found so far, and where all of it was looked at."""

    found: list[StoredActivity]
    looked: Place | None = None


class Engine(ABC):
    """What asks a lake. Close it, or use it in a ``with``; another thread may ``interrupt`` it."""

    dialect: ClassVar[Dialect]

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""

    @abstractmethod
    def read(
        self,
        days: Sequence[date],
        files: Sequence[File],
        where: str,
        params: dict[str, object],
        count: int,
        *,
        newer: bool,
    ) -> list[StoredActivity]:
        """The first ``count`` rows ``a`` of these files, all that these days have, for which the condition holds."""

    @abstractmethod
    def break_off(self) -> None:
        """End what runs at the moment: there ``Stopped`` is raised, now that it was interrupted."""

    def interrupt(self) -> None:
        """End what it is asked just now, as soon as it may be: TimeUpError there, with what was found."""
        self._stop.set()
        self.break_off()

    @property
    def interrupted(self) -> bool:
        """Whether somebody said stop."""
        return self._stop.is_set()

    def resume(self) -> None:
        """Let it be asked again."""
        self._stop.clear()

    def find(
        self, query: Query, days: Sequence[date], between: Between, count: int, *, newer: bool = False
    ) -> list[StoredActivity]:
        """The first ``count`` of these days that fit, from the newest on (``newer``: from the oldest on)."""
        asked = compile_query(query, self.dialect)
        since, until = query.since, query.until
        chosen = [
            day
            for day in days
            if (until is None or midnight(day) < until) and (since is None or midnight(day + timedelta(days=1)) > since)
        ]
        return self.ask(asked, query.matches, chosen, between, count, newer=newer)

    def ask(
        self, asked: Asked, fits: Fits, days: Sequence[date], between: Between, count: int, *, newer: bool = False
    ) -> list[StoredActivity]:
        """The same for a condition; ``fits`` is asked where that is not exact. Raises TimeUpError when interrupted."""
        done = _Progress([])
        try:
            for group, files in self._groups(days, asked, between, newer=newer):
                self._walk(asked, fits, group, files, between, count, done, newer=newer)
                if len(done.found) >= count:
                    break
                done.looked = _edge(group[-1], newer=newer)
        except Stopped:
            raise TimeUpError(done.found, done.looked) from None
        return done.found

    def _groups(
        self, days: Sequence[date], asked: Asked, between: Between, *, newer: bool
    ) -> Iterator[tuple[list[date], list[File]]]:
        """The days in their order, few at first, with those of their files that may hold something."""
        wanted = sorted((day for day in days if _touches(day, between)), reverse=not newer)
        if not wanted:
            return
        by_day: dict[date, list[File]] = {}
        for file in self.lake.files(wanted):
            if all(any(file.may_hold(name, value) for value in values) for name, values in asked.equal.items()):
                by_day.setdefault(file.day, []).append(file)
        most = _FIRST_ROWS
        group: list[date] = []
        files: list[File] = []
        rows = 0
        for day in wanted:
            if day not in by_day:
                continue
            group.append(day)
            files += by_day[day]
            rows += sum(file.rows for file in by_day[day])
            if rows >= most:
                yield group, files
                group, files, rows = [], [], 0
                most = min(_MOST_ROWS, most * 4)
        if group:
            yield group, files

    def _walk(
        self,
        asked: Asked,
        fits: Fits,
        days: Sequence[date],
        files: Sequence[File],
        between: Between,
        count: int,
        done: _Progress,
        *,
        newer: bool,
    ) -> None:
        """Of one group. What the engine cannot say for certain is read on until enough of it fits."""
        if asked.exact:
            done.found += self._read(asked, days, files, between, count - len(done.found), newer=newer)
            return
        many = max(_FEWEST, 2 * count)
        while True:
            read = self._read(asked, days, files, between, many, newer=newer)
            done.found = [*done.found, *filter(fits, read)][:count]
            if len(done.found) >= count or len(read) < many:
                return
            last = done.looked = Place(read[-1].occurred_at, read[-1].id)
            between = Between(last, between.high) if newer else Between(between.low, last)
            many = min(_MOST_READ, many * 4)

    def _read(
        self,
        asked: Asked,
        days: Sequence[date],
        files: Sequence[File],
        between: Between,
        count: int,
        *,
        newer: bool,
    ) -> list[StoredActivity]:
        params = dict(asked.params)
        bounds: list[str] = []
        for name, sign, place in (("low", ">", between.low), ("high", "<", between.high)):
            if place is not None:
                params |= {f"{name}_at": microseconds(place.occurred_at), f"{name}_id": place.id}
                moment = self.dialect.moment.format(f"${name}_at")
                bounds.append(
                    f"a.occurred_at {sign}= {moment} and (a.occurred_at {sign} {moment} or a.id {sign} ${name}_id)"
                )
        where = " and ".join((*bounds, f"({asked.where})"))
        return self.read(days, files, where, params, count, newer=newer)


Open = Callable[[Lake], Engine]
"""Makes the engine by which a lake is asked."""


def _edge(day: date, *, newer: bool) -> Place:
    """Where all of a day, and of those before it on the way, was looked at."""
    return Place(midnight(day + timedelta(days=1)) - TICK, LAST_ID) if newer else Place(midnight(day), FIRST_ID)


def _touches(day: date, between: Between) -> bool:
    def beyond(place: Place | None) -> date | None:
        return None if place is None else _day_of(place.occurred_at)

    low, high = beyond(between.low), beyond(between.high)
    return (low is None or day >= low) and (high is None or day <= high)


def _day_of(moment: datetime) -> date:
    return moment.astimezone(UTC).date() if date.min < moment.date() < date.max else moment.date()
