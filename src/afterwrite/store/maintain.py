"""Keeping the store in shape: what is due is decided from what is seen, then done one partition at a time.

::

    observe ──▶ decide (pure) ──▶ steps ──▶ perform, each by itself; interrupted anywhere, the next look begins anew

    made ahead ▶ written ▶ closed: frozen ▶ after hot_days: cold ▶ after retention_days: detached, dropped, remembered

Nothing here may disturb the writer. Indexes are built and dropped CONCURRENTLY; the few exclusive locks are asked for
with a short lock_timeout and given up again. One maintainer works at a time, under an advisory lock of its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any, assert_never

import msgspec
from psycopg import sql

from afterwrite.errors import AfterwriteError, ConnectionLost, Finding, Refused, Severity
from afterwrite.failpoints import failpoint
from afterwrite.postgres import (
    UNTIL_GONE,
    Database,
    LockPolicy,
    LockTimeout,
    identifier,
    quoted,
    statement,
    with_short_locks,
)
from afterwrite.record import Lsn
from afterwrite.store.partitions import (
    AHEAD_DAYS,
    DEFAULT,
    INDEXES,
    MOVED_AT_ONCE,
    PARENT,
    SCANNED_AT_ONCE,
    SCHEMA,
    Temperature,
    create_index,
    make_partition,
    name_of,
    partition_day,
    partition_name,
    read_partition_days,
    wanted_indexes,
)
from afterwrite.store.recast import MAKING, REPLACED, discard_making, finish_replaced, recast_default
from afterwrite.store.rollup import roll_up

log = logging.getLogger(__name__)

EXPIRED = f"{PARENT}_expired_"
# A connection for maintenance: patient where it stops nobody, and gentle on the disk.
SESSION = {
    "search_path": "pg_catalog",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60000",
    **UNTIL_GONE,
    # What CONCURRENTLY waits for are old transactions, while nobody waits for it.
    "lock_timeout": "30000",
    "vacuum_cost_delay": "2",
    "vacuum_cost_limit": "1000",
    "jit": "off",
}
_PATIENT = LockPolicy(lock_timeout_ms=200, attempts=10, first_pause_ms=100, longest_pause_ms=2_000)
# A day is closed when it is over and what was under way has been stored.
CLOSED_AFTER = timedelta(hours=1)
# Days that get a partition for what waits of them in the default one: those near, and those with many rows.
_NEAR_DAYS = 366
# Each partition in an exchange takes a dozen locks, of the few thousand that a server has.
_DAYS_AT_ONCE = 150
_CHUNK_ROWS = 5_000
_CHUNK_BATCHES = 500
_ROUNDS = 20


class MaintainPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wants: ``retention_days`` None keeps everything; both ages count full days before today."""

    hot_days: int = 30
    retention_days: int | None = None
    ahead_days: int = AHEAD_DAYS


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as it was seen. ``day`` is None for the default one; ``indexes`` says which of them can be used."""

    name: str
    day: date | None
    rows: int
    bytes: int
    vacuumed_at: datetime | None
    indexes: dict[str, bool]

    @property
    def temperature(self) -> Temperature | None:
        """What its indexes make it, or None in between."""
        usable = frozenset(index for index, valid in self.indexes.items() if valid and index in INDEXES)
        return next((each for each in Temperature if wanted_indexes(each) == usable), None)

    def closed_at(self) -> datetime | None:
        """When nothing more is expected to be written into it."""
        return _midnight(self.day + timedelta(days=1)) + CLOSED_AFTER if self.day else None

    @property
    def settled(self) -> bool:
        """Whether it was frozen after it was closed."""
        closed = self.closed_at()
        return closed is not None and self.vacuumed_at is not None and self.vacuumed_at >= closed


class AnotherMaintainer(Refused):
    """Somebody else holds the lock under which a store is maintained."""


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """How far the deferred bodies of a source have read the feed; ``position`` None: nothing was ever deferred."""

    source: str
    position: int | None = None
    commit_lsn: Lsn | None = None


class Unread(msgspec.Struct, frozen=True):
    """From ``since`` on deferred bodies of this source have activity left to read. Not ``told``: nobody ever said."""

    source: str
    told: bool
    since: date


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """The store as it was found. ``default_days`` counts what waits in the default partition by day."""

    tables: tuple[Table, ...]
    leftovers: tuple[str, ...] = ()
    default_days: dict[date, int] = {}
    default_scan_bytes: int = 0
    unread: tuple[Unread, ...] = ()
    oldest_batch_at: datetime | None = None
    expired_days: int = 0
    expired_rows: int = 0
    expired_until: date | None = None
    has_lake: bool = False

    @property
    def default(self) -> Table | None:
        return next((table for table in self.tables if table.day is None), None)


class StepKind(StrEnum):
    """What one step does; in the order of their doing."""

    FINISH = "finish"  # an exchange of the default partition that was interrupted
    DISCARD = "discard"  # a table that was in the making
    DROP = "drop"  # a detached day
    RECAST = "recast"  # the default partition, exchanged for days of their own
    MAKE = "make"
    DROP_INDEX = "drop index"
    BUILD_INDEX = "build index"
    FREEZE = "freeze"
    EXPIRE = "expire"
    EXPIRE_ROWS = "expire rows"
    EXPIRE_BATCHES = "expire batches"


# These wait for every transaction that is older than they are.
_CONCURRENT = frozenset({StepKind.BUILD_INDEX, StepKind.DROP_INDEX})


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do, to ``table``; ``days`` are those it is about, ``index`` one of ``INDEXES``."""

    kind: StepKind
    table: str
    days: tuple[date, ...] = ()
    index: str | None = None
    text: str

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same step, however many rows there are by now."""
        return self.kind, self.table, self.days, self.index


class Decision(msgspec.Struct, frozen=True):
    """What is due, in order, and what stands in the way of more."""

    steps: tuple[Step, ...]
    findings: tuple[Finding, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The store after maintenance (or before it, where nothing was done): ``left`` is what was due and is not done."""

    observed: Observed
    done: tuple[Step, ...] = ()
    left: tuple[Step, ...] = ()
    findings: tuple[Finding, ...] = ()


