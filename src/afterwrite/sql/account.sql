-- name: read_stored
-- Every change in the store: where it came from, what it touched, who is said to have done it.
select a.xid,
       a.relation,
       a.operation,
       a.entity_id,
       a.actor_id,
       a.caused_by is not null as caused
  from afterwrite.activity a
 where a.kind = 'change'
   and a.xid is not null;

-- name: read_images
-- The rows that these transactions left, as they were stored, in the order in which they were written.
select a.xid,
       a.relation,
       a.operation,
       a.entity_id,
       a.after::text as after
  from afterwrite.activity a
 where a.kind = 'change'
   and a.xid = any (:xids)
   and a.after is not null
 order by a.xid, a.ordinal;

-- name: read_misattributed
-- Changes whose actor is not the actor of what caused them.
select e.relation || ' ' || e.operation || ' ' || coalesce(e.entity_id, '?') as change
  from afterwrite.activity e
  join afterwrite.activity c on c.id = e.caused_by
 where e.kind = 'change'
   and e.actor_id is distinct from c.actor_id;

-- name: read_counters
-- The statistics as they stand.
select (to_jsonb(s) - '{scope,updated_at}'::text[])::text as counters
  from public.platform_statistics s
 where s.scope = 'platform';

-- name: read_notices
-- Who has been notified of what, and how often.
select n.user_id::text as "user",
       n.kind,
       n.reference_id as reference,
       count(*)::integer as times
  from public.notifications n
 group by 1, 2, 3;

-- name: read_notification_ids
-- Notifications written since.
select n.id::text from public.notifications n where n.id > :above;

-- name: read_progress
-- How far each bulk operation is said to be.
select b.id::text as operation, b.processed_rows as rows from public.bulk_operations b;

-- name: read_stale_copies
-- Settings whose copy of the project's name is not the name.
select s.project_id::text
  from public.project_settings s
  join public.projects p on p.id = s.project_id
 where s.project_name is distinct from p.name;
