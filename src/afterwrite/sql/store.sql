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

-- name: open_batch
-- Begin to store: a batch's id, and how far its source is stored, locked until the transaction ends.
select batch_id, slot, system_id, timeline, lsn from afterwrite.open_batch(:source);

-- name: read_checkpoint
-- How far this source is stored.
select source, slot, system_id, timeline, lsn::text as lsn
  from afterwrite.checkpoint
 where source = :source;

-- name: make_staging
-- Where rows wait that may be stored already; it lives as long as the session and is empty after each transaction.
create temporary table if not exists afterwrite_staging (like afterwrite.activity) on commit delete rows;

-- name: copy_staged
-- Store the waiting rows that are not stored yet, in an order that lets two writers of the same rows follow each other, and give those back as the seal takes them.
copy (
    with stored as (
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
            on conflict (occurred_at, id) do nothing
        returning *
    )
    select id, ordinal, entity_id, summary, duration_ms, changed, before, after, metadata, batch_id,
           occurred_at, source, actor_id, actor_type, tenant_id, session_id, request_id, trace_id, ip,
           user_agent, caused_by, xid, commit_lsn, kind, category, action, outcome, severity, entity_type,
           relation, operation
      from stored
     order by commit_lsn nulls first, ordinal, occurred_at, id
) to stdout;

-- name: close_batch
-- End storing: the checkpoint moves, and the batch gets its place in the feed and its row.
select afterwrite.close_batch(
           :id::bigint, :source::text, :partition::text, :first_lsn::pg_lsn, :last_lsn::pg_lsn, :first_at::timestamptz,
           :last_at::timestamptz, :transactions::bigint, :rows::bigint, :rows_per_table::jsonb, :rows_digest::bytea,
           :slot::text, :system_id::text, :timeline::integer, :lsn::pg_lsn,
           :context_lsns::pg_lsn[], :context_xids::bigint[], :context_settings::text[]) as position;

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
-- What these batches hold, in the order of the feed; the times say where to look.
select b.position, :activity
  from afterwrite.activity a
  join afterwrite.batch b on b.id = a.batch_id
 where a.batch_id = any (:batch_ids::bigint[])
   and a.occurred_at between :first_at and :last_at
   and (:relations::text[] is null or a.relation = any (:relations::text[]) or a.kind = 'event')
   and (:events or a.kind = 'change')
   and (:first_lsn::pg_lsn is null or a.commit_lsn between :first_lsn::pg_lsn and :last_lsn::pg_lsn)
   and (:actor_id::text is null or a.actor_id = :actor_id)
   and (:entity_type::text is null or a.entity_type = :entity_type)
   and (:entity_id::text is null or a.entity_id = :entity_id)
   and (:action::text is null or a.action = :action)
 order by b.position, a.commit_lsn nulls first, a.ordinal, a.occurred_at, a.id;

-- name: read_batch_page
-- The next of what a batch holds (or one transaction in it), in the order of time: a page of the primary key.
select :position::bigint as position, :activity
  from afterwrite.page_of_batch(
           :batch_id, :after_at, :after_id, :last_at, :commit_lsn, :relations, :events, :actor_id, :entity_type, :entity_id,
           :action, :limit) a
 order by a.occurred_at, a.id;

-- name: read_transactions
-- How many changes of these tables each source transaction of a batch has, beyond a place in the WAL.
select a.commit_lsn::text as commit_lsn, min(a.occurred_at) as first_at, max(a.occurred_at) as last_at, count(*) as rows
  from afterwrite.activity a
 where a.batch_id = :batch_id
   and a.occurred_at between :first_at and :last_at
   and a.relation = any (:relations::text[])
   and a.commit_lsn > :after_lsn::pg_lsn
 group by a.commit_lsn
 order by a.commit_lsn;

-- name: read_actions
-- Events of a category and of these actions in these batches.
select b.position, :activity
  from afterwrite.activity a
  join afterwrite.batch b on b.id = a.batch_id
 where a.batch_id = any (:batch_ids::bigint[])
   and a.occurred_at between :first_at and :last_at
   and a.kind = 'event'
   and a.category = :category
   and a.action = any (:actions::text[])
 order by b.position, a.commit_lsn nulls first, a.ordinal, a.occurred_at, a.id;

