"""A query means the same to DuckDB as to Python and to PostgreSQL, and a row comes out of the lake as it went in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from test_query_answers import NOW, activities, answer, lines, own_store, put

from afterwrite.lake.archive import SESSION, ArchivePolicy, archive
from afterwrite.lake.compile import compile_query
from afterwrite.lake.duck import DuckEngine as Engine
from afterwrite.lake.read import Between
from afterwrite.lake.table import COLUMNS, Lake
from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch
from afterwrite.search.query import QueryError, parse
from afterwrite.store.partitions import make_partitions
from afterwrite.store.reader import ACTIVITY, StoredActivity, stored_activity
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink


@pytest.fixture(scope="module")
def connection(server: object) -> Iterator[psycopg.Connection]:
    with own_store(server, "afterwrite_lake_answers") as connection:
        yield connection


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(Lake("/nowhere"), threads=1) as engine:
        yield engine


def as_arrow(engine: Engine, stored: StoredActivity) -> object:
    import pyarrow as pa

    row = msgspec.structs.asdict(stored) | {"commit_lsn": str(stored.commit_lsn), "day": None, "part": 1}
    plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in row.items()}
    return pa.Table.from_pylist([plain], schema=engine.lake.schema())


@settings(
    max_examples=int(os.environ.get("AFTERWRITE_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_python_postgresql_and_duckdb_agree(
    connection: psycopg.Connection, engine: Engine, data: st.DataObject
) -> None:
    activity = data.draw(activities)
    stored = put(connection, activity)
    engine.register("one", as_arrow(engine, stored))
    for line in data.draw(st.lists(lines(activity), min_size=1, max_size=6)):
        try:
            query = parse(line, now=NOW)
        except QueryError:
            continue
        fits, _ = answer(connection, query)
        asked = compile_query(query)
        said = bool(engine.rows(f"select 1 as one from one a where {asked.where}", dict(asked.params)))
        event(f"{'exact' if asked.exact else 'wide'}: {fits}")
        assert query.matches(stored) == fits, f"{query} of {stored}"
        if asked.exact:
            assert said == fits, f"{query} of {stored}"
        else:
            assert said or not fits, f"the lake would lose {query} of {stored}"


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
    before, after = asyncio.run(
        _there_and_back(server.dsn(name), tmp_path_factory.mktemp("lake"), given_activities)  # type: ignore[attr-defined]
    )
    assert repr(after) == repr(before)  # NaN is not equal to itself
    with psycopg.connect(server.dsn(), autocommit=True) as admin:  # type: ignore[attr-defined]
        admin.execute(f"drop database {name} with (force)")


async def _there_and_back(
    dsn: str, folder: Path, given_activities: list[Activity]
) -> tuple[list[StoredActivity], list[StoredActivity]]:
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
    with Engine(lake, threads=1) as engine:
        after = engine.find(parse(""), [DAY.date()], Between(), 1_000)
    return before, after


def test_no_file_is_skipped_that_holds_the_value(tmp_path: Path) -> None:
    import pyarrow as pa

    lake = Lake(str(tmp_path / "lake"))
    lake.open(make=True)
    names = ("\U0010ffff" * 50, "z" * 290, "z" * 31 + "é" * 100, "a" * 32 + "b", "\uffff" * 70, "")
    fixed = {"position": 0, "batch_id": 1, "kind": "event", "outcome": "success", "severity": "info", "source": "main",
             "category": "data", "action": "x", "entity_type": "t", "occurred_at": DAY, "day": DAY.date()}  # fmt: skip
    for number, name in enumerate(names):
        row = dict.fromkeys(COLUMNS) | fixed
        row |= {"id": f"0195a000-0000-7000-8000-{number:012x}", "part": number + 1, "actor_id": name, "entity_id": name}
        lake.append("store", DAY.date(), number + 1, [pa.RecordBatch.from_pylist([row], schema=lake.schema())])
    with Engine(lake, threads=1) as engine:
        for name in filter(None, names):
            for line in (f'actor:"{name}"', f'entity:"t/{name}"'):
                (found,) = engine.find(parse(line), [DAY.date()], Between(), 9)
                assert found.actor_id == name
