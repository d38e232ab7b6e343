"""Publications, slot and first checkpoint: what an installation does to a source database, and takes back.

::

    survey ─▶ judge ─▶ resume ─▶ decide ─▶ replica identity ▸ publications ▸ slot ▸ checkpoint ▸ gaps

The order matters. A table must have its replica identity before it is published, or its UPDATEs fail in between. A
publication must exist before the slot, because it is looked up as it was at the time of each change. Each step looks
at what stands, so an interrupted installation is simply run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from typing import NoReturn

import msgspec

from afterwrite.capture.continuity import (
    Departure,
    GapKind,
    Memory,
    OpenGap,
    check_departures,
    check_owner,
    close_gap,
    find_departures,
    note_gap,
    read_memory,
    remember,
)
from afterwrite.capture.preflight import CaptureSetup, Member, SlotState, Survey, Table, judge, read_slot, survey
from afterwrite.errors import Finding, Refused, Severity
from afterwrite.failpoints import failpoint
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
from afterwrite.record import Batch, Checkpoint, Lsn, Sink

_SLOT_LOCK_TIMEOUT_MS = 30_000
_CLAIM_TRIES = 10
_CLAIM_PAUSE_SECONDS = 0.5
# Losses of everything after a position; the fourth kind concerns some tables.
_WHOLE = (GapKind.GIVEN_UP, GapKind.BEGUN_ANEW, GapKind.TAKEN_OVER)
_BEGIN_ANEW = "run `afterwrite install --apply --accept-gap`, which begins anew and records the gap"


class ClaimHolder(msgspec.Struct, frozen=True, kw_only=True):
    """The session of the active worker; ``silent_seconds`` is how long it has asked nothing, None if it is at work."""

    pid: int
    silent_seconds: float | None


class System(msgspec.Struct, frozen=True, kw_only=True):
    """Which cluster, and on which timeline: what an LSN means nothing without. ``wal`` is how far it is written."""

    system_id: str
    timeline: int
    wal: str | None = None


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
    """A stretch of WAL that is not in the store, or not whole: commits after ``after`` and up to ``until``."""

    after: Lsn
    until: Lsn
    reason: str


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation did. ``checkpoint`` is where capture goes on from, or begins.

    ``published`` are the tables that were added now: they have no changes before ``published_at``.
    """

    steps: list[Step]
    checkpoint: Checkpoint
    published: list[Table] = []
    published_at: Lsn | None = None
    gaps: tuple[Gap, ...] = ()


async def read_system(database: Database) -> System:
    """The cluster's identity; only a primary has one that counts."""
    return await database.one(System, statement("capture.read_system"))


def check_continuity(checkpoint: Checkpoint, slot: SlotState | None, system: System) -> None:
    """Refuse to go on where going on would silently skip changes; the message says what is lost."""
    name, lsn = checkpoint.slot, checkpoint.lsn
    begin_anew = _BEGIN_ANEW
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
    _check_history(checkpoint, system)
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


def _check_history(checkpoint: Checkpoint, system: System) -> None:
    """Refuse a cluster whose WAL ends before what was stored of it: its disk was set back, and writes another history.

    What it writes from here on would be taken for what is stored already, until its positions are beyond the store's.
    No word steps over that: the slot went back too, and nothing need be lost.
    """
    same = (checkpoint.system_id, checkpoint.timeline) == (system.system_id, system.timeline)
    if same and system.wal is not None and checkpoint.lsn > Lsn.parse(system.wal):
        raise Refused(
            f"the store has this cluster up to {checkpoint.lsn}, but its WAL ends at {system.wal}: it was set back to"
            " an earlier state (a snapshot of its disk?), and what it writes now has positions that are stored already",
            remedy="compare what was undone; then delete the row of this source from afterwrite.checkpoint in the store"
            " and run `afterwrite install --apply`: capture goes on where the slot stands, and stores nothing twice",
        )


def check_slot(checkpoint: Checkpoint, slot: str) -> None:
    """Refuse a store's source that is stored from another slot: each of the two would step over what the other has."""
    if checkpoint.slot != slot:
        raise Refused(
            f"source {checkpoint.source!r} is stored from slot {checkpoint.slot}, up to {checkpoint.lsn}, and this is"
            f" slot {slot}",
            remedy="give this database a source name of its own (AFTERWRITE_SOURCE); only if nothing captures the other"
            " slot any more, run `afterwrite install --apply --accept-gap`, which takes this one and records the gap",
        )


