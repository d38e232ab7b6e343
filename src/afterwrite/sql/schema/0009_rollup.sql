-- What happened, counted by the hour: kept beside the activity by whoever reads the feed of batches, so that a report over
-- months reads thousands of rows and not millions.

create table afterwrite.rollup (
    only_row     boolean     not null default true,
    position     bigint      not null default 0,
    part_at      timestamptz,
    part_id      uuid,
    rolled_at    timestamptz not null default clock_timestamp(),
    named_until  timestamptz not null default '-infinity',
    folded_until date        not null default '-infinity',
    exact_until  timestamptz not null default '-infinity',
    refreshed_at timestamptz,
    constraint rollup_pkey primary key (only_row),
    constraint rollup_has_one_row check (only_row),
    constraint rollup_never_negative check (position >= 0),
    constraint rollup_part_has_both check ((part_at is null) = (part_id is null))
) with (fillfactor = 40);
comment on table afterwrite.rollup is
    'How far the feed is counted. Its one row is locked by whoever counts, and moves in the transaction that counts: every batch counts once.';
comment on column afterwrite.rollup.position is 'Batches up to this position are counted.';
comment on column afterwrite.rollup.part_at is
    'Of the batch after it (a very long one) the activity up to (part_at, part_id) is counted, too; null: nothing of it.';
comment on column afterwrite.rollup.named_until is
    'The names of actors and entities are counted for the hours before this one: once, when some hours are over; what comes later is added as it comes.';
comment on column afterwrite.rollup.folded_until is 'Days before this one hold at most as many names as a day may keep.';
comment on column afterwrite.rollup.exact_until is
    'The materialized views say the same as the tables for the hours before this one; infinity: for all.';
insert into afterwrite.rollup default values;

create table afterwrite.rollup_hour (
    hour        timestamptz not null,
    key         bytea       not null,
    tenant_id   text,
    category    text        not null,
    action      text        not null,
    entity_type text,
    outcome     text        not null,
    activities  bigint      not null,
    constraint rollup_hour_pkey primary key (hour, key),
    constraint rollup_hour_counts check (activities > 0)
) with (fillfactor = 80);
comment on table afterwrite.rollup_hour is
    'How many activities of a sort an hour (UTC) had: what `group by` over afterwrite.activity gives for the batches that are counted. Keeps the hours that retention has taken.';
comment on column afterwrite.rollup_hour.key is
    'afterwrite.rollup_key() of the sort: one of its columns may be null, or longer than an index takes.';
create index rollup_hour_tenant on afterwrite.rollup_hour (tenant_id, hour) where tenant_id is not null;

create table afterwrite.rollup_top (
    what       text      not null,
    day        date      not null,
    key        bytea     not null,
    tenant_id  text,
    type       text,
    name       text      not null,
    activities bigint    not null,
    hours      integer[] not null,
    constraint rollup_top_pkey primary key (what, day, key),
    constraint rollup_top_what check (what in ('actor', 'entity', 'failed login', 'failed login ip')),
    constraint rollup_top_counts check (activities > 0),
    constraint rollup_top_has_hours check (cardinality(hours) = 24)
) with (fillfactor = 80);
comment on table afterwrite.rollup_top is
    'The busiest names of a day (UTC), for each tenant: actors, entities, and who failed to sign in from where. All of them where they are not more than an hour and a day may keep; afterwrite.rollup_rest says what was left out.';
comment on column afterwrite.rollup_top.type is 'Of an entity; of a failed login, where it names the account as an entity.';
comment on column afterwrite.rollup_top.hours is 'Its activities by hour of the day (UTC), from 0 to 23.';
create index rollup_top_tenant on afterwrite.rollup_top (tenant_id, what, day) where tenant_id is not null;

create table afterwrite.rollup_rest (
    what       text   not null,
    day        date   not null,
    key        bytea  not null,
    tenant_id  text,
    activities bigint not null,
    most       bigint not null,
    constraint rollup_rest_pkey primary key (what, day, key),
    constraint rollup_rest_counts check (activities >= most and most > 0)
) with (fillfactor = 80);
comment on table afterwrite.rollup_rest is
    'What rollup_top left out of a day, for each tenant: how many activities in all, and at most how many of any one name. So a name had at least what rollup_top says, and at most so many more.';

