"""A transaction that is too big to be compared at once: split by key on disk, and compared part by part.

::

    changes ─ by their key ──────────────┐
                                         ├─▶ part, part, part … ─ each matched by itself ─▶ Account
    legacy rows ─ by the column that ────┘
                  holds such a key

Where every part comes out even, so does the whole: pairs are pairs, wherever they were found. Where one does not, the
split may have put a row into another part than its change (an update of the key does that, and so does a statement's
one row), or something is missing: which of them is not known, and so the transaction counts as too large to compare.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from threading import Event
from zlib import crc32

import msgspec

from afterwrite.capture.spill import Pile, Spill, cost
from afterwrite.capture.transaction import Change, Many, Relation, Transaction
from afterwrite.postgres import quoted
from afterwrite.prove.match import Account, Matcher, Reason, Residual, Role
from afterwrite.prove.value import decode_json
from afterwrite.record import Operation

# A pair of change and legacy row takes about 6 kB while it is matched.
ROWS_AT_ONCE = 20_000
BYTES_AT_ONCE = 16 << 20
_SAMPLES = 20
_HELD_BYTES = 4 << 20

Log = tuple[str, str]


def is_large(transaction: Transaction) -> bool:
    """Whether it takes more memory than we want to spend to match it at once."""
    return len(transaction.changes) + len(transaction.legacy) > ROWS_AT_ONCE or transaction.size > BYTES_AT_ONCE


def match_large(
    matcher: Matcher,
    transaction: Transaction,
    account: Account,
    *,
    silenced: Mapping[str, str | None],
    steady: Collection[tuple[str, Operation]],
    folder: Path | None = None,
    abandoned: Event | None = None,
) -> None:
    """Add what a large transaction comes to, or, where its parts do not come out even, that it was too large.

    It takes about a second for every 10,000 changes; once ``abandoned`` is set it soon returns with nothing added.
    """
    found, abandoned = Account(), abandoned or Event()
    with contextlib.closing(Spill(folder)) as spill:
        try:
            parts = _split(matcher, transaction, silenced, spill, abandoned)
            for part in parts or ():
                if found.total() or abandoned.is_set():
                    break
                matcher.match(part, found, silenced=silenced, steady=steady)
        except RecursionError:
            parts = None
    if abandoned.is_set():
        return
    if parts is None or found.total():
        _pass_over(matcher, transaction, account, silenced)
        return
    found.transactions = min(found.transactions, 1)
    account.take(found)


def match_deep(
    matcher: Matcher,
    transaction: Transaction,
    account: Account,
    *,
    silenced: Mapping[str, str | None],
    steady: Collection[tuple[str, Operation]],
) -> None:
    """Add what a transaction comes to, or, where its JSON is nested too deeply to be compared, that it was not."""
    found = Account()
    try:
        matcher.match(transaction, found, silenced=silenced, steady=steady)
    except RecursionError:
        _pass_over(matcher, transaction, account, silenced)
        return
    account.take(found)


def _split(
    matcher: Matcher, transaction: Transaction, silenced: Mapping[str, str | None], spill: Spill, abandoned: Event
) -> list[Transaction] | None:
    """The parts, or None when rows of some legacy log cannot be told by the key of their change."""
    rows = len(transaction.changes) + len(transaction.legacy)
    count = max(rows // (ROWS_AT_ONCE // 2), transaction.size // (BYTES_AT_ONCE // 2)) + 1
    changes = _Parts(count, spill)
    columns: dict[Log, set[str]] = {}
    samples: dict[tuple[int, Operation], int] = {}
    for change in transaction.changes:
        if abandoned.is_set():
            return None
        changes.add(change, change.key or "")
        kind = change.relation.oid, change.operation
        if (seen := samples.get(kind, 0)) < _SAMPLES:
            samples[kind] = seen + 1
            for log, names in matcher.key_columns(transaction, change, silenced):
                columns[log] = columns.get(log, names) & names
    if not all(columns.values()):
        return None
    chosen = {log: min(names) for log, names in columns.items()}
    legacy = _Parts(count, spill)
    for change in transaction.legacy:
        if abandoned.is_set():
            return None
        column = chosen.get((change.relation.schema, change.relation.table))
        # Rows that nobody is expected to have written go anywhere.
        key = change.ordinal if column is None else decode_json(change.after or b"{}").get(column)
        legacy.add(change, str(key))
    return [
        msgspec.structs.replace(transaction, changes=ours, legacy=theirs)
        for ours, theirs in zip(changes.parts, legacy.parts, strict=True)
    ]


def _pass_over(
    matcher: Matcher, transaction: Transaction, account: Account, silenced: Mapping[str, str | None]
) -> None:
    """Count the changes of triggers that are compared as not compared, and say which transaction it was."""
    counts: dict[tuple[int, Operation], int] = {}
    relations: dict[int, Relation] = {}
    for change in transaction.changes:
        kind = change.relation.oid, change.operation
        counts[kind] = counts.get(kind, 0) + 1
        relations[change.relation.oid] = change.relation
    for (oid, operation), count in counts.items():
        for rule, role in matcher.rules(relations[oid]):
            if role is not Role.COMPARED or operation not in rule.operations or rule.identity in silenced:
                continue
            tally = account.tally(rule.identity, operation, transaction)
            tally.seen += count
            tally.count(Reason.TOO_LARGE, count)
            account.add(
                Residual(
                    trigger=rule.identity,
                    operation=operation,
                    reason=Reason.TOO_LARGE,
                    xid=transaction.xid,
                    commit_lsn=transaction.commit_lsn,
                    committed_at=transaction.committed_at,
                    expected=f"{count:,} changes of {quoted(relations[oid].schema, relations[oid].table)}",
                )
            )


class _Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A change without what its pile knows of it."""

    operation: Operation
    key: str | None
    before: bytes | None
    after: bytes | None
    unchanged: tuple[str, ...]
    changed: tuple[str, ...] | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class _Part:
    """Changes of one part, read from where they were put."""

    def __init__(self) -> None:
        self.pile: Pile[Relation] = Pile()

    def __len__(self) -> int:
        return len(self.pile)

    def __iter__(self) -> Iterator[Change]:
        for ordinal, relation, payload in self.pile:
            kept = _decode(payload)
            yield Change(
                relation=relation,
                operation=kept.operation,
                ordinal=ordinal,
                key=kept.key,
                before=kept.before,
                after=kept.after,
                unchanged=kept.unchanged,
                changed=kept.changed,
            )


class _Parts:
    """Takes changes, and puts those of equal keys into the same part."""

    def __init__(self, count: int, spill: Spill) -> None:
        self._parts = [_Part() for _ in range(count)]
        self._spill = spill
        self._held = 0

    @property
    def parts(self) -> list[Many[Change]]:
        return [*self._parts]

    def add(self, change: Change, key: str) -> None:
        payload = _encode(
            _Kept(change.operation, change.key, change.before, change.after, change.unchanged, change.changed)
        )
        part = self._parts[crc32(key.encode(errors="surrogatepass")) % len(self._parts)]
        part.pile.held.append((change.ordinal, change.relation, payload))
        self._held += cost(payload)
        if self._held > _HELD_BYTES:
            for each in self._parts:
                each.pile.move(self._spill)
            self._held = 0
