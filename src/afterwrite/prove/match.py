"""Changes and legacy rows of one transaction, matched as multisets: what agrees, what does not, and why.

::

    Transaction ─▶ firings (trigger × change) ─▶ expected rows ─┐
                └▶ legacy rows ───────────────────────────────┴─▶ pairs, residuals ─▶ Account

Every firing ends in exactly one place: matched, explained by one reason, or unexplained by one. Legacy rows that no
firing claims are counted beside, by their own reasons. Nothing depends on the order of rows or on clocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any

import msgspec

from afterwrite.capture.transaction import Change, Column, Relation, Stamp, Transaction
from afterwrite.context import Context
from afterwrite.postgres import quoted
from afterwrite.prove.evaluate import Moment, Slots, Writer
from afterwrite.prove.firing import Row, Rule, Verdict, Writes, read_row
from afterwrite.prove.landing import Exact, Landed, NotCompared, Partly, Whole
from afterwrite.prove.legacy import LegacyMapping, TableShape
from afterwrite.prove.pairing import Found, Wanted, differences, pair
from afterwrite.prove.value import Holes, Unknown, Value, to_json
from afterwrite.record import Lsn, Operation
from afterwrite.scan.catalog import Enabled

_NOBODY = Context()


class Reason(StrEnum):
    """Why a firing or a legacy row is not simply matched. The first three are unexplained: they forbid a proof."""

    MISSING = "missing"  # the legacy log has it, and no change goes with it
    EXTRA = "extra"  # the change is there, and the legacy log does not have it
    VALUE = "value"  # both are there, and they do not agree
    REPLICA_ROLE = "replica-role"  # written under session_replication_role = replica: origin triggers do not fire
    NO_OP_UPDATE = "no-op-update"  # nothing changed, and the trigger's conditions ask for a change
    WHEN_NOT_MET = "when-not-met"  # WHEN, or a condition of the body, is false for this row
    UPDATE_OF = "update-of"  # which columns were SET is not in the WAL, and these did not (provably) change
    GENERATED_COLUMN = "generated-column"  # agrees but for generated columns, which are not in the WAL
    PARTITION_LEAF = "partition-leaf"  # agrees but for the table's name: the legacy log has the partition's
    SESSION_ONLY = "session-only"  # agrees but for the actor: the transaction brought no context to compare with
    UNLOGGED = "unlogged"  # one side is an UNLOGGED table, whose rows are not in the WAL
    CONDITION_NOT_KNOWN = "condition-not-known"  # a condition that the WAL does not decide, and no row
    EMPTY_STATEMENT = "empty-statement"  # a statement trigger fired although no row was touched
    LEGACY_FOREIGN = "legacy-foreign"  # no trigger of the plan can have written it: the application did, or another
    DEFERRED = "deferred"  # a deferred body's row, written after commit
    TOO_LARGE = "too-large"  # not compared: too big for memory and uneven in parts, or JSON nested too deeply
    SILENCED_YET_WRITTEN = "silenced-yet-written"  # a silenced trigger's row: it is still on somewhere

    @property
    def explained(self) -> bool:
        """Whether the difference is understood, and no sign of loss."""
        return self not in (Reason.MISSING, Reason.EXTRA, Reason.VALUE)

    @property
    def alarming(self) -> bool:
        """Whether somebody must look although nothing is lost."""
        return self is Reason.SILENCED_YET_WRITTEN

    @property
    def paired(self) -> bool:
        """Whether the firing found its legacy row nevertheless: the trigger was seen at work."""
        return self in (Reason.GENERATED_COLUMN, Reason.PARTITION_LEAF, Reason.SESSION_ONLY, Reason.VALUE)


class Difference(msgspec.Struct, frozen=True):
    """A legacy column that is not what it must be, both as JSON text."""

    column: str
    expected: str
    found: str


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """One example of a reason. ``trigger`` is an identity, or the legacy table's name for rows of nobody.

    ``before``, ``after`` and ``legacy`` are rows as JSON text, where there are such; ``expected`` is the legacy row
    that should be there (for a stranger's row, the trigger that wrote it, where it is known).
    """

    trigger: str
    operation: Operation
    reason: Reason
    xid: int
    commit_lsn: Lsn
    committed_at: datetime
    key: str | None = None
    before: str | None = None
    after: str | None = None
    legacy: str | None = None
    expected: str | None = None
    differences: tuple[Difference, ...] = ()


class Tally(msgspec.Struct):
    """What was seen of one trigger on one operation.

    ``seen`` counts firings: matched ones, and those that ended in a reason. ``exact``, ``partly`` and ``uncompared``
    count columns of the ``rows`` found for them.
    """

    seen: int = 0
    matched: int = 0
    rows: int = 0
    exact: int = 0
    partly: int = 0
    uncompared: int = 0
    reasons: dict[Reason, int] = msgspec.field(default_factory=dict[Reason, int])
    first_at: datetime | None = None
    first_lsn: Lsn | None = None
    last_at: datetime | None = None
    last_lsn: Lsn | None = None

    def count(self, reason: Reason, times: int = 1) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + times

    def at(self, transaction: Transaction) -> None:
        if self.first_at is None:
            self.first_at, self.first_lsn = transaction.committed_at, transaction.commit_lsn
        self.last_at, self.last_lsn = transaction.committed_at, transaction.commit_lsn


EXAMPLES = 5


class Account:
    """What some transactions came to, in constant memory: tallies, and the newest few examples of each reason."""

    def __init__(self) -> None:
        self.transactions = 0
        self.tallies: dict[tuple[str, Operation], Tally] = {}
        self.examples: dict[tuple[str, Operation, Reason], deque[Residual]] = {}

    def tally(self, trigger: str, operation: Operation, transaction: Transaction) -> Tally:
        found = self.tallies.get((trigger, operation))
        if found is None:
            found = self.tallies[trigger, operation] = Tally()
        found.at(transaction)
        return found

    def add(self, residual: Residual) -> None:
        key = residual.trigger, residual.operation, residual.reason
        self.examples.setdefault(key, deque(maxlen=EXAMPLES)).append(residual)

    def take(self, other: Account) -> None:
        """Add another account, of later transactions or of the same one."""
        self.transactions += other.transactions
        for key, more in other.tallies.items():
            known = self.tallies.setdefault(key, Tally())
            for name in ("seen", "matched", "rows", "exact", "partly", "uncompared"):
                setattr(known, name, getattr(known, name) + getattr(more, name))
            for reason, times in more.reasons.items():
                known.count(reason, times)
            if known.first_at is None:
                known.first_at, known.first_lsn = more.first_at, more.first_lsn
            known.last_at, known.last_lsn = more.last_at, more.last_lsn
        for residuals in other.examples.values():
            for residual in residuals:
                self.add(residual)

    def total(self, *reasons: Reason) -> int:
        """How often these reasons were counted (all unexplained ones when none is named)."""
        wanted = reasons or (Reason.MISSING, Reason.EXTRA, Reason.VALUE)
        return sum(tally.reasons.get(reason, 0) for tally in self.tallies.values() for reason in wanted)


class _Expected:
    """A row that a firing should have written, or may have."""

    __slots__ = ("firing", "instead", "landed", "partner", "sure", "values", "wanted", "writes")

    def __init__(self, firing: _Firing, writes: Writes, sure: bool, values: list[Value] | None) -> None:
        self.firing, self.writes, self.sure, self.values = firing, writes, sure, values
        self.wanted: Wanted | None = None
        self.partner: int | None = None
        self.instead: tuple[int, list[str]] | None = None
        self.landed: dict[str, Landed] | None = None

    @property
    def wrote(self) -> bool:
        """Whether the row is there, as it must be or not."""
        return self.partner is not None or self.instead is not None

    @property
    def identifies(self) -> Sequence[str]:
        return self.firing.rule.identifies.get(self.writes.target, ())

    def land(self, legacy: Relation) -> dict[str, Landed]:
        if self.landed is None:
            self.landed = self.writes.land(self.firing.row.moment, self.values, legacy)
        return self.landed


class _Firing:
    """A trigger and the change (for a statement's row: the first of its changes) that it fired for, or may have."""

    __slots__ = ("doubt", "expected", "operation", "row", "rule")

    def __init__(self, rule: Rule, operation: Operation, row: Row, doubt: Reason | None) -> None:
        self.rule, self.operation, self.row, self.doubt = rule, operation, row, doubt
        self.expected: list[_Expected] = []


class Role(Enum):
    """What a mapping is for: to compare, to count, or only to know whose a row is."""

    COMPARED = "compared"
    COVERED = "covered"
    OTHER = "other"


_NOWHERE = Moment(None, None)
_NOTHING: Mapping[str, str | None] = {}


class Matcher:
    """Matches transaction after transaction by the same mappings; compiled once for each shape of a table.

    ``covered`` are triggers without a legacy row (deferred ones), whose firings are counted only. ``others`` write to
    the legacy log and stay: their rows are claimed as theirs. ``tables`` is what the catalog says of all tables.
    """

    def __init__(
        self,
        mappings: Iterable[LegacyMapping],
        *,
        tables: Mapping[tuple[str, str], TableShape],
        covered: Iterable[LegacyMapping] = (),
        others: Iterable[LegacyMapping] = (),
    ) -> None:
        self.tables = tables
        self._mappings: dict[tuple[str, str], list[tuple[LegacyMapping, Role]]] = {}
        self._legacy: dict[tuple[str, str], list[tuple[LegacyMapping, Role]]] = {}
        roles = ((mappings, Role.COMPARED), (covered, Role.COVERED), (others, Role.OTHER))
        for mapping, role in ((mapping, role) for group, role in roles for mapping in group):
            trigger = mapping.trigger
            shape = tables.get((trigger.schema, trigger.table))
            if trigger.parent_oid is not None:
                continue  # a partition's copy of its parent's trigger: the stream shows the parent's table
            home = shape.root if shape is not None and shape.root is not None else (trigger.schema, trigger.table)
            self._mappings.setdefault(home, []).append((mapping, role))
            for rows in mapping.written.values():
                for row in rows:
                    writers = self._legacy.setdefault((row.schema or "", row.table), [])
                    if (mapping, role) not in writers:
                        writers.append((mapping, role))
        self._rules: dict[int, tuple[Relation, list[tuple[Rule, Role]]]] = {}
        self._firing: dict[tuple[int, Operation, bool], Sequence[tuple[Rule, Role, bool]]] = {}
        self._silenced: Mapping[str, str | None] = _NOTHING
        self._stand_ins: dict[str, Rule] = {}
        self._slots = Slots()
        self._templates: dict[int, tuple[Relation, dict[tuple[str, Operation, int], dict[str, Landed] | None]]] = {}
        self._shapes = 0

    def match(
        self,
        transaction: Transaction,
        account: Account,
        *,
        silenced: Mapping[str, str | None] = _NOTHING,
        steady: Collection[tuple[str, Operation]] = frozenset(),
    ) -> None:
        """Add what one transaction comes to.

        ``silenced`` are triggers that are off, with the mode in which they were silenced: a mapping that stays as it
        is, since what follows from it is kept for the next transaction. ``steady`` are those that
        certainly were on when the transaction wrote, and that have been seen to work: where none of a change's triggers
        wrote, the writer's role kept them from it.
        """
        if _Match(self, transaction, account, silenced, steady).run():
            account.transactions += 1

    def key_columns(
        self, transaction: Transaction, change: Change, silenced: Mapping[str, str | None] = _NOTHING
    ) -> list[tuple[tuple[str, str], set[str]]]:
        """By legacy log that must hold a row for this change: its columns that hold the change's key there."""
        trial = _Match(self, transaction, Account(), silenced, frozenset())
        trial.fire(change, self.firing(change, silenced, legacy=bool(transaction.legacy)))
        found: list[tuple[tuple[str, str], set[str]]] = []
        for firing in trial.firings:
            for each in firing.expected:
                values = each.values if each.values is not None else each.writes.evaluate(firing.row.moment)
                named = zip(each.writes.names, values, strict=True)
                same = {name for name, value in named if change.key is not None and str(value) == change.key}
                found.append((each.writes.target, same))
        return found

    def rules(self, relation: Relation) -> list[tuple[Rule, Role]]:
        """The rules for a table, and what each is for."""
        known = self._rules.get(relation.oid)
        if known is not None and (known[0] is relation or known[0] == relation):
            return known[1]
        if known is not None and known[1]:
            self._slots.forget(known[1][0][0].number)
        found = self._mappings.get((relation.schema, relation.table), [])
        shape = self.tables.get((relation.schema, relation.table))
        self._shapes += 1
        rules = [(Rule(mapping, relation, shape, self._slots, self._shapes), role) for mapping, role in found]
        self._rules[relation.oid] = relation, rules
        self._firing.clear()
        return rules

    def firing(
        self, change: Change, silenced: Mapping[str, str | None], *, legacy: bool
    ) -> Sequence[tuple[Rule, Role, bool]]:
        """The rules to look at for a change, and whether each is silenced; ``legacy`` where there are legacy rows."""
        rules = self.rules(change.relation)
        if silenced is not self._silenced:
            self._silenced = silenced
            self._firing.clear()
        key = change.relation.oid, change.operation, legacy
        found = self._firing.get(key)
        if found is None:
            found = self._firing[key] = [
                (rule, role, off)
                for rule, role in rules
                if change.operation in rule.operations
                for off in [rule.identity in silenced]
                # One that is off writes nothing, and whose a row is only matters where there are rows.
                if not (off and role is Role.COVERED) and (legacy or not (off or role is Role.OTHER))
            ]
        return found

    def writers(self, relation: Relation) -> list[tuple[LegacyMapping, Role]]:
        """The mappings that write to a legacy table."""
        return self._legacy.get((relation.schema, relation.table), [])

    def template(self, rule: Rule, operation: Operation, number: int, legacy: Relation) -> dict[str, Landed] | None:
        """What any row of this INSERT has in common, or None when it cannot be one."""
        known = self._templates.get(legacy.oid)
        if known is None or not (known[0] is legacy or known[0] == legacy):
            known = self._templates[legacy.oid] = legacy, {}
        key = rule.identity, operation, number
        if key not in known[1]:
            writes = rule.writes[operation][number]
            values = rule.template(operation, writes)
            known[1][key] = None if values is None else writes.land(_NOWHERE, values, legacy)
        return known[1][key]

    def rule_of(self, mapping: LegacyMapping) -> Rule:
        """A rule for a mapping whose table is not in the transaction."""
        rule = self._stand_ins.get(mapping.identity)
        if rule is None:
            shape = self.tables.get((mapping.trigger.schema, mapping.trigger.table))
            rule = Rule(mapping, _stand_in(mapping, shape.columns if shape else ()), shape, Slots(), 0)
            self._stand_ins[mapping.identity] = rule
        return rule


class _Match:
    """One transaction being matched."""

    def __init__(
        self,
        matcher: Matcher,
        transaction: Transaction,
        account: Account,
        silenced: Mapping[str, str | None],
        steady: Collection[tuple[str, Operation]],
    ) -> None:
        self.matcher = matcher
        self.transaction = transaction
        self.account = account
        self.writer = Writer(transaction.context, transaction.xid)
        self.silenced = silenced
        self.steady = steady
        self.firings: list[_Firing] = []
        self.silent: list[tuple[Rule, Row]] = []
        self.foreign: list[_Firing] = []
        self.once: dict[tuple[str, Operation], _Firing] = {}
        self.seen_once: set[tuple[str, Operation]] = set()
        self.counted = False

    def run(self) -> bool:
        """Whether there was anything to compare or to count."""
        firing, legacy = self.matcher.firing, bool(self.transaction.legacy)
        stamps = self.later_stamps()
        stamp = next(stamps, None)
        for change in self.transaction.changes:
            while stamp is not None and stamp.ordinal <= change.ordinal:
                self.writer = self.told_by(stamp)
                stamp = next(stamps, None)
            rules = firing(change, self.silenced, legacy=legacy)
            if rules:
                self.fire(change, rules)
        if not (legacy or self.firings):
            return self.counted
        tables: dict[tuple[str, str], list[Change]] = {}
        for change in self.transaction.legacy:
            tables.setdefault((change.relation.schema, change.relation.table), []).append(change)
        found = {name: Found(changes[-1].relation, changes) for name, changes in tables.items()}
        expected: dict[tuple[str, str], list[_Expected]] = {}
        for firing in self.firings:
            for each in firing.expected:
                expected.setdefault(each.writes.target, []).append(each)
        for name, rows in found.items():
            self.pair(expected.get(name, []), rows)
        self.settle(found)
        for rows in found.values():
            self.leftovers(rows)
        return bool(self.firings or found or self.counted)

    def later_stamps(self) -> Iterator[Stamp]:
        """The stamps that hold from their place on; sets the writer of what comes before them."""
        stamps = iter(self.transaction.stamps)
        first = next(stamps, None)
        if first is None:
            return
        if first.here:
            self.writer = Writer(None, self.transaction.xid)
            yield first
        else:
            self.writer = self.told_by(first)
        yield from stamps

    def told_by(self, stamp: Stamp) -> Writer:
        return Writer(None if stamp.context == _NOBODY else stamp.context, self.transaction.xid)

    # --- what should have been written --------------------------------------------------------------------------------

    def fire(self, change: Change, rules: Sequence[tuple[Rule, Role, bool]]) -> None:
        row: Row | None = None
        for rule, role, off in rules:
            if role is Role.COVERED and not rule.conditional(change.operation):
                self.cover(rule, change, None)
                continue
            if row is None:
                shape = self.matcher.tables.get((change.relation.schema, change.relation.table))
                row = read_row(change, shape, self.writer)
            if off:
                self.silent.append((rule, row))
            elif role is Role.COVERED:
                self.cover(rule, change, row)
            elif role is Role.OTHER:
                self.foreign += self.perhaps(rule, row)
            else:
                self.firings += self.expect(rule, change.operation, row)

    def cover(self, rule: Rule, change: Change, row: Row | None) -> None:
        """A deferred trigger: it counts as seen where it surely ran. ``row`` is None where no condition looks at it."""
        if rule.update_of(change) is not Verdict.YES:
            return
        if row is not None and rule.when_met(row, change.operation) is not Verdict.YES:
            return
        key = rule.identity, change.operation
        if rule.statement_level:
            if key in self.seen_once:
                return
            self.seen_once.add(key)
        self.account.tally(*key, self.transaction).seen += 1
        self.counted = True

    def expect(self, rule: Rule, operation: Operation, row: Row) -> list[_Firing]:
        """The firings of one trigger for one change, with the rows it should have written."""
        writes = rule.writes.get(operation, ())
        if not writes or row.change is None:
            return []
        doubt: Reason | None = None
        if rule.update_of(row.change) is Verdict.PERHAPS:
            doubt = Reason.UPDATE_OF
        match rule.when_met(row, operation):
            case Verdict.NO:
                self.not_met(rule, operation, row)
                return []
            case Verdict.PERHAPS:
                doubt = doubt or Reason.CONDITION_NOT_KNOWN
            case Verdict.YES:
                pass
        if rule.mapping.trigger.table != row.change.relation.table:
            doubt = Reason.PARTITION_LEAF  # a trigger of one partition: which rows went there is not in the stream
        firings: list[_Firing] = []
        per_row = [each for each in writes if not each.written.statement]
        if per_row:
            firing = _Firing(rule, operation, row, doubt)
            self.fill(firing, per_row)
            if firing.expected:
                firings.append(firing)
            else:
                self.not_met(rule, operation, row)
        once = [each for each in writes if each.written.statement]
        if once and (rule.identity, operation) not in self.once:
            moment = Moment(None, None, self.writer)
            firing = _Firing(rule, operation, Row(row.change, moment), doubt)
            self.fill(firing, once)
            self.once[rule.identity, operation] = firing
            if firing.expected:
                firings.append(firing)
            elif not per_row:
                self.not_met(rule, operation, row)
        return firings

    def fill(self, firing: _Firing, writes: Sequence[Writes]) -> None:
        for each in writes:
            for sure, values in each.expect(firing.row.moment):
                certain = sure and firing.doubt is None and not each.written.many
                firing.expected.append(_Expected(firing, each, certain, values))

    def not_met(self, rule: Rule, operation: Operation, row: Row) -> None:
        change = row.change
        tally = self.account.tally(rule.identity, operation, self.transaction)
        tally.seen += 1
        self.counted = True
        no_op = change is not None and operation is Operation.UPDATE and change.changed == ()
        tally.count(Reason.NO_OP_UPDATE if no_op else Reason.WHEN_NOT_MET)

    # --- what was written ---------------------------------------------------------------------------------------------

    def pair(self, expected: Sequence[_Expected], rows: Found) -> None:
        wanted: list[Wanted] = []
        for each in expected:
            each.wanted = Wanted(each.land(rows.relation), each.sure, rows, each.identifies)
            wanted.append(each.wanted)
        pair(wanted, rows)
        for each in expected:
            each.partner = each.wanted.partner if each.wanted else None
        # Rows of statements, of loops that cannot be counted: as many more as there are.
        for each in expected:
            if each.partner is not None and (each.writes.written.many or each.writes.written.statement):
                self.claim_more(each, rows)

    def claim_more(self, each: _Expected, rows: Found) -> None:
        wanted = each.wanted
        if wanted is None:
            return
        for position in wanted.bucket:
            if not rows.taken[position] and wanted.fits(position):
                rows.taken[position] = True
                self.account.tally(each.firing.rule.identity, each.firing.operation, self.transaction).rows += 1

    def settle(self, found: Mapping[tuple[str, str], Found]) -> None:
        """Give every firing its one end."""
        for firing in self.firings:
            for each in firing.expected:
                rows = found.get(each.writes.target)
                if each.sure and each.partner is None and rows is not None:
                    each.instead = self.nearest(each, rows)
        quiet = self.quiet_changes()
        for firing in self.firings:
            tally = self.account.tally(firing.rule.identity, firing.operation, self.transaction)
            tally.seen += 1
            paired = [each for each in firing.expected if each.partner is not None]
            for each in paired:
                _count_columns(tally, each)
            lost = [each for each in firing.expected if each.partner is None and each.sure]
            if lost:
                worst = next((each for each in lost if each.instead is not None), lost[0])
                tally.count(self.lose(firing, worst, found.get(worst.writes.target), quiet))
            elif paired:
                caveat = self.caveat(firing, paired)
                if caveat is None:
                    tally.matched += 1
                else:
                    tally.count(caveat)
            else:
                # It may have written nothing, and did.
                tally.count(firing.doubt or Reason.CONDITION_NOT_KNOWN)

    def caveat(self, firing: _Firing, paired: Sequence[_Expected]) -> Reason | None:
        """What of a pair that agrees could not be compared, where that has a name."""
        nobody = firing.row.moment.writer.context is None
        if nobody and any(each.writes.needs_context for each in paired):
            return Reason.SESSION_ONLY
        if firing.rule.generated and any(each.writes.whole for each in paired):
            return Reason.GENERATED_COLUMN
        return Reason.PARTITION_LEAF if any(each.writes.partition for each in paired) else None

    def quiet_changes(self) -> set[int]:
        """Changes for which every trigger that had to fire is known to have been on, and none wrote."""
        by_change: dict[int, list[_Firing]] = {}
        for firing in self.firings:
            if firing.row.change is not None and firing.rule.mapping.trigger.enabled is Enabled.ORIGIN:
                by_change.setdefault(firing.row.change.ordinal, []).append(firing)
        return {
            ordinal
            for ordinal, firings in by_change.items()
            if all(
                (firing.rule.identity, firing.operation) in self.steady
                and not any(each.wrote or each.writes.written.swallowed for each in firing.expected)
                for firing in firings
                if any(each.sure for each in firing.expected)
            )
        }

    def lose(self, firing: _Firing, lost: _Expected, rows: Found | None, quiet: Collection[int]) -> Reason:
        """A row that had to be there is not, or not so: why."""
        if lost.instead is not None:
            self.example(firing, Reason.VALUE, lost, rows, *lost.instead)
            return Reason.VALUE
        shape = self.matcher.tables.get(lost.writes.target)
        if shape is not None and shape.unlogged:
            return Reason.UNLOGGED
        change = firing.row.change
        origin = firing.rule.mapping.trigger.enabled is Enabled.ORIGIN
        if origin and (_stamped_replica(firing) or (change is not None and change.ordinal in quiet)):
            return Reason.REPLICA_ROLE
        self.example(firing, Reason.EXTRA, lost, rows, None, [])
        return Reason.EXTRA

    def nearest(self, lost: _Expected, rows: Found) -> tuple[int, list[str]] | None:
        """Take the unclaimed row of the same table, operation and key with the fewest columns that differ."""
        expected = lost.land(rows.relation)
        columns = [column for column in lost.identifies if column in expected]
        known = [(column, value.value) for column in columns if isinstance(value := expected[column], Exact)]
        if not known:
            return None
        bucket = rows.bucket(tuple(column for column, _ in known), tuple(key for _, key in known))
        free = [position for position in bucket if not rows.taken[position]]
        if not free:
            return None
        ranked = [(differences(expected, rows.rows[position], rows, position), position) for position in free]
        wrong, position = min(ranked, key=lambda each: (len(each[0]), each[1]))
        rows.taken[position] = True
        return position, wrong

    # --- legacy rows of nobody ----------------------------------------------------------------------------------------

    def leftovers(self, rows: Found) -> None:
        if rows.free():
            for each, position in self.claim(self.foreign, rows):
                self.nobodys(each.firing.rule.identity, rows, position)
        if rows.free():
            silent = [firing for rule, row in self.silent for firing in self.perhaps(rule, row)]
            for each, position in self.claim(silent, rows):
                reason = self.after_silence(each.firing.rule.identity)
                tally = self.account.tally(each.firing.rule.identity, each.firing.operation, self.transaction)
                tally.count(reason)
                if reason.alarming:
                    self.example(each.firing, reason, each, rows, position, [])
        for position in rows.free():
            mapping, operation, role, reason = self.blame(rows, position)
            if mapping is None or role is Role.OTHER:
                self.nobodys(mapping.identity if mapping else None, rows, position, reason)
                continue
            self.account.tally(mapping.identity, operation, self.transaction).count(reason)
            change = rows.changes[position]
            self.account.add(self.residual(mapping.identity, operation, reason, legacy=change, key=change.key))

    def nobodys(self, writer: str | None, rows: Found, position: int, reason: Reason = Reason.LEGACY_FOREIGN) -> None:
        """A row that has nothing to do with the triggers in question; counted under the log's own name."""
        table = quoted(rows.relation.schema, rows.relation.table)
        self.account.tally(table, Operation.INSERT, self.transaction).count(reason)
        change = rows.changes[position]
        self.account.add(self.residual(table, Operation.INSERT, reason, legacy=change, key=change.key, expected=writer))

    def after_silence(self, identity: str) -> Reason:
        """What a row of a silenced trigger means: deferred ones go on writing, after commit."""
        return Reason.DEFERRED if self.silenced.get(identity) == "defer" else Reason.SILENCED_YET_WRITTEN

    def claim(self, firings: Sequence[_Firing], rows: Found) -> list[tuple[_Expected, int]]:
        """The unclaimed rows that these firings, which owe nothing, may have written."""
        name = rows.relation.schema, rows.relation.table
        expected = [each for firing in firings for each in firing.expected if each.writes.target == name]
        wanted = [Wanted(each.land(rows.relation), False, rows, each.identifies) for each in expected]
        pair(wanted, rows)
        return [(each, want.partner) for each, want in zip(expected, wanted, strict=True) if want.partner is not None]

    def perhaps(self, rule: Rule, row: Row) -> list[_Firing]:
        """As ``expect``, but nothing is counted, and nothing owed."""
        if row.change is None or rule.when_met(row, row.change.operation) is Verdict.NO:
            return []
        firing = _Firing(rule, row.change.operation, row, None)
        self.fill(firing, rule.writes.get(row.change.operation, ()))
        return [firing]

    def blame(self, rows: Found, position: int) -> tuple[LegacyMapping | None, Operation, Role, Reason]:
        """Whose row an unclaimed one can be: the trigger whose INSERT it resembles most, or nobody's."""
        best: tuple[tuple[int, bool, bool], LegacyMapping, Role, Operation, Writes] | None = None
        for mapping, role in self.matcher.writers(rows.relation):
            rule = self.matcher.rule_of(mapping)
            for operation, writes in rule.writes.items():
                for number, each in enumerate(writes):
                    if each.target != (rows.relation.schema, rows.relation.table):
                        continue
                    template = self.matcher.template(rule, operation, number, rows.relation)
                    if template is None or not rows.could_be(position, template):
                        continue
                    known = sum(not isinstance(value, NotCompared) for value in template.values())
                    score = known, mapping.identity not in self.silenced, role is Role.COMPARED
                    if best is None or score > best[0]:
                        best = score, mapping, role, operation, each
        if best is None:
            return None, Operation.INSERT, Role.OTHER, Reason.LEGACY_FOREIGN
        _, mapping, role, operation, writes = best
        own = self.matcher.tables.get((mapping.trigger.schema, mapping.trigger.table))
        if own is not None and own.unlogged:
            reason = Reason.UNLOGGED
        elif role is Role.OTHER:
            reason = Reason.LEGACY_FOREIGN
        elif mapping.identity in self.silenced:
            reason = self.after_silence(mapping.identity)
        elif writes.written.statement and (mapping.identity, operation) not in self.once:
            reason = Reason.EMPTY_STATEMENT
        else:
            reason = Reason.MISSING
        return mapping, operation, role, reason

    # --- examples -----------------------------------------------------------------------------------------------------

    def example(
        self,
        firing: _Firing,
        reason: Reason,
        each: _Expected,
        rows: Found | None,
        position: int | None,
        wrong: Sequence[str],
    ) -> None:
        change = firing.row.change
        expected = each.land(rows.relation) if rows is not None else {}
        legacy = rows.changes[position] if rows is not None and position is not None else None
        found = rows.rows[position] if rows is not None and position is not None else {}
        self.account.add(
            self.residual(
                firing.rule.identity,
                firing.operation,
                reason,
                change=change,
                legacy=legacy,
                key=change.key if change else None,
                expected=_shown(expected) if expected else _shown_values(each),
                differences=tuple(
                    Difference(column, _text(_shown_value(expected[column])), _text(found.get(column)))
                    for column in wrong
                ),
            )
        )

    def residual(
        self,
        trigger: str,
        operation: Operation,
        reason: Reason,
        *,
        key: str | None,
        change: Change | None = None,
        legacy: Change | None = None,
        expected: str | None = None,
        differences: tuple[Difference, ...] = (),
    ) -> Residual:
        return Residual(
            trigger=trigger,
            operation=operation,
            reason=reason,
            xid=self.transaction.xid,
            commit_lsn=self.transaction.commit_lsn,
            committed_at=self.transaction.committed_at,
            key=key,
            before=change.before.decode() if change is not None and change.before is not None else None,
            after=change.after.decode() if change is not None and change.after is not None else None,
            legacy=legacy.after.decode() if legacy is not None and legacy.after is not None else None,
            expected=expected,
            differences=differences,
        )


def _stamped_replica(firing: _Firing) -> bool:
    context = firing.row.moment.writer.context
    return context is not None and context.settings.get("session_replication_role") == "replica"


def _count_columns(tally: Tally, each: _Expected) -> None:
    tally.rows += 1
    for value in (each.landed or {}).values():
        match value:
            case Exact() | Whole():
                tally.exact += 1
            case Partly():
                tally.partly += 1
            case NotCompared():
                tally.uncompared += 1


def _stand_in(mapping: LegacyMapping, columns: Sequence[str]) -> Relation:
    trigger = mapping.trigger
    return Relation(
        trigger.table_oid, trigger.schema, trigger.table, "f", tuple(Column(name, 25, -1, False) for name in columns)
    )


_encode = msgspec.json.Encoder(enc_hook=repr, decimal_format="number", order="deterministic").encode


def _text(value: Any) -> str:
    return _encode(value).decode()


def _shown(expected: Mapping[str, Landed]) -> str:
    return _text({column: _shown_value(value) for column, value in expected.items()})


def _shown_value(value: Landed) -> Any:
    match value:
        case Exact(known) | Whole(known):
            return known
        case Partly(part, _):
            return part
        case NotCompared(why):
            return f"<{why}>"


def _shown_values(each: _Expected) -> str:
    values = each.values if each.values is not None else each.writes.evaluate(each.firing.row.moment)
    return _text({name: _shown_unlanded(value) for name, value in zip(each.writes.names, values, strict=True)})


def _shown_unlanded(value: Value) -> Any:
    if isinstance(value, Unknown | Holes):
        return f"<{value.why}>"
    return to_json(value)
