"""The proof as it stands: what was compared, what differs and why, and what a phase still lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from afterwrite.postgres import Database, statement
from afterwrite.prove.legacy import MappedRow, Override
from afterwrite.prove.match import Difference, Reason, Residual
from afterwrite.prove.watch import Mode, Planned, WatchedRow, WindowRow
from afterwrite.record import Lsn, Operation

MEANING: Mapping[Reason, str] = {
    Reason.MISSING: "a row of the log for which no change was captured",
    Reason.EXTRA: "a captured change whose row the log lacks",
    Reason.VALUE: "change and row are there, and do not agree",
    Reason.REPLICA_ROLE: "written with session_replication_role = replica: triggers do not fire",
    Reason.NO_OP_UPDATE: "an UPDATE that changed nothing, and the trigger asks for a change",
    Reason.WHEN_NOT_MET: "WHEN, or a condition of the body, was false",
    Reason.UPDATE_OF: "no row, and whether a column of UPDATE OF was SET is not in the WAL",
    Reason.GENERATED_COLUMN: "agrees but for generated columns, which the WAL has not",
    Reason.PARTITION_LEAF: "agrees but for the name: the log has the partition's",
    Reason.SESSION_ONLY: "agrees but for the actor: no context was stamped",
    Reason.UNLOGGED: "one side is an UNLOGGED table, which the WAL has not",
    Reason.CONDITION_NOT_KNOWN: "no row, and the WAL cannot tell whether there must be one",
    Reason.EMPTY_STATEMENT: "a statement trigger's row for a statement that touched nothing",
    Reason.LEGACY_FOREIGN: "rows that the application, or a trigger that stays, wrote to the log",
    Reason.DEFERRED: "rows of deferred bodies, and of fillings, written after commit",
    Reason.TOO_LARGE: "transactions too large, or nested too deeply, to be compared",
    Reason.SILENCED_YET_WRITTEN: "a silenced trigger wrote: it is still on somewhere",
}


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """How the transplanted body of a deferred trigger did on real transactions, run and undone.

    ``agreed``: it wrote what the trigger had written (nothing, where that wrote nothing). ``unexplained`` are
    differences, by kind; ``unjudged`` those that could not be compared, by reason.
    """

    agreed: int = 0
    unexplained: Mapping[str, int] = {}
    unjudged: Mapping[str, int] = {}
    example: str | None = None


class OperationProof(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a trigger on one operation.

    ``seen`` firings are ``matched``, ``explained`` by a reason, or ``unexplained`` by one (where legacy rows that no
    firing claims are counted too). ``fired`` says whether it was seen at work. ``exact``, ``partly`` and ``uncompared``
    count the columns of the legacy ``rows`` that were found.
    """

    operation: Operation
    expected: bool
    seen: int = 0
    matched: int = 0
    rows: int = 0
    exact: int = 0
    partly: int = 0
    uncompared: int = 0
    explained: Mapping[Reason, int] = {}
    unexplained: Mapping[Reason, int] = {}
    first_at: datetime | None = None
    first_lsn: Lsn | None = None
    last_at: datetime | None = None
    last_lsn: Lsn | None = None
    fired: bool = False
    rehearsed: Rehearsed | None = None

    @property
    def compared_share(self) -> float | None:
        """The share of columns compared, exactly or in part, of the rows that were found."""
        columns = self.exact + self.partly + self.uncompared
        return (self.exact + self.partly) / columns if columns else None


