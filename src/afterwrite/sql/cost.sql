-- name: read_clock
-- When this is read, on which side of replication, and how far the WAL and its statistics are (all databases together).
select pg_catalog.extract('epoch', pg_catalog.clock_timestamp())::float8 as at,
       pg_catalog.pg_is_in_recovery() as standby,
       case when not pg_catalog.pg_is_in_recovery()
            then pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::bigint end as wal_position,
       w.wal_records::bigint as wal_records,
       w.wal_fpi::bigint as wal_images,
       d.active_time as active_ms,
       d.xact_commit::bigint as commits,
       pg_catalog.current_setting('track_functions') as track_functions,
       pg_catalog.current_setting('track_counts')::boolean as track_counts
  from pg_catalog.pg_stat_wal w, pg_catalog.pg_stat_database d
 where d.datname = pg_catalog.current_database();

-- name: read_function_times
-- Calls and times of these functions, as far as they were counted.
select f.funcid::bigint as oid, f.calls::bigint as calls, f.total_time as total_ms, f.self_time as self_ms
  from pg_catalog.pg_stat_user_functions f
 where f.funcid = any (:oids::bigint[]::oid[]);

-- name: read_writes
-- Rows written to these tables, as far as they were counted.
select t.oid::bigint as oid,
       pg_catalog.pg_stat_get_tuples_inserted(t.oid)::bigint as inserted,
       pg_catalog.pg_stat_get_tuples_updated(t.oid)::bigint as updated,
       pg_catalog.pg_stat_get_tuples_deleted(t.oid)::bigint as deleted,
       pg_catalog.pg_stat_get_tuples_hot_updated(t.oid)::bigint as hot
  from pg_catalog.unnest(:oids::bigint[]::oid[]) as t (oid);

-- name: find_statement_statistics
-- Where pg_stat_statements is, whether its view can be asked (nested statements told apart since 1.9), and what it tracks.
select n.nspname as schema,
       exists (select from pg_catalog.pg_attribute a
                where a.attrelid = c.oid and a.attname = 'toplevel' and not a.attisdropped) as tells_nested,
       pg_catalog.current_setting('pg_stat_statements.track', true) as track,
       pg_catalog.pg_has_role('pg_read_all_stats', 'usage') as reads_all
  from pg_catalog.pg_extension e
  join pg_catalog.pg_namespace n on n.oid = e.extnamespace
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = 'pg_stat_statements'
 where e.extname = 'pg_stat_statements';

-- name: read_statements
-- Statements that write, in this database: those that the application sent, and those inside functions by their target.
select s.toplevel,
       case when not s.toplevel
            then pg_catalog.lower(pg_catalog.substring(s.query, '(?i)\m(?:into|update|from)\s+(?:only\s+)?([\w."$]+)')) end
         as target,
       pg_catalog.sum(s.calls)::bigint as calls,
       pg_catalog.sum(s.total_exec_time)::float8 as ms,
       pg_catalog.sum(s.rows)::bigint as rows,
       pg_catalog.sum(s.wal_bytes)::bigint as wal
  from "{schema}".pg_stat_statements s
 where s.dbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and s.query operator(pg_catalog.~*) '^[\s(]*(insert|update|delete|merge|copy|call|with\M.*\m(insert\s+into|update|delete\s+from|merge\s+into)\M)'
 group by 1, 2;

-- name: read_io
-- What the sessions of clients wrote themselves, in operations (PostgreSQL 16 or later).
select pg_catalog.sum(i.writes)::bigint as writes,
       pg_catalog.sum(i.extends)::bigint as extends
  from pg_catalog.pg_stat_io i
 where i.backend_type = 'client backend';

-- name: read_waits
-- Sessions that wait for a row: in which table, what they write so far, and what they were told to do.
with locks as materialized (
  select l.pid, l.locktype, l.relation, l.page, l.tuple, l.mode, l.granted
    from pg_catalog.pg_locks l
   where l.locktype in ('tuple', 'transactionid', 'relation')
     and (l.database is null
       or l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
)
select w.pid,
       coalesce(w.relation, h.relation)::bigint as table_oid,
       coalesce(w.page, h.page) as page,
       coalesce(w.tuple, h.tuple)::integer as tuple,
       array(select distinct l.relation::bigint from locks l
              where l.pid = w.pid and l.locktype = 'relation' and l.granted and l.mode = 'RowExclusiveLock') as writing,
       case when pg_catalog.pg_has_role('pg_read_all_stats', 'usage') or pg_catalog.pg_has_role(a.usesysid, 'usage')
            then a.query end as query
  from locks w
  left join lateral (select t.relation, t.page, t.tuple from locks t
                      where t.pid = w.pid and t.locktype = 'tuple' and t.granted limit 1) h on true
  join pg_catalog.pg_stat_activity a on a.pid = w.pid and a.datname = pg_catalog.current_database()
 where not w.granted and w.locktype in ('tuple', 'transactionid');

-- name: read_rights
-- What this role may do for a probe: write here at all, make a temporary function.
select pg_catalog.pg_is_in_recovery() as standby,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'temporary') as temporary,
       pg_catalog.current_setting('is_superuser')::boolean as superuser;

