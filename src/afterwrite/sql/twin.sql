-- name: read_given
-- By table of the application: the columns that the database fills by itself.
select c.relname as "table", a.attname as "column"
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where c.relnamespace = 'public'::regnamespace
   and c.relkind in ('r', 'p')
   and a.attnum > 0
   and not a.attisdropped
   and a.attgenerated = ''
   and (a.attidentity <> '' or pg_catalog.pg_get_expr(d.adbin, d.adrelid) ~ '\m(now|gen_random_uuid|nextval)\(')
 order by 1, a.attnum;

-- name: set_notification_numbers
-- Notifications that triggers write here get numbers that the application's own never have.
alter table public.notifications alter column id restart with 1000000000000;

-- name: read_audit_logs
-- The audit rows without what each server makes itself: their own id and time, updated_at, and notifications' numbers and times; names that projects bore at some moment are alike.
select jsonb_build_array(r.table_name, r.record_id, r.operation) as key,
       to_jsonb(r) as row,
       regexp_replace(to_jsonb(r)::text, '(New subscription to [^"#]*[^"# ]) #\d+', '\1', 'g')::jsonb as alike
  from (select l.table_name,
               case when l.table_name <> 'notifications' then l.record_id end as record_id,
               l.operation,
               l.old_data - own.columns as old_data,
               l.new_data - own.columns as new_data,
               l.changes - own.columns as changes,
               l.user_id,
               l.ip_address
          from public.audit_logs l,
               lateral (select case l.table_name
                                    when 'notifications' then array['id', 'created_at', 'updated_at']
                                    else array['updated_at']
                               end as columns) own) r;

-- name: read_activity_log
-- The lines of the activity page without what each server makes itself: their id and time, and notifications' numbers; names that projects bore at some moment are alike.
select jsonb_build_array(r.entity_type, r.entity_id, r.action) as key,
       to_jsonb(r) as row,
       to_jsonb(r) || jsonb_build_object('description', regexp_replace(r.description, '((subscribes|subscription) to [^#]*[^# ]) #\d+', '\1')) as alike
  from (select l.actor_id,
               l.actor_name,
               l.action,
               l.entity_type,
               case when l.entity_type <> 'notification' then l.entity_id end as entity_id,
               l.description,
               l.details
          from public.activity_log l) r;
