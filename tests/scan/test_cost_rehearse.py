"""A rehearsal fills a schema with rows that its constraints take, and measures every trigger of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest

from afterwrite.demo.schema import TABLES
from afterwrite.postgres import connect, script
from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Event, read_inventory
from afterwrite.scan.cost.figures import Costs, Measured, Origin
from afterwrite.scan.cost.fill import Filled, Filler, with_parents
from afterwrite.scan.cost.reckon import reckon
from afterwrite.scan.cost.rehearse import rehearse
from afterwrite.scan.survey import Survey, survey

ZOO = """
create type mood as enum ('calm', 'cross');
create type place as (street text, number integer);
create domain percentage as integer check (value between 0 and 100);
create domain postcode as text check (value ~ '^[0-9]{5}$');
create domain short_code as postcode check (value like '1%');

create table country (code char(2) primary key, name varchar(30) not null unique, check (code = upper(code)));
create table customer (
  id bigint generated always as identity primary key,
  country char(2) not null references country,
  email text not null unique check (email ~* '^[^@[:space:]]+@[^@[:space:]]+[.][a-z]{2,}$'),
  kind text not null check (kind in ('person', 'company')),
  company text, born date check (born < current_date and born > '1900-01-01'),
  score percentage not null, code short_code not null, mood mood not null, home place, tags varchar(12)[] not null,
  colour text not null check (colour ~ '^#[0-9a-f]{6}$'), pin text not null check (length(pin) = 6),
  shout text generated always as (upper(email)) stored,
  balance numeric(6, 2) not null check (balance >= -50 and balance < 100),
  check ((kind = 'company') = (company is not null))
);
create table room (id serial primary key, during tstzrange not null, seats smallint not null,
  exclude using gist (during with &&), check (seats > 0 and seats % 2 = 0));
create table booking (
  customer_id bigint not null references customer, room_id integer not null references room,
  starts timestamptz not null, ends timestamptz not null, check (ends > starts),
  primary key (customer_id, room_id)
);
create table booking_note (customer_id bigint, room_id integer, note text not null, data jsonb not null,
  foreign key (customer_id, room_id) references booking, check (data ? 'title' and jsonb_typeof(data) = 'object'));
create table employee (id uuid primary key default gen_random_uuid(), boss uuid references employee, rank int not null);
create table profile (customer_id bigint primary key references customer on delete cascade, bio text);
create table egg (id int primary key, hen int not null);
create table hen (id int primary key, egg int references egg);
alter table egg add foreign key (hen) references hen;
create table reading (sensor text not null, at date not null, value double precision, primary key (sensor, at))
  partition by range (at);
create table reading_2031 partition of reading for values from ('2031-01-01') to ('2032-01-01');
create table reading_2032 partition of reading for values from ('2032-01-01') to ('2033-01-01');
create table region (name text not null, amount int not null) partition by list (name);
create table region_north partition of region for values in ('north', 'far north');
create table kinds (
  b bytea not null, bi bit(5) not null, vb varbit not null, m money not null, i inet not null, c cidr not null,
  mac macaddr not null, x xml, j json not null, ts tsvector not null, p point not null, r int4range not null,
  mr int4multirange not null, iv interval not null, t time not null, tz timetz not null, l pg_lsn not null,
  o oid not null, f real not null, n name not null, q "char" not null, ar integer[][] not null, bx box not null
);
create table impossible (id int primary key, a int not null check (a > 5 and a < 3));
create table orphan (id int primary key, of_impossible int not null references impossible);
"""


async def fill(dsn: str) -> dict[str, Filled]:
    async with connect(dsn) as db:
        await db.script(ZOO)
        inventory = await read_inventory(db)
        atlas = Atlas(inventory)
        filler = Filler(db, atlas, {}, deadline=time.monotonic() + 60)
        tables = with_parents(atlas, inventory.tables)
        await filler.learn(tables)
        return {table.name: await filler.fill(table) for table in filler.in_order(tables)}


def test_rows_satisfy_types_and_constraints_and_what_cannot_be_filled_is_said(dsn: str) -> None:
    filled = asyncio.run(fill(dsn))
    assert {name: each.why for name, each in filled.items() if not each.rows} == {
        "impossible": "no values were found that meet its conditions",
        "orphan": "it needs a row of public.impossible, which has none",
    }
    few = {name: each.rows for name, each in filled.items() if each.rows < 10}
    assert few == {"impossible": 0, "orphan": 0}


async def rehearsed(dsn: str, text: str) -> tuple[Survey, Measured, Costs]:
    async with connect(dsn) as db:
        await db.script(text)
        found = await survey(db)
        measured = await rehearse(db, found)
        return found, measured, reckon(found, measured=[measured])


SLOW = """
create table audit_log (id bigserial primary key, tab text not null, op text not null, old_row jsonb, new_row jsonb);
create table customer (id int primary key, name text not null, seen int not null default 0, note text);
create table invoice (id bigserial primary key, customer_id int not null references customer,
  amount numeric(9,2) not null, status text not null default 'open' check (status in ('open', 'paid', 'void')));
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
create function count_paid() returns trigger language plpgsql as $$ begin
  update customer set seen = seen + 1 where id = new.customer_id;
  return null;
end $$;
create trigger customer_log after insert or update or delete on customer for each row execute function log_change();
create trigger customer_tidy before insert or update on customer for each row execute function tidy();
create trigger invoice_log after insert or update on invoice for each row execute function log_slowly();
create trigger invoice_paid after update of status on invoice for each row
  when (old.status is distinct from new.status and new.status = 'paid') execute function count_paid();
