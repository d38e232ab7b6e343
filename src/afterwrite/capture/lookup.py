"""What the stream does not say, asked of the catalog: what types are made of, and where a table's key lies."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from afterwrite.capture.assemble import Assembler, TableFacts
from afterwrite.capture.transaction import Relation
from afterwrite.capture.values import PgType, TypeKind
from afterwrite.postgres import Database, statement

_FIRST_USER_OID = 16_384


class Publications(msgspec.Struct, frozen=True):
    """The publications that a stream reads; a table that only ``legacy`` lists is a legacy log."""

    names: tuple[str, ...] = ("afterwrite", "afterwrite_legacy")
    legacy: str = "afterwrite_legacy"


class _TypeRow(msgspec.Struct, frozen=True, kw_only=True):
    oid: int
    kind: str
    element: int
    delimiter: str
    field_names: list[str]
    field_types: list[int]


class _FactsRow(msgspec.Struct, frozen=True, kw_only=True):
    oid: int
    partitioned: bool
    legacy: bool
    key: list[str]


async def read_types(database: Database, oids: Sequence[int]) -> list[PgType]:
    """What pg_type says of these types and of all that they are made of; a dropped one is left out."""
    rows = await database.rows(_TypeRow, statement("capture.read_types"), oids=list(oids))
    return [
        PgType(
            row.oid,
            TypeKind(row.kind),
            row.element,
            row.delimiter,
            tuple(zip(row.field_names, row.field_types, strict=True)),
        )
        for row in rows
    ]


async def read_table_facts(
    database: Database, oids: Sequence[int], publications: Publications
) -> dict[int, TableFacts]:
    """Key, partitioning and standing of these relations; a dropped one is left out."""
    rows = await database.rows(
        _FactsRow,
        statement("capture.read_table_facts"),
        oids=list(oids),
        publications=list(publications.names),
        legacy_publication=publications.legacy,
    )
    return {row.oid: TableFacts(tuple(row.key), row.partitioned, row.legacy) for row in rows}


async def teach(assembler: Assembler, relation: Relation, database: Database, publications: Publications) -> None:
    """Tell the assembler what it must know of a relation before its message is fed.

    The catalog answers as of now, while the message speaks of then; both agree unless DDL ran while the worker lagged.
    The column names are always those of then, since they come with the message.
    """
    oids = [column.type_oid for column in relation.columns]
    # Types of the user's own may have been altered since they were last looked at.
    asked = {*assembler.types.unknown(oids), *(oid for oid in oids if oid >= _FIRST_USER_OID)}
    types = await read_types(database, sorted(asked)) if asked else []
    assembler.learn(types, await read_table_facts(database, [relation.oid], publications))
