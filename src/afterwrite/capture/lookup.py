"""What the stream does not say, asked of the catalog: what types are made of, and where a table's key lies.

The catalog answers as of now, while a message speaks of then, and DDL may have run in between: the worker may lag.
Names of tables and columns come with the message and are those of then. A key is found again by the place of its
columns, that of a table that is no more is remembered, and what cannot be known is said to be unsure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from afterwrite.capture.assemble import Assembler, TableFacts
from afterwrite.capture.transaction import Relation
from afterwrite.capture.values import FIRST_USER_OID, PgType, TypeKind
from afterwrite.postgres import Database, statement

_DEFAULT_IDENTITY = "d"


class Publications(msgspec.Struct, frozen=True):
    """The publications that a stream reads; a table that only ``legacy`` lists is a legacy log."""

    names: tuple[str, ...] = ("afterwrite", "afterwrite_legacy")
    legacy: str = "afterwrite_legacy"


class Attribute(msgspec.Struct, frozen=True):
    """A column as the catalog has it now; ``certain`` when it is in the stream of every time since it was added."""

    number: int
    name: str
    certain: bool = True


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A table as the catalog has it now. ``key`` are the numbers of the primary key's columns in its order.

    The key is such since transaction ``key_since``; the next one to begin is ``now``.
    """

    columns: tuple[Attribute, ...]
    key: tuple[int, ...] = ()
    key_since: int = 0
    now: int = 0
    partitioned: bool = False
    legacy: bool = False


class Remembered(msgspec.Struct, frozen=True):
    """A table as it was published once: the names of its primary key's columns."""

    oid: int
    key: list[str]
    legacy: bool


class _TypeRow(msgspec.Struct, frozen=True, kw_only=True):
    oid: int
    kind: str
    element: int
    delimiter: str
    field_names: list[str]
    field_types: list[int]
    since: int
    now: int


class _FactsRow(msgspec.Struct, frozen=True, kw_only=True):
    oid: int
    partitioned: bool
    legacy: bool
    key: list[int]
    key_since: int
    numbers: list[int]
    names: list[str]
    certain: list[bool]
    now: int


async def read_types(database: Database, oids: Sequence[int]) -> list[PgType]:
    """What pg_type says of these types and of all that they are made of; a dropped one is left out."""
    rows = await database.rows(_TypeRow, statement("lookup.read_types"), oids=list(oids))
    return [
        PgType(
            row.oid,
            TypeKind(row.kind),
            row.element,
            row.delimiter,
            tuple(zip(row.field_names, row.field_types, strict=True)),
            since=row.since,
            now=row.now,
        )
        for row in rows
    ]


async def read_standing(database: Database, oid: int, publications: Publications) -> Standing | None:
    """The table as it is now, None when it was dropped."""
    row = await database.maybe(
        _FactsRow,
        statement("lookup.read_table_facts"),
        oids=[oid],
        publications=list(publications.names),
        legacy_publication=publications.legacy,
    )
    if row is None:
        return None
    return Standing(
        columns=tuple(map(Attribute, row.numbers, row.names, row.certain)),
        key=tuple(row.key),
        key_since=row.key_since,
        now=row.now,
        partitioned=row.partitioned,
        legacy=row.legacy,
    )


async def read_remembered(database: Database, oid: int, publications: Publications) -> Remembered | None:
    """What was remembered of a table when it was published, where this database remembers anything."""
    if not await database.value(statement("lookup.may_remember")):
        return None
    return await database.maybe(
        Remembered,
        statement("lookup.read_remembered"),
        oids=[oid],
        publications=list(publications.names),
        legacy_publication=publications.legacy,
    )


async def teach(assembler: Assembler, relation: Relation, database: Database, publications: Publications) -> None:
    """Tell the assembler what it must know of a relation before its message is fed."""
    oids = [column.type_oid for column in relation.columns]
    # Types of the user's own may have been altered since they were last looked at.
    asked = {*assembler.types.unknown(oids), *(oid for oid in oids if oid >= FIRST_USER_OID)}
    types = await read_types(database, sorted(asked)) if asked else []
    standing = await read_standing(database, relation.oid, publications)
    remembered = None
    if standing is None or not standing.key:
        remembered = await read_remembered(database, relation.oid, publications)
    assembler.learn(types, {relation.oid: state_facts(relation, standing, remembered)})


async def refresh_types(assembler: Assembler, database: Database) -> None:
    """Look again at the composites in use: nothing in the stream tells when one is altered."""
    if watched := assembler.types.composites:
        assembler.relearn(await read_types(database, sorted(watched)))


def state_facts(relation: Relation, now: Standing | None, remembered: Remembered | None) -> TableFacts:
    """What holds for the relation as its message describes it, out of what the catalog says now."""
    names = tuple(column.name for column in relation.columns)
    flagged = tuple(column.name for column in relation.columns if column.key)
    legacy = now.legacy if now is not None else remembered is not None and remembered.legacy
    known = () if remembered is None else tuple(remembered.key)
    today = () if now is None else find_key(names, now)
    partitioned = now is not None and now.partitioned
    if relation.replica_identity == _DEFAULT_IDENTITY:
        # Then the flags are those of the primary key itself; only its order must be found.
        for key in (today, known):
            if key is not None and set(key) == set(flagged):
                return TableFacts(key, partitioned, legacy, now=0 if now is None else now.now)
        return TableFacts(flagged, partitioned, legacy, unsure=len(flagged) > 1)
    if today:
        assert now is not None
        return TableFacts(today, partitioned, legacy, since=now.key_since, now=now.now)
    # Without a primary key now, it may have had one then.
    if known and set(known) <= set(names):
        return TableFacts(known, partitioned, legacy, unsure=now is not None)
    return TableFacts((), partitioned, legacy, unsure=now is None or today is None or bool(known))


def find_key(names: Sequence[str], now: Standing) -> tuple[str, ...] | None:
    """Where the columns of today's key stood, by their names of then; None when one was not there or cannot be told.

    Numbers of columns only grow, and a message lists the columns of then in the order of their numbers. So column
    ``a``, with ``g`` numbers before it that belong to no column now, stood at index ``a - 1 - g`` or up to ``g`` later:
    later by one for each of those columns that were still there. Columns that kept their names narrow that down.
    """
    live = {column.number for column in now.columns if column.certain}
    by_number = {column.number: column for column in now.columns}

    def window(number: int) -> range:
        before = sum(1 for other in live if other < number)
        return range(before, number)

    anchors = [
        (column.number, names.index(column.name))
        for column in now.columns
        if column.name in names and names.index(column.name) in window(column.number)
    ]
    found: list[str] = []
    for number in now.key:
        name = by_number[number].name
        possible = [
            index for index in window(number) if index < len(names) and _fits(index, number, anchors, by_number)
        ]
        if name in names and names.index(name) in possible:
            found.append(name)
        elif len(possible) == 1:
            found.append(names[possible[0]])
        else:
            return None
    return tuple(found) if len(set(found)) == len(found) else None


def _fits(index: int, number: int, anchors: Iterable[tuple[int, int]], columns: dict[int, Attribute]) -> bool:
    """Whether column ``number`` can have stood there, given where others stood."""
    for other, place in anchors:
        if other == number:
            continue
        low, high = sorted((other, number))
        between = range(low + 1, high)
        distance = (place - index) if other > number else (index - place)
        certain = sum(1 for each in between if each in columns and columns[each].certain)
        if not certain < distance <= len(between) + 1:
            return False
    return True
