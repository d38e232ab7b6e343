"""The rules, one small function each: what a body does, and what that means for its trigger.

A rule yields a Reason for every place that it finds. Its name is the function's, with hyphens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import pairwise

import msgspec

from afterwrite.scan.catalog import Enabled, Event, ForeignKey, Function, Kind, Table, Timing, Trigger, TriggerLevel
from afterwrite.scan.constraints import is_too_large, refusals
from afterwrite.scan.evaluate import Surroundings, feasible, holds, surroundings
from afterwrite.scan.facts import (
    FACT_FIELDS,
    Assignment,
    Body,
    Call,
    Delete,
    Discard,
    Fact,
    Guard,
    Insert,
    OnConflict,
    Refresh,
    Return,
    Update,
)
from afterwrite.scan.follow import DEFAULT_OF, events_of
from afterwrite.scan.known import CANCELS_ROW, CHANGES_ROW, FORBIDS, NOTIFIES, READS_TEXT
from afterwrite.scan.outcomes import origins
from afterwrite.scan.statements import Batch, Difference, Told
from afterwrite.scan.tokens import split_names, tokens, uncommented, unquote
from afterwrite.scan.verdicts import Reason, Verdict
from afterwrite.scan.world import World, Write

_LITERAL = re.compile(r"'(?:[^']|'')*'(::[\w. ]+)?|[-+]?[\d.]+|true|false|null|default", re.IGNORECASE)
_GENERATED = re.compile(r"\b(nextval|gen_random_uuid|uuid_generate_v\w+|uuidv\d|default)\b|^default$", re.IGNORECASE)
_FROM_ROW = re.compile(r"\b(new|old)\b", re.IGNORECASE)
_AUTONOMOUS = ("dblink", "dblink_exec", "dblink_send_query", "dblink_open")


class Case:
    """One trigger before the judge: its body as followed, and the world that it stands in."""

    def __init__(self, trigger: Trigger, world: World) -> None:
        self.trigger = trigger
        self.world = world
        self.body: Body = world.bodies[trigger.oid]
        self.home = world.home(trigger)

    @property
    def shapes_row(self) -> bool:
        """Whether what it returns, and what it does to NEW, reaches the table."""
        return self.trigger.timing is Timing.BEFORE and self.trigger.level is TriggerLevel.ROW

    @cached_property
    def writes(self) -> list[tuple[Table, Write]]:
        """What it does to tables that are known."""
        found = ((self.world.table(write), write) for write in self.world.writes(self.body))
        return [(table, write) for table, write in found if table is not None]

    @cached_property
    def appends(self) -> list[tuple[Table, Insert]]:
        """Its INSERTs into logs."""
        return [
            (table, write)
            for table, write in self.writes
            if isinstance(write, Insert) and not self.is_own(table) and self.world.log(table).is_log
        ]

    @cached_property
    def effects(self) -> list[tuple[Table, Write]]:
        """Its writes to anything else; pruning a log that it appends to is none."""
        logs = {table.oid for table, _ in self.appends}
        return [(table, write) for table, write in self.writes if table.oid not in logs]

    @cached_property
    def pointless(self) -> list[Discard]:
        """Its PERFORMs that do nothing, and of which not even FOUND is looked at."""
        body = self.body
        looked_at = any(
            name.rpartition(".")[2] == "found" for fact in (*body.assignments, *body.returns) for name in fact.names
        ) or any(
            name.rpartition(".")[2] == "found"
            for field in FACT_FIELDS
            for fact in getattr(body, field)
            for guard in fact.guards
            for name in guard.names
        )
        if looked_at:
            return []
        deeds: list[Fact] = [
            *(*body.inserts, *body.updates, *body.deletes, *body.refreshes, *body.notifies, *body.locks, *body.outside),
            *(*body.commands, *body.dynamics, *body.unknowns, *body.raises, *(s for s in body.settings if s.written)),
            *(read for read in body.reads if read.locks),
            *(call for call in body.calls if _moves(call.name)),
        ]
        return [
            fact
            for fact in body.discards
            if not (fact.acts or any(_moves(name) for name in fact.calls))
            and not any(_below(deed, fact) for deed in deeds)
            and not any(_within(unknown, fact) for unknown in body.unknowns)
        ]

    @cached_property
    def unused(self) -> list[Assignment]:
        """Its assignments to variables that nothing looks at; none that FOUND, or a write, is the point of."""
        assigned = [fact for fact in self.body.assignments if not fact.via and "." not in fact.variable]
        known = self.world.looked_at  # many triggers share a function
        if assigned and self.trigger.source not in known:
            known[self.trigger.source] = frozenset(_looked_at(self.trigger.source))
        looked_at = known.get(self.trigger.source, frozenset[str]())
        return [
            fact
            for fact in assigned
            if fact.variable not in looked_at
            and not (fact.selected and ("found" in looked_at or not fact.text.lower().startswith("select")))
        ]

    @cached_property
    def lingers(self) -> bool:
        """Whether it has effects that would follow after the commit."""
        return any(True for rule in DEFER for _ in rule(self))

    @cached_property
    def told_apart(self) -> list[Told]:
        """Where a trigger for each statement could tell that it was deferred."""
        for_statements = self.trigger.level is TriggerLevel.STATEMENT and self.trigger.timing is Timing.AFTER
        if not (for_statements and self.lingers):
            return []
        return list(Batch(self.trigger, self.body, self.home).differences())

    def is_own(self, table: Table) -> bool:
        return self.home is not None and self.home.oid == table.oid

    def reason(self, rule: Rule, fact: Fact | None, text: str) -> Reason:
        """A sentence with its line in the trigger's own body, and the functions through which it came there."""
        through = f" (through {' and '.join(fact.via)})" if fact is not None and fact.via else ""
        line = fact.line or None if fact is not None else None
        via = fact.via if fact is not None else ()
        return Reason(rule=rule_name(rule), line=line, text=f"{text}{through}", via=via)


Rule = Callable[[Case], Iterator[Reason]]


def rule_name(rule: Rule) -> str:
    """``changes_new`` → ``changes-new``."""
    return rule.__name__.replace("_", "-")


# keep ----------------------------------------------------------------------------------------------------------------


def extension_owned(case: Case) -> Iterator[Reason]:
    """It belongs to an extension, which would miss it."""
    if case.trigger.extension is not None:
        yield case.reason(extension_owned, None, f"belongs to the extension {case.trigger.extension}")