class TriggerProof(msgspec.Struct, frozen=True, kw_only=True):
    """A watched trigger. ``mapping`` is what it writes; ``notes`` what of it could not be followed.

    Where the plan changed its mapping in the middle of the window (``overrides`` is what it says), its counts are
    ``since_at``, and ``since_transactions`` of the window were before that.
    """

    trigger: str
    mode: Mode
    silenced: bool
    present: bool
    operations: tuple[OperationProof, ...]
    mapping: tuple[MappedRow, ...] = ()
    overrides: tuple[Override, ...] = ()
    notes: tuple[str, ...] = ()
    since_at: datetime | None = None
    since_transactions: int = 0

    @property
    def unseen(self) -> tuple[Operation, ...]:
        """Operations on which it must have been seen firing, and was not."""
        return tuple(each.operation for each in self.operations if each.expected and not each.fired)

    @property
    def unexplained(self) -> int:
        """Differences that nothing explains."""
        return sum(count for each in self.operations for count in each.unexplained.values()) + sum(
            count for each in self.operations if each.rehearsed for count in each.rehearsed.unexplained.values()
        )

    @property
    def unrehearsed(self) -> tuple[Operation, ...]:
        """Operations of a deferred trigger on which its body was seen firing, and never rehearsed to an agreement."""
        if self.mode is not Mode.DEFER:
            return ()
        return tuple(
            each.operation
            for each in self.operations
            if each.expected and each.fired and (each.rehearsed is None or each.rehearsed.agreed == 0)
        )

    @property
    def alarms(self) -> int:
        """Rows that a silenced trigger wrote nevertheless."""
        return sum(count for each in self.operations for reason, count in each.explained.items() if reason.alarming)


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The window as it stands. ``transactions`` are those in which there was something to compare, of ``observed``.

    ``strangers`` are legacy rows that no watched trigger can have written, by legacy table.
    """

    started_at: datetime | None
    through_at: datetime | None
    through_lsn: Lsn | None
    observed: int
    transactions: int
    triggers: tuple[TriggerProof, ...]
    strangers: tuple[TriggerProof, ...] = ()
    examples: tuple[Residual, ...] = ()

    @property
    def seconds(self) -> float:
        """How long the window is, by the commit times of its first and last transaction."""
        if self.started_at is None or self.through_at is None:
            return 0.0
        return max(0.0, (self.through_at - self.started_at).total_seconds())

    @property
    def unexplained(self) -> int:
        """Differences that nothing explains."""
        return sum(each.unexplained for each in self.triggers)

    def window_of(self, identities: Collection[str]) -> tuple[int, float]:
        """Transactions and seconds in which all of these triggers were compared by the mapping that they have now."""
        found = self.of(identities)
        transactions = self.transactions - max((each.since_transactions for each in found), default=0)
        since = max((each.since_at for each in found if each.since_at is not None), default=None)
        if since is None or self.through_at is None:
            return transactions, self.seconds
        return transactions, min(self.seconds, max(0.0, (self.through_at - since).total_seconds()))

    def of(self, identities: Collection[str]) -> tuple[TriggerProof, ...]:
        """The proofs of these triggers."""
        return tuple(each for each in self.triggers if each.trigger in identities)


class Minimums(msgspec.Struct, frozen=True, kw_only=True):
    """What a phase's proof asks for."""

    transactions: int = 0
    seconds: float = 0.0