create function afterwrite.rollup_key(variadic words text[]) returns bytea
    -- Stable, as the output of an array is taken to be: so it becomes a part of the query that asks for it.
    language sql stable parallel safe
    return substr(sha256(convert_to(words::text, 'UTF8')), 1, 16);
comment on function afterwrite.rollup_key(text[]) is
    'Which row of a rollup these words have: null and the empty word differ, and no two lists of words meet by chance or by design.';

create function afterwrite.counted(since timestamptz, until timestamptz, after_position bigint, to_position bigint)
returns setof afterwrite.activity
-- Nothing is set here: so it is planned as a part of the query that asks for it.
language sql stable as $$
    select a.*
      from afterwrite.activity a
     where a.occurred_at >= since
       and a.occurred_at < until
       and exists (select from afterwrite.batch b
                    where b.id = a.batch_id and b.position > after_position and b.position <= to_position)
$$;
comment on function afterwrite.counted(timestamptz, timestamptz, bigint, bigint) is
    'The activity of some time that the batches beyond one position and up to another brought.';

create function afterwrite.add_hours(a integer[], b integer[]) returns integer[]
    language sql immutable parallel safe
    return array[
        a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5], a[6] + b[6],
        a[7] + b[7], a[8] + b[8], a[9] + b[9], a[10] + b[10], a[11] + b[11], a[12] + b[12],
        a[13] + b[13], a[14] + b[14], a[15] + b[15], a[16] + b[16], a[17] + b[17], a[18] + b[18],
        a[19] + b[19], a[20] + b[20], a[21] + b[21], a[22] + b[22], a[23] + b[23], a[24] + b[24]
    ];
comment on function afterwrite.add_hours(integer[], integer[]) is 'Two days'' hours in one.';

create function afterwrite.add_names(
    since timestamptz, until timestamptz, whats text[], after_position bigint, to_position bigint, most_names integer,
    after_at timestamptz default '-infinity', after_id uuid default '00000000-0000-0000-0000-000000000000',
    to_at timestamptz default 'infinity', to_id uuid default 'ffffffff-ffff-ffff-ffff-ffffffffffff'
) returns void language plpgsql
-- Planned for the very hours that it is about, so that no other day is looked at.
set search_path = pg_catalog set plan_cache_mode = force_custom_plan set jit = off as $$
declare
    of_day       constant date := (since at time zone 'UTC')::date;
    quarter      constant timestamptz := date_bin('6 hours', since, '0001-01-01 00:00:00+00');
    begins       constant integer := extract(hour from quarter at time zone 'UTC');
    hours_before constant integer[] := array_fill(0, array[begins]);
    hours_after  constant integer[] := array_fill(0, array[18 - begins]);
