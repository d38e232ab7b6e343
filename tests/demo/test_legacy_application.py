"""The legacy application is what it says it is: eighteen tables, eighty-six triggers, rules that bite."""

from __future__ import annotations

import asyncio
import csv
import re
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from afterwrite.demo.schema import TABLES, create_legacy_application
from afterwrite.postgres import connect

VERDICTS = Path(__file__).with_name("verdicts.csv")


def read_verdicts() -> list[dict[str, str]]:
    with VERDICTS.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def application(dsn: str) -> str:
    async def lay() -> None:
        async with connect(dsn) as db:
            await create_legacy_application(db, seed=3)

    asyncio.run(lay())
    return dsn


def triggers(connection: psycopg.Connection[tuple[object, ...]]) -> list[tuple[str, str, str]]:
    """Table, name, enabled; a partition's clone is not a trigger of its own."""
    return connection.execute(
        """
        select c.relname, t.tgname, t.tgenabled::text
          from pg_trigger t join pg_class c on c.oid = t.tgrelid
         where not t.tgisinternal and t.tgparentid = 0
        """
    ).fetchall()  # type: ignore[return-value]


def test_every_trigger_has_an_intended_verdict_and_the_counts_are_those_of_the_issue(application: str) -> None:
    intended = read_verdicts()
    with psycopg.connect(application) as connection:
        found = triggers(connection)
    assert sorted((row["table"], row["trigger"]) for row in intended) == sorted(
        (table, name) for table, name, _ in found
    )
    assert Counter(row["verdict"] for row in intended) == {"retire": 46, "defer": 18, "keep": 22}
    assert all(row["reason"] for row in intended)


def test_each_of_the_eighteen_tables_has_activity_triggers(application: str) -> None:
    assert len(TABLES) == 18
    assert {row["table"] for row in read_verdicts() if row["verdict"] != "keep"} == set(TABLES)
    assert {row["table"] for row in read_verdicts()} == set(TABLES)
    with psycopg.connect(application) as connection:
        tables = connection.execute(
            "select relname from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
            " and not relispartition"
        ).fetchall()
    assert {name for (name,) in tables} == {*TABLES, "audit_logs", "activity_log", "platform_statistics"}


def test_nothing_is_switched_off_and_one_trigger_fires_always(application: str) -> None:
    with psycopg.connect(application) as connection:
        states = Counter(enabled for *_, enabled in triggers(connection))
    assert states == {"O": 85, "A": 1}


def test_the_triggers_are_of_many_kinds(application: str) -> None:
    with psycopg.connect(application) as connection:
        definitions = [
            text
            for (text,) in connection.execute(
                "select pg_get_triggerdef(oid) from pg_trigger where not tgisinternal and tgparentid = 0"
            )
        ]
    for pattern, least in {
        "WHEN": 15,
        "UPDATE OF": 15,
        "FOR EACH STATEMENT": 6,
        "REFERENCING": 5,
        "CONSTRAINT TRIGGER": 1,
        r"FUNCTION audit_row_change\(": 12,
        r"record_history\('audit_logs'": 2,
    }.items():
        assert sum(bool(re.search(pattern, text)) for text in definitions) >= least, pattern


def test_no_name_or_comment_gives_the_verdict_away(application: str) -> None:
    with psycopg.connect(application) as connection:
        words = connection.execute(
            """
            select tgname::text from pg_trigger where not tgisinternal
            union all select proname from pg_proc where pronamespace = 'public'::regnamespace
            union all select description from pg_description
                       where classoid in ('pg_trigger'::regclass, 'pg_class'::regclass)
                          or objoid in (select oid from pg_proc where pronamespace = 'public'::regnamespace)
            """
        ).fetchall()
    ours = [word for (word,) in words if re.search(r"retire|defer|keep|verdict|afterwrite", word, re.IGNORECASE)]
    assert ours == []


