"""Sorting in a process of its own: a statement that brings the parser down is refused, and the next one is read.

    Question ─JSON line─▶ child: parse, sort ─JSON line─▶ Sorted

Questions go in bundles; a child that dies is missing answers from the statement on that killed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec

from afterwrite.scan.child import Child
from afterwrite.scan.dump.sorting import Deed, Question, Sorted, answer

_BUNDLE = 200
_SECONDS = 20.0
_ALL_SECONDS = 120.0
_MEMORY = 3 * 1024 * 1024 * 1024
_encoder = msgspec.json.Encoder()
_answers = msgspec.json.Decoder(Sorted)
_questions = msgspec.json.Decoder(Question)


class Sorter:
    """Asks a child process; made by ``open_sorter``."""

    def __init__(self) -> None:
        self.deaths = 0
        self.deadline = time.monotonic() + _ALL_SECONDS
        self._child = Child("afterwrite.scan.dump.child")

    async def sort(self, questions: Sequence[Question]) -> list[Sorted]:
        """An answer to each question, in order. Never raises for a text."""
        found: list[Sorted] = []
        while len(found) < len(questions):
            if time.monotonic() > self.deadline:
                late = Sorted(deed=Deed.UNREADABLE, kind="unknown", why=f"{_ALL_SECONDS:g} s were over")
                return found + [late] * (len(questions) - len(found))
            bundle = questions[len(found) : len(found) + _BUNDLE]
            answers = await self._ask(bundle)
            found += answers
            if len(answers) < len(bundle):
                await self.close()
                self.deaths += 1
                why = "the parser gave up its process on this text"
                found.append(Sorted(deed=Deed.UNREADABLE, kind="unknown", why=why))
        return found

    async def _ask(self, bundle: Sequence[Question]) -> list[Sorted]:
        """The answers that came before the child died or fell silent."""
        writer, reader = await self._child.pipes()
        found: list[Sorted] = []
        with contextlib.suppress(TimeoutError, ConnectionError, ValueError, msgspec.DecodeError):
            writer.write(b"".join(_encoder.encode(question) + b"\n" for question in bundle))
            async with asyncio.timeout(_SECONDS):
                for _ in bundle:
                    found.append(_answers.decode(await reader.readline()))
        return found

    async def close(self) -> None:
        """End the child, if there is one."""
        await self._child.close()


@asynccontextmanager
async def open_sorter() -> AsyncGenerator[Sorter]:
    """A sorter for the length of the block."""
    sorter = Sorter()
    try:
        yield sorter
    finally:
        await sorter.close()


def main() -> None:
    """The child: a Question a line in, a Sorted a line out, until the input ends."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    answers = sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        try:
            said = answer(_questions.decode(line))
        except Exception as error:  # any text may bring the walk down, and only it may suffer
            said = Sorted(deed=Deed.UNREADABLE, kind="unknown", why=f"it could not be read ({type(error).__name__})")
        answers.write(_encoder.encode(said) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
