"""The parser in a process of its own: a body that makes it abort costs that body's verdict, not our process.

    Source ──JSON line──▶ child: parse, walk ──JSON line──▶ Body

One child lives as long as the ``Parser``; when it dies, what it was reading is unparsable, and another takes its place.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.scan.child import Child
from afterwrite.scan.facts import Body, Source, Unknown, shared

_SECONDS = 20.0
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 500, 20_000
_encoder = msgspec.json.Encoder()
_bodies = msgspec.json.Decoder(Body)
_sources = msgspec.json.Decoder(Source)


class Parser:
    """Reads bodies in a child process; made by ``open_parser``. Remembers what it read last."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deaths = 0
        self._child = Child("afterwrite.scan.parser")
        self._read: dict[Source, Body] = {}

    async def read(self, sources: Iterable[Source]) -> Mapping[Source, Body]:
        """The facts of each text; an Unknown fact stands for one that could not be read. Never raises for a text."""
        wanted = list(dict.fromkeys(sources))
        found: dict[Source, Body] = {}
        for source in wanted:
            body = self._read.pop(source, None)
            found[source] = body if body is not None else await self._ask(source)
            if len(source.text) <= _LONGEST_REMEMBERED:
                self._read[source] = found[source]
        while len(self._read) > _MOST_REMEMBERED:
            del self._read[next(iter(self._read))]
        return found

    async def _ask(self, source: Source) -> Body:
        writer, reader = await self._child.pipes()
        try:
            async with asyncio.timeout(self.seconds):
                writer.write(_encoder.encode(source) + b"\n")
                await writer.drain()
                answer = await reader.readline()
        except TimeoutError:
            return await self._bury(f"the parser did not answer within {self.seconds:g} s")
        except (ConnectionError, ValueError):
            answer = b""
        if not answer.endswith(b"\n"):
            return await self._bury("the parser gave up its process on this text")
        try:
            return shared(_bodies.decode(answer))
        except (msgspec.DecodeError, RecursionError):
            return _unreadable("the text is nested too deeply")

    async def _bury(self, why: str) -> Body:
        await self.close()
        self.deaths += 1
        return _unreadable(why)

    async def close(self) -> None:
        """End the child, if there is one."""
        await self._child.close()


@asynccontextmanager
async def open_parser(*, seconds: float = _SECONDS) -> AsyncGenerator[Parser]:
    """A parser for the length of the block; ``seconds`` is the most that one text may take.

    Raises AfterwriteError when the parser is not installed.
    """
    if importlib.util.find_spec("pgparse") is None:
        raise AfterwriteError(
            "the parser of PL/pgSQL (pgparse) is not installed", remedy="run pip install 'afterwrite[tools]'"
        )
    parser = Parser(seconds)
    try:
        yield parser
    finally:
        await parser.close()


def _unreadable(why: str) -> Body:
    return Body(unknowns=(Unknown(rule="unparsable", text=why),))


def main() -> None:
    """The child: a Source a line in, a Body a line out, until the input ends."""
    import resource

    from afterwrite.scan.body import read_body

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is expected now and then, and leaves no core behind
    sys.setrecursionlimit(10_000)
    answers = sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        try:
            answer = _encoder.encode(read_body(_sources.decode(line)))
        except Exception as error:  # any text may bring the walk down, and only its own verdict may suffer
            answer = _encoder.encode(_unreadable(f"it could not be read ({type(error).__name__}: {error})"))
        answers.write(answer + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
