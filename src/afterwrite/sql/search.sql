-- name: read_days
-- The partitions with about how many rows each has, and whether it carries the indexes for searching.
select c.relname::text as name,
       case when c.relpages > 0 and c.reltuples > 0
            then c.reltuples / c.relpages * (pg_catalog.pg_relation_size(c.oid) / 8192.0)
            else pg_catalog.pg_relation_size(c.oid) / 500.0
       end::bigint as rows,
       2 = (
           select count(*)
             from pg_catalog.pg_index i
             join pg_catalog.pg_class x on x.oid = i.indexrelid
            where i.indrelid = c.oid and i.indisvalid and x.relname in (c.relname || '_text', c.relname || '_actor')
       ) as hot
  from pg_catalog.pg_inherits p
  join pg_catalog.pg_class c on c.oid = p.inhrelid
 where p.inhparent = 'afterwrite.activity'::regclass
 order by c.relname;

-- name: plan_simply
-- Until the transaction ends, plans that we mean; what held before, and whether a policy hides rows from us.
select pg_catalog.row_security_active('afterwrite.activity'::regclass) as walled,
       pg_catalog.current_setting('enable_seqscan') as seqscan, pg_catalog.current_setting('enable_indexscan') as indexscan,
       pg_catalog.current_setting('max_parallel_workers_per_gather') as workers, pg_catalog.current_setting('jit') as jit,
       pg_catalog.current_setting('plan_cache_mode') as plans,
       pg_catalog.set_config('enable_seqscan', 'off', true) is null
       or pg_catalog.set_config('jit', 'off', true) is null
       or pg_catalog.set_config('max_parallel_workers_per_gather', '0', true) is null
       or pg_catalog.set_config('plan_cache_mode', 'force_custom_plan', true) is null as set;

-- name: plan_as_before
-- What held before us holds again.
select pg_catalog.set_config('enable_seqscan', :seqscan, true), pg_catalog.set_config('enable_indexscan', :indexscan, true),
       pg_catalog.set_config('max_parallel_workers_per_gather', :workers, true), pg_catalog.set_config('jit', :jit, true),
       pg_catalog.set_config('plan_cache_mode', :plans, true);

-- name: plan_by_bitmap
-- Whether rows may be read along an index, or only gathered by one.
select pg_catalog.set_config('enable_indexscan', :indexscan, true);