def instead_of(case: Case) -> Iterator[Reason]:
    """It is the write itself: without it the view cannot be written."""
    if case.trigger.timing is Timing.INSTEAD:
        yield case.reason(instead_of, None, "does the writing of a view (INSTEAD OF)")


def constraint_trigger(case: Case) -> Iterator[Reason]:
    """It was made as a constraint, so that a transaction can be refused."""
    if case.trigger.constraint:
        yield case.reason(constraint_trigger, None, "is a constraint trigger")


def not_in_wal(case: Case) -> Iterator[Reason]:
    """Its table's changes are not in the WAL, so that nothing could take its place."""
    if case.home is None:
        return
    if case.home.kind is Kind.FOREIGN:
        yield case.reason(
            not_in_wal, None, f"{case.home.full_name} is a foreign table: its changes are not in this WAL"
        )
    elif case.home.kind is Kind.VIEW and case.trigger.timing is not Timing.INSTEAD:
        text = f"{case.home.full_name} is a view: the WAL knows only the tables underneath"
        yield case.reason(not_in_wal, None, text)
    elif any(leaf.persistence == "u" for leaf in case.world.atlas.leaves(case.home)):
        yield case.reason(not_in_wal, None, f"{case.home.full_name} is unlogged: its changes are not in the WAL")


def changes_new(case: Case) -> Iterator[Reason]:
    """It sets columns of the row on its way into the table."""
    if not case.shapes_row:
        return
    for fact in case.body.new_assignments:
        what = "NEW" if fact.field == "*" else f"NEW.{fact.field}"
        yield case.reason(changes_new, fact, f"sets {what} to {_short(fact.text)}")
    if case.trigger.function in CHANGES_ROW and case.trigger.language in ("c", "internal"):
        yield case.reason(changes_new, None, f"{case.trigger.function}() sets columns of the row")


def returns_another_row(case: Case) -> Iterator[Reason]:
    """It hands back a row that is not simply the one it was given."""
    if not case.shapes_row:
        return
    for fact in case.body.returns:
        events = events_of(case.trigger, fact)
        if fact.what == "old" and Event.UPDATE in events:
            yield case.reason(returns_another_row, fact, "returns OLD from an UPDATE, which undoes the change")
        elif fact.what not in ("new", "old", "null", "none") and not _is_given_row(fact, case, events):
            yield case.reason(returns_another_row, fact, f"returns {_short(fact.what)} as the row")


def cancels_row(case: Case) -> Iterator[Reason]:
    """A BEFORE trigger that returns NULL: the write does not happen."""
    if not case.shapes_row:
        return
    for fact in case.body.returns:
        events = events_of(case.trigger, fact)
        if fact.what == "null":
            yield case.reason(cancels_row, fact, f"returns NULL{_when(fact.guards)}: the row is not written")
        elif fact.what == "new" and Event.DELETE in events:
            yield case.reason(cancels_row, fact, "returns NEW, which is NULL in a DELETE: the row is not deleted")
        elif fact.what == "old" and Event.INSERT in events:
            yield case.reason(cancels_row, fact, "returns OLD, which is NULL in an INSERT: the row is not written")
    if case.trigger.function in CANCELS_ROW and case.trigger.language in ("c", "internal"):
        yield case.reason(cancels_row, None, f"{case.trigger.function}() may cancel the write")


def raises(case: Case) -> Iterator[Reason]:
    """It refuses the write under some condition. (A bare RAISE in a handler only passes on what happened.)"""
    for fact in case.body.raises:
        if fact.level != "exception" or fact.form == "reraise":
            continue
        match fact.form:
            case "no return":
                text = f"ends without RETURN{_when(fact.guards)}, which is an error"
            case "strict":
                text = f"fails unless exactly one row is found{_when(fact.guards)}"
            case "case":
                text = "has a CASE without ELSE, which fails for every other value"
            case "assert":
                text = f"asserts {_short(fact.message)}"
            case "not null":
                if _never_null(case, fact):
                    continue
                text = f"fails where its variable {fact.message} would become NULL"
            case _:
                text = f"raises {_short(fact.message) or 'an error'}{_when(fact.guards)}"
        yield case.reason(raises, fact, text)
    if case.trigger.function in FORBIDS and case.trigger.language in ("c", "internal"):
        yield case.reason(raises, None, f"{case.trigger.function}() refuses rows")


def checks_a_domain(case: Case) -> Iterator[Reason]:
    """It makes a value one of a domain, whose CHECK refuses what is not."""
    for fact in case.body.casts:
        domain = next(iter(case.world.atlas.find_domains(fact.schema, fact.type)), None)
        if domain is not None and not fact.caught:
            yield case.reason(checks_a_domain, fact, f"fails for a value that is no {domain.name}")


def demands_a_setting(case: Case) -> Iterator[Reason]:
    """It fails where the writer did not set what it asks for: nobody writes without saying who he is."""
    for fact in case.body.settings:
        names_a_table = any(each.why and _within(each, fact) for each in case.body.dynamics)
        missed = fact.strict and not fact.written and not fact.caught
        if missed and "." in (fact.name or "") and not names_a_table:
            yield case.reason(demands_a_setting, fact, f"fails where nobody has set {fact.name}")


def fails_on_purpose(case: Case) -> Iterator[Reason]:
    """It computes something that may fail, and throws the answer away: it is there for its error."""
    for fact in case.pointless:
        risky = fact.risky or any(_below(each, fact) for each in (*case.body.casts, *case.body.divisions))
        if risky and not fact.caught:
            yield case.reason(fails_on_purpose, fact, f"computes {_short(fact.text)} only to see whether that fails")


def sets_sequence(case: Case) -> Iterator[Reason]:
    """It sets a sequence, from which the next default is drawn."""
    for fact in case.body.calls:
        if fact.name == "setval" and fact.schema in (None, "pg_catalog"):
            yield case.reason(sets_sequence, fact, f"sets the sequence {_short(', '.join(fact.texts))}")


def feeds_a_setting(case: Case) -> Iterator[Reason]:
    """It sets what a policy or another trigger asks for in the same session."""
    for fact in case.body.settings:
        if fact.written and fact.name:
            for reader in dict.fromkeys(case.world.setting_readers(fact.name, case.trigger)):
                yield case.reason(feeds_a_setting, fact, f"sets {fact.name}, which {reader} looks at")


def writes_own_table(case: Case) -> Iterator[Reason]:
    """It changes other rows (or the same one again) of the table that it is on: part of the write."""
    for table, write in case.writes:
        if case.home is not None and case.world.reaches(table, write, case.home):
            whose = "its own table" if case.is_own(table) else f"its own rows through {table.full_name}, from which"
            inherits = "" if case.is_own(table) else " inherits"
            yield case.reason(writes_own_table, write, f"{_deed(write)} {whose} {case.home.full_name}{inherits}")