async def examine(
    database: Database, setup: CaptureSetup, checkpoint: Checkpoint | None, store: str | None = None
) -> list[Finding]:
    """All that preflight finds, and whether the store's checkpoint can be continued; never raises for what it finds.

    ``store`` is the identity of the store whose checkpoint it is; where it is not known, nothing is said of owners.
    """
    seen = await survey(database, setup)
    found = judge(seen, setup)
    if seen.server.in_recovery:
        return found
    memory = await read_memory(database, setup.slot)
    found += [finding for finding in find_departures(memory) if finding.rule not in {each.rule for each in found}]
    if store is not None:
        try:
            check_owner(setup.slot, memory.owner, store, database.where)
        except Refused as error:
            return [*found, _finding("slot.owner", setup.slot, error)]
    if checkpoint is None:
        return found
    gap = memory.gap(*_WHOLE)
    try:
        check_slot(checkpoint, setup.slot)
        _check_publications(seen, setup, checkpoint)
        check_continuity(checkpoint, seen.slot, await read_system(database))
    except Refused as error:
        rules = {finding.rule for finding in found}
        if gap is not None and not gap.is_over(checkpoint):
            found = [finding for finding in found if finding.rule != "slot.lost"]
            found.append(_finding("slot.given_up", setup.slot, _interrupted(setup.slot, gap)))
        elif not rules & {"slot.lost", "slot.foreign", "publication.departed"}:
            found.append(_finding("slot.continuity", setup.slot, error))
    found += [
        Finding(
            rule="gap.open",
            severity=Severity.WARNING,
            where=setup.slot,
            text=f"a gap is known in {database.where} and not written into the store yet: {each.reason}",
            remedy="run `afterwrite install --apply`, which writes it there",
        )
        for each in memory.gaps
        if each.to_lsn is not None
    ]
    return found


def _finding(rule: str, where: str, error: Refused) -> Finding:
    return Finding(rule=rule, severity=Severity.ERROR, where=where, text=str(error), remedy=error.remedy)


def _interrupted(slot: str, gap: OpenGap) -> Refused:
    if gap.kind is GapKind.GIVEN_UP:
        return Refused(
            f"slot {slot} was given up at {gap.noticed_at:%Y-%m-%d %H:%M:%S %Z}: {gap.reason}",
            remedy="run `afterwrite install --apply`, which begins anew and writes the gap into the store",
        )
    return Refused(
        f"an installation of slot {slot} was interrupted: {gap.reason}",
        remedy="run `afterwrite install --apply` again, which finishes it and records the gap",
    )


async def refuse_without_slot(database: Database, slot: str, checkpoint: Checkpoint | None) -> NoReturn:
    """Say why there is no slot to read: given up by policy, an installation that broke off, or somebody's deed."""
    gap = (await read_memory(database, slot)).gap(*_WHOLE)
    if gap is not None and not gap.is_over(checkpoint):
        raise _interrupted(slot, gap)
    if checkpoint is not None:
        check_continuity(checkpoint, await read_slot(database, slot), await read_system(database))
    raise Refused(
        f"slot {slot} is gone, or has lost its WAL", remedy="run `afterwrite doctor`, which says what is missing"
    )


async def check_memory(
    database: Database,
    checkpoint: Checkpoint | None,
    store: str,
    *,
    slot: str,
    source: str,
    publications: Sequence[str],
) -> Checkpoint:
    """Refuse to stream where going on would lose, double or take away changes: what a worker asks before it begins.

    Whose the slot is, whether it was given up, whether all is published as it was, and whether the slot continues the
    store's checkpoint. A give-up that was noted but not done, because the worker was killed between the two, is taken
    back: the slot is there and nothing was lost.
    """
    memory = await _look_and_remember(database, slot, store, publications)
    check_owner(slot, memory.owner, store, database.where)
    if checkpoint is None:
        raise Refused(
            f"the store knows nothing of source {source}: no checkpoint was ever written",
            remedy="run `afterwrite install --apply`",
        )
    if memory.owner is None:
        raise Refused(
            f"nothing is known in {database.where} of slot {slot}: capture was not set up here to its end",
            remedy="run `afterwrite install --apply`",
        )
    check_slot(checkpoint, slot)
    gap = memory.gap(*_WHOLE)
    try:
        check_departures(slot, memory.departures, memory.owner.intact_lsn)
        check_continuity(checkpoint, await read_slot(database, slot), await read_system(database))
    except Refused as error:
        if gap is not None and not gap.is_over(checkpoint):
            raise _interrupted(slot, gap) from error
        raise
    if gap is not None and gap.kind is GapKind.GIVEN_UP and gap.to_lsn is None:
        await close_gap(database, gap)
    elif gap is not None and not gap.is_over(checkpoint):
        raise _interrupted(slot, gap)
    return checkpoint


