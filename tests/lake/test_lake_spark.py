"""Spark over the lake: what it needs said plainly, and where pyspark is installed the answers of the other engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from lake_scene import OLD, lay
from test_lake import LINES, move
from typed import typed

from afterwrite.errors import AfterwriteError, ExitCode, Refused, UsageError
from afterwrite.lake import tiers
from afterwrite.lake.compile import DUCKDB, SPARK, Dialect, compile_query
from afterwrite.lake.spark import SparkEngine
from afterwrite.lake.table import Lake
from afterwrite.postgres import connect
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.windows import Place

INSTALLED = find_spec("pyspark") is not None
TYPED = "x'); drop table a; -- \" :q1 $q1 ` \\"


@pytest.mark.parametrize("dialect", [DUCKDB, SPARK], ids=["duckdb", "spark"])
def test_nothing_that_was_typed_stands_in_a_statement(dialect: Dialect) -> None:
    text = '"' + TYPED.replace("\\", "\\\\").replace('"', '\\"') + '"'
    keys = ("actor", "action", "entity", "category", "tenant", "session", "changed", "metadata.a", f"before.{text}")
    lines = [f"{sign}{key}:{text}{star}" for key in keys for sign in ("", "-") for star in ("", "*")]
    asked = [compile_query(parse(line), dialect) for line in (*lines, text, f"{text}*", f'entity:"a/{TYPED[:4]}"')]
    for each in asked:
        assert "drop" not in each.where
        assert "x'" not in each.where
        named = set(re.findall(r"\$(q\d+)", each.where))
        assert named == set(each.params), each.where


def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"pyspark": SimpleNamespace(), "pyspark.sql": SimpleNamespace()}
    modules["pyspark.errors"] = SimpleNamespace(PySparkException=LookupError)
    modules["py4j.protocol"] = SimpleNamespace(Py4JError=LookupError)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_what_spark_lacks_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nobody = f"spark://127.0.0.1:{port}"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyspark", None)
        with pytest.raises(UsageError, match="pyspark, which the lake needs, is not installed") as missing:
            SparkEngine(lake, master=nobody)
        assert missing.value.remedy == "pip install 'afterwrite[spark]'"
    _fake(monkeypatch)
    with pytest.raises(UsageError, match="sc://host is no master") as unknown:
        SparkEngine(lake, master="sc://host")
    assert "spark://HOST:PORT" in (unknown.value.remedy or "")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"Spark needs Java, and none is in .*\(JAVA_HOME\)"):
        SparkEngine(lake, master=nobody)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").touch(mode=0o755)
    with pytest.raises(AfterwriteError, match=rf"no master of Spark answers \(127.0.0.1:{port}: ") as unreachable:
        SparkEngine(lake, master=nobody)
    assert "lake_spark_master" in (unreachable.value.remedy or "")
    assert unreachable.value.exit_code == ExitCode.ERROR


def test_a_table_that_hides_rows_from_plain_readers_is_refused(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.open(make="store")
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    changed = {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}}
    (tmp_path / "lake" / "_delta_log" / f"{1:020}.json").write_text(json.dumps(changed) + "\n")
    for each in (lake, Lake(str(tmp_path / "lake"))):
        with pytest.raises(Refused, match="was given deletionVectors by another program"):
            each.open()


@pytest.mark.skipif(not INSTALLED, reason="pyspark is not installed: docs/lake.md says how Spark is tried")
def test_spark_gives_the_answers_of_the_store(dsn: str, tmp_path: Path) -> None:
    def engine(lake: Lake) -> SparkEngine:
        return SparkEngine(lake, master="local[2]", told=heard.append)

    async def scenario() -> None:
        await lay(dsn)
        lake = Lake(str(folder))
        async with connect(dsn) as db:
            hot = {line: (await find(db, parse(line), limit=1000, seconds=60)).items for line in LINES}
        await move(dsn, lake)
        async with (
            connect(dsn) as db,
            tiers.both(db, lake, engine) as both,
            tiers.both(db, lake) as by_duckdb,
        ):
            for line in LINES:
                told = await both.search(parse(line), limit=1000, seconds=60)
                assert told.page.items == hot[line], line
            every = hot[""]
            inside = Place(every[100].occurred_at, every[100].id)
            older = await both.search(parse(""), limit=7, older_than=inside)
            assert older.page.items == every[101:108]
            newer = await both.search(parse(""), limit=7, newer_than=inside)
            assert newer.page.items == every[93:100]
            for id in ("3", "9"):
                here, there = [
                    (await each.entity_timeline("users", id, limit=1000)).page.items for each in (by_duckdb, both)
                ]
                assert here == there
            actor = await both.actor_timeline("user:1", limit=1000)
            assert actor.page.items == hot["actor:user:1"]
            assert (await both.read_activity(every[-1].id)).activity == every[-1]
            (file,) = lake.files([every[-1].occurred_at.date()])
            os.unlink(lake.place(file))
            with pytest.raises(AfterwriteError, match="Spark could not read the lake at ") as gone:
                await both.search(parse(""), limit=1000)
            assert "vacuumed or deleted" in (gone.value.remedy or "")

    heard: list[str] = []
    # Signs that Hadoop takes for a pattern.
    folder = tmp_path / "a lake {a,b} *é?#"
    asyncio.run(scenario())
    assert len(heard) <= 1, "a process has one session"
    assert all("Starting Spark (local[2])" in each for each in heard)


@pytest.mark.skipif(not INSTALLED, reason="pyspark is not installed: docs/lake.md says how Spark is tried")
def test_the_command_asks_spark_and_says_nothing_of_its_own(dsn: str, tmp_path: Path) -> None:
    asyncio.run(lay(dsn))
    asyncio.run(move(dsn, Lake(str(tmp_path / "lake"))))
    env = {"AFTERWRITE_DSN": dsn, "AFTERWRITE_LAKE_URL": str(tmp_path / "lake"), "AFTERWRITE_LAKE_ENGINE": "spark"}
    found = typed("search", "--json", "-n", "1000", env=env)
    assert (found.returncode, found.stderr) == (0, "")
    told = json.loads(found.stdout)
    assert (len(told["items"]), len(told["lake"]["items"])) == (150, 30 * len(OLD))
