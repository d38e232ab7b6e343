"""What the WAL said, transaction by transaction: the values that flow from the decoder to store, proof and deferral."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from afterwrite.activity import Lsn, Operation
from afterwrite.context import Context


class Column(msgspec.Struct, frozen=True, gc=False):
    """A column as the stream's Relation message names it; ``key`` when it belongs to the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    key: bool


class Relation(msgspec.Struct, frozen=True, gc=False):
    """A table as it was at the moment of the write. ``replica_identity`` is pg_class.relreplident: d, n, f or i."""

    oid: int
    schema: str
    table: str
    replica_identity: str
    columns: tuple[Column, ...]


class Change(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One row change, in JSON as ``to_jsonb(row)`` gives it.

    ``before`` is None for INSERT, and for UPDATE/DELETE holds what the replica identity carries (the whole row under
    FULL; the key columns alone otherwise, for UPDATE only when the key changed). ``unchanged`` names columns whose
    TOASTed value did not change and is not in the stream; they are absent from ``after``. ``changed`` names the
    columns that differ, where the old row is known. ``key`` is the primary key's values joined by ``,`` (the replica
    identity's where there is no primary key, None without either).
    """

    relation: Relation
    operation: Operation
    ordinal: int
    key: str | None
    before: bytes | None = None
    after: bytes | None = None
    unchanged: tuple[str, ...] = ()
    changed: tuple[str, ...] | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """A logical message of the transaction: an emitted event, a heartbeat, or another program's.

    Never a context stamp: those become ``Transaction.context``.
    """

    prefix: str
    content: bytes
    ordinal: int


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """One committed transaction, whole. ``end_lsn`` is where its commit record ends: acknowledging it is a promise.

    ``changes`` are those of published application tables; ``legacy`` those of the legacy log tables, which proof
    compares and the store does not keep. One ordinal counts over changes, legacy and messages, in the order of the
    writes. ``size`` is how many bytes of the stream it came in.
    """

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    committed_at: datetime
    context: Context | None
    changes: Sequence[Change]
    legacy: Sequence[Change] = ()
    messages: Sequence[Message] = ()
    size: int = 0
