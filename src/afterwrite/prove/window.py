"""The proof of a window that was filled afterwards: the store's changes against the rows that the filling wrote.

::

    store: changes, commit by commit ───────────────┐
                                                    ├─▶ Transaction as the stream would have shown it ─▶ Matcher
    source: rows that fillings wrote, by xmin ──────┘
    (afterwrite.backfilled says which transaction filled which commit)

The matcher is the one that watched the triggers: what it calls ``extra`` is a hole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from psycopg import sql

from afterwrite.capture.transaction import Change, Column, Relation, Transaction
from afterwrite.context import Context
from afterwrite.errors import Refused
from afterwrite.postgres import Database, quoted, statement
from afterwrite.prove.match import EXAMPLES, Account, Matcher, Reason, Residual
from afterwrite.prove.parts import is_large, match_deep, match_large
from afterwrite.prove.plan import read_planned
from afterwrite.prove.watch import Watch, watch
from afterwrite.record import Lsn, Operation
from afterwrite.scan.survey import survey
from afterwrite.store.reader import (
    StoredActivity,
    StoredBatch,
    read_batch_activities,
    read_batches,
    read_settings,
)

_BATCHES_AT_ONCE = 64
_ROWS_AT_ONCE = 10_000
# Rows that nobody's firing claims: what they come to is not this window's business where they may be another's.
_OF_ROWS = frozenset(
    (Reason.MISSING, Reason.LEGACY_FOREIGN, Reason.EMPTY_STATEMENT, Reason.SILENCED_YET_WRITTEN, Reason.DEFERRED)
)


class WindowProof(msgspec.Struct, frozen=True, kw_only=True):
    """What a filled window came to, of the triggers in question: ``matched`` firings, the others by reason."""

    transactions: int = 0
    matched: int = 0
    explained: Mapping[Reason, int] = {}
    unexplained: Mapping[Reason, int] = {}
    examples: tuple[Residual, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the log has everything that the triggers would have written, and nothing else."""
        return not self.unexplained


async def read_watch(db: Database) -> Watch:
    """What the triggers of a source write, as their bodies are now: to prove any number of windows with."""
    found = await survey(db)
    return watch(found.inventory, found.judgements, found.bodies, await read_planned(db))


async def prove_window(
    db: Database, store: Database, watched: Watch, *, source: str, triggers: Sequence[str], after: Lsn, until: Lsn
) -> WindowProof:
    """Compare what was captured strictly between two commits with what was filled for these triggers since.

    It expects what ``watched`` says of their bodies. Reads each of their legacy logs once, and needs a temporary table
    in the source. Raises Refused when one of the triggers is not compared at all.
    """
    wanted = [mapping for mapping, _ in watched.watched if mapping.identity in triggers and mapping.operations]
    if lacking := sorted(set(triggers) - {mapping.identity for mapping in wanted}):
        raise Refused(
            f"what {lacking[0]} writes to a legacy log cannot be told from its body, so its window cannot be compared",
            remedy="see `afterwrite prove --mapping`",
        )
    matcher = Matcher(wanted, tables=watched.tables, others=[each for each, _ in watched.watched if each not in wanted])
    logs = sorted(
        {quoted(row.schema or "", row.table) for each in wanted for rows in each.written.values() for row in rows}
    )
    tables = sorted({_home(watched, each.trigger.schema, each.trigger.table) for each in wanted})
    account = Account()
    async with db.transaction():
        await _gather(db, logs, source=source, after=after, until=until)
        relations = await _read_relations(db, [*tables, *logs])
        async for transaction, sure in _transactions(
            db, store, relations, tables, source=source, after=after, until=until
        ):
            _match(matcher, transaction, sure, account)
    return _summed(account, {mapping.identity for mapping in wanted})


def _home(watched: Watch, schema: str, table: str) -> str:
    """The name under which the stream shows a table: a partition's is its root's."""
    shape = watched.tables.get((schema, table))
    return quoted(*(shape.root if shape is not None and shape.root is not None else (schema, table)))


def _summed(account: Account, identities: set[str]) -> WindowProof:
    counts: dict[Reason, int] = {}
    for (trigger, _), tally in account.tallies.items():
        for reason, count in tally.reasons.items():
            if trigger in identities or not reason.explained:
                counts[reason] = counts.get(reason, 0) + count
    residuals = [each for kept in account.examples.values() for each in kept if not each.reason.explained]
    return WindowProof(
        transactions=account.transactions,
        matched=sum(tally.matched for (trigger, _), tally in account.tallies.items() if trigger in identities),
        explained={reason: count for reason, count in sorted(counts.items()) if reason.explained},
        unexplained={reason: count for reason, count in sorted(counts.items()) if not reason.explained},
        examples=tuple(residuals[: EXAMPLES * 3]),
    )


