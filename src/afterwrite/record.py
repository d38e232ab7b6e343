"""The one record type, the values it is made of, and the narrow protocol through which it reaches a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Protocol, Self, runtime_checkable

import msgspec

CONTEXT_PREFIX = "afterwrite.context"
EVENT_PREFIX = "afterwrite.event"
HEARTBEAT_PREFIX = "afterwrite.heartbeat"
OUTBOX_PREFIX = "afterwrite.outbox"
# For how long a recorder believes what a server said of its outbox.
OUTBOX_KNOWN_SECONDS = 30.0


class Lsn(int):
    """A place in the write-ahead log: a byte offset, written ``16/B374D848`` as PostgreSQL's ``pg_lsn`` does."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's notation; raises ValueError for anything else."""
        high, slash, low = text.partition("/")
        if not slash:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(high, 16) << 32) | int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"


class Kind(StrEnum):
    """Where an activity came from: the WAL (``change``) or an application (``event``)."""

    CHANGE = "change"
    EVENT = "event"


class Operation(StrEnum):
    """What a change did to its row (or, for TRUNCATE, to its table)."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


class Outcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"


class Level(StrEnum):
    """An activity's severity."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class Category(StrEnum):
    """The usual categories of events. Any lower-case word with ``_`` is one; these need no registration."""

    AUTHENTICATION = "authentication"
    USER_MANAGEMENT = "user_management"
    DATA = "data"
    FINANCIAL = "financial"
    DOCUMENT = "document"
    COMMUNICATION = "communication"
    CONFIGURATION = "configuration"
    SECURITY = "security"
    SYSTEM = "system"
    BULK = "bulk"


class Activity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that happened: a row change, or something that an application recorded.

    ``id`` is the canonical text of a time-ordered UUID. ``before`` and ``after`` are JSON objects as PostgreSQL's
    ``to_jsonb(row)`` gives them, kept as raw UTF-8 so that nobody parses what nobody reads. ``relation`` is the
    quoted ``schema.table`` and ``operation`` what was done to it, for changes only; ``entity_type`` is the short name
    that people search for. ``ordinal`` counts from 0 within the transaction, over changes and events alike.
    """

    id: str
    occurred_at: datetime
    source: str
    kind: Kind
    category: str
    action: str
    outcome: Outcome = Outcome.SUCCESS
    severity: Level = Level.INFO
    entity_type: str | None = None
    entity_id: str | None = None
    actor_id: str | None = None
    actor_type: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    duration_ms: float | None = None
    summary: str | None = None
    relation: str | None = None
    operation: Operation | None = None
    changed: tuple[str, ...] | None = None
    before: msgspec.Raw | None = None
    after: msgspec.Raw | None = None
    metadata: msgspec.Raw | None = None
    caused_by: str | None = None
    xid: int | None = None
    commit_lsn: Lsn | None = None
    ordinal: int | None = None


class Emitted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event that a transaction writes into its own WAL (prefix ``afterwrite.event``): it exists iff that commits.

    ``id`` is the application's own (a UUIDv7), so that it can name the event before it is written; without one capture
    makes one. It is stored at the time of the commit; ``occurred_at`` is kept beside it where the application says one.
    ``metadata`` is JSON, ``null`` for none: msgspec decodes a Raw only where its type is Raw alone.
    """

    category: str
    action: str
    outcome: Outcome = Outcome.SUCCESS
    severity: Level = Level.INFO
    entity_type: str | None = None
    entity_id: str | None = None
    summary: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    id: str | None = None
    duration_ms: float | None = None
    occurred_at: datetime | None = None
    caused_by: str | None = None


class Posted(msgspec.Struct, frozen=True, kw_only=True):
    """What a row of the outbox says: an ``Emitted``, and the ``Context`` in which it was, both as JSON.

    No stamp explains it: where the WAL is not read, nothing but the row itself can say who it was.
    """

    event: msgspec.Raw
    context: msgspec.Raw = msgspec.Raw(b"{}")


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far a source is stored: every transaction whose commit ends at or before ``lsn`` is in the store."""

    source: str
    slot: str
    system_id: str
    timeline: int
    lsn: Lsn


