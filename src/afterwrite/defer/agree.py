"""Whether a rehearsed body wrote what the trigger wrote: pure, from rows before, rows expected and rows found.

What cannot be the same is not asked to be: keys and ids that a sequence or a random function gives, and times that are
those of the transaction there (its beginning) and of the rehearsal here (the commit, or the clock).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, cast

import msgspec

from afterwrite.defer.calls import FeedChange
from afterwrite.record import Operation

_LONGEST = timedelta(minutes=1)

Row = Mapping[str, Any]
Key = tuple[str, tuple[str, ...]]


class Outcome(StrEnum):
    """What came of a rehearsal. The first two agree; the next four differ; the rest could not be judged."""

    MATCHED = "matched"
    IDLE = "idle"
    VALUE = "value"
    MISSING = "missing"
    EXTRA = "extra"
    ERROR = "error"
    UNSEEN = "unseen"
    MIXED = "mixed"
    UNKEYED = "unkeyed"
    UNABLE = "unable"

    @property
    def judged(self) -> bool:
        """Whether it agreed or differed."""
        return self not in (Outcome.UNSEEN, Outcome.MIXED, Outcome.UNKEYED, Outcome.UNABLE)

    @property
    def differs(self) -> bool:
        """Whether the body did otherwise than the trigger."""
        return self in (Outcome.VALUE, Outcome.MISSING, Outcome.EXTRA, Outcome.ERROR)


class EffectColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a table that a body writes; ``fills_itself``: its default is no constant."""

    name: str
    generated: bool
    fills_itself: bool


class EffectTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that a body writes. ``relation`` is its quoted name; ``sequence`` that of its key, where one fills it."""

    relation: str
    schema: str
    name: str
    oid: int
    pages: int
    key: tuple[str, ...]
    sequence: str | None
    captured: bool
    columns: tuple[EffectColumn, ...]

    @property
    def key_fills_itself(self) -> bool:
        """Whether a row that is written again gets another key."""
        own = {column.name for column in self.columns if column.fills_itself}
        return any(name in own for name in self.key)

    def key_of(self, row: Row) -> Key:
        """Which row this is."""
        return self.relation, tuple(_canonical(row.get(name)) for name in self.key)


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction did to a row of an effect table: as it was, and as it was left (None: not there).

    ``was`` and ``left`` are the same in JSON, as the store has them.
    """

    table: EffectTable
    was: bytes | None = None
    left: bytes | None = None
    before: Row | None = None
    after: Row | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome, and what shows it."""

    outcome: Outcome
    why: str = ""
    relation: str | None = None
    expected: Row | None = None
    found: Row | None = None


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Between which times a value may be the time: there up to the commit, here from the commit or from ``began`` on.

    Here for as long as a rehearsal may take: a clock goes on, and a column's default knows only the server's own.
    """

    committed_at: datetime
    began: datetime

    def was_then(self, moment: datetime) -> bool:
        """Whether this can be the clock of the transaction that is rehearsed."""
        return self.committed_at - timedelta(hours=1) <= moment <= self.committed_at

    def is_now(self, moment: datetime) -> bool:
        """Whether this can be the clock of a body that is rehearsed."""
        return any(begin <= moment <= begin + _LONGEST for begin in (self.committed_at, self.began))


class Counts(msgspec.Struct, frozen=True):
    """Rows that a body inserted, updated and deleted in a table, those included that it undid itself."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    @property
    def any(self) -> bool:
        return bool(self.inserted or self.updated or self.deleted)

    def since(self, before: Counts) -> Counts:
        """What came after these."""
        return Counts(self.inserted - before.inserted, self.updated - before.updated, self.deleted - before.deleted)


def decode_row(text: str | bytes) -> Row:
    """A row from JSON, no digit lost."""
    return cast("Row", json.loads(text, parse_float=Decimal))


def encode_rows(rows: Sequence[Row]) -> str:
    """Keys of rows as JSON; numbers beyond a float's are written as strings, which PostgreSQL reads as well."""
    return json.dumps(rows, default=str)


