-- History tables, a table each and for all; temporal tables; archives of what was deleted; Envers-like revisions.

create extension btree_gist;

-- One history table a table. ---------------------------------------------------------------------------------------------
create table price (id int primary key, sku text, amount numeric, valid_from timestamptz default now());
create table price_history (id int, sku text, amount numeric, valid_from timestamptz, valid_to timestamptz default now());
create function price_to_history() returns trigger language plpgsql as $$
begin
  insert into price_history (id, sku, amount, valid_from) values (old.id, old.sku, old.amount, old.valid_from);
  if tg_op = 'DELETE' then
    return old;
  end if;
  return new;
end $$;
-- = retire: appends-to-log
-- Because: BEFORE, and yet it hands on the very row that it was given.
create trigger price_to_history before update or delete on price for each row execute function price_to_history();
create view price_as_of as
  select id, sku, amount, valid_from, null::timestamptz as valid_to from price
  union all select id, sku, amount, valid_from, valid_to from price_history;

-- Slowly changing dimension: the last history row is closed, and a new one opened.
create table employee (id int primary key, dept text, salary numeric);
create table employee_history (id int, dept text, salary numeric, valid_from timestamptz default now(), valid_to timestamptz);
create function employee_scd2() returns trigger language plpgsql as $$
begin
  update employee_history set valid_to = now() where id = coalesce(new.id, old.id) and valid_to is null;
  if tg_op <> 'DELETE' then
    insert into employee_history (id, dept, salary) values (new.id, new.dept, new.salary);
  end if;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: rows of the history are updated (valid_to), so that it is no log but a table with a present: where valid_to is null.
create trigger employee_scd2 after insert or update or delete on employee for each row execute function employee_scd2();

-- System versioning in PL/pgSQL, with a period in the row itself.
create table subscription (id int primary key, plan text, sys_period tstzrange not null default tstzrange(current_timestamp, null));
create table subscription_history (like subscription);
create function versioning() returns trigger language plpgsql as $$
declare
  sys_period text := tg_argv[0];
  history_table text := tg_argv[1];
  adjust boolean := tg_argv[2];
  lower_bound timestamptz;
begin
  if tg_when <> 'BEFORE' or tg_level <> 'ROW' then
    raise trigger_protocol_violated using message = 'function "versioning" must be fired BEFORE ROW';
  end if;
  if tg_op in ('UPDATE', 'DELETE') then
    execute format('select lower($1.%I)', sys_period) into lower_bound using old;
    if lower_bound > current_timestamp and not adjust then
      raise data_exception using message = 'the system period would end before it begins';
    end if;
    execute format('insert into %s select ($1).id, ($1).plan, tstzrange($2, current_timestamp)', history_table)
      using old, lower_bound;
  end if;
  if tg_op in ('INSERT', 'UPDATE') then
    new := jsonb_populate_record(new, jsonb_build_object(sys_period, tstzrange(current_timestamp, null)));
    return new;
  end if;
  return old;
end $$;
-- = keep: changes-new
-- Because: the period in the row itself is set by it.
create trigger versioning before insert or update or delete on subscription
  for each row execute function versioning('sys_period', 'subscription_history', 'true');

-- The extension's own, in C: a stand-in that the catalog shows as the extension does.
create table contract (id int primary key, body text, sys_period tstzrange default tstzrange(current_timestamp, null));
create table contract_history (like contract);
create schema temporal;
create function temporal.versioning() returns trigger language c as '$libdir/tcn', 'triggered_change_notification';
-- = review: other-language
-- Because: C, and nothing in the catalog says what it does.
create trigger versioning before insert or update or delete on contract
  for each row execute function temporal.versioning('sys_period', 'contract_history', 'true');

-- Bitemporal: the history itself refuses what overlaps.
create table rate (id int primary key, product text, during daterange, rate numeric);
create table rate_history (product text, during daterange, rate numeric, exclude using gist (product with =, during with &&));
create function rate_to_history() returns trigger language plpgsql as $$
begin
  insert into rate_history (product, during, rate) values (new.product, new.during, new.rate);
  return null;
end $$;
-- = keep: enforced-target
-- Because: the exclusion constraint of the history is what refuses overlapping rates; rate itself has none.
create trigger rate_to_history after insert on rate for each row execute function rate_to_history();

-- History with the number of the version, unique per row, counted in the row.
create table policy_doc (id int primary key, body text, version int not null default 1);
create table policy_doc_history (id int, version int, body text, primary key (id, version));
create function policy_doc_version() returns trigger language plpgsql as $$
begin
  insert into policy_doc_history (id, version, body) values (old.id, old.version, old.body);
  new.version = old.version + 1;
  return new;
end $$;
-- = keep: changes-new
create trigger policy_doc_version before update on policy_doc for each row execute function policy_doc_version();

