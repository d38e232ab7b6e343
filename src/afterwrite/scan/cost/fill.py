"""Fill the tables of a database that is ours with generated rows: parents before children, the server asked what holds.

::

    types, checks, bounds ─▶ candidates ─▶ "which of these hold?" ─▶ rows ─▶ insert, ordinary triggers off

Meant for a copy that is thrown away: rows are committed.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
from psycopg import sql

from afterwrite.errors import DatabaseError
from afterwrite.postgres import Database, identifier, statement
from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Column, ForeignKey, Kind, Table
from afterwrite.scan.cost.measure import REFUSALS
from afterwrite.scan.cost.rows import GUESSES, Slot, Type, Values, tied_together

ROWS = 40
_ATTEMPTS = 25
_COMBINATIONS = 2_000
_SOLUTIONS = 60
_QUESTIONS = 60
_TOOK_TOO_LONG = "57014"
_GENERATED_DEFAULTS = ("nextval(", "gen_random_uuid(", "uuid_generate_", "uuidv")

Row = dict[str, str | None]
Key = tuple[int, tuple[str, ...]]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """SQL over a table's columns that every row must meet."""

    expression: str
    columns: tuple[str, ...]


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a table: its rows, or why it has none."""

    table: Table
    rows: int
    why: str = ""


def _type_row(*, oid: int, **words: Any) -> tuple[int, Type]:
    return oid, Type(oid=oid, **words)


def _slot_row(*, table_oid: int, name: str, type: int, modifier: int, always: bool) -> tuple[int, Slot, bool]:
    return table_oid, Slot(name=name, type=type, modifier=modifier), always


def _condition_row(*, table_oid: int, name: str, expression: str, columns: list[str]) -> tuple[int, Condition]:
    return table_oid, Condition(expression=expression, columns=tuple(columns))


class Filler:
    """Makes rows for the tables of one database. ``hints`` are texts that triggers look for, by (table oid, column).

    After ``deadline`` (time.monotonic) nothing more is asked or filled.
    """

    def __init__(
        self, db: Database, atlas: Atlas, hints: Mapping[tuple[int, str], Sequence[str]], *, deadline: float
    ) -> None:
        self.deadline = deadline
        self.db = db
        self.atlas = atlas
        self.filled: dict[int, Filled] = {}
        self._hints = hints
        self._values = Values({})
        self._slots: defaultdict[int, dict[str, Slot]] = defaultdict(dict)
        self._always: defaultdict[int, set[str]] = defaultdict(set)
        self._conditions: defaultdict[int, list[Condition]] = defaultdict(list)
        self._solutions: dict[tuple[int, tuple[str, ...]], list[Row]] = {}
        self._plain: dict[tuple[int, str], list[str]] = {}
        self._used: defaultdict[Key, set[tuple[str | None, ...]]] = defaultdict(set)
        self._choose = random.Random(1)

    async def learn(self, tables: Sequence[Table]) -> None:
        """Read what the columns of these tables may hold."""
        oids = [table.oid for table in tables]
        self._values = Values(dict(await self.db.rows(_type_row, statement("cost.read_types"))))
        for oid, slot, always in await self.db.rows(_slot_row, statement("cost.read_column_types"), oids=oids):
            self._slots[oid][slot.name] = slot
            if always:
                self._always[oid].add(slot.name)
        for oid, condition in await self.db.rows(_condition_row, statement("cost.read_checks"), oids=oids):
            self._conditions[oid].append(condition)
        partitioned = [table for table in tables if table.kind is Kind.PARTITIONED]
        if partitioned:
            await self._learn_bounds(partitioned)

    async def _learn_bounds(self, tables: Sequence[Table]) -> None:
        """A row of a partitioned table must fit into one of its partitions: the first whose bounds can be met."""
        keys: defaultdict[int, list[str]] = defaultdict(list)
        oids = [table.oid for table in tables]
        for row in await self._read(statement("cost.read_partition_keys"), oids):
            keys[row["table_oid"]].append(row["column"])
        bounds: defaultdict[int, list[str]] = defaultdict(list)
        for row in await self._read(statement("cost.read_partition_bounds"), oids):
            bounds[row["root"]].append(row["expression"] or "true")
        for table in tables:
            # A hash partition's bounds name the table by its oid, and are true for the rows of all partitions in turn.
            listed = [text for text in bounds[table.oid] if "satisfies_hash_partition" not in text]
            if listed and len(listed) == len(bounds[table.oid]):
                columns = tuple(name for name in self._slots[table.oid] if any(name in text for text in listed))
                named = tuple(dict.fromkeys((*keys[table.oid], *columns)))
                expression = " or ".join(f"({text})" for text in listed)
                self._conditions[table.oid].append(Condition(expression=expression, columns=named))

    async def _read(self, query: bytes, oids: Sequence[int]) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", await self.db.rows(dict, query, oids=list(oids)))

    def in_order(self, tables: Sequence[Table]) -> list[Table]:
        """Parents before children; where references go round in a circle, those that may be empty are passed over."""
        wanted = {table.oid: table for table in tables}
        done: dict[int, Table] = {}
        while len(done) < len(wanted):
            left = [table for oid, table in wanted.items() if oid not in done]
            free = [table for table in left if not self._waits(table, wanted, done, all_keys=True)]
            free = free or [table for table in left if not self._waits(table, wanted, done, all_keys=False)][:1]
            for table in free or left[:1]:
                done[table.oid] = table
        return list(done.values())

    def _waits(self, table: Table, wanted: Mapping[int, Table], done: Mapping[int, Table], *, all_keys: bool) -> bool:
        return any(
            key.referenced_oid in wanted and key.referenced_oid not in done and key.referenced_oid != table.oid
            for key in table.foreign_keys
            if all_keys or self._required(table, key)
        )

    @staticmethod
    def _required(table: Table, key: ForeignKey) -> bool:
        by_name = {column.name: column for column in table.columns}
        return all(by_name[name].not_null for name in key.columns if name in by_name)

    # One table -------------------------------------------------------------------------------------------------------

    async def fill(self, table: Table) -> Filled:
        """Rows for one table, its ordinary triggers off; what it has already is enough."""
        name = identifier(table.schema, table.name)
        count: int = await self.db.value(sql.SQL("select count(*) from (select from {} limit {}) t").format(name, ROWS))
        made, why = count, ""
        if not count:
            async with self.db.transaction():
                await self.db.run(sql.SQL("alter table {} disable trigger user").format(name))
                made, why = await self._insert(table)
                await self.db.run(sql.SQL("alter table {} enable trigger user").format(name))
        found = Filled(table=table, rows=made, why=why)
        self.filled[table.oid] = found
        return found

    async def _insert(self, table: Table) -> tuple[int, str]:
        """Rows of one kind at once; where a batch is refused, one by one."""
        made, why = 0, ""
        kinds: dict[tuple[str, ...], list[Row]] = {}
        async for row in self._varied(table):
            kinds.setdefault(tuple(row), []).append(row)
            for place, value in self._keys(table, row):
                self._used[place].add(value)
        for columns, rows in kinds.items():
            parts: list[list[Row]] = [rows] if columns else [[row] for row in rows]
            failed = 0
            while parts and failed <= _ATTEMPTS and time.monotonic() < self.deadline:
                part = parts.pop(0)
                try:
                    async with self.db.transaction():
                        await self.db.run(insertion(table, *part))
                except REFUSALS as error:
                    why = str(error).partition(" said: ")[2] or str(error)
                    parts += [[row] for row in part] if len(part) > 1 else []
                    failed += not made and len(part) == 1
                    continue
                made += len(part)
        return made, "" if made else why or self._reason(table)

    async def _varied(self, table: Table) -> AsyncGenerator[Row]:
        """Most rows full, as a table's are that is in use; some without what may be left out, some in another state."""
        wanted = self._wanted(table)
        async for row in self.rows(table, wanted * 3 // 5):
            yield row
        async for row in self.rows(table, wanted // 5, lean=True, start=wanted):
            yield row
        states = [column for column in table.columns if column.default and self._is_state(table, column)]
        number = 0
        async for row in self.rows(table, wanted // 5, start=wanted * 2):
            for place, column in enumerate(states):
                row[column.name] = self._values.plain(self._slots[table.oid][column.name], number + place)
            number += 1
            yield row

    def _is_state(self, table: Table, column: Column) -> bool:
        """Whether a column has a few values or a number that others start from: what rows differ in after a while."""
        if column.generated or column.identity or any(text in (column.default or "") for text in _GENERATED_DEFAULTS):
            return False
        bound = {name for unique in table.uniques for name in unique.columns}
        bound |= {name for key in table.foreign_keys for name in key.columns}
        kind, _, checks = self._values.base(self._slots[table.oid][column.name])
        return column.name not in bound and not checks and kind is not None and kind.category in "EBN"

    def _wanted(self, table: Table) -> int:
        """Half as many rows where a key is made of references alone, so that some parents stay without a child."""
        referring = {name for key in table.foreign_keys for name in key.columns}
        tight = any(unique.columns and referring.issuperset(unique.columns) for unique in table.uniques)
        return ROWS // 2 if tight else ROWS

    def _reason(self, table: Table) -> str:
        for key in table.foreign_keys:
            parent = self.atlas.tables.get(key.referenced_oid)
            filled = self.filled.get(key.referenced_oid)
            if self._required(table, key) and parent is not None and (filled is None or not filled.rows):
                return f"it needs a row of {parent.full_name}, which has none"
        return "no values were found that meet its conditions"

    async def rows(self, table: Table, count: int, *, lean: bool = False, start: int = 0) -> AsyncGenerator[Row]:
        """Generated rows that should be accepted, by column; ``lean`` leaves out what may be left out."""
        columns = [column for column in table.columns if self._given(table, column, lean=lean)]
        names = [column.name for column in columns]
        by_name = {column.name: column for column in columns}
        conditions = [each for each in self._conditions[table.oid] if set(each.columns) & set(names)]
        groups = tied_together(names, [each.columns for each in conditions])
        solved: list[list[Row]] = []
        for group in groups:
            found = await self._solve(table, tuple(group), conditions, by_name)
            if not found:
                return
            solved.append(found)
        parents = {key.name: await self._parents(table, key) for key in table.foreign_keys}
        tied = {name for group in groups for name in group}
        offered: set[tuple[Key, tuple[str | None, ...]]] = set()
        made = 0
        for number in range(start, start + count * 3):
            for attempt in range(_ATTEMPTS):
                row = self._draft(table, number + attempt * 7, solved, parents)
                if row is None:
                    break
                for column in columns:
                    if column.name not in tied and column.name not in row:
                        row[column.name] = await self._single(table, column, number)
                keys = list(self._keys(table, row))
                if not any(value in self._used[place] or (place, value) in offered for place, value in keys):
                    offered.update(keys)
                    made += 1
                    yield row
                    break
            if made >= count:
                return

    def _given(self, table: Table, column: Column, *, lean: bool) -> bool:
        """Whether a row names this column, or leaves it to the server."""
        if column.generated or column.name in self._always[table.oid]:
            return False
        refers = any(column.name in key.columns for key in table.foreign_keys)
        if refers:
            return column.not_null or not lean
        if column.identity or any(text in (column.default or "") for text in _GENERATED_DEFAULTS):
            return False
        unique = any(column.name in unique.columns for unique in table.uniques)
        if column.default is None:
            return column.not_null or unique or not lean
        empty = column.default.startswith(("'{}'", "'[]'", "''", "ARRAY[]", "NULL"))
        return unique or (empty and not lean)

    def _draft(
        self, table: Table, number: int, solved: Sequence[Sequence[Row]], parents: Mapping[str, Sequence[Row]]
    ) -> Row | None:
        row: Row = {}
        for found in solved:
            row |= found[number % len(found)]
        for key in table.foreign_keys:
            fixed = {name: row[name] for name in key.columns if name in row}
            fitting = [each for each in parents[key.name] if all(each[name] == value for name, value in fixed.items())]
            if fitting:
                row |= self._choose.choice(fitting)
            elif key.referenced_oid == table.oid and not fixed and self._required(table, key):
                continue  # a row that must refer to its own kind: the first may only refer to itself
            elif self._required(table, key):
                return None
            else:
                row |= {name: None for name in key.columns if name not in fixed}
        return row

    async def _parents(self, table: Table, key: ForeignKey) -> list[Row]:
        """The keys that a child may refer to, under its own column names; the last rows stay without children."""
        parent = self.atlas.tables.get(key.referenced_oid)
        filled = self.filled.get(key.referenced_oid)
        if parent is None or filled is None or not filled.rows:
            return []
        wanted = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in key.referenced_columns)
        query = sql.SQL("select array[{}] as key from {} limit {}").format(
            wanted, identifier(parent.schema, parent.name), max(1, filled.rows * 4 // 5)
        )
        found: list[list[str | None]] = await self.db.values(query)
        return [dict(zip(key.columns, values, strict=True)) for values in found if None not in values]

    async def _single(self, table: Table, column: Column, number: int) -> str | None:
        """A value for a column of its own."""
        hints = self._hints.get((table.oid, column.name), ())
        if number < len(hints):
            return hints[number]
        slot = self._slots[table.oid][column.name]
        kind, _, checks = self._values.base(slot)
        value = None if checks else self._values.plain(slot, number)
        if value is not None:
            return value
        known = self._plain.get((table.oid, column.name))
        if known is None:
            candidates = self._values.candidates(slot, "", many=ROWS) if kind is not None else list(GUESSES)
            known = await self._accepted(column, candidates or list(GUESSES))
            self._plain[table.oid, column.name] = known
        return known[number % len(known)] if known else None

    def values_for(self, table: Table, column: str, conditions: str) -> list[str]:
        """Values of a column worth trying where this SQL is to be true."""
        slot = self._slots[table.oid].get(column)
        if slot is None:
            return []
        guards = (each.expression for each in self._conditions[table.oid] if column in each.columns)
        return self._values.candidates(slot, " ".join((conditions, *guards)), many=3)[:12]

    def _keys(self, table: Table, row: Row) -> Iterator[tuple[Key, tuple[str | None, ...]]]:
        """The unique keys of a row, with their values."""
        for unique in table.uniques:
            if unique.exclusion or not unique.columns or not all(name in row for name in unique.columns):
                continue
            value = tuple(row[name] for name in unique.columns)
            if None not in value:
                yield (table.oid, unique.columns), value

    # What holds ------------------------------------------------------------------------------------------------------

    async def _solve(
        self, table: Table, group: tuple[str, ...], conditions: Sequence[Condition], columns: Mapping[str, Column]
    ) -> list[Row]:
        """Values for columns that conditions tie together, as the server finds that they hold."""
        if (table.oid, group) in self._solutions:
            return self._solutions[table.oid, group]
        mine = [each for each in conditions if set(each.columns) & set(group)]
        pools: list[list[str | None]] = []
        for name in group:
            column = columns[name]
            text = " ".join(each.expression for each in mine if name in each.columns)
            unique = any(name in unique.columns for unique in table.uniques)
            hints = self._hints.get((table.oid, name), ())
            candidates = self._values.candidates(self._slots[table.oid][name], text, many=ROWS if unique else 6)
            pool: list[str | None] = [*await self._accepted(column, [*hints, *candidates])]
            if not column.not_null:
                pool.append(None)
            alone = [each for each in mine if set(each.columns) == {name}]
            if alone and pool:
                pool = [row[name] for row in await self._holding(alone, [{name: value} for value in pool], columns)]
            pools.append(pool)
        several = [each for each in mine if len(each.columns) > 1]
        rows = [dict(zip(group, values, strict=True)) for values in _combined(pools, self._choose)]
        # Columns that the server fills itself are not in the group: such a condition is left to the insertion.
        asked = [each for each in several if set(each.columns) <= set(group)]
        found = await self._holding(asked, rows, columns) if asked else rows
        found.sort(key=lambda row: sum(value is None for value in row.values()))
        full = [row for row in found if None not in row.values()]
        self._solutions[table.oid, group] = (full or found)[:_SOLUTIONS]
        return self._solutions[table.oid, group]

    async def _accepted(self, column: Column, candidates: Sequence[str]) -> list[str]:
        """Those that the column's type takes; of many the first."""
        rows: list[Row] = [{column.name: value} for value in dict.fromkeys(candidates)]
        found = await self._holding([], rows, {column.name: column})
        return [value for row in found if (value := row[column.name]) is not None]

    async def _holding(
        self, conditions: Sequence[Condition], rows: Sequence[Row], columns: Mapping[str, Column]
    ) -> list[Row]:
        """Those of these values that meet the conditions. One that raises an error fails; it is searched by halving."""
        kept: list[Row] = []
        waiting: list[Sequence[Row]] = [rows]
        asked = 0
        while waiting and asked < _QUESTIONS + len(rows) * 2 and time.monotonic() < self.deadline:
            part = waiting.pop(0)
            if not part:
                continue
            asked += 1
            try:
                async with self.db.transaction():
                    places: list[int] = await self.db.values(_question(conditions, part, columns))
                kept += [part[place] for place in sorted(places)]
            except REFUSALS as error:
                if isinstance(error, DatabaseError) and error.sqlstate == _TOOK_TOO_LONG:
                    break
                if len(part) > 1:
                    half = len(part) // 2
                    waiting[:0] = [part[:half], part[half:]]
        return kept


def _combined(pools: Sequence[Sequence[str | None]], choose: random.Random) -> Iterator[tuple[str | None, ...]]:
    """All combinations, or a sample of them where there are too many."""
    count = 1
    for pool in pools:
        count *= len(pool)
    if count <= _COMBINATIONS:
        yield from itertools.product(*pools)
        return
    seen: set[tuple[str | None, ...]] = set()
    for _ in range(_COMBINATIONS):
        picked = tuple(choose.choice(pool) for pool in pools)
        if picked not in seen:
            seen.add(picked)
            yield picked


def _question(conditions: Sequence[Condition], rows: Sequence[Row], columns: Mapping[str, Column]) -> bytes:
    """``select place from (values …) as candidate (…) where …``, every value cast to its column's type."""
    names = list(rows[0])
    listed = ", ".join(
        f"({place}, " + ", ".join(f"cast({_literal(row[name])} as {columns[name].type})" for name in names) + ")"
        for place, row in enumerate(rows)
    )
    alias = ", ".join(sql.Identifier(name).as_string() for name in ("afterwrite place", *names))
    # The first makes the server compute all values, also those that no condition looks at.
    held = " and ".join(["candidate::text is not null", *(f"({each.expression}) is not false" for each in conditions)])
    text = f'select "afterwrite place" from (values {listed}) as candidate ({alias}) where {held}'  # noqa: S608
    return text.encode()  # conditions and types are as the server printed them


def _literal(value: str | None) -> str:
    return "null" if value is None else sql.Literal(value).as_string()


def insertion(table: Table, *rows: Mapping[str, str | None]) -> sql.Composed:
    """The INSERT of rows of the same columns; values are literals, which the server reads as the column's type."""
    name = identifier(table.schema, table.name)
    if not rows[0]:
        return sql.SQL("insert into {} default values").format(name)
    listed = (sql.SQL(", ").join(sql.Literal(value) for value in row.values()) for row in rows)
    return sql.SQL("insert into {} ({}) values {}").format(
        name,
        sql.SQL(", ").join(sql.Identifier(column) for column in rows[0]),
        sql.SQL(", ").join(sql.SQL("({})").format(each) for each in listed),
    )


def with_parents(atlas: Atlas, tables: Iterable[Table]) -> list[Table]:
    """These tables and all that they refer to, directly or not."""
    found: dict[int, Table] = {}
    waiting = list(tables)
    while waiting:
        table = atlas.root(waiting.pop())
        if table.oid in found or table.kind not in (Kind.TABLE, Kind.PARTITIONED) or table.extension is not None:
            continue
        found[table.oid] = table
        waiting += [
            parent for key in table.foreign_keys if (parent := atlas.tables.get(key.referenced_oid)) is not None
        ]
    return list(found.values())
