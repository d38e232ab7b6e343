"""Texts made from a pattern match it; where a pattern is not understood none is made, and nothing fails."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterwrite.scan.cost.rows import Slot, Type, Values, from_pattern

TEXT = Type(oid=25, schema="pg_catalog", name="text", kind="b", category="S")


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Z]{2,3}$",
        r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
        r"^(draft|sent|paid)(-v\d+)?$",
        r"^\+?[0-9 ()-]{7,15}$",
        r"^0x[0-9a-fA-F]{40}$",
        r"^https?://[\w.-]+(/.*)?$",
        r"^[]a-]+$",
    ],
)
def test_texts_match_the_pattern_that_they_were_made_from(pattern: str) -> None:
    made = from_pattern(pattern, 20)
    assert made
    assert all(re.search(pattern, text) for text in made)


@pytest.mark.parametrize(
    "pattern", [r"^(?=a)b", r"(a)\1", "a{2", "(", "[", "[[:nonsense:]]", r"\x41{99999}", r"((a{900}){900}){900}"]
)
def test_what_is_not_understood_makes_none(pattern: str) -> None:
    assert from_pattern(pattern, 5) == []


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab[](){}\\^$.*+?|-:d0,", max_size=24))
def test_no_pattern_makes_it_fail_or_run_away(pattern: str) -> None:
    assert all(len(text) <= 5_000 for text in from_pattern(pattern, 2))


def test_candidates_begin_with_what_the_condition_names_and_keep_to_the_length() -> None:
    values = Values({25: TEXT})
    slot = Slot(name="status", type=25, modifier=4 + 6)
    made = values.candidates(slot, "status = ANY (ARRAY['open'::text, 'very long'::text, 'paid'::text])")
    assert made[:2] == ["open", "paid"]
    assert all(len(text) <= 6 for text in made)
