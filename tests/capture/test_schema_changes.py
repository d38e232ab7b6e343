"""DDL while the stream is read, and before it is read: names of the moment of the write, and keys that are not lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import psycopg
import pytest
from capture_rig import capture, drain, install, parsed, setup_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afterwrite.capture.assemble import TableFacts
from afterwrite.capture.backlog import Pace
from afterwrite.capture.lookup import Attribute, Remembered, Standing, find_key, state_facts
from afterwrite.capture.tell import Told
from afterwrite.capture.transaction import Column, Relation, Transaction
from afterwrite.capture.values import PgType, TypeCatalog, TypeKind, is_after
from afterwrite.capture.worker import Source, Worker
from afterwrite.record import Activity


def told(dsn: str, before: str, *work: str, tables: Iterable[str] = ("t",), full: Iterable[str] = ()) -> list[Activity]:
    """What is told of these statements when all have run before the first of them is read."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(before)

    def run(connection: psycopg.Connection) -> None:
        for statement in work:
            connection.execute(statement)

    return activities_of(capture(dsn, setup_of(*tables, full=full), run))


def activities_of(transactions: list[Transaction]) -> list[Activity]:
    return [
        activity
        for transaction in transactions
        for activity in Told([transaction], source="main", system_id="7", timeline=1)
    ]


def metadata_of(activity: Activity) -> dict[str, object]:
    return {} if activity.metadata is None else json.loads(bytes(activity.metadata))


def read(raw: object) -> object:
    return parsed(bytes(raw)) if raw is not None else None  # type: ignore[call-overload]


@pytest.mark.parametrize("full", [False, True])
def test_every_change_of_columns_is_told_with_the_names_of_its_moment(dsn: str, full: bool) -> None:
    activities = told(
        dsn,
        "create table t (id int primary key, a int, gone text)",
        "insert into t values (1, 1, 'x')",
        "alter table t add column b text default 'b'",
        "insert into t values (2, 2, 'x')",
        "alter table t drop column gone",
        "insert into t values (3, 3, 'y')",
        "alter table t alter a type text using a || '!'",
        "insert into t values (4, 'four', 'y')",
        "alter table t rename column a to c",
        "insert into t values (5, 'five', 'y')",
        "alter table t rename column id to number",
        "insert into t values (6, 'six', 'y')",
        "update t set c = 'seven' where number = 1",
        "delete from t where number = 2",
        full=["t"] if full else [],
    )
    assert [(read(each.after) or read(each.before), each.entity_id) for each in activities] == [
        ({"id": 1, "a": 1, "gone": "x"}, "1"),
        ({"id": 2, "a": 2, "gone": "x", "b": "b"}, "2"),
        ({"id": 3, "a": 3, "b": "y"}, "3"),
        ({"id": 4, "a": "four", "b": "y"}, "4"),
        ({"id": 5, "c": "five", "b": "y"}, "5"),
        ({"number": 6, "c": "six", "b": "y"}, "6"),
        ({"number": 1, "c": "seven", "b": "b"}, "1"),
        ({"number": 2, "c": "2!", "b": "b"} if full else {"number": 2}, "2"),
    ]
    assert [metadata_of(each) for each in activities] == [{}] * 8


@pytest.mark.parametrize("full", [False, True])
def test_a_composite_key_keeps_its_order_while_its_columns_are_renamed_and_others_go(dsn: str, full: bool) -> None:
    activities = told(
        dsn,
        "create table t (gone int, a int, b text, gone_too int, c int, primary key (c, b))",
        "insert into t values (0, 1, 'x', 0, 3)",
        "alter table t drop column gone; alter table t rename column c to number",
        "insert into t values (1, 'x', 0, 4)",
        # Another column gets the key's name.
        "alter table t drop column gone_too; alter table t rename column b to name; alter table t rename column a to b",
        "insert into t values (1, 'x', 5)",
        "delete from t where number = 3",
        full=["t"] if full else [],
    )
    assert [each.entity_id for each in activities] == ["3,x", "4,x", "5,x", "3,x"]
    assert [metadata_of(each) for each in activities] == [{}] * 4