begin
    with stretch as materialized (
        select date_part('hour', a.occurred_at - quarter)::integer as hour, a.tenant_id, a.entity_type, a.entity_id, a.actor_id,
               a.ip, a.category = 'authentication' and a.outcome = 'failure' as failed
          from afterwrite.counted(since, until, after_position, to_position) a
         where (a.occurred_at, a.id) > (after_at, after_id)
           and (a.occurred_at, a.id) <= (to_at, to_id)
           and (whats && array['actor', 'entity'] or (a.category = 'authentication' and a.outcome = 'failure'))
    ), told as (
        select 'actor' as what, s.tenant_id, null::text as type, s.actor_id as name, s.hour
          from stretch s
         where 'actor' = any (whats) and s.actor_id is not null
         union all
        select 'entity', s.tenant_id, s.entity_type, s.entity_id, s.hour
          from stretch s
         where 'entity' = any (whats) and s.entity_id is not null
         union all
        select 'failed login', s.tenant_id, case when s.entity_id is not null then s.entity_type end,
               coalesce(s.entity_id, s.actor_id), s.hour
          from stretch s
         where 'failed login' = any (whats) and s.failed and coalesce(s.entity_id, s.actor_id) is not null
         union all
        select 'failed login ip', s.tenant_id, null, host(s.ip), s.hour
          from stretch s
         where 'failed login ip' = any (whats) and s.failed and s.ip is not null
    ), named as (
        select t.what, t.tenant_id, t.type, t.name, count(*) as activities,
               count(*) filter (where t.hour = 0) as first, count(*) filter (where t.hour = 1) as second,
               count(*) filter (where t.hour = 2) as third, count(*) filter (where t.hour = 3) as fourth,
               count(*) filter (where t.hour = 4) as fifth, count(*) filter (where t.hour = 5) as sixth
          from told t
         group by t.what, t.tenant_id, t.type, t.name
    ), ranked as (
        select n.*, row_number() over (
                   -- Bytes are compared and not words of a language, which takes much longer.
                   partition by n.what collate "C", n.tenant_id collate "C"
                       order by n.activities desc, n.type collate "C", n.name collate "C") as place,
               case when n.what = 'entity' then greatest(1, most_names / 10) else most_names end as most
          from named n
    ), kept as (
        insert into afterwrite.rollup_top as t (what, day, key, tenant_id, type, name, activities, hours)
        select r.what, of_day, afterwrite.rollup_key(r.tenant_id, r.type, r.name), r.tenant_id, r.type, r.name, r.activities,
               hours_before || array[r.first, r.second, r.third, r.fourth, r.fifth, r.sixth]::integer[] || hours_after
          from ranked r
         where r.place <= r.most
            on conflict (what, day, key) do update
           set activities = t.activities + excluded.activities, hours = afterwrite.add_hours(t.hours, excluded.hours)
    )
    insert into afterwrite.rollup_rest as t (what, day, key, tenant_id, activities, most)
    select r.what, of_day, afterwrite.rollup_key(r.tenant_id), r.tenant_id, sum(r.activities), max(r.activities)
      from ranked r
     where r.place > r.most
     group by r.what, r.tenant_id
        on conflict (what, day, key) do update
       set activities = t.activities + excluded.activities, most = t.most + excluded.most;
end
$$;
comment on function afterwrite.add_names(
    timestamptz, timestamptz, text[], bigint, bigint, integer, timestamptz, uuid, timestamptz, uuid
) is 'Adds to the busiest names of a day what these batches brought of some hours, which lie in one quarter of it. Of each tenant so many names are kept, of entities a tenth of them; the rest is summed up.';

create function afterwrite.roll_up(
    most_rows bigint default 50000, most_names integer default 1000, out from_position bigint, out to_position bigint,
    out rows bigint
) language plpgsql
-- Planned for the very stretch. What is known of a day that is being filled would have it sorted, word by word.
set search_path = pg_catalog set plan_cache_mode = force_custom_plan set enable_sort = off set jit = off as $$
declare
    place    afterwrite.rollup;
    run      record;
    page_at  timestamptz := 'infinity';
    page_id  uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    whole    boolean := true;
    since    timestamptz;
    until    timestamptz;
    first    timestamptz;
    late     timestamptz[];
    failed   timestamptz[];
    each     timestamptz;
