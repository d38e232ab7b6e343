"""Tables and rows that nobody chose, of every type: before and after are what PostgreSQL's to_jsonb(row) says.

AFTERWRITE_TEST_VALUES is how many tables are tried; the default is for every day.
"""

from __future__ import annotations

import json
import os
from datetime import datetime

import msgspec
import psycopg
from capture_rig import drain, install, setup_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from afterwrite.capture.transaction import Change

EXAMPLES = int(os.environ.get("AFTERWRITE_TEST_VALUES", "90"))
ROWS = 25

# What one type's input function reads; a composed type's is composed of its parts'.
Text = st.SearchStrategy[str]

CHARACTERS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.text(alphabet="{}\",\\() \t\n\r\v\f'NULnul[]=>:;%\x01\x1f\x7f\x85\xa0\u2028é🎉0", max_size=12),
    st.sampled_from(
        ["", "NULL", "null", "\\N", "\\u0000", "\\.", "{}", "()", '"', "\\", "\U0010ffff", "\ufeff", "a" * 5000]
    ),
)
SMALL = st.integers(-9, 99).map(str)
NUMERIC = st.one_of(
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "0", "-0.000", "1e130", "-1e-130", "9" * 130, "1.10", "1e-16383", "1e1000"]
    ),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.from_regex(r"\A-?[0-9]{1,40}(\.[0-9]{1,40})?\Z"),
)
FLOAT8 = st.one_of(
    st.floats().map(repr),
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1e308", "-1.7976931348623157e308", "1e15", "1e16"]
    ),
)
FLOAT4 = st.one_of(
    st.floats(width=32).map(repr), st.sampled_from(["NaN", "-Infinity", "-0", "1e-45", "3.4028235e38", "1e6", "1e7"])
)


def finite(strategy: Text) -> Text:
    return strategy.filter(lambda text: text.lower() not in {"nan", "inf", "-inf", "infinity", "-infinity"})


YEARS = st.one_of(st.integers(1, 9999), st.integers(10_000, 250_000), st.integers(1, 4700).map(lambda year: -year))


def _date(year: int, month: int, day: int, rest: str = "") -> str:
    return f"{abs(year):04d}-{month:02d}-{day:02d}{rest}{' BC' if year < 0 else ''}"


