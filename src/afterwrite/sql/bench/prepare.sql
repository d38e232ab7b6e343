-- Numbered rows of the legacy application, so that a load can pick one at random by an index.

create schema bench;

create table bench.projects as select row_number() over (order by id) as n, id, owner_id from public.projects;
create table bench.users as select row_number() over (order by id) as n, id from public.users;
create table bench.investors as select row_number() over (order by id) as n, id from public.investors;
create table bench.tokens as select row_number() over (order by id) as n, id from public.tokens;
create table bench.documents as select row_number() over (order by id) as n, id from public.documents where signed_at is null;
create table bench.notifications as select row_number() over (order by id) as n, id from public.notifications;
create unique index on bench.projects (n);
create unique index on bench.users (n);
create unique index on bench.investors (n);
create unique index on bench.tokens (n);
create unique index on bench.documents (n);
create unique index on bench.notifications (n);

grant usage on schema bench to demo_app;
grant select on all tables in schema bench to demo_app;
analyze;
