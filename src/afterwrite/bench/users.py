"""How many users the legacy application serves within the same time, with its triggers and without.

Closed loop: each client does a transaction, waits for a while as people do, and does the next; between the statements
of a transaction lies the network to the application. Clients are added until 95 of 100 transactions no longer end
within the limit: that is where it breaks. Once with the transactions whose triggers add to one hot row, and once with
the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec

from afterwrite.bench.claims import Claim, Promise, compare, in_turn, percentile
from afterwrite.bench.grounds import MOST_CLIENTS, Grounds, told_round
from afterwrite.bench.load import MIX, Load
from afterwrite.bench.stage import Moved, Stage, Variant
from afterwrite.capture.slot import read_wal_position
from afterwrite.demo.processes import Process

# Whose triggers add to the one row of platform statistics, or to a project's totals.
_HOT = frozenset({"investor", "operation"})
# Each session is started and has compiled what it runs within so long; a pool's have.
_SESSION_SECONDS = 0.007


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How long each step of the ladder is, where it begins and how high it is; the limit, the network, the people.

    ``nobody``: also how many are served when nobody keeps activity. ``hot_only``: only with the hot counter.
    """

    rounds: int = 5
    seconds: float = 1.0
    warm_seconds: float = 0.5
    first: int = 40
    step: float = 2.0
    limit_ms: float = 50.0
    away_ms: int = 1
    think_ms: int = 100
    nobody: bool = False
    hot_only: bool = False


_MIXES: Mapping[str, Mapping[str, int]] = {
    "with the hot counter": {name: weight for name, weight in MIX.items() if name in _HOT},
    "without it": {name: weight for name, weight in MIX.items() if name not in _HOT},
}
_Served = Mapping[tuple[str, Variant], Sequence[float]]


async def measure_users(grounds: Grounds, options: Options) -> list[Claim]:
    """How many clients each variant serves, by turns."""
    variants = [each for each in _VARIANTS if options.nobody or each is not Variant.NOBODY]
    stages = dict(zip(variants, await grounds.stages([(each, Moved.ALL) for each in variants]), strict=True))
    mixes = dict(list(_MIXES.items())[:1]) if options.hot_only else _MIXES
    served: dict[tuple[str, Variant], list[float]] = {(mix, each): [] for mix in mixes for each in variants}
    async with AsyncExitStack() as stack:
        workers: dict[Variant, Process] = {}
        for variant, stage in stages.items():
            if stage.captured:
                workers[variant] = await stack.enter_async_context(stage.capturing())
        for number in range(options.rounds):
            for mix, scripts in mixes.items():
                for variant in in_turn(variants, number):
                    grounds.tell(f"users {mix}, {told_round(number, options.rounds)}: {variant.value}")
                    found = served[mix, variant]
                    near = found[-1] if found else None
                    seed = grounds.seed + number
                    found.append(
                        await most_clients(stages[variant], workers.get(variant), scripts, options, seed, near)
                    )
    return _claims(served, options)


_VARIANTS = (Variant.TRIGGERS, Variant.NOBODY, Variant.AFTERWRITE)


def _claims(served: _Served, options: Options) -> list[Claim]:
    claims: list[Claim] = []
    for mix, variant in served:
        if variant is Variant.TRIGGERS:
            continue
        promised = variant is Variant.AFTERWRITE
        words = "afterwrite" if promised else "no log"
        claims.append(
            compare(
                f"clients within {options.limit_ms:g} ms (p95) {mix}, triggers to {words}",
                "clients",
                served[mix, Variant.TRIGGERS],
                served[mix, variant],
                target=10.0 if promised else None,
                promise=Promise.CLIENTS if promised else None,
            )
        )
    return claims


async def most_clients(
    stage: Stage,
    worker: Process | None,
    scripts: Mapping[str, int],
    options: Options,
    seed: int,
    near: float | None,
) -> float:
    """How many clients are served within the limit; between two steps of the ladder by their latencies.

    ``near`` is what an earlier round found: this one begins there. It goes up until the limit is passed, or down until
    it is kept.
    """
    clients = max(1, round(near or options.first))
    # A round that begins where the one before ended is near the limit.
    step = options.step if near is None else math.sqrt(options.step)
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    while True:
        if worker:
            await stage.caught_up(await read_wal_position(stage.db), worker)
        load = Load(
            scripts=scripts,
            seconds=options.seconds,
            clients=clients,
            away_ms=options.away_ms,
            think_ms=options.think_ms,
            warm_seconds=options.warm_seconds + clients * _SESSION_SECONDS,
            seed=seed,
        )
        latencies = (await stage.work(load)).latencies
        p95 = percentile(latencies, 0.95) if latencies else math.inf  # none ended in time
        if p95 > options.limit_ms:
            above = clients, p95
        else:
            below = clients, p95
        if below and above:
            return _between(below, above, options.limit_ms)
        if clients == (MOST_CLIENTS if below else 1):
            return clients
        clients = max(1, min(MOST_CLIENTS, round(clients * step if below else clients / step)))


def _between(below: tuple[float, float], above: tuple[float, float], limit: float) -> float:
    """Where the limit lies between two steps, both axes by their logarithms."""
    (few, quick), (many, slow) = below, above
    share = math.log(limit / quick) / math.log(slow / quick)
    return few * (many / few) ** share
