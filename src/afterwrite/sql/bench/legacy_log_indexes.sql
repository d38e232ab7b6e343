-- The indexes that audit tables of legacy applications have.

create index on public.audit_logs (table_name, record_id);
create index on public.audit_logs (user_id, created_at);
create index on public.audit_logs (created_at);
