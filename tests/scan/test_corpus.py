"""Triggers in the styles seen in the wild, each with the verdict that a careful DBA gives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from scenes import CORPUS, Intention, intentions, laid, shown

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.parser import Parser, open_parser
from afterwrite.scan.survey import Survey, judge_inventory

DOCUMENT = Path(__file__).parents[2] / "docs" / "scan-corpus.md"
INTENDED = [each for path in CORPUS for each in intentions(path)]
# What a verdict allows to be done: nothing, nothing before a person has looked, to be late, to be gone.
_ALLOWS = {Verdict.KEEP: 0, Verdict.REVIEW: 0, Verdict.DEFER: 1, Verdict.RETIRE: 2}


@pytest.fixture(scope="module")
def found(server: Server) -> Mapping[str, Survey]:
    """The survey of every scene, by its name."""

    async def look() -> dict[str, Survey]:
        async with open_parser() as parser:
            return {path.stem: await _surveyed(server, path, parser) for path in CORPUS}

    return asyncio.run(look())


async def _surveyed(server: Server, path: Path, parser: Parser) -> Survey:
    with laid(server, path, "corpus") as dsn:
        async with connect(dsn) as db:
            return await judge_inventory(await read_inventory(db), parser)


@pytest.fixture(scope="module")
def judged(found: Mapping[str, Survey]) -> dict[str, Judgement]:
    """Every judgement, by ``scene:schema.table.trigger``."""
    return {
        f"{scene}:{judgement.trigger.identity}": judgement
        for scene, survey in found.items()
        for judgement in survey.judgements
    }


def _each() -> Iterator[object]:
    for each in INTENDED:
        marks = [pytest.mark.xfail(reason=each.wrong, strict=True)] if each.wrong else []
        yield pytest.param(each, id=each.id, marks=marks)


def _said(judgement: Judgement) -> str:
    reasons = "; ".join(f"{reason.rule} (line {reason.line}): {reason.text}" for reason in judgement.reasons)
    return f"{judgement.verdict.value}: {reasons}"


@pytest.mark.parametrize("intended", list(_each()))
def test_verdict_and_rule_are_those_of_a_careful_person(intended: Intention, judged: Mapping[str, Judgement]) -> None:
    judgement = judged[intended.id]
    assert judgement.verdict is intended.verdict, f"{_said(judgement)}; but {intended.because}"
    if intended.rules:
        assert {reason.rule for reason in judgement.reasons}.intersection(intended.rules), _said(judgement)


def test_nothing_may_go_or_wait_that_must_not(judged: Mapping[str, Judgement]) -> None:
    known = {each.id for each in INTENDED if each.wrong}
    loose = {
        each.id: _said(judged[each.id])
        for each in INTENDED
        if each.id not in known and _ALLOWS[judged[each.id].verdict] > _ALLOWS[each.verdict]
    }
    assert loose == {}


def test_every_trigger_of_the_corpus_is_expected_and_nothing_else_is_found(judged: Mapping[str, Judgement]) -> None:
    assert set(judged) == {each.id for each in INTENDED}
    assert len(judged) == len(INTENDED) >= 300
    assert {each.verdict for each in INTENDED} == set(Verdict)


def test_the_document_counts_the_corpus_as_it_is() -> None:
    assert shown() in DOCUMENT.read_text(), "./run python tests/scan/scenes.py prints the table of docs/scan-corpus.md"


def test_every_deciding_line_lies_within_the_body_and_every_verdict_has_a_reason(found: Mapping[str, Survey]) -> None:
    for survey in found.values():
        for judgement in survey.judgements:
            assert judgement.reasons, judgement.trigger.identity
            lines = judgement.trigger.source.count("\n") + 1
            for reason in judgement.reasons:
                assert reason.line is None or 1 <= reason.line <= lines, (judgement.trigger.identity, reason)
                assert reason.text
