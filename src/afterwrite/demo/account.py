"""The final account: the store and the source's tables against the workload's ledger, change by change.

``since`` counts from the mark of a window on. No client was in a transaction at the mark, so the line between what is
counted and what is not is exact: everything above the mark's line in the ledger ended before it, the rest began after.
Effects are held against the whole ledger, since the opening balance stands at its start.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from afterwrite.demo.ledger import (
    Committed,
    Copy,
    Count,
    Mark,
    Notice,
    Opening,
    Progress,
    RolledBack,
    RowChange,
    Unknown,
    decode_row,
    read_ledger,
)
from afterwrite.demo.schema import TABLES
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, statement

_EXAMPLES = 5
_RELATIONS = {f"public.{table}" for table in TABLES}
Change = tuple[str, str, str | None]  # relation, operation, key


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked, and every kind of fault by count, with up to five ``examples`` of each.

    ``changes_expected`` are the ledger's row changes and the notifications that effects wrote; ``changes_stored`` how
    many of them are in the store. ``unknown`` counts transactions whose outcome the workload could not learn; they are
    left out on both sides.
    """

    transactions: int
    rolled_back: int
    unknown: int
    changes_expected: int
    changes_stored: int
    missing: int
    duplicated: int
    unexpected: int
    wrong_actor: int
    wrong_values: int
    values_checked: int
    deferred_effects_expected: int
    deferred_effects_wrong: int
    examples: dict[str, list[str]]

    @property
    def clean(self) -> bool:
        """Whether nothing at all is wrong."""
        return not any(
            (
                self.missing,
                self.duplicated,
                self.unexpected,
                self.wrong_actor,
                self.wrong_values,
                self.deferred_effects_wrong,
            )
        )


