"""What a write costs: the legacy application with its triggers, without, and with us; and one table beside its peers.

::

    application   four servers do the same transactions by turns: with all triggers; with none of those that may go or
                  wait; with all of them moved to us (stamped, captured, deferred, the store in the same database); and
                  moved with legacy = "keep", where their logs stay filled
    peers         one table in copies: no log, three audit triggers as people write them, and ours with its two stamps

Server time is what pg_stat_statements says of the application's own statements: everything that stays on the write path
is in it (triggers, stamps, the old rows in the WAL), and nothing that runs beside it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from enum import StrEnum
from importlib import resources
from pathlib import Path

import msgspec
from psycopg import sql

from afterwrite import runtime
from afterwrite.bench.capture import Tell, read_machine
from afterwrite.bench.claims import Claim, Report, compare, in_turn, note, percentile, share_left
from afterwrite.bench.load import MIX, Load, run_pgbench
from afterwrite.bench.stage import Moved, Stage, Variant, await_caught_up, staged
from afterwrite.capture.slot import read_wal_position
from afterwrite.capture.stamping import apply_steps, plan_install
from afterwrite.demo.measure import read_costs
from afterwrite.demo.processes import Process, capture_worker
from afterwrite.demo.schema import ROLE
from afterwrite.postgres import Database, connect, identifier, script, statement
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.settings import Settings

_PEERS, _PEERS_ROLE = "peers", "peers_app"
_BULK_ROWS = 50_000


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much, how often. ``transactions`` of the application a turn, ``rate`` of them a second where time counts.

    Without ``bulk`` no table is updated as a whole, and without ``keep`` nobody keeps the old logs filled.
    """

    rounds: int = 5
    transactions: int = 2_000
    rate: float = 200.0
    clients: int = 4
    peer_transactions: int = 1_500
    bulk: bool = True
    keep: bool = True
    seed: int = 1
    pg_bin: Path | None = None


class Way(StrEnum):
    """How the application's activity is kept."""

    TRIGGERS = "triggers"
    NOBODY = "nobody"
    AFTERWRITE = "afterwrite"
    KEEP = "afterwrite, logs kept"


class Peer(StrEnum):
    """How one table's activity is kept: by the name of its copy."""

    NONE = "orders_none"
    JSONB = "orders_jsonb"
    HSTORE = "orders_hstore"
    TRANSITION = "orders_transition"
    AFTERWRITE = "orders_afterwrite"
    STAMPED = "orders_stamped"


