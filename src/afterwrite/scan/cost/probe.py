"""What triggers cost on the real tables: real statements on one row of each, in a transaction that is rolled back.

A rollback undoes rows, not everything: numbers drawn from sequences stay drawn, dead row versions wait for vacuum, and
what a trigger does outside the transaction is done. So a table is refused when scan cannot rule that out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec
from psycopg import sql

from afterwrite.errors import ConnectionLost, Finding, Refused, Severity, UsageError
from afterwrite.postgres import Database, identifier, names, quoted, statement
from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Column, Enabled, Event, Kind, Table, Trigger, reading
from afterwrite.scan.classify import Verdict
from afterwrite.scan.cost.deeds import Place, acceptable_change, itself, placed, removal, said
from afterwrite.scan.cost.figures import Measured, Origin, StatementCost, Unit
from afterwrite.scan.cost.measure import REFUSALS, Bench, Deed, Switch, fires, undone
from afterwrite.scan.facts import Body
from afterwrite.scan.survey import Survey

SECONDS = 2.0
"""How long the statements on one table are repeated; one statement that has begun is ended by statement_timeout."""

_LOCK_TIMEOUT = "200ms"
_STATEMENT_TIMEOUT = "5s"
_IDLE_TIMEOUT = "10s"
_EVENTS = (Event.INSERT, Event.UPDATE, Event.DELETE)


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """What the session may do as a whole."""

    standby: bool
    temporary: bool
    superuser: bool


class TableRights(msgspec.Struct, frozen=True, kw_only=True):
    """What the session may do with one table."""

    owner: bool
    reads: bool
    inserts: bool
    updates: bool
    deletes: bool
    owned_by: str

    def to(self, event: Event) -> bool:
        return {Event.INSERT: self.inserts, Event.UPDATE: self.updates, Event.DELETE: self.deletes}.get(event, False)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A table to be probed, the triggers on it, how they are turned off, and what the session may do with it."""

    table: Table
    triggers: tuple[Trigger, ...]
    switch: Switch
    rights: TableRights


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe will do. ``warning`` are sentences to be read before it is confirmed."""

    subjects: tuple[Subject, ...]
    temporary: bool
    warning: tuple[str, ...]


# Before --------------------------------------------------------------------------------------------------------------


async def plan_probe(db: Database, survey: Survey, wanted: Sequence[str], anyway: Sequence[str] = ()) -> Plan:
    """Look what probing these tables would do; nothing is run yet.

    Raises UsageError for a name that is no table with triggers, and Refused where a trigger may act outside the
    transaction, unless the table is named in ``anyway`` too.
    """
    atlas = Atlas(survey.inventory)
    async with reading(db):
        rights = await db.one(Rights, statement("cost.read_rights"))
        may_pass_over = rights.superuser
        if db.connection.info.server_version >= 150_000:
            may_pass_over = await db.value(statement("cost.may_pass_triggers_over"))
    if rights.standby:
        raise Refused(f"{db.where} is a standby: nothing can be written there", remedy="probe the primary")
    tables = {table.oid: table for name in (*wanted, *anyway) for table in [_find(atlas, survey, name)]}
    forced = {_find(atlas, survey, name).oid for name in anyway}
    subjects: list[Subject] = []
    for table in tables.values():
        reasons = list(dict.fromkeys(dangers(atlas, survey, table)))
        if reasons and table.oid not in forced:
            raise Refused(
                f"{table.full_name} is not probed, since a rollback may not undo what its triggers do: "
                f"{'; '.join(reasons[:3])}{' …' if len(reasons) > 3 else ''}",
                remedy=f"use --rehearse, or --probe-anyway {table.full_name} when you know that it does no harm",
            )
        async with reading(db):
            may = await db.one(TableRights, statement("cost.read_table_rights"), oid=table.oid)
        owner = Switch.ALTER if may.owner else Switch.NONE
        switch = Switch.REPLICA if may_pass_over else owner
        triggers = tuple(trigger for trigger in survey.inventory.triggers if _root_oid(atlas, trigger) == table.oid)
        subjects.append(Subject(table=table, triggers=triggers, switch=switch, rights=may))
    return Plan(
        subjects=tuple(subjects), temporary=rights.temporary, warning=tuple(_warning(db.where, subjects, forced))
    )


def _warning(where: str, subjects: Sequence[Subject], forced: set[int]) -> Iterator[str]:
    listed = names_of(subjects)
    yield f"INSERT, UPDATE and DELETE of one row of {listed} will be run on {where}, triggers and all, and rolled back."
    yield (
        f"The row stays locked for up to about {SECONDS:.0f} s a table, and what its triggers lock for milliseconds at "
        f"a time; nobody is waited for longer than {_LOCK_TIMEOUT}, and nothing runs longer than {_STATEMENT_TIMEOUT}."
    )
    yield "What stays: numbers drawn from sequences (gaps), dead row versions until the next vacuum, some WAL."
    altered = [subject for subject in subjects if subject.switch is Switch.ALTER]
    if altered:
        yield (
            f"Triggers of {names_of(altered)} are disabled for moments inside the transaction (ALTER TABLE … DISABLE "
            "TRIGGER, undone): for those, writers of the table wait."
        )
    if forced:
        risky = names_of([subject for subject in subjects if subject.table.oid in forced])
        yield f"Triggers of {risky} may act outside the transaction, or cannot be read: that is not undone."


def names_of(subjects: Sequence[Subject]) -> str:
    return ", ".join(subject.table.full_name for subject in subjects)


def _root_oid(atlas: Atlas, trigger: Trigger) -> int | None:
    table = atlas.table_of(trigger)
    return atlas.root(table).oid if table is not None else None


def _find(atlas: Atlas, survey: Survey, name: str) -> Table:
    with_triggers = {_root_oid(atlas, trigger) for trigger in survey.inventory.triggers}
    tables = [table for table in atlas.tables.values() if table.oid in with_triggers]
    found = [table for table in tables if name in (table.full_name, table.name, quoted(table.schema, table.name))]
    if len(found) != 1:
        many = ", ".join(sorted(table.full_name for table in found))
        raise UsageError(
            f"{name} is {'several tables: ' + many if found else 'no table with triggers'}",
            remedy="name it as schema.table" if found else "run `afterwrite scan` for the tables that have triggers",
        )
    if found[0].kind not in (Kind.TABLE, Kind.PARTITIONED):
        raise UsageError(f"{name} is no plain table", remedy="probe a table; views and foreign tables cannot be")
    return found[0]


def dangers(atlas: Atlas, survey: Survey, table: Table) -> Iterator[str]:
    """What a rollback might not undo, of the triggers that a write of this table may set off, directly or not."""
    by_table: defaultdict[int | None, list[Trigger]] = defaultdict(list)
    for trigger in survey.inventory.triggers:
        if trigger.enabled is not Enabled.DISABLED:
            by_table[_root_oid(atlas, trigger)].append(trigger)
    seen: set[int] = set()
    waiting = [table]
    while waiting:
        each = atlas.root(waiting.pop())
        if each.oid in seen:
            continue
        seen.add(each.oid)
        if each.kind is Kind.FOREIGN:
            yield f"{each.full_name} is a foreign table, whose server runs what it likes"
        children = (key for key in each.referenced_by if key.on_delete in ("c", "n", "d"))
        waiting += [child for key in children if (child := atlas.tables.get(key.table_oid)) is not None]
        for trigger in by_table[each.oid]:
            yield from _dangers_of(survey, trigger)
            body = survey.bodies[trigger.oid]
            for fact in (*body.inserts, *body.updates, *body.deletes):
                written = atlas.find_table(fact.schema, fact.table, ())
                if written is not None:
                    waiting.append(written)


def _dangers_of(survey: Survey, trigger: Trigger) -> Iterator[str]:
    body = survey.bodies[trigger.oid]
    name = trigger.identity
    for fact in body.outside:
        yield f"{name} calls {fact.function}()"
    for fact in body.unknowns:
        yield f"{name} cannot be read in full ({fact.text})"
    for fact in body.calls:
        if fact.name == "setval":
            yield f"{name} sets a sequence (setval)"
    for fact in body.commands:
        yield f"{name} runs {fact.what}"
    for fact in body.deletes:
        if fact.truncate:
            yield f"{name} truncates {fact.relation}, which locks out everybody"
    for fact in body.refreshes:
        yield f"{name} refreshes {fact.relation}, which locks out its readers"


def _writes_nothing(body: Body) -> bool:
    known = body.parsed and all(fact.texts for fact in body.dynamics)
    return known and not (body.inserts or body.updates or body.deletes or body.refreshes or body.commands)


# The probe -----------------------------------------------------------------------------------------------------------


async def probe(db: Database, survey: Survey, plan: Plan) -> Measured:
    """Run what was planned and confirmed: one transaction a table, rolled back whatever happens."""
    begun = time.monotonic()
    run = _Probe(db, survey, plan.temporary)
    for subject in plan.subjects:
        await run.table(subject)
    return Measured(
        origin=Origin.PROBE,
        units=tuple(run.units.values()),
        statements=tuple(run.statements),
        findings=tuple(run.findings),
        seconds=time.monotonic() - begun,
    )


class _Probe:
    def __init__(self, db: Database, survey: Survey, temporary: bool) -> None:
        self.db = db
        self.temporary = temporary
        self.moving = {
            each.trigger.identity for each in survey.judgements if each.verdict in (Verdict.RETIRE, Verdict.DEFER)
        }
        self.quiet = frozenset(
            trigger.identity for trigger in survey.inventory.triggers if _writes_nothing(survey.bodies[trigger.oid])
        )
        self._path = ", ".join(sql.Identifier(name).as_string() for name in survey.inventory.search_path)
        self.units: dict[tuple[str, Event], Unit] = {}
        self.statements: list[StatementCost] = []
        self.findings: list[Finding] = []

    def _note(self, rule: str, where: str, text: str, remedy: str | None = None) -> None:
        self.findings.append(
            Finding(rule=rule, severity=Severity.WARNING, where=where, text=f"{where} {text}", remedy=remedy)
        )

    async def table(self, subject: Subject) -> None:
        """Probe one table."""
        table, name = subject.table, subject.table.full_name
        if not subject.rights.reads or not subject.rights.updates:
            grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {quoted(table.schema, table.name)} TO the role of the DSN"
            self._note("probe-not-allowed", name, "was not probed: this role may not read and update it", grant)
            return
        if subject.switch is Switch.NONE:
            self._note(
                "probe-without-off",
                name,
                "was probed with its triggers on only, so that the WAL and the rows of each are not known",
                f"probe as {subject.rights.owned_by}, who owns it, or as a role that may set session_replication_role",
            )
        try:
            async with undone(self.db):
                await self.db.run(
                    statement("cost.be_brief"), lock=_LOCK_TIMEOUT, statement=_STATEMENT_TIMEOUT, idle=_IDLE_TIMEOUT
                )
                # The bodies look for names where the application's sessions do.
                await self.db.run(statement("cost.set_for_now"), name="search_path", value=self._path)
                await self.db.run(b"set constraints all immediate")
                place = await self._row(table)
                if place is None:
                    self._note("probe-no-row", name, "was not probed: no row was to be had that nobody else holds")
                    return
                bench = Bench(
                    self.db,
                    switch=subject.switch,
                    temporary=self.temporary,
                    deadline=time.monotonic() + SECONDS,
                )
                for event in _EVENTS:
                    await self._event(bench, subject, event, place)
        except ConnectionLost:
            raise
        except REFUSALS as error:
            self._note("probe-failed", name, f"could not be probed: {said(error)}", error.remedy)

    async def _row(self, table: Table) -> Place | None:
        """The newest row by its key, or any, that nobody else holds; held so that references to it go on."""
        order = sql.SQL("")
        if table.primary_key:
            listed = sql.SQL(", ").join(sql.SQL("{} desc").format(sql.Identifier(name)) for name in table.primary_key)
            order = sql.SQL("order by {}").format(listed)
        query = sql.SQL(
            "select tableoid::bigint as leaf, ctid::text as ctid from {} {} limit 1 for no key update skip locked"
        )
        return await self.db.maybe(Place, query.format(identifier(table.schema, table.name), order))

    async def _event(self, bench: Bench, subject: Subject, event: Event, place: Place) -> None:
        triggers = [trigger for trigger in subject.triggers if fires(trigger, event)]
        if not triggers:
            return
        table, what = subject.table, event.value.upper()
        if not subject.rights.to(event):
            grant = f"GRANT {what} ON {quoted(table.schema, table.name)} TO the role of the DSN"
            self._note("probe-not-allowed", table.full_name, f"was not probed for {what}: not allowed", grant)
            return
        why = ""
        try:
            deeds, why = await self._deeds(bench, subject, event, place)
            for deed in deeds:
                staying = [trigger for trigger in triggers if trigger.identity not in self.moving]
                cost, units = await bench.measure(deed, triggers, staying=staying, quiet=self.quiet)
                self.statements.append(cost)
                for unit in units:
                    self.units.setdefault((unit.trigger, unit.event), unit)
        except ConnectionLost:
            raise
        except REFUSALS as error:
            deeds, why = [], said(error)
        if not deeds:
            self._note("probe-refused", table.full_name, f"was not probed for {what}: {why}")
        for trigger in triggers if deeds else ():
            if (trigger.identity, event) not in self.units:
                reason = f": its condition is {trigger.when}" if trigger.when else ""
                self._note("probe-not-fired", trigger.identity, f"was not set off by the {what} of a probe{reason}")

    async def _deeds(self, bench: Bench, subject: Subject, event: Event, place: Place) -> tuple[list[Deed], str]:
        table = subject.table
        if event is Event.UPDATE:
            deed, why = await acceptable_change(bench, table, place)
            same = itself(table, place)
            return [each for each in (deed, same) if each is not None], why
        again = subject.switch is Switch.REPLICA and self.temporary
        if event is Event.INSERT:
            if again:
                return [await self._again(table, place)], ""
            copy = _copy(table, place)
            why = "a copy of its row cannot be given a key of its own"
            return ([Deed(table=table, event=event, query=copy)] if copy is not None else []), why
        if not table.referenced_by:
            return [removal(table, place)], ""
        copy = _copy(table, place)
        if again and copy is not None:
            # Nothing refers to a copy, so that its removal sets off no cascade through other tables.
            await self.db.run(statement("cost.set_for_now"), name="session_replication_role", value="replica")
            born = await placed(self.db, copy)
            await self.db.run(statement("cost.set_for_now"), name="session_replication_role", value="origin")
            return [removal(table, born)], ""
        return [], "other tables refer to it, and a copy that nothing refers to cannot be made quietly"

    async def _again(self, table: Table, place: Place) -> Deed:
        """The row itself, taken out unnoticed and inserted again: it meets all conditions, and stays on the server."""
        source, name = sql.Identifier("pg_temp", "afterwrite_probe_row"), identifier(table.schema, table.name)
        columns = names([column.name for column in table.columns if not column.generated])
        await self.db.run(
            sql.SQL("create temporary table afterwrite_probe_row as select {} from {} {}").format(
                columns, name, place.condition
            )
        )
        query = sql.SQL("insert into {} ({}) overriding system value select {} from {}").format(
            name, columns, columns, source
        )
        before = sql.SQL("delete from {} {}").format(name, place.condition)
        return Deed(table=table, event=Event.INSERT, query=query, before=before)


def _copy(table: Table, place: Place) -> sql.Composed | None:
    """An INSERT of a copy of a row with new keys; None where some key has no column that can be made anew."""
    referring = {name for key in table.foreign_keys for name in key.columns}
    columns = {column.name: column for column in table.columns if not column.generated}
    anew: dict[str, sql.Composed] = {}
    for unique in table.uniques:
        if unique.exclusion:
            return None
        free = [columns[name] for name in unique.columns if name in columns and name not in referring]
        made = next(((column.name, new) for column in free if (new := _anew(table, column)) is not None), None)
        if made is None:
            return None
        anew[made[0]] = made[1]
    given = sql.SQL(", ").join(anew.get(name, sql.Composed([sql.Identifier(name)])) for name in columns)
    return sql.SQL("insert into {} ({}) overriding system value select {} from {} {}").format(
        identifier(table.schema, table.name),
        names(list(columns)),
        given,
        identifier(table.schema, table.name),
        place.condition,
    )


def _anew(table: Table, column: Column) -> sql.Composed | None:
    """A value for a column that no row has."""
    name = sql.Identifier(column.name)
    match column.type.partition("(")[0]:
        case "smallint" | "integer" | "bigint" | "numeric":
            query = sql.SQL("(select pg_catalog.max(t.{}) + 1 from {} t)")
            return query.format(name, identifier(table.schema, table.name))
        case "uuid":
            return sql.SQL("pg_catalog.gen_random_uuid()").format()
        case "text" | "character varying":
            length = sql.SQL("greatest(pg_catalog.length({}), 8)").format(name)
            if "(" in column.type:
                length = sql.SQL("pg_catalog.length({})").format(name)
            return sql.SQL("pg_catalog.left(pg_catalog.gen_random_uuid()::text, {})").format(length)
        case "timestamp with time zone" | "timestamp without time zone":
            return sql.SQL("pg_catalog.clock_timestamp()").format()
        case _:
            return None
