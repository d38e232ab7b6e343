"""The door to PostgreSQL: one small object that everything else speaks through, and driver errors in our own words.

A ``Database`` is one connection in autocommit mode. Rows come back as values of a type that the caller names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import conninfo, errors, sql
from psycopg.rows import kwargs_row, scalar_row

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused

Row = TypeVar("Row")
Query = LiteralString | bytes | sql.SQL | sql.Composed


class Database:
    """One autocommit connection. ``rows(Type, query, **params)`` fills ``Type`` by column name."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    async def rows(self, row: Callable[..., Row], query: Query, **params: object) -> list[Row]:
        """All rows, each as ``row(**columns)``: a class, or a function that makes the value."""
        with translated(self.where):
            async with self.connection.cursor(row_factory=kwargs_row(row)) as cursor:
                await cursor.execute(query, params or None)
                return await cursor.fetchall()

    async def maybe(self, row: Callable[..., Row], query: Query, **params: object) -> Row | None:
        """The first row, or None."""
        with translated(self.where):
            async with self.connection.cursor(row_factory=kwargs_row(row)) as cursor:
                await cursor.execute(query, params or None)
                return await cursor.fetchone()

    async def one(self, row: Callable[..., Row], query: Query, **params: object) -> Row:
        """The first row; its absence is a defect of ours."""
        found = await self.maybe(row, query, **params)
        if found is None:
            raise AfterwriteError(f"a query that always answers gave no row on {self.where}")
        return found

    async def values(self, query: Query, **params: object) -> list[Any]:
        """The first column of all rows."""
        with translated(self.where):
            async with self.connection.cursor(row_factory=scalar_row) as cursor:
                await cursor.execute(query, params or None)
                return await cursor.fetchall()

    async def value(self, query: Query, **params: object) -> Any:
        """The first column of the first row, or None."""
        with translated(self.where):
            async with self.connection.cursor(row_factory=scalar_row) as cursor:
                await cursor.execute(query, params or None)
                return await cursor.fetchone()

    async def run(self, query: Query, **params: object) -> int:
        """Execute, and say how many rows it touched (-1 where the server does not say)."""
        with translated(self.where):
            cursor = await self.connection.execute(query, params or None)
            return cursor.rowcount

    async def script(self, text: str) -> None:
        """Run a whole script without parameters, as one implicit transaction."""
        with translated(self.where):
            await self.connection.execute(text.encode())

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """A transaction, or a savepoint inside one; an exception rolls it back."""
        with translated(self.where):
            async with self.connection.transaction():
                yield

    async def close(self) -> None:
        await self.connection.close()

    @property
    def where(self) -> str:
        """``database@host`` for messages; never the password."""
        info = self.connection.info
        try:
            return f"{info.dbname}@{info.host or 'local'}:{info.port}"
        except psycopg.OperationalError:
            return "a closed connection"


@asynccontextmanager
async def connect(
    dsn: str | None, *, application_name: str = "afterwrite", options: Mapping[str, str] | None = None
) -> AsyncGenerator[Database]:
    """Open a connection and close it at the end.

    ``dsn`` is a URL, key=value words, ``service=name``, or None for PG* variables. ``options`` are server settings of
    the session. Raises DatabaseError with a remedy when the server cannot be reached or refuses us.
    """
    words = parse_dsn(dsn)
    words["application_name"] = application_name
    words.setdefault("connect_timeout", "10")
    if options:
        settings = " ".join(f"-c {name}={_escape_option(value)}" for name, value in options.items())
        words["options"] = f"{words.get('options', '')} {settings}".strip()
    with translated(describe_dsn(dsn)):
        connection = await psycopg.AsyncConnection.connect(conninfo.make_conninfo("", **words), autocommit=True)
    database = Database(connection)
    try:
        yield database
    finally:
        await database.close()


def parse_dsn(dsn: str | None) -> dict[str, Any]:
    """The words of a DSN; raises DatabaseError in a sentence when it is not one."""
    try:
        return conninfo.conninfo_to_dict(dsn or "")
    except psycopg.ProgrammingError as error:
        raise DatabaseError(
            f"the DSN cannot be read: {str(error).strip()}",
            remedy="give it as postgresql://user@host:5432/dbname or as host=… dbname=… words",
        ) from error


