"""Whether a written table takes every row that a trigger writes: each of its constraints must be provably satisfied.

Pure. A constraint that is not proven to hold may refuse the write, and with it the writer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from afterwrite.scan.atlas import condition
from afterwrite.scan.catalog import (
    Check,
    Column,
    Event,
    ForeignKey,
    Function,
    Table,
    Timing,
    Trigger,
    TriggerLevel,
    Unique,
)
from afterwrite.scan.evaluate import feasible, holds, quote_identifier, surroundings
from afterwrite.scan.facts import Assignment, Guard, Insert, OnConflict, Refresh, Update
from afterwrite.scan.follow import events_of
from afterwrite.scan.outcomes import (
    ANYTHING,
    NOTHING,
    THERE,
    Outcome,
    Piece,
    Scope,
    never_null,
    null_unless,
    outcome,
    parsed,
)
from afterwrite.scan.tokens import after_keyword, items, split_names, tokens, unquote
from afterwrite.scan.world import World, Write, sequence_names

_KNOWN = ("tg_op", "tg_when", "tg_level", "tg_name", "tg_nargs")
_DRAWS = frozenset(
    {"nextval", "gen_random_uuid", "uuidv4", "uuidv7", "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4"}
)
_DEEPEST = 6
_FROM = re.compile(
    r"(\bfrom\b|\bjoin\b|\busing\b|,)\s*(?:only\s+|lateral\s+)?((?:[\w$]+|\"[^\"]+\")(?:\.(?:[\w$]+|\"[^\"]+\"))?)(?:\s+(?:as\s+)?([\w$]+))?",
    re.IGNORECASE,
)
_OUTER = re.compile(r"\b(left|right|full)\s+(outer\s+)?join\b", re.IGNORECASE)
_AFTER_LIST = frozenset({"into", "from", "where", "group", "order", "limit", "union"})
_AFTER_WHERE = frozenset({"group", "order", "limit", "having", "union", "for", "returning", "when"})
_NO_ALIAS = frozenset(
    {"where", "join", "on", "inner", "cross", "group", "order", "limit", "for", "union", "set", "using"}
)
_COARSE = re.compile(r"date_trunc|::\s*date|current_date|extract|to_char", re.IGNORECASE)
_CONFLICT = re.compile(r"\bon\s+conflict\s*(?:\(([^()]*)\)|on\s+constraint\s+([\w$]+))?", re.IGNORECASE)


def refusals(world: World, trigger: Trigger, table: Table, write: Write) -> Iterator[str]:
    """What may refuse a write, as far as it is not proven that it never does: sentences that name the constraints."""
    proof = Proof(world, trigger, table, write)
    if write.caught:
        return
    if table.row_security and not _above_policies(trigger, table):
        yield f"{table.full_name} has row security, by which the write may be refused or see other rows"
    match write:
        case Insert():
            yield from proof.inserted()
        case Update():
            yield from proof.updated(proof.given, frozenset(write.columns))
        case Refresh():
            yield from _refreshed(table)
        case _:
            pass


def _above_policies(trigger: Trigger, table: Table) -> bool:
    """Whether its function writes with the rights of the table's owner, to whom policies do not apply."""
    return trigger.security_definer and trigger.function_owner == table.owner and not table.forced_row_security


def _refreshed(table: Table) -> Iterator[str]:
    found = re.search(r"\bgroup\s+by\s+(.*?)(\bhaving\b|\border\s+by\b|;|$)", table.definition or "", re.I | re.S)
    grouped = {part.rpartition(".")[2].strip(' "') for part in found[1].split(",")} if found else set[str]()
    for unique in table.uniques:
        if not grouped or not grouped <= set(unique.columns):
            yield f"refreshes {table.full_name}, whose rows {unique.name} may refuse"