def decide(observed: Observed, now: datetime, policy: MaintainPolicy) -> Decision:
    """What is due now. Oldest first; what an interrupted step left comes before everything else."""
    today = now.astimezone(UTC).date()
    findings: list[Finding] = []
    cutoff = None if policy.retention_days is None else today - timedelta(days=policy.retention_days)
    if cutoff is not None and observed.has_lake:
        # Set on a host that knows of no lake: what is dropped here the lake would never get.
        findings.append(_lake_finding(cutoff))
        cutoff = None
    if cutoff is not None:
        cutoff = _readable(observed, cutoff, findings)
    return Decision(
        (
            *_clear(observed),
            *_give_days(observed, today, policy, cutoff),
            *_expire(observed, cutoff),
            *_tend(observed, now, policy, cutoff),
        ),
        tuple(findings),
    )


def _clear(observed: Observed) -> list[Step]:
    steps: list[Step] = []
    # What was replaced is looked after first: until then readers may lack rows that no batch brought.
    for name in sorted(observed.leftovers, key=lambda name: name != REPLACED):
        if name == REPLACED:
            text = "finish the exchange of the default partition, which was interrupted"
            steps.append(Step(kind=StepKind.FINISH, table=name, text=text))
        elif name.startswith(MAKING):
            text = "drop a copy of waiting rows, whose making was interrupted"
            steps.append(Step(kind=StepKind.DISCARD, table=name, text=text))
        elif day := partition_day(f"{PARENT}_{name.removeprefix(EXPIRED)}"):
            steps.append(Step(kind=StepKind.DROP, table=name, days=(day,), text=f"drop {day}, which is detached"))
    return steps


