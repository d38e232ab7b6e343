"""What hangs together is told from both tiers as from the store alone; where the lake is not asked, that is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lake_scene import TODAY, a_batch

from afterwrite.lake import read
from afterwrite.lake.archive import SESSION, ArchivePolicy, archive
from afterwrite.lake.compile import Asked
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.read import Between, TimeUpError
from afterwrite.lake.table import Lake
from afterwrite.lake.tiers import LakeAwayError, Tiers, both
from afterwrite.postgres import Database, connect
from afterwrite.record import Activity, Batch, Kind, Lsn, Operation
from afterwrite.search.find import find
from afterwrite.search.query import parse
from afterwrite.search.windows import FIRST_ID, Place
from afterwrite.store.partitions import make_partitions
from afterwrite.store.reader import StoredActivity
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

OLD, NEW = TODAY - timedelta(days=99) + timedelta(hours=5), TODAY - timedelta(days=20)


def uuid(at: datetime, tail: str, version: int = 8) -> str:
    milliseconds = f"{int(at.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-{version}000-8000-{tail:0>12}"


def a_change(at: datetime, tail: str, lsn: int, cause: str | None, **more: Any) -> Activity:
    given: dict[str, Any] = {
        "entity_type": "users", "entity_id": "7", "operation": Operation.UPDATE, "relation": "public.users",
        "changed": ("plan",), "before": msgspec.Raw(b'{"id": 7, "plan": "a"}'),
        "after": msgspec.Raw(b'{"id": 7, "plan": "b"}'),
    }  # fmt: skip
    return Activity(
        id=uuid(at, tail), occurred_at=at, source="main", kind=Kind.CHANGE, category="data", action="users.update",
        xid=lsn, commit_lsn=Lsn(lsn), ordinal=int(tail[-1]), caused_by=cause, **given | more,
    )  # fmt: skip


def an_event(at: datetime, tail: str, version: int = 7, cause: str | None = None) -> Activity:
    return Activity(
        id=uuid(at, tail, version), occurred_at=at, source="main", kind=Kind.EVENT, category="data",
        action="user.asked", caused_by=cause,
    )  # fmt: skip


def what_hangs_together() -> list[Activity]:
    """An event, the transaction that it explains, an event in that, and what deferred triggers made of both later."""
    asked = an_event(OLD, "a1")
    first = a_change(OLD + timedelta(seconds=1), "100000000", 500, asked.id)
    inside = an_event(first.occurred_at, "100000005", 8)
    gone = a_change(NEW + timedelta(hours=1), "700000000", 900, None, operation=Operation.DELETE, after=None)
    return [
        asked,
        first,
        a_change(first.occurred_at, "100000001", 500, asked.id, entity_id="8"),
        inside,
        a_change(OLD + timedelta(days=2), "300000000", 600, first.id, entity_id="9"),
        a_change(NEW, "500000000", 700, first.id, before=msgspec.Raw(b'{"id": 7, "plan": "b"}'),
                 after=msgspec.Raw(b'{"id": 7, "plan": "c"}')),
        a_change(NEW, "600000000", 800, inside.id, entity_id="11"),
        gone,
    ]  # fmt: skip


async def lay(dsn: str) -> tuple[StoredActivity, ...]:
    """A store with what hangs together over months, and with others of three of these days."""
    async with connect(dsn) as db:
        await install_store(db)
        await make_partitions(db, days=[each.date() for each in (OLD, OLD + timedelta(days=2), NEW, TODAY)])
        await db.run(b"insert into afterwrite.feed_reader (source, position, commit_lsn) values ('main', 9999, 'F/0')")
    async with open_sink(dsn) as sink:
        await sink.write(Batch(source="main", activities=what_hangs_together()[:4], transactions=1))
        for each in what_hangs_together()[4:]:
            await sink.write(Batch(source="main", activities=[each], transactions=0))
        for number, days in enumerate((99, 97, 20)):
            await sink.write(a_batch(days, 1_000 * (number + 1), 12))
    async with connect(dsn) as db:
        return (await find(db, parse(""), limit=1000, seconds=60)).items


async def move(dsn: str, folder: Path) -> Lake:
    lake = Lake(str(folder / "lake"))
    async with connect(dsn, options=SESSION) as db:
        done = await archive(db, lake, ArchivePolicy())
    assert (done.survey.findings, len(done.deeds)) == ((), 4)
    return lake


async def ask_all(tiers: Tiers) -> dict[str, Any]:
    """Everything that can be asked of what hangs together, without saying where it came from."""
    found = (await tiers.search(parse(""), limit=1000, seconds=60)).page.items
    known = {each.id for each in what_hangs_together()}
    told: dict[str, Any] = {}
    for each in [each for each in found if each.id in known]:
        told[f"{each.id} itself"] = (await tiers.read_activity(each.id, occurred_at=each.occurred_at)).activity
        told[f"{each.id} cause"] = (await tiers.read_cause(each)).activity
        for limit in (1, 50):
            told[f"{each.id} effects {limit}"] = (await tiers.effects(each, limit=limit)).page
        told[f"{each.id} together"] = (await tiers.same_transaction(each, limit=50)).page
        told[f"{each.id} around"] = (await tiers.around(each.occurred_at, seconds=90_000, limit=5)).page
    for id in ("7", "8", "404"):
        for at in (OLD - timedelta(1), OLD + timedelta(hours=1), NEW + timedelta(1)):
            told[f"row {id} at {at}"] = (await tiers.row_at("users", id, at)).row
    for name, page in told.items():
        assert "effects" not in name or len({each.id for each in page.items}) == len(page.items), name
    return told


def test_what_hangs_together_is_the_same_when_half_of_it_has_left(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn)
        async with connect(dsn) as db, both(db, Lake(str(tmp_path / "lake"))) as tiers:
            before = await ask_all(tiers)
        assert sum(len(page.items) for name, page in before.items() if "effects 50" in name) >= 8
        lake = await move(dsn, tmp_path)
        async with connect(dsn) as db:
            async with both(db, lake) as tiers:
                after = await ask_all(tiers)
                for name, told in before.items():
                    assert after[name] == told, name
                row = await tiers.row_at("users", "7", OLD + timedelta(hours=1))
                assert (row.row.exists, len(row.lake)) == (True, 1)
            # Without the lake nothing is told as if it were all.
            async with both(db, None) as alone:
                change = what_hangs_together()[1]
                row = await alone.row_at("users", "7", OLD + timedelta(hours=1))
                assert row.row.exists is not True or row.row.since is None
                moved = await alone.row_at("users", "8", NEW)
                assert moved.row.exists is None
                assert "is in the lake, which was not asked" in " ".join(moved.row.doubts)
                missing = await alone.read_activity(change.id)
                assert missing.activity is None
                assert "lake_url does not say where" in (missing.why or "")
                event = (await find(db, parse("entity:users/7"), limit=1)).items[0]
                assert (await alone.effects(event)).why is None

    asyncio.run(scenario())


def test_a_lake_that_is_away_leaves_the_stores_part_and_one_that_is_slow_is_gone_on_with(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        every = await lay(dsn)
        await move(dsn, tmp_path)
        async with connect(dsn) as db:

            @asynccontextmanager
            async def store() -> AsyncGenerator[Database]:
                yield db

            await see_it_away(Tiers(store, Away()))
            told = await Tiers(store, Away(), walled=True).search(parse("before:50d"), limit=5)
            assert (told.walled, told.lake, told.days) == (True, frozenset(), ())
            # A day is asked at a time.
            monkeypatch.setattr(read, "_FIRST_ROWS", 1)
            monkeypatch.setattr(read, "_MOST_ROWS", 1)
            for limit, newer in ((1000, False), (7, False), (1000, True)):
                assert await leaf(Tiers(store, Hasty(tmp_path)), limit, newer=newer) == list(every), (limit, newer)

    asyncio.run(scenario())


async def see_it_away(tiers: Tiers) -> None:
    told = await tiers.search(parse("before:50d"), limit=5)
    assert (told.page.items, told.why) == ((), "it is away")
    told = await tiers.search(parse(""), limit=5)
    assert (len(told.page.items), told.why) == (5, None)
    assert (await tiers.effects(told.page.items[0])).why is None
    assert (await tiers.read_activity(what_hangs_together()[1].id)).why == "it is away"
    told_row = await tiers.row_at("users", "8", NEW)
    assert (told_row.why, told_row.row.exists) == ("it is away", None)
    assert "it is away" in told_row.row.doubts


class Away:
    """A lake that does not answer."""

    async def ask(self, work: object) -> Any:
        raise LakeAwayError("it is away")


class Hasty:
    """Lets a day be looked through, and then says stop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def ask(self, work: Any) -> Any:
        with DuckEngine(Lake(str(self._folder / "lake"))) as engine:
            rows, reads = engine.rows, 0

            def hurried(query: str, params: dict[str, object]) -> Any:
                nonlocal reads
                reads += 1
                if reads > 1:
                    engine.interrupt()
                return rows(query, params)

            engine.rows = hurried  # type: ignore[method-assign]
            return work(engine)