class Proof:
    """One write before the constraints of its table."""

    def __init__(self, world: World, trigger: Trigger, table: Table, write: Write) -> None:
        self.world = world
        self.trigger = trigger
        self.table = table
        self.write = write
        self.home = world.home(trigger)
        self.body = world.bodies[trigger.oid]
        self.events = events_of(trigger, write) or trigger.events
        self.label = f"{write.via[-1].rpartition(':')[0]}." if write.via else ""
        self.columns = {column.name: column for column in table.columns}
        self.selects: dict[str, Select] = {}

    @cached_property
    def given(self) -> Mapping[str, str]:
        """The values that are given for columns, by name."""
        if isinstance(self.write, Update) and not self.write.values:
            return self._set_by(r"\bupdate\s+set\b")  # of a MERGE
        return dict(self._laid())

    def _set_by(self, words: str) -> dict[str, str]:
        text = getattr(self.write, "text", "")
        found = re.search(words, text, re.IGNORECASE)
        until = frozenset({"where", "returning", "when"})
        listed = items(text, found.end(), until=until)[0] if found else []
        pairs = [each.partition("=") for each in listed if not each.startswith("(")]
        return {unquote(left.strip()): right.strip() for left, _, right in pairs}

    def _laid(self) -> Iterator[tuple[str, str]]:
        if isinstance(self.write, Insert | Update):
            yield from zip(self.write.columns, self.write.values, strict=False)

    @cached_property
    def rows(self) -> list[Mapping[str, str]]:
        """The same for each row of VALUES."""
        write = self.write
        if not isinstance(write, Insert) or write.values or not write.columns:
            return [self.given]
        record = re.search(r"(?:values|select)\s*\(?\s*\(?([\w$]+)\)?\.\*\s*\)?", write.text, re.IGNORECASE)
        if record is not None and self.assignments(record[1].lower(), fields=True):
            return [{column: f"{record[1].lower()}.{quote_identifier(column)}" for column in self.columns}]
        found = after_keyword(write.text, 0, frozenset({"values"}))
        listed = items(write.text, found[1], until=frozenset({"on", "returning"}))[0] if found else []
        if self.is_merge:
            found = re.search(r"\binsert\s*(\([^()]*\)\s*)?values\s*", write.text, re.IGNORECASE)
            listed = items(write.text, found.end())[0][:1] if found else []
        rows = [items(text, 1)[0] for text in listed if text.startswith("(")]
        if not rows or any(len(row) != len(write.columns) for row in rows):
            return [self.given]
        return [dict(zip(write.columns, row, strict=True)) for row in rows]

    @property
    def is_merge(self) -> bool:
        return bool(re.match(r"\s*(with\b.*?)?merge\s+into\b", getattr(self.write, "text", ""), re.I | re.S))

    @cached_property
    def by_itself(self) -> frozenset[str]:
        """Columns that the table's own triggers fill before a row is written."""
        found: set[str] = set()
        for trigger in self.world.triggers_on[self.table.oid]:
            if trigger.timing is Timing.BEFORE and trigger.level is TriggerLevel.ROW:
                fields = {fact.field for fact in self.world.bodies[trigger.oid].new_assignments}
                found |= set(self.columns) if "*" in fields else fields
        return frozenset(found)

    # What a column holds ---------------------------------------------------------------------------------------------

    def value(self, name: str, scope: _Row) -> Outcome:
        """What a column of the written row may hold."""
        column = self.columns.get(name)
        if column is None:
            return ANYTHING
        if name in self.by_itself or column.identity:
            return THERE
        if column.generated:
            return outcome(column.expression, scope) if column.expression else ANYTHING
        text = self.text_of(column, scope.given)
        if text is None:
            if isinstance(self.write, Insert) and not self._named(name):
                return NOTHING
            changed = isinstance(self.write, Insert) or name in scope.changed
            return ANYTHING if changed or not column.not_null else THERE
        return outcome(text, scope.trigger)

    def _named(self, name: str) -> bool:
        write = self.write
        whole = isinstance(write, Insert) and re.search(r"\bdefault\s+values\b", write.text, re.IGNORECASE)
        return isinstance(write, Insert | Update) and name in write.columns and not whole

    def text_of(self, column: Column, given: Mapping[str, str]) -> str | None:
        """The SQL of a column's value: what is given, or its default."""
        text = given.get(column.name)
        if text is not None and text.strip().lower() != "default":
            return text
        if isinstance(self.write, Insert) and (text is not None or not self._named(column.name)):
            line = self.world.atlas.domain_line(column.type)
            return column.default or next((each.default for each in line if each.default), None)
        return "null" if text is not None and column.default is None else column.default if text is not None else None

    def scopes(self, given: Mapping[str, str], changed: frozenset[str] = frozenset()) -> Iterator[_Row]:
        for event in self.events:
            yield _Row(self, event, given, changed)

    # Inserts ---------------------------------------------------------------------------------------------------------

    def inserted(self) -> Iterator[str]:
        """What may refuse the rows of an INSERT."""
        write = self.write
        assert isinstance(write, Insert)
        name = f"inserts into {self.table.full_name}"
        every = [scope for given in self.rows for scope in self.scopes(given)]
        for column in self.table.columns:
            if self._must_be_there(column) and any(None in self.value(column.name, scope) for scope in every):
                yield f"{name}, where {column.name} must not be NULL"
        yield from self._wide_enough(name, every)
        yield from self._checked(name, every)
        for unique in self.world.atlas.uniques(self.table):
            if not self._settled(unique) and not all(self._once(unique, given) for given in self.rows):
                listed = ", ".join((*unique.columns, *((unique.expressions,) if unique.expressions else ())))
                yield f"{name}, where {unique.name} allows {listed} once"
        for key in self.table.foreign_keys:
            if any(not self._refers(key, scope) for scope in every):
                yield f"{name} ({', '.join(key.columns)}), where {key.name} asks for a row that may not be there"
        if write.on_conflict is OnConflict.UPDATE and write.updates:
            given = self._set_by(r"\bdo\s+update\s+set\b")
            yield from self.updated(given, frozenset(write.updates))

    def _must_be_there(self, column: Column) -> bool:
        return column.not_null or any(each.not_null for each in self.world.atlas.domain_line(column.type))

    def _wide_enough(self, name: str, every: Sequence[_Row]) -> Iterator[str]:
        """Columns that are too narrow for what is copied from the trigger's row, or for a text that is known."""
        types = {column.name: column.type for column in self.home.columns} if self.home is not None else {}
        for column in self.table.columns:
            texts = {text for scope in every if (text := self.text_of(column, scope.given)) is not None}
            if column.generated or column.name in self.by_itself:
                continue
            for copied in dict.fromkeys(self.copy_of(text) for text in sorted(texts)):
                if copied is not None and is_too_large(types.get(copied, ""), column.type):
                    yield f"{name}, where {column.name} ({column.type}) is too narrow for {copied} ({types[copied]})"
            letters = _letters(column.type)
            if letters is not None and texts and self._named(column.name):
                for piece in {piece for scope in every for piece in self.value(column.name, scope)}:
                    if isinstance(piece, str) and len(piece.rstrip()) > letters:
                        yield f"{name}, where {column.name} ({column.type}) is too narrow for '{piece}'"

    def _checked(self, name: str, every: Iterable[_Row], changed: frozenset[str] | None = None) -> Iterator[str]:
        scopes = list(every)
        for check in self.world.atlas.checks(self.table):
            text = check.expression or condition(check.definition)
            touched = not check.columns or changed is None or changed.intersection(self._beneath(check.columns))
            if not touched or (scopes and self._copied(check, text, scopes[0].given)):
                continue
            if any("false" in _truths(outcome(text, scope.about(check))) for scope in scopes):
                yield f"{name}, which {check.name} may refuse"

    def _beneath(self, names: Iterable[str]) -> frozenset[str]:
        """Columns, and for generated ones those that they are made of."""
        found = set(names)
        for name in names:
            column = self.columns.get(name)
            if column is not None and column.expression:
                found |= self.named_in(column.expression)
        return frozenset(found)

    def named_in(self, text: str) -> set[str]:
        words = {unquote(token.text) for token in tokens(text) if token.kind in ("word", "quoted")}
        return words if self.table.name in words else words.intersection(self.columns)

    def _copied(self, check: Check, text: str, given: Mapping[str, str]) -> bool:
        """Whether what it looks at are copies of columns under the same condition in the trigger's own table."""
        if self.home is None or not check.columns:
            return False
        values = {name: self.copy_of(given.get(name, "")) for name in check.columns}
        if any(value is None for value in values.values()):
            return False
        said = _plain(text, {name: str(value) for name, value in values.items()})
        return any(
            said == _plain(each.expression or condition(each.definition)) for each in self.world.atlas.checks(self.home)
        )

    def copy_of(self, text: str) -> str | None:
        """The column of the trigger's row that an expression copies, be it through a variable."""
        column = _home_column(text)
        first, _, field = parsed(text).text.partition(".") if text and parsed(text).kind == "name" else ("", "", "")
        if column is not None or not first:
            return column
        set_to = [_plain(each.text) for each in self.assignments(first, fields=True)]
        if field:
            rows = {"new", "old", "coalesce new , old", "coalesce old , new"}
            return field if set_to and rows.issuperset(set_to) else None
        copies = {_home_column(each.text) for each in self.assignments(first)}
        return copies.pop() if len(copies) == 1 else None

    def _settled(self, unique: Unique) -> bool:
        """Whether ON CONFLICT, or a handler, takes what a unique index would refuse."""
        write = self.write
        if isinstance(write, Insert) and write.drops_duplicates and not unique.exclusion:
            return True
        if isinstance(write, Insert) and self.is_merge:  # what matches is not inserted
            found = re.search(r"\bon\b(.*?)\bwhen\b", write.text, re.I | re.S)
            return found is not None and set(unique.columns) <= set(split_names(found[1])) and not unique.expressions
        if not isinstance(write, Insert) or write.on_conflict is OnConflict.NONE:
            return False
        found = _CONFLICT.search(write.text)
        if found is None or (found[1] is None and found[2] is None):
            return True
        if found[2] is not None:
            return unquote(found[2]) == unique.name
        named = {unquote(part.split()[0]) for part in found[1].split(",") if part.split()}
        return named == set(unique.columns) and not unique.expressions

    def _once(self, unique: Unique, given: Mapping[str, str]) -> bool:
        """Whether no other row can have the values that a unique index would refuse to take again."""
        if unique.condition and all(
            "true" not in _truths(outcome(unique.condition, scope)) for scope in self.scopes(given)
        ):
            return True
        if unique.exclusion:
            return False
        if all(any(self.value(name, scope) == NOTHING for name in unique.columns) for scope in self.scopes(given)):
            return not unique.primary
        values: list[str] = []
        for name in unique.columns:
            column = self.columns.get(name)
            text = self.text_of(column, given) if column is not None and not column.generated else None
            if column is not None and column.identity and name not in given:
                return True
            if text is not None and (self.is_drawn(text) or self._is_moment(name, text)):
                return True
            values += [text] if text is not None else []
        return self._is_own_key(values)

    def is_drawn(self, text: str, depth: int = 0) -> bool:
        """Whether a value comes from a generator: never twice the same."""
        node = parsed(text)
        while node.kind == "cast":
            node = node.parts[0]
        if node.kind == "call" and node.text in _DRAWS:
            return True
        if node.kind == "operator" and node.text == "||":
            return any(part.kind == "call" and part.text in _DRAWS for part in node.parts)
        if node.kind != "name" or depth > _DEEPEST:
            return False
        first, _, field = node.text.partition(".")
        rows = [self.item_of(each, field) for each in self.assignments(first)] if field else []
        if rows:
            return all(self.is_drawn(text, depth + 1) for text in rows)
        inserts = [write for _, write in self.all_inserts if node.text in write.returning_into]
        if inserts:
            return True
        set_to = self.assignments(node.text)
        return bool(set_to) and all(not each.selected and self.is_drawn(each.text, depth + 1) for each in set_to)

    def item_of(self, each: Assignment, column: str) -> str:
        """The value of a column in ``variable := row(…)``, for a row of the written table; empty where it is none."""
        columns = list(self.columns)
        text = each.text.strip()
        if text[:3].lower() != "row" or "(" not in text or column not in columns:
            return ""
        listed = items(text, text.index("(") + 1)[0]
        return listed[columns.index(column)] if columns.index(column) < len(listed) else "null"

    @cached_property
    def all_inserts(self) -> list[tuple[Table | None, Insert]]:
        return [(self.world.table(each), each) for each in self.body.inserts]

    def assignments(self, name: str, *, fields: bool = False) -> list[Assignment]:
        """What sets a variable, or also what sets a field of it."""
        names = (f"{self.label}{name}", name)
        return [
            each
            for each in self.body.assignments
            if each.variable in names or (fields and each.variable.rpartition(".")[0] in names)
        ]

    def _is_moment(self, name: str, text: str) -> bool:
        """Whether it is a log's time of day, which only two rows of one moment share."""
        kind = self.columns[name].type
        is_time = kind.startswith(("timestamp", "tstz", "tsr"))
        return is_time and self.world.log(self.table).is_log and not _COARSE.search(text)

    def _is_own_key(self, values: Iterable[str]) -> bool:
        """Whether values hold a copy of the row's own key, which is made once and never comes again."""
        home = self.home
        if home is None or not home.primary_key or Event.UPDATE in self.events or len(self.events) != 1:
            return False
        copies = {_home_column(value) for value in values}
        if not copies.issuperset(home.primary_key):
            return False
        columns = {column.name: column for column in home.columns}
        return any(
            columns[name].identity or self.is_drawn(columns[name].default or "") or _is_surrogate(columns[name])
            for name in home.primary_key
        )

    def _refers(self, key: ForeignKey, scope: _Row) -> bool:
        """Whether the row that a foreign key asks for is there, or none is asked for."""
        if any(self.value(name, scope) == NOTHING for name in key.columns):
            return True
        texts = [scope.given.get(name) for name in key.columns]
        if all(text is None for text in texts) and not isinstance(self.write, Insert):
            return True
        if key.referenced_oid == self.table.oid:
            return True
        owner = self.world.atlas.tables.get(key.referenced_oid)
        return all(text is not None and self._is_key_of(text, owner) for text in texts)

    def _is_key_of(self, text: str, owner: Table | None, depth: int = 0) -> bool:
        node = parsed(text)
        while node.kind == "cast":
            node = node.parts[0]
        if node.kind in ("literal", "null"):
            return True
        column = _home_column(text)
        if column is not None:
            return (
                self.home is not None
                and owner is not None
                and (self.home.oid == owner.oid or self._leads_to(self.home, column, owner.oid))
            )
        if node.kind == "call" and owner is not None and self._makes(node.text, owner):
            return True
        if node.kind == "call" and node.text == "coalesce":
            return all(self._is_key_of(_said(part), owner, depth + 1) for part in node.parts)
        if node.kind == "call" and node.text == "currval" and owner is not None:
            names = self.world.sequences[owner.oid]
            drawn = any(table is not None and table.oid == owner.oid for table, _ in self.all_inserts)
            return drawn and bool(names & frozenset(sequence_names(text)))
        if owner is not None and node.kind == "query":
            select = Select.of(node.text, self)
            if select.items and self._refers_to(select, split_names(select.items[0]), owner):
                return True
            return bool(re.search(rf'\bfrom\s+([\w$]+\.)?"?{re.escape(owner.name)}\b', node.text, re.IGNORECASE))
        if node.kind != "name" or depth > _DEEPEST or owner is None:
            return False
        if self._is_selected_key(tuple(part.text for part in node.parts), owner):
            return True
        if any(
            table is not None and table.oid == owner.oid and node.text in write.returning_into
            for table, write in self.all_inserts
        ):
            return True
        set_to = self.assignments(node.text)
        return bool(set_to) and all(
            self._selects_key(each, owner) if each.selected else self._is_key_of(each.text, owner, depth + 1)
            for each in set_to
        )

    def _makes(self, function: str, owner: Table) -> bool:
        """Whether a function that is called inserts the row itself, whose key it gives."""
        name = f".{function.rpartition('.')[2]}:"
        return any(
            table is not None and table.oid == owner.oid and any(name in step for step in write.via)
            for table, write in self.all_inserts
        )

    def _selects_key(self, each: Assignment, owner: Table) -> bool:
        select = Select.of(each.text, self)
        item = select.items[self.place_of(each)] if self.place_of(each) < len(select.items) else ""
        return self._refers_to(select, tuple(split_names(item)), owner)

    def _is_selected_key(self, parts: tuple[str, ...], owner: Table) -> bool:
        """Whether a value is selected from where it refers to a table, or is that table's own."""
        write = self.write
        if isinstance(write, Insert) and write.source and not self.assignments(parts[0]):
            return self._refers_to(Select.of(write.source, self), parts, owner)
        set_to = self.assignments(parts[0])
        return (
            len(parts) == 2
            and bool(set_to)
            and all(
                each.selected and self._refers_to(Select.of(each.text, self), self._item(each, parts[1]), owner)
                for each in set_to
            )
        )

    def _item(self, each: Assignment, column: str) -> tuple[str, ...]:
        names = (split_names(item) for item in Select.of(each.text, self).items)
        return next((parts for parts in names if parts and parts[-1] == column), (column,))

    def _refers_to(self, select: Select, parts: tuple[str, ...], owner: Table) -> bool:
        table = select.table_of(parts)
        return table is not None and (table.oid == owner.oid or self._leads_to(table, parts[-1], owner.oid))

    def place_of(self, each: Assignment) -> int:
        """Which item of its query a variable is set to."""
        together = [other for other in self.body.assignments if (other.line, other.text) == (each.line, each.text)]
        return next(place for place, other in enumerate(together) if other is each)

    def leads_to(self, column: str, table: Table) -> bool:
        """Whether a column of the trigger's own row refers to a table's rows, so that one is there."""
        return self.home is not None and (self.home.oid == table.oid or self._leads_to(self.home, column, table.oid))

    def _leads_to(self, table: Table, column: str, oid: int, depth: int = 0) -> bool:
        for key in table.foreign_keys:
            if column in key.columns:
                if key.referenced_oid == oid:
                    return True
                above = self.world.atlas.tables.get(key.referenced_oid)
                further = dict(zip(key.columns, key.referenced_columns, strict=False))[column]
                if above is not None and depth < _DEEPEST and self._leads_to(above, further, oid, depth + 1):
                    return True
        return False

    # Updates ---------------------------------------------------------------------------------------------------------

    def updated(self, given: Mapping[str, str], changed: frozenset[str]) -> Iterator[str]:
        """What may refuse the new values of an UPDATE."""
        name = f"updates {self.table.full_name} ({', '.join(sorted(changed))})"
        every = [_Row(self, event, given, changed, update=True) for event in self.events]
        for column in self.table.columns:
            named = column.name in changed and column.name not in self.by_itself
            if named and self._must_be_there(column) and any(None in scope.new_value(column) for scope in every):
                yield f"{name}, where {column.name} must not be NULL"
        yield from self._wide_enough(name, [each for each in every if given])
        yield from self._checked(name, every, changed)
        for unique in self.world.atlas.uniques(self.table):
            texts = (unique.expressions, unique.condition)
            beneath = self._beneath(unique.columns).union(*(self.named_in(text) for text in texts if text))
            if not changed.intersection(beneath) and self.table.name not in beneath:
                continue
            if unique.condition and all("true" not in _truths(outcome(unique.condition, each)) for each in every):
                continue
            if any(all(scope.name((column,)) == NOTHING for scope in every) for column in unique.columns):
                continue
            kind = "exclusion constraint" if unique.exclusion else "unique index"
            yield f"{name}, under the {kind} {unique.name}"
        for key in self.table.foreign_keys:
            if changed.intersection(key.columns) and any(not self._refers(key, scope) for scope in every):
                yield f"{name}, where {key.name} asks for a row that may not be there"