def _give_days(observed: Observed, today: date, policy: MaintainPolicy, cutoff: date | None) -> list[Step]:
    """Partitions ahead, and for what waits in the default one."""
    present = {table.day for table in observed.tables}
    last = today + timedelta(days=policy.ahead_days)
    waiting = {
        day: rows
        for day, rows in observed.default_days.items()
        if day not in present
        and (cutoff is None or day >= cutoff)
        and (today - timedelta(days=_NEAR_DAYS) <= day <= last or rows >= MOVED_AT_ONCE)
    }
    steps: list[Step] = []
    if waiting and (observed.default_scan_bytes > SCANNED_AT_ONCE or max(waiting.values()) > MOVED_AT_ONCE):
        days = sorted(sorted(waiting, key=waiting.__getitem__, reverse=True)[:_DAYS_AT_ONCE])
        rows = sum(waiting[day] for day in days)
        text = f"move {rows:,} waiting rows to partitions of their own ({_days(days)}): copy, then exchange"
        steps.append(Step(kind=StepKind.RECAST, table=DEFAULT, days=tuple(days), text=text))
        present |= set(days)
    ahead = {today + timedelta(days=offset) for offset in range(policy.ahead_days + 1)}
    for day in sorted((ahead | set(waiting)) - present):
        rows = observed.default_days.get(day, 0)
        text = f"make {day}" + (f", and move {rows:,} waiting rows there" if rows else "")
        steps.append(Step(kind=StepKind.MAKE, table=partition_name(day), days=(day,), text=text))
    return steps


def _readable(observed: Observed, cutoff: date, findings: list[Finding]) -> date:
    """The cutoff, or an earlier day where a deferral has not read so far."""
    for unread in observed.unread:
        if unread.since >= cutoff:
            continue
        expirable = any(table.day and table.day < cutoff for table in observed.tables)
        if expirable or any(day < cutoff for day in observed.default_days):
            findings.append(_unread_finding(unread, cutoff))
    return min([cutoff, *(unread.since for unread in observed.unread)])


def _lake_finding(cutoff: date) -> Finding:
    return Finding(
        rule="retention-lake",
        severity=Severity.WARNING,
        where=f"days before {cutoff}",
        text="days of this store leave for a lake, which may not have these yet, so retention drops none",
        remedy="unset retention_days here: `afterwrite lake archive` is how they leave. Where that lake is given up for"
        " good, with all that it alone has: delete from afterwrite.lake_part",
    )


def _unread_finding(unread: Unread, cutoff: date) -> Finding:
    if unread.told:
        text = f"deferred triggers of source {unread.source!r} have not read {unread.since} yet"
        remedy = "let `afterwrite capture` catch up (`afterwrite migrate status` says how far deferral is)"
    else:
        text = f"nobody has said how far deferred triggers of source {unread.source!r} have read"
        remedy = (
            f"run `AFTERWRITE_SOURCE={unread.source} afterwrite maintain --apply` with that source's --dsn;"
            f" or give that source a row in afterwrite.feed_reader, where it is gone for good"
        )
    return Finding(
        rule="retention-unread",
        severity=Severity.WARNING,
        where=f"days before {cutoff}",
        text=f"{text}, so retention keeps {unread.since} and what follows",
        remedy=remedy,
    )


def _expire(observed: Observed, cutoff: date | None) -> list[Step]:
    if cutoff is None:
        return []
    steps = [
        Step(
            kind=StepKind.EXPIRE,
            table=table.name,
            days=(table.day,),
            text=f"detach and drop {table.day} ({_rows(table.rows)}, {_size(table.bytes)})",
        )
        for table in sorted(observed.tables, key=_by_day)
        if table.day and table.day < cutoff
    ]
    if rows := sum(rows for day, rows in observed.default_days.items() if day < cutoff):
        text = f"delete {_rows(rows)} of days before {cutoff} from the default partition"
        steps.append(Step(kind=StepKind.EXPIRE_ROWS, table=DEFAULT, days=(cutoff,), text=text))
    if observed.oldest_batch_at is not None and observed.oldest_batch_at < _midnight(cutoff):
        text = f"let the feed begin with what was stored on {cutoff}: delete the expired batches and their contexts"
        steps.append(Step(kind=StepKind.EXPIRE_BATCHES, table="batch", days=(cutoff,), text=text))
    return steps


