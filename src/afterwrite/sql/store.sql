-- name: read_installed
-- Whether the schema is there at all.
select pg_catalog.to_regclass('afterwrite.version') is not null;

-- name: read_upgrades
-- The upgrades that this database has had, oldest first.
select number, name from afterwrite.version order by number;

-- name: lock_upgrades
-- One installer at a time in this database, until its transaction ends.
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('afterwrite.install', 0));

-- name: record_upgrade
-- Note an upgrade as applied.
insert into afterwrite.version (number, name) values (:number, :name);

-- name: lock_partitions
-- One maker of partitions at a time, until its transaction ends.
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('afterwrite.partitions', 0));

-- name: read_partitions
-- The partitions of the activity table, by name.
select c.relname
  from pg_catalog.pg_inherits i
  join pg_catalog.pg_class c on c.oid = i.inhrelid
 where i.inhparent = 'afterwrite.activity'::pg_catalog.regclass
 order by c.relname;

-- name: read_default_days
-- The days (UTC) whose rows lie in the default partition although they could have their own.
select distinct (occurred_at at time zone 'UTC')::date
  from afterwrite.activity_default
 where occurred_at >= :first_day::timestamp at time zone 'UTC'
   and occurred_at < :last_day::timestamp at time zone 'UTC' + interval '1 day'
 order by 1;

-- name: next_batch
-- A new batch's id; its rows will be flushed at commit even where synchronous_commit is off by default.
select nextval('afterwrite.batch_id_seq'::regclass) as id,
       case when current_setting('synchronous_commit') = 'off' then set_config('synchronous_commit', 'on', true) end;

-- name: lock_checkpoint
-- How far this source is stored; held until the transaction ends, so that two workers follow each other.
select source, slot, system_id, timeline, lsn::text as lsn
  from afterwrite.checkpoint
 where source = :source
   for update;

-- name: read_checkpoint
-- How far this source is stored.
select source, slot, system_id, timeline, lsn::text as lsn
  from afterwrite.checkpoint
 where source = :source;

-- name: move_checkpoint
-- Move the checkpoint forward (or leave it); no row comes back when it is of another cluster, or further already.
insert into afterwrite.checkpoint as c (source, slot, system_id, timeline, lsn, batch_id)
values (:source, :slot, :system_id, :timeline, :lsn::pg_lsn, :batch_id)
on conflict (source) do update
   set slot = excluded.slot, timeline = excluded.timeline, lsn = excluded.lsn,
       batch_id = coalesce(excluded.batch_id, c.batch_id), updated_at = clock_timestamp()
 where c.system_id = excluded.system_id
   and c.lsn <= excluded.lsn
returning c.source;

-- name: make_staging
-- Where rows wait that may be stored already; it lives as long as the session and is empty after each transaction.
create temporary table if not exists afterwrite_staging (like afterwrite.activity) on commit delete rows;

-- name: store_staged
-- Store the waiting rows that are not stored yet, in an order that lets two writers of the same rows follow each other.
insert into afterwrite.activity (
    id, caused_by, occurred_at, batch_id, xid, commit_lsn, duration_ms, ordinal, source, kind, category, action, outcome,
    severity, entity_type, entity_id, actor_id, actor_type, tenant_id, session_id, request_id, trace_id, ip, user_agent,
    summary, relation, operation, changed, before, after, metadata
)
select id, caused_by, occurred_at, batch_id, xid, commit_lsn, duration_ms, ordinal, source, kind, category, action, outcome,
       severity, entity_type, entity_id, actor_id, actor_type, tenant_id, session_id, request_id, trace_id, ip, user_agent,
       summary, relation, operation, changed, before, after, metadata
  from pg_temp.afterwrite_staging
 order by occurred_at, id
    on conflict (occurred_at, id) do nothing;

-- name: store_contexts
-- Keep the settings that the batch's transactions stamped.
insert into afterwrite.transaction_context (source, commit_lsn, xid, batch_id, settings)
select :source, c.lsn::pg_lsn, c.xid, :batch_id, c.settings::jsonb
  from unnest(:lsns::text[], :xids::bigint[], :settings::text[]) as c (lsn, xid, settings)
 order by 2, 3
    on conflict (source, commit_lsn, xid) do nothing;

-- name: seal_batch
-- Count and sum the rows of a batch that is about to be closed.
select rows, rows_per_table::text as rows_per_table, rows_digest
  from afterwrite.seal(:batch_id, :first_at, :last_at);

-- name: next_position
-- The next place in the feed; the row lock is held until commit, so that places become visible in order.
update afterwrite.feed set position = position + 1 returning position;

-- name: close_batch
-- Write the batch's row, chained to the one before it of the same source.
insert into afterwrite.batch (
    id, position, source, first_lsn, last_lsn, first_at, last_at, transactions, rows, rows_per_table, rows_digest, digest
)
select :id, :position, :source, :first_lsn::pg_lsn, :last_lsn::pg_lsn, :first_at, :last_at, :transactions, :rows,
       :rows_per_table::jsonb, :rows_digest,
       afterwrite.chain(
           (select b.digest from afterwrite.batch b where b.source = :source order by b.position desc limit 1),
           :position, :id, :source, :first_lsn::pg_lsn, :last_lsn::pg_lsn, :transactions, :rows, :rows_digest
       );

-- name: try_json
-- Whether the server takes this text as jsonb.
select :text::jsonb is not null;
