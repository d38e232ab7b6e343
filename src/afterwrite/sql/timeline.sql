-- name: read_by_id
-- The activity of an id within the stretch of time in which the id says that it was: of several, whose ids somebody gave them, a change, which nobody hands in, else what was stored first.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from afterwrite.activity a
 where a.id = :id::uuid
   and a.occurred_at >= :since::timestamptz and a.occurred_at < :until::timestamptz
 order by a.kind, a.batch_id, a.occurred_at
 limit 1;

-- name: read_changes
-- The changes of a row under one id on one side of a place in time.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from (select *
          from afterwrite.activity
         where entity_type = :entity_type and entity_id = :entity_id and kind = 'change'
           and (:source::text is null or source = :source::text)
           and (:relation::text is null or relation = :relation::text)
           and occurred_at >= :since::timestamptz and occurred_at < :until::timestamptz
           and (occurred_at, id) :beyond (:at::timestamptz, :id::uuid)
         order by occurred_at :order, id :order
         limit :count::bigint) a
 order by a.occurred_at desc, a.id desc;

-- name: read_actor
-- What somebody did on one side of a place in time.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from (select *
          from afterwrite.activity
         where actor_id = :actor_id
           and occurred_at >= :since::timestamptz and occurred_at < :until::timestamptz
           and (occurred_at, id) :beyond (:at::timestamptz, :id::uuid)
         order by occurred_at :order, id :order
         limit :count::bigint) a
 order by a.occurred_at desc, a.id desc;

-- name: read_stretch
-- What happened on one side of a place in time; of one transaction, where its source and commit are told.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from (select *
          from afterwrite.activity
         where (:source::text is null or source = :source::text)
           and (:commit_lsn::pg_lsn is null or commit_lsn = :commit_lsn::pg_lsn)
           and occurred_at >= :since::timestamptz and occurred_at < :until::timestamptz
           and (occurred_at, id) :beyond (:at::timestamptz, :id::uuid)
         order by occurred_at :order, id :order
         limit :count::bigint) a
 order by a.occurred_at desc, a.id desc;

-- name: read_effects
-- What these causes led to on one side of a place in time. A cause is a stretch of ids: of one activity, or of a
-- transaction's changes, which has its commit's time. At once: by the time that the ids of both begin with. Later: by the
-- index that has no others.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from (select e.*
          from unnest(
                   :first_ids::uuid[], :last_ids::uuid[], :from_times::timestamptz[], :to_times::timestamptz[],
                   :commit_times::timestamptz[]
               ) as c (first_id, last_id, from_time, to_time, commit_time)
         cross join lateral (
               select *
                 from afterwrite.activity
                where kind = 'change' and caused_by between c.first_id and c.last_id
                  and occurred_at >= c.from_time and occurred_at < c.to_time
                  and occurred_at >= :first_time::timestamptz and occurred_at < :last_time::timestamptz
                  and occurred_at >= :since::timestamptz and occurred_at < :until::timestamptz
                  and left(caused_by::text, 11) = left(id::text, 11)
                union all
               select *
                 from afterwrite.activity
                where caused_by between c.first_id and c.last_id and caused_by is not null
                  and (kind = 'event' or left(caused_by::text, 11) <> left(id::text, 11))
                  and occurred_at >= :since::timestamptz and occurred_at < :until::timestamptz
               ) e
         where (e.occurred_at, e.id) :beyond (:at::timestamptz, :id::uuid)
           and (c.commit_time is null
                or e.caused_by <> all (:besides::uuid[])
               and not exists (
                       select
                         from afterwrite.activity x
                        where x.occurred_at = c.commit_time and x.id = e.caused_by and x.kind = 'event'
                          and x.occurred_at >= :first_time::timestamptz and x.occurred_at < :last_time::timestamptz
                       ))
         order by e.occurred_at :order, e.id :order
         limit :count::bigint) a
 order by a.occurred_at desc, a.id desc;

