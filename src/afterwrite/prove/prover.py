"""The prover: it watches the stream beside capture, and keeps the proof where every restart finds it.

::

    observe(transactions) ─▶ Matcher (pure) ─▶ Account, in memory
    settle() ──────────────▶ one transaction: tallies, examples, marks, watermark

It counts each transaction exactly once: the watermark moves with the counts, capture acknowledges nothing beyond it,
and what was counted and not yet settled when something breaks is shown again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import msgspec

from afterwrite.capture.transaction import Transaction
from afterwrite.errors import AfterwriteError, ConnectionLost
from afterwrite.failpoints import failpoint
from afterwrite.postgres import Database, connect, statement
from afterwrite.prove.legacy import LegacyMapping
from afterwrite.prove.match import EXAMPLES, Account, Matcher, Reason
from afterwrite.prove.parts import is_large, match_deep, match_large
from afterwrite.prove.plan import read_planned
from afterwrite.prove.watch import Mode, Planned, Watch, WatchedRow, WindowRow, expected_operations, watch
from afterwrite.record import Emitted, Lsn, Operation
from afterwrite.scan.catalog import Enabled, Inventory, read_inventory
from afterwrite.scan.classify import Judgement
from afterwrite.scan.facts import Body

log = logging.getLogger(__name__)

SILENCE, RESTORE = "trigger.silence", "trigger.restore"
_FILLED = b'"window.filled"'
_SEEN_TRIES, _SEEN_PAUSE = 50, 0.02
_CHANGES_AT_A_STRETCH = 2_000


class _Working(msgspec.Struct, frozen=True):
    trigger: str
    operation: str


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    identity: str
    version: str
    origin: bool
    lsn: str


class _Watched(msgspec.Struct, kw_only=True):
    """What is expected of one trigger, and since when its definition is known to be what it is."""

    mapping: LegacyMapping
    mode: Mode
    silenced: bool
    silenced_mode: str | None = None
    silenced_lsn: Lsn | None = None
    version: str | None = None
    version_lsn: Lsn | None = None
    origin: bool = False
    changed: bool = True

    def obey(self, mark: _Mark) -> None:
        """Expect what the mark says from here on."""
        self.silenced = mark.silenced
        self.silenced_mode = mark.mode if mark.silenced else None
        self.silenced_lsn = mark.lsn if mark.silenced else None
        self.changed = True


class _Mark(msgspec.Struct, frozen=True):
    """A trigger was silenced or restored in the transaction with this commit LSN."""

    trigger: str
    silenced: bool
    mode: str
    lsn: Lsn
    xid: int


class _Filling(msgspec.Struct, frozen=True):
    """The triggers whose rows a transaction wrote afterwards, and whether it can be seen by now."""

    visible: bool
    identities: list[str]


class _State(msgspec.Struct, kw_only=True):
    """What the database said when the connection was opened, kept up to date since."""

    number: int
    started_lsn: Lsn
    through_lsn: Lsn | None
    watched: dict[str, _Watched]
    working: set[tuple[str, Operation]]


class _Counted(msgspec.Struct, kw_only=True):
    """What was observed and not settled yet."""

    account: Account
    observed: int = 0
    first_at: datetime | None = None
    last_lsn: Lsn | None = None
    last_at: datetime | None = None


class Prover:
    """An observer of capture. Use it as an async context manager, so that its connection is closed at the end.

    ``judgements`` and ``bodies`` are a scan's; ``learn`` takes those of a newer one. Large transactions are split in
    ``folder`` (None: the system's for temporary files). A lost connection is raised as ConnectionLost; what was not
    settled by then is forgotten, and whoever shows transactions begins again after ``begin()``.
    """

    def __init__(
        self,
        dsn: str | None,
        judgements: Iterable[Judgement],
        bodies: Mapping[int, Body],
        *,
        folder: Path | None = None,
    ) -> None:
        self._dsn = dsn
        self._folder = folder
        self._judgements = tuple(judgements)
        self._bodies = bodies
        self._inventory: Inventory | None = None
        self._planned: list[Planned] = []
        self._watch: Watch | None = None
        self._matcher: Matcher | None = None
        self._database: Database | None = None
        self._state: _State | None = None
        self._stack = AsyncExitStack()
        self._counted = _Counted(account=Account())
        # The connection and what is counted have one user at a time: a batch, or the settling of those before it.
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, and forget what is not settled."""
        self._database = self._state = None
        self._counted = _Counted(account=Account())
        await self._stack.aclose()

    async def learn(self, judgements: Iterable[Judgement], bodies: Mapping[int, Body]) -> None:
        """Go on with a newer scan: triggers that were added, or made again by a rollback. Settles first."""
        await self.settle()
        self._judgements = tuple(judgements)
        self._bodies = bodies
        self._inventory = self._watch = self._matcher = None
        await self.close()

    async def begin(self, at: Lsn) -> Lsn:
        """Forget what is not settled, and say from where to show transactions: ``at`` where none was ever counted."""
        async with self._turn:
            await self.close()
            database, _, state = await self._ready()
            if await _forget_other_history(database):
                await self.close()
                database, _, state = await self._ready()
            if state.through_lsn is None:
                # Written down at once: after a crash the store would be further than what was counted. A commit record
                # may begin where the one before it ends, so that the place itself is not behind us.
                await self._save(database, state, _Counted(account=Account(), last_lsn=Lsn(max(0, at - 1))))
                return at
            return state.through_lsn

    async def observe(self, transactions: Sequence[Transaction]) -> None:
        """Compare these transactions and count them, for good once ``settle`` returns; those counted are skipped."""
        async with self._turn:
            try:
                await self._observe(transactions)
            except AfterwriteError:
                await self.close()
                raise

    async def settle(self) -> None:
        """Make durable what was observed.

        Raises ConnectionLost when the outcome is not known, when another prover moved the same watermark, or when the
        window was begun anew meanwhile: then everything after the watermark must be shown again.
        """
        async with self._turn:
            if self._counted.last_lsn is None or self._database is None or self._state is None:
                return
            try:
                await self._save(self._database, self._state, self._counted)
            except AfterwriteError:
                # Whether the last commit was done is not known: the next call reads it from the database.
                await self.close()
                raise
            self._counted = _Counted(account=Account())

    async def _observe(self, transactions: Sequence[Transaction]) -> None:
        database, matcher, state = await self._ready()
        counted = self._counted
        seen = counted.last_lsn if counted.last_lsn is not None else state.through_lsn
        # Empty ones, our own among them, would make us write, and so make another.
        said = [each for each in transactions if each.rows]
        fresh = [each for each in said if seen is None or each.commit_lsn > seen]
        if not fresh:
            return
        said_marks = [mark for each in fresh for mark in await _find_marks(each) if mark.trigger in state.watched]
        marks = await _told(database, said_marks)
        filled = await _find_fillings(database, fresh)
        match = partial(self._match, matcher, state, fresh, marks, filled)
        account = await _match_or_pass_over(match)
        if account.total(Reason.REPLICA_ROLE) and await self._reread_versions(database, state):
            # Somebody altered a trigger: whether it was on when these were written is not known after all.
            account = await _match_or_pass_over(match)
        for mark in marks:
            state.watched[mark.trigger].obey(mark)
        if marks:  # they come with ALTER TABLE: what is there now is what counts from here on
            await self._reread_versions(database, state)
        within = [each for each in fresh if each.commit_lsn >= state.started_lsn]
        counted.account.take(account)
        counted.observed += len(within)
        counted.first_at = counted.first_at or (within[0].committed_at if within else None)
        counted.last_lsn, counted.last_at = fresh[-1].commit_lsn, fresh[-1].committed_at
        state.working.update(key for key, tally in account.tallies.items() if tally.rows)

    # --- the state ----------------------------------------------------------------------------------------------------

    async def _ready(self) -> tuple[Database, Matcher, _State]:
        if self._database is None or self._state is None or self._matcher is None:
            self._database = await self._stack.enter_async_context(
                connect(self._dsn, application_name="afterwrite prover", guarded=True)
            )
            if self._inventory is None:
                self._inventory = await read_inventory(self._database)
            planned = await read_planned(self._database)
            if self._watch is None or self._matcher is None or planned != self._planned:
                self._planned = planned
                self._watch = watch(self._inventory, self._judgements, self._bodies, planned)
                self._matcher = Matcher(
                    self._watch.compared,
                    covered=self._watch.covered,
                    others=self._watch.others,
                    tables=self._watch.tables,
                )
            self._state = await self._load(self._database, self._watch)
        return self._database, self._matcher, self._state

    async def _load(self, database: Database, found: Watch) -> _State:
        """What was saved, joined with what the scan found; a trigger that is new to us is on if it was found on."""
        window = await database.one(WindowRow, statement("prove.read_window"))
        saved = {each.trigger: each for each in await database.rows(WatchedRow, statement("prove.read_triggers"))}
        working = await database.rows(_Working, statement("prove.read_working"))
        watched: dict[str, _Watched] = {}
        for mapping, mode in found.watched:
            known = saved.get(mapping.identity)
            watched[mapping.identity] = _Watched(
                mapping=mapping,
                mode=mode,
                silenced=known.silenced if known else mapping.trigger.enabled in (Enabled.DISABLED, Enabled.REPLICA),
                silenced_mode=known.silenced_mode if known else None,
                version=known.version if known else None,
                version_lsn=_lsn(known.version_lsn) if known else None,
            )
        state = _State(
            number=window.number,
            started_lsn=Lsn.parse(window.started_lsn),
            through_lsn=_lsn(window.through_lsn),
            watched=watched,
            working={(each.trigger, Operation(each.operation)) for each in working},
        )
        await self._reread_versions(database, state)
        gone = [each for each in saved.values() if each.trigger not in watched and each.present]
        async with database.transaction():
            await self._save_triggers(database, state)
            if gone:
                rows = [
                    {**msgspec.structs.asdict(each), "mapping": each.rows, "overrides": each.planned, "present": False}
                    for each in gone
                ]
                await database.run(statement("prove.save_triggers"), triggers=_json(rows))
        return state

    async def _reread_versions(self, database: Database, state: _State) -> bool:
        """Compare triggers and functions with what they were, and take note of those that were altered."""
        triggers = [each.mapping.trigger for each in state.watched.values()]
        found = await database.rows(
            _Version,
            statement("prove.read_versions"),
            identities=[each.identity for each in triggers],
            schemas=[each.schema for each in triggers],
            tables=[each.table for each in triggers],
            names=[each.name for each in triggers],
        )
        versions = {each.identity: each for each in found}
        altered = False
        for identity, watched in state.watched.items():
            now = versions.get(identity)
            watched.origin = now is not None and now.origin
            version = now.version if now else None
            if version != watched.version:
                watched.version, watched.version_lsn = version, Lsn.parse(now.lsn) if now else None
                watched.changed = altered = True
        return altered

    # --- matching -----------------------------------------------------------------------------------------------------

    async def _match(
        self,
        matcher: Matcher,
        state: _State,
        transactions: Sequence[Transaction],
        marks: Sequence[_Mark],
        filled: Mapping[Lsn, tuple[str, ...]],
        *,
        deep: bool = False,
    ) -> Account:
        """What the transactions come to. A mark (of those that the ledger tells of) holds from the next one on.

        A transaction that ``filled`` the log of triggers afterwards writes their rows as deferred bodies do.
        """
        account = Account()
        match = partial(match_deep, matcher) if deep else matcher.match
        silenced = {name: each.silenced_mode for name, each in state.watched.items() if each.silenced}
        while_filling: dict[tuple[str, ...], Mapping[str, str | None]] = {}
        steady = _steady(state, transactions[0].commit_lsn)
        changes = 0
        for transaction in transactions:
            size = len(transaction.changes) + len(transaction.legacy)
            if transaction.commit_lsn >= state.started_lsn:
                names = filled.get(transaction.commit_lsn, ())
                if names and names not in while_filling:
                    while_filling[names] = {**silenced, **dict.fromkeys(names, Mode.DEFER.value)}
                known: dict[str, Any] = {"silenced": while_filling[names] if names else silenced, "steady": steady}
                # So long that the stream must answer its keepalives meanwhile.
                if is_large(transaction):
                    await self._match_large(matcher, transaction, account, known)
                elif size > _CHANGES_AT_A_STRETCH:
                    await asyncio.to_thread(partial(match, transaction, account, **known))
                else:
                    match(transaction, account, **known)
            for mark in marks:
                if mark.lsn == transaction.commit_lsn:
                    silenced = {name: mode for name, mode in silenced.items() if name != mark.trigger}
                    if mark.silenced:
                        silenced[mark.trigger] = mark.mode
                    while_filling.clear()
            changes += size
            if changes > _CHANGES_AT_A_STRETCH:
                changes = 0
                await asyncio.sleep(0)
        return account

    async def _match_large(
        self, matcher: Matcher, transaction: Transaction, account: Account, known: Mapping[str, Any]
    ) -> None:
        abandoned = Event()
        try:
            await asyncio.to_thread(
                partial(match_large, matcher, transaction, account, folder=self._folder, abandoned=abandoned, **known)
            )
        except asyncio.CancelledError:
            abandoned.set()  # a thread cannot be cancelled, and the process would wait for it
            raise

    # --- saving -------------------------------------------------------------------------------------------------------

    async def _save(self, database: Database, state: _State, counted: _Counted) -> None:
        failpoint("prove.before_save")
        async with database.transaction():
            moved = await database.run(
                statement("prove.advance_window"),
                number=state.number,
                through=str(state.through_lsn) if state.through_lsn is not None else None,
                lsn=str(counted.last_lsn),
                at=counted.last_at,
                first_at=counted.first_at,
                observed=counted.observed,
                transactions=counted.account.transactions,
            )
            if not moved:
                await self._explain_conflict(database, state)
            await self._save_account(database, counted.account)
            await self._save_triggers(database, state)
            failpoint("prove.before_commit")
        failpoint("prove.after_commit")
        state.through_lsn = counted.last_lsn

    async def _explain_conflict(self, database: Database, state: _State) -> None:
        window = await database.one(WindowRow, statement("prove.read_window"))
        if window.number != state.number:
            raise ConnectionLost(
                f"the window of the proof in {database.where} was begun anew, or its plan changed, while some"
                " transactions were not settled",
                remedy="nothing: they are shown again",
            )
        # The last commit of a worker that died may land after its successor has read the watermark.
        raise ConnectionLost(
            f"another prover moved the proof in {database.where} to {window.through_lsn}, from {state.through_lsn}",
            remedy="nothing when that was a worker before this one; else stop the other `afterwrite capture`",
        )

    async def _save_account(self, database: Database, account: Account) -> None:
        if not account.tallies:
            return
        tallies: list[dict[str, Any]] = []
        reasons: list[dict[str, Any]] = []
        for (trigger, operation), tally in account.tallies.items():
            row = {**msgspec.structs.asdict(tally), "trigger": trigger, "operation": operation}
            del row["reasons"]
            tallies.append(row)
            reasons += [
                {"trigger": trigger, "operation": operation, "reason": reason, "count": count}
                for reason, count in tally.reasons.items()
            ]
        await database.run(statement("prove.add_proof"), tallies=_json(tallies))
        if reasons:
            await database.run(statement("prove.add_reasons"), reasons=_json(reasons))
        examples = [residual for newest in account.examples.values() for residual in newest]
        if examples:
            await database.run(statement("prove.add_residuals"), residuals=_json(examples))
            await database.run(statement("prove.prune_residuals"), keep=EXAMPLES)

    async def _save_triggers(self, database: Database, state: _State) -> None:
        changed = [each for each in state.watched.values() if each.changed]
        if not changed:
            return
        rows = [
            {
                "trigger": each.mapping.identity,
                "mode": each.mode,
                "operations": expected_operations(each.mapping, each.mode),
                "mapping": each.mapping.rows(),
                "overrides": each.mapping.overrides,
                "notes": each.mapping.notes,
                "present": True,
                "silenced": each.silenced,
                "silenced_mode": each.silenced_mode,
                "silenced_lsn": each.silenced_lsn,
                "version": each.version,
                "version_lsn": each.version_lsn,
            }
            for each in changed
        ]
        await database.run(statement("prove.save_triggers"), triggers=_json(rows))
        for each in changed:
            each.changed = False


async def begin_window(database: Database) -> None:
    """Forget what was counted, and count anew from transactions that commit from now on.

    May be called while a prover runs: it notices, and begins with it.
    """
    async with database.transaction():
        await database.run(statement("prove.begin_window"))
        await _forget_counts(database)


async def _forget_counts(database: Database) -> None:
    await database.run(statement("prove.forget_proof"))
    await database.run(statement("prove.forget_residuals"))
    await database.run(statement("prove.forget_rehearsals"))
    await database.run(statement("prove.forget_since"))


async def _forget_other_history(database: Database) -> bool:
    """Begin anew where the watermark is beyond the end of the WAL: what is written until then would not be counted."""
    async with database.transaction():
        if not await database.run(statement("prove.forget_other_history")):
            return False
        await _forget_counts(database)
    log.warning("the proof in %s spoke of another history of this cluster: it begins anew", database.where)
    return True


async def _match_or_pass_over(match: Callable[..., Awaitable[Account]]) -> Account:
    try:
        return await match()
    except RecursionError:
        # One of them holds JSON that is nested beyond comparing. It must not keep the others from being stored.
        return await match(deep=True)


def _steady(state: _State, first: Lsn) -> frozenset[tuple[str, Operation]]:
    """Triggers known to have been on, unaltered, ever since before ``first``, and to have been seen at work.

    DISABLE TRIGGER waits for the table's writers and they for it: what committed after a version was read and was not
    altered since wrote under that version.
    """
    known = {
        identity
        for identity, each in state.watched.items()
        if each.origin and not each.silenced and each.version_lsn is not None and each.version_lsn < first
    }
    return frozenset(key for key in state.working if key[0] in known)


async def _told(database: Database, marks: Sequence[_Mark]) -> list[_Mark]:
    """Those marks whose deed the ledger tells of: every role may emit a message that looks like one."""
    told: list[_Mark] = []
    for mark in marks:
        word = "open"
        for _ in range(_SEEN_TRIES):
            action = SILENCE if mark.silenced else RESTORE
            word = await database.value(
                statement("prove.judge_mark"), identity=mark.trigger, action=action, xid=mark.xid
            )
            if word != "open":
                break
            # In the WAL, and not to be seen by others yet. It may be us whom its commit waits for (as a synchronous
            # standby), so this has an end; what is no deed is seen at once.
            await asyncio.sleep(_SEEN_PAUSE)
        if word != "forged":
            told.append(mark)
        else:
            log.warning(
                "transaction %s marks %s, and the ledger tells of no such deed: passed over", mark.xid, mark.trigger
            )
    return told


async def _find_fillings(database: Database, transactions: Sequence[Transaction]) -> dict[Lsn, tuple[str, ...]]:
    """Which of them filled the log of which triggers, by their own word and by ours (every role may emit a message)."""
    found: dict[Lsn, tuple[str, ...]] = {}
    for transaction in transactions:
        if not transaction.legacy or not any(_FILLED in message.content for message in transaction.events):
            continue
        for _ in range(_SEEN_TRIES):
            filling = await database.one(_Filling, statement("prove.read_filling"), xid=transaction.xid)
            if filling.visible:
                break
            await asyncio.sleep(_SEEN_PAUSE)
        else:
            continue
        if filling.identities:
            found[transaction.commit_lsn] = tuple(filling.identities)
    return found


async def _find_marks(transaction: Transaction) -> list[_Mark]:
    if len(transaction.events) > _CHANGES_AT_A_STRETCH:
        return await asyncio.to_thread(_read_marks, transaction)
    return _read_marks(transaction)


def _read_marks(transaction: Transaction) -> list[_Mark]:
    """What the transaction says was silenced and restored."""
    marks: list[_Mark] = []
    for message in transaction.events:
        if b'"trigger.' not in message.content:
            continue
        emitted = _read_mark(message.content)
        if emitted is not None and emitted.entity_id is not None:
            silenced = emitted.action == SILENCE
            marks.append(
                _Mark(emitted.entity_id, silenced, _mark_mode(emitted), transaction.commit_lsn, transaction.xid)
            )
    return marks


def _read_mark(content: bytes) -> Emitted | None:
    try:
        emitted = msgspec.json.decode(content, type=Emitted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    is_mark = emitted.category == "migration" and emitted.action in (SILENCE, RESTORE)
    return emitted if is_mark and emitted.entity_type == "trigger" else None


class _MarkWords(msgspec.Struct, frozen=True):
    mode: str = Mode.RETIRE.value


def _mark_mode(mark: Emitted) -> str:
    try:
        mode = msgspec.json.decode(mark.metadata, type=_MarkWords).mode
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        mode = Mode.RETIRE.value
    return mode if mode in (Mode.RETIRE, Mode.DEFER) else Mode.RETIRE.value


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)


_encoder = msgspec.json.Encoder(enc_hook=str)


def _json(value: object) -> str:
    return _encoder.encode(value).decode()
