-- name: read_types
-- The named types and all that they are made of: how each one's text becomes JSON, and when a composite was altered.
with recursive wanted (oid) as (
    select unnest(:oids::oid[])
    union
    select part.oid
      from wanted w
      join pg_catalog.pg_type t on t.oid = w.oid
     cross join lateral (
           select t.typelem as oid where t.typlen = -1 and t.typsubscript = 'array_subscript_handler'::regproc
            union all
           select t.typbasetype where t.typtype = 'd'
            union all
           select a.atttypid
             from pg_catalog.pg_attribute a
            where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
           ) as part
), now as (
    select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint as xid
)
select t.oid,
       case
           when t.typtype = 'd' then 'domain'
           when t.typtype = 'c' then 'composite'
           when t.oid in ('int2vector'::regtype, 'oidvector'::regtype) then 'vector'
           when t.typlen = -1 and t.typsubscript = 'array_subscript_handler'::regproc then 'array'
           when exists (select
                          from pg_catalog.pg_cast k
                          join pg_catalog.pg_proc p on p.oid = k.castfunc
                         where k.castsource = t.oid and k.casttarget = 'json'::regtype and p.proname = 'hstore_to_json')
               then 'hstore'
           else 'text'
       end as kind,
       case when t.typtype = 'd' then t.typbasetype else t.typelem end as element,
       coalesce(e.typdelim, t.typdelim)::text as delimiter,
       array(select a.attname::text
               from pg_catalog.pg_attribute a
              where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
              order by a.attnum) as field_names,
       array(select a.atttypid
               from pg_catalog.pg_attribute a
              where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
              order by a.attnum) as field_types,
       coalesce((select now.xid - min((now.xid - a.xmin::text::bigint) & 4294967295)
                   from pg_catalog.pg_attribute a
                  where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0), 0) as since,
       now.xid as now
  from wanted w
  join pg_catalog.pg_type t on t.oid = w.oid
 cross join now
  left join pg_catalog.pg_type e on e.oid = t.typelem;

-- name: read_table_facts
-- What the stream does not say of a table: primary key, partition root, whether only the legacy publication has it; and every column it ever had.
select c.relkind = 'p' as partitioned,
       -- pg_partition_tree would wait for whoever alters the table, and capture with it.
       exists (with recursive part (oid) as (
                   select i.inhrelid from pg_catalog.pg_inherits i where i.inhparent = c.oid and c.relkind = 'p'
                    union all
                   select i.inhrelid from part p join pg_catalog.pg_inherits i on i.inhparent = p.oid
               )
               select
                 from part p
                 join pg_catalog.pg_class l on l.oid = p.oid
                where l.relkind = 'r' and l.relreplident = 'i') as by_index,
       coalesce((select bool_and(p.pubname = :legacy_publication)
                   from pg_catalog.pg_publication_rel r
                   join pg_catalog.pg_publication p on p.oid = r.prpubid
                  where r.prrelid = c.oid and p.pubname = any (:publications::text[])), false) as legacy,
       coalesce(k.numbers, '{}') as key,
       coalesce(now.xid - k.ago, 0) as key_since,
       a.names,
       a.types,
       a.generated,
       a.since,
       now.xid as now
  from pg_catalog.pg_class c
 cross join (select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint as xid) now
  left join lateral (
       select (i.indkey::int2[])[0 : (i.indnkeyatts - 1)]::int[] as numbers,
              (now.xid - i.xmin::text::bigint) & 4294967295 as ago
         from pg_catalog.pg_index i
        where i.indrelid = c.oid and i.indisprimary
       ) k on true
 cross join lateral (
       -- By number, from 1 on without a gap; the type of a dropped one is 0.
       select coalesce(array_agg(t.attname::text order by t.attnum), '{}') as names,
              coalesce(array_agg(t.atttypid order by t.attnum), '{}') as types,
              coalesce(array_agg(t.attgenerated <> '' order by t.attnum), '{}') as generated,
              coalesce(array_agg(now.xid - ((now.xid - t.xmin::text::bigint) & 4294967295) order by t.attnum), '{}')
                  as since
         from pg_catalog.pg_attribute t
        where t.attrelid = c.oid and t.attnum > 0
       ) a
 where c.oid = :oid;

-- name: may_remember
-- Whether this database remembers what was published.
select pg_catalog.to_regclass('afterwrite.published') is not null;

-- name: may_note
-- Whether this database remembers which table had which name, and lets this role write it down.
select pg_catalog.to_regclass('afterwrite.relation_name') is not null
   and pg_catalog.has_table_privilege(pg_catalog.to_regclass('afterwrite.relation_name'), 'insert')
   and not pg_catalog.pg_is_in_recovery();

-- name: note_name
-- Remember that this table has this name from this commit on.
select afterwrite.note_name(:relation, :oid::oid, :lsn::pg_lsn)::text;

-- name: read_remembered
-- Of a relation that is no more, or has no key any more: the key that it had, and whether it was a legacy log only.
select t.key,
       bool_and(t.publication = :legacy_publication) over () as legacy
  from afterwrite.published t
 where t.relation = :oid
   and t.publication = any (:publications::text[])
 order by t.since_lsn desc
 limit 1;
