"""From transactions to activities: ids, names, summaries, and who and why. Pure.

Made for millions: an activity comes in the parts that it shares with its transaction and its kind, which are made once,
and in what is its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import msgspec

from afterwrite.capture.transaction import Change, Message, Relation, Transaction
from afterwrite.context import Context
from afterwrite.postgres import quoted
from afterwrite.record import (
    Activity,
    Emitted,
    Entry,
    Kind,
    Level,
    Operation,
    Origin,
    Sort,
    change_prefix,
    to_activity,
)

_encode = msgspec.json.Encoder().encode
_SUMMARY_COLUMNS = 8
_NOBODY = Context()


class Told:
    """What the store keeps of some transactions, in commit order: ``Entries`` that are made as they are read.

    A transaction's changes and emitted events come in the order of their ordinals. The same transaction always gives
    the same activities, ids included.
    """

    def __init__(self, transactions: Sequence[Transaction], *, source: str, system_id: str, timeline: int) -> None:
        self._transactions = transactions
        self._source, self._system_id, self._timeline = source, system_id, timeline

    def __len__(self) -> int:
        return sum(len(each.changes) + len(each.events) for each in self._transactions)

    def __iter__(self) -> Iterator[Activity]:
        return map(to_activity, self.entries())

    def entries(self) -> Iterator[Entry]:
        for transaction in self._transactions:
            yield from self._tell(transaction)

    def _tell(self, transaction: Transaction) -> Iterator[Entry]:
        context = transaction.context or _NOBODY
        prefix = change_prefix(
            self._system_id, self._timeline, transaction.commit_lsn, transaction.committed_at, source=self._source
        )
        origin = _origin(transaction, self._source, context)
        metadata = None if context.reason is None else _encode({"reason": context.reason})
        events = iter(transaction.events)
        event = next(events, None)
        # An event explains the changes after it, and the first event also those before it.
        caused = origin if event is None else _caused(origin, context, f"{prefix}{event.ordinal:08x}")
        for change in transaction.changes:
            ordinal = change.ordinal
            while event is not None and event.ordinal < ordinal:
                id = f"{prefix}{event.ordinal:08x}"
                yield _tell_event(event, id, origin, context, metadata)
                caused = _caused(origin, context, id)
                event = next(events, None)
            sort, words, unsure = _sort(change.relation, change.operation)
            key, changed = change.key, change.changed
            yield (
                caused,
                sort,
                f"{prefix}{ordinal:08x}",
                ordinal,
                key,
                _summary(words, key, changed),
                None,
                changed,
                change.before,
                change.after,
                _metadata(change, context) if unsure or change.unchanged or change.options else metadata,
            )
        while event is not None:
            yield _tell_event(event, f"{prefix}{event.ordinal:08x}", origin, context, metadata)
            event = next(events, None)


def _origin(transaction: Transaction, source: str, context: Context) -> Origin:
    return Origin(
        occurred_at=transaction.committed_at,
        source=source,
        actor_id=context.actor_id,
        actor_type=context.actor_type,
        tenant_id=context.tenant_id,
        session_id=context.session_id,
        request_id=context.request_id,
        trace_id=context.trace_id,
        ip=context.ip,
        user_agent=context.user_agent,
        caused_by=context.caused_by,
        xid=transaction.xid,
        commit_lsn=transaction.commit_lsn,
    )


def _caused(origin: Origin, context: Context, event: str) -> Origin:
    """The origin of what an event explains; what the context says comes first."""
    return origin if context.caused_by else msgspec.structs.replace(origin, caused_by=event)


@lru_cache(maxsize=4096)
def _sort(relation: Relation, operation: Operation) -> tuple[Sort, str, bool]:
    """What all changes of this kind to a table share; how their summary begins; whether something of them is unsure."""
    entity_type = relation.table if relation.schema == "public" else f"{relation.schema}.{relation.table}"
    sort = Sort(
        kind=Kind.CHANGE,
        category="data",
        action=f"{relation.table}.{operation.value}",
        entity_type=entity_type,
        relation=quoted(relation.schema, relation.table),
        operation=operation,
    )
    return sort, f"{operation.value} {entity_type}", bool(relation.unsure_key or relation.as_text)


def _metadata(change: Change, context: Context) -> bytes | None:
    """What is to be said beside the change itself; the context's reason is said of each."""
    relation = change.relation
    told: dict[str, object] = {}
    if change.options:
        told["truncate"] = change.options
    if change.unchanged:
        told["unchanged"] = change.unchanged
    if relation.unsure_key and change.operation is not Operation.TRUNCATE:
        told["unsure"] = ("entity_id",)
    if relation.as_text and change.operation is not Operation.TRUNCATE:
        told["as_text"] = relation.as_text
    if context.reason is not None:
        told["reason"] = context.reason
    return _encode(told) if told else None


def _summary(words: str, key: str | None, changed: Sequence[str] | None) -> str:
    text = words if key is None else f"{words} {key if len(key) < _UUID_LENGTH else _shorten(key)}"
    if not changed:
        return text
    if len(changed) > _SUMMARY_COLUMNS:
        return f"{text}: {', '.join(changed[:_SUMMARY_COLUMNS])} and {len(changed) - _SUMMARY_COLUMNS} more"
    return f"{text}: {', '.join(changed)}"


def _shorten(key: str) -> str:
    if len(key) == _UUID_LENGTH:
        return f"{key[:8]}…" if _UUID.fullmatch(key) else key
    return _UUID.sub(_UUID_BRIEFLY, key)


# Nobody reads a UUID to its end, and full text would keep each of its groups as a word.
_UUID = re.compile(r"([0-9a-f]{8})(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID_BRIEFLY, _UUID_LENGTH = r"\1…", 36


def _tell_event(message: Message, id: str, origin: Origin, context: Context, metadata: bytes | None) -> Entry:
    emitted = _read_emitted(message.content)
    sort = Sort(
        kind=Kind.EVENT,
        category=emitted.category,
        action=emitted.action,
        outcome=emitted.outcome,
        severity=emitted.severity,
        entity_type=emitted.entity_type,
    )
    own = bytes(emitted.metadata)
    told = metadata if own == b"null" else _merged(own, context)
    return (origin, sort, id, message.ordinal, emitted.entity_id, emitted.summary, None, None, None, None, told)


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


def _merged(metadata: bytes, context: Context) -> bytes:
    """The event's own metadata, with the reason of its context where it does not bring one."""
    if context.reason is None or not metadata.lstrip().startswith(b"{"):
        return metadata
    try:
        own = msgspec.json.decode(metadata, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return metadata
    return _encode({"reason": context.reason, **own})
