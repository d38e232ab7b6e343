-- name: catalog_state
-- Every trigger, function and table setting that a migration may touch or must not touch, one line each, in one order.
with own as (
    select n.oid, n.nspname
      from pg_catalog.pg_namespace n
     where n.nspname not in ('pg_catalog', 'information_schema')
       and n.nspname !~ '^pg_(toast|temp)' and n.nspname !~ '^afterwrite(_|$)'
)
select line from (
    select pg_catalog.jsonb_build_array(
               'table', c.oid::pg_catalog.regclass, pg_catalog.pg_get_userbyid(c.relowner), c.relreplident,
               (select x.indexrelid::pg_catalog.regclass
                  from pg_catalog.pg_index x where x.indrelid = c.oid and x.indisreplident),
               c.relacl::text[], pg_catalog.obj_description(c.oid, 'pg_class'))::text as line
      from pg_catalog.pg_class c
      join own on own.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f')
    union all
    select pg_catalog.jsonb_build_array(
               'trigger', c.oid::pg_catalog.regclass, t.tgname, t.tgenabled, t.tgisinternal,
               (select p.tgrelid::pg_catalog.regclass from pg_catalog.pg_trigger p where p.oid = t.tgparentid),
               pg_catalog.pg_get_triggerdef(t.oid), t.tgdeferrable, t.tginitdeferred,
               pg_catalog.obj_description(t.oid, 'pg_trigger'))::text
      from pg_catalog.pg_trigger t
      join pg_catalog.pg_class c on c.oid = t.tgrelid
      join own on own.oid = c.relnamespace
    union all
    select pg_catalog.jsonb_build_array(
               'function', f.oid::pg_catalog.regprocedure, pg_catalog.pg_get_userbyid(f.proowner),
               (select pg_catalog.array_agg(a.item::text order by a.item::text collate "C")
                  from unnest(coalesce(f.proacl, pg_catalog.acldefault('f', f.proowner))) as a (item)),
               f.proconfig, f.prosecdef, pg_catalog.pg_get_functiondef(f.oid),
               pg_catalog.obj_description(f.oid, 'pg_proc'))::text
      from pg_catalog.pg_proc f
      join own on own.oid = f.pronamespace
     where f.prokind in ('f', 'p')
) lines
order by line collate "C";

-- name: qualified_names_only
-- Let every name that the catalog prints be qualified, for the running transaction only.
select pg_catalog.set_config('search_path', 'pg_catalog', true);

-- name: read_backup
-- All that is needed to make a trigger again as it is now.
select afterwrite.trigger_backup(pg_catalog.to_regclass(:relation), :trigger)::text as backup;

-- name: read_backup_by_oid
-- The same for a trigger known by its oid, whatever it and its table are called now.
select afterwrite.trigger_backup(t.tgrelid, t.tgname::text)::text as backup
  from pg_catalog.pg_trigger t
 where t.oid = :oid::oid;

-- name: take_migration_lock
-- Whether this session now holds the right to change triggers of this database (a session lock, gone with the session).
select pg_catalog.pg_try_advisory_lock(1635083123, 1835624050);

-- name: release_migration_lock
-- Give the right back.
select pg_catalog.pg_advisory_unlock(1635083123, 1835624050);

-- name: read_migration_lock_holder
-- The session that holds the right.
select a.pid, coalesce(a.application_name, '') as application_name, coalesce(a.usename, '') as user_name,
       a.backend_start as since
  from pg_catalog.pg_locks l
  join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory' and l.granted and l.objsubid = 2
   and l.classid = 1635083123 and l.objid = 1835624050
   and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database());

-- name: set_operator
-- Say who the person is, for the ledger rows that this session writes.
select pg_catalog.set_config('afterwrite.operator', :operator, false);

-- name: read_active_migration
-- The migration that is not ended, if there is one.
select id, plan, actor, operator, started_at, finished_at, outcome
  from afterwrite.migration
 where finished_at is null;

