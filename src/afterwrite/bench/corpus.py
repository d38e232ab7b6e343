"""So much activity, kept twice: in the store by its own writer, and in an audit table as a legacy application has it.

Eighteen kinds of things, a few of them busy; two thousand actors, a few of them busy; twelve tenants; a month of days.
The same seed makes the same rows. The audit table is filled from the store's rows, so that both hold the same.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec

from afterwrite.postgres import connect, script, statement
from afterwrite.record import Activity, Batch, Kind, Level, Lsn, Operation, Outcome, change_id
from afterwrite.store.partitions import make_partitions
from afterwrite.store.rollup import SESSION, refresh_analytics, roll_up
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

TABLES = (
    "users", "projects", "investors", "tokens", "documents", "notifications", "subscriptions", "redemptions", "wallets",
    "investments", "distributions", "project_settings", "token_templates", "token_operations", "token_allocations",
    "investor_groups", "wallet_transactions", "bulk_operations",
)  # fmt: skip
_ACTORS, _TENANTS = 2_000, 12
_ENTITIES = 4_000
_WORDS = (
    "gold", "token", "harbour", "energy", "transfer", "approved", "review", "quarter", "statement", "holding",
    "settled", "pending", "revised", "portfolio", "solar", "bridge", "garden", "tower", "north", "capital",
)  # fmt: skip
_STATES = ("draft", "open", "paid", "sent", "closed")
_BATCH_ROWS = 5_000
# Below so many a second process would start for longer than it helps.
_FEW_ROWS = 40_000
_WRITERS = 2
_EVENT_SHARE = 0.1


class Corpus(msgspec.Struct, frozen=True, kw_only=True):
    """What was laid: how many rows over which days."""

    rows: int
    since: datetime
    until: datetime


async def lay_corpus(dsn: str, *, rows: int, days: int = 30, seed: int = 1) -> Corpus:
    """Lay the store and the audit table in a database of its own, fill both, count the rollups, and analyze."""
    until = datetime.now(UTC).replace(microsecond=0)
    since = until - timedelta(days=days)
    corpus = Corpus(rows=rows, since=since, until=until)
    every = [since.date() + timedelta(days=number) for number in range(days + 1)]
    async with connect(dsn) as db:
        await install_store(db)
        await db.script(script("bench/legacy_log"))
        await make_partitions(db, days=every)
    await _store(dsn, corpus, every, seed)
    await asyncio.gather(_fill_log(dsn, every), _count(dsn))
    return corpus


async def _store(dsn: str, corpus: Corpus, days: Sequence[date], seed: int) -> None:
    """Write every day; many rows by two processes, since making them takes as long as storing them."""
    if corpus.rows < _FEW_ROWS:
        await _write_days(dsn, corpus, days, seed)
        return
    loop = asyncio.get_running_loop()
    # Not forked: this process may have threads, and has an event loop.
    with ProcessPoolExecutor(_WRITERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        # Next to each other in time, so that both have days to the end.
        shares = [days[number::_WRITERS] for number in range(_WRITERS)]
        await asyncio.gather(
            *(loop.run_in_executor(pool, _write_days_here, dsn, corpus, share, seed) for share in shares)
        )


def _write_days_here(dsn: str, corpus: Corpus, days: Sequence[date], seed: int) -> None:
    asyncio.run(_write_days(dsn, corpus, days, seed))


async def _write_days(dsn: str, corpus: Corpus, days: Sequence[date], seed: int) -> None:
    async with open_sink(dsn, application_name="afterwrite bench") as sink:
        for day in days:
            for first, batch in _batches(corpus, day, seed):
                lsn = Lsn(0x1000000 + first * 64)
                await sink.write(
                    Batch(source="bench", activities=batch, transactions=len(batch), first_lsn=lsn, last_lsn=lsn)
                )


async def _fill_log(dsn: str, days: Sequence[date]) -> None:
    """The same in the audit table, in the order of time as an application would have written it; both made ready."""
    async with connect(dsn) as db:
        for day in days:
            begin = datetime.combine(day, time(), UTC)
            await db.run(statement("bench.fill_log"), since=begin, until=begin + timedelta(days=1))
        await db.script(script("bench/legacy_log_indexes"))
        await db.run(b"vacuum (analyze) public.audit_logs, afterwrite.activity")


async def _count(dsn: str) -> None:
    # As counting is done beside maintenance; compiling its many short queries would cost more than running them.
    async with connect(dsn, options=SESSION) as db:
        await roll_up(db)
        await refresh_analytics(db)
        await db.run(b"vacuum (analyze) afterwrite.rollup_hour, afterwrite.rollup_top, afterwrite.batch")


def pick_entity(chance: random.Random) -> tuple[str, str]:
    """A thing, the busy ones most often."""
    table = TABLES[int(len(TABLES) * chance.random() ** 2)]
    return table, str(1 + int(_ENTITIES * chance.random() ** 2))


def pick_actor(chance: random.Random) -> str:
    """An actor, the busy ones most often."""
    return f"user:{1 + int(_ACTORS * chance.random() ** 2)}"


def pick_words(chance: random.Random) -> str:
    """Two words that occur together in a few rows of a hundred thousand."""
    return f"{chance.choice(_WORDS)} {chance.choice(_WORDS)}"


def _batches(corpus: Corpus, day: date, seed: int) -> Iterator[tuple[int, list[Activity]]]:
    """What happened on this day, in batches, each with the number of its first row."""
    begin = datetime.combine(day, time(), UTC)
    step = (corpus.until - corpus.since) / corpus.rows
    first, behind = (
        min(corpus.rows, max(0, -((corpus.since - moment) // step))) for moment in (begin, begin + timedelta(days=1))
    )
    chance = random.Random(f"{seed} {day - corpus.since.date()}")
    for start in range(first, behind, _BATCH_ROWS):
        numbers = range(start, min(behind, start + _BATCH_ROWS))
        yield start, list(_activities(numbers, corpus.since, step, chance))


def _activities(numbers: range, since: datetime, step: timedelta, chance: random.Random) -> Iterator[Activity]:
    encode = msgspec.json.encode
    for number in numbers:
        at = since + step * number
        table, key = pick_entity(chance)
        actor, tenant = pick_actor(chance), f"tenant-{1 + number % _TENANTS}"
        event = chance.random() < _EVENT_SHARE
        note = " ".join(chance.choices(_WORDS, k=6))
        id = change_id("7300000000000000000", 1, Lsn(number * 64), 0, at)
        if event:
            failed = chance.random() < 0.03
            yield Activity(
                id=id,
                occurred_at=at,
                source="bench",
                kind=Kind.EVENT,
                category=chance.choice(("authentication", "financial", "document", "user_management")),
                action=chance.choice(("login", "report.exported", "project.approved", "mail.sent")),
                outcome=Outcome.FAILURE if failed else Outcome.SUCCESS,
                severity=Level.WARNING if failed else Level.INFO,
                entity_type=table,
                entity_id=key,
                actor_id=actor,
                actor_type="user",
                tenant_id=tenant,
                request_id=f"{number:016x}",
                ip=f"192.0.2.{number % 250}",
                summary=note,
                metadata=msgspec.Raw(encode({"plan": chance.choice(("free", "pro")), "items": number % 50})),
            )
            continue
        before: dict[str, Any] = {
            "id": int(key),
            "status": chance.choice(_STATES),
            "amount": number % 9_000,
            "note": note,
            "owner": actor,
        }
        after = {**before, "status": chance.choice(_STATES), "amount": before["amount"] + 1}
        changed = tuple(name for name in after if after[name] != before[name])
        yield Activity(
            id=id,
            occurred_at=at,
            source="bench",
            kind=Kind.CHANGE,
            category="data",
            action=f"{table}.update",
            entity_type=table,
            entity_id=key,
            actor_id=actor,
            actor_type="user",
            tenant_id=tenant,
            request_id=f"{number:016x}",
            ip=f"192.0.2.{number % 250}",
            summary=f"{table} {key} updated: amount {before['amount']} → {after['amount']}, {note}",
            relation=f"public.{table}",
            operation=Operation.UPDATE,
            changed=changed,
            before=msgspec.Raw(encode(before)),
            after=msgspec.Raw(encode(after)),
            xid=1_000 + number,
            commit_lsn=Lsn(0x1000000 + number * 64),
            ordinal=0,
        )
