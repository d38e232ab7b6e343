"""Scan against the legacy application: the verdicts that its author wrote down beside it, never in the scanner."""

from __future__ import annotations

import asyncio
import csv
from collections import Counter
from pathlib import Path

from reading import surveyed

from afterwrite.demo.schema import create_legacy_application
from afterwrite.postgres import connect
from afterwrite.scan.report.document import document

AUTHOR = Path(__file__).parents[1] / "demo" / "verdicts.csv"


def test_every_trigger_is_judged_as_its_author_intended(dsn: str) -> None:
    async def lay() -> None:
        async with connect(dsn) as db:
            await create_legacy_application(db, seed=1)

    asyncio.run(lay())
    with AUTHOR.open() as file:
        intended = {(row["table"], row["trigger"]): row["verdict"] for row in csv.DictReader(file)}
    found = surveyed(dsn)
    judged = {(each.trigger.table, each.trigger.name): each.verdict.value for each in found.judgements}
    wrong = {
        each.trigger.identity: (each.verdict.value, [reason.text for reason in each.reasons])
        for each in found.judgements
        if intended.get((each.trigger.table, each.trigger.name)) != each.verdict.value
    }
    assert wrong == {}
    assert judged == intended
    assert Counter(judged.values()) == {"retire": 46, "defer": 18, "keep": 22}
    said = document(found)
    assert said.schema_version == 1
    assert len(said.triggers) == 86