def enforced_target(case: Case) -> Iterator[Reason]:
    """It writes what a constraint or a refusing trigger guards: through it, the writer itself is refused."""
    for table, write in case.writes:
        if not case.is_own(table):
            for text in _enforced(case, table, write):
                yield case.reason(enforced_target, write, text)


def feeds_a_foreign_key(case: Case) -> Iterator[Reason]:
    """It makes rows that others refer to, or clears away rows that refer to the one being deleted."""
    for table, write in case.writes:
        if case.is_own(table):
            continue
        if isinstance(write, Insert):
            for key in table.referenced_by:
                owner = case.world.atlas.tables.get(key.table_oid)
                if owner is not None and case.world.is_own_history(table, case.world.atlas.root(owner)):
                    continue
                if key.table_oid != table.oid and _makes_key(write, key.referenced_columns):
                    text = f"makes the row of {table.full_name} that {owner.full_name if owner else 'others'} refers to"
                    yield case.reason(feeds_a_foreign_key, write, text)
                    break
        elif Event.DELETE in case.trigger.events:
            keys = [key for key in table.foreign_keys if case.home is not None and key.referenced_oid == case.home.oid]
            touched = isinstance(write, Delete) or any(
                set(key.columns).intersection(write.columns) for key in keys if isinstance(write, Update)
            )
            if keys and touched:
                text = f"clears {table.full_name}, whose foreign key would otherwise stop the DELETE"
                yield case.reason(feeds_a_foreign_key, write, text)


def feeds_a_keeper(case: Case) -> Iterator[Reason]:
    """What it writes is read by another trigger that shapes or refuses writes: it must be there at once."""
    for table, write in case.writes:
        columns = _columns_written(write)
        told: set[int] = set()
        for keeper, read in case.world.deciding_on(table):
            if keeper.trigger.oid in (case.trigger.oid, *told):
                continue
            if columns is None or not read.columns or "*" in read.columns or columns.intersection(read.columns):
                told.add(keeper.trigger.oid)
                what = f"{table.full_name}" if columns is None else f"{table.full_name} ({_list(columns)})"
                text = f"{_deed(write)} {what}, on which trigger {keeper.trigger.identity} decides"
                yield case.reason(feeds_a_keeper, write, text)


def feeds_a_policy(case: Case) -> Iterator[Reason]:
    """What it writes decides who may see or write rows (row level security)."""
    for table, write in case.writes:
        for policy in case.world.policies_on[table.oid]:
            yield case.reason(feeds_a_policy, write, f"{_deed(write)} {table.full_name}, which policy {policy} reads")


def feeds_a_constraint(case: Case) -> Iterator[Reason]:
    """What it writes is read by a constraint, a default, an index or a rewrite rule: it must be there at once."""
    for table, write in case.writes:
        for what in case.world.enforced_by(table):
            yield case.reason(feeds_a_constraint, write, f"{_deed(write)} {table.full_name}, which {what} reads")


def reads_own_write(case: Case) -> Iterator[Reason]:
    """A function writes this trigger's table and then reads what the trigger wrote, in the same transaction."""
    if case.home is None:
        return
    events = {Insert: Event.INSERT, Update: Event.UPDATE, Delete: Event.DELETE}
    for table, write in case.writes:
        for function, cause in case.world.function_writes[case.home.oid]:
            if isinstance(cause, Refresh) or events[type(cause)] not in case.trigger.events:
                continue
            after = _reads_after(case, function, cause, table)
            if after:
                text = f"{function.full_name}() writes {case.home.full_name} and then reads {table.full_name}"
                yield case.reason(reads_own_write, write, text)
                break


def feeds_a_check(case: Case) -> Iterator[Reason]:
    """What it writes is looked at by a function that refuses on it, which may be asked in the same transaction."""
    for table, write in case.effects:
        columns = _columns_written(write)
        called = {step.rpartition(":")[0] for step in write.via}
        for function, deciding in case.world.refusing[table.oid]:
            decides = columns is None or "*" in deciding or columns & deciding
            if function.full_name not in called and decides:
                what = table.full_name if columns is None else f"{table.full_name} ({_list(columns)})"
                text = f"{_deed(write)} {what}, on which {function.full_name}() decides whether to refuse"
                yield case.reason(feeds_a_check, write, text)
                break


def gives_its_key(case: Case) -> Iterator[Reason]:
    """The key that it draws for its row is asked for in the same session (currval, lastval)."""
    for table, write in case.writes:
        if isinstance(write, Insert) and not case.is_own(table):
            for who in dict.fromkeys(case.world.keys_asked(table, case.trigger)):
                yield case.reason(
                    gives_its_key, write, f"inserts into {table.full_name}, whose last key {who} asks for"
                )


def sets_off_a_keeper(case: Case) -> Iterator[Reason]:
    """Its write fires a trigger whose effect must be there at once, or may be refused: both must stay together."""
    for table, write in case.writes:
        if case.is_own(table):
            continue
        for trigger in case.world.effective_keepers(table, write):
            text = f"{_deed(write)} {table.full_name}, which sets off trigger {trigger.name}, and that must stay"
            yield case.reason(sets_off_a_keeper, write, text)


# review --------------------------------------------------------------------------------------------------------------


def unreadable(case: Case) -> Iterator[Reason]:
    """A part of it cannot be read: another language, dynamic SQL, a function or a table that is not there."""
    known = CHANGES_ROW | CANCELS_ROW | FORBIDS | NOTIFIES
    is_known = case.trigger.language in ("c", "internal") and case.trigger.function in known
    for fact in case.body.unknowns:
        if is_known and fact.rule == "other-language" and not fact.via:
            continue
        reason = case.reason(unreadable, fact, fact.text)
        yield Reason(rule=fact.rule, line=reason.line, text=reason.text, via=reason.via)


def sets_off_the_unread(case: Case) -> Iterator[Reason]:
    """Its write fires a trigger of which a part cannot be read: that one may refuse it, and the writer with it."""
    for table, write in case.writes:
        if case.is_own(table):
            continue
        for trigger in case.world.unread(table, write):
            text = f"{_deed(write)} {table.full_name}, which sets off {trigger.identity}, and that cannot be read"
            yield case.reason(sets_off_the_unread, write, text)


