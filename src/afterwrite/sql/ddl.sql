-- name: set_lock_timeout
-- Give up on a lock after this long, for the running transaction only.
select set_config('lock_timeout', :milliseconds, true);

-- name: read_blockers
-- Who else holds a lock on one of the named tables or their partitions, oldest transaction first; pid is null for a prepared transaction.
with wanted as (
    select r.oid
      from unnest(:relations::text[]) as name,
           lateral (select pg_catalog.to_regclass(name) as oid) as r
     where r.oid is not null
    union
    select t.relid
      from unnest(:relations::text[]) as name,
           lateral pg_catalog.pg_partition_tree(pg_catalog.to_regclass(name)) as t
), held as (
    select l.pid, l.virtualtransaction, string_agg(distinct l.mode, ', ' order by l.mode) as modes
      from pg_catalog.pg_locks l
     where l.locktype = 'relation'
       and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
       and l.relation in (select oid from wanted)
       and l.granted
       and l.pid is distinct from pg_catalog.pg_backend_pid()
     group by l.pid, l.virtualtransaction
)
select a.pid,
       coalesce(nullif(a.application_name, ''), a.backend_type, '') as application_name,
       coalesce(a.usename, '') as user_name,
       a.state,
       h.modes,
       clock_timestamp() - a.xact_start as transaction_age,
       left(a.query, 200) as query
  from held h
  join pg_catalog.pg_stat_activity a on a.pid = h.pid
 union all
select null, 'prepared transaction ' || p.gid, p.owner, 'prepared', h.modes, clock_timestamp() - p.prepared, null
  from held h
  join pg_catalog.pg_locks x on h.pid is null and x.pid is null and x.virtualtransaction = h.virtualtransaction
                            and x.locktype = 'transactionid'
  join pg_catalog.pg_prepared_xacts p on p.transaction = x.transactionid
 order by transaction_age desc nulls last, pid;
