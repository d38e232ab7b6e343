"""Captures, writers and brokers that die: what source databases have committed is in one store, once and in order.

Faults are drawn from a seed: SIGKILL of a capture or a writer, at any moment or at a step that is meant to last, of the
broker that leads, of all brokers together, and a purge, as of brokers that have lost all that they acknowledged. All
the while somebody looks whether a slot was confirmed beyond what the store has committed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import psycopg
from changes_process import become

from afterwrite.bench.brokers import Cluster
from afterwrite.broker.link import Access
from afterwrite.broker.link import connect as connect_broker
from afterwrite.broker.topology import changes_stream
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect
from afterwrite.record import Lsn
from afterwrite.store.reader import verify_feed
from afterwrite.store.writer import open_sink

CAPTURE_STEPS = (
    "changes.before_publish", "changes.after_publish", "worker.after_write", "worker.before_acknowledge",
    "worker.after_acknowledge",
)  # fmt: skip
WRITER_STEPS = (
    "changes.before_store", "sink.before_commit", "sink.after_commit", "changes.after_store",
    "changes.after_acknowledge",
)  # fmt: skip
FAULTS = ("capture", "writer", "leader", "all", "purge")
_LONGEST_SECONDS = 120.0
_TRIES = 5
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["changes_process"])


class Origin:
    """A source database with a table, whose slot and name are the same."""

    def __init__(self, dsn: str, store: str) -> None:
        self.dsn, self.store = dsn, store
        self.name = f"s_{secrets.token_hex(4)}"
        self.written = 0
        self._kept = threading.local()

    async def install(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("create table t (id int primary key, body text)")
        setup = CaptureSetup(
            source=self.name, tables=(("public", "t"),), legacy_tables=(), full_identity=(), slot=self.name
        )
        async with connect(self.dsn) as database, open_sink(self.store) as sink:
            await prepare(database, sink, setup)

    def write(self, transactions: int, rows: int = 1, body: str = "x") -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for _ in range(transactions):
                connection.execute(
                    "insert into t select n, %s from generate_series(%s::int, %s::int) n",
                    [body, self.written + 1, self.written + rows],
                )
                self.written += rows

    def confirmed(self) -> Lsn:
        """Up to where the server may forget."""
        return self._read(self.dsn, "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s")

    def checkpoint(self) -> Lsn:
        return self._read(self.store, "select lsn::text from afterwrite.checkpoint where source = %s")

    def close(self) -> None:
        """Close what this thread has open."""
        for connection in self._kept.__dict__.pop("connections", {}).values():
            connection.close()

    def _read(self, dsn: str, query: str) -> Lsn:
        """Over a connection that each thread keeps."""
        kept = self._kept.__dict__.setdefault("connections", {})
        if dsn not in kept:
            kept[dsn] = psycopg.connect(dsn, autocommit=True)
        (lsn,) = kept[dsn].execute(query, [self.name]).fetchone()
        return Lsn.parse(lsn)

    def stored(self) -> list[int]:
        """What the store has of it, in the order of the feed."""
        with psycopg.connect(self.store) as connection:
            rows = connection.execute(
                """
                select a.entity_id::int
                  from afterwrite.activity a
                  join afterwrite.batch b on b.id = a.batch_id
                 where a.source = %s and b.source = %s
                 order by b.position, a.commit_lsn, a.ordinal
                """,
                [self.name, self.name],
            ).fetchall()
        return [row[0] for row in rows]

    def is_whole(self) -> bool:
        return self.stored() == list(range(1, self.written + 1))


class Fleet:
    """Processes beside a test: a capture of each source, and writers. Everything it starts it ends."""

    def __init__(
        self, access: Access, cluster: Cluster, store: str, origins: list[Origin], *, writers: int = 1
    ) -> None:
        self.access, self.cluster, self.store = access, cluster, store
        self.origins = {origin.name: origin for origin in origins}
        self.writers = [f"writer {number}" for number in range(writers)]
        self.struck: Counter[str] = Counter()
        self.lost = self.looks = 0
        self.early: list[str] = []
        self._alive: dict[str, BaseProcess] = {}
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look_regularly)

    def __enter__(self) -> Fleet:
        for name in (*self.writers, *self.origins):
            self.start(name)
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._looking.join()
        for process in self._alive.values():
            process.terminate()
        for process in self._alive.values():
            process.join(20)
            process.kill()
            process.join()

    def start(self, name: str, failpoints: str = "") -> None:
        origin = self.origins.get(name)
        what = ("write", self.store, "") if origin is None else ("capture", origin.dsn, name)
        words = (what[0], self.cluster.url, self.access.stream, *what[1:])
        process = _processes.Process(target=become, args=(failpoints, words))
        process.start()
        self._alive[name] = process

    def kill(self, name: str) -> None:
        self._alive[name].kill()
        self._alive[name].join()

    def kill_at(self, name: str, step: str, *, work: Callable[[], None]) -> None:
        """Have it die at that step, while ``work`` goes on, and start it again. Other writers make room for it."""
        others = [each for each in self.writers if each != name] if name in self.writers else []
        for each in (name, *others):
            self.kill(each)
        self.start(name, f"{step}=kill@1")
        process = self._alive[name]
        until = time.monotonic() + _LONGEST_SECONDS
        while process.is_alive():
            assert time.monotonic() < until, f"{name} never came to {step}"
            work()
            process.join(0.1)
        for each in (name, *others):
            self.start(each)

    def strike(self, fault: str, dice: random.Random, *, work: Callable[[], None]) -> None:
        """One fault, and what mends it."""
        self.struck[fault] += 1
        match fault:
            case "capture" | "writer":
                names = list(self.origins) if fault == "capture" else self.writers
                name = dice.choice(names)
                if dice.random() < 0.5:
                    self.kill(name)
                    time.sleep(dice.uniform(0.0, 0.5))
                    self.start(name)
                else:
                    steps = CAPTURE_STEPS if fault == "capture" else WRITER_STEPS
                    self.kill_at(name, dice.choice(steps), work=work)
            case "leader":
                node = self.cluster.node(self._leader())
                node.kill()
                time.sleep(dice.uniform(0.2, 1.0))
                node.start()
                self.cluster.wait()
            case "all":
                for node in self.cluster.nodes:
                    node.kill()
                self.cluster.start()
            case _:
                # While captures are at it, and nobody stores, so that there is something to be lost.
                # A capture that waits for a receipt publishes nothing meanwhile: then it is tried again.
                for _ in range(_TRIES):
                    before = {origin: origin.checkpoint() for origin in self.origins.values()}
                    work()
                    _until(lambda before=before: any(each.checkpoint() > at for each, at in before.items()), 20)
                    for name in self.writers:
                        self.kill(name)
                    work()
                    _until(lambda: self.waiting() > 0, 5)
                    purged = self.purge()
                    for name in self.writers:
                        self.start(name)
                    self.lost += purged
                    if purged:
                        break

    def purge(self) -> int:
        """Lose what the brokers have acknowledged; how many messages that were."""

        async def run() -> int:
            async with connect_broker(self.access, name="test") as link:
                told = await link.ask(f"STREAM.PURGE.{changes_stream(self.access.stream)}")
                return int(told["purged"])

        return self._insist(lambda: asyncio.run(run()))

    def waiting(self) -> int:
        """How many messages the brokers have."""

        async def run() -> int:
            async with connect_broker(self.access, name="test") as link:
                return int((await link.ask(f"STREAM.INFO.{changes_stream(self.access.stream)}"))["state"]["messages"])

        return self._insist(lambda: asyncio.run(run()))

    def settle(self) -> None:
        """Wait until the store has everything, and each slot is where its checkpoint is."""
        for origin in self.origins.values():
            reached = Lsn(0)
            until = time.monotonic() + _LONGEST_SECONDS
            while not (origin.is_whole() and origin.confirmed() >= (reached := reached or origin.checkpoint())):
                assert time.monotonic() < until, f"{origin.name} has {len(origin.stored())} of {origin.written}"
                time.sleep(0.1)

    def differences(self) -> list[str]:
        """What is not as it was promised."""
        found = list(self.early)
        for origin in self.origins.values():
            if not origin.is_whole():
                found.append(
                    f"of {origin.name} {len(origin.stored())} are stored, of {origin.written}, or out of order"
                )

        async def verify() -> None:
            async with connect(self.store) as store:
                report = await verify_feed(store)
            if report.first_break is not None:
                found.append(f"the seal is broken: {report.first_break}")

        asyncio.run(verify())
        return found

    def _look_regularly(self) -> None:
        while not self._over.wait(0.05):
            for origin in self.origins.values():
                # First the slot: what is confirmed must have been stored before.
                confirmed = origin.confirmed()
                self.looks += 1
                if confirmed > (stored := origin.checkpoint()):
                    self.early.append(f"slot {origin.name} is confirmed to {confirmed}, and stored is {stored}")
        for origin in self.origins.values():
            origin.close()

    def _leader(self) -> str:
        def ask() -> str:
            async def run() -> str:
                async with connect_broker(self.access, name="test") as link:
                    told = await link.ask(f"STREAM.INFO.{changes_stream(self.access.stream)}")
                    return str(told["cluster"].get("leader", ""))

            return asyncio.run(run())

        return self._insist(ask)

    def _insist(self, question: Callable[[], str | int]) -> str | int:
        until = time.monotonic() + 30
        while True:
            try:
                if (answer := question()) != "":
                    return answer
            except AfterwriteError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)


def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for it, so long at most."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