def test_names_that_change_places_do_not_change_the_key(dsn: str) -> None:
    activities = told(
        dsn,
        "create table t (id int primary key, other int)",
        "insert into t values (1, 10)",
        "alter table t rename column id to x; alter table t rename column other to id; alter table t rename x to other",
        "insert into t values (2, 20)",
        full=["t"],
    )
    assert [(each.entity_id, read(each.after)) for each in activities] == [
        ("1", {"id": 1, "other": 10}),
        ("2", {"other": 2, "id": 20}),
    ]


def test_another_primary_key_holds_from_its_moment_on(dsn: str) -> None:
    activities = told(
        dsn,
        "create table t (a int primary key, b int not null, c int not null)",
        "insert into t values (1, 10, 100)",
        "alter table t drop constraint t_pkey; alter table t add primary key (b)",
        "insert into t values (2, 20, 200)",
        "alter table t drop constraint t_pkey; alter table t add primary key (c, b)",
        "insert into t values (3, 30, 300)",
    )
    # The stream flags the columns of the key, so that each is known.
    assert [each.entity_id for each in activities] == ["1", "20", "300,30"]
    assert [metadata_of(each) for each in activities] == [{}] * 3


def test_under_full_identity_a_key_that_is_younger_than_the_row_is_unsure(dsn: str) -> None:
    activities = told(
        dsn,
        "create table t (a int primary key, b int not null)",
        "insert into t values (1, 10)",
        "alter table t drop constraint t_pkey; alter table t add primary key (b)",
        "insert into t values (2, 20)",
        full=["t"],
    )
    assert [(each.entity_id, metadata_of(each)) for each in activities] == [
        ("10", {"unsure": ["entity_id"]}),
        ("20", {}),
    ]


@pytest.mark.parametrize("full", [False, True])
def test_rows_of_a_table_that_is_no_more_are_told_whole(dsn: str, full: bool) -> None:
    activities = told(
        dsn,
        "create table t (id int, at date, note text, primary key (at, id))",
        "insert into t values (1, '2026-01-02', 'x')",
        "update t set note = 'y'",
        "delete from t",
        "drop table t",
        full=["t"] if full else [],
    )
    assert [(each.action, each.entity_id, metadata_of(each)) for each in activities] == [
        (f"t.{word}", "2026-01-02,1", {}) for word in ("insert", "update", "delete")
    ]
    assert read(activities[1].after) == {"id": 1, "at": "2026-01-02", "note": "y"}


