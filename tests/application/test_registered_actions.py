"""Actions and categories that an application made known, and metadata that is held against a schema."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NotRequired, TypedDict

import msgspec
import pytest

from afterwrite import Category, activity
from afterwrite.activity import Action
from afterwrite.errors import UsageError
from afterwrite.record import Level
from afterwrite.recorder.face import Face
from afterwrite.testing import recording


class Exported(msgspec.Struct, forbid_unknown_fields=True):
    rows: int
    format: str = "csv"


class Kept(TypedDict):
    days: int
    why: NotRequired[str]


@dataclass
class Sent:
    to: str


class Tokens(StrEnum):
    TOKENS = "tokens"


@pytest.fixture
def face() -> Face:
    """An application of its own, which knows nothing yet."""
    return Face(activity.recorder)


def test_a_registered_action_says_what_its_activities_share(face: Face) -> None:
    report = Action("report.exported", Category.DOCUMENT, Level.WARNING, "a report was exported")
    face.register(report)
    with recording() as recorded:
        face.record("report.exported")
        face.record(report, category=Category.DATA, severity=Level.DEBUG, summary="mine")
        with face.track(report) as run:
            assert run.id
    first, second, third = recorded
    assert (first.category, first.severity, first.summary) == ("document", "warning", "a report was exported")
    assert (second.category, second.severity, second.summary) == ("data", "debug", "mine")
    assert (third.category, third.severity) == ("document", "warning")


@pytest.mark.parametrize(
    ("schema", "fits", "fits_not", "why"),
    [
        (Exported, {"rows": 1}, {"rows": "1"}, "expected `int`, got `str` - at `$.rows`"),
        (Exported, Exported(2), {"rows": 1, "row": 1}, "object contains unknown field `row`"),
        (Kept, {"days": 1}, {"why": "x"}, "object missing required field `days`"),
        (Sent, Sent("a"), {"to": None}, "expected `str`, got `null` - at `$.to`"),
        ({"rows": int, "note": NotRequired[str]}, {"rows": 1}, None, "object missing required field `rows`"),
    ],
)
def test_metadata_is_held_against_the_schema_of_its_action(
    face: Face, schema: Any, fits: Any, fits_not: Any, why: str
) -> None:
    face.register(Action("report.exported", metadata=schema))
    with recording() as recorded:
        face.record("report.exported", metadata=fits)
        with pytest.raises(UsageError) as refused:
            face.record("report.exported", metadata=fits_not)
        assert why in str(refused.value)
    assert len(recorded) == 1
    with recording(strict=False) as recorded:
        face.record("report.exported", metadata=fits_not)
        assert face.stats().misfits == 1
    (found,) = recorded
    assert why in found.metadata["misfit"]
    assert {name: found.metadata[name] for name in fits_not or {}} == (fits_not or {})


def test_a_block_is_held_against_the_schema_at_its_end(face: Face) -> None:
    face.register(Action("report.exported", metadata=Exported))
    with recording() as recorded:
        with face.track("report.exported") as run:
            run.metadata["rows"] = 7
        with pytest.raises(UsageError, match="missing required field `rows`"), face.track("report.exported"):
            pass
    assert len(recorded) == 1


def test_categories_of_ones_own_are_known_once_they_are_registered(face: Face) -> None:
    with recording() as recorded:
        with pytest.raises(UsageError, match="'tokens' is no category that is known"):
            face.record("token.issued", category=Tokens.TOKENS)
        face.register(Tokens, Action("pool.filled", category="liquidity"))
        face.record("token.issued", category=Tokens.TOKENS)
        face.record("pool.drained", category="liquidity")
    assert [each.category for each in recorded] == ["tokens", "liquidity"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Action("Report Exported"),
        lambda: Action("report.exported", category="Data!"),
        lambda: Face(activity.recorder).register(Action("a.b", metadata={"rows": object()})),
        lambda: Face(activity.recorder).register(StrEnum("Odd", {"A": "Not A Category"})),
    ],
)
def test_what_cannot_be_registered_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()
