"""The same trigger, fired by the server and run after commit by us: the rows that it writes must be the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from deferring import stage

COMMON = """
create table effects (
    n bigint generated always as identity, at timestamptz not null default statement_timestamp(), what text,
    row_new jsonb, row_old jsonb, said_at timestamptz
);
create table items (id int primary key, name text, status text default 'new', amount numeric(12, 2), note text);
"""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger (called t) with its function, and transactions to set it off."""

    ddl: str
    writes: Sequence[Sequence[str]] = (
        ["insert into items values (1, 'a', 'new', 1.50, 'x'), (2, 'b', 'new', 2.00, null)"],
        ["update items set name = 'c' where id = 1", "update items set amount = amount"],
        ["update items set status = 'done', amount = 7.25", "delete from items where id = 2"],
    )
    tables: Sequence[str] = ("public.items",)
    hidden: str = "{}"
    settle: str = ""


CASES = {
    "branches by operation": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin
            if tg_op = 'INSERT' then
                insert into effects (what, row_new, said_at) values ('made ' || new.name, to_jsonb(new), now());
                return new;
            elsif tg_op = 'UPDATE' then
                insert into effects (what, row_new, row_old, said_at)
                values (new.name || ' was ' || old.name, to_jsonb(new), to_jsonb(old), transaction_timestamp());
                return null;
            end if;
            insert into effects (what, row_old, said_at) values ('gone ' || old.name, to_jsonb(old), current_timestamp);
            return old;
        end $$;
        create trigger t after insert or update or delete on items for each row execute function f();
        """
    ),
    "every trigger variable": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin
            insert into effects (what) values (format('%s %s %s %s %s %s %s %s %s %s %s %s %s', tg_op, tg_name, tg_when,
                tg_level, tg_relid::regclass, tg_relname, tg_table_name, tg_table_schema, tg_nargs, tg_argv[0],
                tg_argv[1], array_lower(tg_argv, 1), tg_table_name::regclass));
            return null;
        end $$;
        create trigger t after insert or delete on items for each row execute function f('it''s', '{"a": "b\\c"}');
        """
    ),
    "no arguments": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin
            insert into effects (what) values (format('%s %s', tg_nargs, coalesce(tg_argv::text, 'none')));
            return null;
        end $$;
        create trigger t after insert on items for each row execute function f();
        """
    ),
    "loops, arrays and records": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        <<outer_block>>
        declare
            r record;
            k text;
            v jsonb;
            copy items%rowtype;
            parts text[] := '{}';
        begin
            for k, v in select key, value from jsonb_each(to_jsonb(new)) order by key loop
                continue when to_jsonb(old) -> k is not distinct from v;
                parts := parts || format('%s=%s', k, v);
            end loop;
            foreach k in array parts loop
                insert into effects (what) values (k);
            end loop;
            for r in execute 'select ($1).name as name, $2 as op' using new, tg_op loop
                insert into effects (what) values (r.op || ' ' || coalesce(r.name, '?'));
            end loop;
            copy := new;
            copy.name := upper(copy.name);
            new.note := 'changed here only';
            insert into effects (what, row_new) values (outer_block.copy.name, to_jsonb(new));
            if found then
                insert into effects (what) values ('found');
            end if;
            return new;
        end $$;
        create trigger t after insert or update on items for each row execute function f();
        """
    ),
    "exception blocks": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin
            begin
                insert into effects (what) values ('undone');
                perform 1 / (new.id - 1);
            exception when division_by_zero then
                insert into effects (what) values ('caught ' || sqlstate || ' for ' || new.id);
            end;
            return new;
        end $$;
        create trigger t after insert on items for each row execute function f();
        """
    ),
    "rows compared whole": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin
            if old is null then insert into effects (what) values ('no old'); end if;
            if new.* is distinct from old.* then insert into effects (what) values ('differs'); end if;
            if new is not distinct from old then insert into effects (what) values ('same'); end if;
            insert into effects (what) select 'whole ' || (new)::text;
            return null;
        end $$;
        create trigger t after insert or update or delete on items for each row execute function f();
        """
    ),
    "when, on both rows": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin insert into effects (what, row_new) values ('when', to_jsonb(new)); return null; end $$;
        create trigger t after update on items for each row
            when (old.status is distinct from new.status or (new.* is distinct from old.* and new.name ~ '^c'))
            execute function f();
        """
    ),
    "when, calling a function outside the path": Case(
        ddl="""
        create schema hidden;
        create function hidden.matters(items) returns boolean language sql immutable as $$ select ($1).id = 1 $$;
        create function f() returns trigger language plpgsql as $$
        begin insert into effects (what) values ('matters'); return null; end $$;
        create trigger t after insert on items for each row when (hidden.matters(new)) execute function f();
        """
    ),
    "update of": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin insert into effects (what) values (new.status || new.amount); return null; end $$;
        create trigger t after update of status, amount on items for each row execute function f();
        """,
        writes=(
            ["insert into items values (1, 'a', 'new', 1.50), (2, 'b', 'new', 2.00)"],
            ["update items set name = 'c'", "update items set amount = 3 where id = 1"],
            ["update items set status = 'done', name = 'z'"],
        ),
    ),
    "settings as in the original session": Case(
        ddl="""
        create schema auth;
        create function auth.uid() returns text language sql stable as $$
            select nullif(current_setting('request.claims', true), '')::jsonb ->> 'sub'
        $$;
        create function f() returns trigger language plpgsql as $$
        begin insert into effects (what) values (coalesce(auth.uid(), 'nobody')); return null; end $$;
        create trigger t after insert on items for each row execute function f();
        """,
        writes=(
            ["select set_config('request.claims', '{\"sub\": \"ann\"}', true)", "insert into items values (1, 'a')"],
            ["insert into items values (2, 'b')"],
            ["select set_config('request.claims', '{\"sub\": \"bob\"}', true)", "insert into items values (3, 'c')"],
        ),
    ),
    "security definer with a path of its own": Case(
        ddl="""
        do $$ begin create role deferral_owner; exception when duplicate_object then null; end $$;
        create schema private;
        create table private.audit (what text, who text);
        grant usage on schema private to deferral_owner;
        grant usage, create on schema public to deferral_owner;
        grant insert on private.audit to deferral_owner;
        grant insert on effects to deferral_owner;
        create function f() returns trigger language plpgsql security definer
            set search_path = private, public, pg_temp set datestyle = 'German, DMY' as $$
        begin
            insert into audit values ('unqualified', current_user);
            insert into effects (what) values (format('%s %s %s', current_user, current_setting('DateStyle'),
                date '2024-02-01'));
            return null;
        end $$;
        alter function f() owner to deferral_owner;
        create trigger t after insert on items for each row execute function f();
        """,
        settle="drop owned by deferral_owner cascade; drop role deferral_owner",
    ),
    "an empty search path": Case(
        ddl="""
        create function f() returns trigger language plpgsql set search_path = '' as $$
        begin
            insert into public.effects (what, said_at) values (current_setting('search_path') ~ 'public', now());
            return null;
        end $$;
        create trigger t after insert on items for each row execute function f();
        """
    ),
    "quoted names everywhere": Case(
        ddl="""
        create schema "Odd Schema";
        create table "Odd Schema"."Order ""A"" Lines" (
            "Id" int primary key, "user" text, "new" int, "old" int, "TG_OP" text, "before" text, "after" text, "é" text
        );
        create function "Odd Schema"."do It"() returns trigger language plpgsql as $$
        begin
            insert into effects (what, row_new) values (
                format('%s %s %s %s %s', new."user", new."new", new."old", new."TG_OP", tg_relid::regclass),
                to_jsonb(new));
            insert into effects (what)
            select l."user" || ' from the table' from "Odd Schema"."Order ""A"" Lines" l where l."Id" = new."Id";
            return null;
        end $$;
        create trigger "T ""quoted"" é" after insert or update on "Odd Schema"."Order ""A"" Lines" for each row
            when (new."new" > 0 and new."before" is null) execute function "Odd Schema"."do It"('x');
        """,
        writes=(
            ["""insert into "Odd Schema"."Order ""A"" Lines" values (1, 'u', 1, 2, 'op', null, 'a', 'é')"""],
            ["""insert into "Odd Schema"."Order ""A"" Lines" values (2, 'v', 0, 2), (3, 'w', 5, 2)"""],
        ),
        tables=('"Odd Schema"."Order ""A"" Lines"',),
    ),
    "columns that are called like variables of a body": Case(
        ddl="""
        create table lines (id int primary key, name text, found text, tg_argument text, new int, old int);
        create function f() returns trigger language plpgsql as $$
        #variable_conflict use_column
        declare
            name text := 'a variable';
        begin
            insert into effects (what) select name || tg_argument || found || new.id from lines where id = new.id;
            insert into effects (what) select 'alias ' || "new".name from lines as "new" where "new".id = old.id;
            update lines set name = name || '!' where false;
            return null;
        end $$;
        create trigger t after insert or update on lines for each row execute function f();
        """,
        writes=(["insert into lines values (1, 'n', 'f', 'a', 1, 2)"],),
        tables=("public.lines",),
    ),
    "generated and identity columns": Case(
        ddl="""
        create table made (
            id bigint generated always as identity primary key, price numeric, qty int,
            total numeric generated always as (price * qty) stored,
            label text generated always as (upper(coalesce("after", '-'))) stored, "after" text
        );
        create function f() returns trigger language plpgsql as $$
        begin
            insert into effects (what, row_new, row_old)
            values (new.id || ':' || new.total || ':' || new.label, to_jsonb(new), to_jsonb(old));
            return null;
        end $$;
        create trigger t after insert or update on made for each row
            when (new.total > 1) execute function f();
        """,
        writes=(
            ["insert into made (price, qty, after) values (1.10, 3, 'x'), (2, 2, null), (0, 1, null)"],
            ["update made set qty = 10"],
        ),
        tables=("public.made",),
        hidden="{total,label}",
    ),
    "domains, enums, arrays, composites, ranges, bytes": Case(
        ddl="""
        create type mood as enum ('sad', 'so so', 'happy');
        create domain email as text check (value like '%@%');
        create type address as (street text, zip int, tags text[]);
        create table people (
            id uuid primary key, mail email, feels mood, moods mood[], home address, homes address[], matrix int[],
            data bytea, span tstzrange, born date, at timestamptz, wait interval, ip inet, doc jsonb, big numeric,
            fl float8, flag boolean, bits bit(4), ch char(5), search tsvector
        );
        create function f() returns trigger language plpgsql as $$
        begin
            insert into effects (what, row_new) values (
                format('%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s', (new.home).street, (new.homes[1]).zip, new.matrix[2][1],
                    new.data, new.span, new.wait, new.ip, new.doc #>> '{a,0}', new.big, new.fl, new.bits),
                to_jsonb(new));
            insert into effects (what) values (new::text);
            return null;
        end $$;
        create trigger t after insert or update on people for each row execute function f();
        """,
        writes=(
            [
                """insert into people values (
                    '11111111-1111-1111-1111-111111111111', 'a@b', 'so so', '{sad,happy}',
                    row('Main "St"', 12, '{x,"y z"}'), array[row('S', 1, null)::address], '{{1,2},{3,4}}', '\\x00ff',
                    '[2024-01-01,2024-02-01)', '2024-02-29',
                    '2024-02-29 12:00:00.123456+02', '1 day 02:03:04.5', '10.0.0.1/8', '{"a": [1.50, null], "b": {}}',
                    12345678901234567890.1200, 0.1, true, b'1010', 'ab', to_tsvector('simple', 'a fat cat'))""",
                "insert into people (id, big, fl, at, born, doc) values "
                "('22222222-2222-2222-2222-222222222222', 'NaN', '-Infinity', 'infinity', '-infinity', '[]')",
            ],
        ),
        tables=("public.people",),
    ),
    "a partitioned table": Case(
        ddl="""
        create table parted (id int, region text, v int, primary key (id, region)) partition by list (region);
        create table parted_eu partition of parted for values in ('eu');
        create table parted_us partition of parted for values in ('us');
        create function f() returns trigger language plpgsql as $$
        begin
            insert into effects (what) values (format('%s %s %s', tg_op, coalesce(new.id, old.id),
                coalesce(new.region, old.region)));
            return null;
        end $$;
        create trigger t after insert or update or delete on parted for each row execute function f();
        """,
        writes=(
            ["insert into parted values (1, 'eu', 1), (2, 'us', 2)"],
            ["update parted set v = 3", "update parted set region = 'us' where id = 1"],
            ["delete from parted where id = 2"],
        ),
        tables=("public.parted",),
    ),
    "a body that asks for its partition": Case(
        ddl="""
        create schema parts;
        create table parted (id int, region text, at date, primary key (id, region, at)) partition by list (region);
        create table parts."Eu" partition of parted for values in ('eu', 'it''s') partition by range (at);
        create table parts.eu_old partition of parts."Eu" for values from (minvalue) to ('2024-01-01');
        create table parts.eu_new partition of parts."Eu" for values from ('2024-01-01') to (maxvalue);
        create table parted_rest partition of parted default;
        create function f() returns trigger language plpgsql as $$
        begin
            insert into effects (what) values (format('%s %s %s %s %s', tg_op, tg_relid::regclass, tg_relname,
                tg_table_schema, tg_table_name));
            return null;
        end $$;
        create trigger t after insert or update or delete on parted for each row execute function f();
        """,
        writes=(
            ["insert into parted values (1, 'eu', '2020-01-01'), (2, 'it''s', '2024-01-01'), (3, 'us', '2024-01-01')"],
            ["update parted set at = '2024-05-05' where id = 1"],
            ["delete from parted"],
        ),
        tables=("public.parted",),
    ),
    "two triggers and a constraint trigger, in their order": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $$
        begin insert into effects (what) values (tg_name || ' ' || new.id); return null; end $$;
        create trigger t after insert on items for each row execute function f();
        create trigger "B" after insert on items for each row execute function f();
        create constraint trigger a after insert on items initially deferred for each row execute function f();
        create trigger z after insert on items for each statement execute function g();
        """.replace(
            "create trigger t",
            """create function g() returns trigger language plpgsql as $$
        begin insert into effects (what) values (tg_name || ' ' || tg_level); return null; end $$;
        create trigger t""",
            1,
        ),
    ),
    "transition tables": Case(
        ddl="""
        create function f() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
        declare r record;
        begin
            insert into effects (what) select format('%s %s was %s', tg_op, n.name, o.name)
              from newly n join formerly o using (id) order by id;
            for r in select * from newly where amount > 1 order by id loop
                insert into effects (what, row_new) values (r.name, to_jsonb(r));
            end loop;
            insert into effects (what) select 'sum ' || coalesce(sum(amount), 0) || ' of ' || count(*) from newly;
            return null;
        end $$;
        create trigger t after update on items referencing old table as formerly new table as newly
            for each statement execute function f();
        """,
        writes=(
            ["insert into items values (1, 'a', 'new', 1.50, 'x'), (2, 'b', 'new', 2.00, null)"],
            ["update items set name = name || '!', amount = amount + 1"],
            ["update items set note = 'only one' where id = 1"],
        ),
    ),
    "a deleting statement with generated columns": Case(
        ddl="""
        create table made (id int primary key, twice int generated always as (id * 2) stored, kind text);
        create function f() returns trigger language plpgsql as $$
        begin
            insert into effects (what) select kind || sum(twice) from "Old Rows" group by kind order by kind;
            return null;
        end $$;
        create trigger t after delete on made referencing old table as "Old Rows"
            for each statement execute function f();
        """,
        writes=(
            [
                "insert into made (id, kind) "
                "select i, case when i % 2 = 0 then 'even' else 'odd' end from generate_series(1, 9) i"
            ],
            ["delete from made where id > 2"],
            ["delete from made"],
        ),
        tables=("public.made",),
        hidden="{twice}",
    ),
    "strings and comments that look like code": Case(
        ddl="""
        create function f() returns trigger language plpgsql as $body$
        declare v text := $x$current_timestamp $afterwrite$ 'now'$x$; -- current_date
        begin
            /* new.ctid /* nested */ pg_trigger_depth() */
            insert into effects (what, said_at)
            values (v || 'it''s current_date' || E'\\n\\'' , localtimestamp(0) at time zone 'UTC');
            return null;
        end $body$;
        create trigger t after insert on items for each row execute function f();
        """
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_deferred_body_writes_what_the_trigger_wrote(dsn: str, case: Case) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            try:
                await on.lay(COMMON + case.ddl, spied=case.tables, hidden=case.hidden)
                # Each statement touches its rows once, so the two sets of rows are in the same order.
                for write in case.writes:
                    await on.do(*write)
                await on.db.run(b"update effects set at = '-infinity'")
                by_trigger = await on.effects()
                assert by_trigger
                await on.db.run(b"truncate effects restart identity")

                names = await on.db.values(
                    b"select tgname from pg_trigger where not tgisinternal and tgparentid = 0 and tgname <> 'zz_spy' "
                    b"and tgrelid = any (%(tables)s::text[]::regclass[])",
                    tables=list(case.tables),
                )
                await on.defer(*names)
                await on.tell_all()
                await on.replay()
                assert not await on.db.values(b"select error from afterwrite.dead_letter")
                await on.db.run(b"update effects set at = '-infinity'")
                assert await on.effects() == by_trigger
            finally:
                if case.settle:
                    await on.db.script(case.settle)

    asyncio.run(run())
