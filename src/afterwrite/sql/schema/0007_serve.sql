-- Who may ask over HTTP, and the wall between tenants, which the server of the database keeps.

create table afterwrite.api_key (
    id         text        not null,
    name       text        not null,
    digest     bytea       not null,
    scopes     text[]      not null,
    tenant_id  text,
    made_at    timestamptz not null default clock_timestamp(),
    made_by    text        not null default session_user,
    expires_at timestamptz,
    revoked_at timestamptz,
    used_at    timestamptz,
    constraint api_key_pkey primary key (id),
    constraint api_key_has_a_name check (name <> ''),
    constraint api_key_digest_is_sha256 check (octet_length(digest) = 32),
    constraint api_key_may_something check (cardinality(scopes) > 0 and scopes <@ array['read', 'ingest', 'admin']),
    constraint api_key_has_a_tenant_or_none check (tenant_id <> '')
);
comment on table afterwrite.api_key is
    'Keys for the API. A key is shown once, when it is made; what is kept is sha256 of its secret part.';
comment on column afterwrite.api_key.id is 'The part of the key that names it, and may be seen: aw_<id>_<secret>.';
comment on column afterwrite.api_key.tenant_id is 'Null: a key of the operator''s, which sees every tenant.';
comment on column afterwrite.api_key.used_at is 'When it was used last, to the minute.';
create unique index api_key_one_of_a_name on afterwrite.api_key (name) where revoked_at is null;
comment on index afterwrite.api_key_one_of_a_name is 'Of the keys that are not revoked, each has a name of its own.';

create table afterwrite.signing (
    only_row boolean not null default true,
    secret   bytea   not null default
        sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
    constraint signing_pkey primary key (only_row),
    constraint signing_has_one_row check (only_row),
    constraint signing_secret_is_long check (octet_length(secret) >= 32)
);
comment on table afterwrite.signing is
    'What this store''s servers sign cursors and sessions with. A new secret ends both: update afterwrite.signing set secret = default.';
insert into afterwrite.signing default values;

create function afterwrite.lay_tenancy() returns boolean language plpgsql set search_path = pg_catalog as $$
declare
    is_late constant boolean := current_setting('server_version_num')::int >= 160000;
begin
    if not exists (select from pg_roles where rolname = 'afterwrite_tenant') then
        begin
            create role afterwrite_tenant nologin noinherit;
        exception
            when insufficient_privilege then return false;
            when duplicate_object or unique_violation then null;  -- another database of this cluster was faster
        end;
    end if;
    if not pg_has_role(current_user, 'afterwrite_tenant', case when is_late then 'SET' else 'MEMBER' end) then
        begin
            -- To become it, and not to have what it has: its policy would hold for us, too.
            execute format(
                'grant afterwrite_tenant to %I %s', current_user, case when is_late then 'with inherit false, set true' end);
        exception when insufficient_privilege then null;  -- `afterwrite serve` says so, where a tenant has a key
        end;
    end if;
    grant usage on schema afterwrite to afterwrite_tenant;
    -- What a tenant's reader needs, and nothing else: no partition, no other table, of batches their place in the feed.
    grant select on afterwrite.activity to afterwrite_tenant;
    grant select (id, position) on afterwrite.batch to afterwrite_tenant;

    drop policy if exists activity_is_for_everybody on afterwrite.activity;
    create policy activity_is_for_everybody on afterwrite.activity using (true) with check (true);
    drop policy if exists activity_of_own_tenant on afterwrite.activity;
    create policy activity_of_own_tenant on afterwrite.activity as restrictive to afterwrite_tenant
        using (tenant_id = current_setting('afterwrite.tenant', true));
    alter table afterwrite.activity enable row level security;
    -- A later upgrade's tables; where it comes first, it asks by itself.
    if to_regprocedure('afterwrite.lay_rollup_tenancy()') is not null then
        perform afterwrite.lay_rollup_tenancy();
    end if;
    return true;
end
$$;
comment on function afterwrite.lay_tenancy() is
    'Makes the role afterwrite_tenant, and has it see of afterwrite.activity the rows of the tenant that the setting afterwrite.tenant names. False where this role may make none: then no tenant''s key is served. Running it again is harmless.';
select afterwrite.lay_tenancy();
