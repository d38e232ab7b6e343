"""A trigger on trial: the server runs it, and what it did is seen in the tables, not in its text.

    rows in every table ─▶ INSERTs, UPDATEs, DELETEs on the trigger's table, each undone again
        ─▶ refused? its own row changed? other tables changed?  compared with the same without the trigger

This is the oracle of the mutation test: it does not know how the scanner reads.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import psycopg
from psycopg import sql

from afterwrite.scan.catalog import Column, Event, Inventory, Kind, Table, Trigger
from afterwrite.scan.classify import Judgement, Verdict

_STRING = re.compile(r"'((?:[^']|'')*)'")
_REFUSING = ("exec_stmt_raise", "exec_stmt_assert")  # where in the server (pl_exec.c) the error was made
_REFUSED_STATES = frozenset({"P0002", "20000"})  # no_data_found (INTO STRICT), case_not_found
Contents = Mapping[str, Counter[str]]


class Rejected(NamedTuple):
    """The server does not take the function: why, and whether it could not read it (a type it does not know it can)."""

    unread: bool
    message: str


class Seen(NamedTuple):
    """What one statement did. ``refused``: the SQLSTATE when it failed, ``meant``: and the trigger meant it to."""

    statement: str
    refused: str | None
    meant: bool
    contents: Contents | None


class Court:
    """One scene's database, furnished with rows; ``connection`` is in no transaction between trials."""

    def __init__(self, connection: psycopg.Connection, inventory: Inventory) -> None:
        self.connection = connection
        self.inventory = inventory
        self.tables = {table.oid: table for table in inventory.tables}
        functions = (function.source for function in inventory.functions if function.extension is None)
        bodies = " ".join((*functions, *(trigger.create for trigger in inventory.triggers)))
        words = (text for text in _STRING.findall(bodies) if re.fullmatch(r"[\w@. -]{1,24}", text))
        self.words = sorted(set(words)) or ["x"]
        self._baselines: dict[int, list[Seen]] = {}
        self._statements: dict[int, list[sql.Composable]] = {}
        shown = [
            table
            for table in inventory.tables
            if table.kind in (Kind.TABLE, Kind.PARTITIONED, Kind.MATERIALIZED) and table.partition_of is None
        ]
        one = "select {name}, t::text from {only} {table} t"
        self._look = sql.SQL(" union all ").join(
            sql.SQL(one).format(
                name=sql.Literal(table.full_name),
                only=sql.SQL("only" if table.kind is Kind.TABLE else ""),
                table=sql.Identifier(table.schema, table.name),
            )
            for table in shown
        )

    def furnish(self) -> None:
        """Two rows in every table, without a trigger or a foreign key having a say, and kept."""
        rng = random.Random(7)
        with self.connection.transaction():
            self.connection.execute("set local session_replication_role = replica")
            for table in self.inventory.tables:
                if table.kind not in (Kind.TABLE, Kind.PARTITIONED) or table.partition_of is not None:
                    continue
                for number in (1, 2):
                    self._try(self._insert(table, number, rng, varied=False))

    def _try(self, statement: sql.Composable) -> None:
        try:
            with self.connection.transaction():
                self.connection.execute(statement)
        except psycopg.Error:
            pass

    # Trials -----------------------------------------------------------------------------------------------------------

    def can_try(self, trigger: Trigger) -> bool:
        """Whether rows can be written to the trigger's table, and its language is there."""
        kind = self.tables[trigger.table_oid].kind
        return trigger.language == "plpgsql" and kind in (Kind.TABLE, Kind.PARTITIONED)

    def accepts(self, definition: str) -> Rejected | None:
        """Whether the server would take this function; None when it does."""
        try:
            with self.connection.transaction(force_rollback=True):
                self.connection.execute(definition)  # type: ignore[arg-type]
        except psycopg.Error as error:
            # Of what stands where a type's name is wanted, only the catalog can say that it is none.
            unread = error.sqlstate == "42601" and "invalid type name" not in (error.diag.context or "")
            return Rejected(unread or error.sqlstate is None, str(error).partition("\n")[0])
        except (ValueError, UnicodeError) as error:  # a null byte does not reach the server
            return Rejected(True, str(error))
        return None

    def effects(self, trigger: Trigger, definition: str | None) -> list[tuple[str, str]]:
        """What the trigger was seen to do that is not an INSERT elsewhere: (what, where or by which statement)."""
        seen = self._run(trigger, definition, fires=True)
        if trigger.oid not in self._baselines:
            self._baselines[trigger.oid] = self._run(trigger, None, fires=False)
        found: list[tuple[str, str]] = []
        for with_it, without in zip(seen, self._baselines[trigger.oid], strict=True):
            found += self._compared(trigger, with_it, without)
        return list(dict.fromkeys(found))

    def _compared(self, trigger: Trigger, with_it: Seen, without: Seen) -> Iterable[tuple[str, str]]:
        if with_it.refused is not None:
            if without.refused is None:
                yield ("refuses" if with_it.meant else f"fails {with_it.refused}"), with_it.statement
            return
        if without.refused is not None or with_it.contents is None or without.contents is None:
            return
        home = self._root(self.tables[trigger.table_oid]).full_name
        for name in with_it.contents.keys() | without.contents.keys():
            more = with_it.contents.get(name, Counter()) - without.contents.get(name, Counter())
            less = without.contents.get(name, Counter()) - with_it.contents.get(name, Counter())
            if name == home and (more or less):
                yield "changes its own table", with_it.statement
            elif less:
                yield "changes", name
            elif more:
                yield "appends", name

    def _root(self, table: Table) -> Table:
        while table.partition_of is not None:
            table = self.tables[table.partition_of]
        return table

    def _run(self, trigger: Trigger, definition: str | None, *, fires: bool) -> list[Seen]:
        table = sql.Identifier(trigger.schema, trigger.table)
        with self.connection.transaction(force_rollback=True):
            if definition is not None:
                self.connection.execute(definition)  # type: ignore[arg-type]
            self.connection.execute("set local statement_timeout = '400ms'")
            self.connection.execute("set local lock_timeout = '200ms'")
            self.connection.execute(sql.SQL("alter table {} disable trigger user").format(table))
            if fires:
                self.connection.execute(
                    sql.SQL("alter table {} enable always trigger {}").format(table, sql.Identifier(trigger.name))
                )
            return [self._observe(statement) for statement in self._statements_for(trigger)]

    def _observe(self, statement: sql.Composable) -> Seen:
        text = statement.as_string(self.connection)
        try:
            with self.connection.transaction(force_rollback=True):
                self.connection.execute(statement)
                rows = self.connection.execute(self._look).fetchall()
        except psycopg.Error as error:
            meant = error.diag.source_function in _REFUSING or error.sqlstate in _REFUSED_STATES
            return Seen(text, error.sqlstate or "?", meant, None)
        contents: dict[str, Counter[str]] = {}
        for name, row in rows:
            contents.setdefault(name, Counter())[row] += 1
        return Seen(text, None, False, contents)

    # Statements -------------------------------------------------------------------------------------------------------

    def _statements_for(self, trigger: Trigger) -> Sequence[sql.Composable]:
        if trigger.oid not in self._statements:
            self._statements[trigger.oid] = list(self._made(trigger))
        return self._statements[trigger.oid]

    def _made(self, trigger: Trigger) -> Iterable[sql.Composable]:
        table = self.tables[trigger.table_oid]
        rng = random.Random(trigger.identity)
        for event in trigger.events:
            match event:
                case Event.INSERT:
                    for number in range(3, 7):
                        yield self._insert(table, number, rng, varied=number > 3)
                    yield self._insert(table, 7, rng, varied=True, nulls=1)
                case Event.UPDATE:
                    for number in range(5):
                        yield self._update(table, trigger, rng, number)
                case Event.DELETE:
                    for number in (1, 2):
                        yield sql.SQL("delete from {} where {}").format(self._name(table), self._row(table, number))
                case Event.TRUNCATE:
                    yield sql.SQL("truncate {}").format(self._name(table))

    def _name(self, table: Table) -> sql.Identifier:
        return sql.Identifier(table.schema, table.name)

    def _insert(
        self, table: Table, number: int, rng: random.Random, *, varied: bool, nulls: float = 0.15
    ) -> sql.Composable:
        given = [column for column in table.columns if not column.generated and not column.identity]
        if not given:
            return sql.SQL("insert into {} default values").format(self._name(table))
        return sql.SQL("insert into {} ({}) values ({})").format(
            self._name(table),
            sql.SQL(", ").join(sql.Identifier(column.name) for column in given),
            sql.SQL(", ").join(self._value(table, column, number, rng, varied=varied, nulls=nulls) for column in given),
        )

    def _update(self, table: Table, trigger: Trigger, rng: random.Random, number: int) -> sql.Composable:
        columns = [
            column
            for column in table.columns
            if not column.generated and not column.identity and (column.name not in table.primary_key or number == 4)
        ]
        if number in (1, 2) and columns:
            named = [column for column in columns if column.name in trigger.columns]
            columns = [rng.choice(named or columns)]
        if not columns:
            columns = list(table.columns[:1])
        changes = [
            sql.SQL("{} = {}").format(
                sql.Identifier(column.name), self._value(table, column, 1 + number % 2, rng, varied=number != 3)
            )
            for column in columns
        ]
        return sql.SQL("update {} set {} where {}").format(
            self._name(table), sql.SQL(", ").join(changes), self._row(table, 1 + number % 2)
        )

    def _row(self, table: Table, number: int) -> sql.Composable:
        if len(table.primary_key) == 1:
            (key,) = (column for column in table.columns if column.name == table.primary_key[0])
            value = self._value(table, key, number, random.Random(0), varied=False)
            return sql.SQL("{} = {}").format(sql.Identifier(key.name), value)
        return sql.SQL("true")

    def _value(
        self, table: Table, column: Column, number: int, rng: random.Random, *, varied: bool, nulls: float = 0.15
    ) -> sql.Composable:
        kind = column.type.lower()
        refers = any(column.name in key.columns for key in table.foreign_keys)
        is_key = column.name in table.primary_key
        base = 1 + (number - 1) % 2 if refers else number
        if varied and not column.not_null and not is_key and rng.random() < nulls:
            return sql.SQL("null")
        text = self._text(kind, base, rng, varied=varied and not refers and not is_key)
        if text is None:
            return sql.SQL("null")
        return sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(column.type))

    def _text(self, kind: str, base: int, rng: random.Random, *, varied: bool) -> str | None:
        if kind.endswith("[]"):
            return "{}"
        if re.match(r"(big|small)?int|numeric|double|real|oid|xid8", kind):
            wide = not re.match(r"smallint|oid|xid8", kind)
            return str(rng.choice((base, 0, 150, 2_000_000, -5)) if varied and wide else base)
        if re.match(r"text|character|name|citext|\"char\"", kind):
            length = re.search(r"\((\d+)\)", kind)
            word = rng.choice((*self.words, f"v{base}", '{"a": 1}', "")) if varied else f"v{base}"
            return word[: int(length[1])] if length else word
        fixed = {
            "boolean": rng.choice(("true", "false")) if varied else "false",
            "jsonb": f'{{"a": {base}, "username": "u{base}"}}',
            "json": f'{{"a": {base}}}',
            "uuid": f"00000000-0000-0000-0000-00000000000{base % 10}",
            "tsvector": f"v{base}",
            "inet": f"10.0.0.{base}",
            "interval": f"{base} days",
            "int4range": f"[{base},{base + 2})",
            "daterange": f"[2025-01-0{base % 9 + 1},2025-01-20)",
            "tsrange": f"[2025-01-0{base % 9 + 1} 10:00,2025-01-20 10:00)",
            "tstzrange": f"[2025-01-0{base % 9 + 1} 10:00+00,)",
        }
        if kind in fixed:
            return fixed[kind]
        if kind == "date" or kind.startswith("timestamp"):
            return f"2025-02-0{(rng.randint(1, 9) if varied else base % 9 + 1)}"
        return "a=>1" if kind.endswith("hstore") else None


def unsound(judgement: Judgement, effects: Sequence[tuple[str, str]]) -> list[str]:
    """What was seen of a trigger that its verdict leaves no room for."""
    if judgement.verdict in (Verdict.KEEP, Verdict.REVIEW):
        return []
    found = [f"{what} ({where})" for what, where in effects if what in ("refuses", "changes its own table")]
    if judgement.verdict is Verdict.RETIRE:
        logs = set(judgement.log_tables)
        found += [f"{what} {where}" for what, where in effects if what in ("changes", "appends") and where not in logs]
    return found
