-- What an application makes for itself: a table with the two indexes that everybody asks for.
create table public.bench_audit (
    id uuid primary key,
    at timestamptz not null default pg_catalog.now(),
    actor text,
    tenant text,
    action text not null,
    entity_type text,
    entity_id text,
    details jsonb
);
create index on public.bench_audit (entity_type, entity_id, at desc);
create index on public.bench_audit (actor, at desc);