class Select:
    """A query, cut into its list, the tables that it looks at, and its condition."""

    def __init__(self, text: str, proof: Proof) -> None:
        self.outer = bool(_OUTER.search(text))
        found = after_keyword(text, 0, frozenset({"select"}))
        self.items = items(text, found[1], until=_AFTER_LIST)[0] if found else []
        self.where = ""
        start = after_keyword(text, found[1] if found else 0, frozenset({"where"}))
        if start is not None:
            end = after_keyword(text, start[1], _AFTER_WHERE)
            self.where = text[start[1] : end[1] - len(end[0]) if end else len(text)].strip().rstrip(";")
        self.tables: dict[str, Table | None] = {}
        self.elements: set[str] = set()
        first = after_keyword(text, found[1] if found else 0, frozenset({"from", "using"}))
        for match in _FROM.finditer(text, first[1] - len(first[0]) if first else len(text)):
            schema, _, name = match[2].replace('"', "").lower().rpartition(".")
            alias = (match[3] or name).lower()
            is_transition = name in (proof.trigger.new_table, proof.trigger.old_table)
            table = proof.home if is_transition else _found(proof, schema, name)
            if table is not None or match[1] != ",":
                self.tables[name if alias in _NO_ALIAS else alias] = table
        for match in re.finditer(r"\bunnest\s*\([^()]*\)\s*(?:as\s+)?([\w$]+)", text, re.IGNORECASE):
            self.elements.add(match[1].lower())
        self.derived = dict(_derived(text))

    @staticmethod
    def of(text: str, proof: Proof) -> Select:
        """The query of a text, cut once for each proof. (A cache of its own would outlive the worlds of many scans.)"""
        if text not in proof.selects:
            proof.selects[text] = Select(text, proof)
        return proof.selects[text]

    def table_of(self, parts: tuple[str, ...]) -> Table | None:
        """The table of a column's name."""
        if len(parts) == 2:
            return self.tables.get(parts[0])
        known = [table for table in self.tables.values() if table is not None]
        having = [table for table in known if any(column.name == parts[-1] for column in table.columns)]
        return having[0] if len(having) == 1 and len(parts) == 1 else None

    def item(self, name: str) -> str | None:
        """The item of the list that goes by a name."""
        for text in self.items:
            listed = list(tokens(text))
            if listed and listed[-1].kind in ("word", "quoted") and unquote(listed[-1].text) == name:
                if len(listed) > 2 and listed[-2].text.lower() == "as":
                    return text[: listed[-3].end]
                alone = len(listed) == 1 or listed[-2].text == "."
                return text if alone else text[: listed[-2].end]
        return None


