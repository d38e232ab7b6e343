"""The door to PostgreSQL: one small object that everything else speaks through, and driver errors in our own words.

A ``Database`` is one connection in autocommit mode. Rows come back as values of a type that the caller names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString, TypeVar

import msgspec
import psycopg
from psycopg import conninfo, errors, sql
from psycopg.rows import kwargs_row, scalar_row

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused
from afterwrite.postgres.pooler import shares_sessions

Row = TypeVar("Row")
Query = LiteralString | bytes | sql.SQL | sql.Composed

# What goes wrong with a connection reaches the caller as our errors; an application that wants the driver's own words
# configures logging, and until then they do not spill onto its stderr.
logging.getLogger("psycopg").addHandler(logging.NullHandler())


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """What the server said when it did not take a statement."""

    sqlstate: str
    message: str


class Database:
    """One autocommit connection. ``rows(Type, query, **params)`` fills ``Type`` by column name.

    ``where`` is ``database@host:port`` for messages; never the password.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection
        info = connection.info
        self.where = f"{info.dbname}@{info.host or 'local'}:{info.port}"

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

    async def at_once(self, row: Callable[..., Row], *queries: bytes, **params: object) -> Row | None:
        """Several statements in one message; the first row of the first of them that gives any, or None.

        Parameters are filled in on this side. What follows a statement that fails is not run.
        """
        with translated(self.where):
            async with psycopg.AsyncClientCursor(self.connection, row_factory=kwargs_row(row)) as cursor:
                await cursor.execute(b"; ".join(queries), params or None)
                while cursor.description is None:
                    if not cursor.nextset():
                        return None
                return await cursor.fetchone()

    async def wait_told(self, seconds: float) -> bool:
        """Wait until a channel that this session listens to is told of, and at most so long; says whether one was."""
        with translated(self.where):
            told = False
            async for _ in self.connection.notifies(timeout=seconds, stop_after=1):
                told = True
            return told

    async def copy_out(self, query: Query, **params: object) -> AsyncGenerator[bytes]:
        """The lines, each with its end, of a ``copy … to stdout``; parameters are filled in on this side."""
        with translated(self.where):
            async with self.connection.cursor() as cursor, cursor.copy(query, params or None) as copy:
                async for line in copy:
                    yield bytes(line)

    async def copy_in(self, query: Query, chunks: Iterable[bytes]) -> int:
        """Send these to a ``copy … from stdin``, as they are made; says how many rows it stored."""
        with translated(self.where):
            async with self.connection.cursor() as cursor:
                async with cursor.copy(query) as copy:
                    for chunk in chunks:
                        await copy.write(chunk)
                return cursor.rowcount

    async def attempt(self, text: str) -> Complaint | None:
        """Run one statement of somebody else's making; what the server says when it refuses it, or None.

        The text goes by the extended protocol, which takes exactly one statement. Raises only when the session ends.
        """
        try:
            await self.connection.execute(text.encode(), binary=True)
        except psycopg.Error as error:
            if self.connection.broken:
                raise translate(error, self.where) from error
            said = error.diag.message_primary or str(error)
            return Complaint(sqlstate=error.sqlstate or "", message=" ".join(said.split()))
        return None

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


@asynccontextmanager
async def connect(
    dsn: str | None,
    *,
    application_name: str = "afterwrite",
    options: Mapping[str, str] | None = None,
    guarded: bool = False,
) -> AsyncGenerator[Database]:
    """Open a connection and close it at the end.

    ``dsn`` is a URL, key=value words, ``service=name``, or None for PG* variables. ``options`` are server settings of
    the session. ``guarded`` looks for names in pg_catalog alone: a function in a schema that anybody may create in can
    be a better match than the server's own, and would run as us. The path of the role stays the session's reset value,
    for those who want to know it; a session that a pooler shares out is refused. Raises DatabaseError with a remedy
    when the server cannot be reached or refuses us.
    """
    words = parse_dsn(dsn)
    words["application_name"] = application_name
    words["client_encoding"] = "utf8"
    for word, value in _PATIENCE.items():
        words.setdefault(word, value)
    if options:
        settings = " ".join(f"-c {name}={_escape_option(value)}" for name, value in options.items())
        words["options"] = f"{words.get('options', '')} {settings}".strip()
    with translated(describe_dsn(dsn)):
        connection = await psycopg.AsyncConnection.connect(conninfo.make_conninfo("", **words), autocommit=True)
    database = Database(connection)
    try:
        if guarded:
            await _guard(database)
        await _make_readable(database)
        yield database
    finally:
        await database.close()


