"""What may happen to a lake that nobody meant: another store's, set back, broken, in a folder that has other things."""

from __future__ import annotations

import asyncio
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from lake_scene import OLD, a_batch, an_activity, lay
from pyarrow import parquet
from typed import typed

from afterwrite.errors import AfterwriteError, Refused, UsageError
from afterwrite.lake import tiers
from afterwrite.lake.archive import SESSION, Archived, ArchivePolicy, archive, read_parts
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.export import hand_over
from afterwrite.lake.table import Lake
from afterwrite.lake.verify import verify
from afterwrite.postgres import connect, statement
from afterwrite.record import Batch
from afterwrite.search.query import parse
from afterwrite.store.maintain import observe
from afterwrite.store.partitions import Temperature, make_partitions_of, read_partition_days
from afterwrite.store.writer import open_sink


async def move(dsn: str, lake: Lake, *, after_days: int = 90) -> Archived:
    async with connect(dsn, options=SESSION) as db:
        return await archive(db, lake, ArchivePolicy(after_days=after_days))


async def count(dsn: str, lake: Lake) -> int:
    async with connect(dsn) as db, tiers.both(db, lake) as both:
        return len((await both.search(parse(""), limit=1_000, seconds=60)).page.items)


def spoil(file: Path) -> bytes:
    """Leave nothing in it but its length and the mark of its kind; what it was."""
    held = file.read_bytes()
    file.write_bytes(b"PAR1" + bytes(len(held) - 8) + b"PAR1")
    return held


def mend(file: Path, held: bytes) -> None:
    file.write_bytes(held)


def test_the_lake_of_another_store_takes_nothing_of_this_one(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=2)
        lake = Lake(str(tmp_path / "lake"))
        assert lake.open(make="another store")
        with pytest.raises(Refused, match="is that of another store"):
            await move(dsn, lake)
        assert lake.files() == []
        assert await count(dsn, Lake(str(tmp_path / "lake"))) == 10

    asyncio.run(scenario())


