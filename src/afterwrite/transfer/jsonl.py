"""Activities of an export, back into a store: the same rows with the same ids, each stored once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from afterwrite.errors import Refused, UsageError
from afterwrite.failpoints import failpoint
from afterwrite.jsonb import read_members
from afterwrite.postgres import Database
from afterwrite.record import Activity, Batch, Kind, Level, Lsn, Operation, Outcome
from afterwrite.store.writer import PostgresSink
from afterwrite.transfer.legacy import Policy, make_days

SOURCE = "import.jsonl"
"""The source of the batches that bring them, so that no reader of a capture's feed takes them for its own."""

_CHUNK_ROWS, _CHUNK_BYTES = 5_000, 16 * 1024 * 1024
_LONGEST_LINE = 600 * 1024 * 1024
_READ_BYTES = 1024 * 1024


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held, and what the store did not have yet. ``expired`` are older than retention keeps."""

    rows: int
    stored: int
    already: int
    expired: int
    seconds: float


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """An activity as an export writes it; ``position`` and ``batch_id`` are of the store that it came from."""

    id: str
    occurred_at: datetime
    source: str
    kind: Kind
    category: str
    action: str
    outcome: Outcome
    severity: Level
    entity_type: str | None
    entity_id: str | None
    actor_id: str | None
    actor_type: str | None
    tenant_id: str | None
    session_id: str | None
    request_id: str | None
    trace_id: str | None
    ip: str | None
    user_agent: str | None
    duration_ms: float | None
    summary: str | None
    relation: str | None
    operation: Operation | None
    changed: tuple[str, ...] | None
    before: msgspec.Raw
    after: msgspec.Raw
    metadata: msgspec.Raw
    caused_by: str | None
    xid: int | None
    commit_lsn: str | None
    ordinal: int | None


class _Manifest(msgspec.Struct, frozen=True):
    rows: int
    bytes: int
    sha256: str


_decode = msgspec.json.Decoder(_Line).decode


async def load_jsonl(
    store: Database,
    sink: PostgresSink,
    path: Path,
    *,
    policy: Policy,
    on_progress: Callable[[int, int], None] = lambda rows, stored: None,
) -> Loaded:
    """Store what the file holds and the store does not have; safe to run again, whatever happened to it before.

    Raises Refused when the file is not what its manifest says, and UsageError that names the line that cannot be read.
    """
    check_manifest(path)
    began = time.monotonic()
    oldest = None
    if policy.retention_days is not None:
        oldest = datetime.now(UTC).date() - timedelta(days=policy.retention_days)
    days: set[date] = set()
    rows = stored = expired = 0
    for chunk in _chunks(path):
        failpoint("import.before_lines")
        kept = [each for each in chunk if oldest is None or each.occurred_at.astimezone(UTC).date() >= oldest]
        rows += len(chunk)
        expired += len(chunk) - len(kept)
        await make_days(store, kept, days, policy)
        receipt = await sink.write(Batch(source=SOURCE, activities=kept, transactions=0))
        stored += receipt.stored
        failpoint("import.after_lines")
        on_progress(rows, stored)
        if policy.rate:
            await asyncio.sleep(max(0.0, rows / policy.rate - (time.monotonic() - began)))
    return Loaded(
        rows=rows,
        stored=stored,
        already=rows - stored - expired,
        expired=expired,
        seconds=time.monotonic() - began,
    )


def check_manifest(path: Path) -> None:
    """Raise Refused when a manifest stands beside the file and tells of another one."""
    manifest = path.with_name(f"{path.name}.manifest.json")
    if not manifest.exists():
        return
    try:
        told = msgspec.json.decode(manifest.read_bytes(), type=_Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{manifest} cannot be read: {error}", remedy="take it away, or export again") from error
    digest = hashlib.sha256()
    rows = 0
    with _opened(path) as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            rows += data.count(b"\n")
    if (rows, digest.hexdigest()) != (told.rows, told.sha256):
        raise Refused(
            f"{path} has {rows:,} lines and is not the file that {manifest.name} tells of ({told.rows:,} lines)",
            remedy="export it again; or take the manifest away, where the file was changed on purpose",
        )


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", remedy="name another file") from error
    with file:
        yield file


def _chunks(path: Path) -> Iterator[list[Activity]]:
    """The file's activities, as many at once as do not take much memory."""
    chunk: list[Activity] = []
    size = 0
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
            if not line.strip():
                continue
            chunk.append(_read(line, path, number))
            size += len(line)
            if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _read_line(line: bytes) -> _Line:
    try:
        return _decode(line)
    except RecursionError:
        members = read_members(line)
        deep = {name: members.pop(name) for name in ("before", "after", "metadata") if name in members}
        told = _decode(msgspec.json.encode({**members, **dict.fromkeys(deep)}))
        return msgspec.structs.replace(told, **deep)


def _read(line: bytes, path: Path, number: int) -> Activity:
    try:
        told = _read_line(line)
        lsn = None if told.commit_lsn is None else Lsn.parse(told.commit_lsn)
        if told.occurred_at.tzinfo is None:
            raise ValueError("occurred_at has no time zone")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"line {number} of {path} is no activity of an export: {error}",
            remedy="give a file of `afterwrite export --format jsonl`; what stands before that line is stored",
        ) from error
    values: dict[str, Any] = {name: getattr(told, name) for name in told.__struct_fields__}
    for name in ("before", "after", "metadata"):
        raw: msgspec.Raw = values[name]
        values[name] = None if bytes(raw) == b"null" else raw.copy()
    values["commit_lsn"] = lsn
    return Activity(**values)
