"""What triggers cost on a copy of the schema that is ours: generated rows, every operation, triggers on and off.

Figures of small tables on this machine: their ratios hold elsewhere, their size does not. What a trigger's query costs
on a table of millions of rows is not in them.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

import msgspec
from psycopg import sql

from afterwrite.errors import ConnectionLost, Finding, Severity
from afterwrite.postgres import Database, identifier, statement
from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Event, Inventory, Kind, Table, Timing, Trigger, read_inventory
from afterwrite.scan.classify import Verdict
from afterwrite.scan.cost.deeds import (
    Place,
    acceptable_change,
    alterable,
    changed,
    itself,
    placed,
    places,
    refusal,
    removal,
    said,
    set_to,
)
from afterwrite.scan.cost.figures import Measured, Origin, StatementCost, Unit
from afterwrite.scan.cost.fill import ROWS, Filler, insertion, with_parents
from afterwrite.scan.cost.measure import REFUSALS, ROUNDS, Bench, Deed, Switch, fires, undone
from afterwrite.scan.survey import Survey

SECONDS = 120.0
"""How long a rehearsal may take before the tables that are left are passed over."""

_LONGEST = "3s"
_LARGEST = 2 * 1024 * 1024 * 1024
_EVENTS = (Event.INSERT, Event.UPDATE, Event.DELETE)
_TRIES = 12
_TEMPTATIONS = 150
_SAME_ANSWER = 15
_SECONDS_OF_A_DEED = 0.15
_RUNS_HERE = frozenset({"plpgsql", "c", "internal"})
_EQUALS = re.compile(r"\b(?:\w+\.)?(\w+)\s*=\s*'((?:[^']|'')*)'")
_NAMED_IN_WHEN = re.compile(r"\b(?:new|old)\.\"?(\w+)", re.IGNORECASE)

_USERS = frozenset({"users", "user", "accounts", "profiles", "members", "employees"})
_WHO = re.compile(r"claims$|sub$|user|actor|account|current_id|who", re.IGNORECASE)

Told = Callable[[str], None]


async def rehearse(db: Database, survey: Survey, *, seconds: float = SECONDS, told: Told | None = None) -> Measured:
    """Fill and measure the database of ``db``, which has the surveyed schema, is ours, and is thrown away afterwards.

    ``survey`` says which triggers there are and which would move; it may be of another database, since names are what
    joins the two. Needs the role that owns the tables, and no more: triggers are run, and a dump's are not trusted.
    """
    begun = time.monotonic()
    inventory = await read_inventory(db)
    # Conditions and triggers of a dump that nobody vouches for are run, and may never end.
    await db.run(statement("cost.end_long_statements"), limit=_LONGEST)
    play = _Rehearsal(db, survey, inventory, begun + seconds, told or (lambda _: None))
    await play.fill()
    await play.measure()
    return Measured(
        origin=Origin.REHEARSE,
        units=tuple(play.units.values()),
        statements=tuple(play.statements),
        findings=tuple(play.findings),
        seconds=time.monotonic() - begun,
    )


class _Rehearsal:
    def __init__(self, db: Database, survey: Survey, inventory: Inventory, deadline: float, told: Told) -> None:
        self.db = db
        self.survey = survey
        self.atlas = Atlas(inventory)
        self.inventory = inventory
        self.begun = time.monotonic()
        self.deadline = deadline
        self.told = told
        self.units: dict[tuple[str, Event], Unit] = {}
        self.statements: list[StatementCost] = []
        self.findings: list[Finding] = []
        self.rounds = ROUNDS
        self.contexts: Sequence[Mapping[str, str]] = ({},)
        self._path = ", ".join(sql.Identifier(name).as_string() for name in survey.inventory.search_path)
        # Half of the time is for measuring.
        self.filler = Filler(db, self.atlas, _hints(self.atlas, survey), deadline=(self.begun + deadline) / 2)
        self.by_table: defaultdict[int, list[Trigger]] = defaultdict(list)
        judged = {each.trigger.identity for each in survey.judgements}
        for trigger in inventory.triggers:
            table = self.atlas.table_of(trigger)
            if table is not None and trigger.identity in judged and trigger.timing is not Timing.INSTEAD:
                self.by_table[self.atlas.root(table).oid].append(trigger)
        self.moving = {
            each.trigger.identity: each for each in survey.judgements if each.verdict in (Verdict.RETIRE, Verdict.DEFER)
        }

    @property
    def tables(self) -> list[Table]:
        """The tables to be measured, those first that are written most where that was counted."""
        written = {each.full_name: each.inserted + each.updated + each.deleted for each in self.survey.inventory.tables}
        listed = (self.atlas.tables[oid] for oid in self.by_table)
        found = [table for table in listed if table.kind in (Kind.TABLE, Kind.PARTITIONED)]
        return sorted(found, key=lambda table: -written.get(table.full_name, 0))

    async def fill(self) -> None:
        """Rows for the tables to be measured, for those that their triggers touch, and for all that these refer to."""
        wanted = with_parents(self.atlas, [*self.tables, *self._touched()])
        await self.filler.learn(wanted)
        late: list[str] = []
        for table in self.filler.in_order(wanted):
            if time.monotonic() > self.filler.deadline:
                late.append(table.full_name)
                continue
            try:
                found = await self.filler.fill(table)
            except ConnectionLost:
                raise
            except REFUSALS as error:
                self._note("rehearsal-not-filled", table.full_name, f"could not be filled: {said(error)}")
                continue
            if not found.rows:
                self._note("rehearsal-not-filled", table.full_name, f"could not be filled: {found.why}")
        self._cut_short("filled", late)
        filled = [each for each in self.filler.filled.values() if each.rows]
        self.contexts = await self._somebody()
        self.told(f"{len(filled)} of {len(wanted)} tables filled, {sum(each.rows for each in filled):,} rows")

    def _touched(self) -> Iterator[Table]:
        for body in self.survey.bodies.values():
            for fact in (*body.inserts, *body.updates, *body.deletes, *body.reads):
                table = self.atlas.find_table(fact.schema, fact.table, ())
                if table is not None:
                    yield table

    async def _somebody(self) -> Sequence[Mapping[str, str]]:
        """What an application says of its user, for triggers that ask: somebody who is in the table of users, or 1."""
        asked = {name for each in self.survey.judgements for name in each.needs.settings if "." in name}
        asked = {name for name in asked if _WHO.search(name)}
        users = ["1", "00000000-0000-0000-0000-000000000001"]
        tables = [each.table for each in self.filler.filled.values() if each.rows and each.table.name in _USERS]
        for table in sorted(tables, key=lambda table: table.schema == "auth"):
            if len(table.primary_key) == 1:
                query = sql.SQL("select {}::text from {} limit 1").format(
                    sql.Identifier(table.primary_key[0]), identifier(table.schema, table.name)
                )
                users.insert(0, await self.db.value(query))
        return [
            {
                name: msgspec.json.encode({"sub": user, "role": "authenticated"}).decode()
                if name.endswith("claims")
                else user
                for name in asked
            }
            for user in (dict.fromkeys(users) if asked else ("",))
        ]

    def _note(self, rule: str, where: str, text: str, remedy: str | None = None) -> None:
        self.findings.append(
            Finding(rule=rule, severity=Severity.WARNING, where=where, text=f"{where} {text}", remedy=remedy)
        )

    async def measure(self) -> None:
        """Every operation of every table that sets triggers off; of very many each once, so that more are reached."""
        deeds = sum(
            any(fires(each, event) for each in listed) for listed in self.by_table.values() for event in _EVENTS
        )
        if deeds * _SECONDS_OF_A_DEED > self.deadline - time.monotonic():
            self.rounds = 1
        self.filler.deadline = self.deadline
        late: list[str] = []
        for table in self.tables:
            if time.monotonic() > self.deadline:
                late.append(table.full_name)
                continue
            if not self.filler.filled.get(table.oid) or not self.filler.filled[table.oid].rows:
                continue
            for event in _EVENTS:
                await self._measure(table, event)
            if await self.db.value(statement("cost.read_size")) > _LARGEST:
                self._note("rehearsal-cut-short", table.full_name, "grew beyond all bounds: nothing more was measured")
                break
        self._cut_short("measured", late)

    def _cut_short(self, what: str, late: Sequence[str]) -> None:
        if late:
            where = f"{len(late)} tables" if len(late) > 1 else late[0]
            shown = f": {', '.join(late[:5])}{' …' if len(late) > 5 else ''}"
            self._note(
                "rehearsal-cut-short",
                self.inventory.database,
                f"has {where} that were not {what} in time{shown}",
                "rehearse a part of it with --schema",
            )

    async def _measure(self, table: Table, event: Event) -> None:
        triggers = [trigger for trigger in self.by_table[table.oid] if fires(trigger, event)]
        if not triggers:
            return
        async with undone(self.db):
            await self.db.run(statement("cost.be_brief"), lock="1s", statement=_LONGEST, idle="60s")
            await self.db.run(statement("cost.set_for_now"), name="search_path", value=self._path)
            await self.db.run(b"set constraints all immediate")
            bench = Bench(self.db, switch=Switch.ALTER, temporary=True, deadline=self.deadline, rounds=self.rounds)
            deed, why = await self._as_somebody(bench, table, event)
            if deed is None:
                deed, triggers = await self._without_refusers(bench, table, event, triggers, why)
            if deed is None or not triggers:
                return
            cost = await self._take(bench, deed, triggers)
            if cost is None:
                return
            self.statements.append(cost)
            for trigger in triggers:
                if (trigger.identity, event) not in self.units:
                    await self._coax(bench, table, event, trigger, triggers)

    async def _as_somebody(self, bench: Bench, table: Table, event: Event) -> tuple[Deed | None, str]:
        """A write that is accepted, by one or another user as an application would name him, or by none."""
        why = ""
        for context in self.contexts:
            for name, value in context.items():
                await self.db.run(statement("cost.set_for_now"), name=name, value=value)
            deed, why = await self._deed(bench, table, event)
            if deed is not None:
                return deed, ""
        return None, why

    async def _without_refusers(
        self, bench: Bench, table: Table, event: Event, triggers: Sequence[Trigger], why: str
    ) -> tuple[Deed | None, list[Trigger]]:
        """A write that is accepted with some triggers off, until the transaction is undone: those that refuse it are
        told, and the others are measured without them."""
        name, what = identifier(table.schema, table.name), event.value.upper()
        for trigger in triggers:
            await self.db.run(sql.SQL("alter table {} disable trigger {}").format(name, sql.Identifier(trigger.name)))
        deed, without = await self._deed(bench, table, event)
        if deed is None:
            self._note("rehearsal-refused", table.full_name, f"refused every {what}: {without or why}")
            return None, []
        left: list[Trigger] = []
        for trigger in triggers:
            turn = sql.SQL("alter table {} {} trigger {}")
            words = sql.Identifier(trigger.name)
            await self.db.run(turn.format(name, sql.SQL("enable"), words))
            refused = await refusal(bench, deed)
            if refused is None:
                left.append(trigger)
                continue
            await self.db.run(turn.format(name, sql.SQL("disable"), words))
            if trigger.language not in _RUNS_HERE:
                refused = f"its function is a stand-in on the copy, since its language ({trigger.language}) is not here"
            self._note("rehearsal-refused", trigger.identity, f"refused every {what}: {refused}")
        return deed, left

    async def _take(
        self, bench: Bench, deed: Deed, triggers: Sequence[Trigger], *, apart: bool = False
    ) -> StatementCost | None:
        staying = [trigger for trigger in triggers if trigger.identity not in self.moving]
        leaving = [self.moving[trigger.identity] for trigger in triggers if trigger.identity in self.moving]
        whole = any(each.needs.replica_identity_full for each in leaving) and deed.table.replica_identity != "f"
        whole = whole and deed.table.kind is Kind.TABLE  # of a partitioned table it would be its leaves'
        try:
            cost, units = await bench.measure(deed, triggers, staying=staying, whole_old_rows=whole)
        except ConnectionLost:
            raise
        except REFUSALS as error:
            name = deed.table.full_name
            self._note("rehearsal-refused", name, f"refused its {deed.event.value.upper()}: {said(error)}")
            return None
        for unit in units:
            self.units.setdefault((unit.trigger, unit.event), msgspec.structs.replace(unit, apart=apart))
        return cost

    async def _deed(self, bench: Bench, table: Table, event: Event) -> tuple[Deed | None, str]:
        """A write of one row that the database accepts with its triggers on; without one, the last reason why not."""
        if event is Event.INSERT:
            why = "no new row was found that meets its conditions"
            async for deed in self._insertions(table):
                refused = await refusal(bench, deed)
                if refused is None:
                    return deed, ""
                why = refused
            return None, why
        deed, why = None, "it has no row"
        listed = await places(self.db, table, ROWS)
        for place in listed[:: max(1, len(listed) // _TRIES)]:
            deed, why = await self._of_row(bench, table, event, place)
            if deed is not None:
                return deed, ""
        # What was filled in with triggers off may be no state that they would have led to: try with a row that is.
        async for born in self._insertions(table):
            try:
                async with self.db.transaction():
                    place = await placed(self.db, born.query)
            except REFUSALS:
                continue
            deed, why = await self._of_row(bench, table, event, place)
            if deed is not None:
                return deed, ""
        return None, why

    async def _of_row(self, bench: Bench, table: Table, event: Event, place: Place) -> tuple[Deed | None, str]:
        if event is Event.DELETE:
            deed = removal(table, place)
            refused = await refusal(bench, deed)
            return (deed, "") if refused is None else (None, refused)
        deed, why = await acceptable_change(bench, table, place)
        if deed is None and (same := itself(table, place)) is not None and await refusal(bench, same) is None:
            return same, ""
        return deed, why

    async def _insertions(self, table: Table) -> AsyncGenerator[Deed]:
        """New rows: first with all columns, then with those that must be there."""
        for lean in (False, True):
            async for row in self.filler.rows(table, _TRIES * 2, lean=lean):
                yield Deed(table=table, event=Event.INSERT, query=insertion(table, row))

    async def _coax(
        self, bench: Bench, table: Table, event: Event, trigger: Trigger, triggers: Sequence[Trigger]
    ) -> None:
        """Look for a write that sets this trigger off: other values in the columns that it waits for, other rows."""
        tried, same = 0, 0
        why = f"its condition ({trigger.when}) was met by no generated row" if trigger.when else "none set it off"
        async for deed in self._tempting(table, event, trigger):
            tried += 1
            if tried > _TEMPTATIONS or same > _SAME_ANSWER or time.monotonic() > self.deadline:
                break
            try:
                sample = await bench.try_out(deed)
            except REFUSALS as error:
                refused = f"one was refused: {said(error)}"
                same = same + 1 if refused == why else 0
                why = refused
                continue
            if sample.triggers.get(trigger.name, (0.0, 0.0))[0]:
                await self._take(bench, deed, triggers, apart=True)
                return
        self._note(
            "rehearsal-not-fired",
            trigger.identity,
            f"was not measured for {event.value.upper()}: of {tried} that were tried, {why}",
        )

    async def _tempting(self, table: Table, event: Event, trigger: Trigger) -> AsyncGenerator[Deed]:
        columns = list(dict.fromkeys((*trigger.columns, *_NAMED_IN_WHEN.findall(trigger.when or ""))))
        known = {column.name: column for column in table.columns if not column.generated}
        columns = [name for name in columns if name in known]
        if event is Event.DELETE:
            for place in await places(self.db, table, ROWS):
                yield removal(table, place)
            return
        values: dict[str, list[str | None]] = {
            name: [
                *self.filler.values_for(table, name, trigger.when or ""),
                *((None,) if not known[name].not_null else ()),
            ]
            for name in columns
        }
        if event is Event.INSERT:
            async for row in self.filler.rows(table, 2, start=ROWS * 30):
                for name in columns:
                    for value in values[name]:
                        yield Deed(table=table, event=event, query=insertion(table, {**row, name: value}))
            return
        listed = await places(self.db, table, ROWS)
        listed = listed[:: -max(1, len(listed) // _TRIES)]  # the last are those in another state
        free = list(alterable(table))[:1]
        for place in listed if free else ():  # its condition may be one of the row as it was
            yield changed(table, place, free)
        most = max((len(each) for each in values.values()), default=0)
        for number in range(most):
            for place in listed:
                for name in columns:
                    if number < len(values[name]):
                        yield set_to(table, place, name, values[name][number])


def _hints(atlas: Atlas, survey: Survey) -> Mapping[tuple[int, str], list[str]]:
    """Texts that triggers compare columns of other tables with: a row that has them will be found by their UPDATE."""
    found: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    for body in survey.bodies.values():
        for fact in (*body.updates, *body.deletes):
            table = atlas.find_table(fact.schema, fact.table, ())
            for column, text in _EQUALS.findall(fact.where) if table is not None else ():
                listed = found[atlas.root(table).oid, column] if table is not None else []
                if text not in listed:
                    listed.append(text.replace("''", "'"))
    return found
