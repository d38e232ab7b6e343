-- name: read_place
-- Which database this is, the time zone that its sessions begin with, and the cluster where we may ask.
select pg_catalog.current_database() as database,
       pg_catalog.current_setting('TimeZone') as time_zone,
       pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'execute') as may_identify;

-- name: read_system
-- The cluster's own number.
select system_identifier::text from pg_catalog.pg_control_system();

-- name: find_log
-- The table that people call so, as it is.
select n.nspname as schema, c.relname as name
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.oid = pg_catalog.to_regclass(:name)
   and c.relkind in ('r', 'p', 'v', 'm', 'f');

-- name: find_log_by_name
-- Tables of that name in any schema that is not the server's, where nobody said in which.
select n.nspname as schema, c.relname as name
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relname = :name
   and c.relkind in ('r', 'p')
   and n.nspname not in ('pg_catalog', 'information_schema', 'afterwrite')
   and n.nspname !~ '^pg_(toast|temp)'
 order by n.nspname = 'public' desc, n.nspname;

-- name: read_leading
-- Columns that an index of this table begins with, where it holds every row: rows can be read in their order.
select distinct a.attname::text
  from pg_catalog.pg_index i
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
  join pg_catalog.pg_am m on m.oid = (select c.relam from pg_catalog.pg_class c where c.oid = i.indexrelid)
 where i.indrelid = pg_catalog.to_regclass(:table)
   and i.indpred is null
   and i.indisvalid
   and m.amname = 'btree';

-- name: read_hstore
-- The schema of extension hstore, where it is there.
select n.nspname
  from pg_catalog.pg_extension e
  join pg_catalog.pg_namespace n on n.oid = e.extnamespace
 where e.extname = 'hstore';

-- name: check_zone
-- Whether the server knows this time zone.
select exists (select from pg_catalog.pg_timezone_names where pg_catalog.lower(name) = pg_catalog.lower(:zone::text));

-- name: read_listed
-- The tables that capture publishes here.
select distinct p.schema as schema, p.name as name
  from afterwrite.published p
  join afterwrite.publication b on b.slot = p.slot and b.name = p.publication
 where p.publication <> :legacy_publication;

-- name: is_capturing
-- Whether this database has what capture remembers.
select pg_catalog.to_regclass('afterwrite.published') is not null;

-- name: read_first_batches
-- By table, the first batch of a source that brought a change of it.
select r.relation, b.id as batch_id, b.first_at, b.last_at
  from unnest(:relations::text[]) as r (relation)
 cross join lateral (
       select id, first_at, last_at
         from afterwrite.batch
        where source = :source and last_lsn is not null and rows_per_table ? r.relation
        order by position
        limit 1
       ) b;

-- name: read_first_change
-- When the first of these changes was committed.
select min(a.occurred_at)
  from afterwrite.activity a
 where a.batch_id = :batch_id
   and a.relation = :relation
   and a.kind = 'change'
   and a.occurred_at between :first_at and :last_at;

-- name: read_borderline
-- Which of these rows (written by transactions that began before capture did) are changes that the store has itself.
select w.number
  from unnest(:numbers::integer[], :relations::text[], :operations::text[], :ids::text[], :xids::bigint[],
                         :moments::timestamptz[]) as w (number, relation, operation, id, xid, moment)
 where exists (
           select from afterwrite.activity a
            where a.source = :source
              and a.kind = 'change'
              and a.relation = w.relation
              and a.operation = w.operation
              and a.entity_id = w.id
              and a.xid = w.xid
              and a.occurred_at >= w.moment
              and a.occurred_at < w.moment + interval '1 day'
       );

-- name: read_gaps
-- How many stretches of this source's changes the store is known to lack.
select count(*) from afterwrite.gap where source = :source;

-- name: lock_log
-- Be the only one that imports this log; the lock ends with the session.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('afterwrite.import/' || :name, 0));

-- name: read_log
-- How far a log is imported, and by which mapping.
select id, system_id, mapping, through, chunks
  from afterwrite.legacy_log
 where source = :source and database = :database and relation = :relation;

-- name: read_begun
-- The logs of a database whose import has begun.
select relation from afterwrite.legacy_log where source = :source and database = :database order by relation;

-- name: begin_log
-- Remember that a log is imported, and by which mapping.
insert into afterwrite.legacy_log (source, database, relation, system_id, mapping)
values (:source, :database, :relation, :system_id, :mapping)
returning id, system_id, mapping, through, chunks;

-- name: move_system
-- Take this cluster for the one that the log is in.
update afterwrite.legacy_log set system_id = :system_id where id = :id;

-- name: move_log
-- Go on from where the log was left; nobody else may have gone on since.
update afterwrite.legacy_log
   set through = :through::text[], chunks = :number, moved_at = pg_catalog.clock_timestamp()
 where id = :id
   and chunks = :number - 1
   and through is not distinct from :after::text[];

-- name: note_chunk
-- Remember a chunk that is stored in this transaction.
insert into afterwrite.legacy_chunk (log, number, after, through, rows, stored, left_out, digest, batch_id)
values (:log, :number, :after::text[], :through::text[], :rows, :stored, :left_out::jsonb, :digest, :batch_id);

-- name: amend_chunk
-- Remember that rows of a chunk that came late are stored in this transaction.
update afterwrite.legacy_chunk
   set rows = :rows, stored = :stored, left_out = :left_out::jsonb, digest = :digest, at = pg_catalog.clock_timestamp()
 where log = :log and number = :number;

-- name: read_totals
-- What was imported of a log so far.
select count(*) as chunks, coalesce(sum(rows), 0)::bigint as rows, coalesce(sum(stored), 0)::bigint as stored
  from afterwrite.legacy_chunk
 where log = :log;

-- name: read_chunks
-- The next chunks of a log.
select number, after, through, rows, stored, left_out, digest
  from afterwrite.legacy_chunk
 where log = :log and number > :after
 order by number
 limit :limit;

-- name: read_present
-- Which of these activities are stored.
select a.id::text
  from unnest(:ids::uuid[], :moments::timestamptz[]) as w (id, moment)
  join afterwrite.activity a on a.occurred_at = w.moment and a.id = w.id;

-- name: copy_present
-- These activities as a seal takes them, with 0 for the batch.
copy (
    select a.id, a.ordinal, a.entity_id, a.summary, a.duration_ms, a.changed, a.before, a.after, a.metadata,
           0 as batch_id, a.occurred_at, a.source, a.actor_id, a.actor_type, a.tenant_id, a.session_id,
           a.request_id, a.trace_id, a.ip, a.user_agent, a.caused_by, a.xid, a.commit_lsn, a.kind, a.category,
           a.action, a.outcome, a.severity, a.entity_type, a.relation, a.operation
      from unnest(:ids::uuid[], :moments::timestamptz[]) as w (id, moment)
      join afterwrite.activity a on a.occurred_at = w.moment and a.id = w.id
     order by a.commit_lsn nulls first, a.ordinal, a.occurred_at, a.id
) to stdout;