def _tend(observed: Observed, now: datetime, policy: MaintainPolicy, cutoff: date | None) -> list[Step]:
    """Indexes as each partition's age wants them, and closed ones frozen."""
    steps: list[Step] = []
    today = now.astimezone(UTC).date()
    for table in sorted(observed.tables, key=_by_day):
        if cutoff is not None and table.day and table.day < cutoff:
            continue
        cold = table.day is not None and (today - table.day).days > policy.hot_days
        wanted = wanted_indexes(Temperature.COLD if cold else Temperature.HOT)
        days = (table.day,) if table.day else ()

        def step(kind: StepKind, text: str, index: str | None = None, table: Table = table, days: Any = days) -> None:
            steps.append(Step(kind=kind, table=table.name, days=days, index=index, text=f"{text} {table.name}"))

        for index in sorted(wanted):
            valid = table.indexes.get(index)
            if valid is False:
                step(StepKind.DROP_INDEX, f"drop index {index}, whose building was interrupted, of", index)
            if not valid:
                step(StepKind.BUILD_INDEX, f"build index {index} of", index)
        # Only when the new ones are there: a reader is never without.
        for index in sorted(set(table.indexes) & set(INDEXES) - wanted):
            step(StepKind.DROP_INDEX, f"drop index {index} of", index)
        closed = table.closed_at()
        if closed is not None and closed <= now and not table.settled:
            step(StepKind.FREEZE, "freeze and analyze")
    return steps


async def observe(db: Database, reader: Reader | None = None) -> Observed:
    """Look at the store; reads only. ``reader`` is news of a source that the store was not told yet."""
    indexes: dict[str, dict[str, bool]] = {}
    for row in await db.rows(_IndexRow, statement("maintain.read_indexes")):
        indexes.setdefault(row.table_name, {})[row.name.removeprefix(f"{row.table_name}_")] = row.valid
    tables = await db.rows(_TableRow, statement("maintain.read_tables"))
    start = await db.one(_FeedStartRow, statement("maintain.read_feed_start"))
    expired = await db.one(_ExpiredRow, statement("maintain.read_expired"))
    days = await db.rows(_DayRow, statement("maintain.count_default_days"))
    return Observed(
        tables=tuple(
            Table(
                name=table.name,
                day=partition_day(table.name),
                rows=table.rows,
                bytes=table.bytes,
                vacuumed_at=table.vacuumed_at,
                indexes=indexes.get(table.name, {}),
            )
            for table in tables
            # A partition that somebody made by hand with other bounds is theirs to look after.
            if table.name == DEFAULT or partition_day(table.name)
        ),
        leftovers=tuple(await db.values(statement("maintain.read_leftovers"))),
        default_days={row.day: row.rows for row in days},
        default_scan_bytes=await db.value(statement("store.read_default_bytes")),
        unread=tuple(await db.rows(Unread, statement("maintain.read_unread"), **_words(reader))),
        oldest_batch_at=start.oldest_at,
        expired_days=expired.days,
        expired_rows=expired.rows,
        expired_until=expired.until,
        has_lake=expired.has_lake,
    )


def _words(reader: Reader | None) -> dict[str, object]:
    lsn = reader.commit_lsn if reader else None
    return {
        "source": reader.source if reader else None,
        "position": reader.position if reader else None,
        "commit_lsn": None if lsn is None else str(lsn),
    }


async def look(db: Database, policy: MaintainPolicy, *, reader: Reader | None = None) -> Report:
    """What maintenance would do now. Reads only."""
    observed = await observe(db, reader)
    decision = decide(observed, datetime.now(UTC), policy)
    return Report(observed=observed, left=decision.steps, findings=decision.findings)


async def maintain(
    db: Database,
    policy: MaintainPolicy,
    *,
    reader: Reader | None = None,
    on_step: Callable[[Step], None] | None = None,
    wait_seconds: float = 0.0,
    locks: LockPolicy | None = None,
) -> Report:
    """Do what is due. ``db`` is a connection of its own, opened with ``SESSION``; ``reader`` is what retention minds.

    What cannot be done now (somebody holds a lock) becomes a finding, and the rest is done. Raises AnotherMaintainer
    when one is at work for longer than ``wait_seconds``, and ConnectionLost; whatever was interrupted, the next call
    goes on from there.
    """
    if reader:
        # Also where another maintainer is at work: it may be waiting for this word.
        await db.run(statement("maintain.tell_reader"), **_words(reader))
    async with alone(db, wait_seconds):
        return await _maintain(db, policy, on_step, locks or _PATIENT)


