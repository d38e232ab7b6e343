"""Every reason that a firing or a legacy row can have, made to happen on a real server, and counted apart.

One application with the usual triggers; each case does something to it, and says what must be counted: by trigger (or
legacy log), operation and reason. Nothing else may be counted, in any case.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from proof_scene import Scene, of  # type: ignore[import-not-found]

from afterwrite.prove import parts
from afterwrite.prove.match import Reason
from afterwrite.prove.report import Proof

_SCHEMA = """
create schema auth;
create function auth.uid() returns uuid language sql stable as
  $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
create table orders (id integer primary key, state text not null default 'new', amount numeric(12, 2), notes text);
create table priced (id integer primary key, net numeric, gross numeric generated always as (net * 2) stored);
create table parts (id integer, region text, primary key (id, region)) partition by list (region);
create table parts_eu partition of parts for values in ('eu');
create unlogged table sessions (id integer primary key);
create table switches (name text primary key, is_on boolean);
create table audit_log (id bigserial primary key, tbl text, op text, rid text, row jsonb, who uuid,
                        at timestamptz not null default now());
create table activity_log (id bigserial primary key, line text not null);
create unlogged table debug_log (id bigserial primary key, line text not null);

create function audit() returns trigger language plpgsql as $$
begin
  insert into audit_log (tbl, op, rid, row)
  values (tg_table_name, tg_op, coalesce(new.id, old.id)::text, to_jsonb(coalesce(new, old)));
  return null;
end $$;
create trigger orders_audit after insert or update or delete on orders for each row execute function audit();
create trigger priced_audit after insert on priced for each row execute function audit();
create trigger parts_audit after insert on parts for each row execute function audit();
create trigger sessions_audit after insert on sessions for each row execute function audit();

create function line() returns trigger language plpgsql as $$
begin
  insert into activity_log (line) values (format('%s %s: %s', tg_argv[0], new.id, new.state));
  return null;
end $$;
create trigger orders_state after update on orders
  for each row when (old.state is distinct from new.state) execute function line('state');
create trigger orders_notes after update of notes on orders for each row execute function line('notes');

create function changed() returns trigger language plpgsql as $$
begin
  if new is distinct from old then
    insert into activity_log (line) values ('changed ' || new.id);
  end if;
  return null;
end $$;
create trigger orders_changed after update on orders for each row execute function changed();

create function switched() returns trigger language plpgsql as $$
begin
  if (select is_on from switches where name = 'verbose') then
    insert into activity_log (line) values ('verbose ' || new.id);
  end if;
  return null;
end $$;
create trigger orders_switched after insert on orders for each row execute function switched();

create function bulk() returns trigger language plpgsql as $$
begin
  insert into activity_log (line) values ('orders were added');
  return null;
end $$;
create trigger orders_bulk after insert on orders for each statement execute function bulk();

create function debug() returns trigger language plpgsql as $$
begin
  insert into debug_log (line) values ('order ' || new.id);
  return null;
end $$;
create trigger orders_debug after insert on orders for each row execute function debug();
"""
ANN = "00000000-0000-0000-0000-00000000000a"
_WHO = """
create function who() returns trigger language plpgsql as $$
begin
  insert into audit_log (tbl, op, rid, who) values ('orders', 'WHO', new.id::text, auth.uid());
  return null;