def test_a_table_dropped_and_made_again_is_another_one(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table t (id int primary key, a int)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into t values (1, 1)")
        connection.execute("drop table t")
        connection.execute("create table t (name text primary key, id int)")
        connection.execute("insert into t values ('unpublished', 0)")
        connection.execute("alter publication afterwrite add table t")
        connection.execute("insert into t values ('two', 2)")
    activities = activities_of(drain(dsn, setup, sink))
    assert [(each.entity_id, read(each.after)) for each in activities] == [
        ("1", {"id": 1, "a": 1}),
        ("two", {"name": "two", "id": 2}),
    ]


def test_a_renamed_schema_is_told_as_it_was_called_then(dsn: str) -> None:
    activities = told(
        dsn,
        "create schema s; create table s.t (id int primary key)",
        "insert into s.t values (1)",
        "alter schema s rename to r; alter table r.t rename to u",
        "insert into r.u values (2)",
        tables=["s.t"],
    )
    assert [(each.relation, each.entity_type, each.entity_id) for each in activities] == [
        ("s.t", "s.t", "1"),
        ("r.u", "r.u", "2"),
    ]


def test_types_that_are_no_more_are_kept_as_their_text_and_said_to_be(dsn: str) -> None:
    activities = told(
        dsn,
        """
        create type mood as enum ('sad', 'gay'); create type place as (x int, y text);
        create table t (id int primary key, m mood, p place, n int)
        """,
        "insert into t values (1, 'sad', (1, 'a'), 5)",
        "alter type mood rename value 'sad' to 'blue'",
        "insert into t values (2, 'blue', (2, 'b'), 6)",
        "alter table t drop column p; drop type place",
        "insert into t values (3, 'blue', 7)",
    )
    assert [read(each.after) for each in activities] == [
        {"id": 1, "m": "sad", "p": "(1,a)", "n": 5},
        {"id": 2, "m": "blue", "p": "(2,b)", "n": 6},
        {"id": 3, "m": "blue", "n": 7},
    ]
    assert [metadata_of(each) for each in activities] == [{"as_text": ["p"]}, {"as_text": ["p"]}, {}]


def test_a_composite_that_was_altered_is_told_by_the_names_of_its_moment_or_as_text(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create type place as (x int, y text); create type trip as (there place, back place[])")
        connection.execute("create table t (id int primary key, p place, trips trip[])")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    row = "insert into t values (%s, (1, 'a'), array[((1, 'a'), array[(2, 'b')::place])::trip])"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(row, [1])
        first = activities_of(drain(dsn, setup, sink))
        connection.execute("alter type place rename attribute x to z")
        connection.execute(row, [2])
        second = activities_of(drain(dsn, setup, sink))
    assert [metadata_of(each) for each in first] == [{}]
    assert read(first[0].after) == {
        "id": 1,
        "p": {"x": 1, "y": "a"},
        "trips": [{"there": {"x": 1, "y": "a"}, "back": [{"x": 2, "y": "b"}]}],
    }
    # Read again after the renaming, what was x then cannot be called z: it is kept as text. What came later can.
    assert [metadata_of(each) for each in second] == [{"as_text": ["p", "trips"]}, {}]
    assert read(second[0].after) == {"id": 1, "p": "(1,a)", "trips": '{"(\\"(1,a)\\",\\"{\\"\\"(2,b)\\"\\"}\\")"}'}
    assert (read(second[1].after) or {})["p"] == {"z": 1, "y": "a"}  # type: ignore[index]


@given(st.integers(0, 2**31 - 1), st.integers(-(2**31) + 1, 2**31 - 1), st.integers(0, 2**31 - 1))
@example(2**31 - 1, 2**31 - 1, 0)
def test_transactions_are_compared_across_epochs(behind: int, ahead: int, epoch: int) -> None:
    now = 2**33 + epoch
    xid = now - behind
    since = max(0, xid + ahead)
    assert is_after(since, xid & 0xFFFFFFFF, now) is (since > xid)


def test_a_composite_is_unsure_for_transactions_before_its_last_alteration() -> None:
    place = PgType(90_000, TypeKind.COMPOSITE, fields=(("x", 23),), since=500, now=600)
    catalog = TypeCatalog().with_types([place, PgType(90_001, TypeKind.ARRAY, element=90_000)])
    assert [catalog.is_unsure(oid, 499) for oid in (23, 1007, 90_000, 90_001, 90_002)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert not catalog.is_unsure(90_001, 500)


class History:
    """A table whose columns come, go and change their names, one transaction after the other."""

    def __init__(self, width: int) -> None:
        self.columns = [Attribute(f"c{number}", 23, since=100) for number in range(width)]
        self.xid = 2**32 + 2**31 - 5  # so that what the stream tells of it turns over

    @property
    def live(self) -> list[Attribute]:
        return [column for column in self.columns if column.type_oid]

    def apply(self, step: tuple[str, int, str], key: set[int]) -> None:
        deed, index, name = step
        self.xid += 1
        if deed == "add" and all(column.name != name for column in self.columns):
            self.columns.append(Attribute(name, 23, self.xid, generated=index % 3 == 0))
        places = [place for place, column in enumerate(self.columns) if column.type_oid]
        if deed == "drop":
            places = [place for place in places if place + 1 not in key]
        if not places or deed == "add":
            return
        place = places[index % len(places)]
        if deed == "drop":
            self.columns[place] = Attribute(f"dropped {place}", 0, self.xid)
        elif deed == "rename" and all(column.name != name for column in self.columns):
            self.columns[place] = Attribute(name, 23, self.xid, self.columns[place].generated)
        elif deed == "retype":
            old = self.columns[place]
            self.columns[place] = Attribute(old.name, 25 if old.type_oid == 23 else 23, self.xid, old.generated)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "drop", "rename", "retype"]), st.integers(0, 9), st.integers(0, 5).map("c{}".format)
    ),
    max_size=8,
)


