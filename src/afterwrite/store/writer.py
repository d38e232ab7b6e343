"""The sink that is PostgreSQL: one batch, its rows, its seal and its checkpoint in one flushed transaction.

::

    begin, open_batch ─▶ COPY ─▶ close_batch, commit
      │ lock the           │ into the day's  │ move the checkpoint; lock the feed:
      └ checkpoint         └ partition       └ position, batch with its seal

Three messages and their answers. Only the last step is taken one writer at a time; it gives the feed its total order.
The seal is the sha256 of the very bytes that COPY was sent (see lines.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from functools import lru_cache
from itertools import islice

import msgspec
from psycopg import sql
from psycopg.pq import TransactionStatus

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused
from afterwrite.failpoints import failpoint
from afterwrite.jsonb import with_jsonb_characters
from afterwrite.postgres import UNTIL_GONE, Database, connect, identifier, names, statement
from afterwrite.record import Activities, Activity, Batch, Checkpoint, Lsn, Receipt, TransactionContext
from afterwrite.store.lines import COLUMNS, JSONS, CopyLines, DoubtError, Seal, Sealing, Span, span, storable
from afterwrite.store.partitions import AHEAD_DAYS, PARENT, SCHEMA, make_partitions, partition_name, read_partition_days
from afterwrite.store.schema import require_store

log = logging.getLogger(__name__)

# What a role or a database may have set for people at a prompt must not decide over a sink transaction.
_SESSION = {
    "client_encoding": "utf8",
    # A function in a schema that anybody may create in can be a better match than pg_catalog's own, and would be ours.
    "search_path": "pg_catalog",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60000",
    **UNTIL_GONE,
    # The same few statements for every batch: planning them over all partitions each time costs more than running them.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # As the seal wants its lines: what is stored by a detour is read back within the transaction.
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "extra_float_digits": "1",
}
_STAGING = ("pg_temp", "afterwrite_staging")
_NO_PARTITION = "AW011"
_OVERTAKEN = "AW012"
_NO_COPY = "0A000"
# Days beyond these belong to a clock gone wrong, or to an import: they stay in the default partition.
_LATE_DAYS = 92
_PARTITION_PAUSE_SECONDS = 30.0


Beside = Callable[[Database, int | None], Awaitable[None]]
"""What is to be committed together with a batch, of which it is told the id (None: there are no rows).

It runs in the batch's transaction, once each time that is tried, and undoes all of it by raising.
"""


class CheckpointRow(msgspec.Struct, frozen=True):
    """A row of afterwrite.checkpoint as the server gives it."""

    source: str
    slot: str
    system_id: str
    timeline: int
    lsn: str

    def value(self) -> Checkpoint:
        return Checkpoint(
            source=self.source,
            slot=self.slot,
            system_id=self.system_id,
            timeline=self.timeline,
            lsn=Lsn.parse(self.lsn),
        )


class _Opened(msgspec.Struct, frozen=True):
    """What open_batch() gives: the checkpoint's columns are null where the source has none."""

    batch_id: int
    slot: str | None
    system_id: str | None
    timeline: int | None
    lsn: str | None


class _Closed(msgspec.Struct, frozen=True):
    position: int | None


class _Way(Enum):
    """How rows get into the store: the first that can be, and the next one when it cannot."""

    PARTITION = "straight into the one partition that they belong to"
    PARENT = "into the partitioned table, which finds a partition for each"
    STAGED = "by a temporary table: some may be stored already, or their seal must be made of what was stored"


async def is_flushing(db: Database) -> bool:
    """Whether a commit of this server would survive its machine's crash."""
    return bool(await db.value(statement("store.read_fsync")))


async def read_identity(db: Database) -> str:
    """Which store this is."""
    return str(await db.value(statement("store.read_identity")))


async def read_checkpoint(db: Database, source: str) -> Checkpoint | None:
    """How far this source is stored, or None when nothing of it ever was."""
    row = await db.maybe(CheckpointRow, statement("store.read_checkpoint"), source=source)
    return row.value() if row else None


async def record_gap(db: Database, source: str, *, after: Lsn, until: Lsn, reason: str) -> None:
    """Remember that commits after ``after`` and up to ``until`` are lost; never silently stepped over."""
    await db.run(
        statement("store.record_gap"), source=source, from_lsn=str(after), to_lsn=str(max(after, until)), reason=reason
    )


