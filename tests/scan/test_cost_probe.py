"""A probe runs real statements, leaves no row behind, and keeps off tables whose triggers a rollback does not undo."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from psycopg.conninfo import make_conninfo

from afterwrite.errors import Refused, UsageError
from afterwrite.postgres import Database, connect
from afterwrite.scan.catalog import Event
from afterwrite.scan.cost.figures import Measured, Origin
from afterwrite.scan.cost.measure import Switch
from afterwrite.scan.cost.probe import Plan, plan_probe, probe
from afterwrite.scan.cost.reckon import reckon
from afterwrite.scan.survey import Survey, survey

SCHEMA = """
create table audit_log (id bigserial primary key, tab text not null, op text not null, old_row jsonb, new_row jsonb);
create table customer (id int primary key, name text not null, seen int not null default 0);
create table invoice (id bigint generated always as identity primary key, customer_id int not null references customer,
  number text not null unique, amount numeric(9,2) not null,
  kind char(1) not null default 'a' check (kind in ('a', 'b')));
create function log_change() returns trigger language plpgsql as $$ begin
  insert into audit_log (tab, op, old_row, new_row) values (tg_table_name, tg_op, to_jsonb(old), to_jsonb(new));
  return null;
end $$;
create function log_slowly() returns trigger language plpgsql as $$ begin
  perform pg_sleep(0.002);
  insert into audit_log (tab, op, new_row) values (tg_table_name, tg_op, to_jsonb(new));
  return null;