TIME = st.builds(
    lambda h, m, s, u: f"{h:02d}:{m:02d}:{s:02d}" + (f".{u:06d}" if u else ""),
    st.integers(0, 23),
    st.integers(0, 59),
    st.integers(0, 59),
    st.sampled_from([0, 0, 1, 100_000, 999_999]) | st.integers(0, 999_999),
)
ZONE = st.builds(
    lambda sign, h, m: f"{sign}{h:02d}:{m:02d}", st.sampled_from("+-"), st.integers(0, 14), st.sampled_from([0, 30, 45])
)
MONTHS, DAYS = st.integers(1, 12), st.integers(1, 28)
FOREVER = st.sampled_from(["infinity", "-infinity"])
DATE = FOREVER | st.builds(_date, YEARS, MONTHS, DAYS)
TIMESTAMP = FOREVER | st.builds(_date, YEARS, MONTHS, DAYS, TIME.map(lambda time: f" {time}"))
TIMESTAMPTZ = FOREVER | st.builds(
    _date, YEARS, MONTHS, DAYS, st.builds(lambda time, zone: f" {time}{zone}", TIME, ZONE)
)
INTERVAL = st.builds(
    lambda parts, time: " ".join([*(f"{count} {unit}" for unit, count in parts.items()), time]),
    st.dictionaries(st.sampled_from(["years", "mons", "days"]), st.integers(-999, 999)),
    st.builds(str.__add__, st.sampled_from(["", "-"]), TIME),
)
JSON_LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    CHARACTERS,
)
JSON_VALUE = st.recursive(
    JSON_LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(CHARACTERS, inner, max_size=4), max_leaves=12
)
JSON = st.one_of(
    st.builds(
        lambda value, indent, plain: json.dumps(value, indent=indent, ensure_ascii=plain),
        JSON_VALUE,
        st.sampled_from([None, 1]),
        st.booleans(),
    ),
    st.sampled_from(
        [
            '{"b": 1, "a": [1, 2,  {"x": null}], "a": 2}',
            " [ ]\n",
            "null",
            "1.500",
            "-0",
            "-0.0",
            "1E+5",
            "1e1000",
            "0e999999",
            "1e-1000",
            "0.0001e131070",
            '"\\ud83d\\ude00 \\/ \\u2028 \\b"',
            "9" * 5000,
            "[" * 900 + "]" * 900,
            "[" * 1200 + '"\\u0041"' + "]" * 1200,
            '{"":{"":{}}}',
        ]
    ),
)
COORDINATE = finite(st.floats(-1e9, 1e9).map(repr)) | st.sampled_from(["0", "-1", "1e300", "1e-300", "NaN", "Infinity"])
POINT = st.builds("({},{})".format, COORDINATE, COORDINATE)
STEADY = st.integers(-9, 9).map(str)
STEADY_POINT = st.builds("({},{})".format, STEADY, STEADY)
OCTET = st.integers(0, 255)
INET4 = st.builds("{}.{}.{}.{}".format, OCTET, OCTET, OCTET, OCTET)
INET6 = st.ip_addresses(v=6).map(str)
LEXEME = st.text("abcé'\\ :,&|!()", min_size=1, max_size=5).map(
    lambda word: "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"
)
TSVECTOR = st.lists(st.builds(str.__add__, LEXEME, st.sampled_from(["", ":1", ":2A,3B", ":16383C"])), max_size=4).map(
    " ".join
)
TSQUERY = st.recursive(
    LEXEME | LEXEME.map(lambda word: word + ":*AB"),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["&", "|", "<->", "<3>"]), inner)
        | inner.map(lambda query: f"!{query}")
    ),
    max_leaves=4,
)
BITS = st.text("01", max_size=20)
XML = st.builds(
    '<{0} b="{1}">{1}<c/></{0}>'.format,
    st.sampled_from(["a", "é"]),
    CHARACTERS.filter(lambda text: text.isprintable() and not set(text) & set('<>&"\\\ufeff')),
) | st.sampled_from(["plain &amp; content", "<a><![CDATA[<&>]]></a>", '<?xml version="1.0" encoding="UTF-8"?><a/>', ""])
LABEL = st.text("abc_9", min_size=1, max_size=5)
HSTORE = st.lists(
    st.builds(
        lambda key, value: f"{_quoted(key)}=>{'NULL' if value is None else _quoted(value)}",
        CHARACTERS,
        st.none() | CHARACTERS,
    ),
    max_size=4,
).map(", ".join)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def array_of(element: Text, delimiter: str = ",") -> Text:
    """Array text: of one dimension to three, with NULLs, with lower bounds, empty."""
    value = st.none() | element

    def literal(sizes: tuple[int, ...], lowers: tuple[int, ...] | None, pool: list[str | None]) -> str:
        taken = iter(range(10**6))

        def build(depth: int) -> str:
            if depth == len(sizes):
                chosen = pool[next(taken) % len(pool)]
                return "NULL" if chosen is None else _quoted(chosen)
            return "{" + delimiter.join(build(depth + 1) for _ in range(sizes[depth])) + "}"

        bounds = (
            "".join(f"[{low}:{low + size - 1}]" for low, size in zip(lowers, sizes, strict=False)) if lowers else ""
        )
        return f"{bounds}={build(0)}" if bounds else build(0)

    return st.just("{}") | st.builds(
        literal,
        st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
        st.none() | st.tuples(*[st.integers(-3, 3)] * 3),
        st.lists(value, min_size=1, max_size=6),
    )


def row_of(*fields: Text) -> Text:
    """Row text: every field quoted, or nothing for a null."""

    def literal(values: tuple[str | None, ...]) -> str:
        parts = [
            "" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '""') + '"' for value in values
        ]
        return f"({','.join(parts)})"

    return st.tuples(*[st.none() | field for field in fields]).map(literal)


def range_of(element: st.SearchStrategy[object], show: str = "{}") -> Text:
    def literal(bounds: list[object], start: str, end: str, open_start: bool, open_end: bool) -> str:
        low, high = (_quoted(show.format(bound)) for bound in sorted(bounds))  # type: ignore[type-var]
        return f"{start}{'' if open_start else low},{'' if open_end else high}{end}"

    return st.just("empty") | st.builds(
        literal,
        st.lists(element, min_size=2, max_size=2),
        st.sampled_from("[("),
        st.sampled_from("])"),
        st.booleans(),
        st.booleans(),
    )


def multirange_of(inner: Text) -> Text:
    return st.lists(inner, max_size=3).map(lambda ranges: "{" + ",".join(ranges) + "}")