_PEER_WORDS: Mapping[Peer, str] = {
    Peer.NONE: "no log",
    Peer.JSONB: "a to_jsonb audit trigger",
    Peer.HSTORE: "an hstore audit trigger",
    Peer.TRANSITION: "a statement-level audit trigger",
    Peer.AFTERWRITE: "afterwrite",
    Peer.STAMPED: "afterwrite, stamped by a trigger",
}


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a way: server time of a transaction, its latency as the client sees it, speed flat out."""

    server_us: float
    mean_ms: float
    p95_ms: float
    tps: float


async def bench_writes(options: Options, tell: Tell) -> Report:
    """Measure on servers of its own, and say what came out."""
    claims, version = await _measure_application(options, tell)
    claims += await _measure_peers(options, tell)
    return Report(machine=read_machine(version), settings=_settings(options), claims=claims)


# The application.

_WAYS: Mapping[Way, tuple[Variant, Moved]] = {
    Way.TRIGGERS: (Variant.TRIGGERS, Moved.ALL),
    Way.NOBODY: (Variant.NOBODY, Moved.ALL),
    Way.AFTERWRITE: (Variant.AFTERWRITE, Moved.ALL),
    Way.KEEP: (Variant.AFTERWRITE, Moved.KEEP),
}


async def _measure_application(options: Options, tell: Tell) -> tuple[list[Claim], str]:
    ways = {way: how for way, how in _WAYS.items() if options.keep or way is not Way.KEEP}
    turns: dict[Way, list[Turn]] = {way: [] for way in ways}
    with ExitStack() as servers:
        async with AsyncExitStack() as stack:
            stages: dict[Way, Stage] = {}
            workers: dict[Way, Process] = {}
            for way, (variant, moved) in ways.items():
                tell(f"laying the legacy application: {way.value}")
                server = servers.enter_context(embedded_server(bin_dir=options.pg_bin))
                stage = await stack.enter_async_context(staged(server, variant, seed=options.seed, moved=moved))
                await stage.db.run(b"create extension if not exists pg_stat_statements with schema public")
                if stage.captured:
                    workers[way] = await stack.enter_async_context(stage.capturing())
                stages[way] = stage
                await _take_turn(stage, workers.get(way), msgspec.structs.replace(options, transactions=200))
            for number in range(options.rounds):
                seeded = msgspec.structs.replace(options, seed=options.seed + number)
                for way in in_turn(list(ways), number):
                    tell(f"writes, round {number + 1} of {options.rounds}: {way.value}")
                    turns[way].append(await _take_turn(stages[way], workers.get(way), seeded))
            version = str(await stages[Way.NOBODY].db.value(statement("bench.read_version")))
    return _application_claims(turns), version


async def _take_turn(stage: Stage, worker: Process | None, options: Options) -> Turn:
    if worker:
        await stage.caught_up(await read_wal_position(stage.db), worker)
    await stage.db.run(statement("bench.checkpoint"))
    load = Load(
        scripts=MIX, transactions=options.transactions, rate=options.rate, clients=options.clients, seed=options.seed
    )
    first = await read_costs(stage.db, ROLE, None)
    ran = await stage.work(load)
    last = await read_costs(stage.db, ROLE, None)
    fast = await stage.work(msgspec.structs.replace(load, rate=None, seed=options.seed + 1_000))
    return Turn(
        server_us=(last.server_seconds - first.server_seconds) * 1e6 / len(ran.latencies),
        mean_ms=sum(ran.latencies) / len(ran.latencies),
        p95_ms=percentile(ran.latencies, 0.95),
        tps=fast.tps,
    )


def _application_claims(turns: Mapping[Way, Sequence[Turn]]) -> list[Claim]:
    def server(way: Way) -> list[float]:
        return [turn.server_us for turn in turns[way]]

    def tps(way: Way) -> list[float]:
        return [turn.tps for turn in turns[way]]

    def p95(way: Way) -> list[float]:
        return [turn.p95_ms for turn in turns[way]]

    claims: list[Claim] = []
    for way, target in ((Way.AFTERWRITE, (0.2, 0.1)), (Way.KEEP, (None, None))):
        if way not in turns:
            continue
        name = way.value
        claims += [
            compare(
                f"server time of a transaction, triggers to {name}",
                "µs",
                server(Way.TRIGGERS),
                server(way),
                target=target[0],
                at_most=True,
            ),
            share_left(
                f"what logging adds to it, triggers to {name}",
                "µs",
                server(Way.NOBODY),
                server(Way.TRIGGERS),
                server(way),
                target=target[1],
            ),
            compare(f"latency of a transaction, p95, triggers to {name}", "ms", p95(Way.TRIGGERS), p95(way)),
            compare(f"transactions flat out, triggers to {name}", "tx/s", tps(Way.TRIGGERS), tps(way)),
        ]
    return [*claims, note("server time of a transaction that nobody logs", "µs", server(Way.NOBODY))]


# One table beside its peers.


async def _measure_peers(options: Options, tell: Tell) -> list[Claim]:
    one: dict[Peer, list[float]] = {peer: [] for peer in Peer}
    many: dict[Peer, list[float]] = {peer: [] for peer in Peer}
    bulk: dict[Peer, list[float]] = {peer: [] for peer in Peer}
    tell("laying one table in as many copies as it has peers")
    with embedded_server(bin_dir=options.pg_bin) as server:
        async with _peers(server) as (db, worker, settings):
            for number in range(options.rounds):
                for peer in in_turn(list(Peer), number):
                    tell(f"peers, round {number + 1} of {options.rounds}: {_PEER_WORDS[peer]}")
                    await await_caught_up(db, settings, await read_wal_position(db), worker)
                    one[peer].append(await _peer_time(server, db, peer, "peer_one", options, number))
                    many[peer].append(await _peer_time(server, db, peer, "peer_many", options, number))
                    if options.bulk:
                        bulk[peer].append(await _bulk_speed(server, db, peer))
    claims: list[Claim] = []
    ours = Peer.AFTERWRITE
    for peer in (Peer.JSONB, Peer.HSTORE, Peer.TRANSITION):
        words = _PEER_WORDS[peer]
        claims += [
            compare(f"an UPDATE of one row, beside {words}", "µs", one[peer], one[ours], at_most=True),
            compare(f"five UPDATEs in a transaction, beside {words}", "µs", many[peer], many[ours], at_most=True),
        ]
        if options.bulk:
            target = 25.0 if peer is Peer.JSONB else None
            name = f"an UPDATE of {_BULK_ROWS:,} rows, beside {words}"
            claims.append(compare(name, "rows/s", bulk[peer], bulk[ours], target=target))
    for peer in (ours, Peer.STAMPED):
        words = _PEER_WORDS[peer]
        claims += [
            compare(f"an UPDATE of one row, no log to {words}", "µs", one[Peer.NONE], one[peer], at_most=True),
            compare(f"five UPDATEs in a transaction, no log to {words}", "µs", many[Peer.NONE], many[peer]),
        ]
        if options.bulk:
            name = f"an UPDATE of {_BULK_ROWS:,} rows, no log to {words}"
            claims.append(compare(name, "rows/s", bulk[Peer.NONE], bulk[peer]))
    return claims


@asynccontextmanager
async def _peers(server: Server) -> AsyncGenerator[tuple[Database, Process, Settings]]:
    """The copies, ours captured by a worker; the audit triggers come last, or we would capture their tables, too."""
    settings = Settings(dsn=server.dsn(_PEERS))
    folder = server.home / "bench"
    folder.mkdir(mode=0o700, exist_ok=True)
    async with connect(server.dsn()) as admin:
        await admin.run(b"create database peers")
    async with connect(settings.dsn) as db:
        await db.run(b"create extension pg_stat_statements with schema public")
        await db.script(script("bench/peers"))
        captured = [f"peers.{peer.value}" for peer in (Peer.AFTERWRITE, Peer.STAMPED)]
        seen = await runtime.look_at_installation(settings, db, db, tables=captured)
        await runtime.install(settings, seen, db, db)
        steps = await plan_install(db, postgrest=False, tables=captured[1:])
        await apply_steps(db, steps, policy=runtime.lock_policy(settings))
        await db.script(script("bench/peer_triggers"))
        async with capture_worker(server.dsn(_PEERS), folder / "peers.log", rehearse=False) as worker:
            yield db, worker, settings


async def _peer_time(server: Server, db: Database, peer: Peer, name: str, options: Options, number: int) -> float:
    """Server time of a transaction of this script, in microseconds."""
    folder = server.home / "bench"
    path = folder / f"{name}.pgbench"
    text = resources.files("afterwrite").joinpath("sql", "bench", f"{name}.pgbench").read_text(encoding="utf-8")
    path.write_text(text.replace("{table}", f"peers.{peer.value}"), encoding="utf-8")
    load = Load(scripts={}, transactions=options.peer_transactions, clients=1, seed=options.seed + number)
    await db.run(statement("bench.checkpoint"))
    first = await read_costs(db, _PEERS_ROLE, None)
    stamp = {"stamp": int(peer is Peer.AFTERWRITE)}
    ran = await run_pgbench(server, server.dsn(_PEERS, _PEERS_ROLE), load, {path: 1}, stamp, folder)
    last = await read_costs(db, _PEERS_ROLE, None)
    return (last.server_seconds - first.server_seconds) * 1e6 / len(ran.latencies)


async def _bulk_speed(server: Server, db: Database, peer: Peer) -> float:
    """Rows a second of one UPDATE of the whole table, its commit included."""
    table = identifier("peers", peer.value)
    await db.run(sql.SQL("vacuum (analyze) {}").format(table))
    await db.run(statement("bench.checkpoint"))
    update = sql.SQL("update {} set status = 'closed', amount = amount + 1, updated_at = now()").format(table)
    async with connect(server.dsn(_PEERS, _PEERS_ROLE)) as app:
        began = time.monotonic()
        await app.run(update)
        return _BULK_ROWS / (time.monotonic() - began)


def _settings(options: Options) -> dict[str, str | int | float]:
    return {
        "rounds": options.rounds,
        "transactions": options.transactions,
        "rate": options.rate,
        "clients": options.clients,
        "peer_transactions": options.peer_transactions,
        "seed": options.seed,
    }
