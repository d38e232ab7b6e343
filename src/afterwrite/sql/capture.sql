-- name: read_wal_sender_timeout
-- After how many milliseconds without a word from us the server hangs up (0: never).
select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout';

-- name: read_system
-- Which cluster this is and on which timeline it writes now.
select (select system_identifier::text from pg_catalog.pg_control_system()) as system_id,
       ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int as timeline;

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

-- name: read_pulse
-- Where the server writes its log now, and which of our publications are gone.
select pg_catalog.pg_current_wal_insert_lsn()::text as wal,
       array(select w.name
               from unnest(:publications::text[]) as w (name)
              where not exists (select from pg_catalog.pg_publication p where p.pubname = w.name)) as gone;

-- name: emit_heartbeat
-- A transaction that says nothing, so that the slot moves on although nobody writes to our tables.
select pg_catalog.pg_logical_emit_message(true, 'afterwrite.heartbeat', :content::text)::text;

-- name: try_claim
-- Become the active worker of this slot for the length of the session; false when there is another.
select pg_catalog.pg_try_advisory_lock(1634104421, pg_catalog.hashtext(:slot));

-- name: read_claim_holder
-- The session that is the active worker of this slot.
select l.pid
  from pg_catalog.pg_locks l
 where l.locktype = 'advisory'
   and l.classid = 1634104421::oid
   and l.objid = (pg_catalog.hashtext(:slot)::int8 & 4294967295)::oid
   and l.objsubid = 2
   and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
   and l.granted;

-- name: read_server
-- What a server must be and allow for its WAL to be read: settings, rights, free places, and whose cloud it is.
select current_setting('server_version_num')::int as version,
       current_setting('wal_level') as wal_level,
       current_setting('server_encoding') as encoding,
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
              order by r.oid) as tables
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
