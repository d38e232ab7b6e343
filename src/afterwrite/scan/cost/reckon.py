"""From what was observed and measured to what each trigger costs, its shares, and what moving triggers would save.

Pure. How often comes from a window, else from the server's counters, else every operation counts alike; how long a call
takes comes from a window's functions, else from a probe, else from a rehearsal. Nothing is mixed into one figure that
was not measured on one machine, except bytes of WAL, which are the same everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Event, Table, TriggerLevel
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.cost.figures import (
    Costs,
    FunctionTime,
    Measured,
    Origin,
    Saving,
    Spread,
    StatementCost,
    Statements,
    TableCost,
    TriggerCost,
    Unit,
    Window,
    Writes,
)
from afterwrite.scan.cost.measure import fires
from afterwrite.scan.survey import Survey

_EVENTS = (Event.INSERT, Event.UPDATE, Event.DELETE)
_TRACKED = ("plpgsql", "plpython3u", "plperl", "plperlu", "plv8", "pltcl", "pltclu")

Weights = Mapping[int, Mapping[Event, float]]


def reckon(survey: Survey, *, window: Window | None = None, measured: Sequence[Measured] = ()) -> Costs:
    """What is known of the costs; ``measured`` in order of preference. Without either, Costs that say so."""
    if window is None and not measured:
        return Costs()
    return _Reckoning(survey, window, measured).costs()


class _Known(msgspec.Struct, kw_only=True):
    """What is known of one trigger over the whole time: calls, and µs in all. ``expected`` calls by operation."""

    judgement: Judgement
    table: Table | None
    expected: dict[Event, float]
    calls: float | None = None
    calls_from: Origin = Origin.NONE
    us: float | None = None
    us_low: float | None = None
    us_high: float | None = None
    us_from: Origin = Origin.NONE
    per_call: float | None = None
    wal: float | None = None
    per_row_wal: float | None = None
    wal_from: Origin = Origin.NONE
    rows: float | None = None
    per_row_rows: float | None = None
    rows_from: Origin = Origin.NONE
    at_most: bool = False
    split: list[str] = []


class _Reckoning:
    def __init__(self, survey: Survey, window: Window | None, measured: Sequence[Measured]) -> None:
        self.survey = survey
        self.atlas = Atlas(survey.inventory)
        self.window = window
        self.measured = measured
        self.units: dict[tuple[str, Event], tuple[Unit, Origin]] = {}
        self.statements: dict[tuple[str, Event], StatementCost] = {}
        for each in measured:
            for unit in each.units:
                self.units.setdefault((unit.trigger, unit.event), (unit, each.origin))
            for cost in each.statements:
                self.statements.setdefault((cost.table, cost.event), cost)
        self.named = {table.full_name: table.oid for table in self.atlas.tables.values()}
        tables = {each.trigger.identity: self._root(each) for each in survey.judgements}
        self.apart: defaultdict[tuple[str, Event], list[Unit]] = defaultdict(list)
        for unit, _ in self.units.values():
            table = self.atlas.tables.get(tables.get(unit.trigger) or 0)
            if unit.apart and table is not None:
                self.apart[table.full_name, unit.event].append(unit)
        self.moving = {
            each.trigger.identity for each in survey.judgements if each.verdict in (Verdict.RETIRE, Verdict.DEFER)
        }
        self.weights_from, self.weights = self._weigh()
        self.known = [self._expect(judgement) for judgement in survey.judgements]

    def costs(self) -> Costs:
        self._time()
        self._wal_and_rows()
        time_name, time_total = self._all_time()
        wal_total = self._all_wal()
        rows_total = self._all_rows()
        triggers = [self._trigger(each, time_total, wal_total, rows_total) for each in self.known]
        triggers.sort(key=lambda each: (-(each.time_share or 0), -(each.us or 0), each.trigger))
        inventory = self.survey.inventory
        totals = self.window.totals if self.window is not None else None
        counted = self.weights_from is Origin.SINCE_RESET and inventory.statistics_since is not None
        origins = (*((Origin.OBSERVE,) if self.window else ()), *dict.fromkeys(each.origin for each in self.measured))
        findings = (
            *(self.window.findings if self.window else ()),
            *(f for each in self.measured for f in each.findings),
        )
        return Costs(
            origins=origins,
            weights=self.weights_from,
            seconds=totals.seconds if totals is not None else None,
            since=inventory.statistics_since.isoformat() if counted and inventory.statistics_since else None,
            interrupted=totals.interrupted if totals is not None else False,
            write_time=time_name,
            write_us=time_total,
            write_wal=wal_total,
            triggers=tuple(triggers),
            tables=tuple(self._tables(time_total, wal_total)),
            savings=tuple(self._savings(time_total, wal_total, rows_total)),
            hot=self.window.hot if self.window is not None else (),
            observed=totals,
            measured=tuple(msgspec.structs.replace(each, findings=()) for each in self.measured),
            missing=findings,
        )

    # How often -------------------------------------------------------------------------------------------------------

    def _weigh(self) -> tuple[Origin, Weights]:
        """Rows written by table and operation, from the best source that saw any."""
        roots = [table for table in self.atlas.tables.values() if table.partition_of is None]
        if self.window is not None:
            found = {table.oid: self._seen(table) for table in roots}
            if any(any(each.values()) for each in found.values()):
                return Origin.OBSERVE, found
        counted = {
            table.oid: {
                Event.INSERT: float(table.inserted),
                Event.UPDATE: float(table.updated),
                Event.DELETE: float(table.deleted),
            }
            for table in roots
        }
        with_triggers = {self._root(judgement) for judgement in self.survey.judgements}
        if any(any(counted[oid].values()) for oid in with_triggers if oid in counted):
            return Origin.SINCE_RESET, counted
        return Origin.ALIKE, {oid: dict.fromkeys(_EVENTS, 1.0) for oid in with_triggers if oid is not None}

    def _seen(self, table: Table) -> dict[Event, float]:
        assert self.window is not None
        leaves = [self.window.tables.get(leaf.oid, Writes()) for leaf in self.atlas.leaves(table)]
        return {event: float(sum(each.of(event) for each in leaves)) for event in _EVENTS}

    def _root(self, judgement: Judgement) -> int | None:
        table = self.atlas.table_of(judgement.trigger)
        return self.atlas.root(table).oid if table is not None else None

    def _rows(self, oid: int, event: Event) -> float:
        return self.weights[oid].get(event, 0.0) if oid in self.weights else 0.0

    def _expect(self, judgement: Judgement) -> _Known:
        """How often a trigger would be called if each row did it."""
        trigger, table = judgement.trigger, self.atlas.tables.get(self._root(judgement) or 0)
        oid = table.oid if table is not None else 0
        expected = {event: self._rows(oid, event) for event in _EVENTS if fires(trigger, event)}
        once = trigger.level is TriggerLevel.STATEMENT
        return _Known(
            judgement=judgement,
            table=table,
            expected=expected,
            at_most=once or trigger.when is not None or bool(trigger.columns),
        )

    # How long --------------------------------------------------------------------------------------------------------

    def _time(self) -> None:
        by_function: defaultdict[int, list[_Known]] = defaultdict(list)
        for each in self.known:
            by_function[each.judgement.trigger.function_oid].append(each)
        counting = self.window is not None and any(time.calls for time in self.window.functions.values())
        for oid, sharing in by_function.items():
            counted = self.window.functions.get(oid) if self.window is not None else None
            if counting and sharing[0].judgement.trigger.language in _TRACKED:
                self._observed_time(sharing, counted or FunctionTime())
            else:
                for each in sharing:
                    self._measured_time(each)

    def _observed_time(self, sharing: Sequence[_Known], counted: FunctionTime) -> None:
        """Divide a function's calls and time among the triggers that call it, by the rows that set them off."""
        calls = [sum(each.expected.values()) for each in sharing]
        rough = [sum(rows * self._unit_us(each, event) for event, rows in each.expected.items()) for each in sharing]
        known = all(
            (each.judgement.trigger.identity, event) in self.units
            for each in sharing
            for event, rows in each.expected.items()
            if rows
        )
        times = rough if known and any(rough) else calls
        several = sum(bool(number) for number in calls) > 1
        name = f"{sharing[0].judgement.trigger.function_schema}.{sharing[0].judgement.trigger.function}()"
        for each, by_calls, by_time in zip(sharing, _parts(calls), _parts(times), strict=True):
            each.calls = counted.calls * by_calls
            each.us = counted.total_ms * 1000 * by_time
            each.us_low, each.us_high = counted.self_ms * 1000 * by_time, each.us
            each.per_call = each.us / each.calls if each.calls else None
            each.calls_from = Origin.OBSERVE
            each.us_from = Origin.OBSERVE if each.calls else Origin.NONE
            if several:
                weighed = " and what a row took when it was measured" if times is rough else ""
                each.split.append(
                    f"calls and time of {name} are shared by {len(sharing)} triggers: divided by the rows written to "
                    f"their tables{weighed}"
                )
            else:
                each.at_most = False

    def _unit_us(self, each: _Known, event: Event) -> float:
        found = self.units.get((each.judgement.trigger.identity, event))
        return found[0].us.mid if found is not None else 0.0

    def _units_of(self, each: _Known) -> Iterator[tuple[float, Unit, Origin]]:
        for event, rows in each.expected.items():
            found = self.units.get((each.judgement.trigger.identity, event))
            if found is not None:
                yield rows, *found

    def _measured_time(self, each: _Known) -> None:
        """Rows by what one took when it was measured; the operations that were not measured count for nothing."""
        each.calls = sum(each.expected.values())
        each.calls_from = self.weights_from
        found = list(self._units_of(each))
        if not found:
            return
        each.us_from = found[0][2]
        weighed = sum(rows for rows, _, _ in found)
        each.per_call = _mean((rows if weighed else 1.0, unit.us.mid) for rows, unit, _ in found)
        each.us, each.us_low, each.us_high = (
            sum(rows * unit.us.mid for rows, unit, _ in found),
            sum(rows * unit.us.low for rows, unit, _ in found),
            sum(rows * unit.us.high for rows, unit, _ in found),
        )

    # How much --------------------------------------------------------------------------------------------------------

    def _wal_and_rows(self) -> None:
        for each in self.known:
            found = list(self._units_of(each))
            often = sum(each.expected.values())
            # Called less often than rows were written, it wrote less as well.
            part = min(1.0, each.calls / often) if each.calls is not None and often else 1.0
            for what in ("wal", "rows"):
                figures = [
                    (rows, value, origin) for rows, unit, origin in found if (value := getattr(unit, what)) is not None
                ]
                if not figures:
                    continue
                weighed = sum(rows for rows, _, _ in figures)
                setattr(each, what, part * sum(rows * value for rows, value, _ in figures))
                setattr(each, f"per_row_{what}", _mean((rows if weighed else 1.0, value) for rows, value, _ in figures))
                setattr(each, f"{what}_from", figures[0][2])
            if any(unit.shared_out for _, unit, _ in found):
                each.split.append("WAL and rows are a share, by time, of what the statement's triggers wrote together")
        if self.window is not None:
            self._observed_writes(self.window)

    def _observed_writes(self, window: Window) -> None:
        """What was seen to be written to the tables that triggers write, divided by calls among those triggers."""
        writers: defaultdict[str, list[_Known]] = defaultdict(list)
        for each in self.known:
            if each.calls and each.calls_from is Origin.OBSERVE:
                for name in {*each.judgement.log_tables, *each.judgement.effects}:
                    writers[name].append(each)
        without_rows = {id(each) for each in self.known if each.rows is None}
        without_wal = {id(each) for each in self.known if each.wal is None}
        for name, listed in writers.items():
            parts = _parts([each.calls or 0.0 for each in listed])
            written = sum(self._seen(self.atlas.tables[self.named[name]]).values()) if name in self.named else 0.0
            nested = _nested(window.nested, name)
            for each, part in zip(listed, parts, strict=True):
                calls = each.calls or 0.0
                if id(each) in without_rows:
                    each.rows = (each.rows or 0.0) + min(written * part, calls)
                    each.per_row_rows, each.rows_from = each.rows / calls, Origin.OBSERVE
                    _say(each, f"rows of {name} are divided by calls among the triggers that write it")
                if nested is not None and nested.calls and id(each) in without_wal:
                    each.wal = (each.wal or 0.0) + nested.wal * part
                    each.per_row_wal, each.wal_from = each.wal / calls, Origin.OBSERVE
                    _say(each, f"the WAL of statements on {name} inside functions is divided by calls")

    # Of what ---------------------------------------------------------------------------------------------------------

    def _all_time(self) -> tuple[str, float | None]:
        """What the shares of time are shares of, and how much that is."""
        if self.window is not None and any(each.us_from is Origin.OBSERVE for each in self.known):
            totals = self.window.totals
            # Both are counted when a statement ends, and told up to a second apart: in a short window of long waits the
            # triggers may seem to take longer than the statements. Then the other clock is asked, that ticks as theirs.
            own = sum(each.us_low or 0.0 for each in self.known)
            if totals.statements is not None and totals.statements.ms * 1000 > own:
                return "the time of all statements that write (pg_stat_statements)", totals.statements.ms * 1000
            if totals.active_ms:
                return "the time of all statements, reads included (pg_stat_database)", totals.active_ms * 1000
            return "", None
        total = sum(rows * cost.us.mid for rows, cost in self._weighed_statements())
        return ("the measured statements, each as often as its table is written", total) if total else ("", None)

    def _weighed_statements(self) -> Iterator[tuple[float, StatementCost]]:
        """Each measured statement with the rows that it stands for; what it did not set off itself comes on top."""
        for (table, event), cost in self.statements.items():
            rows = self._rows(self.named.get(table, 0), event)
            apart = self.apart[table, event]
            if rows and apart:
                more = sum(unit.us.mid for unit in apart)
                us = Spread(cost.us.low + more, cost.us.mid + more, cost.us.high + more)
                wal = None if cost.wal is None else cost.wal + sum(unit.wal or 0.0 for unit in apart)
                staying = [unit for unit in apart if unit.trigger not in self.moving]
                stays = cost.stays_us and sum(unit.us.mid for unit in staying) + cost.stays_us.mid
                stays_wal = cost.stays_wal and sum(unit.wal or 0.0 for unit in staying) + cost.stays_wal
                yield (
                    rows,
                    msgspec.structs.replace(
                        cost,
                        us=us,
                        wal=wal,
                        rows=None if cost.rows is None else cost.rows + sum(unit.rows or 0.0 for unit in apart),
                        stays_us=Spread(stays, stays, stays) if stays is not None else None,
                        stays_wal=stays_wal,
                    ),
                )
            elif rows:
                yield rows, cost

    def _all_wal(self) -> float | None:
        if self.window is not None and self.weights_from is Origin.OBSERVE:
            totals = self.window.totals
            seen = totals.statements.wal if totals.statements is not None and totals.statements.wal else totals.wal
            return float(seen) if seen else None
        return sum(rows * (cost.wal or 0.0) for rows, cost in self._weighed_statements()) or None

    def _all_rows(self) -> float | None:
        if self.weights_from is Origin.OBSERVE:
            return sum(sum(each.values()) for each in self.weights.values()) or None
        return sum(rows * (cost.rows or 0.0) for rows, cost in self._weighed_statements()) or None

    # The answer ------------------------------------------------------------------------------------------------------

    def _trigger(self, each: _Known, time: float | None, wal: float | None, rows: float | None) -> TriggerCost:
        trigger = each.judgement.trigger
        calls = each.calls or 0.0
        own = self._own_time(each.table)
        return TriggerCost(
            trigger=trigger.identity,
            schema=trigger.schema,
            table=trigger.table,
            name=trigger.name,
            verdict=each.judgement.verdict,
            calls=None if self.weights_from is Origin.ALIKE else each.calls,
            calls_from=each.calls_from,
            at_most=each.at_most,
            us=each.per_call,
            us_low=each.us_low / calls if each.us_low is not None and calls else None,
            us_high=each.us_high / calls if each.us_high is not None and calls else None,
            us_from=each.us_from,
            time_share=_share(each.us, time),
            table_time_share=_share(each.us, own) if each.us_from is not Origin.OBSERVE else None,
            wal=each.per_row_wal,
            wal_from=each.wal_from,
            wal_share=_share(each.wal, wal),
            rows=each.per_row_rows,
            rows_from=each.rows_from,
            row_share=_share(each.rows, rows),
            split="; ".join(each.split),
        )

    def _own_time(self, table: Table | None) -> float | None:
        name = table.full_name if table is not None else ""
        return sum(rows * cost.us.mid for rows, cost in self._weighed_statements() if cost.table == name) or None

    def _tables(self, time: float | None, wal: float | None) -> Iterator[TableCost]:
        by_table: defaultdict[int, list[_Known]] = defaultdict(list)
        for each in self.known:
            if each.table is not None:
                by_table[each.table.oid].append(each)
        found: list[TableCost] = []
        for oid, listed in by_table.items():
            table = self.atlas.tables[oid]
            mine = [(rows, cost) for rows, cost in self._weighed_statements() if cost.table == table.full_name]
            own_time = sum(rows * cost.us.mid for rows, cost in mine) or None
            own_wal = sum(rows * (cost.wal or 0.0) for rows, cost in mine) or None
            spent = _sum(each.us for each in listed)
            measured = not any(each.us_from is Origin.OBSERVE for each in listed)
            found.append(
                TableCost(
                    table=table.full_name,
                    inserted=self._rows(oid, Event.INSERT),
                    updated=self._rows(oid, Event.UPDATE),
                    deleted=self._rows(oid, Event.DELETE),
                    time_share=_share(own_time, time) if measured else None,
                    triggers_share=_share(spent, time),
                    triggers_of_time=_share(spent, own_time) if measured else None,
                    wal_share=_share(own_wal, wal),
                    triggers_of_wal=_share(_sum(each.wal for each in listed), own_wal),
                )
            )
        yield from sorted(found, key=lambda each: (-(each.triggers_share or 0), each.table))

    def _savings(self, time: float | None, wal: float | None, rows: float | None) -> Iterator[Saving]:
        for verdicts in ((Verdict.RETIRE,), (Verdict.RETIRE, Verdict.DEFER)):
            moving = [each for each in self.known if each.judgement.verdict in verdicts]
            moving = [each for each in moving if each.us is not None or each.wal is not None]
            if not moving:
                continue
            observed = any(each.us_from is Origin.OBSERVE for each in moving)
            times = [_sum(each.us_low for each in moving), _sum(each.us_high for each in moving)]
            bytes_saved = [_sum(each.wal for each in moving)]
            how = (
                "without and with what they set off in their turn"
                if observed
                else "from quartile to quartile of their own times"
            )
            if len(verdicts) > 1 and not observed and (joint := self._joint("us")) is not None:
                times.append(joint)
                how += ", and as measured with all of them off"
            if len(verdicts) > 1 and not observed and (joint := self._joint("wal")) is not None:
                bytes_saved.append(joint)
            yield Saving(
                verdicts=verdicts,
                triggers=len(moving),
                time_low=_share(_least(times), time),
                time_high=_share(_most(times), time),
                wal_low=_share(_least(bytes_saved), wal),
                wal_high=_share(_most(bytes_saved), wal),
                rows=_share(_sum(each.rows for each in moving), rows),
                how=how,
            )

    def _joint(self, what: str) -> float | None:
        """What the measured statements took less with all moving triggers off; None where that was not measured."""
        saved: list[float] = []
        for rows, cost in self._weighed_statements():
            if what == "us":
                if cost.stays_us is not None:
                    saved.append(rows * (cost.us.mid - cost.stays_us.mid))
            elif cost.wal is not None and cost.stays_wal is not None:
                saved.append(rows * (cost.wal - cost.stays_wal))
        return max(0.0, sum(saved)) if saved else None


def _say(each: _Known, sentence: str) -> None:
    if sentence not in each.split:
        each.split.append(sentence)


def _nested(found: Mapping[str, Statements] | None, name: str) -> Statements | None:
    if found is None:
        return None
    return found.get(name.lower()) or found.get(name.rpartition(".")[2].lower())


def _parts(weights: Sequence[float]) -> list[float]:
    """Each weight's part of all; equal ones where there is none."""
    total = sum(weights)
    return [weight / total if total else 1 / len(weights) for weight in weights]


def _mean(weighed: Iterable[tuple[float, float]]) -> float | None:
    listed = list(weighed)
    total = sum(weight for weight, _ in listed)
    return sum(weight * value for weight, value in listed) / total if total else None


def _sum(found: Iterable[float | None]) -> float | None:
    known = [each for each in found if each is not None]
    return sum(known) if known else None


def _least(found: Iterable[float | None]) -> float | None:
    return min((each for each in found if each is not None), default=None)


def _most(found: Iterable[float | None]) -> float | None:
    return max((each for each in found if each is not None), default=None)


def _share(part: float | None, whole: float | None) -> float | None:
    """A part of the whole; readings a moment apart may make it a little more than all."""
    return min(1.0, part / whole) if part is not None and whole else None
