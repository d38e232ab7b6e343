"""The parser dies now and then; whoever asked it does not."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest
from reading import function, read_all

from afterwrite.scan.facts import Body, Language, Source
from afterwrite.scan.parser import Parser, open_parser

# A function with a SQL-standard body makes libpg_query abort (tried with pgparse 1.0.3).
ABORTS = Source(
    language=Language.PLPGSQL,
    text="create function g() returns int language sql begin atomic select 1; select 2; end",
)
FINE = function("insert into log values (new.id); return new;")


def test_a_text_that_kills_the_parser_is_unparsable_and_the_next_one_is_read() -> None:
    dead, alive = read_all([ABORTS, FINE])
    assert [fact.rule for fact in dead.unknowns] == ["unparsable"]
    assert alive.parsed
    assert alive.inserts


def test_a_parser_that_does_not_answer_is_ended_and_replaced() -> None:
    async def read() -> tuple[Body, Body, int]:
        async with open_parser(seconds=0.5) as parser:
            await parser.read([FINE])
            os.kill(_child(parser), signal.SIGSTOP)
            stopped = function("perform 1;")
            first = (await parser.read([stopped]))[stopped]
            another = function("perform 2;")
            return first, (await parser.read([another]))[another], parser.deaths

    stopped, after, deaths = asyncio.run(read())
    assert "did not answer" in stopped.unknowns[0].text
    assert after.parsed
    assert deaths == 1


def test_a_killed_parser_costs_at_most_the_text_it_was_reading() -> None:
    async def read() -> list[Body]:
        async with open_parser() as parser:
            await parser.read([FINE])
            os.kill(_child(parser), signal.SIGKILL)
            sources = [function(f"insert into t{n} values (1);") for n in range(3)]
            found = await parser.read(sources)
            return [found[source] for source in sources]

    bodies = asyncio.run(read())
    assert sum(not body.parsed for body in bodies) <= 1
    assert bodies[-1].inserts[0].table == "t2"


def test_no_child_outlives_the_block() -> None:
    async def read() -> int:
        async with open_parser() as parser:
            await parser.read([FINE])
            return _child(parser)

    pid = asyncio.run(read())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "body",
    [
        "perform " + "(" * 3000 + "1" + ")" * 3000 + ";",
        "x := " + " || ".join(["'a'"] * 4000) + ";",
        "if true then " * 800 + "null;" + " end if;" * 800,
        "perform '" + "x" * 1_000_000 + "';",
        "\x00",
        "insert into t values (" + ",".join(["1"] * 20_000) + ");",
    ],
    ids=["brackets", "concatenation", "nesting", "long literal", "null byte", "wide row"],
)
def test_extreme_texts_are_read_or_unparsable(body: str) -> None:
    source = function(body, declare="x text;")
    read, fine = read_all([source, FINE])
    assert read.parsed or {fact.rule for fact in read.unknowns} == {"unparsable"}
    assert fine.parsed


def test_mutated_texts_never_reach_us_as_an_exception() -> None:
    rng = random.Random(4)
    whole = (
        "if tg_op = 'DELETE' then insert into log (a, b) values (old.id, to_jsonb(old)); return old; end if;\n"
        "for r in execute format('select * from %I', tg_argv[0]) using new loop update t set n = n + 1; end loop;\n"
        "begin perform f(new.x); exception when others then raise warning 'x %', sqlerrm; end;\n"
        "case new.kind when 'a' then new.v := 1; else null; end case; return new;"
    )
    sources = [function(_mutated(whole, rng), declare="r record; v text := tg_table_name;") for _ in range(300)]
    for source, body in zip(sources, read_all(sources), strict=True):
        assert isinstance(body, Body), source.text


def _mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(text)), rng.randint(1, 12)
        piece = text[place : place + length]
        match rng.randrange(4):
            case 0:
                text = text[:place] + text[place + length :]
            case 1:
                text = text[:place] + piece + text[place:]
            case 2:
                other = rng.randrange(len(text))
                text = text[:other] + piece + text[other:]
            case _:
                text = text[:place] + rng.choice("();'\"$:=,.%|\\éx0 \n") + text[place + 1 :]
        text = text or "null;"
    return text


def _child(parser: Parser) -> int:
    pid = parser._child.pid  # the process that the test is about
    assert pid is not None
    return pid
