"""A query answers the same in Python and in PostgreSQL: for whatever activity, whatever line, by an index or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from psycopg.rows import kwargs_row

from afterwrite.postgres import connect
from afterwrite.record import Activity, Kind, Level, Lsn, Operation, Outcome
from afterwrite.search import words
from afterwrite.search.compile import compile_query
from afterwrite.search.query import Query, QueryError, Term, parse
from afterwrite.store.lines import storable
from afterwrite.store.reader import StoredActivity, stored_activity
from afterwrite.store.schema import install_store

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
WORDS = (
    "user", "User", "USER", "user:42", "user:4", "gold", "token", "gold token", "gold-token", "Équipe", "équipe",
    "ÉQUIPE",
    "e\u0301quipe", "договор", "Договор", "straße", "İstanbul", "jane@example.com", "12.50", "12", "50%", "a_b",
    "a%b", "a\\b", "O'Neil",
    'say "hi"', "a,b", "x*", "*", "-x", "日本", "→", "l’équipe", "«gold»", "user.login", "project", "project/7", "7",
    "status",
    "in_review", "0195a000", "true", "null", "1", "1.0", "1e2", "100", "-0", ":failure", "\u3000gold", "tab\there", "",
)  # fmt: skip
texts = st.sampled_from(WORDS) | st.text(max_size=8) | st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
maybe = st.none() | texts
names = st.sampled_from(("plan", "a", "A", "b.c", "tags", "0", "1", "-1", "naïve", 'q"t', "é", "x y", "a,b"))
scalars = (
    st.none()
    | st.booleans()
    | texts
    | st.integers(-5, 1_000)
    | st.sampled_from((1.0, 0.5, 1e2, 1e20, 1e-7, 2.50, -0.0))
)
jsons = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
).map(msgspec.json.encode) | st.sampled_from(
    (b'{"a":1E2}', b'{"a":-0}', b'{"a":-0.00}', b'{"a":1.50}', b'{"a":1,"a":2}', b'{"a":{"b":1},"a":{"plan":2}}',
    b"5", b'"gold"',
     b'{"a":"\\u00e9"}', b'{"a":"\\ud83d\\ude00"}', b'{"a":[1,[1],{"b":1},null,"gold"]}', b'{"":"gold"}',
     b'{"a":12.5e-1}')
)  # fmt: skip
raw = st.none() | jsons.map(msgspec.Raw)
ips = st.sampled_from(
    (None, "10.0.0.1", "10.0.0.1/24", "10.1.2.3", "::1", "::ffff:10.0.0.1", "2001:db8::7", "192.168.0.0/16")
)
ids = st.uuids(version=4).map(str) | st.just("0195a000-0000-7000-8000-000000000001")

activities = st.builds(
    Activity,
    id=ids,
    occurred_at=st.integers(-400, 4).map(lambda hours: NOW + timedelta(hours=hours, microseconds=hours)),
    source=texts,
    kind=st.just(Kind.CHANGE) | st.just(Kind.EVENT),
    category=st.just("data") | texts,
    action=texts,
    outcome=st.sampled_from(Outcome),
    severity=st.sampled_from(Level),
    entity_type=maybe,
    entity_id=maybe,
    actor_id=maybe,
    actor_type=maybe,
    tenant_id=maybe,
    session_id=maybe,
    request_id=maybe,
    trace_id=maybe,
    ip=ips,
    summary=maybe | st.text(min_size=480, max_size=520),
    relation=st.sampled_from(("public.users", 'sales."Odd ""x"" Name"', "public.user", "gold")),
    operation=st.sampled_from(Operation),
    changed=st.none() | st.lists(st.sampled_from(("status", "Status", "a_b", "gold", 'q"', "", "naïve")),
    max_size=3).map(tuple),
    before=raw,
    after=raw,
    metadata=raw,
    caused_by=st.none() | ids,
    xid=st.just(1),
    commit_lsn=st.just(Lsn(1)),
    ordinal=st.just(0),
)  # fmt: skip


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


TEXT_KEYS = (
    "actor", "actor_type", "action", "category", "source", "tenant", "session", "request", "trace", "changed",
    "table", "entity",
)  # fmt: skip


@st.composite
def lines(draw: st.DrawFn, activity: Activity) -> str:
    """Lines of which many are true of this activity, or nearly so."""
    own = [value for value in msgspec.structs.asdict(activity).values() if isinstance(value, str) and value]

    def value() -> str:
        text = draw(st.sampled_from([*own, *WORDS]) | texts)
        if draw(st.booleans()) and text:
            text = text[: draw(st.integers(1, len(text)))]
        return quoted(text) + draw(st.sampled_from(("", "*")))

    def key(name: str) -> str:
        column = {"table": "relation", "entity": "entity_type"}.get(name, name)
        own = str(getattr(activity, column, None) or getattr(activity, f"{name}_id", None) or "")
        if name == "changed":
            own = next(iter(activity.changed or ()), "")
        if name == "entity" and activity.entity_type and activity.entity_id and draw(st.integers(0, 2)):
            own = f"{activity.entity_type}/{activity.entity_id}"
        cut = draw(st.integers(0, 4))
        mine = value() if not own or cut == 0 else quoted(own) if cut < 4 else f"{quoted(own[:3])}*"
        return f"{name}:{mine}" + (f",{value()}" if draw(st.booleans()) else "")

    def path() -> str:
        return ".".join(quoted(draw(names)) for _ in range(draw(st.integers(1, 2))))

    terms: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.integers(0, 7)):
            case 0 | 1:
                term = key(draw(st.sampled_from(TEXT_KEYS)))
            case 2 | 3:
                term = value()
            case 4:
                scalar = draw(
                    st.sampled_from(("1", "100", "1.50", "true", "null", "gold", "0", "*", "1*", "2", "-0", "1.25"))
                )
                column = draw(st.sampled_from(("metadata", "metadata", "before", "after")))
                term = f"{column}.{path()}:{draw(st.just(scalar) | st.just(value()))}"
            case 5:
                term = "ip:" + draw(
                    st.sampled_from(("10.0.0.1", "10.0.0.0/8", "10.0.0.1/24", "::1", "::/0", "*", "0.0.0.0/0"))
                )
            case 6:
                moment = draw(
                    st.sampled_from(
                        ("2026-11-20", "2026-11-23T10:00", "yesterday", "7d", "2026-11", "2026-11-10T05+05:30")
                    )
                )
                moment_key = draw(st.sampled_from(("after", "before", "at")))
                term = f"{moment_key}:{'2026-11-20' if moment_key == 'at' and moment == '7d' else moment}"
            case _:
                term = draw(
                    st.sampled_from((
                        "outcome:failure", "outcome:success", "severity:warning,error", "kind:change",
                        "operation:update,delete",
                        f"id:{activity.id}", "caused_by:*", "actor:*", "entity:*", "category:data",
                        "severity:info,debug",
                        f"caused_by:{activity.id}", f"{activity.id}",
                    ))
                )  # fmt: skip
        terms.append(("-" if draw(st.integers(0, 4)) == 0 else "") + term)
    return " ".join(terms)


@pytest.fixture(scope="module")
def connection(server: object) -> Iterator[psycopg.Connection]:
    """One transaction in a store of its own: what is put in is taken out again."""
    with own_store(server, "afterwrite_answers") as connection:
        yield connection


@contextmanager
def own_store(server: object, name: str) -> Iterator[psycopg.Connection]:
    """A store in a database that nobody else works on."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:  # type: ignore[attr-defined]
        admin.execute(f"drop database if exists {name}")
        admin.execute(f"create database {name}")
        dsn = server.dsn(name)  # type: ignore[attr-defined]

        async def lay() -> None:
            async with connect(dsn) as db:
                await install_store(db)

        asyncio.run(lay())
        with psycopg.connect(dsn) as connection:
            yield connection
        admin.execute(f"drop database {name} with (force)")


