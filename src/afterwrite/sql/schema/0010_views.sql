-- Saved views: searches that people gave a name.

create table afterwrite.saved_view (
    id        bigint generated always as identity,
    tenant_id text,
    name      text        not null,
    query     text        not null,
    made_by   text        not null,
    made_at   timestamptz not null default clock_timestamp(),
    constraint saved_view_pkey primary key (id),
    constraint saved_view_name_fits check (length(name) between 1 and 80),
    constraint saved_view_query_fits check (length(query) <= 2000),
    constraint saved_view_has_a_tenant_or_none check (tenant_id <> '')
);
comment on table afterwrite.saved_view is
    'A search with a name, for everybody who sees the same tenant''s activity (null: all of it).';
create unique index saved_view_one_of_a_name on afterwrite.saved_view (coalesce(tenant_id, ''), name);
comment on index afterwrite.saved_view_one_of_a_name is 'Within a tenant each name means one view.';

create function afterwrite.lay_view_tenancy() returns boolean language plpgsql set search_path = pg_catalog as $$
begin
    if not exists (select from pg_roles where rolname = 'afterwrite_tenant') then
        return false;
    end if;
    grant select, insert, update, delete on afterwrite.saved_view to afterwrite_tenant;
    drop policy if exists saved_view_is_for_everybody on afterwrite.saved_view;
    create policy saved_view_is_for_everybody on afterwrite.saved_view using (true) with check (true);
    drop policy if exists saved_view_of_own_tenant on afterwrite.saved_view;
    create policy saved_view_of_own_tenant on afterwrite.saved_view as restrictive to afterwrite_tenant
        using (tenant_id = current_setting('afterwrite.tenant', true));
    alter table afterwrite.saved_view enable row level security;
    return true;
end
$$;
comment on function afterwrite.lay_view_tenancy() is
    'Lets the role afterwrite_tenant, where there is one, keep views of its own tenant, and see no others. Running it again is harmless.';
select afterwrite.lay_view_tenancy();
