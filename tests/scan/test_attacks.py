"""Attempts to have a trigger retired that must not go: effects and dependencies where one does not look for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.parser import open_parser
from afterwrite.scan.survey import judge_inventory
from afterwrite.scan.verdicts import Judgement, Verdict


class Attack(NamedTuple):
    name: str
    allowed: frozenset[Verdict]
    sql: str


def attacks() -> Iterator[Attack]:
    text = (Path(__file__).parent / "attacks.sql").read_text()
    for match in re.finditer(r"^--- (.+?) = (\S+)\n(.*?)(?=^--- |\Z)", text, re.MULTILINE | re.DOTALL):
        yield Attack(match[1], frozenset(map(Verdict, match[2].split("|"))), match[3])


ATTACKS = list(attacks())


@pytest.fixture(scope="module")
def judged(server: Server) -> dict[str, Judgement]:
    """The judgement of the trigger ``t`` of every attack."""

    async def look() -> dict[str, Judgement]:
        found: dict[str, Judgement] = {}
        async with open_parser() as parser:
            for attack in ATTACKS:
                with psycopg.connect(server.dsn(), autocommit=True) as admin:
                    admin.execute("create database scan_attack")
                try:
                    with psycopg.connect(server.dsn("scan_attack"), autocommit=True) as laid:
                        laid.execute(attack.sql)  # type: ignore[arg-type]
                    async with connect(server.dsn("scan_attack")) as db:
                        survey = await judge_inventory(await read_inventory(db), parser)
                finally:
                    with psycopg.connect(server.dsn(), autocommit=True) as admin:
                        admin.execute("drop database scan_attack with (force)")
                (found[attack.name],) = [each for each in survey.judgements if each.trigger.name == "t"]
        return found

    return asyncio.run(look())


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name.replace(" ", "-")) for attack in ATTACKS])
def test_what_is_hidden_is_found(attack: Attack, judged: dict[str, Judgement]) -> None:
    judgement = judged[attack.name]
    said = "; ".join(f"{reason.rule}: {reason.text}" for reason in judgement.reasons)
    assert judgement.verdict in attack.allowed, f"{judgement.verdict.value}: {said}"


def test_there_are_as_many_attacks_as_the_file_says() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) > 100