-- One table for what was deleted from any other.
create table deleted_record (
  id uuid primary key default gen_random_uuid(), deleted_at timestamptz not null default now(), original_table varchar(200) not null,
  original_id text not null, data jsonb not null
);
create table customer (id int primary key, name text);
create function deleted_record_insert() returns trigger language plpgsql as $$
begin
  execute 'insert into deleted_record (data, original_id, original_table) values ($1, $2, $3)'
    using to_jsonb(old.*), old.id::text, tg_table_name;
  return old;
end $$;
-- = retire: appends-to-log
-- Because: what was deleted, whole, with its table: the store has that.
create trigger deleted_record_insert after delete on customer for each row execute function deleted_record_insert();

-- An archive from which rows come back.
create table voucher (id int primary key, code text, amount numeric);
create table voucher_archive (id int, code text, amount numeric, archived_at timestamptz default now());
create function archive_voucher() returns trigger language plpgsql as $$
begin
  insert into voucher_archive (id, code, amount) values (old.id, old.code, old.amount);
  return old;
end $$;
create function restore_voucher(which int) returns void language plpgsql as $$
begin
  insert into voucher (id, code, amount) select a.id, a.code, a.amount from voucher_archive a where a.id = which;
  delete from voucher_archive where id = which;
end $$;
-- = defer: writes-other-table
-- Because: restore_voucher() takes rows back out of the archive: it is a waste-paper basket, no log.
create trigger archive_voucher after delete on voucher for each row execute function archive_voucher();

-- Revisions as Hibernate Envers numbers them.
create table revinfo (rev bigserial primary key, revtstmp bigint);
create table product (id int primary key, name text, stock int);
create table product_aud (id int not null, rev bigint not null references revinfo, revtype smallint, name text, stock int,
  primary key (id, rev));
create function product_aud_fn() returns trigger language plpgsql as $$
declare
  r bigint;
begin
  insert into revinfo (revtstmp) values (extract(epoch from clock_timestamp()) * 1000) returning rev into r;
  insert into product_aud (id, rev, revtype, name, stock)
  values (coalesce(new.id, old.id), r, case tg_op when 'INSERT' then 0 when 'UPDATE' then 1 else 2 end, new.name, new.stock);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: both tables are appended to by nobody else, and only the history refers to its own revision.
create trigger product_aud after insert or update or delete on product for each row execute function product_aud_fn();

-- Statement-level history, and one with its own sequence and a unique number from it.
create table sensor (id int primary key, v numeric);
create table sensor_history (seq bigint generated always as identity, id int, v numeric, at timestamptz default clock_timestamp());
create function sensor_statement() returns trigger language plpgsql as $$
begin
  insert into sensor_history (id, v) select d.id, d.v from deleted d;
  return null;
end $$;
-- = retire: appends-to-log
create trigger sensor_statement after delete on sensor
  referencing old table as deleted for each statement execute function sensor_statement();
create function sensor_own_row() returns trigger language plpgsql as $$
begin
  insert into sensor_history (id, v) select s.id, s.v from sensor s where s.id = new.id;
  return null;
end $$;
-- = retire: appends-to-log
-- Because: it reads the row back from its own table, which the change in the WAL holds as well.
create trigger sensor_own_row after insert or update on sensor for each row execute function sensor_own_row();

-- The history of a partition alone, and of a partitioned table by day.
create table meter (id int, day date, v int, primary key (id, day)) partition by range (day);
create table meter_2024 partition of meter for values from ('2024-01-01') to ('2025-01-01');
create table meter_2025 partition of meter for values from ('2025-01-01') to ('2026-01-01');
create table meter_audit (id int, day date, v int, op text, at timestamptz default now()) partition by range (at);
create table meter_audit_default partition of meter_audit default;
create function meter_to_audit() returns trigger language plpgsql as $$
begin
  insert into meter_audit (id, day, v, op) values (new.id, new.day, new.v, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
create trigger meter_to_audit after insert or update on meter for each row execute function meter_to_audit();
-- = retire: appends-to-log
-- Because: on one partition only; its changes are in the WAL as well.
create trigger meter_only_2025 after update on meter_2025 for each row execute function meter_to_audit();

-- A history whose next row depends on the last one.
create table mailbox (id int primary key, state text);
create table mailbox_history (id int, state text, previous text, at timestamptz default clock_timestamp());
create function mailbox_if_new() returns trigger language plpgsql as $$
declare
  last text;
begin
  select h.state into last from mailbox_history h where h.id = new.id order by h.at desc limit 1;
  if last is distinct from new.state then
    insert into mailbox_history (id, state, previous) values (new.id, new.state, last);
  end if;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: it reads what it wrote before, and decides by that whether to write.
create trigger mailbox_if_new after insert or update on mailbox for each row execute function mailbox_if_new();
