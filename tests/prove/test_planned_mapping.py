"""What the plan says of legacy columns: validated on the server, taken over by a running proof, kept by re-planning."""

from __future__ import annotations

import asyncio

import msgspec
import psycopg
import pytest
from proof_scene import Scene, of  # type: ignore[import-not-found]

from afterwrite.errors import ConnectionLost, UsageError
from afterwrite.migrate.plan import (
    Ignored,
    Plan,
    PlannedTrigger,
    keep_decisions,
    make_plan,
    proof_plan,
    read_plan,
    write_plan,
)
from afterwrite.postgres import connect
from afterwrite.prove.legacy import Override
from afterwrite.prove.match import Reason
from afterwrite.prove.plan import adopt, check, read_planned
from afterwrite.prove.prover import Prover
from afterwrite.prove.report import Minimums, read_proof, standing
from afterwrite.prove.watch import Mode, Planned, watch
from afterwrite.scan.survey import survey
from afterwrite.scan.verdicts import Verdict

# What describe() gives, and what the codes say, cannot be told from the change.
_SCHEMA = """
create table orders (id integer primary key, state text not null, amount numeric(12, 2));
create table customer (id integer primary key, name text);
create table audit_log (id bigserial primary key, tbl text, op text, rid text, label text, seen_by text);
create function describe(op text, tbl text) returns text language plpgsql immutable as $$
begin
  return lower(op) || ' of ' || tbl;
end $$;
create function audit() returns trigger language plpgsql as $$
begin
  insert into audit_log (tbl, op, rid, label, seen_by)
  values (tg_table_name, tg_op, coalesce(new.id, old.id)::text, describe(tg_op, tg_table_name), pg_backend_pid()::text);
  return null;
end $$;
create trigger orders_audit after insert or update or delete on orders for each row execute function audit();
create trigger customer_audit after insert on customer for each row execute function audit();
"""
TRIGGER = "public.orders.orders_audit"
_WRONG = Planned(trigger=TRIGGER, overrides=(Override(column="label", value="upper(tg_op)"),))
_SAID = (
    Override(column="label", value="lower(tg_op) || ' of ' || tg_table_name"),
    Override(column="public.audit_log.seen_by", ignore="the backend of the writer"),
)


@pytest.fixture
def orders(scene: Scene) -> Scene:
    scene.lay(_SCHEMA, tables=["orders", "customer"], legacy=["audit_log"])
    return scene


def test_a_running_proof_goes_on_by_the_plans_mapping_and_counts_that_trigger_anew(orders: Scene) -> None:
    found = orders.survey()
    orders.run("insert into orders values (1, 'open', 5)", "insert into customer values (1, 'Ann')")
    first = orders.read()
    orders.run("update orders set state = 'paid'", "insert into customer values (2, 'Bob')")
    second = orders.read()

    async def story() -> None:
        async with (
            connect(orders.dsn) as database,
            Prover(orders.dsn, found.judgements, found.bodies) as prover,
        ):
            await adopt(database, [_WRONG])
            await prover.observe(first)
            await prover.settle()
            before = await read_proof(database)
            assert of(before, "orders_audit").unexplained == 1
            assert of(before, "orders_audit").operations[0].exact == 0
            await prover.observe(second)
            planned = [Planned(trigger=TRIGGER, overrides=_SAID)]
            await check(database, planned, watch(found.inventory, found.judgements, found.bodies, planned))
            assert await adopt(database, planned) == (TRIGGER,)
            assert await adopt(database, planned) == ()  # it is taken over already
            with pytest.raises(ConnectionLost, match="its plan changed"):
                await prover.settle()
            await prover.begin(second[0].commit_lsn)
            await prover.observe(second)
            await prover.settle()
            after = await read_proof(database)
        mapped = of(after, "orders_audit")
        assert mapped.unexplained == 0
        assert mapped.overrides == _SAID
        (operation,) = [each for each in mapped.operations if each.seen]
        assert (operation.operation, operation.seen, operation.matched) == ("update", 1, 1)
        assert (operation.exact, operation.uncompared) == (4, 1)
        assert not [each for each in after.examples if each.trigger == TRIGGER]
        assert of(after, "customer_audit").operations[0].matched == 2  # the others' counts go on
        assert after.transactions == 2
        assert after.window_of([TRIGGER])[0] == 1
        assert after.window_of(["public.customer.customer_audit"])[0] == 2
        lacks = standing([TRIGGER], after).lacks(Minimums(transactions=2))
        assert standing([TRIGGER], after, planned=planned).unwatched == ()
        assert "another mapping than the plan's" in standing([TRIGGER], after, planned=[_WRONG]).unwatched[0]
        assert "another mapping than the plan's" in standing([TRIGGER], after, planned=[]).unwatched[0]
        assert "1 of 2 transactions were compared" in lacks

    asyncio.run(story())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Override(column="lable", value="'x'"), "no legacy column of that name"),
        (Override(column="label", value="new.nothing"), "nothing"),
        (Override(column="label", value="upper(new.amount)"), "upper"),
        (Override(column="label", value="'a'; drop table orders"), "cannot be computed"),
    ],
)
def test_what_the_plan_cannot_mean_is_refused(orders: Scene, said: Override, why: str) -> None:
    async def ask() -> None:
        planned = [Planned(trigger=TRIGGER, overrides=(said,))]
        async with connect(orders.dsn) as database:
            found = await survey(database)
            await check(database, planned, watch(found.inventory, found.judgements, found.bodies, planned))

    with pytest.raises(UsageError, match=why):
        asyncio.run(ask())


