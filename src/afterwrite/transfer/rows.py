"""Rows of a legacy log, read in its order a chunk at a time, and the activities that they become.

::

    log ──SELECT of the mapping's expressions, beyond the last key──▶ LegacyRow ──to_activity──▶ Activity

The server computes the expressions; what a row becomes is decided here, by the row and the mapping alone: the same row
gives the same activity, with the same id, whenever and by whomever it is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, cast

import msgspec
from psycopg import sql

from afterwrite.errors import DatabaseError, UsageError
from afterwrite.jsonb import read_elements, read_members
from afterwrite.postgres import Database, identifier, quoted
from afterwrite.record import Activity, Kind, Level, Operation, Outcome
from afterwrite.transfer.infer import OPERATIONS
from afterwrite.transfer.mapping import JSONS, NUMBERS, TEXTS, LogMapping

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OUTCOMES = {
    **dict.fromkeys(("success", "ok", "succeeded", "true", "t", "1", "yes", "passed"), Outcome.SUCCESS),
    **dict.fromkeys(("failure", "failed", "error", "false", "f", "0", "no", "denied", "rejected"), Outcome.FAILURE),
}
_LEVELS = {
    **{level.value: level for level in Level},
    "warn": Level.WARNING,
    "err": Level.ERROR,
    "fatal": Level.CRITICAL,
}
_SUMMARY_COLUMNS = 4


class LogShape(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known of a log's table to read it: its name, and its columns' types by name, in order."""

    schema: str
    name: str
    types: Mapping[str, str]

    @property
    def relation(self) -> str:
        """The quoted name."""
        return quoted(self.schema, self.name)


class LegacyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a log as its mapping reads it. ``place`` are its order columns, ``key`` its key as a JSON object.

    ``micros`` is its time since 1970 in UTC, None where it has none that a calendar knows; ``rest`` are the columns
    that no field has word for word, as JSON; ``xid`` is of the transaction that wrote it.
    """

    place: tuple[str, ...]
    key: str
    micros: int | None
    xid: int
    rest: str
    texts: Mapping[str, str | None]
    numbers: Mapping[str, float | None]
    jsons: Mapping[str, str | None]

    @property
    def occurred_at(self) -> datetime | None:
        return None if self.micros is None else _EPOCH + timedelta(microseconds=self.micros)

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.rest) + sum(len(text) for text in self.jsons.values() if text)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a log is: the name of its source in the store, its database, and its quoted table."""

    source: str
    database: str
    relation: str

    @property
    def stored_as(self) -> str:
        """The source of what is imported: not that of capture, whose batches are read in the order of the WAL."""
        return f"{self.source}.legacy"


# --- reading ----------------------------------------------------------------------------------------------------------


async def read_time_type(db: Database, shape: LogShape, mapping: LogMapping) -> str:
    """The type that the mapping's time has; raises UsageError for an expression that the server does not take.

    Every expression is planned over the table, and none is computed from a row.
    """
    unknown = [name for name in (*mapping.key, *mapping.order, *mapping.elsewhere) if name not in shape.types]
    if unknown:
        raise UsageError(
            f"the mapping of {shape.relation} names {unknown[0]}, which is no column of it",
            remedy=f"its columns are {', '.join(shape.types)}",
        )
    asked = {"time": mapping.time}
    asked |= {field: f"({text})::{_type_of(field)}" for field, text in mapping.activity.items()}
    if mapping.where:
        asked["where"] = f"({mapping.where}) is true"
    found: dict[str, Any] = {}
    for field, text in asked.items():
        query = sql.SQL("select pg_catalog.pg_typeof((select {} from {} as legacy limit 0))::text").format(
            _raw(text), identifier(shape.schema, shape.name)
        )
        try:
            found[field] = await db.value(query)
        except DatabaseError as error:
            raise UsageError(
                f"the server refuses the mapping's {field} of {shape.relation} ({text}): {_said(error)}",
                remedy="mend it in the mapping file; functions outside pg_catalog need their schema",
            ) from error
    return str(found["time"])


