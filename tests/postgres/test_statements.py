"""The SQL beside the code: every name asked for exists, none lies unused, and each is one sentence."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from importlib import resources
from pathlib import Path

import pgparse
import pytest

import afterwrite
from afterwrite.postgres.statements import script, statement, statements, to_psycopg

# The package's name of the same spelling is the function.
statements_of = importlib.import_module("afterwrite.postgres.statements")
SOURCE = Path(afterwrite.__file__).parent
FILES = sorted(path.stem for path in SOURCE.joinpath("sql").glob("*.sql"))
# Run whole, as it stands, by script(); these hold no named statements.
SCRIPTS = {file for file in FILES if "-- name: " not in script(file)}

# What stands for SQL, as timelines give it.
WORDS = {"activity": "a.*", "beyond": "<", "order": "desc"}


def asked_for() -> dict[str, list[str]]:
    """Every ``statement("file.name")`` in the source, and where; a name that is no literal is a failure of its own."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "statement"):
                continue
            where = f"{path.relative_to(SOURCE)}:{node.lineno}"
            (name,) = node.args
            assert isinstance(name, ast.Constant), f"{where} asks for a statement by a name that is no literal"
            found.setdefault(name.value, []).append(where)
    return found


def known() -> set[str]:
    return {f"{file}.{name}" for file in FILES if file not in SCRIPTS for name in statements(file)}


def test_every_statement_that_is_asked_for_exists() -> None:
    missing = {name: where for name, where in asked_for().items() if name not in known()}
    assert missing == {}


def test_no_statement_lies_unused() -> None:
    assert known() - set(asked_for()) == set()


def test_every_script_is_asked_for_or_is_an_upgrade() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    assert {file for file in SCRIPTS if f'"{file}"' not in text} == set()


@pytest.mark.parametrize("file", [file for file in FILES if file not in SCRIPTS])
def test_a_statement_is_one_sentence_that_the_parser_takes(file: str) -> None:
    for name in statements(file):
        text = statement(f"{file}.{name}").decode()
        for word, meaning in WORDS.items():
            text = text.replace(f"%({word})s", meaning)
        if "%(" in text:
            text = re.sub(r"%\(\w+\)s", "$1", text).replace("%%", "%")
        assert len(pgparse.parse(text)) == 1, name


@pytest.mark.parametrize("file", [file for file in FILES if file not in SCRIPTS])
def test_a_file_holds_nothing_but_named_sentences_in_lower_case(file: str) -> None:
    text = script(file)
    assert text.startswith("-- name: ")
    assert text.endswith(";\n")
    assert len(re.findall("^-- name: ", text, re.MULTILINE)) == len(statements(file))
    bare = re.sub(r"--[^\n]*|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", "", text)
    assert re.findall(r"\b[A-Z]{2,}\b", bare) == []


def test_upgrades_are_numbered_and_parse() -> None:
    files = sorted(path.name for path in resources.files("afterwrite").joinpath("sql", "schema").iterdir())
    assert files
    for file in files:
        assert re.fullmatch(r"\d{4}_\w+\.sql", file)
        pgparse.parse(script(f"schema/{file.removesuffix('.sql')}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select :a, :b::int", "select %(a)s, %(b)s::int"),
        ("select ':a', \":b\", :c -- :d", "select ':a', \":b\", %(c)s -- :d"),
        ("select $$ :a $$, $x$ :b $$ :c $x$, :d", "select $$ :a $$, $x$ :b $$ :c $x$, %(d)s"),
        ("select a[1:2], 5 % :n", "select a[1:2], 5 %% %(n)s"),
        ("select 'it''s :a', f(x := :b)", "select 'it''s :a', f(x := %(b)s)"),
        ("select 5 % 2, ':a'", "select 5 % 2, ':a'"),
    ],
)
def test_parameters_are_found_outside_of_quotes_and_comments(text: str, expected: str) -> None:
    assert to_psycopg(text) == expected


def test_a_name_that_does_not_exist_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        statement("store.no_such_statement")


def test_a_name_that_is_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements_of, "script", lambda file: "-- name: a\n-- One.\nselect 1;\n" * 2)
    with pytest.raises(ValueError, match="names a twice"):
        statements("any")


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(statements_of).failed == 0