end $$;
create function tidy() returns trigger language plpgsql as $$ begin new.name := btrim(new.name); return new; end $$;
create trigger customer_log after insert or update or delete on customer for each row execute function log_change();
create trigger customer_tidy before insert or update on customer for each row execute function tidy();
create trigger invoice_log after insert or update or delete on invoice for each row execute function log_slowly();
insert into customer select n, 'customer ' || n from generate_series(1, 5) n;
insert into invoice (customer_id, number, amount) select n, 'no ' || n, n from generate_series(1, 5) n;
truncate audit_log;
"""


async def contents(db: Database) -> list[str]:
    tables = ("customer", "invoice", "audit_log")
    texts = [
        await db.value(f"select string_agg(t::text, '|' order by t::text) from {name} t".encode()) for name in tables
    ]
    return [text or "" for text in texts]


async def planned(dsn: str, wanted: Sequence[str], anyway: Sequence[str] = (), text: str = "") -> Plan:
    async with connect(dsn) as db:
        await db.script(SCHEMA + text)
        return await plan_probe(db, await survey(db), wanted, anyway)


async def probed(
    dsn: str, *wanted: str, user: str | None = None, before: str = ""
) -> tuple[Survey, Plan, Measured, list[str], list[str]]:
    async with connect(dsn) as db:
        await db.script(SCHEMA + before)
        first = await contents(db)
        async with connect(make_conninfo(dsn, user=user) if user else dsn) as probing:
            found = await survey(probing)
            plan = await plan_probe(probing, found, wanted)
            measured = await probe(probing, found, plan)
        return found, plan, measured, first, await contents(db)


def test_a_probe_finds_the_slow_trigger_and_leaves_no_row(dsn: str) -> None:
    found, plan, measured, before, after = asyncio.run(probed(dsn, "invoice", "public.customer"))
    assert before == after
    assert {subject.switch for subject in plan.subjects} == {Switch.REPLICA}
    assert not measured.findings
    costs = reckon(found, measured=[measured])
    slow = costs.triggers[0]
    assert slow.trigger == "public.invoice.invoice_log"
    assert slow.us is not None
    assert 2_000 < slow.us < 6_000
    assert slow.us_from is Origin.PROBE
    units = {(unit.trigger, unit.event): unit for unit in measured.units}
    assert {event for trigger, event in units if trigger == slow.trigger} == {Event.INSERT, Event.UPDATE, Event.DELETE}
    # Only one of the two writes, so that all that both write is known to be its.
    logged = units["public.customer.customer_log", Event.UPDATE]
    assert (logged.rows, logged.shared_out) == (1, False)
    assert logged.wal is not None
    assert 150 < logged.wal < 2_000
    assert {(cost.event, cost.manner) for cost in measured.statements if cost.table == "public.invoice"} == {
        (Event.INSERT, ""),
        (Event.UPDATE, "changed"),
        (Event.UPDATE, "itself"),
        (Event.DELETE, ""),
    }


ROLES = """
do $$ begin create role afterwrite_owner login; exception when duplicate_object then null; end $$;
do $$ begin create role afterwrite_guest login; exception when duplicate_object then null; end $$;
grant usage, create on schema public to afterwrite_owner;
"""


def test_an_owner_who_may_not_pass_triggers_over_turns_them_off_one_by_one(dsn: str) -> None:
    text = ROLES + "".join(f"alter table {name} owner to afterwrite_owner;" for name in ("customer", "audit_log"))
    _, plan, measured, before, after = asyncio.run(probed(dsn, "customer", user="afterwrite_owner", before=text))
    assert before == after
    assert [subject.switch for subject in plan.subjects] == [Switch.ALTER]
    assert any("DISABLE TRIGGER" in sentence for sentence in plan.warning)
    units = {(unit.trigger, unit.event): unit for unit in measured.units}
    logged = units["public.customer.customer_log", Event.INSERT]
    assert (logged.rows, logged.shared_out) == (1, False)
    # invoice refers to customer: a row that it refers to is not deleted.
    assert ("public.customer.customer_log", Event.DELETE) not in units
    assert [finding.rule for finding in measured.findings] == ["probe-refused"]


def test_a_role_without_rights_is_told_what_it_would_need(dsn: str) -> None:
    _, _, measured, _, _ = asyncio.run(probed(dsn, "customer", user="afterwrite_guest", before=ROLES))
    assert not measured.units
    [finding] = measured.findings
    assert finding.remedy == "GRANT SELECT, INSERT, UPDATE, DELETE ON public.customer TO the role of the DSN"


def test_who_may_only_write_learns_times_but_not_the_wal_of_each(dsn: str) -> None:
    text = ROLES + "grant select, insert, update on customer to afterwrite_guest;"
    text += "grant insert on audit_log to afterwrite_guest;"
    text += "grant usage on all sequences in schema public to afterwrite_guest;"
    _, plan, measured, before, after = asyncio.run(probed(dsn, "customer", user="afterwrite_guest", before=text))
    assert before == after
    assert [subject.switch for subject in plan.subjects] == [Switch.NONE]
    assert {finding.rule for finding in measured.findings} == {"probe-without-off", "probe-not-allowed"}
    logged = next(unit for unit in measured.units if unit.event is Event.UPDATE and "log" in unit.trigger)
    assert logged.us.mid > 0
    assert logged.wal is None


DANGEROUS = {
    "http": ("perform http_post('http://example.org', '{}');", "calls http_post()"),
    "dblink": ("perform dblink_exec('dbname=x', 'delete from y');", "calls dblink_exec()"),
    "setval": ("perform setval('audit_log_id_seq', 1);", "sets a sequence"),
    "unknown": ("execute current_setting('app.statement');", "cannot be read in full"),
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_table_whose_triggers_act_outside_the_transaction_is_refused_unless_it_is_named(dsn: str, name: str) -> None:
    body, why = DANGEROUS[name]
    text = f"""
    create function danger() returns trigger language plpgsql as $$ begin {body} return null; end $$;
    create trigger danger after insert on audit_log for each row execute function danger();
    """
    # Not customer's own trigger: the one on the log that customer's writes.
    with pytest.raises(Refused) as caught:
        asyncio.run(planned(dsn, ["customer"], text=text))
    assert "public.audit_log.danger" in str(caught.value)
    assert why in str(caught.value)
    assert caught.value.remedy is not None
    assert "--probe-anyway public.customer" in caught.value.remedy


def test_a_table_that_is_named_is_probed_anyway_with_a_warning(dsn: str) -> None:
    text = """
    create function danger() returns trigger language plpgsql as $$ begin
      perform setval('audit_log_id_seq', 7); return null; end $$;
    create trigger danger after insert on customer for each row execute function danger();
    """
    plan = asyncio.run(planned(dsn, [], ["customer"], text=text))
    assert any("that is not undone" in sentence for sentence in plan.warning)


@pytest.mark.parametrize("name", ["nothing", "audit_log"])
def test_a_name_that_is_no_table_with_triggers_is_refused(dsn: str, name: str) -> None:
    with pytest.raises(UsageError, match="no table with triggers"):
        asyncio.run(planned(dsn, [name]))


def test_nobody_is_waited_for(dsn: str) -> None:
    async def run() -> Measured:
        async with connect(dsn) as db, connect(dsn) as other:
            await db.script(SCHEMA)
            found = await survey(db)
            plan = await plan_probe(db, found, ["customer"])
            async with other.transaction():
                await other.run(b"select from customer for update")
                return await probe(db, found, plan)

    [finding] = asyncio.run(run()).findings
    assert finding.rule == "probe-no-row"