-- name: read_pause
-- Who paused the migration that goes on, where nobody resumed it since.
select p.migration, p.at, p.actor, p.operator, p.because
  from (select l.migration, l.action, l.at, l.actor, l.operator, l.after ->> 'because' as because
          from afterwrite.ledger l
          join afterwrite.migration m on m.id = l.migration
         where m.finished_at is null and l.action in ('migration.pause', 'migration.resume')
         order by l.seq desc
         limit 1) p
 where p.action = 'migration.pause';

-- name: read_last_migration
-- The newest migration, ended or not.
select id, plan, actor, operator, started_at, finished_at, outcome
  from afterwrite.migration
 order by id desc
 limit 1;

-- name: next_migration_id
-- The number that the next migration gets; only the holder of the migration lock may rely on it.
select coalesce(max(id), 0) + 1 from afterwrite.migration;

-- name: read_silenced
-- The triggers that are off, or dropped, because of a migration: of each the silencing, whether and when it was dropped since,
-- and the backup from before the first time since it was last restored (somebody may have turned it on, and we off again).
with last_deed as (
    select distinct on (l.migration, l.subject) l.*
      from afterwrite.ledger l
     where l.action in ('trigger.silence', 'trigger.remove', 'trigger.restore')
     order by l.migration, l.subject, l.seq desc
), since as (
    select d.migration, d.subject, d.action, d.at,
           coalesce((select max(r.seq) from afterwrite.ledger r
                      where r.migration = d.migration and r.subject = d.subject and r.action = 'trigger.restore'),
                    0) as seq
      from last_deed d
      join afterwrite.migration m on m.id = d.migration
     where d.action <> 'trigger.restore'
       and m.finished_at is null
)
select s.subject, s.migration, q.phase, q.after ->> 'mode' as mode, q.at, q.actor, q.operator, q.xid::text::bigint as xid, q.times,
       case s.action when 'trigger.remove' then s.at end as removed_at,
       b.before::text as backup, b.after::text as definition
  from since s
 cross join lateral (
        select l.*, pg_catalog.count(*) over () as times
          from afterwrite.ledger l
         where l.migration = s.migration and l.subject = s.subject and l.action = 'trigger.silence' and l.seq > s.seq
         order by l.seq desc
         limit 1) q
 cross join lateral (
        select l.before, l.after
          from afterwrite.ledger l
         where l.migration = s.migration and l.subject = s.subject and l.action = 'trigger.backup' and l.seq > s.seq
         order by l.seq
         limit 1) b
 order by q.phase, s.subject;

-- name: read_ledger
-- The whole ledger, oldest first.
select seq, migration, phase, subject, action, sql, before::text as before, after::text as after, actor, operator,
       application, at, xid::text::bigint as xid
  from afterwrite.ledger
 order by seq;

-- name: read_phase_rows
-- The newest row of a kind for each phase of a migration.
select distinct on (phase, action) phase, action, at, actor, operator, after ->> 'because' as because
  from afterwrite.ledger
 where migration = :migration
   and action in ('trigger.silence', 'trigger.remove', 'trigger.restore', 'phase.soaked', 'phase.halted',
                  'legacy.backfill')
 order by phase, action, seq desc;

-- name: write_ledger
-- Tell of something that no statement of a deed tells of itself.
insert into afterwrite.ledger (migration, phase, subject, action, sql, before, after)
values (:migration, :phase, :subject, :action, :sql, :before::jsonb, :after::jsonb);

-- name: read_replica_identity
-- A table's replica identity, whether it has a primary key, and which publications send its updates or deletes.
select c.oid::pg_catalog.regclass::text as relation, c.relreplident::text as kind,
       (select i.relname
          from pg_catalog.pg_index x
          join pg_catalog.pg_class i on i.oid = x.indexrelid
         where x.indrelid = c.oid and x.indisreplident) as index,
       exists (select from pg_catalog.pg_index x where x.indrelid = c.oid and x.indisprimary) as has_primary_key,
       array(select p.pubname::text
               from pg_catalog.pg_publication p
              where (p.pubupdate or p.pubdelete)
                and exists (
                        select from pg_catalog.pg_publication_tables t
                         where t.pubname = p.pubname
                           and pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.schemaname, t.tablename)) in (
                                   select c.oid
                                   union all
                                   select a.relid from pg_catalog.pg_partition_ancestors(c.oid) a))
              order by p.pubname) as published_by
  from pg_catalog.pg_class c
 where c.oid = pg_catalog.to_regclass(:relation);