class Faults:
    """Faults by kind, counted in full and remembered by a few examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, example: str, times: int = 1) -> None:
        self.counts[kind] += times
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(example)


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger, read: ``committed`` since the mark by xid, xids to pass over, and where notifications stood then."""

    opening: Opening
    committed: dict[int, Committed]
    earlier: set[int]
    rolled_back: set[int]
    unknown: set[int]
    last_notification: int
    everything: list[Committed]


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A change as the store has it."""

    xid: int
    relation: str
    operation: str
    entity_id: str | None
    actor_id: str | None
    caused: bool


class Image(msgspec.Struct, frozen=True, gc=False):
    xid: int
    relation: str
    operation: str
    entity_id: str | None
    after: str


class Told(msgspec.Struct, frozen=True, gc=False):
    user: str
    kind: str
    reference: str
    times: int


class Advanced(msgspec.Struct, frozen=True, gc=False):
    operation: str
    rows: int


def open_book(ledger: Path, since: str | None = None) -> Book:
    """Read a ledger from the mark ``since`` on; raises AfterwriteError when it has no opening or no such mark."""
    opening: Opening | None = None
    committed: dict[int, Committed] = {}
    rolled_back: set[int] = set()
    unknown: set[int] = set()
    earlier: set[int] = set()
    everything: list[Committed] = []
    last_notification = 0
    windows: list[str] = []
    for entry in read_ledger(ledger):
        match entry:
            case Opening():
                opening = entry
                last_notification = entry.last_notification
            case Mark():
                windows.append(entry.window)
                if entry.window == since:
                    earlier |= committed.keys() | rolled_back | unknown
                    committed, rolled_back, unknown = {}, set(), set()
                    last_notification = entry.last_notification
            case Committed():
                committed[entry.xid] = entry
                everything.append(entry)
            case RolledBack():
                rolled_back.add(entry.xid)
            case Unknown():
                unknown.add(entry.xid)
    if opening is None:
        raise AfterwriteError(f"the ledger {ledger} has no opening: no workload began it")
    if since is not None and since not in windows:
        raise AfterwriteError(
            f"the ledger {ledger} has no window {since!r}", remedy=f"it has {', '.join(windows) or 'no marks at all'}"
        )
    return Book(
        opening=opening,
        committed=committed,
        # After a crash of the server an xid that left nothing is handed out again, perhaps to one that commits.
        rolled_back=rolled_back - committed.keys(),
        unknown=unknown - committed.keys(),
        earlier=earlier - committed.keys(),
        last_notification=last_notification,
        everything=everything,
    )


async def take_account(ledger: Path, source: Database, store: Database, *, since: str | None = None) -> Account:
    """Hold the store and the source's tables against the ledger; the workload, capture and deferral must be at rest.

    ``since`` is the name of a window: transactions before its mark are not asked for (the slot may be younger).
    """
    book = open_book(ledger, since)
    faults = Faults()
    stored = [row for row in await store.rows(Stored, statement("account.read_stored")) if row.relation in _RELATIONS]
    expected = _compare(book, stored, faults)
    expected += await _compare_written_by_effects(book, source, stored, faults)
    checked = await _compare_values(book, store, faults)
    for change in await store.values(statement("account.read_misattributed")):
        faults.add("wrong_actor", f"{change}: not the actor of what caused it")
    effects = await check_effects(book, source, faults)
    counts = faults.counts
    return Account(
        transactions=len(book.committed),
        rolled_back=len(book.rolled_back),
        unknown=len(book.unknown),
        changes_expected=expected,
        changes_stored=expected - counts["missing"],
        missing=counts["missing"],
        duplicated=counts["duplicated"],
        unexpected=counts["unexpected"],
        wrong_actor=counts["wrong_actor"],
        wrong_values=counts["wrong_values"],
        values_checked=checked,
        deferred_effects_expected=effects,
        deferred_effects_wrong=counts["deferred_effects_wrong"],
        examples=dict(faults.examples),
    )


async def check_effects(book: Book, source: Database, faults: Faults) -> int:
    """Notifications, statistics, import progress and copies against opening balance and ledger; how many there are."""
    notices: Counter[tuple[str, str, str]] = Counter()
    counters = dict(book.opening.counters)
    progress = Counter(book.opening.progress)
    for notice in book.opening.notices:
        notices[notice.user, notice.kind, notice.reference] += notice.times
    for entry in book.everything:
        for effect in entry.effects:
            match effect:
                case Notice(user, kind, reference, times):
                    notices[user, kind, reference] += times
                case Count(counter, delta):
                    counters[counter] = counters.get(counter, Decimal(0)) + delta
                case Progress(operation, rows):
                    progress[operation] += rows
                case Copy():
                    pass
    told = await source.rows(Told, statement("account.read_notices"))
    _hold("notification of", notices, {(row.user, row.kind, row.reference): row.times for row in told}, faults)
    said: str = await source.value(statement("account.read_counters")) or "{}"
    _hold("counter", counters, decode_row(said), faults)
    advanced = await source.rows(Advanced, statement("account.read_progress"))
    now = {row.operation: row.rows for row in advanced}
    # A bulk operation that was called off may be gone, and then has no progress to check.
    _hold("progress of", {at: progress.get(at, 0) for at in now}, now, faults)
    for at, rows in progress.items():
        if rows and at not in now:
            faults.add("deferred_effects_wrong", f"bulk operation {at} is gone, which had {rows} rows")
    for project in await source.values(statement("account.read_stale_copies")):
        faults.add("deferred_effects_wrong", f"project_settings {project} does not have the project's name")
    return notices.total() + len(counters) + len(now)


def _hold(what: str, expected: Mapping[Any, Decimal | int], found: Mapping[Any, Decimal | int], faults: Faults) -> None:
    for key in expected.keys() | found.keys():
        should, does = expected.get(key, 0), found.get(key, 0)
        if should != does:
            name = key if isinstance(key, str) else " ".join(key)
            times = abs(int(should - does)) if what.startswith("notification") else 1
            faults.add("deferred_effects_wrong", f"{what} {name}: {does}, should be {should}", times)


def _compare(book: Book, stored: list[Stored], faults: Faults) -> int:
    """Changes of the ledger's transactions, as multisets; how many were expected."""
    found: dict[int, Counter[Change]] = defaultdict(Counter)
    for row in stored:
        entry = book.committed.get(row.xid)
        if entry is not None:
            found[row.xid][row.relation, row.operation, row.entity_id] += 1
            if entry.stamped and row.actor_id != entry.actor:
                faults.add("wrong_actor", f"{_told(row)}: {row.actor_id}, should be {entry.actor}")
        elif row.xid in book.rolled_back and not row.caused:
            faults.add("unexpected", f"{_told(row)}: that transaction rolled back")
        elif not row.caused and row.xid not in book.earlier and row.xid not in book.unknown:
            faults.add("unexpected", f"{_told(row)}: no such transaction in the ledger")
    total = 0
    for xid, entry in book.committed.items():
        expected = Counter[Change](
            (f"public.{change.table}", change.operation.value, change.key) for change in entry.changes
        )
        total += expected.total()
        _compare_transaction(entry, expected, found[xid], faults)
    return total


