"""Loading a dump that nobody vouches for: a server of our own, a role without privileges, a statement at a time.

    pieces ─▶ Sorter ─▶ [extensions, schemas, languages] ─▶ statements, again and again until nothing more succeeds
                                                            ─▶ stand-ins for what is missing, and again ─▶ LoadedDump

Four walls stand around a dump: only definitions are run (``sorting``), each by itself in the extended protocol; its
role owns one database and has no other right; nobody, not even that role, may execute the functions that it defines;
and time, memory and disk are bounded from outside of the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import msgspec
from psycopg import sql

from afterwrite.errors import AfterwriteError, ConnectionLost, Refused, UsageError
from afterwrite.postgres import Complaint, Database, connect, identifier, statement
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.scan.dump.account import DumpReport, Tally, Unloaded, shortened
from afterwrite.scan.dump.child import Sorter, open_sorter
from afterwrite.scan.dump.pieces import Piece, cut, open_dump
from afterwrite.scan.dump.sorting import STUB_C, Deed, Form, Question, Sorted, first_word
from afterwrite.scan.dump.standins import UNQUALIFIED, Missing, Want, mentioned, surroundings, wanted

OWNER = "dump_owner"
ABSENT = "an unknown language (the dump does not hold it)"
# Extensions that only bring types, operators and functions that compute. None of them reaches a file or a network.
_SAFE_EXTENSIONS = frozenset(
    {
        *("autoinc", "bloom", "btree_gin", "btree_gist", "citext", "cube", "dict_int", "dict_xsyn", "earthdistance"),
        *("fuzzystrmatch", "hstore", "insert_username", "intagg", "intarray", "isn", "lo", "ltree", "moddatetime"),
        *("pg_stat_statements", "pg_trgm", "pgcrypto", "plpgsql", "refint", "seg", "tablefunc", "tcn"),
        *("tsm_system_rows", "tsm_system_time", "unaccent", "uuid-ossp", "vector"),
    }
)
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "shared_buffers": "128MB",
    "max_connections": "30",
    "max_wal_size": "256MB",
    "max_parallel_workers": "0",
    "jit": "off",
    "temp_file_limit": "256MB",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
    "lc_messages": "C",
    "track_functions": "all",
}
_SESSION = {"statement_timeout": "5s", "lock_timeout": "5s", "check_function_bodies": "off", "work_mem": "16MB"}
_MEMORY = 2 * 1024 * 1024 * 1024
_DISK = 4 * 1024 * 1024 * 1024
_STATEMENT_SECONDS = 10.0
_SECONDS = 120.0
_MOST_TEXT = 512 * 1024 * 1024
_MOST_STAND_INS = 2_000
_MOST_LANGUAGES = 20
_MOST_TOLD = 2_000
_LOOK_AT_DISK_EVERY = 500


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement of the dump, where it stands, and the schemas in which it looks for names."""

    line: int
    sorted: Sorted
    path: tuple[str, ...]


class LoadedDump(msgspec.Struct, frozen=True, kw_only=True):
    """A dump that stands in a database: ``dsn`` logs in as the role that owns it and has no other right.

    ``admin`` is the superuser's. ``report`` says what was not loaded, and what stands in for what; ``dark`` holds the
    texts of what was not, by ``line N, KIND``.
    """

    dsn: str
    admin: str
    report: DumpReport
    server: Server
    dark: Mapping[str, str] = {}


@asynccontextmanager
async def loaded_dump(path: str) -> AsyncGenerator[LoadedDump]:
    """A server of our own with this dump in it, for the length of the block; ``-`` reads the standard input.

    Raises UsageError for a file that is no SQL text, Refused where loading it would take too much room.
    """
    with open_dump(path) as lines:  # before the server starts: most mistakes show here
        async with open_sorter() as sorter:
            dark: dict[str, str] = {}
            statements, tally, databases = await _read(cut(lines), sorter, dark)
            odd = [each.kind for each in tally.left_out() if each.deed is not Deed.NEEDLESS]
            if not statements and odd and len(odd) == len(tally.left_out()):
                raise UsageError(
                    f"{path} holds no definition that can be read", remedy="name a dump made with pg_dump --schema-only"
                )
            with contextlib.ExitStack() as stack:
                with _bounded_memory():
                    server = stack.enter_context(embedded_server(settings=_SETTINGS))
                name = _database_name(path)
                async with connect(server.dsn(), application_name="afterwrite scan") as db:
                    await _lay(db, name)
                loader = _Loader(server, name, sorter, statements, tally)
                await loader.load(databases)
                report = loader.account(path)
                dark |= loader.texts_not_loaded()
                owner = server.dsn(name, OWNER)
                yield LoadedDump(dsn=owner, admin=server.dsn(name), report=report, server=server, dark=dark)