INSERT = (
    "insert into afterwrite.activity ({columns}) values ({values}) returning 0 as position, batch_id, id::text,"
    " occurred_at, source, kind, category, action, outcome, severity, entity_type, entity_id, actor_id, actor_type,"
    " tenant_id, session_id, request_id, trace_id, abbrev(ip) as ip, user_agent, duration_ms, summary, relation,"
    " operation, changed, before::text, after::text, metadata::text, caused_by::text, xid, commit_lsn::text, ordinal"
)


def put(connection: psycopg.Connection, activity: Activity) -> StoredActivity:
    """The activity as the store keeps it."""
    kept = msgspec.structs.asdict(storable(activity))
    values = {
        column: bytes(value).decode() if isinstance(value, msgspec.Raw) else list(value) if isinstance(value,
        tuple) else value
        for column, value in kept.items()
    }  # fmt: skip
    values |= {"commit_lsn": "0/1", "batch_id": 1}
    text = INSERT.format(columns=", ".join(values), values=", ".join(f"%({name})s" for name in values))
    connection.rollback()
    with connection.cursor(row_factory=kwargs_row(stored_activity)) as cursor:
        found = cursor.execute(text, values).fetchone()
    assert found is not None
    return found


def answer(connection: psycopg.Connection, query: Query) -> tuple[bool, bool]:
    """Whether PostgreSQL says that the one activity fits, and whether the index would have found it."""
    compiled = compile_query(query)
    text = psycopg.sql.SQL("select {}, {} from afterwrite.activity a").format(
        compiled.where, compiled.narrow or psycopg.sql.SQL("true")
    )
    row = connection.execute(text, compiled.params).fetchone()
    assert row is not None
    return bool(row[0]), bool(row[1])


