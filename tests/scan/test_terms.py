"""Cutting SQL, resolving dynamic SQL and deciding conditions, without a database."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwrite.scan.evaluate import PLACEHOLDER, Hole, Value, holds, values
from afterwrite.scan.facts import Premise, PremiseKind, Term, TermKind
from afterwrite.scan.tokens import items, split_names, substitute, tokens


def text(value: str) -> Term:
    return Term(kind=TermKind.LITERAL, text=value)


def name(value: str) -> Term:
    return Term(kind=TermKind.NAME, text=value)


def call(function: str, *parts: Term, sql: str = "") -> Term:
    return Term(kind=TermKind.CALL, text=function, parts=parts, sql=sql)


ROW = Term(kind=TermKind.UNKNOWN, text="new.title")
AROUND: dict[str, tuple[Value, ...]] = {
    "tg_op": ("UPDATE",),
    "tg_argv[0]": ("audit log",),
    "tg_nargs": ("1",),
    "new.amount": (Hole("new.amount", bare=True),),
    "old": (None,),
    "new": ("a row",),
}


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (
            call("format", text("insert into %I values (%L)"), name("tg_argv[0]"), text("it's")),
            ["insert into \"audit log\" values ('it''s')"],
        ),
        (call("format", text("%2$s %1$s 100%%"), text("a"), text("b")), ["b a 100%"]),
        (call("format", text("%L"), ROW), ["(new.title)"]),
        (call("format", text("select %I"), ROW), [f'select "{PLACEHOLDER}"']),
        (call("format", text("%s"), name("new.amount")), ["(new.amount)"]),
        (call("||", text("a"), call("quote_ident", name("tg_argv[0]"))), ['a"audit log"']),
        (call("||", text("a"), Term(kind=TermKind.CHOICE, parts=(text("b"), text("c")))), ["ab", "ac"]),
        (call("concat", text("a"), Term(kind=TermKind.NULL)), ["a"]),
        (call("||", text("a"), Term(kind=TermKind.NULL)), [None]),
        (call("coalesce", name("tg_argv[3]"), text("x")), ["x"]),
        (call("lower", name("tg_op")), ["update"]),
        (call("cast:text", name("tg_op")), ["UPDATE"]),
        (call("replace", text("a-b"), text("-"), text("_")), ["a_b"]),
    ],
)
def test_a_statement_is_known_before_it_runs(term: Term, expected: list[Value]) -> None:
    assert list(values(term, AROUND)) == expected


@pytest.mark.parametrize(
    "term",
    [
        ROW,
        call("||", text("insert into "), ROW),
        call("format", text("%s"), ROW),
        call("format", text("%-10s"), text("a")),
        call("format", text("%s %s"), text("a")),
        call("format", text("%I"), Term(kind=TermKind.NULL)),
        call("reverse", text("abc"), sql="reverse('abc')"),
    ],
)
def test_what_only_a_run_could_tell_is_a_hole(term: Term) -> None:
    assert all(isinstance(value, Hole) for value in values(term, AROUND))


def equal(left: Term, *right: Term) -> Premise:
    return Premise(kind=PremiseKind.EQUAL, left=left, right=right)


@pytest.mark.parametrize(
    ("premise", "truth"),
    [
        (equal(name("tg_op"), text("UPDATE")), True),
        (equal(name("tg_op"), text("INSERT"), text("UPDATE")), True),
        (equal(name("tg_op"), text("DELETE")), False),
        (equal(ROW, text("x")), None),
        (Premise(kind=PremiseKind.IS_NULL, left=name("old")), True),
        (Premise(kind=PremiseKind.IS_NULL, left=name("tg_argv[5]")), True),
        (Premise(kind=PremiseKind.TRUTH, left=text("false")), False),
        (Premise(kind=PremiseKind.ALL, tests=(equal(ROW, text("x")), equal(name("tg_op"), text("DELETE")))), False),
        (Premise(kind=PremiseKind.ANY, tests=(equal(ROW, text("x")), equal(name("tg_op"), text("UPDATE")))), True),
        (Premise(kind=PremiseKind.NOT, tests=(equal(name("tg_op"), text("UPDATE")),)), False),
        (Premise(kind=PremiseKind.ALL, tests=(equal(ROW, text("x")), equal(name("tg_op"), text("UPDATE")))), None),
    ],
)
def test_conditions_are_decided_where_they_can_be(premise: Premise, truth: bool | None) -> None:
    assert holds(premise, AROUND) is truth


def test_a_list_is_cut_at_its_own_commas_only() -> None:
    sql = "values ('a,b', f(1, 2), /* , */ $q$ ,) $q$, \"x,y\", a is distinct from b) on conflict"
    assert items(sql, sql.index("(") + 1)[0] == ["'a,b'", "f(1, 2)", "$q$ ,) $q$", '"x,y"', "a is distinct from b"]


def test_names_are_said_in_the_callers_words() -> None:
    words = {"p": "new.id", "row": "new", "$1": "a || b", "big": "f(1)"}
    assert (
        substitute("p + row.x + t.p + p(1) + $1 + 'p' + big", words)
        == "new.id + new.x + t.p + p(1) + (a || b) + 'p' + f(1)"
    )
    assert substitute("select $1.*, ($1).x", {"$1": "new.*"}) == "select new.*, (new).x"


def test_identifiers_are_folded_as_the_server_folds_them() -> None:
    assert split_names('"My Schema", Public , "a""b"') == ("My Schema", "public", 'a"b')


@given(st.text(max_size=80))
def test_any_text_can_be_cut_and_nothing_is_cut_twice(sql: str) -> None:
    listed = list(tokens(sql))
    assert all(before.end <= after.start for before, after in pairwise(listed))
    assert all(sql[token.start : token.end] == token.text for token in listed)
    assert substitute(sql, {}) == sql
    items(sql, 0)
