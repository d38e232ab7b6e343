"""A row as it was at a moment, from what was recorded of it.

::

    ── insert ── update ──┤ moment ├── update ── delete ──▶
                  │                      │
                  └── after: the row ────┴── before: the same row, as a second witness

The last change up to the moment says what the row was, unless it went since without one under its id (its key was
changed, its table truncated) or something is lost in between. Where nothing is recorded up to the moment, the first
change after it may tell what was. What cannot be known is said, and why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec

from afterwrite.postgres import Database, statement
from afterwrite.record import Lsn, Operation
from afterwrite.search.diff import read_fields, read_told
from afterwrite.search.windows import (
    END,
    FIRST_ID,
    LAST_ID,
    TICK,
    Place,
    Window,
    aware,
    later,
    place_of,
    read_newer,
    read_older,
)
from afterwrite.store.reader import ACTIVITY, StoredActivity, stored_activity

# Of a key that is changed over and over, or a table renumbered over and over, we follow so many.
_MOST_MOVES, _MOST_RENUMBERINGS, _MOST_AT_ONCE = 100, 20, 1_000


class RowAt(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a row at a moment.

    ``exists`` is None where nobody can say. ``values`` are its columns, as JSON; where ``exists`` is not true they are
    the nearest that is known, and without ``whole`` there are more columns than these. ``unsure`` says of columns why
    their value cannot be known, or cannot be relied on; ``doubts`` are about the answer as a whole. ``since`` is the
    change that made it so, ``until`` the next one. ``entity_id`` is the row's id at that moment: another than the one
    that was asked for when its key was changed later, by ``moves``, the latest first.
    """

    moment: datetime
    entity_type: str
    entity_id: str
    exists: bool | None
    values: dict[str, msgspec.Raw]
    whole: bool
    since: StoredActivity | None
    until: StoredActivity | None
    unsure: dict[str, str]
    doubts: tuple[str, ...]
    moves: tuple[StoredActivity, ...]


class Whose(msgspec.Struct, frozen=True):
    """Whose changes: of a row by its id, of one table of one source where these are known."""

    entity_type: str
    entity_id: str
    source: str | None = None
    relation: str | None = None


class Reach(msgspec.Struct, frozen=True):
    """The last day that is gone for good, and up to when the store has what the source wrote."""

    expired_until: date | None
    known_until: datetime | None


class Gap(msgspec.Struct, frozen=True):
    """What committed after ``from_lsn`` and up to ``to_lsn`` is lost (or between the times).

    ``elsewhere``: it is not lost, but lies where nobody looked.
    """

    from_lsn: str | None
    to_lsn: str | None
    from_time: datetime | None
    to_time: datetime | None
    reason: str
    elsewhere: bool = False

    def touches(self, after: _Point | None, before: _Point | None) -> bool:
        """Whether something lost may lie between two points; None: of all before, of all after."""
        if self.from_lsn is not None:
            begins_later = before is not None and before.lsn is not None and Lsn.parse(self.from_lsn) >= before.lsn
            ended = (
                self.to_lsn is not None
                and after is not None
                and after.lsn is not None
                and Lsn.parse(self.to_lsn) <= after.lsn
            )
            return not (begins_later or ended)
        begins_later = before is not None and self.from_time is not None and self.from_time >= before.at
        ended = self.to_time is not None and after is not None and self.to_time <= after.at
        return not (begins_later or ended)

    @property
    def words(self) -> str:
        if self.elsewhere:
            return f"what happened {self.reason}"
        if self.from_lsn is not None:
            return (
                f"what committed after {self.from_lsn} up to {self.to_lsn or 'an unknown end'} is lost ({self.reason})"
            )
        return f"what happened from {self.from_time} to {self.to_time or 'an unknown end'} is lost ({self.reason})"


class _Point(msgspec.Struct, frozen=True):
    at: datetime
    lsn: Lsn | None


class Bracket(msgspec.Struct, frozen=True):
    """The commits of a source that are stored next to a moment, on either side of it."""

    before: str | None
    after: str | None


