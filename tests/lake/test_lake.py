"""Days leave the store for the lake, and every question finds them there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from lake_scene import OLD, TODAY, a_batch, lay
from typed import typed

from afterwrite.errors import Refused, UsageError
from afterwrite.lake import table, tiers
from afterwrite.lake.archive import SESSION, Archived, ArchivePolicy, DeedKind, archive, read_parts
from afterwrite.lake.export import hand_over
from afterwrite.lake.table import Lake
from afterwrite.lake.verify import verify
from afterwrite.postgres import connect
from afterwrite.record import Batch
from afterwrite.search import timeline
from afterwrite.search.analytics import ReportName, report
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.windows import Place
from afterwrite.settings import Settings, load_settings
from afterwrite.store.partitions import make_partitions
from afterwrite.store.reader import StoredActivity, verify_feed
from afterwrite.store.rollup import roll_up
from afterwrite.store.writer import open_sink

LINES = (
    "", "actor:user:1", "gold", '"gold token"', "équ*", "entity:users/3", "entity:projects", "-actor:user:1 tenant:a",
    "metadata.plan:pro", "metadata.n:100", "-metadata.plan:pro", "ip:10.0.0.0/8", "ip:2001:db8::/32", "changed:stat*",
    "outcome:failure severity:error", "category:financial,security", "tenant:b word", "-tenant:*", "kind:change",
)  # fmt: skip


async def move(dsn: str, lake: Lake, policy: ArchivePolicy | None = None) -> Archived:
    async with connect(dsn, options=SESSION) as db:
        return await archive(db, lake, policy or ArchivePolicy())


def test_every_question_has_the_same_answer_before_and_after(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn)
        lake = Lake(str(tmp_path / "lake"))
        async with connect(dsn) as db:
            await roll_up(db)
            hot = {line: (await find(db, parse(line), limit=1000, seconds=60)).items for line in LINES}
            things = [await timeline.entity_timeline(db, "users", id, limit=1000) for id in ("3", "9")]
            actor = await timeline.actor_timeline(db, "user:2", limit=1000)
            week = {"after": TODAY - timedelta(days=101), "before": TODAY}
            counted = [
                (await report(db, name, bucket="day", **week)).rows  # type: ignore[arg-type]
                for name in (ReportName.ACTIVITY, ReportName.ACTIONS, ReportName.ACTORS)
            ]
        assert len(hot[""]) == 150
        done = await move(dsn, lake)
        assert [deed.kind.value for deed in done.deeds] == ["copied", "dropped"] * len(OLD)
        assert (done.survey.due, done.survey.findings) == ((), ())
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            assert await db.value(b"select count(*) from afterwrite.activity") == 60
            for line in LINES:
                told = await both.search(parse(line), limit=1000, seconds=60)
                assert told.page.items == hot[line], line
                old = [each.id for each in hot[line] if each.occurred_at < TODAY - timedelta(days=50)]
                assert told.lake == set(old)
            for id, page in zip(("3", "9"), things, strict=True):
                assert (await both.entity_timeline("users", id, limit=1000)).page.items == page.items
            assert (await both.actor_timeline("user:2", limit=1000)).page.items == actor.items
            assert [
                (await report(db, name, bucket="day", **week)).rows  # type: ignore[arg-type]
                for name in (ReportName.ACTIVITY, ReportName.ACTIONS, ReportName.ACTORS)
            ] == counted
            one = hot[""][-1]
            assert (await both.read_activity(one.id)).activity == one
            assert (await verify_feed(db)).first_break is None
            assert all(each.same for each in await verify(db, lake))

    asyncio.run(scenario())


def test_readers_see_all_of_it_once_while_it_leaves(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn)
        async with connect(dsn) as db:
            every = (await find(db, parse(""), limit=1000, seconds=60)).items
        leaving = asyncio.create_task(move(dsn, Lake(str(tmp_path / "lake"))))
        seen: set[int] = set()
        async with connect(dsn) as db, tiers.both(db, Lake(str(tmp_path / "lake"))) as both:
            while True:
                over = leaving.done()
                told = await both.search(parse(""), limit=1000, seconds=60)
                assert told.page.items == every
                seen.add(len(told.lake))
                await asyncio.sleep(0.05)
                if over:
                    break
        assert {0, 30 * len(OLD)} <= seen
        await leaving

    asyncio.run(scenario())


def test_through_an_object_store_the_answers_are_the_same(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await lay(dsn)
        lake = Lake((tmp_path / "lake").as_uri())
        async with connect(dsn) as db:
            hot = {line: (await find(db, parse(line), limit=1000, seconds=60)).items for line in LINES[::4]}
        await move(dsn, lake)
        # What is no folder is read by deltalake's own object store, as an Arrow data set.
        monkeypatch.setattr(Lake, "local", False)
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            for line in LINES[::4]:
                assert (await both.search(parse(line), limit=1000, seconds=60)).page.items == hot[line], line

    asyncio.run(scenario())


def test_pages_go_over_the_border_both_ways_without_gap_or_repeat(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn)
        lake = Lake(str(tmp_path / "lake"))
        async with connect(dsn) as db:
            every = {
                line: (await find(db, parse(line), limit=1000, seconds=60)).items
                for line in ("", "gold", "metadata.n:100")
            }
        await move(dsn, lake)
        async with open_sink(dsn) as sink:
            # Something late, of a day that has left: in the store, beside what the lake has of that day.
            await sink.write(a_batch(99, 7_000, 3))
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            late = (await find(db, parse(f"at:{(TODAY - timedelta(days=99)).date()}"), limit=1000)).items
            assert len(late) == 3
            for line, known in every.items():
                query = parse(line)
                fits = [each for each in late if query.matches(each)]
                wanted = sorted((*known, *fits), key=lambda each: (each.occurred_at, each.id), reverse=True)
                for limit in (13, 50) if line == "gold" else (50,):
                    down = await _leaf(both, line, limit, newer=False)
                    assert down == wanted
                    up = await _leaf(both, line, limit, newer=True)
                    assert up == wanted

    asyncio.run(scenario())


async def _leaf(both: tiers.Tiers, line: str, limit: int, *, newer: bool) -> list[StoredActivity]:
    """All of it, a page at a time."""
    found: list[StoredActivity] = []
    place: Place | None = (
        Place(TODAY - timedelta(days=3_000), "00000000-0000-0000-0000-000000000000") if newer else None
    )
    while True:
        page = (
            await both.search(
                parse(line),
                limit=limit,
                seconds=60,
                older_than=None if newer else place,
                newer_than=place if newer else None,
            )
        ).page
        found = [*page.items, *found] if newer else [*found, *page.items]
        place = page.newer if newer else page.older
        if place is None:
            return found


def test_what_comes_late_makes_another_part_and_what_comes_again_does_not(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn)
        lake = Lake(str(tmp_path / "lake"))
        await move(dsn, lake)
        day = (TODAY - timedelta(days=100)).date()
        async with connect(dsn) as db:
            await make_partitions(db, days=[day])
        async with open_sink(dsn) as sink:
            await sink.write(a_batch(100, 8_000, 4))
        done = await move(dsn, lake)
        assert [(deed.kind.value, deed.rows) for deed in done.deeds] == [("copied", 4), ("dropped", 4)]
        async with connect(dsn) as db:
            parts = [part for part in await read_parts(db) if part.day == day]
            assert [(part.part, part.rows, part.known) for part in parts] == [(1, 30, 0), (2, 4, 0)]
            assert all(each.same for each in await verify(db, lake))
            await make_partitions(db, days=[day])
        async with open_sink(dsn) as sink:
            # Sent once more, from a spool that was forgotten: known, and told once.
            await sink.write(a_batch(100, 8_000, 4))
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            assert len((await both.search(parse(f"at:{day}"), limit=100)).page.items) == 34
        done = await move(dsn, lake)
        assert [(deed.kind.value, deed.rows) for deed in done.deeds] == [("copied", 0), ("dropped", 4)]
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            assert len((await both.search(parse(f"at:{day}"), limit=100)).page.items) == 34
            assert all(each.same for each in await verify(db, lake))
            await make_partitions(db, days=[day])
        async with open_sink(dsn) as sink:
            await sink.write(a_batch(100, 8_000, 4))
        async with connect(dsn) as db:
            await db.run(
                b"update afterwrite.activity set action = 'forged' where occurred_at < now() - interval '90 d'"
            )
        # The same ids, and another story: neither side is given up.
        done = await move(dsn, lake)
        assert [finding.rule for finding in done.survey.findings] == ["lake-differs"]
        assert done.deeds == ()

    asyncio.run(scenario())


def test_kept_days_are_told_from_the_store_alone(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn)
        lake = Lake(str(tmp_path / "lake"))
        keep = ArchivePolicy(keep=True)
        assert [deed.kind.value for deed in (await move(dsn, lake, keep)).deeds] == ["copied"] * len(OLD)
        assert (await move(dsn, lake, keep)).deeds == ()
        async with connect(dsn) as db, tiers.both(db, lake) as both:
            told = await both.search(parse(""), limit=1000)
            assert (len(told.page.items), told.lake) == (150, frozenset())
        # They leave without being copied again.
        assert [deed.kind.value for deed in (await move(dsn, lake)).deeds] == ["dropped"] * len(OLD)
        other = Lake(str(tmp_path / "other"))
        async with connect(dsn) as db, tiers.both(db, other) as both:
            with pytest.raises(Refused, match="there is none at"):
                await both.search(parse(""), limit=1000)

    asyncio.run(scenario())


def test_many_files_of_a_day_become_few_and_say_the_same(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn)
        lake = Lake(str(tmp_path / "lake"))
        day = (TODAY - timedelta(days=100)).date()
        await move(dsn, lake)
        for number in (9_000, 9_100):
            async with connect(dsn) as db:
                await make_partitions(db, days=[day])
            async with open_sink(dsn) as sink:
                await sink.write(a_batch(100, number, 2))
            done = await move(dsn, lake, ArchivePolicy(most_files=2))
        assert [deed.kind.value for deed in done.deeds] == ["copied", "dropped", "compacted"]
        assert len(lake.files([day])) == 1
        async with connect(dsn) as db:
            assert all(each.same for each in await verify(db, lake))

    asyncio.run(scenario())


def test_wide_rows_lie_in_small_groups_so_that_none_fills_the_memory(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as parquet

    monkeypatch.setattr(table, "_GROUP_BYTES", 100_000)
    dice = random.Random(1)

    def wide(first: int, rows: int) -> Batch:
        batch = a_batch(100, first, rows)
        notes = [msgspec.Raw(msgspec.json.encode({"note": dice.randbytes(2_500).hex()})) for _ in batch.activities]
        activities = [
            msgspec.structs.replace(each, metadata=note) for each, note in zip(batch.activities, notes, strict=True)
        ]
        return msgspec.structs.replace(batch, activities=activities)

    async def scenario() -> None:
        lake = Lake(str(tmp_path / "lake"))
        day = (TODAY - timedelta(days=100)).date()
        await lay(dsn, rows=1)
        for number in (0, 1, 2):
            async with connect(dsn) as db:
                await make_partitions(db, days=[day])
            async with open_sink(dsn) as sink:
                await sink.write(wide(20_000 + number * 100, 60))
            done = await move(dsn, lake, ArchivePolicy(most_files=2))
            biggest = [
                parquet.read_metadata(lake.place(file)).row_group(group).num_rows
                for file in lake.files([day])
                for group in range(parquet.read_metadata(lake.place(file)).num_row_groups)
            ]
            # A row is 5,000 bytes as text; on disk somewhat less or more.
            assert max(biggest) <= 50
            assert len(biggest) >= 2
        assert done.deeds[-1].kind is DeedKind.COMPACTED
        async with connect(dsn) as db:
            assert all(each.same for each in await verify(db, lake))

    asyncio.run(scenario())


def test_a_history_is_handed_over_once_with_its_checksums(dsn: str, tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    async def scenario() -> None:
        await lay(dsn)
        lake = Lake(str(tmp_path / "lake"))
        async with connect(dsn) as db:
            every = (await find(db, parse("tenant:a"), limit=1000, seconds=60)).items
        await move(dsn, lake)
        async with connect(dsn) as db:
            handed = await hand_over(db, lake, parse("tenant:a"), tmp_path / "out")
            with pytest.raises(UsageError, match="something in"):
                await hand_over(db, lake, parse("tenant:a"), tmp_path / "out")
            await db.run(b"create table afterwrite.activity_archived_2020_01_01 ()")
            with pytest.raises(Refused, match="activity_archived_2020_01_01"):
                await hand_over(db, lake, parse("tenant:a"), tmp_path / "again")
        told = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
        assert told["rows"] == handed.rows == len(every)
        ids: list[str] = []
        for piece in told["files"]:
            path = tmp_path / "out" / piece["file"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == piece["sha256"]
            rows = parquet.read_table(path).to_pylist()
            assert len(rows) == piece["rows"]
            ids += [row["id"] for row in rows]
        assert sorted(ids) == sorted(each.id for each in every)

    asyncio.run(scenario())


def test_the_commands_say_what_they_do(dsn: str, tmp_path: Path) -> None:
    asyncio.run(lay(dsn))
    env = {"AFTERWRITE_DSN": dsn, "AFTERWRITE_LAKE_URL": str(tmp_path / "lake"), "COLUMNS": "80"}
    looked = typed("lake", "archive", env=env)
    assert looked.returncode == 0, looked.stderr
    assert "Nothing is in the lake yet." in looked.stdout
    assert "Nothing was done" in looked.stdout
    done = typed("lake", "archive", "--apply", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["parts"]) == len(OLD)
    checked = typed("lake", "verify", env=env)
    assert max(map(len, looked.stdout.splitlines())) <= 80
    assert "90 rows: all as archived." in checked.stdout
    found = json.loads(typed("search", "--json", "-n", "1000", env=env).stdout)
    assert (len(found["items"]), len(found["lake"]["items"])) == (150, 90)
    apart = typed("search", "before:50d", env=env | {"AFTERWRITE_LAKE_URL": ""})
    assert "left the store for a lake, and lake_url does not say where" in apart.stderr
    one = found["lake"]["items"][0]
    assert json.loads(typed("show", one, "--json", env=env).stdout)["activity"]["id"] == one
    history = typed("history", "users/3", env=env)
    assert "from the lake, where" in history.stderr
    handed = typed("lake", "export", "--tenant", "a", "-o", tmp_path / "out", env=env)
    assert handed.returncode == 0, handed.stderr
    assert "lake.parquet" in handed.stdout
    assert max(map(len, typed("lake", "export", "--help", env=env).stdout.splitlines())) <= 80


def test_days_leave_by_one_way_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFTERWRITE_LAKE_URL", "s3://bucket/activity")
    secret = tmp_path / "options"
    secret.write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b,c=d\n")
    monkeypatch.setenv("AFTERWRITE_LAKE_OPTIONS_FILE", str(secret))
    given = load_settings(folder=tmp_path)
    assert given.lake_options == {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b,c=d"}
    monkeypatch.setenv("AFTERWRITE_LAKE_OPTIONS", "AWS_REGION")
    with pytest.raises(UsageError, match="lake_options in AFTERWRITE_LAKE_OPTIONS cannot be: it should be NAME=VALUE"):
        load_settings(folder=tmp_path)
    monkeypatch.delenv("AFTERWRITE_LAKE_OPTIONS")
    with pytest.raises(UsageError, match="retention_days"):
        load_settings(folder=tmp_path, retention_days=40)


def test_the_page_names_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lake.md").read_text()
    told = dict(re.findall(r"^\| `(lake_\w+)` \| (\S+) \|", page, re.MULTILINE))
    fields = {name: field.default for name, field in Settings.model_fields.items() if name.startswith("lake_")}
    assert told == {name: str(default or "none") for name, default in fields.items()}