"""


def test_a_slow_trigger_is_first_with_about_its_time_and_each_has_its_wal_and_rows(dsn: str) -> None:
    _, measured, costs = asyncio.run(rehearsed(dsn, SLOW))
    assert not measured.findings
    first = costs.triggers[0]
    assert first.trigger == "public.invoice.invoice_log"
    assert first.us is not None
    assert 2_000 < first.us < 5_000
    assert first.us_from is Origin.REHEARSE
    assert first.time_share is not None
    assert first.time_share > 0.5
    units = {(unit.trigger, unit.event): unit for unit in measured.units}
    # A log row costs WAL and a row; a trigger that only changes NEW costs neither.
    logged = units["public.customer.customer_log", Event.UPDATE]
    assert logged.rows == 1
    assert logged.wal is not None
    assert 200 < logged.wal < 2_000
    tidied = units["public.customer.customer_tidy", Event.INSERT]
    assert tidied.rows == 0
    assert tidied.wal is not None
    assert tidied.wal < 50
    # WHEN asks for another status than the filled-in rows have: it is looked for. It sets customer_log off in turn.
    paid = units["public.invoice.invoice_paid", Event.UPDATE]
    assert paid.apart
    assert paid.rows == 2
    assert {saving.verdicts[-1].value for saving in costs.savings} == {"retire", "defer"}
    retire = costs.savings[0]
    assert retire.time_low is not None
    assert retire.time_high is not None
    assert 0 < retire.time_low <= retire.time_high < 0.5  # whether a log that dawdles is still a log is for the rules
    assert retire.wal_low is not None
    assert 0.2 < retire.wal_low < 1


def test_nothing_of_a_rehearsal_but_the_rows_that_it_filled_in_stays(dsn: str) -> None:
    async def counts() -> Mapping[str, int]:
        async with connect(dsn) as db:
            names = ("customer", "invoice", "audit_log")
            return {name: await db.value(f"select count(*) from {name}".encode()) for name in names}

    asyncio.run(rehearsed(dsn, SLOW))
    assert set(asyncio.run(counts()).values()) == {40}


PICKY = """
create table log (id bigserial primary key, what text);
create table guarded (id int primary key, state text not null);
create table never (id int primary key check (id < 0 and id > 0));
create function no() returns trigger language plpgsql as $$ begin raise exception 'guarded is closed'; end $$;
create function note() returns trigger language plpgsql as $$ begin
  insert into log (what) values (tg_table_name); return null;
end $$;
create trigger guarded_no before insert on guarded for each row execute function no();
create trigger guarded_note after insert or update on guarded for each row execute function note();
create trigger guarded_off after delete on guarded for each row execute function note();
alter table guarded disable trigger guarded_off;
create trigger never_note after insert on never for each row execute function note();
"""


def test_what_could_not_be_measured_is_said_with_the_servers_words(dsn: str) -> None:
    _, measured, costs = asyncio.run(rehearsed(dsn, PICKY))
    said = {finding.where: finding.text for finding in measured.findings}
    assert said["public.never"].startswith("public.never could not be filled")
    assert said["public.guarded.guarded_no"] == "public.guarded.guarded_no refused every INSERT: guarded is closed"
    # What one refuses is measured for the others without it.
    assert {(unit.trigger, unit.event) for unit in measured.units} == {
        ("public.guarded.guarded_note", Event.INSERT),
        ("public.guarded.guarded_note", Event.UPDATE),
    }
    off = next(each for each in costs.triggers if each.name == "guarded_off")
    assert off.us is None
    assert not off.calls


@pytest.mark.acceptance
def test_the_legacy_application_is_filled_and_measured_as_a_whole(dsn: str) -> None:
    async def legacy() -> tuple[Survey, Measured]:
        async with connect(dsn) as db:
            for part in ("schema", "rules", "activity"):
                await db.script(script(f"demo/{part}"))
            found = await survey(db)
            return found, await rehearse(db, found)

    found, measured = asyncio.run(legacy())
    assert not [finding for finding in measured.findings if finding.rule == "rehearsal-not-filled"]
    assert {cost.table for cost in measured.statements} == {f"public.{table}" for table in TABLES}
    known = {unit.trigger for unit in measured.units}
    unknown = {judgement.trigger.name for judgement in found.judgements if judgement.trigger.identity not in known}
    # Its WHEN is an arithmetic riddle over five columns, old and new.
    assert unknown <= {"bulk_operations_finished"}
    costs = reckon(found, measured=[measured])
    assert costs.weights is Origin.ALIKE
    both = costs.savings[-1]
    assert both.time_low is not None
    assert both.time_low > 0.3


ENDLESS = """
create table log (id bigserial primary key, what text);
create table swamp (id int primary key, name text not null);
create function sink() returns trigger language plpgsql as $$ begin loop perform 1; end loop; end $$;
create trigger swamp_sink before insert on swamp for each row execute function sink();
create function slow_check(text) returns boolean language plpgsql as $$ begin perform pg_sleep(60); return true; end $$;
create table bog (id int primary key, name text not null check (slow_check(name)));
create trigger bog_sink before insert on bog for each row execute function sink();
"""


def test_triggers_and_checks_that_never_end_do_not_hold_it_up(dsn: str) -> None:
    async def run() -> Measured:
        async with connect(dsn) as db:
            await db.script(ENDLESS)
            return await rehearse(db, await survey(db), seconds=4)

    measured = asyncio.run(run())
    assert measured.seconds < 25
    assert not measured.units
    assert measured.findings
