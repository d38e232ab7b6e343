-- name: listen
-- Be told of every batch that is committed.
listen afterwrite_feed;

-- name: read_bounds
-- Where the feed begins (up to there batches are expired) and ends now.
select s.position as start, f.position from afterwrite.feed f cross join afterwrite.feed_start s;

-- name: read_distance
-- How many rows lie between two positions of the feed.
select coalesce(sum(rows), 0)::bigint from afterwrite.batch where position > :after_position and position <= :until_position;

-- name: read_rows
-- What these batches hold of what we may see, in the order of the feed; the table of batches is not looked at.
select b.position, :activity
  from afterwrite.activity a
  join rows from (pg_catalog.unnest(:batch_ids::bigint[]), pg_catalog.unnest(:positions::bigint[])) as b (id, position)
    on b.id = a.batch_id
 where a.occurred_at between :first_at and :last_at
 order by b.position, a.commit_lsn nulls first, a.ordinal, a.occurred_at, a.id;

-- name: read_moment
-- When an activity of a batch occurred, which is where it stands in the order of time.
select occurred_at
  from afterwrite.activity
 where occurred_at between :first_at and :last_at
   and id = :id::uuid
   and batch_id = :batch_id;
