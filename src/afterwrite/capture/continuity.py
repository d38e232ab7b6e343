"""What was installed beside the source's tables, and whether it still is: so that nothing leaves the stream unseen.

::

    install ─▶ remember ─▶ afterwrite.capture, publication, published      (what was published, in one snapshot)
    worker, doctor ─▶ departures: taken out, put back, altered ─▶ refused  (afterwrite.departure compares)
    a loss ─▶ open_gap, here ─▶ gap, in the store                          (before anything steps over it)

PostgreSQL lets anybody who may alter a publication take a table out and put it back, and the stream says nothing of it.
The oid of the table's place in the publication (pg_publication_rel) tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

import msgspec

from afterwrite.errors import Finding, Refused, Severity
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, quoted, statement
from afterwrite.record import Checkpoint, Lsn

ACCEPT_GAP = "run `afterwrite install --apply --accept-gap`, which mends it and records the gap"


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing about a publication that is not as it was installed: a row of afterwrite.departure."""

    kind: str
    publication: str
    relation: str | None = None
    found: str | None = None
    expected: str | None = None

    @property
    def loses(self) -> bool:
        """Whether rows may be missing from the stream because of it, or would be."""
        return self.kind not in (
            "table dropped",
            "table replaced",
            "table without identity",
            "partition not logged",
            "partition not whole",
            "store listed",
        )

    @property
    def breaks_the_slot(self) -> bool:
        """Whether the slot cannot read on: a publication is looked up as it was at the time of each change."""
        return self.kind in ("publication gone", "publication replaced")

    @property
    def words(self) -> str:
        """What was found, in one sentence."""
        name, table = self.publication, self.relation or ""
        match self.kind:
            case "publication gone":
                return f"publication {name} was dropped"
            case "publication replaced":
                return f"publication {name} was dropped and created again"
            case "publication altered" if self.found == self.expected:
                return f"publication {name} was altered, and set back to {self.expected}"
            case "publication altered":
                return f"publication {name} now publishes {self.found or 'nothing'}, where it was {self.expected}"
            case "table missing":
                return f"table {table} was taken out of publication {name}"
            case "table put back":
                return f"table {table} was taken out of publication {name} and put back"
            case "table filtered":
                return f"table {table} has a row filter in publication {name}"
            case "table narrowed":
                return f"table {table} has a column list in publication {name}"
            case "table replaced":
                return f"table {table} was dropped and created again, and publication {name} does not list the new one"
            case "table without identity":
                return f"table {table} has no replica identity any more"
            case "partition not logged":
                return f"partition {table} of a table in publication {name} is unlogged or foreign"
            case "partition not whole":
                return f"partition {table} has not the REPLICA IDENTITY FULL of its root"
            case "store listed" if self.relation is None:
                return f"publication {name} lists schema afterwrite, the tables of the store"
            case "store listed":
                return f"publication {name} lists {table}, a table of the store"
            case _:
                return f"table {table} was dropped"


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a slot is: ``store`` is the identity of the one store that its changes go to."""

    slot: str
    source: str
    store: str
    since_lsn: Lsn
    intact_lsn: Lsn


class GapKind(StrEnum):
    """How a loss came about. The first three concern everything after a position, the last some tables for a while."""

    GIVEN_UP = "given up"
    BEGUN_ANEW = "begun anew"
    TAKEN_OVER = "taken over"
    UNPUBLISHED = "unpublished"


class OpenGap(msgspec.Struct, frozen=True, kw_only=True):
    """A loss that the store does not know of yet; without ``to_lsn`` it goes on."""

    id: int
    kind: GapKind
    from_lsn: Lsn
    to_lsn: Lsn | None
    reason: str
    noticed_at: datetime

    def is_over(self, checkpoint: Checkpoint | None) -> bool:
        """Whether the store has gone on beyond it, so that only the closing is missing."""
        if self.to_lsn is None:
            return False
        return self.kind is GapKind.UNPUBLISHED or (checkpoint is not None and checkpoint.lsn >= self.to_lsn)


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """All that is remembered of a slot. ``owner`` is None where capture was never set up, or not to its end."""

    owner: Owner | None = None
    departures: tuple[Departure, ...] = ()
    gaps: tuple[OpenGap, ...] = ()

    def gap(self, *kinds: GapKind) -> OpenGap | None:
        """The first open loss of one of these kinds."""
        return next((gap for gap in self.gaps if gap.kind in kinds), None)

    @property
    def losses(self) -> list[Departure]:
        return [departure for departure in self.departures if departure.loses]

    @property
    def harms(self) -> bool:
        """Whether there is a departure that a worker must not go on with."""
        return any(departure.loses or departure.kind == "store listed" for departure in self.departures)


class _OwnerRow(msgspec.Struct, frozen=True, kw_only=True):
    slot: str
    source: str
    store: str
    since_lsn: str
    intact_lsn: str


class _GapRow(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    kind: str
    from_lsn: str
    to_lsn: str | None
    reason: str
    noticed_at: datetime


async def read_memory(database: Database, slot: str) -> Memory:
    """What is remembered of this slot; nothing where our schema is not laid."""
    if not await database.value(statement("capture.read_remembers")):
        return Memory()
    row = await database.maybe(_OwnerRow, statement("capture.read_capture"), slot=slot)
    gaps = await database.rows(_GapRow, statement("capture.read_open_gaps"), slot=slot)
    return Memory(
        owner=Owner(
            slot=row.slot,
            source=row.source,
            store=row.store,
            since_lsn=Lsn.parse(row.since_lsn),
            intact_lsn=Lsn.parse(row.intact_lsn),
        )
        if row
        else None,
        departures=tuple(await database.rows(Departure, statement("capture.read_departures"), slot=slot)),
        gaps=tuple(
            OpenGap(
                id=gap.id,
                kind=GapKind(gap.kind),
                from_lsn=Lsn.parse(gap.from_lsn),
                to_lsn=Lsn.parse(gap.to_lsn) if gap.to_lsn else None,
                reason=gap.reason,
                noticed_at=gap.noticed_at,
            )
            for gap in gaps
        ),
    )


async def remember(database: Database, slot: str, publications: Sequence[str], *, forget: bool) -> None:
    """Take what is published now for what should be. Belongs into the snapshot in which it was found in order.

    ``forget`` strikes off tables that are listed no longer; without it one that was dropped and created again stays in
    mind until an installation publishes it or leaves it out.
    """
    failpoint("continuity.before_remember")
    await database.run(statement("capture.remember_publications"), slot=slot, publications=list(publications))
    if forget:
        await database.run(statement("capture.forget_published"), slot=slot)
    await database.run(statement("capture.remember_published"), slot=slot, publications=list(publications))
    failpoint("continuity.after_remember")


async def note_gap(database: Database, *, slot: str, source: str, kind: GapKind, from_lsn: Lsn, reason: str) -> None:
    """Write a loss down where the source is, before what causes it; the same one again changes nothing."""
    failpoint("continuity.before_note_gap")
    await database.run(
        statement("capture.open_gap"),
        slot=slot,
        source=source,
        kind=kind.value,
        from_lsn=str(from_lsn),
        reason=reason,
    )
    failpoint("continuity.after_note_gap")


async def close_gap(database: Database, gap: OpenGap) -> None:
    """Forget a loss that is in the store's table gap now, or that was none after all."""
    failpoint("continuity.before_close_gap")
    await database.run(statement("capture.close_gap"), id=gap.id)
    failpoint("continuity.after_close_gap")