class Changes:
    """What is recorded of rows, as the store alone tells of it; lake/tiers.py asks the lake besides."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def sees_all(self) -> bool:
        """Whether everybody's activity is seen here."""
        answer: bool = await self._db.value(statement("timeline.sees_all"))
        return answer

    async def reach(self, source: str) -> Reach:
        """From when, and up to when, there is what a source wrote."""
        return await self._db.one(Reach, statement("timeline.read_reach"), source=source)

    async def gaps(self, source: str) -> list[Gap]:
        """What of a source is lost, and the days that left for a lake, which is not asked here."""
        gaps = await self._db.rows(Gap, statement("timeline.read_gaps"), source=source)
        return [*gaps, *away(await self._db.values(statement("timeline.read_left_days")), _NOT_ASKED)]

    async def of(self, whose: Whose, window: Window) -> list[StoredActivity]:
        """The changes under an id in a window, newest first."""
        return await self._db.rows(
            stored_activity,
            statement("timeline.read_changes", **window.words),
            **msgspec.structs.asdict(whose),
            **window.bounds,
        )

    async def gone(self, whose: Whose, place: Place, until: datetime, count: int) -> list[StoredActivity]:
        """The next ways after a place in which the row went without a word under its id, the oldest first."""
        return await self._db.rows(
            stored_activity,
            statement("timeline.read_gone", activity=ACTIVITY),
            **msgspec.structs.asdict(whose),
            at=place.occurred_at,
            id=place.id,
            until=until,
            truncates=True,
            limit=count,
        )

    async def telling(self, whose: Whose, column: str, window: Window) -> list[StoredActivity]:
        """The newest change in a window that tells of a column, or where the row came from."""
        return await self._db.rows(
            stored_activity,
            statement("timeline.read_telling", activity=ACTIVITY),
            **msgspec.structs.asdict(whose),
            column=column,
            since=window.since,
            until=window.until,
            at=window.at,
            id=window.id,
        )

    async def is_recorded(self, whose: Whose, moment: datetime) -> bool:
        """Whether anything of the table is recorded up to a moment."""
        answer: bool = await self._db.value(
            statement("timeline.is_recorded"),
            entity_type=whose.entity_type,
            source=whose.source,
            relation=whose.relation,
            moment=moment,
        )
        return answer

    async def bracket(self, source: str, moment: datetime) -> Bracket:
        """The commits of a source next to a moment."""
        return await self._db.one(Bracket, statement("timeline.read_bracket"), source=source, moment=moment)


_NOT_ASKED = "is in the lake, which was not asked"


def away(days: Sequence[date], why: str) -> list[Gap]:
    """Days that nobody looked at, as gaps: a run of them is one."""
    runs: list[list[date]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] + timedelta(days=1) == day:
            runs[-1].append(day)
        else:
            runs.append([day])
    return [
        Gap(
            from_lsn=None,
            to_lsn=None,
            from_time=datetime(run[0].year, run[0].month, run[0].day, tzinfo=UTC),
            to_time=datetime(run[-1].year, run[-1].month, run[-1].day, tzinfo=UTC) + timedelta(days=1),
            reason=f"on {run[0]} {why}" if len(run) == 1 else f"from {run[0]} to {run[-1]} {why}",
            elsewhere=True,
        )
        for run in runs
    ]


async def row_at(
    db: Database | Changes, entity_type: str, entity_id: str, moment: datetime, *, source: str | None = None
) -> RowAt:
    """The row of this id as it was at a moment, changes of that very moment included.

    ``db`` is the store, or whoever tells what is recorded. ``source`` chooses between databases that have such a row
    each; without it that one is taken which wrote it last before the moment (or first after it). Raises UsageError for
    a moment without a zone. The row is what capture saw: columns that a STORED expression generates are not in the WAL,
    nor is what DDL does to a row.
    """
    told = db if isinstance(db, Changes) else Changes(db)
    row = _Row(told, Whose(entity_type, entity_id, source), aware(moment))
    moves: list[StoredActivity] = []
    while True:
        life = await row.look()
        arrival = life.after
        was = None if arrival is None or not row.arrives(arrival) else read_told(arrival).entity_was
        if life.exists or arrival is None or was is None or len(moves) == _MOST_MOVES:
            return await _Answer(row, life, moves).give()
        # There was none of this id yet; the row that came to it later was another then.
        moves.append(arrival)
        row = row.of(arrival).called(was)


