-- Supabase: an audit extension's versions table, triggers on auth.users, row security that looks at what they write,
-- realtime, web hooks and storage. auth, realtime, net and storage are small stand-ins of what the platform brings.

create schema auth;
create schema audit;
create schema realtime;
create schema net;
create schema storage;
create type audit.operation as enum ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE');

create table auth.users (
  id uuid primary key default gen_random_uuid(), email text, phone text, raw_user_meta_data jsonb default '{}',
  raw_app_meta_data jsonb default '{}', last_sign_in_at timestamptz, created_at timestamptz default now()
);
create function auth.uid() returns uuid language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
  )::uuid
$$;
create function auth.role() returns text language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role', 'service_role')
$$;

-- Versions of every row, by a primary key that is looked up in the catalog. ----------------------------------------------
create table audit.record_version (
  id bigserial primary key,
  record_id uuid,
  old_record_id uuid,
  op audit.operation not null,
  ts timestamptz not null default now(),
  table_oid oid not null,
  table_schema name not null,
  table_name name not null,
  record jsonb,
  old_record jsonb,
  auth_uid uuid default auth.uid(),
  auth_role text default auth.role(),
  check (coalesce(record_id, old_record_id) is not null or op = 'TRUNCATE'),
  check (op in ('INSERT', 'UPDATE') = (record_id is not null))
);
create index on audit.record_version using brin (ts);
create function audit.primary_key_columns(entity_oid oid) returns text[] language sql stable security definer
  set search_path = '' as $$
  select coalesce(array_agg(att.attname::text order by att.attname), array[]::text[])
    from pg_catalog.pg_index ind, pg_catalog.unnest(ind.indkey) as key(attnum), pg_catalog.pg_attribute att
   where ind.indrelid = entity_oid and ind.indisprimary and att.attrelid = entity_oid and att.attnum = key.attnum
$$;
create function audit.to_record_id(entity_oid oid, pkey_cols text[], rec jsonb) returns uuid language sql stable as $$
  select case
    when rec is null then null
    when pkey_cols = array[]::text[] then gen_random_uuid()
    else md5(entity_oid::text || (select string_agg(rec ->> col, '|') from unnest(pkey_cols) as cols(col)))::uuid
  end
$$;
create function audit.insert_update_delete_trigger() returns trigger language plpgsql security definer as $$
declare
  pkey_cols text[] = audit.primary_key_columns(tg_relid);
  record_jsonb jsonb = to_jsonb(new);
  record_id uuid = audit.to_record_id(tg_relid, pkey_cols, record_jsonb);
  old_record_jsonb jsonb = to_jsonb(old);
  old_record_id uuid = audit.to_record_id(tg_relid, pkey_cols, old_record_jsonb);
begin
  insert into audit.record_version(
    record_id, old_record_id, op, table_oid, table_schema, table_name, record, old_record
  )
  select record_id, old_record_id, tg_op::audit.operation, tg_relid, tg_table_schema, tg_table_name,
         record_jsonb, old_record_jsonb;
  return coalesce(new, old);
end $$;
create function audit.truncate_trigger() returns trigger language plpgsql security definer as $$
begin
  insert into audit.record_version(op, table_oid, table_schema, table_name)
  select tg_op::audit.operation, tg_relid, tg_table_schema, tg_table_name;
  return coalesce(old, new);
end $$;
create function audit.enable_tracking(target regclass) returns void language plpgsql volatile security definer as $$
begin
  if audit.primary_key_columns(target) = array[]::text[] then
    raise exception 'table % cannot be tracked: it has no primary key', target;
  end if;
  execute format(
    'create trigger audit_i_u_d after insert or update or delete on %s for each row '
    'execute function audit.insert_update_delete_trigger()', target
  );
  execute format(
    'create trigger audit_t after truncate on %s for each statement execute function audit.truncate_trigger()', target
  );
end $$;
create table public.documents (id bigint primary key, title text, owner uuid, body text);
-- = retire: appends-to-log @ public.documents.audit_i_u_d
-- = retire: appends-to-log @ public.documents.audit_t
select audit.enable_tracking('public.documents'::regclass);

-- Who did it, from the request's claims. ---------------------------------------------------------------------------------
create table public.activity_log (
  id uuid primary key default gen_random_uuid(), actor uuid, role text, action text, entity text, entity_id text,
  diff jsonb, ip text, at timestamptz not null default now()
);
alter table public.activity_log enable row level security;
create policy "own activity" on public.activity_log for select using (actor = auth.uid());
create function public.log_activity() returns trigger language plpgsql security definer set search_path = public as $$
declare
  changed jsonb := '{}';
