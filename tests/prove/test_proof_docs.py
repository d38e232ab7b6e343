"""docs/proof.md names every reason, and what it tells people to write is accepted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
from typer.testing import CliRunner

from afterwrite.cli.app import command
from afterwrite.migrate.plan import Ignored
from afterwrite.prove.match import Reason
from afterwrite.prove.report import MEANING

_DOC = (Path(__file__).parents[2] / "docs" / "proof.md").read_text(encoding="utf-8")


def test_every_reason_has_its_line_on_the_side_where_it_is_counted() -> None:
    unexplained, explained = _DOC.partition("### Explained")[::2]
    for reason in Reason:
        assert f"| `{reason.value}` |" in (explained if reason.explained else unexplained)
    assert set(MEANING) == set(Reason)


def test_the_mapping_that_is_shown_can_be_written_into_a_plan() -> None:
    (snippet,) = re.findall(r"```toml\n(.*?)```", _DOC, re.DOTALL)
    (entry,) = tomllib.loads(snippet)["phase"]["trigger"]
    found = msgspec.convert(entry["mapping"], dict[str, str | Ignored])
    assert isinstance(found["public.audit_log.seen_by"], Ignored)


def test_the_options_that_are_shown_exist() -> None:
    said = CliRunner().invoke(command(), ["prove", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for option in set(re.findall(r"afterwrite prove[^\n`]*?(--[a-z]+)", _DOC)):
        assert option in said
