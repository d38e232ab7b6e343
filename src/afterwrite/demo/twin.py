"""The twin: the same application in a second database, where every trigger stays on and the same work is done again.

::

    application ─▶ legacy ─▶ its logs, written by triggers, then by deferred bodies ─┐
        │ transcript                                                                 ├─▶ compare_logs
        └───────▶ twin  ─▶ its logs, written by triggers all the time ───────────────┘

What decides itself in a database is decided once: ids and times that the first gave to new rows are given to the
second. Transactions are done one after the other, in an order that every row lock agrees with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from afterwrite.demo.expectations import key_columns
from afterwrite.demo.schema import ROLE
from afterwrite.demo.transcript import Changed, Deed, Made, Missed, Played, Removed, read_transcript
from afterwrite.postgres import statement
from afterwrite.prove.twin import LogQuery

_AT_ONCE = 200
LOGS = (
    LogQuery(
        name="public.audit_logs",
        query=statement("twin.read_audit_logs"),
        own=("id", "created_at", "updated_at in the images", "a notification's number and time"),
    ),
    LogQuery(
        name="public.activity_log",
        query=statement("twin.read_activity_log"),
        own=("id", "created_at", "a notification's number"),
    ),
)


def read_given(dsn: str) -> dict[str, list[str]]:
    """By table, the columns that the database fills where the application says nothing."""
    given: dict[str, list[str]] = {}
    with psycopg.connect(dsn) as connection:
        for table, column in connection.execute(statement("twin.read_given")):
            given.setdefault(table, []).append(column)
    return given


def play(dsn: str, transcript: Path) -> int:
    """Do again what a transcript says, as the application's role; how many transactions that were."""
    count = 0
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(statement("twin.set_notification_numbers"))
    with psycopg.connect(make_conninfo(dsn, user=ROLE), autocommit=True, prepare_threshold=2) as connection:
        played = read_transcript(transcript)
        while some := list(islice(played, _AT_ONCE)):
            # One round trip for many statements; what fails ends it all.
            with connection.pipeline():
                for each in some:
                    _play(connection, each)
            count += len(some)
    return count


def _play(connection: psycopg.Connection[Any], played: Played) -> None:
    connection.execute(b"begin")
    connection.execute(statement("application.open_request"), {"claims": played.claims})
    for deed in played.deeds:
        _do(connection, deed)
    connection.execute(b"commit")


def _do(connection: psycopg.Connection[Any], deed: Deed) -> None:
    match deed:
        case Made(table, columns, rows):
            connection.execute(_insert(table, columns), {"rows": _json(rows)})
        case Changed(table, row, values):
            connection.execute(_update(table, tuple(values)), {"row": _json(row), "values": _json(values)})
        case Removed(table, row):
            connection.execute(_delete(table), {"row": _json(row)})
        case Missed(name, params):
            connection.execute(_missed(name), params)


def _missed(name: str) -> bytes:
    if name == "bump":
        return statement("application.bump_missing_document")
    return statement("application.delete_missing_subscription")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _compose(template: str, table: str, columns: Sequence[str] = ()) -> bytes:
    names = [sql.Identifier(column) for column in columns]
    same = sql.SQL(" and ").join(
        sql.SQL("t.{} = k.{}").format(sql.Identifier(column), sql.Identifier(column)) for column in key_columns(table)
    )
    return (
        sql.SQL(template)  # pyright: ignore[reportArgumentType] - our own templates, below
        .format(
            table=sql.Identifier("public", table),
            columns=sql.SQL(", ").join(names),
            sets=sql.SQL(", ").join(sql.SQL("{} = v.{}").format(name, name) for name in names),
            same=sql.SQL(_SAME_NOTIFICATION) if table == "notifications" else same,
        )
        .as_bytes()
    )


# One that a trigger wrote has another number here: it is the oldest of those that are about the same.
_SAME_NOTIFICATION = """t.id = coalesce(
  (select o.id from public.notifications o where o.id = k.id),
  (select o.id from public.notifications o
    where o.user_id = k.user_id and o.kind = k.kind and o.reference_id = k.reference_id
      and (o.read_at is null) = (k.read_at is null) and o.id >= 1000000000000
    order by o.id limit 1))"""


@cache
def _insert(table: str, columns: tuple[str, ...]) -> bytes:
    return _compose(
        "insert into {table} ({columns}) overriding system value"
        " select {columns} from jsonb_populate_recordset(null::{table}, %(rows)s::jsonb)",
        table,
        columns,
    )


@cache
def _update(table: str, columns: tuple[str, ...]) -> bytes:
    return _compose(
        "update {table} t set {sets} from jsonb_populate_record(null::{table}, %(values)s::jsonb) v,"
        " jsonb_populate_record(null::{table}, %(row)s::jsonb) k where {same}",
        table,
        columns,
    )


@cache
def _delete(table: str) -> bytes:
    return _compose(
        "delete from {table} t using jsonb_populate_record(null::{table}, %(row)s::jsonb) k where {same}", table
    )