begin
    -- Whoever counts holds this row to the end: two workers follow each other, and the second begins where the first ended.
    select * into place from afterwrite.rollup for update;
    from_position := place.position;
    to_position := place.position;
    rows := 0;
    select max(b.position) as position, min(b.first_at) as first_at, max(b.last_at) as last_at
      into run
      from (
           select n.position, n.first_at, n.last_at, sum(n.rows) over (order by n.position) as together
             from (
                  select w.position, w.first_at, w.last_at, w.rows
                    from afterwrite.batch w
                   where w.position > place.position
                   order by w.position
                   limit 1000
                  ) n
           ) b
     where b.together <= most_rows;
    if run.position is null or place.part_at is not null then
        -- A batch that is longer than a stretch may be is counted along its primary key, a page at a time.
        select b.position, b.id, b.first_at, b.last_at
          into run
          from afterwrite.batch b
         where b.position > place.position
         order by b.position
         limit 1;
        if not found then
            return;
        end if;
        select p.occurred_at, p.id
          into page_at, page_id
          from afterwrite.page_of_batch(
                   run.id, coalesce(place.part_at, run.first_at),
                   coalesce(place.part_id, '00000000-0000-0000-0000-000000000000'), run.last_at, null, null, true, null, null,
                   null, null, most_rows) p
        offset most_rows - 1;
        whole := not found;
        if whole then
            page_at := 'infinity';
            page_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
        end if;
    end if;
    since := greatest(run.first_at, place.part_at);
    until := least(run.last_at, page_at) + interval '1 microsecond';
    -- Between the one that was counted last and this stretch lie no batches.
    with sorts as materialized (
        select date_bin('1 hour', a.occurred_at, '0001-01-01 00:00:00+00') as hour, a.tenant_id, a.category, a.action,
               a.entity_type, a.outcome, count(*) as activities
          from afterwrite.counted(since, until, place.position, run.position) a
         where (a.occurred_at, a.id) > (
                   coalesce(place.part_at, '-infinity'), coalesce(place.part_id, '00000000-0000-0000-0000-000000000000'))
           and (a.occurred_at, a.id) <= (page_at, page_id)
         group by 1, 2, 3, 4, 5, 6
    ), added as (
        insert into afterwrite.rollup_hour as r (hour, key, tenant_id, category, action, entity_type, outcome, activities)
        select s.hour, afterwrite.rollup_key(s.tenant_id, s.category, s.action, s.entity_type, s.outcome),
               s.tenant_id, s.category, s.action, s.entity_type, s.outcome, s.activities
          from sorts s
            on conflict (hour, key) do update set activities = r.activities + excluded.activities
    )
    select coalesce(sum(s.activities), 0), min(s.hour),
           array_agg(distinct s.quarter) filter (where s.hour < place.named_until),
           array_agg(distinct s.quarter) filter (where s.category = 'authentication' and s.outcome = 'failure')
      into rows, first, late, failed
      from (select s.*, date_bin('6 hours', s.hour, '0001-01-01 00:00:00+00') as quarter from sorts s) s;
    foreach each in array coalesce(late, '{}') loop
        perform afterwrite.add_names(
            greatest(each, since), least(each + interval '6 hours', place.named_until, until), array['actor', 'entity'],
            place.position, run.position, most_names, coalesce(place.part_at, '-infinity'),
            coalesce(place.part_id, '00000000-0000-0000-0000-000000000000'), page_at, page_id);
    end loop;
    foreach each in array coalesce(failed, '{}') loop
        perform afterwrite.add_names(
            greatest(each, since), least(each + interval '6 hours', until), array['failed login', 'failed login ip'],
            place.position, run.position, most_names, coalesce(place.part_at, '-infinity'),
            coalesce(place.part_id, '00000000-0000-0000-0000-000000000000'), page_at, page_id);
    end loop;
    to_position := case when whole then run.position else place.position end;
    update afterwrite.rollup
       set position = to_position, rolled_at = clock_timestamp(),
           part_at = case when not whole then page_at end, part_id = case when not whole then page_id end,
           folded_until = least(folded_until, (first at time zone 'UTC')::date), exact_until = least(exact_until, first);
end
$$;
comment on function afterwrite.roll_up(bigint, integer) is
    'Counts the next batches of the feed, about so many rows of them, in this transaction. Call it until it says that there were none; called again it counts nothing twice.';

create function afterwrite.count_names(over_by timestamptz, most_names integer default 1000, many bigint default 50000)
returns timestamptz language plpgsql set search_path = pg_catalog as $$
declare
    place afterwrite.rollup;
    since timestamptz;
    until timestamptz;
begin
    select * into place from afterwrite.rollup for update;
    if place.part_at is not null then
        return null;  -- a long batch is counted in part: its turn comes when it is whole
    end if;
    select min(h.hour) into since from afterwrite.rollup_hour h where h.hour >= place.named_until;
    if since is null or since + interval '1 hour' > over_by then
        return null;
    end if;
    -- A name that comes in several hours is written once for them all: up to a quarter of a day waits for its end, or for
    -- many activities.
    until := date_bin('6 hours', since, '0001-01-01 00:00:00+00') + interval '6 hours';
    select coalesce(min(h.hour) + interval '1 hour', until)
      into until
      from (
           select n.hour, sum(sum(n.activities)) over (order by n.hour) as together
             from afterwrite.rollup_hour n
            where n.hour >= since and n.hour < until
            group by n.hour
           ) h
     where h.together >= many;
    if until > over_by then
        return null;
    end if;
    perform afterwrite.add_names(since, until, array['actor', 'entity'], 0, place.position, most_names);
    update afterwrite.rollup
       set named_until = until, folded_until = least(folded_until, (since at time zone 'UTC')::date);
    return since;
