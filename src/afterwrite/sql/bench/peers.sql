-- One table in as many copies as there are ways to keep its activity: none, three audit triggers
-- as people write them (peer_triggers.sql), and ours, stamped by message and by statement trigger.

create extension if not exists hstore with schema public;
create schema peers;

create table peers.log (
    id bigint generated always as identity primary key,
    at timestamptz not null default pg_catalog.clock_timestamp(),
    relation text not null,
    operation text not null,
    actor text default pg_catalog.current_setting('app.actor', true),
    before jsonb,
    after jsonb
);
create index on peers.log (relation, at);

create table peers.hstore_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default pg_catalog.clock_timestamp(),
    relation text not null,
    operation text not null,
    actor text default pg_catalog.current_setting('app.actor', true),
    row_data public.hstore,
    changed_fields public.hstore
);
create index on peers.hstore_log (relation, at);

create table peers.orders_none (
    id bigint primary key,
    customer uuid not null,
    status text not null,
    amount numeric(12, 2) not null,
    currency text not null,
    note text,
    details jsonb not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
insert into peers.orders_none
select n, pg_catalog.gen_random_uuid(), 'open', n % 1000 + 0.99, 'EUR', 'order number ' || n || ' of the season',
       pg_catalog.jsonb_build_object('lines', n % 9, 'channel', 'web', 'voucher', null, 'tags', pg_catalog.jsonb_build_array('new', 'gift')),
       pg_catalog.now(), pg_catalog.now()
  from pg_catalog.generate_series(1, 50000) n;

create table peers.orders_jsonb (like peers.orders_none including all);
create table peers.orders_hstore (like peers.orders_none including all);
create table peers.orders_transition (like peers.orders_none including all);
create table peers.orders_afterwrite (like peers.orders_none including all);
create table peers.orders_stamped (like peers.orders_none including all);
insert into peers.orders_jsonb select * from peers.orders_none;
insert into peers.orders_hstore select * from peers.orders_none;
insert into peers.orders_transition select * from peers.orders_none;
insert into peers.orders_afterwrite select * from peers.orders_none;
insert into peers.orders_stamped select * from peers.orders_none;

-- What an audit trigger logs of the old row, ours has to know, too.
alter table peers.orders_afterwrite replica identity full;
alter table peers.orders_stamped replica identity full;

do $$
begin
    create role peers_app login;
exception
    when duplicate_object or unique_violation then null;
end
$$;
grant usage on schema peers to peers_app;
grant select, insert, update, delete on all tables in schema peers to peers_app;
analyze;