async def let_execute(dump: LoadedDump) -> None:
    """Let the dump's owner execute what the dump defines: for those who mean to run it, as ``--rehearse`` does."""
    async with connect(dump.admin, application_name="afterwrite scan", guarded=True) as db:
        for each in await db.values(statement("dump.functions_of_the_dump")):
            await db.script(f"grant execute on {each} to {OWNER}")


# Reading -------------------------------------------------------------------------------------------------------------


async def _read(
    pieces: Iterable[Piece], sorter: Sorter, dark: dict[str, str]
) -> tuple[list[Statement], Tally, list[str]]:
    """The statements that matter, what was left out, and the databases that the dump connects to."""
    statements: list[Statement] = []
    tally = Tally()
    databases: list[str] = []
    waiting: list[Piece] = []
    size = 0
    path: tuple[str, ...] = ("public",)

    async def settle() -> None:
        nonlocal path
        answers = await sorter.sort([Question(text=piece.text) for piece in waiting])
        for piece, answer in zip(waiting, answers, strict=True):
            match answer.deed:
                case Deed.PATH:
                    path = answer.names
                    tally.add(piece.line, answer.kind, Deed.NEEDLESS)
                case Deed.NEEDLESS | Deed.REFUSED | Deed.UNREADABLE:
                    tally.add(piece.line, answer.kind, answer.deed, answer.why)
                    if answer.deed is Deed.UNREADABLE or answer.kind == "DO":
                        dark[f"line {piece.line}, {answer.kind}"] = piece.text
                case _:
                    statements.append(Statement(line=piece.line, sorted=answer, path=path))
        waiting.clear()

    for piece in pieces:
        if piece.passed:
            tally.add(piece.line, piece.passed, _passed(piece.passed))
            if piece.passed in ("psql \\connect", "psql \\c"):
                databases.append(piece.text)
            continue
        answer = first_word(piece.text)
        if answer is not None:
            tally.add(piece.line, answer.kind, answer.deed, answer.why)
            if answer.kind == "DO":
                dark[f"line {piece.line}, {answer.kind}"] = piece.text
            continue
        size += len(piece.text)
        if size > _MOST_TEXT:
            raise Refused(
                f"the dump holds more than {_MOST_TEXT >> 20} MiB of definitions (line {piece.line})",
                remedy="dump fewer schemas at a time: pg_dump --schema-only -n SCHEMA",
            )
        waiting.append(piece)
        if len(waiting) == 1_000:
            await settle()
    await settle()
    return statements, tally, databases


_QUIET_PSQL = ("psql \\restrict", "psql \\unrestrict", "psql \\connect", "psql \\c", "psql \\encoding", "psql \\echo")


def _passed(kind: str) -> Deed:
    return Deed.NEEDLESS if kind in _QUIET_PSQL else Deed.REFUSED


def _database_name(path: str) -> str:
    name = os.path.basename(path)
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,50}", name) and name not in _TAKEN else "dump"


_TAKEN = ("postgres", "template0", "template1")


# The server ----------------------------------------------------------------------------------------------------------


