create schema auth;
create function auth.uid() returns uuid language sql stable as $$
  select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid
$$;
create extension hstore;
create schema audit;
create schema "Odd Log";
create table public.users (id int primary key, name text, status text, note jsonb);

-- One row a change, with both images.
create table public.audit_logs (
  id bigserial primary key, table_name text not null, record_id text, operation text not null, old_data jsonb,
  new_data jsonb, changes jsonb, user_id uuid, ip_address inet, created_at timestamptz not null default now()
);
create function public.audit() returns trigger language plpgsql as $$
begin
  insert into audit_logs (table_name, record_id, operation, old_data, new_data, user_id, ip_address)
  values (tg_table_name, coalesce(to_jsonb(new) ->> 'id', to_jsonb(old) ->> 'id'), tg_op, to_jsonb(old), to_jsonb(new),
          auth.uid(), inet_client_addr());
  return null;
end $$;
create trigger audit after insert or update or delete on public.users for each row execute function public.audit();

-- Who did what, under a random key, with a time without a zone.
create table public.activity_log (
  id uuid primary key default gen_random_uuid(), actor_id uuid, action text, entity_type text, entity_id text,
  description text, details jsonb, created_at timestamp not null default now()
);
create index on public.activity_log (created_at);
create function public.tell() returns trigger language plpgsql as $$
begin
  insert into activity_log (actor_id, action, entity_type, entity_id, description, details)
  values (auth.uid(), 'user.' || lower(tg_op), 'user', new.id::text, new.name || ' came', jsonb_build_object('name', new.name));
  return null;
end $$;
create trigger tell after insert on public.users for each row execute function public.tell();

-- Copies of rows.
create table public.price (id int primary key, amount numeric, valid_from timestamptz default now());
create table public.price_history (like public.price, valid_until timestamptz default now(), hid bigserial primary key);
create function public.keep_old() returns trigger language plpgsql as $$
begin
  insert into public.price_history select old.*;
  return null;
end $$;
create function public.announce() returns trigger language plpgsql as $$
begin
  insert into public.activity_log (action, description) values ('price.new', 'price ' || new.id);
  return null;
end $$;
create trigger announce after insert on public.price for each row execute function public.announce();
create trigger history after update or delete on public.price for each row execute function public.keep_old();

-- What changed only, by the model's name and by words of its own (as Rails has it).
create table public.posts (id bigint primary key, title text);
create table public.versions (
  id bigserial primary key, item_type text not null, item_id bigint not null, event text not null, whodunnit text,
  object_changes jsonb, created_at timestamptz not null
);
create function public.versions_of_row() returns trigger language plpgsql as $$
begin
  insert into versions (item_type, item_id, event, whodunnit, object_changes, created_at)
  values ('Post', coalesce(new.id, old.id), case tg_op when 'INSERT' then 'create' when 'DELETE' then 'destroy' else 'update' end,
          current_setting('app.whodunnit', true),
          case tg_op when 'UPDATE' then jsonb_build_object('title', jsonb_build_array(old.title, new.title)) end, now());
  return null;
end $$;
create trigger versions after insert or update or delete on public.posts
  for each row execute function public.versions_of_row();

-- Names with capitals and blanks, and no trigger any more.
create table "Odd Log"."AuditLog" (
  "id" serial primary key, "tableName" text, "recordId" text, "operation" text, "oldData" json, "newData" json,
  "log" text, "createdAt" timestamp(3) not null default current_timestamp
);

-- Versions of every row, by a hash of its key.
create table audit.record_version (
  id bigserial primary key, record_id uuid, old_record_id uuid, op text not null, ts timestamptz not null default now(),
  table_oid oid not null, table_schema name not null, table_name name not null, record jsonb, old_record jsonb,
  auth_uid uuid default auth.uid()
);
create table public.documents (id bigint primary key, title text);
create function audit.track() returns trigger language plpgsql security definer set search_path = '' as $$
declare
  was jsonb = to_jsonb(old);
  becomes jsonb = to_jsonb(new);
