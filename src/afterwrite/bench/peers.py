"""One table beside its peers: no log, three audit triggers as people write them, and ours with its two stamps."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from importlib import resources

import msgspec
from psycopg import sql

from afterwrite import runtime
from afterwrite.bench.claims import Claim, Promise, compare, in_turn
from afterwrite.bench.grounds import Grounds, told_round
from afterwrite.bench.load import Load, run_pgbench
from afterwrite.bench.stage import await_caught_up
from afterwrite.capture.slot import read_wal_position
from afterwrite.capture.stamping import apply_steps, plan_install
from afterwrite.demo.measure import read_costs
from afterwrite.demo.processes import Process, capture_worker
from afterwrite.postgres import Database, connect, identifier, script, statement
from afterwrite.postgres.embedded import Server
from afterwrite.settings import Settings

_PEERS, _PEERS_ROLE = "peers", "peers_app"
_BULK_ROWS = 50_000


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
# What a short run has, and in this order: what capture has to catch up with is waited for once in two rounds.
_FEW = (Peer.AFTERWRITE, Peer.JSONB)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much, how often: ``transactions`` a turn. ``few``: one audit trigger alone, and none of one row."""

    rounds: int = 5
    transactions: int = 140
    few: bool = False


async def measure_peers(grounds: Grounds, options: Options) -> list[Claim]:
    """The same statements on each copy, by turns."""
    peers = _FEW if options.few else tuple(Peer)
    found: dict[str, dict[Peer, list[float]]] = {}
    grounds.tell("laying one table in as many copies as it has peers")
    server = grounds.server()
    async with _peers(server) as (db, worker, settings):
        for number in range(options.rounds):
            for peer in in_turn(peers, number):
                grounds.tell(f"peers, {told_round(number, options.rounds)}: {_PEER_WORDS[peer]}")
                await await_caught_up(db, settings, await read_wal_position(db), worker)
                if not options.few:
                    for what, name in _SHORT.items():
                        taken = await _server_us(server, db, peer, name, options.transactions, grounds.seed + number)
                        found.setdefault(what, {}).setdefault(peer, []).append(taken)
                found.setdefault(_BULK, {}).setdefault(peer, []).append(await _bulk_speed(server, db, peer))
    return [claim for what, figures in found.items() for claim in _claims(what, figures)]


_SHORT = {"an UPDATE of one row": "peer_one", "five UPDATEs in a transaction": "peer_many"}
_BULK = f"an UPDATE of {_BULK_ROWS:,} rows"


def _claims(what: str, figures: Mapping[Peer, list[float]]) -> list[Claim]:
    unit = "rows/s" if what == _BULK else "µs"
    ours = Peer.AFTERWRITE
    claims: list[Claim] = []
    for peer in (Peer.JSONB, Peer.HSTORE, Peer.TRANSITION):
        if peer in figures:
            promised = what == _BULK and peer is Peer.JSONB
            claims.append(
                compare(
                    f"{what}, beside {_PEER_WORDS[peer]}",
                    unit,
                    figures[peer],
                    figures[ours],
                    target=25.0 if promised else None,
                    promise=Promise.BULK if promised else None,
                )
            )
    return claims + [
        compare(f"{what}, no log to {_PEER_WORDS[peer]}", unit, figures[Peer.NONE], figures[peer])
        for peer in (ours, Peer.STAMPED)
        if peer in figures and Peer.NONE in figures
    ]


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


async def _server_us(server: Server, db: Database, peer: Peer, name: str, transactions: int, seed: int) -> float:
    """Server time of a transaction of this script, in microseconds."""
    folder = server.home / "bench"
    path = folder / f"{name}.pgbench"
    text = resources.files("afterwrite").joinpath("sql", "bench", f"{name}.pgbench").read_text(encoding="utf-8")
    path.write_text(text.replace("{table}", f"peers.{peer.value}"), encoding="utf-8")
    load = Load(scripts={}, transactions=transactions, clients=1, seed=seed)
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