end
$$;
comment on function afterwrite.count_names(timestamptz, integer, bigint) is
    'Counts the actors and entities of the next hours that were over by then: a quarter of a day, or fewer where many activities lie in them. Says where they begin; null: there are none.';

create function afterwrite.fold_rollup(until date, most_names integer default 1000) returns bigint
language plpgsql set search_path = pg_catalog set jit = off as $$
declare
    seen   afterwrite.rollup;
    folded bigint;
begin
    select * into seen from afterwrite.rollup for update;
    until := least(until, (seen.named_until at time zone 'UTC')::date);
    if until <= seen.folded_until then
        return 0;
    end if;
    with ranked as materialized (
        select what, day, key, tenant_id, activities,
               row_number() over (
                   partition by what collate "C", day, tenant_id collate "C"
                       order by activities desc, type collate "C", name collate "C") as place,
               case when what = 'entity' then greatest(1, most_names / 10) else most_names end as most
          from afterwrite.rollup_top
         where what in ('actor', 'entity', 'failed login', 'failed login ip') and day >= seen.folded_until and day < until
    ), gone as (
        delete from afterwrite.rollup_top t
         using ranked r
         where r.place > r.most and t.what = r.what and t.day = r.day and t.key = r.key
    ), rest as (
        insert into afterwrite.rollup_rest as t (what, day, key, tenant_id, activities, most)
        select what, day, afterwrite.rollup_key(tenant_id), tenant_id, sum(activities), max(activities)
          from ranked r
         where r.place > r.most
         group by what, day, tenant_id
            on conflict (what, day, key) do update
           set activities = t.activities + excluded.activities, most = t.most + excluded.most
    )
    select count(*) into folded from ranked r where r.place > r.most;
    update afterwrite.rollup set folded_until = until;
    return folded;
end
$$;
comment on function afterwrite.fold_rollup(date, integer) is
    'Sums up all but the busiest names of the days before this one (of entities a tenth as many), for each tenant; says how many went. A name that comes again, late, begins anew.';

create function afterwrite.rebuild_rollup(of_day date, most_names integer default 1000) returns bigint
language plpgsql set search_path = pg_catalog set plan_cache_mode = force_custom_plan set jit = off as $$
declare
    place afterwrite.rollup;
    since constant timestamptz := of_day::timestamp at time zone 'UTC';
    until constant timestamptz := (of_day + 1)::timestamp at time zone 'UTC';
    rows  bigint;
    each  timestamptz;
begin
    select * into place from afterwrite.rollup for update;
    if place.part_at is not null then
        raise exception 'a long batch is counted in part' using hint = 'call afterwrite.roll_up() until it is whole';
    end if;
    if exists (select from afterwrite.expired_day where day = of_day) then
        return null;
    end if;
    delete from afterwrite.rollup_hour where hour >= since and hour < until;
    delete from afterwrite.rollup_top
     where what in ('actor', 'entity', 'failed login', 'failed login ip') and day = of_day;
    delete from afterwrite.rollup_rest
     where what in ('actor', 'entity', 'failed login', 'failed login ip') and day = of_day;
    -- What the feed has beyond the place up to which it is counted will be counted when its turn comes.
    insert into afterwrite.rollup_hour (hour, key, tenant_id, category, action, entity_type, outcome, activities)
    select date_bin('1 hour', a.occurred_at, '0001-01-01 00:00:00+00'),
           afterwrite.rollup_key(a.tenant_id, a.category, a.action, a.entity_type, a.outcome),
           a.tenant_id, a.category, a.action, a.entity_type, a.outcome, count(*)
      from afterwrite.counted(since, until, 0, place.position) a
     group by 1, a.tenant_id, a.category, a.action, a.entity_type, a.outcome;
    for each in select g from generate_series(since, until - interval '6 hours', interval '6 hours') g loop
        perform afterwrite.add_names(
            each, each + interval '6 hours', array['failed login', 'failed login ip'], 0, place.position, most_names);
        if each < place.named_until then
            perform afterwrite.add_names(
                each, least(each + interval '6 hours', place.named_until), array['actor', 'entity'], 0, place.position,
                most_names);
        end if;
    end loop;
    update afterwrite.rollup set exact_until = least(exact_until, since), folded_until = least(folded_until, of_day);
    select coalesce(sum(h.activities), 0) into rows from afterwrite.rollup_hour h where h.hour >= since and h.hour < until;
    return rows;