_LARGEST = {"smallint": 4.5, "integer": 9.3, "bigint": 18.9}
_NUMBER_TYPE = re.compile(r"numeric(?:\((\d+),(-?\d+)\))?|real|double precision")
_TEXT_TYPE = re.compile(r"(?:character varying|character)\((\d+)\)")


def is_too_large(given: str, kind: str) -> bool:
    """Whether a value of one type may be too long or too large for another, both as format_type() prints them."""
    letters = _letters(kind)
    if letters is not None:
        free = given in ("text", "character varying", "citext", "name")
        return free or (_letters(given) or 0) > letters
    digits, wanted = _digits(given), _digits(kind)
    return digits is not None and wanted is not None and digits > wanted


def _letters(kind: str) -> int | None:
    found = _TEXT_TYPE.fullmatch(kind)
    return int(found[1]) if found else None


def _digits(kind: str) -> float | None:
    """How many digits a number of this type has before its point at most; None for what is no number."""
    if kind in _LARGEST:
        return _LARGEST[kind]
    found = _NUMBER_TYPE.fullmatch(kind)
    if found is None:
        return None
    return int(found[1]) - int(found[2]) if found[1] else 1e9


def _found(proof: Proof, schema: str, name: str) -> Table | None:
    path = proof.world.inventory.search_path
    return proof.world.atlas.find_table(schema or None, name, path, proof.trigger.schema)