-- name: read_changed_identities
-- The tables whose replica identity we set and have not set back.
select subject
  from (select distinct on (subject) subject, action
          from afterwrite.ledger
         where action in ('replica_identity.set', 'replica_identity.restore')
         order by subject, seq desc) last_deed
 where action = 'replica_identity.set'
 order by subject collate "C";

-- name: read_changed_identity
-- What a table's replica identity was before we first set it since it was last set back, and what we last set it to.
with deeds as (
    select l.seq, l.before, l.after
      from afterwrite.ledger l
     where l.subject = :relation
       and l.action = 'replica_identity.set'
       and l.seq > coalesce(
               (select max(r.seq) from afterwrite.ledger r
                 where r.subject = :relation and r.action = 'replica_identity.restore'),
               0)
)
select (select before::text from deeds order by seq limit 1) as before,
       (select after::text from deeds order by seq desc limit 1) as after;

-- name: read_slot
-- The slot as it is now: how far behind the flushed WAL it is, and how much more it may hold back (null: without limit).
select s.active, s.wal_status, s.safe_wal_size,
       case when pg_catalog.pg_is_in_recovery() then null
            else pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), s.confirmed_flush_lsn)::bigint
       end as lag_bytes
  from pg_catalog.pg_replication_slots s
 where s.slot_name = :slot
   and s.database = pg_catalog.current_database();

-- name: send_heartbeat
-- Put a heartbeat into the WAL, and say where it is.
select pg_catalog.pg_logical_emit_message(true, 'afterwrite.heartbeat', 'gate')::text;

-- name: read_slot_passed
-- Whether everything up to a place in the WAL is stored and acknowledged.
select s.confirmed_flush_lsn >= :lsn::pg_lsn
  from pg_catalog.pg_replication_slots s
 where s.slot_name = :slot;

-- name: read_unpublished
-- Those of the named tables that a publication does not send, whole and every kind of write, by themselves or through a
-- partition parent.
select r.relation
  from unnest(:relations::text[]) as r (relation)
 where not exists (
           select from pg_catalog.pg_publication_tables t
             join pg_catalog.pg_publication p on p.pubname = t.pubname
            where t.pubname = :publication
              and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate
              and not exists (
                      -- Rows or columns are left out (PostgreSQL 15 knows these; 14 has neither).
                      select from pg_catalog.pg_publication_rel e
                       where e.prpubid = p.oid
                         and e.prrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.schemaname, t.tablename))
                         and coalesce(pg_catalog.to_jsonb(e) ->> 'prqual', pg_catalog.to_jsonb(e) ->> 'prattrs') is not null)
              and pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.schemaname, t.tablename)) in (
                      select pg_catalog.to_regclass(r.relation)
                      union all
                      select a.relid from pg_catalog.pg_partition_ancestors(pg_catalog.to_regclass(r.relation)) a))
 order by 1;

-- name: read_partial
-- Those of the named tables, and of their partitions, that do not log whole old rows, where a trigger is for updates or we
-- once saw to it that they do.
select distinct pg_catalog.format('%I.%I', n.nspname, c.relname)
  from unnest(:relations::text[]) as r (relation)
 cross join lateral (select pg_catalog.to_regclass(r.relation)::oid as oid) root
 cross join lateral (
        select p.relid::oid as oid from pg_catalog.pg_partition_tree(root.oid::regclass) p where p.isleaf
        union
        select root.oid) part
  join pg_catalog.pg_class c on c.oid = part.oid and c.relkind = 'r' and c.relreplident <> 'f'
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where exists (
           select from pg_catalog.pg_trigger t
             join pg_catalog.pg_class tc on tc.oid = t.tgrelid
             join pg_catalog.pg_namespace tn on tn.oid = tc.relnamespace
            where t.tgrelid = root.oid and t.tgtype & 16 <> 0
              and tn.nspname || '.' || tc.relname || '.' || t.tgname = any (:identities::text[]))
    or 'replica_identity.set' = (
           select l.action
             from afterwrite.ledger l
            where l.subject in (r.relation, pg_catalog.format('%I.%I', n.nspname, c.relname))
              and l.action in ('replica_identity.set', 'replica_identity.restore')
            order by l.seq desc
            limit 1)
 order by 1;

