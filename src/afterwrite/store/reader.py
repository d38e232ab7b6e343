"""Reading the store: the feed of batches in its total order, what each batch holds, the newest activity, the seal."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import IO, Any, LiteralString

import msgspec
from psycopg import sql

from afterwrite.postgres import Database, identifier, statement
from afterwrite.record import Kind, Level, Lsn, Operation, Outcome
from afterwrite.store.lines import COLUMNS, Seal, Sealing, read_batch_id

_VERIFIED_AT_ONCE = 50
_PAGE_ROWS = 1_000
_NO_ID = "00000000-0000-0000-0000-000000000000"


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A committed sink transaction that stored rows. ``first_at`` and ``last_at`` bound its rows' ``occurred_at``."""

    id: int
    position: int
    source: str
    first_lsn: Lsn | None
    last_lsn: Lsn | None
    first_at: datetime
    last_at: datetime
    transactions: int
    rows: int
    rows_per_table: dict[str, int]
    written_at: datetime


class StoredActivity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An activity as the store keeps it, and its place in the feed. ``before``, ``after``, ``metadata``: JSON text."""

    position: int
    batch_id: int
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
    before: str | None
    after: str | None
    metadata: str | None
    caused_by: str | None
    xid: int | None
    commit_lsn: Lsn | None
    ordinal: int | None


def as_json(activity: StoredActivity) -> dict[str, object]:
    """The activity as one JSON object, its rows and metadata in it, as commands, the API and the feed give it."""
    values = msgspec.structs.asdict(activity)
    for name in ("before", "after", "metadata"):
        text = values[name]
        values[name] = None if text is None else msgspec.Raw(text.encode())
    values["commit_lsn"] = None if activity.commit_lsn is None else str(activity.commit_lsn)
    return values


class StoredTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """A source transaction in a batch, and how many of its changes were asked about."""

    commit_lsn: Lsn
    first_at: datetime
    last_at: datetime
    rows: int


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What people look for: activity of this actor, about this entity, of this action; None: of any."""

    actor_id: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    action: str | None = None


class FeedBounds(msgspec.Struct, frozen=True):
    """Batches up to ``start`` are expired, ``position`` is the newest one's."""

    start: int
    position: int


class Break(msgspec.Struct, frozen=True):
    """The first place where the feed is not what was written, and what is wrong there."""

    position: int
    source: str | None
    text: str


class FeedReport(msgspec.Struct, frozen=True):
    """What ``verify_feed`` checked up to ``position``; ``first_break`` is None when all of it holds.

    ``expired_until`` is the last day that retention has taken: batches up to there are gone, or lack rows, rightly.
    """

    position: int
    batches: int
    rows: int
    first_break: Break | None
    expired_until: date | None = None


async def read_position(db: Database) -> int:
    """The position of the newest batch, 0 for an empty feed."""
    position: int = await db.value(statement("store.read_position"))
    return position


async def read_batches(
    db: Database, after_position: int = 0, limit: int = 100, *, source: str | None = None
) -> list[StoredBatch]:
    """The next batches of the feed (of one source, where it is named), in order.

    A batch that becomes visible later always has a higher position than those already seen.
    """
    return await db.rows(
        _batch, statement("store.read_batches"), after_position=after_position, source=source, limit=limit
    )


async def read_batch_activities(
    db: Database,
    batches: Sequence[StoredBatch],
    *,
    relations: Sequence[str] | None = None,
    events: bool = True,
    lsns: tuple[Lsn, Lsn] | None = None,
    wanted: Wanted | None = None,
) -> list[StoredActivity]:
    """What these batches hold, in the order (position, commit_lsn, ordinal); all of it at once, so mind their ``rows``.

    ``relations`` (quoted names) keeps to the changes of these tables; events come too unless told otherwise. ``lsns``
    keeps to the transactions whose commits lie between these two.
    """
    if not batches:
        return []
    return await db.rows(
        stored_activity,
        statement("store.read_batch_activities", activity=ACTIVITY),
        **_stretch(batches),
        relations=None if relations is None else list(relations),
        events=events,
        first_lsn=str(lsns[0]) if lsns else None,
        last_lsn=str(lsns[1]) if lsns else None,
        **msgspec.structs.asdict(wanted or Wanted()),
    )


async def read_batch_pages(
    db: Database,
    batch: StoredBatch,
    *,
    relations: Sequence[str] | None = None,
    events: bool = True,
    transaction: StoredTransaction | None = None,
    wanted: Wanted | None = None,
    rows: int | None = None,
) -> AsyncGenerator[list[StoredActivity]]:
    """What a batch, or one transaction of it, holds, in the order of time, so many ``rows`` (a thousand) at once.

    Within a transaction that is the order of the writes, since its ids are.
    """
    stretch = transaction or batch
    after = stretch.first_at, _NO_ID
    while page := await _read_batch_page(
        db,
        batch,
        after=after,
        last_at=stretch.last_at,
        relations=relations,
        events=events,
        transaction=transaction,
        wanted=wanted,
        rows=rows or _PAGE_ROWS,
    ):
        yield page
        after = page[-1].occurred_at, page[-1].id