def feeds_the_unread(case: Case) -> Iterator[Reason]:
    """What it writes is named by a function that cannot be read, and that may rely on it at once."""
    for table, write in case.writes:
        for name in case.world.named_in_the_dark(table):
            if name == f"trigger {case.trigger.identity}":
                continue
            text = f"{_deed(write)} {table.full_name}, which {name} names, and that cannot be read"
            yield case.reason(feeds_the_unread, write, text)


def may_be_refused(case: Case) -> Iterator[Reason]:
    """A constraint of a table that it writes is not proven to take every row, and may refuse the writer with it."""
    for table, write in case.writes:
        if case.is_own(table) or table.kind is Kind.VIEW or any(_enforced(case, table, write)):
            continue
        for text in dict.fromkeys(refusals(case.world, case.trigger, table, write)):
            yield case.reason(may_be_refused, write, text)


def fires_only_as_replica(case: Case) -> Iterator[Reason]:
    """It fires only for writes that a replica applies, which look like all others in the WAL."""
    if case.trigger.enabled is Enabled.REPLICA:
        yield case.reason(fires_only_as_replica, None, "fires only with session_replication_role = replica")


def waits(case: Case) -> Iterator[Reason]:
    """It makes its writer wait, perhaps on purpose."""
    for fact in case.body.calls:
        if fact.name.startswith("pg_sleep") and fact.schema in (None, "pg_catalog"):
            yield case.reason(waits, fact, "makes the writer wait (pg_sleep)")


def throws_away(case: Case) -> Iterator[Reason]:
    """It computes or looks up something and throws the answer away: why, its text does not say."""
    for fact in case.pointless:
        # What a function that calls itself does is told where it is called first.
        around = {_called_in(step) for step in fact.via} | {case.trigger.function}
        further = (call.name for call in case.body.calls if _below(call, fact))
        if (fact.calls or fact.reads) and around.isdisjoint((*fact.calls, *further)) and not fact.caught:
            yield case.reason(throws_away, fact, f"throws away what it asks for: {_short(fact.text)}")
        elif not (fact.calls or fact.reads or fact.caught or _is_harmless(fact.text)):
            yield case.reason(throws_away, fact, f"throws away what it computes: {_short(fact.text)}")
    for fact in case.unused:
        if not fact.caught and not _is_harmless(fact.text):
            yield case.reason(throws_away, fact, f"never looks at {fact.variable}, made from {_short(fact.text)}")


def may_fail(case: Case) -> Iterator[Reason]:
    """It reads what its row holds as another type: a text that is none, or a number too large, fails the write."""
    for fact in case.body.casts:
        for name, given in dict.fromkeys(_taken(case, fact, fact.origins)):
            taken = fact.type in _TAKES_TEXT or (given.startswith("json") and fact.type.startswith("json"))
            if given.startswith(_FREE_TYPES) and not taken and not fact.caught:
                yield case.reason(may_fail, fact, f"fails where {name} ({given}) holds no {fact.type}")
            elif is_too_large(given, _INTEGERS.get(fact.type, "")) and not fact.caught:
                yield case.reason(may_fail, fact, f"fails where {name} ({given}) is too large for {fact.type}")
    for fact in case.body.calls:
        if fact.name in READS_TEXT and fact.schema in (None, "pg_catalog") and not fact.caught:
            given = dict(_taken(case, fact, (name for text in fact.texts for name in origins(text))))
            for name, kind in given.items():
                if kind.startswith(_FREE_TYPES):
                    yield case.reason(may_fail, fact, f"fails where {fact.name}() cannot read {name} ({kind})")


def sets_session_state(case: Case) -> Iterator[Reason]:
    """It leaves something behind in the session, which later statements may rely on."""
    for fact in case.body.settings:
        if fact.written:
            yield case.reason(sets_session_state, fact, f"sets {fact.name or 'a session setting'}")


def runs_commands(case: Case) -> Iterator[Reason]:
    """It runs statements that are neither queries nor changes of rows: DDL, COPY, transaction control."""
    for fact in case.body.commands:
        yield case.reason(runs_commands, fact, f"runs {fact.what}")


def takes_lock(case: Case) -> Iterator[Reason]:
    """It takes a lock that makes writers wait for one another, perhaps on purpose."""
    for fact in case.body.locks:
        yield case.reason(takes_lock, fact, f"takes a lock ({fact.what})")
    written = {table.oid for table, _ in case.writes}
    for read in case.body.reads:
        table = case.world.table(read)
        if read.locks and table is not None and table.oid not in written:
            yield case.reason(takes_lock, read, f"locks rows of {table.full_name} that it does not write")


def pg_trigger_depth(case: Case) -> Iterator[Reason]:
    """It behaves differently when another trigger caused it; afterwards nobody knows."""
    for fact in case.body.sessions:
        if fact.name == "pg_trigger_depth":
            yield case.reason(pg_trigger_depth, fact, "asks pg_trigger_depth()")


def counts_statements(case: Case) -> Iterator[Reason]:
    """It does something once for each statement; deferred, it would run once for a whole transaction."""
    yield from _told_apart(case, counts_statements, Difference.COUNTS)


def weighs_its_rows(case: Case) -> Iterator[Reason]:
    """It takes the rows of one statement together; deferred, they would be those of a whole transaction."""
    yield from _told_apart(case, weighs_its_rows, Difference.WEIGHS)


def sees_later_rows(case: Case) -> Iterator[Reason]:
    """It looks at rows which, deferred, would be those of later statements as well."""
    yield from _told_apart(case, sees_later_rows, Difference.LATER)


def meets_a_row_twice(case: Case) -> Iterator[Reason]:
    """It needs each row once; deferred, it would meet all versions of it that a transaction wrote."""
    yield from _told_apart(case, meets_a_row_twice, Difference.TWICE)


def before_statement(case: Case) -> Iterator[Reason]:
    """It runs before a statement, when nothing is written yet; deferred, it could only run after rows."""
    trigger = case.trigger
    if trigger.level is TriggerLevel.STATEMENT and trigger.timing is Timing.BEFORE and case.lingers:
        text = "runs before a statement, whether rows are written or not"
        yield case.reason(before_statement, None, text)


def _told_apart(case: Case, rule: Rule, difference: Difference) -> Iterator[Reason]:
    for told in case.told_apart:
        if told.difference is difference:
            yield case.reason(rule, told.fact, f"{told.text}; deferred, it runs once a transaction")


