-- name: read_wal_sender_timeout
-- After how many milliseconds without a word from us the server hangs up (0: never).
select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout';

-- name: read_system
-- Which cluster this is, on which timeline it writes now, and how far.
select (select system_identifier::text from pg_catalog.pg_control_system()) as system_id,
       ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int as timeline,
       pg_catalog.pg_current_wal_insert_lsn()::text as wal;

-- name: read_slot
-- The slot as it is, with columns that only some versions have.
select s.slot_name::text as name,
       s.plugin::text as plugin,
       s.database::text as database,
       s.database = current_database() as here,
       s.active_pid as active_pid,
       s.restart_lsn::text as restart_lsn,
       s.confirmed_flush_lsn::text as confirmed_flush_lsn,
       s.wal_status as wal_status,
       to_jsonb(s) ->> 'invalidation_reason' as invalidation
  from pg_catalog.pg_replication_slots s
 where s.slot_name = :slot;

-- name: read_wal_position
-- Where the server writes its log now.
select pg_catalog.pg_current_wal_insert_lsn()::text;

-- name: read_in_recovery
-- Whether this is a standby.
select pg_catalog.pg_is_in_recovery();

-- name: read_pulse
-- Once a second: where the log is written, how the slot stands, whose it is, and whether all is still published as it was.
select pg_catalog.pg_current_wal_insert_lsn()::text as wal,
       s.slot_name is not null as present,
       s.restart_lsn::text as restart_lsn,
       s.confirmed_flush_lsn::text as confirmed_flush_lsn,
       s.wal_status as wal_status,
       s.safe_wal_size as safe_wal_size,
       s.active_pid as active_pid,
       to_jsonb(s) ->> 'invalidation_reason' as invalidation,
       pg_catalog.age(s.catalog_xmin) as catalog_age,
       (select w.spill_bytes from pg_catalog.pg_stat_replication_slots w where w.slot_name = :slot) as spilled_bytes,
       (select c.store from afterwrite.capture c where c.slot = :slot) as store,
       coalesce((select pg_catalog.jsonb_agg(pg_catalog.to_jsonb(d)) from afterwrite.departure d where d.slot = :slot), '[]')::text
           as departures
  from (select) as once
  left join pg_catalog.pg_replication_slots s on s.slot_name = :slot;

-- name: emit_heartbeat
-- A transaction that says nothing, so that the slot moves on although nobody writes to our tables.
select pg_catalog.pg_logical_emit_message(true, 'afterwrite.heartbeat', :content::text)::text;

-- name: try_claim
-- Become the active worker of this slot for the length of the session; false when there is another.
select pg_catalog.pg_try_advisory_lock(1634104421, pg_catalog.hashtext(:slot));

-- name: release_claim
-- Let another session become the active worker.
select pg_catalog.pg_advisory_unlock(1634104421, pg_catalog.hashtext(:slot));

-- name: read_claim_holder
-- The session that is the active worker of this slot, and for how long it has asked nothing; it asks once a second.
select l.pid,
       case when a.state = 'idle' then extract(epoch from clock_timestamp() - a.state_change)::float8 end as silent_seconds
  from pg_catalog.pg_locks l
  left join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory'
   and l.classid = 1634104421::oid
   and l.objid = (pg_catalog.hashtext(:slot)::int8 & 4294967295)::oid
   and l.objsubid = 2
   and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
   and l.granted;

-- name: end_sessions
-- End these sessions, as far as they are our own role's, and say which were.
-- Materialized, or the planner may end sessions before it has seen whose they are.
with found as materialized (
    select a.pid from pg_catalog.pg_stat_activity a where a.pid = any (:pids::int[]) and a.usename = current_user
)
select pid from found where pg_catalog.pg_terminate_backend(pid);

-- name: end_stream
-- End the session that streams this slot, if a worker of ours opened it (a name is cut at 63 bytes); its pid comes back.
-- Materialized, or the planner may end sessions before it has seen whose they are.
with found as materialized (
    select a.pid
      from pg_catalog.pg_replication_slots s
      join pg_catalog.pg_stat_activity a on a.pid = s.active_pid
     where s.slot_name = :slot
       and a.application_name = (:application_name::text)::name::text
       and a.usename = current_user
)
select pid from found where pg_catalog.pg_terminate_backend(pid);