-- name: read_effect_transactions
-- What the ids of the changes begin with that an activity led to, once a transaction: the first of them.
select distinct left(e.id::text, 28) as prefix, e.occurred_at
  from (
        (select id, occurred_at
           from afterwrite.activity
          where kind = 'change' and caused_by = :id::uuid
            and occurred_at >= :from_time::timestamptz and occurred_at < :to_time::timestamptz
            and left(caused_by::text, 11) = left(id::text, 11)
          limit :limit::bigint)
         union all
        (select id, occurred_at
           from afterwrite.activity
          where caused_by = :id::uuid and caused_by is not null and kind = 'change'
            and (kind = 'event' or left(caused_by::text, 11) <> left(id::text, 11))
            and occurred_at >= :since::timestamptz
          limit :limit::bigint)
       ) e
 limit :transactions::bigint;

-- name: read_effect_events
-- Of these stretches of ids the events that their transactions themselves wrote: what names one of them is explained by it.
select x.id::text
  from unnest(:first_ids::uuid[], :last_ids::uuid[], :commit_times::timestamptz[]) as c (first_id, last_id, commit_time)
  join afterwrite.activity x
    on x.occurred_at = c.commit_time and x.id between c.first_id and c.last_id and x.kind = 'event';

-- name: read_gone
-- The next ways, behind a place in time, in which a row went without a word under its id: its key became another, or its
-- table was truncated.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from afterwrite.gone(
           :entity_type::text, :entity_id::text, :source::text, :relation::text, :at::timestamptz, :id::uuid, :until::timestamptz,
           :truncates::boolean, :limit::bigint) a
 order by a.occurred_at, a.id;

-- name: read_telling
-- The newest change of a row, before a place in time, that tells of a column, or that says that the row was another before.
select coalesce((select b.position from afterwrite.batch b where b.id = a.batch_id), 0) as position, :activity
  from afterwrite.activity a
 where a.entity_type = :entity_type and a.entity_id = :entity_id and a.kind = 'change'
   and a.source = :source and a.relation = :relation
   and a.occurred_at >= :since::timestamptz and a.occurred_at < :until::timestamptz
   and (a.occurred_at, a.id) < (:at::timestamptz, :id::uuid)
   and (a.operation = 'delete'
        or (a.metadata ->> 'entity_was') is not null
        or not coalesce((a.metadata::jsonb -> 'unchanged') ? :column::text, false))
 order by a.occurred_at desc, a.id desc
 limit 1;

-- name: is_recorded
-- Whether anything of a table is recorded up to a moment.
select count(*) > 0
  from (
        select
          from afterwrite.activity
         where entity_type = :entity_type and entity_id is not null and kind = 'change'
           and source = :source and relation = :relation
           and occurred_at <= :moment::timestamptz
         order by entity_id  -- along the index, whatever is known of how many there are
         limit 1
       ) one;

-- name: sees_all
-- Whether the reader sees the activity of everybody, and the rest of the store besides.
select not pg_catalog.row_security_active('afterwrite.activity'::pg_catalog.regclass);

-- name: read_reach
-- From which day on the store has what happened, and how far it has what a source wrote. A checkpoint that moved after the
-- newest batch moved without rows: up to there the source wrote nothing that we keep.
select (select max(e.day)
          from afterwrite.expired_day e
         where not exists (select from afterwrite.lake_part l where l.day = e.day and l.left_at is not null)
       ) as expired_until,
       (select case when c.updated_at > coalesce(b.written_at, '-infinity') + interval '1 second'
                    then c.updated_at else coalesce(b.last_at, c.updated_at) end
          from afterwrite.checkpoint c
          left join lateral (
               select last_at, written_at from afterwrite.batch where source = c.source order by position desc limit 1
               ) b on true
         where c.source = :source) as known_until;

-- name: read_left_days
-- The days of which a lake alone has something.
select distinct day from afterwrite.lake_part where left_at is not null order by day;

-- name: read_gaps
-- What a source is known to have lost, and why.
select from_lsn::text as from_lsn, to_lsn::text as to_lsn, from_time, to_time, reason
  from afterwrite.gap
 where source = :source
 order by id;

-- name: read_bracket
-- The commits of a source that are stored next to a moment, on either side of it.
select (select commit_lsn::text
          from afterwrite.activity
         where source = :source and commit_lsn is not null and occurred_at <= :moment::timestamptz
         order by occurred_at desc, id desc
         limit 1) as before,
       (select commit_lsn::text
          from afterwrite.activity
         where source = :source and commit_lsn is not null and occurred_at > :moment::timestamptz
         order by occurred_at, id
         limit 1) as after;
