"""Publications, slot and first checkpoint: what an installation does to a source database, and takes back.

::

    survey ─▶ judge ─▶ decide ─▶ replica identity ▸ publications ▸ slot ▸ checkpoint

The order matters. A table must have its replica identity before it is published, or its UPDATEs fail in between. A
publication must exist before the slot, because it is looked up as it was at the time of each change. Each step looks
at what stands, so an interrupted installation is simply run again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial

import msgspec

from afterwrite.activity import Batch, Checkpoint, Lsn, Sink
from afterwrite.capture.preflight import CaptureSetup, Member, SlotState, Survey, Table, judge, read_slot, survey
from afterwrite.errors import Finding, Refused, Severity
from afterwrite.postgres import (
    Blocker,
    Database,
    LockPolicy,
    LockTimeout,
    OnBlocked,
    quoted,
    statement,
    with_short_locks,
)

_SLOT_LOCK_TIMEOUT_MS = 30_000


class System(msgspec.Struct, frozen=True, kw_only=True):
    """Which cluster, and on which timeline: what an LSN means nothing without."""

    system_id: str
    timeline: int


class StepKind(StrEnum):
    IDENTITY = "identity"
    PUBLICATION = "publication"
    DROP_SLOT = "drop slot"
    SLOT = "slot"
    CHECKPOINT = "checkpoint"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One deed: its SQL (none for the checkpoint, which is the sink's), and the SQL that takes it back.

    ``relations`` are the tables that it locks for a moment.
    """

    kind: StepKind
    where: str
    text: str
    sql: str | None = None
    undo: str | None = None
    relations: tuple[str, ...] = ()


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of WAL that is not in the store: commits after ``after`` and up to ``until``."""

    after: Lsn
    until: Lsn


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation did. ``checkpoint`` is where capture goes on from, or begins.

    ``published`` are the tables that were added now: they have no changes before ``published_at``.
    """

    steps: list[Step]
    checkpoint: Checkpoint
    published: list[Table] = []
    published_at: Lsn | None = None
    gap: Gap | None = None


async def read_system(database: Database) -> System:
    """The cluster's identity; only a primary has one that counts."""
    return await database.one(System, statement("capture.read_system"))


def check_continuity(checkpoint: Checkpoint, slot: SlotState | None, system: System) -> None:
    """Refuse to go on where going on would silently skip changes; the message says what is lost."""
    name, lsn = checkpoint.slot, checkpoint.lsn
    begin_anew = "run `afterwrite install --apply --accept-gap`, which begins anew and records the gap"
    if checkpoint.system_id != system.system_id:
        raise Refused(
            f"the store follows cluster {checkpoint.system_id} up to {lsn}, but this is cluster {system.system_id}:"
            " positions of the one mean nothing in the other",
            remedy=f"connect to the cluster that was captured; if this one replaced it, {begin_anew}",
        )
    if checkpoint.timeline != system.timeline:
        raise Refused(
            f"the store follows timeline {checkpoint.timeline} up to {lsn}, but the cluster now writes timeline"
            f" {system.timeline}: after a failover or a restore, commits near {lsn} may have been undone or be missing",
            remedy=f"compare what was lost in the failover; then {begin_anew}",
        )
    if slot is None:
        raise Refused(
            f"slot {name} is gone: every change committed after {lsn} until now is missing from the store",
            remedy=begin_anew,
        )
    if slot.plugin != "pgoutput" or slot.here is False:
        raise Refused(
            f"slot {name} belongs to something else: plugin {slot.plugin}, database {slot.database}",
            remedy="use another slot name",
        )
    if slot.lost:
        raise Refused(
            f"slot {name} has lost its WAL ({slot.invalidation or slot.wal_status}): changes committed after {lsn} are"
            " missing from the store",
            remedy=begin_anew,
        )
    if slot.confirmed > lsn:
        raise Refused(
            f"slot {name} is ahead of the store: it was confirmed up to {slot.confirmed}, the store ends at {lsn};"
            " changes committed between the two are missing from the store and can no longer be read",
            remedy="if something else reads this slot, give it another; if the store was restored from a backup, "
            + begin_anew,
        )


