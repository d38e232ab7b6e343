-- name: lay_schema
-- A schema of its own: every role may call what is in it, and the store is not.
create schema if not exists afterwrite_stamp;

-- name: open_schema
-- What is called runs as its caller, who could write the same message by hand.
grant usage on schema afterwrite_stamp to public;

-- name: lay_stamp_claims
-- Stamps who the request's token says, or else who is connected; once a transaction, and again for another token.
create or replace function afterwrite_stamp.stamp_claims(connected boolean) returns void
language plpgsql as $$
declare
    -- "<transaction> <mark>": what somebody has set for the session is of no transaction, and no mark.
    said text := pg_catalog.current_setting('afterwrite.stamped', true);
    -- The application itself may have stamped: then it knows better.
    stands text := case when pg_catalog.split_part(said, ' ', 1) = pg_catalog.pg_current_xact_id_if_assigned()::text
                        then pg_catalog.split_part(said, ' ', 2) else '' end;
    told text := nullif(pg_catalog.current_setting('request.jwt.claims', true), '');
    sub text := nullif(pg_catalog.current_setting('request.jwt.claim.sub', true), '');
    role text := nullif(pg_catalog.current_setting('request.jwt.claim.role', true), '');
    mark text := 'db:' || pg_catalog.md5(coalesce(told, sub, ''));
    claims jsonb := '{}';
    headers jsonb := '{}';
    traced text;
    context jsonb;
begin
    if stands = mark or stands <> '' and not pg_catalog.starts_with(stands, 'db:')
       or pg_catalog.current_setting('transaction_read_only') = 'on' then
        return;
    end if;
    -- Without the right to write messages the writer himself would fail.
    if not exists (
        select from pg_catalog.pg_proc p
         where p.proname = 'pg_logical_emit_message'
           and p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
           and pg_catalog.has_function_privilege(p.oid, 'execute')
           and p.proargtypes[2] = 'text'::pg_catalog.regtype) then
        return;
    end if;
    -- What cannot be read must not stop the writer.
    begin
        claims := coalesce(told, '{}')::pg_catalog.jsonb;
        headers := coalesce(nullif(pg_catalog.current_setting('request.headers', true), ''), '{}')::pg_catalog.jsonb;
    exception when others then
        null;
    end;
    sub := coalesce(claims ->> 'sub', sub);
    role := coalesce(claims ->> 'role', role);
    traced := pg_catalog.split_part(headers ->> 'traceparent', '-', 2);
    if sub is null and role is null and not connected then
        return;
    end if;
    context := pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'actor_id', coalesce(sub, role, session_user),
        'actor_type', coalesce(role, case when sub is null then 'database_role' end),
        'tenant_id', coalesce(claims -> 'app_metadata' ->> 'tenant_id', claims ->> 'tenant_id'),
        'session_id', claims ->> 'session_id',
        'request_id', coalesce(headers ->> 'x-request-id', headers ->> 'sb-request-id'),
        'trace_id', nullif(traced, ''),
        'user_agent', headers ->> 'user-agent',
        'ip', case when sub is null and role is null then pg_catalog.host(pg_catalog.inet_client_addr()) end,
        'settings', pg_catalog.jsonb_build_object(
            'request.jwt.claims', told,
            'request.jwt.claim.sub', case when told is null then sub end,
            'application_name', nullif(pg_catalog.current_setting('application_name'), ''))));
    perform pg_catalog.set_config('afterwrite.stamped', pg_catalog.pg_current_xact_id()::text || ' ' || mark, true);
    perform pg_catalog.pg_logical_emit_message(true, 'afterwrite.context', context::text);
end
$$;

-- name: lay_pre_request
-- What PostgREST calls before each request (db-pre-request): requests that only read run in a read-only transaction.
create or replace function afterwrite_stamp.pre_request() returns void
language plpgsql as $$
begin
    perform afterwrite_stamp.stamp_claims(false);
end
$$;

-- name: lay_trigger_function
-- What the statement-level trigger calls, for writers that cannot be changed.
create or replace function afterwrite_stamp.stamp() returns trigger
language plpgsql as $$
begin
    perform afterwrite_stamp.stamp_claims(true);
    return null;
end
$$;

-- name: read_table
-- The table of this name, as the session's search path finds it; whether it is one, and whether it is stamped.
select c.oid::bigint as oid,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) as name,
       c.relkind in ('r', 'p') and n.nspname !~ '^(pg_|afterwrite)' and n.nspname <> 'information_schema' as stampable,
       exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgname = 'afterwrite_stamp') as stamped
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.oid = pg_catalog.to_regclass(:name::text);

-- name: read_stamped
-- All tables with a stamp trigger of ours, except partitions whose table has it.
select c.oid::bigint as oid,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) as name,
       true as stampable,
       true as stamped
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
 where pn.nspname = 'afterwrite_stamp' and t.tgparentid = 0
 order by n.nspname, c.relname;

-- name: read_laid
-- Which of our functions are there.
select p.proname as name
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where n.nspname = 'afterwrite_stamp'
 order by p.proname;

-- name: read_pre_request_users
-- Whose settings make PostgREST call our function before each request: without it every request would fail.
select case when s.setrole = 0 then 'database ' || pg_catalog.quote_ident(d.datname)
            when s.setdatabase = 0 then 'role ' || pg_catalog.quote_ident(r.rolname)
            else 'role ' || pg_catalog.quote_ident(r.rolname) || ' in database ' || pg_catalog.quote_ident(d.datname)
       end as owner
  from pg_catalog.pg_db_role_setting s
  left join pg_catalog.pg_roles r on r.oid = s.setrole
  left join pg_catalog.pg_database d on d.oid = s.setdatabase
 where exists (select from pg_catalog.unnest(s.setconfig) as set
                where set ilike 'pgrst.db_pre_request=%afterwrite_stamp.%')
   and (s.setdatabase = 0 or d.datname = pg_catalog.current_database());

-- name: drop_all
-- Takes the functions away; no trigger may be left that calls them.
drop schema if exists afterwrite_stamp;
