-- name: begin_reading
-- Hold one snapshot for the whole inventory, and promise to write nothing.
set transaction isolation level repeatable read, read only;

-- name: qualify_everything
-- Look for names in pg_catalog alone, and let the server print every name with its schema, until the transaction ends.
set local search_path to '';

-- name: bound_waiting
-- Wait for nobody for long, and let no limit that was meant for short statements end the reading.
select pg_catalog.set_config(
           s.name, case s.name when 'lock_timeout' then '5s' when 'transaction_timeout' then '10min' else '1min' end, true)
  from pg_catalog.pg_settings s
 where s.name in ('lock_timeout', 'statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout');

-- name: read_server
-- Which server and database this is, and where a session of this role looks for unqualified names.
select pg_catalog.current_setting('server_version_num')::integer as server_version,
       pg_catalog.current_database() as database,
       current_user as role,
       (select s.reset_val from pg_catalog.pg_settings s where s.name = 'search_path') as search_path,
       array(select n.nspname::text from pg_catalog.pg_namespace n) as schemas,
       (select d.stats_reset from pg_catalog.pg_stat_database d
         where d.datname = pg_catalog.current_database()) as statistics_since;

-- name: read_triggers
-- Every trigger that a person made, clones on partitions included, with the function that it calls.
select t.oid::bigint as oid,
       n.nspname as schema,
       c.relname as "table",
       c.oid::bigint as table_oid,
       t.tgname as name,
       t.tgtype::integer as type,
       t.tgenabled::text as enabled,
       t.tgconstraint <> 0 as "constraint",
       t.tgdeferrable as deferrable,
       t.tginitdeferred as initially_deferred,
       t.tgoldtable as old_table,
       t.tgnewtable as new_table,
       t.tgnargs::integer as argument_count,
       pg_catalog.encode(t.tgargs, 'hex') as arguments,
       array(select a.attname::text
               from pg_catalog.unnest(t.tgattr::smallint[]) with ordinality as k (number, place)
               join pg_catalog.pg_attribute a on a.attrelid = t.tgrelid and a.attnum = k.number
              order by k.place) as columns,
       nullif(t.tgparentid, 0)::bigint as parent_oid,
       (select e.extname from pg_catalog.pg_depend d
          join pg_catalog.pg_extension e on e.oid = d.refobjid
         where d.refclassid = 'pg_catalog.pg_extension'::regclass
           and (d.classid = 'pg_catalog.pg_trigger'::regclass and d.objid = t.oid and d.deptype in ('e', 'x')
             or d.classid = 'pg_catalog.pg_class'::regclass and d.objid = t.tgrelid and d.deptype = 'e')
         limit 1) as extension,
       pg_catalog.obj_description(t.oid, 'pg_trigger') as comment,
       pg_catalog.pg_get_triggerdef(t.oid) as "create",
       p.oid::bigint as function_oid,
       pn.nspname as function_schema,
       p.proname as function,
       l.lanname as language,
       coalesce(p.prosrc, '') as source,
       case when l.lanname = 'internal' then '' else pg_catalog.pg_get_functiondef(p.oid) end as definition,
       p.prosecdef as security_definer,
       coalesce(p.proconfig, '{}') as config,
       pg_catalog.pg_get_userbyid(p.proowner) as function_owner
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
  join pg_catalog.pg_language l on l.oid = p.prolang
 where not t.tgisinternal
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
   and (:schemas::text[] is null or n.nspname = any (:schemas::text[]))
 order by n.nspname, c.relname, t.tgname;

-- name: read_clones
-- Triggers that partitioning made on a partition: where they are and whose copies.
select t.oid::bigint as oid,
       n.nspname as schema,
       c.relname as "table",
       t.tgname as name,
       t.tgparentid::bigint as parent_oid,
       t.tgenabled::text as enabled
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where t.tgparentid <> 0
   and exists (select from pg_catalog.pg_trigger parent where parent.oid = t.tgparentid and not parent.tgisinternal)
   and n.nspname !~ '^afterwrite(_|$)'
   and (:schemas::text[] is null or n.nspname = any (:schemas::text[]))
 order by n.nspname, c.relname, t.tgname;

-- name: read_tables
-- Tables and views of people's schemas, with their replica identity, size and write statistics.
select c.oid::bigint as oid,
       n.nspname as schema,
       c.relname as name,
       c.relkind::text as kind,
       case when c.relispartition
            then (select i.inhparent::bigint from pg_catalog.pg_inherits i where i.inhrelid = c.oid limit 1)
       end as partition_of,
       c.relpersistence::text as persistence,
       c.relreplident::text as replica_identity,
       c.relrowsecurity as row_security,
       c.relkind in ('r', 'p') and c.relhasrules as has_rules,
       greatest(c.reltuples, 0)::bigint as row_estimate,
       coalesce(s.n_tup_ins, 0) as inserted,
       coalesce(s.n_tup_upd, 0) as updated,
       coalesce(s.n_tup_del, 0) as deleted,
       s.last_analyze is not null or s.last_autoanalyze is not null or coalesce(s.n_tup_ins, 0) > 0 as collected,
       (select e.extname from pg_catalog.pg_depend d
          join pg_catalog.pg_extension e on e.oid = d.refobjid
         where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid
           and d.refclassid = 'pg_catalog.pg_extension'::regclass and d.deptype = 'e' limit 1) as extension
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_stat_all_tables s on s.relid = c.oid
 where c.relkind in ('r', 'p', 'v', 'm', 'f')
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by n.nspname, c.relname;