def writes_through_a_view(case: Case) -> Iterator[Reason]:
    """It writes a view: what becomes of that is the business of rules and INSTEAD OF triggers."""
    for table, write in case.writes:
        if table.kind is Kind.VIEW:
            yield case.reason(writes_through_a_view, write, f"{_deed(write)} the view {table.full_name}")


def writes_on_its_own_connection(case: Case) -> Iterator[Reason]:
    """It writes over a connection of its own, which a rollback of the writer does not undo."""
    for fact in case.body.outside:
        if fact.function.rpartition(".")[2] in _AUTONOMOUS:
            text = f"works over a connection of its own ({fact.function}): a rollback does not undo it"
            yield case.reason(writes_on_its_own_connection, fact, text)


# defer ---------------------------------------------------------------------------------------------------------------


def writes_other_table(case: Case) -> Iterator[Reason]:
    """It writes a table that is not a log; that table becomes eventually consistent."""
    for table, write in case.effects:
        columns = _columns_written(write)
        what = f"{table.full_name} ({_list(columns)})" if columns else table.full_name
        against = case.world.log(table).against if isinstance(write, Insert) and case.world.log(table).why else ()
        because = f" (not only a log: {against[0]})" if against else ""
        text = f"{_deed(write)} {what}{because}, which may follow a moment after the commit{_seen_by(case, table)}"
        yield case.reason(writes_other_table, write, text)


def notifies(case: Case) -> Iterator[Reason]:
    """It tells listeners, who would hear of it a moment after the commit."""
    for fact in case.body.notifies:
        yield case.reason(notifies, fact, f"notifies the channel {_short(fact.channel)}")
    if case.trigger.function in NOTIFIES and case.trigger.language in ("c", "internal"):
        yield case.reason(notifies, None, f"{case.trigger.function}() notifies listeners")


def calls_out(case: Case) -> Iterator[Reason]:
    """It calls somebody outside the database."""
    for fact in case.body.outside:
        if fact.function.rpartition(".")[2] not in _AUTONOMOUS:
            yield case.reason(calls_out, fact, f"calls out with {fact.function}()")


def advances_sequence(case: Case) -> Iterator[Reason]:
    """It draws from a sequence that is not the key of a log: whoever looks at the sequence sees it move."""
    for fact in case.body.calls:
        if fact.name == "nextval" and fact.schema in (None, "pg_catalog") and not _numbers_a_row(case, fact):
            text = f"draws from the sequence {_short(', '.join(fact.texts))}"
            yield case.reason(advances_sequence, fact, text)


def writes_server_log(case: Case) -> Iterator[Reason]:
    """Its messages go to the server's log, where somebody may collect them."""
    for fact in case.body.raises:
        if fact.level in ("log", "warning") and not fact.handler:
            yield case.reason(writes_server_log, fact, f"writes to the server's log: {_short(fact.message)}")


# retire --------------------------------------------------------------------------------------------------------------


def appends_to_log(case: Case) -> Iterator[Reason]:
    """It only appends to a table that is nothing but a log; the store takes its place."""
    for table, write in case.appends:
        why = case.world.log(table).why
        text = f"appends to the log {table.full_name}: {' and '.join(why)}, and nobody changes or relies on its rows"
        yield case.reason(appends_to_log, write, text)


def has_no_effect(case: Case) -> Iterator[Reason]:
    """It does nothing that anybody could see."""
    body = case.body
    serious = [fact for fact in body.raises if fact.level not in ("notice", "info", "debug") and not fact.handler]
    # What is computed for nothing may be there to fail, and what is called or looked up may matter in other ways.
    risky = [fact for fact in (*body.casts, *body.divisions) if not fact.caught]
    asked = [fact for fact in body.calls if not case.world.atlas.is_builtin(fact.schema, fact.name)]
    if not (case.writes or body.unknowns or body.notifies or body.outside or serious or risky or asked or body.reads):
        yield case.reason(has_no_effect, None, "does nothing that anybody could rely on")


KEEP: tuple[Rule, ...] = (
    extension_owned,
    instead_of,
    constraint_trigger,
    not_in_wal,
    changes_new,
    returns_another_row,
    cancels_row,
    raises,
    checks_a_domain,
    demands_a_setting,
    fails_on_purpose,
    sets_sequence,
    feeds_a_setting,
    writes_own_table,
    enforced_target,
    feeds_a_foreign_key,
    feeds_a_policy,
    feeds_a_constraint,
    reads_own_write,
    feeds_a_check,
    gives_its_key,
)
LATE_KEEP: tuple[Rule, ...] = (feeds_a_keeper, sets_off_a_keeper)
REVIEW: tuple[Rule, ...] = (
    unreadable,
    sets_off_the_unread,
    feeds_the_unread,
    may_be_refused,
    fires_only_as_replica,
    waits,
    throws_away,
    may_fail,
    sets_session_state,
    runs_commands,
    takes_lock,
    pg_trigger_depth,
    counts_statements,
    weighs_its_rows,
    sees_later_rows,
    meets_a_row_twice,
    before_statement,
    writes_through_a_view,
    writes_on_its_own_connection,
)
DEFER: tuple[Rule, ...] = (writes_other_table, notifies, calls_out, advances_sequence, writes_server_log)
RETIRE: tuple[Rule, ...] = (appends_to_log, has_no_effect)


class RuleEntry(msgspec.Struct, frozen=True):
    """A rule as people know it: its name, the verdict that it leads to by itself, and what it says.

    ``never`` are verdicts that nobody may put in its place, whatever the reason: what it found is certain.
    """

    name: str
    verdict: Verdict
    sentence: str
    never: frozenset[Verdict] = frozenset()


# What ``unreadable`` finds goes by the name of its cause; ``unclear`` is said where no rule speaks.
_CAUSES = {
    "unparsable": "A text that it runs cannot be parsed.",
    "other-language": "It is written, or calls something that is written, in a language that is not read here.",
    "unknown-function": "It calls a function that may do anything.",
    "unknown-table": "It writes a table that cannot be seen here.",
    "depends-on-search-path": "It writes a name that means another table for other roles.",
    "writes-system-catalog": "It writes a system catalog.",
    "dynamic-sql": "It runs SQL that is only known when it runs.",
    "unclear": "No rule says what it is for.",
}


# A trigger that is the write itself, somebody else's, or beyond the WAL cannot go; one that shapes its row cannot wait.
_NEVER: dict[Rule, frozenset[Verdict]] = {
    **dict.fromkeys(
        (extension_owned, instead_of, constraint_trigger, not_in_wal), frozenset({Verdict.RETIRE, Verdict.DEFER})
    ),
    **dict.fromkeys((changes_new, returns_another_row, cancels_row), frozenset({Verdict.DEFER})),
}


