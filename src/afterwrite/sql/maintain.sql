-- name: lock_maintainer
-- Be the only one that maintains this store; the lock ends with the session.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('afterwrite.maintain', 0));

-- name: unlock_maintainer
-- Let another one maintain this store.
select pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended('afterwrite.maintain', 0));

-- name: read_maintainer
-- Who maintains this store now.
select a.pid
  from pg_catalog.pg_locks l
  join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory'
   and l.granted
   and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and (l.classid::bigint << 32 | l.objid::bigint) = pg_catalog.hashtextextended('afterwrite.maintain', 0);

-- name: tell_reader
-- Note how far the deferred bodies of a source have read the feed.
insert into afterwrite.feed_reader as r (source, position, commit_lsn)
values (:source, :position, :commit_lsn::pg_lsn)
on conflict (source) do update
   set position = excluded.position, commit_lsn = excluded.commit_lsn, told_at = pg_catalog.clock_timestamp();

-- name: read_tables
-- The partitions of the activity table (rows as statistics know them, bytes with indexes and TOAST), by name.
select c.relname as name,
       greatest(c.reltuples::bigint, s.n_live_tup, 0) as rows,
       pg_catalog.pg_total_relation_size(c.oid) as bytes,
       s.last_vacuum as vacuumed_at
  from pg_catalog.pg_inherits i
  join pg_catalog.pg_class c on c.oid = i.inhrelid
  left join pg_catalog.pg_stat_all_tables s on s.relid = c.oid
 where i.inhparent = 'afterwrite.activity'::regclass
 order by c.relname;

-- name: read_indexes
-- The indexes of the partitions that are not constraints, and whether they can be used.
select t.relname as table_name, x.relname as name, n.indisvalid and n.indisready and n.indislive as valid
  from pg_catalog.pg_inherits i
  join pg_catalog.pg_class t on t.oid = i.inhrelid
  join pg_catalog.pg_index n on n.indrelid = t.oid
  join pg_catalog.pg_class x on x.oid = n.indexrelid
 where i.inhparent = 'afterwrite.activity'::regclass
   and not n.indisprimary
 order by t.relname, x.relname;

-- name: read_leftovers
-- Tables that an interrupted step of ours has left beside the partitions.
select c.relname
  from pg_catalog.pg_class c
 where c.relnamespace = 'afterwrite'::regnamespace
   and c.relkind = 'r'
   and c.relname ~ '^activity_(making|replaced|expired)_'
   and not exists (select from pg_catalog.pg_inherits i where i.inhrelid = c.oid)
 order by c.relname;

-- name: count_default_days
-- How many rows lie in the default partition, by day (UTC); days that no calendar of ours knows are left out.
select (occurred_at at time zone 'UTC')::date as day, count(*) as rows
  from afterwrite.activity_default
 where occurred_at >= '0001-01-01 00:00:00+00'
   and occurred_at < '9999-12-31 00:00:00+00'
 group by 1
 order by 1;

-- name: read_unread
-- By source, the first day (UTC) of which deferred bodies have not read everything; a source that never told has read nothing.
with reader as (
    select source, position, commit_lsn from afterwrite.feed_reader where source is distinct from :source::text
     union all
    select :source::text, :position::bigint, :commit_lsn::pg_lsn where :source::text is not null
)
select c.source, r.source is not null as told, (u.first_at at time zone 'UTC')::date as since
  from afterwrite.checkpoint c
  left join reader r on r.source = c.source
 cross join lateral (
        select min(b.first_at) as first_at
          from afterwrite.batch b
         where b.source = c.source
           and b.last_lsn is not null
           and (r.source is null or (b.position > r.position and b.last_lsn > r.commit_lsn))
       ) u
 where u.first_at is not null
 order by since, c.source;

-- name: read_feed_start
-- Where the feed begins, and when its first batch was written.
select f.position,
       (select b.written_at from afterwrite.batch b where b.position > f.position order by b.position limit 1) as oldest_at
  from afterwrite.feed_start f;

-- name: read_start
-- Batches up to this position are expired.
select position from afterwrite.feed_start;

-- name: read_expired_until
-- The last day that retention has taken.
select max(day) from afterwrite.expired_day;

-- name: read_dropped_until
-- The last day that retention has taken, and no lake has.
select max(day)
  from afterwrite.expired_day e
 where not exists (select from afterwrite.lake_part l where l.day = e.day and l.left_at is not null);

-- name: is_expired
-- Whether retention took rows of a day on which this batch had some.
select exists (
    select
      from afterwrite.batch b
      join afterwrite.expired_day e
        on e.day between (b.first_at at time zone 'UTC')::date and (b.last_at at time zone 'UTC')::date
     where b.position = :position
);

