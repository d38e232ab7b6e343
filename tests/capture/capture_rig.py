"""What the tests of capture share: a sink in memory, an installation, and reading a slot up to a marker."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import psycopg

from afterwrite.capture.assemble import Assembler
from afterwrite.capture.lookup import Publications, teach
from afterwrite.capture.pgoutput import RELATION_TAG, decode
from afterwrite.capture.preflight import CaptureSetup, Table
from afterwrite.capture.slot import Prepared, prepare
from afterwrite.capture.stream import open_stream
from afterwrite.capture.transaction import Change, Relation, Transaction
from afterwrite.postgres import Database, connect, script
from afterwrite.record import Activity, Batch, Checkpoint, Receipt


class MemorySink:
    """A sink that forgets at the end of the test."""

    def __init__(self) -> None:
        self.checkpoint: Checkpoint | None = None
        self.batches: list[Batch] = []

    async def read_identity(self) -> str:
        return "memory"

    async def read_checkpoint(self, source: str) -> Checkpoint | None:
        return self.checkpoint

    async def write(self, batch: Batch) -> Receipt:
        self.batches.append(batch)
        self.checkpoint = batch.checkpoint
        return Receipt(batch_id=len(self.batches), position=len(self.batches), stored=len(batch.activities))

    @property
    def activities(self) -> list[Activity]:
        return [activity for batch in self.batches for activity in batch.activities]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[MemorySink]:
        yield self


def setup_of(*tables: str, legacy: Iterable[str] = (), full: Iterable[str] = ()) -> CaptureSetup:
    """A setup with names that no other test uses; tables of schema public by their bare name."""
    tag = secrets.token_hex(4)
    return CaptureSetup(
        source="main",
        tables=tuple(table_of(name) for name in tables),
        legacy_tables=tuple(table_of(name) for name in legacy),
        full_identity=tuple(table_of(name) for name in full),
        slot=f"slot_{tag}",
    )


def table_of(name: str) -> Table:
    schema, _, table = name.rpartition(".")
    return (schema or "public", table)


def install(dsn: str, setup: CaptureSetup, sink: MemorySink | None = None) -> tuple[MemorySink, Prepared]:
    """Prepare the database; the sink then holds the first checkpoint."""
    sink = sink or MemorySink()

    async def run() -> Prepared:
        async with connect(dsn) as database:
            await lay_memory(database)
            return await prepare(database, sink, setup)

    return sink, asyncio.run(run())


async def lay_memory(database: Database) -> None:
    """Of our schema what capture itself needs; the sink is in memory, so there is no store to lay."""
    if await database.value(b"select to_regclass('afterwrite.capture') is null"):
        await database.script(f"create schema if not exists afterwrite; {script('schema/0005_capture')}")


def drain(dsn: str, setup: CaptureSetup, sink: MemorySink, *, keys: tuple[str, ...] = ()) -> list[Transaction]:
    """Every transaction from the sink's checkpoint until now, decoded; nothing is acknowledged."""
    marker = secrets.token_hex(8).encode()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select pg_logical_emit_message(true, 'test.marker', %s)", [marker.decode()])

    async def run() -> list[Transaction]:
        assert sink.checkpoint is not None
        assembler = Assembler(keys=keys)  # the publications say which tables are legacy logs
        found: list[Transaction] = []
        async with (
            asyncio.timeout(30),
            connect(dsn) as control,
            open_stream(dsn, slot=setup.slot, publications=setup.publications, start=sink.checkpoint.lsn) as stream,
        ):
            while True:
                for payload in (await stream.read()).messages:
                    if payload[0] == RELATION_TAG:
                        relation = decode(payload)
                        assert isinstance(relation, Relation)
                        await teach(assembler, relation, control, Publications())
                    transaction = assembler.feed(payload)
                    if transaction is None:
                        continue
                    if any(message.content == marker for message in transaction.messages):
                        return found
                    if transaction.rows:
                        found.append(transaction)

    return asyncio.run(run())


def capture(
    dsn: str, setup: CaptureSetup, work: Callable[[psycopg.Connection], None], *, keys: tuple[str, ...] = ()
) -> list[Transaction]:
    """Install, let ``work`` write on an autocommit connection, and decode what it wrote."""
    sink, _ = install(dsn, setup)
    with psycopg.connect(dsn, autocommit=True) as connection:
        work(connection)
    return drain(dsn, setup, sink, keys=keys)


def changes_of(transactions: Iterable[Transaction]) -> list[Change]:
    return [change for transaction in transactions for change in transaction.changes]


def parsed(raw: bytes | None) -> dict[str, object] | None:
    return None if raw is None else json.loads(raw)
