"""Asking the lake: DuckDB over the files of the days that matter, newest first, and no further than a page needs.

::

    days of the ledger ─▶ a few at a time ─▶ files whose statistics allow it ─▶ DuckDB: the first of what fits, in order
                                                                                 └─▶ where that is not exact: matches()
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.lake.compile import Asked, compile_query
from afterwrite.lake.rows import activity_of, microseconds
from afterwrite.lake.table import COLUMNS, File, Lake, midnight, missing
from afterwrite.search.query import Query
from afterwrite.search.windows import FIRST_ID, LAST_ID, TICK, Place
from afterwrite.store.reader import StoredActivity

Fits = Callable[[StoredActivity], bool]
# So many rows' days are asked at once, at first and at most.
_FIRST_ROWS, _MOST_ROWS = 2_000_000, 64_000_000
# Where DuckDB cannot say for certain, so many rows are read to be looked at, at first and at most.
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


class _Stopped(Exception):  # noqa: N818 - it ends no one's work but our own
    """Somebody said stop."""


class _Progress(msgspec.Struct):
    """What was found so far, and where all of it was looked at."""

    found: list[StoredActivity]
    looked: Place | None = None


class Engine:
    """DuckDB over a lake. Close it, or use it in a ``with``; another thread may ``interrupt`` it."""

    def __init__(self, lake: Lake, *, memory: str = "1GB", threads: int | None = None) -> None:
        try:
            import duckdb
        except ImportError as error:
            missing(error)
        self.lake = lake
        self._duckdb: Any = duckdb
        config: dict[str, Any] = {
            "memory_limit": memory,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            # Beyond the memory it sorts in here; made when it is needed.
            "temp_directory": str(Path(tempfile.gettempdir()) / "afterwrite-duckdb"),
        }
        if threads is not None:
            config["threads"] = threads
        self._connection: Any = cast("Any", duckdb).connect(":memory:", config=config)
        self._connection.execute("set TimeZone = 'UTC'")
        self._stop = threading.Event()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its memory."""
        self._connection.close()

    def interrupt(self) -> None:
        """End what it is asked just now, as soon as it may be: TimeUpError there, with what was found."""
        self._stop.set()
        self._connection.interrupt()

    def resume(self) -> None:
        """Let it be asked again."""
        self._stop.clear()

    def find(
        self, query: Query, days: Sequence[date], between: Between, count: int, *, newer: bool = False
    ) -> list[StoredActivity]:
        """The first ``count`` of these days that fit, from the newest on (``newer``: from the oldest on)."""
        asked = compile_query(query)
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
        except _Stopped:
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
        """Of one group. What DuckDB cannot say for certain is read on until enough of it fits."""
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
        params: dict[str, object] = {**asked.params, "most": count}
        bounds: list[str] = []
        for name, sign, place in (("low", ">", between.low), ("high", "<", between.high)):
            if place is not None:
                params |= {f"{name}_at": microseconds(place.occurred_at), f"{name}_id": place.id}
                moment = f"make_timestamptz(${name}_at::bigint)"
                bounds.append(
                    f"a.occurred_at {sign}= {moment} and (a.occurred_at {sign} {moment} or a.id {sign} ${name}_id)"
                )
        where = " and ".join((*bounds, f"({asked.where})"))
        order = "asc" if newer else "desc"
        with self.source(days, files, params) as name:
            rows = self.rows(
                f"select {_SELECTED} from (select * from {name} a where {where}"  # noqa: S608 - parameters only
                f" order by a.occurred_at {order}, a.id {order} limit $most) a"
                f" order by a.occurred_at {order}, a.id {order}",
                params,
            )
        return [activity_of(row) for row in rows]

    def source(self, days: Sequence[date], files: Sequence[File], params: dict[str, object]) -> _Source:
        """What to select from: files of a folder, or an Arrow data set over deltalake's object store."""
        return _Source(self, days, files, params)

    def rows(self, query: str, params: dict[str, object]) -> list[dict[str, Any]]:
        """What a query gives, by column."""
        if self._stop.is_set():
            raise _Stopped
        try:
            cursor = self._connection.execute(query, params)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except self._duckdb.Error as error:
            if self._stop.is_set():
                raise _Stopped from error
            raise AfterwriteError(
                f"DuckDB could not read the lake at {self.lake.url}: {' '.join(str(error).split())[:500]}",
                remedy="run it again; where a file is gone, see what was vacuumed or deleted there",
            ) from error

    def arrow(self, query: str, params: dict[str, object]) -> Any:
        """What a query gives, as a reader of Arrow batches."""
        return self._connection.sql(query, params=params).to_arrow_reader(20_000)

    def register(self, name: str, dataset: Any) -> None:
        """Give an Arrow data set a name to select from."""
        self._connection.register(name, dataset)

    def forget(self, name: str) -> None:
        """Take the name away."""
        self._connection.unregister(name)


class _Source:
    """Where to select from, for as long as it is open."""

    def __init__(self, engine: Engine, days: Sequence[date], files: Sequence[File], params: dict[str, object]) -> None:
        self._engine, self._days, self._files, self._params = engine, days, files, params
        self._named = False

    def __enter__(self) -> str:
        lake = self._engine.lake
        if lake.local:
            self._params["files"] = [lake.place(file) for file in self._files]
            return "read_parquet($files, hive_partitioning = false)"
        self._engine.register("afterwrite_days", lake.dataset(self._days))
        self._named = True
        return "afterwrite_days"

    def __exit__(self, *_: object) -> None:
        if self._named:
            self._engine.forget("afterwrite_days")


_SELECTED = ", ".join(
    "epoch_us(a.occurred_at) as occurred_at" if name == "occurred_at" else f'a."{name}"' for name in COLUMNS
)


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
