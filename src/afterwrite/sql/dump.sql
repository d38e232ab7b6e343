-- name: make_owner
-- The role that a dump is loaded as: it owns what the dump defines, and may do nothing else.
create role dump_owner login nosuperuser nocreatedb nocreaterole noreplication nobypassrls connection limit 8;

-- name: leave_bodies_unread
-- Nothing looks into a function's body while the dump is loaded, however it is made.
update pg_catalog.pg_language set lanvalidator = 0;

-- name: let_nobody_execute
-- What the dump defines cannot be called while it is loaded, not even by its owner. (An empty list would mean the usual
-- one, so a superuser, who needs no privilege, is put on it.)
alter default privileges for role dump_owner revoke execute on functions from public, dump_owner;

-- name: let_nobody_execute_but_one
-- The entry that keeps the list from being empty.
alter default privileges for role dump_owner grant execute on functions to postgres;

-- name: make_corner
-- Where the parts of the stand-ins are kept, out of the dump's sight and of the scan's.
create schema afterwrite_dump;

-- name: make_handler
-- What languages that are not here are handled by: their functions are kept, and never run.
create function afterwrite_dump.handler() returns language_handler language c as '$libdir/plpgsql', 'plpgsql_call_handler';

-- name: make_modifiers
-- Takes any type modifiers: `(Point,4326)` becomes the number of the array's dimensions.
create function afterwrite_dump.modifiers(cstring[]) returns integer language internal immutable strict as 'array_ndims';

-- name: make_wrapper
-- What foreign servers belong to: without a handler, so that no foreign table can be read.
create foreign data wrapper afterwrite_dump;

-- name: make_wildcard
-- What functions return whose result is not known: a value that goes wherever it is put.
create type afterwrite_dump.anything;

-- name: make_wildcard_in
-- Its input.
create function afterwrite_dump.anything_in(cstring) returns afterwrite_dump.anything language internal immutable strict
as 'textin';

-- name: make_wildcard_out
-- Its output.
create function afterwrite_dump.anything_out(afterwrite_dump.anything) returns cstring language internal immutable strict
as 'textout';

-- name: fill_wildcard
-- Text, inside.
create type afterwrite_dump.anything (
    input = afterwrite_dump.anything_in, output = afterwrite_dump.anything_out, like = text, collatable = true
);

-- name: types_of_a_wildcard
-- What it can be put in the place of.
select pg_catalog.format_type(t.oid, null)
  from pg_catalog.pg_type t
 where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b' and t.typelem = 0 and t.typisdefined
   and t.typname in ('int2', 'int4', 'int8', 'numeric', 'float4', 'float8', 'bool', 'text', 'varchar', 'bpchar', 'uuid',
                     'json', 'jsonb', 'bytea', 'date', 'time', 'timetz', 'timestamp', 'timestamptz', 'interval', 'inet',
                     'cidr', 'xml', 'tsvector', 'tsquery');

-- name: available_extensions
-- Extensions that this server could create.
select name from pg_catalog.pg_available_extensions;

-- name: unsteady_builtins
-- Functions of the server that may do something else than compute.
select distinct p.proname from pg_catalog.pg_proc p
 where p.pronamespace = 'pg_catalog'::regnamespace and p.provolatile <> 'i';

-- name: look_in
-- The schemas in which the dump's next statements look for names.
select pg_catalog.set_config('search_path', :path, false);

-- name: new_trigger_functions
-- Trigger functions that no trigger can be made with yet, because nobody may execute them.
select p.oid::bigint as oid, p.oid::regprocedure::text as signature
  from pg_catalog.pg_proc p
 where p.oid > :after::bigint::oid
   and p.prorettype = 'pg_catalog.trigger'::regtype and p.proowner = 'dump_owner'::regrole;

-- name: functions_called
-- The dump's functions of a name, in any schema.
select p.oid::regprocedure::text
  from pg_catalog.pg_proc p
 where p.proname = any (:names::text[]) and p.proowner = 'dump_owner'::regrole and p.prokind = 'f'
   and p.prorettype <> 'pg_catalog.trigger'::regtype;

-- name: take_for_c
-- Functions that were written in C say so; without a library there is nothing to load.
update pg_catalog.pg_proc p set prolang = c.oid
  from pg_catalog.pg_language l, pg_catalog.pg_language c
 where l.lanname = 'afterwrite_c' and c.lanname = 'c' and p.prolang = l.oid;

