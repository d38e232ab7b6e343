-- name: read_counting
-- How far the feed is counted, in what a tenant's reader may see, too.
select r.position, r.rolled_at,
       greatest(0, (select b.position from afterwrite.batch b order by b.position desc limit 1) - r.position) as behind_batches,
       case when pg_catalog.isfinite(r.named_until) then r.named_until end as named_until,
       case when pg_catalog.isfinite(r.exact_until) then r.exact_until end as exact_until,
       r.exact_until = 'infinity' as exact, r.refreshed_at
  from afterwrite.rollup r;

-- name: read_hours
-- Activities of all tenants by bucket of time (or in all) and by category (or in all), with how many failed.
select case when :bucket <> 'all' then date_trunc(:bucket, h.hour, 'UTC') end as at,
       case when :categories then h.category end as category,
       sum(h.activities)::bigint as activities,
       coalesce(sum(h.activities) filter (where h.outcome = 'failure'), 0)::bigint as failures
  from (
       select hour, category, outcome, activities
         from afterwrite.analytics_hour
        where hour >= :after and hour < least(:before::timestamptz, :exact_until::timestamptz)
        union all
       select hour, category, outcome, activities
         from afterwrite.rollup_hour
        where hour >= greatest(:after::timestamptz, :exact_until::timestamptz) and hour < :before
       ) h
 group by 1, 2
 order by 1, 3 desc, 2;

-- name: read_tenant_hours
-- The same of one tenant, from what it may read.
select case when :bucket <> 'all' then date_trunc(:bucket, h.hour, 'UTC') end as at,
       case when :categories then h.category end as category,
       sum(h.activities)::bigint as activities,
       coalesce(sum(h.activities) filter (where h.outcome = 'failure'), 0)::bigint as failures
  from afterwrite.rollup_hour h
 where h.hour >= :after and h.hour < :before
   and h.tenant_id = :tenant
 group by 1, 2
 order by 1, 3 desc, 2;

-- name: read_sorts
-- Activities of all tenants by category and action, or by entity type, with how many failed: whole days from the view.
select case when :actions then h.category end as category,
       case when :actions then h.action else h.entity_type end as name,
       sum(h.activities)::bigint as activities,
       coalesce(sum(h.activities) filter (where h.outcome = 'failure'), 0)::bigint as failures
  from (
       select category, action, entity_type, outcome, activities
         from afterwrite.analytics_day
        where day >= :first_day and day < :until_day
        union all
       select category, action, entity_type, outcome, activities
         from afterwrite.rollup_hour
        where hour >= :after and hour < least(:before::timestamptz, :first_day::timestamp at time zone 'UTC')
        union all
       select category, action, entity_type, outcome, activities
         from afterwrite.rollup_hour
        where hour >= greatest(:after::timestamptz, :until_day::timestamp at time zone 'UTC') and hour < :before
       ) h
 where :actions or h.entity_type is not null
 group by 1, 2
 order by 3 desc, 1, 2
 limit :limit;

-- name: read_tenant_sorts
-- The same of one tenant, from what it may read.
select case when :actions then h.category end as category,
       case when :actions then h.action else h.entity_type end as name,
       sum(h.activities)::bigint as activities,
       coalesce(sum(h.activities) filter (where h.outcome = 'failure'), 0)::bigint as failures
  from afterwrite.rollup_hour h
 where h.hour >= :after and h.hour < :before
   and h.tenant_id = :tenant
   and (:actions or h.entity_type is not null)
 group by 1, 2
 order by 3 desc, 1, 2
 limit :limit;

