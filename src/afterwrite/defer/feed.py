"""What the store's feed says to a replayer: source transactions in commit order, and the marks of triggers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from afterwrite.context import Context
from afterwrite.defer.calls import FeedChange, SourceTransaction, gather
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database
from afterwrite.record import Lsn
from afterwrite.store.reader import (
    StoredActivity,
    StoredBatch,
    StoredTransaction,
    read_actions,
    read_batch_activities,
    read_batch_pages,
    read_batches,
    read_settings,
    read_transactions,
)

_MIGRATION, _SILENCE, _RESTORE = "migration", "trigger.silence", "trigger.restore"
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


class LongTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """A source transaction with more changes than are held at once: ``read_changes`` gives them in pages."""

    batch: StoredBatch
    transaction: StoredTransaction
    settings: Mapping[str, str]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One source transaction that may concern us, and where the progress stands when it is done."""

    place: Place
    lsn: Lsn = Lsn(0)
    transaction: SourceTransaction | None = None
    long: LongTransaction | None = None
    marks: tuple[Mark, ...] = ()


async def read_next_batches(store: Database, source: str, *, after: int) -> list[StoredBatch]:
    """The batches that follow a position, as far as one reading goes."""
    return await read_batches(store, after, _READ_BATCHES, source=source)


async def read_steps(
    store: Database, batches: Sequence[StoredBatch], relations: frozenset[str], *, after: Lsn
) -> AsyncGenerator[list[Step]]:
    """What concerns these relations in the next batches (as many as are read together), and an end without work.

    Transactions that committed at or before ``after`` are left out. No more changes are held at once than a round
    wants, however long a batch is.
    """
    batches = _fitting(batches, relations)
    end = Step(place=Place(batches[-1].position, max(map(_end, batches))))
    concerning = [batch for batch in batches if _may_concern(batch, relations)]
    marks = await _read_marks(store, concerning, after=after)
    settings = {lsn: stamped for (_, lsn), stamped in (await read_settings(store, concerning)).items()}
    if _concerned_rows(batches[0], relations) > _READ_ROWS:
        async for steps in _read_long_batch(store, batches[0], relations, marks, settings, after=after):
            yield steps
        yield [end]
        return
    activities = await read_batch_activities(store, concerning, relations=sorted(relations), events=False)
    transactions = transactions_of(activities, settings, after=after)
    steps: list[Step] = []
    following_batches = iter(batches)
    batch = next(following_batches)
    lsns = sorted({*marks, *transactions})
    for number, lsn in enumerate(lsns):
        while _end(batch) < lsn:
            batch = next(following_batches)
        last = number + 1 == len(lsns) or lsns[number + 1] > _end(batch)
        steps.append(
            Step(
                place=_place(batch, lsn, last=last),
                lsn=lsn,
                transaction=transactions.get(lsn),
                marks=tuple(marks.get(lsn, ())),
            )
        )
    yield [*steps, end]


async def _read_long_batch(
    store: Database,
    batch: StoredBatch,
    relations: frozenset[str],
    marks: Mapping[Lsn, Sequence[Mark]],
    settings: Mapping[Lsn, Mapping[str, str]],
    *,
    after: Lsn,
) -> AsyncGenerator[list[Step]]:
    """The steps of one batch that is too long to be read at once; a transaction that is so itself is a step alone."""
    found = {each.commit_lsn: each for each in await read_transactions(store, batch, sorted(relations), after=after)}
    lsns = sorted({*marks, *found})
    places = {lsn: _place(batch, lsn, last=lsn == lsns[-1]) for lsn in lsns}
    for run in _runs(lsns, found):
        if len(run) == 1 and (known := found.get(run[0])) and known.rows > _READ_ROWS:
            transactions: Mapping[Lsn, SourceTransaction] = {}
            long = LongTransaction(batch=batch, transaction=known, settings=settings.get(run[0], {}))
        else:
            stretch = (run[0], run[-1])
            activities = await read_batch_activities(
                store, [batch], relations=sorted(relations), events=False, lsns=stretch
            )
            transactions, long = transactions_of(activities, settings, after=after), None
        yield [
            Step(
                place=places[lsn],
                lsn=lsn,
                transaction=transactions.get(lsn),
                long=long,
                marks=tuple(marks.get(lsn, ())),
            )
            for lsn in run
        ]


def _runs(lsns: Sequence[Lsn], found: Mapping[Lsn, StoredTransaction]) -> list[list[Lsn]]:
    """The transactions in runs that are read together; one that is too long by itself is a run of its own."""
    runs: list[list[Lsn]] = []
    rows = 0
    for lsn in lsns:
        more = found[lsn].rows if lsn in found else 0
        if not runs or rows + more > _READ_ROWS:
            runs.append([])
            rows = 0
        runs[-1].append(lsn)
        rows += more
    return runs


async def read_changes(
    store: Database, long: LongTransaction, relations: frozenset[str]
) -> AsyncGenerator[list[FeedChange]]:
    """The changes of a long transaction that concern these relations, in the order of the writes, in pages."""
    ordinal = -1
    async for page in read_batch_pages(
        store, long.batch, relations=sorted(relations), events=False, transaction=long.transaction
    ):
        changes = [change for activity in page if (change := _change(activity, long.transaction.commit_lsn))]
        for change in changes:
            if change.ordinal <= ordinal:
                raise AfterwriteError(
                    f"the ids of transaction {long.transaction.commit_lsn} in the store are not in the order of its"
                    f" writes: {change.id} stands behind ordinal {ordinal}",
                    remedy="it was captured by another version of afterwrite: capture it again under a new source",
                )
            ordinal = change.ordinal
        yield changes


async def _read_marks(store: Database, batches: Sequence[StoredBatch], *, after: Lsn) -> dict[Lsn, list[Mark]]:
    with_events = [batch for batch in batches if "" in batch.rows_per_table]
    marks: dict[Lsn, list[Mark]] = {}
    for activity in await read_actions(store, with_events, category=_MIGRATION, actions=(_SILENCE, _RESTORE)):
        if activity.commit_lsn and activity.commit_lsn > after and (mark := _mark(activity)):
            marks.setdefault(activity.commit_lsn, []).append(mark)
    return marks


def transactions_of(
    activities: Sequence[StoredActivity], settings: Mapping[Lsn, Mapping[str, str]], *, after: Lsn
) -> dict[Lsn, SourceTransaction]:
    """What committed together after a place, by commit; ``activities`` come in the order of the feed."""
    changes = [
        change
        for activity in activities
        if activity.commit_lsn and activity.commit_lsn > after and (change := _change(activity, activity.commit_lsn))
    ]
    return {transaction.commit_lsn: transaction for transaction in gather(changes, settings)}


def _place(batch: StoredBatch, lsn: Lsn, *, last: bool) -> Place:
    return Place(batch.position, _end(batch)) if last else Place(batch.position - 1, lsn)


def _fitting(batches: Sequence[StoredBatch], relations: frozenset[str]) -> list[StoredBatch]:
    """As many as are read together: at least one, and no more rows than a round wants unless one has them alone."""
    taken: list[StoredBatch] = []
    rows = 0
    for batch in batches:
        rows += _concerned_rows(batch, relations)
        if taken and rows > _READ_ROWS:
            break
        taken.append(batch)
    return taken


def _concerned_rows(batch: StoredBatch, relations: frozenset[str]) -> int:
    return sum(batch.rows_per_table.get(relation, 0) for relation in relations)


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
    if activity.xid is None:
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