async def read_batch_page(
    db: Database, batch: StoredBatch, *, after: tuple[datetime, str] | None, rows: int
) -> list[StoredActivity]:
    """The next ``rows`` of what a batch holds in the order of time, behind a time and an id; [] at its end."""
    return await _read_batch_page(
        db,
        batch,
        after=after or (batch.first_at, _NO_ID),
        last_at=batch.last_at,
        relations=None,
        events=True,
        transaction=None,
        wanted=None,
        rows=rows,
    )


async def _read_batch_page(
    db: Database,
    batch: StoredBatch,
    *,
    after: tuple[datetime, str],
    last_at: datetime,
    relations: Sequence[str] | None,
    events: bool,
    transaction: StoredTransaction | None,
    wanted: Wanted | None,
    rows: int,
) -> list[StoredActivity]:
    return await db.rows(
        stored_activity,
        statement("store.read_batch_page", activity=ACTIVITY),
        batch_id=batch.id,
        position=batch.position,
        last_at=last_at,
        after_at=after[0],
        after_id=after[1],
        relations=None if relations is None else list(relations),
        events=events,
        commit_lsn=str(transaction.commit_lsn) if transaction else None,
        **msgspec.structs.asdict(wanted or Wanted()),
        limit=rows,
    )


async def read_feed_rows(db: Database, batches: Sequence[StoredBatch]) -> list[StoredActivity]:
    """What these batches hold of what the reader may see, in the feed's order; all of it at once.

    As ``read_batch_activities``, for a role that sees some activity and no batches.
    """
    return await db.rows(
        stored_activity,
        statement("feed.read_rows", activity=ACTIVITY),
        positions=[batch.position for batch in batches],
        **_stretch(batches),
    )


async def read_feed_bounds(db: Database) -> FeedBounds:
    """Where the feed begins and ends now."""
    return await db.one(FeedBounds, statement("feed.read_bounds"))


async def read_feed_distance(db: Database, after: int, until: int) -> int:
    """How many rows the batches between two positions brought."""
    rows: int = await db.value(statement("feed.read_distance"), after_position=after, until_position=until)
    return rows


async def read_moment_in_batch(db: Database, batch: StoredBatch, id: str) -> datetime | None:
    """When the activity of this id in this batch occurred; None where it is not there, or not to be seen."""
    moment: datetime | None = await db.value(
        statement("feed.read_moment"), id=id, batch_id=batch.id, first_at=batch.first_at, last_at=batch.last_at
    )
    return moment


async def read_transactions(
    db: Database, batch: StoredBatch, relations: Sequence[str], *, after: Lsn
) -> list[StoredTransaction]:
    """The transactions of a batch that committed after a place in the WAL and changed these tables, in commit order."""
    return await db.rows(
        _transaction,
        statement("store.read_transactions"),
        batch_id=batch.id,
        first_at=batch.first_at,
        last_at=batch.last_at,
        relations=list(relations),
        after_lsn=str(after),
    )


async def read_actions(
    db: Database, batches: Sequence[StoredBatch], *, category: str, actions: Sequence[str]
) -> list[StoredActivity]:
    """The events of a category and of these actions that these batches hold, in the order of the feed."""
    if not batches:
        return []
    return await db.rows(
        stored_activity,
        statement("store.read_actions", activity=ACTIVITY),
        **_stretch(batches),
        category=category,
        actions=list(actions),
    )


async def read_settings(db: Database, batches: Sequence[StoredBatch]) -> dict[tuple[int, Lsn], dict[str, str]]:
    """The session settings that transactions of these batches stamped, by (batch id, commit LSN)."""
    rows = await db.rows(_Settings, statement("store.read_settings"), batch_ids=[batch.id for batch in batches])
    return {(row.batch_id, Lsn.parse(row.commit_lsn)): row.settings for row in rows}


async def read_tail(db: Database, *, limit: int = 20, wanted: Wanted | None = None) -> list[StoredActivity]:
    """The newest activity, oldest first."""
    newest = await db.rows(
        stored_activity,
        statement("store.read_newest", activity=ACTIVITY),
        limit=limit,
        **msgspec.structs.asdict(wanted or Wanted()),
    )
    return newest[::-1]