@contextlib.asynccontextmanager
async def alone(db: Database, wait_seconds: float = 0.0) -> AsyncGenerator[None]:
    """Be the only one that maintains the store. Raises AnotherMaintainer when one is at work for longer than that."""
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while not await db.value(statement("maintain.lock_maintainer")):
        if asyncio.get_running_loop().time() >= deadline:
            pid: int | None = await db.value(statement("maintain.read_maintainer"))
            raise AnotherMaintainer(
                f"another maintainer is at work in {db.where}" + (f" (pid {pid})" if pid else ""),
                remedy="let it finish: it does the same; `afterwrite capture` maintains the store by itself",
            )
        await asyncio.sleep(0.2)
    try:
        yield
    finally:
        # Where the connection is gone, so is the lock.
        with contextlib.suppress(AfterwriteError):
            await db.run(statement("maintain.unlock_maintainer"))


async def _maintain(
    db: Database, policy: MaintainPolicy, on_step: Callable[[Step], None] | None, locks: LockPolicy
) -> Report:
    done: dict[tuple[object, ...], Step] = {}
    hindered: dict[str, Finding] = {}
    waits = False
    for _ in range(_ROUNDS):
        decision = decide(await observe(db), datetime.now(UTC), policy)
        # What a step brings about may call for another: a day that was made for old rows is frozen, and made cold.
        due = [step for step in decision.steps if step.key not in done and step.table not in hindered]
        if not due or waits:
            break
        for step in due:
            if step.table in hindered or (waits and step.kind in _CONCURRENT):
                continue
            try:
                await _perform(db, step, locks)
            except ConnectionLost:
                raise
            except AfterwriteError as error:
                # The steps of one table build on each other. The others' go on, unless they would wait for the same.
                hindered[step.table] = _trouble(step, error)
                waits = waits or (step.kind in _CONCURRENT and isinstance(error, LockTimeout))
                continue
            done[step.key] = step
            if on_step:
                on_step(step)
    observed = await observe(db)
    decision = decide(observed, datetime.now(UTC), policy)
    return Report(
        observed=observed,
        done=tuple(done.values()),
        left=decision.steps,
        findings=(*decision.findings, *hindered.values()),
    )


def _trouble(step: Step, error: AfterwriteError) -> Finding:
    return Finding(
        rule="maintain-hindered",
        severity=Severity.WARNING,
        where=step.table,
        text=f"could not {step.text}: {error}",
        remedy=error.remedy,
    )


async def _perform(db: Database, step: Step, locks: LockPolicy) -> None:
    match step.kind:
        case StepKind.FINISH:
            await finish_replaced(db)
        case StepKind.DISCARD:
            await discard_making(db, step.table)
        case StepKind.DROP:
            await drop_detached(db, step.table, step.days[0])
        case StepKind.RECAST:
            await recast_default(db, step.days, policy=locks)
        case StepKind.MAKE:
            await make_partition(db, step.days[0], policy=locks)
        case StepKind.BUILD_INDEX:
            failpoint("maintain.before_build")
            await db.run(create_index(step.table, step.index or "", concurrently=True))
            failpoint("maintain.after_build")
        case StepKind.DROP_INDEX:
            failpoint("maintain.before_drop_index")
            index = identifier(SCHEMA, f"{step.table}_{step.index}")
            await db.run(sql.SQL("drop index concurrently if exists {}").format(index))
            failpoint("maintain.after_drop_index")
        case StepKind.FREEZE:
            failpoint("maintain.before_freeze")
            await db.run(sql.SQL("vacuum (freeze, analyze) {}").format(identifier(SCHEMA, step.table)))
            failpoint("maintain.after_freeze")
        case StepKind.EXPIRE:
            # What goes is counted first: nothing else will remember it.
            await roll_up(db)
            name = await detach_day(db, step.table, step.days[0], locks)
            await drop_detached(db, name, step.days[0])
        case StepKind.EXPIRE_ROWS:
            await roll_up(db)
            await _expire_rows(db, step.days[0])
        case StepKind.EXPIRE_BATCHES:
            await roll_up(db)
            await _expire_batches(db, step.days[0])
        case _:
            assert_never(step.kind)