@asynccontextmanager
async def open_sink(
    dsn: str | None, *, application_name: str = "afterwrite sink", sole: bool = False
) -> AsyncGenerator[PostgresSink]:
    """A sink into the store at ``dsn``; raises, with the mending command, when it is not installed as we need it.

    ``sole`` ends other sessions of this role and name: those of a worker before this one, which was frozen or cut off
    while it held the checkpoint's lock.
    """
    sink = PostgresSink(dsn, application_name=application_name, sole=sole)
    try:
        await sink.open()
        yield sink
    finally:
        await sink.close()


class PostgresSink:
    """Stores batches, each in one transaction, over one connection that it opens again after it was lost.

    Several tasks may share it; their batches follow each other. A batch that is written again stores nothing twice.
    """

    def __init__(self, dsn: str | None, *, application_name: str = "afterwrite sink", sole: bool = False) -> None:
        self._dsn = dsn
        self._application_name = _whole_name(application_name) if sole else application_name
        self._sole = sole
        self._db: Database | None = None
        self._opened = AsyncExitStack()
        self._turn = asyncio.Lock()
        self._days: set[date] = set()
        self._days_again_at = 0.0

    async def open(self) -> None:
        """Connect now, where the first write would do it otherwise."""
        async with self._turn, self._unbroken():
            pass

    async def close(self) -> None:
        """Close the connection; what was not committed is rolled back."""
        self._db = None
        await self._opened.aclose()

    async def read_identity(self) -> str:
        """Which store this is: the same for as long as it lives, also when it is moved or restored."""
        async with self._turn, self._unbroken() as db:
            return await read_identity(db)

    async def read_checkpoint(self, source: str) -> Checkpoint | None:
        """How far this source is stored, or None when nothing of it ever was."""
        async with self._turn, self._unbroken() as db:
            failpoint("sink.before_read")
            checkpoint = await read_checkpoint(db, source)
            failpoint("sink.after_read")
            return checkpoint

    async def write(self, batch: Batch, *, beside: Beside | None = None) -> Receipt:
        """Store the batch and its checkpoint in one transaction; when it returns, both are flushed.

        Raises ConnectionLost when the outcome is unknown (read the checkpoint again before another try), and Refused
        when another worker has stored this source further than the batch goes.
        """
        async with self._turn, self._unbroken() as db:
            if not batch.activities:
                return await self._move_only(db, batch, beside)
            stretch = span(batch.activities, batch.moments)
            await self._make_days(db, stretch)
            return await self._write(db, batch, stretch, beside)

    async def _write(self, db: Database, batch: Batch, stretch: Span, beside: Beside | None) -> Receipt:
        way = _Way.PARTITION if len(stretch.days) == 1 and stretch.days <= self._days else _Way.PARENT
        while True:
            try:
                return await self._store(db, batch, stretch, way, beside)
            except _DetourError:
                way = _Way.STAGED
            except DatabaseError as error:
                if way is _Way.PARTITION and _has_no_partition(error):
                    way = _Way.PARENT
                    self._days -= stretch.days
                elif way is not _Way.STAGED and (_may_pass(error) or _is_walled(error)):
                    way = _Way.STAGED
                elif not isinstance(batch.activities, _Mended) and _is_poisoned(error):
                    way = _Way.STAGED
                    batch = await self._mend(db, batch)
                else:
                    raise
            except DoubtError:
                way = _Way.STAGED
                batch = await self._mend(db, batch)

    async def _connected(self) -> Database:
        if self._db is None:
            self._db = await self._opened.enter_async_context(
                connect(self._dsn, application_name=self._application_name, options=_SESSION)
            )
            if self._sole:
                await self._db.values(statement("store.end_namesakes"))
            await require_store(self._db)
            self._days = await read_partition_days(self._db)
        return self._db

    @asynccontextmanager
    async def _unbroken(self) -> AsyncGenerator[Database]:
        """The connection; whatever goes wrong with it, the next call gets a new one."""
        try:
            yield await self._connected()
        except BaseException:
            await self.close()
            raise

    async def _move_only(self, db: Database, batch: Batch, beside: Beside | None) -> Receipt:
        if batch.checkpoint or beside:
            async with _rolled_back(db):
                await _open(db, batch)
                if beside:
                    await beside(db, None)
                failpoint("sink.before_move")
                await _close(db, batch)
            failpoint("sink.after_move")
        return Receipt(batch_id=None, position=None, stored=0)

    async def _store(self, db: Database, batch: Batch, stretch: Span, way: _Way, beside: Beside | None) -> Receipt:
        failpoint("sink.before_begin")
        async with _rolled_back(db):
            opened = await _open(db, batch)
            failpoint("sink.after_begin")
            if batch.checkpoint and not _is_beyond(batch, opened):
                way = _Way.STAGED
            failpoint("sink.before_copy")
            partition: str | None = None
            if way is _Way.STAGED:
                seal = await _copy_staged(db, batch.activities, opened.batch_id)
            else:
                if way is _Way.PARTITION:
                    (day,) = stretch.days
                    partition = partition_name(day)
                seal = await _copy(db, batch.activities, opened.batch_id, partition or PARENT)
            failpoint("sink.after_copy")
            if beside:
                await beside(db, opened.batch_id if seal.rows else None)
            failpoint("sink.before_commit")
            position = await _close(
                db, batch, batch_id=opened.batch_id, stretch=stretch, seal=seal, partition=partition
            )
        failpoint("sink.after_commit")
        return Receipt(batch_id=opened.batch_id if seal.rows else None, position=position, stored=seal.rows)

    async def _mend(self, db: Database, batch: Batch) -> Batch:
        """The same batch, with what the server will not take made storable."""
        activities = _Mended(batch.activities, await _find_mends(db, batch.activities))
        contexts = [context for context in batch.contexts if await _is_kept(db, context)]
        return msgspec.structs.replace(batch, activities=activities, contexts=contexts)

    async def _make_days(self, db: Database, stretch: Span) -> None:
        """Make the partitions that these rows lack; where that cannot be done at once, the default one takes them."""
        if stretch.days <= self._days or time.monotonic() < self._days_again_at:
            return
        today = datetime.now(UTC).date()
        near = {
            day
            for day in stretch.days - self._days
            if today - timedelta(days=_LATE_DAYS) <= day <= today + timedelta(days=AHEAD_DAYS)
        }
        if not near:
            return
        try:
            await make_partitions(db, days=near)
            self._days = await read_partition_days(db)
        except ConnectionLost:
            raise
        except AfterwriteError as error:
            self._days_again_at = time.monotonic() + _PARTITION_PAUSE_SECONDS
            log.warning("no partition could be made for %s, its rows go to the default one: %s", sorted(near), error)


