"""The ledger: who may act, what was done, and what is off because of us. Thin: it reads and writes rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from afterwrite.errors import GateNotMet, Refused, UsageError
from afterwrite.migrate.backup import TriggerBackup, decode_backup
from afterwrite.migrate.phase import Mode
from afterwrite.postgres import Database, statement
from afterwrite.postgres.pooler import shares_sessions

_LOCK_TRIES = 10
_LOCK_PAUSE = 0.2
# Letters of a reason, which anybody may have written.
_LONGEST = 300


class Action(StrEnum):
    """What a row of the ledger tells of."""

    MIGRATION_START = "migration.start"
    MIGRATION_PLAN = "migration.plan"
    MIGRATION_PAUSE = "migration.pause"
    MIGRATION_RESUME = "migration.resume"
    MIGRATION_FINISH = "migration.finish"
    PHASE_SOAKED = "phase.soaked"
    PHASE_HALTED = "phase.halted"
    TRIGGER_BACKUP = "trigger.backup"
    TRIGGER_SILENCE = "trigger.silence"
    TRIGGER_REMOVE = "trigger.remove"
    TRIGGER_RESTORE = "trigger.restore"
    TRIGGER_LEFT = "trigger.left"
    FUNCTION_REMOVE = "function.remove"
    FUNCTION_RESTORE = "function.restore"
    LEGACY_BACKFILL = "legacy.backfill"
    BACKUP_REHEARSED = "backup.rehearsed"
    DRIFT_SEEN = "drift.seen"
    DRIFT_OVER = "drift.over"
    REPLICA_IDENTITY_SET = "replica_identity.set"
    REPLICA_IDENTITY_RESTORE = "replica_identity.restore"


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a plan. ``operator`` is the person where the session said so, ``actor`` the role that logged in."""

    id: int
    plan: str
    actor: str
    operator: str | None
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None

    @property
    def by(self) -> str:
        """Who started it."""
        return who(self.actor, self.operator)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger. ``before`` and ``after`` are JSON text."""

    seq: int
    migration: int | None
    phase: int | None
    subject: str
    action: Action
    sql: str | None
    before: str | None
    after: str | None
    actor: str
    operator: str | None
    application: str
    at: datetime
    xid: int


class Silenced(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger that is off because we turned it off, and what it was before.

    ``xid`` is the transaction that silenced it last, ``times`` how often it was silenced since it was last restored
    (more than once where somebody turned it on again). ``removed_at`` when we dropped it since. ``definition`` is
    scan's description of it at that time, as JSON.
    """

    identity: str
    migration: int
    phase: int
    mode: Mode
    at: datetime
    by: str
    backup: TriggerBackup
    xid: int
    times: int = 1
    removed_at: datetime | None = None
    definition: str | None = None


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A migration that is paused: nothing is silenced or removed until somebody resumes it."""

    migration: int
    at: datetime
    by: str
    because: str | None

    def __str__(self) -> str:
        why = f": {self.because}" if self.because else ""
        return f"paused by {self.by} since {moment(self.at)}{why}"


class PhaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """The newest row of one action in a phase; ``because`` is why a phase was halted."""

    phase: int
    action: Action
    at: datetime
    by: str
    because: str | None


class _SilencedRow(msgspec.Struct, frozen=True, kw_only=True):
    subject: str
    migration: int
    phase: int
    mode: str
    at: datetime
    actor: str
    operator: str | None
    backup: str
    xid: int
    times: int
    removed_at: datetime | None
    definition: str | None


class _PauseRow(msgspec.Struct, frozen=True, kw_only=True):
    migration: int
    at: datetime
    actor: str
    operator: str | None
    because: str | None


class _PhaseRow(msgspec.Struct, frozen=True, kw_only=True):
    phase: int
    action: str
    at: datetime
    actor: str
    operator: str | None
    because: str | None


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    application_name: str
    user_name: str
    since: datetime

    def __str__(self) -> str:
        return (
            f"pid {self.pid} ({self.user_name}, {self.application_name or 'unnamed'}, "
            f"connected since {moment(self.since)})"
        )


def moment(at: datetime) -> str:
    """A moment in words, in UTC whatever the zone of the session is."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def who(actor: str, operator: str | None) -> str:
    """A person and a role in words."""
    return f"{operator} (as {actor})" if operator else actor


@asynccontextmanager
async def migration_lock(db: Database, operator: str | None) -> AsyncGenerator[None]:
    """Be the only one who changes triggers of this database; raises Refused, naming who is, after two seconds.

    Two seconds, since the server may need a moment to see that the process of an earlier session was killed. Raises
    Refused, too, where the session cannot hold it: on a standby, read-only, or behind a pooler in transaction mode.
    """
    await _require_own_session(db)
    for _ in range(_LOCK_TRIES):
        if await db.value(statement("migrate.take_migration_lock")):
            break
        await asyncio.sleep(_LOCK_PAUSE)
    else:
        holder = await db.maybe(_Holder, statement("migrate.read_migration_lock_holder"))
        raise Refused(
            f"the triggers of {db.where} are being changed by {holder or 'another session, gone this moment'}",
            remedy=f"wait until it has ended, or end it: select pg_terminate_backend({holder.pid})"
            if holder
            else "try again",
        )
    try:
        await db.run(statement("migrate.set_operator"), operator=operator or "")
        yield
    finally:
        await _release(db)


class _Session(msgspec.Struct, frozen=True):
    standby: bool
    read_only: bool


