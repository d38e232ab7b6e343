"""The Delta table behind the store: its columns, its files, and what may be skipped of them.

::

    lake_url ──▶ _delta_log ──▶ files of a day, each with the least and the greatest of its columns ──▶ DuckDB

One row is one activity, with the names that an export has; ids, places in the WAL and JSON are text, so that any engine
reads them. A day (UTC) is a partition. The log is read by deltalake, which brings its own object store: DuckDB gets the
files themselves where they lie in a folder, and an Arrow data set over that object store otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec

from afterwrite.errors import AfterwriteError, Refused, UsageError
from afterwrite.store.reader import StoredActivity

COLUMNS = StoredActivity.__struct_fields__
# Of these the log keeps the least and the greatest value of each file.
_STATISTICS = (
    "part", "occurred_at", "id", "tenant_id", "entity_type", "entity_id", "actor_id", "action", "category", "kind",
    "source", "relation", "request_id",
)  # fmt: skip
# A file says without being read that a value of these is not in it.
_BLOOMED = ("id", "entity_id", "actor_id", "request_id", "caused_by")
# A writer holds a group of rows until it is whole, and a reader reads one at once: wide rows make small groups.
_GROUP_ROWS, _GROUP_BYTES = 100_000, 64 << 20
_FILE_BYTES = 128 << 20
_APPLICATION = "afterwrite"
_LOG = "_delta_log"
# What a reader must know that reads the files which the log names, and nothing beside them.
_HARMLESS_FEATURES = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"})
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the lake: of which day, how much, and between which values its columns lie."""

    path: str
    day: date
    rows: int
    bytes: int
    least: Mapping[str, Any]
    greatest: Mapping[str, Any]

    def may_hold(self, column: str, value: object) -> bool:
        """Whether a row with this value can be in it."""
        least, greatest = self.least.get(column), self.greatest.get(column)
        if least is None or greatest is None:
            # Nothing is said of the column: not of a long text, and not where it is null throughout.
            return True
        return bool(least <= value <= greatest) or (isinstance(greatest, str) and str(value).startswith(greatest))


def need() -> tuple[Any, Any]:
    """deltalake and pyarrow; raises UsageError where they are not installed."""
    try:
        import deltalake
        import pyarrow as pa
    except ImportError as error:
        missing(error)
    return cast("Any", deltalake), cast("Any", pa)


def missing(error: ImportError, extra: str = "lake") -> NoReturn:
    """Say what to install."""
    raise UsageError(
        f"{error.name or 'a library'}, which the lake needs, is not installed here",
        remedy=f"pip install 'afterwrite[{extra}]'",
    ) from error


class UnreadableError(AfterwriteError):
    """A file of the lake is gone or broken, or its storage is away."""


