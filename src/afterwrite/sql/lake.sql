-- name: read_parts
-- What of which days is in the lake, as the ledger has it.
select day, part, lake, rows, known, bytes, digest, version, archived_at, left_at
  from afterwrite.lake_part
 order by day, part;

-- name: read_left_days
-- The days of which the lake alone has something, what the table there is called, and from which version on it has it.
select day, lake, max(version) as version
  from afterwrite.lake_part
 where left_at is not null
 group by day, lake
 order by day;

-- name: note_part
-- Write down that a part of a day is in the lake, the same on both sides.
insert into afterwrite.lake_part (day, part, lake, rows, known, bytes, digest, version, left_at)
values (:day, :part, :lake, :rows, :known, :bytes, :digest, :version,
        case when :detached then pg_catalog.clock_timestamp() end);

-- name: note_left
-- Write down that the store has a day no more, in the transaction that takes it out.
update afterwrite.lake_part set left_at = pg_catalog.clock_timestamp() where day = :day and left_at is null;

-- name: read_detached
-- Days that were taken out of activity for the lake, and whose tables are not dropped yet.
select c.relname
  from pg_catalog.pg_class c
 where c.relnamespace = 'afterwrite'::regnamespace
   and c.relkind = 'r'
   and c.relname ~ '^activity_archived_'
   and not exists (select from pg_catalog.pg_inherits i where i.inhrelid = c.oid)
 order by c.relname;

-- name: measure_rows
-- What the rows of a table of ours take on disk, long values included and indexes not.
select pg_catalog.pg_table_size(pg_catalog.to_regclass(:name));

-- name: make_list
-- A list of what the lake has of a day, for this session alone.
create temp table if not exists afterwrite_in_lake (
    id uuid not null, at bigint not null, part integer not null, digest text not null, primary key (id, at)
);

-- name: clear_list
-- Forget what the lake had of another day.
truncate pg_temp.afterwrite_in_lake;

-- name: fill_list
-- Take in what the lake has of a day.
copy pg_temp.afterwrite_in_lake (id, at, part, digest) from stdin;