async def examine(database: Database, setup: CaptureSetup, checkpoint: Checkpoint | None) -> list[Finding]:
    """All that preflight finds, and whether the store's checkpoint can be continued; never raises for what it finds."""
    seen = await survey(database, setup)
    found = judge(seen, setup)
    if checkpoint is None or seen.server.in_recovery:
        return found
    try:
        _check_publications(seen, setup, checkpoint)
        check_continuity(checkpoint, seen.slot, await read_system(database))
    except Refused as error:
        rules = {finding.rule for finding in found}
        if not rules & {"slot.lost", "slot.foreign"}:
            text, remedy = str(error), error.remedy
            found.append(
                Finding(rule="slot.continuity", severity=Severity.ERROR, where=setup.slot, text=text, remedy=remedy)
            )
    return found


def decide(seen: Survey, setup: CaptureSetup, checkpoint: Checkpoint | None, *, begin_anew: bool = False) -> list[Step]:
    """The steps that are still to be done, in order; none when all stands. Pure.

    ``begin_anew`` replaces a slot that the checkpoint cannot be continued from.
    """
    publications = [
        *_publish(seen, setup.publication, setup.tables, seen.members, everything=True),
        *_publish(seen, setup.legacy_publication, setup.legacy_tables, seen.legacy, everything=False),
    ]
    return [*_identities(seen.members, setup), *publications, *_slot_steps(seen, setup, checkpoint, begin_anew)]


def _identities(members: Iterable[Member], setup: CaptureSetup) -> list[Step]:
    # A partition's own replica identity decides what its WAL holds, so every one of them is set.
    return [
        Step(
            kind=StepKind.IDENTITY,
            where=member.name,
            text=f"keep whole old rows of {member.name} in the WAL",
            sql=f"alter table {member.name} replica identity full",
            undo=f"alter table {member.name} replica identity {_identity_words(member)}",
            relations=(member.name,),
        )
        for member in members
        if member.wanted in setup.full_identity and member.identity != "f" and member.kind in ("r", "p")
    ]


def _identity_words(member: Member) -> str:
    match member.identity:
        case "i" if member.identity_index:
            return f"using index {quoted(member.identity_index)}"
        case "n" | "i":  # an index identity whose index is gone says as much as none
            return "nothing"
        case _:
            return "default"


def _publish(
    seen: Survey, name: str, tables: Sequence[Table], members: Sequence[Member], *, everything: bool
) -> list[Step]:
    # Both publications are made at once, an empty one too: a slot cannot read one that is younger than its position.
    options = {"publish_via_partition_root": "true"}
    if everything:
        if seen.server.version >= 180_000:
            options["publish_generated_columns"] = "stored"
    else:
        # INSERTs alone need no replica identity, and a log table often has none.
        options = {"publish": "'insert'", **options}
    words = ", ".join(f"{option} = {value}" for option, value in options.items())
    publication = seen.publications.get(name)
    steps: list[Step] = []
    if publication is None:
        listed = ", ".join(quoted(*table) for table in tables)
        steps.append(
            Step(
                kind=StepKind.PUBLICATION,
                where=name,
                text=f"publish {len(tables)} tables as {name}",
                sql=f"create publication {quoted(name)}{f' for table {listed}' if listed else ''} with ({words})",
                undo=f"drop publication if exists {quoted(name)}",
                relations=tuple(quoted(*table) for table in tables),
            )
        )
        return steps
    right = publication.via_root and publication.inserts
    if everything:
        right = right and publication.updates and publication.deletes and publication.truncates
        right = right and (seen.server.version < 180_000 or publication.generated == "s")
        options = {"publish": "'insert, update, delete, truncate'", **options}
        words = ", ".join(f"{option} = {value}" for option, value in options.items())
    else:
        right = right and not (publication.updates or publication.deletes or publication.truncates)
    if not right:
        steps.append(
            Step(
                kind=StepKind.PUBLICATION,
                where=name,
                text=f"publish from {name} what capture needs",
                sql=f"alter publication {quoted(name)} set ({words})",
            )
        )
    missing = [table for table in tables if table not in publication.listed]
    if missing:
        listed = ", ".join(quoted(*table) for table in missing)
        steps.append(
            Step(
                kind=StepKind.PUBLICATION,
                where=name,
                text=f"add {len(missing)} tables to {name}",
                sql=f"alter publication {quoted(name)} add table {listed}",
                undo=f"alter publication {quoted(name)} drop table {listed}",
                relations=tuple(quoted(*table) for table in missing),
            )
        )
    return steps