def test_a_lake_that_was_set_back_is_not_taken_for_all_of_it(dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / "lake"

    async def scenario() -> None:
        await lay(dsn, rows=4)
        await move(dsn, Lake(str(folder)), after_days=98)
        async with connect(dsn) as db:
            # A host that knows of no lake, but of retention, drops nothing that the lake has not got.
            assert (await observe(db)).has_lake
            assert await db.value(statement("maintain.read_dropped_until")) is None
        shutil.copytree(folder, tmp_path / "backup")
        await move(dsn, Lake(str(folder)))
        assert await count(dsn, Lake(str(folder))) == 20
        shutil.rmtree(folder)
        with pytest.raises(Refused, match="there is none at"):
            await move(dsn, Lake(str(folder)), after_days=5)
        assert not folder.exists()
        shutil.move(tmp_path / "backup", folder)
        with pytest.raises(Refused, match="it was set back"):
            await count(dsn, Lake(str(folder)))
        with pytest.raises(Refused, match="it was set back"):
            await move(dsn, Lake(str(folder)), after_days=5)

    asyncio.run(scenario())


def test_a_store_that_was_set_back_finds_all_that_the_lake_has_of_it(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=4)
        lake = Lake(str(tmp_path / "lake"))
        first, later = (msgspec.structs.replace(a_batch(OLD[0], n, 4), checkpoint=None) for n in (0, 500))
        await move(dsn, lake)
        async with open_sink(dsn) as sink:
            await sink.write(later)
            await move(dsn, lake)
            async with connect(dsn) as db:
                assert [part.part for part in await read_parts(db)] == [1, 2, 1, 1]
                await db.run(
                    b"delete from afterwrite.lake_part where day = (select min(day) from afterwrite.lake_part)"
                )
                untold = [day for day in await verify(db, lake) if not day.same]
                assert [(day.rows, day.read) for day in untold] == [(0, 8)]
            await sink.write(first)
            await sink.write(later)
        await move(dsn, lake)
        async with connect(dsn) as db:
            assert [(day.read, day.same) for day in await verify(db, lake)] == [(8, True), (4, True), (4, True)]
        assert await count(dsn, lake) == 24
        shutil.rmtree(tmp_path / "lake")
        async with connect(dsn) as db:
            with pytest.raises(Refused, match="there is none at"):
                await verify(db, Lake(str(tmp_path / "lake")))

    asyncio.run(scenario())


def test_a_file_that_is_gone_or_broken_is_told_of_its_day_and_the_others_are_read(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=4)
        lake = Lake(str(tmp_path / "lake"))
        await move(dsn, lake)
        lake.open()
        broken, gone, _ = (Path(lake.place(file)) for file in sorted(lake.files(), key=lambda file: file.day))
        spoil(broken)
        gone.unlink()
        async with connect(dsn) as db:
            days = await verify(db, lake)
            assert [(day.same, day.trouble is None) for day in days] == [(False, False), (False, False), (True, True)]
            with pytest.raises(AfterwriteError, match="could not read the lake"):
                await hand_over(db, lake, parse("tenant:a"), tmp_path / "out")

    asyncio.run(scenario())


def test_what_comes_for_a_day_that_cannot_be_read_waits_and_the_others_leave(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=4)
        lake = Lake(str(tmp_path / "lake"))
        await move(dsn, lake)
        async with open_sink(dsn) as sink:
            for number, days in enumerate(OLD):
                await sink.write(msgspec.structs.replace(a_batch(days, 500 + 10 * number, 2), checkpoint=None))
        broken = Path(lake.place(min(lake.files(), key=lambda file: file.day)))
        held = spoil(broken)
        done = await move(dsn, lake)
        assert [finding.rule for finding in done.survey.findings] == ["lake-unreadable"]
        assert [(deed.kind.value, deed.rows) for deed in done.deeds] == [("copied", 2), ("dropped", 2)] * 2
        mend(broken, held)
        done = await move(dsn, lake)
        assert [(deed.kind.value, deed.rows) for deed in done.deeds] == [("copied", 2), ("dropped", 2)]
        assert await count(dsn, lake) == 26
        async with connect(dsn) as db:
            assert all(day.same for day in await verify(db, lake))

    asyncio.run(scenario())


def test_a_dry_run_looks_at_the_lake_too(dsn: str, tmp_path: Path) -> None:
    asyncio.run(lay(dsn, rows=2))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    for url, said in (("ftp://host/lake", "cannot be used"), (str(tmp_path / "photos"), "that is no lake")):
        told = typed("lake", "archive", "--url", url, env={"AFTERWRITE_DSN": dsn})
        assert told.returncode != 0
        assert said in " ".join(told.stderr.split())


def test_what_came_again_after_its_day_had_left_is_handed_over_once(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=30)
        lake = Lake(str(tmp_path / "lake"))
        await move(dsn, lake)
        async with open_sink(dsn) as sink:
            await sink.write(msgspec.structs.replace(a_batch(OLD[0], 0, 30), checkpoint=None))
        async with connect(dsn) as db:
            handed = await hand_over(db, lake, parse("tenant:a"), tmp_path / "out[1]")
        pieces = {each.tier: parquet.read_table(tmp_path / "out[1]" / each.file) for each in handed.files}
        hot, cold = (set(pieces[tier]["id"].to_pylist()) for tier in ("store", "lake"))
        assert hot
        assert cold
        assert not hot & cold
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            told = await both.search(parse("tenant:a"), limit=1_000, seconds=60)
        assert hot | cold == {each.id for each in told.page.items}

    asyncio.run(scenario())


def test_a_day_of_long_ago_leaves_as_others_do(dsn: str, tmp_path: Path) -> None:
    """Its name has zeros, which strftime leaves out: nobody would find such a partition again."""

    async def scenario() -> None:
        await lay(dsn, rows=1)
        wrong = datetime(201, 3, 4, 5, tzinfo=UTC)
        activity = msgspec.structs.replace(an_activity(1, datetime(2026, 1, 1, tzinfo=UTC)), occurred_at=wrong)
        async with open_sink(dsn) as sink:
            await sink.write(Batch(source="main", activities=[activity], transactions=0))
        async with connect(dsn) as db:
            for _ in range(2):
                await make_partitions_of(db, {wrong.date(): Temperature.COLD})
            assert wrong.date() in await read_partition_days(db)
        lake = Lake(str(tmp_path / "lake"))
        await move(dsn, lake)
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            told = await both.search(parse("before:0300-01-01"), seconds=60)
            assert [(each.id, each.occurred_at) for each in told.page.items] == [(activity.id, wrong)]
            assert told.lake

    asyncio.run(scenario())


def test_a_lake_is_not_laid_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "lost+found").mkdir()
    mine = tmp_path / "photos" / "a.jpg"
    mine.write_bytes(b"mine")
    for url in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(UsageError, match=r"no lake: .*a\.jpg"):
            Lake(url).open(make="store")
    mine.unlink()
    assert Lake(str(tmp_path)).open(make="store")


def test_what_an_engine_puts_aside_is_nobody_elses_to_read_and_goes_with_it(tmp_path: Path) -> None:
    with DuckEngine(Lake(str(tmp_path))) as engine:
        ((folder,),) = [row.values() for row in engine.rows("select current_setting('temp_directory') as folder", {})]
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    assert not Path(folder).exists()