def check_owner(slot: str, owner: Owner | None, store: str, where: str) -> None:
    """Refuse a slot that belongs to another store: what one acknowledges, the other would never see."""
    if owner is None or owner.store == store:
        return
    raise Refused(
        f"slot {slot} on {where} belongs to another store ({owner.store}); this one is {store}, and reading on would"
        " take changes away from that one",
        remedy="name the store that was installed (--store-dsn), or give this one a slot and publications of its own"
        " (AFTERWRITE_SLOT, AFTERWRITE_PUBLICATION, AFTERWRITE_LEGACY_PUBLICATION); to move capture over to it for"
        " good, run `afterwrite install --apply --accept-gap`, which records the gap",
    )


def check_departures(slot: str, departures: Sequence[Departure], since: Lsn | None) -> None:
    """Refuse to go on where rows leave the stream, or our own would come into it."""
    listed = [departure for departure in departures if departure.kind == "store listed"]
    if listed:
        raise Refused(
            f"{_joined(listed)}: capture would store its own writes without end",
            remedy="; ".join(f"run {_take_out(departure)}" for departure in listed),
        )
    lost = [departure for departure in departures if departure.loses]
    if lost:
        after = f" after {since}" if since else " since then"
        raise Refused(
            f"{_joined(lost)} under slot {slot}: changes committed{after} may be missing from the stream",
            remedy=ACCEPT_GAP,
        )


def _joined(departures: Sequence[Departure]) -> str:
    first, more = departures[:3], len(departures) - 3
    words = "; ".join(departure.words for departure in first)
    return f"{words}; and {more} more such findings" if more > 0 else words


def _take_out(departure: Departure) -> str:
    what = "TABLES IN SCHEMA afterwrite" if departure.relation is None else f"TABLE {departure.relation}"
    return f"ALTER PUBLICATION {quoted(departure.publication)} DROP {what}"


def find_departures(memory: Memory) -> list[Finding]:
    """The same as findings, with those that stop nothing: for doctor and for the worker's status."""
    found: list[Finding] = []
    for departure in memory.departures:
        found += judge_departure(departure)
    return found


def judge_departure(departure: Departure) -> list[Finding]:
    """One departure as a finding; none for a table that was dropped, which is no loss."""
    where = departure.relation or departure.publication
    if departure.loses:
        return [
            Finding(
                rule="publication.departed",
                severity=Severity.ERROR,
                where=where,
                text=f"{departure.words}: what was written meanwhile may be missing from the store",
                remedy=ACCEPT_GAP,
            )
        ]
    table = departure.relation
    match departure.kind:
        case "table replaced":
            rule, severity = "table.replaced", Severity.WARNING
            harm = "its changes are not captured"
            remedy = "run `afterwrite install --apply`, which publishes it from then on"
        case "table without identity":
            rule, severity = "table.identity", Severity.ERROR
            harm = "the application's UPDATEs and DELETEs of it fail"
            remedy = f"run ALTER TABLE {table} REPLICA IDENTITY FULL, or add a primary key"
        case "partition not logged":
            rule, severity = "table.unlogged", Severity.ERROR
            harm = "its changes are not in the WAL, and not captured"
            remedy = f"run ALTER TABLE {table} SET LOGGED, or detach it"
        case "partition not whole":
            rule, severity = "table.not_full", Severity.WARNING
            harm = "its old rows are not in the WAL, so `before` holds no more than the key"
            remedy = f"run ALTER TABLE {table} REPLICA IDENTITY FULL, or `afterwrite install --apply`"
        case "store listed":
            rule, severity = "publication.ours", Severity.ERROR
            harm = "capture would store its own writes without end"
            remedy = f"run {_take_out(departure)}"
        case _:
            return []
    return [Finding(rule=rule, severity=severity, where=where, text=f"{departure.words}: {harm}", remedy=remedy)]
