"""Statements that write one row of a table: what a probe and a rehearsal measure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec
from psycopg import sql

from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, identifier
from afterwrite.scan.catalog import Column, Event, Table
from afterwrite.scan.cost.measure import REFUSALS, Bench, Deed

# How to get another value of the same kind. A text keeps its length, so that it stays within its limit.
_CHANGES: tuple[tuple[str, str], ...] = (
    (r"(smallint|integer|bigint|numeric.*|real|double precision)", "coalesce({}, 0) + 1"),
    (r"(text|character varying.*|character\(.*|.*\bcitext)", "'~' || pg_catalog.substr(coalesce({}, ''), 2)"),
    (r"boolean", "not coalesce({}, false)"),
    (r"timestamp.*", "coalesce({}, pg_catalog.now()) + interval '1 second'"),
    (r"date", "coalesce({}, current_date) + 1"),
    (r"interval", "coalesce({}, interval '0') + interval '1 second'"),
    (r"jsonb", "coalesce({}, '{{}}') || '{{\"afterwrite\": 1}}'"),
    (r"uuid", "pg_catalog.gen_random_uuid()"),
    (r"inet", "coalesce({}, '192.0.2.1') + 1"),
    (r"text\[\]", "pg_catalog.array_append({}, 'afterwrite')"),
)


class Place(msgspec.Struct, frozen=True):
    """Where a row lies: which table (of a partitioned one the leaf) and its ctid, which a rollback leaves as it was."""

    leaf: int
    ctid: str

    @property
    def condition(self) -> sql.Composed:
        return sql.SQL("where ctid = {}::tid and tableoid = {}::oid").format(self.ctid, self.leaf)


def itself(table: Table, place: Place) -> Deed | None:
    """An UPDATE that gives a row the value that it has; None for a table without a column that may be given one."""
    column = next((each.name for each in table.columns if _may_be_set(each)), None)
    if column is None:
        return None
    given = sql.SQL("{} = {}").format(sql.Identifier(column), sql.Identifier(column))
    return Deed(table=table, event=Event.UPDATE, manner="itself", query=_update(table, given, place))


def changed(table: Table, place: Place, columns: Sequence[Column]) -> Deed:
    """An UPDATE that gives these columns other values."""
    return _changed(
        table, place, [(each.name, change) for each in columns if (change := another_value(each)) is not None]
    )


def set_to(table: Table, place: Place, column: str, value: str | None) -> Deed:
    """An UPDATE that gives one column this value."""
    return _changed(table, place, [(column, sql.SQL("{}").format(sql.Literal(value)))])


def removal(table: Table, place: Place) -> Deed:
    """A DELETE of one row."""
    query = sql.SQL("delete from {} {}").format(identifier(table.schema, table.name), place.condition)
    return Deed(table=table, event=Event.DELETE, query=query)


async def acceptable_change(bench: Bench, table: Table, place: Place) -> tuple[Deed | None, str]:
    """An UPDATE of as many free columns as the database accepts; without one, the last reason why not."""
    free = list(alterable(table))
    why = "none of its columns may be given another value freely"
    if free:
        whole = changed(table, place, free)
        refused = await refusal(bench, whole)
        if refused is None:
            return whole, ""
        why = refused
    taken: list[Column] = []
    for column in free:
        if await refusal(bench, changed(table, place, [*taken, column])) is None:
            taken.append(column)
    return (changed(table, place, taken), "") if taken else (None, why)


async def refusal(bench: Bench, deed: Deed) -> str | None:
    """Why the database refuses a deed; None when it does not."""
    try:
        await bench.try_out(deed)
    except REFUSALS as error:
        return said(error)
    return None


def said(error: AfterwriteError) -> str:
    """The server's own words."""
    text = str(error)
    return text.partition(" said: ")[2] or text


def alterable(table: Table) -> Iterator[Column]:
    """Columns that may get another value for all that the catalog says: in no key, reference or condition."""
    bound = {name for unique in table.uniques for name in unique.columns}
    bound |= {name for check in table.checks for name in check.columns}
    bound |= {name for key in table.foreign_keys for name in key.columns}
    bound |= {name for key in table.referenced_by for name in key.referenced_columns}
    for column in table.columns:
        if column.name not in bound and _may_be_set(column) and another_value(column) is not None:
            yield column


def _may_be_set(column: Column) -> bool:
    return not column.generated and not column.identity


def another_value(column: Column) -> sql.Composed | None:
    """SQL for another value of the same kind than the one that a column has; None for kinds that are not known."""
    for pattern, change in _CHANGES:
        if re.fullmatch(pattern, column.type):
            return sql.SQL(change).format(sql.Identifier(column.name))  # pyright: ignore[reportArgumentType]
    return None


def _changed(table: Table, place: Place, changes: Sequence[tuple[str, sql.Composed]]) -> Deed:
    given = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), change) for name, change in changes)
    return Deed(table=table, event=Event.UPDATE, manner="changed", query=_update(table, given, place))


def _update(table: Table, given: sql.Composed, place: Place) -> sql.Composed:
    name = identifier(table.schema, table.name)
    return sql.SQL("update {} set {} {}").format(name, given, place.condition)


async def places(db: Database, table: Table, count: int) -> list[Place]:
    """Where some rows of a table lie."""
    query = sql.SQL("select tableoid::bigint as leaf, ctid::text as ctid from {} order by tableoid, ctid limit {}")
    return await db.rows(Place, query.format(identifier(table.schema, table.name), count))


async def placed(db: Database, query: sql.Composed) -> Place:
    """Insert a row, and say where it lies."""
    return await db.one(Place, query + sql.SQL(" returning tableoid::bigint as leaf, ctid::text as ctid"))
