"""Which bodies a source transaction calls, for which rows, in which order: pure, from what the store's feed says.

::

    feed ──gather──▶ SourceTransaction ──plan_job──▶ Job ──▶ afterwrite.run_deferred()
         ──pages of a long one──▶ LongPlan ──▶ Job, Job, …

The order is PostgreSQL's own, as far as the WAL tells it: row by row, and for each row the triggers by name; then the
statement triggers; then what a constraint trigger puts off to the commit. The WAL does not show where a statement
ended, so statement triggers run once a transaction, table and operation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import groupby
from typing import NamedTuple

import msgspec

from afterwrite.context import Context, encode_context
from afterwrite.record import Lsn, Operation
from afterwrite.scan.catalog import Enabled, Trigger, TriggerLevel

DEPTH = "afterwrite.depth"


class OnError(StrEnum):
    """What a failing body does to the stream: ``park`` it as a dead letter and go on, or ``stop`` until it works."""

    PARK = "park"
    STOP = "stop"


class ReplayPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How deferred bodies run.

    ``settings`` are patterns of the original session's settings that may be set again; ``roles`` of the roles that
    bodies may take on where the original transaction stamped its own. What may pass, as a deadlock or a lock not had in
    time, is tried ``attempts`` times. Bodies that set off bodies ``deepest`` times over are parked. A round trip takes
    ``round_transactions`` or ``round_rows``, each source transaction in a transaction of its own.
    ``synchronous_commit`` may be off, since effects and progress are lost together, and run again.
    """

    settings: tuple[str, ...] = ("request.*", "app.*")
    roles: tuple[str, ...] = ("*",)
    attempts: int = 20
    deepest: int = 16
    round_transactions: int = 64
    round_rows: int = 2_000
    lock_timeout_ms: int = 30_000
    synchronous_commit: bool = False
    poll_seconds: float = 0.05


class Span(NamedTuple):
    """From one commit on, and before another (None: to this day)."""

    since: Lsn
    until: Lsn | None

    def holds(self, lsn: Lsn) -> bool:
        return self.since <= lsn and (self.until is None or lsn < self.until)


