-- Outboxes, job queues, notifications, event stores and other ways to tell somebody.

create table orders (id int primary key, state text, total numeric);

-- Outbox rows that live for the WAL only.
create table outbox_event (id uuid default gen_random_uuid(), aggregatetype text, aggregateid text, type text, payload jsonb);
create function publish_through_wal() returns trigger language plpgsql as $$
declare
  event_id uuid := gen_random_uuid();
begin
  insert into outbox_event (id, aggregatetype, aggregateid, type, payload)
  values (event_id, 'order', new.id::text, tg_op, to_jsonb(new));
  delete from outbox_event where id = event_id;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the table is always empty; somebody reads its INSERTs in the WAL.
create trigger publish_through_wal after insert or update on orders for each row execute function publish_through_wal();

create function emit_message() returns trigger language plpgsql as $$
begin
  perform pg_logical_emit_message(true, 'orders', json_build_object('id', new.id, 'state', new.state)::text);
  return null;
end $$;
-- = defer: calls-out
-- Because: a message for a subscriber of the WAL.
create trigger emit_message after update on orders for each row execute function emit_message();

-- Message queues and job runners in the database.
create schema pgmq;
create table pgmq.q_orders (msg_id bigint generated always as identity, read_ct int default 0, enqueued_at timestamptz default now(),
  vt timestamptz default now(), message jsonb);
create function pgmq.send(queue_name text, msg jsonb, delay int default 0) returns setof bigint language plpgsql as $$
begin
  return query execute format(
    'insert into pgmq.%I (vt, message) values (clock_timestamp() + %L::interval, $1) returning msg_id',
    'q_' || queue_name, make_interval(secs => delay)
  ) using msg;
end $$;
create function enqueue_order() returns trigger language plpgsql as $$
begin
  perform pgmq.send('orders', jsonb_build_object('id', new.id, 'state', new.state));
  return new;
end $$;
-- = defer: writes-other-table
-- Because: a message queue.
create trigger enqueue_order after insert on orders for each row execute function enqueue_order();

create schema graphile_worker;
create table graphile_worker.jobs (id bigserial primary key, task_identifier text not null, payload json default '{}', run_at timestamptz default now(),
  attempts int default 0, job_key text unique);
create function graphile_worker.add_job(identifier text, payload json default null, queue_name text default null,
  run_at timestamptz default null, job_key text default null) returns graphile_worker.jobs language plpgsql volatile as $$
#variable_conflict use_column
declare
  made graphile_worker.jobs;
begin
  insert into graphile_worker.jobs (task_identifier, payload, run_at, job_key)
  values (identifier, coalesce(payload, '{}'::json), coalesce(run_at, now()), job_key)
  on conflict (job_key) do update set payload = excluded.payload, run_at = excluded.run_at
  returning * into made;
  notify "jobs:insert";
  return made;
end $$;
create function add_job_for_row() returns trigger language plpgsql as $$
begin
  perform graphile_worker.add_job(tg_argv[0], json_build_object('schema', tg_table_schema, 'table', tg_table_name, 'op', tg_op,
    'id', (case when tg_op = 'DELETE' then old.id else new.id end)));
  return new;
end $$;
-- = defer: writes-other-table|notifies
-- Because: a job is run a moment later anyhow.
create trigger add_job_for_row after insert or update or delete on orders for each row execute function add_job_for_row('order_changed');

create table job_log (id bigserial primary key, kind text, args jsonb, state text default 'available', attempt int default 0);
create function job_from_row() returns trigger language plpgsql as $$
begin
  insert into job_log (kind, args) values ('send_receipt', jsonb_build_object('order_id', new.id));
  return null;
end $$;
-- = defer: writes-other-table
-- Because: called a log, and yet its rows wait to be done (state, attempt).
create trigger job_from_row after insert on orders for each row execute function job_from_row();

create table audit_queue (op text, t text, row_data jsonb, at timestamptz default now());
create function to_audit_queue() returns trigger language plpgsql as $$
begin
  insert into audit_queue (op, t, row_data) values (tg_op, tg_table_name, to_jsonb(coalesce(new, old)));
  return null;
end $$;
create function drain_audit_queue(n int) returns setof audit_queue language sql as $$
  delete from audit_queue where ctid in (select ctid from audit_queue order by at limit n for update skip locked) returning *
$$;
-- = defer: writes-other-table
-- Because: drain_audit_queue() takes the rows away: somebody ships them.
create trigger to_audit_queue after insert or update or delete on orders for each row execute function to_audit_queue();

-- Notifications. ------------------------------------------------------------------------------------------------------------
create function notify_row() returns trigger language plpgsql as $$
begin
  perform pg_notify(tg_table_name || '_changes', json_build_object('op', tg_op, 'row', row_to_json(new))::text);
  return new;
end $$;
-- = defer: notifies
create trigger notify_row after insert or update on orders for each row execute function notify_row();
create function notify_statement() returns trigger language plpgsql as $$
declare
  ids text;
begin
  select string_agg(id::text, ',') into ids from changed;
  if current_setting('app.silent', true) is distinct from 'on' then
    perform pg_notify('orders', left(ids, 7900));
  end if;
  return null;
