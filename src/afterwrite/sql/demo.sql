-- name: read_costs
-- What the statements of one role have cost so far, and how much WAL the whole cluster has written.
select coalesce(sum(s.calls), 0)::bigint as statements,
       coalesce(sum(s.rows) filter (where s.query ~* '^\s*(insert|update|delete|merge|copy)'), 0)::bigint as writes,
       (coalesce(sum(s.total_exec_time), 0) / 1000)::float8 as server_seconds,
       coalesce(sum(s.wal_bytes), 0)::bigint as wal_bytes,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::bigint as cluster_wal_bytes
  from public.pg_stat_statements s
  join pg_catalog.pg_roles r on r.oid = s.userid
  join pg_catalog.pg_database d on d.oid = s.dbid
 where r.rolname = :role
   and d.datname = pg_catalog.current_database()
   and s.toplevel;

-- name: read_lags
-- How long a change took from its commit until its batch was written, over everything stored in the last seconds.
select coalesce(percentile_cont(0.50) within group (order by l.ms), 0)::float8 as p50_ms,
       coalesce(percentile_cont(0.99) within group (order by l.ms), 0)::float8 as p99_ms
  from (select extract(epoch from b.written_at - a.occurred_at) * 1000 as ms
          from afterwrite.activity a
          join afterwrite.batch b on b.id = a.batch_id
         where a.occurred_at > clock_timestamp() - make_interval(secs => :seconds)
           and a.kind = 'change') l;