def time_expression(mapping: LogMapping, kind: str, shape: LogShape) -> sql.Composed:
    """The mapping's time as timestamptz; raises UsageError for what is none."""
    time = _raw(f"({mapping.time})")
    if kind == "timestamp with time zone":
        return sql.Composed([time])
    if kind not in ("timestamp without time zone", "date"):
        raise UsageError(
            f"the mapping's time of {shape.relation} gives {kind}",
            remedy="give it as a timestamp: to_timestamp(seconds), or (text)::timestamptz",
        )
    zone = sql.Literal(mapping.time_zone or "UTC")
    return sql.SQL("({}::timestamp at time zone {})").format(time, zone)


class Reading:
    """One log, ready to be read with its mapping. ``kind`` is what ``read_time_type`` says."""

    def __init__(self, shape: LogShape, mapping: LogMapping, kind: str) -> None:
        self.shape, self.mapping = shape, mapping
        self._texts = tuple(field for field in TEXTS if field in mapping.activity)
        self._numbers = tuple(field for field in NUMBERS if field in mapping.activity)
        self._jsons = tuple(field for field in JSONS if field in mapping.activity)
        self._order = mapping.reading_order
        self._time = time_expression(mapping, kind, shape)
        self._query = self._build()

    def _build(self) -> sql.Composed:
        activity = self.mapping.activity
        hidden = [name for name in self.shape.types if name in {*self.mapping.elsewhere, *self.mapping.key}]
        key = sql.SQL(", ").join(part for name in self.mapping.key for part in (sql.Literal(name), _column(name)))
        columns: list[sql.Composable] = [
            *(sql.SQL("{}::text").format(_column(name)) for name in self._order),
            sql.SQL("pg_catalog.jsonb_build_object({})::text").format(key),
            # What no calendar of ours knows (infinity, years before 2 and after 9998) is no time.
            sql.SQL(
                "case when {time} > '0002-01-01' and {time} < '9999-01-01'"
                " then (extract(epoch from {time}) * 1000000)::bigint end"
            ).format(time=self._time),
            sql.SQL("legacy.xmin::text::bigint"),
            sql.SQL("(pg_catalog.to_jsonb(legacy.*) - {}::text[])::text").format(sql.Literal(hidden)),
            *(_raw(f"({activity[field]})::{_type_of(field)}") for field in self._texts),
            *(_raw(f"({activity[field]})::{_type_of(field)}") for field in self._numbers),
            *(_raw(f"({activity[field]})::jsonb::text") for field in self._jsons),
        ]
        named = [sql.SQL("{} as {}").format(each, sql.Identifier(f"c{n}")) for n, each in enumerate(columns)]
        return sql.SQL("select {} from {} as legacy").format(
            sql.SQL(", ").join(named), identifier(self.shape.schema, self.shape.name)
        )

    async def read(
        self,
        db: Database,
        *,
        after: Sequence[str] | None = None,
        through: Sequence[str] | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> list[LegacyRow]:
        """The next rows beyond ``after``, at most to ``through``, in the log's order (or the last ones, backwards)."""
        conditions: list[sql.Composable] = []
        if self.mapping.where:
            conditions.append(_raw(f"({self.mapping.where}) is true"))
        row = sql.SQL("({})").format(sql.SQL(", ").join(map(_column, self._order)))
        for sign, place in ((">", after), ("<=", through)):
            if place is not None:
                values = [
                    sql.SQL("{}::{}").format(sql.Literal(value), _raw(self.shape.types[name]))
                    for name, value in zip(self._order, place, strict=True)
                ]
                conditions.append(
                    sql.SQL("{} {} ({})").format(row, sql.SQL(">" if sign == ">" else "<="), sql.SQL(", ").join(values))
                )
        way = sql.SQL(" desc" if backwards else "")
        query = sql.SQL("{} {} order by {} {}").format(
            self._query,
            sql.SQL("where {}").format(sql.SQL(" and ").join(conditions)) if conditions else sql.SQL(""),
            sql.SQL(", ").join(sql.SQL("{}{}").format(_column(name), way) for name in self._order),
            sql.SQL("limit {}").format(sql.Literal(limit)) if limit is not None else sql.SQL(""),
        )
        return await db.rows(self._row, query)

    def _row(self, **columns: Any) -> LegacyRow:
        values = tuple(columns.values())
        width = len(self._order)
        key, micros, xid, rest = values[width : width + 4]
        at = width + 4
        texts = values[at : at + len(self._texts)]
        at += len(self._texts)
        numbers = values[at : at + len(self._numbers)]
        return LegacyRow(
            place=values[:width],
            key=key,
            micros=micros,
            xid=xid,
            rest=rest,
            texts=dict(zip(self._texts, texts, strict=True)),
            numbers=dict(zip(self._numbers, numbers, strict=True)),
            jsons=dict(zip(self._jsons, values[at + len(self._numbers) :], strict=True)),
        )


def _type_of(field: str) -> str:
    if field in NUMBERS:
        return "double precision"
    return "jsonb" if field in JSONS else "text"


def _column(name: str) -> sql.Composed:
    return sql.SQL("legacy.{}").format(sql.Identifier(name))


def _raw(text: str) -> sql.SQL:
    # The operator's own words, each read as one expression before; a percent sign is no placeholder: none is given.
    return sql.SQL(text)  # pyright: ignore[reportArgumentType]


def _said(error: DatabaseError) -> str:
    return str(error).partition(" said: ")[2] or str(error)


# --- what a row becomes -----------------------------------------------------------------------------------------------


def legacy_id(origin: Origin, key: str, micros: int) -> str:
    """The id of an imported row: a UUIDv8 (RFC 9562) made of its time and a hash of database, table and key.

    ::

        48 bits: milliseconds | version 8 | 10: microseconds, 2: hash | 2: variant, 62: hash
    """
    words = "\0".join((origin.source, origin.database, origin.relation, key))
    digest = int.from_bytes(hashlib.blake2b(words.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
    milliseconds, rest = divmod(micros, 1000)
    number = (milliseconds & 0xFFFFFFFFFFFF) << 80 | 8 << 76 | rest << 66 | (digest >> 62) << 64
    number |= 0b10 << 62 | digest & 0x3FFFFFFFFFFFFFFF
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Converter:
    """Makes activities of a log's rows."""

    def __init__(self, origin: Origin, mapping: LogMapping) -> None:
        self._origin, self._mapping = origin, mapping
        place = msgspec.json.encode({"database": origin.database, "table": origin.relation})[1:-1]
        self._head = b'"legacy":{' + place + b',"key":'
        self._log = _names(origin.relation)[-1]

    def to_activity(self, row: LegacyRow) -> Activity | None:
        """The activity that a row becomes; None for a row without a time."""
        occurred_at = row.occurred_at
        if occurred_at is None or row.micros is None:
            return None
        texts = row.texts
        word = texts.get("operation")
        operation = OPERATIONS.get(word.lower()) if word else None
        relation = texts.get("relation")
        if relation is not None:
            relation = self._mapping.roots.get(relation, relation)
        before, after = row.jsons.get("before"), row.jsons.get("after")
        told = row.jsons.get("diff")
        if before is None and after is None and told is not None:
            before, after = _from_diff(told)
        olds, news = _object(before), _object(after)
        changed: tuple[str, ...] | None = None
        if olds is not None and news is not None and operation in (Operation.UPDATE, None):
            changed = tuple(name for name in {**news, **olds} if news.get(name) != olds.get(name))
        entity_type = texts.get("entity_type")
        if entity_type is None and relation is not None:
            entity_type = _short(relation)
        entity_id = texts.get("entity_id")
        if entity_id is None and relation is not None:
            entity_id = _key(self._mapping.keys.get(relation, ()), news or olds)
        action = texts.get("action")
        if action is None:
            verb = operation.value if operation else (word or "row").lower()
            subject = _names(relation)[-1] if relation else entity_type or self._log
            action = f"{subject}.{verb}"
        return Activity(
            id=legacy_id(self._origin, row.key, row.micros),
            occurred_at=occurred_at,
            source=self._origin.stored_as,
            kind=Kind.EVENT,
            category=texts.get("category") or "data",
            action=action,
            outcome=_OUTCOMES.get((texts.get("outcome") or "").lower(), Outcome.SUCCESS),
            severity=_LEVELS.get((texts.get("severity") or "").lower(), Level.INFO),
            entity_type=entity_type,
            entity_id=entity_id,
            actor_id=texts.get("actor_id"),
            actor_type=texts.get("actor_type"),
            tenant_id=texts.get("tenant_id"),
            session_id=texts.get("session_id"),
            request_id=texts.get("request_id"),
            trace_id=texts.get("trace_id"),
            ip=texts.get("ip"),
            user_agent=texts.get("user_agent"),
            duration_ms=row.numbers.get("duration_ms"),
            summary=texts["summary"]
            if "summary" in texts
            else _summary(action, operation, entity_type, entity_id, changed),
            relation=relation,
            operation=operation,
            changed=changed,
            before=_json(before),
            after=_json(after),
            metadata=self._metadata(row),
        )

    def _metadata(self, row: LegacyRow) -> msgspec.Raw:
        rest = b"" if row.rest == "{}" else b',"row":' + row.rest.encode()
        legacy = self._head + row.key.encode() + rest + b"}"
        own = row.jsons.get("metadata")
        if own is None:
            return msgspec.Raw(b"{" + legacy + b"}")
        words = _object(own)
        if words is None or "legacy" in words:
            return msgspec.Raw(b'{"value":' + own.encode() + b"," + legacy + b"}")
        return msgspec.Raw(b"{" + own.encode()[1:-1] + (b"," if words else b"") + legacy + b"}")


def _json(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())


def _object(text: str | None) -> dict[str, msgspec.Raw] | None:
    """The members of a JSON object, as they stand; None for anything else."""
    if text is None or not text.startswith("{"):
        return None
    return read_members(text.encode())


def _key(columns: Sequence[str], image: Mapping[str, msgspec.Raw] | None) -> str | None:
    """The row's key as capture writes it; None where the image lacks a part of it."""
    if not columns or image is None:
        return None
    parts = [_plain(image.get(name)) for name in columns]
    if any(part is None for part in parts):
        return None
    told = cast("list[str]", parts)
    # Two keys never look the same: ('a,b', 'c') is a\,b,c and ('a', 'b,c') is a,b\,c.
    return told[0] if len(told) == 1 else ",".join(part.replace("\\", "\\\\").replace(",", "\\,") for part in told)


def _plain(raw: msgspec.Raw | None) -> str | None:
    if raw is None or bytes(raw) == b"null":
        return None
    return msgspec.json.decode(raw, type=str) if bytes(raw)[:1] == b'"' else bytes(raw).decode()


def _from_diff(text: str) -> tuple[str | None, str | None]:
    """The old and new values of ``{column: [old, new]}``, ``{column: {"old": …, "new": …}}`` and their kind."""
    members = _object(text)
    if not members:
        return None, None
    before: dict[str, msgspec.Raw] = {}
    after: dict[str, msgspec.Raw] = {}
    for name, raw in members.items():
        if (pair := read_elements(bytes(raw))) is not None and len(pair) == 2:
            before[name], after[name] = pair
            continue
        inner = _object(bytes(raw).decode()) or {}
        words = next(((old, new) for old, new in _PAIRS if inner and set(inner) <= {old, new}), None)
        if words is None:
            return None, None
        before[name], after[name] = (inner.get(word, msgspec.Raw(b"null")) for word in words)
    return msgspec.json.encode(before).decode(), msgspec.json.encode(after).decode()


_PAIRS = (("old", "new"), ("from", "to"), ("before", "after"), ("was", "is"))


def _summary(
    action: str,
    operation: Operation | None,
    entity_type: str | None,
    entity_id: str | None,
    changed: Sequence[str] | None,
) -> str:
    words = f"{operation.value} {entity_type}" if operation and entity_type else action
    text = " ".join(filter(None, [words, entity_id]))
    if not changed:
        return text
    more = len(changed) - _SUMMARY_COLUMNS
    return f"{text}: {', '.join(changed[:_SUMMARY_COLUMNS])}" + (f" and {more} more" if more > 0 else "")


def _short(relation: str) -> str:
    """The short name that people search for: the table, with its schema outside public."""
    names = _names(relation)
    return names[-1] if names[0] == "public" else ".".join(names)


_NAME = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^".]+)')


@lru_cache(maxsize=4_096)
def _names(relation: str) -> tuple[str, ...]:
    """A quoted name's parts, without their quotes."""
    found = [
        match["plain"] if match["plain"] is not None else match["quoted"].replace('""', '"')
        for match in _NAME.finditer(relation)
    ]
    return tuple(found) or (relation,)
