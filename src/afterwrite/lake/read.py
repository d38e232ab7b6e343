"""Asking the lake: an engine over the files of the days that matter, newest first, and no further than a page needs.

::

    days of the ledger ─▶ a few at a time ─▶ files whose statistics allow it ─▶ the first of what fits, in order: Engine
                                                                                 └─▶ where that is not exact: matches()

The engines are DuckDB in this process (``duck.py``) and Spark on many machines (``spark.py``). Which days and which
files are read, and what is decided here of what they find, is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import ClassVar, Self

import msgspec

from afterwrite.lake.compile import Asked, Dialect, compile_query
from afterwrite.lake.rows import microseconds
from afterwrite.lake.table import File, Lake, midnight
from afterwrite.search.query import Query
from afterwrite.search.windows import Place
from afterwrite.store.reader import StoredActivity

Fits = Callable[[StoredActivity], bool]
# So many rows' days are asked at once, at first and at most.
_FIRST_ROWS, _MOST_ROWS = 2_000_000, 64_000_000
_FEWEST = 64


class Between(msgspec.Struct, frozen=True):
    """What lies between two places, neither of them in it; None: without an end."""

    low: Place | None = None
    high: Place | None = None


class Engine(ABC):
    """What asks a lake. Close it, or use it in a ``with``."""

    dialect: ClassVar[Dialect]

    def __init__(self, lake: Lake) -> None:
        self.lake = lake

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
        """The same for a condition; ``fits`` is asked where that is not exact."""
        found: list[StoredActivity] = []
        for group, files in self._groups(days, asked, between, newer=newer):
            found += self._walk(asked, fits, group, files, between, count - len(found), newer=newer)
            if len(found) >= count:
                break
        return found

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
        *,
        newer: bool,
    ) -> list[StoredActivity]:
        """Of one group. What the engine cannot say for certain is read on until enough of it fits."""
        if asked.exact:
            return self._read(asked, days, files, between, count, newer=newer)
        found: list[StoredActivity] = []
        many = max(_FEWEST, 2 * count)
        while True:
            read = self._read(asked, days, files, between, many, newer=newer)
            found += filter(fits, read)
            if len(found) >= count or len(read) < many:
                return found[:count]
            last = Place(read[-1].occurred_at, read[-1].id)
            between = Between(last, between.high) if newer else Between(between.low, last)
            many *= 4

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


def _touches(day: date, between: Between) -> bool:
    def beyond(place: Place | None) -> date | None:
        return None if place is None else _day_of(place.occurred_at)

    low, high = beyond(between.low), beyond(between.high)
    return (low is None or day >= low) and (high is None or day <= high)


def _day_of(moment: datetime) -> date:
    return moment.astimezone(UTC).date() if date.min < moment.date() < date.max else moment.date()