-- name: read_server
-- What a server must be and allow for its WAL to be read: settings, rights, free places, and whose cloud it is.
select current_setting('server_version_num')::int as version,
       current_setting('wal_level') as wal_level,
       current_setting('server_encoding') as encoding,
       (select case when g.setting::bigint >= 0 then g.setting::bigint * 1048576 end
          from pg_catalog.pg_settings g where g.name = 'max_slot_wal_keep_size') as slot_keeps_bytes,
       pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'execute') as may_identify,
       pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage') as may_monitor,
       pg_catalog.pg_is_in_recovery() as in_recovery,
       current_setting('max_replication_slots')::int as slots_allowed,
       (select count(*) from pg_catalog.pg_replication_slots)::int as slots_used,
       current_setting('max_wal_senders')::int as senders_allowed,
       (select count(*) from pg_catalog.pg_stat_replication)::int as senders_used,
       current_user::text as role,
       r.rolsuper or r.rolreplication
           or coalesce((select pg_catalog.pg_has_role(current_user, m.oid, 'usage')
                          from pg_catalog.pg_roles m
                         where m.rolname = 'rds_replication'), false) as may_replicate,
       pg_catalog.has_database_privilege(current_database(), 'create') as may_publish,
       current_database()::text as database,
       case
           when exists (select from pg_catalog.pg_roles where rolname = 'rds_superuser') then 'rds'
           when exists (select from pg_catalog.pg_roles where rolname = 'cloudsqlsuperuser') then 'cloudsql'
           when exists (select from pg_catalog.pg_roles where rolname = 'azure_pg_admin') then 'azure'
           when exists (select from pg_catalog.pg_roles where rolname = 'supabase_admin') then 'supabase'
           else 'self'
       end as provider
  from pg_catalog.pg_roles r
 where r.rolname = current_user;

-- name: read_relations
-- The wanted tables, each with every partition under it: all that decides whether its changes can be published.
with wanted as (
    select w.schema, w.name, w.place, c.oid
      from unnest(:schemas::text[], :tables::text[]) with ordinality as w (schema, name, place)
      left join pg_catalog.pg_namespace n on n.nspname = w.schema
      left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name
), members as (
    select w.schema, w.name, w.place, w.oid as top, w.oid as member, 0 as level from wanted w
     union
    select w.schema, w.name, w.place, w.oid, t.relid::oid, t.level
      from wanted w
     cross join lateral pg_catalog.pg_partition_tree(w.oid) as t
     where t.level > 0
)
select m.schema as wanted_schema,
       m.name as wanted_table,
       c.oid is not null as found,
       m.level = 0 as top,
       coalesce(n.nspname::text, m.schema) as schema,
       coalesce(c.relname::text, m.name) as table,
       coalesce(c.relkind::text, '') as kind,
       coalesce(c.relpersistence::text, '') as persistence,
       coalesce(c.relispartition, false) as is_partition,
       coalesce(c.relreplident::text, '') as identity,
       (select x.relname::text
          from pg_catalog.pg_index i
          join pg_catalog.pg_class x on x.oid = i.indexrelid
         where i.indrelid = c.oid and i.indisreplident) as identity_index,
       exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary and i.indisvalid)
           as has_primary_key,
       exists (select
                 from pg_catalog.pg_index p
                 join pg_catalog.pg_index i on i.indrelid = p.indrelid and i.indisreplident
                where p.indrelid = c.oid and p.indisprimary and not (p.indkey::int2[] <@ i.indkey::int2[]))
           as identity_lacks_key,
       exists (select
                 from pg_catalog.pg_attribute a
                where a.attrelid = c.oid and a.attgenerated = 's' and not a.attisdropped) as has_stored_columns,
       exists (select
                 from pg_catalog.pg_attribute a
                where a.attrelid = c.oid and a.attgenerated = 'v' and not a.attisdropped) as has_virtual_columns,
       coalesce(pg_catalog.pg_has_role(c.relowner, 'usage'), false) as owned,
       coalesce(pg_catalog.pg_get_userbyid(c.relowner)::text, '') as owner,
       array(select p.pubname::text
               from pg_catalog.pg_publication_rel r
               join pg_catalog.pg_publication p on p.oid = r.prpubid
              where r.prrelid = c.oid and to_jsonb(r) ->> 'prattrs' is not null
              order by p.pubname) as column_lists,
       array(select p.pubname::text
               from pg_catalog.pg_publication p
              where (p.pubupdate or p.pubdelete)
                and to_jsonb(p) ->> 'pubgencols' = 'n'
                and (p.puballtables
                     or exists (select
                                  from pg_catalog.pg_publication_rel r
                                 where r.prpubid = p.oid and r.prrelid in (c.oid, m.top)))
              order by p.pubname) as hide_generated
  from members m
  left join pg_catalog.pg_class c on c.oid = m.member
  left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 order by m.place, m.level, c.oid;