def describe_dsn(dsn: str | None) -> str:
    """``database@host:port`` of a DSN, without user secrets, for messages."""
    words = parse_dsn(dsn)
    defaults = {row.keyword.decode(): row.val.decode() for row in psycopg.pq.Conninfo.get_defaults() if row.val}
    words = defaults | words
    service = f" (service {words['service']})" if words.get("service") else ""
    return f"{words.get('dbname') or words.get('user', '?')}@{words.get('host', 'local')}:{words.get('port', '5432')}{service}"


def quoted(*names: str) -> str:
    """``schema.table`` quoted as the server would, for messages and for keys."""
    return ".".join(_quote(name) for name in names)


def _quote(name: str) -> str:
    plain = name.isascii() and name.isidentifier() and name == name.lower() and name not in _RESERVED
    return name if plain else '"' + name.replace('"', '""') + '"'


def _escape_option(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


class translated:  # noqa: N801 - reads as a word: `with translated(where):`
    """Turn the driver's errors inside the block into ours, ``from`` the original."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg.Error):
            raise translate(error, self.where) from error


def translate(error: psycopg.Error, where: str) -> AfterwriteError:
    """Our words for a driver's error: what was found, where, and what mends it."""
    said = (error.diag.message_primary or str(error)).strip().rstrip(".")
    said = said.splitlines()[0] if said else type(error).__name__
    state = error.sqlstate
    hint = error.diag.message_hint
    match error:
        case errors.InvalidCatalogName():
            return DatabaseError(
                f"there is no such database on {where}: {said}",
                remedy="check the name in the DSN; `psql -l` lists the databases",
                sqlstate=state,
            )
        case errors.InvalidPassword() | errors.InvalidAuthorizationSpecification():
            return DatabaseError(
                f"{where} refused the login: {said}", remedy="check user and password in the DSN", sqlstate=state
            )
        case errors.InsufficientPrivilege():
            return Refused(
                f"the role may not do this on {where}: {said}",
                remedy=hint
                or "connect as the owner, or run `afterwrite doctor`, which prints the GRANTs that are missing",
            )
        case errors.LockNotAvailable():
            return LockTimeout(
                f"a lock was not to be had in time on {where}: {said}",
                remedy="try again when the long transaction has ended",
                sqlstate=state,
            )
        case errors.ReadOnlySqlTransaction():
            return Refused(
                f"{where} is read-only: {said}",
                remedy="connect to the primary, not to a standby or a read-only session",
            )
        case errors.InvalidSchemaName() | errors.UndefinedTable() if "afterwrite" in said:
            return DatabaseError(
                f"afterwrite is not installed in {where}: {said}",
                remedy="run `afterwrite install --apply`",
                sqlstate=state,
            )
        case errors.TooManyConnections():
            return ConnectionLost(
                f"{where} has no connection left: {said}",
                remedy="raise max_connections or close idle sessions",
                sqlstate=state,
            )
        case (
            errors.AdminShutdown()
            | errors.CrashShutdown()
            | errors.CannotConnectNow()
            | errors.IdleInTransactionSessionTimeout()
        ):
            return ConnectionLost(
                f"{where} ended the connection: {said}", remedy="try again when it is back", sqlstate=state
            )
        case psycopg.OperationalError() if state is None or state.startswith("08"):
            if "password" in said or "authentication" in said or "role" in said:
                return DatabaseError(f"{where} refused the login: {said}", remedy="check user and password in the DSN")
            if "does not exist" in said:
                return DatabaseError(
                    f"{where} refused the connection: {said}", remedy="check the database name and the user in the DSN"
                )
            return ConnectionLost(
                f"{where} cannot be reached: {said}",
                remedy="check host and port, and that the server runs; --dsn, DATABASE_URL or PG* say where to look",
                sqlstate=state,
            )
        case _:
            return DatabaseError(f"{where} said: {said}", remedy=hint, sqlstate=state)


class LockTimeout(DatabaseError):
    """A lock was not granted within lock_timeout (55P03); the transaction was rolled back, nothing changed."""


def names(identifiers: Sequence[str]) -> sql.Composed:
    """A comma list of quoted identifiers."""
    return sql.SQL(", ").join(sql.Identifier(name) for name in identifiers)


# The words that pg_get_keywords() calls reserved or reserved (can be function or type), PostgreSQL 18.
_RESERVED = frozenset(
    """all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
    from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
    localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
    returning right select session_user similar some symmetric system_user table tablesample then to trailing true union
    unique user using variadic verbose when where window with""".split()
)