def _derived(text: str) -> Iterator[tuple[str, str]]:
    """The subqueries of a text that go by a name, as FROM items or by WITH."""
    listed = list(tokens(text))
    for place, token in enumerate(listed[:-1]):
        if token.text != "(" or listed[place + 1].text.lower() != "select":
            continue
        depth, end = 0, place
        while end < len(listed):
            depth += {"(": 1, ")": -1}.get(listed[end].text, 0) if listed[end].kind == "other" else 0
            if depth == 0:
                break
            end += 1
        inner = text[token.end : listed[min(end, len(listed) - 1)].start]
        after = [each for each in listed[end + 1 : end + 3] if each.text.lower() != "as"]
        before = [each.text.lower() for each in listed[max(0, place - 2) : place]]
        if len(before) == 2 and before[1] == "as":
            yield before[0], inner
        elif after and after[0].kind in ("word", "quoted"):
            yield unquote(after[0].text), inner


class _Row:
    """Names as a constraint sees them: columns of the row that is being written, for one event of the trigger."""

    def __init__(
        self, proof: Proof, event: Event, given: Mapping[str, str], changed: frozenset[str], *, update: bool = False
    ) -> None:
        self.proof = proof
        self.given = given
        self.changed = changed
        self.update = update
        self.trigger = _Values(proof, event, given)
        self.checked: tuple[str, ...] = ()

    def about(self, check: Check) -> _Row:
        """The same for a check, whose VALUE is the column of a domain."""
        found = _Row(self.proof, self.trigger.event, self.given, self.changed, update=self.update)
        found.checked = check.columns
        return found

    def new_value(self, column: Column) -> Outcome:
        if not self.update:
            return self.proof.value(column.name, self)
        if column.generated:
            return outcome(column.expression, self) if column.expression else ANYTHING
        if column.name not in self.changed:
            return THERE if column.not_null else ANYTHING
        text = self.given.get(column.name)
        if text is None:
            return ANYTHING
        if text.strip().lower() == "default":
            text = column.default or "null"
        return outcome(text, self.trigger)

    def name(self, parts: tuple[str, ...]) -> Outcome:
        name = self.checked[0] if parts == ("value",) and len(self.checked) == 1 else parts[-1]
        column = self.proof.columns.get(name)
        return self.new_value(column) if column is not None and len(parts) == 1 else ANYTHING

    def argument(self, index: str) -> Outcome:
        return ANYTHING

    def query(self, text: str) -> Outcome:
        return ANYTHING

    def call(self, name: str, given: Sequence[Outcome]) -> Outcome:
        return ANYTHING

    def within_text(self) -> Scope:
        return self