async def _guard(database: Database) -> None:
    """Set the path for the session, which must be ours: a pooler would hand it on to the application as we leave it."""
    with translated(database.where):
        shared = await shares_sessions(database.connection)
    if shared:
        raise Refused(
            f"a pooler in transaction mode stands before {database.where}: every transaction gets another session, so "
            "that settings and locks of ours would be the application's",
            remedy="name the server itself with --dsn, or the pooler's port for session mode (Supabase: 5432)",
        )
    await database.run("set search_path to pg_catalog")


# A network that has gone silent is noticed within a minute, and not after the two hours that are usual.
_PATIENCE = {"connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}


# For the server to do the same: what a machine that is gone held (rows of a COPY, a lock), others wait for.
UNTIL_GONE = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}


async def _make_readable(database: Database) -> None:
    """The driver reads dates in ISO style and intervals in PostgreSQL's own: lift another style where one is set."""
    info = database.connection.info
    if not (info.parameter_status("DateStyle") or "").startswith("ISO"):
        await database.run("set datestyle to 'ISO'")  # the order of day and month stays as it is
    if info.parameter_status("IntervalStyle") != "postgres":
        await database.run("set intervalstyle to 'postgres'")


def parse_dsn(dsn: str | None) -> dict[str, Any]:
    """The words of a DSN; raises DatabaseError in a sentence when it is not one."""
    try:
        return conninfo.conninfo_to_dict(dsn or "")
    except psycopg.ProgrammingError as error:
        # libpq quotes the part that it stumbled over, which may be the password. No cause either: it says the same.
        said = re.sub('".*"', "“…”", str(error).strip().replace('"="', "an equals sign"), flags=re.DOTALL)
        raise DatabaseError(
            f"the DSN cannot be read: {said}",
            remedy="give it as postgresql://user@host:5432/dbname or as host=… dbname=… words",
        ) from None


def describe_dsn(dsn: str | None) -> str:
    """``database@host:port`` of a DSN, without user secrets, for messages."""
    words = parse_dsn(dsn)
    defaults = {row.keyword.decode(): row.val.decode() for row in psycopg.pq.Conninfo.get_defaults() if row.val}
    words = defaults | words
    database = words.get("dbname") or words.get("user", "?")
    host = words.get("host") or words.get("hostaddr") or "local"
    service = f" (service {words['service']})" if words.get("service") else ""
    return f"{database}@{host}:{words.get('port', '5432')}{service}"


def quoted(*names: str) -> str:
    """``schema.table`` quoted as the server would, for messages and for keys."""
    return ".".join(_quote(name) for name in names)


def _quote(name: str) -> str:
    plain = _PLAIN_NAME.fullmatch(name) and name not in _KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'


_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def _escape_option(value: str) -> str:
    return re.sub(r"([\\\s])", r"\\\1", value)


class translated:  # noqa: N801 - reads as a word: `with translated(where):`
    """Turn the driver's errors inside the block into ours, ``from`` the original."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg.Error):
            raise translate(error, self.where) from error


class LockTimeout(DatabaseError):  # noqa: N818 - a sentence of its own, as the others in errors.py
    """A lock was not granted within lock_timeout (55P03); the transaction was rolled back, nothing changed."""


class ReadOnly(Refused):
    """The server takes no writes (25006): a standby, or a primary that is not promoted yet."""


def translate(error: psycopg.Error, where: str) -> AfterwriteError:
    """Our words for a driver's error: what was found, where, and what mends it."""
    said = (error.diag.message_primary or str(error)).strip()
    said = said.splitlines()[0].rstrip(".") if said else type(error).__name__
    state = error.sqlstate
    hint = error.diag.message_hint
    match error:
        case errors.InvalidCatalogName():
            return _no_database(where, said, state)
        case errors.InvalidPassword() | errors.InvalidAuthorizationSpecification():
            return _login_refused(where, said, state)
        case errors.InsufficientPrivilege():
            return _not_allowed(where, said, hint)
        case errors.LockNotAvailable():
            return LockTimeout(
                f"a lock was not to be had in time on {where}: {said}",
                remedy="try again when the long transaction has ended",
                sqlstate=state,
            )
        case errors.QueryCanceled():
            return DatabaseError(
                f"{where} stopped the statement: {said}",
                remedy="raise statement_timeout for this role (ALTER ROLE … SET statement_timeout), and try again",
                sqlstate=state,
            )
        case errors.ReadOnlySqlTransaction():
            return ReadOnly(
                f"{where} is read-only: {said}",
                remedy="connect to the primary, not to a standby or a read-only session",
            )
        case errors.DiskFull():
            return DatabaseError(
                f"{where} has no room left: {said}", remedy="free space on the server's disk", sqlstate=state
            )
        case errors.InvalidSchemaName() | errors.UndefinedTable() | errors.UndefinedFunction() if _OURS.search(said):
            return DatabaseError(
                f"afterwrite is not installed in {where}: {said}",
                remedy="run `afterwrite install --apply`",
                sqlstate=state,
            )
        case errors.TooManyConnections():
            return _full(where, said, state)
        case (
            errors.AdminShutdown()
            | errors.CrashShutdown()
            | errors.CannotConnectNow()
            | errors.IdleInTransactionSessionTimeout()
            | errors.IdleSessionTimeout()
        ):
            return ConnectionLost(
                f"{where} ended the connection: {said}", remedy="try again when it is back", sqlstate=state
            )
        case psycopg.OperationalError() if state is None or state.startswith("08"):
            return _no_connection(where, said, state)
        case _:
            return DatabaseError(f"{where} said: {said}", remedy=hint, sqlstate=state)