def test_the_seed_leaves_what_the_triggers_would_have_left(application: str) -> None:
    with psycopg.connect(application) as connection:
        wrong = connection.execute(
            """
            select 'balance' from public.wallets w
             where balance <> (select sum(case direction when 'credit' then amount else -amount end)
                                 from public.wallet_transactions t where t.wallet_id = w.id)
            union all
            select 'supply' from public.tokens t
             where allocated_supply
                   <> (select coalesce(sum(amount), 0) from public.token_allocations a where a.token_id = t.id)
            union all
            select 'units' from public.investments where units is distinct from round(amount / unit_price, 6)
            union all
            select 'statistics' from public.platform_statistics s
             where s.scope = 'platform'
               and (users_total, projects_total, investors_total, token_operations_total, subscriptions_total,
                    subscribed_amount, confirmed_amount, investments_total, invested_amount,
                    wallet_transactions_total, wallet_volume)
                   is distinct from
                   ((select count(*) from public.users), (select count(*) from public.projects),
                    (select count(*) from public.investors), (select count(*) from public.token_operations),
                    (select count(*) from public.subscriptions), (select sum(amount) from public.subscriptions),
                    (select sum(amount) from public.subscriptions where status = 'confirmed'),
                    (select count(*) from public.investments), (select sum(amount) from public.investments),
                    (select count(*) from public.wallet_transactions),
                    (select sum(amount) from public.wallet_transactions))
            """
        ).fetchall()
        assert wrong == []
        rows = connection.execute("select sum(n_live_tup) from pg_stat_user_tables").fetchone()
        logged = connection.execute("select (select count(*) from audit_logs) + (select count(*) from activity_log)")
        assert rows is not None
        assert rows[0] > 3000
        assert logged.fetchone() == (0,)
        # A no-op UPDATE of everything that is derived derives the same again.
        connection.execute("create temp table derived as select id, search from public.projects")
        connection.execute("insert into derived select id, search from public.documents where signed_at is null")
        connection.execute("update public.projects set name = name")
        connection.execute("update public.documents set title = title || ' ' where signed_at is null")
        again = "(select id, search from public.projects union all select id, search from public.documents)"
        differing = f"select from derived d join {again} n using (id) where d.search <> n.search"
        assert connection.execute(differing).fetchall() == []  # type: ignore[arg-type]


def test_the_same_seed_makes_the_same_rows(dsn: str) -> None:
    async def lay() -> str:
        async with connect(dsn) as db, db.transaction():
            await create_legacy_application(db, seed=11)
            digest = await db.value(
                b"select md5(string_agg(i::text || t.balance, '' order by i))"
                b" from (select id as i, balance from public.wallets) t"
            )
            await db.run(b"drop schema auth cascade")
            await db.run(b"drop schema public cascade")
            await db.run(b"create schema public")
        return digest

    assert asyncio.run(lay()) == asyncio.run(lay())


REFUSED = {
    "a project does not go back to draft": (
        "update projects set status = 'draft' where status = 'active'",
        errors.CheckViolation,
    ),
    "cancelled is final": (
        "update subscriptions set status = 'confirmed' where status = 'cancelled'",
        errors.CheckViolation,
    ),
    "a confirmed subscription with open investments stays": (
        "update subscriptions s set status = 'cancelled' where status = 'confirmed'"
        " and exists (select from investments i where i.subscription_id = s.id and i.status = 'open')",
        errors.RestrictViolation,
    ),
    "an investor with open investments stays": (
        "delete from investors where id in (select investor_id from investments where status = 'open')",
        errors.RestrictViolation,
    ),
    "supply does not fall below what is allocated": (
        "update tokens set total_supply = allocated_supply - 1 where allocated_supply > 0",
        errors.CheckViolation,
    ),
    "no more is allocated than there is": (
        "insert into token_allocations (token_id, investor_id, amount)"
        " select t.id, i.id, t.total_supply from tokens t, investors i where t.allocated_supply > 0 limit 1",
        errors.CheckViolation,
    ),
    "no more is redeemed than the wallets hold": (
        "insert into redemptions (token_id, investor_id, amount)"
        " select t.id, w.investor_id, w.balance + 1 from tokens t, wallets w limit 1",
        errors.CheckViolation,
    ),
    "no more is taken from a wallet than it holds": (
        "insert into wallet_transactions (wallet_id, direction, amount) select id, 'debit', balance + 1 from wallets",
        errors.CheckViolation,
    ),
    "a signed document stays": ("delete from documents where signed_at is not null", errors.RestrictViolation),
    "a signed document is not edited": (
        "update documents set title = 'x' where signed_at is not null",
        errors.RestrictViolation,
    ),
    "a paid distribution is not changed, at COMMIT": (
        "update distributions set amount = amount + 1 where status = 'paid'",
        errors.RestrictViolation,
    ),
}


@pytest.mark.parametrize("statement", REFUSED)
def test_the_rules_refuse(application: str, statement: str) -> None:
    text, error = REFUSED[statement]
    with psycopg.connect(application, autocommit=True, options="-c role=demo_app") as connection, pytest.raises(error):
        connection.execute(text)  # type: ignore[arg-type]
