"""What a query finds, as lines, cells or columns: streamed oldest first, as of one position of the feed.

::

    Query ─find─▶ pages along the keys ─▶ Form (jsonl | csv | parquet) ─▶ write(bytes)      no file, no more than a page
                                                                └──────▶ count and sha256 for the manifest

A file is made under another name, flushed, and renamed: under its own name it is whole, or not there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, assert_never, cast

import msgspec

from afterwrite import __version__
from afterwrite.errors import AfterwriteError, UsageError
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database
from afterwrite.search.find import find
from afterwrite.search.query import Query
from afterwrite.search.windows import Place
from afterwrite.store.reader import StoredActivity, as_json, read_position
from afterwrite.store.writer import read_identity

COLUMNS = StoredActivity.__struct_fields__
"""What an export tells of each activity: the names that ``tail --json`` and the API have."""

_PAGE_ROWS = 1_000
_FIRST = Place(datetime(1, 1, 2, tzinfo=UTC), "00000000-0000-0000-0000-000000000000")
_JSONS = ("before", "after", "metadata")
_PART = ".part"
MANIFEST = ".manifest.json"


class Format(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export held. ``as_of`` is the feed's position that it shows the store at, ``store`` which one that is."""

    query: str
    format: Format
    rows: int
    bytes: int
    sha256: str
    as_of: int
    as_of_at: datetime
    first_at: datetime | None
    last_at: datetime | None
    store: str
    columns: tuple[str, ...] = COLUMNS
    afterwrite: str = __version__
    schema_version: int = 1


Write = Callable[[bytes], Awaitable[None]]
OnPage = Callable[[int], None]


def _no_page(rows: int) -> None:
    """Nobody asked how it goes."""


async def export(
    db: Database,
    query: Query,
    form: Format,
    write: Write,
    *,
    raw_cells: bool = False,
    on_page: OnPage = _no_page,
) -> Exported:
    """Write what a query finds, oldest first, a page at a time; what comes meanwhile is left out.

    ``write`` takes the bytes as they are made. ``raw_cells`` leaves CSV cells as they are that a spreadsheet would take
    for formulas; otherwise an apostrophe stands before them. Raises UsageError where the format needs what is not
    installed.
    """
    as_of = await read_position(db)
    at = datetime.now(UTC)
    writer = _form(form, raw_cells=raw_cells)
    digest = hashlib.sha256()
    size = rows = 0
    first_at: datetime | None = None
    last_at: datetime | None = None

    async def put(data: bytes) -> None:
        nonlocal size
        if data:
            digest.update(data)
            size += len(data)
            await write(data)

    await put(writer.begin())
    async for page in read_pages(db, query, as_of=as_of):
        failpoint("export.before_page")
        await put(writer.page(page))
        rows += len(page)
        first_at = first_at or page[0].occurred_at
        last_at = page[-1].occurred_at
        on_page(rows)
    await put(writer.end())
    return Exported(
        query=str(query),
        format=form,
        rows=rows,
        bytes=size,
        sha256=digest.hexdigest(),
        as_of=as_of,
        as_of_at=at,
        first_at=first_at,
        last_at=last_at,
        store=await read_identity(db),
    )


async def read_pages(db: Database, query: Query, *, as_of: int) -> AsyncGenerator[list[StoredActivity]]:
    """What a query finds of batches up to a position, oldest first: by time, then by id."""
    place: Place | None = _FIRST
    while place is not None:
        page = await find(db, query, limit=_PAGE_ROWS, newer_than=place)
        items = [each for each in reversed(page.items) if each.position <= as_of]
        if items:
            yield items
        place = page.newer


async def export_file(
    db: Database,
    query: Query,
    form: Format,
    path: Path,
    *,
    manifest: bool = True,
    raw_cells: bool = False,
    on_page: OnPage = _no_page,
) -> Exported:
    """The same into a file, which is whole or not there, with its manifest (``FILE.manifest.json``) beside it.

    Raises UsageError for what is there and no file: a device or a pipe would be put out of the way.
    """
    path = _file_at(path)
    part = path.with_name(path.name + _PART)
    try:
        part.unlink(missing_ok=True)  # whoever else may write into the folder has laid none of his own there
        with part.open("xb") as file:

            async def write(data: bytes) -> None:
                file.write(data)

            exported = await export(db, query, form, write, raw_cells=raw_cells, on_page=on_page)
            file.flush()
            os.fsync(file.fileno())
        failpoint("export.before_rename")
        part.replace(path)
        failpoint("export.after_rename")
        if manifest:
            _write_whole(
                path.with_name(path.name + MANIFEST), msgspec.json.format(msgspec.json.encode(exported)) + b"\n"
            )
        _flush_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise AfterwriteError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="name a file in a folder with room, or mend that",
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return exported


