"""What a write costs: the legacy application with its triggers, without, and with us.

Stages do the same transactions by turns: with all triggers; with none of those that may go or wait; with all of them
moved to us (stamped, captured, deferred, the store in the same database); and moved with legacy = "keep", where their
logs stay filled.

Server time is what pg_stat_statements says of the application's own statements: everything that stays on the write path
is in it (triggers, stamps, the old rows in the WAL), and nothing that runs beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from enum import StrEnum

import msgspec

from afterwrite.bench.claims import Claim, Promise, compare, in_turn, note, percentile, share_left
from afterwrite.bench.grounds import Grounds, told_round
from afterwrite.bench.load import MIX, Load
from afterwrite.bench.stage import Moved, Stage, Variant
from afterwrite.capture.slot import read_wal_position
from afterwrite.demo.measure import read_costs
from afterwrite.demo.processes import Process
from afterwrite.demo.schema import ROLE
from afterwrite.postgres import statement


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much, how often. ``transactions`` of the application a turn, ``rate`` of them a second where time counts.

    Without ``keep`` nobody keeps the old logs filled.
    """

    rounds: int = 5
    transactions: int = 320
    rate: float = 200.0
    clients: int = 4
    keep: bool = True


class Way(StrEnum):
    """How the application's activity is kept."""

    TRIGGERS = "triggers"
    NOBODY = "nobody"
    AFTERWRITE = "afterwrite"
    KEEP = "afterwrite, logs kept"


_WAYS: Mapping[Way, tuple[Variant, Moved]] = {
    Way.TRIGGERS: (Variant.TRIGGERS, Moved.ALL),
    Way.NOBODY: (Variant.NOBODY, Moved.ALL),
    Way.AFTERWRITE: (Variant.AFTERWRITE, Moved.ALL),
    Way.KEEP: (Variant.AFTERWRITE, Moved.KEEP),
}


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a way: server time of a transaction, its latency as the client sees it, speed flat out."""

    server_us: float
    mean_ms: float
    p95_ms: float
    tps: float


async def measure_writes(grounds: Grounds, options: Options) -> list[Claim]:
    """What the application's transactions cost, by turns."""
    ways = [way for way in Way if options.keep or way is not Way.KEEP]
    turns: dict[Way, list[Turn]] = {way: [] for way in ways}
    stages = dict(zip(ways, await grounds.stages([_WAYS[way] for way in ways]), strict=True))
    async with AsyncExitStack() as stack:
        workers: dict[Way, Process] = {}
        for way, stage in stages.items():
            if stage.captured:
                workers[way] = await stack.enter_async_context(stage.capturing())
        for number in range(-1, options.rounds):
            for way in in_turn(ways, number):
                grounds.tell(f"writes, {told_round(number, options.rounds)}: {way.value}")
                turn = await _take_turn(stages[way], workers.get(way), options, grounds.seed + 1 + number)
                if number >= 0:
                    turns[way].append(turn)
    return _claims(turns)


async def _take_turn(stage: Stage, worker: Process | None, options: Options, seed: int) -> Turn:
    if worker:
        await stage.caught_up(await read_wal_position(stage.db), worker)
    await stage.db.run(statement("bench.checkpoint"))
    load = Load(scripts=MIX, transactions=options.transactions, rate=options.rate, clients=options.clients, seed=seed)
    first = await read_costs(stage.db, ROLE, None)
    ran = await stage.work(load)
    last = await read_costs(stage.db, ROLE, None)
    fast = await stage.work(msgspec.structs.replace(load, rate=None, seed=seed + 1_000))
    return Turn(
        server_us=(last.server_seconds - first.server_seconds) * 1e6 / len(ran.latencies),
        mean_ms=sum(ran.latencies) / len(ran.latencies),
        p95_ms=percentile(ran.latencies, 0.95),
        tps=fast.tps,
    )


def _claims(turns: Mapping[Way, Sequence[Turn]]) -> list[Claim]:
    def server(way: Way) -> list[float]:
        return [turn.server_us for turn in turns[way]]

    def tps(way: Way) -> list[float]:
        return [turn.tps for turn in turns[way]]

    def p95(way: Way) -> list[float]:
        return [turn.p95_ms for turn in turns[way]]

    claims: list[Claim] = []
    for way in (Way.AFTERWRITE, Way.KEEP):
        if way not in turns:
            continue
        name, promised = way.value, way is Way.AFTERWRITE
        claims += [
            compare(
                f"server time of a transaction, triggers to {name}",
                "µs",
                server(Way.TRIGGERS),
                server(way),
                target=0.2 if promised else None,
                promise=Promise.SERVER_TIME if promised else None,
            ),
            share_left(
                f"what logging adds to it, triggers to {name}",
                "µs",
                server(Way.NOBODY),
                server(Way.TRIGGERS),
                server(way),
                target=0.1 if promised else None,
                promise=Promise.TRIGGERS_SHARE if promised else None,
            ),
            compare(f"latency of a transaction, p95, triggers to {name}", "ms", p95(Way.TRIGGERS), p95(way)),
            compare(f"transactions flat out, triggers to {name}", "tx/s", tps(Way.TRIGGERS), tps(way)),
        ]
    return [*claims, note("server time of a transaction that nobody logs", "µs", server(Way.NOBODY))]