begin
  insert into audit.record_version (record_id, old_record_id, op, table_oid, table_schema, table_name, record, old_record)
  select md5(becomes ->> 'id')::uuid, md5(was ->> 'id')::uuid, tg_op, tg_relid, tg_table_schema, tg_table_name, becomes, was;
  return coalesce(new, old);
end $$;
create trigger audit_i_u_d after insert or update or delete on public.documents for each row execute function audit.track();

-- The row and what changed in it, in hstore.
create table audit.logged_actions (
  event_id bigserial primary key, schema_name text not null, table_name text not null, relid oid not null,
  session_user_name text, action_tstamp_tx timestamptz not null, action_tstamp_clk timestamptz not null,
  transaction_id bigint, client_addr inet, client_query text, action text not null check (action in ('I', 'D', 'U', 'T')),
  row_data hstore, changed_fields hstore, statement_only boolean not null
);
create table public.account (id int primary key, name text, secret text);
create function audit.if_modified() returns trigger language plpgsql security definer set search_path = pg_catalog, public as $$
declare
  audit_row audit.logged_actions;
begin
  audit_row = row(
    nextval('audit.logged_actions_event_id_seq'), tg_table_schema::text, tg_table_name::text, tg_relid, session_user::text,
    current_timestamp, clock_timestamp(), txid_current(), inet_client_addr(), 'a query', substring(tg_op, 1, 1), null, null, false
  );
  if (tg_op = 'UPDATE' and tg_level = 'ROW') then
    audit_row.row_data = hstore(old.*);
    audit_row.changed_fields = hstore(new.*) - audit_row.row_data;
  elsif (tg_op = 'DELETE' and tg_level = 'ROW') then
    audit_row.row_data = hstore(old.*);
  elsif (tg_op = 'INSERT' and tg_level = 'ROW') then
    audit_row.row_data = hstore(new.*);
  end if;
  insert into audit.logged_actions values (audit_row.*);
  return null;
end $$;
create trigger audit_row after insert or update or delete on public.account
  for each row execute function audit.if_modified();

-- What happened.
set request.jwt.claims = '{"sub": "11111111-1111-1111-1111-111111111111"}';
set app.whodunnit = 'Ada';
insert into users select n, 'user ' || n, 'new', null from generate_series(1, 60) n;
update users set status = E'old\t"quoted"\\ \u00e4\n', note = '{"legacy": [1.50, null], "b": "\u2028"}' where id % 3 = 0;
delete from users where id % 10 = 0;
insert into price select n, n * 1.10 from generate_series(1, 5) n;
update price set amount = 7;
delete from price where id = 1;
insert into posts values (1, 'a'), (2, null);
update posts set title = 'b';
delete from posts where id = 2;
insert into documents select n, 'document ' || n from generate_series(1, 4) n;
update documents set title = title || '!' where id < 3;
delete from documents where id = 4;
insert into account values (1, 'a', 'x'), (2, 'b', null);
update account set name = 'c', secret = null where id = 1;
delete from account where id = 2;
insert into activity_log (action, details, created_at)
values ('user.sign_in', '{"legacy": "a word that is ours"}', '2026-03-29 02:30'), ('nightly', '[1, 2]', '2026-10-25 02:30'), (null, null, 'infinity');
insert into "Odd Log"."AuditLog" ("tableName", "recordId", "operation", "oldData", "newData", "log", "createdAt") values
  ('users', '1', 'INSERT', null, '{"id": 1,  "name": "twice", "name": "the last"}', null, '2024-02-29 12:00:00.123'),
  ('users', '1', 'UPDATE', '{"id": 1}', '{"id": 2}', 'a column called log', '1969-12-31 23:59:59.999'),
  (null, null, 'LOGIN', null, null, 'x', '2026-07-01 00:00');
-- Long ago, a day a few rows.
update audit_logs set created_at = date_trunc('day', now()) - interval '400 days' + id * interval '5 hours';