-- name: find_table
-- The table of that name (in schema public where it has none), or the root of which it is a partition.
with named as (
    select coalesce(pg_catalog.to_regclass(:name::text), pg_catalog.to_regclass('public.' || :name::text)) as oid
)
select n.nspname::text as schema, c.relname::text as name
  from named
  join pg_catalog.pg_class c on c.oid = coalesce(pg_catalog.pg_partition_root(named.oid), named.oid)
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace;

-- name: read_publications
-- These publications and the tables that each one lists by itself.
select p.pubname::text as name,
       p.puballtables as all_tables,
       p.pubinsert as inserts,
       p.pubupdate as updates,
       p.pubdelete as deletes,
       p.pubtruncate as truncates,
       p.pubviaroot as via_root,
       coalesce(to_jsonb(p) ->> 'pubgencols', 'n') as generated,
       array(select n.nspname::text
               from pg_catalog.pg_publication_rel r
               join pg_catalog.pg_class c on c.oid = r.prrelid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where r.prpubid = p.oid
              order by r.oid) as schemas,
       array(select c.relname::text
               from pg_catalog.pg_publication_rel r
               join pg_catalog.pg_class c on c.oid = r.prrelid
              where r.prpubid = p.oid
              order by r.oid) as tables,
       array(select pg_catalog.format('%I.%I', n.nspname, c.relname)
               from pg_catalog.pg_publication_rel r
               join pg_catalog.pg_class c on c.oid = r.prrelid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where r.prpubid = p.oid
                and (to_jsonb(r) ->> 'prqual' is not null or to_jsonb(r) ->> 'prattrs' is not null)
              order by r.oid) as narrowed
  from pg_catalog.pg_publication p
 where p.pubname = any (:names::text[]);

-- name: create_slot
-- Create our slot and say where it begins; waits for transactions that are under way.
select lsn::text from pg_catalog.pg_create_logical_replication_slot(:slot, 'pgoutput');

-- name: drop_slot
-- Drop our slot, and with it the WAL that it held.
select pg_catalog.pg_drop_replication_slot(:slot);

-- name: set_session_lock_timeout
-- Give up on a lock after this long, until set again.
select set_config('lock_timeout', :milliseconds::text, false);

-- name: read_oldest_writers
-- Transactions that have written and are not over, prepared ones too, oldest first: a new slot waits for them.
select a.pid,
       coalesce(a.application_name, '') as application_name,
       coalesce(a.usename, '')::text as user_name,
       a.state,
       'uncommitted writes' as modes,
       clock_timestamp() - a.xact_start as transaction_age,
       left(a.query, 200) as query
  from pg_catalog.pg_stat_activity a
 where a.backend_xid is not null
   and a.pid <> pg_catalog.pg_backend_pid()
 union all
select null, 'prepared transaction ' || p.gid, p.owner::text, 'prepared', 'uncommitted writes',
       clock_timestamp() - p.prepared, null
  from pg_catalog.pg_prepared_xacts p
 order by transaction_age desc
 limit 5;

-- name: read_remembers
-- Whether our memory of publications is laid here.
select pg_catalog.to_regclass('afterwrite.departure') is not null;

-- name: keep_one_snapshot
-- Compare and remember the same moment.
set transaction isolation level repeatable read;

-- name: read_capture
-- Whose a slot is, since when, and up to where its publications were seen as they should be.
select slot, source, store, since_lsn::text as since_lsn, intact_lsn::text as intact_lsn
  from afterwrite.capture
 where slot = :slot;

-- name: read_departures
-- Where the publications of a slot are no longer as `install` left them.
select kind, publication, relation, found, expected
  from afterwrite.departure
 where slot = :slot
 order by publication, relation nulls first;

-- name: own_slot
-- Write down that a slot belongs to a store; a slot that begins anew is captured from the new position on.
insert into afterwrite.capture as c (slot, source, store, since_lsn, intact_lsn)
values (:slot, :source, :store, :lsn::pg_lsn, :lsn::pg_lsn)
on conflict (slot) do update set source = excluded.source, store = excluded.store;