async def _look_and_remember(database: Database, slot: str, store: str, publications: Sequence[str]) -> Memory:
    """What is remembered; and where all is well, the names and keys that tables have now, and tables added by hand."""
    intact = await read_wal_position(database)
    async with database.transaction():
        await database.run(statement("capture.keep_one_snapshot"))
        memory = await read_memory(database, slot)
        if memory.owner is not None and memory.owner.store == store and not memory.harms:
            await remember(database, slot, publications, forget=False)
            await database.run(statement("capture.note_intact"), slot=slot, lsn=str(intact))
    return memory


class Again(StrEnum):
    """How capture begins: where it stands, at a slot's own position, or with a new slot."""

    CONTINUE = "continue"
    ADOPT = "adopt"
    REPLACE = "replace"


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What is lost by beginning so: everything after a position, or some tables for a while."""

    kind: GapKind
    after: Lsn
    reason: str


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """How capture goes on, and at which price."""

    again: Again = Again.CONTINUE
    losses: tuple[Loss, ...] = ()


def resume(
    seen: Survey,
    setup: CaptureSetup,
    memory: Memory,
    checkpoint: Checkpoint | None,
    system: System,
    store: str,
    *,
    where: str = "the source",
    accept_gap: bool = False,
) -> Resumption:
    """How capture goes on from what stands. Raises Refused where it would cost changes and nobody gave the word. Pure.

    The word is ``accept_gap``, or a loss that is written down already: the operator's policy gave the slot up, or the
    word was given to an installation that was interrupted.
    """
    noted = next((gap for gap in memory.gaps if gap.kind in _WHOLE and not gap.is_over(checkpoint)), None)
    owner, departures = memory.owner, memory.losses
    losses: list[Loss] = []
    again = Again.CONTINUE
    same = checkpoint is not None and (checkpoint.system_id, checkpoint.timeline) == (system.system_id, system.timeline)
    whole = seen.slot is not None and not seen.slot.lost and not any(each.breaks_the_slot for each in departures)
    if owner is not None and owner.source != setup.source and checkpoint is None and not accept_gap:
        raise Refused(
            f"slot {setup.slot} on {where} is captured as source {owner.source!r}, and this is {setup.source!r}: what"
            " the one has stored and not acknowledged yet, the other would store again",
            remedy=f"name it as before (AFTERWRITE_SOURCE={owner.source}), or give this source a slot and publications"
            " of its own; to go on under the new name for good, run `afterwrite install --apply --accept-gap`",
        )
    if owner is not None and owner.store != store:
        if not accept_gap:
            check_owner(setup.slot, owner, store, where)
        after = checkpoint.lsn if checkpoint is not None and same else owner.since_lsn
        reason = f"slot {setup.slot} was taken over from store {owner.store} (install --accept-gap)"
        losses.append(Loss(kind=GapKind.TAKEN_OVER, after=after, reason=reason))
    if departures and owner is not None:
        if not (accept_gap or memory.gap(GapKind.UNPUBLISHED)):
            check_departures(setup.slot, departures, owner.intact_lsn)
        losses.append(_unpublished(departures, owner.intact_lsn, checkpoint if same else None))
        again = again if whole else Again.REPLACE
    if checkpoint is None:
        return Resumption(again=again, losses=tuple(losses))
    _check_history(checkpoint, system)
    try:
        check_slot(checkpoint, setup.slot)
        _check_publications(seen, setup, checkpoint)
        check_continuity(checkpoint, seen.slot, system)
    except Refused as error:
        if not (accept_gap or noted):
            raise
        again = Again.ADOPT if whole and same and checkpoint.slot == setup.slot else Again.REPLACE
        if noted is None and not any(loss.kind in _WHOLE for loss in losses):
            losses.append(Loss(kind=GapKind.BEGUN_ANEW, after=checkpoint.lsn, reason=str(error)))
    return Resumption(again=again, losses=tuple(losses))


def _unpublished(departures: Sequence[Departure], intact: Lsn, checkpoint: Checkpoint | None) -> Loss:
    reason = "; ".join(departure.words for departure in departures)
    if any(departure.breaks_the_slot for departure in departures):
        # Nothing more was published from then on, and the slot cannot read past that place.
        after = min(intact, checkpoint.lsn) if checkpoint else intact
        return Loss(kind=GapKind.BEGUN_ANEW, after=after, reason=reason)
    return Loss(kind=GapKind.UNPUBLISHED, after=intact, reason=f"not everything was published: {reason}")


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
        listed = _only(quoted(*table) for table in tables)
        steps.append(
            Step(
                kind=StepKind.PUBLICATION,
                where=name,
                text=f"publish {_counted(tables)} as {name}",
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
    if publication.narrowed:
        # There is no other way to take a filter or a column list off one table.
        listed = ", ".join(publication.narrowed)
        steps.append(
            Step(
                kind=StepKind.PUBLICATION,
                where=name,
                text=f"publish whole tables from {name}, without filter or column list: {listed}",
                sql=f"alter publication {quoted(name)} drop table {_only(publication.narrowed)};"
                f" alter publication {quoted(name)} add table {_only(publication.narrowed)}",
                relations=tuple(publication.narrowed),
            )
        )
    missing = [table for table in tables if table not in publication.listed]
    if missing:
        listed, only = ", ".join(quoted(*table) for table in missing), _only(quoted(*table) for table in missing)
        steps.append(
            Step(
                kind=StepKind.PUBLICATION,
                where=name,
                text=f"add {_counted(missing)} to {name}",
                # The lock waits for writers: every transaction is captured with all its rows of these tables, or none.
                sql=f"lock table {listed} in share mode; alter publication {quoted(name)} add table {only}",
                undo=f"alter publication {quoted(name)} drop table {only}",
                relations=tuple(quoted(*table) for table in missing),
            )
        )
    return steps


def _counted(tables: Sequence[Table]) -> str:
    return f"{len(tables)} table{'' if len(tables) == 1 else 's'}"


def _only(tables: Iterable[str]) -> str:
    # Tables that inherit would be published unasked, and where one has no key its UPDATEs would fail from then on.
    return ", ".join(f"only {table}" for table in tables)


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


async def foresee(
    database: Database, setup: CaptureSetup, checkpoint: Checkpoint | None, store: str | None
) -> list[Step]:
    """The steps that ``prepare`` would take now. Where it would refuse, those that nothing forbids."""
    seen = await survey(database, setup)
    if store is None or seen.server.in_recovery:
        return decide(seen, setup, checkpoint)
    memory, system = await read_memory(database, setup.slot), await read_system(database)
    try:
        course = resume(seen, setup, memory, checkpoint, system, store)
    except Refused:
        course = Resumption()
    return _course_steps(seen, setup, checkpoint, course)


def _course_steps(seen: Survey, setup: CaptureSetup, checkpoint: Checkpoint | None, course: Resumption) -> list[Step]:
    begin = None if course.again is Again.ADOPT else checkpoint
    return decide(seen, setup, begin, begin_anew=course.again is Again.REPLACE)


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
    cannot be continued, for publications that were altered by hand, and for a slot of another store, unless
    ``accept_gap``: then it is mended, where need be begun anew. Every loss is written down in the source before the
    deed, and ``on_gap`` writes it into the store (perhaps again, after a crash) before the checkpoint steps over it.
    """
    seen = await survey(database, setup)
    _refuse(seen, setup)
    system = await read_system(database)
    memory = await read_memory(database, setup.slot)
    store = await sink.read_identity()
    checkpoint = await sink.read_checkpoint(setup.source)
    course = resume(seen, setup, memory, checkpoint, system, store, where=database.where, accept_gap=accept_gap)
    steps = _course_steps(seen, setup, checkpoint, course)
    published = [
        table
        for table in setup.tables
        if setup.publication not in seen.publications or table not in seen.publications[setup.publication].listed
    ]
    job = _Preparation(database, sink, setup, system, checkpoint, on_gap)
    moving = any(step.kind in (StepKind.DROP_SLOT, StepKind.SLOT, StepKind.CHECKPOINT) for step in steps)
    if moving or (memory.owner is not None and memory.owner.store != store):
        await _claim(database, setup.slot)
    try:
        await job.own(store, course)
        for step in steps:
            match step.kind:
                case StepKind.IDENTITY | StepKind.PUBLICATION:
                    await _apply(database, step, policy, on_blocked)
                case StepKind.DROP_SLOT:
                    await drop_slot(database, setup.slot)
                case StepKind.SLOT:
                    await _create_slot(database, setup.slot)
                case StepKind.CHECKPOINT:
                    await job.write_checkpoint()
            if on_step:
                on_step(step)
        published_at = await job.finish(memory.departures)
    finally:
        await database.value(statement("capture.release_claim"), slot=setup.slot)
    if job.checkpoint is None:  # cannot be: without one, decide() ends with that step
        raise Refused(f"no checkpoint was written for {setup.source}", remedy="run the same command again")
    return Prepared(
        steps=steps,
        checkpoint=job.checkpoint,
        published=published,
        published_at=published_at if published else None,
        gaps=tuple(job.gaps),
    )