class TransactionContext(msgspec.Struct, frozen=True, kw_only=True):
    """The session settings that one transaction stamped (``Context.settings``): what a deferred trigger body reads.

    Kept once a transaction and not on each of its activities, which carry the rest of the context themselves.
    """

    commit_lsn: Lsn
    xid: int
    settings: dict[str, str]


class Activities(Protocol):
    """Activities in the order in which they are stored; perhaps read from disk anew each time, never all at once."""

    def __iter__(self) -> Iterator[Activity]: ...

    def __len__(self) -> int: ...


class Origin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the activities of a transaction share: when, who, what led to it, and where it is in the WAL."""

    occurred_at: datetime
    source: str
    actor_id: str | None = None
    actor_type: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    caused_by: str | None = None
    xid: int | None = None
    commit_lsn: Lsn | None = None


class Sort(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """What activities of one sort share, those of a table and an operation for instance."""

    kind: Kind
    category: str
    action: str
    outcome: Outcome = Outcome.SUCCESS
    severity: Level = Level.INFO
    entity_type: str | None = None
    relation: str | None = None
    operation: Operation | None = None


Json = bytes | msgspec.Raw
Entry = tuple[
    Origin, Sort, str, int | None, str | None, str | None, float | None, tuple[str, ...] | None,
    Json | None, Json | None, Json | None,
]  # fmt: skip
"""An activity in parts, for whoever has many to write: what it shares, then what is its own.

That is ``id, ordinal, entity_id, summary, duration_ms, changed, before, after, metadata``. One that shares with its
neighbour has the same Origin and the same Sort, as objects.
"""


@runtime_checkable
class Entries(Activities, Protocol):
    """Activities that can also be had in parts."""

    def entries(self) -> Iterator[Entry]: ...


# The values of such fields, in their order, from an activity or from the part itself.
origin_values = attrgetter(*Origin.__struct_fields__)
sort_values = attrgetter(*Sort.__struct_fields__)


def to_entries(activities: Iterable[Activity]) -> Iterator[Entry]:
    """These activities in parts."""
    last: tuple[object, ...] = ()
    origin: Origin | None = None
    sorts: dict[tuple[object, ...], Sort] = {}
    for a in activities:
        of_origin, of_sort = origin_values(a), sort_values(a)
        if origin is None or of_origin != last:
            origin, last = Origin(**dict(zip(Origin.__struct_fields__, of_origin, strict=True))), of_origin
        sort = sorts.get(of_sort)
        if sort is None:
            sort = sorts[of_sort] = Sort(**dict(zip(Sort.__struct_fields__, of_sort, strict=True)))
        yield (
            origin, sort, a.id, a.ordinal, a.entity_id, a.summary, a.duration_ms, a.changed, a.before, a.after,
            a.metadata,
        )  # fmt: skip


def to_activity(entry: Entry) -> Activity:
    """The activity whose parts these are."""
    origin, sort, id, ordinal, entity_id, summary, duration_ms, changed, before, after, metadata = entry
    return Activity(
        id=id,
        **{name: getattr(origin, name) for name in Origin.__struct_fields__},
        **{name: getattr(sort, name) for name in Sort.__struct_fields__},
        ordinal=ordinal,
        entity_id=entity_id,
        summary=summary,
        duration_ms=duration_ms,
        changed=changed,
        before=None if before is None else msgspec.Raw(before),
        after=None if after is None else msgspec.Raw(after),
        metadata=None if metadata is None else msgspec.Raw(metadata),
    )


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one sink transaction stores: whole transactions, in commit order.

    ``first_lsn`` and ``last_lsn`` are the commit LSNs of the first and last transaction; ``checkpoint`` moves with the
    rows or not at all. A batch without activities only moves the checkpoint. ``contexts`` holds one entry for each of
    its transactions that stamped settings; one whose rows are not here is not kept either. ``moments`` are the distinct
    ``occurred_at`` of the activities, where the maker knows them: then nobody reads all of a long one to learn them.
    """

    source: str
    activities: Activities
    transactions: int
    first_lsn: Lsn | None = None
    last_lsn: Lsn | None = None
    checkpoint: Checkpoint | None = None
    contexts: Sequence[TransactionContext] = ()
    moments: frozenset[datetime] | None = None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A sink's word that a batch is durable; ``position`` is its place in the feed (None if it held no activity)."""

    batch_id: int | None
    position: int | None
    stored: int