-- name: read_table_figures
-- How much weight each table with triggers carries. A function's time is split over the tables it serves by their writes.
with used as (
    select distinct t.tgrelid, t.tgfoid
      from pg_catalog.pg_trigger t
      join pg_catalog.pg_class c on c.oid = t.tgrelid
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where not t.tgisinternal and t.tgparentid = 0
       and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
), writes as (
    select c.oid,
           coalesce(sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del), 0)::bigint as rows
      from pg_catalog.pg_class c
      left join lateral pg_catalog.pg_partition_tree(c.oid) as part on c.relkind = 'p'
      left join pg_catalog.pg_stat_user_tables s on s.relid = coalesce(part.relid, c.oid)
     where c.oid in (select tgrelid from used)
     group by c.oid
), referred as (
    select k.confrelid, count(*) as keys
      from pg_catalog.pg_constraint k
     where k.contype = 'f' and k.conrelid <> k.confrelid and k.conparentid = 0
     group by k.confrelid
), served as (
    select u.tgfoid, sum(w.rows) as rows
      from used u
      join writes w on w.oid = u.tgrelid
     group by u.tgfoid
), cost as (
    select u.tgrelid, sum(f.total_time * w.rows / nullif(s.rows, 0)) as trigger_ms
      from used u
      join writes w on w.oid = u.tgrelid
      join served s on s.tgfoid = u.tgfoid
      join pg_catalog.pg_stat_user_functions f on f.funcid = u.tgfoid
     group by u.tgrelid
)
select n.nspname::text as schema, c.relname::text as table, w.rows as writes,
       coalesce(referred.keys, 0)::int as incoming_foreign_keys,
       coalesce(cost.trigger_ms, 0)::float8 as trigger_ms
  from writes w
  join pg_catalog.pg_class c on c.oid = w.oid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join cost on cost.tgrelid = c.oid
  left join referred on referred.confrelid = c.oid
 order by 1, 2;

-- name: read_deferral_reached
-- The commit up to which the deferred bodies have run.
select p.commit_lsn::text from afterwrite.deferral_progress p where p.source = :source;

-- name: read_oldest_waiting_batch
-- For how long the oldest batch that reaches beyond a commit has been waiting, in seconds; 0 when none does.
select coalesce(extract(epoch from pg_catalog.clock_timestamp() - min(b.written_at)), 0)::float8
  from afterwrite.batch b
 where b.source = :source
   and b.last_lsn > :lsn::pg_lsn;

-- name: count_dead_letters
-- Deferred calls that failed and are not resolved.
select count(*) from afterwrite.dead_letter d where d.source = :source and d.resolved_at is null;

-- name: read_left
-- The triggers that this migration found disabled and told so.
select distinct l.subject from afterwrite.ledger l where l.migration = :migration and l.action = 'trigger.left';

-- name: read_silent_seconds
-- For how long the last trigger of a phase has been off.
select extract(epoch from pg_catalog.clock_timestamp() - max(l.at))::float8
  from afterwrite.ledger l
 where l.migration = :migration and l.phase = :phase and l.action = 'trigger.silence';

-- name: has_table
-- Whether there is a table of this name.
select pg_catalog.to_regclass(:relation) is not null;

-- name: read_deferral_ends
-- The triggers that have transplanted functions, and whether these may still have to run: live, or silenced since they were
-- prepared (the mark of the silencing comes by in the feed later).
select d.identity,
       bool_or(d.state = 'live'
               or (d.state = 'prepared'
                   and exists (select from afterwrite.ledger l
                                where l.subject = d.identity and l.action = 'trigger.silence'
                                  and l.at >= d.prepared_at))) as pending
  from afterwrite.deferral d
 where d.source = :source
   and d.state <> 'dropped'
 group by d.identity
 order by d.identity;

