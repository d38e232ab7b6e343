"""How many users the legacy application serves within the same time, with its triggers and without.

Closed loop: each client does a transaction, waits for a while as people do, and does the next; between the statements
of a transaction lies the network to the application. Clients are added until 95 of 100 transactions no longer end
within the limit: that is where it breaks. Once with the transactions whose triggers add to one hot row, and once with
the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import msgspec

from afterwrite.bench.capture import Tell, read_machine
from afterwrite.bench.claims import Claim, Report, compare, in_turn, percentile
from afterwrite.bench.load import MIX, Load
from afterwrite.bench.stage import Moved, Stage, Variant, staged
from afterwrite.capture.slot import read_wal_position
from afterwrite.demo.processes import Process
from afterwrite.postgres import statement
from afterwrite.postgres.embedded import embedded_server

# Whose triggers add to the one row of platform statistics, or to a project's totals.
_HOT = frozenset({"investor", "operation"})
_FIRST_CLIENTS = 6
_STEP = 1.4
_MOST_CLIENTS = 600


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How long each step of the ladder is, what the limit is, how far away the application and how slow its people."""

    rounds: int = 3
    seconds: int = 4
    limit_ms: float = 50.0
    away_ms: int = 1
    think_ms: int = 250
    seed: int = 1
    pg_bin: Path | None = None


_VARIANTS = (Variant.TRIGGERS, Variant.NOBODY, Variant.AFTERWRITE)


async def bench_users(options: Options, tell: Tell) -> Report:
    """Measure on servers of its own, and say what came out."""
    mixes = {
        "with the hot counter": {name: weight for name, weight in MIX.items() if name in _HOT},
        "without it": {name: weight for name, weight in MIX.items() if name not in _HOT},
    }
    served: dict[tuple[str, Variant], list[float]] = {(mix, way): [] for mix in mixes for way in _VARIANTS}
    with ExitStack() as servers:
        async with AsyncExitStack() as stack:
            stages: dict[Variant, Stage] = {}
            workers: dict[Variant, Process] = {}
            for variant in _VARIANTS:
                tell(f"laying the legacy application: {variant.value}")
                server = servers.enter_context(
                    embedded_server(bin_dir=options.pg_bin, settings={"max_connections": str(_MOST_CLIENTS + 50)})
                )
                stage = await stack.enter_async_context(staged(server, variant, seed=options.seed, moved=Moved.ALL))
                if stage.captured:
                    workers[variant] = await stack.enter_async_context(stage.capturing())
                stages[variant] = stage
            for number in range(options.rounds):
                for mix, scripts in mixes.items():
                    for variant in in_turn(_VARIANTS, number):
                        tell(f"users {mix}, round {number + 1} of {options.rounds}: {variant.value}")
                        found = served[mix, variant]
                        near = found[-1] if found else None
                        found.append(
                            await most_clients(stages[variant], workers.get(variant), scripts, options, number, near)
                        )
            version = str(await stages[Variant.NOBODY].db.value(statement("bench.read_version")))
    return Report(machine=read_machine(version), settings=_settings(options), claims=_claims(served, options))


def _claims(served: Mapping[tuple[str, Variant], Sequence[float]], options: Options) -> list[Claim]:
    claims: list[Claim] = []
    for mix in dict.fromkeys(mix for mix, _ in served):
        for variant, target in ((Variant.AFTERWRITE, 10.0), (Variant.NOBODY, None)):
            words = "afterwrite" if variant is Variant.AFTERWRITE else "no log"
            claims.append(
                compare(
                    f"clients within {options.limit_ms:g} ms (p95) {mix}, triggers to {words}",
                    "clients",
                    served[mix, Variant.TRIGGERS],
                    served[mix, variant],
                    target=target,
                )
            )
    return claims


async def most_clients(
    stage: Stage,
    worker: Process | None,
    scripts: Mapping[str, int],
    options: Options,
    number: int,
    near: float | None,
) -> float:
    """How many clients are served within the limit; between two steps of the ladder by their latencies.

    ``near`` is what an earlier round found, from two steps below which this one begins.
    """
    clients = _FIRST_CLIENTS if near is None else max(_FIRST_CLIENTS, near / _STEP**2)
    below: tuple[float, float] | None = None
    while True:
        if worker:
            await stage.caught_up(await read_wal_position(stage.db), worker)
        load = Load(
            scripts=scripts,
            seconds=options.seconds,
            clients=int(clients),
            away_ms=options.away_ms,
            think_ms=options.think_ms,
            seed=options.seed + number,
        )
        p95 = percentile((await stage.work(load)).latencies, 0.95)
        if p95 > options.limit_ms:
            return clients if below is None else _between(below, (clients, p95), options.limit_ms)
        if clients * _STEP > _MOST_CLIENTS:
            return clients
        below = clients, p95
        clients *= _STEP


def _between(below: tuple[float, float], above: tuple[float, float], limit: float) -> float:
    """Where the limit lies between two steps, both axes by their logarithms."""
    (few, quick), (many, slow) = below, above
    share = math.log(limit / quick) / math.log(slow / quick)
    return few * (many / few) ** share


def _settings(options: Options) -> dict[str, str | int | float]:
    return {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "limit_ms": options.limit_ms,
        "away_ms": options.away_ms,
        "think_ms": options.think_ms,
        "seed": options.seed,
    }
