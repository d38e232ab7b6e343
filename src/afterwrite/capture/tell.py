"""From transactions to activities: ids, names, summaries, and who and why. Pure.

Made for millions: an activity comes in the parts that it shares with its transaction and its kind, which are made once,
and in what is its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache

import msgspec

from afterwrite.capture.transaction import Change, Message, Relation, Stamp, Transaction
from afterwrite.context import Context
from afterwrite.postgres import quoted
from afterwrite.record import (
    EVENT_PREFIX,
    Activity,
    Emitted,
    Entry,
    Kind,
    Level,
    Lsn,
    Operation,
    Origin,
    Sort,
    change_prefix,
    to_activity,
)
from afterwrite.seal import unseal

_encode = msgspec.json.Encoder().encode
_NOBODY = Context()


class Told:
    """What the store keeps of some transactions, in commit order: ``Entries`` that are made as they are read.

    A transaction's changes and emitted events come in the order of their ordinals. The same transaction always gives
    the same activities, ids included. With ``keys`` an event that none of them signed is marked, like what a stamp
    explains that none of them signed.
    """

    def __init__(
        self,
        transactions: Sequence[Transaction],
        *,
        source: str,
        system_id: str,
        timeline: int,
        keys: tuple[str, ...] = (),
    ) -> None:
        self._transactions = transactions
        self._source, self._system_id, self._timeline = source, system_id, timeline
        self._keys = keys

    def __len__(self) -> int:
        return sum(len(each.changes) + len(each.events) for each in self._transactions)

    def __iter__(self) -> Iterator[Activity]:
        return map(to_activity, self.entries())

    def entries(self) -> Iterator[Entry]:
        for transaction in self._transactions:
            yield from self._tell(transaction)

    def _tell(self, transaction: Transaction) -> Iterator[Entry]:
        prefix = change_prefix(
            self._system_id, self._timeline, transaction.commit_lsn, transaction.committed_at, source=self._source
        )
        stamps = iter(transaction.stamps)
        events = self._events(transaction, prefix) if transaction.events else iter(())
        stamp, event = next(stamps, None), next(events, None)
        # The first stamp speaks for what came before it too, and so does the first event.
        by = _By.told(transaction, self._source, None if stamp is None or stamp.here else stamp)
        by = by.explained(None if event is None else event.id)
        if stamp is not None and not stamp.here:
            stamp = next(stamps, None)
        turn = _turn(stamp, event)
        for change in transaction.changes:
            ordinal = change.ordinal
            while turn <= ordinal:
                if stamp is not None and stamp.ordinal == turn:
                    by = _By.told(transaction, self._source, stamp).explained(by.event)
                    stamp = next(stamps, None)
                elif event is not None:
                    yield event.tell(by)
                    by = by.explained(event.id)
                    event = next(events, None)
                turn = _turn(stamp, event)
            sort, words, unsure = _sort(change.relation, change.operation)
            key, changed = change.key, change.changed
            yield (
                by.caused,
                sort,
                f"{prefix}{ordinal:08x}",
                ordinal,
                key,
                _summary(words, key, change.said),
                None,
                changed,
                change.before,
                change.after,
                (
                    _metadata(change, by.words)
                    if unsure or change.unchanged or change.options or change.old_key is not None
                    else by.metadata
                ),
            )
        while event is not None:
            while stamp is not None and stamp.ordinal <= event.ordinal:
                by = _By.told(transaction, self._source, stamp)
                stamp = next(stamps, None)
            yield event.tell(by)
            event = next(events, None)

    def _events(self, transaction: Transaction, prefix: str) -> Iterator[_Event]:
        for message in transaction.events:
            yield _read_event(message, prefix, self._keys)


_NEVER = 1 << 62
_NO_WORDS: dict[str, object] = {}


def _turn(stamp: Stamp | None, event: _Event | None) -> int:
    """From which ordinal on something is to be done before a change is told."""
    if stamp is None and event is None:
        return _NEVER
    return min(_NEVER if stamp is None else stamp.ordinal, _NEVER if event is None else event.ordinal)


class _By(msgspec.Struct, frozen=True):
    """Who and why, made once for all that shares it.

    ``caused`` is the origin of what ``event`` explains; what the context says comes first. ``words`` go into the
    metadata of each, and are it where there is nothing else to be said.
    """

    origin: Origin
    caused: Origin
    words: dict[str, object]
    metadata: bytes | None
    event: str | None = None

    @classmethod
    def told(cls, transaction: Transaction, source: str, stamp: Stamp | None) -> _By:
        """What this stamp says; None for nobody."""
        context = _NOBODY if stamp is None else stamp.context
        origin = origin_of(
            context,
            occurred_at=transaction.committed_at,
            source=source,
            caused_by=context.caused_by,
            xid=transaction.xid,
            commit_lsn=transaction.commit_lsn,
        )
        unsigned = stamp is not None and stamp.unsigned
        if context.reason is None and not unsigned:
            return cls(origin, origin, _NO_WORDS, None)
        words: dict[str, object] = {} if context.reason is None else {"reason": context.reason}
        if unsigned:
            words["unsigned"] = True
        return cls(origin, origin, words, _encode(words))

    def explained(self, event: str | None) -> _By:
        """The same by this event."""
        if event == self.event:
            return self
        if event is None or self.origin.caused_by:
            return msgspec.structs.replace(self, event=event)
        caused = msgspec.structs.replace(self.origin, caused_by=event)
        return msgspec.structs.replace(self, caused=caused, event=event)


def origin_of(
    context: Context,
    *,
    occurred_at: datetime,
    source: str,
    caused_by: str | None,
    xid: int | None = None,
    commit_lsn: Lsn | None = None,
) -> Origin:
    """The words of a context, with when and where it was."""
    return Origin(
        occurred_at=occurred_at,
        source=source,
        actor_id=context.actor_id,
        actor_type=context.actor_type,
        tenant_id=context.tenant_id,
        session_id=context.session_id,
        request_id=context.request_id,
        trace_id=context.trace_id,
        ip=context.ip,
        user_agent=context.user_agent,
        caused_by=caused_by,
        xid=xid,
        commit_lsn=commit_lsn,
    )


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


def _metadata(change: Change, words: dict[str, object]) -> bytes | None:
    """What is to be said beside the change itself; the words of its context are said of each."""
    relation = change.relation
    told: dict[str, object] = {}
    if change.options:
        told["truncate"] = change.options
    if change.unchanged:
        told["unchanged"] = change.unchanged
    if change.old_key is not None:
        told["entity_was"] = change.old_key
    if relation.unsure_key and change.operation is not Operation.TRUNCATE:
        told["unsure"] = ("entity_id",)
    if relation.as_text and change.operation is not Operation.TRUNCATE:
        told["as_text"] = relation.as_text
    told.update(words)
    return _encode(told) if told else None


def _summary(words: str, key: str | None, said: str) -> str:
    text = words if key is None else f"{words} {key if len(key) < _UUID_LENGTH else _shorten(key)}"
    return f"{text}: {said}" if said else text


def _shorten(key: str) -> str:
    if len(key) == _UUID_LENGTH:
        return f"{key[:8]}.." if _UUID.fullmatch(key) else key
    return _UUID.sub(_UUID_BRIEFLY, key)


# Nobody reads a UUID to its end, and full text would keep each of its groups as a word. What is cut ends in two dots:
# among signs beyond ASCII the index would look for words in a dearer way.
_UUID = re.compile(r"([0-9a-f]{8})(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID_BRIEFLY, _UUID_LENGTH = r"\1..", 36


class _Event(msgspec.Struct, frozen=True):
    """An event of the transaction, read; ``words`` are what capture has to say of it."""

    ordinal: int
    id: str
    emitted: Emitted
    words: dict[str, object]

    def tell(self, by: _By) -> Entry:
        emitted = self.emitted
        caused = cause_of(emitted, self.id, by.origin.caused_by)
        origin = by.origin if caused == by.origin.caused_by else msgspec.structs.replace(by.origin, caused_by=caused)
        sort = sort_of(emitted)
        own = bytes(emitted.metadata)
        told = by.metadata if not self.words and own == b"null" else _merged(own, {**by.words, **self.words})
        return (
            origin, sort, self.id, self.ordinal, emitted.entity_id, emitted.summary, emitted.duration_ms, None, None,
            None, told,
        )  # fmt: skip


_emitted = msgspec.json.Decoder(Emitted)
# A version 8 is what we call changes by: nobody else's word makes one.
_TOLD_ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-79a-f][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def _read_event(message: Message, prefix: str, keys: tuple[str, ...]) -> _Event:
    """The event, or, when it cannot be read, an event that says so and holds its text: it did happen."""
    unsealed = unseal(EVENT_PREFIX, message.content, keys)
    words: dict[str, object] = {} if unsealed.signed or not keys else {"unsigned": True}
    try:
        emitted = _emitted.decode(unsealed.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = unsealed.payload.decode(errors="backslashreplace")
        emitted = Emitted(
            category="unreadable",
            action="event.unreadable",
            severity=Level.WARNING,
            summary="an emitted event that could not be read",
            metadata=msgspec.Raw(_encode({"content": text})),
        )
    id, told = name_told(emitted, f"{prefix}{message.ordinal:08x}")
    return _Event(message.ordinal, id, emitted, {**words, **told})


def name_told(emitted: Emitted, otherwise: str) -> tuple[str, dict[str, object]]:
    """The id of an event, and words on what it said of itself that does not hold: its time, an id that cannot be."""
    words: dict[str, object] = {} if emitted.occurred_at is None else {"occurred_at": emitted.occurred_at}
    if emitted.id is not None and _TOLD_ID.fullmatch(emitted.id):
        return emitted.id, words
    return otherwise, words if emitted.id is None else {**words, "told_id": emitted.id}


def cause_of(emitted: Emitted, id: str, around: str | None) -> str | None:
    """What led to an event: as it says, else what the context around it says.

    That may still be the one of the block that the event is about: nothing is caused by itself.
    """
    return emitted.caused_by or (around if around != id else None)


def sort_of(emitted: Emitted) -> Sort:
    """What events like this one share."""
    return Sort(
        kind=Kind.EVENT,
        category=emitted.category,
        action=emitted.action,
        outcome=emitted.outcome,
        severity=emitted.severity,
        entity_type=emitted.entity_type,
    )


def _merged(metadata: bytes, words: dict[str, object]) -> bytes:
    """The event's own metadata, with the words of its context where it does not bring them, and what capture marks."""
    own: dict[str, msgspec.Raw] = {}
    try:
        if metadata != b"null":
            own = msgspec.json.decode(metadata, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # No object: kept as it is, unless there is something to say that nobody else says.
        if "unsigned" not in words:
            return metadata
        own = {"metadata": msgspec.Raw(metadata)}
    marks = {"unsigned": True} if "unsigned" in words else {}
    return _encode({**words, **own, **marks}) if words else metadata