-- name: read_user_triggers
-- Every trigger that a person made, clones on partitions aside, with its table's quoted name.
select n.nspname::text as schema, c.relname::text as table, t.tgname::text as trigger,
       pg_catalog.format('%I.%I', n.nspname, c.relname) as relation
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where not t.tgisinternal and t.tgparentid = 0
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by 1, 2, 3;

-- name: read_not_owned
-- Those of the named tables whose owner the present role cannot act as.
select r.relation
  from unnest(:relations::text[]) as r (relation)
  join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(r.relation)
 where not pg_catalog.pg_has_role(c.relowner, 'usage')
 order by 1;

-- name: read_relations
-- What tables, and the partitions below them, are called now (quoted), by oid.
select t.relid::oid::bigint as oid, pg_catalog.format('%I.%I', n.nspname, c.relname) as relation
  from unnest(:oids::bigint[]) as r (oid)
 cross join lateral (
        select p.relid from pg_catalog.pg_partition_tree(r.oid::oid::regclass) p
        union
        select r.oid::oid::regclass) t
  join pg_catalog.pg_class c on c.oid = t.relid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace;

-- name: read_function_backup
-- All that is needed to make a function again as it is now, by its signature; null when there is none.
select afterwrite.function_backup(pg_catalog.to_regprocedure(:signature)::oid)::text;

-- name: read_function_users
-- What still needs a function, in the server's words, and the trigger (schema.table.trigger) where it is one.
select pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) as what,
       n.nspname || '.' || c.relname || '.' || t.tgname as trigger
  from pg_catalog.pg_depend d
  left join pg_catalog.pg_trigger t on d.classid = 'pg_catalog.pg_trigger'::regclass and t.oid = d.objid
  left join pg_catalog.pg_class c on c.oid = t.tgrelid
  left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where d.refclassid = 'pg_catalog.pg_proc'::regclass
   and d.refobjid = pg_catalog.to_regprocedure(:signature)
   and coalesce(t.tgparentid, 0) = 0
union
select pg_catalog.format('extension %s', e.extname), null
  from pg_catalog.pg_depend d
  join pg_catalog.pg_extension e on e.oid = d.refobjid
 where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = pg_catalog.to_regprocedure(:signature)
   and d.refclassid = 'pg_catalog.pg_extension'::regclass
 order by 1;

-- name: read_removed_states
-- The enabled states that a trigger and its clones had when they were last dropped, by table.
select (pg_catalog.jsonb_build_object(l.before ->> 'relation', l.before ->> 'enabled')
        || coalesce((select pg_catalog.jsonb_object_agg(c ->> 'relation', c ->> 'enabled')
                       from pg_catalog.jsonb_array_elements(l.before -> 'clones') c), '{}'))::text
  from afterwrite.ledger l
 where l.subject = :subject and l.action = 'trigger.remove'
 order by l.seq desc
 limit 1;

-- name: read_holes
-- Times that are over in which a retired trigger was off, in whichever migration, and for which its log was not filled.
with deeds as (
    select l.*,
           coalesce(max(l.seq) filter (where l.action = 'trigger.restore') over (
                        partition by l.subject order by l.seq rows between unbounded preceding and 1 preceding),
                    0) as since
      from afterwrite.ledger l
     where l.action in ('trigger.backup', 'trigger.silence', 'trigger.restore')
)
select r.subject as identity, r.migration, r.phase,
       mod(s.xid::text::bigint, 4294967296) as silence_xid, mod(r.xid::text::bigint, 4294967296) as restore_xid,
       r.seq as restore_seq, s.at as silenced_at, r.at as restored_at, s.times,
       not exists (select from pg_catalog.jsonb_each_text(case when r.before ? 'enabled' then '{}' else r.before end) b
                    where b.value <> 'D') as undisturbed,
       b.after::text as definition
  from deeds r
 cross join lateral (
        select d.*, pg_catalog.count(*) over () as times
          from deeds d
         where d.subject = r.subject and d.action = 'trigger.silence' and d.seq > r.since and d.seq < r.seq
         order by d.seq desc
         limit 1) s
 cross join lateral (
        select d.after
          from deeds d
         where d.subject = r.subject and d.action = 'trigger.backup' and d.seq > r.since and d.seq < r.seq
         order by d.seq
         limit 1) b
 where r.action = 'trigger.restore'
   and s.after ->> 'mode' = 'retire'
   and r.before is not null
   and (:phase::int is null or r.phase = :phase)
   and not exists (
           select from afterwrite.ledger f
            where f.action = 'legacy.backfill' and f.subject = r.subject and (f.after ->> 'restore')::bigint = r.seq)
 order by r.seq;

