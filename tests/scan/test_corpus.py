"""Triggers in the styles seen in the wild, each with the verdict that a careful person gives."""

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
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.survey import Survey, survey

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.sql"))
_EXPECTED = re.compile(
    r"^-- = (?P<verdict>\w+): (?P<rule>[\w-]+)\ncreate (?:constraint )?trigger (?P<name>\"[^\"]+\"|\w+)\s"
    r".*?\son (?P<table>\w+\.(?:\"[^\"]+\"|\w+))",
    re.MULTILINE | re.DOTALL,
)


class Expected(NamedTuple):
    trigger: str
    verdict: Verdict
    rule: str


def expectations(path: Path) -> Iterator[Expected]:
    for match in _EXPECTED.finditer(path.read_text()):
        name = f"{match['table']}.{match['name']}".replace('"', "")
        yield Expected(name, Verdict(match["verdict"]), match["rule"])


@pytest.fixture(scope="module")
def found(server: Server) -> Iterator[Survey]:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("create database scan_corpus")
    with psycopg.connect(server.dsn("scan_corpus"), autocommit=True) as laid:
        for path in CORPUS:
            laid.execute(path.read_text())  # type: ignore[arg-type]
    yield asyncio.run(_survey(server.dsn("scan_corpus")))
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("drop database scan_corpus with (force)")


async def _survey(dsn: str) -> Survey:
    async with connect(dsn) as db:
        return await survey(db)


@pytest.fixture(scope="module")
def judged(found: Survey) -> dict[str, Judgement]:
    return {judgement.trigger.identity: judgement for judgement in found.judgements}


EXPECTED = [pytest.param(each, id=each.trigger) for path in CORPUS for each in expectations(path)]


@pytest.mark.parametrize("expected", EXPECTED)
def test_verdict_and_rule_are_those_of_a_careful_person(expected: Expected, judged: dict[str, Judgement]) -> None:
    judgement = judged[expected.trigger]
    said = [(reason.rule, reason.line, reason.text) for reason in judgement.reasons]
    assert judgement.verdict is expected.verdict, said
    assert expected.rule in {rule for rule, _, _ in said}, said


def test_every_trigger_of_the_corpus_is_expected_and_nothing_else_is_found(judged: dict[str, Judgement]) -> None:
    assert set(judged) == {expected.trigger for path in CORPUS for expected in expectations(path)}
    assert len(judged) >= 110


def test_every_deciding_line_lies_within_the_body_and_every_verdict_has_a_reason(found: Survey) -> None:
    for judgement in found.judgements:
        assert judgement.reasons, judgement.trigger.identity
        lines = judgement.trigger.source.count("\n") + 1
        for reason in judgement.reasons:
            assert reason.line is None or 1 <= reason.line <= lines, (judgement.trigger.identity, reason)
            assert reason.text