class _Life(msgspec.Struct, frozen=True):
    """Of one id: whether the changes up to the moment leave a row, by which of them, and the next one after it.

    ``exists`` is None where no change is recorded up to the moment. ``since`` is the change that left the row as it
    was, or took it; ``earlier`` one that by time comes before ``since`` and by the WAL after it.
    """

    exists: bool | None
    since: StoredActivity | None
    after: StoredActivity | None
    earlier: StoredActivity | None = None


class _AtOnce(msgspec.Struct, frozen=True):
    """Of one transaction: the first change of a row that was there before it, and the one that left a row there."""

    found: StoredActivity | None
    left: StoredActivity | None


class _Row:
    """Where to look for one id: which table of which source, as far as that is known, and the moment."""

    def __init__(self, told: Changes, whose: Whose, moment: datetime) -> None:
        self.told, self.whose, self.moment = told, whose, moment

    @property
    def entity_id(self) -> str:
        """The id under which the row is looked for."""
        return self.whose.entity_id

    def of(self, change: StoredActivity) -> _Row:
        """The same, of the table that this change was in."""
        whose = msgspec.structs.replace(self.whose, source=change.source, relation=change.relation)
        return _Row(self.told, whose, self.moment)

    def called(self, entity_id: str) -> _Row:
        """The same under another id."""
        return _Row(self.told, msgspec.structs.replace(self.whose, entity_id=entity_id), self.moment)

    async def look(self) -> _Life:
        """What the changes of this id say of the moment."""
        now = Place(self.moment, LAST_ID)
        before = await self.read_changes_before(now, 2)
        after = [] if before and self.whose.relation is None else await self.read_changes_after(now, 1)
        row = self
        if self.whose.relation is None and (before or after):
            row = self.of((before or after)[0])
            # Another database may have such a row, too.
            table = (row.whose.source, row.whose.relation)
            if before and any((each.source, each.relation) != table for each in before):
                before = await row.read_changes_before(now, 2)
            if before:
                after = await row.read_changes_after(now, 1)
        exists, since, earlier = await row._outcome(now, _MOST_RENUMBERINGS, before)
        until = later(after[0].occurred_at, TICK) if after else END
        gone = await row.told.gone(row.whose, now, until, 1)
        first = min((*after, *gone), key=_place, default=None)
        if first is not None and row.comes(first):
            # Another may have been there that left only then.
            first = row._count(await row._read_at_once(Place(first.occurred_at, FIRST_ID))).found or first
        return _Life(exists, since, first, earlier)

    async def _outcome(
        self, until: Place, renumberings: int, changes: Sequence[StoredActivity] | None = None
    ) -> tuple[bool | None, StoredActivity | None, StoredActivity | None]:
        """Whether there is a row up to a place, the change that says so, and one that the clock has out of order.

        ``changes`` are the newest two before it, where they are read already.
        """
        if changes is None:
            changes = await self.read_changes_before(until, 2)
        if not changes:
            return None, None, None
        end = row = changes[0]
        earlier = next((each for each in changes[1:] if (each.commit_lsn or 0) > (end.commit_lsn or 0)), None)
        while True:
            if self._leaves(end):
                stays = None if end.operation is Operation.TRUNCATE else await self._find_staying(end, renumberings)
                if stays is None:
                    return False, end, earlier
                row = stays
            else:
                row = end
            gone = await self.told.gone(self.whose, place_of(end), later(until.occurred_at, TICK), 1)
            if not gone or _place(gone[0]) > (until.occurred_at, until.id):
                return True, row, earlier
            end = gone[0]

    async def _find_staying(self, end: StoredActivity, renumberings: int) -> StoredActivity | None:
        """The change that left a row of this id although ``end``, in the same transaction, took one."""
        if not renumberings:
            return None
        first = Place(end.occurred_at, FIRST_ID)
        at_once = self._count(await self._read_at_once(first))
        if at_once.left is not None or at_once.found is not None:
            return at_once.left
        # What came, went again: there is what was there before.
        exists, since, _ = await self._outcome(first, renumberings - 1)
        return since if exists else None

    def _count(self, changes: Sequence[StoredActivity]) -> _AtOnce:
        """What one transaction did under this id.

        Where a key is checked at the commit, a row can come to an id before another leaves it. Whole old rows, which
        tables with such keys have in the WAL, tell which of them a change is about.
        """
        came: list[StoredActivity] = []
        kept: StoredActivity | None = None
        found: StoredActivity | None = None
        for change in changes:
            if _is_truncate(change):
                came, kept, found = [], None, found or change
            elif self.comes(change):
                came.append(change)
            else:
                mine = [row for row in came if row.after == change.before or not _has_whole_before(change)]
                if mine:
                    came.remove(mine[-1])
                else:
                    found, kept = found or change, None
                if not self._leaves(change):
                    if mine:
                        came.append(change)
                    else:
                        kept = change
        return _AtOnce(found, came[-1] if came else kept)

    async def _read_at_once(self, first: Place) -> list[StoredActivity]:
        until = later(first.occurred_at, TICK)
        changes = await self.read_changes_after(first, _MOST_AT_ONCE, until=until)
        gone = await self.told.gone(self.whose, first, until, _MOST_AT_ONCE)
        return sorted((*changes, *gone), key=_place)

    def comes(self, change: StoredActivity) -> bool:
        """Whether a row came to this id."""
        return change.operation is Operation.INSERT or self.arrives(change)

    def arrives(self, change: StoredActivity) -> bool:
        """Whether an update gave another row this id."""
        return change.entity_id == self.entity_id and read_told(change).entity_was is not None

    def _leaves(self, change: StoredActivity) -> bool:
        """Whether the row is not there any more: deleted, truncated, or of another id from then on."""
        if change.operation in (Operation.DELETE, Operation.TRUNCATE):
            return True
        return change.entity_id != self.entity_id

    async def read_changes_before(self, place: Place, count: int) -> list[StoredActivity]:
        """The newest changes under this id before a place, the newest first."""
        return await read_older(self._read_changes, place, count)

    async def read_changes_after(self, place: Place, count: int, *, until: datetime = END) -> list[StoredActivity]:
        """The next changes under this id after a place, the oldest first."""
        return await read_newer(self._read_changes, place, count, until=until)

    async def _read_changes(self, window: Window) -> list[StoredActivity]:
        return await self.told.of(self.whose, window)

    async def read_telling(self, place: Place, column: str) -> StoredActivity | None:
        """The newest change before a place that tells of a column, or where the row came from; None: none is kept."""

        async def fetch(window: Window) -> list[StoredActivity]:
            return await self.told.telling(self.whose, column, window)

        found = await read_older(fetch, place, 1)
        return found[0] if found else None