-- name: read_settings
-- The settings that the transactions of these batches stamped.
select batch_id, commit_lsn::text as commit_lsn, settings
  from afterwrite.transaction_context
 where batch_id = any (:batch_ids::bigint[]);

-- name: read_newest
-- The newest activity, newest first.
select b.position, :activity
  from afterwrite.activity a
  join afterwrite.batch b on b.id = a.batch_id
 where true
   and (:actor_id::text is null or a.actor_id = :actor_id)
   and (:entity_type::text is null or a.entity_type = :entity_type)
   and (:entity_id::text is null or a.entity_id = :entity_id)
   and (:action::text is null or a.action = :action)
 order by a.occurred_at desc, a.id desc
 limit :limit;

-- name: read_timeline
-- A page of what happened to one thing, under each of the types that it goes by, newest first.
select a.id::text as id, a.occurred_at, a.kind, a.action, a.outcome, a.severity, a.actor_id, abbrev(a.ip) as ip, a.user_agent,
       a.request_id, a.duration_ms, a.summary, a.operation, a.changed, a.before::text as before, a.after::text as after
  from pg_catalog.unnest(:entity_types::text[]) as t (entity_type)
 cross join lateral (
       select *
         from afterwrite.activity
        where entity_type = t.entity_type and entity_id = :entity_id::text
          and (occurred_at, id) < (
                  coalesce(:before_at::timestamptz, 'infinity'::timestamptz),
                  coalesce(:before_id::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
              )
        order by occurred_at desc, id desc
        limit :limit::integer
       ) a
 order by a.occurred_at desc, a.id desc
 limit :limit::integer;

-- name: verify_batches
-- The next batches of the feed, and whether each follows the batch before it of its source.
select b.position, b.id, b.source, b.first_at, b.last_at, b.rows, b.rows_per_table, b.rows_digest,
       b.digest = afterwrite.chain(
           (select p.digest from afterwrite.batch p
             where p.source = b.source and p.position < b.position order by p.position desc limit 1),
           b.position, b.id, b.source, b.first_lsn, b.last_lsn, b.transactions, b.rows, b.rows_digest
       ) as chain_holds
  from afterwrite.batch b
 where b.position > :after_position
 order by b.position
 limit :limit;

-- name: copy_batches
-- The rows of these batches as the seal takes them, batch by batch.
copy (
    select a.id, a.ordinal, a.entity_id, a.summary, a.duration_ms, a.changed, a.before, a.after, a.metadata,
           a.batch_id, a.occurred_at, a.source, a.actor_id, a.actor_type, a.tenant_id, a.session_id,
           a.request_id, a.trace_id, a.ip, a.user_agent, a.caused_by, a.xid, a.commit_lsn, a.kind, a.category,
           a.action, a.outcome, a.severity, a.entity_type, a.relation, a.operation
      from afterwrite.activity a
     where a.batch_id = any (:batch_ids::bigint[])
       and a.occurred_at between :first_at and :last_at
     order by pg_catalog.array_position(:batch_ids::bigint[], a.batch_id), a.commit_lsn nulls first, a.ordinal, a.occurred_at, a.id
) to stdout;

-- name: make_seals
-- What the rows of a day amount to by batch, for this session alone.
create temp table if not exists afterwrite_seals (
    batch_id bigint not null primary key, rows bigint not null, digest bytea not null, rows_per_table jsonb not null
);

-- name: clear_seals
-- Forget what another day amounted to.
delete from pg_temp.afterwrite_seals;

-- name: fill_seals
-- Take in what the rows of a day amount to.
copy pg_temp.afterwrite_seals (batch_id, rows, digest, rows_per_table) from stdin;

-- name: read_broken_seal
-- The first batch of a day whose rows are not those it was sealed with: of those that lie within the day, and of rows that
-- no batch of the day brought. What left the store before may be lacking.
select f.batch_id, f.text
  from (
        select b.position, b.id as batch_id,
               case when s.batch_id is null
                    then pg_catalog.format('batch %s was sealed with %s rows and has none', b.id, b.rows)
                    when s.rows <> b.rows
                    then pg_catalog.format('batch %s was sealed with %s rows and has %s', b.id, b.rows, s.rows)
                    when s.digest <> b.rows_digest or s.rows_per_table <> b.rows_per_table
                    then pg_catalog.format('rows of batch %s are not those it was sealed with', b.id)
                    else pg_catalog.format('batch %s does not follow the batch before it of its source', b.id)
                end as text
          from afterwrite.batch b
          left join pg_temp.afterwrite_seals s on s.batch_id = b.id
         where b.first_at >= :since and b.last_at < :until
           and b.position > (select position from afterwrite.feed_start)
           and (s.batch_id is null
                or s.rows <> b.rows
                or s.digest <> b.rows_digest
                or s.rows_per_table <> b.rows_per_table
                or b.digest <> afterwrite.chain(
                       (select p.digest from afterwrite.batch p
                         where p.source = b.source and p.position < b.position order by p.position desc limit 1),
                       b.position, b.id, b.source, b.first_lsn, b.last_lsn, b.transactions, b.rows, b.rows_digest))
           and not (coalesce(s.rows, 0) < b.rows
                    and exists (select from afterwrite.expired_day e where e.day = :day))
         union all
        select null, s.batch_id, pg_catalog.format('%s rows say that they are of batch %s, which brought none of that day', s.rows, s.batch_id)
          from pg_temp.afterwrite_seals s
         where not exists (
                   select from afterwrite.batch b where b.id = s.batch_id and b.last_at >= :since and b.first_at < :until
               )
       ) f
 order by f.position nulls last
 limit 1;

-- name: verify_over_midnight
-- The next batches that have rows of a day and of others, all of which are in the store, and whether each follows the one before.
select b.position, b.id, b.source, b.first_at, b.last_at, b.rows, b.rows_per_table, b.rows_digest,
       b.digest = afterwrite.chain(
           (select p.digest from afterwrite.batch p
             where p.source = b.source and p.position < b.position order by p.position desc limit 1),
           b.position, b.id, b.source, b.first_lsn, b.last_lsn, b.transactions, b.rows, b.rows_digest
       ) as chain_holds
  from afterwrite.batch b
 where b.position > :after_position
   and b.position > (select position from afterwrite.feed_start)
   and b.last_at >= :since and b.first_at < :until
   and not (b.first_at >= :since and b.last_at < :until)
   and not exists (
           select from afterwrite.expired_day e
            where e.day between (b.first_at at time zone 'UTC')::date and (b.last_at at time zone 'UTC')::date
       )
 order by b.position
 limit :limit;

-- name: set_copy_form
-- Let values be written as the seal has them, until the transaction ends.
select pg_catalog.set_config('timezone', 'UTC', true), pg_catalog.set_config('datestyle', 'ISO, YMD', true),
       pg_catalog.set_config('extra_float_digits', '1', true), pg_catalog.set_config('jit', 'off', true);

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
-- Remember a stretch of a source's WAL that is known to be lost; told again after a crash, it is the same one.
with known as (
    update afterwrite.gap
       set to_lsn = greatest(to_lsn, :to_lsn::pg_lsn)
     where source = :source and from_lsn = :from_lsn::pg_lsn and reason = :reason
    returning id
)
insert into afterwrite.gap (source, from_lsn, to_lsn, reason)
select :source, :from_lsn::pg_lsn, :to_lsn::pg_lsn, :reason
 where not exists (select from known);

-- name: read_fsync
-- Whether what this server says is flushed would survive its machine's crash.
select current_setting('fsync')::boolean;

-- name: read_identity
-- Which store this is.
select id::text from afterwrite.store;

-- name: end_namesakes
-- End the other sessions of this role and name: they belong to a worker that is no longer the active one.
-- Materialized, or the planner may end sessions before it has seen whose they are.
with found as materialized (
    select a.pid
      from pg_catalog.pg_stat_activity a
     where a.application_name = current_setting('application_name')
       and a.datname = current_database()
       and a.usename = current_user
       and a.pid <> pg_catalog.pg_backend_pid()
)
select pid from found where pg_catalog.pg_terminate_backend(pid);
