"""A day leaves the store only with the rows that its batches were sealed with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from lake_scene import OLD, TODAY, a_batch, an_activity, lay
from typed import typed

from afterwrite.errors import AfterwriteError
from afterwrite.lake import archive as archiving
from afterwrite.lake.archive import SESSION, Archived, ArchivePolicy, archive
from afterwrite.lake.table import Lake
from afterwrite.postgres import connect
from afterwrite.record import Batch
from afterwrite.store.reader import verify_feed
from afterwrite.store.writer import open_sink

_DAY = f"occurred_at >= '{(TODAY - timedelta(days=99)).isoformat()}'"
_DAY += f" and occurred_at < '{(TODAY - timedelta(days=98)).isoformat()}'"
FORGED = {
    "a changed row": f"update afterwrite.activity set action = 'forged' where id = (select min(id::text)::uuid from"
    f" afterwrite.activity where {_DAY})",
    "a row that is gone": f"delete from afterwrite.activity where id = (select min(id::text)::uuid from"
    f" afterwrite.activity where {_DAY})",
    "all rows gone": f"delete from afterwrite.activity where {_DAY}",
    "a row more": "insert into afterwrite.activity select (jsonb_populate_record(a, jsonb_build_object('id',"
    f" gen_random_uuid(), 'batch_id', 1000000))).* from afterwrite.activity a where {_DAY} limit 1",
    "another seal": "update afterwrite.batch set rows_digest = sha256('') where id = (select batch_id from"
    f" afterwrite.activity where {_DAY} limit 1)",
}


async def move(dsn: str, folder: Path, **policy: bool) -> Archived:
    async with connect(dsn, options=SESSION) as db:
        return await archive(db, Lake(str(folder)), ArchivePolicy(**policy))


def test_a_day_whose_rows_are_not_what_was_sealed_stays_and_the_others_leave(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=6)
        for number, (name, forgery) in enumerate(FORGED.items()):
            async with connect(dsn) as db:
                assert (await verify_feed(db)).first_break is None
                await db.run(b"create table kept as select * from afterwrite.activity")
                await db.run(b"create table sealed as select id, rows_digest from afterwrite.batch")
                await db.run(forgery.encode())
            done = await move(dsn, tmp_path / "lake")
            assert [finding.rule for finding in done.survey.findings] == ["lake-seal-broken"], name
            assert [due.day for due in done.survey.due] == [(TODAY - timedelta(days=99)).date()], name
            assert {deed.kind.value for deed in done.deeds} == (set() if number else {"copied", "dropped"}), name
            async with connect(dsn) as db:
                await db.run(f"delete from afterwrite.activity where {_DAY}".encode())
                await db.run(f"insert into afterwrite.activity select * from kept where {_DAY}".encode())
                await db.run(
                    b"update afterwrite.batch b set rows_digest = s.rows_digest from sealed s"
                    b" where s.id = b.id and s.rows_digest <> b.rows_digest"
                )
                await db.run(b"drop table kept, sealed")
        assert [deed.kind.value for deed in (await move(dsn, tmp_path / "lake")).deeds] == ["copied", "dropped"]
        # What comes late, and makes another part of the day, is sealed too.
        async with open_sink(dsn) as sink:
            await sink.write(a_batch(99, 7_000, 3))
        async with connect(dsn) as db:
            await db.run(FORGED["a changed row"].encode())
        done = await move(dsn, tmp_path / "lake")
        assert [finding.rule for finding in done.survey.findings] == ["lake-seal-broken"]

    asyncio.run(scenario())


def test_what_was_done_to_a_day_after_it_was_copied_is_seen_while_it_can_stay(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=6)
        await move(dsn, tmp_path / "lake", keep=True)
        async with connect(dsn) as db:
            await db.run(FORGED["a changed row"].encode())
        done = await move(dsn, tmp_path / "lake")
        assert [finding.rule for finding in done.survey.findings] == ["lake-seal-broken"]
        assert [deed.kind.value for deed in done.deeds] == ["dropped"] * (len(OLD) - 1)

    asyncio.run(scenario())
    env = {"AFTERWRITE_DSN": dsn, "AFTERWRITE_LAKE_URL": str(tmp_path / "lake"), "COLUMNS": "80"}
    told = typed("lake", "archive", "--apply", "--json", env=env)
    assert told.returncode == 3, told.stderr
    assert "compare that day with a backup" in json.loads(told.stdout)["findings"][0]["remedy"]


def test_a_batch_over_midnight_is_read_whole_when_the_first_of_its_days_leaves(dsn: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await lay(dsn, rows=2)
        midnight = TODAY - timedelta(days=99)
        both = [an_activity(9_000 + n, midnight + timedelta(seconds=n - 2)) for n in range(4)]
        async with open_sink(dsn) as sink:
            await sink.write(Batch(source="main", activities=both, transactions=0))
        async with connect(dsn) as db:
            # Of the second day, when it is the first that is to leave.
            await db.run(b"update afterwrite.activity set action = 'forged' where id = '%s'" % both[3].id.encode())
        done = await move(dsn, tmp_path / "lake")
        assert [finding.rule for finding in done.survey.findings] == ["lake-seal-broken"] * 2
        async with connect(dsn) as db:
            await db.run(
                b"update afterwrite.activity set action = '%s' where id = '%s'"
                % (both[3].action.encode(), both[3].id.encode())
            )
        done = await move(dsn, tmp_path / "lake")
        assert (done.survey.findings, done.survey.due) == ((), ())

    asyncio.run(scenario())


def test_where_the_writing_breaks_off_its_own_trouble_is_told(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Lake, store: str, day: object, part: int, batches: Iterator[object], *, width: int) -> int:
        next(batches)
        raise AfterwriteError("the disk of the lake is full")

    monkeypatch.setattr(Lake, "append", fail)
    monkeypatch.setattr(archiving, "_CHUNK_BYTES", 1)

    async def scenario() -> None:
        await lay(dsn, rows=40)
        async with connect(dsn, options=SESSION) as db:
            with pytest.raises(AfterwriteError, match="the disk of the lake is full"):
                await archive(db, Lake(str(tmp_path / "lake")), ArchivePolicy())
            assert await db.value(b"select count(*) from afterwrite.activity") == 200

    asyncio.run(scenario())
