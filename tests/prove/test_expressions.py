"""Expressions that proof evaluates give what PostgreSQL gives: the server is the oracle."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from afterwrite.context import Context
from afterwrite.prove.compare import freeze
from afterwrite.prove.evaluate import Moment, Writer, compile_expression
from afterwrite.prove.expression import Side, Whole, Why
from afterwrite.prove.landing import Exact, NotCompared, Partly, lander
from afterwrite.prove.landing import Whole as Document
from afterwrite.prove.number import calculate
from afterwrite.prove.syntax import Reader
from afterwrite.prove.value import Holes, Unknown, decode_json, to_json

_TABLE = """
create type mood as enum ('calm', 'cross');
create table thing (
  id integer, big bigint, price numeric(12, 4), whole numeric(30, 0), ratio double precision, flag boolean, name text,
  code char(5), mood mood, born date, seen timestamptz, local timestamp, address inet, ident uuid,
  tags text[],
  counts integer[], doc jsonb, plain json, nothing text
);
insert into thing values
  (7, 9007199254740993, 12.5000, 10000000, 0.1, true, 'Ann O''Neil "x"', 'EUR', 'calm', '2024-02-29',
   '2024-02-29 12:34:56.789+02', '2024-02-29 12:34:56', '10.0.0.1',
   'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
   '{a,"b c",NULL,"d\\"e"}', '{1,2,3}', '{"bb": 1.50, "a": [1, null, {"z": true}], "key": "v"}',
   '{"b": 1, "a": 2}', null);
