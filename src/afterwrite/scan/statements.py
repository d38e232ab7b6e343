"""What a statement trigger would do otherwise once it is deferred: it then runs once a transaction, with all its rows.

::

    statement 1 ─▶ body(rows 1)                    ╲
    statement 2 ─▶ body(rows 2)     becomes         ▶ body(rows 1 + rows 2), after the commit
    statement 3 ─▶ body(rows 3)                    ╱

What adds up row by row, or in sums, comes to the same. What counts its runs, weighs the rows of one statement together,
sees rows of later statements, or needs each row once does not. Pure; where it cannot be told, it is said to differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from afterwrite.scan.catalog import Table, Trigger
from afterwrite.scan.facts import (
    Assignment,
    Body,
    Discard,
    Fact,
    Guard,
    Insert,
    OnConflict,
    OnTable,
    Read,
    Update,
)
from afterwrite.scan.outcomes import Node, parsed
from afterwrite.scan.tokens import after_keyword, items, tokens, uncommented, unquote


class Difference(Enum):
    """In which way a body can tell a transaction from a statement."""

    COUNTS = auto()
    WEIGHS = auto()
    LATER = auto()
    TWICE = auto()


class Told(NamedTuple):
    """A difference, where it is, and in words."""

    difference: Difference
    fact: Fact
    text: str


_ADDS_UP = re.compile(r"\b(count|sum)\s*\(", re.IGNORECASE)
_WEIGHS = re.compile(
    r"\b(avg|min|max|array_agg|string_agg|jsonb?_agg\w*|jsonb?_object_agg\w*|xmlagg|bool_(?:and|or)|every|bit_(?:and|or)"
    r"|stddev\w*|var(?:iance|_pop|_samp)|percentile_\w+|mode|corr|any_value|range_agg)\s*\(|\bcount\s*\(\s*distinct\b"
    r"|\bsum\s*\(\s*distinct\b|\b(limit|fetch\s+first|offset)\b|\bover\s*\(|\bover\s+\w|\b(distinct\s+on)\b",
    re.IGNORECASE,
)
_EXISTS = re.compile(r"^\(*\s*exists\s*\(", re.IGNORECASE)
_IS_ANY = re.compile(r"^\(*.*\)?\s*(?:>|<>|!=)\s*0\s*\)*$", re.DOTALL)
_GROUPS = re.compile(r"\bgroup\s+by\b|\bselect\s+distinct\b", re.IGNORECASE)


class Batch:
    """The body of one statement trigger, and the transition tables that it looks at."""

    def __init__(self, trigger: Trigger, body: Body, home: Table | None) -> None:
        self.trigger = trigger
        self.body = body
        self.home = home
        self.rows = {name.lower() for name in (trigger.old_table, trigger.new_table) if name}

    def differences(self) -> Iterator[Told]:
        """Everything by which it can tell, in the order of the body."""
        found = [*self._writes(), *self._conditions(), *self._told()]
        yield from sorted(dict.fromkeys(found), key=lambda each: each.fact.line)

    # What a text looks at ---------------------------------------------------------------------------------------------

    def names_rows(self, text: str) -> set[str]:
        """The transition tables that a text names."""
        return {word for word in _words(text) if word in self.rows}

    def weighed(self, text: str) -> str:
        """What a text takes over the rows of a statement together, other than sums and counts; empty for nothing."""
        if not self.names_rows(text):
            return ""
        found = _WEIGHS.search(uncommented(text))
        word = " ".join(next(filter(None, found.groups()), found[0].strip(" (")).split()).lower() if found else ""
        return "a window function" if word.startswith("over") else word

    @cached_property
    def totals(self) -> dict[str, Assignment]:
        """Variables that hold a sum, a count or another answer about all rows of a statement."""
        found: dict[str, Assignment] = {}
        for each in self.body.assignments:
            about_rows = self.names_rows(each.text) or each.text.lower().startswith("get diagnostics")
            total = about_rows and each.line not in self.body.loops and not each.via
            made_of_one = not each.selected and {name.partition(".")[0] for name in each.names} & found.keys()
            if total or made_of_one:
                found[each.variable] = each
        return found

    @cached_property
    def loops(self) -> dict[int, str]:
        """Loops over the rows, by line: the query of each."""
        return {
            each.line: each.text
            for each in self.body.assignments
            if each.line in self.body.loops and self.names_rows(each.text) and not each.via
        }

    def around(self, fact: Fact) -> str | None:
        """The query over the statement's rows by which something is done for each of them; None where it is not."""
        if fact.loop:
            before = [line for line in self.loops if line <= fact.line]
            if before:
                return self.loops[max(before)]
        for discard in self.body.discards:
            within = 0 <= fact.line - discard.line <= discard.further and not discard.via
            if fact.via and within and re.search(r"\bfrom\b", discard.text, re.I) and self.names_rows(discard.text):
                return discard.text
        return None

    def reads_home(self, fact: Fact) -> bool:
        """Whether the statement of a fact looks at the trigger's own table."""
        own = [read for read in self.body.reads if self.is_home(read)]
        return any((read.line, read.via) == (fact.line, fact.via) or self._within(read, fact) for read in own)

    def _within(self, read: Read, fact: Fact) -> bool:
        text = getattr(fact, "text", "")
        return read.via == fact.via and bool(text) and abs(read.line - fact.line) <= text.count("\n")

    def is_home(self, fact: OnTable) -> bool:
        """Whether a fact is about the trigger's own table."""
        return self.home is not None and (fact.schema, fact.table) == (self.home.schema, self.home.name)

    # Writes -----------------------------------------------------------------------------------------------------------

    def _writes(self) -> Iterator[Told]:
        for insert in self.body.inserts:
            yield from self._insert(insert)
        for update in self.body.updates:
            if not _is_merge(update.text):
                yield from self._update(update, update.text, update.columns, update.values)
        for text in dict.fromkeys(
            each.text for each in (*self.body.inserts, *self.body.updates) if _is_merge(each.text)
        ):
            yield from self._merge(text)
        for fact in (*self.body.updates, *self.body.deletes):
            counts = self._is_over_rows(fact.where) and not _EXISTS.match(fact.where)
            if (self.names_rows(fact.where) and counts) or self._totals_named(_words(fact.where)):
                say = f"picks rows of {fact.relation} by what it made from a statement's rows together"
                yield Told(Difference.WEIGHS, fact, say)

    def _insert(self, fact: Insert) -> Iterator[Told]:
        if _is_merge(fact.text):
            return
        what = f"into {fact.relation}"
        yield from self._weighs(fact, fact.text, f"inserts {what}")
        around = self.around(fact)
        by_rows = around if around is not None else fact.text if self.names_rows(fact.text) else None
        upsert = fact.on_conflict is OnConflict.UPDATE
        values = self._set_by(fact.text) if upsert else {}
        if by_rows is not None and upsert and around is None and not _GROUPS.search(fact.text):
            text = f"inserts {what} or updates: a row that comes twice in one transaction is an error there"
            yield Told(Difference.TWICE, fact, text)
        if upsert:
            yield from self._update(fact, fact.text, tuple(values), tuple(values.values()))
        elif fact.on_conflict is OnConflict.NONE and not fact.drops_duplicates:
            if by_rows is None:
                yield Told(Difference.COUNTS, fact, f"inserts {what} once for each statement")
            elif _GROUPS.search(by_rows) and not _ADDS_UP.search(by_rows):
                yield Told(Difference.COUNTS, fact, f"inserts {what} once for each statement and key")
            elif self._is_over_rows(by_rows):
                yield Told(Difference.WEIGHS, fact, f"inserts {what} what it counts or sums over a statement's rows")
            if self.reads_home(fact):
                yield Told(
                    Difference.LATER, fact, f"inserts {what} what it finds in its own table, later statements' too"
                )
        if self._totals_named(fact.names) and not upsert and by_rows is None:
            yield Told(Difference.WEIGHS, fact, f"inserts {what} what it counted over a statement's rows")

    def _is_over_rows(self, text: str) -> bool:
        """Whether what is counted or summed is (also) rows of the statement, and not only another table's."""
        for found in _ADDS_UP.finditer(text):
            inner = text[found.start() :]
            until = re.search(r"\bfrom\b", inner, re.IGNORECASE)
            source = inner[until.end() :].split() if until else []
            if source and unquote(source[0].strip("(),;")) in self.rows:
                return True
            if not source:
                return True
        return False

    def _set_by(self, text: str) -> dict[str, str]:
        found = re.search(r"\bdo\s+update\s+set\b", text, re.IGNORECASE)
        listed = items(text, found.end(), until=frozenset({"where", "returning"}))[0] if found else []
        pairs = [each.partition("=") for each in listed if not each.startswith("(")]
        return {unquote(left.strip()): right.strip() for left, _, right in pairs}

    def _update(
        self, fact: Insert | Update, text: str, columns: tuple[str, ...], values: tuple[str, ...]
    ) -> Iterator[Told]:
        what = f"{fact.relation} ({', '.join(columns)})"
        if isinstance(fact, Update):
            yield from self._weighs(fact, text, f"updates {what}")
        around = self.around(fact)
        if not values:
            if self.names_rows(text):
                yield Told(Difference.TWICE, fact, f"updates {what} in a way that may need each row once")
            return
        targets = {fact.table.lower(), *_alias(text)}
        over = around if around is not None else text
        adds_up = self._is_over_rows(over) or bool(self._totals_named(fact.names))
        for column, value in zip(columns, values, strict=False):
            adds = _looks_at(value, column, targets)
            from_rows = _qualifiers(value) - targets - {"excluded"}
            if adds and around is not None and not _GROUPS.search(around):
                continue  # row by row
            if adds and not adds_up:
                text_of = "once for each statement" if not self.names_rows(over) else "once for each statement and key"
                yield Told(Difference.COUNTS, fact, f"adds to {fact.relation}.{column} {text_of}")
            elif adds and not self._is_sum(parsed(value), column, targets):
                say = f"makes {fact.relation}.{column} of its old value and a statement's rows, not by adding"
                yield Told(Difference.WEIGHS, fact, say)
            elif adds:
                continue
            elif self._totals_named(_words(value)) or (adds_up and ("excluded" in _qualifiers(value) or from_rows)):
                yield Told(
                    Difference.WEIGHS, fact, f"sets {fact.relation}.{column} to what it counted over a statement"
                )
            elif _ADDS_UP.search(value) and self.names_rows(value):
                yield Told(Difference.WEIGHS, fact, f"sets {fact.relation}.{column} to what it counts over a statement")
            elif around is None and isinstance(fact, Update) and self._takes_from_rows(text, value):
                say = f"sets {fact.relation}.{column} from rows of which one transaction may have several"
                yield Told(Difference.TWICE, fact, say)

    def _is_sum(self, node: Node, column: str, targets: set[str]) -> bool:
        """Whether a value is the old one, with sums over the rows of a statement added to it and nothing else."""
        own = 0
        waiting = [node]
        while waiting:
            term = waiting.pop()
            if term.kind == "operator" and term.text in ("+", "-") and len(term.parts) == 2:
                waiting += term.parts
            elif _is_column_of(term, column, targets):
                own += 1
            elif not self._is_total(term):
                return False
        return own == 1

    def _is_total(self, term: Node) -> bool:
        """Whether a term is a sum or a count over the rows of a statement, or a fixed multiple of one."""
        match term.kind:
            case "call" if term.text == "coalesce":
                return self._is_total(term.parts[0]) and all(part.text == "0" for part in term.parts[1:])
            case "call":
                return term.text in ("sum", "count")
            case "cast":
                return self._is_total(term.parts[0])
            case "name":
                return "." in term.text or term.text in self.totals
            case "operator" if term.text == "*" and len(term.parts) == 2:
                fixed = [part for part in term.parts if part.kind == "literal"]
                return len(fixed) == 1 and any(self._is_total(part) for part in term.parts)
            case "operator" if term.text == "-" and len(term.parts) == 1:
                return self._is_total(term.parts[0])
            case "query":
                found = after_keyword(term.text, 0, frozenset({"select"}))
                listed = items(term.text, found[1], until=frozenset({"from"}))[0] if found else []
                return len(listed) == 1 and self._is_total(parsed(listed[0]))
            case _:
                return False

    def _takes_from_rows(self, text: str, value: str) -> bool:
        """Whether a value comes out of the transition tables that the UPDATE joins."""
        from_ = re.search(r"\bfrom\b(.*)", text, re.IGNORECASE | re.DOTALL)
        if self.names_rows(value):
            return True
        if from_ is None or not self.names_rows(from_[1].partition("where")[0]):
            return False
        plain = [token for token in tokens(value) if token.kind in ("word", "quoted")]
        return any(f"{name}." in value.lower() for name in _from_names(text)) or (len(plain) == 1 and "(" not in value)

    def _merge(self, text: str) -> Iterator[Told]:
        facts = [each for each in (*self.body.updates, *self.body.inserts) if each.text == text]
        fact = facts[0]
        yield from self._weighs(fact, text, f"merges into {fact.relation}")
        using = re.search(r"\busing\b(.*?)\bon\b", text, re.IGNORECASE | re.DOTALL)
        if not self.names_rows(text):
            if _self_adding(text):
                yield Told(Difference.COUNTS, fact, f"merges into {fact.relation} once for each statement")
        elif using is None or not _ADDS_UP.search(using[1]):
            say = f"merges into {fact.relation}: a row that comes twice in one transaction is an error there"
            yield Told(Difference.TWICE, fact, say)
        elif not _self_adding(text):
            yield Told(Difference.WEIGHS, fact, f"merges into {fact.relation} what it counts over a statement's rows")

    def _weighs(self, fact: Fact, text: str, deed: str) -> Iterator[Told]:
        over = self.around(fact)
        for each in dict.fromkeys((text, over or "")):
            if word := self.weighed(each):
                yield Told(Difference.WEIGHS, fact, f"{deed} by {word} over the rows of a statement")
            if len(self.names_rows(each)) > 1:
                say = f"{deed} by old and new rows side by side: one written twice meets its other versions, too"
                yield Told(Difference.LATER, fact, say)

    def _totals_named(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.partition(".")[0] in self.totals]

    # Conditions and messages ------------------------------------------------------------------------------------------

    def _conditions(self) -> Iterator[Told]:
        deeds: list[Fact] = [
            *(*self.body.inserts, *self.body.updates, *self.body.deletes, *self.body.refreshes),
            *(*self.body.notifies, *self.body.outside),
        ]
        for fact in deeds:
            for guard in fact.guards:
                if told := self._condition(guard):
                    difference, text = told
                    yield Told(difference, Fact(line=guard.line or fact.line), text)

    def _condition(self, guard: Guard) -> tuple[Difference, str] | None:
        text = uncommented(guard.text)
        shown = " ".join(text.split())[:60]
        any_row = (_EXISTS.match(text) or (_ADDS_UP.search(text) and _IS_ANY.match(text))) and not guard.negated
        if self.names_rows(text) and not any_row:
            return Difference.WEIGHS, f"decides by the rows of a statement together: {shown}"
        totals = self._totals_named([name for name in guard.names if not name.startswith("@")])
        if totals and not (_IS_ANY.match(text) and not guard.negated):
            return Difference.WEIGHS, f"decides by {totals[0]}, made from the rows of a statement together"
        questions = {name for name in guard.names if name.startswith("@")}
        if any(self.is_home(read) and questions.intersection(read.into) for read in self.body.reads):
            return Difference.LATER, f"decides by its own table, rows of later statements among it: {shown}"
        variables = {name.partition(".")[0] for name in guard.names}
        if any(self.is_home(read) and variables.intersection(read.into) - {"found"} for read in self.body.reads):
            return Difference.LATER, f"decides by its own table, rows of later statements among it: {shown}"
        return None

    def _told(self) -> Iterator[Told]:
        for fact in self.body.notifies:
            said = f"{fact.channel} {fact.payload}"
            if word := self.weighed(said):
                yield Told(Difference.WEIGHS, fact, f"tells listeners {word} over the rows of a statement")
            elif (self.names_rows(said) and _ADDS_UP.search(said)) or self._totals_named(_words(said)):
                yield Told(Difference.WEIGHS, fact, "tells listeners what it counted over a statement's rows")
        for fact in self.body.outside:
            own = [each for each in self.body.discards if each.line <= fact.line <= each.line + each.further]
            by_rows = self.around(fact) is not None or any(
                self.names_rows(each.text) and not self.weighed(each.text) for each in own
            )
            if not by_rows:
                yield Told(Difference.COUNTS, fact, f"calls {fact.function}() once for each statement")
        for fact in self.body.calls:
            if fact.name == "nextval" and fact.schema in (None, "pg_catalog") and self.around(fact) is None:
                in_insert = any(
                    each.line <= fact.line <= each.line + each.text.count("\n") for each in self.body.inserts
                )
                if not in_insert:
                    yield Told(Difference.COUNTS, fact, "draws from a sequence once for each statement")
        for fact in self.body.discards:
            yield from self._discard(fact)

    def _discard(self, fact: Discard) -> Iterator[Told]:
        if fact.via or set(fact.calls) <= {"pg_notify"}:
            return
        if word := self.weighed(fact.text):
            yield Told(Difference.WEIGHS, fact, f"calls something by {word} over the rows of a statement")


