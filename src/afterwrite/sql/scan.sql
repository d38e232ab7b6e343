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

-- name: read_holders
-- The tables that somebody else holds so that nobody may look at them, and the sessions that do.
select array(select distinct n.nspname || '.' || c.relname
               from pg_catalog.unnest(array_agg(l.relation)) as u (oid)
               join pg_catalog.pg_class c on c.oid = u.oid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_'
              order by 1) as tables,
       l.pid as session
  from pg_catalog.pg_locks l
 where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted and l.pid <> pg_catalog.pg_backend_pid()
   and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
 group by l.pid
 order by l.pid;

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
   -- Our own stamp is no part of what is to be judged, and nobody shall be told to take it away.
   and pn.nspname <> 'afterwrite_stamp'
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
       case when c.relkind = 'p' then pg_catalog.pg_get_partkeydef(c.oid) end as partition_key,
       pg_catalog.pg_get_expr(c.relpartbound, c.oid) as partition_bound,
       c.relpersistence::text as persistence,
       c.relreplident::text as replica_identity,
       c.relrowsecurity as row_security,
       c.relforcerowsecurity as forced_row_security,
       pg_catalog.pg_get_userbyid(c.relowner) as owner,
       c.relkind in ('r', 'p') and c.relhasrules as has_rules,
       case when c.relkind in ('v', 'm') then pg_catalog.pg_get_viewdef(c.oid) end as definition,
       greatest(c.reltuples, 0)::bigint as row_estimate,
       coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0) as scans,
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
       case when a.attgenerated <> '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as expression,
       a.attidentity <> '' as identity,
       case when a.attidentity <> ''
            then (select pg_catalog.quote_ident(sn.nspname) || '.' || pg_catalog.quote_ident(s.relname)
                    from pg_catalog.pg_depend k
                    join pg_catalog.pg_class s on s.oid = k.objid and s.relkind = 'S'
                    join pg_catalog.pg_namespace sn on sn.oid = s.relnamespace
                   where k.classid = 'pg_catalog.pg_class'::regclass and k.refclassid = 'pg_catalog.pg_class'::regclass
                     and k.refobjid = a.attrelid and k.refobjsubid = a.attnum and k.deptype = 'i' limit 1)
       end as sequence,
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
       k.confupdtype::text as on_update,
       pg_catalog.pg_get_constraintdef(k.oid) as definition,
       pg_catalog.pg_get_expr(k.conbin, k.conrelid) as expression
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
       pg_catalog.pg_get_expr(i.indexprs, i.indrelid) as expressions,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) as condition,
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

-- name: read_index_expressions
-- What indexes of those tables compute whenever a row is written: their expressions and conditions.
select i.indrelid::bigint as table_oid,
       c.relname as name,
       pg_catalog.pg_get_expr(i.indexprs, i.indrelid) as expressions,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) as condition
  from pg_catalog.pg_index i
  join pg_catalog.pg_class c on c.oid = i.indexrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where (i.indexprs is not null or i.indpred is not null)
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by i.indrelid, c.relname;

-- name: read_operator_classes
-- Functions of people's schemas that an index or a partition key runs whenever a row is written: to compare, to hash.
with used (table_oid, class_oid, what) as (
    select i.indrelid, k.class, 'the ' || pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, i.indexrelid, 0)
      from pg_catalog.pg_index i, pg_catalog.unnest(i.indclass::oid[]) as k (class)
     union
    select p.partrelid, k.class, 'the partition key of ' || p.partrelid::regclass::text
      from pg_catalog.pg_partitioned_table p, pg_catalog.unnest(p.partclass::oid[]) as k (class)
), made as (
    select c.oid as class_oid, r.amproc::oid as function_oid
      from pg_catalog.pg_opclass c
      join pg_catalog.pg_amproc r on r.amprocfamily = c.opcfamily
     union
    select c.oid, o.oprcode::oid
      from pg_catalog.pg_opclass c
      join pg_catalog.pg_amop a on a.amopfamily = c.opcfamily
      join pg_catalog.pg_operator o on o.oid = a.amopopr
)
select distinct u.table_oid::bigint as table_oid, f.oid::bigint as function_oid, u.what as what
  from made m
  join pg_catalog.pg_proc f on f.oid = m.function_oid
  join pg_catalog.pg_namespace n on n.oid = f.pronamespace
  join used u on u.class_oid = m.class_oid
 where n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by 1, 2, 3;

-- name: read_domains
-- People's domains: what they are made of, and what a value must satisfy.
select pg_catalog.format_type(t.oid, null) as name,
       n.nspname as schema,
       t.typname as short,
       pg_catalog.format_type(t.typbasetype, t.typtypmod) as base,
       t.typnotnull as not_null,
       pg_catalog.pg_get_expr(t.typdefaultbin, 0) as "default",
       array(select k.conname::text from pg_catalog.pg_constraint k
              where k.contypid = t.oid and k.contype = 'c' order by k.conname) as constraints,
       array(select pg_catalog.pg_get_constraintdef(k.oid) from pg_catalog.pg_constraint k
              where k.contypid = t.oid and k.contype = 'c' order by k.conname) as checks
  from pg_catalog.pg_type t
  join pg_catalog.pg_namespace n on n.oid = t.typnamespace
 where t.typtype = 'd'
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by n.nspname, t.typname;

