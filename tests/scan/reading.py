"""Reading bodies in a child process, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from afterwrite.postgres import connect
from afterwrite.scan.facts import Body, Language, Source
from afterwrite.scan.parser import open_parser
from afterwrite.scan.survey import Survey, survey


def function(body: str, *, declare: str = "") -> Source:
    """A trigger function of this body, which begins on line 1."""
    text = f"create function f() returns trigger language plpgsql as $body$declare {declare} begin {body} end$body$"
    return Source(language=Language.PLPGSQL, text=text, trigger=True)


def read_all(sources: Sequence[Source]) -> list[Body]:
    """The facts of several texts, read by one child."""

    async def read() -> list[Body]:
        async with open_parser() as parser:
            found = await parser.read(sources)
        return [found[source] for source in sources]

    return asyncio.run(read())


def read_one(body: str, *, declare: str = "") -> Body:
    """The facts of one trigger body."""
    return read_all([function(body, declare=declare)])[0]


def surveyed(dsn: str, schemas: Sequence[str] | None = None) -> Survey:
    """A survey of a database."""

    async def look() -> Survey:
        async with connect(dsn) as db:
            return await survey(db, schemas)

    return asyncio.run(look())
