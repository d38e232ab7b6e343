-- name: roll_up
-- Count the next batches of the feed.
select from_position, to_position, rows from afterwrite.roll_up(:most_rows, :most_names);

-- name: be_the_one
-- Be the only session that counts in a worker's stead, until it ends; false while another is.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('afterwrite.rollup', 0));

-- name: read_over
-- The moment up to which hours are over: a little ago, or as far as the newest batches reach, where capture is behind.
select least(
           pg_catalog.now() - interval '5 minutes',
           greatest(
               pg_catalog.now() - interval '3 hours',
               (select max(b.last_at)
                  from (
                       select w.last_at
                         from afterwrite.batch w
                        where w.position <= (select r.position from afterwrite.rollup r)
                        order by w.position desc
                        limit 20
                       ) b)
           )
       );

-- name: count_names
-- Count the actors and entities of the next hours that were over by then; says where they begin.
select afterwrite.count_names(:over_by, :most_names);

-- name: fold
-- Sum up all but the busiest names of the days before this one; says how many went.
select afterwrite.fold_rollup(:until, :most_names);

-- name: lock_rollup
-- Be the only one that counts, until the transaction ends; what it sees is what was counted before.
lock table afterwrite.rollup in exclusive mode;

-- name: lock_days
-- Let no day be detached until the transaction ends.
lock table only afterwrite.activity in access share mode;

-- name: rebuild_day
-- Count a day anew; says how many rows it has, null where retention has taken some.
select afterwrite.rebuild_rollup(:day, :most_names);

-- name: read_default_days
-- The days (UTC) that have rows in the default partition.
select distinct (d.occurred_at at time zone 'UTC')::date as day
  from afterwrite.activity_default d
 where d.occurred_at >= '0001-01-01 00:00:00+00'
   and d.occurred_at < '9999-12-31 00:00:00+00'
 order by 1;

-- name: refresh
-- Refresh the materialized views; says when, and up to which position they count.
select refreshed_at, up_to as position from afterwrite.refresh_analytics();

-- name: read_standing
-- How far the feed is counted, what waits, and whether the materialized views say the same as the tables.
select r.position, r.part_at is not null as in_part, r.rolled_at, r.exact_until = 'infinity' as exact, r.refreshed_at,
       b.batches, b.rows, b.since
  from afterwrite.rollup r
 cross join lateral (
       select count(*) as batches, coalesce(sum(w.rows), 0)::bigint as rows, min(w.written_at) as since
         from afterwrite.batch w
        where w.position > r.position
       ) b;