def _entries() -> dict[str, RuleEntry]:
    listed = {
        Verdict.KEEP: (*KEEP, *LATE_KEEP),
        Verdict.REVIEW: tuple(rule for rule in REVIEW if rule is not unreadable),
        Verdict.DEFER: DEFER,
        Verdict.RETIRE: RETIRE,
    }
    found = [
        RuleEntry(rule_name(rule), verdict, " ".join((rule.__doc__ or "").split()), _NEVER.get(rule, frozenset()))
        for verdict, rules in listed.items()
        for rule in rules
    ]
    found += [RuleEntry(name, Verdict.REVIEW, sentence) for name, sentence in _CAUSES.items()]
    return {entry.name: entry for entry in found}


RULES = _entries()
"""Every rule by its name; docs/rules.md has a chapter for each."""


# What the rules look at ----------------------------------------------------------------------------------------------


def _enforced(case: Case, table: Table, write: Write) -> Iterator[str]:
    match write:
        case Update():
            yield from _enforced_update(case, table, frozenset(write.columns), dict(_laid(write)))
            yield from _refused(case, table, write)
        case Insert():
            if write.on_conflict is OnConflict.UPDATE:
                yield from _enforced_update(case, table, frozenset(write.updates), {})
            yield from _enforced_insert(case, table, write)
        case Delete():
            yield from _refused(case, table, write)
            for deed in case.world.set_off(table, write):
                for key in deed.table.referenced_by:
                    refuses = key.on_delete in ("a", "r") and deed.event is Event.DELETE
                    if refuses and key.table_oid not in (table.oid, deed.table.oid):
                        yield f"deletes from {table.full_name}, which the foreign key {key.name} may refuse"
        case Refresh():
            return


def _enforced_update(case: Case, table: Table, columns: frozenset[str], given: dict[str, str]) -> Iterator[str]:
    computed = frozenset(column for column in columns if not _LITERAL.fullmatch(given.get(column, "?").strip()))
    for check in case.world.atlas.checks(table):
        if computed.intersection(check.columns):
            named = _list(computed.intersection(check.columns))
            yield f"updates {table.full_name} ({named}), which {check.name} {_short(check.definition)} guards"
    for unique in case.world.atlas.uniques(table):
        if computed.intersection(unique.columns):
            named = _list(computed.intersection(unique.columns))
            kind = "exclusion constraint" if unique.exclusion else "unique index"
            yield f"updates {table.full_name} ({named}), under the {kind} {unique.name}"
    for key in table.foreign_keys:
        if computed.intersection(key.columns) and any(_FROM_ROW.search(given.get(name, "")) for name in key.columns):
            yield from _unguarded(case, table, key, given)


def _refused(case: Case, table: Table, write: Write) -> Iterator[str]:
    for trigger, where in case.world.refusers(table, write):
        place = "where" if where.oid == table.oid else f"and through it changes {where.full_name}, where"
        columns = _columns_written(write)
        what = f"{table.full_name} ({_list(columns)})" if columns else table.full_name
        yield f"{_deed(write)} {what}, {place} trigger {trigger.name} may refuse it"


def _unguarded(case: Case, table: Table, key: ForeignKey, given: dict[str, str]) -> Iterator[str]:
    """A foreign key that refuses values which the trigger's own table lets through."""
    home = case.home
    if home is None or key.referenced_oid == table.oid:
        return
    if key.referenced_oid == home.oid:  # the row that is being written is there, unless it is being deleted
        return
    columns = [_column_of(given.get(name, "")) for name in key.columns]
    if None not in columns and _is_there(case, home, tuple(name for name in columns if name), key.referenced_oid):
        return
    owner = case.world.atlas.tables.get(key.referenced_oid)
    there = owner.full_name if owner is not None else "another table"
    yield f"writes {table.full_name} ({_list(key.columns)}), which {key.name} allows only for rows of {there}"


def _is_there(case: Case, table: Table, columns: tuple[str, ...], oid: int, depth: int = 0) -> bool:
    """Whether foreign keys see to it that values of these columns are keys of another table, at one or more removes."""
    for key in table.foreign_keys:
        if set(columns) <= set(key.columns):
            if key.referenced_oid == oid:
                return True
            above = case.world.atlas.tables.get(key.referenced_oid)
            names = dict(zip(key.columns, key.referenced_columns, strict=False))
            further = tuple(names[column] for column in columns)
            if above is not None and depth < 4 and _is_there(case, above, further, oid, depth + 1):
                return True
    return False


def _may_be_null(case: Case, value: str, depth: int = 0) -> bool:
    """Whether a value is of a kind that is NULL for some writers: a column that may be, a setting that nobody made."""
    value = uncommented(value)
    column = _column_of(value)
    if column is not None:
        of_home = {each.name: each.not_null for each in case.home.columns} if case.home is not None else {}
        return not of_home.get(column, True)
    text = re.sub(r"::[\w .\[\]]+$", "", value.strip().lower()).strip("() ")
    if re.match(r"(pg_catalog\.)?current_setting\s*\(?[^()]*,\s*true", text) or text.startswith("nullif("):
        return True
    set_to = [fact for fact in case.body.assignments if fact.variable == text]
    return depth < 3 and len(set_to) == 1 and not set_to[0].selected and _may_be_null(case, set_to[0].text, depth + 1)


