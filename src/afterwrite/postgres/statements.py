"""Named statements: SQL lives in ``afterwrite/sql/*.sql``, one name and one sentence each, runnable in psql.

A file holds statements that each open with two comment lines::

    -- name: read_batches
    -- The newest batches of a source, newest first.
    select ... where source = :source order by position desc limit :count;

Python asks by ``file.name`` and passes named parameters; ``:word`` becomes psycopg's ``%(word)s``. Some words stand for
SQL, as psql's variables do: which columns, which side of a place, in which order. Python gives those when it asks.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import LiteralString

_HEADER = re.compile(r"^-- name: (\w+)\n-- (.+)\n", re.MULTILINE)
_TOKEN = re.compile(
    r"""
      (?P<keep> '(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | \$(\w*)\$.*?\$\2\$ | :: | :=)
    | :(?P<name>[a-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)


@cache
def statement(name: str, **words: LiteralString) -> bytes:
    """The statement called ``file.name``, ready for psycopg, with SQL for its ``words``.

    Raises KeyError for a name that does not exist.
    """
    file, _, short = name.partition(".")
    text = statements(file)[short]
    for word, meaning in words.items():
        text = text.replace(f"%({word})s", meaning)
    return text.encode()


@cache
def statements(file: str) -> dict[str, str]:
    """Every statement of one file, by name, in file order."""
    text = script(file)
    found: dict[str, str] = {}
    headers = list(_HEADER.finditer(text))
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        body = text[header.end() : following.start() if following else len(text)]
        if header[1] in found:
            raise ValueError(f"sql/{file}.sql names {header[1]} twice")
        found[header[1]] = to_psycopg(body.strip().removesuffix(";"))
    return found


def script(file: str) -> str:
    """The whole text of ``sql/<file>.sql``, for scripts that are run as they stand."""
    return resources.files("afterwrite").joinpath("sql", f"{file}.sql").read_text(encoding="utf-8")


def to_psycopg(text: str) -> str:
    """Turn psql's ``:name`` into ``%(name)s`` outside quotes and comments, and double every other per cent sign.

    A statement without parameters stays as it is: psycopg reads per cent signs only where it is given some.

    >>> to_psycopg("select :a::text, ':b', x % 2")
    "select %(a)s::text, ':b', x %% 2"
    >>> to_psycopg("select x % 2")
    'select x % 2'
    """

    def swap(match: re.Match[str]) -> str:
        name = match["name"]
        return f"%({name})s" if name else match[0]

    swapped = _TOKEN.sub(swap, text.replace("%", "%%"))
    named = any(match["name"] for match in _TOKEN.finditer(text))
    return swapped if named else text