"""

# Every expression is evaluated over the one row, by us and by the server.
_EXPRESSIONS = [
    "new.id",
    "new.id::text",
    "new.name || ' / ' || new.id",
    "'x' || new.flag",
    "format('%s|%s|%s|%s%%', new.flag, new.price, new.nothing, new.code)",
    "concat(new.flag, new.price, new.nothing, '-')",
    "concat_ws(', ', new.name, new.nothing, new.id)",
    "new.price * 2 + 1",
    "new.price / 3",
    "100 * (new.whole - 1) / nullif(new.whole, 0)",
    "round(100 * (new.whole + 1000 - new.whole) / new.whole, 2)",
    "round(new.price, 1)",
    "new.id / 2",
    "new.id % 4",
    "-new.id / 2",
    "abs(-new.price)",
    "new.ratio * 2",
    "new.ratio::text",
    "new.price::integer",
    "(new.price + 1)::text",
    "new.price::numeric(6,1)::text",
    "new.born::text",
    "new.local::text",
    "new.address::text",
    "host(new.address)",
    "format('%s', new.address)",
    "new.ident::text",
    "new.mood::text || '!'",
    "new.code || '.'",
    "length(new.code)",
    "new.code = 'EUR'",
    "upper(new.mood::text)",
    "initcap('hello wORLD-x')",
    "left(new.name, 3) || right(new.name, 2) || left(new.name, -4)",
    "substring(new.name, 2, 4)",
    "substr(new.name, 0, 3)",
    "btrim('  x ') || ltrim('xxy', 'x') || rtrim('yxx', 'x')",
    "replace(new.name, 'n', '_')",
    "split_part('a-b-c', '-', 2)",
    "md5(new.name)",
    "new.name like 'Ann%'",
    "new.name not like '%x'",
    "new.name ilike 'ANN%'",
    "coalesce(new.nothing, new.name)",
    "nullif(new.id, 7)",
    "greatest(new.id, 3, null)",
    "least(new.price, 3)",
    "case when new.id > 5 then 'big' when new.id > 1 then 'mid' else 'small' end",
    "case new.mood when 'calm' then 1 else 2 end",
    "new.id in (1, 7)",
    "new.id not in (1, 2)",
    "new.mood = any (array['calm'::mood])",
    "new.id between 3 and 7",
    "new.nothing is null and new.name is not null",
    "new.nothing = 'x' or new.flag",
    "not (new.nothing = 'x')",
    "new.id is distinct from null",
    "new.price = 12.5",
    "new.born > '2024-01-01'",
    "new.flag is true",
    "(new.id, new.name) is distinct from (7, new.name)",
    "array_to_string(new.tags, '+')",
    "array_to_string(new.tags, '+', '?')",
    "new.tags::text",
    "new.counts[2]",
    "array_length(new.tags, 1)",
    "cardinality(new.counts)",
    "array[new.name, 'z']",
    "new.tags || 'more'::text",
    "to_jsonb(new)",
    "to_jsonb(new) - 'doc' - 'plain'",
    "to_jsonb(new) - array['doc', 'plain', 'id']",
    "row_to_json(new)",
    "to_jsonb(new) -> 'price'",
    "to_jsonb(new) ->> 'price'",
    "to_jsonb(new) ->> 'flag'",
    "new.doc ->> 'bb'",
    "new.doc -> 'a' -> 2 ->> 'z'",
    "new.doc #>> '{a,2,z}'",
    "new.doc #> array['a', '0']",
    "jsonb_extract_path_text(new.doc, 'a', '1')",
    "new.doc -> 'missing'",
    "new.doc::text",
    "(new.doc -> 'a')::text",
    "new.doc || '{\"n\": 1}'",
    "new.doc || jsonb_build_object('k', new.id, 'z', new.price)",
    "new.doc @> '{\"bb\": 1.5}'",
    "new.doc ? 'a'",
    "jsonb_set(new.doc, '{bb}', '\"q\"')",
    "jsonb_set('{}'::jsonb, array[new.name], to_jsonb(new.id))",
    "jsonb_typeof(new.doc -> 'a')",
    "jsonb_strip_nulls(jsonb_build_object('a', new.nothing, 'b', new.id))",
    "jsonb_build_object('n', new.name, 'p', new.price, 'f', new.flag, 'x', new.nothing, 't', new.tags, 'd', new.doc)",
    "jsonb_build_array(new.id, new.name, new.nothing)",
    "json_build_object('ip', host(new.address), 'on', new.born)",
    "new.born - date '2024-01-01'",
    "(select jsonb_object_agg(key, value) from jsonb_each(to_jsonb(new))"
    " where value is distinct from to_jsonb(old) -> key)",
    "(select jsonb_object_agg(n.key, jsonb_build_object('old', o.value, 'new', n.value))"
    " from jsonb_each(to_jsonb(new)) n join jsonb_each(to_jsonb(old)) o using (key)"
    " where n.value is distinct from o.value)",
    "(select jsonb_object_agg(n.key, o.value) from jsonb_each(to_jsonb(new)) n"
    " left join jsonb_each(new.doc) o on o.key = n.key)",
    "(select array_agg(key) from jsonb_each(new.doc))",
    "array(select jsonb_object_keys(new.doc))",
    "(select count(*) from jsonb_array_elements(new.doc -> 'a'))",
    "(select string_agg(value, ',') from jsonb_each_text(new.doc - 'a'))",
    "exists (select 1 from jsonb_each(new.doc) where key = 'key')",
    "(select value from jsonb_each_text(new.doc) where key = 'key')",
    "(select jsonb_agg(value) from jsonb_array_elements(new.doc -> 'a'))",
    "(select array_agg(t) from unnest(new.tags) t where t <> 'a')",
    "coalesce((select jsonb_object_agg(key, value) from jsonb_each(new.doc) where false), '{}')",
]


@pytest.fixture
def row(dsn: str) -> tuple[psycopg.Connection[Any], Moment, dict[str, int]]:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(_TABLE)
    text = connection.execute("select to_jsonb(thing)::text from thing").fetchone()
    types = dict(
        connection.execute(
            "select attname::text, atttypid::int from pg_attribute where attrelid = 'thing'::regclass and attnum > 0"
        ).fetchall()
    )
    assert text is not None
    new = decode_json(text[0])
    old = {**new, "id": 6, "name": "Bob"}
    return connection, Moment(new, old, Writer()), types


def test_every_expression_gives_what_the_server_gives(
    row: tuple[psycopg.Connection[Any], Moment, dict[str, int]],
) -> None:
    connection, moment, types = row
    names = {"new": Whole(Side.NEW), "old": Whole(Side.OLD)}
    wrong: list[str] = []
    with connection:
        for text in _EXPRESSIONS:
            value = compile_expression(Reader(names).sql(text), types)(moment)
            (said,) = connection.execute(
                f"select to_jsonb(({text}))::text from thing new,"
                ' (select (jsonb_populate_record(t, \'{"id": 6, "name": "Bob"}\')).* from thing t) old'
            ).fetchone() or (None,)
            expected = None if said is None else decode_json(said)
            if isinstance(value, Unknown | Holes):
                wrong.append(f"{text}: not evaluated, {value!r}")
            elif freeze(to_json(value)) != freeze(expected):
                wrong.append(f"{text}: {to_json(value)!r}, the server says {expected!r}")
    connection.close()
    assert not wrong, "\n".join(wrong)


def test_a_quotient_has_the_digits_that_numeric_gives_it(dsn: str) -> None:
    rng = random.Random(4)
    pairs: list[tuple[Decimal, Decimal]] = []
    for _ in range(400):
        left = Decimal(rng.randint(-(10 ** rng.randint(1, 22)), 10 ** rng.randint(1, 22))).scaleb(-rng.randint(0, 9))
        right = Decimal(rng.randint(1, 10 ** rng.randint(1, 12))).scaleb(-rng.randint(0, 6))
        pairs.append((left, right))
    with psycopg.connect(dsn) as connection:
        said = connection.execute(
            "select (l / r)::text from unnest(%s::numeric[], %s::numeric[]) with ordinality as t (l, r, n) order by n",
            [[left for left, _ in pairs], [right for _, right in pairs]],
        ).fetchall()
    ours = [format(calculate("/", left, right), "f") for left, right in pairs]  # type: ignore[arg-type]
    assert ours == [text for (text,) in said]


def test_unknown_parts_of_a_text_leave_holes_and_the_rest_is_compared() -> None:
    text = "format('%s moved %s from %s', (select name from users where id = 1), 'token', new.status)"
    value = compile_expression(Reader({"new": Whole(Side.NEW)}).sql(text), {"status": 25})(
        Moment({"status": "a"}, None)
    )
    assert isinstance(value, Holes)
    assert value.matches("Ann moved token from a")
    assert not value.matches("Ann moved token from b")
    assert not value.matches("Ann moves token from a")
    assert not value.matches(None)


def test_a_hole_joined_by_bars_may_make_the_whole_null() -> None:
    value = compile_expression(Reader({}).sql("(select name from users) || ' redeems'"), {})(Moment(None, None))
    assert isinstance(value, Holes)
    assert value.matches(None)
    assert value.matches("Ann redeems")
    assert not value.matches("Ann redeemed")


def test_the_actor_comes_from_the_stamped_token_and_without_one_from_the_context() -> None:
    actor = compile_expression(Reader({}).sql("auth.uid()"), {})
    claims = Context(actor_id="app", settings={"request.jwt.claims": '{"sub": "ann", "role": "admin"}'})
    assert actor(Moment(None, None, Writer(claims))) == "ann"
    assert actor(Moment(None, None, Writer(Context(actor_id="app")))) == "app"
    assert isinstance(actor(Moment(None, None, Writer())), Unknown)
    email = compile_expression(Reader({}).sql("(current_setting('request.jwt.claims', true)::json ->> 'role')"), {})
    assert email(Moment(None, None, Writer(claims))) == "admin"


def test_values_land_in_a_column_as_an_insert_stores_them() -> None:
    assert lander(1700, ((10 << 16) | 2) + 4)(Decimal("1.005")) == Exact(Decimal("1.01"))
    assert lander(25, -1)(True) == Exact("true")
    assert lander(25, -1)(Decimal("1.50")) == Exact("1.50")
    assert lander(23, -1)("42") == Exact(Decimal(42))
    assert lander(2950, -1)("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11") == Exact("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
    assert lander(3802, -1)('{"a": 1}') == Document({"a": 1})
    assert isinstance(lander(25, -1)(Holes(("a", None), Why.LOOKUP, False)), Partly)
    assert isinstance(
        lander(3802, -1)(compile_expression(Reader({}).sql("now()"), {})(Moment(None, None))), NotCompared
    )


def test_an_instant_is_the_same_in_every_time_zone() -> None:
    assert freeze("2024-02-29T12:34:56.5+02:00") == freeze("2024-02-29 10:34:56.500+00")
    assert freeze("2024-02-29T12:34:56+02:00") != freeze("2024-02-29T12:34:56+00:00")


def test_truth_and_one_are_not_the_same() -> None:
    assert freeze({"a": True}) != freeze({"a": 1})
    assert freeze({"a": 1}) == freeze({"a": Decimal("1.0")})