class Lack(msgspec.Struct, frozen=True):
    """What a trigger's proof lacks on an operation: how often, where it is counted, and why, where that is known."""

    trigger: str
    operation: Operation
    count: int = 0
    why: str = ""

    def __str__(self) -> str:
        return f"{self.trigger} on {self.operation.value}{_in_brackets([self.why] if self.why else [])}"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How the proof of some triggers stands: ``transactions`` and ``seconds`` compared, and what is lacking.

    ``residuals`` are differences that nothing explains, in the window or in a rehearsal (``why`` says which);
    ``unwatched`` sentences on those that nobody compares; ``unseen`` operations on which a trigger was not seen firing,
    ``unrehearsed`` those on which a deferred body was not rehearsed; ``not_silent`` rows that a silenced trigger wrote.
    """

    transactions: int = 0
    seconds: float = 0.0
    residuals: tuple[Lack, ...] = ()
    unwatched: tuple[str, ...] = ()
    unseen: tuple[Lack, ...] = ()
    unrehearsed: tuple[Lack, ...] = ()
    not_silent: tuple[Lack, ...] = ()

    @property
    def unexplained(self) -> int:
        """Differences that nothing explains."""
        return sum(lack.count for lack in self.residuals)

    def lacks(self, minimums: Minimums) -> list[str]:
        """What is still lacking, each in words; nothing when these triggers are proven."""
        said: list[str] = []
        if self.transactions < minimums.transactions:
            said.append(f"{self.transactions:,} of {minimums.transactions:,} transactions were compared")
        if self.seconds < minimums.seconds:
            said.append(f"shadow has run for {self.seconds:,.0f} s of {minimums.seconds:,.0f} s")
        said += self.unwatched
        said += [
            f"{each.trigger} has {each.count:,} unexplained on {each.operation}: {each.why}" for each in self.residuals
        ]
        said += [
            f"{each.trigger} is silenced, and wrote {each.count:,} rows on {each.operation} nevertheless"
            for each in self.not_silent
        ]
        said += [
            f"{each.trigger} has not been seen firing on {each.operation}{_in_brackets([each.why] if each.why else [])}"
            for each in self.unseen
        ]
        said += [f"the body of {each.trigger} was not rehearsed on {each.operation}" for each in self.unrehearsed]
        return said


def standing(
    identities: Iterable[str],
    proof: Proof,
    *,
    rare: Collection[tuple[str, Operation]] = (),
    silent_since: Mapping[str, datetime] | None = None,
    planned: Iterable[Planned] | None = None,
) -> Standing:
    """How the proof of these triggers stands.

    ``rare`` are (trigger, operation) that need not have been seen. ``silent_since`` says when those were silenced that
    are off: what they wrote before is no alarm (the counts of a window outlive the reason for them; its newest examples
    say when). None where it is not known: then every row counts. ``planned`` is what the plan says of the proof (None:
    whatever was taken over counts).
    """
    said = None if planned is None else {each.trigger: each.overrides for each in planned}
    wanted = list(identities)
    known = {each.trigger: each for each in proof.of(wanted)}
    transactions, seconds = proof.window_of(wanted)
    unwatched: list[str] = []
    compared: list[TriggerProof] = []
    for identity in wanted:
        found = known.get(identity)
        if found is None or not found.present:
            unwatched.append(f"{identity} is not watched: restart `afterwrite capture`, which scans the triggers again")
        elif found.mode is Mode.RETIRE and not found.mapping:
            unwatched.append(f"{identity} cannot be compared: {'; '.join(found.notes)}")
        elif said is not None and set(said.get(identity, ())) != set(found.overrides):
            unwatched.append(
                f"{identity} is compared by another mapping than the plan's: run `afterwrite prove --plan` with it"
            )
        else:
            compared.append(found)
    return Standing(
        transactions=transactions,
        seconds=seconds,
        residuals=tuple(lack for found in known.values() for lack in _residuals(found)),
        unwatched=tuple(unwatched),
        unseen=tuple(
            Lack(found.trigger, operation, why="; ".join(_why_unseen(found, operation)))
            for found in compared
            for operation in found.unseen
            if (found.trigger, operation) not in rare
        ),
        unrehearsed=tuple(
            Lack(found.trigger, operation)
            for found in compared
            for operation in found.unrehearsed
            if (found.trigger, operation) not in rare
        ),
        not_silent=tuple(lack for found in known.values() for lack in _alarms(found, proof, silent_since)),
    )


def _residuals(found: TriggerProof) -> list[Lack]:
    lacks: list[Lack] = []
    for each in found.operations:
        lacks += [Lack(found.trigger, each.operation, n, reason.value) for reason, n in each.unexplained.items()]
        if each.rehearsed:
            lacks += [
                Lack(found.trigger, each.operation, n, f"{kind} in a rehearsal")
                for kind, n in each.rehearsed.unexplained.items()
            ]
    return lacks


def _alarms(found: TriggerProof, proof: Proof, silent_since: Mapping[str, datetime] | None) -> list[Lack]:
    counts = {
        each.operation: sum(count for reason, count in each.explained.items() if reason.alarming)
        for each in found.operations
    }
    if silent_since is None:
        return [Lack(found.trigger, operation, count) for operation, count in counts.items() if count]
    since = silent_since.get(found.trigger)
    late = {
        residual.operation
        for residual in proof.examples
        if residual.trigger == found.trigger
        and residual.reason.alarming
        and since is not None
        and residual.committed_at > since
    }
    return [Lack(found.trigger, operation, counts.get(operation, 0)) for operation in sorted(late)]


def _why_unseen(found: TriggerProof, operation: Operation) -> list[str]:
    seen = next((each.seen for each in found.operations if each.operation is operation), 0)
    large = next(
        (each.explained.get(Reason.TOO_LARGE, 0) for each in found.operations if each.operation is operation), 0
    )
    why = [f"{large:,} changes were in transactions too large to compare"] if large else []
    if seen > large:
        why.append(f"{seen - large:,} changes were seen, none to which it applies")
    return [*why, *found.notes]


def _in_brackets(words: list[str]) -> str:
    return f" ({'; '.join(words)})" if words else ""


class _Tallied(msgspec.Struct, frozen=True, kw_only=True):
    trigger: str
    operation: str
    seen: int
    matched: int
    rows: int
    exact: int
    partly: int
    uncompared: int
    first_at: datetime
    first_lsn: str
    last_at: datetime
    last_lsn: str
    reasons: str


class _RehearsalRow(msgspec.Struct, frozen=True):
    trigger: str
    operation: str
    outcome: str
    count: int
    example: str | None


class _Example(msgspec.Struct, frozen=True, kw_only=True):
    trigger: str
    operation: str
    reason: str
    xid: int
    commit_lsn: str
    committed_at: datetime
    key: str | None
    before: str | None
    after: str | None
    legacy: str | None
    expected: str | None
    differences: str


async def read_proof(database: Database) -> Proof:
    """The proof as the prover has saved it. Raises DatabaseError where afterwrite is not installed."""
    async with database.transaction():
        window = await database.one(WindowRow, statement("prove.read_window"))
        watched = await database.rows(WatchedRow, statement("prove.read_triggers"))
        tallied = await database.rows(_Tallied, statement("prove.read_tallies"))
        rehearsed = _by_operation(await database.rows(_RehearsalRow, statement("prove.read_rehearsals")))
        examples = await database.rows(_Example, statement("prove.read_residuals"))
    by_trigger: dict[str, list[_Tallied]] = {}
    for row in tallied:
        by_trigger.setdefault(row.trigger, []).append(row)
    triggers = tuple(_trigger_proof(each, by_trigger.pop(each.trigger, []), rehearsed) for each in watched)
    strangers = tuple(
        TriggerProof(
            trigger=name,
            mode=Mode.RETIRE,
            silenced=False,
            present=True,
            operations=tuple(_operation_proof(row, expected=False, mode=Mode.RETIRE, rehearsed=None) for row in rows),
        )
        for name, rows in by_trigger.items()
    )
    return Proof(
        started_at=window.started_at,
        through_at=window.through_at,
        through_lsn=Lsn.parse(window.through_lsn) if window.through_lsn else None,
        observed=window.observed,
        transactions=window.transactions,
        triggers=triggers,
        strangers=strangers,
        examples=tuple(_residual(each) for each in examples),
    )


_DIFFERS = frozenset(("value", "missing", "extra", "error"))
_AGREES = frozenset(("matched", "idle"))


def _by_operation(rows: Sequence[_RehearsalRow]) -> dict[tuple[str, Operation], Rehearsed]:
    """What was rehearsed of each trigger and operation; the example is one of what differs, where something does."""
    found: dict[tuple[str, Operation], list[_RehearsalRow]] = {}
    for row in rows:
        found.setdefault((row.trigger, Operation(row.operation)), []).append(row)
    return {
        key: Rehearsed(
            agreed=sum(row.count for row in of_one if row.outcome in _AGREES),
            unexplained={row.outcome: row.count for row in of_one if row.outcome in _DIFFERS},
            unjudged={row.outcome: row.count for row in of_one if row.outcome not in _DIFFERS | _AGREES},
            example=next((row.example for row in of_one if row.outcome in _DIFFERS and row.example), None),
        )
        for key, of_one in found.items()
    }


def _trigger_proof(
    watched: WatchedRow, rows: list[_Tallied], rehearsed: Mapping[tuple[str, Operation], Rehearsed]
) -> TriggerProof:
    mode = Mode(watched.mode)
    expected = [Operation(each) for each in watched.operations]
    found = {Operation(row.operation): row for row in rows}
    operations = [
        _operation_proof(
            found[operation],
            expected=operation in expected,
            mode=mode,
            rehearsed=rehearsed.get((watched.trigger, operation)),
        )
        if operation in found
        else OperationProof(operation=operation, expected=True, rehearsed=rehearsed.get((watched.trigger, operation)))
        for operation in [*expected, *(each for each in found if each not in expected)]
    ]
    return TriggerProof(
        trigger=watched.trigger,
        mode=mode,
        silenced=watched.silenced,
        present=watched.present,
        operations=tuple(operations),
        mapping=watched.rows,
        overrides=watched.planned,
        notes=tuple(watched.notes),
        since_at=watched.since_at,
        since_transactions=watched.since_transactions,
    )


def _operation_proof(row: _Tallied, *, expected: bool, mode: Mode, rehearsed: Rehearsed | None) -> OperationProof:
    reasons = msgspec.json.decode(row.reasons, type=dict[Reason, int])
    fired = row.seen > 0 if mode is Mode.DEFER else row.matched > 0 or any(reason.paired for reason in reasons)
    return OperationProof(
        operation=Operation(row.operation),
        expected=expected,
        seen=row.seen,
        matched=row.matched,
        rows=row.rows,
        exact=row.exact,
        partly=row.partly,
        uncompared=row.uncompared,
        explained={reason: count for reason, count in sorted(reasons.items()) if reason.explained},
        unexplained={reason: count for reason, count in sorted(reasons.items()) if not reason.explained},
        first_at=row.first_at,
        first_lsn=Lsn.parse(row.first_lsn),
        last_at=row.last_at,
        last_lsn=Lsn.parse(row.last_lsn),
        fired=fired,
        rehearsed=rehearsed,
    )


def _residual(row: _Example) -> Residual:
    return Residual(
        trigger=row.trigger,
        operation=Operation(row.operation),
        reason=Reason(row.reason),
        xid=row.xid,
        commit_lsn=Lsn.parse(row.commit_lsn),
        committed_at=row.committed_at,
        key=row.key,
        before=row.before,
        after=row.after,
        legacy=row.legacy,
        expected=row.expected,
        differences=msgspec.json.decode(row.differences, type=tuple[Difference, ...]),
    )


def to_json(proof: Proof) -> dict[str, Any]:
    """The proof as plain values for ``--json``; LSNs in PostgreSQL's notation, times as RFC 3339."""
    return {
        "started_at": proof.started_at,
        "through_at": proof.through_at,
        "through_lsn": _shown_lsn(proof.through_lsn),
        "seconds": proof.seconds,
        "observed": proof.observed,
        "transactions": proof.transactions,
        "unexplained": proof.unexplained,
        "triggers": [_trigger_json(each) for each in proof.triggers],
        "strangers": [
            {"table": each.trigger, "reasons": dict(operation.explained)}
            for each in proof.strangers
            for operation in each.operations
        ],
        "examples": [
            {**msgspec.to_builtins(each, enc_hook=str), "commit_lsn": str(each.commit_lsn)} for each in proof.examples
        ],
    }


def _trigger_json(found: TriggerProof) -> dict[str, Any]:
    return {
        "trigger": found.trigger,
        "mode": found.mode,
        "silenced": found.silenced,
        "present": found.present,
        "unseen": list(found.unseen),
        "unrehearsed": list(found.unrehearsed),
        "notes": list(found.notes),
        "mapping": msgspec.to_builtins(found.mapping),
        "overrides": msgspec.to_builtins(found.overrides),
        "since_at": found.since_at,
        "operations": [
            {
                **msgspec.to_builtins(each, enc_hook=str),
                "first_lsn": _shown_lsn(each.first_lsn),
                "last_lsn": _shown_lsn(each.last_lsn),
                "compared_share": each.compared_share,
            }
            for each in found.operations
        ],
    }


def _shown_lsn(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)
