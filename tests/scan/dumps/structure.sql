SET statement_timeout = 0;
SET lock_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: plpgsql; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS plpgsql WITH SCHEMA pg_catalog;


--
-- Name: citext; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;


--
-- Name: hstore; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;


--
-- Name: pg_trgm; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;


--
-- Name: postgis; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS postgis WITH SCHEMA public;


--
-- Name: temporal_tables; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS temporal_tables WITH SCHEMA public;


--
-- Name: log_change(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.log_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
  BEGIN
    IF (TG_OP = 'DELETE') THEN
      INSERT INTO logged_changes (item_type, item_id, event, object_changes)
      VALUES (TG_TABLE_NAME, OLD.id, 'destroy', hstore(OLD.*));
      RETURN OLD;
    END IF;
    INSERT INTO logged_changes (item_type, item_id, event, object_changes)
    VALUES (TG_TABLE_NAME, NEW.id, lower(TG_OP), hstore(NEW.*));
    RETURN NEW;
  END;
$$;


--
-- Name: orders_search(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.orders_search() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
  new.tsv := to_tsvector('public.simple_unaccent', coalesce(new.reference, ''));
  return new;
end
$$;


--
-- Name: render_label(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.render_label() RETURNS trigger
    LANGUAGE plv8
    AS $$
  NEW.label = NEW.reference + '/' + plv8.execute("select 1; -- isn't run")[0];
  return NEW;
$$;


--
-- Name: mirror_to_queue(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.mirror_to_queue() RETURNS trigger
    LANGUAGE plpython3u
    AS $_$
import os
os.system("touch /tmp/afterwrite-hostile-plpython")
$_$;


--
-- Name: legacy_guard(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.legacy_guard() RETURNS trigger
    LANGUAGE c
    AS '$libdir/legacy_guard', 'legacy_guard_row';


--
-- Name: simple_unaccent; Type: TEXT SEARCH CONFIGURATION; Schema: public; Owner: -
--

CREATE TEXT SEARCH CONFIGURATION public.simple_unaccent (
    PARSER = pg_catalog."default" );

ALTER TEXT SEARCH CONFIGURATION public.simple_unaccent
    ADD MAPPING FOR word WITH simple;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: ar_internal_metadata; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.ar_internal_metadata (
    key character varying NOT NULL,
    value character varying,
    created_at timestamp(6) without time zone NOT NULL,
    updated_at timestamp(6) without time zone NOT NULL
);


--
-- Name: depots; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.depots (
    id bigint NOT NULL,
    email public.citext,
    location public.geometry(Point,4326),
    area public.geometry(MultiPolygon,4326) NOT NULL,
    tags public.hstore DEFAULT ''::public.hstore NOT NULL,
    size double precision GENERATED ALWAYS AS (public.st_area(area)) STORED,
    sys_period tstzrange NOT NULL
);


--
-- Name: depots_history; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.depots_history (
    id bigint NOT NULL,
    email public.citext,
    sys_period tstzrange NOT NULL
);


--
-- Name: depots_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.depots_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


ALTER SEQUENCE public.depots_id_seq OWNED BY public.depots.id;


--
-- Name: logged_changes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.logged_changes (
    id bigint NOT NULL,
    item_type character varying NOT NULL,
    item_id bigint NOT NULL,
    event character varying NOT NULL,
    object_changes public.hstore,
    created_at timestamp(6) without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);


--
-- Name: logged_changes_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.logged_changes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: orders; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.orders (
    id bigint NOT NULL,
    reference character varying COLLATE public.numeric NOT NULL,
    label text,
    depot_id bigint,
    tsv tsvector,
    created_at timestamp(6) without time zone NOT NULL
)
PARTITION BY RANGE (created_at);


--
-- Name: orders_2024; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.orders_2024 (
    id bigint NOT NULL,
    reference character varying COLLATE public.numeric NOT NULL,
    label text,
    depot_id bigint,
    tsv tsvector,
    created_at timestamp(6) without time zone NOT NULL
);


--
-- Name: order_totals; Type: MATERIALIZED VIEW; Schema: public; Owner: -
--

CREATE MATERIALIZED VIEW public.order_totals AS
 SELECT orders.depot_id,
    count(*) AS orders
   FROM public.orders
  GROUP BY orders.depot_id
  WITH NO DATA;


--
-- Name: schema_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.schema_migrations (
    version character varying NOT NULL
);


--
-- Name: orders_2024; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.orders ATTACH PARTITION public.orders_2024 FOR VALUES FROM ('2024-01-01 00:00:00') TO ('2025-01-01 00:00:00');


ALTER TABLE ONLY public.depots ALTER COLUMN id SET DEFAULT nextval('public.depots_id_seq'::regclass);


ALTER TABLE ONLY public.logged_changes ALTER COLUMN id SET DEFAULT nextval('public.logged_changes_id_seq'::regclass);


ALTER TABLE ONLY public.depots
    ADD CONSTRAINT depots_pkey PRIMARY KEY (id);


ALTER TABLE ONLY public.logged_changes
    ADD CONSTRAINT logged_changes_pkey PRIMARY KEY (id);


CREATE INDEX index_depots_on_location ON public.depots USING gist (location);


CREATE INDEX index_depots_on_email_trgm ON public.depots USING gin (((email)::text) public.gin_trgm_ops);


CREATE UNIQUE INDEX unique_schema_migrations ON public.schema_migrations USING btree (version);


CREATE TRIGGER depots_audit AFTER INSERT OR DELETE OR UPDATE ON public.depots FOR EACH ROW EXECUTE FUNCTION public.log_change();


CREATE TRIGGER depots_versioning BEFORE INSERT OR DELETE OR UPDATE ON public.depots FOR EACH ROW EXECUTE FUNCTION public.versioning('sys_period', 'depots_history', 'true');


CREATE TRIGGER depots_guard BEFORE DELETE ON public.depots FOR EACH ROW EXECUTE FUNCTION public.legacy_guard();


CREATE TRIGGER orders_audit AFTER INSERT OR DELETE OR UPDATE ON public.orders FOR EACH ROW EXECUTE FUNCTION public.log_change();


CREATE TRIGGER orders_label BEFORE INSERT OR UPDATE ON public.orders FOR EACH ROW EXECUTE FUNCTION public.render_label();


CREATE TRIGGER orders_mirror AFTER INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.mirror_to_queue();


CREATE TRIGGER orders_tsv BEFORE INSERT OR UPDATE ON public.orders FOR EACH ROW EXECUTE FUNCTION public.orders_search();


CREATE TRIGGER orders_unknown AFTER INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION billing.push_invoice();


SET search_path TO "$user", public;

INSERT INTO "schema_migrations" (version) VALUES
('20240611090000'),
('20240305110000'),
('20240101080000');