def _is_column_of(term: Node, column: str, targets: set[str]) -> bool:
    """Whether a term is a column of the row that is updated, or zero for it where it is NULL."""
    if term.kind == "call" and term.text == "coalesce" and len(term.parts) == 2 and term.parts[1].text == "0":
        term = term.parts[0]
    first, _, name = term.text.rpartition(".")
    return term.kind == "name" and name == column and (not first or first in targets)


def _words(text: str) -> set[str]:
    return {unquote(token.text) for token in tokens(text) if token.kind in ("word", "quoted")}


def _qualifiers(text: str) -> set[str]:
    """What stands before a dot."""
    listed = list(tokens(text))
    return {
        unquote(token.text)
        for token, after in pairwise(listed)
        if token.kind in ("word", "quoted") and after.text == "."
    }


def _alias(text: str) -> set[str]:
    """The name under which the target of an UPDATE or INSERT goes."""
    name = r'(?:[\w$]+|"[^"]+")'
    found = re.search(
        rf"\b(?:update\s+(?:only\s+)?|insert\s+into\s+)(?:{name}\.)?{name}\s+(?:as\s+)?(?!set\b|values\b|select\b|as\b)({name})",
        text,
        re.IGNORECASE,
    )
    return {unquote(found[1])} if found else set()