class _Parameters:
    """Names within a SQL function, whose parameters are known."""

    def __init__(self, around: _Values, function: Function, given: Sequence[Outcome]) -> None:
        self.around = around
        self.known = dict(zip(function.arguments, given, strict=False))
        self.known |= {f"${place}": value for place, value in enumerate(given, 1)}

    def name(self, parts: tuple[str, ...]) -> Outcome:
        return self.known.get(parts[0], ANYTHING) if len(parts) == 1 else ANYTHING

    def argument(self, index: str) -> Outcome:
        return ANYTHING

    def query(self, text: str) -> Outcome:
        # What is put together of the elements of an array is there when they are.
        joined = re.match(r"\s*select\s+(string_agg|array_agg|jsonb_agg)\s*\(", text, re.IGNORECASE)
        return THERE if joined and "unnest" in text and not re.search(r"\bwhere\b", text, re.I) else ANYTHING

    def call(self, name: str, given: Sequence[Outcome]) -> Outcome:
        return self.around.call(name, given)

    def within_text(self) -> Scope:
        return self


class _Values:
    """Names as the trigger's own statement sees them: its variables, its row, the tables that it selects from."""

    def __init__(
        self, proof: Proof, event: Event, given: Mapping[str, str], seen: tuple[str, ...] = (), *, text: bool = False
    ) -> None:
        self.proof = proof
        self.event = event
        self.given = given
        self.seen = seen
        self.text = text
        self.around = surroundings(proof.trigger, event)

    @cached_property
    def there(self) -> frozenset[str]:
        """Names that the conditions on the way found not to be NULL."""
        found: set[str] = set()
        for guard in self.proof.write.guards:
            found |= null_unless(guard.text) if guard.negated else never_null(guard.text)
        if self.proof.trigger.when:
            found |= never_null(self.proof.trigger.when)
        where = getattr(self.proof.write, "where", "")
        source = getattr(self.proof.write, "source", "")
        where = Select.of(source, self.proof).where if source else where
        return frozenset(found | (never_null(where) if where else set[str]()))

    def name(self, parts: tuple[str, ...]) -> Outcome:
        found = self._named(parts)
        return found - NOTHING or THERE if ".".join(parts) in self.there else found

    def _named(self, parts: tuple[str, ...]) -> Outcome:
        first = parts[0]
        if len(parts) == 1 and first in _KNOWN and not self.proof.assignments(first):
            return frozenset(each if isinstance(each, str) else None for each in self.around[first])
        if len(parts) == 1 and first.startswith("tg_"):
            return THERE
        if first in ("new", "old"):
            if self.around[first] == (None,):
                return NOTHING
            return THERE if len(parts) == 1 or parts[1] == "*" else _column(self.proof.home, parts[1])
        if first == "excluded" and len(parts) == 2:
            return outcome(self.given_row[parts[1]], self) if parts[1] in self.given_row else ANYTHING
        if ".".join(parts) in self.seen:  # what a variable is made of itself adds nothing
            return frozenset()
        if len(self.seen) > _DEEPEST:
            return ANYTHING
        if self.proof.assignments(first, fields=True) or self._returned(first):
            return self._variable(first, parts[1:])
        return self._selected(parts)

    @cached_property
    def given_row(self) -> Mapping[str, str]:
        return self.proof.given

    def argument(self, index: str) -> Outcome:
        if not index.isdigit():
            return ANYTHING
        arguments = self.proof.trigger.arguments
        return frozenset({arguments[int(index)]}) if int(index) < len(arguments) else NOTHING

    def query(self, text: str) -> Outcome:
        """A scalar subquery: there for sure when it is an aggregate over all rows, or looks at no table."""
        found = after_keyword(text, 0, frozenset({"select"}))
        if found is None or re.search(r"\b(group\s+by|having|limit|offset|union|except|intersect)\b", text, re.I):
            return ANYTHING
        listed = items(text, found[1], until=frozenset({"into", "from", "where"}))[0]
        if len(listed) != 1:
            return ANYTHING
        node = parsed(listed[0])
        plain = not re.search(r"\b(from|where)\b", text, re.IGNORECASE)
        sums = node.kind == "call" and (
            node.text == "count" or (node.text == "coalesce" and _aggregates(node.parts[0].text))
        )
        return outcome(listed[0], self) if plain or sums else ANYTHING

    def _returned(self, name: str) -> bool:
        return any(
            name in write.returning_into and write.on_conflict is not OnConflict.NOTHING
            for _, write in self.proof.all_inserts
        )

    def _variable(self, name: str, further: tuple[str, ...]) -> Outcome:
        """What a variable may hold: every value that it is given, and NULL unless one is given on every way."""
        proof = self.proof
        if self._returned(name):
            return THERE
        last = proof.write.line
        whole = ".".join((name, *further))
        inner = _Values(proof, self.event, self.given, (*self.seen, whole), text=self.text)
        fields = (f"{proof.label}{whole}", whole)
        possible = [
            each
            for each in proof.assignments(name, fields=True)
            if feasible(each.guards, self.around)
            and (each.line <= last or proof.write.loop or proof.label)
            and (not further or each.variable in fields or not each.variable.rpartition(".")[0].endswith(name))
            and (further or each.variable in (f"{proof.label}{name}", name))
        ]
        found: set[Piece] = set()
        for each in possible:
            direct = not further or each.variable in fields
            found |= inner.assigned(each, () if direct else further)
        # What is made of the variable itself is no beginning: a variable that nobody set is NULL.
        sure = [
            each
            for each in possible
            if not each.handler and (not each.loop or proof.write.loop) and name not in each.names
        ]
        if not _covered(sure, self._conditions(), self.around):
            found.add(None)
        return frozenset(found) or (frozenset() if possible else NOTHING)

    def assigned(self, each: Assignment, further: tuple[str, ...]) -> Outcome:
        """What an assignment makes of a variable, or of a field of it."""
        text = each.text.strip()
        if each.selected:
            return self._looked_up(each, further)
        if not further:
            return outcome(text, self)
        if text.lower() in ("new", "old"):
            return self.name((text.lower(), *further))
        item = self.proof.item_of(each, further[0])
        return outcome(item, self) if item else ANYTHING

    def _looked_up(self, each: Assignment, further: tuple[str, ...]) -> Outcome:
        """A value that a query gave. A row that the trigger's own row refers to is there, and so are its columns.

        What is only a part of a text (``name || ' did it'``) is taken for there, too.
        """
        select = Select.of(each.text, self.proof)
        if further:
            item = select.item(further[0]) or ".".join(further)
        else:
            place = self.proof.place_of(each)
            item = select.items[place] if place < len(select.items) else ""
        if len(select.items) == 1 and not further:
            known = self.query(each.text)
            if None not in known:
                return known
        if not item or select.outer:
            return ANYTHING
        variable = re.escape(each.variable.rpartition(".")[2])
        found = self.proof.write.loop and re.search(rf"\bfor\s+{variable}\s+in\b", self.proof.trigger.source, re.I)
        if found and item in never_null(select.where):
            return THERE
        parts = split_names(item)
        table = select.table_of(parts) if parsed(item).kind == "name" else None
        if table is None or None in _column(table, parts[-1]):
            return ANYTHING
        sure = (
            bool(found)
            or self.text
            or any(
                self.proof.leads_to(column, seen)
                for seen in select.tables.values()
                if seen is not None
                for column in re.findall(r"=\s*\(?(?:new|old)\)?\.([\w$]+)", select.where, re.IGNORECASE)
            )
        )
        return THERE if sure else ANYTHING

    def within_text(self) -> Scope:
        return _Values(self.proof, self.event, self.given, self.seen, text=True)

    def call(self, name: str, given: Sequence[Outcome]) -> Outcome:
        """What a SQL function of one expression gives."""
        schema, _, short = name.rpartition(".")
        found = self.proof.world.atlas.find_functions(schema or None, short, len(given), ())
        if len(found) != 1 or found[0].language != "sql" or name in self.seen or len(self.seen) > _DEEPEST:
            return ANYTHING
        text = (found[0].sql_body or found[0].source).strip().removesuffix(";")
        text = re.sub(r"^(begin\s+atomic\s+)?(select|return)\s+", "", text, flags=re.IGNORECASE)
        inner = _Values(self.proof, self.event, self.given, (*self.seen, name))
        return outcome(text, _Parameters(inner, found[0], given))

    def _conditions(self) -> frozenset[tuple[str, bool]]:
        return frozenset((guard.text, guard.negated) for guard in self.proof.write.guards)

    def _selected(self, parts: tuple[str, ...]) -> Outcome:
        """A column of a table that the statement selects from, or (in an UPDATE) of the table that it writes."""
        write = self.proof.write
        text = getattr(write, "text", "")
        source = write.source if isinstance(write, Insert) else ""
        if parts[-1] in self.proof.columns and not source:
            alias = re.search(r'\b(?:update|into)\s+(?:only\s+)?[\w$."]+\s+(?:as\s+)?([\w$]+)', text, re.IGNORECASE)
            own = (self.proof.table.name, alias[1].lower() if alias else "")
            if parts[0] in own or (len(parts) == 1 and " from " not in " ".join(text.lower().split())):
                return _column(self.proof.table, parts[-1])
        select = Select.of(source or text, self.proof)
        if select.outer:
            return ANYTHING
        if parts[0] in select.elements:
            return THERE
        if len(parts) == 2 and parts[0] in select.derived:
            inner = select.derived[parts[0]]
            item = Select.of(inner, self.proof).item(parts[1])
            grouped = re.search(r"\bgroup\s+by\b", inner, re.IGNORECASE)
            plain = item is not None and (grouped or not _aggregates(parsed(item).text) or "count" in item.lower())
            return outcome(item, self) if item is not None and plain else ANYTHING
        return _column(select.table_of(parts), parts[-1])


