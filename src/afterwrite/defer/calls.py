"""Which bodies a source transaction calls, for which rows, in which order: pure, from what the store's feed says.

::

    feed ──gather──▶ SourceTransaction ──plan_job──▶ Job ──▶ afterwrite.run_deferred()

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

import msgspec

from afterwrite.activity import Lsn, Operation
from afterwrite.context import Context, encode_context
from afterwrite.scan.catalog import Trigger, TriggerLevel

DEPTH = "afterwrite.depth"


class OnError(StrEnum):
    """What a failing body does to the stream: ``park`` it as a dead letter and go on, or ``stop`` until it works."""

    PARK = "park"
    STOP = "stop"


class ReplayPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How deferred bodies run.

    ``settings`` are patterns of the original session's settings that may be set again. A deadlock, or a lock not had in
    time, is tried ``attempts`` times. Bodies that set off bodies ``deepest`` times over are parked. A round trip takes
    ``round_transactions`` or ``round_rows``, each source transaction in a transaction of its own.
    ``synchronous_commit`` may be off, since effects and progress are lost together, and run again.
    """

    settings: tuple[str, ...] = ("request.*", "app.*")
    on_error: OnError = OnError.PARK
    attempts: int = 20
    deepest: int = 16
    round_transactions: int = 64
    round_rows: int = 2_000
    lock_timeout_ms: int = 30_000
    synchronous_commit: bool = False
    poll_seconds: float = 0.05


class Deferral(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger whose body runs after commit. ``relations`` are its table's quoted names: then, and now."""

    id: int
    identity: str
    run: str
    relations: tuple[str, ...]
    trigger: Trigger


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

    The progress must stand at ``after``, and will stand at ``position`` and ``reached``. LSNs are in words.
    """

    source: str
    after: str
    position: int
    reached: str
    commit_lsn: str
    committed_at: datetime
    context: str
    settings: Mapping[str, str]
    groups: Sequence[Group]
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
        # The server fires by name, compared as bytes.
        for deferral in sorted(deferrals, key=lambda deferral: deferral.trigger.name.encode()):
            for relation in deferral.relations:
                self._by_relation.setdefault(relation, []).append(deferral)

    def of(self, change: FeedChange) -> list[Deferral]:
        """Those whose trigger would have fired for this change, as far as the WAL can tell (WHEN is the server's)."""
        return [deferral for deferral in self._by_relation.get(change.relation, ()) if _fires(deferral.trigger, change)]


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
    concerned = [(change, deferrals) for change in transaction.changes if (deferrals := coverage.of(change))]
    if not concerned:
        return None
    depth = _depth(transaction.settings)
    too_deep = (
        f"deferred bodies set off deferred bodies {depth} times over; the policy allows {policy.deepest}"
        if depth >= policy.deepest
        else None
    )
    # One stamp holds for a whole transaction: where several changes have effects, the first stands for them.
    first = concerned[0][0]
    context = msgspec.structs.replace(
        first.context, caused_by=first.id, settings={**transaction.settings, DEPTH: str(depth + 1)}
    )
    return Job(
        source=source,
        after=str(after),
        position=position,
        reached=str(reached),
        commit_lsn=str(transaction.commit_lsn),
        committed_at=transaction.committed_at,
        context=encode_context(context),
        settings=allowed_settings(transaction.settings, policy.settings),
        groups=[
            *_row_groups(concerned, too_deep, put_off=False),
            *_statement_groups(concerned, transaction.changes, too_deep),
            *_row_groups(concerned, too_deep, put_off=True),
        ],
    )


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
        for deferral in sorted(deferrals.values(), key=lambda deferral: deferral.trigger.name.encode()):
            trigger = deferral.trigger
            pair = (
                _array(change.before for change in touched) if trigger.old_table else None,
                _array(change.after for change in touched) if trigger.new_table else None,
            )
            groups.append(
                Group(
                    operation=operation.value.upper(),
                    deferrals=[deferral.id],
                    runs=[deferral.run],
                    rows=[pair],
                    ids=[touched[0].id],
                    ordinals=[touched[0].ordinal],
                    refused=refused,
                )
            )
    return groups


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


def split_job(job: Job, most_rows: int, most_bytes: int) -> Iterator[Job]:
    """The same job in pieces, to run one after the other in one transaction; the first opens it, the last closes it."""
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
        yield msgspec.structs.replace(job, groups=groups, opens=number == 0, closes=number == len(pieces) - 1)


def _part(group: Group, first: int, end: int) -> list[Group]:
    if first == end:
        return []
    return [
        msgspec.structs.replace(
            group, rows=group.rows[first:end], ids=group.ids[first:end], ordinals=group.ordinals[first:end]
        )
    ]
