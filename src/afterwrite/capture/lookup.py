"""What the stream does not say, asked of the catalog: what types are made of, and where a table's key lies.

The catalog answers as of now, while a message speaks of then, and DDL may have run in between: the worker may lag.
Names of tables and columns come with the message and are those of then. A key is found again by the place of its
columns, that of a table that is no more is remembered, and what cannot be known is said to be unsure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from afterwrite.capture.assemble import Assembler, TableFacts
from afterwrite.capture.transaction import Column, Relation
from afterwrite.capture.values import FIRST_USER_OID, PgType, TypeKind, is_after
from afterwrite.postgres import Database, quoted, statement

_DEFAULT_IDENTITY = "d"


class Publications(msgspec.Struct, frozen=True):
    """The publications that a stream reads; a table that only ``legacy`` lists is a legacy log."""

    names: tuple[str, ...] = ("afterwrite", "afterwrite_legacy")
    legacy: str = "afterwrite_legacy"


class Attribute(msgspec.Struct, frozen=True):
    """A column that the table has or once had (then ``type_oid`` is 0); such as it is since transaction ``since``."""

    name: str
    type_oid: int
    since: int = 0
    generated: bool = False


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A table as the catalog has it now.

    ``columns`` are all that it ever had, by their numbers from 1 on; ``key`` the numbers of the primary key's in its
    order, which is such since transaction ``key_since``. The next transaction to begin is ``now``. ``by_index`` where
    some partition has an index as its replica identity.
    """

    columns: tuple[Attribute, ...]
    key: tuple[int, ...] = ()
    key_since: int = 0
    now: int = 0
    partitioned: bool = False
    by_index: bool = False
    legacy: bool = False


class Remembered(msgspec.Struct, frozen=True):
    """A table as it was published once: the names of its primary key's columns."""

    key: list[str]
    legacy: bool = False


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
    partitioned: bool
    by_index: bool
    legacy: bool
    key: list[int]
    key_since: int
    names: list[str]
    types: list[int]
    generated: list[bool]
    since: list[int]
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
        oid=oid,
        publications=list(publications.names),
        legacy_publication=publications.legacy,
    )
    if row is None:
        return None
    return Standing(
        columns=tuple(map(Attribute, row.names, row.types, row.since, row.generated)),
        key=tuple(row.key),
        key_since=row.key_since,
        now=row.now,
        partitioned=row.partitioned,
        by_index=row.by_index,
        legacy=row.legacy,
    )


async def read_remembered(database: Database, oid: int, publications: Publications) -> Remembered | None:
    """What was remembered of a table when it was published, where this database remembers anything."""
    if not await database.value(statement("lookup.may_remember")):
        return None
    return await database.maybe(
        Remembered,
        statement("lookup.read_remembered"),
        oid=oid,
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
    if assembler.commit_lsn is not None and await database.value(statement("lookup.may_note")):
        # Before any of its changes is stored, so that who reads those finds it.
        await database.value(
            statement("lookup.note_name"),
            relation=quoted(relation.schema, relation.table),
            oid=relation.oid,
            lsn=str(assembler.commit_lsn),
        )
    remembered = None
    if standing is None or not standing.key:
        remembered = await read_remembered(database, relation.oid, publications)
    assembler.learn(types, {relation.oid: state_facts(relation, standing, remembered, assembler.xid)})


async def refresh_types(assembler: Assembler, database: Database) -> None:
    """Look again at the composites in use: nothing in the stream tells when one is altered."""
    if watched := assembler.types.composites:
        assembler.relearn(await read_types(database, sorted(watched)))


def state_facts(relation: Relation, now: Standing | None, remembered: Remembered | None, xid: int | None) -> TableFacts:
    """What holds for the relation as transaction ``xid`` describes it, out of what the catalog says now."""
    facts = TableFacts(
        partitioned=now is not None and now.partitioned,
        by_index=now is not None and now.by_index,
        legacy=now.legacy if now is not None else remembered is not None and remembered.legacy,
    )
    names = tuple(column.name for column in relation.columns)
    flagged = tuple(column.name for column in relation.columns if column.key)
    known = () if remembered is None else tuple(remembered.key)
    today = () if now is None else find_key(relation.columns, now, xid)

    def keyed(key: tuple[str, ...], *, unsure: bool = False, since: int = 0) -> TableFacts:
        return replace(facts, key=key, unsure=unsure, since=since, now=0 if now is None else now.now)

    if relation.replica_identity == _DEFAULT_IDENTITY:
        # Then the flags are those of the primary key itself; only its order must be found.
        for key in (today, known):
            if key is not None and set(key) == set(flagged):
                return keyed(key)
        return keyed(flagged, unsure=len(flagged) > 1)
    if today and now is not None:
        return keyed(today, since=now.key_since)
    if today is None and now is not None:
        named = tuple(now.columns[number - 1].name for number in now.key)
        if set(named) <= set(names):
            return keyed(named, unsure=True)
    # Without a primary key now, it may have had one then.
    if known and set(known) <= set(names):
        return keyed(known, unsure=now is not None)
    return keyed((), unsure=now is None or today is None or bool(known))


def find_key(columns: Sequence[Column], now: Standing, xid: int | None) -> tuple[str, ...] | None:
    """The columns of today's key by their names of then; None when one was not there, or cannot be told for certain.

    Numbers of columns only grow, and the stream describes the columns of then in the order of their numbers: those that
    are there now, and those that were dropped after transaction ``xid``. So the place tells which is which. What was
    not altered since must have kept name and type, which shows whether the count was right: transactions begin in
    another order than they commit in.
    """
    wanted = [now.columns[number - 1] for number in now.key]
    found: set[tuple[str, ...] | None] = set()
    # Generated columns were published then, or not. One that stands where it should shows that they were.
    for with_generated in (True, False):
        there = [
            column
            for column in now.columns
            if (column.type_oid or _is_later(column, now, xid)) and (with_generated or not column.generated)
        ]
        if not _may_be(columns, there, now, xid):
            continue
        places = [there.index(column) if column in there else len(columns) for column in wanted]
        found.add(tuple(columns[place].name for place in places) if max(places, default=-1) < len(columns) else None)
        if any(column.generated and not _is_later(column, now, xid) for column in there):
            break
    return found.pop() if len(found) == 1 else None


def _may_be(columns: Sequence[Column], there: Sequence[Attribute], now: Standing, xid: int | None) -> bool:
    """Whether the first of these are the columns of then, and the others were added later."""
    return len(columns) <= len(there) and all(
        _is_later(column, now, xid)
        or (place < len(columns) and (columns[place].name, columns[place].type_oid) == (column.name, column.type_oid))
        for place, column in enumerate(there)
    )


def _is_later(column: Attribute, now: Standing, xid: int | None) -> bool:
    """Whether it was added, altered or dropped after that transaction."""
    return xid is not None and is_after(column.since, xid, now.now)