async def detach_day(
    db: Database,
    table: str,
    day: date,
    locks: LockPolicy | None = None,
    *,
    to: str = EXPIRED,
    along: Callable[[Database], Awaitable[None]] | None = None,
) -> str:
    """Take a day out of activity; from here on nobody sees it. Says what its table is called now: ``to`` and the day.

    PostgreSQL has no DETACH … CONCURRENTLY beside a default partition, so this waits for readers and writers of
    activity as a whole, for a moment at a time; the change itself takes a few milliseconds. ``along`` is written in the
    same transaction. What is called as expired days are, the next maintenance drops.
    """
    name = name_of(to, day)

    async def detach(db: Database) -> None:
        await db.run(statement("store.lock_partitions"))
        await db.run(
            statement("maintain.note_expired"),
            day=day,
            from_time=_midnight(day),
            to_time=_midnight(day + timedelta(days=1)),
        )
        source = identifier(SCHEMA, table)
        await db.run(sql.SQL("alter table afterwrite.activity detach partition {}").format(source))
        await db.run(sql.SQL("alter table {} rename to {}").format(source, sql.Identifier(name)))
        if along:
            await along(db)
        failpoint("maintain.before_detach_commit")

    failpoint("maintain.before_detach")
    await with_short_locks(db, [quoted(SCHEMA, PARENT), quoted(SCHEMA, table)], detach, policy=locks or _PATIENT)
    failpoint("maintain.after_detach")
    return name


async def drop_detached(db: Database, name: str, day: date) -> None:
    """Drop a detached day, and remember in the same transaction what it held."""
    failpoint("maintain.before_drop")
    table = identifier(SCHEMA, name)
    async with db.transaction():
        rows: int = await db.value(sql.SQL("select count(*) from {}").format(table))
        size: int = await db.value(statement("maintain.measure_table"), name=quoted(SCHEMA, name))
        await db.run(sql.SQL("drop table {}").format(table))
        await db.run(statement("maintain.note_dropped"), day=day, rows=rows, bytes=size)
        failpoint("maintain.before_drop_commit")
    failpoint("maintain.after_drop")


async def _expire_rows(db: Database, before: date) -> None:
    while True:
        failpoint("maintain.before_expire_rows")
        gone: int = await db.value(statement("maintain.expire_default_rows"), before=before, limit=_CHUNK_ROWS)
        failpoint("maintain.after_expire_rows")
        if gone < _CHUNK_ROWS:
            break
    await db.run(sql.SQL("vacuum (analyze) {}").format(identifier(SCHEMA, DEFAULT)))


async def _expire_batches(db: Database, before: date) -> None:
    """Delete what the feed has from before a day; where rows of that time are left, only what is before those."""
    before = min([before, *await read_partition_days(db)])
    if await db.value(statement("maintain.has_default_rows"), before=before):
        raise Refused(f"rows from before {before} are left in {quoted(SCHEMA, DEFAULT)}")
    start, moved = -1, await db.value(statement("maintain.read_start"))
    while moved != start:
        start = moved
        failpoint("maintain.before_expire_batches")
        async with db.transaction():
            moved = await db.value(statement("maintain.move_feed_start"), before=before, limit=_CHUNK_BATCHES)
            await db.run(statement("maintain.expire_batches"), before=before)
            failpoint("maintain.before_expire_batches_commit")
        failpoint("maintain.after_expire_batches")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _by_day(table: Table) -> date:
    return table.day or date.max


def _days(days: Sequence[date]) -> str:
    return f"{days[0]}" if len(days) == 1 else f"{len(days)} days from {days[0]} to {days[-1]}"


def _rows(rows: int) -> str:
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"


def _size(size: int) -> str:
    return f"{size / 1024**3:,.1f} GiB" if size >= 1024**3 else f"{size / 1024**2:,.1f} MiB"


class _TableRow(msgspec.Struct, frozen=True):
    name: str
    rows: int
    bytes: int
    vacuumed_at: datetime | None


class _IndexRow(msgspec.Struct, frozen=True):
    table_name: str
    name: str
    valid: bool


class _DayRow(msgspec.Struct, frozen=True):
    day: date
    rows: int


class _FeedStartRow(msgspec.Struct, frozen=True):
    position: int
    oldest_at: datetime | None


class _ExpiredRow(msgspec.Struct, frozen=True):
    days: int
    rows: int
    until: date | None
    has_lake: bool