@settings(max_examples=250, deadline=None)
@given(st.integers(2, 6), STEPS, STEPS, st.lists(st.integers(0, 9), min_size=1, max_size=2), st.booleans())
def test_a_key_is_found_by_its_place_whatever_was_altered_since(
    width: int, earlier: list, later: list, picks: list[int], published: bool
) -> None:
    """Names are given away and taken back; a generated column is in the stream or not."""
    history = History(width)
    for step in earlier:
        history.apply(step, set())
    plain = [place for place, column in enumerate(history.columns) if column.type_oid and not column.generated]
    if not plain:
        return
    key = tuple(dict.fromkeys(plain[pick % len(plain)] + 1 for pick in picks))
    then, xid = list(history.columns), history.xid & 0xFFFFFFFF
    described = [
        Column(column.name, column.type_oid, -1, False) for column in history.live if published or not column.generated
    ]
    for step in later:
        # What was a generated column when it was dropped does not say so any more.
        if step[0] != "drop" or not any(column.generated for column in history.columns):
            history.apply(step, set(key))
    now = Standing(columns=tuple(history.columns), key=key, now=history.xid + 1)
    found = find_key(described, now, xid)
    if any(column.generated and column.since > now.now - 1 - len(later) for column in now.columns):
        assert found is None or found == tuple(then[number - 1].name for number in key)
    else:
        assert found == tuple(then[number - 1].name for number in key)


def test_a_key_is_unsure_where_transactions_overtook_each_other() -> None:
    # The column was dropped by a transaction that had begun before the row's, so that its number says nothing.
    columns = (Attribute("dropped", 0, since=5), Attribute("id", 23, since=1))
    relation = relation_of("f", ("gone", True), ("id", True))
    assert find_key(relation.columns, Standing(columns=columns, key=(2,), now=9), 7) is None
    facts = state_facts(relation, Standing(columns=columns, key=(2,), now=9), None, 7)
    assert (facts.key, facts.unsure) == (("id",), True)


def relation_of(identity: str, *columns: tuple[str, bool]) -> Relation:
    return Relation(9, "public", "t", identity, tuple(Column(name, 23, -1, key) for name, key in columns))


def test_what_cannot_be_known_of_a_key_is_unsure() -> None:
    flagged = relation_of("d", ("a", True), ("b", True), ("c", False))
    whole = relation_of("f", ("a", True), ("b", True), ("c", True))
    # Gone, and nobody remembers: the flags tell which columns, not in which order.
    assert state_facts(flagged, None, None, 7) == TableFacts(("a", "b"), unsure=True)
    assert state_facts(flagged, None, Remembered(["b", "a"], legacy=False), 7) == TableFacts(("b", "a"))
    assert state_facts(relation_of("d", ("a", True)), None, None, 7) == TableFacts(("a",))
    assert state_facts(whole, None, None, 7) == TableFacts((), unsure=True)
    assert state_facts(whole, None, Remembered(["b"], legacy=True), 7) == TableFacts(("b",), legacy=True)
    assert state_facts(whole, None, Remembered(["renamed"], legacy=False), 7) == TableFacts((), unsure=True)
    # There, but without a primary key: it may have had that which is remembered.
    columns = (Attribute("a", 23), Attribute("b", 23), Attribute("c", 23))
    assert state_facts(whole, Standing(columns=columns), None, 7) == TableFacts(())
    assert state_facts(whole, Standing(columns=columns), Remembered(["b"], legacy=False), 7) == TableFacts(
        ("b",), unsure=True
    )


