-- name: read_installed
-- Whether the schema is there at all.
select pg_catalog.to_regclass('afterwrite.version') is not null;

-- name: read_encoding
-- How this database encodes text.
select pg_catalog.current_setting('server_encoding');

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
-- The days (UTC) whose rows lie in the default partition although they could have their own: the primary key, in leaps.
with recursive leaps as (
    (select (occurred_at at time zone 'UTC')::date as day
       from afterwrite.activity_default
      where occurred_at >= :first_day::timestamp at time zone 'UTC'
      order by occurred_at
      limit 1)
    union all
    select (
            select (d.occurred_at at time zone 'UTC')::date
              from afterwrite.activity_default d
             where d.occurred_at >= (leaps.day + 1)::timestamp at time zone 'UTC'
             order by d.occurred_at
             limit 1
           )
      from leaps
     where leaps.day < :last_day
)
select day from leaps where day <= :last_day;

-- name: count_default_day
-- How many rows of a day lie in the default partition, counted as far as a limit.
select count(*)
  from (
        select
          from afterwrite.activity_default
         where occurred_at >= :day::timestamp at time zone 'UTC'
           and occurred_at < (:day + 1)::timestamp at time zone 'UTC'
         limit :limit
       ) as counted;

-- name: read_default_bytes
-- How much ATTACH would have to read of the default partition.
select pg_catalog.pg_relation_size('afterwrite.activity_default'::regclass);

-- name: read_foreign_owner
-- Who owns the activity table, where that is somebody else than us.
select pg_catalog.pg_get_userbyid(relowner)
  from pg_catalog.pg_class
 where oid = 'afterwrite.activity'::regclass and relowner <> (select oid from pg_catalog.pg_roles where rolname = current_user);

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
-- The next place in the feed, in order by a row lock held until commit; at commit those who listen are told.
with moved as (update afterwrite.feed set position = position + 1 returning position)
select position, pg_catalog.pg_notify('afterwrite_feed', '') from moved;

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

-- name: read_position
-- The newest position of the feed.
select position from afterwrite.feed;

-- name: read_batches
-- The next batches of the feed, in order.
select id, position, source, first_lsn::text as first_lsn, last_lsn::text as last_lsn, first_at, last_at, transactions,
       rows, rows_per_table, written_at
  from afterwrite.batch
 where position > :after_position
   and (:source::text is null or source = :source)
 order by position
 limit :limit;

-- name: read_batch_activities
-- What these batches hold, in the order of the feed; the times say in which partitions to look.
select b.position, a.batch_id, a.id::text as id, a.occurred_at, a.source, a.kind, a.category, a.action, a.outcome, a.severity,
       a.entity_type, a.entity_id, a.actor_id, a.actor_type, a.tenant_id, a.session_id, a.request_id, a.trace_id,
       abbrev(a.ip) as ip, a.user_agent, a.duration_ms, a.summary, a.relation, a.operation, a.changed,
       a.before::text as before, a.after::text as after, a.metadata::text as metadata, a.caused_by::text as caused_by,
       a.xid, a.commit_lsn::text as commit_lsn, a.ordinal
  from afterwrite.activity a
  join afterwrite.batch b on b.id = a.batch_id
 where a.batch_id = any (:batch_ids::bigint[])
   and a.occurred_at between :first_at and :last_at
   and (:relations::text[] is null or a.relation = any (:relations::text[]) or a.kind = 'event')
   and (:events or a.kind = 'change')
 order by b.position, a.commit_lsn nulls first, a.ordinal, a.occurred_at, a.id;

-- name: read_settings
-- The settings that the transactions of these batches stamped.
select batch_id, commit_lsn::text as commit_lsn, settings
  from afterwrite.transaction_context
 where batch_id = any (:batch_ids::bigint[]);

-- name: read_newest
-- The newest activity, newest first.
select b.position, a.batch_id, a.id::text as id, a.occurred_at, a.source, a.kind, a.category, a.action, a.outcome, a.severity,
       a.entity_type, a.entity_id, a.actor_id, a.actor_type, a.tenant_id, a.session_id, a.request_id, a.trace_id,
       abbrev(a.ip) as ip, a.user_agent, a.duration_ms, a.summary, a.relation, a.operation, a.changed,
       a.before::text as before, a.after::text as after, a.metadata::text as metadata, a.caused_by::text as caused_by,
       a.xid, a.commit_lsn::text as commit_lsn, a.ordinal
  from afterwrite.activity a
  join afterwrite.batch b on b.id = a.batch_id
 where true
   and (:actor_id::text is null or a.actor_id = :actor_id)
   and (:entity_type::text is null or a.entity_type = :entity_type)
   and (:entity_id::text is null or a.entity_id = :entity_id)
   and (:action::text is null or a.action = :action)
 order by a.occurred_at desc, a.id desc
 limit :limit;

-- name: read_after
-- What the feed brought after a position, in its order; the last batch comes whole.
select *
  from (
        select b.position, a.batch_id, a.id::text as id, a.occurred_at, a.source, a.kind, a.category, a.action, a.outcome, a.severity,
               a.entity_type, a.entity_id, a.actor_id, a.actor_type, a.tenant_id, a.session_id, a.request_id, a.trace_id,
               abbrev(a.ip) as ip, a.user_agent, a.duration_ms, a.summary, a.relation, a.operation, a.changed,
               a.before::text as before, a.after::text as after, a.metadata::text as metadata, a.caused_by::text as caused_by,
               a.xid, a.commit_lsn::text as commit_lsn, a.ordinal
          from afterwrite.batch b
          join afterwrite.activity a on a.batch_id = b.id and a.occurred_at between b.first_at and b.last_at
         where b.position > :after_position
           and (:actor_id::text is null or a.actor_id = :actor_id)
           and (:entity_type::text is null or a.entity_type = :entity_type)
           and (:entity_id::text is null or a.entity_id = :entity_id)
           and (:action::text is null or a.action = :action)
         order by b.position
         fetch first :limit rows with ties
       ) as found
 order by position, commit_lsn::pg_lsn nulls first, ordinal, occurred_at, id;

-- name: verify_batches
-- The next batches of the feed beside what their rows and the batch before them say today.
select b.position, b.id, b.source, b.rows, s.rows as found,
       s.rows_digest = b.rows_digest and s.rows_per_table = b.rows_per_table as rows_hold,
       b.digest = afterwrite.chain(
           (select p.digest from afterwrite.batch p
             where p.source = b.source and p.position < b.position order by p.position desc limit 1),
           b.position, b.id, b.source, b.first_lsn, b.last_lsn, b.transactions, b.rows, b.rows_digest
       ) as chain_holds
  from (select * from afterwrite.batch where position > :after_position order by position limit :limit) b
 cross join lateral afterwrite.seal(b.id, b.first_at, b.last_at) s
 order by b.position;


-- name: read_stray
-- An activity that no batch answers for, if there is one.
select a.id::text
  from afterwrite.activity a
 where not exists (
           select from afterwrite.batch b
            where b.id = a.batch_id and a.occurred_at between b.first_at and b.last_at
       )
 limit 1;

-- name: record_gap
-- Remember a stretch of a source's WAL that is known to be lost.
insert into afterwrite.gap (source, from_lsn, to_lsn, reason)
values (:source, :from_lsn::pg_lsn, :to_lsn::pg_lsn, :reason);
