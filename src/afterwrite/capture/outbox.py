"""The outbox in an application's database: what it is made of, and how it stands.

For events of transactions where nobody reads the WAL: a server whose ``wal_level`` is not logical, or that gives no
slot. An application posts them by one function, and ``drain.py`` takes them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import msgspec

from afterwrite.errors import Finding, Refused, Severity, UsageError
from afterwrite.postgres import Database, LockPolicy, OnBlocked, statement, with_short_locks
from afterwrite.record import OUTBOX_KNOWN_SECONDS

TABLES = ("afterwrite_outbox.event", "afterwrite_outbox.refused")
# Counted up to here; more is "more than".
MOST_COUNTED = 100_000
_OLD_SECONDS = 60.0
# Who asked just before it was closed posts for so long, and a moment more.
GRACE_SECONDS = OUTBOX_KNOWN_SECONDS + 5.0


class OutboxStep(msgspec.Struct, frozen=True):
    """One thing to do: in words and as SQL."""

    text: str
    sql: str


class Standing(msgspec.Struct, frozen=True):
    """How an outbox stands; the counts end at ``MOST_COUNTED``. ``bytes`` is what the table takes on disk."""

    waiting: int
    oldest_seconds: float | None
    refused: int
    bytes: int


class RefusedRow(msgspec.Struct, frozen=True):
    """What was set aside, with the reason and how it begins."""

    number: int
    xid: int
    written_at: datetime
    reason: str
    refused_at: datetime
    beginning: str


async def plan_install(db: Database, *, roles: Sequence[str] = ()) -> list[OutboxStep]:
    """What an outbox consists of; it may be laid again. Only these roles may post then, or all where none is named.

    Raises UsageError for a role that does not exist.
    """
    names = [await _find_role(db, role) for role in roles] or ["public"]
    listed = ", ".join(names)
    gone = [name for name in await db.values(statement("outbox.read_granted")) if name not in names]
    closing = [
        OutboxStep(
            f"no longer let {name} post",
            f"revoke all on schema afterwrite_outbox from {name};\n"
            f"revoke all on function afterwrite_outbox.post(text) from {name}",
        )
        for name in gone
    ]
    return [
        OutboxStep("lay schema afterwrite_outbox", statement("outbox.lay_schema").decode()),
        OutboxStep("open it to recorders", statement("outbox.open_schema").decode()),
        OutboxStep("lay table afterwrite_outbox.event", statement("outbox.lay_event").decode()),
        OutboxStep("lay table afterwrite_outbox.refused", statement("outbox.lay_refused").decode()),
        OutboxStep("lay function afterwrite_outbox.post, the one way in", statement("outbox.lay_post").decode()),
        OutboxStep("close the schema", statement("outbox.close_schema").decode()),
        OutboxStep("close the tables", statement("outbox.close_tables").decode()),
        OutboxStep("close the function", statement("outbox.close_post").decode()),
        *closing,
        OutboxStep(
            f"let {'every role' if names == ['public'] else listed} post",
            f"grant usage on schema afterwrite_outbox to {listed};\n"
            f"grant execute on function afterwrite_outbox.post(text) to {listed}",
        ),
    ]


async def plan_remove(db: Database) -> list[OutboxStep]:
    """What takes it away, with all that is in it; between the first step and the others recorders are waited for."""
    if not await db.value(statement("outbox.has_schema")):
        return []
    return [
        OutboxStep("close it to recorders", statement("outbox.close_to_recorders").decode()),
        OutboxStep("drop function afterwrite_outbox.post", statement("outbox.drop_post").decode()),
        OutboxStep("drop the tables, with all that is in them", statement("outbox.drop_tables").decode()),
        OutboxStep("drop schema afterwrite_outbox", statement("outbox.drop_schema").decode()),
    ]


async def lay(db: Database, steps: Sequence[OutboxStep]) -> None:
    """Do all of it at once: in between nobody could post."""
    async with db.transaction():
        for step in steps:
            await db.run(step.sql.encode())


async def remove(
    db: Database,
    steps: Sequence[OutboxStep],
    *,
    grace_seconds: float = GRACE_SECONDS,
    discard: bool = False,
    policy: LockPolicy | None = None,
    on_blocked: OnBlocked | None = None,
) -> None:
    """Take it away, when every recorder knows that it goes: a transaction that posts to one that is gone would fail.

    Raises Refused while there is something in it, unless that is to be discarded; it stays closed then, and is drained.
    """
    if not steps:
        return
    closing, *dropping = steps
    await db.run(closing.sql.encode())
    await asyncio.sleep(grace_seconds)

    async def work(database: Database) -> None:
        if await is_laid(database):
            await database.run(statement("outbox.lock_tables"))
            if not discard:
                await _refuse_loss(database)
        for step in dropping:
            await database.run(step.sql.encode())

    await with_short_locks(db, TABLES, work, policy=policy, on_blocked=on_blocked)


async def is_laid(db: Database) -> bool:
    """Whether there is an outbox to be drained."""
    return bool(await db.value(statement("outbox.is_laid")))


async def measure(db: Database) -> Standing | None:
    """How the outbox stands; None where there is none."""
    if not await is_laid(db):
        return None
    return await db.one(Standing, statement("outbox.measure"), most=MOST_COUNTED)


async def read_refused(db: Database, *, most: int = 20) -> list[RefusedRow]:
    """The newest of what was set aside."""
    return await db.rows(RefusedRow, statement("outbox.read_refused"), most=most)


async def put_back(db: Database) -> int:
    """Try again what was set aside; says how many rows that are."""
    return await db.run(statement("outbox.put_back"))


async def examine(db: Database) -> list[Finding]:
    """What is to be said of the outbox: whether it is drained, and what was set aside."""
    try:
        standing = await measure(db)
    except Refused as error:
        return [_note("outbox.unseen", str(error), "connect as the role that ran `afterwrite outbox install`")]
    if standing is None:
        return []
    found: list[Finding] = []
    count = f"{'more than ' if standing.waiting >= MOST_COUNTED else ''}{standing.waiting:,}"
    if standing.waiting and (standing.oldest_seconds or 0.0) >= _OLD_SECONDS:
        found.append(
            _warning(
                "outbox.old",
                f"{count} events wait in afterwrite_outbox, the first of them for"
                f" {standing.oldest_seconds or 0.0:,.0f} s: nobody drains it, or not fast enough",
                "run `afterwrite capture` (or `afterwrite capture --outbox-only`), and look at what it says",
            )
        )
    elif standing.waiting >= MOST_COUNTED:
        found.append(
            _warning(
                "outbox.full",
                f"{count} events wait in afterwrite_outbox: more is posted than can be stored",
                "look at what `afterwrite capture` says of the store",
            )
        )
    if standing.refused:
        rows = await read_refused(db, most=1)
        reason = f": {rows[0].reason}" if rows else ""
        found.append(
            _warning(
                "outbox.refused",
                f"{standing.refused:,} events could not be stored, and are set aside in afterwrite_outbox{reason}",
                "see `afterwrite outbox status`; `afterwrite outbox retry --apply` tries them again",
            )
        )
    return found


async def _refuse_loss(db: Database) -> None:
    standing = await measure(db)
    if standing is None or not (standing.waiting or standing.refused):
        return
    raise Refused(
        f"afterwrite_outbox of {db.where} holds {standing.waiting:,} events that are not delivered, and"
        f" {standing.refused:,} that could not be: they would be lost",
        remedy="let `afterwrite capture` drain it first, or say --discard",
    )


async def _find_role(db: Database, name: str) -> str:
    if name == "public":
        return name
    found = await db.value(statement("outbox.read_role"), name=name)
    if found is None:
        raise UsageError(f"there is no role {name}", remedy="name a role of this server, or leave --role out")
    return str(found)


def _warning(rule: str, text: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity=Severity.WARNING, where="afterwrite_outbox", text=text, remedy=remedy)


def _note(rule: str, text: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity=Severity.INFO, where="afterwrite_outbox", text=text, remedy=remedy)
