"""Asking the lake from one process: DuckDB, which reads the files of a folder itself and others through deltalake."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, cast

from afterwrite.errors import AfterwriteError
from afterwrite.lake.compile import DUCKDB
from afterwrite.lake.read import Engine, Stopped
from afterwrite.lake.rows import activity_of
from afterwrite.lake.table import COLUMNS, File, Lake, missing, need
from afterwrite.store.reader import StoredActivity


class DuckEngine(Engine):
    """DuckDB over a lake. Close it, or use it in a ``with``."""

    dialect = DUCKDB

    def __init__(self, lake: Lake, *, memory: str = "1GB", threads: int | None = None) -> None:
        super().__init__(lake)
        try:
            import duckdb
        except ImportError as error:
            missing(error)
        self._duckdb: Any = duckdb
        folder = tempfile.mkdtemp(prefix="afterwrite-duckdb-")
        self._tidy = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        config: dict[str, Any] = {
            "memory_limit": memory,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            # Beyond the memory it sorts in here, where nobody else may look.
            "temp_directory": folder,
        }
        if threads is not None:
            config["threads"] = threads
        self._connection: Any = cast("Any", duckdb).connect(":memory:", config=config)
        self._connection.execute("set TimeZone = 'UTC'")

    def close(self) -> None:
        """Let go of its memory, and of what it put aside."""
        self._connection.close()
        self._tidy()

    def break_off(self) -> None:
        """End what runs at the moment."""
        self._connection.interrupt()

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
        order = "asc" if newer else "desc"
        params = params | {"most": count}
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
        if self.interrupted:
            raise Stopped
        try:
            cursor = self._connection.execute(query, params)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except self._duckdb.Error as error:
            if self.interrupted:
                raise Stopped from error
            raise self._trouble(error) from error

    def _trouble(self, error: Exception) -> AfterwriteError:
        return AfterwriteError(
            f"DuckDB could not read the lake at {self.lake.url}: {' '.join(str(error).split())[:500]}",
            remedy="run it again; where a file is gone, see what was vacuumed or deleted there",
        )

    def arrow(self, query: str, params: dict[str, object]) -> Iterator[Any]:
        """What a query gives, as Arrow batches."""
        _, pa = need()
        try:
            yield from self._connection.sql(query, params=params).to_arrow_reader(20_000)
        except (self._duckdb.Error, pa.ArrowException) as error:
            raise self._trouble(error) from error

    def register(self, name: str, dataset: Any) -> None:
        """Give an Arrow data set a name to select from."""
        self._connection.register(name, dataset)

    def forget(self, name: str) -> None:
        """Take the name away."""
        self._connection.unregister(name)


def literally(path: str) -> str:
    """A path that DuckDB takes for that file and for no pattern."""
    return re.sub(r"([*?\[])", r"[\1]", path)


class _Source:
    """Where to select from, for as long as it is open."""

    def __init__(
        self, engine: DuckEngine, days: Sequence[date], files: Sequence[File], params: dict[str, object]
    ) -> None:
        self._engine, self._days, self._files, self._params = engine, days, files, params
        self._named = False

    def __enter__(self) -> str:
        lake = self._engine.lake
        if lake.local:
            self._params["files"] = [literally(lake.place(file)) for file in self._files]
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