async def read_after(
    db: Database, after_position: int, until: int, *, wanted: Wanted | None = None
) -> AsyncGenerator[list[StoredActivity]]:
    """What the feed brought after a position and up to another, in its order, a page at a time.

    To follow, ask again from ``until``. A batch that is longer than a page comes in the order of time.
    """
    position = after_position
    while position < until:
        batches = [batch for batch in await read_batches(db, position) if batch.position <= until]
        if not batches:
            return
        position = batches[-1].position
        for together in _by_rows(batches):
            if len(together) == 1:
                async for page in read_batch_pages(db, together[0], wanted=wanted):
                    yield page
            elif found := await read_batch_activities(db, together, wanted=wanted):
                yield found


def _by_rows(batches: Sequence[StoredBatch]) -> Iterator[list[StoredBatch]]:
    """The batches in runs that have no more rows than a page, or are one batch."""
    run: list[StoredBatch] = []
    for batch in batches:
        if run and sum(each.rows for each in run) + batch.rows > _PAGE_ROWS:
            yield run
            run = []
        run.append(batch)
    if run:
        yield run


async def verify_feed(db: Database, *, after_position: int = 0) -> FeedReport:
    """Check that positions are gapless, that every batch holds the rows it was sealed with, and that the chain holds.

    Reads every stored row once. Stops at the first break. What retention took is no break: batches before the feed's
    start, and rows of expired days.
    """
    end = await read_position(db)
    expired_until: date | None = await db.value(statement("maintain.read_expired_until"))
    position, batches, rows = max(after_position, await _feed_start(db)), 0, 0

    def report(source: str | None, text: str | None) -> FeedReport:
        broken = None if text is None else Break(position + 1, source, text)
        return FeedReport(position, batches, rows, broken, expired_until)

    while position < end:
        page = await db.rows(
            _Verified, statement("store.verify_batches"), after_position=position, limit=_VERIFIED_AT_ONCE
        )
        if not page:
            return report(None, f"batches from position {position + 1} to {end} are gone")
        seals = await _read_seals(db, page)
        for batch in page:
            if batch.position != position + 1:
                if (start := await _feed_start(db)) > position:
                    position = start  # retention is at work beside us
                    break
                return report(None, f"batches from position {position + 1} to {batch.position - 1} are gone")
            seal = seals.get(batch.id, _NO_ROWS)
            expired = seal.rows < batch.rows and await db.value(
                statement("maintain.is_expired"), position=batch.position
            )
            if seal.rows != batch.rows and not expired:
                return report(batch.source, f"batch {batch.id} was sealed with {batch.rows} rows and has {seal.rows}")
            if not expired and (seal.digest != batch.rows_digest or seal.rows_per_table != batch.rows_per_table):
                return report(batch.source, f"rows of batch {batch.id} are not those it was sealed with")
            if not batch.chain_holds:
                return report(batch.source, f"batch {batch.id} does not follow the batch before it of its source")
            position, batches, rows = batch.position, batches + 1, rows + seal.rows
    stray: str | None = await db.value(statement("store.read_stray"))
    return report(None, None if stray is None else f"activity {stray} is in the store, and no batch brought it")


class SealBreak(msgspec.Struct, frozen=True):
    """A batch whose rows are not those that it was sealed with, and what is wrong with it."""

    batch_id: int
    text: str


async def verify_day(db: Database, day: date, table: str) -> SealBreak | None:
    """Check the batches that have rows of a day, whose partition is ``table``; None: all of it holds.

    In a transaction of the caller's, whose snapshot it is true of. Reads the day once in the order of its batches,
    and of batches that go over midnight also their other days, unless one of these has left the store: then nobody can
    tell any more. Memory does not grow with the day.
    """
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as kept:
        batch, sealing = 0, Sealing()
        async for line in read_day_lines(db, table):
            id = read_batch_id(line)
            if id != batch:
                _keep(kept, batch, sealing)
                batch, sealing = id, Sealing()
            sealing.add(line)
        _keep(kept, batch, sealing)
        kept.seek(0)
        await db.run(statement("store.make_seals"))
        await db.run(statement("store.clear_seals"))
        await db.copy_in(statement("store.fill_seals"), iter(lambda: kept.read(_CHUNK_BYTES), b""))
    since = datetime(day.year, day.month, day.day, tzinfo=UTC)
    bounds = {"since": since, "until": since + timedelta(days=1)}
    broken = await db.maybe(SealBreak, statement("store.read_broken_seal"), day=day, **bounds)
    if broken is not None:
        return broken
    after = 0
    while page := await db.rows(
        _Verified, statement("store.verify_over_midnight"), after_position=after, limit=_VERIFIED_AT_ONCE, **bounds
    ):
        seals = await _read_seals(db, page)
        for one in page:
            seal = seals.get(one.id, _NO_ROWS)
            if (seal.rows, seal.digest, seal.rows_per_table) != (one.rows, one.rows_digest, one.rows_per_table):
                return SealBreak(one.id, f"rows of batch {one.id} are not those it was sealed with")
            if not one.chain_holds:
                return SealBreak(one.id, f"batch {one.id} does not follow the batch before it of its source")
        after = page[-1].position
    return None


