"""What the store's feed says to a replayer: source transactions in commit order, and the marks of triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import msgspec

from afterwrite.activity import Lsn
from afterwrite.context import Context
from afterwrite.defer.calls import FeedChange, SourceTransaction, gather
from afterwrite.postgres import Database
from afterwrite.store.reader import (
    StoredActivity,
    StoredBatch,
    read_batch_activities,
    read_batches,
    read_settings,
)

_SILENCE, _RESTORE = "trigger.silence", "trigger.restore"
_READ_BATCHES = 256
_READ_ROWS = 10_000


class Place(NamedTuple):
    """A place in the feed: batches up to ``position`` are behind it, and commits up to ``lsn``."""

    position: int
    lsn: Lsn


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger was silenced, or restored, by the transaction that this is of; so it says.

    Every role may emit what looks like a mark: believe it only when the ledger tells of the same deed.
    """

    silences: bool
    identity: str
    trigger_oid: int
    mode: str
    xid: int

    @property
    def action(self) -> str:
        """The deed, as the ledger calls it."""
        return _SILENCE if self.silences else _RESTORE


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One source transaction that may concern us, and where the progress stands when it is done."""

    place: Place
    lsn: Lsn = Lsn(0)
    transaction: SourceTransaction | None = None
    marks: tuple[Mark, ...] = ()


async def read_next_batches(store: Database, source: str, *, after: int) -> list[StoredBatch]:
    """The batches that follow a position, as far as one reading goes."""
    return await read_batches(store, after, _READ_BATCHES, source=source)


async def read_steps(
    store: Database, batches: Sequence[StoredBatch], relations: frozenset[str], *, after: Lsn
) -> list[Step]:
    """What concerns these relations in the next batches (as many as are read together), and an end without work.

    Transactions that committed at or before ``after`` are left out.
    """
    batches = _fitting(batches, relations)
    concerning = [batch for batch in batches if _may_concern(batch, relations)]
    activities = await read_batch_activities(store, concerning, relations=sorted(relations))
    settings = {lsn: stamped for (_, lsn), stamped in (await read_settings(store, concerning)).items()}
    ahead = [activity for activity in activities if activity.commit_lsn and activity.commit_lsn > after]
    return [*_steps(ahead, settings, batches), Step(place=Place(batches[-1].position, max(map(_end, batches))))]


def _steps(
    activities: Sequence[StoredActivity], settings: Mapping[Lsn, Mapping[str, str]], batches: Sequence[StoredBatch]
) -> list[Step]:
    marks: dict[Lsn, list[Mark]] = {}
    changes: list[FeedChange] = []
    for activity in activities:
        if activity.commit_lsn is None:
            continue
        if change := _change(activity, activity.commit_lsn):
            changes.append(change)
        elif mark := _mark(activity):
            marks.setdefault(activity.commit_lsn, []).append(mark)
    transactions = {transaction.commit_lsn: transaction for transaction in gather(changes, settings)}
    steps: list[Step] = []
    following_batches = iter(batches)
    batch = next(following_batches)
    lsns = sorted({*marks, *transactions})
    for lsn, following in zip_longest(lsns, lsns[1:]):
        while _end(batch) < lsn:
            batch = next(following_batches)
        last = following is None or following > _end(batch)
        steps.append(
            Step(
                place=Place(batch.position, _end(batch)) if last else Place(batch.position - 1, lsn),
                lsn=lsn,
                transaction=transactions.get(lsn),
                marks=tuple(marks.get(lsn, ())),
            )
        )
    return steps


def _fitting(batches: Sequence[StoredBatch], relations: frozenset[str]) -> list[StoredBatch]:
    """As many as are read together: at least one, and not many more rows than a round wants."""
    taken: list[StoredBatch] = []
    rows = 0
    for batch in batches:
        taken.append(batch)
        rows += batch.rows if _may_concern(batch, relations) else 0
        if rows >= _READ_ROWS:
            break
    return taken


def _may_concern(batch: StoredBatch, relations: frozenset[str]) -> bool:
    """Whether it holds changes of these tables, or events (counted under the empty name), of which marks are some."""
    return "" in batch.rows_per_table or not relations.isdisjoint(batch.rows_per_table)


def _end(batch: StoredBatch) -> Lsn:
    return batch.last_lsn or Lsn(0)


class _Metadata(msgspec.Struct, frozen=True):
    """What we read of an activity's metadata: of a mark, and of a change that is not whole."""

    trigger_oid: int = 0
    mode: str = ""
    unchanged: tuple[str, ...] = ()
    exact: dict[str, object] = {}
    reason: str | None = None


def _metadata(activity: StoredActivity) -> _Metadata:
    return msgspec.json.decode(activity.metadata, type=_Metadata) if activity.metadata else _Metadata()


def _mark(activity: StoredActivity) -> Mark | None:
    if activity.category != "migration" or activity.action not in (_SILENCE, _RESTORE) or activity.xid is None:
        return None
    try:
        known = _metadata(activity)
    except (msgspec.DecodeError, RecursionError):
        return None  # not one of ours
    return Mark(
        silences=activity.action == _SILENCE,
        identity=activity.entity_id or "",
        trigger_oid=known.trigger_oid,
        mode=known.mode,
        xid=activity.xid,
    )


def _change(activity: StoredActivity, commit_lsn: Lsn) -> FeedChange | None:
    if activity.relation is None or activity.operation is None or activity.ordinal is None:
        return None
    known = _metadata(activity)
    return FeedChange(
        id=activity.id,
        commit_lsn=commit_lsn,
        ordinal=activity.ordinal,
        occurred_at=activity.occurred_at,
        relation=activity.relation,
        operation=activity.operation,
        changed=activity.changed,
        before=_raw(activity.before),
        after=_raw(activity.after),
        lacking=(*known.unchanged, *(name for name in ("before", "after") if name in known.exact)),
        context=Context(
            actor_id=activity.actor_id,
            actor_type=activity.actor_type,
            tenant_id=activity.tenant_id,
            session_id=activity.session_id,
            request_id=activity.request_id,
            trace_id=activity.trace_id,
            ip=activity.ip,
            user_agent=activity.user_agent,
            reason=known.reason,
        ),
    )


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())