end $$;
create trigger orders_who after insert on orders for each row execute function who()
"""
Counts = dict[tuple[str, str, Reason], int]
_INSERTED: Counts = {
    ("orders_switched", "insert", Reason.CONDITION_NOT_KNOWN): 1,
    ("orders_debug", "insert", Reason.UNLOGGED): 1,
}


@pytest.fixture
def app(scene: Scene) -> Scene:
    scene.lay(
        _SCHEMA,
        tables=["orders", "parts"],
        plain=["priced"],
        legacy=["audit_log", "activity_log"],
    )
    return scene


def counted(proof: Proof) -> Counts:
    """All reasons of all triggers, and of logs."""
    return {
        (each.trigger.rpartition(".")[2], operation.operation.value, reason): count
        for each in (*proof.triggers, *proof.strangers)
        for operation in each.operations
        for reason, count in (*operation.explained.items(), *operation.unexplained.items())
    }


def _statements(*statements: str, **words: object) -> Callable[[Scene], None]:
    return lambda app: app.run("insert into orders values (1, 'new', 5, 'x')", *statements, **words)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(
            _statements("update orders set amount = amount"),
            {
                ("orders_changed", "update", Reason.NO_OP_UPDATE): 1,
                ("orders_state", "update", Reason.NO_OP_UPDATE): 1,
                ("orders_notes", "update", Reason.UPDATE_OF): 1,
            },
            id="no-op-update",
        ),
        pytest.param(
            _statements("update orders set amount = 6"),
            {
                ("orders_state", "update", Reason.WHEN_NOT_MET): 1,
                ("orders_notes", "update", Reason.UPDATE_OF): 1,
            },
            id="when-not-met, update-of",
        ),
        pytest.param(
            _statements("insert into priced values (1, 5)"),
            {("priced_audit", "insert", Reason.GENERATED_COLUMN): 1},
            id="generated-column",
        ),
        pytest.param(
            _statements("insert into parts values (1, 'eu')"),
            {("parts_audit", "insert", Reason.PARTITION_LEAF): 1},
            id="partition-leaf",
        ),
        pytest.param(
            _statements("insert into sessions values (1)"),
            {("audit_log", "insert", Reason.UNLOGGED): 1},
            id="unlogged table",
        ),
        pytest.param(_statements(), {}, id="condition-not-known, unlogged log"),
        pytest.param(
            _statements("insert into orders select 7 where false", "insert into orders select 8 where false"),
            {},
            id="one row for several statements of one transaction",
        ),
        pytest.param(
            _statements("insert into activity_log (line) values ('written by hand')"),
            {("activity_log", "insert", Reason.LEGACY_FOREIGN): 1},
            id="legacy-foreign",
        ),
        pytest.param(
            _statements("insert into audit_log (tbl, op, rid, row) values ('orders', 'DELETE', '9', '{}')"),
            {("orders_audit", "delete", Reason.MISSING): 1},
            id="missing",
        ),
    ],
)
def test_it_is_counted_under_its_name_and_nothing_else_is(
    app: Scene, case: Callable[[Scene], None], expected: Counts
) -> None:
    case(app)
    assert counted(app.prove(app.read())) == {**_INSERTED, **expected}


def test_a_statement_that_touched_nothing_left_its_statement_triggers_row(app: Scene) -> None:
    app.run("insert into orders select 1 where false")
    assert counted(app.prove(app.read())) == {("orders_bulk", "insert", Reason.EMPTY_STATEMENT): 1}


def test_without_a_stamp_the_actor_is_not_compared(app: Scene) -> None:
    app.ddl(_WHO)
    app.run("insert into orders values (1)", context=f'{{"actor_id": "{ANN}"}}')
    app.run("insert into orders values (2)", context=None)
    found = counted(app.prove(app.read()))
    # The first was stamped with another actor than the session's: that is a difference.
    assert found == {
        ("orders_who", "insert", Reason.VALUE): 1,
        ("orders_who", "insert", Reason.SESSION_ONLY): 1,
        **dict.fromkeys(_INSERTED, 2),
    }


def test_a_writer_in_the_replica_role_fires_nothing(app: Scene) -> None:
    found = app.survey()
    app.run("insert into orders values (1)", "update orders set state = 'paid', notes = 'x'")
    app.prove(app.read(), found)
    app.run("update orders set state = 'sent', notes = 'y'", replica=True)
    proof = app.prove(app.read(), found)
    assert {key: count for key, count in counted(proof).items() if key[1] == "update"} == {
        ("orders_audit", "update", Reason.REPLICA_ROLE): 1,
        ("orders_state", "update", Reason.REPLICA_ROLE): 1,
        ("orders_notes", "update", Reason.REPLICA_ROLE): 1,
        ("orders_changed", "update", Reason.REPLICA_ROLE): 1,
    }


@pytest.mark.parametrize(("mode", "reason"), [("retire", Reason.SILENCED_YET_WRITTEN), ("defer", Reason.DEFERRED)])
def test_rows_after_a_silencing_are_an_alarm_or_the_deferred_bodys(app: Scene, mode: str, reason: Reason) -> None:
    app.mark("silence", "public.orders.orders_audit", mode=mode)
    app.run("update orders set amount = 1", "insert into orders values (2)")
    proof = app.prove(app.read())
    assert counted(proof) == {**_INSERTED, ("orders_audit", "insert", reason): 1}
    assert of(proof, "orders_audit").alarms == (1 if mode == "retire" else 0)


def test_a_transaction_that_is_too_large_and_does_not_come_out_even(
    app: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 10)
    app.ddl("drop trigger orders_switched on orders", "drop trigger orders_debug on orders")
    app.run("insert into orders select n from generate_series(1, 20) n")
    # Its rows cannot be put beside their changes by key: the key itself changes.
    app.run("update orders set id = id + 100")
    found = counted(app.prove(app.read()))
    assert {reason for _, _, reason in found} == {Reason.TOO_LARGE}
    assert found["orders_audit", "update", Reason.TOO_LARGE] == 20


def test_what_one_statement_wrote_for_many_rows_and_what_many_wrote_for_one_are_told_apart(app: Scene) -> None:
    app.ddl(
        "create function twice() returns trigger language plpgsql as $$ begin"
        " insert into audit_log (tbl, op, rid) values (tg_table_name, 'FIRST', new.id::text);"
        " insert into audit_log (tbl, op, rid) values (tg_table_name, 'SECOND', new.id::text);"
        " return null; end $$",
        "create trigger priced_twice after insert on priced for each row execute function twice()",
        "create function moved() returns trigger language plpgsql as $$ begin"
        " insert into audit_log (tbl, op, rid, row)"
        " select 'orders', 'MOVED', n.id::text, jsonb_build_object('from', o.state, 'to', n.state)"
        " from was o join is_now n on n.id = o.id; return null; end $$",
        "create trigger orders_moved after update on orders referencing old table as was new table as is_now"
        " for each statement execute function moved()",
    )
    app.run(
        "insert into orders select n, 'new', n, 'x' from generate_series(1, 5) n",  # many rows, one line of bulk's
        "insert into orders values (6, 'new', 6, 'x')",
        "update orders set state = 'paid', notes = 'y' where id > 2",  # four rows, by a statement trigger
        "insert into priced values (1, 5), (2, 6)",  # two rows a change
        "insert into activity_log (line) values ('orders were counted')",  # the application's own
        "insert into audit_log (tbl, op) values ('orders', 'EXPORT')",
    )
    proof = app.prove(app.read())
    by_name = {each.trigger.rpartition(".")[2]: each for each in proof.triggers}

    def seen(name: str, operation: str) -> tuple[int, int, int]:
        found = next(each for each in by_name[name].operations if each.operation == operation)
        return found.seen, found.matched, found.rows

    assert seen("orders_audit", "insert") == (6, 6, 6)
    assert seen("orders_audit", "update") == (4, 4, 4)
    assert seen("orders_bulk", "insert") == (1, 1, 2)  # the WAL does not show how many statements there were
    assert seen("orders_moved", "update") == (4, 4, 4)
    assert seen("priced_twice", "insert") == (2, 2, 4)
    assert proof.unexplained == 0
    assert [(each.trigger, each.operations[0].explained) for each in proof.strangers] == [
        ("public.activity_log", {Reason.LEGACY_FOREIGN: 1}),
        ("public.audit_log", {Reason.LEGACY_FOREIGN: 1}),
    ]


def test_a_row_that_is_missing_one_of_two_is_found_though_its_like_is_there(app: Scene) -> None:
    """Two equal changes and one row: the multiset tells, whatever the order."""
    app.ddl(
        "create function note() returns trigger language plpgsql as $$ begin"
        " insert into audit_log (tbl, op, rid) values ('priced', 'NOTE', new.id::text); return null; end $$",
        "create trigger priced_note after update on priced for each row execute function note()",
    )
    app.run("insert into priced values (1, 5)")
    app.run(
        "update priced set net = 6",
        "alter table priced disable trigger priced_note",
        "update priced set net = 7",
        "alter table priced enable trigger priced_note",
    )
    assert counted(app.prove(app.read())) == {
        ("priced_audit", "insert", Reason.GENERATED_COLUMN): 1,
        ("priced_note", "update", Reason.EXTRA): 1,
    }
