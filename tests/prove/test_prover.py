"""The prover on a real server: typical triggers, decoded through the slot, and what goes wrong with them."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from proof_scene import Scene, of  # type: ignore[import-not-found]

from afterwrite.errors import ConnectionLost
from afterwrite.postgres import connect
from afterwrite.prove.match import Reason
from afterwrite.prove.prover import Prover, begin_window
from afterwrite.prove.report import Minimums, read_proof, standing, to_json
from afterwrite.record import Lsn, Operation

_SCHEMA = """
create schema auth;
create function auth.uid() returns uuid language sql stable as
  $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
create type state as enum ('draft', 'open', 'closed');
create table customer (id integer primary key, name text not null);
create table orders (
  id bigint generated always as identity primary key,
  customer_id integer references customer,
  state state not null default 'draft',
  amount numeric(12, 2) not null, tags text[] not null default '{}',
  notes text, updated_at timestamptz not null default now()
);
create table priced (
  id integer primary key, amount numeric not null, net numeric generated always as (amount / 2) stored
);
create table parts (id integer, region text, weight numeric, primary key (id, region)) partition by list (region);
create table parts_eu partition of parts for values in ('eu');
create table parts_us partition of parts for values in ('us');
create table audit_log (
  id bigserial primary key, tbl text, op text, rid text, old_row jsonb, new_row jsonb, diff jsonb, who uuid,
  at timestamptz not null default now()
);
create table activity_log (id bigserial primary key, line text not null, who uuid, at timestamptz default now());

create function audit() returns trigger language plpgsql security definer set search_path = public as $$
declare
  v_old jsonb; v_new jsonb; v_diff jsonb;
begin
  if tg_op <> 'INSERT' then v_old := to_jsonb(old) - tg_argv[0]; end if;
  if tg_op <> 'DELETE' then v_new := to_jsonb(new) - tg_argv[0]; end if;
  if tg_op = 'UPDATE' then
    select jsonb_object_agg(n.key, jsonb_build_array(v_old -> n.key, n.value)) into v_diff
      from jsonb_each(v_new) n where n.value is distinct from v_old -> n.key;
    if v_diff is null then return new; end if;
  end if;
  insert into audit_log (tbl, op, rid, old_row, new_row, diff, who)
  values (tg_table_name, tg_op, coalesce(v_new, v_old) ->> 'id', v_old, v_new, v_diff, auth.uid());
  return null;
end $$;
create trigger orders_audit after insert or update or delete on orders for each row execute function audit('notes');
create trigger customer_audit after insert or update or delete on customer for each row execute function audit('none');
create trigger priced_audit after insert on priced for each row execute function audit('none');
create trigger parts_audit after insert or update or delete on parts for each row execute function audit('none');

create function state_line() returns trigger language plpgsql as $$
declare v_name text;
begin
  select name into v_name from customer where id = new.customer_id;
  insert into activity_log (line, who)
  values (format('%s: order %s went from %s to %s', coalesce(v_name, '?'), new.id, old.state, new.state), auth.uid());
  return new;
end $$;
create trigger orders_state after update of state on orders
  for each row when (old.state is distinct from new.state) execute function state_line();

create function bulk_line() returns trigger language plpgsql as $$
begin
  insert into activity_log (line) values ('orders were added');
  return null;
end $$;
create trigger orders_bulk after insert on orders for each statement execute function bulk_line();