class _Answer:
    """What is said of one row: made of its life, with every reason to doubt it."""

    def __init__(self, row: _Row, life: _Life, moves: list[StoredActivity]) -> None:
        witness = life.since or life.after
        self.row = row if witness is None else row.of(witness)
        self.life, self.moves = life, moves
        self.exists = life.exists
        self.values: dict[str, msgspec.Raw] = {}
        self.whole = False
        self.unsure: dict[str, str] = {}
        self.doubts: list[str] = []
        self.gaps: list[Gap] = []
        self.reach = Reach(None, None)

    async def give(self) -> RowAt:
        """Find out, and say it."""
        row, life = self.row, self.life
        whose = row.whose
        if not await row.told.sees_all():
            self.doubts.append("only one tenant's activity was looked at: what others did to the row is not in this")
        elif whose.source is not None:
            self.reach = await row.told.reach(whose.source)
            self.gaps = await row.told.gaps(whose.source)
        else:
            self.doubts += [gap.words for gap in await row.told.gaps("") if gap.elsewhere]
        if life.since is not None:
            await self._follow(life.since)
        elif life.after is not None:
            await self._look_back(life.after)
        else:
            self.doubts.append(f"nothing is recorded of {whose.entity_type} {whose.entity_id}")
        if life.earlier is not None:
            self.doubts.append(
                f"the clock of {whose.source} was set back: by time {life.earlier.id} comes first, and by the WAL it is"
                " the later change"
            )
        if self.reach.known_until is not None and row.moment > self.reach.known_until:
            until = self.reach.known_until.astimezone(UTC).isoformat(timespec="seconds")
            self.doubts.append(f"what {whose.source} wrote after {until} may not be stored yet")
        return RowAt(
            moment=row.moment,
            entity_type=whose.entity_type,
            entity_id=whose.entity_id,
            exists=self.exists,
            values={} if self.exists is False else self.values,
            whole=self.exists is False or self.whole,
            since=life.since,
            until=life.after,
            unsure={} if self.exists is False else self.unsure,
            doubts=tuple(self.doubts),
            moves=tuple(self.moves),
        )

    async def _follow(self, since: StoredActivity) -> None:
        """From the last change on: the row is as that left it, unless something is lost in between."""
        after = self.life.after
        if self.exists:
            await self._take(since)
        lost, lost_after = await self._lose(since, after)
        if lost and (after is None or lost_after or after.operation is Operation.TRUNCATE):
            self.exists = None
            self.doubts += [f"{gap.words}: the row may have changed in it" for gap in lost]
        elif lost and after is not None:
            # The next change is the better witness: nothing is lost between the moment and it.
            self.exists = not self.row.comes(after)
            self._take_before(after)
        elif self.exists and after is not None:
            self._compare(after)
        elif not self.exists and after is not None and not self.row.comes(after) and not _is_truncate(after):
            self.exists = None
            self._take_before(after)
            self.doubts.append(
                f"it was gone, and was there again before {after.id} without a word: that was not captured"
            )

    async def _look_back(self, after: StoredActivity) -> None:
        """Nothing is recorded up to the moment: what the first change after it says of before."""
        row = self.row
        self.exists = not self.row.comes(after)
        if _is_truncate(after):
            self.exists = None
            self.doubts.append(f"nothing is recorded of it before its table was truncated by {after.id}")
        elif self.exists:
            self._take_before(after)
        _, lost = await self._lose(None, after)
        if lost:
            self.exists = None
            self.doubts += [f"{gap.words}: the row may have changed in it" for gap in lost]
        if self.reach.expired_until is not None and row.moment.astimezone(UTC).date() <= self.reach.expired_until:
            self.exists = None
            self.doubts.append(f"the days up to {self.reach.expired_until} have expired: what happened on them is gone")
        elif not await row.told.is_recorded(row.whose, row.moment):
            self.exists = None
            table = row.whose.relation
            self.doubts.append(f"nothing of {table} is recorded up to then: its capture may have begun later")
        if self.exists is None and self.values:
            self.doubts.append(f"what is shown is the row as it was right before {after.id}")

    async def _take(self, change: StoredActivity) -> None:
        """The row as this change left it."""
        told = read_told(change)
        self.values, self.whole = read_fields(change.after), True
        for column in told.unchanged:
            await self._fill(column, change, told.entity_was)
        for column in told.as_text:
            if column in self.values:
                self.unsure[column] = "kept as its text: its type was altered or dropped before the change was read"
        if told.unsure:
            self.doubts.append("its id may be another: the primary key was altered before the change was read")
        if "after" in told.exact:
            self.doubts.append(f"not all of it could be kept as it was: metadata.exact of {change.id} has the bytes")

    async def _fill(self, column: str, change: StoredActivity, was: str | None) -> None:
        """The value of a column that is stored out of line and was not changed: an earlier change brought it."""
        row, place = self.row, place_of(change)
        for _ in range(_MOST_MOVES):
            row = row if was is None else row.called(was)
            found = await row.read_telling(place, column)
            if found is None or found.operation is Operation.DELETE:
                break
            value = read_fields(found.after).get(column)
            if value is not None:
                self.values[column] = value
                if any(gap.touches(_point(found), _point(change)) for gap in self.gaps):
                    self.unsure[column] = f"last told by {found.id}, and what happened since is not all there"
                return
            was = read_told(found).entity_was
            if was is None:
                break
            place = place_of(found)
        after = self.life.after
        if after is not None and _has_whole_before(after) and (value := read_fields(after.before).get(column)):
            self.values[column] = value
            return
        self.unsure[column] = "stored out of line and not changed: no earlier change that is kept tells its value"

    def _take_before(self, after: StoredActivity) -> None:
        """The row as it was right before this change, as far as that tells."""
        self.values, self.unsure, self.whole = {}, {}, True
        if self.row.comes(after):
            return
        self.values = read_fields(after.before)
        if _has_whole_before(after):
            return
        for column in (*read_fields(after.after), *read_told(after).unchanged):
            if column not in self.values:
                self.unsure[column] = _KEY_ALONE
        if after.operation is Operation.DELETE:
            self.whole = False
            self.doubts.append("of the row only its key is known: the table keeps no whole old rows in the WAL")

    def _compare(self, after: StoredActivity) -> None:
        """Hold what we say of a row that exists against what the next change says of it."""
        if self.row.comes(after):
            self.exists = None
            self.doubts.append(f"it came again by {after.id}, and that it went in between was not captured")
        elif _has_whole_before(after):
            before = read_fields(after.before)
            for column, value in before.items():
                if column not in self.values:
                    self.unsure.setdefault(column, f"the column came later; {after.id} tells {_shown(value)}")
                elif column not in self.unsure and bytes(self.values[column]) != bytes(value):
                    self.unsure[column] = f"{after.id} found {_shown(value)}: something changed it that is not captured"

    async def _lose(self, since: StoredActivity | None, after: StoredActivity | None) -> tuple[list[Gap], list[Gap]]:
        """What is lost between a change and the moment, and between the moment and the next change."""
        low, high = _point(since), _point(after)
        concerned = [gap for gap in self.gaps if gap.touches(low, high)]
        if not concerned:
            return [], []
        row = self.row
        bracket = await row.told.bracket(row.whose.source or "", row.moment)
        before = _Point(row.moment, None if bracket.before is None else Lsn.parse(bracket.before))
        behind = _Point(row.moment, None if bracket.after is None else Lsn.parse(bracket.after))
        return (
            [gap for gap in concerned if gap.touches(low, behind)],
            [gap for gap in concerned if gap.touches(before, high)],
        )


_KEY_ALONE = "only the key of the old row is in the WAL"


def _point(change: StoredActivity | None) -> _Point | None:
    return None if change is None else _Point(change.occurred_at, change.commit_lsn)


def _place(activity: StoredActivity) -> tuple[datetime, str]:
    return activity.occurred_at, activity.id


def _is_truncate(change: StoredActivity) -> bool:
    return change.operation is Operation.TRUNCATE


def _has_whole_before(change: StoredActivity) -> bool:
    """Whether it tells all of the row as it was. Of a DELETE that is seen by its having more columns than the key."""
    if change.operation is Operation.UPDATE:
        return change.changed is not None and change.before is not None
    parts = 1 + len(_COMMA.findall(change.entity_id or ""))
    return change.operation is Operation.DELETE and len(read_fields(change.before)) > parts


# How capture joins the parts of a key; a comma within one has a backslash before it, and so has a backslash.
_COMMA = re.compile(r"(?<!\\)(?:\\\\)*,")


def _shown(value: msgspec.Raw) -> str:
    text = bytes(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_SHOWN = 60
