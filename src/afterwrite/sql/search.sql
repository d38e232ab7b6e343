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
-- Until the transaction ends, plans that we mean; and whether a policy hides rows from us.
select pg_catalog.row_security_active('afterwrite.activity'::regclass) as walled,
       pg_catalog.set_config('enable_seqscan', 'off', true) is null
       or pg_catalog.set_config('enable_indexscan', 'on', true) is null
       or pg_catalog.set_config('jit', 'off', true) is null
       or pg_catalog.set_config('max_parallel_workers_per_gather', '0', true) is null
       or pg_catalog.set_config('plan_cache_mode', 'force_custom_plan', true) is null as set;

-- name: plan_by_bitmap
-- Whether rows may be read along an index, or only gathered by one.
select pg_catalog.set_config('enable_indexscan', :indexscan, true);

-- name: read_thing
-- What happened to one thing on one side of a place in time.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from afterwrite.of_entity(
           :entity_type::text, :entity_id::text, :since::timestamptz, :until::timestamptz, :at::timestamptz, :id::uuid, :newer::boolean, :count::bigint) a
 order by a.occurred_at desc, a.id desc;