@settings(
    max_examples=int(os.environ.get("AFTERWRITE_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_python_and_postgresql_agree(connection: psycopg.Connection, data: st.DataObject) -> None:
    activity = data.draw(activities)
    stored = put(connection, activity)
    for line in data.draw(st.lists(lines(activity), min_size=1, max_size=6)):
        try:
            query = parse(line, now=NOW)
        except QueryError:
            continue
        fits, indexed = answer(connection, query)
        event(f"{query.terms[0].key or 'text'}: {fits}")
        assert query.matches(stored) == fits, f"{query} of {stored}"
        assert indexed or not fits, f"the index misses {query} of {stored}"
        assert parse(str(query), now=NOW) == query


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from(("actor:", "-", '"', "a", "at:", ",", "*", "\\", " ", ".", "metadata", ":", "/", "9"))
    ).map("".join)
)
def test_any_line_is_read_or_refused_at_its_column(line: str) -> None:  # fmt: skip
    try:
        query = parse(line, now=NOW)
    except QueryError as refused:
        told = refused.column, refused.length, refused.remedy
    else:
        again = parse(str(query), now=NOW)
        assert (again, hash(again)) == (query, hash(query))
        return
    assert 0 <= told[0] <= len(line)
    assert told[1] >= 1
    assert told[2]


def test_what_parts_words_is_the_same_in_the_store(connection: psycopg.Connection) -> None:
    every = [chr(code) for code in range(1, 0x3100) if not 0xD800 <= code < 0xE000]
    text = "".join(f"a{char}b " for char in every)
    for at in range(0, len(text), 480):
        part = text[at : at + 480]
        row = connection.execute("select afterwrite.words('', null, null, null, %s)", [part]).fetchone()
        assert row is not None
        assert row[0] == words.split(part.translate(str.maketrans(dict.fromkeys(words.TYPOGRAPHY, " "))))


def test_terms_read_well_as_chips() -> None:
    query = parse('actor:user:42 -entity:project/7,user at:2026-11-01 "Gold Token" word*', now=NOW)
    assert [str(term) for term in query.terms] == [
        "actor:user:42", "-entity:project/7,user", "at:2026-11-01", '"gold token"', "word*",
    ]  # fmt: skip
    assert isinstance(query.terms[0], Term)
    assert UUID("0195a000-0000-7000-8000-000000000001").version == 7