@contextmanager
def _bounded_memory() -> Generator[None]:
    """Start child processes with an upper bound on their memory: the server's, where the dump is loaded."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    hard = before[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY if hard < 0 else min(_MEMORY, hard), hard))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, before)


async def _lay(db: Database, name: str) -> None:
    """The role and its database."""
    await db.run(statement("dump.make_owner"))
    await db.run(
        sql.SQL("create database {} owner {} template template0").format(sql.Identifier(name), sql.Identifier(OWNER))
    )


_FOUNDATION = (
    statement("dump.leave_bodies_unread"),
    statement("dump.let_nobody_execute"),
    statement("dump.let_nobody_execute_but_one"),
    statement("dump.make_corner"),
    statement("dump.make_handler"),
    statement("dump.make_modifiers"),
    statement("dump.make_wrapper"),
    statement("dump.make_wildcard"),
    statement("dump.make_wildcard_in"),
    statement("dump.make_wildcard_out"),
    statement("dump.fill_wildcard"),
)


class _Loader:
    """One load: ``db`` is ours, ``session`` the dump's."""

    db: Database
    session: Database

    def __init__(
        self, server: Server, name: str, sorter: Sorter, statements: Sequence[Statement], tally: Tally
    ) -> None:
        self.server = server
        self.name = name
        self.sorter = sorter
        self.statements = statements
        self.tally = tally
        self.failed: dict[int, Complaint] = {}
        self.done: Counter[str] = Counter()
        self.stand_ins: list[Want] = []
        self.bare: list[str] = []
        self.extensions: list[str] = []
        self.missing_extensions: list[tuple[str, str]] = []
        self.languages: list[str] = []
        self.sessions = contextlib.AsyncExitStack()
        self.path: tuple[str, ...] | None = None
        self.tried = 0
        self.fired_up_to = 0
        self.new_trigger_functions = False
        self.deadline = time.monotonic() + _SECONDS

    async def load(self, databases: Sequence[str]) -> None:
        self.databases = databases
        async with connect(self.server.dsn(self.name), application_name="afterwrite scan", guarded=True) as self.db:
            for each in _FOUNDATION:
                await self.db.run(each)
            self.unsteady = frozenset(await self.db.values(statement("dump.unsteady_builtins")))
            for each in await self.db.values(statement("dump.types_of_a_wildcard")):
                await self.db.script(f"create cast (afterwrite_dump.anything as {each}) with inout as implicit")
            await self._schemas()
            await self._extensions()
            await self._languages()
            async with self.sessions:
                await self._open_session()
                await self._run_all()
            await self.db.run(statement("dump.take_for_c"))
            await self._set_path()

    # What we do in the dump's place ----------------------------------------------------------------------------------

    async def _schemas(self) -> None:
        for name in dict.fromkeys(each.sorted.names[0] for each in self._of(Deed.SCHEMA)):
            if time.monotonic() > self.deadline:
                return
            await self._make_schema(name)

    async def _make_schema(self, name: str) -> bool:
        if not name or name.startswith(("pg_", "afterwrite_dump")) or name in ("public", "information_schema"):
            return name == "public"
        query = sql.SQL("create schema if not exists {} authorization {}")
        return await self._try(query.format(sql.Identifier(name), sql.Identifier(OWNER)))

    async def _extensions(self) -> None:
        """Before anything else of the dump exists that an extension's script could mistake for its own."""
        available = frozenset(await self.db.values(statement("dump.available_extensions")))
        fixed = dict(await self.db.rows(_pair, statement("dump.extension_schemas")))
        for each in self._of(Deed.EXTENSION):
            name, schema = each.sorted.names
            schema = schema or (each.path[0] if each.path else "public")
            if name in self.extensions or any(name == missing for missing, _ in self.missing_extensions):
                continue
            if name not in _SAFE_EXTENSIONS or name not in available:
                self.missing_extensions.append((name, fixed.get(name, schema)))
                continue
            query = sql.SQL("create extension if not exists {} schema {} cascade")
            query = query.format(sql.Identifier(name), sql.Identifier(schema))
            if (schema == "pg_catalog" or await self._make_schema(schema)) and await self._try(query):
                self.extensions.append(name)
            else:
                self.missing_extensions.append((name, schema))

    async def _languages(self) -> None:
        named = [each.sorted.language for each in self.statements if each.sorted.language]
        named += [each.sorted.names[0] for each in self._of(Deed.LANGUAGE)]
        for name in dict.fromkeys((STUB_C, ABSENT, *named)):
            if name in ("sql", "plpgsql") or len(self.languages) > _MOST_LANGUAGES:
                continue
            query = sql.SQL("create trusted language {} handler afterwrite_dump.handler")
            if await self._try(query.format(sql.Identifier(name))):
                self.languages.append(name)
        for extension, schema in self.missing_extensions:
            await self._known_functions(extension, schema)

    async def _known_functions(self, extension: str, schema: str) -> None:
        """The functions of an extension that is not here, as far as we know them."""
        rows = await self.db.rows(_Known, statement("dump.known_functions"))
        known = [each for each in rows if each.extension == extension]
        if not known or not await self._make_schema(schema):
            return
        for each in known:
            want = Want(Missing.FUNCTION, schema, each.name)
            await self._make_function(want, each.arguments, each.result, each.volatility)

    def _of(self, deed: Deed) -> list[Statement]:
        return [each for each in self.statements if each.sorted.deed is deed]

    async def _set_path(self) -> None:
        """Where the application looks for names, when the dump says so."""
        for each in self._of(Deed.DATABASE_PATH):
            await self.db.run(
                sql.SQL("alter database {} set search_path to {}").format(
                    sql.Identifier(self.name),
                    sql.SQL(", ").join(sql.Identifier(name) for name in each.sorted.names) or sql.SQL("''"),
                )
            )

    # Running ---------------------------------------------------------------------------------------------------------

    async def _open_session(self) -> None:
        self.path = None
        dsn = self.server.dsn(self.name, OWNER)
        opening = connect(dsn, application_name="afterwrite dump", options=_SESSION)
        self.session = await self.sessions.enter_async_context(opening)

    async def _reopen_session(self) -> None:
        with contextlib.suppress(AfterwriteError):
            await self.sessions.aclose()
        await self._open_session()

    async def _run_all(self) -> None:
        waiting = [index for index, each in enumerate(self.statements) if each.sorted.deed is Deed.RUN]
        waiting = await self._until_nothing_more(waiting)
        texts = (each.sorted.text for each in self.statements if each.sorted.deed is Deed.RUN)
        for kind, name in sorted(mentioned(texts)):
            await self._surround(kind, name)
        await self._computing_functions()
        tried: set[Want] = set()
        while waiting:
            wants = {want for index in waiting if (want := self._want(index)) is not None} - tried
            tried |= wants
            if wants and len(self.stand_ins) < _MOST_STAND_INS:
                for want in sorted(wants, key=lambda want: (_ORDER[want.kind], want.full_name)):
                    if await self._stand_in(want):
                        self.stand_ins.append(want)
                waiting = await self._until_nothing_more(waiting)
                continue
            left = await self._run_bare(waiting)
            if len(left) == len(waiting):
                break
            waiting = await self._until_nothing_more(left)

    async def _until_nothing_more(self, waiting: Sequence[int]) -> list[int]:
        """Run these, and those that failed again: what they need may stand further down."""
        left = list(waiting)
        while left:
            still = [index for index in left if not await self._run_one(index, self.statements[index].sorted.text)]
            still = [index for index in still if self.failed[index].sqlstate not in _FINAL]
            if len(still) == len(left):
                return still
            left = still
        return left

    async def _run_one(self, index: int, text: str) -> bool:
        each = self.statements[index]
        steady = self._steady(each.sorted)
        complaint = steady or await self._attempt(each, text)
        if complaint is None:
            self.failed.pop(index, None)
            self.done[each.sorted.kind] += 1
            self.new_trigger_functions = self.new_trigger_functions or each.sorted.returns_trigger
            return True
        self.failed[index] = complaint
        return False

    def _steady(self, sorted_: Sorted) -> Complaint | None:
        """A domain's CHECK is computed whenever a literal of it is read: it may compute, and nothing else."""
        for name in sorted_.calls:
            if name in self.unsteady:
                return Complaint(sqlstate=_REFUSED, message=f"its CHECK calls {name}(), which may do more than compute")
        return None

    async def _attempt(self, each: Statement, text: str) -> Complaint | None:
        if time.monotonic() > self.deadline:
            return Complaint(sqlstate=_UNTRIED, message=f"not tried: {_SECONDS:g} s were over")
        self.tried += 1
        if self.tried % _LOOK_AT_DISK_EVERY == 0:
            await self._look_at_disk(each.line)
        granted: list[str] = []
        if each.sorted.kind == "CREATE TRIGGER" and self.new_trigger_functions:
            await self._let_triggers_be_made()
        if each.sorted.needs:
            granted = await self.db.values(statement("dump.functions_called"), names=list(each.sorted.needs))
            await self._privilege("grant execute on function {} to", granted)
        try:
            async with asyncio.timeout(_STATEMENT_SECONDS):
                if self.path != each.path:
                    shown = ", ".join(_quoted(name) for name in each.path)
                    await self.session.run(statement("dump.look_in"), path=shown)
                    self.path = each.path
                return await self.session.attempt(text)
        except TimeoutError:
            await self._end_session()
            return Complaint(sqlstate=_REFUSED, message=f"it took longer than {_STATEMENT_SECONDS:g} s")
        except ConnectionLost as error:
            await self._reopen_session()
            return Complaint(sqlstate=_REFUSED, message=f"the server gave up the session: {error}")
        finally:
            await self._privilege("revoke execute on function {} from", granted)

    async def _privilege(self, words: str, functions: Sequence[str]) -> None:
        for each in functions:
            await self.db.script(f"{words.format(each)} {OWNER}")

    async def _let_triggers_be_made(self) -> None:
        """A trigger needs EXECUTE on its function; one that returns a trigger cannot be called: this opens nothing."""
        query = statement("dump.new_trigger_functions")
        functions = dict(await self.db.rows(_signature, query, after=self.fired_up_to))
        if functions:
            await self.db.script(f"grant execute on function {', '.join(functions.values())} to {OWNER}")
            self.fired_up_to = max(functions)
        self.new_trigger_functions = False

    async def _end_session(self) -> None:
        pid = self.session.connection.info.backend_pid
        await self.db.run(statement("dump.end_session"), pid=pid)
        await self._reopen_session()

    async def _look_at_disk(self, line: int) -> None:
        if await self.db.value(statement("dump.size")) > _DISK:
            raise Refused(
                f"at line {line} the schema has grown to more than {_DISK >> 30} GiB on disk, without a row in it",
                remedy="dump fewer schemas at a time: pg_dump --schema-only -n SCHEMA",
            )

    # Stand-ins -------------------------------------------------------------------------------------------------------

    def _want(self, index: int) -> Want | None:
        complaint = self.failed.get(index)
        want = wanted(complaint) if complaint is not None else None
        if want is None:
            return None
        each = self.statements[index]
        if want.kind is Missing.TYPE and each.sorted.kind.startswith("DROP"):
            return None
        schema, arguments = want.schema, want.arguments
        if not schema and want.kind not in UNQUALIFIED:
            schema = each.path[0] if each.path else "public"
        if want.kind is Missing.FUNCTION and each.sorted.kind == "CREATE TRIGGER":
            arguments = "trigger"
        return Want(want.kind, schema, want.name, arguments)

    async def _stand_in(self, want: Want) -> bool:
        if want.schema and want.schema != "pg_catalog" and not await self._make_schema(want.schema):
            return False
        name = identifier(want.schema, want.name) if want.schema else sql.Identifier(want.name)
        match want.kind:
            case Missing.SCHEMA:
                return await self._make_schema(want.name)
            case Missing.TYPE:
                return want.schema != "pg_catalog" and await self._make_type(name)
            case Missing.FUNCTION:
                return await self._stand_in_function(want)
            case Missing.RELATION:
                return False
            case Missing.ROLE:
                return await self._try(sql.SQL("create role {} nologin").format(name))
            case Missing.SERVER:
                made = await self._try(sql.SQL("create server {} foreign data wrapper afterwrite_dump").format(name))
                grant = sql.SQL("grant usage on foreign server {} to {}").format(name, sql.Identifier(OWNER))
                return made and await self._try(grant)
            case Missing.PUBLICATION:
                made = await self._try(sql.SQL("create publication {}").format(name))
                owned = sql.SQL("alter publication {} owner to {}").format(name, sql.Identifier(OWNER))
                return made and await self._try(owned)
            case Missing.COLLATION:
                return await self._try(sql.SQL('create collation {} from "C"').format(name))
            case Missing.CONFIGURATION:
                return await self._try(
                    sql.SQL("create text search configuration {} (copy = pg_catalog.simple)").format(name)
                )
            case Missing.SETTING:
                return self.server.version >= 15 and await self._try(
                    sql.SQL("grant set on parameter {} to {}").format(name, sql.Identifier(OWNER))
                )

    async def _try(self, query: sql.Composed) -> bool:
        """One of our own statements about a name of the dump; whether the server took it."""
        return await self.db.attempt(query.as_string(self.db.connection)) is None

    async def _make_type(self, name: sql.Composable) -> bool:
        """A type of this name that holds text, takes any modifiers, and goes where text goes."""
        inner = sql.Identifier("afterwrite_dump", f"type_{len(self.stand_ins)}_in")
        outer = sql.Identifier("afterwrite_dump", f"type_{len(self.stand_ins)}_out")
        for query in (
            sql.SQL("create type {name}"),
            sql.SQL(
                "create function {inner}(cstring, oid, integer) returns {name} language internal immutable strict"
                " as 'textin'"
            ),
            sql.SQL("create function {outer}({name}) returns cstring language internal immutable strict as 'textout'"),
            sql.SQL(
                "create type {name} (input = {inner}, output = {outer}, typmod_in = afterwrite_dump.modifiers,"
                " like = text, category = 'S', collatable = true)"
            ),
            sql.SQL("alter type {name} owner to {owner}"),
            sql.SQL("create cast ({name} as text) without function as implicit"),
            sql.SQL("create cast (text as {name}) without function as assignment"),
        ):
            if not await self._try(query.format(name=name, inner=inner, outer=outer, owner=sql.Identifier(OWNER))):
                return False
        return True

    async def _stand_in_function(self, want: Want) -> bool:
        key = (Missing.FUNCTION, f"{want.schema}.{want.name}")
        if key in surroundings():
            return False  # it stands, and has other arguments
        if want.schema == "pg_catalog":
            return False
        if want.arguments == "trigger":
            return await self._make_function(want, "", "trigger", "volatile")
        result = "afterwrite_dump.anything"
        if not want.arguments:
            return await self._make_function(want, "", result, "volatile")
        return await self._make_function(want, 'variadic "any"', result, "immutable")

    async def _make_function(self, want: Want, arguments: str, result: str, volatility: str) -> bool:
        """A function that is only there by name: of C, when it is an extension's, else of no language that we know."""
        of_extension = any(want.schema == schema for _, schema in self.missing_extensions)
        query = sql.SQL(
            "create function {name}({arguments}) returns {result} language {language} {volatility} as {said}"
        )
        return await self._try(
            query.format(
                name=identifier(want.schema, want.name),
                arguments=sql.SQL(arguments),  # type: ignore[arg-type]
                result=sql.SQL(result),  # type: ignore[arg-type]
                volatility=sql.SQL(volatility),  # type: ignore[arg-type]
                language=sql.Identifier(STUB_C if of_extension else ABSENT),
                said=sql.Literal("-- the dump only names this function"),
            )
        )

    async def _surround(self, kind: Missing, name: str) -> None:
        """A part of Supabase's own schemas, where the dump uses it and does not hold it."""
        schema, _, short = name.partition(".")
        if not await self._make_schema(schema):
            return
        text = surroundings()[kind, name].decode()
        if await self.db.attempt(text) is None:
            self.stand_ins.append(Want(kind, schema, short))
            owned = sql.SQL("alter {} {} owner to {}").format(
                sql.SQL("function" if kind is Missing.FUNCTION else "table"),
                identifier(schema, short),
                sql.Identifier(OWNER),
            )
            await self._try(owned)

    async def _computing_functions(self) -> None:
        """What bodies call of an extension that is not here and only computes. (Definitions say what they miss.)"""
        missing = dict(self.missing_extensions)
        prefixes = dict(await self.db.rows(_prefix, statement("dump.known_prefixes")))
        for extension in missing.keys() & prefixes.keys():
            pattern = re.compile(rf"\b{prefixes[extension]}\w+(?=\s*\()", re.IGNORECASE)
            texts = (each.sorted.text for each in self.statements if each.sorted.kind == "CREATE FUNCTION")
            called = {name.lower() for text in texts for name in pattern.findall(text)}
            for name in sorted(called)[:_MOST_STAND_INS]:
                want = Want(Missing.FUNCTION, missing[extension], name)
                if await self._make_function(want, 'variadic "any"', "afterwrite_dump.anything", "immutable"):
                    self.stand_ins.append(want)

    async def _run_bare(self, waiting: Sequence[int]) -> list[int]:
        """Tables without what the server did not take: defaults and checks may be missing, triggers need the table."""
        able = [index for index in waiting if self.statements[index].sorted.kind in ("CREATE TABLE", "ALTER TABLE")]
        texts = [Question(text=self.statements[index].sorted.text, form=Form.BARE) for index in able]
        still = [index for index in waiting if index not in able]
        for index, answer in zip(able, await self.sorter.sort(texts), strict=True):
            each = self.statements[index]
            before = self.failed[index]
            if answer.deed is not Deed.RUN or answer.text == each.sorted.text:
                still.append(index)
            elif await self._run_one(index, answer.text):
                if each.sorted.kind == "CREATE TABLE":
                    self.bare.append(f"line {each.line} ({before.message})")
            else:
                self.failed[index] = before
                still.append(index)
        return sorted(still)

    # Telling ---------------------------------------------------------------------------------------------------------

    def texts_not_loaded(self) -> dict[str, str]:
        """What the server did not take, by ``line N, KIND``."""
        failed = [self.statements[index] for index in sorted(self.failed)]
        return {f"line {each.line}, {each.sorted.kind}": each.sorted.text for each in failed}

    def account(self, path: str) -> DumpReport:
        """What became of every statement."""
        for each in self.statements:
            if each.sorted.deed in (Deed.LANGUAGE, Deed.SERVER, Deed.ROLE):
                self.tally.add(each.line, each.sorted.kind, Deed.NEEDLESS)
        untried = [index for index, complaint in self.failed.items() if complaint.sqlstate == _UNTRIED]
        failed = sorted(self.failed.keys() - set(untried))
        unloaded = [
            Unloaded(
                line=self.statements[index].line,
                kind=self.statements[index].sorted.kind,
                text=shortened(self.statements[index].sorted.text),
                why=shortened(self.failed[index].message, 200),
                refused=self.failed[index].sqlstate == _REFUSED,
            )
            for index in failed[:_MOST_TOLD]
        ]
        stubbed: defaultdict[str, int] = defaultdict(int)
        for each in self.statements:
            language = each.sorted.language
            if language and language not in ("sql", "plpgsql"):
                stubbed["c" if language == STUB_C else shortened(language)] += 1
        return DumpReport(
            file=path,
            loaded=dict(sorted(self.done.items())),
            left_out=self.tally.left_out(),
            failed=dict(Counter(self.statements[index].sorted.kind for index in failed)),
            not_loaded=tuple(unloaded),
            untried=len(untried),
            extensions=tuple(self.extensions),
            missing_extensions=tuple(shortened(name) for name, _ in self.missing_extensions),
            missing_roles=tuple(shortened(want.name) for want in self.stand_ins if want.kind is Missing.ROLE),
            stubbed_languages=dict(stubbed),
            stand_ins=tuple(
                f"{want.kind.value} {shortened(want.full_name, 130)}"
                for want in self.stand_ins
                if want.kind not in (Missing.ROLE, Missing.SETTING, Missing.SCHEMA)
            ),
            bare_tables=tuple(shortened(each, 200) for each in self.bare),
            databases=tuple(shortened(name) for name in dict.fromkeys(self.databases)),
        )


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    extension: str
    name: str
    arguments: str
    result: str
    volatility: str


def _pair(extension: str, schema: str) -> tuple[str, str]:
    return extension, schema


def _prefix(extension: str, prefix: str) -> tuple[str, str]:
    return extension, prefix


def _signature(oid: int, signature: str) -> tuple[int, str]:
    return oid, signature


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_ORDER = {kind: place for place, kind in enumerate(Missing)}
_REFUSED = "refused"
_UNTRIED = "untried"
# Trying again would take as long again: our own bounds, statement_timeout, no memory, a program limit.
_FINAL = frozenset({_REFUSED, _UNTRIED, "57014", "53200", "54000", "54001", "54011"})