-- name: read_marks
-- The places in the WAL, as the store has them, at which these triggers were silenced and restored.
select a.entity_id as identity, a.xid, a.commit_lsn::text as commit_lsn
  from afterwrite.activity a
 where a.source = :source
   and a.occurred_at >= :since::timestamptz - interval '1 minute'
   and a.kind = 'event' and a.category = 'migration'
   and a.action in ('trigger.silence', 'trigger.restore')
   and a.entity_id = any (:identities::text[])
   and a.commit_lsn is not null;

-- name: read_lost
-- Gaps of capture that reach beyond the silencing of these triggers. By the WAL where the store has the silencings' marks, since
-- its clock may be another one than the source's.
select pg_catalog.format('%s to %s', g.from_lsn, coalesce(g.to_lsn::text, 'an unknown end'))
  from afterwrite.gap g
 where g.source = :source
   and g.from_lsn is not null
   and g.noticed_at >= :since::timestamptz - interval '1 day'
   and (g.to_lsn is null
        or g.to_lsn > coalesce(
               (select min(a.commit_lsn)
                  from afterwrite.activity a
                 where a.source = :source
                   and a.occurred_at >= :since::timestamptz - interval '1 minute'
                   and a.kind = 'event' and a.category = 'migration' and a.action = 'trigger.silence'
                   and a.entity_id = any (:identities::text[])),
               case when g.noticed_at >= :since::timestamptz then '0/0'::pg_lsn else g.to_lsn end))
 order by g.from_lsn;

-- name: read_losses
-- What the store is known to lack between two commits (gaps of capture) and two moments (days that retention has taken).
select text
  from (select pg_catalog.format('what committed after %s up to %s (%s)', g.from_lsn, coalesce(g.to_lsn::text, 'an unknown end'),
                                 g.reason) as text,
               g.from_lsn as place
          from afterwrite.gap g
         where g.source = :source
           and g.from_lsn < :until::pg_lsn
           and (g.to_lsn is null or g.to_lsn > :after::pg_lsn)
        union all
        select pg_catalog.format('the days from %s to %s, which retention has taken', min(e.day), max(e.day)), null
          from afterwrite.expired_day e
         where e.day between (:since::timestamptz at time zone 'UTC')::date and (:till::timestamptz at time zone 'UTC')::date
        having count(*) > 0) losses
 order by place;

-- name: read_trigger_source
-- The body of a trigger's function as it is now.
select f.prosrc
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc f on f.oid = t.tgfoid
 where t.tgrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', :schema::text, :table::text))
   and t.tgname = :trigger;

-- name: is_proof_behind
-- Whether there is a proof that has not looked as far as a commit.
select w.through_lsn < :lsn::pg_lsn from afterwrite.proof_window w;

-- name: has_written
-- Whether a trigger that was to be off was seen to write between two commits, or to be on between two moments.
select exists (
           select from afterwrite.residual r
            where r.trigger = :identity and r.reason = 'silenced-yet-written'
              and r.commit_lsn > :after::pg_lsn and r.commit_lsn < :until::pg_lsn)
    or exists (
           select from afterwrite.ledger l
            where l.subject = :identity and l.action = 'drift.seen' and l.after ->> 'rule' = 'migrate.drift.reenabled'
              and l.at between :since::timestamptz and :till::timestamptz);

-- name: read_roles
-- The roles that definitions may name, the server's own aside.
select r.rolname::text from pg_catalog.pg_roles r where r.rolname !~ '^pg_' order by 1;

-- name: has_role
-- Whether there is a role of this name.
select exists (select from pg_catalog.pg_roles r where r.rolname = :role);

-- name: read_published
-- The tables that a publication lists.
select t.schemaname::text as schema, t.tablename::text as table
  from pg_catalog.pg_publication_tables t
 where t.pubname = :publication;

