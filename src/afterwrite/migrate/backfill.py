"""No hole: the legacy log is filled for the time when its triggers were off, and what was filled is proven.

::

    ledger: silenced in xid 7, restored in xid 9 ──the store's marks──▶ Window(after LSN, until LSN)
        ──▶ defer: the trigger's own body over the captured changes of the window ──▶ prove: the same matcher ──▶ ledger

What is to be filled follows from the ledger alone (restored, and not told to be filled), so that a rollback that was
interrupted anywhere is finished by the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from afterwrite.defer.calls import ReplayPolicy
from afterwrite.defer.deferral import read_names_of
from afterwrite.defer.window import Filled, replay_window
from afterwrite.errors import AfterwriteError, Finding, Severity
from afterwrite.failpoints import failpoint
from afterwrite.migrate.deeds import EventKind, MigrationEvent, OnEvent
from afterwrite.migrate.gates import Place
from afterwrite.migrate.ledger import Action, moment, write_entry
from afterwrite.postgres import Database, quoted, statement
from afterwrite.prove.watch import Watch
from afterwrite.prove.window import WindowProof, prove_window, read_watch
from afterwrite.record import Lsn
from afterwrite.scan.catalog import Trigger
from afterwrite.store.writer import read_checkpoint

_PATIENCE_SECONDS = 60.0
_PROOF_SECONDS = 3.0
_POLL_SECONDS = 0.2
_TELL_SECONDS = 5.0
_SHOWN = 5

# What the triggers write, or why that cannot be told.
_Watched = Watch | AfterwriteError


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """A time when a retired trigger was off, by the ledger; ``restore_seq`` is the row that ended it.

    ``times`` is how often it was silenced in that time, ``undisturbed`` whether it was off when we came to restore it.
    """

    identity: str
    migration: int
    phase: int
    silence_xid: int
    restore_xid: int
    restore_seq: int
    silenced_at: datetime
    restored_at: datetime
    times: int
    undisturbed: bool
    definition: str


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Commits strictly between these two are the bodies' to be run."""

    after: Lsn
    until: Lsn


