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
    select t.name, t.day,
           case
               when count(*) = 1 then min(t.hours)
               else (select array_agg(s.activities order by s.hour)  -- of several tenants
                       from (
                            select (u.place - 1) % 24 as hour, sum(u.activities)::integer as activities
                              from unnest(array_agg(t.hours)) with ordinality u (activities, place)
                             group by 1
                            ) s)
           end as hours
      from afterwrite.rollup_top t
     where t.what = 'actor' and t.day >= :since_day and t.day < :after_day
       and (:tenant::text is null or t.tenant_id = :tenant)
     group by t.name, t.day
), cut as materialized (
    select distinct r.day
      from afterwrite.rollup_rest r
     where r.what = 'actor' and r.day >= :since_day and r.day < :after_day
       and (:tenant::text is null or r.tenant_id = :tenant)
), known as materialized (
    select p.name, count(*) as days,
           (select count(*) from cut) - count(*) filter (where p.day in (select c.day from cut c)) as unknown_days,
           array[  -- on how many days each hour, or the one before or after it, had something
               count(*) filter (where p.hours[24] + p.hours[1] + p.hours[2] > 0),
               count(*) filter (where p.hours[1] + p.hours[2] + p.hours[3] > 0),
               count(*) filter (where p.hours[2] + p.hours[3] + p.hours[4] > 0),
               count(*) filter (where p.hours[3] + p.hours[4] + p.hours[5] > 0),
               count(*) filter (where p.hours[4] + p.hours[5] + p.hours[6] > 0),
               count(*) filter (where p.hours[5] + p.hours[6] + p.hours[7] > 0),
               count(*) filter (where p.hours[6] + p.hours[7] + p.hours[8] > 0),
               count(*) filter (where p.hours[7] + p.hours[8] + p.hours[9] > 0),
               count(*) filter (where p.hours[8] + p.hours[9] + p.hours[10] > 0),
               count(*) filter (where p.hours[9] + p.hours[10] + p.hours[11] > 0),
               count(*) filter (where p.hours[10] + p.hours[11] + p.hours[12] > 0),
               count(*) filter (where p.hours[11] + p.hours[12] + p.hours[13] > 0),
               count(*) filter (where p.hours[12] + p.hours[13] + p.hours[14] > 0),
               count(*) filter (where p.hours[13] + p.hours[14] + p.hours[15] > 0),
               count(*) filter (where p.hours[14] + p.hours[15] + p.hours[16] > 0),
               count(*) filter (where p.hours[15] + p.hours[16] + p.hours[17] > 0),
               count(*) filter (where p.hours[16] + p.hours[17] + p.hours[18] > 0),
               count(*) filter (where p.hours[17] + p.hours[18] + p.hours[19] > 0),
               count(*) filter (where p.hours[18] + p.hours[19] + p.hours[20] > 0),
               count(*) filter (where p.hours[19] + p.hours[20] + p.hours[21] > 0),
               count(*) filter (where p.hours[20] + p.hours[21] + p.hours[22] > 0),
               count(*) filter (where p.hours[21] + p.hours[22] + p.hours[23] > 0),
               count(*) filter (where p.hours[22] + p.hours[23] + p.hours[24] > 0),
               count(*) filter (where p.hours[23] + p.hours[24] + p.hours[1] > 0)
           ] as near
      from past p
     group by p.name
    having count(*) >= :known_days
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
), together as (
    -- Not joined: a plan that is made for any time expects few rows, and compares all with all.
    select e.name, max(e.days) as days, max(e.unknown_days) as unknown_days, max(e.near) as near, max(e.ats) as ats,
           max(e.counts) as counts
      from (
           select k.name, k.days, k.unknown_days, k.near, null::timestamptz[] as ats, null::bigint[] as counts from known k
            union all
           select n.name, null, null, null, array_agg(n.at order by n.at), array_agg(n.activities order by n.at)
             from now n
            group by n.name
           ) e
     group by e.name
)
select f.at, f.name, f.activities, f.active_days,
       (
           select coalesce(sum(p.hours[(f.hour + 23) % 24 + 1] + p.hours[f.hour + 1] + p.hours[(f.hour + 1) % 24 + 1]), 0)::bigint
             from past p
            where p.name = f.name
       ) as activities_before,
       f.days as known_days
  from (
       select w.at, g.name, w.activities, g.near[h.hour + 1] as active_days, h.hour, g.days
         from together g
        cross join lateral unnest(g.ats, g.counts) w (at, activities)
        cross join lateral (select date_part('hour', w.at at time zone 'UTC')::integer as hour) h
        where g.near[h.hour + 1] + g.unknown_days <= :almost_never
        order by w.activities desc, w.at, g.name
        limit :limit
       ) f
 order by f.activities desc, f.at, f.name;
