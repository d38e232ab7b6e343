-- The audit table of a legacy application, with the indexes that such tables have.

create table public.audit_logs (
    id bigserial primary key,
    table_name text not null,
    record_id text,
    operation text not null,
    description text,
    old_data jsonb,
    new_data jsonb,
    user_id text,
    ip_address inet,
    created_at timestamptz not null default now()
);
create index on public.audit_logs (table_name, record_id);
create index on public.audit_logs (user_id, created_at);
create index on public.audit_logs (created_at);
