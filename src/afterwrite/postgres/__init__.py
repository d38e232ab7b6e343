"""The door to PostgreSQL: connecting, named statements, careful DDL, and a server of our own."""

from afterwrite.postgres.connect import (
    UNTIL_GONE,
    Complaint,
    Database,
    LockTimeout,
    Query,
    ReadOnly,
    connect,
    describe_dsn,
    names,
    parse_dsn,
    quoted,
    translate,
    translated,
)
from afterwrite.postgres.ddl import Blocker, LockPolicy, OnBlocked, identifier, read_blockers, with_short_locks
from afterwrite.postgres.statements import script, statement, statements

__all__ = [
    "UNTIL_GONE",
    "Blocker",
    "Complaint",
    "Database",
    "LockPolicy",
    "LockTimeout",
    "OnBlocked",
    "Query",
    "ReadOnly",
    "connect",
    "describe_dsn",
    "identifier",
    "names",
    "parse_dsn",
    "quoted",
    "read_blockers",
    "script",
    "statement",
    "statements",
    "translate",
    "translated",
    "with_short_locks",
]
