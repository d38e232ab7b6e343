"""Transactions that are too big to be compared at once: in parts where these come out even, else openly not."""

from __future__ import annotations

from threading import Event

import msgspec
import pytest
from proof_scene import Scene, of  # type: ignore[import-not-found]

from afterwrite.capture.transaction import Transaction
from afterwrite.prove import parts
from afterwrite.prove.match import Account, Matcher, Reason
from afterwrite.prove.report import Minimums, OperationProof, Proof, standing
from afterwrite.prove.watch import watch
from afterwrite.record import Operation

_SCHEMA = """
create table item (id integer primary key, label text);
create table tag (id uuid primary key default gen_random_uuid(), label text);
create table audit_log (id bigserial primary key, tbl text, op text, rid text, old_row jsonb, new_row jsonb);
create function audit() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' then
    insert into audit_log (tbl, op, rid, old_row) values (tg_table_name, tg_op, old.id::text, to_jsonb(old));
    return old;
  elsif tg_op = 'UPDATE' then
    insert into audit_log (tbl, op, rid, old_row, new_row)
    values (tg_table_name, tg_op, old.id::text, to_jsonb(old), to_jsonb(new));
  else
    insert into audit_log (tbl, op, rid, new_row) values (tg_table_name, tg_op, new.id::text, to_jsonb(new));
  end if;
  return new;
end $$;
create trigger item_audit after insert or update or delete on item for each row execute function audit();
create trigger tag_audit after insert on tag for each row execute function audit();
"""
BUSINESS = (
    "insert into item select g, 'item ' || g from generate_series(1, 100) g",
    "insert into tag (label) select 'tag ' || g from generate_series(1, 30) g",
    "update item set label = label || '!' where id % 2 = 0",
    "insert into item values (1000, 'late')",
    "delete from item where id <= 10",
)


@pytest.fixture
def store(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 20)
    scene.lay(_SCHEMA, tables=["item", "tag"], legacy=["audit_log"])
    return scene


def operations(proof: Proof, trigger: str) -> dict[Operation, OperationProof]:
    return {each.operation: each for each in of(proof, trigger).operations}


def without_a_row(transaction: Transaction) -> Transaction:
    return msgspec.structs.replace(transaction, legacy=[*transaction.legacy][:-1])


def test_a_large_transaction_is_compared_in_parts_by_key(store: Scene) -> None:
    store.run(*BUSINESS)
    (transaction,) = store.read()
    assert parts.is_large(transaction)
    proof = store.prove([transaction])
    found = operations(proof, "item_audit")
    assert {op: (each.seen, each.matched, each.rows) for op, each in found.items()} == {
        Operation.INSERT: (101, 101, 101),
        Operation.UPDATE: (50, 50, 50),
        Operation.DELETE: (10, 10, 10),
    }
    assert operations(proof, "tag_audit")[Operation.INSERT].matched == 30
    assert (proof.transactions, proof.unexplained) == (1, 0)
    assert standing([each.trigger for each in proof.triggers], proof).lacks(Minimums(transactions=1)) == []


def test_what_does_not_come_out_even_is_openly_too_large_and_proves_nothing(store: Scene) -> None:
    store.run(*BUSINESS)
    (transaction,) = store.read()
    proof = store.prove([without_a_row(transaction)])
    found = operations(proof, "item_audit")
    assert {op: (each.seen, each.matched, dict(each.explained)) for op, each in found.items()} == {
        Operation.INSERT: (101, 0, {Reason.TOO_LARGE: 101}),
        Operation.UPDATE: (50, 0, {Reason.TOO_LARGE: 50}),
        Operation.DELETE: (10, 0, {Reason.TOO_LARGE: 10}),
    }
    assert proof.transactions == 0
    lacks = standing([of(proof, "item_audit").trigger], proof).lacks(Minimums())
    assert any("50 changes were in transactions too large to compare" in each for each in lacks)
    assert {(each.reason, each.xid) for each in proof.examples} == {(Reason.TOO_LARGE, transaction.xid)}


def test_an_update_of_the_key_puts_row_and_change_into_other_parts_and_alarms_nobody(store: Scene) -> None:
    store.run("insert into item select g, 'x' from generate_series(1, 20) g", "update item set id = id + 500")
    (transaction,) = store.read()
    proof = store.prove([transaction])
    assert proof.unexplained == 0
    assert operations(proof, "item_audit")[Operation.UPDATE].explained == {Reason.TOO_LARGE: 20}


def test_comparing_ends_soon_when_the_worker_is_to_stop(store: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    store.run(*BUSINESS)
    (transaction,) = store.read()
    found = store.survey()
    matched: list[int] = []
    abandoned = Event()

    def match(matcher: Matcher, part: Transaction, *_: object, **__: object) -> None:
        matched.append(len(part.changes))
        abandoned.set()

    monkeypatch.setattr(Matcher, "match", match)
    watched = watch(found.inventory, found.judgements, found.bodies)
    matcher = Matcher(watched.compared, tables=watched.tables)
    account = Account()
    parts.match_large(matcher, transaction, account, silenced={}, steady=frozenset(), abandoned=abandoned)
    assert (len(matched), account.tallies, account.transactions) == (1, {}, 0)


def test_a_small_transaction_beside_it_is_compared_as_ever(store: Scene) -> None:
    store.run(*BUSINESS)
    store.run("insert into item values (2000, 'alone')")
    large, small = store.read()
    proof = store.prove([without_a_row(large), small])
    insert = operations(proof, "item_audit")[Operation.INSERT]
    assert (insert.matched, dict(insert.explained), proof.transactions) == (1, {Reason.TOO_LARGE: 101}, 1)


@pytest.mark.parametrize("rows", [1, 30])
def test_json_that_is_nested_too_deeply_to_be_compared_proves_nothing_and_stops_nobody(store: Scene, rows: int) -> None:
    store.ddl("alter table tag add deep jsonb")
    nested = "[" * 3_000 + "]" * 3_000
    store.run(f"insert into tag (label, deep) select 'deep', '{nested}' from generate_series(1, {rows}) g")
    store.run("insert into tag (label) values ('after it')")
    proof = store.prove(store.read())
    (insert,) = operations(proof, "tag_audit").values()
    assert (insert.seen, insert.matched, dict(insert.explained)) == (rows + 1, 1, {Reason.TOO_LARGE: rows})
    assert (proof.unexplained, proof.transactions) == (0, 1)