-- name: begin_slot
-- Write down where a slot that was just made begins: nothing before it is captured.
with slot as (
    update afterwrite.capture
       set since_lsn = :lsn::pg_lsn, intact_lsn = greatest(intact_lsn, :lsn::pg_lsn)
     where slot = :slot
)
update afterwrite.published set since_lsn = :lsn::pg_lsn where slot = :slot;

-- name: forget_slot
-- Forget whose a slot is and what it published.
delete from afterwrite.capture where slot = :slot;

-- name: remember_publications
-- Take these publications as they are now for as they should be.
insert into afterwrite.publication as b (slot, name, oid, version, options)
select :slot, p.pubname, p.oid, p.xmin::text, afterwrite.publication_options(p.oid)
  from pg_catalog.pg_publication p
 where p.pubname = any (:publications::text[])
on conflict (slot, name) do update set oid = excluded.oid, version = excluded.version, options = excluded.options
 where (b.oid, b.version, b.options) is distinct from (excluded.oid, excluded.version, excluded.options);

-- name: forget_published
-- Forget the tables that are no longer listed; one that was dropped is still needed to read its last rows.
delete from afterwrite.published t
 where t.slot = :slot
   and exists (select from pg_catalog.pg_class c where c.oid = t.relation)
   and not exists (
           select from pg_catalog.pg_publication_rel r
             join pg_catalog.pg_publication p on p.oid = r.prpubid
            where p.pubname = t.publication and r.prrelid = t.relation
       );

-- name: forget_dropped
-- Forget tables that no longer exist, unless another of the name stands in their place and is not captured.
delete from afterwrite.published t
 using afterwrite.departure d
 where t.slot = :slot
   and d.slot = t.slot
   and d.publication = t.publication
   and d.kind = 'table dropped'
   and d.relation = pg_catalog.format('%I.%I', t.schema, t.name)
   and not exists (select from pg_catalog.pg_class c where c.oid = t.relation);

-- name: remember_published
-- Take the tables that are listed now for those that should be; their names and keys may have changed.
insert into afterwrite.published as t (slot, publication, relation, membership, schema, name, key, since_lsn)
select :slot, p.pubname, c.oid, r.oid, n.nspname, c.relname,
       array(select a.attname::text
               from pg_catalog.pg_index i
              cross join lateral unnest(i.indkey::int2[]) with ordinality as k (attnum, place)
               join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
              where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts
              order by k.place),
       pg_catalog.pg_current_wal_insert_lsn()
  from pg_catalog.pg_publication p
  join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
  join pg_catalog.pg_class c on c.oid = r.prrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where p.pubname = any (:publications::text[])
on conflict (slot, publication, relation) do update
   set membership = excluded.membership, schema = excluded.schema, name = excluded.name, key = excluded.key,
       since_lsn = case when t.membership = excluded.membership then t.since_lsn else excluded.since_lsn end
 where (t.membership, t.schema, t.name, t.key)
       is distinct from (excluded.membership, excluded.schema, excluded.name, excluded.key);

-- name: note_intact
-- The publications were as they should be up to here.
update afterwrite.capture set intact_lsn = :lsn::pg_lsn where slot = :slot and intact_lsn < :lsn::pg_lsn;

-- name: open_gap
-- Write down a loss before it happens; the same kind of loss that is still open is the same one.
insert into afterwrite.open_gap as g (slot, source, kind, from_lsn, reason)
values (:slot, :source, :kind, :from_lsn::pg_lsn, :reason)
on conflict (slot, kind) do update
   set from_lsn = excluded.from_lsn, to_lsn = null, reason = excluded.reason, noticed_at = excluded.noticed_at
 where g.to_lsn is not null;

-- name: read_open_gaps
-- The losses of a slot that the store does not know of yet.
select id, kind, from_lsn::text as from_lsn, to_lsn::text as to_lsn, reason, noticed_at
  from afterwrite.open_gap
 where slot = :slot
 order by id;

-- name: end_gap
-- Write down from where to where a loss goes, now that it has an end.
update afterwrite.open_gap set from_lsn = :from_lsn::pg_lsn, to_lsn = :to_lsn::pg_lsn where id = :id;

-- name: close_gap
-- The store knows of this loss now, or there was none after all.
delete from afterwrite.open_gap where id = :id;