create function touch() returns trigger language plpgsql as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end $$;
create trigger orders_touch before update on orders for each row execute function touch();
"""
ANN = "00000000-0000-0000-0000-00000000000a"
_AS_ANN = f'set local "request.jwt.claims" = \'{{"sub": "{ANN}"}}\''
_STAMP = f'{{"actor_id": "{ANN}"}}'


@pytest.fixture
def shop(scene: Scene) -> Scene:
    scene.lay(_SCHEMA, tables=["customer", "orders", "parts"], plain=["priced"], legacy=["audit_log", "activity_log"])
    return scene


def work(shop: Scene) -> None:
    """Business that makes every trigger fire on every operation it covers."""
    say(shop, "insert into customer values (1, 'Ann'), (2, 'Bob')")
    say(
        shop,
        "insert into orders (customer_id, amount, notes, tags) values (1, 10.50, 'x', '{a,b}'), (2, 3, null, '{}')",
    )
    say(
        shop,
        "update orders set state = 'open', amount = amount * 2 where id = 1",
        "update orders set state = 'closed' where id = 1",
        "savepoint s",
        "delete from orders where id = 1",
        "rollback to s",
    )
    say(shop, "update orders set notes = 'only this' where id = 2")
    say(shop, "delete from orders where id = 2")
    say(shop, "update customer set name = 'Anna' where id = 1", "delete from customer where id = 2")
    say(shop, "insert into parts values (1, 'eu', 2.50), (2, 'us', 1)", "update parts set weight = 3 where id = 1")
    say(shop, "insert into priced values (1, 10), (2, 5.5)")
    say(shop, "update parts set region = 'us' where id = 1", "delete from parts where id = 2")


def say(shop: Scene, *statements: str) -> None:
    shop.run(_AS_ANN, *statements, context=_STAMP)


def test_typical_triggers_are_proven_on_compared_values(shop: Scene) -> None:
    work(shop)
    proof = shop.prove(shop.read())
    assert proof.unexplained == 0, proof.examples
    assert {each.trigger: each.unseen for each in proof.triggers} == {
        f"public.{name}": ()
        for name in (
            "customer.customer_audit",
            "orders.orders_audit",
            "orders.orders_bulk",
            "orders.orders_state",
            "parts.parts_audit",
            "priced.priced_audit",
        )
    }
    by_operation = {each.operation: each for each in of(proof, "orders_audit").operations}
    assert (by_operation[Operation.INSERT].seen, by_operation[Operation.INSERT].matched) == (2, 2)
    updated = by_operation[Operation.UPDATE]
    assert (updated.seen, updated.matched, updated.explained) == (3, 3, {})
    # The log shows a generated column, the WAL does not.
    (priced,) = of(proof, "priced_audit").operations
    assert (priced.seen, priced.matched, priced.explained) == (2, 0, {Reason.GENERATED_COLUMN: 2})
    assert of(proof, "customer_audit").operations[0].matched == 2
    assert of(proof, "customer_audit").operations[0].compared_share == 1.0
    assert of(proof, "orders_state").operations[0].explained == {Reason.WHEN_NOT_MET: 1}
    assert of(proof, "orders_state").operations[0].matched == 2
    assert {each.explained.get(Reason.PARTITION_LEAF) for each in of(proof, "parts_audit").operations} >= {3, 1}
    assert standing([each.trigger for each in proof.triggers], proof).lacks(Minimums(transactions=5)) == []
    assert to_json(proof)["unexplained"] == 0


def test_a_trigger_that_somebody_disabled_in_the_middle_is_found_and_not_taken_for_the_replica_role(
    shop: Scene,
) -> None:
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    assert shop.prove(shop.read(), found).unexplained == 0
    shop.ddl("alter table customer disable trigger customer_audit")
    say(shop, "insert into customer values (2, 'Bob')")
    shop.ddl("alter table customer enable trigger customer_audit")
    say(shop, "insert into customer values (3, 'Cyd')")
    proof = shop.prove(shop.read(), found)
    (inserted, *_) = of(proof, "customer_audit").operations
    assert inserted.unexplained == {Reason.EXTRA: 1}
    assert inserted.matched == 2
    (example,) = proof.examples
    assert (example.key, example.reason) == ("2", Reason.EXTRA)
    audit = "public.customer.customer_audit"
    rare = {(audit, Operation.UPDATE), (audit, Operation.DELETE)}
    (lacks,) = standing([audit], proof, rare=rare).lacks(Minimums())
    assert lacks == "public.customer.customer_audit has 1 unexplained on insert: extra"


def test_writes_under_the_replica_role_are_explained_because_nobody_altered_the_trigger(shop: Scene) -> None:
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    assert shop.prove(shop.read(), found).unexplained == 0
    shop.run("insert into customer values (2, 'Bob'), (3, 'Cyd')", replica=True)
    proof = shop.prove(shop.read(), found)
    (inserted, *_) = of(proof, "customer_audit").operations
    assert (inserted.matched, inserted.explained, inserted.unexplained) == (1, {Reason.REPLICA_ROLE: 2}, {})


def test_a_trigger_that_was_silenced_and_restored_explains_the_replica_role_again(shop: Scene) -> None:
    identity = "public.customer.customer_audit"
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    shop.mark("silence", identity, "alter table customer disable trigger customer_audit")
    shop.mark("restore", identity, "alter table customer enable trigger customer_audit")
    shop.prove(shop.read(), found)
    shop.run("insert into customer values (2, 'Bob')", replica=True)
    proof = shop.prove(shop.read(), found)
    assert of(proof, "customer_audit").operations[0].explained == {Reason.REPLICA_ROLE: 1}
    assert proof.unexplained == 0


def test_rows_that_the_application_writes_to_the_log_are_foreign(shop: Scene) -> None:
    say(
        shop,
        "insert into customer values (1, 'Ann')",
        "insert into audit_log (tbl, op, rid) values ('session', 'LOGIN', 'ann')",
        "insert into activity_log (line) values ('Ann signed in')",
    )
    proof = shop.prove(shop.read())
    assert proof.unexplained == 0
    assert {each.trigger: each.operations[0].explained for each in proof.strangers} == {
        "public.activity_log": {Reason.LEGACY_FOREIGN: 1},
        "public.audit_log": {Reason.LEGACY_FOREIGN: 1},
    }


def test_a_log_row_that_claims_a_change_which_never_was_is_missing(shop: Scene) -> None:
    say(shop, "insert into customer values (1, 'Ann')")
    say(
        shop,
        "insert into audit_log (tbl, op, rid, old_row)"
        " values ('customer', 'DELETE', '9', '{\"id\": 9, \"name\": \"x\"}')",
    )
    proof = shop.prove(shop.read())
    deleted = {each.operation: each for each in of(proof, "customer_audit").operations}[Operation.DELETE]
    assert deleted.unexplained == {Reason.MISSING: 1}
    assert proof.unexplained == 1


_PAIRS = """
create extension hstore;
create table item (id integer primary key, state text, seen_at timestamptz);
create table item_log (id bigserial primary key, before hstore, after hstore, changed hstore);
create function pairs() returns trigger language plpgsql as $$
declare was hstore := hstore(old.*); is_now hstore := hstore(new.*);
begin
  if is_now = was then return null; end if;
  insert into item_log (before, after, changed) values (was, is_now, is_now - was);
  return null;