class Backfill(msgspec.Struct, frozen=True, kw_only=True):
    """What was filled for some triggers that were off at the same time, and what the proof of it found."""

    phase: int
    triggers: tuple[str, ...]
    transactions: int = 0
    rows: int = 0
    parked: int = 0
    matched: int = 0
    unexplained: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the log has no hole there any more, and it is proven."""
        return not self.findings


class _MarkRow(msgspec.Struct, frozen=True):
    identity: str
    xid: int
    commit_lsn: str


async def read_holes(db: Database, phase: int | None) -> list[Silence]:
    """The times that are over and not filled, of one phase or of all, oldest first."""
    return await db.rows(Silence, statement("migrate.read_holes"), phase=phase)


async def fill_windows(
    db: Database,
    store: Database,
    place: Place,
    *,
    phase: int | None,
    on_event: OnEvent | None = None,
    replay: ReplayPolicy | None = None,
    patience: float | None = None,
) -> tuple[Backfill, ...]:
    """Fill and prove what ``read_holes`` gives; the caller holds the migration lock. Running it again does no harm.

    Waits ``patience`` seconds (a minute) for capture to have stored the restoring. What cannot be filled is a finding.
    """
    done: list[Backfill] = []
    fillable: list[Silence] = []
    for hole in await read_holes(db, phase):
        if hole.undisturbed:
            fillable.append(hole)
        else:
            done.append(Backfill(phase=hole.phase, triggers=(hole.identity,), findings=(_disturbed(hole),)))
    patience = _PATIENCE_SECONDS if patience is None else patience
    windows, stored = await _find_windows(db, store, place, fillable, patience)
    await _await_proof(db, windows.values())
    together: dict[tuple[int, Lsn, Lsn], list[Silence]] = {}
    for hole in fillable:
        window = windows.get(hole.restore_seq)
        if window is None:
            found = _borderless(hole) if stored else _not_stored(hole)
            done.append(Backfill(phase=hole.phase, triggers=(hole.identity,), findings=(found,)))
        elif await _has_written(db, hole, window):
            done.append(Backfill(phase=hole.phase, triggers=(hole.identity,), findings=(_disturbed(hole),)))
        else:
            together.setdefault((hole.phase, window.after, window.until), []).append(hole)
    if not together:
        return tuple(done)
    # Read once: to scan the source takes longer than to fill a short window.
    watched = await _try_to_watch(db)
    for (number, after, until), holes in together.items():
        one = await _fill(db, store, place, number, Window(after=after, until=until), holes, watched, on_event, replay)
        done.append(one)
        if on_event:
            text = f"{', '.join(one.triggers)}: {one.rows:,} legacy rows filled, {one.matched:,} proven"
            kind = EventKind.FILLED if one.whole else EventKind.FILLING
            on_event(MigrationEvent(kind=kind, phase=number, subject=one.triggers[0], text=text))
    return tuple(done)


async def _find_windows(
    db: Database, store: Database, place: Place, holes: Sequence[Silence], patience: float
) -> tuple[dict[int, Window], bool]:
    """The borders of each hole by ``restore_seq``, and whether the store has all that it will ever have of them."""
    if not holes:
        return {}, True
    reached = Lsn.parse(await db.value(statement("migrate.send_heartbeat")))
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        checkpoint = await read_checkpoint(store, place.source)
        stored = checkpoint is not None and checkpoint.lsn >= reached
        rows = await store.rows(
            _MarkRow,
            statement("migrate.read_marks"),
            source=place.source,
            since=min(hole.silenced_at for hole in holes),
            identities=sorted({hole.identity for hole in holes}),
        )
        marks = {(row.identity, row.xid): Lsn.parse(row.commit_lsn) for row in rows}
        found: dict[int, Window] = {}
        for hole in holes:
            after = marks.get((hole.identity, hole.silence_xid))
            until = marks.get((hole.identity, hole.restore_xid))
            if after is not None and until is not None:
                found[hole.restore_seq] = Window(after=after, until=until)
        if stored or len(found) == len(holes) or asyncio.get_running_loop().time() >= deadline:
            return found, stored
        await asyncio.sleep(_POLL_SECONDS)


async def _await_proof(db: Database, windows: Iterable[Window]) -> None:
    """Give the prover, where one runs, a moment to tell of these windows: it saves what it counted once a second."""
    until = max((window.until for window in windows), default=None)
    deadline = asyncio.get_running_loop().time() + _PROOF_SECONDS
    while until is not None and await db.value(statement("migrate.is_proof_behind"), lsn=str(until)):
        if asyncio.get_running_loop().time() >= deadline:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _has_written(db: Database, hole: Silence, window: Window) -> bool:
    """Whether the trigger was seen to write within the window: somebody turned it on, and off again before we came."""
    return bool(
        await db.value(
            statement("migrate.has_written"),
            identity=hole.identity,
            after=str(window.after),
            until=str(window.until),
            since=hole.silenced_at,
            till=hole.restored_at,
        )
    )


class _Loss(msgspec.Struct, frozen=True):
    text: str


async def _read_losses(store: Database, place: Place, window: Window, holes: Sequence[Silence]) -> list[Finding]:
    """What the store is known to lack of a window: gaps of capture, and days that retention has taken."""
    losses = await store.rows(
        _Loss,
        statement("migrate.read_losses"),
        source=place.source,
        after=str(window.after),
        until=str(window.until),
        since=min(hole.silenced_at for hole in holes),
        till=max(hole.restored_at for hole in holes),
    )
    return [
        Finding(
            rule="rollback.hole",
            severity=Severity.ERROR,
            where=", ".join(hole.identity for hole in holes),
            text=f"the store lacks {loss.text}: legacy rows of that time could not be filled",
            remedy="what was written then is only in the tables themselves, as far as nobody changed it since",
        )
        for loss in losses
    ]


async def _was_altered(db: Database, trigger: Trigger) -> bool:
    """Whether its function has another body now than when it was turned off."""
    now = await db.value(
        statement("migrate.read_trigger_source"), schema=trigger.schema, table=trigger.table, trigger=trigger.name
    )
    return now is not None and now != trigger.source


async def _was_renamed(db: Database, trigger: Trigger, window: Window) -> bool:
    """Whether the table had another name in that time, or another table had its name."""
    own = quoted(trigger.schema, trigger.table)
    return any(
        (name.oid == trigger.table_oid) != (name.relation == own)
        and window.after < Lsn.parse(name.since_lsn) < window.until
        for name in await read_names_of(db, [trigger.table_oid])
    )


async def _fill(
    db: Database,
    store: Database,
    place: Place,
    phase: int,
    window: Window,
    holes: Sequence[Silence],
    watched: _Watched,
    on_event: OnEvent | None,
    replay: ReplayPolicy | None,
) -> Backfill:
    triggers = [msgspec.json.decode(hole.definition, type=Trigger) for hole in holes]
    names = tuple(hole.identity for hole in holes)

    told = asyncio.get_running_loop().time()

    def tell(filled: Filled) -> None:
        nonlocal told
        now = asyncio.get_running_loop().time()
        if on_event and now - told >= _TELL_SECONDS:
            told = now
            text = f"{filled.rows:,} legacy rows of {filled.transactions:,} transactions filled so far"
            on_event(MigrationEvent(kind=EventKind.FILLING, phase=phase, subject=names[0], text=text))

    failpoint("migrate.before_fill")
    try:
        filled = await replay_window(
            db,
            store,
            source=place.source,
            triggers=triggers,
            after=window.after,
            until=window.until,
            on_progress=tell,
            policy=replay,
        )
    except AfterwriteError as error:
        found = Finding(
            rule="rollback.hole",
            severity=Severity.ERROR,
            where=", ".join(names),
            text=f"the legacy log could not be filled from {window.after} to {window.until}: {error}",
            remedy=error.remedy or f"run `afterwrite migrate rollback --phase {phase} --apply` again",
        )
        return Backfill(phase=phase, triggers=names, findings=(found,))
    renamed = [trigger.identity for trigger in triggers if await _was_renamed(db, trigger, window)]
    altered = [trigger.identity for trigger in triggers if await _was_altered(db, trigger)]
    proofs, findings = (
        ([], [*_uncompared(renamed, _RENAMED), *_uncompared(altered, _ALTERED)])
        if renamed or altered
        else await _prove(db, store, watched, place, window, names)
    )
    findings += _judge(names, holes, filled)
    findings += await _read_losses(store, place, window, holes)
    failpoint("migrate.after_fill")
    matched = sum(proof.matched for proof in proofs)
    unexplained = sum(sum(proof.unexplained.values()) for proof in proofs)
    for hole in holes if not filled.parked else ():
        after = {
            "restore": hole.restore_seq,
            "after": str(window.after),
            "until": str(window.until),
            "together": names,
            "transactions": filled.transactions,
            "rows": filled.rows,
            "already": filled.already,
            "matched": matched,
            "unexplained": unexplained,
            "findings": [finding.text for finding in findings],
        }
        await write_entry(db, Action.LEGACY_BACKFILL, hole.identity, migration=hole.migration, phase=phase, after=after)
    return Backfill(
        phase=phase,
        triggers=names,
        transactions=filled.transactions + filled.already,
        rows=filled.rows,
        parked=filled.parked,
        matched=matched,
        unexplained=unexplained,
        findings=tuple(findings),
    )


async def _try_to_watch(db: Database) -> _Watched:
    """What the triggers write; or why that cannot be told, which hinders no filling."""
    try:
        return await read_watch(db)
    except AfterwriteError as error:
        return error


async def _prove(
    db: Database, store: Database, watched: _Watched, place: Place, window: Window, names: Sequence[str]
) -> tuple[list[WindowProof], list[Finding]]:
    """Compare what was filled: all triggers together, or, where one of them cannot be compared, each by itself."""
    after, until = window.after, window.until
    try:
        if not isinstance(watched, Watch):
            raise watched
        together = await prove_window(db, store, watched, source=place.source, triggers=names, after=after, until=until)
    except AfterwriteError as error:
        if len(names) == 1:
            return [], [
                Finding(
                    rule="rollback.unproven",
                    severity=Severity.WARNING,
                    where=names[0],
                    text=f"its legacy rows from {after} to {until} were filled, and not compared: {error}",
                    remedy=error.remedy,
                )
            ]
        each = [await _prove(db, store, watched, place, window, [name]) for name in names]
        return [proof for proofs, _ in each for proof in proofs], [found for _, said in each for found in said]
    if together.whole:
        return [together], []
    said = ", ".join(f"{count:,} {reason.value}" for reason, count in together.unexplained.items())
    examples = "; ".join(f"{found.reason.value} {found.key or ''}".strip() for found in together.examples[:_SHOWN])
    return [together], [
        Finding(
            rule="rollback.unproven",
            severity=Severity.ERROR,
            where=", ".join(names),
            text=f"what was filled is not what the triggers would have written: {said} ({examples})",
            remedy="compare these rows of the legacy log with `afterwrite tail` before relying on them",
        )
    ]


def _judge(names: Sequence[str], holes: Sequence[Silence], filled: Filled) -> list[Finding]:
    findings: list[Finding] = []
    if filled.parked:
        findings.append(
            Finding(
                rule="rollback.hole",
                severity=Severity.ERROR,
                where=", ".join(names),
                text=f"{filled.parked:,} calls of the body failed while the log was filled, and their rows are missing",
                remedy="see `afterwrite defer list`, mend the cause, run `afterwrite defer retry`, then the same "
                "rollback again",
            )
        )
    findings += [
        Finding(
            rule="rollback.disturbed",
            severity=Severity.WARNING,
            where=hole.identity,
            text="was turned on again by somebody while it was to be off, and silenced once more on "
            f"{moment(hole.silenced_at)}: only the time since is filled",
            remedy="the store has all changes of the time before",
        )
        for hole in holes
        if hole.times > 1
    ]
    return findings


def _disturbed(hole: Silence) -> Finding:
    return Finding(
        rule="rollback.disturbed",
        severity=Severity.WARNING,
        where=hole.identity,
        text=f"was on, or others wrote rows like its own, between {moment(hole.silenced_at)} and "
        f"{moment(hole.restored_at)}, nobody knows from when to when: its log "
        "is not filled, or rows might be there twice",
        remedy="the store has all changes of that time: `afterwrite tail`",
    )


_RENAMED = (
    "its table was renamed in that time, or another one had its name: its legacy rows were filled, and not compared; "
    "where they name the table, they name it as it is called now"
)
_ALTERED = (
    "its function was changed since it was turned off: its legacy rows were filled by the body that it had then, and "
    "not compared, since the one that it has now would write others"
)


def _uncompared(identities: Sequence[str], text: str) -> list[Finding]:
    return [
        Finding(
            rule="rollback.unproven",
            severity=Severity.WARNING,
            where=identity,
            text=text,
            remedy="compare these rows of the legacy log with `afterwrite tail` before relying on them",
        )
        for identity in identities
    ]


def _borderless(hole: Silence) -> Finding:
    return Finding(
        rule="rollback.hole",
        severity=Severity.ERROR,
        where=hole.identity,
        text=f"its legacy log has a hole from {moment(hole.silenced_at)} to "
        f"{moment(hole.restored_at)}: the store lost where it began or ended (a gap, or retention)",
        remedy="the store has what it has of that time: `afterwrite tail`; afterwrite.gap says what it lost",
    )


def _not_stored(hole: Silence) -> Finding:
    return Finding(
        rule="rollback.hole",
        severity=Severity.ERROR,
        where=hole.identity,
        text=f"its legacy log has a hole from {moment(hole.silenced_at)} to "
        f"{moment(hole.restored_at)}: the store does not have all of that time yet",
        remedy=f"start `afterwrite capture`, then run `afterwrite migrate rollback --phase {hole.phase} --apply` again",
    )
