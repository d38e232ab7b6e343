-- Two small indexes for what the entity index cannot find: that a row went without a word under its own id, and what came
-- of an activity later than at once. Those of each day's partition are in store/partitions.py.

create index activity_default_gone on afterwrite.activity_default
    (entity_type, left(metadata ->> 'entity_was', 400), occurred_at desc)
    where operation = 'truncate' or (operation = 'update' and (metadata ->> 'entity_was') is not null);
comment on index afterwrite.activity_default_gone is
    'Ways in which a row goes that do not carry its id: a TRUNCATE of its table, and an UPDATE of its key. They are few.';

create index activity_default_cause on afterwrite.activity_default (caused_by)
    where caused_by is not null and (kind = 'event' or left(caused_by::text, 11) <> left(id::text, 11));
comment on index afterwrite.activity_default_cause is
    'What an activity led to. Changes within the quarter of a second (256 ms) of their cause are found by the time that both ids begin with, and left out: most are, and would cost the writer most of this index.';

create function afterwrite.gone(
    of_type text, of_id text, of_source text, of_relation text, after_at timestamptz, after_id uuid, until_at timestamptz,
    with_truncates boolean, most bigint
) returns setof afterwrite.activity language plpgsql stable
set search_path = pg_catalog set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    -- "offset 0": not along the primary key, which has the order, to a few that may not be there.
    return query
    select g.*
      from ((select a.*
               from afterwrite.activity a
              where a.entity_type = of_type and left(a.metadata ->> 'entity_was', 400) = left(of_id, 400)
                and a.operation = 'update' and (a.metadata ->> 'entity_was') is not null
                and a.metadata ->> 'entity_was' = of_id and a.entity_id is distinct from of_id
                and (of_source is null or a.source = of_source)
                and (of_relation is null or a.relation = of_relation)
                and a.occurred_at >= after_at and a.occurred_at < until_at
                and (a.occurred_at, a.id) > (after_at, after_id)
             offset 0)
             union all
            (select a.*
               from afterwrite.activity a
              where with_truncates
                and a.entity_type = of_type and left(a.metadata ->> 'entity_was', 400) is null and a.operation = 'truncate'
                and (of_source is null or a.source = of_source)
                and (of_relation is null or a.relation = of_relation)
                and a.occurred_at >= after_at and a.occurred_at < until_at
                and (a.occurred_at, a.id) > (after_at, after_id)
             offset 0)) g
     order by g.occurred_at, g.id
     limit most;
end
$$;
comment on function afterwrite.gone(text, text, text, text, timestamptz, uuid, timestamptz, boolean, bigint) is
    'The ways in which a row went without a word under its id: its key became another, or its table was truncated. Planned once a session, for all days and however little of them is filled, since planning takes longer than running.';

create function afterwrite.of_entity(
    of_type text, of_id text, since timestamptz, until timestamptz, at timestamptz, at_id uuid, newer boolean, most bigint
) returns setof afterwrite.activity language plpgsql stable
set search_path = pg_catalog set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    -- One bound of time on each side: of two that it does not know the planner thinks that next to nothing lies between
    -- them, and would read all of it along the primary key.
    if newer then
        return query
        select a.*
          from afterwrite.activity a
         where a.entity_type = of_type and a.entity_id = of_id
           and a.occurred_at < until and (a.occurred_at, a.id) > (at, at_id)
         order by a.occurred_at, a.id
         limit most;
    else
        return query
        select a.*
          from afterwrite.activity a
         where a.entity_type = of_type and a.entity_id = of_id
           and a.occurred_at >= since and (a.occurred_at, a.id) < (at, at_id)
         order by a.occurred_at desc, a.id desc
         limit most;
    end if;
end
$$;
comment on function afterwrite.of_entity(text, text, timestamptz, timestamptz, timestamptz, uuid, boolean, bigint) is
    'The next activities of one thing: the older of a place, since a time, or the newer, until a time. Planned once a session: that takes ten times as long as running.';
