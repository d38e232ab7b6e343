"""Attempts to have a trigger retired that must not go: effects and dependencies where one does not look for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from scenes import judge_scripts

from afterwrite.postgres.embedded import Server
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

    return asyncio.run(judge_scripts(server, {attack.name: attack.sql for attack in ATTACKS}, trigger="t"))


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name.replace(" ", "-")) for attack in ATTACKS])
def test_what_is_hidden_is_found(attack: Attack, judged: dict[str, Judgement]) -> None:
    judgement = judged[attack.name]
    said = "; ".join(f"{reason.rule}: {reason.text}" for reason in judgement.reasons)
    assert judgement.verdict in attack.allowed, f"{judgement.verdict.value}: {said}"


def test_there_are_as_many_attacks_as_the_file_says() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) > 100
