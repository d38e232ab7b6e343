"""A hot counter with its trigger, and with it deferred: ``./run python -m tests.defer.hot_counter [--clients 16 64]``.

Every payment adds to one row of totals. The trigger holds that row's lock until the writer's COMMIT is on disk, so that
all writers wait for each other; deferred, its body runs after commit in the replayer, and writers wait for nobody. Both
databases do the same transactions (pgbench, same seed). How long the lock is held depends on how far away the writers
are: each run is made on the server itself, and with a pause between statements as a network's round trip makes it.
Ends with 1 unless both counters are what the payments add up to.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))

from deferring import tell_ledger

from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.defer.deferral import prepare_deferral
from afterwrite.defer.progress import settle
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.record import EVENT_PREFIX
from afterwrite.scan.catalog import read_inventory
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

SOURCE = "main"
DDL = """
create table public.accounts (id int primary key, balance numeric(14, 2) not null default 0);
insert into public.accounts select generate_series(1, 100000);
create table public.payments (
    id bigint generated always as identity primary key, account int not null, amount numeric(12, 2) not null
);
create table public.totals (one boolean primary key default true check (one), payments bigint, amount numeric(14, 2));
insert into public.totals values (true, 0, 0);
create function public.count_payment() returns trigger language plpgsql set search_path = public as $$
begin
    update totals set payments = payments + 1, amount = amount + new.amount;
    return null;
end $$;
create trigger t after insert on public.payments for each row execute function public.count_payment();
"""
WORK = """\
\\set account random(1, 100000)
\\set amount random(1, 100000)
begin;
insert into public.payments (account, amount) values (:account, :amount / 100.0);
{away}update public.accounts set balance = balance + :amount / 100.0 where id = :account;
{away}select balance from public.accounts where id = :account;
{away}end;
"""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. ``behind_seconds``: how long after the last commit the counter was right."""

    tps: float
    payments: int
    counted: int
    amount: str
    expected: str
    behind_seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the counter is what the payments add up to."""
        return (self.payments, self.expected) == (self.counted, self.amount)


async def lay(dsn: str, *, deferred: bool) -> None:
    async with connect(dsn) as db:
        await db.script(DDL)
        if not deferred:
            return
        await install_store(db)
        async with open_sink(dsn) as sink:
            await prepare(db, sink, CaptureSetup(source=SOURCE, tables=(("public", "payments"),)))
        trigger = next(trigger for trigger in (await read_inventory(db)).triggers if trigger.name == "t")
        async with db.transaction():
            await prepare_deferral(db, trigger, source=SOURCE)
            await db.run(b"alter table public.payments disable trigger t")
            await tell_ledger(db, "trigger.silence", trigger.identity)
            mark = {
                "category": "migration",
                "action": "trigger.silence",
                "entity_type": "trigger",
                "entity_id": trigger.identity,
                "metadata": {"trigger_oid": trigger.oid, "mode": "defer"},
            }
            await db.value(
                b"select pg_logical_emit_message(true, %(prefix)s, %(mark)s)::text",
                prefix=EVENT_PREFIX,
                mark=msgspec.json.encode(mark).decode(),
            )


def work(server: Server, dsn: str, *, clients: int, transactions: int, away_ms: int, folder: Path) -> float:
    """Let pgbench do it; the transactions a second that came about."""
    script = folder / "work.pgbench"
    script.write_text(WORK.format(away=f"\\sleep {away_ms} ms\n" if away_ms else ""), encoding="utf-8")
    each = max(1, transactions // clients)
    words = [*("-n", "-c", str(clients), "-j", "1", "-t", str(each), "--random-seed", "1"), "-f", str(script), dsn]
    done = subprocess.run([server.bin_dir / "pgbench", *words], capture_output=True, text=True, check=True)
    speed = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert speed is not None
    return float(speed[1])


async def count(dsn: str, tps: float, *, deferred: bool) -> Figures:
    async with connect(dsn) as db, connect(dsn) as store:
        began = time.monotonic()
        if deferred:
            await settle(db, store, source=SOURCE, timeout=120)
        behind = time.monotonic() - began
        return await db.one(
            _figures(tps, behind if deferred else 0.0),
            b"select (select count(*) from public.payments) as payments,"
            b" (select sum(amount)::text from public.payments) as expected,"
            b" payments as counted, amount::text as amount from public.totals",
        )


def _figures(tps: float, behind: float) -> type[Figures]:
    def make(*, payments: int, expected: str, counted: int, amount: str) -> Figures:
        return Figures(
            tps=tps, payments=payments, counted=counted, amount=amount, expected=expected, behind_seconds=behind
        )

    return make  # type: ignore[return-value]


def run(server: Server, clients: int, transactions: int, away_ms: int) -> tuple[Figures, Figures]:
    """The same work with the trigger, and with it deferred, one after the other on one server."""
    found: list[Figures] = []
    for deferred in (False, True):
        name = f"hot_{'deferred' if deferred else 'trigger'}_{clients}_{away_ms}"
        asyncio.run(_create(server, name))
        dsn = server.dsn(name)
        asyncio.run(lay(dsn, deferred=deferred))
        # What the worker says is shown where it failed: that no plan of ours has this trigger is no news.
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as said:
            worker = None
            if deferred:
                words = [sys.executable, "-m", "afterwrite", "capture", "--dsn", dsn, "--json"]
                worker = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said)
            try:
                tps = work(
                    server, dsn, clients=clients, transactions=transactions, away_ms=away_ms, folder=Path(folder)
                )
                found.append(asyncio.run(count(dsn, tps, deferred=deferred)))
            finally:
                if worker is not None:
                    ended = worker.poll()
                    worker.send_signal(signal.SIGTERM)
                    if ended is not None or worker.wait(20):
                        said.seek(0)
                        sys.stderr.buffer.write(said.read())
                    asyncio.run(_forget(dsn))
    return found[0], found[1]


async def _create(server: Server, name: str) -> None:
    async with connect(server.dsn()) as db:
        await db.run(f"create database {name}".encode())


async def _forget(dsn: str) -> None:
    async with connect(dsn) as db:
        await db.values(b"select pg_drop_replication_slot(slot_name)::text from pg_replication_slots where not active")


def main() -> int:
    """Print a table; 1 when a counter is wrong."""
    parser = argparse.ArgumentParser(prog="tests.defer.hot_counter", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="*", default=[16, 64], help="how many write at once (16 64)")
    parser.add_argument("--transactions", type=int, default=6_000, help="of each run (6000)")
    parser.add_argument("--away-ms", type=int, nargs="*", default=[0, 1], help="the writers' round trip (0 1)")
    given = parser.parse_args()
    wrong = False
    print("clients   away  trigger, tps  deferred, tps   ratio   behind  counters")
    with embedded_server() as server:
        for clients, away_ms in product(given.clients, given.away_ms):
            trigger, deferred = run(server, clients, given.transactions, away_ms)
            same = trigger.right and deferred.right and trigger.amount == deferred.amount
            wrong |= not same
            words = f"equal ({deferred.counted:,} payments, {deferred.amount})" if same else "DIFFER"
            print(
                f"{clients:>7}  {away_ms:>2} ms  {trigger.tps:>12,.0f}  {deferred.tps:>13,.0f}"
                f"  {deferred.tps / trigger.tps:>5.1f}x  {deferred.behind_seconds:>5.1f} s  {words}"
            )
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