def test_a_column_that_is_dropped_later_ends_the_plans_word_on_it_with_a_note(orders: Scene) -> None:
    async def take_over() -> None:
        async with connect(orders.dsn) as database:
            await adopt(database, [Planned(trigger=TRIGGER, overrides=_SAID)])
            assert [each.trigger for each in await read_planned(database)] == [TRIGGER]

    asyncio.run(take_over())
    orders.ddl(
        "create or replace function audit() returns trigger language plpgsql as $$ begin"
        " insert into audit_log (tbl, op, rid, label) values (tg_table_name, tg_op, coalesce(new.id, old.id)::text,"
        " describe(tg_op, tg_table_name)); return null; end $$",
        "alter table audit_log drop column seen_by",
    )
    orders.run("insert into orders values (1, 'open', 5)")
    proof = orders.prove(orders.read())
    found = of(proof, "orders_audit")
    assert found.unexplained == 0
    assert found.notes == (
        "the plan's mapping of public.audit_log.seen_by is not used: the trigger writes no legacy column of that name",
    )


def test_the_mapping_is_written_read_and_kept_by_replanning(orders: Scene) -> None:
    plan = make_plan(orders.survey().judgements)
    assert proof_plan(plan) == []
    mapped = _with(plan, TRIGGER, mapping={"label": "upper(new.state)", "seen_by": Ignored(ignore="its own trigger")})
    mapped = _with(mapped, "public.customer.customer_audit", rare=("insert",), reason="hardly ever")
    again = read_plan(write_plan(mapped))
    assert again == mapped
    assert proof_plan(again) == [
        Planned(
            trigger=TRIGGER,
            overrides=(
                Override(column="label", value="upper(new.state)"),
                Override(column="seen_by", ignore="its own trigger"),
            ),
        )
    ]
    orders.ddl("create trigger orders_second after insert on orders for each row execute function audit()")
    fresh = make_plan(orders.survey().judgements)
    kept, lost = keep_decisions(again, fresh)
    assert not lost
    assert proof_plan(kept) == proof_plan(again)
    names = [each.trigger for phase in kept.phases for each in phase.triggers]
    assert sorted(names) == sorted(
        [*(each.trigger for p in again.phases for each in p.triggers), f"{TRIGGER[:-5]}second"]
    )
    orders.ddl("drop trigger orders_audit on orders")
    _, lost = keep_decisions(kept, make_plan(orders.survey().judgements))
    assert lost == [f"{TRIGGER} is gone, and with it mapping"]


def test_a_trigger_that_a_person_moved_into_a_phase_is_compared_as_that_phase_needs_it(orders: Scene) -> None:
    found = orders.survey()
    judged = [
        msgspec.structs.replace(each, verdict=Verdict.REVIEW) if each.trigger.name == "customer_audit" else each
        for each in found.judgements
    ]
    named = "public.customer.customer_audit"
    assert named not in [m.identity for m, _ in watch(found.inventory, judged, found.bodies).watched]
    planned = [Planned(trigger=named, mode=Mode.RETIRE)]
    assert named in [m.identity for m, _ in watch(found.inventory, judged, found.bodies, planned).watched]


def _with(plan: Plan, trigger: str, **words: object) -> Plan:
    def changed(each: PlannedTrigger) -> PlannedTrigger:
        return msgspec.structs.replace(each, **words) if each.trigger == trigger else each

    phases = tuple(
        msgspec.structs.replace(phase, triggers=tuple(map(changed, phase.triggers))) for phase in plan.phases
    )
    return msgspec.structs.replace(plan, phases=phases)


def test_values_of_the_log_that_the_plan_explains_are_no_residuals(orders: Scene) -> None:
    with psycopg.connect(orders.dsn) as db:
        db.execute(
            "insert into afterwrite.proof_plan (trigger, overrides) values (%s, %s)",
            [TRIGGER, msgspec.json.encode(_SAID).decode()],
        )
    orders.run("insert into orders values (1, 'open', 5), (2, 'open', 6)")
    orders.run("update orders set state = 'paid' where id = 1", "delete from orders where id = 2")
    proof = orders.prove(orders.read())
    found = of(proof, "orders_audit")
    assert {each.operation: each.matched for each in found.operations} == {"insert": 2, "update": 1, "delete": 1}
    assert not [each for each in proof.examples if each.reason is Reason.VALUE]