def _whole_name(name: str) -> str:
    """The name, or one that is as much its own where the server would cut it at 63 bytes or replace what is not ASCII.

    Who ends the sessions of a name must not find another source's behind the same beginning.
    """
    if name.isascii() and len(name) < 64:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{name.encode('ascii', 'replace').decode()[:40]} {digest[:20]}"


class _DetourError(Exception):
    """These rows must be stored by the staging table."""


@asynccontextmanager
async def _rolled_back(db: Database) -> AsyncGenerator[None]:
    """Nothing of a transaction stays when what happens in here fails and the connection goes on."""
    try:
        yield
    except (DatabaseError, _DetourError, DoubtError) as error:
        if not isinstance(error, ConnectionLost):
            await db.run(b"rollback")
        raise


def _may_pass(error: DatabaseError) -> bool:
    """Whether staging helps: some rows are stored already, or another writer of the same rows was in the way."""
    return error.sqlstate in {"23505", "40P01", "40001"}


def _is_walled(error: DatabaseError) -> bool:
    """Whether COPY is not to be had: row-level security keeps it from who does not own the table; INSERT goes."""
    return error.sqlstate == _NO_COPY


def _is_poisoned(error: DatabaseError) -> bool:
    """Whether a value was refused: data exceptions (class 22) and what exceeds a limit of the server (54)."""
    return error.sqlstate is not None and error.sqlstate[:2] in {"22", "54"}


def _has_no_partition(error: DatabaseError) -> bool:
    """Whether the partition that we knew was detached, dropped (42P01), or does not hold that day (23514) any more."""
    return error.sqlstate in {_NO_PARTITION, "42P01", "23514"}


