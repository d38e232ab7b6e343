-- name: set_reader
-- From here to the transaction's end, be a tenant's reader, where the caller has a tenant.
select pg_catalog.set_config('role', 'afterwrite_tenant', true), pg_catalog.set_config('afterwrite.tenant', :tenant::text, true)
 where :tenant::text is not null;