# --- what was filled --------------------------------------------------------------------------------------------------

# A row is a filling's by the transaction that wrote it. A body with an exception handler writes under ids of its own,
# which lie between that of its filling and the next filling's: such a row may be this filling's, or another session's.
_GATHER = sql.SQL(
    "insert into pg_temp.afterwrite_filled"
    " select f.commit_lsn, {log}, w.by_xid = f.xid, pg_catalog.to_jsonb(w.l)::text"
    "   from (select l, {now}::bigint - pg_catalog.age(l.xmin) as by_xid from {table} l) w"
    "  cross join lateral (select f.xid, f.commit_lsn, f.following from pg_temp.afterwrite_filling f"
    "                       where f.xid <= w.by_xid order by f.xid desc limit 1) f"
    "  where w.by_xid between {first}::bigint and {last}::bigint and w.by_xid < f.following"
)


class _Span(msgspec.Struct, frozen=True):
    """The transaction that we are, and the ids between which fillings wrote; None where nothing was filled."""

    now: int
    first: int | None
    last: int | None


async def _gather(db: Database, logs: Iterable[str], *, source: str, after: Lsn, until: Lsn) -> None:
    await db.run(statement("prove.gather_fillings"))
    await db.run(statement("prove.add_fillings"), source=source, after=str(after), until=str(until))
    await db.run(statement("prove.gather_filled"))
    span = await db.one(_Span, statement("prove.read_span"))
    for log in logs if span.first is not None else ():
        query = _GATHER.format(
            now=sql.Literal(span.now),
            first=sql.Literal(span.first),
            last=sql.Literal(span.last),
            log=sql.Literal(log),
            table=sql.SQL(log),  # pyright: ignore[reportArgumentType] - quoted already
        )
        await db.run(query.as_bytes())
    await db.run(statement("prove.index_filled"))


class _Filled(msgspec.Struct, frozen=True):
    commit_lsn: str
    legacy: str
    sure: bool
    row: str


# --- what was captured ------------------------------------------------------------------------------------------------


class _ColumnRow(msgspec.Struct, frozen=True, kw_only=True):
    relation: str
    oid: int
    schema: str
    table: str
    replica_identity: str
    column: str
    type_oid: int
    type_modifier: int
    key: bool


async def _read_relations(db: Database, names: Sequence[str]) -> dict[str, Relation]:
    rows = await db.rows(_ColumnRow, statement("prove.read_columns"), names=list(names))
    columns: dict[str, list[_ColumnRow]] = {}
    for row in rows:
        columns.setdefault(row.relation, []).append(row)
    return {
        name: Relation(
            of_one[0].oid,
            of_one[0].schema,
            of_one[0].table,
            of_one[0].replica_identity,
            tuple(Column(each.column, each.type_oid, each.type_modifier, each.key) for each in of_one),
        )
        for name, of_one in columns.items()
    }


async def _transactions(
    db: Database,
    store: Database,
    relations: Mapping[str, Relation],
    tables: Sequence[str],
    *,
    source: str,
    after: Lsn,
    until: Lsn,
) -> AsyncGenerator[tuple[Transaction, tuple[bool, ...]]]:
    """The window's transactions as the stream would have shown them, and which legacy rows are surely theirs."""
    position: int = await store.value(statement("prove.read_position_before"), source=source, after=str(after))
    while batches := await read_batches(store, position, _BATCHES_AT_ONCE, source=source):
        for together in _by_rows(batches, tables):
            position = together[-1].position
            activities = await read_batch_activities(
                store, together, relations=tables, events=False, lsns=(Lsn(after + 1), Lsn(until - 1))
            )
            if not activities:
                continue
            settings = await read_settings(store, together)
            by_commit: dict[Lsn, list[StoredActivity]] = {}
            for activity in activities:
                if activity.commit_lsn is not None:
                    by_commit.setdefault(activity.commit_lsn, []).append(activity)
            filled: dict[Lsn, list[_Filled]] = {}
            for row in await db.rows(
                _Filled, statement("prove.read_filled"), first=str(min(by_commit)), last=str(max(by_commit))
            ):
                filled.setdefault(Lsn.parse(row.commit_lsn), []).append(row)
            for lsn in sorted(by_commit):
                stamped = settings.get((by_commit[lsn][0].batch_id, lsn), {})
                yield _transaction(lsn, by_commit[lsn], stamped, filled.get(lsn, ()), relations)
        if batches[-1].first_lsn is not None and batches[-1].first_lsn >= until:
            return


