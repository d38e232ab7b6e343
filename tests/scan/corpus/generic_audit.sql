-- Audit in the style of the wiki's: one function for all tables, with arguments, exclusions, handlers, settings, shared
-- by tables and called in every way; and what goes wrong with it.

create extension hstore;
create schema audit;
create schema private;
create table audit.logged_actions (
  event_id bigserial primary key, schema_name text not null, table_name text not null, relid oid not null, session_user_name text,
  action_tstamp_tx timestamptz not null default transaction_timestamp(), action_tstamp_clk timestamptz not null default clock_timestamp(),
  transaction_id bigint, application_name text, client_addr inet, client_query text,
  action text not null check (action in ('I', 'D', 'U', 'T')), row_data jsonb, changed_fields jsonb, statement_only boolean not null default false
);
revoke all on audit.logged_actions from public;

create function audit.jsonb_minus(l jsonb, r jsonb) returns jsonb language sql immutable as $$
  select coalesce(jsonb_object_agg(e.key, e.value), '{}') from jsonb_each(l) e where not r @> jsonb_build_object(e.key, e.value)
$$;
create function audit.note_change() returns trigger language plpgsql security definer set search_path = pg_catalog, audit as $body$
declare
  entry audit.logged_actions;
  with_query boolean := true;
  skipped text[] := '{}';
begin
  if tg_when <> 'AFTER' then
    raise exception 'audit.note_change() may only be used AFTER, not %', tg_when;
  end if;
  entry.event_id := nextval('audit.logged_actions_event_id_seq');
  entry.schema_name := tg_table_schema;
  entry.table_name := tg_table_name;
  entry.relid := tg_relid;
  entry.session_user_name := session_user;
  entry.action_tstamp_tx := current_timestamp;
  entry.action_tstamp_clk := clock_timestamp();
  entry.transaction_id := txid_current();
  entry.application_name := current_setting('application_name');
  entry.client_addr := inet_client_addr();
  entry.client_query := current_query();
  entry.action := substring(tg_op from 1 for 1);
  entry.statement_only := false;
  if tg_argv[0] is not null then
    with_query := tg_argv[0]::boolean;
  end if;
  if not with_query then
    entry.client_query := null;
  end if;
  if tg_nargs > 1 then
    skipped := tg_argv[1]::text[];
  end if;
  case
    when tg_level = 'STATEMENT' then
      entry.statement_only := true;
    when tg_op = 'UPDATE' then
      entry.row_data := to_jsonb(old) - skipped;
      entry.changed_fields := audit.jsonb_minus(to_jsonb(new) - skipped, entry.row_data);
      if entry.changed_fields = '{}'::jsonb then
        return null;
      end if;
    when tg_op = 'DELETE' then
      entry.row_data := to_jsonb(old) - skipped;
    when tg_op = 'INSERT' then
      entry.row_data := to_jsonb(new) - skipped;
    else
      raise exception 'audit.note_change() cannot handle % %', tg_op, tg_level;
  end case;
  insert into audit.logged_actions values (entry.*);
  return null;
end $body$;
create table account (id int primary key, name text, password text, seen_at timestamptz);
-- = retire: appends-to-log
create trigger audit_trigger_row after insert or update or delete on account
  for each row execute function audit.note_change('true', '{password,seen_at}');
-- = retire: appends-to-log
create trigger audit_trigger_stm after truncate on account for each statement execute function audit.note_change('true');
create table setting (key text primary key, value text);
-- = retire: appends-to-log
create trigger audit_trigger_row after insert or update or delete on setting for each row execute function audit.note_change();
-- = keep: raises
-- Because: attached BEFORE, the function refuses every write; whoever did that meant something, or a mistake that is noticed.
create trigger audit_trigger_misplaced before delete on setting for each row execute function audit.note_change();
alter table setting disable trigger audit_trigger_misplaced;

-- An older one, with handlers that only warn.
create table audit.actions (schema_name text, table_name text, user_name text, tstamp timestamptz default now(), action char(1),
  original_data text, new_data text, query text);
create function audit.if_changed() returns trigger language plpgsql security definer set search_path = pg_catalog, audit as $$
declare
  v_old_data text;
  v_new_data text;