class Sink(Protocol):
    """Where batches go. Nothing above it may assume one host, one writer or one source."""

    async def read_identity(self) -> str:
        """Which store this is: the same for as long as it lives. A source's slot belongs to one store."""
        ...

    async def read_checkpoint(self, source: str) -> Checkpoint | None:
        """How far this source is stored, or None when nothing of it ever was."""
        ...

    async def write(self, batch: Batch) -> Receipt:
        """Store the batch and its checkpoint in one transaction; when it returns, both are flushed.

        Raises ConnectionLost when the outcome is unknown: read the checkpoint again before another try.
        """
        ...


_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PG_EPOCH_MICROSECONDS = 946_684_800_000_000


def from_pg_microseconds(microseconds: int) -> datetime:
    """A commit time as the replication protocol sends it (microseconds since 2000-01-01 UTC).

    Raises ValueError for one outside of the years 1 to 9999: no clock of a server says so.
    """
    try:
        return _UNIX_EPOCH + timedelta(microseconds=microseconds + _PG_EPOCH_MICROSECONDS)
    except OverflowError as error:
        raise ValueError(f"a commit time of {microseconds} microseconds since 2000") from error


def change_id(
    system_id: str, timeline: int, commit_lsn: Lsn, ordinal: int, committed_at: datetime, *, source: str = ""
) -> str:
    """The id of a change: a UUIDv8 (RFC 9562) that a replay of the same WAL makes again. See ``change_prefix``."""
    return f"{change_prefix(system_id, timeline, commit_lsn, committed_at, source=source)}{ordinal:08x}"


def change_prefix(system_id: str, timeline: int, commit_lsn: Lsn, committed_at: datetime, *, source: str = "") -> str:
    """What the ids of one transaction begin with; each ends in its ordinal, ``f"{ordinal:08x}"``.

    ::

        48 bits: milliseconds | version 8 | 10: microseconds | 2, variant, 30: place in the WAL | 32: ordinal

    So ids sort by commit time like a UUIDv7's, within a transaction by the order of its writes, and a batch goes to the
    right end of an index. The place is the commit LSN (commit records are eight bytes aligned), moved by a hash of
    system, timeline and source: two transactions of one cluster differ within 32 GiB of WAL, those of two clusters by
    chance only, and only where they committed in the same microsecond. So does one transaction that two sources of the
    same database see, each with ordinals of its own: what the one stored must not keep the other's out.
    """
    since = committed_at - _UNIX_EPOCH
    place = ((commit_lsn >> 3) + _source_hash(system_id, timeline, source)) & 0xFFFFFFFF
    milliseconds, microseconds = divmod(since.microseconds, 1000)
    milliseconds += (since.days * 86_400 + since.seconds) * 1000
    custom = microseconds << 2 | place >> 30
    variant = 0x8000 | (place >> 16) & 0x3FFF
    time = milliseconds & 0xFFFFFFFFFFFF
    return f"{time >> 16:08x}-{time & 0xFFFF:04x}-8{custom:03x}-{variant:04x}-{place & 0xFFFF:04x}"


@lru_cache(maxsize=64)
def _source_hash(system_id: str, timeline: int, source: str) -> int:
    words = f"{system_id}/{timeline}/{source}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=4).digest(), "big")