INT_RANGE = range_of(st.integers(-99, 99))
TEXT_RANGE = range_of(st.sampled_from(["", "a", "a,b", 'a"b', "a\\b", "b)", "c c"]))
STAMP_RANGE = range_of(st.datetimes(datetime(1, 1, 2), datetime(9999, 1, 1)), "{}+00")  # noqa: DTZ001
MOOD = st.sampled_from(["sad", "very 'happy'", 'a,b"c\\d', "é", "NULL"])
PART = row_of(SMALL, CHARACTERS, TIMESTAMPTZ)
OIDS = st.integers(0, 2**32 - 1).map(str)

SCALARS: dict[str, Text] = {
    "boolean": st.sampled_from(["true", "false"]),
    "smallint": st.integers(-(2**15), 2**15 - 1).map(str),
    "integer": st.integers(-(2**31), 2**31 - 1).map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "oid": OIDS,
    "numeric": NUMERIC,
    "numeric(12,4)": st.decimals(-99999999, 99999999, places=4).map(str),
    "numeric(3,0)": st.integers(-999, 999).map(str),
    "real": FLOAT4,
    "double precision": FLOAT8,
    "money": st.decimals("-92233720368547758.08", "92233720368547758.07", places=2).map(str),
    "text": CHARACTERS,
    "varchar": CHARACTERS,
    "varchar(20)": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    "char(6)": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
    "char": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=1),
    '"char"': st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=1),
    "name": st.text("aé\"\\ '%", max_size=30),
    "bytea": st.binary(max_size=20).map(lambda raw: "\\x" + raw.hex()),
    "date": DATE,
    "time": TIME | st.just("24:00:00"),
    "timetz": st.builds(str.__add__, TIME, ZONE),
    "timestamp": TIMESTAMP,
    "timestamp(0)": TIMESTAMP,
    "timestamptz": TIMESTAMPTZ,
    "interval": INTERVAL,
    "interval day to second(3)": INTERVAL,
    "uuid": st.uuids().map(str),
    "inet": INET4
    | INET6
    | st.builds("{}/{}".format, INET4, st.integers(0, 32))
    | st.builds("{}/{}".format, INET6, st.integers(0, 128)),
    "cidr": st.builds("{}.{}.0.0/16".format, OCTET, OCTET) | INET6,
    "macaddr": st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
    "macaddr8": st.binary(min_size=8, max_size=8).map(lambda raw: raw.hex(":")),
    "bit(3)": st.text("01", min_size=3, max_size=3),
    "bit varying": BITS,
    "json": JSON,
    "jsonb": JSON,
    "xml": XML,
    "tsvector": TSVECTOR,
    "tsquery": TSQUERY,
    "point": POINT,
    "line": st.builds("{{{},{},{}}}".format, STEADY, st.integers(1, 9), STEADY),
    "lseg": st.builds("[{},{}]".format, STEADY_POINT, POINT),
    "box": st.builds("({},{})".format, STEADY_POINT, STEADY_POINT),
    "path": st.lists(STEADY_POINT, min_size=1, max_size=4).map(lambda points: f"[{','.join(points)}]"),
    "polygon": st.lists(STEADY_POINT, min_size=1, max_size=4).map(lambda points: f"({','.join(points)})"),
    "circle": st.builds("<{},{}>".format, POINT, st.integers(0, 9)),
    "int4range": INT_RANGE,
    "int8range": INT_RANGE,
    "numrange": range_of(st.decimals(-99, 99, places=3)),
    "daterange": range_of(st.dates()),
    "tsrange": range_of(st.datetimes(datetime(1, 1, 2), datetime(9999, 1, 1))),  # noqa: DTZ001
    "tstzrange": STAMP_RANGE,
    "textrange": TEXT_RANGE,
    "int4multirange": multirange_of(INT_RANGE),
    "tstzmultirange": multirange_of(STAMP_RANGE),
    "textmultirange": multirange_of(TEXT_RANGE),
    "pg_lsn": st.builds("{:X}/{:X}".format, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    "xid": OIDS,
    "cid": OIDS,
    "tid": st.builds("({},{})".format, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)),
    "xid8": st.integers(0, 2**64 - 1).map(str),
    "pg_snapshot": st.builds("{}:{}:".format, st.integers(1, 9), st.integers(10, 99)),
    "jsonpath": st.sampled_from(
        ["$", "$.a[*] ? (@.b > 1)", 'strict $."a b"', '$ ? (@ like_regex "^\\\\d+$")', 'lax $."é"[last]']
    ),
    "int2vector": st.lists(st.integers(-99, 99).map(str), max_size=4).map(" ".join),
    "oidvector": st.lists(OIDS, max_size=4).map(" ".join),
    "regclass": st.sampled_from(
        ["pg_class", "pg_catalog.pg_type", "4294967295", "-", "public.odd_name", 'public."Od ""d"']
    ),
    "regtype": st.sampled_from(["integer", "timestamptz", "text[]", "public.mood", "public.part[]", "-"]),
    "regproc": st.sampled_from(["pg_catalog.now", "-", "0", "4294967290"]),
    "regprocedure": st.sampled_from(["pg_catalog.abs(numeric)", "-"]),
    "regoper": st.sampled_from(["pg_catalog.||/", "0"]),
    "regrole": st.sampled_from(["postgres", "pg_monitor", "-"]),
    "regnamespace": st.sampled_from(["pg_catalog", "public", "-"]),
    "regconfig": st.sampled_from(["english", "simple", "-"]),
    "refcursor": CHARACTERS,
    "txid_snapshot": st.builds("{}:{}:".format, st.integers(1, 9), st.integers(10, 99)),
    "aclitem": st.sampled_from(["postgres=arwd/postgres", "=r/postgres"]),
    "mood": MOOD,
    "positive": st.integers(1, 99).map(str),
    "positive_too": st.integers(1, 99).map(str),
    "labels": array_of(CHARACTERS),
    "stamp": TIMESTAMP,
    "flag": st.sampled_from(["true", "false"]),
    "document": JSON,
    "part": PART,
    "small_part": row_of(SMALL, CHARACTERS, TIMESTAMPTZ),
    "other_table": row_of(SMALL, CHARACTERS),
    "single": row_of(CHARACTERS),
    "hollow": st.just("()"),
    "whole": row_of(PART, array_of(SMALL), JSON, MOOD, st.sampled_from(["t", "f"]), array_of(PART), HSTORE, CHARACTERS),
    "hstore": HSTORE,
    "citext": CHARACTERS,
    "ltree": st.lists(LABEL, max_size=3).map(".".join),
    "lquery": st.sampled_from(["*.a.*{1,2}", "a|b.!c*"]),
    "cube": st.sampled_from(["(1,2,3)", "(0.1),(5e300)"]),
    "seg": st.sampled_from(["1.5 .. 2", "<3", "~4.0"]),
    "isbn13": st.just("978-0-393-04002-9"),
}
# Domains over composites and arrays of every type are made from these.
UNARRAYED = {"aclitem", "hollow", "pg_snapshot", "txid_snapshot"}
TYPES = {
    **SCALARS,
    **{
        f"{name}[]": array_of(text, ";" if name == "box" else ",")
        for name, text in SCALARS.items()
        if name not in UNARRAYED
    },
}

