"""Messages to whole transactions, and transactions to activities. Pure: what the catalog knows is told beforehand.

::

    Begin ▸ Relation ▸ Insert ▸ Update ▸ Message ▸ … ▸ Commit ──▶ Transaction ──to_activities──▶ [Activity]

Each Relation message compiles one ``_Table``: the encoders of its columns, where its key lies, and a template that
makes a row's JSON in one formatting step. A transaction is held in memory until its commit, because its context may
come last; its bound today is the memory that its rows take (about the size of their JSON plus 250 bytes a row).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta

import msgspec

from afterwrite.activity import (
    CONTEXT_PREFIX,
    EVENT_PREFIX,
    Activity,
    Emitted,
    Kind,
    Level,
    Operation,
    change_id,
    from_pg_microseconds,
)
from afterwrite.capture.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Truncate,
    Update,
    Value,
    decode,
)
from afterwrite.capture.transaction import Change, Message, Relation, Transaction
from afterwrite.capture.values import PgType, TypeCatalog, json_string
from afterwrite.context import Context, decode_context
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import quoted


class TableFacts(msgspec.Struct, frozen=True):
    """What the stream does not say of a table.

    Its primary key in index order, whether it is a partition root, and whether it is published as a legacy log only.
    """

    key: tuple[str, ...] = ()
    partitioned: bool = False
    legacy: bool = False


class Assembler:
    """Feed it the stream's messages in order; it gives each transaction at its commit.

    ``legacy`` names legacy log tables as (schema, table), beside those that the facts call so. Before a Relation
    message is fed, ``learn`` should have told the types and the facts of that table; what is not known is encoded as
    text, and keyed by the replica identity.
    """

    def __init__(self, *, legacy: AbstractSet[tuple[str, str]] = frozenset()) -> None:
        self.legacy = legacy
        self.types = TypeCatalog()
        self.undecodable = 0
        self._facts: dict[int, TableFacts] = {}
        self._tables: dict[int, _Table] = {}
        self._begin: Begin | None = None
        self._changes: list[Change] = []
        self._legacy_changes: list[Change] = []
        self._messages: list[Message] = []
        self._stamp: bytes | None = None
        self._ordinal = 0
        self._size = 0

    def learn(self, types: Iterable[PgType], facts: Mapping[int, TableFacts]) -> None:
        """Take what the catalog says now; it holds for the Relation messages fed from here on."""
        self.types = self.types.with_types(types)
        self._facts.update(facts)

    @property
    def in_transaction(self) -> bool:
        """Whether the last message left a transaction open."""
        return self._begin is not None

    def feed(self, payload: bytes) -> Transaction | None:
        """One message in; the transaction that it ends, if it ends one. Raises AfterwriteError for a broken stream."""
        message = decode(payload)
        self._size += len(payload)
        match message:
            case Insert():
                table = self._table(message.relation_oid)
                self._add(table, table.insert(message.new, self._ordinal))
            case Update():
                table = self._table(message.relation_oid)
                self._add(table, table.update(message, self._ordinal))
            case Delete():
                table = self._table(message.relation_oid)
                self._add(table, table.delete(message, self._ordinal))
            case Begin():
                self._start(message, len(payload))
            case Commit():
                return self._finish(message)
            case Relation():
                facts = self._facts.get(message.oid, TableFacts())
                self._tables[message.oid] = _Table(message, self.types, facts, self.legacy)
            case LogicalMessage():
                self._take(message)
            case Truncate():
                for oid in message.relation_oids:
                    table = self._table(oid)
                    change = Change(
                        relation=table.relation, operation=Operation.TRUNCATE, ordinal=self._ordinal, key=None
                    )
                    self._add(table, change)
            case _:  # Origin and Type say nothing that we keep
                pass
        return None

    def _start(self, begin: Begin, size: int) -> None:
        self._begin = begin
        self._changes = []
        self._legacy_changes = []
        self._messages = []
        self._stamp = None
        self._ordinal = 0
        self._size = size

    def _table(self, oid: int) -> _Table:
        table = self._tables.get(oid)
        if table is None:
            raise AfterwriteError(
                f"the stream changes relation {oid} before it has described it",
                remedy="this is a defect of afterwrite, or bytes of the stream were lost; start the worker again",
            )
        return table

    def _add(self, table: _Table, change: Change) -> None:
        self._ordinal += 1
        (self._legacy_changes if table.legacy else self._changes).append(change)

    def _take(self, message: LogicalMessage) -> None:
        if not message.transactional:
            return  # it belongs to no transaction, and is there even if its writer rolled back
        if message.prefix == CONTEXT_PREFIX:
            self._stamp = message.content
            return
        self._messages.append(Message(message.prefix, message.content, self._ordinal))
        self._ordinal += 1

    def _finish(self, commit: Commit) -> Transaction:
        begin = self._begin
        if begin is None:
            raise AfterwriteError(
                f"the stream commits at {commit.commit_lsn} what it never began",
                remedy="bytes of the stream were lost; start the worker again",
            )
        self._begin = None
        return Transaction(
            xid=begin.xid,
            commit_lsn=commit.commit_lsn,
            end_lsn=commit.end_lsn,
            committed_at=from_pg_microseconds(commit.committed_at),
            context=self._context(),
            changes=self._changes,
            legacy=self._legacy_changes,
            messages=self._messages,
            size=self._size,
        )

    def _context(self) -> Context | None:
        if self._stamp is None:
            return None
        try:
            return decode_context(self._stamp)
        except AfterwriteError:
            self.undecodable += 1
            return None


class _Table:
    """A relation as the stream described it, compiled."""

    def __init__(
        self, relation: Relation, types: TypeCatalog, facts: TableFacts, legacy: AbstractSet[tuple[str, str]]
    ) -> None:
        self.relation = relation
        self.legacy = facts.legacy or (relation.schema, relation.table) in legacy
        self.names = tuple(column.name for column in relation.columns)
        self.width = len(self.names)
        self.encoders = tuple(types.encoder(column.type_oid) for column in relation.columns)
        self.prefixes = tuple(json_string(name) + b":" for name in self.names)
        slots = [prefix.replace(b"%", b"%%") + b"%b" for prefix in self.prefixes]
        self.template = b"{" + b",".join(slots) + b"}"
        flagged = tuple(index for index, column in enumerate(relation.columns) if column.key)
        named = tuple(self.names.index(name) for name in facts.key if name in self.names)
        full = relation.replica_identity == "f"
        self.key = named if named and len(named) == len(facts.key) else (() if full else flagged)
        self.identity = self.key if full else flagged
        # The stream speaks of the root, but a partition's own replica identity decides what the WAL holds.
        self.partitioned = facts.partitioned
        self.others = tuple(index for index in range(self.width) if index not in self.key)

    def insert(self, new: list[Value], ordinal: int) -> Change:
        self._check(new)
        return Change(
            relation=self.relation,
            operation=Operation.INSERT,
            ordinal=ordinal,
            key=self._key(new),
            after=self.template % tuple(self._encode(new)),
        )

    def update(self, message: Update, ordinal: int) -> Change:
        old, new = message.old, message.new
        self._check(new)
        whole = old is not None and self._is_whole(old, message.whole)
        unchanged: tuple[str, ...] = ()
        if UNCHANGED in new:
            if old is not None:
                known = range(self.width) if whole else self.identity
                new = [
                    old[index] if value is UNCHANGED and index in known else value for index, value in enumerate(new)
                ]
            unchanged = tuple(name for name, value in zip(self.names, new, strict=True) if value is UNCHANGED)
        before: bytes | None = None
        changed: tuple[str, ...] | None = None
        if old is not None and whole:
            old_parts = self._encode(old)
            before = self.template % tuple(old_parts)
            # Most columns of an update stay as they were: their JSON is made once.
            parts = [
                part if value == was else b"null" if value is None else encode(value)
                for value, was, part, encode in zip(new, old, old_parts, self.encoders, strict=True)
            ]
            changed = tuple([name for name, value, was in zip(self.names, new, old, strict=True) if value != was])
        else:
            before = None if old is None else self._image(old, self.identity)
            parts = self._encode(new)
        if unchanged:
            after = self._join(parts, [index for index in range(self.width) if new[index] is not UNCHANGED])
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
        )

    def delete(self, message: Delete, ordinal: int) -> Change:
        old = message.old
        self._check(old)
        if self._is_whole(old, message.whole):
            before = self.template % tuple(self._encode(old))
        else:
            before = self._image(old, self.identity)
        return Change(
            relation=self.relation,
            operation=Operation.DELETE,
            ordinal=ordinal,
            key=self._key(old),
            before=before,
        )

    def _check(self, values: list[Value]) -> None:
        if len(values) != self.width:
            raise AfterwriteError(
                f"the stream sends {len(values)} columns for {quoted(self.relation.schema, self.relation.table)},"
                f" which it described with {self.width}",
                remedy="this is a defect of afterwrite: report it with the server's version",
            )

    def _encode(self, values: Sequence[Value]) -> list[bytes]:
        return [
            b"null" if value is None else encode(value) for value, encode in zip(values, self.encoders, strict=True)
        ]

    def _image(self, values: Sequence[Value], indexes: Sequence[int]) -> bytes:
        return self._join(self._encode(values), indexes)

    def _join(self, parts: Sequence[bytes], indexes: Sequence[int]) -> bytes:
        return b"{" + b",".join([self.prefixes[index] + parts[index] for index in indexes]) + b"}"

    def _is_whole(self, old: Sequence[Value], whole: bool) -> bool:
        """Whether an old image is the row, or its key with nulls in all other places.

        For a partition root the stream's word (O or K) tells the root's replica identity, while the image is what
        the partition's own gave. A key image has nothing outside the primary key; so has a whole row without any
        other value, of which the key then tells all but the nulls.
        """
        if not self.partitioned:
            return whole
        return all(old[index] is not None for index in self.key) and any(
            old[index] is not None for index in self.others
        )

    def _key(self, values: Sequence[Value]) -> str | None:
        if not self.key:
            return None
        parts: list[str] = []
        for index in self.key:
            value = values[index]
            # An old image under another index than the primary key's does not hold the key.
            if value is None or value is UNCHANGED:
                return None
            parts.append(value.decode(errors="backslashreplace"))
        return ",".join(parts)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_encode = msgspec.json.Encoder().encode
_SUMMARY_COLUMNS = 8


class _Naming(msgspec.Struct, frozen=True):
    relation: str
    entity_type: str


@functools.lru_cache(maxsize=4096)
def _naming(schema: str, table: str) -> _Naming:
    return _Naming(quoted(schema, table), table if schema == "public" else f"{schema}.{table}")


def to_activities(transaction: Transaction, *, source: str, system_id: str, timeline: int) -> list[Activity]:
    """What the store keeps of a transaction: its changes and emitted events in the order of their ordinals.

    The same transaction always gives the same activities, ids included.
    """
    changes = transaction.changes
    events = [message for message in transaction.messages if message.prefix == EVENT_PREFIX]
    if not changes and not events:
        return []
    commit_lsn, at, xid = transaction.commit_lsn, transaction.committed_at, transaction.xid
    unix_ms = (at - _EPOCH) // _MILLISECOND
    context = transaction.context or _NOBODY
    metadata = None if context.reason is None else msgspec.Raw(_encode({"reason": context.reason}))
    activities: list[Activity] = []
    # An event explains the changes after it, and the first event also those before it.
    causes = [(event.ordinal, change_id(system_id, timeline, commit_lsn, event.ordinal, unix_ms)) for event in events]
    cause = context.caused_by or (causes[0][1] if causes else None)
    following = iter(causes if context.caused_by is None else [])
    upcoming = next(following, None)
    for change in changes:
        while upcoming is not None and upcoming[0] < change.ordinal:
            cause, upcoming = upcoming[1], next(following, None)
        relation, operation = change.relation, change.operation
        naming = _naming(relation.schema, relation.table)
        word = operation.value
        changed = change.changed
        activities.append(
            Activity(
                id=change_id(system_id, timeline, commit_lsn, change.ordinal, unix_ms),
                occurred_at=at,
                source=source,
                kind=Kind.CHANGE,
                category="data",
                action=f"{relation.table}.{word}",
                entity_type=naming.entity_type,
                entity_id=change.key,
                actor_id=context.actor_id,
                actor_type=context.actor_type,
                tenant_id=context.tenant_id,
                session_id=context.session_id,
                request_id=context.request_id,
                trace_id=context.trace_id,
                ip=context.ip,
                user_agent=context.user_agent,
                summary=_summary(word, naming.entity_type, change.key, changed),
                relation=naming.relation,
                operation=operation,
                changed=changed,
                before=None if change.before is None else msgspec.Raw(change.before),
                after=None if change.after is None else msgspec.Raw(change.after),
                metadata=_metadata(context, change.unchanged) if change.unchanged else metadata,
                caused_by=cause,
                xid=xid,
                commit_lsn=commit_lsn,
                ordinal=change.ordinal,
            )
        )
    if events:
        for event, (_, id) in zip(events, causes, strict=True):
            activities.append(_event(event, id=id, transaction=transaction, metadata=metadata, source=source))
        activities.sort(key=_ordinal)
    return activities


def _metadata(context: Context, unchanged: Sequence[str]) -> msgspec.Raw:
    more = {} if context.reason is None else {"reason": context.reason}
    return msgspec.Raw(_encode({"unchanged": unchanged, **more}))


def _ordinal(activity: Activity) -> int:
    return activity.ordinal or 0


def _summary(word: str, entity_type: str, key: str | None, changed: Sequence[str] | None) -> str:
    text = f"{word} {entity_type}" if key is None else f"{word} {entity_type} {key}"
    if not changed:
        return text
    if len(changed) > _SUMMARY_COLUMNS:
        return f"{text}: {', '.join(changed[:_SUMMARY_COLUMNS])} and {len(changed) - _SUMMARY_COLUMNS} more"
    return f"{text}: {', '.join(changed)}"


_NOBODY = Context()


def _event(
    message: Message, *, id: str, transaction: Transaction, metadata: msgspec.Raw | None, source: str
) -> Activity:
    context = transaction.context or _NOBODY
    emitted = _read_emitted(message.content)
    return Activity(
        id=id,
        occurred_at=transaction.committed_at,
        source=source,
        kind=Kind.EVENT,
        category=emitted.category,
        action=emitted.action,
        outcome=emitted.outcome,
        severity=emitted.severity,
        entity_type=emitted.entity_type,
        entity_id=emitted.entity_id,
        actor_id=context.actor_id,
        actor_type=context.actor_type,
        tenant_id=context.tenant_id,
        session_id=context.session_id,
        request_id=context.request_id,
        trace_id=context.trace_id,
        ip=context.ip,
        user_agent=context.user_agent,
        summary=emitted.summary,
        metadata=_merged(emitted.metadata, context) if bytes(emitted.metadata) != b"null" else metadata,
        caused_by=context.caused_by,
        xid=transaction.xid,
        commit_lsn=transaction.commit_lsn,
        ordinal=message.ordinal,
    )


_emitted = msgspec.json.Decoder(Emitted)


def _read_emitted(content: bytes) -> Emitted:
    """The event, or, when it cannot be read, an event that says so and holds its text: it did happen."""
    try:
        return _emitted.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = content.decode(errors="backslashreplace")
        return Emitted(
            category="unreadable",
            action="event.unreadable",
            severity=Level.WARNING,
            summary="an emitted event that could not be read",
            metadata=msgspec.Raw(_encode({"content": text})),
        )


def _merged(metadata: msgspec.Raw, context: Context) -> msgspec.Raw:
    """The event's own metadata, with the reason of its context where it does not bring one."""
    if context.reason is None or not bytes(metadata).lstrip().startswith(b"{"):
        return metadata
    try:
        own = msgspec.json.decode(metadata, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return metadata
    return msgspec.Raw(_encode({"reason": context.reason, **own}))
