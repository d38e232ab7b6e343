-- name: set_lock_timeout
-- Give up on a lock after this long, for the running transaction only.
select set_config('lock_timeout', :milliseconds, true);

-- name: read_blockers
-- Sessions other than ours that hold a lock on one of the named tables, oldest transaction first.
select distinct on (a.xact_start, a.pid)
       a.pid,
       coalesce(a.application_name, '') as application_name,
       coalesce(a.usename, '') as user_name,
       a.state,
       clock_timestamp() - a.xact_start as transaction_age,
       left(a.query, 200) as query
  from pg_catalog.pg_locks l
  join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.relation = any (array(select pg_catalog.to_regclass(r)::oid from unnest(:relations::text[]) as r))
   and l.granted
   and a.pid <> pg_catalog.pg_backend_pid()
 order by a.xact_start, a.pid;