UNIVERSE = """
    create extension hstore; create extension citext; create extension ltree; create extension cube;
    create extension seg; create extension isn;
    create table odd_name (id int); create table "Od ""d" (id int);
    create table other_table (gone int, id int, "select" text default 'x'); alter table other_table drop column gone;
    create type mood as enum ('sad', 'very ''happy''', 'a,b"c\\d', 'é', 'NULL');
    create domain positive as integer check (value > 0);
    create domain positive_too as positive check (value < 100);
    create domain labels as text[];
    create domain stamp as timestamp;
    create domain flag as boolean;
    create domain document as json;
    create type part as (id integer, "the ""name" text, at timestamptz);
    create domain small_part as part check ((value).id < 100);
    create type single as (lone text);
    create type hollow as ();
    create type whole as
        (inner_part part, numbers integer[], doc json, feeling mood, yes boolean, parts part[], h hstore, "é%b" citext);
    alter type whole add attribute gone int; alter type whole drop attribute gone;
    create type textrange as range (subtype = text, collation = "C", multirange_type_name = textmultirange);
"""
# What the values' JSON depends on in a session, as the stream sets it; the writers' sessions have these otherwise.
PLAIN_SESSION = (
    "set timezone to 'UTC'; set datestyle to 'ISO, MDY'; set intervalstyle to 'postgres'; set bytea_output to 'hex';"
    " set extra_float_digits to 1; set search_path to pg_catalog"
)
SESSIONS = {
    "timezone": ["UTC", "Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati", "-03:30"],
    "datestyle": ["ISO, MDY", "ISO, YMD"],
    "intervalstyle": ["postgres", "postgres_verbose", "sql_standard", "iso_8601"],
    "bytea_output": ["hex", "escape"],
    "extra_float_digits": ["1", "-5", "3"],
}


def supported(connection: psycopg.Connection) -> list[str]:
    """The types that this server is built with."""
    with connection.transaction(force_rollback=True):
        try:
            connection.execute("select '<a/>'::xml")
        except psycopg.errors.FeatureNotSupported:
            return [name for name in TYPES if not name.startswith("xml")]
    return list(TYPES)


