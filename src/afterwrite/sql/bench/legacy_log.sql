-- The audit table of a legacy application; its indexes come when it is filled (legacy_log_indexes.sql).

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
