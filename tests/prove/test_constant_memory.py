"""A proof that runs for days: what it holds in memory and in the database does not grow with what it has seen."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
from proof_scene import Scene, of  # type: ignore[import-not-found]
from test_match import _SHAPES, Story, mapped, row, trigger  # type: ignore[import-not-found]

from afterwrite.capture.transaction import Column, Transaction
from afterwrite.postgres import connect
from afterwrite.prove.match import EXAMPLES, Account, Matcher
from afterwrite.prove.prover import Prover
from afterwrite.prove.report import read_proof
from afterwrite.record import Lsn

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def _transaction(number: int) -> Transaction:
    """Three changes with their rows; in every tenth one row is lost, in every other tenth one is false."""
    story = Story()
    for offset in range(3):
        story.audited("insert", row(number * 3 + offset, status=f"state {number}", amount=number))
    if number % 10 == 0:
        del story.legacy[0]
    elif number % 10 == 5:
        after = msgspec.json.decode(story.legacy[0].after or b"")
        false = msgspec.json.encode({**after, "row": {"id": after["rid"]}})
        story.legacy[0] = msgspec.structs.replace(story.legacy[0], after=false)
    return msgspec.structs.replace(
        story.tell(), xid=number, commit_lsn=Lsn(1000 + number), committed_at=_BEGAN + timedelta(seconds=number)
    )


def _held_after(matcher: Matcher, account: Account, numbers: range) -> int:
    for number in numbers:
        matcher.match(_transaction(number), account)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_ten_times_as_many_transactions_take_no_more_memory() -> None:
    matcher, account = Matcher(mapped(trigger()), tables=_SHAPES), Account()
    _held_after(matcher, account, range(200))
    tracemalloc.start()
    try:
        before = _held_after(matcher, account, range(200, 700))
        after = _held_after(matcher, account, range(700, 3_700))
    finally:
        tracemalloc.stop()
    assert account.transactions == 3_700
    assert account.total() == 370 + 370
    assert all(len(kept) <= EXAMPLES for kept in account.examples.values())
    assert after - before < 50_000, f"{after - before:,} bytes more"


def test_a_table_that_is_altered_again_and_again_leaves_nothing_behind() -> None:
    matcher = Matcher(mapped(trigger()), tables=_SHAPES)

    def alter(numbers: range) -> int:
        for number in numbers:
            transaction = _transaction(number + 1)
            changes = [
                msgspec.structs.replace(
                    change,
                    relation=msgspec.structs.replace(
                        change.relation, columns=(*change.relation.columns, Column(f"c{number}", 25, -1, False))
                    ),
                )
                for change in transaction.changes
            ]
            matcher.match(msgspec.structs.replace(transaction, changes=changes), Account())
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    alter(range(20))
    tracemalloc.start()
    try:
        before = alter(range(20, 40))
        after = alter(range(40, 200))
    finally:
        tracemalloc.stop()
    assert after - before < 50_000, f"{after - before:,} bytes more"


_SCHEMA = """
create table orders (id integer primary key, state text);
create table audit_log (id bigserial primary key, op text, rid text, row jsonb);
create function audit() returns trigger language plpgsql as $$
begin
  insert into audit_log (op, rid, row) values (tg_op, new.id::text, to_jsonb(new));
  return null;
end $$;
create trigger orders_audit after insert on orders for each row execute function audit();
"""


def test_what_is_kept_in_the_database_is_bounded_too_and_outlives_restarts(scene: Scene) -> None:
    scene.lay(_SCHEMA, tables=["orders"], legacy=["audit_log"])
    found = scene.survey()
    scene.run("insert into orders values (1, 'new')")
    scene.ddl("alter table orders disable trigger orders_audit")
    for number in range(2, 42):
        scene.run(f"insert into orders values ({number}, 'unlogged')")
    scene.run("insert into audit_log (op, rid) values ('EXPORT', null)", "insert into audit_log (op) values ('EXPORT')")
    transactions = scene.read()

    async def watch() -> None:
        # A prover a stretch, as after so many restarts; each shown also what the ones before have counted.
        for end in range(5, len(transactions) + 5, 5):
            async with Prover(scene.dsn, found.judgements, found.bodies) as prover:
                await prover.observe(transactions[:end])
                await prover.settle()

    asyncio.run(watch())

    async def read() -> Any:
        async with connect(scene.dsn) as database:
            return await read_proof(database)

    proof = asyncio.run(read())
    inserted = of(proof, "orders_audit").operations[0]
    assert (inserted.seen, inserted.matched, sum(inserted.unexplained.values())) == (41, 1, 40)
    assert [each.key for each in proof.examples if each.trigger.endswith("orders_audit")] == [
        str(number) for number in range(41, 41 - EXAMPLES, -1)
    ]
    with psycopg.connect(scene.dsn) as db:
        sizes = db.execute(
            "select (select count(*) from afterwrite.proof), (select count(*) from afterwrite.proof_reason),"
            " (select count(*) from afterwrite.residual), (select count(*) from afterwrite.proof_window)"
        ).fetchone()
    assert sizes == (2, 2, EXAMPLES + 2, 1)  # five of one reason, two foreign rows