-- name: read_names
-- The busiest names of some time: whole days, hours of the first and the last one, and what is not counted yet.
select n.type, n.name, sum(n.activities)::bigint as activities
  from (
       select t.type, t.name, t.activities
         from afterwrite.rollup_top t
        where t.what = :what and t.day >= :first_day and t.day < :until_day
          and (:tenant::text is null or t.tenant_id = :tenant)
        union all
       select t.type, t.name, (
                  select sum(h)
                    from unnest(t.hours[
                             case when t.day = :after_day then :after_hour::integer else 0 end + 1
                             : case when t.day = :before_day then :before_hour::integer else 24 end]) h
              )
         from afterwrite.rollup_top t
        where t.what = :what and t.day in (:after_day, :before_day) and not (t.day >= :first_day and t.day < :until_day)
          and (:tenant::text is null or t.tenant_id = :tenant)
        union all
       select case when :what = 'entity' then a.entity_type end,
              case when :what = 'entity' then a.entity_id else a.actor_id end, count(*)
         from afterwrite.activity a
        where a.occurred_at >= :live_after and a.occurred_at < :live_before
          and (:tenant::text is null or a.tenant_id = :tenant)
          and case when :what = 'entity' then a.entity_id else a.actor_id end is not null
        group by 1, 2
       ) n
 group by n.type, n.name
having sum(n.activities) > 0
 order by 3 desc, 1, 2
 limit :limit;

-- name: read_left_out
-- At most how many more activities a name had on these days than was kept of it.
select coalesce(sum(r.most), 0)::bigint
  from afterwrite.rollup_rest r
 where r.what = :what and r.day >= :after_day and r.day <= :before_day
   and (:tenant::text is null or r.tenant_id = :tenant);

-- name: count_uncounted
-- How many activities lie in hours of which names are not counted yet.
select coalesce(sum(h.activities), 0)::bigint
  from afterwrite.rollup_hour h
 where h.hour >= :after and h.hour < :before;

-- name: read_unusual_actors
-- Hours of some days at which an actor is active who was known in the four weeks before, and then almost never near that hour.
with past as materialized (
    select t.name, t.day, t.hours || t.hours as hours  -- so that the hours before and after each lie beside it
      from afterwrite.rollup_top t
     where t.what = 'actor' and t.day >= :since_day and t.day < :after_day
       and (:tenant::text is null or t.tenant_id = :tenant)
), known as (
    select p.name, count(distinct p.day) as days
      from past p
     group by p.name
    having count(distinct p.day) >= :known_days
), cut as materialized (
    select distinct r.day
      from afterwrite.rollup_rest r
     where r.what = 'actor' and r.day >= :since_day and r.day < :after_day
       and (:tenant::text is null or r.tenant_id = :tenant)
), now as materialized (
    select c.name, c.at, sum(c.activities)::bigint as activities
      from (
           select t.name, (t.day::timestamp at time zone 'UTC') + (h.number - 1) * interval '1 hour' as at, h.activities
             from afterwrite.rollup_top t
            cross join lateral unnest(t.hours) with ordinality h (activities, number)
            where t.what = 'actor' and t.day >= :after_day and t.day <= :before_day
              and h.activities > 0
              and (:tenant::text is null or t.tenant_id = :tenant)
            union all
           select a.actor_id, date_bin('1 hour', a.occurred_at, '0001-01-01 00:00:00+00'), count(*)
             from afterwrite.activity a
            where a.occurred_at >= :live_after and a.occurred_at < :live_before
              and a.actor_id is not null
              and (:tenant::text is null or a.tenant_id = :tenant)
            group by 1, 2
           ) c
     where c.at >= :after and c.at < :before
     group by c.name, c.at
), pairs as materialized (
    select n.name, extract(hour from n.at at time zone 'UTC')::integer as hour, k.days
      from now n
      join known k on k.name = n.name
     group by 1, 2, 3
), found as (
    select w.name, w.hour, w.days,
           count(distinct p.day) filter (where p.near > 0) as active_days, coalesce(sum(p.near), 0)::bigint as activities_before,
           (select count(*) from cut) - count(distinct p.day) filter (where p.day in (select c.day from cut c)) as unknown_days
      from pairs w
      join lateral (
           select q.day, q.hours[w.hour + 24] + q.hours[w.hour + 1] + q.hours[w.hour + 2] as near
             from past q
            where q.name = w.name
           ) p on true
     group by w.name, w.hour, w.days
)
select n.at, n.name, n.activities, f.active_days, f.activities_before, f.days as known_days
  from found f
  join now n on n.name = f.name and extract(hour from n.at at time zone 'UTC')::integer = f.hour
 where f.active_days + f.unknown_days <= :almost_never
 order by n.activities desc, n.at, n.name
 limit :limit;