class Trial(msgspec.Struct):
    """One table, what goes into it, and how the writing session is set."""

    types: list[str]
    rows: list[list[str | None]]
    session: dict[str, str]


def trials(names: list[str]) -> st.SearchStrategy[Trial]:
    def with_rows(types: list[str]) -> st.SearchStrategy[Trial]:
        row = st.tuples(*[st.none() | TYPES[name] for name in types]).map(list)
        return st.builds(
            Trial,
            types=st.just(types),
            rows=st.lists(row, min_size=ROWS, max_size=ROWS),
            session=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SESSIONS.items()}),
        )

    return st.lists(st.sampled_from(names), min_size=3, max_size=10).flatmap(with_rows)


class Bench:
    """A slot that is read again and again, each time from where the last reading ended."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.setup = setup_of("public.nothing")
        self.rows = 0
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(UNIVERSE)
            connection.execute("create table nothing (id int primary key)")
            self.names = supported(connection)
        self.sink, _ = install(dsn, self.setup)
        self.table = 0

    def read(self) -> list[Change]:
        transactions = drain(self.dsn, self.setup, self.sink)
        assert self.sink.checkpoint is not None
        if transactions:
            self.sink.checkpoint = msgspec.structs.replace(self.sink.checkpoint, lsn=transactions[-1].end_lsn)
        return [change for transaction in transactions for change in transaction.changes]

    def create(self, connection: psycopg.Connection, types: list[str], *, full: bool) -> sql.Identifier:
        self.table += 1
        table = sql.Identifier("public", f"t{self.table}")
        connection.execute("set search_path to public, pg_catalog")
        columns = ", ".join(f"c{index} {name}" for index, name in enumerate(types))
        connection.execute(sql.SQL("create table {} (id serial primary key, {})").format(table, sql.SQL(columns)))  # type: ignore[arg-type]
        if full:
            connection.execute(sql.SQL("alter table {} replica identity full").format(table))
        connection.execute(sql.SQL("alter publication afterwrite add table {}").format(table))
        return table


def differing(connection: psycopg.Connection, pairs: list[tuple[bytes, str]]) -> list[tuple[bytes, str]]:
    """Those pairs that are not one jsonb: 1.0 and 1.00 differ too."""
    rows = connection.execute(
        "select i - 1 from unnest(%s::text[], %s::text[]) with ordinality as p (ours, theirs, i)"
        " where ours::jsonb is distinct from theirs::jsonb or ours::jsonb::text <> theirs::jsonb::text",
        [[ours.decode() for ours, _ in pairs], [theirs for _, theirs in pairs]],
    ).fetchall()
    return [pairs[index] for (index,) in rows]


def test_generated_rows_of_every_type_are_what_to_jsonb_says(dsn: str) -> None:
    bench = Bench(dsn)
    with psycopg.connect(dsn, autocommit=True) as writer, psycopg.connect(dsn, autocommit=True) as oracle:
        oracle.execute(PLAIN_SESSION)

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(trials(bench.names), st.booleans())
        def check(trial: Trial, full: bool) -> None:
            for name, value in trial.session.items():
                writer.execute("select set_config(%s, %s, false)", [name, value])
            table = bench.create(writer, trial.types, full=full)
            try:
                with writer.transaction():
                    places = sql.SQL(", ").join(
                        sql.SQL("{}::" + name).format(sql.Placeholder())
                        for name in trial.types  # type: ignore[arg-type]
                    )
                    columns = sql.SQL(", ").join(sql.Identifier(f"c{index}") for index in range(len(trial.types)))
                    insert = sql.SQL("insert into {} ({}) values ({})").format(table, columns, places)
                    with writer.cursor() as cursor:
                        cursor.executemany(insert, trial.rows)
                said = sql.SQL("select to_jsonb(t)::text from {} as t order by id").format(table)
                expected = [text for (text,) in oracle.execute(said)]
                writer.execute(sql.SQL("delete from {}").format(table))
                changes = bench.read()
            finally:
                writer.execute(sql.SQL("drop table {}").format(table))
            half = len(changes) // 2
            assert half == len(expected) == len(trial.rows)
            pairs = [(change.after or b"", text) for change, text in zip(changes[:half], expected, strict=True)]
            if full:
                pairs += [(change.before or b"", text) for change, text in zip(changes[half:], expected, strict=True)]
            assert not differing(oracle, pairs)
            bench.rows += half

        check()
    assert bench.rows == EXAMPLES * ROWS
