"""An activity on its way into the lake and out of it, and the digest that both sides make of it by themselves.

::

    PostgreSQL ── CSV, and sha256 of each row by the server ──▶ Arrow ──▶ Parquet
                                                                            │
    the same sum? ◀── sha256 of each row by us ◀── Arrow ◀──────────────────┘

A row's text is each of its fields with its length before it. The digest of many is their sum modulo 2^256 with their
count: the same in whatever order they lie, before and after files are put together. It finds what was lost, doubled or
changed on the way; that nobody forged the rows is what the seal of the feed says while they are in the store.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, LiteralString

import msgspec
from psycopg import sql

from afterwrite.lake.table import COLUMNS, need
from afterwrite.store.reader import StoredActivity, stored_activity

_MODULUS = 1 << 256
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# No name of a column has it.
_BETWEEN = "\x1f"

# Each field of a row as text, as the digest has it. The position of its batch is not among them: the store forgets it.
_TEXTS: dict[str, LiteralString] = {
    "batch_id": "a.batch_id::text",
    "id": "a.id::text",
    "occurred_at": "(extract(epoch from a.occurred_at) * 1000000)::bigint::text",
    "source": "a.source",
    "kind": "a.kind",
    "category": "a.category",
    "action": "a.action",
    "outcome": "a.outcome",
    "severity": "a.severity",
    "entity_type": "a.entity_type",
    "entity_id": "a.entity_id",
    "actor_id": "a.actor_id",
    "actor_type": "a.actor_type",
    "tenant_id": "a.tenant_id",
    "session_id": "a.session_id",
    "request_id": "a.request_id",
    "trace_id": "a.trace_id",
    "ip": "pg_catalog.abbrev(a.ip)",
    "user_agent": "a.user_agent",
    "duration_ms": "pg_catalog.encode(pg_catalog.float8send(a.duration_ms), 'hex')",
    "summary": "a.summary",
    "relation": "a.relation",
    "operation": "a.operation",
    "changed": "pg_catalog.array_to_string(a.changed, E'\\x1f')",
    "before": "a.before::text",
    "after": "a.after::text",
    "metadata": "a.metadata::text",
    "caused_by": "a.caused_by::text",
    "xid": "a.xid::text",
    "commit_lsn": "a.commit_lsn::text",
    "ordinal": "a.ordinal::text",
}
# What an activity is wherever it was stored: one that is sent again comes in another batch.
_OWN = tuple(name for name in _TEXTS if name != "batch_id")


def _digest(names: Iterable[str]) -> LiteralString:
    """The digest of these fields of a row ``a`` of the store, in hex, made by the server."""
    return (
        "pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to("
        + " || ".join([f"coalesce(octet_length({_TEXTS[name]}) || ':' || {_TEXTS[name]}, '~')" for name in names])
        + ", 'UTF8')), 'hex')"
    )


OWN_DIGEST = _digest(_OWN)
"""The digest of what an activity itself is, without the batch that brought it."""
_READ: LiteralString = ", ".join(
    [
        "coalesce(b.position, 0)",
        *["pg_catalog.array_to_json(a.changed)::text" if name == "changed" else _TEXTS[name] for name in _TEXTS],
        _digest(_TEXTS),
    ]
)
_COPY: LiteralString = (
    "copy (select {read} from {table} a left join afterwrite.batch b on b.id = a.batch_id{besides}"
    ' order by a.tenant_id collate "C" nulls first, a.entity_type collate "C", a.entity_id collate "C",'
    " a.occurred_at, a.id) to stdout (format csv)"
)


def copy_of(table: sql.Composable, besides: LiteralString) -> sql.Composed:
    """Read the rows of a partition in the order of the files, with their digests; ``besides`` leaves some out."""
    return sql.SQL(_COPY).format(read=sql.SQL(_READ), table=table, besides=sql.SQL(besides))


_NAMES = ("position", *_TEXTS, "digest")
assert set(_NAMES[:-1]) == set(COLUMNS)


class Sum(msgspec.Struct):
    """How many rows, and what their digests add up to."""

    rows: int = 0
    total: int = 0

    def add(self, digests: Iterable[bytes]) -> None:
        """Count these as well."""
        for digest in digests:
            self.rows += 1
            self.total += int.from_bytes(digest, "big")
        self.total %= _MODULUS

    @property
    def digest(self) -> bytes:
        """The sum, as the ledger keeps it."""
        return self.total.to_bytes(32, "big")


class Reader:
    """Makes Arrow batches of what the server copies out, and adds up the server's digests on the way."""

    def __init__(self, schema: Any, day: date, part: int) -> None:
        from pyarrow import csv

        _, self._pa = need()
        self._csv: Any = csv
        self._schema = schema
        self._day, self._part = day, part
        self.sum = Sum()
        pa = self._pa
        types = dict.fromkeys(_NAMES, pa.string()) | {
            "position": pa.int64(),
            "batch_id": pa.int64(),
            "occurred_at": pa.int64(),
            "xid": pa.int64(),
            "ordinal": pa.int32(),
        }
        self._convert = self._csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        )

    def batches(self, chunk: bytes) -> Iterator[Any]:
        """The rows of whole lines."""
        pa = self._pa
        table = self._csv.read_csv(
            io.BytesIO(chunk),
            read_options=self._csv.ReadOptions(column_names=list(_NAMES), block_size=len(chunk) + 1, use_threads=False),
            parse_options=self._csv.ParseOptions(newlines_in_values=True),
            convert_options=self._convert,
        )
        self.sum.add(bytes.fromhex(text) for text in table["digest"].to_pylist())
        arrays: dict[str, Any] = {name: table[name] for name in COLUMNS}
        arrays["day"] = pa.repeat(pa.scalar(self._day, pa.date32()), len(table))
        arrays["part"] = pa.repeat(pa.scalar(self._part, pa.int32()), len(table))
        arrays["occurred_at"] = arrays["occurred_at"].cast(pa.timestamp("us", tz="UTC"))
        arrays["duration_ms"] = pa.array([_double(text) for text in arrays["duration_ms"].to_pylist()], pa.float64())
        arrays["changed"] = self._lists(arrays["changed"])
        made = pa.table([arrays[name] for name in self._schema.names], schema=self._schema)
        yield from made.combine_chunks().to_batches()

    def _lists(self, column: Any) -> Any:
        """Lists of names from their JSON: there are few of them, over and over."""
        pa = self._pa
        coded = column.combine_chunks().dictionary_encode()
        kind = pa.list_(pa.string())
        if not len(coded.dictionary):
            return pa.nulls(len(column), kind)
        return pa.array([msgspec.json.decode(text) for text in coded.dictionary.to_pylist()], kind).take(coded.indices)


