-- Audit logs in the styles seen in the wild. Before each trigger: the verdict that a careful person gives, and the rule.

create schema ext;
create extension hstore schema ext;

-- A generic versions table, filled through helper functions (as Supabase's audit extension does). ---------------------
create schema audit;
create table audit.record_version (
  id bigserial primary key,
  record_id uuid,
  old_record_id uuid,
  op text not null,
  ts timestamptz not null default now(),
  table_oid oid not null,
  table_schema name not null,
  table_name name not null,
  record jsonb,
  old_record jsonb
);
create function audit.key_columns(relation oid) returns text[] language sql stable set search_path = '' as $$
  select coalesce(array_agg(a.attname::text order by a.attnum), '{}')
    from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
   where i.indrelid = relation and i.indisprimary
$$;
create function audit.record_key(relation oid, keys text[], record jsonb) returns uuid language plpgsql stable as $$
begin
  if record is null then
    return null;
  end if;
  if keys = array[]::text[] then
    return gen_random_uuid();
  end if;
  return md5(relation::text || (select string_agg(record ->> k, ',') from unnest(keys) k))::uuid;
end $$;
create function audit.track() returns trigger language plpgsql security definer set search_path = '' as $$
declare
  keys text[] = audit.key_columns(tg_relid);
  record_new jsonb = to_jsonb(new);
  record_old jsonb = to_jsonb(old);
begin
  insert into audit.record_version (record_id, old_record_id, op, table_oid, table_schema, table_name, record, old_record)
  select audit.record_key(tg_relid, keys, record_new), audit.record_key(tg_relid, keys, record_old),
         tg_op, tg_relid, tg_table_schema, tg_table_name, record_new, record_old;
  return coalesce(new, old);
end $$;
create table audit.subject (id int primary key, name text);
-- = retire: appends-to-log
create trigger versions after insert or update or delete on audit.subject for each row execute function audit.track();

-- Logged actions in hstore, with complaints about being attached wrongly. -----------------------------------------------
create schema hs;
create table hs.logged_actions (
  event_id bigserial primary key,
  schema_name text not null,
  table_name text not null,
  session_user_name text,
  transaction_id bigint,
  client_addr inet,
  client_query text,
  action text not null check (action in ('I', 'D', 'U', 'T')),
  row_data ext.hstore,
  changed_fields ext.hstore,
  statement_only boolean not null
);
create function hs.if_modified() returns trigger language plpgsql security definer set search_path = pg_catalog, ext as $$
declare
  audit_row hs.logged_actions;
  h_old hstore;
  h_new hstore;
  excluded text[] = array[]::text[];
begin
  if tg_when <> 'AFTER' then
    raise exception 'hs.if_modified() may only run as an AFTER trigger';
  end if;
  audit_row = row(
    nextval('hs.logged_actions_event_id_seq'), tg_table_schema::text, tg_table_name::text, session_user::text,
    txid_current(), inet_client_addr(), current_query(), substring(tg_op, 1, 1), null, null, false
  );
  if not tg_argv[0]::boolean is distinct from 'f'::boolean then
    audit_row.client_query = null;
  end if;
  if tg_argv[1] is not null then
    excluded = tg_argv[1]::text[];
  end if;
  if (tg_op = 'UPDATE' and tg_level = 'ROW') then
    h_old = hstore(old.*) - excluded;
    audit_row.row_data = h_old;
    h_new = hstore(new.*) - excluded;
    audit_row.changed_fields = h_new - h_old;
    if audit_row.changed_fields = hstore('') then
      return null;
    end if;
  elsif (tg_op = 'DELETE' and tg_level = 'ROW') then
    audit_row.row_data = hstore(old.*) - excluded;
  elsif (tg_op = 'INSERT' and tg_level = 'ROW') then
    audit_row.row_data = hstore(new.*) - excluded;
  elsif (tg_level = 'STATEMENT' and tg_op in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')) then
    audit_row.statement_only = 't';
  else
    raise exception 'hs.if_modified(): unhandled case % %', tg_op, tg_level;
    return null;
  end if;
  insert into hs.logged_actions values (audit_row.*);
  return null;
end $$;
create table hs.account (id int primary key, name text, secret text);
-- = retire: appends-to-log
create trigger audit_row after insert or update or delete on hs.account
  for each row execute function hs.if_modified('true', '{secret}');
-- = retire: appends-to-log
create trigger audit_truncate after truncate on hs.account for each statement execute function hs.if_modified('true');

-- History and temporal tables. -------------------------------------------------------------------------------------------
create schema hist;
create table hist.price (id int primary key, amount numeric, valid_from timestamptz default now());
create table hist.price_history (like hist.price, valid_until timestamptz default now());
create function hist.keep_old() returns trigger language plpgsql as $$
begin
  insert into hist.price_history select old.*;
  return null;
end $$;
-- = retire: appends-to-log
create trigger history after update or delete on hist.price for each row execute function hist.keep_old();
create table hist.rate (id int primary key, amount numeric, version int default 1, valid_from timestamptz default now());
create table hist.rate_history (id int, amount numeric, version int, valid_from timestamptz, valid_until timestamptz);
create function hist.version_row() returns trigger language plpgsql as $$
begin
  insert into hist.rate_history values (old.id, old.amount, old.version, old.valid_from, now());
  new.version := old.version + 1;
  new.valid_from := now();
  return new;
end $$;
-- = keep: changes-new
create trigger versioning before update on hist.rate for each row execute function hist.version_row();

-- Statement triggers with transition tables, and without. ------------------------------------------------------------------
create schema stmt;
create table stmt.item (id int primary key, v text);
create table stmt.item_log (item_id int, op text, was jsonb, "is" jsonb, at timestamptz default clock_timestamp());
create function stmt.log_change() returns trigger language plpgsql as $$
begin
  insert into stmt.item_log (item_id, op, was, "is")
  select o.id, tg_op, to_jsonb(o), to_jsonb(n) from before_rows o join after_rows n using (id);
  return null;
end $$;
-- = retire: appends-to-log
create trigger changes after update on stmt.item
  referencing old table as before_rows new table as after_rows for each statement execute function stmt.log_change();
create function stmt.log_touch() returns trigger language plpgsql as $$
begin
  insert into stmt.item_log (op) values (tg_op || ' by ' || current_user);
  return null;
end $$;
-- = retire: appends-to-log
create trigger touches after insert or delete on stmt.item for each statement execute function stmt.log_touch();

-- Through helpers: an overloaded one, a dynamic one, one in SQL, a SQL-standard one, and two that call each other. ----------
create schema help;
create table help.thing (id int primary key, kind text, v int);
create table help.audit_trail (id bigserial primary key, what text, entity text, details jsonb, at timestamptz default now());
create function help.log(what text, entity text) returns void language plpgsql as $$
begin
  insert into help.audit_trail (what, entity) values (what, entity);
end $$;
create function help.log(what text, entity text, strict boolean) returns void language plpgsql as $$
begin
  if strict and entity is null then
    raise exception 'no entity';
  end if;
  insert into help.audit_trail (what, entity) values (what, entity);
end $$;
create function help.use_helper() returns trigger language plpgsql as $$
begin
  perform help.log('thing ' || lower(tg_op), coalesce(new.id, old.id)::text);
  return null;
end $$;
-- = retire: appends-to-log
create trigger helper after insert or update or delete on help.thing for each row execute function help.use_helper();
create function help.use_strict_helper() returns trigger language plpgsql as $$
begin
  perform help.log('thing', new.kind, true);
  return null;
end $$;
-- = keep: raises
create trigger strict_helper after insert on help.thing for each row execute function help.use_strict_helper();
create function help.use_lax_helper() returns trigger language plpgsql as $$
begin
  perform help.log('thing', new.kind, false);
  return null;
end $$;
-- = retire: appends-to-log
create trigger lax_helper after insert on help.thing for each row execute function help.use_lax_helper();
create function help.log_into(target regclass, entity text) returns void language plpgsql as $$
begin
  execute format('insert into %s (what, entity) values ($1, $2)', target) using 'change', entity;
end $$;
create function help.use_dynamic_helper() returns trigger language plpgsql as $$
begin
  perform help.log_into('help.audit_trail', new.id::text);
  return null;
end $$;
-- = retire: appends-to-log
create trigger dynamic_helper after update on help.thing for each row execute function help.use_dynamic_helper();
create function help.log_sql(what text, details jsonb) returns void language sql as $$
  insert into help.audit_trail (what, details) values (what, details)
$$;
create function help.use_sql_helper() returns trigger language plpgsql as $$
begin
  perform help.log_sql(tg_op, to_jsonb(new));
  return null;
end $$;
-- = retire: appends-to-log
create trigger sql_helper after update of v on help.thing for each row execute function help.use_sql_helper();
create function help.log_standard(what text) returns void language sql
begin atomic
  insert into help.audit_trail (what) values (what);
end;
create function help.use_standard_helper() returns trigger language plpgsql as $$
begin
  perform help.log_standard('deleted ' || old.id);
  return null;
end $$;
-- = retire: appends-to-log
create trigger standard_helper after delete on help.thing for each row execute function help.use_standard_helper();
create function help.ping(n int) returns void language plpgsql as $$
begin
  perform help.log('ping', n::text);
  if n > 0 then
    perform help.pong(n - 1);
  end if;
end $$;
create function help.pong(n int) returns void language plpgsql as $$
begin
  perform help.ping(n - 1);
end $$;
create function help.use_loop() returns trigger language plpgsql as $$
begin
  perform help.ping(new.v);
  return new;
end $$;
-- = retire: appends-to-log
create trigger mutual_recursion after insert on help.thing for each row execute function help.use_loop();

-- Dynamic SQL that can be resolved. ------------------------------------------------------------------------------------------
create schema dyn;
create table dyn.part (id int primary key, name text, price numeric);
create table dyn.part_history (id int, name text, price numeric);
create table dyn.column_audit (tbl text, col text, was text, "is" text);
create table dyn.board (n int);
create function dyn.named_after_table() returns trigger language plpgsql as $$
begin
  execute format('insert into %I.%I select ($1).*', tg_table_schema, tg_table_name || '_history') using old;
  return null;
end $$;
-- = retire: appends-to-log
create trigger named_after_table after update on dyn.part for each row execute function dyn.named_after_table();
create function dyn.column_by_column() returns trigger language plpgsql as $$
declare
  col record;
  was text;
  now_is text;
begin
  for col in select column_name from information_schema.columns where table_name = tg_table_name loop
    execute format('select ($1).%I::text, ($2).%I::text', col.column_name, col.column_name) using old, new into was, now_is;
    if was is distinct from now_is then
      insert into dyn.column_audit (tbl, col, was, "is") values (tg_table_name, col.column_name, was, now_is);
    end if;
  end loop;
  return new;
end $$;
-- = retire: appends-to-log
create trigger column_by_column after update on dyn.part for each row execute function dyn.column_by_column();
create function dyn.pasted() returns trigger language plpgsql as $$
declare
  stmt text := 'insert into dyn.column_audit (tbl, col, was) values (';
begin
  stmt := stmt || quote_literal(tg_table_name) || ', ' || quote_literal(new.name);
  stmt := stmt || ', ' || new.price || ')';
  execute stmt;
  return null;
end $$;
-- = retire: appends-to-log
create trigger pasted after insert on dyn.part for each row execute function dyn.pasted();
create function dyn.one_of_two() returns trigger language plpgsql as $$
declare
  target text;
begin
  if new.price > 10 then
    target := 'dyn.part_history';
  else
    target := tg_argv[0];
  end if;
  execute 'insert into ' || target || ' select $1.*' using new;
  return null;
end $$;
-- = retire: appends-to-log
create trigger one_of_two_logs after insert on dyn.part for each row execute function dyn.one_of_two('dyn.part_history');
-- = defer: writes-other-table
create trigger one_is_no_log after update on dyn.part for each row execute function dyn.one_of_two('dyn.board');
create function dyn.nested() returns trigger language plpgsql as $$
begin
  execute 'select dyn.write_down($1)' using to_jsonb(new);
  return null;
end $$;
create function dyn.write_down(details jsonb) returns void language plpgsql as $$
begin
  insert into dyn.column_audit (tbl, "is") values ('part', details::text);
end $$;
-- = retire: appends-to-log
create trigger nested after insert on dyn.part for each row execute function dyn.nested();

-- Before triggers, handlers, filters and odd names. ------------------------------------------------------------------------------
create schema odd;
create table odd."Order Items" (id int primary key, "Qty" int, kind text);
create table odd."Audit Log" (id bigserial, "Who" text, what jsonb);
create function odd.quoted() returns trigger language plpgsql as $$
begin
  INSERT INTO odd."Audit Log" ("Who", what) VALUES (current_user, jsonb_build_object('q', NEW."Qty"));
  RETURN NEW;
end $$;
-- = retire: appends-to-log
create trigger "Before And After" before insert or update on odd."Order Items" for each row execute function odd.quoted();
create function odd.given_row() returns trigger language plpgsql as $$
declare
  the_row odd."Order Items"%rowtype;
begin
  the_row := coalesce(new, old);
  insert into odd."Audit Log" (what) values (to_jsonb(the_row));
  return the_row;
end $$;
-- = retire: appends-to-log
create trigger returns_its_row before insert or delete on odd."Order Items" for each row execute function odd.given_row();
create function odd.shielded() returns trigger language plpgsql as $$
begin
  begin
    insert into odd."Audit Log" (what) values (to_jsonb(new));
  exception when others then
    raise warning 'no audit: %', sqlerrm;
  end;
  return null;
end $$;
-- = retire: appends-to-log
create trigger shielded after insert on odd."Order Items" for each row execute function odd.shielded();
create function odd.passes_on() returns trigger language plpgsql as $$
begin
  insert into odd."Audit Log" (what) values (to_jsonb(new));
  return null;
exception when unique_violation then
  raise;
end $$;
-- = retire: appends-to-log
create trigger passes_on after insert on odd."Order Items" for each row execute function odd.passes_on();
create function odd.interesting(kind text) returns boolean language sql immutable as $$ select kind like 'x%' $$;
-- = retire: appends-to-log
create trigger filtered after update on odd."Order Items"
  for each row when (odd.interesting(new.kind)) execute function odd.shielded();
create function odd.once() returns trigger language plpgsql as $$
begin
  insert into odd."Audit Log" (id, what) values (new.id, to_jsonb(new)) on conflict do nothing;
  return null;
end $$;
-- = retire: appends-to-log
create trigger logs_once after insert on odd."Order Items" for each row execute function odd.once();
create function odd.merely_talks() returns trigger language plpgsql as $$
begin
  raise notice 'row %', new.id;
  return null;
end $$;
-- = retire: has-no-effect
create trigger merely_talks after insert on odd."Order Items" for each row execute function odd.merely_talks();

-- One function for many tables, of which each takes its own branch. -----------------------------------------------------------
create schema shared;
create table shared.a (id int primary key, stamp timestamptz);
create table shared.b (id int primary key, stamp timestamptz);
create table shared.c (id int primary key, stamp timestamptz);
create table shared.change_log (t text, id int);
create function shared.everything() returns trigger language plpgsql as $$
begin
  if tg_table_name = 'a' then
    insert into shared.change_log values (tg_table_name, new.id);
    return new;
  elsif tg_table_name = 'b' then
    new.stamp := now();
    return new;
  end if;
  case tg_argv[0]
    when 'forbid' then raise exception 'no';
    when 'tell' then perform pg_notify('c', new.id::text);
    else insert into shared.change_log values (tg_table_name, new.id);
  end case;
  return new;
end $$;
-- = retire: appends-to-log
create trigger everything before insert on shared.a for each row execute function shared.everything();
-- = keep: changes-new
create trigger everything before insert on shared.b for each row execute function shared.everything();
-- = keep: raises
create trigger forbids before insert on shared.c for each row execute function shared.everything('forbid');
-- = defer: notifies
create trigger tells before insert on shared.c for each row execute function shared.everything('tell');
-- = retire: appends-to-log
create trigger logs before insert on shared.c for each row execute function shared.everything('log');

-- Logs that are protected, pruned, shown. -----------------------------------------------------------------------------------------
create schema prot;
create table prot.doc (id int primary key, body text);
create table prot.doc_log (id bigserial primary key, doc_id int, at timestamptz default now());
create function prot.refuse() returns trigger language plpgsql as $$
begin
  raise exception 'the log is append-only';
end $$;
-- = keep: raises
create trigger immutable before update or delete on prot.doc_log for each row execute function prot.refuse();
create function prot.log_doc() returns trigger language plpgsql as $$
begin
  insert into prot.doc_log (doc_id) values (new.id);
  delete from prot.doc_log where at < now() - interval '90 days';
  return null;
end $$;
create view prot.recent as select * from prot.doc_log where at > now() - interval '1 day';
create function prot.page(doc int) returns setof prot.doc_log language sql stable as $$
  select * from prot.doc_log where doc_id = doc order by at desc
$$;
-- = keep: enforced-target
create trigger prunes after insert on prot.doc for each row execute function prot.log_doc();
create function prot.log_doc_only() returns trigger language plpgsql as $$
begin
  insert into prot.doc_log (doc_id) values (new.id);
  return null;
end $$;
-- = retire: appends-to-log
create trigger logs after update on prot.doc for each row execute function prot.log_doc_only();
create table prot.visit_log (doc_id int, at timestamptz default now());
create function prot.log_visit() returns trigger language plpgsql as $$
begin
  insert into prot.visit_log (doc_id) values (new.id);
  delete from prot.visit_log where at < now() - interval '90 days';
  return null;
end $$;
-- = retire: appends-to-log
create trigger visits after insert on prot.doc for each row execute function prot.log_visit();

-- A partitioned table: its trigger counts once, and row triggers see the partition's name. ------------------------------------
create schema part;
create table part.measure (id int, day date, v int, primary key (id, day)) partition by range (day);
create table part.measure_1 partition of part.measure for values from ('2020-01-01') to ('2021-01-01');
create table part.measure_2 partition of part.measure for values from ('2021-01-01') to ('2022-01-01');
create table part.measure_log (id int, t text, at timestamptz default now()) partition by range (at);
create table part.measure_log_1 partition of part.measure_log default;
create function part.log_measure() returns trigger language plpgsql as $$
begin
  insert into part.measure_log (id, t) values (new.id, tg_table_name);
  return null;
end $$;
-- = retire: appends-to-log
create trigger log_measure after insert on part.measure for each row execute function part.log_measure();
create function part.log_by_name() returns trigger language plpgsql as $$
begin
  execute format('insert into part.%I (id) values ($1)', tg_table_name || '_log') using new.id;
  return null;
end $$;
-- = review: unknown-table
create trigger log_by_name after update on part.measure for each row execute function part.log_by_name();
