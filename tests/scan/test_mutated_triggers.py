"""Mutated bodies: none ends us, and none is judged more loosely than it deserves. `mutate` says what that means."""

from __future__ import annotations

import asyncio

import msgspec
import mutate
import pytest
from mutations import Kind
from scenes import CORPUS

from afterwrite.postgres.embedded import Server
from afterwrite.scan.catalog import Inventory
from afterwrite.scan.classify import Verdict
from afterwrite.scan.parser import Parser
from afterwrite.scan.survey import Survey, judge_inventory

# The command tries 10,000 (docs/scan-corpus.md); so many fit into the suite.
BODIES, SEED = 300, 4


@pytest.fixture(scope="module")
def account(server: Server) -> mutate.Account:
    return asyncio.run(mutate.run(server, BODIES, SEED))


def test_every_mutated_body_is_judged_and_our_process_lives(account: mutate.Account) -> None:
    assert account.bodies == BODIES
    assert all(sum(counted.values()) > BODIES / 20 for counted in account.outcomes.values())


@pytest.mark.parametrize("check", ["unread", "seen", "looser", "others", "decorated", "added"])
def test_no_verdict_is_looser_without_a_reason(account: mutate.Account, check: str) -> None:
    assert [str(failure) for failure in account.failures if failure.what.startswith(f"{check}:")] == []


def test_reasons_are_needed_and_the_server_gives_them(account: mutate.Account) -> None:
    """The oracle has work to do: mutated bodies that may go are run, and some verdicts do become looser."""
    assert account.run > BODIES / 10
    damaged = account.outcomes[Kind.DAMAGE]
    assert damaged["looser: a place cannot be read"] > BODIES / 20
    assert damaged["looser: the effect is no longer seen"] > 0


def test_a_judge_that_lets_everything_go_is_found_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check fails when it should: a scene's first survey is honest, and then everything may be retired."""
    surveyed: set[str] = set()

    async def careless(inventory: Inventory, parser: Parser) -> Survey:
        found = await judge_inventory(inventory, parser)
        if inventory.database not in surveyed:
            surveyed.add(inventory.database)
            return found
        gone = tuple(msgspec.structs.replace(each, verdict=Verdict.RETIRE) for each in found.judgements)
        return msgspec.structs.replace(found, judgements=gone)

    monkeypatch.setattr(mutate, "judge_inventory", careless)
    paths = [path for path in CORPUS if path.stem in ("lookalikes", "effects")]
    account = asyncio.run(mutate.run(server, 80, SEED, paths=paths))
    caught = {failure.what.partition(":")[0] for failure in account.failures}
    assert caught == {"unread", "seen", "looser", "others", "decorated", "added"}
