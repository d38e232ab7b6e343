"""How far deferred bodies have run: for gates, for people, and for whoever waits for effects."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec

from afterwrite.defer.deferral import parse_lsn
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, statement
from afterwrite.record import HEARTBEAT_PREFIX, Lsn
from afterwrite.store.writer import read_checkpoint


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the bodies of a source have run, and how many calls that took and left parked, ever."""

    position: int
    commit_lsn: Lsn
    transactions: int = 0
    calls: int = 0
    parked: int = 0


async def read_progress(db: Database, source: str) -> Progress | None:
    """How far the bodies of a source have run, or None where nothing ever was deferred and no replayer ever ran."""
    row = await db.maybe(ProgressRow, statement("defer.read_progress"), source=source)
    return row.value() if row else None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How deferred bodies stand. ``running``: a replayer holds the claim. ``halted_lsn``: the transaction at which the
    stream stands, because of ``trouble``."""

    position: int
    commit_lsn: str
    transactions: int
    calls: int
    parked: int
    updated_at: datetime
    halted_lsn: str | None
    trouble: str | None
    running: bool


class Deferred(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger whose body runs after commit, and how many of its calls failed and wait."""

    identity: str
    mode: str
    on_error: str
    state: str
    since_lsn: str | None
    until_lsn: str | None
    relation: str
    parked: int


async def read_standing(db: Database, source: str) -> Standing | None:
    """How the deferred bodies of a source stand, or None where nothing ever was deferred."""
    return await db.maybe(Standing, statement("defer.read_standing"), source=source)


async def read_deferred(db: Database, source: str) -> list[Deferred]:
    """The triggers that are deferred now, are about to be, or were and left failed calls."""
    return await db.rows(Deferred, statement("defer.read_deferred"), source=source)


async def caught_up(db: Database, store: Database, lsn: Lsn, *, source: str) -> bool:
    """Whether every transaction that committed at or before ``lsn`` is stored, and its deferred bodies have run.

    What those bodies wrote commits later, and may set off bodies in turn: see ``settle``.
    """
    progress = await read_progress(db, source)
    if progress is None or progress.commit_lsn >= lsn:
        return True
    stored = await read_checkpoint(store, source)
    if stored is None or stored.lsn < lsn:
        return False
    return not (await _waiting(store, progress, source, lsn)).batches


async def wait_until(db: Database, store: Database, lsn: Lsn, *, source: str, timeout: float = 60.0) -> None:
    """Return when ``caught_up``; raises AfterwriteError after ``timeout`` seconds, saying how far the bodies are."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not await caught_up(db, store, lsn, source=source):
        if asyncio.get_running_loop().time() > deadline:
            progress = await read_progress(db, source)
            raise AfterwriteError(
                f"deferred bodies of source {source!r} have run to {progress.commit_lsn if progress else 'nowhere'}, "
                f"not to {lsn}, after {timeout:.0f} s",
                remedy="look whether `afterwrite capture` runs: `afterwrite defer status`",
            )
        await asyncio.sleep(0.05)


async def settle(db: Database, store: Database, *, source: str, timeout: float = 60.0) -> Progress | None:
    """Wait until nothing that has happened by now has bodies left to run, effects of bodies included.

    With writers at work it ends as soon as a moment's WAL was run without a call. Writes a heartbeat, so that it needs
    not wait for one of capture's.
    """
    while True:
        before = await read_progress(db, source)
        now = Lsn.parse(await db.value(statement("defer.read_wal_lsn")))
        await db.value(statement("defer.nudge_capture"), prefix=HEARTBEAT_PREFIX)
        await wait_until(db, store, now, source=source, timeout=timeout)
        after = await read_progress(db, source)
        if before is None or after is None or before.calls == after.calls:
            return after


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """Batches of the feed that deferred bodies have not passed yet, and the age of the oldest of them."""

    batches: int
    seconds: float


async def read_lag(db: Database, store: Database, *, source: str) -> Lag:
    """How far the bodies are behind the store (how far that is behind the source, capture knows)."""
    progress = await read_progress(db, source)
    if progress is None:
        return Lag(batches=0, seconds=0.0)
    waiting = await _waiting(store, progress, source, None)
    age = (datetime.now(UTC) - waiting.oldest_at).total_seconds() if waiting.oldest_at else 0.0
    return Lag(batches=waiting.batches, seconds=max(age, 0.0))


async def _waiting(store: Database, progress: Progress, source: str, lsn: Lsn | None) -> _WaitingRow:
    return await store.one(
        _WaitingRow,
        statement("defer.count_waiting"),
        source=source,
        position=progress.position,
        commit_lsn=str(progress.commit_lsn),
        lsn=None if lsn is None else str(lsn),
    )


class ProgressRow(msgspec.Struct, frozen=True):
    position: int
    commit_lsn: str
    transactions: int = 0
    calls: int = 0
    parked: int = 0

    def value(self) -> Progress:
        return Progress(
            position=self.position,
            commit_lsn=parse_lsn(self.commit_lsn),
            transactions=self.transactions,
            calls=self.calls,
            parked=self.parked,
        )


class _WaitingRow(msgspec.Struct, frozen=True):
    batches: int
    oldest_at: datetime | None