-- name: read_counters
-- What the server counts of this database: transactions but those of rehearsals, deadlocks, failed sessions, active time,
-- and who decodes its WAL.
select pg_catalog.clock_timestamp() as at, d.xact_commit as commits,
       d.xact_rollback - (select r.transactions from afterwrite.rehearsed r) as rollbacks, d.deadlocks,
       d.sessions_fatal as failed_sessions, d.active_time as active_ms, pg_catalog.pg_backend_pid() as backend,
       array(select case when r.active_pid is not null
                         then pg_catalog.format('%s read by %s', r.slot_name, r.active_pid)
                         else pg_catalog.format('%s read up to %s', r.slot_name, s.total_txns) end
               from pg_catalog.pg_replication_slots r
               left join pg_catalog.pg_stat_replication_slots s on s.slot_name = r.slot_name
              where r.database = d.datname
              order by 1) as decoders
  from pg_catalog.pg_stat_database d
 where d.datname = pg_catalog.current_database();

-- name: find_statement_statistics
-- Where pg_stat_statements is, and whether it shows us everybody's statements.
select n.nspname::text as schema, pg_catalog.pg_has_role('pg_read_all_stats', 'usage') as reads_all
  from pg_catalog.pg_extension e
  join pg_catalog.pg_namespace n on n.oid = e.extnamespace
 where e.extname = 'pg_stat_statements';

-- name: read_write_statements
-- Statements that write in this database as their clients sent them, ours aside.
select coalesce(sum(s.calls), 0)::bigint as statements, coalesce(sum(s.total_exec_time), 0)::float8 as statement_ms
  from "{schema}".pg_stat_statements s
 where s.dbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and s.toplevel
   and s.query operator(pg_catalog.~*) '^[\s(]*(insert|update|delete|merge|with\M.*\m(insert\s+into|update|delete\s+from|merge\s+into)\M)'
   and s.query operator(pg_catalog.!~) '\mafterwrite';

-- name: is_pulse_fresh
-- Whether somebody noted the counters in the last seconds.
select exists (
           select from afterwrite.pulse p
            where p.at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => :seconds));

-- name: write_pulse
-- Note the counters of this moment.
insert into afterwrite.pulse (at, commits, rollbacks, deadlocks, failed_sessions, active_ms, statements, statement_ms, cpu_seconds, decoders)
values (:at, :commits, :rollbacks, :deadlocks, :failed_sessions, :active_ms, :statements, :statement_ms, :cpu_seconds, :decoders::text[])
on conflict (at) do nothing;

-- name: forget_pulses
-- Forget what is older than a day and was not noted in the hour before something was silenced in the running migration.
delete from afterwrite.pulse p
 where p.at < pg_catalog.clock_timestamp() - interval '1 day'
   and not exists (
           select from afterwrite.ledger l
             join afterwrite.migration m on m.id = l.migration
            where m.finished_at is null and l.action = 'trigger.silence'
              and l.at between p.at and p.at + interval '65 minutes');

-- name: read_pulses
-- The counters as noted between two moments, oldest first.
select p.at, p.commits, p.rollbacks, p.deadlocks, p.failed_sessions, p.active_ms, p.statements, p.statement_ms, p.cpu_seconds,
       p.decoders
  from afterwrite.pulse p
 where p.at between :since::timestamptz and :until::timestamptz
 order by p.at;

-- name: read_phase_moments
-- When a phase was last silenced in the running migration, and when something else last changed before that.
with silenced as (
    select max(l.at) as at
      from afterwrite.ledger l
      join afterwrite.migration m on m.id = l.migration
     where m.finished_at is null and l.phase = :phase and l.action = 'trigger.silence'
)
select s.at as silenced_at,
       (select max(l.at) from afterwrite.ledger l
         where l.action in ('trigger.silence', 'trigger.restore')
           and (s.at is null or l.at < s.at)
           and (l.phase <> :phase or l.action = 'trigger.restore')) as steady_since
  from silenced s;

-- name: use_own_path
-- Until the end of the transaction, names are looked for where this role and database have them looked for.
set local search_path to default;

