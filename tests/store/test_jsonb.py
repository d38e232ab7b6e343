"""What jsonb holds: told here, and asked of the server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from afterwrite.jsonb import (
    fits_jsonb,
    may_hold_large_numbers,
    measure_depth,
    read_elements,
    read_members,
    with_jsonb_characters,
)
from afterwrite.postgres.embedded import Server

_digits = st.text("0123456789", min_size=1, max_size=6)
# Written as <digit*count>, and multiplied out in the test.
_long = st.sampled_from(["", "<0*16384>", "<9*131072>", "<1*16383>", "<0*131072>", "<5*9999>"])
_number = st.builds(
    lambda sign, whole, more, fraction, exponent: (
        sign + (whole.lstrip("0") + more if whole.lstrip("0") else "0") + fraction + exponent
    ),
    st.sampled_from(["", "-"]),
    _digits,
    _long,
    st.just("") | st.builds(lambda zeros, digits: "." + zeros + digits, _long, _digits),
    st.just("")
    | st.builds(
        lambda letter, sign, shift: f"{letter}{sign}{shift}",
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.sampled_from([0, 5, 999, 1_000, 9_999, 16_382, 16_383, 16_384, 131_071, 131_072, 147_455, 2**31, 10**12]),
    ),
)
_unit = st.sampled_from([0, 1, 0x41, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDE00, 0xDFFF, 0xE000, 0xFFFF])
_string = st.lists(
    st.sampled_from(["\\\\", '\\"', "\\n", "a", "é", "u0000", "[", "{", "e99999"])
    | st.builds(lambda unit: f"\\u{unit:04x}", _unit)
    | st.builds(lambda unit: f"\\u{unit:04X}", _unit),
    max_size=6,
).map(lambda parts: '"' + "".join(parts) + '"')
_json = st.recursive(
    _number | _string | st.sampled_from(["null", "true"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[" + " ,".join(parts) + "]")
        | st.lists(st.tuples(_string, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{name}:\n{value}" for name, value in pairs) + "}"
        )
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("0e131073").via("zero")
@example("0.001e131074").via("leading zeros")
@example("0e-16384").via("zero of too many digits")
@example('{"a": "\\u0000", "a": 1}').via("the earlier of two equal keys")
@given(_json)
def test_what_fits_here_is_what_the_server_casts(server_connection: psycopg.Connection, text: str) -> None:
    text = re.sub(r"<(\d)\*(\d+)>", lambda match: match[1] * int(match[2]), text)
    try:
        server_connection.execute("select %s::text::jsonb is not null", [text])
        taken = True
    except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded):
        taken = False
    assert fits_jsonb(text.encode()) is taken
    # Characters are all that can be mended, and what is mended always casts.
    mended = with_jsonb_characters(text.encode())
    assert mended is not None
    if not may_hold_large_numbers(mended):
        server_connection.execute("select %s::text::jsonb", [mended.decode()])


@pytest.fixture(scope="module")
def server_connection(server: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize(
    ("text", "depth"),
    [(b"1", 0), (b"[]", 1), (b'{"a": [1, {"[": "]\\"["}]}', 3), (b"[[1], [2], [[3]]]", 3), (b'"{["', 0)],
)
def test_depth_counts_brackets_outside_of_strings(text: bytes, depth: int) -> None:
    assert measure_depth(text) == depth


@pytest.mark.parametrize("depth", [0, 3_000])
def test_members_are_read_however_deep_an_object_is(depth: int) -> None:
    deep = b"[" * depth + b'{"a": "]}", "b": [1, {}]}' + b"]" * depth
    text = b' {"x" :1 , "y\\"{":%s, "z": "a,\\"b:", "x": null,"e": {} }' % deep
    found = {name: bytes(raw) for name, raw in read_members(text).items()}
    assert found == {"x": b"null", 'y"{': deep, "z": b'"a,\\"b:"', "e": b"{}"}
    elements = read_elements(b'[1 , %s,"],", {"a": [2, 3]}, [ ] ] ' % deep) or []
    assert [bytes(raw) for raw in elements] == [b"1", deep, b'"],"', b'{"a": [2, 3]}', b"[ ]"]
    assert read_elements(b'{"a": %s}' % deep) is None
    assert read_members(b"[%s]" % deep) == read_members(b"7") == read_members(b" {}") == read_members(b"{") == {}


def test_text_that_is_no_utf8_cannot_be_mended() -> None:
    assert with_jsonb_characters(b'"\xff"') is None
    assert with_jsonb_characters(b'"\0"') is None