# A name in our schema, or the schema itself, as PostgreSQL writes it in "does not exist".
_OURS = re.compile(r"\bafterwrite\.|schema \"afterwrite\"")


def _no_connection(where: str, said: str, state: str | None) -> AfterwriteError:
    """What a failed connection attempt says. libpq gives no SQLSTATE for these (PostgreSQL 18), only the words."""
    said = re.sub(r"^connection (failed|is bad): ", "", said)
    said = re.sub(r"^connection to server (at|on socket) .*? failed: ", "", said)
    answered = said.startswith("FATAL:")
    said = re.sub(r"^FATAL:\s*", "", said)
    if answered and re.search(r'^database ".*" does not exist', said):
        return _no_database(where, said, state)
    if answered and re.search("^permission denied for database", said):
        return _not_allowed(where, said, "have its owner run GRANT CONNECT ON DATABASE … TO the role of the DSN")
    if answered and re.search("too many (clients|connections)|connection slots are reserved", said):
        return _full(where, said, state)
    if answered and re.search(
        "not (yet )?accepting connections|is (starting up|shutting down|in recovery)|^terminating connection", said
    ):
        return ConnectionLost(f"{where} takes no connections now: {said}", remedy="try again when it is back")
    if answered or re.search(r"fe_sendauth|no password supplied|authentication|\bSSL\b", said):
        return _login_refused(where, said, state)
    return ConnectionLost(
        f"{where} cannot be reached: {said}",
        remedy="check host and port, and that the server runs; --dsn, DATABASE_URL or PG* say where to look",
        sqlstate=state,
    )


def _no_database(where: str, said: str, state: str | None) -> DatabaseError:
    return DatabaseError(
        f"there is no such database on {where}: {said}",
        remedy="check the name in the DSN; `psql -l` lists the databases",
        sqlstate=state,
    )


def _login_refused(where: str, said: str, state: str | None) -> DatabaseError:
    return DatabaseError(
        f"{where} refused the login: {said}",
        remedy="check user, password and sslmode in the DSN, and pg_hba.conf on the server",
        sqlstate=state,
    )


def _not_allowed(where: str, said: str, remedy: str | None) -> Refused:
    return Refused(
        f"the role may not do this on {where}: {said}",
        remedy=remedy or "connect as the owner, or run `afterwrite doctor`, which prints the GRANTs that are missing",
    )


def _full(where: str, said: str, state: str | None) -> ConnectionLost:
    return ConnectionLost(
        f"{where} has no connection left: {said}",
        remedy="raise max_connections (or the role's CONNECTION LIMIT), or close idle sessions",
        sqlstate=state,
    )


def names(identifiers: Sequence[str]) -> sql.Composed:
    """A comma list of quoted identifiers."""
    return sql.SQL(", ").join(sql.Identifier(name) for name in identifiers)


# The words that quote_ident() quotes: all of pg_get_keywords() that are not unreserved, PostgreSQL 18. A word that an
# older server does not know is quoted all the same, which is always right.
_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
        all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case
        cast char character check coalesce collate collation column concurrently constraint create cross current_catalog
        current_date current_role current_schema current_time current_timestamp current_user dec decimal default
        deferrable desc distinct do else end except exists extract false fetch float for foreign freeze from full grant
        greatest group grouping having ilike in initially inner inout int integer intersect interval into is isnull join
        json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize
        json_table json_value lateral leading least left like limit localtime localtimestamp merge_action national
        natural nchar none normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay
        placing position precision primary real references returning right row select session_user setof similar
        smallint some substring symmetric system_user table tablesample then time timestamp to trailing treat trim true
        union unique user using values varchar variadic verbose when where window with xmlattributes xmlconcat
        xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
        """,
    )
)