-- name: read_expired
-- What retention has taken so far; and whether days of this store leave for a lake.
select count(*) as days, coalesce(sum(rows), 0)::bigint as rows, max(day) as until,
       exists (select from afterwrite.lake_part) as has_lake
  from afterwrite.expired_day;

-- name: note_expired
-- Remember that a day is about to leave, and which batches of the feed had rows of it.
insert into afterwrite.expired_day as e (day, first_position, last_position)
select :day, f.position, case when f.position is not null then coalesce(l.position - 1, (select position from afterwrite.feed)) end
  from (select (
            select b.position
              from afterwrite.batch b
             where b.position > (select s.position from afterwrite.feed_start s)
               and b.last_at >= :from_time
               and b.first_at < :to_time
             order by b.position
             limit 1
        ) as position) f
  left join lateral (
        select b.position
          from afterwrite.batch b
         where b.position > f.position and b.first_at >= :to_time
         order by b.position
         limit 1
       ) l on true
    on conflict (day) do update
   set first_position = least(e.first_position, excluded.first_position),
       last_position = greatest(e.last_position, excluded.last_position),
       detached_at = pg_catalog.clock_timestamp(), dropped_at = null;

-- name: note_dropped
-- Remember what a day held whose table is dropped in this transaction.
update afterwrite.expired_day
   set rows = rows + :rows, bytes = bytes + :bytes, dropped_at = pg_catalog.clock_timestamp()
 where day = :day;

-- name: expire_default_rows
-- Delete the next rows of the default partition from before a day, oldest first, and remember them; says how many.
with doomed as (
    select occurred_at, id
      from afterwrite.activity_default
     where occurred_at < :before::timestamp at time zone 'UTC'
       and occurred_at >= '0001-01-01 00:00:00+00'
     order by occurred_at, id
     limit :limit
), gone as (
    delete from afterwrite.activity_default a
     using doomed d
     where a.occurred_at = d.occurred_at and a.id = d.id
    returning (a.occurred_at at time zone 'UTC')::date as day
), noted as (
    insert into afterwrite.expired_day as e (day, rows, dropped_at)
    select day, count(*), pg_catalog.clock_timestamp() from gone group by day order by day
        on conflict (day) do update set rows = e.rows + excluded.rows, dropped_at = pg_catalog.clock_timestamp()
)
select count(*) from gone;

-- name: has_default_rows
-- Whether the default partition still has rows from before a day.
select exists (
    select from afterwrite.activity_default
     where occurred_at < :before::timestamp at time zone 'UTC' and occurred_at >= '0001-01-01 00:00:00+00'
);

-- name: move_feed_start
-- Let the feed begin some batches later, but before the first that was written on this day or after; says where it begins.
with page as (
    select b.position, b.written_at
      from afterwrite.batch b
     where b.position > (select s.position from afterwrite.feed_start s)
     order by b.position
     limit :limit
)
update afterwrite.feed_start s
   set position = greatest(s.position, coalesce(
           (select min(p.position) - 1 from page p where p.written_at >= :before::timestamp at time zone 'UTC'),
           (select max(p.position) from page p)
       ))
returning position;

-- name: expire_batches
-- Delete the batches before the feed's start with their contexts, but each source's newest (the next is chained to it) and those with rows left.
with doomed as (
    select b.id
      from afterwrite.batch b
     where b.position <= (select s.position from afterwrite.feed_start s)
       and b.last_at < :before::timestamp at time zone 'UTC'
       and exists (
           select from afterwrite.batch n
            where n.source = b.source and n.position > b.position
              and n.position <= (select s.position from afterwrite.feed_start s)
       )
), contexts as (
    delete from afterwrite.transaction_context c using doomed d where c.batch_id = d.id
), gone as (
    delete from afterwrite.batch b using doomed d where b.id = d.id returning b.id
)
select count(*) from gone;

-- name: read_feed_position
-- The newest position of the feed: what is stored up to there is visible.
select position from afterwrite.feed;

-- name: measure_table
-- What a table of ours takes on disk, indexes and TOAST included.
select pg_catalog.pg_total_relation_size(pg_catalog.to_regclass(:name));

-- name: read_index_names
-- The indexes of a table of ours, the primary key's included.
select x.relname
  from pg_catalog.pg_index n
  join pg_catalog.pg_class x on x.oid = n.indexrelid
 where n.indrelid = pg_catalog.to_regclass(:name)
 order by x.relname;

-- name: avoid_scans
-- For the rest of this transaction rows are looked up by an index, however many the planner expects.
select set_config('enable_seqscan', 'off', true);

-- name: limit_exchange
-- For the rest of this transaction a statement that takes long gives up: everybody waits for it.
select set_config('statement_timeout', '5s', true);