begin
  if (tg_op = 'UPDATE') then
    v_old_data := row(old.*);
    v_new_data := row(new.*);
    insert into audit.actions (schema_name, table_name, user_name, action, original_data, new_data, query)
    values (tg_table_schema::text, tg_table_name::text, session_user::text, substring(tg_op, 1, 1), v_old_data, v_new_data, current_query());
    return new;
  elsif (tg_op = 'DELETE') then
    v_old_data := row(old.*);
    insert into audit.actions (schema_name, table_name, user_name, action, original_data, query)
    values (tg_table_schema::text, tg_table_name::text, session_user::text, substring(tg_op, 1, 1), v_old_data, current_query());
    return old;
  elsif (tg_op = 'INSERT') then
    v_new_data := row(new.*);
    insert into audit.actions (schema_name, table_name, user_name, action, new_data, query)
    values (tg_table_schema::text, tg_table_name::text, session_user::text, substring(tg_op, 1, 1), v_new_data, current_query());
    return new;
  else
    raise warning '[audit.if_changed] - other action occurred: %, at %', tg_op, now();
    return null;
  end if;
exception
  when data_exception then
    raise warning '[audit.if_changed] - data exception: %', sqlerrm;
    return null;
  when unique_violation then
    raise warning '[audit.if_changed] - unique violation: %', sqlerrm;
    return null;
  when others then
    raise warning '[audit.if_changed] - other: %', sqlerrm;
    return null;
end $$;
create table part (id int primary key, name text);
-- = retire: appends-to-log
create trigger part_if_changed after insert or update or delete on part for each row execute function audit.if_changed();

-- In hstore, key by key.
create table audit.fields (tbl text, pk text, field text, was text, became text, at timestamptz default now());
create function audit.each_field() returns trigger language plpgsql as $$
declare
  field text;
  was hstore := hstore(old);
  is_now hstore := hstore(new);
begin
  for field in select skeys(is_now - was) loop
    if field = any (tg_argv) then
      continue;
    end if;
    insert into audit.fields (tbl, pk, field, was, became) values (tg_table_name, is_now -> 'id', field, was -> field, is_now -> field);
  end loop;
  return new;
end $$;
-- = retire: appends-to-log
create trigger each_field after update on part for each row execute function audit.each_field('seen_at', 'updated_at');
create function audit.named_fields() returns trigger language plpgsql as $$
declare
  field text;
  before jsonb := to_jsonb(old);
  after jsonb := to_jsonb(new);
begin
  foreach field in array tg_argv loop
    if before -> field is distinct from after -> field then
      insert into audit.fields (tbl, pk, field, was, became) values (tg_table_name, after ->> 'id', field, before ->> field, after ->> field);
    end if;
  end loop;
  return null;
end $$;
-- = retire: appends-to-log
create trigger named_fields after update on part for each row execute function audit.named_fields('name');

-- Complaints about its own arguments are answered before it runs.
create function audit.strict_arguments() returns trigger language plpgsql as $$
begin
  if tg_nargs <> 1 then
    raise exception 'one argument, please';
  end if;
  if tg_argv[0] not in ('brief', 'full') then
    raise exception 'brief or full';
  end if;
  insert into audit.fields (tbl, pk, field) values (tg_table_name, new.id::text, case tg_argv[0] when 'full' then to_jsonb(new)::text end);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: called with what it asks for, it never complains.
create trigger strict_arguments after insert on part for each row execute function audit.strict_arguments('full');
-- = keep: raises
-- Because: called with what it does not know, it refuses every row.
create trigger wrong_arguments after update of name on part for each row execute function audit.strict_arguments('verbose');

-- Who is it? From a setting, from a session table, from a temporary table.
create table session (pid int, user_id int);
create function audit.with_session() returns trigger language plpgsql as $$
declare
  who int;
begin
  select s.user_id into who from session s where s.pid = pg_backend_pid();
  insert into audit.fields (tbl, pk, field, was) values (tg_table_name, new.id::text, 'by', who::text);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: the actor is looked up in the session; the application will have to say who it is.