-- name: only_read
-- Nothing may be written for the rest of this transaction.
set transaction read only;

-- name: read_time_limit
-- How long a statement may take.
select pg_catalog.current_setting('statement_timeout');

-- name: limit_time
-- Let no statement of this transaction take longer.
select pg_catalog.set_config('statement_timeout', :milliseconds, true);

-- name: read_triggers_now
-- Every trigger that a person made (clones on partitions with their root), as plans know them, with its states.
select n.nspname::text as schema, c.relname::text as table, t.tgname::text as trigger,
       pg_catalog.format('%I.%I', n.nspname, c.relname) as relation, t.tgfoid::pg_catalog.regprocedure::text as function,
       afterwrite.trigger_fingerprint(c.oid, t.tgname::text) as fingerprint,
       array(select k.enabled from afterwrite.trigger_tree(c.oid, t.tgname::text) k) as states
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where not t.tgisinternal and t.tgparentid = 0
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
 order by 1, 2, 3;

-- name: read_new_tables
-- Tables that were not there when a migration began, and whether a publication of ours has them.
select pg_catalog.format('%I.%I', n.nspname, c.relname) as relation,
       exists (select from pg_catalog.pg_publication_tables t
                where t.schemaname = n.nspname and t.tablename = c.relname and t.pubname ~ '^afterwrite') as captured
  from pg_catalog.jsonb_array_elements_text(afterwrite.user_tables()) as now (oid)
  join pg_catalog.pg_class c on c.oid = now.oid::oid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join afterwrite.ledger l on l.migration = :migration and l.action = 'migration.start'
 where l.before is not null
   and not l.before @> pg_catalog.to_jsonb(now.oid::bigint)
 order by 1;

-- name: read_open_drift
-- What was seen to be otherwise in the running migration and is not over.
select subject, rule
  from (select distinct on (l.subject, l.after ->> 'rule') l.subject, l.after ->> 'rule' as rule, l.action
          from afterwrite.ledger l
          join afterwrite.migration m on m.id = l.migration
         where m.finished_at is null and l.action in ('drift.seen', 'drift.over')
         order by l.subject, l.after ->> 'rule', l.seq desc) last_word
 where action = 'drift.seen';

-- name: read_session
-- Whether anything can be written from here.
select pg_catalog.pg_is_in_recovery() as standby,
       pg_catalog.current_setting('transaction_read_only')::boolean as read_only;

-- name: read_facts
-- When afterwrite was installed here, since when shadow compares, and since when the server's counters are noted.
select (select max(v.applied_at) from afterwrite.version v) as installed_at, w.started_at as proof_since,
       w.transactions as proof_transactions, (select min(p.at) from afterwrite.pulse p) as noted_since
  from afterwrite.proof_window w;

-- name: read_rehearsed
-- The newest rehearsal of the backup, and what came of it.
select l.at, l.actor, l.operator, (l.after ->> 'same')::boolean as same, (l.after ->> 'triggers')::int as count
  from afterwrite.ledger l
 where l.action = 'backup.rehearsed'
 order by l.seq desc
 limit 1;

-- name: read_functions_removed
-- When the last function was dropped in the running migration, and how many are.
select max(l.at) as at, (array_agg(l.actor order by l.seq desc))[1] as actor,
       (array_agg(l.operator order by l.seq desc))[1] as operator, null::boolean as same, count(*)::int as count
  from afterwrite.ledger l
  join afterwrite.migration m on m.id = l.migration
 where m.finished_at is null and l.action = 'function.remove'
   and not exists (select from afterwrite.ledger r
                    where r.action = 'function.restore' and r.subject = l.subject and r.seq > l.seq)
having count(*) > 0;

-- name: count_open_drift
-- How much of what was seen to be otherwise in the running migration is not over.
select count(*)
  from (select distinct on (l.subject, l.after ->> 'rule') l.action
          from afterwrite.ledger l
          join afterwrite.migration m on m.id = l.migration
         where m.finished_at is null and l.action in ('drift.seen', 'drift.over')
           and l.after ->> 'rule' ~ '^migrate.drift'
         order by l.subject, l.after ->> 'rule', l.seq desc) last_word
 where action = 'drift.seen';