class Deferral(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger whose body runs after commit. ``relations`` are its table's quoted names: then, and now.

    ``spans`` say when it had which, where that is known: another table may have had the name before or since.
    """

    id: int
    identity: str
    run: str
    relations: tuple[str, ...]
    trigger: Trigger
    on_error: OnError = OnError.PARK
    spans: Mapping[str, Sequence[Span]] = {}


class FeedChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the feed, with what its transaction's stamp said of who and why (settings aside).

    ``lacking`` names columns whose values are not there as they were: large ones that did not change and are not in the
    WAL, or such that the store could not keep.
    """

    id: str
    commit_lsn: Lsn
    ordinal: int
    occurred_at: datetime
    relation: str
    operation: Operation
    changed: tuple[str, ...] | None = None
    before: msgspec.Raw | None = None
    after: msgspec.Raw | None = None
    lacking: tuple[str, ...] = ()
    context: Context = Context()


class SourceTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """The changes of one source transaction that may concern us, in the order of the writes, and its settings."""

    commit_lsn: Lsn
    committed_at: datetime
    changes: tuple[FeedChange, ...]
    settings: Mapping[str, str] = {}


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of the same bodies for rows that follow each other; ``rows`` are pairs of JSON (old, new).

    For a statement trigger there is one pair, of arrays. ``refused`` says why they are parked without a try.
    """

    operation: str
    deferrals: Sequence[int]
    runs: Sequence[str]
    rows: list[tuple[msgspec.Raw | None, msgspec.Raw | None]]
    ids: list[str]
    ordinals: list[int]
    refused: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """All calls of one source transaction, or a piece of them, as afterwrite.run_deferred() takes it.

    The progress must stand at ``after``, and will stand at ``position`` and ``reached``. LSNs are in words. ``stops``:
    among its bodies is one whose failure must not be passed over.
    """

    source: str
    after: str
    position: int
    reached: str
    commit_lsn: str
    committed_at: datetime
    context: str
    settings: Mapping[str, str]
    role: str | None = None
    groups: Sequence[Group]
    stops: bool = False
    opens: bool = True
    closes: bool = True
    attempts: int = 1
    last: bool = False


_encoder = msgspec.json.Encoder()


def encode_jobs(jobs: Job | Sequence[Job]) -> str:
    """One job, or several, in JSON."""
    return _encoder.encode(jobs).decode()


def count_rows(job: Job) -> int:
    """How many rows its bodies are called for."""
    return sum(len(group.rows) for group in job.groups)


def count_bytes(job: Job) -> int:
    """How many bytes these rows have."""
    return sum(_bytes(pair) for group in job.groups for pair in group.rows)


def _bytes(pair: tuple[msgspec.Raw | None, msgspec.Raw | None]) -> int:
    return sum(memoryview(row).nbytes for row in pair if row is not None)


def gather(changes: Iterable[FeedChange], settings: Mapping[Lsn, Mapping[str, str]]) -> Iterator[SourceTransaction]:
    """Put together what committed together; ``changes`` come in the order of (commit_lsn, ordinal)."""
    for commit_lsn, group in groupby(changes, key=lambda change: change.commit_lsn):
        together = tuple(group)
        yield SourceTransaction(
            commit_lsn=commit_lsn,
            committed_at=together[0].occurred_at,
            changes=together,
            settings=settings.get(commit_lsn, {}),
        )


class Coverage:
    """Which deferrals a change of a table concerns, in the order in which their triggers fired."""

    def __init__(self, deferrals: Iterable[Deferral]) -> None:
        self._by_relation: dict[str, list[Deferral]] = {}
        self.deferrals = tuple(deferrals)
        # The server fires by name, compared as bytes.
        for deferral in _by_name(self.deferrals):
            for relation in deferral.relations:
                self._by_relation.setdefault(relation, []).append(deferral)

    def of(self, change: FeedChange, settings: Mapping[str, str]) -> list[Deferral]:
        """Those whose trigger would have fired for this change, as far as the WAL can tell (WHEN is the server's), by
        the ``settings`` that its transaction stamped."""
        replica = settings.get("session_replication_role") == "replica"
        return [
            deferral
            for deferral in self._by_relation.get(change.relation, ())
            if _is_of(deferral, change)
            and _fires(deferral.trigger, change)
            and (deferral.trigger.enabled is Enabled.ALWAYS or not replica)
        ]


def _is_of(deferral: Deferral, change: FeedChange) -> bool:
    spans = deferral.spans.get(change.relation)
    return spans is None or any(span.holds(change.commit_lsn) for span in spans)


def _fires(trigger: Trigger, change: FeedChange) -> bool:
    if not any(event.value == change.operation.value for event in trigger.events):
        return False
    if change.operation is not Operation.UPDATE or not trigger.columns or change.changed is None:
        return True
    return not set(trigger.columns).isdisjoint(change.changed)


def plan_job(
    transaction: SourceTransaction,
    coverage: Coverage,
    *,
    source: str,
    after: Lsn,
    position: int,
    reached: Lsn,
    policy: ReplayPolicy,
) -> Job | None:
    """The calls of this transaction, or None when it makes none."""
    concerned = [
        (change, deferrals)
        for change in transaction.changes
        if (deferrals := coverage.of(change, transaction.settings))
    ]
    if not concerned:
        return None
    too_deep = _too_deep(transaction.settings, policy)
    return Job(
        source=source,
        after=str(after),
        position=position,
        reached=str(reached),
        commit_lsn=str(transaction.commit_lsn),
        committed_at=transaction.committed_at,
        context=_context(concerned[0][0], transaction.settings),
        settings=allowed_settings(transaction.settings, policy.settings),
        role=allowed_role(transaction.settings, policy.roles),
        stops=_stops(deferral for _, deferrals in concerned for deferral in deferrals),
        groups=[
            *_row_groups(concerned, too_deep, put_off=False),
            *_statement_groups(concerned, transaction.changes, too_deep),
            *_row_groups(concerned, too_deep, put_off=True),
        ],
    )


def _context(first: FeedChange, settings: Mapping[str, str]) -> str:
    """One stamp holds for a whole transaction: where several changes have effects, the first stands for them."""
    stamped = {**settings, DEPTH: str(_depth(settings) + 1)}
    return encode_context(msgspec.structs.replace(first.context, caused_by=first.id, settings=stamped))


def _too_deep(settings: Mapping[str, str], policy: ReplayPolicy) -> str | None:
    depth = _depth(settings)
    if depth < policy.deepest:
        return None
    return f"deferred bodies set off deferred bodies {depth} times over; the policy allows {policy.deepest}"


class LongJob(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one source transaction that is too long to be held. ``head`` is its job without any call.

    ``settings`` are all that it stamped; the head has those that are set again.
    """

    head: Job
    coverage: Coverage
    settings: Mapping[str, str]
    too_deep: str | None


def plan_long_job(
    coverage: Coverage,
    *,
    source: str,
    after: Lsn,
    position: int,
    reached: Lsn,
    commit_lsn: Lsn,
    committed_at: datetime,
    settings: Mapping[str, str],
    policy: ReplayPolicy,
) -> LongJob:
    """What is known of a long transaction's calls before its changes are read; a LongPlan finds the rest."""
    return LongJob(
        head=Job(
            source=source,
            after=str(after),
            position=position,
            reached=str(reached),
            commit_lsn=str(commit_lsn),
            committed_at=committed_at,
            context="",
            settings=allowed_settings(settings, policy.settings),
            role=allowed_role(settings, policy.roles),
            stops=_stops(coverage.deferrals),
            groups=(),
            opens=False,
            closes=False,
        ),
        coverage=coverage,
        settings=settings,
        too_deep=_too_deep(settings, policy),
    )


class LongPlan:
    """The same calls in the same order as ``plan_job``, for changes that come in pages.

    Ask ``rows`` of each page, then ``statements``, then (where ``puts_off``) ``late_rows`` of each page again, then
    ``end``: pieces of one job, to be run in one transaction. Rows that a statement trigger is to see are gathered up to
    LONGEST_STATEMENT bytes; beyond, its call is refused.
    """

    def __init__(self, job: LongJob) -> None:
        self._job = job
        self._context = ""
        self._opened = False
        self._touched: dict[tuple[str, Operation], _Touched] = {}
        self._called: dict[tuple[str, Operation], dict[int, Deferral]] = {}
        triggers = [deferral.trigger for deferral in job.coverage.deferrals]
        self.puts_off = any(t.level is TriggerLevel.ROW and t.initially_deferred for t in triggers)
        self._old, self._new = any(t.old_table for t in triggers), any(t.new_table for t in triggers)
        self._of_statements = any(t.level is TriggerLevel.STATEMENT for t in triggers)

    def rows(self, changes: Sequence[FeedChange]) -> Job | None:
        """The calls for these rows, where there are any."""
        concerned = self._concerned(changes)
        if concerned and not self._context:
            self._context = _context(concerned[0][0], self._job.settings)
        if self._of_statements:
            self._note_statements(changes, concerned)
        return self._piece(_row_groups(concerned, self._job.too_deep, put_off=False))

    def statements(self) -> Job | None:
        """The calls of statement triggers, where there are any."""
        groups = [
            _statement_group(deferral, operation, self._touched[relation, operation].call(deferral, self._job.too_deep))
            for (relation, operation), deferrals in self._called.items()
            for deferral in _by_name(deferrals.values())
        ]
        self._touched.clear()
        return self._piece(groups)

    def late_rows(self, changes: Sequence[FeedChange]) -> Job | None:
        """The calls for these rows that were put off to the commit, where there are any."""
        return self._piece(_row_groups(self._concerned(changes), self._job.too_deep, put_off=True))

    def end(self) -> Job:
        """Nothing more, and the progress moves."""
        return msgspec.structs.replace(self._job.head, context=self._context, opens=not self._opened, closes=True)

    def _concerned(self, changes: Sequence[FeedChange]) -> list[tuple[FeedChange, list[Deferral]]]:
        return [(change, found) for change in changes if (found := self._job.coverage.of(change, self._job.settings))]

    def _note_statements(
        self, changes: Sequence[FeedChange], concerned: Sequence[tuple[FeedChange, list[Deferral]]]
    ) -> None:
        for change in changes:
            touched = self._touched.setdefault((change.relation, change.operation), _Touched(change))
            touched.add(change, old=self._old, new=self._new)
        for change, deferrals in concerned:
            for deferral in deferrals:
                if deferral.trigger.level is TriggerLevel.STATEMENT:
                    self._called.setdefault((change.relation, change.operation), {}).setdefault(deferral.id, deferral)

    def _piece(self, groups: list[Group]) -> Job | None:
        if not groups:
            return None
        piece = msgspec.structs.replace(self._job.head, context=self._context, groups=groups, opens=not self._opened)
        self._opened = True
        return piece


LONGEST_STATEMENT = 48 * 1024 * 1024


class _Touched:
    """What a statement trigger is to know of all changes of a table by one operation."""

    def __init__(self, first: FeedChange) -> None:
        self.first = first
        self.refused: str | None = None
        self._befores: list[msgspec.Raw | None] = []
        self._afters: list[msgspec.Raw | None] = []
        self._bytes = 0
        self._rows = 0

    def add(self, change: FeedChange, *, old: bool, new: bool) -> None:
        self.refused = self.refused or _incomplete(change)
        self._rows += 1
        pair = (change.before if old else None, change.after if new else None)
        self._bytes += _bytes(pair)
        if self._bytes > LONGEST_STATEMENT:
            self._befores, self._afters = [], []
        else:
            self._befores.append(pair[0])
            self._afters.append(pair[1])

    def call(self, deferral: Deferral, too_deep: str | None) -> _StatementCall:
        trigger = deferral.trigger
        refused = too_deep or self.refused
        if self._bytes > LONGEST_STATEMENT and (trigger.old_table or trigger.new_table):
            refused = refused or (
                f"the {self._rows:,} rows of its transition table are more than one call can be given; run it by hand"
            )
        pair = (
            _array(self._befores) if trigger.old_table else None,
            _array(self._afters) if trigger.new_table else None,
        )
        return _StatementCall(self.first, pair, refused)


def _row_groups(
    concerned: Sequence[tuple[FeedChange, list[Deferral]]], too_deep: str | None, *, put_off: bool
) -> list[Group]:
    groups: list[Group] = []
    for change, deferrals in concerned:
        called = [
            deferral
            for deferral in deferrals
            if deferral.trigger.level is TriggerLevel.ROW and deferral.trigger.initially_deferred is put_off
        ]
        if not called:
            continue
        operation, ids = change.operation.value.upper(), [deferral.id for deferral in called]
        refused = too_deep or _incomplete(change)
        if not groups or (groups[-1].operation, groups[-1].deferrals, groups[-1].refused) != (operation, ids, refused):
            runs = [deferral.run for deferral in called]
            groups.append(
                Group(operation=operation, deferrals=ids, runs=runs, rows=[], ids=[], ordinals=[], refused=refused)
            )
        groups[-1].rows.append((change.before, change.after))
        groups[-1].ids.append(change.id)
        groups[-1].ordinals.append(change.ordinal)
    return groups


def _statement_groups(
    concerned: Sequence[tuple[FeedChange, list[Deferral]]], changes: Sequence[FeedChange], too_deep: str | None
) -> list[Group]:
    called: dict[tuple[str, Operation], dict[int, Deferral]] = {}
    for change, deferrals in concerned:
        for deferral in deferrals:
            if deferral.trigger.level is TriggerLevel.STATEMENT:
                called.setdefault((change.relation, change.operation), {}).setdefault(deferral.id, deferral)
    groups: list[Group] = []
    for (relation, operation), deferrals in called.items():
        touched = [change for change in changes if change.relation == relation and change.operation is operation]
        refused = too_deep or next(filter(None, map(_incomplete, touched)), None)
        for deferral in _by_name(deferrals.values()):
            trigger = deferral.trigger
            pair = (
                _array(change.before for change in touched) if trigger.old_table else None,
                _array(change.after for change in touched) if trigger.new_table else None,
            )
            groups.append(_statement_group(deferral, operation, _StatementCall(touched[0], pair, refused)))
    return groups


class _StatementCall(NamedTuple):
    first: FeedChange
    pair: tuple[msgspec.Raw | None, msgspec.Raw | None]
    refused: str | None


def _statement_group(deferral: Deferral, operation: Operation, call: _StatementCall) -> Group:
    return Group(
        operation=operation.value.upper(),
        deferrals=[deferral.id],
        runs=[deferral.run],
        rows=[call.pair],
        ids=[call.first.id],
        ordinals=[call.first.ordinal],
        refused=call.refused,
    )


def _by_name(deferrals: Iterable[Deferral]) -> list[Deferral]:
    return sorted(deferrals, key=lambda deferral: deferral.trigger.name.encode())


def _array(rows: Iterable[msgspec.Raw | None]) -> msgspec.Raw:
    return msgspec.Raw(b"[" + b",".join(bytes(row) for row in rows if row is not None) + b"]")


def _incomplete(change: FeedChange) -> str | None:
    if change.lacking:
        return (
            f"the store does not hold {', '.join(change.lacking)} of {change.relation} as it was; "
            f"ALTER TABLE {change.relation} REPLICA IDENTITY FULL, then run it by hand"
        )
    if change.operation in (Operation.UPDATE, Operation.DELETE) and change.before is None:
        return (
            f"the WAL does not hold the old row of {change.relation}; "
            f"ALTER TABLE {change.relation} REPLICA IDENTITY FULL, then run it by hand"
        )
    return None


_DEPTH = re.compile(r"[0-9]{1,6}")


def _depth(settings: Mapping[str, str]) -> int:
    text = settings.get(DEPTH, "")
    # A stamp is the application's word, and may say anything.
    return int(text) if _DEPTH.fullmatch(text) else 0


_CUSTOM = re.compile(r"[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)+", re.ASCII)


def allowed_settings(settings: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Those settings that a replay may set again: custom ones (their names have a dot), never ours, by the patterns.

    A stamp is the application's word, and role, search_path or session_replication_role must not come from there.
    """
    return {
        name: value
        for name, value in settings.items()
        if _CUSTOM.fullmatch(name)
        and not name.lower().startswith(("afterwrite.", "plpgsql."))
        and any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def allowed_role(settings: Mapping[str, str], patterns: Sequence[str]) -> str | None:
    """The role that the original transaction stamped, where the policy lets bodies take it on.

    Only rights that the replayer has anyway can be had so: SET ROLE asks that it be a member.
    """
    role = settings.get("role", "")
    if role in ("", "none") or not any(fnmatchcase(role, pattern) for pattern in patterns):
        return None
    return role


def _stops(deferrals: Iterable[Deferral]) -> bool:
    return any(deferral.on_error is OnError.STOP for deferral in deferrals)


def split_job(job: Job, most_rows: int, most_bytes: int) -> Iterator[Job]:
    """The same job in pieces, to run one after the other in one transaction.

    The first opens it, and the last closes it, where the job itself does.
    """
    pieces: list[list[Group]] = [[]]
    rows = size = 0
    for group in job.groups:
        first = 0
        for at, pair in enumerate(group.rows):
            if rows and (rows == most_rows or size + _bytes(pair) > most_bytes):
                pieces[-1] += _part(group, first, at)
                pieces.append([])
                first, rows, size = at, 0, 0
            rows, size = rows + 1, size + _bytes(pair)
        pieces[-1] += _part(group, first, len(group.rows))
    for number, groups in enumerate(pieces):
        yield msgspec.structs.replace(
            job,
            groups=groups,
            opens=job.opens and number == 0,
            closes=job.closes and number == len(pieces) - 1,
        )


def _part(group: Group, first: int, end: int) -> list[Group]:
    if first == end:
        return []
    return [
        msgspec.structs.replace(
            group, rows=group.rows[first:end], ids=group.ids[first:end], ordinals=group.ordinals[first:end]
        )
    ]
