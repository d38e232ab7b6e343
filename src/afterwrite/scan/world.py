"""All triggers side by side: who writes which table, whose decisions hang on it, and which tables are only logs.

Pure. A trigger is never judged alone: that its INSERT goes into a log is known only when nobody else makes more of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import msgspec

from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Event, Function, Inventory, Kind, Table, Timing, Trigger, TriggerLevel
from afterwrite.scan.evaluate import feasible, surroundings
from afterwrite.scan.facts import Body, Delete, Insert, OnConflict, OnTable, Read, Refresh, Update
from afterwrite.scan.flow import Decision, everything, influence, refusal
from afterwrite.scan.follow import DEFAULT_OF, source_of
from afterwrite.scan.tokens import split_names, tokens, uncommented, unquote

# Named so, a table is a log unless something speaks against it.
LOG_WORDS = frozenset(
    {"audit", "audits", "auditing", "aud", "log", "logs", "logged", "logging", "changelog", "changelogs"}
)
# Named so, it may as well be what the application is about (a feed, a ledger): its rows must look like a log's, too.
PAST_WORDS = frozenset(
    {
        *("history", "histories", "hist", "activity", "activities", "journal", "journals", "trail", "trails"),
        *("revision", "revisions", "versions", "archive", "changes"),
    }
)
QUEUE_WORDS = frozenset(
    {
        *("outbox", "inbox", "queue", "queues", "queued", "job", "jobs", "task", "tasks", "message", "messages"),
        *("webhook", "webhooks", "email", "emails", "mail", "notification", "notifications", "pending", "sync"),
        *("delivery", "deliveries", "event", "events", "todo", "work"),
    }
)
# What libraries' histories have in common (django-pghistory, Envers), however their tables are called.
LOG_SHAPES = (frozenset({"pgh_label", "pgh_created_at"}), frozenset({"rev", "revtype"}))
# Columns that somebody moves on later: a row that has one is work to do, or news to read, and no record of the past.
STATE_COLUMN = re.compile(
    r"(is_)?(processed|sent|delivered|published|dispatched|consumed|handled|acked|acknowledged|claimed|locked|seen|read"
    r"|synced|retried|exported|done|completed)(_at|_by|_on)?|(next_)?(attempts?|attempt_at|retries|retry_count|tries)"
    r"|.*_attempts|consume_after|run_after|available_at|scheduled_at"
)
_WAITING_NAME = re.compile(r"priority|(last_)?error|(run|retry|due|start)_(at|after)|not_before|locked_until")
# Named so, it holds sums, one row for each of what is summed.
_SUM_WORDS = frozenset({"stats", "stat", "statistics", "totals", "counts", "counters", "summary"})
# What is counted and spent: a log of it, if its rows say no more than that, is its account.
_ACCOUNT_WORDS = frozenset({"points", "credit", "credits", "balance", "balances", "loyalty", "wallet"})
_APPENDS = re.compile(r"\binsert\s+into\s+[\w$.\"]+")
_LAST_KEYS = ("currval", "lastval")
_STATUS_COLUMN = re.compile(r"status|state|.*_status|.*_state")
_SHAPE = re.compile(r"\btg_op\b|\btg_table_name\b|\btg_relname\b|\btg_relid\b", re.IGNORECASE)
_WHOLE_ROW = re.compile(r"\b(to_jsonb?|row_to_json|hstore)\s*\(\s*(new|old|n|o)\b(?!\.\w)", re.IGNORECASE)

Write = Insert | Update | Delete | Refresh


class LogTable(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a table is a log that only triggers append to: what speaks for it (``why``), against it, and neither."""

    table: Table
    why: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_log(self) -> bool:
        return bool(self.why) and not self.against