def _by_rows(batches: Sequence[StoredBatch], tables: Iterable[str]) -> Iterable[list[StoredBatch]]:
    """Batches that are read together: so many that their rows are held at once without trouble."""
    names = list(tables)
    run: list[StoredBatch] = []
    held = 0
    for batch in batches:
        rows = sum(batch.rows_per_table.get(name, 0) for name in names)
        if run and held + rows > _ROWS_AT_ONCE:
            yield run
            run, held = [], 0
        run.append(batch)
        held += rows
    if run:
        yield run


class _Metadata(msgspec.Struct, frozen=True):
    unchanged: tuple[str, ...] = ()
    exact: dict[str, Any] = {}
    reason: str | None = None


def _transaction(
    lsn: Lsn,
    activities: Sequence[StoredActivity],
    settings: Mapping[str, str],
    filled: Sequence[_Filled],
    relations: Mapping[str, Relation],
) -> tuple[Transaction, tuple[bool, ...]]:
    first = activities[0]
    changes = [change for each in activities if (change := _change(each, relations)) is not None]
    legacy = [
        Change(
            relation=relations[row.legacy],
            operation=Operation.INSERT,
            ordinal=number,
            key=None,
            after=row.row.encode(),
        )
        for number, row in enumerate(filled)
    ]
    transaction = Transaction(
        xid=first.xid or 0,
        commit_lsn=lsn,
        end_lsn=lsn,
        committed_at=first.occurred_at,
        context=_context(first, settings),
        changes=changes,
        legacy=legacy,
    )
    return transaction, tuple(row.sure for row in filled)


def _context(activity: StoredActivity, settings: Mapping[str, str]) -> Context | None:
    words = {
        "actor_id": activity.actor_id,
        "actor_type": activity.actor_type,
        "tenant_id": activity.tenant_id,
        "session_id": activity.session_id,
        "request_id": activity.request_id,
        "trace_id": activity.trace_id,
        "ip": activity.ip,
        "user_agent": activity.user_agent,
    }
    if not settings and not any(words.values()):
        return None
    return Context(**words, settings=dict(settings))


def _change(activity: StoredActivity, relations: Mapping[str, Relation]) -> Change | None:
    relation = relations.get(activity.relation or "")
    if relation is None or activity.operation is None or activity.ordinal is None:
        return None
    known = msgspec.json.decode(activity.metadata, type=_Metadata) if activity.metadata else _Metadata()
    return Change(
        relation=relation,
        operation=activity.operation,
        ordinal=activity.ordinal,
        key=activity.entity_id,
        before=None if activity.before is None else activity.before.encode(),
        after=None if activity.after is None else activity.after.encode(),
        unchanged=(*known.unchanged, *known.exact),
        changed=activity.changed,
    )


# --- matching ---------------------------------------------------------------------------------------------------------


def _match(matcher: Matcher, transaction: Transaction, sure: Sequence[bool], account: Account) -> None:
    """Match by the rows that surely are this filling's; where one lacks, also by those that may be."""
    certain = [change for change, is_sure in zip(transaction.legacy, sure, strict=True) if is_sure]
    first = _matched(matcher, msgspec.structs.replace(transaction, legacy=certain))
    if all(sure) or not (first.total() or first.total(Reason.TOO_LARGE)):
        account.take(first)
        return
    second = _matched(matcher, transaction)
    _without(second, _OF_ROWS.__contains__)
    _without(first, lambda reason: reason not in _OF_ROWS)
    for (trigger, operation), tally in first.tallies.items():
        for reason, count in tally.reasons.items():
            second.tally(trigger, operation, transaction).count(reason, count)
    for kept in first.examples.values():
        for residual in kept:
            second.add(residual)
    account.take(second)


def _matched(matcher: Matcher, transaction: Transaction) -> Account:
    found = Account()
    if is_large(transaction):
        match_large(matcher, transaction, found, silenced={}, steady=())
    else:
        match_deep(matcher, transaction, found, silenced={}, steady=())
    return found


def _without(account: Account, unwanted: Callable[[Reason], bool]) -> None:
    for tally in account.tallies.values():
        tally.reasons = {reason: count for reason, count in tally.reasons.items() if not unwanted(reason)}
    account.examples = {key: kept for key, kept in account.examples.items() if not unwanted(key[2])}
