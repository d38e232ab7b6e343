"""Every rule has its chapter in docs/rules.md, and the chapter's example gets exactly that verdict by that rule."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from scenes import judge_scripts

from afterwrite.postgres.embedded import Server
from afterwrite.scan.rules import RULES
from afterwrite.scan.verdicts import Judgement, Verdict

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
_CHAPTER = re.compile(r"^## (?P<name>[a-z-]+)\n(?P<text>.*?)(?=^#{1,2} |\Z)", re.MULTILINE | re.DOTALL)
_PART = re.compile(r"^# (?P<verdict>keep|review|defer|retire)$", re.MULTILINE)


class Chapter(NamedTuple):
    name: str
    verdict: Verdict
    sql: str


def chapters() -> Iterator[Chapter]:
    parts = [(match.start(), Verdict(match["verdict"])) for match in _PART.finditer(PAGE)]
    for match in _CHAPTER.finditer(PAGE):
        verdict = [verdict for start, verdict in parts if start < match.start()][-1]
        (example,) = re.findall(r"^```sql\n(.*?)^```$", match["text"], re.MULTILINE | re.DOTALL)
        yield Chapter(match["name"], verdict, example)


CHAPTERS = list(chapters())


@pytest.fixture(scope="module")
def judged(server: Server) -> dict[str, Judgement]:
    """The judgement of the trigger ``example`` of every chapter."""

    return asyncio.run(judge_scripts(server, {chapter.name: chapter.sql for chapter in CHAPTERS}, trigger="example"))


def test_every_rule_has_its_chapter_under_its_verdict() -> None:
    assert {chapter.name: chapter.verdict for chapter in CHAPTERS} == {
        entry.name: entry.verdict for entry in RULES.values()
    }
    assert len(CHAPTERS) == len(RULES)


@pytest.mark.parametrize("chapter", [pytest.param(chapter, id=chapter.name) for chapter in CHAPTERS])
def test_an_example_gets_its_verdict_by_its_rule(chapter: Chapter, judged: dict[str, Judgement]) -> None:
    judgement = judged[chapter.name]
    said = [f"{reason.rule} (line {reason.line}): {reason.text}" for reason in judgement.reasons]
    assert judgement.verdict is chapter.verdict, said
    assert judgement.reasons[0].rule == chapter.name, said
    # Nothing else decides: an example shows one rule at a time.
    decides = {reason.rule for reason in judgement.reasons if RULES[reason.rule].verdict is chapter.verdict}
    assert decides == {chapter.name}, said


def test_a_rule_says_what_it_found_in_a_sentence() -> None:
    for entry in RULES.values():
        assert entry.sentence.endswith((".", ".)")), entry.name
