"""docs/store.md: its queries run, by the indexes that it promises, and it names what there is."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from afterwrite.postgres import connect
from afterwrite.settings import Settings
from afterwrite.store.partitions import INDEXES

_PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
_BLOCKS = re.findall(r"```sql\n(.*?)```", _PAGE, re.DOTALL)


def test_every_query_runs(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            for block in _BLOCKS:
                await db.script(block)

    assert len(_BLOCKS) >= 5
    asyncio.run(scenario())


def test_words_are_found_by_their_index(installed_dsn: str) -> None:
    (query,) = [block for block in _BLOCKS if "tsquery" in block]

    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await db.run(b"set enable_seqscan = off")
            await db.run(b"set enable_indexscan = off")  # the primary key, whose partitions are all empty here
            plan = "\n".join(await db.values(b"explain " + query.encode()))
            assert "_text" in plan, plan

    asyncio.run(scenario())


def test_settings_and_indexes_are_called_what_they_are_called() -> None:
    named = set(re.findall(r"^\| `(\w+)`", _PAGE, re.MULTILINE))
    assert set(INDEXES) <= named
    assert named - set(INDEXES) <= set(Settings.model_fields)
