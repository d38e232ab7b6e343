"""Writes on copies beside a staging database: nothing of it is touched, nobody else is in the way, nothing is left."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from afterwrite.bench import staging
from afterwrite.bench.staging import Mix, Options, Written
from afterwrite.errors import Refused
from afterwrite.postgres import connect
from afterwrite.scan.catalog import read_inventory

_SCHEMA = """
create table public.orders (id int primary key, amount int not null default 0, note text);
create table public.audit_log (id bigserial primary key, relation text, old jsonb, new jsonb);
create function public.audit() returns trigger language plpgsql as $$
begin
    insert into public.audit_log (relation, old, new) values (tg_table_name, to_jsonb(old), to_jsonb(new));
    return null;
end $$;
create trigger audit after update on public.orders for each row execute function public.audit();
insert into public.orders select g, g, 'order ' || g from generate_series(1, 60) g;
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_WATCH_SECONDS", 0.05)


def test_the_mix_is_tried_on_copies_that_are_gone_afterwards(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_SCHEMA)
        before = connection.execute("select count(*) from pg_database").fetchone()
    mix = Mix(tables=(Written(relation="public.orders", writes=10, bulk=3),), source="somebody")
    options = Options(rounds=2, updates=4)

    claims = asyncio.run(staging.measure_staging(dsn, mix, options, lambda words: None))

    assert {claim.claim for claim in claims} >= {
        "an update of public.orders, triggers to afterwrite",
        "the mix, triggers to afterwrite",
        "what logging adds to the mix",
    }
    assert all(value > 0 for claim in claims for value in claim.samples.measured)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select sum(amount), count(*) from orders").fetchone() == (1830, 60)
        assert connection.execute("select count(*) from audit_log").fetchone() == (0,)
        assert connection.execute("select count(*) from pg_database").fetchone() == before


def test_a_database_that_somebody_writes_to_is_refused(dsn: str) -> None:
    async def look() -> None:
        async with connect(dsn) as db:
            await staging.refuse_unless_quiet(db)

    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(_SCHEMA)
        with other.transaction():
            other.execute("update orders set amount = 1")
            with pytest.raises(Refused, match="somebody else is writing"):
                asyncio.run(look())


def test_without_statistics_the_tables_say_what_is_written_most() -> None:
    found = [
        Written(relation="public.a", writes=3),
        Written(relation="public.b", writes=0),
        Written(relation="public.c", writes=9, bulk=50_000),
    ]

    assert [(each.relation, each.bulk) for each in staging.most_written(found, 2)] == [
        ("public.c", 1_000),
        ("public.a", 1),
    ]


def test_what_would_be_done_is_said(dsn: str) -> None:
    async def read() -> Mix:
        async with connect(dsn) as db:
            return await staging.read_mix(db, await read_inventory(db), 5)

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_SCHEMA)
    sentences = staging.said(dsn, asyncio.run(read()), Options())
    assert "scratch databases" in sentences[1]
    assert "neither written nor changed" in sentences[2]
