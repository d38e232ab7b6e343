-- name: read
-- What this role can see of the server's figures; asks for nothing that could be refused.
select current_user::text as role,
       pg_catalog.current_database()::text as database,
       pg_catalog.pg_is_in_recovery() as standby,
       pg_catalog.current_setting('track_counts')::boolean as counts_rows,
       pg_catalog.current_setting('track_functions') <> 'none' as times_functions,
       pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage') as reads_all_statistics,
       exists (select from pg_catalog.pg_settings s where s.name = 'pg_stat_statements.max') as statements_loaded,
       v.schema as statements_schema,
       coalesce(v.readable, false) as statements_readable
  from (select) as nothing
  left join lateral (
       select n.nspname::text as schema,
              pg_catalog.has_schema_privilege(n.oid, 'usage')
              and exists (select from pg_catalog.pg_class c
                           where c.relnamespace = n.oid and c.relname = 'pg_stat_statements'
                             and pg_catalog.has_table_privilege(c.oid, 'select')) as readable
         from pg_catalog.pg_extension e
         join pg_catalog.pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'pg_stat_statements') as v on true;
