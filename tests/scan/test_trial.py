"""Every trigger of the corpus is run by the server, and none is seen doing what its verdict leaves no room for."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from scenes import CORPUS, intentions, laid
from trial import Court, unsound

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.scan.catalog import Inventory, read_inventory
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.parser import open_parser
from afterwrite.scan.survey import Survey, judge_inventory

Tried = list[tuple[str, Judgement, list[tuple[str, str]]]]


async def _survey(dsn: str) -> tuple[Inventory, Survey]:
    async with connect(dsn) as db, open_parser() as parser:
        inventory = await read_inventory(db)
        return inventory, await judge_inventory(inventory, parser)


@pytest.fixture(scope="module")
def tried(server: Server) -> Tried:
    """Every trigger that can be run: its id, its judgement, and what it was seen to do."""
    found: Tried = []
    for path in CORPUS:
        with laid(server, path, "trial") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
            inventory, survey = asyncio.run(_survey(dsn))
            court = Court(connection, inventory)
            court.furnish()
            found += [
                (f"{path.stem}:{each.trigger.identity}", each, court.effects(each.trigger, None))
                for each in survey.judgements
                if court.can_try(each.trigger)
            ]
    return found


def test_no_verdict_denies_what_the_server_is_seen_to_do(tried: Tried) -> None:
    wrong = {each.id for path in CORPUS for each in intentions(path) if each.wrong}
    denied = {name: said for name, judgement, seen in tried if name not in wrong and (said := unsound(judgement, seen))}
    assert denied == {}


def test_the_trial_shows_what_keeps(tried: Tried) -> None:
    """Otherwise it would show nothing: much of what is kept is seen refusing, or changing its own table."""
    kept = [seen for _, judgement, seen in tried if judgement.verdict is Verdict.KEEP]
    shown = [seen for seen in kept if any(what in ("refuses", "changes its own table") for what, _ in seen)]
    assert len(shown) > len(kept) / 3, (len(shown), len(kept))
