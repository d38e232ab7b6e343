-- name: lay_schema
-- A schema of its own in the application's database: writers come in by one function, and see nothing.
create schema if not exists afterwrite_outbox;

-- name: open_schema
-- It is to be used, also where it was to go.
comment on schema afterwrite_outbox is 'events of transactions, on their way to the store';

-- name: close_to_recorders
-- It is to go: recorders that ask from now on look elsewhere, and the others soon will.
comment on schema afterwrite_outbox is 'closing';

-- name: lay_event
-- What was posted and not delivered yet. Numbers become visible in the order of commits, which is not theirs.
create table if not exists afterwrite_outbox.event (
    number     bigint generated always as identity,
    payload    text        not null,
    xid        bigint      not null default pg_catalog.pg_current_xact_id()::text::bigint,
    written_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint event_pkey primary key (number)
)
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- name: lay_refused
-- What cannot be delivered, set aside with its reason: it holds nothing back, and nothing deletes it by itself.
create table if not exists afterwrite_outbox.refused (
    id         bigint generated always as identity,
    number     bigint      not null,
    payload    text        not null,
    xid        bigint      not null,
    written_at timestamptz not null,
    reason     text        not null,
    refused_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint refused_pkey primary key (id)
);

-- name: lay_post
-- The one way in. It runs as its owner: a writer has no right on the table, and cannot say when it wrote, or in which transaction.
create or replace function afterwrite_outbox.post(payload text) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
    made bigint;
begin
    insert into afterwrite_outbox.event as e (payload) values ($1) returning e.number into made;
    return made;
end
$$;

-- name: close_schema
-- Nobody but the owner, and who is named next, may look into it.
revoke all on schema afterwrite_outbox from public;

-- name: close_tables
-- Nobody but the owner may do anything with the tables.
revoke all on afterwrite_outbox.event, afterwrite_outbox.refused from public;

-- name: close_post
-- Nobody but the owner, and who is named next, may post.
revoke all on function afterwrite_outbox.post(text) from public;

-- name: has_schema
-- Whether anything of an outbox is there.
select pg_catalog.to_regnamespace('afterwrite_outbox') is not null;

-- name: read_granted
-- Which roles may post by name.
select pg_catalog.quote_ident(r.rolname)
  from pg_catalog.pg_proc p, lateral pg_catalog.aclexplode(p.proacl) a
  join pg_catalog.pg_roles r on r.oid = a.grantee
 where p.oid = pg_catalog.to_regprocedure('afterwrite_outbox.post(text)') and a.grantee <> p.proowner
 order by 1;

-- name: is_laid
-- Whether there is an outbox; who may not look into its schema is told so, too.
select exists (select from pg_catalog.pg_class c
                 join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                where n.nspname = 'afterwrite_outbox' and c.relname = 'event' and c.relkind = 'r');

-- name: read_role
-- A role's name as SQL wants it, or nothing where there is none.
select pg_catalog.quote_ident(r.rolname) from pg_catalog.pg_roles r where r.rolname = :name;

-- name: claim
-- Drain it alone: two at once would do no harm, and everything twice.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('afterwrite.outbox', 0));

-- name: read_front
-- The row that is next, and how old it is: where it stays the same, nobody drains.
select e.number,
       pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - e.written_at)::double precision as seconds
  from afterwrite_outbox.event e
 order by e.number
 limit 1;

-- name: read_some
-- The next rows, as many as fit into so many bytes and at least one; a payload that is too long stays where it is.
select s.number, s.xid, s.written_at,
       case when s.bytes <= :longest then s.payload end as payload,
       s.bytes
  from (select e.number, e.xid, e.written_at, e.payload, pg_catalog.octet_length(e.payload)::bigint as bytes,
               coalesce(sum(least(pg_catalog.octet_length(e.payload), :longest))
                        over (order by e.number rows between unbounded preceding and 1 preceding), 0) as before
          from (select * from afterwrite_outbox.event where number > :after order by number limit :most) e) s
 where s.before < :most_bytes
 order by s.number;

-- name: read_heads
-- The same rows without what they say, for when one of them cannot be read.
select e.number, e.xid from afterwrite_outbox.event e where e.number > :after order by e.number limit :most;

-- name: read_one
-- One row.
select e.number, e.xid, e.written_at,
       case when pg_catalog.octet_length(e.payload) <= :longest then e.payload end as payload,
       pg_catalog.octet_length(e.payload)::bigint as bytes
  from afterwrite_outbox.event e
 where e.number = :number;

-- name: delete_delivered
-- What the store has. By number and transaction: a sequence that was set back gives numbers again.
delete from afterwrite_outbox.event e
 using rows from (pg_catalog.unnest(:numbers::bigint[]), pg_catalog.unnest(:xids::bigint[])) as t (number, xid)
 where e.number = t.number and e.xid = t.xid;

-- name: set_aside
-- What cannot be delivered, with the reasons.
with gone as (
    delete from afterwrite_outbox.event e
     using rows from (pg_catalog.unnest(:numbers::bigint[]), pg_catalog.unnest(:xids::bigint[]), pg_catalog.unnest(:reasons::text[])) as t (number, xid, reason)
     where e.number = t.number and e.xid = t.xid
    returning e.number, e.payload, e.xid, e.written_at, t.reason
)
insert into afterwrite_outbox.refused (number, payload, xid, written_at, reason)
select g.number, g.payload, g.xid, g.written_at, g.reason from gone g order by g.number;

-- name: measure
-- How much waits (counted up to a bound), since when, and how much is set aside.
select (select count(*) from (select from afterwrite_outbox.event limit :most) w)::bigint as waiting,
       (select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - e.written_at)::double precision
          from afterwrite_outbox.event e order by e.number limit 1) as oldest_seconds,
       (select count(*) from (select from afterwrite_outbox.refused limit :most) r)::bigint as refused,
       pg_catalog.pg_total_relation_size('afterwrite_outbox.event')::bigint as bytes;

-- name: read_refused
-- The newest of what is set aside, and why.
select r.number, r.xid, r.written_at, r.reason, r.refused_at, pg_catalog.left(r.payload, 200) as beginning
  from afterwrite_outbox.refused r
 order by r.id desc
 limit :most;

-- name: put_back
-- What was set aside is tried again, as it was.
with back as (
    delete from afterwrite_outbox.refused returning number, payload, xid, written_at
)
insert into afterwrite_outbox.event (payload, xid, written_at)
select b.payload, b.xid, b.written_at from back b order by b.number;

-- name: lock_tables
-- Nobody writes meanwhile.
lock table afterwrite_outbox.event, afterwrite_outbox.refused in access exclusive mode;

-- name: drop_post
-- Takes the way in away.
drop function if exists afterwrite_outbox.post(text);

-- name: drop_tables
-- Takes the tables away, with all that is in them.
drop table if exists afterwrite_outbox.event, afterwrite_outbox.refused;

-- name: drop_schema
-- Takes the schema away; nothing else may be in it.
drop schema if exists afterwrite_outbox;
