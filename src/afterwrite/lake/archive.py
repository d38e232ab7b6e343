"""From hot partitions into the lake, a day at a time: copied, read back, compared, written down; and only then dropped.

::

    a day that is over: are its rows those that their batches were sealed with?
                       ─COPY─▶ Arrow ─▶ files ─▶ commit in the table's log (once: the store, the day, the part)
                                                   │
                    count and digest of what is read back from the files = those of the server's rows?
                                                   │
    ledger (lake_part) ─▶ detached, and noted so in the same transaction ─▶ counted again ─▶ dropped

The seals are read in the snapshot of the copy: what goes into the lake is what was sealed.
Nothing is kept in mind between the steps: whatever was interrupted, the next run finds out from the table's log, the
ledger and the tables that are there. What comes for a day after that makes another part of it.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, LiteralString

import msgspec
from psycopg import sql

from afterwrite.errors import AfterwriteError, Finding, Refused, Severity
from afterwrite.failpoints import failpoint
from afterwrite.lake.rows import DIGESTED, OWN_DIGEST, Reader, Sum, add_up, copy_of, digests
from afterwrite.lake.table import Lake, UnreadableError, need_version
from afterwrite.postgres import Database, LockPolicy, LockTimeout, identifier, statement
from afterwrite.store import maintain as maintenance
from afterwrite.store.partitions import (
    MOVED_AT_ONCE,
    PARENT,
    SCHEMA,
    Temperature,
    make_partition,
    partition_day,
    partition_name,
)
from afterwrite.store.reader import verify_day
from afterwrite.store.rollup import roll_up
from afterwrite.store.writer import read_identity

SESSION = {**maintenance.SESSION, "work_mem": "64MB", "idle_session_timeout": "0"}
"""How the connection is opened that archives: patient, also while a day is read back; with room to sort a day."""
DETACHED = f"{PARENT}_archived_"
_CHUNK_BYTES = 4 << 20
_CHUNKS_AHEAD = 2
_ROUNDS = 4


class ArchivePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Days are archived that ended more than ``after_days`` full days ago; ``keep`` leaves them in the store as well.

    A day with more than ``most_files`` files is made one of few, and files that no version younger than
    ``vacuum_hours`` has are deleted.
    """

    after_days: int = 90
    keep: bool = False
    most_files: int = 4
    vacuum_hours: int = 168


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger has of a part of a day; ``left_at``: since when the lake alone has it."""

    day: date
    part: int
    lake: str
    rows: int
    known: int
    bytes: int
    digest: bytes
    version: int
    archived_at: datetime
    left_at: datetime | None


class DeedKind(StrEnum):
    """What was done to a day."""

    COPIED = "copied"
    FOUND = "found"  # in the lake already: a run before this one was interrupted
    DROPPED = "dropped"
    COMPACTED = "compacted"


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done, in figures: ``hot_bytes`` is what a dropped day took in the store."""

    kind: DeedKind
    day: date
    rows: int = 0
    bytes: int = 0
    hot_bytes: int = 0
    files: int = 0


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A day whose time has come: ``table`` has it, ``detached`` where activity has it no more."""

    day: date
    table: str
    rows: int
    bytes: int
    detached: bool = False


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the lake, what is due, and what stands in the way."""

    parts: tuple[Part, ...]
    due: tuple[Due, ...]
    findings: tuple[Finding, ...] = ()


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did, and what is left."""

    deeds: tuple[Deed, ...]
    vacuumed: int
    survey: Survey


async def read_parts(db: Database) -> tuple[Part, ...]:
    """The ledger of what is in the lake."""
    return tuple(await db.rows(Part, statement("lake.read_parts")))


async def survey(db: Database, policy: ArchivePolicy) -> Survey:
    """What is due. Reads only."""
    observed = await maintenance.observe(db)
    parts = await read_parts(db)
    now = datetime.now(UTC)
    cutoff = now.date() - timedelta(days=policy.after_days)
    findings: list[Finding] = []
    for unread in observed.unread:
        # Deferred bodies read the feed, and the feed is in the store.
        if unread.since < cutoff and not policy.keep:
            findings.append(
                Finding(
                    rule="lake-unread",
                    severity=Severity.WARNING,
                    where=f"days before {cutoff}",
                    text=f"deferred triggers of source {unread.source!r} have not read {unread.since} yet, so the store"
                    " keeps that day and what follows",
                    remedy="let `afterwrite capture` catch up (`afterwrite migrate status` says how far deferral is)",
                )
            )
            cutoff = unread.since
    kept = {part.day for part in parts if part.left_at is None}
    due: list[Due] = []
    for name in await db.values(statement("lake.read_detached")):
        day = partition_day(f"{PARENT}_{name.removeprefix(DETACHED)}")
        if day is not None:
            due.append(Due(day=day, table=name, rows=0, bytes=0, detached=True))
    for table in sorted(observed.tables, key=lambda table: table.day or date.max):
        if table.day is None or table.day >= cutoff or (table.closed_at() or now) > now:
            continue
        if policy.keep and table.day in kept:
            continue
        due.append(Due(day=table.day, table=table.name, rows=table.rows, bytes=table.bytes))
    partitioned = {table.day for table in observed.tables}
    for day, rows in sorted(observed.default_days.items()):
        # Many are given a partition by maintenance, beside readers and writers.
        if day < cutoff and day not in partitioned and rows <= MOVED_AT_ONCE:
            due.append(Due(day=day, table="", rows=rows, bytes=0))
    return Survey(parts=parts, due=tuple(due), findings=tuple(findings))


async def archive(
    db: Database,
    lake: Lake,
    policy: ArchivePolicy,
    *,
    on_deed: Callable[[Deed], None] | None = None,
    wait_seconds: float = 30.0,
    locks: LockPolicy | None = None,
) -> Archived:
    """Do what is due. ``db`` is a connection of its own, opened with ``SESSION``; nobody else maintains meanwhile.

    A day that cannot be had now (somebody holds a lock), or of which the lake has rows that say something else, or that
    cannot be read, becomes a finding and stays. Raises Refused where the lake is another one than the ledger tells of.
    """
    deeds: list[Deed] = []

    def done(deed: Deed) -> None:
        deeds.append(deed)
        if on_deed:
            on_deed(deed)

    hindered: list[Finding] = []
    async with maintenance.alone(db, wait_seconds):
        seen = await survey(db, policy)
        if seen.due:
            store = await need_lake(db, lake, seen.parts, make=True)
            run = _Run(db, lake, store, policy, locks, done)
            for due in seen.due:
                try:
                    await run.day(due)
                except LockTimeout as error:
                    hindered.append(_trouble("lake-hindered", Severity.WARNING, due, error))
                except _SealBrokenError as error:
                    hindered.append(_trouble("lake-seal-broken", Severity.ERROR, due, error))
                except Refused as error:
                    hindered.append(_trouble("lake-differs", Severity.ERROR, due, error))
                except UnreadableError as error:
                    # Where the log cannot be read either, it is the storage that is away, and not a file that is gone.
                    await asyncio.to_thread(lake.open)
                    hindered.append(_trouble("lake-unreadable", Severity.ERROR, due, error))
        vacuumed = await asyncio.to_thread(_tidy, lake, policy, {deed.day for deed in deeds}, done)
    left = await survey(db, policy)
    return Archived(
        deeds=tuple(deeds),
        vacuumed=vacuumed,
        survey=msgspec.structs.replace(left, findings=(*left.findings, *hindered)),
    )


async def need_lake(db: Database, lake: Lake, parts: tuple[Part, ...], *, make: bool = False) -> str:
    """Open the lake of this store, or lay it with ``make``; the store's identity.

    Raises Refused where it is another one than the ledger tells of, UsageError where none can be laid.
    """
    store = await read_identity(db)
    there = await asyncio.to_thread(lake.open, make=store if make and not parts else None)
    if there or parts:
        need_ours(lake, store, parts, there=there)
    else:
        await asyncio.to_thread(lake.need_empty)
    return store


def need_ours(lake: Lake, store: str, parts: tuple[Part, ...], *, there: bool) -> None:
    """Raises Refused where the ledger tells of another lake, or of more than is there, or the lake of another store."""
    if not there:
        raise Refused(
            f"the store's ledger tells of a lake, and there is none at {lake.url}",
            remedy="set lake_url to where those days are",
        )
    others = {part.lake for part in parts} - {lake.identity}
    if others:
        raise Refused(
            f"the store's ledger tells of another lake than the one at {lake.url}"
            f" (table {', '.join(sorted(others))}, and this is {lake.identity})",
            remedy="set lake_url to where those days are",
        )
    if not lake.is_of(store):
        raise Refused(
            f"the lake at {lake.url} is that of another store",
            remedy="give this store a lake of its own (lake_url): one cannot tell the days of two apart",
        )
    need_version(lake, max((part.version for part in parts), default=0))


def _trouble(rule: str, severity: Severity, due: Due, error: AfterwriteError) -> Finding:
    return Finding(
        rule=rule,
        severity=severity,
        where=str(due.day),
        text=f"could not leave the store: {error}",
        remedy=error.remedy,
    )


def _tidy(lake: Lake, policy: ArchivePolicy, days: set[date], done: Callable[[Deed], None]) -> int:
    """Few files where there are many, and none that nobody reads any more."""
    if not lake.open():
        return 0
    for day in sorted(days):
        files = lake.files([day])
        if len(files) > policy.most_files and (gone := lake.compact(day)):
            done(Deed(kind=DeedKind.COMPACTED, day=day, files=gone))
    if not days:
        return 0
    lake.checkpoint()
    return lake.vacuum(policy.vacuum_hours)


class _SealBrokenError(Refused):
    """Rows of a day are not those that their batch was sealed with."""


class _Run:
    """One run: the store, the lake, and what was done."""

    def __init__(
        self,
        db: Database,
        lake: Lake,
        store: str,
        policy: ArchivePolicy,
        locks: LockPolicy | None,
        done: Callable[[Deed], None],
    ) -> None:
        self._db, self._lake, self._store, self._policy = db, lake, store, policy
        self._locks, self._done = locks, done

    async def day(self, due: Due) -> None:
        """Copy a day, see that it is there, and let the store forget it."""
        table, detached = due.table, due.detached
        if not table:
            # Few rows in the default partition: they get one of their own, which can leave.
            await make_partition(self._db, due.day, temperature=Temperature.COLD, policy=self._locks)
            table = partition_name(due.day)
        sealed = False
        for _ in range(_ROUNDS):
            part = await self._last(due.day)
            hot = await self._count(table)
            fresh = part is None or (part.left_at is not None and not detached)
            if part is None or fresh or part.rows + part.known != hot:
                copied = await self._add(due.day, 1 + (part.part if part else 0), table, hot, detached=detached)
                sealed = sealed or copied
            elif self._policy.keep:
                return
            elif not detached:
                if not sealed:
                    # Copied by an earlier run: what was done to it since is seen while it can still stay.
                    async with self._snapshot():
                        await self._check_seals(due.day, table)
                    sealed = True
                # What goes is counted first: reports will know of it from there alone.
                await roll_up(self._db)
                table = await maintenance.detach_day(
                    self._db, table, due.day, self._locks, to=DETACHED, along=lambda db: _note_left(db, due.day)
                )
                detached = True
            else:
                # Nobody can write into it any more, and the lake has as many.
                size: int = await self._db.value(statement("maintain.measure_table"), name=f"{SCHEMA}.{table}")
                await maintenance.drop_detached(self._db, table, due.day)
                self._done(Deed(kind=DeedKind.DROPPED, day=due.day, rows=hot, hot_bytes=size))
                return
        raise Refused(
            f"rows of {due.day} keep coming: the lake has others than the store after {_ROUNDS} looks",
            remedy="run it again when that day is quiet",
        )

    async def _last(self, day: date) -> Part | None:
        parts = [part for part in await read_parts(self._db) if part.day == day]
        return parts[-1] if parts else None

    async def _count(self, table: str) -> int:
        count: int = await self._db.value(sql.SQL("select count(*) from {}").format(identifier(SCHEMA, table)))
        return count

    @asynccontextmanager
    async def _snapshot(self) -> AsyncGenerator[None]:
        """All that is read in it is of one moment."""
        async with self._db.transaction():
            await self._db.run(b"set transaction isolation level repeatable read")
            yield

    async def _check_seals(self, day: date, table: str) -> None:
        """Raises Refused where rows of a day are not those that were sealed."""
        broken = await verify_day(self._db, day, table)
        if broken is not None:
            raise _SealBrokenError(
                broken.text,
                remedy="the store was changed by other hands than ours: compare that day with a backup"
                " (`afterwrite doctor` reads every seal)",
            )

    async def _add(self, day: date, part: int, table: str, hot: int, *, detached: bool) -> bool:
        """Bring what the lake lacks of a day there, read it back, and write that down; whether its seals were read."""
        committed = await asyncio.to_thread(self._lake.committed, self._store, day)
        known = 0
        if part > 1 or committed >= part:
            known = await self._list(day, table)
        if committed >= part:
            # Several where the ledger was set back with the store; what the last of them has not is known before it.
            for number in range(part, committed):
                await self._find(day, number, table, 0, detached=detached)
            await self._find(day, committed, table, known, detached=detached)
            return False
        failpoint("lake.before_write")
        # A table that is taken out was looked at before, and cannot stay any more.
        size: int = await self._db.value(statement("lake.measure_rows"), name=f"{SCHEMA}.{table}")
        sent, version = await self._copy(
            day, part, table, width=size // max(1, hot), besides=known > 0, sealed=not detached
        )
        failpoint("lake.after_commit")
        if sent.rows:
            back = await asyncio.to_thread(lambda: add_up(self._lake.batches(day, part, DIGESTED)))
            if (back.rows, back.total) != (sent.rows, sent.total):
                raise Refused(
                    f"the lake gives back {back.rows:,} rows of part {part} of {day} with digest"
                    f" {back.digest.hex()[:16]}…, and {sent.rows:,} with {sent.digest.hex()[:16]}… were sent",
                    remedy="nothing was dropped; look at the lake's storage, and run it again",
                )
        await self._note(day, part, sent, known, version, detached=detached)
        self._done(Deed(kind=DeedKind.COPIED, day=day, rows=sent.rows, bytes=self._size(day)))
        return not detached

    async def _find(self, day: date, part: int, table: str, known: int, *, detached: bool) -> None:
        """A run before this one committed a part and did not come to write so: what is there is noted."""
        back = await asyncio.to_thread(lambda: add_up(self._lake.batches(day, part, DIGESTED)))
        await self._note(day, part, back, max(0, known - back.rows), self._lake.version, detached=detached)
        self._done(Deed(kind=DeedKind.FOUND, day=day, rows=back.rows, bytes=self._size(day)))

    async def _note(self, day: date, part: int, found: Sum, known: int, version: int, *, detached: bool) -> None:
        failpoint("lake.before_note")
        await self._db.run(
            statement("lake.note_part"),
            day=day,
            part=part,
            lake=self._lake.identity,
            rows=found.rows,
            known=known,
            bytes=self._size(day),
            digest=found.digest,
            version=version,
            detached=detached,
        )
        failpoint("lake.after_note")

    def _size(self, day: date) -> int:
        return sum(file.bytes for file in self._lake.files([day]))

    async def _list(self, day: date, table: str) -> int:
        """List for the server what the lake has of a day; how many of the table's rows that are, the same to the byte.

        Raises Refused where a row is another in the lake.
        """
        await self._db.run(statement("lake.make_list"))
        await self._db.run(statement("lake.clear_list"))
        await self._db.copy_in(statement("lake.fill_list"), self._listed(day))
        counts = await self._db.one(
            _Counts, sql.SQL(_COMPARE).format(table=identifier(SCHEMA, table), digest=sql.SQL(OWN_DIGEST))
        )
        if counts.others:
            raise Refused(
                f"the lake has {counts.others:,} of the rows of {day} otherwise than the store",
                remedy="nothing was dropped; compare the two before one of them is given up",
            )
        return counts.same

    def _listed(self, day: date) -> Iterator[bytes]:
        for batch in self._lake.batches(day, None, ("part", *DIGESTED)):
            at = batch.column(batch.schema.get_field_index("occurred_at")).cast("int64").to_pylist()
            id = batch.column(batch.schema.get_field_index("id")).to_pylist()
            part = batch.column(batch.schema.get_field_index("part")).to_pylist()
            rows = zip(id, at, part, digests(batch, own=True), strict=True)
            yield b"".join(b"%s\t%d\t%d\t%s\n" % (i.encode(), a, p, d.hex().encode()) for i, a, p, d in rows)

    async def _copy(
        self, day: date, part: int, table: str, *, width: int, besides: bool, sealed: bool
    ) -> tuple[Sum, int]:
        """Send what the lake does not have: what it amounts to, and the version that has it. ``sealed``: not unseen."""
        query = copy_of(identifier(SCHEMA, table), _BESIDES if besides else "")
        reader = Reader(self._lake.schema(), day, part)
        async with self._snapshot():
            if sealed:
                await self._check_seals(day, table)
            # Closed before the transaction ends: the copy goes on where the writing breaks off.
            async with aclosing(self._db.copy_out(query)) as lines:
                chunks = _chunks(lines)
                first = await anext(chunks, None)
                if first is None:
                    return reader.sum, self._lake.version
                pipe: queue.Queue[bytes | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
                pipe.put(first)
                writing = asyncio.ensure_future(
                    asyncio.to_thread(self._lake.append, self._store, day, part, _taken(pipe, reader), width=width)
                )
                try:
                    async for chunk in chunks:
                        await _put(pipe, chunk, writing)
                        if writing.done():
                            break
                    await _put(pipe, None, writing)
                except BaseException as error:
                    # The other side would wait for ever, and must not commit half of a day.
                    await _put(pipe, error, writing)
                    await asyncio.gather(writing, return_exceptions=True)
                    raise
        return reader.sum, await writing


async def _note_left(db: Database, day: date) -> None:
    await db.run(statement("lake.note_left"), day=day)


_BESIDES: LiteralString = (
    " where not exists (select from pg_temp.afterwrite_in_lake l where l.id = a.id"
    " and l.at = (extract(epoch from a.occurred_at) * 1000000)::bigint)"
)
_COMPARE: LiteralString = (
    "select count(*) filter (where l.digest = d.digest) as same, count(*) filter (where l.digest <> d.digest) as others"
    " from {table} a cross join lateral (select {digest} as digest) d"
    " join pg_temp.afterwrite_in_lake l"
    " on l.id = a.id and l.at = (extract(epoch from a.occurred_at) * 1000000)::bigint"
)


class _Counts(msgspec.Struct, frozen=True):
    same: int
    others: int


async def _chunks(lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Whole lines, some megabytes at a time."""
    waiting: list[bytes] = []
    size = 0
    async for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


async def _put(
    pipe: queue.Queue[bytes | BaseException | None], item: bytes | BaseException | None, taker: asyncio.Future[Any]
) -> None:
    """Hand over without holding up the loop; where the taker is gone, nobody waits for it."""
    while not taker.done():
        try:
            pipe.put_nowait(item)
        except queue.Full:
            await asyncio.wait([taker], timeout=0.005)
        else:
            return


def _taken(pipe: queue.Queue[bytes | BaseException | None], reader: Reader) -> Iterator[Any]:
    """What the other side hands over, as Arrow batches."""
    while (item := pipe.get()) is not None:
        if isinstance(item, BaseException):
            raise AfterwriteError("the copy was interrupted") from item
        yield from reader.batches(item)
        failpoint("lake.after_chunk")
    failpoint("lake.before_commit")