def _compare_transaction(
    entry: Committed,
    expected: Counter[Change],
    found: Counter[Change],
    faults: Faults,
) -> None:
    """One transaction. Where triggers still ran, their effects' own rows are in it too, and may be."""
    notifications = 0
    effects: Counter[Change] = Counter()
    for effect in entry.effects:
        match effect:
            case Notice(times=times, own=own):
                notifications += times if not own else 0
            case Progress(operation, _, statements):
                effects["public.bulk_operations", "update", operation] += statements
            case Copy(project):
                effects["public.project_settings", "update", project] += 1
            case Count():
                pass
    for change, times in (expected - found).items():
        faults.add("missing", f"{_named(entry, change)}: {expected[change] - times} of {expected[change]}", times)
    for change, times in (found - expected - effects).items():
        relation, operation, _ = change
        if (
            relation == "public.notifications"
            and operation == "insert"
            and change not in expected
            and notifications > 0
        ):
            notifications -= times
        elif change in expected or change in effects:
            faults.add("duplicated", f"{_named(entry, change)}: {found[change]} of {expected[change]}", times)
        else:
            faults.add("unexpected", f"{_named(entry, change)}: the transaction did not do that", times)


async def _compare_written_by_effects(book: Book, source: Database, stored: list[Stored], faults: Faults) -> int:
    """Notifications that triggers or deferred bodies wrote, and that are still there: each must be stored, once."""
    own = {
        change.key
        for entry in book.committed.values()
        for change in entry.changes
        if change.table == "notifications" and change.operation == "insert"
    }
    written = Counter(
        row.entity_id for row in stored if (row.relation, row.operation) == ("public.notifications", "insert")
    )
    ids = await source.values(statement("account.read_notification_ids"), above=book.last_notification)
    effects = [key for key in ids if key not in own]
    for key in effects:
        if written[key] == 0:
            faults.add("missing", f"public.notifications insert {key}, written by an effect: 0 of 1")
        elif written[key] > 1:
            faults.add("duplicated", f"public.notifications insert {key}: {written[key]} of 1", written[key] - 1)
    return len(effects)


async def _compare_values(book: Book, store: Database, faults: Faults) -> int:
    """The sampled after-values: some stored image of that row and transaction must carry them, each image once."""
    sampled = {
        xid: [change for change in entry.changes if change.values is not None] for xid, entry in book.committed.items()
    }
    xids = [xid for xid, changes in sampled.items() if changes]
    images: dict[tuple[int, Change], list[dict[str, object]]] = defaultdict(list)
    for row in await store.rows(Image, statement("account.read_images"), xids=xids):
        images[row.xid, (row.relation, row.operation, row.entity_id)].append(decode_row(row.after))
    checked = 0
    for xid in xids:
        for change, values in _with_values(sampled[xid]):
            candidates = images[xid, (f"public.{change.table}", change.operation.value, change.key)]
            if not candidates:
                continue  # missing, and counted as such
            checked += 1
            fitting = next((image for image in candidates if _carries(image, values)), None)
            if fitting is not None:
                candidates.remove(fitting)
                continue
            wrong = {name: candidates[0].get(name) for name in values if candidates[0].get(name) != values[name]}
            faults.add("wrong_values", f"xid {xid} {change.table} {change.key}: {wrong}, should be {values}")
    return checked


def _with_values(changes: list[RowChange]) -> Iterator[tuple[RowChange, dict[str, Any]]]:
    for change in changes:
        if change.values is not None:
            # Times are written in the session's zone and stored in another; the rest must be equal.
            yield change, {name: value for name, value in change.values.items() if not name.endswith("_at")}


def _carries(image: Mapping[str, object], values: Mapping[str, object]) -> bool:
    return all(name in image and image[name] == value for name, value in values.items())


def _told(row: Stored) -> str:
    return f"xid {row.xid} {row.relation} {row.operation} {row.entity_id}"


def _named(entry: Committed, change: Change) -> str:
    return f"xid {entry.xid} ({entry.kind}) {' '.join(str(part) for part in change)}"