class _Preparation:
    """The deeds of one installation that leave something to remember."""

    def __init__(
        self,
        database: Database,
        sink: Sink,
        setup: CaptureSetup,
        system: System,
        checkpoint: Checkpoint | None,
        on_gap: Callable[[Gap], Awaitable[None]] | None,
    ) -> None:
        self._database = database
        self._sink = sink
        self._setup = setup
        self._system = system
        self._on_gap = on_gap
        self.checkpoint = checkpoint
        self.gaps: list[Gap] = []

    async def own(self, store: str, course: Resumption) -> None:
        """Write down whose the slot is, together with what that costs."""
        setup, database = self._setup, self._database
        for gap in (await read_memory(database, setup.slot)).gaps:
            if gap.to_lsn is not None and gap.is_over(self.checkpoint):
                await self._tell(Gap(after=gap.from_lsn, until=gap.to_lsn, reason=gap.reason))
                await close_gap(database, gap)
        async with database.transaction():
            for loss in course.losses:
                await note_gap(
                    database,
                    slot=setup.slot,
                    source=setup.source,
                    kind=loss.kind,
                    from_lsn=loss.after,
                    reason=loss.reason,
                )
            failpoint("slot.before_own")
            lsn = str(await read_wal_position(database))
            await database.run(
                statement("capture.own_slot"), slot=setup.slot, source=setup.source, store=store, lsn=lsn
            )
        failpoint("slot.after_own")

    async def write_checkpoint(self) -> None:
        """Begin at the slot's position; what lies before it and was lost is in the store first."""
        setup, database = self._setup, self._database
        first = await _first_checkpoint(database, setup, self._system)
        if self.checkpoint is None:
            await remember(database, setup.slot, setup.publications, forget=True)
            await database.run(statement("capture.begin_slot"), slot=setup.slot, lsn=str(first.lsn))
        for gap in (await read_memory(database, setup.slot)).gaps:
            if gap.kind in _WHOLE:
                told = self._bounds(gap, first.lsn)
                await _end_gap(database, gap, told)
                await self._tell(told)
        failpoint("slot.before_checkpoint")
        await self._sink.write(Batch(source=setup.source, activities=(), transactions=0, checkpoint=first))
        failpoint("slot.after_checkpoint")
        self.checkpoint = first

    async def finish(self, accepted: Sequence[Departure]) -> Lsn:
        """Take what is published now for what should be, and close the losses; says from where on all is published."""
        setup, database = self._setup, self._database
        now = await read_wal_position(database)
        async with database.transaction():
            await database.run(statement("capture.keep_one_snapshot"))
            memory = await read_memory(database, setup.slot)
            known = {(each.publication, each.relation) for each in accepted}
            made_anew = {each.publication for each in accepted if each.breaks_the_slot}
            fresh = [
                each
                for each in memory.losses
                if each.publication not in made_anew and (each.publication, each.relation) not in known
            ]
            check_departures(setup.slot, fresh, memory.owner.intact_lsn if memory.owner else None)
            await remember(database, setup.slot, setup.publications, forget=True)
            await database.run(statement("capture.note_intact"), slot=setup.slot, lsn=str(now))
            if gap := memory.gap(GapKind.UNPUBLISHED):
                await _end_gap(database, gap, Gap(after=gap.from_lsn, until=gap.to_lsn or now, reason=gap.reason))
        for gap in (await read_memory(database, setup.slot)).gaps:
            # One of everything that never came to an end was none: the slot is there and goes on.
            if gap.to_lsn is not None:
                await self._tell(Gap(after=gap.from_lsn, until=gap.to_lsn, reason=gap.reason))
            await close_gap(database, gap)
        return now

    def _bounds(self, gap: OpenGap, until: Lsn) -> Gap:
        after, before = gap.from_lsn, self.checkpoint
        if gap.kind is GapKind.GIVEN_UP and before is not None and before.system_id == self._system.system_id:
            # What was known when the slot was given up may have been behind what the store took.
            after = max(after, min(before.lsn, until))
        return Gap(after=after, until=until, reason=gap.reason)

    async def _tell(self, told: Gap) -> None:
        if told in self.gaps:
            return
        failpoint("slot.before_gap")
        if self._on_gap:
            await self._on_gap(told)
        failpoint("slot.after_gap")
        self.gaps.append(told)


