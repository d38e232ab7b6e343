"""What the WAL said, transaction by transaction: the values that flow from the decoder to store, proof and deferral."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec

from afterwrite.capture.spill import Spill
from afterwrite.context import Context
from afterwrite.record import Lsn, Operation

Item_co = TypeVar("Item_co", covariant=True)


class Many(Protocol[Item_co]):
    """Sized, and read in order as often as wanted: a list, or what is read from memory or disk anew each time."""

    def __iter__(self) -> Iterator[Item_co]: ...

    def __len__(self) -> int: ...


class Column(msgspec.Struct, frozen=True, gc=False):
    """A column as the stream's Relation message names it; ``key`` when it belongs to the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    key: bool


class Relation(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """A table as it was at the moment of the write. ``replica_identity`` is pg_class.relreplident: d, n, f or i.

    The stream tells all but two things, which are asked of the catalog and are unsure when that has changed before the
    message was read: ``unsure_key`` when the primary key may have been another, ``as_text`` the columns of a type
    that was dropped or altered, whose values are kept as their text.
    """

    oid: int
    schema: str
    table: str
    replica_identity: str
    columns: tuple[Column, ...]
    unsure_key: bool = False
    as_text: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One row change, in JSON as ``to_jsonb(row)`` gives it.

    ``before`` is None for INSERT, and for UPDATE/DELETE holds what the replica identity carries (the whole row under
    FULL; the key columns alone otherwise, for UPDATE only when the key changed). ``unchanged`` names columns whose
    TOASTed value did not change and is not in the stream; they are absent from ``after``. ``changed`` names the
    columns that differ, where the old row is known; ``options`` what a TRUNCATE was told besides. ``key`` is the
    primary key's values joined by ``,`` (the replica identity's where there is no primary key, None without either);
    ``old_key`` is what it was before an UPDATE that changed it. ``said`` is what the change did in a few words: of an
    UPDATE the columns with what they were and are, of others some of the row's texts.
    """

    relation: Relation
    operation: Operation
    ordinal: int
    key: str | None
    before: bytes | None = None
    after: bytes | None = None
    unchanged: tuple[str, ...] = ()
    changed: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()
    said: str = ""
    old_key: str | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """A logical message of the transaction: an emitted event, a heartbeat, or another program's.

    Never a context stamp: those become ``Transaction.stamps``.
    """

    prefix: str
    content: bytes
    ordinal: int


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """Who and why, from that ordinal on until the next stamp.

    A transaction's first one also speaks for what came before it, since a context may be told last; ``here`` when it
    says that it does not. ``unsigned`` when stamps are to be signed and this one is not, or by a key that is not ours.
    One that could not be read tells an empty context: the one before it does not hold any more either.
    """

    ordinal: int
    context: Context
    here: bool = False
    unsigned: bool = False


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """One committed transaction, whole. ``end_lsn`` is where its commit record ends: acknowledging it is a promise.

    ``changes`` are those of published application tables; ``legacy`` those of the legacy log tables, which proof
    compares and the store does not keep; ``events`` what the application emitted, ``messages`` all other logical
    messages. One ordinal counts over them all, in the order of the writes. ``stamps`` say who and why, each from its
    place on; ``context`` is the last of them that says anything, for whoever wants one for the whole transaction.
    ``size`` is how many bytes of the stream it came in; ``misread`` when it brought a context that cannot be read.

    Of a big one everything is read anew each time somebody asks, from ``spill`` where it was too big for memory:
    ``close`` it when nobody will.
    """

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    committed_at: datetime
    context: Context | None
    changes: Many[Change]
    legacy: Many[Change] = ()
    events: Many[Message] = ()
    messages: Many[Message] = ()
    stamps: Many[Stamp] = ()
    size: int = 0
    misread: bool = False
    spill: Spill | None = None

    @property
    def rows(self) -> int:
        """How much it says, of whatever kind."""
        return len(self.changes) + len(self.legacy) + len(self.events) + len(self.messages)

    @property
    def held(self) -> int:
        """How many of its bytes wait in memory."""
        return self.size if self.spill is None else 0

    def close(self) -> None:
        """Give the disk back; what was put aside cannot be read any more."""
        if self.spill is not None:
            self.spill.close()
