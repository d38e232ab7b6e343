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
