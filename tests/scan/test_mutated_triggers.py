"""Hundreds of damaged bodies in a database: none ends us, and none is retired that was not read to its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import msgspec
import pytest
from scenes import CORPUS, laid

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.scan.catalog import Inventory, Trigger, read_inventory
from afterwrite.scan.classify import Verdict
from afterwrite.scan.parser import open_parser
from afterwrite.scan.survey import Survey, judge_inventory

_WORDS = ("raise", "exception", "return", "null", "new", "old", "execute", "insert", "into", "begin", "end", ";", "--")


@pytest.fixture(scope="module", params=CORPUS, ids=lambda path: path.stem)
def inventory(server: Server, request: pytest.FixtureRequest) -> Iterator[Inventory]:
    with laid(server, request.param, "mutated") as dsn:
        yield asyncio.run(_inventory(dsn))


async def _inventory(dsn: str) -> Inventory:
    async with connect(dsn) as db:
        return await read_inventory(db)


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_body_is_never_retired_or_deferred_unread(inventory: Inventory, seed: int) -> None:
    rng = random.Random(seed)
    triggers = tuple(_damaged(trigger, rng) for trigger in inventory.triggers)
    found = _judge(msgspec.structs.replace(inventory, triggers=triggers))
    assert len(found.judgements) == len(triggers)
    for judgement in found.judgements:
        body = found.bodies[judgement.trigger.oid]
        assert judgement.reasons
        if judgement.verdict in (Verdict.RETIRE, Verdict.DEFER):
            assert body.parsed or judgement.trigger.language == "c", judgement.trigger.definition
        if any(fact.level == "exception" and fact.form != "reraise" for fact in body.raises):
            assert judgement.verdict is Verdict.KEEP
        if any(fact.rule == "unparsable" for fact in body.unknowns):
            assert judgement.verdict in (Verdict.REVIEW, Verdict.KEEP)


def test_damage_that_only_adds_a_refusal_always_keeps(inventory: Inventory) -> None:
    def refusing(trigger: Trigger) -> Trigger:
        return _with_body(trigger, lambda body: body.replace("begin", "begin raise exception 'no';", 1))

    found = _judge(msgspec.structs.replace(inventory, triggers=tuple(map(refusing, inventory.triggers))))
    changed = [each for each in found.judgements if "begin raise exception 'no';" in each.trigger.definition]
    assert len(changed) > 5
    assert {each.verdict for each in changed} == {Verdict.KEEP}


def test_damage_that_only_adds_dynamic_sql_is_at_least_reviewed(inventory: Inventory) -> None:
    def executing(trigger: Trigger) -> Trigger:
        return _with_body(trigger, lambda body: body.replace("begin", "begin execute current_query();", 1))

    found = _judge(msgspec.structs.replace(inventory, triggers=tuple(map(executing, inventory.triggers))))
    changed = [each for each in found.judgements if "begin execute current_query();" in each.trigger.definition]
    assert len(changed) > 5
    assert {each.verdict for each in changed} == {Verdict.KEEP, Verdict.REVIEW}


def _judge(inventory: Inventory) -> Survey:
    async def judge() -> Survey:
        async with open_parser() as parser:
            return await judge_inventory(inventory, parser)

    return asyncio.run(judge())


def _damaged(trigger: Trigger, rng: random.Random) -> Trigger:
    return _with_body(trigger, lambda body: _damage(body, rng))


def _with_body(trigger: Trigger, change: object) -> Trigger:
    head, mark, rest = trigger.definition.partition("$function$")
    body, closing, tail = rest.partition("$function$")
    assert callable(change)
    definition = f"{head}{mark}{change(body)}{closing}{tail}" if mark else trigger.definition
    return msgspec.structs.replace(trigger, definition=definition)


def _damage(body: str, rng: random.Random) -> str:
    words = body.split(" ")
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(words))
        match rng.randrange(4):
            case 0:
                del words[place]
            case 1:
                words.insert(place, rng.choice(_WORDS))
            case 2:
                words.insert(rng.randrange(len(words)), words[place])
            case _:
                letter = rng.randrange(max(1, len(words[place])))
                words[place] = words[place][:letter] + rng.choice("();'\"$:=,.%|\\é0") + words[place][letter + 1 :]
        words = words or [""]
    return " ".join(words)