-- name: may_pass_triggers_over
-- Whether this role may set session_replication_role (PostgreSQL 15 or later; before, superusers may).
select pg_catalog.has_parameter_privilege('session_replication_role', 'set');

-- name: read_table_rights
-- What this role may do with one table, and who owns it.
select pg_catalog.pg_has_role(c.relowner, 'usage') as owner,
       pg_catalog.has_table_privilege(c.oid, 'select') as reads,
       pg_catalog.has_table_privilege(c.oid, 'insert') as inserts,
       pg_catalog.has_table_privilege(c.oid, 'update') as updates,
       pg_catalog.has_table_privilege(c.oid, 'delete') as deletes,
       pg_catalog.pg_get_userbyid(c.relowner)::text as owned_by
  from pg_catalog.pg_class c
 where c.oid = :oid::bigint::oid;

-- name: be_brief
-- Wait for nobody and run nothing long, until the transaction ends; it is rolled back when its session is left alone.
select pg_catalog.set_config('lock_timeout', :lock::text, true),
       pg_catalog.set_config('statement_timeout', :statement::text, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', :idle::text, true);

-- name: end_long_statements
-- Let no statement of this session run longer.
select pg_catalog.set_config('statement_timeout', :limit::text, false);

-- name: read_size
-- How much room this database takes.
select pg_catalog.pg_database_size(pg_catalog.current_database());

-- name: set_for_now
-- Set a setting until the transaction ends.
select pg_catalog.set_config(:name::text, :value::text, true);

-- name: read_rows_written
-- Rows that this transaction has written so far, what was undone included.
select coalesce(pg_catalog.sum(x.n_tup_ins + x.n_tup_upd + x.n_tup_del), 0)::bigint as rows
  from pg_catalog.pg_stat_xact_user_tables x;

-- name: read_wal_position
-- How much WAL there is, all sessions together.
select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::float8 as position;

-- name: read_types
-- Types of columns: base types, enums with their labels, domains, ranges and composite types.
select t.oid::bigint as oid,
       n.nspname as schema,
       t.typname as name,
       t.typtype::text as kind,
       t.typcategory::text as category,
       nullif(t.typbasetype, 0)::bigint as base,
       t.typtypmod as modifier,
       nullif(t.typelem, 0)::bigint as element,
       array(select e.enumlabel::text from pg_catalog.pg_enum e where e.enumtypid = t.oid order by e.enumsortorder) as labels,
       array(select pg_catalog.pg_get_constraintdef(k.oid) from pg_catalog.pg_constraint k
              where k.contypid = t.oid and k.contype = 'c') as checks,
       (select r.rngsubtype::bigint from pg_catalog.pg_range r where r.rngtypid = t.oid) as bound,
       array(select a.atttypid::bigint from pg_catalog.pg_attribute a
              where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum) as fields
  from pg_catalog.pg_type t
  join pg_catalog.pg_namespace n on n.oid = t.typnamespace
  left join pg_catalog.pg_class c on c.oid = t.typrelid
 where t.typtype in ('b', 'd', 'e', 'r', 'm') or c.relkind = 'c';

-- name: read_column_types
-- The type and its modifier of every column of these tables, and whether a value must be left to the server.
select a.attrelid::bigint as table_oid,
       a.attname as name,
       a.atttypid::bigint as type,
       a.atttypmod as modifier,
       a.attidentity = 'a' as always
  from pg_catalog.pg_attribute a
 where a.attrelid = any (:oids::bigint[]::oid[]) and a.attnum > 0 and not a.attisdropped;

-- name: read_checks
-- Conditions that a row of these tables must meet, as expressions over its columns.
select k.conrelid::bigint as table_oid,
       k.conname as name,
       pg_catalog.pg_get_expr(k.conbin, k.conrelid) as expression,
       array(select a.attname::text from pg_catalog.unnest(k.conkey) as u (number)
               join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.number) as columns
  from pg_catalog.pg_constraint k
 where k.contype = 'c' and k.conrelid = any (:oids::bigint[]::oid[]);

-- name: read_partition_bounds
-- What rows each partition takes, as an expression over the columns, for the leaves of these tables.
select p.relid::bigint as leaf, pg_catalog.pg_get_partition_constraintdef(p.relid) as expression, r.oid::bigint as root
  from pg_catalog.unnest(:oids::bigint[]::oid[]) as r (oid),
       lateral pg_catalog.pg_partition_tree(r.oid) as p
 where p.isleaf and p.relid <> r.oid;

-- name: read_partition_keys
-- Columns by which these tables are partitioned; an expression's are not known.
select p.partrelid::bigint as table_oid, a.attname as column
  from pg_catalog.pg_partitioned_table p,
       lateral pg_catalog.unnest(p.partattrs::smallint[]) as k (number)
  join pg_catalog.pg_attribute a on a.attnum = k.number
 where a.attrelid = p.partrelid and p.partrelid = any (:oids::bigint[]::oid[]);