def _file_at(path: Path) -> Path:
    """The file that is written under this name, behind a link too."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file", remedy="name one; without one it goes to stdout")
    return path.resolve() if path.is_symlink() else path


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + _PART)
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _flush_folder(folder: Path) -> None:
    """A rename lasts when its folder is flushed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- forms ------------------------------------------------------------------------------------------------------------


class _Form(Protocol):
    """Makes bytes of pages."""

    def begin(self) -> bytes: ...

    def page(self, activities: Sequence[StoredActivity]) -> bytes: ...

    def end(self) -> bytes: ...


def _form(form: Format, *, raw_cells: bool) -> _Form:
    match form:
        case Format.JSONL:
            return _Lines()
        case Format.CSV:
            return _Cells(raw=raw_cells)
        case Format.PARQUET:
            return _Columns()
        case _ as never:
            assert_never(never)


def to_json(activity: StoredActivity) -> dict[str, object]:
    """An activity as ``tail --json`` and the API give it, on one line when it is encoded."""
    values = as_json(activity)
    for name in _JSONS:
        text: str | None = getattr(activity, name)
        if text is not None and ("\n" in text or "\r" in text):
            # Outside of strings, where JSON has them escaped, a line's end is but a blank.
            values[name] = msgspec.Raw(text.replace("\n", " ").replace("\r", " ").encode())
    return values


class _Lines:
    """One JSON object a line."""

    def begin(self) -> bytes:
        return b""

    def page(self, activities: Sequence[StoredActivity]) -> bytes:
        return b"".join([msgspec.json.encode(to_json(each)) + b"\n" for each in activities])

    def end(self) -> bytes:
        return b""


# What makes a spreadsheet compute (their full-width forms as well), or leaves a cell for the next one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class _Cells:
    """RFC 4180: a header, CRLF, quotes doubled; UTF-8."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw

    def begin(self) -> bytes:
        return self._rows([COLUMNS])

    def page(self, activities: Sequence[StoredActivity]) -> bytes:
        return self._rows([[self._cell(getattr(each, name)) for name in COLUMNS] for each in activities])

    def end(self) -> bytes:
        return b""

    def _rows(self, rows: Sequence[Sequence[str]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerows(rows)
        return text.getvalue().encode()

    def _cell(self, value: object) -> str:
        match value:
            case None:
                return ""
            case datetime():
                return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
            case tuple():
                text = msgspec.json.encode(cast("object", value)).decode()
            case int() | float() if type(value) in (int, float):
                return str(value)
            case _:
                text = str(value)
        return f"'{text}" if not self._raw and text.startswith(_FORMULA) else text


class _Buffer(io.RawIOBase):
    """A file that only keeps what was not taken from it yet."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts = []
        return data


_PARQUET_ROWS = 20_000


class _Columns:
    """Parquet with a type for each column; a row group of some thousand activities at a time."""

    def __init__(self) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UsageError(
                "pyarrow, which writes Parquet, is not installed here", remedy="pip install 'afterwrite[parquet]'"
            ) from error
        self._pa: Any = pa
        self._schema = _parquet_schema(pa)
        self._buffer = _Buffer()
        self._writer: Any = cast("Any", pq).ParquetWriter(self._buffer, self._schema, compression="zstd")
        self._waiting: list[StoredActivity] = []

    def begin(self) -> bytes:
        return self._buffer.take()

    def page(self, activities: Sequence[StoredActivity]) -> bytes:
        self._waiting += activities
        if len(self._waiting) >= _PARQUET_ROWS:
            self._put()
        return self._buffer.take()

    def end(self) -> bytes:
        if self._waiting:
            self._put()
        self._writer.close()
        return self._buffer.take()

    def _put(self) -> None:
        columns = {name: [_plain(getattr(each, name)) for each in self._waiting] for name in COLUMNS}
        self._writer.write_table(self._pa.table(columns, schema=self._schema))
        self._waiting = []


def _plain(value: object) -> object:
    """As pyarrow takes it: enums and places in the WAL as text."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, int) and type(value) not in (int, bool):
        return str(value)
    return value


def _parquet_schema(pa: Any) -> Any:
    types = {
        "position": pa.int64(),
        "batch_id": pa.int64(),
        "xid": pa.int64(),
        "ordinal": pa.int32(),
        "occurred_at": pa.timestamp("us", tz="UTC"),
        "duration_ms": pa.float64(),
        "changed": pa.list_(pa.string()),
    }
    words = ("source", "kind", "category", "action", "outcome", "severity", "entity_type", "actor_type", "relation",
             "operation")  # fmt: skip
    types |= {name: pa.dictionary(pa.int32(), pa.string()) for name in words}
    return pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
