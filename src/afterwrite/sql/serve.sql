-- name: set_reader
-- From here to the transaction's end, be a tenant's reader, where the caller has a tenant.
select pg_catalog.set_config('role', 'afterwrite_tenant', true), pg_catalog.set_config('afterwrite.tenant', :tenant::text, true)
 where :tenant::text is not null;

-- name: read_recent_batches
-- The newest batches of the feed, newest first, and how long after their newest activity they were stored.
select position, source, rows, transactions, first_at, last_at, written_at,
       greatest(0, extract(epoch from written_at - last_at))::double precision as delay_seconds
  from afterwrite.batch
 order by position desc
 limit :limit;

-- name: read_checkpoints
-- How far each source is stored, and how long ago that was last said.
select source, slot, lsn::text as lsn, updated_at,
       greatest(0, extract(epoch from pg_catalog.clock_timestamp() - updated_at))::double precision as age_seconds
  from afterwrite.checkpoint
 order by source;

-- name: read_gaps
-- What is known to be lost, newest first.
select source, reason, noticed_at, from_lsn::text as from_lsn, to_lsn::text as to_lsn, from_time, to_time
  from afterwrite.gap
 order by noticed_at desc, id desc
 limit :limit;

-- name: make_key
-- Keep a new key.
insert into afterwrite.api_key (id, name, digest, scopes, tenant_id, expires_at)
values (:id, :name, :digest, :scopes, :tenant_id, :expires_at)
returning id, name, scopes, tenant_id, made_at, made_by, expires_at, revoked_at, used_at;

-- name: list_keys
-- Every key that was ever made, the newest first.
select id, name, scopes, tenant_id, made_at, made_by, expires_at, revoked_at, used_at
  from afterwrite.api_key
 order by made_at desc, id;

-- name: revoke_key
-- End a living key, by its name or its id.
update afterwrite.api_key
   set revoked_at = pg_catalog.clock_timestamp()
 where (name = :name or id = :name) and revoked_at is null
returning id, name, scopes, tenant_id, made_at, made_by, expires_at, revoked_at, used_at;

-- name: find_key
-- The key with this id, and the hash of its secret.
select id, name, digest, scopes, tenant_id, made_at, made_by, expires_at, revoked_at, used_at
  from afterwrite.api_key
 where id = :id;

-- name: has_living_key
-- Whether there is a key that opens anything.
select exists (
           select from afterwrite.api_key
            where revoked_at is null and (expires_at is null or expires_at > pg_catalog.clock_timestamp()));

-- name: has_tenants_key
-- Whether there is a living key of a tenant's.
select exists (
           select from afterwrite.api_key
            where tenant_id is not null and revoked_at is null
              and (expires_at is null or expires_at > pg_catalog.clock_timestamp()));

-- name: note_used
-- Say when keys were used last.
update afterwrite.api_key k
   set used_at = u.at
  from unnest(:ids::text[], :times::timestamptz[]) as u (id, at)
 where k.id = u.id and (k.used_at is null or k.used_at < u.at);

-- name: read_secret
-- What this store's servers sign with.
select secret from afterwrite.signing;

-- name: read_wall
-- Whether a tenant's caller can be served: row-level security is on, this role can become the tenant's reader, and does not have its eyes itself.
select (select c.relrowsecurity from pg_catalog.pg_class c where c.oid = 'afterwrite.activity'::regclass) as walled,
       coalesce(
           (select pg_catalog.pg_has_role(
                       current_user, r.oid,
                       case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end)
              from pg_catalog.pg_roles r where r.rolname = 'afterwrite_tenant'), false) as can_become,
       pg_catalog.row_security_active('afterwrite.activity')
       and coalesce(
               (select pg_catalog.pg_has_role(current_user, r.oid, 'USAGE')
                  from pg_catalog.pg_roles r where r.rolname = 'afterwrite_tenant'), false) as is_one,
       current_user::text as role;

-- name: read_stored
-- What each source has brought in the batches after a position.
select source, count(*) as batches, sum(rows)::bigint as rows, sum(coalesce((rows_per_table ->> '')::bigint, 0))::bigint as events,
       max(position) as position
  from afterwrite.batch
 where position > :after_position
 group by source;

-- name: read_stored_ids
-- Which activities a batch brought.
select occurred_at, id::text as id
  from afterwrite.activity
 where batch_id = :batch_id and occurred_at between :first_at and :last_at;

-- name: list_batches
-- Batches of the feed before a position, newest first.
select position, id, source, first_lsn::text as first_lsn, last_lsn::text as last_lsn, first_at, last_at, transactions, rows,
       rows_per_table, encode(rows_digest, 'hex') as rows_digest, encode(digest, 'hex') as digest, written_at
  from afterwrite.batch
 where :before::bigint is null or position < :before::bigint
 order by position desc
 limit :limit;

-- name: read_batch
-- The batch at a position of the feed.
select position, id, source, first_lsn::text as first_lsn, last_lsn::text as last_lsn, first_at, last_at, transactions, rows,
       rows_per_table, encode(rows_digest, 'hex') as rows_digest, encode(digest, 'hex') as digest, written_at
  from afterwrite.batch
 where position = :position;
