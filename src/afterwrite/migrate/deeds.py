"""Deeds: statements that commit together, shown by a dry run and done by ``perform``, word for word the same."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import Enum

import msgspec

from afterwrite.errors import DatabaseError, Drift
from afterwrite.failpoints import failpoint
from afterwrite.migrate.phase import Gate
from afterwrite.migrate.steps import Mark
from afterwrite.postgres import Blocker, Database, LockPolicy, LockTimeout, statement, with_short_locks

# Statements that wait for locks of the user's tables.
_LOCKING = ("alter table", "lock table", "drop trigger", "CREATE TRIGGER", "CREATE CONSTRAINT TRIGGER")
_CANCELED = "57014"
# What afterwrite.require_trigger() raises.
_NOT_AS_PLANNED = "AW003"


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction. ``relations`` (quoted) are the tables of the user's that it locks for a moment."""

    title: str
    relations: tuple[str, ...] = ()
    statements: tuple[str, ...]


class EventKind(Enum):
    """What a migration has to tell while it works."""

    GATES = "gates"
    WAITING = "waiting"
    STATEMENT = "statement"
    BLOCKED = "blocked"
    SILENCED = "silenced"
    RESTORED = "restored"
    REMOVED = "removed"
    FILLING = "filling"
    FILLED = "filled"
    DRIFT = "drift"
    PAUSED = "paused"
    SOAKING = "soaking"
    SOAKED = "soaked"
    HALTED = "halted"
    DONE = "done"


class MigrationEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that just happened. ``seconds`` is what is left of a soak; ``subject`` a table, where there is one."""

    kind: EventKind
    phase: int | None = None
    subject: str | None = None
    text: str = ""
    gates: tuple[Gate, ...] = ()
    seconds: float | None = None


OnEvent = Callable[[MigrationEvent], None]


def render(deeds: Iterable[Deed], policy: LockPolicy | None = None) -> str:
    """The deeds as a script for psql or an SQL editor; each transaction gives up rather than block writers."""
    timeout = f"set local lock_timeout = '{(policy or LockPolicy()).lock_timeout_ms}ms'"
    parts: list[str] = []
    for deed in deeds:
        frame = ["begin", *([timeout] if deed.relations else [])]
        body = "".join(f"{text.rstrip().removesuffix(';')};\n" for text in [*frame, *deed.statements, "commit"])
        parts.append(f"-- {deed.title}\n{body}")
    return "\n".join(parts)


async def perform(
    db: Database,
    relations: Sequence[str],
    build: Callable[[], Awaitable[Deed | None]],
    check: Callable[[], Awaitable[None]],
    *,
    phase: int | None = None,
    policy: LockPolicy | None = None,
    on_event: OnEvent | None = None,
    stamp_key: str | None = None,
) -> Deed | None:
    """Build the deed from what is there, do it, check what came of it: one transaction, tried again when it is blocked.

    ``build`` gives None when there is nothing to do any more. When ``check`` raises, nothing has happened. With
    ``stamp_key`` what is told of it is signed.
    """
    done: Deed | None = None
    milliseconds = (policy or LockPolicy()).lock_timeout_ms

    async def work(db: Database) -> None:
        nonlocal done
        done = await build()
        if done is None:
            return
        failpoint("migrate.before_deed")
        for text in done.statements:
            try:
                done_now = text.signed(stamp_key) if isinstance(text, Mark) else text
                locking = text.startswith(_LOCKING)
                await (_run_locking(db, text, milliseconds) if locking else db.run(done_now.encode()))
            except DatabaseError as error:
                if error.sqlstate == _NOT_AS_PLANNED:
                    raise Drift(str(error).rpartition(" said: ")[2], remedy=error.remedy) from error
                raise
            if on_event:
                on_event(MigrationEvent(kind=EventKind.STATEMENT, phase=phase, subject=done.title, text=text))
        await check()
        failpoint("migrate.before_deed_commit")

    def blocked(attempt: int, blockers: Sequence[Blocker]) -> None:
        if on_event:
            held = "; ".join(str(blocker) for blocker in blockers) or "somebody who is gone by now"
            text = f"attempt {attempt}: {', '.join(relations)} is locked by {held}"
            on_event(MigrationEvent(kind=EventKind.BLOCKED, phase=phase, subject=", ".join(relations), text=text))

    await with_short_locks(db, relations, work, policy=policy, on_blocked=blocked)
    if done is not None:
        failpoint("migrate.after_deed")
    return done


async def _run_locking(db: Database, text: str, milliseconds: int) -> None:
    """Run a statement that takes locks, within the lock timeout in all.

    lock_timeout is for each lock by itself: one partition after the other, a statement would wait for the last while it
    keeps writers from the first.
    """
    before = await db.value(statement("migrate.read_time_limit"))
    await db.value(statement("migrate.limit_time"), milliseconds=f"{milliseconds}ms")
    began = time.monotonic()
    try:
        await db.run(text.encode())
    except DatabaseError as error:
        if error.sqlstate == _CANCELED and time.monotonic() - began >= milliseconds / 1_000:
            raise LockTimeout(str(error), remedy=error.remedy, sqlstate=error.sqlstate) from error
        raise
    await db.value(statement("migrate.limit_time"), milliseconds=before)