def trace(changes: Iterable[FeedChange], tables: Mapping[str, EffectTable]) -> dict[Key, Trace] | Verdict:
    """What these changes did to the rows of these tables, or why that cannot be said."""
    found: dict[Key, Trace] = {}
    for change in changes:
        table = tables.get(change.relation)
        if table is None:
            continue
        if change.operation is Operation.TRUNCATE or change.lacking:
            return Verdict(outcome=Outcome.UNSEEN, why=f"{change.relation} is not in the WAL as it was")
        if not table.key:
            return Verdict(outcome=Outcome.UNKEYED, why=f"{change.relation} has no primary key")
        if change.operation is not Operation.INSERT and change.before is None:
            return Verdict(
                outcome=Outcome.UNSEEN,
                why=f"the WAL does not hold old rows of {change.relation}: set REPLICA IDENTITY FULL while in shadow",
            )
        if change.before is not None:
            was = bytes(change.before)
            before = decode_row(was)
            key = table.key_of(before)
            known = found.get(key) or Trace(table=table, was=was, before=before)
            found[key] = msgspec.structs.replace(known, left=None, after=None)
        if change.after is not None:
            left = bytes(change.after)
            after = decode_row(left)
            key = table.key_of(after)
            known = found.get(key) or Trace(table=table)
            found[key] = msgspec.structs.replace(known, left=left, after=after)
    return {key: each for key, each in found.items() if each.before is not None or each.after is not None}


def judge(
    traced: Mapping[Key, Trace],
    seen: Mapping[str, int],
    wrote: Mapping[str, Counts],
    standing: Mapping[Key, Row],
    made: Sequence[tuple[EffectTable, Row]],
    window: Window,
    *,
    reads_others: bool,
) -> Verdict:
    """Compare what a transaction left (``traced``) with what the body left, from the same rows as they were before.

    ``seen`` counts the changes of the transaction by table, ``wrote`` those of the body. ``standing`` are the traced
    rows as they are now, ``made`` the new ones whose keys filled themselves. Where others may have written the same
    tables in that transaction, or the body reads what others change (``reads_others``), a difference is not laid on it.
    """
    ran = any(counts.any for counts in wrote.values())
    if not traced:
        if not ran:
            return Verdict(outcome=Outcome.IDLE)
        return Verdict(outcome=Outcome.EXTRA, why="it wrote where the trigger wrote nothing", **_first(made))
    if not ran:
        if all(each.before == each.after for each in traced.values()):
            return Verdict(outcome=Outcome.IDLE)
        return Verdict(
            outcome=Outcome.MIXED, why="it wrote nothing; whether the trigger did cannot be told from others"
        )
    expected_new = [
        each for each in traced.values() if each.before is None and each.after and each.table.key_fills_itself
    ]
    unpaired = _pair(expected_new, made, window)
    if unpaired is not None:
        table, row = unpaired
        near = next((each.after for each in expected_new if each.table is table), None)
        outcome = Outcome.EXTRA if near is None or len(made) > len(expected_new) else Outcome.VALUE
        return _suspect(outcome, "a new row", table.relation, near, row, reads_others=reads_others)
    for key, each in traced.items():
        if any(each is new for new in expected_new):
            continue
        now = standing.get(key)
        if (each.after is None) == (now is None) and (each.after is None or _same(each.after, now, each.table, window)):
            continue
        counts = wrote.get(each.table.relation, Counts())
        if counts.inserted + counts.updated + counts.deleted < seen.get(each.table.relation, 0):
            return Verdict(outcome=Outcome.MIXED, why=f"others wrote {each.table.relation} in that transaction, too")
        outcome = Outcome.VALUE if now is not None and each.after is not None else Outcome.MISSING
        outcome = Outcome.EXTRA if each.after is None else outcome
        return _suspect(outcome, "a row", each.table.relation, each.after, now, reads_others=reads_others)
    if strange := [relation for relation, counts in wrote.items() if counts.any and not _touched(traced, relation)]:
        return Verdict(outcome=Outcome.EXTRA, why=f"it wrote {strange[0]}, where the trigger wrote nothing")
    return Verdict(outcome=Outcome.MATCHED)