def _double(text: str | None) -> float | None:
    return None if text is None else struct.unpack(">d", bytes.fromhex(text))[0]


def _hex(number: float | None) -> str | None:
    return None if number is None else struct.pack(">d", number).hex()


def digests(batch: Any, *, own: bool = False) -> list[bytes]:
    """The digest of each row of an Arrow batch, as the server makes it; ``own``: without the batch that brought it."""
    from pyarrow import compute

    _, pa = need()
    pc: Any = compute
    fields: list[Any] = []
    for name in _OWN if own else _TEXTS:
        column = batch.column(batch.schema.get_field_index(name))
        match name:
            case "occurred_at":
                text = column.cast(pa.int64()).cast(pa.string())
            case "duration_ms":
                doubles: list[float | None] = column.to_pylist()
                text = pa.array([_hex(each) for each in doubles], pa.string())
            case "changed":
                text = pc.binary_join(column, _BETWEEN)
            case _:
                text = column if pa.types.is_string(column.type) else column.cast(pa.string())
        text = text.cast(pa.large_string())
        length = pc.binary_length(text).cast(pa.large_string())
        fields.append(pc.fill_null(pc.binary_join_element_wise(length, text, pa.scalar(":", pa.large_string())), "~"))
    joined: list[str] = pc.binary_join_element_wise(*fields, pa.scalar("", pa.large_string())).to_pylist()
    return [hashlib.sha256(text.encode()).digest() for text in joined]


def add_up(batches: Iterable[Any]) -> Sum:
    """What the rows of these batches add up to."""
    found = Sum()
    for batch in batches:
        found.add(digests(batch))
    return found


DIGESTED = tuple(_TEXTS)
"""The columns that a digest is made of."""


def activity_of(row: Mapping[str, Any]) -> StoredActivity:
    """The activity of a row as DuckDB gives it, its moment in microseconds."""
    values = dict(row)
    values["occurred_at"] = _EPOCH + timedelta(microseconds=values["occurred_at"])
    return stored_activity(**values)


def microseconds(moment: datetime) -> int:
    """A moment as the lake's engines count it."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