class Keeper(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger that must run with its writer, and what its outcome hangs on.

    ``refuses`` is what its refusal hangs on. ``effective``: what it does is why it must run; ``own`` when it does that
    to its own table, which may follow the write that sets it off also when that comes later.
    """

    trigger: Trigger
    decision: Decision
    refuses: Decision | None = None
    effective: bool = False
    own: bool = False


class Deed(msgspec.Struct, frozen=True):
    """What happens to rows of a table; ``columns`` are those that an UPDATE sets, None for whole rows.

    ``empty`` are columns that are NULL in the rows that it finds: its WHERE says so.
    """

    table: Table
    event: Event
    columns: frozenset[str] | None = None
    empty: frozenset[str] = frozenset()


_IS_NULL = re.compile(r"\s*(\w+)\s+is\s+null\s*", re.IGNORECASE)
_NOT_PLAIN = re.compile(r"""['"$()]|\b(or|case|any|all)\b""", re.IGNORECASE)


def _empty_before(write: Update) -> frozenset[str]:
    """Columns that the WHERE of a plain UPDATE asks to be NULL."""
    where = uncommented(write.where)
    plain = re.match(r"\s*update\b", write.text, re.IGNORECASE) and not re.search(
        r"\bfrom\b", write.text, re.IGNORECASE
    )
    if not plain or _NOT_PLAIN.search(where):
        return frozenset()
    found = (_IS_NULL.fullmatch(part) for part in re.split(r"\band\b", where, flags=re.IGNORECASE))
    return frozenset(match[1].lower() for match in found if match)


class _Keepers:
    """Keepers by the table that they are on, and by the tables that they decide on."""

    def __init__(self) -> None:
        self.on: defaultdict[int, list[Keeper]] = defaultdict(list)
        self.reading: defaultdict[int, list[tuple[Keeper, Read]]] = defaultdict(list)


class World:
    """An inventory with what its triggers (by oid) and its other functions (by oid) do."""

    def __init__(self, inventory: Inventory, bodies: Mapping[int, Body], functions: Mapping[int, Body]) -> None:
        self.inventory = inventory
        self.atlas = Atlas(inventory)
        self.bodies = bodies
        self.function_bodies = {self.atlas.functions[oid]: body for oid, body in functions.items()}
        self.triggers_on: defaultdict[int, list[Trigger]] = defaultdict(list)
        for trigger in inventory.triggers:
            table = self.atlas.table_of(trigger)
            if table is not None:
                self.triggers_on[self.atlas.root(table).oid].append(trigger)
        self.looked_at: dict[str, frozenset[str]] = {}
        self._logs: dict[int, LogTable] = {}
        self._runs: dict[str, frozenset[int]] = {}
        self._below: defaultdict[int, set[int]] = defaultdict(set)
        for view, table_oid in inventory.views:
            self._below[view].add(table_oid)
        self._publications: defaultdict[int, list[str]] = defaultdict(list)
        for table_oid, publication in inventory.publications:
            self._publications[table_oid].append(publication)

    # Tables ----------------------------------------------------------------------------------------------------------

    def table(self, fact: OnTable) -> Table | None:
        """The table of a resolved fact; the partitioned one for a partition."""
        if fact.schema is None:
            return None
        found = self.atlas.find_table(fact.schema, fact.table, ())
        return self.atlas.root(found) if found is not None else None

    def home(self, trigger: Trigger) -> Table | None:
        """The table that a trigger is on."""
        table = self.atlas.table_of(trigger)
        return self.atlas.root(table) if table is not None else None

    def tables_read(self, read: Read) -> list[Table]:
        """The tables that a SELECT from a table or a view looks at, the view itself included."""
        found: dict[int, Table] = {}
        table = self.table(read)
        waiting = [table.oid] if table is not None else []
        while waiting:
            each = self.atlas.tables.get(waiting.pop())
            if each is not None and each.oid not in found:
                found[each.oid] = self.atlas.root(each)
                waiting += self._below[each.oid]
        return list({table.oid: table for table in found.values()}.values())

    @staticmethod
    def writes(body: Body) -> Iterator[Write]:
        """Everything that a body does to tables."""
        yield from body.inserts
        yield from body.updates
        yield from body.deletes
        yield from body.refreshes

    @cached_property
    def trigger_writes(self) -> Mapping[int, list[tuple[Trigger, Write]]]:
        """By table: what triggers do to it."""
        found: defaultdict[int, list[tuple[Trigger, Write]]] = defaultdict(list)
        for trigger in self.inventory.triggers:
            for write in self.writes(self.bodies[trigger.oid]):
                table = self.table(write)
                if table is not None:
                    found[table.oid].append((trigger, write))
        return found

    @cached_property
    def function_writes(self) -> Mapping[int, list[tuple[Function, Write]]]:
        """By table: what functions that are no trigger functions do to it."""
        found: defaultdict[int, list[tuple[Function, Write]]] = defaultdict(list)
        for function, body in self.function_bodies.items():
            for write in self.writes(body):
                table = self.table(write)
                if table is not None:
                    found[table.oid].append((function, write))
        return found

    @cached_property
    def trigger_reads(self) -> Mapping[int, list[Trigger]]:
        """By table: triggers that select from it."""
        found: defaultdict[int, list[Trigger]] = defaultdict(list)
        for trigger in self.inventory.triggers:
            for oid in {table.oid for read in self.bodies[trigger.oid].reads for table in self.tables_read(read)}:
                found[oid].append(trigger)
        return found

    @cached_property
    def function_reads(self) -> Mapping[int, list[Function]]:
        """By table: functions that select from it."""
        found: defaultdict[int, list[Function]] = defaultdict(list)
        for function, body in self.function_bodies.items():
            for oid in {table.oid for read in body.reads for table in self.tables_read(read)}:
                found[oid].append(function)
        return found

    @cached_property
    def views_on(self) -> Mapping[int, list[Table]]:
        """By table: the views that look at it."""
        found: defaultdict[int, list[Table]] = defaultdict(list)
        for view, table in self.inventory.views:
            if view in self.atlas.tables and table in self.atlas.tables:
                found[self.atlas.root(self.atlas.tables[table]).oid].append(self.atlas.tables[view])
        return found

    def enforced_by(self, table: Table) -> Iterator[str]:
        """The constraints, defaults, indexes and rewrite rules by which other writes hang on a table's rows."""
        for function in self.function_reads[table.oid]:
            for what in dict.fromkeys(self._enforcing[function.oid]):
                yield f"{what} (through {function.full_name}())"
        for rule in self.inventory.rules:
            owner = self.atlas.tables.get(rule.table_oid)
            if any(function.oid in self._run_by(rule.definition) for function in self.function_reads[table.oid]):
                yield f"the rule {rule.name} of {owner.full_name if owner is not None else rule.table_oid}"
            for named in (self.atlas.tables[oid] for oid in rule.reads if oid in self.atlas.tables):
                # One that the rule only writes stands after INTO or UPDATE.
                looked_at = re.search(
                    rf'\b(from|join|using)\s+(only\s+)?([\w$"]+\.)?"?{re.escape(named.name)}\b', rule.definition, re.I
                )
                below = self.tables_read(Read(schema=named.schema, table=named.name))
                if looked_at and any(seen.oid == table.oid for seen in below):
                    yield f"the rule {rule.name} of {owner.full_name if owner is not None else rule.table_oid}"

    @cached_property
    def _enforcing(self) -> Mapping[int, list[str]]:
        """By function: the constraints, defaults and indexes that call it, themselves or through other functions."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        callers: defaultdict[str, set[int]] = defaultdict(set)
        for function, body in self.function_bodies.items():
            for call in body.calls:
                callers[call.name].add(function.oid)
        for each in self.inventory.enforcing:
            found[each.function_oid].append(each.what)
        if self.atlas.operators or self.inventory.aggregates:
            for table in self.inventory.tables:
                for what, text in _enforced_texts(table):
                    for oid in self._run_by(text):
                        found[oid].append(what)
        for function in self.function_bodies:
            waiting, seen = [function], {function.oid}
            while waiting:
                for oid in callers[waiting.pop().name] - seen:
                    seen.add(oid)
                    found[function.oid] += [each.what for each in self.inventory.enforcing if each.function_oid == oid]
                    waiting.append(self.atlas.functions[oid])
        return found

    def _run_by(self, text: str) -> frozenset[int]:
        """The functions that an expression may run: those that it names, and those of operators and aggregates."""
        if text not in self._runs:
            words = {token.text.lower() for token in tokens(text) if token.kind == "word"}
            words |= {unquote(token.text) for token in tokens(text) if token.kind == "quoted"}
            run = {function.oid for function in self.function_bodies if function.name in words}
            run |= {each.oid for name, parts in self.atlas.operators.items() if name in text for each in parts}
            run |= {oid for each in self.inventory.aggregates if each.name in words for oid in each.functions}
            self._runs[text] = frozenset(run)
        return self._runs[text]

    @cached_property
    def refusing(self) -> Mapping[int, list[tuple[Function, frozenset[str]]]]:
        """By table: functions that refuse on what they read there, and which columns decide.

        Where it only matters whether a row is found, those decide by which it is looked for. ``*`` is any column.
        """
        found: defaultdict[int, list[tuple[Function, frozenset[str]]]] = defaultdict(list)
        for function, body in self.function_bodies.items():
            by_rows, by_values = refusal(body), refusal(body, by_values=True)
            values = () if by_values is None else by_values.reads
            texts = [each.text for each in (*body.discards, *body.assignments)] if by_rows is not None else []
            sought = {word for text in texts for word in _words_of(text.lower().partition("where")[2])}
            for read in () if by_rows is None else by_rows.reads:
                for table in self.tables_read(read):
                    whole = not read.columns or table != self.table(read)
                    columns = frozenset({"*"} if whole else read.columns)
                    decide = columns if read in values else columns & sought
                    found[table.oid].append((function, decide))
        return found

    def keys_asked(self, table: Table, writer: Trigger) -> Iterator[str]:
        """Who asks in the same session for the key that a trigger drew for a table's row (currval, lastval)."""
        names = self.sequences[table.oid]
        if not names:
            return
        home = self.home(writer)
        for asking, body in self._asking_for_keys:
            if isinstance(asking, Function):
                anyway = home is not None and any(other is asking for other, _ in self.function_writes[home.oid])
                who = f"{asking.full_name}()"
            else:
                anyway = home is not None and asking.table_oid in (writer.table_oid, home.oid)
                who = f"trigger {asking.identity}"
            if asking is not writer and self._asks_key(body, table, names, anyway=anyway):
                yield who
        for oid, what, named in self._asked_by_columns:
            if oid != table.oid and named & names:
                yield what

    @cached_property
    def _asking_for_keys(self) -> list[tuple[Function | Trigger, Body]]:
        """Functions and triggers that ask for the last key of a sequence, whichever."""
        every = {name for names in self.sequences.values() for name in names}
        listed: list[tuple[Function | Trigger, Body]] = [
            *self.function_bodies.items(),
            *((trigger, self.bodies[trigger.oid]) for trigger in self.inventory.triggers),
        ]
        return [
            (asking, body)
            for asking, body in listed
            if any(fact.name in _LAST_KEYS for fact in body.calls) or any(read.table in every for read in body.reads)
        ]

    @cached_property
    def _asked_by_columns(self) -> list[tuple[int, str, frozenset[str]]]:
        """Defaults and constraints that ask for the last key of a sequence: their table, what they are, and which."""
        return [
            (table.oid, what, frozenset(sequence_names(text)))
            for table in self.inventory.tables
            for what, text in _enforced_texts(table)
            if "currval" in text
        ]

    @cached_property
    def sequences(self) -> Mapping[int, frozenset[str]]:
        """By table: the names of the sequences that its keys are drawn from, and as pg_get_serial_sequence is asked."""
        found: defaultdict[int, frozenset[str]] = defaultdict(frozenset)
        for table in self.inventory.tables:
            defaults = [column.default for column in table.columns if column.default and "nextval(" in column.default]
            names = {name for text in defaults for name in sequence_names(text)}
            names |= {split_names(column.sequence)[-1] for column in table.columns if column.sequence}
            if names:
                found[table.oid] = frozenset(names | {f"of {table.name}"})
        return found

    def _asks_key(self, body: Body, table: Table, names: frozenset[str], *, anyway: bool) -> bool:
        """Whether a body asks for a sequence's last key, not having drawn it itself; ``anyway``: or for any."""
        drawn = [write.line for write in body.inserts if (other := self.table(write)) and other.oid == table.oid]
        asked = [fact for fact in body.calls if fact.name in _LAST_KEYS]
        for fact in asked:
            said = frozenset(sequence_names(" ".join(fact.texts)))
            if (said & names or (anyway and not said)) and not any(line <= fact.line for line in drawn):
                return True
        looked_at = [read for read in body.reads if read.table in names]
        return any(not any(line <= read.line for line in drawn) for read in looked_at)

    @cached_property
    def policies_on(self) -> Mapping[int, list[str]]:
        """By table: row security policies (as ``name on table``) that look at it, themselves or through a function."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        by_oid = {function.oid: body for function, body in self.function_bodies.items()}
        for policy in self.inventory.policies:
            owner = self.atlas.tables.get(policy.table_oid)
            name = f"{policy.name} on {owner.full_name if owner else policy.table_oid}"
            named = [self.atlas.tables[oid] for oid in policy.reads if oid in self.atlas.tables]
            reads = [Read(schema=table.schema, table=table.name) for table in named]
            texts = f"{policy.using_expression or ''} {policy.check_expression or ''}"
            called = dict.fromkeys((*policy.functions, *self._run_by(texts)))
            reads += [read for oid in called if oid in by_oid for read in by_oid[oid].reads]
            seen = {table.oid for read in reads for table in self.tables_read(read)}
            for oid in seen:
                found[oid].append(name)
        return found

    # Keepers ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _keepers(self) -> _Keepers:
        """Triggers whose own bodies say that they shape or forbid the write; more may join."""
        found = _Keepers()
        for trigger in self.inventory.triggers:
            body = self.bodies[trigger.oid]
            decision = influence(trigger, body)
            if decision is not None:
                self._join(found, Keeper(trigger=trigger, decision=decision, refuses=refusal(body)))
        return found

    def _join(self, keepers: _Keepers, keeper: Keeper) -> None:
        home = self.home(keeper.trigger)
        if home is not None:
            keepers.on[home.oid].append(keeper)
        for read in keeper.decision.reads:
            for table in self.tables_read(read):
                whole = table.kind is Kind.VIEW or table != self.table(read)
                seen = msgspec.structs.replace(read, columns=("*",)) if whole else read
                keepers.reading[table.oid].append((keeper, seen))

    def add_keeper(self, trigger: Trigger, *, own: bool = False) -> None:
        """A trigger that turned out to be one because others hang on what it writes: now all that it reads matters."""
        decision = everything(self.bodies[trigger.oid])
        self._join(self._keepers, Keeper(trigger=trigger, decision=decision, effective=True, own=own))

    def deciding_on(self, table: Table) -> Sequence[tuple[Keeper, Read]]:
        """The keepers whose decisions hang on a table, with what they read of it."""
        return self._keepers.reading[table.oid]

    def set_off(self, table: Table, write: Write) -> Iterator[Deed]:
        """All that a write does to rows: its table's, its heirs', and those that foreign keys carry it to."""
        match write:
            case Insert():
                yield Deed(table, Event.INSERT)
                if write.on_conflict is OnConflict.UPDATE:
                    yield from self._spread(table, Event.UPDATE, frozenset(write.updates))
            case Update():
                empty = _empty_before(write)
                yield from self._spread(table, Event.UPDATE, frozenset(write.columns), empty)
            case Delete():
                yield from self._spread(table, Event.TRUNCATE if write.truncate else Event.DELETE, None)
            case Refresh():
                return

    def _spread(
        self, table: Table, event: Event, columns: frozenset[str] | None, empty: frozenset[str] = frozenset()
    ) -> Iterator[Deed]:
        seen: set[tuple[int, Event, frozenset[str] | None, frozenset[str]]] = set()
        waiting = [Deed(each, event, columns, empty) for each in (table, *self.atlas.heirs(table))]
        while waiting:
            deed = waiting.pop(0)
            key_of_deed = (deed.table.oid, deed.event, deed.columns, deed.empty)
            if key_of_deed in seen:
                continue
            seen.add(key_of_deed)
            yield deed
            for key in deed.table.referenced_by:
                child = self.atlas.tables.get(key.table_oid)
                if child is None or deed.event is Event.TRUNCATE:
                    continue
                touched = deed.columns is None or deed.columns.intersection(key.referenced_columns)
                action = key.on_delete if deed.event is Event.DELETE else key.on_update
                if not touched or action in ("a", "r"):
                    continue
                gone = action == "c" and deed.event is Event.DELETE
                root = self.atlas.root(child)
                waiting.append(Deed(root, Event.DELETE) if gone else Deed(root, Event.UPDATE, frozenset(key.columns)))

    def reaches(self, table: Table, write: Write, home: Table) -> bool:
        """Whether a write touches rows of a table: its own, or those that its heirs inherited from it."""
        if table.oid == home.oid:
            return True
        return isinstance(write, Update | Delete) and any(heir.oid == home.oid for heir in self.atlas.heirs(table))

    def unread(self, table: Table, write: Write) -> Iterator[Trigger]:
        """Triggers that a write sets off and of which a part cannot be read: they may refuse it."""
        for deed in self.set_off(table, write):
            for trigger in self.triggers_on[deed.table.oid]:
                body = self.bodies[trigger.oid]
                if body.unknowns and trigger.language not in ("c", "internal") and self._fires(trigger, deed):
                    yield trigger

    def refusers(self, table: Table, write: Write) -> Iterator[tuple[Trigger, Table]]:
        """Triggers that a write sets off and that may refuse it, with their tables."""
        for deed in self.set_off(table, write):
            for trigger in self._refusers(deed):
                yield trigger, deed.table

    def _refusers(self, deed: Deed) -> Iterator[Trigger]:
        columns = deed.columns
        for keeper in self._keepers.on[deed.table.oid]:
            if keeper.refuses is None or not self._fires(keeper.trigger, deed):
                continue
            if not any(self._reaches_raise(keeper.trigger, deed)):
                continue
            decides = keeper.refuses.columns
            touched = columns is None or not decides or "*" in decides or columns.intersection(decides)
            if touched or self._refuses_rows_as_they_are(keeper.trigger):
                yield keeper.trigger

    def _refuses_rows_as_they_are(self, trigger: Trigger) -> bool:
        """Whether it refuses for what OLD says alone: then whatever is changed. (What NEW says alone held before.)"""
        raising = (fact for fact in self.bodies[trigger.oid].raises if fact.level == "exception" and not fact.via)
        for fact in raising:
            rows = {name.partition(".")[0] for guard in fact.guards for name in guard.names}
            if "old" in rows and "new" not in rows:
                return True
        return False

    def _reaches_raise(self, trigger: Trigger, deed: Deed) -> Iterator[bool]:
        body = self.bodies[trigger.oid]
        around = surroundings(trigger, deed.event)
        # Nobody assigns to OLD, but one may.
        if trigger.level is TriggerLevel.ROW and not any(fact.variable.startswith("old") for fact in body.assignments):
            around |= {f"old.{column}": (None,) for column in deed.empty}
        for fact in body.raises:
            if fact.level == "exception":
                yield bool(fact.via) or (deed.event in trigger.events and feasible(fact.guards, around))

    def effective_keepers(self, table: Table, write: Write) -> Iterator[Trigger]:
        """Triggers that a write sets off and whose effects must be there at once.

        One that only does something to its own table keeps it in order whenever the write comes; of a log it is wanted.
        """
        log = self.log(table).is_log
        for deed in self.set_off(table, write):
            for keeper in self._keepers.on[deed.table.oid]:
                if keeper.effective and (log or not keeper.own) and self._fires(keeper.trigger, deed):
                    yield keeper.trigger

    @staticmethod
    def _fires(trigger: Trigger, deed: Deed) -> bool:
        named = frozenset(trigger.columns)
        missed = deed.event is Event.UPDATE and deed.columns is not None and named and not deed.columns & named
        return deed.event in trigger.events and not missed

    @cached_property
    def _dark(self) -> list[tuple[str, frozenset[str]]]:
        """Functions of which nothing (or not all that might matter) can be read, with the words of their text."""
        found: list[tuple[str, frozenset[str]]] = []
        for function in self.atlas.functions.values():
            body = self.function_bodies.get(function)
            dark = source_of(function) is None and function.language not in ("c", "internal")
            if body is not None:
                rules = {fact.rule for fact in body.unknowns}
                acts = any(self.writes(body)) or any(fact.level == "exception" for fact in body.raises)
                dark = bool(rules & {"other-language", "unparsable"}) or ("dynamic-sql" in rules and acts)
            if dark and function.extension is None:
                # Who only appends to it as well does not rely on what is there.
                text = _APPENDS.sub(" ", f"{function.source} {function.sql_body or ''}".lower())
                found.append((f"{function.full_name}()", frozenset(re.findall(r"[\w$]+", text))))
        for trigger in self.inventory.triggers:
            if {fact.rule for fact in self.bodies[trigger.oid].unknowns} & {"other-language", "unparsable"}:
                text = _APPENDS.sub(" ", trigger.definition.lower())
                found.append((f"trigger {trigger.identity}", frozenset(re.findall(r"[\w$]+", text))))
        return found

    def named_in_the_dark(self, table: Table) -> Iterator[str]:
        """Functions that name a table, and cannot be read: whether they rely on its rows is not known."""
        for name, words in self._dark:
            if table.name.lower() in words:
                yield name

    def noticed_by(self, table: Table, writer: Trigger) -> Iterator[str]:
        """Who reads a table, and so might notice that a write comes a moment later."""
        seen: set[int] = set()
        waiting = list(self.views_on[table.oid])
        while waiting:
            view = waiting.pop(0)
            if view.oid not in seen:
                seen.add(view.oid)
                yield f"{'materialized view' if view.kind is Kind.MATERIALIZED else 'view'} {view.full_name}"
                waiting += self.views_on[view.oid]
        for function in self.function_reads[table.oid]:
            yield f"{function.full_name}()"
        for trigger in self.trigger_reads[table.oid]:
            if trigger.oid != writer.oid:
                yield f"trigger {trigger.identity}"
        for policy in self.policies_on[table.oid]:
            yield f"policy {policy}"
        for key in table.referenced_by:
            owner = self.atlas.tables.get(key.table_oid)
            yield f"foreign key {key.name}{f' of {owner.full_name}' if owner is not None else ''}"
        for publication in self._publications[table.oid]:
            yield f"subscribers of {publication}"

    # Settings --------------------------------------------------------------------------------------------------------

    def setting_readers(self, name: str, writer: Trigger) -> Iterator[str]:
        """Policies, and triggers that shape or refuse writes, that look at a session setting."""
        for policy in self.inventory.policies:
            texts = [policy.using_expression or "", policy.check_expression or ""]
            bodies = [body for function, body in self.function_bodies.items() if function.oid in policy.functions]
            asks = any(fact.name == name for body in bodies for fact in body.settings if not fact.written)
            if asks or any(f"'{name}'" in text for text in texts):
                yield f"policy {policy.name}"
        for keeper in {keeper.trigger.oid: keeper for on in self._keepers.on.values() for keeper in on}.values():
            body = self.bodies[keeper.trigger.oid]
            if keeper.trigger.oid != writer.oid and any(
                fact.name == name and not fact.written for fact in body.settings
            ):
                yield f"trigger {keeper.trigger.identity}"

    # Logs ------------------------------------------------------------------------------------------------------------

    def log(self, table: Table) -> LogTable:
        """Whether a table is a log, with the evidence for and against."""
        if table.oid not in self._logs:
            # Tables may refer to one another in a ring: while one is looked at, it is no log.
            self._logs[table.oid] = LogTable(table=table, against=("it refers to itself",))
            against = tuple(dict.fromkeys(self._against(table)))
            notes = tuple(dict.fromkeys(self._log_notes(table)))
            self._logs[table.oid] = LogTable(table=table, why=tuple(self._for(table)), against=against, notes=notes)
        return self._logs[table.oid]

    def _for(self, table: Table) -> Iterator[str]:
        words = _words(table.name)
        appended = [(trigger, write) for trigger, write in self.trigger_writes[table.oid] if isinstance(write, Insert)]
        names_origin = bool(appended) and all(_SHAPE.search(_row_text(write)) for _, write in appended)
        copies_rows = bool(appended) and all(_copies_row(trigger, write) for trigger, write in appended)
        named = bool(LOG_WORDS.intersection((*words, *_words(table.schema))))
        if _queue_words(words):
            if named and names_origin:
                yield "it is named like a log, and its rows name the operation or the table that they come from"
            return
        if _ACCOUNT_WORDS.intersection(words) and not (names_origin or "audit" in words):
            return
        if named:
            yield "it is named like a log"
        elif PAST_WORDS.intersection(words) and (names_origin or copies_rows):
            yield "it is named like a history, and its rows are copies or name where they come from"
        elif names_origin and not _SUM_WORDS.intersection(words):
            yield "its rows name the operation or the table that they come from"
        elif any({column.name for column in table.columns}.issuperset(shape) for shape in LOG_SHAPES):
            yield "it has the columns of a history that a library keeps"
        elif table.referenced_by:
            owners = [self.atlas.tables.get(key.table_oid) for key in table.referenced_by]
            if all(owner is not None and self.is_own_history(table, self.atlas.root(owner)) for owner in owners):
                yield "only histories that the same triggers write refer to it"

    def _against(self, table: Table) -> Iterator[str]:
        if table.kind not in (Kind.TABLE, Kind.PARTITIONED):
            yield "it is no plain table"
        words = _words(table.name)
        if _queue_words(words) and words[-1] not in LOG_WORDS | PAST_WORDS:
            yield "it is named like a queue"
        if table.has_rules:
            yield "it has rewrite rules"
        for publication in self._publications[table.oid]:
            yield f"it is published to others ({publication})"
        for trigger, write in self.trigger_writes[table.oid]:
            if isinstance(write, Insert):
                yield from self._filled_from(table, trigger)
        yield from self._state_columns(table)
        yield from self._kinship(table)
        if table.updated > 0:
            yield f"its rows are updated ({table.updated} so far)"
        for key in table.referenced_by:
            owner = self.atlas.tables.get(key.table_oid)
            if owner is None or not self.is_own_history(table, self.atlas.root(owner)):
                yield f"{owner.full_name if owner else 'another table'} refers to it"
        for trigger in self.triggers_on[table.oid]:
            if not self._protects(trigger):
                yield f"it has a trigger of its own ({trigger.name})"
        for trigger, write in self.trigger_writes[table.oid]:
            yield from self._more_than_append(f"trigger {trigger.name}", write)
        for function, write in self.function_writes[table.oid]:
            yield from self._more_than_append(f"{function.full_name}()", write, anybody=True)
        for trigger in self.trigger_reads[table.oid]:
            yield f"trigger {trigger.name} reads it"
        for function in self.function_reads[table.oid]:
            body = self.function_bodies[function]
            relays = body.notifies or body.outside or any(fact.rule == "dynamic-sql" for fact in body.unknowns)
            raises = any(fact.level == "exception" for fact in body.raises)
            if relays or raises or any(self.writes(body)):
                yield f"{function.full_name}() reads it and acts on it"
            elif any(read.locks and table in self.tables_read(read) for read in body.reads):
                yield f"{function.full_name}() locks its rows, as a consumer of a queue does"
        for what in self.enforced_by(table):
            yield f"{what} reads it"
        writers = {trigger.oid for trigger, _ in self.trigger_writes[table.oid]}
        for key in table.foreign_keys:
            owner = self.atlas.tables.get(key.referenced_oid)
            if owner is None or key.on_delete not in ("a", "r") or owner.oid == table.oid:
                continue
            makers = {trigger.oid for trigger, _ in self.trigger_writes[self.atlas.root(owner).oid]}
            if not makers or not makers <= writers:  # what only the same triggers write goes with it
                yield f"its foreign key {key.name} stops rows of {owner.full_name} from being deleted"
        for policy in self.policies_on[table.oid]:
            yield f"policy {policy} reads it"

    def _filled_from(self, table: Table, trigger: Trigger) -> Iterator[str]:
        """What a column's default looks at: a row that is made from others is more than a line in a log."""
        head = f"{DEFAULT_OF}{table.full_name}."
        for read in self.bodies[trigger.oid].reads:
            for step in read.via:
                if step.startswith(head):
                    column = step.removeprefix(head).partition(":")[0]
                    yield f"its column {column} is filled from what {read.relation} holds"

    def _kinship(self, table: Table) -> Iterator[str]:
        """A log whose rows are also another table's: whoever reads that one sees them."""
        for child, parent in self.inventory.inherits:
            above = self.atlas.tables.get(parent)
            if child == table.oid and above is not None and not LOG_WORDS.intersection(_words(above.name)):
                yield f"its rows are seen in {above.full_name}, from which it inherits"

    def is_own_history(self, table: Table, owner: Table) -> bool:
        """Whether a table that refers to a log is a log of the same triggers: their rows go together."""
        writers = {trigger.oid for trigger, _ in self.trigger_writes[owner.oid]}
        common = {trigger.oid for trigger, _ in self.trigger_writes[table.oid]}
        return owner.oid != table.oid and bool(writers) and writers <= common and self.log(owner).is_log

    def _state_columns(self, table: Table) -> Iterator[str]:
        given = {
            column
            for _, write in self.trigger_writes[table.oid]
            if isinstance(write, Insert)
            for column in write.columns
        }
        for column in table.columns:
            name = column.name.lower()
            left_alone = column.name not in given
            named = STATE_COLUMN.fullmatch(name) or _STATUS_COLUMN.fullmatch(name) or _WAITING_NAME.fullmatch(name)
            empty = not (column.not_null or column.default or column.identity or column.generated or column.expression)
            # A truth that no trigger tells, or a time that none fills in, is told by somebody later.
            untold = column.type == "boolean" or (empty and column.type.startswith(("timestamp", "date")))
            if left_alone and (named or (untold and given)):
                yield f"its column {column.name} waits for somebody to set it"

    def _protects(self, trigger: Trigger) -> bool:
        """Whether a trigger on a log only forbids that its rows be changed."""
        body = self.bodies[trigger.oid]
        cancels = trigger.timing is Timing.BEFORE and any(fact.what == "null" for fact in body.returns)
        forbids = cancels or any(fact.level == "exception" for fact in body.raises)
        return Event.INSERT not in trigger.events and forbids

    @staticmethod
    def _more_than_append(who: str, write: Write, *, anybody: bool = False) -> Iterator[str]:
        match write:
            case Insert(on_conflict=OnConflict.UPDATE):
                yield f"{who} overwrites its rows (ON CONFLICT DO UPDATE)"
            case Update():
                yield f"{who} updates it"
            case Delete() if not anybody and not write.where:
                yield f"{who} empties it"
            case Delete(truncate=False) if re.search(r"\breturning\b|\bskip\s+locked\b", write.text, re.IGNORECASE):
                yield f"{who} takes rows out of it"
            case Delete(truncate=False) if not anybody and re.search(r"\b(new|old)\b", write.where, re.IGNORECASE):
                yield f"{who} takes rows of one entity back out of it"
            case _:
                pass

    def _log_notes(self, table: Table) -> Iterator[str]:
        if table.scans > 0:
            yield f"it was read {table.scans} times: whoever does that would have to ask the store"
        if table.deleted > 0:
            yield f"rows are deleted from it ({table.deleted} so far): taken for pruning"
        for function, write in self.function_writes[table.oid]:
            if isinstance(write, Delete):
                yield f"{function.full_name}() deletes from it: taken for pruning"
        for trigger, write in self.trigger_writes[table.oid]:
            if isinstance(write, Delete):
                yield f"trigger {trigger.name} deletes from it: taken for pruning"
        for view in self.views_on[table.oid]:
            yield f"view {view.full_name} shows it, and would have to look at the store"
        for function in self.function_reads[table.oid]:
            yield f"{function.full_name}() reads it, and would have to ask the store"


def _enforced_texts(table: Table) -> Iterator[tuple[str, str]]:
    """The expressions that every write of a table runs, and what they are."""
    for check in table.checks:
        yield f"{check.name} of {table.full_name}", check.expression or ""
    for column in table.columns:
        for text in (column.default, column.expression):
            if text:
                yield f"the column {column.name} of {table.full_name}", text
    for text in table.computed:
        yield f"an index of {table.full_name}", text


def sequence_names(text: str) -> Iterator[str]:
    """The sequences that an expression names as text; ``of t`` for pg_get_serial_sequence('t', …)."""
    for match in re.finditer(r"(\bpg_get_serial_sequence\s*\(\s*)?'((?:[^']|'')+)'(\s*,\s*'[^']*')?", text):
        parts = split_names(match[2])
        if parts:
            yield f"of {parts[-1]}" if match[1] else parts[-1]


def _words_of(text: str) -> set[str]:
    return {unquote(token.text) for token in tokens(text) if token.kind in ("word", "quoted")}


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _row_text(write: Insert) -> str:
    return uncommented(" ".join((*write.values, write.source)))


def _queue_words(words: list[str]) -> frozenset[str]:
    """The words of a name that speak of a queue; an event of an audit is none."""
    found = QUEUE_WORDS.intersection(words)
    return found - {"event", "events"} if LOG_WORDS.intersection(words) else found


def _copies_row(trigger: Trigger, write: Insert) -> bool:
    """Whether most of a row is a copy of the trigger's row: its columns under their own names, or the whole as JSON.

    The row may also come out of a transition table, or be read back from the trigger's own table.
    """
    rows = ["new", "old"]
    for name in (trigger.old_table, trigger.new_table, trigger.table):
        if name and write.from_select:
            found = re.search(
                rf'\bfrom\s+(\w+\.)?"?{re.escape(name)}"?(\s+(as\s+)?(?!where\b)(\w+))?', write.source, re.I
            )
            rows += [found[4] or name] if found else []
    same = [
        column
        for column, value in zip(write.columns, write.values, strict=False)
        if re.fullmatch(rf"\(?({'|'.join(map(re.escape, rows))})\)?\.{re.escape(column)}", value.strip(), re.IGNORECASE)
    ]
    return bool(_WHOLE_ROW.search(_row_text(write))) or len(same) * 2 >= max(2, len(write.columns))