class Lake:
    """A Delta table at a place; ``options`` are what its object store is opened with."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        self._delta, self._pa = need()
        self.url = url if "://" in url else str(Path(url).expanduser().absolute())
        self._options = dict(options or {})
        self._table: Any = None

    @property
    def local(self) -> bool:
        """Whether its files lie in a folder of this machine."""
        return "://" not in self.url or self.url.startswith("file://")

    def schema(self) -> Any:
        """Its columns, as Arrow has them."""
        pa = self._pa
        types = {
            "occurred_at": pa.timestamp("us", tz="UTC"),
            "position": pa.int64(),
            "batch_id": pa.int64(),
            "xid": pa.int64(),
            "ordinal": pa.int32(),
            "duration_ms": pa.float64(),
            "changed": pa.list_(pa.string()),
        }
        return pa.schema(
            [("day", pa.date32()), ("part", pa.int32()), *((name, types.get(name, pa.string())) for name in COLUMNS)]
        )

    def open(self, *, make: str | None = None) -> bool:
        """Read the newest state of its log; whether it is there. ``make`` lays it where it is not, for this store."""
        with self._translated():
            if self._table is not None:
                self._table.update_incremental()
                self._need_plain()
                return True
            if self._delta.DeltaTable.is_deltatable(self.url, self._options or None):
                self._table = self._delta.DeltaTable(self.url, storage_options=self._options or None)
                self._compare()
                return True
            if make is None:
                return False
            self.need_empty()
            if self.local:
                Path(self.url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
            self._table = self._delta.DeltaTable.create(
                self.url,
                self.schema(),
                partition_by=["day"],
                name="activity",
                description="Activity that left the store of afterwrite, a partition a day (UTC).",
                configuration={
                    "delta.dataSkippingStatsColumns": ",".join(_STATISTICS),
                    "delta.appendOnly": "false",
                },
                storage_options=self._options or None,
                commit_properties=self._delta.CommitProperties(
                    app_transactions=[self._delta.Transaction(f"{_APPLICATION}/{make}", 1)]
                ),
            )
        return True

    def is_of(self, store: str) -> bool:
        """Whether it was laid for this store."""
        return self._table.transaction_version(f"{_APPLICATION}/{store}") is not None

    def need_empty(self) -> None:
        """Raises UsageError where other files are: laid among them, it would have them vacuumed with its own."""
        with self._translated():
            strange = self._others()
        if strange is not None:
            raise UsageError(
                f"there is something at {self.url} that is no lake: {strange}",
                remedy="name a place as lake_url that is empty or not there: vacuuming deletes what is not the lake's",
            )

    def _others(self) -> str | None:
        if self.local:
            root = Path(self.url.removeprefix("file://"))
            files = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
            return next((str(each) for each in files if _LOG not in each.relative_to(root).parts[:1]), None)
        from deltalake.fs import DeltaStorageHandler
        from pyarrow import fs

        places: Any = cast("Any", fs).PyFileSystem(cast("Any", DeltaStorageHandler)(self.url, self._options or None))
        found: list[Any] = places.get_file_info(cast("Any", fs).FileSelector("", recursive=False, allow_not_found=True))
        return next((str(each.path) for each in found if not str(each.path).lstrip("/").startswith(_LOG)), None)

    @contextmanager
    def _translated(self, kind: type[AfterwriteError] = AfterwriteError) -> Generator[None]:
        """What the object store, the log or a file says, as one of ours."""
        try:
            yield
        except (self._delta.exceptions.DeltaError, OSError, self._pa.ArrowException) as error:
            said = " ".join(_COLOURS.sub("", str(error)).replace("↳", ":").split())
            raise kind(
                f"the lake at {self.url} cannot be used: {said[:500]}",
                remedy="see that lake_url and lake_options name it, and that it may be read and written",
            ) from error

    def _compare(self) -> None:
        found = {field.name for field in self._table.schema().fields}
        if lacking := {"day", "part", *COLUMNS} - found:
            raise UsageError(
                f"the Delta table at {self.url} is none of afterwrite's: it has no {', '.join(sorted(lacking))}",
                remedy="name another place as lake_url",
            )
        self._need_plain()

    def _need_plain(self) -> None:
        """Refuse a table whose files do not say by themselves what is in it: the engines read nothing else."""
        protocol = self._table.protocol()
        asked: set[str] = set(protocol.reader_features or ())
        if self._table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            asked.add("columnMapping")
        if strange := asked - _HARMLESS_FEATURES:
            raise Refused(
                f"the Delta table at {self.url} was given {', '.join(sorted(strange))} by another program:"
                " read without that, its files would say what is no longer so",
                remedy="have that program take the feature back (ALTER TABLE … DROP FEATURE), or restore the version"
                " before",
            )

    @property
    def identity(self) -> str:
        """Which table this is: the same for as long as it lives."""
        return str(self._table.metadata().id)

    @property
    def version(self) -> int:
        """The version of the table that was read."""
        return int(self._table.version())

    def committed(self, store: str, day: date) -> int:
        """The last part of a store's day that the table's own log says is in it; 0: none."""
        return int(self._table.transaction_version(_transaction(store, day)) or 0)

    def append(self, store: str, day: date, part: int, batches: Iterable[Any], *, width: int) -> int:
        """Commit a part of a day as these Arrow batches have it, once and for all; the version that holds it.

        Constant memory: rows are written as they come, in their order, in groups after the ``width`` of a row in bytes.
        """
        delta, pa = self._delta, self._pa
        properties = delta.CommitProperties(
            app_transactions=[delta.Transaction(_transaction(store, day), part)],
            custom_metadata={"afterwrite.day": day.isoformat(), "afterwrite.part": str(part)},
        )
        with self._translated():
            delta.write_deltalake(
                self._table,
                pa.RecordBatchReader.from_batches(self.schema(), batches),
                mode="append",
                writer_properties=self._properties(width),
                target_file_size=_FILE_BYTES,
                commit_properties=properties,
            )
            self._table.update_incremental()
        return self.version

    def _properties(self, width: int) -> Any:
        delta = self._delta
        rows = min(_GROUP_ROWS, 1 + _GROUP_BYTES // max(width, 1))
        bloom = delta.BloomFilterProperties(set_bloom_filter_enabled=True, fpp=0.01, ndv=rows)
        return delta.WriterProperties(
            compression="ZSTD",
            compression_level=3,
            max_row_group_size=rows,
            column_properties={name: delta.ColumnProperties(bloom_filter_properties=bloom) for name in _BLOOMED},
        )

    def files(self, days: Sequence[date] | None = None) -> list[File]:
        """Its files, of these days, as the log tells of them."""
        wanted = None if days is None else frozenset(days)
        actions: list[dict[str, Any]] = self._pa.table(self._table.get_add_actions(flatten=True)).to_pylist()
        return [
            File(
                path=action["path"],
                day=action["partition.day"],
                rows=action["num_records"] or 0,
                bytes=action["size_bytes"],
                least=_bounds(action, "min."),
                greatest=_bounds(action, "max."),
            )
            for action in actions
            if wanted is None or action["partition.day"] in wanted
        ]

    def place(self, file: File) -> str:
        """A file's own path, of a lake in a folder."""
        from urllib.parse import unquote

        root = self.url.removeprefix("file://")
        return str(Path(root) / unquote(file.path))

    def dataset(self, days: Sequence[date]) -> Any:
        """These days as an Arrow data set, read through the object store of deltalake."""
        chosen: Any = [("day", "in", [day.isoformat() for day in days])]
        with self._translated():
            return self._table.to_pyarrow_dataset(file_pruning_predicate=chosen)

    def batches(self, day: date, part: int | None, columns: Sequence[str]) -> Iterator[Any]:
        """What is in the files of a day, of one part of it, a stretch of rows at a time.

        Raises UnreadableError where a file is gone or broken.
        """
        import pyarrow.dataset as ds

        fields: Any = cast("Any", ds).field
        held = None if part is None else fields("part") == part
        with self._translated(UnreadableError):
            yield from self.dataset([day]).to_batches(
                columns=list(columns), filter=held, batch_size=20_000, batch_readahead=2, fragment_readahead=1
            )

    def compact(self, day: date) -> int:
        """Make few files of the many that a day has; how many went."""
        with self._translated():
            told: Any = self._table.optimize.compact(
                partition_filters=[("day", "=", day.isoformat())],
                target_size=_FILE_BYTES,
                writer_properties=self._properties(self._width(day)),
            )
            self._table.update_incremental()
        return int(told["numFilesRemoved"])

    def _width(self, day: date) -> int:
        """How many bytes a row of a day has in its files before they are compressed."""
        groups = [group for fragment in self.dataset([day]).get_fragments() for group in fragment.row_groups]
        return sum(group.total_byte_size for group in groups) // max(1, sum(group.num_rows for group in groups))

    def vacuum(self, hours: int) -> int:
        """Delete files that no version younger than so many hours has; how many went."""
        with self._translated():
            # "full": also what a run that was killed has written, and no version ever had.
            gone = self._table.vacuum(
                retention_hours=hours, dry_run=False, enforce_retention_duration=hours >= 168, full=True
            )
        return len(gone)

    def checkpoint(self) -> None:
        """Sum up the log, so that whoever opens the table reads one file and not a hundred."""
        with self._translated():
            self._table.create_checkpoint()


def need_version(lake: Lake, version: int) -> None:
    """Raises Refused where an open lake is older than what the ledger says is in it."""
    if lake.version < version:
        raise Refused(
            f"the lake at {lake.url} is at version {lake.version}, and the ledger tells of version {version}:"
            " it was set back, and lacks days that the store has no more",
            remedy="bring back the newer state of that place (a version of the storage, a later backup)",
        )


def _transaction(store: str, day: date) -> str:
    """The name under which Delta counts the parts of a day."""
    return f"{_APPLICATION}/{store}/{day.isoformat()}"


def _bounds(action: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name: value for name in _STATISTICS if (value := action.get(prefix + name)) is not None}


def midnight(day: date) -> datetime:
    """The first moment of a day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