def test_the_worker_that_keeps_up_tells_the_same(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table t (id int primary key, a int)")
    setup = setup_of("t", full=["t"])
    sink, _ = install(dsn, setup)
    found: list[object] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number, step in enumerate(
            (
                "select 1",
                "alter table t rename id to number",
                "alter table t drop column a",
                "alter table t rename to u",
            )
        ):
            connection.execute(step)
            connection.execute(f"insert into {'u' if number == 3 else 't'} values ({number})")
            (*_, last) = activities_of(drain(dsn, setup, sink))
            found.append((last.relation, last.entity_id, read(last.after), metadata_of(last)))
    assert found == [
        ("public.t", "0", {"id": 0, "a": None}, {}),
        ("public.t", "1", {"number": 1, "a": None}, {}),
        ("public.t", "2", {"number": 2}, {}),
        ("public.u", "3", {"number": 3}, {}),
    ]


def test_a_running_worker_notices_that_a_composite_was_altered(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create type place as (x int, y text); create table t (id int primary key, p place)")
    setup = setup_of("t")
    sink, _ = install(dsn, setup)

    async def scenario() -> None:
        async with asyncio.timeout(20), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer:
            pace = Pace(linger_ms=5, pulse_seconds=0.1)
            worker = Worker(Source(dsn=dsn, name=setup.source, slot=setup.slot), sink.opened, pace=pace)
            running = asyncio.create_task(worker.run())
            await writer.execute("insert into t values (1, (1, 'a'))")
            while len(sink.activities) < 1:  # noqa: ASYNC110 - a test looks from outside
                await asyncio.sleep(0.01)
            await writer.execute("alter type place rename attribute x to z; alter type place add attribute more int")
            await asyncio.sleep(0.2)
            await writer.execute("insert into t values (2, (2, 'b', 7))")
            while len(sink.activities) < 2:  # noqa: ASYNC110 - a test looks from outside
                await asyncio.sleep(0.01)
            worker.stop()
            await running

    asyncio.run(scenario())
    assert [read(each.after) for each in sink.activities] == [
        {"id": 1, "p": {"x": 1, "y": "a"}},
        {"id": 2, "p": {"z": 2, "y": "b", "more": 7}},
    ]
    assert [metadata_of(each) for each in sink.activities] == [{}, {}]


def test_whoever_alters_a_table_does_not_hold_up_capture(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "create table t (id int primary key) partition by range (id);"
            "create table t_1 partition of t for values from (0) to (9)"
        )
    setup = setup_of("t")
    sink, _ = install(dsn, setup)
    with psycopg.connect(dsn) as altering, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into t values (1)")
        altering.execute("alter table t add column a int")  # and goes for a coffee
        (activity,) = activities_of(drain(dsn, setup, sink))
        assert (activity.entity_id, read(activity.after)) == ("1", {"id": 1})


def test_a_worker_that_was_away_while_a_table_was_dropped_still_knows_its_key(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afterwrite.capture.watch._FORGET_SECONDS", 0.0)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table t (a int, b text, primary key (b, a)); create table u (id int primary key)")
    setup = setup_of("t", "u", full=["t"])
    sink, _ = install(dsn, setup)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into t values (1, 'x,y'); insert into u values (1)")
        connection.execute("drop table t")

    def remembered() -> list[tuple]:
        with psycopg.connect(dsn) as connection:
            return connection.execute("select name from afterwrite.published order by name").fetchall()

    async def scenario() -> None:
        pace = Pace(linger_ms=5, pulse_seconds=0.05, heartbeat_seconds=0.2)
        worker = Worker(Source(dsn=dsn, name=setup.source, slot=setup.slot), sink.opened, pace=pace)
        async with asyncio.timeout(20):
            running = asyncio.create_task(worker.run())
            while remembered() != [("u",)]:  # noqa: ASYNC110 - a test looks from outside
                await asyncio.sleep(0.05)
            worker.stop()
            await running

    asyncio.run(scenario())
    assert [(each.entity_id, metadata_of(each)) for each in sink.activities] == [("x\\,y,1", {}), ("1", {})]
