-- What ORMs, frameworks and tools generate: Hasura, Carbonite (Ecto), PostGraphile, TypeORM, Prisma, Laravel, online schema
-- changes, and functions in C that tools bring along.

create table orders (id int primary key, state text, total numeric, updated_at timestamptz, created_by int, full_name text);

create function set_current_timestamp_updated_at() returns trigger as $$
declare
  _new record;
begin
  _new := new;
  _new."updated_at" = now();
  return _new;
end;
$$ language plpgsql;
-- = keep: changes-new|returns-another-row
create trigger "set_public_orders_updated_at" before update on orders
  for each row execute procedure set_current_timestamp_updated_at();

-- Hasura's event triggers: called a log, and a queue that the server works off.
create schema hdb_catalog;
create table hdb_catalog.event_log (
  id text default gen_random_uuid() primary key, schema_name text not null, table_name text not null, trigger_name text not null, payload jsonb not null,
  delivered boolean not null default false, error boolean not null default false, tries integer not null default 0,
  created_at timestamp default now(), locked timestamptz, next_retry_at timestamp, archived boolean not null default false
);
create function hdb_catalog.insert_event_log(schema_name text, table_name text, trigger_name text, op text, row_data json) returns text
  language plpgsql as $$
declare
  id text;
  payload json;
  session_variables json;
begin
  id := gen_random_uuid();
  session_variables := current_setting('hasura.user', true);
  payload := json_build_object('op', op, 'data', row_data, 'session_variables', session_variables);
  insert into hdb_catalog.event_log (id, schema_name, table_name, trigger_name, payload)
  values (id, schema_name, table_name, trigger_name, payload);
  return id;
end $$;
create function hdb_catalog."notify_hasura_order_changed_UPDATE"() returns trigger language plpgsql as $$
declare
  _old record;
  _new record;
  _data json;
begin
  if tg_op = 'UPDATE' then
    _old := row((select "e" from (select old."id", old."state") as "e"));
    _new := row((select "e" from (select new."id", new."state") as "e"));
  end if;
  _data := json_build_object('old', row_to_json(old), 'new', row_to_json(new));
  if (old."state" is distinct from new."state") then
    perform hdb_catalog.insert_event_log(cast(tg_table_schema as text), cast(tg_table_name as text), cast('order_changed' as text), tg_op, _data);
  end if;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: event_log holds schema, table, trigger and the row, and is a queue of web hooks (delivered, tries, locked).
create trigger "notify_hasura_order_changed_UPDATE" after update on orders
  for each row execute function hdb_catalog."notify_hasura_order_changed_UPDATE"();

-- Carbonite: changes belong to a transaction record, without which nothing may be written.
create schema carbonite_default;
create table carbonite_default.transactions (id bigserial primary key, xact_id xid8 not null unique default pg_current_xact_id(), meta jsonb default '{}');
create table carbonite_default.changes (
  id bigserial primary key, transaction_xact_id xid8, op text, table_prefix text, table_name text, table_pk text[], data jsonb, changed text[]
);
create table carbonite_default.triggers (table_prefix name, table_name name, primary_key_columns text[], excluded_columns text[], mode text);
create function carbonite_default.capture_changes() returns trigger language plpgsql as $$
declare
  trigger_row carbonite_default.triggers;
  change_row carbonite_default.changes;
begin
  select * into trigger_row from carbonite_default.triggers where table_prefix = tg_table_schema and table_name = tg_table_name;
  if trigger_row.mode = 'ignore' then
    return null;
  end if;
  change_row.op := lower(tg_op);
  change_row.table_name := tg_table_name;
  if tg_op = 'DELETE' then
    change_row.data := to_jsonb(old) - trigger_row.excluded_columns;
  else
    change_row.data := to_jsonb(new) - trigger_row.excluded_columns;
  end if;
  if not exists (select from carbonite_default.transactions where xact_id = pg_current_xact_id()) then
    raise exception '% on table %.% without prior INSERT into transactions', tg_op, tg_table_schema, tg_table_name
      using errcode = 'foreign_key_violation';
  end if;
  insert into carbonite_default.changes (transaction_xact_id, op, table_prefix, table_name, data)
  values (pg_current_xact_id(), change_row.op, tg_table_schema, change_row.table_name, change_row.data);
  return null;
end $$;
-- = keep: raises
-- Because: writes without a transaction record are refused.
create trigger capture_changes_into_carbonite_default after insert or update or delete on orders
  for each row execute function carbonite_default.capture_changes();

-- Timestamps and owners, as generators write them.
create function app_private_timestamps() returns trigger as $$
begin
  new.updated_at = (case when tg_op = 'UPDATE' and old.updated_at >= now() then old.updated_at + interval '1 millisecond' else now() end);
  return new;
end;
$$ language plpgsql volatile;
-- = keep: changes-new
create trigger _100_timestamps before insert or update on orders for each row execute procedure app_private_timestamps();
create function laravel_created_by() returns trigger as $f$
begin
  if new.created_by is null then
    new.created_by = nullif(current_setting('app.user_id', true), '')::integer;
  end if;
  return new;
end
$f$ language plpgsql;
-- = keep: changes-new
create trigger created_by before insert on orders for each row execute procedure laravel_created_by();
create table typeorm_order_history ("historyId" serial primary key, "action" text, "orderId" int, "state" text, "makeActiveAt" timestamp default now());
create function typeorm_order_history() returns trigger as $$
begin
  insert into "typeorm_order_history" ("action", "orderId", "state") values (tg_op, coalesce(new."id", old."id"), coalesce(new."state", old."state"));
  return coalesce(new, old);