end $$;
create trigger item_pairs after update on item for each row execute function pairs();
"""


def test_hstore_of_rows_is_compared_though_the_text_of_a_moment_is_the_sessions(scene: Scene) -> None:
    scene.lay(_PAIRS, tables=["item"], legacy=["item_log"])
    found = scene.survey()
    scene.run("insert into item values (1, 'new', null), (2, 'new', '2026-01-01')")
    scene.run("update item set state = 'paid', seen_at = now()")
    scene.run("update item set state = 'paid'")
    scene.run("update item set state = 'gone' where id = 1")
    scene.ddl("alter table item disable trigger item_pairs")
    scene.run("update item set state = 'lost', seen_at = now()")
    proof = scene.prove(scene.read(), found)
    (updated,) = of(proof, "item_pairs").operations
    assert (updated.matched, updated.unexplained) == (3, {Reason.EXTRA: 2})


def test_a_tampered_row_is_a_value_residual(shop: Scene) -> None:
    found = shop.survey()
    shop.ddl(
        "create function tamper() returns trigger language plpgsql as"
        " $$ begin new.new_row := jsonb_set(new.new_row, '{name}', '\"Eve\"'); return new; end $$",
        "create trigger tamper before insert on audit_log for each row when (new.rid = '2') execute function tamper()",
    )
    say(shop, "insert into customer values (1, 'Ann'), (2, 'Bob')")
    proof = shop.prove(shop.read(), found)
    assert of(proof, "customer_audit").operations[0].unexplained == {Reason.VALUE: 1}
    (example,) = proof.examples
    assert [each.column for each in example.differences] == ["new_row"]
    assert "Bob" in example.differences[0].expected
    assert "Eve" in example.differences[0].found


def test_a_mark_moves_the_expectation_at_exactly_its_place(shop: Scene) -> None:
    identity = "public.customer.customer_audit"
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    shop.mark("silence", identity, "alter table customer disable trigger customer_audit")
    say(shop, "insert into customer values (2, 'Bob')")
    shop.mark("restore", identity, "alter table customer enable trigger customer_audit")
    say(shop, "insert into customer values (3, 'Cyd')")
    # As one batch, and one by one: the same account.
    transactions = shop.read()
    proof = shop.prove(transactions, found)
    (inserted, *_) = of(proof, "customer_audit").operations
    assert (inserted.seen, inserted.matched, proof.unexplained) == (2, 2, 0)
    assert not of(proof, "customer_audit").silenced


def test_a_mark_that_the_ledger_does_not_tell_of_moves_nothing(shop: Scene) -> None:
    identity = "public.customer.customer_audit"
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    # Any role may emit it: were it believed, what the trigger logs and we lack would be no difference any more.
    shop.mark("silence", identity, forged=True)
    say(shop, "insert into customer values (2, 'Bob')")
    nested = "[" * 50_000 + "]" * 50_000
    with psycopg.connect(shop.dsn, autocommit=True) as db:
        for content in (
            f'{{"category":"migration","action":"trigger.silence","metadata":{nested}}}',
            f'{{"entity_id":"{identity}","entity_type":"trigger","category":"migration","action":"trigger.silence",'
            '"metadata":[]}',
        ):
            db.execute("select pg_logical_emit_message(true, 'afterwrite.event', %s)", [content])
    say(shop, "insert into customer values (3, 'Cyd')")
    proof = shop.prove(shop.read(), found)
    (inserted, *_) = of(proof, "customer_audit").operations
    assert (inserted.seen, inserted.matched, proof.unexplained) == (3, 3, 0)
    assert not of(proof, "customer_audit").silenced


def test_rows_with_which_a_rollback_filled_the_log_are_no_difference_and_only_our_own_word_counts(shop: Scene) -> None:
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    row = "insert into audit_log (tbl, op, rid, old_row) values ('customer', 'DELETE', '9', '{\"id\": 9}')"
    word = (
        'select pg_logical_emit_message(true, \'afterwrite.event\', \'{"category": "migration",'
        ' "action": "window.filled"}\')'
    )
    mark = (
        "insert into afterwrite.backfilled (source, commit_lsn, xid, identities, calls, rows)"
        " values ('app', '0/1', pg_current_xact_id()::text::bigint, '{public.customer.customer_audit}', 1, 1)"
    )
    shop.run(row, mark, word, context=None)
    shop.run("insert into customer values (2, 'Bob')", row, mark, word)
    proof = shop.prove(shop.read(), found)
    told = {each.operation: each for each in of(proof, "customer_audit").operations}
    assert (told[Operation.DELETE].explained, proof.unexplained) == ({Reason.DEFERRED: 2}, 0)
    shop.run(row, word)
    assert shop.prove(shop.read(), found).unexplained == 1


def test_expectation_survives_a_restart_between_mark_and_change(shop: Scene) -> None:
    identity = "public.customer.customer_audit"
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    shop.mark("silence", identity, "alter table customer disable trigger customer_audit")
    say(shop, "insert into customer values (2, 'Bob')")
    transactions = shop.read()
    for transaction in transactions:
        proof = shop.prove([transaction], found)
    assert of(proof, "customer_audit").silenced
    assert of(proof, "customer_audit").operations[0].seen == 1
    assert proof.unexplained == 0


def test_a_silenced_trigger_that_writes_is_an_alarm(shop: Scene) -> None:
    identity = "public.customer.customer_audit"
    found = shop.survey()
    shop.mark("silence", identity)  # the deed was forgotten
    say(shop, "insert into customer values (2, 'Bob')")
    proof = shop.prove(shop.read(), found)
    assert proof.unexplained == 0
    assert of(proof, "customer_audit").alarms == 1
    assert any(
        "is silenced, and wrote 1 rows on insert" in each for each in standing([identity], proof).lacks(Minimums())
    )


def test_a_transaction_shown_twice_counts_once(shop: Scene) -> None:
    found = shop.survey()
    work(shop)
    transactions = shop.read()
    half = len(transactions) // 2
    shop.prove(transactions[:half], found)
    shop.prove(transactions[: half + 1], found)
    again = shop.prove(transactions, found)
    once = {each.trigger: [operation.seen for operation in each.operations] for each in again.triggers}
    assert again.observed == len(transactions)
    assert once["public.customer.customer_audit"] == [2, 1, 1]


def test_a_window_begun_anew_forgets_and_a_running_prover_notices(shop: Scene) -> None:
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    first = shop.read()

    async def story() -> None:
        async with Prover(shop.dsn, found.judgements, found.bodies) as prover:
            await prover.observe(first)
            async with connect(shop.dsn) as database:
                await begin_window(database)
                assert (await read_proof(database)).transactions == 0
            say(shop, "insert into customer values (2, 'Bob')")
            everything = [*first, *await shop._read()]
            await prover.observe(everything)
            with pytest.raises(ConnectionLost, match="begun anew"):
                await prover.settle()
            await prover.observe(everything)
            await prover.settle()
            async with connect(shop.dsn) as database:
                proof = await read_proof(database)
            assert proof.transactions == 1
            assert of(proof, "customer_audit").operations[0].seen == 1

    asyncio.run(story())


def test_of_two_provers_each_goes_on_where_the_other_got_to(shop: Scene) -> None:
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    first = shop.read()
    say(shop, "insert into customer values (2, 'Bob')")
    second = shop.read()

    async def story() -> None:
        async with (
            Prover(shop.dsn, found.judgements, found.bodies) as one,
            Prover(shop.dsn, found.judgements, found.bodies) as other,
        ):
            await one.observe(first[:1])
            await one.settle()
            await other.observe(first[:1])
            await one.observe(second)
            await one.settle()
            await other.observe(second)
            with pytest.raises(ConnectionLost, match="another prover"):
                await other.settle()
            await other.observe(second)  # it has read again how far the proof is
            await other.settle()

    asyncio.run(story())


def test_a_prover_goes_on_after_its_connection_was_cut(shop: Scene) -> None:
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    first = shop.read()
    say(shop, "insert into customer values (2, 'Bob')")
    second = shop.read()

    async def story() -> None:
        async with Prover(shop.dsn, found.judgements, found.bodies) as prover:
            await prover.observe(first)
            await prover.settle()
            await prover.observe(second)
            shop.ddl(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'afterwrite prover'"
            )
            with pytest.raises(Exception, match=r"terminat|closed|connection"):
                await prover.settle()
            assert await prover.begin(Lsn(0)) < second[0].commit_lsn
            await prover.observe([*first, *second])
            await prover.settle()
            async with connect(shop.dsn) as database:
                proof = await read_proof(database)
            assert of(proof, "customer_audit").operations[0].matched == 2

    asyncio.run(story())


def test_what_was_never_counted_is_shown_from_where_the_store_is_and_that_is_remembered(shop: Scene) -> None:
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    transactions = shop.read()
    at = transactions[0].commit_lsn

    async def story() -> None:
        async with Prover(shop.dsn, found.judgements, found.bodies) as prover:
            assert await prover.begin(at) == at
            await prover.observe(transactions)  # and a crash, before it is settled
        async with Prover(shop.dsn, found.judgements, found.bodies) as prover:
            assert await prover.begin(Lsn(at + 1_000_000)) == at - 1
            await prover.observe(transactions)
            await prover.settle()

    asyncio.run(story())
    assert of(shop.prove([], found), "customer_audit").operations[0].matched == 1


def test_a_transaction_of_many_rows_lets_others_work_meanwhile(shop: Scene) -> None:
    found = shop.survey()
    say(shop, "insert into customer select n, 'c' || n from generate_series(1, 4000) n")
    transactions = shop.read()

    async def story() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        async with Prover(shop.dsn, found.judgements, found.bodies) as prover:
            await prover.observe([])  # connected
            ticking = asyncio.create_task(tick())
            await prover.observe(transactions)
            ticking.cancel()
            await prover.settle()
        return ticks

    assert asyncio.run(story()) > 5
    proof = shop.prove([], found)
    assert of(proof, "customer_audit").operations[0].matched == 4000
    assert proof.unexplained == 0


def test_only_the_five_newest_examples_are_kept(shop: Scene) -> None:
    found = shop.survey()
    shop.ddl("alter table customer disable trigger customer_audit")
    for number in range(1, 13):
        say(shop, f"insert into customer values ({number}, 'c')")
    transactions = shop.read()
    shop.prove(transactions[:8], found)
    proof = shop.prove(transactions[8:], found)
    assert of(proof, "customer_audit").operations[0].unexplained == {Reason.EXTRA: 12}
    assert [each.key for each in proof.examples] == ["12", "11", "10", "9", "8"]


def test_a_deferred_trigger_is_covered_and_asked_for(shop: Scene) -> None:
    shop.ddl(
        "create table counter (n bigint)",
        "insert into counter values (0)",
        "create function bump() returns trigger language plpgsql as"
        " $$ begin update counter set n = n + 1; return null; end $$",
        "create trigger customer_count after insert or delete on customer for each row execute function bump()",
    )
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    proof = shop.prove(shop.read(), found)
    counted = of(proof, "customer_count")
    assert counted.mode == "defer"
    assert [each.seen for each in counted.operations if each.operation is Operation.INSERT] == [1]
    assert standing(["public.customer.customer_count"], proof).lacks(Minimums()) == [
        "public.customer.customer_count has not been seen firing on delete",
        "the body of public.customer.customer_count was not rehearsed on insert",
    ]


def test_what_a_phase_lacks_is_said_in_words(shop: Scene) -> None:
    say(shop, "insert into orders (amount) values (1)", "update orders set amount = 2")
    proof = shop.prove(shop.read())
    assert standing(["public.orders.orders_state", "public.x.gone"], proof).lacks(
        Minimums(transactions=10, seconds=60)
    ) == [
        "1 of 10 transactions were compared",
        "shadow has run for 0 s of 60 s",
        "public.x.gone is not watched: restart `afterwrite capture`, which scans the triggers again",
        "public.orders.orders_state has not been seen firing on update (1 changes were seen, none to which it applies)",
    ]


def test_a_proof_without_the_schema_says_how_to_get_it(dsn: str) -> None:
    async def look() -> None:
        async with connect(dsn) as database:
            with pytest.raises(Exception, match="not installed"):
                await read_proof(database)

    asyncio.run(look())


def test_an_unlogged_log_is_explained(shop: Scene) -> None:
    found = shop.survey()
    shop.ddl("alter publication afterwrite_legacy drop table activity_log", "alter table activity_log set unlogged")
    say(shop, "insert into orders (amount) values (1)")
    proof = shop.prove(shop.read(), found)
    assert of(proof, "orders_bulk").operations[0].explained == {Reason.UNLOGGED: 1}
    assert proof.unexplained == 0


def test_a_window_of_another_history_begins_anew_instead_of_counting_nothing(shop: Scene) -> None:
    # A dump restored into a younger cluster: its positions are far behind those that the window remembers.
    found = shop.survey()
    say(shop, "insert into customer values (1, 'Ann')")
    assert of(shop.prove(shop.read(), found), "customer_audit").operations[0].matched == 1
    shop.ddl("update afterwrite.proof_window set through_lsn = 'FF/0', started_lsn = 'F0/0'")

    async def story() -> None:
        async with connect(shop.dsn) as database, Prover(shop.dsn, found.judgements, found.bodies) as prover:
            at = Lsn.parse(await database.value(b"select pg_current_wal_insert_lsn()::text"))
            assert await prover.begin(at) == at
            say(shop, "insert into customer values (2, 'Bob')")
            await prover.observe(shop_read := await shop._read())
            assert shop_read
            await prover.settle()
            assert of(await read_proof(database), "customer_audit").operations[0].matched == 1
            assert await prover.begin(at) == shop_read[-1].commit_lsn

    asyncio.run(story())