async def _open(db: Database, batch: Batch) -> _Opened:
    """Begin the transaction; another worker of this source waits from here on. Raises Refused where one was faster."""
    source = batch.checkpoint.source if batch.checkpoint else None
    opened = await db.at_once(_Opened, b"begin", statement("store.open_batch"), source=source)
    if opened is None:
        raise AfterwriteError("open_batch() always answers")
    stored = _checkpoint(source, opened)
    if batch.checkpoint and stored:
        beaten = stored.lsn > batch.checkpoint.lsn
        # Only an installation moves a source to another slot, and that brings no rows.
        foreign = bool(batch.activities) and stored.slot != batch.checkpoint.slot
        if beaten or foreign or stored.system_id != batch.checkpoint.system_id:
            raise _refusal(batch.checkpoint, stored)
    return opened


def _checkpoint(source: str | None, opened: _Opened) -> Checkpoint | None:
    if source is None or opened.slot is None or opened.system_id is None or opened.lsn is None:
        return None
    return CheckpointRow(source, opened.slot, opened.system_id, opened.timeline or 0, opened.lsn).value()


def _is_beyond(batch: Batch, opened: _Opened) -> bool:
    """Beyond the checkpoint nothing of this source's WAL is stored, so that nothing can be there twice."""
    return opened.lsn is not None and batch.first_lsn is not None and batch.first_lsn >= Lsn.parse(opened.lsn)


async def _close(
    db: Database,
    batch: Batch,
    *,
    batch_id: int | None = None,
    stretch: Span | None = None,
    seal: Seal | None = None,
    partition: str | None = None,
) -> int | None:
    """Move the checkpoint, give the rows (if there are any) their place, and commit."""
    checkpoint, contexts = batch.checkpoint, batch.contexts
    try:
        closed = await db.at_once(
            _Closed,
            statement("store.close_batch"),
            b"commit",
            id=batch_id,
            source=batch.source,
            partition=f"{SCHEMA}.{partition}" if partition else None,
            first_lsn=_text(batch.first_lsn),
            last_lsn=_text(batch.last_lsn),
            first_at=stretch.first_at if stretch else None,
            last_at=stretch.last_at if stretch else None,
            transactions=batch.transactions,
            rows=seal.rows if seal else 0,
            rows_per_table=msgspec.json.encode(seal.rows_per_table).decode() if seal else None,
            rows_digest=seal.digest if seal else None,
            slot=checkpoint.slot if checkpoint else None,
            system_id=checkpoint.system_id if checkpoint else None,
            timeline=checkpoint.timeline if checkpoint else None,
            lsn=_text(checkpoint.lsn) if checkpoint else None,
            context_lsns=[str(context.commit_lsn) for context in contexts] or None,
            context_xids=[context.xid for context in contexts] or None,
            context_settings=[_settings_json(context) for context in contexts] or None,
        )
    except DatabaseError as error:
        if checkpoint and error.sqlstate == _OVERTAKEN:
            await db.run(b"rollback")
            raise _refusal(checkpoint, await read_checkpoint(db, checkpoint.source)) from error
        raise
    return closed.position if closed else None


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _refusal(wanted: Checkpoint, stored: Checkpoint | None) -> Refused:
    if stored and stored.system_id != wanted.system_id:
        return Refused(
            f"source {wanted.source!r} was stored from database cluster {stored.system_id}; this is {wanted.system_id}",
            remedy="give this cluster a source name of its own: --source or AFTERWRITE_SOURCE",
        )
    if stored and stored.slot != wanted.slot:
        return Refused(
            f"source {wanted.source!r} is stored to {stored.lsn} from slot {stored.slot}; this is slot {wanted.slot}",
            remedy="give this database a source name of its own: AFTERWRITE_SOURCE",
        )
    where = f" to {stored.lsn}" if stored else ""
    return Refused(
        f"source {wanted.source!r} is stored{where} already, beyond {wanted.lsn}: another worker writes it",
        remedy="run one `afterwrite capture` a source; this one may be started again when the other has ended",
    )


@lru_cache(maxsize=64)
def _copy_into(schema: str, table: str) -> bytes:
    query = sql.SQL("copy {table} ({columns}) from stdin")
    return query.format(table=identifier(schema, table), columns=names(COLUMNS)).as_bytes(None)


async def _copy(db: Database, activities: Activities, batch_id: int, table: str) -> Seal:
    lines = CopyLines(activities, batch_id)
    stored = await db.copy_in(_copy_into(SCHEMA, table), _until_the_end(lines))
    seal = lines.seal()
    if seal is None:
        raise _DetourError
    if seal.rows != stored:
        raise AfterwriteError(
            f"{seal.rows} rows were sent to {SCHEMA}.{table} of {db.where}, and it kept {stored}",
            remedy=f"take away the triggers or rules on {SCHEMA}.{PARENT} and its partitions that are not afterwrite's",
        )
    return seal