def _slot_steps(seen: Survey, setup: CaptureSetup, checkpoint: Checkpoint | None, begin_anew: bool) -> list[Step]:
    name = setup.slot
    create = Step(
        kind=StepKind.SLOT,
        where=name,
        text=f"create slot {name}",
        sql=f"select pg_create_logical_replication_slot('{name}', 'pgoutput')",
        undo=f"select pg_drop_replication_slot('{name}')",
    )
    drop = Step(
        kind=StepKind.DROP_SLOT,
        where=name,
        text=f"drop slot {name}, which cannot be continued",
        sql=f"select pg_drop_replication_slot('{name}')",
    )
    first = Step(kind=StepKind.CHECKPOINT, where=setup.source, text="write the first checkpoint")
    published = all(publication in seen.publications for publication in setup.publications)
    if checkpoint is not None and not begin_anew:
        return []
    if seen.slot is None:
        return [create, first]
    if begin_anew or seen.slot.lost or not published:
        return [drop, create, first]
    # A slot without a checkpoint: an installation was interrupted between the two, or the store was laid anew. The
    # slot's confirmed position is exact either way. Nobody acknowledges but a worker, and a worker only what is stored
    # with a checkpoint; so nothing of ours lies before that position, and everything after it will be streamed.
    # Adopting it therefore loses nothing, where a new slot would lose what was written since. Only a slot that is older
    # than its publication cannot be read (see above), and has to be replaced: nothing was captured from it.
    return [first]


async def prepare(
    database: Database,
    sink: Sink,
    setup: CaptureSetup,
    *,
    accept_gap: bool = False,
    on_gap: Callable[[Gap], Awaitable[None]] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_blocked: OnBlocked | None = None,
    policy: LockPolicy | None = None,
) -> Prepared:
    """Do what is still to be done so that a worker can start; running it again does nothing more.

    Raises Refused for the first error that preflight finds, before anything is changed, and for a checkpoint that
    cannot be continued, unless ``accept_gap``: then capture begins anew. ``on_gap`` records the gap before the
    checkpoint steps over it, so that a crash between the two cannot hide it.
    """
    seen = await survey(database, setup)
    _refuse(seen, setup, accept_gap)
    system = await read_system(database)
    checkpoint = await sink.read_checkpoint(setup.source)
    begin_anew = False
    if checkpoint is not None:
        try:
            _check_publications(seen, setup, checkpoint)
            check_continuity(checkpoint, seen.slot, system)
        except Refused:
            if not accept_gap:
                raise
            begin_anew = True
    steps = decide(seen, setup, checkpoint, begin_anew=begin_anew)
    published = [
        table
        for table in setup.tables
        if setup.publication not in seen.publications or table not in seen.publications[setup.publication].listed
    ]
    gap: Gap | None = None
    for step in steps:
        match step.kind:
            case StepKind.IDENTITY | StepKind.PUBLICATION:
                await _apply(database, step, policy, on_blocked)
            case StepKind.DROP_SLOT:
                await _drop_slot(database, setup.slot)
            case StepKind.SLOT:
                await _create_slot(database, setup.slot)
            case StepKind.CHECKPOINT:
                first = await _first_checkpoint(database, setup, system)
                if checkpoint is not None:
                    gap = Gap(after=checkpoint.lsn, until=first.lsn)
                    if on_gap:
                        await on_gap(gap)
                await sink.write(Batch(source=setup.source, activities=(), transactions=0, checkpoint=first))
                checkpoint = first
        if on_step:
            on_step(step)
    if checkpoint is None:  # cannot be: without one, decide() ends with that step
        raise Refused(f"no checkpoint was written for {setup.source}", remedy="run the same command again")
    return Prepared(
        steps=steps,
        checkpoint=checkpoint,
        published=published,
        published_at=await read_wal_position(database) if published else None,
        gap=gap,
    )


async def read_wal_position(database: Database) -> Lsn:
    """Where the server writes its log now."""
    return Lsn.parse(str(await database.value(statement("capture.read_wal_position"))))