begin
  if tg_op = 'UPDATE' then
    select jsonb_object_agg(n.key, jsonb_build_array(o.value, n.value)) into changed
      from jsonb_each(to_jsonb(new)) n join jsonb_each(to_jsonb(old)) o using (key)
     where n.value is distinct from o.value;
  end if;
  insert into activity_log (actor, role, action, entity, entity_id, diff, ip)
  values (
    auth.uid(), auth.role(), lower(tg_op), tg_table_name, coalesce(new.id, old.id)::text, changed,
    current_setting('request.headers', true)::jsonb ->> 'x-forwarded-for'
  );
  return null;
end $$;
-- = retire: appends-to-log
create trigger log_activity after insert or update or delete on public.documents
  for each row execute function public.log_activity();

-- New users. ---------------------------------------------------------------------------------------------------------------
create table public.profiles (
  id uuid primary key references auth.users on delete cascade, full_name text, avatar_url text, email text,
  updated_at timestamptz
);
create table public.posts (id bigint primary key, author uuid references public.profiles, body text);
create function public.handle_new_user() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into public.profiles (id, full_name, avatar_url, email)
  values (new.id, new.raw_user_meta_data ->> 'full_name', new.raw_user_meta_data ->> 'avatar_url', new.email);
  return new;
end $$;
-- = keep: feeds-a-foreign-key
-- Because: posts.author refers to profiles: a user who posts at once would be refused while his profile is not there yet.
create trigger on_auth_user_created after insert on auth.users for each row execute function public.handle_new_user();

create table public.preferences (user_id uuid, theme text default 'light', locale text, created_at timestamptz default now());
create function public.default_preferences() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into public.preferences (user_id, locale) values (new.id, coalesce(new.raw_user_meta_data ->> 'locale', 'en'));
  return new;
end $$;
-- = defer: writes-other-table
-- Because: nothing refers to the row and nothing refuses without it; for a moment the defaults are missing.
create trigger on_auth_user_preferences after insert on auth.users
  for each row execute function public.default_preferences();

create table public.usernames (username text unique not null, user_id uuid);
create function public.claim_username() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into public.usernames (username, user_id) values (lower(new.raw_user_meta_data ->> 'username'), new.id);
  return new;
end $$;
-- = keep: enforced-target
-- Because: the sign-up is refused when the name is taken; later it would be too late to refuse.
create trigger on_auth_user_username after insert on auth.users for each row execute function public.claim_username();

create function public.only_our_domain() returns trigger language plpgsql security definer as $$
begin
  if new.email !~* '@example\.(org|com)$' then
    raise exception 'sign-ups are limited to our own domain' using errcode = 'P0001', hint = 'ask an administrator';
  end if;
  return new;
end $$;
-- = keep: raises
-- Because: it forbids sign-ups.
create trigger only_our_domain before insert on auth.users for each row execute function public.only_our_domain();

create function public.sync_email() returns trigger language plpgsql security definer as $$
begin
  if new.email is distinct from old.email then
    update public.profiles set email = new.email, updated_at = now() where id = new.id;
  end if;
  return new;
end $$;
-- = defer: writes-other-table
-- Because: a copy for display; the profile shows the old address for a moment.
create trigger on_auth_user_email after update of email on auth.users for each row execute function public.sync_email();

-- Teams and row security. ----------------------------------------------------------------------------------------------------
create table public.teams (id bigint primary key, name text, created_by uuid);
create table public.team_members (team_id bigint, user_id uuid, role text default 'member');
create table public.tasks (id bigint primary key, team_id bigint, title text);
alter table public.tasks enable row level security;
create policy "members see tasks" on public.tasks
  using (team_id in (select m.team_id from public.team_members m where m.user_id = auth.uid()));
create function public.add_creator() returns trigger language plpgsql security definer as $$
begin
  insert into public.team_members (team_id, user_id, role) values (new.id, coalesce(new.created_by, auth.uid()), 'owner');
  return new;
end $$;
-- = keep: feeds-a-policy
-- Because: until the creator is a member, the policy on tasks hides his own team's tasks from him.
create trigger add_creator after insert on public.teams for each row execute function public.add_creator();

create table public.team_members_log (id bigserial, team_id bigint, user_id uuid, op text, by_whom uuid default auth.uid());
create function public.log_membership() returns trigger language plpgsql as $$
begin
  insert into public.team_members_log (team_id, user_id, op)
  values (coalesce(new.team_id, old.team_id), coalesce(new.user_id, old.user_id), tg_op);
  return null;
end $$;
-- = retire: appends-to-log
create trigger log_membership after insert or update or delete on public.team_members
  for each row execute function public.log_membership();