end
$$;
comment on function afterwrite.rebuild_rollup(date, integer) is
    'Counts a day anew from afterwrite.activity, as far as the feed is counted; says how many rows. A day of which retention has taken rows is left as it is (null): nothing else remembers it. Call it in a transaction of its own, REPEATABLE READ, after `lock table afterwrite.rollup in exclusive mode`.';

create materialized view afterwrite.analytics_hour as
select hour, left(category, 160) as category, outcome, sum(activities)::bigint as activities
  from afterwrite.rollup_hour
 group by 1, 2, 3;
comment on materialized view afterwrite.analytics_hour is
    'Activities by hour, category and outcome, of all tenants: refreshed by afterwrite.refresh_analytics(). Words are cut at 160 characters.';
create unique index analytics_hour_one_of_a_sort on afterwrite.analytics_hour (hour, category, outcome);

create materialized view afterwrite.analytics_day as
select (hour at time zone 'UTC')::date as day, left(category, 160) as category, left(action, 160) as action,
       left(entity_type, 160) as entity_type, outcome, sum(activities)::bigint as activities
  from afterwrite.rollup_hour
 group by 1, 2, 3, 4, 5;
comment on materialized view afterwrite.analytics_day is
    'Activities by day (UTC), category, action, entity type and outcome, of all tenants: refreshed by afterwrite.refresh_analytics().';
create unique index analytics_day_one_of_a_sort on afterwrite.analytics_day (day, category, action, entity_type, outcome);

create function afterwrite.refresh_analytics(out refreshed_at timestamptz, out up_to bigint) language plpgsql
set search_path = pg_catalog set jit = off as $$
begin
    -- Nothing is counted meanwhile, so that both say the same as the tables; readers of the views go on.
    select r.position into up_to from afterwrite.rollup r for update;
    refresh materialized view concurrently afterwrite.analytics_hour;
    refresh materialized view concurrently afterwrite.analytics_day;
    refreshed_at := clock_timestamp();
    update afterwrite.rollup r set refreshed_at = refresh_analytics.refreshed_at, exact_until = 'infinity';
end
$$;
comment on function afterwrite.refresh_analytics() is
    'Refreshes the materialized views over the rollups beside their readers, and says when that was and up to which position of the feed they count.';

create function afterwrite.lay_rollup_tenancy() returns boolean language plpgsql set search_path = pg_catalog as $$
declare
    name text;
begin
    if not exists (select from pg_roles where rolname = 'afterwrite_tenant') then
        return false;
    end if;
    grant select on afterwrite.rollup, afterwrite.rollup_hour, afterwrite.rollup_top, afterwrite.rollup_rest to afterwrite_tenant;
    foreach name in array array['rollup_hour', 'rollup_top', 'rollup_rest'] loop
        execute format('drop policy if exists %I on afterwrite.%I', name || '_is_for_everybody', name);
        execute format(
            'create policy %I on afterwrite.%I using (true) with check (true)', name || '_is_for_everybody', name);
        execute format('drop policy if exists %I on afterwrite.%I', name || '_of_own_tenant', name);
        execute format(
            'create policy %I on afterwrite.%I as restrictive to afterwrite_tenant'
            ' using (tenant_id = current_setting(''afterwrite.tenant'', true))', name || '_of_own_tenant', name);
        execute format('alter table afterwrite.%I enable row level security', name);
    end loop;
    return true;
end
$$;
comment on function afterwrite.lay_rollup_tenancy() is
    'Lets the role afterwrite_tenant, where there is one, read the rollups of the tenant that the setting afterwrite.tenant names: of the tables, since materialized views know no policies. Running it again is harmless.';
select afterwrite.lay_rollup_tenancy();
