"""Calls of deferred bodies that failed: what they were, running them again, giving them up, and mending a body."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from afterwrite.defer.deferral import DeferralRow, read_deferrals_of, refresh_deferral
from afterwrite.defer.run import words
from afterwrite.errors import AfterwriteError, UsageError
from afterwrite.postgres import Database, statement
from afterwrite.scan.catalog import Trigger, read_inventory


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a body that failed and waits; ``attempts`` is 0 where it was refused without a try."""

    id: int
    identity: str
    deferral_id: int
    activity_id: str
    commit_lsn: str
    ordinal: int
    committed_at: datetime
    operation: str
    sqlstate: str | None
    error: str
    attempts: int
    parked_at: datetime
    resolved_at: datetime | None = None
    resolution: str | None = None


class LetterDetail(msgspec.Struct, frozen=True, kw_only=True):
    """All of a dead letter: what it takes to run it again. Rows, context and settings are JSON."""

    id: int
    identity: str
    deferral_id: int
    run: str
    activity_id: str
    commit_lsn: str
    ordinal: int
    committed_at: datetime
    operation: str
    before: str | None
    after: str | None
    context: str
    settings: str
    role: str | None
    sqlstate: str | None
    error: str
    detail: str | None
    attempts: int
    parked_at: datetime
    resolved_at: datetime | None
    resolution: str | None


async def read_dead_letters(
    db: Database, source: str, *, identity: str | None = None, resolved: bool = False
) -> list[DeadLetter]:
    """Failed calls (of one trigger) that wait, in the order in which they were to run; ``resolved`` ones too."""
    return await db.rows(
        DeadLetter, statement("defer.read_dead_letters"), source=source, identity=identity, resolved=resolved
    )


async def read_dead_letter(db: Database, source: str, id: int) -> LetterDetail:
    """All of one; raises UsageError when there is none of that number."""
    found = await db.maybe(LetterDetail, statement("defer.read_dead_letter"), source=source, id=id)
    if found is None:
        raise UsageError(f"there is no dead letter {id} of source {source!r}", remedy="see `afterwrite defer list`")
    return found


async def retry_dead_letters(db: Database, ids: Sequence[int]) -> dict[int, AfterwriteError | None]:
    """Run parked calls again in this order, each in its own transaction; says of each what went wrong, or None.

    The settings, clock, role and context are those of the original transaction, as they were when it was parked.
    """
    said: dict[int, AfterwriteError | None] = {}
    for letter in ids:
        try:
            async with db.transaction():
                await db.value(statement("defer.retry_dead_letter"), id=letter)
            said[letter] = None
        except AfterwriteError as error:
            said[letter] = error
            await db.run(statement("defer.note_attempt"), id=letter, error=words(error))
    return said


async def skip_dead_letters(db: Database, ids: Sequence[int]) -> int:
    """Give parked calls up; says how many waited."""
    return sum([await db.run(statement("defer.skip_dead_letter"), id=letter) for letter in ids])


async def skip_halt(db: Database, source: str) -> str | None:
    """Let the transaction at which the stream stands go by: its failing calls are parked, and the stream goes on.

    Says at which commit that is; None when the stream does not stand.
    """
    lsn: str | None = await db.value(statement("defer.skip_halt"), source=source)
    return lsn


async def renew_bodies(db: Database, source: str, identities: Sequence[str]) -> list[str]:
    """Take over the functions of these triggers as they are now, where they were changed; says whose were.

    For live deferrals, and for those that failed calls wait for.
    """
    rows = [
        row
        for row in await read_deferrals_of(db, await db.values(statement("defer.read_renewable"), source=source))
        if row.identity in identities
    ]
    if not rows:
        return []
    triggers = (await read_inventory(db)).triggers
    renewed: list[str] = []
    for row in rows:
        now = _same(triggers, row)
        if now is None:
            continue
        body = msgspec.structs.replace(
            row.trigger,
            source=now.source,
            definition=now.definition,
            config=now.config,
            security_definer=now.security_definer,
            function_owner=now.function_owner,
            language=now.language,
        )
        if body == row.trigger:
            continue
        definition = msgspec.json.encode(body).decode()
        async with db.transaction():
            await db.run(statement("defer.renew_definition"), id=row.id, definition=definition)
            await refresh_deferral(db, msgspec.structs.replace(row, definition=definition))
        renewed.append(row.identity)
    return sorted(set(renewed))


def _same(triggers: Sequence[Trigger], row: DeferralRow) -> Trigger | None:
    """The trigger of a deferral as it is now: the same one, or (made again since) the one of its name."""
    oid = row.trigger.oid
    named = [trigger for trigger in triggers if trigger.identity == row.identity]
    return next((trigger for trigger in triggers if trigger.oid == oid), named[0] if named else None)