def _enforced_insert(case: Case, table: Table, write: Insert) -> Iterator[str]:
    columns = frozenset(write.columns)
    given = dict(_laid(write))
    is_log = case.world.log(table).is_log
    own_key = case.home.primary_key if case.home is not None else ()
    # A row is inserted once, but updated often: only then can a copy of its key come again.
    once = len([event for event in events_of(case.trigger, write) if event is not Event.TRUNCATE]) == 1
    once = once and Event.UPDATE not in events_of(case.trigger, write)
    for unique in case.world.atlas.uniques(table):
        named = _named_in(unique.expressions, table) if unique.expressions else ()
        guarded = (*unique.columns, *named)
        if not columns.issuperset(guarded) or not guarded:
            continue
        if unique.exclusion:
            yield f"inserts into {table.full_name}, under the exclusion constraint {unique.name}"
        elif write.on_conflict is OnConflict.NONE and not write.drops_duplicates and given:
            values = [given[column] for column in guarded]
            generated = any(_GENERATED.search(value) or "clock_timestamp" in value for value in values)
            generated |= any(_drawn(case, value) for value in values)
            generated |= is_log and any(_is_time(table, column) for column in guarded)
            # A copy of the row's own key cannot collide: the key itself is unique already.
            copied = own_key and all(any(_is_column(value, name) for value in values) for name in own_key)
            copied = copied and (once or not is_log)
            if not generated and not copied and any(_FROM_ROW.search(value) for value in values):
                yield f"inserts into {table.full_name}, where {unique.name} allows {_list(guarded)} once"
    same = {_plain(check.definition) for check in case.world.atlas.checks(case.home)} if case.home is not None else ()
    for check in case.world.atlas.checks(table):
        lists = "ANY" in check.definition or "IS NOT NULL" in check.definition
        # A list of words guards what is taken from the row as it is; other conditions also what is made of it.
        derived = [
            column
            for column in check.columns
            if (_column_of(given.get(column, "")) if lists else _FROM_ROW.search(given.get(column, "")))
        ]
        copied = all(_is_column(given.get(column, ""), column) for column in check.columns)
        if derived and not (copied and _plain(check.definition) in same):
            yield f"inserts into {table.full_name} ({_list(derived)}), which {check.name} guards"
    for key in table.foreign_keys:
        if any(_FROM_ROW.search(given.get(column, "")) for column in key.columns):
            yield from _unguarded(case, table, key, given)
    if table.partition_key and not case.world.atlas.takes_every_row(table):
        named = [name for name in _named_in(table.partition_key, table) if not _is_time(table, name)]
        derived = [name for name in named if _FROM_ROW.search(given.get(name, ""))]
        if derived:
            yield f"inserts into {table.full_name}, which has no partition for every {_list(derived)}"
    for column in table.columns:
        if column.not_null and column.name in given and _may_be_null(case, given[column.name]):
            yield f"inserts into {table.full_name}, where {column.name} must not be NULL"
    yield from _refused(case, table, write)


def _drawn(case: Case, value: str) -> bool:
    """Whether a value is a variable that holds what a generator drew, or the key of a row that was just inserted."""
    name = value.strip().lower()
    inserted = any(name in write.returning_into for _, write in case.writes if isinstance(write, Insert))
    texts = [fact.text for fact in case.body.assignments if fact.variable == name and not fact.selected]
    return inserted or (bool(texts) and all(_GENERATED.search(text) for text in texts))


def _makes_key(write: Insert, key: Iterable[str]) -> bool:
    """Whether an INSERT gives a key that others could know beforehand: named, and not drawn by a generator."""
    given = dict(_laid(write))
    return all(column in write.columns and not _GENERATED.search(given.get(column, "?")) for column in key)


def _reads_after(case: Case, function: Function, cause: Write, table: Table) -> bool:
    body = case.world.function_bodies[function]
    later = (read for read in body.reads if read.line >= cause.line)
    return any(seen.oid == table.oid for read in later for seen in case.world.tables_read(read))


def _is_given_row(returned: Return, case: Case, events: Iterable[Event]) -> bool:
    """Whether a returned expression can only be the row that lets the write go on as it is, at each of these events."""
    text = _row_word(returned.what)
    if text in (_EITHER_ROW, "case when tg_op = 'DELETE' then old else new end"):
        return True
    if not re.fullmatch(r"[\w$]+", text):
        return False
    body = case.body
    set_to = [fact for fact in body.assignments if fact.variable == text]
    if any(fact.variable.startswith(f"{text}.") for fact in body.assignments):
        return False
    if any(call.procedure and text in {name.partition(".")[0] for name in call.names} for call in body.calls):
        return False  # it may be an INOUT parameter

    def holds_it(event: Event) -> bool:
        around = surroundings(case.trigger, event)
        row = "old" if event is Event.DELETE else "new"
        reached = [fact for fact in set_to if feasible(fact.guards, around)]
        right = all(_row_word(fact.text) in (row, _EITHER_ROW) for fact in reached)
        return right and any(_surely_before(fact, returned, around, body) for fact in reached)

    return all(holds_it(event) for event in events)


_EITHER_ROW = "coalesce(new, old)"


def _row_word(text: str) -> str:
    """An expression in small letters and single spaces, but for what is quoted."""
    plain = " ".join(each if each.startswith("'") else each.lower() for each in text.split())
    return plain.replace("( ", "(").replace(" )", ")").replace(" ,", ",")


def _surely_before(fact: Fact, later: Fact, around: Surroundings, body: Body) -> bool:
    """Whether one place is passed whenever the other is reached."""
    shared = set(later.guards)
    open_ways = [guard for guard in fact.guards if guard not in shared and holds(guard.test, around) is None]
    blocks = [line for line in body.exception_blocks if line <= fact.line]
    aside = bool(blocks) and (fact.caught is not later.caught or later.handler)
    return not (open_ways or fact.loop or fact.handler or aside) and fact.line <= later.line


def _laid(write: Insert | Update) -> Iterator[tuple[str, str]]:
    return zip(write.columns, map(uncommented, write.values), strict=False)


def _is_column(value: str, column: str) -> bool:
    return _column_of(value) == column


def _column_of(value: str) -> str | None:
    """The column of the trigger's row that an expression is, cast or not; None for anything else."""
    found = re.fullmatch(r'\(*(new|old)\)*\.("(?:[^"]|"")+"|[\w$]+)\)*(::[\w ]+)?', value.strip(), re.IGNORECASE)
    return unquote(found[2]) if found else None


def _taken(case: Case, fact: Fact, names: Iterable[str], depth: int = 0) -> Iterator[tuple[str, str]]:
    """The columns of the trigger's rows whose text these are, be it through variables, with their types."""
    types = {column.name: column.type for column in case.home.columns} if case.home is not None else {}
    rows = {case.trigger.old_table, case.trigger.new_table} - {None}
    for name in names:
        first, _, column = name.partition(".")
        column = unquote(column)
        if first in ("new", "old"):
            if column in types:
                yield name, types[column]
            continue
        label = f"{fact.via[-1].rpartition(':')[0]}." if fact.via else ""
        set_to = [each for each in case.body.assignments if each.variable in (first, label + first)]
        if (
            column in types
            and not set_to
            and any((r.line, r.column) == (fact.line, column) for r in case.body.row_reads)
        ):
            yield name, types[column]  # of a transition table
        for each in set_to if depth < 4 else ():
            if not each.selected and not column:
                yield from _taken(case, fact, origins(each.text), depth + 1)
            elif column in types and rows and rows.intersection(split_names(each.text)):
                yield name, types[column]