async def _require_own_session(db: Database) -> None:
    found = await db.one(_Session, statement("migrate.read_session"))
    if found.standby:
        raise Refused(
            f"{db.where} is a standby: triggers are moved on the primary, and reach it from there",
            remedy="name the primary with --dsn (target_session_attrs=read-write finds it among several hosts)",
        )
    if found.read_only:
        raise Refused(
            f"sessions of this role on {db.where} are read-only (default_transaction_read_only is on)",
            remedy="connect as a role that may write, or: alter role ... set default_transaction_read_only = off",
        )
    if await shares_sessions(db.connection):
        raise Refused(
            f"a pooler in transaction mode stands before {db.where}: every transaction gets another session, so that "
            "nothing keeps a second operator away",
            remedy="name the server itself with --dsn, or the pooler's port for session mode (Supabase: 5432)",
        )


async def _release(db: Database) -> None:
    # A connection that broke inside the block has lost the lock with its session already.
    if not db.connection.closed and not db.connection.broken:
        await db.run(statement("migrate.release_migration_lock"))


async def read_active(db: Database) -> Migration | None:
    """The migration that goes on, if one does."""
    return await db.maybe(Migration, statement("migrate.read_active_migration"))


async def read_last(db: Database) -> Migration | None:
    """The newest migration, ended or not."""
    return await db.maybe(Migration, statement("migrate.read_last_migration"))


async def read_pause(db: Database) -> Pause | None:
    """Who paused the migration that goes on, and why; None while it is not paused."""
    row = await db.maybe(_PauseRow, statement("migrate.read_pause"))
    if row is None:
        return None
    return Pause(migration=row.migration, at=row.at, by=who(row.actor, row.operator), because=row.because)


async def set_pause(db: Database, *, paused: bool, operator: str | None = None, because: str = "") -> bool:
    """Pause the migration that goes on, or resume it; False where that is so already. A person's word in the ledger.

    Raises UsageError where no migration goes on.
    """
    active = await read_active(db)
    if active is None:
        raise UsageError(
            f"no migration goes on in {db.where}",
            remedy="one begins with the first phase: `afterwrite migrate run --phase 1 --apply`",
        )
    if (await read_pause(db) is not None) is paused:
        return False
    because = "".join(letter for letter in " ".join(because.split()) if letter.isprintable())[:_LONGEST]
    action = Action.MIGRATION_PAUSE if paused else Action.MIGRATION_RESUME
    await db.run(statement("migrate.set_operator"), operator=operator or "")
    await write_entry(db, action, "the migration", migration=active.id, after={"because": because} if because else None)
    return True


async def refuse_paused(db: Database) -> None:
    """Raise GateNotMet while the migration is paused."""
    if pause := await read_pause(db):
        raise GateNotMet(f"the migration is {pause}", remedy="`afterwrite migrate resume`, when that is over")


async def next_id(db: Database) -> int:
    """The number of the next migration; to be relied on only under the migration lock."""
    return int(await db.value(statement("migrate.next_migration_id")))


async def read_silenced(db: Database) -> dict[str, Silenced]:
    """The triggers that are off, or dropped, because of us, by identity, in the order of phases."""
    rows = await db.rows(_SilencedRow, statement("migrate.read_silenced"))
    return {
        row.subject: Silenced(
            identity=row.subject,
            migration=row.migration,
            phase=row.phase,
            mode=Mode(row.mode),
            at=row.at,
            by=who(row.actor, row.operator),
            backup=decode_backup(row.backup),
            xid=row.xid,
            times=row.times,
            removed_at=row.removed_at,
            definition=row.definition,
        )
        for row in rows
    }


async def read_silenced_names(db: Database) -> frozenset[str]:
    """The identities of the same triggers, for those who only look."""
    return frozenset(row.subject for row in await db.rows(_SilencedRow, statement("migrate.read_silenced")))


class _DeferralEnd(msgspec.Struct, frozen=True):
    identity: str
    pending: bool


async def read_deferral_ends(db: Database, source: str) -> dict[str, bool]:
    """The triggers that have transplanted functions, and whether these may still have to run."""
    rows = await db.rows(_DeferralEnd, statement("migrate.read_deferral_ends"), source=source)
    return {row.identity: row.pending for row in rows}


async def read_ledger(db: Database) -> list[Entry]:
    """Everything that was ever done, oldest first."""
    return [
        msgspec.structs.replace(entry, action=Action(entry.action))
        for entry in await db.rows(Entry, statement("migrate.read_ledger"))
    ]


async def read_phase_rows(db: Database, migration: int) -> dict[tuple[int, Action], PhaseRow]:
    """When and by whom each phase was last silenced, removed, restored, backfilled, soaked and halted."""
    rows = await db.rows(_PhaseRow, statement("migrate.read_phase_rows"), migration=migration)
    return {
        (row.phase, Action(row.action)): PhaseRow(
            phase=row.phase,
            action=Action(row.action),
            at=row.at,
            by=who(row.actor, row.operator),
            because=row.because,
        )
        for row in rows
    }


async def write_entry(
    db: Database,
    action: Action,
    subject: str,
    *,
    migration: int | None = None,
    phase: int | None = None,
    sql: str | None = None,
    before: object = None,
    after: object = None,
) -> None:
    """Tell of something that has no deed of its own, in the caller's transaction."""
    await db.run(
        statement("migrate.write_ledger"),
        migration=migration,
        phase=phase,
        subject=subject,
        action=action.value,
        sql=sql,
        before=None if before is None else msgspec.json.encode(before).decode(),
        after=None if after is None else msgspec.json.encode(after).decode(),
    )
