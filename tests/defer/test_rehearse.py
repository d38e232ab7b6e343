"""While a trigger is on, its transplanted body is tried on what it really did, and nothing of that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from deferring import SOURCE, Stage, stage

from afterwrite.defer import rehearse
from afterwrite.defer.agree import Outcome
from afterwrite.defer.rehearse import Rehearser, read_rehearsals
from afterwrite.defer.tryout import Rehearsable
from afterwrite.postgres import Database
from afterwrite.record import Lsn

DDL = """
create table orders (id int primary key, customer int, amount numeric(12, 2), status text default 'new', hash text);
create table totals (
    customer int primary key, orders bigint not null default 0, amount numeric(12, 2) not null default 0,
    changed_at timestamptz not null default now(), extra jsonb default '{"a": 1.50}'
);
create table mail (
    id bigint generated always as identity primary key, customer int, what text, payload jsonb,
    at timestamptz not null default now(), token uuid not null default gen_random_uuid()
);
create function touch() returns trigger language plpgsql as $$
begin new.changed_at := now(); return new; end $$;
create trigger touch before update on totals for each row execute function touch();
create function count_them() returns trigger language plpgsql as $$
begin
    insert into totals as t (customer, orders, amount) values (new.customer, 1, new.amount)
        on conflict (customer) do update set orders = t.orders + 1, amount = t.amount + excluded.amount;
    return null;
end $$;
create trigger t after insert on orders for each row execute function count_them();
create function write_mail() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status then
        insert into mail (customer, what, payload)
        values (new.customer, 'order ' || new.id || ' is ' || new.status, jsonb_build_object('at', now(), 'by',
            current_setting('request.claims', true)));
    end if;
    return null;
