"""The sink that is PostgreSQL: one batch, its rows, its seal and its checkpoint in one flushed transaction.

::

    lock checkpoint ─▶ COPY activity ─▶ seal ─▶ checkpoint ─▶ lock feed: position, batch ─▶ commit

Only the last step is taken one writer at a time; it gives the feed its total order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime, timedelta

import msgspec
from psycopg import sql

from afterwrite.activity import Activities, Activity, Batch, Checkpoint, Lsn, Receipt, TransactionContext
from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, connect, statement, translated
from afterwrite.store.lines import COLUMNS, JSONS, Span, copy_lines, json_without_nul, span, storable
from afterwrite.store.partitions import AHEAD_DAYS, make_partitions, read_partition_days
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
    # The same few statements for every batch: planning them over all partitions each time costs more than running them.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
_COPY = sql.SQL("copy {table} ({columns}) from stdin")
_COLUMNS = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
_PLAIN = _COPY.format(table=sql.Identifier("afterwrite", "activity"), columns=_COLUMNS)
_STAGED = _COPY.format(table=sql.Identifier("pg_temp", "afterwrite_staging"), columns=_COLUMNS)
# Days beyond these belong to a clock gone wrong, or to an import: they stay in the default partition.
_LATE_DAYS = 92
_PARTITION_PAUSE_SECONDS = 30.0


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


class _Seal(msgspec.Struct, frozen=True):
    rows: int
    rows_per_table: str
    rows_digest: bytes


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
async def open_sink(dsn: str | None, *, application_name: str = "afterwrite sink") -> AsyncGenerator[PostgresSink]:
    """A sink into the store at ``dsn``; raises, with the mending command, when it is not installed as we need it."""
    sink = PostgresSink(dsn, application_name=application_name)
    try:
        await sink.open()
        yield sink
    finally:
        await sink.close()


class PostgresSink:
    """Stores batches, each in one transaction, over one connection that it opens again after it was lost.

    Several tasks may share it; their batches follow each other. A batch that is written again stores nothing twice.
    """

    def __init__(self, dsn: str | None, *, application_name: str = "afterwrite sink") -> None:
        self._dsn = dsn
        self._application_name = application_name
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

    async def read_checkpoint(self, source: str) -> Checkpoint | None:
        """How far this source is stored, or None when nothing of it ever was."""
        async with self._turn, self._unbroken() as db:
            failpoint("sink.before_read")
            checkpoint = await read_checkpoint(db, source)
            failpoint("sink.after_read")
            return checkpoint

    async def write(self, batch: Batch) -> Receipt:
        """Store the batch and its checkpoint in one transaction; when it returns, both are flushed.

        Raises ConnectionLost when the outcome is unknown (read the checkpoint again before another try), and Refused
        when another worker has stored this source further than the batch goes.
        """
        async with self._turn, self._unbroken() as db:
            if not batch.activities:
                return await self._move_only(db, batch)
            stretch = span(batch.activities, batch.moments)
            await self._make_days(db, stretch)
            try:
                return await self._store(db, batch, stretch, staged=False)
            except DatabaseError as error:
                if not (_may_pass(error) or _is_poisoned(error)):
                    raise
                if _is_poisoned(error):
                    batch = msgspec.structs.replace(
                        batch,
                        activities=await _mend(db, tuple(batch.activities)),
                        contexts=[context for context in batch.contexts if await _is_kept(db, context)],
                    )
            return await self._store(db, batch, stretch, staged=True)

    async def _connected(self) -> Database:
        if self._db is None:
            self._db = await self._opened.enter_async_context(
                connect(self._dsn, application_name=self._application_name, options=_SESSION)
            )
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

    async def _move_only(self, db: Database, batch: Batch) -> Receipt:
        if batch.checkpoint:
            async with db.transaction():
                await _lock_checkpoint(db, batch.checkpoint)
                await _move_checkpoint(db, batch.checkpoint, None)
                failpoint("sink.before_move")
            failpoint("sink.after_move")
        return Receipt(batch_id=None, position=None, stored=0)

    async def _store(self, db: Database, batch: Batch, stretch: Span, *, staged: bool) -> Receipt:
        failpoint("sink.before_begin")
        async with db.transaction():
            failpoint("sink.after_begin")
            if batch.checkpoint:
                before = await _lock_checkpoint(db, batch.checkpoint)
                # Beyond the checkpoint nothing of this source's WAL is stored, so that nothing can be there twice.
                beyond = before is not None and batch.first_lsn is not None and batch.first_lsn >= before.lsn
                staged = staged or not beyond
            batch_id: int = await db.value(statement("store.next_batch"))
            failpoint("sink.before_copy")
            await _copy(db, batch.activities, batch_id, staged=staged)
            failpoint("sink.after_copy")
            seal = await db.one(
                _Seal,
                statement("store.seal_batch"),
                batch_id=batch_id,
                first_at=stretch.first_at,
                last_at=stretch.last_at,
            )
            if seal.rows and batch.contexts:
                await _store_contexts(db, batch, batch_id)
            if batch.checkpoint:
                failpoint("sink.before_checkpoint")
                await _move_checkpoint(db, batch.checkpoint, batch_id if seal.rows else None)
            if not seal.rows:
                return Receipt(batch_id=None, position=None, stored=0)
            failpoint("sink.before_position")
            position: int = await db.value(statement("store.next_position"))
            failpoint("sink.after_position")
            await db.run(
                statement("store.close_batch"),
                id=batch_id,
                position=position,
                source=batch.source,
                first_lsn=_text(batch.first_lsn),
                last_lsn=_text(batch.last_lsn),
                first_at=stretch.first_at,
                last_at=stretch.last_at,
                transactions=batch.transactions,
                rows=seal.rows,
                rows_per_table=seal.rows_per_table,
                rows_digest=seal.rows_digest,
            )
            failpoint("sink.before_commit")
        failpoint("sink.after_commit")
        return Receipt(batch_id=batch_id, position=position, stored=seal.rows)

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


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _may_pass(error: DatabaseError) -> bool:
    """Whether staging helps: some rows are stored already, or another writer of the same rows was in the way."""
    return error.sqlstate in {"23505", "40P01", "40001"}


def _is_poisoned(error: DatabaseError) -> bool:
    """Whether a value was refused: data exceptions (class 22) and what exceeds a limit of the server (54)."""
    return error.sqlstate is not None and error.sqlstate[:2] in {"22", "54"}


async def _lock_checkpoint(db: Database, wanted: Checkpoint) -> Checkpoint | None:
    row = await db.maybe(CheckpointRow, statement("store.lock_checkpoint"), source=wanted.source)
    stored = row.value() if row else None
    if stored and (stored.system_id != wanted.system_id or stored.lsn > wanted.lsn):
        raise _refusal(wanted, stored)
    return stored


async def _move_checkpoint(db: Database, checkpoint: Checkpoint, batch_id: int | None) -> None:
    moved = await db.value(
        statement("store.move_checkpoint"),
        source=checkpoint.source,
        slot=checkpoint.slot,
        system_id=checkpoint.system_id,
        timeline=checkpoint.timeline,
        lsn=str(checkpoint.lsn),
        batch_id=batch_id,
    )
    if moved is None:
        raise _refusal(checkpoint, await read_checkpoint(db, checkpoint.source))


def _refusal(wanted: Checkpoint, stored: Checkpoint | None) -> Refused:
    if stored and stored.system_id != wanted.system_id:
        return Refused(
            f"source {wanted.source!r} was stored from database cluster {stored.system_id}; this is {wanted.system_id}",
            remedy="give this cluster a source name of its own: --source or AFTERWRITE_SOURCE",
        )
    where = f" to {stored.lsn}" if stored else ""
    return Refused(
        f"source {wanted.source!r} is stored{where} already, beyond {wanted.lsn}: another worker writes it",
        remedy="run one `afterwrite capture` a source; this one may be started again when the other has ended",
    )


async def _copy(db: Database, activities: Activities, batch_id: int, *, staged: bool) -> None:
    if staged:
        await db.run(statement("store.make_staging"))
    with translated(db.where):
        async with db.connection.cursor() as cursor, cursor.copy(_STAGED if staged else _PLAIN) as copy:
            for lines in copy_lines(activities, batch_id):
                await copy.write(lines)
            failpoint("sink.before_copy_end")
    if staged:
        await db.run(statement("store.store_staged"))


async def _store_contexts(db: Database, batch: Batch, batch_id: int) -> None:
    await db.run(
        statement("store.store_contexts"),
        source=batch.source,
        batch_id=batch_id,
        lsns=[str(context.commit_lsn) for context in batch.contexts],
        xids=[context.xid for context in batch.contexts],
        settings=[_settings_json(context) for context in batch.contexts],
    )


def _settings_json(context: TransactionContext) -> str:
    return (json_without_nul(msgspec.json.encode(context.settings)) or b"{}").decode()


async def _is_kept(db: Database, context: TransactionContext) -> bool:
    """Whether the server takes these settings: what one writer stamps must not keep out what all others wrote."""
    if await _is_json(db, msgspec.Raw(_settings_json(context).encode())):
        return True
    log.warning("the settings of transaction %s at %s could not be stored", context.xid, context.commit_lsn)
    return False


class _RolledBack(Exception):  # noqa: N818 - no error: it ends a trial
    """Ends a trial transaction without keeping it."""


async def _mend(db: Database, activities: Sequence[Activity]) -> list[Activity]:
    """The same activities, with those that the server will not take made storable: found by halving, in trials."""
    if not activities or await _is_taken(db, activities):
        return list(activities)
    if len(activities) > 1:
        half = len(activities) // 2
        return [*await _mend(db, activities[:half]), *await _mend(db, activities[half:])]
    (activity,) = activities
    refused = {column for column in JSONS if not await _is_json(db, getattr(activity, column))}
    mended = storable(activity, frozenset(refused), shorten=True)
    log.warning("activity %s could not be stored as it was: %s", activity.id, bytes(mended.metadata or b"")[:200])
    return [mended]


async def _is_taken(db: Database, activities: Sequence[Activity]) -> bool:
    try:
        async with db.transaction():
            await _copy(db, activities, 0, staged=True)
            raise _RolledBack
    except _RolledBack:
        return True
    except DatabaseError as error:
        if _is_poisoned(error):
            return False
        raise


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