-- name: read_operators
-- Operators that run a function of people's schemas.
select distinct o.oprname as name, o.oprcode::oid::bigint as function_oid
  from pg_catalog.pg_operator o
  join pg_catalog.pg_proc p on p.oid = o.oprcode
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by 1, 2;

-- name: read_casts
-- Casts that run a function of people's schemas, and between which types.
select pg_catalog.format_type(k.castsource, null) as source,
       pg_catalog.format_type(k.casttarget, null) as target,
       k.castfunc::bigint as function_oid
  from pg_catalog.pg_cast k
  join pg_catalog.pg_proc p on p.oid = k.castfunc
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by 3;

-- name: read_inheritance
-- Tables that inherit from others without being their partitions.
select i.inhrelid::bigint as child_oid, i.inhparent::bigint as parent_oid
  from pg_catalog.pg_inherits i
  join pg_catalog.pg_class c on c.oid = i.inhrelid
 where c.relkind in ('r', 'f') and not c.relispartition
 order by 1, i.inhseqno;

-- name: read_enforcing
-- What calls functions of people's schemas whenever a row of its table is written: constraints, defaults, indexes.
select distinct d.refobjid::bigint as function_oid,
       case when d.classid = 'pg_catalog.pg_class'::regclass then 'the ' else '' end
         || pg_catalog.pg_describe_object(d.classid, d.objid, 0) as what
  from pg_catalog.pg_depend d
  join pg_catalog.pg_proc p on p.oid = d.refobjid
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where d.refclassid = 'pg_catalog.pg_proc'::regclass
   and (d.classid in ('pg_catalog.pg_constraint'::regclass, 'pg_catalog.pg_attrdef'::regclass)
     or d.classid = 'pg_catalog.pg_class'::regclass
        and exists (select from pg_catalog.pg_index i where i.indexrelid = d.objid))
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by 1, 2;

-- name: read_search_paths
-- Where sessions of other roles look for unqualified names, as far as somebody configured it.
select distinct pg_catalog.substr(s.setting, 13) as path
  from pg_catalog.pg_db_role_setting r, pg_catalog.unnest(r.setconfig) as s (setting)
 where s.setting like 'search_path=%'
   and r.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
 order by 1;

-- name: read_event_triggers
-- Triggers on commands: what is done to tables and triggers sets them off.
select e.evtname as name, e.evtevent as event, p.oid::regprocedure::text as function
  from pg_catalog.pg_event_trigger e
  join pg_catalog.pg_proc p on p.oid = e.evtfoid
 where e.evtenabled <> 'D'
   and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_event_trigger'::regclass
                      and d.objid = e.oid and d.deptype = 'e')
 order by e.evtname;

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
       array(select pg_catalog.format_type(a.type, null)
               from pg_catalog.unnest(p.proargtypes::oid[]) with ordinality as a (type, place)
              order by a.place) as argument_types,
       pg_catalog.format_type(p.prorettype, null) as result_type,
       pg_catalog.pg_get_expr(p.proargdefaults, 0) as defaults,
       coalesce('b' = any (p.proargmodes), false) as sets_arguments,
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
 where p.prokind in ('f', 'p', 'w')
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by n.nspname, p.proname, p.oid;

-- name: read_builtins
-- The names of the server's own functions; volatile when any of that name is.
select p.proname as name, bool_or(p.provolatile = 'v') as volatile
  from pg_catalog.pg_proc p
 where p.pronamespace = 'pg_catalog'::regnamespace
 group by p.proname;

-- name: read_aggregates
-- People's own aggregates, and the functions that they run.
select n.nspname as schema,
       p.proname as name,
       array(select f::oid::bigint
               from pg_catalog.unnest(array[a.aggtransfn, a.aggfinalfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]) as f
              where f::oid <> 0) as functions
  from pg_catalog.pg_aggregate a
  join pg_catalog.pg_proc p on p.oid = a.aggfnoid
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by n.nspname, p.proname;

-- name: read_views
-- Which views look at which tables.
select distinct r.ev_class::bigint as view_oid, d.refobjid::bigint as table_oid
  from pg_catalog.pg_rewrite r
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = r.oid
  join pg_catalog.pg_class v on v.oid = r.ev_class and v.relkind in ('v', 'm')
  join pg_catalog.pg_namespace n on n.oid = v.relnamespace
 where d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> r.ev_class
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)';

-- name: read_rules
-- Rewrite rules of people's tables and views, but for those that make a view what it is.
select r.ev_class::bigint as table_oid,
       r.rulename as name,
       case r.ev_type when '2' then 'update' when '3' then 'insert' when '4' then 'delete' end as event,
       pg_catalog.pg_get_ruledef(r.oid) as definition,
       array(select distinct d.refobjid::bigint from pg_catalog.pg_depend d
              where d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = r.oid
                and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> r.ev_class) as reads
  from pg_catalog.pg_rewrite r
  join pg_catalog.pg_class c on c.oid = r.ev_class
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where r.rulename <> '_RETURN' and r.ev_type <> '1' and r.ev_enabled <> 'D'
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by r.ev_class, r.rulename;

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
       pg_catalog.pg_get_expr(p.polqual, p.polrelid) as using_expression,
       pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) as check_expression,
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