end $$;
create trigger m after update on orders for each row execute function write_mail();
"""
LOG = """
create table log (
    id bigserial primary key, what text, at timestamptz default clock_timestamp(), said timestamptz
);
create function log_it() returns trigger language plpgsql as $$
begin insert into log (what, said) values (new.status, clock_timestamp()); return null; end $$;
create trigger l after insert on orders for each row execute function log_it();
"""
SPIED = ["public.orders", "public.totals", "public.mail"]


ROLLED_BACK = b"select xact_rollback from pg_stat_database where datname = current_database()"


def rehearser(
    on: Stage,
    *given: tuple[str, Sequence[str]],
    publication: str | None = None,
    db: Database | None = None,
    **change: object,
) -> Rehearser:
    async def load() -> list[Rehearsable]:
        return [
            Rehearsable(trigger=msgspec.structs.replace(await on.trigger(name), **change), effects=tuple(effects))
            for name, effects in given
        ]

    return Rehearser(db or on.db, on.store, SOURCE, load, publication=publication, since=Lsn(0))


async def outcomes(on: Stage) -> dict[tuple[str, str, str], int]:
    return {
        (row.trigger.rpartition(".")[2], row.operation.value, row.outcome.value): row.count
        for row in await read_rehearsals(on.db)
    }


async def state(on: Stage) -> list[object]:
    return await on.db.values(
        b"select to_jsonb(t) from totals t union all select to_jsonb(m) from mail m"
        b" union all select to_jsonb(o) from orders o"
    )


def test_counters_upserts_and_new_rows_are_found_alike_and_nothing_of_the_rehearsal_stays(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearse, "_OF_ONE", 10)

    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=SPIED)
            for number in range(4):
                await on.do(
                    "select set_config('request.claims', 'ann', true)",
                    f"insert into orders values ({number}, {number % 2}, 1.50)",
                )
            await on.do(
                "select set_config('request.claims', 'bob', true)",
                "update orders set status = 'paid' where id = 1",
                "update orders set amount = 2 where id = 2",
            )
            await on.do("update orders set amount = 3 where id = 3")
            await on.tell_all()
            before, rolled_back = await state(on), await on.db.value(ROLLED_BACK)
            of = rehearser(on, ("t", ["public.totals"]), ("m", ["public.mail"]))
            assert await of.round() == 6
            assert await of.round() == 0
            # A gate compares how often the application rolls back: ours are not to be taken for its own.
            await on.db.run(b"select pg_stat_force_next_flush()")
            assert await on.db.value(ROLLED_BACK) == rolled_back + 6
            assert await on.db.value(b"select transactions from afterwrite.rehearsed") == 6
            assert await outcomes(on) == {
                ("t", "insert", "matched"): 4,
                ("m", "update", "matched"): 1,
                ("m", "update", "idle"): 1,
            }
            assert await state(on) == before
            assert not await on.db.values(
                b"select proname from pg_proc where pronamespace = 'afterwrite_deferred'::regnamespace"
            )

    asyncio.run(run())


def test_a_body_without_a_path_of_its_own_and_clocks_that_go_on_are_found_alike(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL + LOG, spied=[*SPIED, "public.log"])
            await on.do("insert into orders values (1, 1, 1.50)")
            await on.tell_all()
            effects = {"t": ["public.totals"], "l": ["public.log"]}
            async with rehearse.session(dsn) as db:
                assert await rehearser(on, *effects.items(), db=db).round() == 2
            assert await outcomes(on) == {("t", "insert", "matched"): 1, ("l", "insert", "matched"): 1}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("amount = t.amount + excluded.amount + 1", Outcome.VALUE),
        ("amount = t.amount + excluded.amount / (excluded.amount - excluded.amount)", Outcome.ERROR),
    ],
)
def test_a_body_that_does_otherwise_is_an_unexplained_difference(dsn: str, body: str, outcome: Outcome) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=SPIED)
            await on.do("insert into orders values (1, 1, 1.50)")
            await on.do("insert into orders values (2, 1, 2.50)")
            await on.tell_all()
            source = (await on.trigger("t")).source
            other = source.replace("amount = t.amount + excluded.amount", body)
            await on.db.script(
                f"create or replace function count_them() returns trigger language plpgsql as $f${other}$f$"
            )
            await rehearser(on, ("t", ["public.totals"])).round()
            found = {row.outcome: row for row in await read_rehearsals(on.db)}
            assert found[outcome].count == 1
            assert '"why"' in (found[outcome].example or "")

    asyncio.run(run())


def test_what_others_wrote_too_is_compared_with_the_triggers_own_function(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=SPIED)
            await on.do("insert into orders values (1, 1, 1.50)", "update totals set amount = 99 where customer = 1")
            await on.tell_all()
            await rehearser(on, ("t", ["public.totals"])).round()
            assert await outcomes(on) == {("t", "insert", "matched"): 1}

    asyncio.run(run())


def test_effects_that_are_not_captured_are_compared_with_the_triggers_own_function(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=["public.orders"])
            await on.do("insert into orders values (1, 1, 1.50)")
            await on.do("select set_config('request.claims', 'bob', true)", "update orders set status = 'paid'")
            await on.tell_all()
            before = await state(on)
            given = (("t", ["public.totals"]), ("m", ["public.mail"]))
            await rehearser(on, *given, publication="none").round()
            assert await outcomes(on) == {("t", "insert", "matched"): 1, ("m", "update", "matched"): 1}
            assert await state(on) == before

            # Not what the trigger's function does: told, and where.
            source = (await on.trigger("t")).source.replace("values (new.customer, 1", "values (new.customer, 2")
            other = source.replace("t.orders + 1", "t.orders + 2")
            await rehearser(on, given[0], publication="none", source=other).round()
            assert (await outcomes(on))["t", "insert", "value"] == 1

    asyncio.run(run())


def test_what_cannot_be_judged_says_why(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=SPIED)
            await on.do("insert into orders values (1, 1, 1.50)")
            await on.tell_all()
            await rehearser(on, ("t", ["public.totals", "public.nowhere"])).round()
            assert await outcomes(on) == {("t", "insert", "unseen"): 1}
            (found,) = await read_rehearsals(on.db)
            assert "public.nowhere is no table" in (found.example or "")

    asyncio.run(run())


def test_a_row_that_somebody_holds_is_let_be(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=SPIED)
            await on.do("insert into orders values (1, 1, 1.50)")
            await on.do("insert into orders values (2, 1, 1.50)")
            await on.tell_all()
            await on.db.run(b"set lock_timeout = '50ms'")
            async with on.store.transaction():
                await on.store.run(b"update totals set orders = orders")
                of = rehearser(on, ("t", ["public.totals"]))
                assert await of.round() == 2
            assert await outcomes(on) == {}

    asyncio.run(run())


def test_a_trigger_that_is_off_is_not_rehearsed(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=SPIED)
            await on.do("alter table orders disable trigger t")
            await on.do("insert into orders values (1, 1, 1.50)")
            await on.tell_all()
            assert await rehearser(on, ("t", ["public.totals"])).round() == 0

    asyncio.run(run())