create table public.user_roles (user_id uuid, role text);
create function public.put_role_into_claims() returns trigger language plpgsql security definer as $$
begin
  update auth.users
     set raw_app_meta_data = raw_app_meta_data || jsonb_build_object('role', new.role)
   where id = new.user_id;
  return new;
end $$;
-- = defer: writes-other-table
-- Because: the next token carries the role anyway; tokens that are out do not change.
create trigger put_role_into_claims after insert or update on public.user_roles
  for each row execute function public.put_role_into_claims();
create function public.no_self_promotion() returns trigger language plpgsql as $$
begin
  if auth.role() <> 'service_role' and new.role is distinct from old.role then
    raise insufficient_privilege using message = 'roles are given by administrators';
  end if;
  return new;
end $$;
-- = keep: raises
-- Because: it is an authorisation check.
create trigger no_self_promotion before update on public.user_roles
  for each row execute function public.no_self_promotion();

create function public.set_owner() returns trigger language plpgsql as $$
begin
  new.owner := coalesce(new.owner, auth.uid());
  return new;
end $$;
-- = keep: changes-new
-- Because: the owner column is what the policies look at.
create trigger set_owner before insert on public.documents for each row execute function public.set_owner();

-- Realtime and web hooks. ------------------------------------------------------------------------------------------------------
create table realtime.messages (
  id uuid default gen_random_uuid(), topic text not null, extension text, event text, payload jsonb, private boolean,
  inserted_at timestamp default now()
);
create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void
  language plpgsql as $$
begin
  begin
    insert into realtime.messages (payload, event, topic, private, extension)
    values (payload, event, topic, private, 'broadcast');
  exception when others then
    raise warning 'ErrorSendingBroadcastMessage: %', sqlerrm;
  end;
end $$;
create function public.broadcast_task() returns trigger language plpgsql security definer as $$
begin
  perform realtime.send(
    jsonb_build_object('op', tg_op, 'record', to_jsonb(new), 'old_record', to_jsonb(old)),
    tg_op, 'team:' || coalesce(new.team_id, old.team_id)::text
  );
  return null;
end $$;
-- = defer: writes-other-table
-- Because: realtime.messages has the shape of a log (operation, record, old record), and yet it is what clients are told.
create trigger broadcast_task after insert or update or delete on public.tasks
  for each row execute function public.broadcast_task();

create function net.http_post(url text, body jsonb default '{}', headers jsonb default '{}', timeout_milliseconds int default 1000)
  returns bigint language c volatile as '$libdir/plpgsql', 'plpgsql_call_handler';
create schema supabase_functions;
create table supabase_functions.hooks (
  id bigserial primary key, hook_table_id int not null, hook_name text not null, created_at timestamptz default now(),
  request_id bigint
);
create function supabase_functions.http_request() returns trigger language plpgsql security definer
  set search_path = supabase_functions as $$
declare
  request_id bigint;
  url text := tg_argv[0]::text;
  method text := tg_argv[1]::text;
  payload jsonb;
begin
  if url is null or url = 'null' then
    raise exception 'url argument is missing';
  end if;
  if method is null or method <> 'POST' then
    raise exception 'method argument is missing or unknown';
  end if;
  payload := jsonb_build_object('type', tg_op, 'table', tg_table_name, 'record', new, 'old_record', old);
  request_id := net.http_post(url, payload);
  insert into supabase_functions.hooks (hook_table_id, hook_name, request_id) values (tg_relid, tg_name, request_id);
  return new;
end $$;
-- = defer: calls-out
-- Because: somebody outside is told; that may happen a moment later. Its refusals are about arguments that are given here.
create trigger task_hook after insert or update on public.tasks for each row
  execute function supabase_functions.http_request('https://hooks.example.org/tasks', 'POST');

-- Storage. -------------------------------------------------------------------------------------------------------------------
create table storage.objects (id uuid primary key, bucket text, name text, owner uuid, size bigint);
create function storage.check_quota() returns trigger language plpgsql security definer as $$
begin
  if (select coalesce(sum(o.size), 0) from storage.objects o where o.owner = new.owner) + new.size > 1000000 then
    raise exception 'quota exceeded' using errcode = '53400';
  end if;
  return new;
end $$;
-- = keep: raises
-- Because: it is a limit.
create trigger check_quota before insert on storage.objects for each row execute function storage.check_quota();
create function public.forget_avatar() returns trigger language plpgsql security definer as $$
begin
  update public.profiles set avatar_url = null where avatar_url = old.name;
  return old;
end $$;
-- = defer: writes-other-table
-- Because: a dead link for a moment.
create trigger forget_avatar after delete on storage.objects for each row execute function public.forget_avatar();