end $$;
-- = review: weighs-its-rows
-- Because: listeners hear one list of keys a statement, and would hear one a transaction, cut off at some length.
create trigger notify_statement after update on orders
  referencing new table as changed for each statement execute function notify_statement();
create function notify_subscription() returns trigger language plpgsql as $$
declare
  v_event text = tg_argv[0];
  v_attribute text = tg_argv[2];
  v_record record;
  v_sub text;
begin
  if tg_op = 'DELETE' then
    v_record = old;
  else
    v_record = new;
  end if;
  if v_attribute is not null then
    execute 'select $1.' || quote_ident(v_attribute) using v_record into v_sub;
  end if;
  perform pg_notify(replace(tg_argv[1], '$1', coalesce(v_sub, '')), json_build_object('event', v_event, 'subject', v_sub)::text);
  return v_record;
end $$;
-- = defer: notifies
create trigger notify_subscription after insert or update or delete on orders
  for each row execute function notify_subscription('orderUpdated', 'graphql:order:$1', 'id');
create function reload_schema_cache() returns trigger language plpgsql as $$
begin
  notify pgrst, 'reload config';
  return null;
end $$;
-- = defer: notifies
create trigger reload_schema_cache after insert or update or delete or truncate on orders
  for each statement execute function reload_schema_cache();
create function tell(what text, detail jsonb default '{}') returns void language sql as $$ select pg_notify('bus', what || detail::text) $$;
create function tell_and_log() returns trigger language plpgsql as $$
begin
  perform tell('order ' || new.id, detail => jsonb_build_object('state', new.state));
  return null;
end $$;
-- = defer: notifies
create trigger tell_and_log after insert on orders for each row execute function tell_and_log();

-- An event store: streams with a version, appended to by functions, told to subscribers by a trigger.
create table streams (stream_id bigint primary key, stream_version bigint default 0);
create table stream_events (event_id uuid, stream_id bigint references streams, stream_version bigint);
create function notify_events() returns trigger language plpgsql as $$
declare
  old_version bigint := old.stream_version + 1;
begin
  perform pg_notify('public.events', new.stream_id || ',' || old_version || ',' || new.stream_version);
  return new;
end $$;
-- = defer: notifies
create trigger event_notification after update on streams for each row execute function notify_events();
create function event_store_exception() returns trigger language plpgsql as $$
declare
  message text;
begin
  message := 'EventStore: ' || tg_argv[0];
  raise exception using message = message, errcode = 'feature_not_supported';
end $$;
-- = keep: raises
-- Because: events are immutable.
create trigger no_update_stream_events before update on stream_events
  for each statement execute function event_store_exception('Cannot update events');
-- = keep: raises
create trigger no_truncate_stream_events before truncate on stream_events
  for each statement execute function event_store_exception('Cannot truncate events');
create function bump_stream() returns trigger language plpgsql as $$
begin
  update streams set stream_version = stream_version + 1 where stream_id = new.stream_id returning stream_version into strict new.stream_version;
  return new;
end $$;
-- = keep: changes-new
-- Because: the event's version comes from the stream's row, which is locked while it is counted.
create trigger bump_stream before insert on stream_events for each row execute function bump_stream();

-- A number without gaps for each log row.
create table counters (name text primary key, n bigint);
create table numbered_event_log (no bigint, order_id int, op text);
create function log_without_gaps() returns trigger language plpgsql as $$
declare
  next_no bigint;
begin
  update counters set n = n + 1 where name = 'orders' returning n into next_no;
  insert into numbered_event_log (no, order_id, op) values (next_no, new.id, tg_op);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: it counts; in commit order the numbers stay without gaps.
create trigger log_without_gaps after insert on orders for each row execute function log_without_gaps();

-- Replication by triggers.
create schema bucardo;
create table bucardo.delta_public_orders (id int not null, txntime timestamptz not null default now());
create table bucardo.track_public_orders (txntime timestamptz, target text);
create function bucardo.delta_public_orders_fn() returns trigger language plpgsql security definer volatile as $$
begin
  if (tg_op = 'INSERT') then
    insert into bucardo.delta_public_orders values (new.id);
  elsif (tg_op = 'UPDATE') then
    insert into bucardo.delta_public_orders values (old.id);
    if (old.id <> new.id) then
      insert into bucardo.delta_public_orders values (new.id);
    end if;
  else
    insert into bucardo.delta_public_orders values (old.id);
  end if;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: another system replicates by it.
create trigger bucardo_delta after insert or update or delete on orders
  for each row execute function bucardo.delta_public_orders_fn();
create function bucardo.note_truncation() returns trigger language plpgsql as $$
begin
  insert into bucardo.track_public_orders (txntime, target) values (now(), 'truncate');
  perform pg_notify('bucardo_kick', tg_table_name);
  return null;
end $$;
-- = review: counts-statements
-- Because: one row for each TRUNCATE, though for what reads them one a transaction would do.
create trigger bucardo_truncate after truncate on orders for each statement execute function bucardo.note_truncation();
