"""Expected and found rows of one legacy table, paired as multisets: as many pairs as there can be, sure ones first.

Rows are looked up by the columns that are known exactly; what is known in parts is checked on the few that remain.
Where a first choice leaves an expected row without partner, partners are exchanged (augmenting paths), so that no order
of rows ever changes how many find one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from afterwrite.capture.transaction import Change, Relation
from afterwrite.prove.compare import agrees, freeze, identical
from afterwrite.prove.landing import Exact, Landed, NotCompared, Partly, Whole, found
from afterwrite.prove.value import decode_json
from afterwrite.record import Operation


class Found:
    """The rows of one legacy table in one transaction, decoded once and indexed by the columns somebody asks for."""

    def __init__(self, relation: Relation, changes: Sequence[Change]) -> None:
        self.relation = relation
        self.changes = [
            change for change in changes if change.operation is Operation.INSERT and change.after is not None
        ]
        self.rows: list[dict[str, Any]] = [decode_json(change.after or b"{}") for change in self.changes]
        self.taken = [False] * len(self.rows)
        self._types = {column.name: column.type_oid for column in relation.columns}
        self._frozen: list[dict[str, Any]] = [{} for _ in self.rows]
        self._indexes: dict[tuple[str, ...], dict[tuple[Any, ...], list[int]]] = {}

    def value(self, position: int, column: str) -> Any:
        """A column of a found row as it is compared."""
        frozen = self._frozen[position]
        if column not in frozen:
            frozen[column] = found(self.rows[position].get(column), self._types.get(column, 0))
        return frozen[column]

    def bucket(self, columns: tuple[str, ...], key: tuple[Any, ...]) -> list[int]:
        """The rows that hold exactly these values; the same list for every equal question."""
        index = self._indexes.get(columns)
        if index is None:
            index = dict[tuple[Any, ...], list[int]]()
            for position in range(len(self.rows)):
                own = tuple([self.value(position, column) for column in columns])
                index.setdefault(own, []).append(position)
            self._indexes[columns] = index
        return index.get(key, _NONE)

    def could_be(self, position: int, landed: Mapping[str, Landed]) -> bool:
        """Whether nothing in a row speaks against its being this one."""
        row = self.rows[position]
        for column, value in landed.items():
            if isinstance(value, Exact):
                if self.value(position, column) != value.value:
                    return False
            elif isinstance(value, Whole):
                if not identical(value.value, row.get(column)):
                    return False
            elif isinstance(value, Partly) and agrees(value.value, row.get(column)) is False:
                return False
        return True

    def free(self) -> list[int]:
        """Rows that nobody has claimed."""
        return [position for position, taken in enumerate(self.taken) if not taken]


_NONE: list[int] = []


class Wanted:
    """One expected row: what is known of it exactly, and what in parts."""

    __slots__ = ("bucket", "documents", "exact", "partner", "parts", "rows", "sure")

    def __init__(self, landed: Mapping[str, Landed], sure: bool, rows: Found, identifies: Sequence[str] = ()) -> None:
        self.sure = sure
        self.partner: int | None = None
        self.exact: list[tuple[str, Any]] = []
        self.documents: list[tuple[str, Any]] = []
        self.parts: list[tuple[str, Any]] = []
        columns: list[str] = []
        key: list[Any] = []
        for column, value in landed.items():
            if isinstance(value, Exact):
                if column in identifies:
                    columns.append(column)
                    key.append(value.value)
                else:
                    self.exact.append((column, value.value))
            elif isinstance(value, Whole):
                self.documents.append((column, value.value))
            elif isinstance(value, Partly):
                self.parts.append((column, value.value))
        self.rows = rows
        self.bucket = rows.bucket(tuple(columns), tuple(key))
        if (self.exact or self.documents) and len(self.bucket) > _FEW:
            # What identifies does not tell these rows apart: let everything be part of the key.
            columns += [column for column, _ in self.exact]
            key += [value for _, value in self.exact]
            columns += [column for column, _ in self.documents]
            key += [freeze(document) for _, document in self.documents]
            self.exact, self.documents = [], []
            self.bucket = rows.bucket(tuple(columns), tuple(key))

    @property
    def choosy(self) -> bool:
        """Whether not every row of its bucket will do."""
        return bool(self.exact or self.documents or self.parts)

    def fits(self, position: int) -> bool:
        """Whether a row of its bucket is what is wanted."""
        for column, known in self.exact:
            if self.rows.value(position, column) != known:
                return False
        row = self.rows.rows[position]
        for column, document in self.documents:
            if not identical(document, row.get(column)):
                return False
        return all(agrees(value, row.get(column)) is not False for column, value in self.parts)


_FEW = 8


def pair(wanted: Sequence[Wanted], rows: Found) -> None:
    """Give each wanted row a partner where one can be had; those that are sure before those that are not."""
    owners: dict[int, Wanted] = {}
    for sure in (True, False):
        next_free: dict[int, int] = {}
        unpaired: list[Wanted] = []
        for each in wanted:
            if each.sure is sure and not _take_first(each, rows, owners, next_free):
                unpaired.append(each)
        for each in unpaired:
            if each.bucket:
                _exchange(each, rows, owners)
    for position in owners:
        rows.taken[position] = True


def _take_first(each: Wanted, rows: Found, owners: dict[int, Wanted], next_free: dict[int, int]) -> bool:
    start = 0
    if not each.choosy:
        # Rows of a bucket are taken from the front, so that many equal rows cost one step each.
        start = next_free.get(id(each.bucket), 0)
    for index in range(start, len(each.bucket)):
        position = each.bucket[index]
        if position in owners or rows.taken[position] or not each.fits(position):
            continue
        owners[position] = each
        each.partner = position
        if not each.choosy:
            next_free[id(each.bucket)] = index + 1
        return True
    if not each.choosy:
        next_free[id(each.bucket)] = len(each.bucket)
    return False


def _exchange(each: Wanted, rows: Found, owners: dict[int, Wanted]) -> bool:
    """Find a partner by letting others move to another of theirs; nobody who has one is left without."""
    came_from: dict[int, tuple[Wanted, int | None]] = {}
    seen_buckets: set[int] = set()
    queue: deque[tuple[Wanted, int | None]] = deque([(each, None)])
    while queue:
        asking, held = queue.popleft()
        if not asking.choosy:
            if id(asking.bucket) in seen_buckets:
                continue
            seen_buckets.add(id(asking.bucket))
        for position in asking.bucket:
            if position in came_from or rows.taken[position] or not asking.fits(position):
                continue
            came_from[position] = (asking, held)
            owner = owners.get(position)
            if owner is not None:
                queue.append((owner, position))
                continue
            free: int | None = position
            while free is not None:
                taker, before = came_from[free]
                owners[free] = taker
                taker.partner = free
                free = before
            return True
    return False


def differences(landed: Mapping[str, Landed], row: Mapping[str, Any], rows: Found, position: int) -> list[str]:
    """Columns of a found row that are not what they must be."""
    wrong: list[str] = []
    for column, value in landed.items():
        match value:
            case Exact(known):
                if rows.value(position, column) != known:
                    wrong.append(column)
            case Whole(document):
                if not identical(document, row.get(column)):
                    wrong.append(column)
            case Partly(part):
                if agrees(part, row.get(column)) is False:
                    wrong.append(column)
            case NotCompared():
                pass
    return wrong