async def _copy_staged(db: Database, activities: Activities, batch_id: int) -> Seal:
    """Store what is not stored yet, and make the seal of what the server says that it stored."""
    await db.run(statement("store.make_staging"))
    # Only mended ones come here after the server was asked about what only it can judge.
    lines = CopyLines(activities, batch_id, doubting=not isinstance(activities, _Mended))
    await db.copy_in(_copy_into(*_STAGING), _until_the_end(lines))
    sealing = Sealing()
    async for line in db.copy_out(statement("store.copy_staged")):
        sealing.add(line)
    return sealing.seal()


def _until_the_end(lines: CopyLines) -> Iterator[bytes]:
    yield from lines
    failpoint("sink.before_copy_end")


def _settings_json(context: TransactionContext) -> str:
    return (with_jsonb_characters(msgspec.json.encode(context.settings)) or b"{}").decode()


async def _is_kept(db: Database, context: TransactionContext) -> bool:
    """Whether the server takes these settings: what one writer stamps must not keep out what all others wrote."""
    if await _is_json(db, msgspec.Raw(_settings_json(context).encode())):
        return True
    log.warning("the settings of transaction %s at %s could not be stored", context.xid, context.commit_lsn)
    return False


class _Mend(msgspec.Struct, frozen=True):
    """What it takes to make an activity storable: JSON columns that the server refuses, texts too long for an index."""

    refused: frozenset[str]
    shorten: bool


class _Mended:
    """Activities of which some are mended as they are read; only which and how is held."""

    def __init__(self, activities: Activities, mends: Mapping[int, _Mend]) -> None:
        self._activities = activities
        self._mends = mends

    def __iter__(self) -> Iterator[Activity]:
        for number, activity in enumerate(self._activities):
            mend = self._mends.get(number)
            yield storable(activity, mend.refused, shorten=mend.shorten) if mend else activity

    def __len__(self) -> int:
        return len(self._activities)


_TRIED_AT_ONCE = 1_000


async def _find_mends(db: Database, activities: Activities) -> dict[int, _Mend]:
    """Which activities the server will not take as they are, by their number: found by halving, in trials."""
    mends: dict[int, _Mend] = {}
    remaining = iter(activities)
    first = 0
    while chunk := tuple(islice(remaining, _TRIED_AT_ONCE)):
        await _find_mends_in(db, chunk, first, mends)
        first += len(chunk)
    return mends


async def _find_mends_in(db: Database, activities: Sequence[Activity], first: int, mends: dict[int, _Mend]) -> None:
    if await _is_taken(db, activities):
        return
    if len(activities) > 1:
        half = len(activities) // 2
        await _find_mends_in(db, activities[:half], first, mends)
        await _find_mends_in(db, activities[half:], first + half, mends)
        return
    (activity,) = activities
    refused = frozenset({column for column in JSONS if not await _is_json(db, getattr(activity, column))})
    mend = _Mend(refused, shorten=False)
    if not await _is_taken(db, _Mended(activities, {0: mend})):
        mend = _Mend(refused, shorten=True)
    mends[first] = mend
    if mend.refused or mend.shorten:
        kept = storable(activity, mend.refused, shorten=mend.shorten)
        log.warning("activity %s could not be stored as it was: %s", activity.id, bytes(kept.metadata or b"")[:200])


async def _is_taken(db: Database, activities: Activities) -> bool:
    """Whether the server takes these, in a trial that leaves nothing."""
    await db.run(b"begin")
    try:
        await _copy_staged(db, activities, 0)
    except DoubtError:
        return False
    except DatabaseError as error:
        if isinstance(error, ConnectionLost) or not _is_poisoned(error):
            raise
        return False
    finally:
        if db.connection.info.transaction_status != TransactionStatus.UNKNOWN:
            await db.run(b"rollback")
    return True


async def _is_json(db: Database, raw: msgspec.Raw | None) -> bool:
    if raw is None:
        return True
    try:
        await db.value(statement("store.try_json"), text=bytes(raw).decode())
    except (DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError) or _is_poisoned(error):
            return False
        raise
    return True