-- name: read_columns
-- The columns of those tables, in their order.
select a.attrelid::bigint as table_oid,
       a.attname as name,
       pg_catalog.format_type(a.atttypid, a.atttypmod) as type,
       a.attnotnull as not_null,
       case when a.attgenerated = '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as "default",
       a.attidentity <> '' as identity,
       a.attgenerated <> '' as generated
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attnum > 0 and not a.attisdropped
   and c.relkind in ('r', 'p', 'v', 'm', 'f')
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by a.attrelid, a.attnum;

-- name: read_constraints
-- Check, foreign key and exclusion constraints, with the columns that they look at.
select k.conrelid::bigint as table_oid,
       k.conname as name,
       k.contype::text as kind,
       array(select a.attname::text
               from pg_catalog.unnest(k.conkey) with ordinality as u (number, place)
               join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.number
              order by u.place) as columns,
       nullif(k.confrelid, 0)::bigint as referenced_oid,
       array(select a.attname::text
               from pg_catalog.unnest(k.confkey) with ordinality as u (number, place)
               join pg_catalog.pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.number
              order by u.place) as referenced_columns,
       k.confdeltype::text as on_delete,
       pg_catalog.pg_get_constraintdef(k.oid) as definition
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_class c on c.oid = k.conrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where k.contype in ('c', 'f', 'x') and k.conparentid = 0
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by k.conrelid, k.conname;

-- name: read_unique_indexes
-- Primary keys and unique indexes, with their plain columns (an expression or a condition makes it partial).
select i.indrelid::bigint as table_oid,
       c.relname as name,
       i.indisprimary as "primary",
       i.indpred is not null or i.indexprs is not null as partial,
       array(select a.attname::text
               from pg_catalog.unnest(i.indkey::smallint[]) with ordinality as u (number, place)
               join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.number
              where u.place <= i.indnkeyatts
              order by u.place) as columns
  from pg_catalog.pg_index i
  join pg_catalog.pg_class c on c.oid = i.indexrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where i.indisunique
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by i.indrelid, c.relname;

-- name: read_functions
-- Functions and procedures of people's schemas, with their source where their language has one.
select p.oid::bigint as oid,
       n.nspname as schema,
       p.proname as name,
       l.lanname as language,
       p.provolatile::text as volatility,
       p.pronargs::integer as argument_count,
       (p.pronargs - p.pronargdefaults)::integer as required_arguments,
       p.provariadic <> 0 as variadic,
       case when p.proargmodes is null then coalesce(p.proargnames, '{}')
            else array(select coalesce(m.name, '') from unnest(p.proargnames, p.proargmodes) as m (name, mode)
                        where m.mode in ('i', 'b', 'v')) end as arguments,
       p.prorettype = 'pg_catalog.trigger'::regtype as returns_trigger,
       p.prosecdef as security_definer,
       coalesce(p.prosrc, '') as source,
       case when l.lanname = 'plpgsql' then pg_catalog.pg_get_functiondef(p.oid) end as definition,
       p.prosqlbody is not null as standard,
       pg_catalog.pg_get_function_sqlbody(p.oid) as sql_body,
       coalesce(p.proconfig, '{}') as config,
       (select e.extname from pg_catalog.pg_depend d
          join pg_catalog.pg_extension e on e.oid = d.refobjid
         where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid
           and d.refclassid = 'pg_catalog.pg_extension'::regclass and d.deptype = 'e' limit 1) as extension
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  join pg_catalog.pg_language l on l.oid = p.prolang
 where p.prokind in ('f', 'p')
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by n.nspname, p.proname, p.oid;

-- name: read_builtins
-- The names of the server's own functions; volatile when any of that name is.
select p.proname as name, bool_or(p.provolatile = 'v') as volatile
  from pg_catalog.pg_proc p
 where p.pronamespace = 'pg_catalog'::regnamespace
 group by p.proname;

-- name: read_aggregates
-- Names of people's own aggregates and window functions, whose parts are not followed.
select distinct n.nspname as schema, p.proname as name
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where p.prokind in ('a', 'w')
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)';

-- name: read_views
-- Which views look at which tables.
select distinct r.ev_class::bigint as view_oid, d.refobjid::bigint as table_oid
  from pg_catalog.pg_rewrite r
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = r.oid
  join pg_catalog.pg_class v on v.oid = r.ev_class and v.relkind in ('v', 'm')
  join pg_catalog.pg_namespace n on n.oid = v.relnamespace
 where d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> r.ev_class
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)';

-- name: read_publications
-- Tables that people publish to subscribers of their own, by name (never FOR ALL TABLES).
select r.prrelid::bigint as table_oid, p.pubname as publication
  from pg_catalog.pg_publication_rel r
  join pg_catalog.pg_publication p on p.oid = r.prpubid
 where p.pubname !~ '^afterwrite(_|$)'
 order by r.prrelid, p.pubname;

-- name: read_policies
-- Row security policies, with the other tables and the functions that they look at.
select p.polrelid::bigint as table_oid,
       p.polname as name,
       array(select distinct d.refobjid::bigint from pg_catalog.pg_depend d
              where d.classid = 'pg_catalog.pg_policy'::regclass and d.objid = p.oid
                and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> p.polrelid) as reads,
       array(select distinct d.refobjid::bigint from pg_catalog.pg_depend d
              where d.classid = 'pg_catalog.pg_policy'::regclass and d.objid = p.oid
                and d.refclassid = 'pg_catalog.pg_proc'::regclass) as functions
  from pg_catalog.pg_policy p
  join pg_catalog.pg_class c on c.oid = p.polrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where n.nspname !~ '^afterwrite(_|$)'
 order by p.polrelid, p.polname;