create trigger with_session after insert or update on account for each row execute function audit.with_session();
create function audit.with_temp_table() returns trigger language plpgsql as $$
declare
  who text;
begin
  begin
    select t.user_name into who from app_user t;
  exception when undefined_table then
    who := session_user;
  end;
  insert into audit.fields (tbl, pk, field, was) values (tg_table_name, new.id::text, 'by', who);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: a temporary table of the session is asked who it is, and it may be missing: nothing but the log's actor hangs on it.
create trigger with_temp_table after insert on account for each row execute function audit.with_temp_table();
create function audit.with_required_setting() returns trigger language plpgsql as $$
begin
  insert into audit.fields (tbl, pk, field, was) values (tg_table_name, new.id::text, 'by', current_setting('app.user'));
  return null;
end $$;
-- = keep
-- Because: current_setting() without missing_ok: whoever did not say who he is cannot write. That is enforcement.
create trigger with_required_setting after delete on account for each row execute function audit.with_required_setting();
create function audit.with_explicit_requirement() returns trigger language plpgsql as $$
declare
  who text := nullif(current_setting('app.user', true), '');
begin
  if who is null then
    raise exception 'app.user is not set' using errcode = '42501';
  end if;
  insert into audit.fields (tbl, pk, field, was) values (tg_table_name, old.id::text, 'by', who);
  return null;
end $$;
-- = keep: raises
-- Because: anonymous writes are refused.
create trigger with_explicit_requirement after delete on part for each row execute function audit.with_explicit_requirement();
create function audit.sets_marker() returns trigger language plpgsql as $$
begin
  perform set_config('audit.last_table', tg_table_name, false);
  insert into audit.fields (tbl, pk, field) values (tg_table_name, new.id::text, 'x');
  return null;
end $$;
-- = review: sets-session-state
-- Because: it leaves a setting behind, which something later in the session may ask for.
create trigger sets_marker after insert on part for each row execute function audit.sets_marker();

-- The same name twice: which log it is, the function's own search_path says.
create table private.access_log (id bigserial primary key, op text, at timestamptz default now());
create table public.access_log (id int, op text, checked_at timestamptz, checked_by text);
create function private.note() returns trigger language plpgsql set search_path = private as $$
begin
  insert into access_log (op) values (tg_op);
  return null;
end $$;
-- = retire: appends-to-log
create trigger note_privately after update on setting for each row execute function private.note();
create function public.note() returns trigger language plpgsql as $$
begin
  insert into access_log (id, op) values (new.seen, tg_op);
  return null;
end $$;
create table door (seen int);
create function public.check_access(which int) returns void language sql as $$
  update public.access_log set checked_at = now(), checked_by = current_user where id = which
$$;
-- = defer: writes-other-table
-- Because: the other access_log is worked through by people: its rows are updated.
create trigger note_publicly after insert on door for each row
  when (new.seen > 0) execute function public.note();

-- With a hash chain under a lock.
create table audit.chained (no bigserial primary key, body text, hash text);
create function audit.chain() returns trigger language plpgsql as $$
declare
  last_hash text;
begin
  perform pg_advisory_xact_lock(hashtext('audit.chained'));
  select c.hash into last_hash from audit.chained c order by c.no desc limit 1;
  insert into audit.chained (body, hash) values (to_jsonb(new)::text, md5(coalesce(last_hash, '') || to_jsonb(new)::text));
  return null;
end $$;
-- = review: takes-lock
-- Because: it takes writers one after the other, and each row hangs on the one before.
create trigger chain after insert on account for each row execute function audit.chain();

-- Only in a replica, only for some.
create function audit.minimal() returns trigger language plpgsql as $$
begin
  insert into audit.fields (tbl, field) values (tg_table_name, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
create trigger minimal_always after delete on setting for each row execute function audit.minimal();
alter table setting enable always trigger minimal_always;
-- = retire: appends-to-log
create trigger minimal_guarded after update on setting
  for each row when (old.value is distinct from new.value and new.key not like 'cache.%') execute function audit.minimal();
-- = retire: appends-to-log
-- Because: BEFORE STATEMENT: what it returns is ignored.
create trigger minimal_before_statement before insert or delete on setting for each statement execute function audit.minimal();