async def leaf(tiers: Tiers, limit: int, *, newer: bool) -> list[StoredActivity]:
    """All of it, a page at a time; some of them end where the time was up."""
    found: list[StoredActivity] = []
    place: Place | None = Place(OLD - timedelta(days=900), FIRST_ID) if newer else None
    looked = 0
    while True:
        words = {"newer_than": place} if newer else {"older_than": place}
        told = await tiers.search(parse(""), limit=limit, seconds=60, **words)
        assert told.why is None
        page = told.page
        looked += told.lake_looked and page.looked is not None
        found = [*page.items, *found] if newer else [*found, *page.items]
        assert (page.newer if newer else page.older) != (place or 0)
        place = page.newer if newer else page.older
        if place is None:
            assert looked
            return found


def test_an_interrupted_engine_can_be_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Lake, "files", lambda *_: [read.File(path="x", day=OLD.date(), rows=1, bytes=1, least={}, greatest={})]
    )
    with DuckEngine(Lake(str(tmp_path / "lake"))) as engine:
        engine.interrupt()
        with pytest.raises(TimeUpError):
            engine.ask(Asked(where="true", params={}, exact=True, equal={}), bool, [OLD.date()], Between(), 1)
        engine.resume()
        assert engine.rows("select 1 as one", {}) == [{"one": 1}]