async def read_day_lines(db: Database, table: str) -> AsyncIterator[bytes]:
    """The rows of a partition, batch by batch, as the lines that seals are made of; in a transaction of a caller."""
    await db.run(statement("store.set_copy_form"))
    columns = sql.SQL(", ").join([sql.Identifier("a", name) for name in COLUMNS])
    async for line in db.copy_out(sql.SQL(_DAY_LINES).format(columns=columns, table=identifier("afterwrite", table))):
        yield line


def _keep(kept: IO[bytes], batch: int, sealing: Sealing) -> None:
    """Write the seal of a batch's rows down, as COPY reads it."""
    seal = sealing.seal()
    if seal.rows:
        tables = msgspec.json.encode(seal.rows_per_table).replace(b"\\", b"\\\\")
        kept.write(b"%d\t%d\t\\\\x%s\t%s\n" % (batch, seal.rows, seal.digest.hex().encode(), tables))


_SPOOLED_BYTES, _CHUNK_BYTES = 8 << 20, 1 << 20
_DAY_LINES: LiteralString = (
    "copy (select {columns} from {table} a"
    " order by a.batch_id, a.commit_lsn nulls first, a.ordinal, a.occurred_at, a.id) to stdout"
)


async def _feed_start(db: Database) -> int:
    position: int = await db.value(statement("maintain.read_start"))
    return position


class _Settings(msgspec.Struct, frozen=True):
    batch_id: int
    commit_lsn: str
    settings: dict[str, str]


class _Verified(msgspec.Struct, frozen=True):
    position: int
    id: int
    source: str
    first_at: datetime
    last_at: datetime
    rows: int
    rows_per_table: dict[str, int]
    rows_digest: bytes
    chain_holds: bool


_NO_ROWS = Sealing().seal()


async def _read_seals(db: Database, batches: Sequence[_Verified]) -> dict[int, Seal]:
    """What the rows of these batches amount to today, by batch id."""
    sealings: dict[int, Sealing] = {}
    async with db.transaction():
        await db.run(statement("store.set_copy_form"))
        async for line in db.copy_out(
            statement("store.copy_batches"),
            batch_ids=[batch.id for batch in batches],
            first_at=min(batch.first_at for batch in batches),
            last_at=max(batch.last_at for batch in batches),
        ):
            id = read_batch_id(line)
            sealing = sealings.get(id)
            if sealing is None:
                sealing = sealings[id] = Sealing()
            sealing.add(line)
    return {id: sealing.seal() for id, sealing in sealings.items()}


def _stretch(batches: Sequence[StoredBatch]) -> dict[str, Any]:
    return {
        "batch_ids": [batch.id for batch in batches],
        "first_at": min(batch.first_at for batch in batches),
        "last_at": max(batch.last_at for batch in batches),
    }


def _transaction(*, commit_lsn: str, **columns: Any) -> StoredTransaction:
    return StoredTransaction(commit_lsn=Lsn.parse(commit_lsn), **columns)


def _batch(*, first_lsn: str | None, last_lsn: str | None, **columns: Any) -> StoredBatch:
    return StoredBatch(first_lsn=_lsn(first_lsn), last_lsn=_lsn(last_lsn), **columns)


ACTIVITY: LiteralString = (
    "a.batch_id, a.id::text as id, a.occurred_at, a.source, a.kind, a.category, a.action, a.outcome, a.severity,"
    " a.entity_type, a.entity_id, a.actor_id, a.actor_type, a.tenant_id, a.session_id, a.request_id, a.trace_id,"
    " pg_catalog.abbrev(a.ip) as ip, a.user_agent, a.duration_ms, a.summary, a.relation, a.operation, a.changed,"
    " a.before::text as before, a.after::text as after, a.metadata::text as metadata, a.caused_by::text as caused_by,"
    " a.xid, a.commit_lsn::text as commit_lsn, a.ordinal"
)
"""What ``stored_activity`` reads of ``afterwrite.activity a``, but for the position of its batch."""


def stored_activity(
    *,
    occurred_at: datetime,
    kind: str,
    outcome: str,
    severity: str,
    operation: str | None,
    changed: list[str] | None,
    commit_lsn: str | None,
    **columns: Any,
) -> StoredActivity:
    """The activity of a row whose columns are called as its fields are, its JSON, ids and place in the WAL as text.

    Its time is in UTC, whatever the session's zone is.
    """
    return StoredActivity(
        occurred_at=occurred_at.astimezone(UTC),
        kind=Kind(kind),
        outcome=Outcome(outcome),
        severity=Level(severity),
        operation=None if operation is None else Operation(operation),
        changed=None if changed is None else tuple(changed),
        commit_lsn=_lsn(commit_lsn),
        **columns,
    )


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)
