-- name: read_sizes
-- How many numbered rows the load may pick from.
select (select count(*) from bench.projects) as projects,
       (select count(*) from bench.users) as users,
       (select count(*) from bench.investors) as investors,
       (select count(*) from bench.tokens) as tokens,
       (select count(*) from bench.documents) as documents,
       (select count(*) from bench.notifications) as notifications;

-- name: read_wal
-- How much WAL the cluster has written, in bytes.
select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::bigint;

-- name: read_writes
-- Rows that the legacy application's tables have taken so far, whoever wrote them.
select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint
  from pg_catalog.pg_stat_user_tables
 where schemaname = 'public'
   and relname not in ('audit_logs', 'activity_log', 'platform_statistics');

-- name: read_processes
-- The server's living processes, and what each does; sessions of the application are not among them.
select a.pid,
       case when a.backend_type = 'walsender' then 'walsender'
            when a.application_name like 'afterwrite sink%' then 'sink'
            when a.application_name like 'afterwrite defer%' then 'deferral'
            else 'server' end as kind
  from pg_catalog.pg_stat_activity a
 where (a.application_name like 'afterwrite%' or a.backend_type <> 'client backend')
   and a.backend_type not in ('autovacuum worker', 'parallel worker');

-- name: flush_statistics
-- Tell what this session has counted, and see what others have told.
select pg_catalog.pg_stat_force_next_flush()::text, pg_catalog.pg_stat_clear_snapshot()::text;

-- name: read_written
-- Bytes written to data files by all processes; before PostgreSQL 18 operations had one size.
select coalesce(sum(
           coalesce((i.seen ->> 'write_bytes')::numeric, (i.seen ->> 'writes')::numeric * (i.seen ->> 'op_bytes')::numeric, 0)
           + coalesce(
               (i.seen ->> 'extend_bytes')::numeric, (i.seen ->> 'extends')::numeric * (i.seen ->> 'op_bytes')::numeric, 0)
       ), 0)::bigint
  from (select pg_catalog.to_jsonb(s) as seen from pg_catalog.pg_stat_io s where s.object = 'relation') i;

-- name: read_written_15
-- Bytes written to data files by all processes, up to PostgreSQL 15.
select ((buffers_checkpoint + buffers_clean + buffers_backend)
        * pg_catalog.current_setting('block_size')::bigint)::bigint
  from pg_catalog.pg_stat_bgwriter;

-- name: read_kept_by_triggers
-- What the legacy logs hold, and the bytes that they and their indexes take.
select (select count(*) from public.audit_logs) + (select count(*) from public.activity_log) as rows,
       pg_catalog.pg_total_relation_size('public.audit_logs') + pg_catalog.pg_total_relation_size('public.activity_log')
       as bytes;

-- name: read_kept_by_us
-- What the store of this database holds, and the bytes that it and its indexes take; at least one of each.
select greatest(1, (select count(*) from afterwrite.activity)) as rows,
       greatest(1, (
           select coalesce(sum(pg_catalog.pg_total_relation_size(c.oid)), 0)
             from pg_catalog.pg_class c
            where c.relnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = 'afterwrite')
              and c.relkind = 'r'
       ))::bigint as bytes;

-- name: checkpoint
-- Start every round from the same place: dirty pages written, full page images due again.
checkpoint;

-- name: keep_place
-- Remember where the slot stands, by a copy of it.
select lsn::text from pg_catalog.pg_copy_logical_replication_slot(:slot, :copy);

-- name: drop_place
-- Forget a slot that nobody reads.
select pg_catalog.pg_drop_replication_slot(slot_name)
  from pg_catalog.pg_replication_slots
 where slot_name = :slot
   and active_pid is null;

-- name: read_slot_reader
-- Who reads this slot, if anybody does.
select active_pid from pg_catalog.pg_replication_slots where slot_name = :slot;

-- name: empty_store
-- An empty store of the same shape.
truncate afterwrite.activity, afterwrite.batch, afterwrite.transaction_context, afterwrite.checkpoint cascade;

-- name: begin_at
-- Begin again at this place.
insert into afterwrite.checkpoint (source, slot, system_id, timeline, lsn)
values (:source, :slot, :system_id, :timeline, :lsn::pg_lsn);

-- name: read_stored
-- How far the store is, when its first and last batch were written, and how many rows lie after the first.
select coalesce(sum(b.rows), 0)::bigint as rows,
       coalesce(sum(b.rows) filter (where b.position > f.first), 0)::bigint as later_rows,
       count(*) as batches,
       extract(epoch from max(b.written_at) - min(b.written_at))::float8 as seconds
  from afterwrite.batch b
 cross join (select min(position) as first from afterwrite.batch) f;

-- name: read_confirmed
-- How far the slot is confirmed beyond this place, in bytes; negative while it is behind.
select pg_catalog.pg_wal_lsn_diff(confirmed_flush_lsn, :lsn::pg_lsn)::bigint
  from pg_catalog.pg_replication_slots
 where slot_name = :slot;

-- name: read_commits
-- The commit times of the batches after this position, each as often as it brought changes.
select b.position, array_agg(extract(epoch from a.occurred_at)::float8) as moments
  from afterwrite.batch b
  join afterwrite.activity a on a.batch_id = b.id and a.occurred_at between b.first_at and b.last_at
 where b.position > :after_position
   and a.kind = 'change'
 group by b.position;

-- name: read_feed_position
-- The newest position of the feed.
select position from afterwrite.feed;

-- name: count_stored
-- How many activities all batches have brought.
select coalesce(sum(rows), 0)::bigint from afterwrite.batch;

-- name: count_rows
-- How many rows the store holds.
select count(*) from afterwrite.activity;

