"""A tenant's or a subject's whole history, from both tiers, as Parquet with a manifest and checksums.

::

    FOLDER/store.parquet      what the store has, as of one position of its feed
    FOLDER/lake.parquet       what left it, as of one version of the table
    FOLDER/manifest.json      rows, bytes and sha256 of each, and what was asked: written last

Nothing leaves the store while the two are read, so that nothing is missing between them or in both.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec

from afterwrite import __version__
from afterwrite.errors import Refused, UsageError
from afterwrite.lake.compile import compile_query
from afterwrite.lake.duck import DuckEngine, literally
from afterwrite.lake.table import COLUMNS, Lake, missing
from afterwrite.lake.tiers import left_days
from afterwrite.postgres import Database, statement
from afterwrite.search.query import Query
from afterwrite.store.maintain import alone
from afterwrite.store.writer import read_identity
from afterwrite.transfer.export import Format, export_file

_STORE, _LAKE, _MANIFEST = "store.parquet", "lake.parquet", "manifest.json"


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a handing over."""

    file: str
    tier: str
    rows: int
    bytes: int
    sha256: str
    first_at: datetime | None
    last_at: datetime | None


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What was handed over: the manifest. ``as_of`` is the feed's position, ``lake_version`` the table's."""

    query: str
    rows: int
    files: tuple[Piece, ...]
    at: datetime
    store: str
    as_of: int
    lake: str | None
    lake_version: int | None
    columns: tuple[str, ...] = COLUMNS
    afterwrite: str = __version__
    schema_version: int = 1


async def hand_over(db: Database, lake: Lake, query: Query, folder: Path) -> Handed:
    """Write the history that a query finds into a folder of its own. Raises UsageError where there is something in it.

    ``query`` asks for what DuckDB answers exactly: names, ids, kinds, words and times, no values of JSON.
    """
    asked = compile_query(query)
    if not asked.exact:
        raise UsageError(
            "values of JSON and IPv6 networks cannot be asked for in an export of the lake",
            remedy="ask for a tenant, an actor or an entity",
        )
    _make(folder)
    async with alone(db, wait_seconds=60.0):
        if taken_out := await db.values(statement("lake.read_detached")):
            # Its last rows may be in neither: a run of the archiver was interrupted.
            raise Refused(
                f"taken out of the store, and perhaps not yet whole in the lake: {', '.join(taken_out)}",
                remedy="afterwrite lake archive --apply, which was interrupted; then export again",
            )
        hot = await export_file(db, query, Format.PARQUET, folder / _STORE, manifest=False)
        pieces = [
            Piece(
                file=_STORE,
                tier="store",
                rows=hot.rows,
                bytes=hot.bytes,
                sha256=hot.sha256,
                first_at=hot.first_at,
                last_at=hot.last_at,
            )
        ]
        days = await left_days(db, lake)
        if days:
            pieces.append(await asyncio.to_thread(_write, lake, query, days, folder / _STORE, folder / _LAKE))
    handed = Handed(
        query=str(query),
        rows=sum(piece.rows for piece in pieces),
        files=tuple(pieces),
        at=datetime.now(UTC),
        store=await read_identity(db),
        as_of=hot.as_of,
        lake=lake.identity if days else None,
        lake_version=lake.version if days else None,
    )
    _tell(folder, handed)
    return handed


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}", remedy="name another folder") from error
    if any(folder.iterdir()):
        raise UsageError(f"there is something in {folder} already", remedy="name a folder that is empty or not there")


def _tell(folder: Path, handed: Handed) -> None:
    part = folder / f"{_MANIFEST}.part"
    with part.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(handed)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / _MANIFEST)


def _write(lake: Lake, query: Query, days: Any, hot: Path, path: Path) -> Piece:
    """The lake's part of it, sorted by time and id; rows that the store has as well are left to it."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        missing(error)
    asked = compile_query(query)
    params: dict[str, object] = asked.params | {"hot": literally(str(hot.absolute()))}
    files = [
        file
        for file in lake.files(days)
        if all(any(file.may_hold(name, value) for value in values) for name, values in asked.equal.items())
    ]
    schema: Any = cast("Any", pa).schema([field for field in lake.schema() if field.name in COLUMNS])
    part_path = path.with_name(path.name + ".part")
    rows = 0
    with DuckEngine(lake) as engine, part_path.open("wb") as file:
        with cast("Any", parquet).ParquetWriter(file, schema, compression="zstd") as writer:
            if files:
                with engine.source(days, files, params) as source:
                    names = ", ".join(f'a."{name}"' for name in COLUMNS)
                    found = engine.arrow(
                        f"select {names} from {source} a where ({asked.where})"  # noqa: S608 - parameters only
                        " and not exists (select 1 from read_parquet($hot) h"
                        " where h.id = a.id and h.occurred_at = a.occurred_at) order by a.occurred_at, a.id",
                        params,
                    )
                    for batch in found:
                        table: Any = cast("Any", pa).Table.from_batches([batch]).select(schema.names).cast(schema)
                        writer.write_table(table)
                        rows += len(batch)
        file.flush()
        os.fsync(file.fileno())
    part_path.replace(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    first, last = _ends(cast("Any", parquet), path)
    return Piece(
        file=path.name,
        tier="lake",
        rows=rows,
        bytes=path.stat().st_size,
        sha256=digest.hexdigest(),
        first_at=first,
        last_at=last,
    )


def _ends(parquet: Any, path: Path) -> tuple[datetime | None, datetime | None]:
    """The first and the last moment in a file, as its own statistics say."""
    told = parquet.ParquetFile(path).metadata
    place = list(told.schema.names).index("occurred_at")
    ends = [
        told.row_group(number).column(place).statistics
        for number in range(told.num_row_groups)
        if told.row_group(number).num_rows
    ]
    if not ends:
        return None, None
    return min(each.min for each in ends).astimezone(UTC), max(each.max for each in ends).astimezone(UTC)