end;
$$ language plpgsql;
-- = retire: appends-to-log
create trigger "typeorm_order_history_AIUD" after insert or update or delete on orders
  for each row execute procedure typeorm_order_history();
create table "AuditLog" ("id" serial primary key, "tableName" text, "recordId" text, "operation" text, "oldData" jsonb, "newData" jsonb,
  "createdAt" timestamp(3) default current_timestamp);
create function "prismaAudit"() returns trigger as $$
begin
  if tg_op = 'DELETE' then
    insert into "AuditLog" ("tableName", "recordId", "operation", "oldData") values (tg_table_name, old."id", tg_op, row_to_json(old));
    return old;
  end if;
  insert into "AuditLog" ("tableName", "recordId", "operation", "oldData", "newData")
  values (tg_table_name, new."id", tg_op, case when tg_op = 'UPDATE' then row_to_json(old) end, row_to_json(new));
  return new;
end;
$$ language plpgsql;
-- = retire: appends-to-log
create trigger "prismaAudit" after insert or update or delete on orders for each row execute procedure "prismaAudit"();

-- An online schema change keeps the new table in step until it is swapped in.
create table orders_new (like orders including all);
create function osc_orders_ins() returns trigger language plpgsql as $$
begin
  insert into orders_new values (new.*) on conflict (id) do nothing;
  return new;
end $$;
-- = defer: writes-other-table
-- Because: a copy of the row under its own key, for a table that takes over later; a conflict is passed over.
create trigger osc_orders_ins after insert on orders for each row execute function osc_orders_ins();
create table pgosc_at_orders_4fe3 (pgosc_audit_id bigserial, pgosc_op text, id int, state text, total numeric);
create function pgosc_orders() returns trigger language plpgsql as $$
begin
  if (tg_op = 'INSERT') then
    insert into pgosc_at_orders_4fe3 (pgosc_op, id, state, total) select 'INSERT', new.id, new.state, new.total;
    return new;
  elsif (tg_op = 'UPDATE') then
    insert into pgosc_at_orders_4fe3 (pgosc_op, id, state, total) select 'UPDATE', new.id, new.state, new.total;
    return new;
  elsif (tg_op = 'DELETE') then
    insert into pgosc_at_orders_4fe3 (pgosc_op, id, state, total) select 'DELETE', old.id, old.state, old.total;
    return new;
  end if;
end $$;
-- = defer: writes-other-table
-- Because: an audit table in name and shape, but of a schema change that is under way: a client replays its rows.
create trigger primary_pgosc_orders after insert or update or delete on orders for each row execute function pgosc_orders();
create function pgroll_up() returns trigger language plpgsql as $$
declare
  latest text := 'public_02_add_full_name';
begin
  if current_setting('search_path') <> latest then
    new."full_name" = (select 'order ' || new."id");
  end if;
  return new;
end $$;
-- = keep: changes-new
create trigger _pgroll_trigger_orders_full_name before insert or update on orders for each row execute function pgroll_up();

-- Functions in C that tools bring: stand-ins that the catalog shows as the tool does.
create schema _slony;
create schema repack;
create schema _timescaledb_functions;
create schema pgq;
create function _slony.logtrigger() returns trigger language c security definer as '$libdir/tcn', 'triggered_change_notification';
-- = review: other-language
-- Because: C. (Slony's: it replicates.)
create trigger _slony_logtrigger after insert or update or delete on orders
  for each row execute function _slony.logtrigger('_slony', '1', 'k');
create function repack.repack_trigger() returns trigger language c volatile strict security definer as '$libdir/tcn', 'triggered_change_notification';
-- = review: other-language
-- Because: C. (pg_repack's: a table is being rewritten at this moment.)
create trigger repack_trigger after insert or update or delete on orders
  for each row execute function repack.repack_trigger('id');
create function _timescaledb_functions.insert_blocker() returns trigger language c as '$libdir/tcn', 'triggered_change_notification';
-- = review: other-language
-- Because: C. (TimescaleDB's: it refuses rows in the root of a hypertable.)
create trigger ts_insert_blocker before insert on orders for each row execute function _timescaledb_functions.insert_blocker();
create function pgq.logutriga() returns trigger language c as '$libdir/tcn', 'triggered_change_notification';
-- = review: other-language
create trigger zzz_logutriga after insert or update or delete on orders for each row execute function pgq.logutriga('changes');

-- contrib, by name.
create extension insert_username;
create extension autoinc;
create extension refint;
create extension lo;
create sequence order_no;
create table line (id int primary key, order_id int, who text, no int, raster lo);
-- = keep: changes-new
create trigger line_who before insert or update on line for each row execute function insert_username(who);
-- = keep: changes-new
create trigger line_no before insert on line for each row execute function autoinc(no, order_no);
-- = keep: raises
create trigger line_order before insert or update on line for each row execute function check_primary_key('order_id', 'orders', 'id');
-- = keep: raises
create trigger line_orders before delete or update on orders
  for each row execute function check_foreign_key(1, 'restrict', 'id', 'line', 'order_id');
-- = keep
-- Because: large objects are unlinked with the row that holds them.
create trigger line_raster before update or delete on line for each row execute function lo_manage(raster);