-- name: functions_of_the_dump
-- Everything that the dump defines and that could be called.
select case p.prokind when 'p' then 'procedure ' else 'function ' end || p.oid::regprocedure::text
  from pg_catalog.pg_proc p
 where p.proowner = 'dump_owner'::regrole and p.prokind in ('f', 'p', 'w')
   and not pg_catalog.has_function_privilege('dump_owner', p.oid, 'execute');

-- name: size
-- Bytes of the database so far.
select pg_catalog.pg_database_size(pg_catalog.current_database());

-- name: end_session
-- End the session that loads the dump, whatever it is at.
select pg_catalog.pg_terminate_backend(:pid);

-- name: known_functions
-- Functions of extensions that are often not at hand: arguments, result and volatility, as their documentation says.
select * from (values
  ('pgcrypto', 'gen_random_uuid', '', 'uuid', 'volatile'),
  ('pgcrypto', 'gen_random_bytes', 'integer', 'bytea', 'volatile'),
  ('pgcrypto', 'gen_salt', 'text', 'text', 'volatile'),
  ('pgcrypto', 'gen_salt', 'text, integer', 'text', 'volatile'),
  ('pgcrypto', 'crypt', 'text, text', 'text', 'immutable'),
  ('pgcrypto', 'digest', 'text, text', 'bytea', 'immutable'),
  ('pgcrypto', 'digest', 'bytea, text', 'bytea', 'immutable'),
  ('pgcrypto', 'hmac', 'text, text, text', 'bytea', 'immutable'),
  ('pgcrypto', 'hmac', 'bytea, bytea, text', 'bytea', 'immutable'),
  ('pgcrypto', 'encrypt', 'bytea, bytea, text', 'bytea', 'immutable'),
  ('pgcrypto', 'decrypt', 'bytea, bytea, text', 'bytea', 'immutable'),
  ('pgcrypto', 'armor', 'bytea', 'text', 'immutable'),
  ('pgcrypto', 'dearmor', 'text', 'bytea', 'immutable'),
  ('pgcrypto', 'pgp_sym_encrypt', 'text, text', 'bytea', 'volatile'),
  ('pgcrypto', 'pgp_sym_encrypt', 'text, text, text', 'bytea', 'volatile'),
  ('pgcrypto', 'pgp_sym_decrypt', 'bytea, text', 'text', 'immutable'),
  ('pgcrypto', 'pgp_sym_decrypt', 'bytea, text, text', 'text', 'immutable'),
  ('pgcrypto', 'pgp_pub_encrypt', 'text, bytea', 'bytea', 'volatile'),
  ('pgcrypto', 'pgp_pub_decrypt', 'bytea, bytea', 'text', 'immutable'),
  ('uuid-ossp', 'uuid_generate_v1', '', 'uuid', 'volatile'),
  ('uuid-ossp', 'uuid_generate_v1mc', '', 'uuid', 'volatile'),
  ('uuid-ossp', 'uuid_generate_v3', 'uuid, text', 'uuid', 'immutable'),
  ('uuid-ossp', 'uuid_generate_v4', '', 'uuid', 'volatile'),
  ('uuid-ossp', 'uuid_generate_v5', 'uuid, text', 'uuid', 'immutable'),
  ('uuid-ossp', 'uuid_nil', '', 'uuid', 'immutable'),
  ('uuid-ossp', 'uuid_ns_dns', '', 'uuid', 'immutable'),
  ('uuid-ossp', 'uuid_ns_url', '', 'uuid', 'immutable'),
  ('uuid-ossp', 'uuid_ns_oid', '', 'uuid', 'immutable'),
  ('pg_net', 'http_get', 'url text, params jsonb default null, headers jsonb default null, timeout_milliseconds integer default 5000', 'bigint', 'volatile'),
  ('pg_net', 'http_post', 'url text, body jsonb default null, params jsonb default null, headers jsonb default null, timeout_milliseconds integer default 5000', 'bigint', 'volatile'),
  ('pg_net', 'http_delete', 'url text, params jsonb default null, headers jsonb default null, timeout_milliseconds integer default 5000', 'bigint', 'volatile'),
  ('pgjwt', 'sign', 'payload json, secret text, algorithm text default null', 'text', 'immutable'),
  ('pgjwt', 'url_encode', 'bytea', 'text', 'immutable'),
  ('pgjwt', 'url_decode', 'text', 'bytea', 'immutable'),
  ('temporal_tables', 'versioning', '', 'trigger', 'volatile'),
  ('temporal_tables', 'set_system_time', 'timestamp with time zone', 'void', 'volatile'),
  ('pg_cron', 'schedule', 'schedule text, command text', 'bigint', 'volatile'),
  ('pg_cron', 'schedule', 'job_name text, schedule text, command text', 'bigint', 'volatile'),
  ('pg_cron', 'unschedule', 'job_id bigint', 'boolean', 'volatile'),
  ('pg_uuidv7', 'uuid_generate_v7', '', 'uuid', 'volatile'),
  ('pg_hashids', 'id_encode', 'bigint, text default null, integer default null', 'text', 'immutable')
) as known (extension, name, arguments, result, volatility);

