"""Where a run measures: servers of its own, laid when a part first needs them, and shared with the parts behind it.

::

    stage(variant, moved)   the legacy application on a server, in one of its states
    library(rows)           so much activity, in the store and in an audit table, on a server that does not flush
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from afterwrite.bench.corpus import Corpus, lay_corpus
from afterwrite.bench.stage import Moved, Stage, Variant, staged
from afterwrite.postgres import connect, statement
from afterwrite.postgres.embedded import Server, embedded_server

Tell = Callable[[str], None]

# The most clients that are ever put before a stage, and what looks at it besides.
MOST_CLIENTS = 600
_STAGE = {"max_connections": str(MOST_CLIENTS + 50)}
# Nothing of what is measured in the library writes.
_LIBRARY = {"fsync": "off", "maintenance_work_mem": "256MB"}


class LeftOutError(Exception):
    """A part cannot be measured here; says in one line why, and what would help."""


class Library(msgspec.Struct, frozen=True):
    """A server, and what was laid on it."""

    server: Server
    corpus: Corpus


class Grounds:
    """The servers of a run. The same question is answered by the same server."""

    def __init__(self, servers: ExitStack, opened: AsyncExitStack, seed: int, pg_bin: Path | None, tell: Tell) -> None:
        self.seed = seed
        self.tell = tell
        self._servers = servers
        self._opened = opened
        self._pg_bin = pg_bin
        self._started: list[Server] = []
        self._stages: dict[tuple[Variant, Moved], Stage] = {}
        self._libraries: dict[tuple[int, int], Library] = {}

    async def read_version(self) -> str:
        """Which PostgreSQL these are; nothing before there is one."""
        if not self._started:
            return ""
        async with connect(self._started[0].dsn()) as db:
            return str(await db.value(statement("bench.read_version")))

    def server(self, settings: dict[str, str] | None = None) -> Server:
        """A bare server that lives as long as the grounds."""
        started = self._servers.enter_context(embedded_server(bin_dir=self._pg_bin, settings=settings))
        self._started.append(started)
        return started

    async def stage(self, variant: Variant, moved: Moved) -> Stage:
        """The legacy application with its triggers (all of them: ``moved`` is nothing then), without, or with us."""
        key = (variant, Moved.ALL if variant is Variant.TRIGGERS else moved)
        if key not in self._stages:
            self.tell(f"laying the legacy application: {variant.value}")
            store = self.server(_STAGE) if variant is Variant.APART else None
            self._stages[key] = await self._opened.enter_async_context(
                staged(self.server(_STAGE), variant, seed=self.seed, store_server=store, moved=moved)
            )
        return self._stages[key]

    async def stages(self, wanted: Sequence[tuple[Variant, Moved]]) -> list[Stage]:
        """Several stages, laid beside each other."""
        return list(await asyncio.gather(*(self.stage(variant, moved) for variant, moved in wanted)))

    async def library(self, rows: int, days: int) -> Library:
        """So many activities over so many days."""
        if (rows, days) not in self._libraries:
            self.tell(f"laying {rows:,} activities, in the store and in an audit table")
            server = self.server(_LIBRARY)
            corpus = await lay_corpus(server.dsn(), rows=rows, days=days, seed=self.seed)
            self._libraries[rows, days] = Library(server, corpus)
        return self._libraries[rows, days]


@asynccontextmanager
async def open_grounds(tell: Tell, *, seed: int = 1, pg_bin: Path | None = None) -> AsyncGenerator[Grounds]:
    """Grounds for the length of the block; afterwards every server is stopped and removed."""
    with ExitStack() as servers:
        async with AsyncExitStack() as opened:
            yield Grounds(servers, opened, seed, pg_bin, tell)


def read_machine(version: str) -> dict[str, str | int | float]:
    """Where a benchmark runs; ``version`` is PostgreSQL's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": version,
    }


def told_round(number: int, rounds: int) -> str:
    """How far a part is; round -1 is its warm-up."""
    return f"round {number + 1} of {rounds}" if number >= 0 else "warming up"