def _named_in(expression: str, table: Table) -> tuple[str, ...]:
    """The table's columns that an expression names."""
    words = {unquote(token.text) for token in tokens(expression) if token.kind in ("word", "quoted")}
    return tuple(column.name for column in table.columns if column.name in words)


def _is_time(table: Table, name: str) -> bool:
    return any(
        column.name == name and column.type.startswith(("timestamp", "tstz", "ts", "date")) for column in table.columns
    )


def _plain(definition: str) -> str:
    return re.sub(r"[\s()]", "", definition).lower()


def _never_null(case: Case, fact: Fact) -> bool:
    """Whether all columns that a NOT NULL variable is filled from are NOT NULL themselves."""
    columns = {column.name: column.not_null for column in case.home.columns} if case.home is not None else {}
    names = [
        name.partition(".")[2]
        for guard in fact.guards[-1:]
        for name in guard.names
        if name.startswith(("new.", "old."))
    ]
    return bool(names) and all(columns.get(name, False) for name in names)


def _within(fact: Fact, outer: Fact) -> bool:
    """Whether something happens in the statement of another: on one of its lines, and as deep or deeper."""
    further = outer.further if isinstance(outer, Discard) else 0
    if not outer.via:
        return 0 <= fact.line - outer.line <= further
    last = len(outer.via) - 1
    if fact.line != outer.line or len(fact.via) <= last or fact.via[:last] != outer.via[:last]:
        return False
    (there, _, first), (here, _, line) = outer.via[last].rpartition(":"), fact.via[last].rpartition(":")
    return there == here and (first == line or 0 <= int(line) - int(first) <= further)


def _below(fact: Fact, outer: Discard) -> bool:
    """Whether something happens in what a PERFORM calls: in a function that it names, or in one that nobody names."""
    depth = len(outer.via)
    if not _within(fact, outer) or len(fact.via) == depth:
        return False
    step = fact.via[depth]
    if step.startswith(DEFAULT_OF) and not outer.calls:  # an INSERT of the same line: this one runs none
        return False
    return _called_in(step) in outer.calls or step.startswith("the ") or "." not in step


def _looked_at(source: str) -> set[str]:
    """The words of a body that stand for more than the name of what is declared or set."""
    listed = [token for token in tokens(source) if token.text.strip()]
    found: set[str] = set()
    for place, token in enumerate(listed):
        if token.kind not in ("word", "quoted"):
            continue
        before = listed[place - 1].text.lower() if place else ";"
        after = listed[place + 1].text if place + 1 < len(listed) else ";"
        declared = before in (";", "declare") and after not in (".", "[", ";", "(")
        declared = declared or (before in ("begin", "then", "else", "loop") and after == ":=")
        if not declared and before != "into":
            found.add(unquote(token.text))
    return found


def _is_harmless(text: str) -> bool:
    """Whether computing an expression cannot fail and does nothing: names, literals, and a few calls."""
    listed = [token for token in tokens(text) if token.text.strip()]
    for before, token in pairwise(listed):
        called = token.text == "(" and before.kind in ("word", "quoted")
        if called and unquote(before.text) not in _CANNOT_FAIL:
            return False
        if before.text.lower() in ("from", "join") and token.text != "(":  # more than one row is an error
            return False
    bare = "".join(" " if token.kind in ("word", "quoted", "string", "number") else token.text for token in listed)
    return not re.search(r"[~/%*+^&#!@-]", bare.replace("->>", "").replace("->", "").replace("=>", ""))


_CANNOT_FAIL = frozenset(
    {
        *("now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "current_setting", "coalesce"),
        *("nullif", "concat", "lower", "upper", "btrim", "trim", "length", "to_json", "to_jsonb", "row_to_json", "row"),
        *("jsonb_build_object", "json_build_object", "hstore", "gen_random_uuid", "txid_current", "inet_client_addr"),
        *("current_query", "md5", "quote_literal", "quote_ident", "quote_nullable", "array", "jsonb_strip_nulls"),
        *("from", "in", "and", "or", "not", "when", "then", "else", "case"),
    }
)
# Types that hold whatever is written, and those that anything can be made.
_FREE_TYPES = ("text", "character", "json", "citext", "name")
_INTEGERS = {
    **dict.fromkeys(("smallint", "int2"), "smallint"),
    **dict.fromkeys(("integer", "int", "int4"), "integer"),
    **dict.fromkeys(("bigint", "int8"), "bigint"),
}
_TAKES_TEXT = frozenset({"text", "varchar", "bpchar", "char", "name", "citext", "character", "character varying"})


def _called_in(step: str) -> str:
    """The function of one step of ``via``."""
    return step.rpartition(":")[0].rpartition(".")[2]


def _moves(name: str) -> bool:
    return name in ("nextval", "setval") or name.startswith("pg_sleep")


def _numbers_a_row(case: Case, fact: Call) -> bool:
    """Whether what is drawn from a sequence becomes a value of a row that is written for it."""
    if any(step.startswith(DEFAULT_OF) for step in fact.via):
        return True
    text = f"nextval({', '.join(fact.texts)})"
    used = {name.partition(".")[0] for name in fact.into}
    for each in case.body.assignments:
        if used.intersection(each.names):
            used.add(each.variable.partition(".")[0])
    for _, write in case.writes:
        if isinstance(write, Insert | Update) and (
            used.intersection(write.names) or _plain(text) in _plain(write.text)
        ):
            return True
    return False


def _columns_written(write: Write) -> frozenset[str] | None:
    """The columns that an UPDATE sets; None for writes that make or take whole rows."""
    return frozenset(write.columns) if isinstance(write, Update) else None


def _deed(write: Write) -> str:
    match write:
        case Insert(on_conflict=OnConflict.UPDATE):
            return "inserts into or updates"
        case Insert():
            return "inserts into"
        case Update():
            return "updates"
        case Delete():
            return "truncates" if write.truncate else "deletes from"
        case Refresh():
            return "refreshes"


def _seen_by(case: Case, table: Table) -> str:
    seen = list(dict.fromkeys(case.world.noticed_by(table, case.trigger)))
    more = f" and {len(seen) - 3} more" if len(seen) > 3 else ""
    return f" (seen by {', '.join(seen[:3])}{more})" if seen else ""


def _when(guards: Iterable[Guard]) -> str:
    listed = list(guards)
    if not listed:
        return ""
    last = listed[-1]
    return f" unless {_short(last.text)}" if last.negated else f" when {_short(last.text)}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else f"{flat[:57]}..."