async def remove(database: Database, setup: CaptureSetup, *, undo: Sequence[Step] = ()) -> list[Step]:
    """Take the slot, the publications and (given the steps that set them) the replica identities away.

    The slot goes first, since a publication must never be dropped under one. Raises Refused while a worker reads it.
    """
    seen = await survey(database, setup)
    steps: list[Step] = []
    if seen.slot is not None and seen.slot.plugin == "pgoutput" and seen.slot.here:
        await _drop_slot(database, setup.slot)
        steps.append(Step(kind=StepKind.DROP_SLOT, where=setup.slot, text=f"drop slot {setup.slot}"))
    for name in setup.publications:
        if name in seen.publications:
            words = f"drop publication if exists {quoted(name)}"
            step = Step(kind=StepKind.PUBLICATION, where=name, text=f"drop publication {name}", sql=words)
            await _apply(database, step, None, None)
            steps.append(step)
    for done in reversed(undo):
        if done.kind is StepKind.IDENTITY and done.undo:
            step = Step(
                kind=StepKind.IDENTITY,
                where=done.where,
                text=f"set the replica identity of {done.where} back",
                sql=done.undo,
                relations=done.relations,
            )
            await _apply(database, step, None, None)
            steps.append(step)
    return steps


def _refuse(seen: Survey, setup: CaptureSetup, accept_gap: bool) -> None:
    wrong = [
        finding
        for finding in judge(seen, setup)
        if finding.severity is Severity.ERROR and not (accept_gap and finding.rule == "slot.lost")
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more: `afterwrite doctor` lists them)" if len(wrong) > 1 else ""
        raise Refused(f"{wrong[0].text}{more}", remedy=wrong[0].remedy)


def _check_publications(seen: Survey, setup: CaptureSetup, checkpoint: Checkpoint) -> None:
    gone = [name for name in setup.publications if name not in seen.publications]
    if gone:
        raise Refused(
            f"publication {', '.join(gone)} was dropped under slot {setup.slot}: what was written since"
            f" {checkpoint.lsn} can no longer be read",
            remedy="run `afterwrite install --apply --accept-gap`, which begins anew and records the gap",
        )


async def _apply(database: Database, step: Step, policy: LockPolicy | None, on_blocked: OnBlocked | None) -> None:
    async def work(words: str, inside: Database) -> None:
        await inside.script(words)

    await with_short_locks(
        database, step.relations, partial(work, step.sql or ""), policy=policy, on_blocked=on_blocked
    )


async def _create_slot(database: Database, slot: str) -> None:
    """Create it; waits for transactions under way, and names them when they take too long."""
    await database.run(statement("capture.set_session_lock_timeout"), milliseconds=str(_SLOT_LOCK_TIMEOUT_MS))
    try:
        await database.value(statement("capture.create_slot"), slot=slot)
    except LockTimeout as error:
        writers = await database.rows(Blocker, statement("capture.read_oldest_writers"))
        raise LockTimeout(
            f"slot {slot} waits for transactions that are not over: {'; '.join(str(writer) for writer in writers)}",
            remedy=f"end it ({'; '.join(writer.remedy for writer in writers)}), then run the same command again",
            sqlstate=error.sqlstate,
        ) from error
    finally:
        await database.run(statement("capture.set_session_lock_timeout"), milliseconds="0")


async def _drop_slot(database: Database, name: str) -> None:
    slot = await read_slot(database, name)
    if slot is None:
        return
    if slot.active_pid is not None:
        raise Refused(
            f"slot {name} is read by pid {slot.active_pid}",
            remedy="stop the worker first (`afterwrite capture`), then run the same command again",
        )
    await database.run(statement("capture.drop_slot"), slot=name)


async def _first_checkpoint(database: Database, setup: CaptureSetup, system: System) -> Checkpoint:
    slot = await read_slot(database, setup.slot)
    if slot is None:
        raise Refused(f"slot {setup.slot} was dropped by somebody else", remedy="run the same command again")
    return Checkpoint(
        source=setup.source,
        slot=setup.slot,
        system_id=system.system_id,
        timeline=system.timeline,
        lsn=slot.confirmed,
    )