Run = tuple[Mapping[str, Counts], Mapping[str, Sequence[Row] | None]]


def compare_runs(tables: Mapping[str, EffectTable], body: Run, original: Run, window: Window) -> Verdict | None:
    """Compare what a body wrote with what the trigger's own function writes for the same change in the same state.

    None where the rows of one cannot be found.
    """
    if not any(counts.any for wrote in (body[0], original[0]) for counts in wrote.values()):
        return Verdict(outcome=Outcome.IDLE)
    for relation, table in tables.items():
        mine, theirs = body[1][relation], original[1][relation]
        if mine is None or theirs is None:
            return None
        left = list(theirs)
        for row in mine:
            same = next((other for other in left if _same(row, other, table, window)), None)
            if same is None:
                return Verdict(
                    outcome=Outcome.VALUE,
                    why=f"the trigger's own function writes another row into {relation}",
                    relation=relation,
                    expected=left[0] if left else None,
                    found=row,
                )
            left.remove(same)
        if left:
            return Verdict(
                outcome=Outcome.MISSING,
                why=f"the trigger's own function writes one row more into {relation}",
                relation=relation,
                expected=left[0],
            )
        if (body[0][relation].deleted > 0) != (original[0][relation].deleted > 0):
            return Verdict(outcome=Outcome.VALUE, why=f"one of the two deletes rows of {relation}", relation=relation)
    return Verdict(outcome=Outcome.MATCHED)


def _first(made: Sequence[tuple[EffectTable, Row]]) -> dict[str, Any]:
    return {"relation": made[0][0].relation, "found": made[0][1]} if made else {}


def _touched(traced: Mapping[Key, Trace], relation: str) -> bool:
    return any(each.table.relation == relation for each in traced.values())


def _suspect(
    outcome: Outcome, what: str, relation: str, expected: Row | None, found: Row | None, *, reads_others: bool
) -> Verdict:
    if reads_others:
        why = f"{what} of {relation} differs, and the body reads tables that others may have changed since"
        return Verdict(outcome=Outcome.MIXED, why=why, relation=relation, expected=expected, found=found)
    return Verdict(
        outcome=outcome, why=f"{what} of {relation} differs", relation=relation, expected=expected, found=found
    )


def _pair(
    expected: Sequence[Trace], made: Sequence[tuple[EffectTable, Row]], window: Window
) -> tuple[EffectTable, Row] | None:
    """A new row that is none of those expected; None when each has its own."""
    left = list(expected)
    for table, row in made:
        for each in left:
            if each.table.relation == table.relation and each.after and _same(each.after, row, table, window):
                left.remove(each)
                break
        else:
            return table, row
    return None


def _same(expected: Row, found: Row | None, table: EffectTable, window: Window) -> bool:
    if found is None:
        return False
    for column in table.columns:
        if column.name not in expected or column.generated:
            continue
        one, other = expected[column.name], found.get(column.name)
        if _equal(one, other, window):
            continue
        # Given by a sequence or a random function: another one each time, and of the same kind.
        if not (column.fills_itself and one is not None and type(one) is type(other) and _time(one) is None):
            return False
    return True


def _equal(one: Any, other: Any, window: Window) -> bool:
    if one == other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        mine, yours = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return mine.keys() == yours.keys() and all(_equal(mine[name], yours[name], window) for name in mine)
    if isinstance(one, list) and isinstance(other, list):
        first, second = cast("list[Any]", one), cast("list[Any]", other)
        return len(first) == len(second) and all(map(_equal, first, second, [window] * len(first)))
    there, here = _time(one), _time(other)
    if there is None or here is None:
        return False
    return (window.was_then(there) or window.is_now(there)) and window.is_now(here)


def _time(value: Any) -> datetime | None:
    """A timestamp as to_jsonb prints it; one without a zone counts as UTC, as our sessions have it."""
    if not isinstance(value, str) or len(value) < 19 or value[10:11] not in ("T", " "):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo else datetime.fromisoformat(f"{value}+00:00")


def _canonical(value: object) -> str:
    return json.dumps(value, default=str, sort_keys=True)
