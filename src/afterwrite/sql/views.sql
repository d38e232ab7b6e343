-- name: read_views
-- The saved views of whoever reads, by name.
select id, name, query, made_by, made_at
  from afterwrite.saved_view
 where tenant_id is not distinct from :tenant::text
 order by name
 limit :most::int;

-- name: write_view
-- Keeps a view; one's own of that name becomes another, and somebody else's stays (no row comes back).
insert into afterwrite.saved_view as v (tenant_id, name, query, made_by)
values (:tenant::text, :name::text, :line::text, :made_by::text)
    on conflict (coalesce(tenant_id, ''), name) do update set query = excluded.query, made_at = clock_timestamp()
 where v.made_by = excluded.made_by
returning v.id, v.name, v.query, v.made_by, v.made_at;

-- name: count_views
-- How many views are kept beside each other.
select count(*) from afterwrite.saved_view where tenant_id is not distinct from :tenant::text;

-- name: delete_view
-- Forgets a view: one's own, or for who may everybody's.
delete from afterwrite.saved_view
 where id = :id::bigint and tenant_id is not distinct from :tenant::text and (made_by = :made_by::text or :anybodys::boolean);

-- name: read_rate
-- How many activities were stored in each of the last minutes, as far as the newest batches tell.
select date_trunc('minute', b.written_at) as minute, sum(b.rows)::bigint as rows
  from (select n.written_at, n.rows from afterwrite.batch n order by n.position desc limit 20000) b
 where b.written_at > now() - make_interval(mins => :minutes::int)
 group by 1;

-- name: read_place
-- The place of the newest batch in the feed, as a tenant's reader may know it, too.
select coalesce(max(b.position), 0) from afterwrite.batch b;
