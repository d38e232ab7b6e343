"""The rules, one small function each: what a body does, and what that means for its trigger.

A rule yields a Reason for every place that it finds. Its name is the function's, with hyphens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from afterwrite.scan.catalog import Event, Function, Kind, Table, Timing, Trigger, TriggerLevel
from afterwrite.scan.facts import Body, Delete, Fact, Guard, Insert, OnConflict, Refresh, Update
from afterwrite.scan.follow import events_of
from afterwrite.scan.known import CANCELS_ROW, CHANGES_ROW, FORBIDS, NOTIFIES
from afterwrite.scan.verdicts import Reason
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
        elif fact.what not in ("new", "old", "null", "none") and not _is_given_row(fact.what, case.body):
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
            case "strict":
                text = f"fails unless exactly one row is found{_when(fact.guards)}"
            case "case":
                text = "has a CASE without ELSE, which fails for every other value"
            case "assert":
                text = f"asserts {_short(fact.message)}"
            case _:
                text = f"raises {_short(fact.message) or 'an error'}{_when(fact.guards)}"
        yield case.reason(raises, fact, text)
    if case.trigger.function in FORBIDS and case.trigger.language in ("c", "internal"):
        yield case.reason(raises, None, f"{case.trigger.function}() refuses rows")


def writes_own_table(case: Case) -> Iterator[Reason]:
    """It changes other rows (or the same one again) of the table that it is on: part of the write."""
    for table, write in case.writes:
        if case.is_own(table):
            yield case.reason(writes_own_table, write, f"{_deed(write)} its own table {table.full_name}")


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
                if key.table_oid != table.oid and _makes_key(write, key.referenced_columns):
                    owner = case.world.atlas.tables.get(key.table_oid)
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


def sets_off_a_keeper(case: Case) -> Iterator[Reason]:
    """Its write fires a trigger whose effect must be there at once, or may be refused: both must stay together."""
    events = {Insert: Event.INSERT, Update: Event.UPDATE, Delete: Event.DELETE}
    for table, write in case.writes:
        if isinstance(write, Refresh) or case.is_own(table):
            continue
        columns = _columns_written(write)
        for trigger in case.world.effective_keepers(table, events[type(write)], columns):
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
    if not (case.writes or body.unknowns or body.notifies or body.outside or serious):
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
    writes_own_table,
    enforced_target,
    feeds_a_foreign_key,
    feeds_a_policy,
    reads_own_write,
)
LATE_KEEP: tuple[Rule, ...] = (feeds_a_keeper, sets_off_a_keeper)
REVIEW: tuple[Rule, ...] = (
    unreadable,
    sets_session_state,
    runs_commands,
    takes_lock,
    pg_trigger_depth,
    writes_through_a_view,
    writes_on_its_own_connection,
)
DEFER: tuple[Rule, ...] = (writes_other_table, notifies, calls_out, writes_server_log)
RETIRE: tuple[Rule, ...] = (appends_to_log, has_no_effect)


# What the rules look at ----------------------------------------------------------------------------------------------


def _enforced(case: Case, table: Table, write: Write) -> Iterator[str]:
    match write:
        case Update():
            yield from _enforced_update(case, table, frozenset(write.columns), dict(_laid(write)))
        case Insert():
            if write.on_conflict is OnConflict.UPDATE:
                yield from _enforced_update(case, table, frozenset(write.updates), {})
            yield from _enforced_insert(case, table, write)
        case Delete():
            for trigger in case.world.refusers(table, Event.DELETE, None):
                yield f"deletes from {table.full_name}, where trigger {trigger.name} may refuse it"
            for key in table.referenced_by:
                if key.on_delete in ("a", "r") and key.table_oid != table.oid:
                    yield f"deletes from {table.full_name}, which the foreign key {key.name} may refuse"
        case Refresh():
            return


def _enforced_update(case: Case, table: Table, columns: frozenset[str], given: dict[str, str]) -> Iterator[str]:
    computed = frozenset(column for column in columns if not _LITERAL.fullmatch(given.get(column, "?").strip()))
    for check in table.checks:
        if computed.intersection(check.columns):
            named = _list(computed.intersection(check.columns))
            yield f"updates {table.full_name} ({named}), which {check.name} {_short(check.definition)} guards"
    for unique in table.uniques:
        if computed.intersection(unique.columns):
            named = _list(computed.intersection(unique.columns))
            kind = "exclusion constraint" if unique.exclusion else "unique index"
            yield f"updates {table.full_name} ({named}), under the {kind} {unique.name}"
    for trigger in case.world.refusers(table, Event.UPDATE, columns):
        yield f"updates {table.full_name} ({_list(columns)}), where trigger {trigger.name} may refuse it"


def _enforced_insert(case: Case, table: Table, write: Insert) -> Iterator[str]:
    columns = frozenset(write.columns)
    given = dict(_laid(write))
    is_log = case.world.log(table).is_log
    own_key = case.home.primary_key if case.home is not None else ()
    for unique in table.uniques:
        if not columns.issuperset(unique.columns) or not unique.columns:
            continue
        if unique.exclusion:
            yield f"inserts into {table.full_name}, under the exclusion constraint {unique.name}"
        elif not is_log and write.on_conflict is OnConflict.NONE and given:
            values = [given[column] for column in unique.columns]
            generated = any(_GENERATED.search(value) or "clock_timestamp" in value for value in values)
            # A copy of the row's own key cannot collide: the key itself is unique already.
            copied = own_key and all(any(_is_column(value, name) for value in values) for name in own_key)
            if not generated and not copied and any(_FROM_ROW.search(value) for value in values):
                yield f"inserts into {table.full_name}, where {unique.name} allows {_list(unique.columns)} once"
    if not is_log:
        for check in table.checks:
            compares = re.search(r"[<>](?!>)", check.definition) and "ANY" not in check.definition
            derived = [column for column in check.columns if _FROM_ROW.search(given.get(column, ""))]
            if compares and derived:
                yield f"inserts into {table.full_name} ({_list(derived)}), which {check.name} guards"
    for trigger in case.world.refusers(table, Event.INSERT, None):
        yield f"inserts into {table.full_name}, where trigger {trigger.name} may refuse it"


def _makes_key(write: Insert, key: Iterable[str]) -> bool:
    """Whether an INSERT gives a key that others could know beforehand: named, and not drawn by a generator."""
    given = dict(_laid(write))
    return all(column in write.columns and not _GENERATED.search(given.get(column, "?")) for column in key)


def _reads_after(case: Case, function: Function, cause: Write, table: Table) -> bool:
    body = case.world.function_bodies[function]
    later = (read for read in body.reads if read.line >= cause.line)
    return any(seen.oid == table.oid for read in later for seen in case.world.tables_read(read))


def _is_given_row(what: str, body: Body) -> bool:
    """Whether a returned expression can only be the row that the trigger was given."""
    text = " ".join(what.lower().split())
    if text in ("new", "old", "coalesce(new, old)"):
        return True
    if re.fullmatch(r"case when tg_op = 'delete' then old else new end", text):
        return True
    if not re.fullmatch(r"[\w$]+", text):
        return False
    set_to = [fact.text for fact in body.assignments if fact.variable == text]
    fields = [fact for fact in body.assignments if fact.variable.startswith(f"{text}.")]
    return (
        bool(set_to)
        and not fields
        and all(" ".join(each.lower().split()) in ("new", "old", "coalesce(new, old)") for each in set_to)
    )


def _laid(write: Insert | Update) -> Iterator[tuple[str, str]]:
    return zip(write.columns, write.values, strict=False)


def _is_column(value: str, column: str) -> bool:
    return re.fullmatch(rf"\(*(new|old)\)*\.{re.escape(column)}(::[\w ]+)?", value.strip(), re.IGNORECASE) is not None


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
    seen = [f"view {view.full_name}" for view in case.world.views_on[table.oid]]
    seen += [f"{function.full_name}()" for function in case.world.function_reads[table.oid]]
    return f" (seen by {', '.join(seen[:3])})" if seen else ""


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