-- name: known_prefixes
-- Extensions with hundreds of functions, all of which only compute: how their names begin.
select * from (values ('postgis', 'st_'), ('postgis_topology', 'st_'), ('postgis_raster', 'st_'), ('postgis_sfcgal', 'st_'),
                      ('h3', 'h3_'), ('h3_postgis', 'h3_')) as known (extension, prefix);

-- name: extension_schemas
-- Where an extension puts its functions whatever schema it is created in.
select * from (values ('pg_net', 'net'), ('pg_cron', 'cron'), ('supabase_vault', 'vault'), ('pgsodium', 'pgsodium'),
                      ('pgmq', 'pgmq'), ('pg_graphql', 'graphql')) as fixed (extension, schema);

-- name: auth_uid
-- The id of the user whose claims the request carries, as Supabase's function of this name answers.
create function auth.uid() returns uuid language sql stable as
$$ select (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')::uuid $$;

-- name: auth_role
-- The role of the request.
create function auth.role() returns text language sql stable as
$$ select current_setting('request.jwt.claims', true)::jsonb ->> 'role' $$;

-- name: auth_email
-- The address of the request's user.
create function auth.email() returns text language sql stable as
$$ select current_setting('request.jwt.claims', true)::jsonb ->> 'email' $$;

-- name: auth_jwt
-- The claims of the request.
create function auth.jwt() returns jsonb language sql stable as
$$ select current_setting('request.jwt.claims', true)::jsonb $$;

-- name: auth_users
-- Supabase's users, as far as schemas refer to them.
create table auth.users (
    id uuid primary key, aud text, role text, email text, phone text, encrypted_password text,
    email_confirmed_at timestamptz, phone_confirmed_at timestamptz, confirmed_at timestamptz, invited_at timestamptz,
    last_sign_in_at timestamptz, raw_app_meta_data jsonb, raw_user_meta_data jsonb, is_super_admin boolean,
    created_at timestamptz, updated_at timestamptz, banned_until timestamptz, deleted_at timestamptz,
    is_anonymous boolean
);

-- name: storage_buckets
-- Supabase's buckets.
create table storage.buckets (
    id text primary key, name text not null unique, owner uuid, owner_id text, public boolean,
    created_at timestamptz, updated_at timestamptz
);

-- name: storage_objects
-- Supabase's files.
create table storage.objects (
    id uuid primary key, bucket_id text, name text, owner uuid, owner_id text, metadata jsonb, user_metadata jsonb,
    path_tokens text[], version text, created_at timestamptz, updated_at timestamptz, last_accessed_at timestamptz
);

-- name: storage_foldername
-- The folders in a file's name.
create function storage.foldername(name text) returns text[] language sql immutable as
$$ select (string_to_array(name, '/'))[1 : array_length(string_to_array(name, '/'), 1) - 1] $$;

-- name: storage_filename
-- A file's name without its folders.
create function storage.filename(name text) returns text language sql immutable as
$$ select split_part(name, '/', -1) $$;

-- name: realtime_messages
-- Supabase's broadcast messages.
create table realtime.messages (
    id uuid, topic text not null, extension text not null, payload jsonb, event text, private boolean,
    inserted_at timestamp not null, updated_at timestamp not null
);

-- name: supabase_functions_http_request
-- What Supabase's database webhooks call: the row is sent to the address in the first argument.
create function supabase_functions.http_request() returns trigger language plpgsql security definer as $$
begin
    perform net.http_post(url => tg_argv[0], body => jsonb_build_object('table', tg_table_name, 'type', tg_op));
    return new;
end
$$;
