"""The load: pgbench, which ships with the server and costs little itself, on the demo's legacy application."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import msgspec

from afterwrite.demo.schema import ROLE
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, statement
from afterwrite.postgres.embedded import Server

# What the application does, and how often: weights of pgbench's scripts.
MIX: Mapping[str, int] = {
    "project": 30,
    "investor": 25,
    "sign_in": 20,
    "operation": 20,
    "document": 10,
    "read": 15,
    "bulk": 1,
}
SINGLE: Mapping[str, int] = {"single": 1}
# Rows that one transaction of `single` writes.
SINGLE_ROWS = 4


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of each kind the scripts may pick from."""

    projects: int
    users: int
    investors: int
    tokens: int
    documents: int
    notifications: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What pgbench is to do: so many transactions, at most ``rate`` a second in all (None: as fast as it goes).

    With ``seconds`` it goes on for so long instead, at least: pgbench knows whole ones. ``away_ms`` is the network
    between two statements, as if the application were so far away, ``think_ms`` what a client waits after each
    transaction, which is no part of it. What ended in the ``warm_seconds`` before is not counted: sessions are new,
    and their functions not yet compiled.
    """

    scripts: Mapping[str, int]
    transactions: int = 0
    seconds: float = 0
    clients: int = 4
    rate: float | None = None
    stamped: bool = True
    away_ms: int = 0
    think_ms: int = 0
    warm_seconds: float = 0.0
    seed: int = 1


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came about: transactions a second, and how long each took, in milliseconds, in the order of their ends.

    A transaction that had to wait for its turn under a ``rate`` counts from the moment when it was due.
    """

    tps: float
    latencies: list[float]


async def read_sizes(db: Database) -> Sizes:
    """Ask once; what the load adds later is not picked from."""
    return await db.one(Sizes, statement("bench.read_sizes"))


async def run_load(server: Server, database: str, load: Load, sizes: Sizes, folder: Path) -> Ran:
    """Run it to its end and tell what came about; the same seed does the same work.

    Raises AfterwriteError, with pgbench's own words, when a transaction failed.
    """
    scripts: dict[Path, int] = {}
    for name, weight in load.scripts.items():
        path = folder / f"{name}.pgbench"
        path.write_text(_paced(_script(name).replace("{stamp}", _script("stamp")), load), encoding="utf-8")
        scripts[path] = weight
    variables = {**msgspec.structs.asdict(sizes), "stamp": int(load.stamped), "begun": 0}
    return await run_pgbench(server, server.dsn(database, ROLE), load, scripts, variables, folder)


async def run_pgbench(
    server: Server, dsn: str, load: Load, scripts: Mapping[Path, int], variables: Mapping[str, int], folder: Path
) -> Ran:
    """Run these scripts by their weights; ``load`` says how often, by how many and how fast."""
    words: list[str] = []
    for path, weight in scripts.items():
        words += ["-f", f"{path}@{weight}"]
    for name, value in variables.items():
        words += ["-D", f"{name}={value}"]
    if load.rate is not None:
        words += ["-R", f"{load.rate:g}"]
    clients = load.clients if load.seconds else max(1, min(load.clients, load.transactions))
    extent = (
        ("-T", math.ceil(load.seconds + load.warm_seconds))
        if load.seconds
        else ("-t", max(1, load.transactions // clients))
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix="log") as logs:
        child = await asyncio.create_subprocess_exec(
            server.bin_dir / "pgbench",
            *("-n", "-c", str(clients), "-j", "1", *map(str, extent)),
            *("-l", "--log-prefix", str(Path(logs) / "t"), "--random-seed", str(load.seed), *words, dsn),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            said, complaint = await child.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            raise
        speed = re.search(rb"tps = ([0-9.]+)", said)
        # What ended in time has a speed; of nothing pgbench says none.
        none = b"transactions actually processed: 0\n" in said
        if child.returncode or (speed is None and not none) or re.search(rb"failed transactions: [1-9]", said):
            words_said = (complaint or said).decode(errors="replace").strip()[-800:]
            raise AfterwriteError(f"the load could not be run: {words_said}", remedy="look at the server's log")
        latencies = _read_latencies(Path(logs), load)
    return Ran(tps=float(speed[1]) if speed else 0.0, latencies=latencies)


# Clients that begin together would go on together, and wait for each other as no people do.
_PHASE = """\\if :begun
\\else
\\set begun 1
\\set phase random(1, {think})
\\sleep :phase ms
\\endif
"""


def _paced(script: str, load: Load) -> str:
    """The script with the network between its statements, and the pause after them; before the first a part of it."""
    if load.away_ms:
        script = script.replace(";\n", f";\n\\sleep {load.away_ms} ms\n")
    if load.think_ms:
        script = f"{_PHASE.format(think=load.think_ms)}{script}\\sleep {load.think_ms} ms\n"
    return script


def _read_latencies(folder: Path, load: Load) -> list[float]:
    """What pgbench logged: a transaction a line; the third word its microseconds, the fifth and sixth its end."""
    lines = (line for path in sorted(folder.iterdir()) for line in path.read_text(encoding="ascii").splitlines())
    ended: list[tuple[float, float]] = []
    for line in lines:
        words = line.split()
        ended.append((int(words[4]) + int(words[5]) / 1e6, int(words[2]) / 1000 - load.think_ms))
    since = min((end for end, _ in ended), default=0.0) + load.warm_seconds
    return [taken for end, taken in ended if not load.warm_seconds or end >= since]


def _script(name: str) -> str:
    return resources.files("afterwrite").joinpath("sql", "bench", f"{name}.pgbench").read_text(encoding="utf-8")