def _from_names(text: str) -> set[str]:
    """The names and aliases of what an UPDATE joins."""
    found = re.search(r"\bfrom\b(.*)", text, re.IGNORECASE | re.DOTALL)
    if found is None:
        return set()
    joined = re.finditer(
        r"(?:^|\bjoin\b|,)\s*([\w$]+)(?:\s+(?:as\s+)?(?!where\b|on\b|join\b)([\w$]+))?", found[1], re.IGNORECASE
    )
    return _qualifiers(found[1]) | {unquote(match[2] or match[1]) for match in joined}


def _looks_at(value: str, column: str, targets: set[str]) -> bool:
    """Whether a new value is made from the old one of the same column."""
    listed = list(tokens(value))
    for place, token in enumerate(listed):
        if token.kind in ("word", "quoted") and unquote(token.text) == column:
            dotted = place > 1 and listed[place - 1].text == "."
            if not dotted or unquote(listed[place - 2].text) in targets:
                return True
    return False


def _is_merge(text: str) -> bool:
    return bool(re.match(r"\s*(with\b.*?)?merge\s+into\b", text, re.IGNORECASE | re.DOTALL))


def _self_adding(text: str) -> bool:
    """Whether every column that a MERGE updates is made from its own old value."""
    target = re.search(
        r"\bmerge\s+into\s+(?:only\s+)?(?:[\w$]+\.)?([\w$]+)(?:\s+(?:as\s+)?(?!using\b)([\w$]+))?", text, re.I
    )
    names = {each.lower() for each in target.groups() if each} if target else set[str]()
    for found in re.finditer(r"\bupdate\s+set\b", text, re.IGNORECASE):
        for each in items(text, found.end(), until=frozenset({"when", "returning"}))[0]:
            column, _, value = each.partition("=")
            if not _looks_at(value, unquote(column.strip()), names):
                return False
    return True
