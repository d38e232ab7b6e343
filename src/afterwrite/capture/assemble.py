"""Messages to whole transactions. Pure: what the catalog knows is told beforehand.

::

    Begin ▸ Relation ▸ Insert ▸ Update ▸ Message ▸ … ▸ Commit ──▶ Transaction ──tell.py──▶ Activity, Activity, …

Each Relation message compiles one ``_Table``: the encoders of its columns, where its key lies, and a template that
makes a row's JSON in one formatting step. Rows wait for their commit as the stream brought them, because their context
may come last. Then a small transaction is decoded once, and a bigger one anew each time it is read, row by row: nobody
ever holds all of it, and nothing stands still meanwhile.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from functools import partial
from itertools import compress
from operator import ne
from pathlib import Path
from struct import error
from typing import Generic, TypeVar

import msgspec

from afterwrite.capture.pgoutput import (
    ROW_TAGS,
    UNCHANGED,
    Begin,
    Commit,
    LogicalMessage,
    Truncate,
    Value,
    broken,
    decode,
    read_delete,
    read_insert,
    read_update,
    relation_key,
)
from afterwrite.capture.spill import ENTRY_BYTES, Pile, Spill
from afterwrite.capture.transaction import Change, Many, Message, Relation, Stamp, Transaction
from afterwrite.capture.values import PgType, TypeCatalog, encode_text, is_after, json_string
from afterwrite.context import Context, decode_context, holds_from_here
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import quoted
from afterwrite.record import (
    CONTEXT_PREFIX,
    EVENT_PREFIX,
    Lsn,
    Operation,
)
from afterwrite.seal import unseal

# Up to here a transaction is decoded once, at its commit. It is what the event loop must stand.
_AT_ONCE = 2_000
# What is put aside at a time, once it has begun.
_ASIDE_BYTES = 1 << 20

Item = TypeVar("Item")
# How much of a change is said in its summary, which full text looks at: so many columns, so many characters of a value.
_SAID_COLUMNS, _SAID_TEXTS, _SAID_LENGTH = 8, 4, 30
_SECRET = re.compile(
    "pass|pwd|secret|token$|hash|salt|credential|private|signature|crypt|(?:api|access|account)_?key|otp|jwt|bearer|cookie"
    "|(?:^|_)pin(?:_|$)|(?:^|_)ssn(?:_|$)|social_?security|cvv|cvc|card_?n(?:o$|um)|security_?code|mnemonic|seed_?phrase",
    re.IGNORECASE,
)
_BRIEF_UUID = re.compile(r"([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_Read = Callable[["Pile[_Table | None]"], Iterator[Item]]


class TableFacts(msgspec.Struct, frozen=True):
    """What the stream does not say of a table, as its next Relation message describes it.

    Its primary key in index order, whether it is a partition root (``by_index`` when partitions of it have an index as
    their replica identity), and whether it is published as a legacy log only. The key is ``unsure``, or known to be
    such since transaction ``since`` only (``now`` is the next one to begin).
    """

    key: tuple[str, ...] = ()
    partitioned: bool = False
    by_index: bool = False
    legacy: bool = False
    unsure: bool = False
    since: int = 0
    now: int = 0


class Assembler:
    """Feed it the stream's messages in order; it gives each transaction at its commit.

    ``legacy`` names legacy log tables as (schema, table), beside those that the facts call so. Before a Relation
    message is fed, ``learn`` should have told the types and the facts of that table; what is not known is encoded as
    text, and keyed by the replica identity. When the open transaction ``is_crowded``, ``put_aside`` moves it into a
    file in ``folder`` (None: the system's). With ``keys`` a stamp that none of them signed is marked.
    """

    def __init__(
        self,
        *,
        legacy: AbstractSet[tuple[str, str]] = frozenset(),
        folder: Path | None = None,
        keys: tuple[str, ...] = (),
    ) -> None:
        self.legacy = legacy
        self._keys = keys
        self.folder = folder
        self.types = TypeCatalog()
        self._facts: dict[int, TableFacts] = {}
        self._tables: dict[bytes, _Table] = {}
        self._unsettled: set[bytes] = set()
        self._open: _Open | None = None

    def learn(self, types: Iterable[PgType], facts: Mapping[int, TableFacts]) -> None:
        """Take what the catalog says now; it holds for the Relation messages fed from here on."""
        self.types = self.types.with_types(types)
        self._facts.update(facts)

    def relearn(self, types: Sequence[PgType]) -> None:
        """Take what the catalog says now of types that are in use; it holds for all that is fed from here on."""
        known = self.types.types
        if all(entry.oid in known and entry.fields == known[entry.oid].fields for entry in types):
            return
        self.types = self.types.with_types(types)
        self._unsettled.update(self._tables)
        if self._open is not None:
            self._settle()

    @property
    def in_transaction(self) -> bool:
        """Whether the last message left a transaction open."""
        return self._open is not None

    @property
    def xid(self) -> int | None:
        """The transaction that is open, as the stream numbers it."""
        return None if self._open is None else self._open.begin.xid

    @property
    def commit_lsn(self) -> Lsn | None:
        """Where the transaction that is open will commit."""
        return None if self._open is None else self._open.begin.commit_lsn

    def is_crowded(self, bound: int) -> bool:
        """Whether the open transaction takes more memory than that, or has begun to be put aside and should go on."""
        if self._open is None:
            return False
        return self._open.held > (bound if self._open.spill is None else min(bound, _ASIDE_BYTES))

    def put_aside(self) -> None:
        """Move the open transaction, as far as it came, to disk. Blocks; raises NoRoom where that cannot be done.

        May run in a thread, as long as nothing is fed meanwhile.
        """
        if self._open is not None:
            self._open.put_aside(self.folder)

    def close(self) -> None:
        """Forget the open transaction: the stream has ended, and the next one brings it again."""
        if self._open is not None and self._open.spill is not None:
            self._open.spill.close()
        self._open = None

    def feed(self, payload: bytes) -> Transaction | None:
        """One message in; the transaction that it ends, if it ends one. Raises AfterwriteError for a broken stream."""
        if payload and payload[0] in ROW_TAGS:
            (self._open or self._unended(payload)).add_row(self._table(relation_key(payload)), payload)
            return None
        message = decode(payload)
        match message:
            case Begin():
                self.close()
                self._open = _Open(message, len(payload), self._keys)
                if self._unsettled:
                    self._settle()
            case LogicalMessage():
                # One that is not transactional belongs to no transaction, and is there even if its writer rolled back.
                if message.transactional:
                    self._unended(payload).add_message(message, payload)
            case Commit():
                transaction = self._unended(payload).end(message, len(payload))
                self._open = None
                return transaction
            case Relation():
                facts = self._facts.get(message.oid, TableFacts())
                self._take(relation_key(payload), _Table(message, self.types, facts, self.legacy, self.xid))
                if self._open is not None:
                    self._open.size += len(payload)
            case Truncate():
                transaction = self._unended(payload)
                for oid in message.relation_oids:
                    transaction.add_row(self._table(oid.to_bytes(4, "big")), payload)
            case _:  # Origin and Type say nothing that we keep
                pass
        return None

    def _settle(self) -> None:
        """Compile for the transaction that has begun what may be otherwise for it than for the one before."""
        for key in tuple(self._unsettled):
            self._take(key, self._tables[key].recompiled(self.types, self.xid))

    def _take(self, key: bytes, table: _Table) -> None:
        self._tables[key] = table
        (self._unsettled.add if table.unsettled else self._unsettled.discard)(key)

    def _table(self, key: bytes) -> _Table:
        table = self._tables.get(key)
        if table is None:
            raise AfterwriteError(
                f"the stream changes relation {int.from_bytes(key, 'big')} before it has described it",
                remedy="this is a defect of afterwrite, or bytes of the stream were lost; start the worker again",
            )
        return table

    def _unended(self, payload: bytes) -> _Open:
        if self._open is None:
            raise AfterwriteError(
                f"the stream goes on in a transaction that it never began: {payload[:24]!r}",
                remedy="bytes of the stream were lost; start the worker again",
            )
        return self._open


class _Part(StrEnum):
    """What a transaction's entries are kept apart by."""

    CHANGES = "changes"
    LEGACY = "legacy"
    EVENTS = "events"
    STAMPS = "stamps"
    MESSAGES = "messages"


class _Open:
    """The transaction whose commit has not come yet."""

    __slots__ = (
        "_aside",
        "_context",
        "_keys",
        "_misread",
        "_ordinal",
        "_piles",
        "_stamp",
        "_stamps",
        "begin",
        "size",
        "spill",
    )

    def __init__(self, begin: Begin, size: int, keys: tuple[str, ...]) -> None:
        self.begin = begin
        self.size = size
        self.spill: Spill | None = None
        self._piles: defaultdict[_Part, Pile[_Table | None]] = defaultdict(Pile)
        self._keys = keys
        self._stamp: bytes | None = None
        # Only of very many is another look at what they came in cheaper than to hold them.
        self._stamps: list[Stamp] | None = []
        self._context: Context | None = None
        self._misread = False
        self._ordinal = 0
        self._aside = (0, 0)

    @property
    def held(self) -> int:
        """About how much memory its entries take."""
        size, ordinal = self._aside
        return self.size - size + (self._ordinal - ordinal) * ENTRY_BYTES

    def add_row(self, table: _Table, payload: bytes) -> None:
        self._piles[table.part].held.append((self._ordinal, table, payload))
        self._ordinal += 1
        self.size += len(payload)

    def add_message(self, message: LogicalMessage, payload: bytes) -> None:
        self.size += len(payload)
        if message.prefix == CONTEXT_PREFIX:
            self._add_stamp(message.content, payload)
            return
        part = _Part.EVENTS if message.prefix == EVENT_PREFIX else _Part.MESSAGES
        self._piles[part].held.append((self._ordinal, None, payload))
        self._ordinal += 1

    def _add_stamp(self, content: bytes, payload: bytes) -> None:
        """Stamps take no ordinal: what a transaction's activities are called does not depend on how it was stamped."""
        if content == self._stamp:
            return
        self._stamp = content
        stamp = _read_stamp(content, self._ordinal, self._keys)
        if stamp is None:
            self._misread = True
            stamp = Stamp(self._ordinal, _NOBODY)
        elif stamp.context != _NOBODY:
            self._context = stamp.context
        self._piles[_Part.STAMPS].held.append((self._ordinal, None, payload))
        if self._stamps is not None:
            self._stamps.append(stamp)
            if len(self._stamps) > _AT_ONCE:
                self._stamps = None

    def put_aside(self, folder: Path | None) -> None:
        if self.spill is None:
            self.spill = Spill(folder)
        for pile in self._piles.values():
            pile.move(self.spill)
        self._aside = self.size, self._ordinal

    def end(self, commit: Commit, size: int) -> Transaction:
        return Transaction(
            xid=self.begin.xid,
            commit_lsn=commit.commit_lsn,
            end_lsn=commit.end_lsn,
            committed_at=commit.committed_at,
            context=self._context,
            changes=self._reading(_Part.CHANGES, _read_rows),
            legacy=self._reading(_Part.LEGACY, _read_rows),
            events=self._reading(_Part.EVENTS, _read_messages),
            messages=self._reading(_Part.MESSAGES, _read_messages),
            stamps=(
                self._reading(_Part.STAMPS, partial(_read_stamps, keys=self._keys))
                if self._stamps is None
                else self._stamps
            ),
            size=self.size + size,
            misread=self._misread,
            spill=self.spill,
        )

    def _reading(self, part: _Part, read: _Read[Item]) -> Many[Item]:
        pile = self._piles.get(part)
        if pile is None:
            return ()
        return list(read(pile)) if len(pile) <= _AT_ONCE else _Reading(pile, read)


_NOBODY = Context()


def _read_stamp(content: bytes, ordinal: int, keys: tuple[str, ...]) -> Stamp | None:
    """The stamp, or None where it cannot be read."""
    unsealed = unseal(CONTEXT_PREFIX, content, keys)
    try:
        context = decode_context(unsealed.payload)
        here = holds_from_here(unsealed.payload)
    except (AfterwriteError, msgspec.DecodeError):
        return None
    return Stamp(ordinal, context, here, not unsealed.signed if keys else False)


class _Reading(Generic[Item]):
    """The entries of a pile, decoded as they are read."""

    def __init__(self, pile: Pile[_Table | None], read: _Read[Item]) -> None:
        self._pile = pile
        self._read = read

    def __len__(self) -> int:
        return len(self._pile)

    def __iter__(self) -> Iterator[Item]:
        return self._read(self._pile)


def _read_rows(entries: Pile[_Table | None]) -> Iterator[Change]:
    for ordinal, table, payload in entries:
        assert table is not None
        yield table.read(payload, ordinal)


def _read_messages(entries: Pile[_Table | None]) -> Iterator[Message]:
    for ordinal, _, payload in entries:
        message = decode(payload)
        assert isinstance(message, LogicalMessage)
        yield Message(message.prefix, message.content, ordinal)


def _read_stamps(entries: Pile[_Table | None], keys: tuple[str, ...]) -> Iterator[Stamp]:
    for ordinal, _, payload in entries:
        message = decode(payload)
        assert isinstance(message, LogicalMessage)
        yield _read_stamp(message.content, ordinal, keys) or Stamp(ordinal, _NOBODY)


def _say(value: Value) -> str:
    """A value in a few characters."""
    if value is None:
        return "null"
    text = str(value, "utf-8", "backslashreplace")
    if len(text) > _SAID_LENGTH:
        brief = _BRIEF_UUID(text)
        text = f"{brief[1] if brief else text[: _SAID_LENGTH - 2]}.."
    return text if text.isprintable() else " ".join(text.split())


class _Table:
    """A relation as the stream described it, compiled."""

    def __init__(
        self,
        relation: Relation,
        types: TypeCatalog,
        facts: TableFacts,
        legacy: AbstractSet[tuple[str, str]],
        xid: int | None,
    ) -> None:
        since = xid is not None and is_after(facts.since, xid, facts.now)
        as_text = tuple(
            column.name for column in relation.columns if xid is not None and types.is_unsure(column.type_oid, xid)
        )
        self.unsettled = since or bool(as_text)
        self._described, self._facts, self._legacy = relation, facts, legacy
        if self.unsettled or facts.unsure:
            relation = msgspec.structs.replace(relation, unsure_key=since or facts.unsure, as_text=as_text)
        self.relation = relation
        is_legacy = facts.legacy or (relation.schema, relation.table) in legacy
        self.part = _Part.LEGACY if is_legacy else _Part.CHANGES
        self.names = tuple(column.name for column in relation.columns)
        self.width = len(self.names)
        self.encoders = tuple(
            encode_text if column.name in as_text else types.encoder(column.type_oid) for column in relation.columns
        )
        self.prefixes = tuple(json_string(name) + b":" for name in self.names)
        slots = [prefix.replace(b"%", b"%%") + b"%b" for prefix in self.prefixes]
        self.template = b"{" + b",".join(slots) + b"}"
        flagged = tuple(index for index, column in enumerate(relation.columns) if column.key)
        named = tuple(self.names.index(name) for name in facts.key if name in self.names)
        full = relation.replica_identity == "f"
        self.key = named if named and len(named) == len(facts.key) else (() if full else flagged)
        self.identity = self.key if full else flagged
        # The stream speaks of the root, but a partition's own replica identity decides what the WAL holds.
        self.partitioned, self.by_index = facts.partitioned, facts.by_index
        self.others = tuple(index for index in range(self.width) if index not in self.key)
        told = tuple(name not in as_text and (_SECRET.search(name) is None) for name in self.names)
        oids = [column.type_oid for column in relation.columns]
        # What is said of a changed column beside its name, and of the row that came or went.
        self.tellers = tuple(
            (name, index if telling and types.is_plain(oid) else -1)
            for index, (name, oid, telling) in enumerate(zip(self.names, oids, told, strict=True))
        )
        self.texts = tuple(index for index in self.others if told[index] and types.is_text(oids[index]))[:_SAID_TEXTS]

    def recompiled(self, types: TypeCatalog, xid: int | None) -> _Table:
        """The same relation for another transaction, by what is known of types now."""
        return _Table(self._described, types, self._facts, self._legacy, xid)

    def read(self, payload: bytes, ordinal: int) -> Change:
        """The change that a row's message, or a TRUNCATE, tells."""
        try:
            match payload[0]:
                case 0x49:
                    return self._insert(payload, ordinal)
                case 0x55:
                    return self._update(payload, ordinal)
                case 0x44:
                    return self._delete(payload, ordinal)
                case _:
                    return self._truncate(payload, ordinal)
        except (error, IndexError, ValueError) as cause:
            raise broken(payload, cause, quoted(self.relation.schema, self.relation.table)) from cause

    def _insert(self, payload: bytes, ordinal: int) -> Change:
        parts, new = read_insert(payload, self.encoders)
        return Change(
            relation=self.relation,
            operation=Operation.INSERT,
            ordinal=ordinal,
            key=self._key(new),
            after=self.template % tuple(parts),
            said=self._texts(new),
        )

    def _update(self, payload: bytes, ordinal: int) -> Change:
        image, whole, (parts, new) = read_update(payload, self.encoders)
        before: bytes | None = None
        changed: tuple[str, ...] | None = None
        said = ""
        unchanged: tuple[str, ...] = ()
        old_key: str | None = None
        if image is not None:
            old_parts, old = image
            whole = self._is_whole(old, whole)
            if UNCHANGED in new:
                for index in range(self.width) if whole else self._identity(old):
                    if new[index] is UNCHANGED:
                        parts[index], new[index] = old_parts[index], old[index]
            if whole:
                before = self.template % tuple(old_parts)
                differ = tuple(map(ne, new, old))
                changed = tuple(compress(self.names, differ))
                said = self._changes(compress(self.tellers, differ), old, new)
            else:
                before = self._image(old_parts, self._identity(old))
            for index in self.key:
                if new[index] != old[index]:
                    old_key = self._key(old)
                    break
        if UNCHANGED in new:
            unchanged = tuple([name for name, value in zip(self.names, new, strict=True) if value is UNCHANGED])
            after = self._image(parts, [index for index, value in enumerate(new) if value is not UNCHANGED])
        else:
            after = self.template % tuple(parts)
        return Change(
            relation=self.relation,
            operation=Operation.UPDATE,
            ordinal=ordinal,
            key=self._key(new),
            before=before,
            after=after,
            unchanged=unchanged,
            changed=changed,
            said=said,
            old_key=old_key,
        )

    def _delete(self, payload: bytes, ordinal: int) -> Change:
        (parts, old), whole = read_delete(payload, self.encoders)
        return Change(
            relation=self.relation,
            operation=Operation.DELETE,
            ordinal=ordinal,
            key=self._key(old),
            before=(
                self.template % tuple(parts) if self._is_whole(old, whole) else self._image(parts, self._identity(old))
            ),
            said=self._texts(old),
        )

    def _truncate(self, payload: bytes, ordinal: int) -> Change:
        message = decode(payload)
        assert isinstance(message, Truncate)
        options = {"cascade": message.cascade, "restart_identity": message.restart_identity}
        return Change(
            relation=self.relation,
            operation=Operation.TRUNCATE,
            ordinal=ordinal,
            key=None,
            options=tuple(name for name, given in options.items() if given),
        )

    def _changes(self, changed: Iterable[tuple[str, int]], old: Sequence[Value], new: Sequence[Value]) -> str:
        """``status pending -> approved, amount 12.50 -> 13, photo``: of what is secret, or no word, the name."""
        said = [
            name if index < 0 or (now := new[index]) is UNCHANGED else f"{name} {_say(old[index])} -> {_say(now)}"
            for name, index in changed
        ]
        if len(said) > _SAID_COLUMNS:
            return f"{', '.join(said[:_SAID_COLUMNS])} and {len(said) - _SAID_COLUMNS} more"
        return ", ".join(said)

    def _texts(self, values: Sequence[Value]) -> str:
        """``pending, Jane Doe``: the first texts of a row."""
        return ", ".join([_say(value) for index in self.texts if (value := values[index]) and value is not UNCHANGED])

    def _image(self, parts: Sequence[bytes], indexes: Iterable[int]) -> bytes:
        return b"{" + b",".join([self.prefixes[index] + parts[index] for index in indexes]) + b"}"

    def _is_whole(self, old: Sequence[Value], whole: bool) -> bool:
        """Whether an old image is the row, or its key with nulls in all other places.

        For a partition root the stream's word (O or K) tells the root's replica identity, while the image is what
        the partition's own gave. A key image has nothing outside the primary key; so has a whole row without any
        other value, of which the key then tells all but the nulls.
        """
        if not self.partitioned:
            return whole
        # The columns of an index can be these and more: then nothing tells a key from a row.
        return (
            not self.by_index
            and all(old[index] is not None for index in self.key)
            and any(old[index] is not None for index in self.others)
        )

    def _identity(self, old: Sequence[Value]) -> Iterable[int]:
        """The columns that an old image holds which is not the row. Of a partition's index they are not null."""
        if self.partitioned:
            return [index for index, value in enumerate(old) if value is not None]
        return self.identity

    def _key(self, values: Sequence[Value]) -> str | None:
        key = self.key
        if len(key) == 1 and (value := values[key[0]]) is not None and value is not UNCHANGED:
            return str(value, "utf-8", "backslashreplace")
        if not key:
            return None
        parts: list[str] = []
        for index in self.key:
            value = values[index]
            # An old image under another index than the primary key's does not hold the key.
            if value is None or value is UNCHANGED:
                return None
            parts.append(value.decode(errors="backslashreplace"))
        # Two keys never look the same: ('a,b', 'c') is a\,b,c and ('a', 'b,c') is a,b\,c.
        return ",".join([part.replace("\\", "\\\\").replace(",", "\\,") for part in parts])
