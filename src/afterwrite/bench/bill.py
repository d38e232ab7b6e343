"""What keeping activity costs the database, by kind of process, for the same committed work.

Four servers do the same work by turns: with triggers, with nobody keeping activity, with afterwrite and its store in
the same database, and with its store on a server of its own. Only the triggers that scan would retire are replaced;
the others stay on in every variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec

from afterwrite.bench.claims import Claim, Promise, compare, in_turn, note
from afterwrite.bench.grounds import Grounds, told_round
from afterwrite.bench.load import MIX, Load
from afterwrite.bench.stage import Bill, Moved, Stage, Variant
from afterwrite.demo.processes import Process

_WARM_TRANSACTIONS = 400
# A difference of two measurements may come out below nothing.
_LEAST = 1e-3


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """At which rates (transactions a second), how long, and whether the store is also tried on a server of its own."""

    rounds: int = 5
    rates: tuple[int, ...] = (300,)
    seconds: float = 1.5
    apart: bool = True


async def measure_bill(grounds: Grounds, options: Options) -> list[Claim]:
    """The same transactions, each round with another seed, on each server in turn."""
    variants = [each for each in Variant if options.apart or each is not Variant.APART]
    stages = dict(zip(variants, await grounds.stages([(each, Moved.LOGS) for each in variants]), strict=True))
    claims: list[Claim] = []
    async with AsyncExitStack() as stack:
        workers: dict[Variant, Process] = {}
        for variant, stage in stages.items():
            grounds.tell(f"warming up: {variant.value}")
            if stage.captured:
                workers[variant] = await stack.enter_async_context(stage.capturing())
            await stage.work(Load(scripts=MIX, transactions=_WARM_TRANSACTIONS, seed=7))
        for rate in options.rates:
            bills = await _take_rounds(grounds, stages, workers, rate, options)
            claims += _claims(bills, f"{rate:g} tx/s", promised=rate == options.rates[0])
    return claims


async def _take_rounds(
    grounds: Grounds, stages: Mapping[Variant, Stage], workers: Mapping[Variant, Process], rate: int, options: Options
) -> dict[Variant, list[Bill]]:
    bills: dict[Variant, list[Bill]] = {variant: [] for variant in stages}
    load = Load(scripts=MIX, transactions=int(rate * options.seconds), rate=rate)
    for number in range(options.rounds):
        for variant in in_turn(list(stages), number):
            grounds.tell(f"bill at {rate:g}/s, {told_round(number, options.rounds)}: {variant.value}")
            seeded = msgspec.structs.replace(load, seed=grounds.seed + number)
            bills[variant].append(await stages[variant].bill(seeded, workers.get(variant)))
    return bills


def _cpu(bill: Bill) -> float:
    return bill.cluster_cpu * 1e6


def _wal(bill: Bill) -> float:
    return bill.wal


_KINDS: Mapping[str, Callable[[Bill], float]] = {
    "backends": lambda bill: bill.backends_cpu * 1e6,
    "walsender": lambda bill: bill.walsender_cpu * 1e6,
    "sink": lambda bill: bill.sink_cpu * 1e6,
    "the server's own processes": lambda bill: bill.server_cpu * 1e6,
}


def _claims(bills: Mapping[Variant, Sequence[Bill]], at: str, *, promised: bool) -> list[Claim]:
    triggers, ours, apart = Variant.TRIGGERS, Variant.AFTERWRITE, Variant.APART

    def each(variant: Variant, figure: Callable[[Bill], float]) -> list[float]:
        return [figure(bill) / bill.writes for bill in bills[variant]]

    def beyond(variant: Variant, figure: Callable[[Bill], float]) -> list[float]:
        nobody = each(Variant.NOBODY, figure)
        return [max(_LEAST, mine - base) for mine, base in zip(each(variant, figure), nobody, strict=True)]

    def bill(claim: str, unit: str, theirs: list[float], mine: list[float], promise: Promise | None = None) -> Claim:
        kept = promise if promised else None
        return compare(f"{claim}, {at}", unit, theirs, mine, target=0.4, promise=kept)

    claims = [
        bill(
            "database CPU of the whole work",
            "µs/write",
            each(triggers, _cpu),
            each(ours, _cpu),
            Promise.DATABASE_CPU,
        ),
        bill("WAL of the whole work", "B/write", each(triggers, _wal), each(ours, _wal), Promise.WAL),
        bill("database CPU for keeping activity", "µs/write", beyond(triggers, _cpu), beyond(ours, _cpu)),
        bill("WAL for keeping activity", "B/write", beyond(triggers, _wal), beyond(ours, _wal)),
    ]
    if apart in bills:
        claims += [
            bill("store apart: source CPU for activity", "µs/write", beyond(triggers, _cpu), beyond(apart, _cpu)),
            bill("store apart: source WAL for activity", "B/write", beyond(triggers, _wal), beyond(apart, _wal)),
        ]
    claims += [
        compare(
            f"data files written, triggers to afterwrite, {at}",
            "B/write",
            each(triggers, lambda bill: bill.written),
            each(ours, lambda bill: bill.written),
        ),
        compare(
            f"what is kept on disk, triggers to afterwrite, {at}",
            "B/activity",
            [bill.kept_bytes for bill in bills[triggers]],
            [bill.kept_bytes for bill in bills[ours]],
        ),
        note(f"database CPU, nobody keeps activity, {at}", "µs/write", each(Variant.NOBODY, _cpu)),
        note(f"WAL, nobody keeps activity, {at}", "B/write", each(Variant.NOBODY, _wal)),
    ]
    for variant in (triggers, ours):
        claims += [
            note(f"CPU of {kind}, {variant.value}, {at}", "µs/write", each(variant, figure))
            for kind, figure in _KINDS.items()
            if variant is ours or kind not in ("walsender", "sink")
        ]
    return [*claims, note(f"the worker's own CPU, {at}", "µs/write", each(ours, lambda bill: bill.worker_cpu * 1e6))]