def _covered(
    given: list[Assignment], known: frozenset[tuple[str, bool]], around: Mapping[str, object], depth: int = 0
) -> bool:
    """Whether one of these assignments is made on every way that leads here."""

    def open_guards(each: Assignment) -> list[Guard]:
        return [
            guard
            for guard in each.guards
            if (guard.text, guard.negated) not in known and holds(guard.test, around) is not (not guard.negated)  # type: ignore[arg-type]
        ]

    possible = [each for each in given if not any((g.text, not g.negated) in known for g in each.guards)]
    waiting = [(each, open_guards(each)) for each in possible]
    if any(not guards for _, guards in waiting):
        return True
    if not waiting or depth > _DEEPEST:
        return False
    guard = waiting[0][1][0]
    return all(_covered(possible, known | {(guard.text, negated)}, around, depth + 1) for negated in (True, False))


def _column(table: Table | None, name: str) -> Outcome:
    found = next((column for column in table.columns if column.name == name), None) if table is not None else None
    return THERE if found is not None and found.not_null else ANYTHING


def _truths(value: Outcome) -> Outcome:
    """A condition's outcome, where something that is there may be true or false."""
    return frozenset({"true", "false", None}) if value & THERE else value


def _home_column(text: str) -> str | None:
    """The column of the trigger's row that an expression copies, cast or not."""
    node = parsed(text) if text else None
    while node is not None and node.kind == "cast":
        node = node.parts[0]
    if node is not None and node.kind == "call" and node.text == "coalesce" and len(node.parts) == 2:
        copies = {_home_column(_said(part)) for part in node.parts}
        return copies.pop() if len(copies) == 1 else None
    if node is None or node.kind != "name" or len(node.parts) != 2 or node.parts[0].text not in ("new", "old"):
        return None
    return node.parts[1].text


def _said(node: object) -> str:
    text = getattr(node, "text", "")
    return (
        text if getattr(node, "kind", "") == "name" else "null" if getattr(node, "kind", "") == "null" else f"'{text}'"
    )


def _aggregates(name: str) -> bool:
    return name in ("sum", "max", "min", "avg", "count", "string_agg", "array_agg", "jsonb_agg", "json_agg", "bool_or")


def _is_surrogate(column: Column) -> bool:
    return column.type in ("integer", "bigint", "smallint", "uuid")


def _plain(text: str, names: Mapping[str, str] | None = None) -> str:
    """A condition without blanks and brackets, its columns under other names."""
    pieces = [
        (names or {}).get(unquote(token.text), token.text.lower()) if token.kind in ("word", "quoted") else token.text
        for token in tokens(text)
        if token.text not in "()"
    ]
    return " ".join(pieces)
