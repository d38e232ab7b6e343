"""before and after are what to_jsonb(row) gives: PostgreSQL is the oracle."""

from __future__ import annotations

import psycopg
import pytest
from capture_rig import capture, changes_of, setup_of
from psycopg import sql

from afterwrite.capture.values import PgType, TypeCatalog, TypeKind
from afterwrite.jsonb import fits_jsonb

# Types, each with values that are awkward for it. Every one is tried alone and as NULL.
AWKWARD: dict[str, list[str]] = {
    "boolean": ["true", "false"],
    "smallint": ["-32768"],
    "integer": ["0", "2147483647"],
    "bigint": ["-9223372036854775808"],
    "oid": ["4294967295"],
    "numeric": ["NaN", "Infinity", "-Infinity", "0", "-0.000", "1e130", "1e-100", "9" * 130, "1.10"],
    "numeric(12,4)": ["12345678.9000"],
    "real": ["NaN", "Infinity", "-Infinity", "1e-30", "3.4028235e38", "0.1", "-0"],
    "double precision": ["NaN", "-Infinity", "1e300", "5e-324", "0.1", "123456789012345680000"],
    "money": ["-1234.56"],
    "text": ["", "plain", 'quote " back \\ slash', "tab\tline\nreturn\r", "\x01\x1f\x7f", "é ☃ 🎉 \u2028", "NULL"],
    "varchar(20)": ["Grüße"],
    "char(6)": ["ab", ""],
    '"char"': ["x", "\\"],
    "name": ["a_name"],
    "bytea": ["\\x", "\\x00ff5c22"],
    "date": ["2026-01-02", "infinity", "-infinity", "0044-03-15 BC", "20000-01-01"],
    "time": ["23:59:59.999999", "24:00:00"],
    "timetz": ["12:00:00+05:30"],
    "timestamp": ["2026-01-02 03:04:05", "2026-01-02 03:04:05.12", "infinity", "0044-03-15 01:02:03 BC", "20000-01-01"],
    "timestamptz": [
        "2026-01-02 03:04:05.123+00",
        "2026-01-02 03:04:05+05:30",
        "-infinity",
        "0044-03-15 01:02:03+00 BC",
        "20000-01-01 00:00:00+00",
    ],
    "interval": ["1 year -2 days 03:04:05.6", "-1 mon"],
    "uuid": ["8d1f4a5c-0000-4000-8000-000000000001"],
    "inet": ["10.0.0.1", "10.0.0.0/8", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(3)": ["101"],
    "bit varying": ["", "1"],
    "json": ['{"b": 1, "a": [1, 2,  {"x": null}], "a": 2}', "null", '"text"', " [ ]\n"],
    "jsonb": ['{"b": 1, "a": [1.50, 2, {"x": null}]}', "null", '"te\\"xt"', "1e10"],
    "xml": ["<a b=\"c\">d &amp; e</a>"],
    "tsvector": ["'a':1A 'it''s':2"],
    "tsquery": ["'a' & !'b'"],
    "point": ["(1,2)"],
    "box": ["(2,2),(1,1)"],
    "path": ["[(0,0),(1,1)]"],
    "circle": ["<(0,0),1>"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "tstzrange": ["[2026-01-01 00:00+00,)"],
    "int4multirange": ["{[1,3),[5,7)}"],
    "pg_lsn": ["16/B374D848"],
    "jsonpath": ["$.a[*]"],
    "int2vector": ["1 2 3"],
    "oidvector": ["1 2"],
    "integer[]": ["{}", "{1,NULL,-3}", "{{1,2},{3,NULL}}", "[0:1]={5,6}", "[-1:0][2:3]={{1,2},{3,4}}"],
    "numeric[]": ["{NaN,1.50,Infinity}"],
    "boolean[]": ["{t,f,NULL}"],
    "text[]": ["{}", '{"",NULL,"NULL",null,"a b","a,b","{}","q\\"q","b\\\\s"}', '{{"a","b,c"},{"d",NULL}}', "{é}"],
    "timestamptz[]": ['{"2026-01-02 03:04:05+00",infinity}'],
    "date[]": ["{2026-01-02,NULL}"],
    "bytea[]": ['{"\\\\x00ff",NULL}'],
    "uuid[]": ["{8d1f4a5c-0000-4000-8000-000000000001}"],
    "jsonb[]": ['{"{\\"a\\": [1, 2]}",NULL,"[]"}'],
    "box[]": ["{(2,2),(1,1);(4,4),(3,3)}"],
    "point[]": ['{"(1,2)"}'],
    "int4range[]": ['{"[1,5)",empty}'],
    "mood": ["sad", "very 'happy'"],
    "mood[]": ["{sad,NULL}"],
    "positive": ["7"],
    "positive[]": ["{1,2}"],
    "labels": ["{a,NULL}"],
    "stamp": ["2026-01-02 03:04:05"],
    "part": ['(1,"a ""quoted"" b",)', "(,,)", '(2,"","2026-01-02 03:04:05+00")', '(3,"back \\\\ slash, comma)",)'],
    "part[]": ['{"(1,\\"a b\\",)",NULL,"(2,\\"x\\"\\"y\\",\\"2026-01-02 03:04:05+00\\")"}'],
    "whole": ['("(1,x,)","{1,NULL}","{""k"": [1, ""v""]}",sad,t)'],
    "small_part": ["(1,a,)"],
    "hstore": ['a=>1, "b c"=>NULL, "q\\"q"=>"x\\\\y"', ""],
    "hstore[]": ['{"\\"a\\"=>\\"1\\""}'],
    "citext": ["MiXed"],
    "citext[]": ["{MiXed}"],
    "ltree": ["a.b.c"],
}  # fmt: skip

TYPES = """
    create extension hstore;
    create extension citext;
    create extension ltree;
    create type mood as enum ('sad', 'very ''happy''');
    create domain positive as integer check (value > 0);
    create domain labels as text[];
    create domain stamp as timestamp;
    create type part as (id integer, "the name" text, at timestamptz);
    create type whole as (inner_part part, numbers integer[], doc jsonb, feeling mood, yes boolean);
    create domain small_part as part check ((value).id < 10);
"""


def types_of(connection: psycopg.Connection) -> dict[str, list[str]]:
    """Those of AWKWARD that this server is built with."""
    try:
        connection.execute("select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return {name: values for name, values in AWKWARD.items() if name != "xml"}
    return AWKWARD


def jsonb_equal(connection: psycopg.Connection, pairs: list[tuple[bytes, str]]) -> list[int]:
    """Indexes of the pairs that PostgreSQL calls different."""
    rows = connection.execute(
        "select i - 1 from unnest(%s::text[], %s::text[]) with ordinality as p (ours, theirs, i)"
        " where ours::jsonb is distinct from theirs::jsonb",
        [[ours.decode() for ours, _ in pairs], [theirs for _, theirs in pairs]],
    ).fetchall()
    return [index for (index,) in rows]


def test_every_type_gives_what_to_jsonb_gives(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TYPES)
        types = types_of(connection)
        columns = [f"c{index}" for index in range(len(types))]
        definitions = ", ".join(f"{name} {type_name}" for name, type_name in zip(columns, types, strict=True))
        connection.execute(f"create table wide (id serial primary key, {definitions})")

    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into wide default values")
        for name, (type_name, values) in zip(columns, types.items(), strict=True):
            for value in values:
                connection.execute(f"insert into wide ({name}) values (%s::text::{type_name})", [value])

    changes = changes_of(capture(dsn, setup_of("wide"), work))
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute("select to_jsonb(w)::text, w.id from wide w order by id").fetchall()
        assert len(rows) == len(changes) == 1 + sum(map(len, types.values()))
        pairs = [(change.after or b"", text) for change, (text, _) in zip(changes, rows, strict=True)]
        wrong = jsonb_equal(connection, pairs)
    assert not [(pairs[index][0][:300], pairs[index][1][:300]) for index in wrong]
    assert [change.key for change in changes] == [str(id) for _, id in rows]


def test_the_session_of_the_role_does_not_reach_the_values(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        database = connection.info.dbname
        for name, value in {
            "TimeZone": "Asia/Kolkata",
            "DateStyle": "SQL, DMY",
            "IntervalStyle": "iso_8601",
            "bytea_output": "escape",
            "extra_float_digits": "-5",
        }.items():
            connection.execute(
                sql.SQL("alter database {} set {} = {}").format(
                    sql.Identifier(database), sql.Identifier(name), sql.Literal(value)
                )
            )
        connection.execute(
            "create table t (id int primary key, at timestamptz, on_day date, f float8, b bytea, i interval)"
        )
    row = "(1, '2026-01-02 03:04:05+00', '2026-01-02', 0.1::float8 + 0.2::float8, '\\x00ff', '1 day 02:03:04')"
    (change,) = changes_of(
        capture(dsn, setup_of("t"), lambda connection: connection.execute(f"insert into t values {row}"))
    )
    assert change.after == (
        b'{"id":1,"at":"2026-01-02T03:04:05+00:00","on_day":"2026-01-02","f":0.30000000000000004,'
        b'"b":"\\\\x00ff","i":"1 day 02:03:04"}'
    )


def test_a_char_beyond_ascii_is_told_as_newer_servers_tell_it(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute('create table t (id int primary key, c "char", cs "char"[])')
    (change,) = changes_of(
        capture(dsn, setup_of("t"), lambda connection: connection.execute("insert into t values (1, 'é', '{é,x}')"))
    )
    assert change.after == rb'{"id":1,"c":"\\303","cs":["\\303","x"]}'


def test_json_that_jsonb_cannot_hold_is_kept_as_its_text(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table t (id int primary key, doc json)")
    documents = ['{"a": "\\u0000"}', '["\\ud83d"]', "1e400000", '{"fine": "\\\\u0000 \\ud83d\\ude00"}', "[1e-400000]"]

    def work(connection: psycopg.Connection) -> None:
        for index, document in enumerate(documents):
            connection.execute("insert into t values (%s, %s::text::json)", [index, document])

    changes = changes_of(capture(dsn, setup_of("t"), work))
    with psycopg.connect(dsn, autocommit=True) as connection:
        for change, document in zip(changes, documents, strict=True):
            assert change.after is not None
            (kind, text) = connection.execute(
                "select jsonb_typeof(%(row)s::jsonb -> 'doc'), %(row)s::jsonb ->> 'doc'", {"row": change.after.decode()}
            ).fetchone() or ("", "")
            if "fine" in document:
                assert kind == "object"
            else:
                assert (kind, text) == ("string", document)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (rb'{"a": 1}', True),
        (rb'"\u0041"', True),
        (rb'"\\u0000"', True),
        (rb'"\\\u0000"', False),
        (rb'{"\u0000": 1}', False),
        (rb'{"a": "\u0000", "a": 1}', False),
        (rb'"\ud800"', False),
        (rb'"\ud83d\ude00"', True),
        (b"1e9999", True),
        (b"1e999999", False),
        (b"1" * 140_000, False),
    ],
)
def test_what_fits_jsonb(text: bytes, fits: bool) -> None:
    assert fits_jsonb(text) is fits


def test_a_composite_that_was_altered_since_is_kept_as_text() -> None:
    catalog = TypeCatalog({90_000: PgType(90_000, TypeKind.COMPOSITE, fields=(("a", 23),))})
    assert catalog.encoder(90_000)(b"(1)") == b'{"a":1}'
    assert catalog.encoder(90_000)(b"(1,2)") == b'"(1,2)"'


def test_a_type_nobody_knows_is_text() -> None:
    catalog = TypeCatalog()
    assert catalog.unknown([23, 1009, 90_000]) == [90_000]
    assert catalog.encoder(90_000)(b'x"y') == b'"x\\"y"'


def test_text_of_another_encoding_does_not_stop_the_stream() -> None:
    assert TypeCatalog().encoder(25)(b"caf\xe9") == b'"caf\\\\xe9"'