async def _end_gap(database: Database, gap: OpenGap, told: Gap) -> None:
    await database.run(statement("capture.end_gap"), id=gap.id, from_lsn=str(told.after), to_lsn=str(told.until))


async def _claim(database: Database, slot: str) -> None:
    """Keep workers away while the slot moves; one that was killed leaves its session behind for a moment."""
    for attempt in range(_CLAIM_TRIES):
        if await database.value(statement("capture.try_claim"), slot=slot):
            return
        if attempt + 1 < _CLAIM_TRIES:
            await asyncio.sleep(_CLAIM_PAUSE_SECONDS)
    holder = await database.maybe(ClaimHolder, statement("capture.read_claim_holder"), slot=slot)
    pid = holder.pid if holder else "unknown"
    raise Refused(
        f"a worker is active on slot {slot}: its session on {database.where} has pid {pid}",
        remedy="stop it first (`afterwrite capture`), then run the same command again",
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
        await drop_slot(database, setup.slot)
        steps.append(Step(kind=StepKind.DROP_SLOT, where=setup.slot, text=f"drop slot {setup.slot}"))
    for name in setup.publications:
        if name in seen.publications:
            words = f"drop publication if exists {quoted(name)}"
            step = Step(kind=StepKind.PUBLICATION, where=name, text=f"drop publication {name}", sql=words)
            await _apply(database, step, None, None)
            steps.append(step)
    await database.run(statement("capture.forget_slot"), slot=setup.slot)
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


def _refuse(seen: Survey, setup: CaptureSetup) -> None:
    # A lost slot is refused by resume(), which knows whether the word was given.
    wrong = [
        finding for finding in judge(seen, setup) if finding.severity is Severity.ERROR and finding.rule != "slot.lost"
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

    failpoint("slot.before_publish")
    await with_short_locks(
        database, step.relations, partial(work, step.sql or ""), policy=policy, on_blocked=on_blocked
    )
    failpoint("slot.after_publish")


async def _create_slot(database: Database, slot: str) -> None:
    """Create it; waits for transactions under way, and names them when they take too long."""
    await database.run(statement("capture.set_session_lock_timeout"), milliseconds=str(_SLOT_LOCK_TIMEOUT_MS))
    failpoint("slot.before_create")
    try:
        await database.value(statement("capture.create_slot"), slot=slot)
        failpoint("slot.after_create")
    except LockTimeout as error:
        writers = await database.rows(Blocker, statement("capture.read_oldest_writers"))
        raise LockTimeout(
            f"slot {slot} waits for transactions that are not over: {'; '.join(str(writer) for writer in writers)}",
            remedy=f"end it ({'; '.join(writer.remedy for writer in writers)}), then run the same command again",
            sqlstate=error.sqlstate,
        ) from error
    finally:
        await database.run(statement("capture.set_session_lock_timeout"), milliseconds="0")


async def drop_slot(database: Database, name: str) -> None:
    """Drop it, and with it the WAL that it held; raises Refused while something reads it."""
    slot = await read_slot(database, name)
    if slot is None:
        return
    if slot.active_pid is not None:
        raise Refused(
            f"slot {name} is read by pid {slot.active_pid}",
            remedy="stop the worker first (`afterwrite capture`), then run the same command again",
        )
    failpoint("slot.before_drop")
    await database.run(statement("capture.drop_slot"), slot=name)
    failpoint("slot.after_drop")


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