-- name: read_last_commit
-- Where the last stored change committed.
select max(commit_lsn)::text from afterwrite.activity;

-- name: has_applied
-- Whether this database's subscription has applied what committed here.
select coalesce(
           (select bool_or(o.remote_lsn >= :lsn::pg_lsn)
              from pg_catalog.pg_replication_origin_status o
              join pg_catalog.pg_subscription s on o.external_id = 'pg_' || s.oid
             where s.subname = 'bench'),
           false);

-- name: read_version
-- Which PostgreSQL this is.
select pg_catalog.current_setting('server_version');

-- name: emit_marker
-- A transaction that says nothing to anybody, so that the position of a stream moves.
select pg_catalog.pg_logical_emit_message(true, 'afterwrite.bench', '');

-- name: insert_audit
-- One event by itself, as an application writes it.
insert into public.bench_audit (id, actor, tenant, action, entity_type, entity_id, details)
values (:id, :actor, :tenant, :action, :entity_type, :entity_id, :details::text::jsonb);

-- name: fill_log
-- The same activity as the store's of this stretch in the audit table of a legacy application.
insert into public.audit_logs (
    table_name, record_id, operation, description, old_data, new_data, user_id, ip_address, created_at
)
select a.entity_type, a.entity_id, coalesce(upper(a.operation), a.action), a.summary, a.before::jsonb,
       coalesce(a.after::jsonb, a.metadata::jsonb), a.actor_id, a.ip, a.occurred_at
  from afterwrite.activity a
 where a.occurred_at >= :since
   and a.occurred_at < :until
 order by a.occurred_at, a.id;

-- name: count_log
-- How the legacy application knows how many pages there are.
select count(*) from public.audit_logs;

-- name: log_recent
-- The newest, a page of them.
select * from public.audit_logs order by created_at desc limit 50 offset :skip;

-- name: log_page
-- A page of the newest, as long as it is asked for.
select * from public.audit_logs order by created_at desc limit :take offset :skip;

-- name: count_log_of_entity
-- How many pages one thing has.
select count(*) from public.audit_logs where table_name = :type and record_id = :id;

-- name: log_of_entity
-- What happened to one thing.
select * from public.audit_logs
 where table_name = :type and record_id = :id
 order by created_at desc limit 50 offset :skip;

-- name: count_log_of_actor
-- How many pages one actor has.
select count(*) from public.audit_logs where user_id = :actor;

-- name: log_of_actor
-- What one actor did.
select * from public.audit_logs where user_id = :actor order by created_at desc limit 50 offset :skip;

-- name: count_log_of_text
-- How many pages a search has.
select count(*) from public.audit_logs
 where description ilike :pattern or old_data::text ilike :pattern or new_data::text ilike :pattern;

-- name: log_of_text
-- Where a text occurs, as search boxes over audit tables ask.
select * from public.audit_logs
 where description ilike :pattern or old_data::text ilike :pattern or new_data::text ilike :pattern
 order by created_at desc limit 50 offset :skip;

-- name: log_by_hour
-- Activity by the hour over a week.
select date_trunc('hour', created_at) as hour, operation, count(*)
  from public.audit_logs
 where created_at >= :since and created_at < :until
 group by 1, 2
 order by 1, 2;

-- name: find_statements
-- Where pg_stat_statements is.
select n.nspname::text
  from pg_catalog.pg_extension e
  join pg_catalog.pg_namespace n on n.oid = e.extnamespace
 where e.extname = 'pg_stat_statements';

-- name: read_mix
-- Which tables the application's statements write, how often, and how many rows a statement writes on the average.
select c.relnamespace::regnamespace::text || '.' || c.relname as relation,
       sum(t.calls)::bigint as writes,
       greatest(1, round(sum(t.rows) / sum(t.calls)))::int as bulk
  from (
       select s.calls, s.rows::float8 as rows,
              pg_catalog.to_regclass(pg_catalog.substring(
                  s.query, '(?i)^\s*(?:insert\s+into|update|delete\s+from)\s+(?:only\s+)?([\w."$]+)')) as relation
         from "{schema}".pg_stat_statements s
        where s.toplevel
          and s.calls > 0
          and s.dbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
          and s.query ~* '^\s*(insert|update|delete)\M'
       ) t
  join pg_catalog.pg_class c on c.oid = t.relation
 where c.relkind in ('r', 'p')
 group by 1
 order by 2 desc;

-- name: read_able
-- Whether this role may make databases, and pass triggers and references over while it copies rows.
select r.rolsuper or r.rolcreatedb as creates, r.rolsuper as replicates
  from pg_catalog.pg_roles r
 where r.rolname = current_user;

-- name: read_busy
-- How many other sessions of this database have written something that is not committed, and how much was ever written.
select (select count(*)
          from pg_catalog.pg_stat_activity a
         where a.datname = pg_catalog.current_database()
           and a.pid <> pg_catalog.pg_backend_pid()
           and a.backend_xid is not null) as writing,
       (select d.tup_inserted + d.tup_updated + d.tup_deleted
          from pg_catalog.pg_stat_database d
         where d.datname = pg_catalog.current_database())::bigint as written;

-- name: read_covered
-- What the rows of a day (UTC) cover.
select min(a.occurred_at) as first_at, max(a.occurred_at) as last_at, min(a.commit_lsn)::text as first_lsn,
       max(a.commit_lsn)::text as last_lsn, count(distinct a.commit_lsn) as transactions
  from afterwrite.activity a
 where a.occurred_at >= :day::date::timestamp at time zone 'UTC'
   and a.occurred_at < (:day::date + 1)::timestamp at time zone 'UTC';
