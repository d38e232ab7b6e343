"""A query means the same to DuckDB and to Spark as to Python and PostgreSQL; a row leaves the lake as it went in."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from test_query_answers import NOW, activities, answer, lines, own_store, put

from afterwrite.lake.archive import SESSION, ArchivePolicy, archive
from afterwrite.lake.compile import SPARK, compile_query
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.read import Between, Engine
from afterwrite.lake.spark import SparkEngine
from afterwrite.lake.table import COLUMNS, File, Lake
from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch
from afterwrite.search.query import Query, QueryError, parse
from afterwrite.store.partitions import make_partitions
from afterwrite.store.reader import ACTIVITY, StoredActivity, stored_activity
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

SPARK_INSTALLED = find_spec("pyspark") is not None


@pytest.fixture(scope="module")
def connection(server: object) -> Iterator[psycopg.Connection]:
    with own_store(server, "afterwrite_lake_answers") as connection:
        yield connection


@pytest.fixture(scope="module")
def engine() -> Iterator[DuckEngine]:
    with DuckEngine(Lake("/nowhere"), threads=1) as engine:
        yield engine


def as_arrow(engine: Engine, activities: Sequence[StoredActivity]) -> object:
    import pyarrow as pa

    rows = [
        msgspec.structs.asdict(stored) | {"commit_lsn": str(stored.commit_lsn), "day": None, "part": 1}
        for stored in activities
    ]
    plain = [
        {name: value.value if isinstance(value, StrEnum) else value for name, value in row.items()} for row in rows
    ]
    return pa.Table.from_pylist(plain, schema=engine.lake.schema())


def read_lines(data: st.DataObject, activity: Activity) -> list[Query]:
    queries: list[Query] = []
    for line in data.draw(st.lists(lines(activity), min_size=1, max_size=6)):
        try:
            queries.append(parse(line, now=NOW))
        except QueryError:
            continue
    return queries


@settings(
    max_examples=int(os.environ.get("AFTERWRITE_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_python_postgresql_and_duckdb_agree(
    connection: psycopg.Connection, engine: DuckEngine, data: st.DataObject
) -> None:
    activity = data.draw(activities)
    stored = put(connection, activity)
    engine.register("one", as_arrow(engine, [stored]))
    for query in read_lines(data, activity):
        fits, _ = answer(connection, query)
        asked = compile_query(query)
        said = bool(engine.rows(f"select 1 as one from one a where {asked.where}", dict(asked.params)))
        event(f"{'exact' if asked.exact else 'wide'}: {fits}")
        assert query.matches(stored) == fits, f"{query} of {stored}"
        if asked.exact:
            assert said == fits, f"{query} of {stored}"
        else:
            assert said or not fits, f"the lake would lose {query} of {stored}"


@pytest.mark.skipif(not SPARK_INSTALLED, reason="pyspark is not installed: docs/lake.md says how Spark is tried")
@settings(
    max_examples=int(os.environ.get("AFTERWRITE_EXAMPLES", "40")) // 8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_spark_agrees(
    connection: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """As above, but of several activities at once: each question to Spark takes a tenth of a second."""
    import pyarrow.parquet as parquet

    folder = tmp_path_factory.mktemp("spark")
    engine = SparkEngine(Lake(str(folder)), master="local[2]")
    some = data.draw(st.lists(activities, min_size=1, max_size=6, unique_by=lambda each: each.id))
    queries = list(dict.fromkeys(query for each in some for query in read_lines(data, each)))
    fits: dict[str, list[bool]] = {}
    kept: list[StoredActivity] = []
    for activity in some:
        stored = put(connection, activity)
        kept.append(stored)
        fits[stored.id] = [answer(connection, query)[0] for query in queries]
        assert fits[stored.id] == [query.matches(stored) for query in queries]
    parquet.write_table(as_arrow(engine, kept), folder / "some.parquet")
    file = File(path="some.parquet", day=NOW.date(), rows=len(kept), bytes=0, least={}, greatest={})
    asked = [compile_query(query, SPARK) for query in queries]
    params: dict[str, object] = {}
    said: list[str] = []
    for number, each in enumerate(asked):
        # Each with parameters of its own: one statement asks all of them.
        own = re.sub(r"\$q(?=[0-9])", f"$n{number}_q", each.where)
        said.append(f"coalesce({own}, false) as n{number}")
        params |= {f"n{number}_{name}": value for name, value in each.params.items()}
    with engine.source([file]) as name:
        rows = engine.rows(f"select {', '.join(('a.id', *said))} from {name} a", params)
    assert len(rows) == len(kept)
    for row in rows:
        for number, (query, each) in enumerate(zip(queries, asked, strict=True)):
            right, told = fits[row["id"]][number], row[f"n{number}"]
            event(f"{'exact' if each.exact else 'wide'}: {right}")
            stored = next(one for one in kept if one.id == row["id"])
            assert told == right if each.exact else told or not right, f"{query} of {stored}"


DAY = datetime(2025, 3, 1, tzinfo=UTC)
of_a_day = st.lists(
    st.builds(
        lambda activity, seconds, duration: msgspec.structs.replace(
            activity, occurred_at=DAY.fromtimestamp(DAY.timestamp() + seconds, UTC), duration_ms=duration
        ),
        activities,
        st.floats(0, 86_399),
        st.none() | st.floats(),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda activity: activity.id,
)


@settings(max_examples=2, deadline=None, database=None, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(of_a_day)
def test_what_went_into_the_lake_comes_out_the_same(
    tmp_path_factory: pytest.TempPathFactory, server: object, given_activities: list[Activity]
) -> None:
    name = "afterwrite_lake_rows"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:  # type: ignore[attr-defined]
        admin.execute(f"drop database if exists {name}")
        admin.execute(f"create database {name}")
    before, *after = asyncio.run(
        _there_and_back(server.dsn(name), tmp_path_factory.mktemp("lake"), given_activities)  # type: ignore[attr-defined]
    )
    for each in after:
        assert repr(each) == repr(before)  # NaN is not equal to itself
    with psycopg.connect(server.dsn(), autocommit=True) as admin:  # type: ignore[attr-defined]
        admin.execute(f"drop database {name} with (force)")


async def _there_and_back(dsn: str, folder: Path, given_activities: list[Activity]) -> list[list[StoredActivity]]:
    async with connect(dsn, options=SESSION) as db:
        await install_store(db)
        await make_partitions(db, days=[DAY.date()])
        async with open_sink(dsn) as sink:
            await sink.write(Batch(source="main", activities=given_activities, transactions=0))
        read = f"select b.position, {ACTIVITY} from afterwrite.activity a join afterwrite.batch b on b.id = a.batch_id"
        before = await db.rows(stored_activity, f"{read} order by a.occurred_at desc, a.id desc".encode())
        lake = Lake(str(folder))
        done = await archive(db, lake, ArchivePolicy(after_days=90))
        assert [deed.kind.value for deed in done.deeds] == ["copied", "dropped"]
        assert await db.value(b"select count(*) from afterwrite.activity") == 0
    engines: list[Engine] = [DuckEngine(lake, threads=1)]
    if SPARK_INSTALLED:
        engines.append(SparkEngine(lake, master="local[2]"))
    found = [before]
    for engine in engines:
        with engine:
            found.append(engine.find(parse(""), [DAY.date()], Between(), 1_000))
    return found


def test_no_file_is_skipped_that_holds_the_value(tmp_path: Path) -> None:
    import pyarrow as pa

    lake = Lake(str(tmp_path / "lake"))
    lake.open(make="store")
    names = ("\U0010ffff" * 50, "z" * 290, "z" * 31 + "é" * 100, "a" * 32 + "b", "\uffff" * 70, "")
    fixed = {"position": 0, "batch_id": 1, "kind": "event", "outcome": "success", "severity": "info", "source": "main",
             "category": "data", "action": "x", "entity_type": "t", "occurred_at": DAY, "day": DAY.date()}  # fmt: skip
    for number, name in enumerate(names):
        row = dict.fromkeys(COLUMNS) | fixed
        row |= {"id": f"0195a000-0000-7000-8000-{number:012x}", "part": number + 1, "actor_id": name, "entity_id": name}
        lake.append("store", DAY.date(), number + 1, [pa.RecordBatch.from_pylist([row], schema=lake.schema())], width=1)
    with DuckEngine(lake, threads=1) as engine:
        for name in filter(None, names):
            for line in (f'actor:"{name}"', f'entity:"t/{name}"'):
                (found,) = engine.find(parse(line), [DAY.date()], Between(), 9)
                assert found.actor_id == name
