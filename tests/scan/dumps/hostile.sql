-- A dump that nobody should trust. Every statement below wants something that a schema does not need:
-- to write the file MARKER-n, to start a program, to open a connection, to change the server, or to run code.
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);

CREATE SCHEMA trap;
CREATE TABLE trap.seen (what text);
CREATE TABLE public.accounts (id integer PRIMARY KEY, email text, parent integer);
CREATE TABLE public.audit_log (id bigint, account_id integer, op text);

-- Code that would leave a mark, if anybody called it.
CREATE FUNCTION trap.mark(what text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
begin
  insert into trap.seen values (what);
  raise exception 'CALLED: %', what;
end $$;
CREATE FUNCTION trap.number(what integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
begin
  perform set_config('afterwrite.caught', what::text, false);
  raise exception 'CALLED: %', what;
end $$;
CREATE FUNCTION trap.inlined(what integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$ select trap.number(what) $$;
CREATE FUNCTION trap.definer() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
begin execute 'copy (select 1) to program ''touch MARKER-definer'''; return 1; end $$;

-- 1-9: psql would act on these.
\! touch MARKER-shell
\copy trap.seen to program 'touch MARKER-copy'
\copy public.accounts from '/etc/passwd'
\i /etc/passwd
\ir ../../../../etc/passwd
\o MARKER-o
\w MARKER-w
\setenv PATH /nowhere
\set AUTOCOMMIT off
SELECT 'create table trap.gexec()' \gexec
SELECT 'x' \g |touch MARKER-pipe
select 1 \gset
\connect 'host=127.0.0.1 port=9 dbname=elsewhere'
SELECT `touch MARKER-backtick`;

-- 10-17: programs and files through COPY and large objects.
COPY trap.seen FROM PROGRAM 'touch MARKER-program; echo x';
COPY (SELECT 1) TO PROGRAM 'touch MARKER-toprogram';
COPY trap.seen TO 'MARKER-file';
COPY trap.seen FROM '/etc/passwd';
copy/**/trap.seen/**/from/**/program/**/'touch MARKER-comments';
SELECT lo_import('/etc/passwd');
SELECT pg_catalog.lo_from_bytea(4711, 'x');
SELECT pg_read_file('/etc/passwd');

-- 18-26: code that runs by itself.
DO $$ begin perform pg_sleep(600); end $$;
DO LANGUAGE plpython3u $$ import os; os.system("touch MARKER-do") $$;
CALL trap.definer();
SELECT trap.mark('select');
SELECT pg_catalog.set_config('search_path', trap.mark('argument')::text, false);
SELECT set_config('search_path', '', false), trap.mark('beside');
SELECT set_config('statement_timeout', '0', false);
SELECT setval('trap.sequence', trap.number(1));
WITH gone AS (DELETE FROM public.accounts RETURNING 1) SELECT * FROM gone;
VALUES (trap.mark('values'));
TABLE public.accounts;
EXPLAIN ANALYZE SELECT trap.mark('explain');
PREPARE p AS SELECT trap.mark('prepared');
EXECUTE p;
CREATE TABLE trap.executed AS EXECUTE p;
SELECT trap.mark('into') INTO trap.into_table;
INSERT INTO trap.seen VALUES ('insert');
CREATE EVENT TRIGGER watch ON ddl_command_start EXECUTE FUNCTION trap.definer();

-- 27-41: code that would run while something is defined.
CREATE TABLE trap.as_select AS SELECT trap.mark('create table as') AS done;
CREATE MATERIALIZED VIEW trap.materialized AS SELECT trap.mark('matview') AS done;
CREATE MATERIALIZED VIEW trap.with_data AS SELECT pg_sleep(600) WITH DATA;
REFRESH MATERIALIZED VIEW trap.materialized;
CREATE TABLE trap.ranges (at integer) PARTITION BY RANGE (at);
CREATE TABLE trap.range_1 PARTITION OF trap.ranges FOR VALUES FROM (trap.number(1)) TO (10);
CREATE TABLE trap.range_2 PARTITION OF trap.ranges FOR VALUES FROM (10) TO (length(set_config('statement_timeout', '0', false)));
CREATE TABLE trap.range_3 (at integer);
ALTER TABLE trap.ranges ATTACH PARTITION trap.range_3 FOR VALUES FROM ((SELECT 1)) TO (trap.number(2));
CREATE DOMAIN trap.checked AS text CHECK (trap.mark(VALUE));
CREATE TABLE trap.domains (all_of trap.checked[] DEFAULT '{called}');
CREATE DOMAIN trap.setting AS text CHECK (set_config('statement_timeout', '0', false) IS NOT NULL);
CREATE TABLE trap.settings (all_of trap.setting[] DEFAULT '{called}');
CREATE TYPE trap.pair AS (one trap.checked);
CREATE TYPE trap.text AS (one trap.checked);
CREATE DOMAIN trap.notation AS double precision CHECK ((VALUE).pg_sleep IS NOT NULL);
CREATE DOMAIN trap.dotted AS double precision CHECK (VALUE.pg_sleep IS NOT NULL);
CREATE TABLE trap.sleeps (all_of trap.notation[] DEFAULT '{600}', more trap.dotted[] DEFAULT '{600}');
CREATE TABLE trap.slept (id trap.notation DEFAULT '600');
CREATE VIEW trap.literal AS SELECT '(called)'::trap.pair AS pair, '{called}'::trap.checked[] AS list;
CREATE INDEX folded ON public.accounts (trap.number(1));
CREATE INDEX inlined ON public.accounts (trap.inlined(2));
CREATE INDEX partial ON public.accounts (id) WHERE trap.mark('predicate');
CREATE INDEX sleeping ON public.accounts ((length(repeat('x', 1000000000)::text)));
ALTER TABLE public.accounts ADD COLUMN computed integer DEFAULT trap.number(3);
ALTER TABLE public.accounts ADD COLUMN slept text DEFAULT pg_sleep(600)::text;
ALTER TABLE public.accounts ADD CONSTRAINT checked CHECK (trap.mark('check'));
ALTER TABLE public.accounts ADD COLUMN made integer GENERATED ALWAYS AS (trap.number(id)) STORED;
ALTER TABLE public.accounts ALTER COLUMN parent TYPE bigint USING trap.number(parent);
CREATE TABLE trap.excluded (a integer, EXCLUDE USING btree ((trap.number(a)) WITH =));
CREATE FUNCTION trap.defaulted(a integer DEFAULT trap.number(4)) RETURNS integer LANGUAGE sql AS 'select $1';
CREATE FUNCTION trap.standard() RETURNS integer LANGUAGE sql BEGIN ATOMIC SELECT trap.number(5); SELECT pg_sleep(600); SELECT 1; END;
CREATE STATISTICS trap.computed ON (trap.number(id)), email FROM public.accounts;
CREATE AGGREGATE trap.total(integer) (SFUNC = trap.number, STYPE = trap.pair, INITCOND = '(called)');
CREATE AGGREGATE trap.totals(integer) (SFUNC = trap.number, STYPE = trap.text, INITCOND = '(called)');
CREATE OPERATOR trap.=== (FUNCTION = trap.number, RIGHTARG = integer);
CREATE DOMAIN trap.operated AS integer CHECK ((OPERATOR(trap.===) VALUE) > 0);
CREATE TABLE trap.operations (all_of trap.operated[] DEFAULT '{1}');
CREATE CAST (integer AS trap.pair) WITH FUNCTION trap.number(integer) AS IMPLICIT;
CREATE RULE ruled AS ON SELECT TO public.audit_log DO INSTEAD SELECT trap.number(1), 1, '';
CREATE RULE noted AS ON INSERT TO public.accounts DO ALSO NOTIFY trap;
CREATE POLICY policed ON public.accounts USING (trap.mark('policy'));
CREATE VIEW public.viewed AS SELECT trap.mark('view') AS done;
CREATE FUNCTION pg_catalog.now() RETURNS timestamptz LANGUAGE sql AS 'select null';
CREATE FUNCTION trap.supported(integer) RETURNS integer LANGUAGE internal SUPPORT trap.number AS 'int4abs';

-- 42-60: privileges, the server, other servers.
CREATE ROLE intruder SUPERUSER LOGIN PASSWORD 'x';
ALTER ROLE dump_owner SUPERUSER;
ALTER ROLE postgres PASSWORD 'taken';
GRANT postgres TO dump_owner;
GRANT pg_execute_server_program TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA trap TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
ALTER FUNCTION trap.mark(text) OWNER TO postgres;
SET ROLE postgres;
SET SESSION AUTHORIZATION postgres;
SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE;
RESET SESSION AUTHORIZATION;
SET session_preload_libraries = 'evil';
SET session_replication_role = replica;
SET dynamic_library_path = '/tmp';
SET statement_timeout = 0;
SET local search_path = trap, pg_catalog;
LOAD '/tmp/evil.so';
ALTER SYSTEM SET archive_command = 'touch MARKER-archive';
ALTER DATABASE postgres SET session_preload_libraries = 'evil';
ALTER ROLE ALL SET session_preload_libraries = 'evil';
CREATE DATABASE another;
DROP DATABASE postgres;
CREATE TABLESPACE here LOCATION '/tmp';
CREATE LANGUAGE evil HANDLER trap.definer;
CREATE FUNCTION trap.library() RETURNS trigger LANGUAGE c AS '/tmp/evil.so', 'evil';
CREATE FUNCTION trap.system(cstring) RETURNS integer LANGUAGE c STRICT AS '/lib/x86_64-linux-gnu/libc.so.6', 'system';
CREATE TRIGGER library BEFORE INSERT ON public.accounts FOR EACH ROW EXECUTE FUNCTION trap.library();
CREATE EXTENSION dblink;
CREATE EXTENSION file_fdw;
CREATE EXTENSION adminpack;
CREATE EXTENSION "../../../tmp/evil";
ALTER EXTENSION plpgsql UPDATE;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '9');
CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'postgres');
IMPORT FOREIGN SCHEMA public FROM SERVER far INTO trap;
CREATE FOREIGN TABLE trap.passwd (line text) SERVER files OPTIONS (filename '/etc/passwd');
CREATE SUBSCRIPTION far CONNECTION 'host=127.0.0.1 port=9' PUBLICATION p;
CREATE PUBLICATION everything FOR ALL TABLES;
SELECT dblink_connect('host=127.0.0.1 port=9 user=postgres');
CREATE TYPE trap.base (INPUT = trap.number, OUTPUT = trap.number);
CREATE OPERATOR CLASS trap.ordered DEFAULT FOR TYPE integer USING btree AS FUNCTION 1 trap.number(integer);
CREATE CONVERSION trap.conversion FOR 'UTF8' TO 'LATIN1' FROM trap.number;
CREATE TRANSFORM FOR integer LANGUAGE plpgsql (FROM SQL WITH FUNCTION trap.number(integer));
CREATE ACCESS METHOD evil TYPE INDEX HANDLER trap.definer;
CREATE TEXT SEARCH TEMPLATE trap.template (LEXIZE = trap.number);
CREATE TEXT SEARCH DICTIONARY trap.dictionary (TEMPLATE = pg_catalog.ispell, DictFile = '../../../etc/passwd', AffFile = 'x');
UPDATE pg_catalog.pg_authid SET rolsuper = true;
DELETE FROM pg_catalog.pg_proc;
ALTER TABLE pg_catalog.pg_class ADD COLUMN evil text;
DROP SCHEMA pg_catalog CASCADE;
DROP OWNED BY postgres;
REASSIGN OWNED BY postgres TO dump_owner;
LISTEN trap;
NOTIFY trap;
LOCK TABLE pg_catalog.pg_class;
VACUUM FULL;
CHECKPOINT;
COMMENT ON DATABASE postgres IS 'taken';
SECURITY LABEL ON TABLE public.accounts IS 'evil';
CREATE SCHEMA nested CREATE TABLE inside (a integer) CREATE VIEW peek AS SELECT pg_sleep(600);
CREATE SCHEMA afterwrite_dump;
CREATE FUNCTION afterwrite_dump.handler() RETURNS integer LANGUAGE sql AS 'select 1';
BEGIN; LOCK pg_catalog.pg_class; COMMIT;
PREPARE TRANSACTION 'held';

-- Words that look like something else.
CREATE TABLE trap.one (a integer); DROP TABLE trap.one; --
COMMENT ON TRIGGER library ON public.accounts IS 'it''s; \! touch MARKER-quoted; $$';
CREATE TABLE trap."a;b" ("c"";d" text DEFAULT ';
\! touch MARKER-in-literal
');
/* nested /* ; DO $$ begin perform pg_sleep(600); end $$; */ \! touch MARKER-in-comment */
set standard_conforming_strings = off;
COMMENT ON TRIGGER library ON public.accounts IS 'a\'; DO $x$ begin perform pg_sleep(600); end $x$; -- ';
set standard_conforming_strings = on;
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON public.accounts FOR EACH ROW EXECUTE FUNCTION public.log_account();
CREATE FUNCTION public.log_account() RETURNS trigger LANGUAGE plpgsql AS $$
begin
  insert into public.audit_log (account_id, op) values (coalesce(new.id, old.id), tg_op);
  return null;
end $$;
COPY trap.seen (what) FROM stdin;
x
\! touch MARKER-in-data
DO $$ begin perform pg_sleep(600); end $$;
\.
COMMENT ON TRIGGER gone[2J ON public.accounts IS 'x';
\]0;owned x
CREATE TABLE trap.last (a integer);
